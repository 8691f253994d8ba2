//! Orders to a supervisor and its answers: one JSON value each way per connection.

use std::fmt;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What to do with a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verb {
    /// Start it if it is not running.
    Start,
    /// SIGTERM, SIGKILL when that does not help, and keep it down.
    Stop,
    /// Stop, then start.
    Restart,
    /// SIGKILL; it comes back as after any other crash.
    Kill,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Kill => "kill",
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Status,
    Unit(Verb, String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Refused(String),
    Status(Vec<ComponentStatus>),
}

/// One component as its supervisor sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ComponentStatus {
    pub(crate) component: String,
    /// `running`, `waiting` (to be started) or `stopped` (by order).
    pub(crate) state: String,
    /// In the node's own process namespace.
    pub(crate) pid: Option<i32>,
    pub(crate) restarts: u32,
    /// Seconds in the present state.
    pub(crate) seconds: u64,
}

/// Sends one order and waits for the answer.
pub(crate) fn send(socket: &Path, order: &Order) -> Result<Reply> {
    let what = || format!("supervisor at {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(what)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(what)?;
    stream.shutdown(Shutdown::Write).with_context(what)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(what)?;
    match serde_json::from_slice(&answer).with_context(what)? {
        Reply::Refused(reason) => bail!(reason),
        reply => Ok(reply),
    }
}
