//! The real core, asked about the small states of the model.
//!
//! For each question an [`Ipam`] is made that knows what the controller knows, fed through the functions that the
//! watches feed; its answer is brought back into the model's form. The same question always has the same answer, so
//! each is asked once and remembered.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use braid_controller_core::ipam::{Given, Lists, surplus};
use braid_controller_core::release::{Checks, Decision, OwnerCheck, PodCheck, PodSeen};
use braid_controller_core::{Claim, Config, Ipam, Keep, Migration, NodeFact, PodFact, PodRequest, Restored};
use braid_types::model::{
    BlockDef, Encapsulation, HandoverDef, InstanceDef, NetworkDef, NetworkType, OwnerRef, Phase, PodRef,
    SubnetDef, VxlanDef,
};
use braid_types::{AddrRange, Cidr, InstanceName, Mac, Selector, Symbol, Vni, block_name};

use crate::scenario::{Fault, Machine, Scenario};
use crate::state::{self, ADDRESSES, Change, Due, Kind, Life, Object, PODS, Second, Seen, View};

/// The time at which everything is asked.
const NOW: i64 = 1_000_000;
const CONFIG: Config = Config { cool_down: 30, orphan_timeout: 900, block_grace: 300, owner_check: 60 };
/// Has all blocks, so that they never change: every address is borrowed from it.
const BLOCK_NODE: &str = "elsewhere";
const NAMESPACE: &str = "shop";

/// What the API server would say about an address's pods, their nodes, and its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Truth {
    pub(crate) pod: Life,
    pub(crate) node: bool,
    pub(crate) second_pod: Life,
    pub(crate) second_node: bool,
    pub(crate) owner: bool,
}

/// What becomes of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) change: Option<Change>,
    /// What the controller remembers now.
    pub(crate) ended: [Due; PODS],
}

/// What a grant is to write: the target per address, and whether an object is there already.
pub(crate) type Targets = [Option<(Object, bool)>; ADDRESSES];

/// Changes of an address's object as a watch tells them, or an answer to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct News {
    address: usize,
    object: Option<Object>,
    /// Whether it is the object that was known, by uid.
    same: bool,
}

/// A view without what the core does not see.
type Known = View;

/// Which question was asked about what is known; with the addresses that other jobs of the process have promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Grant { pod: usize, late_start: bool, promised: u8 },
    Judge { address: usize, truth: Truth },
    Learn(News),
    LearnAll([Option<(Object, bool)>; ADDRESSES]),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Grant(Option<Targets>),
    Judge(Judgement),
    Learn(View),
}

/// The core as the controllers of a scenario use it.
pub(crate) struct Adapter {
    scenario: Scenario,
    answers: Mutex<HashMap<(Known, Question), Answer>>,
    names: Vec<InstanceName>,
    /// For what the model itself wants to know, and for the fault of that name.
    proof: Restored,
}

