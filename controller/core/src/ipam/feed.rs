//! Takes in what the watches deliver.

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use braid_types::model::{BlockDef, InstanceDef, NetworkDef, Phase, SubnetDef, UnixSeconds};
use braid_types::{InstanceName, Symbol};

use super::state::{Ipam, NodeFact, PodFact, is_vtep, mark_of};
use super::{Effects, Topic};
use crate::pool::Mark;
use crate::verdict::OffLimits;

/// Whether two definitions give out the same addresses.
fn same_addresses(a: &SubnetDef, b: &SubnetDef) -> bool {
    (a.cidr, a.gateway, a.block_size) == (b.cidr, b.gateway, b.block_size)
        && (&a.ranges, &a.excluded, &a.reserved) == (&b.ranges, &b.excluded, &b.reserved)
}

/// The uids of the pods that the address names: its holder, and the second pod of a machine that migrates.
fn pods_of(def: &InstanceDef) -> impl Iterator<Item = &Symbol> {
    def.pod.iter().map(|p| &p.uid).chain(def.handover.iter().map(|h| &h.pod.uid))
}

/// What taking in a definition has changed.
enum Stored {
    /// Nothing.
    Same,
    /// Only what this controller itself writes.
    Status,
    /// It is new or different.
    New,
}

/// Keeps in `known` what is not in `listed`: the names that have vanished.
fn vanished<'a, T: Clone + Eq + Hash + 'a>(
    known: impl Iterator<Item = &'a T>,
    listed: impl Iterator<Item = &'a T>,
) -> Vec<T> {
    let mut known = known.peekable();
    if known.peek().is_none() {
        return Vec::new();
    }
    let listed: HashSet<&T> = listed.collect();
    known.filter(|n| !listed.contains(n)).cloned().collect()
}

impl Ipam {
    fn all_objects(&self) -> Effects {
        Effects {
            networks: self.networks.keys().cloned().collect(),
            subnets: self.subnets().map(|s| s.name.clone()).collect(),
            ..Effects::default()
        }
    }

    /// All addresses that the cluster uses for something else.
    pub fn reset_off_limits(&mut self, list: Vec<OffLimits>) -> Effects {
        if self.off_limits == list {
            return Effects::default();
        }
        self.off_limits = list;
        self.standing = std::sync::OnceLock::new();
        self.all_objects()
    }

    // ---- Networks

    /// All Networks that there are.
    pub fn reset_networks(&mut self, list: Vec<NetworkDef>) -> Effects {
        self.listed.networks = true;
        let mut effects = Effects::default();
        for name in vanished(self.networks.keys(), list.iter().map(|n| &n.name)) {
            effects.merge(self.remove_network(&name));
        }
        for def in list {
            effects.merge(self.upsert_network(def));
        }
        effects
    }

    /// A Network appeared or changed.
    pub fn upsert_network(&mut self, def: NetworkDef) -> Effects {
        if self.networks.get(&def.name) == Some(&def) {
            return Effects::default();
        }
        let (name, space, kind) = (def.name.clone(), def.space.clone(), def.kind);
        let old = self.networks.insert(name.clone(), def);
        if old.as_ref().map(|n| n.kind) != Some(kind) {
            // The Network's own change touches more than this.
            let _ = self.leave_out_addresses_of_nodes(|subnet| subnet.network == name);
        }
        if old.map(|n| n.space).unwrap_or_default() != space {
            self.place_all();
        }
        self.network_changed(name)
    }

    /// A Network is gone.
    pub fn remove_network(&mut self, name: &str) -> Effects {
        let Some(old) = self.networks.remove(name) else { return Effects::default() };
        let _ = self.leave_out_addresses_of_nodes(|subnet| subnet.network == name);
        if !old.space.is_empty() {
            self.place_all();
        }
        self.network_changed(name.to_owned())
    }

