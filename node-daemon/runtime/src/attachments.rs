//! The pod interfaces of this node: in memory for the loop, in the journal for DEL and for the next agent.
//!
//! **Invariant:** every change counts `generation` up. Who planned with one generation and finds another one
//! must plan anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use braid_journal::{Journal, JournalError, Trouble, Unsynced};
use braid_meta_core::record::{Record, RecordState};
use braid_meta_core::{AttachmentId, CniResult};
use braid_node_core::view::{Attachment, NamespaceId};
use braid_types::model::{PodRef, UnixSeconds};
use braid_types::{IfName, host_veth_name};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::plumbing::chain;

/// How long it is remembered that a pod was let go: longer than any ADD that has chosen its addresses can still be under
/// way, as each ends with its deadline.
const LET_GO: Duration = Duration::from_secs(600);

/// How far an interface is, for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It exists, or this process is making it.
    Live,
    /// An agent before this one was making it when it ended; nobody waits for it any more.
    Interrupted,
    /// It must go, and what was tried did not suffice.
    Leaving,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) stage: Stage,
}

impl Entry {
    /// Whether all of it was made.
    pub(crate) fn exists(&self) -> bool {
        self.stage == Stage::Live && self.record.state == RecordState::Done
    }

    /// The uid of its pod in the API.
    pub(crate) fn pod_uid(&self) -> &str {
        self.record.grant.as_ref().map_or(&self.record.pod.uid, |g| &g.pod_uid)
    }
}

/// A file of the journal that cannot be read: its interface may be that of a running pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) path: PathBuf,
    /// As far as the file's name tells.
    pub(crate) attachment: Option<AttachmentId>,
    pub(crate) trouble: Trouble,
    /// The error in one line.
    pub(crate) why: String,
    /// Whether there is, as far as known, a device to which it may belong.
    pub(crate) has_device: bool,
}

impl Unread {
    /// The host end of its interface; `None` where the file's name does not tell.
    pub(crate) fn host_if(&self) -> Option<IfName> {
        self.attachment.as_ref().map(host_if)
    }
}

/// The interfaces at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    /// The live ones, by host device.
    pub(crate) attachments: BTreeMap<IfName, Attachment>,
    /// Host devices of entries that cannot be read.
    pub(crate) spared: BTreeSet<IfName>,
    /// There are entries that cannot be read and do not even tell their device.
    pub(crate) blind: bool,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    entries: BTreeMap<AttachmentId, Entry>,
    unread: BTreeMap<PathBuf, Unread>,
    /// Pods that get no interface any more, by uid, and since when.
    let_go: BTreeMap<String, Instant>,
    /// What the interfaces had that are gone, by uid of the pod: addresses, and since when.
    had: BTreeMap<String, BTreeMap<IpAddr, UnixSeconds>>,
}

impl State {
    fn take(&mut self, record: Record) {
        let stage = match record.state {
            RecordState::Done => Stage::Live,
            RecordState::Started => Stage::Interrupted,
        };
        self.entries.insert(record.attachment.clone(), Entry { record, stage });
    }

    /// An interface goes. One that was never finished was nobody's.
    fn lose(&mut self, id: &AttachmentId) {
        let Some(entry) = self.entries.remove(id).filter(|e| e.record.state == RecordState::Done) else {
            return;
        };
        let since = entry.record.started_at.try_into().unwrap_or(UnixSeconds::MAX);
        let addresses = entry.record.grant.iter().flat_map(|grant| &grant.addresses);
        let had = self.had.entry(entry.pod_uid().to_owned()).or_default();
        had.extend(addresses.map(|address| (*address, since)));
    }

    fn note(&mut self, path: PathBuf, attachment: Option<AttachmentId>, error: &JournalError) {
        let unread = Unread {
            attachment,
            trouble: error.trouble(),
            why: chain(error),
            has_device: true,
            path: path.clone(),
        };
        self.unread.insert(path, unread);
    }
}

/// Why an ADD cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    /// The cluster was, or is just being, told that the pod's interface is gone.
    #[error("the pod is over: its addresses are being given back")]
    LetGo,
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The interfaces of this node.
#[derive(Debug)]
pub(crate) struct Attachments {
    journal: Journal,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

impl Attachments {
    /// Reads the journal. What cannot be read hides nothing else. Blocks.
    pub(crate) fn load(journal: Journal) -> Result<Self, JournalError> {
        let mut state = State::default();
        for listed in journal.attachments.list()? {
            match listed.entry {
                Ok(record) => state.take(record),
                Err(error) => state.note(listed.path, listed.attachment, &error),
            }
        }
        Ok(Self { journal, state: Mutex::new(state), changes: watch::Sender::new(()) })
    }

