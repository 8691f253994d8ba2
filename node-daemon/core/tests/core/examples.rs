//! Named cases.

use std::collections::BTreeSet;

use braid_node_core::actual::{Actual, SeenAddr, SeenLink, SeenVxlan};
use braid_node_core::desired::nft::{Element, Range};
use braid_node_core::desired::{AddrKey, Desired, RouteKey, Target, sysctl};
use braid_node_core::overlay::{NotReady, realise};
use braid_node_core::plan::{Plan, Step, diff};
use braid_node_core::view::{HostLink, NodeView, host_links, tunnels};
use braid_node_core::{attach, ours};
use braid_types::model::{
    BlockDef, Encapsulation, NetworkDef, NetworkType, NodeDef, NodeNetworkDef, SubnetDef, VtepDef, VxlanDef,
};
use braid_types::well_known::table;
use braid_types::{Cidr, Family, Mac, Selector, Vni};

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
        interfaces: patterns.iter().map(|p| p.parse().expect("pattern")).collect(),
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(4).expect("VNI"),
            port: 8472,
            encapsulation: Encapsulation::Always,
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
        outward: true,
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

fn subnet(name: &str, c: &str) -> SubnetDef {
    SubnetDef {
        name: name.into(),
        created: 0,
        network: "blue".into(),
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
    }
}

/// A node whose IPv4 overlay works, with the kernel that goes with it.
fn living_overlay() -> (NodeView, Actual) {
    let mut view = view(&[]);
    view.node_ips = vec![ip("192.168.1.1")];
    view.subnets.insert("v4".into(), subnet("v4", "10.0.0.0/16"));
    view.vteps.insert("blue".into(), [ip("10.0.0.1")].into());
    let vtep = VtepDef {
        ip: ip("192.168.1.2"),
        links: vec![cidr("192.168.1.0/24")],
        mac: Mac::derived(b"b"),
        addresses: vec![ip("10.0.1.1")],
    };
    let there =
        NodeNetworkDef { network: "blue".into(), ready: true, parent: None, mtu: None, vtep: Some(vtep) };
    view.nodes.insert("b".into(), NodeDef { node: "b".into(), networks: vec![there] });
    let block =
        BlockDef { name: "x".into(), subnet: "v4".into(), cidr: cidr("10.0.1.0/26"), node: "b".into() };
    view.blocks.insert("x".into(), block);
    let kernel = apply(host(), &diff(&Desired::of(&view), &host()));
    view.tunnels = tunnels(&kernel);
    assert_eq!(view.tunnels.keys().collect::<Vec<_>>(), [&name("eth0.vxlan4")]);
    (view, kernel)
}

/// Nothing that carries packets of pods goes: no device, no way to another node.
#[track_caller]
fn nothing_is_cut(view: &NodeView, kernel: &Actual) {
    let plan = diff(&Desired::of(view), kernel);
    let cuts = |s: &&Step| {
        matches!(
            s,
            Step::DelLink(_)
                | Step::AddVxlan(_)
                | Step::DelRoute(_)
                | Step::DelNeigh(_)
                | Step::DelFdb(..)
                | Step::DelAddr(_)
        )
    };
    assert_eq!(plan.steps.iter().filter(cuts).collect::<Vec<_>>(), Vec::<&Step>::new());
}

fn hindrance(view: &NodeView) -> Option<NotReady> {
    realise(view)["blue"].as_ref().expect("the tunnel stays").hindrance.clone()
}

#[test]
fn a_family_that_joins_later_leaves_the_other_ones_tunnel_alone() {
    let (mut view, kernel) = living_overlay();
    view.subnets.insert("v6".into(), subnet("v6", "fd00::/48"));
    nothing_is_cut(&view, &kernel);
    assert_eq!(hindrance(&view), Some(NotReady::WaitingForAddress { family: Family::V6 }));
    let published = realise(&view)["blue"].as_ref().expect("tunnel").published();
    assert!(!published.ready && published.vtep.is_some(), "others go on sending");

    // Too little room for IPv6 is no reason to take IPv4 away either.
    view.links.get_mut(&name("eth0")).expect("eth0").mtu = 1300;
    nothing_is_cut(&view, &kernel);
    view.links.get_mut(&name("eth0")).expect("eth0").mtu = 1500;
    view.vteps.insert("blue".into(), [ip("10.0.0.1"), ip("fd00::1")].into());
    nothing_is_cut(&view, &kernel);
    assert_eq!(hindrance(&view), None);
}

