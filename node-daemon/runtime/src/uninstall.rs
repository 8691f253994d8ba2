//! `braid-node uninstall`: leaves the node as if Braid had never been there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tracing::info;

use crate::args::{StateArgs, UninstallArgs};
use crate::health::{self, Health};
use crate::kernel::HostKernel;
use crate::metrics::Metrics;
use crate::{install, wire};

/// Removes everything, and with `--stay` answers probes until it is told to stop.
pub(crate) async fn run(args: UninstallArgs) -> anyhow::Result<()> {
    let stop = wire::stop_on_signals()?;
    let health = Arc::new(Health::new("removing Braid from this node"));
    let serving = if args.stay {
        let listener = health::bind(args.metrics_addr)
            .await
            .with_context(|| format!("cannot listen on {}", args.metrics_addr))?;
        let served = health::serve(listener, health.clone(), Arc::<Metrics>::default(), stop.clone());
        Some(tokio::spawn(served))
    } else {
        None
    };
    let work = args.clone();
    tokio::task::spawn_blocking(move || remove_everything(&work)).await??;
    info!("nothing of Braid is left on this node");
    if let Some(serving) = serving {
        health.ready();
        serving.await??;
    }
    Ok(())
}

fn remove_everything(args: &UninstallArgs) -> anyhow::Result<()> {
    // The configuration first: while interfaces go, no new ones may come.
    install::remove(&args.cni.cni_bin_dir, &args.cni.cni_conf_dir)?;
    HostKernel::open()?.remove_everything()?;
    remove_state(&args.state)
}

fn remove_state(state: &StateArgs) -> anyhow::Result<()> {
    remove_file(&state.socket)?;
    // The plugin's lock beside the socket.
    let mut lock = state.socket.clone().into_os_string();
    lock.push(".lock");
    remove_file(Path::new(&lock))?;
    for dir in ["attachments", "pending-del"] {
        let path = state.state_dir.join(dir);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    // Folders of ours that are empty now. A mount point cannot be removed, and one with foreign files must not.
    let _ = std::fs::remove_dir(&state.state_dir);
    if let Some(dir) = state.socket.parent() {
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_and_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateArgs {
            state_dir: dir.path().join("lib/braid"),
            socket: dir.path().join("run/braid/cni.sock"),
        };
        std::fs::create_dir_all(state.state_dir.join("attachments")).unwrap();
        std::fs::create_dir_all(state.socket.parent().unwrap()).unwrap();
        std::fs::write(state.state_dir.join("attachments/c1:eth0"), "x").unwrap();
        std::fs::write(&state.socket, "").unwrap();
        std::fs::write(dir.path().join("run/braid/cni.sock.lock"), "").unwrap();
        let foreign = dir.path().join("run/other");
        std::fs::write(&foreign, "").unwrap();
        for _ in 0..2 {
            remove_state(&state).unwrap();
            assert!(!state.state_dir.exists() && !state.socket.parent().unwrap().exists());
            assert!(foreign.exists());
        }
    }
}
