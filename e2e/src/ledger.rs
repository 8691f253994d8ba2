//! Whether addresses, pods and nodes agree: nothing lost, nothing doubled, nothing left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::exec::eventually;
use crate::kernel_state::KernelState;
use crate::lanes::Lane;
use crate::sandbox::Sandbox;
use crate::stage::{LABEL, PATIENCE, Stage, items, text};
use crate::workload::{Pod, instance_name};

/// What of a cluster is compared.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All of it.
    Cluster,
    /// What is one test's own, while others come and go beside it.
    Own {
        /// Its namespace, which is also the label on what it declares.
        namespace: String,
        /// Every address that its pods have had.
        seen: BTreeSet<IpAddr>,
    },
}

impl Scope {
    fn has_namespace(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Own { namespace: own, .. } => own == namespace,
        }
    }
}

/// Pods on Braid's networks and IPInstances at one moment.
#[derive(Clone, Debug)]
pub struct Ledger {
    scope: Scope,
    pods: Vec<Pod>,
    instances: Vec<Value>,
    nodes: BTreeSet<String>,
    /// Networks and Subnets whose deletion was asked for.
    leaving: Vec<String>,
}

impl Ledger {
    /// Reads the whole cluster, and compares what is in `scope`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn read(sandbox: &Sandbox, scope: Scope) -> Result<Self> {
        let pods = sandbox.kubectl_json(&["get", "pods", "-A"])?;
        let on_network = |pod: &&Value| pod["spec"]["hostNetwork"] != true && is_alive(pod);
        let instances = items(&sandbox.kubectl_json(&["get", "ipi"])?["items"]);
        let nodes = sandbox.kubectl_json(&["get", "nodes"])?;
        let declared = items(&sandbox.kubectl_json(&["get", "networks,subnets"])?["items"]);
        let is_own = |object: &&Value| scope.has_namespace(&text(&object["metadata"]["labels"][LABEL]));
        let networks: BTreeSet<String> =
            declared.iter().filter(is_own).map(|object| text(&object["metadata"]["name"])).collect();
        let in_scope = |instance: &Value| {
            let spec = &instance["spec"];
            let namespaces = [&spec["pod"]["namespace"], &spec["owner"]["namespace"]];
            namespaces.iter().any(|namespace| scope.has_namespace(&text(namespace)))
                || networks.contains(&text(&spec["network"]))
        };
        let leaving = |object: &&Value| object["metadata"]["deletionTimestamp"].is_string();
        Ok(Self {
            pods: items(&pods["items"]).iter().filter(on_network).map(Pod::read).collect(),
            instances: instances.into_iter().filter(in_scope).collect(),
            nodes: items(&nodes["items"]).iter().map(|node| text(&node["metadata"]["name"])).collect(),
            leaving: declared
                .iter()
                .filter(is_own)
                .filter(leaving)
                .map(|object| format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"])))
                .collect(),
            scope,
        })
    }

