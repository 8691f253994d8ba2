//! What people ask for by annotation, and what a Subnet gives to whom: fixed addresses and hardware addresses, pools and
//! lists by ordinal, ranges that change, addresses that are excluded, reserved, or in a private Subnet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::stage::{PATIENCE, Stage, items, quiet, says};
use braid_e2e::workload::{Pod, PodPlan, template};
use serde_json::{Value, json};

/// A Deployment or StatefulSet whose pods run the test image.
fn workload(stage: &Stage, kind: &str, name: &str, spec: &Value, annotations: &Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": stage.namespace()},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, &stage.owned(annotations)),
        },
    });
    for (key, value) in spec.as_object().context("a spec is an object")? {
        object["spec"][key] = value.clone();
    }
    stage.sandbox().apply(&object.to_string())?;
    let object = format!("{}/{name}", kind.to_lowercase());
    stage.kubectl(&["rollout", "status", &object, "--timeout=180s"]).map(drop)
}

fn pods_of(stage: &Stage, app: &str) -> Result<Vec<Pod>> {
    let found = stage.kubectl_json(&["get", "pods", "-l", &format!("app={app}")])?;
    Ok(items(&found["items"]).iter().map(Pod::read).collect())
}

fn mac_of(stage: &Stage, pod: &Pod) -> Result<String> {
    Ok(stage.script(pod, "cat /sys/class/net/eth0/address")?.trim().to_owned())
}

#[test]
fn pods_get_what_they_ask_for() {
    quiet("addresses_asked", |stage| {
        stage.overlay("asked", stage.vni(0), &["10.x.0.0/24", "fd00:x::/112"], &Value::Null, &Value::Null)?;
        let asks = |name: &str, ips: &str| {
            PodPlan::new(name).in_network("asked").annotated("braid.network/ips", ips)
        };
        let mac = "02:71:00:00:00:07";
        let pods = stage.start(&[
            asks("both", "10.x.0.7,fd00:x::7").annotated("braid.network/mac", mac),
            asks("one", "10.x.0.8"),
        ])?;
        ensure!(pods[0].addresses == [stage.ip("10.x.0.7"), stage.ip("fd00:x::7")], "{:?}", pods[0]);
        ensure!(mac_of(stage, &pods[0])? == mac, "it has {}", mac_of(stage, &pods[0])?);
        let one = &pods[1].addresses;
        ensure!(one.len() == 2 && one[0] == stage.ip("10.x.0.8"), "the other family is free: {one:?}");

        // A pool, through a rolling update that needs one entry more than there are replicas.
        let pool = json!({"braid.network/network": "asked", "braid.network/ips": "10.x.0.20-10.x.0.22"});
        let two = json!({"replicas": 2});
        workload(stage, "Deployment", "pool", &two, &pool)?;
        let in_pool = |pods: &[Pod]| {
            let pool: BTreeSet<IpAddr> = (20..=22).map(|n| stage.ip(&format!("10.x.0.{n}"))).collect();
            let used: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.addresses[0]).collect();
            ensure!(pods.len() == 2 && used.len() == 2 && used.is_subset(&pool), "{pods:?}");
            Ok(())
        };
        let before = pods_of(stage, "pool")?;
        in_pool(&before)?;
        stage.kubectl(&["rollout", "restart", "deployment/pool"])?;
        stage.kubectl(&["rollout", "status", "deployment/pool", "--timeout=180s"])?;
        let after = eventually("the old pods to be gone", PATIENCE, || {
            let pods = pods_of(stage, "pool")?;
            let old = pods.iter().any(|pod| before.iter().any(|b| b.uid == pod.uid));
            Ok((!old && pods.len() == 2).then_some(pods))
        })?;
        in_pool(&after)?;

        // By ordinal, hardware addresses too.
        let list = json!({
            "braid.network/network": "asked",
            "braid.network/ips": "10.x.0.30,fd00:x::30;10.x.0.31,fd00:x::31",
            "braid.network/mac": "02:71:00:00:00:30;02:71:00:00:00:31",
        });
        workload(stage, "StatefulSet", "list", &json!({"replicas": 2, "serviceName": "list"}), &list)?;
        for ordinal in 0..2 {
            let pod = stage.await_pod(&format!("list-{ordinal}"))?;
            let wanted = [stage.ip(&format!("10.x.0.3{ordinal}")), stage.ip(&format!("fd00:x::3{ordinal}"))];
            ensure!(pod.addresses == wanted, "{pod:?}");
            ensure!(mac_of(stage, &pod)? == format!("02:71:00:00:00:3{ordinal}"), "{}", mac_of(stage, &pod)?);
        }
        Ok(())
    });
}

