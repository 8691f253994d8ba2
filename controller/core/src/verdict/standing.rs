//! Which Networks and Subnets are in force, and why the others are not. Depends on the objects only, not on the
//! order in which they were seen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::Cidr;
use braid_types::model::{NetworkDef, NetworkType, SubnetDef};

/// Why an object is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Reason of the condition, CamelCase.
    pub reason: &'static str,
    /// A sentence with the remedy.
    pub message: String,
}

impl Loss {
    fn new(reason: &'static str, message: String) -> Option<Self> {
        Some(Self { reason, message })
    }
}

/// Addresses that the cluster uses for something else: a Subnet over them would cut it off from that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffLimits {
    /// The addresses.
    pub cidr: Cidr,
    /// What they are for, as a sentence's end: "the Services of the cluster".
    pub what: String,
}

/// The objects that lost against others or cannot be realised; all others are in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    networks: BTreeMap<String, Loss>,
    second_defaults: BTreeMap<String, Loss>,
    subnets: BTreeMap<String, Loss>,
}

impl Standing {
    /// Judges all Networks and Subnets together. `nodes` are the nodes' own addresses with their nodes.
    pub fn of<'a>(
        networks: impl IntoIterator<Item = &'a NetworkDef>,
        subnets: impl IntoIterator<Item = &'a SubnetDef>,
        off_limits: &[OffLimits],
        nodes: &BTreeMap<IpAddr, &str>,
    ) -> Self {
        let mut networks: Vec<_> = networks.into_iter().collect();
        // Of two made in the same second, the one that is in force already stays so.
        networks.sort_by_key(|n| (n.created, !n.ready, &n.name));
        let mut subnets: Vec<_> = subnets.into_iter().collect();
        subnets.sort_by_key(|s| (s.created, !s.ready, &s.name));
        let lost_networks = judge_networks(&networks);
        let second_defaults = judge_defaults(&networks, &lost_networks);
        let by_name: BTreeMap<&str, &NetworkDef> = networks.iter().map(|n| (n.name.as_str(), *n)).collect();
        let lost_subnets = judge_subnets(&subnets, &by_name, &lost_networks, off_limits, nodes);
        Self { networks: lost_networks, second_defaults, subnets: lost_subnets }
    }

    /// Why this Network is not in force; `None` if it is.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Loss> {
        self.networks.get(name)
    }

    /// Why this Network is not the default although it says so.
    #[must_use]
    pub fn second_default(&self, name: &str) -> Option<&Loss> {
        self.second_defaults.get(name)
    }

    /// Why this Subnet is not in force; `None` if it is.
    #[must_use]
    pub fn subnet(&self, name: &str) -> Option<&Loss> {
        self.subnets.get(name)
    }
}

fn judge_networks(oldest_first: &[&NetworkDef]) -> BTreeMap<String, Loss> {
    let mut lost = BTreeMap::new();
    // A Network on its way out keeps its VNI, as its devices still exist.
    let mut vnis: BTreeMap<u32, &str> = BTreeMap::new();
    for net in oldest_first {
        if let Some(loss) = network_loss(net, &vnis) {
            lost.insert(net.name.clone(), loss);
        } else if let Some(vxlan) = &net.vxlan {
            vnis.insert(vxlan.vni.get(), &net.name);
        }
    }
    lost
}

fn network_loss(net: &NetworkDef, vnis: &BTreeMap<u32, &str>) -> Option<Loss> {
    if let Some(what) = net.unsupported() {
        let so_far =
            if net.kind == NetworkType::Vlan { "; untagged VLANs (spec.vlan.id: 0) are" } else { "" };
        return Loss::new("NotSupported", format!("{what} is not supported by this version{so_far}"));
    }
    let vni = net.vxlan.as_ref()?.vni;
    let other = vnis.get(&vni.get())?;
    Loss::new(
        "VniInUse",
        format!("VNI {vni} is used by the older Network {other}; choose another spec.vxlan.vni"),
    )
}

fn judge_defaults(oldest_first: &[&NetworkDef], lost: &BTreeMap<String, Loss>) -> BTreeMap<String, Loss> {
    let mut defaults =
        oldest_first.iter().filter(|n| n.default && !n.deleting && !lost.contains_key(&n.name));
    let Some(first) = defaults.next() else { return BTreeMap::new() };
    let message = format!(
        "the older Network {} is the default already; set spec.default=false on one of the two",
        first.name
    );
    defaults.map(|n| (n.name.clone(), Loss { reason: "SecondDefault", message: message.clone() })).collect()
}

