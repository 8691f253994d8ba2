//! A kernel and an API server that exist in memory only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use braid_node_core::actual::{Actual, SeenLink};
use braid_node_core::attach::Wiring;
use braid_node_core::desired::{Desired, ProxyKey};
use braid_node_core::plan::{Plan, Step};
use braid_node_kernel::Holder;
use braid_types::{Family, IfName};
use parking_lot::Mutex;

use crate::client::RequestError;
use crate::cni::wait::PodLookup;
use crate::plumbing::{Outcome, Plumbing, PlumbingError, outcome};

/// Runs inside a call of [`FakeKernel`].
type Hook = Box<dyn FnMut() + Send>;

/// Knows host ends of pods and nothing else.
#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) devices: Mutex<BTreeSet<IfName>>,
    /// Fails attach, detach and apply with this.
    pub(crate) broken: Mutex<Option<PlumbingError>>,
    /// Called at the end of every dump.
    pub(crate) after_dump: Mutex<Option<Hook>>,
    /// Called at the beginning of every attach.
    pub(crate) on_attach: Mutex<Option<Hook>>,
    pub(crate) applied: Mutex<Vec<String>>,
    /// For which the node answers.
    pub(crate) proxies: Mutex<BTreeSet<ProxyKey>>,
    /// Who else has addresses.
    pub(crate) holders: Mutex<Vec<Holder>>,
}

impl FakeKernel {
    pub(crate) fn break_with(&self, error: Option<&str>) {
        *self.broken.lock() = error.map(PlumbingError::other);
    }

    fn result(&self) -> Result<(), PlumbingError> {
        self.broken.lock().clone().map_or(Ok(()), Err)
    }
}

fn call(hook: &Mutex<Option<Hook>>) {
    if let Some(hook) = hook.lock().as_mut() {
        hook();
    }
}

impl Plumbing for FakeKernel {
    fn families(&self) -> BTreeSet<Family> {
        Family::ALL.into()
    }

    fn links(&self) -> Result<Actual, PlumbingError> {
        let seen = SeenLink { kind: "veth".into(), alias: "braid:x".into(), up: true, ..SeenLink::default() };
        let links = self.devices.lock().iter().map(|d| (d.clone(), seen.clone())).collect();
        Ok(Actual { links, ..Actual::default() })
    }

    fn dump(&self, _: &Desired) -> Result<Actual, PlumbingError> {
        let actual = self.links();
        call(&self.after_dump);
        actual
    }

    fn apply(&self, plan: &Plan) -> Vec<Outcome> {
        let error = self.result().err();
        for step in &plan.steps {
            self.applied.lock().push(step.to_string());
            match step {
                Step::DelLink(name) if error.is_none() => {
                    self.devices.lock().remove(name);
                }
                Step::AddVeth { link, .. } if error.is_none() => {
                    self.devices.lock().insert(link.name.clone());
                }
                _ => {}
            }
        }
        plan.steps.iter().map(|step| outcome(step, error.clone())).collect()
    }

    fn attach(&self, wiring: &Wiring) -> Result<(), PlumbingError> {
        call(&self.on_attach);
        self.result()?;
        self.devices.lock().insert(wiring.link.name.clone());
        self.proxies.lock().extend(wiring.proxies.iter().cloned());
        Ok(())
    }

    fn detach(
        &self,
        host_if: &IfName,
        _: Option<&Wiring>,
        unanswered: &BTreeSet<IpAddr>,
    ) -> Result<(), PlumbingError> {
        self.result()?;
        self.proxies.lock().retain(|key| !unanswered.contains(&key.addr));
        self.devices.lock().remove(host_if);
        Ok(())
    }

    fn wires(&self) -> Result<BTreeMap<u32, IfName>, PlumbingError> {
        Ok(BTreeMap::new())
    }

    fn proxies(&self) -> Result<BTreeSet<ProxyKey>, PlumbingError> {
        Ok(self.proxies.lock().clone())
    }

    fn probe(
        &self,
        _: &IfName,
        addresses: &BTreeSet<IpAddr>,
        _: Duration,
    ) -> Result<Option<Holder>, PlumbingError> {
        Ok(self.holders.lock().iter().find(|h| addresses.contains(&h.address)).cloned())
    }

    fn check(&self, wiring: &Wiring) -> Result<Vec<String>, PlumbingError> {
        let there = self.devices.lock().contains(&wiring.link.name);
        Ok(if there { Vec::new() } else { vec![format!("device {} is missing", wiring.link.name)] })
    }
}

/// An API server that is down.
pub(crate) struct NoApi;

impl PodLookup for NoApi {
    async fn look_up(&self, _: &str, _: &str) -> Result<Option<Vec<String>>, RequestError> {
        Err(RequestError::Timeout)
    }
}

impl NoApi {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::new(Self)
    }
}
