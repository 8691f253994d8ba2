//! Node affinity of a pod, so that the scheduler looks at the nodes of its Network only.
//!
//! Works on the JSON itself: decoding it into types would drop the fields that a later Kubernetes has added.

use braid_types::{Operator, Selector};
use serde_json::{Map, Value, json};

const NODE: &str = "nodeAffinity";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const TERMS: &str = "nodeSelectorTerms";
const EXPRESSIONS: &str = "matchExpressions";
const FIELDS: &str = "matchFields";

/// `affinity` with `nodes` demanded on top of everything that it demands already; `None` where nothing changes.
pub(super) fn restricted(affinity: Option<&Value>, nodes: &Selector) -> Option<Value> {
    let wanted = requirements(nodes);
    if wanted.is_empty() {
        return None;
    }
    let mut new = affinity.and_then(Value::as_object).cloned().unwrap_or_default();
    let node = new.entry(NODE).or_insert(Value::Null);
    if node.is_null() {
        *node = json!({});
    }
    let required = node.as_object_mut()?.entry(REQUIRED).or_insert(Value::Null);
    if required.is_null() {
        *required = json!({TERMS: [{EXPRESSIONS: wanted}]});
    } else {
        // Terms are alternatives: each of them has to demand it. A list that is missing or empty is refused by the API
        // server itself, which must not be hidden from it.
        let terms = required.get_mut(TERMS).and_then(Value::as_array_mut)?;
        terms.iter_mut().filter_map(Value::as_object_mut).for_each(|term| demand(term, &wanted));
    }
    let new = Value::Object(new);
    (affinity != Some(&new)).then_some(new)
}

fn demand(term: &mut Map<String, Value>, wanted: &[Value]) {
    let is_empty = |key: &str| term.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty);
    // A term without any requirement selects no node; with one it would select some.
    if is_empty(EXPRESSIONS) && is_empty(FIELDS) {
        return;
    }
    let expressions = term.entry(EXPRESSIONS).or_insert(Value::Null);
    if expressions.is_null() {
        *expressions = json!([]);
    }
    if let Some(expressions) = expressions.as_array_mut() {
        let missing: Vec<_> = wanted.iter().filter(|w| !expressions.contains(w)).cloned().collect();
        expressions.extend(missing);
    }
}

/// The selector as requirements of a node selector term, which has no `matchLabels`.
fn requirements(selector: &Selector) -> Vec<Value> {
    let labels =
        selector.match_labels.iter().map(|(k, v)| json!({"key": k, "operator": "In", "values": [v]}));
    let expressions = selector.match_expressions.iter().map(|r| match r.operator {
        Operator::In => json!({"key": r.key, "operator": "In", "values": r.values}),
        Operator::NotIn => json!({"key": r.key, "operator": "NotIn", "values": r.values}),
        Operator::Exists => json!({"key": r.key, "operator": "Exists"}),
        Operator::DoesNotExist => json!({"key": r.key, "operator": "DoesNotExist"}),
    });
    labels.chain(expressions).collect()
}

#[cfg(test)]
mod tests {
    use braid_types::Requirement;

    use super::*;

    fn lab() -> Selector {
        let gpu = Requirement { key: "gpu".into(), operator: Operator::Exists, values: Vec::new() };
        Selector { match_labels: [("lab".to_owned(), "yes".to_owned())].into(), match_expressions: vec![gpu] }
    }

    fn check(before: &Value, after: &Value) {
        let before = Some(before).filter(|b| !b.is_null());
        assert_eq!(restricted(before, &lab()).as_ref(), Some(after).filter(|a| !a.is_null()));
        if !after.is_null() {
            assert_eq!(restricted(Some(after), &lab()), None, "asked again, it changes nothing");
        }
    }

    #[test]
    fn every_term_demands_the_networks_nodes_and_no_other_rule_is_lost() {
        let lab = json!({"key": "lab", "operator": "In", "values": ["yes"]});
        let gpu = json!({"key": "gpu", "operator": "Exists"});
        let ours = json!({TERMS: [{EXPRESSIONS: [lab, gpu]}]});
        let node = |required: Value| json!({NODE: {REQUIRED: required}});
        check(&Value::Null, &node(ours.clone()));
        check(&json!({}), &node(ours.clone()));
        let other =
            json!({"podAffinity": {"x": 1}, NODE: {"preferredDuringSchedulingIgnoredDuringExecution": []}});
        let mut with = other.clone();
        with[NODE][REQUIRED] = ours;
        check(&other, &with);

        let ssd = json!({"key": "disk", "operator": "In", "values": ["ssd"]});
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
        check(
            &node(json!({TERMS: [{EXPRESSIONS: [ssd]}, {FIELDS: [field]}, {EXPRESSIONS: [gpu, ssd]}]})),
            &node(json!({TERMS: [
                {EXPRESSIONS: [ssd, lab, gpu]},
                {FIELDS: [field], EXPRESSIONS: [lab, gpu]},
                {EXPRESSIONS: [gpu, ssd, lab]},
            ]})),
        );
    }

    #[test]
    fn what_selects_nothing_goes_on_to_select_nothing() {
        let node = |required: Value| json!({NODE: {REQUIRED: required}});
        for dead in [json!({TERMS: [{}]}), json!({TERMS: [{EXPRESSIONS: [], FIELDS: []}]})] {
            check(&node(dead), &Value::Null);
        }
        // Left for the API server to refuse.
        for wrong in [json!({TERMS: []}), json!({TERMS: null}), json!({}), json!("x")] {
            check(&node(wrong), &Value::Null);
        }
        check(&json!({NODE: "x"}), &Value::Null);
    }

    #[test]
    fn a_network_of_all_nodes_demands_nothing() {
        assert_eq!(restricted(None, &Selector::default()), None);
    }
}
