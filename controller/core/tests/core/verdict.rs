//! What the webhook lets through.

use std::collections::BTreeMap;

use braid_controller_core::Ipam;
use braid_controller_core::gc::findings;
use braid_controller_core::verdict::{Change, OffLimits, Standing, verdict, warning};
use braid_types::model::{BlockDef, InstanceDef, NetworkDef, NetworkType, OwnerRef, Phase, SubnetDef};
use proptest::prelude::*;

use crate::cluster::{give, lists, network, ranges, request, start, subnet};

fn answer(ipam: &Ipam, change: Change<'_>) -> String {
    verdict(change, ipam).map_or_else(|s| s.to_string(), |()| "ok".to_owned())
}

fn contains(answer: &str, part: &str) {
    assert!(answer.contains(part), "`{answer}` says nothing of `{part}`");
}

#[test]
fn networks() {
    let (ipam, _) = start(lists("10.0.0.0/24", "fd00::/120"));
    let overlay = ipam.network("overlay").unwrap().clone();
    let made = |new: &NetworkDef| answer(&ipam, Change::Network { old: None, new: Some(new) });
    assert_eq!(made(&network("other", 5)), "ok");
    contains(
        &made(&NetworkDef { created: 1, ..network("other", 4) }),
        "VNI 4 is used by the older Network overlay",
    );
    contains(
        &made(&NetworkDef { default: true, ..network("other", 5) }),
        "Network overlay is the default already",
    );
    // A type that comes later is no mistake: it is shown as a condition.
    assert_eq!(made(&NetworkDef { kind: NetworkType::Bgp, vxlan: None, ..network("other", 5) }), "ok");
    assert_eq!(answer(&ipam, Change::Network { old: Some(&overlay), new: Some(&overlay) }), "ok");
    contains(
        &answer(&ipam, Change::Network { old: Some(&overlay), new: None }),
        "has Subnets (v4, v6); delete them first",
    );
}

#[test]
fn an_older_network_cannot_push_out_the_default() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.networks.push(NetworkDef { created: 1, ..network("elder", 5) });
    let (ipam, _) = start(all);
    let elder = ipam.network("elder").unwrap().clone();
    let new = NetworkDef { default: true, ..elder.clone() };
    let said = answer(&ipam, Change::Network { old: Some(&elder), new: Some(&new) });
    contains(&said, "would put Network overlay out of force");
}

#[test]
fn subnets() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    for n in 0..5 {
        give(&mut ipam, &restored, &request(n, "n1"));
    }
    let v4 = ipam.subnet("v4").unwrap().clone();
    let made = |new: &SubnetDef| answer(&ipam, Change::Subnet { old: None, new: Some(new) });
    assert_eq!(made(&subnet("s", "overlay", "10.1.0.0/24")), "ok");
    contains(&made(&subnet("s", "overlay", "10.0.0.128/25")), "overlaps 10.0.0.0/24 of the older Subnet v4");
    contains(&made(&subnet("s", "overlay", "10.0.0.0/8")), "overlaps 10.0.0.0/24");
    assert_eq!(made(&subnet("s", "comes-later", "10.1.0.0/24")), "ok", "objects are applied in any order");
    let changed = |new: &SubnetDef| answer(&ipam, Change::Subnet { old: Some(&v4), new: Some(new) });
    assert_eq!(changed(&SubnetDef { ranges: ranges(&["10.0.0.1-10.0.0.5"]), ..v4.clone() }), "ok");
    let shrunk = changed(&SubnetDef { ranges: ranges(&["10.0.0.2-10.0.0.4"]), ..v4.clone() });
    contains(&shrunk, "10.0.0.1 (pod shop/web-0 on node n1), 10.0.0.5 (pod shop/web-4 on node n1)");
    let excluded = changed(&SubnetDef { excluded: ranges(&["10.0.0.0/24"]), ..v4.clone() });
    contains(&excluded, "and 2 more; free them first");
    contains(
        &answer(&ipam, Change::Subnet { old: Some(&v4), new: None }),
        "has 5 addresses in use (for example 10.0.0.1, held by pod shop/web-0 on node n1); delete their pods first",
    );
}

