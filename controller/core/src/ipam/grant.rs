//! Gives addresses to an interface: both families or neither.

use std::net::IpAddr;
use std::sync::Arc;

use braid_types::model::{InstanceDef, NetworkDef, OwnerRef, Phase, PodRef};
use braid_types::{Family, InstanceName, Mac, Symbol};

use super::choose::Source;
use super::plan::{Claim, Grant};
use super::refusal::{Full, Holder, NAMED, Refusal};
use super::state::{Ipam, Pending, Restored};
use super::{Effects, PodRequest};
use crate::block::Found;
use crate::pool::Mark;

/// Who an address is for.
pub(super) struct Recipient<'a> {
    pub(super) pod: Option<&'a PodRef>,
    pub(super) owner: Option<&'a OwnerRef>,
    pub(super) retain_seconds: Option<u32>,
    pub(super) interface: &'a str,
    pub(super) node: &'a str,
    pub(super) mac: Mac,
}

/// An address chosen and not yet marked.
pub(super) struct Pick {
    subnet: String,
    found: Found,
    /// The object that exists already: the pod's own, or one retained for its owner.
    existing: Option<Arc<InstanceDef>>,
}

impl Pick {
    pub(super) fn existing(def: &Arc<InstanceDef>) -> Self {
        let found = Found { address: def.name.address(), block: None, host_routed: def.host_routed };
        Self { subnet: def.subnet.to_string(), found, existing: Some(def.clone()) }
    }
}

impl Ipam {
    /// Answers a pod that was bound to a node: addresses for its interface, one per family, or why not.
    ///
    /// Addresses that it holds already stay; what is missing is added, so asking again is always safe. Nothing but
    /// memory has changed when this returns: see [`Grant`] for what to do with it. One grant per pod at a time.
    ///
    /// # Errors
    /// The refusal, with nothing held back.
    pub fn grant(&mut self, _: &Restored, req: &PodRequest) -> Result<Grant, Refusal> {
        let own = self.own_addresses(req);
        if let Some(grant) = self.hand_over(req)? {
            return Ok(grant);
        }
        let kept = self.kept(req)?;
        let derived = || Mac::derived(format!("{}/{}", req.pod.uid, req.interface).as_bytes());
        if let Some(first) = own.first() {
            let network = first.network.clone();
            let mac = first.mac.unwrap_or_else(derived);
            let picks = match self.complete_set(&own) {
                Some(set) => return Ok(self.nothing_to_do(Some(req.pod.clone()), network.to_string(), set)),
                None => self.complete(req, &own, &kept)?,
            };
            return Ok(self.settle(&network, picks, &self.recipient(req, mac)));
        }
        let chosen = self.choose(req, Self::place_of_kept(req, &kept).as_ref())?;
        let mut picks = Vec::new();
        for source in &chosen.sources {
            let pick = match self.take_up(req, &kept, &chosen, source.family)? {
                Some(def) => Pick::existing(def),
                None => self.pick(&chosen.network, source, &req.node)?,
            };
            picks.push(pick);
        }
        let kept_mac = picks.iter().find_map(|p| p.existing.as_ref()?.mac);
        let mac = chosen.mac.or(kept_mac).unwrap_or_else(derived);
        Ok(self.settle(&chosen.network, picks, &self.recipient(req, mac)))
    }

    /// Ends a grant: what was promised and did not become an object is free again.
    pub fn finish(&mut self, grant: Grant) -> Effects {
        let mut effects = Effects::default();
        for claim in grant.claims {
            let name = claim.name();
            if self.pending.get(name).is_some_and(|p| p.grant == grant.id)
                && let Some(pending) = self.pending.remove(name)
            {
                effects.merge(self.free(&pending.subnet, name));
            }
        }
        effects
    }

