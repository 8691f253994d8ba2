//! Deployments and StatefulSets whose pods have fixed addresses: refused while nothing is lost, with the number of
//! addresses that is missing.

use std::collections::BTreeMap;

use braid_controller_core::Choice;
use braid_controller_core::admission::{Shape, Surge, Workload};
use braid_types::annotation::{NetworkChoice, unknown_keys};
use kube::core::DynamicObject;
use kube::core::admission::AdmissionRequest;
use serde_json::Value;

use super::namespace;
use super::pods::{LIMIT_WITHOUT_KEEPING, unknown};
use crate::world::Shared;

/// Judges a Deployment or StatefulSet that is created or changed.
pub(super) fn decide(shared: &Shared, request: &AdmissionRequest<DynamicObject>) -> Result<(), String> {
    let Some(object) = &request.object else { return Ok(()) };
    let spec = &object.data["spec"];
    // What asks for nothing new is let through: labels and finalizers must change on an object that came to be while
    // the webhook was away, too.
    let is_same = request.old_object.as_ref().is_some_and(|old| old.data["spec"] == *spec);
    if is_same || object.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    judge(shared, &request.resource.resource, request.namespace.as_deref().unwrap_or_default(), spec)
}

/// Judges the spec of a workload in a namespace.
///
/// # Errors
/// The sentence for who asked for it.
pub(super) fn judge(shared: &Shared, resource: &str, name: &str, spec: &Value) -> Result<(), String> {
    let Some(shape) = shape(resource, spec) else { return Ok(()) };
    let workload = Workload::read(shape, &template_annotations(spec)).map_err(|e| e.to_string())?;
    let (world, nothing) = (shared.world(), Choice::default());
    let namespace = namespace(&world, name, workload.choice(), &nothing)?;
    workload.check(&world.ipam, namespace).map_err(|e| e.to_string())
}

/// What is said of the annotations of a workload's pods beside what is refused.
pub(super) fn warnings(request: &AdmissionRequest<DynamicObject>) -> Vec<String> {
    let Some(object) = &request.object else { return Vec::new() };
    let annotations = template_annotations(&object.data["spec"]);
    let mut said: Vec<String> = unknown_keys(&annotations).into_iter().map(unknown).collect();
    // What cannot be understood is refused anyhow.
    let asked = NetworkChoice::of_pod(&annotations).unwrap_or_default();
    let keeps_by_default = request.resource.resource == "statefulsets";
    if asked.retain_seconds.is_some() && !asked.retain.unwrap_or(keeps_by_default) {
        said.push(LIMIT_WITHOUT_KEEPING.to_owned());
    }
    said.into_iter().map(|sentence| format!("pod template: {sentence}")).collect()
}

fn template_annotations(spec: &Value) -> BTreeMap<String, String> {
    let annotations = spec["template"]["metadata"]["annotations"].as_object();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    annotations.into_iter().flatten().filter_map(text).collect()
}

fn shape(resource: &str, spec: &Value) -> Option<Shape> {
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let replicas = number(&spec["replicas"]).unwrap_or(1);
    match resource {
        "deployments" => Some(Shape::Deployment { replicas, surge: surge(&spec["strategy"]) }),
        // It knows no update: its pods are never more than its replicas.
        "replicasets" => Some(Shape::Deployment { replicas, surge: Surge::Pods(0) }),
        "statefulsets" => {
            Some(Shape::StatefulSet { replicas, first: number(&spec["ordinals"]["start"]).unwrap_or(0) })
        }
        _ => None,
    }
}

fn surge(strategy: &Value) -> Surge {
    if strategy["type"] == "Recreate" {
        return Surge::Pods(0);
    }
    match &strategy["rollingUpdate"]["maxSurge"] {
        Value::String(text) => text.parse().ok(),
        Value::Number(pods) => pods.as_u64().and_then(|n| u32::try_from(n).ok()).map(Surge::Pods),
        _ => None,
    }
    .unwrap_or_default()
}