    /// Pods in scope that are on Braid's networks and not finished.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| self.scope.has_namespace(&pod.namespace))
    }

    /// Everything in which IPInstances and pods do not agree, one sentence each.
    #[must_use]
    pub fn quarrels(&self) -> Vec<String> {
        let mut quarrels: Vec<String> =
            self.leaving.iter().map(|object| format!("{object} is still on its way out")).collect();
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
        for pod in self.pods() {
            if pod.addresses.is_empty() {
                quarrels.push(format!("pod {} on {} has no address", pod.name, pod.node));
            }
            for address in &pod.addresses {
                let other = |other: &&Pod| other.uid != pod.uid && other.addresses.contains(address);
                if let Some(other) = self.pods.iter().find(other) {
                    quarrels.push(format!("{address} is held by {} and by {}", pod.name, other.name));
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
        let here: Vec<&Pod> = self.pods().filter(|pod| pod.node == node).collect();
        let mut quarrels = Vec::new();
        if matches!(self.scope, Scope::Cluster) {
            // Of files and namespaces nobody outside can say whose they are: only their number says something.
            for (what, found) in [
                ("host ends of pods", state.devices("veth").len()),
                ("files in the journal", state.lines("journal").len()),
                ("network namespaces", state.lines("netns").len()),
            ] {
                if found != here.len() {
                    quarrels.push(format!("{node} has {found} {what} for {} pods", here.len()));
                }
            }
        }
        // A host end says whose it is: `braid:<namespace>/<pod>/<interface>`.
        let links = state.lines("link");
        let links = links.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let whose = |link: Value| {
            let alias = text(&link["alias"]);
            let (namespace, rest) = alias.strip_prefix("braid:")?.split_once('/')?;
            let (pod, _) = rest.split_once('/')?;
            Some((namespace.to_owned(), pod.to_owned()))
        };
        let ends: BTreeSet<(String, String)> =
            links.filter_map(whose).filter(|(namespace, _)| self.scope.has_namespace(namespace)).collect();
        let of_pods: BTreeSet<(String, String)> =
            here.iter().map(|pod| (pod.namespace.clone(), pod.name.clone())).collect();
        for (namespace, pod) in ends.symmetric_difference(&of_pods) {
            quarrels.push(format!("{node} has a host end or a pod {namespace}/{pod}, and not both"));
        }
        let wanted: BTreeSet<IpAddr> = here.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
        let first_word = |line: &String| line.split(' ').next()?.parse::<IpAddr>().ok();
        let routes = ["route4 39999", "route6 39999"].map(|noun| state.lines(noun)).concat();
        let neighbours = ["neigh4", "neigh6"].map(|noun| state.lines(noun)).concat();
        let of_pods = neighbours.iter().filter(|line| line.contains(" dev braid"));
        let found: [(&str, Vec<IpAddr>); 3] = [
            ("a route to", routes.iter().filter_map(first_word).collect()),
            ("a neighbour", of_pods.filter_map(first_word).collect()),
            ("a pod that may send as", state.lines("nft").iter().filter_map(|line| allowed(line)).collect()),
        ];
        for (what, found) in found {
            let all: Vec<IpAddr> = found.into_iter().filter(|address| self.judges(*address)).collect();
            let found: BTreeSet<IpAddr> = all.iter().copied().collect();
            if found.len() != all.len() {
                quarrels.push(format!("{node} has more than once {what} one of {all:?}"));
            }
            for address in wanted.symmetric_difference(&found).filter(|address| self.judges(**address)) {
                let has = if wanted.contains(address) { "has not" } else { "has, without such a pod," };
                quarrels.push(format!("{node} {has} {what} {address}"));
            }
        }
        quarrels
    }

    /// Whether an address says something about the scope: where others give out addresses beside it, only one that its pods
    /// have had and that nobody else has now.
    fn judges(&self, address: IpAddr) -> bool {
        match &self.scope {
            Scope::Cluster => true,
            Scope::Own { seen, .. } => {
                let holds = |pod: &&Pod| pod.addresses.contains(&address);
                let others = self.pods.iter().filter(|pod| !self.scope.has_namespace(&pod.namespace));
                (seen.contains(&address) || self.pods().any(|pod| holds(&pod)))
                    && !others.into_iter().any(|pod| holds(&pod))
            }
        }
    }
}

/// The address in a line of the sets of sources that pods may send with.
fn allowed(line: &str) -> Option<IpAddr> {
    let element = line.strip_prefix("element pods4 ").or_else(|| line.strip_prefix("element pods6 "))?;
    let element: Value = serde_json::from_str(element).ok()?;
    // Device, hardware address, address.
    element["concat"].as_array()?.last()?.as_str()?.parse().ok()
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
    /// Waits until addresses, pods and nodes agree: all of the cluster for a test that is alone, among others what is the test's
    /// own. The cool-down of freed addresses is part of the wait.
    ///
    /// # Errors
    /// Every disagreement that is left after the deadline.
    pub fn await_agreement(&self) -> Result<Ledger> {
        let scope = || match self.lane() {
            Lane::Quiet => Scope::Own { namespace: self.namespace().to_owned(), seen: self.seen() },
            Lane::Alone | Lane::Apart => Scope::Cluster,
        };
        let ledger = await_agreement(self.sandbox(), scope)?;
        // Pods of workloads, which nobody has asked for by name.
        ledger.pods().for_each(|pod| self.has_seen(&pod.addresses));
        Ok(ledger)
    }
}

/// Waits until addresses, pods and nodes agree.
///
/// # Errors
/// Every disagreement that is left after the deadline.
pub fn await_agreement(sandbox: &Sandbox, scope: impl Fn() -> Scope) -> Result<Ledger> {
    let mut last = Vec::new();
    let outcome = eventually("agreement of addresses, pods and nodes", PATIENCE, || {
        let ledger = Ledger::read(sandbox, scope())?;
        last = ledger.quarrels();
        for node in sandbox.nodes() {
            last.extend(ledger.quarrels_on(&node, &KernelState::of(sandbox, &node)?));
        }
        Ok(last.is_empty().then_some(ledger))
    });
    outcome.map_err(|error| if last.is_empty() { error } else { anyhow!("{error}:\n{}", last.join("\n")) })
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

    fn ledger(scope: Scope, pods: &[Pod], instances: &[Value]) -> Ledger {
        Ledger {
            scope,
            pods: pods.to_vec(),
            instances: instances.to_vec(),
            nodes: BTreeSet::from(["node1".to_owned()]),
            leaving: Vec::new(),
        }
    }

    #[test]
    fn agreement_and_each_kind_of_disagreement() {
        let told =
            |pods: &[Pod], instances: &[Value]| ledger(Scope::Cluster, pods, instances).quarrels().join("; ");
        let (a, b) = (pod("a", "1", "10.0.0.1"), pod("b", "2", "10.0.0.1"));
        let claim = instance("10.0.0.1", "1");
        assert_eq!(told(slice::from_ref(&a), slice::from_ref(&claim)), "");
        assert!(told(&[a.clone(), b], slice::from_ref(&claim)).contains("held by a and by b"));
        assert!(told(&[], &[claim]).contains("which is gone"));
        assert!(told(&[a], &[]).contains("not claimed for it"));
    }

    #[test]
    fn a_node_is_held_to_the_addresses_of_its_pods() {
        let kernel = |lines: &[(&str, &str)]| KernelState::from_lines(lines);
        let whole = [
            ("link", "{\"alias\":\"braid:n/a/eth0\",\"kind\":\"veth\"}"),
            ("route4 39999", "10.0.0.1 dev braid01 proto 176 scope link"),
            ("neigh4", "10.0.0.1 dev braid01 lladdr 02:00:00:00:00:01 PERMANENT"),
            ("nft", "element pods4 {\"concat\":[\"braid01\",\"02:00:00:00:00:01\",\"10.0.0.1\"]}"),
        ];
        let mine =
            Scope::Own { namespace: "n".to_owned(), seen: BTreeSet::from(["10.0.0.2".parse().unwrap()]) };
        let ours = ledger(mine, &[pod("a", "1", "10.0.0.1")], &[]);
        assert_eq!(ours.quarrels_on("node1", &kernel(&whole)), Vec::<String>::new());
        for missing in 0..whole.len() {
            let mut lines = whole.to_vec();
            lines.remove(missing);
            assert_eq!(ours.quarrels_on("node1", &kernel(&lines)).len(), 1, "{lines:?}");
        }
        let with = |line| kernel(&[&whole[..], &[("route4 39999", line)]].concat());
        // One that a pod of the test had before, and one of somebody else's.
        assert_eq!(ours.quarrels_on("node1", &with("10.0.0.2 dev braid02 proto 176")).len(), 1);
        assert_eq!(ours.quarrels_on("node1", &with("10.0.0.3 dev braid03 proto 176")), Vec::<String>::new());
        let twice = with("10.0.0.1 dev braid07 proto 176 scope link");
        assert!(ours.quarrels_on("node1", &twice).join("; ").contains("more than once"));
        let everything = Ledger { scope: Scope::Cluster, ..ours };
        let told = everything.quarrels_on("node1", &with("10.0.0.3 dev braid03 proto 176")).join("; ");
        assert!(told.contains("10.0.0.3") && told.contains("0 files in the journal for 1 pods"), "{told}");
    }
}
