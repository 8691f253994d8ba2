//! Networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_api::Network;
use braid_controller_core::Effects;
use braid_informer::Event;
use braid_types::model::NetworkDef;
use kube::ResourceExt;

use super::{Index, is_older};
use crate::world::{Shared, StatusKey, World};

pub(super) fn handle(index: &Index, event: Event<Network>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            world.broken.retain(|key, _| !matches!(key, StatusKey::Network(_)));
            world.networks = all.iter().map(|n| (n.name_any(), n.clone())).collect::<BTreeMap<_, _>>();
            let defs = all.iter().filter_map(|raw| parse(&mut world, raw)).collect();
            let mut effects = world.ipam.reset_networks(defs);
            effects.networks.extend(world.networks.keys().cloned());
            effects
        }
        Event::Applied(raw) => take(&mut world, raw),
        Event::Deleted(raw) => {
            let name = raw.name_any();
            world.networks.remove(&name);
            world.broken.remove(&StatusKey::Network(name.clone()));
            world.ipam.remove_network(&name)
        }
        Event::Undecodable(object) => return index.unreadable("networks", &object),
    };
    index.shared.dispatch(&world, effects);
}

fn take(world: &mut World, raw: Arc<Network>) -> Effects {
    let name = raw.name_any();
    if is_older(&*raw, world.networks.get(&name).map(|known| &**known)) {
        return Effects::default();
    }
    let def = parse(world, &raw);
    world.networks.insert(name.clone(), raw);
    let mut effects = match def {
        Some(def) => world.ipam.upsert_network(def),
        None => world.ipam.remove_network(&name),
    };
    effects.networks.insert(name);
    effects
}

/// Takes in the API server's answer to a write, ahead of the watch.
pub(crate) fn learn(shared: &Shared, raw: Network) {
    let mut world = shared.world();
    let effects = take(&mut world, Arc::new(raw));
    shared.dispatch(&world, effects);
}

/// The parsed Network, or a note on what is wrong with it.
fn parse(world: &mut World, raw: &Arc<Network>) -> Option<NetworkDef> {
    let key = StatusKey::Network(raw.name_any());
    match NetworkDef::try_from(&**raw) {
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
