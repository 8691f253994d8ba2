//! Routes: host routes of local pods, block and host routes of overlays, the tables of underlay Subnets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_types::model::SubnetDef;
use braid_types::well_known::table;
use braid_types::{Cidr, Family, IfName};

use super::remote::{Remote, Remotes};
use crate::overlay::Overlay;
use crate::underlay::Underlay;
use crate::view::NodeView;

/// What makes a route unique in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Table.
    pub table: u32,
    /// Destination.
    pub dst: Cidr,
    /// Metric.
    pub metric: u32,
}

impl RouteKey {
    /// A route with the metric that the kernel gives to one without: 0 for IPv4, 1024 for IPv6
    /// (`IP6_RT_PRIO_USER`).
    #[must_use]
    pub fn new(table: u32, dst: Cidr) -> Self {
        let metric = match dst.family() {
            Family::V4 => 0,
            Family::V6 => 1024,
        };
        Self { table, dst, metric }
    }
}

/// What happens to packets that match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The destination is behind the device itself.
    OnLink {
        /// The device.
        dev: IfName,
    },
    /// To a next hop that is taken to be on-link.
    Via {
        /// Next hop.
        gateway: IpAddr,
        /// The device.
        dev: IfName,
    },
    /// Refused with an ICMP error.
    Unreachable,
}

impl Target {
    /// The device, where there is one.
    #[must_use]
    pub fn dev(&self) -> Option<&IfName> {
        match self {
            Self::OnLink { dev } | Self::Via { dev, .. } => Some(dev),
            Self::Unreachable => None,
        }
    }
}

/// A route with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// What happens to packets.
    pub target: Target,
    /// Source address of packets that this host itself sends.
    pub source: Option<IpAddr>,
    /// MTU metric; `None` = the device's.
    pub mtu: Option<u32>,
}

pub(super) fn of(view: &NodeView, overlays: &[Overlay], remotes: &Remotes<'_>) -> BTreeMap<RouteKey, Route> {
    let mut routes = BTreeMap::new();
    let overlay = |name: &str| overlays.iter().find(|o| o.network == name);
    let mut put = |dst: Cidr, route: Route| routes.insert(RouteKey::new(table::OVERLAY, dst), route);

    // What nobody has claimed must not leave by the default route, nor come back from there.
    let in_force = view.subnets.values().filter(|s| s.ready && overlay(&s.network).is_some());
    for subnet in in_force.filter(|s| view.families.contains(&s.family())) {
        if !covers_a_node(view, &subnet.cidr) && !is_inside_a_strange_block(view, subnet) {
            put(subnet.cidr, unreachable());
        }
    }
    for block in view.blocks.values().filter(|b| view.families.contains(&b.cidr.family())) {
        let Some(network) = view.subnets.get(&block.subnet).map(|s| s.network.as_str()) else { continue };
        if overlay(network).is_none() {
            continue;
        }
        if block.node == view.node {
            put(block.cidr, unreachable());
        } else if let Some(route) =
            remotes.get(&(network, block.node.as_str())).and_then(|r| to(r, block.cidr.family()))
        {
            put(block.cidr, route);
        }
    }
    for (addr, place) in view.host_routed.iter().filter(|(_, p)| p.node != view.node) {
        let remote = remotes.get(&(place.network.as_str(), place.node.as_str()));
        if let Some(route) = remote.and_then(|r| to(r, Family::of(*addr))) {
            put(Cidr::host(*addr), route);
        }
    }
    routes
}

/// The table of each Subnet of an underlay: its prefix on the device, and everything else by its router.
pub(super) fn on_wires(underlays: &[&Underlay]) -> BTreeMap<RouteKey, Route> {
    let mut routes = BTreeMap::new();
    for underlay in underlays {
        for segment in &underlay.segments {
            let dev = underlay.parent.clone();
            let on_link = Target::OnLink { dev: dev.clone() };
            let by_router = Target::Via { gateway: segment.gateway, dev };
            let all = Cidr::containing(segment.cidr.family().unspecified(), 0);
            for (dst, target) in [(Some(segment.cidr), on_link), (all, by_router)] {
                let key = dst.map(|dst| RouteKey::new(segment.table, dst));
                routes.extend(key.map(|key| (key, Route { target, source: None, mtu: None })));
            }
        }
    }
    routes
}

fn unreachable() -> Route {
    Route { target: Target::Unreachable, source: None, mtu: None }
}

/// The way to a remote node: straight via its address where that is wanted and of the right family, else through
/// the tunnel. `None` when the remote node has no address of the family yet.
fn to(remote: &Remote<'_>, family: Family) -> Option<Route> {
    let overlay = remote.overlay;
    let target = if remote.direct && Family::of(remote.ip) == family {
        Target::Via { gateway: remote.ip, dev: overlay.parent.clone() }
    } else {
        Target::Via { gateway: (*remote.addresses.get(family))?, dev: overlay.device.clone() }
    };
    Some(Route { target, source: *overlay.addresses.get(family), mtu: None })
}

/// Whether a block of another Subnet contains the whole of this one. Its route would then be the more specific one, and
/// cut off pods that are there.
fn is_inside_a_strange_block(view: &NodeView, subnet: &SubnetDef) -> bool {
    view.blocks.values().any(|b| b.subnet != subnet.name && b.cidr.contains_cidr(&subnet.cidr))
}

/// Whether a prefix overlaps the underlay that this node sees. Refusing such a prefix as a whole would cut the
/// node off its own network, which is far worse than letting strays out.
fn covers_a_node(view: &NodeView, cidr: &Cidr) -> bool {
    let links = view.links.values().flat_map(|l| &l.addrs);
    let on_link = links.filter_map(|(a, len)| Cidr::containing(*a, *len));
    let remote = view.nodes.values().flat_map(|n| &n.networks).filter_map(|n| n.vtep.as_ref()).map(|v| v.ip);
    on_link.chain(remote.chain(view.node_ips.iter().copied()).map(Cidr::host)).any(|c| c.overlaps(cidr))
}
