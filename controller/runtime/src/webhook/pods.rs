//! Pods on their way in: refused, warned, or given the choice that was made for them.

use std::collections::BTreeMap;

use braid_api::slim::{Pod, PodSpec};
use braid_controller_core::Choice;
use braid_controller_core::admission::{Admitted, NewPod, admit};
use braid_types::annotation::{secondary, unknown_keys};
use braid_types::well_known::annotation;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use kube::api::ObjectMeta;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, Operation};
use serde_json::{Value, json};

use super::{Allowed, affinity, namespace};
use crate::index::{choice_of, keep_of, owner_of};
use crate::work::DEFAULT_INTERFACE;
use crate::world::Shared;

/// On the API's image of a pod that a kubelet runs from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Said where a time limit is set on something that does not happen.
pub(super) const LIMIT_WITHOUT_KEEPING: &str = "annotation braid.network/ip-retain-ttl does nothing, as the addresses are not \
    kept; set braid.network/ip-retain to \"true\", or remove it";

/// Judges a pod that is being created.
pub(super) fn decide(shared: &Shared, request: &AdmissionRequest<DynamicObject>) -> Result<Allowed, String> {
    let is_new = request.operation == Operation::Create && request.sub_resource.is_none();
    let Some(object) = request.object.as_ref().filter(|_| is_new && request.resource.resource == "pods")
    else {
        return Ok(Allowed::default());
    };
    let (pod, none) = (slim(object, request.namespace.as_ref()), BTreeMap::new());
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    // It runs whatever is said about its image.
    if pod.spec.host_network || annotations.contains_key(MIRROR) {
        return Ok(Allowed::default());
    }
    secondary(annotations).map_err(|e| e.to_string())?;
    let choice = choice_of(&pod)?;
    let mut warnings: Vec<String> = unknown_keys(annotations).into_iter().map(unknown).collect();
    if annotations.contains_key(annotation::IP_RETAIN_TTL) && keep_of(&pod).is_none() {
        warnings.push(LIMIT_WITHOUT_KEEPING.to_owned());
    }
    let admitted = judge(shared, &pod, &choice)?;
    warnings.extend(admitted.warnings.iter().cloned());
    Ok(Allowed { patch: patch(object, &admitted), warnings })
}

pub(super) fn unknown(key: &str) -> String {
    format!("annotation {key} is not known and does nothing; correct the key or remove it")
}

/// The part of a pod that is looked at, without decoding all of it a second time.
fn slim(object: &DynamicObject, namespace: Option<&String>) -> Pod {
    let spec = &object.data["spec"];
    let spec = PodSpec {
        node_name: spec["nodeName"].as_str().filter(|n| !n.is_empty()).map(str::to_owned),
        host_network: spec["hostNetwork"].as_bool().unwrap_or_default(),
    };
    // The object itself may leave it to the request.
    let metadata = ObjectMeta { namespace: namespace.cloned(), ..object.metadata.clone() };
    Pod { metadata, spec, ..Pod::default() }
}

fn judge(shared: &Shared, pod: &Pod, choice: &Choice) -> Result<Admitted, String> {
    let nothing = Choice::default();
    let name = pod.metadata.namespace.as_deref().unwrap_or_default();
    let owner = Some(owner_of(pod));
    let world = shared.world();
    let new = NewPod {
        namespace: namespace(&world, name, choice, &nothing)?,
        name: pod.metadata.name.as_deref().unwrap_or_default(),
        choice,
        interface: DEFAULT_INTERFACE,
        owner,
        node: pod.spec.node_name.as_deref(),
    };
    admit(&world.ipam, &new).map_err(|refusal| refusal.to_string())
}

/// What makes the pod that was sent the pod that is admitted.
fn patch(object: &DynamicObject, admitted: &Admitted) -> Patch {
    let add = |path: &[&str], value: Value| {
        PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
    };
    let mut steps = Vec::new();
    match &object.metadata.annotations {
        None if admitted.annotations.is_empty() => {}
        None => steps.push(add(&["metadata", "annotations"], json!(admitted.annotations))),
        Some(_) => {
            let each = admitted.annotations.iter();
            steps.extend(each.map(|(key, value)| add(&["metadata", "annotations", key], json!(value))));
        }
    }
    let affinity = object.data["spec"].get("affinity").filter(|a| !a.is_null());
    steps.extend(affinity::restricted(affinity, &admitted.nodes).map(|new| add(&["spec", "affinity"], new)));
    Patch(steps)
}
