//! What the API server is told about this node: its NodeNetwork, the Node's condition, events.

use std::collections::BTreeSet;
use std::sync::Arc;

use braid_api::condition::{self, READY, Says, shortened};
use braid_api::parse::time;
use braid_api::{NodeNetwork, NodeNetworkEntry, NodeNetworkSpec, NodeNetworkStatus, Vtep};
use braid_informer::Backoff;
use braid_types::model::{NodeDef, UnixSeconds};
use braid_types::well_known::NODE_MANAGER;
use braid_types::well_known::condition::{BRAID_NOT_READY, BRAID_READY, NETWORK_UNAVAILABLE};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::{RequestError, limited};
use crate::index::{LocalNetwork, OwnNode, WAITING_FOR_ADDRESS};
use crate::metrics::Metrics;
use crate::plumbing::chain;
use crate::reconcile::Report;
use crate::release::now;
use crate::store::Store;

/// Most failures that one NodeNetwork and one event name: the rest is in the log.
const NAMED: usize = 5;

/// Tells the API server.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) store: Arc<Store>,
    pub(crate) reports: watch::Receiver<Option<Report>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What was published last.
#[derive(Default)]
struct Published {
    /// The status without the times of its conditions.
    status: Option<NodeNetworkStatus>,
    conditions: Vec<Condition>,
    /// What the watch showed when it was written. As long as it shows that still, it only lags behind.
    shown_then: Option<Option<NodeDef>>,
    /// The same of the Node's condition.
    condition_then: Option<Option<bool>>,
    /// Sentences for which there were events.
    told: BTreeSet<String>,
}

impl Publisher {
    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let reporter = Reporter { controller: NODE_MANAGER.to_owned(), instance: Some(self.node.clone()) };
        let recorder = Recorder::new(self.client.clone(), reporter);
        let mut published = Published::default();
        let mut changes = self.store.changes();
        let mut backoff = Backoff::default();
        loop {
            changes.mark_unchanged();
            let report = self.reports.borrow_and_update().clone();
            let done = match &report {
                Some(report) => self.publish(report, &mut published, &recorder).await,
                None => Ok(()),
            };
            match done {
                Ok(()) => {
                    backoff.reset();
                    tokio::select! {
                        () = stop.cancelled() => return,
                        changed = self.reports.changed() => if changed.is_err() { return },
                        _ = changes.changed() => {}
                    }
                }
                Err(error) => {
                    self.metrics.wrote("error");
                    warn!(error = chain(&error), "cannot tell the API server about this node yet");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(backoff.delay()) => {}
                    }
                }
            }
        }
    }

    async fn publish(
        &self,
        report: &Report,
        published: &mut Published,
        recorder: &Recorder,
    ) -> Result<(), RequestError> {
        let (node, shown) = self
            .store
            .read(|index| (index.node.get(&self.node).cloned(), index.nodes.get(&self.node).cloned()));
        // Without the Node object there is nobody to own what is written.
        let Some(node) = node else { return Ok(()) };
        self.write_node_network(report, published, &node, shown.as_ref()).await?;
        match unavailable(report.waiting_for.is_none(), node.network_unavailable) {
            None => published.condition_then = None,
            Some(_) if published.condition_then == Some(node.network_unavailable) => {}
            Some(unavailable) => {
                self.write_condition(unavailable, report.waiting_for.as_deref()).await?;
                published.condition_then = Some(node.network_unavailable);
            }
        }
        self.write_events(report, published, recorder, &node).await;
        Ok(())
    }

    async fn write_node_network(
        &self,
        report: &Report,
        published: &mut Published,
        node: &OwnNode,
        shown: Option<&NodeDef>,
    ) -> Result<(), RequestError> {
        let status = status(report);
        let mine = parsed(&self.node, &status);
        let same = published.status.as_ref() == Some(&status);
        if same && shown.is_some() && shown == mine.as_ref() {
            published.shown_then = None;
            return Ok(());
        }
        // What others see counts: somebody may have changed or removed the object.
        if same && published.shown_then.as_ref().is_some_and(|then| then.as_ref() == shown) {
            return Ok(());
        }
        condition::set(&mut published.conditions, ready(report), None, &time(now()));
        let full = NodeNetworkStatus { conditions: published.conditions.clone(), ..status.clone() };
        let api: Api<NodeNetwork> = Api::all(self.client.clone());
        let params = PatchParams::apply(NODE_MANAGER).force();
        if shown.is_none() {
            let object = Patch::Apply(object(&node.name, &node.uid));
            limited(api.patch(&self.node, &params, &object)).await?;
        }
        let written =
            limited(api.patch_status(&self.node, &params, &Patch::Apply(applied(&self.node, &full)))).await;
        if written.as_ref().is_err_and(|e| e.code() == Some(404)) {
            let object = Patch::Apply(object(&node.name, &node.uid));
            limited(api.patch(&self.node, &params, &object)).await?;
            limited(api.patch_status(&self.node, &params, &Patch::Apply(applied(&self.node, &full)))).await?;
        } else {
            written?;
        }
        self.metrics.wrote("ok");
        info!(networks = full.networks.len(), ready = report.waiting_for.is_none(), "NodeNetwork published");
        published.status = Some(status);
        published.shown_then = Some(shown.cloned());
        Ok(())
    }

    async fn write_condition(&self, unavailable: bool, why: Option<&str>) -> Result<(), RequestError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(node_condition(unavailable, why, now()));
        let params = PatchParams { field_manager: Some(NODE_MANAGER.to_owned()), ..PatchParams::default() };
        limited(api.patch_status(&self.node, &params, &patch)).await?;
        self.metrics.wrote("ok");
        info!(unavailable, "condition NetworkUnavailable of the Node set");
        Ok(())
    }

    /// Events are for people; one that is lost is not worth a second try.
    async fn write_events(
        &self,
        report: &Report,
        published: &mut Published,
        recorder: &Recorder,
        node: &OwnNode,
    ) {
        let now = sentences(report);
        let new: Vec<(String, String)> =
            now.iter().filter(|(_, text)| !published.told.contains(text)).take(NAMED).cloned().collect();
        published.told = now.into_iter().map(|(_, text)| text).collect();
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.name.clone()),
            uid: Some(node.uid.clone()),
            ..ObjectReference::default()
        };
        for (reason, text) in new {
            let event = Event {
                type_: EventType::Warning,
                reason,
                note: Some(shortened(&text)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = limited(recorder.publish(&event, &about)).await {
                warn!(error = chain(&error), "an event was lost");
            }
        }
    }
}

