//! Blocks against a plain list of blocks: who gets which address, out of which block, and routed how.

use std::collections::BTreeMap;
use std::net::IpAddr;

use braid_controller_core::block::{Blocks, Found};
use braid_controller_core::pool::{Mark, Pool};
use braid_types::model::{BlockDef, SubnetDef, UnixSeconds};
use braid_types::{AddrRange, Cidr, Family, block_name};
use proptest::prelude::*;

use crate::cluster::subnet;
use crate::reference::{Dice, Naive};

const GRACE: i64 = 10;
const NODES: u16 = 5;

#[derive(Debug, Clone)]
struct Block {
    def: BlockDef,
    confirmed: bool,
    leaving: bool,
    empty_since: Option<UnixSeconds>,
    /// The address behind the one that was given out of it last.
    next: Option<IpAddr>,
}

/// The blocks of one Subnet in a plain list.
#[derive(Debug)]
struct NaiveBlocks {
    blocks: BTreeMap<String, Block>,
    /// The number behind the block that was claimed last.
    next: u128,
    len: u8,
}

impl NaiveBlocks {
    fn of_node(&self, node: &str) -> impl Iterator<Item = &Block> {
        self.blocks.values().filter(move |b| b.def.node == node)
    }

    /// Where a node's next address comes from: its own blocks, a block that nobody has, anywhere.
    fn find(&self, node: &str, def: Option<&SubnetDef>, addresses: &Naive) -> Option<Found> {
        for b in self.of_node(node).filter(|b| !b.leaving) {
            let range = b.def.cidr.range();
            if let Some(address) = addresses.next_free_in(&range, b.next.unwrap_or(range.first())) {
                return Some(Found {
                    address,
                    block: (!b.confirmed).then(|| b.def.clone()),
                    host_routed: false,
                });
            }
        }
        let block_of = |a: IpAddr| Cidr::containing(a, self.len).unwrap();
        let unclaimed =
            |a: &IpAddr| def.is_some() && self.blocks.values().all(|b| !b.def.cidr.overlaps(&block_of(*a)));
        let mut candidates = addresses.free().filter(unclaimed);
        let behind = candidates.clone().find(|a| Family::number(block_of(*a).first()) >= self.next);
        if let Some(address) = behind.or(candidates.next()) {
            return Some(Found { address, block: Some(block(block_of(address), node)), host_routed: false });
        }
        addresses.next_free().map(|address| Found { address, block: None, host_routed: true })
    }

    fn located(&self, node: &str, address: IpAddr) -> Found {
        let own = self.of_node(node).find(|b| !b.leaving && b.def.cidr.contains(address));
        Found {
            address,
            block: own.filter(|b| !b.confirmed).map(|b| b.def.clone()),
            host_routed: own.is_none(),
        }
    }

    fn settle(&mut self, found: &Found, node: &str) {
        if let Some(def) = found.block.clone().filter(|b| !self.blocks.contains_key(&b.name)) {
            self.next = Family::number(def.cidr.last()) + 1;
            self.insert(def, false);
        }
        for b in self.blocks.values_mut().filter(|b| b.def.node == node && b.def.cidr.contains(found.address))
        {
            b.next = Some(Family::of(found.address).addr(Family::number(found.address) + 1));
            b.empty_since = None;
        }
    }

    fn insert(&mut self, def: BlockDef, confirmed: bool) {
        let block = Block { confirmed, leaving: false, empty_since: None, next: None, def };
        self.blocks.insert(block.def.name.clone(), block);
    }

    fn upsert(&mut self, def: BlockDef) {
        match self.blocks.get_mut(&def.name).filter(|b| b.def == def) {
            Some(known) => known.confirmed = true,
            None => self.insert(def, true),
        }
    }

