//! The tables of objects against the rules, evaluated here; `e2e/tests/promises/api_objects.rs` asks a real API server.

use std::collections::BTreeMap;
use std::path::Path;

use braid_types::InstanceName;
use kube::core::cel::{CompiledSchema, Validator, apply_defaults, compile_schema};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::examples::{Example, Noticed, bad, good};
use crate::{IPBlock, IPInstance, Network, NodeNetwork, Subnet, crd};

fn schemas() -> BTreeMap<String, Value> {
    crd::all()
        .into_iter()
        .map(|crd| {
            let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
            (crd.spec.names.kind, serde_json::to_value(schema).expect("JSON"))
        })
        .collect()
}

/// The rules of all kinds, ready to be asked.
struct Rules {
    validator: Validator,
    kinds: BTreeMap<String, CompiledSchema>,
}

impl Rules {
    /// The sentences of the rules that do not hold.
    fn broken(&self, example: &Example) -> Vec<String> {
        let rules = &self.kinds[example.kind()];
        match self.validator.validate_compiled(rules, &example.object, example.old.as_ref()) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.into_iter().map(|e| e.to_string()).collect(),
        }
    }
}

/// Runs `test` with the rules, on a stack that is deep enough: the parser of rules calls itself for every
/// operator, and a test thread has two megabytes.
fn with_rules(test: fn(&Rules)) {
    let run = move || {
        let kinds = schemas().into_iter().map(|(kind, schema)| (kind, compile_schema(&schema))).collect();
        test(&Rules { validator: Validator::new(), kinds });
    };
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn bad_objects_break_a_rule_that_says_what_to_change() {
    with_rules(|rules| {
        let table = bad();
        assert!(table.len() >= 80, "{} bad objects", table.len());
        let mut wrong = Vec::new();
        for example in &table {
            let Some((Noticed::Rule, says)) = example.refused else { continue };
            let sentences = rules.broken(example);
            if !sentences.iter().any(|s| s.contains(says)) {
                wrong.push(format!(
                    "{} ({}): wanted `{says}`, got {sentences:?}",
                    example.what, example.object
                ));
            }
        }
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    });
}

#[test]
fn good_objects_break_no_rule_and_parse() {
    with_rules(|rules| {
        let schemas = schemas();
        for example in good() {
            assert_eq!(rules.broken(&example), Vec::<String>::new(), "{}", example.what);
            let object = apply_defaults(&schemas[example.kind()], &example.object);
            parses(example.kind(), object).unwrap_or_else(|e| panic!("{}: {e}", example.what));
        }
    });
}

/// Addresses that fit into one Subnet, most of them, and texts that fit nowhere.
fn address(family: usize) -> impl Strategy<Value = String> {
    const FITTING: [&[&str]; 2] = [
        &["10.0.0.1", "10.0.0.2", "10.0.0.100", "10.0.0.255", "10.0.1.0", "10.0.1.9"],
        &["fd00::1", "fd00::2", "fd00::ff", "fd00::100", "fd00::1:0", "fd00::8000:0:0:1"],
    ];
    const ODD: &[&str] = &[
        "10.0.0.0",
        "10.0.1.255",
        "fd00::",
        "10.9.9.9",
        "fd00:9::1",
        "fd00:0::1",
        "::ffff:10.0.0.1",
        "127.0.0.1",
        "fe80::1",
        "x",
    ];
    prop_oneof![
        15 => proptest::sample::select(FITTING[family]),
        1 => proptest::sample::select(ODD),
    ]
    .prop_map(str::to_owned)
}

fn prefix(family: usize) -> impl Strategy<Value = String> {
    let bits = [32u8, 128][family];
    (address(family), prop_oneof![3 => Just(bits), 1 => 20..=bits])
        .prop_map(|(address, len)| format!("{address}/{len}"))
}

fn ranges(family: usize) -> impl Strategy<Value = std::collections::BTreeSet<String>> {
    let span = (address(family), address(family)).prop_map(|(a, b)| format!("{a}-{b}"));
    let one = prop_oneof![4 => address(family), 1 => prefix(family), 2 => span];
    proptest::collection::btree_set(one, 0..3)
}

fn subnet() -> impl Strategy<Value = Value> {
    (0usize..2).prop_flat_map(|family| {
        let cidr = prop_oneof![6 => Just(["10.0.0.0/23", "fd00::/64"][family].to_owned()), 1 => prefix(family)];
        let gateway = proptest::option::of(address(family));
        let size = proptest::option::weighted(0.3, 20u8..=40);
        (cidr, gateway, ranges(family), ranges(family), ranges(family), size).prop_map(
            |(cidr, gateway, ranges, excluded, reserved, size)| {
                let mut spec = json!({
                    "network": "lab", "cidr": cidr, "ranges": ranges, "excludedIPs": excluded, "reservedIPs": reserved,
                });
                if let Some(gateway) = gateway {
                    spec["gateway"] = gateway.into();
                }
                if let Some(size) = size {
                    spec["blockSize"] = size.into();
                }
                object("Subnet", "lab-v4", &spec)
            },
        )
    })
}

fn instance() -> impl Strategy<Value = Value> {
    (0usize..2)
        .prop_flat_map(|family| (address(family), address(family), 8u8..=32, any::<bool>(), any::<bool>()))
        .prop_map(|(address, other, len, same, routed)| {
            let of = if same { &address } else { &other };
            let name = of.parse().map_or_else(|_| of.clone(), |a| InstanceName::new("", a).to_string());
            let mut spec =
                json!({"network": "lab", "subnet": "s", "address": format!("{address}/{len}"), "interface": "eth0"});
            if routed {
                spec["gateway"] = other.into();
            }
            object("IPInstance", &name, &spec)
        })
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "braid.network/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[test]
fn nothing_is_admitted_that_cannot_be_read() {
    with_rules(|rules| {
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        let admitted = std::cell::Cell::new(0);
        TestRunner::new(config)
            .run(&prop_oneof![3 => subnet(), 1 => instance()], |object| {
                let example = Example { what: "any", old: None, object, refused: None };
                if rules.broken(&example).is_empty() {
                    admitted.set(admitted.get() + 1);
                    let kind = example.kind().to_owned();
                    if let Err(error) = parses(&kind, example.object) {
                        return Err(TestCaseError::fail(error.to_string()));
                    }
                }
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(
            admitted.get() > 10,
            "only {} objects were admitted, so hardly anything was tested",
            admitted.get()
        );
    });
}

fn parses(kind: &str, object: Value) -> Result<(), Box<dyn std::error::Error>> {
    use braid_types::model::{BlockDef, InstanceDef, NetworkDef, NodeDef, SubnetDef};
    match kind {
        "Network" => NetworkDef::try_from(&serde_json::from_value::<Network>(object)?).map(drop)?,
        "Subnet" => SubnetDef::try_from(&serde_json::from_value::<Subnet>(object)?).map(drop)?,
        "IPInstance" => InstanceDef::try_from(&serde_json::from_value::<IPInstance>(object)?).map(drop)?,
        "IPBlock" => BlockDef::try_from(&serde_json::from_value::<IPBlock>(object)?).map(drop)?,
        "NodeNetwork" => NodeDef::try_from(&serde_json::from_value::<NodeNetwork>(object)?).map(drop)?,
        other => return Err(format!("unknown kind {other}").into()),
    }
    Ok(())
}

#[test]
fn generated_files_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../yaml");
    for (name, text) in crd::files().expect("YAML") {
        let stored = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(stored == text, "crds/yaml/{name} is stale; run `make crds`");
    }
}

/// Paths of fields below `schema` that `found` says yes to.
fn fields(path: &str, schema: &Value, found: &mut impl FnMut(&str, &Value)) {
    found(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        fields(&format!("{path}.{name}"), field, found);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            fields(&format!("{path}[]"), &schema[key], found);
        }
    }
}

#[test]
fn every_field_is_documented_and_bounded() {
    let mut missing = Vec::new();
    for (kind, schema) in schemas() {
        for part in ["spec", "status"] {
            fields(&format!("{kind}.{part}"), &schema["properties"][part], &mut |path, field| {
                // The shape of a condition is Kubernetes' own.
                if path.contains(".conditions[]") || field.is_null() {
                    return;
                }
                if !path.ends_with("[]") && !field["description"].is_string() {
                    missing.push(format!("{path} has no description"));
                }
                let bounded = match field["type"].as_str() {
                    Some("string") => ["maxLength", "enum", "format"].iter().any(|key| !field[key].is_null()),
                    Some("array") => !field["maxItems"].is_null(),
                    Some("object") => {
                        field["additionalProperties"].is_null() || !field["maxProperties"].is_null()
                    }
                    _ => true,
                };
                if !bounded {
                    missing.push(format!("{path} has no bound"));
                }
            });
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
