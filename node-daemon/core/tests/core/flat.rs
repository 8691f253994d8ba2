//! Untagged Networks: what a member node must hold, and in which order.

use std::collections::BTreeSet;

use braid_node_core::actual::Actual;
use braid_node_core::attach;
use braid_node_core::desired::{Desired, ProxyKey, RouteKey, Rule, Target};
use braid_node_core::overlay::NotReady;
use braid_node_core::plan::{Step, diff};
use braid_node_core::underlay::{Underlay, realise};
use braid_node_core::view::{HostLink, NodeView, wires};
use braid_types::model::SubnetDef;
use braid_types::{Cidr, Family, VlanId};

use crate::model::apply;
use crate::world::{add_office, cidr, desk_of, host, ip, name};

const V4: &str = "10.20.0.";
const V6: &str = "fd20::";

/// A host in 192.168.1.0/24 and 2001:db8::/64 with the Network `office` in other prefixes.
fn view() -> NodeView {
    let mut view = NodeView { node: "a".into(), families: Family::ALL.into(), ..NodeView::default() };
    let eth0 = HostLink {
        mtu: 1500,
        up: true,
        addrs: vec![(ip("192.168.1.1"), 24), (ip("2001:db8::1"), 64)],
        default_route: Family::ALL.into(),
        outward: true,
    };
    view.links.insert(name("eth1"), HostLink { default_route: BTreeSet::new(), mtu: 9000, ..eth0.clone() });
    view.links.insert(name("eth0"), eth0);
    add_office(&mut view, V4, V6);
    view
}

fn with_desk(mut view: NodeView) -> NodeView {
    let desk = desk_of(1, V4, V6);
    view.attachments.insert(desk.host_if.clone(), desk);
    view
}

fn office(view: &NodeView) -> Result<Underlay, NotReady> {
    realise(view)["office"].clone()
}

fn proxy(addr: &str) -> ProxyKey {
    ProxyKey { dev: name("eth0"), addr: ip(addr) }
}

fn kernel_of(view: &NodeView) -> Actual {
    let mut kernel = host();
    kernel.proxies.clear();
    kernel.links.insert(name("eth1"), kernel.links[&name("eth0")].clone());
    apply(kernel.clone(), &diff(&Desired::of(view), &kernel))
}

#[test]
fn each_subnet_has_its_rule_its_table_and_each_pod_its_proxies() {
    let desired = Desired::of(&with_desk(view()));
    let from = |prefix: &str, table| {
        let from = cidr(prefix);
        Rule { family: from.family(), priority: 3230, table, from: Some(from) }
    };
    let selecting: Vec<&Rule> = desired.rules.iter().filter(|r| r.from.is_some()).collect();
    assert_eq!(selecting, [&from("10.20.0.0/24", 10001), &from("fd20::/64", 10002)]);
    let eth0 = name("eth0");
    for (table, prefix, gateway) in [(10001, "10.20.0.0/24", "10.20.0.254"), (10002, "fd20::/64", "fd20::fe")]
    {
        let target = |dst| desired.routes[&RouteKey::new(table, dst)].target.clone();
        let all = Cidr::containing(cidr(prefix).family().unspecified(), 0).expect("a prefix");
        assert_eq!(target(cidr(prefix)), Target::OnLink { dev: eth0.clone() });
        assert_eq!(target(all), Target::Via { gateway: ip(gateway), dev: eth0.clone() });
    }
    assert_eq!(desired.proxies, [proxy("10.20.0.101"), proxy("fd20::101")].into());
    for (path, value) in [
        ("ipv4/neigh/eth0/proxy_delay", "0"),
        ("ipv6/neigh/eth0/proxy_delay", "0"),
        ("ipv6/conf/eth0/proxy_ndp", "1"),
        ("ipv4/ip_forward", "1"),
    ] {
        assert_eq!(desired.sysctls[path].value, value, "{path}");
    }
    assert!(desired.fdb.is_empty() && desired.neighs.values().count() == 2, "nobody else has to be known");
    // A node without pods of the Subnet is a member all the same.
    assert_eq!(Desired::of(&view()).rules, desired.rules);
}

