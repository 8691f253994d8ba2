//! Blocks cut from Subnets.

use braid_api::IPBlock;
use braid_informer::Event;
use braid_types::model::BlockDef;
use kube::ResourceExt;
use tracing::warn;

use super::Index;
use crate::world::{Sweep, World};

const KIND: &str = "IPBlock";

pub(super) fn handle(index: &Index, event: Event<IPBlock>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            world.block_seen = all.iter().map(|b| (b.name_any(), seen(b))).collect();
            let blocks = all.iter().filter_map(|raw| parse(&mut world, raw)).collect();
            world.unreadable.listed(KIND);
            world.ipam.reset_blocks(blocks)
        }
        Event::Applied(raw) => {
            world.block_seen.insert(raw.name_any(), seen(&raw));
            match parse(&mut world, &raw) {
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
            world.unreadable.forget(KIND, &name);
            world.ipam.remove_block(&name)
        }
        Event::Undecodable(object) => return index.unreadable_own(&mut world, "ipblocks", KIND, &object),
    };
    index.shared.dispatch(&world, effects);
    index.shared.queues.sweeps.add_after(Sweep::Blocks, super::SWEEP_DELAY);
}

fn seen(raw: &IPBlock) -> (String, String) {
    (raw.uid().unwrap_or_default(), raw.resource_version().unwrap_or_default())
}

/// The parsed block, or a note on what is wrong with it.
fn parse(world: &mut World, raw: &IPBlock) -> Option<BlockDef> {
    match BlockDef::try_from(raw) {
        Ok(def) => {
            world.unreadable.forget(KIND, &def.name);
            Some(def)
        }
        Err(error) => {
            warn!(%error, "block is left out");
            let uid = raw.uid().unwrap_or_default();
            world.unreadable.note(KIND, &raw.name_any(), &uid, &error.to_string());
            None
        }
    }
}
