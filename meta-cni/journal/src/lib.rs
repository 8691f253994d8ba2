//! The journal of attachments on disk: written before and after every ADD, read by DEL and after a restart.
//!
//! Below the state directory there are
//! - `attachments/<container>:<interface>`: a [`Record`] of every ADD that began and was not undone,
//! - `pending-del/<container>:<interface>`: a [`Del`] that the plugin accepted while no agent listened.
//!
//! A file is written under a temporary name, synced, renamed, and its directory synced: after a power loss it
//! is there whole or not at all. The agent's records of its own interfaces are synced behind the answer
//! ([`Store::put_unsynced`]): a loss of power takes the interface along. What is damaged nevertheless is reported with its name and hides nothing else.
//!
//! # How no pending DEL is lost
//! The plugin writes the pending file **first** and then tries the socket **again**. The agent binds and
//! listens first, **then** works off the pending files, and only then serves requests. Whichever way the two
//! interleave, either the agent sees the file or the plugin reaches the agent.
//!
//! **Invariant:** files only; what an entry means and what follows from it is decided elsewhere.

mod atomic;
mod store;

use std::path::Path;

use braid_meta_core::Record;
use braid_meta_core::call::Del;

pub use atomic::write_atomically;
pub use store::{JournalError, Listed, Store, Trouble, Unsynced};

/// The state directory unless the network configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/braid";

/// Both stores of a state directory.
#[derive(Debug, Clone)]
pub struct Journal {
    /// What is attached, or was being attached.
    pub attachments: Store<Record>,
    /// What is still to be detached.
    pub pending_dels: Store<Del>,
}

impl Journal {
    /// The journal below `state_dir`. Touches nothing: directories are made when something is written.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self {
            attachments: Store::in_dir(state_dir.join("attachments")),
            pending_dels: Store::in_dir(state_dir.join("pending-del")),
        }
    }
}