#[test]
fn what_has_lost_already_may_be_changed_in_other_ways() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    let loser = SubnetDef { created: 200, ..subnet("loser", "overlay", "10.0.0.128/25") };
    let twin = NetworkDef { created: 200, ..network("twin", 4) };
    all.subnets.push(loser.clone());
    all.networks.push(twin.clone());
    let (ipam, _) = start(all);
    let changed = SubnetDef { nat_outgoing: true, ..loser.clone() };
    assert_eq!(answer(&ipam, Change::Subnet { old: Some(&loser), new: Some(&changed) }), "ok");
    let mtu = NetworkDef { mtu: Some(1400), ..twin.clone() };
    assert_eq!(answer(&ipam, Change::Network { old: Some(&twin), new: Some(&mtu) }), "ok");
    let worse = SubnetDef { cidr: "10.0.0.0/25".parse().unwrap(), ..loser.clone() };
    contains(&answer(&ipam, Change::Subnet { old: None, new: Some(&worse) }), "overlaps");
}

#[test]
fn a_subnet_without_pods_may_go_though_nodes_have_addresses_in_it() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    for req in ipam.vteps_missing() {
        let grant = ipam.grant_vtep(&restored, &req).unwrap();
        for claim in &grant.claims {
            ipam.upsert_instance(claim.def().clone(), 0);
        }
        ipam.finish(grant);
    }
    let v4 = ipam.subnet("v4").unwrap().clone();
    assert_eq!(answer(&ipam, Change::Subnet { old: Some(&v4), new: None }), "ok");
    let deleting = |s: &SubnetDef| SubnetDef { deleting: true, ..s.clone() };
    let both: Vec<SubnetDef> = ipam.subnets().map(deleting).collect();
    for s in both {
        ipam.upsert_subnet(s);
    }
    let overlay = ipam.network("overlay").unwrap().clone();
    assert_eq!(
        answer(&ipam, Change::Network { old: Some(&overlay), new: None }),
        "ok",
        "they are on their way"
    );
}

#[test]
fn addresses_and_blocks() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let held = &*made[0];
    let deleted = |d: &InstanceDef| answer(&ipam, Change::Instance { old: Some(d), new: None });
    contains(
        &deleted(held),
        "10.0.0.1 is held by pod shop/web-1; delete the pod (kubectl -n shop delete pod web-1)",
    );
    assert_eq!(deleted(&InstanceDef { phase: Phase::Reserved, pod: None, ..held.clone() }), "ok");
    let changed = |new: &InstanceDef| answer(&ipam, Change::Instance { old: Some(held), new: Some(new) });
    assert_eq!(changed(held), "ok");
    for (field, new) in [
        ("spec.pod", InstanceDef { pod: None, ..held.clone() }),
        ("spec.node", InstanceDef { node: Some("n2".into()), ..held.clone() }),
        ("spec.interface", InstanceDef { interface: "net1".into(), ..held.clone() }),
        ("spec.set", InstanceDef { set: Box::default(), ..held.clone() }),
        ("spec.mac", InstanceDef { mac: None, ..held.clone() }),
        ("status", InstanceDef { phase: Phase::Releasing, ..held.clone() }),
        ("status", InstanceDef { torn_down: Some(1), ..held.clone() }),
    ] {
        contains(
            &changed(&new),
            &format!("{field} cannot be changed by hand: 10.0.0.1 is held by pod shop/web-1"),
        );
    }
    let kept = InstanceDef { phase: Phase::Reserved, pod: None, ..held.clone() };
    let other_mac = InstanceDef { mac: None, ..kept.clone() };
    assert_eq!(answer(&ipam, Change::Instance { old: Some(&kept), new: Some(&other_mac) }), "ok");
    let block = ipam.blocks_of("v4").next().unwrap().clone();
    contains(
        &answer(&ipam, Change::Block { old: Some(&block), new: None }),
        "10.0.0.1 is held by pod shop/web-1",
    );
    let wide = BlockDef { name: "x".into(), cidr: "10.0.0.0/28".parse().unwrap(), ..block.clone() };
    contains(&answer(&ipam, Change::Block { old: None, new: Some(&wide) }), "overlaps 10.0.0.0/30");
    let out = BlockDef { name: "x".into(), cidr: "10.1.0.0/30".parse().unwrap(), ..block };
    contains(&answer(&ipam, Change::Block { old: None, new: Some(&out) }), "is not in 10.0.0.0/24");
}

