//! Controller and agent in large clusters: resident memory, how long a controller that starts there takes to be ready,
//! what it does when nothing changes, and how fast it admits pods.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use braid_api::{IPInstance, Network, NodeNetwork, Subnet};
use braid_e2e::{Sandbox, eventually};
use braid_types::{Mac, well_known::VTEP_INTERFACE};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::admission;
use crate::grants::{IN_FLIGHT, create_pods, delete_pods};
use crate::place::{self, NAMESPACE, PATIENCE};
use crate::report::{Report, median};

const STARTS: usize = 3;
/// The node whose agent is measured.
const NODE: &str = "node2";
/// How long the largest cluster may take to be filled.
const FILLING: Duration = Duration::from_secs(1200);

/// What the API server holds.
struct Size {
    name: &'static str,
    nodes: usize,
    pods: usize,
    /// Beside those that the pods use.
    subnets: usize,
}

impl Size {
    /// Two per pod; each node has two of its own beside them.
    fn instances(&self) -> usize {
        2 * self.pods
    }
}

pub(crate) fn run() -> Result<Report> {
    measure(&Size { name: "memory", nodes: 1_000, pods: 5_000, subnets: 0 })
}

/// The largest cluster that the design speaks of, on one API server.
pub(crate) fn run_scale() -> Result<Report> {
    measure(&Size { name: "scale", nodes: 1_000, pods: 50_000, subnets: 1_000 })
}

fn measure(size: &Size) -> Result<Report> {
    let Size { nodes, pods, subnets, .. } = size;
    let instances = size.instances();
    let mut report = Report::new(
        size.name,
        &format!("A cluster of {nodes} nodes, {pods} pods and {instances} IPInstances"),
        &format!(
            "The API server holds {nodes} Nodes without a kubelet, each with what its agent would publish, {subnets} \
             Subnets that nobody uses, and {pods} pods bound to the nodes, to which the controller gave {instances} \
             addresses (and each node its own two). Filling counts from the first pod to the last address; meanwhile the \
             pods themselves are created, by the same API server on the same processors. Resident memory is VmRSS of \
             the process; its highest value (VmHWM) includes the grants. The agent of a real node has a route per block, \
             a neighbour per address and an FDB entry for each of those nodes. Start to ready is from the process's \
             start, as the kernel has it, until /readyz answers; medians of {STARTS}. At rest is the processor time that \
             the controller uses in 30 s in which nothing changes. Admission: 2,000 reviews of new pods over HTTPS, one at \
             a time on a kept connection from another node to the controller, from the request to the whole answer; half \
             of the pods ask for a fixed address, and half of those addresses are taken."
        ),
        &["process", "empty cluster", "filled", "highest"],
    );
    let sandbox = place::braid()?;
    place::controllers(&sandbox, 1)?;
    let before = [controller(&sandbox)?, agent(&sandbox)?];
    let filled_in = place::block_on(populate(&sandbox, size))?;
    settle(&sandbox)?;
    let grown = [controller(&sandbox)?, agent(&sandbox)?];
    let waits = [50, 99].map(|part| wait_for_grant(&sandbox, part));
    let idle = idle(&sandbox)?;
    let admission = admission::measure(&sandbox)?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        place::controllers(&sandbox, 0)?;
        starts.push(start(&sandbox)?);
    }
    settle(&sandbox)?;
    let restarted = controller(&sandbox)?;
    if size.pods > 10_000 {
        // Removing that many takes longer than a new cluster, and API servers cut the call short.
        if std::env::var_os("BRAID_BENCH_KEEP").is_none() {
            place::down()?;
        }
    } else {
        place::block_on(clear(&sandbox))?;
        place::controllers(&sandbox, 2)?;
    }

    let mib = |kib: f64| format!("{:.1} MiB", kib / 1024.0);
    for (name, before, grown) in [("controller", &before[0], &grown[0]), ("agent", &before[1], &grown[1])] {
        report.row([name.to_owned(), mib(before.now), mib(grown.now), mib(grown.peak)]);
    }
    report.row(["controller, restarted".to_owned(), "-".to_owned(), mib(restarted.now), mib(restarted.peak)]);
    let ready = median(&starts);
    let mut line = |what: &str, value: String| {
        report.row([what.to_owned(), "-".to_owned(), value, "-".to_owned()]);
    };
    line("controller, start to ready", format!("{ready:.2} s"));
    line("controller at rest, processor", format!("{:.2} %", idle * 100.0));
    line(
        "filling, addresses per second",
        format!("{:.0}", (instances + 2 * nodes) as f64 / filled_in.as_secs_f64()),
    );
    for (part, wait) in ["p50", "p99"].into_iter().zip(waits) {
        line(&format!("a pod's wait for its addresses while filling, {part}"), wait?);
    }
    for (what, figures) in admission.lines() {
        line(&what, figures);
    }
    report.keep("start to ready, seconds", &starts)?;
    let worst = grown[0].now.max(restarted.now);
    report.budget(
        &format!("controller at {instances} IPInstances"),
        "<= 150 MiB",
        mib(worst),
        worst <= 150.0 * 1024.0,
    );
    report.budget(
        &format!("agent at {nodes} nodes"),
        "<= 40 MiB",
        mib(grown[1].now),
        grown[1].now <= 40.0 * 1024.0,
    );
    report.budget("controller, start to ready", "< 30 s", format!("{ready:.2} s"), ready < 30.0);
    admission.judge(&mut report, instances)?;
    report.budget("controller at rest", "about 0", format!("{:.2} %", idle * 100.0), idle < 0.01);
    Ok(report)
}

