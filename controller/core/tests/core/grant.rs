//! Grants as a pod meets them.

use std::collections::{BTreeMap, BTreeSet};

use braid_controller_core::ipam::Lists;
use braid_controller_core::{Choice, Claim, FamilyWish, Ipam, PodRequest, Refusal, Topic, VtepRequest};
use braid_types::model::{InstanceDef, NetworkDef, NetworkType, SubnetDef};
use braid_types::{Family, InstanceName, Operator, Requirement, Selector};

use crate::cluster::{address_of, give, lists, network, node, ranges, request, start, subnet};

fn v4(cidr: &str) -> Lists {
    let mut lists = lists(cidr, "fd00::/120");
    lists.subnets.pop();
    lists
}

fn asking(n: usize, node: &str, choice: Choice) -> PodRequest {
    PodRequest { choice, ..request(n, node) }
}

fn ips(texts: &[&str]) -> Choice {
    Choice { ips: ranges(texts), ..Choice::default() }
}

fn named(network: &str) -> Choice {
    Choice { network: Some(network.to_owned()), ..Choice::default() }
}

fn refused(ipam: &mut Ipam, restored: &braid_controller_core::Restored, req: &PodRequest) -> Refusal {
    match ipam.grant(restored, req) {
        Ok(grant) => panic!("granted {:?}", grant.set),
        Err(refusal) => refusal,
    }
}

#[test]
fn both_families_with_one_mac_and_one_set() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    assert_eq!(made.len(), 2);
    assert_eq!(
        (address_of(&made, Family::V4), address_of(&made, Family::V6)),
        ("10.0.0.1".into(), "fd00::1".into())
    );
    assert_eq!(made[0].set, made[1].set);
    assert_eq!(made[0].set.len(), 2);
    assert_eq!(made[0].mac, made[1].mac);
    assert_eq!(made[0].prefix_len, 24);
    assert_eq!(made[0].node.as_deref(), Some("n1"));
    assert!(!made[0].host_routed);
}

#[test]
fn asked_again_nothing_changes() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let again = ipam.grant(&restored, &request(1, "n1")).unwrap();
    assert!(again.is_complete());
    assert_eq!(again.set, made.iter().map(|d| d.name.clone()).collect::<Vec<_>>());
    ipam.finish(again);
    assert_eq!(ipam.usage("v4").used, 1);
}

#[test]
fn neither_family_when_one_is_full() {
    let mut lists = lists("10.0.0.0/24", "fd00::/120");
    lists.subnets[1].ranges = ranges(&["fd00::5"]);
    let (mut ipam, restored) = start(lists);
    give(&mut ipam, &restored, &request(1, "n1"));
    let refusal = refused(&mut ipam, &restored, &request(2, "n1"));
    assert_eq!(refusal.reason(), "SubnetFull");
    assert_eq!(
        refusal.to_string(),
        "no free IPv6 address: Subnet v6 is full: 1 of 1 addresses in use; delete pods, or add ranges or another Subnet"
    );
    assert!(refusal.retryable());
    assert!(refusal.retry_on().contains(&Topic::Subnet("v6".into())));
    assert_eq!(ipam.usage("v4").used, 1, "the IPv4 address was held back");
}

#[test]
fn many_grants_in_flight_never_share_an_address() {
    let (mut ipam, restored) = start(v4("10.0.0.0/26"));
    let grants: Vec<_> =
        (0..62).map(|n| ipam.grant(&restored, &request(n, ["n1", "n2", "n3"][n % 3])).unwrap()).collect();
    let names: BTreeSet<&InstanceName> = grants.iter().flat_map(|g| &g.set).collect();
    assert_eq!(names.len(), 62);
    assert_eq!(ipam.in_flight(), 62);
    assert_eq!(refused(&mut ipam, &restored, &request(99, "n1")).reason(), "SubnetFull");
    let mut woken = BTreeSet::new();
    for grant in grants {
        woken.extend(ipam.finish(grant).wake);
    }
    assert_eq!(ipam.usage("v4").available, 62, "unfinished promises are free again");
    assert!(woken.contains(&Topic::Subnet("v4".into())));
}

