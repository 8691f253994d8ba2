//! Live migration: two pods of one virtual machine, one of which has the traffic.

use std::sync::Arc;

use braid_controller_core::release::{Checks, Decision, OwnerCheck, PodCheck};
use braid_controller_core::{Claim, Ipam, Keep, Migration, PodFact, PodRequest, Restored};
use braid_types::model::{InstanceDef, MigrationRole, OwnerRef, Phase};
use braid_types::{InstanceName, Selector, Symbol};

use crate::cluster::{give, lists, live, request, start};

fn machine(n: usize, node: &str, migration: Option<Migration>) -> PodRequest {
    let owner = OwnerRef {
        api_version: "kubevirt.io/v1".into(),
        kind: "VirtualMachine".into(),
        namespace: "shop".into(),
        name: "vm".into(),
        uid: "".into(),
        pod: None,
    };
    PodRequest { owner: Some(owner), keep: Some(Keep::default()), migration, ..request(n, node) }
}

/// Pod 1 runs the machine on `n1`.
fn running() -> (Ipam, Restored, Vec<InstanceName>) {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &machine(1, "n1", None));
    assert_eq!(made.len(), 2);
    let names = made.iter().map(|d| d.name.clone()).collect();
    (ipam, restored, names)
}

fn objects<'a>(ipam: &'a Ipam, names: &'a [InstanceName]) -> impl Iterator<Item = &'a Arc<InstanceDef>> {
    names.iter().map(|name| ipam.instance(name).expect("it exists"))
}

/// Holder, its node, and the second pod of every address, which must agree.
fn stand(ipam: &Ipam, names: &[InstanceName]) -> (Symbol, Symbol, Option<(Symbol, MigrationRole)>) {
    let of = |d: &Arc<InstanceDef>| {
        assert_eq!(d.phase, Phase::Bound);
        let second = d.handover.as_ref().map(|h| (h.pod.name.clone(), h.role));
        (d.pod.clone().expect("a holder").name, d.node.clone().expect("a node"), second)
    };
    let mut all: Vec<_> = objects(ipam, names).map(of).collect();
    all.dedup();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn second(name: &str, role: MigrationRole) -> Option<(Symbol, MigrationRole)> {
    Some((name.into(), role))
}

#[test]
fn the_target_shares_the_addresses_until_the_machine_is_there() {
    let (mut ipam, restored, names) = running();
    let macs: Vec<_> = objects(&ipam, &names).map(|d| d.mac).collect();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Preparing)));
    assert_eq!(stand(&ipam, &names), ("web-1".into(), "n1".into(), second("web-2", MigrationRole::Target)));
    assert!(objects(&ipam, &names).all(|d| d.host_routed), "every node must know where the traffic goes");
    let again = ipam.grant(&restored, &machine(2, "n2", Some(Migration::Preparing))).unwrap();
    assert!(again.is_complete() && again.set == names);
    ipam.finish(again);

    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    assert_eq!(stand(&ipam, &names), ("web-2".into(), "n2".into(), second("web-1", MigrationRole::Source)));
    assert_eq!(objects(&ipam, &names).map(|d| d.mac).collect::<Vec<_>>(), macs);
    assert!(objects(&ipam, &names).all(|d| d.host_routed && d.owner.is_some()));
    assert_eq!(ipam.usage("v4").used, 1, "nothing was given out twice");
}

#[test]
fn a_migration_that_was_half_written_is_completed() {
    for stage in [Migration::Preparing, Migration::Arrived] {
        let (mut ipam, restored, names) = running();
        let target = machine(2, "n2", Some(stage));
        let grant = ipam.grant(&restored, &target).unwrap();
        assert_eq!(grant.claims.len(), 2);
        ipam.upsert_instance(grant.claims[0].def().clone(), 0);
        ipam.finish(grant);
        give(&mut ipam, &restored, &target);
        let (holder, _, other) = stand(&ipam, &names);
        assert_eq!(
            (holder.as_str(), other.expect("a second pod").1),
            match stage {
                Migration::Preparing => ("web-1", MigrationRole::Target),
                Migration::Arrived => ("web-2", MigrationRole::Source),
            }
        );
    }
}

