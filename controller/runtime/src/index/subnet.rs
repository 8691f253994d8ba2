//! Subnets and the blocks cut from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_api::{IPBlock, Subnet};
use braid_controller_core::Effects;
use braid_informer::Event;
use braid_types::model::{BlockDef, SubnetDef};
use kube::ResourceExt;
use tracing::warn;

use super::{Index, is_older};
use crate::world::{Shared, StatusKey, Sweep, World};

pub(super) fn handle(index: &Index, event: Event<Subnet>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            world.broken.retain(|key, _| !matches!(key, StatusKey::Subnet(_)));
            world.subnets = all.iter().map(|s| (s.name_any(), s.clone())).collect::<BTreeMap<_, _>>();
            let defs = all.iter().filter_map(|raw| parse(&mut world, raw)).collect();
            let mut effects = world.ipam.reset_subnets(defs);
            effects.subnets.extend(world.subnets.keys().cloned());
            effects
        }
        Event::Applied(raw) => take(&mut world, raw),
        Event::Deleted(raw) => {
            let name = raw.name_any();
            world.subnets.remove(&name);
            world.broken.remove(&StatusKey::Subnet(name.clone()));
            world.ipam.remove_subnet(&name)
        }
        Event::Undecodable(object) => return index.unreadable("subnets", &object),
    };
    index.shared.dispatch(&world, effects);
}

fn take(world: &mut World, raw: Arc<Subnet>) -> Effects {
    let name = raw.name_any();
    if is_older(&*raw, world.subnets.get(&name).map(|known| &**known)) {
        return Effects::default();
    }
    let def = parse(world, &raw);
    world.subnets.insert(name.clone(), raw);
    let mut effects = match def {
        Some(def) => world.ipam.upsert_subnet(def),
        None => world.ipam.remove_subnet(&name),
    };
    effects.subnets.insert(name);
    effects
}

/// Takes in the API server's answer to a write, ahead of the watch.
pub(crate) fn learn(shared: &Shared, raw: Subnet) {
    let mut world = shared.world();
    let effects = take(&mut world, Arc::new(raw));
    shared.dispatch(&world, effects);
}

fn parse(world: &mut World, raw: &Arc<Subnet>) -> Option<SubnetDef> {
    let key = StatusKey::Subnet(raw.name_any());
    match SubnetDef::try_from(&**raw) {
        Ok(def) => {
            world.broken.remove(&key);
            Some(def)
        }
        Err(error) => {
            world.broken.insert(key, error.to_string());
            None
        }
    }
}

pub(super) fn handle_blocks(index: &Index, event: Event<IPBlock>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            world.block_seen = all.iter().map(|b| (b.name_any(), seen(b))).collect();
            world.ipam.reset_blocks(all.iter().filter_map(|raw| parse_block(raw)).collect())
        }
        Event::Applied(raw) => {
            world.block_seen.insert(raw.name_any(), seen(&raw));
            match parse_block(&raw) {
                Some(def) => world.ipam.upsert_block(def),
                None => world.ipam.remove_block(&raw.name_any()),
            }
        }
        Event::Deleted(raw) => {
            // An earlier object of the name: the present one was made since.
            let name = raw.name_any();
            if world.block_seen.get(&name).is_some_and(|(uid, _)| raw.uid().as_deref() != Some(uid)) {
                return;
            }
            world.block_seen.remove(&name);
            world.ipam.remove_block(&name)
        }
        Event::Undecodable(object) => return index.unreadable("ipblocks", &object),
    };
    index.shared.dispatch(&world, effects);
    index.shared.queues.sweeps.add_after(Sweep::Blocks, super::SWEEP_DELAY);
}

fn seen(raw: &IPBlock) -> (String, String) {
    (raw.uid().unwrap_or_default(), raw.resource_version().unwrap_or_default())
}

/// Blocks are made by the controller and guarded by the schema, so that a log line is enough for the rest.
fn parse_block(raw: &IPBlock) -> Option<BlockDef> {
    BlockDef::try_from(raw).inspect_err(|error| warn!(%error, "block is left out")).ok()
}
