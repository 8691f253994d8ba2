//! Keeps the webhook's certificate in its Secret and its CA in both webhook configurations, as far as nobody else does
//! ([`super::custody`]).
//!
//! A new certificate is served when the API server has been told to trust it, and not before: until then each replica
//! goes on with the one that it has, also while the Secret is gone or holds nonsense. No call to the webhook fails.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use braid_informer::{Event, Informers, Selection};
use jiff::Timestamp;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::ObjectMeta;
use kube::core::ClusterResourceScope;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::certificate::{Bundle, CertificateError};
use super::custody::{
    CONFIGURATION, Caller, Concern, Custody, SECRET, Standing, Turn, awaited, concern, injection, turn,
};
use super::tls::CurrentCertificate;
use crate::events::Events;
use crate::write::{WriteError, Writer, Written};

/// Name of the Service in front of the webhook.
const SERVICE: &str = "braid-webhook";
/// How often the ends of certificates are looked at.
const LOOK: Duration = Duration::from_secs(600);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// From the moment a configuration was seen to trust a certificate until it is served: API servers watch the
/// configurations too, and may hear of it a little later.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the CA of what was served before goes on to be trusted: another replica may turn a little later than the
/// leader.
const LINGER: Duration = Duration::from_secs(30);

/// A kind of webhook configuration. The two kinds differ in little but their names.
trait Configuration: Written + Resource<Scope = ClusterResourceScope> + 'static {
    /// As in a manifest.
    const KIND: &'static str;

    /// Name of each webhook and how it is called, in order.
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)>;

    /// Whom each webhook trusts, and who says so.
    fn callers(&self) -> impl Iterator<Item = Caller> {
        let injection = injection(self.meta());
        self.clients().map(move |(_, client)| Caller {
            kind: Self::KIND,
            ca: client.ca_bundle.clone(),
            injection,
        })
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    const KIND: &'static str = "ValidatingWebhookConfiguration";

    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|w| (w.name.as_str(), &w.client_config))
    }
}

impl Configuration for MutatingWebhookConfiguration {
    const KIND: &'static str = "MutatingWebhookConfiguration";

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
    fn callers(&self) -> Vec<Caller> {
        let (validating, mutating) = (self.validating.load(), self.mutating.load());
        let validating = validating.as_deref().into_iter().flat_map(Configuration::callers);
        let mutating = mutating.as_deref().into_iter().flat_map(Configuration::callers);
        validating.chain(mutating).collect()
    }
}

/// Keeps certificates. Every replica reads them; the first one makes them, the leader renews them.
pub(crate) struct Keeper {
    seen: Arc<Seen>,
    certificate: CurrentCertificate,
    writer: Writer,
    events: Events,
    namespace: String,
    /// What was served before, and until when its CA goes on to be trusted.
    former: Option<(Arc<Bundle>, Instant)>,
    standing: Standing,
}

impl Keeper {
    /// Starts the watches. `certificate` is served from the moment the Secret is there.
    pub(crate) fn new(
        informers: &mut Informers,
        client: &Client,
        writer: Writer,
        events: Events,
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
        let (namespace, standing) = (namespace.to_owned(), Standing::default());
        Self { seen, certificate, writer, events, namespace, former: None, standing }
    }

