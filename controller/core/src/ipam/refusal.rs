//! Why a pod gets no address: a sentence for people, a reason for machines, and what could help.

use std::fmt;
use std::net::IpAddr;

use braid_types::model::{InstanceDef, OwnerRef, Phase};
use braid_types::{AddrRange, Family, InstanceName};

use super::Topic;
use crate::pool::Usage;

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A pod.
    Pod {
        /// `namespace/name`.
        pod: String,
        /// Its node, if known.
        node: Option<String>,
    },
    /// A node: the address of its tunnel end.
    Node(String),
    /// Kept for an owner, `StatefulSet shop/db`.
    Owner(String),
    /// Given back a moment ago and cooling down.
    Cooling,
    /// A grant that is being made right now.
    Grant,
}

impl Holder {
    pub(crate) fn of(instance: &InstanceDef) -> Self {
        if instance.phase == Phase::Releasing {
            return Self::Cooling;
        }
        Self::of_pod(instance)
    }

    /// Who has it, whether or not it is being given back.
    pub(crate) fn of_pod(instance: &InstanceDef) -> Self {
        match (&instance.pod, &instance.owner) {
            (Some(p), _) => Self::Pod {
                pod: format!("{}/{}", p.namespace, p.name),
                node: instance.node.as_ref().map(ToString::to_string),
            },
            (None, Some(o)) if o.kind == "Node" => Self::Node(o.name.to_string()),
            (None, Some(o)) => Self::Owner(owner_in_words(o)),
            (None, None) => Self::Owner(format!("IPInstance {}", instance.name)),
        }
    }
}

impl Holder {
    /// What who asked for the address can do.
    fn remedy(&self) -> &'static str {
        match self {
            Self::Node(_) => "ask for another address",
            Self::Cooling | Self::Grant => "wait, or ask for another address",
            Self::Pod { .. } | Self::Owner(_) => "free it or ask for another address",
        }
    }
}

/// `StatefulSet shop/db, pod db-0`: an owner in a sentence.
pub(crate) fn owner_in_words(owner: &OwnerRef) -> String {
    let slash = if owner.namespace.is_empty() { "" } else { "/" };
    let pod = owner.pod.as_ref().map(|pod| format!(", pod {pod}")).unwrap_or_default();
    format!("{} {}{slash}{}{pod}", owner.kind, owner.namespace, owner.name)
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { pod, node: Some(node) } => write!(f, "pod {pod} on node {node}"),
            Self::Pod { pod, node: None } => write!(f, "pod {pod}"),
            Self::Node(node) => write!(f, "node {node} itself"),
            Self::Owner(owner) => f.write_str(owner),
            Self::Cooling => {
                f.write_str("nobody any more, and free again when it has cooled down after its last use")
            }
            Self::Grant => {
                f.write_str("somebody who is being given it right now, or an object that cannot be read")
            }
        }
    }
}

/// A Subnet without a free address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// Its name.
    pub subnet: String,
    /// Its counts.
    pub usage: Usage,
}