#[test]
fn a_subnet_of_n_addresses_serves_n_pods_on_any_nodes() {
    let (mut ipam, restored) = start(v4("10.0.0.0/28"));
    let mut seen = BTreeSet::new();
    for n in 0..14 {
        // The first node takes far more than its share: the last ones borrow.
        let made = give(&mut ipam, &restored, &request(n, if n < 11 { "n1" } else { ["n2", "n3"][n % 2] }));
        assert!(seen.insert(made[0].name.clone()));
        let covered = ipam.blocks_of("v4").any(|b| {
            Some(b.node.as_str()) == made[0].node.as_deref() && b.cidr.contains(made[0].name.address())
        });
        assert_eq!(covered, !made[0].host_routed);
    }
    assert_eq!(refused(&mut ipam, &restored, &request(14, "n1")).reason(), "SubnetFull");
    let blocks: Vec<_> = ipam.blocks_of("v4").collect();
    assert!(blocks.iter().enumerate().all(|(i, a)| blocks[..i].iter().all(|b| !a.cidr.overlaps(&b.cidr))));
    assert_eq!(blocks.len(), 4);
}

#[test]
fn a_name_that_somebody_else_took_is_passed_over() {
    let (mut ipam, restored) = start(v4("10.0.0.0/24"));
    let first = ipam.grant(&restored, &request(1, "n1")).unwrap();
    let Claim::Create(wanted) = &first.claims[0] else { panic!("a new address") };
    let theirs = InstanceDef { pod: Some(crate::cluster::pod(7)), uid: "other".into(), ..(**wanted).clone() };
    ipam.upsert_instance(theirs.into(), 0);
    ipam.finish(first);
    let second = give(&mut ipam, &restored, &request(1, "n1"));
    assert_eq!(address_of(&second, Family::V4), "10.0.0.2");
    assert_eq!(ipam.usage("v4").used, 2);
}

#[test]
fn half_a_set_is_completed_with_the_address_it_names() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    ipam.remove_instance(&made[1].name, &made[1].uid);
    let grant = ipam.grant(&restored, &request(1, "n1")).unwrap();
    assert_eq!(grant.claims.len(), 1, "what exists already fits");
    assert_eq!(grant.claims[0].name(), &made[1].name);
    ipam.finish(grant);
}

#[test]
fn half_a_set_whose_rest_was_lost_gets_another_and_keeps_what_it_has() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    ipam.remove_instance(&made[1].name, &made[1].uid);
    let theirs = InstanceDef { pod: Some(crate::cluster::pod(7)), uid: "other".into(), ..(*made[1]).clone() };
    ipam.upsert_instance(theirs.into(), 0);
    let again = give(&mut ipam, &restored, &request(1, "n1"));
    assert_eq!(
        (address_of(&again, Family::V4), address_of(&again, Family::V6)),
        ("10.0.0.1".into(), "fd00::2".into())
    );
    assert_eq!(again[0].set, again[1].set);
    assert!(ipam.grant(&restored, &request(1, "n1")).unwrap().is_complete());
}

#[test]
fn fixed_addresses_one_or_both_families_or_a_pool() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let one = give(&mut ipam, &restored, &asking(1, "n1", ips(&["10.0.0.77"])));
    assert_eq!((address_of(&one, Family::V4), one.len()), ("10.0.0.77".into(), 2));
    assert!(one.iter().any(|d| d.host_routed), "no block of the node covers it");
    let taken = refused(&mut ipam, &restored, &asking(2, "n1", ips(&["10.0.0.77"])));
    assert_eq!(
        taken.to_string(),
        "10.0.0.77 of Subnet v4 is held by pod shop/web-1 on node n1; free it or ask for another address"
    );
    let pool = ["10.0.0.80-10.0.0.81", "fd00::80-fd00::81"];
    for n in 3..5 {
        assert_eq!(give(&mut ipam, &restored, &asking(n, "n2", ips(&pool))).len(), 2);
    }
    let exhausted = refused(&mut ipam, &restored, &asking(5, "n2", ips(&pool)));
    assert_eq!(exhausted.reason(), "PoolExhausted");
    for part in [
        "all 2 addresses of the pool 10.0.0.80-10.0.0.81",
        "(Subnet v4: 10.0.0.80 by pod shop/web-3 on node n2, 10.0.0.81 by pod shop/web-4 on node n2)",
        "spec.reservedIPs",
    ] {
        assert!(exhausted.to_string().contains(part), "{exhausted}");
    }
}

