//! `Subnet`: a range of addresses of one family that belongs to a Network.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::rule::{
    about, address_of, family, first, immutable, is_address, is_broadcast, is_prefix, is_range, label_name,
    last, not_behind, prefix, rule,
};

/// One range of addresses of one family that pods of a Network get their addresses from. A dual-stack Network
/// has two Subnets, one per family. Any size works, an IPv6 /64 included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "braid.network",
    version = "v1",
    kind = "Subnet",
    plural = "subnets",
    category = "braid",
    status = "SubnetStatus",
    derive = "PartialEq",
    doc = "A range of addresses of one family that pods of a Network get their addresses from.",
    validation = label_name(),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway", priority = 1),
    printcolumn(name = "VLAN", type_ = "integer", json_path = ".spec.vlan", priority = 1),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.usage"),
    printcolumn(name = "Blocks", type_ = "integer", json_path = ".status.blocks"),
    printcolumn(name = "Private", type_ = "boolean", json_path = ".spec.private", priority = 1),
    printcolumn(name = "Table", type_ = "integer", json_path = ".status.routingTable", priority = 1),
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
    validation = same_family("gateway", &format!("!{} || ip(self.gateway).family() == {}", is_address("self.gateway"), family("self.cidr"))),
    validation = gateway("cidr(self.cidr).containsIP(self.gateway)", "gateway: must be inside the CIDR"),
    validation = gateway(
        &format!(
            "cidr(self.cidr).prefixLength() >= (ip(self.gateway).family() == 4 ? 31 : 127) || self.gateway != {}",
            address_of("self.cidr")
        ),
        "gateway: is the first address of the CIDR, which belongs to the subnet itself; use another one",
    ),
    validation = gateway(
        &format!(
            "ip(self.gateway).family() == 6 || cidr(self.cidr).prefixLength() >= 31 || !({})",
            is_broadcast("self.gateway", "self.cidr")
        ),
        "gateway: is the broadcast address of the CIDR; use another one",
    ),
    validation = entries("ranges", false)[0].clone(),
    validation = entries("ranges", false)[1].clone(),
    validation = entries("ranges", false)[2].clone(),
    validation = no_overlap(),
    validation = entries("excludedIPs", true)[0].clone(),
    validation = entries("excludedIPs", true)[1].clone(),
    validation = entries("excludedIPs", true)[2].clone(),
    validation = entries("reservedIPs", true)[0].clone(),
    validation = entries("reservedIPs", true)[1].clone(),
    validation = entries("reservedIPs", true)[2].clone(),
    validation = block_size(),
    validation = immutable("network", "''", "network: cannot be changed; make a new Subnet"),
    validation = immutable("cidr", "''", "cidr: cannot be changed; make a new Subnet"),
    validation = immutable("gateway", "''", "gateway: cannot be changed; make a new Subnet"),
    validation = immutable("vlan", "-1", "vlan: cannot be changed; make a new Subnet"),
    validation = immutable("blockSize", "-1", "blockSize: cannot be changed; make a new Subnet"),
)]
#[serde(rename_all = "camelCase")]
pub struct SubnetSpec {
    /// Name of the Network that this Subnet belongs to. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    pub network: String,
    /// The prefix, such as 10.244.0.0/16 or fd00:10:244::/64, with all host bits zero. One family per Subnet:
    /// for dual stack make two Subnets in one Network. Cannot be changed.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(validation = prefix("cidr")[0].clone(), validation = prefix("cidr")[1].clone(), validation = prefix("cidr")[2].clone())]
    pub cidr: String,
    /// The router of this subnet. It is never given to a pod. Networks of type VLAN, MACVLAN and IPVLAN need it,
    /// as pods send what is not for the subnet to it. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 39))]
    #[x_kube(validation = rule(
        is_address("self"),
        "gateway: write an address in its shortest spelling, such as 10.20.0.1 or fd00::1",
    ))]
    pub gateway: Option<String>,
    /// The addresses that may be given out, each entry a single address or first-last (10.20.0.10-10.20.0.99),
    /// without overlap. Absent: all usable addresses of the prefix. Ranges may be added at any time, and taken
    /// away where no address is in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 79)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ranges: Vec<String>,
    /// Addresses that are never given out because something else has them: each entry an address, first-last or
    /// a prefix inside the CIDR.
    #[serde(default, rename = "excludedIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 79)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub excluded_ips: Vec<String>,
    /// Addresses that are given out only to pods that ask for them by address: each entry an address, first-last
    /// or a prefix inside the CIDR.
    #[serde(default, rename = "reservedIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 79)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub reserved_ips: Vec<String>,
    /// VLAN id of this subnet (1 to 4094, 0 is untagged) in a Network of type VLAN, MACVLAN or IPVLAN. The id
    /// sits either here or on the Network, not on both. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<u16>,
    /// Prefix length of the blocks that nodes draw their addresses from, in Networks whose pods are reached by
    /// routes (VXLAN, BGP, Direct, IPIP, UDP): every other node needs one route per block. Absent: 26 for IPv4
    /// and 122 for IPv6, and in a prefix that would hold fewer than four of those, two more than the length of
    /// the prefix. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub block_size: Option<u8>,
    /// Whether pods get addresses from here only when they (or their namespace) name this Subnet.
    #[serde(default)]
    pub private: bool,
    /// Whether packets from this subnet that leave the cluster get the address of their node as source (SNAT).
    /// For overlays, whose addresses nobody outside the cluster knows; Networks of type VLAN, MACVLAN and IPVLAN cannot
    /// have it.
    #[serde(default)]
    pub nat_outgoing: bool,
}

