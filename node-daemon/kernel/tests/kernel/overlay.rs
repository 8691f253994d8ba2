//! Two nodes, real VXLAN, real packets.

use std::net::IpAddr;

use braid_node_core::view::NodeView;
use braid_types::model::Encapsulation;

use crate::lab::{Node, Pod, add_network, blue, ip, network, pings, reaches, two_nodes};

const NODES: [(&str, u8); 2] = [("a", 1), ("b", 2)];

fn pods(a: &mut Node, b: &mut Node) -> Vec<Pod> {
    vec![
        a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]),
        a.pod("a2", "blue", &["10.244.1.3", "fd00:244:0:1::3"]),
        b.pod("b1", "blue", &["10.244.2.2", "fd00:244:0:2::2"]),
        b.pod("b2", "blue", &["10.244.2.3", "fd00:244:0:2::3"]),
    ]
}

fn all_reach_all(pods: &[Pod], options: [&str; 2]) {
    for from in pods {
        for to in pods {
            for (v6, options) in [(false, options[0]), (true, options[1])] {
                let (name, ip) = (&from.attachment.pod.name, to.ip(v6));
                assert!(reaches(&from.ns, options, ip), "{name} does not reach {ip} with {options}");
            }
        }
    }
}

#[test]
fn pods_and_nodes_reach_each_other_in_both_families() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    let pods = pods(&mut a, &mut b);
    a.resync();
    b.resync();
    all_reach_all(&pods, ["", ""]);
    // 1500 less 50 for the tunnel; less 28 and 48 for ICMP and its IP header: whole packets, not one byte more.
    all_reach_all(&pods, ["-M do -s 1422", "-M do -s 1402"]);
    assert!(!pings(&pods[0].ns, "-M do -s 1423", pods[2].ip(false)));
    for node in [&a, &b] {
        for pod in &pods {
            assert!(reaches(&node.ns, "", pod.ip(false)) && reaches(&node.ns, "", pod.ip(true)));
        }
    }
    // A probe of the own pod comes from the node's address; a request to a remote pod from the tunnel's.
    let source = |to: &str| a.ns.sh(&format!("ip route get {to}"));
    assert!(source("10.244.1.2").contains("src 192.168.50.1"), "{}", source("10.244.1.2"));
    assert!(source("10.244.2.2").contains("src 10.244.1.1"), "{}", source("10.244.2.2"));
    assert!(source("fd00:244:0:1::2").contains("src 2001:db8:50::1"));
    assert!(source("fd00:244:0:2::2").contains("src fd00:244:0:1::1"));
    // Pods reach both nodes' own ends of the overlay.
    assert!(reaches(&pods[0].ns, "", ip("10.244.2.1")) && reaches(&pods[0].ns, "", ip("fd00:244:0:1::1")));
}

