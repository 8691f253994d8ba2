//! Puts the parts together. The only place that knows all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use braid_controller_core::Config;
use braid_controller_core::leader::{Elector, Timing};
use braid_informer::{Informers, WatchHealth, connection};
use braid_types::duration::{whole_seconds, written};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::args::Args;
use crate::events::Events;
use crate::gate::Gate;
use crate::health::{self, Probe};
use crate::index;
use crate::leader::{Election, End};
use crate::metrics::{AddressLabels, Metrics, QueueLabel, WatchLabel};
use crate::webhook::Webhook;
use crate::webhook::keeper::Keeper;
use crate::webhook::tls::{CurrentCertificate, TlsListener};
use crate::work::Work;
use crate::world::Shared;
use crate::write::{ATTEMPT, Writer};

/// Calls of the write path that may be in flight beside those of grants.
const OTHER_CALLS: usize = 16;
/// Without a heartbeat for this long the process is considered stuck.
const STUCK: Duration = Duration::from_secs(60);
/// A queue with work that hands out none for this long is stuck: each call to the API has a shorter limit.
const QUEUE_STUCK: Duration = Duration::from_secs(120);

/// Runs until asked to stop, or until the lead is lost.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let identity = format!("{}_{:08x}", args.identity, rand::random::<u32>());
    let elector = Elector::new(&identity, timing(&args)?)?;
    let client = client(&args).await?;
    let metrics = Arc::new(Metrics::new());
    let gate = Gate::closed();
    let calls = usize::from(args.parallel_grants) * 2 + OTHER_CALLS;
    let writer = Writer::new(client.clone(), gate.clone(), metrics.clone(), calls);
    let shared = Shared::new(config(&args));
    let certificate = CurrentCertificate::default();

    let mut informers = Informers::default();
    index::watch(&mut informers, &client, &shared, &metrics);
    // Apart from the others: that they fail is no reason to grant nothing.
    let mut side = Informers::default();
    // Nothing waits for these, not even the certificates: an API server may not have the kind.
    let mut extra = Informers::default();
    index::watch_extra(&mut extra, &client, &shared, &metrics);
    let events = Events::new(client.clone(), writer.clone(), identity);
    let keeper =
        Keeper::new(&mut side, &client, writer.clone(), events.clone(), &args.namespace, certificate.clone());
    let probe = Arc::new(Probes {
        shared: shared.clone(),
        metrics: metrics.clone(),
        gate: gate.clone(),
        certificate: certificate.clone(),
        watches: Box::new(informers.health()),
        side_watches: Box::new(side.health()),
        started: Instant::now(),
        beat: AtomicU64::new(0),
    });
    tokio::spawn(beat(probe.clone()));
    let webhook = Webhook::new(shared.clone(), client.clone(), metrics.clone(), &args.namespace);
    serve(&args, &probe, webhook, certificate).await?;

    let mut stop = stop_signals()?;
    tokio::select! {
        _ = informers.in_sync() => info!("in sync"),
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    let nudge = keeper.nudge();
    tokio::spawn(async move {
        side.in_sync().await;
        keeper.run().await;
    });

    let (leading, mut led) = watch::channel(false);
    let election = tokio::spawn(elect(&args, elector, writer.clone(), gate, leading, stop.clone()));
    tokio::pin!(election);
    tokio::select! {
        _ = led.wait_for(|led| *led) => {}
        end = &mut election => return finish(end),
    }
    metrics.leader.set(1);
    nudge();
    // What was listed may have aged while this process stood by: a watch that fails right now is not trusted.
    tokio::select! {
        () = watches_work(&*probe.watches) => {}
        end = &mut election => return finish(end),
    }
    let restored = shared.world().ipam.restored().context("caches in sync without full lists")?;
    let work = Work::new(shared, writer, events, metrics.clone(), restored, args.audit);
    let workers = work.start(usize::from(args.parallel_grants));
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        end = &mut election => return finish(end),
    }
    info!("stopping");
    drop(workers);
    metrics.leader.set(0);
    finish(election.await)
}

