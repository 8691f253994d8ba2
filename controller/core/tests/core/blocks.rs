//! Node-affine blocks.

use std::collections::BTreeSet;

use braid_controller_core::block::Blocks;
use braid_controller_core::pool::{Mark, Pool};
use braid_controller_core::release::Decision;
use braid_types::model::{BlockDef, SubnetDef};
use braid_types::{Cidr, block_name};
use proptest::prelude::*;

use crate::cluster::{address_of, give, lists, ranges, request, start, subnet};

fn block(cidr: &str, node: &str) -> BlockDef {
    let cidr: Cidr = cidr.parse().unwrap();
    BlockDef { name: block_name("s", &cidr), subnet: "s".into(), cidr, node: node.into() }
}

#[derive(Debug, Clone)]
enum Op {
    Take(u8),
    Release(u8),
    Confirm(u8),
    Remove(u8),
    Foreign(u8, u8),
    Sweep,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u8..5).prop_map(Op::Take),
        4 => any::<u8>().prop_map(Op::Release),
        3 => any::<u8>().prop_map(Op::Confirm),
        1 => any::<u8>().prop_map(Op::Remove),
        1 => (any::<u8>(), 0u8..5).prop_map(|(b, n)| Op::Foreign(b, n)),
        1 => Just(Op::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn blocks_never_overlap_and_no_address_stays_out_of_reach(
        cidr in prop_oneof![
            (24u8..=30).prop_map(|len| Cidr::containing("10.9.8.0".parse().unwrap(), len).unwrap()),
            (56u8..=126).prop_map(|len| Cidr::containing("fd00:9::".parse().unwrap(), len).unwrap()),
        ],
        block_bits in 0u8..5,
        holes in any::<bool>(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let bits = cidr.family().bits();
        let mut def = SubnetDef { block_size: (bits - block_bits).max(cidr.prefix_len()), ..subnet("s", "n", &cidr.to_string()) };
        if holes {
            // A range that starts and ends in the middle of a block.
            let usable = cidr.usable();
            let third = def.family().addr(braid_types::Family::number(usable.first()).saturating_add(2));
            let part = braid_types::AddrRange::new(third.min(usable.last()), usable.last()).unwrap();
            def.ranges = vec![part];
        }
        let mut pool = Pool::new(&def);
        let mut blocks = Blocks::default();
        blocks.redefine(Some(&def));
        let mut taken = Vec::new();
        for op in ops {
            match op {
                Op::Take(n) => {
                    let node = format!("n{n}");
                    let before: BTreeSet<Cidr> = blocks.iter().map(|b| b.cidr).collect();
                    let found = blocks.find("s", &node, &pool);
                    prop_assert_eq!(found.is_some(), pool.usage().available > 0);
                    if let Some(found) = found {
                        prop_assert_eq!(pool.mark(found.address), None);
                        if let Some(new) = found.block.as_ref().filter(|b| !before.contains(&b.cidr)) {
                            prop_assert!(before.iter().all(|b| !b.overlaps(&new.cidr)), "{} in {before:?}", new.cidr);
                            prop_assert!(cidr.contains_cidr(&new.cidr));
                        }
                        pool.take(found.address, Mark::Bound);
                        blocks.settle(&found, &node);
                        prop_assert_eq!(blocks.covers(&node, found.address), !found.host_routed);
                        taken.push((found.address, node));
                    }
                }
                Op::Release(n) if !taken.is_empty() => {
                    let (a, _) = taken.swap_remove(usize::from(n) % taken.len());
                    pool.release(a);
                }
                Op::Confirm(n) | Op::Remove(n) => {
                    let all: Vec<BlockDef> = blocks.iter().cloned().collect();
                    if let Some(b) = all.get(usize::from(n) % all.len().max(1)) {
                        if matches!(op, Op::Confirm(_)) { blocks.upsert(b.clone()) } else { blocks.remove(&b.name); }
                    }
                }
                Op::Foreign(n, node) => {
                    // Another controller claimed a block of this grid.
                    let first = braid_types::Family::number(cidr.first()) + (u128::from(n) << block_bits);
                    if let Some(c) = Cidr::containing(cidr.family().addr(first), def.block_size).filter(|c| cidr.contains_cidr(c)) {
                        blocks.upsert(block(&c.to_string(), &format!("n{node}")));
                    }
                }
                Op::Sweep => {
                    let used = |b: &BlockDef| !taken.iter().any(|(a, n)| b.cidr.contains(*a) && *n == b.node);
                    let (due, _) = blocks.take_returnable(0, 0, |_| true, used);
                    for b in due {
                        prop_assert!(used(&b));
                        blocks.remove(&b.name);
                    }
                }
                Op::Release(_) => {}
            }
            let all: Vec<&BlockDef> = blocks.iter().collect();
            for (i, a) in all.iter().enumerate() {
                prop_assert!(all[..i].iter().all(|b| !a.cidr.overlaps(&b.cidr)));
            }
        }
    }
}

#[test]
fn an_empty_block_is_returned_after_its_grace_and_not_drawn_from_meanwhile() {
    let mut def = lists("10.0.0.0/24", "fd00::/120");
    def.subnets.pop();
    let (mut ipam, restored) = start(def);
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    assert!(ipam.sweep_blocks(&restored, 1000).give_back.is_empty());
    ipam.remove_instance(&made[0].name, &made[0].uid);
    let sweep = ipam.sweep_blocks(&restored, 1000);
    assert_eq!((sweep.give_back.len(), sweep.next), (0, Some(1300)));
    assert_eq!(ipam.sweep_blocks(&restored, 1299).next, Some(1300));
    let sweep = ipam.sweep_blocks(&restored, 1300);
    assert_eq!(sweep.give_back.len(), 1);
    let block = sweep.give_back[0].clone();
    let other = give(&mut ipam, &restored, &request(2, "n1"));
    assert!(!block.cidr.contains(other[0].name.address()), "it is on its way out");
    assert_eq!(ipam.sweep_blocks(&restored, 1301).give_back.len(), 1, "until it is gone");
    ipam.remove_block(&block.name);
    assert!(ipam.sweep_blocks(&restored, 1301).give_back.is_empty());
}

#[test]
fn the_empty_block_of_a_node_that_is_gone_is_returned_at_once() {
    let mut def = lists("10.0.0.0/24", "fd00::/120");
    def.subnets.pop();
    let (mut ipam, restored) = start(def);
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    ipam.remove_node("n1");
    assert!(ipam.sweep_blocks(&restored, 5).give_back.is_empty(), "an address is in it");
    ipam.remove_instance(&made[0].name, &made[0].uid);
    assert_eq!(ipam.sweep_blocks(&restored, 5).give_back.len(), 1);
}

#[test]
fn a_block_that_went_to_another_node_leaves_its_addresses_routed_on_their_own() {
    let mut def = lists("10.0.0.0/24", "fd00::/120");
    def.subnets.pop();
    let (mut ipam, restored) = start(def);
    let made = give(&mut ipam, &restored, &request(1, "n1"));
    let lost = ipam.blocks_of("v4").next().unwrap().clone();
    let effects = ipam.upsert_block(BlockDef { node: "n2".into(), ..lost });
    assert!(effects.review.contains(&made[0].name));
    assert_eq!(ipam.decide(&restored, &made[0].name, Default::default(), 0), Some(Decision::RouteByHost));
}

#[test]
fn a_block_partly_outside_the_ranges_serves_what_is_inside() {
    let mut def = lists("10.0.0.0/24", "fd00::/120");
    def.subnets.pop();
    def.subnets[0].ranges = ranges(&["10.0.0.6-10.0.0.9"]);
    let (mut ipam, restored) = start(def);
    let got: Vec<String> = (0..4)
        .map(|n| address_of(&give(&mut ipam, &restored, &request(n, "n1")), braid_types::Family::V4))
        .collect();
    assert_eq!(got, ["10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.9"]);
    assert_eq!(ipam.blocks_of("v4").count(), 2);
}
