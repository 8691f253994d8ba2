//! What the annotations of a pod or namespace ask for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::well_known::annotation;
use crate::{AddrRange, Family, IfName, IfNameError, Mac, MacError, RangeError};

/// Longest list in an annotation, by `;` or `,`: more is a mistake, and would be paid for by every reader.
const MAX_ENTRIES: usize = 1024;

/// All keys that mean something.
const KNOWN: [&str; 9] = [
    annotation::NETWORK,
    annotation::SUBNET,
    annotation::IP_FAMILY,
    annotation::IPS,
    annotation::MAC,
    annotation::IP_RETAIN,
    annotation::IP_RETAIN_TTL,
    annotation::NETWORKS,
    annotation::DEFAULT_ROUTE,
];

/// Those that mean something on a namespace.
const OF_NAMESPACES: [&str; 3] = [annotation::NETWORK, annotation::SUBNET, annotation::IP_FAMILY];

/// An annotation that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}{at}: {problem}", at = At(*.entry))]
pub struct AnnotationError {
    /// Key of the annotation.
    pub key: &'static str,
    /// Which entry of a list it is, counted from 1; `None` where the value is no list.
    pub entry: Option<usize>,
    /// What is wrong.
    pub problem: AnnotationProblem,
}

struct At(Option<usize>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |n| write!(f, " (entry {n})"))
    }
}

/// What is wrong with an annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationProblem {
    /// Nothing where something is needed.
    #[error("is empty; remove the annotation or give it a value")]
    Empty,
    /// Neither of the words that are known.
    #[error("`{given}` is not known; use {known}")]
    Word {
        /// What was given.
        given: String,
        /// What could be given.
        known: &'static str,
    },
    /// Not the name of an API object.
    #[error("`{0}` is not a name; use lower-case letters, digits and dashes, at most 63 of them")]
    Name(String),
    /// More than one Subnet per family.
    #[error("names {0} Subnets; name at most two, one per family")]
    TooManySubnets(usize),
    /// Not a length of time.
    #[error("`{0}` is not a length of time; use a number and a unit, such as 90s, 30m, 24h or 7d")]
    Duration(String),
    /// A list without end.
    #[error("has {0} entries; use at most {MAX_ENTRIES}")]
    TooMany(usize),
    /// Not an address or range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Not a hardware address.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// Not a device name.
    #[error(transparent)]
    Device(#[from] IfNameError),
    /// Not the JSON that is expected.
    #[error("is not a JSON list of {{network, subnet, interface, ips, mac, default-route}}: {0}")]
    Json(String),
    /// Two interfaces of the same name.
    #[error("interface `{0}` is there twice; give each attachment its own name")]
    SameInterface(String),
}

/// Which families an interface gets addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FamilyPolicy {
    /// Exactly this one.
    Only(Family),
    /// Both, or the pod is refused.
    DualStack,
    /// Those that the Network has.
    PreferDualStack,
}

impl FromStr for FamilyPolicy {
    type Err = AnnotationProblem;

    fn from_str(s: &str) -> Result<Self, AnnotationProblem> {
        match s {
            "IPv4" => Ok(Self::Only(Family::V4)),
            "IPv6" => Ok(Self::Only(Family::V6)),
            "DualStack" => Ok(Self::DualStack),
            "PreferDualStack" => Ok(Self::PreferDualStack),
            _ => Err(AnnotationProblem::Word {
                given: s.to_owned(),
                known: "IPv4, IPv6, DualStack or PreferDualStack",
            }),
        }
    }
}

impl fmt::Display for FamilyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(family) => family.fmt(f),
            Self::DualStack => f.write_str("DualStack"),
            Self::PreferDualStack => f.write_str("PreferDualStack"),
        }
    }
}

/// Values for the pods of a set: one for all of them, or one per ordinal (`a;b;c`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByOrdinal<T>(Vec<T>);

impl<T> ByOrdinal<T> {
    /// The value for the pod of this ordinal (`web-2` of a StatefulSet has 2).
    ///
    /// A single value is for every pod. Of a longer list, a pod without ordinal gets none, nor does one whose
    /// ordinal is past the end.
    #[must_use]
    pub fn pick(&self, ordinal: Option<usize>) -> Option<&T> {
        match (self.0.as_slice(), ordinal) {
            ([one], _) => Some(one),
            (all, Some(n)) => all.get(n),
            (_, None) => None,
        }
    }

    /// All values in the order of ordinals.
    #[must_use]
    pub fn all(&self) -> &[T] {
        &self.0
    }
}

