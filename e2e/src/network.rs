//! The network of a cluster: a bridge per rack in the namespace `fabric`, a router between the racks, a namespace per
//! node, and one link to the machine for kubectl.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use crate::exec::{command, run, run_with_input};
use crate::layout::{Family, Layout, Node, router};
use crate::options::Options;

/// Commands for `ip -batch`, per network namespace.
#[derive(Default)]
struct Batches(BTreeMap<String, Vec<String>>);

impl Batches {
    fn add(&mut self, netns: &str, line: String) {
        self.0.entry(netns.to_owned()).or_default().push(line);
    }
}

/// The namespaces of a cluster, nodes included.
fn scopes(nodes: &[Node]) -> Vec<String> {
    let fixed = ["fabric", "router"].map(str::to_owned);
    fixed.into_iter().chain(nodes.iter().map(|node| node.name.clone())).collect()
}

/// Makes everything; nothing of it may exist yet.
pub(crate) fn create(layout: &Layout, options: &Options, nodes: &[Node]) -> Result<()> {
    let (host_end, _) = layout.host_link_addresses();
    refuse_taken_subnet(host_end)?;
    for scope in scopes(nodes) {
        run(&mut command(["ip", "netns", "add", &layout.netns(&scope)]))?;
    }
    let mut batches = Batches::default();
    let fabric = layout.netns("fabric");
    let router_netns = layout.netns("router");
    for rack in 1..=options.racks {
        batches.add(&fabric, format!("link add rack{rack} type bridge stp_state 0 forward_delay 0"));
        batches.add(&fabric, format!("link set rack{rack} up"));
        batches.add(
            &fabric,
            format!("link add router{rack} type veth peer name rack{rack} netns {router_netns}"),
        );
        batches.add(&fabric, format!("link set router{rack} master rack{rack} up"));
        batches.add(&router_netns, format!("link set rack{rack} up"));
        for family in options.families() {
            let address = router(rack, *family);
            let prefix = family.rack_prefix();
            batches
                .add(&router_netns, format!("addr add {address}/{prefix} dev rack{rack}{}", nodad(*family)));
        }
    }
    batches.add(&router_netns, "link set lo up".to_owned());
    for family in options.families() {
        let prefix = family.host_prefix();
        batches
            .add(&router_netns, format!("addr add {}/{prefix} dev lo{}", family.internet(), nodad(*family)));
    }
    batches.add(&fabric, "link set lo up".to_owned());
    // Commands of a namespace may name links that another one's commands make, so the fabric comes first.
    apply(&batches, &fabric)?;
    apply(&batches, &router_netns)?;
    forward(&router_netns)?;
    for node in nodes {
        create_node(layout, options, node)?;
    }
    create_host_link(layout)
}

/// Makes the links of one node, whose empty namespace exists.
pub(crate) fn create_node(layout: &Layout, options: &Options, node: &Node) -> Result<()> {
    let fabric = layout.netns("fabric");
    let netns = layout.netns(&node.name);
    let mut batches = Batches::default();
    let (name, rack, mac) = (&node.name, node.rack, node.mac());
    batches.add(&fabric, format!("link add {name} type veth peer name eth0 address {mac} netns {netns}"));
    batches.add(&fabric, format!("link set {name} master rack{rack} up"));
    batches.add(&netns, "link set lo up".to_owned());
    batches.add(&netns, "link set eth0 up".to_owned());
    for family in options.families() {
        let (address, prefix) = (node.address(*family), family.rack_prefix());
        batches.add(&netns, format!("addr add {address}/{prefix} dev eth0{}", nodad(*family)));
        // Router advertisements are not used: what a node routes must not depend on when one arrives.
        batches.add(&netns, format!("route add default via {} dev eth0", router(rack, *family)));
    }
    apply(&batches, &fabric)?;
    apply(&batches, &netns)?;
    forward(&netns)
}

/// Removes one node's namespace, and with it all that was made in there, and makes an empty one.
pub(crate) fn reset_node(layout: &Layout, node: &Node) -> Result<()> {
    delete_netns(&layout.netns(&node.name))?;
    // The namespace's links go when the kernel gets to it; the name must be free before that.
    let fabric = layout.netns("fabric");
    let _ = run(&mut command(["ip", "-n", &fabric, "link", "del", &node.name]));
    run(&mut command(["ip", "netns", "add", &layout.netns(&node.name)])).map(drop)
}

