//! Attaching, detaching and checking one pod.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use braid_node_core::view::NamespaceId;
use braid_node_kernel::{KernelError, Side};
use braid_types::model::Encapsulation;

use crate::lab::{Namespace, Node, blue, two_nodes};

const NODES: [(&str, u8); 2] = [("a", 1), ("b", 2)];

/// A node, and the other end of its wire.
fn node() -> (Node, Node) {
    two_nodes(|v| blue(v, &NODES, Encapsulation::Always, false))
}

/// Everything that one node's kernel shows, without counters.
pub(crate) fn snapshot(node: &Node) -> String {
    node.ns.sh(
        "ip -o link | sed 's/@[^:]*//; s/qdisc.*mode/mode/; s/^[0-9]*: //' | sort; ip -o addr | sed 's/^[0-9]*: //' | sort; ip rule; ip -6 rule; \
         for t in 39999 40000; do ip route show table $t; ip -6 route show table $t; done 2>/dev/null; \
         ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort; \
         bridge fdb show dev eth0.vxlan4 | sort; nft list table inet braid | sed 's/packets [0-9]* bytes [0-9]*//'; \
         sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.eth0/vxlan4.rp_filter",
    )
}

#[test]
fn attach_and_detach_leave_nothing_behind() {
    let (mut a, _b) = node();
    let before = snapshot(&a);
    let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    let wiring = a.wiring(&pod);
    assert_eq!(a.ns.run(|| a.kernel.check(&wiring)).expect("check"), []);
    assert!(a.plan().is_empty(), "ADD and the loop disagree: {:#?}", a.plan());

    let host_if = pod.attachment.host_if.clone();
    for known in [Some(&wiring), None] {
        a.ns.run(|| a.kernel.detach(&host_if, known, &BTreeSet::new())).expect("detach");
        assert_eq!(snapshot(&a), before);
    }
    // Without the wiring, the elements are found by device.
    a.ns.run(|| a.kernel.attach(&wiring)).expect("attach again");
    a.ns.run(|| a.kernel.detach(&host_if, None, &BTreeSet::new())).expect("detach");
    assert_eq!(snapshot(&a), before);
}

