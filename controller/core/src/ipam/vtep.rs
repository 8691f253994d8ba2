//! The nodes' own addresses in overlays: one per family for every member node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use braid_types::model::{InstanceDef, NetworkDef, OwnerRef, Phase, SubnetDef};
use braid_types::{Family, Mac, Symbol, well_known::VTEP_INTERFACE};

use super::choose::Source;
use super::grant::Recipient;
use super::state::{Ipam, Restored, is_vtep};
use super::{Grant, Refusal, VtepRequest};

impl Ipam {
    /// Nodes that lack an address of their own in an overlay that is ready.
    #[must_use]
    pub fn vteps_missing(&self) -> Vec<VtepRequest> {
        let mut missing = Vec::new();
        for network in self.networks().filter(|n| Self::has_vteps(n) && self.is_usable(n)) {
            let families: BTreeSet<Family> = self
                .vtep_subnets(network)
                .into_iter()
                .filter(|(_, s)| !s.is_empty())
                .map(|(f, _)| f)
                .collect();
            for node in self.members(network) {
                let have: BTreeSet<Family> =
                    self.vteps_of(&network.name, &node.name).map(|d| Family::of(d.name.address())).collect();
                if !families.is_subset(&have) {
                    missing.push(VtepRequest { network: network.name.clone(), node: node.name.clone() });
                }
            }
        }
        missing
    }

    /// Gives a node its addresses in an overlay. What it has stays; see [`Ipam::grant`].
    ///
    /// # Errors
    /// The refusal, with nothing held back.
    pub fn grant_vtep(&mut self, _: &Restored, req: &VtepRequest) -> Result<Grant, Refusal> {
        let missing = || Refusal::NetworkMissing { network: req.network.clone() };
        let network = self.network(&req.network).ok_or_else(missing)?;
        self.check_usable(network)?;
        self.check_member(network, &req.node)?;
        let have: BTreeMap<Family, Arc<InstanceDef>> = self
            .vteps_of(&req.network, &req.node)
            .map(|d| (Family::of(d.name.address()), d.clone()))
            .collect();
        let subnets = self.vtep_subnets(network);
        let mut picks = Vec::new();
        for (family, subnets) in subnets.into_iter().filter(|(_, s)| !s.is_empty()) {
            if let Some(def) = have.get(&family) {
                picks.push(super::grant::Pick::existing(def));
                continue;
            }
            let source = Source { family, subnets, fixed: Vec::new() };
            picks.push(self.pick(&req.network, &source, &req.node)?);
        }
        let uid = self.nodes.get(&req.node).map(|n| n.uid.clone()).unwrap_or_default();
        let owner = OwnerRef {
            api_version: "v1".into(),
            kind: "Node".into(),
            namespace: Symbol::default(),
            name: req.node.as_str().into(),
            uid: uid.into(),
            pod: None,
        };
        let recipient = Recipient {
            pod: None,
            owner: Some(&owner),
            retain_seconds: None,
            interface: VTEP_INTERFACE,
            node: &req.node,
            mac: Mac::derived(format!("{}/{}", req.node, req.network).as_bytes()),
        };
        Ok(self.settle(&req.network, picks, &recipient))
    }

    /// The usable Subnets of each family: public ones, or private ones where there is nothing else.
    fn vtep_subnets(&self, network: &NetworkDef) -> Vec<(Family, Vec<String>)> {
        let all = self.subnets_of(&network.name);
        let names = |family: Family, private: bool| -> Vec<String> {
            let fits =
                |s: &&&SubnetDef| s.family() == family && s.private == private && self.is_subnet_usable(s);
            all.iter().filter(fits).map(|s| s.name.clone()).collect()
        };
        Family::ALL
            .into_iter()
            .map(|f| {
                let public = names(f, false);
                (f, if public.is_empty() { names(f, true) } else { public })
            })
            .collect()
    }

    /// The addresses that a node keeps in an overlay: the lowest one of each family.
    fn vteps_of(&self, network: &str, node: &str) -> impl Iterator<Item = &Arc<InstanceDef>> {
        let mut seen = BTreeSet::new();
        self.by_vtep
            .get(&(network.into(), node.into()))
            .into_iter()
            .flatten()
            .filter_map(|n| self.instance(n))
            .filter(|d| d.phase == Phase::Bound)
            .filter(move |d| seen.insert(Family::of(d.name.address())))
    }

    /// Whether a node's own address is still needed: its node takes part, its Subnet stays (or pods are in it yet),
    /// and it is the one that the node uses.
    #[must_use]
    pub(crate) fn vtep_is_wanted(&self, def: &InstanceDef) -> bool {
        let Some(network) = self.network(&def.network) else { return false };
        let node = def.node.as_deref().unwrap_or_default();
        is_vtep(def)
            && Self::has_vteps(network)
            && self.is_member(network, node)
            && self.keeps_vteps(&def.subnet)
            && self.vteps_of(&def.network, node).any(|d| d.name == def.name)
    }

    fn keeps_vteps(&self, subnet: &str) -> bool {
        let Some(slot) = self.slots.get(subnet) else { return false };
        let pods = slot.pool.held() > slot.vteps;
        slot.def.as_ref().is_some_and(|d| !d.deleting) || pods
    }
}