fn create_host_link(layout: &Layout) -> Result<()> {
    let (host, node) = layout.host_link_addresses();
    let (link, netns) = (layout.host_link(), layout.netns("node1"));
    let machine = format!(
        "link add {link} type veth peer name host0 netns {netns}\naddr add {host}/30 dev {link}\nlink set {link} up\n"
    );
    run_with_input(&mut command(["ip", "-batch", "-"]), machine.as_bytes())?;
    let inside = format!("addr add {node}/30 dev host0\nlink set host0 up\n");
    run_with_input(&mut command(["ip", "-n", &netns, "-batch", "-"]), inside.as_bytes()).map(drop)
}

/// The one subnet outside namespaces must not hide something of the machine.
fn refuse_taken_subnet(address: Ipv4Addr) -> Result<()> {
    let routes = run(&mut command([
        "ip",
        "-4",
        "-o",
        "route",
        "show",
        "table",
        "all",
        "match",
        &address.to_string(),
    ]))?;
    if let Some(route) = routes.lines().find(|line| !line.starts_with("default")) {
        bail!(
            "this machine already routes {address} ('{}'), which the sandbox needs for its API server",
            route.trim()
        );
    }
    Ok(())
}

/// Addresses are unique by construction, so duplicate detection would only cost time.
fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

fn apply(batches: &Batches, netns: &str) -> Result<()> {
    let Some(lines) = batches.0.get(netns) else { return Ok(()) };
    let text = lines.join("\n") + "\n";
    run_with_input(&mut command(["ip", "-n", netns, "-batch", "-"]), text.as_bytes())
        .with_context(|| format!("network namespace {netns}"))
        .map(drop)
}

fn forward(netns: &str) -> Result<()> {
    let settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
    run(&mut command(["ip", "netns", "exec", netns, "sysctl", "-q", "-w"].into_iter().chain(settings)))
        .map(drop)
}

/// Removes all namespaces and links of the cluster, including those of an earlier one with more nodes.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    let _ = run(&mut command(["ip", "link", "del", &layout.host_link()]));
    for netns in existing(layout) {
        delete_netns(&netns)?;
    }
    Ok(())
}

/// Namespaces of the cluster that exist.
pub(crate) fn existing(layout: &Layout) -> Vec<String> {
    let prefix = layout.netns("");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // "braid-a-" is also the beginning of the namespaces of a cluster "a-b".
    let scope = |name: &str| {
        name.strip_prefix(&prefix).is_some_and(|rest| {
            let number = rest.strip_prefix("node").unwrap_or_default();
            rest == "fabric"
                || rest == "router"
                || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    names.filter(|name| scope(name)).collect()
}

fn delete_netns(netns: &str) -> Result<()> {
    run(&mut command(["ip", "netns", "del", netns])).map(drop)
}

/// Cuts two nodes off from each other, in both directions, without touching anything inside them.
pub(crate) fn partition(layout: &Layout, a: &Node, b: &Node, families: &[Family]) -> Result<()> {
    heal(layout, a, b)?;
    let table = partition_table(a, b);
    let mut rules = format!("add table netdev {table}\n");
    for (from, to) in [(a, b), (b, a)] {
        let (port, chain) = (&from.name, format!("from-{}", from.name));
        rules += &format!(
            "add chain netdev {table} {chain} {{ type filter hook ingress device {port} priority 0; policy accept; }}\n"
        );
        // Within a rack the frame names the other node, whatever it carries; through the router the packet does.
        rules += &format!("add rule netdev {table} {chain} ether daddr {} drop\n", to.mac());
        for family in families {
            let (word, address) = match family {
                Family::V4 => ("ip", to.address(*family)),
                Family::V6 => ("ip6", to.address(*family)),
            };
            rules += &format!("add rule netdev {table} {chain} {word} daddr {address} drop\n");
        }
    }
    run_with_input(&mut in_netns(&layout.netns("fabric"), &["nft", "-f", "-"]), rules.as_bytes()).map(drop)
}

/// Undoes [`partition`]; two nodes that were never cut off are fine.
pub(crate) fn heal(layout: &Layout, a: &Node, b: &Node) -> Result<()> {
    let table = partition_table(a, b);
    // "add" first makes "delete" succeed in either case.
    let rules = format!("add table netdev {table}\ndelete table netdev {table}\n");
    run_with_input(&mut in_netns(&layout.netns("fabric"), &["nft", "-f", "-"]), rules.as_bytes()).map(drop)
}

fn partition_table(a: &Node, b: &Node) -> String {
    let (low, high) = if a.number < b.number { (a, b) } else { (b, a) };
    format!("partition-{}-{}", low.name, high.name)
}

/// A call inside a network namespace that has no processes of its own to enter.
pub(crate) fn in_netns(netns: &str, argv: &[&str]) -> std::process::Command {
    command(["ip", "netns", "exec", netns].into_iter().chain(argv.iter().copied()))
}
