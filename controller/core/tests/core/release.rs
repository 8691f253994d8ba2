//! What becomes of an address, as a table and as a story.

use std::sync::Arc;

use braid_controller_core::Config;
use braid_controller_core::release::{
    Checks, Circumstances, Decision, OwnerCheck, PodCheck, PodSeen, decide,
};
use braid_types::model::{InstanceDef, OwnerRef, Phase};

use crate::cluster::{give, lists, live, request, start};

const POD_GONE: Checks =
    Checks { pod: Some(PodCheck::Gone), second_pod: None, node: None, second_node: None, owner: None };

fn held() -> InstanceDef {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    (*give(&mut ipam, &restored, &request(1, "n1"))[0]).clone()
}

fn gone(confirmed: Option<i64>) -> Circumstances {
    Circumstances {
        pod: Some(PodSeen::Over { confirmed }),
        second_pod: None,
        node_exists: true,
        second_node_exists: true,
        wanted: false,
        checks: Checks::default(),
        cooling_since: None,
        uncovered: false,
        surplus: false,
    }
}

#[test]
fn two_observations_and_a_last_look_before_an_address_is_given_back() {
    let now = 10_000;
    let bound = held();
    let pod = bound.pod.clone().unwrap();
    let down = InstanceDef { torn_down: Some(1), phase: Phase::Releasing, ..bound.clone() };
    let owner = OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: "db".into(),
        uid: "u".into(),
        pod: Some("db-0".into()),
    };
    let of = owner.clone();
    let kept = InstanceDef { owner: Some(Box::new(owner)), ..down.clone() };
    let checked = |c: Circumstances, check| Circumstances {
        checks: Checks { pod: Some(check), ..Checks::default() },
        ..c
    };
    let owned = |owner| Circumstances { checks: Checks { owner: Some(owner), ..POD_GONE }, ..gone(None) };
    let used = InstanceDef { attached: true, ..kept.clone() };
    let limited = InstanceDef { retain_seconds: Some(60), ..used.clone() };
    let declared = InstanceDef { declared: true, ..used.clone() };
    let reserve = |since, until| Decision::Reserve { since, until };
    let alive = Circumstances { pod: Some(PodSeen::Live), ..gone(None) };
    let dead_node = Circumstances { node_exists: false, ..gone(None) };
    let dead = |node| Circumstances { checks: Checks { node, ..POD_GONE }, ..dead_node };
    let release = |reason| Decision::MarkReleasing { release_at: now + 30, reason };
    let recheck = || Decision::RecheckPod(pod.clone());
    let table = [
        ("alive", &bound, alive, Decision::Keep),
        ("alive though torn down", &down, alive, Decision::Keep),
        ("gone for the cache", &bound, gone(None), recheck()),
        ("gone, from now on", &bound, checked(gone(None), PodCheck::Gone), Decision::WaitUntil(now + 900)),
        ("gone, node silent", &bound, gone(Some(now - 899)), Decision::WaitUntil(now + 1)),
        ("gone, silent for long", &bound, gone(Some(now - 900)), recheck()),
        ("gone, torn down", &down, gone(None), recheck()),
        ("gone, node gone", &bound, dead_node, recheck()),
        ("the cache was wrong", &down, checked(gone(None), PodCheck::Live), Decision::WaitUntil(now + 5)),
        ("confirmed", &down, checked(gone(None), PodCheck::Gone), release("TornDown")),
        ("finished", &down, checked(gone(None), PodCheck::Finished), release("TornDown")),
        (
            "gone with its node",
            &bound,
            checked(dead_node, PodCheck::Gone),
            Decision::RecheckNode("n1".into()),
        ),
        ("the node is there after all", &bound, dead(Some(true)), Decision::WaitUntil(now + 5)),
        ("confirmed, node gone", &bound, dead(Some(false)), release("NodeGone")),
        ("confirmed, silent", &bound, checked(gone(Some(0)), PodCheck::Gone), release("NodeSilent")),
        ("has an owner", &used, checked(gone(None), PodCheck::Gone), Decision::RecheckOwner(of.clone())),
        ("kept by its owner", &used, owned(OwnerCheck::Live), reserve(Some(now), None)),
        ("kept for a while", &limited, owned(OwnerCheck::Live), reserve(Some(now), Some(now + 60))),
        ("the owner is gone too", &used, owned(OwnerCheck::Gone), release("TornDown")),
        (
            "restored, its owner comes later",
            &kept,
            owned(OwnerCheck::Gone),
            reserve(None, Some(now + 86_400)),
        ),
        ("declared by a person", &declared, checked(gone(None), PodCheck::Gone), reserve(None, None)),
        ("not covered", &bound, Circumstances { uncovered: true, ..alive }, Decision::RouteByHost),
    ];
    for (what, def, circumstances, want) in table {
        assert_eq!(decide(def, now, &circumstances, &Config::default()), want, "{what}");
    }
}