/// How long `part` of 100 pods waited at most for their addresses: from the controller's histogram, between the limits of a
/// bucket in proportion, as Prometheus' `histogram_quantile` does it.
fn wait_for_grant(sandbox: &Sandbox, part: u32) -> Result<String> {
    let (node, _) = only_controller(sandbox)?.context("no controller runs")?;
    let text = sandbox.node_exec(&node, &["curl", "-sf", "http://127.0.0.1:9430/metrics"])?;
    let buckets: Vec<(f64, f64)> = text
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("braid_controller_grant_seconds_bucket{le=\"")?;
            let (limit, count) = rest.split_once("\"} ")?;
            Some((limit.parse().ok()?, count.parse().ok()?))
        })
        .collect();
    let all = buckets.last().context("the controller has no histogram of grants")?.1;
    let rank = all * f64::from(part) / 100.0;
    let at = buckets.iter().position(|(_, count)| *count >= rank).context("an empty histogram")?;
    let (low, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
    let (high, count) = buckets[at];
    Ok(match high.is_finite() {
        true => format!("{:.2} s", low + (high - low) * (rank - below) / (count - below).max(1.0)),
        false => format!("> {low} s"),
    })
}

/// The part of one processor that the controller uses while nothing changes.
fn idle(sandbox: &Sandbox) -> Result<f64> {
    const SECONDS: u64 = 30;
    let (node, pid) = only_controller(sandbox)?.context("no controller runs")?;
    let before = ticks(sandbox, &node, pid)?;
    // Nothing is awaited here: the passing of time is what is measured.
    std::thread::sleep(Duration::from_secs(SECONDS));
    Ok((ticks(sandbox, &node, pid)? - before) as f64 / 100.0 / SECONDS as f64)
}

/// KiB.
struct Memory {
    now: f64,
    peak: f64,
}