    /// The entries that cannot be read.
    pub(crate) fn unread(&self) -> Vec<Unread> {
        self.state.lock().unread.values().cloned().collect()
    }

    /// Tries once more to read what could not be read. Blocks.
    pub(crate) fn read_again(&self) {
        for unread in self.unread() {
            let read = self.journal.attachments.read_file(&unread.path);
            let mut state = self.state.lock();
            if state.unread.remove(&unread.path).is_none() {
                // A DEL was quicker.
                continue;
            }
            match read {
                Ok(Some(record)) => state.take(record),
                Ok(None) => {}
                Err(error) => {
                    let (trouble, why) = (error.trouble(), chain(&error));
                    state.unread.insert(unread.path.clone(), Unread { trouble, why, ..unread });
                    continue;
                }
            }
            drop(state);
            self.change_all(|_| ());
        }
    }

    /// What became known about the device of an entry that cannot be read.
    pub(crate) fn saw_device(&self, path: &Path, has_device: bool) {
        let mut state = self.state.lock();
        let Some(unread) = state.unread.get_mut(path).filter(|u| u.has_device != has_device) else { return };
        unread.has_device = has_device;
        drop(state);
        self.changes.send_replace(());
    }

    /// Removes the file of an entry that cannot be read. Blocks.
    pub(crate) fn forget_unread(&self, path: &Path) -> Result<(), JournalError> {
        self.journal.attachments.remove_file(path)?;
        self.change_all(|state| {
            state.unread.remove(path);
        });
        Ok(())
    }

    /// Whether interfaces may exist of which it is not known to whom they belong.
    pub(crate) fn may_hide_some(&self) -> bool {
        self.state.lock().unread.values().any(|u| u.has_device)
    }

    /// The journal itself.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// An ADD begins: `record` outlives this process when this returns. Blocks.
    ///
    /// It need not outlive a loss of power, which takes the interface along. A damaged file is then what is left
    /// at worst, and its name says enough.
    pub(crate) fn begin(&self, record: Record) -> Result<(), BeginError> {
        let entry = Entry { record, stage: Stage::Live };
        let id = entry.record.attachment.clone();
        {
            // In one step with the look at `let_go`. Nobody is told: there is nothing to be done for an interface that
            // is not there yet, and whoever woke up now would take the processor from this ADD.
            let mut state = self.state.lock();
            if state.let_go.contains_key(entry.pod_uid()) {
                return Err(BeginError::LetGo);
            }
            state.entries.insert(id.clone(), entry.clone());
            state.generation += 1;
        }
        if let Err(error) = self.journal.attachments.put_unsynced(&entry.record).map(drop) {
            self.change(|entries| {
                entries.remove(&id);
            });
            return Err(error.into());
        }
        Ok(())
    }

    /// From now on no ADD begins for the pod with this uid, so that the cluster can be told that it has no interface
    /// here. Says whether that is so: not while it has one, however far that is.
    pub(crate) fn let_go(&self, pod_uid: &str) -> bool {
        let mut state = self.state.lock();
        if state.entries.values().any(|e| e.pod_uid() == pod_uid) {
            return false;
        }
        let now = Instant::now();
        state.let_go.retain(|_, since| now.duration_since(*since) < LET_GO);
        state.let_go.insert(pod_uid.to_owned(), now);
        true
    }

    /// Since when an interface of the pod had the address that is gone by now; `None` if none of this process had it.
    pub(crate) fn had(&self, pod_uid: &str, address: IpAddr) -> Option<UnixSeconds> {
        self.state.lock().had.get(pod_uid)?.get(&address).copied()
    }

    /// Forgets what the interfaces of pods had about which nothing is left to be said.
    pub(crate) fn forget_had(&self, is_settled: impl Fn(&str) -> bool) {
        self.state.lock().had.retain(|uid, _| !is_settled(uid));
    }

    /// The ADD succeeded. Blocks, but not for the disk: that is left to whoever takes what is returned, behind the
    /// runtime's back.
    pub(crate) fn finish(
        &self,
        id: &AttachmentId,
        result: &CniResult,
    ) -> Result<Option<Unsynced>, JournalError> {
        let Some(mut record) = self.get(id).map(|e| e.record) else { return Ok(None) };
        record.state = RecordState::Done;
        record.result = Some(result.clone());
        let unsynced = self.journal.attachments.put_unsynced(&record)?;
        self.change(|entries| {
            entries.insert(id.clone(), Entry { record, stage: Stage::Live });
        });
        Ok(Some(unsynced))
    }

    /// From now on the interface must not exist; the journal still knows it.
    pub(crate) fn withdraw(&self, id: &AttachmentId) {
        self.change(|entries| {
            if let Some(entry) = entries.get_mut(id) {
                entry.stage = Stage::Leaving;
            }
        });
    }