/// What to set the Node's condition to, if anything.
///
/// A node that was available stays so while its agent restarts: its pods' traffic flows on.
fn unavailable(ready: bool, shown: Option<bool>) -> Option<bool> {
    match (ready, shown) {
        (true, Some(false)) | (false, Some(_)) => None,
        (true, _) => Some(false),
        (false, None) => Some(true),
    }
}

fn node_condition(unavailable: bool, why: Option<&str>, at: UnixSeconds) -> Value {
    let message = why.unwrap_or("pods of this node are connected by Braid");
    json!({ "status": { "conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": if unavailable { "True" } else { "False" },
        "reason": if unavailable { BRAID_NOT_READY } else { BRAID_READY },
        "message": message,
        "lastHeartbeatTime": time(at),
        "lastTransitionTime": time(at),
    }] } })
}

fn ready(report: &Report) -> Says {
    let says = |status, reason: &str, message: String| Says {
        kind: READY,
        status,
        reason: reason.to_owned(),
        message: shortened(&message),
    };
    match &report.waiting_for {
        Some(why) => says(false, "NotReady", why.clone()),
        None if report.failures.is_empty() => says(true, "Ready", "pods can be attached".to_owned()),
        None => {
            let named: Vec<_> = report.failures.iter().take(NAMED).map(String::as_str).collect();
            says(true, "KernelFailures", named.join("; "))
        }
    }
}

fn status(report: &Report) -> NodeNetworkStatus {
    NodeNetworkStatus {
        // Here only to notice a change; times are added when it is written.
        conditions: vec![Condition {
            type_: READY.to_owned(),
            status: report.waiting_for.is_none().to_string(),
            reason: ready(report).reason,
            message: ready(report).message,
            observed_generation: None,
            last_transition_time: time(0),
        }],
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        networks: report.networks.iter().map(|(name, network)| entry(name, network)).collect(),
        bgp: Vec::new(),
    }
}

fn entry(name: &str, network: &LocalNetwork) -> NodeNetworkEntry {
    NodeNetworkEntry {
        name: name.to_owned(),
        ready: network.ready,
        reason: Some(network.reason.clone()),
        message: Some(shortened(&network.message)),
        parent: network.parent.as_ref().map(ToString::to_string),
        device: network.device.as_ref().map(ToString::to_string),
        mtu: network.mtu,
        vtep: network.vtep.as_ref().map(Vtep::from),
    }
}

/// The status as other nodes read it.
fn parsed(node: &str, status: &NodeNetworkStatus) -> Option<NodeDef> {
    let mut object = NodeNetwork::new(node, NodeNetworkSpec {});
    object.status = Some(status.clone());
    NodeDef::try_from(&object).ok()
}

/// The object without status. It goes when its Node goes.
fn object(node: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "braid.network/v1",
        "kind": "NodeNetwork",
        "metadata": {
            "name": node,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }],
        },
    })
}

fn applied(node: &str, status: &NodeNetworkStatus) -> Value {
    json!({
        "apiVersion": "braid.network/v1",
        "kind": "NodeNetwork",
        "metadata": { "name": node },
        "status": status,
    })
}

/// What people should hear about, as (reason, sentence).
fn sentences(report: &Report) -> Vec<(String, String)> {
    let unready = report.networks.iter().filter(|(_, n)| !n.ready && n.reason != WAITING_FOR_ADDRESS);
    let failed = report.failures.iter().map(|text| ("KernelFailure".to_owned(), text.clone()));
    unready
        .map(|(name, n)| {
            (n.reason.clone(), format!("Network `{name}` is not ready on this node: {}", n.message))
        })
        .chain(failed)
        .collect()
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
