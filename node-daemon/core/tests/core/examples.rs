//! Named cases.

use std::collections::BTreeSet;

use braid_node_core::attach;
use braid_node_core::desired::nft::Element;
use braid_node_core::desired::{Desired, RouteKey, Target, sysctl};
use braid_node_core::overlay::{NotReady, realise};
use braid_node_core::plan::{Plan, Step, diff};
use braid_node_core::view::{HostLink, NodeView};
use braid_types::model::{Encapsulation, NetworkDef, NetworkType, VxlanDef};
use braid_types::{Cidr, Family, Selector, Vni};

use crate::model::apply;
use crate::world::{attachment, cidr, host, ip, name};

fn network(patterns: &[&str]) -> NetworkDef {
    NetworkDef {
        name: "blue".into(),
        created: 1,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(4).expect("VNI"),
            port: 8472,
            encapsulation: Encapsulation::Always,
            interfaces: patterns.iter().map(|p| p.parse().expect("pattern")).collect(),
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

fn view(patterns: &[&str]) -> NodeView {
    let link = |addr: &str, default: bool| HostLink {
        mtu: 1500,
        up: true,
        addrs: vec![(ip(addr), 24)],
        default_route: if default { [Family::V4].into() } else { BTreeSet::new() },
    };
    let mut view = NodeView { node: "a".into(), families: Family::ALL.into(), ..NodeView::default() };
    view.links.insert(name("eth0"), link("192.168.1.1", true));
    view.links.insert(name("eth1"), link("192.168.2.1", false));
    view.links.insert(name("ib0"), HostLink { addrs: vec![], ..link("192.168.3.1", false) });
    view.networks.insert("blue".into(), network(patterns));
    view
}

#[test]
fn the_parent_is_the_first_pattern_that_fits_and_else_the_default_routes_device() {
    let parent = |patterns: &[&str]| match &realise(&view(patterns))["blue"] {
        Ok(o) => o.parent.to_string(),
        Err(e) => e.reason().to_owned(),
    };
    assert_eq!(parent(&[]), "eth0");
    assert_eq!(parent(&["eth1"]), "eth1");
    assert_eq!(parent(&["bond*", "eth*"]), "eth0");
    assert_eq!(parent(&["*1"]), "eth1");
    assert_eq!(parent(&["ib0"]), "NoParentAddress");
    assert_eq!(parent(&["bond*"]), "NoParentDevice");
    let Err(error) = &realise(&view(&["bond*", "ens?"]))["blue"] else { panic!("no such device") };
    assert_eq!(error.to_string(), "no device of this node fits bond*, ens?; have: eth0, eth1, ib0");
}

#[test]
fn the_nodes_own_address_is_preferred_over_others_on_the_parent() {
    let mut view = view(&[]);
    let vip = (ip("192.168.1.100"), 24);
    view.links.get_mut(&name("eth0")).expect("eth0").addrs.insert(0, vip);
    view.node_ips = vec![ip("192.168.1.1")];
    assert_eq!(realise(&view)["blue"].as_ref().expect("ready").ip, ip("192.168.1.1"));
}

#[test]
fn a_network_waits_for_its_own_address_of_each_family() {
    let mut view = view(&[]);
    for cidr in ["10.0.0.0/16", "fd00::/48"].map(cidr) {
        let mut subnet = braid_types::model::SubnetDef {
            name: cidr.family().to_string(),
            created: 0,
            network: "blue".into(),
            cidr,
            gateway: None,
            ranges: vec![],
            excluded: vec![],
            reserved: vec![],
            vlan: None,
            block_size: 26,
            private: false,
            nat_outgoing: false,
            routing_table: None,
            ready: true,
            deleting: false,
        };
        subnet.name.insert_str(0, "blue-");
        view.subnets.insert(subnet.name.clone(), subnet);
    }
    let waits = |view: &NodeView| realise(view)["blue"].clone().err();
    assert_eq!(waits(&view), Some(NotReady::WaitingForAddress { family: Family::V4 }));
    view.vteps.insert("blue".into(), [ip("10.0.0.1")].into());
    assert_eq!(waits(&view), Some(NotReady::WaitingForAddress { family: Family::V6 }));
    // A kernel without IPv6 does not wait for what it cannot use.
    view.families = [Family::V4].into();
    assert_eq!(waits(&view), None);
    view.families = Family::ALL.into();
    view.vteps.insert("blue".into(), [ip("10.0.0.1"), ip("fd00::1")].into());
    assert_eq!(waits(&view), None);
    view.links.get_mut(&name("eth0")).expect("eth0").mtu = 1300;
    assert_eq!(waits(&view), Some(NotReady::MtuTooSmall { mtu: 1250, minimum: 1280 }));

    // A subnet that contains the node's own network is not refused as a whole: the node would cut itself off.
    view.links.get_mut(&name("eth0")).expect("eth0").mtu = 1500;
    let whole =
        |view: &NodeView, c: &str| Desired::of(view).routes.contains_key(&RouteKey::new(40000, cidr(c)));
    assert!(whole(&view, "10.0.0.0/16"));
    view.subnets.get_mut("blue-IPv4").expect("subnet").cidr = cidr("192.168.0.0/16");
    assert!(!whole(&view, "192.168.0.0/16"));
}

#[test]
fn the_older_network_keeps_a_device_that_two_claim() {
    let mut view = view(&[]);
    let younger = NetworkDef { name: "aaa".into(), created: 2, ..network(&[]) };
    view.networks.insert("aaa".into(), younger);
    let all = realise(&view);
    assert!(all["blue"].is_ok());
    let Err(error) = &all["aaa"] else { panic!("two on one device") };
    assert_eq!(error.to_string(), "device eth0.vxlan4 already belongs to network blue");
}

#[test]
fn an_attachment_is_undone_completely_from_every_step() {
    let mut view = view(&[]);
    view.vteps.insert("blue".into(), [ip("10.0.0.1")].into());
    let before = host();
    let before = apply(before.clone(), &diff(&Desired::of(&view), &before));
    let wiring = attach::wire(&view, &attachment(1));
    let steps = attach::steps(&wiring);
    for n in 0..=steps.len() {
        let done = Plan { steps: steps[..n].to_vec(), conflicts: vec![] };
        let undo = done.steps.iter().rev().filter_map(Step::undo).collect();
        let mut after = apply(apply(before.clone(), &done), &Plan { steps: undo, conflicts: vec![] });
        after.sysctls.retain(|path, _| before.sysctls.contains_key(path));
        assert_eq!(after, before, "after {n} steps");
    }
    // And ADD makes exactly what the loop wants.
    let attached = apply(before, &Plan { steps, conflicts: vec![] });
    view.attachments.insert(wiring.link.name.clone(), attachment(1));
    assert!(diff(&Desired::of(&view), &attached).is_empty());
}

#[test]
fn a_pod_has_one_default_route_per_family_through_the_same_gateway_everywhere() {
    let wiring = attach::wire(&view(&[]), &attachment(1));
    let routes = wiring.pod.routes();
    let default = |f: Family| Cidr::containing(f.unspecified(), 0).expect("default");
    for (family, gateway) in [(Family::V4, "169.254.1.1"), (Family::V6, "fe80::ecee:eeff:feee:eeee")] {
        let target = Target::Via { gateway: ip(gateway), dev: name("eth0") };
        assert_eq!(routes[&RouteKey::new(254, default(family))].target, target);
    }
    let only_v4 = NodeView { families: [Family::V4].into(), ..view(&[]) };
    assert_eq!(attach::wire(&only_v4, &attachment(1)).pod.routes().len(), 1);
}

#[test]
fn touching_subnets_become_one_range() {
    let mut view = view(&[]);
    let mut add = |name: &str, c: &str| {
        let subnet = braid_types::model::SubnetDef {
            name: name.into(),
            created: 0,
            network: "other".into(),
            cidr: cidr(c),
            gateway: None,
            ranges: vec![],
            excluded: vec![],
            reserved: vec![],
            vlan: None,
            block_size: 26,
            private: false,
            nat_outgoing: false,
            routing_table: None,
            ready: true,
            deleting: false,
        };
        view.subnets.insert(name.into(), subnet);
    };
    add("a", "10.0.0.0/24");
    add("b", "10.0.1.0/24");
    add("c", "10.0.1.0/26");
    add("d", "10.0.3.0/24");
    let table = Desired::of(&view).nft.expect("table");
    let ranges: Vec<String> = table.sets["cluster4"]
        .elements
        .iter()
        .map(|e| match e {
            Element::Range(r) => format!("{}-{}", r.first, r.last),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ranges, ["10.0.0.0-10.0.1.255", "10.0.3.0-10.0.3.255"]);
}

#[test]
fn router_advertisements_stay_accepted_and_a_ban_stays_a_ban() {
    let view = view(&[]);
    let desired = Desired::of(&view);
    let path = sysctl::of_device(Family::V6, &name("eth0"), "accept_ra");
    for (now, changes) in [("1", true), ("0", false), ("2", false)] {
        let mut kernel = host();
        kernel.sysctls.insert(path.clone(), now.into());
        let plan = diff(&desired, &kernel);
        let step = plan.steps.iter().position(|s| matches!(s, Step::SetSysctl { path: p, .. } if *p == path));
        assert_eq!(step.is_some(), changes, "{now}");
        // Before forwarding is switched on, or the next advertisement is lost.
        let forwarding =
            |s: &Step| matches!(s, Step::SetSysctl { path, .. } if path == "ipv6/conf/all/forwarding");
        let forwarding = plan.steps.iter().position(forwarding);
        assert!(step.is_none_or(|s| Some(s) < forwarding), "{now}: {:?}", plan.steps);
    }
}
