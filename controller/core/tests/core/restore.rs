//! Any set of objects, also one that contradicts itself: nothing is lost, and what does not fit is shown.

use std::collections::BTreeSet;
use std::sync::Arc;

use braid_controller_core::gc::findings;
use braid_controller_core::ipam::Lists;
use braid_controller_core::release::{Checks, Decision, OwnerCheck};
use braid_controller_core::{Choice, Config, Effects, Ipam, PodFact, PodRequest, Restored};
use braid_types::model::{
    BlockDef, HandoverDef, InstanceDef, MigrationRole, NetworkDef, OwnerRef, Phase, SubnetDef,
};
use braid_types::{AddrRange, Cidr, InstanceName, block_name};
use proptest::prelude::*;

use crate::cluster::{lists, live, network, node, pod, request, start, subnet};

/// Networks 0 and 1 share an address space, 2 has one of its own; Subnets 0 and 1 share addresses, 3 is elsewhere.
const CIDRS: [&str; 4] = ["10.0.0.0/28", "10.0.0.8/29", "10.0.0.0/29", "10.0.1.0/29"];

fn networks() -> [NetworkDef; 3] {
    [
        NetworkDef { default: true, ..network("net0", 4) },
        network("net1", 5),
        NetworkDef { space: "lab".into(), ..network("net2", 6) },
    ]
}

fn subnets() -> [SubnetDef; 4] {
    std::array::from_fn(|i| SubnetDef {
        created: i as i64,
        ..subnet(&format!("sub{i}"), &format!("net{}", i % 3), CIDRS[i])
    })
}

fn owner(n: usize) -> OwnerRef {
    OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: "db".into(),
        uid: "set".into(),
        pod: Some(format!("db-{n}").into()),
    }
}

/// An address whose object says what it likes about its Network, Subnet, pod, node and owner.
fn instance() -> impl Strategy<Value = Arc<InstanceDef>> {
    let phase = prop::sample::select(&[Phase::Bound, Phase::Reserved, Phase::Releasing][..]);
    let name = (prop::sample::select(&["", "lab"][..]), 0u8..20, any::<bool>())
        .prop_map(|(space, a, far)| InstanceName::new(space, [10, 0, u8::from(far), a].into()));
    let second = prop::option::of((0usize..3, any::<bool>()));
    let held = (prop::option::of(0usize..3), prop::option::of(0usize..2), any::<bool>(), second);
    (name, 0usize..5, 0usize..4, held, 0usize..4, phase, prop::option::of(0i64..5)).prop_map(
        |(name, subnet, network, (holder, kept_for, vtep, second), node, phase, release_at)| {
            Arc::new(InstanceDef {
                uid: format!("uid-of-{name}").into(),
                network: format!("net{network}").into(),
                subnet: format!("sub{subnet}").into(),
                prefix_len: 28,
                gateway: None,
                mac: None,
                pod: holder.filter(|_| !vtep).map(pod),
                interface: if vtep { "vtep".into() } else { "eth0".into() },
                node: (node < 3).then(|| format!("n{node}")).map(Into::into),
                set: [name.address()].into(),
                handover: second.map(|(n, left)| {
                    let role = if left { MigrationRole::Source } else { MigrationRole::Target };
                    Box::new(HandoverDef {
                        pod: pod(n),
                        node: format!("n{n}").into(),
                        role,
                        torn_down: false,
                    })
                }),
                owner: kept_for.map(|n| Box::new(owner(n))),
                retain_seconds: None,
                retain_until: None,
                reserved_at: None,
                declared: false,
                attached: false,
                phase,
                torn_down: None,
                release_at,
                host_routed: false,
                deleting: false,
                name,
            })
        },
    )
}

fn block() -> impl Strategy<Value = BlockDef> {
    (0usize..5, 0u8..16, 28u8..=32, 0usize..4).prop_map(|(subnet, a, len, node)| {
        let cidr = Cidr::containing([10, 0, 0, a].into(), len).unwrap();
        let subnet = format!("sub{subnet}");
        BlockDef { name: block_name(&subnet, &cidr), subnet, cidr, node: format!("n{node}") }
    })
}

