//! Addresses that outlive their pods: StatefulSets by ordinal, other owners on request, reservations that people declare,
//! and a restore from a backup.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{LEAD_LOST, PATIENCE, Stage, alone, items, quiet, text};
use braid_e2e::workload::{Pod, PodPlan, instance_name, template};
use braid_e2e::{Sandbox, eventually};
use serde_json::{Value, json};

/// The controller asks once a minute whether an owner still exists, and a cool-down follows.
const OWNER_PATIENCE: Duration = Duration::from_secs(240);

fn stateful_set(stage: &Stage, name: &str, replicas: usize, annotations: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": stage.namespace()},
        "spec": {
            "replicas": replicas, "serviceName": name, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, annotations),
        },
    })
}

fn apply(stage: &Stage, object: &Value) -> Result<()> {
    stage.sandbox().apply(&object.to_string()).map(drop)
}

fn scale(stage: &Stage, name: &str, replicas: usize) -> Result<()> {
    stage.kubectl(&["scale", "statefulset", name, &format!("--replicas={replicas}")]).map(drop)
}

/// A pod that a controller of Kubernetes makes: it may not exist yet.
fn await_made(stage: &Stage, name: &str) -> Result<Pod> {
    eventually(&format!("pod {name}"), PATIENCE, || stage.await_pod(name).map(Some))
}

/// The pod of this name once it is another one than `old`, and Ready.
fn successor(stage: &Stage, old: &Pod) -> Result<Pod> {
    eventually(&format!("successor of {}", old.name), PATIENCE, || {
        let pod = stage.await_pod(&old.name)?;
        Ok((pod.uid != old.uid).then_some(pod))
    })
}

fn await_phase(stage: &Stage, address: IpAddr, phase: &str) -> Result<Value> {
    eventually(&format!("{address} in phase {phase}"), PATIENCE, || {
        let instance = stage.instance(address)?;
        Ok(instance.filter(|i| i["status"]["phase"] == phase))
    })
}

fn await_free(stage: &Stage, addresses: &[IpAddr]) -> Result<()> {
    for address in addresses {
        eventually(&format!("{address} to be free"), OWNER_PATIENCE, || {
            Ok(stage.instance(*address)?.is_none().then_some(()))
        })?;
    }
    Ok(())
}

/// The words of the command that the README gives for a backup, without those for the shell.
fn documented_backup() -> Result<Vec<String>> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let text = fs::read_to_string(readme)?;
    let line =
        text.lines().find(|line| line.ends_with("> addresses.yaml")).context("no backup in README.md")?;
    let words = line.trim_start_matches("$ kubectl ").trim_end_matches("> addresses.yaml");
    Ok(words.replace('\'', "").split_whitespace().map(str::to_owned).collect())
}

fn delete_set(stage: &Stage, name: &str) -> Result<()> {
    stage.kubectl(&["delete", "statefulset", name, "--timeout=120s"]).map(drop)
}

