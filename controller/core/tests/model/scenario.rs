//! What a run of the checker has in it.

use braid_types::model::Phase;

use crate::state::{
    ADDRESSES, CONTROLLERS, Controller, Due, Job, Kind, Life, NODES, Object, PODS, Sandbox, Seen, State,
    View, WORKERS,
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
}

impl PodPlan {
    /// Whether it differs in its name only.
    pub(crate) fn is_twin_of(&self, other: &Self) -> bool {
        (self.node, self.numbered, self.gone) == (other.node, other.numbered, other.gone)
    }
}

pub(crate) const fn pod(name: &'static str, node: u8) -> PodPlan {
    PodPlan { name, node, numbered: false, gone: false }
}

pub(crate) const fn numbered(name: &'static str, node: u8) -> PodPlan {
    PodPlan { name, node, numbered: true, gone: false }
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
    /// Agents write `attachedAt`, at any time or never.
    pub(crate) notes: bool,
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
    /// A pod has no address that is being given back.
    ReleasingNotTold,
    /// Everything is listed, by a proof from elsewhere.
    RestoreSkipped,
    // ---- the shell does not do what it is told, or not as it should
    /// A review writes without the preconditions uid and resourceVersion.
    NoPreconditions,
    /// Replacing compares the uid, and not what the core has seen.
    ReplaceByUidOnly,
    /// The second write of a take-over compares the uid, and not the resourceVersion.
    StatusByUidOnly,
    /// `AlreadyExists` counts as won.
    ExistsIsWon,
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
    pub(crate) events: Events,
    /// Objects from a backup, which name the pod that is gone.
    pub(crate) backup: bool,
    /// Whether the owner is there at the start.
    pub(crate) owner: bool,
    /// Whether a numbered pod is promised what is kept for it: not by controllers that do not know of each other's
    /// grants.
    pub(crate) keeps: bool,
    /// Whether it is shown from every state, and not only from those without pods, that all ends well.
    pub(crate) serves: bool,
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
            slow_start: false,
            late_packets: false,
        },
        backup: false,
        owner: true,
        keeps: true,
        serves: true,
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
        if self.backup {
            let old = self.pods.iter().position(|p| p.gone).expect("the pod of the backup") as u8;
            let set = low_bits(self.v4) & 1 | (low_bits(self.v6) & 1) << self.v4;
            for (_, object) in objects.iter_mut().enumerate().filter(|(at, _)| set & (1 << at) != 0) {
                // An apply drops the status.
                *object = Some(Object {
                    pod: Some(old),
                    node: Some(self.pods[usize::from(old)].node),
                    set,
                    owned: true,
                    declared: false,
                    retain_until: Due::No,
                    phase: Phase::Bound,
                    reserved_at: false,
                    attached: false,
                    torn_down: false,
                    release_at: false,
                });
            }
        }
        let nodes = low_bits(self.nodes) & !u8::from(self.events.node_made);
        let view = if self.events.slow_start {
            View::EMPTY
        } else {
            View { listed: Kind::EVERY, nodes, objects: objects.map(|o| o.map(Seen::now)), ..View::EMPTY }
        };
        State {
            pods,
            nodes,
            owner: self.owner,
            objects,
            sandboxes: [Sandbox::NONE; PODS],
            late: 0,
            controllers: [Controller { view, jobs: [Job::Idle; WORKERS] }; CONTROLLERS],
            kept_at_birth: [0; PODS],
            granted_blindly: false,
        }
    }
}

pub(crate) fn low_bits(count: u8) -> u8 {
    (1 << count) - 1
}