#[test]
fn the_cool_down_is_counted_from_when_it_was_seen() {
    let cooling = InstanceDef { phase: Phase::Releasing, release_at: Some(130), ..held() };
    let at = |now, since| {
        decide(&cooling, now, &Circumstances { cooling_since: Some(since), ..gone(None) }, &Config::default())
    };
    assert_eq!(at(100, 100), Decision::WaitUntil(130));
    assert_eq!(at(129, 100), Decision::WaitUntil(130));
    assert_eq!(at(130, 100), Decision::Delete);
    // A restart in between, or a clock that is off by far: it is counted anew, and never cut short.
    assert_eq!(at(131, 131), Decision::WaitUntil(161));
    assert_eq!(at(1000, 990), Decision::WaitUntil(1020));
    assert_eq!(at(29, -1), Decision::Delete);
    let revived = Circumstances { pod: Some(PodSeen::Live), ..gone(None) };
    assert_eq!(decide(&cooling, 500, &revived, &Config::default()), Decision::Keep, "its pod runs");
}

#[test]
fn what_is_kept_stays_until_its_time() {
    let kept = InstanceDef { phase: Phase::Reserved, pod: None, ..held() };
    let c = Circumstances { pod: None, ..gone(None) };
    assert_eq!(decide(&kept, 100, &c, &Config::default()), Decision::Keep);
    let until = InstanceDef { retain_until: Some(200), ..kept };
    assert_eq!(decide(&until, 100, &c, &Config::default()), Decision::WaitUntil(200));
    let ended = Decision::MarkReleasing { release_at: 230, reason: "RetentionEnded" };
    assert_eq!(decide(&until, 200, &c, &Config::default()), ended);
    // By the word of a controller: as long as the owner exists.
    let owner = OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: "db".into(),
        uid: "".into(),
        pod: None,
    };
    let owned = InstanceDef {
        owner: Some(Box::new(owner.clone())),
        reserved_at: Some(100),
        retain_until: None,
        ..until.clone()
    };
    let told = |check| Circumstances { checks: Checks { owner: Some(check), ..Checks::default() }, ..c };
    let config = Config::default();
    assert_eq!(decide(&owned, 100, &c, &config), Decision::RecheckOwner(owner));
    assert_eq!(decide(&owned, 100, &told(OwnerCheck::Live), &config), Decision::WaitUntil(160));
    let rarely = Config { owner_check: 500, ..config };
    assert_eq!(decide(&owned, 100, &told(OwnerCheck::Live), &rarely), Decision::WaitUntil(600));
    let soon = InstanceDef { retain_until: Some(110), ..owned.clone() };
    assert_eq!(decide(&soon, 100, &told(OwnerCheck::Live), &config), Decision::WaitUntil(110));
    let over = Decision::MarkReleasing { release_at: 130, reason: "OwnerGone" };
    assert_eq!(decide(&owned, 100, &told(OwnerCheck::Gone), &config), over);
    // Between the two writes that take it from its pod, or give it to one.
    let halfway = InstanceDef { pod: held().pod, retain_seconds: Some(60), ..owned.clone() };
    let finish = Decision::Reserve { since: Some(100), until: Some(160) };
    assert_eq!(decide(&halfway, 130, &gone(None), &config), finish);
    let taken = Circumstances { pod: Some(PodSeen::Live), ..c };
    assert_eq!(decide(&halfway, 130, &taken, &config), Decision::Keep);
    // The word how long one that nobody has used here is kept got lost with the second write.
    let unused = InstanceDef { reserved_at: None, retain_seconds: None, ..halfway };
    let asked =
        |check| Circumstances { checks: Checks { owner: Some(check), ..Checks::default() }, ..gone(None) };
    assert!(matches!(decide(&unused, 130, &gone(None), &config), Decision::RecheckOwner(_)));
    let a_day = Decision::Reserve { since: None, until: Some(130 + 86_400) };
    assert_eq!(decide(&unused, 130, &asked(OwnerCheck::Gone), &config), a_day, "not for ever");
    let from_now = Decision::Reserve { since: Some(130), until: None };
    assert_eq!(decide(&unused, 130, &asked(OwnerCheck::Live), &config), from_now);
    let pinned = InstanceDef { declared: true, ..unused };
    assert_eq!(decide(&pinned, 130, &gone(None), &config), Decision::Reserve { since: None, until: None });
    // Declared by a person: whether the owner exists does not matter.
    for reserved_at in [None, Some(100)] {
        let pinned = InstanceDef { declared: true, reserved_at, ..owned.clone() };
        assert_eq!(decide(&pinned, 100, &told(OwnerCheck::Gone), &config), Decision::Keep);
    }
    // From a backup, without a pod then already: its owner has a day to come.
    let restored = InstanceDef { reserved_at: None, ..owned };
    assert!(matches!(decide(&restored, 130, &c, &config), Decision::RecheckOwner(_)));
    assert_eq!(decide(&restored, 130, &told(OwnerCheck::Gone), &config), a_day);
    assert_eq!(decide(&restored, 130, &told(OwnerCheck::Live), &config), from_now);
    let waits = InstanceDef { retain_until: Some(130 + 86_400), ..restored };
    assert_eq!(decide(&waits, 130, &told(OwnerCheck::Gone), &config), Decision::WaitUntil(130 + 86_400));
}

