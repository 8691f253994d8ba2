//! The nftables table `inet braid`: masquerading and protection against forged sources.
//!
//! Chains are fixed; what changes with pods and subnets are set elements only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_types::model::SubnetDef;
use braid_types::{AddrRange, Cidr, Family, IfName, Mac};

use super::link::{GROUP_PODS, GROUP_TUNNELS};
use crate::actual::SeenTable;
use crate::view::NodeView;

/// Name of the table, family `inet`. It is wholly ours.
pub const TABLE: &str = "braid";

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set with its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The fields of a key, joined in this order.
    pub key: Vec<Field>,
    /// Elements are ranges.
    pub interval: bool,
    /// Elements.
    pub elements: BTreeSet<Element>,
}

/// Part of a packet that a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Name of the device by which the packet entered.
    IifName,
    /// Source hardware address.
    EtherSource,
    /// Source address.
    Source(Family),
    /// Destination address.
    Destination(Family),
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Addresses from first to last.
    Range(Range),
    /// A pod's interface with its hardware address.
    Mac(IfName, Mac),
    /// A pod's interface with its hardware address and one of its addresses.
    Pod(IfName, Mac, IpAddr),
}

impl Element {
    /// The host device that it is about.
    #[must_use]
    pub fn dev(&self) -> Option<&IfName> {
        match self {
            Self::Range(_) => None,
            Self::Mac(dev, _) | Self::Pod(dev, ..) => Some(dev),
        }
    }
}

/// First and last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
}

/// Elements with the set that each belongs to.
pub type Elements = BTreeMap<String, BTreeSet<Element>>;

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it hooks in.
    pub hook: Hook,
    /// Priority among the chains of the hook.
    pub priority: i32,
    /// Rules in order; the policy is accept.
    pub rules: Vec<Rule>,
}

/// Kind and hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `type filter hook prerouting`.
    FilterPrerouting,
    /// `type nat hook postrouting`.
    NatPostrouting,
}

/// A rule: all matches must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Said to people who list the table.
    pub comment: &'static str,
    /// Conditions in order.
    pub matches: Vec<Match>,
    /// Count packets and bytes.
    pub counter: bool,
    /// What happens.
    pub verdict: Verdict,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Group of the incoming device.
    IifGroup {
        /// The group.
        group: u32,
        /// Must it be equal, or must it differ?
        equal: bool,
    },
    /// Group of the outgoing device.
    OifGroup(u32),
    /// Family of the packet.
    Family(Family),
    /// The key made of the fields of the set is, or is not, in the set.
    In {
        /// Name of the set.
        set: String,
        /// Fields that make the key.
        key: Vec<Field>,
        /// Must it be in, or must it be out?
        inside: bool,
    },
    /// IPv6 source address within a prefix.
    SourceWithin(Cidr),
    /// ICMPv6 type (RFC 4861 section 4).
    Icmp6Type(u8),
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Goes on.
    Accept,
    /// Thrown away.
    Drop,
    /// Leaves with the address of the outgoing device; ports are chosen at random to make clashes rare.
    Masquerade,
}

/// Neighbour solicitation and advertisement (RFC 4861 sections 4.3 and 4.4).
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Before connection tracking (`NF_IP_PRI_RAW`), so that forged packets leave no trace there.
const PRIORITY_RAW: i32 = -300;
/// `NF_IP_PRI_NAT_SRC`.
const PRIORITY_SRCNAT: i32 = 100;

const MACS: &str = "pod-macs";

fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}

fn pods(family: Family) -> String {
    format!("pods{}", suffix(family))
}

fn cluster(family: Family) -> String {
    format!("cluster{}", suffix(family))
}

fn nat(family: Family) -> String {
    format!("nat-outgoing{}", suffix(family))
}

