//! The verbs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use braid_informer::InSync;
use braid_meta_core::record::{Grant, Record, RecordState};
use braid_meta_core::result::{Interface, IpConfig, Route};
use braid_meta_core::{Attachment, AttachmentId, CniError, CniResult, ErrorCode};
use braid_node_core::attach::{self, Wiring};
use braid_node_core::view::{self, NodeView};
use braid_node_kernel::Holder;
use braid_rpc::{Add, Check, Del, Gc, Reply, Request, Status, Verb};
use braid_types::well_known::pod_gateway;
use braid_types::{Cidr, Family, IfName, Mac};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::attachments::{self, Attachments, Stage};
use crate::health::Health;
use crate::index::WAITING_FOR_ADDRESS;
use crate::metrics::Metrics;
use crate::plumbing::{Fault, Plumbing, PlumbingError, chain};
use crate::reconcile::{Shared, blocking};
use crate::release::{TornDown, now};
use crate::store::Store;

use super::server::Service;
use super::turns::Turns;
use super::wait::{self, Granted, PodLookup};

/// Requests that work in the kernel at the same time.
const PARALLEL: usize = 32;
/// How much earlier than the plugin the agent gives up, so that its reason still arrives.
const MARGIN: Duration = Duration::from_millis(500);

/// The CNI server's part of the agent.
pub(crate) struct Cni<P, L> {
    pub(crate) store: Arc<Store>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) plumbing: Arc<P>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) lookup: Arc<L>,
    pub(crate) torn_down: Arc<TornDown>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    /// The proof, as soon as there is one.
    pub(crate) in_sync: watch::Receiver<Option<InSync>>,
    /// Told when something that must go could not be removed.
    pub(crate) leftovers: Arc<Notify>,
    /// How long ADD waits at most.
    pub(crate) patience: Duration,
    /// How long it waits for somebody else who has the pod's addresses on the physical network; zero = nobody is asked.
    pub(crate) duplicate_wait: Duration,
    /// Ends what only waits.
    pub(crate) stop: CancellationToken,
    pub(crate) turns: Turns,
    pub(crate) busy: Semaphore,
}

/// The parts that a [`Cni`] is made of, for whoever wires it.
impl<P, L> Cni<P, L> {
    /// The queues of a new server.
    pub(crate) fn queues() -> (Turns, Semaphore) {
        (Turns::default(), Semaphore::new(PARALLEL))
    }
}

impl<P: Plumbing, L: PodLookup> Service for Cni<P, L> {
    async fn answer(&self, request: Request) -> Reply {
        let begun = StdInstant::now();
        let limit = Duration::from_millis(request.deadline_ms).saturating_sub(MARGIN);
        let deadline = Instant::now() + limit.min(self.patience);
        let verb = request.verb.name();
        let about = request.verb.attachment().map(ToString::to_string).unwrap_or_default();
        let result = match request.verb {
            Verb::Add(add) => self.add(add, deadline).await,
            Verb::Del(del) => self.del(&del).await.map(|()| Reply::Done),
            Verb::Check(check) => self.check(check).await.map(|()| Reply::Done),
            Verb::Gc(gc) => self.gc(&gc).await.map(|()| Reply::Done),
            Verb::Status(status) => self.status(&status).map(|()| Reply::Done),
        };
        let code = result.as_ref().err().map(|e| e.code.0);
        self.metrics.answered(verb, begun.elapsed(), code);
        let took_ms = begun.elapsed().as_millis() as u64;
        match &result {
            // The runtime asks every few seconds.
            Ok(_) if verb == "STATUS" => debug!(verb, took_ms, "CNI request served"),
            Ok(_) => info!(verb, attachment = about, took_ms, "CNI request served"),
            Err(error) => warn!(verb, attachment = about, took_ms, %error, "CNI request failed"),
        }
        result.unwrap_or_else(Reply::Failed)
    }
}

