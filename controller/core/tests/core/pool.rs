//! The pool against a plain set of addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_controller_core::pool::{Mark, Pool, Usage};
use braid_types::model::SubnetDef;
use braid_types::{AddrRange, Cidr, Family};
use proptest::prelude::*;

use crate::cluster::{ranges, subnet};

/// The same thing, written down in the simplest way.
#[derive(Debug, Default)]
struct Naive {
    allowed: BTreeSet<IpAddr>,
    on_request: BTreeSet<IpAddr>,
    taken: BTreeMap<IpAddr, Mark>,
}

fn each(range: AddrRange) -> impl Iterator<Item = IpAddr> {
    let family = range.family();
    (Family::number(range.first())..=Family::number(range.last())).map(move |n| family.addr(n))
}

impl Naive {
    fn redefine(&mut self, def: &SubnetDef) {
        let usable = [def.cidr.usable()];
        let given: &[AddrRange] = if def.ranges.is_empty() { &usable } else { &def.ranges };
        let within = |list: &[AddrRange], a: &IpAddr| list.iter().any(|r| r.contains(*a));
        self.allowed = each(def.cidr.range())
            .filter(|a| within(given, a) && !within(&def.excluded, a) && def.gateway != Some(*a))
            .collect();
        self.on_request = self.allowed.iter().filter(|a| within(&def.reserved, a)).copied().collect();
    }

    fn free(&self) -> BTreeSet<IpAddr> {
        let free =
            self.allowed.iter().filter(|a| !self.taken.contains_key(a) && !self.on_request.contains(a));
        free.copied().collect()
    }

    fn usage(&self) -> Usage {
        let count = |marks: &[Mark]| {
            self.taken.iter().filter(|(a, m)| self.allowed.contains(a) && marks.contains(m)).count() as u128
        };
        let asked = self.on_request.iter().filter(|a| !self.taken.contains_key(a)).count() as u128;
        Usage {
            total: self.allowed.len() as u128,
            used: count(&[Mark::Pending, Mark::Bound]),
            reserved: count(&[Mark::Reserved]) + asked,
            cooling: count(&[Mark::Releasing]),
            available: self.free().len() as u128,
            outside: self.taken.keys().filter(|a| !self.allowed.contains(a)).count() as u128,
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    TakeNext,
    TakeNextIn(u8, u8),
    TakeByAddress(u8, u8),
    Take(u8, Mark),
    Release(u8),
    Redefine(Vec<(u8, u8)>, Vec<(u8, u8)>, Vec<(u8, u8)>, Option<u8>),
}

fn mark() -> impl Strategy<Value = Mark> {
    prop_oneof![Just(Mark::Pending), Just(Mark::Bound), Just(Mark::Reserved), Just(Mark::Releasing)]
}

fn op() -> impl Strategy<Value = Op> {
    let pairs = |n| prop::collection::vec(any::<(u8, u8)>(), 0..n);
    prop_oneof![
        6 => Just(Op::TakeNext),
        3 => any::<(u8, u8)>().prop_map(|(a, b)| Op::TakeNextIn(a, b)),
        2 => any::<(u8, u8)>().prop_map(|(a, b)| Op::TakeByAddress(a, b)),
        3 => (any::<u8>(), mark()).prop_map(|(a, m)| Op::Take(a, m)),
        6 => any::<u8>().prop_map(Op::Release),
        1 => (pairs(3), pairs(3), pairs(2), any::<Option<u8>>())
            .prop_map(|(r, e, s, g)| Op::Redefine(r, e, s, g)),
    ]
}

/// Offsets are taken modulo the prefix's size, so every operation means something for every size.
struct Offsets {
    cidr: Cidr,
}

impl Offsets {
    fn at(&self, n: u8) -> IpAddr {
        let n = u128::from(n) % self.cidr.size();
        self.cidr.family().addr(Family::number(self.cidr.first()) + n)
    }

    fn range(&self, (a, b): (u8, u8)) -> AddrRange {
        let (a, b) = (self.at(a), self.at(b));
        AddrRange::new(a.min(b), a.max(b)).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    // 400 cases of up to 500 operations: about 100,000.
    #[test]
    fn behaves_like_a_plain_set(
        cidr in prop_oneof![
            (24u8..=32).prop_map(|len| Cidr::containing("10.9.8.0".parse().unwrap(), len).unwrap()),
            (120u8..=128).prop_map(|len| Cidr::containing("fd00:9::100".parse().unwrap(), len).unwrap()),
        ],
        ops in prop::collection::vec(op(), 0..500),
    ) {
        let base = subnet("s", "n", &cidr.to_string());
        let offsets = Offsets { cidr };
        let mut pool = Pool::new(&base);
        let mut naive = Naive::default();
        naive.redefine(&base);
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::TakeNext => {
                    let got = pool.next_free();
                    prop_assert_eq!(got.is_some(), !naive.free().is_empty());
                    if let Some(a) = got {
                        prop_assert!(naive.free().contains(&a));
                        pool.take(a, Mark::Pending);
                        pool.advance(a);
                        naive.taken.insert(a, Mark::Pending);
                    }
                }
                Op::TakeNextIn(a, b) => {
                    let within = offsets.range((a, b));
                    let got = pool.next_free_in(&within, Some(offsets.at(b)));
                    let free: Vec<IpAddr> = naive.free().into_iter().filter(|a| within.contains(*a)).collect();
                    let want = free.iter().find(|x| **x >= offsets.at(b)).or(free.first());
                    prop_assert_eq!(got.as_ref(), want);
                    if let Some(a) = got {
                        pool.take(a, Mark::Bound);
                        naive.taken.insert(a, Mark::Bound);
                    }
                }
                Op::TakeByAddress(a, b) => {
                    let within = offsets.range((a, b));
                    let got = pool.next_by_address(&within);
                    let allowed = naive.allowed.iter().filter(|a| within.contains(**a));
                    prop_assert_eq!(pool.allowed_in(&within), allowed.clone().count() as u128);
                    prop_assert_eq!(got.as_ref(), allowed.clone().find(|a| !naive.taken.contains_key(a)));
                    if let Some(a) = got {
                        pool.take(a, Mark::Bound);
                        naive.taken.insert(a, Mark::Bound);
                    }
                }
                Op::Take(a, mark) => {
                    pool.take(offsets.at(a), mark);
                    naive.taken.insert(offsets.at(a), mark);
                }
                Op::Release(a) => {
                    let was = naive.taken.remove(&offsets.at(a)).is_some();
                    prop_assert_eq!(pool.release(offsets.at(a)), was);
                }
                Op::Redefine(r, e, s, g) => {
                    let list = |l: Vec<(u8, u8)>| l.into_iter().map(|p| offsets.range(p)).collect();
                    let def = SubnetDef {
                        ranges: list(r),
                        excluded: list(e),
                        reserved: list(s),
                        gateway: g.map(|g| offsets.at(g)),
                        ..base.clone()
                    };
                    pool.redefine(Some(&def));
                    naive.redefine(&def);
                }
            }
            prop_assert_eq!(pool.usage().available, pool.free_count());
            if i % 8 == 0 {
                prop_assert_eq!(pool.usage(), naive.usage());
            }
        }
        prop_assert_eq!(pool.usage(), naive.usage());
        prop_assert_eq!(pool.taken().collect::<BTreeMap<_, _>>(), naive.taken);
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
