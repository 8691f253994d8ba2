//! A cgroup per node, in version 1 (one hierarchy per controller) and version 2 (one for all).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exec::eventually;

const ROOT: &str = "/sys/fs/cgroup";

fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Every mounted hierarchy. In the hybrid layout the version 2 one below `unified` has no controllers, but runtimes
/// still make folders in it.
fn hierarchies() -> Vec<PathBuf> {
    if is_v2() {
        return vec![PathBuf::from(ROOT)];
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, point, kind) = (words.next()?, words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    });
    points.filter(|point| point.starts_with(ROOT)).collect()
}

/// Makes the cgroup `path` (such as `/braid-x/node1`) ready to hold a kubelet's pods.
pub(crate) fn create(path: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let mut group = hierarchy.clone();
        enable_controllers(&group);
        for part in Path::new(path.trim_start_matches('/')).components() {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group)
                .with_context(|| format!("cannot create cgroup {}", group.display()))?;
            copy_cpuset(&parent, &group);
            enable_controllers(&group);
        }
    }
    Ok(())
}

/// A new version 1 cpuset has no processors and no memory nodes and takes no process until it is given some.
fn copy_cpuset(parent: &Path, group: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if group.starts_with(Path::new(ROOT).join("cpuset"))
            && let Ok(value) = fs::read(parent.join(file))
        {
            let _ = fs::write(group.join(file), value);
        }
    }
}

/// Version 2 hands controllers down one level at a time; a controller that the machine lacks is left out.
fn enable_controllers(group: &Path) {
    let Ok(available) = fs::read_to_string(group.join("cgroup.controllers")) else { return };
    for controller in available.split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes the cgroup and everything below it. Its processes must have been ended; the kernel takes a moment to let
/// go of them.
pub(crate) fn remove(path: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(path.trim_start_matches('/'));
        if group.exists() {
            eventually(&format!("removing cgroup {}", group.display()), Duration::from_secs(20), || {
                remove_tree(&group)?;
                Ok(Some(()))
            })?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", group.display()))
        }
        _ => Ok(()),
    }
}

/// Whether anything of the cgroup is left.
pub(crate) fn exists(path: &str) -> bool {
    hierarchies().iter().any(|hierarchy| hierarchy.join(path.trim_start_matches('/')).exists())
}
