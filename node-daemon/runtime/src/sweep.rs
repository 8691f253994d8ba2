//! The agent's own garbage collection: interfaces whose container is gone, and DELs that came while there was
//! no agent. Runtimes such as containerd never call GC.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use braid_informer::InSync;
use braid_journal::Trouble;
use braid_node_core::actual::SeenLink;
use braid_node_core::ours;
use braid_rpc::Del;
use braid_types::IfName;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attachments::{Entry, Stage, Unread, host_if, netns_exists};
use crate::cni::Cni;
use crate::cni::wait::PodLookup;
use crate::index::{Index, PodState};
use crate::plumbing::{Plumbing, chain};

/// How often everything is looked at.
const PERIOD: Duration = Duration::from_secs(600);
/// How soon again while something could not be removed.
const RETRY: Duration = Duration::from_secs(10);
/// Temporary files of the journal older than this were left by somebody who died.
const STALE: Duration = Duration::from_secs(60);

/// Devices by name.
pub(crate) type Links = BTreeMap<IfName, SeenLink>;

/// Whether a device is the host end of a pod's interface.
pub(crate) fn is_pods(name: &IfName, seen: &SeenLink) -> bool {
    seen.vxlan.is_none() && ours::link(name, seen)
}

/// Whether an interface has to be removed although nobody asked for it.
///
/// A missing namespace alone is no proof, because the agent may not see the runtime's mounts: either the device
/// is gone too, as it goes with its namespace, or the pod is over.
fn is_abandoned(entry: &Entry, netns_exists: bool, device_exists: bool, pod: PodState) -> bool {
    match entry.stage {
        Stage::Interrupted | Stage::Leaving => true,
        Stage::Live => !netns_exists && (!device_exists || pod == PodState::Over),
    }
}

/// What DELs without an agent left behind; needs no API server.
pub(crate) async fn pending_dels<P: Plumbing, L: PodLookup>(cni: &Cni<P, L>) {
    let journal = cni.attachments.journal();
    let listed = match journal.pending_dels.list() {
        Ok(listed) => listed,
        Err(error) => {
            warn!(error = chain(&error), "the list of pending DELs cannot be read");
            return;
        }
    };
    for pending in listed {
        let del = match (pending.entry, pending.attachment) {
            (Ok(del), _) => Some(del),
            // The name still says which interface has to go.
            (Err(_), Some(attachment)) => Some(Del {
                attachment,
                netns: None,
                pod: None,
                network: String::new(),
                config: String::new(),
            }),
            (Err(error), None) if error.trouble() == Trouble::Damaged => {
                warn!(error = chain(&error), "a pending DEL cannot be read and is dropped");
                None
            }
            (Err(error), None) => {
                warn!(error = chain(&error), "a pending DEL cannot be read yet and is kept");
                continue;
            }
        };
        if let Some(del) = del {
            info!(attachment = %del.attachment, "working off a DEL that came while there was no agent");
            let _turn = cni.turns.of(&del.attachment.container_id).await;
            cni.tear_down(&del).await;
        }
        if let Err(error) = journal.pending_dels.remove_file(&pending.path) {
            warn!(error = chain(&error), "a pending DEL cannot be removed");
        }
    }
}

/// Entries of the journal that cannot be read; whether there is none that may be read soon.
///
/// The interface of such an entry may be that of a running pod, so nothing is removed but what is left of an interface
/// whose device is gone, and only where the entry is lost: a loss of power, which damages files, takes devices along.
pub(crate) async fn unread<P: Plumbing, L: PodLookup>(cni: &Cni<P, L>, links: &Links) -> bool {
    let attachments = cni.attachments.clone();
    let known = tokio::task::spawn_blocking(move || {
        attachments.read_again();
        attachments.all()
    });
    let Ok(known) = known.await else { return false };
    let accounted: BTreeSet<IfName> = known.iter().map(|e| host_if(&e.record.attachment)).collect();
    let mut strange = links.iter().filter(|(n, l)| is_pods(n, l) && !accounted.contains(*n)).map(|(n, _)| n);
    let any_strange = strange.next().is_some();
    let mut clean = true;
    for file in cni.attachments.unread() {
        let has_device = file.host_if().map_or(any_strange, |name| links.contains_key(&name));
        cni.attachments.saw_device(&file.path, has_device);
        clean &= file.trouble != Trouble::Unreadable;
        if file.trouble == Trouble::Damaged && !has_device {
            forget_damaged(cni, &file).await;
        }
    }
    cni.metrics.unread(cni.attachments.unread().len());
    clean
}

async fn forget_damaged<P: Plumbing, L: PodLookup>(cni: &Cni<P, L>, file: &Unread) {
    warn!(error = file.why, "a damaged file of the journal is removed, its interface is gone");
    if let Some(id) = &file.attachment {
        let _turn = cni.turns.of(&id.container_id).await;
        if let Err(error) = cni.remove(id).await {
            warn!(attachment = %id, %error, "what is left of an interface cannot be removed");
            return;
        }
    }
    if let Err(error) = cni.attachments.forget_unread(&file.path) {
        warn!(error = chain(&error), "a file of the journal cannot be removed");
    }
}

