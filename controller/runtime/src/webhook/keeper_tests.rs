use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use k8s_openapi::ByteString;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tower::service_fn;

use super::*;
use crate::gate::Gate;
use crate::metrics::Metrics;

const NAMESPACE: &str = "braid-system";
const INJECT: &str = "cert-manager.io/inject-ca-from";

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
    assert_eq!(seen.callers(), [], "nobody calls");
    seen.validating.store(Some(Arc::new(configuration(&[Some("Q0E="), None]))));
    seen.mutating.store(Some(Arc::new(configuration(&[Some("Q0E=")]))));
    let ca = Some(ByteString(b"CA".to_vec()));
    let found: Vec<_> = seen.callers().into_iter().map(|c| c.ca).collect();
    assert_eq!(found, [ca.clone(), None, ca]);
}

// ---- The keeper at work, on an API server of three objects

/// The API server: what it holds is what the watches of the keeper bring at once.
struct Server {
    seen: Arc<Seen>,
    /// Whether the keeper's process leads.
    gate: Gate,
    /// Verb and resource of each write, and the reasons of Events.
    asked: Mutex<Vec<String>>,
}

impl Server {
    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Value {
        let resource = path.split('/').rev().find(|part| part.ends_with('s')).unwrap_or_default();
        self.asked.lock().push(format!("{method} {resource}"));
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match resource {
            "secrets" => {
                self.seen.secret.store(Some(Arc::new(serde_json::from_value(sent.clone()).unwrap())));
                sent
            }
            "validatingwebhookconfigurations" => patched(&self.seen.validating, body),
            "mutatingwebhookconfigurations" => patched(&self.seen.mutating, body),
            "events" => {
                self.asked.lock().push(sent["reason"].as_str().unwrap_or_default().to_owned());
                sent
            }
            other => panic!("{method} {other}"),
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

fn patched<C: Configuration + serde::Serialize>(held: &ArcSwapOption<C>, patch: &[u8]) -> Value {
    let mut raw = serde_json::to_value(&*held.load_full().unwrap()).unwrap();
    json_patch::patch(&mut raw, &serde_json::from_slice::<Patch>(patch).unwrap()).unwrap();
    held.store(Some(Arc::new(serde_json::from_value(raw.clone()).unwrap())));
    raw
}

/// A leader whose webhooks trust nobody yet.
fn keeper() -> (Keeper, Arc<Server>) {
    let gate = Gate::closed();
    gate.extend(Instant::now() + Duration::from_secs(36_000), 1);
    let server = Arc::new(Server { seen: Arc::default(), gate: gate.clone(), asked: Mutex::default() });
    let answering = server.clone();
    let service = service_fn(move |request: Request<kube::client::Body>| {
        let server = answering.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let answer = server.answer(&parts.method, parts.uri.path(), &body);
            Ok::<_, Infallible>(Response::new(Body::from(answer.to_string())))
        }
    });
    let client = Client::new(service, "default");
    let writer = Writer::new(client.clone(), gate, Arc::new(Metrics::new()), 4);
    let seen = server.seen.clone();
    seen.validating.store(Some(Arc::new(configuration(&[None, None, None]))));
    seen.mutating.store(Some(Arc::new(configuration(&[None]))));
    let keeper = Keeper {
        seen,
        certificate: CurrentCertificate::default(),
        events: Events::new(client, writer.clone(), "me".to_owned()),
        writer,
        namespace: NAMESPACE.to_owned(),
        former: None,
        standing: Standing::default(),
    };
    (keeper, server)
}

fn fresh() -> Bundle {
    Bundle::make(&hosts(NAMESPACE), Timestamp::now(), None).unwrap()
}

/// Another certificate of the same CA.
fn reissued(bundle: &Bundle) -> Bundle {
    let mut data = bundle.data().clone();
    data.remove("tls.crt");
    Bundle::from_secret(Some(data)).renewed(&hosts(NAMESPACE), Timestamp::now()).unwrap().unwrap()
}

/// The Secret as cert-manager writes it.
fn by_cert_manager(bundle: &Bundle) -> Secret {
    let data: BTreeMap<_, _> = ["ca.crt", "tls.crt", "tls.key"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), bundle.data().get(key)?.clone())))
        .collect();
    let mut secret = secret_of(NAMESPACE, &Bundle::from_secret(Some(data)));
    let marks = [("cert-manager.io/certificate-name".to_owned(), "braid-webhook".to_owned())];
    secret.metadata.annotations = Some(marks.into());
    secret.metadata.labels = Some([("controller.cert-manager.io/fao".to_owned(), "true".to_owned())].into());
    secret
}

