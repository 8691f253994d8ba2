//! One interface of one pod: what belongs to it on the host and in the pod, and the steps that make it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::well_known::{pod_gateway, table};
use braid_types::{Cidr, Family, IfName, Mac};

use crate::desired::nft::{self, Elements};
use crate::desired::{
    AddrKey, Link, LinkKind, NeighKey, Networks, ProxyKey, Route, RouteKey, Sysctl, Target, link, proxy,
    sysctl,
};
use crate::plan::Step;
use crate::view::{Attachment, NamespaceId, NodeView};

/// Everything of one interface. The loop and ADD make it by the same function, so they cannot disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// Host end.
    pub link: Link,
    /// Addresses on the host end.
    pub addrs: Vec<AddrKey>,
    /// The pod as the host's permanent neighbour.
    pub neighs: BTreeMap<NeighKey, Mac>,
    /// Host routes to the pod.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Its addresses for which the node answers on the physical network.
    pub proxies: BTreeSet<ProxyKey>,
    /// Kernel parameters of the host end.
    pub sysctls: BTreeMap<String, Sysctl>,
    /// Set elements that let the pod's packets pass.
    pub elements: Elements,
    /// The other end.
    pub pod: PodEnd,
}

/// The end in the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodEnd {
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The namespace that the path must lead to, where that is known: a path such as `/proc/<pid>/ns/net` leads
    /// elsewhere for a process that counts other processes.
    pub netns_id: Option<NamespaceId>,
    /// Name.
    pub name: IfName,
    /// Hardware address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses, /32 or /128.
    pub addresses: BTreeSet<IpAddr>,
}

impl PodEnd {
    /// Families that the pod has here.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|f| self.addresses.iter().any(|a| Family::of(*a) == *f))
    }

    /// The gateway's permanent neighbour entry, one per family.
    #[must_use]
    pub fn neighs(&self) -> BTreeMap<NeighKey, Mac> {
        let key = |f| NeighKey { dev: self.name.clone(), addr: pod_gateway::address(f) };
        self.families().map(|f| (key(f), pod_gateway::host_mac())).collect()
    }

    /// The default route, one per family, in the pod's main table.
    #[must_use]
    pub fn routes(&self) -> BTreeMap<RouteKey, Route> {
        /// `RT_TABLE_MAIN`.
        const MAIN: u32 = 254;
        let routes = self.families().filter_map(|f| {
            let key = RouteKey::new(MAIN, Cidr::containing(f.unspecified(), 0)?);
            let target = Target::Via { gateway: pod_gateway::address(f), dev: self.name.clone() };
            Some((key, Route { target, source: None, mtu: Some(self.mtu) }))
        });
        routes.collect()
    }
}

/// Derives the wiring of an attachment. Families that the node's kernel lacks are left out.
#[must_use]
pub fn wire(view: &NodeView, attachment: &Attachment) -> Wiring {
    wire_into(view, &Networks::of(view), attachment)
}

/// As [`wire`], for callers that have realised the Networks already.
pub(crate) fn wire_into(view: &NodeView, realised: &Networks, attachment: &Attachment) -> Wiring {
    let dev = &attachment.host_if;
    let addresses: BTreeSet<IpAddr> =
        attachment.addresses.iter().copied().filter(|a| view.families.contains(&Family::of(*a))).collect();
    let source = view.node_source(&attachment.network, realised);
    let pod = PodEnd {
        netns: attachment.netns.clone(),
        netns_id: attachment.netns_id,
        name: attachment.ifname.clone(),
        mac: attachment.mac,
        mtu: attachment.mtu,
        addresses,
    };
    let what = format!("{}/{}/{}", attachment.pod.namespace, attachment.pod.name, attachment.ifname);
    let host_route = |addr: IpAddr| Route {
        target: Target::OnLink { dev: dev.clone() },
        source: *source.get(Family::of(addr)),
        mtu: None,
    };
    Wiring {
        link: Link {
            name: dev.clone(),
            kind: LinkKind::HostVeth,
            mac: pod_gateway::host_mac(),
            mtu: attachment.mtu,
            alias: link::alias(&what),
        },
        // The IPv6 gateway is a real address of the host end, so that the host can answer and send ICMPv6 from it.
        addrs: pod
            .families()
            .filter(|f| *f == Family::V6)
            .map(|f| AddrKey { dev: dev.clone(), addr: pod_gateway::address(f), prefix_len: 64 })
            .collect(),
        neighs: pod
            .addresses
            .iter()
            .map(|addr| (NeighKey { dev: dev.clone(), addr: *addr }, attachment.mac))
            .collect(),
        routes: pod
            .addresses
            .difference(&attachment.silent)
            .map(|addr| (RouteKey::new(table::LOCAL_PODS, Cidr::host(*addr)), host_route(*addr)))
            .collect(),
        proxies: proxy::of(view, &realised.underlays, attachment),
        sysctls: pod
            .families()
            .filter(|f| *f == Family::V6)
            .filter_map(|_| sysctl::enable_v6(view, dev))
            .collect(),
        elements: nft::elements(dev, attachment.mac, &pod.addresses),
        pod,
    }
}

/// The steps that make the interface, in order. Undo them last first.
///
/// The filter knows the interface before the interface exists: the pod's first packet already passes or falls by it.
/// The node answers for the pod, and says so to everybody, once packets find their way to it.
#[must_use]
pub fn steps(wiring: &Wiring) -> Vec<Step> {
    let mut steps = vec![
        Step::AddElements(wiring.elements.clone()),
        Step::AddVeth { link: wiring.link.clone(), pod: wiring.pod.clone() },
    ];
    let sysctls = wiring.sysctls.iter();
    steps.extend(sysctls.map(|(path, s)| Step::SetSysctl { path: path.clone(), value: s.value.clone() }));
    steps.extend(wiring.addrs.iter().cloned().map(Step::AddAddr));
    steps.extend(wiring.neighs.iter().map(|(k, mac)| Step::PutNeigh(k.clone(), *mac)));
    steps.extend(wiring.routes.iter().map(|(k, r)| Step::PutRoute(k.clone(), r.clone())));
    steps.extend(wiring.proxies.iter().cloned().map(Step::PutProxy));
    steps.extend(wiring.proxies.iter().cloned().map(Step::Announce));
    steps
}

/// Addresses on the physical network for which the node cannot answer yet: it has not heard of their Subnet, or that has no
/// routing table.
#[must_use]
pub fn unanswered(view: &NodeView, attachment: &Attachment, wiring: &Wiring) -> BTreeSet<IpAddr> {
    if !view.underlays.contains(&attachment.network) {
        return BTreeSet::new();
    }
    let held = attachment.addresses.difference(&attachment.silent);
    let answered: BTreeSet<IpAddr> = wiring.proxies.iter().map(|key| key.addr).collect();
    held.filter(|a| view.families.contains(&Family::of(**a)) && !answered.contains(*a)).copied().collect()
}

/// An address of the interface that the node itself has: no packet for it would ever come to the pod.
#[must_use]
pub fn own_address(view: &NodeView, addresses: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let on_links = view.links.values().flat_map(|l| &l.addrs).map(|(address, _)| address);
    on_links.chain(&view.node_ips).find(|a| addresses.contains(a)).copied()
}
