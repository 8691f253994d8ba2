//! When a component is to be started: a pure state machine with the time as argument.

use std::time::{Duration, Instant};

use super::protocol::Verb;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A component that ran this long has recovered; its next crash starts with the shortest delay again.
const RECOVERED: Duration = Duration::from_secs(10);
/// How long a component may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an endpoint that a component needs is tried.
const PROBE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running {
        pid: i32,
        /// When to end it by force.
        deadline: Option<Instant>,
    },
    Waiting {
        until: Instant,
    },
    Stopped,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    phase: Phase,
    since: Instant,
    wanted: bool,
    /// The next end was ordered and needs no delay.
    ordered: bool,
    delay: Duration,
    starts: u32,
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Waiting { until: now },
            since: now,
            wanted: true,
            ordered: false,
            delay: FIRST_DELAY,
            starts: 0,
        }
    }

    pub(super) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub(super) fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    pub(super) fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Waiting { until } if until <= now)
    }

    /// Time until something is to be done, if anything is.
    pub(super) fn next_step(&self, now: Instant) -> Option<Duration> {
        let at = match self.phase {
            Phase::Waiting { until } => until,
            Phase::Running { deadline: Some(deadline), .. } => deadline,
            _ => return None,
        };
        Some(at.saturating_duration_since(now))
    }

    /// The process to end by force, once.
    pub(super) fn overdue_stop(&mut self, now: Instant) -> Option<i32> {
        match &mut self.phase {
            Phase::Running { pid, deadline } if deadline.is_some_and(|deadline| deadline <= now) => {
                *deadline = None;
                Some(*pid)
            }
            _ => None,
        }
    }

    pub(super) fn started(&mut self, pid: i32, now: Instant) {
        self.starts += 1;
        self.enter(Phase::Running { pid, deadline: None }, now);
    }

    pub(super) fn not_yet(&mut self, now: Instant) {
        self.phase = Phase::Waiting { until: now + PROBE };
    }

    pub(super) fn ended(&mut self, now: Instant) {
        if !self.wanted {
            self.ordered = false;
            self.enter(Phase::Stopped, now);
            return;
        }
        if self.since(now) >= RECOVERED {
            self.delay = FIRST_DELAY;
        }
        let delay = if std::mem::take(&mut self.ordered) {
            Duration::ZERO
        } else {
            let delay = self.delay;
            self.delay = (delay * 2).min(LONGEST_DELAY);
            delay
        };
        self.enter(Phase::Waiting { until: now + delay }, now);
    }

    pub(super) fn order(&mut self, verb: Verb, now: Instant) {
        match verb {
            Verb::Start => self.wanted = true,
            Verb::Stop => self.wanted = false,
            Verb::Restart => {
                self.wanted = true;
                self.ordered = true;
            }
            Verb::Kill => return,
        }
        match (&mut self.phase, verb) {
            (Phase::Running { deadline, .. }, Verb::Stop | Verb::Restart) => *deadline = Some(now + PATIENCE),
            (Phase::Waiting { .. }, Verb::Stop) => self.enter(Phase::Stopped, now),
            (Phase::Waiting { .. } | Phase::Stopped, Verb::Start | Verb::Restart) => {
                self.ordered = false;
                self.delay = FIRST_DELAY;
                self.enter(Phase::Waiting { until: now }, now);
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_keeps_crashing_is_started_ever_more_rarely_and_recovers() {
        let mut now = Instant::now();
        let mut state = State::new(now);
        let mut delays = Vec::new();
        for pid in 0..8 {
            assert!(state.due(now));
            state.started(pid, now);
            state.ended(now);
            let delay = state.next_step(now).unwrap();
            delays.push(delay);
            now += delay;
        }
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!((delays[0], delays[7]), (FIRST_DELAY, LONGEST_DELAY));
        state.started(9, now);
        now += RECOVERED;
        state.ended(now);
        assert_eq!(state.next_step(now), Some(FIRST_DELAY));
        assert_eq!(state.restarts(), 8);
    }

    #[test]
    fn a_stopped_component_stays_down_until_it_is_started() {
        let now = Instant::now();
        let mut state = State::new(now);
        state.started(1, now);
        state.order(Verb::Stop, now);
        assert_eq!(state.overdue_stop(now), None);
        assert_eq!(state.overdue_stop(now + PATIENCE), Some(1));
        assert_eq!(state.overdue_stop(now + PATIENCE), None, "force is used once");
        state.ended(now);
        assert_eq!((state.phase(), state.next_step(now)), (&Phase::Stopped, None));
        state.order(Verb::Kill, now);
        assert_eq!(state.phase(), &Phase::Stopped);
        state.order(Verb::Start, now);
        assert!(state.due(now));
    }

    #[test]
    fn a_restart_has_no_delay_and_a_kill_has_one() {
        let now = Instant::now();
        let mut state = State::new(now);
        state.started(1, now);
        state.order(Verb::Restart, now);
        state.ended(now);
        assert!(state.due(now));
        state.started(2, now);
        state.order(Verb::Kill, now);
        state.ended(now);
        assert!(!state.due(now) && state.due(now + FIRST_DELAY));
    }

    #[test]
    fn stopping_what_waits_for_its_start_keeps_it_down() {
        let now = Instant::now();
        let mut state = State::new(now);
        state.not_yet(now);
        state.order(Verb::Stop, now);
        assert_eq!(state.phase(), &Phase::Stopped);
    }
}