impl<P: Plumbing, L: PodLookup> Cni<P, L> {
    async fn add(&self, add: Add, deadline: Instant) -> Result<Reply, CniError> {
        let turn = tokio::time::timeout_at(deadline, self.turns.of(&add.attachment.container_id)).await;
        let _turn =
            turn.map_err(|_| CniError::try_again("another request for the same container is still running"))?;
        self.wait_in_sync(deadline).await?;
        self.clear_the_place(&add.attachment).await?;

        let begun = StdInstant::now();
        let granted = tokio::select! {
            granted = wait::granted(&self.store, &self.lookup, &add.pod, deadline) => granted?,
            () = self.stop.cancelled() => {
                return Err(CniError::try_again("the agent is stopping, the next one takes over"));
            }
        };
        self.metrics.step("ADD", "wait", begun.elapsed());

        let record = record(&add, &granted)?;
        let result = result(&record)?;
        self.ask_around(&record).await?;
        self.make(record, result.clone()).await?;
        Ok(Reply::Attached { result, plan: vec![Attachment::native(add.attachment.ifname)] })
    }

    /// On a physical network others may have an address that nobody knows of here. The pod's own is used in no packet before
    /// that is settled.
    async fn ask_around(&self, record: &Record) -> Result<(), CniError> {
        let Some((view, attachment)) = self.seen(record) else { return Ok(()) };
        let wiring = attach::wire(&view, &attachment);
        if let Some(address) = attach::unanswered(&view, &attachment, &wiring).first() {
            return Err(CniError::try_again(format!(
                "the Subnet of {address} is not set up on this node yet"
            )));
        }
        let Some(dev) = wiring.proxies.first().map(|key| key.dev.clone()) else { return Ok(()) };
        let addresses: BTreeSet<IpAddr> = wiring.proxies.iter().map(|key| key.addr).collect();
        if let Some(address) = attach::own_address(&view, &addresses) {
            let excluded = "list it in spec.excludedIPs of its Subnet";
            let msg = format!("address {address} is this node's own; {excluded}");
            return Err(CniError::new(ErrorCode::ATTACH_FAILED, msg));
        }
        if self.duplicate_wait.is_zero() {
            return Ok(());
        }
        let begun = StdInstant::now();
        let (plumbing, wait, on) = (self.plumbing.clone(), self.duplicate_wait, dev.clone());
        let found = blocking(move || plumbing.probe(&on, &addresses, wait)).await.map_err(|e| failed(&e))?;
        self.metrics.step("ADD", "probe", begun.elapsed());
        let Some(Holder { address, mac }) = found else { return Ok(()) };
        Err(CniError::new(
            ErrorCode::ATTACH_FAILED,
            format!(
                "address {address} is in use on the network of {dev} already, by {mac}; take it from there, or list it in \
                 spec.excludedIPs of its Subnet"
            ),
        ))
    }

    async fn wait_in_sync(&self, deadline: Instant) -> Result<(), CniError> {
        let mut in_sync = self.in_sync.clone();
        let waited = tokio::time::timeout_at(deadline, in_sync.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(CniError::try_again("the agent has not yet heard from the API server since it started")),
        }
    }

    /// Removes what an agent before this one left half done for the same interface.
    async fn clear_the_place(&self, id: &AttachmentId) -> Result<(), CniError> {
        let unread = self.attachments.unread().into_iter().find(|u| u.attachment.as_ref() == Some(id));
        if let Some(unread) = unread {
            return Err(CniError::new(
                ErrorCode::ATTACH_FAILED,
                format!("the journal's entry of {id} cannot be read; the runtime has to call DEL first"),
            )
            .with_details(unread.why));
        }
        match self.attachments.get(id).map(|e| e.stage) {
            None => Ok(()),
            Some(Stage::Live) => Err(CniError::new(
                ErrorCode::ATTACH_FAILED,
                format!("{id} is attached already; the runtime has to call DEL first"),
            )),
            Some(Stage::Interrupted | Stage::Leaving) => self.remove(id).await.map_err(|e| failed(&e)),
        }
    }

