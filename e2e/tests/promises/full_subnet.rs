//! A Subnet of exactly N addresses serves exactly N: the tunnel end of every node takes one per family, all the others
//! go to pods, wherever these run. The next pod is told why it waits, and starts as soon as an address is free.

use anyhow::{Context, Result, ensure};
use braid_e2e::daemons::Program;
use braid_e2e::eventually;
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{PATIENCE, Stage, alone, items, text};
use braid_e2e::workload::{Pod, PodPlan};
use serde_json::{Value, json};

/// Addresses of the Subnet: three for the tunnel ends of three nodes, six for pods.
const SIZE: usize = 9;
const BLOCK: &str = "tiny-0";

fn instances_of_pod(stage: &Stage, uid: &str) -> Result<Vec<Value>> {
    let selector = format!("--field-selector=spec.pod.uid={uid}");
    Ok(items(&stage.sandbox().kubectl_json(&["get", "ipi", &selector])?["items"]))
}

fn fill(stage: &Stage) -> Result<Vec<Pod>> {
    let nodes = stage.nodes();
    // One wide family and one that is full: a pod must get both addresses or none.
    stage.declare(&[
        stage.object("Network", "tiny", &json!({"type": "VXLAN", "vxlan": {"vni": 61}})),
        stage.object(
            "Subnet",
            BLOCK,
            &json!({
                "network": "tiny", "cidr": "10.61.0.0/28", "ranges": ["10.61.0.3-10.61.0.11"], "blockSize": 30,
            }),
        ),
        stage.object("Subnet", "tiny-1", &json!({"network": "tiny", "cidr": "fd00:61::/112"})),
    ])?;
    for object in ["network/tiny", "subnet/tiny-0", "subnet/tiny-1"] {
        stage.await_ready(object)?;
    }
    eventually("tunnel ends of all nodes", PATIENCE, || {
        let subnet = stage.sandbox().kubectl_json(&["get", "subnet", BLOCK])?;
        Ok((subnet["status"]["used"] == nodes.len()).then_some(()))
    })?;
    let total = stage.sandbox().kubectl_json(&["get", "subnet", BLOCK])?["status"]["total"].clone();
    ensure!(total == SIZE, "the Subnet says that it has {total} addresses");
    // Most of them on one node, which cannot have that many in blocks of its own: it has to borrow.
    let pods = SIZE - nodes.len();
    let plans: Vec<PodPlan> = (0..pods)
        .map(|number| {
            let node = if number < 2 { &nodes[number] } else { &nodes[2] };
            PodPlan::new(&format!("pod-{number}")).on(node).in_network("tiny")
        })
        .collect();
    stage.start(&plans)
}

/// The node of the controller that leads.
fn leader(stage: &Stage) -> Result<String> {
    let controllers = stage.daemons(Program::Controller)?;
    let leads =
        |node: &str| stage.metric(Program::Controller, node, "braid_controller_leader").ok().flatten();
    let leader = controllers.into_iter().find(|controller| leads(&controller.node) == Some(1.0));
    Ok(leader.context("no controller leads")?.node)
}

/// Waits until what Prometheus is told of each Subnet is what its status says, and both are what the objects are.
fn await_exact_counts(stage: &Stage, leader: &str) -> Result<()> {
    eventually("figures, statuses and objects that agree", PATIENCE, || {
        let figures = stage.figures(Program::Controller, leader)?;
        let list = |kind: &str| {
            Ok::<_, anyhow::Error>(items(&stage.sandbox().kubectl_json(&["get", kind])?["items"]))
        };
        let (subnets, addresses) = (list("subnets")?, list("ipinstances")?);
        let mut counted = 0;
        for subnet in &subnets {
            let name = text(&subnet["metadata"]["name"]);
            for state in ["total", "used", "reserved", "cooling", "available"] {
                let status =
                    subnet["status"][state].as_i64().with_context(|| format!("{name} has no {state}"))?;
                let series = format!("braid_controller_addresses{{subnet=\"{name}\",state=\"{state}\"}}");
                let figure = *figures.get(&series).with_context(|| format!("no {series}"))?;
                // A status ends where its integers do.
                ensure!(
                    figure.min(i64::MAX as f64) == status as f64,
                    "{series} is {figure}, its status {status}"
                );
            }
            for (state, phase) in [("used", "Bound"), ("reserved", "Reserved"), ("cooling", "Releasing")] {
                let is_such =
                    |a: &&Value| a["spec"]["subnet"] == name.as_str() && a["status"]["phase"] == phase;
                let objects = addresses.iter().filter(is_such).count();
                ensure!(
                    subnet["status"][state] == objects,
                    "{name}: {objects} are {phase}, {}",
                    subnet["status"]
                );
                counted += objects;
            }
        }
        ensure!(counted == addresses.len(), "{counted} of {} addresses are counted", addresses.len());
        Ok(Some(()))
    })
}

