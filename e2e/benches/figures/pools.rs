//! The controller's memory of addresses: how long it takes to build, and whether an allocation stays cheap when the
//! subnet is large and nearly full.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use braid_controller_core::ipam::Lists;
use braid_controller_core::pool::{Mark, Pool};
use braid_controller_core::{Config, Ipam, NodeFact, PodFact};
use braid_types::model::{
    BlockDef, Encapsulation, InstanceDef, NetworkDef, NetworkType, Phase, PodRef, SubnetDef, VxlanDef,
};
use braid_types::{Cidr, InstanceName, Mac, Selector, Vni};
use serde_json::json;

use crate::report::{Report, median};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const ROUNDS: usize = 5;
/// Allocations per measurement.
const TURNS: u32 = 20_000;
const BLOCK: usize = 64;

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "pools",
        "Address pools: rebuild, and allocation when 99 % are taken",
        "Rebuild: the controller's whole address memory (Network, Subnet, blocks of 64, one pod per address) from lists, \
         as at its start. Allocation: the next free address is taken and another one is released, in a pool of which one \
         address in a hundred is free, spread evenly: the worst case for a structure that keeps intervals. Medians of 5.",
        &["addresses", "rebuild", "per address", "allocate + release at 99 %", "against 1,000"],
    );
    let (mut rebuilds, mut allocations) = (BTreeMap::new(), BTreeMap::new());
    // Sizes take turns.
    for _ in 0..ROUNDS {
        for size in SIZES {
            rebuilds.entry(size).or_insert_with(Vec::new).push(rebuild(size)?);
            allocations.entry(size).or_insert_with(Vec::new).push(allocate(size)?);
        }
    }
    let base = median(&allocations[&SIZES[0]]);
    for size in SIZES {
        let (rebuild, allocation) = (median(&rebuilds[&size]), median(&allocations[&size]));
        report.row([
            grouped(size),
            format!("{:.1} ms", rebuild * 1e3),
            format!("{:.2} us", rebuild * 1e6 / size as f64),
            format!("{:.0} ns", allocation * 1e9),
            format!("{:.2}x", allocation / base),
        ]);
    }
    report.keep("rebuild, seconds", &rebuilds)?;
    report.keep("allocate and release, seconds", &allocations)?;
    report.samples.insert("rounds".to_owned(), json!(ROUNDS));
    let hundred_thousand = median(&rebuilds[&100_000]);
    report.budget(
        "rebuild of 100,000 addresses",
        "< 1 s",
        format!("{hundred_thousand:.2} s"),
        hundred_thousand < 1.0,
    );
    // O(log n) with n = intervals: log2(10,000) / log2(10) is 4; caches that grow cold are granted as much again.
    let growth = median(&allocations[&1_000_000]) / base;
    report.budget(
        "allocation, 1,000 to 1,000,000 addresses",
        "O(log n): at most 8x",
        format!("{growth:.2}x"),
        growth <= 8.0,
    );
    Ok(report)
}

fn grouped(number: usize) -> String {
    if number < 1_000_000 {
        format!("{},000", number / 1000)
    } else {
        format!("{},000,000", number / 1_000_000)
    }
}

fn address(n: usize) -> Result<IpAddr> {
    // 10.0.0.0/8; the first address of a subnet is not given out.
    Ok(IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + u32::try_from(n)?)))
}

fn subnet(size: usize) -> Result<SubnetDef> {
    let bits = u8::try_from(usize::BITS - (size + 2).leading_zeros())?;
    let cidr: Cidr = format!("10.0.0.0/{}", 32 - bits).parse()?;
    Ok(SubnetDef {
        name: "big".to_owned(),
        created: 0,
        network: "overlay".to_owned(),
        ranges: vec![format!("{}-{}", address(0)?, address(size - 1)?).parse()?],
        cidr,
        gateway: None,
        excluded: Vec::new(),
        reserved: Vec::new(),
        vlan: None,
        block_size: 26,
        private: false,
        nat_outgoing: false,
        routing_table: None,
        ready: true,
        deleting: false,
    })
}

fn network() -> Result<NetworkDef> {
    Ok(NetworkDef {
        name: "overlay".to_owned(),
        created: 0,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: Vec::new(),
        vxlan: Some(VxlanDef { vni: Vni::try_from(4)?, port: 8472, encapsulation: Encapsulation::Always }),
        vlan: None,
        ready: true,
        deleting: false,
    })
}

fn lists(size: usize) -> Result<Lists> {
    let node = |n: usize| format!("node-{}", n / BLOCK);
    let mut lists = Lists { networks: vec![network()?], subnets: vec![subnet(size)?], ..Lists::default() };
    for n in 0..size {
        let address = address(n)?;
        if n % BLOCK == 0 {
            let cidr = Cidr::containing(address, 26).context("a block")?;
            lists.nodes.push(NodeFact {
                name: node(n),
                uid: node(n),
                labels: BTreeMap::new(),
                addresses: Vec::new(),
            });
            lists.blocks.push(BlockDef {
                name: braid_types::block_name("big", &cidr),
                subnet: "big".to_owned(),
                cidr,
                node: node(n),
            });
        }
        let pod = PodRef {
            namespace: "shop".into(),
            name: format!("web-{n}").into(),
            uid: format!("pod-{n}").into(),
        };
        lists.pods.push(PodFact { uid: pod.uid.clone(), finished: false, created: 0 });
        lists.instances.push(Arc::new(InstanceDef {
            name: InstanceName::new("", address),
            uid: format!("uid-{n}").into(),
            network: "overlay".into(),
            subnet: "big".into(),
            prefix_len: 8,
            gateway: None,
            mac: Some(Mac::derived(pod.uid.as_bytes())),
            pod: Some(pod),
            interface: "eth0".into(),
            node: Some(node(n).into()),
            set: [address].into(),
            owner: None,
            retain_seconds: None,
            retain_until: None,
            reserved_at: None,
            declared: false,
            attached: false,
            phase: Phase::Bound,
            torn_down: None,
            release_at: None,
            handover: None,
            host_routed: false,
            deleting: false,
        }));
    }
    Ok(lists)
}

/// Seconds from lists to an allocator that can answer.
fn rebuild(size: usize) -> Result<f64> {
    let lists = lists(size)?;
    let begun = Instant::now();
    let (ipam, restored) = Ipam::restore(Config::default(), lists, 0);
    let took = begun.elapsed().as_secs_f64();
    black_box((&ipam, &restored));
    Ok(took)
}

/// Seconds for one allocation and one release.
fn allocate(size: usize) -> Result<f64> {
    let mut pool = Pool::new(&subnet(size)?);
    for n in (0..size).filter(|n| n % 100 != 50) {
        pool.take(address(n)?, Mark::Bound);
    }
    // What is released is never next to what is free: the number of intervals stays.
    let mut released: Vec<IpAddr> =
        (0..size).filter(|n| n % 100 == 10).map(address).collect::<Result<_>>()?;
    let begun = Instant::now();
    for turn in 0..TURNS {
        let address = pool.next_free().context("a free address")?;
        pool.take(address, Mark::Pending);
        pool.advance(address);
        let at = (turn as usize).wrapping_mul(7919) % released.len();
        pool.release(std::mem::replace(&mut released[at], address));
    }
    let took = begun.elapsed().as_secs_f64();
    black_box(&pool);
    ensure!(pool.usage().available == pool.free_count(), "the pool lost count");
    Ok(took / f64::from(TURNS))
}
