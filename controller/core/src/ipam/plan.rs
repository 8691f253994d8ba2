//! What a grant asks the shell to write.

use std::sync::Arc;

use braid_types::InstanceName;
use braid_types::model::{BlockDef, InstanceDef, PodRef};

/// One write to the API that makes an address the holder's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Create the object. `AlreadyExists` means that somebody else has the address, unless the existing object
    /// carries the same pod uid (or, without a pod, the same owner) and interface: then it is ours.
    Create(Arc<InstanceDef>),
    /// Bring the existing object to this state, if it still is what this was decided on, whatever was heard of it since:
    /// a retained address comes back to its owner's new pod, the set of an interface was completed, or a machine
    /// migrates.
    Replace {
        /// What it was decided on.
        from: Arc<InstanceDef>,
        /// What the object shall say.
        to: Arc<InstanceDef>,
    },
}

impl Claim {
    /// What the object shall say.
    #[must_use]
    pub fn def(&self) -> &Arc<InstanceDef> {
        match self {
            Self::Create(def) | Self::Replace { to: def, .. } => def,
        }
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &InstanceName {
        &self.def().name
    }
}

/// Addresses that are promised in memory, and what has to be written to make the promise true.
///
/// Order: blocks, then claims; all claims may be written at once. After each success feed the answer to
/// [`crate::Ipam::upsert_instance`] / [`crate::Ipam::upsert_block`]; after `AlreadyExists` feed the object found
/// there. Then, in every case, hand the grant to [`crate::Ipam::finish`]. If something was lost, ask
/// [`crate::Ipam::grant`] again: it completes what exists. If that refuses, what was created stays with the pod: an
/// interface is attached only when its set is whole, and deleting a part could hit the moment in which another
/// controller makes it whole.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a grant holds addresses back until it is finished"]
pub struct Grant {
    /// Number of this promise, unique within this process.
    pub id: u64,
    /// The pod; `None` for a node's own address.
    pub pod: Option<PodRef>,
    /// The Network chosen.
    pub network: String,
    /// Blocks that must exist first. Several grants may name the same block; `AlreadyExists` with the same node is
    /// success. With another node: feed it, finish this grant, ask again.
    pub blocks: Vec<BlockDef>,
    /// Writes; empty when everything exists already.
    pub claims: Vec<Claim>,
    /// All addresses of the interface, those that exist already included.
    pub set: Vec<InstanceName>,
}

impl Grant {
    /// Whether nothing has to be written.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.blocks.is_empty() && self.claims.is_empty()
    }
}
