//! What can be said about `CNI_NETNS` before anything is done there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use braid_meta_core::call::NamespaceId;
use braid_meta_core::{CniError, ErrorCode};

/// Refuses a path that leads nowhere, or to the namespace in which the plugin runs: an interface made there
/// would be made on the host. Says which namespace it is, as the path may lead elsewhere for the agent.
pub(crate) fn check(path: &str) -> Result<NamespaceId, CniError> {
    let refuse = |why: String| CniError::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_NETNS: {why}"));
    let id = id(path).map_err(|e| refuse(format!("{path}: {e}")))?;
    match own() {
        Ok(own) if own == id => Err(refuse(format!("{path} is the network namespace of the plugin itself"))),
        Ok(_) => Ok(id),
        Err(e) => Err(refuse(format!("the plugin's own namespace: {e}"))),
    }
}

/// Whether the path leads to the plugin's own network namespace.
pub(crate) fn is_own(path: &str) -> io::Result<bool> {
    Ok(own()? == id(path)?)
}

fn own() -> io::Result<NamespaceId> {
    id("/proc/self/ns/net")
}

fn id(path: &str) -> io::Result<NamespaceId> {
    let file = fs::metadata(path)?;
    Ok(NamespaceId { dev: file.dev(), ino: file.ino() })
}
