//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use braid_types::duration::{SECOND, YEAR, between};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runtimes wait for an ADD no longer than this.
const LONGEST_ADD: Duration = Duration::from_secs(240);
/// Each ADD takes that much longer.
const LONGEST_DUPLICATE_WAIT: Duration = Duration::from_secs(5);

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
    // What each time breaks when it is shorter, or longer, is told in docs/times.md.
    /// How often everything in the kernel is compared even when nothing changed.
    #[arg(long, env = "BRAID_RESYNC", default_value = "60s", value_parser = between(SECOND, YEAR))]
    pub(crate) resync: Duration,
    /// How long an ADD waits for the pod's addresses before it tells the runtime to try again.
    #[arg(long, env = "BRAID_ADD_DEADLINE", default_value = "30s", value_parser = between(SECOND, LONGEST_ADD))]
    pub(crate) add_deadline: Duration,
    /// How long an ADD in an untagged VLAN waits for somebody who has the pod's address already. 0: nobody is asked.
    #[arg(
        long,
        env = "BRAID_DUPLICATE_WAIT",
        default_value = "150ms",
        value_parser = between(Duration::ZERO, LONGEST_DUPLICATE_WAIT)
    )]
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

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use clap::{Arg, CommandFactory};

    use super::*;

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

    fn times() -> Vec<Arg> {
        let is_time = |arg: &&Arg| arg.get_value_parser().type_id() == TypeId::of::<Duration>();
        let command = Cli::command();
        let all = command.get_subcommands().flat_map(clap::Command::get_arguments);
        all.filter(is_time).cloned().collect()
    }

    #[test]
    fn times_that_cannot_work_are_refused_with_a_sentence() {
        let run = |given: &str| {
            let cli = Cli::try_parse_from(["braid-node", "run", "--node-name=n1", given])
                .map_err(|e| e.to_string())?;
            let Command::Run(run) = cli.command else { panic!("not run: {:?}", cli.command) };
            Ok::<_, String>(run)
        };
        for (given, what) in [
            ("--resync=0", "write at least `1s`"),
            ("--resync=60", "write `60s`"),
            ("--add-deadline=500ms", "write at least `1s`"),
            ("--add-deadline=5m", "write at most `4m`"),
            ("--duplicate-wait=150", "`150ms` for milliseconds"),
            ("--duplicate-wait=6s", "write at most `5s`"),
        ] {
            let sentence = run(given).unwrap_err();
            let flag = given.split('=').next().unwrap();
            assert!(sentence.contains(flag) && sentence.contains(what), "{sentence}");
        }
        assert_eq!(run("--duplicate-wait=0").unwrap().duplicate_wait, Duration::ZERO);
        assert_eq!(run("--resync=1h").unwrap().resync, Duration::from_secs(3600), "as long as was asked for");
    }

    /// A person finds every time in docs/times.md as it is, and its key in the manifest.
    #[test]
    fn times_are_listed() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
        let (document, manifest) = (read("docs/times.md"), read("config/node/daemonset.yaml"));
        let section = document.split("\n## ").find(|text| text.starts_with("Agent\n")).unwrap();
        let mut rows = 0;
        for arg in times() {
            let (flag, env) = (arg.get_long().unwrap(), arg.get_env().unwrap().to_str().unwrap());
            let default = arg.get_default_values()[0].to_str().unwrap();
            let start = format!("| `--{flag}` | `{env}` | ");
            let end = format!(" | {default} | ");
            let row = section.lines().find_map(|line| line.strip_prefix(&start)).expect(flag);
            let key = row.split(" |").next().unwrap();
            assert!(row.strip_prefix(key).unwrap().starts_with(&end), "default of --{flag}: {row}");
            if key != "-" {
                let key = key.trim_matches('`');
                let source =
                    format!("{{configMapKeyRef: {{name: braid-config, key: {key}, optional: true}}}}");
                let lines: Vec<&str> = manifest.lines().map(str::trim).collect();
                let at = lines.iter().position(|line| *line == format!("- name: {env}")).expect(env);
                assert_eq!(lines[at + 1], format!("valueFrom: {source}"), "{env}");
            }
            rows += 1;
        }
        assert_eq!(section.lines().filter(|line| line.starts_with("| `--")).count(), rows, "a flag is gone");
    }
}
