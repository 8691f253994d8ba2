//! What is known, and how it is indexed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use braid_types::model::{
    BlockDef, InstanceDef, NetworkDef, NetworkType, Phase, PodRef, SubnetDef, UnixSeconds,
};
use braid_types::{AddrRange, Family, InstanceName, Symbol, well_known::VTEP_INTERFACE};

use super::instances::Instances;
use super::names::Names;
use crate::block::Blocks;
use crate::pool::{Mark, Pool, Usage};
use crate::release::{Checks, Circumstances, PodSeen};
use crate::verdict::{Loss, OffLimits, Standing};

/// Times that the operator may choose, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// From the moment an address has no user any more until it may be given out again.
    pub cool_down: i64,
    /// How long an address waits for its node's word that the interface is gone, once the pod is gone.
    pub orphan_timeout: i64,
    /// How long a block stays with its node while nobody uses it.
    pub block_grace: i64,
    /// How long an owner that was there is believed to be there, before it is asked for again.
    pub owner_check: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self { cool_down: 30, orphan_timeout: 15 * 60, block_grace: 5 * 60, owner_check: 60 }
    }
}

/// A node as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFact {
    /// Name.
    pub name: String,
    /// Uid of the Node object.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The addresses that it says it has.
    pub addresses: Vec<IpAddr>,
}

/// A pod as far as addresses go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFact {
    /// Uid.
    pub uid: Symbol,
    /// Succeeded or Failed (evicted pods are Failed): its containers run no more and never will again.
    pub finished: bool,
    /// When it was made.
    pub created: UnixSeconds,
}

/// Every kind in full: what a start or a restart begins with.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    /// Networks.
    pub networks: Vec<NetworkDef>,
    /// Subnets.
    pub subnets: Vec<SubnetDef>,
    /// Blocks.
    pub blocks: Vec<BlockDef>,
    /// Addresses.
    pub instances: Vec<Arc<InstanceDef>>,
    /// Addresses whose objects cannot be read.
    pub unreadable: BTreeSet<InstanceName>,
    /// Nodes.
    pub nodes: Vec<NodeFact>,
    /// Pods.
    pub pods: Vec<PodFact>,
}

/// Proof that every kind was listed in full: without it nothing is given out and nothing is freed.
#[derive(Debug)]
#[must_use]
pub struct Restored(());

/// Some kinds were not listed yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not listed yet: {}", missing.join(", "))]
pub struct NotRestored {
    /// The kinds that are missing.
    pub missing: Vec<&'static str>,
}

/// Which kinds were listed in full at least once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Listed {
    pub(super) networks: bool,
    pub(super) subnets: bool,
    pub(super) blocks: bool,
    pub(super) instances: bool,
    pub(super) nodes: bool,
    pub(super) pods: bool,
}

/// One Subnet with its addresses. Exists without a definition while objects refer to one that is not there.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) def: Option<SubnetDef>,
    pub(super) pool: Pool,
    pub(super) blocks: Blocks,
    /// Addresses that nodes have themselves: the pool does not give them out.
    pub(super) of_nodes: Vec<IpAddr>,
    /// Tunnel end addresses among those that are taken.
    pub(super) vteps: usize,
    /// What the further holders of an address have it as, where objects contradict each other: one of another address
    /// space names this Subnet too, say. The pool has the first of all.
    others: BTreeMap<IpAddr, Vec<Mark>>,
}

impl Slot {
    /// Takes an address for one holder more.
    pub(super) fn hold(&mut self, address: IpAddr, mark: Mark) {
        let mut all = self.others.remove(&address).unwrap_or_default();
        all.extend(self.pool.mark(address));
        all.push(mark);
        self.show(address, all);
    }

    /// Gives the pool what the Subnet says, but for the addresses that nodes have.
    pub(super) fn define_pool(&mut self, def: &SubnetDef, of_nodes: Vec<IpAddr>) {
        let mut left = def.clone();
        left.excluded.extend(of_nodes.iter().copied().map(AddrRange::single));
        self.pool.redefine(Some(&left));
        self.of_nodes = of_nodes;
    }

    /// Gives it back for a holder that had it as `mark`. Whether it is free now.
    pub(super) fn let_go(&mut self, address: IpAddr, mark: Mark) -> bool {
        let Some(mut all) = self.others.remove(&address) else { return self.pool.release(address) };
        all.extend(self.pool.mark(address));
        if let Some(at) = all.iter().position(|m| *m == mark) {
            all.swap_remove(at);
        }
        self.show(address, all);
        false
    }

    fn show(&mut self, address: IpAddr, mut all: Vec<Mark>) {
        all.sort_unstable();
        self.pool.take(address, all.remove(0));
        if !all.is_empty() {
            self.others.insert(address, all);
        }
    }
}

