//! Flags of `braid-controller`, each with its environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use braid_types::duration::{SECOND, YEAR, between};
use clap::{Parser, Subcommand, ValueEnum};

use crate::work::LOOK_AT_ALL;

/// The cluster controller of Braid: gives out addresses, keeps Networks and Subnets in order.
#[derive(Debug, Clone, Parser)]
#[command(name = "braid-controller", version)]
pub(crate) struct Args {
    // What each time breaks when it is shorter, or longer, is told in docs/times.md.
    /// What to do; nothing given means to run the controller.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "BRAID_METRICS_ADDR", default_value = "[::]:9430", value_parser = listen_address)]
    pub(crate) metrics_addr: SocketAddr,

    /// Where the validating webhook is served (TLS).
    #[arg(long, env = "BRAID_WEBHOOK_ADDR", default_value = "[::]:9443", value_parser = listen_address)]
    pub(crate) webhook_addr: SocketAddr,

    /// Namespace of Lease, Secret and Service.
    #[arg(long, env = "POD_NAMESPACE", default_value = "braid-system")]
    pub(crate) namespace: String,

    /// Name of this process in the Lease; a random part is added, since a restarted process is another one.
    #[arg(long, env = "POD_NAME", default_value = "braid-controller")]
    pub(crate) identity: String,

    /// How long a freed address rests before it is given out again.
    #[arg(long, env = "BRAID_COOL_DOWN", default_value = "30s", value_parser = between(SECOND, YEAR))]
    pub(crate) cool_down: Duration,

    /// How long after its pod is gone an address is freed although the node never confirmed the teardown.
    #[arg(long, env = "BRAID_ORPHAN_TIMEOUT", default_value = "15m", value_parser = between(SECOND, YEAR))]
    pub(crate) orphan_timeout: Duration,

    /// How long an address block stays with its node after it became empty.
    #[arg(long, env = "BRAID_BLOCK_GRACE", default_value = "5m", value_parser = between(SECOND, YEAR))]
    pub(crate) block_grace: Duration,

    /// How often an owner for which addresses are kept is asked for: whether it still exists.
    #[arg(long, env = "BRAID_OWNER_CHECK", default_value = "60s", value_parser = between(SECOND, LOOK_AT_ALL))]
    pub(crate) owner_check: Duration,

    /// How often contradictions are looked for.
    #[arg(long, env = "BRAID_AUDIT", default_value = "60s", value_parser = between(SECOND, LOOK_AT_ALL))]
    pub(crate) audit: Duration,

    /// How logs look.
    #[arg(long, env = "BRAID_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// How long a Lease that is not renewed keeps others out.
    #[arg(long, env = "BRAID_LEASE_DURATION", default_value = "15s", value_parser = between(SECOND, YEAR))]
    pub(crate) lease_duration: Duration,

    /// How long the leader goes on without a successful renewal.
    #[arg(long, env = "BRAID_RENEW_DEADLINE", default_value = "10s", value_parser = between(SECOND, YEAR))]
    pub(crate) renew_deadline: Duration,

    /// How often the Lease is looked at.
    #[arg(long, env = "BRAID_RETRY_PERIOD", default_value = "2s", value_parser = between(SECOND / 10, YEAR))]
    pub(crate) retry_period: Duration,

    /// Kubeconfig to use instead of the pod's service account.
    #[arg(long, env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// URL of the API server, where it differs from what the service account environment or kubeconfig says.
    #[arg(long, env = "BRAID_API_SERVER")]
    pub(crate) api_server: Option<String>,

    /// API writes in flight at once while addresses are granted.
    #[arg(long, env = "BRAID_PARALLEL_GRANTS", default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) parallel_grants: u16,

    /// Lead without a Lease. For tests of what happens when two controllers lead.
    #[arg(long, hide = true)]
    pub(crate) assume_leader: bool,

    /// Seconds by which this process's clock is wrong. For tests of what happens when the clocks of controllers differ.
    #[arg(long, hide = true, allow_negative_numbers = true, default_value_t = 0)]
    pub(crate) clock_offset: i64,
}

/// What else the binary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Remove every Braid object and its finalizers. Only for uninstalling: pods lose their addresses.
    Purge,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line per message.
    Text,
    /// One JSON object per line.
    Json,
}

/// `:9430` means every address of the machine, both families.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| format!("`{text}` is not an address and port, such as `:9430` or `127.0.0.1:9430`"))
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use clap::{Arg, CommandFactory};

    use super::*;

    #[test]
    fn a_port_alone_listens_everywhere() {
        assert_eq!(listen_address(":9430").unwrap().to_string(), "[::]:9430");
        assert_eq!(listen_address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(listen_address("9430").is_err());
    }

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["braid-controller"]).unwrap();
        assert!(args.lease_duration > args.renew_deadline && args.renew_deadline > args.retry_period);
    }

    fn times() -> Vec<Arg> {
        let is_time = |arg: &&Arg| arg.get_value_parser().type_id() == TypeId::of::<Duration>();
        Args::command().get_arguments().filter(is_time).cloned().collect()
    }

    #[test]
    fn times_that_cannot_work_are_refused_with_a_sentence() {
        let said = |flag: &str, value: &str| {
            let given = format!("--{flag}={value}");
            Args::try_parse_from(["braid-controller", &given]).unwrap_err().to_string()
        };
        for arg in times() {
            let flag = arg.get_long().unwrap();
            for (value, what) in
                [("0s", "write at least `"), ("60", "write `60s`"), ("9000h", "write at most `")]
            {
                let sentence = said(flag, value);
                assert!(sentence.contains(&format!("--{flag}")) && sentence.contains(what), "{sentence}");
            }
        }
        for flag in ["owner-check", "audit"] {
            assert!(said(flag, "601s").contains("`601s` is too long; write at most `10m`"), "{flag}");
        }
    }

    /// A person finds every time in docs/times.md as it is, and its key in the manifest.
    #[test]
    fn times_are_listed() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
        let (document, manifest) = (read("docs/times.md"), read("config/controller/deployment.yaml"));
        let section = document.split("\n## ").find(|text| text.starts_with("Controller\n")).unwrap();
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
