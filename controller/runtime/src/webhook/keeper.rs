//! Keeps the webhook's certificate in its Secret and its CA in both webhook configurations.
//!
//! A new certificate is served when the API server has been told to trust it, and not before: until then each replica
//! goes on with the one that it has, also while the Secret is gone or holds nonsense. No call to the webhook fails.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use braid_informer::{Event, Informers, Selection};
use jiff::Timestamp;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use kube::core::ClusterResourceScope;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::certificate::{Bundle, CertificateError};
use super::tls::CurrentCertificate;
use crate::gate::Gate;
use crate::write::{WriteError, Writer, Written};

/// Name of the Secret with the certificates.
const SECRET: &str = "braid-webhook-tls";
/// Name of the Service in front of the webhook.
const SERVICE: &str = "braid-webhook";
/// Name of both webhook configurations.
const CONFIGURATION: &str = "braid";
/// How often the ends of certificates are looked at.
const LOOK: Duration = Duration::from_secs(600);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// From the moment a configuration was seen to trust a certificate until it is served: API servers watch the
/// configurations too, and may hear of it a little later.
const SETTLE: Duration = Duration::from_secs(2);

/// A kind of webhook configuration. The two kinds differ in little but their names.
trait Configuration: Written + Resource<Scope = ClusterResourceScope> + 'static {
    /// Name of each webhook and how it is called, in order.
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)>;
}

impl Configuration for ValidatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|w| (w.name.as_str(), &w.client_config))
    }
}

impl Configuration for MutatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|w| (w.name.as_str(), &w.client_config))
    }
}

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

/// What the watches have seen, and what is served.
#[derive(Debug, Default)]
struct Seen {
    secret: ArcSwapOption<Secret>,
    validating: ArcSwapOption<ValidatingWebhookConfiguration>,
    mutating: ArcSwapOption<MutatingWebhookConfiguration>,
    /// Where the certificate comes from that is served now.
    served: ArcSwapOption<Bundle>,
    changed: Notify,
}

impl Seen {
    /// Serves the bundle's certificate from now on.
    fn serve(&self, bundle: Bundle, certificate: &CurrentCertificate) -> Result<(), CertificateError> {
        certificate.set(bundle.serving()?);
        self.served.store(Some(Arc::new(bundle)));
        Ok(())
    }

    /// What each webhook is told to trust.
    fn authorities(&self) -> Vec<Option<ByteString>> {
        let (validating, mutating) = (self.validating.load(), self.mutating.load());
        let validating = validating.as_deref().into_iter().flat_map(Configuration::clients);
        let mutating = mutating.as_deref().into_iter().flat_map(Configuration::clients);
        validating.chain(mutating).map(|(_, client)| client.ca_bundle.clone()).collect()
    }
}

/// Keeps certificates. Every replica reads them; the first one makes them, the leader renews them.
pub(crate) struct Keeper {
    seen: Arc<Seen>,
    certificate: CurrentCertificate,
    writer: Writer,
    gate: Gate,
    namespace: String,
}