#[test]
fn a_former_target_does_not_take_the_machine_back() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    ipam.upsert_instance(finished(&ipam, &names[0]), 0);
    ipam.upsert_instance(finished(&ipam, &names[1]), 0);
    give(&mut ipam, &restored, &machine(3, "n3", Some(Migration::Arrived)));
    let stands = ("web-3".into(), "n3".into(), second("web-2", MigrationRole::Source));
    assert_eq!(stand(&ipam, &names), stands);
    // A controller that starts now asks for every pod; what KubeVirt wrote onto pod 2 is still there.
    let grant = ipam.grant(&restored, &machine(2, "n2", Some(Migration::Arrived))).unwrap();
    assert!(grant.is_complete(), "{grant:?}");
    ipam.finish(grant);
    // Nor after one more migration, when nothing names it any more.
    ipam.upsert_instance(finished(&ipam, &names[0]), 0);
    ipam.upsert_instance(finished(&ipam, &names[1]), 0);
    give(&mut ipam, &restored, &machine(4, "n1", Some(Migration::Arrived)));
    let refusal = ipam.grant(&restored, &machine(2, "n2", Some(Migration::Arrived))).unwrap_err();
    assert_eq!(refusal.reason(), "AddressStillHeld");
}

#[test]
fn a_machine_that_is_there_does_not_wait_for_its_source() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Preparing)));
    // The source is over before anybody has seen that the machine is at its target; its node says nothing.
    ipam.upsert_pod(PodFact { finished: true, ..live(1) });
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    assert_eq!(stand(&ipam, &names), ("web-2".into(), "n2".into(), second("web-1", MigrationRole::Source)));
    // The next migration waits for the source's node.
    let next = |ipam: &mut Ipam| {
        let grant = ipam.grant(&restored, &machine(3, "n3", Some(Migration::Arrived)));
        grant.map(|grant| grant.claims.len()).map_err(|refusal| refusal.reason())
    };
    assert_eq!(next(&mut ipam), Err("AddressStillHeld"));
    confirm_second(&mut ipam, &names);
    assert_eq!(next(&mut ipam), Ok(2));
    let (mut ipam, restored, _) = running();
    ipam.upsert_pod(PodFact { finished: true, ..live(1) });
    let refused = ipam.grant(&restored, &machine(2, "n2", Some(Migration::Arrived))).unwrap_err();
    assert_eq!(refused.reason(), "AddressStillHeld");
}

/// The node of the second pod says that its interface is gone.
fn confirm_second(ipam: &mut Ipam, names: &[InstanceName]) {
    for name in names {
        let mut def = (**ipam.instance(name).expect("it exists")).clone();
        def.handover.as_mut().expect("a second pod").torn_down = true;
        ipam.upsert_instance(def.into(), 0);
    }
}

/// The address without its second pod.
fn finished(ipam: &Ipam, name: &InstanceName) -> Arc<InstanceDef> {
    let def = ipam.instance(name).expect("it exists");
    Arc::new(InstanceDef { handover: None, ..(**def).clone() })
}

#[test]
fn nobody_else_shares() {
    let refused = |ipam: &mut Ipam, restored: &Restored, req: &PodRequest| {
        ipam.grant(restored, req).map(|g| format!("{g:?}")).unwrap_err().reason()
    };
    let (mut ipam, restored, names) = running();
    let no_target = machine(2, "n2", None);
    assert_eq!(refused(&mut ipam, &restored, &no_target), "AddressStillHeld");
    let same_node = machine(2, "n1", Some(Migration::Preparing));
    assert_eq!(refused(&mut ipam, &restored, &same_node), "AddressStillHeld");
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Preparing)));
    let second = machine(3, "n3", Some(Migration::Arrived));
    assert_eq!(refused(&mut ipam, &restored, &second), "AddressStillHeld", "one after the other");
    ipam.remove_pod("pod-2");
    assert_eq!(refused(&mut ipam, &restored, &second), "AddressStillHeld", "it may have its interface still");
    confirm_second(&mut ipam, &names);
    give(&mut ipam, &restored, &second);

    let (mut ipam, restored, _) = running();
    let mut network = ipam.network("overlay").unwrap().clone();
    let labels = [("name".to_owned(), "n1".to_owned())];
    network.nodes = Selector { match_labels: labels.into(), ..Selector::default() };
    ipam.upsert_network(network);
    let outside = machine(2, "n2", Some(Migration::Preparing));
    assert_eq!(refused(&mut ipam, &restored, &outside), "NotMember");
    // Nobody has the machine: its target is an ordinary pod, which takes up what is kept.
    let (mut ipam, restored, names) = running();
    ipam.remove_pod("pod-1");
    for name in &names {
        let def = InstanceDef {
            pod: None,
            node: None,
            phase: Phase::Reserved,
            reserved_at: Some(1),
            ..(**ipam.instance(name).unwrap()).clone()
        };
        ipam.upsert_instance(def.into(), 0);
    }
    let grant = ipam.grant(&restored, &machine(2, "n2", Some(Migration::Preparing))).unwrap();
    assert!(grant.claims.iter().all(|c| matches!(c, Claim::Replace { to, .. } if to.handover.is_none())));
    assert_eq!(grant.set, names);
    ipam.finish(grant);
}