fn objects() -> impl Strategy<Value = (Vec<NetworkDef>, Vec<SubnetDef>)> {
    let net = (0i64..4, 1i64..4, any::<bool>(), any::<bool>());
    let sub = (0i64..4, 0usize..5, 0u8..4, 24u8..28);
    (prop::collection::vec(net, 0..5), prop::collection::vec(sub, 0..8)).prop_map(|(nets, subs)| {
        let nets = nets.into_iter().enumerate().map(|(i, (created, vni, default, deleting))| NetworkDef {
            created,
            default,
            deleting,
            ..network(&format!("n{i}"), vni)
        });
        let subs = subs.into_iter().enumerate().map(|(i, (created, net, third, len))| {
            let cidr =
                braid_types::Cidr::containing(format!("10.0.{third}.{}", i * 16).parse().unwrap(), len);
            SubnetDef { created, ..subnet(&format!("s{i}"), &format!("n{net}"), &cidr.unwrap().to_string()) }
        });
        (nets.collect(), subs.collect())
    })
}

proptest! {
    #[test]
    fn who_is_in_force_depends_on_the_objects_only((nets, subs) in objects(), by in 0usize..8) {
        let standing = Standing::of(&nets, &subs, &[], &BTreeMap::new());
        let (mut other_nets, mut other_subs) = (nets.clone(), subs.clone());
        other_nets.reverse();
        if !other_subs.is_empty() {
            let by = by % other_subs.len();
            other_subs.rotate_left(by);
        }
        prop_assert_eq!(&Standing::of(&other_nets, &other_subs, &[], &BTreeMap::new()), &standing);
        // Nobody in force contradicts anybody else in force.
        let in_force: Vec<&SubnetDef> = subs.iter().filter(|s| standing.subnet(&s.name).is_none()).collect();
        for (i, a) in in_force.iter().enumerate() {
            prop_assert!(in_force[..i].iter().all(|b| !a.cidr.overlaps(&b.cidr)));
        }
        let defaults = nets.iter().filter(|n| {
            n.default && !n.deleting && standing.network(&n.name).is_none() && standing.second_default(&n.name).is_none()
        });
        prop_assert!(defaults.count() <= 1);
        // The oldest of all is never harmed.
        if let Some(oldest) = nets.iter().min_by_key(|n| (n.created, &n.name)) {
            prop_assert_eq!(standing.network(&oldest.name), None);
        }
    }
}

