//! Tables of good and bad objects.
//!
//! The same tables run against the rules here, in a unit test, and against a real API server in
//! `e2e/tests/promises/api_objects.rs`.

mod address;
mod network;
mod subnet;

use serde_json::{Value, json};

/// Who notices that an object is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// A CEL rule of ours, with a sentence of ours.
    Rule,
    /// Types and bounds in the schema, with a sentence of the API server.
    Schema,
}

/// An object, how it came about, and what is to be said about it.
#[derive(Debug, Clone)]
pub struct Example {
    /// What is special about it.
    pub what: &'static str,
    /// The object as it is stored before; `None` for one that is created.
    pub old: Option<Value>,
    /// The object.
    pub object: Value,
    /// Who refuses it with which words; `None` for a good one.
    pub refused: Option<(Noticed, &'static str)>,
}

impl Example {
    /// Kind of the object.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }
}

/// Objects that must be refused.
///
/// # Panics
/// When a row of a table is not YAML.
#[must_use]
pub fn bad() -> Vec<Example> {
    let mut all = network::bad();
    all.extend(subnet::bad());
    all.extend(address::bad());
    all
}

/// Objects that must be accepted.
///
/// # Panics
/// When a row of a table is not YAML.
#[must_use]
pub fn good() -> Vec<Example> {
    let mut all = network::good();
    all.extend(subnet::good());
    all.extend(address::good());
    all
}

fn object(kind: &str, name: &str, spec: &str) -> Value {
    let spec: Value = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{kind} {spec}: {e}"));
    json!({"apiVersion": "braid.network/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn accepted(what: &'static str, object: Value) -> Example {
    Example { what, old: None, object, refused: None }
}

fn refused(what: &'static str, object: Value, by: Noticed, says: &'static str) -> Example {
    Example { what, old: None, object, refused: Some((by, says)) }
}

fn after(old: Value, example: Example) -> Example {
    Example { old: Some(old), ..example }
}
