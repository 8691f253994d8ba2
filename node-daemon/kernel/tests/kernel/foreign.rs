//! What is not ours stays as it is.

use braid_node_core::plan::{Step, rival};
use braid_node_kernel::Scope;
use braid_types::model::Encapsulation;

use crate::lab::{blue, two_nodes};
use crate::pod::snapshot;

const NODES: [(&str, u8); 2] = [("a", 1), ("b", 2)];

/// Things that look like ours at first sight.
const LOOK_ALIKES: &[&str] = &[
    "ip link add braidge0 type veth peer name braidge1",
    "ip link add braid0000000abc type veth peer name p0",
    "ip link add braid-br type bridge",
    "ip link set braid-br alias braid:not-really",
    "ip link add eth0.vxlan9 type vxlan id 9 dev eth0 local 192.168.50.1 dstport 8472 nolearning",
    "ip link set eth0.vxlan9 up mtu 1400",
    "ip link add guest7 type vxlan id 7 dev eth0 local 192.168.50.1 dstport 8472",
    "ip link set guest7 group 177 up",
    "ip link add guest8 type vxlan id 8 dev eth0 local 192.168.50.1 dstport 8472",
    "ip link set guest8 alias braid:guest up",
    "bridge fdb add 02:00:00:00:00:07 dev guest7 dst 192.168.50.9 self permanent",
    "ip link add guest6 type veth peer name p6",
    "ip link set guest6 group 176 up",
    "ip link add guest5 type veth peer name p5",
    "ip link set guest5 alias braid:guest up",
    "ip addr add 10.99.0.1/32 dev eth0.vxlan9",
    "ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:02 dev eth0.vxlan9 nud permanent",
    "bridge fdb add 02:00:00:00:00:02 dev eth0.vxlan9 dst 192.168.50.9 self permanent",
    "ip route add 10.99.0.0/24 dev eth0.vxlan9 table 40000",
    "ip route add 10.99.1.0/24 dev eth0.vxlan9 table 40000 proto 177",
    "ip -6 route add fd99::/64 dev eth0.vxlan9 table 39999 proto static",
    "ip route add 10.99.2.0/24 dev eth0.vxlan9 table 5000 proto 176",
    "ip route add 10.99.3.0/24 dev eth0 proto 176",
    "ip rule add pref 3200 lookup 39999",
    "ip rule add pref 3205 fwmark 0x40/0x40 lookup main protocol 176",
    "ip rule add pref 3220 from 10.9.0.0/16 lookup 40001 protocol 176",
    "ip rule add pref 3190 lookup 40000 protocol 176",
    "ip -6 rule add pref 3210 lookup 40000 protocol static",
    "nft add table inet braid2",
    "nft add table ip braid",
    "nft add chain ip braid mine",
    "nft add rule ip braid mine counter",
    "ip addr add 192.168.50.77/24 dev eth0",
    "ip neigh add 192.168.50.88 lladdr 02:00:00:00:00:88 dev eth0 nud permanent",
];

#[test]
fn look_alikes_survive_resync_and_uninstall() {
    let (mut a, _b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    let everything = "ip -o -d link | sed 's/qdisc.*mode/mode/' | sort; ip -o addr | sort; ip rule; ip -6 rule; ip route show table all | sort; \
                      ip -6 route show table all | sort; ip neigh show nud permanent | sort; \
                      bridge fdb show | sort; nft list ruleset";
    // Braid came second: what was there before is there after it has gone.
    let report = a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    assert!(report.is_clean(), "{report:?}");
    for command in LOOK_ALIKES {
        a.ns.sh(command);
    }
    let before = a.ns.sh(everything);
    for part in ["39999", "eth0.vxlan4", "inet braid {"] {
        let left = before.lines().find(|l| l.contains(part) && !l.contains("proto static"));
        let ours = left.filter(|l| l.contains("proto 176") && !l.contains("lookup"));
        assert_eq!(ours, None, "uninstall left something");
    }
    a.resync();
    let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    a.resync();
    let report = a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    assert!(report.is_clean(), "{report:?}");
    let after = a.ns.sh(everything);
    assert_eq!(before, after);
    drop(pod);

    // And Braid came first: they may be added to a running node.
    a.view.attachments.clear();
    a.resync();
    let with_both = snapshot(&a);
    let plan = a.resync();
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(snapshot(&a), with_both);
}

#[test]
fn a_foreign_device_under_our_name_is_named_and_left_alone() {
    let (mut a, _b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    a.ns.sh("ip link add eth0.vxlan4 type veth peer name whatever");
    let before = a.ns.sh("ip -o link show eth0.vxlan4; ip -o addr show eth0.vxlan4");
    a.look();
    let plan = a.plan();
    assert_eq!(plan.conflicts.len(), 1);
    assert!(plan.conflicts[0].to_string().contains("eth0.vxlan4"), "{}", plan.conflicts[0]);
    let report = a.apply(&plan);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(!report.is_clean());
    assert_eq!(a.ns.sh("ip -o link show eth0.vxlan4; ip -o addr show eth0.vxlan4"), before);
    assert!(!a.ns.sh("ip route show table 40000").contains("eth0.vxlan4"));
}

#[test]
fn a_foreign_device_with_our_vni_is_named() {
    let (mut a, _b) = two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false));
    a.ns.run(|| a.kernel.uninstall()).expect("uninstall");
    a.ns.sh("ip link add other0 type vxlan id 4 dev eth0 local 192.168.50.1 dstport 8472");
    a.look();
    let plan = a.plan();
    let report = a.apply(&plan);
    let failed = report.failed.first().expect("two devices with one VNI");
    assert!(failed.error.already_exists(), "{report:?}");
    let Step::AddVxlan(wanted) = &*failed.step else { panic!("{failed:?}") };
    let actual = a.ns.run(|| a.kernel.dump(&Scope::links())).expect("dump");
    assert_eq!(rival(wanted, &actual).map(ToString::to_string).as_deref(), Some("other0"));
}
