//! Leader election over a Lease, after the rules of client-go's `leaderelection`.
//!
//! Whether somebody else's lease has run out is judged by this process's own monotonic clock from the moment it saw the
//! record change; times inside the record are for people. A leader stops at `renew_deadline` after the *start* of its last
//! successful write, which is earlier than anybody else can believe it gone, so two never lead at once however the clocks
//! differ (as long as they run at about the same speed).

use std::time::Duration;

/// Monotonic time since any fixed moment of this process.
pub type Monotonic = Duration;

/// Times of the election. `lease > renew_deadline > retry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the last renewal that they saw.
    pub lease: Duration,
    /// After this long without a successful renewal the leader stops.
    pub renew_deadline: Duration,
    /// Time between two attempts.
    pub retry: Duration,
}

/// The order of the three times is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "lease duration {lease:?} must be longer than renew deadline {renew_deadline:?}, and that longer than retry period {retry:?}"
)]
pub struct TimingError {
    /// See [`Timing`].
    pub lease: Duration,
    /// See [`Timing`].
    pub renew_deadline: Duration,
    /// See [`Timing`].
    pub retry: Duration,
}

/// What the Lease says, without the times for people, and a stamp that changes with every write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Identity of the leader; empty = released.
    pub holder: String,
    /// `leaseDurationSeconds` as the leader wrote it.
    pub lease: Duration,
    /// `leaseTransitions`: grows with every change of leader, so it serves as fencing token.
    pub transitions: u64,
    /// Anything that differs after each write: the resourceVersion.
    pub version: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the Lease and call [`Elector::observed`].
    Read,
    /// Write this record (`version` is the precondition; `None` = create the Lease), then call [`Elector::wrote`] or
    /// [`Elector::failed`]. Write `acquireTime` when `acquire`, `renewTime` always.
    Write {
        /// Holder, duration and transitions to write.
        record: Record,
        /// Whether the Lease does not exist yet.
        create: bool,
        /// Whether this takes the lead rather than renewing it.
        acquire: bool,
    },
    /// Nothing before this time.
    Wait(Monotonic),
    /// The lead is lost: stop writing at once. The elector does nothing more; start a new process.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Candidate,
    /// Since when the last successful renewal had been under way, and the number of this reign.
    Leader {
        renewed: Monotonic,
        transitions: u64,
    },
    Lost,
}

/// One candidate.
#[derive(Debug, Clone)]
pub struct Elector {
    id: String,
    timing: Timing,
    role: Role,
    /// The record seen last and since when; `None` inside = there is no Lease.
    seen: Option<(Option<Record>, Monotonic)>,
    /// Whether what was seen may be written over; false after a failed write, until it was read again.
    fresh: bool,
    next: Monotonic,
}

impl Elector {
    /// A candidate. `id` must be unique for every process start.
    ///
    /// # Errors
    /// If the times are not in order.
    pub fn new(id: &str, timing: Timing) -> Result<Self, TimingError> {
        let Timing { lease, renew_deadline, retry } = timing;
        if lease <= renew_deadline || renew_deadline <= retry {
            return Err(TimingError { lease, renew_deadline, retry });
        }
        let (role, next) = (Role::Candidate, Duration::ZERO);
        Ok(Self { id: id.to_owned(), timing, role, seen: None, fresh: false, next })
    }

