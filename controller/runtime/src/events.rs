//! Kubernetes Events: what people see in `kubectl describe`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tracing::debug;

use braid_api::condition::shortened;
use braid_types::well_known::CONTROLLER_MANAGER;

use crate::write::Writer;

/// Writes Events. Equal ones become one with a count.
#[derive(Clone)]
pub(crate) struct Events {
    recorder: Arc<Recorder>,
    writer: Writer,
}

impl Events {
    /// Writes Events in the name of `instance`.
    pub(crate) fn new(client: Client, writer: Writer, instance: String) -> Self {
        let reporter = Reporter { controller: CONTROLLER_MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Arc::new(Recorder::new(client, reporter)), writer }
    }

    /// Says that somebody must look. An Event that cannot be written is not worth a failure: the same is said
    /// by a condition.
    pub(crate) async fn warn(&self, object: &ObjectReference, action: &str, reason: &str, note: &str) {
        self.publish(EventType::Warning, object, action, reason, note).await;
    }

    /// Says that something has happened.
    pub(crate) async fn info(&self, object: &ObjectReference, action: &str, reason: &str, note: &str) {
        self.publish(EventType::Normal, object, action, reason, note).await;
    }

    async fn publish(
        &self,
        type_: EventType,
        object: &ObjectReference,
        action: &str,
        reason: &str,
        note: &str,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: action.to_owned(),
            secondary: None,
        };
        let name = object.name.as_deref().unwrap_or_default();
        let result =
            self.writer.other("create", "events", name, || self.recorder.publish(&event, object)).await;
        if let Err(error) = result {
            debug!(%error, object = name, reason, "Event not written");
        }
    }
}

/// A reference to one of Braid's own objects, which have no namespace.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

/// A reference to a pod.
pub(crate) fn pod_reference(pod: &braid_types::model::PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}
