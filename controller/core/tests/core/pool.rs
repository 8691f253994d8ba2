//! The pool against a plain set of addresses.

use std::net::IpAddr;

use braid_controller_core::pool::{Mark, Pool, Usage};
use braid_controller_core::status::api_count;
use braid_types::model::SubnetDef;
use braid_types::{AddrRange, Cidr, Family};
use proptest::prelude::*;

use crate::cluster::{ranges, subnet};
use crate::reference::{Dice, Naive};

/// What happens to a pool. Numbers stand for addresses of the Subnet, modulo how many there are to be named.
#[derive(Debug, Clone)]
enum Op {
    TakeNext,
    /// Within a range, at or behind an address that may lie outside of it.
    TakeNextIn(u16, u16, u16),
    TakeByAddress(u16, u16),
    Take(u16, Mark),
    Release(u16),
    /// Ranges, excluded ones, those given out by address only, the gateway.
    Redefine(Vec<(u16, u16)>, Vec<(u16, u16)>, Vec<(u16, u16)>, Option<u16>),
    /// The Subnet is deleted under its addresses.
    Undefine,
    /// A new process takes in what there is, in another order.
    Restart(u16),
}

const MARKS: [Mark; 4] = [Mark::Pending, Mark::Bound, Mark::Reserved, Mark::Releasing];

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u16>;
    let pairs = |n| prop::collection::vec(any::<(u16, u16)>(), 0..n);
    prop_oneof![
        12 => Just(Op::TakeNext),
        6 => (n(), n(), n()).prop_map(|(a, b, from)| Op::TakeNextIn(a, b, from)),
        4 => (n(), n()).prop_map(|(a, b)| Op::TakeByAddress(a, b)),
        6 => (n(), prop::sample::select(&MARKS[..])).prop_map(|(a, m)| Op::Take(a, m)),
        12 => n().prop_map(Op::Release),
        2 => (pairs(4), pairs(3), pairs(2), any::<Option<u16>>())
            .prop_map(|(r, e, s, g)| Op::Redefine(r, e, s, g)),
        1 => Just(Op::Undefine),
        1 => n().prop_map(Op::Restart),
    ]
}

/// The same choice by dice; a Subnet changes less often, so that its pool fills up between two changes.
fn thrown(dice: &mut Dice) -> Op {
    let mut number = || u16::try_from(dice.roll(1 << 16)).unwrap();
    let (kind, a, b) = (number() % 1024, number(), number());
    let mut pairs = |most: u16| (0..number() % most).map(|_| (number(), number())).collect::<Vec<_>>();
    match kind {
        0..5 => Op::Redefine(pairs(5), pairs(4), pairs(3), (a % 2 == 0).then_some(b)),
        5 => Op::Undefine,
        6..8 => Op::Restart(a),
        8..300 => Op::TakeNext,
        300..450 => Op::TakeNextIn(a, b, number()),
        450..550 => Op::TakeByAddress(a, b),
        550..700 => Op::Take(a, MARKS[usize::from(b) % 4]),
        _ => Op::Release(a),
    }
}

/// A pool and the plain set that it is compared with.
struct Twins {
    base: SubnetDef,
    def: Option<SubnetDef>,
    pool: Pool,
    naive: Naive,
}

impl Twins {
    fn new(cidr: &Cidr) -> Self {
        let base = SubnetDef { cidr: *cidr, ..subnet("s", "n", "10.0.0.0/8") };
        let mut naive = Naive::of(cidr);
        naive.redefine(Some(&base));
        Self { pool: Pool::new(&base), def: Some(base.clone()), base, naive }
    }

    fn at(&self, n: u16) -> IpAddr {
        self.naive.named[usize::from(n) % self.naive.named.len()]
    }

    fn range(&self, (a, b): (u16, u16)) -> AddrRange {
        let (a, b) = (self.at(a), self.at(b));
        AddrRange::new(a.min(b), a.max(b)).unwrap()
    }

