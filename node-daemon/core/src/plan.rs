//! The steps from what is to what must be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use braid_types::well_known::table;
use braid_types::{Cidr, IfName, Mac};

use crate::actual::{Actual, SeenLink, SeenRoute, SeenTable};
use crate::attach::PodEnd;
use crate::delta::{self, Delta};
use crate::desired::nft::{Elements, Table};
use crate::desired::{
    AddrKey, Desired, FdbKey, Link, LinkKind, NeighKey, ProxyKey, Route, RouteKey, Rule, Vxlan, link, sysctl,
};
use crate::ours;

/// One change of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write a kernel parameter.
    SetSysctl {
        /// Path below `/proc/sys/net`.
        path: String,
        /// Value.
        value: String,
    },
    /// Make the table `inet braid` anew with all its content, in one transaction.
    ReplaceTable(Table),
    /// Remove the table `inet braid`.
    DelTable,
    /// Add elements to sets, in one transaction.
    AddElements(Elements),
    /// Remove elements from sets, in one transaction.
    DelElements(Elements),
    /// Remove a device, and with it everything on it.
    DelLink(IfName),
    /// Make a VXLAN device and bring it up.
    AddVxlan(Link),
    /// Make a veth pair with its end in the pod ready for use.
    AddVeth {
        /// Host end.
        link: Link,
        /// Other end.
        pod: PodEnd,
    },
    /// Correct MTU, alias, group, learning and state of a device, and bring it up.
    SetLink {
        /// How it has to be.
        link: Link,
        /// Its hardware address is wrong as well. Writing one makes the kernel forget all neighbours on the device,
        /// even when it is the one it had.
        mac: bool,
    },
    /// Add an address.
    AddAddr(AddrKey),
    /// Remove an address.
    DelAddr(AddrKey),
    /// Write a permanent neighbour over whatever is there.
    PutNeigh(NeighKey, Mac),
    /// Remove a neighbour.
    DelNeigh(NeighKey),
    /// Answer for an address on a device of the host.
    PutProxy(ProxyKey),
    /// No longer answer for an address.
    DelProxy(ProxyKey),
    /// Tell the neighbours on a device that an address is to be found here from now on.
    Announce(ProxyKey),
    /// Write a forwarding entry over whatever is there.
    PutFdb(FdbKey, IpAddr),
    /// Remove one destination of a forwarding entry.
    DelFdb(FdbKey, IpAddr),
    /// Write a route over whatever has the same table, destination and metric.
    PutRoute(RouteKey, Route),
    /// Remove a route of ours.
    DelRoute(RouteKey),
    /// Add a rule.
    AddRule(Rule),
    /// Remove one rule of ours.
    DelRule(Rule),
}

