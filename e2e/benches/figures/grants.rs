//! Addresses per second: the controller against the API server's own rate for the same objects.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use braid_api::{IPBlock, IPInstance};
use braid_e2e::Sandbox;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::place::{self, Events, NAMESPACE};
use crate::report::{Report, median};

const PODS: usize = 300;
const FAMILIES: usize = 2;
const ROUNDS: usize = 3;
/// API writes in flight at once: the controller's own default (`--parallel-grants`).
pub(crate) const IN_FLIGHT: usize = 48;

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "grants",
        "Address grants against the API server's raw create rate",
        "300 pods wait on a node that exists in the API only, with no controller running. A controller is started; the \
         clock runs from the first to the last IPInstance that a watch delivers, two per pod, with the blocks that it \
         claims on the way. Then, with the controller stopped, the very same objects are created by the benchmark with \
         the same number of requests in flight (48), the controller's own client library and its ServiceAccount. Turns \
         alternate; medians of 3.",
        &["contender", "addresses per second", "against the API server"],
    );
    let sandbox = place::braid()?;
    let (mut granted, mut raw) = (Vec::new(), Vec::new());
    place::block_on(async {
        let bench = Bench::new(&sandbox).await?;
        for round in 0..ROUNDS {
            let objects = bench.grants(round, &mut granted).await?;
            bench.creations(&objects, &mut raw).await?;
        }
        bench.paper_nodes_gone().await
    })?;
    place::controllers(&sandbox, 2)?;
    let (ours, theirs) = (median(&granted), median(&raw));
    report.row(["API server, raw creates".to_owned(), format!("{theirs:.0}"), "100 %".to_owned()]);
    let ratio = format!("{:.0} %", 100.0 * ours / theirs);
    report.row(["Braid controller".to_owned(), format!("{ours:.0}"), ratio.clone()]);
    report.keep("granted per second", &granted)?;
    report.keep("created per second", &raw)?;
    report.budget("grants against raw creates", ">= 80 %", ratio, ours >= 0.8 * theirs);
    Ok(report)
}

struct Bench<'a> {
    sandbox: &'a Sandbox,
    admin: Client,
    /// With the rights and the identity of the controller.
    twin: Client,
}

/// An object as it can be made anew.
fn anew(mut object: IPInstance) -> IPInstance {
    let meta = std::mem::take(&mut object.metadata);
    object.metadata.name = meta.name;
    object.metadata.labels = meta.labels;
    object.metadata.annotations = meta.annotations;
    object
}

impl<'a> Bench<'a> {
    async fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let admin = place::client(sandbox, None).await?;
        let twin = place::client(sandbox, Some(place::controller_token(sandbox)?)).await?;
        Ok(Self { sandbox, admin, twin })
    }

    /// One turn of the controller. Returns the objects that it made, which are gone again.
    async fn grants(&self, round: usize, rates: &mut Vec<f64>) -> Result<Vec<IPInstance>> {
        place::controllers(self.sandbox, 0)?;
        let node = format!("paper-{round}");
        let nodes: Api<Node> = Api::all(self.admin.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(place::paper_node(&node))?).await?;
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), NAMESPACE);
        create_pods(&pods, (0..PODS).map(|n| place::pod(&format!("grant-{round}-{n}"), &node, &[]))).await?;

        let instances: Api<IPInstance> = Api::all(self.admin.clone());
        let rate = watched(&instances, &node, PODS * FAMILIES).await?;
        let sandbox = self.sandbox.clone();
        tokio::task::spawn_blocking(move || place::controllers(&sandbox, 1)).await??;
        rates.push(rate.await??);

        place::controllers(self.sandbox, 0)?;
        let made = instances.list(&ListParams::default().fields(&format!("spec.node={node}"))).await?;
        let made: Vec<IPInstance> =
            made.items.into_iter().filter(|i| i.spec.pod.is_some()).map(anew).collect();
        ensure!(made.len() == PODS * FAMILIES, "{} objects", made.len());
        delete_pods(&pods, "").await?;
        self.free(&made).await?;
        Ok(made)
    }

    /// One turn of the API server alone.
    async fn creations(&self, objects: &[IPInstance], rates: &mut Vec<f64>) -> Result<()> {
        let twin: Api<IPInstance> = Api::all(self.twin.clone());
        let node = objects.first().and_then(|o| o.spec.node.clone()).context("objects of a node")?;
        let rate = watched(&Api::all(self.admin.clone()), &node, objects.len()).await?;
        stream::iter(objects)
            .map(|object| twin.create(&POST, object))
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        rates.push(rate.await??);
        self.free(objects).await
    }

    async fn free(&self, objects: &[IPInstance]) -> Result<()> {
        let twin: Api<IPInstance> = Api::all(self.twin.clone());
        let twin = &twin;
        stream::iter(objects)
            .map(|object| async move { twin.delete(&object.name_any(), &DeleteParams::default()).await })
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        Ok(())
    }

    /// Removes the nodes of paper and the blocks that they claimed.
    async fn paper_nodes_gone(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        nodes
            .delete_collection(&DeleteParams::default(), &ListParams::default().labels("bench=paper"))
            .await?;
        let blocks: Api<IPBlock> = Api::all(self.twin.clone());
        for block in blocks.list(&ListParams::default()).await?.items {
            if block.spec.node.starts_with("paper-") {
                blocks.delete(&block.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok(())
    }
}

/// For creations without options.
const POST: PostParams = PostParams { dry_run: false, field_manager: None };

/// Creates pods, many at once.
pub(crate) async fn create_pods(pods: &Api<Pod>, plans: impl Iterator<Item = Value>) -> Result<()> {
    let plans = plans.map(serde_json::from_value).collect::<Result<Vec<Pod>, _>>()?;
    stream::iter(&plans)
        .map(|plan| pods.create(&POST, plan))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

/// Deletes all pods of the namespace with these labels, whether or not somebody runs them.
pub(crate) async fn delete_pods(pods: &Api<Pod>, labels: &str) -> Result<()> {
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    let selected = ListParams::default().labels(labels);
    pods.delete_collection(&now, &selected).await?;
    let deadline = Instant::now() + place::PATIENCE;
    while !pods.list_metadata(&selected).await?.items.is_empty() {
        ensure!(Instant::now() < deadline, "the pods do not go");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Starts to watch for addresses of pods of a node: their number per second, from the first to the last of `count`.
async fn watched(instances: &Api<IPInstance>, node: &str, count: usize) -> Result<JoinHandle<Result<f64>>> {
    let events = place::watch(instances, &format!("spec.node={node}")).await?;
    // A task of its own: what else goes on must not delay the clock.
    Ok(tokio::spawn(first_to_last(events, count)))
}

async fn first_to_last(mut events: Events<IPInstance>, count: usize) -> Result<f64> {
    let (mut seen, mut first) = (BTreeSet::new(), None);
    let deadline = tokio::time::Instant::now() + place::PATIENCE;
    loop {
        let event = tokio::time::timeout_at(deadline, events.try_next()).await;
        let Some(event) = event.with_context(|| format!("{} of {count} addresses came", seen.len()))?? else {
            bail!("the watch ended after {} of {count} addresses", seen.len())
        };
        match event {
            WatchEvent::Added(object) if object.spec.pod.is_some() => {
                seen.insert(object.name_any());
            }
            WatchEvent::Error(error) => bail!("the watch failed: {}", json!(error)),
            _ => continue,
        }
        let first = first.get_or_insert_with(Instant::now);
        if seen.len() == count {
            return Ok((count - 1) as f64 / first.elapsed().as_secs_f64());
        }
    }
}
