//! A work queue of keys: what is added twice is done once, what is added while it is being done is done
//! again afterwards, what failed comes back after a growing delay.
//!
//! It holds keys only. The worker looks up the present state of the key, so that any number of events on one
//! object cost one piece of work, and no work is done on old state.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing more to do until it is added again.
    Done,
    /// It worked; look at it again after this time.
    Again(Duration),
    /// It failed; try again after the key's backoff.
    Retry,
}

/// For how many keys an empty queue keeps room.
const ROOM: usize = 1024;

/// Delays after failures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryDelay {
    /// After the first failure.
    pub(crate) first: Duration,
    /// Never longer than this.
    pub(crate) longest: Duration,
}

impl RetryDelay {
    fn after(self, failures: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(failures)).min(self.longest)
    }
}

#[derive(Debug)]
struct State<K> {
    open: bool,
    ready: VecDeque<K>,
    queued: HashSet<K>,
    running: HashSet<K>,
    again: HashSet<K>,
    timers: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    serial: u64,
    /// When a key was handed to a worker last, or when there was nothing to hand out.
    progress: Instant,
}

/// A queue of keys. Clones share it.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    state: Arc<Mutex<State<K>>>,
    wake: Arc<Notify>,
    delay: RetryDelay,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), wake: self.wake.clone(), delay: self.delay }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// A closed queue: it ignores keys until [`Queue::open`], since a standby has nobody to do the work.
    pub(crate) fn new(delay: RetryDelay) -> Self {
        let state = State {
            open: false,
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            timers: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            serial: 0,
            progress: Instant::now(),
        };
        Self { state: Arc::new(Mutex::new(state)), wake: Arc::new(Notify::new()), delay }
    }

    /// Lets keys in from now on.
    pub(crate) fn open(&self) {
        self.state.lock().open = true;
    }

    /// Whether keys are let in.
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().open
    }

    /// Asks for work on `key` as soon as possible.
    pub(crate) fn add(&self, key: K) {
        let added = self.state.lock().add(key);
        if added {
            self.wake.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`, or earlier when an earlier request exists.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        self.state.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Number of keys that wait for a worker, without those whose time has not come.
    pub(crate) fn depth(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Number of keys that wait for a moment in time.
    pub(crate) fn delayed(&self) -> usize {
        self.state.lock().timers.len()
    }

    /// Whether keys have been waiting for a worker all this time while none was handed out.
    pub(crate) fn is_stuck(&self, limit: Duration) -> bool {
        let state = self.state.lock();
        !state.ready.is_empty() && state.progress.elapsed() > limit
    }

    /// The next key and the right to work on it.
    async fn next(&self) -> K {
        loop {
            let wait = {
                let mut state = self.state.lock();
                let now = Instant::now();
                state.expire(now);
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.timers.first_key_value().map(|((at, _), _)| *at)
            };
            match wait {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.wake.notified() => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn finish(&self, key: &K, outcome: Outcome) {
        self.state.lock().finish(key, outcome, self.delay, Instant::now());
        self.wake.notify_one();
    }

    /// Works on the keys for ever, at most `parallel` at once.
    pub(crate) async fn run<F, Fut>(self, parallel: usize, work: F)
    where
        K: Send + 'static,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(parallel));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            // The semaphore lives as long as this loop and nobody closes it.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let key = self.next().await;
            let queue = self.clone();
            let done = work(key.clone());
            tasks.spawn(async move {
                let outcome = done.await;
                queue.finish(&key, outcome);
                drop(slot);
            });
            while tasks.try_join_next().is_some() {}
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether the key has come to the ready list.
    fn add(&mut self, key: K) -> bool {
        if !self.open {
            return false;
        }
        if let Some(at) = self.due.remove(&key) {
            self.timers.remove(&at);
        }
        if self.running.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if !self.queued.insert(key.clone()) {
            return false;
        }
        if self.ready.is_empty() {
            self.progress = Instant::now();
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if !self.open || self.queued.contains(&key) || self.again.contains(&key) {
            return;
        }
        match self.due.get(&key) {
            Some((earlier, _)) if *earlier <= at => return,
            Some(later) => {
                self.timers.remove(later);
            }
            None => {}
        }
        self.serial += 1;
        self.timers.insert((at, self.serial), key.clone());
        self.due.insert(key, (at, self.serial));
    }

    fn expire(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        self.progress = Instant::now();
        // A start queues all there is, and the room for that is not needed again.
        if self.ready.is_empty() && self.ready.capacity() > ROOM {
            self.ready.shrink_to_fit();
            self.queued.shrink_to_fit();
        }
        Some(key)
    }

    fn finish(&mut self, key: &K, outcome: Outcome, delay: RetryDelay, now: Instant) {
        self.running.remove(key);
        let failures = match outcome {
            Outcome::Retry => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                *failures = failures.saturating_add(1);
                Some(*failures - 1)
            }
            Outcome::Done | Outcome::Again(_) => {
                self.failures.remove(key);
                None
            }
        };
        if self.again.remove(key) {
            self.add(key.clone());
            return;
        }
        match (outcome, failures) {
            (Outcome::Again(after), _) => self.add_at(key.clone(), now + after),
            (Outcome::Retry, Some(failures)) => self.add_at(key.clone(), now + delay.after(failures)),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
