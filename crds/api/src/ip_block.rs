//! `IPBlock`: a range of a routed Subnet that one node draws its addresses from.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::rule::{address_of, is_prefix, prefix, rule};

/// A range of a routed Subnet that one node draws its addresses from, so that the other nodes need one route for
/// all of them. The controller makes and removes these objects. The name is `<subnet>-<cidr with dashes>`, so that
/// a range belongs to one node only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "braid.network",
    version = "v1",
    kind = "IPBlock",
    plural = "ipblocks",
    shortname = "ipb",
    shortname = "block",
    category = "braid",
    derive = "PartialEq",
    selectable = ".spec.node",
    selectable = ".spec.subnet",
    doc = "A range of a routed Subnet that one node draws its addresses from.",
    validation = rule(
        named_after_range(),
        "metadata.name: write <subnet>-<address>-<prefix length>, with dashes for the dots of an IPv4 address and \
         all eight groups of an IPv6 one, such as web-10-244-1-0-26 or web-fd00-0-0-0-0-0-0-40-122",
    ),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = rule("self == oldSelf", "spec: a block cannot be changed; remove it and make it again"))]
#[serde(rename_all = "camelCase")]
pub struct IPBlockSpec {
    /// Name of the Subnet that the range is cut from. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    pub subnet: String,
    /// The range as a prefix with all host bits zero. Cannot be changed.
    #[schemars(length(min = 1, max = 43))]
    #[x_kube(validation = prefix("cidr")[0].clone(), validation = prefix("cidr")[1].clone(), validation = prefix("cidr")[2].clone())]
    pub cidr: String,
    /// Name of the node that draws from it. Cannot be changed: a block goes to another node by being removed and
    /// made again.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

/// The name of the object follows from Subnet and range, so that nobody can claim the same range twice.
fn named_after_range() -> String {
    let rest = "self.metadata.name.substring(size(self.spec.subnet) + 1)";
    let four = "self.spec.cidr.replace('.', '-').replace('/', '-')";
    format!(
        "!{valid} || (self.metadata.name.startsWith(self.spec.subnet + '-') && (cidr(self.spec.cidr).ip().family() == 4 \
         ? {rest} == {four} \
         : {rest}.matches('^((0|[1-9a-f][0-9a-f]{{0,3}})-){{8}}[0-9]+$') \
         && {rest}.substring({rest}.lastIndexOf('-') + 1) == string(cidr(self.spec.cidr).prefixLength()) \
         && string(ip({rest}.substring(0, {rest}.lastIndexOf('-')).replace('-', ':'))) == {address}))",
        valid = is_prefix("self.spec.cidr"),
        address = address_of("self.spec.cidr"),
    )
}