/// An address that is promised and not seen as an object.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) grant: u64,
    pub(super) subnet: Symbol,
    pub(super) pod: Option<PodRef>,
}

/// All addresses of the cluster, who has them and who may have which.
#[derive(Debug)]
pub struct Ipam {
    pub(super) config: Config,
    pub(super) listed: Listed,
    pub(super) networks: BTreeMap<String, NetworkDef>,
    pub(super) slots: BTreeMap<String, Slot>,
    pub(super) nodes: BTreeMap<String, NodeFact>,
    /// Pods by uid: whether they have finished, and when they were made.
    pub(super) pods: HashMap<Symbol, (bool, UnixSeconds)>,
    /// Pods that addresses name and that are over by the API server's own word, and since when that is known.
    pub(super) ended: HashMap<Symbol, UnixSeconds>,
    pub(super) instances: Instances,
    pub(super) by_pod: HashMap<Symbol, Names>,
    /// The same for the second pods of machines that migrate.
    pub(super) by_second_pod: HashMap<Symbol, Names>,
    /// Addresses in the name of an owner, with or without a pod: (kind, namespace, name).
    pub(super) by_owner: HashMap<(Symbol, Symbol, Symbol), BTreeSet<InstanceName>>,
    /// Addresses of tunnel ends: (Network, node).
    pub(super) by_vtep: BTreeMap<(Symbol, Symbol), BTreeSet<InstanceName>>,
    /// Subnet of each known block.
    pub(super) block_subnet: HashMap<String, String>,
    pub(super) pending: HashMap<InstanceName, Pending>,
    /// Addresses whose objects exist and cannot be read.
    pub(super) unreadable: BTreeSet<InstanceName>,
    /// Addresses that their own Subnet does not have, or whose Subnet is not there or not known.
    pub(super) misplaced: BTreeSet<InstanceName>,
    /// Subnets in which such an address lies and is taken: nobody else can create an object of its name.
    pub(super) foreign: HashMap<InstanceName, BTreeSet<String>>,
    pub(super) last_grant: u64,
    pub(super) off_limits: Vec<OffLimits>,
    pub(super) standing: OnceLock<Standing>,
}

pub(super) fn mark_of(phase: Phase) -> Mark {
    match phase {
        Phase::Bound => Mark::Bound,
        Phase::Reserved => Mark::Reserved,
        Phase::Releasing => Mark::Releasing,
    }
}

/// Whether this is the address of a node's own tunnel end.
#[must_use]
pub(crate) fn is_vtep(def: &InstanceDef) -> bool {
    def.pod.is_none() && def.interface == VTEP_INTERFACE
}

