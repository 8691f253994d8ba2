//! How a freshly started agent knows that a kernel object is Braid's.
//!
//! | noun | ours when |
//! |---|---|
//! | device | two of three: its name has our form (veth: `braid<10 hex>`; VXLAN: `<parent>.vxlan<vni>`, or `bv<11 hex>` where that is too long), its alias starts with `braid:`, it is in our device group |
//! | address, neighbour, FDB entry | on a device of ours |
//! | route | protocol 176 and one of our tables |
//! | rule | protocol 176, priority in our band, no selector; at 3229 and 3230 also with sources (`from`) |
//! | proxy neighbour | protocol 176 |
//! | nftables | everything in `inet braid` |
//!
//! Everything else is foreign and never touched.

use braid_types::IfName;
use braid_types::well_known::{ROUTE_PROTOCOL, rule_priority, table};

use crate::actual::{Actual, SeenLink, SeenRule};
use crate::desired::link::{ALIAS_PREFIX, GROUP_PODS, GROUP_TUNNELS};

/// Whether a device is ours.
#[must_use]
pub fn link(name: &IfName, seen: &SeenLink) -> bool {
    let (right_name, group) = match (seen.kind.as_str(), &seen.vxlan) {
        ("veth", _) => (is_host_veth_name(name.as_str()), GROUP_PODS),
        ("vxlan", Some(vxlan)) => (is_tunnel_name(name.as_str(), vxlan.vni), GROUP_TUNNELS),
        _ => return false,
    };
    // Two are always there, one may be missing: name and group are set when a device is made, the alias a moment later,
    // and somebody may rename a device, wipe its alias or move it to another group.
    let marks = [right_name, seen.alias.starts_with(ALIAS_PREFIX), seen.group == group];
    marks.into_iter().filter(|mark| *mark).count() >= 2
}

/// Whether a name is one that `braid_types::host_veth_name` gives.
#[must_use]
pub fn is_host_veth_name(name: &str) -> bool {
    name.strip_prefix("braid").is_some_and(|hex| is_lower_hex(hex, 10))
}

/// Whether a name is one that `braid_types::vxlan_device_name` gives for a VNI.
#[must_use]
pub fn is_tunnel_name(name: &str, vni: u32) -> bool {
    let full = name.strip_suffix(&format!(".vxlan{vni}")).is_some_and(|parent| !parent.is_empty());
    full || name.strip_prefix("bv").is_some_and(|hex| is_lower_hex(hex, 11))
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether an object on a device is ours because the device is.
#[must_use]
pub fn on_our_link(actual: &Actual, dev: &IfName) -> bool {
    actual.links.get(dev).is_some_and(|seen| link(dev, seen))
}

/// Whether a table of routes is ours.
#[must_use]
pub fn table(number: u32) -> bool {
    matches!(number, table::LOCAL_PODS | table::OVERLAY | table::OVERLAY_TO_UNDERLAY)
        || table::SUBNETS.contains(&number)
}

/// Whether a rule is ours.
#[must_use]
pub fn rule(seen: &SeenRule) -> bool {
    let may_select =
        [rule_priority::UNDERLAY_NODE, rule_priority::UNDERLAY_SUBNET].contains(&seen.rule.priority);
    let fits = seen.plain && (seen.rule.from.is_none() || may_select);
    seen.protocol == ROUTE_PROTOCOL && fits && rule_priority::BAND.contains(&seen.rule.priority)
}

/// Whether a proxy neighbour is ours, by who made it.
#[must_use]
pub fn proxy(protocol: u8) -> bool {
    protocol == ROUTE_PROTOCOL
}
