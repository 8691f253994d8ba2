//! Nodes, and what their agents say about them.

use braid_api::NodeNetwork;
use braid_api::slim::Node;
use braid_controller_core::{Effects, NodeFact};
use braid_informer::Event;
use braid_types::model::NodeDef;
use kube::ResourceExt;
use tracing::warn;

use super::Index;
use crate::world::Sweep;

/// Of what the agents say.
const KIND: &str = "NodeNetwork";

/// What counts of a Node.
pub(super) fn news(raw: Node) -> NodeFact {
    NodeFact {
        name: raw.name_any(),
        uid: raw.metadata.uid.unwrap_or_default(),
        labels: raw.metadata.labels.unwrap_or_default(),
        // Host names are among them.
        addresses: raw.status.addresses.iter().filter_map(|a| a.address.parse().ok()).collect(),
    }
}

pub(super) fn handle(index: &Index, event: Event<NodeFact>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => world.ipam.reset_nodes(all.iter().map(|n| NodeFact::clone(n)).collect()),
        Event::Applied(node) => world.ipam.upsert_node(NodeFact::clone(&node)),
        Event::Deleted(node) => world.ipam.remove_node(&node.name),
        Event::Undecodable(object) => return index.unreadable("nodes", &object),
    };
    if effects != Effects::default() {
        index.shared.queues.sweeps.add_after(Sweep::Blocks, super::SWEEP_DELAY);
    }
    index.shared.dispatch(&world, effects);
}

/// Which Networks a node has, and whether they are ready there.
pub(super) fn network_news(raw: &NodeNetwork) -> NodeDef {
    NodeDef::try_from(raw).unwrap_or_else(|error| {
        warn!(%error, "what the agent says about its node is left out");
        NodeDef { node: raw.name_any(), networks: Vec::new() }
    })
}

pub(super) fn handle_networks(index: &Index, event: Event<NodeDef>) {
    let mut world = index.shared.world();
    let mut effects = Effects::default();
    match event {
        Event::Reset(all) => {
            world.unreadable.listed(KIND);
            world.node_networks = all.iter().map(|n| (n.node.clone(), NodeDef::clone(n))).collect();
            effects.networks = world.networks.keys().cloned().collect();
        }
        Event::Applied(node) => {
            world.unreadable.forget(KIND, &node.node);
            effects.networks = touched(&node);
            let old = world.node_networks.insert(node.node.clone(), NodeDef::clone(&node));
            effects.networks.extend(old.iter().flat_map(touched));
        }
        Event::Deleted(node) => {
            world.unreadable.forget(KIND, &node.node);
            effects.networks = touched(&node);
            world.node_networks.remove(&node.node);
        }
        Event::Undecodable(object) => {
            return index.unreadable_own(&mut world, "nodenetworks", KIND, &object);
        }
    }
    index.shared.dispatch(&world, effects);
}

fn touched(node: &NodeDef) -> std::collections::BTreeSet<String> {
    node.networks.iter().map(|n| n.network.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_addresses_are_those_that_are_no_names() {
        let raw = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "uid": "u"},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.5"}, {"type": "InternalIP", "address": "fd00::5"},
                {"type": "ExternalIP", "address": "203.0.113.5"}, {"type": "Hostname", "address": "n1"},
            ]},
        }));
        let addresses: Vec<String> = news(raw.unwrap()).addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.5", "fd00::5", "203.0.113.5"]);
    }
}