    async fn make(&self, record: Record, result: CniResult) -> Result<(), CniError> {
        let wiring = self.wiring(&record).ok_or_else(|| {
            CniError::try_again("the agent has not yet compared the node's kernel with the cluster")
        })?;
        let (attachments, plumbing, metrics) =
            (self.attachments.clone(), self.plumbing.clone(), self.metrics.clone());
        let (leftovers, shared) = (self.leftovers.clone(), self.shared.clone());
        let _busy = self.busy.acquire().await;
        let _gate = self.shared.gate.read().await;
        let made = blocking(move || {
            let id = record.attachment.clone();
            let timed = |step, since: StdInstant| metrics.step("ADD", step, since.elapsed());
            let begun = StdInstant::now();
            attachments.begin(record)?;
            timed("journal-start", begun);
            let begun = StdInstant::now();
            let made = plumbing.attach(&wiring);
            shared.answers_for(&wiring.proxies);
            timed("kernel", begun);
            let begun = StdInstant::now();
            let unanswered: BTreeSet<IpAddr> = wiring.proxies.iter().map(|key| key.addr).collect();
            let finished = made.and_then(|()| {
                attachments.finish(&id, &result).map_err(|e| {
                    let error = PlumbingError::from(e);
                    match plumbing.detach(&wiring.link.name, Some(&wiring), &unanswered) {
                        Ok(()) => error,
                        Err(_) => error.leaving_something(),
                    }
                })
            });
            timed("journal-end", begun);
            if let Err(error) = &finished {
                shared.answers_no_longer(&unanswered);
                attachments.withdraw(&id);
                // What is left in the kernel or the journal is swept.
                if error.left || attachments.forget(&id).is_err() {
                    leftovers.notify_one();
                }
            }
            finished
        })
        .await;
        if let Some(unsynced) = made.map_err(|e| failed(&e))? {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = unsynced.sync() {
                    warn!(error = chain(&error), "the journal cannot be written to the disk");
                }
            });
        }
        Ok(())
    }

    /// DEL never fails: what could not be removed is remembered and tried again.
    async fn del(&self, del: &Del) -> Result<(), CniError> {
        let _turn = self.turns.of(&del.attachment.container_id).await;
        self.tear_down(del).await;
        Ok(())
    }

    /// Removes an interface and lets its addresses go, as far as possible.
    pub(crate) async fn tear_down(&self, del: &Del) {
        let known = self.attachments.get(&del.attachment);
        if let Err(error) = self.remove(&del.attachment).await {
            warn!(attachment = %del.attachment, %error, "an interface could not be removed, trying again later");
            self.store.mark_kernel_dirty();
            self.leftovers.notify_one();
            return;
        }
        let pod_uid = known.map(|entry| entry.pod_uid().to_owned()).or_else(|| {
            let pod = del.pod.as_ref()?;
            let api_uid =
                self.store.read(|i| i.pod(&pod.namespace, &pod.name, Some(&pod.uid)).map(|p| p.uid.clone()));
            Some(api_uid.unwrap_or_else(|| pod.uid.clone()))
        });
        if let Some(uid) = pod_uid.filter(|uid| !uid.is_empty()) {
            self.torn_down.tell(&uid);
        }
    }

    /// Removes an interface from kernel and journal. Nothing there is no error.
    pub(crate) async fn remove(&self, id: &AttachmentId) -> Result<(), PlumbingError> {
        let wiring = self.attachments.get(id).and_then(|e| self.wiring(&e.record));
        let (attachments, plumbing, id) = (self.attachments.clone(), self.plumbing.clone(), id.clone());
        let (shared, unanswered) = (self.shared.clone(), self.unanswered(&id));
        let metrics = self.metrics.clone();
        let _busy = self.busy.acquire().await;
        let _gate = self.shared.gate.read().await;
        blocking(move || {
            attachments.withdraw(&id);
            let begun = StdInstant::now();
            let host_if = attachments::host_if(&id);
            shared.answers_no_longer(&unanswered);
            let detached = plumbing.detach(&host_if, wiring.as_ref(), &unanswered);
            metrics.step("DEL", "kernel", begun.elapsed());
            detached?;
            Ok(attachments.forget(&id)?)
        })
        .await
    }

    /// The addresses for which the node has to stop answering when an interface goes. Nobody answers for those of overlays.
    fn unanswered(&self, id: &AttachmentId) -> BTreeSet<IpAddr> {
        let network = self.attachments.get(id).and_then(|e| e.record.grant.map(|g| g.network));
        let in_overlay = |name: String| {
            self.store.read(|index| index.networks.get(&name).is_some_and(|n| n.kind.is_overlay()))
        };
        if network.is_none_or(in_overlay) { BTreeSet::new() } else { self.attachments.only_of(id) }
    }

    async fn check(&self, check: Check) -> Result<(), CniError> {
        let _turn = self.turns.of(&check.attachment.container_id).await;
        let wrong = |msg: String| CniError::new(ErrorCode::CHECK_FAILED, msg);
        let entry = self.attachments.get(&check.attachment).filter(|e| e.stage == Stage::Live);
        let entry = entry.ok_or_else(|| {
            CniError::new(ErrorCode::UNKNOWN_CONTAINER, format!("{} is not attached", check.attachment))
        })?;
        let expected = entry.record.result.clone().unwrap_or_default();
        let lost = |ip: &&IpConfig| !check.prev_result.ips.iter().any(|p| p.address == ip.address);
        if let Some(ip) = expected.ips.iter().find(lost) {
            return Err(wrong(format!("prevResult lacks address {}", ip.address)));
        }
        let wiring = self.wiring(&entry.record);
        let wiring = wiring.ok_or_else(|| CniError::try_again("the agent is not ready yet"))?;
        let plumbing = self.plumbing.clone();
        let found = blocking(move || plumbing.check(&wiring)).await;
        let found = found.map_err(|e| match e.fault {
            Fault::NamespaceGone => failed(&e),
            _ => wrong("the interface cannot be compared".to_owned()).with_details(e.to_string()),
        })?;
        if found.is_empty() {
            return Ok(());
        }
        Err(wrong(format!("{} is not as ADD left it", check.attachment)).with_details(found.join("; ")))
    }

    async fn gc(&self, gc: &Gc) -> Result<(), CniError> {
        let _alone = self.turns.everything().await;
        let mut errors = Vec::new();
        for entry in self.attachments.all() {
            let id = &entry.record.attachment;
            if entry.record.network != gc.network || gc.valid_attachments.contains(id) {
                continue;
            }
            info!(attachment = %id, "the runtime no longer knows this interface");
            match self.remove(id).await {
                Ok(()) => self.torn_down.tell(entry.pod_uid()),
                Err(e) => errors.push(CniError::new(ErrorCode::DETACH_FAILED, format!("{id}: {e}"))),
            }
        }
        CniError::combine(errors).map_or(Ok(()), Err)
    }

    /// Ready once in sync, and as long as pods that name no Network can be attached. A family that waits for its address
    /// keeps only its own pods waiting: one full Subnet must not make the whole node unusable.
    fn status(&self, _status: &Status) -> Result<(), CniError> {
        let unavailable = |why: String| Err(CniError::new(ErrorCode::NOT_AVAILABLE, why));
        if let Some(reason) = self.health.waiting_for() {
            return unavailable(reason);
        }
        self.store.read(|index| match index.local_default() {
            Some((name, local)) if !local.ready && local.reason != WAITING_FOR_ADDRESS => {
                unavailable(format!("Network `{name}` on this node: {}", local.message))
            }
            _ => Ok(()),
        })
    }

    /// What the kernel must hold for a record; `None` before the loop's first comparison.
    pub(crate) fn wiring(&self, record: &Record) -> Option<Wiring> {
        self.seen(record).map(|(view, attachment)| attach::wire(&view, &attachment))
    }

    /// The interface of a record, and what is known of the node.
    fn seen(&self, record: &Record) -> Option<(Arc<NodeView>, view::Attachment)> {
        let view = self.shared.view()?;
        let mut attachment = attachments::attachment(record)?;
        // Not from the view, which may be older than the grant.
        attachment.silent = self.store.read(|index| index.held_by_others(&attachment));
        Some((view, attachment))
    }
}