impl Step {
    /// The step that takes this one back, for steps that make something new. Steps that remove or replace have
    /// none: what was there before is no business of an undo.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        Some(match self {
            Self::AddElements(e) => Self::DelElements(e.clone()),
            Self::AddVxlan(link) | Self::AddVeth { link, .. } => Self::DelLink(link.name.clone()),
            Self::AddAddr(key) => Self::DelAddr(key.clone()),
            Self::PutNeigh(key, _) => Self::DelNeigh(key.clone()),
            Self::PutProxy(key) => Self::DelProxy(key.clone()),
            Self::PutFdb(key, dst) => Self::DelFdb(key.clone(), *dst),
            Self::PutRoute(key, _) => Self::DelRoute(key.clone()),
            Self::AddRule(rule) => Self::DelRule(rule.clone()),
            Self::SetSysctl { .. }
            | Self::ReplaceTable(_)
            | Self::DelTable
            | Self::DelElements(_)
            | Self::DelLink(_)
            | Self::SetLink { .. }
            | Self::DelAddr(_)
            | Self::DelNeigh(_)
            | Self::DelProxy(_)
            | Self::Announce(_)
            | Self::DelFdb(..)
            | Self::DelRoute(_)
            | Self::DelRule(_) => return None,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |e: &Elements| e.values().map(BTreeSet::len).sum::<usize>();
        match self {
            Self::SetSysctl { path, value } => write!(f, "set {path} to {value}"),
            Self::ReplaceTable(_) => f.write_str("write nftables table inet braid"),
            Self::DelTable => f.write_str("remove nftables table inet braid"),
            Self::AddElements(e) => write!(f, "add {} elements to nftables table inet braid", count(e)),
            Self::DelElements(e) => write!(f, "remove {} elements from nftables table inet braid", count(e)),
            Self::DelLink(name) => write!(f, "remove device {name}"),
            Self::AddVxlan(l) => write!(f, "make VXLAN device {}", l.name),
            Self::AddVeth { link, pod } => {
                write!(f, "make veth pair {} with {} in {}", link.name, pod.name, pod.netns)
            }
            Self::SetLink { link, .. } => write!(f, "correct device {}", link.name),
            Self::AddAddr(k) => write!(f, "add address {}/{} to {}", k.addr, k.prefix_len, k.dev),
            Self::DelAddr(k) => write!(f, "remove address {}/{} from {}", k.addr, k.prefix_len, k.dev),
            Self::PutNeigh(k, mac) => write!(f, "set neighbour {} on {} to {mac}", k.addr, k.dev),
            Self::DelNeigh(k) => write!(f, "remove neighbour {} from {}", k.addr, k.dev),
            Self::PutProxy(k) => write!(f, "answer for {} on {}", k.addr, k.dev),
            Self::DelProxy(k) => write!(f, "no longer answer for {} on {}", k.addr, k.dev),
            Self::Announce(k) => write!(f, "announce {} on {}", k.addr, k.dev),
            Self::PutFdb(k, dst) => {
                write!(f, "set forwarding entry {} on {} to {dst}", hex(k.mac), k.dev)
            }
            Self::DelFdb(k, dst) => {
                write!(f, "remove forwarding entry {} to {dst} from {}", hex(k.mac), k.dev)
            }
            Self::PutRoute(k, _) => write!(f, "write route to {} in table {}", k.dst, k.table),
            Self::DelRoute(k) => write!(f, "remove route to {} from table {}", k.dst, k.table),
            Self::AddRule(r) => {
                write!(f, "add {} rule {}{} to table {}", r.family, r.priority, sources(r), r.table)
            }
            Self::DelRule(r) => {
                write!(f, "remove {} rule {}{} to table {}", r.family, r.priority, sources(r), r.table)
            }
        }
    }
}

fn sources(rule: &Rule) -> String {
    rule.from.map(|prefix| format!(" from {prefix}")).unwrap_or_default()
}

fn hex(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// A device that we need and that somebody else has under the same name. Nothing is done about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("device {name} is needed by Braid but exists as {found}; rename or remove it")]
pub struct Conflict {
    /// The name.
    pub name: IfName,
    /// What has it.
    pub found: String,
}

/// Steps in order, and what stands in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, referents before what refers to them. Each step may fail without making later ones wrong.
    pub steps: Vec<Step>,
    /// What cannot be done.
    pub conflicts: Vec<Conflict>,
}

impl Plan {
    /// Nothing to do and nothing in the way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.conflicts.is_empty()
    }
}

