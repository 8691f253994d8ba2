//! What a controller's calls do to the objects, one call at a time: the shell's `work/{claim,review}.rs`.

use braid_types::model::Phase;

use crate::protocol::Protocol;
use crate::scenario::Fault;
use crate::state::{Change, Claim, Job, Object, Seen, State};

impl Protocol {
    /// The next call of what a worker does.
    pub(super) fn write(&self, state: &mut State, controller: usize, worker: usize, address: usize) {
        match state.controllers[controller].jobs[worker] {
            Job::Idle => {}
            Job::Grant { pod, mut claims } => {
                let Some(claim) = claims[address] else { return };
                let next = match claim.seen {
                    None => self.create(state, controller, address, &claim),
                    Some(seen) if claim.half => self.bind(state, controller, address, &claim, seen),
                    Some(seen) => self.replace(state, controller, address, &claim, seen),
                };
                claims[address] = next;
                let done = claims.iter().all(Option::is_none);
                state.controllers[controller].jobs[worker] =
                    if done { Job::Idle } else { Job::Grant { pod, claims } };
            }
            // `seen` is kept up to date by what others write.
            Job::Review { change, seen, .. } => {
                let next = self.change(state, controller, address, change, seen);
                state.controllers[controller].jobs[worker] = next;
            }
        }
    }

    fn create(&self, state: &mut State, controller: usize, address: usize, claim: &Claim) -> Option<Claim> {
        if state.objects[address].is_none() {
            state.write(address, claim.target);
        } else if self.scenario.fault == Fault::ExistsIsWon {
            state.write(address, claim.target.with_status_of(state.objects[address]?));
        }
        self.learn(state, controller, address);
        None
    }

    /// Reads the object and replaces it, both under one resourceVersion.
    fn replace(
        &self,
        state: &mut State,
        controller: usize,
        address: usize,
        claim: &Claim,
        seen: Seen,
    ) -> Option<Claim> {
        let found = state.objects[address].filter(|_| seen.same_uid);
        let by_uid = self.scenario.fault == Fault::ReplaceByUidOnly;
        let as_seen = |o: &Object| by_uid || o.as_parsed() == seen.object.as_parsed();
        let Some(found) = found.filter(as_seen) else {
            self.learn(state, controller, address);
            return None;
        };
        let written = claim.target.with_status_of(found);
        state.write(address, written);
        if written.phase == claim.target.phase {
            self.learn(state, controller, address);
            return None;
        }
        Some(Claim { seen: Some(Seen::now(written)), half: true, ..*claim })
    }

    /// The second write of a take-over.
    fn bind(
        &self,
        state: &mut State,
        controller: usize,
        address: usize,
        claim: &Claim,
        seen: Seen,
    ) -> Option<Claim> {
        let by_uid = self.scenario.fault == Fault::StatusByUidOnly;
        if let Some(found) = state.objects[address]
            && seen.same_uid
            && (by_uid || seen.same_version)
        {
            let (phase, reserved_at) = (claim.target.phase, false);
            let bound = Object { phase, reserved_at, torn_down: false, release_at: false, ..found };
            state.write(address, bound);
            self.learn(state, controller, address);
        }
        None
    }

    /// A write that a review has decided on; what is to be done next.
    fn change(
        &self,
        state: &mut State,
        controller: usize,
        address: usize,
        change: Change,
        seen: Seen,
    ) -> Job {
        let unchecked = self.scenario.fault == Fault::NoPreconditions;
        let Some(found) = state.objects[address].filter(|_| unchecked || seen.same_uid) else {
            self.learn(state, controller, address);
            return Job::Idle;
        };
        // An object is replaced as what it was decided on, whatever its version.
        let status = |o: Object| (o.phase, o.torn_down, o.release_at);
        let replaces = matches!(change, Change::Settle(to) if status(found) == status(to));
        let as_seen = if replaces { found.as_parsed() == seen.object.as_parsed() } else { seen.same_version };
        if !unchecked && !as_seen {
            return Job::Idle;
        }
        let mut next = Job::Idle;
        match change {
            Change::MarkReleasing => {
                state.write(address, Object { phase: Phase::Releasing, release_at: true, ..found });
            }
            Change::Reserve { since, until } => {
                let kept = Object {
                    phase: Phase::Reserved,
                    reserved_at: since,
                    attached: found.attached && self.scenario.fault != Fault::AttachedForgotten,
                    sandbox: false,
                    torn_down: false,
                    release_at: false,
                    ..found
                };
                state.write(address, kept);
                next = Job::Review {
                    address: address as u8,
                    change: Change::LetGo { until },
                    seen: Seen::now(kept),
                };
            }
            Change::LetGo { until } => {
                let kept = Object { pod: None, node: None, second: None, retain_until: until, ..found };
                state.write(address, kept);
            }
            Change::Settle(to) => {
                let Object { phase, torn_down, release_at, .. } = to;
                let bound = Object { phase, torn_down, release_at, ..found };
                let rest = to.with_status_of(found);
                let step = match self.scenario.fault == Fault::StatusLast {
                    false if bound != found => bound,
                    true if rest == found => bound,
                    _ => rest,
                };
                state.write(address, step);
                if step != to.with_status_of(bound) {
                    next = Job::Review { address: address as u8, change, seen: Seen::now(step) };
                }
            }
            Change::Delete => state.delete(address),
        }
        self.learn(state, controller, address);
        next
    }
}
