//! What must hold, and the checker that goes through every state to see that it does.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use braid_types::model::Phase;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use crate::protocol::{Action, Protocol};
use crate::scenario::{Fault, Machine, Scenario};
use crate::state::{Job, Kind, Life, Object, Stage, State};

/// More rounds than anything needs to come to rest.
const ROUNDS: usize = 12;

pub(crate) const ONE_HOLDER: &str =
    "two attached pods never have one address, but for those of a machine that migrates";
pub(crate) const OWN: &str = "what a pod has attached is its own, until its node confirms or is gone";
pub(crate) const WHOLE: &str = "a pod is attached with every family or not at all";
pub(crate) const KEEPS: &str = "a numbered pod gets what is kept for it and nothing else";
pub(crate) const STAYS: &str = "a numbered pod gets what the one before it had attached, or none";
pub(crate) const NAMED: &str = "every address is free, held, kept for an owner, or being released";
pub(crate) const SERVES: &str = "a pod that is to run gets its addresses, unless too few are free";
pub(crate) const RETURNS: &str = "when all pods are gone, what nobody keeps becomes free";
pub(crate) const RESTORED: &str = "nothing is granted before everything is listed";
pub(crate) const FOLLOWS: &str =
    "the pod in which a machine runs becomes its holder, and nobody stays beside it who is over";
pub(crate) const COOLED: &str = "no packet of a former holder meets the next one";

/// The model as the checker sees it.
struct Checked {
    protocol: Protocol,
    /// States from which it is known that what a property is about ends well.
    resting: Mutex<HashSet<(&'static str, u64)>>,
    /// The one property that counts; `None`: all.
    only: Option<&'static str>,
    /// Whether something was found not to hold. The first find is the shortest; later ones would take its place.
    found: AtomicBool,
}

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.protocol.scenario.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.protocol.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.protocol.step(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        PROPERTIES
            .iter()
            .filter(|(name, _)| self.only.is_none_or(|only| only == *name))
            .map(|(name, holds)| Property::always(name, *holds))
            .collect()
    }
}

type Holds = fn(&Checked, &State) -> bool;

/// All properties.
const PROPERTIES: &[(&str, Holds)] = &[
    (ONE_HOLDER, |model, state| model.first(one_holder(model.scenario(), state))),
    (OWN, |model, state| model.first(own(model.scenario(), state))),
    (WHOLE, |model, state| model.first(whole(model.scenario(), state))),
    (KEEPS, |model, state| model.first(keeps(model.scenario(), state))),
    (STAYS, |model, state| model.first(!state.moved)),
    (NAMED, |model, state| model.first(named(state))),
    (SERVES, |model, state| model.first(model.serves(state))),
    (RETURNS, |model, state| model.first(model.returns(state))),
    (FOLLOWS, |model, state| model.first(model.follows(state))),
    (RESTORED, |model, state| model.first(!state.granted_blindly)),
    (COOLED, |model, state| model.first(cooled(state))),
];

fn attached(state: &State) -> impl Iterator<Item = (usize, u8)> {
    let on_node = state.sandboxes.iter().enumerate().filter(|(_, s)| s.stage == Stage::Attached);
    on_node.map(|(pod, s)| (pod, s.uses))
}

fn one_holder(scenario: &Scenario, state: &State) -> bool {
    (0..scenario.addresses()).all(|at| {
        let users: Vec<usize> =
            attached(state).filter(|(_, uses)| uses & (1 << at) != 0).map(|(pod, _)| pod).collect();
        let named = |o: Object| users.len() == 2 && users.iter().all(|pod| o.names(*pod));
        users.len() < 2 || state.objects[at].is_some_and(named)
    })
}

fn own(scenario: &Scenario, state: &State) -> bool {
    attached(state).all(|(pod, uses)| {
        let is_own = |at: usize| state.objects[at].is_some_and(|o| o.names(pod));
        state.sandboxes[pod].other_uid == 0 && bits(scenario, uses).all(is_own)
    })
}

fn whole(scenario: &Scenario, state: &State) -> bool {
    attached(state).all(|(_, uses)| scenario.families().all(|family| (uses & family).count_ones() == 1))
}

fn keeps(scenario: &Scenario, state: &State) -> bool {
    !scenario.keeps
        || attached(state).all(|(pod, uses)| {
            let kept = state.kept_at_birth[pod];
            scenario.families().all(|family| kept & family == 0 || uses & family & !kept == 0)
        })
}

