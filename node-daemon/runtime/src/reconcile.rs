//! The loop: what must be, what is, the steps between, and what came of them.
//!
//! Reads like a table of contents: look at the index and the attachments, dump, decide, apply, report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_informer::{Backoff, InSync};
use braid_node_core::actual::Actual;
use braid_node_core::desired::{Desired, Networks, ProxyKey};
use braid_node_core::overlay::{self, NotReady};
use braid_node_core::plan::{self, Conflict, Plan, Step};
use braid_node_core::underlay::Underlay;
use braid_node_core::view::{self as core_view, NodeView};
use braid_types::IfName;
use braid_types::model::NodeNetworkDef;
use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::attachments::Attachments;
use crate::health::Health;
use crate::index::{LocalNetwork, WAITING_FOR_ADDRESS};
use crate::metrics::Metrics;
use crate::plumbing::{Fault, Outcome, Plumbing, PlumbingError, chain};
use crate::release::now;
use crate::store::{Effect, Store};
use crate::{sweep, view};

/// Changes that come together are handled together.
const COALESCE: Duration = Duration::from_millis(50);
/// How often it is looked whether the node still answers for its pods in underlays.
const PROXY_LOOK: Duration = Duration::from_secs(2);
/// How often the loop shows that it is alive while it waits.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// Times that a plan may turn out to be outdated before pods have to wait for the next one.
const OPTIMISM: u32 = 3;
/// How long a node that was never ready waits for Networks that wait for the controller. Longer, and one full
/// subnet would keep every pod off a new node.
const PATIENCE: Duration = Duration::from_secs(30);

/// What ADD and the loop share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Held shared while an interface is made or removed, exclusively while a plan is carried out: a plan
    /// that was made before an interface existed would remove it.
    pub(crate) gate: RwLock<()>,
    /// The view of the last comparison, without pods: what ADD derives an interface from.
    view: Mutex<Option<Arc<NodeView>>>,
    /// Addresses for which the node must be answering: what the last comparison wanted, and what came and went since.
    proxies: Mutex<BTreeSet<ProxyKey>>,
    /// The kernel told of a change.
    pub(crate) drift: Notify,
}

impl Shared {
    /// The view of the last comparison; `None` before the first one.
    pub(crate) fn view(&self) -> Option<Arc<NodeView>> {
        self.view.lock().clone()
    }

    /// The node answers for these as well, from now on.
    pub(crate) fn answers_for(&self, proxies: &BTreeSet<ProxyKey>) {
        self.proxies.lock().extend(proxies.iter().cloned());
    }

    /// The node no longer answers for these addresses.
    pub(crate) fn answers_no_longer(&self, addresses: &BTreeSet<IpAddr>) {
        self.proxies.lock().retain(|key| !addresses.contains(&key.addr));
    }

    /// Sets the view, as the loop does.
    pub(crate) fn set_view(&self, view: NodeView) {
        *self.view.lock() = Some(Arc::new(NodeView { attachments: BTreeMap::new(), ..view }));
    }
}

/// What the loop tells the world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Why no pod can be attached at all; `None` when the node is ready.
    pub(crate) waiting_for: Option<String>,
    /// Every Network that the node is a member of.
    pub(crate) networks: BTreeMap<String, LocalNetwork>,
    /// What could not be done, as sentences.
    pub(crate) failures: BTreeSet<String>,
}

/// Why a comparison was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// This process has just started.
    Start,
    /// The cluster's state or the node's pods changed.
    Change,
    /// The kernel changed.
    Drift,
    /// Time.
    Resync,
}

/// The loop.
pub(crate) struct Loop<P> {
    pub(crate) node: String,
    pub(crate) store: Arc<Store>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) plumbing: Arc<P>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) reports: watch::Sender<Option<Report>>,
    pub(crate) resync: Duration,
}

/// A comparison that was carried through.
struct Compared {
    generation: u64,
    view: NodeView,
    proxies: BTreeSet<ProxyKey>,
    plan: Plan,
    /// Devices that cannot be made because of another one, with that one.
    rivals: BTreeMap<IfName, IfName>,
}