#[test]
fn a_stateful_set_keeps_its_addresses_by_ordinal() {
    quiet("retention_set", |stage| {
        apply(stage, &stateful_set(stage, "db", 2, &json!({})))?;
        let (zero, one) = (await_made(stage, "db-0")?, await_made(stage, "db-1")?);
        ensure!(zero.addresses.len() == 2 && one.addresses.len() == 2, "{zero:?} {one:?}");
        for (pod, address) in [(&zero, zero.addresses[0]), (&one, one.addresses[1])] {
            let owner = stage.instance(address)?.context("no IPInstance")?["spec"]["owner"].clone();
            ensure!(owner["kind"] == "StatefulSet" && owner["pod"] == pod.name.as_str(), "{owner}");
        }

        // Deleted, and made again on another node.
        let moved = stage.while_cordoned(&zero.node, || {
            stage.kubectl(&["delete", "pod", "db-0", "--wait=false"])?;
            successor(stage, &zero)
        })?;
        ensure!(
            moved.addresses == zero.addresses,
            "db-0 had {:?}, now {:?}",
            zero.addresses,
            moved.addresses
        );
        ensure!(moved.node != zero.node, "it was to move");
        let clients: Vec<PodPlan> =
            stage.nodes().iter().map(|node| PodPlan::new(&format!("client-{node}")).on(node)).collect();
        for client in stage.start(&clients)? {
            let silent = stage.script(&client, &ping_script(&moved.addresses, ""))?;
            ensure!(silent.trim().is_empty(), "{} gets no answer from {silent}", client.name);
            ensure!(client.addresses.iter().all(|a| !one.addresses.contains(a)));
        }

        // Scaled down: kept, with the reason and since when; scaled up: the same again.
        scale(stage, "db", 1)?;
        for address in &one.addresses {
            let kept = await_phase(stage, *address, "Reserved")?;
            ensure!(
                kept["status"]["reason"] == "KeptForOwner" && kept["status"]["reservedAt"].is_string(),
                "{kept}"
            );
            eventually("an address without pod and node", PATIENCE, || {
                let kept = stage.instance(*address)?.context("it is gone")?;
                Ok((kept["spec"]["pod"].is_null() && kept["spec"]["node"].is_null()).then_some(()))
            })?;
        }
        let stranger = stage.start(&[PodPlan::new("stranger").on(&one.node)])?.remove(0);
        ensure!(stranger.addresses.iter().all(|a| !one.addresses.contains(a)), "{stranger:?}");
        scale(stage, "db", 2)?;
        let again = successor(stage, &one)?;
        ensure!(again.addresses == one.addresses, "db-1 had {:?}, now {:?}", one.addresses, again.addresses);

        delete_set(stage, "db")?;
        await_free(stage, &[zero.addresses, one.addresses].concat())
    });
}

#[test]
fn owners_decide_whether_and_for_how_long() {
    quiet("retention_choice", |stage| {
        // A StatefulSet that does not want to keep, and a bare pod that does, for a while.
        apply(stage, &stateful_set(stage, "cache", 1, &json!({"braid.network/ip-retain": "false"})))?;
        let keeping = |ttl: &str| {
            [PodPlan::new("lone")
                .on(&stage.nodes()[1])
                .annotated("braid.network/ip-retain", "true")
                .annotated("braid.network/ip-retain-ttl", ttl)]
        };
        let lone = stage.start(&keeping("1h"))?.remove(0);
        let cache = await_made(stage, "cache-0")?;
        stage.kubectl(&["delete", "pod", "cache-0", "--wait=false"])?;
        let next = successor(stage, &cache)?;
        ensure!(next.addresses != cache.addresses, "an address that nobody keeps came back without a rest");

        stage.delete_pods(&["lone"])?;
        let kept = eventually("the end of the time", PATIENCE, || {
            let kept = await_phase(stage, lone.addresses[0], "Reserved")?;
            Ok(kept["spec"]["retainUntil"].is_string().then_some(kept))
        })?;
        ensure!(kept["spec"]["owner"]["kind"] == "Pod" && kept["spec"]["owner"]["name"] == "lone", "{kept}");
        let again = stage.start(&keeping("2s"))?.remove(0);
        ensure!(again.addresses == lone.addresses && again.uid != lone.uid, "{lone:?} {again:?}");
        stage.delete_pods(&["lone"])?;
        await_free(stage, &lone.addresses)?;

        let refused =
            stage.create(&keeping("soon")).and_then(|()| stage.await_event("lone", "BadAnnotation"));
        let said = match refused {
            Ok(event) => event,
            // The webhook says the same, and sooner.
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains("ip-retain-ttl") && said.contains("such as 90s, 30m, 24h or 7d"), "{said}");
        delete_set(stage, "cache")
    });
}