    /// Keeps them for ever. To be started when the watches are in sync: before that, a Secret that was not seen
    /// is not a missing one.
    pub(crate) async fn run(mut self) {
        loop {
            let wait = match self.keep().await {
                Ok(()) => self.next_look(Instant::now()),
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

    fn next_look(&self, now: Instant) -> Duration {
        let moments = [self.standing.due_at(), self.former.as_ref().map(|(_, end)| *end)];
        let next = moments.into_iter().flatten().min();
        next.map_or(LOOK, |at| at.saturating_duration_since(now).min(LOOK))
    }

    /// Looks at everything again: this process has begun to lead.
    pub(crate) fn nudge(&self) -> impl Fn() + Send + Sync + use<> {
        let seen = self.seen.clone();
        move || seen.changed.notify_one()
    }

    async fn keep(&mut self) -> Result<(), KeepError> {
        let (hosts, now) = (hosts(&self.namespace), crate::clock::timestamp());
        // Also where nothing is to be written: what is over must not call for another look.
        self.former = self.former.take().filter(|(_, end)| Instant::now() < *end);
        let Some(secret) = self.seen.secret.load_full() else {
            return self.without_secret(&hosts, now).await;
        };
        let (bundle, custody) = (Bundle::from_secret(secret.data.clone()), Custody::of(&secret.metadata));
        self.switch(&bundle, now).await?;
        let callers = self.seen.callers();
        self.tell(concern(custody, &bundle, &callers, &called(&self.namespace), now)).await;
        if !self.writer.leads() {
            return Ok(());
        }
        if custody == Custody::Ours
            && let Some(renewed) = bundle.renewed(&hosts, now)?
        {
            // The CA follows when the watch has brought the new Secret.
            return self.replace(&secret, &renewed).await;
        }
        let served = self.seen.served.load_full();
        let others = served.as_deref().into_iter().chain(self.former.as_ref().map(|(former, _)| &**former));
        let Some(ca) = bundle.ca_beside(others).map(|ca| json!(ca)) else { return Ok(()) };
        // One that cannot be written does not keep the other from being right.
        let validating = self.teach(&self.seen.validating, &ca).await;
        let mutating = self.teach(&self.seen.mutating, &ca).await;
        validating.and(mutating)
    }

    /// Waits for a Secret that somebody else makes, or makes it.
    async fn without_secret(&mut self, hosts: &[String], now: Timestamp) -> Result<(), KeepError> {
        let awaited = awaited(&self.seen.callers());
        let is_awaited = awaited.is_some();
        self.tell(awaited).await;
        if is_awaited { Ok(()) } else { self.make(hosts, now).await }
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

    /// Serves the Secret's certificate once the webhooks are told to trust it.
    async fn switch(&mut self, bundle: &Bundle, now: Timestamp) -> Result<(), KeepError> {
        let served = self.seen.served.load_full();
        if served.as_deref() == Some(bundle) {
            return Ok(());
        }
        match turn(&self.seen.callers(), bundle, served.as_deref(), &called(&self.namespace), now) {
            Turn::Wait => return Ok(()),
            Turn::Settled => tokio::time::sleep(SETTLE).await,
            Turn::AtOnce => {}
        }
        self.seen.serve(bundle.clone(), &self.certificate)?;
        self.former = served.map(|served| (served, Instant::now() + LINGER));
        info!(secret = SECRET, "serving another certificate from now on");
        Ok(())
    }

    /// Says what somebody has to look at: once in the log of each replica, and as an Event that the leader keeps alive.
    async fn tell(&mut self, concern: Option<Concern>) {
        let Some(due) = self.standing.note(concern, Instant::now()) else { return };
        let (reason, sentence) = (due.concern.reason(), due.concern.to_string());
        if due.is_new {
            warn!(reason, sentence, "the webhook's certificates need somebody");
        }
        let subject = match due.concern.configuration() {
            Some(kind) => ObjectReference {
                api_version: Some("admissionregistration.k8s.io/v1".to_owned()),
                kind: Some(kind.to_owned()),
                name: Some(CONFIGURATION.to_owned()),
                ..ObjectReference::default()
            },
            None => ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Secret".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(SECRET.to_owned()),
                ..ObjectReference::default()
            },
        };
        self.events.warn(&subject, "KeepCertificates", reason, &sentence).await;
    }

    /// Tells the API server by one configuration what to trust, unless that is the CA injector's.
    async fn teach<C: Configuration>(&self, seen: &ArcSwapOption<C>, ca: &Value) -> Result<(), KeepError> {
        let Some(configuration) = seen.load_full() else { return Ok(()) };
        if injection(configuration.meta()).is_some() {
            return Ok(());
        }
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

/// The name by which API servers call a webhook behind a Service.
fn called(namespace: &str) -> String {
    format!("{SERVICE}.{namespace}.svc")
}

/// The names that a certificate made here is for.
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
#[path = "keeper_tests.rs"]
mod tests;
