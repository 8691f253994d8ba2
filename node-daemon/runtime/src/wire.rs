//! Puts the agent together. The only place that knows everything.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use braid_informer::InSync;
use braid_journal::Journal;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::args::{CniDirs, RunArgs, StateArgs};
use crate::attached::Sayer;
use crate::attachments::Attachments;
use crate::cni::{self, Cni};
use crate::health::{self, Health};
use crate::install::{self, Installed};
use crate::kernel::{HostKernel, watch_drift};
use crate::lookup::ApiLookup;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::reconcile::{Loop, Report, Shared};
use crate::release::{Releaser, TornDown};
use crate::store::Store;
use crate::{client, conflist, sweep, watches};

/// How often it is looked whether the CNI configuration is there, and fits the plugins that are installed.
const CONFLIST_LOOK: Duration = Duration::from_secs(30);
/// How long requests may go on after the agent was told to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// What every part of the agent uses.
struct Base {
    kernel: Arc<HostKernel>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// `braid-node run`.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let health = Arc::new(Health::new("waiting for the API server's first lists"));
    let metrics = Arc::new(Metrics::default());
    let listener = health::bind(args.metrics_addr)
        .await
        .with_context(|| format!("cannot listen on {}", args.metrics_addr))?;
    let tasks = TaskTracker::new();
    tasks.spawn(health::serve(listener, health.clone(), metrics.clone(), stop.clone()));

    install_plugin(args.cni.clone()).await?;
    let kernel = Arc::new(HostKernel::open()?);
    let client = client::connect(&args).await?;
    let base = Base { kernel, health, metrics, tasks, stop };
    serve(&args, client, &base).await?;

    base.stop.cancelled().await;
    info!("stopping; everything in the kernel stays as it is");
    base.tasks.close();
    if tokio::time::timeout(LAST_REQUESTS, base.tasks.wait()).await.is_err() {
        warn!("some requests did not end in time");
    }
    Ok(())
}

/// Starts everything that works on the node; returns at once.
async fn serve(args: &RunArgs, client: Client, base: &Base) -> anyhow::Result<()> {
    let Base { kernel, health, metrics, tasks, stop } = base;
    let journal = Journal::below(&args.state.state_dir);
    let loaded = tokio::task::spawn_blocking(move || Attachments::load(journal)).await?;
    let attachments = Arc::new(loaded.context("cannot read the journal of attachments")?);
    for file in attachments.unread() {
        warn!(error = file.why, "an entry of the journal cannot be read; its interface stays as it is");
    }
    let store = Arc::new(Store::default());
    let shared = Arc::new(Shared::default());
    let torn_down = Arc::new(TornDown::default());
    let lookup = Arc::new(ApiLookup { client: client.clone() });
    let (proof, in_sync) = watch::channel(None::<InSync>);
    let (turns, busy) = Cni::<HostKernel, ApiLookup>::queues();
    let cni = Arc::new(Cni {
        store: store.clone(),
        attachments: attachments.clone(),
        plumbing: kernel.clone(),
        shared: shared.clone(),
        lookup: lookup.clone(),
        torn_down: torn_down.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        in_sync,
        leftovers: Arc::default(),
        patience: args.add_deadline,
        duplicate_wait: args.duplicate_wait,
        stop: stop.clone(),
        turns,
        busy,
    });
    // First the socket, then the files: a plugin writes its file and then tries the socket once more.
    let listener = cni::server::listen(&args.state.socket)?;
    // Needs no API server.
    sweep::pending_dels(&cni).await;
    tasks.spawn(cni::server::serve(listener, cni.clone(), stop.clone()));

    // Before the first comparison, so that nothing falls between.
    let monitor = kernel.monitor()?;
    let informers = watches::start(&client, &args.node_name, &store);
    let synced = informers.in_sync();
    let (reports, told) = watch::channel(None::<Report>);
    let kernel_loop = Loop {
        node: args.node_name.clone(),
        store: store.clone(),
        attachments: attachments.clone(),
        plumbing: kernel.clone(),
        shared: shared.clone(),
        metrics: metrics.clone(),
        health: health.clone(),
        reports,
        resync: args.resync,
    };
    let publisher = Publisher {
        client: client.clone(),
        node: args.node_name.clone(),
        store: store.clone(),
        reports: told.clone(),
        metrics: metrics.clone(),
    };
    let sayer = Sayer {
        client: client.clone(),
        store: store.clone(),
        attachments: attachments.clone(),
        metrics: metrics.clone(),
    };
    let node = args.node_name.clone();
    let releaser = Releaser { client, node, store, attachments, torn_down, lookup, metrics: metrics.clone() };
    let (dirs, state) = (args.cni.clone(), args.state.clone());
    let (health, stop) = (health.clone(), stop.clone());
    tasks.spawn(async move {
        // The watches live as long as this task.
        let _informers = informers;
        let Some(in_sync) = first_lists(synced, &health, &stop).await else { return };
        info!("every watch has its first list");
        // After a reboot the journal is full of interfaces that nobody can make again.
        let clean = sweep::once(&cni, in_sync).await;
        proof.send_replace(Some(in_sync));
        tokio::join!(
            kernel_loop.run(in_sync, stop.clone()),
            publisher.run(stop.clone()),
            releaser.run(in_sync, stop.clone()),
            sweep::run(cni, clean, in_sync, stop.clone()),
            sayer.run(in_sync, stop.clone()),
            until(&stop, write_conflist_when_ready(dirs, state, told)),
            until(&stop, watch_drift(monitor, shared)),
        );
    });
    Ok(())
}

