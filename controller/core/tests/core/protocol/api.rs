//! The API server and the nodes: what really is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use braid_controller_core::PodFact;
use braid_types::InstanceName;
use braid_types::model::{BlockDef, InstanceDef, Phase};

/// A kind with a watch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Instance,
    Block,
    Pod,
    Node,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Instance, Self::Block, Self::Pod, Self::Node];
}

/// One event of a watch.
#[derive(Debug, Clone)]
pub(super) enum News {
    Instance(Arc<InstanceDef>),
    InstanceGone(InstanceName, String),
    Block(BlockDef),
    BlockGone(String),
    Pod(PodFact),
    PodGone(String),
    NodeGone(String),
}

/// What one watch's list says.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) instances: Vec<Arc<InstanceDef>>,
    pub(super) blocks: Vec<BlockDef>,
    pub(super) pods: Vec<PodFact>,
    pub(super) nodes: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Pod {
    number: usize,
    pub(super) node: String,
    pub(super) terminating: bool,
    pub(super) finished: bool,
}

impl Pod {
    pub(super) fn uid(&self) -> String {
        format!("pod-{}", self.number)
    }
}

/// What a node has in its kernel for one pod.
#[derive(Debug)]
struct Attached {
    node: String,
    addresses: Vec<InstanceName>,
    /// When the pod ended or vanished for the API while the node still has it.
    abandoned: Option<i64>,
}

pub(super) struct Server {
    pub(super) now: i64,
    pub(super) instances: BTreeMap<InstanceName, Arc<InstanceDef>>,
    pub(super) blocks: BTreeMap<String, BlockDef>,
    pub(super) pods: BTreeMap<usize, Pod>,
    pub(super) nodes: BTreeSet<String>,
    first_nodes: BTreeSet<String>,
    pub(super) writes: usize,
    logs: BTreeMap<Kind, Vec<News>>,
    attached: BTreeMap<String, Attached>,
    /// Pods that nodes know and have not torn down, attached or not: (uid, node).
    sandboxes: BTreeMap<String, String>,
    last_pod: usize,
    last_uid: usize,
}

impl Server {
    pub(super) fn new(nodes: usize) -> Self {
        let nodes: BTreeSet<String> = (0..nodes).map(|n| format!("n{n}")).collect();
        Self {
            now: 0,
            instances: BTreeMap::new(),
            blocks: BTreeMap::new(),
            pods: BTreeMap::new(),
            first_nodes: nodes.clone(),
            nodes,
            writes: 0,
            logs: Kind::ALL.into_iter().map(|k| (k, Vec::new())).collect(),
            attached: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            last_pod: 0,
            last_uid: 0,
        }
    }

    pub(super) fn log(&self, kind: Kind) -> &[News] {
        &self.logs[&kind]
    }

    fn tell(&mut self, kind: Kind, news: News) {
        self.writes += 1;
        self.logs.entry(kind).or_default().push(news);
    }

    /// The objects of a kind as they were after its first `at` events.
    pub(super) fn at(&self, kind: Kind, at: usize) -> Past {
        let mut instances = BTreeMap::new();
        let mut blocks = BTreeMap::new();
        let mut pods = BTreeMap::new();
        let mut nodes = self.first_nodes.clone();
        for news in &self.logs[&kind][..at] {
            match news.clone() {
                News::Instance(def) => drop(instances.insert(def.name.clone(), def)),
                News::InstanceGone(name, _) => drop(instances.remove(&name)),
                News::Block(def) => drop(blocks.insert(def.name.clone(), def)),
                News::BlockGone(name) => drop(blocks.remove(&name)),
                News::Pod(fact) => drop(pods.insert(fact.uid.clone(), fact)),
                News::PodGone(uid) => drop(pods.remove(uid.as_str())),
                News::NodeGone(name) => drop(nodes.remove(&name)),
            }
        }
        Past {
            instances: instances.into_values().collect(),
            blocks: blocks.into_values().collect(),
            pods: pods.into_values().collect(),
            nodes,
        }
    }

    // ---- what controllers write

    /// The object that is there now.
    pub(super) fn create(&mut self, def: &InstanceDef) -> Option<Arc<InstanceDef>> {
        if let Some(there) = self.instances.get(&def.name) {
            return Some(there.clone());
        }
        self.last_uid += 1;
        let made = Arc::new(InstanceDef { uid: format!("object-{}", self.last_uid).into(), ..def.clone() });
        self.instances.insert(made.name.clone(), made.clone());
        self.tell(Kind::Instance, News::Instance(made.clone()));
        Some(made)
    }

    /// Like `PUT` of an object that was read a moment ago: only the uid is compared.
    pub(super) fn replace(&mut self, def: &InstanceDef) -> Option<Arc<InstanceDef>> {
        let there = self.instances.get(&def.name)?.clone();
        if there.uid != def.uid || there.phase != Phase::Bound {
            return Some(there);
        }
        self.update(&there, def.clone());
        Some(self.instances[&def.name].clone())
    }

    /// Writes if the object is still the one that was seen.
    pub(super) fn update(&mut self, seen: &Arc<InstanceDef>, new: InstanceDef) {
        if self.instances.get(&seen.name) == Some(seen) {
            let new = Arc::new(new);
            self.instances.insert(new.name.clone(), new.clone());
            self.tell(Kind::Instance, News::Instance(new));
        }
    }

    /// Deletes if the uid is the same.
    pub(super) fn delete(&mut self, def: &InstanceDef) {
        if self.instances.get(&def.name).is_some_and(|d| d.uid == def.uid) {
            self.instances.remove(&def.name);
            self.tell(Kind::Instance, News::InstanceGone(def.name.clone(), def.uid.to_string()));
        }
    }

