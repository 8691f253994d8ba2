//! Names, folders and addresses of a cluster: everything that can be computed from its name, its number and its
//! options. Nothing here touches the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::options::Options;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Service range of every sandbox.
    pub(crate) fn service_cidr(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::V6 => "fd00:10:96::/112",
        }
    }

    /// Pod range when the reference CNI plugins are used.
    pub(crate) fn pod_cidr(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:10:244::/56",
        }
    }

    /// Range that covers all racks.
    pub(crate) fn node_cidr(self) -> &'static str {
        match self {
            Self::V4 => "172.30.0.0/16",
            Self::V6 => "fd00:172:30::/48",
        }
    }

    /// Prefix length of a rack's subnet.
    pub(crate) fn rack_prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// Host part `host` in the subnet of rack `rack`.
    fn in_rack(self, rack: u16, host: u16) -> IpAddr {
        match self {
            Self::V4 => {
                let [_, rack] = rack.to_be_bytes();
                let [_, host] = host.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(172, 30, rack, host))
            }
            Self::V6 => {
                // Decimal digits read as hexadecimal ones, so that node 1 ends in "11" in both families.
                let host = host % 10 + (host / 10 % 10) * 16 + (host / 100) * 256;
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x30, rack, 0, 0, 0, host))
            }
        }
    }

    /// Address of the "internet" behind the router, for which no node has a route but the default one.
    pub(crate) fn internet(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0, 0, 0, 0, 1)),
        }
    }

    /// Prefix length of a single address.
    pub(crate) fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// One node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Name in Kubernetes: `node1`, `node2`...
    pub(crate) name: String,
    /// 1-based number.
    pub(crate) number: u16,
    /// 1-based number of its layer 2 segment.
    pub(crate) rack: u16,
}

impl Node {
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        family.in_rack(self.rack, 10 + self.number)
    }

    /// MAC address of `eth0`; fixed, so that a partition can name it.
    pub(crate) fn mac(&self) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("02:b2:00:00:{high:02x}:{low:02x}")
    }
}

/// The nodes of a cluster with these options.
pub(crate) fn nodes(options: &Options) -> Vec<Node> {
    (1..=options.nodes)
        .map(|number| Node { name: format!("node{number}"), number, rack: (number - 1) % options.racks + 1 })
        .collect()
}

/// The router's address on a rack.
pub(crate) fn router(rack: u16, family: Family) -> IpAddr {
    family.in_rack(rack, 1)
}

/// Name of the supervisor of the control plane.
pub(crate) const CONTROL: &str = "control";

/// Where a cluster keeps its things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Number among the clusters of this machine, from 0; sets apart what cannot live in a namespace.
    pub(crate) index: u8,
    /// The cluster's folder.
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn netns(&self, scope: &str) -> String {
        format!("braid-{}-{scope}", self.name)
    }

    pub(crate) fn netns_path(&self, scope: &str) -> PathBuf {
        Path::new("/run/netns").join(self.netns(scope))
    }

    /// The cgroup of one node, relative to the root of each hierarchy.
    pub(crate) fn cgroup(&self, node: &str) -> String {
        format!("/{}/{node}", self.cgroup_root())
    }

    pub(crate) fn cgroup_root(&self) -> String {
        format!("braid-{}", self.name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    pub(crate) fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node)
    }

    pub(crate) fn spec_file(&self, scope: &str) -> PathBuf {
        self.config().join(format!("{scope}.json"))
    }

    /// The only link on the machine's own side: it leads to the first node, where the API server listens.
    pub(crate) fn host_link(&self) -> String {
        format!("braid-sb{}", self.index)
    }

    /// Both ends of that link: the machine's and the first node's, in a subnet of four addresses.
    pub(crate) fn host_link_addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let base = self.index * 4;
        (Ipv4Addr::new(172, 30, 255, base + 1), Ipv4Addr::new(172, 30, 255, base + 2))
    }
}

/// Greatest number of clusters side by side on one machine.
pub(crate) const MAX_CLUSTERS: u8 = 63;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_and_macs_are_unique_and_outside_the_reserved_ones() {
        let options = Options { nodes: 200, racks: 7, ..Options::default() };
        let nodes = nodes(&options);
        for family in options.families() {
            let mut seen: BTreeSet<IpAddr> = nodes.iter().map(|node| node.address(*family)).collect();
            assert_eq!(seen.len(), 200);
            seen.extend((1..=7).map(|rack| router(rack, *family)));
            assert_eq!(seen.len(), 207);
        }
        assert_eq!(nodes.iter().map(Node::mac).collect::<BTreeSet<_>>().len(), 200);
    }

    #[test]
    fn nodes_are_dealt_out_to_racks() {
        let racks: Vec<u16> = nodes(&Options { nodes: 5, racks: 2, ..Options::default() })
            .iter()
            .map(|node| node.rack)
            .collect();
        assert_eq!(racks, [1, 2, 1, 2, 1]);
    }

    #[test]
    fn node_one_looks_alike_in_both_families() {
        let node = &nodes(&Options::default())[0];
        assert_eq!(node.address(Family::V4).to_string(), "172.30.1.11");
        assert_eq!(node.address(Family::V6).to_string(), "fd00:172:30:1::11");
    }

    #[test]
    fn host_links_of_all_clusters_differ() {
        let links: BTreeSet<_> = (0..MAX_CLUSTERS)
            .map(|index| Layout { name: "x".into(), index, dir: PathBuf::new() }.host_link_addresses())
            .collect();
        assert_eq!(links.len(), usize::from(MAX_CLUSTERS));
    }
}
