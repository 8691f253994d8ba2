//! Looks at addresses that were given out: are they still needed, and if not, how far is their release?

use std::sync::Arc;
use std::time::Duration;

use braid_api::IPInstance;
use braid_api::parse::time;
use braid_api::slim::Pod;
use braid_controller_core::release::{Decision, PodCheck};
use braid_types::InstanceName;
use braid_types::model::{InstanceDef, PodRef};
use braid_types::well_known::label;
use kube::ResourceExt;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Work;
use crate::index;
use crate::queue::Outcome;
use crate::world::now;
use crate::write::{Seen, WriteError};

/// How soon an address is looked at again when its object changed under our hands.
const CHANGED: Duration = Duration::from_millis(500);

impl Work {
    /// Takes one address one step further.
    pub(super) async fn review(self: Arc<Self>, name: InstanceName) -> Outcome {
        let Some((decision, def, seen)) = self.decide(&name, None) else { return Outcome::Done };
        let (decision, def, seen) = match decision {
            Decision::RecheckPod(pod) => {
                let check = match self.check(&pod).await {
                    Ok(check) => check,
                    Err(error) => return failed(&name, &error),
                };
                match self.decide(&name, Some(check)) {
                    Some(next) => next,
                    None => return Outcome::Done,
                }
            }
            decision => (decision, def, seen),
        };
        let result = match decision {
            Decision::Keep => return Outcome::Done,
            Decision::WaitUntil(at) => return Outcome::Again(until(at)),
            // The cache changed between the two looks.
            Decision::RecheckPod(_) => return Outcome::Again(CHANGED),
            Decision::MarkReleasing { release_at, reason } => {
                info!(address = %name, reason, pod = holder(&def), "address is given back");
                let status = json!({"phase": "Releasing", "reason": reason, "releaseAt": time(release_at)});
                self.change_status(&name, &seen, &status).await
            }
            Decision::Reserve => {
                info!(address = %name, pod = holder(&def), "address is kept for its owner");
                self.reserve(&name, &seen).await
            }
            Decision::RouteByHost => {
                let patch = json!({"metadata": {
                    "uid": seen.uid, "resourceVersion": seen.version, "labels": {label::ROUTED: label::ROUTED_HOST},
                }});
                self.writer.merge::<IPInstance>(&name.to_string(), &patch).await.map(|o| self.learn(&o))
            }
            Decision::Delete => self.free(&name, &seen).await,
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(WriteError::Missing(_)) => {
                index::unlearn(&self.shared, &name, &seen.uid);
                Outcome::Done
            }
            Err(WriteError::Conflict(_)) => Outcome::Again(CHANGED),
            Err(error) => failed(&name, &error),
        }
    }

    /// What to do with the address, by the state of this moment.
    fn decide(
        &self,
        name: &InstanceName,
        check: Option<PodCheck>,
    ) -> Option<(Decision, Arc<InstanceDef>, Seen)> {
        let mut world = self.shared.world();
        let decision = world.ipam.decide(&self.restored, name, check, now())?;
        let def = world.ipam.instance(name)?.clone();
        let version = world.instance_versions.get(name).map(ToString::to_string).unwrap_or_default();
        let seen = Seen { uid: def.uid.clone(), version };
        Some((decision, def, seen))
    }

    /// Asks the API server itself: the cache may be behind.
    async fn check(&self, pod: &PodRef) -> Result<PodCheck, WriteError> {
        let found = self.writer.get_in::<Pod>(&pod.namespace, &pod.name).await?;
        Ok(match found {
            Some(found) if found.uid().as_deref() != Some(&pod.uid) => PodCheck::Gone,
            Some(found) if found.is_finished() => PodCheck::Finished,
            Some(_) => PodCheck::Live,
            None => PodCheck::Gone,
        })
    }

    async fn change_status(
        &self,
        name: &InstanceName,
        seen: &Seen,
        status: &Value,
    ) -> Result<(), WriteError> {
        let patch = json!({"metadata": {"uid": seen.uid, "resourceVersion": seen.version}, "status": status});
        self.writer.merge_status::<IPInstance>(&name.to_string(), &patch).await.map(|o| self.learn(&o))
    }

    /// First the phase, then the pod: whoever dies in between leaves an address that is kept.
    async fn reserve(&self, name: &InstanceName, seen: &Seen) -> Result<(), WriteError> {
        let patch = json!({
            "metadata": {"uid": seen.uid, "resourceVersion": seen.version},
            "status": {"phase": "Reserved", "reason": "KeptForOwner", "tornDownAt": null, "releaseAt": null},
        });
        let object = self.writer.merge_status::<IPInstance>(&name.to_string(), &patch).await?;
        let version = object.resource_version();
        self.learn(&object);
        let patch = json!({"metadata": {"uid": seen.uid, "resourceVersion": version}, "spec": {"pod": null}});
        self.writer.merge::<IPInstance>(&name.to_string(), &patch).await.map(|o| self.learn(&o))
    }

    async fn free(&self, name: &InstanceName, seen: &Seen) -> Result<(), WriteError> {
        self.writer.delete::<IPInstance>(&name.to_string(), seen).await?;
        index::unlearn(&self.shared, name, &seen.uid);
        self.metrics.released.inc();
        info!(address = %name, "address is free");
        Ok(())
    }

    fn learn(&self, object: &IPInstance) {
        index::learn(&self.shared, object);
    }
}

fn until(at: i64) -> Duration {
    Duration::from_secs(u64::try_from(at.saturating_sub(now())).unwrap_or_default().max(1))
}

fn holder(def: &InstanceDef) -> String {
    def.pod.as_ref().map(|p| format!("{}/{}", p.namespace, p.name)).unwrap_or_default()
}

fn failed(name: &InstanceName, error: &WriteError) -> Outcome {
    if matches!(error, WriteError::NotLeading(_)) {
        return Outcome::Done;
    }
    warn!(address = %name, %error, "address not released yet, trying again");
    Outcome::Retry
}
