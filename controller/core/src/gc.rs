//! What is left over after something went missing: blocks that nobody uses, and contradictions that only a person can
//! resolve. Addresses themselves are freed by [`crate::release`] alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_types::Family;
use braid_types::model::{BlockDef, InstanceDef, Phase, UnixSeconds};

use crate::ipam::{Ipam, Restored, is_vtep, owner_in_words};
use crate::release::PodSeen;
use crate::verdict::{Misfit, misfit};

/// Something that contradicts something else. Nothing is changed on its account; it is shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Kind of the object, `IPInstance`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Finding {
    fn of(def: &InstanceDef, reason: &'static str, message: String) -> Self {
        Self { kind: "IPInstance", name: def.name.to_string(), reason, message }
    }
}

/// Blocks to delete, and when to look again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockSweep {
    /// Not drawn from any more; delete each. If that fails for good, call [`Ipam::keep_block`].
    pub give_back: Vec<BlockDef>,
    /// When the next block may be due, if nothing changes.
    pub next: Option<UnixSeconds>,
}

impl Ipam {
    /// The blocks that have been empty for the grace period, or whose node is gone and that are empty. Call it when
    /// addresses were freed or nodes vanished, and at [`BlockSweep::next`].
    pub fn sweep_blocks(&mut self, _: &Restored, now: UnixSeconds) -> BlockSweep {
        let mut sweep = BlockSweep::default();
        let grace = self.config().block_grace;
        for subnet in self.slot_names() {
            let mut blocks = self.take_blocks(&subnet);
            let (due, next) = blocks.take_returnable(
                now,
                grace,
                |node| self.has_node(node),
                |block| self.block_is_empty(block),
            );
            self.put_blocks(&subnet, blocks);
            sweep.give_back.extend(due);
            sweep.next = [sweep.next, next].into_iter().flatten().min();
        }
        sweep
    }

    /// Takes back that a block is given back.
    pub fn keep_block(&mut self, block: &BlockDef) {
        let mut blocks = self.take_blocks(&block.subnet);
        blocks.keep(&block.name);
        self.put_blocks(&block.subnet, blocks);
    }

    /// Whether the block's node holds no address in it. Addresses that other nodes have borrowed are routed on their own.
    fn block_is_empty(&self, block: &BlockDef) -> bool {
        self.taken_in(&block.subnet, &block.cidr.range())
            .all(|(_, def)| def.is_some_and(|d| d.node.as_deref() != Some(block.node.as_str())))
    }
}

/// Everything that contradicts something else, sorted. What cannot be read at all is not known here.
#[must_use]
pub fn findings(ipam: &Ipam) -> Vec<Finding> {
    let mut out = Vec::new();
    for def in ipam.instances() {
        let found = misplaced(ipam, def).into_iter().chain(misheld(ipam, def));
        out.extend(found.map(|(reason, message)| Finding::of(def, reason, message)));
    }
    two_addresses(ipam, &mut out);
    kept_twice(ipam, &mut out);
    for subnet in ipam.slot_names() {
        block_findings(ipam, &subnet, &mut out);
    }
    out.sort();
    out
}

/// An address that its Subnet does not have, or that nobody could be given.
fn misplaced(ipam: &Ipam, def: &InstanceDef) -> Option<(&'static str, String)> {
    let remedy = "delete this IPInstance when no pod uses it any more";
    if ipam.subnet(&def.subnet).is_none() {
        let message = format!("its Subnet {} does not exist; make it again, or {remedy}", def.subnet);
        return Some(("SubnetMissing", message));
    }
    let Misfit { reason, what, .. } = misfit(ipam, def)?;
    Some((reason, format!("{what}; {remedy}")))
}

/// An address whose state does not fit its holder.
fn misheld(ipam: &Ipam, def: &InstanceDef) -> Option<(&'static str, String)> {
    match (&def.pod, def.phase) {
        (None, Phase::Bound) if !is_vtep(def) => {
            Some(("NoHolder", "is bound but names no pod; delete it if nobody uses it".to_owned()))
        }
        (Some(pod), Phase::Releasing)
            if def.release_at.is_some() && ipam.pod_seen(&pod.uid) == PodSeen::Live =>
        {
            let message =
                format!("is being released, but pod {}/{} runs; it is kept", pod.namespace, pod.name);
            Some(("HolderLives", message))
        }
        (Some(pod), _) if ipam.pod_seen(&pod.uid) == PodSeen::Live => {
            let (network, node) = (ipam.network(&def.network)?, def.node.as_deref()?);
            let message = format!(
                "its pod {}/{} runs on node {node}, which is no member of Network {} any more, and is cut off: the labels of \
                 the node do not match spec.nodeSelector; change one of the two, or move the pod",
                pod.namespace, pod.name, network.name
            );
            (ipam.has_node(node) && !ipam.is_member(network, node)).then_some(("NotMember", message))
        }
        _ => None,
    }
}

