//! What a run of the checker has in it.

use braid_types::model::Phase;

use crate::state::{
    ADDRESSES, CONTROLLERS, Controller, Due, Job, Kind, Life, NODES, Object, PODS, Sandbox, Seen, Stage,
    State, View, WORKERS,
};

/// One incarnation of a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodPlan {
    /// Pods of the same name follow each other.
    pub(crate) name: &'static str,
    pub(crate) node: u8,
    /// Whether it is the numbered pod of the owner, which keeps its addresses for it.
    pub(crate) numbered: bool,
    /// Whether it was there before the first step, and is gone.
    pub(crate) gone: bool,
    /// What it is to the virtual machine.
    pub(crate) machine: Machine,
}

/// What a pod is to the virtual machine of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// It has nothing to do with it.
    No,
    /// The machine starts there.
    Starts,
    /// The machine migrates there.
    Target,
}

impl PodPlan {
    /// Whether it differs in its name only.
    pub(crate) fn is_twin_of(&self, other: &Self) -> bool {
        let kind = |p: &Self| (p.node, p.numbered, p.gone, p.machine);
        kind(self) == kind(other) && self.machine == Machine::No
    }
}

pub(crate) const fn pod(name: &'static str, node: u8) -> PodPlan {
    PodPlan { name, node, numbered: false, gone: false, machine: Machine::No }
}

pub(crate) const fn numbered(name: &'static str, node: u8) -> PodPlan {
    PodPlan { numbered: true, ..pod(name, node) }
}

/// A pod in which the virtual machine starts.
pub(crate) const fn starts(name: &'static str, node: u8) -> PodPlan {
    PodPlan { machine: Machine::Starts, ..pod(name, node) }
}

/// A pod to which the virtual machine migrates.
pub(crate) const fn target(name: &'static str, node: u8) -> PodPlan {
    PodPlan { machine: Machine::Target, ..pod(name, node) }
}

/// What can happen in a scenario besides what always can.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Events {
    /// Pods are deleted the orderly way: the node first, the object then.
    pub(crate) terminate: bool,
    /// Pods finish.
    pub(crate) finish: bool,
    /// The first node dies, and its Node object is deleted.
    pub(crate) node_gone: bool,
    /// The first node is not there at the start, or comes back as another machine.
    pub(crate) node_made: bool,
    /// The owner is deleted.
    pub(crate) owner_gone: bool,
    /// The owner is made (again).
    pub(crate) owner_made: bool,
    /// The long timeout passes.
    pub(crate) orphan_timeout: bool,
    /// A day passes.
    pub(crate) day: bool,
    /// Agents write `attachedAt`, at any time, or with their word that the interface is gone.
    pub(crate) notes: bool,
    /// Leaders delete what an interface has too much.
    pub(crate) thin: bool,
    /// Kinds are listed one after the other after a start.
    pub(crate) slow_start: bool,
    /// Packets of a pod may be under way after its interface is gone.
    pub(crate) late_packets: bool,
}

/// What is done wrong on purpose: each must have a counterexample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    // ---- the core is told what is not so
    /// Every pod is gone, by the API server's word.
    PodNotAsked,
    /// Every Node is gone, by the API server's word.
    NodeNotAsked,
    /// Every owner is gone, by the API server's word.
    OwnerNotAsked,
    /// Every owner exists, by the API server's word.
    OwnerBelieved,
    /// Every node has confirmed.
    TornDownNotAwaited,
    /// The long timeout has passed for every pod that the cache does not have.
    TimeoutFromCache,
    /// Pods of the same name have the same uid.
    ByName,
    /// The cool-down takes no time.
    NoCoolDown,
    /// What a predecessor holds is reserved.
    TakesFromPredecessor,
    /// A pod that was made again asks in nobody's name.
    OwnerNotTold,
    /// Nothing that is kept was ever attached.
    AttachedNotTold,
    /// A pod has no address that is being given back.
    ReleasingNotTold,
    /// Everything is listed, by a proof from elsewhere.
    RestoreSkipped,
    /// The second pod of a machine is gone, by the API server's word.
    SecondNotAsked,
    /// Its node has confirmed.
    SecondNotAwaited,
    /// Its Node is gone, by the API server's word.
    SecondNodeNotAsked,
    /// An address that is reviewed has no second pod.
    SecondIgnored,
    /// An address that is asked for has no second pod but the one that asks.
    SecondForgotten,
    /// What the API server says of the second pod counts for the holder as well.
    OneQuestion,
    /// The machine has arrived at every target.
    ArrivesEarly,
    // ---- the shell does not do what it is told, or not as it should
    /// A review writes without the preconditions uid and resourceVersion.
    NoPreconditions,
    /// Replacing compares the uid, and not what the core has seen.
    ReplaceByUidOnly,
    /// The second write of a take-over compares the uid, and not the resourceVersion.
    StatusByUidOnly,
    /// `AlreadyExists` counts as won.
    ExistsIsWon,
    /// The status is written after what it belongs to when a machine's address gets another holder.
    StatusLast,
    /// What was attached is forgotten when an address is kept.
    AttachedForgotten,
    /// What is to be marked as releasing is deleted at once.
    DeletesAtOnce,
    // ---- the agent
    /// It attaches what is there of a set.
    HalfSet,
    /// It attaches what names its pod, in whichever phase.
    AnyPhase,
    /// It confirms before the interface is gone.
    ConfirmsEarly,
    /// It confirms while an ADD has found the set and not yet made the interface.
    ConfirmsDuringAdd,
    /// What it confirms of a second pod, it confirms of the holder.
    ConfirmsForHolder,
    /// With its word that an interface is gone it does not say that there was one.
    AttachedNotSaid,
    /// It confirms nothing, and no timeout passes.
    Silent,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) pods: &'static [PodPlan],
    pub(crate) nodes: u8,
    /// Addresses per family: IPv4 first.
    pub(crate) v4: u8,
    pub(crate) v6: u8,
    pub(crate) controllers: usize,
    pub(crate) workers: usize,
    /// How often a controller dies; `None`: as often as it likes.
    pub(crate) crashes: Option<u8>,
    pub(crate) events: Events,
    /// Objects from a backup, which name the pod that is gone.
    pub(crate) backup: bool,
    /// The first pod is there, has got an address from each of two leaders, and its node is about to attach the one that
    /// it has heard of first, the last.
    pub(crate) twice: bool,
    /// Whether the owner is there at the start.
    pub(crate) owner: bool,
    /// Whether a numbered pod is promised what is kept for it: not by controllers that do not know of each other's
    /// grants.
    pub(crate) keeps: bool,
    /// Whether it is shown from every state, and not only from those without pods, that all ends well.
    pub(crate) serves: bool,
    /// Whether a controller that hears of a pod has heard before of all addresses that there were until then. Its watches
    /// of pods and of addresses can be behind by any time, each on its own, if not.
    pub(crate) hears: bool,
    pub(crate) fault: Fault,
}

