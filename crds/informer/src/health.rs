//! What is known about the state of a watch.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// The state of one watch, for metrics and for `readyz`.
#[derive(Debug, Clone)]
pub struct WatchHealth {
    /// Name given to [`crate::Informers::watch`].
    pub name: &'static str,
    /// Whether its first full list was handled.
    pub synced: bool,
    /// Failures so far; the watch went on after each.
    pub failures: u64,
    /// Full lists so far, the first one included.
    pub resets: u64,
    /// When the last event was handled. A quiet kind has old events; age alone is no fault.
    pub last_event: Option<Instant>,
    /// The last failure, `None` as soon as anything was received after it.
    pub error: Option<String>,
}

/// The half of [`WatchHealth`] that the watch's task writes.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) name: &'static str,
    pub(crate) state: Arc<Mutex<WatchHealth>>,
    pub(crate) synced: Arc<watch::Sender<bool>>,
}

impl Shared {
    pub(crate) fn new(name: &'static str) -> Self {
        let health =
            WatchHealth { name, synced: false, failures: 0, resets: 0, last_event: None, error: None };
        Self { name, state: Arc::new(Mutex::new(health)), synced: Arc::new(watch::Sender::new(false)) }
    }

    pub(crate) fn received(&self) {
        self.state.lock().error = None;
    }

    pub(crate) fn handled(&self) {
        self.state.lock().last_event = Some(Instant::now());
    }

    pub(crate) fn reset_handled(&self) {
        {
            let mut state = self.state.lock();
            state.synced = true;
            state.resets += 1;
            state.last_event = Some(Instant::now());
        }
        self.synced.send_replace(true);
    }

    pub(crate) fn failed(&self, error: String) {
        let mut state = self.state.lock();
        state.failures += 1;
        state.error = Some(error);
    }
}
