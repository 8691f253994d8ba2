//! Two controllers that both believe that they lead, with stale caches, lost answers and crashes at every step; agents,
//! and an API server that knows one thing: a name can be created once.
//!
//! The controllers' decisions are the real functions. After every step no two pods that may run hold one address, and
//! in the end nothing is lost: every pod has its addresses, and when all pods are gone every address is free.

mod api;

use std::collections::{BTreeMap, BTreeSet};

use braid_controller_core::ipam::Lists;
use braid_controller_core::release::{Checks, Decision, PodCheck};
use braid_controller_core::{Claim, Config, Grant, Ipam, Refusal, Restored};
use braid_types::InstanceName;
use braid_types::model::{InstanceDef, Phase};
use proptest::prelude::*;

use crate::cluster::{lists, node, request, subnet};
use api::{Kind, News, Server};

const NODES: usize = 3;

/// A grant on its way to the API server.
struct Flight {
    pod: usize,
    grant: Grant,
    next: usize,
}

struct Controller {
    ipam: Ipam,
    restored: Restored,
    /// How far each watch has come.
    at: BTreeMap<Kind, usize>,
    flights: Vec<Flight>,
}

fn base() -> Lists {
    let mut lists = lists("10.0.0.0/29", "fd00::/120");
    lists.subnets[1] = subnet("v6", "overlay", "fd00::/125");
    lists.nodes.clear();
    lists.pods.clear();
    lists
}

impl Controller {
    /// A new process, whose lists may be old.
    fn start(server: &Server, back: usize) -> Self {
        let (ipam, restored) = Ipam::restore(Config::default(), base(), server.now);
        let mut it = Self { ipam, restored, at: BTreeMap::new(), flights: Vec::new() };
        for kind in Kind::ALL {
            it.relist(kind, back, server);
        }
        it
    }

    /// The next event of one watch arrives. False if there is none.
    fn deliver(&mut self, kind: Kind, server: &Server) -> bool {
        let at = self.at.entry(kind).or_default();
        let Some(news) = server.log(kind).get(*at) else { return false };
        *at += 1;
        match news.clone() {
            News::Instance(def) => self.ipam.upsert_instance(def, server.now),
            News::InstanceGone(name, uid) => self.ipam.remove_instance(&name, &uid),
            News::Block(def) => self.ipam.upsert_block(def),
            News::BlockGone(name) => self.ipam.remove_block(&name),
            News::Pod(fact) => self.ipam.upsert_pod(fact),
            News::PodGone(uid) => self.ipam.remove_pod(&uid),
            News::NodeGone(name) => self.ipam.remove_node(&name),
        };
        true
    }

    /// A watch breaks and lists again; an API server that lags behind answers with what was `back` events ago.
    fn relist(&mut self, kind: Kind, back: usize, server: &Server) {
        let at = server.log(kind).len().saturating_sub(back);
        let past = server.at(kind, at);
        self.at.insert(kind, at);
        match kind {
            Kind::Instance => self.ipam.reset_instances(past.instances, server.now),
            Kind::Block => self.ipam.reset_blocks(past.blocks),
            Kind::Pod => self.ipam.reset_pods(past.pods),
            Kind::Node => self.ipam.reset_nodes(past.nodes.iter().map(|n| node(n)).collect()),
        };
    }

    /// Asks for the addresses of a pod, as far as this controller's cache has the pod as living.
    fn plan(&mut self, pod: usize, server: &mut Server) -> Option<Refusal> {
        let known = server.pods.get(&pod).map(|p| p.node.clone())?;
        if self.flights.iter().any(|f| f.pod == pod) || server.pods[&pod].terminating {
            return None;
        }
        match self.ipam.grant(&self.restored, &request(pod, &known)) {
            Ok(grant) if grant.is_complete() => {
                self.ipam.finish(grant);
                None
            }
            Ok(grant) => {
                self.flights.push(Flight { pod, grant, next: 0 });
                None
            }
            Err(refusal) => Some(refusal),
        }
    }

    /// The next write of a grant; its answer may get lost.
    fn write(&mut self, flight: usize, answered: bool, server: &mut Server) {
        if self.flights.is_empty() {
            return;
        }
        let index = flight % self.flights.len();
        let f = &mut self.flights[index];
        let (step, blocks) = (f.next, f.grant.blocks.len());
        f.next += 1;
        let mut ended = !answered;
        if let Some(block) = f.grant.blocks.get(step) {
            let there = server.create_block(block);
            if answered {
                ended = there.node != block.node;
                self.ipam.upsert_block(there);
            }
        } else if let Some(claim) = f.grant.claims.get(step - blocks) {
            let there = match claim {
                Claim::Create(def) => server.create(def),
                Claim::Replace { to, .. } => server.replace(to),
            };
            if answered && let Some(there) = there {
                self.ipam.upsert_instance(there, server.now);
            }
        } else {
            ended = true;
        }
        if ended {
            let f = self.flights.swap_remove(index);
            self.ipam.finish(f.grant);
        }
    }

