//! Virtual machines of KubeVirt keep their addresses from start to start and take them along when they migrate. KubeVirt is
//! not here: its kinds are, and pods that look like its launchers.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::probe::{Pings, ping_script};
use braid_e2e::stage::{PATIENCE, Stage, alone, text};
use braid_e2e::workload::{Pod, PodPlan, bracketed};
use serde_json::{Value, json};

/// `kubevirt.io/v1` as far as owners of pods go.
const KINDS: [(&str, &str); 2] =
    [("VirtualMachine", "virtualmachines"), ("VirtualMachineInstance", "virtualmachineinstances")];

/// KubeVirt's kinds in the API server, until it is dropped.
struct KubeVirt<'a>(&'a Stage);

impl<'a> KubeVirt<'a> {
    fn install(stage: &'a Stage) -> Result<Self> {
        let this = Self(stage);
        for (kind, plural) in KINDS {
            let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let crd = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": format!("{plural}.kubevirt.io")},
                "spec": {
                    "group": "kubevirt.io", "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                    "versions": [{
                        "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                    }],
                },
            });
            stage.sandbox().apply(&crd.to_string())?;
            let name = format!("crd/{plural}.kubevirt.io");
            stage.sandbox().await_condition(stage.namespace(), &name, "Established", PATIENCE)?;
        }
        Ok(this)
    }

    fn remove(&self) -> Result<()> {
        let names = KINDS.map(|(_, plural)| format!("{plural}.kubevirt.io"));
        let delete = ["delete", "crd", "--ignore-not-found", "--timeout=60s"];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.0.sandbox().kubectl(&[&delete[..], &names].concat()).map(drop)
    }
}

impl Drop for KubeVirt<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("KubeVirt's kinds could not be removed: {error:#}");
        }
    }
}

/// Applies a virtual machine and its instance; returns the instance.
fn machine(stage: &Stage, name: &str) -> Result<Value> {
    for (kind, _) in KINDS {
        let meta = json!({"name": name, "namespace": stage.namespace()});
        let object = json!({"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": meta, "spec": {}});
        stage.sandbox().apply(&object.to_string())?;
    }
    stage.kubectl_json(&["get", "virtualmachineinstance", name])
}

fn launcher(name: &str, node: &str, instance: &Value) -> PodPlan {
    PodPlan::new(name).on(node).serving().owned_by(instance).labelled("kubevirt.io", "virt-launcher")
}

/// The pod to which KubeVirt migrates the machine from the node `source`: it is made with the machine's labels.
fn target(name: &str, node: &str, source: &str, instance: &Value) -> PodPlan {
    launcher(name, node, instance)
        .labelled("kubevirt.io/migrationJobUID", name)
        .labelled("kubevirt.io/nodeName", source)
}

/// What KubeVirt says when the machine begins to run in its target.
fn arrives(stage: &Stage, pod: &Pod) -> Result<()> {
    let now = "kubevirt.io/migration-target-start-timestamp=2026-01-01T00:00:00Z";
    stage.kubectl(&["annotate", "pod", &pod.name, now]).map(drop)
}

