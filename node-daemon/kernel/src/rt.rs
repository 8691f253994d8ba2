//! rtnetlink: one module per noun, each with its requests and its reader.
//!
//! Numbers are those of `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`, `linux/neighbour.h` and
//! `linux/fib_rules.h`.

pub(crate) mod addr;
pub(crate) mod link;
pub(crate) mod neigh;
pub(crate) mod route;
pub(crate) mod rule;

use std::collections::BTreeMap;

use braid_node_core::actual::Actual;
use braid_types::{Family, IfName};

use crate::error::KernelError;

/// `AF_UNSPEC` and `AF_BRIDGE`.
pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_BRIDGE: u8 = 7;

/// `AF_INET` or `AF_INET6`.
pub(crate) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The family of a number, for those that we work with.
pub(crate) fn family(number: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|f| family_number(*f) == number)
}

/// Names and indexes of devices at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Devices {
    by_name: BTreeMap<IfName, u32>,
    by_index: BTreeMap<u32, IfName>,
}

impl Devices {
    pub(crate) fn of(actual: &Actual) -> Self {
        actual.links.iter().map(|(name, link)| (name.clone(), link.index)).collect()
    }

    pub(crate) fn index(&self, name: &IfName) -> Result<u32, KernelError> {
        self.by_name.get(name).copied().ok_or_else(|| KernelError::NoDevice(name.clone()))
    }

    pub(crate) fn name(&self, index: u32) -> Option<&IfName> {
        self.by_index.get(&index)
    }
}

impl FromIterator<(IfName, u32)> for Devices {
    fn from_iter<I: IntoIterator<Item = (IfName, u32)>>(pairs: I) -> Self {
        let by_name: BTreeMap<IfName, u32> = pairs.into_iter().collect();
        Self { by_index: by_name.iter().map(|(n, i)| (*i, n.clone())).collect(), by_name }
    }
}
