//! The file tree of a node: the machine's programs, but its own `/etc`, `/opt`, `/run`, `/tmp` and `/var`. It is built
//! in the node's mount namespace, so nothing of it is visible on the machine and all of it goes when the node ends.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

/// What the tree is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeRoot {
    /// The node's folder: it holds the contents of `/var`, `/opt` and `/etc` of the node.
    pub(crate) dir: PathBuf,
    /// Where the tree is put together: an empty folder below `/run`, which the tree itself does not contain.
    pub(crate) workshop: PathBuf,
    /// Folders of the machine that must be reachable under the same path, wherever they lie.
    pub(crate) keep: Vec<PathBuf>,
}

/// Top-level folders that a node has of its own.
const OWN: [&str; 9] = ["proc", "sys", "dev", "run", "tmp", "var", "etc", "opt", "lost+found"];

/// Files of the machine's `/etc` that programs on a node need.
const ETC: [&str; 14] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "group",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "passwd",
    "protocols",
    "services",
    "ssl",
    "localtime",
];

/// Makes the calling process, the first of its mount and process namespaces, live in the node's tree.
pub(crate) fn enter(hostname: &str, root: Option<&NodeRoot>) -> Result<()> {
    flags("/", MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    let Some(root) = root else {
        return fresh("proc", "/proc");
    };
    nix::unistd::sethostname(hostname).context("cannot set the host name")?;
    let new = root.workshop.clone();
    fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
    let tree = Tree { new };
    fresh("tmpfs", &tree.new)?;
    tree.machine_folders()?;
    tree.kernel_folders()?;
    tree.own_folders(root, hostname)?;
    for path in &root.keep {
        tree.keep(path)?;
    }
    tree.pivot()
}

struct Tree {
    new: PathBuf,
}

impl Tree {
    /// Where a path of the future tree lies now.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.new.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn dir(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let at = self.at(path);
        fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
        Ok(at)
    }

    fn machine_folders(&self) -> Result<()> {
        for entry in fs::read_dir("/").context("cannot list /")? {
            let entry = entry?;
            let name = entry.file_name();
            if OWN.iter().any(|own| name == *own) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                symlink(fs::read_link(entry.path())?, self.at(&name))?;
            } else if kind.is_dir() {
                bind(&entry.path(), &self.dir(&name)?)?;
            }
        }
        Ok(())
    }

    fn kernel_folders(&self) -> Result<()> {
        fresh("proc", self.dir("proc")?)?;
        // A new sysfs shows the links of this network namespace; it hides the cgroups, which are put back.
        let sys = self.dir("sys")?;
        fresh("sysfs", &sys)?;
        bind(Path::new("/sys/fs/cgroup"), &sys.join("fs/cgroup"))?;
        if sys.join("fs/bpf").exists() {
            // Only for those who pin things there; a kernel without it is fine.
            let _ = fresh("bpf", sys.join("fs/bpf"));
        }
        bind(Path::new("/dev"), &self.dir("dev")?)
    }

    fn own_folders(&self, root: &NodeRoot, hostname: &str) -> Result<()> {
        for name in ["run", "tmp"] {
            fresh("tmpfs", self.dir(name)?)?;
        }
        fs::create_dir_all(self.at("run/netns"))?;
        fs::create_dir_all(self.at("run/lock"))?;
        for name in ["var", "etc", "opt"] {
            let kept = root.dir.join(name);
            fs::create_dir_all(&kept).with_context(|| format!("cannot create {}", kept.display()))?;
            bind(&kept, &self.dir(name)?)?;
        }
        for (link, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
            let link = self.at(link);
            if link.symlink_metadata().is_err() {
                symlink(target, &link)?;
            }
        }
        for dir in ["var/lib", "var/log", "var/tmp", "etc/cni/net.d", "opt/cni/bin"] {
            self.dir(dir)?;
        }
        for name in ETC {
            let source = Path::new("/etc").join(name);
            if source.exists() {
                copy_tree(&source, &self.at("etc").join(name))?;
            }
        }
        fs::write(self.at("etc/hostname"), format!("{hostname}\n"))?;
        fs::write(
            self.at("etc/hosts"),
            format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"),
        )?;
        fs::write(self.at("etc/resolv.conf"), "")?;
        fs::write(self.at("etc/machine-id"), machine_id(&root.dir))?;
        Ok(())
    }

    fn keep(&self, path: &Path) -> Result<()> {
        let at = self.at(path);
        if at.exists() {
            return Ok(());
        }
        bind(path, &self.dir(path)?)
    }

    fn pivot(&self) -> Result<()> {
        let old = self.dir(".old")?;
        nix::unistd::pivot_root(&self.new, &old).context("cannot change to the node's file tree")?;
        nix::unistd::chdir("/").context("cannot enter the node's file tree")?;
        umount2("/.old", MntFlags::MNT_DETACH).context("cannot let go of the machine's file tree")?;
        fs::remove_dir("/.old").context("cannot remove /.old")?;
        // As on a real node: mounts made by the runtime or by an agent reach the pods that ask for it.
        flags("/", MsFlags::MS_SHARED | MsFlags::MS_REC)
    }
}

/// A stable identity per node, in the form of systemd's.
fn machine_id(dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>() + "\n"
}

/// Copies files, links and folders; what a node changes in its `/etc` must not reach the machine.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let kind = from.symlink_metadata()?.file_type();
    if kind.is_symlink() {
        let _ = fs::remove_file(to);
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_file() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

fn fresh(kind: &str, target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    ensure!(source.exists(), "{} does not exist", source.display());
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn flags(target: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot change the propagation of {target}"))
}
