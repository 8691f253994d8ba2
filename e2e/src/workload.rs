//! Pods of tests: how they are asked for, and what they got.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::layout::Family;
use crate::stage::{PATIENCE, Stage, items, text};

/// A pod that a test wants.
#[derive(Clone, Debug)]
pub struct PodPlan {
    name: String,
    node: Option<String>,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    owners: Vec<Value>,
    image: &'static str,
    command: Vec<String>,
    capabilities: Vec<String>,
    restart: &'static str,
    host_port: Option<u16>,
}

impl PodPlan {
    /// A pod with the tools of the test image that does nothing by itself.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            annotations: BTreeMap::new(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            owners: Vec::new(),
            image: crate::own_images::TEST_IMAGE,
            command: Vec::new(),
            capabilities: Vec::new(),
            restart: "Always",
            host_port: None,
        }
    }

    /// On this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// With an annotation, in which addresses are read as [`Stage::own`] does.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// In this Network.
    #[must_use]
    pub fn in_network(self, network: &str) -> Self {
        self.annotated("braid.network/network", network)
    }

    /// With a label.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Controlled by another object.
    #[must_use]
    pub fn owned_by(mut self, owner: &Value) -> Self {
        self.owners = vec![json!({
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "controller": true,
        })];
        self
    }

    /// Running this command.
    #[must_use]
    pub fn running(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Serving HTTP on port 8080: `/cgi-bin/whoami` answers with the pod's name and the caller's address.
    #[must_use]
    pub fn serving(self) -> Self {
        self.running(&["serve", "8080"])
    }

    /// With Linux capabilities beyond the usual ones.
    #[must_use]
    pub fn capable(mut self, capabilities: &[&str]) -> Self {
        self.capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Not started again after its command has ended.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.restart = "Never";
        self
    }

    /// With its port 8080 on this port of its node.
    #[must_use]
    pub fn host_port(mut self, port: u16) -> Self {
        self.host_port = Some(port);
        self
    }

    /// The smallest container there is, for tests with many pods.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.image = crate::own_images::PAUSE_IMAGE;
        self
    }

    fn manifest(&self, stage: &Stage) -> Value {
        let annotations: BTreeMap<&String, String> =
            self.annotations.iter().map(|(key, value)| (key, stage.own(value))).collect();
        let mut container = json!({"name": "main", "image": self.image, "imagePullPolicy": "Never"});
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        if !self.capabilities.is_empty() {
            container["securityContext"] = json!({"capabilities": {"add": self.capabilities}});
        }
        if let Some(port) = self.host_port {
            container["ports"] = json!([{"containerPort": 8080, "hostPort": port}]);
        }
        if self.command.first().is_some_and(|program| program == "serve") {
            container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
        }
        let mut spec = json!({
            "containers": [container],
            "restartPolicy": self.restart,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        });
        if let Some(node) = &self.node {
            spec["nodeName"] = json!(node);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": stage.namespace(),
                "labels": self.labels,
                "annotations": annotations,
                "ownerReferences": self.owners,
            },
            "spec": spec,
        })
    }
}

/// A pod that has its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its addresses, as its status has them.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// Reads a pod's API object.
    #[must_use]
    pub fn read(object: &Value) -> Self {
        let ips = items(&object["status"]["podIPs"]);
        Self {
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            uid: text(&object["metadata"]["uid"]),
            node: text(&object["spec"]["nodeName"]),
            addresses: ips.iter().filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
        }
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| family_of(**address) == family);
        found
            .copied()
            .with_context(|| format!("pod {} has no {family:?} address: {:?}", self.name, self.addresses))
    }
}

/// Both families: nearly every promise is about each of them.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The family of an address.
#[must_use]
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// An address as the host part of a URL or of socat's notation.
#[must_use]
pub fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The template of a workload's pods: the test image under the label `app`, with annotations as they are.
#[must_use]
pub fn template(app: &str, annotations: &Value) -> Value {
    json!({
        "metadata": {"labels": {"app": app}, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": crate::own_images::TEST_IMAGE, "imagePullPolicy": "Never",
            }],
        },
    })
}

