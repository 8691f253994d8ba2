//! Writes what is known about Networks and Subnets into their statuses, and holds on to them while they are used.

use std::sync::Arc;
use std::time::Duration;

use braid_api::condition::{self, Condition, Says, Time};
use braid_api::{
    AddressCounts, IPBlock, Network, NetworkClass, NetworkStatus, NetworkType, NodeCounts, Subnet,
    SubnetStatus,
};
use braid_controller_core::pool::Usage;
use braid_controller_core::status::{self as core, api_count, usage_text};
use braid_types::Family;
use braid_types::well_known::FINALIZER;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::ClusterResourceScope;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::json;
use tracing::{info, warn};

use super::Work;
use crate::events::reference;
use crate::index::{self, Declared};
use crate::queue::Outcome;
use crate::world::{StatusKey, World};
use crate::write::{Seen, WriteError, Written};

/// How soon an object is looked at again that changed under our hands.
const CHANGED: Duration = Duration::from_millis(500);

/// A status with conditions.
trait Conditions {
    fn conditions(&self) -> &[Condition];
}

impl Conditions for NetworkStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Conditions for SubnetStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// What is to be written about one object.
struct Plan<K, S> {
    raw: Arc<K>,
    /// What its status says now.
    old: Option<S>,
    status: S,
    /// Whether somebody depends on the object.
    in_use: bool,
    /// Blocks to remove before the object may go.
    blocks: Vec<(String, Seen)>,
}

impl Work {
    /// Brings one status and its finalizer up to date.
    pub(super) async fn status(self: Arc<Self>, key: StatusKey) -> Outcome {
        let result = match &key {
            StatusKey::Network(name) => {
                let plan = plan_network(&self.shared.world(), name);
                self.bring_up_to_date(name, plan).await
            }
            StatusKey::Subnet(name) => {
                let plan = plan_subnet(&self.shared.world(), name);
                self.bring_up_to_date(name, plan).await
            }
        };
        match result {
            Ok(()) | Err(WriteError::Missing(_) | WriteError::NotLeading(_)) => Outcome::Done,
            Err(WriteError::Conflict(_)) => Outcome::Again(CHANGED),
            Err(error) => {
                warn!(object = ?key, %error, "status not written, trying again");
                Outcome::Retry
            }
        }
    }

    async fn bring_up_to_date<K, S>(&self, name: &str, plan: Option<Plan<K, S>>) -> Result<(), WriteError>
    where
        K: Written + Declared + Resource<Scope = ClusterResourceScope>,
        S: Serialize + PartialEq + Conditions,
    {
        let Some(Plan { raw, old, status, in_use, blocks }) = plan else { return Ok(()) };
        for (block, seen) in &blocks {
            match self.writer.delete::<IPBlock>(block, seen).await {
                Ok(()) | Err(WriteError::Missing(_)) => {
                    info!(block, subnet = name, "block goes with its Subnet");
                }
                Err(error) => return Err(error),
            }
        }
        // Held before it is Ready: what may be used cannot go away unnoticed.
        if let Some(held) = self.hold(&*raw, in_use).await? {
            index::learn_declared(&self.shared, held);
        }
        if old.as_ref() != Some(&status) {
            let applied = self.apply::<K, _>(name, &status).await?;
            let object = reference(&applied);
            index::learn_declared(&self.shared, applied);
            let before = old.as_ref().map(Conditions::conditions).unwrap_or_default();
            self.tell(&object, before, status.conditions()).await;
        }
        Ok(())
    }

    async fn apply<K, S: Serialize>(&self, name: &str, status: &S) -> Result<K, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let (api_version, kind) = (K::api_version(&()), K::kind(&()));
        let object = json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "status": status,
        });
        self.writer.apply_status::<K>(name, &object).await
    }

    /// Sets our finalizer on an object that stays, and takes it off one that is to go and that nobody uses.
    async fn hold<K>(&self, raw: &K, in_use: bool) -> Result<Option<K>, WriteError>
    where
        K: Written + Resource<Scope = ClusterResourceScope>,
    {
        let leaving = raw.meta().deletion_timestamp.is_some();
        let mut finalizers = raw.finalizers().to_vec();
        let has = finalizers.iter().any(|f| f == FINALIZER);
        match (leaving, has) {
            (false, false) => finalizers.push(FINALIZER.to_owned()),
            (true, true) if !in_use => finalizers.retain(|f| f != FINALIZER),
            _ => return Ok(None),
        }
        let patch = json!({"metadata": {
            "uid": raw.uid(), "resourceVersion": raw.resource_version(), "finalizers": finalizers,
        }});
        let object = self.writer.merge::<K>(&raw.name_any(), &patch).await?;
        // Without its last finalizer the object is gone: the watch will say so.
        Ok((!leaving).then_some(object))
    }

    /// An Event when an object becomes usable or stops being so.
    async fn tell(&self, object: &ObjectReference, old: &[Condition], new: &[Condition]) {
        let ready = |all: &[Condition]| all.iter().find(|c| c.type_ == condition::READY).cloned();
        let Some(new) = ready(new) else { return };
        let old = ready(old);
        let name = object.name.as_deref().unwrap_or_default();
        let kind = object.kind.as_deref().unwrap_or_default();
        if old.as_ref().is_some_and(|o| o.status == new.status && o.reason == new.reason) {
            return;
        }
        info!(
            kind,
            name,
            ready = new.status,
            reason = new.reason,
            message = new.message,
            "condition changed"
        );
        let was_ready = old.is_some_and(|o| o.status == "True");
        if new.status != "True" || new.reason == "Full" || new.reason == "SecondDefault" {
            self.events.warn(object, "Check", &new.reason, &new.message).await;
        } else if !was_ready {
            self.events.info(object, "Check", &new.reason, &new.message).await;
        }
    }
}

