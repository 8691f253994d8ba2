//! What people declare: Networks and Subnets.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_api::{Network, ParseError, Subnet};
use braid_controller_core::{Effects, Ipam};
use braid_informer::Event;
use braid_types::model::{NetworkDef, SubnetDef};
use kube::{Resource, ResourceExt};

use super::{Index, is_older};
use crate::world::{Shared, StatusKey, World};

/// A kind that people declare and that has a status of ours.
pub(crate) trait Declared: Resource<DynamicType = ()> + Clone {
    /// Its parsed form.
    type Def: for<'a> TryFrom<&'a Self, Error = ParseError>;
    /// Name of its watch.
    const WATCH: &'static str;
    /// Its kind.
    const KIND: &'static str;

    /// Its place in the status queue.
    fn key(name: String) -> StatusKey;
    /// Where its objects are kept as the API server has them.
    fn raw(world: &mut World) -> &mut BTreeMap<String, Arc<Self>>;
    /// All there are.
    fn reset(ipam: &mut Ipam, all: Vec<Self::Def>) -> Effects;
    /// One appeared or changed.
    fn upsert(ipam: &mut Ipam, def: Self::Def) -> Effects;
    /// One is gone, or cannot be used any more.
    fn remove(ipam: &mut Ipam, name: &str) -> Effects;
}

impl Declared for Network {
    type Def = NetworkDef;
    const WATCH: &'static str = "networks";
    const KIND: &'static str = "Network";

    fn key(name: String) -> StatusKey {
        StatusKey::Network(name)
    }

    fn raw(world: &mut World) -> &mut BTreeMap<String, Arc<Self>> {
        &mut world.networks
    }

    fn reset(ipam: &mut Ipam, all: Vec<NetworkDef>) -> Effects {
        ipam.reset_networks(all)
    }

    fn upsert(ipam: &mut Ipam, def: NetworkDef) -> Effects {
        ipam.upsert_network(def)
    }

    fn remove(ipam: &mut Ipam, name: &str) -> Effects {
        ipam.remove_network(name)
    }
}

impl Declared for Subnet {
    type Def = SubnetDef;
    const WATCH: &'static str = "subnets";
    const KIND: &'static str = "Subnet";

    fn key(name: String) -> StatusKey {
        StatusKey::Subnet(name)
    }

    fn raw(world: &mut World) -> &mut BTreeMap<String, Arc<Self>> {
        &mut world.subnets
    }

    fn reset(ipam: &mut Ipam, all: Vec<SubnetDef>) -> Effects {
        ipam.reset_subnets(all)
    }

    fn upsert(ipam: &mut Ipam, def: SubnetDef) -> Effects {
        ipam.upsert_subnet(def)
    }

    fn remove(ipam: &mut Ipam, name: &str) -> Effects {
        ipam.remove_subnet(name)
    }
}

pub(super) fn handle<K: Declared>(index: &Index, event: Event<K>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => reset(&mut world, all),
        Event::Applied(raw) => take(&mut world, raw),
        Event::Deleted(raw) => {
            let name = raw.name_any();
            K::raw(&mut world).remove(&name);
            world.broken.remove(&K::key(name.clone()));
            world.unreadable.forget(K::KIND, &name);
            K::remove(&mut world.ipam, &name)
        }
        Event::Undecodable(object) => {
            return index.unreadable_own(&mut world, K::WATCH, K::KIND, &object);
        }
    };
    index.shared.dispatch(&world, effects);
}

/// A full list. It may be older than what an own write has told already.
fn reset<K: Declared>(world: &mut World, all: Vec<Arc<K>>) -> Effects {
    world.unreadable.listed(K::KIND);
    for raw in &all {
        world.unreadable.forget(K::KIND, &raw.name_any());
    }
    let known = std::mem::take(K::raw(world));
    let newer = |listed: Arc<K>| match known.get(&listed.name_any()) {
        Some(known) if is_older(&*listed, Some(&**known)) => known.clone(),
        _ => listed,
    };
    let mut all: Vec<Arc<K>> = all.into_iter().map(newer).collect();
    // What exists and cannot be read keeps its last readable state: traffic flows by it.
    let unreadable = |raw: &&Arc<K>| world.unreadable.uid(K::KIND, &raw.name_any()).is_some();
    all.extend(known.values().filter(unreadable).cloned());
    *K::raw(world) = all.iter().map(|raw| (raw.name_any(), raw.clone())).collect();
    for name in known.keys() {
        world.broken.remove(&K::key(name.clone()));
    }
    let defs = all.iter().filter_map(|raw| parse(world, raw)).collect();
    let mut effects = K::reset(&mut world.ipam, defs);
    for raw in &all {
        add_status(&mut effects, K::key(raw.name_any()));
    }
    effects
}

