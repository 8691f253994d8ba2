//! Whether addresses, pods and nodes agree: nothing lost, nothing doubled, nothing left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::exec::eventually;
use crate::kernel_state::KernelState;
use crate::sandbox::Sandbox;
use crate::stage::{PATIENCE, Stage, items, text};
use crate::workload::{Pod, instance_name};

/// Pods on Braid's networks and IPInstances at one moment.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pods: Vec<Pod>,
    instances: Vec<Value>,
    nodes: BTreeSet<String>,
    /// Networks and Subnets whose deletion was asked for.
    leaving: Vec<String>,
}

impl Ledger {
    /// Reads the whole cluster.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn read(stage: &Stage) -> Result<Self> {
        let pods = stage.sandbox().kubectl_json(&["get", "pods", "-A"])?;
        let on_network = |pod: &&Value| pod["spec"]["hostNetwork"] != true && is_alive(pod);
        let instances = stage.sandbox().kubectl_json(&["get", "ipi"])?;
        let nodes = stage.sandbox().kubectl_json(&["get", "nodes"])?;
        let declared = stage.sandbox().kubectl_json(&["get", "networks,subnets"])?;
        let leaving = |object: &&Value| object["metadata"]["deletionTimestamp"].is_string();
        Ok(Self {
            pods: items(&pods["items"]).iter().filter(on_network).map(Pod::read).collect(),
            instances: items(&instances["items"]),
            nodes: items(&nodes["items"]).iter().map(|node| text(&node["metadata"]["name"])).collect(),
            leaving: items(&declared["items"])
                .iter()
                .filter(leaving)
                .map(|object| format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"])))
                .collect(),
        })
    }

    /// Pods that are on Braid's networks and not finished.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Everything in which IPInstances and pods do not agree, one sentence each.
    #[must_use]
    pub fn quarrels(&self) -> Vec<String> {
        let mut quarrels: Vec<String> =
            self.leaving.iter().map(|object| format!("{object} is still on its way out")).collect();
        let mut holders: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
        let mut claims: BTreeMap<String, String> = BTreeMap::new();
        for instance in &self.instances {
            let name = text(&instance["metadata"]["name"]);
            let (spec, phase) = (&instance["spec"], text(&instance["status"]["phase"]));
            let node = text(&spec["node"]);
            if spec["interface"] == "vtep" {
                if !self.nodes.contains(&node) {
                    quarrels.push(format!("{name} is the address of node {node}, which does not exist"));
                }
            } else if phase == "Reserved" && spec["pod"].is_null() && spec["owner"].is_object() {
                // Kept for an owner that has no pod for it: nobody's to quarrel about.
            } else {
                let uid = text(&spec["pod"]["uid"]);
                let Some(pod) = self.pods.iter().find(|pod| pod.uid == uid) else {
                    quarrels.push(format!("{name} ({phase}) is claimed for pod uid '{uid}', which is gone"));
                    continue;
                };
                if phase != "Bound" {
                    quarrels.push(format!("{name} is {phase}, but its pod {} lives", pod.name));
                }
                if !pod.addresses.iter().any(|address| instance_name(*address) == name) {
                    quarrels.push(format!(
                        "{name} is claimed for pod {}, which has {:?}",
                        pod.name, pod.addresses
                    ));
                }
                claims.insert(name, uid);
            }
        }
        for pod in &self.pods {
            if pod.addresses.is_empty() {
                quarrels.push(format!("pod {} on {} has no address", pod.name, pod.node));
            }
            for address in &pod.addresses {
                if let Some(other) = holders.insert(*address, pod) {
                    quarrels.push(format!("{address} is held by {} and by {}", other.name, pod.name));
                }
                if claims.get(&instance_name(*address)) != Some(&pod.uid) {
                    quarrels.push(format!("pod {} has {address}, which is not claimed for it", pod.name));
                }
            }
        }
        quarrels
    }

