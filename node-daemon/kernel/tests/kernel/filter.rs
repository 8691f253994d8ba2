//! The table `inet braid`, with packets.

use braid_types::model::Encapsulation;

use crate::lab::{blue, ip, pings, reaches, two_nodes};

const NODES: [(&str, u8); 2] = [("a", 1), ("b", 2)];

#[test]
fn a_forged_source_goes_no_further() {
    let (mut a, mut b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    let bad = a.pod("bad", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    let other = a.pod("other", "blue", &["10.244.1.3", "fd00:244:0:1::3"]);
    let far = b.pod("far", "blue", &["10.244.2.2", "fd00:244:0:2::2"]);
    let forged = || {
        let chain = a.ns.sh("nft list chain inet braid anti-spoofing");
        let line = chain.lines().find(|l| l.contains("forged source")).expect("rule").to_owned();
        let packets = line.split("packets ").nth(1).and_then(|s| s.split(' ').next()).expect("counter");
        packets.parse::<u64>().expect("number")
    };
    let far_v4 = far.ip(false);
    assert!(reaches(&bad.ns, "", far_v4) && reaches(&bad.ns, "", far.ip(true)));
    let before = forged();

    // Another pod's address, an address of nobody, another family's: each is dropped and counted.
    bad.ns.sh("ip addr add 10.244.1.3/32 dev eth0; ip addr add 192.0.2.9/32 dev eth0");
    bad.ns.sh("ip -6 addr add fd00:244:0:1::3/128 dev eth0 nodad");
    let mut seen = before;
    for (source, to) in [("10.244.1.3", far_v4), ("192.0.2.9", far_v4), ("fd00:244:0:1::3", far.ip(true))] {
        assert!(!pings(&bad.ns, &format!("-I {source}"), to), "{source}");
        assert!(forged() > seen, "{source} was not counted");
        seen = forged();
    }
    assert!(reaches(&bad.ns, "-I 10.244.1.2", far_v4), "the own address still works");

    // Another hardware address.
    let mac = bad.attachment.mac;
    // (A device that gets another one forgets its neighbours.)
    let gateway = "ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent";
    bad.ns.sh(&format!("ip link set eth0 address 02:00:00:00:00:99; {gateway}"));
    assert!(!pings(&bad.ns, "-I 10.244.1.2", far_v4));
    assert!(forged() > seen);
    bad.ns.sh(&format!("ip link set eth0 address {mac}; {gateway}"));
    assert!(reaches(&bad.ns, "-I 10.244.1.2", far_v4));

    // An interface that no set knows is refused as a whole, also when it uses an address that is right elsewhere.
    let wiring = a.wiring(&other);
    a.ns.sh("nft flush set inet braid pods4");
    assert!(!pings(&other.ns, "", far_v4));
    a.resync();
    assert!(reaches(&other.ns, "", far_v4));
    assert_eq!(a.ns.run(|| a.kernel.check(&wiring)).expect("check"), []);
}

#[test]
fn pods_leave_the_cluster_by_the_nodes_address_only_where_asked() {
    for nat in [true, false] {
        let (mut a, b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, nat));
        let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
        // Outside the cluster: addresses that only node b has, and that no subnet holds.
        b.ns.sh("ip addr add 198.51.100.1/32 dev lo; ip -6 addr add 2001:db8:99::1/128 dev lo nodad");
        a.ns.sh(
            "ip route add 198.51.100.1 via 192.168.50.2; ip -6 route add 2001:db8:99::1 via 2001:db8:50::2",
        );
        b.ns.sh(
            "nft add table inet watch; nft add chain inet watch in '{ type filter hook input priority 0; }'; \
             nft add rule inet watch in ip saddr 192.168.50.1 icmp type echo-request counter; \
             nft add rule inet watch in ip6 saddr 2001:db8:50::1 icmpv6 type echo-request counter; \
             nft add rule inet watch in ip saddr 10.244.1.2 icmp type echo-request counter; \
             nft add rule inet watch in ip6 saddr fd00:244:0:1::2 icmpv6 type echo-request counter",
        );
        assert!(reaches(&pod.ns, "", ip("198.51.100.1")) && reaches(&pod.ns, "", ip("2001:db8:99::1")));
        // Inside the cluster nothing is ever hidden.
        assert!(reaches(&pod.ns, "", ip("10.244.2.1")));
        let counters: Vec<bool> =
            b.ns.sh("nft list chain inet watch in")
                .lines()
                .filter(|l| l.contains("counter"))
                .map(|l| !l.contains("packets 0 "))
                .collect();
        // The last ping reaches node b's own end of the overlay from the pod's address in both cases.
        assert_eq!(counters, if nat { [true, true, true, false] } else { [false, false, true, true] });
    }
}

#[test]
fn nft_shows_the_table_as_it_is_meant() {
    let (mut a, _b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, true));
    let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    let table = a.ns.sh("nft list table inet braid");
    let (host, mac) = (&pod.attachment.host_if, pod.attachment.mac);
    for part in [
        "type ifname . ether_addr . ipv4_addr",
        "type ifname . ether_addr . ipv6_addr",
        &format!("\"{host}\" . {mac} . 10.244.1.2"),
        &format!("\"{host}\" . {mac} . fd00:244:0:1::2"),
        "elements = { 10.244.0.0/16 }",
        "elements = { fd00:244::/48 }",
        "type filter hook prerouting priority raw; policy accept;",
        "type nat hook postrouting priority srcnat; policy accept;",
        "iifgroup != 176 accept",
        "iifname . ether saddr . ip saddr @pods4 accept",
        "iifname . ether saddr . ip6 saddr @pods6 accept",
        "ip6 saddr fe80::/10 icmpv6 type nd-neighbor-solicit accept",
        "ip6 saddr fe80::/10 icmpv6 type nd-neighbor-advert accept",
        "ip6 saddr :: icmpv6 type nd-neighbor-solicit accept",
        "ip saddr @nat-outgoing4 ip daddr != @cluster4",
        "ip6 saddr @nat-outgoing6 ip6 daddr != @cluster6",
        "masquerade fully-random",
    ] {
        assert!(table.contains(part), "`{part}` is not in:\n{table}");
    }
    // What nft writes it also reads: the listing can be loaded elsewhere.
    let elsewhere = crate::lab::Namespace::new();
    let file = tempfile::NamedTempFile::new().expect("temp file");
    std::fs::write(file.path(), &table).expect("write");
    elsewhere.sh(&format!("nft -f {}", file.path().display()));
}
