//! API server and etcd are away for 30 seconds: running traffic does not notice, pods that have been given their
//! addresses start all the same, and what was asked for meanwhile happens afterwards.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use braid_e2e::eventually;
use braid_e2e::probe::{ECHO_SERVER, Pings, Stream, netns_of, ping_script};
use braid_e2e::stage::{LEAD_LOST, PATIENCE, Stage, alone, items, text};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan};
use serde_json::Value;

/// The one duration that is itself the subject of a test.
const OUTAGE: Duration = Duration::from_secs(30);

/// A pod that is bound and has its addresses, while its node's container runtime is down and cannot start it.
fn granted_but_not_started(stage: &Stage, node: &str) -> Result<Pod> {
    stage.sandbox().stop(&format!("containerd@{node}"))?;
    stage.create(&[PodPlan::new("granted").on(node)])?;
    let mut pod = stage.pod("granted")?;
    let selector = format!("--field-selector=spec.pod.uid={}", pod.uid);
    pod.addresses = eventually("addresses of the pod", PATIENCE, || {
        let instances = items(&stage.sandbox().kubectl_json(&["get", "ipi", &selector])?["items"]);
        let addresses: Vec<IpAddr> = instances
            .iter()
            .filter_map(|instance| text(&instance["spec"]["address"]).split('/').next()?.parse().ok())
            .collect();
        Ok((addresses.len() == 2).then_some(addresses))
    })?;
    Ok(pod)
}

/// What must work while nobody can be asked, for as long as the outage lasts.
fn during_the_outage(
    stage: &Stage,
    granted: &Pod,
    from: &Pod,
    agent: (&str, &str),
    pings: &[Pings<'_>],
    stream: &mut Stream<'_>,
) -> Result<()> {
    let (sandbox, begin) = (stage.sandbox(), Instant::now());
    ensure!(sandbox.kubectl(&["get", "nodes", "--request-timeout=2s"]).is_err(), "the API server answers");
    sandbox.start(&format!("containerd@{}", granted.node))?;
    eventually("the granted pod's network without an API server", PATIENCE, || {
        netns_of(sandbox, granted).map(Some)
    })?;
    Pings::start(sandbox, from, granted.addresses[0])?.finish_without_loss()?;
    // An agent that starts without an API server knows nothing, and must therefore change nothing.
    let (node, pid) = agent;
    sandbox.node_exec(node, &["kill", "-9", pid])?;
    while begin.elapsed() < OUTAGE {
        stream.progress()?;
        for flow in pings {
            flow.progress()?;
        }
    }
    Ok(())
}

/// Each agent comes back to the API server in its own time. When all have, their nodes find each other in a Network that is new.
fn every_agent_follows(stage: &Stage) -> Result<()> {
    stage.overlay("recovered", 68, &["10.68.0.0/24", "fd00:68::/112"], &Value::Null, &Value::Null)?;
    let nodes = stage.nodes();
    let plans =
        nodes.iter().map(|node| PodPlan::new(&format!("new-{node}")).on(node).in_network("recovered"));
    let pods = stage.start(&plans.collect::<Vec<_>>())?;
    let all: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    for pod in &pods {
        eventually(&format!("answers for {}", pod.name), PATIENCE, || {
            let silent = stage.script(pod, &ping_script(&all, ""))?;
            ensure!(silent.trim().is_empty(), "{} gets none from {silent}", pod.name);
            Ok(Some(()))
        })?;
    }
    Ok(())
}

#[test]
fn running_traffic_is_untouched_and_work_is_done_afterwards() {
    alone("outage", |stage| {
        stage.provokes_error(LEAD_LOST);
        let sandbox = stage.sandbox();
        let nodes = stage.nodes();
        let pods = stage.start(&[
            PodPlan::new("left").on(&nodes[0]),
            PodPlan::new("right").on(&nodes[1]).running(&ECHO_SERVER),
            PodPlan::new("leaving").on(&nodes[1]),
        ])?;
        let granted = granted_but_not_started(stage, &nodes[2])?;
        let mut pings = Vec::new();
        for family in FAMILIES {
            pings.push(Pings::start(sandbox, &pods[0], pods[1].address(family)?)?);
        }
        let mut stream = Stream::start(sandbox, &pods[0], pods[1].addresses[0])?;

        // Nobody can be asked for it later.
        let agent = stage.pid(&stage.agent(&nodes[1])?)?;
        // Asked for in the last moment: the node tears the pod down while nobody can be told.
        stage.kubectl(&["delete", "pod", "leaving", "--wait=false"])?;
        sandbox.stop("apiserver")?;
        sandbox.stop("etcd")?;
        let outcome = during_the_outage(stage, &granted, &pods[0], (&nodes[1], &agent), &pings, &mut stream);
        sandbox.start(&format!("containerd@{}", nodes[2]))?;
        sandbox.start("etcd")?;
        sandbox.start("apiserver")?;
        outcome?;
        eventually("API server", PATIENCE, || sandbox.kubectl(&["get", "--raw=/readyz"]).map(Some))?;
        stage.create(&[PodPlan::new("afterwards").on(&nodes[1])])?;
        stage.await_braid()?;

        for flow in pings {
            eprintln!("{} packets, none lost", flow.finish_without_loss()?.answered);
        }
        eprintln!("{} lines over one connection", stream.finish()?);
        stage.kubectl(&["wait", "--for=delete", "pod/leaving", "--timeout=180s"])?;
        stage.await_free(&pods[2].addresses)?;
        let started = stage.await_pod("granted")?;
        ensure!(
            granted.addresses.iter().all(|address| started.addresses.contains(address)),
            "granted {:?}, has {:?}",
            granted.addresses,
            started.addresses
        );
        stage.await_pod("afterwards")?;
        every_agent_follows(stage)?;
        stage.await_agreement().map(drop)
    });
}
