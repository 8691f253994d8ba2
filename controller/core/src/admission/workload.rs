//! Deployments and StatefulSets whose pods have fixed addresses: is there one for each of them, those included that an
//! update needs for a while?

use std::collections::BTreeMap;
use std::str::FromStr;

use braid_types::annotation::{Addresses, AnnotationError, ByOrdinal, NetworkChoice};
use braid_types::model::NetworkDef;
use braid_types::well_known::annotation;
use braid_types::{AddrRange, Family};
use rangemap::RangeInclusiveSet;

use super::{Namespace, NewPod, Outlook, outlook};
use crate::ipam::{Choice, Ipam, Refusal};

/// How many pods a Deployment may have beyond its replicas while it is updated (`maxSurge`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// That many.
    Pods(u32),
    /// A part of the replicas, rounded up.
    Percent(u32),
}

impl Default for Surge {
    /// What Kubernetes takes where nothing is said.
    fn default() -> Self {
        Self::Percent(25)
    }
}

impl Surge {
    fn beyond(self, replicas: u32) -> u32 {
        match self {
            // Nothing is updated where nothing runs.
            _ if replicas == 0 => 0,
            Self::Pods(pods) => pods,
            Self::Percent(percent) => {
                let pods = (u64::from(replicas) * u64::from(percent)).div_ceil(100);
                u32::try_from(pods).unwrap_or(u32::MAX)
            }
        }
    }
}

/// Not a number of pods and not a percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a number of pods nor a percentage")]
pub struct NotASurge(String);

impl FromStr for Surge {
    type Err = NotASurge;

    fn from_str(s: &str) -> Result<Self, NotASurge> {
        let number = |text: &str| text.parse().map_err(|_| NotASurge(s.to_owned()));
        match s.strip_suffix('%') {
            Some(percent) => number(percent).map(Self::Percent),
            None => number(s).map(Self::Pods),
        }
    }
}

/// How many pods a workload has, and how they come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Pods without a number; those of the old and the new template live side by side.
    Deployment {
        /// `spec.replicas`.
        replicas: u32,
        /// `spec.strategy.rollingUpdate.maxSurge`; no pods under `Recreate`.
        surge: Surge,
    },
    /// Numbered pods; one of the old template ends before its successor starts.
    StatefulSet {
        /// `spec.replicas`.
        replicas: u32,
        /// `spec.ordinals.start`.
        first: u32,
    },
}

impl Shape {
    fn replicas(self) -> u32 {
        match self {
            Self::Deployment { replicas, .. } | Self::StatefulSet { replicas, .. } => replicas,
        }
    }

    fn surge(self) -> u32 {
        match self {
            Self::Deployment { replicas, surge } => surge.beyond(replicas),
            Self::StatefulSet { .. } => 0,
        }
    }
}

/// Addresses of one family that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The family.
    pub family: Family,
    /// How many pods need one at a time.
    pub needed: u128,
    /// How many there are.
    pub there: u128,
}

impl Missing {
    /// How many are missing.
    #[must_use]
    pub fn count(&self) -> u128 {
        self.needed.saturating_sub(self.there)
    }
}

/// Why a workload's pods could not all have an address. `Display` is the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// An annotation of the pod template cannot be understood.
    #[error("pod template: {0}")]
    Annotation(AnnotationError),
    /// What the template asks for contradicts itself or the Network: every pod would be refused.
    #[error("pod template: {0}")]
    Refused(Box<Refusal>),
    /// A list by ordinal for pods that have none.
    #[error(
        "pod template: annotation {key} has {entries} entries by ordinal (`;`), but only pods of a StatefulSet have \
         ordinals; separate the entries of a pool by `,`"
    )]
    NoOrdinals {
        /// Key of the annotation.
        key: &'static str,
        /// How long the list is.
        entries: usize,
    },
    /// A list by ordinal that ends before the last pod.
    #[error(
        "pod template: annotation {key} has {entries} entries, counted from ordinal 0, but the last pod has ordinal \
         {last}: {} missing; add as many, separated by `;`, or lower spec.replicas",
        are(u128::from(*last) + 1 - *entries as u128)
    )]
    TooFewEntries {
        /// Key of the annotation.
        key: &'static str,
        /// How long the list is.
        entries: usize,
        /// Ordinal of the last pod.
        last: u64,
    },
    /// Fewer addresses than pods.
    #[error("{}", too_small(*replicas, *surge, network.as_deref(), missing))]
    PoolTooSmall {
        /// Pods that run.
        replicas: u32,
        /// Pods beyond them during an update.
        surge: u32,
        /// The Network whose Subnets were asked; `None` = the addresses were only counted.
        network: Option<String>,
        /// What is missing, per family.
        missing: Vec<Missing>,
    },
}

fn are(count: u128) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}

fn too_small(replicas: u32, surge: u32, network: Option<&str>, missing: &[Missing]) -> String {
    let pods = |n: u32| if n == 1 { "1 pod".to_owned() } else { format!("{n} pods") };
    let during = match surge {
        0 => String::new(),
        n => format!(" and {n} more during a rolling update (maxSurge)"),
    };
    let of = network.map_or(String::new(), |n| format!(" that Network {n} gives out"));
    let list: Vec<String> = missing
        .iter()
        .map(|m| {
            let Missing { family, needed, there } = m;
            format!("it needs {needed} {family} addresses and has {there}{of}, {} missing", are(m.count()))
        })
        .collect();
    let instead = match surge {
        0 => "lower spec.replicas",
        _ => "lower spec.replicas, or set maxSurge to 0 or the strategy to Recreate",
    };
    format!(
        "pod template: annotation {} is too small for {}{during}: {}; add what is missing, or {instead}",
        annotation::IPS,
        pods(replicas),
        list.join("; "),
    )
}

