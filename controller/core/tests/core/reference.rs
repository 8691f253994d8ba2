//! What a pool is compared with: the addresses of one Subnet, written down one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_controller_core::pool::{Mark, Usage};
use braid_types::model::SubnetDef;
use braid_types::{AddrRange, Cidr, Family};

/// As many addresses at the start of a Subnet are looked at one by one, and half as many in its middle and at its end.
const WINDOW: u128 = 64;

/// Numbers that look random and are the same in every run (SplitMix64).
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }
}

/// The addresses of a Subnet. A large one is looked at in three windows; each stretch between two of them stands as its
/// first address, counts by its size, and is touched by no operation.
#[derive(Debug, Clone)]
pub(crate) struct Naive {
    /// Addresses that operations may name.
    pub(crate) named: Vec<IpAddr>,
    /// Those and the stretches, with the number of addresses that each stands for.
    all: BTreeMap<IpAddr, u128>,
    allowed: BTreeSet<IpAddr>,
    on_request: BTreeSet<IpAddr>,
    free: BTreeSet<IpAddr>,
    pub(crate) taken: BTreeMap<IpAddr, Mark>,
    /// The address behind the one that was given out last.
    next: Option<IpAddr>,
}

impl Naive {
    pub(crate) fn of(cidr: &Cidr) -> Self {
        let (family, first, last) =
            (cidr.family(), Family::number(cidr.first()), Family::number(cidr.last()));
        let mut all = BTreeMap::new();
        let mut one_by_one = |from: u128, count: u128| {
            all.extend((from..=last.min(from + (count - 1))).map(|n| (family.addr(n), 1)));
        };
        let mut named_ends = Vec::new();
        if last - first < 4 * WINDOW {
            one_by_one(first, 4 * WINDOW);
        } else {
            let middle = first + (last - first) / 2;
            for (from, count) in
                [(first, WINDOW), (middle, WINDOW / 2), (last - (WINDOW / 2 - 1), WINDOW / 2)]
            {
                one_by_one(from, count);
                named_ends.push((from, from + (count - 1)));
            }
        }
        let named = all.keys().copied().collect();
        for pair in named_ends.windows(2) {
            let (from, to) = (pair[0].1 + 1, pair[1].0);
            all.insert(family.addr(from), to - from);
        }
        Self {
            named,
            all,
            allowed: BTreeSet::new(),
            on_request: BTreeSet::new(),
            free: BTreeSet::new(),
            taken: BTreeMap::new(),
            next: None,
        }
    }

    pub(crate) fn redefine(&mut self, def: Option<&SubnetDef>) {
        self.allowed.clear();
        self.on_request.clear();
        if let Some(def) = def {
            let usable = [def.cidr.usable()];
            let given: &[AddrRange] = if def.ranges.is_empty() { &usable } else { &def.ranges };
            let within = |list: &[AddrRange], a: IpAddr| list.iter().any(|r| r.contains(a));
            for a in self.all.keys().copied() {
                if within(given, a) && !within(&def.excluded, a) && def.gateway != Some(a) {
                    self.allowed.insert(a);
                    if within(&def.reserved, a) {
                        self.on_request.insert(a);
                    }
                }
            }
        }
        self.free = self.allowed.difference(&self.on_request).copied().collect();
        for a in self.taken.keys() {
            self.free.remove(a);
        }
    }

    /// Whether an operation may take or release it.
    pub(crate) fn is_named(&self, a: IpAddr) -> bool {
        self.all.get(&a) == Some(&1)
    }

    /// Which address comes next: behind the last one, then from the start.
    pub(crate) fn next_free(&self) -> Option<IpAddr> {
        let behind = self.next.and_then(|next| self.free.range(next..).next());
        behind.or(self.free.first()).copied()
    }

    /// The first free one within a range, at or behind `from`, then from its start.
    pub(crate) fn next_free_in(&self, within: &AddrRange, from: IpAddr) -> Option<IpAddr> {
        let mut inside = self.free.iter().filter(|a| within.contains(**a));
        let behind = inside.clone().find(|a| **a >= from);
        behind.or(inside.next()).copied()
    }

    /// The first one within a range that nobody has.
    pub(crate) fn next_by_address(&self, within: &AddrRange) -> Option<IpAddr> {
        let inside = self.allowed.range(within.first()..=within.last());
        inside.copied().find(|a| !self.taken.contains_key(a))
    }

    /// How many addresses of a range are given out at all.
    pub(crate) fn allowed_in(&self, within: &AddrRange) -> u128 {
        self.allowed.range(within.first()..=within.last()).map(|a| self.all[a]).sum()
    }

    pub(crate) fn is_allowed(&self, a: IpAddr) -> bool {
        self.allowed.contains(&a)
    }

    pub(crate) fn is_free(&self, a: IpAddr) -> bool {
        self.free.contains(&a)
    }

    /// Everything that is free for anybody, in order.
    pub(crate) fn free(&self) -> impl Iterator<Item = IpAddr> + Clone {
        self.free.iter().copied()
    }

    pub(crate) fn take(&mut self, a: IpAddr, mark: Mark) {
        self.free.remove(&a);
        self.taken.insert(a, mark);
    }

    pub(crate) fn advance(&mut self, a: IpAddr) {
        let behind =
            Family::number(a).checked_add(1).filter(|n| Family::of(a) == Family::V6 || *n <= 0xffff_ffff);
        // Behind the very last address there is none, which is where the search starts anew.
        self.next = behind.map(|n| Family::of(a).addr(n));
    }

    /// A fresh process does not know where the last one stopped.
    pub(crate) fn forget_what_was_last(&mut self) {
        self.next = None;
    }

    pub(crate) fn release(&mut self, a: IpAddr) -> bool {
        let was = self.taken.remove(&a).is_some();
        if was && self.allowed.contains(&a) && !self.on_request.contains(&a) {
            self.free.insert(a);
        }
        was
    }

    pub(crate) fn usage(&self) -> Usage {
        let count =
            |addresses: &mut dyn Iterator<Item = &IpAddr>| addresses.map(|a| self.all[a]).sum::<u128>();
        let marked = |marks: &[Mark]| {
            let fits = |(a, m): &(&IpAddr, &Mark)| self.allowed.contains(*a) && marks.contains(m);
            self.taken.iter().filter(fits).count() as u128
        };
        Usage {
            total: count(&mut self.allowed.iter()),
            used: marked(&[Mark::Pending, Mark::Bound]),
            reserved: marked(&[Mark::Reserved])
                + count(&mut self.on_request.iter().filter(|a| !self.taken.contains_key(*a))),
            cooling: marked(&[Mark::Releasing]),
            available: count(&mut self.free.iter()),
            outside: self.taken.keys().filter(|a| !self.allowed.contains(*a)).count() as u128,
        }
    }
}
