//! What becomes of one address that was given out.
//!
//! An address is freed only after two observations and a last look at the API server: its pod is gone (or finished)
//! **and** its node has torn the interface down, or the node is gone, or a long time has passed. Then it cools down, so
//! that no late packet meets the next holder, and only then is its object deleted.
//!
//! An address in the name of an owner is kept instead of freed, until the owner is gone or a time limit has passed.

use std::sync::Arc;

use braid_types::InstanceName;
use braid_types::model::{InstanceDef, MigrationRole, OwnerRef, Phase, PodRef, UnixSeconds};

use crate::ipam::{Config, Ipam, Restored, arrived};

/// How the pod of an address is, as the cache has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSeen {
    /// It exists and may run (a terminating pod runs).
    Live,
    /// It is gone, or finished for good.
    Over {
        /// Since when this process has that from the API server itself; `None` while only the cache says so.
        confirmed: Option<UnixSeconds>,
    },
}

/// What a question to the API server itself said about the pod, by uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodCheck {
    /// No pod of that name, or one with another uid.
    Gone,
    /// Succeeded or Failed.
    Finished,
    /// Still there.
    Live,
}

/// What a question to the API server said about an owner, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerCheck {
    /// There is no such object.
    Gone,
    /// It exists, or nobody can say: what is kept stays.
    Live,
}

/// The API server's own word, asked for by a [`Decision`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// After [`Decision::RecheckPod`].
    pub pod: Option<PodCheck>,
    /// After [`Decision::RecheckSecondPod`].
    pub second_pod: Option<PodCheck>,
    /// After [`Decision::RecheckNode`]: whether the Node object exists.
    pub node: Option<bool>,
    /// After [`Decision::RecheckSecondNode`]: whether the Node object exists.
    pub second_node: Option<bool>,
    /// After [`Decision::RecheckOwner`].
    pub owner: Option<OwnerCheck>,
}

/// Everything that decides about one address.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Its pod; `None` when it names none.
    pub pod: Option<PodSeen>,
    /// The second pod of a machine that migrates; `None` when it names none.
    pub second_pod: Option<PodSeen>,
    /// Whether the Node object of `spec.node` exists. True when no node is named.
    pub node_exists: bool,
    /// Whether the Node object of the second pod's node exists. True when there is no second pod.
    pub second_node_exists: bool,
    /// For a node's own address: whether it is still needed.
    pub wanted: bool,
    /// What the API server said, as far as it was asked.
    pub checks: Checks,
    /// Since when this process has seen the release deadline.
    pub cooling_since: Option<UnixSeconds>,
    /// Whether it lies in a network with blocks and none of its node's blocks covers it.
    pub uncovered: bool,
    /// Whether it is kept for a pod that has, or had, another one in use.
    pub surplus: bool,
}

/// What to do with one address now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, until one of its objects changes.
    Keep,
    /// Nothing before this time; then ask again.
    WaitUntil(UnixSeconds),
    /// Ask the API server for this pod, then call [`Ipam::decide`] again with the answer.
    RecheckPod(PodRef),
    /// The same for the second pod of a machine that migrates: what is said of it says nothing of the holder.
    RecheckSecondPod(PodRef),
    /// Ask the API server for this node, then call [`Ipam::decide`] again with the answer: a cache that lags would have
    /// an address freed whose pod still runs there.
    RecheckNode(String),
    /// The same for the node of the second pod of a machine that migrates.
    RecheckSecondNode(String),
    /// Ask the API server for this owner, then call [`Ipam::decide`] again with the answer.
    RecheckOwner(OwnerRef),
    /// Set `status.phase=Releasing` and `status.releaseAt`, with uid and resourceVersion as preconditions.
    MarkReleasing {
        /// The end of the cool-down.
        release_at: UnixSeconds,
        /// Why, CamelCase.
        reason: &'static str,
    },
    /// Set `status.phase=Reserved` and remove pod and node, with uid and resourceVersion as preconditions: the owner
    /// keeps it.
    Reserve {
        /// `status.reservedAt`; `None` where the owner's existence shall not decide about it.
        since: Option<UnixSeconds>,
        /// `spec.retainUntil`.
        until: Option<UnixSeconds>,
    },
    /// Bring the object to this state, if it is still the one that was decided on: a migration has come to its end.
    Replace(Arc<InstanceDef>),
    /// Delete the object, with uid and resourceVersion as preconditions: the address is free.
    Delete,
    /// Set the label `braid.network/routed=host`: no block of its node covers it any more.
    RouteByHost,
}

