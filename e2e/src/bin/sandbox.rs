//! `e2e/sandbox`: a real Kubernetes cluster on this machine.

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use braid_e2e::{Options, Sandbox};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// A real Kubernetes cluster on this machine, in namespaces
#[derive(Parser)]
#[command(name = "sandbox", version)]
struct Cli {
    /// Name of the cluster
    #[arg(long, global = true, default_value = "braid", env = "BRAID_SANDBOX")]
    name: String,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring the cluster up; does nothing when it is up
    Up {
        #[command(flatten)]
        options: Options,
        /// Run the nodes in a virtual machine (not available)
        #[arg(long)]
        vm: bool,
    },
    /// Remove the cluster and every trace of it
    Down,
    /// Run kubectl against the cluster
    #[command(disable_help_flag = true)]
    Kubectl(Words),
    /// Run a command in a node: exec node1 -- ip route
    Exec {
        /// A node, or `fabric` or `router` for the network between the nodes
        node: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Import an image archive into every node
    Load {
        /// A docker-archive, as made by pack-image or 'docker save'
        archive: PathBuf,
    },
    /// Stop a component in an orderly way and start it again
    Restart(Target),
    /// End a component with SIGKILL; it comes back as after any crash
    Kill(Target),
    /// Stop a component and keep it down; for a node, power it off
    Stop(Target),
    /// Start what was stopped
    Start(Target),
    /// Cut two nodes off from each other
    Partition(Pair),
    /// Undo a partition
    Heal(Pair),
    /// Print the log of a component, or the last lines of all logs
    Logs {
        /// A component as 'status' names it
        component: Option<String>,
    },
    /// Show nodes and components
    Status {
        /// Output format
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Write everything that helps to understand a failure into a .tar.gz
    Bundle {
        /// The file to write
        file: PathBuf,
    },
    /// Names of the clusters on this machine, and whether they run
    List,
    /// First process of a node; started by 'up'
    #[command(hide = true)]
    Supervise { spec: PathBuf },
}

#[derive(Args)]
struct Words {
    /// Arguments of kubectl
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Args)]
struct Target {
    /// A component as 'status' names it (etcd, apiserver, kubelet@node2...), or a node
    component: String,
}

#[derive(Args)]
struct Pair {
    /// A node
    a: String,
    /// Another node
    b: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let name = cli.name.as_str();
    match cli.command {
        Action::Up { vm: true, .. } => {
            bail!("--vm is not available in this version: nodes run in namespaces only")
        }
        Action::Up { options, .. } => {
            let sandbox = Sandbox::up(name, &options)?;
            println!("export KUBECONFIG={}", sandbox.kubeconfig().display());
        }
        Action::Down => Sandbox::down(name)?,
        Action::Kubectl(Words { words }) => {
            let mut kubectl = Sandbox::attach(name)?.kubectl_command();
            // A person at the terminal expects kubectl's editor and pager to be theirs.
            kubectl.envs(std::env::vars_os().filter(|(key, _)| {
                ["TERM", "EDITOR", "KUBE_EDITOR", "LANG", "USER"].iter().any(|known| key == *known)
            }));
            return status(kubectl.args(words).stdin(std::process::Stdio::inherit()).status());
        }
        Action::Exec { node, command } => {
            let sandbox = Sandbox::attach(name)?;
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let mut call = if ["fabric", "router"].contains(&node.as_str()) {
                sandbox.netns_command(&node, &words)
            } else {
                sandbox.node_command(&node, &words)?
            };
            if let Some(term) = std::env::var_os("TERM") {
                call.env("TERM", term);
            }
            return status(call.stdin(std::process::Stdio::inherit()).status());
        }
        Action::Load { archive } => Sandbox::attach(name)?.load(&archive)?,
        Action::Restart(target) => Sandbox::attach(name)?.restart(&target.component)?,
        Action::Kill(target) => Sandbox::attach(name)?.kill(&target.component)?,
        Action::Stop(target) => Sandbox::attach(name)?.stop(&target.component)?,
        Action::Start(target) => Sandbox::attach(name)?.start(&target.component)?,
        Action::Partition(pair) => Sandbox::attach(name)?.partition(&pair.a, &pair.b)?,
        Action::Heal(pair) => Sandbox::attach(name)?.heal(&pair.a, &pair.b)?,
        Action::Logs { component } => Sandbox::attach(name)?.print_logs(component.as_deref())?,
        Action::Status { output } => Sandbox::attach(name)?.print_status(matches!(output, Format::Json))?,
        Action::Bundle { file } => Sandbox::attach(name)?.bundle(&file)?,
        Action::List => {
            Sandbox::list().iter().for_each(|(name, remains)| println!("{name:<20} {remains}"));
        }
        Action::Supervise { spec } => braid_e2e::supervise(&spec)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends with the code of the program that was run.
fn status(outcome: std::io::Result<ExitStatus>) -> Result<ExitCode> {
    let status = outcome.context("cannot start the command")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