/// Computes the plan.
///
/// Order: filter and global parameters first; no more answers for addresses that are not here; devices that must go (a
/// new device may need their name or VNI); devices; what is on them; routes; rules; answers for addresses that are here
/// and word of it; then the removal of what is no longer wanted, so that a changed path works before the old one goes.
#[must_use]
pub fn diff(desired: &Desired, actual: &Actual) -> Plan {
    let links = Links::between(desired, actual);
    let mut steps = Vec::new();
    let table = match (&desired.nft, &actual.nft) {
        (Some(table), Some(seen)) if !desired.spared.is_empty() => {
            Some(table.with_those_of(&desired.spared, seen))
        }
        (table, _) => table.clone(),
    };
    steps.extend(nft(table.as_ref(), actual.nft.as_ref()));
    // Parameters of others' devices before the global ones: an uplink that is to go on listening to router
    // advertisements must be told so before forwarding is switched on.
    let of_others = |device: &str| !links.ours.contains(device);
    steps.extend(sysctls(desired, actual, &links, |device| device.is_some_and(of_others)));
    steps.extend(sysctls(desired, actual, &links, |device| device.is_none()));
    let proxies = proxies(desired, actual);
    steps.extend(proxies.remove.into_iter().map(Step::DelProxy));
    steps.extend(links.del.iter().cloned().map(Step::DelLink));
    steps.extend(links.put.iter().cloned());
    steps.extend(sysctls(desired, actual, &links, |device| device.is_some_and(|d| links.ours.contains(d))));

    let addrs = addrs(desired, actual, &links);
    let neighs = neighs(desired, actual, &links);
    let (put_fdb, del_fdb) = fdb(desired, actual, &links);
    let routes = routes(desired, actual, &links);
    let (add_rules, del_rules) = rules(desired, actual);

    steps.extend(addrs.put.into_iter().map(|(k, ())| Step::AddAddr(k)));
    steps.extend(neighs.put.into_iter().map(|(k, mac)| Step::PutNeigh(k, mac)));
    steps.extend(put_fdb);
    steps.extend(routes.put.into_iter().map(|(k, r)| Step::PutRoute(k, r)));
    steps.extend(add_rules);
    let answered: Vec<ProxyKey> = proxies.put.into_iter().map(|(key, ())| key).collect();
    steps.extend(answered.iter().cloned().map(Step::PutProxy));
    steps.extend(answered.into_iter().map(Step::Announce));
    steps.extend(del_rules);
    steps.extend(routes.remove.into_iter().map(Step::DelRoute));
    steps.extend(del_fdb);
    steps.extend(neighs.remove.into_iter().map(Step::DelNeigh));
    steps.extend(addrs.remove.into_iter().map(Step::DelAddr));
    Plan { steps, conflicts: links.conflicts }
}

/// The device that keeps a VXLAN device from being made: of the same VNI and port the kernel takes one only.
#[must_use]
pub fn rival<'a>(wanted: &Link, actual: &'a Actual) -> Option<&'a IfName> {
    let LinkKind::Vxlan(want) = &wanted.kind else { return None };
    let same = |seen: &&SeenLink| {
        seen.vxlan.as_ref().is_some_and(|v| v.vni == want.vni.get() && v.port == want.port)
    };
    actual.links.iter().find(|(name, seen)| **name != wanted.name && same(seen)).map(|(name, _)| name)
}

/// What happens to devices, which decides about everything on them.
struct Links {
    del: Vec<IfName>,
    put: Vec<Step>,
    conflicts: Vec<Conflict>,
    /// Names that cannot be had: nothing may be put on the foreign device that has them.
    blocked: BTreeSet<IfName>,
    /// Names of ours, present or to be made.
    ours: BTreeSet<String>,
    /// Deleted on the way, so nothing that the dump shows on them will be there.
    gone: BTreeSet<IfName>,
    /// Devices on which everything is ours after the plan.
    kept: BTreeSet<IfName>,
    /// Devices that get another hardware address: the kernel forgets all neighbours on them, permanent ones too.
    forgetful: BTreeSet<IfName>,
}

impl Links {
    fn between(desired: &Desired, actual: &Actual) -> Self {
        let mut all = Self {
            del: Vec::new(),
            put: Vec::new(),
            conflicts: Vec::new(),
            blocked: BTreeSet::new(),
            ours: desired.links.keys().map(ToString::to_string).collect(),
            gone: BTreeSet::new(),
            kept: BTreeSet::new(),
            forgetful: BTreeSet::new(),
        };
        let stale = actual
            .links
            .iter()
            .filter(|(name, seen)| !desired.links.contains_key(*name) && ours::link(name, seen))
            .filter(|(name, _)| !desired.spared.contains(*name))
            .map(|(name, _)| name.clone());
        for name in stale {
            all.gone.insert(name.clone());
            all.del.push(name);
        }
        for (name, wanted) in &desired.links {
            match actual.links.get(name).map(|seen| verdict(wanted, seen)) {
                None => all.make(desired, wanted),
                Some(Verdict::Fine) => {
                    all.kept.insert(name.clone());
                }
                Some(Verdict::Correct) => {
                    let mac = actual.links[name].mac != Some(wanted.mac);
                    if mac {
                        all.forgetful.insert(name.clone());
                    }
                    all.kept.insert(name.clone());
                    all.put.push(Step::SetLink { link: wanted.clone(), mac });
                }
                Some(Verdict::Remake) => {
                    all.gone.insert(name.clone());
                    all.del.push(name.clone());
                    all.make(desired, wanted);
                }
                Some(Verdict::Foreign(found)) => {
                    all.blocked.insert(name.clone());
                    all.ours.remove(name.as_str());
                    all.conflicts.push(Conflict { name: name.clone(), found });
                }
            }
        }
        all
    }

