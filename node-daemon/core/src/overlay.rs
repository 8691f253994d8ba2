//! How one VXLAN Network is realised on this node: device, parent, outer address, MTU.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::model::{Encapsulation, NetworkDef, NodeNetworkDef, SubnetDef, VtepDef, VxlanDef};
use braid_types::{Cidr, Family, IfName, Mac, PerFamily, Vni, vxlan_device_name};

use crate::view::{HostLink, NodeView};

/// Bytes that VXLAN adds in front of a pod's packet: inner Ethernet 14, VXLAN 8, UDP 8 and the outer IP header
/// (RFC 7348 section 4.3).
#[must_use]
pub fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// A VXLAN Network as this node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Name of the Network.
    pub network: String,
    /// Network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// When to encapsulate.
    pub encapsulation: Encapsulation,
    /// Device that carries the outer packets.
    pub parent: IfName,
    /// The VXLAN device.
    pub device: IfName,
    /// Its unshortened name.
    pub device_full_name: String,
    /// Bytes a pod may send in one packet.
    pub mtu: u32,
    /// Outer source address.
    pub ip: IpAddr,
    /// On-link prefixes of the parent.
    pub links: Vec<Cidr>,
    /// Hardware address of the device.
    pub mac: Mac,
    /// Addresses of the device itself.
    pub addresses: PerFamily<Option<IpAddr>>,
    /// Why new pods have to wait although the tunnel exists and carries the others' packets; `None` = they need not.
    pub hindrance: Option<NotReady>,
}

/// A VXLAN device of ours as the kernel has it: see [`crate::view::tunnels`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tunnel {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address.
    pub local: IpAddr,
    /// Device that carries the outer packets.
    pub parent: IfName,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Why a Network cannot be realised on this node at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No device fits `spec.<type>.interfaces`, or no default route exists.
    #[error("no device of this node fits {wanted}; have: {have}")]
    NoParent {
        /// What was looked for.
        wanted: String,
        /// The devices there are.
        have: String,
    },
    /// The parent has no address to send from.
    #[error("device {parent} has no global address to send VXLAN packets from")]
    NoParentAddress {
        /// The device.
        parent: IfName,
    },
    /// The parent has nothing to send ARP requests from.
    #[error("device {parent} has no global IPv4 address to send ARP requests from")]
    NoArpAddress {
        /// The device.
        parent: IfName,
    },
    /// The parent lacks the address that the tunnel sends from and that the node still calls its own.
    #[error("device {parent} lacks this node's address {address}, from which its VXLAN packets go")]
    AddressAway {
        /// The device.
        parent: IfName,
        /// The address.
        address: IpAddr,
    },
    /// The controller has not yet given this node its own addresses in the overlay.
    #[error("waiting for this node's own {family} address in the network")]
    WaitingForAddress {
        /// The family that is missing.
        family: Family,
    },
    /// The controller has not yet given a Subnet a routing table that no other Subnet has.
    #[error("waiting for a routing table for Subnet {subnet}")]
    WaitingForTable {
        /// The Subnet.
        subnet: String,
    },
    /// A Subnet of an underlay says no router.
    #[error("Subnet {subnet} has no spec.gateway")]
    NoGateway {
        /// The Subnet.
        subnet: String,
    },
    /// Two Networks need the same device.
    #[error("device {device} already belongs to network {other}")]
    DeviceTaken {
        /// The device.
        device: IfName,
        /// Who has it.
        other: String,
    },
    /// The parent's MTU leaves no room.
    #[error("MTU {mtu} is below {minimum}, the least that the network's families need")]
    MtuTooSmall {
        /// What would be left for pods.
        mtu: u32,
        /// RFC 8200 section 5 and RFC 791.
        minimum: u32,
    },
    /// The kind of Network is none that this crate realises.
    #[error("networks of this type are not supported by this version")]
    NotSupported,
}

impl NotReady {
    /// The reason in one word, for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoParent { .. } => "NoParentDevice",
            Self::NoParentAddress { .. } | Self::NoArpAddress { .. } | Self::AddressAway { .. } => {
                "NoParentAddress"
            }
            Self::WaitingForTable { .. } => "WaitingForTable",
            Self::NoGateway { .. } => "GatewayMissing",
            Self::WaitingForAddress { .. } => "WaitingForAddress",
            Self::DeviceTaken { .. } => "DeviceTaken",
            Self::MtuTooSmall { .. } => "MtuTooSmall",
            Self::NotSupported => "NotSupported",
        }
    }
}

