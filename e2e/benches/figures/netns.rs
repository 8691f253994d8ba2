//! Network namespaces of the machine, made and removed by the benchmarks.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A named network namespace that lives as long as this value.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A fresh one with its loopback device up.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("braid-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        checked(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.batch("ip", &["link set lo up".to_owned()])?;
        Ok(namespace)
    }

    /// Its name for `ip -n`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A path that opens it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs lines by `ip -batch` or `bridge -batch`.
    pub(crate) fn batch(&self, tool: &str, lines: &[String]) -> Result<()> {
        let mut command = Command::new(tool);
        command.args(["-n", &self.name, "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child =
            command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {tool}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all((lines.join("\n") + "\n").as_bytes()).context("cannot write the batch")?;
        }
        succeeded(&command, &child.wait_with_output()?).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = checked(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn checked(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    succeeded(command, &output)
}

fn succeeded(command: &Command, output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
