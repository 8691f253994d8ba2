//! Validated words of Braid's domain: what a CIDR, an address range, a MAC or a device name may be,
//! and the parsed form of every API kind.
//!
//! **Invariant:** this crate depends on nothing of ours and knows neither Kubernetes clients nor the
//! kernel. A value of one of these types has been checked; later code never checks it again.

pub mod annotation;
mod cidr;
pub mod duration;
mod family;
mod ids;
mod ifname;
mod mac;
pub mod model;
mod name;
mod selector;
mod symbol;
pub mod well_known;

pub use cidr::{AddrRange, Cidr, CidrError, RangeError};
pub use family::{Family, PerFamily};
pub use ids::{Asn, IdError, VlanId, Vni};
pub use ifname::{IfName, IfNameError, IfPattern, host_veth_name, vxlan_device_name};
pub use mac::{Mac, MacError};
pub use name::{InstanceName, InstanceNameError, block_name, label_value};
pub use selector::{Operator, Requirement, Selector};
pub use symbol::Symbol;