/// Why no address was given. `Display` is the sentence for the pod's Event, its condition and the CNI error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pod names no Network and there is no default one.
    #[error(
        "no Network is chosen: the pod names none and no usable Network has spec.default=true; annotate the pod \
         or its namespace with braid.network/network, or create a default Network"
    )]
    NoDefaultNetwork,
    /// The Network does not exist.
    #[error("Network {network} does not exist; create it, or correct the annotation braid.network/network")]
    NetworkMissing {
        /// Its name.
        network: String,
    },
    /// The Network exists but cannot be used now.
    #[error("Network {network} is not ready: {why}")]
    NetworkNotReady {
        /// Its name.
        network: String,
        /// What is wrong, with the remedy where there is one.
        why: String,
    },
    /// This version cannot realise the type.
    #[error("Network {network} is of {what}, which this version does not support; choose another Network")]
    NotSupported {
        /// Its name.
        network: String,
        /// Its type, as far as that matters.
        what: String,
    },
    /// The Network's `allowedNamespaces` leaves the namespace out.
    #[error(
        "namespace {namespace} may not use Network {network}: its labels do not match spec.allowedNamespaces; \
         label the namespace or choose another Network"
    )]
    NamespaceNotAllowed {
        /// The Network.
        network: String,
        /// The pod's namespace.
        namespace: String,
    },
    /// The pod landed on a node that does not take part in the Network.
    #[error(
        "node {node} is no member of Network {network}: its labels do not match spec.nodeSelector; give the pod a \
         node selector that does, or label the node"
    )]
    NotMember {
        /// The Network.
        network: String,
        /// The pod's node.
        node: String,
    },
    /// The pod's node is not there (yet).
    #[error("node {node} is not known; this passes when the Node object appears")]
    NodeMissing {
        /// The pod's node.
        node: String,
    },
    /// A named Subnet does not exist.
    #[error("Subnet {subnet} does not exist; create it, or correct the annotation braid.network/subnet")]
    SubnetMissing {
        /// Its name.
        subnet: String,
    },
    /// A named Subnet belongs to another Network.
    #[error(
        "Subnet {subnet} belongs to Network {actual}, not to {network}; correct one of the two annotations"
    )]
    SubnetOfOtherNetwork {
        /// The Subnet.
        subnet: String,
        /// The Network it belongs to.
        actual: String,
        /// The Network that was asked for.
        network: String,
    },
    /// A Subnet that is needed cannot be used now.
    #[error("Subnet {subnet} is not ready: {why}")]
    SubnetNotReady {
        /// Its name.
        subnet: String,
        /// What is wrong.
        why: String,
    },
    /// No Subnet of a family that is needed.
    #[error(
        "Network {network} has no Subnet for {}; create one (private ones count only when the pod names them)",
        family.map_or("any family".to_owned(), |f| f.to_string())
    )]
    NoSubnet {
        /// The Network.
        network: String,
        /// The family; `None` = it has no Subnet at all.
        family: Option<Family>,
    },
    /// Every Subnet that could serve is full.
    #[error("{}", full_sentence(*family, subnets))]
    SubnetFull {
        /// The Network; another Subnet there would help.
        network: String,
        /// The family.
        family: Family,
        /// The Subnets that were tried.
        subnets: Vec<Full>,
    },
    /// A fixed address is taken.
    #[error("{address} of Subnet {subnet} is held by {holder}; {}", holder.remedy())]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Its Subnet.
        subnet: String,
        /// Who has it.
        holder: Box<Holder>,
    },
    /// The pod's own address is still with its predecessor.
    #[error(
        "{} is kept for {owner}, and {holder} may still use it; it changes hands when that node has confirmed that the \
         interface is gone, when the Node object is deleted, or after the orphan timeout",
        address.address()
    )]
    StillHeld {
        /// The address.
        address: InstanceName,
        /// In whose name it is kept.
        owner: String,
        /// Who has it.
        holder: Box<Holder>,
    },
    /// The pod asks for something else than what is kept for it.
    #[error(
        "{} of Network {network}, Subnet {subnet} is kept for {owner}, but the annotations of the pod ask for another \
         address; remove them, or give up what is kept with: kubectl delete ipi {address}",
        address.address()
    )]
    KeptElsewhere {
        /// The address that is kept.
        address: InstanceName,
        /// Its Network.
        network: String,
        /// Its Subnet.
        subnet: String,
        /// In whose name it is kept.
        owner: String,
    },
    /// Every address of the pod's own pool is taken.
    #[error(
        "all {size} addresses of the pool {pool} are taken (Subnet {}: {}); add addresses to the annotation \
         braid.network/ips, as a rolling update needs maxSurge more than there are replicas and each address rests when its \
         pod has ended, and keep others out by spec.reservedIPs of the Subnet",
        subnets.join(", "),
        held(*size, holders)
    )]
    PoolExhausted {
        /// The ranges that were asked for.
        pool: String,
        /// How many addresses of them the Subnets have.
        size: u128,
        /// The Subnets that hold them.
        subnets: Vec<String>,
        /// Who has which: the first few.
        holders: Vec<(IpAddr, Holder)>,
    },
    /// No Subnet that the pod may use holds a fixed address.
    #[error("{range} is in no Subnet of {network}; ask for an address of one of its Subnets")]
    AddressOutside {
        /// What was asked for.
        range: AddrRange,
        /// `Network x`, or "any Network".
        network: String,
    },
    /// A fixed address is one that the Subnet never gives out.
    #[error(
        "{range} is never given out by Subnet {subnet}: it is the gateway, excluded, or outside spec.ranges; ask \
         for another address or change the Subnet"
    )]
    AddressExcluded {
        /// What was asked for.
        range: AddrRange,
        /// The Subnet.
        subnet: String,
    },
    /// A fixed address is of a family that the pod does not want.
    #[error("{range} is {}, but braid.network/ip-family asks for {wanted} only; correct one of the two", range.family())]
    FamilyMismatch {
        /// What was asked for.
        range: AddrRange,
        /// The family that is wanted.
        wanted: Family,
    },
}

