//! Kernel parameters below `/proc/sys/net`, of the calling thread's network namespace.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::KernelError;

fn file(path: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(path)
}

/// A parameter's value; `None` when it does not exist.
///
/// # Errors
/// It exists and cannot be read.
pub fn read(path: &str) -> Result<Option<String>, KernelError> {
    match fs::read_to_string(file(path)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(KernelError::system(format!("read net/{path}"))(e)),
    }
}

/// Sets a parameter.
///
/// # Errors
/// It does not exist or does not take the value.
pub fn write(path: &str, value: &str) -> Result<(), KernelError> {
    fs::write(file(path), value).map_err(KernelError::system(format!("set net/{path} to {value}")))
}