/// Addresses that an interface may have: it gets one per family out of these.
pub type Addresses = Vec<AddrRange>;

/// What a pod or namespace asks for its default interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkChoice {
    /// Name of the Network.
    pub network: Option<String>,
    /// Names of Subnets, at most one per family.
    pub subnets: Vec<String>,
    /// Families.
    pub family: Option<FamilyPolicy>,
    /// Fixed addresses or pools of them.
    pub ips: Option<ByOrdinal<Addresses>>,
    /// Fixed hardware addresses.
    pub mac: Option<ByOrdinal<Mac>>,
    /// Whether addresses are kept over re-creation; `None` leaves it to the kind of owner.
    pub retain: Option<bool>,
    /// How long they are kept without a pod, in seconds; `None` = as long as the owner exists.
    pub retain_seconds: Option<u32>,
}

impl NetworkChoice {
    /// Reads the annotations of a pod.
    ///
    /// # Errors
    /// The first annotation that cannot be understood.
    pub fn of_pod(annotations: &BTreeMap<String, String>) -> Result<Self, AnnotationError> {
        Ok(Self {
            ips: read(annotations, annotation::IPS, |key, v| by_ordinal(key, v, addresses))?,
            mac: read(annotations, annotation::MAC, |key, v| by_ordinal(key, v, mac))?,
            retain: read(annotations, annotation::IP_RETAIN, boolean)?,
            retain_seconds: read(annotations, annotation::IP_RETAIN_TTL, duration)?,
            ..Self::of_namespace(annotations)?
        })
    }

    /// Reads the annotations of a namespace, which say nothing about single addresses.
    ///
    /// # Errors
    /// The first annotation that cannot be understood.
    pub fn of_namespace(annotations: &BTreeMap<String, String>) -> Result<Self, AnnotationError> {
        Ok(Self {
            network: read(annotations, annotation::NETWORK, |key, v| name(v).map_err(error(key, None)))?,
            subnets: read(annotations, annotation::SUBNET, subnets)?.unwrap_or_default(),
            family: read(annotations, annotation::IP_FAMILY, |key, v| v.parse().map_err(error(key, None)))?,
            ..Self::default()
        })
    }

    /// Whether nothing is said about where addresses come from, so that the next level decides: a level counts
    /// as a whole or not at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.network.is_none() && self.subnets.is_empty() && self.family.is_none() && self.ips.is_none()
    }
}

/// A secondary interface straight from a Network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecondaryChoice {
    /// Name of the Network.
    pub network: String,
    /// Names of Subnets, at most one per family.
    pub subnets: Vec<String>,
    /// Name of the interface in the pod; `None` = the next free `netN`.
    pub interface: Option<IfName>,
    /// Fixed addresses or pools of them.
    pub ips: Option<ByOrdinal<Addresses>>,
    /// Fixed hardware addresses.
    pub mac: Option<ByOrdinal<Mac>>,
    /// Whether it carries the default route.
    pub default_route: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WireSecondary {
    network: String,
    subnet: Option<String>,
    interface: Option<String>,
    ips: Option<String>,
    mac: Option<String>,
    #[serde(default)]
    default_route: bool,
}

/// Reads the list of secondary interfaces of a pod; empty where there is none.
///
/// # Errors
/// The first entry that cannot be understood, or two interfaces of one name.
pub fn secondary(annotations: &BTreeMap<String, String>) -> Result<Vec<SecondaryChoice>, AnnotationError> {
    let key = annotation::NETWORKS;
    let Some(text) = annotations.get(key) else { return Ok(Vec::new()) };
    let wire: Vec<WireSecondary> =
        serde_json::from_str(text).map_err(|e| error(key, None)(AnnotationProblem::Json(e.to_string())))?;
    let mut seen = Vec::new();
    let mut all = Vec::with_capacity(wire.len());
    for (i, raw) in wire.into_iter().enumerate() {
        // The keys inside carry the position of the attachment, so the inner position is left out.
        let here = |e: AnnotationError| AnnotationError { key, entry: Some(i + 1), problem: e.problem };
        let interface: Option<IfName> =
            raw.interface.as_deref().map(str::parse).transpose().map_err(error(key, Some(i + 1)))?;
        if let Some(name) = &interface {
            if seen.contains(name) {
                return Err(error(key, Some(i + 1))(AnnotationProblem::SameInterface(name.to_string())));
            }
            seen.push(name.clone());
        }
        all.push(SecondaryChoice {
            network: name(&raw.network).map_err(error(key, Some(i + 1)))?,
            subnets: raw.subnet.map(|s| subnets(key, &s)).transpose().map_err(here)?.unwrap_or_default(),
            interface,
            ips: raw.ips.map(|s| by_ordinal(key, &s, addresses)).transpose().map_err(here)?,
            mac: raw.mac.map(|s| by_ordinal(key, &s, mac)).transpose().map_err(here)?,
            default_route: raw.default_route,
        });
    }
    Ok(all)
}

