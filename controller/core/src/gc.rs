//! What is left over after something went missing: blocks that nobody uses, and contradictions that only a person can
//! resolve. Addresses themselves are freed by [`crate::release`] alone.

use std::collections::BTreeMap;

use braid_types::model::{BlockDef, Phase, UnixSeconds};
use braid_types::{Family, InstanceName};

use crate::ipam::{Ipam, Restored, is_vtep};
use crate::release::PodSeen;

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
                |node| self.nodes().any(|n| n.name == node),
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

/// Everything that contradicts something else, sorted.
#[must_use]
pub fn findings(ipam: &Ipam) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut interfaces: BTreeMap<(&str, &str, Family), Vec<&InstanceName>> = BTreeMap::new();
    for def in ipam.instances() {
        let mut report = |reason, message| {
            out.push(Finding { kind: "IPInstance", name: def.name.to_string(), reason, message });
        };
        match ipam.subnet(&def.subnet) {
            None => report("SubnetMissing", format!("its Subnet {} does not exist", def.subnet)),
            Some(s) if !s.cidr.contains(def.name.address()) => report(
                "OutsideSubnet",
                format!("{} is not in {} of Subnet {}", def.name.address(), s.cidr, s.name),
            ),
            Some(s) if s.network != def.network => report(
                "OtherNetwork",
                format!("says Network {}, but Subnet {} belongs to {}", def.network, s.name, s.network),
            ),
            Some(_) => {}
        }
        match (&def.pod, def.phase) {
            (None, Phase::Bound) if !is_vtep(def) => {
                report("NoHolder", "is bound but names no pod; delete it if nobody uses it".to_owned());
            }
            (Some(pod), Phase::Releasing)
                if def.release_at.is_some() && ipam.pod_seen(&pod.uid) == PodSeen::Live =>
            {
                report(
                    "HolderLives",
                    format!("is being released, but pod {}/{} runs; it is kept", pod.namespace, pod.name),
                );
            }
            (Some(pod), Phase::Bound) => {
                let key = (pod.uid.as_str(), def.interface.as_str(), Family::of(def.name.address()));
                interfaces.entry(key).or_default().push(&def.name);
            }
            _ => {}
        }
    }
    for ((_, interface, family), mut names) in interfaces.into_iter().filter(|(_, n)| n.len() > 1) {
        names.sort();
        let all = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("interface {interface} of its pod has more than one {family} address: {all}");
        out.push(Finding { kind: "IPInstance", name: names[0].to_string(), reason: "TwoAddresses", message });
    }
    for subnet in ipam.slot_names() {
        block_findings(ipam, &subnet, &mut out);
    }
    out.sort();
    out
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
