//! The webhooks, answered from the state in memory: what only several objects together can show, and pods and
//! workloads that would get no address.

mod affinity;
mod certificate;
mod custody;
pub(crate) mod keeper;
mod namespaces;
mod pods;
mod scale;
pub(crate) mod tls;
mod workloads;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use braid_api::{IPBlock, IPInstance, Network, Subnet};
use braid_controller_core::Choice;
use braid_controller_core::admission::Namespace;
use braid_controller_core::verdict::{Change, verdict, warning};
use braid_types::model::{BlockDef, InstanceDef, NetworkDef, SubnetDef};
use json_patch::Patch;
use kube::Client;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::de::DeserializeOwned;
use tracing::{debug, error, info};

use crate::metrics::{Metrics, ReasonLabel};
use crate::world::{Shared, World};

/// Largest request: an object is at most 1.5 MB in etcd, and an update carries two.
const LARGEST: usize = 4 << 20;

/// What is said to something that may come in.
#[derive(Debug, Clone, Default, PartialEq)]
struct Allowed {
    /// What is changed about it.
    patch: Patch,
    /// Sentences that kubectl shows.
    warnings: Vec<String>,
}

/// What the webhook decides with.
#[derive(Clone)]
pub(crate) struct Webhook {
    shared: Arc<Shared>,
    /// For what is not in memory: the workload behind a `/scale`.
    client: Client,
    metrics: Arc<Metrics>,
    /// The controller's own account: it has decided by the same rules already.
    account: Arc<str>,
}

impl Webhook {
    /// A webhook over the state in memory.
    pub(crate) fn new(shared: Arc<Shared>, client: Client, metrics: Arc<Metrics>, namespace: &str) -> Self {
        let account = format!("system:serviceaccount:{namespace}:braid-controller").into();
        Self { shared, client, metrics, account }
    }

    /// The routes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/validate", post(validate))
            .route("/mutate-pods", post(mutate_pods))
            .layer(DefaultBodyLimit::max(LARGEST))
            .with_state(self)
    }

    async fn decide(&self, request: &AdmissionRequest<DynamicObject>) -> Result<Allowed, String> {
        if *request.user_info.username.as_deref().unwrap_or_default() == *self.account {
            return Ok(Allowed::default());
        }
        if request.sub_resource.as_deref() == Some("scale") {
            return scale::decide(&self.shared, &self.client, request).await;
        }
        let decision = match request.resource.resource.as_str() {
            "networks" => {
                let (old, new) = parsed::<Network, NetworkDef>(request)?;
                self.ask(Change::Network { old: old.as_ref(), new: new.as_ref() })
            }
            "subnets" => {
                let (old, new) = parsed::<Subnet, SubnetDef>(request)?;
                self.ask(Change::Subnet { old: old.as_ref(), new: new.as_ref() })
            }
            "ipinstances" => {
                let (old, new) = parsed::<IPInstance, InstanceDef>(request)?;
                let change = Change::Instance { old: old.as_ref(), new: new.as_ref() };
                let warnings = warning(change, &self.shared.world().ipam).into_iter().collect();
                return self.ask(change).map(|()| Allowed { warnings, ..Allowed::default() });
            }
            "ipblocks" => {
                let (old, new) = parsed::<IPBlock, BlockDef>(request)?;
                self.ask(Change::Block { old: old.as_ref(), new: new.as_ref() })
            }
            "deployments" | "statefulsets" => {
                let allowed = Allowed { warnings: workloads::warnings(request), ..Allowed::default() };
                return workloads::decide(&self.shared, request).map(|()| allowed);
            }
            "namespaces" => {
                return Ok(Allowed { warnings: namespaces::warnings(request), ..Allowed::default() });
            }
            _ => Ok(()),
        };
        decision.map(|()| Allowed::default())
    }

    fn ask(&self, change: Change<'_>) -> Result<(), String> {
        verdict(change, &self.shared.world().ipam).map_err(|sentence| sentence.to_string())
    }

    fn count(&self, answer: &str) {
        self.metrics.admissions.get_or_create(&ReasonLabel { reason: answer.to_owned() }).inc();
    }
}

