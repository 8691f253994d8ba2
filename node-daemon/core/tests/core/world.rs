//! Random clusters as one node sees them, and random damage to its kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use braid_node_core::actual::{Actual, SeenAddr, SeenLink, SeenNeigh, SeenRoute, SeenRule, SeenVxlan};
use braid_node_core::desired::nft::Element;
use braid_node_core::desired::{AddrKey, NeighKey, ProxyKey, Route, RouteKey, Rule, Target};
use braid_node_core::view::{Attachment, HostLink, HostRouted, NodeView};
use braid_types::model::{
    BlockDef, Encapsulation, NetworkDef, NetworkType, NodeDef, NodeNetworkDef, PodRef, SubnetDef, VtepDef,
    VxlanDef,
};
use braid_types::{Cidr, Family, IfName, Mac, Selector, VlanId, Vni, host_veth_name};
use proptest::prelude::*;
use proptest::sample::Index;

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

pub(crate) fn cidr(s: &str) -> Cidr {
    s.parse().expect("prefix")
}

pub(crate) fn name(s: &str) -> IfName {
    s.parse().expect("device name")
}

/// What a random cluster is made from.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    v6: bool,
    mtu: u32,
    node_address: u8,
    networks: Vec<(bool, bool, bool)>,
    peers: BTreeSet<u8>,
    blocks: BTreeSet<u8>,
    moved: BTreeSet<u8>,
    pods: BTreeSet<u8>,
    /// An untagged Network: whether its prefix is the node's own, and its pods.
    office: Option<(bool, BTreeSet<u8>)>,
}

pub(crate) fn seed() -> impl Strategy<Value = Seed> {
    let small = |n| proptest::collection::btree_set(0..n, 0..4usize);
    (
        (any::<bool>(), prop_oneof![Just(1500u32), Just(9000)], 1u8..3),
        proptest::collection::vec(any::<(bool, bool, bool)>(), 2),
        (small(5u8), small(6u8), small(6u8), small(6u8)),
        proptest::option::of((any::<bool>(), small(6u8))),
    )
        .prop_map(|((v6, mtu, node_address), networks, (peers, blocks, moved, pods), office)| Seed {
            v6,
            mtu,
            node_address,
            networks,
            peers,
            blocks,
            moved,
            pods,
            office,
        })
}

impl Seed {
    pub(crate) fn view(&self) -> NodeView {
        let mut view = NodeView {
            node: "self".into(),
            families: Family::ALL.into_iter().filter(|f| *f == Family::V4 || self.v6).collect(),
            ..NodeView::default()
        };
        let n = self.node_address;
        let eth0 = HostLink {
            mtu: self.mtu,
            up: true,
            addrs: vec![(ip(&format!("192.168.1.{n}")), 24), (ip(&format!("2001:db8::{n}")), 64)],
            default_route: Family::ALL.into(),
            outward: true,
        };
        view.links.insert(name("eth0"), eth0);
        let names = ["blue", "green"];
        for (i, (network, (present, cross, nat))) in names.iter().zip(&self.networks).enumerate() {
            let i = u8::try_from(i).expect("two networks");
            add_subnets(&mut view, network, i, *nat);
            for block in &self.blocks {
                let node = if *block == 0 { "self".to_owned() } else { format!("n{block}") };
                add_block(&mut view, network, i, *block, &node);
            }
            if *present {
                let encapsulation = if *cross { Encapsulation::CrossSubnet } else { Encapsulation::Always };
                view.networks.insert((*network).into(), vxlan(network, i, encapsulation));
                let own = [ip(&format!("10.{i}.0.1")), ip(&format!("fd00:{i}::1"))];
                view.vteps.insert((*network).into(), own.into());
            }
        }
        for peer in &self.peers {
            let networks = names.iter().enumerate().map(|(i, network)| peer_network(network, i, *peer));
            let node = format!("n{peer}");
            view.nodes.insert(node.clone(), NodeDef { node, networks: networks.collect() });
        }
        for moved in &self.moved {
            let place = HostRouted { network: "blue".into(), node: format!("n{moved}") };
            view.host_routed.insert(ip(&format!("10.0.200.{moved}")), place.clone());
            view.host_routed.insert(ip(&format!("fd00:0:0:200::{moved}")), place);
        }
        for pod in &self.pods {
            let a = attachment(*pod);
            view.attachments.insert(a.host_if.clone(), a);
        }
        if let Some((shares_prefix, desks)) = &self.office {
            let (v4, v6) = if *shares_prefix { OWN_PREFIXES } else { OTHER_PREFIXES };
            add_office(&mut view, v4, v6);
            for desk in desks {
                let a = desk_of(*desk, v4, v6);
                view.attachments.insert(a.host_if.clone(), a);
            }
        }
        view
    }
}