/// A workload whose pod template asks for fixed addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    shape: Shape,
    /// What its pods ask for, the addresses of all of them together.
    choice: Choice,
    /// Addresses and the number of pods that share them.
    entries: Vec<(Addresses, u128)>,
}

impl Workload {
    /// Reads the annotations of a pod template.
    ///
    /// # Errors
    /// They cannot be understood, or a list does not fit the workload whatever Networks there are.
    pub fn read(shape: Shape, annotations: &BTreeMap<String, String>) -> Result<Self, Misfit> {
        let asked = NetworkChoice::of_pod(annotations).map_err(Misfit::Annotation)?;
        check_list(shape, annotation::MAC, asked.mac.as_ref())?;
        check_list(shape, annotation::IPS, asked.ips.as_ref())?;
        let entries = asked.ips.as_ref().map_or(Vec::new(), |ips| entries_of(shape, ips));
        let choice = Choice {
            network: asked.network,
            subnets: asked.subnets,
            family: asked.family.map(Into::into),
            ips: entries.iter().flat_map(|(ranges, _)| ranges).copied().collect(),
            mac: None,
        };
        Ok(Self { shape, choice, entries })
    }

    /// What its pods ask for.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Judges it.
    ///
    /// # Errors
    /// Its pods contradict themselves, or are more than there are addresses.
    pub fn check(&self, ipam: &Ipam, namespace: Namespace<'_>) -> Result<(), Misfit> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let network = self.network(ipam, namespace)?;
        let missing: Vec<Missing> = Family::ALL
            .into_iter()
            .filter_map(|family| self.missing(ipam, network, family))
            .filter(|m| m.count() > 0)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (replicas, surge) = (self.shape.replicas(), self.shape.surge());
        Err(Misfit::PoolTooSmall { replicas, surge, network: network.map(|n| n.name.clone()), missing })
    }

    /// The Network of its pods, if it can be told.
    fn network<'a>(
        &self,
        ipam: &'a Ipam,
        namespace: Namespace<'_>,
    ) -> Result<Option<&'a NetworkDef>, Misfit> {
        // Nothing is kept for a pod without a name.
        let choice = &self.choice;
        let pod = NewPod { namespace, name: "", choice, interface: "", owner: None, node: None };
        match outlook(ipam, &pod) {
            Ok(Outlook::Network(prospect)) => Ok(Some(prospect.network)),
            Ok(Outlook::Unknown | Outlook::NoNetwork(_)) => Ok(None),
            Err(refusal) => Err(Misfit::Refused(Box::new(refusal))),
        }
    }

    /// How many addresses of a family there are and should be; `None` where the pods ask for none of it.
    fn missing(&self, ipam: &Ipam, network: Option<&NetworkDef>, family: Family) -> Option<Missing> {
        let mut wanted = RangeInclusiveSet::new();
        let mut needed: u128 = 0;
        for (ranges, pods) in &self.entries {
            let mut of_family = ranges.iter().filter(|r| r.family() == family).peekable();
            if of_family.peek().is_some() {
                needed += pods;
            }
            wanted.extend(of_family.map(|r| Family::number(r.first())..=Family::number(r.last())));
        }
        if needed == 0 {
            return None;
        }
        // A Subnet that is not there yet gives out nothing, but may come: then every address counts.
        let subnets = network.map(|n| ipam.prospective_subnets(n, &self.choice.subnets, family));
        let there = match subnets {
            Some(subnets) if !subnets.is_empty() => subnets
                .iter()
                .flat_map(|s| within(&wanted, &s.cidr.range()).map(|range| ipam.allowed_in(&s.name, &range)))
                .fold(0, u128::saturating_add),
            _ => wanted
                .iter()
                .fold(0, |sum: u128, r| sum.saturating_add((r.end() - r.start()).saturating_add(1))),
        };
        Some(Missing { family, needed, there })
    }
}

/// The parts of `set` that lie in `range`.
fn within<'a>(
    set: &'a RangeInclusiveSet<u128>,
    range: &AddrRange,
) -> impl Iterator<Item = AddrRange> + use<'a> {
    let (family, first, last) = (range.family(), Family::number(range.first()), Family::number(range.last()));
    set.overlapping(first..=last).filter_map(move |part| {
        AddrRange::new(family.addr(first.max(*part.start())), family.addr(last.min(*part.end())))
    })
}

/// A list by ordinal needs pods with ordinals, and an entry for each of them.
fn check_list<T>(shape: Shape, key: &'static str, list: Option<&ByOrdinal<T>>) -> Result<(), Misfit> {
    let entries = list.map_or(1, |l| l.all().len());
    match shape {
        _ if entries == 1 => Ok(()),
        Shape::Deployment { .. } => Err(Misfit::NoOrdinals { key, entries }),
        Shape::StatefulSet { replicas, first } => {
            let end = u64::from(first) + u64::from(replicas);
            if replicas > 0 && end > entries as u64 {
                return Err(Misfit::TooFewEntries { key, entries, last: end - 1 });
            }
            Ok(())
        }
    }
}

/// The entries that pods draw from, and how many pods draw from each. A single entry is for all of them.
fn entries_of(shape: Shape, ips: &ByOrdinal<Addresses>) -> Vec<(Addresses, u128)> {
    match (shape, ips.all()) {
        (Shape::StatefulSet { replicas, first }, all) if all.len() > 1 => {
            let (first, replicas) = (first as usize, replicas as usize);
            all.iter().skip(first).take(replicas).map(|ranges| (ranges.clone(), 1)).collect()
        }
        (_, all) => {
            let pods = u128::from(shape.replicas()) + u128::from(shape.surge());
            all.iter().map(|ranges| (ranges.clone(), pods)).collect()
        }
    }
}
