//! What is kept for a pod in the name of its owner.
//!
//! A pod that is made again gets what is kept for it or a clear refusal, never another address of that family.

use std::sync::Arc;

use braid_types::Family;
use braid_types::model::{InstanceDef, OwnerRef, Phase};

use super::choose::Chosen;
use super::refusal::{Holder, owner_in_words};
use super::{Choice, FamilyWish, Ipam, PodRequest, Refusal};
use crate::release::PodSeen;

impl Ipam {
    /// What the pod may take up now: what an earlier pod of its name has used before what none has, then the lowest address
    /// first.
    ///
    /// # Errors
    /// When an earlier pod of the same name may still use one of them.
    pub(super) fn kept(&self, req: &PodRequest) -> Result<Vec<Arc<InstanceDef>>, Refusal> {
        let Some(owner) = &req.owner else { return Ok(Vec::new()) };
        let mut kept = Vec::new();
        for def in self.of_owner(owner) {
            let Some(in_name_of) = &def.owner else { continue };
            let for_this_pod = in_name_of.pod.is_none() || in_name_of.pod == owner.pod;
            let own = def.pod.as_ref().is_some_and(|p| p.uid == req.pod.uid) && def.phase == Phase::Bound;
            // Its owner was gone, or its time was over: it is kept no more.
            let left = def.pod.is_none() && def.phase == Phase::Releasing;
            if !for_this_pod || own || left || def.deleting || def.interface != req.interface {
                continue;
            }
            // One of its own that is being given back is in use as well: its node says that the pod is over, and the
            // cache does not have that yet. Another one now would be kept next to it, and its successor would have to
            // choose.
            // One that is reserved and still names a pod was on its way from or to that pod when a controller died.
            let in_use = def.pod.as_ref().is_some_and(|p| {
                let lives = self.pod_seen(&p.uid) == PodSeen::Live;
                def.phase != Phase::Reserved || (p.uid != req.pod.uid && lives)
            });
            if !in_use {
                kept.push(def.clone());
            } else if owner.is_exclusive() && in_name_of.pod == owner.pod {
                return Err(Refusal::StillHeld {
                    address: def.name.clone(),
                    owner: owner_in_words(owner),
                    holder: Box::new(Holder::of_pod(def)),
                });
            }
        }
        kept.sort_by_key(|def| !def.attached);
        Ok(kept)
    }

    /// Whether an address that is kept for the only pod of a name was never used while that pod has, or had, another one
    /// of the family: two leaders gave it one each.
    pub(super) fn is_surplus(&self, def: &InstanceDef) -> bool {
        let Some(owner) = def.owner.as_deref().filter(|o| o.is_exclusive()) else { return false };
        let kept = def.phase == Phase::Reserved && def.pod.is_none();
        let family = |d: &InstanceDef| Family::of(d.name.address());
        let instead = |d: &InstanceDef| {
            d.attached
                && d.phase != Phase::Releasing
                && (family(d), &d.interface, &d.network) == (family(def), &def.interface, &def.network)
                && d.owner.as_ref().is_some_and(|o| o.pod == owner.pod)
        };
        kept && !def.attached && !def.declared && self.of_owner(owner).any(|d| instead(d))
    }

    /// As [`Self::kept`], for a pod that is not there yet: what an earlier pod of its name may still use will be given up
    /// for it.
    pub(super) fn to_be_kept(&self, req: &PodRequest) -> Vec<Arc<InstanceDef>> {
        let in_its_name = || {
            let owner = req.owner.iter();
            owner.flat_map(|owner| {
                let fits = |d: &&Arc<InstanceDef>| {
                    let pod = d.owner.as_ref().and_then(|o| o.pod.as_ref());
                    (pod.is_none() || pod == owner.pod.as_ref())
                        && !d.deleting
                        && d.interface == req.interface
                };
                self.of_owner(owner).filter(fits).cloned()
            })
        };
        self.kept(req).unwrap_or_else(|_| in_its_name().collect())
    }

    /// Everything in the name of this owner, lowest address first.
    pub(super) fn of_owner(&self, owner: &OwnerRef) -> impl Iterator<Item = &Arc<InstanceDef>> {
        let key = (owner.kind.clone(), owner.namespace.clone(), owner.name.clone());
        self.by_owner.get(&key).into_iter().flatten().filter_map(|n| self.instance(n))
    }

    /// The place of what is kept: it goes before what the namespace or the default say, and a pod that names no place
    /// itself keeps its Network, Subnets and families. An address that was declared on its own says nothing about the
    /// other family.
    pub(super) fn place_of_kept(req: &PodRequest, kept: &[Arc<InstanceDef>]) -> Option<Choice> {
        let exclusive = req.owner.as_ref().is_some_and(OwnerRef::is_exclusive);
        let first = kept.first().filter(|_| exclusive && !req.choice.names_a_place())?;
        let here = || kept.iter().filter(|d| d.network == first.network);
        let mut subnets: Vec<String> = Vec::new();
        for def in here() {
            if !subnets.iter().any(|s| def.subnet == *s) {
                subnets.push(def.subnet.to_string());
            }
        }
        let one_family = |d: &Arc<InstanceDef>| {
            !d.set.is_empty() && d.set.iter().all(|a| Family::of(*a) == Family::of(d.name.address()))
        };
        let family = (!here().all(one_family)).then_some(FamilyWish::PreferDualStack);
        Some(Choice { network: Some(first.network.to_string()), subnets, family, ..Choice::default() })
    }

    /// The kept address of a family that fits to what was chosen.
    ///
    /// # Errors
    /// When there is one for this very pod and its annotations ask for something else, or it cannot be used now.
    pub(super) fn take_up<'a>(
        &self,
        req: &PodRequest,
        kept: &'a [Arc<InstanceDef>],
        chosen: &Chosen,
        family: Family,
    ) -> Result<Option<&'a Arc<InstanceDef>>, Refusal> {
        let of_family = || kept.iter().filter(|d| Family::of(d.name.address()) == family);
        let fits = |def: &&Arc<InstanceDef>| {
            let named = |s: &&String| self.subnet(s).is_some_and(|s| s.family() == family);
            let mut subnets = req.choice.subnets.iter().filter(named).peekable();
            let asked: Vec<_> = req.choice.ips.iter().filter(|r| r.family() == family).collect();
            def.network == chosen.network
                && (subnets.peek().is_none() || subnets.any(|s| *s == def.subnet))
                && (asked.is_empty() || asked.iter().any(|r| r.contains(def.name.address())))
        };
        if let Some(def) = of_family().find(fits) {
            return match self.subnet(&def.subnet) {
                Some(subnet) if !self.is_subnet_usable(subnet) => Err(self.why_not_usable(subnet)),
                Some(_) => Ok(Some(def)),
                None => Err(Refusal::SubnetMissing { subnet: def.subnet.to_string() }),
            };
        }
        let owner = req.owner.as_ref().filter(|o| o.is_exclusive());
        match (owner, of_family().next()) {
            (Some(owner), Some(def)) => Err(Refusal::KeptElsewhere {
                address: def.name.clone(),
                network: def.network.to_string(),
                subnet: def.subnet.to_string(),
                owner: owner_in_words(owner),
            }),
            _ => Ok(None),
        }
    }
}