#[test]
fn the_kernel_looks_as_the_design_says() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    let pods = pods(&mut a, &mut b);
    let rules = a.ns.sh("ip rule");
    assert!(rules.contains("3200:\tfrom all lookup 39999 proto 176"), "{rules}");
    assert!(rules.contains("3210:\tfrom all lookup 40000 proto 176"), "{rules}");
    let local = a.ns.sh("ip route show table 39999");
    let host_if = &pods[0].attachment.host_if;
    assert!(
        local.contains(&format!("10.244.1.2 dev {host_if} proto 176 scope link src 192.168.50.1")),
        "{local}"
    );
    let overlay = a.ns.sh("ip route show table 40000");
    assert!(
        overlay.contains("10.244.2.0/26 via 10.244.2.1 dev eth0.vxlan4 proto 176 src 10.244.1.1 onlink"),
        "{overlay}"
    );
    assert!(overlay.contains("unreachable 10.244.1.0/26 proto 176"), "{overlay}");
    assert!(overlay.contains("unreachable 10.244.0.0/16 proto 176"), "{overlay}");
    let overlay6 = a.ns.sh("ip -6 route show table 40000");
    assert!(
        overlay6.contains(
            "fd00:244:0:2::/64 via fd00:244:0:2::1 dev eth0.vxlan4 proto 176 src fd00:244:0:1::1 metric 1024 onlink"
        ),
        "{overlay6}"
    );
    let device = a.ns.sh("ip -d link show eth0.vxlan4");
    for part in
        ["vxlan id 4 local 192.168.50.1 dev eth0", "dstport 8472", "nolearning", "mtu 1450", "alias braid:"]
    {
        assert!(device.contains(part), "{part} is not in: {device}");
    }
    let mac = b.ns.sh("cat /proc/self/net/dev >/dev/null; ip -o link show eth0.vxlan4");
    let mac = mac.split("link/ether ").nth(1).and_then(|s| s.split(' ').next()).expect("MAC");
    let neighs = a.ns.sh("ip neigh show dev eth0.vxlan4; ip -6 neigh show dev eth0.vxlan4");
    assert!(neighs.contains(&format!("10.244.2.1 lladdr {mac} PERMANENT")), "{neighs}");
    assert!(neighs.contains(&format!("fd00:244:0:2::1 lladdr {mac} PERMANENT")), "{neighs}");
    let fdb = a.ns.sh("bridge fdb show dev eth0.vxlan4");
    assert!(fdb.contains(&format!("{mac} dst 192.168.50.2 self permanent")), "{fdb}");
    assert!(!fdb.contains("00:00:00:00:00:00"), "{fdb}");
    let addrs = a.ns.sh("ip -o addr show dev eth0.vxlan4");
    assert!(addrs.contains("10.244.1.1/32") && addrs.contains("fd00:244:0:1::1/128"), "{addrs}");
    assert!(!addrs.contains("fe80"), "{addrs}");

    let pod = &pods[0].ns;
    let routes = pod.sh("ip route; ip -6 route");
    assert!(routes.contains("default via 169.254.1.1 dev eth0 proto 176 onlink mtu 1450"), "{routes}");
    assert!(routes.contains("default via fe80::ecee:eeff:feee:eeee dev eth0 proto 176"), "{routes}");
    let neighs = pod.sh("ip neigh; ip -6 neigh");
    assert!(neighs.contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"), "{neighs}");
    assert!(
        neighs.contains("fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee")
            && !neighs.contains("FAILED"),
        "{neighs}"
    );
    let own = pod.sh("ip -o addr show dev eth0");
    assert!(own.contains("10.244.1.2/32") && own.contains("fd00:244:0:1::2/128"), "{own}");
}

#[test]
fn cross_subnet_goes_straight_where_a_link_is_shared() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::CrossSubnet, false));
    let pods = pods(&mut a, &mut b);
    let overlay = a.ns.sh("ip route show table 40000");
    assert!(overlay.contains("10.244.2.0/26 via 192.168.50.2 dev eth0 proto 176"), "{overlay}");
    // The other family has no address of the remote node to go to, so it stays in the tunnel.
    assert!(a.ns.sh("ip -6 route show table 40000").contains("via fd00:244:0:2::1 dev eth0.vxlan4"));
    all_reach_all(&pods, ["", ""]);
    a.resync();
}

#[test]
fn two_networks_side_by_side() {
    let green = network("green", 5, Encapsulation::Always);
    let (mut a, mut b) = two_nodes(|v| {
        blue(v, &NODES, Encapsulation::Always, false);
        add_network(v, &NODES, &green, 245, false);
    });
    let blue_pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    let green_pod = b.pod("b1", "green", &["10.245.2.2", "fd00:245:0:2::2"]);
    for v6 in [false, true] {
        assert!(reaches(&blue_pod.ns, "", green_pod.ip(v6)));
        assert!(reaches(&green_pod.ns, "", blue_pod.ip(v6)));
    }
    // A network that goes takes its own things along and leaves the other's.
    for node in [&mut a, &mut b] {
        node.view.networks.remove("blue");
        node.resync();
        let links = node.ns.sh("ip -o link");
        assert!(!links.contains("eth0.vxlan4") && links.contains("eth0.vxlan5"), "{links}");
    }
}

#[test]
fn an_address_outside_its_block_is_reached_by_a_route_of_its_own() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    let here = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    // From a's block, on b.
    let moved = b.pod("moved", "blue", &["10.244.1.9", "fd00:244:0:1::9"]);
    assert!(!pings(&here.ns, "", moved.ip(false)), "an address that nobody is known to have is unreachable");
    for addr in &moved.attachment.addresses {
        let place = braid_node_core::view::HostRouted { network: "blue".into(), node: "b".into() };
        a.view.host_routed.insert(*addr, place);
    }
    a.resync();
    for v6 in [false, true] {
        assert!(reaches(&here.ns, "", moved.ip(v6)) && reaches(&moved.ns, "", here.ip(v6)));
    }
}

