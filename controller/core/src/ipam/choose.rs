//! Which Network, which Subnets and which families a pod gets its addresses from.

use braid_types::model::{NetworkDef, SubnetDef};
use braid_types::{AddrRange, Family, Mac};

use super::{Choice, FamilyWish, Ipam, PodRequest, Refusal};
use crate::verdict::type_name;

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

/// The request in the form in which one level decided it.
struct Wish<'a> {
    place: &'a Choice,
    family: Option<FamilyWish>,
}

impl Ipam {
    /// Resolves what is kept for the pod, or the pod, its namespace or the default say. One level decides alone where the addresses come
    /// from; the families may be asked for on either level, as they do not name a place.
    pub(super) fn choose(&self, req: &PodRequest, kept: Option<&Choice>) -> Result<Chosen, Refusal> {
        let nothing = Choice::default();
        let levels = kept.into_iter().chain([&req.choice, &req.namespace_choice]);
        let place = levels.into_iter().find(|c| c.names_a_place()).unwrap_or(&nothing);
        let of_kept = || kept.and_then(|kept| kept.family);
        let wish = Wish { place, family: req.choice.family.or(req.namespace_choice.family).or_else(of_kept) };
        let network = self.wanted_network(place)?;
        self.check_network(network, req)?;
        let sources = self.sources(network, &wish)?;
        Ok(Chosen { network: network.name.clone(), sources, mac: req.choice.mac })
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

    pub(super) fn check_network(&self, network: &NetworkDef, req: &PodRequest) -> Result<(), Refusal> {
        self.check_usable(network)?;
        let allowed = network.namespaces.as_ref().is_none_or(|s| s.matches(&req.namespace_labels));
        if !allowed {
            let namespace = req.pod.namespace.clone();
            return Err(Refusal::NamespaceNotAllowed { network: network.name.clone(), namespace });
        }
        self.check_member(network, &req.node)
    }

    pub(super) fn check_usable(&self, network: &NetworkDef) -> Result<(), Refusal> {
        let name = network.name.clone();
        if !network.kind.is_supported() {
            return Err(Refusal::NotSupported { network: name, kind: type_name(network.kind) });
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

    pub(super) fn check_member(&self, network: &NetworkDef, node: &str) -> Result<(), Refusal> {
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