#[test]
fn a_reservation_waits_for_its_owner_and_a_backup_for_its_workloads() {
    alone("retention_pinned", |stage| {
        let namespace = stage.namespace().to_owned();
        // From Git, before the owner exists: the name is the address.
        let pinned: IpAddr = "10.244.77.7".parse()?;
        let pin = json!({
            "apiVersion": "braid.network/v1", "kind": "IPInstance",
            "metadata": {"name": instance_name(pinned)},
            "spec": {
                "network": "overlay", "subnet": "overlay-v4", "address": format!("{pinned}/16"),
                "owner": {
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": namespace, "name": "sip",
                    "pod": "sip-1",
                },
            },
        });
        apply(stage, &pin)?;
        let kept = await_phase(stage, pinned, "Reserved")?;
        ensure!(
            kept["status"]["reason"] == "KeptForOwner" && kept["status"]["reservedAt"].is_null(),
            "{kept}"
        );
        apply(stage, &stateful_set(stage, "sip", 2, &json!({})))?;
        let pods = [await_made(stage, "sip-0")?, await_made(stage, "sip-1")?];
        ensure!(pods[1].addresses.contains(&pinned) && !pods[0].addresses.contains(&pinned), "{pods:?}");
        ensure!(
            pods[1].addresses.len() == 2,
            "the other family was not pinned, and is given all the same: {pods:?}"
        );
        let refused = stage.refused(&["delete", "ipi", &instance_name(pinned)])?;
        ensure!(refused.contains("sip-1") && refused.contains("delete the pod"), "{refused}");
        let patch = json!({"spec": {"node": "elsewhere"}}).to_string();
        let refused =
            stage.refused(&["patch", "ipi", &instance_name(pinned), "--type=merge", "-p", &patch])?;
        ensure!(refused.contains("spec.node cannot be changed by hand"), "{refused}");

        // The backup of everything that is kept; then all that the set has is lost.
        let passing = stage.start(&[PodPlan::new("passing").on(&pods[0].node)])?.remove(0);
        let all: Vec<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        let words = documented_backup()?;
        let backup = stage.sandbox().kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let has = |address: &IpAddr| backup.contains(&format!("name: {}\n", instance_name(*address)));
        ensure!(all.iter().all(has), "{all:?} are not all in\n{backup}");
        // Of those a new cluster has its own, and whoever applies the backup would be told of conflicts.
        ensure!(!backup.contains("interface: vtep") && !has(&passing.addresses[0]), "{backup}");
        delete_set(stage, "sip")?;
        let others: Vec<IpAddr> = all.iter().filter(|a| **a != pinned).copied().collect();
        await_free(stage, &others)?;
        let kept = await_phase(stage, pinned, "Reserved")?;
        ensure!(kept["spec"]["owner"]["name"] == "sip", "what a person declared was given back: {kept}");
        stage.sandbox().kubectl(&["delete", "ipi", &instance_name(pinned)])?;

        // As people do it: a server-side apply would insist on the uids of the objects that were lost.
        let file = Sandbox::dir_of(stage.sandbox().name()).join("backup.yaml");
        fs::write(&file, &backup)?;
        let applied = stage.sandbox().kubectl(&["apply", "-f", &file.display().to_string()])?;
        for address in &all {
            let line = format!("ipinstance.braid.network/{} created", instance_name(*address));
            ensure!(applied.contains(&line), "no `{line}` in\n{applied}");
        }
        // Without their pods they are kept for the owner, which comes later.
        for address in &all {
            await_phase(stage, *address, "Reserved")?;
        }
        let stranger = stage.start(&[PodPlan::new("stranger").on(&pods[0].node)])?.remove(0);
        ensure!(stranger.addresses.iter().all(|a| !all.contains(a)), "{stranger:?}");
        apply(stage, &stateful_set(stage, "sip", 2, &json!({})))?;
        for pod in &pods {
            let again = successor(stage, pod)?;
            ensure!(
                again.addresses == pod.addresses,
                "{} had {:?}, now {:?}",
                pod.name,
                pod.addresses,
                again.addresses
            );
        }
        delete_set(stage, "sip")?;
        await_free(stage, &others)?;
        stage.sandbox().kubectl(&["delete", "ipi", &instance_name(pinned), "--ignore-not-found"]).map(drop)
    });
}