impl Server {
    fn bring(&self, secret: Option<Secret>) {
        self.seen.secret.store(secret.map(Arc::new));
    }

    /// Puts the annotation on both configurations, or takes it away.
    fn annotate(&self, value: Option<&str>) {
        fn edit<C: Configuration>(held: &ArcSwapOption<C>, value: Option<&str>) {
            let mut configuration = (*held.load_full().unwrap()).clone();
            configuration.meta_mut().annotations =
                value.map(|value| [(INJECT.to_owned(), value.to_owned())].into());
            held.store(Some(Arc::new(configuration)));
        }
        edit(&self.seen.validating, value);
        edit(&self.seen.mutating, value);
    }

    /// What the CA injector does.
    fn inject(&self, ca: &ByteString) {
        fn edit<C: Configuration + serde::Serialize + DeserializeOwned>(
            held: &ArcSwapOption<C>,
            ca: &ByteString,
        ) {
            let patch = patch_for(&*held.load_full().unwrap(), &json!(ca));
            patch.map(|patch| patched(held, &serde_json::to_vec(&patch).unwrap()));
        }
        edit(&self.seen.validating, ca);
        edit(&self.seen.mutating, ca);
    }

    fn is_trusted(&self, bundle: &Bundle) -> bool {
        let (host, now) = (called(NAMESPACE), Timestamp::now());
        let mut callers = self.seen.callers().into_iter();
        callers.all(|c| c.ca.is_some_and(|ca| bundle.is_trusted_by(&ca, std::slice::from_ref(&host), now)))
    }

    /// Whether every call succeeds: all webhooks trust what is served.
    fn is_served(&self) -> bool {
        self.seen.served.load_full().is_some_and(|served| self.is_trusted(&served))
    }

    fn serves(&self, secret: &Secret) -> bool {
        self.seen.served.load_full().is_some_and(|s| Some(s.data()) == secret.data.as_ref())
    }

    /// Whether every configuration names this CA and nothing beside it.
    fn names(&self, secret: &Secret) -> bool {
        let ca = secret.data.as_ref().and_then(|data| data.get("ca.crt"));
        self.seen.callers().iter().all(|c| c.ca.as_ref() == ca)
    }
}

/// Until nothing is left to do, in virtual time; every call succeeds after each step.
async fn settle(keeper: &mut Keeper, server: &Server) {
    for _ in 0..6 {
        keeper.keep().await.unwrap();
        assert!(server.is_served(), "a call fails");
    }
}

/// As [`settle`], from own certificates.
async fn own() -> (Keeper, Arc<Server>) {
    let (mut keeper, server) = keeper();
    keeper.keep().await.unwrap();
    assert_eq!(server.take(), ["POST secrets"]);
    keeper.keep().await.unwrap();
    settle(&mut keeper, &server).await;
    tokio::time::advance(LINGER).await;
    settle(&mut keeper, &server).await;
    assert!(server.names(&server.seen.secret.load_full().unwrap()));
    server.take();
    (keeper, server)
}

#[tokio::test(start_paused = true)]
async fn from_own_certificates_to_cert_manager_and_back_without_a_failed_call() {
    let (mut keeper, server) = own().await;
    let mut previous = server.seen.served.load_full().unwrap();
    // Each another CA, as the SelfSigned issuer gives it.
    for _ in 0..3 {
        let secret = by_cert_manager(&fresh());
        server.bring(Some(secret.clone()));
        settle(&mut keeper, &server).await;
        assert!(server.serves(&secret));
        // Another replica may serve the old one a moment longer.
        assert!(server.is_trusted(&previous), "a slower replica is not trusted any more");
        assert_eq!(keeper.next_look(Instant::now()), LINGER);
        tokio::time::advance(LINGER).await;
        settle(&mut keeper, &server).await;
        assert!(server.names(&secret));
        previous = server.seen.served.load_full().unwrap();
    }
    let asked = server.take();
    assert!(asked.iter().all(|asked| asked.starts_with("PATCH ")), "{asked:?}");

    server.bring(None);
    settle(&mut keeper, &server).await;
    assert_eq!(server.take().iter().filter(|asked| *asked == "POST secrets").count(), 1);
    let secret = server.seen.secret.load_full().unwrap();
    assert_eq!(Custody::of(&secret.metadata), Custody::Ours);
    assert!(server.serves(&secret) && server.names(&secret));
}