    fn network_changed(&mut self, name: String) -> Effects {
        self.standing = std::sync::OnceLock::new();
        let mut effects = self.all_objects();
        effects.review = self.by_vtep.values().flatten().cloned().collect();
        effects.wake = self.networks.keys().cloned().chain([name]).map(Topic::Network).collect();
        effects.wake.extend(effects.subnets.iter().cloned().map(Topic::Subnet));
        effects.wake.insert(Topic::AnyNetwork);
        effects.vteps = true;
        effects
    }

    // ---- Subnets

    /// All Subnets that there are.
    pub fn reset_subnets(&mut self, list: Vec<SubnetDef>) -> Effects {
        self.listed.subnets = true;
        let mut effects = Effects::default();
        let known: Vec<String> = self.subnets().map(|s| s.name.clone()).collect();
        for name in vanished(known.iter(), list.iter().map(|s| &s.name)) {
            effects.merge(self.remove_subnet(&name));
        }
        let mut changed = BTreeSet::new();
        for def in list {
            let (name, network) = (def.name.clone(), def.network.clone());
            match self.store_subnet(def) {
                Stored::Same => {}
                Stored::Status => effects.merge(self.subnet_changed(name, true)),
                Stored::New => changed.extend([Topic::Subnet(name), Topic::Network(network)]),
            }
        }
        // Everything that one new Subnet may touch is the same for all of them.
        if let Some(Topic::Subnet(name)) = changed.iter().find(|t| matches!(t, Topic::Subnet(_))).cloned() {
            effects.merge(self.subnet_changed(name, false));
        }
        effects.wake.extend(changed);
        effects
    }

    /// A Subnet appeared or changed.
    pub fn upsert_subnet(&mut self, def: SubnetDef) -> Effects {
        let name = def.name.clone();
        match self.store_subnet(def) {
            Stored::Same => Effects::default(),
            Stored::Status => self.subnet_changed(name, true),
            Stored::New => self.subnet_changed(name, false),
        }
    }

    fn store_subnet(&mut self, def: SubnetDef) -> Stored {
        let of_nodes = self.addresses_of_nodes(&def);
        let slot = self.slots.entry(def.name.clone()).or_default();
        let old = slot.def.as_ref();
        if old == Some(&def) {
            return Stored::Same;
        }
        let status = old.is_some_and(|old| {
            SubnetDef { ready: old.ready, routing_table: old.routing_table, ..def.clone() } == *old
        });
        let same = old.is_some_and(|old| same_addresses(old, &def));
        if !same {
            slot.blocks.redefine(Some(&def));
        }
        if !same || slot.of_nodes != of_nodes {
            slot.define_pool(&def, of_nodes);
        }
        let name = def.name.clone();
        slot.def = Some(def);
        self.standing = std::sync::OnceLock::new();
        if status {
            return Stored::Status;
        }
        self.settle_misplaced(&name);
        Stored::New
    }

    /// A Subnet is gone. What was given out of it is not forgotten.
    pub fn remove_subnet(&mut self, name: &str) -> Effects {
        let Some(slot) = self.slots.get_mut(name).filter(|s| s.def.is_some()) else {
            return Effects::default();
        };
        let network = slot.def.take().map(|d| d.network);
        let homeless: Vec<IpAddr> = slot.pool.taken().map(|(a, _)| a).collect();
        slot.pool.redefine(None);
        slot.blocks.redefine(None);
        let network_def = network.as_ref().and_then(|n| self.networks.get(n));
        let space = network_def.map_or("", |n| n.space.as_str()).to_owned();
        for address in homeless {
            let instance = InstanceName::new(&space, address);
            if self.foreign.get_mut(&instance).is_some_and(|subnets| subnets.remove(name)) {
                self.free_as(Mark::Reserved, name, &instance);
            } else {
                self.occupy_elsewhere(&instance);
            }
        }
        self.foreign.retain(|_, subnets| !subnets.is_empty());
        self.drop_idle_slot(name);
        let mut effects = self.subnet_changed(name.to_owned(), false);
        effects.wake.extend(network.map(Topic::Network));
        effects
    }