#[test]
fn a_node_without_ipv6_gets_ipv4_alone() {
    let mut node = Node::new("a");
    node.ns.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    node.kernel = node.ns.run(|| braid_node_kernel::Kernel::open().expect("open"));
    node.view.families = node.kernel.families().clone();
    node.ns.sh("ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up");
    node.ns.sh("ip addr add 192.168.50.1/24 dev eth0; ip route add default via 192.168.50.254");
    blue(&mut node.view, &NODES, Encapsulation::Always, false);
    node.resync();
    assert!(!node.ns.sh("ip -6 rule 2>&1 || true").contains("39999"));
    let pod = node.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    node.resync();
    assert!(reaches(&node.ns, "", pod.ip(false)));
}

#[test]
fn an_ipv6_underlay_carries_both_families() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    for node in [&mut a, &mut b] {
        node.ns.sh("ip -4 addr flush dev eth0");
        node.look();
    }
    let all: std::collections::BTreeMap<_, _> =
        [&a, &b].map(|n| (n.view.node.clone(), crate::lab::published(&n.view))).into();
    a.view.nodes = all.clone();
    b.view.nodes = all;
    a.resync();
    b.resync();
    assert!(a.ns.sh("ip -d link show eth0.vxlan4").contains("local 2001:db8:50::1"));
    let pods = pods(&mut a, &mut b);
    all_reach_all(&pods, ["-M do -s 1402", "-M do -s 1382"]);
}

/// Index of the tunnel: a device that is made anew has another one.
fn tunnel(node: &Node) -> String {
    node.ns.sh("ip -o link show eth0.vxlan4 | cut -d: -f1")
}

#[test]
fn a_family_that_joins_later_leaves_the_other_ones_packets_alone() {
    let only_v4 = |v: &mut NodeView| {
        blue(v, &NODES, Encapsulation::Always, false);
        v.subnets.remove("blue-IPv6");
        v.vteps.values_mut().for_each(|own| own.retain(IpAddr::is_ipv4));
    };
    let (mut a, mut b) = two_nodes(only_v4);
    let pods = [a.pod("a1", "blue", &["10.244.1.2"]), b.pod("b1", "blue", &["10.244.2.2"])];
    let before = tunnel(&a);
    for node in [&mut a, &mut b] {
        let v6 = crate::lab::subnet("blue", "fd00:244::/48", false);
        node.view.subnets.insert(v6.name.clone(), v6);
        node.resync();
    }
    assert!(reaches(&pods[0].ns, "", pods[1].ip(false)), "while the nodes' IPv6 addresses are awaited");
    for node in [&mut a, &mut b] {
        blue(&mut node.view, &NODES, Encapsulation::Always, false);
        node.resync();
    }
    assert!(reaches(&pods[0].ns, "", pods[1].ip(false)));
    assert_eq!(tunnel(&a), before, "the tunnel was made anew");
}

#[test]
fn an_address_of_the_parent_that_goes_and_comes_back_costs_no_tunnel() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    a.view.node_ips = vec![ip("192.168.50.1")];
    let pods = pods(&mut a, &mut b);
    let (before, tables) = (tunnel(&a), "ip route show table 40000; ip -6 route show table 40000");
    let routes = a.ns.sh(tables);
    // All addresses and the default route; IPv4 alone, where IPv6 would do for a tunnel.
    for away in ["ip addr flush dev eth0 scope global", "ip addr del 192.168.50.1/24 dev eth0"] {
        a.ns.sh(away);
        a.resync();
        assert_eq!((tunnel(&a), a.ns.sh(tables)), (before.clone(), routes.clone()), "after {away}");
        a.ns.sh(
            "ip addr replace 192.168.50.1/24 dev eth0; ip addr replace 2001:db8:50::1/64 dev eth0 nodad; \
             ip route replace default via 192.168.50.254; ip -6 route replace default via 2001:db8:50::fe",
        );
        a.resync();
        assert_eq!((tunnel(&a), a.ns.sh(tables)), (before.clone(), routes.clone()));
        all_reach_all(&pods, ["", ""]);
    }
}