#[test]
fn no_subnet_lies_over_what_the_cluster_uses() {
    let (mut ipam, _) = start(lists("10.0.0.0/24", "fd00::/120"));
    let services =
        OffLimits { cidr: "10.96.0.0/12".parse().unwrap(), what: "the Services of the cluster".into() };
    let effects = ipam.reset_off_limits(vec![services]);
    assert!(effects.subnets.contains("v4"), "all are judged anew");
    let over = SubnetDef { ready: false, ..subnet("over", "overlay", "10.100.0.0/16") };
    let refused = verdict(Change::Subnet { old: None, new: Some(&over) }, &ipam).unwrap_err().to_string();
    for part in ["over", "10.100.0.0/16", "10.96.0.0/12", "the Services of the cluster", "another prefix"] {
        assert!(refused.contains(part), "{refused}");
    }
    ipam.upsert_subnet(over.clone());
    assert_eq!(ipam.standing().subnet("over").map(|l| l.reason), Some("OffLimits"), "the webhook was away");
    // One that pods use already is not taken from them.
    ipam.upsert_subnet(SubnetDef { ready: true, ..over });
    assert!(ipam.standing().subnet("over").is_none());
    assert!(ipam.reset_off_limits(Vec::new()).subnets.contains("v4"));
}

#[test]
fn pods_are_not_cut_off_by_a_selector() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let old = ipam.network("overlay").unwrap().clone();
    let only = |node: &str| {
        let match_labels = [("name".to_owned(), node.to_owned())].into();
        NetworkDef {
            nodes: braid_types::Selector { match_labels, match_expressions: Vec::new() },
            ..old.clone()
        }
    };
    let change = |new: &NetworkDef, ipam: &Ipam| {
        let change = Change::Network { old: Some(&old), new: Some(new) };
        answer(ipam, change)
    };
    let refused = change(&only("n2"), &ipam);
    for part in ["spec.nodeSelector", "pod shop/web-1 on node n1", "move or delete"] {
        contains(&refused, part);
    }
    assert_eq!(change(&only("n1"), &ipam), "ok");
    // Where the webhook was away, or a node's label goes.
    ipam.upsert_network(only("n2"));
    let found = findings(&ipam);
    assert_eq!(found.len(), made.len(), "{found:?}");
    assert!(found[0].message.contains("node n1") && found[0].reason == "NotMember", "{found:?}");
    ipam.remove_pod("pod-1");
    assert_eq!((findings(&ipam).len(), change(&only("n2"), &ipam)), (0, "ok".to_owned()), "nobody is");
}

#[test]
fn no_overlay_lies_over_nodes() {
    let (mut ipam, _) = start(lists("10.0.0.0/24", "fd00::/120"));
    let on = |address: &str| {
        let addresses = vec!["203.0.113.9".parse().unwrap(), address.parse().unwrap()];
        braid_controller_core::NodeFact { addresses, ..crate::cluster::node("n1") }
    };
    ipam.upsert_node(on("192.168.7.11"));
    let over = SubnetDef { ready: false, ..subnet("over", "overlay", "192.168.0.0/16") };
    let refused = verdict(Change::Subnet { old: None, new: Some(&over) }, &ipam).unwrap_err().to_string();
    for part in ["over", "192.168.0.0/16", "192.168.7.11 of node n1", "another prefix"] {
        assert!(refused.contains(part), "{refused}");
    }
    ipam.upsert_subnet(over.clone());
    let loss = |ipam: &braid_controller_core::Ipam| ipam.standing().subnet("over").map(|l| l.reason);
    assert_eq!(loss(&ipam), Some("OffLimits"), "the webhook was away");
    let effects = ipam.upsert_node(on("198.51.100.7"));
    assert_eq!((loss(&ipam), effects.subnets.contains("over")), (None, true), "the node has moved");
    // What pods use already is not taken from them because a node comes.
    ipam.upsert_subnet(SubnetDef { ready: true, ..over });
    ipam.upsert_node(on("192.168.7.11"));
    assert_eq!(loss(&ipam), None);
}

