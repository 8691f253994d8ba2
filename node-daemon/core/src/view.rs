//! Everything a node has to know to decide what its kernel must look like.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::model::{BlockDef, NetworkDef, NodeDef, PodRef, SubnetDef};
use braid_types::well_known::table;
use braid_types::{Cidr, Family, IfName, Mac, PerFamily};

use crate::actual::{Actual, SeenRoute};
use crate::desired::{Networks, Target};
use crate::ours;
use crate::overlay::{Tunnel, choose_parent, parent_address};

/// One node's part of the cluster state, joined with what its kernel and its journal show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Name of this node.
    pub node: String,
    /// The node's addresses as the Node object lists them: preferred when a parent device has several.
    pub node_ips: Vec<IpAddr>,
    /// Families that this node's kernel has; the other is skipped everywhere.
    pub families: BTreeSet<Family>,
    /// Devices of the host that are not Braid's: see [`host_links`].
    pub links: BTreeMap<IfName, HostLink>,
    /// VXLAN devices of ours that exist: see [`tunnels`].
    pub tunnels: BTreeMap<IfName, Tunnel>,
    /// Devices to which the tables of underlay Subnets lead, by table: see [`wires`].
    pub wires: BTreeMap<u32, IfName>,
    /// Networks that this node is to realise, by name. The caller has already applied membership
    /// (`nodeSelector`) and `Ready`.
    pub networks: BTreeMap<String, NetworkDef>,
    /// Names of the Networks of the cluster whose packets are on the physical network as they are, whether this node
    /// takes part or not.
    pub underlays: BTreeSet<String>,
    /// This node's own addresses in each overlay, by Network name: the IPInstances with interface `vtep`.
    pub vteps: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The Subnets of the cluster that are in force, and those that are not and may still have pods, by name. Where
    /// those of overlays extend to ([`NodeView::extents`]) is "inside the cluster" for masquerading.
    pub subnets: BTreeMap<String, SubnetDef>,
    /// Blocks of all nodes, by object name.
    pub blocks: BTreeMap<String, BlockDef>,
    /// What every agent says about its node, by node name. The entry of this node itself is ignored.
    pub nodes: BTreeMap<String, NodeDef>,
    /// Addresses on other nodes that no block of their node covers.
    pub host_routed: BTreeMap<IpAddr, HostRouted>,
    /// Interfaces of pods on this node, by host device.
    pub attachments: BTreeMap<IfName, Attachment>,
    /// Host devices of pods of which it is not known what they must look like: left as they are.
    pub spared: BTreeSet<IfName>,
}

/// An address that needs a route of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRouted {
    /// Name of the Network.
    pub network: String,
    /// Node on which the address lives.
    pub node: String,
}

/// A device of the host that may carry packets of pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostLink {
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Global addresses with their on-link prefix length, in the kernel's order, usable ones only.
    pub addrs: Vec<(IpAddr, u8)>,
    /// Families whose preferred default route leaves here.
    pub default_route: BTreeSet<Family>,
    /// Leads to the network around the host, and not to containers or machines on it, as far as its kind tells.
    pub outward: bool,
}

impl HostLink {
    /// Prefixes that are on-link here, which two nodes compare to find a shared link.
    #[must_use]
    pub fn on_link(&self) -> Vec<Cidr> {
        let prefixes: BTreeSet<Cidr> = self
            .addrs
            .iter()
            .filter(|(a, len)| *len < Family::of(*a).bits())
            .filter_map(|(a, len)| Cidr::containing(*a, *len))
            .collect();
        prefixes.into_iter().collect()
    }
}

/// A network namespace, under whatever path: device and inode of its file (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// One interface of one pod, as granted and as asked for by the runtime. It is what the journal keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// Container id of the sandbox.
    pub container_id: String,
    /// The pod.
    pub pod: PodRef,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// The namespace that the path must lead to, where that is known.
    pub netns_id: Option<NamespaceId>,
    /// Interface name in the pod.
    pub ifname: IfName,
    /// Host end of the veth pair: `braid_types::host_veth_name(container_id, ifname)`.
    pub host_if: IfName,
    /// Name of the Network.
    pub network: String,
    /// Hardware address of the pod's end.
    pub mac: Mac,
    /// Addresses of the interface, at most one per family.
    pub addresses: BTreeSet<IpAddr>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Those of its addresses that another pod holds, to which their traffic goes: while a virtual machine migrates, two
    /// pods have its addresses.
    pub silent: BTreeSet<IpAddr>,
}

