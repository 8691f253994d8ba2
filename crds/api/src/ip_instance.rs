//! `IPInstance`: one address given out.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rule::{about, address_of, immutable, is_address, rule, unicast};

/// One address given out. The name is the address itself (10.244.0.5, or fd00-0-0-0-0-0-0-5 for IPv6), so that
/// making the object is the claim: nobody can claim the same address a second time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "braid.network",
    version = "v1",
    kind = "IPInstance",
    plural = "ipinstances",
    shortname = "ipi",
    category = "braid",
    status = "IPInstanceStatus",
    derive = "PartialEq",
    selectable = ".spec.node",
    selectable = ".spec.pod.uid",
    selectable = ".spec.subnet",
    selectable = ".spec.owner.kind",
    doc = "One address given out. The name is the address, so that making the object is the claim.",
    validation = rule(
        named_after_address(),
        "metadata.name: must be the address of spec.address, as 10.244.0.5 or fd00-0-0-0-0-0-0-5; in an address \
         space other than the usual one, that space and a dot stand in front",
    ),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnet", priority = 1),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.pod.namespace"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod.name"),
    printcolumn(name = "Interface", type_ = "string", json_path = ".spec.interface", priority = 1),
    printcolumn(name = "MAC", type_ = "string", json_path = ".spec.mac", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner.name", priority = 1),
    printcolumn(name = "Owner-Kind", type_ = "string", json_path = ".spec.owner.kind", priority = 1),
    printcolumn(name = "For-Pod", type_ = "string", json_path = ".spec.owner.pod", priority = 1),
    printcolumn(name = "Migrates", type_ = "string", json_path = ".spec.handover.node", priority = 1),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.reason", priority = 1),
    printcolumn(name = "Kept-Until", type_ = "string", json_path = ".spec.retainUntil", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = about(
        ".gateway",
        format!("!has(self.gateway) || {}", is_address("self.gateway")),
        "gateway: write an address in its shortest spelling",
    ),
    validation = about(
        ".gateway",
        format!(
            "!has(self.gateway) || !{} || !isCIDR(self.address) || cidr(self.address).masked().containsIP(self.gateway)",
            is_address("self.gateway")
        ),
        "gateway: must be inside the prefix of spec.address",
    ),
    validation = about(
        ".gateway",
        "!has(self.gateway) || !isCIDR(self.address) || string(cidr(self.address).ip()) != self.gateway",
        "gateway: is the address itself; a gateway cannot be given to a pod",
    ),
    validation = about(
        ".node",
        "!has(self.pod) || has(self.node)",
        "node: an address that a pod holds needs the node of that pod",
    ),
    validation = about(
        ".pod",
        "self.interface != 'vtep' || (!has(self.pod) && has(self.node))",
        "interface vtep: is the address of a node, which needs spec.node and no spec.pod",
    ),
    validation = about(
        ".set",
        "!has(self.set) || size(self.set) == 0 || self.set.exists(a, self.address.startsWith(a + '/'))",
        "set: must hold the address of this object too",
    ),
    validation = immutable("network", "''", "network: cannot be changed; the address belongs to its Network"),
    validation = immutable("subnet", "''", "subnet: cannot be changed; the address belongs to its Subnet"),
    validation = immutable("address", "''", "address: cannot be changed; it is the name of the object"),
)]
#[serde(rename_all = "camelCase")]
pub struct IPInstanceSpec {
    /// Name of the Network. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    pub network: String,
    /// Name of the Subnet. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    pub subnet: String,
    /// The address with the prefix length of its Subnet, such as 10.20.0.11/24. Cannot be changed.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(
        validation = rule(
            format!("isCIDR(self) && {}", is_address(&address_of("self"))),
            "address: write address/length in the shortest spelling, such as 10.20.0.11/24; IPv4-mapped IPv6 \
             (::ffff:0:0/96) is not possible",
        ),
        validation = rule(
            format!("!isCIDR(self) || {}", unicast(&format!("({} + (cidr(self).ip().family() == 4 ? '/32' : '/128'))", address_of("self")))),
            "address: pods cannot have an unspecified, loopback, link-local, multicast or reserved address",
        ),
    )]
    pub address: String,
    /// The router of the Subnet, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 39))]
    pub gateway: Option<String>,
    /// Hardware address of the interface, such as 02:42:ac:11:00:02. Both families of one interface share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 17))]
    #[x_kube(validation = rule(
        "self.matches('^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$') && self != '00:00:00:00:00:00'",
        "mac: write a unicast address as six pairs of lower-case hex digits, such as 02:42:ac:11:00:02",
    ))]
    pub mac: Option<String>,
    /// The pod that holds the address. Absent while the address is kept for an owner, and for a node's own
    /// address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    /// The interface in the pod that has the address. The value vtep marks a node's own address in an overlay.
    #[serde(default = "default_interface")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = rule(
        "self.matches('^[!-.0-9;-~]+$') && !(self in ['.', '..'])",
        "interface: is not a device name; use no white space, / or :",
    ))]
    pub interface: String,
    /// Name of the node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
    /// All addresses given to this interface together, this one included. The interface is complete when an
    /// IPInstance exists for each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 39)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = rule(
        format!("self.all(a, {})", is_address("a")),
        "set: each entry is an address in its shortest spelling",
    ))]
    pub set: Vec<String>,
    /// The second pod of a virtual machine that migrates to another node. Its interface has the address too, but
    /// traffic goes to spec.pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
    /// Who keeps the address while pods come and go: a StatefulSet, a Deployment, a virtual machine, or the Node
    /// for its own address. Absent: nobody, the address goes with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerReference>,
    /// How many seconds the address is kept for its owner after its pod is gone (annotation
    /// braid.network/ip-retain-ttl of the pod). Absent: as long as the owner exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub retain_seconds: Option<u32>,
    /// Until when the address is kept for its owner without a pod. Absent: as long as the owner exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_until: Option<Time>,
}