/// Prefixes, without their ends, that the host's device is in, and that it is not in.
const OWN_PREFIXES: (&str, &str) = ("192.168.1.", "2001:db8::");
const OTHER_PREFIXES: (&str, &str) = ("10.20.0.", "fd20::");

/// The untagged Network `office` with tables 10001 and 10002.
pub(crate) fn add_office(view: &mut NodeView, v4: &str, v6: &str) {
    let office = NetworkDef {
        kind: NetworkType::Vlan,
        vxlan: None,
        vlan: VlanId::try_from(0).ok(),
        ..vxlan("office", 0, Encapsulation::Always)
    };
    view.underlays.insert("office".into());
    view.networks.insert("office".into(), office);
    for (table, start, end) in [(10001, v4, "0/24"), (10002, v6, "/64")] {
        let cidr = cidr(&format!("{start}{end}"));
        let gateway = Some(ip(&format!("{start}fe").replace(".fe", ".254")));
        let name = format!("office-{}", cidr.family());
        let routing_table = Some(table);
        let subnet = SubnetDef { gateway, routing_table, ..subnet(&name, "office", cidr, false) };
        view.subnets.insert(name, subnet);
    }
}

/// A pod in `office`.
pub(crate) fn desk_of(desk: u8, v4: &str, v6: &str) -> Attachment {
    let host = desk + 100;
    Attachment {
        network: "office".into(),
        addresses: [ip(&format!("{v4}{host}")), ip(&format!("{v6}{host}"))].into(),
        ..attachment(host)
    }
}

fn subnet(name: &str, network: &str, cidr: Cidr, nat_outgoing: bool) -> SubnetDef {
    SubnetDef {
        name: name.into(),
        created: 0,
        network: network.into(),
        cidr,
        gateway: None,
        ranges: vec![],
        excluded: vec![],
        reserved: vec![],
        vlan: None,
        block_size: 26,
        private: false,
        nat_outgoing,
        routing_table: None,
        ready: true,
        deleting: false,
    }
}