    fn subnet_changed(&mut self, name: String, only_status: bool) -> Effects {
        self.standing = std::sync::OnceLock::new();
        let network = self.subnet(&name).map(|s| s.network.clone());
        let mut effects = if only_status {
            Effects { networks: network.iter().cloned().collect(), ..Effects::default() }
        } else {
            self.all_objects()
        };
        if !only_status {
            effects.review = self.by_vtep.values().flatten().cloned().collect();
        }
        effects.wake = network.into_iter().map(Topic::Network).collect();
        effects.wake.extend(effects.subnets.iter().cloned().map(Topic::Subnet));
        effects.wake.extend([Topic::AnyNetwork, Topic::Subnet(name.clone())]);
        effects.subnets.insert(name);
        effects.vteps = true;
        effects
    }

    fn drop_idle_slot(&mut self, name: &str) {
        if self.slots.get(name).is_some_and(|s| s.def.is_none() && s.pool.is_idle() && s.blocks.is_idle()) {
            self.slots.remove(name);
        }
    }

    /// What a change of the addresses of a Subnet touches.
    fn touched(&self, subnet: &str) -> Effects {
        Effects {
            networks: self.subnet(subnet).map(|s| s.network.clone()).into_iter().collect(),
            subnets: BTreeSet::from([subnet.to_owned()]),
            ..Effects::default()
        }
    }

    // ---- Blocks

    /// All blocks that there are.
    pub fn reset_blocks(&mut self, list: Vec<BlockDef>) -> Effects {
        self.listed.blocks = true;
        let mut effects = Effects::default();
        let known: Vec<String> =
            self.slots.values().flat_map(|s| s.blocks.confirmed()).map(|b| b.name.clone()).collect();
        for name in vanished(known.iter(), list.iter().map(|b| &b.name)) {
            effects.merge(self.remove_block(&name));
        }
        for def in list {
            effects.merge(self.upsert_block(def));
        }
        effects
    }

    /// A block appeared or changed.
    pub fn upsert_block(&mut self, def: BlockDef) -> Effects {
        let known = self.block_subnet.get(&def.name);
        let old = known.and_then(|s| self.slots.get(s)?.blocks.get(&def.name)).cloned();
        let mut effects = Effects::default();
        if old.as_ref().is_some_and(|o| *o != def) {
            effects.merge(self.remove_block(&def.name));
        }
        effects.merge(self.touched(&def.subnet));
        self.block_subnet.insert(def.name.clone(), def.subnet.clone());
        self.slots.entry(def.subnet.clone()).or_default().blocks.upsert(def);
        effects
    }

    /// A block is gone.
    pub fn remove_block(&mut self, name: &str) -> Effects {
        let Some(subnet) = self.block_subnet.remove(name) else { return Effects::default() };
        let mut effects = self.touched(&subnet);
        if let Some(slot) = self.slots.get_mut(&subnet)
            && let Some(block) = slot.blocks.get(name).cloned()
        {
            slot.blocks.remove(name);
            // Addresses that it covered need routes of their own now.
            effects.review.extend(self.held_in(&subnet, &block));
        }
        self.drop_idle_slot(&subnet);
        effects
    }

    fn held_in(&self, subnet: &str, block: &BlockDef) -> BTreeSet<InstanceName> {
        let Some(slot) = self.slots.get(subnet) else { return BTreeSet::new() };
        let space = slot.def.as_ref().map_or("", |d| self.space_of(d));
        slot.pool.taken_in(&block.cidr.range()).map(|(a, _)| InstanceName::new(space, a)).collect()
    }

    // ---- Addresses

    /// All addresses that there are.
    pub fn reset_instances(&mut self, list: Vec<Arc<InstanceDef>>, now: UnixSeconds) -> Effects {
        self.listed.instances = true;
        let gone = vanished(self.instances.iter().map(|def| &def.name), list.iter().map(|def| &def.name));
        let mut effects = Effects::default();
        for name in gone {
            if let Some(uid) = self.instance(&name).map(|def| def.uid.clone()) {
                effects.merge(self.remove_instance(&name, &uid));
            }
        }
        for def in list {
            effects.merge(self.upsert_instance(def, now));
        }
        effects
    }