/// How long to wait before the API server is asked again when it contradicts the cache.
const RECHECK_SECONDS: i64 = 5;
/// How long an address is kept that nobody has used in this cluster and whose owner is not there: after a restore from
/// a backup the addresses come first and their owners later.
const UNUSED_SECONDS: i64 = 86_400;

/// Decides about one address.
#[must_use]
pub fn decide(def: &InstanceDef, now: UnixSeconds, c: &Circumstances, config: &Config) -> Decision {
    if def.phase == Phase::Reserved {
        return of_reserved(def, now, c, config);
    }
    if let Some(decision) = of_second_pod(def, now, c, config) {
        return decision;
    }
    match (&def.pod, c.pod) {
        // Whoever marked it: a pod that may run keeps its address.
        (Some(_), None | Some(PodSeen::Live)) => keep(def, c),
        (Some(pod), Some(PodSeen::Over { confirmed })) => of_ended_pod(def, pod, confirmed, now, c, config),
        (None, _) if crate::ipam::is_vtep(def) => match def.phase {
            Phase::Releasing if def.release_at.is_some() => cool_down(now, c, config),
            _ if c.wanted => keep(def, c),
            _ => release(now, "NodeLeft", config),
        },
        // Nobody holds it, but nobody has said either that it is free: shown by `gc::findings`.
        (None, _) if def.phase == Phase::Bound => Decision::Keep,
        (None, _) if def.release_at.is_none() => release(now, "Released", config),
        (None, _) => cool_down(now, c, config),
    }
}

fn of_reserved(def: &InstanceDef, now: UnixSeconds, c: &Circumstances, config: &Config) -> Decision {
    match c.pod {
        // A controller died between the two writes that give it to the pod: the next grant completes them.
        Some(PodSeen::Live) => return Decision::Keep,
        // Or between the two that take it from the pod.
        Some(PodSeen::Over { .. }) => return of_halfway(def, now, c),
        None => {}
    }
    if def.retain_until.is_some_and(|until| until <= now) {
        return release(now, "RetentionEnded", config);
    }
    if c.surplus {
        return release(now, "Surplus", config);
    }
    let ends = def.retain_until;
    // It was kept without a pod when the backup was made.
    if def.owner.is_some() && def.reserved_at.is_none() && !def.declared && ends.is_none() {
        return of_halfway(def, now, c);
    }
    let kept_by = def.owner.as_deref().filter(|_| def.reserved_at.is_some() && !def.declared);
    match (kept_by, c.checks.owner) {
        (Some(owner), None) => Decision::RecheckOwner(owner.clone()),
        (Some(_), Some(OwnerCheck::Gone)) => release(now, "OwnerGone", config),
        (Some(_), Some(OwnerCheck::Live)) => {
            let again = now.saturating_add(config.owner_check);
            Decision::WaitUntil(ends.map_or(again, |ends| ends.min(again)))
        }
        (None, _) => ends.map_or(Decision::Keep, Decision::WaitUntil),
    }
}

/// Reserved, and nobody has said until when. It is still in the hand of a pod that is over: of the two writes that take it
/// from the pod, the second is missing. Or it comes from a backup.
fn of_halfway(def: &InstanceDef, now: UnixSeconds, c: &Circumstances) -> Decision {
    let ends = def.retain_seconds.map(|s| def.reserved_at.unwrap_or(now).saturating_add(s.into()));
    let until = def.retain_until.or(ends);
    match def.owner.as_deref() {
        // Nobody has used it here: its owner decides as it would have before the first write.
        Some(owner) if def.reserved_at.is_none() && !def.declared && until.is_none() => {
            match c.checks.owner {
                None => Decision::RecheckOwner(owner.clone()),
                Some(OwnerCheck::Live) => Decision::Reserve { since: Some(now), until },
                Some(OwnerCheck::Gone) => {
                    Decision::Reserve { since: None, until: Some(now.saturating_add(UNUSED_SECONDS)) }
                }
            }
        }
        _ => Decision::Reserve { since: def.reserved_at, until },
    }
}