#[test]
fn the_end_of_a_pod_is_remembered_while_its_objects_change() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let name = &made[0].name;
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 50), Some(Decision::Keep));
    let effects = ipam.remove_pod("pod-1");
    assert_eq!(effects.review.len(), 2);
    let recheck = |d: Option<Decision>| matches!(d, Some(Decision::RecheckPod(p)) if p.uid == "pod-1");
    assert!(recheck(ipam.decide(&restored, name, Checks::default(), 100)));
    let wait = Some(Decision::WaitUntil(1000));
    assert_eq!(ipam.decide(&restored, name, POD_GONE, 100), wait);
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 200), wait);
    assert_eq!(
        ipam.decide(&restored, &made[1].name, Checks::default(), 200),
        wait,
        "the API server is asked once per pod"
    );
    // Some other field changes, the lists come again: the count goes on.
    let changed = Arc::new(InstanceDef { host_routed: true, ..(*made[0]).clone() });
    ipam.upsert_instance(changed.clone(), 300);
    ipam.reset_instances(vec![changed.clone(), made[1].clone()], 400);
    assert_eq!(ipam.reset_pods((2..9).map(live).collect()).review.len(), 2);
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 600), wait);
    let torn = Arc::new(InstanceDef { phase: Phase::Releasing, torn_down: Some(960), ..(*changed).clone() });
    ipam.upsert_instance(torn.clone(), 960);
    assert!(recheck(ipam.decide(&restored, name, Checks::default(), 960)));
    let Some(Decision::MarkReleasing { release_at, .. }) = ipam.decide(&restored, name, POD_GONE, 960) else {
        panic!("two observations and a check")
    };
    assert_eq!((release_at, ipam.usage("v4").cooling), (990, 1));
    let cooling = Arc::new(InstanceDef { release_at: Some(release_at), ..(*torn).clone() });
    ipam.upsert_instance(cooling, 960);
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 989), Some(Decision::WaitUntil(990)));
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 990), Some(Decision::Delete));
    let freed = ipam.remove_instance(name, &torn.uid);
    assert!(freed.wake.contains(&braid_controller_core::Topic::Subnet("v4".into())));
    assert_eq!(ipam.usage("v4").used + ipam.usage("v4").cooling, 0);
    assert_eq!(ipam.decide(&restored, name, Checks::default(), 991), None);
}

