//! The index, shared: watches write, the loop and CNI requests read and wait.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::index::Index;

/// Whether a change concerns the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Only who waits for an address or a pod cares.
    Quiet,
    /// The kernel may have to look different now.
    Kernel,
}

impl Effect {
    /// [`Effect::Kernel`] when something differs.
    pub(crate) fn kernel_if(differs: bool) -> Self {
        if differs { Self::Kernel } else { Self::Quiet }
    }
}

/// The shared index.
#[derive(Debug)]
pub(crate) struct Store {
    index: Mutex<Index>,
    changes: watch::Sender<u64>,
    kernel: Notify,
    kernel_changes: AtomicU64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            index: Mutex::default(),
            changes: watch::Sender::new(0),
            kernel: Notify::new(),
            kernel_changes: AtomicU64::new(0),
        }
    }
}

impl Store {
    /// Changes the index and wakes who waits for it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Index) -> Effect) {
        let effect = change(&mut self.index.lock());
        self.changes.send_modify(|n| *n += 1);
        if effect == Effect::Kernel {
            self.kernel_changes.fetch_add(1, Ordering::Relaxed);
            self.kernel.notify_one();
        }
    }

    /// Looks at the index.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.lock())
    }

    /// Ticks on every change. Subscribe before looking, so that no change falls between.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many changes so far concerned the kernel.
    pub(crate) fn kernel_changes(&self) -> u64 {
        self.kernel_changes.load(Ordering::Relaxed)
    }

    /// Asks the loop for a comparison.
    pub(crate) fn mark_kernel_dirty(&self) {
        self.kernel.notify_one();
    }

    /// Resolves once a comparison was asked for; requests that came together count as one.
    pub(crate) async fn kernel_dirty(&self) {
        self.kernel.notified().await;
    }
}
