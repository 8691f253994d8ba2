//! The same objects give the same state, in whatever order, number and grouping their events come.

use std::collections::BTreeSet;
use std::sync::Arc;

use braid_controller_core::ipam::Lists;
use braid_controller_core::{Config, Ipam, NodeFact, PodFact};
use braid_types::model::{BlockDef, InstanceDef, NetworkDef, Phase, SubnetDef};
use braid_types::{Cidr, InstanceName, block_name};
use proptest::prelude::*;

use crate::cluster::{network, node, request, start, subnet};

/// One event of a watch.
#[derive(Debug, Clone)]
enum Event {
    Network(usize, Option<bool>),
    Subnet(usize, Option<(usize, bool)>),
    Node(usize, bool),
    Block(usize, Option<usize>),
    Instance(usize, Option<(usize, usize, Phase)>),
    /// Its object cannot be read any more.
    Unreadable(usize),
    Pod(usize, Option<bool>),
}

fn event() -> impl Strategy<Value = Event> {
    let phase = prop_oneof![Just(Phase::Bound), Just(Phase::Reserved), Just(Phase::Releasing)];
    prop_oneof![
        (0usize..2, prop::option::weighted(0.8, any::<bool>())).prop_map(|(i, x)| Event::Network(i, x)),
        (0usize..3, prop::option::weighted(0.8, (0usize..2, any::<bool>())))
            .prop_map(|(i, x)| Event::Subnet(i, x)),
        (0usize..3, any::<bool>()).prop_map(|(i, x)| Event::Node(i, x)),
        (0usize..6, prop::option::weighted(0.7, 0usize..3)).prop_map(|(i, x)| Event::Block(i, x)),
        (0usize..20, prop::option::weighted(0.7, (0usize..3, 0usize..4, phase)))
            .prop_map(|(i, x)| Event::Instance(i, x)),
        (0usize..20).prop_map(Event::Unreadable),
        (0usize..4, prop::option::weighted(0.7, any::<bool>())).prop_map(|(i, x)| Event::Pod(i, x)),
    ]
}

fn network_def(i: usize, default: bool) -> NetworkDef {
    NetworkDef { default, created: i as i64, ..network(&format!("net{i}"), 4 + i as i64) }
}

/// Subnets 0 and 1 do not overlap, 2 overlaps both.
fn subnet_def(i: usize, net: usize, ready: bool) -> SubnetDef {
    let cidr = ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.0/27"][i];
    SubnetDef { ready, created: i as i64, ..subnet(&format!("sub{i}"), &format!("net{net}"), cidr) }
}

fn block_def(i: usize, owner: usize) -> BlockDef {
    let cidr = Cidr::containing(format!("10.0.0.{}", i * 4).parse().unwrap(), 30).unwrap();
    let subnet = format!("sub{}", i / 4);
    BlockDef { name: block_name(&subnet, &cidr), subnet, cidr, node: format!("n{owner}") }
}

fn instance_name(i: usize) -> InstanceName {
    InstanceName::new("", format!("10.0.0.{i}").parse().unwrap())
}

fn instance_def(i: usize, sub: usize, pod: usize, phase: Phase) -> Arc<InstanceDef> {
    let name = instance_name(i);
    let vtep = pod == 3;
    Arc::new(InstanceDef {
        uid: format!("uid{i}").into(),
        network: format!("net{}", sub % 2).into(),
        subnet: format!("sub{sub}").into(),
        prefix_len: 28,
        gateway: None,
        mac: None,
        pod: (phase != Phase::Reserved && !vtep).then(|| crate::cluster::pod(pod)),
        interface: if vtep { "vtep".into() } else { "eth0".into() },
        node: Some(format!("n{}", i % 3).into()),
        set: [name.address()].into(),
        owner: None,
        retain_seconds: None,
        retain_until: None,
        reserved_at: None,
        declared: false,
        attached: false,
        phase,
        torn_down: None,
        release_at: None,
        handover: None,
        host_routed: false,
        deleting: false,
        name,
    })
}

/// What there is in the end.
#[derive(Debug, Default, Clone)]
struct Objects {
    networks: [Option<NetworkDef>; 2],
    subnets: [Option<SubnetDef>; 3],
    nodes: [Option<NodeFact>; 3],
    blocks: [Option<BlockDef>; 6],
    instances: [Option<Arc<InstanceDef>>; 20],
    unreadable: BTreeSet<InstanceName>,
    pods: [Option<PodFact>; 4],
}

fn present<T: Clone>(all: &[Option<T>]) -> Vec<T> {
    all.iter().flatten().cloned().collect()
}

impl Objects {
    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Network(i, x) => self.networks[i] = x.map(|d| network_def(i, d)),
            Event::Subnet(i, x) => self.subnets[i] = x.map(|(n, r)| subnet_def(i, n, r)),
            Event::Node(i, x) => self.nodes[i] = x.then(|| node(&format!("n{i}"))),
            Event::Block(i, x) => self.blocks[i] = x.map(|o| block_def(i, o)),
            Event::Instance(i, x) => {
                self.instances[i] = x.map(|(s, p, ph)| instance_def(i, s, p, ph));
                self.unreadable.remove(&instance_name(i));
            }
            Event::Unreadable(i) => {
                self.instances[i] = None;
                self.unreadable.insert(instance_name(i));
            }
            Event::Pod(i, x) => {
                self.pods[i] =
                    x.map(|finished| PodFact { uid: format!("pod-{i}").into(), finished, created: 0 });
            }
        }
    }

    fn lists(&self) -> Lists {
        Lists {
            networks: present(&self.networks),
            subnets: present(&self.subnets),
            blocks: present(&self.blocks),
            instances: present(&self.instances),
            unreadable: self.unreadable.clone(),
            nodes: present(&self.nodes),
            pods: present(&self.pods),
        }
    }
}

