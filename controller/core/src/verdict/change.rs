//! Whether one change may be made, given everything else: the webhook's question.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use braid_types::model::{BlockDef, InstanceDef, NetworkDef, Phase, SubnetDef, UnixSeconds};

use super::{Loss, Misfit, Standing, misfit};
use crate::ipam::{Holder, Ipam, NodeFact, is_vtep, owner_in_words};
use crate::pool::Pool;
use crate::release::PodSeen;

/// Why a change is refused: what is wrong, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Sentence(pub String);

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A change by somebody other than the controller: without `old` a creation, without `new` a deletion.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Of a Network.
    Network {
        /// As it is.
        old: Option<&'a NetworkDef>,
        /// As it shall be.
        new: Option<&'a NetworkDef>,
    },
    /// Of a Subnet.
    Subnet {
        /// As it is.
        old: Option<&'a SubnetDef>,
        /// As it shall be.
        new: Option<&'a SubnetDef>,
    },
    /// Of an IPInstance.
    Instance {
        /// As it is.
        old: Option<&'a InstanceDef>,
        /// As it shall be.
        new: Option<&'a InstanceDef>,
    },
    /// Of an IPBlock.
    Block {
        /// As it is.
        old: Option<&'a BlockDef>,
        /// As it shall be.
        new: Option<&'a BlockDef>,
    },
}

/// What an object that is being created counts as: younger than all others.
const YOUNGEST: UnixSeconds = UnixSeconds::MAX;

/// Holders named in one sentence.
const NAMED: usize = 3;

/// The first few of many, and how many there are beside them.
fn some_of(all: &[String]) -> String {
    let named = all[..all.len().min(NAMED)].join(", ");
    let more = all.len().saturating_sub(NAMED);
    if more > 0 { format!("{named} and {more} more") } else { named }
}

fn refuse<T>(sentence: String) -> Result<T, Sentence> {
    Err(Sentence(sentence))
}

/// Decides about a change. What only waits for another object (a Subnet before its Network) is let through and shown as
/// a condition, so that objects can be applied in any order.
///
/// # Errors
/// The sentence for the user.
pub fn verdict(change: Change<'_>, ipam: &Ipam) -> Result<(), Sentence> {
    match change {
        Change::Network { old, new: Some(new) } => network_written(old, new, ipam),
        Change::Network { old: Some(old), new: None } => network_deleted(old, ipam),
        Change::Subnet { old, new: Some(new) } => subnet_written(old, new, ipam),
        Change::Subnet { old: Some(old), new: None } => subnet_deleted(old, ipam),
        Change::Instance { old: None, new: Some(new) } => instance_created(new, ipam),
        Change::Instance { old: Some(old), new: Some(new) } => instance_changed(old, new, ipam),
        Change::Instance { old: Some(old), new: None } => instance_deleted(old),
        Change::Block { old, new: Some(new) } => block_written(old, new, ipam),
        Change::Block { old: Some(old), new: None } => block_deleted(old, ipam),
        Change::Instance { old: None, new: None }
        | Change::Network { old: None, new: None }
        | Change::Subnet { old: None, new: None }
        | Change::Block { old: None, new: None } => Ok(()),
    }
}

fn network_written(old: Option<&NetworkDef>, new: &NetworkDef, ipam: &Ipam) -> Result<(), Sentence> {
    let created = old.map_or(YOUNGEST, |o| o.created);
    let new = NetworkDef { created, ..new.clone() };
    let others = || ipam.networks().filter(|n| n.name != new.name);
    let after = Standing::of(others().chain([&new]), [], &[], &BTreeMap::new());
    let before = ipam.standing();
    let own = after.network(&new.name).filter(|l| l.reason != "NotSupported");
    // One that has lost already may be changed in other ways: only what gets worse is refused.
    let lost_already = |loss: &&Loss| {
        let known = before.network(&new.name).or_else(|| before.second_default(&new.name));
        old.is_some() && known == Some(*loss)
    };
    if let Some(loss) = own.or_else(|| after.second_default(&new.name)).filter(|l| !lost_already(l)) {
        return refuse(format!("Network {}: {}", new.name, loss.message));
    }
    for n in others() {
        let lost = |s: &Standing| s.network(&n.name).or_else(|| s.second_default(&n.name)).cloned();
        if lost(before).is_none() && lost(&after).is_some() {
            return refuse(format!(
                "Network {}: this would put Network {} out of force, which is in use; set spec.default=false there first",
                new.name, n.name
            ));
        }
    }
    old.map_or(Ok(()), |old| leaves_nobody_behind(old, &new, ipam))
}