#[test]
fn a_subnet_that_is_not_in_force_changes_nothing() {
    let (mut view, kernel) = living_overlay();
    let refused = |name: &str, c: &str| SubnetDef { ready: false, nat_outgoing: true, ..subnet(name, c) };
    for (name, c) in [("loser", "10.0.1.0/28"), ("wide", "10.0.0.0/8"), ("v6", "fd00::/48")] {
        view.subnets.insert(name.into(), refused(name, c));
    }
    view.subnets.get_mut("wide").expect("wide").network = "bleu".into();
    assert_eq!(diff(&Desired::of(&view), &kernel), Plan::default());
    assert_eq!(hindrance(&view), None);

    // Once in force, with blocks that nodes still hold: those stay what they were.
    let block =
        BlockDef { name: "y".into(), subnet: "loser".into(), cidr: cidr("10.9.0.0/26"), node: "b".into() };
    view.blocks.insert("y".into(), block);
    let desired = Desired::of(&view);
    assert!(desired.routes.contains_key(&RouteKey::new(40000, cidr("10.9.0.0/26"))));
    assert!(!desired.routes.contains_key(&RouteKey::new(40000, cidr("10.0.1.0/28"))));
    let natted = &desired.nft.expect("table").sets["nat-outgoing4"].elements;
    let of_block = Element::Range(Range { first: ip("10.9.0.0"), last: ip("10.9.0.63") });
    assert_eq!(*natted, [of_block].into());
}

#[test]
fn a_subnet_inside_a_block_of_another_one_cuts_nobody_off() {
    let (mut view, kernel) = living_overlay();
    // Whatever the controller thinks of it.
    view.subnets.insert("within".into(), subnet("within", "10.0.1.0/28"));
    assert!(diff(&Desired::of(&view), &kernel).is_empty());
}

#[test]
fn a_parent_that_loses_something_for_a_moment_keeps_its_tunnel() {
    let (view, kernel) = living_overlay();
    let changed = |f: &dyn Fn(&mut HostLink)| {
        let mut view = view.clone();
        f(view.links.get_mut(&name("eth0")).expect("eth0"));
        view
    };
    let no_route = changed(&|l| l.default_route.clear());
    assert!(matches!(hindrance(&no_route), Some(NotReady::NoParent { .. })));
    let no_address = changed(&|l| l.addrs.clear());
    assert!(matches!(hindrance(&no_address), Some(NotReady::NoParentAddress { .. })));
    let other_family = changed(&|l| l.addrs = vec![(ip("2001:db8::1"), 64)]);
    let away = NotReady::AddressAway { parent: name("eth0"), address: ip("192.168.1.1") };
    assert_eq!(hindrance(&other_family), Some(away.clone()));
    let only_virtual = changed(&|l| l.addrs = vec![(ip("192.168.1.100"), 24)]);
    assert_eq!(hindrance(&only_virtual), Some(away));
    let narrow = changed(&|l| l.mtu = 500);
    assert!(matches!(hindrance(&narrow), Some(NotReady::MtuTooSmall { .. })));
    for view in [no_route, no_address, other_family, only_virtual, narrow] {
        nothing_is_cut(&view, &kernel);
    }

    // An address that the node has given up does not come back.
    let mut moved = changed(&|l| l.addrs = vec![(ip("192.168.1.7"), 24)]);
    moved.node_ips = vec![ip("192.168.1.7")];
    assert_eq!(realise(&moved)["blue"].as_ref().expect("moved").ip, ip("192.168.1.7"));
    // And where there is no tunnel yet, there is nothing to keep.
    let mut fresh = changed(&|l| l.addrs.clear());
    fresh.tunnels.clear();
    assert!(realise(&fresh)["blue"].is_err());
    // Nor where the Network is none of this node's any more.
    let mut left = view.clone();
    left.networks.clear();
    let plan = diff(&Desired::of(&left), &kernel);
    assert!(plan.steps.contains(&Step::DelLink(name("eth0.vxlan4"))));
}

#[test]
fn a_network_waits_for_its_own_address_of_each_family() {
    let mut view = view(&[]);
    for c in ["10.0.0.0/16", "fd00::/48"].map(cidr) {
        let subnet = subnet(&format!("blue-{}", c.family()), &c.to_string());
        view.subnets.insert(subnet.name.clone(), subnet);
    }
    let waits = |view: &NodeView| match realise(view)["blue"].clone() {
        Ok(overlay) => overlay.hindrance,
        Err(why) => Some(why),
    };
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
        let subnet = SubnetDef { network: "other".into(), ..subnet(name, c) };
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
    // On a node that has no Network yet, as on one that has.
    let mut bare = view(&[]);
    bare.networks.clear();
    for view in [view(&[]), bare] {
        let desired = Desired::of(&view);
        for dev in ["eth0", "eth1"] {
            let path = sysctl::of_device(Family::V6, &name(dev), "accept_ra");
            for (now, changes) in [("1", true), ("0", false), ("2", false)] {
                let mut kernel = host();
                kernel.sysctls.insert(path.clone(), now.into());
                let plan = diff(&desired, &kernel);
                let sets = |wanted: &str| {
                    let is = |s: &Step| matches!(s, Step::SetSysctl { path, .. } if path == wanted);
                    plan.steps.iter().position(is)
                };
                assert_eq!(sets(&path).is_some(), changes, "{dev} {now}");
                // Before forwarding is switched on, or the next advertisement is lost.
                let forwarding = sets("ipv6/conf/all/forwarding");
                assert!(sets(&path).is_none_or(|s| Some(s) < forwarding), "{now}: {:?}", plan.steps);
            }
        }
    }
}