    /// How many addresses are promised and not seen as objects yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn recipient<'a>(&self, req: &'a PodRequest, mac: Mac) -> Recipient<'a> {
        Recipient {
            pod: Some(&req.pod),
            owner: req.owner.as_ref().filter(|_| req.keep.is_some()),
            retain_seconds: req.keep.and_then(|keep| keep.seconds),
            interface: &req.interface,
            node: &req.node,
            mac,
        }
    }

    pub(super) fn nothing_to_do(
        &mut self,
        pod: Option<PodRef>,
        network: String,
        set: Vec<InstanceName>,
    ) -> Grant {
        self.last_grant += 1;
        Grant { id: self.last_grant, pod, network, blocks: Vec::new(), claims: Vec::new(), set }
    }

    /// What the pod's interface holds, lowest address first.
    fn own_addresses(&self, req: &PodRequest) -> Vec<Arc<InstanceDef>> {
        self.instances_of_pod(&req.pod.uid)
            .filter(|d| d.interface == req.interface && d.phase == Phase::Bound && !d.deleting)
            .cloned()
            .collect()
    }

    /// The names of one interface's addresses, if one of them belongs to a set that exists as a whole.
    pub(super) fn complete_set(&self, own: &[Arc<InstanceDef>]) -> Option<Vec<InstanceName>> {
        own.iter()
            .map(|d| d.set.iter().map(|a| InstanceName::new(d.name.space(), *a)).collect::<Vec<_>>())
            .find(|set| !set.is_empty() && set.iter().all(|n| own.iter().any(|d| d.name == *n)))
    }

    /// Completes the set of an interface of which a part exists: the grant before this one was cut short, or an
    /// address was lost to somebody else. What exists stays, as it may be in use.
    fn complete(
        &self,
        req: &PodRequest,
        own: &[Arc<InstanceDef>],
        kept: &[Arc<InstanceDef>],
    ) -> Result<Vec<Pick>, Refusal> {
        let mut picks = Vec::new();
        let network = own.first().map_or("", |d| d.network.as_str());
        let wanted: Vec<IpAddr> = own.iter().flat_map(|d| d.set.iter().copied()).collect();
        for family in Family::ALL {
            let of_family = |a: &IpAddr| Family::of(*a) == family;
            if let Some(held) = own.iter().find(|d| of_family(&d.name.address())) {
                picks.push(Pick::existing(held));
            } else if let Some(def) =
                kept.iter().find(|d| d.network == network && of_family(&d.name.address()))
            {
                picks.push(Pick::existing(def));
            } else if let Some(address) = wanted.iter().find(|a| of_family(a)) {
                let same = self.exactly(network, *address, &req.node);
                picks.push(match same {
                    Some(pick) => pick,
                    None => self.another(req, network, family)?,
                });
            }
        }
        Ok(picks)
    }

    /// This very address, if it is free.
    fn exactly(&self, network: &str, address: IpAddr, node: &str) -> Option<Pick> {
        let subnet = self
            .subnets_of(network)
            .into_iter()
            .find(|s| s.cidr.contains(address) && self.is_subnet_usable(s))?;
        let slot = self.slots.get(&subnet.name)?;
        let free = slot.pool.allows(address)
            && slot.pool.mark(address).is_none()
            && !self.instances.contains(&InstanceName::new(self.space_of(subnet), address));
        free.then(|| Pick {
            subnet: subnet.name.clone(),
            found: self.locate(network, &subnet.name, node, address),
            existing: None,
        })
    }

    fn another(&self, req: &PodRequest, network: &str, family: Family) -> Result<Pick, Refusal> {
        let chosen = self.choose(req, None)?;
        let source = chosen.sources.iter().find(|s| s.family == family && chosen.network == network);
        let missing = || Refusal::NoSubnet { network: network.to_owned(), family: Some(family) };
        self.pick(network, source.ok_or_else(missing)?, &req.node)
    }

    fn has_blocks(&self, network: &str) -> bool {
        self.network(network).is_some_and(|n| n.kind.has_blocks())
    }

    fn locate(&self, network: &str, subnet: &str, node: &str, address: IpAddr) -> Found {
        match self.slots.get(subnet).filter(|_| self.has_blocks(network)) {
            Some(slot) => slot.blocks.located(node, address),
            None => Found { address, block: None, host_routed: false },
        }
    }

    /// Chooses one address of one family.
    pub(super) fn pick(&self, network: &str, source: &Source, node: &str) -> Result<Pick, Refusal> {
        if !source.fixed.is_empty() {
            return self.pick_fixed(network, source, node);
        }
        let slots = || source.subnets.iter().filter_map(|n| Some((n, self.slots.get(n)?)));
        let found = if self.has_blocks(network) {
            slots()
                .find_map(|(n, s)| Some((n, s.blocks.find_own(node, &s.pool)?)))
                .or_else(|| slots().find_map(|(n, s)| Some((n, s.blocks.find(n, node, &s.pool)?))))
        } else {
            slots().find_map(|(n, s)| {
                let address = s.pool.next_free()?;
                Some((n, Found { address, block: None, host_routed: false }))
            })
        };
        let Some((subnet, found)) = found else {
            let full = |n: &String| Full { subnet: n.clone(), usage: self.usage(n) };
            return Err(Refusal::SubnetFull {
                network: network.to_owned(),
                family: source.family,
                subnets: source.subnets.iter().map(full).collect(),
            });
        };
        Ok(Pick { subnet: subnet.clone(), found, existing: None })
    }

    fn pick_fixed(&self, network: &str, source: &Source, node: &str) -> Result<Pick, Refusal> {
        let mut size: u128 = 0;
        let mut touched: Vec<String> = Vec::new();
        for range in &source.fixed {
            for subnet in source.subnets.iter().filter_map(|n| self.subnet(n)) {
                let Some(part) = range.intersection(&subnet.cidr.range()) else { continue };
                let Some(slot) = self.slots.get(&subnet.name) else { continue };
                if let Some(address) = slot.pool.next_by_address(&part) {
                    let found = self.locate(network, &subnet.name, node, address);
                    return Ok(Pick { subnet: subnet.name.clone(), found, existing: None });
                }
                size = size.saturating_add(slot.pool.allowed_in(&part));
                if !touched.contains(&subnet.name) {
                    touched.push(subnet.name.clone());
                }
            }
        }
        Err(self.why_none_fixed(network, source, size, touched))
    }

    fn why_none_fixed(&self, network: &str, source: &Source, size: u128, subnets: Vec<String>) -> Refusal {
        let range = source.fixed[0];
        let Some(subnet) = subnets.first().cloned() else {
            return Refusal::AddressOutside { range, network: format!("Network {network}") };
        };
        let of_subnet = |range, name| {
            let slot = self.slots.get(name).into_iter();
            slot.flat_map(move |s| s.pool.taken_in(range).map(|(a, _)| a).filter(|a| s.pool.allows(*a)))
        };
        let all = source.fixed.iter().flat_map(|r| subnets.iter().map(move |s| (r, s)));
        let taken: Vec<(&String, IpAddr)> =
            all.flat_map(|(r, s)| of_subnet(r, s).map(move |a| (s, a))).take(NAMED).collect();
        let Some((taken_in, address)) = taken.first() else {
            return self.is_of_node(source, &subnets).unwrap_or(Refusal::AddressExcluded { range, subnet });
        };
        if size == 1 {
            let holder = Box::new(self.holder(taken_in, *address));
            return Refusal::AddressTaken { address: *address, subnet: (*taken_in).clone(), holder };
        }
        let pool = source.fixed.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let holders =
            taken.iter().map(|(subnet, address)| (*address, self.holder(subnet, *address))).collect();
        Refusal::PoolExhausted { pool, size, subnets, holders }
    }

    /// Says so where a node itself has what was asked for.
    fn is_of_node(&self, source: &Source, subnets: &[String]) -> Option<Refusal> {
        subnets.iter().find_map(|subnet| {
            let all = self.slots.get(subnet)?.of_nodes.iter();
            let address = all.copied().find(|a| source.fixed.iter().any(|range| range.contains(*a)))?;
            let holder = Box::new(Holder::Node(self.node_with(subnet, address)?.to_owned()));
            Some(Refusal::AddressTaken { address, subnet: subnet.clone(), holder })
        })
    }

    /// Who has an address of a Subnet that is taken.
    #[must_use]
    pub fn holder(&self, subnet: &str, address: IpAddr) -> Holder {
        let space = self.subnet(subnet).map_or("", |s| self.space_of(s));
        let name = InstanceName::new(space, address);
        match (self.instance(&name), self.pending.get(&name)) {
            (Some(def), _) => Holder::of(def),
            (None, Some(Pending { pod: Some(p), .. })) => {
                Holder::Pod { pod: format!("{}/{}", p.namespace, p.name), node: None }
            }
            (None, _) => Holder::Grant,
        }
    }

    /// Marks what was picked and writes down what the shell has to do.
    pub(super) fn settle(&mut self, network: &str, picks: Vec<Pick>, to: &Recipient<'_>) -> Grant {
        let names: Vec<InstanceName> =
            picks.iter().map(|p| InstanceName::new(self.network_space(network), p.found.address)).collect();
        let mut grant = self.nothing_to_do(to.pod.cloned(), network.to_owned(), names);
        let set: Vec<IpAddr> = picks.iter().map(|p| p.found.address).collect();
        for (pick, name) in picks.into_iter().zip(grant.set.clone()) {
            if let Some(def) = pick.existing {
                let next = self.taken_over(&def, to, &set);
                if next != *def {
                    grant.claims.push(Claim::Replace { from: def, to: Arc::new(next) });
                }
                continue;
            }
            let def = self.new_instance(name.clone(), network, &pick, to, &set);
            if let Some(slot) = self.slots.get_mut(&pick.subnet) {
                slot.pool.take(pick.found.address, Mark::Pending);
                slot.pool.advance(pick.found.address);
                slot.blocks.settle(&pick.found, to.node);
            }
            let pending = Pending { grant: grant.id, subnet: pick.subnet.into(), pod: to.pod.cloned() };
            self.pending.insert(name, pending);
            if let Some(block) = pick.found.block {
                self.block_subnet.insert(block.name.clone(), block.subnet.clone());
                grant.blocks.push(block);
            }
            grant.claims.push(Claim::Create(Arc::new(def)));
        }
        grant
    }

    fn network_space(&self, network: &str) -> &str {
        self.network(network).map_or("", |n: &NetworkDef| n.space.as_str())
    }

    fn new_instance(
        &self,
        name: InstanceName,
        network: &str,
        pick: &Pick,
        to: &Recipient<'_>,
        set: &[IpAddr],
    ) -> InstanceDef {
        let subnet = self.subnet(&pick.subnet);
        InstanceDef {
            uid: Symbol::default(),
            network: network.into(),
            subnet: pick.subnet.as_str().into(),
            prefix_len: subnet.map_or_else(|| Family::of(name.address()).bits(), |s| s.cidr.prefix_len()),
            gateway: subnet.and_then(|s| s.gateway),
            mac: Some(to.mac),
            pod: to.pod.cloned(),
            interface: to.interface.into(),
            node: Some(to.node.into()),
            set: set.into(),
            handover: None,
            owner: to.owner.cloned().map(Box::new),
            retain_seconds: to.retain_seconds,
            retain_until: None,
            reserved_at: None,
            declared: false,
            attached: false,
            phase: Phase::Bound,
            torn_down: None,
            release_at: None,
            host_routed: pick.found.host_routed,
            deleting: false,
            name,
        }
    }

    /// What an existing object must say for the recipient to have it.
    fn taken_over(&self, def: &InstanceDef, to: &Recipient<'_>, set: &[IpAddr]) -> InstanceDef {
        let routed = self.locate(&def.network, &def.subnet, to.node, def.name.address()).host_routed;
        InstanceDef {
            pod: to.pod.cloned(),
            node: Some(to.node.into()),
            mac: Some(to.mac),
            set: set.into(),
            handover: None,
            // What a person has declared for an owner stays the owner's.
            owner: if def.declared { def.owner.clone() } else { to.owner.cloned().map(Box::new) },
            retain_seconds: to.retain_seconds,
            retain_until: if def.declared { def.retain_until } else { None },
            reserved_at: None,
            phase: Phase::Bound,
            torn_down: None,
            release_at: None,
            host_routed: routed,
            ..def.clone()
        }
    }
}
