//! GC excludes ADD and DEL (spec section 3, "Lifecycle & Ordering").
//!
//! The runtime must see to that, but not every runtime does, and two runtimes on one node know nothing of each
//! other. An ADD that begins after a GC's list was made is not in the list, and would be removed as stale. So
//! ADD and DEL hold a lock file together, and GC holds it alone, for as long as the agent works on them. The
//! kernel gives the lock back when a process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often a lock that somebody else holds is tried. A blocking lock has no deadline, and the one who holds
/// it is usually done within milliseconds.
const RETRY: Duration = Duration::from_millis(5);

/// How a call holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// ADD and DEL.
    Shared,
    /// GC.
    Alone,
}

/// Why the lock is not held.
#[derive(Debug)]
pub(crate) enum GateError {
    /// The directory of the socket does not exist: the agent has not run since the node started.
    NoAgent,
    /// The deadline passed while others held it.
    Busy,
    /// The file system refused.
    Io(PathBuf, io::Error),
}

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _file: File,
}

/// Takes the lock beside the agent's socket.
pub(crate) fn enter(socket: &Path, hold: Hold, deadline: Instant) -> Result<Held, GateError> {
    let path = lock_path(socket);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => GateError::NoAgent,
        _ => GateError::Io(path.clone(), e),
    })?;
    loop {
        let tried = match hold {
            Hold::Shared => file.try_lock_shared(),
            Hold::Alone => file.try_lock(),
        };
        match tried {
            Ok(()) => return Ok(Held { _file: file }),
            Err(TryLockError::Error(e)) => return Err(GateError::Io(path, e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(GateError::Busy),
            Err(TryLockError::WouldBlock) => thread::sleep(RETRY),
        }
    }
}

/// `<socket>.lock`.
fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