/// Disjoint prefixes of Subnets that are in force: address space -> first address -> (prefix, Subnet).
type InForce<'a> = BTreeMap<&'a str, BTreeMap<IpAddr, (Cidr, &'a str)>>;

fn judge_subnets(
    oldest_first: &[&SubnetDef],
    networks: &BTreeMap<&str, &NetworkDef>,
    lost_networks: &BTreeMap<String, Loss>,
    off_limits: &[OffLimits],
    nodes: &BTreeMap<IpAddr, &str>,
) -> BTreeMap<String, Loss> {
    let mut lost = BTreeMap::new();
    let mut in_force: InForce<'_> = BTreeMap::new();
    for sub in oldest_first {
        let Some(net) = networks.get(sub.network.as_str()) else {
            let message = format!("Network {} does not exist; create it", sub.network);
            lost.extend(Loss::new("NetworkMissing", message).map(|l| (sub.name.clone(), l)));
            continue;
        };
        let space = in_force.entry(net.space.as_str()).or_default();
        let loss = off_limits_loss(sub, off_limits)
            .or_else(|| over_nodes_loss(sub, net, nodes))
            .or_else(|| overlap_loss(sub, space))
            .or_else(|| shape_loss(sub, net));
        if let Some(loss) = loss {
            lost.insert(sub.name.clone(), loss);
            continue;
        }
        space.insert(sub.cidr.first(), (sub.cidr, &sub.name));
        if lost_networks.contains_key(&net.name) {
            let message = format!("its Network {} is not ready; see there", net.name);
            lost.extend(Loss::new("NetworkNotReady", message).map(|l| (sub.name.clone(), l)));
        }
    }
    lost
}

/// A Subnet that is in force already stays so: who made the other range later has to see to it.
fn off_limits_loss(sub: &SubnetDef, off_limits: &[OffLimits]) -> Option<Loss> {
    let other = off_limits.iter().find(|other| !sub.ready && other.cidr.overlaps(&sub.cidr))?;
    Loss::new(
        "OffLimits",
        format!(
            "spec.cidr {} overlaps {} of {}, which nodes and pods could not reach any more; choose another prefix",
            sub.cidr, other.cidr, other.what
        ),
    )
}

/// Where blocks of the Subnet are routed to nodes, the addresses in it are looked for in there. On the physical network pods
/// and nodes may well share a prefix.
fn over_nodes_loss(sub: &SubnetDef, net: &NetworkDef, nodes: &BTreeMap<IpAddr, &str>) -> Option<Loss> {
    let mut within = nodes.range(sub.cidr.first()..=sub.cidr.last());
    let (address, node) = within.next().filter(|_| !sub.ready && net.kind.has_blocks())?;
    Loss::new(
        "OffLimits",
        format!(
            "spec.cidr {} has {address} of node {node} in it, which nodes and pods could not reach any more; choose another \
             prefix",
            sub.cidr
        ),
    )
}

fn overlap_loss(sub: &SubnetDef, in_force: &BTreeMap<IpAddr, (Cidr, &str)>) -> Option<Loss> {
    let before = in_force.range(..=sub.cidr.first()).next_back();
    let within = in_force.range(sub.cidr.first()..=sub.cidr.last()).next();
    let (cidr, other) =
        before.into_iter().chain(within).map(|(_, v)| v).find(|(c, _)| c.overlaps(&sub.cidr))?;
    Loss::new(
        "Overlap",
        format!("spec.cidr {} overlaps {cidr} of the older Subnet {other}; choose another prefix", sub.cidr),
    )
}

fn shape_loss(sub: &SubnetDef, net: &NetworkDef) -> Option<Loss> {
    let kind = net.kind.name();
    let on_a_wire = matches!(net.kind, NetworkType::Vlan | NetworkType::Macvlan | NetworkType::Ipvlan);
    match (net.vlan, sub.vlan) {
        (Some(a), Some(b)) => {
            return Loss::new(
                "VlanTwice",
                format!("the VLAN id is set on Network {} ({a}) and here ({b}); keep one", net.name),
            );
        }
        (None, Some(id)) if !on_a_wire => {
            return Loss::new(
                "VlanNotUsed",
                format!("spec.vlan {id} has no meaning in Network {} of type {kind}; remove it", net.name),
            );
        }
        (None, Some(id)) if net.kind == NetworkType::Vlan && id.get() != 0 => {
            return Loss::new(
                "NotSupported",
                format!("spec.vlan {id} is not supported by this version; untagged VLANs (0) are"),
            );
        }
        (None, None) if net.kind == NetworkType::Vlan => {
            return Loss::new(
                "VlanMissing",
                format!("no VLAN id: set spec.vlan here or spec.vlan.id on Network {}", net.name),
            );
        }
        _ => {}
    }
    if on_a_wire && sub.gateway.is_none() {
        return Loss::new(
            "GatewayMissing",
            format!("Network {} is of type {kind}, so spec.gateway is required; set it", net.name),
        );
    }
    if on_a_wire && sub.nat_outgoing {
        return Loss::new(
            "NatNotUsed",
            format!(
                "spec.natOutgoing is for overlays: pods of Network {} of type {kind} are known by their own addresses; \
                 set it to false",
                net.name
            ),
        );
    }
    None
}
