//! The other nodes of every overlay, as this node reaches them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::model::{Encapsulation, VtepDef};
use braid_types::{Family, Mac, PerFamily};

use crate::overlay::Overlay;
use crate::view::NodeView;

/// Another node's end of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote<'a> {
    pub(super) overlay: &'a Overlay,
    pub(super) ip: IpAddr,
    pub(super) mac: Mac,
    pub(super) addresses: PerFamily<Option<IpAddr>>,
    /// The two nodes share a link and the Network wants no encapsulation there.
    pub(super) direct: bool,
}

/// Remotes by (network, node).
pub(super) type Remotes<'a> = BTreeMap<(&'a str, &'a str), Remote<'a>>;

pub(super) fn of<'a>(view: &'a NodeView, overlays: &'a [Overlay]) -> Remotes<'a> {
    let by_name: BTreeMap<&str, &Overlay> = overlays.iter().map(|o| (o.network.as_str(), o)).collect();
    let mut remotes = Remotes::new();
    for (node, def) in view.nodes.iter().filter(|(name, _)| **name != view.node) {
        for published in &def.networks {
            let Some(overlay) = by_name.get(published.network.as_str()).copied() else { continue };
            let Some(vtep) = &published.vtep else { continue };
            // An IPv4 tunnel end cannot send to an IPv6 one, and a node with our own address is a stale object.
            if Family::of(vtep.ip) != Family::of(overlay.ip) || vtep.ip == overlay.ip {
                continue;
            }
            let addresses = PerFamily::from_fn(|f| {
                vtep.addresses.iter().copied().find(|a| Family::of(*a) == f && view.families.contains(&f))
            });
            let remote = Remote {
                overlay,
                ip: vtep.ip,
                mac: vtep.mac,
                addresses,
                direct: overlay.encapsulation == Encapsulation::CrossSubnet && shares_link(overlay, vtep),
            };
            remotes.insert((overlay.network.as_str(), node.as_str()), remote);
        }
    }
    remotes
}

/// Two nodes share a link when each sees the other's address as on-link.
fn shares_link(overlay: &Overlay, vtep: &VtepDef) -> bool {
    overlay.links.iter().any(|l| l.contains(vtep.ip) && vtep.links.contains(l))
        && vtep.links.iter().any(|l| l.contains(overlay.ip))
}
