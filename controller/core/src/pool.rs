//! The addresses of one Subnet: which may be given out, which are taken, which one is next.
//!
//! **Invariant:** `free` is exactly the addresses that may be given out to anybody and are not taken; its size is
//! [`Usage::available`]. It is kept as intervals, so a /64 costs no more than a /24 and every step is `O(log n)`
//! in the number of intervals.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use braid_types::model::SubnetDef;
use braid_types::{AddrRange, Family};
use rangemap::RangeInclusiveSet;

/// Why an address is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// Promised by a grant whose object is not seen yet.
    Pending,
    /// Held by a pod or a node.
    Bound,
    /// Kept for an owner without a pod.
    Reserved,
    /// Given back, cooling down.
    Releasing,
}

/// How many addresses of a Subnet are in which state.
///
/// `total = used + reserved + cooling + available`, at all times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses that may be given out: the ranges without gateway and excluded ones.
    pub total: u128,
    /// Held, or promised a moment ago.
    pub used: u128,
    /// Kept for an owner, or given out only when asked for by address.
    pub reserved: u128,
    /// Given back and not free yet.
    pub cooling: u128,
    /// Free for anybody.
    pub available: u128,
    /// Held although the present ranges leave them out: what a range that shrank left behind.
    /// Not part of `total`.
    pub outside: u128,
}

/// The addresses of one Subnet.
#[derive(Debug, Clone)]
pub struct Pool {
    family: Family,
    /// What may be given out at all.
    allowed: RangeInclusiveSet<u128>,
    /// The part of `allowed` that is given out only by address.
    on_request: RangeInclusiveSet<u128>,
    free: RangeInclusiveSet<u128>,
    taken: BTreeMap<IpAddr, Mark>,
    usage: Usage,
    /// Where the next search starts: a freed address comes back as late as possible.
    cursor: u128,
}

impl Default for Pool {
    fn default() -> Self {
        Self::unknown()
    }
}

fn numbers(range: &AddrRange) -> RangeInclusive<u128> {
    Family::number(range.first())..=Family::number(range.last())
}

fn size(set: &RangeInclusiveSet<u128>) -> u128 {
    set.iter().fold(0, |sum: u128, r| sum.saturating_add((r.end() - r.start()).saturating_add(1)))
}

fn clear(set: &mut RangeInclusiveSet<u128>, ranges: &[AddrRange], family: Family) {
    for r in ranges.iter().filter(|r| r.family() == family) {
        set.remove(numbers(r));
    }
}