/// Nobody uses it any more, and it is in the name of an owner.
fn of_owner(
    def: &InstanceDef,
    owner: &OwnerRef,
    reason: &'static str,
    now: UnixSeconds,
    c: &Circumstances,
    config: &Config,
) -> Decision {
    let ends = def.retain_seconds.map(|s| now.saturating_add(s.into()));
    if def.declared {
        return Decision::Reserve { since: None, until: def.retain_until.or(ends) };
    }
    match c.checks.owner {
        None => Decision::RecheckOwner(owner.clone()),
        Some(OwnerCheck::Live) => Decision::Reserve { since: Some(now), until: ends },
        Some(OwnerCheck::Gone) if def.attached => release(now, reason, config),
        Some(OwnerCheck::Gone) => {
            Decision::Reserve { since: None, until: ends.or(Some(now.saturating_add(UNUSED_SECONDS))) }
        }
    }
}

/// The other pod of the machine is over: its source after a migration, or the target of one that was given up. It has the
/// address on its interface until its node says otherwise, so it is named until then, and nothing is given back before.
fn of_second_pod(
    def: &InstanceDef,
    now: UnixSeconds,
    c: &Circumstances,
    config: &Config,
) -> Option<Decision> {
    let second = def.handover.as_ref()?;
    let Some(PodSeen::Over { confirmed }) = c.second_pod else { return None };
    let over = OverPod {
        confirmed,
        torn_down: second.torn_down,
        node_exists: c.second_node_exists,
        pod: c.checks.second_pod,
        node: c.checks.second_node,
    };
    Some(match over.has_left(now, config) {
        Left::Yes(_) => Decision::Replace(Arc::new(InstanceDef { handover: None, ..def.clone() })),
        Left::AskPod => Decision::RecheckSecondPod(second.pod.clone()),
        Left::AskNode => Decision::RecheckSecondNode(second.node.to_string()),
        Left::Not(until) => Decision::WaitUntil(until),
    })
}

/// A pod that is over by the cache, and what was said of it.
struct OverPod {
    /// Since when the API server itself says so.
    confirmed: Option<UnixSeconds>,
    /// Whether its node has confirmed that its interface is gone.
    torn_down: bool,
    /// Whether the cache has its node.
    node_exists: bool,
    /// The API server's word about it.
    pod: Option<PodCheck>,
    /// The API server's word about its node.
    node: Option<bool>,
}

