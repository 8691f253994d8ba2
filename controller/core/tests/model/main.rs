//! The protocol of addresses, gone through in every state that it can get into at small sizes.
//!
//! Two controllers that both believe that they lead, an API server, agents, and users who create, delete and force-delete
//! pods take steps in any order; a controller can die before every step, and its caches can be behind by any time. What a
//! controller decides is asked of the real core (`adapter.rs`). What the shell does around it (preconditions, the two
//! writes of a take-over and of a reservation) and what agents do is written down in `protocol.rs`; `check.rs` says what
//! must hold. The checker is `stateright`: breadth first, so that a counterexample is a shortest one.
//!
//! Each scenario is exhausted, and each rule is broken on purpose in the table at the end. To read a counterexample see
//! ARCHITECTURE.md; `BRAID_SHOW=1` prints those of the table. Scenarios that take minutes are ignored; run
//! them with `cargo test -p braid-controller-core --test model -- --ignored --nocapture`.
//!
//! **Not in the model:** blocks (a node that does nothing has them all, so that every address is borrowed), tunnel ends,
//! fixed addresses and pools, owners that number no pods, `ip-retain-ttl`, a watch that catches up in several steps (it
//! tells all that it has not told, at any time or never), what wakes a pod that waits (it may be asked for at any time), a
//! Node object that is deleted while the machine runs, an agent that dies between a DEL and its word about it.

mod adapter;
mod check;
mod protocol;
mod scenario;
mod state;
mod writes;

use check::{
    COOLED, FOLLOWS, KEEPS, NAMED, ONE_HOLDER, OWN, RESTORED, RETURNS, SERVES, STAYS, WHOLE, explore, told,
};
use scenario::{Events, Fault, PodPlan, Scenario, numbered, pod, starts, target};

const NONE: Events = Scenario::BASE.events;

/// Two pods and one address: the second waits for the first, or takes the address behind its back.
const PLAIN: Scenario =
    Scenario { name: "plain", pods: const { &[pod("web-0", 0), pod("web-1", 0)] }, v4: 1, ..Scenario::BASE };
/// Pods go the orderly way, too.
const ORDERLY: Scenario = Scenario { name: "orderly", events: Events { terminate: true, ..NONE }, ..PLAIN };
/// Pods finish, and their objects stay.
const FINISH: Scenario =
    Scenario { name: "finish", controllers: 1, workers: 2, events: Events { finish: true, ..NONE }, ..PLAIN };
/// Nodes fall silent; packets are late.
const TIMEOUT: Scenario = Scenario {
    name: "timeout",
    events: Events { orphan_timeout: true, late_packets: true, ..NONE },
    ..PLAIN
};
/// One of two nodes is lost.
const NODE_LOST: Scenario = Scenario {
    name: "node lost",
    pods: const { &[pod("web-0", 0), pod("web-1", 1)] },
    nodes: 2,
    events: Events { node_gone: true, ..NONE },
    ..PLAIN
};
/// A node joins, is lost, and comes back as another machine.
const NODE_JOINS: Scenario = Scenario {
    name: "node joins",
    pods: const { &[pod("web-0", 0)] },
    events: Events { node_gone: true, node_made: true, ..NONE },
    ..PLAIN
};
/// A process that starts lists one kind after the other.
const SLOW_START: Scenario =
    Scenario { name: "slow start", events: Events { slow_start: true, ..NONE }, ..PLAIN };
/// Two controllers, each of which may choose another address.
const CHOICE: Scenario = Scenario { name: "choice", pods: const { &[pod("web-0", 0)] }, v4: 2, ..PLAIN };
/// Two workers of one controller.
const WORKERS: Scenario = Scenario { name: "workers", v4: 2, controllers: 1, workers: 2, ..PLAIN };
/// The same name again, on another node.
const SAME_NAME: Scenario =
    Scenario { name: "same name", pods: const { &[pod("web-0", 0), pod("web-0", 1)] }, nodes: 2, ..PLAIN };
