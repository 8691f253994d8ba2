use super::*;

use braid_types::InstanceName;
use braid_types::model::PodRef;

pub(crate) fn instance(address: &str, pod: Option<&str>, set: &[&str]) -> InstanceDef {
    let address: IpAddr = address.parse().unwrap();
    InstanceDef {
        name: InstanceName::new("", address),
        uid: format!("uid-{address}").into(),
        network: "overlay".into(),
        subnet: "overlay".into(),
        prefix_len: 16,
        gateway: None,
        mac: None,
        pod: pod.map(|uid| PodRef { namespace: "ns".into(), name: "pod".into(), uid: uid.into() }),
        interface: if pod.is_some() { "eth0".into() } else { VTEP_INTERFACE.into() },
        node: Some("n1".into()),
        set: set.iter().map(|a| a.parse().unwrap()).collect(),
        owner: None,
        retain_seconds: None,
        retain_until: None,
        reserved_at: None,
        declared: false,
        attached: false,
        phase: Phase::Bound,
        torn_down: None,
        release_at: None,
        handover: None,
        host_routed: false,
        deleting: false,
    }
}

pub(crate) fn applied(def: InstanceDef) -> Change<Held> {
    Change::Applied(
        def.name.to_string(),
        Ok(Held { def, resource_version: "1".to_owned(), attached: false, sandbox: None }),
    )
}

pub(crate) fn pod(uid: &str) -> OwnPod {
    OwnPod {
        namespace: "ns".into(),
        name: "pod".into(),
        uid: uid.into(),
        mirror_of: None,
        terminating: false,
        finished: false,
        refusal: None,
    }
}

#[test]
fn both_families_or_nothing() {
    let mut index = Index::default();
    let set = ["10.0.0.5", "fd00::5"];
    assert_eq!(index.grant("u1", "eth0"), Grant::Nothing);
    index.apply_own(applied(instance("fd00::5", Some("u1"), &set)));
    assert_eq!(index.grant("u1", "eth0"), Grant::Partial { missing: "10.0.0.5".parse().unwrap() });
    index.apply_own(applied(instance("10.0.0.5", Some("u1"), &set)));
    let Grant::Complete(all) = index.grant("u1", "eth0") else { panic!("not complete") };
    let addresses: Vec<_> = all.iter().map(|d| d.name.address().to_string()).collect();
    assert_eq!(addresses, set, "IPv4 first");
    assert_eq!(index.grant("u2", "eth0"), Grant::Nothing, "another pod has nothing of it");
    assert_eq!(index.grant("u1", "net1"), Grant::Nothing, "nor has another interface");
}

#[test]
fn of_what_two_controllers_gave_one_whole_set_is_used() {
    let addresses = |index: &Index| match index.grant("u1", "eth0") {
        Grant::Complete(all) => all.iter().map(|d| d.name.address().to_string()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let mut index = Index::default();
    let (low, high) = (["10.0.0.5", "fd00::5"], ["10.0.0.6", "fd00::6"]);
    for address in high {
        index.apply_own(applied(instance(address, Some("u1"), &high)));
    }
    index.apply_own(applied(instance(low[1], Some("u1"), &low)));
    assert_eq!(addresses(&index), high, "the other is not whole");
    index.apply_own(applied(instance(low[0], Some("u1"), &low)));
    assert_eq!(addresses(&index), low);
    let def = instance(high[0], Some("u1"), &high);
    let used = Held { def, resource_version: "2".to_owned(), attached: true, sandbox: None };
    index.apply_own(Change::Applied(high[0].to_owned(), Ok(used)));
    assert_eq!(addresses(&index), high, "what is in use stays in use");
}

#[test]
fn an_address_on_its_way_out_is_no_grant() {
    let mut index = Index::default();
    let mut def = instance("10.0.0.5", Some("u1"), &["10.0.0.5"]);
    index.apply_own(applied(def.clone()));
    def.phase = Phase::Releasing;
    index.apply_own(applied(def.clone()));
    assert_eq!(index.grant("u1", "eth0"), Grant::Nothing);
    index.apply_own(Change::Deleted(def.name.to_string()));
    assert_eq!(index.held_by_pods().count(), 0);
}

#[test]
fn only_the_nodes_own_addresses_concern_the_kernel_loop() {
    let mut index = Index::default();
    let pods = || applied(instance("10.0.0.5", Some("u1"), &["10.0.0.5"]));
    assert_eq!(index.apply_own(pods()), Effect::Quiet);
    assert_eq!(index.apply_own(pods()), Effect::Nothing, "the same again is no change");
    let vtep = instance("10.0.0.1", None, &[]);
    assert_eq!(index.apply_own(applied(vtep.clone())), Effect::Kernel);
    assert_eq!(index.apply_own(applied(vtep)), Effect::Nothing);
    assert_eq!(index.apply_own(Change::Reset(vec![])), Effect::Kernel);
}

#[test]
fn an_object_that_became_unreadable_keeps_its_last_state() {
    let mut table = Table::default();
    assert!(table.apply(Change::Reset(vec![("a".into(), Ok(1)), ("b".into(), Ok(2)), ("c".into(), Ok(3))])));
    assert!(!table.apply(Change::Applied("a".into(), Err("no".into()))));
    assert!(!table.apply(Change::Unreadable("b".into())));
    let again = vec![("a".to_owned(), Err("no".to_owned())), ("c".to_owned(), Ok(3))];
    assert!(!table.apply(Change::Reset(again)), "`b` was named unreadable, so it has not vanished");
    assert_eq!(table.values().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(table.apply(Change::Applied("a".into(), Ok(4))), "`a` can be read again");
    // The second list lacks both; only what the watch has just named unreadable is known to exist.
    assert!(table.apply(Change::Reset(vec![("c".into(), Ok(3))])));
    assert_eq!(table.values().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn what_vanished_while_nobody_watched_is_gone() {
    let mut table = Table::default();
    table.apply(Change::Reset(vec![("a".into(), Ok(1)), ("b".into(), Ok(2))]));
    assert!(!table.apply(Change::Reset(vec![("b".into(), Ok(2)), ("a".into(), Ok(1))])), "order is nothing");
    assert!(table.apply(Change::Reset(vec![("b".into(), Ok(2))])));
    assert!(table.get("a").is_none() && table.get("b").is_some());
}

#[test]
fn a_same_named_successor_is_another_pod() {
    let mut index = Index::default();
    index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(pod("u2"))));
    assert!(index.pod("ns", "pod", Some("u1")).is_none());
    assert!(index.pod("ns", "pod", Some("u2")).is_some() && index.pod("ns", "pod", None).is_some());
    assert_eq!(index.pod_state("ns", "pod", "u1"), PodState::Over);
    assert_eq!(index.pod_state("ns", "pod", "u2"), PodState::Alive);
    for (terminating, finished, state) in
        [(true, false, PodState::Terminating), (true, true, PodState::Over), (false, true, PodState::Over)]
    {
        let changed = OwnPod { terminating, finished, ..pod("u2") };
        index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(changed)));
        assert_eq!(index.pod_state("ns", "pod", "u2"), state);
    }
}

#[test]
fn a_static_pod_is_known_by_both_its_uids() {
    let mut index = Index::default();
    let mirror = OwnPod { mirror_of: Some("static".into()), ..pod("mirror") };
    index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(mirror)));
    assert_eq!(index.pod("ns", "pod", Some("static")).unwrap().uid, "mirror");
    assert_eq!(index.pod_state("ns", "pod", "mirror"), PodState::Alive);
}

