//! Looking into a cluster: status, logs, and the bundle of facts that a failed test leaves behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::exec::{command, output, run};
use crate::network::in_netns;
use crate::options::Options;
use crate::parts::kubectl_json;
use crate::registry;
use crate::supervisor::{ComponentStatus, Order, Reply, send};

/// A cluster at one moment, as `status -o json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) dir: String,
    pub(crate) kubeconfig: String,
    pub(crate) options: Options,
    pub(crate) nodes: Vec<NodeStatus>,
    pub(crate) components: Vec<ComponentStatus>,
}

/// One node at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeStatus {
    pub(crate) name: String,
    pub(crate) rack: u16,
    /// Whether its namespaces exist.
    pub(crate) running: bool,
    /// Whether Kubernetes calls it Ready; absent when the API server does not say.
    pub(crate) ready: Option<bool>,
    pub(crate) addresses: Vec<String>,
}

pub(crate) fn status(cluster: &Cluster) -> Status {
    let objects = kubectl_json(
        &cluster.programs,
        &cluster.layout.kubeconfig(),
        &["get", "nodes", "--request-timeout=5s"],
    )
    .ok();
    let nodes = cluster.nodes.iter().map(|node| NodeStatus {
        name: node.name.clone(),
        rack: node.rack,
        running: registry::process(&cluster.layout.name, &node.name).is_some(),
        ready: objects.as_ref().and_then(|objects| is_ready(objects, &node.name)),
        addresses: cluster
            .options
            .families()
            .iter()
            .map(|family| node.address(*family).to_string())
            .collect(),
    });
    Status {
        name: cluster.layout.name.clone(),
        dir: cluster.layout.dir.display().to_string(),
        kubeconfig: cluster.layout.kubeconfig().display().to_string(),
        options: cluster.options.clone(),
        nodes: nodes.collect(),
        components: components(cluster),
    }
}

fn is_ready(objects: &Value, name: &str) -> Option<bool> {
    let items = objects["items"].as_array()?;
    let node = items.iter().find(|node| node["metadata"]["name"] == name)?;
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    Some(ready["status"] == "True")
}

/// All components of all supervisors that answer.
pub(crate) fn components(cluster: &Cluster) -> Vec<ComponentStatus> {
    let mut all = Vec::new();
    for scope in cluster.scopes() {
        if let Ok(Reply::Status(list)) = send(&registry::socket(&cluster.layout.name, &scope), &Order::Status)
        {
            all.extend(list);
        }
    }
    all
}

/// How much of a cluster runs, as a few words for people: of one whose machine was restarted or whose processes were
/// ended, only files are left.
pub(crate) fn remains(name: &str) -> String {
    let alive = registry::processes(name).len();
    let wanted = Cluster::find(name).map_or(0, |cluster| cluster.scopes().len());
    match alive {
        0 => format!("dead; 'e2e/sandbox down --name {name}' removes what is left"),
        _ if alive >= wanted => "up".to_owned(),
        _ => format!(
            "{} of {wanted} parts (nodes, control plane) off; 'e2e/sandbox status --name {name}' says which",
            wanted - alive
        ),
    }
}

/// The status as a table for people.
pub(crate) fn print_status(status: &Status) {
    println!("sandbox {} in {}", status.name, status.dir);
    println!("export KUBECONFIG={}\n", status.kubeconfig);
    println!("{:<10} {:<6} {:<9} ADDRESSES", "NODE", "RACK", "READY");
    for node in &status.nodes {
        let ready = match (node.running, node.ready) {
            (false, _) => "off",
            (true, Some(true)) => "yes",
            (true, Some(false)) => "no",
            (true, None) => "unknown",
        };
        println!("{:<10} {:<6} {:<9} {}", node.name, node.rack, ready, node.addresses.join(" "));
    }
    println!("\n{:<22} {:<9} {:>8} {:>7}", "COMPONENT", "STATE", "RESTARTS", "SINCE");
    for component in &status.components {
        let since = format!("{}s", component.seconds);
        println!("{:<22} {:<9} {:>8} {:>7}", component.component, component.state, component.restarts, since);
    }
}

/// The last lines of a file, or a word about why there are none.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// What a person needs after `up` failed: which component looks bad, what it said last, and what to do.
pub(crate) fn diagnose(cluster: &Cluster) -> String {
    let mut text = String::new();
    let suspects: Vec<ComponentStatus> = components(cluster)
        .into_iter()
        .filter(|component| component.state != "running" || component.restarts > 0)
        .collect();
    for component in &suspects {
        let log = cluster.layout.logs().join(format!("{}.log", component.component));
        text += &format!(
            "--- {} is {} after {} restarts; its last lines:\n{}\n",
            component.component,
            component.state,
            component.restarts,
            tail(&log, 8)
        );
    }
    let questions: [&[&str]; 2] = [
        &["get", "pods", "-A", "-o", "wide", "--request-timeout=5s"],
        &[
            "get",
            "events",
            "-A",
            "--field-selector=type=Warning",
            "--sort-by=.lastTimestamp",
            "--request-timeout=5s",
        ],
    ];
    for question in questions {
        if let Ok(answer) = run(cluster.kubectl().args(question)) {
            let lines: Vec<&str> = answer.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            text += &format!("--- kubectl {}\n{last}\n", question[..2].join(" "));
        }
    }
    for (namespace, pod) in unready_pods(cluster) {
        let logs = ["-n", &namespace, "logs", &pod, "--all-containers", "--tail=5", "--request-timeout=5s"];
        let said = run(cluster.kubectl().args(logs)).unwrap_or_else(|error| format!("{error:#}"));
        text += &format!("--- pod {namespace}/{pod} is not ready; its last lines:\n{said}\n");
    }
    let name = &cluster.layout.name;
    text += &format!(
        "look at 'e2e/sandbox status --name {name}' and 'e2e/sandbox logs --name {name} <component>' ({}); \
         'e2e/sandbox down --name {name}' removes everything",
        cluster.layout.logs().display()
    );
    text
}

