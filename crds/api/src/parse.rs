//! From raw objects to the parsed model of `braid-types`, and back.
//!
//! Admission, controller and agents all parse here, so that nothing admitted is unreadable later. The schema
//! refuses most of what fails here; what it lets through (or what was stored under an older schema) becomes a
//! condition on the object.

use std::net::IpAddr;
use std::str::FromStr;

use braid_types::model;
use braid_types::model::{
    BlockDef, HandoverDef, InstanceDef, MigrationRole, NetworkDef, NodeDef, NodeNetworkDef, OwnerRef, Phase,
    PodRef, SubnetDef, UnixSeconds, VtepDef, VxlanDef,
};
use braid_types::well_known::{self, annotation, label};
use braid_types::{
    AddrRange, Cidr, CidrError, Family, IdError, IfNameError, IfPattern, InstanceName, InstanceNameError,
    MacError, Operator, RangeError, Requirement, Selector, Symbol, VlanId, Vni, block_name, label_value,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use crate::condition::{READY, is_true};
use crate::{
    Encapsulation, Handover, HandoverRole, IPBlock, IPBlockSpec, IPInstance, IPInstanceSpec, InstancePhase,
    LabelSelector, Network, NetworkType, NodeNetwork, NodeNetworkEntry, OwnerReference, PodReference,
    SelectorOperator, Subnet, Vtep,
};

/// An object that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{name}`: {field}: {problem}")]
pub struct ParseError {
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Path of the field, such as `spec.vxlan.vni`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A field that this kind or type needs is absent.
    #[error("is missing; {0}")]
    Missing(&'static str),
    /// Not an address.
    #[error("`{0}` is not an IP address")]
    Address(String),
    /// Not a prefix.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// Not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A number out of range.
    #[error(transparent)]
    Number(#[from] IdError),
    /// Not a device name or pattern.
    #[error(transparent)]
    Device(#[from] IfNameError),
    /// Not a hardware address.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// A name that does not follow from the address.
    #[error(transparent)]
    Name(#[from] InstanceNameError),
    /// Two fields that do not go together.
    #[error("{0}")]
    Contradiction(String),
}

/// Where in an object the parser is.
#[derive(Clone, Copy)]
struct At<'a> {
    kind: &'static str,
    name: &'a str,
}

impl<'a> At<'a> {
    fn new(kind: &'static str, meta: &'a ObjectMeta) -> Self {
        Self { kind, name: meta.name.as_deref().unwrap_or_default() }
    }

    fn error(self, field: impl Into<String>, problem: impl Into<Problem>) -> ParseError {
        ParseError {
            kind: self.kind,
            name: self.name.to_owned(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn value<T: FromStr<Err: Into<Problem>>>(self, field: &str, text: &str) -> Result<T, ParseError> {
        text.parse().map_err(|e: T::Err| self.error(field, e))
    }

    fn address(self, field: &str, text: &str) -> Result<IpAddr, ParseError> {
        text.parse().map_err(|_| self.error(field, Problem::Address(text.to_owned())))
    }

    fn each<T>(
        self,
        field: &str,
        texts: &[String],
        one: impl Fn(Self, &str, &str) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        texts.iter().enumerate().map(|(i, text)| one(self, &format!("{field}[{i}]"), text)).collect()
    }
}

fn seconds(time: &Time) -> UnixSeconds {
    time.0.as_second()
}

/// `at` as the API writes it.
///
/// A time outside of what the API can express (years -9999 to 9999) becomes the nearest one that it can.
#[must_use]
pub fn time(at: UnixSeconds) -> Time {
    let limit = if at < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Time(Timestamp::from_second(at).unwrap_or(limit))
}

fn created(meta: &ObjectMeta) -> UnixSeconds {
    meta.creation_timestamp.as_ref().map_or(0, seconds)
}

fn name(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

impl From<&LabelSelector> for Selector {
    fn from(raw: &LabelSelector) -> Self {
        Self {
            match_labels: raw.match_labels.iter().map(|(k, v)| (k.clone(), v.0.clone())).collect(),
            match_expressions: raw
                .match_expressions
                .iter()
                .map(|r| Requirement {
                    key: r.key.clone(),
                    operator: match r.operator {
                        SelectorOperator::In => Operator::In,
                        SelectorOperator::NotIn => Operator::NotIn,
                        SelectorOperator::Exists => Operator::Exists,
                        SelectorOperator::DoesNotExist => Operator::DoesNotExist,
                    },
                    values: r.values.clone(),
                })
                .collect(),
        }
    }
}

impl From<NetworkType> for model::NetworkType {
    fn from(raw: NetworkType) -> Self {
        match raw {
            NetworkType::Vxlan => Self::Vxlan,
            NetworkType::Vlan => Self::Vlan,
            NetworkType::Bgp => Self::Bgp,
            NetworkType::Direct => Self::Direct,
            NetworkType::Macvlan => Self::Macvlan,
            NetworkType::Ipvlan => Self::Ipvlan,
            NetworkType::Ipip => Self::Ipip,
            NetworkType::Udp => Self::Udp,
            NetworkType::Bridge => Self::Bridge,
        }
    }
}

impl TryFrom<&Network> for NetworkDef {
    type Error = ParseError;

    fn try_from(raw: &Network) -> Result<Self, ParseError> {
        let (at, spec) = (At::new("Network", &raw.metadata), &raw.spec);
        let vxlan = spec
            .vxlan
            .as_ref()
            .map(|v| {
                Ok(VxlanDef {
                    vni: Vni::try_from(i64::from(v.vni)).map_err(|e| at.error("spec.vxlan.vni", e))?,
                    port: v.port,
                    encapsulation: match v.encapsulation {
                        Encapsulation::Always => model::Encapsulation::Always,
                        Encapsulation::CrossSubnet => model::Encapsulation::CrossSubnet,
                    },
                })
            })
            .transpose()?;
        if spec.kind == NetworkType::Vxlan && vxlan.is_none() {
            return Err(at.error("spec.vxlan", Problem::Missing("a Network of type VXLAN needs it")));
        }
        let interfaces = [
            ("spec.vxlan.interfaces", spec.vxlan.as_ref().map(|v| &v.interfaces)),
            ("spec.vlan.interfaces", spec.vlan.as_ref().map(|v| &v.interfaces)),
        ]
        .into_iter()
        .find_map(|(field, list)| Some(at.each(field, list?, At::value::<IfPattern>)))
        .transpose()?;
        let vlan = [
            ("spec.vlan.id", spec.vlan.as_ref().and_then(|v| v.id)),
            ("spec.macvlan.id", spec.macvlan.as_ref().and_then(|v| v.id)),
            ("spec.ipvlan.id", spec.ipvlan.as_ref().and_then(|v| v.id)),
        ]
        .into_iter()
        .find_map(|(field, id)| Some(vlan_id(at, field, id?)))
        .transpose()?;
        Ok(Self {
            name: name(&raw.metadata),
            created: created(&raw.metadata),
            kind: spec.kind.into(),
            default: spec.default,
            nodes: spec.node_selector.as_ref().map(Selector::from).unwrap_or_default(),
            namespaces: spec.allowed_namespaces.as_ref().map(Selector::from),
            mtu: Some(spec.mtu).filter(|mtu| *mtu != 0),
            space: spec.address_space.clone(),
            interfaces: interfaces.unwrap_or_default(),
            vxlan,
            vlan,
            ready: raw.status.as_ref().is_some_and(|s| is_true(&s.conditions, READY)),
            deleting: raw.metadata.deletion_timestamp.is_some(),
        })
    }
}

fn vlan_id(at: At<'_>, field: &str, id: u16) -> Result<VlanId, ParseError> {
    VlanId::try_from(i64::from(id)).map_err(|e| at.error(field, e))
}

/// Prefix length of blocks where the Subnet names none: 26 or 122, and where the prefix would hold fewer than
/// four of those, two more than its own length, so that small subnets still spread over some nodes.
#[must_use]
pub fn default_block_size(cidr: &Cidr) -> u8 {
    let family = cidr.family();
    let usual = match family {
        Family::V4 => 26,
        Family::V6 => 122,
    };
    usual.max(cidr.prefix_len().saturating_add(2)).min(family.bits())
}

impl TryFrom<&Subnet> for SubnetDef {
    type Error = ParseError;

    fn try_from(raw: &Subnet) -> Result<Self, ParseError> {
        let (at, spec) = (At::new("Subnet", &raw.metadata), &raw.spec);
        let cidr: Cidr = at.value("spec.cidr", &spec.cidr)?;
        let inside = |at: At<'_>, field: &str, text: &str| {
            let range: AddrRange = at.value(field, text)?;
            if cidr.contains(range.first()) && cidr.contains(range.last()) {
                Ok(range)
            } else {
                Err(at.error(field, Problem::Contradiction(format!("`{text}` is not inside {cidr}"))))
            }
        };
        let gateway = spec
            .gateway
            .as_ref()
            .map(|g| {
                let gateway = at.address("spec.gateway", g)?;
                if cidr.contains(gateway) {
                    Ok(gateway)
                } else {
                    Err(at.error("spec.gateway", Problem::Contradiction(format!("{g} is not inside {cidr}"))))
                }
            })
            .transpose()?;
        let block_size = spec.block_size.unwrap_or_else(|| default_block_size(&cidr));
        if block_size < cidr.prefix_len() || block_size > cidr.family().bits() {
            let (least, most) = (cidr.prefix_len(), cidr.family().bits());
            let text = format!("{block_size} is out of range; use {least} to {most}");
            return Err(at.error("spec.blockSize", Problem::Contradiction(text)));
        }
        let status = raw.status.as_ref();
        Ok(Self {
            name: name(&raw.metadata),
            created: created(&raw.metadata),
            network: spec.network.clone(),
            gateway,
            ranges: at.each("spec.ranges", &spec.ranges, inside)?,
            excluded: at.each("spec.excludedIPs", &spec.excluded_ips, inside)?,
            reserved: at.each("spec.reservedIPs", &spec.reserved_ips, inside)?,
            cidr,
            vlan: spec.vlan.map(|id| vlan_id(at, "spec.vlan", id)).transpose()?,
            block_size,
            private: spec.private,
            nat_outgoing: spec.nat_outgoing,
            routing_table: status.and_then(|s| s.routing_table),
            ready: status.is_some_and(|s| is_true(&s.conditions, READY)),
            deleting: raw.metadata.deletion_timestamp.is_some(),
        })
    }
}

impl From<&PodReference> for PodRef {
    fn from(raw: &PodReference) -> Self {
        Self {
            namespace: Symbol::from(&raw.namespace),
            name: Symbol::from(&raw.name),
            uid: Symbol::from(&raw.uid),
        }
    }
}

impl From<&PodRef> for PodReference {
    fn from(pod: &PodRef) -> Self {
        Self { namespace: pod.namespace.to_string(), name: pod.name.to_string(), uid: pod.uid.to_string() }
    }
}

/// The second pod; `gone` is the one of which its node has confirmed that its interface is.
fn second_pod(raw: &Handover, gone: Option<&String>) -> HandoverDef {
    let role = match raw.role {
        HandoverRole::Target => MigrationRole::Target,
        HandoverRole::Source => MigrationRole::Source,
    };
    let torn_down = gone == Some(&raw.pod.uid);
    HandoverDef { pod: PodRef::from(&raw.pod), node: Symbol::from(&raw.node), role, torn_down }
}

impl From<&HandoverDef> for Handover {
    fn from(def: &HandoverDef) -> Self {
        let role = match def.role {
            MigrationRole::Target => HandoverRole::Target,
            MigrationRole::Source => HandoverRole::Source,
        };
        Self { pod: PodReference::from(&def.pod), node: def.node.to_string(), role }
    }
}

impl From<&OwnerReference> for OwnerRef {
    fn from(raw: &OwnerReference) -> Self {
        Self {
            api_version: Symbol::from(&raw.api_version),
            kind: Symbol::from(&raw.kind),
            namespace: Symbol::from(&raw.namespace),
            name: Symbol::from(&raw.name),
            uid: Symbol::from(&raw.uid),
            pod: raw.pod.as_deref().map(Into::into),
        }
    }
}

impl From<&OwnerRef> for OwnerReference {
    fn from(owner: &OwnerRef) -> Self {
        Self {
            api_version: owner.api_version.to_string(),
            kind: owner.kind.to_string(),
            namespace: owner.namespace.to_string(),
            name: owner.name.to_string(),
            uid: owner.uid.to_string(),
            pod: owner.pod.as_ref().map(ToString::to_string),
        }
    }
}

impl TryFrom<&IPInstance> for InstanceDef {
    type Error = ParseError;

    fn try_from(raw: &IPInstance) -> Result<Self, ParseError> {
        let (at, spec) = (At::new("IPInstance", &raw.metadata), &raw.spec);
        let instance: InstanceName = at.value("metadata.name", at.name)?;
        let field = "spec.address";
        let syntax = || at.error(field, CidrError::Syntax(spec.address.clone()));
        let (address, prefix_len) = spec.address.split_once('/').ok_or_else(syntax)?;
        let address = at.address(field, address)?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| syntax())?;
        if prefix_len > Family::of(address).bits() {
            return Err(syntax());
        }
        if address != instance.address() {
            let text = format!("{address} is not the address that the object is named after");
            return Err(at.error(field, Problem::Contradiction(text)));
        }
        let status = raw.status.clone().unwrap_or_default();
        let pod = spec.pod.as_ref().map(PodRef::from);
        let phase = match status.phase {
            InstancePhase::Releasing => Phase::Releasing,
            InstancePhase::Reserved => Phase::Reserved,
            // An object that a user applied to pin an address has no phase yet, and no pod.
            InstancePhase::Bound if pod.is_none() && spec.interface != well_known::VTEP_INTERFACE => {
                Phase::Reserved
            }
            InstancePhase::Bound => Phase::Bound,
        };
        let labels = raw.metadata.labels.as_ref();
        let annotations = raw.metadata.annotations.as_ref();
        Ok(Self {
            name: instance,
            uid: raw.metadata.uid.as_deref().unwrap_or_default().into(),
            network: Symbol::from(&spec.network),
            subnet: Symbol::from(&spec.subnet),
            prefix_len,
            gateway: spec.gateway.as_ref().map(|g| at.address("spec.gateway", g)).transpose()?,
            mac: spec.mac.as_ref().map(|m| at.value("spec.mac", m)).transpose()?,
            pod,
            interface: Symbol::from(&spec.interface),
            node: spec.node.as_deref().map(Into::into),
            set: at.each("spec.set", &spec.set, At::address)?.into(),
            handover: spec
                .handover
                .as_ref()
                .map(|h| Box::new(second_pod(h, status.second_torn_down.as_ref()))),
            owner: spec.owner.as_ref().map(|o| Box::new(OwnerRef::from(o))),
            retain_seconds: spec.retain_seconds,
            retain_until: spec.retain_until.as_ref().map(seconds),
            reserved_at: status.reserved_at.as_ref().map(seconds),
            declared: !annotations.is_some_and(|a| a.contains_key(annotation::FENCE)),
            attached: status.attached_at.is_some(),
            phase,
            torn_down: status.torn_down_at.as_ref().map(seconds),
            release_at: status.release_at.as_ref().map(seconds),
            host_routed: labels
                .is_some_and(|l| l.get(label::ROUTED).map(String::as_str) == Some(label::ROUTED_HOST)),
            deleting: raw.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// The object of an address: what is created to claim it. The status is left out, as the API server would
/// drop it from a create.
#[must_use]
pub fn instance_object(def: &InstanceDef) -> IPInstance {
    let spec = IPInstanceSpec {
        network: def.network.to_string(),
        subnet: def.subnet.to_string(),
        address: format!("{}/{}", def.name.address(), def.prefix_len),
        gateway: def.gateway.map(|g| g.to_string()),
        mac: def.mac.map(|m| m.to_string()),
        pod: def.pod.as_ref().map(PodReference::from),
        interface: def.interface.to_string(),
        node: def.node.as_ref().map(ToString::to_string),
        set: def.set.iter().map(ToString::to_string).collect(),
        handover: def.handover.as_deref().map(Handover::from),
        owner: def.owner.as_deref().map(OwnerReference::from),
        retain_seconds: def.retain_seconds,
        retain_until: def.retain_until.map(time),
    };
    let mut object = IPInstance::new(&def.name.to_string(), spec);
    object.metadata.labels = Some(
        [
            (label::NETWORK, Some(def.network.as_str())),
            (label::SUBNET, Some(def.subnet.as_str())),
            (label::NODE, def.node.as_deref()),
            (label::POD_NAMESPACE, def.pod.as_ref().map(|p| p.namespace.as_str())),
            (label::POD_NAME, def.pod.as_ref().map(|p| p.name.as_str())),
            (label::ROUTED, def.host_routed.then_some(label::ROUTED_HOST)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), label_value(value?))))
        .collect(),
    );
    object
}

impl TryFrom<&IPBlock> for BlockDef {
    type Error = ParseError;

    fn try_from(raw: &IPBlock) -> Result<Self, ParseError> {
        let at = At::new("IPBlock", &raw.metadata);
        Ok(Self {
            name: name(&raw.metadata),
            subnet: raw.spec.subnet.clone(),
            cidr: at.value("spec.cidr", &raw.spec.cidr)?,
            node: raw.spec.node.clone(),
        })
    }
}

/// The object of a block, named after subnet and range: what is created to claim it for its node.
#[must_use]
pub fn block_object(def: &BlockDef) -> IPBlock {
    let spec = IPBlockSpec { subnet: def.subnet.clone(), cidr: def.cidr.to_string(), node: def.node.clone() };
    let mut object = IPBlock::new(&block_name(&def.subnet, &def.cidr), spec);
    object.metadata.labels = Some(
        [(label::SUBNET, &def.subnet), (label::NODE, &def.node)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), label_value(value)))
            .collect(),
    );
    object
}

impl TryFrom<&NodeNetwork> for NodeDef {
    type Error = ParseError;

    fn try_from(raw: &NodeNetwork) -> Result<Self, ParseError> {
        let at = At::new("NodeNetwork", &raw.metadata);
        let entries = raw.status.as_ref().map_or(&[][..], |s| &s.networks);
        let networks = entries.iter().map(|entry| node_network(at, entry)).collect::<Result<_, _>>()?;
        Ok(Self { node: name(&raw.metadata), networks })
    }
}

fn node_network(at: At<'_>, raw: &NodeNetworkEntry) -> Result<NodeNetworkDef, ParseError> {
    let field = |part: &str| format!("status.networks[name={}].{part}", raw.name);
    Ok(NodeNetworkDef {
        network: raw.name.clone(),
        ready: raw.ready,
        parent: raw.parent.as_ref().map(|p| at.value(&field("parent"), p)).transpose()?,
        mtu: raw.mtu,
        vtep: raw
            .vtep
            .as_ref()
            .map(|v| {
                Ok(VtepDef {
                    ip: at.address(&field("vtep.ip"), &v.ip)?,
                    links: at.each(&field("vtep.links"), &v.links, At::value::<Cidr>)?,
                    mac: at.value(&field("vtep.mac"), &v.mac)?,
                    addresses: at.each(&field("vtep.addresses"), &v.addresses, At::address)?,
                })
            })
            .transpose()?,
    })
}

impl From<&VtepDef> for Vtep {
    fn from(def: &VtepDef) -> Self {
        Self {
            ip: def.ip.to_string(),
            links: def.links.iter().map(ToString::to_string).collect(),
            mac: def.mac.to_string(),
            addresses: def.addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
