//! IPInstances: a hundred thousand of them, so that only the parsed form and its version are kept.

use std::collections::HashMap;
use std::sync::Arc;

use braid_api::{IPInstance, InstancePhase};
use braid_controller_core::Effects;
use braid_informer::Event;
use braid_types::InstanceName;
use braid_types::model::{InstanceDef, Phase};
use kube::ResourceExt;
use tracing::warn;

use super::{IP_INSTANCE, Index};
use crate::clock::seconds as now;
use crate::world::{Shared, Sweep, World};

/// What is kept of an IPInstance.
#[derive(Debug, Clone)]
pub(crate) struct InstanceNews {
    version: u64,
    /// Whether it is reserved and its status does not say so. A status cannot be given to an object that is being made:
    /// the schema fills in Bound, which is right for all that controllers make.
    unlabelled: bool,
    def: Result<Arc<InstanceDef>, Box<Unread>>,
}

/// An object that is no address as it is.
#[derive(Debug, Clone)]
struct Unread {
    name: String,
    uid: String,
    why: String,
}

impl InstanceNews {
    /// The address by the object's name, also where nothing else can be read.
    fn name(&self) -> Result<InstanceName, &Unread> {
        match &self.def {
            Ok(def) => Ok(def.name.clone()),
            Err(unread) => unread.name.parse().map_err(|_| &**unread),
        }
    }

    fn uid(&self) -> &str {
        match &self.def {
            Ok(def) => &def.uid,
            Err(unread) => &unread.uid,
        }
    }
}

/// Parses an IPInstance.
pub(crate) fn news(raw: &IPInstance) -> InstanceNews {
    let unread = |why| Box::new(Unread { name: raw.name_any(), uid: raw.uid().unwrap_or_default(), why });
    let def = InstanceDef::try_from(raw)
        .inspect_err(|error| warn!(%error, "address is left alone"))
        .map(Arc::new)
        .map_err(|error| unread(error.to_string()));
    let says_bound = raw.status.as_ref().is_none_or(|status| status.phase == InstancePhase::Bound);
    InstanceNews {
        unlabelled: says_bound && def.as_ref().is_ok_and(|def| def.phase == Phase::Reserved),
        version: raw.resource_version().and_then(|v| v.parse().ok()).unwrap_or_default(),
        def,
    }
}

pub(super) fn handle(index: &Index, event: Event<InstanceNews>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            let Known { list, versions, unsure } = listed(&world, &all);
            for name in &unsure {
                index.shared.queues.reviews.add(name.clone());
            }
            world.unsure.extend(unsure);
            world.instance_versions = versions;
            world.unlabelled.clear();
            for news in &all {
                note(&mut world, news);
            }
            world.unreadable.listed(IP_INSTANCE);
            let unreadable = world.unreadable.addresses();
            let mut effects = world.ipam.reset_unreadable(&unreadable);
            effects.merge(world.ipam.reset_instances(list, now()));
            effects
        }
        Event::Applied(news) => take(&mut world, &news),
        Event::Deleted(news) => {
            let name = match news.name() {
                Ok(name) => name,
                Err(unread) => {
                    world.unreadable.forget(IP_INSTANCE, &unread.name);
                    return;
                }
            };
            forget(&mut world, &name, news.uid())
        }
        Event::Undecodable(object) => {
            let Ok(name) = object.name.parse::<InstanceName>() else {
                return index.unreadable_own(&mut world, "ipinstances", IP_INSTANCE, &object);
            };
            if object.deleted {
                forget(&mut world, &name, &object.uid)
            } else {
                index.unreadable_own(&mut world, "ipinstances", IP_INSTANCE, &object);
                world.ipam.upsert_unreadable(&name)
            }
        }
    };
    index.shared.dispatch(&world, effects);
    index.shared.queues.sweeps.add_after(Sweep::Blocks, super::SWEEP_DELAY);
}

/// What there is by a full list and by what was learned from own writes meanwhile: a list may be older than those.
struct Known {
    list: Vec<Arc<InstanceDef>>,
    versions: HashMap<InstanceName, u64>,
    /// What the list does not have although it may exist; the API server has to be asked.
    unsure: Vec<InstanceName>,
}

