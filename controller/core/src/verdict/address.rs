//! What an address's object says and what can never become true: of its Subnet, which knows better, or of its owner, for
//! whom it could not be kept.
//!
//! The webhook refuses to have such an object made by hand; where the webhook was away, or the Subnet came later, the
//! same is found among the contradictions.

use braid_types::InstanceName;
use braid_types::model::{InstanceDef, OwnerRef, Phase, SubnetDef};

use crate::ipam::{Ipam, is_vtep};

/// Why an address cannot be had as its object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Reason of the Event, CamelCase.
    pub(crate) reason: &'static str,
    /// What is wrong, with the field and the value.
    pub(crate) what: String,
    /// What to do about an object that is being made.
    pub(crate) remedy: String,
}

impl Misfit {
    fn new(reason: &'static str, what: String, remedy: impl Into<String>) -> Option<Self> {
        Some(Self { reason, what, remedy: remedy.into() })
    }
}

/// The first thing that cannot be; `None` where nothing is wrong as far as is known. A Subnet that is not there may
/// still come.
pub(crate) fn misfit(ipam: &Ipam, def: &InstanceDef) -> Option<Misfit> {
    let by_subnet = ipam.subnet(&def.subnet).and_then(|subnet| of_subnet(ipam, subnet, def));
    by_subnet.or_else(|| of_owner(def))
}

fn of_subnet(ipam: &Ipam, subnet: &SubnetDef, def: &InstanceDef) -> Option<Misfit> {
    let (address, name, cidr) = (def.name.address(), &subnet.name, subnet.cidr);
    if subnet.network != def.network {
        let what = format!(
            "spec.network is {}, but Subnet {name} belongs to Network {}",
            def.network, subnet.network
        );
        return Misfit::new("OtherNetwork", what, "correct one of the two");
    }
    if !cidr.contains(address) {
        let what = format!("spec.address: {address} is not in {cidr} of Subnet {name}");
        return Misfit::new("OutsideSubnet", what, "correct spec.subnet");
    }
    let fitting = InstanceName::new(ipam.space_of(subnet), address);
    if fitting != def.name {
        let what = format!("would be named {fitting} by the address space of its Network");
        return Misfit::new("OtherSpace", what, "name it so");
    }
    if def.prefix_len != cidr.prefix_len() {
        let (has, length) = (def.prefix_len, cidr.prefix_len());
        let what = format!("spec.address: the prefix length of Subnet {name} is {length}, not {has}");
        return Misfit::new("OtherLength", what, format!("write {address}/{length}"));
    }
    let another = "choose another address";
    if subnet.gateway == Some(address) {
        return Misfit::new(
            "Gateway",
            format!("spec.address: {address} is the gateway of Subnet {name}"),
            another,
        );
    }
    if let Some(node) = ipam.node_with(name, address) {
        let what =
            format!("spec.address: {address} is node {node}'s own, and of Subnet {name} no pod can have it");
        return Misfit::new("OfNode", what, another);
    }
    let in_ranges = subnet.ranges.iter().any(|range| range.contains(address));
    if !cidr.usable().contains(address) && !in_ranges {
        let end = if address == cidr.first() { "first" } else { "last" };
        let what = format!(
            "spec.address: {address} is the {end} address of {cidr} of Subnet {name}, which no pod can have"
        );
        return Misfit::new("NotForPods", what, another);
    }
    // What controllers have given out may have been excluded since.
    if def.declared && subnet.excluded.iter().any(|range| range.contains(address)) {
        let what = format!(
            "spec.address: {address} is in spec.excludedIPs of Subnet {name}, as something else has it"
        );
        return Misfit::new("Excluded", what, format!("{another}, or take it out there"));
    }
    None
}

fn of_owner(def: &InstanceDef) -> Option<Misfit> {
    if is_vtep(def) {
        return None;
    }
    let Some(owner) = &def.owner else {
        let what =
            format!("has neither spec.pod nor spec.owner: {} would be kept for nobody", def.name.address());
        let remedy = "name the owner, or put the address into spec.excludedIPs of its Subnet";
        let for_nobody = def.pod.is_none() && def.phase == Phase::Reserved;
        return if for_nobody { Misfit::new("NoOwner", what, remedy) } else { None };
    };
    if owner.namespace.is_empty() {
        let what = format!(
            "spec.owner.namespace is missing: {} {} would be an owner without pods",
            owner.kind, owner.name
        );
        return Misfit::new("OtherOwner", what, "name the namespace");
    }
    let pod = owner.pod.as_deref()?;
    match (owner.kind.as_str(), is_numbered(owner, pod)) {
        ("StatefulSet", true) => None,
        ("StatefulSet", false) => Misfit::new(
            "OtherOwner",
            format!("spec.owner.pod: {pod} is not the name of a pod of StatefulSet {}", owner.name),
            format!("write {}-0 or another ordinal, or leave it out for any of its pods", owner.name),
        ),
        (kind, _) => Misfit::new(
            "OtherOwner",
            format!("spec.owner.pod: {pod} can never be told from the other pods of {kind} {}", owner.name),
            "leave it out: only pods of a StatefulSet come back under their name",
        ),
    }
}

/// Whether `pod` is what a StatefulSet calls one of its pods: its own name and an ordinal.
fn is_numbered(owner: &OwnerRef, pod: &str) -> bool {
    let ordinal = pod.strip_prefix(owner.name.as_str()).and_then(|rest| rest.strip_prefix('-'));
    ordinal.is_some_and(|n| n.parse::<u32>().is_ok_and(|number| number.to_string() == n))
}
