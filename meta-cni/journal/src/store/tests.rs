use std::os::unix::fs::PermissionsExt;

use braid_meta_core::call::Del;
use braid_meta_core::{Attachment, PodRef, Record, RecordState};

use super::*;
use crate::Journal;

fn id(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() }
}

fn record(container: &str, state: RecordState) -> Record {
    let attachment = id(container);
    Record {
        plan: vec![Attachment::native(attachment.ifname.clone())],
        attachment,
        state,
        started_at: 0,
        network: "braid".into(),
        pod: PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() },
        netns: "/run/netns/x".into(),
        netns_id: None,
        config: "{}".into(),
        result: None,
        grant: None,
    }
}

fn del(container: &str) -> Del {
    Del { attachment: id(container), netns: None, pod: None, network: "braid".into(), config: "{}".into() }
}

#[test]
fn an_unsynced_entry_is_there_at_once_and_may_be_gone_when_it_is_synced() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    let first = store.put_unsynced(&record("c1", RecordState::Started)).unwrap();
    let second = store.put_unsynced(&record("c1", RecordState::Done)).unwrap();
    assert_eq!(store.get(&id("c1")).unwrap(), Some(record("c1", RecordState::Done)));
    first.sync().unwrap();
    store.remove(&id("c1")).unwrap();
    second.sync().unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(store.dir()).unwrap().count(), 0, "no temporary file is left");
}

#[test]
fn entries_are_replaced_listed_and_removed() {
    let state = tempfile::tempdir().unwrap();
    let journal = Journal::below(&state.path().join("not/yet"));
    let store = &journal.attachments;
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.get(&id("a")).unwrap(), None);
    assert!(!store.remove(&id("a")).unwrap());

    store.put(&record("a", RecordState::Started)).unwrap();
    store.put(&record("b", RecordState::Started)).unwrap();
    store.put(&record("a", RecordState::Done)).unwrap();
    assert_eq!(store.get(&id("a")).unwrap().unwrap().state, RecordState::Done);
    let listed = store.list().unwrap();
    assert_eq!(listed.iter().map(|l| l.attachment.clone().unwrap()).collect::<Vec<_>>(), [id("a"), id("b")]);
    assert_eq!(fs::read_dir(store.dir()).unwrap().count(), 2, "no temporary file stays");

    assert!(store.remove(&id("a")).unwrap());
    assert!(!store.remove(&id("a")).unwrap());
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn both_kinds_live_side_by_side() {
    let state = tempfile::tempdir().unwrap();
    let journal = Journal::below(state.path());
    journal.attachments.put(&record("a", RecordState::Done)).unwrap();
    journal.pending_dels.put(&del("a")).unwrap();
    assert_eq!(journal.pending_dels.get(&id("a")).unwrap(), Some(del("a")));
    assert!(journal.pending_dels.remove(&id("a")).unwrap());
    assert!(journal.attachments.get(&id("a")).unwrap().is_some());
}

#[test]
fn only_the_owner_may_read() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    store.put(&record("a", RecordState::Done)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.dir()), 0o700);
    assert_eq!(mode(&store.dir().join("a:eth0")), 0o600);
}

#[test]
fn damaged_files_are_reported_and_hide_nothing() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    store.put(&record("whole", RecordState::Done)).unwrap();
    store.put(&record("torn", RecordState::Done)).unwrap();
    let torn = store.dir().join("torn:eth0");
    let content = fs::read(&torn).unwrap();
    fs::write(&torn, &content[..content.len() / 2]).unwrap();
    fs::write(store.dir().join("empty:eth0"), b"").unwrap();
    fs::write(store.dir().join("stranger"), b"hello").unwrap();

    assert!(matches!(store.get(&id("torn")), Err(JournalError::Damaged { .. })));
    let listed = store.list().unwrap();
    let seen: Vec<(Option<AttachmentId>, bool)> =
        listed.iter().map(|l| (l.attachment.clone(), l.entry.is_ok())).collect();
    assert_eq!(
        seen,
        [(Some(id("empty")), false), (None, false), (Some(id("torn")), false), (Some(id("whole")), true)]
    );
    for l in listed.iter().filter(|l| l.entry.is_err()) {
        assert!(store.remove_file(&l.path).unwrap());
    }
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn a_writer_that_died_leaves_nothing_for_long() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    store.put(&record("a", RecordState::Done)).unwrap();
    fs::write(store.dir().join(".b:eth0.1.0"), b"braid atta").unwrap();
    assert_eq!(store.list().unwrap().len(), 1);

    let minute = Duration::from_secs(60);
    let now = SystemTime::now();
    assert_eq!(store.sweep(minute, now).unwrap(), 0, "it may still be written");
    assert_eq!(store.sweep(minute, now + 2 * minute).unwrap(), 1);
    assert_eq!(store.list().unwrap().len(), 1, "entries stay however old they are");
}

#[test]
fn what_cannot_be_written_leaves_the_old_entry() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    // A directory where the file should stand makes the rename fail, for root as well.
    let path = store.dir().join("a:eth0");
    fs::create_dir_all(path.join("x")).unwrap();
    let e = store.put(&record("a", RecordState::Done)).unwrap_err();
    assert!(matches!(e, JournalError::Io { operation: "write", .. }), "{e}");
    assert!(path.join("x").exists());
    assert_eq!(fs::read_dir(store.dir()).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn an_entry_that_may_be_whole_is_told_from_one_that_is_lost() {
    let state = tempfile::tempdir().unwrap();
    let store = Journal::below(state.path()).attachments;
    for container in ["a", "b", "c"] {
        store.put(&record(container, RecordState::Done)).unwrap();
    }
    let file = |container: &str| store.dir().join(file_name(&id(container)));
    let newer = fs::read_to_string(file("a")).unwrap().replacen("attachment 1", "attachment 2", 1);
    fs::write(file("a"), newer).unwrap();
    fs::write(file("b"), "torn").unwrap();
    // Reading a directory is an error of the file system.
    fs::remove_file(file("c")).unwrap();
    fs::create_dir(file("c")).unwrap();
    let troubles: Vec<_> =
        store.list().unwrap().into_iter().map(|l| l.entry.unwrap_err().trouble()).collect();
    assert_eq!(troubles, [Trouble::OtherFormat, Trouble::Damaged, Trouble::Unreadable]);
    assert!(store.read_file(&file("d")).unwrap().is_none());
}
