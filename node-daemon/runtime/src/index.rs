//! What the watches have told, parsed.
//!
//! **Invariant:** no I/O and no clock. An object that cannot be understood keeps its last readable state: a
//! mistake in one object must not take traffic down that flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_node_core::view::Attachment;
use braid_types::model::{
    BlockDef, HandoverDef, InstanceDef, NetworkDef, NodeDef, Phase, SubnetDef, VtepDef,
};
use braid_types::well_known::VTEP_INTERFACE;
use braid_types::{Family, IfName, InstanceName, Symbol};

use crate::store::Effect;

/// A change of one kind, parsed. `Err` holds why an object was not understood.
#[derive(Debug, Clone)]
pub(crate) enum Change<V> {
    /// Everything there is.
    Reset(Vec<(String, Result<V, String>)>),
    /// Created or changed.
    Applied(String, Result<V, String>),
    /// Deleted.
    Deleted(String),
    /// Exists, but could not even be read. Comes before the `Reset` that lacks it.
    Unreadable(String),
}

/// The objects of one kind by name.
#[derive(Debug)]
pub(crate) struct Table<V> {
    entries: BTreeMap<String, V>,
    /// Named unreadable since the last full list.
    unreadable: BTreeSet<String>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), unreadable: BTreeSet::new() }
    }
}

impl<V: PartialEq> Table<V> {
    /// Takes a change; whether anything is different now.
    pub(crate) fn apply(&mut self, change: Change<V>) -> bool {
        match change {
            Change::Applied(name, Ok(value)) => {
                self.unreadable.remove(&name);
                let differs = self.entries.get(&name) != Some(&value);
                if differs {
                    self.entries.insert(name, value);
                }
                differs
            }
            Change::Applied(_, Err(_)) => false,
            Change::Unreadable(name) => {
                self.unreadable.insert(name);
                false
            }
            Change::Deleted(name) => {
                self.unreadable.remove(&name);
                self.entries.remove(&name).is_some()
            }
            Change::Reset(all) => self.reset(all),
        }
    }

    fn reset(&mut self, all: Vec<(String, Result<V, String>)>) -> bool {
        let unreadable = std::mem::take(&mut self.unreadable);
        let mut old = std::mem::take(&mut self.entries);
        let mut differs = false;
        for (name, value) in all {
            let before = old.remove(&name);
            match (value, before) {
                (Ok(value), before) => {
                    differs |= before.as_ref() != Some(&value);
                    self.entries.insert(name, value);
                }
                (Err(_), Some(before)) => {
                    self.entries.insert(name, before);
                }
                (Err(_), None) => {}
            }
        }
        for (name, value) in old {
            if unreadable.contains(&name) {
                self.entries.insert(name, value);
            } else {
                differs = true;
            }
        }
        differs
    }

    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        self.entries.get(name)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }
}

/// An address of this node and the version of its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) def: InstanceDef,
    /// Version of the object, for preconditions.
    pub(crate) resource_version: String,
    /// Whether a node has said that it uses the address.
    pub(crate) attached: bool,
    /// The sandbox in which it has said so.
    pub(crate) sandbox: Option<String>,
}

/// The controller's answer to a pod that gets no address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One word, `SubnetFull`.
    pub(crate) reason: String,
    /// The sentence for people.
    pub(crate) message: String,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// For the API's mirror of a static pod: the uid by which kubelet and runtime know it.
    pub(crate) mirror_of: Option<String>,
    /// Whether deletion was asked for.
    pub(crate) terminating: bool,
    /// Whether it is over (Succeeded or Failed) and will never run again.
    pub(crate) finished: bool,
    /// Why it got no address.
    pub(crate) refusal: Option<Refusal>,
}

/// This node's Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnNode {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Status of the condition NetworkUnavailable; `None` when nobody has set it yet.
    pub(crate) network_unavailable: Option<bool>,
}

/// The reason of a Network that waits for the controller: it passes without anybody changing anything.
pub(crate) const WAITING_FOR_ADDRESS: &str = "WaitingForAddress";

/// A Network as this node has it: what is published, and what ADD looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalNetwork {
    /// Whether pods can be attached.
    pub(crate) ready: bool,
    /// One word.
    pub(crate) reason: String,
    /// One sentence.
    pub(crate) message: String,
    /// Parent device.
    pub(crate) parent: Option<IfName>,
    /// The Network's own device.
    pub(crate) device: Option<IfName>,
    /// MTU of pod interfaces.
    pub(crate) mtu: Option<u32>,
    /// This node's end of the tunnels.
    pub(crate) vtep: Option<VtepDef>,
}