fn listed(world: &World, all: &[Arc<InstanceNews>]) -> Known {
    let mut list = Vec::with_capacity(all.len());
    let mut versions = HashMap::with_capacity(all.len());
    let mut newest = 0;
    for news in all {
        newest = newest.max(news.version);
        let Ok(def) = &news.def else { continue };
        let own = world.instance_versions.get(&def.name).filter(|own| **own > news.version);
        let (def, version) = match own.and_then(|own| Some((world.ipam.instance(&def.name)?, *own))) {
            Some(newer) => newer,
            None => (def, news.version),
        };
        versions.insert(def.name.clone(), version);
        list.push(def.clone());
    }
    let mut unsure = Vec::new();
    for (name, version) in &world.instance_versions {
        if *version <= newest || versions.contains_key(name) {
            continue;
        }
        let Some(def) = world.ipam.instance(name) else { continue };
        versions.insert(name.clone(), *version);
        list.push(def.clone());
        unsure.push(name.clone());
    }
    Known { list, versions, unsure }
}

/// Takes in the API server's answer to a write, ahead of the watch.
pub(crate) fn learn(shared: &Shared, raw: &IPInstance) -> Option<Arc<InstanceDef>> {
    let news = news(raw);
    let mut world = shared.world();
    let effects = take(&mut world, &news);
    shared.dispatch(&world, effects);
    news.def.ok()
}

/// Takes in that an address object is gone, ahead of the watch.
pub(crate) fn unlearn(shared: &Shared, name: &InstanceName, uid: &str) {
    let mut world = shared.world();
    let effects = forget(&mut world, name, uid);
    shared.dispatch(&world, effects);
}

fn take(world: &mut World, news: &InstanceNews) -> Effects {
    let Ok(name) = news.name() else {
        note(world, news);
        return Effects::default();
    };
    // The answer to an own write is often known before the watch delivers what preceded it: an older state must not
    // win over a newer one, nor an object over the one that was made under its name after it.
    if world.instance_versions.get(&name).is_some_and(|known| *known > news.version) {
        return Effects::default();
    }
    note(world, news);
    world.instance_versions.insert(name.clone(), news.version);
    match &news.def {
        Ok(def) => world.ipam.upsert_instance(def.clone(), now()),
        Err(_) => world.ipam.upsert_unreadable(&name),
    }
}

/// Writes down what is wrong with an object or missing in it, or that nothing is.
fn note(world: &mut World, news: &InstanceNews) {
    match &news.def {
        Ok(def) => {
            world.unreadable.forget(IP_INSTANCE, &def.name.to_string());
            if news.unlabelled {
                world.unlabelled.insert(def.name.clone());
            } else {
                world.unlabelled.remove(&def.name);
            }
        }
        Err(unread) => world.unreadable.note(IP_INSTANCE, &unread.name, &unread.uid, &unread.why),
    }
}

fn forget(world: &mut World, name: &InstanceName, uid: &str) -> Effects {
    let text = name.to_string();
    if world.unreadable.uid(IP_INSTANCE, &text) == Some(uid) {
        world.unreadable.forget(IP_INSTANCE, &text);
        world.instance_versions.remove(name);
        return world.ipam.forget_unreadable(name);
    }
    if world.ipam.instance(name).is_some_and(|known| known.uid == uid) {
        world.instance_versions.remove(name);
        world.unlabelled.remove(name);
    }
    world.ipam.remove_instance(name, uid)
}

#[cfg(test)]
mod tests {
    use braid_controller_core::Config;

    use super::*;

    fn seen(address: &str, uid: &str, version: u64, node: &str) -> Arc<InstanceNews> {
        let object: IPInstance = serde_json::from_value(serde_json::json!({
            "metadata": {"name": address, "uid": uid, "resourceVersion": version.to_string()},
            "spec": {
                "network": "n", "subnet": "s", "address": format!("{address}/24"), "interface": "eth0", "node": node,
                "pod": {"namespace": "shop", "name": "web", "uid": "pod"},
            },
        }))
        .unwrap();
        Arc::new(news(&object))
    }

    fn world_with(all: &[Arc<InstanceNews>]) -> Arc<Shared> {
        let shared = Shared::new(Config::default());
        for news in all {
            take(&mut shared.world(), news);
        }
        shared
    }

