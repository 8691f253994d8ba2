//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no usable MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six hex pairs.
    #[error("`{0}` is not a MAC address; write six hex pairs, for example 02:42:ac:11:00:02")]
    Syntax(String),
    /// The group bit is set, or all octets are zero.
    #[error("`{0}` is a multicast or zero address; an interface needs a unicast MAC")]
    NotUnicast(String),
}

/// A unicast 48-bit hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Takes octets as they are; `None` for a multicast or all-zero address.
    #[must_use]
    pub fn new(octets: [u8; 6]) -> Option<Self> {
        (octets[0] & 1 == 0 && octets != [0; 6]).then_some(Self(octets))
    }

    /// A locally administered address derived from `seed`: the same seed always gives the same address, so a
    /// device that is made again is known to its peers at once.
    #[must_use]
    pub fn derived(seed: &[u8]) -> Self {
        let h = crate::name::fnv1a(seed).to_be_bytes();
        Self([0x02 | (h[0] & 0xfc), h[1], h[2], h[3], h[4], h[5]])
    }

    /// The six octets in transmission order.
    #[must_use]
    pub fn octets(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, MacError> {
        let mut octets = [0u8; 6];
        let mut parts = s.split([':', '-']);
        for o in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2);
            *o = part
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| MacError::Syntax(s.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(MacError::Syntax(s.to_owned()));
        }
        Self::new(octets).ok_or_else(|| MacError::NotUnicast(s.to_owned()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(s: String) -> Result<Self, MacError> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> Self {
        m.to_string()
    }
}
