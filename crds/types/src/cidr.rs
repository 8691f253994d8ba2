//! CIDR prefixes and inclusive address ranges of one family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::Family;

/// Why a text is no usable CIDR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `address/length`.
    #[error("`{0}` is not a CIDR; write it as address/length, for example 10.244.0.0/16")]
    Syntax(String),
    /// Bits are set behind the prefix.
    #[error("`{given}` has host bits set; write `{canonical}`")]
    HostBits {
        /// What was given.
        given: String,
        /// The same prefix with host bits cleared.
        canonical: String,
    },
    /// The range belongs to a kind of address that no pod can have.
    #[error("`{given}` is {what}; pods need unicast addresses")]
    NotUnicast {
        /// What was given.
        given: String,
        /// The kind of address: multicast, loopback and so on.
        what: &'static str,
    },
}

/// A canonical unicast prefix: no host bits, not multicast, loopback, link-local, unspecified or IPv4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

impl Cidr {
    /// Makes the prefix of `len` bits that contains `addr`. `None` if `len` is too long for the family.
    #[must_use]
    pub fn containing(addr: IpAddr, len: u8) -> Option<Self> {
        IpNet::new(addr, len).ok().map(|n| Self(n.trunc()))
    }

    /// The single-address prefix of `addr` (/32 or /128).
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNet::from(addr))
    }

    /// The family of the prefix.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.0.addr())
    }

    /// The first address: the network address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.0.network()
    }

    /// The last address; for IPv4 shorter than /31 this is the broadcast address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// Prefix length in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether the address lies within.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }

    /// Whether every address of `other` lies within.
    #[must_use]
    pub fn contains_cidr(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains_cidr(other) || other.contains_cidr(self)
    }

    /// Number of addresses; `u128::MAX` stands for the whole IPv6 space, which holds one more.
    #[must_use]
    pub fn size(&self) -> u128 {
        let host_bits = self.family().bits() - self.prefix_len();
        1u128.checked_shl(u32::from(host_bits)).unwrap_or(u128::MAX)
    }

    /// All addresses as a range, network and broadcast address included.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        AddrRange { first: self.first(), last: self.last() }
    }

    /// The addresses a pod may have: all of them, less network and broadcast address for IPv4 prefixes
    /// shorter than /31 (RFC 3021) and the subnet-router anycast address (RFC 4291 section 2.6.1) for IPv6
    /// prefixes shorter than /127 (RFC 6164).
    #[must_use]
    pub fn usable(&self) -> AddrRange {
        let family = self.family();
        let (first, last) = (Family::number(self.first()), Family::number(self.last()));
        if family.bits() - self.prefix_len() < 2 {
            return self.range();
        }
        let last = if family == Family::V4 { last - 1 } else { last };
        AddrRange { first: family.addr(first + 1), last: family.addr(last) }
    }

    /// The prefix as `ipnet` sees it.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.0
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(s: &str) -> Result<Self, CidrError> {
        let net: IpNet = s.parse().map_err(|_| CidrError::Syntax(s.to_owned()))?;
        if net.trunc() != net {
            return Err(CidrError::HostBits { given: s.to_owned(), canonical: net.trunc().to_string() });
        }
        match not_unicast(&net) {
            Some(what) => Err(CidrError::NotUnicast { given: s.to_owned(), what }),
            None => Ok(Self(net)),
        }
    }
}

/// Addresses that no pod can have, and what they are (IANA special-purpose registries, RFC 6890).
const NOT_UNICAST: [(IpNet, &str); 9] = [
    (v4(0, 8), "in 0.0.0.0/8 (this network)"),
    (v4(127, 8), "loopback"),
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)), "link-local"),
    (v4(224, 4), "multicast"),
    (v4(240, 4), "in 240.0.0.0/4 (reserved)"),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 127)), "loopback or unspecified"),
    (
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96)),
        "IPv4-mapped (::ffff:0:0/96)",
    ),
    (v6(0xfe80, 10), "link-local"),
    (v6(0xff00, 8), "multicast"),
];

const fn v4(octet: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(octet, 0, 0, 0), len))
}

const fn v6(group: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(group, 0, 0, 0, 0, 0, 0, 0), len))
}

/// Says what kind of address a prefix holds that no pod can have; `None` where it holds none of these.
fn not_unicast(net: &IpNet) -> Option<&'static str> {
    NOT_UNICAST
        .iter()
        .find(|(special, _)| special.contains(net) || net.contains(special))
        .map(|(_, what)| *what)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(s: String) -> Result<Self, CidrError> {
        s.parse()
    }
}

