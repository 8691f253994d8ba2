//! Blocks cut from Subnets.

use braid_api::IPBlock;
use braid_informer::Event;
use braid_types::model::BlockDef;
use kube::ResourceExt;
use tracing::warn;

use super::Index;
use crate::world::Sweep;

pub(super) fn handle(index: &Index, event: Event<IPBlock>) {
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
