//! The life of an address: held by a pod's uid, kept when only the sandbox is made anew, freed after every way in which
//! a pod can end, whoever was dead at that moment.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use braid_e2e::daemons::Program;
use braid_e2e::eventually;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{PATIENCE, Stage, alone, items, quiet, text};
use braid_e2e::workload::{Pod, PodPlan};
use serde_json::Value;

fn reach(stage: &Stage, from: &Pod, to: &[IpAddr]) -> Result<()> {
    let silent = stage.script(from, &ping_script(to, ""))?;
    ensure!(silent.trim().is_empty(), "{} on {} gets no answer from {silent}", from.name, from.node);
    Ok(())
}

/// The IPInstances of a pod, which must be complete.
fn instances(stage: &Stage, pod: &Pod) -> Result<Vec<Value>> {
    let all = pod.addresses.iter().map(|address| {
        stage.instance(*address)?.with_context(|| format!("{address} of {} is not claimed", pod.name))
    });
    all.collect()
}

#[test]
fn a_successor_of_the_same_name_gets_another_address() {
    quiet("lifecycle_successor", |stage| {
        let node = &stage.nodes()[1];
        let plan = [PodPlan::new("twin").on(node)];
        let first = stage.start(&plan)?.remove(0);
        stage.delete_pods(&["twin"])?;
        let second = stage.start(&plan)?.remove(0);
        ensure!(first.uid != second.uid);
        for address in &first.addresses {
            ensure!(!second.addresses.contains(address), "{address} was given out again without a rest");
        }
        // The old claim says that it rests, and until when.
        let releasing = eventually("the old address to cool down", PATIENCE, || {
            let Some(instance) = stage.instance(first.addresses[0])? else { return Ok(None) };
            Ok(instance["status"]["releaseAt"].is_string().then_some(instance))
        })?;
        ensure!(releasing["status"]["phase"] == "Releasing", "{releasing}");
        ensure!(releasing["spec"]["pod"]["uid"] == first.uid.as_str(), "{releasing}");
        ensure!(instances(stage, &second)?.iter().all(|i| i["spec"]["pod"]["uid"] == second.uid.as_str()));
        stage.await_free(&first.addresses)
    });
}

/// Id of the pod's sandbox in the container runtime.
fn sandbox_id(stage: &Stage, pod: &Pod) -> Result<String> {
    let filter =
        format!("labels.\"io.kubernetes.pod.uid\"=={},labels.\"io.cri-containerd.kind\"==sandbox", pod.uid);
    let list = stage
        .sandbox()
        .node_exec(&pod.node, &["ctr", "-n", "k8s.io", "containers", "list", "-q", &filter])?;
    // The runtime keeps a dead sandbox for a while; the newest has a running task.
    let running = stage.sandbox().node_exec(&pod.node, &["ctr", "-n", "k8s.io", "tasks", "list"])?;
    let alive = |id: &&str| running.lines().any(|line| line.starts_with(*id) && line.contains("RUNNING"));
    list.lines().find(alive).map(str::to_owned).context("the pod has no running sandbox")
}

#[test]
fn a_sandbox_made_anew_keeps_the_address() {
    quiet("lifecycle_sandbox", |stage| {
        let nodes = stage.nodes();
        let pods =
            stage.start(&[PodPlan::new("lasting").on(&nodes[1]), PodPlan::new("peer").on(&nodes[0])])?;
        let before = instances(stage, &pods[0])?;
        let sandbox = sandbox_id(stage, &pods[0])?;
        let kill = ["ctr", "-n", "k8s.io", "tasks", "kill", "-s", "KILL", &sandbox];
        stage.sandbox().node_exec(&nodes[1], &kill)?;
        eventually("a new sandbox", PATIENCE, || {
            let new = sandbox_id(stage, &pods[0])?;
            Ok((new != sandbox).then_some(()))
        })?;
        let after = eventually("the pod in its new sandbox", PATIENCE, || {
            let pod = stage.await_pod("lasting")?;
            reach(stage, &pod, &pods[1].addresses)?;
            Ok(Some(pod))
        })?;
        ensure!(
            after.uid == pods[0].uid && after.addresses == pods[0].addresses,
            "{after:?} was {:?}",
            pods[0]
        );
        for (old, new) in before.iter().zip(instances(stage, &after)?) {
            ensure!(old["metadata"]["uid"] == new["metadata"]["uid"], "the claim was made anew: {new}");
            ensure!(new["status"]["phase"] == "Bound", "{new}");
        }
        reach(stage, &pods[1], &after.addresses)?;
        stage.await_agreement().map(drop)
    });
}

#[test]
fn an_agent_that_dies_in_the_middle_of_an_add() {
    alone("lifecycle_add", |stage| {
        let node = stage.nodes()[1].clone();
        let mut pods = Vec::new();
        // The kubelet waits longer before each restart, so that more rounds would mostly be waiting.
        for round in 0..2 {
            let before = stage.agent(&node)?;
            // The journal has an entry before the first step of an ADD; the agent dies as soon as one shows.
            let trap = format!(
                "known=$(ls /var/lib/braid/attachments | sort); \
                until ls /var/lib/braid/attachments | sort | {{ grep -v '^[.]' || true; }} | \
                {{ grep -qvxF -e \"${{known:-none}}\"; }}; do :; done; kill -9 {}",
                stage.pid(&before)?
            );
            let names: Vec<String> = (0..3).map(|number| format!("pod-{round}-{number}")).collect();
            std::thread::scope(|scope| {
                let killer =
                    scope.spawn(|| stage.sandbox().node_exec(&node, &["timeout", "60", "sh", "-c", &trap]));
                let plans: Vec<PodPlan> = names.iter().map(|name| PodPlan::new(name).on(&node)).collect();
                stage.create(&plans)?;
                killer.join().expect("the killer does not panic").map(drop).context("the agent was not hit")
            })?;
            stage.await_new_agent(&before)?;
            for name in &names {
                pods.push(stage.await_pod(name)?);
            }
        }
        let all: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        reach(stage, &pods[0], &all)?;
        stage.await_agreement()?;
        stage.kubectl(&["delete", "pods", "--all", "--timeout=180s"])?;
        stage.await_agreement().map(drop)
    });
}

