//! All that the controller knows: the core's state and what the shell needs beside it to talk to the API server.
//!
//! Everything is behind one lock that is held for moments only and never across a wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use braid_api::{Network, Subnet};
use braid_controller_core::{Choice, Config, Effects, Ipam, Keep, Migration, Topic};
use braid_types::model::{NodeDef, OwnerRef, PodRef};
use braid_types::{InstanceName, Symbol};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::index::Unreadable;
use crate::queue::{Queue, RetryDelay};

/// Uid of a pod.
pub(crate) type Uid = Symbol;

/// How long status writes wait for more changes of the same object.
const STATUS_DELAY: Duration = Duration::from_millis(200);
/// The same while many pods wait for addresses: counts change with each of them, and every agent hears of every status.
const BUSY_STATUS_DELAY: Duration = Duration::from_secs(1);
/// From how many waiting pods on that is so.
const BUSY: usize = 32;

/// A pod that needs addresses from Braid.
#[derive(Debug, Clone)]
pub(crate) struct PodEntry {
    /// Who it is.
    pub(crate) pod: PodRef,
    /// The node it is bound to.
    pub(crate) node: Symbol,
    /// What its annotations say, or what is wrong with them.
    pub(crate) choice: Arc<Result<Choice, String>>,
    /// In whose name its addresses are kept; `None` = its own.
    pub(crate) owner: Option<Arc<OwnerRef>>,
    /// Whether they are, when it is gone.
    pub(crate) keep: Option<Keep>,
    /// How far the migration of a virtual machine to it is; `None` where it is no target of one.
    pub(crate) migration: Option<Migration>,
    /// When it was first seen bound.
    pub(crate) bound: Instant,
    /// Whether its addresses are all there.
    pub(crate) granted: bool,
    /// What its condition says: reason and sentence of the last refusal.
    pub(crate) refused: Option<Box<(String, String)>>,
    /// When that condition was last written by this process.
    pub(crate) told: Option<Instant>,
}

/// What a namespace says about its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamespaceEntry {
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// What its annotations say, or what is wrong with them.
    pub(crate) choice: Result<Choice, String>,
}

impl NamespaceEntry {
    /// What the namespace `name` adds to what a pod says; `None` = nothing that counts.
    ///
    /// # Errors
    /// A sentence, when its annotations cannot be understood. A pod that says itself what it wants does not depend on
    /// what its namespace says.
    pub(crate) fn choice_beside(&self, name: &str, pod: &Choice) -> Result<Option<&Choice>, String> {
        match &self.choice {
            Ok(choice) => Ok(Some(choice)),
            Err(_) if pod.names_a_place() => Ok(None),
            Err(sentence) => Err(format!("namespace {name}: {sentence}")),
        }
    }
}

/// Refused pods by what may help them; who waits longest is asked first.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_topic: HashMap<Topic, BTreeMap<u64, Uid>>,
    by_pod: HashMap<Uid, (u64, Vec<Topic>)>,
    last_place: u64,
}

impl Waiters {
    /// From now on `uid` waits for exactly these topics. It keeps its place.
    pub(crate) fn wait(&mut self, uid: &Uid, topics: Vec<Topic>) {
        let place = self.forget(uid).unwrap_or_else(|| {
            self.last_place += 1;
            self.last_place
        });
        for topic in &topics {
            self.by_topic.entry(topic.clone()).or_default().insert(place, uid.clone());
        }
        self.by_pod.insert(uid.clone(), (place, topics));
    }

