//! Policy routing rules: `from all lookup` our tables, ahead of main.

use std::collections::BTreeSet;

use braid_types::Family;
use braid_types::well_known::{rule_priority, table};

use crate::view::NodeView;

/// A rule `from all lookup <table>` with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Priority; lower is asked first.
    pub priority: u32,
    /// Table.
    pub table: u32,
}

pub(super) fn of(view: &NodeView) -> BTreeSet<Rule> {
    let pairs = [(rule_priority::LOCAL, table::LOCAL_PODS), (rule_priority::OVERLAY, table::OVERLAY)];
    view.families
        .iter()
        .flat_map(|family| pairs.map(|(priority, table)| Rule { family: *family, priority, table }))
        .collect()
}
