use super::*;

use std::collections::BTreeMap;

use braid_types::model::VtepDef;

fn report() -> Report {
    let vtep = VtepDef {
        ip: "172.30.0.2".parse().unwrap(),
        links: vec!["172.30.0.0/24".parse().unwrap()],
        mac: "02:00:00:00:00:01".parse().unwrap(),
        addresses: vec!["10.244.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
    };
    let overlay = LocalNetwork {
        ready: true,
        reason: "Ready".into(),
        message: String::new(),
        parent: Some("eth0".parse().unwrap()),
        device: Some("eth0.vxlan4".parse().unwrap()),
        mtu: Some(1450),
        vtep: Some(vtep),
    };
    let unready = LocalNetwork {
        ready: false,
        reason: "NoParentDevice".into(),
        message: "no device fits".into(),
        parent: None,
        device: None,
        mtu: None,
        vtep: None,
    };
    let networks = BTreeMap::from([("lab".to_owned(), unready), ("overlay".to_owned(), overlay)]);
    Report { waiting_for: None, networks, failures: BTreeSet::new() }
}

#[test]
fn other_nodes_read_what_was_meant() {
    let def = parsed("n1", &status(&report())).expect("others must be able to read it");
    assert_eq!(def.networks.len(), 2);
    let (lab, overlay) = (&def.networks[0], &def.networks[1]);
    assert!(!lab.ready && lab.vtep.is_none() && overlay.ready);
    assert_eq!(overlay.vtep.as_ref(), report().networks["overlay"].vtep.as_ref());
    assert_eq!(overlay.mtu, Some(1450));
}

#[test]
fn an_available_node_never_becomes_unavailable_by_a_restart() {
    assert_eq!(unavailable(false, None), Some(true), "a new node");
    assert_eq!(unavailable(true, None), Some(false));
    assert_eq!(unavailable(true, Some(true)), Some(false));
    assert_eq!(unavailable(false, Some(true)), None, "said already");
    assert_eq!(unavailable(false, Some(false)), None, "an agent that restarts");
    assert_eq!(unavailable(true, Some(false)), None);
}

#[test]
fn failures_are_named_but_do_not_make_the_node_unready() {
    let mut report = report();
    report.failures = (0..9).map(|i| format!("cannot set route {i}")).collect();
    let says = ready(&report);
    assert!(says.status && says.message.contains("route 0") && !says.message.contains("route 8"));
    report.waiting_for = Some("lists".into());
    assert!(!ready(&report).status);
}

#[test]
fn people_hear_of_networks_that_are_broken_but_not_of_those_that_wait() {
    let mut report = report();
    assert_eq!(
        sentences(&report),
        [("NoParentDevice".to_owned(), "Network `lab` is not ready on this node: no device fits".to_owned())]
    );
    report.networks.get_mut("lab").unwrap().reason = "WaitingForAddress".into();
    assert!(sentences(&report).is_empty());
}
