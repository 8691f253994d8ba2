//! The webhook as its callers see it: what it refuses, which certificate it serves, and whom the API server trusts.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::exec::eventually;
use crate::stage::{PATIENCE, Stage, items, says, text};
use crate::workload::bracketed;

/// The Secret with the webhook's certificate.
pub const SECRET: &str = "braid-webhook-tls";
/// The webhook configurations, both named `braid`, and how many webhooks each has.
pub const CONFIGURATIONS: [(&str, usize); 2] =
    [("validatingwebhookconfiguration", 4), ("mutatingwebhookconfiguration", 1)];
/// The name by which API servers call the webhook.
const SERVICE: &str = "braid-webhook.braid-system.svc";
/// By which the CA in a webhook configuration becomes the CA injector's.
pub const INJECT: &str = "cert-manager.io/inject-ca-from";
/// On a Secret of cert-manager's: the Certificate that it is of.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";

/// kubectl in Braid's own namespace; it must succeed.
///
/// # Errors
/// When it fails, with what it said.
pub fn system(stage: &Stage, words: &[&str]) -> Result<String> {
    stage.sandbox().kubectl(&[&["-n", "braid-system"], words].concat())
}

/// One key of a Secret in Braid's namespace, decoded.
///
/// # Errors
/// When there is no such Secret; a key that is missing is empty.
pub fn part_of(stage: &Stage, secret: &str, key: &str) -> Result<String> {
    let template = format!("go-template={{{{with index .data \"{key}\"}}}}{{{{base64decode .}}}}{{{{end}}}}");
    system(stage, &["get", "secret", secret, "-o", &template])
}

/// What the webhook's Secret says: the CA and the serving certificate.
///
/// # Errors
/// When there is no Secret.
pub fn secret(stage: &Stage) -> Result<[String; 2]> {
    Ok([part_of(stage, SECRET, "ca.crt")?, part_of(stage, SECRET, "tls.crt")?])
}

/// Waits until the webhook's Secret has another serving certificate than `former`, and returns what it says.
///
/// # Errors
/// When it has not within the deadline.
pub fn await_other(stage: &Stage, former: &str) -> Result<[String; 2]> {
    eventually("another certificate in the Secret", PATIENCE, || {
        Ok(secret(stage).ok().filter(|[_, certificate]| !certificate.is_empty() && certificate != former))
    })
}

/// The Certificate of cert-manager's that the webhook's Secret is of; `None` where the controller keeps it.
///
/// # Errors
/// When there is no Secret.
pub fn certificate_of_secret(stage: &Stage) -> Result<Option<String>> {
    let found = stage.sandbox().kubectl_json(&["-n", "braid-system", "get", "secret", SECRET])?;
    Ok(found["metadata"]["annotations"][CERTIFICATE_NAME].as_str().map(str::to_owned))
}

/// What the API server says to a pod with these annotations, which must not be let in.
///
/// # Errors
/// When it is let in.
pub fn not_let_in(stage: &Stage, annotations: &[(&str, &str)]) -> Result<String> {
    match stage.rehearse(annotations) {
        Ok((pod, _)) => bail!("let in: {pod}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Asks twice for what the webhook refuses. Every answer that is not its own counts: a pod would be let in unseen, and of
/// Braid's own kinds nothing could be changed.
fn ask(stage: &Stage, round: usize) -> impl Iterator<Item = String> {
    let pod = not_let_in(stage, &[("ip-family", "nonsense")]).and_then(|s| says(&s, &["nonsense"]));
    let leave = ["delete", "network", "overlay", "--wait=false", "--dry-run=server"];
    let network = stage.refused(&leave).and_then(|s| says(&s, &["overlay", "Subnet"]));
    let broken = [pod, network].into_iter().filter_map(Result::err);
    broken.map(move |error| format!("round {round}: {error:#}"))
}

/// Calls every replica as an API server does that has just started: by what the configurations trust at this moment. API
/// servers that run keep their connections, and see nothing of a certificate that none of them could verify.
fn new_caller(stage: &Stage) -> Result<()> {
    for (kind, _) in CONFIGURATIONS {
        let bundle = || Ok::<_, anyhow::Error>(trusted(stage, kind)?.into_iter().next().unwrap_or_default());
        let mut known = bundle()?;
        while let Err(error) = verified(stage, &known) {
            // What was trusted before the call may be out of date after it, for an API server it would not be.
            let now = bundle()?;
            ensure!(now != known, "{kind}: {error:#}");
            known = now;
        }
    }
    Ok(())
}

/// Opens a connection to every replica.
fn verified(stage: &Stage, bundle: &str) -> Result<()> {
    // Replicas come and go. Of curl's exit codes two count, for a certificate that is not trusted and a CA that is none.
    let script = "printf %s \"$1\" | curl -sS -m 5 -o /dev/null --cacert /dev/stdin --resolve \"$2\" \"$3\"
                  case $? in 60|77) exit 1;; esac";
    for (address, port) in replicas(stage)? {
        let host = bracketed(address);
        let (resolve, url) = (format!("{SERVICE}:{port}:{host}"), format!("https://{SERVICE}:{port}/"));
        stage
            .sandbox()
            .node_exec(&stage.nodes()[0], &["sh", "-c", script, "sh", bundle, &resolve, &url])
            .with_context(|| format!("what {host} serves is not trusted"))?;
    }
    Ok(())
}

/// Asks the webhook a hundred times.
///
/// # Errors
/// When a call fails, with all that did.
pub fn answers(stage: &Stage) -> Result<()> {
    let failed: Vec<String> = (0..50).flat_map(|round| ask(stage, round)).collect();
    ensure!(failed.is_empty(), "of 100 calls {} failed: {failed:?}", failed.len());
    new_caller(stage)
}

/// Runs `body` while the webhook is asked all the time.
///
/// # Errors
/// When `body` fails, or a call does.
pub fn under_calls<T>(stage: &Stage, body: impl FnOnce() -> Result<T>) -> Result<T> {
    /// Ends the asking, also when `body` panics.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let rounds = (0..).take_while(|_| !is_over.load(Ordering::Relaxed));
            let by_new = || new_caller(stage).err().map(|error| format!("{error:#}"));
            let failed: Vec<Vec<String>> =
                rounds.map(|round| ask(stage, round).chain(by_new()).collect()).collect();
            (failed.len(), failed.concat())
        });
        let over = Over(&is_over);
        let outcome = body();
        drop(over);
        let (rounds, failed) = asking.join().map_err(|_| anyhow!("the thread that asks ended by a panic"))?;
        let value = outcome?;
        ensure!(failed.is_empty(), "of {} calls {} failed: {failed:?}", 2 * rounds, failed.len());
        Ok(value)
    })
}

