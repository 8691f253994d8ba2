//! Keeps the webhook's certificate in its Secret and its CA in the webhook configuration.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use braid_informer::{Event, Informers, Selection};
use jiff::Timestamp;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::certificate::{Bundle, CertificateError};
use super::tls::CurrentCertificate;
use crate::gate::Gate;
use crate::write::{WriteError, Writer};

/// Name of the Secret with the certificates.
const SECRET: &str = "braid-webhook-tls";
/// Name of the Service in front of the webhook.
const SERVICE: &str = "braid-webhook";
/// Name of the webhook configuration.
const CONFIGURATION: &str = "braid";
/// How often the ends of certificates are looked at.
const LOOK: Duration = Duration::from_secs(600);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// Why certificates are not as they should be.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// They cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// They cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What the watches have seen.
#[derive(Debug, Default)]
struct Seen {
    secret: ArcSwapOption<Secret>,
    configuration: ArcSwapOption<ValidatingWebhookConfiguration>,
    changed: Notify,
}

/// Keeps certificates. Every replica reads them; the first one makes them, the leader renews them.
pub(crate) struct Keeper {
    seen: Arc<Seen>,
    writer: Writer,
    gate: Gate,
    namespace: String,
}

impl Keeper {
    /// Starts the two watches. `certificate` is served from the moment the Secret is there.
    pub(crate) fn new(
        informers: &mut Informers,
        client: &Client,
        writer: Writer,
        gate: Gate,
        namespace: &str,
        certificate: CurrentCertificate,
    ) -> Self {
        let seen = Arc::new(Seen::default());
        let (into, api) = (seen.clone(), Api::namespaced(client.clone(), namespace));
        let only = |name| Selection::fields(format!("metadata.name={name}"));
        informers.watch("secrets", api, only(SECRET), move |event: Event<Secret>| {
            let secret = match event {
                Event::Reset(all) => all.first().cloned(),
                Event::Applied(secret) => Some(secret),
                Event::Deleted(_) | Event::Undecodable(_) => None,
            };
            match secret.as_ref().map(|s| Bundle::from_secret(s.data.clone()).serving()) {
                Some(Ok(serving)) => certificate.set(serving),
                Some(Err(error)) => warn!(%error, secret = SECRET, "certificate not usable"),
                None => {}
            }
            into.secret.store(secret);
            into.changed.notify_one();
        });
        let (into, api) = (seen.clone(), Api::all(client.clone()));
        informers.watch("validatingwebhookconfigurations", api, only(CONFIGURATION), move |event| {
            into.configuration.store(match event {
                Event::Reset(all) => all.first().cloned(),
                Event::Applied(configuration) => Some(configuration),
                Event::Deleted(_) | Event::Undecodable(_) => None,
            });
            into.changed.notify_one();
        });
        Self { seen, writer, gate, namespace: namespace.to_owned() }
    }