    /// It waits no more. Its place, if it had one.
    pub(crate) fn forget(&mut self, uid: &Uid) -> Option<u64> {
        let (place, topics) = self.by_pod.remove(uid)?;
        for topic in topics {
            if let Some(places) = self.by_topic.get_mut(&topic) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_topic.remove(&topic);
                }
            }
        }
        Some(place)
    }

    /// Who waits for the topic. They go on waiting until they are granted or wait for something else.
    fn of(&self, topic: &Topic) -> impl Iterator<Item = &Uid> {
        self.by_topic.get(topic).into_iter().flat_map(BTreeMap::values)
    }

    /// All of them, who waits longest first.
    fn in_order(&self) -> Vec<&Uid> {
        let mut all: Vec<(u64, &Uid)> = self.by_pod.iter().map(|(uid, (place, _))| (*place, uid)).collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, uid)| uid).collect()
    }

    /// Number of pods that wait.
    pub(crate) fn len(&self) -> usize {
        self.by_pod.len()
    }
}

/// Everything that is known.
#[derive(Debug)]
pub(crate) struct World {
    /// Addresses, blocks, and the parsed objects that decide about them.
    pub(crate) ipam: Ipam,
    /// Pods that need addresses.
    pub(crate) pods: HashMap<Uid, PodEntry>,
    /// Namespaces by name.
    pub(crate) namespaces: HashMap<String, NamespaceEntry>,
    /// Networks as the API server has them, for status and finalizers.
    pub(crate) networks: BTreeMap<String, Arc<Network>>,
    /// Subnets as the API server has them.
    pub(crate) subnets: BTreeMap<String, Arc<Subnet>>,
    /// Networks and Subnets that exist and cannot be used as they are: why. Keyed like the status queue.
    pub(crate) broken: BTreeMap<StatusKey, String>,
    /// Objects that exist and cannot be read.
    pub(crate) unreadable: Unreadable,
    /// resourceVersion of each IPInstance.
    pub(crate) instance_versions: HashMap<InstanceName, u64>,
    /// Addresses that the last full list did not have and that may be newer than it.
    pub(crate) unsure: BTreeSet<InstanceName>,
    /// Addresses that are kept without a pod, and whose status says Bound, as it has been since they were declared or
    /// restored.
    pub(crate) unlabelled: HashSet<InstanceName>,
    /// Uid and resourceVersion of each IPBlock.
    pub(crate) block_seen: HashMap<String, (String, String)>,
    /// What the agents say about their nodes.
    pub(crate) node_networks: BTreeMap<String, NodeDef>,
    /// Refused pods.
    pub(crate) waiters: Waiters,
}

/// An object with a status of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StatusKey {
    /// A Network.
    Network(String),
    /// A Subnet.
    Subnet(String),
}

/// What is tidied up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sweep {
    /// Blocks that nobody uses. Follows events.
    Blocks,
    /// Everything that events do not tell. Goes by time.
    Audit,
}

/// The work queues, one per kind of work, so that a flood of one kind does not hold up another.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    /// Pods to be given addresses.
    pub(crate) grants: Queue<Uid>,
    /// Addresses to be looked at: are they still needed?
    pub(crate) reviews: Queue<InstanceName>,
    /// Statuses and finalizers.
    pub(crate) statuses: Queue<StatusKey>,
    /// Tunnel ends: one key, the work finds out which are missing.
    pub(crate) vteps: Queue<()>,
    /// Leftovers.
    pub(crate) sweeps: Queue<Sweep>,
}

impl Queues {
    fn new() -> Self {
        let delay = RetryDelay { first: Duration::from_millis(200), longest: Duration::from_secs(30) };
        Self {
            grants: Queue::new(delay),
            reviews: Queue::new(delay),
            statuses: Queue::new(delay),
            vteps: Queue::new(delay),
            sweeps: Queue::new(delay),
        }
    }

    /// Lets work in: this process leads.
    pub(crate) fn open(&self) {
        self.grants.open();
        self.reviews.open();
        self.statuses.open();
        self.vteps.open();
        self.sweeps.open();
    }

