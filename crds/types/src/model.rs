//! The parsed form of every API kind: what is left after the raw object was checked.
//!
//! Cores work on these; `braid-api` makes them from the API objects.

use std::net::IpAddr;

use crate::{AddrRange, Cidr, Family, IfName, IfPattern, InstanceName, Mac, Selector, Symbol, VlanId, Vni};

/// Seconds since the Unix epoch.
pub type UnixSeconds = i64;

/// How a Network carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkType {
    /// L3 VXLAN overlay.
    Vxlan,
    /// VLAN underlay, routed by the node.
    Vlan,
    /// BGP underlay.
    Bgp,
    /// Host routes via the nodes' own addresses.
    Direct,
    /// macvlan interfaces in the pod.
    Macvlan,
    /// ipvlan L2 interfaces in the pod.
    Ipvlan,
    /// IP-in-IP overlay.
    Ipip,
    /// Userspace UDP tunnel.
    Udp,
    /// Node-local bridge.
    Bridge,
}

impl NetworkType {
    /// Whether pods are reached by node-affine blocks.
    #[must_use]
    pub fn has_blocks(self) -> bool {
        matches!(self, Self::Vxlan | Self::Bgp | Self::Direct | Self::Ipip | Self::Udp)
    }

    /// Whether packets travel between nodes in tunnels. Those of all other types are on the physical network as they are.
    #[must_use]
    pub fn is_overlay(self) -> bool {
        matches!(self, Self::Vxlan | Self::Ipip | Self::Udp)
    }

    /// Its name as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "VXLAN",
            Self::Vlan => "VLAN",
            Self::Bgp => "BGP",
            Self::Direct => "Direct",
            Self::Macvlan => "MACVLAN",
            Self::Ipvlan => "IPVLAN",
            Self::Ipip => "IPIP",
            Self::Udp => "UDP",
            Self::Bridge => "Bridge",
        }
    }
}

/// When packets between two nodes are encapsulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encapsulation {
    /// Always.
    Always,
    /// Only where the two nodes share no link.
    CrossSubnet,
}

/// VXLAN part of a Network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDef {
    /// Network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// When to encapsulate.
    pub encapsulation: Encapsulation,
}

/// A Network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkDef {
    /// Object name.
    pub name: String,
    /// When the object was created: the oldest of two rivals wins.
    pub created: UnixSeconds,
    /// How it carries packets.
    pub kind: NetworkType,
    /// Used by pods that name none.
    pub default: bool,
    /// Member nodes.
    pub nodes: Selector,
    /// Namespaces that may use it; `None` = all.
    pub namespaces: Option<Selector>,
    /// MTU of pod interfaces; `None` = the parent's less encapsulation.
    pub mtu: Option<u32>,
    /// Address space, empty for the default one.
    pub space: String,
    /// Candidates for the device that carries the packets, in order of preference; empty = the default route's device.
    pub interfaces: Vec<IfPattern>,
    /// Present when `kind` is VXLAN.
    pub vxlan: Option<VxlanDef>,
    /// VLAN id, when it sits on the Network.
    pub vlan: Option<VlanId>,
    /// Whether the controller has found it usable (`Ready=True`); agents and admission look at nothing else.
    pub ready: bool,
    /// Whether deletion was asked for.
    pub deleting: bool,
}

impl NetworkDef {
    /// What this version cannot realise of it: `type MACVLAN`, `type VLAN with id 20`; `None` if it can.
    #[must_use]
    pub fn unsupported(&self) -> Option<String> {
        let kind = self.kind.name();
        match self.kind {
            NetworkType::Vxlan => None,
            NetworkType::Vlan => {
                self.vlan.filter(|id| id.get() != 0).map(|id| format!("type {kind} with id {id}"))
            }
            _ => Some(format!("type {kind}")),
        }
    }
}

/// A Subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetDef {
    /// Object name.
    pub name: String,
    /// When the object was created.
    pub created: UnixSeconds,
    /// Name of its Network.
    pub network: String,
    /// The prefix.
    pub cidr: Cidr,
    /// Router of the subnet, never given out.
    pub gateway: Option<IpAddr>,
    /// Addresses that may be given out; empty = all usable ones.
    pub ranges: Vec<AddrRange>,
    /// Never given out.
    pub excluded: Vec<AddrRange>,
    /// Given out only when asked for by address.
    pub reserved: Vec<AddrRange>,
    /// VLAN id, when it sits on the Subnet.
    pub vlan: Option<VlanId>,
    /// Prefix length of node-affine blocks.
    pub block_size: u8,
    /// Used only when named.
    pub private: bool,
    /// SNAT to the node when leaving the cluster.
    pub nat_outgoing: bool,
    /// Routing table given by the controller.
    pub routing_table: Option<u32>,
    /// Whether the controller has found it usable.
    pub ready: bool,
    /// Whether deletion was asked for.
    pub deleting: bool,
}

impl SubnetDef {
    /// Family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.cidr.family()
    }
}

/// A pod, by uid: a same-named successor is another pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Namespace.
    pub namespace: Symbol,
    /// Name.
    pub name: Symbol,
    /// Uid.
    pub uid: Symbol,
}

