//! Requests and responses.

use braid_meta_core::{Attachment, CniError, CniResult, ErrorCode, Verb};
use serde::{Deserialize, Serialize};

/// Version of the messages. It grows when a field changes its meaning; new optional fields keep it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The other side speaks another version of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("CNI plugin and agent are of different releases: protocol {theirs} instead of {PROTOCOL_VERSION}")]
pub struct VersionSkew {
    /// Version of the message that came in.
    pub theirs: u32,
}

impl From<VersionSkew> for CniError {
    /// Passing, because the agent installs the plugin of its own release when it starts.
    fn from(e: VersionSkew) -> Self {
        Self::try_again(e.to_string())
    }
}

/// One call of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Chosen by the sender, repeated in the response and in the agent's log.
    pub id: u64,
    /// How long the sender waits for the response, in milliseconds from when it sent the request. The agent
    /// gives up a little before, so that its reason still arrives.
    pub deadline_ms: u64,
    /// What is asked.
    pub verb: Verb,
}

impl Request {
    /// Refuses a request of another protocol version.
    ///
    /// # Errors
    /// [`VersionSkew`] with the version of the request.
    pub fn check_version(&self) -> Result<(), VersionSkew> {
        check(self.version)
    }
}

fn check(theirs: u32) -> Result<(), VersionSkew> {
    if theirs == PROTOCOL_VERSION { Ok(()) } else { Err(VersionSkew { theirs }) }
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// The id of the request.
    pub id: u64,
    /// The outcome.
    pub reply: Reply,
}

impl Response {
    /// An answer to the request of that id.
    #[must_use]
    pub fn new(id: u64, reply: Reply) -> Self {
        Self { version: PROTOCOL_VERSION, id, reply }
    }

    /// Refuses a response of another protocol version or to another request.
    ///
    /// # Errors
    /// A [`CniError`] that says which of both.
    pub fn check(&self, asked: u64) -> Result<(), CniError> {
        check(self.version)?;
        if self.id != asked {
            return Err(CniError::new(
                ErrorCode::PROTOCOL,
                format!("the agent answered request {} instead of {asked}", self.id),
            ));
        }
        Ok(())
    }
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Reply {
    /// ADD succeeded for every native attachment of the plan.
    Attached {
        /// What was made by the agent.
        result: CniResult,
        /// Every interface of the pod in order; what is delegated in it is left to the plugin.
        plan: Vec<Attachment>,
    },
    /// DEL, CHECK, GC or STATUS succeeded.
    Done,
    /// The call failed.
    Failed(CniError),
}

impl From<CniError> for Reply {
    fn from(e: CniError) -> Self {
        Self::Failed(e)
    }
}
