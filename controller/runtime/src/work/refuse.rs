//! Tells a pod why it gets no address, on the pod itself, and takes it back later.

use std::time::Duration;

use braid_controller_core::{Refusal, Topic};
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Work;
use super::grant::SAFETY_NET;
use crate::events::pod_reference;
use crate::metrics::ReasonLabel;
use crate::queue::Outcome;
use crate::world::Uid;
use crate::write::WriteError;
use braid_types::well_known::condition::ADDRESSED;

/// How often a condition whose reason stays the same gets a new sentence: "12 of 12 in use, 1 cooling down"
/// changes with every pod of the subnet, and a thousand waiting pods would each write it.
const REWORD: Duration = Duration::from_secs(30);
/// For a refusal that mostly passes by itself, such as waiting for the teardown of a predecessor.
const PASSES_BY_ITSELF: Duration = Duration::from_secs(5);

/// A refusal, from the core or from reading the annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct No {
    /// One word.
    pub(super) reason: &'static str,
    /// The sentence for the Event, the condition and the CNI error.
    pub(super) message: String,
    /// What could help.
    pub(super) retry_on: Vec<Topic>,
    /// How long the pod waits from being bound before it is told: what passes by itself in a moment is no news.
    pub(super) patience: Duration,
}

impl From<&Refusal> for No {
    fn from(refusal: &Refusal) -> Self {
        let passes = matches!(refusal, Refusal::StillHeld { .. } | Refusal::NodeMissing { .. });
        Self {
            reason: refusal.reason(),
            message: refusal.to_string(),
            retry_on: refusal.retry_on(),
            patience: if passes { PASSES_BY_ITSELF } else { Duration::ZERO },
        }
    }
}

impl No {
    /// An annotation that cannot be understood, of the pod or of this namespace.
    pub(super) fn bad_annotation(sentence: &str, namespace: Option<&str>) -> Self {
        Self {
            reason: "BadAnnotation",
            message: sentence.to_owned(),
            retry_on: namespace.map(|n| Topic::Namespace(n.to_owned())).into_iter().collect(),
            patience: Duration::ZERO,
        }
    }

    /// A namespace that the watch has not brought yet: what it says about its pods is not known.
    pub(super) fn unknown_namespace(namespace: &str) -> Self {
        Self {
            reason: "NamespaceUnknown",
            message: format!("namespace {namespace} is not known yet; this passes by itself"),
            retry_on: vec![Topic::Namespace(namespace.to_owned())],
            patience: PASSES_BY_ITSELF,
        }
    }
}

impl Work {
    /// Says why on the pod, once. What an earlier attempt has created for it stays: another controller may be completing
    /// it, and its agent may use it the moment it is whole. It is completed later or freed with the pod.
    pub(super) async fn refuse(&self, uid: &Uid, no: No) -> Outcome {
        let (pod, news) = {
            let mut world = self.shared.world();
            let Some(entry) = world.pods.get_mut(uid) else { return Outcome::Done };
            entry.granted = false;
            if let Some(rest) = no.patience.checked_sub(entry.bound.elapsed()).filter(|rest| !rest.is_zero())
            {
                return Outcome::Again(rest);
            }
            let same_reason = entry.refused.as_ref().is_some_and(|told| told.0 == no.reason);
            let same_words = entry.refused.as_ref().is_some_and(|told| told.1 == no.message);
            let lately = entry.told.is_some_and(|told| told.elapsed() < REWORD);
            let news = match (same_reason, same_words) {
                (true, true) => News::None,
                (true, false) if lately => News::Later,
                (true, false) => News::Words,
                (false, _) => News::Reason,
            };
            (entry.pod.clone(), news)
        };
        match news {
            News::None => return SAFETY_NET,
            News::Later => return Outcome::Again(REWORD),
            News::Words | News::Reason => {}
        }
        let patch = json!({
            "metadata": {"uid": pod.uid},
            "status": {"conditions": [{
                "type": ADDRESSED,
                "status": "False",
                "reason": no.reason,
                "message": no.message,
                "lastTransitionTime": crate::clock::timestamp().to_string(),
            }]},
        });
        match self.patch_pod(&pod.namespace, &pod.name, &patch).await {
            Ok(()) => {}
            Err(error) => {
                warn!(namespace = %pod.namespace, pod = %pod.name, %error, "the pod could not be told of its refusal");
                return Outcome::Retry;
            }
        }
        if let Some(entry) = self.shared.world().pods.get_mut(uid) {
            entry.refused = Some(Box::new((no.reason.to_owned(), no.message.clone())));
            entry.told = Some(Instant::now());
        }
        if news == News::Reason {
            info!(
                namespace = %pod.namespace,
                pod = %pod.name,
                reason = no.reason,
                message = no.message,
                "refused"
            );
            self.metrics.refusals.get_or_create(&ReasonLabel { reason: no.reason.to_owned() }).inc();
            self.events.warn(&pod_reference(&pod), "GrantAddress", no.reason, &no.message).await;
        }
        SAFETY_NET
    }

    /// The pod has its addresses: a refusal on it is no longer true.
    pub(super) async fn take_back_refusal(&self, uid: &Uid) -> Outcome {
        let pod = {
            let world = self.shared.world();
            match world.pods.get(uid) {
                Some(entry) if entry.refused.is_some() => entry.pod.clone(),
                _ => return Outcome::Done,
            }
        };
        let patch = json!({
            "metadata": {"uid": pod.uid},
            "status": {"conditions": [{"type": ADDRESSED, "$patch": "delete"}]},
        });
        if let Err(error) = self.patch_pod(&pod.namespace, &pod.name, &patch).await {
            warn!(namespace = %pod.namespace, pod = %pod.name, %error, "the refusal could not be taken back");
            return Outcome::Retry;
        }
        if let Some(entry) = self.shared.world().pods.get_mut(uid) {
            entry.refused = None;
            entry.told = Some(Instant::now());
        }
        info!(namespace = %pod.namespace, pod = %pod.name, "granted after having been refused");
        Outcome::Done
    }

    /// Changes the pod's status; a pod that is gone, or replaced by another of its name, needs no telling.
    async fn patch_pod(
        &self,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<(), WriteError> {
        let result = self.writer.strategic_status::<PartialObjectMeta<Pod>>(namespace, name, patch).await;
        match result {
            Ok(_) | Err(WriteError::Missing(_) | WriteError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What a refusal says that the pod does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Nothing.
    None,
    /// Another sentence, but it was given one a moment ago.
    Later,
    /// Another sentence.
    Words,
    /// Another reason.
    Reason,
}
