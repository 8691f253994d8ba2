//! Several candidates and one Lease, with clocks that differ, answers that get lost and processes that sleep.

use std::time::Duration;

use braid_controller_core::leader::{Elector, Record, Step, Timing};
use proptest::prelude::*;

const TIMING: Timing = Timing {
    lease: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};

/// The Lease in the API server.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    version: u64,
}

impl Server {
    fn write(&mut self, record: &Record, create: bool) -> Option<Record> {
        let allowed = match &self.lease {
            None => create,
            Some(old) => !create && old.version == record.version,
        };
        allowed.then(|| {
            self.version += 1;
            let written = Record { version: self.version.to_string(), ..record.clone() };
            self.lease = Some(written.clone());
            written
        })
    }
}

/// A request on its way.
enum Flight {
    Read(Option<Option<Record>>),
    Write { record: Record, create: bool, started: Duration, answer: Option<Option<Record>> },
}

struct Candidate {
    elector: Elector,
    /// How far this process's monotonic clock is from real time.
    offset: Duration,
    flight: Option<Flight>,
    starts: usize,
    id: usize,
}

impl Candidate {
    fn new(id: usize, offset: u64, starts: usize) -> Self {
        let elector = Elector::new(&format!("c{id}-{starts}"), TIMING).unwrap();
        Self { elector, offset: Duration::from_millis(offset), flight: None, starts, id }
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// Time passes.
    Pass(u64),
    /// A candidate takes a step.
    Step(usize),
    /// Its request reaches the server.
    Serve(usize),
    /// The answer comes back, or is lost.
    Answer(usize, bool),
    /// It crashes and starts again.
    Restart(usize),
    /// It shuts down in order.
    Release(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let who = 0usize..3;
    prop_oneof![
        4 => (1u64..4000).prop_map(Event::Pass),
        8 => who.clone().prop_map(Event::Step),
        8 => who.clone().prop_map(Event::Serve),
        8 => (who.clone(), prop::bool::weighted(0.85)).prop_map(|(w, ok)| Event::Answer(w, ok)),
        1 => who.clone().prop_map(Event::Restart),
        1 => who.prop_map(Event::Release),
    ]
}

fn run(events: &[Event], offsets: [u64; 3]) -> (usize, Vec<u64>) {
    let mut server = Server::default();
    let mut now = Duration::from_secs(1);
    let mut all: Vec<Candidate> = offsets.iter().enumerate().map(|(i, o)| Candidate::new(i, *o, 0)).collect();
    let (mut reigns, mut fences) = (0, Vec::new());
    for event in events {
        match *event {
            Event::Pass(ms) => now += Duration::from_millis(ms),
            Event::Step(w) => {
                let c = &mut all[w];
                let local = now + c.offset;
                if c.flight.is_none() {
                    c.flight = match c.elector.step(local) {
                        Step::Read => Some(Flight::Read(None)),
                        Step::Write { record, create, .. } => {
                            Some(Flight::Write { record, create, started: local, answer: None })
                        }
                        Step::Wait(_) => None,
                        Step::Lost => {
                            *c = Candidate::new(c.id, offsets[w], c.starts + 1);
                            None
                        }
                    };
                }
            }
            Event::Serve(w) => match &mut all[w].flight {
                Some(Flight::Read(answer @ None)) => *answer = Some(server.lease.clone()),
                Some(Flight::Write { record, create, answer: answer @ None, .. }) => {
                    *answer = Some(server.write(record, *create));
                }
                _ => {}
            },
            Event::Answer(w, arrives) => {
                let c = &mut all[w];
                let local = now + c.offset;
                let led = c.elector.fence();
                match c.flight.take() {
                    Some(Flight::Read(Some(seen))) if arrives => c.elector.observed(seen, local),
                    Some(Flight::Write { started, answer: Some(Some(record)), .. }) if arrives => {
                        c.elector.wrote(record, started, local);
                    }
                    Some(Flight::Write { .. } | Flight::Read(_)) => c.elector.failed(local),
                    None => {}
                }
                if let Some(fence) = c.elector.fence().filter(|_| led.is_none()) {
                    reigns += 1;
                    fences.push(fence);
                }
            }
            Event::Restart(w) => all[w] = Candidate::new(w, offsets[w], all[w].starts + 1),
            Event::Release(w) => {
                let c = &mut all[w];
                if c.flight.is_none()
                    && let Some(record) = c.elector.release()
                {
                    server.write(&record, false);
                    *c = Candidate::new(w, offsets[w], c.starts + 1);
                }
            }
        }
        let leading = all.iter().filter(|c| c.elector.is_leading(now + c.offset)).count();
        assert!(leading <= 1, "{leading} lead at {now:?}");
    }
    (reigns, fences)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn two_never_lead_at_once(
        events in prop::collection::vec(event(), 0..600),
        offsets in [0u64..1_000_000, 0..1_000_000, 0..1_000_000],
    ) {
        let (_, fences) = run(&events, offsets);
        prop_assert!(fences.windows(2).all(|w| w[0] < w[1]), "each reign has a larger token: {fences:?}");
    }
}

/// A well-behaved round for one candidate.
fn round(w: usize) -> [Event; 6] {
    [
        Event::Step(w),
        Event::Serve(w),
        Event::Answer(w, true),
        Event::Step(w),
        Event::Serve(w),
        Event::Answer(w, true),
    ]
}

#[test]
fn the_next_takes_over_when_the_leader_is_silent_and_not_before() {
    let mut events: Vec<Event> = round(0).to_vec();
    for _ in 0..6 {
        events.extend(round(1));
        events.push(Event::Pass(2000));
    }
    let before = run(&events, [0, 500_000, 0]);
    assert_eq!(before.0, 1, "the lease has not run out for the one that waits");
    for _ in 0..3 {
        events.extend(round(1));
        events.push(Event::Pass(2000));
    }
    let after = run(&events, [0, 500_000, 0]);
    assert_eq!(after, (2, vec![0, 1]));
}

#[test]
fn a_lease_given_up_is_taken_at_once() {
    let mut events: Vec<Event> = round(0).to_vec();
    events.push(Event::Release(0));
    events.push(Event::Pass(2000));
    events.extend(round(1));
    assert_eq!(run(&events, [0, 0, 0]).0, 2);
}

#[test]
fn a_leader_without_answers_stops_by_itself() {
    let mut e = Elector::new("a", TIMING).unwrap();
    let s = Duration::from_secs;
    assert_eq!(e.step(s(0)), Step::Read);
    e.observed(None, s(0));
    let Step::Write { record, create: true, acquire: true } = e.step(s(0)) else {
        panic!("create the lease")
    };
    assert!(e.wrote(Record { version: "1".into(), ..record }, s(0), s(1)));
    assert_eq!(e.step(s(1)), Step::Wait(s(2)));
    for at in [2, 4, 6, 8] {
        assert!(matches!(e.step(s(at)), Step::Write { .. } | Step::Read));
        e.failed(s(at));
        assert!(e.is_leading(s(at)));
    }
    assert!(e.is_leading(Duration::from_millis(9_999)));
    assert!(!e.is_leading(s(10)));
    assert_eq!(e.step(s(10)), Step::Lost);
    assert_eq!(e.step(s(100)), Step::Lost);
}

#[test]
fn an_answer_that_comes_after_the_lead_has_ended_gives_none() {
    let mut events: Vec<Event> = round(0)[..5].to_vec();
    for _ in 0..8 {
        events.extend(round(1));
        events.push(Event::Pass(2000));
    }
    events.extend(round(1));
    events.push(Event::Answer(0, true));
    assert_eq!(run(&events, [0, 0, 0]), (1, vec![1]), "the first never led");
}

#[test]
fn the_times_must_be_in_order() {
    let wrong = Timing { renew_deadline: Duration::from_secs(15), ..TIMING };
    assert!(Elector::new("a", wrong).is_err());
}

#[test]
fn who_waits_looks_once_per_retry_period() {
    let mut e = Elector::new("b", TIMING).unwrap();
    let held = Record { holder: "a".into(), lease: TIMING.lease, transitions: 0, version: "1".into() };
    let (mut now, mut reads) = (Duration::ZERO, 0);
    while now < TIMING.lease {
        match e.step(now) {
            Step::Read => {
                reads += 1;
                e.observed(Some(held.clone()), now);
            }
            Step::Wait(until) => {
                assert!(until > now, "waiting for the past would be a busy loop");
                now = until;
            }
            step => panic!("{step:?} although somebody else leads"),
        }
    }
    assert_eq!(reads, 8, "at 0, 2, .. 14 s");
}
