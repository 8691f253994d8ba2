use super::*;

use std::net::IpAddr;

use braid_node_core::view::HostLink;
use braid_types::VlanId;
use braid_types::model::{NetworkDef, NetworkType, SubnetDef};

/// The server of [`rig`], whose Network is an untagged VLAN on eth0.
async fn flat_rig() -> Rig {
    let rig = rig().await;
    let mut view = NodeView { families: Family::ALL.into(), ..NodeView::default() };
    let eth0 = HostLink {
        mtu: 1500,
        up: true,
        addrs: vec![("192.0.2.2".parse().unwrap(), 24)],
        default_route: Family::ALL.into(),
        outward: true,
    };
    view.links.insert("eth0".parse().unwrap(), eth0);
    let network = NetworkDef {
        kind: NetworkType::Vlan,
        vxlan: None,
        vlan: VlanId::try_from(0).ok(),
        ..crate::node_tests::network()
    };
    view.underlays.insert("overlay".into());
    view.networks.insert("overlay".into(), network);
    for (table, cidr, gateway) in [(10001, "10.0.0.0/24", "10.0.0.1"), (10002, "fd00::/64", "fd00::1")] {
        let subnet = SubnetDef {
            gateway: gateway.parse().ok(),
            routing_table: Some(table),
            ..crate::node_tests::subnet(cidr, cidr)
        };
        view.subnets.insert(cidr.into(), subnet);
    }
    rig.cni.shared.set_view(view);
    rig
}

fn answered(rig: &Rig) -> Vec<String> {
    rig.cni.plumbing.proxies.lock().iter().map(|key| format!("{} on {}", key.addr, key.dev)).collect()
}

const BOTH: [&str; 2] = ["10.0.0.5 on eth0", "fd00::5 on eth0"];

#[tokio::test]
async fn a_pod_is_answered_for_as_long_as_it_is_here() {
    let rig = flat_rig().await;
    assert!(matches!(ask(&rig.cni, add("c1")).await, Reply::Attached { .. }));
    assert_eq!(answered(&rig), BOTH);
    // The kernel does not do it: the address is not given back, and the node goes on answering.
    rig.cni.plumbing.break_with(Some("no"));
    assert_eq!(ask(&rig.cni, del("c1")).await, Reply::Done);
    assert!(!rig.cni.attachments.let_go("u1"), "its interface counts as there");
    assert_eq!(answered(&rig), BOTH);
    rig.cni.plumbing.break_with(None);
    assert_eq!(ask(&rig.cni, del("c1")).await, Reply::Done);
    assert!(answered(&rig).is_empty() && rig.cni.attachments.let_go("u1"));
}

#[tokio::test]
async fn a_sandbox_that_is_made_anew_keeps_its_answers() {
    let rig = flat_rig().await;
    for container in ["c1", "c2"] {
        assert!(matches!(ask(&rig.cni, add(container)).await, Reply::Attached { .. }));
    }
    ask(&rig.cni, del("c1")).await;
    assert_eq!(answered(&rig), BOTH);
    ask(&rig.cni, del("c2")).await;
    assert!(answered(&rig).is_empty());
}

#[tokio::test]
async fn an_address_that_somebody_has_is_refused_with_his_hardware_address() {
    let rig = flat_rig().await;
    let holder = Holder { address: "fd00::5".parse().unwrap(), mac: "02:00:00:00:00:99".parse().unwrap() };
    rig.cni.plumbing.holders.lock().push(holder);
    let refused = error(&rig.cni, add("c1")).await;
    for part in ["fd00::5", "02:00:00:00:00:99", "eth0", "spec.excludedIPs"] {
        assert!(refused.msg.contains(part), "{refused}");
    }
    assert_eq!((refused.code, devices(&rig), files(&rig)), (ErrorCode::ATTACH_FAILED, 0, 0));
    // Where there is no time for it nobody is asked.
    let Rig { cni, .. } = rig;
    let hasty = Server { duplicate_wait: Duration::ZERO, ..Arc::into_inner(cni).unwrap() };
    assert!(matches!(ask(&hasty, add("c1")).await, Reply::Attached { .. }));
}

#[tokio::test]
async fn the_nodes_own_address_is_no_pods() {
    let rig = flat_rig().await;
    let mut view = NodeView::clone(&rig.cni.shared.view().unwrap());
    let own: IpAddr = "10.0.0.5".parse().unwrap();
    view.links.values_mut().for_each(|link| link.addrs.push((own, 24)));
    rig.cni.shared.set_view(view);
    let refused = error(&rig.cni, add("c1")).await;
    assert!(refused.msg.contains("10.0.0.5 is this node's own"), "{refused}");
}

#[tokio::test]
async fn an_address_that_another_pod_holds_is_neither_asked_for_nor_answered() {
    let rig = flat_rig().await;
    let holder = Holder { address: "10.0.0.5".parse().unwrap(), mac: "02:00:00:00:00:99".parse().unwrap() };
    rig.cni.plumbing.holders.lock().push(holder);
    // A machine that migrates: its pod here is the second one.
    rig.cni.store.update(|index| {
        for address in ["10.0.0.5", "fd00::5"] {
            let mut moved = instance(address, Some("u9"), &["10.0.0.5", "fd00::5"]);
            moved.handover = Some(Box::new(braid_types::model::HandoverDef {
                pod: braid_types::model::PodRef {
                    namespace: "ns".into(),
                    name: "pod".into(),
                    uid: "u1".into(),
                },
                node: "n1".into(),
                role: braid_types::model::MigrationRole::Target,
                torn_down: false,
            }));
            index.apply_own(Change::Deleted(moved.name.to_string()));
            index.apply_host_routed(Change::Applied(moved.name.to_string(), Ok(moved)));
        }
        Effect::Kernel
    });
    let reply = ask(&rig.cni, add("c1")).await;
    assert!(matches!(reply, Reply::Attached { .. }), "{reply:?}");
    assert!(answered(&rig).is_empty());
}

#[tokio::test]
async fn an_address_whose_subnet_is_not_known_yet_is_not_used_unasked() {
    let rig = flat_rig().await;
    let mut view = (*rig.cni.shared.view().unwrap()).clone();
    view.subnets.remove("fd00::/64");
    rig.cni.shared.set_view(view);
    let Reply::Failed(error) = ask(&rig.cni, add("c1")).await else { panic!("attached") };
    assert!(error.msg.contains("the Subnet of fd00::5 is not set up on this node yet"), "{error:?}");
    assert!(answered(&rig).is_empty());
}
