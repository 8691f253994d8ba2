//! What a pod asks for.

use std::collections::BTreeMap;
use std::fmt;

use braid_types::annotation::FamilyPolicy;
use braid_types::model::{OwnerRef, PodRef};
use braid_types::{AddrRange, Family, Mac};

use super::Migration;

/// Which families an interface shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FamilyWish {
    /// One family only.
    Only(Family),
    /// Both; refused where the Network has one.
    DualStack,
    /// Whatever the Network has.
    PreferDualStack,
}

impl From<FamilyPolicy> for FamilyWish {
    fn from(policy: FamilyPolicy) -> Self {
        match policy {
            FamilyPolicy::Only(family) => Self::Only(family),
            FamilyPolicy::DualStack => Self::DualStack,
            FamilyPolicy::PreferDualStack => Self::PreferDualStack,
        }
    }
}

/// As the annotation has it.
impl fmt::Display for FamilyWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(family) => family.fmt(f),
            Self::DualStack => f.write_str("DualStack"),
            Self::PreferDualStack => f.write_str("PreferDualStack"),
        }
    }
}

/// What one level (pod, or namespace) says about the default interface: the parsed annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Name of the Network.
    pub network: Option<String>,
    /// Names of Subnets.
    pub subnets: Vec<String>,
    /// Families.
    pub family: Option<FamilyWish>,
    /// Fixed addresses or pools: of each family mentioned, one address out of its ranges is given.
    pub ips: Vec<AddrRange>,
    /// Fixed hardware address.
    pub mac: Option<Mac>,
}

impl Choice {
    /// Whether it says where addresses come from. One level decides alone: what a pod says is never mixed with
    /// what its namespace says.
    #[must_use]
    pub fn names_a_place(&self) -> bool {
        self.network.is_some() || !self.subnets.is_empty() || !self.ips.is_empty()
    }
}

/// A pod that was bound to a node and needs addresses for one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRequest {
    /// The pod.
    pub pod: PodRef,
    /// Interface in the pod, `eth0`.
    pub interface: String,
    /// The node it was bound to.
    pub node: String,
    /// What its annotations say.
    pub choice: Choice,
    /// What the annotations of its namespace say.
    pub namespace_choice: Choice,
    /// Labels of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// In whose name addresses are kept for the pod over its re-creation; `None` = nobody's.
    pub owner: Option<OwnerRef>,
    /// Whether what it is given now stays with the owner when the pod is gone; `None` = no. What was kept before is
    /// taken up in either case.
    pub keep: Option<Keep>,
    /// How far the migration is, where a virtual machine migrates to the pod; `None` = it is no target of one.
    pub migration: Option<Migration>,
}

/// How addresses are kept for their owner while it has no pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// For how long; `None` = as long as the owner exists.
    pub seconds: Option<u32>,
}

/// A node that takes part in an overlay and has no address of its own there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepRequest {
    /// Name of the Network.
    pub network: String,
    /// Name of the node.
    pub node: String,
}
