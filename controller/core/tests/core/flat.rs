//! Networks of type VLAN: what is in force, tables, and addresses without blocks.

use braid_controller_core::gc::findings;
use braid_controller_core::ipam::Lists;
use braid_controller_core::verdict::{Change, verdict};
use braid_controller_core::{Choice, Ipam, Topic};
use braid_types::model::{InstanceDef, NetworkDef, NetworkType, Phase, SubnetDef};
use braid_types::{Family, Selector, VlanId};

use crate::cluster::{address_of, give, lists, network, ranges, request, start, subnet};

fn id(number: i64) -> Option<VlanId> {
    Some(VlanId::try_from(number).unwrap())
}

fn vlan(name: &str, vlan: Option<VlanId>) -> NetworkDef {
    NetworkDef { kind: NetworkType::Vlan, vxlan: None, vlan, ..network(name, 1) }
}

fn flat_subnet(name: &str, cidr: &str, gateway: &str) -> SubnetDef {
    SubnetDef { gateway: gateway.parse().ok(), ..subnet(name, "office", cidr) }
}

/// The overlay of [`lists`] and an untagged Network with a Subnet of each family.
fn with_office() -> Lists {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.networks.push(vlan("office", id(0)));
    all.subnets.push(flat_subnet("office4", "10.20.0.0/29", "10.20.0.1"));
    all.subnets.push(flat_subnet("office6", "fd20::/125", "fd20::1"));
    all
}

fn in_office(n: usize) -> braid_controller_core::PodRequest {
    let choice = Choice { network: Some("office".to_owned()), ..Choice::default() };
    braid_controller_core::PodRequest { choice, ..request(n, "n1") }
}

#[test]
fn an_untagged_network_is_in_force_with_a_table_for_each_subnet() {
    let (ipam, _) = start(with_office());
    let tables = ipam.routing_tables();
    assert_eq!(
        tables.into_iter().collect::<Vec<_>>(),
        [("office4".into(), 10001), ("office6".into(), 10002)]
    );
    let network = ipam.network_status("office").unwrap();
    assert_eq!((network.ready.ok, network.ready.reason, network.members), (true, "InForce", 3));
    for (name, table) in [("office4", Some(10001)), ("office6", Some(10002)), ("v4", None)] {
        let status = ipam.subnet_status(name, &ipam.routing_tables()).unwrap();
        assert_eq!((status.ready.ok, status.routing_table, status.blocks), (true, table, 0), "{name}");
    }
    assert!(ipam.vteps_missing().iter().all(|v| v.network == "overlay"), "nodes need no addresses in it");
}

#[test]
fn a_subnet_whose_network_is_away_keeps_its_table() {
    let mut all = with_office();
    all.networks.retain(|n| n.name != "office");
    let office4 = all.subnets.iter_mut().find(|s| s.name == "office4").unwrap();
    office4.routing_table = Some(10007);
    let (ipam, _) = start(all);
    assert_eq!(ipam.routing_tables().into_iter().collect::<Vec<_>>(), [("office4".into(), 10007)]);
}

#[test]
fn what_cannot_be_realised_or_is_incomplete_says_so() {
    let subnet_of = |network: NetworkDef, subnet: SubnetDef| {
        let (ipam, _) = start(Lists { networks: vec![network], subnets: vec![subnet], ..with_office() });
        let network = ipam.network_status("office").unwrap().ready;
        let subnet = ipam.subnet_status("office4", &ipam.routing_tables()).unwrap().ready;
        (network, subnet)
    };
    let good = || flat_subnet("office4", "10.20.0.0/24", "10.20.0.1");
    let (network, subnet) = subnet_of(vlan("office", id(20)), good());
    assert_eq!((network.ok, network.reason, subnet.reason), (false, "NotSupported", "NetworkNotReady"));
    assert_eq!(
        network.message,
        "type VLAN with id 20 is not supported by this version; untagged VLANs (spec.vlan.id: 0) are"
    );
    let bare = SubnetDef { gateway: None, ..good() };
    let natted = SubnetDef { nat_outgoing: true, ..good() };
    for (def, network_id, reason, part) in [
        (SubnetDef { vlan: id(20), ..good() }, None, "NotSupported", "spec.vlan 20"),
        (good(), None, "VlanMissing", "no VLAN id"),
        (SubnetDef { vlan: id(0), ..good() }, id(0), "VlanTwice", "keep one"),
        (bare, id(0), "GatewayMissing", "spec.gateway is required"),
        (natted, id(0), "NatNotUsed", "set it to false"),
    ] {
        let (network, subnet) = subnet_of(vlan("office", network_id), def);
        assert!(network.ok, "{reason}: {network:?}");
        assert_eq!((subnet.ok, subnet.reason), (false, reason));
        assert!(subnet.message.contains(part), "{}", subnet.message);
    }
    let (network, subnet) = subnet_of(vlan("office", None), SubnetDef { vlan: id(0), ..good() });
    assert!(network.ok && subnet.ok, "the id may be on the Subnet: {subnet:?}");
}

