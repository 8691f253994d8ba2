//! Makes the promises of a grant true: one API write per address.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use braid_api::parse::{block_object, instance_object};
use braid_api::{IPBlock, IPInstance};
use braid_controller_core::{Claim, Grant};
use braid_types::model::{BlockDef, InstanceDef, Phase};
use futures::future::join_all;
use kube::ResourceExt;
use serde_json::json;
use tracing::debug;

use super::Work;
use crate::index;
use crate::write::WriteError;

/// What became of a grant.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Whether somebody else was first somewhere, so that the grant has to be asked for again.
    pub(super) lost: bool,
    /// The first failure.
    pub(super) failed: Option<WriteError>,
}

impl Work {
    /// Writes blocks, then addresses, and ends the grant in every case.
    pub(super) async fn carry_out(&self, grant: Grant) -> Report {
        let mut report = Report::default();
        for block in &grant.blocks {
            match self.claim_block(block).await {
                Ok(true) => {}
                Ok(false) => report.lost = true,
                Err(error) => report.failed = Some(error),
            }
        }
        if !report.lost && report.failed.is_none() {
            let claims = join_all(grant.claims.iter().map(|claim| self.claim(claim))).await;
            for result in claims {
                match result {
                    Ok(Won::Yes) => {}
                    Ok(Won::Not) => report.lost = true,
                    Err(error) => {
                        report.failed.get_or_insert(error);
                    }
                }
            }
        }
        let mut world = self.shared.world();
        let effects = world.ipam.finish(grant);
        self.shared.dispatch(&world, effects);
        drop(world);
        report
    }

    /// Whether the block is the node's now. Many grants want the same new block at once; the first one makes it.
    async fn claim_block(&self, def: &BlockDef) -> Result<bool, WriteError> {
        let turn = self.block_turns.lock().of(&def.name);
        let _turn = turn.lock().await;
        if let Some(known) = self.shared.world().ipam.block(&def.name) {
            return Ok(known.node == def.node);
        }
        let object = match self.writer.create(&block_object(def)).await {
            Ok(object) => object,
            Err(WriteError::Exists(_)) => match self.writer.get::<IPBlock>(&def.name).await? {
                Some(object) => object,
                None => return Ok(false),
            },
            Err(error) => return Err(error),
        };
        let seen = (object.uid().unwrap_or_default(), object.resource_version().unwrap_or_default());
        let ours = object.spec.node == def.node;
        let mut world = self.shared.world();
        world.block_seen.insert(object.name_any(), seen);
        if let Ok(found) = BlockDef::try_from(&object) {
            let effects = world.ipam.upsert_block(found);
            self.shared.dispatch(&world, effects);
        }
        Ok(ours)
    }

    async fn claim(&self, claim: &Claim) -> Result<Won, WriteError> {
        match claim {
            Claim::Create(def) => self.create(def).await,
            Claim::Replace { from, to } => self.replace(from, to).await,
        }
    }

    async fn create(&self, def: &InstanceDef) -> Result<Won, WriteError> {
        match self.writer.create(&instance_object(def)).await {
            Ok(object) => {
                index::learn(&self.shared, &object);
                Ok(Won::Yes)
            }
            Err(WriteError::Exists(target)) => {
                let found = self.writer.get::<IPInstance>(&def.name.to_string()).await?;
                let found = found.and_then(|object| index::learn(&self.shared, &object));
                // An earlier attempt whose answer was lost, or another controller on behalf of the same pod.
                let ours = found.is_some_and(|f| {
                    f.pod == def.pod && f.owner == def.owner && f.interface == def.interface
                });
                if !ours {
                    self.metrics.conflicts.inc();
                    debug!(%target, "somebody else was first");
                }
                Ok(Won::Not)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings an existing object to another state, if it is still the one that the core has seen.
    pub(super) async fn replace(&self, from: &InstanceDef, def: &InstanceDef) -> Result<Won, WriteError> {
        let name = def.name.to_string();
        let Some(found) = self.writer.get::<IPInstance>(&name).await? else {
            index::unlearn(&self.shared, &def.name, &def.uid);
            return Ok(Won::Not);
        };
        if found.uid().as_deref() != Some(&def.uid) {
            index::learn(&self.shared, &found);
            return Ok(Won::Not);
        }
        // Another state than what the core has decided on, which may have been heard of since: it has to decide again.
        if InstanceDef::try_from(&found).as_ref() != Ok(from) {
            index::learn(&self.shared, &found);
            return Ok(Won::Not);
        }
        let mut object = instance_object(def);
        let labels = object.metadata.labels.take().unwrap_or_default();
        object.metadata = found.metadata.clone();
        object.metadata.labels.get_or_insert_default().extend(labels);
        object.metadata.managed_fields = None;
        object.status.clone_from(&found.status);
        let changed = match self.writer.replace(&object).await {
            Err(WriteError::Conflict(_)) => return Ok(Won::Not),
            other => other?,
        };
        let was = InstanceDef::try_from(&changed).map(|d| d.phase);
        let changed = if was == Ok(def.phase) {
            changed
        } else {
            let phase = match def.phase {
                Phase::Bound => "Bound",
                Phase::Reserved => "Reserved",
                Phase::Releasing => "Releasing",
            };
            let patch = json!({
                "metadata": {"uid": def.uid, "resourceVersion": changed.resource_version()},
                "status": {
                    "phase": phase, "reason": null, "reservedAt": null, "tornDownAt": null, "releaseAt": null,
                },
            });
            match self.writer.merge_status::<IPInstance>(&name, &patch).await {
                Err(WriteError::Conflict(_)) => {
                    index::learn(&self.shared, &changed);
                    return Ok(Won::Not);
                }
                other => other?,
            }
        };
        index::learn(&self.shared, &changed);
        Ok(Won::Yes)
    }
}

/// One turn at a time for each block that is being made.
#[derive(Debug, Default)]
pub(super) struct BlockTurns(HashMap<String, Weak<tokio::sync::Mutex<()>>>);

impl BlockTurns {
    fn of(&mut self, block: &str) -> Arc<tokio::sync::Mutex<()>> {
        if let Some(turn) = self.0.get(block).and_then(Weak::upgrade) {
            return turn;
        }
        self.0.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        self.0.insert(block.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// What became of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Won {
    Yes,
    Not,
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