#[test]
fn a_node_within_the_prefix_goes_on_by_its_own_routes() {
    let mut view = view();
    add_office(&mut view, "192.168.1.", "2001:db8::");
    let rules = Desired::of(&view).rules;
    for (address, priority, table) in
        [("192.168.1.1/32", 3229, 254), ("2001:db8::1/128", 3229, 254), ("192.168.1.0/24", 3230, 10001)]
    {
        let from = cidr(address);
        let rule = Rule { family: from.family(), priority, table, from: Some(from) };
        assert!(rules.contains(&rule), "{rule:?} is not in {rules:#?}");
    }
}

#[test]
fn the_device_and_the_mtu_are_the_hosts() {
    let mut view = view();
    let seen = |view: &NodeView| {
        office(view).map(|u| (u.parent.to_string(), u.mtu, u.hindrance)).map_err(|why| why.reason())
    };
    assert_eq!(seen(&view), Ok(("eth0".into(), 1500, None)));
    let network = |view: &mut NodeView| view.networks.get_mut("office").expect("office").clone();
    let mut def = network(&mut view);
    def.interfaces = vec!["bond*".parse().expect("pattern"), "*1".parse().expect("pattern")];
    view.networks.insert("office".into(), def.clone());
    assert_eq!(seen(&view), Ok(("eth1".into(), 9000, None)));
    def.mtu = Some(1400);
    view.networks.insert("office".into(), def.clone());
    assert_eq!(seen(&view), Ok(("eth1".into(), 1400, None)));
    view.links.get_mut(&name("eth1")).expect("eth1").addrs.remove(0);
    assert_eq!(seen(&view), Err("NoParentAddress"), "ARP needs a sender");
    def.interfaces.truncate(1);
    view.networks.insert("office".into(), def.clone());
    assert_eq!(seen(&view), Err("NoParentDevice"));
    assert_eq!(
        office(&view).expect_err("no such device").to_string(),
        "no device of this node fits bond*; have: eth0, eth1"
    );
    def.interfaces.clear();
    def.vlan = VlanId::try_from(20).ok();
    view.networks.insert("office".into(), def);
    assert_eq!(seen(&view), Err("NotSupported"));
}

#[test]
fn what_is_attached_stays_while_the_device_cannot_be_told() {
    let mut view = with_desk(view());
    let kernel = kernel_of(&view);
    view.wires = wires(&kernel);
    assert_eq!(view.wires, [(10001, name("eth0")), (10002, name("eth0"))].into());
    view.links.get_mut(&name("eth0")).expect("eth0").default_route.clear();
    let hindered = office(&view).expect("kept");
    assert_eq!(hindered.hindrance.as_ref().map(NotReady::reason), Some("NoParentDevice"));
    assert!(!hindered.published().ready, "new pods wait");
    assert!(diff(&Desired::of(&view), &kernel).is_empty());
    // Without routes of before there is nothing to keep.
    view.wires.clear();
    assert_eq!(office(&view).map_err(|why| why.reason()), Err("NoParentDevice"));
}

#[test]
fn of_two_subnets_on_one_table_the_older_has_it() {
    let mut view = view();
    let rival = SubnetDef { created: 9, cidr: cidr("10.21.0.0/24"), ..view.subnets["office-IPv4"].clone() };
    let rival = SubnetDef { name: "aaa".into(), gateway: Some(ip("10.21.0.1")), ..rival };
    view.subnets.insert("aaa".into(), rival.clone());
    let hindered = office(&view).expect("the other Subnets are routed");
    assert_eq!(hindered.hindrance, Some(NotReady::WaitingForTable { subnet: "aaa".into() }));
    let tables: Vec<(u32, String)> =
        hindered.segments.iter().map(|s| (s.table, s.cidr.to_string())).collect();
    assert_eq!(tables, [(10001, "10.20.0.0/24".into()), (10002, "fd20::/64".into())]);
    view.subnets.insert("aaa".into(), SubnetDef { routing_table: Some(10003), ..rival });
    assert_eq!(office(&view).map(|u| (u.segments.len(), u.hindrance)), Ok((3, None)));
}

