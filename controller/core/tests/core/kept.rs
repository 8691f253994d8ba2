//! Addresses in the name of an owner: who takes them up, who has to wait, who is refused.

use std::sync::Arc;

use braid_controller_core::{Choice, Claim, FamilyWish, Ipam, Keep, PodRequest, Refusal, Restored, Topic};
use braid_types::Family;
use braid_types::model::{InstanceDef, NetworkDef, OwnerRef, Phase, SubnetDef};

use crate::cluster::{give, lists, network, ranges, request, start, subnet};

fn owner(kind: &str, pod: Option<&str>) -> OwnerRef {
    OwnerRef {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        namespace: "shop".into(),
        name: "db".into(),
        uid: "set".into(),
        pod: pod.map(str::to_owned).map(Into::into),
    }
}

/// The `n`-th pod that was ever made, in the name of `owner`.
fn owned(n: usize, node: &str, owner: OwnerRef) -> PodRequest {
    PodRequest { owner: Some(owner), keep: Some(Keep::default()), ..request(n, node) }
}

fn reserve(ipam: &mut Ipam, made: &[Arc<InstanceDef>]) {
    for def in made {
        let kept = InstanceDef {
            pod: None,
            node: None,
            phase: Phase::Reserved,
            reserved_at: Some(50),
            ..(**def).clone()
        };
        ipam.upsert_instance(kept.into(), 50);
    }
}

fn names(made: &[Arc<InstanceDef>]) -> Vec<String> {
    made.iter().map(|d| d.name.to_string()).collect()
}

/// Grants, plays the API server, and tells what the interface has.
fn set_of(ipam: &mut Ipam, restored: &Restored, req: &PodRequest) -> Vec<String> {
    let set = ipam.grant(restored, req).map(|grant| {
        let set = grant.set.iter().map(ToString::to_string).collect();
        ipam.finish(grant);
        set
    });
    give(ipam, restored, req);
    set.unwrap()
}

#[test]
fn a_numbered_pod_gets_its_own_addresses_back_on_any_node() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    assert_eq!(made[0].owner.as_deref(), Some(&zero));
    reserve(&mut ipam, &made);
    assert_eq!(ipam.usage("v4").reserved, 1);

    let one = give(&mut ipam, &restored, &owned(2, "n1", owner("StatefulSet", Some("db-1"))));
    assert!(names(&one).iter().all(|name| !names(&made).contains(name)), "db-1 is not db-0");
    let stranger = give(&mut ipam, &restored, &request(3, "n1"));
    assert!(names(&stranger).iter().all(|name| !names(&made).contains(name)));

    let grant = ipam.grant(&restored, &owned(4, "n2", zero.clone())).unwrap();
    assert_eq!(grant.claims.len(), 2);
    for (claim, old) in grant.claims.iter().zip(&made) {
        let Claim::Replace { to: def, .. } = claim else { panic!("{claim:?}") };
        assert_eq!((&def.name, &def.uid, def.mac), (&old.name, &old.uid, old.mac));
        assert_eq!((def.node.as_deref(), def.phase, def.reserved_at), (Some("n2"), Phase::Bound, None));
        assert!(def.host_routed, "it left its block");
    }
    ipam.finish(grant);
    assert_eq!(set_of(&mut ipam, &restored, &owned(4, "n2", zero)), names(&made));
}

#[test]
fn a_numbered_pod_waits_for_its_predecessor() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    let successor = owned(2, "n2", zero);
    for phase in [Phase::Bound, Phase::Releasing] {
        ipam.upsert_instance(InstanceDef { phase, ..(*made[0]).clone() }.into(), 10);
        let refusal = ipam.grant(&restored, &successor).unwrap_err();
        assert_eq!(refusal.reason(), "AddressStillHeld");
        assert!(
            refusal.retryable() && refusal.to_string().contains("pod shop/web-1 on node n1"),
            "{refusal}"
        );
        let topics = refusal.retry_on();
        assert!(matches!(&topics[..], [Topic::Address(name)] if made.iter().any(|d| d.name == *name)));
    }
    let given_back = InstanceDef { pod: None, phase: Phase::Reserved, ..(*made[0]).clone() };
    let effects = ipam.upsert_instance(given_back.into(), 20);
    assert!(effects.wake.contains(&Topic::Address(made[0].name.clone())));
    assert_eq!(
        ipam.grant(&restored, &successor).unwrap_err().reason(),
        "AddressStillHeld",
        "the other family"
    );
    reserve(&mut ipam, &made);
    assert_eq!(set_of(&mut ipam, &restored, &successor), names(&made));
}