    /// The name of a queue that has had work and handed out none for that long, if there is one.
    pub(crate) fn stuck(&self, limit: Duration) -> Option<&'static str> {
        [
            ("grants", self.grants.is_stuck(limit)),
            ("reviews", self.reviews.is_stuck(limit)),
            ("statuses", self.statuses.is_stuck(limit)),
            ("vteps", self.vteps.is_stuck(limit)),
            ("sweeps", self.sweeps.is_stuck(limit)),
        ]
        .into_iter()
        .find_map(|(name, stuck)| stuck.then_some(name))
    }

    /// Name, keys that wait, and keys that wait for their time, of each queue.
    pub(crate) fn depths(&self) -> [(&'static str, usize, usize); 5] {
        [
            ("grants", self.grants.depth(), self.grants.delayed()),
            ("reviews", self.reviews.depth(), self.reviews.delayed()),
            ("statuses", self.statuses.depth(), self.statuses.delayed()),
            ("vteps", self.vteps.depth(), self.vteps.delayed()),
            ("sweeps", self.sweeps.depth(), self.sweeps.delayed()),
        ]
    }
}

/// What everybody shares.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// The work queues.
    pub(crate) queues: Queues,
}

impl Shared {
    /// Nothing known, nothing to do.
    pub(crate) fn new(config: Config) -> Arc<Self> {
        let world = World {
            ipam: Ipam::new(config),
            pods: HashMap::new(),
            namespaces: HashMap::new(),
            networks: BTreeMap::new(),
            subnets: BTreeMap::new(),
            broken: BTreeMap::new(),
            unreadable: Unreadable::default(),
            instance_versions: HashMap::new(),
            unsure: BTreeSet::new(),
            unlabelled: HashSet::new(),
            block_seen: HashMap::new(),
            node_networks: BTreeMap::new(),
            waiters: Waiters::default(),
        };
        Arc::new(Self { world: Mutex::new(world), queues: Queues::new() })
    }