impl Adapter {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let v4 = (1..=scenario.v4).map(|n| IpAddr::from([10, 0, 0, n]));
        let v6 = (1..=scenario.v6).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]));
        let names = v4.chain(v6).map(|a| InstanceName::new("", a)).collect();
        let (_, proof) = Ipam::restore(CONFIG, Lists::default(), NOW);
        Self { scenario, answers: Mutex::default(), names, proof }
    }

    /// How many different questions were asked.
    pub(crate) fn questions(&self) -> usize {
        self.answers.lock().expect("nobody panicked").len()
    }

    /// The writes that give the pod its addresses; `None` when it is refused. `late_start` starts the search behind
    /// the first free address: where a process searches on depends on what it gave out before.
    pub(crate) fn grant(&self, view: &View, pod: usize, late_start: bool, promised: u8) -> Option<Targets> {
        match self.ask(view, Question::Grant { pod, late_start, promised }) {
            Answer::Grant(targets) => targets,
            other => panic!("{other:?}"),
        }
    }

    /// What becomes of an address that the view has. The API server is asked as often as the core wants it.
    pub(crate) fn judge(&self, view: &View, address: usize, truth: Truth) -> Judgement {
        match self.ask(view, Question::Judge { address, truth }) {
            Answer::Judge(judgement) => judgement,
            other => panic!("{other:?}"),
        }
    }

    /// Takes in the object of an address as it is now, or that there is none.
    pub(crate) fn learn(&self, view: &View, address: usize, object: Option<Object>) -> View {
        let same = view.objects[address].is_some_and(|s| s.same_uid);
        let Answer::Learn(mut new) = self.ask(view, Question::Learn(News { address, object, same })) else {
            panic!("another answer")
        };
        for (at, seen) in view.objects.iter().enumerate().filter(|(at, _)| *at != address) {
            new.objects[at] = *seen;
        }
        new
    }

    /// Takes in a full list of addresses.
    pub(crate) fn learn_all(&self, view: &View, objects: &[Option<Object>; ADDRESSES]) -> View {
        let mut news = [None; ADDRESSES];
        for at in 0..ADDRESSES {
            news[at] = objects[at].map(|o| (o, view.objects[at].is_some_and(|s| s.same_uid)));
        }
        match self.ask(view, Question::LearnAll(news)) {
            Answer::Learn(view) => view,
            other => panic!("{other:?}"),
        }
    }

    /// Which of a pod's addresses it does not need.
    pub(crate) fn surplus(&self, pod: usize, found: &[(usize, Object)]) -> Vec<usize> {
        let given =
            found.iter().map(|(at, object)| Given { def: self.def(*at, object, ""), in_use: object.sandbox });
        let given: Vec<_> = given.collect();
        surplus(&self.pod_ref(pod).uid, &given).iter().map(|name| self.position(name)).collect()
    }

    fn ask(&self, view: &View, question: Question) -> Answer {
        let mut known = *view;
        for seen in known.objects.iter_mut().flatten() {
            *seen = Seen::now(seen.object);
        }
        if let Some(answer) = self.answers.lock().expect("nobody panicked").get(&(known, question)) {
            return *answer;
        }
        let answer = match question {
            Question::Grant { pod, late_start, promised } => {
                Answer::Grant(self.ask_for_grant(&known, pod, late_start, promised))
            }
            Question::Judge { address, truth } => Answer::Judge(self.ask_to_judge(&known, address, truth)),
            Question::Learn(news) => {
                let mut ipam = self.ipam(&known);
                let name = &self.names[news.address];
                if !news.same || news.object.is_none() {
                    ipam.remove_instance(name, "before");
                }
                if let Some(object) = news.object {
                    let uid = if news.same { "before" } else { "after" };
                    ipam.upsert_instance(Arc::new(self.def(news.address, &object, uid)), NOW);
                }
                Answer::Learn(self.view_of(ipam, &known))
            }
            Question::LearnAll(all) => {
                let mut ipam = self.ipam(&known);
                let defs = all.iter().enumerate().filter_map(|(at, news)| {
                    let (object, same) = (*news)?;
                    let uid = if same { "before" } else { "after" };
                    Some(Arc::new(self.def(at, &object, uid)))
                });
                ipam.reset_instances(defs.collect(), NOW);
                Answer::Learn(
                    self.view_of(ipam, &View { listed: known.listed | Kind::Addresses.bit(), ..known }),
                )
            }
        };
        self.answers.lock().expect("nobody panicked").insert((known, question), answer);
        answer
    }

    // ---- questions

    fn ask_for_grant(&self, view: &View, pod: usize, late_start: bool, promised: u8) -> Option<Targets> {
        let mut view = *view;
        if self.scenario.fault == Fault::TakesFromPredecessor {
            for seen in view.objects.iter_mut().flatten().filter(|s| s.object.pod != Some(pod as u8)) {
                seen.object = Object { pod: None, phase: Phase::Reserved, ..seen.object };
            }
        }
        if self.scenario.fault == Fault::ReleasingNotTold {
            let releasing = |s: &Seen| s.object.phase == Phase::Releasing && s.object.pod == Some(pod as u8);
            for known in view.objects.iter_mut().filter(|s| s.is_some_and(|s| releasing(&s))) {
                *known = None;
            }
        }
        if self.scenario.fault == Fault::SecondForgotten {
            let of_other = |s: &Second| usize::from(s.pod) != pod;
            for seen in view.objects.iter_mut().flatten() {
                seen.object.second = seen.object.second.filter(|s| !of_other(s));
            }
        }
        if self.scenario.fault == Fault::AttachedNotTold {
            view.objects.iter_mut().flatten().for_each(|seen| seen.object.attached = false);
        }
        let mut ipam = self.ipam(&view);
        let own_proof;
        let proof = if self.scenario.fault == Fault::RestoreSkipped {
            &self.proof
        } else {
            own_proof = ipam.restored().ok()?;
            &own_proof
        };
        let strange = |ips: Vec<AddrRange>| PodRequest {
            choice: braid_controller_core::Choice { ips, ..Default::default() },
            owner: None,
            keep: None,
            pod: PodRef { uid: "stranger".into(), name: "stranger".into(), namespace: "else".into() },
            node: BLOCK_NODE.to_owned(),
            migration: None,
            ..self.request(&view, pod)
        };
        // What other jobs of this process have promised and not written yet.
        let promises: Vec<AddrRange> = (0..self.names.len())
            .filter(|at| promised & (1 << at) != 0 && view.objects[*at].is_none())
            .map(|at| AddrRange::single(self.names[at].address()))
            .collect();
        for range in promises {
            let family = Some(braid_controller_core::FamilyWish::Only(range.family()));
            let mut request = strange(vec![range]);
            request.choice.family = family;
            let _promise = ipam.grant(proof, &request).expect("the address is free");
        }
        if late_start && let Ok(grant) = ipam.grant(proof, &strange(Vec::new())) {
            ipam.finish(grant);
        }
        let grant = ipam.grant(proof, &self.request(&view, pod)).ok()?;
        assert!(grant.blocks.is_empty(), "{grant:?}");
        let mut targets = [None; ADDRESSES];
        for claim in &grant.claims {
            let at = self.position(claim.name());
            targets[at] = Some((self.object(claim.def()), matches!(claim, Claim::Replace { .. })));
        }
        ipam.finish(grant);
        Some(targets)
    }

    fn ask_to_judge(&self, view: &View, address: usize, truth: Truth) -> Judgement {
        let mut view = *view;
        if self.scenario.fault == Fault::TornDownNotAwaited
            && let Some(seen) = &mut view.objects[address]
        {
            seen.object.torn_down = true;
        }
        if let Some(second) = view.objects[address].as_mut().map(|seen| &mut seen.object.second) {
            match (self.scenario.fault, second.as_mut()) {
                (Fault::SecondNotAwaited, Some(second)) => second.torn_down = true,
                (Fault::SecondIgnored, _) => *second = None,
                _ => {}
            }
        }
        if self.scenario.fault == Fault::TimeoutFromCache {
            for pod in 0..PODS {
                view.ended[pod] = if view.pods[pod].exists() { Due::No } else { Due::Now };
            }
        }
        let mut ipam = self.ipam(&view);
        let proof = ipam.restored().expect("nothing is reviewed before everything is listed");
        let name = &self.names[address];
        let mut checks = Checks::default();
        let fault = self.scenario.fault;
        let said = |life| match life {
            Life::Unborn | Life::Gone => PodCheck::Gone,
            Life::Finished => PodCheck::Finished,
            Life::Live | Life::Terminating => PodCheck::Live,
        };
        let decision = loop {
            let decision = ipam.decide(&proof, name, checks, NOW).expect("the address is known");
            match &decision {
                Decision::RecheckPod(_) if checks.pod.is_none() => {
                    let believed = fault == Fault::PodNotAsked;
                    checks.pod = Some(if believed { PodCheck::Gone } else { said(truth.pod) });
                }
                Decision::RecheckSecondPod(_) if checks.second_pod.is_none() => {
                    let believed = fault == Fault::SecondNotAsked;
                    checks.second_pod = Some(if believed { PodCheck::Gone } else { said(truth.second_pod) });
                    if fault == Fault::OneQuestion {
                        checks.pod = checks.second_pod;
                    }
                }
                Decision::RecheckSecondNode(_) if checks.second_node.is_none() => {
                    checks.second_node = Some(truth.second_node && fault != Fault::SecondNodeNotAsked);
                }
                Decision::RecheckNode(_) if checks.node.is_none() => {
                    checks.node = Some(truth.node && fault != Fault::NodeNotAsked);
                }
                Decision::RecheckOwner(_) if checks.owner.is_none() => {
                    let live =
                        (truth.owner || fault == Fault::OwnerBelieved) && fault != Fault::OwnerNotAsked;
                    checks.owner = Some(if live { OwnerCheck::Live } else { OwnerCheck::Gone });
                }
                _ => break decision,
            }
        };
        let retained = |until: Option<i64>| match until {
            None => Due::No,
            Some(at) if at > NOW => Due::Later,
            Some(_) => Due::Now,
        };
        let change = match decision {
            Decision::Keep | Decision::WaitUntil(_) => None,
            Decision::MarkReleasing { .. } if fault == Fault::DeletesAtOnce => Some(Change::Delete),
            Decision::MarkReleasing { .. } => Some(Change::MarkReleasing),
            Decision::Reserve { since, until } => {
                Some(Change::Reserve { since: since.is_some(), until: retained(until) })
            }
            Decision::Delete => Some(Change::Delete),
            Decision::Replace(next) => Some(Change::Settle(self.object(&next))),
            Decision::RecheckPod(_)
            | Decision::RecheckNode(_)
            | Decision::RecheckSecondPod(_)
            | Decision::RecheckSecondNode(_)
            | Decision::RecheckOwner(_) => panic!("asked twice: {decision:?}"),
            Decision::RouteByHost => panic!("every address is routed by host from the start"),
        };
        Judgement { change, ended: self.ended(&ipam, &view) }
    }

    // ---- into the core

    /// An `Ipam` that knows what the view knows.
    fn ipam(&self, view: &View) -> Ipam {
        let config = Config {
            cool_down: if self.scenario.fault == Fault::NoCoolDown { 0 } else { CONFIG.cool_down },
            ..CONFIG
        };
        let mut ipam = Ipam::new(config);
        ipam.reset_networks(vec![network()]);
        let families = [("v4", "10.0.0.0/29", self.scenario.v4), ("v6", "fd00::/125", self.scenario.v6)];
        let present = || families.iter().filter(|(_, _, count)| *count > 0);
        ipam.reset_subnets(present().map(|(name, cidr, count)| subnet(name, cidr, *count)).collect());
        ipam.reset_blocks(present().map(|(name, cidr, _)| block(name, cidr)).collect());
        if view.listed & Kind::Nodes.bit() != 0 {
            let nodes = (0..self.scenario.nodes).filter(|n| view.nodes & (1 << n) != 0).map(node_name);
            ipam.reset_nodes(nodes.chain([BLOCK_NODE.to_owned()]).map(node).collect());
        }
        if view.listed & Kind::Addresses.bit() != 0 {
            ipam.reset_instances(Vec::new(), NOW);
        }
        for at in 0..self.names.len() {
            let Some(seen) = &view.objects[at] else { continue };
            let since = if view.cooling[at] == Due::Now { NOW - CONFIG.cool_down } else { NOW };
            ipam.upsert_instance(Arc::new(self.def(at, &seen.object, "before")), since);
        }
        for (pod, ended) in view.ended.iter().enumerate().filter(|(_, ended)| **ended != Due::No) {
            let since = if *ended == Due::Now { NOW - CONFIG.orphan_timeout } else { NOW };
            let names = |seen: &Option<Seen>| seen.is_some_and(|s| s.object.names(pod));
            if let Some(at) = view.objects.iter().position(names) {
                let holds = view.objects[at].is_some_and(|s| s.object.pod == Some(pod as u8));
                let gone = |so: bool| so.then_some(PodCheck::Gone);
                let checks = Checks { pod: gone(holds), second_pod: gone(!holds), ..Checks::default() };
                let _ = ipam.decide(&self.proof, &self.names[at], checks, since);
            }
        }
        if view.listed & Kind::Pods.bit() != 0 {
            let mut known: BTreeMap<String, PodFact> = BTreeMap::new();
            for (pod, life) in view.pods.iter().enumerate().filter(|(_, life)| life.exists()) {
                let uid = self.pod_ref(pod).uid;
                let created = pod as i64;
                let fact = PodFact { uid: uid.clone(), finished: true, created };
                known.entry(uid.to_string()).or_insert(fact).finished &= *life == Life::Finished;
            }
            ipam.reset_pods(known.into_values().collect());
        }
        ipam
    }

    fn def(&self, address: usize, object: &Object, uid: &str) -> InstanceDef {
        let name = self.names[address].clone();
        let v4 = address < usize::from(self.scenario.v4);
        let addresses = |mask: u8| {
            let of_mask = (0..self.names.len()).filter(move |at| mask & (1 << at) != 0);
            of_mask.map(|at| self.names[at].address()).collect()
        };
        InstanceDef {
            name,
            uid: uid.into(),
            network: "overlay".into(),
            subnet: if v4 { "v4" } else { "v6" }.into(),
            prefix_len: if v4 { 29 } else { 125 },
            gateway: None,
            mac: Some(Mac::derived(b"any")),
            pod: object.pod.map(|p| self.pod_ref(usize::from(p))),
            interface: "eth0".into(),
            node: object.node.map(node_name).map(Into::into),
            set: addresses(object.set),
            owner: object.owned.then(|| Box::new(self.owner())),
            retain_seconds: None,
            retain_until: match object.retain_until {
                Due::No => None,
                Due::Later => Some(NOW + 1000),
                Due::Now => Some(NOW),
            },
            reserved_at: object.reserved_at.then_some(NOW),
            declared: object.declared,
            attached: object.attached,
            phase: object.phase,
            torn_down: object.torn_down.then_some(NOW),
            release_at: object.release_at.then_some(NOW),
            handover: object.second.map(|second| {
                let (pod, node) = (self.pod_ref(usize::from(second.pod)), node_name(second.node).into());
                Box::new(HandoverDef { pod, node, role: second.role, torn_down: second.torn_down })
            }),
            host_routed: true,
            deleting: false,
        }
    }

    fn pod_ref(&self, pod: usize) -> PodRef {
        PodRef {
            namespace: NAMESPACE.into(),
            name: self.scenario.pods.get(pod).map_or("nobody", |p| p.name).into(),
            uid: format!("pod-{}", self.scenario.known_as(pod)).into(),
        }
    }

    fn owner(&self) -> OwnerRef {
        if self.scenario.has_machine() {
            return owner("VirtualMachine", "vm", None);
        }
        let name = self.scenario.pods.iter().find(|p| p.numbered).map(|p| p.name.to_owned());
        owner("StatefulSet", "db", name)
    }

    fn request(&self, view: &View, pod: usize) -> PodRequest {
        let plan = &self.scenario.pods[pod];
        let first = self.scenario.before(pod).next().is_none();
        let keeps = plan.numbered || plan.machine != Machine::No;
        let has_arrived = || view.arrived & (1 << pod) != 0 || self.scenario.fault == Fault::ArrivesEarly;
        let told = keeps && (first || self.scenario.fault != Fault::OwnerNotTold);
        PodRequest {
            pod: self.pod_ref(pod),
            interface: "eth0".to_owned(),
            node: node_name(plan.node),
            choice: braid_controller_core::Choice::default(),
            namespace_choice: braid_controller_core::Choice::default(),
            namespace_labels: BTreeMap::new(),
            owner: Some(if told { self.owner() } else { owner("Pod", plan.name, None) }),
            keep: told.then(Keep::default),
            migration: (plan.machine == Machine::Target)
                .then(|| if has_arrived() { Migration::Arrived } else { Migration::Preparing }),
        }
    }

    // ---- out of the core

    fn position(&self, name: &InstanceName) -> usize {
        self.names.iter().position(|n| n == name).expect("an address of the scenario")
    }

    fn object(&self, def: &InstanceDef) -> Object {
        let pod = |uid: &str| uid.strip_prefix("pod-").and_then(|n| n.parse().ok()).expect("a pod");
        let node =
            |name: &Symbol| name.strip_prefix('n').and_then(|number| number.parse().ok()).expect("a node");
        let bit = |a: &IpAddr| 1 << self.position(&InstanceName::new("", *a));
        Object {
            pod: def.pod.as_ref().map(|p| pod(&p.uid)),
            node: def.node.as_ref().map(node),
            second: def.handover.as_ref().map(|second| Second {
                pod: pod(&second.pod.uid),
                node: node(&second.node),
                role: second.role,
                torn_down: second.torn_down,
            }),
            set: def.set.iter().map(bit).fold(0, |all, bit: u8| all | bit),
            owned: def.owner.is_some(),
            declared: def.declared,
            retain_until: match def.retain_until {
                None => Due::No,
                Some(at) if at > NOW => Due::Later,
                Some(_) => Due::Now,
            },
            phase: def.phase,
            reserved_at: def.reserved_at.is_some(),
            attached: def.attached,
            sandbox: false,
            torn_down: def.torn_down.is_some(),
            release_at: def.release_at.is_some(),
        }
    }

    fn ended(&self, ipam: &Ipam, view: &View) -> [Due; PODS] {
        let mut ended = [Due::No; PODS];
        for (pod, ended) in ended.iter_mut().enumerate() {
            if !view.objects.iter().flatten().any(|s| s.object.names(pod)) {
                continue;
            }
            if let PodSeen::Over { confirmed: Some(since) } = ipam.pod_seen(&self.pod_ref(pod).uid) {
                *ended = if since + CONFIG.orphan_timeout <= NOW { Due::Now } else { Due::Later };
            }
        }
        ended
    }

    /// What the core knows after a change, read back from it.
    fn view_of(&self, mut ipam: Ipam, before: &View) -> View {
        let mut view = *before;
        for at in 0..self.names.len() {
            view.objects[at] = ipam.instance(&self.names[at]).map(|def| Seen::now(self.object(def)));
        }
        view.ended = self.ended(&ipam, &view);
        view.cooling = [Due::No; ADDRESSES];
        // Shown by what it says about an address whose pod is over.
        ipam.reset_pods(Vec::new());
        for at in 0..self.names.len() {
            if !view.objects[at].is_some_and(|s| s.object.release_at) {
                continue;
            }
            let checks = Checks {
                pod: Some(PodCheck::Gone),
                second_pod: Some(PodCheck::Gone),
                node: Some(false),
                second_node: Some(false),
                owner: Some(OwnerCheck::Live),
            };
            view.cooling[at] = match ipam.decide(&self.proof, &self.names[at], checks, NOW) {
                Some(Decision::Delete) => Due::Now,
                Some(Decision::WaitUntil(_)) => Due::Later,
                _ => Due::No,
            };
        }
        view
    }
}