/// What became of a comparison.
struct Done {
    view: NodeView,
    plan: Plan,
    outcomes: Vec<Outcome>,
}

impl<P: Plumbing> Loop<P> {
    /// Runs until `stop`; what the kernel holds then stays. The proof is needed because an empty cache looks
    /// like a cluster without Networks.
    pub(crate) async fn run(self, _proof: InSync, stop: CancellationToken) {
        let synced = Instant::now();
        let mut backoff = Backoff::default();
        // What an agent before this one made differently is no drift.
        let mut cause = Cause::Start;
        let mut was_ready = false;
        loop {
            let known = self.store.kernel_changes();
            let begun = Instant::now();
            let result = self.compare_and_apply(cause).await;
            let patient = !was_ready && synced.elapsed() < PATIENCE;
            let failed = self.tell(result, begun, patient);
            was_ready |= self.health.waiting_for().is_none();
            self.health.alive();

            let wait = if failed {
                backoff.delay()
            } else {
                backoff.reset();
                if patient { self.resync.min(Duration::from_secs(1)) } else { self.resync }
            };
            cause = tokio::select! {
                () = stop.cancelled() => return,
                () = self.store.kernel_dirty() => Cause::Change,
                () = self.shared.drift.notified() => Cause::Drift,
                () = self.proxy_lost() => Cause::Drift,
                () = self.rest(wait) => Cause::Resync,
            };
            if cause != Cause::Resync {
                tokio::time::sleep(COALESCE).await;
            }
            // What may follow from the cluster is not blamed on somebody.
            if self.store.kernel_changes() != known {
                cause = Cause::Change;
            }
        }
    }

    /// Sleeps, and shows meanwhile that the loop is alive, however long that is.
    async fn rest(&self, wait: Duration) {
        let showing = async {
            loop {
                tokio::time::sleep(SIGN_OF_LIFE).await;
                self.health.alive();
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = showing => {}
        }
    }

    /// Returns when the node no longer answers for an address of a pod. The kernel tells of no change of proxy neighbours,
    /// and drops them with a device that goes down.
    async fn proxy_lost(&self) {
        loop {
            tokio::time::sleep(PROXY_LOOK).await;
            if self.shared.proxies.lock().is_empty() {
                continue;
            }
            let plumbing = self.plumbing.clone();
            match blocking(move || plumbing.proxies()).await {
                Ok(seen) if self.shared.proxies.lock().is_subset(&seen) => {}
                Ok(_) => return,
                Err(error) => debug!(%error, "cannot look for proxy neighbours"),
            }
        }
    }

    async fn compare_and_apply(&self, cause: Cause) -> Result<Done, PlumbingError> {
        for attempt in 0.. {
            // In the end pods wait for the loop instead of the loop for a moment without pods.
            let early = if attempt < OPTIMISM { None } else { Some(self.shared.gate.write().await) };
            let compared = self.compare().await?;
            self.shared.set_view(compared.view.clone());
            self.shared.proxies.lock().clone_from(&compared.proxies);
            if compared.plan.steps.is_empty() {
                return Ok(Done { view: compared.view, plan: compared.plan, outcomes: Vec::new() });
            }
            let guard = match early {
                Some(guard) => guard,
                None => self.shared.gate.write().await,
            };
            if self.attachments.generation() != compared.generation {
                debug!("pods came or went meanwhile, planning again");
                continue;
            }
            let Compared { view, plan, rivals, .. } = compared;
            let (plan, mut outcomes) = self.apply(plan).await?;
            drop(guard);
            explain(&mut outcomes, &rivals);
            self.count(cause, &outcomes);
            return Ok(Done { view, plan, outcomes });
        }
        unreachable!("the range has no end")
    }

    async fn compare(&self) -> Result<Compared, PlumbingError> {
        let snapshot = self.attachments.snapshot();
        self.metrics.attached(snapshot.attachments.len());
        let mut view = self.store.read(|index| view::build(&self.node, index, snapshot.attachments));
        let plumbing = self.plumbing.clone();
        blocking(move || {
            view.families = plumbing.families();
            let links = plumbing.links()?;
            view.links = core_view::host_links(&links);
            view.tunnels = core_view::tunnels(&links);
            if view.networks.values().any(|n| !n.kind.is_overlay()) {
                view.wires = plumbing.wires()?;
            }
            view.spared = snapshot.spared;
            if snapshot.blind {
                let pods = links.links.iter().filter(|(name, link)| sweep::is_pods(name, link));
                view.spared.extend(pods.map(|(name, _)| name.clone()));
            }
            // A lost pair cannot be made again without the pod's namespace; the sweep removes its traces.
            view.attachments.retain(|dev, a| links.links.contains_key(dev) || Path::new(&a.netns).exists());
            let desired = Desired::of(&view);
            let actual = plumbing.dump(&desired)?;
            let plan = plan::diff(&desired, &actual);
            let rivals = rivals(&plan, &actual);
            let proxies = desired.proxies;
            Ok(Compared { generation: snapshot.generation, view, proxies, plan, rivals })
        })
        .await
    }

    async fn apply(&self, plan: Plan) -> Result<(Plan, Vec<Outcome>), PlumbingError> {
        let plumbing = self.plumbing.clone();
        blocking(move || {
            let outcomes = plumbing.apply(&plan);
            Ok((plan, outcomes))
        })
        .await
    }

    fn count(&self, cause: Cause, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.metrics.plan_step(outcome.kind, outcome.error.is_some());
            match (&outcome.error, cause) {
                (Some(_), _) => warn!("{outcome}"),
                // Parameters are never taken back, so the log says once what they were changed to.
                (None, Cause::Start | Cause::Change) if outcome.kind == "sysctl" => {
                    info!(step = outcome.step, "done");
                }
                (None, Cause::Start | Cause::Change) => debug!(step = outcome.step, "done"),
                (None, Cause::Drift | Cause::Resync) => info!(step = outcome.step, "repaired"),
            }
        }
        let done = outcomes.iter().filter(|o| o.error.is_none()).count();
        match cause {
            Cause::Start => info!(changes = done, "first comparison with the kernel"),
            Cause::Change => {}
            Cause::Drift | Cause::Resync => self.metrics.drifted(done as u64),
        }
    }

