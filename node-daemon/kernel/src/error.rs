//! What can go wrong between us and the kernel.

use std::io;
use std::path::PathBuf;

use braid_node_core::plan::{Conflict, Step};
use braid_types::IfName;

/// The kernel's answer to a request that it did not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Error number, positive.
    pub errno: i32,
    /// The kernel's own words (extended acknowledgement), often empty.
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        if self.text.is_empty() { write!(f, "{error}") } else { write!(f, "{}: {error}", self.text) }
    }
}

impl std::error::Error for Refusal {}

/// A failed operation on the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel answered a request with an error.
    #[error("the kernel refused to {operation}")]
    Refused {
        /// What was asked for.
        operation: String,
        /// Its answer.
        source: Refusal,
    },
    /// A device that must be there is not.
    #[error("device {0} does not exist")]
    NoDevice(IfName),
    /// There is no network namespace under a path (any more).
    #[error("there is no network namespace under {path} (any more)")]
    NamespaceGone {
        /// The path.
        path: PathBuf,
        /// Why it cannot be opened.
        source: io::Error,
    },
    /// A path leads to another network namespace than it did for the runtime.
    #[error(
        "{path} leads to another network namespace here than for the runtime; give the agent the host's process ids \
         (hostPID: true), or let the runtime keep namespaces in /run/netns"
    )]
    OtherNamespace {
        /// The path.
        path: PathBuf,
    },
    /// A device that is to be made has a name that another device has.
    #[error("a device {name} exists already {place}")]
    NameTaken {
        /// The name.
        name: IfName,
        /// Where.
        place: Side,
        /// The kernel's answer.
        source: Refusal,
    },
    /// A dump kept changing while it was read.
    #[error("cannot {0}: it changed each time while it was read")]
    Unstable(String),
}

/// An end of a pod's pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host's.
    Host,
    /// The pod's.
    Pod,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "on the host",
            Self::Pod => "in the pod",
        })
    }
}

impl KernelError {
    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::System { operation: operation.into(), source }
    }

    pub(crate) fn refused(operation: impl Into<String>) -> impl FnOnce(Refusal) -> Self {
        |source| Self::Refused { operation: operation.into(), source }
    }

    /// Something of that name or kind exists already.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(nix::libc::EEXIST)
    }

    /// The same may succeed a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        use nix::libc::{EAGAIN, ENOBUFS, ENOMEM};
        matches!(self, Self::Unstable(_)) || matches!(self.errno(), Some(EAGAIN | ENOBUFS | ENOMEM))
    }

    /// The error number, where the kernel or a system call gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { source, .. } | Self::NamespaceGone { source, .. } => source.raw_os_error(),
            Self::Refused { source, .. } | Self::NameTaken { source, .. } => Some(source.errno),
            Self::NoDevice(_) => Some(nix::libc::ENODEV),
            Self::Unstable(_) | Self::OtherNamespace { .. } => None,
        }
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps carried out.
    pub done: usize,
    /// Steps that failed; the others were carried out all the same.
    pub failed: Vec<Failed>,
    /// What stood in the way from the start.
    pub conflicts: Vec<Conflict>,
}

impl Report {
    /// Everything was carried out.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.conflicts.is_empty()
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct Failed {
    /// The step.
    pub step: Box<Step>,
    /// Why.
    #[source]
    pub error: KernelError,
}

/// Why an interface could not be made. Everything that had been made is gone again, unless `left` says otherwise.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct AttachError {
    /// The step that failed.
    pub step: Box<Step>,
    /// Why.
    #[source]
    pub error: KernelError,
    /// Steps whose undo failed.
    pub left: Vec<Failed>,
}
