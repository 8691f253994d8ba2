use std::collections::BTreeMap;
use std::sync::Arc;

use braid_controller_core::Config;
use serde_json::json;

use super::*;
use crate::metrics::Metrics;
use crate::world::Shared;

fn pod(patch: serde_json::Value) -> Pod {
    let mut raw = json!({
        "metadata": {"namespace": "shop", "name": "db-2", "uid": "u"},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Pending"}
    });
    let patch: json_patch::PatchOperation = serde_json::from_value(patch).unwrap();
    json_patch::patch(&mut raw, &[patch]).unwrap();
    serde_json::from_value(raw).unwrap()
}

fn add(path: &str, value: impl serde::Serialize) -> serde_json::Value {
    json!({"op": "add", "path": path, "value": value})
}

#[test]
fn who_needs_addresses() {
    let wants = |patch| news(&mut Alike::default(), &pod(patch)).entry.is_some();
    assert!(wants(add("/spec/x", json!(1))));
    assert!(!wants(add("/spec/nodeName", json!(""))));
    assert!(!wants(add("/spec/hostNetwork", json!(true))));
    assert!(!wants(add("/status/phase", json!("Failed"))));
    assert!(!wants(add("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))));
}

#[test]
fn an_ordinal_picks_its_entry() {
    let with = |owners: serde_json::Value, ips: &str| {
        let mut pod = pod(add("/metadata/ownerReferences", owners));
        pod.metadata.annotations = Some(BTreeMap::from([("braid.network/ips".to_owned(), ips.to_owned())]));
        choice_of(&pod).map(|c| c.ips.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let set = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}]);
    let list = "10.0.0.1;10.0.0.2;10.0.0.3";
    assert_eq!(with(set.clone(), list), Ok(vec!["10.0.0.3".to_owned()]));
    assert!(with(set, "10.0.0.1;10.0.0.2").unwrap_err().contains("none for ordinal 2"));
    assert!(with(json!([]), list).unwrap_err().contains("only pods of a StatefulSet"));
}

#[test]
fn a_wrong_annotation_is_kept_as_a_sentence() {
    let pod = pod(add("/metadata/annotations", json!({"braid.network/ip-family": "IPv5"})));
    assert!(
        news(&mut Alike::default(), &pod)
            .entry
            .unwrap()
            .choice
            .as_ref()
            .as_ref()
            .unwrap_err()
            .contains("IPv5")
    );
}

#[test]
fn a_migration_that_goes_on_is_looked_at_though_the_pod_has_its_addresses() {
    let target = |annotations: serde_json::Value| {
        let mut pod = pod(add("/metadata/annotations", annotations));
        let owner = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm", "uid": "v", "controller": true,
        });
        pod.metadata.owner_references = Some(vec![serde_json::from_value(owner).unwrap()]);
        pod.metadata.labels =
            Some(BTreeMap::from([("kubevirt.io/migrationJobUID".to_owned(), "j".to_owned())]));
        news(&mut Alike::default(), &pod)
    };
    let shared = Shared::new(Config::default());
    let index = Index { shared: shared.clone(), metrics: Arc::new(Metrics::new()) };
    let mut world = shared.world();
    take_entry(&index, &mut world, &target(json!({})));
    world.pods.values_mut().for_each(|known| known.granted = true);
    shared.queues.grants.open();
    take_entry(&index, &mut world, &target(json!({})));
    assert_eq!(shared.queues.grants.depth(), 0, "nothing has changed");
    let arrived = json!({"kubevirt.io/migration-target-start-timestamp": "2026-01-01T00:00:00Z"});
    take_entry(&index, &mut world, &target(arrived));
    assert_eq!(shared.queues.grants.depth(), 1);
}