impl Pool {
    /// The pool of a Subnet that is not known (yet): nothing may be given out, but what is held is remembered.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            family: Family::V4,
            allowed: RangeInclusiveSet::new(),
            on_request: RangeInclusiveSet::new(),
            free: RangeInclusiveSet::new(),
            taken: BTreeMap::new(),
            usage: Usage::default(),
            cursor: 0,
        }
    }

    /// The pool of a Subnet with nothing taken.
    #[must_use]
    pub fn new(def: &SubnetDef) -> Self {
        let mut pool = Self::unknown();
        pool.redefine(Some(def));
        pool
    }

    /// Takes over a changed definition (`None`: the Subnet is gone). What is taken stays taken.
    pub fn redefine(&mut self, def: Option<&SubnetDef>) {
        self.allowed = RangeInclusiveSet::new();
        self.on_request = RangeInclusiveSet::new();
        if let Some(def) = def {
            self.family = def.family();
            let usable = def.cidr.usable();
            let ranges: &[AddrRange] = if def.ranges.is_empty() { &[usable] } else { &def.ranges };
            for r in ranges.iter().filter_map(|r| r.intersection(&def.cidr.range())) {
                self.allowed.insert(numbers(&r));
            }
            clear(&mut self.allowed, &def.excluded, self.family);
            if let Some(gateway) = def.gateway.filter(|g| Family::of(*g) == self.family) {
                self.allowed.remove(numbers(&AddrRange::single(gateway)));
            }
            for r in def.reserved.iter().filter(|r| r.family() == self.family) {
                for part in self.allowed.overlapping(numbers(r)) {
                    let within = numbers(r);
                    self.on_request.insert(*part.start().max(within.start())..=*part.end().min(within.end()));
                }
            }
        }
        self.free = self.allowed.clone();
        for r in self.on_request.iter() {
            self.free.remove(r.clone());
        }
        self.usage =
            Usage { total: size(&self.allowed), reserved: size(&self.on_request), ..Usage::default() };
        self.usage.available = self.usage.total - self.usage.reserved;
        for (addr, mark) in self.taken.clone() {
            self.occupy(addr);
            *self.counter(addr, mark) += 1;
        }
    }

    /// Where an address with this mark is counted.
    fn counter(&mut self, addr: IpAddr, mark: Mark) -> &mut u128 {
        match mark {
            _ if !self.allows(addr) => &mut self.usage.outside,
            Mark::Pending | Mark::Bound => &mut self.usage.used,
            Mark::Reserved => &mut self.usage.reserved,
            Mark::Releasing => &mut self.usage.cooling,
        }
    }

    /// Takes the address out of what is free and out of the count it had as a free one.
    fn occupy(&mut self, addr: IpAddr) {
        if !self.allows(addr) {
            return;
        }
        let n = Family::number(addr);
        if self.on_request.contains(&n) {
            self.usage.reserved -= 1;
        } else {
            self.free.remove(n..=n);
            self.usage.available -= 1;
        }
    }

    fn vacate(&mut self, addr: IpAddr) {
        if !self.allows(addr) {
            return;
        }
        let n = Family::number(addr);
        if self.on_request.contains(&n) {
            self.usage.reserved += 1;
        } else {
            self.free.insert(n..=n);
            self.usage.available += 1;
        }
    }

    /// Whether the address may be given out at all, taken or not.
    #[must_use]
    pub fn allows(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family && self.allowed.contains(&Family::number(addr))
    }

    /// Why the address is not free; `None` if nobody holds it.
    #[must_use]
    pub fn mark(&self, addr: IpAddr) -> Option<Mark> {
        self.taken.get(&addr).copied()
    }

    /// Takes an address, or changes why it is taken.
    pub fn take(&mut self, addr: IpAddr, mark: Mark) {
        match self.taken.insert(addr, mark) {
            Some(old) => *self.counter(addr, old) -= 1,
            None => self.occupy(addr),
        }
        *self.counter(addr, mark) += 1;
    }

    /// Gives an address back. False if it was not taken.
    pub fn release(&mut self, addr: IpAddr) -> bool {
        let Some(old) = self.taken.remove(&addr) else { return false };
        *self.counter(addr, old) -= 1;
        self.vacate(addr);
        true
    }

    /// The first address free for anybody in `within`, at or after `from`, then from the start of `within`.
    #[must_use]
    pub fn next_free_in(&self, within: &AddrRange, from: Option<IpAddr>) -> Option<IpAddr> {
        if within.family() != self.family {
            return None;
        }
        let (lo, hi) = numbers(within).into_inner();
        let from = from.map_or(lo, Family::number).max(lo);
        let behind = if from <= hi { self.first_in(from..=hi) } else { None };
        behind.or_else(|| self.first_in(lo..=hi)).map(|n| self.family.addr(n))
    }

    /// The first address in `within` that nobody has, those included that are given out only by address.
    #[must_use]
    pub fn next_by_address(&self, within: &AddrRange) -> Option<IpAddr> {
        if within.family() != self.family {
            return None;
        }
        let (lo, hi) = numbers(within).into_inner();
        // Free for anybody, or free and given out only by address: the lower of the two. Neither search walks over what
        // is taken, except within what is given out only by address.
        let free = self.first_in(lo..=hi);
        let on_request = self.on_request.overlapping(lo..=hi).find_map(|r| {
            let (mut n, last) = (lo.max(*r.start()), hi.min(*r.end()));
            for taken in self.taken.range(self.family.addr(n)..=self.family.addr(last)) {
                if Family::number(*taken.0) != n {
                    break;
                }
                n = n.checked_add(1)?;
            }
            (n <= last).then_some(n)
        });
        free.into_iter().chain(on_request).min().map(|n| self.family.addr(n))
    }

    /// How many addresses of `within` may be given out at all.
    #[must_use]
    pub fn allowed_in(&self, within: &AddrRange) -> u128 {
        if within.family() != self.family {
            return 0;
        }
        let (lo, hi) = numbers(within).into_inner();
        self.allowed
            .overlapping(lo..=hi)
            .fold(0, |sum: u128, r| sum.saturating_add(hi.min(*r.end()) - lo.max(*r.start()) + 1))
    }

    /// The next address free for anybody; the search goes on where the last one stopped.
    #[must_use]
    pub fn next_free(&self) -> Option<IpAddr> {
        let first = *self.free.first()?.start();
        let behind = self.first_in(self.cursor..=u128::MAX);
        Some(self.family.addr(behind.unwrap_or(first)))
    }

    /// Says that `addr` was given out, so that [`Self::next_free`] goes on behind it.
    pub fn advance(&mut self, addr: IpAddr) {
        // Behind the very last address the search starts anew.
        self.cursor = Family::number(addr).wrapping_add(1);
    }

    /// The first number free for anybody within `range`.
    pub(crate) fn first_in(&self, range: RangeInclusive<u128>) -> Option<u128> {
        let start = *range.start();
        self.free.overlapping(range).next().map(|r| start.max(*r.start()))
    }

    /// Everything that is taken, in order.
    pub fn taken(&self) -> impl Iterator<Item = (IpAddr, Mark)> {
        self.taken.iter().map(|(a, m)| (*a, *m))
    }

    /// What is taken within a range, in order.
    pub fn taken_in(&self, range: &AddrRange) -> impl Iterator<Item = (IpAddr, Mark)> {
        self.taken.range(range.first()..=range.last()).map(|(a, m)| (*a, *m))
    }

    /// How many addresses are taken, in or outside the ranges.
    #[must_use]
    pub fn held(&self) -> usize {
        self.taken.len()
    }

    /// Whether nothing is taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.taken.is_empty()
    }

    /// Counts, exact; kept up to date by every step.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The number of addresses free for anybody, counted from the intervals: the same as `usage().available`.
    #[must_use]
    pub fn free_count(&self) -> u128 {
        size(&self.free)
    }
}