#[test]
fn a_subnet_gives_what_its_ranges_say() {
    quiet("addresses_ranges", |stage| {
        let nodes = stage.nodes();
        let node = nodes[0].as_str();
        // Each node of a Network takes an address for itself, so this one has one node.
        let label = "e2e.braid.network/ranges";
        stage.sandbox().kubectl(&["label", "node", node, &format!("{label}=yes"), "--overwrite"])?;
        let network = json!({
            "type": "VXLAN", "vxlan": {"vni": stage.vni(0)}, "nodeSelector": {"matchLabels": {label: "yes"}},
        });
        // One for the node and one for whoever comes first; one for nobody, and one for who asks for it.
        let narrow = json!({
            "network": "ranges", "cidr": "10.x.0.0/24", "ranges": ["10.x.0.9-10.x.0.12"],
            "excludedIPs": ["10.x.0.11"], "reservedIPs": ["10.x.0.12"],
        });
        let private = json!({"network": "ranges", "cidr": "10.x.1.0/24", "private": true});
        stage.declare(&[
            stage.object("Network", "ranges", &network),
            stage.object("Subnet", "ranges-v4", &narrow),
            stage.object("Subnet", "ranges-private", &private),
        ])?;
        stage.await_ready("subnet/ranges-v4")?;
        stage.await_ready("subnet/ranges-private")?;
        eventually("the node's own address", PATIENCE, || {
            let used = stage.sandbox().kubectl_json(&["get", "subnet", "ranges-v4"])?;
            Ok((used["status"]["used"] == 1).then_some(()))
        })?;
        let plan = |name: &str| PodPlan::new(name).in_network("ranges").on(node).small();
        let first = stage.start(&[plan("first")])?.remove(0);
        let free = [stage.ip("10.x.0.9"), stage.ip("10.x.0.10")];
        ensure!(first.addresses.len() == 1 && free.contains(&first.addresses[0]), "{first:?}");
        // Neither the excluded, nor the reserved, nor one of the private Subnet.
        stage.create(&[plan("second")])?;
        says(&stage.await_event("second", "SubnetFull")?, &["ranges-v4"])?;
        let asking = [
            plan("reserved").annotated("braid.network/ips", "10.x.0.12"),
            plan("private").annotated("braid.network/subnet", "ranges-private"),
        ];
        let asked = stage.start(&asking)?;
        ensure!(asked[0].addresses == [stage.ip("10.x.0.12")], "{:?}", asked[0]);
        ensure!(asked[1].addresses[0].to_string().starts_with(&stage.own("10.x.1.")), "{:?}", asked[1]);

        // More room, and who waited for it starts by itself; less room than is in use is refused with who uses it.
        let patch = |ranges: Value| {
            let patch = stage.own(&json!({"spec": {"ranges": ranges}}).to_string());
            stage.sandbox().kubectl_output(&["patch", "subnet", "ranges-v4", "--type=merge", "-p", &patch])
        };
        let wider = json!(["10.x.0.9-10.x.0.12", "10.x.0.40-10.x.0.49"]);
        ensure!(patch(wider)?.status.success(), "the Subnet cannot grow");
        let second = stage.await_pod("second")?;
        ensure!(second.addresses[0].to_string().starts_with(&stage.own("10.x.0.4")), "{second:?}");
        let refused = patch(json!(["10.x.0.9-10.x.0.12"]))?;
        ensure!(!refused.status.success(), "a range was taken away under a pod");
        let address = second.addresses[0].to_string();
        says(&String::from_utf8_lossy(&refused.stderr), &[&address, "second", "ranges-v4"])?;
        stage.delete_pods(&["second"])?;
        stage.await_free(&second.addresses)?;
        ensure!(patch(json!(["10.x.0.9-10.x.0.12"]))?.status.success(), "nobody uses the range any more");

        // The next Subnet serves when one is full.
        let more = json!({"network": "ranges", "cidr": "10.x.2.0/24"});
        stage.declare(&[stage.object("Subnet", "ranges-more", &more)])?;
        stage.await_ready("subnet/ranges-more")?;
        let third = stage.start(&[plan("third")])?.remove(0);
        ensure!(third.addresses[0].to_string().starts_with(&stage.own("10.x.2.")), "{third:?}");
        stage.clear()?;
        stage.sandbox().kubectl(&["label", "node", node, &format!("{label}-")]).map(drop)
    });
}
