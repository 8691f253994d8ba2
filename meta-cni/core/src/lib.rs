//! The CNI protocol as data: what a runtime asks, what a plugin answers, and what is written down in between.
//!
//! **Invariant:** nothing here does I/O or reads a clock. The plugin (`meta-cni/plugin`) and the agent's CNI
//! server are thin shells around these types, so that both judge a configuration, a result or an error alike.
//!
//! "Spec" in comments means the Container Network Interface specification 1.1.0 (SPEC.md of
//! containernetworking/cni).

pub mod attachment;
pub mod call;
pub mod conflist;
pub mod env;
pub mod error;
pub mod invocation;
pub mod netconf;
pub mod record;
pub mod result;
pub mod version;

pub use attachment::{Attachment, AttachmentId, AttachmentKind, ContainerId, PodRef};
pub use call::Verb;
pub use error::{CniError, ErrorCode};
pub use netconf::NetConf;
pub use record::{Record, RecordState};
pub use result::CniResult;
pub use version::CniVersion;
