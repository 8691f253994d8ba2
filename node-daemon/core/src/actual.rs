//! What the kernel holds, as far as it may concern us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::{IfName, Mac, PerFamily};

use crate::desired::nft::{Element, Hook};
use crate::desired::{AddrKey, FdbKey, NeighKey, ProxyKey, Route, RouteKey, Rule};

/// A dump of one network namespace. It contains foreign objects; [`crate::ours`] tells them apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// All devices whose names are printable.
    pub links: BTreeMap<IfName, SeenLink>,
    /// All addresses.
    pub addrs: BTreeMap<AddrKey, SeenAddr>,
    /// All policy routing rules; the kernel allows equal ones side by side.
    pub rules: Vec<SeenRule>,
    /// Routes with our protocol number, in any table.
    pub routes: BTreeMap<RouteKey, SeenRoute>,
    /// All neighbours.
    pub neighs: BTreeMap<NeighKey, SeenNeigh>,
    /// All proxy neighbours, with who made each (`NDA_PROTOCOL`).
    pub proxies: BTreeMap<ProxyKey, u8>,
    /// Forwarding entries of VXLAN devices.
    pub fdb: BTreeMap<FdbKey, SeenFdb>,
    /// Kernel parameters that were asked for and exist.
    pub sysctls: BTreeMap<String, String>,
    /// The table `inet braid`.
    pub nft: Option<SeenTable>,
    /// Device of the preferred default route of the main table.
    pub default_devs: PerFamily<Option<IfName>>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenLink {
    /// Index.
    pub index: u32,
    /// Kind as the kernel names it: `veth`, `vxlan`; empty for hardware.
    pub kind: String,
    /// Hardware address; `None` where it is none or no unicast one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Alias, empty if none.
    pub alias: String,
    /// Device group.
    pub group: u32,
    /// The kernel makes up IPv6 link-local addresses on it; true where IPv6 is off.
    pub makes_link_local: bool,
    /// Is a port of a bridge, bond or VRF.
    pub enslaved: bool,
    /// Index of the other end of a veth pair, in the namespace of that end.
    pub peer_index: Option<u32>,
    /// Parameters of a VXLAN device.
    pub vxlan: Option<SeenVxlan>,
}

/// Parameters of a VXLAN device.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenVxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Parent device.
    pub parent: Option<IfName>,
    /// Learns addresses from packets.
    pub learning: bool,
}

/// An address.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenAddr {
    /// Place in the kernel's order.
    pub position: u32,
    /// Global, not deprecated, temporary or still under duplicate detection.
    pub usable_as_source: bool,
}

/// A policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenRule {
    /// Family, priority, table and sources.
    pub rule: Rule,
    /// Who made it (`FRA_PROTOCOL`).
    pub protocol: u8,
    /// Has no selector but the sources, and looks up a table.
    pub plain: bool,
}

/// A route with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeenRoute {
    /// Of a form that we write.
    Known(Route),
    /// Of another form: several next hops, or a type that we never use.
    Other,
}

/// A neighbour.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenNeigh {
    /// Hardware address.
    pub mac: Option<Mac>,
    /// State permanent.
    pub permanent: bool,
}

/// A forwarding entry of a VXLAN device.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenFdb {
    /// Nodes to which packets go.
    pub dsts: BTreeSet<IpAddr>,
    /// State permanent.
    pub permanent: bool,
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenTable {
    /// Sets by name.
    pub sets: BTreeMap<String, SeenSet>,
    /// Chains by name.
    pub chains: BTreeMap<String, SeenChain>,
}

/// A set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenSet {
    /// Bytes in a key.
    pub key_len: u32,
    /// Elements are ranges.
    pub interval: bool,
    /// Elements that could be read.
    pub elements: BTreeSet<Element>,
    /// Holds elements that could not be read.
    pub strange: bool,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenChain {
    /// Where it hooks in; `None` for other hooks, types or a policy other than accept.
    pub hook: Option<Hook>,
    /// Priority.
    pub priority: i32,
    /// The mark that each rule carries, in order; empty for a rule without.
    pub rules: Vec<String>,
}
