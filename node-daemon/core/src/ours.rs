//! How a freshly started agent knows that a kernel object is Braid's.
//!
//! | noun | ours when |
//! |---|---|
//! | device | VXLAN: its alias starts with `braid:`, or it is in our device group; veth: two of these and the name `braid<10 hex>` |
//! | address, neighbour, FDB entry | on a device of ours |
//! | route | protocol 176 and one of our tables |
//! | rule | protocol 176, priority in our band, no selector |
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
    let (right_name, group) = match seen.kind.as_str() {
        "veth" => (is_host_veth_name(name.as_str()), GROUP_PODS),
        "vxlan" if seen.vxlan.is_some() => (true, GROUP_TUNNELS),
        _ => return false,
    };
    // The group is set when a device is made, the alias a moment later: a device whose maker died in between is
    // known by its group. One that somebody renamed is known by both.
    let alias = seen.alias.starts_with(ALIAS_PREFIX);
    if right_name { alias || seen.group == group } else { alias && seen.group == group }
}

/// Whether a name is one that `braid_types::host_veth_name` gives.
#[must_use]
pub fn is_host_veth_name(name: &str) -> bool {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    name.strip_prefix("braid").is_some_and(|hex| hex.len() == 10 && hex.bytes().all(lower_hex))
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
    seen.protocol == ROUTE_PROTOCOL && seen.plain && rule_priority::BAND.contains(&seen.rule.priority)
}
