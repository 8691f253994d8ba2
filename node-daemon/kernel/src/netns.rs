//! Work inside another network namespace.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use braid_node_core::attach::PodEnd;
use braid_node_core::view::NamespaceId;
use nix::sched::{CloneFlags, setns};

use crate::error::KernelError;

/// Opens a network namespace by path, for example `/proc/<pid>/ns/net` or `/run/netns/<name>`.
///
/// # Errors
/// The path cannot be opened.
pub fn open(path: &Path) -> Result<File, KernelError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KernelError::NamespaceGone { path: path.to_owned(), source },
        _ => KernelError::system(format!("open network namespace {}", path.display()))(source),
    })
}

/// Opens a pod's network namespace, and makes sure that it is the pod's.
///
/// # Errors
/// The path cannot be opened, or it leads to another namespace than it did for the runtime.
pub(crate) fn open_of(pod: &PodEnd) -> Result<File, KernelError> {
    let path = Path::new(&pod.netns);
    let file = open(path)?;
    let Some(wanted) = pod.netns_id else { return Ok(file) };
    let operation = || format!("look at network namespace {}", pod.netns);
    let found = file.metadata().map_err(|e| KernelError::system(operation())(e))?;
    if (NamespaceId { dev: found.dev(), ino: found.ino() }) != wanted {
        return Err(KernelError::OtherNamespace { path: path.to_owned() });
    }
    Ok(file)
}

/// Runs `f` inside a network namespace and returns to the own one.
///
/// The calling thread itself goes there: starting a thread for it costs more than all the requests that are made
/// inside, and on a busy machine waits twice for the processor. The way back is taken even when `f` panics.
///
/// # Errors
/// A namespace cannot be opened or entered.
///
/// # Aborts
/// The process ends when the thread cannot return: it would go on to change the wrong namespace.
pub fn within<T>(path: &Path, f: impl FnOnce() -> T) -> Result<T, KernelError> {
    enter(&open(path)?, path, f)
}

/// As [`within`], for a namespace that is open already; `path` is said in the error.
pub(crate) fn enter<T>(target: &File, path: &Path, f: impl FnOnce() -> T) -> Result<T, KernelError> {
    let home = Home(open(Path::new("/proc/thread-self/ns/net"))?);
    setns(target, CloneFlags::CLONE_NEWNET)
        .map_err(|e| KernelError::system(format!("enter network namespace {}", path.display()))(e.into()))?;
    let result = f();
    drop(home);
    Ok(result)
}

/// The namespace to go back to.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
    }
}
