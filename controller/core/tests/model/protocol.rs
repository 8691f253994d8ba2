//! What can happen, one atomic step at a time.

use braid_types::model::Phase;

use crate::adapter::{Adapter, Truth, claims};
use crate::scenario::{Fault, Machine, Scenario};
use crate::state::{
    ADDRESSES, Change, Claim, Controller, Due, Job, Kind, Life, Object, PODS, Sandbox, Second, Seen, Stage,
    State, View, WORKERS,
};

/// One step. Pods, addresses, nodes and controllers are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    // ---- users, kubelet and time
    CreatePod(usize),
    /// `kubectl delete`: the node tears it down, then the object goes.
    TerminatePod(usize),
    FinishPod(usize),
    /// Its object goes; by `--force` before its node knows.
    RemovePod(usize),
    /// The machine is dead and its Node object deleted.
    NodeGone(u8),
    NodeMade(u8),
    OwnerGone,
    OwnerMade,
    /// The virtual machine has migrated to the pod.
    Arrive(usize),
    CoolDownPasses,
    OrphanTimeoutPasses,
    DayPasses,

    // ---- agents
    /// ADD finds a whole set of addresses for the pod.
    FindSet(usize),
    /// ADD makes the interface.
    Attach(usize),
    /// `attachedAt` is written.
    Note(usize),
    /// DEL removes the interface.
    Detach(usize),
    /// `tornDownAt` is written onto one address.
    Confirm(usize, usize),

    // ---- controllers
    /// A kind is listed for the first time.
    List(usize, Kind),
    /// A watch tells everything that it has not told yet.
    Deliver(usize, Kind),
    /// The process dies at this point, and another one takes its place.
    Restart(usize),
    /// A worker asks for the addresses of a pod; the search may start behind the first free one.
    Grant {
        controller: usize,
        pod: usize,
        late_start: bool,
    },
    /// A worker looks at an address.
    Review {
        controller: usize,
        address: usize,
    },
    /// A leader looks whether a pod has too much.
    Thin {
        controller: usize,
        pod: usize,
    },
    /// The next write of what a worker does: for a grant, onto this address.
    Write {
        controller: usize,
        worker: usize,
        address: usize,
    },
}

/// The rules of a scenario.
pub(crate) struct Protocol {
    pub(crate) scenario: Scenario,
    pub(crate) core: Adapter,
}

impl Protocol {
    pub(crate) fn new(scenario: Scenario) -> Self {
        Self { core: Adapter::new(scenario), scenario }
    }

