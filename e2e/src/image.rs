//! Container images without a container engine: a docker-archive is a tar file with one tar per layer, a configuration
//! and a manifest. The same inputs give the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One entry of an image's file tree.
#[derive(Clone, Debug)]
enum Entry {
    Dir { mode: u32 },
    File { source: PathBuf, mode: u32 },
    Text { text: String, mode: u32 },
    Link { target: PathBuf },
}

/// An image to be written: a name, one layer, and what to run.
#[derive(Clone, Debug, Default)]
pub struct Image {
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    user: Option<String>,
}

impl Image {
    /// An empty image; `name` is a full reference such as `localhost/braid:dev`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds a word to the command that the image runs.
    pub fn entrypoint(&mut self, word: &str) {
        self.entrypoint.push(word.to_owned());
    }

    /// Sets an environment variable, `NAME=value`.
    pub fn env(&mut self, assignment: &str) {
        self.environment.push(assignment.to_owned());
    }

    /// Runs as this user, `uid[:gid]` or a name of the image's `/etc/passwd`.
    pub fn user(&mut self, user: &str) {
        self.user = Some(user.to_owned());
    }

    /// Adds a file of the machine. Without `mode` it keeps its permission bits.
    ///
    /// # Errors
    /// When the file does not exist or `target` is not a plain absolute path.
    pub fn file(&mut self, source: &Path, target: &Path, mode: Option<u32>) -> Result<()> {
        let metadata = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
        if !metadata.is_file() {
            bail!("{} is not a file", source.display());
        }
        let mode = mode.unwrap_or_else(|| metadata.permissions().mode() & 0o7777);
        self.insert(target, Entry::File { source: source.to_owned(), mode })
    }

    /// Adds a file with this content.
    ///
    /// # Errors
    /// When `target` is not a plain absolute path.
    pub fn text(&mut self, target: &str, text: &str, mode: u32) -> Result<()> {
        self.insert(Path::new(target), Entry::Text { text: text.to_owned(), mode })
    }

    /// Adds a folder; parents of other entries appear by themselves with mode 755.
    ///
    /// # Errors
    /// When `target` is not a plain absolute path.
    pub fn dir(&mut self, target: &str, mode: u32) -> Result<()> {
        self.insert(Path::new(target), Entry::Dir { mode })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When `path` is not a plain absolute path.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.insert(Path::new(path), Entry::Link { target: target.into() })
    }