#[test]
fn exactly_as_many_pods_as_addresses() {
    alone("full_subnet", |stage| {
        let pods = fill(stage)?;
        let addresses: Vec<_> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        ensure!(addresses.len() == 2 * pods.len(), "not every pod has both families: {pods:?}");
        for pod in &pods {
            let silent = stage.script(pod, &ping_script(&addresses, ""))?;
            ensure!(silent.trim().is_empty(), "{} gets no answer from {silent}", pod.name);
        }
        let subnet = stage.sandbox().kubectl_json(&["get", "subnet", BLOCK])?;
        ensure!(subnet["status"]["usage"] == format!("{SIZE}/{SIZE}"), "{}", subnet["status"]);

        let leader = leader(stage)?;
        await_exact_counts(stage, &leader)?;
        let figure = |name: &str| {
            let all = stage.figures(Program::Controller, &leader)?;
            Ok::<_, anyhow::Error>(all.get(name).copied().unwrap_or_default())
        };
        let (refusals, grants) =
            ("braid_controller_refusals_total{reason=\"SubnetFull\"}", "braid_controller_grants_total");
        let before = (figure(refusals)?, figure(grants)?);
        stage.create(&[PodPlan::new("late").on(&stage.nodes()[0]).in_network("tiny")])?;
        let told = stage.await_event("late", "SubnetFull")?;
        ensure!(told.contains(BLOCK) && told.contains("full"), "the event says: {told}");
        let cni = stage.await_event("late", "FailedCreatePodSandBox")?;
        ensure!(cni.contains(BLOCK), "the runtime's error does not name the full subnet: {cni}");
        // The kubelet writes the pod's status in a time of its own, after its events.
        let (late, addressed) = eventually("what the pod says of its wait", PATIENCE, || {
            let late = stage.kubectl_json(&["get", "pod", "late"])?;
            let waiting = &late["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            ensure!(waiting == "ContainerCreating", "the pod is {waiting}");
            let addressed = items(&late["status"]["conditions"])
                .into_iter()
                .find(|condition| condition["type"] == "braid.network/Addressed")
                .context("no condition tells why the pod waits")?;
            Ok(Some((late, addressed)))
        })?;
        ensure!(addressed["status"] == "False" && addressed["reason"] == "SubnetFull", "{addressed}");
        ensure!(text(&addressed["message"]).contains(BLOCK), "{addressed}");
        let uid = text(&late["metadata"]["uid"]);
        // Counted once, however often it is asked for again.
        ensure!(figure(refusals)? == before.0 + 1.0, "{} refusals, before {}", figure(refusals)?, before.0);
        let half = instances_of_pod(stage, &uid)?;
        ensure!(half.is_empty(), "both families or neither, but the waiting pod holds {half:?}");

        let freed = pods[3].addresses[0];
        let deleted_uid = pods[3].uid.clone();
        stage.delete_pods(&[&pods[3].name])?;
        let cooling = eventually("the cool-down", PATIENCE, || {
            let Some(instance) = stage.instance(freed)? else { return Ok(None) };
            Ok(instance["status"]["releaseAt"].as_str().map(str::to_owned))
        })?;
        eprintln!("{freed} cools down until {cooling}");
        await_exact_counts(stage, &leader)?;
        let late = stage.await_pod("late")?;
        ensure!(
            late.addresses.contains(&freed),
            "the freed address is {freed}, the pod got {:?}",
            late.addresses
        );
        let instance = stage.instance(freed)?.context("the address in use has no IPInstance")?;
        ensure!(instance["spec"]["pod"]["uid"] == uid && uid != deleted_uid, "{instance}");
        let timed = |name: &str| figure(&format!("braid_controller_grant_seconds_{name}"));
        ensure!(figure(grants)? == before.1 + 1.0, "{} grants, before {}", figure(grants)?, before.1);
        ensure!(
            timed("count")? == figure(grants)?,
            "{} of {} grants are timed",
            timed("count")?,
            figure(grants)?
        );
        // The pod waited for the cool-down, from its binding on.
        ensure!(timed("sum")? > 1.0, "all grants together took {} s", timed("sum")?);
        let silent = stage.script(&late, &ping_script(&pods[0].addresses, ""))?;
        ensure!(silent.trim().is_empty(), "the late pod gets no answer from {silent}");
        stage.await_agreement().map(drop)
    });
}
