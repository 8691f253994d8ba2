//! In whose name the addresses of a pod are kept.

use braid_api::slim::Pod;
use braid_controller_core::{Keep, Migration};
use braid_types::annotation::NetworkChoice;
use braid_types::model::{OwnerRef, PodRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

/// Label that a Deployment puts on its ReplicaSets and pods; the name of a ReplicaSet ends with its value.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Group of the kinds of KubeVirt.
const KUBEVIRT: &str = "kubevirt.io/";

/// Label of KubeVirt on the pod that a machine migrates to.
const MIGRATION_JOB: &str = "kubevirt.io/migrationJobUID";
/// Annotation that KubeVirt sets on that pod when the machine is about to run there.
const TARGET_STARTS: &str = "kubevirt.io/migration-target-start-timestamp";
/// Label of KubeVirt: the node on which the machine runs. A target has it from its first moment on, as it is made with the
/// machine's own labels: it names the source's node then.
const RUNS_ON: &str = "kubevirt.io/nodeName";

/// Who a pod's addresses belong to across its re-creation: its set, its Deployment, its virtual machine, or the pod
/// itself by its name.
pub(crate) fn of(pod: &Pod) -> OwnerRef {
    other(pod).unwrap_or_else(|| {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        itself(&PodRef {
            namespace: namespace.into(),
            name: name.into(),
            uid: pod.uid().unwrap_or_default().into(),
        })
    })
}

/// The pod as the owner of its addresses.
pub(crate) fn itself(pod: &PodRef) -> OwnerRef {
    OwnerRef {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        pod: None,
    }
}

/// As [`of`]; `None` where it is the pod itself.
pub(super) fn other(pod: &Pod) -> Option<OwnerRef> {
    let namespace = pod.namespace().unwrap_or_default();
    let controller = controller(pod)?;
    let mut owner = OwnerRef {
        api_version: controller.api_version.as_str().into(),
        kind: controller.kind.as_str().into(),
        namespace: namespace.into(),
        name: controller.name.as_str().into(),
        uid: controller.uid.as_str().into(),
        pod: None,
    };
    if is_numbered(controller) {
        owner.pod = Some(pod.name_any().into());
    } else if is_machine(controller) {
        // A VirtualMachine makes its instance anew at each start, under its own name.
        owner.kind = "VirtualMachine".into();
        owner.uid = "".into();
    } else if let Some(deployment) = deployment_of(pod, controller) {
        owner.kind = "Deployment".into();
        owner.name = deployment.into();
        owner.uid = "".into();
    }
    Some(owner)
}

/// Whether and how long the addresses are kept: as the pod says, else for those that come back under their name. What
/// cannot be understood is refused with the pod's other annotations.
pub(crate) fn keep(pod: &Pod) -> Option<Keep> {
    let annotations = pod.metadata.annotations.as_ref();
    let asked = annotations.and_then(|a| NetworkChoice::of_pod(a).ok()).unwrap_or_default();
    let by_default = || controller(pod).is_some_and(|c| is_numbered(c) || is_machine(c));
    asked.retain.unwrap_or_else(by_default).then_some(Keep { seconds: asked.retain_seconds })
}

/// How far the migration of a virtual machine to the pod is, by what KubeVirt writes onto the pod; `None` where it is
/// no target of one.
pub(super) fn migration(pod: &Pod) -> Option<Migration> {
    controller(pod).filter(|c| is_machine(c))?;
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(MIGRATION_JOB)?;
    let annotations = pod.metadata.annotations.as_ref();
    let starts = annotations.is_some_and(|all| all.contains_key(TARGET_STARTS));
    let runs_here = labels.get(RUNS_ON).is_some_and(|node| pod.spec.node_name.as_ref() == Some(node));
    Some(if starts || runs_here { Migration::Arrived } else { Migration::Preparing })
}

/// The controlling owner. The mirror of a static pod has its Node there, which says nothing about addresses.
fn controller(pod: &Pod) -> Option<&OwnerReference> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true) && o.kind != "Node")
}

pub(super) fn is_numbered(owner: &OwnerReference) -> bool {
    owner.kind == "StatefulSet"
}

