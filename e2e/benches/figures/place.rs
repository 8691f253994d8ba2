//! The clusters that benchmarks run on: one with Braid, one with the reference CNI plugins, of the same shape.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use braid_e2e::{Options, Sandbox, eventually};
use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// How long anything may take before a benchmark gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Namespace of the pods of benchmarks.
pub(crate) const NAMESPACE: &str = "bench";
/// Nodes of each cluster.
pub(crate) const NODES: u16 = 2;

const BRAID: &str = "bench";
const REFERENCE: &str = "bench-ref";

/// A file of this repository.
fn file(path: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path).display().to_string()
}

/// The cluster with Braid and the sample overlay, ready.
pub(crate) fn braid() -> Result<Sandbox> {
    let sandbox = Sandbox::ensure(BRAID, &Options { nodes: NODES, ..Options::default() })?;
    await_braid(&sandbox)?;
    let overlay = file("config/samples/overlay.yaml");
    eventually("the overlay", PATIENCE, || {
        sandbox.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &overlay]).map(Some)
    })?;
    for object in ["network/overlay", "subnet/overlay-v4", "subnet/overlay-v6"] {
        sandbox.await_condition("default", object, "Ready", PATIENCE)?;
    }
    namespace(&sandbox)?;
    Ok(sandbox)
}

/// The cluster with `ptp` and `host-local`, ready.
pub(crate) fn reference() -> Result<Sandbox> {
    let options = Options { nodes: NODES, no_braid: true, ..Options::default() };
    let sandbox = Sandbox::ensure(REFERENCE, &options)?;
    namespace(&sandbox)?;
    Ok(sandbox)
}

/// Removes both.
pub(crate) fn down() -> Result<()> {
    Sandbox::down(BRAID)?;
    Sandbox::down(REFERENCE)
}

/// Removes the one that only the comparison of pods needs.
pub(crate) fn down_reference() -> Result<()> {
    Sandbox::down(REFERENCE)
}

/// Waits until Braid's own pods run.
pub(crate) fn await_braid(sandbox: &Sandbox) -> Result<()> {
    for object in ["deployment/braid-controller", "daemonset/braid-node"] {
        sandbox.kubectl(&["-n", "braid-system", "rollout", "status", object, "--timeout=180s"])?;
    }
    sandbox.kubectl(&["wait", "--for=condition=Ready", "nodes", "-l", "!bench", "--timeout=180s"]).map(drop)
}

fn namespace(sandbox: &Sandbox) -> Result<()> {
    sandbox.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string(),
    )?;
    eventually("service account of the namespace", PATIENCE, || {
        sandbox.kubectl(&["-n", NAMESPACE, "get", "serviceaccount", "default"]).map(Some)
    })?;
    Ok(())
}

/// A pod of the smallest image, or of the toolbox when it has a command, bound to a node from its first moment.
pub(crate) fn pod(name: &str, node: &str, command: &[&str]) -> Value {
    let image = if command.is_empty() { "localhost/pause:1" } else { "localhost/braid-test:dev" };
    let mut container = json!({"name": "main", "image": image, "imagePullPolicy": "Never"});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "containers": [container],
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        },
    })
}

/// A node that exists in the API only.
pub(crate) fn paper_node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"bench": "paper"}},
        "spec": {"taints": [{"key": "bench", "value": "paper", "effect": "NoSchedule"}]},
    })
}

/// Sets the number of controllers and waits until that many run.
pub(crate) fn controllers(sandbox: &Sandbox, count: usize) -> Result<()> {
    let replicas = format!("--replicas={count}");
    sandbox.kubectl(&["-n", "braid-system", "scale", "deployment/braid-controller", &replicas])?;
    eventually("the wanted number of controllers", PATIENCE, || {
        let selector = "app.kubernetes.io/name=braid-controller";
        let pods = sandbox.kubectl_json(&["-n", "braid-system", "get", "pods", "-l", selector])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        Ok((pods.len() == count && ready == count).then_some(()))
    })
}

/// Whether a pod's condition Ready is True.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Runs a future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // A second provider is refused, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

/// A client with all rights, or with those of the owner of a token.
pub(crate) async fn client(sandbox: &Sandbox, token: Option<String>) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(sandbox.kubeconfig())?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    if let Some(token) = token {
        config.auth_info.client_certificate = None;
        config.auth_info.client_certificate_data = None;
        config.auth_info.client_key = None;
        config.auth_info.client_key_data = None;
        config.auth_info.token = Some(token.into());
    }
    Client::try_from(config).context("cannot reach the API server")
}

/// What happens to objects from a moment on.
pub(crate) type Events<K> = BoxStream<'static, Result<WatchEvent<K>, kube::Error>>;

/// Watches objects with these fields. Whatever happens after this has returned is delivered.
pub(crate) async fn watch<K>(api: &Api<K>, fields: &str) -> Result<Events<K>>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let list = api.list_metadata(&ListParams::default().fields(fields).limit(1)).await?;
    let version = list.metadata.resource_version.context("a list without a version")?;
    Ok(api.watch(&WatchParams::default().fields(fields).timeout(290), &version).await?.boxed())
}

/// A token of the controller's ServiceAccount: what the benchmark writes as the controller would goes the same way
/// through authentication, authorisation and admission.
pub(crate) fn controller_token(sandbox: &Sandbox) -> Result<String> {
    let token = sandbox.kubectl(&["-n", "braid-system", "create", "token", "braid-controller"])?;
    Ok(token.trim().to_owned())
}

/// Process ids of a program on a node, as the node numbers them.
pub(crate) fn pids(sandbox: &Sandbox, node: &str, program: &str) -> Result<Vec<u32>> {
    let output = sandbox.node_exec_output(node, &["pgrep", "-x", program])?;
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(|word| word.parse().map_err(|_| anyhow!("'{word}' is no process")))
        .collect()
}