#[test]
fn addresses_come_without_blocks_and_a_freed_one_comes_back_last() {
    let (mut ipam, restored) = start(with_office());
    let mut given = Vec::new();
    for n in 0..2 {
        let made = give(&mut ipam, &restored, &in_office(n));
        assert!(made.iter().all(|d| !d.host_routed));
        assert_eq!(made[0].gateway, "10.20.0.1".parse().ok());
        given.push((address_of(&made, Family::V4), address_of(&made, Family::V6), made));
    }
    assert_eq!(["office4", "office6"].map(|s| ipam.blocks_of(s).count()), [0, 0]);
    let addresses: Vec<&str> = given.iter().map(|(a, ..)| a.as_str()).collect();
    assert!(!addresses.contains(&"10.20.0.1"), "the gateway: {addresses:?}");
    for def in &given[0].2 {
        let free = InstanceDef { phase: Phase::Releasing, release_at: Some(0), pod: None, ..(**def).clone() };
        ipam.upsert_instance(free.into(), 0);
        ipam.remove_instance(&def.name, &def.uid);
    }
    // 10.20.0.0/29 less network, broadcast and gateway has five addresses, of which one is in use.
    let later: Vec<String> =
        (2..6).map(|n| address_of(&give(&mut ipam, &restored, &in_office(n)), Family::V4)).collect();
    assert_eq!(later.last(), Some(&given[0].0), "{later:?}");
    let full = ipam.grant(&restored, &in_office(6)).unwrap_err();
    assert_eq!((full.reason(), full.to_string().contains("office4")), ("SubnetFull", true), "{full}");
}

#[test]
fn pods_on_nodes_outside_are_refused_and_ranges_are_kept_to() {
    let mut all = with_office();
    let on_n2 = [("name".to_owned(), "n2".to_owned())].into();
    all.networks[1].nodes = Selector { match_labels: on_n2, match_expressions: Vec::new() };
    all.subnets[2].ranges = ranges(&["10.20.0.4-10.20.0.5"]);
    let (mut ipam, restored) = start(all);
    assert_eq!(ipam.network_status("office").unwrap().members, 1);
    let refusal = ipam.grant(&restored, &in_office(1)).unwrap_err();
    assert_eq!(refusal.reason(), "NotMember");
    let here = braid_controller_core::PodRequest { node: "n2".to_owned(), ..in_office(1) };
    assert_eq!(address_of(&give(&mut ipam, &restored, &here), Family::V4), "10.20.0.4");
}