fn is_named(object: &Object) -> bool {
    if object.second.is_some_and(|s| object.pod.is_none_or(|holder| holder == s.pod)) {
        return false;
    }
    match object.phase {
        Phase::Bound => object.pod.is_some(),
        Phase::Reserved => object.owned,
        Phase::Releasing => object.torn_down || object.release_at,
    }
}

fn named(state: &State) -> bool {
    state.objects.iter().flatten().all(is_named)
}

fn cooled(state: &State) -> bool {
    attached(state).all(|(_, uses)| uses & state.late == 0)
}

fn bits(scenario: &Scenario, mask: u8) -> impl Iterator<Item = usize> + use<> {
    (0..scenario.addresses()).filter(move |at| mask & (1 << at) != 0)
}

fn digest(state: &State) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(state)
}

impl Checked {
    fn scenario(&self) -> &Scenario {
        &self.protocol.scenario
    }

    /// Whether something holds, or does not but is not the first that does not.
    fn first(&self, holds: bool) -> bool {
        holds || self.found.swap(true, Ordering::Relaxed)
    }

    /// From a state without pods, a state in which everything is free that nobody keeps can be reached.
    fn returns(&self, state: &State) -> bool {
        let over = |life: &Life| matches!(life, Life::Gone | Life::Unborn);
        let stays = |o: &Object| o.owned && state.owner && o.phase == Phase::Reserved && o.pod.is_none();
        !state.pods.iter().all(over)
            || self.rests(RETURNS, state, |end| end.objects.iter().flatten().all(stays))
    }

    /// From any state, one can be reached in which every pod that is to run has its addresses, or too few are free.
    fn serves(&self, state: &State) -> bool {
        let scenario = self.scenario();
        let waits = |pod: usize| state.pods[pod] == Life::Live && state.node_exists(scenario.pods[pod].node);
        let waiting: Vec<usize> = (0..scenario.pods.len()).filter(|pod| waits(*pod)).collect();
        if !scenario.serves || waiting.is_empty() {
            return true;
        }
        self.rests(SERVES, state, |end| {
            let taken = |family: u8| bits(scenario, family).all(|at| end.objects[at].is_some());
            let holds = |pod: usize| {
                let own =
                    |at: &usize| end.objects[*at].is_some_and(|o| o.names(pod) && o.phase == Phase::Bound);
                let own = (0..scenario.addresses()).filter(own).fold(0, |all, at| all | 1 << at);
                end.objects.iter().flatten().any(|o| o.names(pod) && o.set & !own == 0)
            };
            scenario.families().any(taken) || waiting.iter().all(|pod| holds(*pod))
        })
    }

    /// From any state, one can be reached in which the pod that has the machine is the holder of all its addresses, and
    /// nobody is beside it who is over.
    fn follows(&self, state: &State) -> bool {
        let scenario = self.scenario();
        let machine = usize::from(state.machine);
        let runs = state.pods[machine] == Life::Live && state.node_exists(scenario.pods[machine].node);
        if !scenario.has_machine() || !runs {
            return true;
        }
        let holds = |o: &Object| o.pod == Some(state.machine) && o.phase == Phase::Bound;
        let stranger =
            |o: &Object| o.pod.is_some_and(|pod| scenario.pods[usize::from(pod)].machine == Machine::No);
        let beside = |o: &Object| o.second.is_some_and(|s| state.pods[usize::from(s.pod)].is_over());
        self.rests(FOLLOWS, state, |end| {
            let of_family = |family| bits(scenario, family).filter_map(|at| end.objects[at]);
            let held = |family| of_family(family).any(|o| stranger(&o) || holds(&o) && !beside(&o));
            scenario.families().all(held)
        })
    }