impl LocalNetwork {
    /// The MTU of pod interfaces, when a pod with these addresses can be attached: a family that the Network still
    /// waits for concerns only the pods that have it.
    pub(crate) fn usable_mtu(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Option<u32> {
        let has = |family| {
            let own = self.vtep.as_ref().map(|v| v.addresses.as_slice()).unwrap_or_default();
            own.iter().any(|a| Family::of(*a) == family)
        };
        let usable = self.ready
            || self.reason == WAITING_FOR_ADDRESS && addresses.into_iter().all(|a| has(Family::of(a)));
        self.mtu.filter(|_| usable)
    }
}

/// How a pod stands towards its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodState {
    /// Runs or will run: it keeps its address, whatever happens to its sandbox.
    Alive,
    /// Deletion was asked for.
    Terminating,
    /// Finished, or not there (any more).
    Over,
}

/// Everything the watches have told.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) networks: Table<NetworkDef>,
    pub(crate) subnets: Table<SubnetDef>,
    pub(crate) blocks: Table<BlockDef>,
    /// NodeNetworks by node.
    pub(crate) nodes: Table<NodeDef>,
    /// Addresses of other nodes that need host routes, own ones included where they fit the label.
    pub(crate) host_routed: Table<InstanceDef>,
    /// Names of those among them that a second pod has too.
    shared: BTreeSet<String>,
    /// Pods of this node.
    pub(crate) pods: Table<OwnPod>,
    /// The Node object of this node, under its name.
    pub(crate) node: Table<OwnNode>,
    /// The Networks that this node takes part in, by name; written by the loop.
    pub(crate) local: BTreeMap<String, LocalNetwork>,
    own: Table<Held>,
    by_pod: BTreeMap<Symbol, BTreeSet<String>>,
}

impl Index {
    /// Takes a change of this node's addresses. Those of pods come and go with ADD and DEL; the node's own ones are the
    /// kernel's business here, and those that pods on two nodes have.
    pub(crate) fn apply_own(&mut self, change: Change<Held>) -> Effect {
        let before = self.vteps();
        // Whether traffic is for a pod here can depend on both watches of addresses.
        let shared = match &change {
            Change::Reset(_) => true,
            Change::Applied(name, _) | Change::Deleted(name) | Change::Unreadable(name) => {
                self.host_routed.get(name).is_some()
            }
        };
        if !self.own.apply(change) {
            return Effect::Nothing;
        }
        self.by_pod = BTreeMap::new();
        for (name, held) in &self.own.entries {
            if let Some(pod) = &held.def.pod {
                self.by_pod.entry(pod.uid.clone()).or_default().insert(name.clone());
            }
        }
        if shared || before != self.vteps() { Effect::Kernel } else { Effect::Quiet }
    }

    /// Takes a change of the addresses that need host routes.
    pub(crate) fn apply_host_routed(&mut self, change: Change<InstanceDef>) -> Effect {
        let changed = match &change {
            Change::Reset(_) => None,
            Change::Applied(name, _) | Change::Deleted(name) | Change::Unreadable(name) => Some(name.clone()),
        };
        if !self.host_routed.apply(change) {
            return Effect::Nothing;
        }
        let is_shared = |def: &InstanceDef| def.handover.is_some();
        match changed {
            Some(name) if self.host_routed.get(&name).is_some_and(is_shared) => {
                self.shared.insert(name);
            }
            Some(name) => {
                self.shared.remove(&name);
            }
            None => {
                let shared = self.host_routed.entries.iter().filter(|(_, def)| is_shared(def));
                self.shared = shared.map(|(name, _)| name.clone()).collect();
            }
        }
        Effect::Kernel
    }

    /// The addresses of this node's tunnel ends as (network, address).
    pub(crate) fn vteps(&self) -> BTreeSet<(Symbol, IpAddr)> {
        self.own
            .values()
            .filter(|h| h.def.interface == VTEP_INTERFACE && h.def.pod.is_none() && !h.def.deleting)
            .map(|h| (h.def.network.clone(), h.def.name.address()))
            .collect()
    }

    /// This node's addresses that pods hold.
    pub(crate) fn held_by_pods(&self) -> impl Iterator<Item = &Held> {
        self.own.values().filter(|h| h.def.pod.is_some())
    }

    /// The addresses that the pod holds.
    pub(crate) fn held_by(&self, pod_uid: &str) -> impl Iterator<Item = &Held> {
        self.by_pod.get(pod_uid).into_iter().flatten().filter_map(|name| self.own.get(name))
    }

    /// The addresses that the pod has beside their holder, which is on another node: its virtual machine migrates.
    fn shared_with(&self, pod_uid: &str) -> impl Iterator<Item = &InstanceDef> {
        let second = move |d: &&InstanceDef| d.handover.as_ref().is_some_and(|h| h.pod.uid == pod_uid);
        // While the two watches do not agree, an address may be in both.
        let elsewhere = self.shared.iter().filter(|name| self.own.get(name).is_none());
        // Every ADD that waits asks at every change, and a cluster may have routes for thousands of addresses.
        elsewhere.filter_map(|name| self.host_routed.get(name)).filter(second)
    }