    /// What goes back, and when to look again.
    fn sweep(
        &mut self,
        now: UnixSeconds,
        gone: &str,
        is_empty: impl Fn(&BlockDef) -> bool,
    ) -> (Vec<BlockDef>, Option<UnixSeconds>) {
        let (mut due, mut times, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for b in self.blocks.values_mut() {
            if is_empty(&b.def) {
                let since = *b.empty_since.get_or_insert(now);
                if b.def.node != gone && now < since + GRACE {
                    times.push(since + GRACE);
                } else if b.confirmed {
                    b.leaving = true;
                    due.push(b.def.clone());
                } else {
                    dropped.push(b.def.name.clone());
                }
            } else {
                (b.empty_since, b.leaving) = (None, false);
            }
        }
        for name in dropped {
            self.blocks.remove(&name);
        }
        (due, times.into_iter().min())
    }
}

fn block(cidr: Cidr, node: &str) -> BlockDef {
    BlockDef { name: block_name("s", &cidr), subnet: "s".into(), cidr, node: node.into() }
}

/// What happens. Numbers stand for addresses, nodes or blocks, modulo how many there are.
#[derive(Debug, Clone)]
enum Op {
    Take(u16),
    TakeGiven(u16, u16),
    Release(u16),
    /// The object of a block is seen.
    Confirm(u16),
    /// It is gone.
    Remove(u16),
    /// A block of another controller, perhaps of another size.
    Foreign(u16, u16, i8),
    /// Time passes, a node may be gone, and empty blocks go back.
    Sweep(u8, u16),
    /// One could not be given back.
    Keep(u16),
    Redefine(Vec<(u16, u16)>, Vec<(u16, u16)>),
    Undefine,
    /// A new process knows the objects only.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u16>;
    let pairs = |least| prop::collection::vec(any::<(u16, u16)>(), least..3);
    prop_oneof![
        16 => n().prop_map(Op::Take),
        2 => (n(), n()).prop_map(|(node, a)| Op::TakeGiven(node, a)),
        10 => n().prop_map(Op::Release),
        6 => n().prop_map(Op::Confirm),
        2 => n().prop_map(Op::Remove),
        2 => (n(), n(), -2i8..3).prop_map(|(a, node, by)| Op::Foreign(a, node, by)),
        2 => (0u8..8, n()).prop_map(|(by, node)| Op::Sweep(by, node)),
        1 => n().prop_map(Op::Keep),
        1 => (pairs(1), pairs(0)).prop_map(|(r, e)| Op::Redefine(r, e)),
        1 => Just(Op::Undefine),
        1 => Just(Op::Restart),
    ]
}

fn thrown(dice: &mut Dice) -> Op {
    let mut number = || u16::try_from(dice.roll(1 << 16)).unwrap();
    let (kind, a, b, c) = (number() % 512, number(), number(), number());
    match kind {
        0..2 => Op::Redefine(
            (0..=a % 2).map(|_| (number(), number())).collect(),
            vec![(b, b.wrapping_add(c % 4))],
        ),
        2 => Op::Undefine,
        3 => Op::Restart,
        4..8 => Op::Foreign(a, b, i8::try_from(c % 5).unwrap() - 2),
        8..16 => Op::Remove(a),
        16..24 => Op::Sweep(u8::try_from(a % 8).unwrap(), b),
        24..30 => Op::Keep(a),
        30..90 => Op::Confirm(a),
        90..110 => Op::TakeGiven(a, b),
        110..350 => Op::Take(a),
        _ => Op::Release(a),
    }
}

/// Blocks and pool as they are, and the plain lists that they are compared with.
struct Twins {
    base: SubnetDef,
    def: Option<SubnetDef>,
    pool: Pool,
    blocks: Blocks,
    naive: NaiveBlocks,
    addresses: Naive,
    holders: BTreeMap<IpAddr, String>,
    now: UnixSeconds,
}

fn node(n: u16) -> String {
    format!("n{}", n % NODES)
}

impl Twins {
    fn new(cidr: Cidr, block_bits: u8) -> Self {
        let len = (cidr.family().bits() - block_bits).max(cidr.prefix_len());
        let base = SubnetDef { block_size: len, cidr, ..subnet("s", "n", "10.0.0.0/8") };
        let mut twins = Self {
            pool: Pool::unknown(),
            blocks: Blocks::default(),
            naive: NaiveBlocks { blocks: BTreeMap::new(), next: 0, len },
            addresses: Naive::of(&cidr),
            holders: BTreeMap::new(),
            def: None,
            base,
            now: 0,
        };
        let all = (0, u16::try_from(twins.addresses.named.len() - 1).unwrap());
        twins.step(Op::Redefine(vec![all], Vec::new()));
        twins
    }

