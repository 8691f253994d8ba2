//! Live migration of virtual machines: for a while two pods of one machine have its addresses, and one of them the traffic.

use std::sync::Arc;

use braid_types::model::{HandoverDef, InstanceDef, MigrationRole, Phase, PodRef, UnixSeconds};

use super::{Claim, Grant, Ipam, PodRequest, Refusal};
use crate::release::PodSeen;

/// How far the migration to a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// The pod is being got ready: the machine runs at its source.
    Preparing,
    /// The machine runs in the pod, or does so any moment.
    Arrived,
}

impl Ipam {
    /// Gives the pod that a machine migrates to the machine's addresses: beside the present holder as long as that has
    /// the machine, instead of it once the machine has arrived. `None` where nothing is to be shared: the pod is no
    /// target, has them all already, or nobody else has.
    ///
    /// # Errors
    /// When the pod's node is no member of the machine's Network.
    pub(super) fn hand_over(&mut self, req: &PodRequest) -> Result<Option<Grant>, Refusal> {
        let Some(shared) = self.shared_with(req) else { return Ok(None) };
        let network = shared.first().map(|d| d.network.clone()).unwrap_or_default();
        if self.network(&network).is_some_and(|n| !self.is_member(n, &req.node)) {
            return Err(Refusal::NotMember { network: network.to_string(), node: req.node.clone() });
        }
        let names = shared.iter().map(|d| d.name.clone()).collect();
        let mut grant = self.nothing_to_do(Some(req.pod.clone()), network.to_string(), names);
        for def in shared {
            let second = def.handover.as_deref().filter(|h| h.pod == req.pod);
            // As its own, or as the source of this migration after being the target of an earlier one.
            if def.pod.as_ref() == Some(&req.pod) || second.is_some_and(|h| h.role == MigrationRole::Source) {
                continue;
            }
            let next = match (req.migration, second) {
                (Some(Migration::Arrived), _) => arrived(&def, &req.pod, &req.node),
                (_, Some(_)) => continue,
                (_, None) => {
                    let (pod, node) = (req.pod.clone(), req.node.as_str().into());
                    let target = HandoverDef { pod, node, role: MigrationRole::Target, torn_down: false };
                    InstanceDef { handover: Some(Box::new(target)), host_routed: true, ..(*def).clone() }
                }
            };
            if next != *def {
                grant.claims.push(Claim::Replace { from: def, to: Arc::new(next) });
            }
        }
        Ok(Some(grant))
    }

    /// The addresses of the machine, if another pod of it on another node holds one of them: one that lives, or that the
    /// machine has left for this one.
    fn shared_with(&self, req: &PodRequest) -> Option<Vec<Arc<InstanceDef>>> {
        req.migration?;
        let runs = |uid: &str| self.pod_seen(uid) == PodSeen::Live;
        let is_own = |d: &InstanceDef| d.pod.as_ref() == Some(&req.pod);
        let is_other = |d: &InstanceDef| {
            // One migration after the other: a second pod of the one before may still have the address on its interface.
            let promised = d.handover.as_ref().is_some_and(|h| h.pod.uid != req.pod.uid && !h.torn_down);
            // It is where it was promised to, and its source, which is over, may take long to confirm that.
            let is_left = || req.migration == Some(Migration::Arrived) && is_target_of(d, req);
            let held = d.pod.as_ref().is_some_and(|p| p.uid != req.pod.uid && (runs(&p.uid) || is_left()));
            // What KubeVirt writes onto a target stays there: a pod that the machine has left must not take it back.
            let is_newer = d.pod.as_ref().is_some_and(|p| self.made(&p.uid) <= self.made(&req.pod.uid));
            let has_left = d.handover.as_ref().is_some_and(|h| h.pod == req.pod);
            held && !promised && (is_newer || has_left) && d.node.as_deref() != Some(req.node.as_str())
        };
        let mut all: Vec<_> = self
            .of_owner(req.owner.as_ref()?)
            .filter(|d| d.phase == Phase::Bound && !d.deleting && d.interface == req.interface)
            .filter(|d| is_own(d) || is_other(d))
            .cloned()
            .collect();
        all.sort_by_key(|d| (!d.attached, d.name.clone()));
        let set = self.complete_set(&all)?;
        let set: Vec<_> = set.iter().filter_map(|name| self.instance(name).cloned()).collect();
        set.iter().any(|d| is_other(d)).then_some(set)
    }

    /// When a pod was made; `None` when it is not there (any more), which is before all others.
    fn made(&self, uid: &str) -> Option<UnixSeconds> {
        self.pods.get(uid).map(|(_, created)| *created)
    }

    /// How the second pod of an address is.
    pub(super) fn second_pod_seen(&self, def: &InstanceDef) -> Option<PodSeen> {
        def.handover.as_ref().map(|h| self.pod_seen(&h.pod.uid))
    }
}

/// Whether the machine is to come to this very pod.
fn is_target_of(def: &InstanceDef, req: &PodRequest) -> bool {
    def.handover.as_ref().is_some_and(|h| h.role == MigrationRole::Target && h.pod == req.pod)
}

/// The address once the machine is at its target. Its own route stays, wherever the machine is now: the source's node must
/// know that the traffic has left.
pub(crate) fn arrived(def: &InstanceDef, target: &PodRef, node: &str) -> InstanceDef {
    let source = def.pod.clone().zip(def.node.clone()).map(|(pod, node)| {
        Box::new(HandoverDef { pod, node, role: MigrationRole::Source, torn_down: false })
    });
    InstanceDef {
        pod: Some(target.clone()),
        node: Some(node.into()),
        handover: source,
        phase: Phase::Bound,
        torn_down: None,
        release_at: None,
        host_routed: true,
        ..def.clone()
    }
}