    /// Whether this process leads at `now`. To be asked before every write.
    #[must_use]
    pub fn is_leading(&self, now: Monotonic) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }

    /// Until when this process leads if nothing more succeeds.
    #[must_use]
    pub fn leads_until(&self) -> Option<Monotonic> {
        match self.role {
            Role::Leader { renewed, .. } => Some(renewed + self.timing.renew_deadline),
            Role::Candidate | Role::Lost => None,
        }
    }

    /// The fencing token of this reign.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        match self.role {
            Role::Leader { transitions, .. } => Some(transitions),
            Role::Candidate | Role::Lost => None,
        }
    }

    /// Who leads, as seen last; empty if nobody.
    #[must_use]
    pub fn leader(&self) -> &str {
        self.seen.as_ref().and_then(|(r, _)| r.as_ref()).map_or("", |r| r.holder.as_str())
    }

    /// What to do at `now`.
    pub fn step(&mut self, now: Monotonic) -> Step {
        match self.role {
            Role::Lost => Step::Lost,
            Role::Leader { renewed, .. } if now >= renewed + self.timing.renew_deadline => {
                self.role = Role::Lost;
                Step::Lost
            }
            Role::Leader { renewed, .. } if now < self.next => {
                Step::Wait(self.next.min(renewed + self.timing.renew_deadline))
            }
            Role::Candidate if now < self.next => Step::Wait(self.next),
            Role::Leader { transitions, .. } => self.renew(now, transitions),
            Role::Candidate => self.apply(now),
        }
    }

    fn renew(&mut self, now: Monotonic, transitions: u64) -> Step {
        self.next = now + self.timing.retry;
        match &self.seen {
            Some((Some(seen), _)) if self.fresh => {
                let record = self.record(transitions, &seen.version);
                Step::Write { record, create: false, acquire: false }
            }
            _ => Step::Read,
        }
    }

    /// A candidate reads at every turn and writes when what it has just read allows it.
    fn apply(&mut self, now: Monotonic) -> Step {
        if !self.fresh {
            self.next = now + self.timing.retry;
            return Step::Read;
        }
        self.fresh = false;
        match &self.seen {
            Some((None, _)) => Step::Write { record: self.record(0, ""), create: true, acquire: true },
            Some((Some(seen), since)) if seen.holder.is_empty() || now >= *since + seen.lease => {
                let record = self.record(seen.transitions + 1, &seen.version);
                Step::Write { record, create: false, acquire: true }
            }
            _ => {
                self.next = now + self.timing.retry;
                Step::Wait(self.next)
            }
        }
    }

    fn record(&self, transitions: u64, version: &str) -> Record {
        let (holder, version) = (self.id.clone(), version.to_owned());
        Record { holder, lease: self.timing.lease, transitions, version }
    }

    /// The Lease was read; `now` is the time *after* the answer. `None`: there is no Lease.
    pub fn observed(&mut self, record: Option<Record>, now: Monotonic) {
        let changed = self.seen.as_ref().is_none_or(|(old, _)| *old != record);
        if let Role::Leader { transitions, .. } = self.role {
            let ours = record.as_ref().is_some_and(|r| r.holder == self.id && r.transitions == transitions);
            if !ours {
                self.role = Role::Lost;
            }
        }
        if changed {
            self.seen = Some((record, now));
        }
        self.fresh = true;
        if matches!(self.role, Role::Candidate | Role::Leader { .. }) {
            // What was read is used at once.
            self.next = now;
        }
    }

    /// A write succeeded: it was started at `started`, its answer came at `now`, and the Lease says `record` (with its new
    /// version). Whether this process leads: an answer that comes after the lead it speaks of has ended gives none, for
    /// another may lead by then.
    pub fn wrote(&mut self, record: Record, started: Monotonic, now: Monotonic) -> bool {
        if self.role == Role::Lost || now >= started + self.timing.renew_deadline {
            self.role = Role::Lost;
            return false;
        }
        self.role = Role::Leader { renewed: started, transitions: record.transitions };
        self.seen = Some((Some(record), started));
        self.fresh = true;
        self.next = started + self.timing.retry;
        true
    }

    /// A write failed or its outcome is not known: read before writing again.
    pub fn failed(&mut self, now: Monotonic) {
        self.fresh = false;
        self.next = now + self.timing.retry;
    }

    /// Gives the lead up: write the record if there is one, best effort, after all other writes have ended.
    pub fn release(&mut self) -> Option<Record> {
        let role = std::mem::replace(&mut self.role, Role::Lost);
        let Role::Leader { transitions, .. } = role else { return None };
        let version = self.seen.take().and_then(|(r, _)| r).map(|r| r.version)?;
        Some(Record { holder: String::new(), lease: Duration::from_secs(1), transitions, version })
    }
}
