//! More replicas by `/scale`, as `kubectl scale` and autoscalers ask for them: judged like a change of the workload itself,
//! which is read from the API server for it. No cache holds all workloads of a cluster for the few that are scaled.

use std::time::Duration;

use kube::core::admission::AdmissionRequest;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{Allowed, workloads};
use crate::world::Shared;

/// Longest time for reading the workload. The API server waits 3 s for the whole answer (`timeoutSeconds`).
const READING: Duration = Duration::from_secs(1);

/// Why a workload is not known.
#[derive(Debug, thiserror::Error)]
enum Unread {
    /// It could not be read.
    #[error(transparent)]
    Failed(#[from] kube::Error),
    /// There was no answer in time.
    #[error("no answer within {} s", READING.as_secs())]
    TooSlow(#[from] tokio::time::error::Elapsed),
}

/// Judges the wish for another number of pods.
///
/// # Errors
/// The sentence that the same change of the workload itself gets.
pub(super) async fn decide(
    shared: &Shared,
    client: &Client,
    request: &AdmissionRequest<DynamicObject>,
) -> Result<Allowed, String> {
    let Some(replicas) = raised(request) else { return Ok(Allowed::default()) };
    judge(shared, request, replicas, read(client, request).await)
}

/// The number of replicas that is asked for, if it is higher than before: who has too many pods must get rid of them.
fn raised(request: &AdmissionRequest<DynamicObject>) -> Option<u64> {
    // A number of zero is left out.
    let replicas = |scale: &DynamicObject| scale.data["spec"]["replicas"].as_u64().unwrap_or(0);
    let new = replicas(request.object.as_ref()?);
    (new > request.old_object.as_ref().map_or(0, replicas)).then_some(new)
}

/// The workload of the request, as the API server has it.
async fn read(client: &Client, request: &AdmissionRequest<DynamicObject>) -> Result<DynamicObject, Unread> {
    let of = &request.resource;
    // The kind is not part of the path, and the request has that of the Scale.
    let kind = GroupVersionKind::gvk(&of.group, &of.version, "");
    let resource = ApiResource::from_gvk_with_plural(&kind, &of.resource);
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    Ok(tokio::time::timeout(READING, api.get(&request.name)).await??)
}

fn judge(
    shared: &Shared,
    request: &AdmissionRequest<DynamicObject>,
    replicas: u64,
    workload: Result<DynamicObject, Unread>,
) -> Result<Allowed, String> {
    let (resource, namespace) =
        (&request.resource.resource, request.namespace.as_deref().unwrap_or_default());
    let workload = match workload {
        Ok(workload) => workload,
        Err(error) => {
            let warning = format!(
                "{resource} {namespace}/{} could not be read ({error}), so nobody has counted whether its pods' fixed \
                 addresses are enough for {replicas} replicas; pods that get none will say so",
                request.name
            );
            return Ok(Allowed { warnings: vec![warning], ..Allowed::default() });
        }
    };
    if workload.metadata.deletion_timestamp.is_some() {
        return Ok(Allowed::default());
    }
    let mut spec: Value = workload.data["spec"].clone();
    spec["replicas"] = json!(replicas);
    workloads::judge(shared, resource, namespace, &spec).map(|()| Allowed::default())
}
