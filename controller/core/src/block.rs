//! The node-affine blocks of one routed Subnet.
//!
//! A node draws addresses from its own blocks, so that the others need one route per block. When no block is left
//! that has a free address, it borrows one from elsewhere; such an address is routed on its own (`host_routed`).
//!
//! **Invariant:** a block that this module proposes never shares an address with one that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::model::{BlockDef, SubnetDef, UnixSeconds};
use braid_types::{AddrRange, Cidr, Family, block_name};
use rangemap::RangeInclusiveSet;

use crate::pool::Pool;

/// One block as this controller knows it.
#[derive(Debug, Clone)]
struct Known {
    def: BlockDef,
    /// Whether the object was seen; false while a grant is creating it.
    confirmed: bool,
    /// Whether it is being given back: nothing is drawn from it any more.
    leaving: bool,
    /// Since when it was seen empty.
    empty_since: Option<UnixSeconds>,
    /// Where the next search in it starts.
    cursor: Option<IpAddr>,
}

/// The blocks of one Subnet.
#[derive(Debug, Clone, Default)]
pub struct Blocks {
    /// Family, block length and first and last block number; `None` while the Subnet is not known.
    grid: Option<Grid>,
    known: BTreeMap<String, Known>,
    by_node: BTreeMap<String, BTreeSet<String>>,
    /// Numbers of the blocks that nobody has.
    unclaimed: RangeInclusiveSet<u128>,
    /// Where the search for an unclaimed block starts.
    next: u128,
}

/// How a Subnet is cut into blocks: block number = address >> shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grid {
    family: Family,
    len: u8,
    first: u128,
    last: u128,
}

impl Grid {
    fn of(def: &SubnetDef) -> Self {
        let family = def.family();
        // A block is never larger than its Subnet.
        let len = def.block_size.clamp(def.cidr.prefix_len(), family.bits());
        let shift = family.bits() - len;
        let number = |a| shr(Family::number(a), shift);
        Self { family, len, first: number(def.cidr.first()), last: number(def.cidr.last()) }
    }

    fn shift(self) -> u8 {
        self.family.bits() - self.len
    }

    fn block(self, number: u128) -> Option<Cidr> {
        Cidr::containing(self.family.addr(number.checked_shl(u32::from(self.shift())).unwrap_or(0)), self.len)
    }

    fn numbers(self, cidr: &Cidr) -> Option<std::ops::RangeInclusive<u128>> {
        if cidr.family() != self.family {
            return None;
        }
        let number = |a| shr(Family::number(a), self.shift());
        let (first, last) = (number(cidr.first()).max(self.first), number(cidr.last()).min(self.last));
        (first <= last).then_some(first..=last)
    }
}

/// `n >> by`, where a shift by the whole width gives 0.
fn shr(n: u128, by: u8) -> u128 {
    n.checked_shr(u32::from(by)).unwrap_or(0)
}

/// An address found for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub address: IpAddr,
    /// A block that must exist before the address is used: new, or still being created.
    pub block: Option<BlockDef>,
    /// Whether no block of the node covers it.
    pub host_routed: bool,
}

impl Blocks {
    /// Takes over a changed definition (`None`: the Subnet is gone, or has no blocks). Known blocks stay.
    pub fn redefine(&mut self, def: Option<&SubnetDef>) {
        self.grid = def.map(Grid::of);
        self.recount();
    }

    fn recount(&mut self) {
        self.unclaimed = RangeInclusiveSet::new();
        let Some(grid) = self.grid else { return };
        self.unclaimed.insert(grid.first..=grid.last);
        for r in self.known.values().filter_map(|b| grid.numbers(&b.def.cidr)) {
            self.unclaimed.remove(r);
        }
    }

    /// Learns of a block that exists.
    pub fn upsert(&mut self, def: BlockDef) {
        if let Some(old) = self.known.get_mut(&def.name).filter(|k| k.def == def) {
            old.confirmed = true;
            return;
        }
        self.remove(&def.name);
        self.insert(def, true);
    }