/// An address of two pods of a machine that migrates, as nodes learn of it by its label.
fn migrating(address: &str, holder: &str, node: &str, second: Option<&str>) -> InstanceDef {
    let def = instance(address, Some(holder), &[address]);
    let pod = |uid: &str| PodRef { uid: uid.into(), ..def.pod.clone().unwrap() };
    let handover = second.map(|uid| {
        let role = braid_types::model::MigrationRole::Target;
        Box::new(braid_types::model::HandoverDef { pod: pod(uid), node: "n1".into(), role, torn_down: false })
    });
    InstanceDef { node: Some(node.into()), host_routed: true, handover, ..def }
}

#[test]
fn two_pods_of_a_machine_have_its_address_and_one_has_the_traffic() {
    let attached = |uid: &str| {
        let record = crate::attachments::tests::record("c1", uid, "10.0.0.5");
        crate::attachments::attachment(&record).unwrap()
    };
    let silent = |index: &Index, uid: &str| !index.held_by_others(&attached(uid)).is_empty();
    let mut index = Index::default();
    let shown = |def: InstanceDef| Change::Applied(def.name.to_string(), Ok(def));
    assert!(!silent(&index, "target"), "of what nobody has told nothing is taken away");
    index.apply_host_routed(shown(migrating("10.0.0.5", "source", "n2", Some("target"))));
    assert!(matches!(index.grant("target", "eth0"), Grant::Complete(all) if all.len() == 1));
    assert_eq!(index.grant("stranger", "eth0"), Grant::Nothing);
    assert!(silent(&index, "target") && !silent(&index, "source"));
    assert_eq!(index.held_by_pods().count(), 0, "it is not the target's to give back");

    // It becomes the target's, and the two watches tell so one after the other.
    let own = migrating("10.0.0.5", "target", "n1", None);
    assert_eq!(index.apply_own(applied(own.clone())), Effect::Kernel);
    assert!(!silent(&index, "target") && silent(&index, "source"));
    index.apply_host_routed(shown(own.clone()));
    assert!(!silent(&index, "target") && silent(&index, "source"));
    assert!(matches!(index.grant("target", "eth0"), Grant::Complete(_)));

    // And away again: its traffic leaves when both say so.
    index.apply_host_routed(shown(migrating("10.0.0.5", "next", "n3", None)));
    assert!(!silent(&index, "target"));
    assert_eq!(index.apply_own(Change::Deleted(own.name.to_string())), Effect::Kernel);
    assert!(silent(&index, "target"));
}

#[test]
fn which_addresses_have_a_second_pod_follows_every_change() {
    let mut index = Index::default();
    let named = |def: InstanceDef| (def.name.to_string(), Ok(def));
    let of =
        |index: &Index, uid: &str| index.shared_with(uid).map(|d| d.name.to_string()).collect::<Vec<_>>();
    let (moves, stays) =
        (migrating("10.0.0.5", "source", "n2", Some("target")), migrating("10.0.0.6", "other", "n2", None));
    let effect = index.apply_host_routed(Change::Reset(vec![named(moves.clone()), named(stays.clone())]));
    assert_eq!((effect, of(&index, "target")), (Effect::Kernel, vec!["10.0.0.5".to_owned()]));
    let (name, value) = named(moves.clone());
    assert_eq!(index.apply_host_routed(Change::Applied(name.clone(), value)), Effect::Nothing);
    index.apply_host_routed(Change::Unreadable(name.clone()));
    assert_eq!(of(&index, "target"), ["10.0.0.5"], "it keeps its last readable state");
    let (_, ended) = named(InstanceDef { handover: None, ..moves.clone() });
    index.apply_host_routed(Change::Applied(name.clone(), ended));
    assert!(of(&index, "target").is_empty());
    let (_, again) = named(moves);
    index.apply_host_routed(Change::Applied(name.clone(), again));
    index.apply_host_routed(Change::Deleted(name));
    assert!(of(&index, "target").is_empty() && index.shared.is_empty());
}
