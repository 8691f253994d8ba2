//! `Network`: how packets of a set of Subnets are carried between nodes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LabelSelector;
use crate::bgp::BgpSpec;
use crate::rule::{about, device_patterns, immutable, label_name, rule};

/// How packets of pods are carried between nodes, and which nodes and namespaces take part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "braid.network",
    version = "v1",
    kind = "Network",
    plural = "networks",
    shortname = "net",
    category = "braid",
    status = "NetworkStatus",
    derive = "PartialEq",
    doc = "How packets of pods are carried between nodes, and which nodes and namespaces take part.",
    validation = label_name(),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.class"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default", priority = 1),
    printcolumn(name = "Subnets", type_ = "integer", json_path = ".status.subnets"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.members"),
    printcolumn(
        name = "V4",
        type_ = "string",
        description = "IPv4 addresses used/total",
        json_path = ".status.ipv4.usage"
    ),
    printcolumn(
        name = "V6",
        type_ = "string",
        description = "IPv6 addresses used/total",
        json_path = ".status.ipv6.usage"
    ),
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = only_for("vxlan", "VXLAN"),
    validation = only_for("vlan", "VLAN"),
    validation = only_for("bgp", "BGP"),
    validation = only_for("direct", "Direct"),
    validation = only_for("macvlan", "MACVLAN"),
    validation = only_for("ipvlan", "IPVLAN"),
    validation = only_for("ipip", "IPIP"),
    validation = only_for("udp", "UDP"),
    validation = only_for("bridge", "Bridge"),
    validation = needs("vxlan", "VXLAN", "a vni"),
    validation = needs("bgp", "BGP", "an asn and peers"),
    validation = about(
        ".addressSpace",
        "!has(self.addressSpace) || self.addressSpace == '' || self.type in ['MACVLAN', 'IPVLAN', 'Bridge']",
        "addressSpace: only Networks of type MACVLAN, IPVLAN and Bridge can have one; remove it",
    ),
    validation = about(
        ".addressSpace",
        "!has(self.addressSpace) || self.addressSpace == '' || self.addressSpace.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "addressSpace: use lower-case letters, digits and dashes, with a letter at the start and no dash at the end",
    ),
    validation = about(
        ".mtu",
        "!has(self.mtu) || self.mtu == 0 || self.mtu >= 1280",
        "mtu: use 0 (found out by itself) or 1280 to 65535; IPv6 needs at least 1280",
    ),
    validation = immutable("type", "''", "type: cannot be changed; make a new Network"),
    validation = immutable("addressSpace", "''", "addressSpace: cannot be changed; make a new Network"),
    validation = immutable("vxlan.vni", "0", "vxlan.vni: cannot be changed; make a new Network"),
    validation = immutable("vxlan.port", "0", "vxlan.port: cannot be changed; make a new Network"),
    validation = immutable("vlan.id", "-1", "vlan.id: cannot be changed; make a new Network"),
    validation = immutable("macvlan.id", "-1", "macvlan.id: cannot be changed; make a new Network"),
    validation = immutable("ipvlan.id", "-1", "ipvlan.id: cannot be changed; make a new Network"),
    validation = immutable("udp.port", "0", "udp.port: cannot be changed; make a new Network"),
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// How packets are carried: VXLAN, IPIP and UDP are overlays between nodes; VLAN, BGP, Direct, MACVLAN and
    /// IPVLAN put pods on the physical network; Bridge stays within one node. The settings of the type are in
    /// the member of the same name in lower case, and no other such member may be present. Cannot be changed.
    #[serde(rename = "type")]
    pub kind: NetworkType,
    /// Whether pods that name no Network get their addresses here. At most one Network is the default: of
    /// several the oldest one stays it and the others show a condition.
    #[serde(default)]
    pub default: bool,
    /// Which nodes take part, by their labels. Absent or empty: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Which namespaces may use this Network, by their labels. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<LabelSelector>,
    /// MTU of pod interfaces in bytes. 0: that of the device below, less what encapsulation adds.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: u32,
    /// Subnets of Networks in one address space must not overlap; Networks in different address spaces may use
    /// the same addresses. Empty is the space that the nodes themselves are in. Only MACVLAN, IPVLAN and Bridge
    /// can have another one, as packets of the other types enter the routing of the nodes. Cannot be changed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub address_space: String,
    /// Settings of type VXLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanSpec>,
    /// Settings of type VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// Settings of type BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpSpec>,
    /// Settings of type Direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectSpec>,
    /// Settings of type MACVLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macvlan: Option<MacvlanSpec>,
    /// Settings of type IPVLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<IpvlanSpec>,
    /// Settings of type IPIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipip: Option<IpipSpec>,
    /// Settings of type UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpSpec>,
    /// Settings of type Bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeSpec>,
}

