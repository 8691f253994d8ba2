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
pub fn with_cert_manager(stage: &Stage, body: impl FnOnce(&mut CertManager<'_>) -> Result<()>) -> Result<()> {
    let part = build("cert-manager")?;
    let kinds = part.join("crds").display().to_string();
    let outcome = in_cluster(stage, &kinds, &part.join("cert-manager"), body);
    outcome.and(put_back(stage, &kinds))
}

fn in_cluster(
    stage: &Stage,
    kinds: &str,
    program: &Path,
    body: impl FnOnce(&mut CertManager<'_>) -> Result<()>,
) -> Result<()> {
    let sandbox = stage.sandbox();
    sandbox.kubectl(&["apply", "--server-side", "-f", kinds])?;
    sandbox.kubectl(&["wait", "--for=condition=Established", "--timeout=180s", "-f", kinds])?;
    let controller = Process::start(sandbox, program, "controller")?;
    let injector = Some(Process::start(sandbox, program, "cainjector")?);
    let mut cert_manager = CertManager { sandbox, program, controller, injector };
    body(&mut cert_manager).with_context(|| cert_manager.last_words())
}

fn put_back(stage: &Stage, kinds: &str) -> Result<()> {
    stage.sandbox().kubectl(&["delete", "--ignore-not-found", "--timeout=180s", "-f", kinds])?;
    // Secrets stay when their Certificates go.
    system(stage, &["delete", "secret", "--ignore-not-found", "braid-webhook-ca"])?;
    stage.restore()?;
    back_to_own(stage)
}

/// cert-manager's programs, with all rights. Dropping it ends them.
#[derive(Debug)]
pub struct CertManager<'a> {
    sandbox: &'a Sandbox,
    program: &'a Path,
    controller: Process,
    /// `None` while it is away.
    injector: Option<Process>,
}

impl CertManager<'_> {
    /// Runs `body` while the CA injector is away.
    ///
    /// # Errors
    /// When `body` fails or the injector cannot be started again.
    pub fn without_injector<T>(&mut self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.injector = None;
        let value = body()?;
        self.injector = Some(Process::start(self.sandbox, self.program, "cainjector")?);
        Ok(value)
    }

    /// The end of what each has said.
    fn last_words(&self) -> String {
        let processes = std::iter::once(&self.controller).chain(&self.injector);
        processes.map(Process::last_words).collect()
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(sandbox: &Sandbox, program: &Path, role: &str) -> Result<Self> {
        // Where the bundle of a failed test looks for logs.
        let log = Sandbox::dir_of(sandbox.name()).join(format!("logs/cert-manager-{role}.log"));
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let mut call = command([program.as_os_str(), role.as_ref(), sandbox.kubeconfig().as_os_str()]);
        // It ends with this pipe, also when the test is killed.
        call.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let child = call.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, log })
    }

    fn last_words(&self) -> String {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("the end of {}:\n{tail}\n", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