#[tokio::test(start_paused = true)]
async fn an_injectors_bundle_is_left_alone_and_waited_for() {
    let (mut keeper, server) = own().await;
    let first = fresh();
    server.bring(Some(by_cert_manager(&first)));
    settle(&mut keeper, &server).await;
    tokio::time::advance(LINGER).await;
    settle(&mut keeper, &server).await;
    server.annotate(Some("braid-system/braid-webhook"));
    server.take();

    // The same CA: nothing has to be injected.
    let second = by_cert_manager(&reissued(&first));
    server.bring(Some(second.clone()));
    settle(&mut keeper, &server).await;
    assert!(server.serves(&second));

    // Another one: what is served stays until the injector has spoken, and not a moment longer.
    let third = by_cert_manager(&fresh());
    server.bring(Some(third.clone()));
    settle(&mut keeper, &server).await;
    assert!(server.serves(&second));
    server.inject(&third.data.as_ref().unwrap()["ca.crt"]);
    let begun = Instant::now();
    settle(&mut keeper, &server).await;
    assert!(server.serves(&third) && begun.elapsed() < SETTLE, "each moment costs calls");
    tokio::time::advance(LINGER).await;
    settle(&mut keeper, &server).await;
    assert_eq!(server.take(), Vec::<String>::new(), "nothing of this is ours to write");

    // And back: the annotations first, then the Secret.
    server.annotate(None);
    server.bring(None);
    settle(&mut keeper, &server).await;
    assert!(server.take().contains(&"POST secrets".to_owned()));
    assert!(server.names(&server.seen.secret.load_full().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cert_manager_has_still_to_make_is_not_made_here() {
    let (mut keeper, server) = keeper();
    server.annotate(Some("braid-system/braid-webhook"));
    keeper.keep().await.unwrap();
    assert_eq!((server.take(), keeper.next_look(Instant::now())), (vec![], super::super::custody::PATIENCE));
    tokio::time::advance(keeper.next_look(Instant::now())).await;
    keeper.keep().await.unwrap();
    assert_eq!(server.take(), ["POST events", "CertificateMissing"]);
    assert_eq!(keeper.next_look(Instant::now()), LOOK);
    assert!(!keeper.certificate.is_set());

    // Running replicas go on with what they have.
    let (mut keeper, server) = own().await;
    server.annotate(Some("braid-system/braid-webhook"));
    server.bring(None);
    settle(&mut keeper, &server).await;
    assert!(server.take().is_empty() && server.seen.secret.load_full().is_none());

    // Without the annotation it is made.
    server.annotate(None);
    settle(&mut keeper, &server).await;
    assert!(server.take().contains(&"POST secrets".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_cert_manager_wrote_wrongly_is_told_and_never_served_or_mended() {
    let (good, other) = (fresh(), fresh());
    let with = |key: &str, part: Option<&ByteString>| {
        let mut secret = by_cert_manager(&good);
        let data = secret.data.get_or_insert_default();
        data.remove(key);
        data.extend(part.map(|part| (key.to_owned(), part.clone())));
        secret
    };
    let cases = [
        (with("ca.crt", None), "AuthorityMissing"),
        (with("tls.crt", None), "CertificateUnusable"),
        (with("tls.key", other.data().get("tls.key")), "CertificateUnusable"),
        (with("ca.crt", other.ca()), "CertificateRejected"),
    ];
    for (secret, reason) in cases {
        let (mut keeper, server) = own().await;
        server.bring(Some(secret.clone()));
        settle(&mut keeper, &server).await;
        tokio::time::advance(super::super::custody::PATIENCE).await;
        settle(&mut keeper, &server).await;
        let asked = server.take();
        assert!(asked.contains(&reason.to_owned()), "{reason}: {asked:?}");
        assert!(!asked.iter().any(|asked| asked.ends_with(" secrets")), "{reason}: {asked:?}");
        assert!(!server.serves(&secret), "{reason}");
        // Corrected, it is served.
        let corrected = by_cert_manager(&good);
        server.bring(Some(corrected.clone()));
        settle(&mut keeper, &server).await;
        assert!(server.serves(&corrected), "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_serves_and_writes_nothing() {
    let (mut keeper, server) = own().await;
    server.gate.close();
    let secret = by_cert_manager(&fresh());
    server.bring(Some(secret.clone()));
    settle(&mut keeper, &server).await;
    assert!(!server.serves(&secret));
    let served = server.seen.served.load_full();
    server.inject(&Bundle::from_secret(secret.data.clone()).ca_beside(served.as_deref()).unwrap());
    settle(&mut keeper, &server).await;
    assert!(server.serves(&secret));
    assert_eq!(server.take(), Vec::<String>::new());
    // It rests when the former certificate is over.
    tokio::time::advance(LINGER).await;
    settle(&mut keeper, &server).await;
    assert_eq!(keeper.next_look(Instant::now()), LOOK);
}