#[test]
fn the_deletion_of_an_earlier_object_does_not_free_its_successor() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    assert_eq!(ipam.remove_instance(&made[0].name, "an-older-uid"), Default::default());
    assert_eq!(ipam.usage("v4").used, 1);
    let effects = ipam.remove_instance(&made[0].name, &made[0].uid);
    assert!(effects.pods.contains("pod-1"), "deleted by hand under a living pod: it is asked for again");
}

#[test]
fn a_nodes_own_address_goes_with_its_node_or_its_subnet_but_after_the_pods() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    for req in ipam.vteps_missing() {
        let grant = ipam.grant_vtep(&restored, &req).unwrap();
        for claim in &grant.claims {
            let uid = claim.name().to_string();
            ipam.upsert_instance(InstanceDef { uid: uid.into(), ..(**claim.def()).clone() }.into(), 0);
        }
        ipam.finish(grant);
    }
    let of_node = |ipam: &braid_controller_core::Ipam, n: &str| {
        ipam.instances().find(|d| d.node.as_deref() == Some(n) && d.subnet == "v4").unwrap().name.clone()
    };
    let (n1, n2) = (of_node(&ipam, "n1"), of_node(&ipam, "n2"));
    let left = Some(Decision::MarkReleasing { release_at: 130, reason: "NodeLeft" });
    assert_eq!(ipam.decide(&restored, &n1, Checks::default(), 100), Some(Decision::Keep));
    assert!(ipam.remove_node("n1").review.contains(&n1));
    assert_eq!(ipam.decide(&restored, &n1, Checks::default(), 100), left);
    let made = give(&mut ipam, &restored, &request(1, "n2"));
    let deleting = ipam.subnet("v4").cloned().map(|s| braid_types::model::SubnetDef { deleting: true, ..s });
    assert!(ipam.upsert_subnet(deleting.unwrap()).review.contains(&n2));
    assert_eq!(
        ipam.decide(&restored, &n2, Checks::default(), 100),
        Some(Decision::Keep),
        "a pod still needs the way"
    );
    assert!(ipam.remove_instance(&made[0].name, &made[0].uid).review.contains(&n2));
    assert_eq!(ipam.decide(&restored, &n2, Checks::default(), 100), left);
}

#[test]
fn a_list_of_very_many_is_looked_at_as_a_whole() {
    let (mut ipam, restored) = start(lists("10.0.0.0/16", "fd00::/112"));
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let (mut list, pods): (Vec<Arc<InstanceDef>>, Vec<_>) = (made.clone(), (1..9).map(live).collect());
    for n in 1..6000u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_8000 + n);
        let name = braid_types::InstanceName::new("", address.into());
        let uid = name.to_string().as_str().into();
        list.push(Arc::new(InstanceDef { name, uid, host_routed: true, ..(*made[0]).clone() }));
    }
    let mut effects = ipam.reset_unreadable(&std::collections::BTreeSet::new());
    effects.merge(ipam.reset_instances(list.clone(), 100));
    assert!(effects.everything && effects.review.is_empty() && effects.wake.is_empty(), "{effects:?}");
    ipam.reset_pods(pods.clone());
    assert_eq!(ipam.due(&restored, 100).count(), 0, "the pod lives");
    let cools =
        InstanceDef { phase: Phase::Releasing, release_at: Some(130), pod: None, ..(*list[9]).clone() };
    let kept =
        InstanceDef { phase: Phase::Reserved, retain_until: Some(900), pod: None, ..(*list[10]).clone() };
    let routed = InstanceDef { host_routed: false, ..(*list[11]).clone() };
    for changed in [cools, kept, routed] {
        ipam.upsert_instance(changed.into(), 100);
    }
    let due: std::collections::BTreeSet<_> = ipam.due(&restored, 100).map(|def| def.name.clone()).collect();
    assert_eq!(due, list[9..12].iter().map(|def| def.name.clone()).collect());
    let one = list.pop().unwrap();
    let effects = ipam.reset_instances(list.clone(), 100);
    assert!(!effects.everything && effects.pods.contains("pod-1"), "one that is gone is named");
    ipam.reset_pods(pods[1..].to_vec());
    assert_eq!(ipam.due(&restored, 100).count(), list.len());
    assert!(ipam.due(&restored, 100).all(|def| def.name != one.name));
}