#[test]
fn the_nodes_own_addresses_are_left_out() {
    let mut all = with_office();
    // On the physical network, and in the middle of an overlay's prefix by mistake.
    let addresses = |of: &[&str]| of.iter().map(|a| a.parse().unwrap()).collect::<Vec<std::net::IpAddr>>();
    all.nodes[0].addresses = addresses(&["10.20.0.2", "fd20::2", "10.0.0.9"]);
    all.nodes[1].addresses = addresses(&["10.20.0.3", "10.20.0.2"]);
    let (n1, n2) = (all.nodes[0].clone(), all.nodes[1].clone());
    let office = all.networks[1].clone();
    let (mut ipam, restored) = start(all);
    let total = |ipam: &Ipam| ["office4", "office6", "v4"].map(|s| ipam.usage(s).total);
    let (with, without) = ([3, 5, 254], [5, 6, 254]);
    assert_eq!(total(&ipam), with, "two of five, one of six, none of an overlay");
    assert_eq!(address_of(&give(&mut ipam, &restored, &in_office(1)), Family::V4), "10.20.0.4");
    let fixed = |n, ip: &str| {
        let choice = Choice { ips: ranges(&[ip]), ..in_office(n).choice };
        braid_controller_core::PodRequest { choice, ..in_office(n) }
    };
    let refusal = ipam.grant(&restored, &fixed(2, "10.20.0.3")).unwrap_err();
    assert!(
        refusal.to_string().contains("10.20.0.3 of Subnet office4 is held by node n2 itself"),
        "{refusal}"
    );
    let effects = ipam.upsert_node(braid_controller_core::NodeFact { addresses: Vec::new(), ..n2.clone() });
    assert!(effects.wake.contains(&Topic::Subnet("office4".into())), "who was refused asks again");
    assert_eq!(address_of(&give(&mut ipam, &restored, &fixed(2, "10.20.0.3")), Family::V4), "10.20.0.3");
    // A node with an address that a pod has: nothing is taken away.
    ipam.upsert_node(n2);
    assert_eq!((ipam.usage("office4").outside, ipam.usage("office4").total), (1, 3));
    ipam.remove_node("n1");
    ipam.remove_node("n2");
    assert_eq!((total(&ipam), ipam.usage("office4").outside), (without, 0));
    // Whatever is seen first.
    ipam.remove_network("office");
    ipam.remove_subnet("office6");
    ipam.upsert_node(n1);
    let office6 = flat_subnet("office6", "fd20::/125", "fd20::1");
    ipam.upsert_subnet(office6.clone());
    ipam.upsert_network(office);
    assert_eq!(total(&ipam), [4, 5, 254]);
    ipam.remove_subnet("office6");
    ipam.upsert_subnet(office6.clone());
    assert_eq!(total(&ipam), [4, 5, 254], "made when all else was there");
    // Made anew under another Network while nobody looked.
    ipam.upsert_subnet(SubnetDef { network: "overlay".into(), ..office6.clone() });
    assert_eq!(ipam.usage("office6").total, 6);
    ipam.upsert_subnet(office6);
    assert_eq!(ipam.usage("office6").total, 5);
}

#[test]
fn what_is_kept_or_held_and_a_nodes_own_is_said() {
    let (mut ipam, restored) = start(with_office());
    let made = give(&mut ipam, &restored, &in_office(1));
    assert!(findings(&ipam).is_empty());
    let addresses = vec![made[0].name.address()];
    ipam.upsert_node(braid_controller_core::NodeFact { addresses, ..crate::cluster::node("n2") });
    let found = findings(&ipam);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(format!("{found:?}").contains("is node n2's own"), "{found:?}");
    let pin =
        InstanceDef { pod: None, node: None, phase: Phase::Reserved, declared: true, ..(*made[0]).clone() };
    let refused = verdict(Change::Instance { old: None, new: Some(&pin) }, &ipam);
    assert!(refused.unwrap_err().to_string().contains("is node n2's own"));
}

#[test]
fn two_controllers_on_one_number_end_with_two() {
    let number = |created, name: &str, table| SubnetDef {
        created,
        routing_table: table,
        ..flat_subnet(name, if name == "a" { "10.20.0.0/24" } else { "10.21.0.0/24" }, "10.20.0.1")
    };
    // Each has given the lowest number to the only Subnet that it knew.
    let both = [number(5, "b", Some(10001)), number(9, "a", Some(10001))];
    let first = braid_controller_core::status::routing_tables(&both);
    let second = braid_controller_core::status::routing_tables(both.iter().rev());
    assert_eq!(first, second, "both correct it alike, whatever came first");
    assert_eq!((first["b"], first["a"]), (10001, 10002), "the older one is left alone");
}
