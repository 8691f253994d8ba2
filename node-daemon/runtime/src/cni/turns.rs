//! Who may go when: one request at a time for each container, none beside GC.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_meta_core::ContainerId;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The queues.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// GC must not run beside ADD and DEL (spec section 4, "GC").
    all: RwLock<()>,
    containers: Mutex<BTreeMap<ContainerId, Arc<AsyncMutex<()>>>>,
}

/// Keeps others of the same container waiting.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    container: ContainerId,
    guard: Option<OwnedMutexGuard<()>>,
    _all: RwLockReadGuard<'a, ()>,
}

impl Turns {
    /// Waits for the turn of a container.
    pub(crate) async fn of(&self, container: &ContainerId) -> Turn<'_> {
        let all = self.all.read().await;
        let queue = self.containers.lock().entry(container.clone()).or_default().clone();
        let guard = queue.lock_owned().await;
        Turn { turns: self, container: container.clone(), guard: Some(guard), _all: all }
    }

    /// Waits until nobody else is at work.
    pub(crate) async fn everything(&self) -> RwLockWriteGuard<'_, ()> {
        self.all.write().await
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut containers = self.turns.containers.lock();
        drop(self.guard.take());
        // One count is the map's: nobody waits any more. Who wants to wait takes his count under this lock.
        if containers.get(&self.container).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            containers.remove(&self.container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn id(s: &str) -> ContainerId {
        s.parse().unwrap()
    }

    #[tokio::test]
    async fn one_container_waits_others_do_not_and_nothing_is_left() {
        let turns = Turns::default();
        let container = id("a");
        let first = turns.of(&container).await;
        let mut second = Box::pin(turns.of(&container));
        assert!((&mut second).now_or_never().is_none());
        drop(turns.of(&id("b")).now_or_never().expect("another container does not wait"));
        drop(first);
        drop(second.await);
        assert!(turns.containers.lock().is_empty());
    }

    #[tokio::test]
    async fn gc_runs_alone() {
        let turns = Turns::default();
        let running = turns.of(&id("a")).await;
        let mut gc = Box::pin(turns.everything());
        assert!((&mut gc).now_or_never().is_none());
        drop(running);
        let gc = gc.await;
        assert!(turns.of(&id("b")).now_or_never().is_none());
        drop(gc);
    }
}