#[test]
fn finished_pods_give_their_addresses_back() {
    quiet("lifecycle_finished", |stage| {
        let node = &stage.nodes()[2];
        let names = ["done", "broken"];
        stage.create(&[
            PodPlan::new("done").on(node).once().running(&["sh", "-c", "sleep 2"]),
            PodPlan::new("broken").on(node).once().running(&["sh", "-c", "sleep 2; exit 1"]),
        ])?;
        let mut addresses = Vec::new();
        for (name, phase) in names.iter().zip(["Succeeded", "Failed"]) {
            let wait = format!("--for=jsonpath={{.status.phase}}={phase}");
            stage.kubectl(&["wait", &wait, &format!("pod/{name}"), "--timeout=120s"])?;
            let pod = stage.pod(name)?;
            ensure!(pod.addresses.len() == 2, "{name} never had its addresses: {pod:?}");
            addresses.extend(pod.addresses);
        }
        stage.await_free(&addresses)?;
        for name in names {
            stage.pod(name).context("the pod's object is still there, which is the point")?;
        }
        stage.await_agreement().map(drop)
    });
}

#[test]
fn pods_that_end_while_no_controller_lives() {
    alone("lifecycle_no_controller", |stage| {
        let nodes = stage.nodes();
        let pods = stage.start(&[PodPlan::new("one").on(&nodes[0]), PodPlan::new("two").on(&nodes[1])])?;
        stage.scale_controllers(0)?;
        let outcome = (|| -> Result<()> {
            stage.delete_pods(&["one", "two"])?;
            for pod in &pods {
                // Nobody is there to free them, so they must not be gone.
                instances(stage, pod)?;
            }
            stage.create(&[PodPlan::new("three").on(&nodes[1])])?;
            Ok(())
        })();
        stage.scale_controllers(2)?;
        outcome?;
        for pod in &pods {
            stage.await_free(&pod.addresses)?;
        }
        stage.await_pod("three")?;
        stage.await_agreement().map(drop)
    });
}

#[test]
fn a_pod_deleted_by_force() {
    quiet("lifecycle_force", |stage| {
        let pod = stage.start(&[PodPlan::new("evicted").on(&stage.nodes()[1])])?.remove(0);
        stage.kubectl(&["delete", "pod", "evicted", "--force", "--grace-period=0", "--timeout=60s"])?;
        stage.await_free(&pod.addresses)?;
        stage.await_agreement().map(drop)
    });
}

#[test]
fn a_node_that_is_lost_for_good_and_comes_back() {
    alone("lifecycle_node", |stage| {
        let nodes = stage.nodes();
        let lost = nodes[2].clone();
        let pods = stage.start(&[PodPlan::new("gone").on(&lost), PodPlan::new("stays").on(&nodes[0])])?;
        let sandbox = stage.sandbox();
        let on_node = format!("--field-selector=spec.node={lost}");
        let of_node =
            || Ok::<_, anyhow::Error>(items(&sandbox.kubectl_json(&["get", "ipi", &on_node])?["items"]));
        ensure!(!of_node()?.is_empty());
        sandbox.stop(&lost)?;
        let outcome = (|| -> Result<()> {
            sandbox.kubectl(&["delete", "node", &lost, "--timeout=60s"])?;
            stage.kubectl(&["delete", "pod", "gone", "--force", "--grace-period=0", "--ignore-not-found"])?;
            eventually("all addresses of the lost node to be free", PATIENCE, || {
                Ok(of_node()?.is_empty().then_some(()))
            })?;
            eventually("the lost node's NodeNetwork to go", PATIENCE, || {
                let left =
                    sandbox.kubectl(&["get", "nodenetwork", &lost, "--ignore-not-found", "-o", "name"])?;
                Ok(left.trim().is_empty().then_some(()))
            })?;
            for node in &nodes[..2] {
                eventually(&format!("{node} to forget the lost one"), PATIENCE, || {
                    let state = KernelState::of(sandbox, node)?;
                    Ok((state.lines("fdb").len() == nodes.len() - 2).then_some(()))
                })?;
            }
            Ok(())
        })();
        sandbox.start(&lost)?;
        outcome?;
        eventually("the node to register anew", PATIENCE, || {
            sandbox.kubectl(&["get", "node", &lost]).map(Some)
        })?;
        // A kubelet that looked for its CSINode before it had registered waits minutes before it looks again.
        sandbox.restart(&format!("kubelet@{lost}"))?;
        stage.await_braid()?;
        let back = stage.start(&[PodPlan::new("back").on(&lost)])?.remove(0);
        reach(stage, &back, &pods[1].addresses)?;
        reach(stage, &pods[1], &back.addresses)?;
        let vteps =
            of_node()?.into_iter().filter(|instance| text(&instance["spec"]["interface"]) == "vtep").count();
        ensure!(vteps == 2, "the node that came back has {vteps} tunnel addresses");
        stage.await_agreement()?;
        ensure!(stage.daemons(Program::Agent)?.len() == nodes.len());
        Ok(())
    });
}
