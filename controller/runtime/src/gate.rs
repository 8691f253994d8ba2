//! The right to write: given by the leader election, lost by the clock.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// This process does not lead.
    None,
    /// It leads until this moment, unless it renews before.
    Until(Instant, u64),
    /// It leads whatever the Lease says.
    Always,
}

/// Whether this process may write at this moment. Clones share it.
///
/// The election extends the right with every renewal. When renewals stop arriving the right ends by itself,
/// without anybody having to notice: a process that was stopped for a minute finds it gone when it wakes up.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Mutex<Right>>);

impl Gate {
    /// A closed gate.
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Mutex::new(Right::None)))
    }

    /// Opens it until `until` under the Lease's transition number.
    pub(crate) fn extend(&self, until: Instant, fence: u64) {
        *self.0.lock() = Right::Until(until, fence);
    }

    /// Opens it for good.
    pub(crate) fn open_always(&self) {
        *self.0.lock() = Right::Always;
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        *self.0.lock() = Right::None;
    }

    /// The fencing token under which a write may be made now, if one may.
    pub(crate) fn fence(&self) -> Option<u64> {
        match *self.0.lock() {
            Right::Until(until, fence) if Instant::now() < until => Some(fence),
            Right::Always => Some(0),
            Right::None | Right::Until(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_right_ends_by_itself() {
        let gate = Gate::closed();
        assert_eq!(gate.fence(), None);
        gate.extend(Instant::now() + Duration::from_secs(10), 7);
        assert_eq!(gate.fence(), Some(7));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(gate.fence(), Some(7));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(gate.fence(), None);
        gate.extend(Instant::now() + Duration::from_secs(10), 7);
        gate.close();
        assert_eq!(gate.fence(), None);
    }
}
