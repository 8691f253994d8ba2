//! What the leader does: one worker per queue.

mod claim;
mod grant;
mod refuse;
mod review;
mod status;
mod surplus;
mod sweep;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use braid_controller_core::Restored;
use braid_controller_core::gc::Finding;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use claim::BlockTurns;
pub(crate) use grant::DEFAULT_INTERFACE;
use surplus::Crowded;

use crate::events::Events;
use crate::metrics::Metrics;
use crate::world::Shared;
use crate::write::Writer;

/// How many addresses are looked at at once.
const PARALLEL_REVIEWS: usize = 16;
/// How many statuses are written at once.
const PARALLEL_STATUSES: usize = 8;
/// How often everything is looked at whatever the events said: what went missing is found in the end.
pub(crate) const LOOK_AT_ALL: Duration = Duration::from_secs(600);

/// What every piece of work needs. Exists only while this process leads and knows everything.
pub(crate) struct Work {
    shared: Arc<Shared>,
    writer: Writer,
    events: Events,
    metrics: Arc<Metrics>,
    restored: Restored,
    /// How often contradictions are looked for.
    audit: Duration,
    /// Contradictions that were shown already.
    shown: Mutex<BTreeSet<Finding>>,
    /// Interfaces that had too many addresses at the last look, each since when.
    crowded: Mutex<Crowded>,
    /// Blocks that are being made.
    block_turns: Mutex<BlockTurns>,
}

impl Work {
    /// Takes up the work. `restored` proves that everything is known.
    pub(crate) fn new(
        shared: Arc<Shared>,
        writer: Writer,
        events: Events,
        metrics: Arc<Metrics>,
        restored: Restored,
        audit: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            writer,
            events,
            metrics,
            restored,
            audit,
            shown: Mutex::default(),
            crowded: Mutex::default(),
            block_turns: Mutex::default(),
        })
    }

    /// Starts the workers and gives them everything there is to do. They end when the set is dropped.
    pub(crate) fn start(self: &Arc<Self>, parallel_grants: usize) -> JoinSet<()> {
        let mut workers = JoinSet::new();
        let queues = self.shared.queues.clone();
        queues.open();
        let work = self.clone();
        workers.spawn(queues.grants.run(parallel_grants, move |uid| work.clone().grant_pod(uid)));
        let work = self.clone();
        workers.spawn(queues.reviews.run(PARALLEL_REVIEWS, move |name| work.clone().review(name)));
        let work = self.clone();
        workers.spawn(queues.statuses.run(PARALLEL_STATUSES, move |key| work.clone().status(key)));
        let work = self.clone();
        workers.spawn(queues.vteps.run(1, move |()| work.clone().grant_vteps()));
        let work = self.clone();
        workers.spawn(queues.sweeps.run(1, move |what| work.clone().sweep(what)));
        let shared = self.shared.clone();
        workers.spawn(async move {
            loop {
                shared.enqueue_all();
                tokio::time::sleep(LOOK_AT_ALL).await;
            }
        });
        workers
    }
}