fn is_machine(owner: &OwnerReference) -> bool {
    owner.kind == "VirtualMachineInstance" && owner.api_version.starts_with(KUBEVIRT)
}

fn deployment_of<'a>(pod: &Pod, owner: &'a OwnerReference) -> Option<&'a str> {
    let hash = pod.metadata.labels.as_ref()?.get(TEMPLATE_HASH)?;
    let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
    (owner.kind == "ReplicaSet" && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(owner: Option<(&str, &str, &str)>, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Pod {
        let owners: Vec<_> = owner
            .map(|(version, kind, name)| {
                json!({"apiVersion": version, "kind": kind, "name": name, "uid": "u", "controller": true})
            })
            .into_iter()
            .collect();
        let map = |pairs: &[(&str, &str)]| -> serde_json::Map<String, serde_json::Value> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect()
        };
        serde_json::from_value(json!({"metadata": {
            "name": "db-0", "namespace": "shop", "uid": "p", "ownerReferences": owners,
            "labels": map(labels), "annotations": map(annotations),
        }, "spec": {"nodeName": "n2"}}))
        .unwrap()
    }

    fn told(pod: &Pod) -> String {
        let o = of(pod);
        format!("{} {}/{} {}", o.kind, o.namespace, o.name, o.pod.unwrap_or_default())
    }

    #[test]
    fn who_keeps_and_whether_by_default() {
        let set = pod(Some(("apps/v1", "StatefulSet", "db")), &[], &[]);
        assert_eq!((told(&set).as_str(), keep(&set)), ("StatefulSet shop/db db-0", Some(Keep::default())));
        let hash = [("pod-template-hash", "5d4f")];
        let web = pod(Some(("apps/v1", "ReplicaSet", "web-5d4f")), &hash, &[]);
        assert_eq!((told(&web).as_str(), keep(&web)), ("Deployment shop/web ", None));
        let bare_set = pod(Some(("apps/v1", "ReplicaSet", "web-5d4f")), &[], &[]);
        assert_eq!(told(&bare_set), "ReplicaSet shop/web-5d4f ");
        let machine = pod(Some(("kubevirt.io/v1", "VirtualMachineInstance", "vm")), &[], &[]);
        assert_eq!(
            (told(&machine).as_str(), keep(&machine)),
            ("VirtualMachine shop/vm ", Some(Keep::default()))
        );
        let bare = pod(None, &[], &[]);
        assert_eq!((told(&bare).as_str(), keep(&bare)), ("Pod shop/db-0 ", None));
        assert_eq!(told(&pod(Some(("v1", "Node", "n1")), &[], &[])), "Pod shop/db-0 ", "a static pod");
    }

    #[test]
    fn a_target_of_a_migration_is_known_by_what_kubevirt_writes() {
        let machine = Some(("kubevirt.io/v1", "VirtualMachineInstance", "vm"));
        let job = (MIGRATION_JOB, "job");
        let there = [(TARGET_STARTS, "2026-01-01T00:00:00Z")];
        assert_eq!(migration(&pod(machine, &[], &there)), None, "it was never a target");
        assert_eq!(migration(&pod(machine, &[job], &[])), Some(Migration::Preparing));
        assert_eq!(migration(&pod(machine, &[job], &there)), Some(Migration::Arrived));
        let runs_on = |node| migration(&pod(machine, &[job, (RUNS_ON, node)], &[]));
        assert_eq!(runs_on("n1"), Some(Migration::Preparing), "it is made with the machine's labels");
        assert_eq!(runs_on("n2"), Some(Migration::Arrived));
        assert_eq!(migration(&pod(Some(("apps/v1", "StatefulSet", "db")), &[job], &there)), None);
    }

    #[test]
    fn the_annotations_decide() {
        let owner = Some(("apps/v1", "StatefulSet", "db"));
        assert_eq!(keep(&pod(owner, &[], &[("braid.network/ip-retain", "false")])), None);
        let asked = [("braid.network/ip-retain", "true"), ("braid.network/ip-retain-ttl", "2h")];
        assert_eq!(keep(&pod(None, &[], &asked)), Some(Keep { seconds: Some(7200) }));
        assert_eq!(keep(&pod(owner, &[], &asked[1..])), Some(Keep { seconds: Some(7200) }));
    }
}
