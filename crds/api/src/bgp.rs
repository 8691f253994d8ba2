//! Settings of a Network of type BGP.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LabelSelector;
use crate::rule::{device_patterns, is_address, rule};

/// Settings of type BGP: nodes announce the addresses of their pods to routers of the physical network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpSpec {
    /// Autonomous system number of the nodes: 1 to 4294967294.
    #[schemars(range(min = 1, max = 4_294_967_294u32))]
    pub asn: u32,
    /// Rack: each node speaks with the routers of its own rack only. Global: every node speaks with every peer.
    #[serde(default)]
    pub scope: BgpScope,
    /// Blocks: announce one route per block of a node. Hosts: announce every address by itself.
    #[serde(default)]
    pub advertise: BgpAdvertise,
    /// Devices that carry the packets, in order of preference; names or patterns with * such as eth*. Empty: the
    /// device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
    /// Routers that nodes speak with.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    pub peers: Vec<BgpPeer>,
}

/// Which peers a node speaks with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BgpScope {
    /// Those whose nodeSelector selects the node's rack.
    Rack,
    /// All.
    #[default]
    Global,
}

/// What a node announces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BgpAdvertise {
    /// One route per block.
    #[default]
    Blocks,
    /// One route per address.
    Hosts,
}

/// A router that nodes speak BGP with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeer {
    /// Address of the router.
    #[schemars(length(min = 1, max = 39))]
    #[x_kube(validation = rule(
        is_address("self"),
        "address: write the address of the router in its shortest spelling, such as 10.20.0.1 or fd00::1",
    ))]
    pub address: String,
    /// Autonomous system number of the router: 1 to 4294967294. The same as that of the nodes makes an internal
    /// session.
    #[schemars(range(min = 1, max = 4_294_967_294u32))]
    pub asn: u32,
    /// TCP port of the router: 1 to 65535.
    #[serde(default = "default_bgp_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Secret with the password of the session (TCP MD5, RFC 2385), in the namespace that Braid runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyReference>,
    /// Which nodes speak with this router, by their labels. Absent: all members of the Network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Keeps routes while the agent restarts (RFC 4724). Absent: on, with its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// Seconds without a message after which the session counts as lost: 0 (never) or 3 to 65535.
    #[serde(default = "default_hold_time")]
    #[schemars(range(min = 0, max = 65535))]
    #[x_kube(validation = rule("self == 0 || self >= 3", "holdTime: use 0 (never) or 3 to 65535 seconds"))]
    pub hold_time: u32,
    /// Finds a lost router within milliseconds (RFC 5880). Absent: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// How many hops an external session may cross: 1 to 255. 1 demands that the router is on a link of the node.
    #[serde(default = "default_multihop")]
    #[schemars(range(min = 1, max = 255))]
    pub ebgp_multihop: u8,
    /// Communities put on every route, as asn:value (RFC 1997) or global:local1:local2 (RFC 8092).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 3, max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = rule(
        "self.all(c, c.matches('^[0-9]+(:[0-9]+){1,2}$') \
         && c.split(':').all(n, size(n) <= 10 && int(n) <= (size(c.split(':')) == 2 ? 65535 : 4294967295)))",
        "communities: write each one as asn:value with numbers up to 65535, or as global:local1:local2 with \
         numbers up to 4294967295",
    ))]
    pub communities: Vec<String>,
    /// Whether packets of pods go by way of this router. false for a router that only collects routes.
    #[serde(default = "yes")]
    pub routes_traffic: bool,
    /// Whether the Network is ready on a node only while this session is established.
    #[serde(default)]
    pub must_be_established: bool,
}

fn default_bgp_port() -> u16 {
    179
}

fn default_hold_time() -> u32 {
    90
}

fn default_multihop() -> u8 {
    1
}

fn yes() -> bool {
    true
}

/// One key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret.
    #[serde(default = "default_secret_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_secret_key() -> String {
    "password".to_owned()
}

/// Graceful restart (RFC 4724).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// Seconds that the router keeps routes while the session is away: 1 to 4095.
    #[serde(default = "default_restart_time")]
    #[schemars(range(min = 1, max = 4095))]
    pub restart_time: u16,
}

fn default_restart_time() -> u16 {
    120
}

/// Bidirectional forwarding detection (RFC 5880).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Shortest time between two packets that the node sends, in milliseconds: 10 to 60000.
    #[serde(default = "default_bfd_interval")]
    #[schemars(range(min = 10, max = 60000))]
    pub min_transmit_interval: u32,
    /// Shortest time between two packets that the node can take, in milliseconds: 10 to 60000.
    #[serde(default = "default_bfd_interval")]
    #[schemars(range(min = 10, max = 60000))]
    pub min_receive_interval: u32,
    /// How many packets in a row must be missing: 1 to 255.
    #[serde(default = "default_bfd_multiplier")]
    #[schemars(range(min = 1, max = 255))]
    pub detect_multiplier: u8,
}

fn default_bfd_interval() -> u32 {
    300
}

fn default_bfd_multiplier() -> u8 {
    3
}