/// The member of one type is there for this type only.
fn only_for(member: &str, kind: &str) -> Rule {
    about(
        &format!(".{member}"),
        format!("!has(self.{member}) || self.type == '{kind}'"),
        &format!("{member}: only Networks of type {kind} have it; remove it or change the type"),
    )
}

/// A type that cannot do without its member.
fn needs(member: &str, kind: &str, what: &str) -> Rule {
    rule(
        format!("self.type != '{kind}' || has(self.{member})"),
        &format!("type {kind} needs the member {member} with {what}"),
    )
}

/// How a Network carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkType {
    /// Overlay of VXLAN tunnels between nodes, routed.
    #[serde(rename = "VXLAN")]
    Vxlan,
    /// Pods in VLANs of the physical network, routed by the node.
    #[serde(rename = "VLAN")]
    Vlan,
    /// Pods announced to the physical network by BGP.
    #[serde(rename = "BGP")]
    Bgp,
    /// Host routes by way of the nodes' own addresses; the nodes share a link.
    Direct,
    /// Pods on the physical network by macvlan interfaces.
    #[serde(rename = "MACVLAN")]
    Macvlan,
    /// Pods on the physical network by ipvlan L2 interfaces.
    #[serde(rename = "IPVLAN")]
    Ipvlan,
    /// Overlay of IP-in-IP tunnels between nodes.
    #[serde(rename = "IPIP")]
    Ipip,
    /// Overlay of userspace UDP tunnels, for networks that let nothing else through.
    #[serde(rename = "UDP")]
    Udp,
    /// A bridge within each node.
    Bridge,
}

/// When packets between two nodes are put into a tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encapsulation {
    /// Always.
    #[default]
    Always,
    /// Only between nodes that share no link.
    CrossSubnet,
}

/// Settings of type VXLAN: a routed overlay after RFC 7348 with fixed neighbours, nothing is flooded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VxlanSpec {
    /// VXLAN network identifier, different for every Network: 1 to 16777215. Cannot be changed.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: u32,
    /// UDP port that nodes send tunnelled packets to: 1 to 65535. Firewalls between nodes must let it through.
    /// Cannot be changed.
    #[serde(default = "default_vxlan_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Always: every packet between nodes goes through the tunnel. CrossSubnet: only packets between nodes that
    /// share no link do; the others are routed as they are.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Devices that may carry the tunnel, in order of preference; each entry is a name or a pattern with * such
    /// as eth*. The first one that exists on a node is taken. Empty: the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
}

fn default_vxlan_port() -> u16 {
    braid_types::well_known::VXLAN_PORT
}

/// Settings of type VLAN: pods in VLANs of the physical network. The node routes between pod and VLAN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VlanSpec {
    /// Devices that the VLANs arrive on, in order of preference; names or patterns with * such as eth*. Empty:
    /// the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
    /// VLAN id of all Subnets of this Network: 1 to 4094, 0 is untagged. Absent: each Subnet says its own.
    /// Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub id: Option<u16>,
}

/// Settings of type Direct: plain routes by way of the nodes' own addresses, for nodes that share a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectSpec {
    /// Devices that carry the packets, in order of preference; names or patterns with * such as eth*. Empty: the
    /// device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
}