/// A node that is no member any more has nothing of the Network, and its pods are cut off.
fn leaves_nobody_behind(old: &NetworkDef, new: &NetworkDef, ipam: &Ipam) -> Result<(), Sentence> {
    let leaves = |node: &&NodeFact| old.nodes.matches(&node.labels) && !new.nodes.matches(&node.labels);
    let leaving: BTreeSet<&str> = ipam.nodes().filter(leaves).map(|node| node.name.as_str()).collect();
    if old.nodes == new.nodes || leaving.is_empty() {
        return Ok(());
    }
    let on_one = |def: &&Arc<InstanceDef>| {
        let runs = def.pod.as_ref().is_some_and(|pod| ipam.pod_seen(&pod.uid) == PodSeen::Live);
        runs && def.network == new.name && def.node.as_deref().is_some_and(|node| leaving.contains(node))
    };
    let mut cut_off: Vec<String> =
        ipam.instances().filter(on_one).map(|def| Holder::of(def).to_string()).collect();
    cut_off.sort();
    cut_off.dedup();
    if cut_off.is_empty() {
        return Ok(());
    }
    refuse(format!(
        "Network {}: spec.nodeSelector would leave out nodes with pods of it, which would be cut off: {}; move or delete \
         them first",
        new.name,
        some_of(&cut_off)
    ))
}