fn finish(end: Result<End, tokio::task::JoinError>) -> anyhow::Result<()> {
    match end.context("the election failed")? {
        End::Stopped => Ok(()),
        End::Lost => bail!("the lead is lost, ending so that nothing more is written"),
    }
}

fn config(args: &Args) -> Config {
    let seconds = |d: Duration| i64::try_from(whole_seconds(d)).unwrap_or(i64::MAX);
    Config {
        cool_down: seconds(args.cool_down),
        orphan_timeout: seconds(args.orphan_timeout),
        block_grace: seconds(args.block_grace),
        owner_check: seconds(args.owner_check),
    }
}

/// The times of the election. A write that began as the lead ended must be over before another process leads.
fn timing(args: &Args) -> anyhow::Result<Timing> {
    let (lease, renew_deadline) = (args.lease_duration, args.renew_deadline);
    if lease <= renew_deadline + ATTEMPT {
        bail!(
            "--lease-duration {} must be longer than --renew-deadline {} and the {} that one write may take; \
             write more than {}",
            written(lease),
            written(renew_deadline),
            written(ATTEMPT),
            written(renew_deadline + ATTEMPT),
        );
    }
    Ok(Timing { lease, renew_deadline, retry: args.retry_period })
}

/// A client for the API server that the flags name.
pub(crate) async fn client(args: &Args) -> anyhow::Result<Client> {
    let mut config = connection(args.kubeconfig.as_deref(), args.api_server.as_deref()).await?;
    // Writes have their own limits and repetitions, watches their own backoff.
    config.default_retry = false;
    info!(server = %config.cluster_url, "API server");
    Ok(Client::try_from(config)?)
}

/// Starts the two servers. They end with the process.
async fn serve(
    args: &Args,
    probe: &Arc<Probes>,
    webhook: Webhook,
    certificate: CurrentCertificate,
) -> anyhow::Result<()> {
    let listener = health::listen(args.metrics_addr)
        .await
        .with_context(|| format!("{} cannot be listened on", args.metrics_addr))?;
    tokio::spawn(axum::serve(listener, health::router(probe.clone())).into_future());
    let listener = health::listen(args.webhook_addr)
        .await
        .with_context(|| format!("{} cannot be listened on", args.webhook_addr))?;
    let listener = TlsListener::new(listener, certificate)?;
    tokio::spawn(axum::serve(listener, webhook.router()).into_future());
    Ok(())
}

/// Becomes true on SIGTERM and SIGINT.
fn stop_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let (stopping, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("asked to stop");
        stopping.send_replace(true);
        // A receiver that comes late must still see the value.
        std::future::pending::<()>().await;
    });
    Ok(stop)
}

/// The election, or the claim to lead without one.
fn elect(
    args: &Args,
    elector: Elector,
    writer: Writer,
    gate: Gate,
    leading: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) -> impl Future<Output = End> + Send + 'static {
    let election = Election::new(elector, writer, gate.clone(), args.namespace.clone(), args.renew_deadline);
    let assume = args.assume_leader;
    async move {
        if !assume {
            return election.run(leading, stop).await;
        }
        warn!("leading without a Lease, as asked to");
        gate.open_always();
        leading.send_replace(true);
        // The sender lives as long as the process.
        let _ = stop.wait_for(|stop| *stop).await;
        gate.close();
        End::Stopped
    }
}