fn decide(ipam: &mut Ipam, restored: &Restored, name: &InstanceName, pod: Option<PodCheck>) -> Decision {
    ipam.decide(restored, name, Checks { pod, ..Checks::default() }, 100).expect("it is known")
}

/// The same where the API server was asked for the second pod.
fn decide_of_second(
    ipam: &mut Ipam,
    restored: &Restored,
    name: &InstanceName,
    second_pod: PodCheck,
) -> Decision {
    let checks = Checks { second_pod: Some(second_pod), ..Checks::default() };
    ipam.decide(restored, name, checks, 100).expect("it is known")
}

#[test]
fn a_second_pod_that_is_over_is_forgotten() {
    for stage in [Migration::Preparing, Migration::Arrived] {
        let (mut ipam, restored, names) = running();
        give(&mut ipam, &restored, &machine(2, "n2", Some(stage)));
        let name = &names[0];
        assert_eq!(decide(&mut ipam, &restored, name, None), Decision::Keep);
        // The source after a migration, or the target of one that was given up.
        let (over, holder) = match stage {
            Migration::Preparing => (2, 1),
            Migration::Arrived => (1, 2),
        };
        let effects = ipam.upsert_pod(PodFact { finished: true, ..live(over) });
        assert!(effects.review.contains(name));
        let Decision::RecheckSecondPod(asked) = decide(&mut ipam, &restored, name, None) else {
            panic!("not asked")
        };
        assert_eq!(asked.uid, format!("pod-{over}"));
        for word in [PodCheck::Live, PodCheck::Gone] {
            let wait = decide_of_second(&mut ipam, &restored, name, word);
            assert!(
                matches!(wait, Decision::WaitUntil(_)),
                "its node has not said that it is gone: {wait:?}"
            );
        }
        confirm_second(&mut ipam, &names);
        let Decision::Replace(next) = decide_of_second(&mut ipam, &restored, name, PodCheck::Gone) else {
            panic!("it is not forgotten")
        };
        assert_eq!(
            (next.handover.clone(), next.pod.clone().unwrap().uid),
            (None, format!("pod-{holder}").into())
        );
        assert!(next.host_routed, "the node that it has left must go on knowing that");
    }
}

#[test]
fn what_is_said_of_the_second_pod_says_nothing_of_the_holder() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    ipam.remove_pod("pod-1");
    let asked = decide(&mut ipam, &restored, &names[0], None);
    assert!(matches!(asked, Decision::RecheckSecondPod(p) if p.uid == "pod-1"));
    // Before the answer is there, the holder is over, too.
    ipam.remove_pod("pod-2");
    ipam.remove_node("n2");
    let next = decide(&mut ipam, &restored, &names[0], Some(PodCheck::Gone));
    assert!(matches!(&next, Decision::RecheckSecondPod(p) if p.uid == "pod-1"), "{next:?}");
    confirm_second(&mut ipam, &names);
    let Decision::Replace(alone) = decide_of_second(&mut ipam, &restored, &names[0], PodCheck::Gone) else {
        panic!("it is not forgotten")
    };
    ipam.upsert_instance(alone, 100);
    let next = decide(&mut ipam, &restored, &names[0], None);
    assert!(matches!(&next, Decision::RecheckPod(p) if p.uid == "pod-2"), "{next:?}");
}

#[test]
fn a_target_that_is_over_inherits_nothing() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Preparing)));
    for n in [1, 2] {
        ipam.remove_pod(&format!("pod-{n}"));
    }
    ipam.remove_node("n1");
    let (gone, owner) = (Some(PodCheck::Gone), Some(OwnerCheck::Live));
    let checks = Checks { pod: gone, node: Some(false), second_pod: gone, owner, ..Checks::default() };
    let wait = ipam.decide(&restored, &names[0], checks, 100);
    assert!(matches!(wait, Some(Decision::WaitUntil(_))), "the target's node has not said so: {wait:?}");
    confirm_second(&mut ipam, &names);
    let Some(Decision::Replace(alone)) = ipam.decide(&restored, &names[0], checks, 100) else {
        panic!("it is not forgotten")
    };
    ipam.upsert_instance(alone, 100);
    let kept = ipam.decide(&restored, &names[0], checks, 100);
    assert!(matches!(kept, Some(Decision::Reserve { .. })), "{kept:?}");
}