    /// Keeps them for ever. To be started when the watches are in sync: before that, a Secret that was not seen
    /// is not a missing one.
    pub(crate) async fn run(self) {
        loop {
            let wait = match self.keep().await {
                Ok(()) => LOOK,
                Err(error) => {
                    warn!(%error, "certificates of the webhook are not as they should be, trying again");
                    PAUSE
                }
            };
            tokio::select! {
                () = self.seen.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Looks at everything again: this process has begun to lead.
    pub(crate) fn nudge(&self) -> impl Fn() + Send + Sync + use<> {
        let seen = self.seen.clone();
        move || seen.changed.notify_one()
    }

    async fn keep(&self) -> Result<(), KeepError> {
        let hosts = hosts(&self.namespace);
        let now = Timestamp::now();
        let Some(secret) = self.seen.secret.load_full() else {
            let bundle = Bundle::make(&hosts, now, None)?;
            return match self.writer.create_in(&self.namespace, &secret_of(&self.namespace, &bundle)).await {
                Ok(_) => {
                    info!(secret = SECRET, "made certificates for the webhook");
                    Ok(())
                }
                // Another replica was first; the watch brings its Secret.
                Err(WriteError::Exists(_)) => Ok(()),
                Err(error) => Err(error.into()),
            };
        };
        if self.gate.fence().is_none() {
            return Ok(());
        }
        let bundle = Bundle::from_secret(secret.data.clone());
        if let Some(renewed) = bundle.renewed(&hosts, now)? {
            let mut object = Secret::clone(&secret);
            object.data = Some(renewed.data().clone());
            object.metadata.managed_fields = None;
            match self.writer.replace_in(&self.namespace, &object).await {
                Ok(_) | Err(WriteError::Conflict(_)) => {
                    info!(secret = SECRET, "renewed the webhook's certificates");
                }
                Err(error) => return Err(error.into()),
            }
            // The CA follows when the watch has brought the new Secret.
            return Ok(());
        }
        let (Some(configuration), Some(ca)) = (self.seen.configuration.load_full(), bundle.ca()) else {
            return Ok(());
        };
        if let Some(patch) = patch_for(&configuration, &json!(ca)) {
            self.writer.json_patch::<ValidatingWebhookConfiguration>(CONFIGURATION, &patch).await?;
            info!(configuration = CONFIGURATION, "the API server knows the webhook's CA");
        }
        Ok(())
    }
}

fn hosts(namespace: &str) -> Vec<String> {
    ["", ".svc", ".svc.cluster.local"].map(|end| format!("{SERVICE}.{namespace}{end}")).to_vec()
}

fn secret_of(namespace: &str, bundle: &Bundle) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(bundle.data().clone()),
        ..Secret::default()
    }
}

/// Sets the CA where it is missing or another one. Each step tests the name first, so that a list that was
/// reordered meanwhile is left alone.
fn patch_for(configuration: &ValidatingWebhookConfiguration, ca: &Value) -> Option<Patch> {
    let wrong = |c: &k8s_openapi::api::admissionregistration::v1::WebhookClientConfig| {
        c.ca_bundle.as_ref().map(|b| json!(b)).as_ref() != Some(ca)
    };
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    let steps: Vec<PatchOperation> = webhooks
        .iter()
        .enumerate()
        .filter(|(_, webhook)| wrong(&webhook.client_config))
        .flat_map(|(i, webhook)| {
            let path = |end: &str| {
                let i = i.to_string();
                let tokens = ["webhooks", &i].into_iter().chain(end.split('/'));
                json_patch::jsonptr::PointerBuf::from_tokens(tokens)
            };
            [
                PatchOperation::Test(TestOperation { path: path("name"), value: json!(webhook.name) }),
                PatchOperation::Add(AddOperation { path: path("clientConfig/caBundle"), value: ca.clone() }),
            ]
        })
        .collect();
    (!steps.is_empty()).then_some(Patch(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundles: &[Option<&str>]) -> ValidatingWebhookConfiguration {
        let webhooks: Vec<Value> = bundles
            .iter()
            .enumerate()
            .map(|(i, bundle)| {
                json!({
                    "name": format!("w{i}.braid.network"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
                    "clientConfig": {"caBundle": bundle, "service": {"name": "s", "namespace": "n"}},
                })
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "braid"}, "webhooks": webhooks})).unwrap()
    }

    #[test]
    fn only_what_is_wrong_is_patched() {
        assert_eq!(patch_for(&configuration(&[Some("Q0E=")]), &json!("Q0E=")), None);
        let before = configuration(&[Some("Q0E="), None, Some("b2xk")]);
        let patch = patch_for(&before, &json!("Q0E=")).unwrap();
        assert_eq!(patch.0.len(), 4);
        let mut raw = serde_json::to_value(&before).unwrap();
        json_patch::patch(&mut raw, &patch).unwrap();
        let after: ValidatingWebhookConfiguration = serde_json::from_value(raw).unwrap();
        assert_eq!(patch_for(&after, &json!("Q0E=")), None);
    }
}
