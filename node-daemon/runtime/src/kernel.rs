//! The real kernel behind [`crate::plumbing::Plumbing`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use braid_node_core::actual::Actual;
use braid_node_core::attach::Wiring;
use braid_node_core::desired::{Desired, ProxyKey};
use braid_node_core::plan::{Plan, Step};
use braid_node_core::{ours, view};
use braid_node_kernel::{Failed, Holder, Kernel, Monitor, Scope};
use braid_types::{Family, IfName};
use tracing::debug;

use crate::plumbing::{Outcome, Plumbing, PlumbingError, chain, outcome};
use crate::reconcile::Shared;

/// The network namespace in which the agent runs: the host's.
#[derive(Debug)]
pub(crate) struct HostKernel(Kernel);

impl HostKernel {
    /// Opens it.
    pub(crate) fn open() -> anyhow::Result<Self> {
        Ok(Self(Kernel::open().context("no access to the kernel's network configuration")?))
    }

    /// Starts to watch for changes by others.
    pub(crate) fn monitor(&self) -> anyhow::Result<Monitor> {
        self.0.monitor().context("cannot watch for kernel changes")
    }

    /// Removes everything of ours.
    pub(crate) fn remove_everything(&self) -> anyhow::Result<()> {
        let report = self.0.uninstall()?;
        let failed: Vec<String> = report.failed.iter().map(|f| chain(f)).collect();
        anyhow::ensure!(failed.is_empty(), "cannot {}", failed.join("; cannot "));
        Ok(())
    }
}

impl Plumbing for HostKernel {
    fn families(&self) -> BTreeSet<Family> {
        self.0.families().clone()
    }

    fn links(&self) -> Result<Actual, PlumbingError> {
        self.0.dump(&Scope::links()).map_err(PlumbingError::from)
    }

    fn dump(&self, desired: &Desired) -> Result<Actual, PlumbingError> {
        self.0.dump(&Scope::all(desired)).map_err(PlumbingError::from)
    }

    fn apply(&self, plan: &Plan) -> Vec<Outcome> {
        let mut report = self.0.apply(plan);
        plan.steps.iter().map(|step| became(step, &mut report.failed)).collect()
    }

    fn attach(&self, wiring: &Wiring) -> Result<(), PlumbingError> {
        self.0.attach(wiring).map_err(PlumbingError::from)
    }

    fn detach(
        &self,
        host_if: &IfName,
        wiring: Option<&Wiring>,
        unanswered: &BTreeSet<IpAddr>,
    ) -> Result<(), PlumbingError> {
        self.0.detach(host_if, wiring, unanswered).map_err(PlumbingError::from)
    }

    fn wires(&self) -> Result<BTreeMap<u32, IfName>, PlumbingError> {
        Ok(view::wires(&self.0.dump_routes()?))
    }

    fn proxies(&self) -> Result<BTreeSet<ProxyKey>, PlumbingError> {
        let all = self.0.dump_proxies()?.into_iter();
        Ok(all.filter(|(_, made_by)| ours::proxy(*made_by)).map(|(key, _)| key).collect())
    }

    fn probe(
        &self,
        dev: &IfName,
        addresses: &BTreeSet<IpAddr>,
        wait: Duration,
    ) -> Result<Option<Holder>, PlumbingError> {
        self.0.probe(dev, addresses, wait).map_err(PlumbingError::from)
    }

    fn check(&self, wiring: &Wiring) -> Result<Vec<String>, PlumbingError> {
        let found = self.0.check(wiring).map_err(PlumbingError::from)?;
        Ok(found.into_iter().map(|m| m.what).collect())
    }
}

fn became(step: &Step, all_failed: &mut Vec<Failed>) -> Outcome {
    let at = all_failed.iter().position(|f| *f.step == *step);
    outcome(step, at.map(|i| all_failed.swap_remove(i).error.into()))
}

/// Asks the loop for a comparison whenever somebody else changes something that may be ours.
pub(crate) async fn watch_drift(monitor: Monitor, shared: Arc<Shared>) {
    loop {
        let dirty = monitor.changed().await;
        debug!(?dirty, "the kernel changed");
        shared.drift.notify_one();
    }
}