/// Whether the interface of a pod that is over is gone.
enum Left {
    /// It is, for this reason.
    Yes(&'static str),
    /// Nobody can say before the API server was asked for the pod,
    AskPod,
    /// or for its node.
    AskNode,
    /// It counts as there until then at least.
    Not(UnixSeconds),
}

impl OverPod {
    fn has_left(&self, now: UnixSeconds, config: &Config) -> Left {
        let reason = if self.torn_down {
            Some("TornDown")
        } else if !self.node_exists {
            Some("NodeGone")
        } else {
            // The timeout counts from a word of the API server: a cache that is far behind could have missed the pod's
            // whole life, and would have it gone long since when it ends.
            match self.confirmed.map(|since| since.saturating_add(config.orphan_timeout)) {
                Some(timeout) if timeout > now => return Left::Not(timeout),
                Some(_) => Some("NodeSilent"),
                None => None,
            }
        };
        match (self.pod, reason) {
            (None, _) => Left::AskPod,
            (Some(PodCheck::Live), _) => Left::Not(now.saturating_add(RECHECK_SECONDS)),
            (Some(PodCheck::Gone | PodCheck::Finished), None) => {
                Left::Not(now.saturating_add(config.orphan_timeout))
            }
            (Some(PodCheck::Gone | PodCheck::Finished), Some("NodeGone")) if self.node != Some(false) => {
                if self.node.is_none() {
                    Left::AskNode
                } else {
                    Left::Not(now.saturating_add(RECHECK_SECONDS))
                }
            }
            (Some(PodCheck::Gone | PodCheck::Finished), Some(reason)) => Left::Yes(reason),
        }
    }
}

fn keep(def: &InstanceDef, c: &Circumstances) -> Decision {
    if c.uncovered && !def.host_routed && c.node_exists { Decision::RouteByHost } else { Decision::Keep }
}

fn of_ended_pod(
    def: &InstanceDef,
    pod: &PodRef,
    confirmed: Option<UnixSeconds>,
    now: UnixSeconds,
    c: &Circumstances,
    config: &Config,
) -> Decision {
    if def.phase == Phase::Releasing && def.release_at.is_some() {
        return cool_down(now, c, config);
    }
    let over = OverPod {
        confirmed,
        torn_down: def.torn_down.is_some(),
        node_exists: c.node_exists,
        pod: c.checks.pod,
        node: c.checks.node,
    };
    let reason = match over.has_left(now, config) {
        Left::Yes(reason) => reason,
        Left::AskPod => return Decision::RecheckPod(pod.clone()),
        Left::AskNode => return Decision::RecheckNode(def.node.as_deref().unwrap_or_default().to_owned()),
        Left::Not(until) => return Decision::WaitUntil(until),
    };
    // Its second pod lives: one that is over was dealt with before.
    match (def.handover.as_deref(), &def.owner) {
        // Nobody has said that the machine is at its target, and it is nowhere else.
        (Some(second), _) if second.role == MigrationRole::Target => {
            let next = InstanceDef { handover: None, ..arrived(def, &second.pod, &second.node) };
            Decision::Replace(Arc::new(next))
        }
        // The source of a machine that has ended at its target: its interface has the address too.
        (Some(_), _) => Decision::Keep,
        (None, Some(owner)) => of_owner(def, owner, reason, now, c, config),
        (None, None) => release(now, reason, config),
    }
}

fn release(now: UnixSeconds, reason: &'static str, config: &Config) -> Decision {
    Decision::MarkReleasing { release_at: now.saturating_add(config.cool_down), reason }
}

/// One cool-down from when this process saw the deadline in the object. The deadline itself is for people: the clock of
/// the controller that wrote it may be far from this one's, and a cool-down that is cut short is none.
fn cool_down(now: UnixSeconds, c: &Circumstances, config: &Config) -> Decision {
    let due = c.cooling_since.unwrap_or(now).saturating_add(config.cool_down);
    if due <= now { Decision::Delete } else { Decision::WaitUntil(due) }
}

impl Ipam {
    /// Addresses about which there is something to do, to ask or to wait for.
    pub fn due(&self, _: &Restored, now: UnixSeconds) -> impl Iterator<Item = &Arc<InstanceDef>> {
        let decide = move |def| decide(def, now, &self.circumstances(def, Checks::default()), self.config());
        self.instances().filter(move |def| decide(def) != Decision::Keep)
    }

    /// Decides about one address by all that is known. `checks` is the API server's word about its pod, node and owner,
    /// given after the decisions that ask for it. `None` if the address is not known: there is nothing to do.
    #[must_use]
    pub fn decide(
        &mut self,
        _: &Restored,
        name: &InstanceName,
        checks: Checks,
        now: UnixSeconds,
    ) -> Option<Decision> {
        let def = self.instance(name)?.clone();
        let decision = decide(&def, now, &self.circumstances(&def, checks), self.config());
        if let (Some(pod), Some(PodCheck::Gone | PodCheck::Finished)) = (&def.pod, checks.pod) {
            self.confirm_end(&pod.uid, now);
        }
        if let (Some(second), Some(PodCheck::Gone | PodCheck::Finished)) = (&def.handover, checks.second_pod)
        {
            self.confirm_end(&second.pod.uid, now);
        }
        Some(decision)
    }
}
