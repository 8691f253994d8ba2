//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Braid's agent: connects the pods of one node to their Networks.
#[derive(Debug, Parser)]
#[command(name = "braid-node", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How log lines are written.
    #[arg(long, global = true, env = "BRAID_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent until it is told to stop. Stopping it changes nothing on the node.
    Run(Box<RunArgs>),
    /// Copy the CNI plugin onto the node and end.
    InstallCni(CniDirs),
    /// Remove everything of Braid's from the node: devices, routes, rules, the nftables table, plugin,
    /// configuration and state. Needs no API server. Foreign things stay.
    Uninstall(UninstallArgs),
}

/// Where the runtime looks for plugins and their configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct CniDirs {
    /// Folder of the CNI plugins, as seen from here.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Folder of the CNI configuration, as seen from here.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// The plugin to install.
    #[arg(long, default_value = "/usr/bin/braid-cni")]
    pub(crate) cni_plugin: PathBuf,
}

/// Where the agent keeps its state.
#[derive(Debug, Clone, Args)]
pub(crate) struct StateArgs {
    /// Folder of the journal of attachments; has to survive a reboot.
    #[arg(long, default_value = "/var/lib/braid")]
    pub(crate) state_dir: PathBuf,
    /// Socket on which the CNI plugin finds the agent.
    #[arg(long, default_value = "/run/braid/cni.sock")]
    pub(crate) socket: PathBuf,
}

/// `braid-node run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Name of the Node object of this node.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, default_value = ":9431", value_parser = listen_address)]
    pub(crate) metrics_addr: SocketAddr,
    /// Address of the API server, `https://192.0.2.1:6443`, for clusters in which nodes do not reach its
    /// ClusterIP before the pod network works. Without it, what the kubelet put into the environment counts.
    #[arg(long, env = "BRAID_API_SERVER")]
    pub(crate) api_server: Option<String>,
    /// A kubeconfig to use instead of the service account.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How often, in seconds (`60` or `60s`), everything in the kernel is compared even when nothing changed.
    #[arg(long, default_value = "60s", value_parser = seconds)]
    pub(crate) resync: Duration,
    /// How long an ADD waits for the pod's addresses before it tells the runtime to try again.
    #[arg(long, default_value = "30s", value_parser = seconds)]
    pub(crate) add_deadline: Duration,
    /// How long, in milliseconds (`150` or `150ms`), an ADD in an untagged VLAN waits for somebody who has the pod's address
    /// already. 0: nobody is asked.
    #[arg(long, default_value = "150ms", value_parser = milliseconds)]
    pub(crate) duplicate_wait: Duration,
    #[command(flatten)]
    pub(crate) cni: CniDirs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// `braid-node uninstall`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UninstallArgs {
    /// Keep running afterwards and answer /readyz, so that the rollout of a DaemonSet shows which nodes are clean.
    #[arg(long)]
    pub(crate) stay: bool,
    /// Address of /readyz with `--stay`.
    #[arg(long, default_value = ":9431", value_parser = listen_address)]
    pub(crate) metrics_addr: SocketAddr,
    #[command(flatten)]
    pub(crate) cni: CniDirs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `:9431` stands for every address of the node, of both families.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| format!("`{text}` is no address; use `:9431` or `127.0.0.1:9431`"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let parse = |t: &str| t.parse::<u64>().ok().filter(|n| *n > 0);
    let secs = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(n), _) => parse(n),
        (_, Some(n)) => parse(n).and_then(|n| n.checked_mul(60)),
        (None, None) => parse(text),
    };
    secs.map(Duration::from_secs)
        .ok_or_else(|| format!("`{text}` is no time span; use whole seconds or minutes, `60s` or `2m`"))
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").unwrap_or(text).parse();
    let millis = number.ok().filter(|n| *n <= 5000).map(Duration::from_millis);
    millis.ok_or_else(|| {
        format!("`{text}` is no time span up to 5000 milliseconds; use `150ms`, or `0` for none")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manifests_arguments_are_understood() {
        let cli = Cli::try_parse_from([
            "braid-node",
            "run",
            "--node-name=n1",
            "--cni-bin-dir=/host/opt/cni/bin",
            "--cni-conf-dir=/host/etc/cni/net.d",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!("not run: {:?}", cli.command) };
        assert_eq!(run.metrics_addr, "[::]:9431".parse().unwrap());
        assert_eq!((run.resync, run.add_deadline), (Duration::from_secs(60), Duration::from_secs(30)));
        assert_eq!(run.cni.cni_bin_dir, PathBuf::from("/host/opt/cni/bin"));

        let cli = Cli::try_parse_from(["braid-node", "uninstall", "--stay", "--log-format", "json"]).unwrap();
        assert_eq!(cli.log_format, LogFormat::Json);
        assert!(matches!(cli.command, Command::Uninstall(UninstallArgs { stay: true, .. })));
    }

    #[test]
    fn time_spans() {
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "0", "-1", "1h", "s", "1.5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