fn memory(sandbox: &Sandbox, node: &str, pid: u32) -> Result<Memory> {
    let status = sandbox.node_exec(node, &["cat", &format!("/proc/{pid}/status")])?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
            .with_context(|| format!("no {name} of process {pid}"))
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// The only controller: its node and its process.
fn only_controller(sandbox: &Sandbox) -> Result<Option<(String, u32)>> {
    for node in sandbox.nodes() {
        // The kernel keeps 15 characters of a program's name.
        if let Some(pid) = place::pids(sandbox, &node, "braid-controlle")?.first() {
            return Ok(Some((node, *pid)));
        }
    }
    Ok(None)
}

fn controller(sandbox: &Sandbox) -> Result<Memory> {
    let (node, pid) = only_controller(sandbox)?.context("no controller runs")?;
    memory(sandbox, &node, pid)
}

fn agent(sandbox: &Sandbox) -> Result<Memory> {
    let pids = place::pids(sandbox, NODE, "braid-node")?;
    memory(sandbox, NODE, *pids.first().context("no agent runs")?)
}

/// Waits until neither process has used a processor for a while: all that there is to do is done.
fn settle(sandbox: &Sandbox) -> Result<()> {
    let mut last = 0;
    let mut quiet = 0;
    eventually("controller and agent to come to rest", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        let (node, pid) = only_controller(sandbox)?.context("no controller runs")?;
        let agent = *place::pids(sandbox, NODE, "braid-node")?.first().context("no agent runs")?;
        let now = ticks(sandbox, &node, pid)? + ticks(sandbox, NODE, agent)?;
        quiet = if now <= last + 5 { quiet + 1 } else { 0 };
        last = now;
        Ok((quiet >= 5).then_some(()))
    })
}

/// Processor time of a process so far, in clock ticks of 10 ms.
fn ticks(sandbox: &Sandbox, node: &str, pid: u32) -> Result<u64> {
    let fields = stat(sandbox, node, pid)?;
    Ok(fields.get(11).copied().unwrap_or_default() + fields.get(12).copied().unwrap_or_default())
}

/// Fields of `/proc/<pid>/stat` from the third on (proc_pid_stat(5)); what is no number is 0.
fn stat(sandbox: &Sandbox, node: &str, pid: u32) -> Result<Vec<u64>> {
    let stat = sandbox.node_exec(node, &["cat", &format!("/proc/{pid}/stat")])?;
    let (_, rest) = stat.rsplit_once(')').context("a line of the kernel")?;
    Ok(rest.split_whitespace().map(|word| word.parse().unwrap_or_default()).collect())
}

/// Starts the controller; seconds from the start of its process until it is ready.
fn start(sandbox: &Sandbox) -> Result<f64> {
    sandbox.kubectl(&["-n", "braid-system", "scale", "deployment/braid-controller", "--replicas=1"])?;
    let deadline = Instant::now() + PATIENCE;
    let (node, pid) = loop {
        ensure!(Instant::now() < deadline, "no controller starts");
        if let Some(found) = only_controller(sandbox)? {
            break found;
        }
    };
    let script =
        "until curl -sf -o /dev/null http://127.0.0.1:9430/readyz; do sleep 0.02; done; cat /proc/uptime";
    let uptime = sandbox.node_exec(&node, &["timeout", "120", "sh", "-c", script])?;
    let now: f64 = uptime.split(' ').next().unwrap_or_default().parse().context("the machine's uptime")?;
    let started = *stat(sandbox, &node, pid)?.get(19).context("start time of the controller")?;
    place::controllers(sandbox, 1)?;
    Ok(now - started as f64 / 100.0)
}

fn node_name(n: usize) -> String {
    format!("mem-{n}")
}

/// Fills the API server; how long the addresses took.
async fn populate(sandbox: &Sandbox, size: &Size) -> Result<Duration> {
    let client = place::client(sandbox, None).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let plans = (0..size.nodes).map(|n| serde_json::from_value(place::paper_node(&node_name(n))));
    let plans = plans.collect::<Result<Vec<Node>, _>>()?;
    let post = PostParams::default();
    stream::iter(&plans)
        .map(|node| nodes.create(&post, node))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    idle_subnets(&client, size.subnets).await?;
    let begun = Instant::now();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    create_pods(
        &pods,
        (0..size.pods).map(|n| place::pod(&format!("mem-{n}"), &node_name(n % size.nodes), &[])),
    )
    .await?;
    await_instances(&client, size).await?;
    let filled_in = begun.elapsed();
    publish(&client, &tunnel_ends(&client).await?).await?;
    Ok(filled_in)
}