    /// Whether it is so once everybody has done what they would do on their own, and time has passed: one way of which
    /// the checker has gone every step, too.
    fn rests(&self, property: &'static str, state: &State, so: impl Fn(&State) -> bool) -> bool {
        let mut state = *state;
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            let before = state;
            self.finish_and_deliver(&mut state);
            let mut tidy = state;
            self.protocol.tidy(&mut tidy);
            let known = (property, digest(&tidy));
            if self.resting.lock().expect("nobody panicked").contains(&known) {
                self.resting.lock().expect("nobody panicked").extend(seen);
                return true;
            }
            seen.push(known);
            self.round(&mut state);
            if state == before {
                let so = so(&state);
                if so {
                    self.resting.lock().expect("nobody panicked").extend(seen);
                }
                return so;
            }
        }
        panic!("{} does not come to rest:\n{state:#?}", self.scenario().name);
    }

    fn take(&self, state: &mut State, action: Action) {
        if let Some(next) = self.protocol.apply(state, action) {
            *state = next;
        }
    }

    fn finish_and_deliver(&self, state: &mut State) {
        let scenario = self.scenario();
        for controller in 0..scenario.controllers {
            self.finish(state, controller);
        }
        for pod in 0..scenario.pods.len() {
            self.take(state, Action::Detach(pod));
            self.take(state, Action::Note(pod));
        }
        for controller in 0..scenario.controllers {
            for kind in Kind::ALL {
                if state.controllers[controller].view.listed & kind.bit() == 0 {
                    self.take(state, Action::List(controller, kind));
                }
                self.take(state, Action::Deliver(controller, kind));
            }
        }
    }

    fn finish(&self, state: &mut State, controller: usize) {
        for _ in 0..ROUNDS {
            for worker in 0..self.protocol.scenario.workers {
                match state.controllers[controller].jobs[worker] {
                    Job::Idle => {}
                    Job::Grant { .. } => {
                        for address in 0..self.protocol.scenario.addresses() {
                            self.take(state, Action::Write { controller, worker, address });
                        }
                    }
                    Job::Review { address, .. } => {
                        let address = usize::from(address);
                        self.take(state, Action::Write { controller, worker, address });
                    }
                }
            }
        }
    }

    fn round(&self, state: &mut State) {
        let scenario = self.scenario();
        for pod in 0..scenario.pods.len() {
            for address in 0..scenario.addresses() {
                self.take(state, Action::Confirm(pod, address));
            }
        }
        for controller in 0..scenario.controllers {
            self.take(state, Action::Deliver(controller, Kind::Addresses));
            for address in 0..scenario.addresses() {
                if state.controllers[controller].view.objects[address].is_some() {
                    self.take(state, Action::Review { controller, address });
                    self.finish(state, controller);
                }
            }
            for pod in 0..scenario.pods.len() {
                if state.controllers[controller].view.pods[pod] == Life::Live {
                    self.take(state, Action::Grant { controller, pod, late_start: false });
                    self.finish(state, controller);
                }
            }
        }
        self.take(state, Action::CoolDownPasses);
        if scenario.fault != Fault::Silent {
            self.take(state, Action::DayPasses);
        }
    }
}

/// What the checker found.
pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) depth: usize,
    pub(crate) questions: usize,
    pub(crate) took: Duration,
    /// The property that does not hold, and the shortest way to where it does not.
    pub(crate) counterexample: Option<(&'static str, Path<State, Action>)>,
}

/// Goes through every state, or to the first in which something (or `only` that) does not hold.
pub(crate) fn explore(scenario: Scenario, only: Option<&'static str>) -> Outcome {
    let begun = Instant::now();
    let model = Checked {
        protocol: Protocol::new(scenario),
        resting: Mutex::default(),
        only,
        found: AtomicBool::new(false),
    };
    let checker = model.checker().finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let shortest = checker.discoveries().into_iter().min_by_key(|(name, path)| {
        let steps: Vec<_> = path.clone().into_actions();
        (steps.len(), *name)
    });
    Outcome {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        questions: checker.model().protocol.core.questions(),
        took: begun.elapsed(),
        counterexample: shortest,
    }
}

/// One line per step: what was done, and what has changed by it.
pub(crate) fn told(scenario: &Scenario, path: &Path<State, Action>) -> String {
    let mut text = String::new();
    let mut last: Option<State> = None;
    for (number, (state, action)) in path.clone().into_vec().into_iter().enumerate() {
        if let Some(last) = last {
            for at in 0..scenario.addresses() {
                if last.objects[at] != state.objects[at] {
                    let object = state.objects[at].map_or("free".to_owned(), |o| format!("{o:?}"));
                    let _ = writeln!(text, "        address {at}: {object}");
                }
            }
        }
        if let Some(action) = action {
            let _ = writeln!(text, "  {:>2}. {action:?}", number + 1);
        }
        last = Some(state);
    }
    text
}