/// Waits for the first lists and shows meanwhile that the agent is alive.
async fn first_lists(
    synced: impl Future<Output = InSync>,
    health: &Health,
    stop: &CancellationToken,
) -> Option<InSync> {
    let mut synced = std::pin::pin!(synced);
    let mut tick = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            in_sync = &mut synced => return Some(in_sync),
            () = stop.cancelled() => return None,
            _ = tick.tick() => health.alive(),
        }
    }
}

async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// From the configuration on, the kubelet calls the node ready. It stays when the agent stops: pods of a node
/// whose agent restarts are as well connected as before.
async fn write_conflist_when_ready(
    dirs: CniDirs,
    state: StateArgs,
    mut reports: watch::Receiver<Option<Report>>,
) {
    let ready = |report: &Option<Report>| report.as_ref().is_some_and(|r| r.waiting_for.is_none());
    if reports.wait_for(ready).await.is_err() {
        return;
    }
    loop {
        let (dirs, state) = (dirs.clone(), state.clone());
        let written = tokio::task::spawn_blocking(move || {
            let content = conflist::render(&dirs, &state)?;
            Some(install::conflist(&dirs.cni_conf_dir, content.as_bytes()))
        })
        .await;
        match written {
            Ok(Some(Ok(Installed::Written))) => info!("CNI configuration written, pods can start"),
            Ok(Some(Ok(Installed::Unchanged))) => {}
            Ok(Some(Err(error))) => error!(error = crate::plumbing::chain(&error), "no CNI configuration"),
            Ok(None) => {
                error!("an installed CNI plugin speaks no version that Braid knows; no configuration");
            }
            Err(error) => error!(%error, "no CNI configuration"),
        }
        // Somebody may remove the file, or install or replace a chained plugin.
        tokio::time::sleep(CONFLIST_LOOK).await;
    }
}

/// `braid-node install-cni`, and the first thing that `run` does.
pub(crate) async fn install_plugin(dirs: CniDirs) -> anyhow::Result<()> {
    let installed =
        tokio::task::spawn_blocking(move || install::plugin(&dirs.cni_plugin, &dirs.cni_bin_dir)).await??;
    if installed == Installed::Written {
        info!("CNI plugin installed");
    }
    Ok(())
}

/// A token that SIGTERM and SIGINT cancel.
pub(crate) fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}