/// What one pod interface adds to the sets.
#[must_use]
pub(crate) fn elements<'a>(
    dev: &IfName,
    mac: Mac,
    addresses: impl IntoIterator<Item = &'a IpAddr>,
) -> Elements {
    let mut all = Elements::new();
    all.entry(MACS.to_owned()).or_default().insert(Element::Mac(dev.clone(), mac));
    for addr in addresses {
        let set = pods(Family::of(*addr));
        all.entry(set).or_default().insert(Element::Pod(dev.clone(), mac, *addr));
    }
    all
}

impl Table {
    /// The table of a node without its pods, which [`Table::insert`] adds.
    #[must_use]
    pub fn of(view: &NodeView) -> Self {
        let mut sets = BTreeMap::new();
        let mac_key = vec![Field::IifName, Field::EtherSource];
        sets.insert(MACS.to_owned(), Set { key: mac_key, interval: false, elements: BTreeSet::new() });
        for family in Family::ALL {
            // Underlays are outside: there the pod's address is only one among those of other hosts, which know no
            // addresses of overlays.
            let in_overlay = |s: &&SubnetDef| !view.underlays.contains(&s.network);
            let of_family = || view.subnets.values().filter(move |s| s.family() == family).filter(in_overlay);
            let ranges =
                |key, cidrs: &[Cidr]| Set { key: vec![key], interval: true, elements: merged(cidrs) };
            let all: Vec<_> = of_family().flat_map(|s| view.extents(s)).collect();
            let natted: Vec<_> =
                of_family().filter(|s| s.nat_outgoing).flat_map(|s| view.extents(s)).collect();
            sets.insert(cluster(family), ranges(Field::Destination(family), &all));
            sets.insert(nat(family), ranges(Field::Source(family), &natted));
            let key = vec![Field::IifName, Field::EtherSource, Field::Source(family)];
            sets.insert(pods(family), Set { key, interval: false, elements: BTreeSet::new() });
        }
        let chains = [
            (
                "anti-spoofing",
                Chain { hook: Hook::FilterPrerouting, priority: PRIORITY_RAW, rules: anti_spoofing() },
            ),
            (
                "postrouting",
                Chain { hook: Hook::NatPostrouting, priority: PRIORITY_SRCNAT, rules: masquerade() },
            ),
        ];
        Self { sets, chains: chains.map(|(name, chain)| (name.to_owned(), chain)).into() }
    }

    /// This table with those elements that a table in the kernel has for some devices.
    #[must_use]
    pub(crate) fn with_those_of(&self, devices: &BTreeSet<IfName>, seen: &SeenTable) -> Self {
        let of_them = |e: &&Element| e.dev().is_some_and(|d| devices.contains(d));
        let elements = seen
            .sets
            .iter()
            .map(|(name, set)| (name.clone(), set.elements.iter().filter(of_them).cloned().collect()))
            .collect();
        let mut table = self.clone();
        table.insert(&elements);
        table
    }

    /// Adds elements; those of unknown sets are left out.
    pub fn insert(&mut self, elements: &Elements) {
        for (name, more) in elements {
            if let Some(set) = self.sets.get_mut(name) {
                set.elements.extend(more.iter().cloned());
            }
        }
    }
}