impl Overlay {
    /// What other nodes must know about this one: `NodeNetwork.status.networks[]`.
    #[must_use]
    pub fn published(&self) -> NodeNetworkDef {
        NodeNetworkDef {
            network: self.network.clone(),
            ready: self.hindrance.is_none(),
            parent: Some(self.parent.clone()),
            mtu: Some(self.mtu),
            vtep: Some(VtepDef {
                ip: self.ip,
                links: self.links.clone(),
                mac: self.mac,
                addresses: self.addresses.iter().filter_map(|(_, a)| *a).collect(),
            }),
        }
    }
}

/// What became of each overlay, by name.
pub type Realised = BTreeMap<String, Result<Overlay, NotReady>>;

/// Realises every overlay of the view. One that cannot be realised keeps none of the others from it.
#[must_use]
pub fn realise(view: &NodeView) -> Realised {
    // The oldest Network keeps a device that two claim, as with every other rivalry.
    let mut order: Vec<&NetworkDef> = view.networks.values().filter(|n| n.kind.is_overlay()).collect();
    order.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut taken: BTreeMap<IfName, String> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for network in order {
        let result = realise_one(view, network).and_then(|o| match taken.get(&o.device) {
            Some(other) => Err(NotReady::DeviceTaken { device: o.device, other: other.clone() }),
            None => Ok(o),
        });
        if let Ok(o) = &result {
            taken.insert(o.device.clone(), network.name.clone());
        }
        all.insert(network.name.clone(), result);
    }
    all
}

/// A Network that has its tunnel keeps it while something that the tunnel needs is away: a default route or an address
/// that comes back (a DHCP renewal, a restarted network manager) finds everything in place, and a family that joins
/// later cuts nobody who uses the other one. Only new pods wait.
fn realise_one(view: &NodeView, network: &NetworkDef) -> Result<Overlay, NotReady> {
    let Some(vxlan) = &network.vxlan else { return Err(NotReady::NotSupported) };
    let (place, mut hindrance) = match place(view, network, vxlan) {
        Ok(place) => (place, None),
        Err(why) => (existing(view, vxlan).ok_or_else(|| why.clone())?, Some(why)),
    };
    let own = view.vteps.get(&network.name);
    let usable = |f: Family| view.families.contains(&f) && (f == Family::V4 || place.mtu >= LEAST_V6);
    let addresses =
        PerFamily::from_fn(|f| own.into_iter().flatten().copied().find(|a| Family::of(*a) == f && usable(f)));
    let lacks = |f: &Family| wants(view, network, *f) && addresses.get(*f).is_none();
    if let Some(family) = Family::ALL.into_iter().find(lacks) {
        let why = NotReady::WaitingForAddress { family };
        let works = Family::ALL.into_iter().any(|f| addresses.get(f).is_some());
        if !works && !view.tunnels.contains_key(&place.device) {
            return Err(why);
        }
        hindrance.get_or_insert(why);
    }
    Ok(Overlay {
        network: network.name.clone(),
        vni: vxlan.vni,
        port: vxlan.port,
        encapsulation: vxlan.encapsulation,
        mtu: place.mtu,
        ip: place.ip,
        links: view.links.get(&place.parent).map(HostLink::on_link).unwrap_or_default(),
        mac: Mac::derived(format!("{}/{}", view.node, network.name).as_bytes()),
        parent: place.parent,
        device: place.device,
        device_full_name: place.full_name,
        addresses,
        hindrance,
    })
}

/// The least MTU with which the kernel runs IPv6 on a device (RFC 8200 section 5).
const LEAST_V6: u32 = 1280;
/// The least that every IPv4 host takes (RFC 791).
const LEAST_V4: u32 = 576;

/// Whether a Network has Subnets of a family that are in force: only there does the controller give out addresses.
pub(crate) fn wants(view: &NodeView, network: &NetworkDef, family: Family) -> bool {
    let in_force = |s: &&SubnetDef| s.network == network.name && s.ready && !s.deleting;
    view.families.contains(&family) && view.subnets.values().filter(in_force).any(|s| s.family() == family)
}

