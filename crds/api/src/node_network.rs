//! `NodeNetwork`: what the agent of one node says about it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing is asked of a node here: a NodeNetwork is all status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "braid.network",
    version = "v1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nodenet",
    category = "braid",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    no_spec,
    doc = "How one node takes part in the Networks. Written by the agent of the node of the same name.",
    printcolumn(name = "Networks", type_ = "string", json_path = ".status.networks[*].name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeNetworkSpec {}

/// What the agent of one node says about it. Other nodes build their routes, neighbours and tunnels from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// Ready says whether pods can be attached on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// The Networks that this node takes part in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub networks: Vec<NodeNetworkEntry>,
    /// BGP sessions of this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["peer".into()]))]
    pub bgp: Vec<BgpSession>,
}

/// One Network as one node has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkEntry {
    /// Name of the Network.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Whether pods can be attached to it on this node.
    #[serde(default)]
    pub ready: bool,
    /// Why it is ready or not, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Why it is ready or not, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// The device of the node that carries the Network's packets, such as eth0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub parent: Option<String>,
    /// The device that Braid made for the Network, such as eth0.vxlan4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub device: Option<String>,
    /// MTU of pod interfaces in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// This node's end of the tunnels of an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<Vtep>,
}

/// One end of the tunnels of an overlay, as other nodes must know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vtep {
    /// The node's address on the physical network: outer source and destination of tunnelled packets.
    #[schemars(length(min = 1, max = 39))]
    pub ip: String,
    /// Prefixes on the link of the parent device. Two nodes that share one send without a tunnel when the
    /// Network says encapsulation CrossSubnet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub links: Vec<String>,
    /// Hardware address of the tunnel device.
    #[schemars(length(min = 1, max = 17))]
    pub mac: String,
    /// Addresses of the tunnel device itself, at most one per family: next hops of the routes to this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(min = 1, max = 39)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub addresses: Vec<String>,
}

/// State of a BGP session after RFC 4271 section 8.2.2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BgpState {
    /// Refuses connections.
    #[default]
    Idle,
    /// Waits for a TCP connection.
    Connect,
    /// Tries to set up a TCP connection.
    Active,
    /// Waits for the peer's OPEN.
    OpenSent,
    /// Waits for the peer's KEEPALIVE.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

/// One BGP session of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpSession {
    /// Address of the peer.
    #[schemars(length(min = 1, max = 39))]
    pub peer: String,
    /// Name of the Network that the peer belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub network: Option<String>,
    /// State of the session: Idle, Connect, Active, OpenSent, OpenConfirm or Established.
    #[serde(default)]
    pub state: BgpState,
    /// Since when the session is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Routes sent to the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<i64>,
    /// Last error of the session, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}
