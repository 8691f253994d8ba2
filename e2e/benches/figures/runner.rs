//! The runner that all CNI contenders share: it lives in a node's namespaces, starts programs as a container runtime
//! does, and measures from fork to exit.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use braid_e2e::Sandbox;
use serde::{Deserialize, Serialize};

/// A program to be run once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Its whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// What it reads.
    pub(crate) stdin: String,
}

/// Calls that start at the same moment, and what tidies up after them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// Whose turn it is.
    pub(crate) contender: String,
    /// Measured, all at once.
    pub(crate) timed: Vec<Call>,
    /// Not measured, one after another.
    pub(crate) after: Vec<Call>,
}

/// Everything that one runner does.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Network namespaces that are made before the first turn and removed after the last.
    pub(crate) namespaces: Vec<String>,
    /// In order.
    pub(crate) turns: Vec<Turn>,
}

/// Seconds of every timed call, by contender.
pub(crate) type Times = BTreeMap<String, Vec<f64>>;

/// Carries out a plan in all namespaces of a node.
pub(crate) fn run(sandbox: &Sandbox, node: &str, plan: &Plan) -> Result<Times> {
    let program = own_path()?;
    let mut command = sandbox.node_command(node, &[&program, "run-calls"])?;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the runner")?;
    let text = serde_json::to_vec(plan)?;
    child
        .stdin
        .take()
        .context("the runner's input")?
        .write_all(&text)
        .context("cannot hand over the plan")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the runner on {node} failed");
    serde_json::from_slice(&output.stdout).context("the runner's answer")
}

/// Path of this program, which nodes see under the same name.
pub(crate) fn own_path() -> Result<String> {
    let path: PathBuf = std::env::current_exe()?;
    path.to_str().map(str::to_owned).ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))
}

/// Path of the program that is the floor, built beside this one.
pub(crate) fn floor_path() -> Result<String> {
    let own = PathBuf::from(own_path()?);
    let beside = own.ancestors().skip(1).map(|folder| folder.join("bench-floor")).find(|path| path.is_file());
    let path = beside.context("the program 'bench-floor' is not built: run e2e/bench.sh")?;
    path.to_str().map(str::to_owned).ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))
}

/// The runner itself: a plan on standard input, times on standard output.
pub(crate) fn serve() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let plan: Plan = serde_json::from_str(&text)?;
    for name in &plan.namespaces {
        crate::netns::checked(Command::new("ip").args(["netns", "add", name]))?;
        crate::netns::checked(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]))?;
    }
    let times = plan.turns.iter().try_fold(Times::new(), |mut times, turn| {
        let seconds = turn.take().with_context(|| format!("turn of {}", turn.contender))?;
        times.entry(turn.contender.clone()).or_default().extend(seconds);
        Ok::<_, anyhow::Error>(times)
    });
    for name in &plan.namespaces {
        crate::netns::checked(Command::new("ip").args(["netns", "del", name]))?;
    }
    println!("{}", serde_json::to_string(&times?)?);
    Ok(())
}

impl Turn {
    fn take(&self) -> Result<Vec<f64>> {
        let gate = Barrier::new(self.timed.len());
        let times = std::thread::scope(|scope| {
            let start = |call| {
                let gate = &gate;
                scope.spawn(move || {
                    gate.wait();
                    Call::run(call)
                })
            };
            let threads: Vec<_> = self.timed.iter().map(start).collect();
            let outcomes = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a panic"))));
            outcomes.collect::<Result<Vec<f64>>>()
        });
        for call in &self.after {
            call.run()?;
        }
        times
    }
}

impl Call {
    /// Runs it to its end; it must succeed.
    fn run(&self) -> Result<f64> {
        let (program, arguments) = self.argv.split_first().context("a call without a program")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.env);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that reads nothing may have ended already.
            let _ = stdin.write_all(self.stdin.as_bytes());
        }
        let output = child.wait_with_output()?;
        let took = begun.elapsed().as_secs_f64();
        ensure!(
            output.status.success(),
            "{:?} failed: {}{}",
            self.argv,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(took)
    }
}