/// Who keeps an address across pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerRef {
    /// API version, `apps/v1`.
    pub api_version: Symbol,
    /// Kind, `StatefulSet`.
    pub kind: Symbol,
    /// Namespace; empty for cluster-scoped owners.
    pub namespace: Symbol,
    /// Name.
    pub name: Symbol,
    /// Uid; empty while the owner does not exist yet.
    pub uid: Symbol,
    /// Name of the one pod of the owner that the address is for, where the owner numbers its pods (StatefulSet).
    /// `None`: any pod of the owner may have it.
    pub pod: Option<Symbol>,
}

impl OwnerRef {
    /// Whether at most one living pod at a time may have what is kept under this name: a numbered pod, a virtual
    /// machine, or a pod that owns itself.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.pod.is_some() || matches!(self.kind.as_str(), "Pod" | "VirtualMachine")
    }

    /// Whether `other` names the same owner. The uid does not count: an owner that is made anew under its name takes
    /// up what was kept for the old one.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.kind, &self.namespace, &self.name) == (&other.kind, &other.namespace, &other.name)
    }
}

/// What a pod is to the holder of an address during live migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrationRole {
    /// The machine is still to come to it.
    Target,
    /// The machine has left it.
    Source,
}

/// The second pod of a virtual machine that migrates: its interface has the address too, and no traffic goes to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandoverDef {
    /// The pod.
    pub pod: PodRef,
    /// Its node.
    pub node: Symbol,
    /// What it is to the holder.
    pub role: MigrationRole,
    /// Whether its node has confirmed that its interface is gone.
    pub torn_down: bool,
}

/// Where an address stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Held by a pod.
    Bound,
    /// Kept for an owner, no pod at the moment.
    Reserved,
    /// Given back; free after the cool-down.
    Releasing,
}

/// An IPInstance: one address given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceDef {
    /// Address and space, which are the object's name.
    pub name: InstanceName,
    /// Uid of the object, for preconditions.
    pub uid: Symbol,
    /// Name of the Network.
    pub network: Symbol,
    /// Name of the Subnet.
    pub subnet: Symbol,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// Gateway of the subnet, where it has one.
    pub gateway: Option<IpAddr>,
    /// Hardware address of the interface.
    pub mac: Option<Mac>,
    /// Holder; absent while reserved and for a node's own address.
    pub pod: Option<PodRef>,
    /// Interface in the pod.
    pub interface: Symbol,
    /// Node of the pod.
    pub node: Option<Symbol>,
    /// All addresses granted to this interface together, itself included: an interface is complete when
    /// each of them exists.
    pub set: Box<[IpAddr]>,
    /// The other pod while a virtual machine migrates.
    pub handover: Option<Box<HandoverDef>>,
    /// Who keeps it.
    pub owner: Option<Box<OwnerRef>>,
    /// How long it is kept for its owner without a pod, in seconds; `None` = as long as the owner exists.
    pub retain_seconds: Option<u32>,
    /// End of retention.
    pub retain_until: Option<UnixSeconds>,
    /// Since when it is kept without a pod, by the word of a controller of this cluster. An address that was restored
    /// from a backup, or declared by a person, has none.
    pub reserved_at: Option<UnixSeconds>,
    /// Whether a person declared it, to pin an address: no controller gives it back on its own account.
    pub declared: bool,
    /// Whether a node has put it on an interface.
    pub attached: bool,
    /// Where it stands.
    pub phase: Phase,
    /// When the node confirmed that the interface is torn down.
    pub torn_down: Option<UnixSeconds>,
    /// End of the cool-down, while releasing: the address is free after it.
    pub release_at: Option<UnixSeconds>,
    /// Needs a host route, as no block of its node covers it.
    pub host_routed: bool,
    /// Whether deletion was asked for.
    pub deleting: bool,
}

/// An IPBlock: a range of a subnet that one node draws from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDef {
    /// Object name.
    pub name: String,
    /// Subnet it is cut from.
    pub subnet: String,
    /// The range.
    pub cidr: Cidr,
    /// Node it belongs to.
    pub node: String,
}

/// One end of a VXLAN tunnel as other nodes must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VtepDef {
    /// The node's address on the physical network: outer source and destination.
    pub ip: IpAddr,
    /// On-link prefixes of the parent: two nodes that share one need no encapsulation under `CrossSubnet`.
    pub links: Vec<Cidr>,
    /// Hardware address of the VXLAN device.
    pub mac: Mac,
    /// Addresses of the VXLAN device itself, at most one per family: next hops of block routes.
    pub addresses: Vec<IpAddr>,
}

/// A Network as one node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNetworkDef {
    /// Name of the Network.
    pub network: String,
    /// Whether pods can be attached.
    pub ready: bool,
    /// Parent device.
    pub parent: Option<IfName>,
    /// MTU for pods.
    pub mtu: Option<u32>,
    /// The tunnel end, for overlays.
    pub vtep: Option<VtepDef>,
}

/// A NodeNetwork: what one agent says about its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDef {
    /// Node name.
    pub node: String,
    /// The Networks it takes part in.
    pub networks: Vec<NodeNetworkDef>,
}