/// Namespace and name of pods that run but are not ready.
fn unready_pods(cluster: &Cluster) -> Vec<(String, String)> {
    let question = ["get", "pods", "-A", "--request-timeout=5s"];
    let pods = kubectl_json(&cluster.programs, &cluster.layout.kubeconfig(), &question).unwrap_or_default();
    let waits = |pod: &&Value| {
        let containers = pod["status"]["containerStatuses"].as_array();
        containers.into_iter().flatten().any(|container| container["ready"] == false)
    };
    let name = |pod: &Value| {
        let field = |field: &str| pod["metadata"][field].as_str().map(str::to_owned);
        Some((field("namespace")?, field("name")?))
    };
    pods["items"].as_array().into_iter().flatten().filter(waits).filter_map(name).collect()
}

/// Prints the log of one component, or the last lines of each.
pub(crate) fn print_logs(cluster: &Cluster, component: Option<&str>) -> Result<()> {
    let logs = cluster.layout.logs();
    if let Some(component) = component {
        let path = logs.join(format!("{component}.log"));
        if !path.exists() {
            bail!("there is no log of '{component}': the logs are in {}", logs.display());
        }
        let mut file = fs::File::open(&path)?;
        std::io::copy(&mut file, &mut std::io::stdout())?;
        return Ok(());
    }
    let mut paths: Vec<_> = fs::read_dir(&logs)?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        println!("=== {}\n{}\n", path.display(), tail(&path, 10));
    }
    Ok(())
}

/// What is asked inside every network namespace of a node.
const NODE_QUESTIONS: [(&str, &[&str]); 13] = [
    ("link", &["ip", "-d", "-s", "link"]),
    ("addr", &["ip", "addr"]),
    ("rule", &["ip", "rule"]),
    ("rule6", &["ip", "-6", "rule"]),
    ("route", &["ip", "route", "show", "table", "all"]),
    ("route6", &["ip", "-6", "route", "show", "table", "all"]),
    ("neigh", &["ip", "neigh"]),
    ("neigh-proxy", &["sh", "-c", "ip neigh show proxy; ip -6 neigh show proxy"]),
    ("fdb", &["bridge", "fdb"]),
    ("nft", &["nft", "list", "ruleset"]),
    ("sockets", &["ss", "-anp"]),
    ("netns", &["ip", "netns"]),
    ("containers", &["ctr", "-n", "k8s.io", "containers", "list"]),
];

/// What is asked of the API server.
const API_QUESTIONS: [(&str, &[&str]); 5] = [
    ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
    ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    (
        "objects.yaml",
        &["get", "nodes,pods,services,endpointslices,daemonsets,deployments", "-A", "-o", "yaml"],
    ),
    ("braid.yaml", &["get", "braid", "-A", "-o", "yaml"]),
    ("node-descriptions.txt", &["describe", "nodes"]),
];

/// Writes a gzipped tar with everything that helps to understand a failure afterwards. What cannot be had is replaced
/// by the reason.
pub(crate) fn bundle(cluster: &Cluster, out: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("cannot make a folder for the bundle")?;
    let put = |name: String, call: Result<Command>| -> Result<()> {
        let path = work.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let text = match call.and_then(|mut call| output(&mut call)) {
            Ok(output) => [output.stdout, output.stderr].concat(),
            Err(error) => format!("{error:#}\n").into_bytes(),
        };
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for node in &cluster.nodes {
        for (name, question) in NODE_QUESTIONS {
            put(format!("{}/{name}.txt", node.name), cluster.in_node(&node.name, question))?;
        }
        let journal = ["find", "/etc/cni", "/run/braid", "/var/lib/braid", "/var/lib/cni", "-type", "f"];
        put(format!("{}/files.txt", node.name), cluster.in_node(&node.name, &journal))?;
        let logs = "tail -n 2000 /var/log/pods/*/*/*.log";
        put(format!("{}/pod-logs.txt", node.name), cluster.in_node(&node.name, &["sh", "-c", logs]))?;
    }
    for scope in ["fabric", "router"] {
        for (name, question) in NODE_QUESTIONS.iter().take(9) {
            put(format!("{scope}/{name}.txt"), Ok(in_netns(&cluster.layout.netns(scope), question)))?;
        }
    }
    for (name, question) in API_QUESTIONS {
        let mut kubectl = cluster.kubectl();
        kubectl.args(question).arg("--request-timeout=20s");
        put(format!("api/{name}"), Ok(kubectl))?;
    }
    fs::write(work.path().join("status.json"), serde_json::to_vec_pretty(&status(cluster))?)?;
    run(command(["cp", "-r"]).arg(cluster.layout.logs()).arg(work.path().join("logs")))?;
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    run(command(["tar", "-czf"]).arg(out).arg("-C").arg(work.path()).arg("."))
        .with_context(|| format!("cannot write {}", out.display()))
        .map(drop)
}
