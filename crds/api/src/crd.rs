//! The CustomResourceDefinitions, as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{IPBlock, IPInstance, Network, NodeNetwork, Subnet};

/// All of them.
///
/// # Panics
/// When the derived schemas do not have the shape of a CustomResourceDefinition, which a test would show.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [Network::crd(), Subnet::crd(), IPInstance::crd(), IPBlock::crd(), NodeNetwork::crd()]
        .into_iter()
        .map(finished)
        .collect()
}

/// What the derive macros cannot express.
fn finished(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is JSON");
    value["metadata"]["labels"] = json!({"app.kubernetes.io/part-of": "braid"});
    let root = &mut value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    tidy(root);
    // What was made and not yet looked at has a phase too: `kubectl get` would show nothing there otherwise, and
    // a second write per address only to say Bound would double the cost of every pod.
    if let Some(status) = root.pointer_mut("/properties/status")
        && status.pointer("/properties/phase").is_some()
    {
        status["default"] = json!({});
    }
    serde_json::from_value(value).expect("still a CRD")
}

/// Removes what the API server does not know or what would be in the way.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // Every optional field may be left out; an explicit null is then dropped, and the default put in.
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            // OpenAPI has no unsigned formats, and the API server warns about formats it does not know; the
            // bounds say the same.
            if map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
                map.insert("format".to_owned(), "int64".into());
            }
            // Lines of a doc comment end where the source file is full; `kubectl explain` has its own width.
            if let Some(Value::String(text)) = map.get_mut("description") {
                let paragraphs = text.split("\n\n").map(|p| p.replace('\n', " "));
                *text = paragraphs.collect::<Vec<_>>().join("\n\n");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Where generated files come from, in their first line.
const HEADER: &str =
    "# Written by crdgen from crds/api; do not edit. Change the Rust types and run `make crds`.";

/// The files of `crds/yaml`: name and content. One per kind, such as `braid.network_subnets.yaml`, and the list of
/// them for kustomize.
///
/// # Errors
/// When a definition cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let mut files = Vec::new();
    let mut list =
        format!("{HEADER}\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n");
    for crd in all() {
        let name = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
        list.push_str(&format!("  - {name}\n"));
        files.push((name, format!("{HEADER}\n{}", serde_saphyr::to_string(&crd)?)));
    }
    files.push(("kustomization.yaml".to_owned(), list));
    Ok(files)
}