/// Everything that an API server may hold: names are unique, nothing else is certain.
fn objects() -> impl Strategy<Value = Lists> {
    let some = |n| prop::collection::vec(prop::bool::weighted(0.8), n);
    let instances = prop::collection::vec((instance(), prop::bool::weighted(0.1)), 0..30);
    let blocks = prop::collection::vec(block(), 0..6);
    let pods = prop::collection::vec(prop::option::of(any::<bool>()), 3);
    (some(3), some(4), some(3), instances, blocks, pods).prop_map(
        |(nets, subs, nodes, instances, blocks, pods)| {
            let mut all = Lists::default();
            let present = |there: &[bool], i: &usize| there[*i];
            all.networks = (0..3).filter(|i| present(&nets, i)).map(|i| networks()[i].clone()).collect();
            all.subnets = (0..4).filter(|i| present(&subs, i)).map(|i| subnets()[i].clone()).collect();
            all.nodes = (0..3).filter(|i| present(&nodes, i)).map(|i| node(&format!("n{i}"))).collect();
            let mut names = BTreeSet::new();
            for (def, unreadable) in instances {
                if !names.insert(def.name.clone()) {
                    continue;
                }
                if unreadable {
                    all.unreadable.insert(def.name.clone());
                } else {
                    all.instances.push(def);
                }
            }
            let mut names = BTreeSet::new();
            all.blocks = blocks.into_iter().filter(|b| names.insert(b.name.clone())).collect();
            let fact = |(i, finished)| PodFact { uid: format!("pod-{i}").into(), finished, created: 0 };
            all.pods = pods.into_iter().enumerate().filter_map(|(i, f)| Some(fact((i, f?)))).collect();
            all
        },
    )
}

/// All that can be asked about the state without changing it.
fn answers(ipam: &mut Ipam) -> Vec<String> {
    let restored = ipam.restored().expect("everything was listed");
    let mut out: Vec<String> = findings(ipam).iter().map(|f| format!("{f:?}")).collect();
    for s in 0..5 {
        let name = format!("sub{s}");
        let status = ipam.subnet_status(&name, &ipam.routing_tables());
        out.push(format!("{name} {status:?} {:?} {}", ipam.usage(&name), ipam.subnet_in_use(&name)));
        out.push(format!("{:?}", ipam.blocks_of(&name).collect::<Vec<_>>()));
        out.push(format!("{:?}", ipam.taken(&name).map(|(a, d)| (a, d.map(|d| &d.uid))).collect::<Vec<_>>()));
    }
    for n in 0..4 {
        out.push(format!("{:?}", ipam.network_status(&format!("net{n}"))));
    }
    let mut names: Vec<InstanceName> = ipam.instances().map(|d| d.name.clone()).collect();
    names.sort();
    for name in names {
        out.push(format!("{name} {:?}", ipam.decide(&restored, &name, Checks::default(), 0)));
    }
    out
}

/// One event of a watch that delivers an object.
type Feed = Box<dyn Fn(&mut Ipam) -> Effects>;

fn one_by_one(all: &Lists) -> Vec<Feed> {
    fn each<T: Clone + 'static>(
        list: impl IntoIterator<Item = T>,
        feed: fn(&mut Ipam, T) -> Effects,
    ) -> Vec<Feed> {
        list.into_iter().map(|x| Box::new(move |ipam: &mut Ipam| feed(ipam, x.clone())) as Feed).collect()
    }
    let mut feeds = each(all.networks.clone(), Ipam::upsert_network);
    feeds.extend(each(all.subnets.clone(), Ipam::upsert_subnet));
    feeds.extend(each(all.nodes.clone(), Ipam::upsert_node));
    feeds.extend(each(all.blocks.clone(), Ipam::upsert_block));
    feeds.extend(each(all.instances.clone(), |ipam, def| ipam.upsert_instance(def, 0)));
    feeds.extend(each(all.unreadable.clone(), |ipam, name| ipam.upsert_unreadable(&name)));
    feeds.extend(each(all.pods.clone(), Ipam::upsert_pod));
    feeds
}