    fn insert(&mut self, def: BlockDef, confirmed: bool) {
        if let Some(r) = self.grid.and_then(|g| g.numbers(&def.cidr)) {
            self.unclaimed.remove(r);
        }
        self.by_node.entry(def.node.clone()).or_default().insert(def.name.clone());
        let known = Known { confirmed, leaving: false, empty_since: None, cursor: None, def };
        self.known.insert(known.def.name.clone(), known);
    }

    /// Forgets a block that is gone. False if it was not known.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.known.remove(name) else { return false };
        if let Some(names) = self.by_node.get_mut(&old.def.node) {
            names.remove(name);
            if names.is_empty() {
                self.by_node.remove(&old.def.node);
            }
        }
        let Some(grid) = self.grid else { return true };
        if let Some(freed) = grid.numbers(&old.def.cidr) {
            self.unclaimed.insert(freed.clone());
            // Other blocks may be in the same place: by mistake, or smaller ones of a time with another block size.
            let others = self.known.values().filter_map(|b| grid.numbers(&b.def.cidr));
            for r in others.filter(|r| r.start() <= freed.end() && freed.start() <= r.end()) {
                self.unclaimed.remove(r);
            }
        }
        true
    }

    /// A free address for `node`: from its own blocks, else from a block that it claims now, else borrowed.
    /// Nothing is marked yet; see [`Self::settle`].
    #[must_use]
    pub fn find(&self, subnet: &str, node: &str, pool: &Pool) -> Option<Found> {
        self.find_own(node, pool)
            .or_else(|| {
                let (block, address) = self.unclaimed_block(subnet, node, pool)?;
                Some(Found { address, block: Some(block), host_routed: false })
            })
            .or_else(|| pool.next_free().map(|address| self.located(node, address)))
    }

    /// A free address in a block that the node has.
    #[must_use]
    pub fn find_own(&self, node: &str, pool: &Pool) -> Option<Found> {
        self.of_node(node).filter(|b| !b.leaving).find_map(|b| {
            let address = pool.next_free_in(&b.def.cidr.range(), b.cursor)?;
            Some(Found { address, block: (!b.confirmed).then(|| b.def.clone()), host_routed: false })
        })
    }

    /// How a given address is reached on `node`.
    #[must_use]
    pub fn located(&self, node: &str, address: IpAddr) -> Found {
        let own = self.of_node(node).find(|b| !b.leaving && b.def.cidr.contains(address));
        Found {
            address,
            block: own.filter(|b| !b.confirmed).map(|b| b.def.clone()),
            host_routed: own.is_none(),
        }
    }

    /// Whether a block of `node` covers the address.
    #[must_use]
    pub fn covers(&self, node: &str, address: IpAddr) -> bool {
        self.of_node(node).any(|b| b.def.cidr.contains(address))
    }

    fn of_node(&self, node: &str) -> impl Iterator<Item = &Known> {
        self.by_node.get(node).into_iter().flatten().filter_map(|name| self.known.get(name))
    }

    /// The next block that nobody has and that holds a free address, with that address. Both sets of intervals
    /// are walked in turns, so gaps in either are jumped over.
    fn unclaimed_block(&self, subnet: &str, node: &str, pool: &Pool) -> Option<(BlockDef, IpAddr)> {
        let grid = self.grid?;
        let next = self.next.max(grid.first);
        let behind = if next <= grid.last { self.unclaimed_number(grid, next, pool) } else { None };
        let number = behind.or_else(|| self.unclaimed_number(grid, grid.first, pool))?;
        let cidr = grid.block(number)?;
        let address = pool.next_free_in(&cidr.range(), None)?;
        let name = block_name(subnet, &cidr);
        Some((BlockDef { name, subnet: subnet.to_owned(), cidr, node: node.to_owned() }, address))
    }

    fn unclaimed_number(&self, grid: Grid, from: u128, pool: &Pool) -> Option<u128> {
        let last_address = Family::number(grid.block(grid.last)?.last());
        let mut at = from;
        loop {
            let range = self.unclaimed.overlapping(at..=grid.last).next()?;
            let number = at.max(*range.start());
            let start = number.checked_shl(u32::from(grid.shift())).unwrap_or(0);
            let found = shr(pool.first_in(start..=last_address)?, grid.shift());
            if range.contains(&found) {
                return Some(found);
            }
            at = found;
        }
    }

    /// Notes that an address was given out: a new block is the node's from now on.
    pub fn settle(&mut self, found: &Found, node: &str) {
        if let Some(block) = &found.block
            && !self.known.contains_key(&block.name)
        {
            if let Some(r) = self.grid.and_then(|g| g.numbers(&block.cidr)) {
                self.next = r.end().saturating_add(1);
            }
            self.insert(block.clone(), false);
        }
        let names: Vec<&String> = self.by_node.get(node).into_iter().flatten().collect();
        for name in names {
            if let Some(b) = self.known.get_mut(name).filter(|b| b.def.cidr.contains(found.address)) {
                let next = Family::number(found.address).saturating_add(1);
                b.cursor = Some(Family::of(found.address).addr(next));
                b.empty_since = None;
            }
        }
    }

    /// The blocks to give back at `now`: seen empty (`is_empty`) for `grace` seconds, or at once when their node
    /// is gone. They are not drawn from any more. Also the time at which the next one would be due.
    pub fn take_returnable(
        &mut self,
        now: UnixSeconds,
        grace: i64,
        mut node_exists: impl FnMut(&str) -> bool,
        mut is_empty: impl FnMut(&BlockDef) -> bool,
    ) -> (Vec<BlockDef>, Option<UnixSeconds>) {
        let (mut due, mut next) = (Vec::new(), None::<UnixSeconds>);
        let mut dropped = Vec::new();
        for b in self.known.values_mut() {
            if !is_empty(&b.def) {
                b.empty_since = None;
                b.leaving = false;
                continue;
            }
            let since = *b.empty_since.get_or_insert(now);
            let deadline = if node_exists(&b.def.node) { since.saturating_add(grace) } else { now };
            if deadline > now {
                next = Some(next.map_or(deadline, |n| n.min(deadline)));
            } else if b.confirmed {
                b.leaving = true;
                due.push(b.def.clone());
            } else {
                dropped.push(b.def.name.clone());
            }
        }
        for name in dropped {
            self.remove(&name);
        }
        (due, next)
    }

    /// Takes back that a block is being given back: deleting it failed for good.
    pub fn keep(&mut self, name: &str) {
        if let Some(b) = self.known.get_mut(name) {
            b.leaving = false;
            b.empty_since = None;
        }
    }

    /// All blocks that exist or are being created, by name.
    pub fn iter(&self) -> impl Iterator<Item = &BlockDef> {
        self.known.values().map(|b| &b.def)
    }

    /// Blocks whose object was seen.
    pub fn confirmed(&self) -> impl Iterator<Item = &BlockDef> {
        self.known.values().filter(|b| b.confirmed).map(|b| &b.def)
    }

    /// The block of this name, if it exists or is being created.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&BlockDef> {
        self.known.get(name).map(|b| &b.def)
    }

    /// The block of this name, if its object was seen.
    #[must_use]
    pub fn get_confirmed(&self, name: &str) -> Option<&BlockDef> {
        self.known.get(name).filter(|b| b.confirmed).map(|b| &b.def)
    }

    /// Whether there is no block.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.known.is_empty()
    }

    /// A range of a known block that shares addresses with `range`.
    #[must_use]
    pub fn overlapping(&self, range: &AddrRange) -> Option<&BlockDef> {
        self.iter().find(|b| b.cidr.range().overlaps(range))
    }
}