    #[test]
    fn an_older_state_never_wins_over_a_newer_one() {
        let shared = world_with(&[seen("10.0.0.1", "a", 9, "new")]);
        let mut world = shared.world();
        take(&mut world, &seen("10.0.0.1", "a", 8, "old"));
        let node = |world: &World| world.ipam.instance(&"10.0.0.1".parse().unwrap()).unwrap().node.clone();
        assert_eq!(node(&world).as_deref(), Some("new"));
        // Nor another object, which had the name before and whose end the watch has not told yet.
        take(&mut world, &seen("10.0.0.1", "b", 3, "before"));
        assert_eq!(node(&world).as_deref(), Some("new"));
        take(&mut world, &seen("10.0.0.1", "c", 11, "after"));
        assert_eq!(node(&world).as_deref(), Some("after"));
    }

    #[test]
    fn an_object_that_cannot_be_read_is_noted_and_its_address_not_free() {
        let bad = |name: &str, uid: &str| {
            let mut object: IPInstance = serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "uid": uid, "resourceVersion": "9"},
                "spec": {"network": "n", "subnet": "s", "address": "10.0.0.9/24", "interface": "eth0"},
            }))
            .unwrap();
            object.spec.mac = Some("nonsense".to_owned());
            news(&object)
        };
        let shared = world_with(&[seen("10.0.0.1", "a", 8, "")]);
        let mut world = shared.world();
        let shown = |world: &World| world.unreadable.findings().map(|f| f.name).collect::<Vec<_>>();
        take(&mut world, &bad("10.0.0.1", "a"));
        take(&mut world, &bad("no-address", "b"));
        assert_eq!(shown(&world), ["10.0.0.1", "no-address"]);
        assert!(world.ipam.instance(&"10.0.0.1".parse().unwrap()).is_none());
        assert_eq!(world.unreadable.addresses().len(), 1);
        take(&mut world, &seen("10.0.0.1", "a", 10, "n1"));
        assert_eq!(shown(&world), ["no-address"]);
        let name = "10.0.0.1".parse().unwrap();
        assert!(world.ipam.instance(&name).is_some());
        let mut later = bad("10.0.0.1", "c");
        later.version = 11;
        take(&mut world, &later);
        forget(&mut world, &name, "a");
        assert_eq!(shown(&world), ["10.0.0.1", "no-address"], "an earlier object of that name");
        forget(&mut world, &name, "c");
        assert_eq!(shown(&world), ["no-address"]);
        assert!(!world.instance_versions.contains_key(&name));
    }

    #[test]
    fn a_reservation_is_unlabelled_until_its_status_says_so() {
        let pin = |version: u64, status: serde_json::Value| -> Arc<InstanceNews> {
            let object = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "10.0.0.7", "uid": "a", "resourceVersion": version.to_string()},
                "spec": {
                    "network": "n", "subnet": "s", "address": "10.0.0.7/24", "interface": "eth0",
                    "owner": {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": "shop", "name": "db"},
                },
                "status": status,
            }));
            Arc::new(news(&object.unwrap()))
        };
        let bound = serde_json::json!({"phase": "Bound"});
        let shared = world_with(&[seen("10.0.0.1", "b", 1, "n1"), pin(2, bound.clone())]);
        let mut world = shared.world();
        let unlabelled = |world: &World| world.unlabelled.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(unlabelled(&world), ["10.0.0.7"]);
        take(&mut world, &pin(3, serde_json::json!({"phase": "Reserved"})));
        take(&mut world, &pin(2, bound.clone()));
        assert!(unlabelled(&world).is_empty(), "an older state came later");
        take(&mut world, &pin(4, bound));
        forget(&mut world, &"10.0.0.7".parse().unwrap(), "a");
        assert!(unlabelled(&world).is_empty(), "it is gone");
    }

    #[test]
    fn a_list_that_is_older_than_own_writes_takes_nothing_away() {
        let shared = world_with(&[
            seen("10.0.0.1", "a", 9, "changed since"),
            seen("10.0.0.2", "b", 12, "made since"),
            seen("10.0.0.3", "c", 4, "gone"),
        ]);
        let world = shared.world();
        let Known { list, versions, unsure } =
            listed(&world, &[seen("10.0.0.1", "a", 7, "as listed"), seen("10.0.0.4", "d", 8, "")]);
        let mut names: Vec<String> = list.iter().map(|d| d.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["10.0.0.1", "10.0.0.2", "10.0.0.4"]);
        assert_eq!(versions.len(), 3);
        assert_eq!(unsure, ["10.0.0.2".parse::<InstanceName>().unwrap()]);
        let first = list.iter().find(|d| d.uid == "a").unwrap();
        assert_eq!((first.node.as_deref(), versions[&first.name]), (Some("changed since"), 9));
    }
}
