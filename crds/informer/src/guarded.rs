//! Objects as a watch delivers them: one that cannot be read does not hide the others.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::PartialObjectMeta;
use kube::core::error_boundary::InvalidObject;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object, or the metadata of one that is no `K`, and why not.
///
/// [`kube::core::DeserializeGuard`] does the same for any format, by way of two copies of the whole object as a tree of
/// values: several times the work, for every object of a cluster. This one reads JSON only, and reads it once. What `K`
/// does not name is skipped where it stands.
#[derive(Debug, Clone)]
pub struct Guarded<K>(pub(crate) Result<K, InvalidObject>);

impl<'de, K: DeserializeOwned + Resource> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(decoder: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(decoder)?;
        match serde_json::from_str(text.get()) {
            Ok(object) => Ok(Self(Ok(object))),
            Err(_) => invalid::<K>(text.get()).map(|invalid| Self(Err(invalid))).map_err(D::Error::custom),
        }
    }
}

/// What is wrong, without a position in a text that nobody sees.
fn invalid<K: DeserializeOwned>(text: &str) -> serde_json::Result<InvalidObject> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let error = serde_json::from_value::<K>(value.clone()).err().map_or_else(String::new, |e| e.to_string());
    let PartialObjectMeta::<()> { metadata, .. } = serde_json::from_value(value)?;
    Ok(InvalidObject { error, metadata })
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|invalid| &invalid.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|invalid| &mut invalid.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{ObjectList, WatchEvent};

    use super::*;

    const GOOD: &str =
        r#"{"kind":"ConfigMap","metadata":{"name":"good","resourceVersion":"7"},"data":{"a":"b"}}"#;
    const BAD: &str = r#"{"kind":"ConfigMap","metadata":{"name":"bad","resourceVersion":"8"},"data":5}"#;

    fn outcome(object: &Guarded<ConfigMap>) -> (&str, &str, Option<&str>) {
        let meta = object.meta();
        let error = object.0.as_ref().err().map(|invalid| invalid.error.as_str());
        (meta.name.as_deref().unwrap(), meta.resource_version.as_deref().unwrap(), error)
    }

    const WHY: Option<&str> = Some("invalid type: integer `5`, expected a map");

    fn event(type_: &str, object: &str) -> WatchEvent<Guarded<ConfigMap>> {
        serde_json::from_str(&format!(r#"{{"type":"{type_}","object":{object}}}"#)).unwrap()
    }

    #[test]
    fn in_an_event_of_a_watch() {
        for type_ in ["ADDED", "MODIFIED", "DELETED"] {
            let read = |object| match (type_, event(type_, object)) {
                ("ADDED", WatchEvent::Added(object))
                | ("MODIFIED", WatchEvent::Modified(object))
                | ("DELETED", WatchEvent::Deleted(object)) => object,
                other => panic!("{other:?}"),
            };
            assert_eq!(outcome(&read(GOOD)), ("good", "7", None));
            assert_eq!(outcome(&read(BAD)), ("bad", "8", WHY));
        }
    }

    #[test]
    fn what_is_no_object_is_none() {
        let bookmark = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"12","creationTimestamp":null,
            "annotations":{"k8s.io/initial-events-end":"true"}}}"#;
        match event("BOOKMARK", bookmark) {
            WatchEvent::Bookmark(mark) => {
                assert_eq!(mark.metadata.resource_version, "12");
                assert_eq!(mark.metadata.annotations["k8s.io/initial-events-end"], "true");
            }
            other => panic!("{other:?}"),
        }
        let expired = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
        match event("ERROR", expired) {
            WatchEvent::Error(status) => assert_eq!((status.code, &*status.reason), (410, "Expired")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn in_a_list() {
        let text = format!(
            r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{GOOD},{BAD}]}}"#
        );
        let list: ObjectList<Guarded<ConfigMap>> = serde_json::from_str(&text).unwrap();
        let all: Vec<_> = list.items.iter().map(outcome).collect();
        assert_eq!(all, [("good", "7", None), ("bad", "8", WHY)]);
    }
}
