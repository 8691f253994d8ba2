//! Compares what the API says about addresses with what the pods say. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::model::{BlockDef, InstanceDef, Phase, SubnetDef};

/// A pod as far as addresses are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    /// `namespace/name`.
    pub(crate) name: String,
    /// Uid.
    pub(crate) uid: String,
    /// Whether it has ended (Succeeded or Failed): its addresses are no longer in use.
    pub(crate) finished: bool,
    /// Addresses in its status.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Something that does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// Two live pods report one address.
    Doubled { address: IpAddr, pods: [String; 2] },
    /// A live pod reports an address of a Braid subnet for which there is no IPInstance bound to it.
    Unclaimed { address: IpAddr, pod: String },
    /// An IPInstance is bound to a pod that is not there.
    Orphaned { address: IpAddr, pod: String },
    /// An IPInstance lies outside its Subnet, or its Subnet does not exist.
    Homeless { address: IpAddr, subnet: String },
    /// Two IPBlocks share addresses.
    OverlappingBlocks { blocks: [String; 2] },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Doubled { address, pods: [a, b] } => {
                write!(f, "{address} is held by two pods: {a} and {b}")
            }
            Self::Unclaimed { address, pod } => {
                write!(f, "{address} of pod {pod} has no IPInstance bound to it")
            }
            Self::Orphaned { address, pod } => {
                write!(
                    f,
                    "{address} is bound to pod {pod}, which is not there; the controller frees it in its time"
                )
            }
            Self::Homeless { address, subnet } => write!(f, "{address} lies in no Subnet called `{subnet}`"),
            Self::OverlappingBlocks { blocks: [a, b] } => write!(f, "blocks {a} and {b} share addresses"),
        }
    }
}