/// The same lists in another order.
fn turned(mut all: Lists, by: usize) -> Lists {
    fn turn<T>(list: &mut [T], by: usize) {
        list.reverse();
        list.rotate_left(by % list.len().max(1));
    }
    turn(&mut all.networks, by);
    turn(&mut all.subnets, by);
    turn(&mut all.nodes, by);
    turn(&mut all.blocks, by);
    turn(&mut all.instances, by);
    turn(&mut all.pods, by);
    all
}

/// Asks for addresses until there are none; names of the objects that would be made. Each wish is a new pod's.
fn drain(
    ipam: &mut Ipam,
    restored: &Restored,
    wishes: impl Iterator<Item = PodRequest>,
) -> Vec<InstanceName> {
    let mut made = Vec::new();
    for wish in wishes {
        if let Ok(grant) = ipam.grant(restored, &wish) {
            made.extend(grant.claims.iter().map(|c| c.name().clone()));
            // Never finished: what is promised stays promised.
        }
    }
    made
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_there_is_nothing_is_lost(all in objects(), by in 0usize..30, keys in prop::collection::vec(any::<u32>(), 60)) {
        let (mut ipam, restored) = Ipam::restore(Config::default(), all.clone(), 0);
        let want = answers(&mut ipam);

        // Again, in another order, on top of itself, and as single events in any order.
        let (mut again, _) = Ipam::restore(Config::default(), turned(all.clone(), by), 0);
        prop_assert_eq!(&answers(&mut again), &want, "in another order");
        again.reset_networks(all.networks.clone());
        again.reset_unreadable(&all.unreadable);
        again.reset_instances(all.instances.clone(), 0);
        again.reset_subnets(all.subnets.clone());
        prop_assert_eq!(&answers(&mut again), &want, "listed again");
        let (mut fed, _) = start(Lists::default());
        let mut feeds: Vec<(u32, Feed)> = keys.iter().cycle().copied().zip(one_by_one(&all)).collect();
        feeds.sort_by_key(|(key, _)| *key);
        for (_, feed) in &feeds {
            feed(&mut fed);
        }
        prop_assert_eq!(&answers(&mut fed), &want, "one by one");

        // Each address is counted: in its Subnet, or wherever it lies when it does not fit there, which is shown.
        let shown: BTreeSet<String> = findings(&ipam).into_iter().map(|f| f.name).collect();
        let space = |s: &SubnetDef| ipam.network(&s.network).map_or("", |n| n.space.as_str()).to_owned();
        let lies_in = |s: &SubnetDef, n: &InstanceName| s.cidr.contains(n.address()) && space(s) == n.space();
        let home = |def: &InstanceDef| ipam.subnet(&def.subnet).filter(|s| lies_in(s, &def.name)).cloned();
        let counted = |s: &SubnetDef, n: &InstanceName| {
            ipam.subnet_in_use(&s.name) && ipam.taken(&s.name).any(|(a, _)| a == n.address())
        };
        let homeless = all.instances.iter().filter(|d| home(d).is_none()).map(|d| &d.name);
        for name in homeless.chain(&all.unreadable) {
            prop_assert!(ipam.subnets().filter(|s| lies_in(s, name)).all(|s| counted(s, name)), "{}", name);
        }
        for def in &all.instances {
            match home(def) {
                Some(s) => prop_assert!(counted(&s, &def.name), "{} in {}", def.name, s.name),
                None => prop_assert!(shown.contains(&def.name.to_string()), "{} is not shown", def.name),
            }
        }
        for s in ipam.subnets() {
            let u = ipam.usage(&s.name);
            prop_assert_eq!(u.total, u.used + u.reserved + u.cooling + u.available, "{}", &s.name);
        }

        // Nobody else is given one of them, neither by chance nor on request; and a deleted one does not free another.
        // (Of a Subnet that has lost against one over the same addresses nothing is given out; what it has is known there.)
        let in_force = |d: &&Arc<InstanceDef>| home(d).is_none_or(|s| ipam.standing().subnet(&s.name).is_none());
        let held: BTreeSet<InstanceName> =
            all.instances.iter().filter(in_force).map(|d| d.name.clone()).chain(all.unreadable.clone()).collect();
        let on_request = |n: usize, a: u8, net: usize| {
            let range = AddrRange::single([10, 0, 0, a].into());
            let choice = Choice { network: Some(format!("net{net}")), ips: vec![range], ..Choice::default() };
            PodRequest { choice, ..request(n, &format!("n{}", n % 3)) }
        };
        let asked = (0..20u8).flat_map(|a| (0..3).map(move |net| on_request(100 + usize::from(a) * 3 + net, a, net)));
        let by_chance = (0..30).map(|n| request(1000 + n, &format!("n{}", n % 3)));
        let made = drain(&mut ipam, &restored, by_chance.chain(asked));
        prop_assert_eq!(made.iter().find(|n| held.contains(n)), None);
        let once: BTreeSet<&InstanceName> = made.iter().collect();
        prop_assert_eq!(once.len(), made.len(), "twice");
        let rest: Vec<Arc<InstanceDef>> = all.instances.iter().skip(1).cloned().collect();
        if let Some(gone) = all.instances.first() {
            again.remove_instance(&gone.name, &gone.uid);
            let (mut without, _) = Ipam::restore(Config::default(), Lists { instances: rest, ..all.clone() }, 0);
            prop_assert_eq!(answers(&mut again), answers(&mut without), "without {}", &gone.name);
        }
    }
}