impl NodeView {
    /// The address from which this node talks to its own pods: the parent's, so that probes show the node's
    /// address; where the parent has none of a family, the node's own address in the overlay.
    pub(crate) fn node_source(&self, network: &str, realised: &Networks) -> PerFamily<Option<IpAddr>> {
        let overlay = realised.overlays.get(network).and_then(|o| o.as_ref().ok());
        let underlay = realised.underlays.get(network).and_then(|u| u.as_ref().ok());
        let chosen = || self.networks.get(network).and_then(|n| choose_parent(&self.links, n));
        let parent = overlay.map(|o| &o.parent).or(underlay.map(|u| &u.parent)).or_else(chosen);
        let parent = parent.and_then(|name| self.links.get(name));
        PerFamily::from_fn(|family| {
            let own = || overlay.and_then(|o| *o.addresses.get(family));
            let usable = self.families.contains(&family);
            parent.and_then(|l| parent_address(self, l, family)).or_else(own).filter(|_| usable)
        })
    }
}

impl NodeView {
    /// The prefixes of a Subnet in which its addresses are.
    ///
    /// One that is not in force has none of its own, as its prefix may be wrong or another Subnet's. Where it was in
    /// force before, pods may still have addresses of it: those are in its blocks, and in an underlay, which has no
    /// blocks, they are known of this node's pods only.
    #[must_use]
    pub fn extents(&self, subnet: &SubnetDef) -> Vec<Cidr> {
        if subnet.ready {
            return vec![subnet.cidr];
        }
        let blocks = self.blocks.values().filter(|b| b.subnet == subnet.name).map(|b| b.cidr);
        let is_underlay = self.underlays.contains(&subnet.network);
        let of_network = self.attachments.values().filter(|a| is_underlay && a.network == subnet.network);
        let pods = of_network.flat_map(|a| &a.addresses).filter(|a| subnet.cidr.contains(**a));
        blocks.chain(pods.copied().map(Cidr::host)).collect()
    }
}

/// Our VXLAN devices, from a dump.
#[must_use]
pub fn tunnels(actual: &Actual) -> BTreeMap<IfName, Tunnel> {
    let ours = actual.links.iter().filter(|(name, link)| ours::link(name, link));
    ours.filter_map(|(name, link)| {
        let vxlan = link.vxlan.as_ref()?;
        let tunnel = Tunnel {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local?,
            parent: vxlan.parent.clone()?,
            mtu: link.mtu,
        };
        Some((name.clone(), tunnel))
    })
    .collect()
}

/// The devices to which the tables of underlay Subnets lead, from a dump of routes.
#[must_use]
pub fn wires(actual: &Actual) -> BTreeMap<u32, IfName> {
    let of_subnets = actual.routes.iter().filter(|(key, _)| table::SUBNETS.contains(&key.table));
    let on_link = of_subnets.filter_map(|(key, route)| match route {
        SeenRoute::Known(route) => match &route.target {
            Target::OnLink { dev } => Some((key.table, dev.clone())),
            Target::Via { .. } | Target::Unreachable => None,
        },
        SeenRoute::Other => None,
    });
    on_link.collect()
}

/// The devices of the host that are not Braid's, from a dump.
#[must_use]
pub fn host_links(actual: &Actual) -> BTreeMap<IfName, HostLink> {
    let candidates = actual.links.iter().filter(|(name, link)| !link.loopback && !ours::link(name, link));
    candidates
        .map(|(name, link)| {
            let mut addrs: Vec<_> = actual
                .addrs
                .iter()
                .filter(|(key, seen)| key.dev == *name && seen.usable_as_source)
                .map(|(key, seen)| (seen.position, key.addr, key.prefix_len))
                .collect();
            addrs.sort_unstable();
            let addrs: Vec<(IpAddr, u8)> = addrs.into_iter().map(|(_, a, len)| (a, len)).collect();
            let default_route: BTreeSet<Family> = Family::ALL
                .into_iter()
                .filter(|f| actual.default_devs.get(*f).as_ref() == Some(name))
                .collect();
            let has_v6 = addrs.iter().any(|(a, _)| a.is_ipv6());
            // Pairs, bridges and tunnels lead to containers, unless the host itself lives on them.
            let wire = matches!(link.kind.as_str(), "" | "bond" | "team" | "vlan" | "macvlan");
            let outward = !link.enslaved && (wire || has_v6 || !default_route.is_empty());
            (name.clone(), HostLink { mtu: link.mtu, up: link.up, addrs, default_route, outward })
        })
        .collect()
}