    pub(super) fn create_block(&mut self, def: &BlockDef) -> BlockDef {
        if !self.blocks.contains_key(&def.name) {
            self.blocks.insert(def.name.clone(), def.clone());
            self.tell(Kind::Block, News::Block(def.clone()));
        }
        self.blocks[&def.name].clone()
    }

    pub(super) fn delete_block(&mut self, def: &BlockDef) {
        if self.blocks.get(&def.name) == Some(def) {
            self.blocks.remove(&def.name);
            self.tell(Kind::Block, News::BlockGone(def.name.clone()));
        }
    }

    // ---- pods and nodes

    pub(super) fn bind(&mut self, node: &str) {
        if !self.nodes.contains(node) || self.pods.len() >= 8 {
            return;
        }
        self.last_pod += 1;
        let pod = Pod { number: self.last_pod, node: node.to_owned(), terminating: false, finished: false };
        self.tell(Kind::Pod, News::Pod(PodFact { uid: pod.uid().into(), finished: false, created: 0 }));
        self.sandboxes.insert(pod.uid(), pod.node.clone());
        self.pods.insert(pod.number, pod);
    }

    pub(super) fn finish(&mut self, pod: usize) {
        let p = self.pods.get_mut(&pod).expect("the pod exists");
        p.finished = true;
        let uid = p.uid();
        self.abandon(&uid);
        self.tell(Kind::Pod, News::Pod(PodFact { uid: uid.into(), finished: true, created: 0 }));
    }

    /// The object goes, as by `kubectl delete --force`: the node may run it yet.
    pub(super) fn remove_pod(&mut self, pod: usize) {
        let uid = self.pods.remove(&pod).expect("the pod exists").uid();
        self.abandon(&uid);
        self.tell(Kind::Pod, News::PodGone(uid));
    }

    fn abandon(&mut self, uid: &str) {
        if let Some(a) = self.attached.get_mut(uid) {
            a.abandoned.get_or_insert(self.now);
        }
    }

    /// One set of a pod's addresses that exists as a whole.
    pub(super) fn complete_set(&self, uid: &str) -> Option<Vec<InstanceName>> {
        let own = |name: &InstanceName| {
            self.instances
                .get(name)
                .is_some_and(|d| d.phase == Phase::Bound && d.pod.as_ref().is_some_and(|p| p.uid == uid))
        };
        self.instances
            .values()
            .filter(|d| own(&d.name))
            .map(|d| d.set.iter().map(|a| InstanceName::new("", *a)).collect::<Vec<_>>())
            .find(|set| set.iter().all(own))
    }

    /// The agent wires the pod up as soon as its set is complete.
    pub(super) fn attach(&mut self, pod: usize) {
        let p = &self.pods[&pod];
        let uid = p.uid();
        if p.terminating || p.finished || self.attached.contains_key(&uid) || !self.nodes.contains(&p.node) {
            return;
        }
        if let Some(addresses) = self.complete_set(&uid) {
            let attached = Attached { node: p.node.clone(), addresses, abandoned: None };
            self.attached.insert(uid, attached);
        }
    }

    /// Uids of pods that nodes have not torn down.
    pub(super) fn on_nodes(&self) -> Vec<String> {
        self.sandboxes.keys().cloned().collect()
    }

    /// The agent takes a pod down that is terminating, finished or gone, and says so.
    pub(super) fn tear_down(&mut self, uid: &str) {
        let alive = self.pods.values().any(|p| p.uid() == uid && !p.terminating && !p.finished);
        if alive {
            return;
        }
        self.sandboxes.remove(uid);
        self.attached.remove(uid);
        let of_pod: Vec<_> = self
            .instances
            .values()
            .filter(|d| d.pod.as_ref().is_some_and(|p| p.uid == uid) && d.torn_down.is_none())
            .cloned()
            .collect();
        for def in of_pod {
            let torn_down = Some(self.now);
            self.update(&def, InstanceDef { phase: Phase::Releasing, torn_down, ..(*def).clone() });
        }
    }

    /// The machine is dead and its Node object deleted; the pods on it go with it.
    pub(super) fn node_gone(&mut self, node: &str) {
        if self.nodes.len() == 1 || !self.nodes.remove(node) {
            return;
        }
        self.attached.retain(|_, a| a.node != node);
        self.sandboxes.retain(|_, n| n != node);
        self.tell(Kind::Node, News::NodeGone(node.to_owned()));
        for pod in self.pods.values().filter(|p| p.node == node).map(|p| p.number).collect::<Vec<_>>() {
            self.remove_pod(pod);
        }
    }

    /// Time passes. What a silent node runs longer than the orphan timeout after its pod has ended is not counted:
    /// that is what the timeout is for.
    pub(super) fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        let now = self.now;
        self.attached.retain(|_, a| a.abandoned.is_none_or(|t| now < t + 900));
    }

    /// What must hold after every step.
    pub(super) fn check(&self) {
        let mut held: BTreeMap<&InstanceName, &str> = BTreeMap::new();
        for (uid, attached) in &self.attached {
            for name in &attached.addresses {
                if let Some(other) = held.insert(name, uid) {
                    panic!("{name} is held by {other} and {uid}");
                }
                let owner = self.instances.get(name).and_then(|d| d.pod.as_ref()).map(|p| p.uid.as_str());
                assert_eq!(owner, Some(uid.as_str()), "{name} was taken away from a pod that may run");
            }
        }
    }
}