async fn watches_work(watches: &(dyn Fn() -> Vec<WatchHealth> + Send + Sync)) {
    loop {
        let failing: Vec<_> = watches().into_iter().filter(|w| w.error.is_some()).map(|w| w.name).collect();
        if failing.is_empty() {
            return;
        }
        info!(?failing, "leading, but waiting for watches that fail");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What `/livez`, `/readyz` and `/metrics` look at.
struct Probes {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    gate: Gate,
    certificate: CurrentCertificate,
    watches: Box<dyn Fn() -> Vec<WatchHealth> + Send + Sync>,
    /// Those of the webhook's certificate: shown, and nothing else waits for them.
    side_watches: Box<dyn Fn() -> Vec<WatchHealth> + Send + Sync>,
    started: Instant,
    /// Seconds since the start at the last heartbeat.
    beat: AtomicU64,
}

/// Beats as long as tasks are run and the state can be looked at.
async fn beat(probe: Arc<Probes>) {
    loop {
        drop(probe.shared.world());
        probe.beat.store(probe.started.elapsed().as_secs(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

impl Probe for Probes {
    fn alive(&self) -> Result<(), String> {
        let silent = self.started.elapsed().as_secs().saturating_sub(self.beat.load(Ordering::Relaxed));
        if silent > STUCK.as_secs() {
            return Err(format!("no heartbeat for {silent} s"));
        }
        match self.shared.queues.stuck(QUEUE_STUCK) {
            Some(queue) if self.gate.fence().is_some() => Err(format!("queue {queue} makes no progress")),
            _ => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        let missing: Vec<_> = (self.watches)().iter().filter(|w| !w.synced).map(|w| w.name).collect();
        if !missing.is_empty() {
            return Err(format!("not listed yet: {}", missing.join(", ")));
        }
        if !self.certificate.is_set() {
            // Grants go on: the Service alone looks at this.
            return Err("the webhook has no certificate yet; the log says what it waits for".to_owned());
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let m = &self.metrics;
        for (queue, depth, delayed) in self.shared.queues.depths() {
            m.queue_depth.get_or_create(&QueueLabel { queue }).set(gauge(depth));
            m.queue_delayed.get_or_create(&QueueLabel { queue }).set(gauge(delayed));
        }
        for w in (self.watches)().into_iter().chain((self.side_watches)()) {
            let label = WatchLabel { watch: w.name };
            m.watch_failures.get_or_create(&label).set(i64::try_from(w.failures).unwrap_or(i64::MAX));
            m.watch_resets.get_or_create(&label).set(i64::try_from(w.resets).unwrap_or(i64::MAX));
            m.watch_synced.get_or_create(&label).set(i64::from(w.synced));
            if let Some(last) = w.last_event {
                m.watch_age.get_or_create(&label).set(last.elapsed().as_secs_f64());
            }
        }
        m.leader.set(i64::from(self.gate.fence().is_some()));
        self.addresses();
        m.text()
    }
}

impl Probes {
    /// Counts of each Subnet, read at this moment.
    fn addresses(&self) {
        let m = &self.metrics;
        let world = self.shared.world();
        m.addresses.clear();
        for subnet in world.ipam.subnets() {
            let usage = world.ipam.usage(&subnet.name);
            let states = [
                ("total", usage.total),
                ("used", usage.used),
                ("reserved", usage.reserved),
                ("cooling", usage.cooling),
                ("available", usage.available),
            ];
            for (state, count) in states {
                let label = AddressLabels { subnet: subnet.name.clone(), state };
                m.addresses.get_or_create(&label).set(count as f64);
            }
        }
        m.waiting.set(gauge(world.waiters.len()));
    }
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_core_gets_the_times_of_the_flags() {
        let args = |flags: &[&str]| Args::parse_from(["braid-controller"].iter().chain(flags));
        assert_eq!(config(&args(&[])), Config::default());
        let given = ["--cool-down=1500ms", "--orphan-timeout=1h", "--block-grace=1m", "--owner-check=5s"];
        let expected = Config { cool_down: 2, orphan_timeout: 3600, block_grace: 60, owner_check: 5 };
        assert_eq!(config(&args(&given)), expected, "and never shorter than asked for");
    }

    #[test]
    fn an_old_leaders_last_write_is_over_before_the_next_leads() {
        let timing = |lease, renew| {
            let flags = [format!("--lease-duration={lease}"), format!("--renew-deadline={renew}")];
            timing(&Args::parse_from(["braid-controller".to_owned()].into_iter().chain(flags)))
        };
        assert!(timing("15s", "10s").is_ok());
        let error = timing("14s", "10s").unwrap_err().to_string();
        assert!(error.contains("--lease-duration 14s") && error.ends_with("write more than 14s"), "{error}");
    }
}