fn vxlan(network: &str, i: u8, encapsulation: Encapsulation) -> NetworkDef {
    NetworkDef {
        name: network.into(),
        created: i.into(),
        kind: NetworkType::Vxlan,
        default: i == 0,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: vec![],
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(i64::from(i) + 4).expect("VNI"),
            port: 8472,
            encapsulation,
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

fn add_subnets(view: &mut NodeView, network: &str, i: u8, nat: bool) {
    for cidr in [cidr(&format!("10.{i}.0.0/16")), cidr(&format!("fd00:{i}::/48"))] {
        let name = format!("{network}-{}", cidr.family());
        view.subnets.insert(name.clone(), subnet(&name, network, cidr, nat));
    }
}

fn add_block(view: &mut NodeView, network: &str, i: u8, block: u8, node: &str) {
    for cidr in [cidr(&format!("10.{i}.{block}.0/26")), cidr(&format!("fd00:{i}:0:{block}::/64"))] {
        let subnet = format!("{network}-{}", cidr.family());
        let name = braid_types::block_name(&subnet, &cidr);
        view.blocks.insert(name.clone(), BlockDef { name, subnet, cidr, node: node.into() });
    }
}

fn peer_network(network: &str, i: usize, peer: u8) -> NodeNetworkDef {
    // Odd peers share the wire, even ones are behind a router.
    let third = if peer % 2 == 1 { 1 } else { 2 };
    let vtep = VtepDef {
        ip: ip(&format!("192.168.{third}.{}", peer + 10)),
        links: vec![cidr(&format!("192.168.{third}.0/24"))],
        mac: Mac::derived(format!("n{peer}/{network}").as_bytes()),
        addresses: vec![ip(&format!("10.{i}.{peer}.1")), ip(&format!("fd00:{i}:0:{peer}::1"))],
    };
    NodeNetworkDef { network: network.into(), ready: true, parent: None, mtu: None, vtep: Some(vtep) }
}

pub(crate) fn attachment(pod: u8) -> Attachment {
    let container_id = format!("container{pod}");
    Attachment {
        host_if: host_veth_name(&container_id, "eth0"),
        container_id,
        pod: PodRef {
            namespace: "default".into(),
            name: format!("pod{pod}").into(),
            uid: format!("u{pod}").into(),
        },
        netns: format!("/run/netns/{pod}"),
        netns_id: None,
        ifname: name("eth0"),
        network: "blue".into(),
        mac: Mac::derived(&[pod]),
        addresses: [ip(&format!("10.0.0.{}", pod + 10)), ip(&format!("fd00:0:0:0::{}", pod + 10))].into(),
        mtu: 1450,
        silent: BTreeSet::new(),
    }
}

/// A bare host with things that look like ours and are not.
pub(crate) fn host() -> Actual {
    let mut kernel = Actual::default();
    let plain = |mtu| SeenLink { mtu, up: true, ..SeenLink::default() };
    kernel.links.insert(name("eth0"), plain(1500));
    kernel.links.insert(name("lo"), SeenLink { loopback: true, ..plain(65536) });
    for (dev, alias) in [("braidge0", ""), ("braid0123456789", ""), ("braid-x", "braid:not-really")] {
        let link = SeenLink { kind: "veth".into(), alias: alias.into(), ..plain(1500) };
        kernel.links.insert(name(dev), link);
    }
    let tunnel = SeenVxlan { vni: 99, port: 8472, parent: Some(name("eth0")), ..SeenVxlan::default() };
    let link = SeenLink { kind: "vxlan".into(), vxlan: Some(tunnel), ..plain(1450) };
    kernel.links.insert(name("eth0.vxlan99"), link);
    // Tunnels with one mark of ours each: the group, the alias; and the form of the name above.
    for (vni, dev, group, alias) in [(97u32, "guest97", 177, ""), (98, "guest98", 0, "braid:guest")] {
        let tunnel = SeenVxlan { vni, port: 8472, parent: Some(name("eth0")), ..SeenVxlan::default() };
        let marks = SeenLink { group, alias: alias.into(), ..plain(1450) };
        let link = SeenLink { kind: "vxlan".into(), vxlan: Some(tunnel), ..marks };
        kernel.links.insert(name(dev), link);
    }
    for dev in ["eth0", "eth0.vxlan99", "guest97", "guest98", "braid0123456789"] {
        let key = AddrKey { dev: name(dev), addr: ip("10.77.0.1"), prefix_len: 32 };
        kernel.addrs.insert(key, SeenAddr::default());
        let neigh = SeenNeigh { mac: Some(Mac::derived(b"x")), permanent: true };
        kernel.neighs.insert(NeighKey { dev: name(dev), addr: ip("10.77.0.2") }, neigh);
    }
    for (table, dst) in [(254, "10.78.0.0/16"), (5000, "10.0.1.0/26"), (40002, "10.0.1.0/26")] {
        let target = Target::OnLink { dev: name("eth0") };
        let route = SeenRoute::Known(Route { target, source: None, mtu: None });
        kernel.routes.insert(RouteKey::new(table, cidr(dst)), route);
    }
    let rule = |priority, table, from, protocol, plain| SeenRule {
        rule: Rule { family: Family::V4, priority, table, from },
        protocol,
        plain,
    };
    let some = Some(cidr("10.20.0.0/24"));
    kernel.rules = vec![
        rule(3200, 39999, None, 3, true),
        rule(3205, 254, None, 176, false),
        rule(3199, 40000, None, 176, true),
        rule(3210, 40000, some, 176, true),
        rule(3230, 10001, some, 3, true),
        rule(3230, 10001, some, 176, false),
        rule(32766, 254, None, 2, true),
    ];
    for (addr, protocol) in [("10.20.0.9", 0), ("10.20.0.10", 3)] {
        kernel.proxies.insert(ProxyKey { dev: name("eth0"), addr: ip(addr) }, protocol);
    }
    kernel.rules.sort();
    kernel
}

/// One act of damage to something of ours.
#[derive(Debug, Clone)]
pub(crate) struct Damage {
    kind: u8,
    at: Index,
}

pub(crate) fn damage() -> impl Strategy<Value = Vec<Damage>> {
    proptest::collection::vec((0u8..23, any::<Index>()).prop_map(|(kind, at)| Damage { kind, at }), 0..8)
}

fn pick<'a, T>(all: &'a [T], at: &Index) -> Option<&'a T> {
    (!all.is_empty()).then(|| &all[at.index(all.len())])
}

