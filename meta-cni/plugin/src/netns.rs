//! What can be said about `CNI_NETNS` before anything is done there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use braid_meta_core::{CniError, ErrorCode};

/// Refuses a path that leads nowhere, or to the namespace in which the plugin runs: an interface made there
/// would be made on the host.
pub(crate) fn check(path: &str) -> Result<(), CniError> {
    let refuse = |why: String| CniError::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_NETNS: {why}"));
    match is_own(path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(refuse(format!("{path} is the network namespace of the plugin itself"))),
        Err(e) => Err(refuse(format!("{path}: {e}"))),
    }
}

/// Whether the path leads to the plugin's own network namespace.
pub(crate) fn is_own(path: &str) -> io::Result<bool> {
    let (own, other) = (fs::metadata("/proc/self/ns/net")?, fs::metadata(path)?);
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}
