//! Gives addresses to pods that were bound to a node, and to nodes that take part in overlays.

use std::sync::Arc;
use std::time::Duration;

use braid_controller_core::{Grant, PodRequest, Refusal, VtepRequest};
use futures::StreamExt;
use tracing::{debug, info, warn};

use super::Work;
use super::refuse::No;
use crate::index;
use crate::queue::Outcome;
use crate::world::{Uid, World};
use crate::write::WriteError;

/// How often another address is tried at once, when others are faster, before the queue's backoff.
const ROUNDS: usize = 32;
/// How long a refused pod waits at most: what could help it also wakes it up, this is the safety net.
const ASK_AGAIN: Duration = Duration::from_secs(120);
/// How soon a node that got no address for its tunnel end asks again.
const VTEP_AGAIN: Duration = Duration::from_secs(15);
/// Interface that addresses of a pod's default network are for.
pub(crate) const DEFAULT_INTERFACE: &str = "eth0";
/// Tunnel ends that get their addresses at once.
const PARALLEL_VTEPS: usize = 16;

/// What is to be done for a pod now.
enum Step {
    /// It needs nothing (any more).
    Nothing,
    /// All its addresses exist.
    Complete,
    /// These writes.
    CarryOut(Grant),
    /// It gets none.
    Refuse(No),
}

impl Work {
    /// Gives one pod its addresses, or tells it why not.
    pub(super) async fn grant_pod(self: Arc<Self>, uid: Uid) -> Outcome {
        for _ in 0..ROUNDS {
            let grant = match self.plan(&uid) {
                Step::Nothing => return Outcome::Done,
                Step::Complete => return self.granted(&uid).await,
                Step::Refuse(no) => return self.refuse(&uid, no).await,
                Step::CarryOut(grant) => grant,
            };
            let report = self.carry_out(grant).await;
            match report.failed {
                None if report.lost => {}
                None => return self.granted(&uid).await,
                Some(WriteError::NotLeading(_)) => return Outcome::Done,
                Some(error) => {
                    warn!(pod = %uid, %error, source = source(&error), "addresses not granted, trying again");
                    return Outcome::Retry;
                }
            }
        }
        warn!(pod = %uid, "others were faster for each address tried, trying again");
        Outcome::Retry
    }

    fn plan(&self, uid: &Uid) -> Step {
        let mut world = self.shared.world();
        let world = &mut *world;
        let Some(request) = request(world, uid) else { return Step::Nothing };
        let refusal = match request {
            Ok(request) => match world.ipam.grant(&self.restored, &request) {
                Ok(grant) if grant.is_complete() => {
                    let effects = world.ipam.finish(grant);
                    self.shared.dispatch(world, effects);
                    world.waiters.forget(uid);
                    return Step::Complete;
                }
                Ok(grant) => {
                    world.waiters.forget(uid);
                    return Step::CarryOut(grant);
                }
                Err(refusal) => {
                    // Under the same lock as the refusal: a change between the two would be missed.
                    world.waiters.wait(uid, refusal.retry_on());
                    No::from(&refusal)
                }
            },
            Err(no) => {
                world.waiters.wait(uid, no.retry_on.clone());
                no
            }
        };
        Step::Refuse(refusal)
    }

    async fn granted(&self, uid: &Uid) -> Outcome {
        let first = {
            let mut world = self.shared.world();
            let Some(entry) = world.pods.get_mut(uid) else { return Outcome::Done };
            (!std::mem::replace(&mut entry.granted, true)).then(|| (entry.bound.elapsed(), entry.pod.clone()))
        };
        if let Some((took, pod)) = first {
            self.metrics.grants.inc();
            self.metrics.grant_seconds.observe(took.as_secs_f64());
            debug!(namespace = %pod.namespace, pod = %pod.name, took_ms = took.as_millis() as u64, "granted");
        }
        self.take_back_refusal(uid).await
    }

    /// Gives every node that lacks one its address in each overlay.
    pub(super) async fn grant_vteps(self: Arc<Self>) -> Outcome {
        let missing = self.shared.world().ipam.vteps_missing();
        if missing.is_empty() {
            return Outcome::Done;
        }
        let results: Vec<bool> = futures::stream::iter(missing)
            .map(|request| self.grant_vtep(request))
            .buffer_unordered(PARALLEL_VTEPS)
            .collect()
            .await;
        if results.iter().all(|done| *done) { Outcome::Done } else { Outcome::Again(VTEP_AGAIN) }
    }

    /// Whether the node has its address now.
    async fn grant_vtep(&self, request: VtepRequest) -> bool {
        let VtepRequest { network, node } = &request;
        for _ in 0..ROUNDS {
            let answer: Result<Grant, Refusal> = {
                let mut world = self.shared.world();
                let world = &mut *world;
                match world.ipam.grant_vtep(&self.restored, &request) {
                    Ok(grant) if grant.is_complete() => {
                        let effects = world.ipam.finish(grant);
                        self.shared.dispatch(world, effects);
                        return true;
                    }
                    other => other,
                }
            };
            let grant = match answer {
                Ok(grant) => grant,
                Err(refusal) => {
                    warn!(network, node, reason = refusal.reason(), %refusal, "node gets no address of its own");
                    return false;
                }
            };
            let report = self.carry_out(grant).await;
            match report.failed {
                None if report.lost => {}
                None => {
                    info!(network, node, "node has its address in the overlay");
                    return true;
                }
                Some(WriteError::NotLeading(_)) => return false,
                Some(error) => {
                    warn!(network, node, %error, source = source(&error), "node gets no address of its own yet");
                    return false;
                }
            }
        }
        false
    }
}

/// What the pod asks for; `None` when it needs nothing any more.
fn request(world: &World, uid: &Uid) -> Option<Result<PodRequest, No>> {
    let entry = world.pods.get(uid)?;
    let Some(namespace) = world.namespaces.get(entry.pod.namespace.as_str()) else {
        return Some(Err(No::unknown_namespace(&entry.pod.namespace)));
    };
    let choice = match &*entry.choice {
        Ok(choice) => choice.clone(),
        Err(sentence) => return Some(Err(No::bad_annotation(sentence, None))),
    };
    let namespace_choice = match namespace.choice_beside(&entry.pod.namespace, &choice) {
        Ok(choice) => choice.cloned().unwrap_or_default(),
        Err(sentence) => return Some(Err(No::bad_annotation(&sentence, Some(entry.pod.namespace.as_str())))),
    };
    Some(Ok(PodRequest {
        pod: entry.pod.clone(),
        interface: DEFAULT_INTERFACE.to_owned(),
        node: entry.node.to_string(),
        choice,
        namespace_choice,
        namespace_labels: namespace.labels.clone(),
        owner: Some(entry.owner.as_deref().map_or_else(|| index::owner_itself(&entry.pod), Clone::clone)),
        keep: entry.keep,
        migration: entry.migration,
    }))
}

fn source(error: &WriteError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// A refused pod asks again by itself after this time.
pub(super) const SAFETY_NET: Outcome = Outcome::Again(ASK_AGAIN);