/// What the runtime is told of a call on the kernel or the journal that failed.
fn failed(error: &PlumbingError) -> CniError {
    let (code, msg) = match error.fault {
        Fault::NamespaceGone => (ErrorCode::UNKNOWN_CONTAINER, "the pod's network namespace is gone"),
        Fault::OtherNamespace => {
            (ErrorCode::INVALID_ENVIRONMENT, "CNI_NETNS: the agent finds another network namespace there")
        }
        Fault::NameTakenInPod => {
            (ErrorCode::INVALID_ENVIRONMENT, "CNI_IFNAME: the pod has an interface of that name already")
        }
        Fault::Passing => (ErrorCode::TRY_AGAIN, "the interface could not be made at this moment"),
        Fault::PodOver => (ErrorCode::UNKNOWN_CONTAINER, "the pod gets no interface any more"),
        Fault::Journal => (ErrorCode::IO, "the journal of attachments cannot be written"),
        Fault::Exists | Fault::Other => (ErrorCode::ATTACH_FAILED, "the interface could not be made"),
    };
    CniError::new(code, msg).with_details(error.to_string())
}

fn record(add: &Add, granted: &Granted) -> Result<Record, CniError> {
    let addresses: Vec<_> = granted.instances.iter().map(|d| d.name.address()).collect();
    let first = granted.instances.first();
    let (Some(first), Some(mac)) = (first, first.map(|d| d.mac.unwrap_or_else(|| own_mac(&add.attachment))))
    else {
        return Err(CniError::try_again("no address was granted"));
    };
    Ok(Record {
        attachment: add.attachment.clone(),
        state: RecordState::Started,
        started_at: u64::try_from(now()).unwrap_or_default(),
        network: add.network.clone(),
        pod: add.pod.clone(),
        netns: add.netns.clone(),
        netns_id: add.netns_id,
        config: add.config.clone(),
        plan: vec![Attachment::native(add.attachment.ifname.clone())],
        result: None,
        grant: Some(Grant {
            network: first.network.to_string(),
            pod_uid: granted.pod_uid.clone(),
            mac,
            addresses,
            mtu: granted.mtu,
        }),
    })
}

