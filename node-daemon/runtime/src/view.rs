//! The one place where the index becomes what the core decides from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_node_core::view::{Attachment, HostRouted, NodeView};
use braid_types::IfName;
use braid_types::model::SubnetDef;

use crate::index::Index;

/// Everything of the view that does not come from the kernel.
///
/// Without the node's own Node object no Network counts, because membership goes by its labels.
pub(crate) fn build(node: &str, index: &Index, mut attachments: BTreeMap<IfName, Attachment>) -> NodeView {
    attachments.values_mut().for_each(|a| a.silent = index.held_by_others(a));
    let own = index.node.get(node);
    let member = |labels| {
        let usable = index.networks.values().filter(|n| n.ready);
        usable.filter(move |n| n.nodes.matches(labels)).map(|n| (n.name.clone(), n.clone()))
    };
    let mut vteps: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for (network, address) in index.vteps() {
        vteps.entry(network.to_string()).or_default().insert(address);
    }
    // A Subnet that the controller has not found usable takes no part: its prefix may be another Subnet's, or wrong.
    // Where pods have addresses of it from before, its blocks say so.
    let held: BTreeSet<&str> = index.blocks.values().map(|b| b.subnet.as_str()).collect();
    // An underlay has no blocks: there it is the pods of this node themselves.
    let has_pods = |s: &SubnetDef| {
        let mut of_network = attachments.values().filter(|a| a.network == s.network);
        of_network.any(|a| a.addresses.iter().any(|address| s.cidr.contains(*address)))
    };
    let subnets = index
        .subnets
        .values()
        .filter(|s| s.ready || held.contains(s.name.as_str()) || has_pods(s))
        .map(|s| (s.name.clone(), s.clone()))
        .collect();
    let underlays = index.networks.values().filter(|n| !n.kind.is_overlay());
    let elsewhere = index.host_routed.values().filter(|d| d.host_routed && d.node.as_deref() != Some(node));
    NodeView {
        node: node.to_owned(),
        node_ips: own.map(|n| n.addresses.clone()).unwrap_or_default(),
        networks: own.map(|n| member(&n.labels).collect()).unwrap_or_default(),
        underlays: underlays.map(|n| n.name.clone()).collect(),
        vteps,
        subnets,
        blocks: index.blocks.values().map(|b| (b.name.clone(), b.clone())).collect(),
        nodes: index.nodes.values().map(|n| (n.node.clone(), n.clone())).collect(),
        host_routed: elsewhere
            .filter_map(|d| {
                let routed = HostRouted { network: d.network.to_string(), node: d.node.clone()?.to_string() };
                Some((d.name.address(), routed))
            })
            .collect(),
        attachments,
        ..NodeView::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments;
    use crate::index::tests::{applied, instance};
    use crate::index::{Change, OwnNode};
    use braid_types::model::{BlockDef, NetworkDef, NetworkType};
    use braid_types::{Operator, Requirement, Selector};

    fn network(name: &str, ready: bool, zone: Option<&str>) -> NetworkDef {
        let in_zone =
            |z: &str| Requirement { key: "zone".into(), operator: Operator::In, values: vec![z.to_owned()] };
        NetworkDef {
            name: name.into(),
            created: 0,
            kind: NetworkType::Vxlan,
            default: false,
            nodes: Selector {
                match_expressions: zone.map(in_zone).into_iter().collect(),
                ..Selector::default()
            },
            namespaces: None,
            mtu: None,
            space: String::new(),
            interfaces: vec![],
            vxlan: None,
            vlan: None,
            ready,
            deleting: false,
        }
    }

    #[test]
    fn only_ready_networks_of_which_the_node_is_a_member_count() {
        let mut index = Index::default();
        for n in [
            network("all", true, None),
            network("here", true, Some("a")),
            network("there", true, Some("b")),
            network("unready", false, None),
        ] {
            index.networks.apply(Change::Applied(n.name.clone(), Ok(n)));
        }
        assert!(build("n1", &index, BTreeMap::new()).networks.is_empty(), "no Node object, no labels");
        let node = OwnNode {
            name: "n1".into(),
            uid: "x".into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            addresses: vec![],
            network_unavailable: None,
        };
        index.node.apply(Change::Applied("n1".into(), Ok(node)));
        let view = build("n1", &index, BTreeMap::new());
        assert_eq!(view.networks.keys().collect::<Vec<_>>(), ["all", "here"]);
    }

    #[test]
    fn an_interface_is_silent_where_another_pod_holds_its_address() {
        let mut index = Index::default();
        index.apply_own(applied(instance("10.0.0.5", Some("u2"), &["10.0.0.5"])));
        for (uid, silent) in [("u1", 1), ("u2", 0)] {
            let record = attachments::tests::record("c1", uid, "10.0.0.5");
            let attachment = attachments::attachment(&record).unwrap();
            let view = build("n1", &index, [(attachment.host_if.clone(), attachment)].into());
            assert_eq!(view.attachments.values().map(|a| a.silent.len()).sum::<usize>(), silent, "{uid}");
        }
    }

    fn subnet(name: &str, ready: bool) -> SubnetDef {
        SubnetDef {
            name: name.into(),
            created: 0,
            network: "all".into(),
            cidr: "10.0.0.0/16".parse().unwrap(),
            gateway: None,
            ranges: vec![],
            excluded: vec![],
            reserved: vec![],
            vlan: None,
            block_size: 26,
            private: false,
            nat_outgoing: false,
            routing_table: None,
            ready,
            deleting: false,
        }
    }

    #[test]
    fn subnets_count_while_they_are_in_force_or_hold_blocks() {
        let mut index = Index::default();
        for (name, ready) in [("good", true), ("refused", false), ("once-good", false)] {
            index.subnets.apply(Change::Applied(name.into(), Ok(subnet(name, ready))));
        }
        let block = BlockDef {
            name: "b".into(),
            subnet: "once-good".into(),
            cidr: "10.0.0.0/26".parse().unwrap(),
            node: "n2".into(),
        };
        index.blocks.apply(Change::Applied("b".into(), Ok(block)));
        let view = build("n1", &index, BTreeMap::new());
        assert_eq!(view.subnets.keys().collect::<Vec<_>>(), ["good", "once-good"]);
        // Pods that are here keep what they have, also where there are no blocks to say so.
        let mut attachment =
            attachments::attachment(&attachments::tests::record("c1", "u1", "10.0.0.5")).unwrap();
        for (network, known) in [("all", 3), ("another", 2)] {
            attachment.network = network.into();
            let here = [(attachment.host_if.clone(), attachment.clone())].into();
            assert_eq!(build("n1", &index, here).subnets.len(), known, "{network}");
        }
    }
}
