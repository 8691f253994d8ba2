//! Kernel parameters.

use std::collections::BTreeMap;

use braid_types::{Family, IfName};

use crate::overlay::Overlay;
use crate::underlay::Underlay;
use crate::view::NodeView;

/// A parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// The value it must have.
    pub value: String,
    /// Changed only where it has this value now; other values are somebody's decision and stay.
    pub only_from: Option<String>,
}

impl Sysctl {
    fn always(value: &str) -> Self {
        Self { value: value.to_owned(), only_from: None }
    }
}

/// Where a family's parameters live below `/proc/sys/net`.
#[must_use]
pub fn dir(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Path of a parameter of the neighbours of one device.
fn of_neighbours(family: Family, dev: &IfName, name: &str) -> String {
    format!("{}/neigh/{dev}/{name}", dir(family))
}

/// Path of a parameter of one device.
#[must_use]
pub fn of_device(family: Family, dev: &IfName, name: &str) -> String {
    format!("{}/conf/{dev}/{name}", dir(family))
}

/// Whether a path names a parameter of one device, which exists only as long as the device does.
#[must_use]
pub fn device(path: &str) -> Option<&str> {
    let mut parts = path.split('/').skip(1);
    let of_devices = parts.next().is_some_and(|kind| matches!(kind, "conf" | "neigh"));
    parts.next().filter(|d| of_devices && *d != "all" && *d != "default")
}

pub(super) fn of(view: &NodeView, overlays: &[Overlay], underlays: &[&Underlay]) -> BTreeMap<String, Sysctl> {
    let mut all = BTreeMap::new();
    if view.families.contains(&Family::V4) {
        all.insert("ipv4/ip_forward".to_owned(), Sysctl::always("1"));
    }
    if view.families.contains(&Family::V6) {
        all.insert("ipv6/conf/all/forwarding".to_owned(), Sysctl::always("1"));
        // With forwarding on, the kernel ignores router advertisements unless accept_ra is 2 (kernel doc ip-sysctl): the
        // host would lose an advertised default route, on whichever device it came. Where containers could advertise
        // themselves, the kernel's answer stays as it is.
        for (dev, _) in view.links.iter().filter(|(_, link)| link.outward) {
            let keep_ra = Sysctl { value: "2".to_owned(), only_from: Some("1".to_owned()) };
            all.insert(of_device(Family::V6, dev, "accept_ra"), keep_ra);
        }
    }
    for o in overlays {
        if view.families.contains(&Family::V4) {
            // Loose: the reply to a packet that entered by the tunnel may be routed straight (CrossSubnet).
            all.insert(of_device(Family::V4, &o.device, "rp_filter"), Sysctl::always("2"));
        }
        all.extend(enable_v6(view, &o.device));
    }
    for u in underlays {
        for family in &view.families {
            // By default answers for others wait up to 0.8 s, so that a host that has the address itself comes first.
            all.insert(of_neighbours(*family, &u.parent, "proxy_delay"), Sysctl::always("0"));
        }
        if view.families.contains(&Family::V6) {
            all.insert(of_device(Family::V6, &u.parent, "proxy_ndp"), Sysctl::always("1"));
        }
    }
    all
}

/// Our devices need IPv6 even where the host's default for new devices is off.
pub(crate) fn enable_v6(view: &NodeView, dev: &IfName) -> Option<(String, Sysctl)> {
    view.families
        .contains(&Family::V6)
        .then(|| (of_device(Family::V6, dev, "disable_ipv6"), Sysctl::always("0")))
}
