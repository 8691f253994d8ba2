//! Files that are there whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells the temporary files of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Writes a file so that readers, and a machine that loses power, see the old content or the new one.
///
/// The temporary file stands in the same directory and begins with a dot. The directory must exist. `mode` are
/// the permission bits of the file.
///
/// # Errors
/// The first step that fails: making, writing, syncing, renaming, syncing the directory. The temporary file is
/// gone then.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = parent(path)?;
    replace(path, content, mode, File::sync_all).and_then(|_| File::open(dir)?.sync_all())
}

/// A file that everybody sees, and that a power loss may still damage.
#[derive(Debug)]
pub(crate) struct Visible(File);

/// Writes a file so that readers see the old content or the new one, whatever becomes of the writer. Only a loss of
/// power before [`sync`] may leave it damaged or old.
pub(crate) fn write_visibly(path: &Path, content: &[u8], mode: u32) -> io::Result<Visible> {
    match overwrite(path, content) {
        Some(file) => Ok(Visible(file)),
        None => replace(path, content, mode, |_| Ok(())).map(Visible),
    }
}

/// Longest content that is written over another one: the kernel copies a page as a whole or not at all, whatever
/// signal the writer gets.
const PAGE: usize = 4096;

/// Writes over a file that is there and not longer. A rename over it would have ext4 write its data to the disk at once
/// (`auto_da_alloc`), and that is most of the time that such a write takes. `None`: it has to be replaced.
fn overwrite(path: &Path, content: &[u8]) -> Option<File> {
    let file = OpenOptions::new().write(true).open(path).ok()?;
    let fits = file.metadata().ok()?.len() <= content.len() as u64 && content.len() <= PAGE;
    (fits && file.write_at(content, 0).ok()? == content.len()).then_some(file)
}

/// Makes a visible file in `dir` survive a power loss.
pub(crate) fn sync(file: &Visible, dir: &Path) -> io::Result<()> {
    file.0.sync_all()?;
    File::open(dir)?.sync_all()
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the path names no file in a directory")
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(invalid)
}

fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    before_rename: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    let dir = parent(path)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(invalid)?;
    let (mut file, temporary) = loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{name}.{}.{n}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Ok(file) => break (file, temporary),
            // Left by a process that died and had the same id.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    };
    let written = file
        .write_all(content)
        .and_then(|()| before_rename(&file))
        .and_then(|()| fs::rename(&temporary, path));
    match written {
        Ok(()) => Ok(file),
        Err(e) => {
            // Never there: that is fine.
            let _ = fs::remove_file(&temporary);
            Err(e)
        }
    }
}

/// Makes a directory for root only, with its parents.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_written_over_and_everything_else_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let long = vec![b'z'; PAGE + 1];
        let mut before = None;
        for (content, same) in
            [(&b"one"[..], false), (b"three", true), (b"five!", true), (b"two", false), (&long, false)]
        {
            drop(write_visibly(&path, content, 0o600).unwrap());
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(before == Some(inode(&path)), same, "{}", content.len());
            before = Some(inode(&path));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