fn list(defs: &[&Arc<InstanceDef>]) -> String {
    defs.iter().map(|d| d.name.to_string()).collect::<Vec<_>>().join(", ")
}

/// Interfaces with more than one address of a family.
fn two_addresses(ipam: &Ipam, out: &mut Vec<Finding>) {
    let mut interfaces: BTreeMap<(&str, &str, Family), Vec<&Arc<InstanceDef>>> = BTreeMap::new();
    for (uid, defs) in ipam.crowded_pods() {
        for def in defs.into_iter().filter(|d| d.phase == Phase::Bound) {
            let key = (uid, def.interface.as_str(), Family::of(def.name.address()));
            interfaces.entry(key).or_default().push(def);
        }
    }
    for ((_, interface, family), mut defs) in interfaces.into_iter().filter(|(_, d)| d.len() > 1) {
        defs.sort_by_key(|d| &d.name);
        let message =
            format!("interface {interface} of its pod has more than one {family} address: {}", list(&defs));
        out.push(Finding::of(defs[0], "TwoAddresses", message));
    }
}

/// Pods, by the name that their owner gives them, for which more than one address of a family is kept.
fn kept_twice(ipam: &Ipam, out: &mut Vec<Finding>) {
    let mut ordinals: BTreeMap<_, Vec<&Arc<InstanceDef>>> = BTreeMap::new();
    for def in ipam.instances().filter(|d| d.phase != Phase::Releasing) {
        if let Some(owner) = def.owner.as_ref().filter(|o| o.pod.is_some()) {
            let family = Family::of(def.name.address());
            let key = (&owner.kind, &owner.namespace, &owner.name, &owner.pod, &def.interface, family);
            ordinals.entry(key).or_default().push(def);
        }
    }
    for ((.., interface, family), mut defs) in ordinals {
        defs.sort_by_key(|d| &d.name);
        let uid = |d: &InstanceDef| d.pod.as_ref().map(|p| p.uid.clone());
        // Two in the hand of one pod are shown as that.
        let of_one_pod = uid(defs[0]).is_some() && defs.iter().all(|d| uid(d) == uid(defs[0]));
        let Some(owner) = defs[0].owner.as_ref().filter(|_| defs.len() > 1 && !of_one_pod) else { continue };
        let message = format!(
            "{} has more than one {family} address for interface {interface}: {}; delete those that it shall not have",
            owner_in_words(owner),
            list(&defs)
        );
        out.push(Finding::of(defs[0], "KeptTwice", message));
    }
}

fn block_findings(ipam: &Ipam, subnet: &str, out: &mut Vec<Finding>) {
    let mut last: Option<&BlockDef> = None;
    let mut blocks: Vec<&BlockDef> = ipam.blocks_of(subnet).collect();
    blocks.sort_by_key(|b| (b.cidr.first(), b.cidr.prefix_len()));
    for b in blocks {
        let mut report =
            |reason, message| out.push(Finding { kind: "IPBlock", name: b.name.clone(), reason, message });
        match ipam.subnet(subnet) {
            None => report("SubnetMissing", format!("its Subnet {subnet} does not exist")),
            Some(s) if !s.cidr.contains_cidr(&b.cidr) => {
                report("OutsideSubnet", format!("{} is not in {} of Subnet {subnet}", b.cidr, s.cidr));
            }
            Some(_) => {}
        }
        if !ipam.has_node(&b.node) && !ipam.block_is_empty(b) {
            let message =
                format!("its node {} does not exist; it goes with the last address of that node", b.node);
            report("NodeMissing", message);
        }
        match last {
            Some(other) if other.cidr.overlaps(&b.cidr) => report(
                "Overlap",
                format!(
                    "{} overlaps {} of IPBlock {}; delete one of the two",
                    b.cidr, other.cidr, other.name
                ),
            ),
            _ => last = Some(b),
        }
    }
}