fn take<K: Declared>(world: &mut World, raw: Arc<K>) -> Effects {
    let name = raw.name_any();
    if is_older(&*raw, K::raw(world).get(&name).map(|known| &**known)) {
        return Effects::default();
    }
    world.unreadable.forget(K::KIND, &name);
    let def = parse(world, &raw);
    K::raw(world).insert(name.clone(), raw);
    let mut effects = match def {
        Some(def) => K::upsert(&mut world.ipam, def),
        None => K::remove(&mut world.ipam, &name),
    };
    add_status(&mut effects, K::key(name));
    effects
}

/// Takes in the API server's answer to a write, ahead of the watch.
pub(crate) fn learn<K: Declared>(shared: &Shared, raw: K) {
    let mut world = shared.world();
    let effects = take(&mut world, Arc::new(raw));
    shared.dispatch(&world, effects);
}

fn add_status(effects: &mut Effects, key: StatusKey) {
    match key {
        StatusKey::Network(name) => effects.networks.insert(name),
        StatusKey::Subnet(name) => effects.subnets.insert(name),
    };
}

/// The parsed object, or a note on what is wrong with it.
fn parse<K: Declared>(world: &mut World, raw: &Arc<K>) -> Option<K::Def> {
    let key = K::key(raw.name_any());
    match K::Def::try_from(&**raw) {
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

#[cfg(test)]
mod tests {
    use braid_controller_core::Config;
    use serde_json::json;

    use super::*;

    fn network(version: u64, vni: i64) -> Arc<Network> {
        let object = json!({
            "metadata": {"name": "lab", "uid": "u", "resourceVersion": version.to_string()},
            "spec": {"type": "VXLAN", "vxlan": {"vni": vni}},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn neither_a_list_nor_an_event_takes_back_what_is_newer() {
        let shared = Shared::new(Config::default());
        let mut world = shared.world();
        let vni =
            |world: &World| world.ipam.network("lab").and_then(|n| Some(n.vxlan.as_ref()?.vni.to_string()));
        take(&mut world, network(9, 9));
        take(&mut world, network(7, 7));
        assert_eq!(vni(&world).as_deref(), Some("9"));
        reset(&mut world, vec![network(8, 8)]);
        assert_eq!(vni(&world).as_deref(), Some("9"));
        reset(&mut world, vec![network(10, 10)]);
        assert_eq!(vni(&world).as_deref(), Some("10"));
        let effects = reset::<Network>(&mut world, Vec::new());
        assert!(vni(&world).is_none() && world.networks.is_empty() && effects.networks.is_empty());
    }

    #[test]
    fn what_cannot_be_read_any_more_keeps_its_last_state_until_it_is_gone() {
        let shared = Shared::new(Config::default());
        let mut world = shared.world();
        take(&mut world, network(1, 9));
        world.unreadable.note("Network", "lab", "u", "a later version");
        reset::<Network>(&mut world, Vec::new());
        assert!(world.ipam.network("lab").is_some() && world.networks.contains_key("lab"));
        assert!(world.unreadable.uid("Network", "lab").is_some(), "it is still shown");
        reset::<Network>(&mut world, Vec::new());
        assert!(world.ipam.network("lab").is_none(), "this list did not name it");
    }

    #[test]
    fn what_cannot_be_used_is_noted_and_forgotten_with_the_object() {
        let shared = Shared::new(Config::default());
        let mut world = shared.world();
        let effects = take(&mut world, network(1, 0));
        assert!(effects.networks.contains("lab") && world.ipam.network("lab").is_none());
        assert!(world.broken.contains_key(&StatusKey::Network("lab".into())));
        reset::<Network>(&mut world, Vec::new());
        assert!(world.broken.is_empty());
    }
}
