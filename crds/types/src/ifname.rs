//! Names of network devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Vni;
use crate::name::fnv1a;

/// Longest device name the kernel takes: `IFNAMSIZ` less the closing zero.
const MAX_LEN: usize = 15;

/// Why a text is no usable device name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a device name: 1 to 15 characters, no white space, `/` or `:`, and neither `.` nor `..`"
)]
pub struct IfNameError(pub String);

/// A name that the kernel accepts for a network device (`dev_valid_name` in net/core/dev.c).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether no character of a name is one that the kernel refuses.
fn all_legal(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(s: &str) -> Result<Self, IfNameError> {
        let ok = !s.is_empty() && s.len() <= MAX_LEN && s != "." && s != ".." && all_legal(s);
        if ok { Ok(Self(s.to_owned())) } else { Err(IfNameError(s.to_owned())) }
    }
}

impl TryFrom<String> for IfName {
    type Error = IfNameError;

    fn try_from(s: String) -> Result<Self, IfNameError> {
        s.parse()
    }
}

impl From<IfName> for String {
    fn from(n: IfName) -> Self {
        n.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device name or a glob over device names (`*` stands for any run of characters).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfPattern(String);

impl IfPattern {
    /// Whether the device name fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(i) => rest = &rest[i + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl FromStr for IfPattern {
    type Err = IfNameError;

    fn from_str(s: &str) -> Result<Self, IfNameError> {
        let bare = s.replace('*', "");
        let legal =
            if bare == s { s.parse::<IfName>().is_ok() } else { bare.len() <= MAX_LEN && all_legal(&bare) };
        if !legal {
            return Err(IfNameError(s.to_owned()));
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for IfPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host end of a pod's veth pair: `braid` and ten hex digits derived from container id and interface.
///
/// The name depends on what the runtime hands to DEL and to nothing else, so that DEL needs no lookup.
#[must_use]
pub fn host_veth_name(container_id: &str, ifname: &str) -> IfName {
    let h = fnv1a(format!("{container_id}/{ifname}").as_bytes());
    IfName(format!("braid{:010x}", h & 0xff_ffff_ffff))
}

/// The VXLAN device of a VNI on a parent, `<parent>.vxlan<vni>`, and its full name where that had to be shortened.
///
/// A name longer than the kernel takes becomes `bv` with eleven hex digits of a hash; the full name then
/// belongs into the link's alias, so that people and a restarted agent recognise it.
#[must_use]
pub fn vxlan_device_name(parent: &IfName, vni: Vni) -> (IfName, String) {
    let full = format!("{parent}.vxlan{vni}");
    let name = if full.len() <= MAX_LEN {
        full.clone()
    } else {
        format!("bv{:011x}", fnv1a(full.as_bytes()) & 0xfff_ffff_ffff)
    };
    (IfName(name), full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let m = |p: &str, n: &str| p.parse::<IfPattern>().unwrap().matches(n);
        assert!(m("eth*", "eth0") && m("*", "x") && m("e*h*0", "eth10") && m("bond0", "bond0"));
        assert!(!m("eth*", "veth0") && !m("bond0", "bond01") && !m("e*h*0", "eth1") && !m("ab*ba", "aba"));
    }

    #[test]
    fn long_parents_give_short_stable_names() {
        let vni = Vni::try_from(16_777_215).unwrap();
        let (short, full) = vxlan_device_name(&"eth0".parse().unwrap(), Vni::try_from(4).unwrap());
        assert_eq!((short.as_str(), full.as_str()), ("eth0.vxlan4", "eth0.vxlan4"));
        let (short, full) = vxlan_device_name(&"enp129s0f1np1".parse().unwrap(), vni);
        assert_eq!(full, "enp129s0f1np1.vxlan16777215");
        assert!(short.as_str().parse::<IfName>().is_ok());
    }
}