#[test]
fn reserved_addresses_only_when_asked_for() {
    let mut lists = v4("10.0.0.0/29");
    lists.subnets[0].reserved = ranges(&["10.0.0.1-10.0.0.5"]);
    let (mut ipam, restored) = start(lists);
    assert_eq!(address_of(&give(&mut ipam, &restored, &request(1, "n1")), Family::V4), "10.0.0.6");
    assert_eq!(refused(&mut ipam, &restored, &request(2, "n1")).reason(), "SubnetFull");
    let asked = give(&mut ipam, &restored, &asking(2, "n1", ips(&["10.0.0.3"])));
    assert_eq!(address_of(&asked, Family::V4), "10.0.0.3");
    let usage = ipam.usage("v4");
    assert_eq!((usage.total, usage.used, usage.reserved, usage.available), (6, 2, 4, 0));
}

#[test]
fn one_level_decides_where_addresses_come_from() {
    let mut lists = v4("10.0.0.0/24");
    lists.networks.push(network("second", 5));
    lists.networks.push(network("third", 6));
    lists.subnets.push(subnet("s2", "second", "10.2.0.0/24"));
    lists.subnets.push(SubnetDef { private: true, ..subnet("s2-private", "second", "10.22.0.0/24") });
    lists.subnets.push(subnet("s3", "third", "10.3.0.0/24"));
    let (mut ipam, restored) = start(lists);
    let mut n = 0;
    let mut at = |pod: Choice, namespace: Choice| {
        n += 1;
        let req = PodRequest { namespace_choice: namespace, ..asking(n, "n1", pod) };
        give(&mut ipam, &restored, &req)[0].subnet.clone()
    };
    let sub = |s: &str| Choice { subnets: vec![s.to_owned()], ..Choice::default() };
    assert_eq!(at(Choice::default(), Choice::default()), "v4");
    assert_eq!(at(Choice::default(), named("second")), "s2");
    assert_eq!(at(named("third"), named("second")), "s3");
    assert_eq!(at(sub("s2-private"), named("third")), "s2-private");
    // An address names its Subnet, whatever the namespace says.
    assert_eq!(at(ips(&["10.3.0.9"]), named("second")), "s3");
    // Families are no place: the namespace's Network stays.
    let only_v4 = Choice { family: Some(FamilyWish::Only(Family::V4)), ..Choice::default() };
    assert_eq!(at(only_v4, named("second")), "s2");
}

