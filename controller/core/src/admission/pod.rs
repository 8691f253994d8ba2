//! A pod that is about to be made.

use std::collections::BTreeMap;

use braid_types::model::{NetworkDef, OwnerRef, PodRef};
use braid_types::well_known::annotation;
use braid_types::{Selector, Symbol};

use super::{Namespace, Outlook, outlook};
use crate::ipam::{Choice, Holder, Ipam, PodRequest, Prospect, Refusal};

/// A pod that is about to be made: it has no uid yet, and mostly no node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPod<'a> {
    /// Where it is made.
    pub namespace: Namespace<'a>,
    /// Its name; empty while the API server has still to make one up.
    pub name: &'a str,
    /// What its annotations say.
    pub choice: &'a Choice,
    /// Interface that it needs addresses for, `eth0`.
    pub interface: &'a str,
    /// In whose name addresses are kept for it.
    pub owner: Option<OwnerRef>,
    /// Its node, where somebody has chosen one without the scheduler.
    pub node: Option<&'a str>,
}

impl NewPod<'_> {
    /// The question as it will be asked when the pod is there; what is not known yet is empty.
    pub(super) fn request(&self) -> PodRequest {
        let (namespace, name) = (self.namespace.name.to_owned(), self.name.to_owned());
        PodRequest {
            pod: PodRef { namespace: namespace.into(), name: name.into(), uid: Symbol::default() },
            interface: self.interface.to_owned(),
            node: self.node.unwrap_or_default().to_owned(),
            choice: self.choice.clone(),
            namespace_choice: self.namespace.choice.clone(),
            namespace_labels: self.namespace.labels.cloned().unwrap_or_default(),
            owner: self.owner.clone(),
            keep: None,
            migration: None,
        }
    }

    /// Whether the pod or its namespace says where its addresses come from; else the default Network decides.
    pub(super) fn names_a_place(&self) -> bool {
        self.choice.names_a_place() || self.namespace.choice.names_a_place()
    }

    /// Whether an earlier pod of this name has an address that this one asks for: it will be given up for it.
    fn succeeds(&self, holder: &Holder) -> bool {
        let own_name = || format!("{}/{}", self.namespace.name, self.name);
        matches!(holder, Holder::Pod { pod, .. } if !self.name.is_empty() && *pod == own_name())
    }
}

/// What a pod that is let in is given on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Annotations to be written on it: what the levels below it said, so that it stays true for this pod.
    pub annotations: BTreeMap<&'static str, String>,
    /// The nodes that it can run on; empty = no restriction.
    pub nodes: Selector,
    /// Why it would get no address now, in sentences for people.
    pub warnings: Vec<String>,
}

/// Judges a pod.
///
/// # Errors
/// A contradiction that waiting does not cure.
pub fn admit(ipam: &Ipam, pod: &NewPod<'_>) -> Result<Admitted, Refusal> {
    let prospect = match outlook(ipam, pod)? {
        // Tied to the default now, the pod would miss what its namespace has said already; it is resolved when it has a
        // node.
        Outlook::Unknown => return Ok(Admitted::default()),
        Outlook::NoNetwork(refusal) => {
            return Ok(Admitted { warnings: vec![refusal.to_string()], ..Admitted::default() });
        }
        Outlook::Network(prospect) => prospect,
    };
    let (network, warnings) = (prospect.network, warnings(ipam, pod, &prospect));
    if !pod.names_a_place() && !prospect.kept && !is_lasting(ipam, network) {
        return Ok(Admitted { warnings, ..Admitted::default() });
    }
    let nodes = if pod.node.is_none() { network.nodes.clone() } else { Selector::default() };
    // What is kept for the pod says by itself where it belongs, for as long as it is kept.
    let annotations = if prospect.kept { BTreeMap::new() } else { choice_made_below(pod, network) };
    Ok(Admitted { annotations, nodes, warnings })
}

/// Whether the default Network is one to be tied to. Of one that has lost against another or is on its way out, pods
/// are better off when they ask again.
fn is_lasting(ipam: &Ipam, network: &NetworkDef) -> bool {
    !network.deleting && ipam.network_loss(&network.name).is_none()
}

/// What the namespace or the default decides for a pod that does not decide itself. A level counts as a whole: once the
/// pod names its Network, nothing else that the levels below say about places is heard.
fn choice_made_below(pod: &NewPod<'_>, network: &NetworkDef) -> BTreeMap<&'static str, String> {
    let mut written = BTreeMap::new();
    if pod.choice.names_a_place() {
        return written;
    }
    written.insert(annotation::NETWORK, network.name.clone());
    if !pod.namespace.choice.subnets.is_empty() {
        written.insert(annotation::SUBNET, pod.namespace.choice.subnets.join(","));
    }
    if let (None, Some(family)) = (pod.choice.family, pod.namespace.choice.family) {
        written.insert(annotation::IP_FAMILY, family.to_string());
    }
    written
}

fn warnings(ipam: &Ipam, pod: &NewPod<'_>, prospect: &Prospect<'_>) -> Vec<String> {
    let comes_back = |refusal: &Refusal| match refusal {
        Refusal::AddressTaken { holder, .. } => pod.succeeds(holder),
        Refusal::PoolExhausted { holders, .. } => holders.iter().any(|(_, holder)| pod.succeeds(holder)),
        _ => false,
    };
    // What is wrong with the Subnets of a Network that cannot be used follows from that.
    let network = prospect
        .refusals
        .first()
        .filter(|r| matches!(r, Refusal::NetworkNotReady { .. } | Refusal::NotSupported { .. }));
    let shown = if network.is_some() { &prospect.refusals[..1] } else { &prospect.refusals[..] };
    let node = pod.node.and_then(|node| ipam.check_member(prospect.network, node).err());
    shown.iter().filter(|r| !comes_back(r)).chain(&node).map(ToString::to_string).collect()
}
