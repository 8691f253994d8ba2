//! The programs that a cluster is made of: Debian packages, and parts that are built from pinned Go modules.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::components::Programs;
use crate::exec::{Progress, SYSTEM_PATH, command, describe, run};
use crate::options::Runtime;

/// A program and the Debian package that has it.
const PROGRAMS: [(&str, &str); 19] = [
    ("bash", "bash"),
    ("bridge", "iproute2"),
    ("busybox", "busybox"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("runc", "runc"),
    ("setsid", "util-linux"),
    ("socat", "socat"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
];

/// Where a program is found on the machine.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    SYSTEM_PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// Installs the packages that are missing, on Debian and its relatives.
pub(crate) fn install_packages(runtime: Runtime, progress: &Progress) -> Result<()> {
    let debian_runtime = [("containerd", "containerd")];
    let optional: &[(&str, &str)] = if runtime == Runtime::Containerd1 { &debian_runtime } else { &[] };
    let wanted = PROGRAMS.iter().chain(optional);
    let mut packages: Vec<&str> =
        wanted.filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if which("apt-get").is_none() {
        bail!(
            "The sandbox needs programs that are not installed; install the equivalents of these Debian packages: {list}"
        );
    }
    progress.step(&format!("installing Debian packages: {list}"));
    let _silence = NoServices::begin()?;
    apt(&["update", "-qq"])?;
    let options = ["install", "-y", "-qq", "--no-install-recommends"];
    apt(&options.iter().chain(&packages).copied().collect::<Vec<_>>())
}

fn apt(arguments: &[&str]) -> Result<()> {
    // apt may need the person's proxy settings, so this call keeps the environment.
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = apt.output().context("cannot start apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("'{}' failed: {}", describe(&apt), said.trim())
}

/// Keeps package scripts from starting services (etcd's would take the port) while it lives.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        let made = !Path::new(POLICY).exists();
        if made {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { made })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// The repository that this program was built from.
pub(crate) fn repository() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

/// Folder of everything that is built once and kept.
pub(crate) fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    base.unwrap_or_else(home).join("braid")
}

/// Builds a part unless the cache has it, and returns its folder.
pub(crate) fn build(part: &str) -> Result<PathBuf> {
    let script = repository().join("e2e/tools/build");
    // The script talks to the person on standard error; Go may need proxy settings from the environment.
    let output = Command::new(&script)
        .arg(part)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", script.display()))?;
    if !output.status.success() {
        bail!("the sandbox's part '{part}' could not be built (see above)");
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Everything that a cluster runs, built or found in the cache.
pub(crate) fn programs() -> Result<Programs> {
    Ok(Programs {
        kubernetes: build("kubernetes")?,
        containerd: build("containerd")?,
        etcd: build("etcd")?,
        cni: build("cni")?,
    })
}

/// Runs kubectl of the sandbox's own build: the machine's may be older than the server.
pub(crate) fn kubectl(programs: &Programs, kubeconfig: &Path) -> Command {
    let mut kubectl = command([programs.kubernetes.join("kubectl")]);
    kubectl.env("KUBECONFIG", kubeconfig);
    kubectl
}

/// Asks the API server and reads the answer as JSON.
pub(crate) fn kubectl_json(programs: &Programs, kubeconfig: &Path, arguments: &[&str]) -> Result<Value> {
    let text = run(kubectl(programs, kubeconfig).args(arguments).args(["-o", "json"]))?;
    serde_json::from_str(&text).context("kubectl did not print JSON")
}