/// Waits until everybody, pods and nodes, finds `pod` behind the addresses.
fn await_reached(stage: &Stage, clients: &[Pod], pod: &Pod, addresses: &[IpAddr]) -> Result<()> {
    for address in addresses {
        let ask = format!("curl -sm 2 http://{}:8080/cgi-bin/whoami", bracketed(*address));
        for client in clients {
            eventually(
                &format!("{} behind {address}, asked by {}", pod.name, client.name),
                PATIENCE,
                || {
                    let told = stage.script(client, &ask)?;
                    Ok(told.contains(&pod.name).then_some(()))
                },
            )?;
        }
        for node in stage.nodes() {
            eventually(&format!("{} behind {address}, asked by {node}", pod.name), PATIENCE, || {
                let told = stage.sandbox().node_exec(&node, &["sh", "-c", &ask])?;
                Ok(told.contains(&pod.name).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// Waits until the addresses are held by `pod` and the second pod of them is `second`, as (name, role).
fn await_held(stage: &Stage, addresses: &[IpAddr], pod: &Pod, second: Option<(&str, &str)>) -> Result<()> {
    for address in addresses {
        eventually(&format!("{address} held by {}, beside {second:?}", pod.name), PATIENCE, || {
            let found = stage.instance(*address)?.context("its IPInstance is gone")?;
            let spec = &found["spec"];
            let beside = (!spec["handover"].is_null())
                .then(|| (text(&spec["handover"]["pod"]["name"]), text(&spec["handover"]["role"])));
            let beside = beside.as_ref().map(|(name, role)| (name.as_str(), role.as_str()));
            let held = spec["pod"]["uid"] == pod.uid.as_str() && found["status"]["phase"] == "Bound";
            Ok((held && beside == second).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_virtual_machine_keeps_its_addresses_and_takes_them_along() {
    alone("virtual_machines", |stage| {
        let kubevirt = KubeVirt::install(stage)?;
        let nodes = stage.nodes();
        let vm = machine(stage, "vm")?;
        let clients: Vec<PodPlan> =
            nodes.iter().map(|node| PodPlan::new(&format!("client-{node}")).on(node)).collect();
        let clients = stage.start(&clients)?;

        // Stopped and started again, elsewhere.
        let first = stage.start(&[launcher("launcher-a", &nodes[0], &vm)])?.remove(0);
        let addresses = first.addresses.clone();
        ensure!(addresses.len() == 2, "{first:?}");
        let owner = stage.instance(addresses[0])?.context("no IPInstance")?["spec"]["owner"].clone();
        ensure!(owner["kind"] == "VirtualMachine" && owner["name"] == "vm", "{owner}");
        stage.delete_pods(&["launcher-a"])?;
        let second = stage.start(&[launcher("launcher-b", &nodes[1], &vm)])?.remove(0);
        ensure!(second.addresses == addresses, "the machine had {addresses:?}: {second:?}");
        await_reached(stage, &clients, &second, &addresses)?;

        // A migration that is given up leaves everything as it was.
        let lost = stage.start(&[target("launcher-lost", &nodes[2], &second.node, &vm)])?.remove(0);
        ensure!(lost.addresses == addresses, "{lost:?}");
        await_held(stage, &addresses, &second, Some(("launcher-lost", "Target")))?;
        await_reached(stage, &clients, &second, &addresses)?;
        stage.delete_pods(&["launcher-lost"])?;
        await_held(stage, &addresses, &second, None)?;
        await_reached(stage, &clients, &second, &addresses)?;

        // To another node and back to where its addresses are at home: each time the source has the traffic until the
        // machine runs in its target, and never again.
        let mut source = second;
        for (name, node) in [("launcher-c", &nodes[2]), ("launcher-d", &nodes[0]), ("launcher-e", &nodes[1])]
        {
            let pings: Vec<Pings<'_>> = addresses
                .iter()
                .map(|address| Pings::start(stage.sandbox(), &clients[0], *address))
                .collect::<Result<_>>()?;
            let next = stage.start(&[target(name, node, &source.node, &vm)])?.remove(0);
            ensure!(next.addresses == addresses, "the machine has {addresses:?}: {next:?}");
            await_held(stage, &addresses, &source, Some((name, "Target")))?;
            await_reached(stage, &clients, &source, &addresses)?;
            arrives(stage, &next)?;
            await_reached(stage, &clients, &next, &addresses)?;
            await_held(stage, &addresses, &next, Some((&source.name, "Source")))?;
            for flow in pings {
                eprintln!("{} to {}: {:?}", source.name, next.name, flow.finish()?);
            }
            // An agent that starts on the source's node finds an interface with the addresses, and leaves it alone.
            stage.replace_agent(&source.node)?;
            await_reached(stage, &clients, &next, &addresses)?;
            stage.delete_pods(&[&source.name])?;
            await_held(stage, &addresses, &next, None)?;
            await_reached(stage, &clients, &next, &addresses)?;
            source = next;
        }

        // The source dies before anybody has said that the machine is elsewhere.
        let heir = stage.start(&[target("launcher-heir", &nodes[0], &source.node, &vm)])?.remove(0);
        stage.delete_pods(&[&source.name])?;
        await_held(stage, &addresses, &heir, None)?;
        await_reached(stage, &clients, &heir, &addresses)?;

        // With the machine its addresses go.
        for (_, plural) in KINDS {
            stage.kubectl(&["delete", plural, "--all", "--timeout=60s"])?;
        }
        stage.delete_pods(&["launcher-heir"])?;
        stage.await_free(&addresses)?;
        let silent = stage.script(&clients[0], &ping_script(&addresses, ""))?;
        ensure!(silent.lines().count() == addresses.len(), "somebody answers: {silent}");
        kubevirt.remove()
    });
}
