//! Forwarding entries of VXLAN devices: one per remote node, none for broadcast, so nothing is ever flooded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::IfName;

use super::remote::Remotes;

/// A hardware address on a VXLAN device. Raw octets, as an entry made by hand may have any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The VXLAN device.
    pub dev: IfName,
    /// The inner destination address.
    pub mac: [u8; 6],
}

pub(super) fn of(remotes: &Remotes<'_>) -> BTreeMap<FdbKey, IpAddr> {
    remotes.values().map(|r| (FdbKey { dev: r.overlay.device.clone(), mac: r.mac.octets() }, r.ip)).collect()
}