    fn at(&self, n: u16) -> IpAddr {
        self.addresses.named[usize::from(n) % self.addresses.named.len()]
    }

    /// A large Subnet gives out small ranges only: the stretches between its windows hold too many blocks to list.
    fn range(&self, (a, b): (u16, u16)) -> AddrRange {
        let (a, b) = (self.at(a), self.at(b));
        let far = Family::number(a).abs_diff(Family::number(b)) > 256;
        if far { AddrRange::single(a) } else { AddrRange::new(a.min(b), a.max(b)).unwrap() }
    }

    fn known(&self, n: u16) -> Option<BlockDef> {
        let all: Vec<&Block> = self.naive.blocks.values().collect();
        Some(all.get(usize::from(n) % all.len().max(1))?.def.clone())
    }

    fn take(&mut self, found: &Found, node: String) {
        self.pool.take(found.address, Mark::Bound);
        self.pool.advance(found.address);
        self.blocks.settle(found, &node);
        self.addresses.take(found.address, Mark::Bound);
        self.addresses.advance(found.address);
        self.naive.settle(found, &node);
        assert_eq!(self.blocks.covers(&node, found.address), self.covers(&node, found.address));
        if !found.host_routed {
            assert!(self.covers(&node, found.address), "{found:?}: no block of {node}");
        }
        self.holders.insert(found.address, node);
    }

    fn covers(&self, node: &str, a: IpAddr) -> bool {
        self.naive.of_node(node).any(|b| b.def.cidr.contains(a))
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Take(n) => {
                let node = node(n);
                let got = self.blocks.find("s", &node, &self.pool);
                assert_eq!(got, self.naive.find(&node, self.def.as_ref(), &self.addresses));
                assert_eq!(got.is_some(), self.pool.usage().available > 0, "an address stays out of reach");
                if let Some(found) = got {
                    self.take(&found, node);
                }
            }
            Op::TakeGiven(n, a) => {
                let (node, a) = (node(n), self.at(a));
                let got = self.blocks.located(&node, a);
                assert_eq!(got, self.naive.located(&node, a));
                if self.addresses.is_free(a) {
                    self.take(&got, node);
                }
            }
            Op::Release(n) => {
                let taken: Vec<IpAddr> = self.holders.keys().copied().collect();
                if let Some(a) = taken.get(usize::from(n) % taken.len().max(1)) {
                    self.holders.remove(a);
                    assert!(self.pool.release(*a) && self.addresses.release(*a));
                }
            }
            Op::Confirm(n) => {
                if let Some(def) = self.known(n) {
                    self.upsert(def);
                }
            }
            Op::Remove(n) => {
                if let Some(def) = self.known(n) {
                    self.remove(&def);
                }
            }
            Op::Foreign(a, n, by) => {
                let (cidr, family) = (self.base.cidr, self.base.family());
                let len = self.naive.len.saturating_add_signed(by).clamp(cidr.prefix_len(), family.bits());
                self.upsert(block(Cidr::containing(self.at(a), len).unwrap(), &node(n)));
            }
            Op::Sweep(by, n) => self.sweep(by.into(), &node(n)),
            Op::Keep(n) => {
                if let Some(def) = self.known(n) {
                    self.blocks.keep(&def.name);
                    let known = self.naive.blocks.get_mut(&def.name).unwrap();
                    (known.leaving, known.empty_since) = (false, None);
                }
            }
            Op::Redefine(ranges, excluded) => {
                let list = |l: Vec<(u16, u16)>| l.into_iter().map(|p| self.range(p)).collect();
                let def = SubnetDef { ranges: list(ranges), excluded: list(excluded), ..self.base.clone() };
                self.redefine(Some(def));
            }
            Op::Undefine => self.redefine(None),
            Op::Restart => self.restart(),
        }
    }