/// Where a tunnel runs.
struct Place {
    parent: IfName,
    device: IfName,
    full_name: String,
    ip: IpAddr,
    mtu: u32,
}

/// Where the tunnel has to run, as the host is now.
fn place(view: &NodeView, network: &NetworkDef, vxlan: &VxlanDef) -> Result<Place, NotReady> {
    let parent = choose_parent(&view.links, network).ok_or_else(|| no_parent(view, network))?;
    let link = &view.links[parent];
    let ip = Family::ALL
        .into_iter()
        .filter(|f| view.families.contains(f))
        .find_map(|f| parent_address(view, link, f))
        .ok_or_else(|| NotReady::NoParentAddress { parent: parent.clone() })?;
    let (device, full_name) = vxlan_device_name(parent, vxlan.vni);
    // Another address of the parent would do, but all other nodes send to this one, and the device would have to be
    // made anew twice.
    let away = |t: &&Tunnel| {
        t.local != ip && view.node_ips.contains(&t.local) && !link.addrs.iter().any(|(a, _)| *a == t.local)
    };
    if let Some(tunnel) = view.tunnels.get(&device).filter(away) {
        return Err(NotReady::AddressAway { parent: parent.clone(), address: tunnel.local });
    }
    let room = link.mtu.saturating_sub(overhead(Family::of(ip)));
    let mtu = network.mtu.map_or(room, |m| m.min(room));
    check_mtu(view, network, mtu)?;
    Ok(Place { parent: parent.clone(), device, full_name, ip, mtu })
}

pub(crate) fn no_parent(view: &NodeView, network: &NetworkDef) -> NotReady {
    let wanted: Vec<String> = network.interfaces.iter().map(ToString::to_string).collect();
    NotReady::NoParent {
        wanted: if wanted.is_empty() { "the default route".to_owned() } else { wanted.join(", ") },
        have: view.links.keys().map(IfName::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// Whether the Network's families can do with the MTU.
pub(crate) fn check_mtu(view: &NodeView, network: &NetworkDef, mtu: u32) -> Result<(), NotReady> {
    let minimum = if wants(view, network, Family::V6) { LEAST_V6 } else { LEAST_V4 };
    if mtu < minimum { Err(NotReady::MtuTooSmall { mtu, minimum }) } else { Ok(()) }
}

/// Where the tunnel runs that the Network has already.
fn existing(view: &NodeView, vxlan: &VxlanDef) -> Option<Place> {
    let (device, tunnel) =
        view.tunnels.iter().find(|(_, t)| t.vni == vxlan.vni.get() && t.port == vxlan.port)?;
    Some(Place {
        parent: tunnel.parent.clone(),
        device: device.clone(),
        full_name: vxlan_device_name(&tunnel.parent, vxlan.vni).1,
        ip: tunnel.local,
        mtu: tunnel.mtu,
    })
}

/// The parent of a Network: the first pattern that some device fits wins (devices in name order, those with an
/// address first); without patterns the device of the default route, IPv4's before IPv6's.
#[must_use]
pub fn choose_parent<'a>(links: &'a BTreeMap<IfName, HostLink>, network: &NetworkDef) -> Option<&'a IfName> {
    let patterns = &network.interfaces;
    if patterns.is_empty() {
        return Family::ALL
            .into_iter()
            .find_map(|f| links.iter().find(|(_, l)| l.default_route.contains(&f)))
            .map(|(name, _)| name);
    }
    patterns.iter().find_map(|p| {
        let fits = || links.iter().filter(|(name, _)| p.matches(name.as_str()));
        fits().find(|(_, l)| l.up && !l.addrs.is_empty()).or_else(|| fits().next()).map(|(name, _)| name)
    })
}

/// The address of a family that a parent sends from: the one that the Node object lists, else the first.
pub(crate) fn parent_address(view: &NodeView, link: &HostLink, family: Family) -> Option<IpAddr> {
    let mut of_family = link.addrs.iter().map(|(a, _)| *a).filter(|a| Family::of(*a) == family).peekable();
    let first = of_family.peek().copied();
    of_family.find(|a| view.node_ips.contains(a)).or(first)
}
