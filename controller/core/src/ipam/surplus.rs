//! Two controllers that both believed that they lead may have given one interface twice what it needs: different
//! addresses, so that no claim stood against the other. What nobody uses of it goes again.

use std::collections::BTreeSet;

use braid_types::InstanceName;
use braid_types::model::{InstanceDef, Phase};

/// An address that one interface was given, as the API server has it.
#[derive(Debug, Clone)]
pub struct Given {
    /// The object.
    pub def: InstanceDef,
    /// Whether the node of its pod has put it on the interface.
    pub in_use: bool,
}

/// The addresses that the pod with this uid does not need on one interface.
///
/// What is in use stays, together with all of its set; the rest goes. While nothing is in use, nothing goes: the word of
/// the agent may be under way, and an address in use must not be freed because of it. What another pod has by now
/// neither counts nor goes.
#[must_use]
pub fn surplus(pod_uid: &str, given: &[Given]) -> Vec<InstanceName> {
    let own =
        |g: &&Given| g.def.phase == Phase::Bound && g.def.pod.as_ref().is_some_and(|pod| pod.uid == pod_uid);
    let used: BTreeSet<_> =
        given.iter().filter(own).filter(|g| g.in_use).flat_map(|g| g.def.set.iter().copied()).collect();
    given
        .iter()
        .filter(own)
        .filter(|g| !used.is_empty() && !g.in_use && !used.contains(&g.def.name.address()))
        .map(|g| g.def.name.clone())
        .collect()
}
