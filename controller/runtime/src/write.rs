//! The only place that writes to the API server.
//!
//! Every call has a time limit, is repeated while the API server is busy or away, and is counted. Nothing is
//! written once the right to do so has ended ([`Gate`]).

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, ClusterResourceScope, DynamicObject, GroupVersionKind};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use braid_types::well_known::{CONTROLLER_MANAGER, annotation};

use crate::gate::Gate;
use crate::metrics::{Metrics, WriteLabels};

/// Longest time for one attempt. Shorter than a Lease outlives its renew deadline, so that no call begun under
/// one leader is still under way when the next one takes over.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(4);
/// Longest time for all attempts. Afterwards the work queue tries again.
const TOTAL: Duration = Duration::from_secs(12);
/// Pause after the first failed attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// This process does not lead.
    #[error("{0}: not written, as this process does not lead")]
    NotLeading(Target),
    /// An object of that name exists.
    #[error("{0}: exists already")]
    Exists(Target),
    /// The object changed meanwhile.
    #[error("{0}: changed meanwhile")]
    Conflict(Target),
    /// There is no such object.
    #[error("{0}: does not exist")]
    Missing(Target),
    /// The API server refuses; asking again will not help.
    #[error("{target}: refused: {reason}")]
    Refused {
        /// What was to be done.
        target: Target,
        /// The API server's words.
        reason: String,
    },
    /// The API server is away or overloaded.
    #[error("{target}: the API server does not answer")]
    Unavailable {
        /// What was to be done.
        target: Target,
        /// The last failure; `None` = no answer within the limit.
        source: Option<Box<kube::Error>>,
    },
}

/// What a call does to which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    verb: &'static str,
    resource: &'static str,
    name: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.verb, self.resource, self.name)
    }
}

/// Precondition of a delete or a patch: the object as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Uid of the object.
    pub(crate) uid: String,
    /// Its resourceVersion.
    pub(crate) version: String,
}

/// Kinds that are written, with the name that appears in messages and metrics.
pub(crate) trait Written:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync
{
    /// Resource, plural.
    const RESOURCE: &'static str;
}

macro_rules! written {
    ($($kind:ty => $resource:literal),* $(,)?) => {
        $(impl Written for $kind { const RESOURCE: &'static str = $resource; })*
    };
}

written! {
    braid_api::Network => "networks",
    braid_api::Subnet => "subnets",
    braid_api::IPInstance => "ipinstances",
    braid_api::IPBlock => "ipblocks",
    braid_api::NodeNetwork => "nodenetworks",
    k8s_openapi::api::core::v1::Secret => "secrets",
    k8s_openapi::api::coordination::v1::Lease => "leases",
    k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration => "validatingwebhookconfigurations",
    k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration => "mutatingwebhookconfigurations",
    kube::core::PartialObjectMeta<k8s_openapi::api::core::v1::Pod> => "pods",
    braid_api::slim::Pod => "pods",
}

/// Whether a call needs the right to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Lead,
    Nothing,
}

/// Writes. Clones share connections, limits and counters.
#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
    gate: Gate,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
}

impl Writer {
    /// A writer with at most `parallel` calls in flight.
    pub(crate) fn new(client: Client, gate: Gate, metrics: Arc<Metrics>, parallel: usize) -> Self {
        Self { client, gate, metrics, slots: Arc::new(Semaphore::new(parallel)) }
    }

    /// Whether this process may write what the leader alone writes, at this moment.
    pub(crate) fn leads(&self) -> bool {
        self.gate.fence().is_some()
    }

    /// Creates a cluster-scoped object, with the fencing token on it.
    pub(crate) async fn create<K>(&self, object: &K) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope> + Serialize,
    {
        let api = Api::<K>::all(self.client.clone());
        let mut object = object.clone();
        let fence = self.gate.fence().map(|f| f.to_string()).unwrap_or_default();
        object.meta_mut().annotations.get_or_insert_default().insert(annotation::FENCE.to_owned(), fence);
        let params =
            PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let name = object.meta().name.clone().unwrap_or_default();
        self.call(Needs::Lead, "create", K::RESOURCE, &name, || api.create(&params, &object)).await
    }