impl Damage {
    pub(crate) fn inflict(&self, kernel: &mut Actual) {
        let ours: Vec<IfName> = kernel
            .links
            .iter()
            .filter(|(n, l)| braid_node_core::ours::link(n, l))
            .map(|(n, _)| n.clone())
            .collect();
        let link = pick(&ours, &self.at).cloned();
        let routes: Vec<RouteKey> =
            kernel.routes.keys().filter(|k| braid_node_core::ours::table(k.table)).cloned().collect();
        let route = pick(&routes, &self.at).cloned();
        match (self.kind, link, route) {
            (0, Some(link), _) => crate::model::del_link(kernel, &link).expect("exists"),
            (1, Some(link), _) => on(kernel, &link, |l| l.mtu += 1),
            (2, Some(link), _) => on(kernel, &link, |l| l.up = false),
            // Either alias or group may be wiped, not both: such a device is nobody's.
            (3, Some(link), _) => on(kernel, &link, |l| l.alias = "braid:other".into()),
            (4, Some(link), _) => {
                on(kernel, &link, |l| l.mac = Some(Mac::derived(b"other")));
                kernel.neighs.retain(|k, _| k.dev != link);
            }
            (5, Some(link), _) => on(kernel, &link, |l| l.makes_link_local = true),
            (6, Some(link), _) => on(kernel, &link, |l| {
                if let Some(v) = &mut l.vxlan {
                    v.learning = true;
                }
            }),
            (7, Some(link), _) => {
                kernel.addrs.retain(|k, _| k.dev != link);
            }
            (8, Some(dev), _) => {
                let key = AddrKey { dev, addr: ip("10.88.0.1"), prefix_len: 24 };
                kernel.addrs.insert(key, SeenAddr::default());
            }
            (9, Some(dev), _) => {
                let learned = SeenNeigh { mac: Some(Mac::derived(b"y")), permanent: false };
                kernel.neighs.insert(NeighKey { dev, addr: ip("10.88.0.2") }, learned);
            }
            (10, Some(dev), _) => {
                kernel.neighs.retain(|k, _| k.dev != dev);
            }
            (11, _, Some(key)) => {
                kernel.routes.remove(&key);
            }
            (12, _, Some(key)) => {
                kernel.routes.insert(key, SeenRoute::Other);
            }
            (13, ..) => {
                let seen = Route { target: Target::Unreachable, source: None, mtu: None };
                kernel.routes.insert(RouteKey::new(40000, cidr("10.99.0.0/24")), SeenRoute::Known(seen));
            }
            (14, ..) => kernel.rules.retain(|r| !braid_node_core::ours::rule(r) || r.rule.priority != 3210),
            (15, ..) => {
                if let Some(rule) = kernel.rules.iter().find(|r| braid_node_core::ours::rule(r)).cloned() {
                    kernel.rules.push(rule);
                    kernel.rules.sort();
                }
            }
            (16, ..) => kernel.nft = None,
            (17, ..) => {
                if let Some(chain) = kernel.nft.as_mut().and_then(|t| t.chains.values_mut().next()) {
                    chain.rules.insert(0, String::new());
                }
            }
            (20, ..) => {
                kernel.proxies.retain(|_, protocol| *protocol != 176);
            }
            (21, ..) => {
                for host in [9, 77] {
                    let key = ProxyKey { dev: name("eth0"), addr: ip(&format!("10.30.0.{host}")) };
                    kernel.proxies.insert(key, 176);
                }
            }
            (22, ..) => kernel.rules.retain(|r| !braid_node_core::ours::rule(r) || r.rule.priority < 3229),
            (18, ..) => {
                for set in kernel.nft.iter_mut().flat_map(|t| t.sets.values_mut()).filter(|s| !s.interval) {
                    set.elements.pop_first();
                    set.elements.insert(Element::Mac(name("braid9999999999"), Mac::derived(b"z")));
                }
            }
            _ => {
                for entry in kernel.fdb.values_mut() {
                    entry.dsts.insert(ip("192.168.1.99"));
                    entry.permanent = self.kind.is_multiple_of(2);
                }
                kernel.sysctls.clear();
            }
        }
    }
}

fn on(kernel: &mut Actual, link: &IfName, f: impl FnOnce(&mut SeenLink)) {
    if let Some(seen) = kernel.links.get_mut(link) {
        f(seen);
    }
}

/// Keeps only what can be compared between kernels that came to the same state by different ways.
pub(crate) fn essence(mut kernel: Actual) -> Actual {
    // Parameters are never taken back.
    kernel.sysctls.clear();
    kernel.neighs.retain(|_, s| s.permanent);
    kernel
}