    /// Looks at one address, as its queue would.
    fn review(&mut self, name: &InstanceName, server: &mut Server) {
        let Some(cached) = self.ipam.instance(name).cloned() else { return };
        let mut decision = self.ipam.decide(&self.restored, name, Checks::default(), server.now);
        let mut checks = Checks::default();
        if let Some(Decision::RecheckPod(pod)) = &decision {
            checks.pod = Some(match server.pods.values().find(|p| p.uid() == pod.uid) {
                None => PodCheck::Gone,
                Some(p) if p.finished => PodCheck::Finished,
                Some(_) => PodCheck::Live,
            });
            decision = self.ipam.decide(&self.restored, name, checks, server.now);
        }
        if let Some(Decision::RecheckNode(node)) = &decision {
            checks.node = Some(server.nodes.contains(node));
            decision = self.ipam.decide(&self.restored, name, checks, server.now);
        }
        match decision {
            Some(Decision::MarkReleasing { release_at, .. }) => {
                let release_at = Some(release_at);
                server.update(
                    &cached,
                    InstanceDef { phase: Phase::Releasing, release_at, ..(*cached).clone() },
                );
            }
            Some(Decision::RouteByHost) => {
                server.update(&cached, InstanceDef { host_routed: true, ..(*cached).clone() });
            }
            Some(Decision::Delete) if server.instances.get(name) == Some(&cached) => server.delete(&cached),
            Some(Decision::Reserve { .. }) => panic!("no owner, yet {name} is kept"),
            _ => {}
        }
    }

