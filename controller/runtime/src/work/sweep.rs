//! Tidies up: blocks that nobody uses, what an agent said about a node that is gone, contradictions to be shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use braid_api::{IPBlock, NodeNetwork};
use braid_controller_core::gc::{Finding, findings};
use braid_types::model::BlockDef;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tracing::{info, warn};

use super::Work;
use crate::clock::seconds as now;
use crate::index::IP_INSTANCE;
use crate::metrics::ReasonLabel;
use crate::queue::Outcome;
use crate::world::{Sweep, World};
use crate::write::{Seen, WriteError};

/// Everything is looked at again after this time, whatever the events said.
const FULL_SWEEP: Duration = Duration::from_secs(300);
/// How many contradictions one look shows: the others come with the next ones.
const SHOWN_AT_ONCE: usize = 100;

impl Work {
    /// One round.
    pub(super) async fn sweep(self: Arc<Self>, what: Sweep) -> Outcome {
        match what {
            Sweep::Blocks => self.sweep_blocks().await,
            Sweep::Audit => {
                self.drop_lost_nodes().await;
                self.thin_out().await;
                self.show(self.contradictions()).await;
                Outcome::Again(self.audit)
            }
        }
    }

    async fn sweep_blocks(&self) -> Outcome {
        let sweep = self.shared.world().ipam.sweep_blocks(&self.restored, now());
        for block in &sweep.give_back {
            if !self.give_back(block).await {
                self.shared.world().ipam.keep_block(block);
            }
        }
        let next =
            sweep.next.map(|at| Duration::from_secs(u64::try_from(at - now()).unwrap_or_default().max(1)));
        Outcome::Again(next.unwrap_or(FULL_SWEEP).min(FULL_SWEEP))
    }

    /// Whether the block is gone.
    async fn give_back(&self, block: &BlockDef) -> bool {
        let seen = self.shared.world().block_seen.get(&block.name).cloned();
        let Some((uid, version)) = seen else { return false };
        match self.writer.delete::<IPBlock>(&block.name, &Seen { uid, version }).await {
            Ok(()) | Err(WriteError::Missing(_)) => {
                info!(block = block.name, node = block.node, "block is given back");
                let mut world = self.shared.world();
                world.block_seen.remove(&block.name);
                let effects = world.ipam.remove_block(&block.name);
                self.shared.dispatch(&world, effects);
                true
            }
            Err(error) => {
                warn!(block = block.name, %error, "block not given back");
                false
            }
        }
    }

    /// Removes what agents said about nodes that exist no more.
    async fn drop_lost_nodes(&self) {
        let lost: Vec<String> = {
            let world = self.shared.world();
            let nodes: BTreeSet<&str> = world.ipam.nodes().map(|n| n.name.as_str()).collect();
            world.node_networks.keys().filter(|n| !nodes.contains(n.as_str())).cloned().collect()
        };
        for node in lost {
            let result = async {
                // The cache of nodes may be behind the one of what agents say.
                if self.writer.exists("v1", "Node", "", &node).await? {
                    return Ok(());
                }
                let Some(found) = self.writer.get::<NodeNetwork>(&node).await? else { return Ok(()) };
                let seen = Seen {
                    uid: found.uid().unwrap_or_default(),
                    version: found.resource_version().unwrap_or_default(),
                };
                self.writer.delete::<NodeNetwork>(&node, &seen).await
            };
            match result.await {
                Ok(()) | Err(WriteError::Missing(_)) => {
                    info!(node, "NodeNetwork of a node that is gone removed");
                }
                Err(error) => warn!(node, %error, "NodeNetwork of a node that is gone not removed"),
            }
        }
    }

    /// Everything that contradicts something else or cannot be read. Counted, so that none is missed among many.
    fn contradictions(&self) -> BTreeSet<Finding> {
        let world = self.shared.world();
        let found: BTreeSet<Finding> =
            findings(&world.ipam).into_iter().chain(world.unreadable.findings()).collect();
        let counts = &self.metrics.contradictions;
        counts.clear();
        for finding in &found {
            counts.get_or_create(&ReasonLabel { reason: finding.reason.to_owned() }).inc();
        }
        found
    }

    /// Shows contradictions once each, where there are many some at a time: nothing is changed on their account.
    async fn show(&self, found: BTreeSet<Finding>) {
        let new: Vec<Finding> = {
            let mut shown = self.shown.lock();
            shown.retain(|old| found.contains(old));
            let new: Vec<Finding> = found.difference(&shown).take(SHOWN_AT_ONCE).cloned().collect();
            shown.extend(new.iter().cloned());
            new
        };
        for finding in new {
            let Finding { kind, name, reason, message } = &finding;
            warn!(kind, name, reason, sentence = message, "contradiction found");
            let object = ObjectReference {
                api_version: Some("braid.network/v1".to_owned()),
                kind: Some((*kind).to_owned()),
                name: Some(name.clone()),
                // `kubectl describe` asks for the Events of this very object.
                uid: uid_of(&self.shared.world(), &finding),
                ..ObjectReference::default()
            };
            self.events.warn(&object, "Check", reason, message).await;
        }
    }
}

/// Uid of the object that a finding is about, if it is known.
fn uid_of(world: &World, finding: &Finding) -> Option<String> {
    if let Some(uid) = world.unreadable.uid(finding.kind, &finding.name) {
        return Some(uid.to_owned());
    }
    match finding.kind {
        IP_INSTANCE => world.ipam.instance(&finding.name.parse().ok()?).map(|d| d.uid.to_string()),
        _ => world.block_seen.get(&finding.name).map(|(uid, _)| uid.clone()),
    }
}
