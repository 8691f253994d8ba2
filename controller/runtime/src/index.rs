//! From watch events to the state: parse, take in, make work of what changed.
//!
//! One module per kind. An object that cannot be used is noted where its owner sees it and never keeps the
//! others from being used.

mod block;
mod declared;
mod instance;
mod interned;
mod node;
mod owner;
mod pod;
mod service;
mod unreadable;

use std::sync::Arc;

use braid_api::{Network, Subnet};
use braid_informer::{Event, Informers, Selection, Undecodable};
use kube::{Api, Client, ResourceExt};

use crate::metrics::{Metrics, WatchLabel};
use crate::world::{Shared, World};
pub(crate) use declared::{Declared, learn as learn_declared};
pub(crate) use instance::{learn, unlearn};
pub(crate) use owner::{itself as owner_itself, keep as keep_of, of as owner_of};
pub(crate) use pod::choice_of;
pub(crate) use unreadable::{IP_INSTANCE, Unreadable};

/// What a handler of any kind needs.
#[derive(Debug, Clone)]
struct Index {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Index {
    /// An object that exists and that nobody here understands. The watch has logged it already.
    fn unreadable(&self, watch: &'static str, object: &Undecodable) {
        if !object.deleted {
            self.metrics.undecodable.get_or_create(&WatchLabel { watch }).inc();
        }
    }

    /// The same of a kind of ours: it is shown as long as it is there.
    fn unreadable_own(
        &self,
        world: &mut World,
        watch: &'static str,
        kind: &'static str,
        object: &Undecodable,
    ) {
        self.unreadable(watch, object);
        if object.deleted {
            world.unreadable.forget(kind, &object.name);
        } else {
            world.unreadable.note(kind, &object.name, &object.uid, &object.reason);
        }
    }
}

/// Starts the watches of what is good to know and needed for nothing.
pub(crate) fn watch_extra(
    informers: &mut Informers,
    client: &Client,
    shared: &Arc<Shared>,
    metrics: &Arc<Metrics>,
) {
    let index = Index { shared: shared.clone(), metrics: metrics.clone() };
    let mut known = service::Ranges::new();
    informers.watch(service::WATCH, Api::all(client.clone()), Selection::default(), move |event| {
        service::handle(&index, &mut known, event);
    });
}

/// Starts a watch per kind.
pub(crate) fn watch(
    informers: &mut Informers,
    client: &Client,
    shared: &Arc<Shared>,
    metrics: &Arc<Metrics>,
) {
    let index = Index { shared: shared.clone(), metrics: metrics.clone() };
    let all = Selection::default;
    let i = index.clone();
    informers.watch(Network::WATCH, Api::all(client.clone()), all(), move |event: Event<Network>| {
        declared::handle(&i, event);
    });
    let i = index.clone();
    informers.watch(Subnet::WATCH, Api::all(client.clone()), all(), move |event: Event<Subnet>| {
        declared::handle(&i, event);
    });
    let i = index.clone();
    informers.watch("ipblocks", Api::all(client.clone()), all(), move |event| block::handle(&i, event));
    let i = index.clone();
    informers.watch_mapped(
        "ipinstances",
        Api::all(client.clone()),
        all(),
        |raw| instance::news(&raw),
        move |event| {
            instance::handle(&i, event);
        },
    );
    let i = index.clone();
    informers.watch_mapped("nodes", Api::all(client.clone()), all(), node::news, move |event| {
        node::handle(&i, event);
    });
    let i = index.clone();
    informers.watch_mapped(
        "nodenetworks",
        Api::all(client.clone()),
        all(),
        |raw| node::network_news(&raw),
        move |event| {
            node::handle_networks(&i, event);
        },
    );
    let i = index.clone();
    informers.watch_mapped(
        "namespaces",
        Api::all(client.clone()),
        all(),
        pod::namespace_news,
        move |event| {
            pod::handle_namespaces(&i, event);
        },
    );
    let i = index;
    let mut alike = pod::Alike::default();
    informers.watch_mapped(
        "pods",
        Api::all(client.clone()),
        all(),
        move |raw| pod::news(&mut alike, &raw),
        move |event| {
            pod::handle(&i, event);
        },
    );
}

/// How long after a change leftovers are looked for: many changes make one search.
const SWEEP_DELAY: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether `new` is an older state of the object `known`: the answer to an own write is often known before the
/// watch delivers what preceded it. Versions of one resource are ordered numbers (KEP-5504).
fn is_older<K: ResourceExt>(new: &K, known: Option<&K>) -> bool {
    let version = |object: &K| object.resource_version().and_then(|v| v.parse::<u64>().ok());
    known.is_some_and(|known| known.uid() == new.uid() && version(known) > version(new))
}
