//! cert-manager's own controllers beside the cluster, for as long as a test needs them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::exec::command;
use crate::parts::build;
use crate::sandbox::Sandbox;
use crate::stage::Stage;
use crate::webhook::{back_to_own, system};

/// Runs `body` while cert-manager works on the cluster. However that ends, its kinds and all that it made are gone
/// afterwards, and the webhook's certificate is the controller's own.
///
/// # Errors
/// When `body` fails, with what cert-manager said last, or when the cluster cannot be put back.
pub fn with_cert_manager(stage: &Stage, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let part = build("cert-manager")?;
    let kinds = part.join("crds").display().to_string();
    let outcome = in_cluster(stage, &kinds, &part.join("cert-manager"), body);
    outcome.and(put_back(stage, &kinds))
}

fn in_cluster(stage: &Stage, kinds: &str, program: &Path, body: impl FnOnce() -> Result<()>) -> Result<()> {
    stage.sandbox().kubectl(&["apply", "--server-side", "-f", kinds])?;
    stage.sandbox().kubectl(&["wait", "--for=condition=Established", "--timeout=180s", "-f", kinds])?;
    let process = Process::start(stage.sandbox(), program)?;
    body().with_context(|| process.last_words())
}

fn put_back(stage: &Stage, kinds: &str) -> Result<()> {
    stage.sandbox().kubectl(&["delete", "--ignore-not-found", "--timeout=180s", "-f", kinds])?;
    // Secrets stay when their Certificates go.
    system(stage, &["delete", "secret", "--ignore-not-found", "braid-webhook-ca"])?;
    stage.restore()?;
    back_to_own(stage)
}

/// cert-manager's controllers with all rights. Dropping it ends them.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(sandbox: &Sandbox, program: &Path) -> Result<Self> {
        // Where the bundle of a failed test looks for logs.
        let log = Sandbox::dir_of(sandbox.name()).join("logs/cert-manager.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut call = command([program.as_os_str(), sandbox.kubeconfig().as_os_str()]);
        // It ends with this pipe, also when the test is killed.
        call.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let child = call.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, log })
    }

    /// The end of its output.
    fn last_words(&self) -> String {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        format!("cert-manager said (the whole of it: {}):\n{tail}\n", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