    /// Both answered the same; what was answered is taken.
    fn same(&mut self, got: Option<IpAddr>, want: Option<IpAddr>, mark: Mark) -> Option<IpAddr> {
        assert_eq!(got, want);
        let a = got.filter(|a| self.naive.is_named(*a))?;
        assert_eq!(self.pool.mark(a), None, "{a} has a holder");
        self.take(a, mark);
        Some(a)
    }

    fn take(&mut self, a: IpAddr, mark: Mark) {
        self.pool.take(a, mark);
        self.naive.take(a, mark);
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::TakeNext => {
                let (got, want) = (self.pool.next_free(), self.naive.next_free());
                if let Some(a) = self.same(got, want, Mark::Pending) {
                    self.pool.advance(a);
                    self.naive.advance(a);
                }
            }
            Op::TakeNextIn(a, b, from) => {
                let (within, from) = (self.range((a, b)), self.at(from));
                let got = self.pool.next_free_in(&within, Some(from));
                self.same(got, self.naive.next_free_in(&within, from), Mark::Bound);
            }
            Op::TakeByAddress(a, b) => {
                let within = self.range((a, b));
                assert_eq!(self.pool.allowed_in(&within), self.naive.allowed_in(&within), "{within}");
                let got = self.pool.next_by_address(&within);
                self.same(got, self.naive.next_by_address(&within), Mark::Bound);
            }
            Op::Take(a, mark) => self.take(self.at(a), mark),
            Op::Release(a) => {
                let a = self.at(a);
                assert_eq!(self.pool.release(a), self.naive.release(a));
                assert_eq!(self.pool.mark(a), None);
            }
            Op::Redefine(ranges, excluded, reserved, gateway) => {
                let list = |l: Vec<(u16, u16)>| l.into_iter().map(|p| self.range(p)).collect();
                let def = SubnetDef {
                    ranges: list(ranges),
                    excluded: list(excluded),
                    reserved: list(reserved),
                    gateway: gateway.map(|g| self.at(g)),
                    ..self.base.clone()
                };
                self.redefine(Some(def));
            }
            Op::Undefine => self.redefine(None),
            Op::Restart(turn) => {
                let mut pool = self.def.as_ref().map_or_else(Pool::unknown, Pool::new);
                let mut objects: Vec<_> = self.naive.taken.iter().collect();
                let by = usize::from(turn) % objects.len().max(1);
                objects.rotate_left(by);
                for (a, mark) in objects {
                    pool.take(*a, *mark);
                }
                self.pool = pool;
                self.naive.forget_what_was_last();
                self.compare();
            }
        }
    }

    fn redefine(&mut self, def: Option<SubnetDef>) {
        self.pool.redefine(def.as_ref());
        self.naive.redefine(def.as_ref());
        self.def = def;
        self.compare();
    }

    /// Everything that can be asked.
    fn compare(&self) {
        let usage = self.naive.usage();
        assert_eq!(self.pool.usage(), usage);
        assert_eq!(self.pool.free_count(), usage.available);
        for count in [usage.total, usage.available] {
            let shown = u128::try_from(api_count(count)).unwrap();
            assert_eq!(shown, count.min(i64::MAX as u128), "what the API shows of {count}");
        }
        assert!(self.pool.taken().eq(self.naive.taken.iter().map(|(a, m)| (*a, *m))));
        assert_eq!(
            (self.pool.held(), self.pool.is_idle()),
            (self.naive.taken.len(), self.naive.taken.is_empty())
        );
        for a in &self.naive.named {
            assert_eq!(self.pool.allows(*a), self.naive.is_allowed(*a), "{a}");
        }
    }
}

/// Without a holder more or less, `total = used + reserved + cooling + available`.
fn adds_up(usage: &Usage) -> bool {
    usage.total == usage.used + usage.reserved + usage.cooling + usage.available
}

