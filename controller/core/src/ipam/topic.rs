//! What a change may help, so that who waits is asked again without polling.

use std::collections::BTreeSet;

use braid_types::{InstanceName, Symbol};

/// Something whose change may turn a refusal into a grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Any Network or Subnet appears, vanishes or changes: what the default one is, or whose address it is.
    AnyNetwork,
    /// This Network changes, or which Subnets it has.
    Network(String),
    /// This Subnet changes, or one of its addresses becomes free.
    Subnet(String),
    /// This address, which is kept for an owner, changes hands or is free.
    Address(InstanceName),
    /// This node appears or its labels change.
    Node(String),
    /// Labels or annotations of this namespace change. The shell raises it: namespaces are not kept here.
    Namespace(String),
}

/// What one event touched. The shell acts on it; an event that changes nothing has empty effects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Refused pods that wait for one of these are worth another try.
    pub wake: BTreeSet<Topic>,
    /// Addresses that [`crate::Ipam::decide`] should look at now.
    pub review: BTreeSet<InstanceName>,
    /// Uids of pods that have lost an address object while they live; ask [`crate::Ipam::grant`] for them again.
    pub pods: BTreeSet<Symbol>,
    /// Subnets whose status may differ now.
    pub subnets: BTreeSet<String>,
    /// Networks whose status may differ now.
    pub networks: BTreeSet<String>,
    /// Whether a node of some overlay may lack its address, or have one too many.
    pub vteps: bool,
    /// Everybody who waits and every address: so much has changed that names are worth less than a look at all there is.
    pub everything: bool,
}

/// How much is named one by one. To look at an address about which there is nothing to do costs less than its name in the
/// sets and queues on the way there, and a look at all of a large cluster takes as long as a few thousand of those.
const MANY: usize = 4096;

impl Effects {
    /// Adds what another event touched.
    pub fn merge(&mut self, other: Self) {
        add(&mut self.wake, other.wake);
        add(&mut self.review, other.review);
        add(&mut self.pods, other.pods);
        add(&mut self.subnets, other.subnets);
        add(&mut self.networks, other.networks);
        self.vteps |= other.vteps;
        self.everything |= other.everything || self.wake.len().max(self.review.len()) > MANY;
        if self.everything {
            self.wake.clear();
            self.review.clear();
        }
    }
}

/// Adds the smaller set to the larger one. `BTreeSet::append` walks both, which adds up when one grows step by step.
fn add<T: Ord>(set: &mut BTreeSet<T>, mut other: BTreeSet<T>) {
    if set.len() < other.len() {
        std::mem::swap(set, &mut other);
    }
    set.extend(other);
}
