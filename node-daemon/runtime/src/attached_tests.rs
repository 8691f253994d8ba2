use super::*;

use braid_meta_core::record::{Record, RecordState};

use crate::attachments::Stage;
use crate::attachments::tests::record;
use crate::index::tests::instance;
use crate::index::{Change, Held};

fn entry(container: &str, started_at: u64) -> Entry {
    let record = Record { state: RecordState::Done, started_at, ..record(container, "u1", "10.0.0.5") };
    Entry { record, stage: Stage::Live }
}

fn index(change: impl FnOnce(&mut Held)) -> Index {
    let mut index = Index::default();
    for address in ["10.0.0.5", "10.0.0.6"] {
        let def = instance(address, Some("u1"), &["10.0.0.5"]);
        let held = Held { def, resource_version: "7".into(), attached: false, sandbox: None };
        index.apply_own(Change::Applied(address.into(), Ok(held)));
    }
    let mut held = index.held_by("u1").next().cloned().unwrap();
    change(&mut held);
    index.apply_own(Change::Applied(held.def.name.to_string(), Ok(held)));
    index
}

fn found(index: &Index, entries: &[Entry]) -> Vec<(String, String)> {
    unsaid(index, entries).into_iter().map(|u| (u.name, u.sandbox)).collect()
}

fn said(name: &str, sandbox: &str) -> (String, String) {
    (name.to_owned(), sandbox.to_owned())
}

#[test]
fn what_the_journal_has_and_the_object_does_not_say_is_said() {
    let all = [entry("c1", 1)];
    assert_eq!(found(&index(|_| ()), &all), [said("10.0.0.5", "c1")], "not the other set's address");
    let told = |sandbox: &'static str| {
        move |h: &mut Held| {
            h.attached = true;
            h.sandbox = Some(sandbox.into());
        }
    };
    assert_eq!(found(&index(told("c1")), &all), []);
    assert_eq!(found(&index(told("c0")), &all), [said("10.0.0.5", "c1")], "a sandbox before this one");
    assert_eq!(found(&index(told("c1")), &[entry("c1", 1), entry("c2", 2)]), [said("10.0.0.5", "c2")]);
    assert_eq!(found(&index(|h| h.attached = true), &all), [said("10.0.0.5", "c1")]);
}

#[test]
fn nothing_is_said_of_what_is_half_done_or_on_its_way_out() {
    for change in [|h: &mut Held| h.def.phase = Phase::Releasing, |h: &mut Held| h.def.deleting = true] {
        assert_eq!(found(&index(change), &[entry("c1", 1)]), []);
    }
    let leaving = Entry { stage: Stage::Leaving, ..entry("c1", 1) };
    let mut half = entry("c1", 1);
    half.record.state = RecordState::Started;
    assert_eq!(found(&index(|_| ()), &[leaving, half]), []);
    assert_eq!(found(&index(|h| h.def.pod.as_mut().unwrap().uid = "u2".into()), &[entry("c1", 1)]), []);
}

#[test]
fn the_patch_names_the_very_object() {
    let unsaid = unsaid(&index(|_| ()), &[entry("c1", 1)]).remove(0);
    assert_eq!(
        attached_patch(&unsaid, 0),
        json!({
            "metadata": {"uid": "uid-10.0.0.5", "resourceVersion": "7"},
            "status": {"attachedAt": "1970-01-01T00:00:00Z", "sandbox": "c1"},
        })
    );
}