    fn insert(&mut self, target: &Path, entry: Entry) -> Result<()> {
        let inside = target.strip_prefix("/").ok().filter(|inside| {
            inside.components().all(|part| matches!(part, Component::Normal(_)))
                && inside.file_name().is_some()
        });
        let Some(inside) = inside else {
            bail!(
                "'{}' cannot be a path in an image: it must be absolute and without '..'",
                target.display()
            );
        };
        for parent in inside.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Dir { mode: 0o755 });
        }
        self.entries.insert(inside.to_owned(), entry);
        Ok(())
    }

    /// What the image's bytes depend on, without reading the machine's files: for caches.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?} {:?} {:?}", self.name, self.entrypoint, self.environment, self.user));
        for (path, entry) in &self.entries {
            hash.update(format!("{path:?} {entry:?}"));
            if let Entry::File { source, .. } = entry {
                let metadata =
                    fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
                hash.update(format!("{} {}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
            }
        }
        Ok(hex(&hash.finalize())[..16].to_owned())
    }

    /// Writes the layer and returns its digest.
    fn write_layer(&self, path: &Path) -> Result<String> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut tar = tar::Builder::new(Hashing { inner: BufWriter::new(file), hash: Sha256::new() });
        for (path, entry) in &self.entries {
            match entry {
                Entry::Dir { mode } => {
                    let mut header = header(tar::EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, path, std::io::empty())?;
                }
                Entry::File { source, mode } => {
                    let data =
                        fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                    let mut header = header(tar::EntryType::Regular, *mode, data.len() as u64);
                    tar.append_data(&mut header, path, data.as_slice())?;
                }
                Entry::Text { text, mode } => {
                    let mut header = header(tar::EntryType::Regular, *mode, text.len() as u64);
                    tar.append_data(&mut header, path, text.as_bytes())?;
                }
                Entry::Link { target } => {
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        let mut writer = tar.into_inner()?;
        writer.flush()?;
        Ok(hex(&writer.hash.finalize()))
    }

    fn config(&self, layer: &str) -> Value {
        let mut config = json!({"Entrypoint": self.entrypoint, "Env": self.environment});
        if let Some(user) = &self.user {
            config["User"] = json!(user);
        }
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "pack-image"}],
        })
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes images into one docker-archive, which `ctr images import` and `docker load` read. The file appears whole or
/// not at all.
///
/// # Errors
/// When a source file cannot be read or the archive cannot be written.
pub fn write_archive(images: &[Image], out: &Path) -> Result<()> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let work =
        tempfile::tempdir_in(folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    let partial = work.path().join("archive.tar");
    let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut archive = tar::Builder::new(BufWriter::new(file));
    let mut manifest = Vec::new();
    for image in images {
        let layer_file = work.path().join("layer.tar");
        let layer = image.write_layer(&layer_file).with_context(|| format!("image {}", image.name))?;
        let config = serde_json::to_vec(&image.config(&layer))?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{layer}/layer.tar");
        let mut head = header(tar::EntryType::Regular, 0o644, config.len() as u64);
        archive.append_data(&mut head, &config_name, config.as_slice())?;
        let mut head = header(tar::EntryType::Regular, 0o644, fs::metadata(&layer_file)?.len());
        archive.append_data(&mut head, &layer_name, File::open(&layer_file)?)?;
        manifest.push(json!({"Config": config_name, "RepoTags": [image.name], "Layers": [layer_name]}));
    }
    let manifest = serde_json::to_vec(&manifest)?;
    let mut head = header(tar::EntryType::Regular, 0o644, manifest.len() as u64);
    archive.append_data(&mut head, "manifest.json", manifest.as_slice())?;
    archive.into_inner()?.flush()?;
    fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample(dir: &Path) -> Image {
        let source = dir.join("program");
        fs::write(&source, "#!/bin/true\n").unwrap();
        let mut image = Image::new("localhost/sample:1");
        image.file(&source, Path::new("/usr/bin/program"), Some(0o755)).unwrap();
        image.text("/etc/passwd", "root:x:0:0::/:\n", 0o644).unwrap();
        image.link("/bin", "usr/bin").unwrap();
        image.entrypoint("/usr/bin/program");
        image
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample(dir.path());
        write_archive(std::slice::from_ref(&image), &dir.path().join("a.tar")).unwrap();
        write_archive(&[image], &dir.path().join("b.tar")).unwrap();
        assert_eq!(fs::read(dir.path().join("a.tar")).unwrap(), fs::read(dir.path().join("b.tar")).unwrap());
    }

    #[test]
    fn the_layer_has_the_digest_that_the_configuration_names() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.tar");
        write_archive(&[sample(dir.path()), Image::new("localhost/empty:1")], &out).unwrap();
        let mut contents = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&out).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            contents.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        let manifest: Value = serde_json::from_slice(&contents["manifest.json"]).unwrap();
        assert_eq!(manifest.as_array().unwrap().len(), 2);
        let config: Value =
            serde_json::from_slice(&contents[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let layer = &contents[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
        let paths: Vec<String> = tar::Archive::new(layer.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["bin", "etc", "etc/passwd", "usr", "usr/bin", "usr/bin/program"]);
    }

    #[test]
    fn paths_that_leave_the_image_are_refused() {
        let mut image = Image::new("localhost/x:1");
        for path in ["relative", "/a/../b", "/"] {
            assert!(image.text(path, "", 0o644).is_err(), "{path}");
        }
    }

    #[test]
    fn a_changed_file_changes_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample(dir.path());
        let before = image.fingerprint().unwrap();
        assert_eq!(before, image.fingerprint().unwrap());
        fs::write(dir.path().join("program"), "longer than before\n").unwrap();
        assert_ne!(before, image.fingerprint().unwrap());
    }
}
