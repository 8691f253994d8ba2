//! What a runtime asks of the plugin, validated: the parameters of every verb.

use serde::{Deserialize, Serialize};

use crate::{AttachmentId, CniResult, PodRef};

/// What is asked, with the validated parameters of the verb.
///
/// `config` is always the configuration exactly as the runtime gave it, as JSON text: [`crate::NetConf::parse`]
/// reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Verb {
    /// Attach a container.
    Add(Add),
    /// Detach a container.
    Del(Del),
    /// Compare an attachment with what ADD made.
    Check(Check),
    /// Remove what is not in the list of valid attachments.
    Gc(Gc),
    /// Whether ADD can be served.
    Status(Status),
}

impl Verb {
    /// The verb as it stands in `CNI_COMMAND`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Del(_) => "DEL",
            Self::Check(_) => "CHECK",
            Self::Gc(_) => "GC",
            Self::Status(_) => "STATUS",
        }
    }

    /// The attachment that the verb is about, if it is about one.
    #[must_use]
    pub fn attachment(&self) -> Option<&AttachmentId> {
        match self {
            Self::Add(Add { attachment, .. })
            | Self::Del(Del { attachment, .. })
            | Self::Check(Check { attachment, .. }) => Some(attachment),
            Self::Gc(_) | Self::Status(_) => None,
        }
    }
}

/// What tells a network namespace from every other one that exists at the same time, under whatever path: device and
/// inode of its file (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// Parameters of ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// Container and interface.
    pub attachment: AttachmentId,
    /// Path of the container's network namespace, as the runtime sees it.
    pub netns: String,
    /// The namespace that the path leads to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<NamespaceId>,
    /// The pod of the container.
    pub pod: PodRef,
    /// Name of the network in the configuration.
    pub network: String,
    /// The configuration as given.
    pub config: String,
}

/// Parameters of DEL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Del {
    /// Container and interface.
    pub attachment: AttachmentId,
    /// Path of the network namespace; absent when it is gone already.
    #[serde(default)]
    pub netns: Option<String>,
    /// The pod of the container, where the runtime names it.
    #[serde(default)]
    pub pod: Option<PodRef>,
    /// Name of the network in the configuration.
    pub network: String,
    /// The configuration as given.
    pub config: String,
}

/// Parameters of CHECK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Container and interface.
    pub attachment: AttachmentId,
    /// Path of the container's network namespace, as the runtime sees it.
    pub netns: String,
    /// The pod of the container, where the runtime names it.
    #[serde(default)]
    pub pod: Option<PodRef>,
    /// Name of the network in the configuration.
    pub network: String,
    /// The result of ADD that the runtime kept.
    pub prev_result: CniResult,
    /// The configuration as given.
    pub config: String,
}

/// Parameters of GC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gc {
    /// Name of the network: attachments to other networks are none of this call's business.
    pub network: String,
    /// What must stay.
    pub valid_attachments: Vec<AttachmentId>,
    /// The configuration as given.
    pub config: String,
}

/// Parameters of STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Name of the network in the configuration.
    pub network: String,
    /// The configuration as given.
    pub config: String,
}