    /// Everything that might be possible; [`Self::step`] knows what is.
    pub(crate) fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let events = &self.scenario.events;
        for pod in 0..self.scenario.pods.len() {
            match state.pods[pod] {
                Life::Unborn => actions.push(Action::CreatePod(pod)),
                Life::Live => {
                    if events.terminate {
                        actions.push(Action::TerminatePod(pod));
                    }
                    if events.finish {
                        actions.push(Action::FinishPod(pod));
                    }
                    actions.push(Action::RemovePod(pod));
                }
                Life::Terminating | Life::Finished => actions.push(Action::RemovePod(pod)),
                Life::Gone => {}
            }
            if self.can_arrive(state, pod) {
                actions.push(Action::Arrive(pod));
            }
            match state.sandboxes[pod].stage {
                Stage::Nothing => actions.push(Action::FindSet(pod)),
                Stage::Granted => actions.push(Action::Attach(pod)),
                Stage::Attached => actions.push(Action::Detach(pod)),
                Stage::Down => {}
            }
            if state.sandboxes[pod].note != 0 && state.sandboxes[pod].stage == Stage::Attached {
                actions.push(Action::Note(pod));
            }
            if state.pods[pod] != Life::Live && state.pods[pod] != Life::Unborn {
                actions.extend((0..self.scenario.addresses()).map(|at| Action::Confirm(pod, at)));
            }
        }
        match state.node_exists(0) {
            true if events.node_gone => actions.push(Action::NodeGone(0)),
            false if events.node_made => actions.push(Action::NodeMade(0)),
            _ => {}
        }
        if events.owner_gone && state.owner {
            actions.push(Action::OwnerGone);
        }
        if events.owner_made && !state.owner {
            actions.push(Action::OwnerMade);
        }
        actions.push(Action::CoolDownPasses);
        if events.orphan_timeout {
            actions.push(Action::OrphanTimeoutPasses);
        }
        if events.day {
            actions.push(Action::DayPasses);
        }
        for controller in 0..self.scenario.controllers {
            self.possible_for(state, controller, actions);
        }
    }

    fn possible_for(&self, state: &State, controller: usize, actions: &mut Vec<Action>) {
        let Controller { view, jobs } = &state.controllers[controller];
        for kind in Kind::ALL {
            if view.listed & kind.bit() == 0 {
                actions.push(Action::List(controller, kind));
            } else {
                actions.push(Action::Deliver(controller, kind));
            }
        }
        if self.scenario.crashes.is_none() || state.crashes > 0 {
            actions.push(Action::Restart(controller));
        }
        for (worker, job) in jobs.iter().enumerate().take(self.scenario.workers) {
            match job {
                Job::Idle => {}
                Job::Grant { claims, .. } => {
                    let open = claims.iter().enumerate().filter(|(_, claim)| claim.is_some());
                    actions.extend(open.map(|(address, _)| Action::Write { controller, worker, address }));
                }
                Job::Review { address, .. } => {
                    actions.push(Action::Write { controller, worker, address: usize::from(*address) });
                }
            }
        }
        if jobs.iter().take(self.scenario.workers).all(|job| *job != Job::Idle) {
            return;
        }
        for pod in 0..self.scenario.pods.len() {
            if view.pods[pod] == Life::Live {
                actions.push(Action::Grant { controller, pod, late_start: false });
                if self.scenario.v4 > 1 {
                    actions.push(Action::Grant { controller, pod, late_start: true });
                }
            }
        }
        for address in 0..self.scenario.addresses() {
            if view.objects[address].is_some() {
                actions.push(Action::Review { controller, address });
            }
        }
        if self.scenario.events.thin {
            actions.extend((0..self.scenario.pods.len()).map(|pod| Action::Thin { controller, pod }));
        }
    }

    /// The state after the action, as the checker compares it.
    pub(crate) fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut state = self.apply(before, action)?;
        self.tidy(&mut state);
        (state != *before).then_some(state)
    }

    /// The state after the action; `None` if it is not possible or changes nothing.
    pub(crate) fn apply(&self, before: &State, action: Action) -> Option<State> {
        let mut state = *before;
        match action {
            Action::CreatePod(pod) => self.create_pod(&mut state, pod),
            Action::TerminatePod(pod) => state.pods[pod] = Life::Terminating,
            Action::FinishPod(pod) => state.pods[pod] = Life::Finished,
            Action::RemovePod(pod) => state.pods[pod] = Life::Gone,
            Action::NodeGone(node) => self.node_gone(&mut state, node),
            Action::NodeMade(node) => state.nodes |= 1 << node,
            Action::OwnerGone => {
                state.owner = false;
                state.used = 0;
                state.kept_at_birth = [0; PODS];
            }
            Action::OwnerMade => state.owner = true,
            Action::Arrive(pod) => {
                state.arrived |= 1 << pod;
                state.machine = pod as u8;
            }
            Action::CoolDownPasses => cool_down_passes(&mut state),
            Action::OrphanTimeoutPasses => orphan_timeout_passes(&mut state),
            // No call takes a day.
            Action::DayPasses if !all_idle(&state) => {}
            Action::DayPasses => day_passes(&mut state),
            Action::FindSet(pod) => self.find_set(&mut state, pod),
            Action::Attach(pod) => self.attach(&mut state, pod),
            Action::Note(pod) => note(&mut state, pod),
            Action::Detach(pod) => self.detach(&mut state, pod),
            Action::Confirm(pod, address) => self.confirm(&mut state, pod, address),
            Action::List(controller, kind) => self.list(&mut state, controller, kind),
            Action::Deliver(controller, kind) => self.deliver(&mut state, controller, kind),
            Action::Restart(controller) => self.restart(&mut state, controller),
            Action::Grant { controller, pod, late_start } => {
                self.grant(&mut state, controller, pod, late_start);
            }
            Action::Review { controller, address } => self.review(&mut state, controller, address),
            Action::Thin { controller, pod } => self.thin(&mut state, controller, pod),
            Action::Write { controller, worker, address } => {
                self.write(&mut state, controller, worker, address);
            }
        }
        (state != *before).then_some(state)
    }

    /// Makes states equal that can never be told apart. Controllers and workers are interchangeable, so a number in a
    /// trace names one of them in that state only.
    pub(crate) fn tidy(&self, state: &mut State) {
        for controller in &mut state.controllers {
            for job in &mut controller.jobs {
                tidy_job(job);
            }
            controller.jobs[..self.scenario.workers].sort_unstable();
        }
        state.controllers[..self.scenario.controllers].sort_unstable();
        for (pod, sandbox) in state.sandboxes.iter_mut().enumerate() {
            if !state.pods[pod].exists() {
                state.arrived &= !(1 << pod);
            }
            if sandbox.stage != Stage::Attached {
                let named = |at: &usize| state.objects[*at].is_some_and(|o| o.pod == Some(pod as u8));
                sandbox.note &= (0..ADDRESSES).filter(named).fold(0, |all, at| all | 1 << at);
            }
            if state.pods[pod].is_over() && sandbox.stage == Stage::Down {
                sandbox.stage = Stage::Nothing;
            }
            if state.pods[pod] == Life::Gone && !matches!(sandbox.stage, Stage::Attached | Stage::Granted) {
                state.kept_at_birth[pod] = 0;
            }
        }
    }

    // ---- users and kubelet

    fn create_pod(&self, state: &mut State, pod: usize) {
        let plan = self.scenario.pods[pod];
        // The API server has one pod of a name; the scheduler knows the nodes.
        let name_is_free = self.scenario.before(pod).all(|p| state.pods[p] == Life::Gone);
        // Of pods that are alike, the first comes first.
        let twin = |p: &usize| self.scenario.pods[*p].is_twin_of(&plan);
        if (0..pod).filter(twin).any(|p| state.pods[p] == Life::Unborn) {
            return;
        }
        if !name_is_free || !state.node_exists(plan.node) || (plan.numbered && !state.owner) {
            return;
        }
        match plan.machine {
            Machine::No => {}
            Machine::Starts if !self.can_start(state, pod) => return,
            Machine::Starts => state.machine = pod as u8,
            Machine::Target if !self.can_migrate(state, pod) => return,
            Machine::Target => {}
        }
        state.pods[pod] = Life::Live;
        if plan.numbered {
            let kept = |o: &Option<Object>| {
                o.is_some_and(|o| o.owned && !o.release_at && o.retain_until != Due::Now)
            };
            let kept = state.objects.iter().enumerate().filter(|(_, o)| kept(o));
            state.kept_at_birth[pod] = kept.map(|(at, _)| 1 << at).fold(0, |all, bit: u8| all | bit);
        }
    }

    /// KubeVirt starts a machine that runs nowhere.
    fn can_start(&self, state: &State, pod: usize) -> bool {
        let starts = |p: &usize| self.scenario.pods[*p].machine == Machine::Starts;
        let of_machine = |p: &usize| self.scenario.pods[*p].machine != Machine::No;
        (0..pod).filter(starts).all(|p| state.pods[p].is_over())
            && !(0..self.scenario.pods.len()).filter(of_machine).any(|p| state.pods[p].exists())
    }

    /// KubeVirt migrates what runs, makes one target at a time, and that on another node than the machine's.
    fn can_migrate(&self, state: &State, pod: usize) -> bool {
        let plan = |pod: usize| &self.scenario.pods[pod];
        let waits = |p: usize| plan(p).machine == Machine::Target && state.arrived & (1 << p) == 0;
        let machine = usize::from(state.machine);
        state.pods[machine] == Life::Live
            && state.sandboxes[machine].stage == Stage::Attached
            && plan(machine).node != plan(pod).node
            && !(0..pod).any(|p| waits(p) && !state.pods[p].is_over())
    }

    fn can_arrive(&self, state: &State, pod: usize) -> bool {
        self.scenario.pods[pod].machine == Machine::Target
            && state.pods[pod] == Life::Live
            && state.sandboxes[pod].stage == Stage::Attached
            && state.arrived & (1 << pod) == 0
    }

    fn node_gone(&self, state: &mut State, node: u8) {
        state.nodes &= !(1 << node);
        for (pod, _) in self.scenario.pods.iter().enumerate().filter(|(_, p)| p.node == node) {
            state.sandboxes[pod] = Sandbox::NONE;
        }
    }

    // ---- agents

    fn has_agent(&self, state: &State, pod: usize) -> bool {
        state.node_exists(self.scenario.pods[pod].node)
    }

    fn find_set(&self, state: &mut State, pod: usize) {
        if state.pods[pod] != Life::Live || !self.has_agent(state, pod) {
            return;
        }
        let holder = Some(self.scenario.known_as(pod) as u8);
        let any_phase = self.scenario.fault == Fault::AnyPhase;
        let has = |o: &Object| o.pod == holder || o.second.is_some_and(|s| Some(s.pod) == holder);
        let own = |o: &Option<Object>| o.filter(|o| has(o) && (any_phase || o.phase == Phase::Bound));
        let mut found: Vec<(usize, Object)> =
            state.objects.iter().enumerate().filter_map(|(at, o)| Some((at, own(o)?))).collect();
        found.sort_by_key(|(at, o)| (!o.attached, *at));
        let have = found.iter().fold(0, |all, (at, _)| all | 1 << at);
        let half = self.scenario.fault == Fault::HalfSet;
        if let Some((_, whole)) = found.iter().find(|(_, o)| half || o.set & !have == 0) {
            state.sandboxes[pod] =
                Sandbox { stage: Stage::Granted, uses: whole.set & have, ..state.sandboxes[pod] };
        }
    }

    fn attach(&self, state: &mut State, pod: usize) {
        let sandbox = &mut state.sandboxes[pod];
        sandbox.stage = Stage::Attached;
        if !self.scenario.events.notes {
            return;
        }
        sandbox.note = sandbox.uses;
        if self.scenario.pods[pod].numbered && state.owner {
            let uses = sandbox.uses;
            let before = std::mem::replace(&mut state.used, uses);
            state.moved |= self.scenario.families().any(|f| before & f != 0 && before & f != uses & f);
        }
    }

    fn detach(&self, state: &mut State, pod: usize) {
        // The kubelet stops what the API server wants stopped.
        if state.pods[pod] == Life::Live {
            return;
        }
        let sandbox = &mut state.sandboxes[pod];
        if self.scenario.events.late_packets {
            state.late |= sandbox.uses;
        }
        *sandbox = Sandbox { stage: Stage::Down, uses: 0, other_uid: 0, ..*sandbox };
    }

    fn confirm(&self, state: &mut State, pod: usize, address: usize) {
        let Some(object) = state.objects[address] else { return };
        let sandbox = state.sandboxes[pod];
        let holder = Some(self.scenario.known_as(pod) as u8);
        let second = object.second.filter(|s| Some(s.pod) == holder);
        let due = match second {
            Some(second) => !second.torn_down,
            None => object.pod == holder && object.phase == Phase::Bound && !object.torn_down,
        };
        if !due || !self.has_agent(state, pod) || self.scenario.fault == Fault::Silent {
            return;
        }
        let interface = sandbox.stage == Stage::Attached && self.scenario.fault != Fault::ConfirmsEarly;
        let over = self.is_over(state, pod) || sandbox.stage == Stage::Down;
        if interface || !over {
            return;
        }
        if sandbox.stage == Stage::Granted && self.scenario.fault != Fault::ConfirmsDuringAdd {
            // An ADD that would still come finds that the pod is over.
            state.sandboxes[pod] = Sandbox::NONE;
        }
        let confirmed = match second {
            Some(second) if self.scenario.fault != Fault::ConfirmsForHolder => {
                Object { second: Some(Second { torn_down: true, ..second }), ..object }
            }
            _ => Object { phase: Phase::Releasing, torn_down: true, ..object },
        };
        let said = self.scenario.fault != Fault::AttachedNotSaid && sandbox.note & (1 << address) != 0;
        state.write(address, Object { attached: confirmed.attached || said, ..confirmed });
        state.sandboxes[pod].note &= !(1 << address);
    }

    /// Whether the API server has no pod that the address can be for, or a finished one.
    fn is_over(&self, state: &State, pod: usize) -> bool {
        let known_as = self.scenario.known_as(pod);
        let same = |p: &usize| self.scenario.known_as(*p) == known_as;
        (0..self.scenario.pods.len())
            .filter(same)
            .all(|p| state.pods[p].is_over() || (state.pods[p] == Life::Unborn && p != pod))
    }

    // ---- controllers: what they learn

    fn list(&self, state: &mut State, controller: usize, kind: Kind) {
        let view = &mut state.controllers[controller].view;
        match kind {
            Kind::Pods | Kind::Nodes => view.listed |= kind.bit(),
            Kind::Addresses => *view = self.core.learn_all(view, &state.objects),
        }
        self.deliver(state, controller, kind);
    }

    fn deliver(&self, state: &mut State, controller: usize, kind: Kind) {
        let mut view = state.controllers[controller].view;
        match kind {
            Kind::Pods => {
                if self.scenario.hears {
                    self.deliver(state, controller, Kind::Addresses);
                    view = state.controllers[controller].view;
                }
                view.pods = state.pods.map(|life| if life.exists() { life } else { Life::Unborn });
                view.arrived = state.arrived;
            }
            Kind::Nodes => view.nodes = state.nodes,
            Kind::Addresses => {
                for (at, object) in state.objects.iter().enumerate() {
                    let known = view.objects[at].is_some_and(|s| s.same_version);
                    if !known && (object.is_some() || view.objects[at].is_some()) {
                        view = self.core.learn(&view, at, *object);
                    }
                }
            }
        }
        state.controllers[controller].view = view;
    }

    fn restart(&self, state: &mut State, controller: usize) {
        state.crashes = state.crashes.saturating_sub(1);
        state.controllers[controller] = Controller { view: View::EMPTY, jobs: [Job::Idle; WORKERS] };
        if !self.scenario.events.slow_start {
            for kind in Kind::ALL {
                self.list(state, controller, kind);
            }
        }
    }

    pub(super) fn learn(&self, state: &mut State, controller: usize, address: usize) {
        let object = state.objects[address];
        let view = self.core.learn(&state.controllers[controller].view, address, object);
        state.controllers[controller].view = view;
    }

    // ---- controllers: what they do

    fn take_job(&self, state: &mut State, controller: usize, job: Job) {
        let jobs = &mut state.controllers[controller].jobs[..self.scenario.workers];
        if let Some(worker) = jobs.iter_mut().find(|j| **j == Job::Idle) {
            *worker = job;
        }
    }

    fn grant(&self, state: &mut State, controller: usize, pod: usize, late_start: bool) {
        let Controller { view, jobs } = state.controllers[controller];
        let mut promised = 0;
        for job in jobs {
            if let Job::Grant { pod: other, claims } = job {
                if usize::from(other) == pod {
                    return;
                }
                let creates = |c: &Option<Claim>| c.is_some_and(|c| c.seen.is_none());
                let open = claims.iter().enumerate().filter(|(_, c)| creates(c));
                promised |= open.map(|(at, _)| 1 << at).fold(0, |all, bit: u8| all | bit);
            }
        }
        let Some(targets) = self.core.grant(&view, pod, late_start, promised) else { return };
        if targets.iter().all(Option::is_none) {
            return;
        }
        if view.listed != Kind::EVERY {
            state.granted_blindly = true;
        }
        self.take_job(state, controller, Job::Grant { pod: pod as u8, claims: claims(&targets, &view) });
    }

    fn review(&self, state: &mut State, controller: usize, address: usize) {
        let Controller { view, jobs } = state.controllers[controller];
        let Some(seen) = view.objects[address].filter(|_| view.listed == Kind::EVERY) else { return };
        let busy = |job: &Job| matches!(job, Job::Review { address: a, .. } if usize::from(*a) == address);
        if jobs.iter().any(busy) {
            return;
        }
        let life_of = |pod: u8| {
            let pod = usize::from(pod);
            if self.scenario.fault != Fault::ByName {
                return state.pods[pod];
            }
            let same = (0..self.scenario.pods.len()).filter(|p| self.scenario.known_as(*p) == pod);
            same.map(|p| state.pods[p]).find(|life| life.exists()).unwrap_or(Life::Gone)
        };
        let truth = Truth {
            pod: seen.object.pod.map_or(Life::Gone, life_of),
            node: seen.object.node.is_none_or(|n| state.node_exists(n)),
            second_pod: seen.object.second.map_or(Life::Gone, |s| life_of(s.pod)),
            second_node: seen.object.second.is_none_or(|s| state.node_exists(s.node)),
            owner: state.owner,
        };
        let judgement = self.core.judge(&view, address, truth);
        state.controllers[controller].view.ended = judgement.ended;
        if let Some(change) = judgement.change {
            self.take_job(state, controller, Job::Review { address: address as u8, change, seen });
        }
    }

    /// What it reads of one pod's addresses is deleted as it was read.
    fn thin(&self, state: &mut State, controller: usize, pod: usize) {
        let Controller { view, jobs } = state.controllers[controller];
        let names = |seen: &Option<Seen>| seen.is_some_and(|s| s.object.pod == Some(pod as u8));
        let names: Vec<usize> =
            (0..self.scenario.addresses()).filter(|at| names(&view.objects[*at])).collect();
        let of_family = |family: u8| names.iter().filter(|at| family & (1 << **at) != 0).count();
        if view.listed != Kind::EVERY || !self.scenario.families().any(|family| of_family(family) > 1) {
            return;
        }
        let found: Vec<(usize, Object)> =
            names.iter().filter_map(|at| Some((*at, state.objects[*at]?))).collect();
        if found.len() < names.len() {
            return;
        }
        for address in self.core.surplus(pod, &found) {
            let busy =
                |job: &Job| matches!(job, Job::Review { address: a, .. } if usize::from(*a) == address);
            if let Some(object) = state.objects[address].filter(|_| !jobs.iter().any(busy)) {
                let (change, seen) = (Change::Delete, Seen::now(object));
                self.take_job(state, controller, Job::Review { address: address as u8, change, seen });
            }
        }
    }
}