#[test]
fn every_refusal_says_what_and_why() {
    let mut lists = lists("10.0.0.0/24", "fd00::/120");
    let labelled = |key: &str| Selector {
        match_labels: BTreeMap::new(),
        match_expressions: vec![Requirement { key: key.into(), operator: Operator::Exists, values: vec![] }],
    };
    lists.networks.extend([
        NetworkDef { kind: NetworkType::Macvlan, vxlan: None, ..network("macvlan", 1) },
        NetworkDef { ready: false, ..network("fresh", 7) },
        NetworkDef { created: 200, ..network("same-vni", 4) },
        NetworkDef { nodes: labelled("rack"), ..network("rack", 8) },
        NetworkDef { namespaces: Some(labelled("team")), ..network("team", 9) },
        network("bare", 10),
    ]);
    lists.subnets.push(SubnetDef { gateway: "10.5.0.1".parse().ok(), ..subnet("s5", "team", "10.5.0.0/24") });
    lists.subnets.push(SubnetDef { created: 200, ..subnet("late", "bare", "10.5.0.0/25") });
    let (mut ipam, restored) = start(lists);
    let sub = |net: Option<&str>, s: &str| Choice {
        network: net.map(Into::into),
        subnets: vec![s.to_owned()],
        ..Choice::default()
    };
    let fam = |f, c: Choice| Choice { family: Some(f), ..c };
    let cases: Vec<(Choice, &str, &str)> = vec![
        (named("nope"), "NetworkMissing", "Network nope does not exist"),
        (named("macvlan"), "NotSupported", "type MACVLAN"),
        (named("fresh"), "NetworkNotReady", "passes by itself"),
        (named("same-vni"), "NetworkNotReady", "VNI 4 is used by the older Network overlay"),
        (named("rack"), "NotMember", "node n1 is no member of Network rack"),
        (named("team"), "NamespaceNotAllowed", "namespace shop may not use Network team"),
        (sub(None, "nope"), "SubnetMissing", "Subnet nope does not exist"),
        (sub(Some("overlay"), "s5"), "SubnetOfOtherNetwork", "belongs to Network team, not to overlay"),
        (sub(None, "late"), "SubnetNotReady", "overlaps 10.5.0.0/24 of the older Subnet s5"),
        (named("bare"), "SubnetNotReady", "Subnet late is not ready"),
        (ips(&["10.99.0.1"]), "AddressOutside", "10.99.0.1 is in no Subnet of any Network"),
        (ips(&["10.0.0.255"]), "AddressExcluded", "never given out by Subnet v4"),
        (fam(FamilyWish::Only(Family::V6), ips(&["10.0.0.9"])), "FamilyMismatch", "10.0.0.9 is IPv4"),
        (
            Choice { ips: ranges(&["10.0.0.9", "fd99::1"]), ..named("overlay") },
            "AddressOutside",
            "fd99::1 is in no Subnet of Network overlay",
        ),
    ];
    for (choice, reason, part) in cases {
        let refusal = refused(&mut ipam, &restored, &asking(1, "n1", choice.clone()));
        assert_eq!(refusal.reason(), reason, "{choice:?}: {refusal}");
        assert!(refusal.to_string().contains(part), "{refusal}");
    }
    assert_eq!(refused(&mut ipam, &restored, &request(1, "nowhere")).reason(), "NodeMissing");
    ipam.remove_network("overlay");
    assert_eq!(refused(&mut ipam, &restored, &request(1, "n1")).reason(), "NoDefaultNetwork");
    assert_eq!(ipam.in_flight(), 0);
}

#[test]
fn dual_stack_is_as_wished() {
    let mut lists = lists("10.0.0.0/24", "fd00::/120");
    lists.networks.push(network("single", 5));
    lists.subnets.push(subnet("s4", "single", "10.4.0.0/24"));
    let (mut ipam, restored) = start(lists);
    let wish = |n, net: &str, f| asking(n, "n1", Choice { family: Some(f), ..named(net) });
    let families = |made: Vec<std::sync::Arc<InstanceDef>>| {
        made.iter().map(|d| Family::of(d.name.address())).collect::<Vec<_>>()
    };
    let only = FamilyWish::Only(Family::V6);
    assert_eq!(families(give(&mut ipam, &restored, &wish(1, "overlay", only))), [Family::V6]);
    assert_eq!(
        families(give(&mut ipam, &restored, &wish(2, "single", FamilyWish::PreferDualStack))),
        [Family::V4]
    );
    let refusal = refused(&mut ipam, &restored, &wish(3, "single", FamilyWish::DualStack));
    assert_eq!(refusal.reason(), "NoSubnet");
    assert!(refusal.to_string().contains("has no Subnet for IPv6"), "{refusal}");
    // The second Subnet of a Network is being checked: no pod starts with half of its addresses.
    let mut fresh = subnet("s6", "single", "fd04::/120");
    fresh.ready = false;
    let effects = ipam.upsert_subnet(fresh.clone());
    assert!(effects.wake.contains(&Topic::Network("single".into())));
    assert_eq!(refused(&mut ipam, &restored, &asking(4, "n1", named("single"))).reason(), "SubnetNotReady");
    ipam.upsert_subnet(SubnetDef { ready: true, ..fresh });
    assert_eq!(give(&mut ipam, &restored, &asking(4, "n1", named("single"))).len(), 2);
}

