//! IPInstances: a hundred thousand of them, so that only the parsed form and its version are kept.

use std::sync::Arc;

use braid_api::IPInstance;
use braid_controller_core::Effects;
use braid_informer::Event;
use braid_types::InstanceName;
use braid_types::model::InstanceDef;
use kube::ResourceExt;
use tracing::warn;

use super::Index;
use crate::world::{Shared, Sweep, World, now};

/// What is kept of an IPInstance.
#[derive(Debug, Clone)]
pub(crate) struct InstanceNews {
    name: String,
    uid: String,
    version: u64,
    def: Option<Arc<InstanceDef>>,
}

/// Parses an IPInstance.
pub(crate) fn news(raw: &IPInstance) -> InstanceNews {
    let def = InstanceDef::try_from(raw)
        .inspect_err(|error| warn!(%error, "address is left out"))
        .ok()
        .map(Arc::new);
    InstanceNews {
        name: raw.name_any(),
        uid: raw.uid().unwrap_or_default(),
        version: raw.resource_version().and_then(|v| v.parse().ok()).unwrap_or_default(),
        def,
    }
}

pub(super) fn handle(index: &Index, event: Event<InstanceNews>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            let known: Vec<_> = all.iter().filter_map(|n| Some((n.def.clone()?, n.version))).collect();
            world.instance_versions = known.iter().map(|(d, v)| (d.name.clone(), *v)).collect();
            world.ipam.reset_instances(known.into_iter().map(|(d, _)| d).collect(), now())
        }
        Event::Applied(news) => take(&mut world, &news),
        Event::Deleted(news) => {
            let Ok(name) = news.name.parse::<InstanceName>() else { return };
            forget(&mut world, &name, &news.uid)
        }
        Event::Undecodable(object) => return index.unreadable("ipinstances", &object),
    };
    index.shared.dispatch(&world, effects);
    index.shared.queues.sweeps.add_after(Sweep::Blocks, super::SWEEP_DELAY);
}

/// Takes in the API server's answer to a write, ahead of the watch.
pub(crate) fn learn(shared: &Shared, raw: &IPInstance) -> Option<Arc<InstanceDef>> {
    let news = news(raw);
    let mut world = shared.world();
    let effects = take(&mut world, &news);
    shared.dispatch(&world, effects);
    news.def
}

/// Takes in that an address object is gone, ahead of the watch.
pub(crate) fn unlearn(shared: &Shared, name: &InstanceName, uid: &str) {
    let mut world = shared.world();
    let effects = forget(&mut world, name, uid);
    shared.dispatch(&world, effects);
}

fn take(world: &mut World, news: &InstanceNews) -> Effects {
    let Some(def) = &news.def else { return Effects::default() };
    // The answer to an own write is often known before the watch delivers what preceded it: an older state of
    // the same object must not win over a newer one.
    let stale = world.instance_versions.get(&def.name).is_some_and(|known| *known > news.version)
        && world.ipam.instance(&def.name).is_some_and(|known| known.uid == def.uid);
    if stale {
        return Effects::default();
    }
    world.instance_versions.insert(def.name.clone(), news.version);
    world.ipam.upsert_instance(def.clone(), now())
}

fn forget(world: &mut World, name: &InstanceName, uid: &str) -> Effects {
    if world.ipam.instance(name).is_some_and(|known| known.uid == uid) {
        world.instance_versions.remove(name);
    }
    world.ipam.remove_instance(name, uid)
}
