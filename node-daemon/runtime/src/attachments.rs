//! The pod interfaces of this node: in memory for the loop, in the journal for DEL and for the next agent.
//!
//! **Invariant:** every change counts `generation` up. Who planned with one generation and finds another one
//! must plan anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use braid_journal::{Journal, JournalError, Unsynced};
use braid_meta_core::record::{Record, RecordState};
use braid_meta_core::{AttachmentId, CniResult};
use braid_node_core::view::Attachment;
use braid_types::model::PodRef;
use braid_types::{IfName, host_veth_name};
use parking_lot::Mutex;

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
    /// The uid of its pod in the API.
    pub(crate) fn pod_uid(&self) -> &str {
        self.record.grant.as_ref().map_or(&self.record.pod.uid, |g| &g.pod_uid)
    }
}

/// A file that is no entry of the journal.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) path: PathBuf,
    /// As far as the file's name tells.
    pub(crate) attachment: Option<AttachmentId>,
    pub(crate) error: JournalError,
}

/// The interfaces at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    /// The live ones, by host device.
    pub(crate) attachments: BTreeMap<IfName, Attachment>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    entries: BTreeMap<AttachmentId, Entry>,
}

/// The interfaces of this node.
#[derive(Debug)]
pub(crate) struct Attachments {
    journal: Journal,
    state: Mutex<State>,
}

impl Attachments {
    /// Reads the journal. Blocks.
    pub(crate) fn load(journal: Journal) -> Result<(Self, Vec<Damaged>), JournalError> {
        let mut state = State::default();
        let mut damaged = Vec::new();
        for listed in journal.attachments.list()? {
            match listed.entry {
                Ok(record) => {
                    let stage = match record.state {
                        RecordState::Done => Stage::Live,
                        RecordState::Started => Stage::Interrupted,
                    };
                    state.entries.insert(record.attachment.clone(), Entry { record, stage });
                }
                Err(error) => {
                    damaged.push(Damaged { path: listed.path, attachment: listed.attachment, error });
                }
            }
        }
        Ok((Self { journal, state: Mutex::new(state) }, damaged))
    }

    /// The journal itself.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// An ADD begins: `record` outlives this process when this returns. Blocks.
    ///
    /// It need not outlive a loss of power, which takes the interface along. A damaged file is then what is left
    /// at worst, and its name says enough.
    pub(crate) fn begin(&self, record: Record) -> Result<(), JournalError> {
        drop(self.journal.attachments.put_unsynced(&record)?);
        self.change(|entries| {
            entries.insert(record.attachment.clone(), Entry { record, stage: Stage::Live });
        });
        Ok(())
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
        self.change(|entries| {
            entries.remove(id);
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
        Snapshot { generation: state.generation, attachments }
    }

    /// The number of the present state.
    pub(crate) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<AttachmentId, Entry>)) {
        let mut state = self.state.lock();
        change(&mut state.entries);
        state.generation += 1;
    }
}

/// The host end of an attachment.
pub(crate) fn host_if(id: &AttachmentId) -> IfName {
    host_veth_name(id.container_id.as_str(), id.ifname.as_str())
}

/// What the kernel must hold for a record; `None` when the record does not say from what it was made.
pub(crate) fn attachment(record: &Record) -> Option<Attachment> {
    let grant = record.grant.as_ref()?;
    Some(Attachment {
        container_id: record.attachment.container_id.to_string(),
        pod: PodRef {
            namespace: record.pod.namespace.clone(),
            name: record.pod.name.clone(),
            uid: grant.pod_uid.clone(),
        },
        netns: record.netns.clone(),
        ifname: record.attachment.ifname.clone(),
        host_if: host_if(&record.attachment),
        network: grant.network.clone(),
        mac: grant.mac,
        addresses: grant.addresses.iter().copied().collect(),
        mtu: grant.mtu,
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
        let (first, damaged) = Attachments::load(journal.clone()).unwrap();
        assert!(damaged.is_empty());
        let (done, cut) = (record("c1", "u1", "10.0.0.5"), record("c2", "u2", "10.0.0.6"));
        for r in [&done, &cut] {
            first.begin(r.clone()).unwrap();
        }
        first.finish(&done.attachment, &CniResult::default()).unwrap().unwrap().sync().unwrap();
        assert_eq!(first.snapshot().attachments.len(), 2, "what is being made belongs to the picture");

        let (second, _) = Attachments::load(journal).unwrap();
        assert_eq!(stages(&second), [Stage::Live, Stage::Interrupted]);
        let snapshot = second.snapshot();
        let kept: Vec<_> = snapshot.attachments.values().collect();
        assert_eq!(kept, [&attachment(&done).unwrap()]);
        assert_eq!(second.pods(), ["u1".to_owned(), "u2".to_owned()].into());
    }

    #[test]
    fn every_change_is_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let (all, _) = Attachments::load(Journal::below(dir.path())).unwrap();
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
    fn damaged_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(dir.path());
        let r = record("c1", "u1", "10.0.0.5");
        journal.attachments.put(&r).unwrap();
        let file = std::fs::read_dir(journal.attachments.dir()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&file, "torn").unwrap();
        let (all, damaged) = Attachments::load(journal).unwrap();
        assert!(all.all().is_empty());
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].attachment.as_ref(), Some(&r.attachment));
    }
}
