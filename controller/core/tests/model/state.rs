//! One state of the model: small, hashable, and without anything that grows for ever.
//!
//! A uid or resourceVersion is compared and never looked at, so a reference to an object does not hold one: it holds
//! whether the object that is there now is still the same one, and still as it was. Time is not a number either: what
//! has a deadline has passed it or has not.

use std::fmt;

use braid_types::model::{MigrationRole, Phase};

/// Most pod incarnations of a scenario.
pub(crate) const PODS: usize = 3;
/// Most addresses of a scenario.
pub(crate) const ADDRESSES: usize = 2;
/// Most nodes of a scenario.
pub(crate) const NODES: usize = 2;
/// Controllers, both of which believe that they lead.
pub(crate) const CONTROLLERS: usize = 2;
/// Most calls that one controller has on their way at a time.
pub(crate) const WORKERS: usize = 2;

/// The life of one incarnation of a pod, by the API server or by a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Life {
    /// Not made yet; in a cache also: not there (any more).
    Unborn,
    Live,
    Terminating,
    Finished,
    Gone,
}

impl Life {
    /// Whether its object exists.
    pub(crate) fn exists(self) -> bool {
        matches!(self, Self::Live | Self::Terminating | Self::Finished)
    }

    /// Whether its containers will never run (again), by the word of the API server.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Gone)
    }
}

/// A deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Due {
    /// There is none.
    No,
    Later,
    Now,
}

impl Due {
    pub(crate) fn pass(&mut self) {
        if *self == Self::Later {
            *self = Self::Now;
        }
    }
}

/// The second pod of a machine that migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Second {
    pub(crate) pod: u8,
    pub(crate) node: u8,
    pub(crate) role: MigrationRole,
    pub(crate) torn_down: bool,
}

/// An IPInstance. What a set contains is a bit per address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Object {
    pub(crate) pod: Option<u8>,
    pub(crate) node: Option<u8>,
    pub(crate) second: Option<Second>,
    pub(crate) set: u8,
    /// In the name of the owner, for the numbered pod.
    pub(crate) owned: bool,
    pub(crate) declared: bool,
    pub(crate) retain_until: Due,
    pub(crate) phase: Phase,
    pub(crate) reserved_at: bool,
    pub(crate) attached: bool,
    /// Whether it is its holder that has attached it.
    pub(crate) sandbox: bool,
    pub(crate) torn_down: bool,
    pub(crate) release_at: bool,
}

impl Object {
    /// Whether the pod is its holder or the second pod.
    pub(crate) fn names(&self, pod: usize) -> bool {
        let pod = pod as u8;
        self.pod == Some(pod) || self.second.is_some_and(|s| s.pod == pod)
    }

    /// As controllers parse it: they do not care for the sandbox.
    pub(crate) fn as_parsed(self) -> Self {
        Self { sandbox: false, ..self }
    }

    /// What a write to the object leaves of the status, which is written on its own.
    pub(crate) fn with_status_of(self, other: Self) -> Self {
        let torn_down = |pod| other.second.is_some_and(|s| s.pod == pod && s.torn_down);
        Self {
            second: self.second.map(|s| Second { torn_down: torn_down(s.pod), ..s }),
            phase: other.phase,
            reserved_at: other.reserved_at,
            attached: other.attached,
            sandbox: other.sandbox,
            torn_down: other.torn_down,
            release_at: other.release_at,
            declared: other.declared,
            ..self
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.phase)?;
        if let Some(pod) = self.pod {
            write!(f, " pod{pod}")?;
        }
        if let Some(node) = self.node {
            write!(f, " node{node}")?;
        }
        if let Some(Second { pod, node, role, torn_down }) = self.second {
            write!(f, " ({role:?} pod{pod} node{node}{})", if torn_down { " torn down" } else { "" })?;
        }
        write!(f, " set={:02b}", self.set)?;
        let words = [
            (self.owned, "owned"),
            (self.declared, "declared"),
            (self.reserved_at, "reservedAt"),
            (self.attached, "attachedAt"),
            (self.sandbox, "sandbox"),
            (self.torn_down, "tornDownAt"),
            (self.release_at, "releaseAt"),
            (self.retain_until == Due::Later, "retainUntil"),
            (self.retain_until == Due::Now, "retained long enough"),
        ];
        for (_, word) in words.iter().filter(|(there, _)| *there) {
            write!(f, " {word}")?;
        }
        Ok(())
    }
}

/// What somebody knows about the object of an address, and how that compares with the one that is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Seen {
    pub(crate) object: Object,
    /// Whether the one that is there has the same uid.
    pub(crate) same_uid: bool,
    /// Whether it has the same resourceVersion.
    pub(crate) same_version: bool,
}

impl Seen {
    pub(crate) fn now(object: Object) -> Self {
        Self { object, same_uid: true, same_version: true }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = match (self.same_uid, self.same_version) {
            (_, true) => "",
            (true, false) => " (old)",
            (false, false) => " (another object)",
        };
        write!(f, "{:?}{age}", self.object)
    }
}

/// What a node has of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    Nothing,
    /// ADD has found a whole set and is about to make the interface.
    Granted,
    Attached,
    /// DEL has removed the interface.
    Down,
}