#[test]
fn what_is_kept_goes_before_namespace_and_default() {
    let mut all = lists("10.0.0.0/24", "fd00::/120");
    all.networks.push(network("lab", 5));
    all.subnets.push(SubnetDef { private: true, ..subnet("lab-v4", "lab", "10.1.0.0/24") });
    all.subnets.push(subnet("lab-v6", "lab", "fd01::/120"));
    let (mut ipam, restored) = start(all);
    let zero = owner("StatefulSet", Some("db-0"));
    let named = Choice { network: Some("lab".into()), subnets: vec!["lab-v4".into()], ..Choice::default() };
    let made = give(&mut ipam, &restored, &PodRequest { choice: named, ..owned(1, "n1", zero.clone()) });
    assert_eq!(made.len(), 1, "only the Subnet that was named");
    reserve(&mut ipam, &made);
    let elsewhere = Choice { network: Some("overlay".into()), ..Choice::default() };
    let again = owned(2, "n2", zero.clone());
    let set =
        set_of(&mut ipam, &restored, &PodRequest { namespace_choice: elsewhere.clone(), ..again.clone() });
    assert_eq!(set, names(&made), "Network, private Subnet and family stay");
    reserve(&mut ipam, &made);
    // Against the pod's own annotations there is a refusal, never another address.
    for choice in [
        elsewhere,
        Choice { ips: ranges(&["10.1.0.77"]), ..Choice::default() },
        Choice { network: Some("lab".into()), ips: ranges(&["10.1.0.70-10.1.0.77"]), ..Choice::default() },
    ] {
        let refusal =
            ipam.grant(&restored, &PodRequest { choice: choice.clone(), ..again.clone() }).unwrap_err();
        assert!(matches!(refusal, Refusal::KeptElsewhere { .. }), "{choice:?}: {refusal}");
        assert!(refusal.to_string().contains(&format!("kubectl delete ipi {}", made[0].name)), "{refusal}");
    }
    let same = Choice { ips: ranges(&["10.1.0.0/24"]), ..Choice::default() };
    let fits = PodRequest { choice: same, ..again };
    assert!(set_of(&mut ipam, &restored, &fits).contains(&made[0].name.to_string()));
}

#[test]
fn any_pod_of_a_deployment_takes_what_is_kept_for_it() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let web = owner("Deployment", None);
    let first = give(&mut ipam, &restored, &owned(1, "n1", web.clone()));
    let second = give(&mut ipam, &restored, &owned(2, "n1", web.clone()));
    assert_ne!(names(&first), names(&second), "pods of a Deployment do not wait for each other");
    reserve(&mut ipam, &first);
    let pool = Choice { ips: ranges(&["10.0.0.200-10.0.0.210"]), ..Choice::default() };
    let picky = give(&mut ipam, &restored, &PodRequest { choice: pool, ..owned(3, "n2", web.clone()) });
    assert!(!names(&picky).contains(&names(&first)[0]), "what is kept does not fit to the pool");
    assert_eq!(set_of(&mut ipam, &restored, &owned(4, "n2", web))[0], names(&first)[0]);
}

#[test]
fn without_keeping_an_address_is_taken_up_and_not_kept_again() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    reserve(&mut ipam, &made);
    let last = give(&mut ipam, &restored, &PodRequest { keep: None, ..owned(2, "n1", zero.clone()) });
    assert_eq!((names(&last), last[0].owner.clone()), (names(&made), None));
    let limited = PodRequest { keep: Some(Keep { seconds: Some(60) }), ..owned(3, "n1", owner("Job", None)) };
    assert_eq!(give(&mut ipam, &restored, &limited)[0].retain_seconds, Some(60));
}

#[test]
fn what_a_person_declared_stays_with_its_owner() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let model = give(&mut ipam, &restored, &request(1, "n1"));
    let pin = |address: &str, owner: OwnerRef| InstanceDef {
        name: address.parse().unwrap(),
        uid: format!("pin-{address}").into(),
        subnet: if address.contains('.') { "v4".into() } else { "v6".into() },
        pod: None,
        node: None,
        mac: None,
        set: Box::default(),
        owner: Some(Box::new(owner)),
        phase: Phase::Reserved,
        declared: true,
        ..(*model[0]).clone()
    };
    let set = owner("StatefulSet", None);
    let numbered = OwnerRef { pod: Some("db-0".into()), uid: "".into(), ..set.clone() };
    ipam.upsert_instance(pin("10.0.0.99", numbered.clone()).into(), 0);
    let zero = owner("StatefulSet", Some("db-0"));
    // Nothing is kept by the pod itself, and no family is lost because only one was pinned.
    let both = PodRequest { keep: None, ..owned(2, "n1", zero) };
    let made = give(&mut ipam, &restored, &both);
    assert_eq!((made.len(), made[0].name.to_string().as_str()), (2, "10.0.0.99"));
    assert_eq!((made[0].owner.as_deref(), made[1].owner.as_deref()), (Some(&numbered), None));
    assert!(made[0].declared && made[0].mac.is_some());
}

