//! A kernel on paper: carries out a plan as the real one does, as far as plans can tell.

use std::collections::{BTreeMap, BTreeSet};

use braid_node_core::actual::{
    Actual, SeenAddr, SeenChain, SeenLink, SeenNeigh, SeenRoute, SeenRule, SeenSet, SeenTable, SeenVxlan,
};
use braid_node_core::desired::nft::{Elements, Table};
use braid_node_core::desired::{Link, LinkKind, sysctl};
use braid_node_core::plan::{Plan, Step};
use braid_types::IfName;
use braid_types::well_known::ROUTE_PROTOCOL;

/// Carries out every step. A step that the real kernel would refuse is a mistake of the plan.
pub(crate) fn apply(mut kernel: Actual, plan: &Plan) -> Actual {
    for step in &plan.steps {
        one(&mut kernel, step).unwrap_or_else(|why| panic!("{step}: {why}\nin {plan:#?}"));
    }
    kernel
}

fn one(kernel: &mut Actual, step: &Step) -> Result<(), String> {
    match step {
        Step::SetSysctl { path, value } => {
            if let Some(dev) = sysctl::device(path) {
                let exists = kernel.links.keys().any(|k| k.as_str() == dev);
                exists.then_some(()).ok_or("no such device")?;
            }
            kernel.sysctls.insert(path.clone(), value.clone());
        }
        Step::ReplaceTable(table) => kernel.nft = Some(seen_table(table)),
        Step::DelTable => kernel.nft = None,
        Step::AddElements(elements) => change(kernel, elements, |set, e| set.elements.insert(e))?,
        Step::DelElements(elements) => change(kernel, elements, |set, e| set.elements.remove(&e))?,
        Step::DelLink(name) => del_link(kernel, name)?,
        Step::AddVxlan(link) | Step::AddVeth { link, .. } => {
            if kernel.links.contains_key(&link.name) {
                return Err("exists".into());
            }
            if let LinkKind::Vxlan(v) = &link.kind {
                device(kernel, &v.parent)?;
                let same = |s: &SeenVxlan| s.vni == v.vni.get() && s.port == v.port;
                if kernel.links.values().any(|l| l.vxlan.as_ref().is_some_and(same)) {
                    return Err("another VXLAN device has this VNI and port".into());
                }
            }
            kernel.links.insert(link.name.clone(), seen_link(link));
        }
        Step::SetLink { link, mac } => {
            let seen = kernel.links.get_mut(&link.name).ok_or("no such device")?;
            let old_mac = seen.mac;
            *seen = seen_link(link);
            if *mac {
                kernel.neighs.retain(|k, _| k.dev != link.name);
            } else if old_mac != Some(link.mac) {
                return Err("the wrong hardware address would stay".into());
            }
        }
        Step::AddAddr(key) => {
            device(kernel, &key.dev)?;
            kernel.addrs.insert(key.clone(), SeenAddr::default());
        }
        Step::DelAddr(key) => kernel.addrs.remove(key).map(|_| ()).ok_or("no such address")?,
        Step::PutNeigh(key, mac) => {
            device(kernel, &key.dev)?;
            kernel.neighs.insert(key.clone(), SeenNeigh { mac: Some(*mac), permanent: true });
        }
        Step::DelNeigh(key) => kernel.neighs.remove(key).map(|_| ()).ok_or("no such neighbour")?,
        Step::PutProxy(key) => {
            device(kernel, &key.dev)?;
            kernel.proxies.insert(key.clone(), ROUTE_PROTOCOL);
        }
        Step::DelProxy(key) => kernel.proxies.remove(key).map(|_| ()).ok_or("no such proxy")?,
        Step::Announce(key) => {
            let ours = kernel.proxies.get(key) == Some(&ROUTE_PROTOCOL);
            ours.then_some(()).ok_or("announced before anybody answers")?;
        }
        Step::PutFdb(key, dst) => {
            device(kernel, &key.dev)?;
            let entry = kernel.fdb.entry(key.clone()).or_default();
            // The kernel replaces the first destination and leaves others alone.
            if !entry.dsts.contains(dst) {
                entry.dsts.pop_first();
                entry.dsts.insert(*dst);
            }
            entry.permanent = true;
        }
        Step::DelFdb(key, dst) => {
            let entry = kernel.fdb.get_mut(key).ok_or("no such entry")?;
            entry.dsts.remove(dst).then_some(()).ok_or("no such destination")?;
            if entry.dsts.is_empty() {
                kernel.fdb.remove(key);
            }
        }
        Step::PutRoute(key, route) => {
            if let Some(dev) = route.target.dev() {
                device(kernel, dev)?;
            }
            kernel.routes.insert(key.clone(), SeenRoute::Known(route.clone()));
        }
        Step::DelRoute(key) => kernel.routes.remove(key).map(|_| ()).ok_or("no such route")?,
        Step::AddRule(rule) => {
            kernel.rules.push(SeenRule { rule: rule.clone(), protocol: ROUTE_PROTOCOL, plain: true });
        }
        Step::DelRule(rule) => {
            let at = kernel
                .rules
                .iter()
                .position(|s| s.rule == *rule && s.protocol == ROUTE_PROTOCOL && s.plain)
                .ok_or("no such rule")?;
            kernel.rules.remove(at);
        }
    }
    kernel.rules.sort();
    Ok(())
}

fn device(kernel: &Actual, name: &IfName) -> Result<(), String> {
    kernel.links.contains_key(name).then_some(()).ok_or_else(|| format!("device {name} does not exist"))
}