    /// Everything that a node has too much or too little for the pods on it, one sentence each.
    #[must_use]
    pub fn quarrels_on(&self, node: &str, state: &KernelState) -> Vec<String> {
        let here: Vec<&Pod> = self.pods.iter().filter(|pod| pod.node == node).collect();
        let mut quarrels = Vec::new();
        for (what, found) in [
            ("host ends of pods", state.devices("veth").len()),
            ("files in the journal", state.lines("journal").len()),
            ("network namespaces", state.lines("netns").len()),
        ] {
            if found != here.len() {
                quarrels.push(format!("{node} has {found} {what} for {} pods", here.len()));
            }
        }
        let wanted: BTreeSet<String> =
            here.iter().flat_map(|pod| &pod.addresses).map(IpAddr::to_string).collect();
        let routes = ["route4 39999", "route6 39999"].map(|noun| state.lines(noun)).concat();
        let routed: BTreeSet<String> =
            routes.iter().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
        for address in wanted.symmetric_difference(&routed) {
            let what = if wanted.contains(address) { "has no route to its pod's" } else { "has a route to" };
            quarrels.push(format!("{node} {what} {address}"));
        }
        let neighbours = ["neigh4", "neigh6"].map(|noun| state.lines(noun)).concat();
        let of_pods = neighbours.iter().filter(|line| line.contains(" dev braid")).count();
        if of_pods != wanted.len() {
            quarrels.push(format!("{node} has {of_pods} neighbours for {} addresses of pods", wanted.len()));
        }
        let elements = state.lines("nft");
        let allowed = elements
            .iter()
            .filter(|line| line.starts_with("element pods4") || line.starts_with("element pods6"))
            .count();
        if allowed != wanted.len() {
            quarrels
                .push(format!("{node} lets {allowed} sources pass for {} addresses of pods", wanted.len()));
        }
        quarrels
    }
}

/// The addresses that interfaces of pods really have, each with `node:netns` of its holders: who is asked is the kernel.
///
/// # Errors
/// When a node cannot be asked.
pub fn real_addresses(sandbox: &Sandbox) -> Result<BTreeMap<String, Vec<String>>> {
    let script = "for netns in /run/netns/*; do \
        nsenter --net=\"$netns\" ip -o addr show dev eth0 scope global 2>/dev/null | \
        while read -r _ _ _ address _; do echo \"$address $netns\"; done; done";
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in sandbox.nodes() {
        for line in sandbox.node_exec(&node, &["sh", "-c", script])?.lines() {
            let (address, netns) = line.split_once(' ').context("a line without a namespace")?;
            holders.entry(address.to_owned()).or_default().push(format!("{node}:{netns}"));
        }
    }
    Ok(holders)
}

/// Whether a pod still holds its addresses: neither finished nor never started.
fn is_alive(pod: &Value) -> bool {
    let phase = text(&pod["status"]["phase"]);
    phase != "Succeeded" && phase != "Failed" && pod["spec"]["nodeName"].is_string()
}

impl Stage {
    /// Waits until addresses, pods and nodes agree. The cool-down of freed addresses is part of the wait.
    ///
    /// # Errors
    /// Every disagreement that is left after the deadline.
    pub fn await_agreement(&self) -> Result<Ledger> {
        let mut last = Vec::new();
        let outcome = eventually("agreement of addresses, pods and nodes", PATIENCE, || {
            let ledger = Ledger::read(self)?;
            last = ledger.quarrels();
            for node in self.nodes() {
                last.extend(ledger.quarrels_on(&node, &KernelState::of(self.sandbox(), &node)?));
            }
            Ok(last.is_empty().then_some(ledger))
        });
        outcome
            .map_err(|error| if last.is_empty() { error } else { anyhow!("{error}:\n{}", last.join("\n")) })
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, address: &str) -> Pod {
        Pod {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            node: "node1".to_owned(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn instance(address: &str, uid: &str) -> Value {
        json!({
            "metadata": {"name": address},
            "spec": {"interface": "eth0", "node": "node1", "pod": {"uid": uid}},
            "status": {"phase": "Bound"},
        })
    }

    #[test]
    fn agreement_and_each_kind_of_disagreement() {
        let ledger = |pods: &[Pod], instances: &[Value]| Ledger {
            pods: pods.to_vec(),
            instances: instances.to_vec(),
            nodes: BTreeSet::from(["node1".to_owned()]),
            leaving: Vec::new(),
        };
        let (a, b) = (pod("a", "1", "10.0.0.1"), pod("b", "2", "10.0.0.1"));
        let claim = instance("10.0.0.1", "1");
        assert!(ledger(slice::from_ref(&a), slice::from_ref(&claim)).quarrels().is_empty());
        let told = |pods: &[Pod], instances: &[Value]| ledger(pods, instances).quarrels().join("; ");
        assert!(told(&[a.clone(), b], slice::from_ref(&claim)).contains("held by a and by b"));
        assert!(told(&[], &[claim]).contains("which is gone"));
        assert!(told(&[a], &[]).contains("not claimed for it"));
    }
}