    /// An address was given out, or its object changed. Also to be called with the API server's answer to a
    /// create or update, ahead of the watch.
    pub fn upsert_instance(&mut self, def: Arc<InstanceDef>, now: UnixSeconds) -> Effects {
        let name = def.name.clone();
        let mut effects = self.touched(&def.subnet);
        let (mut cooling_since, mut ended) = (None, Vec::new());
        if let Some(old) = self.instances.get(&name) {
            if *old == def {
                return Effects::default();
            }
            cooling_since = self.instances.cooling_since(&name).filter(|_| old.uid == def.uid);
            // The same pods: what is known about their end must not start again.
            let known = |uid: &Symbol| Some((uid.clone(), *self.ended.get(uid)?));
            ended = pods_of(&def).filter_map(known).collect();
            let (subnet, freed) = (old.subnet.clone(), self.unlink(&name));
            effects.merge(freed);
            if subnet == def.subnet {
                effects.wake.remove(&Topic::Subnet(subnet.to_string()));
            }
        }
        effects.merge(self.forget_unreadable(&name));
        if let Some(pending) = self.pending.remove(&name) {
            let freed = self.free(&pending.subnet, &name);
            if pending.subnet != def.subnet {
                effects.merge(freed);
            }
        }
        if def.phase == Phase::Releasing && def.release_at.is_some() {
            cooling_since.get_or_insert(now);
        } else {
            cooling_since = None;
        }
        if def.owner.is_some() {
            effects.wake.insert(Topic::Address(name.clone()));
        }
        self.link(def, cooling_since);
        self.occupy_elsewhere(&name);
        self.ended.extend(ended);
        effects.review.insert(name);
        effects
    }

    fn link(&mut self, def: Arc<InstanceDef>, cooling_since: Option<UnixSeconds>) {
        let name = def.name.clone();
        let slot = self.slots.entry(def.subnet.to_string()).or_default();
        slot.hold(name.address(), mark_of(def.phase));
        if is_vtep(&def) {
            slot.vteps += 1;
            let key = (def.network.clone(), def.node.clone().unwrap_or_default());
            self.by_vtep.entry(key).or_default().insert(name.clone());
        }
        if let Some(pod) = &def.pod {
            self.by_pod.entry(pod.uid.clone()).or_default().insert(name.clone());
        }
        if let Some(second) = &def.handover {
            self.by_second_pod.entry(second.pod.uid.clone()).or_default().insert(name.clone());
        }
        if let Some(o) = def.owner.as_ref().filter(|_| !is_vtep(&def)) {
            let key = (o.kind.clone(), o.namespace.clone(), o.name.clone());
            self.by_owner.entry(key).or_default().insert(name.clone());
        }
        self.instances.insert(def, cooling_since);
    }