#[test]
fn a_set_that_is_half_there_is_completed_from_what_is_kept() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    reserve(&mut ipam, &made);
    let req = owned(2, "n2", zero);
    let grant = ipam.grant(&restored, &req).unwrap();
    // The controller dies after the first of two writes.
    ipam.upsert_instance(grant.claims[0].def().clone(), 60);
    ipam.finish(grant);
    let rest = ipam.grant(&restored, &req).unwrap();
    let [Claim::Replace { to: def, .. }] = &rest.claims[..] else { panic!("{:?}", rest.claims) };
    assert_eq!(def.name, made[1].name);
    ipam.finish(rest);
}

#[test]
fn an_address_on_its_way_to_a_living_pod_is_not_taken_from_it() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let web = owner("Deployment", None);
    let made = give(&mut ipam, &restored, &owned(1, "n1", web.clone()));
    let halfway = InstanceDef { phase: Phase::Reserved, ..(*made[0]).clone() };
    ipam.upsert_instance(halfway.into(), 10);
    let other = give(&mut ipam, &restored, &owned(2, "n1", web.clone()));
    assert!(!names(&other).contains(&names(&made)[0]));
    assert_eq!(
        set_of(&mut ipam, &restored, &owned(1, "n1", web)),
        names(&made),
        "its own grant completes it"
    );
}

#[test]
fn a_subnet_that_is_not_in_force_is_waited_for() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    reserve(&mut ipam, &made);
    let v4 = ipam.subnet("v4").unwrap().clone();
    ipam.upsert_subnet(SubnetDef { ready: false, ..v4.clone() });
    let req = owned(2, "n2", zero);
    assert_eq!(ipam.grant(&restored, &req).unwrap_err().reason(), "SubnetNotReady");
    ipam.upsert_subnet(v4);
    let overlay = ipam.network("overlay").unwrap().clone();
    ipam.upsert_network(NetworkDef { ready: false, ..overlay });
    assert_eq!(ipam.grant(&restored, &req).unwrap_err().reason(), "NetworkNotReady");
}

#[test]
fn half_a_kept_set_costs_no_family() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let req = owned(1, "n1", zero.clone());
    let grant = ipam.grant(&restored, &req).unwrap();
    // The controller dies after the first of two writes, and the pod goes before another one completes the set.
    let first = grant.claims[0].def().clone();
    ipam.finish(grant);
    reserve(&mut ipam, std::slice::from_ref(&first));
    let made = give(&mut ipam, &restored, &owned(2, "n2", zero.clone()));
    assert_eq!(made.iter().map(|d| d.set.len()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(made[0].name, first.name);
    // What was given on purpose with one family stays so.
    let one = owner("StatefulSet", Some("db-1"));
    let only = Choice { family: Some(FamilyWish::Only(Family::V4)), ..Choice::default() };
    let made = give(&mut ipam, &restored, &PodRequest { choice: only, ..owned(3, "n1", one.clone()) });
    reserve(&mut ipam, &made);
    assert_eq!(give(&mut ipam, &restored, &owned(4, "n1", one)).len(), 1);
}

#[test]
fn a_numbered_pod_is_given_nothing_while_its_own_address_is_given_back() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owned(1, "n1", owner("StatefulSet", Some("db-0")));
    let made = give(&mut ipam, &restored, &zero);
    // Its node has said that it is over; the watch of pods is behind.
    for def in &made {
        let down = InstanceDef { phase: Phase::Releasing, torn_down: Some(10), ..(**def).clone() };
        ipam.upsert_instance(down.into(), 10);
    }
    assert_eq!(ipam.grant(&restored, &zero).unwrap_err().reason(), "AddressStillHeld");
    reserve(&mut ipam, &made);
    assert_eq!(set_of(&mut ipam, &restored, &zero), names(&made));
}

#[test]
fn what_is_given_back_by_its_owner_is_kept_no_more() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let zero = owner("StatefulSet", Some("db-0"));
    let made = give(&mut ipam, &restored, &owned(1, "n1", zero.clone()));
    for def in &made {
        let leaving = InstanceDef {
            pod: None,
            node: None,
            phase: Phase::Releasing,
            reserved_at: Some(50),
            release_at: Some(90),
            ..(**def).clone()
        };
        ipam.upsert_instance(leaving.into(), 60);
    }
    // Between the two writes of a take-over it would be one that is given back under a pod that waits for it.
    let grant = ipam.grant(&restored, &owned(2, "n2", zero)).unwrap();
    assert!(grant.claims.iter().all(|c| matches!(c, Claim::Create(_))), "{:?}", grant.claims);
    ipam.finish(grant);
}