    /// The addresses that migrating machines have on this node beside their holder.
    pub(crate) fn second_here<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a InstanceDef, &'a HandoverDef)> {
        let shared = self.shared.iter().filter_map(|name| self.host_routed.get(name));
        let seconds = shared.filter_map(|def| Some((def, def.handover.as_deref()?)));
        seconds.filter(move |(_, second)| second.node == node)
    }

    /// The addresses of an interface that, as far as known, another pod holds.
    pub(crate) fn held_by_others(&self, attachment: &Attachment) -> BTreeSet<IpAddr> {
        let holder = |address: &IpAddr| {
            // Interfaces of nodes' own networks are in the usual address space.
            let name = InstanceName::new("", *address).to_string();
            // The node's own addresses are told by a watch of their own, which knows best what is here.
            let own = self.own.get(&name).map(|held| &held.def);
            own.or_else(|| self.host_routed.get(&name))?.pod.as_ref()
        };
        let by_other = |a: &&IpAddr| holder(a).is_some_and(|pod| pod.uid != attachment.pod.uid);
        attachment.addresses.iter().filter(by_other).copied().collect()
    }

    /// The Network of pods that name none, as it stands on this node; `None` where the node takes no part in it.
    pub(crate) fn local_default(&self) -> Option<(&str, &LocalNetwork)> {
        // Of two that call themselves so, the older one is it.
        let defaults = self.networks.values().filter(|n| n.default && n.ready && !n.deleting);
        let network = defaults.min_by_key(|n| (n.created, &n.name))?;
        Some((&network.name, self.local.get(&network.name)?))
    }

    /// The pod that the runtime means. Static pods are known to it by another uid than to the API.
    pub(crate) fn pod(&self, namespace: &str, name: &str, runtime_uid: Option<&str>) -> Option<&OwnPod> {
        let pod = self.pods.get(&pod_key(namespace, name))?;
        let fits = match runtime_uid {
            None => true,
            Some(uid) => pod.uid == uid || pod.mirror_of.as_deref() == Some(uid),
        };
        fits.then_some(pod)
    }

    /// How the pod with this uid stands.
    pub(crate) fn pod_state(&self, namespace: &str, name: &str, uid: &str) -> PodState {
        match self.pods.get(&pod_key(namespace, name)) {
            Some(pod) if pod.uid == uid || pod.mirror_of.as_deref() == Some(uid) => {
                if pod.finished {
                    PodState::Over
                } else if pod.terminating {
                    PodState::Terminating
                } else {
                    PodState::Alive
                }
            }
            _ => PodState::Over,
        }
    }

    /// The addresses granted to one interface of a pod: one set that exists as a whole. Two controllers that both believe
    /// that they lead may have given two; the one in use stays in use, else the lowest is taken.
    pub(crate) fn grant(&self, pod_uid: &str, interface: &str) -> Grant {
        let own = self.held_by(pod_uid).map(|h| (h.attached, &h.def));
        let mut found: Vec<(bool, &InstanceDef)> = own
            .chain(self.shared_with(pod_uid).map(|def| (false, def)))
            .filter(|(_, def)| def.interface == interface && def.phase == Phase::Bound && !def.deleting)
            .collect();
        found.sort_by_key(|(attached, def)| (!attached, def.name.address()));
        let have: BTreeSet<IpAddr> = found.iter().map(|(_, def)| def.name.address()).collect();
        let missing = |def: &InstanceDef| def.set.iter().copied().find(|a| !have.contains(a));
        let Some((_, whole)) = found.iter().find(|(_, def)| missing(def).is_none()) else {
            return match found.iter().find_map(|(_, def)| missing(def)) {
                Some(missing) => Grant::Partial { missing },
                None => Grant::Nothing,
            };
        };
        let set = &whole.set;
        let of_set = |def: &&InstanceDef| set.is_empty() || set.contains(&def.name.address());
        let mut all: Vec<InstanceDef> = found.iter().map(|(_, def)| *def).filter(of_set).cloned().collect();
        all.sort_by_key(|d| d.name.address());
        Grant::Complete(all)
    }
}

/// The key of a pod in [`Index::pods`].
pub(crate) fn pod_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// What was granted to an interface so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Nothing yet.
    Nothing,
    /// Not all addresses that belong together.
    Partial {
        /// One that is not there yet.
        missing: IpAddr,
    },
    /// Every address, IPv4 first.
    Complete(Vec<InstanceDef>),
}

#[cfg(test)]
#[path = "index_tests.rs"]
pub(crate) mod tests;