#[test]
fn a_million_operations_answer_as_a_plain_set_does() {
    const OPERATIONS: usize = 1_000_000;
    const SUBNETS: [&str; 16] = [
        "10.9.8.7/32",
        "10.9.8.6/31",
        "10.9.8.4/30",
        "10.9.8.0/29",
        "10.9.8.0/26",
        "10.9.8.0/24",
        "10.9.0.0/16",
        "10.0.0.0/8",
        "fd00:9::5/128",
        "fd00:9::4/127",
        "fd00:9::/120",
        "fd00:9::/64",
        "fd00:9::/48",
        "fd00::/16",
        "8000::/1",
        "::/0",
    ];
    let mut dice = Dice(0x_b4a1d);
    for session in 0..OPERATIONS / 2_500 {
        let (address, len) = SUBNETS[session % SUBNETS.len()].split_once('/').unwrap();
        let mut twins =
            Twins::new(&Cidr::containing(address.parse().unwrap(), len.parse().unwrap()).unwrap());
        for n in 0..2_500 {
            twins.step(thrown(&mut dice));
            assert!(adds_up(&twins.pool.usage()), "{:?}", twins.pool.usage());
            if n % 64 == 0 {
                twins.compare();
            }
        }
        twins.compare();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_short_history_answers_as_a_plain_set_does(
        cidr in prop_oneof![
            (24u8..=32).prop_map(|len| Cidr::containing("10.9.8.0".parse().unwrap(), len).unwrap()),
            (120u8..=128).prop_map(|len| Cidr::containing("fd00:9::100".parse().unwrap(), len).unwrap()),
            (16u8..=64).prop_map(|len| Cidr::containing("fd00:9::".parse().unwrap(), len).unwrap()),
        ],
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut twins = Twins::new(&cidr);
        for op in ops {
            twins.step(op);
            twins.compare();
        }
    }
}

#[test]
fn a_huge_subnet_costs_no_more_than_a_small_one() {
    for (cidr, total) in [("fd00::/64", (1u128 << 64) - 1), ("fd00::/16", (1u128 << 112) - 1)] {
        let mut pool = Pool::new(&subnet("s", "n", cidr));
        assert_eq!(pool.usage().total, total);
        for n in 1..=1000u128 {
            let a = pool.next_free().unwrap();
            pool.take(a, Mark::Bound);
            pool.advance(a);
            assert_eq!(Family::number(a) & 0xffff, n);
        }
        assert_eq!(pool.usage().available, total - 1000);
        assert_eq!(pool.free_count(), total - 1000);
    }
}

#[test]
fn a_freed_address_comes_back_last() {
    let mut pool = Pool::new(&subnet("s", "n", "10.0.0.0/29"));
    let mut order = Vec::new();
    for _ in 0..6 {
        let a = pool.next_free().unwrap();
        pool.take(a, Mark::Bound);
        pool.advance(a);
        order.push(a.to_string());
        if order.len() == 2 {
            pool.release("10.0.0.1".parse().unwrap());
        }
    }
    assert_eq!(order, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(pool.next_free().unwrap().to_string(), "10.0.0.1");
    // The one that was given out last and is the highest of all goes to the end of the row as well.
    pool.release("10.0.0.6".parse().unwrap());
    assert_eq!(pool.next_free().unwrap().to_string(), "10.0.0.1");
    let all = "10.0.0.0-10.0.0.6".parse().unwrap();
    assert_eq!(pool.next_free_in(&all, "10.0.0.7".parse().ok()).unwrap().to_string(), "10.0.0.1");
}

#[test]
fn what_shrank_away_is_counted_apart_and_never_given_out() {
    let mut pool = Pool::new(&subnet("s", "n", "10.0.0.0/29"));
    pool.take("10.0.0.6".parse().unwrap(), Mark::Bound);
    let smaller = SubnetDef { ranges: ranges(&["10.0.0.1-10.0.0.2"]), ..subnet("s", "n", "10.0.0.0/29") };
    pool.redefine(Some(&smaller));
    assert_eq!(pool.usage(), Usage { total: 2, available: 2, outside: 1, ..Usage::default() });
    assert!(pool.release("10.0.0.6".parse().unwrap()));
    assert_eq!(pool.usage(), Usage { total: 2, available: 2, ..Usage::default() });
}
