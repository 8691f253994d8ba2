//! How one VXLAN Network is realised on this node: device, parent, outer address, MTU.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::model::{Encapsulation, NetworkDef, NodeNetworkDef, VtepDef};
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
}

/// Why a Network cannot be realised on this node at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No device fits `spec.vxlan.interfaces`, or no default route exists.
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
    /// The controller has not yet given this node its own addresses in the overlay.
    #[error("waiting for this node's own {family} address in the network")]
    WaitingForAddress {
        /// The family that is missing.
        family: Family,
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
            Self::NoParentAddress { .. } => "NoParentAddress",
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
            ready: true,
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

/// What became of each Network, by name.
pub type Realised = BTreeMap<String, Result<Overlay, NotReady>>;

/// Realises every Network of the view. A Network that cannot be realised keeps none of the others from it.
#[must_use]
pub fn realise(view: &NodeView) -> Realised {
    // The oldest Network keeps a device that two claim, as with every other rivalry.
    let mut order: Vec<&NetworkDef> = view.networks.values().collect();
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

fn realise_one(view: &NodeView, network: &NetworkDef) -> Result<Overlay, NotReady> {
    let Some(vxlan) = &network.vxlan else { return Err(NotReady::NotSupported) };
    let parent = choose_parent(&view.links, network).ok_or_else(|| NotReady::NoParent {
        wanted: if vxlan.interfaces.is_empty() {
            "the default route".to_owned()
        } else {
            vxlan.interfaces.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        },
        have: view.links.keys().map(IfName::as_str).collect::<Vec<_>>().join(", "),
    })?;
    let link = &view.links[parent];
    let ip = Family::ALL
        .into_iter()
        .filter(|f| view.families.contains(f))
        .find_map(|f| parent_address(view, link, f))
        .ok_or_else(|| NotReady::NoParentAddress { parent: parent.clone() })?;

    let wanted = |f: Family| {
        view.families.contains(&f)
            && view.subnets.values().any(|s| s.network == network.name && s.family() == f && !s.deleting)
    };
    let own = view.vteps.get(&network.name);
    let addresses = PerFamily::from_fn(|f| {
        own.into_iter().flatten().copied().find(|a| Family::of(*a) == f && view.families.contains(&f))
    });
    if let Some(family) = Family::ALL.into_iter().find(|f| wanted(*f) && addresses.get(*f).is_none()) {
        return Err(NotReady::WaitingForAddress { family });
    }

    let room = link.mtu.saturating_sub(overhead(Family::of(ip)));
    let mtu = network.mtu.map_or(room, |m| m.min(room));
    let minimum = if wanted(Family::V6) { 1280 } else { 576 };
    if mtu < minimum {
        return Err(NotReady::MtuTooSmall { mtu, minimum });
    }
    let (device, device_full_name) = vxlan_device_name(parent, vxlan.vni);
    Ok(Overlay {
        network: network.name.clone(),
        vni: vxlan.vni,
        port: vxlan.port,
        encapsulation: vxlan.encapsulation,
        parent: parent.clone(),
        device,
        device_full_name,
        mtu,
        ip,
        links: link.on_link(),
        mac: Mac::derived(format!("{}/{}", view.node, network.name).as_bytes()),
        addresses,
    })
}

/// The parent of a Network: the first pattern that some device fits wins (devices in name order, those with an
/// address first); without patterns the device of the default route, IPv4's before IPv6's.
#[must_use]
pub fn choose_parent<'a>(links: &'a BTreeMap<IfName, HostLink>, network: &NetworkDef) -> Option<&'a IfName> {
    let patterns = network.vxlan.as_ref().map(|v| v.interfaces.as_slice()).unwrap_or_default();
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
