//! What Prometheus sees.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of [`Metrics::api_writes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WriteLabels {
    /// What was asked for: create, update, patch, delete, get.
    pub(crate) verb: &'static str,
    /// Resource, plural.
    pub(crate) resource: &'static str,
    /// HTTP status, `timeout` or `unreachable`.
    pub(crate) code: String,
}

/// Label of what has one reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// CamelCase reason, the one of the Event.
    pub(crate) reason: String,
}

/// Label of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueueLabel {
    /// Name of the queue.
    pub(crate) queue: &'static str,
}

/// Label of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WatchLabel {
    /// Resource that is watched.
    pub(crate) watch: &'static str,
}

/// Labels of [`Metrics::addresses`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AddressLabels {
    /// Subnet.
    pub(crate) subnet: String,
    /// total, used, reserved or cooling.
    pub(crate) state: &'static str,
}

/// All metrics, and the registry that prints them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    /// 1 while this process leads.
    pub(crate) leader: Gauge,
    /// Interfaces that got their addresses.
    pub(crate) grants: Counter,
    /// Refusals by reason; a pod that goes on being refused for the same reason counts once.
    pub(crate) refusals: Family<ReasonLabel, Counter>,
    /// From the moment a pod was seen bound to a node to its last address being created.
    pub(crate) grant_seconds: Histogram,
    /// Addresses that were claimed by somebody else first.
    pub(crate) conflicts: Counter,
    /// Addresses that became free.
    pub(crate) released: Counter,
    /// Calls to the API server that write, and the reads that precede them.
    pub(crate) api_writes: Family<WriteLabels, Counter>,
    /// Failures of a watch.
    pub(crate) watch_failures: Family<WatchLabel, Gauge>,
    /// Full lists of a watch.
    pub(crate) watch_resets: Family<WatchLabel, Gauge>,
    /// Whether a watch has delivered a full list.
    pub(crate) watch_synced: Family<WatchLabel, Gauge>,
    /// Seconds since a watch delivered anything.
    pub(crate) watch_age: Family<WatchLabel, Gauge<f64, AtomicU64>>,
    /// Keys waiting for a worker.
    pub(crate) queue_depth: Family<QueueLabel, Gauge>,
    /// Keys waiting for a moment in time.
    pub(crate) queue_delayed: Family<QueueLabel, Gauge>,
    /// Addresses per subnet and state. A float, since an IPv6 subnet has more than 2^63.
    pub(crate) addresses: Family<AddressLabels, Gauge<f64, AtomicU64>>,
    /// Objects that exist and are not understood.
    pub(crate) undecodable: Family<WatchLabel, Counter>,
    /// Contradictions between objects, by reason.
    pub(crate) contradictions: Family<ReasonLabel, Gauge>,
    /// Pods that were refused and wait.
    pub(crate) waiting: Gauge,
    /// Requests to the webhook by answer.
    pub(crate) admissions: Family<ReasonLabel, Counter>,
    /// How long the webhook takes to decide.
    pub(crate) admission_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("braid_controller")),
            leader: Gauge::default(),
            grants: Counter::default(),
            refusals: Family::default(),
            grant_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            conflicts: Counter::default(),
            released: Counter::default(),
            api_writes: Family::default(),
            watch_failures: Family::default(),
            watch_resets: Family::default(),
            watch_synced: Family::default(),
            watch_age: Family::default(),
            queue_depth: Family::default(),
            queue_delayed: Family::default(),
            addresses: Family::default(),
            undecodable: Family::default(),
            contradictions: Family::default(),
            waiting: Gauge::default(),
            admissions: Family::default(),
            admission_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 14)),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut r = self.registry.lock();
        r.register("leader", "Whether this process leads", self.leader.clone());
        r.register("grants", "Interfaces that got their addresses", self.grants.clone());
        r.register("refusals", "Pods that got no address, by reason", self.refusals.clone());
        r.register(
            "grant_seconds",
            "Seconds from seeing a pod bound to its last address being created",
            self.grant_seconds.clone(),
        );
        r.register("grant_conflicts", "Addresses that somebody else claimed first", self.conflicts.clone());
        r.register("released", "Addresses that became free", self.released.clone());
        r.register(
            "api_calls",
            "Calls of the write path by verb, resource and code",
            self.api_writes.clone(),
        );
        r.register("watch_failures", "Failures of a watch so far", self.watch_failures.clone());
        r.register("watch_resets", "Full lists of a watch so far", self.watch_resets.clone());
        r.register("watch_synced", "Whether a watch has delivered a full list", self.watch_synced.clone());
        r.register("watch_age_seconds", "Seconds since a watch delivered anything", self.watch_age.clone());
        r.register("queue_depth", "Keys waiting for a worker", self.queue_depth.clone());
        r.register("queue_delayed", "Keys waiting for their time", self.queue_delayed.clone());
        r.register("addresses", "Addresses by subnet and state", self.addresses.clone());
        r.register("undecodable", "Objects that are not understood", self.undecodable.clone());
        r.register(
            "contradictions",
            "Objects that contradict others, by reason",
            self.contradictions.clone(),
        );
        r.register("refused_pods", "Pods that were refused and wait", self.waiting.clone());
        r.register("admissions", "Webhook requests by answer", self.admissions.clone());
        r.register(
            "admission_seconds",
            "Seconds that the webhook takes to decide, from the decoded request on",
            self.admission_seconds.clone(),
        );
    }

    /// The text format of OpenMetrics 1.0.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry.lock()).expect("writing to a String does not fail");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_appears_with_its_labels() {
        let metrics = Metrics::new();
        metrics.refusals.get_or_create(&ReasonLabel { reason: "SubnetFull".into() }).inc();
        metrics.grant_seconds.observe(0.5);
        metrics.contradictions.get_or_create(&ReasonLabel { reason: "Overlap".into() }).set(2);
        metrics.addresses.get_or_create(&AddressLabels { subnet: "pods".into(), state: "used" }).set(3.0);
        let text = metrics.text();
        for line in [
            "braid_controller_refusals_total{reason=\"SubnetFull\"} 1",
            "braid_controller_grant_seconds_count 1",
            "braid_controller_contradictions{reason=\"Overlap\"} 2",
            "braid_controller_addresses{subnet=\"pods\",state=\"used\"} 3.0",
            "braid_controller_leader 0",
        ] {
            assert!(text.contains(line), "`{line}` is missing in\n{text}");
        }
    }
}
