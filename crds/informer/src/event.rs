//! What a handler is told.

use std::sync::Arc;

use kube::core::error_boundary::InvalidObject;

/// A change that a watch saw.
#[derive(Debug, Clone)]
pub enum Event<K> {
    /// Everything there is. An object known before and missing here has vanished while nobody watched.
    Reset(Vec<Arc<K>>),
    /// Created or changed.
    Applied(Arc<K>),
    /// Deleted; the last state of it.
    Deleted(Arc<K>),
    /// Exists, or existed until now, but is not understood. Where this happens in a full list, it comes before the
    /// [`Event::Reset`] that lacks the object, so that the handler can tell it from a vanished one.
    Undecodable(Undecodable),
}

/// An object that the API server has and that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object `{name}` cannot be read: {reason}")]
pub struct Undecodable {
    /// Namespace, where the kind has one.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Whether this is its last state: it was deleted.
    pub deleted: bool,
    /// What is wrong with it.
    pub reason: String,
}

impl From<InvalidObject> for Undecodable {
    fn from(object: InvalidObject) -> Self {
        Self {
            namespace: object.metadata.namespace,
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            deleted: false,
            reason: object.error,
        }
    }
}

/// Takes the events of one watch, in order. Every `FnMut(Event<K>)` is one.
pub trait Handler<K>: Send + 'static {
    /// Takes one event. Runs on the watch's task: it may take a lock for a moment, but must not block.
    fn handle(&mut self, event: Event<K>);
}

impl<K, F: FnMut(Event<K>) + Send + 'static> Handler<K> for F {
    fn handle(&mut self, event: Event<K>) {
        self(event);
    }
}
