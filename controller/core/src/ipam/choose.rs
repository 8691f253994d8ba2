//! Which Network, which Subnets and which families a pod gets its addresses from.

use std::sync::Arc;

use braid_types::model::{InstanceDef, NetworkDef, SubnetDef};
use braid_types::{AddrRange, Family, Mac};

use super::{Choice, FamilyWish, Ipam, PodRequest, Refusal};

/// Where the address of one family comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) family: Family,
    /// Usable Subnets, oldest first, at least one.
    pub(super) subnets: Vec<String>,
    /// Addresses that were asked for; empty = any.
    pub(super) fixed: Vec<AddrRange>,
}

/// The answer to a pod's wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) network: String,
    pub(super) sources: Vec<Source>,
    pub(super) mac: Option<Mac>,
}

/// What would become of a pod that is not bound to a node yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prospect<'a> {
    /// The Network that it would get addresses of.
    pub(crate) network: &'a NetworkDef,
    /// Whether that follows from what is kept for it.
    pub(crate) kept: bool,
    /// Why it would be refused now: the Network first, then family by family.
    pub(crate) refusals: Vec<Refusal>,
}

/// The request in the form in which one level decided it.
struct Wish<'a> {
    place: &'a Choice,
    family: Option<FamilyWish>,
}

impl<'a> Wish<'a> {
    /// One level decides alone where the addresses come from; the families may be asked for on either level, as they
    /// do not name a place.
    fn of(req: &'a PodRequest, kept: Option<&'a Choice>, nothing: &'a Choice) -> Self {
        let mut levels = kept.into_iter().chain([&req.choice, &req.namespace_choice]);
        Self {
            place: levels.find(|c| c.names_a_place()).unwrap_or(nothing),
            family: req.choice.family.or(kept.map_or(req.namespace_choice.family, |k| k.family)),
        }
    }
}

impl Ipam {
    /// Resolves what is kept for the pod, or the pod, its namespace or the default say.
    pub(super) fn choose(&self, req: &PodRequest, kept: Option<&Choice>) -> Result<Chosen, Refusal> {
        let nothing = Choice::default();
        let wish = Wish::of(req, kept, &nothing);
        let network = self.wanted_network(wish.place)?;
        self.check_network(network, req)?;
        self.check_member(network, &req.node)?;
        let sources = self.sources(network, &wish)?;
        Ok(Chosen { network: network.name.clone(), sources, mac: req.choice.mac })
    }

