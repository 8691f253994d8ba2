//! What becomes of one address that was given out.
//!
//! An address is freed only after two observations and a last look at the API server: its pod is gone (or finished)
//! **and** its node has torn the interface down, or the node is gone, or a long time has passed. Then it cools down, so
//! that no late packet meets the next holder, and only then is its object deleted.

use braid_types::InstanceName;
use braid_types::model::{InstanceDef, Phase, PodRef, UnixSeconds};

use crate::ipam::{Config, Ipam, Restored};

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

/// Everything that decides about one address.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Its pod; `None` when it names none.
    pub pod: Option<PodSeen>,
    /// Whether the Node object of `spec.node` exists. True when no node is named.
    pub node_exists: bool,
    /// For a node's own address: whether it is still needed.
    pub wanted: bool,
    /// What the API server said, when it was asked.
    pub check: Option<PodCheck>,
    /// Since when this process has seen the release deadline.
    pub cooling_since: Option<UnixSeconds>,
    /// Whether it lies in a network with blocks and none of its node's blocks covers it.
    pub uncovered: bool,
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
    /// Set `status.phase=Releasing` and `status.releaseAt`, with uid and resourceVersion as preconditions.
    MarkReleasing {
        /// The end of the cool-down.
        release_at: UnixSeconds,
        /// Why, CamelCase.
        reason: &'static str,
    },
    /// Set `status.phase=Reserved` and remove `spec.pod`, with uid and resourceVersion as preconditions: the owner keeps it.
    Reserve,
    /// Delete the object, with uid and resourceVersion as preconditions: the address is free.
    Delete,
    /// Set the label `braid.network/routed=host`: no block of its node covers it any more.
    RouteByHost,
}

/// How long to wait before the API server is asked again when it contradicts the cache.
const RECHECK_SECONDS: i64 = 5;

/// Decides about one address.
#[must_use]
pub fn decide(def: &InstanceDef, now: UnixSeconds, c: &Circumstances, config: &Config) -> Decision {
    if def.phase == Phase::Reserved {
        return match def.retain_until {
            Some(until) if until <= now => release(now, "RetentionEnded", config),
            Some(until) => Decision::WaitUntil(until),
            None => Decision::Keep,
        };
    }
    match (&def.pod, c.pod) {
        // Whoever marked it: a pod that may run keeps its address.
        (Some(_), None | Some(PodSeen::Live)) => keep(def, c),
        (Some(pod), Some(PodSeen::Over { confirmed })) => of_ended_pod(def, pod, confirmed, now, c, config),
        (None, _) if crate::ipam::is_vtep(def) => match def.phase {
            Phase::Releasing if def.release_at.is_some() => cool_down(def, now, c, config),
            _ if c.wanted => keep(def, c),
            _ => release(now, "NodeLeft", config),
        },
        // Nobody holds it, but nobody has said either that it is free: shown by `gc::findings`.
        (None, _) if def.phase == Phase::Bound => Decision::Keep,
        (None, _) if def.release_at.is_none() => release(now, "Released", config),
        (None, _) => cool_down(def, now, c, config),
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
        return cool_down(def, now, c, config);
    }
    let timeout = confirmed.map(|since| since.saturating_add(config.orphan_timeout));
    let reason = if def.torn_down.is_some() {
        Some("TornDown")
    } else if !c.node_exists {
        Some("NodeGone")
    } else {
        // The timeout counts from a word of the API server: a cache that is far behind could have missed the pod's
        // whole life, and would have it gone long since when it ends.
        match timeout {
            Some(timeout) if timeout > now => return Decision::WaitUntil(timeout),
            Some(_) => Some("NodeSilent"),
            None => None,
        }
    };
    match (c.check, reason) {
        (None, _) => Decision::RecheckPod(pod.clone()),
        (Some(PodCheck::Live), _) => Decision::WaitUntil(now.saturating_add(RECHECK_SECONDS)),
        (Some(PodCheck::Gone | PodCheck::Finished), None) => {
            Decision::WaitUntil(now.saturating_add(config.orphan_timeout))
        }
        (Some(PodCheck::Gone | PodCheck::Finished), Some(_)) if def.owner.is_some() => Decision::Reserve,
        (Some(PodCheck::Gone | PodCheck::Finished), Some(reason)) => release(now, reason, config),
    }
}

fn release(now: UnixSeconds, reason: &'static str, config: &Config) -> Decision {
    Decision::MarkReleasing { release_at: now.saturating_add(config.cool_down), reason }
}

/// The deadline in the object counts, but never for longer than one cool-down from when this process saw it: the clock
/// of the controller that wrote it may have been ahead.
fn cool_down(def: &InstanceDef, now: UnixSeconds, c: &Circumstances, config: &Config) -> Decision {
    let seen = c.cooling_since.unwrap_or(now).saturating_add(config.cool_down);
    let due = def.release_at.map_or(seen, |at| at.min(seen));
    if due <= now { Decision::Delete } else { Decision::WaitUntil(due) }
}

impl Ipam {
    /// Decides about one address by all that is known. `check` is the API server's word about its pod, given after
    /// [`Decision::RecheckPod`]. `None` if the address is not known: there is nothing to do.
    #[must_use]
    pub fn decide(
        &mut self,
        _: &Restored,
        name: &InstanceName,
        check: Option<PodCheck>,
        now: UnixSeconds,
    ) -> Option<Decision> {
        let def = self.instance(name)?.clone();
        let decision = decide(&def, now, &self.circumstances(&def, check), self.config());
        if let (Some(pod), Some(PodCheck::Gone | PodCheck::Finished)) = (&def.pod, check) {
            self.confirm_end(&pod.uid, now);
        }
        Some(decision)
    }
}
