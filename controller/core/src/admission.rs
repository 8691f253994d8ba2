//! What is said about pods and workloads before they exist: refused with the sentence that the controller itself would
//! use later, admitted with a warning, or admitted silently.
//!
//! **Invariant:** admission is a courtesy. It resolves with the same functions as [`crate::Ipam::grant`], marks nothing,
//! and whatever slips past it meets the same refusal when the pod is bound. What may pass by itself is never refused
//! here, because objects are applied in any order.

mod pod;
mod workload;

use std::collections::BTreeMap;

use braid_types::model::NetworkDef;

pub use pod::{Admitted, NewPod, admit};
pub use workload::{Misfit, Shape, Surge, Workload};

use crate::ipam::{Choice, Ipam, Prospect, Refusal};

/// The namespace that something is made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels; `None` = it was not seen yet: it keeps nobody out, and nobody knows what it will say.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// What its annotations say.
    pub choice: &'a Choice,
}

/// What can be said of a pod that is about to be made and does not contradict itself.
enum Outlook<'a> {
    /// Nothing: a namespace and its pods are often made in one go, and what this one says was not seen yet.
    Unknown,
    /// There is no Network for it now.
    NoNetwork(Refusal),
    /// Its Network, and what else would be refused now.
    Network(Prospect<'a>),
}

/// Resolves the pod as the grant will.
///
/// # Errors
/// A contradiction that waiting does not cure.
fn outlook<'a>(ipam: &'a Ipam, pod: &NewPod<'_>) -> Result<Outlook<'a>, Refusal> {
    let (is_seen, named) = (pod.namespace.labels.is_some(), pod.names_a_place());
    if !is_seen && !pod.choice.names_a_place() {
        return Ok(Outlook::Unknown);
    }
    let mut prospect = match ipam.foresee(&pod.request()) {
        Ok(prospect) => prospect,
        Err(refusal) if is_contradiction(ipam, &refusal, named, None) => return Err(refusal),
        Err(refusal) => return Ok(Outlook::NoNetwork(refusal)),
    };
    let network = Some(prospect.network);
    prospect.refusals.retain(|r| is_seen || !matches!(r, Refusal::NamespaceNotAllowed { .. }));
    match prospect.refusals.iter().position(|r| is_contradiction(ipam, r, named, network)) {
        Some(at) => Err(prospect.refusals.swap_remove(at)),
        None => Ok(Outlook::Network(prospect)),
    }
}

/// Whether no waiting cures the refusal: somebody has to change the pod, or what is said about it.
///
/// `named`: the pod or its namespace says where the addresses come from. `network`: where that leads, if it can be told.
fn is_contradiction(ipam: &Ipam, refusal: &Refusal, named: bool, network: Option<&NetworkDef>) -> bool {
    match refusal {
        Refusal::NamespaceNotAllowed { .. }
        | Refusal::SubnetOfOtherNetwork { .. }
        | Refusal::AddressExcluded { .. }
        | Refusal::FamilyMismatch { .. } => true,
        // Another default may still come.
        Refusal::NotSupported { .. } => named,
        // The Subnet that has it may still come, or be in the middle of being checked.
        Refusal::AddressOutside { range, .. } => {
            let mut of_family = ipam
                .subnets()
                .filter(|s| network.is_none_or(|n| n.name == s.network) && s.family() == range.family())
                .peekable();
            of_family.peek().is_some()
                && !of_family.any(|s| !ipam.is_subnet_usable(s) && s.cidr.range().overlaps(range))
        }
        Refusal::NoDefaultNetwork
        | Refusal::NetworkMissing { .. }
        | Refusal::NetworkNotReady { .. }
        | Refusal::NotMember { .. }
        | Refusal::NodeMissing { .. }
        | Refusal::SubnetMissing { .. }
        | Refusal::SubnetNotReady { .. }
        | Refusal::NoSubnet { .. }
        | Refusal::SubnetFull { .. }
        | Refusal::AddressTaken { .. }
        | Refusal::StillHeld { .. }
        | Refusal::KeptElsewhere { .. }
        | Refusal::PoolExhausted { .. } => false,
    }
}
