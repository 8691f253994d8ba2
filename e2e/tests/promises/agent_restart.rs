//! An agent that is killed, restarted or replaced by another version costs running traffic nothing.

use std::time::Duration;

use anyhow::{Result, anyhow};
use braid_e2e::daemons::Program;
use braid_e2e::eventually;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::known::known_failure;
use braid_e2e::probe::{ECHO_SERVER, Pings, Stream};
use braid_e2e::stage::{Stage, alone, items};
use braid_e2e::workload::{FAMILIES, PodPlan};

/// Pings in both families and in both directions, and one TCP stream, between pods on two nodes of different racks.
fn with_traffic(stage: &Stage, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let nodes = stage.nodes();
    let pods = stage.start(&[
        PodPlan::new("left").on(&nodes[0]),
        PodPlan::new("right").on(&nodes[1]).running(&ECHO_SERVER),
        PodPlan::new("beside").on(&nodes[1]),
    ])?;
    let mut pings = Vec::new();
    for family in FAMILIES {
        pings.push(Pings::start(stage.sandbox(), &pods[0], pods[1].address(family)?)?);
        pings.push(Pings::start(stage.sandbox(), &pods[1], pods[2].address(family)?)?);
    }
    let stream = Stream::start(stage.sandbox(), &pods[0], pods[1].addresses[0])?;
    action()?;
    for flow in pings {
        let outcome = flow.finish_without_loss()?;
        eprintln!("{} packets, none lost", outcome.answered);
    }
    eprintln!("{} lines over one connection", stream.finish()?);
    Ok(())
}

#[test]
fn killed_agents_lose_nothing() {
    alone("agent_killed", |stage| {
        with_traffic(stage, || {
            let nodes = stage.nodes();
            stage.await_agreement()?;
            let before = KernelState::of(stage.sandbox(), &nodes[1])?;
            for node in [&nodes[1], &nodes[0], &nodes[1]] {
                stage.replace_agent(node)?;
            }
            let after = KernelState::of(stage.sandbox(), &nodes[1])?;
            let difference = after.without(&["state"]).difference(&before.without(&["state"]));
            anyhow::ensure!(difference.is_empty(), "the new agent found or made a difference:\n{difference}");
            Ok(())
        })
    });
}

#[test]
fn an_upgrade_loses_nothing() {
    alone("agent_upgrade", |stage| {
        with_traffic(stage, || {
            let before: Vec<String> =
                stage.daemons(Program::Agent)?.into_iter().map(|agent| agent.pod).collect();
            stage.sandbox().kubectl(&["-n", "braid-system", "rollout", "restart", "daemonset/braid-node"])?;
            stage.await_braid()?;
            let after = stage.daemons(Program::Agent)?;
            anyhow::ensure!(
                after.len() == before.len() && after.iter().all(|agent| !before.contains(&agent.pod)),
                "not every agent is a new one: {after:?}"
            );
            Ok(())
        })
    });
}

/// The kubelet asks the runtime for the state of the network every five seconds, and tells the API server at once.
const SEVERAL_LOOKS: Duration = Duration::from_secs(20);

#[test]
fn a_node_stays_ready_while_its_agent_is_away() {
    alone("agent_away", |stage| {
        stage.changes_the_installation();
        let node = stage.nodes()[1].clone();
        let pods = [PodPlan::new("here").on(&node), PodPlan::new("there").on(&stage.nodes()[0])];
        let pods = stage.start(&pods)?;
        let agent = stage.agent(&node)?;
        // Without the DaemonSet nobody brings the agent back.
        let system = ["-n", "braid-system", "delete"];
        stage.sandbox().kubectl(&[&system[..], &["daemonset", "braid-node", "--cascade=orphan"]].concat())?;
        stage.sandbox().kubectl(&[&system[..], &["pod", &agent.pod, "--timeout=60s"]].concat())?;
        let pings = Pings::start(stage.sandbox(), &pods[0], pods[1].addresses[0])?;
        let told = eventually("the node to be NotReady", SEVERAL_LOOKS, || {
            let object = stage.sandbox().kubectl_json(&["get", "node", &node])?;
            let taints = items(&object["spec"]["taints"]);
            Ok(taints.into_iter().find(|taint| taint["key"] == "node.kubernetes.io/not-ready"))
        });
        let stayed = told.map_or(Ok(()), |told| Err(anyhow!("{node} says {told}")));
        pings.finish_without_loss()?;
        known_failure("node-ready-without-agent", stayed)
    });
}