/// A packet from a pod carries one of the pod's addresses and its hardware address, or it goes no further. An
/// interface that is in no set is refused as a whole.
fn anti_spoofing() -> Vec<Rule> {
    let rule = |comment, matches, verdict| Rule { comment, matches, counter: false, verdict };
    let macs =
        || Match::In { set: MACS.to_owned(), key: vec![Field::IifName, Field::EtherSource], inside: true };
    let link_local = || Match::SourceWithin(prefix("fe80::", 10));
    let unspecified = || Match::SourceWithin(prefix("::", 128));
    let v6 = || Match::Family(Family::V6);
    let mut rules = vec![rule(
        "not from a pod",
        vec![Match::IifGroup { group: GROUP_PODS, equal: false }],
        Verdict::Accept,
    )];
    for family in Family::ALL {
        let key = vec![Field::IifName, Field::EtherSource, Field::Source(family)];
        let matches = vec![Match::Family(family), Match::In { set: pods(family), key, inside: true }];
        rules.push(rule("own address and MAC", matches, Verdict::Accept));
    }
    rules.push(rule(
        "neighbour solicitation",
        vec![v6(), macs(), link_local(), Match::Icmp6Type(NEIGHBOUR_SOLICITATION)],
        Verdict::Accept,
    ));
    rules.push(rule(
        "neighbour advertisement",
        vec![v6(), macs(), link_local(), Match::Icmp6Type(NEIGHBOUR_ADVERTISEMENT)],
        Verdict::Accept,
    ));
    rules.push(rule(
        "duplicate address detection",
        vec![v6(), macs(), unspecified(), Match::Icmp6Type(NEIGHBOUR_SOLICITATION)],
        Verdict::Accept,
    ));
    // Router solicitations and multicast reports of an honest pod: of no use, and not to be counted as forged.
    rules.push(rule("link-local noise", vec![v6(), macs(), link_local()], Verdict::Drop));
    rules.push(rule("link-local noise", vec![v6(), macs(), unspecified()], Verdict::Drop));
    rules.push(Rule { comment: "forged source", matches: vec![], counter: true, verdict: Verdict::Drop });
    rules
}

fn masquerade() -> Vec<Rule> {
    let mut rules = vec![
        Rule {
            comment: "to a pod of this node",
            matches: vec![Match::OifGroup(GROUP_PODS)],
            counter: false,
            verdict: Verdict::Accept,
        },
        Rule {
            comment: "into a tunnel",
            matches: vec![Match::OifGroup(GROUP_TUNNELS)],
            counter: false,
            verdict: Verdict::Accept,
        },
    ];
    for family in Family::ALL {
        rules.push(Rule {
            comment: "leaves the cluster",
            matches: vec![
                Match::Family(family),
                Match::In { set: nat(family), key: vec![Field::Source(family)], inside: true },
                Match::In { set: cluster(family), key: vec![Field::Destination(family)], inside: false },
            ],
            counter: true,
            verdict: Verdict::Masquerade,
        });
    }
    rules
}

fn prefix(addr: &str, len: u8) -> Cidr {
    addr.parse().ok().and_then(|a| Cidr::containing(a, len)).expect("a constant")
}

/// Prefixes as disjoint ranges that do not touch: the form in which the kernel's interval sets keep them apart.
fn merged(cidrs: &[Cidr]) -> BTreeSet<Element> {
    let mut ranges: Vec<AddrRange> = cidrs.iter().map(Cidr::range).collect();
    ranges.sort_by_key(AddrRange::first);
    let mut out: Vec<Range> = Vec::new();
    for r in ranges {
        match out.last_mut() {
            Some(last) if Family::number(r.first()) <= Family::number(last.last).saturating_add(1) => {
                last.last = last.last.max(r.last());
            }
            _ => out.push(Range { first: r.first(), last: r.last() }),
        }
    }
    out.into_iter().map(Element::Range).collect()
}

impl Field {
    /// Bytes that the field takes in a key; fields are padded to four (`nft_registers` hold 32-bit words).
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::IifName => 16,
            Self::EtherSource => 8,
            Self::Source(f) | Self::Destination(f) => u32::from(f.bits() / 8),
        }
    }
}

impl Set {
    /// Bytes in a key.
    #[must_use]
    pub fn key_len(&self) -> u32 {
        self.key.iter().map(|f| f.bytes()).sum()
    }
}

impl Rule {
    /// What the rule carries in the kernel as its comment: the text for people, and a digest of the rule itself by
    /// which a later version, or a rule changed by hand, is told from this one.
    #[must_use]
    pub fn mark(&self) -> String {
        let text = format!("{:?}/{}/{:?}", self.matches, self.counter, self.verdict);
        // FNV-1a, 64 bit.
        let digest = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{} [{:08x}]", self.comment, digest >> 32)
    }
}
