//! Addresses on our devices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use braid_types::{Family, IfName};

use crate::overlay::Overlay;

/// An address on a device. All of ours are without a prefix route and without duplicate address detection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddrKey {
    /// The device.
    pub dev: IfName,
    /// The address.
    pub addr: IpAddr,
    /// Prefix length.
    pub prefix_len: u8,
}

impl AddrKey {
    /// A /32 or /128.
    #[must_use]
    pub fn host(dev: &IfName, addr: IpAddr) -> Self {
        Self { dev: dev.clone(), addr, prefix_len: Family::of(addr).bits() }
    }
}

pub(super) fn of(overlays: &[Overlay]) -> BTreeSet<AddrKey> {
    overlays
        .iter()
        .flat_map(|o| o.addresses.iter().filter_map(|(_, a)| *a).map(|a| AddrKey::host(&o.device, a)))
        .collect()
}
