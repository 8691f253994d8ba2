//! Many objects at once.

use braid_node_core::view::HostRouted;
use braid_types::model::{Encapsulation, NodeDef, NodeNetworkDef, VtepDef};
use braid_types::{Mac, block_name};

use crate::lab::{Node, block, blue, ip, subnet, two_nodes};

const REMOTES: u32 = 2500;

/// A cluster in which `a` has many peers, each with one block per family.
fn big() -> (Node, Node) {
    let (mut a, b) = two_nodes(|v| blue(v, &[("a", 1), ("b", 2)], Encapsulation::Always, false));
    a.view.subnets.clear();
    let (v4, v6) = (subnet("blue", "10.0.0.0/8", false), subnet("blue", "fd00:244::/32", false));
    for i in 0..REMOTES {
        let node = format!("n{i}");
        let (x, y) = (i / 250 + 10, i % 250);
        let blocks = [
            block(&v4, &format!("10.{x}.{y}.0/26"), &node),
            block(&v6, &format!("fd00:244:{x}:{y}::/64"), &node),
        ];
        assert_eq!(blocks[0].name, block_name(&v4.name, &blocks[0].cidr));
        a.view.blocks.extend(blocks.map(|b| (b.name.clone(), b)));
        let vtep = VtepDef {
            ip: ip(&format!("172.16.{}.{}", i / 250, i % 250)),
            links: vec![],
            mac: Mac::derived(node.as_bytes()),
            addresses: vec![ip(&format!("10.{x}.{y}.1")), ip(&format!("fd00:244:{x}:{y}::1"))],
        };
        let network =
            NodeNetworkDef { network: "blue".into(), ready: true, parent: None, mtu: None, vtep: Some(vtep) };
        a.view.nodes.insert(node.clone(), NodeDef { node, networks: vec![network] });
    }
    a.view.subnets.extend([v4, v6].map(|s| (s.name.clone(), s)));
    (a, b)
}

#[test]
fn five_thousand_routes_and_neighbours_come_and_go() {
    let (mut a, _b) = big();
    a.resync();
    let count = |command: &str| a.ns.sh(command).trim().parse::<u32>().expect("number");
    let blocks = |node: &Node| node.ns.sh("ip route show table 40000 | grep -c via").trim().to_owned();
    // And the other node of the small cluster.
    assert_eq!(blocks(&a), (REMOTES + 1).to_string());
    assert_eq!(count("ip -6 route show table 40000 | grep -c via"), REMOTES + 1);
    assert_eq!(count("bridge fdb show dev eth0.vxlan4 | wc -l"), REMOTES + 1);
    assert_eq!(count("ip -4 neigh show nud permanent dev eth0.vxlan4 | wc -l"), REMOTES + 1);
    assert_eq!(count("ip -6 neigh show nud permanent dev eth0.vxlan4 | wc -l"), REMOTES + 1);

    // Half of the nodes go, one block moves.
    let gone: Vec<String> = (0..REMOTES / 2).map(|i| format!("n{i}")).collect();
    a.view.nodes.retain(|name, _| !gone.contains(name));
    a.view.host_routed.insert(ip("10.99.9.9"), HostRouted { network: "blue".into(), node: "n2000".into() });
    a.resync();
    assert_eq!(blocks(&a), (REMOTES - REMOTES / 2 + 2).to_string());
    let report = a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    assert!(report.is_clean());
    assert_eq!(a.ns.sh("ip route show table all | grep -c 'proto 176' || true").trim(), "0");
}

#[test]
fn one_bad_step_among_many_is_named_and_the_others_are_done() {
    let (mut a, _b) = two_nodes(|v| blue(v, &[("a", 1), ("b", 2)], Encapsulation::Always, false));
    a.view.subnets.values_mut().for_each(|s| s.nat_outgoing = true);
    a.look();
    let mut plan = a.plan();
    use braid_node_core::desired::{Route, RouteKey, Target};
    use braid_node_core::plan::Step;
    let route = |source: &str| Route { target: Target::Unreachable, source: Some(ip(source)), mtu: None };
    let key = |dst: &str| RouteKey::new(40000, crate::lab::cidr(dst));
    let bad = Step::PutRoute(
        key("10.77.0.0/24"),
        Route {
            target: Target::Via { gateway: ip("10.0.0.1"), dev: "nowhere0".parse().expect("name") },
            ..route("10.244.1.1")
        },
    );
    let worse = Step::PutRoute(
        key("10.78.0.0/24"),
        Route {
            target: Target::Via { gateway: ip("10.244.1.1"), dev: "eth0.vxlan4".parse().expect("name") },
            source: Some(ip("192.0.2.1")),
            mtu: None,
        },
    );
    plan.steps.splice(0..0, [bad.clone(), worse.clone()]);
    let report = a.apply(&plan);
    let failed: Vec<&Step> = report.failed.iter().map(|f| &*f.step).collect();
    assert_eq!(failed, [&bad, &worse]);
    assert_eq!(report.done, plan.steps.len() - 2);
    assert_eq!(report.failed[0].error.to_string(), "device nowhere0 does not exist");
    let cause = std::error::Error::source(&report.failed[1].error).expect("cause").to_string();
    assert!(cause.contains("Invalid"), "the kernel's own words are kept: {cause}");
    assert!(a.plan().is_empty());
}

#[test]
fn a_bare_namespace_is_set_up_and_left_bare() {
    // No address, no route: the kernel has not even made its main table.
    let mut node = Node::new("a");
    let rules = node.ns.sh("ip rule; ip -6 rule");
    let plan = node.resync();
    assert!(!plan.is_empty());
    let report = node.ns.run(|| node.kernel.uninstall()).expect("uninstall");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(node.ns.sh("ip rule; ip -6 rule"), rules);
    assert_eq!(node.ns.sh("nft list ruleset"), "");
}