    fn upsert(&mut self, def: BlockDef) {
        self.blocks.upsert(def.clone());
        self.naive.upsert(def);
    }

    fn remove(&mut self, def: &BlockDef) {
        assert!(self.blocks.remove(&def.name));
        self.naive.blocks.remove(&def.name);
    }

    fn sweep(&mut self, by: i64, gone: &str) {
        self.now += by;
        let holders = &self.holders;
        let is_empty = |b: &BlockDef| !holders.iter().any(|(a, n)| b.cidr.contains(*a) && *n == b.node);
        let got = self.blocks.take_returnable(self.now, GRACE, |n| n != gone, is_empty);
        assert_eq!(got, self.naive.sweep(self.now, gone, is_empty));
        // Every other one is deleted right away.
        for def in got.0.iter().step_by(2) {
            self.remove(def);
        }
    }

    fn redefine(&mut self, def: Option<SubnetDef>) {
        self.pool.redefine(def.as_ref());
        self.blocks.redefine(def.as_ref());
        self.addresses.redefine(def.as_ref());
        self.def = def;
    }

    fn restart(&mut self) {
        self.pool = self.def.as_ref().map_or_else(Pool::unknown, Pool::new);
        self.blocks = Blocks::default();
        // The objects are delivered before their Subnet.
        self.naive.blocks.retain(|_, b| b.confirmed);
        for b in self.naive.blocks.values_mut() {
            (b.leaving, b.empty_since, b.next) = (false, None, None);
            self.blocks.upsert(b.def.clone());
        }
        self.blocks.redefine(self.def.as_ref());
        self.naive.next = 0;
        self.addresses.forget_what_was_last();
        for a in self.holders.keys() {
            self.pool.take(*a, Mark::Bound);
        }
        self.compare();
    }

    fn compare(&self) {
        assert!(self.blocks.iter().eq(self.naive.blocks.values().map(|b| &b.def)));
        let confirmed = self.naive.blocks.values().filter(|b| b.confirmed).map(|b| &b.def);
        assert!(self.blocks.confirmed().eq(confirmed));
        assert_eq!(self.blocks.is_idle(), self.naive.blocks.is_empty());
        assert_eq!(self.pool.usage(), self.addresses.usage());
    }
}

#[test]
fn two_hundred_thousand_operations_answer_as_plain_lists_do() {
    const OPERATIONS: usize = 200_000;
    const SUBNETS: [(&str, u8); 9] = [
        ("10.9.8.0/26", 2),
        ("10.9.8.0/27", 3),
        ("10.9.8.0/28", 0),
        ("10.9.8.0/30", 4),
        ("10.0.0.0/8", 3),
        ("fd00:9::/122", 2),
        ("fd00:9::/127", 1),
        ("fd00:9::/64", 3),
        ("fd00:9::/48", 6),
    ];
    let mut dice = Dice(0x0b_10c5);
    for session in 0..OPERATIONS / 1_000 {
        let (cidr, block_bits) = SUBNETS[session % SUBNETS.len()];
        let mut twins = Twins::new(cidr.parse().unwrap(), block_bits);
        for n in 0..1_000 {
            twins.step(thrown(&mut dice));
            if n % 32 == 0 {
                twins.compare();
            }
        }
        twins.compare();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_short_history_answers_as_plain_lists_do(
        cidr in prop_oneof![
            (26u8..=32).prop_map(|len| Cidr::containing("10.9.8.0".parse().unwrap(), len).unwrap()),
            (122u8..=128).prop_map(|len| Cidr::containing("fd00:9::40".parse().unwrap(), len).unwrap()),
            Just("fd00:9::/64".parse().unwrap()),
        ],
        block_bits in 0u8..5,
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut twins = Twins::new(cidr, block_bits);
        for op in ops {
            twins.step(op);
            twins.compare();
        }
    }
}