    /// Takes an address out of every index.
    pub(super) fn unlink(&mut self, name: &InstanceName) -> Effects {
        let Some(def) = self.instances.remove(name) else { return Effects::default() };
        if is_vtep(&def) {
            if let Some(slot) = self.slots.get_mut(def.subnet.as_str()) {
                slot.vteps -= 1;
            }
            let key = (def.network.clone(), def.node.clone().unwrap_or_default());
            if let Some(names) = self.by_vtep.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    self.by_vtep.remove(&key);
                }
            }
        }
        if let Some(pod) = &def.pod
            && let Some(names) = self.by_pod.get_mut(&pod.uid)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_pod.remove(&pod.uid);
            }
        }
        if let Some(second) = &def.handover
            && let Some(names) = self.by_second_pod.get_mut(&second.pod.uid)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_second_pod.remove(&second.pod.uid);
            }
        }
        for uid in pods_of(&def) {
            if !self.by_pod.contains_key(uid) && !self.by_second_pod.contains_key(uid) {
                self.ended.remove(uid);
            }
        }
        if let Some(o) = def.owner.as_ref().filter(|_| !is_vtep(&def)) {
            let key = (o.kind.clone(), o.namespace.clone(), o.name.clone());
            if let Some(names) = self.by_owner.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    self.by_owner.remove(&key);
                }
            }
        }
        let mut effects = self.free_as(mark_of(def.phase), &def.subnet, name);
        effects.merge(self.take_home(name));
        effects
    }

    /// Gives an address that was promised back to its pool.
    pub(super) fn free(&mut self, subnet: &str, name: &InstanceName) -> Effects {
        self.free_as(Mark::Pending, subnet, name)
    }

    /// Gives an address back to its pool for the holder that had it as `mark`.
    pub(super) fn free_as(&mut self, mark: Mark, subnet: &str, name: &InstanceName) -> Effects {
        let mut effects = self.touched(subnet);
        if let Some(slot) = self.slots.get_mut(subnet)
            && slot.let_go(name.address(), mark)
        {
            effects.wake.insert(Topic::Subnet(subnet.to_owned()));
            // The last pod has left a Subnet that is being deleted: the nodes' own addresses go now.
            if slot.def.as_ref().is_some_and(|d| d.deleting) && slot.pool.held() == slot.vteps {
                effects.review.extend(self.by_vtep.values().flatten().cloned());
            }
        }
        self.drop_idle_slot(subnet);
        effects
    }

    /// The object with this uid is gone: the address is free. Ignored when the address was given out anew meanwhile.
    pub fn remove_instance(&mut self, name: &InstanceName, uid: &str) -> Effects {
        let Some(def) = self.instance(name).filter(|d| d.uid == uid).cloned() else {
            return Effects::default();
        };
        let mut effects = self.unlink(name);
        if def.owner.is_some() {
            effects.wake.insert(Topic::Address(name.clone()));
        }
        effects.vteps |= is_vtep(&def);
        effects.pods.extend(def.pod.iter().map(|p| p.uid.clone()).filter(|uid| self.pods.contains_key(uid)));
        effects
    }

    // ---- Nodes

    /// All nodes that there are.
    pub fn reset_nodes(&mut self, list: Vec<NodeFact>) -> Effects {
        self.listed.nodes = true;
        let mut effects = Effects::default();
        for name in vanished(self.nodes.keys(), list.iter().map(|n| &n.name)) {
            effects.merge(self.remove_node(&name));
        }
        let mut changed = Vec::new();
        for node in list {
            changed.extend(self.addresses_changed(&node));
            effects.merge(self.store_node(node));
        }
        effects.merge(self.node_addresses_changed(&changed));
        effects
    }

    /// A node appeared, or its labels or addresses changed.
    pub fn upsert_node(&mut self, node: NodeFact) -> Effects {
        let changed = self.addresses_changed(&node);
        let mut effects = self.store_node(node);
        effects.merge(self.node_addresses_changed(&changed));
        effects
    }

    /// What `node` has and its known state has not, and the other way round.
    fn addresses_changed(&self, node: &NodeFact) -> Vec<IpAddr> {
        let old = self.nodes.get(&node.name).map_or(&[][..], |old| &old.addresses);
        let gone = old.iter().filter(|address| !node.addresses.contains(address));
        let come = node.addresses.iter().filter(|address| !old.contains(address));
        gone.chain(come).copied().collect()
    }

    fn store_node(&mut self, node: NodeFact) -> Effects {
        if self.nodes.get(&node.name) == Some(&node) {
            return Effects::default();
        }
        let name = node.name.clone();
        self.nodes.insert(name.clone(), node);
        self.node_changed(&name)
    }

    /// Addresses of nodes have come or gone: pods on the physical network are given others, and an overlay over them is
    /// not put in force.
    fn node_addresses_changed(&mut self, changed: &[IpAddr]) -> Effects {
        if changed.is_empty() {
            return Effects::default();
        }
        self.standing = std::sync::OnceLock::new();
        let concerned = |def: &SubnetDef| changed.iter().any(|address| def.cidr.contains(*address));
        self.leave_out_addresses_of_nodes(concerned)
    }

    fn leave_out_addresses_of_nodes(&mut self, concerned: impl Fn(&SubnetDef) -> bool) -> Effects {
        let subnets: Vec<SubnetDef> = self.subnets().filter(|def| concerned(def)).cloned().collect();
        let mut effects = Effects::default();
        for def in subnets {
            effects.merge(self.touched(&def.name));
            effects.wake.insert(Topic::Subnet(def.name.clone()));
            let of_nodes = self.addresses_of_nodes(&def);
            if let Some(slot) = self.slots.get_mut(&def.name).filter(|slot| slot.of_nodes != of_nodes) {
                slot.define_pool(&def, of_nodes);
            }
        }
        effects
    }

    /// The addresses of the Subnet that nodes have themselves, in order; none where pods are not on the nodes' network.
    fn addresses_of_nodes(&self, def: &SubnetDef) -> Vec<IpAddr> {
        if self.networks.get(&def.network).is_none_or(|network| network.kind.has_blocks()) {
            return Vec::new();
        }
        let all = self.nodes.values().flat_map(|node| &node.addresses);
        let mut within: Vec<IpAddr> = all.filter(|address| def.cidr.contains(**address)).copied().collect();
        within.sort_unstable();
        within.dedup();
        within
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) -> Effects {
        let Some(node) = self.nodes.remove(name) else { return Effects::default() };
        let mut effects = self.node_changed(name);
        effects.merge(self.node_addresses_changed(&node.addresses));
        let second = |def: &InstanceDef| def.handover.as_ref().is_some_and(|h| h.node == *name);
        let on_it = self.instances.iter().filter(|def| def.node.as_deref() == Some(name) || second(def));
        effects.review.extend(on_it.map(|def| def.name.clone()));
        effects
    }

    fn node_changed(&mut self, name: &str) -> Effects {
        let vteps = self.by_vtep.iter().filter(|((_, node), _)| node == name);
        Effects {
            wake: BTreeSet::from([Topic::Node(name.to_owned())]),
            review: vteps.flat_map(|(_, names)| names.iter().cloned()).collect(),
            networks: self.networks.keys().cloned().collect(),
            vteps: true,
            ..Effects::default()
        }
    }

    // ---- Pods

    /// All pods that there are, those without an address of ours included.
    pub fn reset_pods(&mut self, list: Vec<PodFact>) -> Effects {
        self.listed.pods = true;
        let mut effects = Effects::default();
        for uid in vanished(self.pods.keys(), list.iter().map(|p| &p.uid)) {
            effects.merge(self.remove_pod(&uid));
        }
        for pod in list {
            effects.merge(self.upsert_pod(pod));
        }
        // Pods that ended while nobody looked.
        let by_pod = self.by_pod.iter().chain(&self.by_second_pod);
        let unknown = by_pod.filter(|(uid, _)| !self.pods.contains_key(*uid));
        let review = unknown.flat_map(|(_, names)| names.iter().cloned()).collect();
        effects.merge(Effects { review, ..Effects::default() });
        effects
    }

    /// A pod appeared or changed.
    pub fn upsert_pod(&mut self, pod: PodFact) -> Effects {
        let PodFact { uid, finished, created } = pod;
        let effects = self.review_pod(&uid);
        let unchanged = self.pods.insert(uid, (finished, created)).is_some_and(|(was, _)| was == finished);
        if unchanged { Effects::default() } else { effects }
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, uid: &str) -> Effects {
        if self.pods.remove(uid).is_none() {
            return Effects::default();
        }
        self.review_pod(uid)
    }

    fn review_pod(&self, uid: &str) -> Effects {
        let names = [self.by_pod.get(uid), self.by_second_pod.get(uid)].into_iter().flatten().flatten();
        Effects { review: names.cloned().collect(), ..Effects::default() }
    }
}
