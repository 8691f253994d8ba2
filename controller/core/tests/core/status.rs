//! Status of Networks and Subnets, and what contradicts.

use std::collections::BTreeSet;

use braid_controller_core::gc::findings;
use braid_controller_core::pool::Usage;
use braid_controller_core::status::{api_count, routing_tables, usage_text};
use braid_types::Family;
use braid_types::model::{InstanceDef, NetworkDef, Phase, SubnetDef};
use proptest::prelude::*;

use crate::cluster::{give, lists, network, request, start, subnet};

#[test]
fn counts_follow_every_step() {
    let (mut ipam, restored) = start(lists("10.0.0.0/29", "fd00::/64"));
    let tables = ipam.routing_tables();
    assert_eq!(tables.len(), 0, "overlays share a table");
    assert!(!ipam.subnet_status("v4", &tables).unwrap().in_use);
    let made: Vec<_> = (0..6).map(|n| give(&mut ipam, &restored, &request(n, "n1"))).collect();
    let status = ipam.subnet_status("v4", &tables).unwrap();
    assert_eq!((status.usage.total, status.usage.used, status.usage.available), (6, 6, 0));
    assert_eq!((status.ready.ok, status.ready.reason, status.blocks, status.in_use), (true, "Full", 2, true));
    let network = ipam.network_status("overlay").unwrap();
    assert_eq!((network.subnets, network.members, network.in_use), (2, 3, true));
    assert_eq!(network.usage.get(Family::V4).used, 6);
    assert_eq!(api_count(network.usage.get(Family::V6).total), i64::MAX);
    let text = |s: &str| usage_text(&ipam.usage(s));
    assert_eq!((text("v4").as_str(), text("v6").as_str()), ("6/6", "6/1.8e19"));
    let of = |total: u128| usage_text(&Usage { total, ..Usage::default() });
    assert_eq!(of(i64::MAX as u128), "0/9223372036854775807", "exact as long as the API's numbers are");
    assert_eq!((of(1 << 63), of(1 << 80)), ("0/9.2e18".to_owned(), "0/1.2e24".to_owned()));
    let cooling = InstanceDef { phase: Phase::Releasing, release_at: Some(9), ..(*made[0][0]).clone() };
    ipam.upsert_instance(cooling.into(), 0);
    let usage = ipam.subnet_status("v4", &tables).unwrap().usage;
    assert_eq!((usage.used, usage.cooling, usage.available), (5, 1, 0));
}

#[test]
fn losers_say_why_and_winners_are_left_alone() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.networks.push(NetworkDef { created: 200, default: true, ..network("late", 5) });
    all.subnets.push(SubnetDef { created: 200, ..subnet("overlapping", "late", "10.0.0.128/25") });
    all.subnets.push(subnet("early", "absent", "10.3.0.0/24"));
    let (mut ipam, restored) = start(all);
    let tables = ipam.routing_tables();
    let ready = |ipam: &braid_controller_core::Ipam, s| ipam.subnet_status(s, &tables).unwrap().ready;
    assert!(
        ready(&ipam, "v4").ok && ready(&ipam, "v6").ok && ipam.network_status("overlay").unwrap().ready.ok
    );
    assert_eq!(ready(&ipam, "overlapping").reason, "Overlap");
    assert_eq!(ready(&ipam, "early").reason, "NetworkMissing");
    let late = ipam.network_status("late").unwrap().ready;
    assert_eq!((late.ok, late.reason), (false, "SecondDefault"));
    assert!(late.message.contains("the older Network overlay is the default already"), "{}", late.message);
    // An edit makes the Network that pods use the second default: they are not harmed.
    give(&mut ipam, &restored, &request(1, "n1"));
    ipam.upsert_network(NetworkDef { created: 50, default: true, ..network("elder", 6) });
    let overlay = ipam.network_status("overlay").unwrap().ready;
    assert_eq!((overlay.ok, overlay.reason), (true, "SecondDefault"));
    assert!(ipam.network_status("elder").unwrap().ready.ok);
}

#[test]
fn what_contradicts_is_reported_and_not_lost() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    assert_eq!(findings(&ipam), []);
    let base = |name: &str| InstanceDef {
        name: name.parse().unwrap(),
        uid: name.into(),
        set: Box::default(),
        ..(*made[0]).clone()
    };
    for def in [
        InstanceDef {
            subnet: "gone".into(),
            network: "gone".into(),
            pod: Some(crate::cluster::pod(2)),
            ..base("10.7.0.1")
        },
        InstanceDef { pod: Some(crate::cluster::pod(3)), ..base("10.8.0.1") },
        InstanceDef { pod: None, ..base("10.0.0.50") },
        base("10.0.0.51"),
        InstanceDef {
            pod: Some(crate::cluster::pod(4)),
            phase: Phase::Releasing,
            release_at: Some(1),
            ..base("10.0.0.52")
        },
    ] {
        ipam.upsert_instance(def.into(), 0);
    }
    let reasons: BTreeSet<(String, &str)> = findings(&ipam).into_iter().map(|f| (f.name, f.reason)).collect();
    let want = [
        ("10.0.0.1", "TwoAddresses"),
        ("10.0.0.50", "NoHolder"),
        ("10.0.0.52", "HolderLives"),
        ("10.7.0.1", "SubnetMissing"),
        ("10.8.0.1", "OutsideSubnet"),
    ];
    assert_eq!(reasons, want.into_iter().map(|(n, r)| (n.to_owned(), r)).collect());
    assert_eq!(ipam.usage("gone").outside, 1, "remembered for when the Subnet comes back");
    ipam.upsert_network(network("gone", 9));
    ipam.upsert_subnet(subnet("gone", "gone", "10.7.0.0/29"));
    assert_eq!((ipam.usage("gone").used, ipam.usage("gone").available), (1, 5));
}

proptest! {
    #[test]
    fn every_subnet_has_one_table_and_keeps_it(
        have in prop::collection::vec((0i64..3, prop::option::of(9_999u32..10_008)), 0..20),
        rotate in 0usize..20,
    ) {
        let subnets: Vec<SubnetDef> = have
            .iter()
            .enumerate()
            .map(|(i, (created, t))| SubnetDef {
                created: *created,
                routing_table: *t,
                ..subnet(&format!("s{i}"), "n", "10.0.0.0/24")
            })
            .collect();
        let given = routing_tables(&subnets);
        prop_assert_eq!(given.len(), subnets.len());
        prop_assert_eq!(given.values().collect::<BTreeSet<_>>().len(), subnets.len());
        prop_assert!(given.values().all(|t| (10_001..=39_998).contains(t)));
        // Written back, nothing moves; the order of the list does not matter.
        let mut again: Vec<SubnetDef> =
            subnets.iter().map(|s| SubnetDef { routing_table: given.get(&s.name).copied(), ..s.clone() }).collect();
        if !again.is_empty() {
            let by = rotate % again.len();
            again.rotate_left(by);
        }
        prop_assert_eq!(routing_tables(&again), given);
    }
}
