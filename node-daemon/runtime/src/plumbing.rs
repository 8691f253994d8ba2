//! The kernel, as the agent uses it: one seam, so that everything above it can be tested without root.

use std::fmt;

use braid_node_core::actual::Actual;
use braid_node_core::attach::Wiring;
use braid_node_core::desired::Desired;
use braid_node_core::plan::{Plan, Step};
use braid_types::{Family, IfName};
use std::collections::BTreeSet;

/// A call that failed, with what was tried and why, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PlumbingError(pub(crate) String);

impl PlumbingError {
    /// The error with everything behind it in one line.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        Self(chain(error))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) kind: &'static str,
    pub(crate) step: String,
    pub(crate) error: Option<PlumbingError>,
}

/// The kernel. Every call blocks.
pub(crate) trait Plumbing: Send + Sync + 'static {
    /// The families that the kernel has.
    fn families(&self) -> BTreeSet<Family>;
    /// Devices, addresses and default routes only.
    fn links(&self) -> Result<Actual, PlumbingError>;
    /// Everything that can be compared with `desired`.
    fn dump(&self, desired: &Desired) -> Result<Actual, PlumbingError>;
    /// Carries a plan out, going on after failures.
    fn apply(&self, plan: &Plan) -> Vec<Outcome>;
    /// Makes one interface, or nothing of it.
    fn attach(&self, wiring: &Wiring) -> Result<(), PlumbingError>;
    /// Removes one interface and what belongs to it; nothing there is no error.
    fn detach(&self, host_if: &IfName, wiring: Option<&Wiring>) -> Result<(), PlumbingError>;
    /// What of one interface is missing or different, as sentences.
    fn check(&self, wiring: &Wiring) -> Result<Vec<String>, PlumbingError>;
}

/// The kind of a step, for metrics.
pub(crate) fn kind(step: &Step) -> &'static str {
    match step {
        Step::SetSysctl { .. } => "sysctl",
        Step::ReplaceTable(_) | Step::DelTable => "nft-table",
        Step::AddElements(_) | Step::DelElements(_) => "nft-elements",
        Step::DelLink(_) | Step::AddVxlan(_) | Step::AddVeth { .. } | Step::SetLink { .. } => "link",
        Step::AddAddr(_) | Step::DelAddr(_) => "address",
        Step::PutNeigh(..) | Step::DelNeigh(_) => "neighbour",
        Step::PutFdb(..) | Step::DelFdb(..) => "fdb",
        Step::PutRoute(..) | Step::DelRoute(_) => "route",
        Step::AddRule(_) | Step::DelRule(_) => "rule",
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            None => f.write_str(&self.step),
            Some(error) => write!(f, "cannot {}: {error}", self.step),
        }
    }
}