/// What is shown of one contradiction, and what becomes of its address by itself.
fn check(what: &str, objects: Lists, want: &[(&str, &str, &str)], decision: Option<(&str, Decision)>) {
    let (mut ipam, restored) = start(objects);
    let found = findings(&ipam);
    let got: Vec<(&str, &str)> = found.iter().map(|f| (f.name.as_str(), f.reason)).collect();
    assert_eq!(got, want.iter().map(|(n, r, _)| (*n, *r)).collect::<Vec<_>>(), "{what}");
    for (f, (_, _, part)) in found.iter().zip(want) {
        assert!(f.message.contains(part), "{what}: `{}` does not say `{part}`", f.message);
    }
    if let Some((name, want)) = decision {
        let checks = Checks { owner: Some(OwnerCheck::Gone), ..Checks::default() };
        assert_eq!(ipam.decide(&restored, &name.parse().unwrap(), checks, 100), Some(want), "{what}");
    }
}

#[test]
fn each_contradiction_is_shown() {
    let (mut ipam, restored) = start(lists("10.0.0.0/28", "fd00::/120"));
    let made = crate::cluster::give(&mut ipam, &restored, &request(1, "n1"));
    let base = |name: &str| InstanceDef {
        name: name.parse().unwrap(),
        uid: format!("uid-of-{name}").into(),
        set: [name.parse::<InstanceName>().unwrap().address()].into(),
        ..(*made[0]).clone()
    };
    let with = |instances: Vec<InstanceDef>| Lists {
        instances: instances.into_iter().map(Arc::new).collect(),
        ..lists("10.0.0.0/28", "fd00::/120")
    };
    let reserved = |name: &str, n| InstanceDef {
        pod: None,
        node: None,
        owner: Some(Box::new(owner(n))),
        phase: Phase::Reserved,
        reserved_at: Some(1),
        ..base(name)
    };
    let a_block = |cidr: &str, node: &str| {
        let cidr: Cidr = cidr.parse().unwrap();
        BlockDef { name: block_name("v4", &cidr), subnet: "v4".into(), cidr, node: node.into() }
    };

    check("all is well", with(vec![base("10.0.0.1")]), &[], None);
    check(
        "two addresses for one interface",
        with(vec![base("10.0.0.2"), base("10.0.0.1")]),
        &[("10.0.0.1", "TwoAddresses", "10.0.0.1, 10.0.0.2")],
        None,
    );
    check(
        "two addresses kept for one pod of a StatefulSet",
        with(vec![reserved("10.0.0.1", 0), reserved("10.0.0.2", 0), reserved("10.0.0.3", 1)]),
        &[("10.0.0.1", "KeptTwice", "StatefulSet shop/db, pod db-0 has more than one")],
        None,
    );
    check(
        "one that it has and one that is kept for it",
        with(vec![
            InstanceDef { owner: Some(Box::new(owner(0))), ..base("10.0.0.1") },
            reserved("10.0.0.2", 0),
        ]),
        &[("10.0.0.1", "KeptTwice", "10.0.0.1, 10.0.0.2")],
        None,
    );
    check(
        "the owner is gone",
        with(vec![reserved("10.0.0.1", 0)]),
        &[],
        Some(("10.0.0.1", Decision::MarkReleasing { release_at: 130, reason: "OwnerGone" })),
    );
    check(
        "the Subnet is gone",
        with(vec![InstanceDef { subnet: "gone".into(), ..base("10.7.0.1") }]),
        &[("10.7.0.1", "SubnetMissing", "Subnet gone does not exist; make it again")],
        Some(("10.7.0.1", Decision::RouteByHost)),
    );
    check(
        "outside of its Subnet",
        with(vec![base("10.7.0.1")]),
        &[("10.7.0.1", "OutsideSubnet", "not in 10.0.0.0/28 of Subnet v4")],
        None,
    );
    check(
        "another Network than its Subnet",
        with(vec![InstanceDef { network: "lab".into(), ..base("10.0.0.1") }]),
        &[("10.0.0.1", "OtherNetwork", "belongs to Network overlay")],
        None,
    );
    check(
        "a name of another address space",
        with(vec![base("lab.10.0.0.1")]),
        &[("lab.10.0.0.1", "OtherSpace", "10.0.0.1")],
        None,
    );
    check(
        "bound to nobody",
        with(vec![InstanceDef { pod: None, ..base("10.0.0.1") }]),
        &[("10.0.0.1", "NoHolder", "names no pod")],
        Some(("10.0.0.1", Decision::Keep)),
    );
    check(
        "released under a pod that runs",
        with(vec![InstanceDef { phase: Phase::Releasing, release_at: Some(1), ..base("10.0.0.1") }]),
        &[("10.0.0.1", "HolderLives", "shop/web-1 runs")],
        Some(("10.0.0.1", Decision::RouteByHost)),
    );
    check(
        "two blocks over one range",
        Lists { blocks: vec![a_block("10.0.0.0/29", "n1"), a_block("10.0.0.4/30", "n2")], ..with(vec![]) },
        &[("v4-10-0-0-4-30", "Overlap", "IPBlock v4-10-0-0-0-29; delete one of the two")],
        None,
    );
    check(
        "a block of a node that is gone, in use",
        Lists {
            blocks: vec![a_block("10.0.0.0/30", "n9")],
            ..with(vec![InstanceDef { node: Some("n9".into()), ..base("10.0.0.1") }])
        },
        &[("v4-10-0-0-0-30", "NodeMissing", "node n9 does not exist")],
        None,
    );
    check(
        "a block of a Subnet that is gone",
        Lists {
            blocks: vec![BlockDef { subnet: "gone".into(), ..a_block("10.0.0.0/30", "n1") }],
            ..with(vec![])
        },
        &[("v4-10-0-0-0-30", "SubnetMissing", "Subnet gone does not exist")],
        None,
    );
}

#[test]
fn an_address_whose_object_cannot_be_read_is_nobodys() {
    let unreadable = BTreeSet::from(["10.0.0.1".parse::<InstanceName>().unwrap()]);
    let mut all = lists("10.0.0.0/30", "fd00::/120");
    all.subnets.pop();
    let (mut ipam, restored) = start(Lists { unreadable: unreadable.clone(), ..all });
    let usage = ipam.usage("v4");
    assert_eq!((usage.total, usage.reserved, usage.available), (2, 1, 1));
    ipam.upsert_pod(live(200));
    let grant = ipam.grant(&restored, &request(200, "n1")).unwrap();
    assert_eq!(grant.set, ["10.0.0.2".parse::<InstanceName>().unwrap()]);
    // Promised, and found to be in the way when it is written.
    ipam.upsert_unreadable(&grant.set[0]);
    ipam.finish(grant);
    assert_eq!(ipam.usage("v4").available, 0);
    let effects = ipam.forget_unreadable(&"10.0.0.1".parse().unwrap());
    assert!(!effects.wake.is_empty(), "who waits is asked again");
    assert_eq!(ipam.usage("v4").available, 1);
}