/// A rule that is not asked where the field is absent or the CIDR itself is wrong: one mistake, one sentence.
fn given(field: &str, cel: &str, message: &str) -> Rule {
    about(
        &format!(".{field}"),
        format!("!has(self.{field}) || !{} || ({cel})", is_prefix("self.cidr")),
        message,
    )
}

fn same_family(field: &str, cel: &str) -> Rule {
    given(
        field,
        cel,
        &format!(
            "{field}: is of another family than the CIDR; a Subnet has one family, dual stack is two Subnets"
        ),
    )
}

/// A rule about a gateway that is an address of the family of the CIDR.
fn gateway(cel: &str, message: &str) -> Rule {
    let fits =
        format!("({} && ip(self.gateway).family() == {})", is_address("self.gateway"), family("self.cidr"));
    given("gateway", &format!("!{fits} || {cel}"), message)
}

/// The rules of a list of addresses and ranges, and of prefixes too where `prefixes` says so.
fn entries(field: &str, prefixes: bool) -> [Rule; 3] {
    let syntax = if prefixes { format!("({} || {})", is_range("r"), is_prefix("r")) } else { is_range("r") };
    let forms = if prefixes { "an address, first-last or a prefix" } else { "an address or first-last" };
    let inside = "(r.contains('/') ? cidr(self.cidr).containsCIDR(r) : r.split('-').all(a, cidr(self.cidr).containsIP(a)))";
    let ordered = format!("(!r.contains('-') || {})", not_behind(&first("r"), &last("r")));
    [
        about(
            &format!(".{field}"),
            format!("!has(self.{field}) || self.{field}.all(r, {syntax})"),
            &format!(
                "{field}: each entry is {forms}, in the shortest spelling and without blanks, such as 10.20.0.10-10.20.0.99"
            ),
        ),
        given(
            field,
            &format!("self.{field}.all(r, !{syntax} || {inside})"),
            &format!("{field}: each entry must be inside the CIDR and of its family"),
        ),
        given(
            field,
            &format!("self.{field}.all(r, !{syntax} || !{inside} || {ordered})"),
            &format!("{field}: a range ends before it starts; swap its two addresses"),
        ),
    ]
}

/// No address is in two ranges.
fn no_overlap() -> Rule {
    let one_starts_before_the_other_ends =
        format!("{} && {}", not_behind(&first("a"), &last("b")), not_behind(&first("b"), &last("a")));
    let inside = "r.split('-').all(a, cidr(self.cidr).containsIP(a))";
    given(
        "ranges",
        &format!(
            "!self.ranges.all(r, {} && {inside}) \
             || self.ranges.all(a, self.ranges.filter(b, {one_starts_before_the_other_ends}).size() <= 1)",
            is_range("r")
        ),
        "ranges: two of them overlap; join them or take the common addresses out of one",
    )
}

/// Blocks are not larger than the prefix and not smaller than an address.
fn block_size() -> Rule {
    about(
        ".blockSize",
        format!(
            "!has(self.blockSize) || !{} || (self.blockSize >= cidr(self.cidr).prefixLength() \
             && self.blockSize <= ({} == 4 ? 32 : 128))",
            is_prefix("self.cidr"),
            family("self.cidr")
        ),
        "blockSize: use the prefix length of the CIDR (one block for all) to 32 for IPv4 or 128 for IPv6 (one address)",
    )
}

/// What the controller has found out about a Subnet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubnetStatus {
    /// Ready says whether addresses are given out from here, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Addresses that may be given out at all. 9223372036854775807 stands for that many or more, as an IPv6 /64 and larger
    /// ones have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
    /// Addresses held by pods and nodes; always exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<i64>,
    /// Addresses kept for an owner that has no pod at the moment, and those of spec.reservedIPs that nobody has.
    /// 9223372036854775807 stands for that many or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<i64>,
    /// Addresses given back that are not free before their cool-down has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooling: Option<i64>,
    /// Addresses that a pod can get now without asking for them by address. 9223372036854775807 stands for that many or
    /// more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// Used and total as one text, such as 12/254. A total that stands for more than its field can say is rounded here, as
    /// 12/1.8e19 of an IPv6 /64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub usage: Option<String>,
    /// Routing table of this subnet, the same on every node (10001 to 39998). Those of overlays have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10001, max = 39998))]
    pub routing_table: Option<u32>,
    /// Blocks that nodes hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<i64>,
}
