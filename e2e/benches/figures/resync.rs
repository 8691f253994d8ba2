//! How fast an agent that starts brings the kernel to what it must be, against the tools of iproute2 doing the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use braid_node_core::desired::Desired;
use braid_node_core::plan;
use braid_node_core::view::{NodeView, host_links};
use braid_node_kernel::{Kernel, Scope, netns};
use braid_types::model::{
    BlockDef, Encapsulation, NetworkDef, NetworkType, NodeDef, NodeNetworkDef, SubnetDef, VtepDef, VxlanDef,
};
use braid_types::{Cidr, Mac, Selector, Vni, vxlan_device_name};

use crate::netns::Namespace;
use crate::report::{Report, median};

/// Other nodes, each with a tunnel end and two blocks.
const NODES: u32 = 5_000;
const BLOCKS: u32 = 2;
const ROUNDS: usize = 5;
const NETWORK: &str = "overlay";
const VNI: i64 = 4;

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "resync",
        "Agent: cold resync of 10,000 routes, 5,000 FDB entries and 5,000 neighbours",
        "A fresh network namespace with one underlay device. The agent's own code reads the kernel, derives what must be \
         there, compares, and writes: the VXLAN device, rules, routes, neighbours, FDB entries and the nftables table. \
         iproute2 gets ready lines for the same objects (without nftables) through `ip -batch` and `bridge -batch`. \
         'Nothing to do' is the same resync again: what the agent does every 60 s. Turns alternate; medians of 5.",
        &["contender", "time", "against iproute2"],
    );
    let view = cluster()?;
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    // Removing a namespace is work for the kernel: none goes before all are measured.
    let mut used = Vec::new();
    for _ in 0..ROUNDS {
        let (batched, synced) = (underlay()?, underlay()?);
        times.entry("batch").or_default().push(batch(&batched)?);
        let (cold, idle) = resync(&synced, view.clone())?;
        times.entry("cold").or_default().push(cold);
        times.entry("idle").or_default().push(idle);
        ensure!(
            census(&batched)? == census(&synced)?,
            "the contenders did different things: {:?} and {:?}",
            census(&batched)?,
            census(&synced)?
        );
        used.extend([batched, synced]);
    }
    let [batch, cold, idle] = ["batch", "cold", "idle"].map(|name| median(&times[name]));
    for (name, time) in [
        ("`ip -batch` and `bridge -batch`", batch),
        ("agent, cold resync", cold),
        ("agent, nothing to do", idle),
    ] {
        report.row([name.to_owned(), format!("{:.0} ms", time * 1e3), format!("{:.2}x", time / batch)]);
    }
    report.keep("seconds", &times)?;
    report.budget(
        "agent cold resync",
        "faster than iproute2",
        format!("{:.2}x its time", cold / batch),
        cold < batch,
    );
    Ok(report)
}

/// Address of a node on the underlay 172.16.0.0/12.
fn node_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0001 + n)
}

/// Address of a node's tunnel end.
fn vtep_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + n * BLOCKS * 64)
}

fn block(n: u32, which: u32) -> Result<Cidr> {
    let first = Ipv4Addr::from(0x0a00_0000 + (n * BLOCKS + which) * 64);
    Cidr::containing(IpAddr::V4(first), 26).context("a block")
}

fn mac(n: u32) -> Mac {
    Mac::derived(&n.to_be_bytes())
}

fn device() -> Result<String> {
    let (name, _) = vxlan_device_name(&"eth0".parse()?, Vni::try_from(VNI)?);
    Ok(name.to_string())
}

fn underlay() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    let lines = [
        "link add eth0 type veth peer name wire".to_owned(),
        "link set wire up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("address add {}/12 dev eth0", node_ip(0)),
        "route add default via 172.31.255.254 dev eth0".to_owned(),
    ];
    namespace.batch("ip", &lines)?;
    Ok(namespace)
}

