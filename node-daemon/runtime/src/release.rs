//! Giving addresses back: telling the controller that an interface is gone for good.
//!
//! Works from the state, not from events: what could not be told while the API server was away, or before
//! the agent was restarted, is found again by looking at which addresses are bound to pods that have no
//! interface here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use braid_api::IPInstance;
use braid_informer::InSync;
use braid_types::model::{Phase, PodRef, UnixSeconds};
use braid_types::well_known::NODE_MANAGER;
use futures::{StreamExt, stream};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attachments::Attachments;
use crate::client::{RequestError, limited};
use crate::cni::wait::PodLookup;
use crate::index::{Held, Index, PodState};
use crate::metrics::Metrics;
use crate::store::Store;

/// Changes that come together are looked at together.
const QUIET: Duration = Duration::from_millis(20);
/// Writes at the same time.
const PARALLEL: usize = 16;
/// How long a pod that the API server has and the watch does not is left alone.
const KNOWN_ALIVE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// An address to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    /// Name of the object.
    pub(crate) name: String,
    /// Uid of the object.
    pub(crate) uid: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// The pod.
    pub(crate) pod: PodRef,
    /// What it is to the address.
    pub(crate) part: Part,
    /// The watch does not show the pod. As it may lag behind the one of the addresses, the API server is asked.
    pub(crate) confirm: bool,
}

/// What a pod is to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// The holder.
    Holder {
        /// Version of the object.
        resource_version: String,
        /// Whether the object says that the address was on an interface.
        attached: bool,
    },
    /// The second pod of a machine that migrates.
    Second,
}

/// The addresses to give back: bound to a pod of this `node` that has no interface here and will get none, or shared with
/// such a pod.
///
/// `attached` are the pods with an interface, however far it is; `torn_down` are those whose interface was
/// torn down by a DEL.
pub(crate) fn due(
    index: &Index,
    node: &str,
    attached: &BTreeSet<String>,
    torn_down: &BTreeSet<String>,
) -> Vec<Due> {
    let mut all = Vec::new();
    let held = index.held_by_pods().filter_map(|Held { def, resource_version, attached, .. }| {
        let settled = def.phase != Phase::Bound || def.torn_down.is_some() || def.deleting;
        let part = Part::Holder { resource_version: resource_version.clone(), attached: *attached };
        def.pod.as_ref().filter(|_| !settled).map(|pod| (def, pod, part))
    });
    let shared = index.second_here(node).filter(|(_, second)| !second.torn_down);
    let shared = shared.map(|(def, second)| (def, &second.pod, Part::Second));
    let without = |uid: &str| !attached.contains(uid);
    for (def, pod, part) in held.chain(shared).filter(|(_, pod, _)| without(&pod.uid)) {
        let known = index.pod(&pod.namespace, &pod.name, Some(&pod.uid)).is_some();
        match index.pod_state(&pod.namespace, &pod.name, &pod.uid) {
            PodState::Over => {}
            // It may still be about to get its interface; only after a DEL it is not.
            PodState::Terminating if torn_down.contains(pod.uid.as_str()) => {}
            PodState::Terminating | PodState::Alive => continue,
        }
        all.push(Due {
            name: def.name.to_string(),
            uid: def.uid.to_string(),
            address: def.name.address(),
            pod: pod.clone(),
            part,
            confirm: !known,
        });
    }
    all
}

/// What can be given back while there are interfaces that nobody can name: one of them may be that of any pod, and only
/// a DEL tells that a pod has none.
fn only_torn_down(mut found: Vec<Due>, torn_down: &BTreeSet<String>) -> Vec<Due> {
    found.retain(|due| torn_down.contains(due.pod.uid.as_str()));
    found
}

/// Where DEL leaves word.
#[derive(Debug, Default)]
pub(crate) struct TornDown {
    pods: Mutex<BTreeSet<String>>,
    told: Notify,
}

impl TornDown {
    /// The interface of the pod with this uid (the API's) was torn down.
    pub(crate) fn tell(&self, pod_uid: &str) {
        self.pods.lock().insert(pod_uid.to_owned());
        self.told.notify_one();
    }
}

/// Gives addresses back.
pub(crate) struct Releaser<L> {
    pub(crate) client: Client,
    /// Name of this node.
    pub(crate) node: String,
    pub(crate) store: Arc<Store>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) torn_down: Arc<TornDown>,
    pub(crate) lookup: Arc<L>,
    pub(crate) metrics: Arc<Metrics>,
}

