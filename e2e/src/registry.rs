//! The machine-wide list of clusters, `/run/braid-sandbox/<name>/`: it gives each cluster its number, keeps two
//! checkouts from using the same name, and remembers which processes are ours even when the cluster's folder is gone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::layout::{Layout, MAX_CLUSTERS};

const REGISTRY: &str = "/run/braid-sandbox";

/// What the list holds about a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    index: u8,
    dir: PathBuf,
}

/// A process that the sandbox started: the start time tells it from a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub(crate) started: u64,
}

impl Process {
    /// The calling process, as the given procfs numbers it.
    pub(crate) fn current() -> Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
        Self::parse(&stat).context("cannot understand /proc/self/stat")
    }

    fn parse(stat: &str) -> Option<Self> {
        let pid = stat.split_whitespace().next()?.parse().ok()?;
        // The name, in parentheses, may itself hold spaces and parentheses.
        let rest = stat.rsplit_once(')')?.1;
        let started = rest.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started })
    }

    pub(crate) fn is_alive(self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        Self::parse(&stat) == Some(self) && !zombie
    }

    /// Ends it at once; a process that is already gone is fine.
    pub(crate) fn kill(self) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Holds a cluster's name for the caller; `up` and `down` of one cluster exclude each other.
pub(crate) struct Claim {
    pub(crate) layout: Layout,
    _lock: Flock<File>,
}

/// Locks a file of the list. Who takes a cluster off the list removes its files, so a lock counts only when the file
/// still has its name.
fn lock(file: &str) -> Result<Flock<File>> {
    let path = Path::new(REGISTRY).join(file);
    loop {
        fs::create_dir_all(REGISTRY).with_context(|| format!("cannot create {REGISTRY}"))?;
        let file = match File::create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.with_context(|| format!("cannot create {}", path.display()))?,
        };
        let held = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| anyhow::anyhow!("cannot lock {}: {errno}", path.display()))?;
        let inode = held.metadata().context("cannot look at a lock")?.ino();
        if fs::metadata(&path).is_ok_and(|named| named.ino() == inode) {
            return Ok(held);
        }
    }
}

/// Folder of the cluster in the list; its supervisors' sockets and pid files lie in it.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(REGISTRY).join(name)
}

pub(crate) fn socket(name: &str, scope: &str) -> PathBuf {
    folder(name).join(format!("{scope}.sock"))
}

pub(crate) fn pid_file(name: &str, scope: &str) -> PathBuf {
    folder(name).join(format!("{scope}.pid"))
}

fn entry(name: &str) -> Option<Entry> {
    serde_json::from_slice(&fs::read(folder(name).join("cluster.json")).ok()?).ok()
}

/// Refuses names that cannot be part of namespace, link and file names.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 20 || !name.chars().all(fine) || name.starts_with('-') {
        bail!("'{name}' cannot name a sandbox: use 1 to 20 lower-case letters, digits and '-'");
    }
    Ok(())
}

/// The running or stale cluster of this name, if there is one.
pub(crate) fn find(name: &str) -> Option<Layout> {
    entry(name).map(|entry| Layout { name: name.to_owned(), index: entry.index, dir: entry.dir })
}

/// Takes the name for a cluster in folder `dir`, giving it a number if it has none yet.
pub(crate) fn claim(name: &str, dir: &Path) -> Result<Claim> {
    let name_lock = lock(&format!("{name}.lock"))?;
    let whole = lock("lock")?;
    let index = match entry(name) {
        Some(known) if known.dir == dir => known.index,
        Some(known) if !processes(name).is_empty() => {
            bail!(
                "a sandbox '{name}' runs from {}: choose another --name or end it there",
                known.dir.display()
            )
        }
        Some(known) => known.index,
        None => free_index()?,
    };
    let folder = folder(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let text = serde_json::to_vec(&Entry { index, dir: dir.to_owned() })?;
    fs::write(folder.join("cluster.json"), text).context("cannot write the list of sandboxes")?;
    drop(whole);
    Ok(Claim { layout: Layout { name: name.to_owned(), index, dir: dir.to_owned() }, _lock: name_lock })
}

/// Takes the cluster off the list.
pub(crate) fn forget(claim: &Claim) -> Result<()> {
    let whole = lock("lock")?;
    let folder = folder(&claim.layout.name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let _ = fs::remove_file(Path::new(REGISTRY).join(format!("{}.lock", claim.layout.name)));
    if names().is_empty() {
        let _ = fs::remove_dir_all(REGISTRY);
    }
    drop(whole);
    Ok(())
}

/// Names of all clusters on the list.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(REGISTRY).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn free_index() -> Result<u8> {
    let taken: BTreeSet<u8> =
        names().iter().filter_map(|name| entry(name)).map(|entry| entry.index).collect();
    let Some(index) = (0..MAX_CLUSTERS).find(|index| !taken.contains(index)) else {
        bail!("{MAX_CLUSTERS} sandboxes exist already: end one of them first");
    };
    Ok(index)
}

/// The supervisors of the cluster that are alive.
pub(crate) fn processes(name: &str) -> Vec<Process> {
    let files = fs::read_dir(folder(name)).into_iter().flatten().flatten().map(|entry| entry.path());
    let recorded = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
    recorded.filter_map(|path| read_pid(&path)).filter(|process| process.is_alive()).collect()
}

/// The supervisor of one scope, if it is alive.
pub(crate) fn process(name: &str, scope: &str) -> Option<Process> {
    read_pid(&pid_file(name, scope)).filter(|process| process.is_alive())
}

fn read_pid(path: &Path) -> Option<Process> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Supervisors that were started but did not live long enough to write their pid file, found by the specification in
/// the cluster's folder that only they have on their command line.
pub(crate) fn unrecorded(layout: &Layout) -> Vec<Process> {
    let config = layout.config();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let ours = words.windows(2).any(|pair| {
            pair[0] == b"supervise"
                && std::str::from_utf8(pair[1]).is_ok_and(|path| Path::new(path).starts_with(&config))
        });
        if ours
            && let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some(process) = Process::parse(&stat)
        {
            found.push(process);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let me = Process::current().unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn names_in_stat_may_hold_anything() {
        let fields: Vec<String> = (3..=52).map(|field| format!("{}", field * 10)).collect();
        let stat = format!("17 (a) S (b) {}", fields.join(" "));
        assert_eq!(Process::parse(&stat), Some(Process { pid: 17, started: 220 }));
    }

    #[test]
    fn odd_names_are_refused() {
        for name in ["", "A", "a/b", "-a", "a b", "a-name-that-is-far-too-long"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("e2e-1").unwrap();
    }
}
