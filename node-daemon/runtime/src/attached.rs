//! Telling the cluster which addresses are in use: `attachedAt` and `sandbox` of the node's IPInstances.
//!
//! The controller frees a set of addresses that is not attached when a pod has two, so this must be true in the end,
//! whatever is lost on the way: it follows from journal and watch, not from the ADD.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use braid_api::IPInstance;
use braid_api::parse::time;
use braid_informer::InSync;
use braid_types::model::{Phase, UnixSeconds};
use braid_types::well_known::NODE_MANAGER;
use futures::{StreamExt, stream};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::attachments::{Attachments, Entry};
use crate::client::limited;
use crate::index::Index;
use crate::metrics::Metrics;
use crate::plumbing::chain;
use crate::release::now;
use crate::store::Store;

/// Changes that come together are looked at together.
const QUIET: Duration = Duration::from_millis(20);
/// Writes at the same time.
const PARALLEL: usize = 16;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// An address in use of which its object does not say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsaid {
    /// Name of the object.
    pub(crate) name: String,
    /// Uid of the object.
    pub(crate) uid: String,
    /// Version of the object.
    pub(crate) resource_version: String,
    /// The container that has the address.
    pub(crate) sandbox: String,
}

/// The addresses of interfaces that exist whose objects do not name them.
pub(crate) fn unsaid(index: &Index, entries: &[Entry]) -> Vec<Unsaid> {
    // A pod whose sandbox is made anew may have two for a moment: the newer one counts.
    let mut newest: BTreeMap<(String, std::net::IpAddr), &Entry> = BTreeMap::new();
    for entry in entries.iter().filter(|e| e.exists()) {
        let addresses = entry.record.grant.iter().flat_map(|g| &g.addresses);
        for address in addresses {
            let known = newest.entry((entry.pod_uid().to_owned(), *address)).or_insert(entry);
            if known.record.started_at < entry.record.started_at {
                *known = entry;
            }
        }
    }
    let mut all = Vec::new();
    for held in index.held_by_pods() {
        let Some(pod) = &held.def.pod else { continue };
        let Some(entry) = newest.get(&(pod.uid.to_string(), held.def.name.address())) else { continue };
        let sandbox = entry.record.attachment.container_id.as_str();
        let said = held.attached && held.sandbox.as_deref() == Some(sandbox);
        if said || held.def.phase != Phase::Bound || held.def.deleting {
            continue;
        }
        all.push(Unsaid {
            name: held.def.name.to_string(),
            uid: held.def.uid.to_string(),
            resource_version: held.resource_version.clone(),
            sandbox: sandbox.to_owned(),
        });
    }
    all
}

/// Writes it down.
pub(crate) struct Sayer {
    pub(crate) client: Client,
    pub(crate) store: Arc<Store>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Sayer {
    /// Runs until `stop`. The proof is needed because an empty cache has no addresses.
    pub(crate) async fn run(self, _proof: InSync, stop: CancellationToken) {
        // Versions of objects that were written already: the watch lags behind.
        let mut written: BTreeMap<String, String> = BTreeMap::new();
        let mut retry = FIRST_RETRY;
        let (mut cluster, mut node) = (self.store.changes(), self.attachments.changes());
        loop {
            cluster.mark_unchanged();
            node.mark_unchanged();
            let mut found = self.store.read(|index| unsaid(index, &self.attachments.all()));
            written.retain(|name, version| {
                found.iter().any(|u| u.name == *name && u.resource_version == *version)
            });
            found.retain(|u| !written.contains_key(&u.name));
            let done: Vec<Option<Unsaid>> =
                stream::iter(found).map(|u| self.say(u)).buffer_unordered(PARALLEL).collect().await;
            let failed = done.iter().any(Option::is_none);
            written.extend(done.into_iter().flatten().map(|u| (u.name, u.resource_version)));
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
                _ = cluster.changed() => {}
                _ = node.changed() => {}
            }
            // The answer to the runtime goes first.
            tokio::time::sleep(QUIET).await;
        }
    }

    /// What was settled; `None` when it has to be tried again.
    async fn say(&self, unsaid: Unsaid) -> Option<Unsaid> {
        let api: Api<IPInstance> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(NODE_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(attached_patch(&unsaid, now()));
        match limited(api.patch_status(&unsaid.name, &params, &patch)).await {
            Ok(_) => self.metrics.wrote("ok"),
            // Changed or gone meanwhile: the watch brings the new state, and it is judged again.
            Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => {
                self.metrics.wrote("conflict");
                debug!(address = unsaid.name, error = chain(&error), "attachedAt is judged again");
            }
            Err(error) => {
                self.metrics.wrote("error");
                warn!(
                    address = unsaid.name,
                    error = chain(&error),
                    "cannot say yet that an address is in use"
                );
                return None;
            }
        }
        Some(unsaid)
    }
}

/// Uid and version: by now the address may belong to another pod.
fn attached_patch(unsaid: &Unsaid, at: UnixSeconds) -> serde_json::Value {
    json!({
        "metadata": { "uid": unsaid.uid, "resourceVersion": unsaid.resource_version },
        "status": { "attachedAt": time(at), "sandbox": unsaid.sandbox },
    })
}

#[cfg(test)]
#[path = "attached_tests.rs"]
mod tests;