impl Scenario {
    pub(crate) const BASE: Self = Self {
        name: "",
        pods: &[],
        nodes: 1,
        v4: 2,
        v6: 0,
        controllers: 2,
        workers: 1,
        crashes: None,
        events: Events {
            terminate: false,
            finish: false,
            node_gone: false,
            node_made: false,
            owner_gone: false,
            owner_made: false,
            orphan_timeout: false,
            day: false,
            notes: false,
            thin: false,
            slow_start: false,
            late_packets: false,
        },
        backup: false,
        twice: false,
        owner: true,
        keeps: true,
        serves: true,
        hears: false,
        fault: Fault::None,
    };

    pub(crate) fn with(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    pub(crate) fn addresses(&self) -> usize {
        usize::from(self.v4 + self.v6)
    }

    /// The addresses of one family.
    pub(crate) fn families(&self) -> impl Iterator<Item = u8> {
        let (v4, v6) = (low_bits(self.v4), low_bits(self.v6) << self.v4);
        [v4, v6].into_iter().filter(|mask| *mask != 0)
    }

    /// Whether its pods are those of a virtual machine.
    pub(crate) fn has_machine(&self) -> bool {
        self.pods.iter().any(|p| p.machine != Machine::No)
    }

    /// The pod as which another one is known.
    pub(crate) fn known_as(&self, pod: usize) -> usize {
        let same_name = || self.pods.iter().position(|p| p.name == self.pods[pod].name);
        if self.fault == Fault::ByName { same_name().unwrap_or(pod) } else { pod }
    }

    /// The pods of the same name that were made before.
    pub(crate) fn before(&self, pod: usize) -> impl Iterator<Item = usize> {
        (0..pod).filter(move |p| self.pods[*p].name == self.pods[pod].name)
    }

    pub(crate) fn start(&self) -> State {
        assert!(self.pods.len() <= PODS && self.addresses() <= ADDRESSES && usize::from(self.nodes) <= NODES);
        assert!(self.workers <= WORKERS && self.controllers <= CONTROLLERS);
        let mut pods = [Life::Unborn; PODS];
        for (life, plan) in pods.iter_mut().zip(self.pods) {
            if plan.gone {
                *life = Life::Gone;
            }
        }
        let mut objects = [None; ADDRESSES];
        let mut give = |pod: usize, set: u8| {
            for (_, object) in objects.iter_mut().enumerate().filter(|(at, _)| set & (1 << at) != 0) {
                *object = Some(Object {
                    pod: Some(pod as u8),
                    node: Some(self.pods[pod].node),
                    second: None,
                    set,
                    owned: self.pods[pod].numbered,
                    declared: false,
                    retain_until: Due::No,
                    phase: Phase::Bound,
                    reserved_at: false,
                    attached: false,
                    sandbox: false,
                    torn_down: false,
                    release_at: false,
                });
            }
        };
        if self.backup {
            // An apply drops the status.
            let old = self.pods.iter().position(|p| p.gone).expect("the pod of the backup");
            give(old, low_bits(self.v4) & 1 | (low_bits(self.v6) & 1) << self.v4);
        }
        let mut sandboxes = [Sandbox::NONE; PODS];
        if self.twice {
            sandboxes[0] = Sandbox { stage: Stage::Granted, uses: 1 << (self.v4 - 1), ..Sandbox::NONE };
            pods[0] = Life::Live;
            (0..self.v4).for_each(|at| give(0, 1 << at));
        }
        let nodes = low_bits(self.nodes) & !u8::from(self.events.node_made);
        let view = if self.events.slow_start {
            View::EMPTY
        } else {
            let pods = pods.map(|life| if life.exists() { life } else { Life::Unborn });
            View {
                listed: Kind::EVERY,
                pods,
                nodes,
                objects: objects.map(|o| o.map(Seen::now)),
                ..View::EMPTY
            }
        };
        State {
            pods,
            arrived: 0,
            machine: 0,
            nodes,
            owner: self.owner,
            objects,
            sandboxes,
            late: 0,
            controllers: [Controller { view, jobs: [Job::Idle; WORKERS] }; CONTROLLERS],
            kept_at_birth: [0; PODS],
            used: 0,
            moved: false,
            crashes: self.crashes.unwrap_or_default(),
            granted_blindly: false,
        }
    }
}

pub(crate) fn low_bits(count: u8) -> u8 {
    (1 << count) - 1
}
