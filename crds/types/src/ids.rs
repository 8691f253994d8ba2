//! Numbers with a legal range.

use serde::{Deserialize, Serialize};

/// A number outside its legal range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is out of range; use {min} to {max}")]
pub struct IdError {
    /// What the number is for.
    pub what: &'static str,
    /// The number given.
    pub value: i64,
    /// Smallest legal value.
    pub min: i64,
    /// Largest legal value.
    pub max: i64,
}

macro_rules! bounded_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $what:literal, $min:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "i64", into = "i64")]
        pub struct $name($inner);

        impl $name {
            /// The number.
            #[must_use]
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl TryFrom<i64> for $name {
            type Error = IdError;

            fn try_from(value: i64) -> Result<Self, IdError> {
                <$inner>::try_from(value)
                    .ok()
                    .filter(|_| ($min..=$max).contains(&value))
                    .map(Self)
                    .ok_or(IdError { what: $what, value, min: $min, max: $max })
            }
        }

        impl From<$name> for i64 {
            fn from(id: $name) -> i64 {
                i64::from(id.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bounded_id!(
    /// VXLAN network identifier (RFC 7348 section 5): 24 bits, 0 is left out.
    Vni, u32, "VNI", 1, 16_777_215
);
bounded_id!(
    /// VLAN id (IEEE 802.1Q): 1 to 4094; 0 means untagged.
    VlanId, u16, "VLAN id", 0, 4094
);
bounded_id!(
    /// Autonomous system number (RFC 6793), 4 octets; 0 is reserved (RFC 7607).
    Asn, u32, "ASN", 1, 4_294_967_294
);
