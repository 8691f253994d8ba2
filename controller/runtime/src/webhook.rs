//! The validating webhook: what only several objects together can show, asked of the state in memory.

mod certificate;
pub(crate) mod keeper;
pub(crate) mod tls;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use braid_api::{IPBlock, IPInstance, Network, Subnet};
use braid_controller_core::verdict::{Change, verdict};
use braid_types::model::{BlockDef, InstanceDef, NetworkDef, SubnetDef};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::de::DeserializeOwned;
use tracing::{debug, info};

use crate::metrics::{Metrics, ReasonLabel};
use crate::world::Shared;

/// Largest request: an object is at most 1.5 MB in etcd, and an update carries two.
const LARGEST: usize = 4 << 20;

/// What the webhook decides with.
#[derive(Debug, Clone)]
pub(crate) struct Webhook {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// The controller's own account: it has decided by the same rules already.
    account: Arc<str>,
}

impl Webhook {
    /// A webhook over the state in memory.
    pub(crate) fn new(shared: Arc<Shared>, metrics: Arc<Metrics>, namespace: &str) -> Self {
        let account = format!("system:serviceaccount:{namespace}:braid-controller").into();
        Self { shared, metrics, account }
    }

    /// The routes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/validate", post(validate))
            .layer(DefaultBodyLimit::max(LARGEST))
            .with_state(self)
    }

    fn decide(&self, request: &AdmissionRequest<DynamicObject>) -> Result<(), String> {
        if *request.user_info.username.as_deref().unwrap_or_default() == *self.account {
            return Ok(());
        }
        match request.resource.resource.as_str() {
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
                self.ask(Change::Instance { old: old.as_ref(), new: new.as_ref() })
            }
            "ipblocks" => {
                let (old, new) = parsed::<IPBlock, BlockDef>(request)?;
                self.ask(Change::Block { old: old.as_ref(), new: new.as_ref() })
            }
            _ => Ok(()),
        }
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

async fn validate(
    State(webhook): State<Webhook>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Response {
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
    let response = AdmissionResponse::from(&request);
    let response = match webhook.decide(&request) {
        Ok(()) => {
            webhook.count("Allowed");
            response
        }
        Err(sentence) => {
            webhook.count("Refused");
            let resource = &request.resource.resource;
            info!(resource, name = request.name, operation = ?request.operation, sentence, "change refused");
            response.deny(sentence)
        }
    };
    Json(response.into_review()).into_response()
}

#[cfg(test)]
#[path = "webhook/webhook_tests.rs"]
mod tests;