/// Keys with Braid's prefix that mean nothing: most likely a slip of the pen, worth a warning at admission.
#[must_use]
pub fn unknown_keys(annotations: &BTreeMap<String, String>) -> Vec<&str> {
    let ours =
        |key: &&str| key.strip_prefix(crate::well_known::GROUP).is_some_and(|rest| rest.starts_with('/'));
    annotations.keys().map(String::as_str).filter(ours).filter(|key| !KNOWN.contains(key)).collect()
}

/// Keys that mean something on pods alone, out of the annotations of a namespace.
#[must_use]
pub fn keys_of_pods_only(annotations: &BTreeMap<String, String>) -> Vec<&str> {
    let of_pods = |key: &&str| KNOWN.contains(key) && !OF_NAMESPACES.contains(key);
    annotations.keys().map(String::as_str).filter(of_pods).collect()
}

fn error<P: Into<AnnotationProblem>>(
    key: &'static str,
    entry: Option<usize>,
) -> impl FnOnce(P) -> AnnotationError {
    move |problem| AnnotationError { key, entry, problem: problem.into() }
}

fn read<T>(
    annotations: &BTreeMap<String, String>,
    key: &'static str,
    parse: impl FnOnce(&'static str, &str) -> Result<T, AnnotationError>,
) -> Result<Option<T>, AnnotationError> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    if text.trim().is_empty() {
        return Err(error(key, None)(AnnotationProblem::Empty));
    }
    parse(key, text.trim()).map(Some)
}

/// A name of a Network or Subnet (RFC 1123 label).
fn name(text: &str) -> Result<String, AnnotationProblem> {
    let text = text.trim();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ok = bytes.len() <= 63
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum);
    ok.then(|| text.to_owned()).ok_or_else(|| AnnotationProblem::Name(text.to_owned()))
}

fn subnets(key: &'static str, text: &str) -> Result<Vec<String>, AnnotationError> {
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > Family::ALL.len() {
        return Err(error(key, None)(AnnotationProblem::TooManySubnets(parts.len())));
    }
    parts.into_iter().enumerate().map(|(i, part)| name(part).map_err(error(key, Some(i + 1)))).collect()
}

fn by_ordinal<T>(
    key: &'static str,
    text: &str,
    one: impl Fn(&str) -> Result<T, AnnotationProblem>,
) -> Result<ByOrdinal<T>, AnnotationError> {
    let parts: Vec<&str> = text.split(';').collect();
    if parts.len() > MAX_ENTRIES {
        return Err(error(key, None)(AnnotationProblem::TooMany(parts.len())));
    }
    let position = |i: usize| (parts.len() > 1).then_some(i + 1);
    parts
        .iter()
        .enumerate()
        .map(|(i, part)| one(part.trim()).map_err(error(key, position(i))))
        .collect::<Result<_, _>>()
        .map(ByOrdinal)
}

fn addresses(text: &str) -> Result<Addresses, AnnotationProblem> {
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > MAX_ENTRIES {
        return Err(AnnotationProblem::TooMany(parts.len()));
    }
    parts.into_iter().map(|part| Ok(part.trim().parse()?)).collect()
}

fn mac(text: &str) -> Result<Mac, AnnotationProblem> {
    Ok(text.parse()?)
}

fn boolean(key: &'static str, text: &str) -> Result<bool, AnnotationError> {
    text.parse().map_err(|_| {
        error(key, None)(AnnotationProblem::Word { given: text.to_owned(), known: "true or false" })
    })
}

/// A number and a unit, in seconds; at most ten years.
fn duration(key: &'static str, text: &str) -> Result<u32, AnnotationError> {
    const LONGEST: u32 = 315_360_000;
    let bad = || error(key, None)(AnnotationProblem::Duration(text.to_owned()));
    let unit = match text.bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 86_400,
        _ => return Err(bad()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    number.checked_mul(unit).filter(|n| (1..=LONGEST).contains(n)).ok_or_else(bad)
}

#[cfg(test)]
#[path = "annotation_tests.rs"]
mod tests;
