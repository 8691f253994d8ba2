//! Everything of ours that somebody deletes or changes is noticed and comes back.

use std::time::Duration;

use braid_node_kernel::Dirty;
use braid_types::model::Encapsulation;

use crate::lab::{Node, Pod, blue, two_nodes};
use crate::pod::snapshot;

const NODES: [(&str, u8); 2] = [("a", 1), ("b", 2)];

fn node_with_pod() -> (Node, Node, Pod) {
    let (mut a, b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, true));
    let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    a.resync();
    (a, b, pod)
}

fn commands(pod: &Pod) -> Vec<String> {
    let host = &pod.attachment.host_if;
    let mac = pod.attachment.mac;
    let vtep = "10.244.2.1";
    let fixed = [
        "ip link del eth0.vxlan4",
        "ip link set eth0.vxlan4 down",
        "ip link set eth0.vxlan4 mtu 1300",
        "ip link set eth0.vxlan4 address 02:11:11:11:11:11",
        "ip link set eth0.vxlan4 alias mine",
        "ip link set eth0.vxlan4 group 5",
        "ip link set eth0.vxlan4 down; ip link set eth0.vxlan4 name renamed0; ip link set renamed0 up",
        "ip link set eth0.vxlan4 addrgenmode eui64",
        "ip link set eth0.vxlan4 type vxlan learning",
        "ip link del eth0.vxlan4; ip link add eth0.vxlan4 type vxlan id 4 dev eth0 local 192.168.50.1 dstport 4789",
        "ip addr del 10.244.1.1/32 dev eth0.vxlan4",
        "ip -6 addr del fd00:244:0:1::1/128 dev eth0.vxlan4",
        "ip addr add 10.244.1.50/32 dev eth0.vxlan4",
        "ip addr flush dev eth0.vxlan4",
        "ip rule del pref 3200",
        "ip rule del pref 3210",
        "ip -6 rule del pref 3200",
        "ip -6 rule del pref 3210",
        "ip rule add pref 3200 lookup 40000 protocol 176",
        "ip rule add pref 3215 lookup 40000 protocol 176",
        "ip route flush table 39999",
        "ip route flush table 40000",
        "ip -6 route flush table 39999",
        "ip -6 route flush table 40000",
        "ip route del 10.244.2.0/26 table 40000",
        "ip route del unreachable 10.244.1.0/26 table 40000",
        "ip route replace 10.244.2.0/26 via 192.168.50.254 dev eth0 table 40000",
        "ip route replace 10.244.2.0/26 via 192.168.50.254 dev eth0 table 40000 proto 176",
        "ip route replace blackhole 10.244.2.0/26 table 40000 proto 176",
        "ip -6 route replace fd00:244:0:2::/64 via 2001:db8:50::9 dev eth0 table 40000 proto 176",
        "ip route add 10.244.77.0/26 dev eth0 table 40000 proto 176",
        "ip neigh flush dev eth0.vxlan4 nud permanent",
        "bridge fdb append 02:00:00:00:00:05 dev eth0.vxlan4 dst 192.168.50.7 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev eth0.vxlan4 dst 192.168.50.7 self permanent",
        "nft delete table inet braid",
        "nft flush ruleset",
        "nft flush chain inet braid anti-spoofing",
        "nft insert rule inet braid anti-spoofing accept",
        "nft delete chain inet braid postrouting",
        "nft add chain inet braid extra",
        "nft flush set inet braid cluster4",
        "nft add element inet braid nat-outgoing4 '{ 192.0.2.0/24 }'",
        "nft flush set inet braid pods6",
        "nft flush set inet braid pod-macs",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv4.conf.eth0/vxlan4.rp_filter=1",
        "sysctl -qw net.ipv6.conf.eth0/vxlan4.disable_ipv6=1",
    ];
    let mut all: Vec<String> = fixed.map(str::to_owned).into();
    all.extend([
        format!("ip link set {host} down"),
        format!("ip link set {host} mtu 1300"),
        format!("ip link set {host} address 02:11:11:11:11:11"),
        format!("ip link set {host} alias mine"),
        format!("ip link set {host} group 5"),
        format!("ip link del {host}"),
        format!("ip link set {host} down; ip link set {host} name renamed0"),
        format!("ip link set {host} master br9"),
        format!("ip neigh del 10.244.1.2 dev {host}"),
        format!("ip -6 neigh del fd00:244:0:1::2 dev {host}"),
        format!("ip neigh replace 10.244.1.2 lladdr 02:11:11:11:11:11 dev {host} nud permanent"),
        format!("ip neigh replace {vtep} lladdr 02:11:11:11:11:11 dev eth0.vxlan4 nud permanent"),
        format!("ip neigh replace {vtep} lladdr 02:11:11:11:11:11 dev eth0.vxlan4 nud stale"),
        format!("ip -6 addr flush dev {host}"),
        format!("ip route replace 10.244.1.2 dev {host} table 39999"),
        format!("nft delete element inet braid pods4 '{{ {host} . {mac} . 10.244.1.2 }}'"),
        format!("nft add element inet braid pods4 '{{ {host} . {mac} . 10.244.1.99 }}'"),
        "m=$(bridge fdb show dev eth0.vxlan4 | cut -d' ' -f1); bridge fdb del $m dev eth0.vxlan4 dst 192.168.50.2 self"
            .to_owned(),
        "m=$(bridge fdb show dev eth0.vxlan4 | cut -d' ' -f1); bridge fdb replace $m dev eth0.vxlan4 dst 192.168.50.9 self permanent"
            .to_owned(),
    ]);
    all
}

