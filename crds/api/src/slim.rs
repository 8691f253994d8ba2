//! Kubernetes' own kinds, cut down to what Braid reads.
//!
//! A whole Pod takes some 45 KB in memory; a cluster has very many, and every cache holds all of them. These
//! types decode from the same API responses and keep a few hundred bytes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace as FullNamespace, Node as FullNode, Pod as FullPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize};

/// Annotations that Braid reads, by prefix; all others are dropped on decoding.
const ANNOTATIONS: [&str; 5] = [
    "braid.network/",
    "k8s.v1.cni.cncf.io/",
    "v1.multus-cni.io/",
    "kubernetes.io/config.mirror",
    "kubevirt.io/migration-target-start-timestamp",
];

/// Prefix of the types of pod conditions that are kept.
const CONDITIONS: &str = "braid.network/";

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "FullPod")]
pub struct Pod {
    /// Identity, labels, owners, deletion and the annotations that Braid reads.
    #[serde(default, deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// What was asked for.
    #[serde(default)]
    pub spec: PodSpec,
    /// How far it is.
    #[serde(default)]
    pub status: PodStatus,
}

/// The part of a Pod's spec that Braid reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The node it is bound to.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Whether it uses the network of its node.
    #[serde(default)]
    pub host_network: bool,
}

/// The part of a Pod's status that Braid reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    #[serde(default)]
    pub phase: Option<String>,
    /// Why it is in this phase, such as Evicted.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its addresses as the kubelet reports them.
    #[serde(default, rename = "podIPs", deserialize_with = "null_is_default")]
    pub pod_ips: Vec<PodIp>,
    /// Braid's own conditions.
    #[serde(default, deserialize_with = "own_conditions")]
    pub conditions: Vec<PodCondition>,
}

/// One address of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIp {
    /// The address.
    #[serde(default)]
    pub ip: String,
}

/// One condition of a Pod or Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCondition {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
    /// One word for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Pod {
    /// Whether all its containers have ended for good, so that it needs no network any more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether its deletion was asked for.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Braid's condition of type `kind`.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|c| c.type_ == kind)
    }
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "FullNode")]
pub struct Node {
    /// Identity, labels and deletion.
    #[serde(default, deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// What was asked for.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What it reports.
    #[serde(default)]
    pub status: NodeStatus,
}

/// The part of a Node's spec that Braid reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Whether new pods stay away from it.
    #[serde(default)]
    pub unschedulable: bool,
}

/// The part of a Node's status that Braid reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its addresses.
    #[serde(default, deserialize_with = "null_is_default")]
    pub addresses: Vec<NodeAddress>,
    /// Its conditions, such as `Ready` and `NetworkUnavailable`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub conditions: Vec<PodCondition>,
}

/// One address of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname` and others.
    #[serde(rename = "type")]
    pub type_: String,
    /// The address or name.
    pub address: String,
}

/// A Namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "FullNamespace")]
pub struct Namespace {
    /// Identity, labels and the annotations that Braid reads.
    #[serde(default, deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
}

/// What is kept of an object's metadata.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn slim_meta<'de, D: Deserializer<'de>>(decoder: D) -> Result<ObjectMeta, D::Error> {
    let wire = WireMeta::deserialize(decoder)?;
    let annotations = wire.annotations.map(|mut all| {
        all.retain(|key, _| ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)));
        all
    });
    Ok(ObjectMeta {
        name: wire.name,
        namespace: wire.namespace,
        uid: wire.uid,
        resource_version: wire.resource_version,
        generation: wire.generation,
        creation_timestamp: wire.creation_timestamp,
        deletion_timestamp: wire.deletion_timestamp,
        labels: wire.labels,
        annotations: annotations.filter(|all| !all.is_empty()),
        owner_references: wire.owner_references,
        ..ObjectMeta::default()
    })
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    decoder: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(decoder)?.unwrap_or_default())
}

fn own_conditions<'de, D: Deserializer<'de>>(decoder: D) -> Result<Vec<PodCondition>, D::Error> {
    let mut all: Vec<PodCondition> = null_is_default(decoder)?;
    all.retain(|c| c.type_.starts_with(CONDITIONS));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_keeps_what_is_read_and_drops_the_rest() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
                "labels": {"app": "web"},
                "annotations": {"braid.network/network": "overlay", "kubectl.kubernetes.io/last-applied": "{...}"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s1"}]
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
            "status": {
                "phase": "Failed", "reason": "Evicted", "podIPs": null,
                "conditions": [
                    {"type": "Ready", "status": "False"},
                    {"type": "braid.network/Addressed", "status": "False", "reason": "SubnetFull", "message": "full"}
                ]
            }
        }))
        .expect("decodes");
        assert_eq!(pod.metadata.annotations.as_ref().map(BTreeMap::len), Some(1));
        assert!(pod.metadata.managed_fields.is_none());
        assert_eq!(pod.metadata.owner_references.as_ref().map(|o| o[0].kind.as_str()), Some("StatefulSet"));
        assert_eq!(pod.spec, PodSpec { node_name: Some("n1".into()), host_network: false });
        assert!(pod.is_finished() && !pod.is_terminating());
        assert_eq!(pod.status.conditions.len(), 1);
        assert_eq!(
            pod.condition("braid.network/Addressed").and_then(|c| c.reason.as_deref()),
            Some("SubnetFull")
        );
    }

    #[test]
    fn an_object_without_spec_and_status_decodes() {
        let node: Node =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n1"}})).expect("decodes");
        assert_eq!(node.metadata.name.as_deref(), Some("n1"));
    }
}
