//! Objects to test with: each has sensible values, tests change what matters to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use braid_controller_core::ipam::Lists;
use braid_controller_core::{Choice, Config, Ipam, NodeFact, PodFact, PodRequest, Restored};
use braid_types::model::{Encapsulation, InstanceDef, NetworkDef, NetworkType, PodRef, SubnetDef, VxlanDef};
use braid_types::{AddrRange, Family, Selector, Vni};

/// A VXLAN Network that is ready.
pub(crate) fn network(name: &str, vni: i64) -> NetworkDef {
    NetworkDef {
        name: name.to_owned(),
        created: 100,
        kind: NetworkType::Vxlan,
        default: false,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: Vec::new(),
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(vni).unwrap(),
            port: 8472,
            encapsulation: Encapsulation::Always,
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

/// A Subnet that is ready, with blocks of four addresses.
pub(crate) fn subnet(name: &str, network: &str, cidr: &str) -> SubnetDef {
    let cidr: braid_types::Cidr = cidr.parse().unwrap();
    SubnetDef {
        name: name.to_owned(),
        created: 100,
        network: network.to_owned(),
        gateway: None,
        ranges: Vec::new(),
        excluded: Vec::new(),
        reserved: Vec::new(),
        vlan: None,
        block_size: cidr.family().bits() - 2,
        private: false,
        nat_outgoing: false,
        routing_table: None,
        ready: true,
        deleting: false,
        cidr,
    }
}

pub(crate) fn ranges(texts: &[&str]) -> Vec<AddrRange> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

pub(crate) fn node(name: &str) -> NodeFact {
    let labels = BTreeMap::from([("name".to_owned(), name.to_owned())]);
    NodeFact { name: name.to_owned(), uid: format!("uid-of-{name}"), labels, addresses: Vec::new() }
}

pub(crate) fn pod(n: usize) -> PodRef {
    PodRef { namespace: "shop".into(), name: format!("web-{n}").into(), uid: format!("pod-{n}").into() }
}

pub(crate) fn live(n: usize) -> PodFact {
    PodFact { uid: format!("pod-{n}").into(), finished: false, created: n as i64 }
}

pub(crate) fn request(n: usize, node: &str) -> PodRequest {
    PodRequest {
        pod: pod(n),
        interface: "eth0".to_owned(),
        node: node.to_owned(),
        choice: Choice::default(),
        namespace_choice: Choice::default(),
        namespace_labels: BTreeMap::new(),
        owner: None,
        keep: None,
        migration: None,
    }
}

/// A default overlay `overlay` with the Subnets `v4` and `v6` and three nodes.
pub(crate) fn lists(v4: &str, v6: &str) -> Lists {
    Lists {
        networks: vec![NetworkDef { default: true, ..network("overlay", 4) }],
        subnets: vec![subnet("v4", "overlay", v4), subnet("v6", "overlay", v6)],
        nodes: vec![node("n1"), node("n2"), node("n3")],
        pods: (0..100).map(live).collect(),
        ..Lists::default()
    }
}

pub(crate) fn start(lists: Lists) -> (Ipam, Restored) {
    Ipam::restore(Config::default(), lists, 0)
}

/// Grants and plays the API server: every write succeeds. The objects that were made.
pub(crate) fn give(ipam: &mut Ipam, restored: &Restored, req: &PodRequest) -> Vec<Arc<InstanceDef>> {
    let grant = ipam.grant(restored, req).unwrap_or_else(|r| panic!("{}: {r}", req.pod.name));
    for block in &grant.blocks {
        ipam.upsert_block(block.clone());
    }
    let made: Vec<_> = grant
        .claims
        .iter()
        .map(|c| {
            let uid = format!("uid-of-{}-{}", c.name(), req.pod.uid);
            Arc::new(InstanceDef { uid: uid.into(), ..(**c.def()).clone() })
        })
        .collect();
    for def in &made {
        ipam.upsert_instance(def.clone(), 0);
    }
    ipam.finish(grant);
    made
}

pub(crate) fn address_of(made: &[Arc<InstanceDef>], family: Family) -> String {
    let def = made.iter().find(|d| Family::of(d.name.address()) == family).expect("an address of the family");
    def.name.address().to_string()
}
