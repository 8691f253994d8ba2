//! Permanent neighbours: nothing on our devices ever asks the network for a hardware address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::{IfName, Mac};

use super::remote::Remotes;

/// A neighbour on a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighKey {
    /// The device.
    pub dev: IfName,
    /// The neighbour's address.
    pub addr: IpAddr,
}

pub(super) fn of(remotes: &Remotes<'_>) -> BTreeMap<NeighKey, Mac> {
    let entries = remotes.values().flat_map(|r| {
        r.addresses
            .iter()
            .filter_map(|(_, a)| *a)
            .map(|addr| (NeighKey { dev: r.overlay.device.clone(), addr }, r.mac))
    });
    entries.collect()
}