/// What node 0 knows of a cluster.
fn cluster() -> Result<NodeView> {
    let name = |n: u32| format!("node-{n}");
    let subnet: Cidr = "10.0.0.0/8".parse()?;
    let mut view = NodeView { node: name(0), ..NodeView::default() };
    let vxlan = VxlanDef { vni: Vni::try_from(VNI)?, port: 8472, encapsulation: Encapsulation::Always };
    let network = NetworkDef {
        name: NETWORK.to_owned(),
        created: 0,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: Vec::new(),
        vxlan: Some(vxlan),
        vlan: None,
        ready: true,
        deleting: false,
    };
    let subnet = SubnetDef {
        name: "pods".to_owned(),
        created: 0,
        network: NETWORK.to_owned(),
        cidr: subnet,
        gateway: None,
        ranges: Vec::new(),
        excluded: Vec::new(),
        reserved: Vec::new(),
        vlan: None,
        block_size: 26,
        private: false,
        nat_outgoing: false,
        routing_table: None,
        ready: true,
        deleting: false,
    };
    view.networks.insert(NETWORK.to_owned(), network);
    view.subnets.insert(subnet.name.clone(), subnet);
    view.vteps.insert(NETWORK.to_owned(), BTreeSet::from([IpAddr::V4(vtep_ip(0))]));
    for n in 1..=NODES {
        let vtep = VtepDef {
            ip: IpAddr::V4(node_ip(n)),
            links: vec!["172.16.0.0/12".parse()?],
            mac: mac(n),
            addresses: vec![IpAddr::V4(vtep_ip(n))],
        };
        let network = NodeNetworkDef {
            network: NETWORK.to_owned(),
            ready: true,
            parent: Some("eth0".parse()?),
            mtu: Some(1450),
            vtep: Some(vtep),
        };
        view.nodes.insert(name(n), NodeDef { node: name(n), networks: vec![network] });
        for which in 0..BLOCKS {
            let cidr = block(n, which)?;
            let block = BlockDef {
                name: braid_types::block_name("pods", &cidr),
                subnet: "pods".to_owned(),
                cidr,
                node: name(n),
            };
            view.blocks.insert(block.name.clone(), block);
        }
    }
    Ok(view)
}

/// Seconds for a cold resync, and for one that finds nothing to do.
fn resync(namespace: &Namespace, mut view: NodeView) -> Result<(f64, f64)> {
    netns::within(&namespace.path(), move || {
        let kernel = Kernel::open()?;
        view.families.clone_from(kernel.families());
        let mut once = |first: bool| -> Result<f64> {
            let begun = Instant::now();
            view.links = host_links(&kernel.dump(&Scope::links())?);
            let desired = Desired::of(&view);
            let plan = plan::diff(&desired, &kernel.dump(&Scope::all(&desired))?);
            let report = kernel.apply(&plan);
            let took = begun.elapsed().as_secs_f64();
            ensure!(report.is_clean(), "a step failed: {:?}", report.failed.first());
            ensure!(first != plan.is_empty(), "{} steps", plan.steps.len());
            Ok(took)
        };
        Ok((once(true)?, once(false)?))
    })
    .map_err(|error| anyhow!(error))?
}

/// Seconds for the same by hand. The lines are written before the clock starts.
fn batch(namespace: &Namespace) -> Result<f64> {
    let device = device()?;
    let mut ip = vec![
        format!(
            "link add {device} address {} type vxlan id {VNI} dev eth0 local {} dstport 8472 nolearning",
            mac(0),
            node_ip(0)
        ),
        format!("link set {device} mtu 1450 up"),
        format!("address add {}/32 dev {device}", vtep_ip(0)),
        "rule add priority 1 table 39999".to_owned(),
        "rule add priority 3 table 40000".to_owned(),
        "route add unreachable 10.0.0.0/8 table 40000 proto 176".to_owned(),
    ];
    let mut fdb = Vec::new();
    for n in 1..=NODES {
        ip.push(format!("neighbour replace {} lladdr {} dev {device} nud permanent", vtep_ip(n), mac(n)));
        fdb.push(format!("fdb append {} dev {device} dst {} self permanent", mac(n), node_ip(n)));
        for which in 0..BLOCKS {
            ip.push(format!(
                "route add {} via {} dev {device} onlink src {} table 40000 proto 176",
                block(n, which)?,
                vtep_ip(n),
                vtep_ip(0)
            ));
        }
    }
    let begun = Instant::now();
    namespace.batch("ip", &ip)?;
    namespace.batch("bridge", &fdb)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Routes, neighbours and forwarding entries of a namespace.
fn census(namespace: &Namespace) -> Result<[usize; 3]> {
    let device = device()?;
    let count = |tool: &str, arguments: &[&str]| -> Result<usize> {
        let mut command = std::process::Command::new(tool);
        Ok(crate::netns::checked(command.args(["-n", namespace.name()]).args(arguments))?.lines().count())
    };
    Ok([
        count("ip", &["route", "show", "table", "40000"])?,
        count("ip", &["neighbour", "show", "dev", &device, "nud", "permanent"])?,
        count("bridge", &["fdb", "show", "dev", &device])?,
    ])
}