/// How macvlan interfaces of one device see each other (Linux `IFLA_MACVLAN_MODE`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MacvlanMode {
    /// Packets between pods of one node are passed on directly.
    #[default]
    Bridge,
    /// Pods of one node do not see each other.
    Private,
    /// Packets between pods of one node go by way of the switch.
    Vepa,
}

/// Settings of type MACVLAN: every pod has an interface with its own hardware address on the physical network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MacvlanSpec {
    /// Devices that pod interfaces sit on, in order of preference; names or patterns with * such as eth*. Empty:
    /// the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
    /// VLAN id of all Subnets of this Network: 1 to 4094, 0 is untagged. Absent: each Subnet says its own.
    /// Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub id: Option<u16>,
    /// Bridge: pods of one node reach each other directly. Private: they do not. Vepa: by way of the switch.
    #[serde(default)]
    pub mode: MacvlanMode,
}

/// Settings of type IPVLAN: pods share the hardware address of the device they sit on (ipvlan in L2 mode).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpvlanSpec {
    /// Devices that pod interfaces sit on, in order of preference; names or patterns with * such as eth*. Empty:
    /// the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
    /// VLAN id of all Subnets of this Network: 1 to 4094, 0 is untagged. Absent: each Subnet says its own.
    /// Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub id: Option<u16>,
}

/// Settings of type IPIP: a routed overlay of IP-in-IP tunnels (RFC 2003, RFC 2473).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpipSpec {
    /// Always: every packet between nodes goes through the tunnel. CrossSubnet: only packets between nodes that
    /// share no link do; the others are routed as they are.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Devices that may carry the tunnel, in order of preference; names or patterns with * such as eth*. Empty:
    /// the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
}

/// Settings of type UDP: an overlay that a program on each node carries, where the kernel's tunnels do not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UdpSpec {
    /// UDP port that nodes send to: 1 to 65535. Cannot be changed.
    #[serde(default = "default_udp_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Devices that may carry the tunnel, in order of preference; names or patterns with * such as eth*. Empty:
    /// the device of the node's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
}

fn default_udp_port() -> u16 {
    8285
}

/// Settings of type Bridge: pods of one node on one bridge, without a way to other nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BridgeSpec {
    /// Device to attach to the bridge, so that pods are on its link too; names or patterns with * such as eth*,
    /// in order of preference. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Atomic, validation = device_patterns())]
    pub interfaces: Vec<String>,
}

/// Whether pods have addresses of their own world or of the physical network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkClass {
    /// The physical network sees only addresses of nodes.
    Overlay,
    /// The physical network sees addresses of pods.
    Underlay,
}

/// What the controller has found out about a Network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Ready says whether pods can use the Network, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Overlay (the physical network sees only addresses of nodes) or Underlay (it sees addresses of pods).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<NetworkClass>,
    /// Number of Subnets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnets: Option<i64>,
    /// Nodes that take part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// IPv4 addresses of all Subnets together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<AddressCounts>,
    /// IPv6 addresses of all Subnets together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AddressCounts>,
}

/// Nodes of a Network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that the Network selects.
    #[serde(default)]
    pub members: i64,
    /// Members whose agent says that pods can be attached.
    #[serde(default)]
    pub ready: i64,
}

/// Addresses of one family, over all Subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressCounts {
    /// Addresses that may be given out at all. 9223372036854775807 stands for that many or more, as an IPv6 /64 and larger
    /// ones have.
    #[serde(default)]
    pub total: i64,
    /// Addresses held by pods and nodes; always exact.
    #[serde(default)]
    pub used: i64,
    /// Addresses that a pod can get now without asking for them by address. 9223372036854775807 stands for that many or
    /// more.
    #[serde(default)]
    pub available: i64,
    /// Used and total as one text, such as 12/254. A total that stands for more than its field can say is rounded here, as
    /// 12/1.8e19 of an IPv6 /64.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub usage: String,
}