#[test]
fn pods_of_a_subnet_that_is_no_longer_in_force_keep_what_they_have() {
    let mut view = with_desk(view());
    for subnet in view.subnets.values_mut() {
        subnet.ready = false;
    }
    let desired = Desired::of(&view);
    let senders: Vec<String> = desired.rules.iter().filter_map(|r| r.from).map(|f| f.to_string()).collect();
    assert_eq!(senders, ["10.20.0.101/32", "fd20::101/128"]);
    assert_eq!(desired.proxies.len(), 2);
    view.attachments.clear();
    let desired = Desired::of(&view);
    assert!(desired.rules.iter().all(|r| r.from.is_none()), "{:?}", desired.rules);
}

#[test]
fn nobody_answers_for_an_address_that_is_elsewhere() {
    let mut view = with_desk(view());
    let kernel = kernel_of(&view);
    for attachment in view.attachments.values_mut() {
        attachment.silent = attachment.addresses.clone();
    }
    let desired = Desired::of(&view);
    assert!(desired.proxies.is_empty());
    // The machine has moved: no answers any more before anything else, and after the way back answers with word of it.
    let plan = diff(&desired, &kernel);
    assert_eq!(plan.steps[0], Step::DelProxy(proxy("10.20.0.101")));
    let moved = apply(kernel, &plan);
    let back = diff(&Desired::of(&with_desk(self::view())), &moved).steps;
    let at = |wanted: &Step| {
        back.iter().position(|s| s == wanted).unwrap_or_else(|| panic!("{wanted}: {back:#?}"))
    };
    let key = proxy("10.20.0.101");
    let route =
        back.iter().position(|s| matches!(s, Step::PutRoute(k, _) if k.table == 39999)).expect("route");
    assert!(route < at(&Step::PutProxy(key.clone())));
    assert!(at(&Step::PutProxy(key.clone())) < at(&Step::Announce(key)));
}

#[test]
fn an_interface_is_answered_for_once_packets_find_it() {
    let view = with_desk(view());
    let attachment = view.attachments.values().next().expect("a pod");
    let steps = attach::steps(&attach::wire(&view, attachment));
    let tail: Vec<String> = steps[steps.len() - 6..].iter().map(ToString::to_string).collect();
    assert_eq!(
        tail,
        [
            "write route to 10.20.0.101/32 in table 39999",
            "write route to fd20::101/128 in table 39999",
            "answer for 10.20.0.101 on eth0",
            "answer for fd20::101 on eth0",
            "announce 10.20.0.101 on eth0",
            "announce fd20::101 on eth0",
        ]
    );
    let undone: Vec<Step> = steps.iter().rev().filter_map(Step::undo).collect();
    assert_eq!(undone[0], Step::DelProxy(proxy("fd20::101")), "nobody is sent to an interface that goes");
    let own = |addresses: &[&str]| attach::own_address(&view, &addresses.iter().map(|a| ip(a)).collect());
    assert_eq!(own(&["10.20.0.5", "2001:db8::1"]), Some(ip("2001:db8::1")));
    assert_eq!(own(&["10.20.0.5"]), None);
}

#[test]
fn proxies_of_an_interface_that_nobody_can_name_stay() {
    let mut view = with_desk(view());
    let kernel = kernel_of(&view);
    let desk = view.attachments.pop_first().expect("a pod").0;
    view.spared.insert(desk);
    let plan = diff(&Desired::of(&view), &kernel);
    assert!(plan.is_empty(), "{plan:#?}");
}

#[test]
fn flat_addresses_are_not_inside_the_cluster_for_masquerading() {
    let desired = Desired::of(&view());
    let table = desired.nft.expect("a table");
    for set in ["cluster4", "cluster6", "nat-outgoing4", "nat-outgoing6"] {
        assert!(table.sets[set].elements.is_empty(), "{set}");
    }
}