#[test]
fn a_machine_that_starts_anew_has_no_second_pod() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    for n in [1, 2] {
        ipam.remove_pod(&format!("pod-{n}"));
    }
    // Half-way to its owner: of the two writes, the second has not taken pod, node and second pod away.
    for name in &names {
        let held = (**ipam.instance(name).unwrap()).clone();
        assert!(held.handover.is_some());
        ipam.upsert_instance(InstanceDef { phase: Phase::Reserved, reserved_at: Some(1), ..held }.into(), 0);
    }
    give(&mut ipam, &restored, &machine(3, "n3", None));
    assert_eq!(stand(&ipam, &names), ("web-3".into(), "n3".into(), None));
}

#[test]
fn a_source_that_ends_first_leaves_the_addresses_to_the_target() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Preparing)));
    ipam.remove_pod("pod-1");
    let down = InstanceDef {
        phase: Phase::Releasing,
        torn_down: Some(90),
        ..(**ipam.instance(&names[0]).unwrap()).clone()
    };
    ipam.upsert_instance(down.into(), 90);
    assert!(
        matches!(decide(&mut ipam, &restored, &names[0], None), Decision::RecheckPod(p) if p.uid == "pod-1")
    );
    let Decision::Replace(next) = decide(&mut ipam, &restored, &names[0], Some(PodCheck::Gone)) else {
        panic!("they are not handed over")
    };
    let holder = (next.pod.clone().unwrap().uid, next.node.clone().unwrap(), next.phase);
    assert_eq!(holder, ("pod-2".into(), "n2".into(), Phase::Bound));
    assert_eq!((next.handover.clone(), next.torn_down), (None, None));
    // After the hand-over it is the other way round: the machine has left the source, and nothing is given back to it.
    ipam.upsert_instance(next, 95);
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    ipam.remove_pod("pod-2");
    let checks = Checks { pod: Some(PodCheck::Gone), node: Some(false), ..Checks::default() };
    ipam.remove_node("n2");
    let kept = ipam.decide(&restored, &names[0], checks, 100);
    assert_eq!(kept, Some(Decision::Keep), "while the source lives, its interface has the address");
    let effects = ipam.remove_pod("pod-1");
    assert!(effects.review.contains(&names[0]));
    let next = ipam.decide(&restored, &names[0], checks, 100);
    assert!(matches!(next, Some(Decision::RecheckSecondPod(_))), "{next:?}");
}

#[test]
fn a_second_pod_whose_node_cannot_say_so_goes_with_the_node_or_after_a_long_time() {
    let (mut ipam, restored, names) = running();
    give(&mut ipam, &restored, &machine(2, "n2", Some(Migration::Arrived)));
    ipam.remove_pod("pod-1");
    let gone = Checks { second_pod: Some(PodCheck::Gone), ..Checks::default() };
    let (name, timeout) = (&names[0], ipam.config().orphan_timeout);
    assert_eq!(ipam.decide(&restored, name, gone, 100), Some(Decision::WaitUntil(100 + timeout)));
    // What is known of its end outlives a change of the object.
    let changed = InstanceDef { attached: true, ..(**ipam.instance(name).unwrap()).clone() };
    ipam.upsert_instance(changed.into(), 200);
    assert_eq!(ipam.decide(&restored, name, gone, 99 + timeout), Some(Decision::WaitUntil(100 + timeout)));
    let late = ipam.decide(&restored, name, gone, 100 + timeout);
    assert!(matches!(late, Some(Decision::Replace(_))), "{late:?}");

    let effects = ipam.remove_node("n1");
    assert!(effects.review.contains(name));
    let asked = ipam.decide(&restored, name, gone, 101);
    assert_eq!(asked, Some(Decision::RecheckSecondNode("n1".into())));
    let with = |second_node| Checks { second_node: Some(second_node), ..gone };
    let there = ipam.decide(&restored, name, with(true), 101);
    assert!(matches!(there, Some(Decision::WaitUntil(_))), "{there:?}");
    let lost = ipam.decide(&restored, name, with(false), 101);
    assert!(matches!(lost, Some(Decision::Replace(_))), "{lost:?}");
}