    /// Resolves the same for a pod that has no node yet, and says everything that [`Ipam::grant`] would refuse if it
    /// were asked now. Nothing is marked. What an earlier pod of its name may still use counts as handed over.
    ///
    /// # Errors
    /// When not even the Network can be told.
    pub(crate) fn foresee(&self, req: &PodRequest) -> Result<Prospect<'_>, Refusal> {
        let kept = self.to_be_kept(req);
        let place = Self::place_of_kept(req, &kept);
        let nothing = Choice::default();
        let wish = Wish::of(req, place.as_ref(), &nothing);
        let network = self.wanted_network(wish.place)?;
        let mut refusals: Vec<Refusal> = self.check_network(network, req).err().into_iter().collect();
        match self.sources(network, &wish) {
            Ok(sources) => {
                let chosen = Chosen { network: network.name.clone(), sources, mac: None };
                refusals.extend(
                    chosen.sources.iter().filter_map(|s| self.rehearse(req, &kept, &chosen, s).err()),
                );
            }
            Err(refusal) => refusals.push(refusal),
        }
        Ok(Prospect { network, kept: place.is_some(), refusals })
    }

    fn rehearse(
        &self,
        req: &PodRequest,
        kept: &[Arc<InstanceDef>],
        chosen: &Chosen,
        source: &Source,
    ) -> Result<(), Refusal> {
        // Where anything will do, a search is worth its time only when it fails.
        let has_room =
            || source.fixed.is_empty() && source.subnets.iter().any(|s| self.usage(s).available > 0);
        if self.take_up(req, kept, chosen, source.family)?.is_some() || has_room() {
            return Ok(());
        }
        self.pick(&chosen.network, source, &req.node).map(drop)
    }

    /// The Subnets of a Network that the addresses of a family can be of, those included that are only being checked
    /// and may be given out of in a moment.
    pub(crate) fn prospective_subnets(
        &self,
        network: &NetworkDef,
        named: &[String],
        family: Family,
    ) -> Vec<&SubnetDef> {
        let in_force = |s: &&SubnetDef| !s.deleting && self.standing().subnet(&s.name).is_none();
        let mut all = self.subnets_of(&network.name);
        all.retain(|s| s.family() == family && in_force(s));
        if all.iter().any(|s| named.contains(&s.name)) {
            all.retain(|s| named.contains(&s.name));
        }
        all
    }

    /// How many addresses of `range` the Subnet gives out at all, taken or not.
    pub(crate) fn allowed_in(&self, subnet: &str, range: &AddrRange) -> u128 {
        self.slots.get(subnet).map_or(0, |s| s.pool.allowed_in(range))
    }

    fn wanted_network(&self, place: &Choice) -> Result<&NetworkDef, Refusal> {
        let by_name = |network: &str| {
            self.network(network).ok_or_else(|| Refusal::NetworkMissing { network: network.to_owned() })
        };
        if let Some(network) = &place.network {
            return by_name(network);
        }
        if let Some(subnet) = place.subnets.first() {
            let def = self.subnet(subnet).ok_or_else(|| Refusal::SubnetMissing { subnet: subnet.clone() })?;
            return by_name(&def.network);
        }
        if let Some(range) = place.ips.first() {
            return self.network_of_address(*range);
        }
        let first = |n: &&NetworkDef| n.default && self.standing().second_default(&n.name).is_none();
        let mut defaults: Vec<_> = self.networks().filter(first).collect();
        defaults.sort_by_key(|n| (n.created, &n.name));
        defaults
            .iter()
            .find(|n| self.is_usable(n))
            .or_else(|| defaults.first())
            .copied()
            .ok_or(Refusal::NoDefaultNetwork)
    }

    /// The Network whose Subnet has the first address of the range; the default address space goes first.
    fn network_of_address(&self, range: AddrRange) -> Result<&NetworkDef, Refusal> {
        let mut owners: Vec<&NetworkDef> = self
            .subnets()
            .filter(|s| s.cidr.contains(range.first()) && self.standing().subnet(&s.name).is_none())
            .filter_map(|s| self.network(&s.network))
            .collect();
        owners.sort_by_key(|n| (&n.space, n.created, &n.name));
        owners
            .first()
            .copied()
            .ok_or_else(|| Refusal::AddressOutside { range, network: "any Network".to_owned() })
    }

    fn check_network(&self, network: &NetworkDef, req: &PodRequest) -> Result<(), Refusal> {
        self.check_usable(network)?;
        let allowed = network.namespaces.as_ref().is_none_or(|s| s.matches(&req.namespace_labels));
        if !allowed {
            let namespace = req.pod.namespace.clone();
            return Err(Refusal::NamespaceNotAllowed {
                network: network.name.clone(),
                namespace: namespace.to_string(),
            });
        }
        Ok(())
    }

    pub(super) fn check_usable(&self, network: &NetworkDef) -> Result<(), Refusal> {
        let name = network.name.clone();
        if let Some(what) = network.unsupported() {
            return Err(Refusal::NotSupported { network: name, what });
        }
        let why = match self.network_loss(&network.name) {
            _ if network.deleting => "it is being deleted; choose another Network".to_owned(),
            Some(loss) => loss.message.clone(),
            None if !network.ready => {
                "it was just made and is being checked; this passes by itself".to_owned()
            }
            None => return Ok(()),
        };
        Err(Refusal::NetworkNotReady { network: name, why })
    }

    pub(crate) fn check_member(&self, network: &NetworkDef, node: &str) -> Result<(), Refusal> {
        if !self.nodes.contains_key(node) {
            return Err(Refusal::NodeMissing { node: node.to_owned() });
        }
        if !self.is_member(network, node) {
            return Err(Refusal::NotMember { network: network.name.clone(), node: node.to_owned() });
        }
        Ok(())
    }

    pub(super) fn why_not_usable(&self, subnet: &SubnetDef) -> Refusal {
        let why = match self.standing().subnet(&subnet.name) {
            _ if subnet.deleting => "it is being deleted; choose another Subnet".to_owned(),
            Some(loss) => loss.message.clone(),
            None => "it was just made and is being checked; this passes by itself".to_owned(),
        };
        Refusal::SubnetNotReady { subnet: subnet.name.clone(), why }
    }

    fn named_subnets(&self, network: &NetworkDef, names: &[String]) -> Result<Vec<&SubnetDef>, Refusal> {
        names
            .iter()
            .map(|name| {
                let def = self.subnet(name).ok_or_else(|| Refusal::SubnetMissing { subnet: name.clone() })?;
                if def.network != network.name {
                    return Err(Refusal::SubnetOfOtherNetwork {
                        subnet: name.clone(),
                        actual: def.network.clone(),
                        network: network.name.clone(),
                    });
                }
                Ok(def)
            })
            .collect()
    }

    fn sources(&self, network: &NetworkDef, wish: &Wish<'_>) -> Result<Vec<Source>, Refusal> {
        let named = self.named_subnets(network, &wish.place.subnets)?;
        let all = self.subnets_of(&network.name);
        let fixed = |family| {
            let of_family = wish.place.ips.iter().filter(move |r| r.family() == family);
            of_family.copied().collect::<Vec<_>>()
        };
        // What a family can draw from: the named Subnets, else the public ones; an address names its Subnet itself.
        let candidates = |family| {
            let named_here: Vec<&SubnetDef> =
                named.iter().copied().filter(|s| s.family() == family).collect();
            if !named_here.is_empty() {
                return named_here;
            }
            let by_address = !fixed(family).is_empty();
            all.iter().copied().filter(|s| s.family() == family && (by_address || !s.private)).collect()
        };
        // A family exists as soon as one Subnet of it is not lost for good; one that is only being checked counts, so
        // that no pod starts with half of its addresses.
        let exists = |family: Family| {
            candidates(family)
                .iter()
                .any(|s| named.contains(s) || (!s.deleting && self.standing().subnet(&s.name).is_none()))
        };
        let families: Vec<Family> = match wish.family {
            Some(FamilyWish::Only(family)) => {
                if let Some(range) = wish.place.ips.iter().find(|r| r.family() != family) {
                    return Err(Refusal::FamilyMismatch { range: *range, wanted: family });
                }
                vec![family]
            }
            Some(FamilyWish::DualStack) => Family::ALL.to_vec(),
            Some(FamilyWish::PreferDualStack) | None => Family::ALL
                .into_iter()
                .filter(|f| !fixed(*f).is_empty() || (exists(*f) && named_or_free(&named, *f, wish)))
                .collect(),
        };
        if families.is_empty() {
            let not_usable = all.iter().find(|s| !s.private).map(|s| self.why_not_usable(s));
            let none = Refusal::NoSubnet { network: network.name.clone(), family: None };
            return Err(not_usable.unwrap_or(none));
        }
        families
            .into_iter()
            .map(|family| {
                let candidates = candidates(family);
                let usable: Vec<String> =
                    candidates.iter().filter(|s| self.is_subnet_usable(s)).map(|s| s.name.clone()).collect();
                if usable.is_empty() {
                    return Err(match candidates.first() {
                        Some(s) => self.why_not_usable(s),
                        None => Refusal::NoSubnet { network: network.name.clone(), family: Some(family) },
                    });
                }
                Ok(Source { family, subnets: usable, fixed: fixed(family) })
            })
            .collect()
    }
}

/// Where Subnets are named, they also say which families are wanted, unless the pod asks for more.
fn named_or_free(named: &[&SubnetDef], family: Family, wish: &Wish<'_>) -> bool {
    named.is_empty()
        || named.iter().any(|s| s.family() == family)
        || wish.family == Some(FamilyWish::PreferDualStack)
}