    fn make(&mut self, desired: &Desired, wanted: &Link) {
        match (&wanted.kind, desired.wirings.get(&wanted.name)) {
            (LinkKind::Vxlan(_), _) => self.put.push(Step::AddVxlan(wanted.clone())),
            (LinkKind::HostVeth, Some(wiring)) => {
                self.put.push(Step::AddVeth { link: wanted.clone(), pod: wiring.pod.clone() });
            }
            (LinkKind::HostVeth, None) => {}
        }
    }

    /// Whether what the dump shows on a device will still be there, and is ours.
    fn keeps(&self, dev: &IfName) -> bool {
        self.kept.contains(dev)
    }
}

enum Verdict {
    Fine,
    Correct,
    Remake,
    Foreign(String),
}

/// A device with the wanted name and kind is taken as ours even when somebody has wiped its alias: the kind, name
/// and VNI together are as good a proof, and making it again would cut traffic.
fn verdict(wanted: &Link, seen: &SeenLink) -> Verdict {
    let remake = match (&wanted.kind, seen.kind.as_str(), &seen.vxlan) {
        (LinkKind::HostVeth, "veth", _) => false,
        (LinkKind::Vxlan(want), "vxlan", Some(have)) => {
            let Vxlan { vni, port, local, parent } = want;
            let is_ours = have.vni == vni.get() || seen.alias.starts_with(link::ALIAS_PREFIX);
            if !is_ours {
                return Verdict::Foreign(format!("a VXLAN device with VNI {}", have.vni));
            }
            have.vni != vni.get()
                || have.port != *port
                || have.local != Some(*local)
                || have.parent.as_ref() != Some(parent)
        }
        (_, "", _) => return Verdict::Foreign("a hardware device".to_owned()),
        (_, kind, _) => return Verdict::Foreign(format!("a device of kind {kind}")),
    };
    let fine = seen.up
        && seen.mac == Some(wanted.mac)
        && seen.mtu == wanted.mtu
        && seen.alias == wanted.alias
        && seen.group == wanted.kind.group()
        && !seen.makes_link_local
        && !seen.enslaved
        && !seen.vxlan.as_ref().is_some_and(|v| v.learning);
    match (remake, fine) {
        (true, _) => Verdict::Remake,
        (false, false) => Verdict::Correct,
        (false, true) => Verdict::Fine,
    }
}

fn nft(desired: Option<&Table>, actual: Option<&SeenTable>) -> Vec<Step> {
    let (desired, actual) = match (desired, actual) {
        (None, None) => return vec![],
        (None, Some(_)) => return vec![Step::DelTable],
        (Some(desired), None) => return vec![Step::ReplaceTable(desired.clone())],
        (Some(desired), Some(actual)) => (desired, actual),
    };
    if !same_structure(desired, actual) {
        return vec![Step::ReplaceTable(desired.clone())];
    }
    let (mut add, mut del) = (Elements::new(), Elements::new());
    for (name, set) in &desired.sets {
        let seen = &actual.sets[name].elements;
        let missing: BTreeSet<_> = set.elements.difference(seen).cloned().collect();
        let surplus: BTreeSet<_> = seen.difference(&set.elements).cloned().collect();
        if set.interval && !(missing.is_empty() && surplus.is_empty()) {
            // A range that grows overlaps the one it replaces, and the kernel refuses overlaps even for a moment.
            return vec![Step::ReplaceTable(desired.clone())];
        }
        if !missing.is_empty() {
            add.insert(name.clone(), missing);
        }
        if !surplus.is_empty() {
            del.insert(name.clone(), surplus);
        }
    }
    let add = (!add.is_empty()).then_some(Step::AddElements(add));
    let del = (!del.is_empty()).then_some(Step::DelElements(del));
    add.into_iter().chain(del).collect()
}

