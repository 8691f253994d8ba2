//! Conditions of objects, as `kubectl wait --for=condition=...` judges them.

use serde_json::Value;

/// Whether a condition holds: `Ready`, or `Ready=False`. What was said about an older generation of the object does not
/// count.
pub(crate) fn holds(object: &Value, condition: &str) -> bool {
    let (name, wanted) = condition.split_once('=').unwrap_or((condition, "True"));
    let is_same =
        |value: &Value, text: &str| value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(text));
    let conditions = object["status"]["conditions"].as_array();
    let Some(found) = conditions.into_iter().flatten().find(|entry| is_same(&entry["type"], name)) else {
        return false;
    };
    let observed = found["observedGeneration"].as_i64();
    let observed = observed.or_else(|| object["status"]["observedGeneration"].as_i64());
    let is_old =
        observed.zip(object["metadata"]["generation"].as_i64()).is_some_and(|(observed, now)| observed < now);
    !is_old && is_same(&found["status"], wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_judged_as_by_kubectl_wait() {
        let ready = |status: &str| json!({"type": "Ready", "status": status});
        let object =
            |conditions: Value| json!({"metadata": {"generation": 2}, "status": {"conditions": conditions}});
        assert!(holds(&object(json!([ready("True")])), "Ready"));
        assert!(holds(&object(json!([ready("True")])), "ready=true"));
        assert!(!holds(&object(json!([ready("False")])), "Ready"));
        assert!(holds(&object(json!([ready("False")])), "Ready=False"));
        assert!(!holds(&object(json!([ready("True")])), "Established"));
        assert!(!holds(&json!({}), "Ready"));
        assert!(!holds(&Value::Null, "Ready"));
    }

    #[test]
    fn a_condition_of_an_older_generation_does_not_count() {
        let check = |of_condition: Value, of_status: Value, wanted: bool| {
            let condition = json!({"type": "Ready", "status": "True", "observedGeneration": of_condition});
            let status = json!({"conditions": [condition], "observedGeneration": of_status});
            let object = json!({"metadata": {"generation": 2}, "status": status});
            assert_eq!(holds(&object, "Ready"), wanted, "{object}");
        };
        check(json!(1), Value::Null, false);
        check(json!(2), Value::Null, true);
        check(Value::Null, json!(1), false);
        check(Value::Null, json!(2), true);
        check(json!(2), json!(1), true);
    }
}