/// The name of the object is the address, so that nobody can claim it twice.
fn named_after_address() -> String {
    let space = "([a-z]([-a-z0-9]*[a-z0-9])?[.])?";
    let six = "(0|[1-9a-f][0-9a-f]{0,3})(-(0|[1-9a-f][0-9a-f]{0,3})){7}";
    let name = "self.metadata.name";
    let address = address_of("self.spec.address");
    format!(
        "!isCIDR(self.spec.address) || (cidr(self.spec.address).ip().family() == 4 \
         ? {name}.matches('^{space}[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+$') \
           && ('.' + {name}).endsWith('.' + {address}) \
         : {name}.matches('^{space}{six}$') \
           && string(ip({name}.substring({name}.indexOf('.') + 1).replace('-', ':'))) == {address})"
    )
}

fn default_interface() -> String {
    "eth0".to_owned()
}

/// A pod, by uid: a successor of the same name is another pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// Namespace of the pod.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the pod.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Uid of the pod.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// The second pod of a virtual machine that migrates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// The pod.
    pub pod: PodReference,
    /// Name of the node that it runs on.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Target: the machine is still to come to this pod. Source: the machine has left it.
    pub role: HandoverRole,
}

/// What the second pod of a migrating machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HandoverRole {
    /// The machine is still to come to it.
    Target,
    /// The machine has left it.
    Source,
}

/// An object that keeps an address across pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    /// API version of the owner, such as apps/v1.
    #[schemars(length(min = 1, max = 128))]
    pub api_version: String,
    /// Kind of the owner, such as StatefulSet.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Namespace of the owner; absent or empty for one without a namespace, such as a Node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the owner.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Uid of the owner; absent or empty while it does not exist yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Name of the one pod of the owner that the address is for, such as db-0 of the StatefulSet db. Absent: any pod
    /// of the owner may have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod: Option<String>,
}

/// Where an address stands in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InstancePhase {
    /// Held by a pod or by a node.
    #[default]
    Bound,
    /// Kept for an owner that has no pod at the moment.
    Reserved,
    /// Given back; free when the cool-down has passed and the object is gone.
    Releasing,
}

/// Where an address stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPInstanceStatus {
    /// Bound (held by a pod or node), Reserved (kept for an owner that has no pod at the moment) or Releasing
    /// (given back; the object goes away when the cool-down has passed).
    #[serde(default)]
    pub phase: InstancePhase,
    /// Why the address is in this phase, in one word, such as TornDown, PodGone or NodeGone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// When a node put the address on an interface last; stays while the address is kept for its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_at: Option<Time>,
    /// Id of the container sandbox that the interface is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub sandbox: Option<String>,
    /// When the node confirmed that the interface is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn_down_at: Option<Time>,
    /// Uid of the second pod of a migrating machine whose node has confirmed that its interface is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub second_torn_down: Option<String>,
    /// Since when the address is kept for its owner without a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_at: Option<Time>,
    /// End of the cool-down: from then on the address can be given to another pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_at: Option<Time>,
    /// Details for people, such as why an address could not be put on its interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
