//! What two leaders gave one pod twice: what is freed while it lives, and what its successor gets.

use std::sync::Arc;

use braid_controller_core::ipam::{Given, surplus};
use braid_controller_core::release::{Checks, Decision, OwnerCheck};
use braid_controller_core::{Ipam, Keep, PodRequest, Restored};
use braid_types::InstanceName;
use braid_types::model::{InstanceDef, OwnerRef, Phase};

use crate::cluster::{give, lists, pod, request, start};

const A: [&str; 2] = ["10.0.0.1", "fd00::1"];
const B: [&str; 2] = ["10.0.0.2", "fd00::2"];

/// An address of pod 1.
fn given(address: &str, set: &[&str], in_use: bool) -> Given {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let set = set.iter().map(|a| a.parse().unwrap()).collect();
    let name = InstanceName::new("", address.parse().unwrap());
    Given { def: InstanceDef { name, set, ..(*made[0]).clone() }, in_use }
}

fn left(all: &[Given]) -> Vec<String> {
    let gone = surplus(&pod(1).uid, all);
    all.iter().map(|g| &g.def.name).filter(|name| !gone.contains(name)).map(ToString::to_string).collect()
}

#[test]
fn while_nothing_is_in_use_nothing_goes() {
    let all = [A, B].map(|set| set.map(|address| given(address, &set, false))).concat();
    assert_eq!(left(&all).len(), 4);
}

#[test]
fn an_address_in_two_sets_counts_by_its_own() {
    let (own, other) = (["10.0.0.1", "fd00::2"], ["10.0.0.1", "fd00::1"]);
    let all = [given(own[0], &own, true), given(other[1], &other, false), given(own[1], &own, false)];
    assert_eq!(left(&all), ["10.0.0.1", "fd00-0-0-0-0-0-0-2"]);
}

#[test]
fn what_is_in_use_always_stays_with_its_set() {
    let all = [given(A[0], &A, false), given(A[1], &A, false), given(B[0], &B, true), given(B[1], &B, false)];
    assert_eq!(left(&all), ["10.0.0.2", "fd00-0-0-0-0-0-0-2"]);
}

#[test]
fn an_interface_as_it_should_be_loses_nothing() {
    assert_eq!(left(&A.map(|address| given(address, &A, false))), ["10.0.0.1", "fd00-0-0-0-0-0-0-1"]);
}

#[test]
fn what_another_pod_has_by_now_neither_counts_nor_goes() {
    let (mut other, used) = (given(A[0], &A[..1], false), given(B[0], &B[..1], true));
    other.def.pod = Some(pod(2));
    assert_eq!(left(&[other.clone(), used.clone()]).len(), 2);
    assert_eq!(left(&[Given { in_use: true, ..other }, Given { in_use: false, ..used }]).len(), 2);
}

/// The `n`-th pod of the name `db-0`.
fn numbered(n: usize) -> PodRequest {
    let owner = OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: "db".into(),
        uid: "set".into(),
        pod: Some("db-0".into()),
    };
    PodRequest { owner: Some(owner), keep: Some(Keep::default()), ..request(n, "n1") }
}

/// The address once its pod is over, kept for its owner.
fn kept(def: &InstanceDef, attached: bool) -> Arc<InstanceDef> {
    let (pod, node, reserved_at) = (None, None, Some(50));
    InstanceDef { pod, node, attached, phase: Phase::Reserved, reserved_at, ..def.clone() }.into()
}

/// Two addresses of a family that are kept for one pod, of which the one that is not the lowest was in use.
fn two_kept(declared: bool) -> (Ipam, Restored, [InstanceName; 2]) {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &numbered(1));
    let low = made.iter().find(|d| d.name.address().is_ipv4()).unwrap();
    let address = "10.0.0.200".parse().unwrap();
    let high = InstanceDef {
        name: InstanceName::new("", address),
        uid: "high".into(),
        set: [address].into(),
        ..(**low).clone()
    };
    for def in &made {
        let used = def.name.address().is_ipv6();
        ipam.upsert_instance(InstanceDef { declared, ..(*kept(def, used)).clone() }.into(), 50);
    }
    ipam.upsert_instance(kept(&high, true), 50);
    (ipam, restored, [low.name.clone(), high.name])
}

#[test]
fn the_successor_gets_what_was_in_use_and_not_what_is_lowest() {
    let (mut ipam, restored, [low, high]) = two_kept(false);
    let grant = ipam.grant(&restored, &numbered(2)).unwrap();
    assert!(grant.set.contains(&high) && !grant.set.contains(&low), "{:?}", grant.set);
    ipam.finish(grant);
}

#[test]
fn what_was_never_in_use_is_not_kept_beside_what_was() {
    let decide = |declared: bool, at: usize| {
        let (mut ipam, restored, names) = two_kept(declared);
        let checks = Checks { owner: Some(OwnerCheck::Live), ..Checks::default() };
        ipam.decide(&restored, &names[at], checks, 100).unwrap()
    };
    assert!(matches!(decide(false, 0), Decision::MarkReleasing { reason: "Surplus", .. }));
    assert!(matches!(decide(false, 1), Decision::WaitUntil(_)), "it is the one that was in use");
    assert_eq!(decide(true, 0), Decision::Keep, "a person declared it");
    // The other one is going.
    let (mut ipam, restored, [low, high]) = two_kept(false);
    let leaving = InstanceDef {
        phase: Phase::Releasing,
        release_at: Some(90),
        ..(**ipam.instance(&high).unwrap()).clone()
    };
    ipam.upsert_instance(leaving.into(), 60);
    let checks = Checks { owner: Some(OwnerCheck::Live), ..Checks::default() };
    assert!(matches!(ipam.decide(&restored, &low, checks, 100), Some(Decision::WaitUntil(_))));
}