fn plan_network(world: &World, name: &str) -> Option<Plan<Network, NetworkStatus>> {
    let raw = world.networks.get(name)?.clone();
    let old = raw.status.clone();
    let known = old.clone().unwrap_or_default();
    let class = Some(class_of(raw.spec.kind));
    let Some(wanted) = world.ipam.network_status(name) else {
        let conditions =
            conditions(&known.conditions, invalid(world, &StatusKey::Network(name.to_owned())), &*raw);
        let in_use = !world.ipam.subnets_of(name).is_empty();
        let status = NetworkStatus { conditions, class, ..NetworkStatus::default() };
        return Some(Plan { raw, old, status, in_use, blocks: Vec::new() });
    };
    let def = world.ipam.network(name)?;
    let ready_on = world
        .ipam
        .members(def)
        .filter_map(|node| world.node_networks.get(&node.name))
        .filter(|node| node.networks.iter().any(|n| n.network == name && n.ready))
        .count();
    let subnets = world.ipam.subnets_of(name);
    let has = |family| subnets.iter().any(|s| s.family() == family);
    let counts = |family| has(family).then(|| address_counts(wanted.usage.get(family)));
    let status = NetworkStatus {
        conditions: conditions(&known.conditions, says(&wanted.ready), &*raw),
        class,
        subnets: Some(count(wanted.subnets)),
        nodes: Some(NodeCounts { members: count(wanted.members), ready: count(ready_on) }),
        ipv4: counts(Family::V4),
        ipv6: counts(Family::V6),
    };
    Some(Plan { raw, old, status, in_use: wanted.in_use, blocks: Vec::new() })
}

fn plan_subnet(world: &World, name: &str) -> Option<Plan<Subnet, SubnetStatus>> {
    let raw = world.subnets.get(name)?.clone();
    let old = raw.status.clone();
    let known = old.clone().unwrap_or_default();
    let Some(wanted) = world.ipam.subnet_status(name, &world.ipam.routing_tables()) else {
        let conditions =
            conditions(&known.conditions, invalid(world, &StatusKey::Subnet(name.to_owned())), &*raw);
        let status =
            SubnetStatus { conditions, routing_table: known.routing_table, ..SubnetStatus::default() };
        let in_use = world.ipam.subnet_in_use(name);
        return Some(Plan { raw, old, status, in_use, blocks: Vec::new() });
    };
    let Usage { total, used, reserved, cooling, available, .. } = wanted.usage;
    let status = SubnetStatus {
        conditions: conditions(&known.conditions, says(&wanted.ready), &*raw),
        total: Some(api_count(total)),
        used: Some(api_count(used)),
        reserved: Some(api_count(reserved)),
        cooling: Some(api_count(cooling)),
        available: Some(api_count(available)),
        usage: Some(usage_text(&wanted.usage)),
        routing_table: wanted.routing_table,
        blocks: Some(count(wanted.blocks)),
    };
    let goes = raw.metadata.deletion_timestamp.is_some() && !wanted.in_use;
    let seen = |name: &str| {
        let (uid, version) = world.block_seen.get(name)?.clone();
        Some((name.to_owned(), Seen { uid, version }))
    };
    let blocks =
        if goes { world.ipam.blocks_of(name).filter_map(|b| seen(&b.name)).collect() } else { Vec::new() };
    Some(Plan { raw, old, status, in_use: wanted.in_use, blocks })
}

fn class_of(kind: NetworkType) -> NetworkClass {
    if braid_types::model::NetworkType::from(kind).is_overlay() {
        NetworkClass::Overlay
    } else {
        NetworkClass::Underlay
    }
}

fn address_counts(usage: &Usage) -> AddressCounts {
    AddressCounts {
        total: api_count(usage.total),
        used: api_count(usage.used),
        available: api_count(usage.available),
        usage: usage_text(usage),
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn says(ready: &core::Ready) -> Says {
    Says {
        kind: condition::READY,
        status: ready.ok,
        reason: ready.reason.to_owned(),
        message: ready.message.clone(),
    }
}

/// What an object says that cannot be used as it is.
fn invalid(world: &World, key: &StatusKey) -> Says {
    let message = world.broken.get(key).cloned().unwrap_or_else(|| "cannot be read".to_owned());
    Says { kind: condition::READY, status: false, reason: "Invalid".to_owned(), message }
}

fn conditions<K: Resource>(old: &[Condition], says: Says, raw: &K) -> Vec<Condition> {
    let mut all = old.to_vec();
    condition::set(&mut all, says, raw.meta().generation, &Time(crate::clock::timestamp()));
    all
}
