//! A directory with one file for each attachment.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use braid_meta_core::AttachmentId;
use braid_meta_core::record::{DecodeError, Entry, attachment_of, decode, encode, file_name};

use crate::atomic::{Visible, make_private_dir, sync, write_atomically, write_visibly};

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is there, but it is no entry.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The entry cannot be expressed as a file.
    #[error("cannot encode the entry for {path}")]
    Encode {
        /// The file that was to be written.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
}

/// What is known of an entry that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The file system or the machine refused; the entry may be whole.
    Unreadable,
    /// The entry is whole, and of a format that another release of this program writes.
    OtherFormat,
    /// The entry is lost: torn, overwritten or emptied.
    Damaged,
}

impl JournalError {
    /// What the error says about the entry.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Io { .. } | Self::Encode { .. } => Trouble::Unreadable,
            // With a checksum that fits, JSON that cannot be read is what somebody else wrote on purpose.
            Self::Damaged { source: DecodeError::Format(_) | DecodeError::Json(_), .. } => {
                Trouble::OtherFormat
            }
            Self::Damaged { .. } => Trouble::Damaged,
        }
    }
}

/// A file that a listing found.
#[derive(Debug)]
pub struct Listed<E> {
    /// The file.
    pub path: PathBuf,
    /// Container and interface: of the entry, or of the file's name where the entry is damaged.
    pub attachment: Option<AttachmentId>,
    /// The entry, or why it could not be read.
    pub entry: Result<E, JournalError>,
}

/// An entry that a loss of power may still damage.
#[derive(Debug)]
#[must_use = "until it is synced, a loss of power may damage the entry"]
pub struct Unsynced {
    file: Visible,
    path: PathBuf,
    dir: PathBuf,
}

impl Unsynced {
    /// Waits for the disk. That the entry was replaced or removed meanwhile does no harm.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn sync(self) -> Result<(), JournalError> {
        sync(&self.file, &self.dir).map_err(failed("sync", &self.path))
    }
}

/// Entries of one kind in one directory.
#[derive(Debug, Clone)]
pub struct Store<E> {
    dir: PathBuf,
    kind: PhantomData<fn() -> E>,
}

impl<E: Entry> Store<E> {
    /// The store in that directory, which need not exist yet.
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir, kind: PhantomData }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, attachment: &AttachmentId) -> PathBuf {
        self.dir.join(file_name(attachment))
    }

    /// Writes an entry; it replaces one of the same attachment. Durable when it returns.
    ///
    /// # Errors
    /// [`JournalError::Io`]; an earlier entry is untouched then.
    pub fn put(&self, entry: &E) -> Result<(), JournalError> {
        let path = self.path(entry.attachment());
        let content = encode(entry).map_err(|source| JournalError::Encode { path: path.clone(), source })?;
        make_private_dir(&self.dir).map_err(failed("make", &self.dir))?;
        write_atomically(&path, &content, 0o600).map_err(failed("write", &path))
    }

    /// Writes an entry like [`Store::put`], without waiting for the disk. It survives the end of this process at
    /// once, and a loss of power after [`Unsynced::sync`]. For what a loss of power undoes by itself.
    ///
    /// # Errors
    /// [`JournalError::Io`]; an earlier entry is untouched then.
    pub fn put_unsynced(&self, entry: &E) -> Result<Unsynced, JournalError> {
        let path = self.path(entry.attachment());
        let content = encode(entry).map_err(|source| JournalError::Encode { path: path.clone(), source })?;
        make_private_dir(&self.dir).map_err(failed("make", &self.dir))?;
        let file = write_visibly(&path, &content, 0o600).map_err(failed("write", &path))?;
        Ok(Unsynced { file, path, dir: self.dir.clone() })
    }

    /// The entry of an attachment, `None` when there is none.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when the file is no entry, [`JournalError::Io`] when it cannot be read.
    pub fn get(&self, attachment: &AttachmentId) -> Result<Option<E>, JournalError> {
        // Two long container ids may share a file name, if hashes collide.
        Ok(self.read_file(&self.path(attachment))?.filter(|entry| entry.attachment() == attachment))
    }

    /// The entry of a file that a listing found; `None` when the file is gone.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn read_file(&self, path: &Path) -> Result<Option<E>, JournalError> {
        match fs::read(path) {
            Ok(content) => decode::<E>(&content)
                .map(Some)
                .map_err(|source| JournalError::Damaged { path: path.to_owned(), source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", path)(e)),
        }
    }

    /// Removes the entry of an attachment, damaged or not; says whether there was one.
    ///
    /// Not synced: an entry that a power loss brings back is worked off once more, which does no harm.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove(&self, attachment: &AttachmentId) -> Result<bool, JournalError> {
        self.remove_file(&self.path(attachment))
    }

    /// Removes a file that a listing found, for entries whose attachment cannot be told any more.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove_file(&self, path: &Path) -> Result<bool, JournalError> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed("remove", path)(e)),
        }
    }

    /// Every entry, damaged ones included, in the order of file names. Files that vanish meanwhile are left out.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the directory cannot be read; one that does not exist holds nothing.
    pub fn list(&self) -> Result<Vec<Listed<E>>, JournalError> {
        let mut listed = Vec::new();
        for (path, name) in self.files()? {
            if name.starts_with('.') {
                continue;
            }
            let Some(entry) = self.read_file(&path).transpose() else { continue };
            let attachment = match &entry {
                Ok(e) => Some(e.attachment().clone()),
                Err(_) => attachment_of(&name),
            };
            listed.push(Listed { path, attachment, entry });
        }
        Ok(listed)
    }

    /// Removes temporary files that are older than `age`: a writer that died left them. Says how many.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the directory cannot be read or a file cannot be removed.
    pub fn sweep(&self, age: Duration, now: SystemTime) -> Result<usize, JournalError> {
        let mut removed = 0;
        for (path, name) in self.files()? {
            let modified = fs::metadata(&path).and_then(|m| m.modified());
            let old = modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|passed| passed >= age));
            if name.starts_with('.') && old && self.remove_file(&path)? {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Paths and names in the directory, sorted. No other names than those of [`file_name`] are expected, so
    /// names that are no text are left out.
    fn files(&self) -> Result<Vec<(PathBuf, String)>, JournalError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", &self.dir)(e)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.dir))?;
            if let Ok(name) = entry.file_name().into_string() {
                files.push((entry.path(), name));
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