/// Everything that does not fit together, sorted.
pub(crate) fn audit(
    pods: &[PodAddresses],
    instances: &[InstanceDef],
    subnets: &[SubnetDef],
    blocks: &[BlockDef],
) -> Vec<Finding> {
    let mut found = BTreeSet::new();
    let live: BTreeMap<&str, &PodAddresses> =
        pods.iter().filter(|p| !p.finished).map(|p| (p.uid.as_str(), p)).collect();
    let bound: BTreeMap<IpAddr, &InstanceDef> =
        instances.iter().filter(|i| i.phase == Phase::Bound).map(|i| (i.name.address(), i)).collect();

    let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
    // The second pod of a machine that migrates has the address by right.
    let is_second = |address: &IpAddr, uid: &str| {
        bound.get(address).and_then(|i| i.handover.as_ref()).is_some_and(|h| h.pod.uid == uid)
    };
    for pod in live.values() {
        let counts = |address: &&IpAddr| {
            subnets.iter().any(|s| s.cidr.contains(**address)) && !is_second(address, &pod.uid)
        };
        for address in pod.addresses.iter().filter(counts) {
            if let Some(other) = holders.insert(*address, &pod.name) {
                let mut pods = [other.to_owned(), pod.name.clone()];
                pods.sort();
                found.insert(Finding::Doubled { address: *address, pods });
            }
            let holder = bound.get(address).and_then(|i| i.pod.as_ref()).map(|p| p.uid.as_str());
            if holder != Some(pod.uid.as_str()) {
                found.insert(Finding::Unclaimed { address: *address, pod: pod.name.clone() });
            }
        }
    }
    for instance in bound.values() {
        if let Some(pod) = instance.pod.as_ref().filter(|p| !live.contains_key(p.uid.as_str())) {
            let pod = format!("{}/{}", pod.namespace, pod.name);
            found.insert(Finding::Orphaned { address: instance.name.address(), pod });
        }
    }
    for instance in instances {
        let address = instance.name.address();
        if !subnets.iter().any(|s| s.name == instance.subnet && s.cidr.contains(address)) {
            found.insert(Finding::Homeless { address, subnet: instance.subnet.to_string() });
        }
    }
    let mut sorted: Vec<&BlockDef> = blocks.iter().collect();
    sorted.sort_by_key(|b| (b.cidr.family(), b.cidr.first(), b.cidr.prefix_len()));
    for pair in sorted.windows(2) {
        if pair[0].cidr.overlaps(&pair[1].cidr) {
            found.insert(Finding::OverlappingBlocks { blocks: [pair[0].name.clone(), pair[1].name.clone()] });
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use braid_types::InstanceName;
    use braid_types::model::{HandoverDef, MigrationRole, PodRef};

    use super::*;

    fn subnet() -> SubnetDef {
        SubnetDef {
            name: "s".into(),
            created: 0,
            network: "n".into(),
            cidr: "10.0.0.0/24".parse().unwrap(),
            gateway: None,
            ranges: vec![],
            excluded: vec![],
            reserved: vec![],
            vlan: None,
            block_size: 26,
            private: false,
            nat_outgoing: false,
            routing_table: None,
            ready: true,
            deleting: false,
        }
    }

    fn instance(address: &str, uid: &str) -> InstanceDef {
        let address: IpAddr = address.parse().unwrap();
        InstanceDef {
            name: InstanceName::new("", address),
            uid: "i".into(),
            network: "n".into(),
            subnet: "s".into(),
            prefix_len: 24,
            gateway: None,
            mac: None,
            pod: Some(PodRef { namespace: "d".into(), name: uid.into(), uid: uid.into() }),
            interface: "eth0".into(),
            node: Some("node1".into()),
            set: [address].into(),
            owner: None,
            retain_seconds: None,
            retain_until: None,
            reserved_at: None,
            declared: false,
            attached: false,
            phase: Phase::Bound,
            torn_down: None,
            release_at: None,
            handover: None,
            host_routed: false,
            deleting: false,
        }
    }

    fn pod(uid: &str, address: &str) -> PodAddresses {
        PodAddresses {
            name: format!("d/{uid}"),
            uid: uid.into(),
            finished: false,
            addresses: vec![address.parse().unwrap()],
        }
    }

    #[test]
    fn a_sound_cluster_has_no_findings() {
        let found = audit(
            &[pod("a", "10.0.0.5"), pod("host-network", "172.30.0.1")],
            &[instance("10.0.0.5", "a")],
            &[subnet()],
            &[],
        );
        assert_eq!(found, []);
    }

    #[test]
    fn each_defect_is_named() {
        let address: IpAddr = "10.0.0.5".parse().unwrap();
        let doubled = audit(
            &[pod("a", "10.0.0.5"), pod("b", "10.0.0.5")],
            &[instance("10.0.0.5", "a")],
            &[subnet()],
            &[],
        );
        assert_eq!(
            doubled,
            [
                Finding::Doubled { address, pods: ["d/a".into(), "d/b".into()] },
                Finding::Unclaimed { address, pod: "d/b".into() }
            ]
        );
        let orphaned = audit(&[], &[instance("10.0.0.5", "a")], &[subnet()], &[]);
        assert_eq!(orphaned, [Finding::Orphaned { address, pod: "d/a".into() }]);
        let homeless = audit(&[pod("a", "10.0.0.5")], &[instance("10.0.0.5", "a")], &[], &[]);
        assert_eq!(homeless, [Finding::Homeless { address, subnet: "s".into() }]);
        let block = |name: &str, cidr: &str| BlockDef {
            name: name.into(),
            subnet: "s".into(),
            cidr: cidr.parse().unwrap(),
            node: "node1".into(),
        };
        let overlapping = audit(&[], &[], &[], &[block("x", "10.0.0.0/26"), block("y", "10.0.0.32/27")]);
        assert_eq!(overlapping, [Finding::OverlappingBlocks { blocks: ["x".into(), "y".into()] }]);
    }

    #[test]
    fn the_second_pod_of_a_machine_that_migrates_is_no_defect() {
        let second = PodRef { namespace: "d".into(), name: "b".into(), uid: "b".into() };
        let (node, role) = ("node2".into(), MigrationRole::Target);
        let handover = HandoverDef { pod: second, node, role, torn_down: false };
        let shared = InstanceDef { handover: Some(Box::new(handover)), ..instance("10.0.0.5", "a") };
        let pods = [pod("a", "10.0.0.5"), pod("b", "10.0.0.5")];
        assert_eq!(audit(&pods, &[shared], &[subnet()], &[]), []);
    }

    #[test]
    fn a_finished_pod_holds_nothing() {
        let mut done = pod("a", "10.0.0.5");
        done.finished = true;
        let found = audit(&[done, pod("b", "10.0.0.5")], &[instance("10.0.0.5", "b")], &[subnet()], &[]);
        assert_eq!(found, []);
    }
}