/// How many holders of a pool are named.
pub(super) const NAMED: usize = 4;

fn held(size: u128, holders: &[(IpAddr, Holder)]) -> String {
    let named: Vec<String> =
        holders.iter().map(|(address, holder)| format!("{address} by {holder}")).collect();
    let more = size.saturating_sub(holders.len() as u128);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

fn full_sentence(family: Family, subnets: &[Full]) -> String {
    let list: Vec<String> = subnets
        .iter()
        .map(|Full { subnet, usage: u }| {
            let cooling = if u.cooling > 0 { format!(", {} cooling down", u.cooling) } else { String::new() };
            let reserved = if u.reserved > 0 { format!(", {} reserved", u.reserved) } else { String::new() };
            format!("Subnet {subnet} is full: {} of {} addresses in use{reserved}{cooling}", u.used, u.total)
        })
        .collect();
    format!("no free {family} address: {}; delete pods, or add ranges or another Subnet", list.join("; "))
}

impl Refusal {
    /// The reason in CamelCase: of the Event, of the condition, and the label in metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDefaultNetwork => "NoDefaultNetwork",
            Self::NetworkMissing { .. } => "NetworkMissing",
            Self::NetworkNotReady { .. } => "NetworkNotReady",
            Self::NotSupported { .. } => "NotSupported",
            Self::NamespaceNotAllowed { .. } => "NamespaceNotAllowed",
            Self::NotMember { .. } => "NotMember",
            Self::NodeMissing { .. } => "NodeMissing",
            Self::SubnetMissing { .. } => "SubnetMissing",
            Self::SubnetOfOtherNetwork { .. } => "SubnetOfOtherNetwork",
            Self::SubnetNotReady { .. } => "SubnetNotReady",
            Self::NoSubnet { .. } => "NoSubnet",
            Self::SubnetFull { .. } => "SubnetFull",
            Self::AddressTaken { .. } => "AddressTaken",
            Self::StillHeld { .. } => "AddressStillHeld",
            Self::KeptElsewhere { .. } => "AddressKeptElsewhere",
            Self::PoolExhausted { .. } => "PoolExhausted",
            Self::AddressOutside { .. } => "AddressOutside",
            Self::AddressExcluded { .. } => "AddressExcluded",
            Self::FamilyMismatch { .. } => "FamilyMismatch",
        }
    }

    /// Whether it may pass without anybody changing the pod: CNI error 11 (try again later), else 7.
    #[must_use]
    pub fn retryable(&self) -> bool {
        !matches!(
            self,
            Self::NotSupported { .. }
                | Self::SubnetOfOtherNetwork { .. }
                | Self::AddressExcluded { .. }
                | Self::FamilyMismatch { .. }
        )
    }

    /// What could help, beside a change of the pod itself.
    #[must_use]
    pub fn retry_on(&self) -> Vec<Topic> {
        let net = |n: &String| Topic::Network(n.clone());
        let sub = |n: &String| Topic::Subnet(n.clone());
        match self {
            Self::NoDefaultNetwork | Self::AddressOutside { .. } => vec![Topic::AnyNetwork],
            Self::NetworkMissing { network }
            | Self::NetworkNotReady { network, .. }
            | Self::NotSupported { network, .. }
            | Self::NoSubnet { network, .. } => vec![net(network)],
            Self::NamespaceNotAllowed { network, namespace } => {
                vec![net(network), Topic::Namespace(namespace.clone())]
            }
            Self::NotMember { network, node } => vec![net(network), Topic::Node(node.clone())],
            Self::SubnetMissing { subnet }
            | Self::SubnetOfOtherNetwork { subnet, .. }
            | Self::SubnetNotReady { subnet, .. }
            | Self::AddressTaken { subnet, .. }
            | Self::AddressExcluded { subnet, .. } => vec![sub(subnet)],
            Self::StillHeld { address, .. } | Self::KeptElsewhere { address, .. } => {
                vec![Topic::Address(address.clone())]
            }
            Self::PoolExhausted { subnets, .. } => subnets.iter().map(sub).collect(),
            Self::SubnetFull { network, subnets, .. } => {
                subnets.iter().map(|f| sub(&f.subnet)).chain([net(network)]).collect()
            }
            Self::NodeMissing { node } => vec![Topic::Node(node.clone())],
            Self::FamilyMismatch { .. } => Vec::new(),
        }
    }
}
