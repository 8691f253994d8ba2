//! The index, shared: watches write, the loop and CNI requests read and wait.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::index::Index;

/// Whom a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nobody: everything is as it was.
    Nothing,
    /// Only who waits for an address or a pod cares.
    Quiet,
    /// The kernel may have to look different now.
    Kernel,
}

impl Effect {
    /// [`Effect::Kernel`] when something differs.
    pub(crate) fn kernel_if(differs: bool) -> Self {
        if differs { Self::Kernel } else { Self::Nothing }
    }

    /// [`Effect::Quiet`] when something differs.
    pub(crate) fn quiet_if(differs: bool) -> Self {
        if differs { Self::Quiet } else { Self::Nothing }
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
    /// Changes the index and wakes whom it concerns. Objects change more often than what they say here: every address that
    /// is given out in the cluster changes counts in the status of a Subnet and a Network.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Index) -> Effect) {
        let effect = change(&mut self.index.lock());
        if effect == Effect::Nothing {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_woken_by_differences_only() {
        let store = Store::default();
        let mut changes = store.changes();
        let woken = |effect, changes: &mut watch::Receiver<u64>| {
            changes.mark_unchanged();
            store.update(|_| effect);
            changes.has_changed().unwrap()
        };
        assert!(
            !woken(Effect::kernel_if(false), &mut changes) && !woken(Effect::quiet_if(false), &mut changes)
        );
        assert_eq!(store.kernel_changes(), 0);
        assert!(woken(Effect::quiet_if(true), &mut changes));
        assert_eq!(store.kernel_changes(), 0);
        assert!(woken(Effect::kernel_if(true), &mut changes));
        assert_eq!(store.kernel_changes(), 1);
    }
}
