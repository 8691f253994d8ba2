//! Single questions and small writes to the API server that no cache answers.

use std::sync::Arc;
use std::time::Duration;

use braid_api::IPInstance;
use braid_api::parse::time;
use braid_api::slim::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tracing::debug;

use crate::client::{RequestError, limited};
use crate::cni::Attached;
use crate::cni::wait::PodLookup;
use crate::metrics::Metrics;
use crate::plumbing::chain;
use crate::release::now;
use crate::watches::MIRROR;

/// Longest time for asking while an ADD waits.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// Writes about new interfaces at the same time.
const PARALLEL: usize = 16;

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct ApiLookup {
    pub(crate) client: Client,
}

impl PodLookup for ApiLookup {
    async fn look_up(&self, namespace: &str, name: &str) -> Result<Option<Vec<String>>, RequestError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let answer = tokio::time::timeout(ASK_LIMIT, api.get_opt(name)).await;
        let pod = answer.map_err(|_| RequestError::Timeout)??;
        Ok(pod.map(uids))
    }
}

fn uids(pod: Pod) -> Vec<String> {
    // A pod that is over counts as gone: nothing will run in it any more.
    if pod.is_finished() {
        return Vec::new();
    }
    let mirror = pod.metadata.annotations.and_then(|mut all| all.remove(MIRROR));
    pod.metadata.uid.into_iter().chain(mirror).collect()
}

/// Writes onto IPInstances when and where they came into use. For people: one that is lost is not repeated.
pub(crate) async fn note_attachments(
    client: Client,
    metrics: Arc<Metrics>,
    mut attached: mpsc::UnboundedReceiver<Attached>,
) {
    let free = Arc::new(Semaphore::new(PARALLEL));
    while let Some(Attached { instances, container_id }) = attached.recv().await {
        let at = time(now());
        for (name, uid) in instances {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            let api: Api<IPInstance> = Api::all(client.clone());
            // The uid: by now the address may belong to another pod.
            let patch = json!({ "metadata": { "uid": uid }, "status": { "attachedAt": at, "sandbox": container_id } });
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let params = PatchParams::default();
                match limited(api.patch_status(&name, &params, &Patch::Merge(patch))).await {
                    Ok(_) => metrics.wrote("ok"),
                    Err(error) => {
                        metrics.wrote("error");
                        debug!(address = name, error = chain(&error), "attachedAt was not written");
                    }
                }
            });
        }
    }
}