    /// The interface is gone. Blocks.
    pub(crate) fn forget(&self, id: &AttachmentId) -> Result<(), JournalError> {
        self.journal.attachments.remove(id)?;
        self.change_all(|state| {
            state.unread.retain(|_, u| u.attachment.as_ref() != Some(id));
            state.lose(id);
        });
        Ok(())
    }

    /// One interface.
    pub(crate) fn get(&self, id: &AttachmentId) -> Option<Entry> {
        self.state.lock().entries.get(id).cloned()
    }

    /// Every interface.
    pub(crate) fn all(&self) -> Vec<Entry> {
        self.state.lock().entries.values().cloned().collect()
    }

    /// The addresses of an interface that no other live one of this node has. Two have the same while a sandbox is made
    /// anew before the old one is removed.
    pub(crate) fn only_of(&self, id: &AttachmentId) -> BTreeSet<IpAddr> {
        let state = self.state.lock();
        let of = |entry: &Entry| entry.record.grant.as_ref().map(|g| g.addresses.clone()).unwrap_or_default();
        let others = state.entries.iter().filter(|(other, e)| *other != id && e.stage == Stage::Live);
        let shared: BTreeSet<IpAddr> = others.flat_map(|(_, e)| of(e)).collect();
        let own = state.entries.get(id).map(of).unwrap_or_default();
        own.into_iter().filter(|a| !shared.contains(a)).collect()
    }

    /// The pods that have an interface, however far it is.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.state.lock().entries.values().map(|e| e.pod_uid().to_owned()).collect()
    }

    /// What the kernel must hold.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        let live = state.entries.values().filter(|e| e.stage == Stage::Live);
        let attachments =
            live.filter_map(|e| attachment(&e.record)).map(|a| (a.host_if.clone(), a)).collect();
        Snapshot {
            generation: state.generation,
            attachments,
            spared: state.unread.values().filter_map(Unread::host_if).collect(),
            blind: state.unread.values().any(|u| u.attachment.is_none()),
        }
    }

    /// The number of the present state.
    pub(crate) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Ticks on every change but the beginning of an ADD. Subscribe before looking, so that no change falls between.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<AttachmentId, Entry>)) {
        self.change_all(|state| change(&mut state.entries));
    }

    fn change_all(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.generation += 1;
        drop(state);
        self.changes.send_replace(());
    }
}

/// The host end of an attachment.
pub(crate) fn host_if(id: &AttachmentId) -> IfName {
    host_veth_name(id.container_id.as_str(), id.ifname.as_str())
}

/// Whether the network namespace of a record is there: under its path, and no other one.
pub(crate) fn netns_exists(record: &Record) -> bool {
    let same = |file: Metadata| record.netns_id.is_none_or(|id| (id.dev, id.ino) == (file.dev(), file.ino()));
    fs::metadata(&record.netns).is_ok_and(same)
}