/// The object before and after, parsed. An old one that cannot be parsed must not keep its owner from changing or
/// deleting it, so that it counts as absent.
fn parsed<K, D>(request: &AdmissionRequest<DynamicObject>) -> Result<(Option<D>, Option<D>), String>
where
    K: DeserializeOwned,
    D: for<'a> TryFrom<&'a K, Error = braid_api::ParseError>,
{
    let read = |object: &DynamicObject| -> Result<D, String> {
        let raw =
            serde_json::to_value(object).and_then(serde_json::from_value::<K>).map_err(|e| e.to_string())?;
        D::try_from(&raw).map_err(|e| e.to_string())
    };
    let old = request.old_object.as_ref().and_then(|o| read(o).ok());
    let new = request.object.as_ref().map(read).transpose()?;
    Ok((old, new))
}

/// What is known of a namespace, for a pod that says `pod` itself.
fn namespace<'a>(
    world: &'a World,
    name: &'a str,
    pod: &Choice,
    nothing: &'a Choice,
) -> Result<Namespace<'a>, String> {
    let entry = world.namespaces.get(name);
    let choice = entry.map(|e| e.choice_beside(name, pod)).transpose()?.flatten();
    Ok(Namespace { name, labels: entry.map(|e| &e.labels), choice: choice.unwrap_or(nothing) })
}

async fn validate(
    State(webhook): State<Webhook>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Response {
    answer(&webhook, review, async |request| webhook.decide(request).await).await
}

async fn mutate_pods(
    State(webhook): State<Webhook>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Response {
    answer(&webhook, review, async |request| pods::decide(&webhook.shared, request)).await
}

async fn answer(
    webhook: &Webhook,
    review: AdmissionReview<DynamicObject>,
    decide: impl AsyncFnOnce(&AdmissionRequest<DynamicObject>) -> Result<Allowed, String>,
) -> Response {
    let start = Instant::now();
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            debug!(%error, "not an admission request");
            return (StatusCode::BAD_REQUEST, Json(AdmissionResponse::invalid(error).into_review()))
                .into_response();
        }
    };
    // An answer from half-known state could let a contradiction in; the API server asks the other replica.
    if webhook.shared.world().ipam.restored().is_err() {
        webhook.count("NotReady");
        return (StatusCode::SERVICE_UNAVAILABLE, "not in sync yet\n").into_response();
    }
    let response = respond(webhook, &request, decide(&request).await);
    webhook.metrics.admission_seconds.observe(start.elapsed().as_secs_f64());
    Json(response.into_review()).into_response()
}

fn respond(
    webhook: &Webhook,
    request: &AdmissionRequest<DynamicObject>,
    decision: Result<Allowed, String>,
) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let Allowed { patch, warnings } = match decision {
        Ok(allowed) => allowed,
        Err(sentence) => {
            webhook.count("Refused");
            let (resource, namespace) = (&request.resource.resource, request.namespace.as_deref());
            info!(resource, namespace, name = request.name, operation = ?request.operation, sentence, "refused");
            return response.deny(sentence);
        }
    };
    webhook.count("Allowed");
    let mut response = if patch.0.is_empty() { response } else { patched(request, patch) };
    response.warnings = Some(warnings).filter(|w| !w.is_empty());
    response
}

fn patched(request: &AdmissionRequest<DynamicObject>, patch: Patch) -> AdmissionResponse {
    AdmissionResponse::from(request).with_patch(patch).unwrap_or_else(|error| {
        // It comes in as it is, and the controller resolves it the same way later.
        error!(%error, "a patch cannot be written as JSON");
        AdmissionResponse::from(request)
    })
}

#[cfg(test)]
#[path = "webhook/webhook_tests.rs"]
mod tests;