/// Everything on a device goes with it.
pub(crate) fn del_link(kernel: &mut Actual, name: &IfName) -> Result<(), String> {
    kernel.links.remove(name).ok_or("no such device")?;
    kernel.addrs.retain(|k, _| k.dev != *name);
    kernel.neighs.retain(|k, _| k.dev != *name);
    kernel.proxies.retain(|k, _| k.dev != *name);
    kernel.fdb.retain(|k, _| k.dev != *name);
    kernel.sysctls.retain(|path, _| sysctl::device(path) != Some(name.as_str()));
    kernel.routes.retain(|_, r| match r {
        SeenRoute::Known(r) => r.target.dev() != Some(name),
        SeenRoute::Other => true,
    });
    Ok(())
}

fn seen_link(link: &Link) -> SeenLink {
    let vxlan = match &link.kind {
        LinkKind::HostVeth => None,
        LinkKind::Vxlan(v) => Some(SeenVxlan {
            vni: v.vni.get(),
            port: v.port,
            local: Some(v.local),
            parent: Some(v.parent.clone()),
            learning: false,
        }),
    };
    SeenLink {
        kind: if vxlan.is_some() { "vxlan" } else { "veth" }.to_owned(),
        mac: Some(link.mac),
        mtu: link.mtu,
        up: true,
        alias: link.alias.clone(),
        group: link.kind.group(),
        vxlan,
        ..SeenLink::default()
    }
}

fn seen_table(table: &Table) -> SeenTable {
    let sets = table.sets.iter().map(|(name, set)| {
        let seen = SeenSet {
            key_len: set.key_len(),
            interval: set.interval,
            elements: set.elements.clone(),
            strange: false,
        };
        (name.clone(), seen)
    });
    let chains = table.chains.iter().map(|(name, chain)| {
        let rules = chain.rules.iter().map(braid_node_core::desired::nft::Rule::mark).collect();
        (name.clone(), SeenChain { hook: Some(chain.hook), priority: chain.priority, rules })
    });
    SeenTable { sets: sets.collect(), chains: chains.collect() }
}

fn change(
    kernel: &mut Actual,
    elements: &Elements,
    f: impl Fn(&mut SeenSet, braid_node_core::desired::nft::Element) -> bool,
) -> Result<(), String> {
    let table = kernel.nft.as_mut().ok_or("no table")?;
    for (name, members) in elements {
        let set = table.sets.get_mut(name).ok_or("no set")?;
        for element in members {
            f(set, element.clone()).then_some(()).ok_or("nothing to change")?;
        }
    }
    Ok(())
}

/// What a kernel holds apart from what is ours, for comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) links: BTreeMap<IfName, SeenLink>,
    pub(crate) addrs: BTreeSet<String>,
    pub(crate) rules: Vec<SeenRule>,
    pub(crate) routes: BTreeSet<String>,
    pub(crate) neighs: BTreeSet<String>,
    pub(crate) proxies: BTreeSet<String>,
    pub(crate) fdb: BTreeSet<String>,
}

/// The foreign part of a kernel, by an own reading of the table in `ours`.
pub(crate) fn foreign(kernel: &Actual) -> Foreign {
    let is_ours = |name: &IfName| {
        kernel.links.get(name).is_some_and(|l| match l.kind.as_str() {
            "veth" => {
                let hex = name.as_str().strip_prefix("braid").unwrap_or_default();
                let named =
                    hex.len() == 10 && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
                let marks = [named, l.alias.starts_with("braid:"), l.group == 176];
                marks.into_iter().filter(|m| *m).count() >= 2
            }
            "vxlan" => {
                let vni = l.vxlan.as_ref().map(|v| v.vni).unwrap_or_default();
                let named =
                    name.as_str().ends_with(&format!(".vxlan{vni}")) || name.as_str().starts_with("bv");
                let marks = [named, l.alias.starts_with("braid:"), l.group == 177];
                marks.into_iter().filter(|m| *m).count() >= 2
            }
            _ => false,
        })
    };
    let our_table = |t: u32| (10001..=40001).contains(&t);
    let our_rule = |s: &SeenRule| {
        let plain = s.plain && (s.rule.from.is_none() || [3229, 3230].contains(&s.rule.priority));
        s.protocol == 176 && plain && (3200..=3230).contains(&s.rule.priority)
    };
    let text = |x: &dyn std::fmt::Debug| format!("{x:?}");
    Foreign {
        links: kernel
            .links
            .iter()
            .filter(|(n, _)| !is_ours(n))
            .map(|(n, l)| (n.clone(), l.clone()))
            .collect(),
        addrs: kernel.addrs.iter().filter(|(k, _)| !is_ours(&k.dev)).map(|e| text(&e)).collect(),
        rules: kernel.rules.iter().filter(|s| !our_rule(s)).cloned().collect(),
        routes: kernel.routes.iter().filter(|(k, _)| !our_table(k.table)).map(|e| text(&e)).collect(),
        neighs: kernel
            .neighs
            .iter()
            .filter(|(k, s)| !is_ours(&k.dev) || !s.permanent)
            .map(|e| text(&e))
            .collect(),
        proxies: kernel.proxies.iter().filter(|(_, protocol)| **protocol != 176).map(|e| text(&e)).collect(),
        fdb: kernel.fdb.iter().filter(|(k, _)| !is_ours(&k.dev)).map(|e| text(&e)).collect(),
    }
}
