//! An untagged Network on two nodes that share a wire with a router: pods are found on it, by neighbours and by the
//! kernel's own tools.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use braid_node_core::desired::ProxyKey;
use braid_node_core::plan::{Plan, Step};

use crate::lab::{Node, Pod, ip, office, pings, reaches, two_nodes, wait_until};

const WAIT: Duration = Duration::from_millis(150);

/// Two members on one wire.
fn members() -> (Node, Node) {
    two_nodes(office)
}

/// A node whose neighbour is the router of the Subnets and nothing of ours.
fn member_and_router() -> (Node, Node) {
    let (mut a, b) = members();
    b.ns.run(|| b.kernel.uninstall()).expect("uninstall");
    b.ns.sh("ip addr add 10.20.0.254/24 dev eth0; ip addr add fd20::fe/64 dev eth0 nodad");
    a.resync();
    (a, b)
}

const BOTH: [&str; 2] = ["10.20.0.5", "fd20::5"];

/// The hardware address under which a host knows another one.
fn known(host: &Node, address: IpAddr) -> String {
    let line = host.ns.sh(&format!("ip neigh show {address} dev eth0"));
    line.split(" lladdr ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
}

fn mac_of(node: &Node) -> String {
    let line = node.ns.sh("ip -o link show eth0");
    line.split(" link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a MAC").to_owned()
}

fn proxies(node: &Node) -> String {
    node.ns.sh("ip neigh show proxy; ip -6 neigh show proxy")
}

fn all_pairs(pods: &[&Pod]) {
    for from in pods {
        for to in pods {
            for v6 in [false, true] {
                let largest = if v6 { "-M do -s 1452" } else { "-M do -s 1472" };
                assert!(reaches(&from.ns, largest, to.ip(v6)), "{} cannot reach {}", from.ip(v6), to.ip(v6));
            }
        }
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_with_whole_frames() {
    let (mut a, mut b) = members();
    let pods = [
        a.pod("a1", "office", &BOTH),
        a.pod("a2", "office", &["10.20.0.6", "fd20::6"]),
        b.pod("b1", "office", &["10.20.0.7", "fd20::7"]),
    ];
    assert_eq!(pods[0].attachment.mtu, 1500);
    all_pairs(&pods.each_ref());
    // What ADD has made is what the loop wants.
    assert!(a.resync().is_empty() && b.resync().is_empty());
    let rules = a.ns.sh("ip rule; ip -6 rule");
    assert!(rules.contains("3230:\tfrom 10.20.0.0/24 lookup 10001 proto 176"), "{rules}");
    assert!(rules.contains("3230:\tfrom fd20::/64 lookup 10002 proto 176"), "{rules}");
    let table = a.ns.sh("ip route show table 10001; ip -6 route show table 10002");
    for part in [
        "10.20.0.0/24 dev eth0",
        "default via 10.20.0.254 dev eth0",
        "fd20::/64 dev eth0",
        "default via fd20::fe dev eth0",
    ] {
        assert!(table.contains(part), "no {part} in {table}");
    }
}

#[test]
fn the_router_reaches_pods_and_is_told_where_they_are() {
    let (mut a, router) = member_and_router();
    // It remembers somebody else under these addresses, and does not ask again by itself.
    for address in BOTH {
        router.ns.sh(&format!("ip neigh replace {address} dev eth0 lladdr 02:00:00:00:00:99 nud reachable"));
    }
    let pod = a.pod("a1", "office", &BOTH);
    for address in BOTH.map(ip) {
        wait_until("the announcement to be heard", || known(&router, address) == mac_of(&a));
    }
    for v6 in [false, true] {
        assert!(reaches(&router.ns, "", pod.ip(v6)));
        let router_address = if v6 { "fd20::fe" } else { "10.20.0.254" };
        assert!(reaches(&pod.ns, "", ip(router_address)), "the pod reaches its router");
    }
    // Neighbours that know nothing find it by asking.
    router.ns.sh("ip neigh flush dev eth0");
    assert!(BOTH.map(ip).into_iter().all(|address| reaches(&router.ns, "", address)));
}

#[test]
fn an_interface_that_goes_is_answered_for_no_more() {
    let (mut a, router) = member_and_router();
    let pod = a.pod("a1", "office", &BOTH);
    let other = a.pod("a2", "office", &["10.20.0.6", "fd20::6"]);
    let wiring = a.wiring(&pod);
    let found = a.ns.run(|| a.kernel.check(&wiring)).expect("check");
    assert_eq!(found, []);
    a.ns.sh("ip neigh del proxy 10.20.0.5 dev eth0");
    let found = a.ns.run(|| a.kernel.check(&wiring)).expect("check");
    assert_eq!(found.len(), 1, "{found:?}");
    a.resync();
    // Known or not how it was wired: the addresses tell, and where even those are not known, the routes to the device.
    let both = &pod.attachment.addresses;
    for (wiring, addresses) in [(Some(&wiring), both), (None, both), (None, &BTreeSet::new())] {
        a.resync();
        assert!(proxies(&a).contains("10.20.0.5 ") && proxies(&a).contains("fd20::5 "), "{}", proxies(&a));
        a.ns.run(|| a.kernel.detach(&pod.attachment.host_if, wiring, addresses)).expect("detach");
        assert!(!proxies(&a).contains("10.20.0.5 ") && !proxies(&a).contains("fd20::5 "), "{}", proxies(&a));
        assert!(proxies(&a).contains("10.20.0.6 ") && proxies(&a).contains("fd20::6 "), "{}", proxies(&a));
    }
    a.view.attachments.remove(&pod.attachment.host_if);
    assert!(a.resync().is_empty(), "nothing is left of it");
    router.ns.sh("ip neigh flush dev eth0");
    assert!(!pings(&router.ns, "", ip("10.20.0.5")));
    assert!(reaches(&router.ns, "", other.ip(true)));
    let report = a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    assert!(report.is_clean(), "{report:?}");
    let left =
        proxies(&a) + &a.ns.sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all");
    assert!(!left.contains("176") && !left.contains("10001"), "{left}");
}

#[test]
fn what_is_broken_by_hand_comes_back_and_what_is_foreign_stays() {
    let (mut a, _router) = member_and_router();
    let _pod = a.pod("a1", "office", &BOTH);
    let foreign = [
        "ip neigh add proxy 10.20.0.77 dev eth0",
        "ip -6 neigh add proxy fd20::77 dev eth0 protocol static",
        "ip rule add pref 3230 from 10.20.0.0/24 lookup 500 protocol static",
        "ip rule add pref 3230 from 10.20.0.0/24 iif lo lookup 10001 protocol 176",
        "ip rule add pref 3215 from 10.20.0.0/24 lookup 10001 protocol 176",
        "ip -6 rule add pref 3231 from fd20::/64 lookup 10002 protocol 176",
        "ip route add blackhole 10.20.9.0/24 table 10001 proto static",
    ];
    for command in foreign {
        a.ns.sh(command);
    }
    let everything = "ip rule; ip -6 rule; ip route show table 10001; ip -6 route show table 10002; \
                      ip neigh show proxy | sort; ip -6 neigh show proxy | sort; \
                      cat /proc/sys/net/ipv6/conf/eth0/proxy_ndp /proc/sys/net/ipv4/neigh/eth0/proxy_delay";
    let good = a.ns.sh(everything);
    for command in [
        "ip rule del pref 3230 from 10.20.0.0/24 lookup 10001 protocol 176",
        "ip -6 rule del pref 3230",
        "ip rule add pref 3230 from 10.99.0.0/24 lookup 10001 protocol 176",
        "ip route flush table 10001 proto 176",
        "ip -6 route flush table 10002",
        "ip route replace default via 10.20.0.253 dev eth0 onlink table 10001 proto 176",
        "ip neigh del proxy 10.20.0.5 dev eth0",
        "ip -6 neigh del proxy fd20::5 dev eth0",
        "ip neigh add proxy 10.20.0.99 dev eth0 protocol 176",
        "ip neigh replace proxy 10.20.0.5 dev eth0 protocol static",
        "sysctl -qw net.ipv6.conf.eth0.proxy_ndp=0",
        "sysctl -qw net.ipv4.neigh.eth0.proxy_delay=80",
    ] {
        a.ns.sh(command);
        let plan = a.resync();
        assert!(!plan.is_empty(), "no plan after: {command}");
        let now = a.ns.sh(everything);
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&now), sorted(&good), "after: {command}");
    }
    // With a device that goes down the kernel drops proxies, whoever made them, and routes.
    let ours = |node: &Node| {
        let all = node.ns.sh(everything);
        all.lines().filter(|line| line.contains("176")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = ours(&a);
    a.ns.sh("ip link set eth0 down; ip link set eth0 up; ip addr add 2001:db8:50::1/64 dev eth0 nodad; \
         ip route add default via 192.168.50.254; ip -6 route replace default via 2001:db8:50::fe");
    assert_ne!(ours(&a), before);
    a.resync();
    assert_eq!(ours(&a), before);
}

#[test]
fn the_nodes_own_packets_go_as_before() {
    let (mut a, _b) = two_nodes(|view| {
        office(view);
        let subnet = view.subnets.values_mut().next().expect("a subnet");
        *subnet = braid_types::model::SubnetDef {
            cidr: crate::lab::cidr("192.168.50.0/24"),
            gateway: Some(ip("192.168.50.253")),
            ..subnet.clone()
        };
    });
    a.resync();
    let rules = a.ns.sh("ip rule");
    assert!(rules.contains("3229:\tfrom 192.168.50.1 lookup main proto 176"), "{rules}");
    let way = |from: &str| {
        a.ns.sh(&format!(
            "ip route get 203.0.113.1 from {from} iif eth0 2>&1 || ip route get 203.0.113.1 from {from}"
        ))
    };
    let own = a.ns.sh("ip route get 203.0.113.1 from 192.168.50.1");
    assert!(own.contains("via 192.168.50.254"), "the host's own router: {own}");
    let of_pod = way("192.168.50.20");
    assert!(of_pod.contains("via 192.168.50.253"), "the Subnet's router: {of_pod}");
}

#[test]
fn somebody_who_has_an_address_already_is_found() {
    let (a, b) = member_and_router();
    let addresses: BTreeSet<IpAddr> = BOTH.map(ip).into();
    let probe =
        || a.ns.run(|| a.kernel.probe(&"eth0".parse().expect("name"), &addresses, WAIT)).expect("probe");
    assert_eq!(probe(), None, "nobody has them");
    for (address, prefix) in [("10.20.0.5", 24), ("fd20::5", 64)] {
        b.ns.sh(&format!("ip addr add {address}/{prefix} dev eth0 nodad"));
        let holder = probe().unwrap_or_else(|| panic!("nobody found at {address}"));
        assert_eq!((holder.address, holder.mac.to_string()), (ip(address), mac_of(&b)));
        b.ns.sh(&format!("ip addr del {address}/{prefix} dev eth0"));
    }
    // The question alone has taught nobody anything.
    assert_eq!(BOTH.map(ip).map(|address| known(&b, address)), ["", ""]);
}

#[test]
fn a_node_that_answers_for_others_counts_as_nobody() {
    let (mut a, b) = members();
    let key = |address: &str| ProxyKey { dev: "eth0".parse().expect("name"), addr: ip(address) };
    // A node that has fallen silent towards the cluster, and whose kernel goes on.
    let stale = Plan { steps: BOTH.map(|address| Step::PutProxy(key(address))).into(), ..Plan::default() };
    assert!(b.apply(&stale).is_clean());
    let addresses: BTreeSet<IpAddr> = BOTH.map(ip).into();
    let dev = "eth0".parse().expect("name");
    assert_eq!(a.ns.run(|| a.kernel.probe(&dev, &addresses, WAIT)).expect("probe"), None);
    a.pod("a1", "office", &BOTH);
    for node in [&a, &b] {
        let proxies = node.ns.sh("ip neigh show proxy; ip -6 neigh show proxy");
        assert!(BOTH.iter().all(|address| proxies.contains(address)), "{proxies}");
    }
}

#[test]
fn what_cannot_be_announced_is_said() {
    let (a, _) = members();
    let key = ProxyKey { dev: "nope0".parse().expect("name"), addr: ip(BOTH[0]) };
    let error = a.ns.run(|| a.kernel.announce(&key)).expect_err("a device that does not exist");
    assert!(error.to_string().contains("nope0"), "{error}");
}
