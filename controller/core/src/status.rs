//! What the status of a Network and of a Subnet says.

use std::collections::{BTreeMap, BTreeSet};

use braid_types::model::{NetworkDef, SubnetDef};
use braid_types::{PerFamily, well_known::table};

use crate::ipam::Ipam;
use crate::pool::Usage;
use crate::verdict::Loss;

/// The `Ready` condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// `True` or `False`.
    pub ok: bool,
    /// Reason, CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Ready {
    fn lost(loss: &Loss) -> Self {
        Self { ok: false, reason: loss.reason, message: loss.message.clone() }
    }
}

/// Desired status of a Network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// The condition. A Network that is being deleted stays ready as long as pods use it.
    pub ready: Ready,
    /// Number of its Subnets.
    pub subnets: usize,
    /// Nodes that take part.
    pub members: usize,
    /// Counts over its Subnets, by family.
    pub usage: PerFamily<Usage>,
    /// Whether the finalizer must stay: Subnets refer to it.
    pub in_use: bool,
}

/// Desired status of a Subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetStatus {
    /// The condition.
    pub ready: Ready,
    /// Counts.
    pub usage: Usage,
    /// Blocks that nodes have.
    pub blocks: usize,
    /// Routing table of a Subnet of an underlay; `None` for other ones, and when all numbers are given out.
    pub routing_table: Option<u32>,
    /// Whether the finalizer must stay: addresses are given out.
    pub in_use: bool,
}

fn add(a: Usage, b: Usage) -> Usage {
    Usage {
        total: a.total.saturating_add(b.total),
        used: a.used.saturating_add(b.used),
        reserved: a.reserved.saturating_add(b.reserved),
        cooling: a.cooling.saturating_add(b.cooling),
        available: a.available.saturating_add(b.available),
        outside: a.outside.saturating_add(b.outside),
    }
}

fn in_force(usage: Usage) -> String {
    let can = "addresses can be given out";
    match usage.outside {
        0 => can.to_owned(),
        n => format!("{can}; {n} more are in use that it does not give out (any more)"),
    }
}

/// A count as the API has it: 64 bits, saturating (an IPv6 /64 has more addresses than fit).
#[must_use]
pub fn api_count(n: u128) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Used and total as one text: `12/254`. Each number is exact as long as the API's own counts are; a total beyond them is
/// rounded, `12/1.8e19` of an IPv6 /64, as twenty digits tell nobody more.
#[must_use]
pub fn usage_text(usage: &Usage) -> String {
    let number = |n: u128| i64::try_from(n).map_or_else(|_| format!("{:.1e}", n as f64), |n| n.to_string());
    format!("{}/{}", number(usage.used), number(usage.total))
}

impl Ipam {
    /// What the Network's status should say; `None` if there is no such Network.
    #[must_use]
    pub fn network_status(&self, name: &str) -> Option<NetworkStatus> {
        let network = self.network(name)?;
        let subnets = self.subnets_of(name);
        let mut usage = PerFamily::<Usage>::default();
        for s in &subnets {
            let sum = usage.get_mut(s.family());
            *sum = add(*sum, self.usage(&s.name));
        }
        Some(NetworkStatus {
            ready: self.network_ready(network, &subnets),
            subnets: subnets.len(),
            members: self.members(network).count(),
            usage,
            in_use: !subnets.is_empty(),
        })
    }

    fn network_ready(&self, network: &NetworkDef, subnets: &[&SubnetDef]) -> Ready {
        if let Some(loss) = self.network_loss(&network.name) {
            return Ready::lost(loss);
        }
        if network.deleting {
            let names: Vec<&str> = subnets.iter().map(|s| s.name.as_str()).collect();
            let message = format!("is being deleted; waits for Subnets: {}", names.join(", "));
            return Ready { ok: true, reason: "Deleting", message };
        }
        if let Some(loss) = self.standing().second_default(&network.name) {
            let message = format!("in use, but not the default: {}", loss.message);
            return Ready { ok: true, reason: loss.reason, message };
        }
        let count = subnets.len();
        Ready { ok: true, reason: "InForce", message: format!("{count} Subnets") }
    }

    /// What the Subnet's status should say; `None` if there is no such Subnet. `tables` is [`Ipam::routing_tables`].
    #[must_use]
    pub fn subnet_status(&self, name: &str, tables: &BTreeMap<String, u32>) -> Option<SubnetStatus> {
        let subnet = self.subnet(name)?;
        let usage = self.usage(name);
        let in_use = self.subnet_in_use(name);
        let ready = match self.standing().subnet(name) {
            Some(loss) => Ready::lost(loss),
            None if subnet.deleting => {
                let held = usage.used + usage.reserved + usage.cooling + usage.outside;
                let message = format!("is being deleted; waits for {held} addresses that are in use");
                Ready { ok: true, reason: "Deleting", message }
            }
            None if usage.available == 0 => {
                let message = format!("every one of {} addresses is in use", usage.total);
                Ready { ok: true, reason: "Full", message }
            }
            None => Ready { ok: true, reason: "InForce", message: in_force(usage) },
        };
        Some(SubnetStatus {
            ready,
            usage,
            blocks: self.blocks_of(name).count(),
            routing_table: tables.get(name).copied(),
            in_use,
        })
    }

    /// The routing table of every Subnet of an underlay, see [`routing_tables`]: those of overlays share one. While its
    /// Network is away or cannot be read, a Subnet keeps the one that it has: nodes route running pods by it.
    #[must_use]
    pub fn routing_tables(&self) -> BTreeMap<String, u32> {
        let of_underlay = |s: &&SubnetDef| match self.network(&s.network) {
            Some(network) => !network.kind.is_overlay(),
            None => s.routing_table.is_some(),
        };
        routing_tables(self.subnets().filter(of_underlay))
    }
}

/// Gives every Subnet a routing table of its own out of [`table::SUBNETS`]. A Subnet keeps the one it has; of two with
/// the same, the older one keeps it; the others get the lowest that is free, oldest first.
///
/// Two controllers that do not know of each other's Subnets may write one number twice. Both give the younger Subnet
/// another one as soon as they see it, and agents leave it alone until then (`braid_node_core::underlay`).
pub fn routing_tables<'a>(subnets: impl IntoIterator<Item = &'a SubnetDef>) -> BTreeMap<String, u32> {
    let mut oldest_first: Vec<_> = subnets.into_iter().collect();
    oldest_first.sort_by_key(|s| (s.created, &s.name));
    let mut given = BTreeMap::new();
    let mut used = BTreeSet::new();
    for s in &oldest_first {
        if let Some(t) = s.routing_table.filter(|t| table::SUBNETS.contains(t))
            && used.insert(t)
        {
            given.insert(s.name.clone(), t);
        }
    }
    let mut free = table::SUBNETS.filter(|t| !used.contains(t));
    for s in oldest_first {
        if !given.contains_key(&s.name)
            && let Some(t) = free.next()
        {
            given.insert(s.name.clone(), t);
        }
    }
    given
}