    /// The state, for a moment.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock()
    }

    /// Makes work of what an event touched.
    pub(crate) fn dispatch(&self, world: &World, effects: Effects) {
        let Effects { wake, review, pods, subnets, networks, vteps, everything } = effects;
        if everything {
            self.enqueue_waiting(world);
            self.enqueue_addresses(world);
        }
        for uid in wake.iter().flat_map(|topic| world.waiters.of(topic)) {
            self.queues.grants.add(uid.clone());
        }
        for uid in pods {
            self.queues.grants.add(uid);
        }
        for name in review {
            self.queues.reviews.add(name);
        }
        let delay = if self.queues.grants.depth() < BUSY { STATUS_DELAY } else { BUSY_STATUS_DELAY };
        let networks: BTreeSet<StatusKey> = networks.into_iter().map(StatusKey::Network).collect();
        for key in networks.into_iter().chain(subnets.into_iter().map(StatusKey::Subnet)) {
            self.queues.statuses.add_after(key, delay);
        }
        if vteps {
            self.queues.vteps.add_after((), STATUS_DELAY);
        }
    }

    /// Everything is to be looked at: this process has just begun to lead, or time has passed.
    pub(crate) fn enqueue_all(&self) {
        let world = self.world();
        self.enqueue_waiting(&world);
        self.enqueue_addresses(&world);
        for name in world.networks.keys() {
            self.queues.statuses.add(StatusKey::Network(name.clone()));
        }
        for name in world.subnets.keys() {
            self.queues.statuses.add(StatusKey::Subnet(name.clone()));
        }
        self.queues.vteps.add(());
        self.queues.sweeps.add(Sweep::Blocks);
        self.queues.sweeps.add(Sweep::Audit);
    }

    /// Who was refused a moment ago may still be noted as granted: it waits, and that is what counts.
    fn enqueue_waiting(&self, world: &World) {
        let others = world.pods.iter().filter(|(_, entry)| !entry.granted).map(|(uid, _)| uid);
        for uid in world.waiters.in_order().into_iter().chain(others) {
            self.queues.grants.add(uid.clone());
        }
    }

    /// Of a hundred thousand addresses there is nothing to do about most, and those need not be in a queue for it.
    fn enqueue_addresses(&self, world: &World) {
        let Some(restored) = world.ipam.restored().ok().filter(|_| self.queues.reviews.is_open()) else {
            return;
        };
        let due = world.ipam.due(&restored, crate::clock::seconds()).map(|def| &def.name);
        for name in due.chain(&world.unlabelled).chain(&world.unsure) {
            self.queues.reviews.add(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use braid_types::model::InstanceDef;

    use super::*;

    fn entry(uid: &str, granted: bool) -> PodEntry {
        PodEntry {
            pod: PodRef { namespace: "shop".into(), name: uid.into(), uid: uid.into() },
            node: "n1".into(),
            choice: Arc::new(Ok(Choice::default())),
            owner: None,
            keep: None,
            migration: None,
            bound: Instant::now(),
            granted,
            refused: None,
            told: None,
        }
    }

    /// An address that its pod, which is not there, has left behind; `None` = one about which there is nothing to do.
    fn address(name: &str, pod: Option<&str>) -> Arc<InstanceDef> {
        let object = serde_json::from_value::<braid_api::IPInstance>(serde_json::json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
            "spec": {
                "network": "n", "subnet": "s", "address": format!("{name}/24"), "interface": "eth0", "node": "n1",
                "pod": pod.map(|uid| serde_json::json!({"namespace": "shop", "name": uid, "uid": uid})),
            },
        }));
        Arc::new(InstanceDef::try_from(&object.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn everything_is_everybody_who_waits_and_every_address_that_is_due() {
        let shared = Shared::new(Config::default());
        let due = |shared: &Shared| (shared.queues.grants.depth(), shared.queues.reviews.depth());
        let everything = || Effects { everything: true, ..Effects::default() };
        let mut world = shared.world();
        world.pods.insert("has".into(), entry("has", true));
        world.pods.insert("new".into(), entry("new", false));
        world.pods.insert("refused".into(), entry("refused", true));
        world.waiters.wait(&"refused".into(), vec![Topic::AnyNetwork]);
        let all = ["10.0.0.1", "10.0.0.2"].map(|name| address(name, (name == "10.0.0.1").then_some("gone")));
        world.ipam.reset_networks(Vec::new());
        world.ipam.reset_subnets(Vec::new());
        world.ipam.reset_blocks(Vec::new());
        world.ipam.reset_nodes(Vec::new());
        world.ipam.reset_instances(all.to_vec(), 0);
        world.ipam.reset_pods(Vec::new());
        world.unlabelled.insert("10.0.0.3".parse().unwrap());
        world.unsure.insert("10.0.0.4".parse().unwrap());
        shared.dispatch(&world, everything());
        assert_eq!(due(&shared), (0, 0), "this process does not lead");
        shared.queues.open();
        shared.dispatch(&world, everything());
        assert_eq!(due(&shared), (2, 3), "of two addresses one is due");
    }

    #[test]
    fn waiters_wait_for_their_latest_topics_only() {
        let mut waiters = Waiters::default();
        let (one, two): (Uid, Uid) = ("one".into(), "two".into());
        let (a, b) = (Topic::Subnet("a".into()), Topic::Subnet("b".into()));
        waiters.wait(&one, vec![a.clone(), b.clone()]);
        waiters.wait(&two, vec![a.clone()]);
        assert_eq!((waiters.of(&a).count(), waiters.of(&b).count(), waiters.len()), (2, 1, 2));
        waiters.wait(&one, vec![b.clone()]);
        assert_eq!((waiters.of(&a).count(), waiters.of(&b).count()), (1, 1));
        waiters.wait(&one, vec![a.clone()]);
        assert_eq!(waiters.of(&a).collect::<Vec<_>>(), [&one, &two], "it has kept its place");
        assert_eq!(waiters.in_order(), [&one, &two]);
        waiters.forget(&one);
        waiters.forget(&two);
        assert!(waiters.by_topic.is_empty() && waiters.by_pod.is_empty());
    }
}