fn feed(ipam: &mut Ipam, event: &Event) {
    match *event {
        Event::Network(i, Some(d)) => ipam.upsert_network(network_def(i, d)),
        Event::Network(i, None) => ipam.remove_network(&format!("net{i}")),
        Event::Subnet(i, Some((n, r))) => ipam.upsert_subnet(subnet_def(i, n, r)),
        Event::Subnet(i, None) => ipam.remove_subnet(&format!("sub{i}")),
        Event::Node(i, true) => ipam.upsert_node(node(&format!("n{i}"))),
        Event::Node(i, false) => ipam.remove_node(&format!("n{i}")),
        Event::Block(i, Some(o)) => ipam.upsert_block(block_def(i, o)),
        Event::Block(i, None) => ipam.remove_block(&block_def(i, 0).name),
        Event::Instance(i, Some((s, p, ph))) => ipam.upsert_instance(instance_def(i, s, p, ph), 0),
        Event::Instance(i, None) => {
            ipam.forget_unreadable(&instance_name(i));
            ipam.remove_instance(&instance_name(i), &format!("uid{i}"))
        }
        Event::Unreadable(i) => ipam.upsert_unreadable(&instance_name(i)),
        Event::Pod(i, Some(finished)) => {
            ipam.upsert_pod(PodFact { uid: format!("pod-{i}").into(), finished, created: 0 })
        }
        Event::Pod(i, None) => ipam.remove_pod(&format!("pod-{i}")),
    };
}

/// Everything that the state answers.
fn answers(ipam: &mut Ipam) -> String {
    let restored = ipam.restored().expect("everything was listed");
    let tables = ipam.routing_tables();
    let mut out = String::new();
    let mut say = |line: String| {
        out.push_str(&line);
        out.push('\n');
    };
    say(format!("{tables:?} {:?}", ipam.vteps_missing()));
    for i in 0..2 {
        say(format!("{:?}", ipam.network_status(&format!("net{i}"))));
    }
    for i in 0..3 {
        let name = format!("sub{i}");
        say(format!("{:?} {:?}", ipam.subnet_status(&name, &tables), ipam.usage(&name)));
        say(format!("{:?}", ipam.blocks_of(&name).collect::<Vec<_>>()));
        say(format!("{:?}", ipam.taken(&name).map(|(a, d)| (a, d.map(|d| &d.phase))).collect::<Vec<_>>()));
    }
    for i in 0..20 {
        let name = instance_name(i);
        say(format!("{name} {:?}", ipam.decide(&restored, &name, Default::default(), 0)));
    }
    say(format!("{:?}", braid_controller_core::gc::findings(ipam)));
    // What a grant gives depends on where the last search stopped, but whether it gives does not.
    let answer = ipam.grant(&restored, &request(50, "n0"));
    say(format!("{:?}", answer.as_ref().map(|g| g.set.len()).map_err(ToString::to_string)));
    if let Ok(grant) = answer {
        ipam.finish(grant);
    }
    let sweep = ipam.sweep_blocks(&restored, 0);
    say(format!("{sweep:?}"));
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn order_number_and_grouping_do_not_matter(
        events in prop::collection::vec(event(), 0..80),
        restart in 0usize..80,
        keys in prop::collection::vec(any::<u32>(), 80),
    ) {
        let mut objects = Objects::default();
        let (mut straight, _) = start(Lists::default());
        for event in &events {
            feed(&mut straight, event);
            objects.apply(event);
        }
        let want = {
            let (mut fresh, _) = Ipam::restore(Config::default(), objects.lists(), 0);
            answers(&mut fresh)
        };
        prop_assert_eq!(&answers(&mut straight), &want, "one by one");
        // Twice each.
        let (mut doubled, _) = start(Lists::default());
        for event in events.iter().flat_map(|e| [e, e]) {
            feed(&mut doubled, event);
        }
        prop_assert_eq!(&answers(&mut doubled), &want, "doubled");
        // A restart in the middle.
        let cut = restart.min(events.len());
        let mut so_far = Objects::default();
        events[..cut].iter().for_each(|e| so_far.apply(e));
        let (mut restarted, _) = Ipam::restore(Config::default(), so_far.lists(), 0);
        events[cut..].iter().for_each(|e| feed(&mut restarted, e));
        prop_assert_eq!(&answers(&mut restarted), &want, "restarted");
        // Watches of different kinds overtake each other: a stable sort by kind in any order of kinds.
        let kind = |e: &Event| match e {
            Event::Network(..) => 0,
            Event::Subnet(..) => 1,
            Event::Node(..) => 2,
            Event::Block(..) => 3,
            Event::Instance(..) | Event::Unreadable(_) => 4,
            Event::Pod(..) => 5usize,
        };
        let mut overtaken = events.clone();
        overtaken.sort_by_key(|e| keys[kind(e)]);
        let (mut shuffled, _) = start(Lists::default());
        overtaken.iter().for_each(|e| feed(&mut shuffled, e));
        prop_assert_eq!(&answers(&mut shuffled), &want, "overtaken");
        // Only the final lists, on top of whatever was there.
        let lists = objects.lists();
        let (mut squashed, _) = Ipam::restore(Config::default(), so_far.lists(), 0);
        squashed.reset_pods(lists.pods);
        squashed.reset_unreadable(&lists.unreadable);
        squashed.reset_instances(lists.instances, 0);
        squashed.reset_blocks(lists.blocks);
        squashed.reset_nodes(lists.nodes);
        squashed.reset_subnets(lists.subnets);
        squashed.reset_networks(lists.networks);
        prop_assert_eq!(&answers(&mut squashed), &want, "squashed");
    }
}
