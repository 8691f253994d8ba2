use super::*;

use crate::index::tests::{applied, instance, pod};
use crate::index::{Change, OwnPod, pod_key};

fn names(found: &[Due]) -> Vec<(&str, bool)> {
    found.iter().map(|d| (d.name.as_str(), d.confirm)).collect()
}

fn set(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(ToString::to_string).collect()
}

fn with_address() -> Index {
    let mut index = Index::default();
    index.apply_own(applied(instance("10.0.0.5", Some("u1"), &["10.0.0.5"])));
    index.apply_own(applied(instance("10.0.0.1", None, &[])));
    index
}

fn show(index: &mut Index, change: impl FnOnce(&mut OwnPod)) {
    let mut own = pod("u1");
    change(&mut own);
    index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(own)));
}

#[test]
fn a_living_pod_keeps_its_address_whatever_happens_to_its_sandbox() {
    let mut index = with_address();
    show(&mut index, |_| ());
    assert_eq!(due(&index, &set(&[]), &set(&["u1"])), []);
}

#[test]
fn a_terminating_pod_gives_back_after_its_teardown_only() {
    let mut index = with_address();
    show(&mut index, |p| p.terminating = true);
    assert_eq!(due(&index, &set(&[]), &set(&[])), [], "it may be about to get its interface");
    assert_eq!(due(&index, &set(&["u1"]), &set(&["u1"])), [], "another sandbox of it has one");
    assert_eq!(names(&due(&index, &set(&[]), &set(&["u1"]))), [("10.0.0.5", false)]);
}

#[test]
fn a_pod_that_is_over_gives_back_even_when_nobody_remembers_its_teardown() {
    let mut index = with_address();
    assert_eq!(names(&due(&index, &set(&[]), &set(&[]))), [("10.0.0.5", true)], "unknown: to be confirmed");
    assert_eq!(due(&index, &set(&["u1"]), &set(&[])), [], "while an interface exists, nothing is given back");
    show(&mut index, |p| p.finished = true);
    assert_eq!(names(&due(&index, &set(&[]), &set(&[]))), [("10.0.0.5", false)]);
    show(&mut index, |p| p.uid = "u2".into());
    assert_eq!(names(&due(&index, &set(&[]), &set(&[]))), [("10.0.0.5", true)], "a successor is another pod");
}

#[test]
fn while_some_interface_may_be_hidden_only_a_del_frees() {
    let found = due(&with_address(), &set(&[]), &set(&[]));
    assert_eq!(names(&only_torn_down(found.clone(), &set(&["u2"]))), []);
    assert_eq!(names(&only_torn_down(found, &set(&["u1"]))), [("10.0.0.5", true)]);
}

#[test]
fn what_is_given_back_is_not_given_back_again() {
    let mut index = Index::default();
    for change in [
        |d: &mut braid_types::model::InstanceDef| d.phase = Phase::Releasing,
        |d: &mut braid_types::model::InstanceDef| d.phase = Phase::Reserved,
        |d: &mut braid_types::model::InstanceDef| d.torn_down = Some(1),
        |d: &mut braid_types::model::InstanceDef| d.deleting = true,
    ] {
        let mut def = instance("10.0.0.5", Some("u1"), &["10.0.0.5"]);
        change(&mut def);
        index.apply_own(applied(def));
        assert_eq!(due(&index, &set(&[]), &set(&["u1"])), []);
    }
}

#[test]
fn the_patch_names_the_very_object() {
    let index = with_address();
    let found = due(&index, &set(&[]), &set(&[]));
    let patch = torn_down_patch(&found[0], 0);
    assert_eq!(
        patch,
        json!({
            "metadata": {"uid": "uid-10.0.0.5", "resourceVersion": "1"},
            "status": {"phase": "Releasing", "reason": "TornDown", "tornDownAt": "1970-01-01T00:00:00Z"},
        })
    );
}
