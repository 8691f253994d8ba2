//! Braid's kinds as the Kubernetes API has them, and the way from there to the parsed model.
//!
//! One file per kind. The CRD YAML in `crds/yaml` is made from these types by `crdgen`. [`parse`] turns objects
//! into the model of `braid-types`; [`slim`] has Kubernetes' own kinds cut down to what Braid reads.

#![expect(unreachable_pub, reason = "derive(KubeSchema) repeats every public struct inside a function")]
#![expect(clippy::duplicated_attributes, reason = "printer columns and rules repeat attribute names")]

mod bgp;
pub mod condition;
pub mod crd;
#[cfg(any(test, feature = "testing"))]
pub mod examples;
mod ip_block;
mod ip_instance;
mod network;
mod node_network;
pub mod parse;
mod rule;
mod selector;
pub mod slim;
mod subnet;

pub use bgp::{Bfd, BgpAdvertise, BgpPeer, BgpScope, BgpSpec, GracefulRestart, SecretKeyReference};
pub use ip_block::{IPBlock, IPBlockSpec};
pub use ip_instance::{
    Handover, HandoverRole, IPInstance, IPInstanceSpec, IPInstanceStatus, InstancePhase, OwnerReference,
    PodReference,
};
pub use network::{
    AddressCounts, BridgeSpec, DirectSpec, Encapsulation, IpipSpec, IpvlanSpec, MacvlanMode, MacvlanSpec,
    Network, NetworkClass, NetworkSpec, NetworkStatus, NetworkType, NodeCounts, UdpSpec, VlanSpec, VxlanSpec,
};
pub use node_network::{
    BgpSession, BgpState, NodeNetwork, NodeNetworkEntry, NodeNetworkSpec, NodeNetworkStatus, Vtep,
};
pub use parse::{ParseError, Problem};
pub use selector::{LabelRequirement, LabelSelector, LabelValue, SelectorOperator};
pub use subnet::{Subnet, SubnetSpec, SubnetStatus};

#[cfg(test)]
mod schema_tests;