/// A pod's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sandbox {
    pub(crate) stage: Stage,
    /// The addresses on its interface, or about to be.
    pub(crate) uses: u8,
    /// Those of them whose object is not the one that ADD has seen.
    pub(crate) other_uid: u8,
    /// The addresses about which the agent has yet to write `attachedAt`.
    pub(crate) note: u8,
}

impl Sandbox {
    pub(crate) const NONE: Self = Self { stage: Stage::Nothing, uses: 0, other_uid: 0, note: 0 };
}

/// What one controller knows: its cache, and what it remembers besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct View {
    /// Which kinds were listed, one bit per [`Kind`].
    pub(crate) listed: u8,
    pub(crate) pods: [Life; PODS],
    /// The pods of which it knows that the machine has arrived there.
    pub(crate) arrived: u8,
    pub(crate) nodes: u8,
    pub(crate) objects: [Option<Seen>; ADDRESSES],
    /// Cool-downs as this process has seen them begin.
    pub(crate) cooling: [Due; ADDRESSES],
    /// Since when it has from the API server that a pod is over: whether the long timeout has passed since.
    pub(crate) ended: [Due; PODS],
}

/// A kind with a watch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Pods,
    Nodes,
    Addresses,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Pods, Self::Nodes, Self::Addresses];

    pub(crate) fn bit(self) -> u8 {
        1 << self as u8
    }

    pub(crate) const EVERY: u8 = 0b111;
}

impl View {
    /// A process that has just started.
    pub(crate) const EMPTY: Self = Self {
        listed: 0,
        pods: [Life::Unborn; PODS],
        arrived: 0,
        nodes: 0,
        objects: [None; ADDRESSES],
        cooling: [Due::No; ADDRESSES],
        ended: [Due::No; PODS],
    };
}

/// One write of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Claim {
    /// What the object shall say.
    pub(crate) target: Object,
    /// The object to replace, as the core has seen it; `None`: it is to be created.
    pub(crate) seen: Option<Seen>,
    /// Whether spec and labels are written, and the status is next.
    pub(crate) half: bool,
}

/// A write that a review has decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Change {
    MarkReleasing,
    Reserve {
        since: bool,
        until: Due,
    },
    /// The second write of the one before.
    LetGo {
        until: Due,
    },
    /// A machine's address gets this holder, and no second pod: the status, where it is another one, then the rest.
    Settle(Object),
    Delete,
}

/// Calls of one worker on their way to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Job {
    Idle,
    Grant { pod: u8, claims: [Option<Claim>; ADDRESSES] },
    Review { address: u8, change: Change, seen: Seen },
}

/// A controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Controller {
    pub(crate) view: View,
    pub(crate) jobs: [Job; WORKERS],
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    pub(crate) pods: [Life; PODS],
    /// The pods of which KubeVirt says that the machine has arrived there.
    pub(crate) arrived: u8,
    /// The pod in which the machine runs, or ran last.
    pub(crate) machine: u8,
    pub(crate) nodes: u8,
    /// Whether the owner of the numbered pods exists.
    pub(crate) owner: bool,
    pub(crate) objects: [Option<Object>; ADDRESSES],
    pub(crate) sandboxes: [Sandbox; PODS],
    /// Addresses from which packets may still be under way.
    pub(crate) late: u8,
    pub(crate) controllers: [Controller; CONTROLLERS],
    /// The addresses that the last numbered pod had which was attached, and whether one got others than the one before.
    pub(crate) used: u8,
    pub(crate) moved: bool,
    /// What was kept for each pod when it was made.
    pub(crate) kept_at_birth: [u8; PODS],
    /// How often a controller can still die.
    pub(crate) crashes: u8,
    /// Whether something was granted by a controller that had not listed everything.
    pub(crate) granted_blindly: bool,
}

impl State {
    pub(crate) fn node_exists(&self, node: u8) -> bool {
        self.nodes & (1 << node) != 0
    }

    /// The object of an address changes: what others know of it is old.
    pub(crate) fn write(&mut self, address: usize, object: Object) {
        self.objects[address] = Some(object);
        self.each_reference(address, |seen| seen.same_version = false);
    }

    /// The object of an address goes: what others know is of an object that is no more.
    pub(crate) fn delete(&mut self, address: usize) {
        self.objects[address] = None;
        self.each_reference(address, |seen| {
            seen.same_uid = false;
            seen.same_version = false;
        });
        let bit = 1 << address;
        for sandbox in &mut self.sandboxes {
            sandbox.other_uid |= sandbox.uses & bit;
        }
    }

    fn each_reference(&mut self, at: usize, change: impl Fn(&mut Seen)) {
        for controller in &mut self.controllers {
            if let Some(seen) = &mut controller.view.objects[at] {
                change(seen);
            }
            for job in &mut controller.jobs {
                match job {
                    Job::Grant { claims, .. } => {
                        if let Some(Claim { seen: Some(seen), .. }) = &mut claims[at] {
                            change(seen);
                        }
                    }
                    Job::Review { address, seen, .. } if usize::from(*address) == at => change(seen),
                    Job::Review { .. } | Job::Idle => {}
                }
            }
        }
    }
}
