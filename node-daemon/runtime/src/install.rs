//! Files on the node: the plugin binary and the runtime's configuration.
//!
//! **Invariant:** a file appears under its name complete and on disk, or not at all: a temporary file in the
//! same folder is written, synced and renamed. A running plugin keeps its old file, so that replacing it
//! never meets "text file busy".

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use braid_meta_core::conflist::{FILE_NAME as CONFLIST, PLUGIN_TYPE as PLUGIN};

/// Why a file could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot remove {path}")]
    Remove { path: PathBuf, source: io::Error },
}

/// What [`plugin`] and [`conflist`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The file was there already, byte for byte.
    Unchanged,
    /// The file is new or replaced.
    Written,
}

/// Copies the plugin binary `from` into the folder `dir`.
pub(crate) fn plugin(from: &Path, dir: &Path) -> Result<Installed, InstallError> {
    let content = fs::read(from).map_err(|source| InstallError::Read { path: from.into(), source })?;
    place(dir, PLUGIN, &content, 0o755)
}

/// Writes the runtime's configuration into the folder `dir`. From then on the kubelet calls the node ready.
pub(crate) fn conflist(dir: &Path, content: &[u8]) -> Result<Installed, InstallError> {
    place(dir, CONFLIST, content, 0o644)
}

/// Removes the plugin and the configuration, if they are there.
pub(crate) fn remove(bin_dir: &Path, conf_dir: &Path) -> Result<(), InstallError> {
    // The configuration first: no runtime may look for a plugin that is gone.
    for (dir, name) in [(conf_dir, CONFLIST), (bin_dir, PLUGIN)] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(dir).map_err(|source| InstallError::Remove { path, source })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(InstallError::Remove { path, source }),
        }
    }
    Ok(())
}

fn place(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<Installed, InstallError> {
    let path = dir.join(name);
    if is_same(&path, content, mode) {
        return Ok(Installed::Unchanged);
    }
    write_atomically(dir, name, content, mode)
        .map(|()| Installed::Written)
        .map_err(|source| InstallError::Write { path, source })
}

fn is_same(path: &Path, content: &[u8], mode: u32) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let Ok(meta) = file.metadata() else { return false };
    if meta.len() != content.len() as u64 || meta.permissions().mode() & 0o7777 != mode {
        return false;
    }
    let mut found = Vec::with_capacity(content.len());
    file.read_to_end(&mut found).is_ok() && found == content
}

fn write_atomically(dir: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // A leading dot: runtimes read every `*.conflist` of the folder. One name, so that a crash leaves at most
    // one such file, which the next try replaces.
    let temporary = dir.join(format!(".{name}.new"));
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        // The mode given to `open` is cut by the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_running_plugin_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let bin = dir.path().join("bin");
        fs::write(&source, "one").unwrap();
        assert_eq!(plugin(&source, &bin).unwrap(), Installed::Written);
        assert_eq!(plugin(&source, &bin).unwrap(), Installed::Unchanged);

        let old = File::open(bin.join(PLUGIN)).unwrap();
        fs::write(&source, "two").unwrap();
        assert_eq!(plugin(&source, &bin).unwrap(), Installed::Written);
        assert_eq!(io::read_to_string(old).unwrap(), "one", "who runs the old file keeps it");
        assert_eq!(fs::read_to_string(bin.join(PLUGIN)).unwrap(), "two");
        assert_eq!(mode(&bin.join(PLUGIN)), 0o755);
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!(".{CONFLIST}.new")), "torn").unwrap();
        conflist(dir.path(), b"{}").unwrap();
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, [CONFLIST]);
    }

    #[test]
    fn removal_leaves_foreign_files_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("conf"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("bridge"), "").unwrap();
        fs::write(bin.join(PLUGIN), "").unwrap();
        conflist(&conf, b"{}").unwrap();
        fs::write(conf.join("10-other.conflist"), "{}").unwrap();
        for _ in 0..2 {
            remove(&bin, &conf).unwrap();
            assert!(bin.join("bridge").exists() && conf.join("10-other.conflist").exists());
            assert!(!bin.join(PLUGIN).exists() && !conf.join(CONFLIST).exists());
        }
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = plugin(Path::new("/nonexistent/plugin"), dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/plugin");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = conflist(&file, b"{}").unwrap_err();
        assert!(error.to_string().starts_with("cannot write"), "{error}");
    }
}
