//! What an ADD waits for: the pod, its addresses, and the Network on this node.

use std::sync::Arc;
use std::time::Duration;

use braid_meta_core::{CniError, ErrorCode, PodRef};
use braid_types::model::InstanceDef;
use tokio::time::Instant;

use crate::client::RequestError;
use crate::index::{Grant, Index};
use crate::store::Store;

/// The interface for which the controller grants addresses to a pod, whatever it is called in the pod.
pub(crate) const DEFAULT_INTERFACE: &str = "eth0";
/// How long the watch may lag behind the runtime before the API server is asked for the pod.
const WATCH_LAG: Duration = Duration::from_secs(1);

/// Asks the API server for a pod past the cache.
pub(crate) trait PodLookup: Send + Sync + 'static {
    /// The uids by which the pod of that name is known, the API's own first; `None` when there is none.
    fn look_up(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<Vec<String>>, RequestError>> + Send;
}

/// What an ADD may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Uid of the pod in the API.
    pub(crate) pod_uid: String,
    /// The addresses, IPv4 first; never empty.
    pub(crate) instances: Vec<InstanceDef>,
    /// MTU of the interface.
    pub(crate) mtu: u32,
}

/// How things stand for an ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Granted(Granted),
    /// All addresses are there, but the watch does not know the pod.
    Unconfirmed(Granted),
    Failed(CniError),
    /// Waiting for this, as a sentence's end.
    Wait(String),
    /// The watch does not know the pod.
    UnknownPod,
}

/// Waits until everything for the pod's interface is there.
///
/// # Errors
/// Code 11 when `deadline` passed (with what was waited for) or the controller refuses an address (with its
/// sentence); code 3 when the pod is gone.
pub(crate) async fn granted(
    store: &Store,
    lookup: &Arc<impl PodLookup>,
    pod: &PodRef,
    deadline: Instant,
) -> Result<Granted, CniError> {
    let mut changes = store.changes();
    let mut ask_at = Instant::now() + WATCH_LAG;
    loop {
        changes.mark_unchanged();
        let (waiting_for, ask) = match store.read(|index| judge(index, pod)) {
            Verdict::Granted(granted) => return Ok(granted),
            Verdict::Failed(error) => return Err(error),
            Verdict::Unconfirmed(granted) => {
                confirm(lookup, pod).await?;
                return Ok(granted);
            }
            Verdict::Wait(what) => (what, false),
            Verdict::UnknownPod => ("the API server to show the pod".to_owned(), true),
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(CniError::try_again(format!("gave up waiting for {waiting_for}")));
        }
        if ask && now >= ask_at {
            confirm(lookup, pod).await?;
            ask_at = Instant::now() + WATCH_LAG;
        }
        let until = if ask { deadline.min(ask_at) } else { deadline };
        // The sender lives in the store; a timeout means asking or giving up above.
        let _ = tokio::time::timeout_at(until, changes.changed()).await;
    }
}

/// An error when the API server says that there is no such pod; no error when it does not answer.
async fn confirm(lookup: &Arc<impl PodLookup>, pod: &PodRef) -> Result<(), CniError> {
    match lookup.look_up(&pod.namespace, &pod.name).await {
        Ok(None) => Err(gone(pod, "it does not exist (any more)")),
        Ok(Some(uids)) if !pod.uid.is_empty() && !uids.contains(&pod.uid) => {
            Err(gone(pod, "another pod has taken its name"))
        }
        Ok(Some(_)) | Err(_) => Ok(()),
    }
}

fn gone(pod: &PodRef, why: &str) -> CniError {
    CniError::new(ErrorCode::UNKNOWN_CONTAINER, format!("pod {pod} gets no interface: {why}"))
}

fn judge(index: &Index, pod: &PodRef) -> Verdict {
    let runtime_uid = (!pod.uid.is_empty()).then_some(pod.uid.as_str());
    let Some(known) = index.pod(&pod.namespace, &pod.name, runtime_uid) else {
        return match usable(index, &pod.uid) {
            Ok(granted) => Verdict::Unconfirmed(granted),
            Err(_) => Verdict::UnknownPod,
        };
    };
    if known.finished || known.terminating {
        let why = if known.finished { "it is finished" } else { "it is being deleted" };
        return Verdict::Failed(gone(pod, why));
    }
    match usable(index, &known.uid) {
        Ok(granted) => Verdict::Granted(granted),
        // Looked at after the addresses: an old refusal stays on the pod for a moment after the grant.
        Err(Lacking::Address) if known.refusal.is_some() => {
            let refusal = known.refusal.clone().unwrap_or_default();
            Verdict::Failed(CniError::try_again(refusal.message).with_details(refusal.reason))
        }
        Err(Lacking::Address) => Verdict::Wait(format!("the controller to grant addresses to pod {pod}")),
        Err(Lacking::Rest(what)) => Verdict::Wait(what),
    }
}

enum Lacking {
    /// No address at all.
    Address,
    /// Something else, as a sentence's end.
    Rest(String),
}

fn usable(index: &Index, pod_uid: &str) -> Result<Granted, Lacking> {
    let instances = match index.grant(pod_uid, DEFAULT_INTERFACE) {
        Grant::Complete(instances) => instances,
        Grant::Partial { missing } => {
            return Err(Lacking::Rest(format!("address {missing}, which was granted along with others")));
        }
        Grant::Nothing => return Err(Lacking::Address),
    };
    let Some(first) = instances.first() else { return Err(Lacking::Address) };
    let network = &first.network;
    let mtu = match index.local.get(network.as_str()) {
        Some(local) => local
            .usable_mtu(instances.iter().map(|d| d.name.address()))
            .ok_or_else(|| Lacking::Rest(format!("Network `{network}` on this node: {}", local.message)))?,
        None => return Err(Lacking::Rest(format!("Network `{network}` to be set up on this node"))),
    };
    Ok(Granted { pod_uid: pod_uid.to_owned(), instances, mtu })
}

#[cfg(test)]
#[path = "wait_tests.rs"]
mod tests;