#[test]
fn every_single_thing_is_noticed_and_comes_back() {
    let (mut a, _b, pod) = node_with_pod();
    a.ns.sh("ip link add br9 address 02:00:00:00:00:09 type bridge");
    let good = snapshot(&a);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let monitor = a.ns.run(|| a.kernel.monitor()).expect("monitor");
    let next =
        |patience| runtime.block_on(async { tokio::time::timeout(patience, monitor.changed()).await.ok() });
    for command in commands(&pod) {
        a.ns.sh(&command);
        let dirty = next(Duration::from_secs(5));
        assert!(dirty.is_some_and(|d| !d.is_clean() && !d.lost), "not noticed: {command}");
        let plan = a.resync();
        assert!(!plan.is_empty(), "no plan after: {command}");
        assert_eq!(snapshot(&a), good, "after: {command}");
        drain(&next);
    }
}

/// The kernel's own echo of a repair (a device gets its carrier) may still come.
fn drain(next: &impl Fn(Duration) -> Option<Dirty>) {
    while next(Duration::from_millis(100)).is_some() {}
}

#[test]
fn own_changes_are_not_reported() {
    let (mut a, _b, _pod) = node_with_pod();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let monitor = a.ns.run(|| a.kernel.monitor()).expect("monitor");
    let mut pods = Vec::new();
    for i in 10..20 {
        pods.push(a.pod(
            &format!("p{i}"),
            "blue",
            &[&format!("10.244.1.{i}"), &format!("fd00:244:0:1::{i}")],
        ));
    }
    a.view.blocks.clear();
    a.resync();
    // A change by another hand is the proof that the monitor has read all that came before it.
    a.ns.sh("ip rule add pref 3100 lookup main");
    let dirty = runtime.block_on(async {
        let mut all = Dirty::default();
        while !all.rules {
            let one = tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.expect("noticed");
            all = Dirty {
                rules: one.rules,
                routes: all.routes | one.routes,
                nft: all.nft | one.nft,
                neighs: all.neighs | one.neighs,
                fdb: all.fdb | one.fdb,
                ..all
            };
        }
        all
    });
    assert_eq!(dirty, Dirty { rules: true, ..Dirty::default() });
}

#[test]
fn what_breaks_after_events_were_lost_is_noticed_too() {
    let (mut a, _b, _pod) = node_with_pod();
    let good = snapshot(&a);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    // Room for a message or two.
    let monitor = a.ns.run(|| a.kernel.monitor_with_room(1)).expect("monitor");
    let next =
        |patience| runtime.block_on(async { tokio::time::timeout(patience, monitor.changed()).await.ok() });
    let burst = "for i in $(seq 200); do echo route add 10.7.$i.0/24 dev eth0 table 40000 proto 176; \
                 echo route del 10.7.$i.0/24 dev eth0 table 40000 proto 176; done | ip -batch -";
    let lost = (0..50).any(|_| {
        a.ns.sh(burst);
        next(Duration::from_secs(5)).is_some_and(|d| d.lost)
    });
    assert!(lost, "the buffer was never too small");
    drain(&next);
    for (command, neighbour) in [
        (
            "m=$(bridge fdb show dev eth0.vxlan4 | cut -d' ' -f1); \
             bridge fdb replace $m dev eth0.vxlan4 dst 192.168.50.9 self permanent",
            false,
        ),
        ("ip neigh replace 10.244.2.1 lladdr 02:11:11:11:11:11 dev eth0.vxlan4 nud permanent", true),
    ] {
        a.ns.sh(command);
        let dirty = next(Duration::from_secs(5)).expect("not noticed");
        assert!(if neighbour { dirty.neighs } else { dirty.fdb } && !dirty.lost, "{dirty:?} after {command}");
        a.resync();
        assert_eq!(snapshot(&a), good);
        drain(&next);
    }
}
