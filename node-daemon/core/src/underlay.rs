//! How one Network of type VLAN is realised on this node: device, MTU, and a routing table for each of its Subnets.
//!
//! Its pods are wired as those of overlays are. The node routes between them and the device, on which it answers for
//! them (`desired::proxy`); nothing is encapsulated, and no other node has to be known.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::model::{NetworkDef, NodeNetworkDef, SubnetDef};
use braid_types::well_known::table;
use braid_types::{Cidr, Family, IfName};

use crate::overlay::{NotReady, check_mtu, choose_parent, no_parent, wants};
use crate::view::NodeView;

/// A Network of type VLAN as this node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the Network.
    pub network: String,
    /// Device that leads to the physical network.
    pub parent: IfName,
    /// Bytes a pod may send in one packet.
    pub mtu: u32,
    /// Its Subnets that are routed here.
    pub segments: Vec<Segment>,
    /// Why new pods have to wait although those that are there are connected; `None` = they need not.
    pub hindrance: Option<NotReady>,
}

/// A Subnet of an underlay as every member node routes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The prefix, which is on-link on the parent.
    pub cidr: Cidr,
    /// Router for everything else.
    pub gateway: IpAddr,
    /// Routing table.
    pub table: u32,
    /// Senders whose packets the table is for: the prefix, or what pods still have of a Subnet that is no longer in force.
    pub senders: Vec<Cidr>,
}

impl Underlay {
    /// What is published about this node: `NodeNetwork.status.networks[]`.
    #[must_use]
    pub fn published(&self) -> NodeNetworkDef {
        NodeNetworkDef {
            network: self.network.clone(),
            ready: self.hindrance.is_none(),
            parent: Some(self.parent.clone()),
            mtu: Some(self.mtu),
            vtep: None,
        }
    }
}

/// What became of each Network that is no overlay, by name.
pub type Realised = BTreeMap<String, Result<Underlay, NotReady>>;

/// Realises every Network of the view that is no overlay. One that cannot be realised keeps none of the others from it.
#[must_use]
pub fn realise(view: &NodeView) -> Realised {
    let tables = owners(view);
    let underlays = view.networks.values().filter(|n| !n.kind.is_overlay());
    underlays.map(|n| (n.name.clone(), realise_one(view, n, &tables))).collect()
}

/// As with tunnels, a Network that has its routes keeps them while its device cannot be told or lacks something, as
/// long as the device that they lead to exists. Only new pods wait.
fn realise_one(
    view: &NodeView,
    network: &NetworkDef,
    tables: &BTreeMap<u32, &str>,
) -> Result<Underlay, NotReady> {
    if network.unsupported().is_some() {
        return Err(NotReady::NotSupported);
    }
    let mut of_network: Vec<&SubnetDef> = view
        .subnets
        .values()
        .filter(|s| s.network == network.name && view.families.contains(&s.family()))
        .collect();
    of_network.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let (parent, mut hindrance) = match parent(view, network) {
        Ok(parent) => (parent, None),
        Err(why) => (existing(view, &of_network).ok_or_else(|| why.clone())?, Some(why)),
    };
    let link = &view.links[parent];
    let mut segments = Vec::new();
    for subnet in of_network {
        let senders = view.extents(subnet);
        match segment(subnet, &senders, tables) {
            _ if senders.is_empty() => {}
            Ok(segment) => segments.push(segment),
            Err(why) => {
                hindrance.get_or_insert(why);
            }
        }
    }
    Ok(Underlay {
        network: network.name.clone(),
        parent: parent.clone(),
        mtu: network.mtu.map_or(link.mtu, |m| m.min(link.mtu)),
        segments,
        hindrance,
    })
}

fn parent<'a>(view: &'a NodeView, network: &NetworkDef) -> Result<&'a IfName, NotReady> {
    let parent = choose_parent(&view.links, network).ok_or_else(|| no_parent(view, network))?;
    let link = &view.links[parent];
    // A question without a sender's address is a probe (RFC 5227), which no node answers for its pods.
    let can_ask = link.addrs.iter().any(|(a, _)| a.is_ipv4());
    if wants(view, network, Family::V4) && !can_ask {
        return Err(NotReady::NoArpAddress { parent: parent.clone() });
    }
    check_mtu(view, network, network.mtu.map_or(link.mtu, |m| m.min(link.mtu)))?;
    Ok(parent)
}

/// The device to which the tables of these Subnets lead already.
fn existing<'a>(view: &'a NodeView, subnets: &[&SubnetDef]) -> Option<&'a IfName> {
    let mut wires = subnets.iter().filter_map(|s| view.wires.get(&s.routing_table?));
    wires.find_map(|dev| view.links.get_key_value(dev)).map(|(name, _)| name)
}

fn segment(subnet: &SubnetDef, senders: &[Cidr], tables: &BTreeMap<u32, &str>) -> Result<Segment, NotReady> {
    let waiting = || NotReady::WaitingForTable { subnet: subnet.name.clone() };
    let table = subnet.routing_table.filter(|t| table::SUBNETS.contains(t)).ok_or_else(waiting)?;
    let gateway = subnet.gateway.ok_or_else(|| NotReady::NoGateway { subnet: subnet.name.clone() })?;
    match tables.get(&table) {
        Some(owner) if *owner != subnet.name => Err(waiting()),
        _ => Ok(Segment { cidr: subnet.cidr, gateway, table, senders: senders.to_vec() }),
    }
}

/// Whose each table is. Two controllers that do not see each other's writes may give one number twice: then it is the
/// older Subnet's, as it is for them, and the other one waits for a new number. Subnets of overlays have no table,
/// whatever an earlier version has written there.
fn owners(view: &NodeView) -> BTreeMap<u32, &str> {
    let mut youngest_first: Vec<&SubnetDef> =
        view.subnets.values().filter(|s| view.underlays.contains(&s.network)).collect();
    youngest_first.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
    youngest_first.into_iter().filter_map(|s| Some((s.routing_table?, s.name.as_str()))).collect()
}
