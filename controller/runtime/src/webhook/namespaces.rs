//! Namespaces: warned of annotations that do nothing, or that pods would be refused for. Never refused, as everything else
//! in a namespace waits for it.

use std::collections::BTreeMap;

use braid_types::annotation::{NetworkChoice, keys_of_pods_only, unknown_keys};
use kube::core::DynamicObject;
use kube::core::admission::AdmissionRequest;

use super::pods::unknown;

/// What is said of a namespace that is created or changed.
pub(super) fn warnings(request: &AdmissionRequest<DynamicObject>) -> Vec<String> {
    let none = BTreeMap::new();
    let annotations = request.object.as_ref().and_then(|o| o.metadata.annotations.as_ref()).unwrap_or(&none);
    let wrong = NetworkChoice::of_namespace(annotations).err().map(|error| {
        format!("{error}: until then, pods of this namespace are refused that do not say themselves what they want")
    });
    let of_pods = keys_of_pods_only(annotations).into_iter().map(|key| {
        format!("annotation {key} does nothing on a Namespace, it counts on pods only; write it there")
    });
    wrong.into_iter().chain(unknown_keys(annotations).into_iter().map(unknown)).chain(of_pods).collect()
}