fn same_structure(desired: &Table, actual: &SeenTable) -> bool {
    desired.sets.keys().eq(actual.sets.keys())
        && desired.chains.keys().eq(actual.chains.keys())
        && desired
            .sets
            .iter()
            .zip(actual.sets.values())
            .all(|((_, d), a)| d.key_len() == a.key_len && d.interval == a.interval && !a.strange)
        && desired.chains.iter().zip(actual.chains.values()).all(|((_, d), a)| {
            Some(d.hook) == a.hook
                && d.priority == a.priority
                && d.rules.iter().map(crate::desired::nft::Rule::mark).eq(a.rules.iter().cloned())
        })
}

fn sysctls(
    desired: &Desired,
    actual: &Actual,
    links: &Links,
    select: impl Fn(Option<&str>) -> bool,
) -> Vec<Step> {
    let wanted = desired.sysctls.iter().filter(|(path, _)| select(sysctl::device(path)));
    wanted
        .filter(|(path, _)| {
            sysctl::device(path).is_none_or(|d| !links.blocked.iter().any(|b| b.as_str() == d))
        })
        .filter(|(path, s)| {
            // A device that is made by this plan starts from the kernel's defaults, whatever the dump said.
            let fresh =
                sysctl::device(path).is_some_and(|d| links.gone.iter().any(|gone| gone.as_str() == d));
            let seen = actual.sysctls.get(*path).filter(|_| !fresh);
            match (&s.only_from, seen) {
                (Some(from), Some(seen)) => seen == from,
                (Some(_), None) => false,
                (None, seen) => seen != Some(&s.value),
            }
        })
        .map(|(path, s)| Step::SetSysctl { path: path.clone(), value: s.value.clone() })
        .collect()
}

fn addrs(desired: &Desired, actual: &Actual, links: &Links) -> Delta<AddrKey, ()> {
    let wanted: BTreeMap<_, _> =
        desired.addrs.iter().filter(|k| !links.blocked.contains(&k.dev)).map(|k| (k.clone(), ())).collect();
    delta::between(&wanted, &actual.addrs_on(links), |(), _| true, |_, _| true)
}

fn neighs(desired: &Desired, actual: &Actual, links: &Links) -> Delta<NeighKey, Mac> {
    let wanted = unblocked(&desired.neighs, |k| &k.dev, links);
    let still_there = |dev: &IfName| links.keeps(dev) && !links.forgetful.contains(dev);
    let seen: BTreeMap<_, _> =
        actual.neighs.iter().filter(|(k, _)| still_there(&k.dev)).map(|(k, v)| (k.clone(), v)).collect();
    // What the kernel learned by itself is not ours to remove; it goes by itself.
    delta::between(&wanted, &seen, |mac, s| s.permanent && s.mac == Some(*mac), |_, s| s.permanent)
}

