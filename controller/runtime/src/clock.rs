//! The time of day. Everything that is written for others to read comes from here; what has to last for some time is
//! measured by clocks that nobody sets.

use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};

/// How far this process's clock is from the machine's.
static OFFSET: OnceLock<SignedDuration> = OnceLock::new();

/// Sets the clock off by so many seconds, once and for the whole process. For tests.
pub(crate) fn set_off_by(seconds: i64) {
    let _ = OFFSET.set(SignedDuration::from_secs(seconds));
}

/// Now.
pub(crate) fn timestamp() -> Timestamp {
    let now = Timestamp::now();
    OFFSET.get().and_then(|offset| now.checked_add(*offset).ok()).unwrap_or(now)
}

/// Now in seconds since the Unix epoch: what the core reckons with.
pub(crate) fn seconds() -> i64 {
    timestamp().as_second()
}
