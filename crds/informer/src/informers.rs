//! A process's set of watches.

use std::fmt::Debug;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::event::Handler;
use crate::guarded::Guarded;
use crate::health::{Shared, WatchHealth};
use crate::task::{self, Listing};

/// Seconds after which the API server ends a watch and it is taken up again. Below the idle limits of common
/// load balancers (240 s), which otherwise drop the connection without telling either end.
pub(crate) const WATCH_SECONDS: u32 = 195;

/// Which objects of a kind to watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Label selector, as in `kubectl -l`.
    pub labels: Option<String>,
    /// Field selector, as in `kubectl --field-selector`.
    pub fields: Option<String>,
    /// Whether there may be very many: where lists cannot be streamed, they are then asked for in pages, which
    /// costs the API server reads from etcd, instead of in one answer out of its cache, which costs memory here.
    pub many: bool,
}

impl Selection {
    /// Only objects that fit the label selector.
    #[must_use]
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { labels: Some(selector.into()), ..Self::default() }
    }

    /// Only objects that fit the field selector.
    #[must_use]
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: Some(selector.into()), ..Self::default() }
    }

    /// Every object of a kind of which there may be very many.
    #[must_use]
    pub fn many() -> Self {
        Self { many: true, ..Self::default() }
    }

    fn config(&self, listing: Listing) -> watcher::Config {
        let base = watcher::Config {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            ..watcher::Config::default()
        }
        .timeout(WATCH_SECONDS);
        match listing {
            Listing::Streaming => base.streaming_lists(),
            Listing::Paged if self.many => base,
            Listing::Paged => base.any_semantic(),
        }
    }
}

/// Proof that every watch of an [`Informers`] has handed a full list to its handler.
///
/// Only [`Informers::in_sync`] makes one; whoever writes to the kernel or gives out addresses asks for it.
#[derive(Debug, Clone, Copy)]
pub struct InSync(());

/// A set of watches. Dropping it ends them all.
///
/// A handler that panics ends its watch only; build with `panic = "abort"`, so that no process goes on blind.
#[derive(Debug, Default)]
pub struct Informers {
    tasks: JoinSet<()>,
    watches: Vec<Shared>,
}

impl Informers {
    /// Starts a watch. `name` appears in logs and metrics.
    ///
    /// `api` says where to look, for example `Api::all(client)`; its type is a guard, so that one object
    /// that cannot be read does not hide the others.
    pub fn watch<K>(
        &mut self,
        name: &'static str,
        api: Api<Guarded<K>>,
        selection: Selection,
        handler: impl Handler<K>,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.watch_mapped(name, api, selection, |object| object, handler);
    }

    /// Like [`Informers::watch`], but keeps of each object only what `map` makes of it, already while a full
    /// list arrives: a hundred thousand objects never lie in memory whole.
    pub fn watch_mapped<K, T>(
        &mut self,
        name: &'static str,
        api: Api<Guarded<K>>,
        selection: Selection,
        map: impl FnMut(K) -> T + Send + 'static,
        handler: impl Handler<T>,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        T: Send + Sync + 'static,
    {
        let health = Shared::new(name);
        self.adopt(health.clone());
        let open = move |listing| watcher(api.clone(), selection.config(listing)).boxed();
        self.tasks.spawn(task::run(open, map, handler, health));
    }

    pub(crate) fn adopt(&mut self, health: Shared) {
        self.watches.push(health);
    }

    /// Waits until every watch started so far has handed a full list to its handler.
    ///
    /// It never fails: a watch tries for ever. Callers that want a limit put it around this.
    pub fn in_sync(&self) -> impl Future<Output = InSync> + Send + 'static {
        let waits: Vec<watch::Receiver<bool>> = self.watches.iter().map(|w| w.synced.subscribe()).collect();
        let keep: Vec<Shared> = self.watches.clone();
        async move {
            for mut wait in waits {
                // The sender lives in `keep`, so that the only way out is the flag.
                let _ = wait.wait_for(|synced| *synced).await;
            }
            drop(keep);
            InSync(())
        }
    }

    /// Reads the state of every watch at any time, also after this value has moved elsewhere.
    pub fn health(&self) -> impl Fn() -> Vec<WatchHealth> + Clone + Send + Sync + 'static {
        let watches = self.watches.clone();
        move || watches.iter().map(|w| w.state.lock().clone()).collect()
    }
}