/// Leaves out what cannot matter any more.
fn tidy_job(job: &mut Job) {
    match job {
        Job::Idle => {}
        // A write with preconditions does not look at what it was decided on.
        Job::Review { change: Change::Settle(_), seen, .. } if seen.same_uid => {}
        Job::Review { seen, .. } => seen.object = NOBODYS,
        Job::Grant { claims, .. } => {
            for claim in claims.iter_mut().flatten() {
                match &mut claim.seen {
                    Some(seen) if !seen.same_uid => {
                        seen.object = NOBODYS;
                        claim.target = NOBODYS;
                    }
                    Some(seen) if claim.half => seen.object = NOBODYS,
                    _ => {}
                }
            }
        }
    }
}

/// Stands for an object at which nobody will look.
const NOBODYS: Object = Object {
    pod: None,
    node: None,
    second: None,
    set: 0,
    owned: false,
    declared: false,
    retain_until: Due::No,
    phase: Phase::Bound,
    reserved_at: false,
    attached: false,
    sandbox: false,
    torn_down: false,
    release_at: false,
};

/// `attachedAt` and the sandbox, of what is the pod's own, while its interface is there.
fn note(state: &mut State, pod: usize) {
    let Sandbox { note, stage, .. } = state.sandboxes[pod];
    for at in (0..ADDRESSES).filter(|at| stage == Stage::Attached && note & (1 << at) != 0) {
        let own = |o: &Object| o.pod == Some(pod as u8) && o.phase == Phase::Bound;
        if let Some(object) = state.objects[at].filter(own) {
            state.write(at, Object { attached: true, sandbox: true, ..object });
            state.sandboxes[pod].note &= !(1 << at);
        }
    }
}

fn cool_down_passes(state: &mut State) {
    state.late = 0;
    for controller in &mut state.controllers {
        controller.view.cooling.iter_mut().for_each(Due::pass);
    }
}

/// What a silent node runs longer than that after the end of its pod is not counted: that is what the timeout is for.
fn orphan_timeout_passes(state: &mut State) {
    cool_down_passes(state);
    for controller in &mut state.controllers {
        controller.view.ended.iter_mut().for_each(Due::pass);
    }
    for (sandbox, life) in state.sandboxes.iter_mut().zip(state.pods) {
        if life.is_over() {
            *sandbox = Sandbox::NONE;
        }
    }
    // What it has not said nobody will ever know.
    state.used = 0;
}

fn all_idle(state: &State) -> bool {
    state.controllers.iter().flat_map(|c| c.jobs).all(|job| job == Job::Idle)
}

fn day_passes(state: &mut State) {
    orphan_timeout_passes(state);
    state.kept_at_birth = [0; PODS];
    let pass = |object: &mut Object| object.retain_until.pass();
    state.objects.iter_mut().flatten().for_each(pass);
    for controller in &mut state.controllers {
        controller.view.objects.iter_mut().flatten().for_each(|seen| pass(&mut seen.object));
    }
}