impl Keeper {
    /// Starts the watches. `certificate` is served from the moment the Secret is there.
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
        let first = certificate.clone();
        informers.watch("secrets", api, only(SECRET), move |event: Event<Secret>| {
            let secret = latest(event);
            // The first certificate is better than none; each further one has to be trusted first.
            if let Some(secret) = secret.as_ref().filter(|_| !first.is_set())
                && let Err(error) = into.serve(Bundle::from_secret(secret.data.clone()), &first)
            {
                warn!(%error, secret = SECRET, "certificate not usable");
            }
            into.secret.store(secret);
            into.changed.notify_one();
        });
        watch(informers, client, &seen, |seen| &seen.validating);
        watch(informers, client, &seen, |seen| &seen.mutating);
        Self { seen, certificate, writer, gate, namespace: namespace.to_owned() }
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
        let Some(secret) = self.seen.secret.load_full() else { return self.make(&hosts, now).await };
        let bundle = Bundle::from_secret(secret.data.clone());
        self.switch(&bundle, &hosts, now).await?;
        if self.gate.fence().is_none() {
            return Ok(());
        }
        if let Some(renewed) = bundle.renewed(&hosts, now)? {
            // The CA follows when the watch has brought the new Secret.
            return self.replace(&secret, &renewed).await;
        }
        let served = self.seen.served.load_full();
        let Some(ca) = bundle.ca_beside(served.as_deref()).map(|ca| json!(ca)) else { return Ok(()) };
        // One that cannot be written does not keep the other from being right.
        let validating = self.teach(&self.seen.validating, &ca).await;
        let mutating = self.teach(&self.seen.mutating, &ca).await;
        validating.and(mutating)
    }

    /// Makes the Secret anew. What is served now goes on to be trusted.
    async fn make(&self, hosts: &[String], now: Timestamp) -> Result<(), KeepError> {
        let bundle = Bundle::make(hosts, now, self.seen.served.load().as_deref())?;
        match self.writer.create_in(&self.namespace, &secret_of(&self.namespace, &bundle)).await {
            Ok(_) => info!(secret = SECRET, "made certificates for the webhook"),
            // Another replica was first; the watch brings its Secret.
            Err(WriteError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn replace(&self, secret: &Secret, renewed: &Bundle) -> Result<(), KeepError> {
        let mut object = secret.clone();
        object.data = Some(renewed.data().clone());
        object.metadata.managed_fields = None;
        match self.writer.replace_in(&self.namespace, &object).await {
            Ok(_) | Err(WriteError::Conflict(_)) => {
                info!(secret = SECRET, "renewed the webhook's certificates");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Serves the Secret's certificate once every webhook is told to trust it.
    async fn switch(&self, bundle: &Bundle, hosts: &[String], now: Timestamp) -> Result<(), KeepError> {
        if self.seen.served.load().as_deref() == Some(bundle) {
            return Ok(());
        }
        let trusts =
            |ca: &Option<ByteString>| ca.as_ref().is_some_and(|ca| bundle.is_trusted_by(ca, hosts, now));
        if !self.seen.authorities().iter().all(trusts) {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
        self.seen.serve(bundle.clone(), &self.certificate)?;
        info!(secret = SECRET, "serving another certificate from now on");
        Ok(())
    }

    /// Tells the API server by one configuration what to trust.
    async fn teach<C: Configuration>(&self, seen: &ArcSwapOption<C>, ca: &Value) -> Result<(), KeepError> {
        let Some(configuration) = seen.load_full() else { return Ok(()) };
        if let Some(patch) = patch_for(&*configuration, ca) {
            self.writer.json_patch::<C>(CONFIGURATION, &patch).await?;
            info!(
                resource = C::RESOURCE,
                configuration = CONFIGURATION,
                "the API server knows the webhook's CA"
            );
        }
        Ok(())
    }
}

fn only(name: &str) -> Selection {
    Selection::fields(format!("metadata.name={name}"))
}

/// The one object that a watch is about, as it is after the event.
fn latest<K>(event: Event<K>) -> Option<Arc<K>> {
    match event {
        Event::Reset(all) => all.first().cloned(),
        Event::Applied(object) => Some(object),
        Event::Deleted(_) | Event::Undecodable(_) => None,
    }
}

fn watch<C: Configuration>(
    informers: &mut Informers,
    client: &Client,
    seen: &Arc<Seen>,
    of: fn(&Seen) -> &ArcSwapOption<C>,
) {
    let (into, api) = (seen.clone(), Api::all(client.clone()));
    informers.watch(C::RESOURCE, api, only(CONFIGURATION), move |event| {
        of(&into).store(latest(event));
        into.changed.notify_one();
    });
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
fn patch_for<C: Configuration>(configuration: &C, ca: &Value) -> Option<Patch> {
    let wrong =
        |client: &WebhookClientConfig| client.ca_bundle.as_ref().map(|b| json!(b)).as_ref() != Some(ca);
    let steps: Vec<PatchOperation> = configuration
        .clients()
        .enumerate()
        .filter(|(_, (_, client))| wrong(client))
        .flat_map(|(i, (name, _))| {
            let path = |end: &str| {
                let i = i.to_string();
                let tokens = ["webhooks", &i].into_iter().chain(end.split('/'));
                json_patch::jsonptr::PointerBuf::from_tokens(tokens)
            };
            [
                PatchOperation::Test(TestOperation { path: path("name"), value: json!(name) }),
                PatchOperation::Add(AddOperation { path: path("clientConfig/caBundle"), value: ca.clone() }),
            ]
        })
        .collect();
    (!steps.is_empty()).then_some(Patch(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration<C: Configuration>(bundles: &[Option<&str>]) -> C {
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

    fn only_what_is_wrong<C: Configuration + serde::Serialize>() {
        assert_eq!(patch_for(&configuration::<C>(&[Some("Q0E=")]), &json!("Q0E=")), None);
        let before: C = configuration(&[Some("Q0E="), None, Some("b2xk")]);
        let patch = patch_for(&before, &json!("Q0E=")).unwrap();
        assert_eq!(patch.0.len(), 4);
        let mut raw = serde_json::to_value(&before).unwrap();
        json_patch::patch(&mut raw, &patch).unwrap();
        let after: C = serde_json::from_value(raw).unwrap();
        assert_eq!(patch_for(&after, &json!("Q0E=")), None);
    }

    #[test]
    fn only_what_is_wrong_is_patched() {
        only_what_is_wrong::<ValidatingWebhookConfiguration>();
        only_what_is_wrong::<MutatingWebhookConfiguration>();
    }

    #[test]
    fn every_webhook_has_to_trust_a_certificate() {
        let seen = Seen::default();
        assert_eq!(seen.authorities(), [], "nobody calls");
        seen.validating.store(Some(Arc::new(configuration(&[Some("Q0E="), None]))));
        seen.mutating.store(Some(Arc::new(configuration(&[Some("Q0E=")]))));
        let ca = Some(ByteString(b"CA".to_vec()));
        assert_eq!(seen.authorities(), [ca.clone(), None, ca]);
    }
}
