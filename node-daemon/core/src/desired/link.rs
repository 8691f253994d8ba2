//! Devices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::{IfName, Mac, Vni};

use crate::overlay::Overlay;

/// Device group of the host ends of pods: the filter recognises pod traffic by it, which is exact where a match on
/// the name's beginning would also take devices of others.
pub const GROUP_PODS: u32 = 176;
/// Device group of our tunnels.
pub const GROUP_TUNNELS: u32 = 177;
/// Beginning of the alias on every device of ours.
pub const ALIAS_PREFIX: &str = "braid:";
/// The kernel refuses longer aliases (`IFALIASZ` less the closing zero).
const ALIAS_MAX: usize = 255;

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Name.
    pub name: IfName,
    /// What it is.
    pub kind: LinkKind,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Alias, which starts with [`ALIAS_PREFIX`].
    pub alias: String,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// A tunnel device.
    Vxlan(Vxlan),
    /// The host end of a pod's veth pair.
    HostVeth,
}

impl LinkKind {
    /// Device group that goes with the kind.
    #[must_use]
    pub fn group(&self) -> u32 {
        match self {
            Self::Vxlan(_) => GROUP_TUNNELS,
            Self::HostVeth => GROUP_PODS,
        }
    }
}

/// Parameters of a VXLAN device; learning is always off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address.
    pub local: IpAddr,
    /// Device that carries the outer packets.
    pub parent: IfName,
}

/// An alias that marks a device as ours and tells people what it is for.
pub(crate) fn alias(what: &str) -> String {
    let mut alias = format!("{ALIAS_PREFIX}{what}");
    let cut = (0..=ALIAS_MAX.min(alias.len())).rev().find(|i| alias.is_char_boundary(*i)).unwrap_or(0);
    alias.truncate(cut);
    alias
}

pub(super) fn of(overlays: &[Overlay]) -> BTreeMap<IfName, Link> {
    let links = overlays.iter().map(|o| Link {
        name: o.device.clone(),
        kind: LinkKind::Vxlan(Vxlan { vni: o.vni, port: o.port, local: o.ip, parent: o.parent.clone() }),
        mac: o.mac,
        mtu: o.mtu,
        alias: alias(&o.device_full_name),
    });
    links.map(|l| (l.name.clone(), l)).collect()
}