#[test]
fn advertisements_of_containers_are_not_let_in() {
    let mut kernel = host();
    let link = |kind: &str| SeenLink { kind: kind.into(), mtu: 1500, up: true, ..SeenLink::default() };
    for (dev, kind) in [("lan0", "vlan"), ("docker0", "bridge"), ("cali0", "veth"), ("br0", "bridge")] {
        kernel.links.insert(name(dev), link(kind));
    }
    kernel.links.insert(name("eth9"), SeenLink { enslaved: true, ..link("") });
    let usable = SeenAddr { usable_as_source: true, ..SeenAddr::default() };
    let addr = |dev: &str, a: &str| AddrKey { dev: name(dev), addr: ip(a), prefix_len: 64 };
    kernel.addrs.insert(addr("br0", "2001:db8::7"), usable.clone());
    kernel.addrs.insert(addr("docker0", "172.17.0.1"), usable);
    let outward: Vec<_> =
        host_links(&kernel).into_iter().filter(|(_, l)| l.outward).map(|(n, _)| n).collect();
    assert_eq!(outward, ["br0", "eth0", "lan0"].map(name));
}

#[test]
fn an_interface_whose_address_another_pod_holds_has_no_route() {
    let mut view = view(&[]);
    let mut pod = attachment(1);
    let route = |view: &NodeView, addr: &str| {
        let key = RouteKey::new(table::LOCAL_PODS, Cidr::host(ip(addr)));
        Desired::of(view).routes.contains_key(&key)
    };
    for (silent, four, six) in [(vec![], true, true), (vec![ip("10.0.0.11")], false, true)] {
        pod.silent = silent.into_iter().collect();
        view.attachments.insert(pod.host_if.clone(), pod.clone());
        assert_eq!((route(&view, "10.0.0.11"), route(&view, "fd00::11")), (four, six));
        let wired = attach::wire(&view, &pod);
        assert_eq!(wired.pod.addresses.len(), 2, "the pod has them all");
        assert_eq!(wired.routes.len(), usize::from(four) + usize::from(six));
    }
}

#[test]
fn a_pod_of_which_the_journal_cannot_tell_stays_as_it_is() {
    let mut view = view(&[]);
    view.vteps.insert("blue".into(), [ip("10.0.0.1")].into());
    let pod = attachment(1);
    view.attachments.insert(pod.host_if.clone(), pod.clone());
    let kernel = apply(host(), &diff(&Desired::of(&view), &host()));
    view.attachments.clear();
    let gone = diff(&Desired::of(&view), &kernel);
    assert!(gone.steps.contains(&Step::DelLink(pod.host_if.clone())), "{gone:#?}");
    view.spared.insert(pod.host_if.clone());
    assert_eq!(diff(&Desired::of(&view), &kernel), Plan::default());

    // A table that has to be written anew takes the pod along.
    view.subnets.insert("v4".into(), subnet("v4", "10.0.0.0/16"));
    let after = apply(kernel.clone(), &diff(&Desired::of(&view), &kernel));
    let pods = |k: &Actual| k.nft.as_ref().expect("table").sets["pods4"].elements.clone();
    assert_eq!(pods(&after), pods(&kernel));
    assert_eq!(pods(&after).len(), 1);
}

#[test]
fn a_device_is_ours_by_two_of_three_marks() {
    let ours = |dev: &str, kind: &str, alias: &str, group: u32| {
        let vxlan = (kind == "vxlan").then(|| SeenVxlan { vni: 4, ..SeenVxlan::default() });
        let seen = SeenLink { kind: kind.into(), alias: alias.into(), group, vxlan, ..SeenLink::default() };
        ours::link(&name(dev), &seen)
    };
    let long = braid_types::vxlan_device_name(&name("enp129s0f0np0"), Vni::try_from(4).expect("VNI")).0;
    for (kind, group, right, wrong) in [
        ("veth", 176, vec!["braid0123456789"], vec!["braidge0", "braid012345678"]),
        ("vxlan", 177, vec!["eth0.vxlan4", long.as_str()], vec!["eth0.vxlan5", ".vxlan4", "bvlan", "vx4"]),
    ] {
        for dev in right {
            assert!(ours(dev, kind, "braid:x", 0) && ours(dev, kind, "", group), "{dev}");
            assert!(!ours(dev, kind, "", 0) && !ours(dev, kind, "braid", 1), "{dev}");
        }
        for dev in wrong {
            assert!(ours(dev, kind, "braid:x", group), "{dev}");
            assert!(!ours(dev, kind, "braid:x", 0) && !ours(dev, kind, "", group), "{dev}");
        }
    }
    assert!(!ours("eth0.vxlan4", "bridge", "braid:x", 177));
}
