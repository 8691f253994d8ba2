//! The runtime's configuration, with what is chained behind Braid on this node.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use braid_meta_core::CniVersion;
use braid_meta_core::conflist::{Chained, ChainedPlugin, Conflist};
use braid_meta_core::version::parse_version_reply;
use tracing::{debug, warn};

use crate::args::{CniDirs, StateArgs};

/// How long a plugin may take to tell its versions.
const LIMIT: Duration = Duration::from_secs(5);
/// What plugins of the time before they were asked speak; every release of the last years knows these.
const USUAL: [CniVersion; 3] = [CniVersion::V0_3_1, CniVersion::V0_4_0, CniVersion::V1_0_0];

/// The content of the file; `None` when an installed plugin speaks no version of ours. Blocks.
pub(crate) fn render(dirs: &CniDirs, state: &StateArgs) -> Option<String> {
    let chained = portmap(&dirs.cni_bin_dir);
    let unusual = |path: &Path, usual: &str| (path != Path::new(usual)).then(|| path.display().to_string());
    let list = Conflist {
        socket: unusual(&state.socket, braid_rpc::DEFAULT_SOCKET),
        state_dir: unusual(&state.state_dir, braid_journal::DEFAULT_STATE_DIR),
        chained: chained.into_iter().collect(),
    };
    list.render()
}

/// `portmap`, which makes host ports work, where it is installed.
fn portmap(bin_dir: &Path) -> Option<Chained> {
    let path = bin_dir.join(ChainedPlugin::Portmap.file_name());
    if !path.is_file() {
        debug!("the node has no portmap plugin, so pods get no host ports");
        return None;
    }
    let versions = versions(&path).unwrap_or_else(|why| {
        // It may need libraries that only the host has.
        warn!(plugin = %path.display(), why, "the plugin does not tell its versions, assuming the usual ones");
        USUAL.to_vec()
    });
    Some(Chained { plugin: ChainedPlugin::Portmap, versions })
}

/// Asks a plugin for its versions (spec section 2, "VERSION").
fn versions(plugin: &Path) -> Result<Vec<CniVersion>, String> {
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that reads nothing closes its end; its answer counts all the same.
        let _ = stdin.write_all(br#"{"cniVersion":"1.0.0"}"#);
    }
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no answer within {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    parse_version_reply(&String::from_utf8_lossy(&output.stdout)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn rendered(portmap: Option<&str>) -> serde_json::Value {
        let dir = tempfile::tempdir().unwrap();
        if let Some(script) = portmap {
            let path = dir.path().join("portmap");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let dirs = CniDirs {
            cni_bin_dir: dir.path().into(),
            cni_conf_dir: "/nowhere".into(),
            cni_plugin: "/nowhere".into(),
        };
        let state = StateArgs { state_dir: "/var/lib/braid".into(), socket: "/tmp/own.sock".into() };
        serde_json::from_str(&render(&dirs, &state).unwrap()).unwrap()
    }

    #[test]
    fn portmap_is_chained_where_it_is_installed() {
        let alone = rendered(None);
        assert_eq!(alone["plugins"].as_array().unwrap().len(), 1);
        assert_eq!(alone["plugins"][0]["socket"], "/tmp/own.sock");
        assert_eq!(alone["plugins"][0].get("stateDir"), None);

        let new =
            rendered(Some(r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'"#));
        assert_eq!(new["plugins"][1]["type"], "portmap");
        assert_eq!(new["cniVersions"], serde_json::json!(["1.0.0", "1.1.0"]));
    }

    #[test]
    fn a_plugin_that_does_not_answer_limits_the_versions() {
        let broken = rendered(Some("exit 1"));
        assert_eq!(broken["plugins"][1]["type"], "portmap");
        assert_eq!(broken["cniVersions"], serde_json::json!(["1.0.0"]));
    }
}
