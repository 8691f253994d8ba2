//! The cluster's pod network when Braid is not installed: the reference plugins `ptp` and `host-local` on each node's
//! own range, with a route to every node. It is what Braid is compared with.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::components::{Plan, cni_conf};
use crate::exec::{command, eventually, run, run_with_input};
use crate::layout::{Family, Layout, Node};
use crate::network::in_netns;
use crate::parts::kubectl_json;

/// Pod ranges of each node, in the order of the cluster's families.
type Ranges = BTreeMap<String, Vec<String>>;

/// Waits until the nodes have their ranges, then makes pods possible on all of them.
pub(crate) fn install(plan: &Plan<'_>) -> Result<()> {
    let families = plan.families();
    let wanted: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
    let ranges = eventually("pod ranges of all nodes", Duration::from_secs(60), || {
        let nodes = kubectl_json(plan.programs, &plan.layout.kubeconfig(), &["get", "nodes"])?;
        let ranges = ranges(&nodes);
        let complete = |name: &&str| ranges.get(*name).is_some_and(|list| list.len() == families.len());
        Ok(wanted.iter().all(complete).then_some(ranges))
    })?;
    for node in plan.nodes {
        node_routes(plan.layout, plan.nodes, node, families, &ranges)?;
        let file = cni_conf(plan.layout, &node.name).join("10-reference.conflist");
        let own = ranges.get(&node.name).context("a node without ranges")?;
        let text = serde_json::to_vec_pretty(&conflist(own))?;
        // By rename: the runtime watches the folder and must not read half a file.
        let partial = file.with_extension("partial");
        fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    router_routes(plan, &ranges)
}

fn ranges(nodes: &Value) -> Ranges {
    let items = nodes["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|cidr| cidr.as_str().map(str::to_owned)).collect()
    };
    items
        .iter()
        .filter_map(|node| {
            Some((node["metadata"]["name"].as_str()?.to_owned(), strings(&node["spec"]["podCIDRs"])))
        })
        .collect()
}

fn conflist(ranges: &[String]) -> Value {
    let routes =
        ranges.iter().map(|range| json!({"dst": if range.contains(':') { "::/0" } else { "0.0.0.0/0" }}));
    json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges.iter().map(|range| json!([{"subnet": range}])).collect::<Vec<_>>(),
                    "routes": routes.collect::<Vec<_>>(),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn route_lines(node: &Node, families: &[Family], ranges: &Ranges) -> Result<Vec<String>> {
    let Some(own) = ranges.get(&node.name) else { bail!("{} has no pod ranges", node.name) };
    Ok(families
        .iter()
        .zip(own)
        .map(|(family, range)| format!("route replace {range} via {}", node.address(*family)))
        .collect())
}

/// Routes to the nodes of the same rack; the way to other racks is the default route. Pods go out with their node's
/// address, as the world has no route to them.
fn node_routes(
    layout: &Layout,
    nodes: &[Node],
    node: &Node,
    families: &[Family],
    ranges: &Ranges,
) -> Result<()> {
    let mut lines = Vec::new();
    for other in nodes.iter().filter(|other| other.rack == node.rack && other.name != node.name) {
        lines.extend(route_lines(other, families, ranges)?);
    }
    let netns = layout.netns(&node.name);
    batch(&netns, &lines)?;
    let mut rules = "add table inet sandbox-reference\ndelete table inet sandbox-reference\n".to_owned();
    rules += "add table inet sandbox-reference\n";
    rules +=
        "add chain inet sandbox-reference out { type nat hook postrouting priority 110; policy accept; }\n";
    for family in families {
        let word = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let (pods, nodes) = (family.pod_cidr(), family.node_cidr());
        rules += &format!(
            "add rule inet sandbox-reference out oifname eth0 {word} saddr {pods} {word} daddr != {{ {pods}, {nodes} }} masquerade\n"
        );
    }
    run_with_input(&mut in_netns(&netns, &["nft", "-f", "-"]), rules.as_bytes()).map(drop)
}

fn router_routes(plan: &Plan<'_>, ranges: &Ranges) -> Result<()> {
    let mut lines = Vec::new();
    for node in plan.nodes {
        lines.extend(route_lines(node, plan.families(), ranges)?);
    }
    batch(&plan.layout.netns("router"), &lines)
}

fn batch(netns: &str, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = lines.join("\n") + "\n";
    run_with_input(&mut command(["ip", "-n", netns, "-batch", "-"]), text.as_bytes()).map(drop)
}

/// Loads CNI plugins into a node, as the runtime's package does on a real one.
pub(crate) fn install_plugins(plan: &Plan<'_>, node: &Node) -> Result<()> {
    let folder = crate::components::cni_bin(plan.layout, &node.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::create_dir_all(cni_conf(plan.layout, &node.name))?;
    let mut copy = command(["cp", "--reflink=auto", "-t"]);
    copy.arg(&folder);
    for entry in fs::read_dir(&plan.programs.cni).context("cannot list the CNI plugins")? {
        let path = entry?.path();
        if crate::components::is_plugin(&path) {
            copy.arg(path);
        }
    }
    run(&mut copy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_node_objects() {
        let nodes = json!({"items": [
            {"metadata": {"name": "node1"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"]}},
            {"metadata": {"name": "node2"}, "spec": {}},
        ]});
        let ranges = ranges(&nodes);
        assert_eq!(ranges["node1"], ["10.244.0.0/24", "fd00:10:244::/64"]);
        assert!(ranges["node2"].is_empty());
    }

    #[test]
    fn the_conflist_has_a_range_and_a_default_route_per_family() {
        let list = conflist(&["10.244.0.0/24".to_owned(), "fd00:10:244::/64".to_owned()]);
        let ipam = &list["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"][1][0]["subnet"], "fd00:10:244::/64");
        assert_eq!(ipam["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
    }
}