#[test]
fn a_pod_forced_off_a_silent_node_does_not_share_its_address() {
    alone("retention_trap", |stage| {
        let nodes = stage.nodes();
        let (lost, others) = (&nodes[2], &nodes[..2]);
        let first = on_node_alone(stage, lost, others)?;
        stage.provokes_error(LEAD_LOST);
        let outcome = forced_off(stage, lost, others, &first);
        for node in others {
            stage.sandbox().heal(lost, node)?;
        }
        stage.sandbox().kubectl(&["uncordon", lost])?;
        outcome?;
        // The node is back and confirms that the old interface is gone: now the address changes hands.
        let second = successor(stage, &first)?;
        ensure!(second.addresses == first.addresses, "{first:?} {second:?}");
        delete_set(stage, "db")?;
        await_free(stage, &first.addresses)
    });
}

/// As it is shipped.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const ORPHAN_PATIENCE: Duration = Duration::from_secs(20 * 60);

#[test]
fn soak_a_silent_node_loses_the_address_after_the_orphan_timeout() {
    alone("retention_orphan", |stage| {
        let nodes = stage.nodes();
        let (lost, others) = (&nodes[2], &nodes[..2]);
        let first = on_node_alone(stage, lost, others)?;
        stage.provokes_error(LEAD_LOST);
        let begin = Instant::now();
        let outcome = forced_off(stage, lost, others, &first).and_then(|()| {
            eventually("the successor's address", ORPHAN_PATIENCE, || {
                let pod = stage.pod("db-0")?;
                Ok((pod.addresses == first.addresses).then_some(()))
            })
        });
        let elapsed = begin.elapsed();
        for node in others {
            stage.sandbox().heal(lost, node)?;
        }
        stage.sandbox().kubectl(&["uncordon", lost])?;
        outcome?;
        // The one time that is itself the promise.
        ensure!(elapsed >= ORPHAN_TIMEOUT, "the address changed hands after {elapsed:?}");
        let second = stage.await_pod("db-0")?;
        delete_set(stage, "db")?;
        await_free(stage, &second.addresses)
    });
}

/// `db-0` of a StatefulSet, on the node `lost`, which will fall silent.
fn on_node_alone(stage: &Stage, lost: &str, others: &[String]) -> Result<Pod> {
    for node in others {
        stage.sandbox().kubectl(&["cordon", node])?;
    }
    let first =
        apply(stage, &stateful_set(stage, "db", 1, &json!({}))).and_then(|()| await_made(stage, "db-0"));
    for node in others {
        stage.sandbox().kubectl(&["uncordon", node])?;
    }
    let first = first?;
    ensure!(first.node == lost, "{first:?}");
    Ok(first)
}

fn forced_off(stage: &Stage, lost: &str, others: &[String], first: &Pod) -> Result<()> {
    stage.sandbox().kubectl(&["cordon", lost])?;
    for node in others {
        stage.sandbox().partition(lost, node)?;
    }
    stage.kubectl(&["delete", "pod", "db-0", "--force", "--grace-period=0"])?;
    let told = stage.await_event("db-0", "AddressStillHeld")?;
    ensure!(told.contains("StatefulSet") && told.contains(lost), "{told}");
    // The old one still runs, with its address; the new one has none.
    let inside = stage.sandbox().node_exec(lost, &["ip", "-o", "route", "show", "table", "39999"])?;
    ensure!(
        first.addresses.iter().any(|a| inside.contains(&a.to_string())),
        "{lost} has lost its pod: {inside}"
    );
    let pod = stage.kubectl_json(&["get", "pod", "db-0"])?;
    ensure!(items(&pod["status"]["podIPs"]).is_empty(), "two pods with {:?}: {pod}", first.addresses);
    ensure!(text(&pod["metadata"]["uid"]) != first.uid && pod["spec"]["nodeName"] != lost, "{pod}");
    let instance = stage.instance(first.addresses[0])?.context("the address is gone")?;
    ensure!(
        instance["spec"]["pod"]["uid"] == first.uid.as_str() && instance["status"]["phase"] == "Bound",
        "{instance}"
    );
    Ok(())
}