    fn sweep(&mut self, server: &mut Server) {
        for block in self.ipam.sweep_blocks(&self.restored, server.now).give_back {
            server.delete_block(&block);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Bind(usize),
    Terminate(usize),
    Finish(usize),
    Remove(usize),
    Attach(usize),
    TearDown(usize),
    NodeGone(usize),
    Pass(i64),
    Deliver(usize, Kind),
    Relist(usize, Kind, usize),
    Plan(usize, usize),
    Write(usize, usize, bool),
    Review(usize, usize),
    Sweep(usize),
    Crash(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let c = || 0usize..2;
    let n = || any::<usize>();
    let kind = || prop::sample::select(Kind::ALL.to_vec());
    prop_oneof![
        8 => (0..NODES).prop_map(Step::Bind),
        4 => n().prop_map(Step::Terminate),
        1 => n().prop_map(Step::Finish),
        3 => n().prop_map(Step::Remove),
        12 => n().prop_map(Step::Attach),
        5 => n().prop_map(Step::TearDown),
        1 => (0..NODES).prop_map(Step::NodeGone),
        4 => (1i64..60).prop_map(Step::Pass),
        1 => Just(Step::Pass(1000)),
        24 => (c(), kind()).prop_map(|(c, k)| Step::Deliver(c, k)),
        3 => (c(), kind(), 0usize..20).prop_map(|(c, k, back)| Step::Relist(c, k, back)),
        20 => (c(), n()).prop_map(|(c, p)| Step::Plan(c, p)),
        40 => (c(), n(), prop::bool::weighted(0.9)).prop_map(|(c, f, ok)| Step::Write(c, f, ok)),
        16 => (c(), n()).prop_map(|(c, i)| Step::Review(c, i)),
        2 => c().prop_map(Step::Sweep),
        1 => (c(), 0usize..10).prop_map(|(c, back)| Step::Crash(c, back)),
    ]
}

fn pick<T: Clone>(all: impl IntoIterator<Item = T>, n: usize) -> Option<T> {
    let all: Vec<T> = all.into_iter().collect();
    (!all.is_empty()).then(|| all[n % all.len()].clone())
}

struct World {
    server: Server,
    controllers: [Controller; 2],
}

impl World {
    fn new() -> Self {
        let server = Server::new(NODES);
        let controllers = [Controller::start(&server, 0), Controller::start(&server, 0)];
        Self { server, controllers }
    }

    fn take(&mut self, step: &Step) {
        let Self { server, controllers } = self;
        match *step {
            Step::Bind(n) => server.bind(&format!("n{n}")),
            Step::Terminate(n) => {
                if let Some(p) = pick(server.pods.keys().copied(), n) {
                    server.pods.get_mut(&p).expect("it was picked").terminating = true;
                }
            }
            Step::Finish(n) => {
                if let Some(p) = pick(server.pods.keys().copied(), n) {
                    server.finish(p);
                }
            }
            Step::Remove(n) => {
                if let Some(p) = pick(server.pods.keys().copied(), n) {
                    server.remove_pod(p);
                }
            }
            Step::Attach(n) => {
                if let Some(p) = pick(server.pods.keys().copied(), n) {
                    server.attach(p);
                }
            }
            Step::TearDown(n) => {
                if let Some(uid) = pick(server.on_nodes(), n) {
                    server.tear_down(&uid);
                }
            }
            Step::NodeGone(n) => server.node_gone(&format!("n{n}")),
            Step::Pass(seconds) => server.pass(seconds),
            Step::Deliver(c, kind) => {
                controllers[c].deliver(kind, server);
            }
            Step::Relist(c, kind, back) => controllers[c].relist(kind, back, server),
            Step::Plan(c, n) => {
                if let Some(p) = pick(server.pods.keys().copied(), n) {
                    controllers[c].plan(p, server);
                }
            }
            Step::Write(c, n, answered) => controllers[c].write(n, answered, server),
            Step::Review(c, n) => {
                let known: BTreeSet<InstanceName> =
                    controllers[c].ipam.instances().map(|d| d.name.clone()).collect();
                if let Some(name) = pick(known, n) {
                    controllers[c].review(&name, server);
                }
            }
            Step::Sweep(c) => controllers[c].sweep(server),
            Step::Crash(c, back) => controllers[c] = Controller::start(server, back),
        }
        self.server.check();
    }

    /// Everything that is on its way arrives, and both controllers do what they would do on their own.
    fn settle(&mut self) -> Vec<Refusal> {
        let Self { server, controllers } = self;
        for _ in 0..100 {
            let mut refusals = Vec::new();
            let before = server.writes;
            for c in controllers.iter_mut() {
                for kind in Kind::ALL {
                    while c.deliver(kind, server) {}
                }
                while !c.flights.is_empty() {
                    c.write(0, true, server);
                }
                for kind in Kind::ALL {
                    while c.deliver(kind, server) {}
                }
                for p in server.pods.keys().copied().collect::<Vec<_>>() {
                    if !server.pods[&p].finished {
                        refusals.extend(c.plan(p, server));
                    }
                }
                while !c.flights.is_empty() {
                    c.write(0, true, server);
                }
                let known: Vec<InstanceName> = c.ipam.instances().map(|d| d.name.clone()).collect();
                for name in known {
                    c.review(&name, server);
                }
                c.sweep(server);
                server.check();
            }
            if server.writes == before {
                return refusals;
            }
        }
        panic!("the two controllers never come to rest");
    }
}

fn run(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.take(step);
    }
    let refusals = world.settle();
    // A pod without a complete set was refused, and for a good reason.
    for (p, pod) in &world.server.pods {
        let waits = pod.terminating || pod.finished || world.server.complete_set(&pod.uid()).is_some();
        assert!(waits || !refusals.is_empty(), "pod {p} waits for nothing");
    }
    assert!(refusals.iter().all(|r| ["SubnetFull", "NodeMissing"].contains(&r.reason())), "{refusals:?}");
    // Both see what is there.
    for c in &world.controllers {
        let cached: BTreeMap<_, _> = c.ipam.instances().map(|d| (d.name.clone(), d.clone())).collect();
        assert_eq!(cached, world.server.instances);
        assert_eq!(c.ipam.in_flight(), 0);
    }
    // The end of everything: what was given out comes back.
    for p in world.server.pods.keys().copied().collect::<Vec<_>>() {
        world.server.remove_pod(p);
    }
    for uid in world.server.on_nodes() {
        world.server.tear_down(&uid);
    }
    for _ in 0..4 {
        world.settle();
        world.server.pass(1000);
    }
    world.settle();
    assert_eq!(world.server.instances.keys().collect::<Vec<_>>(), Vec::<&InstanceName>::new(), "leaked");
    assert_eq!(world.server.blocks.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "leaked");
    for c in &world.controllers {
        let usage = c.ipam.usage("v4");
        assert_eq!((usage.total, usage.available), (6, 6));
    }
}

proptest! {
    #[test]
    fn no_address_is_held_twice_and_none_is_lost(steps in prop::collection::vec(step(), 0..500)) {
        run(&steps);
    }
}
