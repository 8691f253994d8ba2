//! Looks at addresses that were given out: are they still needed, and if not, how far is their release?

use std::sync::Arc;
use std::time::Duration;

use braid_api::IPInstance;
use braid_api::parse::time;
use braid_api::slim::Pod;
use braid_controller_core::release::{Checks, Decision, OwnerCheck, PodCheck};
use braid_types::InstanceName;
use braid_types::model::{InstanceDef, OwnerRef, Phase, PodRef};
use braid_types::well_known::label;
use kube::ResourceExt;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Work;
use super::claim::Won;
use crate::clock::seconds as now;
use crate::index;
use crate::queue::Outcome;
use crate::write::{Seen, WriteError};

/// How soon an address is looked at again when its object changed under our hands.
const CHANGED: Duration = Duration::from_millis(500);
/// Reason of the phase Reserved.
const KEPT_FOR_OWNER: &str = "KeptForOwner";

impl Work {
    /// Takes one address one step further.
    pub(super) async fn review(self: Arc<Self>, name: InstanceName) -> Outcome {
        if let Err(error) = self.make_sure(&name).await {
            return failed(&name, &error);
        }
        let (mut checks, mut asked_of) = (Checks::default(), None);
        let (decision, def, seen) = loop {
            let Some(next) = self.decide(&name, &mut checks, &mut asked_of) else { return Outcome::Done };
            // Each is asked once; a second time means that the answers did not help.
            let asked = match &next.0 {
                Decision::RecheckPod(pod) if checks.pod.is_none() => {
                    self.check(pod).await.map(|word| checks.pod = Some(word))
                }
                Decision::RecheckSecondPod(pod) if checks.second_pod.is_none() => {
                    self.check(pod).await.map(|word| checks.second_pod = Some(word))
                }
                Decision::RecheckNode(node) if checks.node.is_none() => {
                    self.writer.exists("v1", "Node", "", node).await.map(|word| checks.node = Some(word))
                }
                Decision::RecheckSecondNode(node) if checks.second_node.is_none() => {
                    let asked = self.writer.exists("v1", "Node", "", node).await;
                    asked.map(|word| checks.second_node = Some(word))
                }
                Decision::RecheckOwner(owner) if checks.owner.is_none() => {
                    self.check_owner(owner).await.map(|word| checks.owner = Some(word))
                }
                _ => break next,
            };
            if let Err(error) = asked {
                return failed(&name, &error);
            }
        };
        let result = match decision {
            Decision::Keep | Decision::WaitUntil(_) if self.is_unlabelled(&def) => {
                let status = json!({"phase": "Reserved", "reason": KEPT_FOR_OWNER});
                // How long it is kept is looked at afterwards.
                let labelled = self.change_status(&name, &seen, &status).await;
                match labelled {
                    Ok(()) => return Outcome::Again(CHANGED),
                    failed => failed,
                }
            }
            Decision::Keep => return Outcome::Done,
            Decision::WaitUntil(at) => return Outcome::Again(until(at)),
            Decision::RecheckPod(_)
            | Decision::RecheckSecondPod(_)
            | Decision::RecheckNode(_)
            | Decision::RecheckSecondNode(_)
            | Decision::RecheckOwner(_) => return Outcome::Again(CHANGED),
            Decision::MarkReleasing { release_at, reason } => {
                info!(address = %name, reason, pod = holder(&def), "address is given back");
                let status = json!({"phase": "Releasing", "reason": reason, "releaseAt": time(release_at)});
                self.change_status(&name, &seen, &status).await
            }
            Decision::Reserve { since, until } => {
                info!(address = %name, pod = holder(&def), "address is kept for its owner");
                self.reserve(&name, &seen, since, until).await
            }
            Decision::RouteByHost => {
                let patch = json!({"metadata": {
                    "uid": seen.uid, "resourceVersion": seen.version, "labels": {label::ROUTED: label::ROUTED_HOST},
                }});
                self.writer.merge::<IPInstance>(&name.to_string(), &patch).await.map(|o| self.learn(&o))
            }
            Decision::Replace(next) => {
                info!(address = %name, pod = holder(&next), "a machine's address has one pod again");
                match self.settle(&name, &seen, &def, &next).await {
                    Ok(Won::Yes) => Ok(()),
                    Ok(Won::Not) => return Outcome::Again(CHANGED),
                    Err(error) => Err(error),
                }
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

    /// Asks the API server for an address that a full list did not have, if it is one.
    async fn make_sure(&self, name: &InstanceName) -> Result<(), WriteError> {
        let known = {
            let mut world = self.shared.world();
            if !world.unsure.remove(name) {
                return Ok(());
            }
            world.ipam.instance(name).map(|d| d.uid.clone())
        };
        match (self.writer.get::<IPInstance>(&name.to_string()).await, known) {
            (Ok(Some(object)), _) => {
                self.learn(&object);
                Ok(())
            }
            (Ok(None), Some(uid)) => {
                index::unlearn(&self.shared, name, &uid);
                Ok(())
            }
            (Ok(None), None) => Ok(()),
            (Err(error), _) => {
                self.shared.world().unsure.insert(name.clone());
                Err(error)
            }
        }
    }

    /// What to do with the address, by the state of this moment. What was asked about the pods of an earlier state
    /// (`asked_of`) says nothing about those that it names now.
    fn decide(
        &self,
        name: &InstanceName,
        checks: &mut Checks,
        asked_of: &mut Option<Arc<InstanceDef>>,
    ) -> Option<(Decision, Arc<InstanceDef>, Seen)> {
        let mut world = self.shared.world();
        let def = world.ipam.instance(name)?.clone();
        if asked_of.replace(def.clone()).is_some_and(|before| before != def) {
            *checks = Checks::default();
        }
        let decision = world.ipam.decide(&self.restored, name, *checks, now())?;
        // A node's own address goes with its Network, and that is there.
        let unreadable = world.unreadable.uid("Network", &def.network).is_some();
        let decision = if def.pod.is_none() && unreadable { Decision::Keep } else { decision };
        let version = world.instance_versions.get(name).map(ToString::to_string).unwrap_or_default();
        let seen = Seen { uid: def.uid.to_string(), version };
        Some((decision, def, seen))
    }

    /// Whether it is kept without a pod and people do not see that in its status yet.
    fn is_unlabelled(&self, def: &InstanceDef) -> bool {
        def.phase == Phase::Reserved
            && def.pod.is_none()
            && self.shared.world().unlabelled.contains(&def.name)
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

    /// Asks the API server by name. An owner that nobody may look at counts as there: what is kept stays.
    async fn check_owner(&self, owner: &OwnerRef) -> Result<OwnerCheck, WriteError> {
        let machine = |kind: &str| OwnerRef { kind: kind.into(), ..owner.clone() };
        let ask: Vec<OwnerRef> = match owner.kind.as_str() {
            // A pod that owns itself comes and goes; what it keeps lasts as long as its namespace.
            "Pod" => {
                let (namespace, name) = (String::new(), owner.namespace.clone());
                vec![OwnerRef {
                    kind: "Namespace".into(),
                    namespace: namespace.into(),
                    name,
                    ..owner.clone()
                }]
            }
            "VirtualMachine" => vec![owner.clone(), machine("VirtualMachineInstance")],
            _ => vec![owner.clone()],
        };
        for owner in ask {
            match self.writer.exists(&owner.api_version, &owner.kind, &owner.namespace, &owner.name).await {
                Ok(true) => return Ok(OwnerCheck::Live),
                Ok(false) => {}
                Err(WriteError::Refused { target, reason }) => {
                    warn!(%target, reason, "owner cannot be looked at; what it keeps stays");
                    return Ok(OwnerCheck::Live);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(OwnerCheck::Gone)
    }

    /// First the status, then the holder: whoever dies in between leaves it with a holder that is over, whose node
    /// confirms that once more.
    async fn settle(
        &self,
        name: &InstanceName,
        seen: &Seen,
        def: &InstanceDef,
        next: &InstanceDef,
    ) -> Result<Won, WriteError> {
        let mut def = def.clone();
        if (def.phase, def.torn_down, def.release_at) != (next.phase, next.torn_down, next.release_at) {
            let status = json!({"phase": "Bound", "reason": null, "tornDownAt": null, "releaseAt": null});
            self.change_status(name, seen, &status).await?;
            let InstanceDef { phase, torn_down, release_at, .. } = *next;
            def = InstanceDef { phase, torn_down, release_at, ..def };
        }
        self.replace(&def, next).await
    }

    /// First the phase, then the pod: whoever dies in between leaves an address that is kept. `attachedAt` stays: where two
    /// are kept for one pod, it tells the one that was in use.
    async fn reserve(
        &self,
        name: &InstanceName,
        seen: &Seen,
        since: Option<i64>,
        until: Option<i64>,
    ) -> Result<(), WriteError> {
        let patch = json!({
            "metadata": {"uid": seen.uid, "resourceVersion": seen.version},
            "status": {
                "phase": "Reserved", "reason": KEPT_FOR_OWNER, "reservedAt": since.map(time),
                "sandbox": null, "tornDownAt": null, "releaseAt": null,
            },
        });
        let object = self.writer.merge_status::<IPInstance>(&name.to_string(), &patch).await?;
        let version = object.resource_version();
        self.learn(&object);
        let patch = json!({
            "metadata": {"uid": seen.uid, "resourceVersion": version, "labels": {
                label::NODE: null, label::ROUTED: null, label::POD_NAME: null, label::POD_NAMESPACE: null,
            }},
            "spec": {"pod": null, "node": null, "handover": null, "retainUntil": until.map(time)},
        });
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
