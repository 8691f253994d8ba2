//! Pod admission as the API server sees it: real reviews over HTTPS against the running controller, one at a time on a kept
//! connection, to the address of the Service's endpoint, under the name and the CA that the webhook configuration gives.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use braid_api::IPInstance;
use braid_e2e::Sandbox;
use kube::api::ListParams;
use kube::{Api, Client, Config, ResourceExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::place::{self, NAMESPACE};
use crate::report::{Report, percentile};
use crate::runner::own_path;

/// Reviews that are measured.
const ROUNDS: usize = 2_000;
/// Fixed addresses of each sort; pods use them in turn.
const ADDRESSES: usize = 100;
/// The design's limit for one pod, p99, milliseconds.
const LIMIT: f64 = 5.0;

/// What a pod asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Whatever address there is.
    Any,
    /// A fixed address that nobody has.
    Free,
    /// A fixed address that somebody has, which is a warning.
    Taken,
}

impl Wish {
    const ALL: [Self; 3] = [Self::Any, Self::Free, Self::Taken];

    /// Half of the pods are plain.
    fn of(round: usize) -> Self {
        [Self::Any, Self::Free, Self::Any, Self::Taken][round % 4]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "a plain pod",
            Self::Free => "a pod with a fixed address",
            Self::Taken => "a pod with a fixed address that is taken",
        }
    }
}

/// What one client does, in the network of a node.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    address: SocketAddr,
    /// Name that the certificate must be for.
    server: String,
    /// PEM.
    ca: String,
    free: Vec<String>,
    taken: Vec<String>,
}

/// What came out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Admission {
    /// Milliseconds from the request to the whole answer, by what the pod asked for.
    times: BTreeMap<String, Vec<f64>>,
    /// Answers that did not say what they should have: what was measured then is something else.
    odd: Vec<String>,
}

/// Measures it on the cluster as it is.
pub(crate) fn measure(sandbox: &Sandbox) -> Result<Admission> {
    let (address, node) = endpoint(sandbox)?;
    // As an API server mostly does, from another machine than the controller's.
    let nodes = sandbox.nodes();
    let from = nodes.iter().find(|name| **name != node).unwrap_or(&node);
    let bundle = "go-template={{(index .webhooks 0).clientConfig.caBundle | base64decode}}";
    let ca = sandbox.kubectl(&["get", "mutatingwebhookconfiguration", "braid", "-o", bundle])?;
    let (free, taken) = place::block_on(addresses(sandbox))?;
    let plan = Plan { address, server: "braid-webhook.braid-system.svc".to_owned(), ca, free, taken };
    let program = own_path()?;
    let mut command = sandbox.node_command(from, &[&program, "admission-client"])?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the client of the webhook")?;
    let text = serde_json::to_vec(&plan)?;
    child
        .stdin
        .take()
        .context("the client's input")?
        .write_all(&text)
        .context("cannot hand over the plan")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the client of the webhook on {from} failed");
    serde_json::from_slice(&output.stdout).context("the answer of the webhook's client")
}

/// Where the Service leads, and the node that is there.
fn endpoint(sandbox: &Sandbox) -> Result<(SocketAddr, String)> {
    let selector = "kubernetes.io/service-name=braid-webhook";
    let slices = sandbox.kubectl_json(&["-n", "braid-system", "get", "endpointslices", "-l", selector])?;
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for slice in all(&slices["items"]) {
        let ready = all(&slice["endpoints"]).into_iter().find(|e| e["conditions"]["ready"] == true);
        let port = all(&slice["ports"]).iter().find_map(|port| port["port"].as_u64());
        if let (Some(ready), Some(port)) = (ready, port) {
            let address = ready["addresses"][0].as_str().context("an endpoint without an address")?;
            let node = ready["nodeName"].as_str().unwrap_or_default().to_owned();
            return Ok((SocketAddr::new(address.parse()?, u16::try_from(port)?), node));
        }
    }
    anyhow::bail!("the Service braid-webhook has no ready endpoint")
}

/// IPv4 addresses of the overlay that nobody has, and some that pods have.
async fn addresses(sandbox: &Sandbox) -> Result<(Vec<String>, Vec<String>)> {
    let instances: Api<IPInstance> = Api::all(place::client(sandbox, None).await?);
    let some = ListParams::default().fields("spec.subnet=overlay-v4").limit(u32::try_from(10 * ADDRESSES)?);
    let of_pods = instances.list(&some).await?.items.into_iter().filter(|i| i.spec.pod.is_some());
    let taken: Vec<String> = of_pods.map(|i| i.name_any()).take(ADDRESSES).collect();
    ensure!(!taken.is_empty(), "no pod has an address");
    // Blocks are claimed from below.
    let from_above = (0..=255).rev().flat_map(|c| (1..255).rev().map(move |d| format!("10.244.{c}.{d}")));
    let mut free = Vec::new();
    for address in from_above {
        if instances.get_metadata_opt(&address).await?.is_none() {
            free.push(address);
        }
        if free.len() == ADDRESSES {
            return Ok((free, taken));
        }
    }
    anyhow::bail!("the overlay has only {} free addresses", free.len())
}

/// The client itself: a plan on standard input, times on standard output.
pub(crate) fn ask() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let plan: Plan = serde_json::from_str(&text)?;
    let admission = place::block_on(plan.carry_out())?;
    println!("{}", serde_json::to_string(&admission)?);
    Ok(())
}

