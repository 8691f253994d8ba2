//! Single questions to the API server that no cache answers.

use std::time::Duration;

use braid_api::slim::Pod;
use kube::{Api, Client};

use crate::client::RequestError;
use crate::cni::wait::PodLookup;
use crate::watches::MIRROR;

/// Longest time for asking while an ADD waits.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct ApiLookup {
    pub(crate) client: Client,
}

impl PodLookup for ApiLookup {
    async fn look_up(&self, namespace: &str, name: &str) -> Result<Option<Vec<String>>, RequestError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let answer = tokio::time::timeout(ASK_LIMIT, api.get_opt(name)).await;
        let pod = answer.map_err(|_| RequestError::Timeout)??;
        Ok(pod.map(uids))
    }
}

fn uids(pod: Pod) -> Vec<String> {
    // A pod that is over counts as gone: nothing will run in it any more.
    if pod.is_finished() {
        return Vec::new();
    }
    let mirror = pod.metadata.annotations.and_then(|mut all| all.remove(MIRROR));
    pod.metadata.uid.into_iter().chain(mirror).collect()
}