fn node_name(node: u8) -> String {
    format!("n{node}")
}

fn node(name: String) -> NodeFact {
    NodeFact { uid: format!("uid-of-{name}"), name, labels: BTreeMap::new(), addresses: Vec::new() }
}

fn owner(kind: &str, name: &str, pod: Option<String>) -> OwnerRef {
    OwnerRef {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        namespace: NAMESPACE.into(),
        name: name.into(),
        uid: "owner".into(),
        pod: pod.map(Into::into),
    }
}

fn network() -> NetworkDef {
    NetworkDef {
        name: "overlay".to_owned(),
        created: 100,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: Vec::new(),
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(4).expect("a VNI"),
            port: 8472,
            encapsulation: Encapsulation::Always,
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

fn subnet(name: &str, cidr: &str, count: u8) -> SubnetDef {
    let cidr: Cidr = cidr.parse().expect("a CIDR");
    let addresses = match cidr.first() {
        IpAddr::V4(_) => format!("10.0.0.1-10.0.0.{count}"),
        IpAddr::V6(_) => format!("fd00::1-fd00::{count}"),
    };
    SubnetDef {
        name: name.to_owned(),
        created: 100,
        network: "overlay".to_owned(),
        gateway: None,
        ranges: vec![addresses.parse().expect("a range")],
        excluded: Vec::new(),
        reserved: Vec::new(),
        vlan: None,
        block_size: cidr.prefix_len(),
        private: false,
        nat_outgoing: false,
        routing_table: None,
        ready: true,
        deleting: false,
        cidr,
    }
}

fn block(subnet: &str, cidr: &str) -> BlockDef {
    let cidr: Cidr = cidr.parse().expect("a CIDR");
    let name = block_name(subnet, &cidr);
    BlockDef { name, subnet: subnet.to_owned(), cidr, node: BLOCK_NODE.to_owned() }
}

/// The claims of a grant as a job carries them.
pub(crate) fn claims(targets: &Targets, view: &View) -> [Option<state::Claim>; ADDRESSES] {
    let mut claims = [None; ADDRESSES];
    for (at, target) in targets.iter().enumerate() {
        claims[at] = target.map(|(target, replaces)| state::Claim {
            target,
            seen: view.objects[at].filter(|_| replaces),
            half: false,
        });
    }
    claims
}