impl Plan {
    async fn carry_out(&self) -> Result<Admission> {
        let client = self.client()?;
        let mut found = Admission::default();
        // The first ones connect, and find caches cold.
        for round in 0..ROUNDS + ROUNDS / 10 {
            let wish = Wish::of(round);
            let request = http::Request::post("/mutate-pods?timeout=3s")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(&self.review(wish, round))?)?;
            let begun = Instant::now();
            let text = client.request_text(request).await.context("the webhook does not answer")?;
            let took = begun.elapsed();
            if round >= ROUNDS / 10 {
                let answer: Value = serde_json::from_str(&text)?;
                found.odd.extend(oddity(wish, &answer["response"]));
                found.times.entry(wish.name().to_owned()).or_default().push(took.as_secs_f64() * 1e3);
            }
        }
        Ok(found)
    }

    /// The client of Kubernetes' Rust library: HTTP/1.1 over rustls, with a pool that keeps its connection.
    fn client(&self) -> Result<Client> {
        let mut config = Config::new(format!("https://{}", self.address).parse()?);
        let roots: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(self.ca.as_bytes())
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|_| anyhow::anyhow!("caBundle of the webhook configuration is not PEM"))?;
        config.root_cert = Some(roots);
        config.tls_server_name = Some(self.server.clone());
        Client::try_from(config).context("cannot make a client of the webhook")
    }

    /// What the API server sends for a pod of a Deployment.
    fn review(&self, wish: Wish, round: usize) -> Value {
        let fixed = |list: &[String]| json!({"braid.network/ips": list[round % list.len()]});
        let annotations = match wish {
            Wish::Any => json!({}),
            Wish::Free => fixed(&self.free),
            Wish::Taken => fixed(&self.taken),
        };
        let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
        let resource = json!({"group": "", "version": "v1", "resource": "pods"});
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": format!("00000000-0000-4000-8000-{round:012}"),
                "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
                "namespace": NAMESPACE, "operation": "CREATE", "dryRun": false, "oldObject": null,
                "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
                "userInfo": {
                    "username": "system:serviceaccount:kube-system:replicaset-controller",
                    "uid": "6f2c3c4e-95a8-4f0e-8d5e-0a8d3c1b7a10",
                    "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
                },
                "object": self.pod(&annotations),
            },
        })
    }

    fn pod(&self, annotations: &Value) -> Value {
        let probe =
            json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10});
        let variables: Vec<Value> = (0..12)
            .map(|n| json!({"name": format!("SETTING_{n}"), "value": "a value of some length"}))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "generateName": "shop-6d4b9c7f58-", "namespace": NAMESPACE, "creationTimestamp": null,
                "labels": {"app": "shop", "pod-template-hash": "6d4b9c7f58"}, "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-6d4b9c7f58",
                    "uid": "b6c7d8e9-0000-4000-8000-000000000001", "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {
                "containers": [{
                    "name": "main", "image": "registry.example/shop:1.2.3", "imagePullPolicy": "IfNotPresent",
                    "env": variables, "livenessProbe": probe, "readinessProbe": probe,
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                    "volumeMounts": [{
                        "name": "kube-api-access-x2x4z", "readOnly": true,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    }],
                }],
                "volumes": [{"name": "kube-api-access-x2x4z", "projected": {"defaultMode": 420, "sources": []}}],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "serviceAccountName": "default",
                "terminationGracePeriodSeconds": 30, "securityContext": {},
            },
            "status": {},
        })
    }
}

/// What is wrong with an answer: all pods are let in, and those whose address somebody has with a warning.
fn oddity(wish: Wish, response: &Value) -> Option<String> {
    let is_warned = response["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty());
    let is_right = response["allowed"] == true && is_warned == (wish == Wish::Taken);
    (!is_right).then(|| format!("{}: {response}", wish.name()))
}

impl Admission {
    /// A line of the table per sort of pod, and one for all.
    pub(crate) fn lines(&self) -> Vec<(String, String)> {
        let figures = |times: &[f64]| {
            let [half, most] = [50, 99].map(|part| percentile(times, part));
            format!("{half:.2} / {most:.2} ms")
        };
        let times = |wish: Wish| self.times.get(wish.name()).map_or(&[][..], Vec::as_slice);
        let what = |name: &str| format!("admission of {name} over HTTPS, p50 / p99");
        let mut lines: Vec<_> =
            Wish::ALL.into_iter().map(|wish| (what(wish.name()), figures(times(wish)))).collect();
        lines.push((what("any of these"), figures(&self.all())));
        if let Some(first) = self.odd.first() {
            let count = self.odd.len();
            lines.push((format!("admissions answered otherwise than expected ({first})"), count.to_string()));
        }
        lines
    }

    /// Compares it with the design, and keeps the single measurements.
    pub(crate) fn judge(&self, report: &mut Report, instances: usize) -> Result<()> {
        let most = percentile(&self.all(), 99);
        report.budget(
            &format!("admission of a pod over HTTPS at {instances} IPInstances, p99"),
            "< 5 ms",
            format!("{most:.2} ms"),
            most < LIMIT && self.odd.is_empty(),
        );
        report.keep("admission over HTTPS, milliseconds", &self.times)
    }

    fn all(&self) -> Vec<f64> {
        self.times.values().flatten().copied().collect()
    }
}