/// Both families or neither, two pods for one address of each.
const DUAL: Scenario = Scenario { name: "dual", v6: 1, ..PLAIN };
const DUAL_LEADERS: Scenario = Scenario { name: "dual, leaders", pods: const { &[pod("web-0", 0)] }, ..DUAL };
const DUAL_WORKERS: Scenario = Scenario { name: "dual, workers", controllers: 1, workers: 2, ..DUAL };
/// A numbered pod that is made again on another node, and its owner may be deleted.
const KEPT: Scenario = Scenario {
    name: "kept",
    pods: const { &[numbered("db-0", 0), numbered("db-0", 1)] },
    nodes: 2,
    events: Events { owner_gone: true, ..NONE },
    ..PLAIN
};
const KEPT_THRICE: Scenario = Scenario {
    name: "kept thrice",
    pods: const { &[numbered("db-0", 0), numbered("db-0", 1), numbered("db-0", 0)] },
    events: NONE,
    ..KEPT
};
/// There is another address that it could get.
const KEPT_CHOICE: Scenario = Scenario {
    name: "kept, choice",
    v4: 2,
    controllers: 1,
    workers: 2,
    events: Events { slow_start: true, ..NONE },
    ..KEPT
};
/// What agents write about attached interfaces comes at any time, or gets lost.
const KEPT_NOTES: Scenario = Scenario {
    name: "kept, notes",
    events: Events { owner_gone: true, notes: true, day: true, ..NONE },
    ..KEPT_CHOICE
};
const KEPT_DUAL: Scenario = Scenario { name: "kept, dual", v6: 1, controllers: 1, workers: 2, ..KEPT };
/// Addresses come from a backup, their owner later, or never.
const BACKUP: Scenario = Scenario {
    name: "backup",
    pods: const { &[PodPlan { gone: true, ..numbered("db-0", 0) }, numbered("db-0", 0)] },
    nodes: 1,
    v4: 2,
    backup: true,
    owner: false,
    events: Events { owner_made: true, day: true, ..NONE },
    ..KEPT
};
/// Two controllers that do not know of each other's grants, and a choice of addresses.
const KEPT_LEADERS: Scenario = Scenario {
    name: "kept, leaders",
    v4: 2,
    keeps: false,
    hears: true,
    crashes: Some(0),
    events: Events { notes: true, thin: true, ..NONE },
    ..KEPT
};
/// A virtual machine migrates, or does not, under two leaders.
const HAND_OVER: Scenario = Scenario {
    name: "hand-over",
    pods: const { &[starts("vm-a", 0), target("vm-b", 1)] },
    nodes: 2,
    crashes: Some(0),
    ..PLAIN
};
/// Nodes fall silent.
const HAND_OVER_TIMEOUT: Scenario =
    Scenario { name: "hand-over, timeout", events: Events { orphan_timeout: true, ..NONE }, ..HAND_OVER };
/// It migrates again, or once more when it did not come to the first target; a controller dies on the way.
const HAND_OVER_AGAIN: Scenario = Scenario {
    name: "hand-over again",
    pods: const { &[starts("vm-a", 0), target("vm-b", 1), target("vm-c", 0)] },
    controllers: 1,
    workers: 2,
    crashes: Some(1),
    ..HAND_OVER
};
/// It is started anew after a migration.
const HAND_OVER_RESTART: Scenario = Scenario {
    name: "hand-over, restart",
    pods: const { &[starts("vm-a", 0), target("vm-b", 1), starts("vm-c", 0)] },
    ..HAND_OVER_AGAIN
};
/// Another pod waits for the address, and the machine may be deleted.
const HAND_OVER_STRANGER: Scenario = Scenario {
    name: "hand-over, stranger",
    pods: const { &[starts("vm-a", 0), target("vm-b", 1), pod("web-0", 0)] },
    events: Events { owner_gone: true, ..NONE },
    ..HAND_OVER_AGAIN
};
/// The source's node is lost.
const HAND_OVER_NODE: Scenario = Scenario {
    name: "hand-over, node",
    events: Events { node_gone: true, node_made: true, ..NONE },
    pods: HAND_OVER.pods,
    ..HAND_OVER_AGAIN
};
/// The target's node is lost.
const HAND_OVER_TARGET_NODE: Scenario = Scenario {
    name: "hand-over, target's node",
    pods: const { &[starts("vm-a", 1), target("vm-b", 0)] },
    ..HAND_OVER_NODE
};
/// Both families.
const HAND_OVER_DUAL: Scenario =
    Scenario { name: "hand-over, dual", v6: 1, pods: HAND_OVER.pods, ..HAND_OVER_AGAIN };
