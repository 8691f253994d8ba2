//! Who is attached, and what an attachment consists of.

use std::fmt;
use std::str::FromStr;

use braid_types::IfName;
use serde::{Deserialize, Serialize};

/// A container id that does not follow the spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a container id: it starts with a letter or digit, then letters, digits, `_`, `.` and `-`"
)]
pub struct ContainerIdError(pub String);

/// `CNI_CONTAINERID`: starts alphanumeric, then also `_`, `.` and `-` (spec section 2, "Parameters").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The syntax that the spec gives for container ids and network names.
pub(crate) fn is_identifier(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl FromStr for ContainerId {
    type Err = ContainerIdError;

    fn from_str(s: &str) -> Result<Self, ContainerIdError> {
        if is_identifier(s) { Ok(Self(s.to_owned())) } else { Err(ContainerIdError(s.to_owned())) }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = ContainerIdError;

    fn try_from(s: String) -> Result<Self, ContainerIdError> {
        s.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What identifies one attachment: container and interface (spec section 3).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// The container, for Kubernetes the pod sandbox.
    pub container_id: ContainerId,
    /// The interface inside the container.
    pub ifname: IfName,
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// The pod of a container, as runtimes pass it in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`: tells a pod from its successor of the same name.
    pub uid: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One interface of the plan for a pod, in the order in which interfaces are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The interface inside the container.
    pub ifname: IfName,
    /// Who makes it.
    pub kind: AttachmentKind,
}

impl Attachment {
    /// The attachment that the agent makes itself.
    #[must_use]
    pub fn native(ifname: IfName) -> Self {
        Self { ifname, kind: AttachmentKind::Native }
    }
}

/// Who makes an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum AttachmentKind {
    /// The agent, in the pod's network namespace.
    Native,
    /// Other plugins, in the host's context, chained in this order.
    Delegate {
        /// Configuration of each plugin of the chain, as JSON text.
        chain: Vec<String>,
        /// How long each plugin may take, in milliseconds.
        timeout_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_id_syntax() {
        for good in ["a", "0", "a-b_c.d", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
        {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a:b", "a\n", "ä", "..", "a\0"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }
}
