//! `braid-node`: the agent on each node. See ARCHITECTURE.md.

mod args;
mod attached;
mod attachments;
mod client;
mod cni;
mod conflist;
#[cfg(test)]
mod fake;
mod health;
mod index;
mod install;
mod kernel;
mod lookup;
mod metrics;
#[cfg(test)]
mod node_tests;
mod plumbing;
mod publish;
mod reconcile;
mod release;
mod store;
mod sweep;
mod uninstall;
mod view;
mod watches;
mod wire;

use braid_informer::LOG_FILTER;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Command, LogFormat};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    log_as(cli.log_format);
    // Two crates may bring a provider each; this process uses one, for everything.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Run(args) => wire::run(*args).await,
        Command::InstallCni(dirs) => wire::install_plugin(dirs).await,
        Command::Uninstall(args) => uninstall::run(args).await,
    }
}

fn log_as(format: LogFormat) {
    let filter = EnvFilter::try_from_env("BRAID_LOG").unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(tracing_subscriber::fmt::layer().with_ansi(false)).init(),
        LogFormat::Json => registry.with(tracing_subscriber::fmt::layer().json()).init(),
    }
}