#[test]
fn a_failed_attach_is_undone() {
    let (a, _b) = node();
    let before = snapshot(&a);
    // The name is taken in the pod.
    let pod = a.unattached("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    pod.ns.sh("ip link add eth0 type veth peer name other");
    let wiring = a.wiring(&pod);
    let error = a.ns.run(|| a.kernel.attach(&wiring)).expect_err("the name is taken");
    assert_eq!(error.error.errno(), Some(nix::libc::EEXIST), "{error:?}");
    assert!(matches!(error.error, KernelError::NameTaken { place: Side::Pod, .. }), "{error:?}");
    assert_eq!(snapshot(&a), before);

    // The namespace is gone.
    let mut gone = wiring.clone();
    gone.pod.netns = "/proc/self/fd/99999".into();
    let error = a.ns.run(|| a.kernel.attach(&gone)).expect_err("no namespace");
    assert_eq!(error.error.errno(), Some(nix::libc::ENOENT), "{error:?}");
    assert!(matches!(error.error, KernelError::NamespaceGone { .. }), "{error:?}");
    assert_eq!(snapshot(&a), before);

    // The last step fails: the route's source is no address of this node.
    pod.ns.sh("ip link del eth0");
    let mut bad = wiring.clone();
    bad.routes.values_mut().for_each(|r| r.source = Some("192.0.2.1".parse().expect("address")));
    bad.routes.retain(|k, _| k.dst.family() == braid_types::Family::V4);
    let error = a.ns.run(|| a.kernel.attach(&bad)).expect_err("bad source");
    assert!(error.error.to_string().contains("10.244.1.2"), "{error:?}");
    assert!(std::error::Error::source(&error.error).is_some());
    assert!(error.left.is_empty(), "{:?}", error.left);
    assert_eq!(snapshot(&a), before);

    // And the same pod can be attached afterwards.
    a.ns.run(|| a.kernel.attach(&wiring)).expect("attach");
}

#[test]
fn check_names_each_thing_that_was_changed() {
    let (mut a, _b) = node();
    let pod = a.pod("a1", "blue", &["10.244.1.2", "fd00:244:0:1::2"]);
    let (wiring, host) = (a.wiring(&pod), pod.attachment.host_if.clone());
    let mac = pod.attachment.mac;
    let cases = [
        (false, "ip addr del 10.244.1.2/32 dev eth0".to_owned(), "10.244.1.2"),
        (false, "ip -6 addr del fd00:244:0:1::2/128 dev eth0".to_owned(), "fd00:244:0:1::2"),
        (false, "ip route del default".to_owned(), "0.0.0.0/0"),
        (false, "ip -6 route del default".to_owned(), "::/0"),
        (false, "ip neigh del 169.254.1.1 dev eth0".to_owned(), "169.254.1.1"),
        (false, "ip link set eth0 address 02:00:00:00:00:77".to_owned(), "MAC"),
        (false, "ip link set eth0 mtu 1400".to_owned(), "MTU"),
        (true, format!("ip neigh del 10.244.1.2 dev {host}"), "10.244.1.2"),
        (true, "ip route del 10.244.1.2 table 39999".to_owned(), "10.244.1.2"),
        (true, "ip -6 route del fd00:244:0:1::2 table 39999".to_owned(), "fd00:244:0:1::2"),
        (true, "ip rule del pref 3200".to_owned(), "10.244.1.2"),
        (true, format!("nft delete element inet braid pods4 '{{ {host} . {mac} . 10.244.1.2 }}'"), "pods4"),
        (true, format!("ip link del {host}"), "missing"),
    ];
    for (on_host, command, named) in cases {
        assert_eq!(a.ns.run(|| a.kernel.check(&wiring)).expect("check"), [], "before {command}");
        let ns = if on_host { &a.ns } else { &pod.ns };
        ns.sh(&command);
        let found = a.ns.run(|| a.kernel.check(&wiring)).expect("check");
        assert!(found.iter().any(|m| m.what.contains(named)), "{command}: {found:?}");
        a.ns.run(|| a.kernel.detach(&host, Some(&wiring), &BTreeSet::new())).expect("detach");
        a.resync();
    }
}

#[test]
fn a_pair_whose_maker_died_half_way_is_recognised() {
    let (mut a, _b) = node();
    // Made, but not yet given its alias.
    a.ns.sh("ip link add braid0123456789 group 176 type veth peer name left");
    let plan = a.resync();
    assert_eq!(plan.steps.len(), 1, "{:?}", plan.steps);
    assert!(!a.ns.sh("ip -o link").contains("braid0123456789"));
}

#[test]
fn many_attach_at_once() {
    let (mut a, _b) = node();
    let pods: Vec<_> = (2..34)
        .map(|i| {
            a.unattached(&format!("p{i}"), "blue", &[&format!("10.244.1.{i}"), &format!("fd00:244:0:1::{i}")])
        })
        .collect();
    let wirings: Vec<_> = pods.iter().map(|p| a.wiring(p)).collect();
    a.ns.run(|| {
        std::thread::scope(|scope| {
            for wiring in &wirings {
                let kernel = &a.kernel;
                scope.spawn(move || kernel.attach(wiring).expect("attach"));
            }
        });
    });
    for pod in &pods {
        a.view.attachments.insert(pod.attachment.host_if.clone(), pod.attachment.clone());
    }
    assert!(a.plan().is_empty(), "{:?}", a.plan());
    a.view.attachments.clear();
    a.resync();
    assert!(!a.ns.sh("ip -o link").contains(": braid"));
}

#[test]
fn a_thread_returns_from_another_namespace_whatever_happens_there() {
    let here = || std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
    let (before, other) = (here(), crate::lab::Namespace::new());
    assert_ne!(other.run(here), before);
    assert_eq!(here(), before);
    let path = other.path();
    let within = |f: fn()| braid_node_kernel::netns::within(&path, f);
    let panicked = std::panic::catch_unwind(|| within(|| panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(here(), before);
    let error = braid_node_kernel::netns::within(std::path::Path::new("/proc/self/status"), || ());
    assert!(error.expect_err("no namespace").to_string().contains("/proc/self/status"));
    assert_eq!(here(), before);
}

#[test]
fn a_path_that_leads_elsewhere_is_refused() {
    let (mut a, _b) = node();
    let mut pod = a.unattached("a1", "blue", &["10.244.1.2"]);
    let other = Namespace::new();
    let file = std::fs::metadata(other.path()).expect("namespace");
    pod.attachment.netns_id = Some(NamespaceId { dev: file.dev(), ino: file.ino() });
    let before = snapshot(&a);
    let wiring = a.wiring(&pod);
    let error = a.ns.run(|| a.kernel.attach(&wiring)).expect_err("not the pod's namespace");
    assert!(matches!(error.error, KernelError::OtherNamespace { .. }), "{error:?}");
    assert_eq!(snapshot(&a), before);
    assert!(!pod.ns.sh("ip -o link").contains("eth0"));

    pod.attachment.netns = other.path().display().to_string();
    let wiring = a.wiring(&pod);
    a.ns.run(|| a.kernel.attach(&wiring)).expect("the pod's namespace");
    assert!(other.sh("ip -o link").contains("eth0"));
    a.view.attachments.insert(pod.attachment.host_if.clone(), pod.attachment.clone());
    a.resync();
}
