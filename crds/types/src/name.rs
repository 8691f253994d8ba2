//! Names of API objects that carry meaning.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::{Cidr, Symbol};

/// FNV-1a, 64 bit: stable over versions and machines, which `std`'s hasher does not promise.
#[must_use]
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Why a text is no IPInstance name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPInstance name; it is the address itself, 10.244.0.5 or fd00-0-0-0-0-0-0-5")]
pub struct InstanceNameError(pub String);

/// The name of an IPInstance: the address itself. Creating the object is therefore the atomic claim.
///
/// IPv4 is written as usual; IPv6 as eight groups joined by dashes without leading zeros; in an address space
/// other than the default one, `<space>.` stands in front.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceName {
    space: Symbol,
    address: IpAddr,
}

/// By address, then by space: sets of a hundred thousand names are searched without looking at a string.
impl Ord for InstanceName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.address.cmp(&other.address).then_with(|| self.space.cmp(&other.space))
    }
}

impl PartialOrd for InstanceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl InstanceName {
    /// The name of `address` in `space` (empty = the default space).
    #[must_use]
    pub fn new(space: &str, address: IpAddr) -> Self {
        Self { space: space.into(), address }
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The address space, empty for the default one.
    #[must_use]
    pub fn space(&self) -> &str {
        &self.space
    }
}

fn dashed(addr: Ipv6Addr) -> String {
    addr.segments().map(|s| format!("{s:x}")).join("-")
}

fn parse_dashed(s: &str) -> Option<IpAddr> {
    let mut groups = [0u16; 8];
    let mut parts = s.split('-');
    for g in &mut groups {
        *g = u16::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then(|| IpAddr::V6(groups.into()))
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.space.is_empty() {
            write!(f, "{}.", self.space)?;
        }
        match self.address {
            IpAddr::V4(a) => write!(f, "{a}"),
            IpAddr::V6(a) => f.write_str(&dashed(a)),
        }
    }
}

impl FromStr for InstanceName {
    type Err = InstanceNameError;

    fn from_str(s: &str) -> Result<Self, InstanceNameError> {
        let parse =
            |t: &str| t.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4).or_else(|| parse_dashed(t));
        let name = match (parse(s), s.split_once('.')) {
            (Some(address), _) => Some(Self { space: Symbol::default(), address }),
            (None, Some((space, rest))) => parse(rest).map(|address| Self { space: space.into(), address }),
            (None, None) => None,
        };
        // One address has one name: a second spelling would be a second claim.
        name.filter(|n| n.to_string() == s).ok_or_else(|| InstanceNameError(s.to_owned()))
    }
}

/// The name of the IPBlock of `cidr` in `subnet`: `<subnet>-<cidr dashed>`.
#[must_use]
pub fn block_name(subnet: &str, cidr: &Cidr) -> String {
    let base = match cidr.first() {
        IpAddr::V4(a) => a.to_string().replace('.', "-"),
        IpAddr::V6(a) => dashed(a),
    };
    format!("{subnet}-{base}-{}", cidr.prefix_len())
}

/// `s` as a label value: itself when it fits into 63 characters, else its first 46 and a hash of the whole.
#[must_use]
pub fn label_value(s: &str) -> String {
    if s.len() <= 63 {
        return s.to_owned();
    }
    let cut = s.char_indices().map(|(i, _)| i).take_while(|i| *i <= 46).last().unwrap_or(0);
    format!("{}-{:016x}", s[..cut].trim_end_matches(['-', '.', '_']), fnv1a(s.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_name() {
        for good in ["10.244.0.5", "fd00-0-0-0-0-0-0-5", "lab.10.0.0.1", "lab.fd00-0-0-0-0-0-0-5"] {
            assert_eq!(good.parse::<InstanceName>().unwrap().to_string(), good);
        }
        for bad in ["fd00-0-0-0-0-0-0-05", "FD00-0-0-0-0-0-0-5", "fd00--5", "10.0.0", "x", "10.0.0.01"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn long_labels_stay_distinct() {
        let (a, b) = ("x".repeat(80) + "1", "x".repeat(80) + "2");
        assert!(label_value(&a).len() <= 63 && label_value(&a) != label_value(&b));
    }
}
