//! `braidctl`: shows Braid's addresses and nodes, and checks that they agree with the pods. Found by kubectl as
//! `kubectl braid` when installed under the name `kubectl-braid`.

mod audit;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use braid_api::{IPBlock, IPInstance, NodeNetwork, Subnet, slim};
use braid_types::model::InstanceDef;
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::audit::{PodAddresses, audit};

/// Shows Braid's networks and addresses, and checks that they agree with the pods.
#[derive(Debug, Parser)]
#[command(name = "braidctl", version)]
struct Args {
    /// Kubeconfig file; default: $KUBECONFIG, ~/.kube/config, or the account of the pod it runs in.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// Context in the kubeconfig file.
    #[arg(long, global = true)]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every address given out: who has it, where, and in which phase.
    Addresses {
        /// Only addresses of this Network.
        #[arg(long)]
        network: Option<String>,
        /// Only addresses on this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Every node's networks: whether pods can start there, parent device, MTU and tunnel end.
    Nodes,
    /// Compares IPInstances, IPBlocks and Subnets with the pods' own addresses; exits 1 when something is wrong.
    Check,
}

async fn client(args: &Args) -> Result<Client> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await.context("using the kubeconfig file")?
        }
        None if args.context.is_some() => {
            Config::from_kubeconfig(&options).await.context("using the default kubeconfig")?
        }
        None => Config::infer().await.context("finding a cluster: give --kubeconfig or set KUBECONFIG")?,
    };
    Client::try_from(config).context("making an API client")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

fn print(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("writing to standard output")
}

async fn list<K>(client: &Client) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await;
    Ok(list.with_context(|| format!("listing {}", K::plural(&())))?.items)
}

async fn addresses(client: &Client, network: Option<&str>, node: Option<&str>) -> Result<()> {
    let mut instances: Vec<InstanceDef> = list::<IPInstance>(client)
        .await?
        .iter()
        .map(InstanceDef::try_from)
        .collect::<Result<_, _>>()
        .context("reading an IPInstance")?;
    instances.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
    let mut out = table(&["ADDRESS", "NETWORK", "SUBNET", "HOLDER", "INTERFACE", "NODE", "PHASE"]);
    for i in instances {
        if network.is_some_and(|n| n != i.network) || node.is_some_and(|n| i.node.as_deref() != Some(n)) {
            continue;
        }
        let holder = match (&i.pod, &i.owner) {
            (Some(pod), _) => format!("{}/{}", pod.namespace, pod.name),
            (None, Some(owner)) => format!("{} {}", owner.kind, owner.name),
            (None, None) => "-".to_owned(),
        };
        let node = i.node.unwrap_or_else(|| "-".into());
        out.add_row([
            i.name.address().to_string(),
            i.network.to_string(),
            i.subnet.to_string(),
            holder,
            i.interface.to_string(),
            node.to_string(),
            format!("{:?}", i.phase),
        ]);
    }
    print(out)
}

async fn nodes(client: &Client) -> Result<()> {
    let mut out = table(&["NODE", "NETWORK", "READY", "PARENT", "MTU", "TUNNEL END", "REASON"]);
    let mut all = list::<NodeNetwork>(client).await?;
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for node in all {
        let name = node.metadata.name.unwrap_or_default();
        for n in node.status.map(|s| s.networks).unwrap_or_default() {
            let dash = || "-".to_owned();
            out.add_row([
                name.clone(),
                n.name,
                if n.ready { "True".to_owned() } else { "False".to_owned() },
                n.parent.unwrap_or_else(dash),
                n.mtu.map_or_else(dash, |m| m.to_string()),
                n.vtep.map_or_else(dash, |v| v.ip),
                n.reason.unwrap_or_else(dash),
            ]);
        }
    }
    print(out)
}

async fn check(client: &Client) -> Result<ExitCode> {
    // Pods first: an address granted meanwhile is then an extra IPInstance, not a missing one.
    let pods = list::<slim::Pod>(client).await?;
    let pods: Vec<PodAddresses> = pods
        .iter()
        .filter(|p| !p.spec.host_network)
        .map(|p| PodAddresses {
            name: format!(
                "{}/{}",
                p.metadata.namespace.as_deref().unwrap_or_default(),
                p.metadata.name.as_deref().unwrap_or_default()
            ),
            uid: p.metadata.uid.clone().unwrap_or_default(),
            finished: p.is_finished(),
            addresses: p.status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
        })
        .collect();
    let instances = list::<IPInstance>(client).await?;
    let subnets = list::<Subnet>(client).await?;
    let blocks = list::<IPBlock>(client).await?;
    let parsed = (
        instances.iter().map(TryFrom::try_from).collect::<Result<Vec<_>, braid_api::ParseError>>(),
        subnets.iter().map(TryFrom::try_from).collect::<Result<Vec<_>, braid_api::ParseError>>(),
        blocks.iter().map(TryFrom::try_from).collect::<Result<Vec<_>, braid_api::ParseError>>(),
    );
    let findings = audit(
        &pods,
        &parsed.0.context("reading an IPInstance")?,
        &parsed.1.context("reading a Subnet")?,
        &parsed.2.context("reading an IPBlock")?,
    );
    for finding in &findings {
        print(finding)?;
    }
    print(format!(
        "{} pods, {} addresses, {} blocks: {} findings",
        pods.len(),
        instances.len(),
        blocks.len(),
        findings.len()
    ))?;
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = client(&args).await?;
    match &args.command {
        Command::Addresses { network, node } => {
            addresses(&client, network.as_deref(), node.as_deref()).await?;
        }
        Command::Nodes => nodes(&client).await?,
        Command::Check => return check(&client).await,
    }
    Ok(ExitCode::SUCCESS)
}
