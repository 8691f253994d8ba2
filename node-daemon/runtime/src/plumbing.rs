//! The kernel, as the agent uses it: one seam, so that everything above it can be tested without root.

use std::fmt;

use braid_journal::JournalError;
use braid_node_core::actual::Actual;
use braid_node_core::attach::Wiring;
use braid_node_core::desired::{Desired, ProxyKey};
use braid_node_core::plan::{Plan, Step};
use braid_node_kernel::{AttachError, Holder, KernelError, Side};
use braid_types::{Family, IfName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::attachments::BeginError;

/// What kind of failure it is, as far as a caller has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The pod's network namespace is not there (any more).
    NamespaceGone,
    /// The path of the pod's network namespace leads to another one.
    OtherNamespace,
    /// The interface's name is taken in the pod.
    NameTakenInPod,
    /// Something of that name or kind exists already on the host.
    Exists,
    /// The same may succeed a moment later.
    Passing,
    /// The journal cannot be written.
    Journal,
    /// The pod is over and gets no interface any more.
    PodOver,
    /// Anything else.
    Other,
}

/// A call that failed, with what was tried and why, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct PlumbingError {
    /// What kind of failure.
    pub(crate) fault: Fault,
    /// Something that was made on the way could not be removed again.
    pub(crate) left: bool,
    pub(crate) text: String,
}

impl PlumbingError {
    /// A failure of which nothing more is known than this sentence.
    pub(crate) fn other(text: impl Into<String>) -> Self {
        Self { fault: Fault::Other, left: false, text: text.into() }
    }

    /// The same with a sentence more.
    pub(crate) fn explained(mut self, more: &str) -> Self {
        self.text = format!("{}; {more}", self.text);
        self
    }

    /// The same, as something that was made could not be removed again.
    pub(crate) fn leaving_something(mut self) -> Self {
        self.left = true;
        self
    }

    fn of_kernel(error: &KernelError, text: String) -> Self {
        let fault = match error {
            KernelError::NamespaceGone { .. } => Fault::NamespaceGone,
            KernelError::OtherNamespace { .. } => Fault::OtherNamespace,
            KernelError::NameTaken { place: Side::Pod, .. } => Fault::NameTakenInPod,
            other if other.is_passing() => Fault::Passing,
            other if other.already_exists() => Fault::Exists,
            _ => Fault::Other,
        };
        Self { fault, left: false, text }
    }
}

impl From<KernelError> for PlumbingError {
    fn from(error: KernelError) -> Self {
        Self::of_kernel(&error, chain(&error))
    }
}

impl From<AttachError> for PlumbingError {
    fn from(error: AttachError) -> Self {
        let this = Self::of_kernel(&error.error, chain(&error));
        if error.left.is_empty() { this } else { this.leaving_something() }
    }
}

impl From<BeginError> for PlumbingError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Journal(error) => error.into(),
            BeginError::LetGo => Self { fault: Fault::PodOver, ..Self::other(error.to_string()) },
        }
    }
}

impl From<JournalError> for PlumbingError {
    fn from(error: JournalError) -> Self {
        Self { fault: Fault::Journal, ..Self::other(chain(&error)) }
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
    /// The device that the step makes or sets up.
    pub(crate) device: Option<IfName>,
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
    /// Removes one interface and what belongs to it, first of all the answers for the addresses in `unanswered`; nothing
    /// there is no error.
    fn detach(
        &self,
        host_if: &IfName,
        wiring: Option<&Wiring>,
        unanswered: &BTreeSet<IpAddr>,
    ) -> Result<(), PlumbingError>;
    /// Devices to which the tables of underlay Subnets lead.
    fn wires(&self) -> Result<BTreeMap<u32, IfName>, PlumbingError>;
    /// Addresses for which the node answers on our account.
    fn proxies(&self) -> Result<BTreeSet<ProxyKey>, PlumbingError>;
    /// Somebody on the link of a device who has one of the addresses already and says so within `wait`.
    fn probe(
        &self,
        dev: &IfName,
        addresses: &BTreeSet<IpAddr>,
        wait: Duration,
    ) -> Result<Option<Holder>, PlumbingError>;
    /// What of one interface is missing or different, as sentences.
    fn check(&self, wiring: &Wiring) -> Result<Vec<String>, PlumbingError>;
}

/// What became of a step.
pub(crate) fn outcome(step: &Step, error: Option<PlumbingError>) -> Outcome {
    let device = match step {
        Step::AddVxlan(link) | Step::AddVeth { link, .. } | Step::SetLink { link, .. } => {
            Some(link.name.clone())
        }
        Step::AddAddr(key) => Some(key.dev.clone()),
        _ => None,
    };
    Outcome { kind: kind(step), device, step: step.to_string(), error }
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
        Step::PutProxy(_) | Step::DelProxy(_) => "proxy",
        Step::Announce(_) => "announcement",
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