/// Sweeps every ten minutes until `stop`, and soon again after one that was not `clean`.
pub(crate) async fn run<P: Plumbing, L: PodLookup>(
    cni: Arc<Cni<P, L>>,
    mut clean: bool,
    proof: InSync,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if clean { PERIOD } else { RETRY }) => {}
            () = cni.leftovers.notified() => {}
        }
        clean = once(&cni, proof).await;
    }
}

/// One sweep; whether everything could be removed that had to be. The proof is needed because an empty cache
/// looks like a cluster without pods.
pub(crate) async fn once<P: Plumbing, L: PodLookup>(cni: &Cni<P, L>, _proof: InSync) -> bool {
    if let Err(error) = cni.attachments.journal().attachments.sweep(STALE, SystemTime::now()) {
        warn!(error = chain(&error), "temporary files of the journal cannot be removed");
    }
    pending_dels(cni).await;
    let plumbing = cni.plumbing.clone();
    let dump = crate::reconcile::blocking(move || plumbing.links()).await;
    let links = match dump {
        Ok(actual) => actual.links,
        Err(error) => {
            warn!(%error, "cannot look for abandoned interfaces");
            return false;
        }
    };
    let mut clean = unread(cni, &links).await;
    for entry in cni.attachments.all() {
        let id = &entry.record.attachment;
        let device_exists = links.contains_key(&host_if(id));
        let netns_exists = netns_exists(&entry.record);
        let pod = cni.store.read(|index| state(index, &entry));
        if !is_abandoned(&entry, netns_exists, device_exists, pod) {
            continue;
        }
        let _turn = cni.turns.of(&id.container_id).await;
        // A request that was before us in the queue may have settled it.
        if cni.attachments.get(id).as_ref() != Some(&entry) {
            continue;
        }
        info!(attachment = %id, "removing an interface whose container is gone");
        match cni.remove(id).await {
            Ok(()) => cni.torn_down.tell(entry.pod_uid()),
            Err(error) => {
                warn!(attachment = %id, %error, "an abandoned interface cannot be removed yet");
                clean = false;
            }
        }
    }
    clean
}

fn state(index: &Index, entry: &Entry) -> PodState {
    index.pod_state(&entry.record.pod.namespace, &entry.record.pod.name, entry.pod_uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_journal::Journal;

    use crate::attachments::tests::record;
    use crate::cni::service::tests::{Server, server};

    #[test]
    fn only_what_is_certainly_gone_is_abandoned() {
        let entry = |stage| Entry { record: record("c1", "u1", "10.0.0.5"), stage };
        let (live, cut) = (entry(Stage::Live), entry(Stage::Interrupted));
        let judge = |netns, device, pod| is_abandoned(&live, netns, device, pod);
        assert!(judge(false, false, PodState::Alive), "after a reboot");
        assert!(judge(false, true, PodState::Over));
        assert!(!judge(false, true, PodState::Alive), "the agent may not see the mounts");
        assert!(!judge(true, true, PodState::Over), "its DEL will come");
        assert!(!judge(true, false, PodState::Alive), "somebody deleted the device, the loop makes it again");
        assert!(is_abandoned(&cut, true, true, PodState::Alive), "the runtime has given that sandbox up");
    }

    /// An agent that finds this in its journal, with or without the device of that entry.
    async fn rig(content: impl Fn(&str) -> String, with_device: bool) -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(dir.path());
        let r = record("c1", "u1", "10.0.0.5");
        journal.attachments.put(&r).unwrap();
        let file = std::fs::read_dir(journal.attachments.dir()).unwrap().next().unwrap().unwrap().path();
        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, content(&good)).unwrap();
        let server = server(dir.path()).await;
        if with_device {
            server.plumbing.devices.lock().insert(host_if(&r.attachment));
        }
        (dir, server)
    }

    #[tokio::test]
    async fn an_unreadable_entry_costs_no_running_pod_its_interface() {
        let newer = |good: &str| good.replacen("attachment 1", "attachment 9", 1);
        let torn = |good: &str| good[..good.len() / 2].to_owned();
        let proof = braid_informer::Informers::default().in_sync().await;
        for (whole, with_device, files) in
            [(true, true, 1), (true, false, 1), (false, true, 1), (false, false, 0)]
        {
            let content = |good: &str| if whole { newer(good) } else { torn(good) };
            let (_dir, cni) = rig(content, with_device).await;
            once(&cni, proof).await;
            assert_eq!(cni.plumbing.devices.lock().len(), usize::from(with_device));
            assert_eq!(cni.attachments.journal().attachments.list().unwrap().len(), files);
            assert_eq!(cni.attachments.may_hide_some(), with_device);
        }
    }
}