impl Ipam {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            listed: Listed::default(),
            networks: BTreeMap::new(),
            slots: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: HashMap::new(),
            ended: HashMap::new(),
            instances: Instances::default(),
            by_pod: HashMap::new(),
            by_second_pod: HashMap::new(),
            by_owner: HashMap::new(),
            by_vtep: BTreeMap::new(),
            block_subnet: HashMap::new(),
            pending: HashMap::new(),
            unreadable: BTreeSet::new(),
            misplaced: BTreeSet::new(),
            foreign: HashMap::new(),
            last_grant: 0,
            off_limits: Vec::new(),
            standing: OnceLock::new(),
        }
    }

    /// Starts from full lists.
    pub fn restore(config: Config, lists: Lists, now: UnixSeconds) -> (Self, Restored) {
        let mut ipam = Self::new(config);
        ipam.reset_networks(lists.networks);
        ipam.reset_subnets(lists.subnets);
        ipam.reset_nodes(lists.nodes);
        ipam.reset_blocks(lists.blocks);
        ipam.reset_unreadable(&lists.unreadable);
        ipam.reset_instances(lists.instances, now);
        ipam.reset_pods(lists.pods);
        (ipam, Restored(()))
    }

    /// The proof, once each kind has been given in full by its `reset_…`.
    ///
    /// # Errors
    /// Names the kinds that were not.
    pub fn restored(&self) -> Result<Restored, NotRestored> {
        let l = self.listed;
        let missing: Vec<_> = [
            (l.networks, "Networks"),
            (l.subnets, "Subnets"),
            (l.blocks, "IPBlocks"),
            (l.instances, "IPInstances"),
            (l.nodes, "Nodes"),
            (l.pods, "Pods"),
        ]
        .into_iter()
        .filter_map(|(listed, kind)| (!listed).then_some(kind))
        .collect();
        if missing.is_empty() { Ok(Restored(())) } else { Err(NotRestored { missing }) }
    }

    /// The times in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Addresses that no Subnet may have.
    #[must_use]
    pub fn off_limits(&self) -> &[OffLimits] {
        &self.off_limits
    }

    /// Which Networks and Subnets are in force.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        let judge = || {
            Standing::of(self.networks.values(), self.subnets(), &self.off_limits, &self.nodes_by_address())
        };
        self.standing.get_or_init(judge)
    }

    /// A Network.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&NetworkDef> {
        self.networks.get(name)
    }

    /// All Networks by name.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkDef> {
        self.networks.values()
    }

    /// A Subnet.
    #[must_use]
    pub fn subnet(&self, name: &str) -> Option<&SubnetDef> {
        self.slots.get(name)?.def.as_ref()
    }

    /// All Subnets by name.
    pub fn subnets(&self) -> impl Iterator<Item = &SubnetDef> {
        self.slots.values().filter_map(|s| s.def.as_ref())
    }

    /// The Subnets of a Network, oldest first.
    #[must_use]
    pub fn subnets_of(&self, network: &str) -> Vec<&SubnetDef> {
        let mut subnets: Vec<_> = self.subnets().filter(|s| s.network == network).collect();
        subnets.sort_by_key(|s| (s.created, &s.name));
        subnets
    }

    /// An address that was given out.
    #[must_use]
    pub fn instance(&self, name: &InstanceName) -> Option<&Arc<InstanceDef>> {
        self.instances.get(name)
    }

    /// All addresses that were given out, in no order.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<InstanceDef>> {
        self.instances.iter()
    }

    /// The addresses of a pod, by uid.
    pub fn instances_of_pod(&self, uid: &str) -> impl Iterator<Item = &Arc<InstanceDef>> {
        self.by_pod.get(uid).into_iter().flatten().filter_map(|n| self.instance(n))
    }

    /// Pods by uid that have more than one address of a family, of all their interfaces together, with all they have.
    pub fn crowded_pods(&self) -> impl Iterator<Item = (&str, Vec<&Arc<InstanceDef>>)> {
        let is_crowded = |names: &Names| {
            let of = |family| names.iter().filter(|n| Family::of(n.address()) == family).count();
            Family::ALL.into_iter().any(|family| of(family) > 1)
        };
        let crowded = self.by_pod.iter().filter(move |(_, names)| is_crowded(names));
        crowded
            .map(|(uid, names)| (uid.as_str(), names.iter().filter_map(|name| self.instance(name)).collect()))
    }

    /// The blocks of a Subnet that exist.
    pub fn blocks_of(&self, subnet: &str) -> impl Iterator<Item = &BlockDef> {
        self.slots.get(subnet).into_iter().flat_map(|s| s.blocks.confirmed())
    }

    /// The block of this name, if its object was seen.
    #[must_use]
    pub fn block(&self, name: &str) -> Option<&BlockDef> {
        self.slots.get(self.block_subnet.get(name)?)?.blocks.get_confirmed(name)
    }

    /// Counts of a Subnet.
    #[must_use]
    pub fn usage(&self, subnet: &str) -> Usage {
        self.slots.get(subnet).map(|s| s.pool.usage()).unwrap_or_default()
    }

    /// Whether any address of the Subnet is taken, in or outside its present ranges.
    #[must_use]
    pub fn subnet_in_use(&self, subnet: &str) -> bool {
        self.slots.get(subnet).is_some_and(|s| !s.pool.is_idle())
    }

    /// Nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeFact> {
        self.nodes.values()
    }

    /// The addresses that nodes have themselves.
    pub(crate) fn nodes_by_address(&self) -> BTreeMap<IpAddr, &str> {
        let all = self.nodes.values();
        all.flat_map(|node| node.addresses.iter().map(|address| (*address, node.name.as_str()))).collect()
    }

    /// The node that has an address of a Subnet itself, where pods are on the nodes' network.
    pub(crate) fn node_with(&self, subnet: &str, address: IpAddr) -> Option<&str> {
        self.slots.get(subnet)?.of_nodes.binary_search(&address).ok()?;
        self.nodes.values().find(|node| node.addresses.contains(&address)).map(|node| node.name.as_str())
    }

    /// Whether there is a node of this name.
    #[must_use]
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Whether the node exists and the Network's node selector picks it.
    #[must_use]
    pub fn is_member(&self, network: &NetworkDef, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|n| network.nodes.matches(&n.labels))
    }

    /// The nodes that take part in a Network, by name.
    pub fn members<'a>(&'a self, network: &'a NetworkDef) -> impl Iterator<Item = &'a NodeFact> {
        self.nodes.values().filter(|n| network.nodes.matches(&n.labels))
    }

    /// Whether pods may be given addresses of this Network now.
    #[must_use]
    pub fn is_usable(&self, network: &NetworkDef) -> bool {
        network.ready && !network.deleting && self.network_loss(&network.name).is_none()
    }

    /// Whether addresses of this Subnet may be given out now.
    #[must_use]
    pub fn is_subnet_usable(&self, subnet: &SubnetDef) -> bool {
        subnet.ready && !subnet.deleting && self.standing().subnet(&subnet.name).is_none()
    }

    /// Whether the Network's nodes have addresses of their own in it.
    #[must_use]
    pub(super) fn has_vteps(network: &NetworkDef) -> bool {
        network.kind == NetworkType::Vxlan
    }

    pub(crate) fn space_of(&self, subnet: &SubnetDef) -> &str {
        self.networks.get(&subnet.network).map_or("", |n| n.space.as_str())
    }

    /// How the pod with this uid is.
    #[must_use]
    pub fn pod_seen(&self, uid: &str) -> PodSeen {
        match self.pods.get(uid) {
            Some((false, _)) => PodSeen::Live,
            Some((true, _)) | None => PodSeen::Over { confirmed: self.ended.get(uid).copied() },
        }
    }

    /// The API server itself has said that the pod is over, which is for ever: uids do not come back.
    pub(crate) fn confirm_end(&mut self, uid: &str, now: UnixSeconds) {
        self.ended.entry(uid.into()).or_insert(now);
    }

    pub(crate) fn circumstances(&self, def: &InstanceDef, checks: Checks) -> Circumstances {
        let node_exists = def.node.as_ref().is_none_or(|n| self.nodes.contains_key(n.as_str()));
        let blocks = self.networks.get(def.network.as_str()).is_some_and(|n| n.kind.has_blocks());
        let covered = def.node.as_ref().is_none_or(|node| {
            self.slots.get(def.subnet.as_str()).is_some_and(|s| s.blocks.covers(node, def.name.address()))
        });
        Circumstances {
            pod: def.pod.as_ref().map(|p| self.pod_seen(&p.uid)),
            second_pod: self.second_pod_seen(def),
            node_exists,
            second_node_exists: def
                .handover
                .as_ref()
                .is_none_or(|h| self.nodes.contains_key(h.node.as_str())),
            wanted: self.vtep_is_wanted(def),
            checks,
            cooling_since: self.instances.cooling_since(&def.name),
            uncovered: blocks && !covered,
            surplus: self.is_surplus(def),
        }
    }

    /// Whether pods hold addresses of the Network, or addresses are kept in it for owners.
    #[must_use]
    pub fn network_in_use(&self, network: &str) -> bool {
        self.slots
            .values()
            .filter(|s| s.def.as_ref().is_some_and(|d| d.network == network))
            .any(|s| s.pool.held() > s.vteps)
    }

    /// Why the Network cannot be used; `None` if it can. A second default that pods use already goes on, but is no
    /// default.
    #[must_use]
    pub fn network_loss(&self, network: &str) -> Option<&Loss> {
        let standing = self.standing();
        standing
            .network(network)
            .or_else(|| standing.second_default(network).filter(|_| !self.network_in_use(network)))
    }

    /// Addresses of a Subnet that are taken, with what is known about each: `None` for a promise on its way.
    pub fn taken(&self, subnet: &str) -> impl Iterator<Item = (IpAddr, Option<&Arc<InstanceDef>>)> {
        let (slot, space) = self.slot_and_space(subnet);
        slot.into_iter()
            .flat_map(|s| s.pool.taken())
            .map(move |(a, _)| (a, self.instance(&InstanceName::new(space, a))))
    }

    /// Like [`Self::taken`], within a range.
    pub(crate) fn taken_in(
        &self,
        subnet: &str,
        range: &AddrRange,
    ) -> impl Iterator<Item = (IpAddr, Option<&Arc<InstanceDef>>)> {
        let (slot, space) = self.slot_and_space(subnet);
        slot.into_iter()
            .flat_map(move |s| s.pool.taken_in(range))
            .map(move |(a, _)| (a, self.instance(&InstanceName::new(space, a))))
    }

    fn slot_and_space(&self, subnet: &str) -> (Option<&Slot>, &str) {
        let slot = self.slots.get(subnet);
        (slot, slot.and_then(|s| s.def.as_ref()).map_or("", |d| self.space_of(d)))
    }

    /// Names of all Subnets that exist or that something refers to.
    pub(crate) fn slot_names(&self) -> Vec<String> {
        self.slots.keys().cloned().collect()
    }

    /// Takes the blocks of a Subnet out for a change that looks at the rest of the state.
    pub(crate) fn take_blocks(&mut self, subnet: &str) -> Blocks {
        self.slots.get_mut(subnet).map(|s| std::mem::take(&mut s.blocks)).unwrap_or_default()
    }

    pub(crate) fn put_blocks(&mut self, subnet: &str, blocks: Blocks) {
        if let Some(slot) = self.slots.get_mut(subnet) {
            slot.blocks = blocks;
        }
    }
}
