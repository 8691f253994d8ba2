//! From bound to Ready: many pods at once, Braid's cluster against one of the same shape with the reference plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use braid_e2e::Sandbox;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::WatchEvent;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::grants::{create_pods, delete_pods};
use crate::place::{self, Events, NAMESPACE, NODES};
use crate::report::{Report, median, percentile};

const PODS: usize = 100;
const ROUNDS: usize = 3;

/// What one round showed, in seconds.
struct Round {
    /// Each pod, from bound to Ready.
    each: Vec<f64>,
    /// From the first that was bound to the last that was Ready.
    all: f64,
}

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "pod-ready",
        "100 pods from bound to Ready",
        "Two clusters of two nodes side by side, one with Braid and one with `ptp` and `host-local`, both dual-stack. \
         100 pods of the smallest image, bound to the nodes from their first moment, are created at once; a watch sees \
         when each is there and when it is Ready. The clusters take turns, three each; pods are removed before the next \
         turn. Most of the time is the runtime's and the kubelet's.",
        &["cluster", "p50", "p99", "all Ready after"],
    );
    let clusters = [("ptp and host-local", place::reference()?), ("Braid", place::braid()?)];
    let mut rounds: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (name, sandbox) in &clusters {
            let measured = place::block_on(measure(sandbox, round))?;
            rounds.entry(name).or_default().push(measured);
        }
    }
    place::down_reference()?;
    let summary = |name: &str| {
        let of = |f: &dyn Fn(&Round) -> f64| median(&rounds[name].iter().map(f).collect::<Vec<_>>());
        [of(&|r| median(&r.each)), of(&|r| percentile(&r.each, 99)), of(&|r| r.all)]
    };
    for (name, _) in &clusters {
        let [p50, p99, all] = summary(name);
        report.row([(*name).to_owned(), format!("{p50:.2} s"), format!("{p99:.2} s"), format!("{all:.2} s")]);
        let samples: Vec<_> = rounds[name].iter().map(|r| json!({"each": r.each, "all": r.all})).collect();
        report.keep(name, samples)?;
    }
    let ratio = summary("Braid")[2] / summary("ptp and host-local")[2];
    report.budget(
        "100 pods Ready, against the reference plugins",
        "not slower (5 % is noise)",
        format!("{ratio:.2}x the time"),
        ratio <= 1.05,
    );
    Ok(report)
}

async fn measure(sandbox: &Sandbox, round: usize) -> Result<Round> {
    let pods: Api<Pod> = Api::namespaced(place::client(sandbox, None).await?, NAMESPACE);
    let name = |n: usize| format!("ready-{round}-{n}");
    let node = |n: usize| format!("node{}", n % usize::from(NODES) + 1);
    let seen = tokio::spawn(all_ready(place::watch(&pods, "").await?));
    create_pods(&pods, (0..PODS).map(|n| place::pod(&name(n), &node(n), &[]))).await?;
    let seen = seen.await?;
    delete_pods(&pods, "").await?;
    seen
}

async fn all_ready(mut events: Events<Pod>) -> Result<Round> {
    let mut bound: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ready: BTreeSet<String> = BTreeSet::new();
    let (mut each, mut begun) = (Vec::new(), None);
    let deadline = tokio::time::Instant::now() + place::PATIENCE;
    loop {
        let event = tokio::time::timeout_at(deadline, events.try_next()).await;
        let Some(event) = event.with_context(|| format!("{} of {PODS} pods are Ready", ready.len()))?? else {
            bail!("the watch ended with {} of {PODS} pods Ready", ready.len())
        };
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
        let now = Instant::now();
        let begun = *begun.get_or_insert(now);
        let since = *bound.entry(pod.name_any()).or_insert(now);
        if place::is_ready(&json!(pod)) && ready.insert(pod.name_any()) {
            each.push((now - since).as_secs_f64());
        }
        if ready.len() == PODS {
            return Ok(Round { each, all: begun.elapsed().as_secs_f64() });
        }
    }
}