/// Two leaders have given a pod an address each. It is made again twice, under one of them.
const KEPT_TWICE: Scenario = Scenario {
    name: "kept twice",
    pods: const { &[numbered("db-0", 0), numbered("db-0", 1), numbered("db-0", 0)] },
    twice: true,
    controllers: 1,
    workers: 2,
    crashes: Some(1),
    ..KEPT_LEADERS
};
const CROWD: Scenario = Scenario { name: "crowd", v4: 2, ..PLAIN };

fn holds(scenario: Scenario) {
    let found = explore(scenario, None);
    println!(
        "{}: {} states, {} steps, depth {}, {} questions to the core, {:.1?}",
        scenario.name, found.states, found.steps, found.depth, found.questions, found.took
    );
    if let Some((property, path)) = found.counterexample {
        panic!("{}: not so: {property}\n{}", scenario.name, told(&scenario, &path));
    }
}

macro_rules! hold {
    ($($(#[$attribute:meta])* $test:ident: $scenario:expr;)*) => {
        $($(#[$attribute])* #[test] fn $test() { holds($scenario); })*
    };
}

hold! {
    plain_pods: PLAIN;
    pods_that_go_the_orderly_way: ORDERLY;
    pods_that_finish: FINISH;
    silent_nodes_and_late_packets: TIMEOUT;
    a_node_is_lost: NODE_LOST;
    a_node_joins_and_comes_back: NODE_JOINS;
    a_slow_start: SLOW_START;
    two_leaders_choose: CHOICE;
    two_workers: WORKERS;
    the_same_name_again: SAME_NAME;
    both_families_from_two_leaders: DUAL_LEADERS;
    both_families_from_two_workers: DUAL_WORKERS;
    kept_for_a_numbered_pod: KEPT;
    kept_through_three_lives: KEPT_THRICE;
    kept_though_there_is_a_choice: KEPT_CHOICE;
    kept_while_notes_are_late: KEPT_NOTES;
    kept_in_both_families: KEPT_DUAL;
    kept_twice: KEPT_TWICE;
    restored_from_a_backup: BACKUP;
    a_machine_migrates: HAND_OVER;
    a_machine_migrates_again: HAND_OVER_AGAIN;
    a_machine_starts_anew: HAND_OVER_RESTART;
    a_machine_beside_another_pod: HAND_OVER_STRANGER;
    a_machine_leaves_a_lost_node: HAND_OVER_NODE;
    a_machine_comes_to_a_lost_node: HAND_OVER_TARGET_NODE;
    a_machine_in_both_families: HAND_OVER_DUAL;
    a_machine_migrates_though_nodes_are_silent: HAND_OVER_TIMEOUT;
    #[ignore = "takes minutes"]
    both_families_of_two_pods_from_two_leaders: DUAL;
    #[ignore = "takes minutes"]
    kept_by_two_leaders_that_choose: KEPT_LEADERS;
    #[ignore = "takes minutes"]
    two_pods_two_addresses_two_leaders: CROWD;
}

/// What is done wrong, where, and what does not hold then.
const FAULTS: &[(Fault, Scenario, &str)] = &[
    // The core is told what is not so.
    (Fault::PodNotAsked, TIMEOUT, OWN),
    (Fault::NodeNotAsked, NODE_JOINS, OWN),
    (Fault::OwnerNotAsked, KEPT_NOTES, KEEPS),
    (Fault::OwnerBelieved, KEPT, RETURNS),
    (Fault::TornDownNotAwaited, PLAIN, OWN),
    (Fault::TimeoutFromCache, PLAIN, OWN),
    (Fault::ByName, SAME_NAME, OWN),
    (Fault::NoCoolDown, TIMEOUT, COOLED),
    (Fault::TakesFromPredecessor, KEPT, ONE_HOLDER),
    (Fault::OwnerNotTold, KEPT_CHOICE, KEEPS),
    (Fault::ReleasingNotTold, KEPT_CHOICE, KEEPS),
    (Fault::AttachedNotTold, KEPT_TWICE, STAYS),
    (Fault::RestoreSkipped, SLOW_START, RESTORED),
    (Fault::SecondNotAsked, HAND_OVER_TIMEOUT, OWN),
    (Fault::OneQuestion, HAND_OVER_TIMEOUT, OWN),
    (Fault::SecondNotAwaited, HAND_OVER, OWN),
    (Fault::SecondNotAwaited, HAND_OVER_STRANGER, ONE_HOLDER),
    (Fault::SecondNodeNotAsked, HAND_OVER_TARGET_NODE, OWN),
    (Fault::TimeoutFromCache, HAND_OVER, OWN),
    (Fault::SecondIgnored, HAND_OVER, OWN),
    (Fault::SecondForgotten, HAND_OVER_AGAIN, OWN),
    (Fault::ArrivesEarly, HAND_OVER, FOLLOWS),
    // The shell does something else than it should.
    (Fault::NoPreconditions, PLAIN, OWN),
    (Fault::ReplaceByUidOnly, KEPT_THRICE, OWN),
    (Fault::StatusByUidOnly, KEPT_THRICE, NAMED),
    (Fault::StatusByUidOnly, KEPT_THRICE, RETURNS),
    (Fault::ExistsIsWon, PLAIN, ONE_HOLDER),
    (Fault::AttachedForgotten, KEPT_TWICE, STAYS),
    (Fault::DeletesAtOnce, TIMEOUT, COOLED),
    (Fault::NoPreconditions, HAND_OVER, OWN),
    (Fault::ReplaceByUidOnly, HAND_OVER, OWN),
    (Fault::StatusLast, HAND_OVER_AGAIN, FOLLOWS),
    // The agent does.
    (Fault::AttachedNotSaid, KEPT_TWICE, STAYS),
    (Fault::HalfSet, DUAL_WORKERS, WHOLE),
    (Fault::AnyPhase, KEPT, OWN),
    (Fault::ConfirmsEarly, PLAIN, ONE_HOLDER),
    (Fault::ConfirmsDuringAdd, PLAIN, ONE_HOLDER),
    (Fault::ConfirmsEarly, HAND_OVER, OWN),
    (Fault::ConfirmsDuringAdd, HAND_OVER, OWN),
    (Fault::ConfirmsForHolder, HAND_OVER, OWN),
    (Fault::Silent, HAND_OVER, FOLLOWS),
    (Fault::Silent, PLAIN, RETURNS),
    (Fault::Silent, KEPT_CHOICE, SERVES),
    // Nobody does: this is what two leaders cannot promise when one does not know of the other's grants.
    (Fault::None, Scenario { keeps: true, ..KEPT_LEADERS }, KEEPS),
];

#[test]
fn every_fault_has_a_counterexample() {
    for (fault, scenario, property) in FAULTS {
        let scenario = scenario.with(*fault);
        let found = explore(scenario, Some(property));
        let Some((_, path)) = found.counterexample else {
            panic!("{fault:?} in {} does no harm in {} states: {property}", scenario.name, found.states)
        };
        let steps = path.clone().into_actions().len();
        println!("{fault:?} in {}: {steps} steps until it is not so that {property}", scenario.name);
        if std::env::var_os("BRAID_SHOW").is_some() {
            println!("{}", told(&scenario, &path));
        }
    }
}