impl<L: PodLookup> Releaser<L> {
    /// Runs until `stop`. The proof is needed because an empty cache looks like a cluster without pods.
    pub(crate) async fn run(self, _proof: InSync, stop: CancellationToken) {
        let mut alive: BTreeMap<String, Instant> = BTreeMap::new();
        let mut retry = FIRST_RETRY;
        let (mut changes, mut node) = (self.store.changes(), self.attachments.changes());
        loop {
            changes.mark_unchanged();
            node.mark_unchanged();
            alive.retain(|_, until| *until > Instant::now());
            let found = self.find(&alive);
            let outcomes: Vec<Outcome> =
                stream::iter(found).map(|due| self.give_back(due)).buffer_unordered(PARALLEL).collect().await;
            let mut failed = false;
            for outcome in outcomes {
                match outcome {
                    Outcome::Settled => {}
                    Outcome::Alive(uid) => {
                        alive.insert(uid, Instant::now() + KNOWN_ALIVE);
                    }
                    Outcome::Failed => failed = true,
                }
            }
            let again = alive.values().min().copied();
            if failed {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(retry) => {}
                }
                retry = (retry * 2).min(LAST_RETRY);
                continue;
            }
            retry = FIRST_RETRY;
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => {}
                _ = node.changed() => {}
                () = self.torn_down.told.notified() => {}
                () = sleep_until(again) => {}
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    fn find(&self, alive: &BTreeMap<String, Instant>) -> Vec<Due> {
        // Attachments before the index: an ADD that ends between the two is seen by one of them.
        let (attached, may_hide_some) = (self.attachments.pods(), self.attachments.may_hide_some());
        let mut torn_down = self.torn_down.pods.lock();
        self.store.read(|index| {
            let is_open = |uid: &str| {
                let second = || index.second_here(&self.node).any(|(_, s)| s.pod.uid == *uid && !s.torn_down);
                index.held_by(uid).any(|h| h.def.phase == Phase::Bound) || second()
            };
            torn_down.retain(|uid| is_open(uid));
            self.attachments.forget_had(|uid| !is_open(uid));
            let mut found = due(index, &self.node, &attached, &torn_down);
            found.retain(|d| !(d.confirm && alive.contains_key(d.pod.uid.as_str())));
            if may_hide_some { only_torn_down(found, &torn_down) } else { found }
        })
    }

    async fn give_back(&self, due: Due) -> Outcome {
        if due.confirm {
            match self.lookup.look_up(&due.pod.namespace, &due.pod.name).await {
                Ok(Some(uids)) if uids.iter().any(|uid| due.pod.uid == *uid) => {
                    return Outcome::Alive(due.pod.uid.to_string());
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(pod = %due.pod.name, %error, "cannot ask whether a pod still exists");
                    return Outcome::Failed;
                }
            }
        }
        // An ADD that has begun since: it is judged again when that has ended.
        if !self.attachments.let_go(&due.pod.uid) {
            return Outcome::Settled;
        }
        match self.confirm_torn_down(&due).await {
            Ok(()) => {
                self.metrics.wrote("ok");
                info!(
                    address = due.name,
                    namespace = %due.pod.namespace,
                    pod = %due.pod.name,
                    "address given back"
                );
                Outcome::Settled
            }
            // Changed or gone meanwhile: the watch brings the new state, and it is judged again.
            Err(error) if is_overtaken(error.code(), &due.part) => {
                self.metrics.wrote("conflict");
                Outcome::Settled
            }
            Err(error) => {
                self.metrics.wrote("error");
                warn!(address = due.name, %error, "cannot give an address back yet");
                Outcome::Failed
            }
        }
    }

    async fn confirm_torn_down(&self, due: &Due) -> Result<(), RequestError> {
        let api: Api<IPInstance> = Api::all(self.client.clone());
        let patch = torn_down_patch(due, self.attachments.had(&due.pod.uid, due.address), now());
        let params = PatchParams { field_manager: Some(NODE_MANAGER.to_owned()), ..PatchParams::default() };
        limited(api.patch_status(&due.name, &params, &Patch::Merge(patch))).await.map(drop)
    }
}

/// Whether an answer of the API server says that the address is no longer as it was seen. Of a second pod the node may write
/// as long as the object names it; afterwards that is forbidden.
fn is_overtaken(code: Option<u16>, part: &Part) -> bool {
    match code {
        Some(404 | 409 | 422) => true,
        Some(403) => matches!(part, Part::Second),
        _ => false,
    }
}

enum Outcome {
    /// Written, or there is nothing to write any more.
    Settled,
    /// The pod with this uid exists.
    Alive(String),
    Failed,
}

/// Uid and version make the API server refuse when the object is another one or has changed since. What is said of a second
/// pod is true for ever: it names the pod.
///
/// `had` is since when the interface had the address. It tells the address that the pod has used where two leaders gave it
/// two, so it must not get lost with a pod that did not live long enough for it to be said before.
fn torn_down_patch(due: &Due, had: Option<UnixSeconds>, at: UnixSeconds) -> serde_json::Value {
    let Part::Holder { resource_version, attached } = &due.part else {
        return json!({ "metadata": { "uid": due.uid }, "status": { "secondTornDown": due.pod.uid } });
    };
    let mut patch = json!({
        "metadata": { "uid": due.uid, "resourceVersion": resource_version },
        "status": { "phase": "Releasing", "reason": "TornDown", "tornDownAt": braid_api::parse::time(at) },
    });
    if let Some(had) = had.filter(|_| !attached) {
        patch["status"]["attachedAt"] = json!(braid_api::parse::time(had));
    }
    patch
}

/// The time of day in seconds since the epoch.
pub(crate) fn now() -> UnixSeconds {
    jiff::Timestamp::now().as_second()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
