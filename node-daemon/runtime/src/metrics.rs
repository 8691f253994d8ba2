//! What Prometheus is told.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds in seconds: an ADD takes about a millisecond of kernel work and waits up to 30 s for addresses.
const CNI_BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];
const RECONCILE_BOUNDS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// A request of the runtime, or one step of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VerbStep {
    /// `ADD`, `DEL`, ...
    pub(crate) verb: &'static str,
    /// `total`, or the name of a step.
    pub(crate) step: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VerbCode {
    pub(crate) verb: &'static str,
    pub(crate) code: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

/// Makes histograms with fixed bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Every figure of the agent. Cheap to update from anywhere.
pub(crate) struct Metrics {
    registry: Registry,
    cni: Family<VerbStep, Histogram, Bounds>,
    cni_errors: Family<VerbCode, Counter>,
    reconcile: Family<Outcome, Histogram, Bounds>,
    steps: Family<Kind, Counter>,
    step_failures: Family<Kind, Counter>,
    drift: Counter,
    last_sync: Gauge,
    attachments: Gauge,
    unread: Gauge,
    writes: Family<Outcome, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("braid_node");
        let cni = Family::new_with_constructor(Bounds(&CNI_BOUNDS));
        let cni_errors = Family::default();
        let reconcile = Family::new_with_constructor(Bounds(&RECONCILE_BOUNDS));
        let steps = Family::default();
        let step_failures = Family::default();
        let (drift, last_sync, attachments) = (Counter::default(), Gauge::default(), Gauge::default());
        let unread = Gauge::default();
        let writes = Family::default();
        registry.register_with_unit(
            "cni_duration",
            "Time of CNI requests: the whole (step=\"total\") and each step",
            Unit::Seconds,
            cni.clone(),
        );
        registry.register(
            "cni_errors",
            "CNI requests answered with an error, by CNI error code",
            cni_errors.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one comparison of the node's kernel with what it should hold",
            Unit::Seconds,
            reconcile.clone(),
        );
        registry.register("plan_steps", "Kernel changes that were carried out, by kind", steps.clone());
        registry.register("plan_step_failures", "Kernel changes that failed, by kind", step_failures.clone());
        registry.register(
            "drift_repaired",
            "Kernel changes that were needed although nothing had changed in the cluster",
            drift.clone(),
        );
        registry.register(
            "last_sync_timestamp_seconds",
            "When the kernel was last found or made as it should be, seconds since the epoch",
            last_sync.clone(),
        );
        registry.register("attachments", "Pod interfaces on this node", attachments.clone());
        registry.register(
            "journal_unread_entries",
            "Entries of the journal that cannot be read; their interfaces stay as they are",
            unread.clone(),
        );
        registry.register("api_writes", "Writes to the API server, by outcome", writes.clone());
        Self {
            registry,
            cni,
            cni_errors,
            reconcile,
            steps,
            step_failures,
            drift,
            last_sync,
            attachments,
            unread,
            writes,
        }
    }
}

impl Metrics {
    /// A whole request was answered; `code` is the CNI error code if it failed.
    pub(crate) fn answered(&self, verb: &'static str, took: Duration, code: Option<u32>) {
        self.step(verb, "total", took);
        if let Some(code) = code {
            self.cni_errors.get_or_create(&VerbCode { verb, code }).inc();
        }
    }

    /// One step of a request is over.
    pub(crate) fn step(&self, verb: &'static str, step: &'static str, took: Duration) {
        self.cni.get_or_create(&VerbStep { verb, step }).observe(took.as_secs_f64());
    }

    /// One comparison is over.
    pub(crate) fn reconciled(&self, took: Duration, outcome: &'static str, now_unix: i64) {
        self.reconcile.get_or_create(&Outcome { outcome }).observe(took.as_secs_f64());
        if outcome == "ok" {
            self.last_sync.set(now_unix);
        }
    }

    /// A kernel change was carried out or failed.
    pub(crate) fn plan_step(&self, kind: &'static str, failed: bool) {
        let family = if failed { &self.step_failures } else { &self.steps };
        family.get_or_create(&Kind { kind }).inc();
    }

    /// Somebody else had changed `count` things of ours.
    pub(crate) fn drifted(&self, count: u64) {
        self.drift.inc_by(count);
    }

    /// How many pod interfaces there are.
    pub(crate) fn attached(&self, count: usize) {
        self.attachments.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many entries of the journal cannot be read.
    pub(crate) fn unread(&self, count: usize) {
        self.unread.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A write to the API server was answered.
    pub(crate) fn wrote(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
    }

    /// All figures in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_appear_under_their_names() {
        let metrics = Metrics::default();
        metrics.answered("ADD", Duration::from_millis(3), Some(11));
        metrics.reconciled(Duration::from_millis(2), "ok", 1_700_000_000);
        metrics.plan_step("route", false);
        metrics.drifted(2);
        let text = metrics.encode();
        for line in [
            "braid_node_cni_duration_seconds_count{verb=\"ADD\",step=\"total\"} 1",
            "braid_node_cni_errors_total{verb=\"ADD\",code=\"11\"} 1",
            "braid_node_last_sync_timestamp_seconds 1700000000",
            "braid_node_plan_steps_total{kind=\"route\"} 1",
            "braid_node_drift_repaired_total 2",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