    /// Reports a comparison; whether it has to be repeated soon.
    fn tell(&self, result: Result<Done, PlumbingError>, begun: Instant, patient: bool) -> bool {
        let (report, failed) = match result {
            Ok(Done { view, plan, outcomes }) => {
                let failures: BTreeSet<String> = failures(&plan.conflicts, &outcomes);
                let failed = outcomes.iter().any(|o| o.error.is_some());
                let networks = local_networks(&view, &plan.conflicts, &outcomes);
                let first = self.health.waiting_for().is_some();
                let waiting_for = first.then(|| waiting_for(&networks, failed, patient)).flatten();
                (Report { waiting_for, networks, failures }, failed)
            }
            Err(error) => {
                warn!(%error, "cannot compare the kernel with what it should hold");
                let last = self.reports.borrow().clone().unwrap_or_default();
                let failures = [error.to_string()].into();
                let waiting_for = self.health.waiting_for().map(|_| error.to_string());
                (Report { waiting_for, failures, ..last }, true)
            }
        };
        self.metrics.reconciled(begun.elapsed(), if failed { "failed" } else { "ok" }, now());
        if self.store.read(|index| index.local != report.networks) {
            self.store.update(|index| {
                index.local.clone_from(&report.networks);
                Effect::Quiet
            });
        }
        match &report.waiting_for {
            None => self.health.ready(),
            Some(reason) => self.health.not_ready(reason),
        }
        self.reports.send_if_modified(|last| {
            let differs = last.as_ref() != Some(&report);
            if differs {
                *last = Some(report);
            }
            differs
        });
        failed
    }
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlumbingError> + Send + 'static,
) -> Result<T, PlumbingError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PlumbingError::other(format!("a thread ended early: {error}"))),
    }
}

fn failures(conflicts: &[Conflict], outcomes: &[Outcome]) -> BTreeSet<String> {
    let failed = outcomes.iter().filter(|o| o.error.is_some()).map(ToString::to_string);
    conflicts.iter().map(ToString::to_string).chain(failed).collect()
}