#[test]
fn the_owner_of_an_address_in_use_is_not_changed_by_hand() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let held = (*give(&mut ipam, &restored, &request(1, "n1"))[0]).clone();
    let owner = |name: &str| {
        Some(Box::new(braid_types::model::OwnerRef {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            namespace: "shop".into(),
            name: name.into(),
            uid: "".into(),
            pod: None,
        }))
    };
    let kept = InstanceDef { owner: owner("db"), ..held.clone() };
    let judged = |old: &InstanceDef, new: &InstanceDef| {
        verdict(Change::Instance { old: Some(old), new: Some(new) }, &ipam).map_err(|e| e.to_string())
    };
    assert!(judged(&held, &kept).is_ok(), "an address that a pod has can be kept from now on");
    let mut anew = owner("db");
    anew.as_mut().unwrap().uid = "another".into();
    assert!(judged(&kept, &InstanceDef { owner: anew, ..held.clone() }).is_ok(), "as a backup has it");
    assert!(judged(&kept, &held).is_err(), "it is not given up by hand either");
    let taken = InstanceDef { owner: owner("zz"), ..held.clone() };
    let refused = judged(&kept, &taken).unwrap_err();
    assert!(refused.contains("spec.owner") && refused.contains("shop/web-1"), "{refused}");
}

/// An address that a person declares for the pods of the StatefulSet `shop/db`.
fn declared(name: &str, subnet: &str, prefix_len: u8) -> InstanceDef {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let held = give(&mut ipam, &restored, &request(1, "n1"))[0].clone();
    InstanceDef {
        name: name.parse().unwrap(),
        subnet: subnet.into(),
        prefix_len,
        pod: None,
        node: None,
        set: Box::default(),
        owner: Some(Box::new(set("db", None))),
        phase: Phase::Reserved,
        declared: true,
        ..(*held).clone()
    }
}

fn set(name: &str, pod: Option<&str>) -> OwnerRef {
    OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: "".into(),
        pod: pod.map(Into::into),
    }
}

#[test]
fn a_reservation_that_can_never_be_used_is_refused_and_shown() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.subnets[0].gateway = Some("10.0.0.254".parse().unwrap());
    all.subnets[0].excluded = ranges(&["10.0.0.100-10.0.0.110"]);
    all.subnets.push(SubnetDef {
        ranges: ranges(&["10.9.0.0-10.9.0.7"]),
        ..subnet("all", "overlay", "10.9.0.0/29")
    });
    let (mut ipam, _) = start(all);
    let owned =
        |owner: OwnerRef| InstanceDef { owner: Some(Box::new(owner)), ..declared("10.0.0.9", "v4", 24) };
    let pod_of = |pod: &str| owned(set("db", Some(pod)));
    let bad = [
        (declared("10.1.0.9", "v4", 24), "OutsideSubnet", "10.1.0.9 is not in 10.0.0.0/24 of Subnet v4"),
        (declared("10.0.0.9", "v6", 24), "OutsideSubnet", "10.0.0.9 is not in fd00::/120 of Subnet v6"),
        (
            InstanceDef { network: "lab".into(), ..declared("10.0.0.9", "v4", 24) },
            "OtherNetwork",
            "spec.network is lab, but Subnet v4 belongs to Network overlay",
        ),
        (declared("10.0.0.9", "v4", 32), "OtherLength", "the prefix length of Subnet v4 is 24, not 32"),
        (declared("lab.10.0.0.9", "v4", 24), "OtherSpace", "would be named 10.0.0.9"),
        (declared("10.0.0.254", "v4", 24), "Gateway", "10.0.0.254 is the gateway of Subnet v4"),
        (declared("10.0.0.0", "v4", 24), "NotForPods", "10.0.0.0 is the first address of 10.0.0.0/24"),
        (declared("10.0.0.255", "v4", 24), "NotForPods", "10.0.0.255 is the last address of 10.0.0.0/24"),
        (declared("fd00-0-0-0-0-0-0-0", "v6", 120), "NotForPods", "fd00:: is the first address"),
        (declared("10.0.0.105", "v4", 24), "Excluded", "10.0.0.105 is in spec.excludedIPs of Subnet v4"),
        (
            InstanceDef { owner: None, ..declared("10.0.0.9", "v4", 24) },
            "NoOwner",
            "has neither spec.pod nor spec.owner",
        ),
        (
            owned(OwnerRef { namespace: "".into(), ..set("db", None) }),
            "OtherOwner",
            "spec.owner.namespace is missing",
        ),
        (pod_of("db-x"), "OtherOwner", "spec.owner.pod: db-x is not the name of a pod of StatefulSet db"),
        (pod_of("db-01"), "OtherOwner", "write db-0 or another ordinal"),
        (pod_of("web-0"), "OtherOwner", "web-0 is not the name of a pod of StatefulSet db"),
        (pod_of("db"), "OtherOwner", "db is not the name"),
        (
            owned(OwnerRef { kind: "Deployment".into(), ..set("db", Some("db-0")) }),
            "OtherOwner",
            "db-0 can never be told from the other pods of Deployment db",
        ),
    ];
    for (def, reason, part) in bad {
        let made = answer(&ipam, Change::Instance { old: None, new: Some(&def) });
        contains(&made, &format!("IPInstance {}: ", def.name));
        contains(&made, part.split(';').next().unwrap());
        // It came while the webhook was away.
        let (name, uid) = (def.name.clone(), def.uid.clone());
        ipam.upsert_instance(std::sync::Arc::new(def), 0);
        let found: Vec<_> = findings(&ipam).into_iter().map(|f| (f.name, f.reason)).collect();
        assert_eq!(found, [(name.to_string(), reason)]);
        ipam.remove_instance(&name, &uid);
    }
}

