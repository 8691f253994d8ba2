//! Addresses for which this node answers on a device of the host: those of its pods in underlays. Neighbours then send
//! to this node what is for them (RFC 1027, RFC 4861 section 7.2.8).

use std::collections::BTreeSet;
use std::net::IpAddr;

use braid_types::{Family, IfName};

use crate::underlay::Realised;
use crate::view::{Attachment, NodeView};

/// A proxy neighbour on a device. All of ours carry our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyKey {
    /// The device on which the node answers.
    pub dev: IfName,
    /// The address for which it does.
    pub addr: IpAddr,
}

/// What one interface needs. Of an address that another pod holds there is none: its traffic goes there.
#[must_use]
pub(crate) fn of(view: &NodeView, underlays: &Realised, attachment: &Attachment) -> BTreeSet<ProxyKey> {
    let Some(Ok(underlay)) = underlays.get(&attachment.network) else { return BTreeSet::new() };
    let is_routed = |a: &&IpAddr| {
        view.families.contains(&Family::of(**a)) && underlay.segments.iter().any(|s| s.cidr.contains(**a))
    };
    let held = attachment.addresses.difference(&attachment.silent);
    held.filter(is_routed).map(|addr| ProxyKey { dev: underlay.parent.clone(), addr: *addr }).collect()
}
