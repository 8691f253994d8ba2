//! Policy routing rules, ahead of main: `from all lookup` the tables of local pods and overlays, and for each Subnet of an
//! underlay `from <prefix> lookup` its own.

use std::collections::BTreeSet;

use braid_types::well_known::{rule_priority, table};
use braid_types::{Cidr, Family};

use crate::underlay::{Segment, Underlay};
use crate::view::NodeView;

/// A rule `from <all or a prefix> lookup <table>` with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Priority; lower is asked first.
    pub priority: u32,
    /// Table.
    pub table: u32,
    /// Sources that it is for; `None` = all.
    pub from: Option<Cidr>,
}

impl Rule {
    fn from(prefix: Cidr, priority: u32, table: u32) -> Self {
        Self { family: prefix.family(), priority, table, from: Some(prefix) }
    }
}

/// Every member node has the rules of every Subnet of an underlay, whether it has pods of it or not: a pod's first
/// packet never waits for the loop, and there are as many rules as Subnets, not as pods.
pub(super) fn of(view: &NodeView, underlays: &[&Underlay]) -> BTreeSet<Rule> {
    let pairs = [(rule_priority::LOCAL, table::LOCAL_PODS), (rule_priority::OVERLAY, table::OVERLAY)];
    let everywhere = view.families.iter().flat_map(|family| {
        pairs.map(|(priority, table)| Rule { family: *family, priority, table, from: None })
    });
    let segments = || underlays.iter().flat_map(|u| &u.segments);
    let of_subnets = segments().flat_map(|s| {
        s.senders.iter().map(|prefix| Rule::from(*prefix, rule_priority::UNDERLAY_SUBNET, s.table))
    });
    let of_node = segments().flat_map(|s| own_addresses(view, s));
    everywhere.chain(of_subnets).chain(of_node).collect()
}

/// A node that has an address in the Subnet itself goes on by its own routes, of which there may be more than one default
/// route and more than one device.
fn own_addresses(view: &NodeView, segment: &Segment) -> impl Iterator<Item = Rule> {
    let addresses = view.links.values().flat_map(|l| &l.addrs).map(|(address, _)| *address);
    let inside = addresses.filter(|a| segment.cidr.contains(*a));
    inside.map(|a| Rule::from(Cidr::host(a), rule_priority::UNDERLAY_NODE, table::MAIN))
}