#[test]
fn a_reservation_that_can_be_used_is_let_in_also_before_its_subnet() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.subnets[0].excluded = ranges(&["10.0.0.100-10.0.0.110"]);
    all.subnets.push(SubnetDef {
        ranges: ranges(&["10.9.0.0-10.9.0.7"]),
        ..subnet("all", "overlay", "10.9.0.0/29")
    });
    let (ipam, _) = start(all);
    let asked = |def: &InstanceDef| {
        let change = Change::Instance { old: None, new: Some(def) };
        (answer(&ipam, change), warning(change, &ipam))
    };
    let machine = OwnerRef { kind: "VirtualMachine".into(), ..set("vm", None) };
    for def in [
        declared("10.0.0.9", "v4", 24),
        declared("fd00-0-0-0-0-0-0-9", "v6", 120),
        declared("10.9.0.7", "all", 29),
        InstanceDef { owner: Some(Box::new(set("db", Some("db-12")))), ..declared("10.0.0.9", "v4", 24) },
        InstanceDef { owner: Some(Box::new(machine)), ..declared("10.0.0.9", "v4", 24) },
        // From a backup: the range was excluded while it was in use.
        InstanceDef { declared: false, ..declared("10.0.0.105", "v4", 24) },
    ] {
        assert_eq!(asked(&def), ("ok".to_owned(), None), "{def:?}");
    }
    let (said, warning) = asked(&declared("10.77.0.9", "lab-v4", 20));
    assert_eq!(said, "ok");
    contains(&warning.unwrap(), "Subnet lab-v4 does not exist; make it, or correct spec.subnet");

    // What is wrong already does not keep anybody from changing something else, and nothing gets worse.
    let bad = InstanceDef { owner: None, ..declared("10.0.0.9", "v4", 24) };
    let good = declared("10.0.0.9", "v4", 24);
    let changed = |old: &InstanceDef, new: &InstanceDef| {
        answer(&ipam, Change::Instance { old: Some(old), new: Some(new) })
    };
    assert_eq!(changed(&bad, &InstanceDef { mac: None, ..bad.clone() }), "ok");
    assert_eq!(changed(&bad, &good), "ok");
    contains(&changed(&good, &bad), "would be kept for nobody");
    let worse = InstanceDef { owner: Some(Box::new(set("db", Some("db-x")))), ..good.clone() };
    contains(&changed(&good, &worse), "db-x is not the name of a pod");
}