    /// Reads a cluster-scoped object from the API server itself.
    pub(crate) async fn get<K>(&self, name: &str) -> Result<Option<K>, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        self.call(Needs::Lead, "get", K::RESOURCE, name, || api.get_opt(name)).await
    }

    /// Replaces a cluster-scoped object; its `resourceVersion` is the precondition.
    pub(crate) async fn replace<K>(&self, object: &K) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope> + Serialize,
    {
        let api = Api::<K>::all(self.client.clone());
        let params =
            PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let name = object.meta().name.clone().unwrap_or_default();
        self.call(Needs::Lead, "update", K::RESOURCE, &name, || api.replace(&name, &params, object)).await
    }

    /// Deletes a cluster-scoped object if it is still as it was seen.
    pub(crate) async fn delete<K>(&self, name: &str, seen: &Seen) -> Result<(), WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(seen.uid.clone()),
                resource_version: Some(seen.version.clone()).filter(|v| !v.is_empty()),
            }),
            ..DeleteParams::default()
        };
        self.call(Needs::Lead, "delete", K::RESOURCE, name, || api.delete(name, &params)).await.map(|_| ())
    }

    /// Merges `patch` into a cluster-scoped object. A uid and resourceVersion in its metadata are preconditions.
    pub(crate) async fn merge<K>(&self, name: &str, patch: &Value) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        let (params, patch) = (manager(), Patch::Merge(patch));
        self.call(Needs::Lead, "patch", K::RESOURCE, name, || api.patch(name, &params, &patch)).await
    }

    /// Merges `patch` into the status of a cluster-scoped object.
    pub(crate) async fn merge_status<K>(&self, name: &str, patch: &Value) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        let (params, patch) = (manager(), Patch::Merge(patch));
        self.call(Needs::Lead, "patch", K::RESOURCE, name, || api.patch_status(name, &params, &patch)).await
    }

    /// Applies `object` server-side to the status of a cluster-scoped object.
    pub(crate) async fn apply_status<K>(&self, name: &str, object: &Value) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        let (params, patch) = (PatchParams::apply(CONTROLLER_MANAGER).force(), Patch::Apply(object));
        self.call(Needs::Lead, "apply", K::RESOURCE, name, || api.patch_status(name, &params, &patch)).await
    }

    /// Applies a JSON patch (RFC 6902) to a cluster-scoped object.
    pub(crate) async fn json_patch<K>(&self, name: &str, patch: &json_patch::Patch) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::<K>::all(self.client.clone());
        let (params, patch) = (manager(), Patch::Json::<()>(patch.clone()));
        self.call(Needs::Lead, "patch", K::RESOURCE, name, || api.patch(name, &params, &patch)).await
    }

    /// Merges `patch` into the status of a namespaced object, lists by their keys.
    pub(crate) async fn strategic_status<K>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = NamespaceResourceScope>,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let (params, patch) = (manager(), Patch::Strategic(patch));
        self.call(Needs::Lead, "patch", K::RESOURCE, name, || api.patch_status(name, &params, &patch)).await
    }

    /// Reads a namespaced object from the API server itself. Needs no right to write.
    pub(crate) async fn get_in<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, WriteError>
    where
        K: Written + Resource<Scope = NamespaceResourceScope>,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        self.call(Needs::Nothing, "get", K::RESOURCE, name, || api.get_opt(name)).await
    }

    /// Whether an object of any kind exists, by the word of the API server itself. `namespace` is empty for a
    /// cluster-scoped one.
    pub(crate) async fn exists(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<bool, WriteError> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let found = self.call(Needs::Lead, "get", "owners", name, || api.get_metadata_opt(name)).await?;
        Ok(found.is_some())
    }

    /// Creates a namespaced object. Needs no right to write: Lease and Secret are what that right rests on.
    pub(crate) async fn create_in<K>(&self, namespace: &str, object: &K) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = NamespaceResourceScope> + Serialize,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let params =
            PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let name = object.meta().name.clone().unwrap_or_default();
        self.call(Needs::Nothing, "create", K::RESOURCE, &name, || api.create(&params, object)).await
    }

    /// Replaces a namespaced object under its `resourceVersion`. Needs no right to write.
    pub(crate) async fn replace_in<K>(&self, namespace: &str, object: &K) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = NamespaceResourceScope> + Serialize,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let params =
            PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let name = object.meta().name.clone().unwrap_or_default();
        self.call(Needs::Nothing, "update", K::RESOURCE, &name, || api.replace(&name, &params, object)).await
    }

    /// Runs a call that belongs to another part of `kube`, with the same limits: Events.
    pub(crate) async fn other<T, Fut>(
        &self,
        verb: &'static str,
        resource: &'static str,
        name: &str,
        attempt: impl Fn() -> Fut,
    ) -> Result<T, WriteError>
    where
        Fut: Future<Output = kube::Result<T>>,
    {
        self.call(Needs::Lead, verb, resource, name, attempt).await
    }

    async fn call<T, Fut>(
        &self,
        needs: Needs,
        verb: &'static str,
        resource: &'static str,
        name: &str,
        attempt: impl Fn() -> Fut,
    ) -> Result<T, WriteError>
    where
        Fut: Future<Output = kube::Result<T>>,
    {
        let target = || Target { verb, resource, name: name.to_owned() };
        let end = Instant::now() + TOTAL;
        let mut pause = PAUSE;
        loop {
            // The Lease is renewed past everybody else who waits.
            let slot = match needs {
                Needs::Lead => self.slots.acquire().await.ok(),
                Needs::Nothing => None,
            };
            if needs == Needs::Lead && self.gate.fence().is_none() {
                return Err(WriteError::NotLeading(target()));
            }
            let result = tokio::time::timeout(ATTEMPT, attempt()).await;
            drop(slot);
            self.count(verb, resource, &result);
            let (failure, wait) = match result {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => match classify(error, target) {
                    Verdict::Final(error) => return Err(error),
                    Verdict::Again(error, asked) => (Some(error), asked),
                },
                Err(_) => (None, None),
            };
            let wait = wait.unwrap_or(pause).mul_f64(0.75 + 0.5 * rand::random::<f64>());
            if Instant::now() + wait >= end {
                return Err(WriteError::Unavailable { target: target(), source: failure });
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
    }

    fn count<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        result: &Result<kube::Result<T>, tokio::time::error::Elapsed>,
    ) {
        let code = match result {
            Ok(Ok(_)) => "ok".to_owned(),
            Ok(Err(kube::Error::Api(status))) => status.code.to_string(),
            Ok(Err(_)) => "unreachable".to_owned(),
            Err(_) => "timeout".to_owned(),
        };
        self.metrics.api_writes.get_or_create(&WriteLabels { verb, resource, code }).inc();
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PatchParams::default() }
}

enum Verdict {
    Final(WriteError),
    Again(Box<kube::Error>, Option<Duration>),
}

/// Sorts a failure: what will not change by asking again, and what may.
fn classify(error: kube::Error, target: impl Fn() -> Target) -> Verdict {
    let kube::Error::Api(status) = &error else {
        return Verdict::Again(Box::new(error), None);
    };
    match status.code {
        404 => Verdict::Final(WriteError::Missing(target())),
        409 if status.reason == "AlreadyExists" => Verdict::Final(WriteError::Exists(target())),
        409 => Verdict::Final(WriteError::Conflict(target())),
        429 | 500..=599 => {
            let asked = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
            let wait = (asked > 0).then(|| Duration::from_secs(u64::from(asked)).min(Duration::from_secs(5)));
            Verdict::Again(Box::new(error), wait)
        }
        _ => Verdict::Final(WriteError::Refused { target: target(), reason: status.message.clone() }),
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