/// A Network of no node, and Subnets in it.
async fn idle_subnets(client: &Client, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let network = json!({
        "apiVersion": "braid.network/v1", "kind": "Network", "metadata": {"name": "idle"},
        "spec": {"type": "VXLAN", "vxlan": {"vni": 99}, "nodeSelector": {"matchLabels": {"bench": "nobody"}}},
    });
    Api::<Network>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(network)?)
        .await?;
    let subnets: Api<Subnet> = Api::all(client.clone());
    let subnets = &subnets;
    stream::iter(0..count)
        .map(|n| async move {
            let object = json!({
                "apiVersion": "braid.network/v1", "kind": "Subnet", "metadata": {"name": format!("idle-{n}")},
                "spec": {"network": "idle", "cidr": format!("10.{}.{}.0/24", 100 + n / 250, n % 250)},
            });
            subnets.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
            Ok::<_, anyhow::Error>(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

fn of_paper(instance: &IPInstance) -> bool {
    instance.spec.node.as_deref().is_some_and(|node| node.starts_with("mem-"))
}

/// Addresses in use in both Subnets of the overlay, as their statuses say.
async fn used(subnets: &Api<Subnet>) -> Result<i64> {
    let mut sum = 0;
    for name in ["overlay-v4", "overlay-v6"] {
        sum += subnets.get(name).await?.status.and_then(|status| status.used).unwrap_or_default();
    }
    Ok(sum)
}

/// Waits for the addresses of all pods and nodes. The statuses are asked, as lists would cost more than they tell.
async fn await_instances(client: &Client, size: &Size) -> Result<()> {
    let subnets: Api<Subnet> = Api::all(client.clone());
    // The real nodes have an address per family too.
    let wanted = i64::try_from(size.instances() + 2 * size.nodes + 2 * usize::from(place::NODES))?;
    let deadline = Instant::now() + FILLING;
    loop {
        let used = used(&subnets).await?;
        if used >= wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{used} of {wanted} addresses were granted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The own addresses of each node.
async fn tunnel_ends(client: &Client) -> Result<BTreeMap<String, Vec<String>>> {
    let instances: Api<IPInstance> = Api::all(client.clone());
    let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let list = instances.list(&ListParams::default().fields("spec.subnet=overlay-v4")).await?.items;
    let v6 = instances.list(&ListParams::default().fields("spec.subnet=overlay-v6")).await?.items;
    for end in list.into_iter().chain(v6).filter(|i| of_paper(i) && i.spec.interface == VTEP_INTERFACE) {
        let address = end.spec.address.split('/').next().unwrap_or_default().to_owned();
        ends.entry(end.spec.node.clone().unwrap_or_default()).or_default().push(address);
    }
    Ok(ends)
}

/// Says for every node what its agent would say.
async fn publish(client: &Client, ends: &BTreeMap<String, Vec<String>>) -> Result<()> {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    let api = &api;
    stream::iter(ends.iter().enumerate())
        .map(|(n, (node, addresses))| async move {
            let object = json!({
                "apiVersion": "braid.network/v1", "kind": "NodeNetwork", "metadata": {"name": node}, "spec": {},
            });
            let status = json!({"status": {"networks": [{
                "name": "overlay", "ready": true, "parent": "eth0", "device": "eth0.vxlan4", "mtu": 1450,
                "vtep": {
                    "ip": format!("172.29.{}.{}", n / 250, n % 250 + 1),
                    "links": ["172.29.0.0/16"],
                    "mac": Mac::derived(format!("{node}/overlay").as_bytes()).to_string(),
                    "addresses": addresses,
                },
            }]}});
            api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
            api.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await?;
            Ok::<_, anyhow::Error>(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

async fn clear(sandbox: &Sandbox) -> Result<()> {
    let client = place::client(sandbox, None).await?;
    delete_pods(&Api::namespaced(client.clone(), NAMESPACE), "").await?;
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.delete_collection(&DeleteParams::default(), &ListParams::default().labels("bench=paper")).await?;
    let published: Api<NodeNetwork> = Api::all(client);
    for object in published.list_metadata(&ListParams::default()).await?.items {
        let name = object.name_any();
        if name.starts_with("mem-") {
            published.delete(&name, &DeleteParams::default()).await?;
        }
    }
    ensure!(fs::exists(sandbox.kubeconfig())?, "the cluster is gone");
    Ok(())
}