/// What a record asks for, as if no other pod had its addresses; `None` when it does not say from what it was made.
pub(crate) fn attachment(record: &Record) -> Option<Attachment> {
    let grant = record.grant.as_ref()?;
    Some(Attachment {
        container_id: record.attachment.container_id.to_string(),
        pod: PodRef {
            namespace: record.pod.namespace.as_str().into(),
            name: record.pod.name.as_str().into(),
            uid: grant.pod_uid.as_str().into(),
        },
        netns: record.netns.clone(),
        netns_id: record.netns_id.map(|id| NamespaceId { dev: id.dev, ino: id.ino }),
        ifname: record.attachment.ifname.clone(),
        host_if: host_if(&record.attachment),
        network: grant.network.clone(),
        mac: grant.mac,
        addresses: grant.addresses.iter().copied().collect(),
        mtu: grant.mtu,
        silent: BTreeSet::new(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use braid_meta_core::record::Grant;
    use braid_meta_core::{Attachment as Planned, PodRef as RuntimePod};

    pub(crate) fn record(container: &str, pod_uid: &str, address: &str) -> Record {
        let attachment =
            AttachmentId { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() };
        Record {
            plan: vec![Planned::native(attachment.ifname.clone())],
            attachment,
            state: RecordState::Started,
            started_at: 1,
            network: "braid".into(),
            pod: RuntimePod { namespace: "ns".into(), name: "web".into(), uid: pod_uid.into() },
            netns: format!("/run/netns/{container}"),
            netns_id: None,
            config: "{}".into(),
            result: None,
            grant: Some(Grant {
                network: "overlay".into(),
                pod_uid: pod_uid.into(),
                mac: "02:00:00:00:00:05".parse().unwrap(),
                addresses: vec![address.parse().unwrap()],
                mtu: 1450,
            }),
        }
    }

    fn stages(attachments: &Attachments) -> Vec<Stage> {
        attachments.all().into_iter().map(|e| e.stage).collect()
    }

    #[test]
    fn a_restart_keeps_what_was_finished_and_knows_what_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(dir.path());
        let first = Attachments::load(journal.clone()).unwrap();
        assert!(first.unread().is_empty());
        let (done, cut) = (record("c1", "u1", "10.0.0.5"), record("c2", "u2", "10.0.0.6"));
        for r in [&done, &cut] {
            first.begin(r.clone()).unwrap();
        }
        first.finish(&done.attachment, &CniResult::default()).unwrap().unwrap().sync().unwrap();
        assert_eq!(first.snapshot().attachments.len(), 2, "what is being made belongs to the picture");

        let second = Attachments::load(journal).unwrap();
        assert_eq!(stages(&second), [Stage::Live, Stage::Interrupted]);
        let snapshot = second.snapshot();
        let kept: Vec<_> = snapshot.attachments.values().collect();
        assert_eq!(kept, [&attachment(&done).unwrap()]);
        assert_eq!(second.pods(), ["u1".to_owned(), "u2".to_owned()].into());
    }

    #[test]
    fn who_is_let_go_gets_no_interface_and_who_has_one_is_not_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let all = Attachments::load(Journal::below(dir.path())).unwrap();
        let r = record("c1", "u1", "10.0.0.5");
        all.begin(r.clone()).unwrap();
        assert!(!all.let_go("u1"), "an ADD is under way");
        all.forget(&r.attachment).unwrap();
        assert!(all.let_go("u1") && all.let_go("u1"));
        assert!(matches!(all.begin(r), Err(BeginError::LetGo)));
        assert!(all.all().is_empty() && all.journal().attachments.list().unwrap().is_empty());
        all.begin(record("c2", "u2", "10.0.0.6")).unwrap();
    }

    #[test]
    fn what_an_interface_had_outlives_it_until_all_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let all = Attachments::load(Journal::below(dir.path())).unwrap();
        let (done, cut) = (record("c1", "u1", "10.0.0.5"), record("c2", "u2", "10.0.0.6"));
        for r in [&done, &cut] {
            all.begin(r.clone()).unwrap();
        }
        drop(all.finish(&done.attachment, &CniResult::default()).unwrap());
        let had = |uid: &str, address: &str| all.had(uid, address.parse().unwrap());
        assert_eq!(had("u1", "10.0.0.5"), None, "it has it still");
        for r in [&done, &cut] {
            all.withdraw(&r.attachment);
            all.forget(&r.attachment).unwrap();
        }
        assert_eq!((had("u1", "10.0.0.5"), had("u1", "10.0.0.6")), (Some(1), None));
        assert_eq!(had("u2", "10.0.0.6"), None, "it was never finished");
        all.forget_had(|uid| uid != "u1");
        assert_eq!(had("u1", "10.0.0.5"), Some(1));
        all.forget_had(|_| true);
        assert_eq!(had("u1", "10.0.0.5"), None);
    }

    #[test]
    fn every_change_is_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let all = Attachments::load(Journal::below(dir.path())).unwrap();
        let r = record("c1", "u1", "10.0.0.5");
        let mut seen = vec![all.generation()];
        all.begin(r.clone()).unwrap();
        seen.push(all.generation());
        drop(all.finish(&r.attachment, &CniResult::default()).unwrap());
        seen.push(all.generation());
        all.withdraw(&r.attachment);
        seen.push(all.generation());
        assert!(all.snapshot().attachments.is_empty() && !all.pods().is_empty());
        all.forget(&r.attachment).unwrap();
        seen.push(all.generation());
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
        assert!(all.all().is_empty() && all.journal().attachments.list().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_remembered_and_read_once_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(dir.path());
        let r = Record { state: RecordState::Done, ..record("c1", "u1", "10.0.0.5") };
        journal.attachments.put(&r).unwrap();
        let file = std::fs::read_dir(journal.attachments.dir()).unwrap().next().unwrap().unwrap().path();
        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, good.replacen("attachment 1", "attachment 9", 1)).unwrap();
        let all = Attachments::load(journal).unwrap();
        assert!(all.all().is_empty() && all.may_hide_some());
        let unread = all.unread();
        assert_eq!((unread.len(), unread[0].trouble), (1, Trouble::OtherFormat));
        assert_eq!(all.snapshot().spared, [host_if(&r.attachment)].into());

        let before = all.generation();
        all.read_again();
        assert_eq!((all.unread().len(), all.generation()), (1, before));
        std::fs::write(&file, good).unwrap();
        all.read_again();
        assert!(all.unread().is_empty() && all.generation() > before);
        assert_eq!(stages(&all), [Stage::Live]);
    }
}
