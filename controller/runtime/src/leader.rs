//! The shell around the core's election: reads and writes the Lease, opens and closes the gate.

use std::time::Duration;

use braid_controller_core::leader::{Elector, Record, Step};
use braid_types::duration::whole_seconds;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::gate::Gate;
use crate::write::{WriteError, Writer};

/// Name of the Lease.
const LEASE: &str = "braid-controller";
/// Longest time for one call, so that a call that hangs leaves time for another before the deadline.
const CALL: Duration = Duration::from_secs(3);

/// How an election ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Asked to; the Lease was given up.
    Stopped,
    /// The lead was lost: the process must end at once.
    Lost,
}

/// One candidate with its way to the Lease.
pub(crate) struct Election {
    elector: Elector,
    writer: Writer,
    gate: Gate,
    namespace: String,
    renew_deadline: Duration,
    /// The Lease as read or written last, so that nothing of it gets lost in a write.
    lease: Option<Lease>,
    start: Instant,
}

impl Election {
    /// A candidate.
    pub(crate) fn new(
        elector: Elector,
        writer: Writer,
        gate: Gate,
        namespace: String,
        renew_deadline: Duration,
    ) -> Self {
        Self { elector, writer, gate, namespace, renew_deadline, lease: None, start: Instant::now() }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Competes and leads until `stop` becomes true or the lead is lost. `leading` becomes true once.
    pub(crate) async fn run(mut self, leading: watch::Sender<bool>, mut stop: watch::Receiver<bool>) -> End {
        let mut last_leader = String::new();
        loop {
            if *stop.borrow() {
                self.give_up().await;
                return End::Stopped;
            }
            let now = self.now();
            match self.elector.step(now) {
                Step::Read => self.read().await,
                Step::Write { record, create, acquire } => {
                    if self.write(record, create, acquire).await {
                        leading.send_if_modified(|l| !std::mem::replace(l, true));
                    }
                }
                Step::Wait(until) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(self.start + until) => {}
                        _ = stop.changed() => {}
                    }
                }
                Step::Lost => {
                    self.gate.close();
                    return End::Lost;
                }
            }
            if self.elector.leader() != last_leader {
                last_leader = self.elector.leader().to_owned();
                info!(leader = last_leader, "leader seen");
            }
        }
    }

    async fn read(&mut self) {
        let call = self.writer.get_in::<Lease>(&self.namespace, LEASE);
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(lease)) => {
                let record = lease.as_ref().map(record_of);
                self.lease = lease;
                self.elector.observed(record, self.now());
            }
            Ok(Err(error)) => self.failed(&error.to_string()),
            Err(_) => self.failed("no answer"),
        }
    }

    /// Whether the Lease is ours now.
    async fn write(&mut self, record: Record, create: bool, acquire: bool) -> bool {
        let lease = self.object(&record, acquire);
        let (started, started_at) = (self.now(), Instant::now());
        let call = async {
            if create {
                self.writer.create_in(&self.namespace, &lease).await
            } else {
                self.writer.replace_in(&self.namespace, &lease).await
            }
        };
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(written)) => {
                let fence = record.transitions;
                let record = Record { version: written.resource_version().unwrap_or_default(), ..record };
                let leads = self.elector.wrote(record, started, self.now());
                self.lease = Some(written);
                if leads {
                    self.gate.extend(started_at + self.renew_deadline, fence);
                }
                if leads && acquire {
                    info!(fence, "leading");
                }
                leads
            }
            Ok(Err(WriteError::Conflict(_) | WriteError::Exists(_))) if acquire => {
                debug!("another candidate was first");
                self.elector.failed(self.now());
                false
            }
            Ok(Err(error)) => {
                self.failed(&error.to_string());
                false
            }
            Err(_) => {
                self.failed("no answer");
                false
            }
        }
    }

    fn failed(&mut self, error: &str) {
        warn!(error, "Lease not read or written");
        self.elector.failed(self.now());
    }

    /// Lets the others take over at once.
    async fn give_up(&mut self) {
        self.gate.close();
        let Some(record) = self.elector.release() else { return };
        let lease = self.object(&record, false);
        let call = self.writer.replace_in(&self.namespace, &lease);
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(_)) => info!("lead given up"),
            Ok(Err(error)) => warn!(%error, "lead not given up, others have to wait for its end"),
            Err(_) => warn!("lead not given up, others have to wait for its end"),
        }
    }

    fn object(&self, record: &Record, acquire: bool) -> Lease {
        let now = MicroTime(crate::clock::timestamp());
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        lease.metadata.managed_fields = None;
        if !record.version.is_empty() {
            lease.metadata.resource_version = Some(record.version.clone());
        }
        let old = lease.spec.take().unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(record.holder.clone()),
            // Never shorter than this process believes that it leads.
            lease_duration_seconds: Some(
                i32::try_from(whole_seconds(record.lease).max(1)).unwrap_or(i32::MAX),
            ),
            lease_transitions: Some(i32::try_from(record.transitions).unwrap_or(i32::MAX)),
            acquire_time: if acquire { Some(now.clone()) } else { old.acquire_time.clone() },
            renew_time: Some(now),
            ..old
        });
        lease
    }
}

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let whole = |n: Option<i32>| u64::try_from(n.unwrap_or_default()).unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease: Duration::from_secs(whole(spec.lease_duration_seconds)),
        transitions: whole(spec.lease_transitions),
        version: lease.resource_version().unwrap_or_default(),
    }
}