#[test]
fn every_member_has_one_address_per_family_in_an_overlay() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let missing = ipam.vteps_missing();
    assert_eq!(missing.len(), 3);
    for req in &missing {
        let grant = ipam.grant_vtep(&restored, req).unwrap();
        assert_eq!((grant.claims.len(), grant.blocks.len()), (2, 2));
        for block in grant.blocks.clone() {
            ipam.upsert_block(block);
        }
        for claim in &grant.claims {
            let def = claim.def();
            assert_eq!((def.interface.as_str(), def.node.as_deref()), ("vtep", Some(req.node.as_str())));
            assert_eq!(
                def.owner.as_ref().map(|o| (o.kind.as_str(), o.name.as_str())),
                Some(("Node", req.node.as_str()))
            );
            assert!(!def.host_routed, "taken from the node's first block");
            ipam.upsert_instance(
                InstanceDef { uid: def.name.to_string().into(), ..(**def).clone() }.into(),
                0,
            );
        }
        ipam.finish(grant);
    }
    assert!(ipam.vteps_missing().is_empty());
    assert!(ipam.grant_vtep(&restored, &missing[0]).unwrap().is_complete());
    ipam.upsert_node(node("n4"));
    assert_eq!(ipam.vteps_missing(), [VtepRequest { network: "overlay".into(), node: "n4".into() }]);
    // A Subnet of the second family comes later.
    ipam.remove_node("n4");
    let mut late = network("late", 9);
    late.nodes.match_labels.insert("name".into(), "n1".into());
    ipam.upsert_network(late);
    assert!(ipam.vteps_missing().is_empty(), "no Subnet, no address");
    ipam.upsert_subnet(subnet("late4", "late", "10.9.0.0/24"));
    assert_eq!(ipam.vteps_missing().len(), 1);
}

#[test]
fn nothing_is_given_before_every_kind_was_listed() {
    let mut ipam = Ipam::new(braid_controller_core::Config::default());
    let all = lists("10.0.0.0/24", "fd00::/120");
    assert_eq!(ipam.restored().unwrap_err().missing.len(), 6);
    ipam.reset_networks(all.networks);
    ipam.reset_subnets(all.subnets);
    ipam.reset_nodes(all.nodes);
    ipam.reset_blocks(all.blocks);
    ipam.reset_pods(all.pods);
    assert_eq!(ipam.restored().unwrap_err().to_string(), "not listed yet: IPInstances");
    ipam.reset_instances(all.instances, 0);
    assert!(ipam.restored().is_ok());
}

#[test]
fn an_address_that_another_subnets_object_has_is_not_given_out() {
    let (mut ipam, restored) = start(v4("10.0.0.0/30"));
    let model = give(&mut ipam, &restored, &request(1, "n1"));
    let stray = InstanceDef {
        name: "10.0.0.2".parse().unwrap(),
        uid: "stray".into(),
        subnet: "misspelt".into(),
        pod: None,
        ..(*model[0]).clone()
    };
    ipam.upsert_instance(stray.into(), 0);
    let refusal = ipam.grant(&restored, &request(2, "n1")).unwrap_err();
    assert_eq!(refusal.reason(), "SubnetFull", "{refusal}");
    // Its Subnet comes, and does not have it either; then the object goes.
    ipam.upsert_subnet(crate::cluster::subnet("misspelt", "overlay", "10.9.0.0/24"));
    let refused = ipam.grant(&restored, &PodRequest { choice: named_subnet("v4"), ..request(2, "n1") });
    assert_eq!(refused.unwrap_err().reason(), "SubnetFull");
    ipam.remove_instance(&"10.0.0.2".parse().unwrap(), "stray");
    let made = give(&mut ipam, &restored, &PodRequest { choice: named_subnet("v4"), ..request(2, "n1") });
    assert_eq!(made[0].name.to_string(), "10.0.0.2");
}

fn named_subnet(name: &str) -> Choice {
    Choice { subnets: vec![name.to_owned()], ..Choice::default() }
}