fn fdb(desired: &Desired, actual: &Actual, links: &Links) -> (Vec<Step>, Vec<Step>) {
    let wanted = unblocked(&desired.fdb, |k| &k.dev, links);
    let (mut put, mut del) = (Vec::new(), Vec::new());
    for (key, dst) in &wanted {
        let seen = actual.fdb.get(key).filter(|_| links.keeps(&key.dev));
        let surplus = || seen.into_iter().flat_map(|s| &s.dsts).filter(|d| *d != dst);
        match seen {
            Some(s) if s.permanent && s.dsts.contains(dst) && s.dsts.len() == 1 => {}
            // One wrong destination is replaced in place, so no packet is lost in between.
            Some(s) if s.dsts.len() <= 1 => put.push(Step::PutFdb(key.clone(), *dst)),
            Some(s) => {
                if !(s.permanent && s.dsts.contains(dst)) {
                    del.extend(s.dsts.iter().map(|d| Step::DelFdb(key.clone(), *d)));
                    put.push(Step::PutFdb(key.clone(), *dst));
                } else {
                    del.extend(surplus().map(|d| Step::DelFdb(key.clone(), *d)));
                }
            }
            None => put.push(Step::PutFdb(key.clone(), *dst)),
        }
    }
    // Entries with several destinations are emptied before they are written anew.
    let mut first: Vec<Step> = Vec::new();
    let mut last: Vec<Step> = Vec::new();
    for step in del {
        let rewritten = matches!(&step, Step::DelFdb(k, _) if put.iter().any(|p| matches!(p, Step::PutFdb(q, _) if q == k)));
        if rewritten { first.push(step) } else { last.push(step) }
    }
    first.extend(put);
    let stale = actual.fdb.iter().filter(|(k, _)| links.keeps(&k.dev) && !wanted.contains_key(*k));
    last.extend(stale.flat_map(|(k, s)| s.dsts.iter().map(|d| Step::DelFdb(k.clone(), *d))));
    (first, last)
}

fn routes(desired: &Desired, actual: &Actual, links: &Links) -> Delta<RouteKey, Route> {
    let wanted: BTreeMap<_, _> = desired
        .routes
        .iter()
        .filter(|(_, r)| r.target.dev().is_none_or(|d| !links.blocked.contains(d)))
        .map(|(k, r)| (k.clone(), r.clone()))
        .collect();
    // A route goes with its device.
    let seen: BTreeMap<_, _> = actual
        .routes
        .iter()
        .filter(|(_, r)| match r {
            SeenRoute::Known(r) => {
                r.target.dev().is_none_or(|d| !links.gone.contains(d) && !desired.spared.contains(d))
            }
            SeenRoute::Other => true,
        })
        .map(|(k, r)| (k.clone(), r))
        .collect();
    delta::between(&wanted, &seen, |d, s| **s == SeenRoute::Known(d.clone()), |k, _| ours::table(k.table))
}

fn proxies(desired: &Desired, actual: &Actual) -> Delta<ProxyKey, ()> {
    let wanted: BTreeMap<_, _> = desired.proxies.iter().map(|key| (key.clone(), ())).collect();
    // Of a device that stays as it is, the routes tell the addresses.
    let is_spared = |key: &ProxyKey| {
        let route = actual.routes.get(&RouteKey::new(table::LOCAL_PODS, Cidr::host(key.addr)));
        matches!(route, Some(SeenRoute::Known(r)) if r.target.dev().is_some_and(|d| desired.spared.contains(d)))
    };
    delta::between(
        &wanted,
        &actual.proxies,
        |(), protocol| ours::proxy(*protocol),
        |key, protocol| ours::proxy(*protocol) && !is_spared(key),
    )
}

fn rules(desired: &Desired, actual: &Actual) -> (Vec<Step>, Vec<Step>) {
    let mut missing = desired.rules.clone();
    let mut del = Vec::new();
    for seen in actual.rules.iter().filter(|s| ours::rule(s)) {
        if !missing.remove(&seen.rule) {
            del.push(Step::DelRule(seen.rule.clone()));
        }
    }
    (missing.into_iter().map(Step::AddRule).collect(), del)
}

fn unblocked<K: Ord + Clone, V: Clone>(
    map: &BTreeMap<K, V>,
    dev: impl Fn(&K) -> &IfName,
    links: &Links,
) -> BTreeMap<K, V> {
    map.iter().filter(|(k, _)| !links.blocked.contains(dev(k))).map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Actual {
    fn addrs_on(&self, links: &Links) -> BTreeMap<AddrKey, ()> {
        self.addrs.keys().filter(|k| links.keeps(&k.dev)).map(|k| (k.clone(), ())).collect()
    }
}