fn network_deleted(old: &NetworkDef, ipam: &Ipam) -> Result<(), Sentence> {
    let names: Vec<&str> =
        ipam.subnets_of(&old.name).iter().filter(|s| !s.deleting).map(|s| s.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    refuse(format!("Network {} has Subnets ({}); delete them first", old.name, names.join(", ")))
}

fn subnet_written(old: Option<&SubnetDef>, new: &SubnetDef, ipam: &Ipam) -> Result<(), Sentence> {
    let created = old.map_or(YOUNGEST, |o| o.created);
    let def = SubnetDef { created, ..new.clone() };
    let others = ipam.subnets().filter(|s| s.name != new.name);
    let after =
        Standing::of(ipam.networks(), others.chain([&def]), ipam.off_limits(), &ipam.nodes_by_address());
    let waits = ["NetworkMissing", "NetworkNotReady", "NotSupported"];
    let lost_already = |loss: &&Loss| old.is_some() && ipam.standing().subnet(&new.name) == Some(*loss);
    let loss = after.subnet(&new.name).filter(|l| !waits.contains(&l.reason));
    if let Some(loss) = loss.filter(|l| !lost_already(l)) {
        return refuse(format!("Subnet {}: {}", new.name, loss.message));
    }
    if let Some(old) = old {
        shrunk_over_used(old, new, ipam)?;
    }
    Ok(())
}

/// Refuses a change after which an address that is held could not be given out.
fn shrunk_over_used(old: &SubnetDef, new: &SubnetDef, ipam: &Ipam) -> Result<(), Sentence> {
    let (before, after) = (Pool::new(old), Pool::new(new));
    let left_out: Vec<_> = ipam
        .taken(&old.name)
        .filter(|(a, def)| {
            let releasing = def.is_some_and(|d| d.phase == Phase::Releasing);
            before.allows(*a) && !after.allows(*a) && !releasing
        })
        .collect();
    if left_out.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = left_out
        .iter()
        .map(|(a, def)| format!("{a} ({})", def.map_or(Holder::Grant, |d| Holder::of(d))))
        .collect();
    refuse(format!(
        "Subnet {}: addresses in use would be left out: {}; free them first or keep them in spec.ranges",
        new.name,
        some_of(&named)
    ))
}

fn subnet_deleted(old: &SubnetDef, ipam: &Ipam) -> Result<(), Sentence> {
    // Nodes' own addresses and those that cool down are taken care of while the finalizer holds the object.
    let held: Vec<_> = ipam
        .taken(&old.name)
        .filter(|(_, def)| def.is_none_or(|d| d.phase != Phase::Releasing && !is_vtep(d)))
        .collect();
    let Some((address, def)) = held.first() else { return Ok(()) };
    let holder = def.map_or(Holder::Grant, |d| Holder::of(d));
    refuse(format!(
        "Subnet {} has {} addresses in use (for example {address}, held by {holder}); delete their pods first",
        old.name,
        held.len()
    ))
}

fn instance_created(new: &InstanceDef, ipam: &Ipam) -> Result<(), Sentence> {
    // In which address space it is, its Network says, which may come later.
    let is_known = |found: &Misfit| found.reason != "OtherSpace" || ipam.network(&new.network).is_some();
    match misfit(ipam, new).filter(is_known) {
        Some(Misfit { what, remedy, .. }) => refuse(format!("IPInstance {}: {what}; {remedy}", new.name)),
        None => Ok(()),
    }
}

/// What is said to a change that is let through and may wait for something: addresses may come before their Subnet.
/// The same for all addresses of a Subnet: kubectl shows it once.
#[must_use]
pub fn warning(change: Change<'_>, ipam: &Ipam) -> Option<String> {
    let Change::Instance { old: None, new: Some(new) } = change else { return None };
    ipam.subnet(&new.subnet).is_none().then(|| {
        let subnet = &new.subnet;
        format!("Subnet {subnet} does not exist; make it, or correct spec.subnet: nobody can use its addresses before")
    })
}

/// Who has an address is the controller's to say: an address that a pod uses would be freed under it.
fn instance_changed(old: &InstanceDef, new: &InstanceDef, ipam: &Ipam) -> Result<(), Sentence> {
    let field = match () {
        () if old.pod != new.pod => "spec.pod",
        () if old.node != new.node => "spec.node",
        () if old.interface != new.interface => "spec.interface",
        () if old.set != new.set => "spec.set",
        () if old.mac != new.mac => "spec.mac",
        () if !keeps_owner(old, new) => "spec.owner",
        () if old.phase != new.phase || old.torn_down != new.torn_down => "status",
        () => return Ok(()),
    };
    if old.pod.is_none() && !is_vtep(old) && new.pod.is_none() && field != "status" {
        // What is wrong already may stay so while something else is changed.
        return if misfit(ipam, new) == misfit(ipam, old) { Ok(()) } else { instance_created(new, ipam) };
    }
    refuse(format!(
        "IPInstance {}: {field} cannot be changed by hand: {} is held by {}; delete the pod, {}",
        old.name,
        old.name.address(),
        Holder::of_pod(old),
        afterwards(old)
    ))
}

/// Whether who has kept the address still does. An owner that was made anew under its name is the same.
fn keeps_owner(old: &InstanceDef, new: &InstanceDef) -> bool {
    let Some(before) = &old.owner else { return true };
    new.owner.as_ref().is_some_and(|after| after.is_same(before) && after.pod == before.pod)
}

/// What becomes of an address when its pod is gone.
fn afterwards(def: &InstanceDef) -> String {
    match def.owner.as_deref() {
        None => "and the address is freed after it".to_owned(),
        Some(owner) => {
            format!("and this IPInstance while no pod has it, as it is kept for {}", owner_in_words(owner))
        }
    }
}

fn instance_deleted(old: &InstanceDef) -> Result<(), Sentence> {
    if old.phase != Phase::Bound {
        return Ok(());
    }
    let address = old.name.address();
    match Holder::of(old) {
        Holder::Pod { pod, .. } => {
            let (ns, name) = pod.split_once('/').unwrap_or_default();
            refuse(format!(
                "{address} is held by pod {pod}; delete the pod (kubectl -n {ns} delete pod {name}), {}",
                afterwards(old)
            ))
        }
        Holder::Node(node) => refuse(format!(
            "{address} is the address of node {node} in Network {}; it is freed when the node leaves the Network",
            old.network
        )),
        // Bound without a holder: nobody to wait for, a person may clear it up.
        Holder::Owner(_) | Holder::Cooling | Holder::Grant => Ok(()),
    }
}

fn block_written(old: Option<&BlockDef>, new: &BlockDef, ipam: &Ipam) -> Result<(), Sentence> {
    if old.is_some_and(|o| (&o.subnet, o.cidr, &o.node) == (&new.subnet, new.cidr, &new.node)) {
        return Ok(());
    }
    if let Some(s) = ipam.subnet(&new.subnet).filter(|s| !s.cidr.contains_cidr(&new.cidr)) {
        return refuse(format!(
            "IPBlock {}: {} is not in {} of Subnet {}; choose a block of it",
            new.name, new.cidr, s.cidr, s.name
        ));
    }
    match ipam.blocks_of(&new.subnet).find(|b| b.name != new.name && b.cidr.overlaps(&new.cidr)) {
        Some(b) => refuse(format!(
            "IPBlock {}: {} overlaps {} of IPBlock {} (node {}); choose a free block",
            new.name, new.cidr, b.cidr, b.name, b.node
        )),
        None => Ok(()),
    }
}

fn block_deleted(old: &BlockDef, ipam: &Ipam) -> Result<(), Sentence> {
    let of_node = |def: Option<&std::sync::Arc<InstanceDef>>| {
        def.is_none_or(|d| d.node.as_deref() == Some(old.node.as_str()))
    };
    match ipam.taken_in(&old.subnet, &old.cidr.range()).find(|(_, def)| of_node(*def)) {
        Some((address, def)) => {
            let holder = def.map_or(Holder::Grant, |d| Holder::of(d));
            refuse(format!(
                "IPBlock {} is in use: {address} is held by {holder}; the controller gives it back when it is empty",
                old.name
            ))
        }
        None => Ok(()),
    }
}