impl From<Cidr> for String {
    fn from(c: Cidr) -> Self {
        c.to_string()
    }
}

/// Why a text is no usable address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// None of the accepted forms.
    #[error("`{0}` is not an address, a range (first-last) or a CIDR")]
    Syntax(String),
    /// The two ends are of different families.
    #[error("`{0}` mixes IPv4 and IPv6")]
    MixedFamilies(String),
    /// A CIDR with bits set behind its prefix: one address, or all of the prefix?
    #[error(
        "`{0}` has bits set behind its prefix; write {address} for this address alone, or {prefix} for any of the prefix",
        address = .0.addr(),
        prefix = .0.trunc()
    )]
    HostBits(IpNet),
    /// The end comes before the start.
    #[error("`{0}` ends before it starts; swap the two addresses")]
    Reversed(String),
}

/// An inclusive range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddrRange {
    /// A range from `first` to `last`, both included. `None` if families differ or the order is wrong.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// The range of one address.
    #[must_use]
    pub fn single(addr: IpAddr) -> Self {
        Self { first: addr, last: addr }
    }

    /// The family of both ends.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// First address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the address lies within.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && self.first <= addr && addr <= self.last
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.intersection(other).is_some()
    }

    /// The addresses in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.family() != other.family() {
            return None;
        }
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Number of addresses, saturating at `u128::MAX`.
    #[must_use]
    pub fn size(&self) -> u128 {
        (Family::number(self.last) - Family::number(self.first)).saturating_add(1)
    }
}

impl FromStr for AddrRange {
    type Err = RangeError;

    /// Reads `10.0.0.5`, `10.0.0.5-10.0.0.9` or `10.0.0.0/28`.
    fn from_str(s: &str) -> Result<Self, RangeError> {
        let syntax = || RangeError::Syntax(s.to_owned());
        if let Some((a, b)) = s.split_once('-') {
            let (first, last): (IpAddr, IpAddr) =
                (a.trim().parse().map_err(|_| syntax())?, b.trim().parse().map_err(|_| syntax())?);
            if Family::of(first) != Family::of(last) {
                return Err(RangeError::MixedFamilies(s.to_owned()));
            }
            return Self::new(first, last).ok_or_else(|| RangeError::Reversed(s.to_owned()));
        }
        if s.contains('/') {
            let net: IpNet = s.parse().map_err(|_| syntax())?;
            if net.addr() != net.network() {
                return Err(RangeError::HostBits(net));
            }
            return Ok(Self { first: net.network(), last: net.broadcast() });
        }
        s.parse().map(Self::single).map_err(|_| syntax())
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_no_pod_can_have() {
        for bad in [
            "10.0.0.1/8",
            "0.0.0.0/0",
            "224.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "::ffff:0:0/96",
            "ff00::/8",
            "fe80::/64",
            "10.0.0.0",
            "::1/128",
            "169.0.0.0/8",
            "::/0",
            "::/64",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn usable_leaves_out_the_addresses_with_a_meaning() {
        let usable = |s: &str| s.parse::<Cidr>().unwrap().usable().to_string();
        assert_eq!(usable("10.0.0.0/24"), "10.0.0.1-10.0.0.254");
        assert_eq!(usable("10.0.0.0/31"), "10.0.0.0-10.0.0.1");
        assert_eq!(usable("10.0.0.4/32"), "10.0.0.4");
        assert_eq!(usable("fd00::/126"), "fd00::1-fd00::3");
        assert_eq!(usable("fd00::/127"), "fd00::-fd00::1");
    }

    #[test]
    fn ranges_read_all_three_forms() {
        let r = |s: &str| s.parse::<AddrRange>().map(|r| r.to_string());
        assert_eq!(r("10.0.0.5").unwrap(), "10.0.0.5");
        assert_eq!(r("10.0.0.5-10.0.0.9").unwrap(), "10.0.0.5-10.0.0.9");
        assert_eq!(r("10.0.0.0/30").unwrap(), "10.0.0.0-10.0.0.3");
        assert!(matches!(r("10.0.0.9-10.0.0.5"), Err(RangeError::Reversed(_))));
        assert!(matches!(r("10.0.0.9-fd00::1"), Err(RangeError::MixedFamilies(_))));
        assert_eq!(
            r("10.77.0.60/20").unwrap_err().to_string(),
            "`10.77.0.60/20` has bits set behind its prefix; write 10.77.0.60 for this address alone, or 10.77.0.0/20 for any of \
             the prefix"
        );
        assert_eq!(r("10.77.0.60/32").unwrap(), "10.77.0.60");
    }
}