/// For grants that name no hardware address.
fn own_mac(id: &AttachmentId) -> Mac {
    Mac::derived(id.to_string().as_bytes())
}

fn result(record: &Record) -> Result<CniResult, CniError> {
    let Some(grant) = &record.grant else { return Ok(CniResult::default()) };
    let interface = |name: &IfName, mac: Mac, sandbox: &str| Interface {
        name: name.to_string(),
        mac: mac.to_string(),
        sandbox: sandbox.to_owned(),
        mtu: Some(grant.mtu),
        ..Interface::default()
    };
    let host = attachments::host_if(&record.attachment);
    let families: Vec<Family> =
        Family::ALL.into_iter().filter(|f| grant.addresses.iter().any(|a| Family::of(*a) == *f)).collect();
    let default_route = |family: Family| {
        Cidr::containing(family.unspecified(), 0)
            .map(|all| Route::new(all.net(), Some(pod_gateway::address(family))))
    };
    Ok(CniResult {
        interfaces: vec![
            interface(&host, pod_gateway::host_mac(), ""),
            interface(&record.attachment.ifname, grant.mac, &record.netns),
        ],
        ips: grant
            .addresses
            .iter()
            .map(|address| IpConfig {
                address: Cidr::host(*address).net(),
                gateway: Some(pod_gateway::address(Family::of(*address))),
                interface: Some(1),
            })
            .collect(),
        routes: families.into_iter().filter_map(default_route).collect(),
        ..CniResult::default()
    })
}

#[cfg(test)]
#[path = "service_tests.rs"]
pub(crate) mod tests;