/// What each webhook of a configuration trusts, PEM.
///
/// # Errors
/// When there is no such configuration.
pub fn trusted(stage: &Stage, kind: &str) -> Result<Vec<String>> {
    // No PEM has a semicolon.
    let template =
        "go-template={{range .webhooks}}{{with .clientConfig.caBundle}}{{base64decode .}}{{end}};{{end}}";
    let found = stage.sandbox().kubectl(&["get", kind, "braid", "-o", template])?;
    Ok(found.split_terminator(';').map(str::to_owned).collect())
}

/// Waits until both configurations trust what is in the Secret, and nothing else.
///
/// # Errors
/// When they do not within the deadline.
pub fn await_trust(stage: &Stage) -> Result<()> {
    eventually("both configurations to trust the Secret's CA", PATIENCE, || {
        let [ca, _] = secret(stage)?;
        for (kind, webhooks) in CONFIGURATIONS {
            if trusted(stage, kind)? != vec![ca.clone(); webhooks] {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// Waits until every replica serves this certificate, PEM.
///
/// # Errors
/// When one does not within the deadline.
pub fn await_served(stage: &Stage, certificate: &str) -> Result<()> {
    eventually("every replica to serve the certificate", PATIENCE, || {
        let replicas = replicas(stage)?;
        for (address, port) in &replicas {
            let url = format!("https://{}:{port}/", bracketed(*address));
            // `%{certs}` is what was served: curl 7.88.
            let call = ["curl", "-sSkg", "-m", "5", "-o", "/dev/null", "-w", "%{certs}", &url];
            if !stage.sandbox().node_exec(&stage.nodes()[0], &call)?.contains(certificate.trim()) {
                return Ok(None);
            }
        }
        Ok((!replicas.is_empty()).then_some(()))
    })
}

/// Where the Service of the webhook leads: the replicas that are ready, and their port.
///
/// # Errors
/// When the API server does not answer, or an EndpointSlice lacks an address or port.
pub fn replicas(stage: &Stage) -> Result<Vec<(IpAddr, u64)>> {
    let selector = "kubernetes.io/service-name=braid-webhook";
    let get = ["-n", "braid-system", "get", "endpointslices", "-l", selector];
    let slices = stage.sandbox().kubectl_json(&get)?;
    let mut found = Vec::new();
    for slice in items(&slices["items"]) {
        let is_ready = |endpoint: &Value| endpoint["conditions"]["ready"] == true;
        for endpoint in items(&slice["endpoints"]).iter().filter(|endpoint| is_ready(endpoint)) {
            let port = slice["ports"][0]["port"].as_u64().context("an EndpointSlice without a port")?;
            found.push((text(&endpoint["addresses"][0]).parse()?, port));
        }
    }
    Ok(found)
}

/// Gives the CA in both configurations to the CA injector (`Some`), or back to the controller.
///
/// # Errors
/// When there is no such configuration.
pub fn annotate(stage: &Stage, certificate: Option<&str>) -> Result<()> {
    let mark = certificate.map_or_else(|| format!("{INJECT}-"), |name| format!("{INJECT}={name}"));
    CONFIGURATIONS.iter().try_for_each(|(kind, _)| {
        stage.sandbox().kubectl(&["annotate", "--overwrite", kind, "braid", &mark]).map(drop)
    })
}

/// Takes everything back from cert-manager, and waits until the controller's own certificate is served.
///
/// # Errors
/// When it is not within the deadline.
pub fn back_to_own(stage: &Stage) -> Result<()> {
    annotate(stage, None)?;
    if certificate_of_secret(stage).unwrap_or_default().is_some() {
        system(stage, &["delete", "secret", SECRET])?;
    }
    eventually("a Secret of the controller", PATIENCE, || {
        Ok(certificate_of_secret(stage)?.is_none().then_some(()))
    })?;
    await_trust(stage)?;
    stage.await_braid()
}
