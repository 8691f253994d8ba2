//! What must hold for every cluster and every kernel.

use braid_node_core::actual::Actual;
use braid_node_core::desired::Desired;
use braid_node_core::plan::diff;
use proptest::prelude::*;

use crate::model::{apply, foreign};
use crate::world::{Damage, Seed, damage, essence, host, seed};

fn reach(seed: &Seed, from: Actual) -> Actual {
    let plan = diff(&Desired::of(&seed.view()), &from);
    apply(from, &plan)
}

/// A host that had another state of the cluster, and then was damaged.
fn any_kernel(old: &Seed, damage: &[Damage]) -> Actual {
    let mut kernel = reach(old, host());
    for d in damage {
        d.inflict(&mut kernel);
    }
    kernel
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// One plan is enough, and the second one is empty.
    #[test]
    fn one_plan_reaches_the_goal(goal in seed(), old in seed(), damage in damage()) {
        let desired = Desired::of(&goal.view());
        let kernel = any_kernel(&old, &damage);
        let plan = diff(&desired, &kernel);
        prop_assert!(plan.conflicts.is_empty());
        let after = apply(kernel, &plan);
        let again = diff(&desired, &after);
        prop_assert!(again.is_empty(), "{again:#?}");
    }

    /// Nothing foreign is touched, neither on the way to a goal nor by taking everything back.
    #[test]
    fn foreign_things_stay(goal in seed(), old in seed(), damage in damage()) {
        let kernel = any_kernel(&old, &damage);
        let before = foreign(&kernel);
        let after = reach(&goal, kernel);
        let now = foreign(&after);
        prop_assert_eq!((&now.links, &now.addrs, &now.rules), (&before.links, &before.addrs, &before.rules));
        prop_assert_eq!((&now.routes, &now.fdb, &now.proxies), (&before.routes, &before.fdb, &before.proxies));
        let gone = apply(after.clone(), &diff(&Desired::default(), &after));
        let bare = foreign(&host());
        prop_assert_eq!(foreign(&gone), bare);
        prop_assert!(diff(&Desired::default(), &gone).is_empty());
    }

    /// The way does not matter: states passed through, left out, repeated or taken in another order end alike.
    #[test]
    fn only_the_last_state_counts(states in proptest::collection::vec(seed(), 1..4), last in seed()) {
        let straight = reach(&last, host());
        let forwards = states.iter().fold(host(), |k, s| reach(s, k));
        let backwards = states.iter().rev().fold(host(), |k, s| reach(s, k));
        let repeated = states.iter().fold(host(), |k, s| reach(s, reach(s, k)));
        let goal = essence(straight);
        for way in [forwards, backwards, repeated] {
            prop_assert_eq!(essence(reach(&last, way)), goal.clone());
        }
    }

    /// A plan that is interrupted anywhere is finished by the next one.
    #[test]
    fn an_interrupted_plan_is_finished(goal in seed(), old in seed(), damage in damage(), cut in any::<prop::sample::Index>()) {
        let desired = Desired::of(&goal.view());
        let kernel = any_kernel(&old, &damage);
        let mut plan = diff(&desired, &kernel);
        plan.steps.truncate(cut.index(plan.steps.len() + 1));
        let half = apply(kernel, &plan);
        let after = apply(half.clone(), &diff(&desired, &half));
        prop_assert!(diff(&desired, &after).is_empty());
    }
}