/// Name of the IPInstance of an address.
#[must_use]
pub fn instance_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|group| format!("{group:x}")).join("-"),
    }
}

impl Stage {
    /// Asks for pods and returns at once.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn create(&self, plans: &[PodPlan]) -> Result<()> {
        let manifests: Vec<Value> = plans.iter().map(|plan| plan.manifest(self)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": manifests});
        self.sandbox().apply(&list.to_string()).map(drop)
    }

    /// Asks for pods and waits until all of them are Ready.
    ///
    /// # Errors
    /// When one is not within the deadline, with its description.
    pub fn start(&self, plans: &[PodPlan]) -> Result<Vec<Pod>> {
        self.create(plans)?;
        plans.iter().map(|plan| self.await_pod(&plan.name)).collect()
    }

    /// Waits until a pod is Ready, and returns it.
    ///
    /// # Errors
    /// When it is not within the deadline, with its description.
    pub fn await_pod(&self, name: &str) -> Result<Pod> {
        self.await_ready(&format!("pod/{name}"))?;
        let pod = self.pod(name)?;
        ensure!(!pod.addresses.is_empty(), "pod {name} is Ready without an address");
        Ok(pod)
    }

    /// A pod as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let pod = Pod::read(&self.kubectl_json(&["get", "pod", name])?);
        self.has_seen(&pod.addresses);
        Ok(pod)
    }

    /// Deletes pods and waits until they are gone.
    ///
    /// # Errors
    /// When they do not go within the deadline.
    pub fn delete_pods(&self, names: &[&str]) -> Result<()> {
        let deletion = ["delete", "pod", "--ignore-not-found", "--timeout=180s"];
        self.kubectl(&[&deletion[..], names].concat()).map(drop)
    }

    /// Runs a shell script in a pod and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn script(&self, pod: &Pod, script: &str) -> Result<String> {
        self.sandbox().pod_exec(&pod.namespace, &pod.name, &["sh", "-c", script])
    }

    /// The IPInstance of an address; `None` when the address is free.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn instance(&self, address: IpAddr) -> Result<Option<Value>> {
        let name = instance_name(address);
        let found = self.sandbox().kubectl_json(&["get", "ipi", &name, "--ignore-not-found"])?;
        Ok((!found.is_null()).then_some(found))
    }

    /// Waits until none of the addresses is claimed any more.
    ///
    /// # Errors
    /// When one still is after the deadline.
    pub fn await_free(&self, addresses: &[IpAddr]) -> Result<()> {
        for address in addresses {
            let name = instance_name(*address);
            let get = ["get", "ipi", &name, "--ignore-not-found"];
            self.sandbox()
                .await_state(&format!("{address} to be free"), &get, PATIENCE, |instance| {
                    Ok(instance.is_null().then_some(()))
                })
                .with_context(|| {
                    self.sandbox().kubectl(&["get", "ipi", &name, "-o", "yaml"]).unwrap_or_default()
                })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_instances_are_the_addresses() {
        assert_eq!(instance_name("10.244.0.5".parse().unwrap()), "10.244.0.5");
        assert_eq!(instance_name("fd00::5".parse().unwrap()), "fd00-0-0-0-0-0-0-5");
    }

    #[test]
    fn a_pod_is_read_with_both_addresses() {
        let pod = Pod::read(&json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": "node1"},
            "status": {"podIPs": [{"ip": "10.244.0.5"}, {"ip": "fd00::5"}]},
        }));
        assert_eq!(pod.address(Family::V6).unwrap().to_string(), "fd00::5");
        assert_eq!(pod.address(Family::V4).unwrap().to_string(), "10.244.0.5");
    }
}