fn rivals(plan: &Plan, actual: &Actual) -> BTreeMap<IfName, IfName> {
    let made = plan.steps.iter().filter_map(|step| match step {
        Step::AddVxlan(link) => Some(link),
        _ => None,
    });
    made.filter_map(|link| Some((link.name.clone(), plan::rival(link, actual)?.clone()))).collect()
}

/// Says who is in the way where the kernel says only that somebody is.
fn explain(outcomes: &mut [Outcome], rivals: &BTreeMap<IfName, IfName>) {
    for outcome in outcomes {
        let Some(rival) = outcome.device.as_ref().and_then(|d| rivals.get(d)) else { continue };
        outcome.error = outcome.error.take().map(|error| match error.fault {
            Fault::Exists => error.explained(&format!(
                "device {rival} has the same VNI and UDP port: remove it, or choose another spec.vxlan.vni"
            )),
            _ => error,
        });
    }
}

/// Every Network of the view as it stands here. One whose device could not be had is not ready, whatever the view says.
fn local_networks(
    view: &NodeView,
    conflicts: &[Conflict],
    outcomes: &[Outcome],
) -> BTreeMap<String, LocalNetwork> {
    let mut all = BTreeMap::new();
    let networks = Networks::of(view);
    for (name, result) in networks.underlays {
        all.insert(name, local_underlay(&result));
    }
    for (name, result) in networks.overlays {
        let mut local = local_network(&result);
        if let Some(device) = local.device.clone() {
            let conflict = conflicts.iter().find(|c| c.name == device);
            let failed = outcomes.iter().find(|o| o.error.is_some() && o.device.as_ref() == Some(&device));
            let why = conflict.map(ToString::to_string).or_else(|| failed.map(ToString::to_string));
            if let Some(why) = why {
                local.ready = false;
                DEVICE_FAILED.clone_into(&mut local.reason);
                local.message = why;
                // Nobody may send to where no device is.
                local.vtep = local.vtep.filter(|_| conflict.is_none() && view.tunnels.contains_key(&device));
            }
        }
        all.insert(name, local);
    }
    all
}

/// The reason of a Network whose device cannot be made or set up.
const DEVICE_FAILED: &str = "DeviceFailed";

fn local_network(result: &Result<overlay::Overlay, NotReady>) -> LocalNetwork {
    match result {
        Ok(o) => {
            let how = format!("packets travel by {}", o.device);
            local(o.published(), Some(o.device.clone()), o.hindrance.as_ref(), &how)
        }
        Err(why) => not_ready(why),
    }
}

fn local_underlay(result: &Result<Underlay, NotReady>) -> LocalNetwork {
    match result {
        Ok(u) => local(u.published(), None, u.hindrance.as_ref(), &format!("{} answers for them", u.parent)),
        Err(why) => not_ready(why),
    }
}

/// A Network that this node realises, by a device of ours if there is one.
fn local(
    published: NodeNetworkDef,
    device: Option<IfName>,
    hindrance: Option<&NotReady>,
    how: &str,
) -> LocalNetwork {
    let (reason, message) = match hindrance {
        None => ("Ready", format!("pods can be attached, {how}")),
        Some(why) => (why.reason(), format!("{}; what is attached stays as it is", chain(why))),
    };
    LocalNetwork {
        ready: published.ready,
        reason: reason.to_owned(),
        message,
        parent: published.parent,
        device,
        mtu: published.mtu,
        vtep: published.vtep,
    }
}

fn not_ready(why: &NotReady) -> LocalNetwork {
    LocalNetwork {
        ready: false,
        reason: why.reason().to_owned(),
        message: chain(why),
        parent: None,
        device: None,
        mtu: None,
        vtep: None,
    }
}

/// Why a node that was never ready is not ready yet.
fn waiting_for(networks: &BTreeMap<String, LocalNetwork>, failed: bool, patient: bool) -> Option<String> {
    if failed {
        return Some("the kernel is not as it should be yet".to_owned());
    }
    let waits = |n: &&LocalNetwork| n.reason == WAITING_FOR_ADDRESS;
    let (name, network) = networks.iter().find(|(_, n)| waits(n))?;
    patient.then(|| format!("Network `{name}`: {}", network.message))
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
