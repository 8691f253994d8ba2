//! Reading everything that may concern us.

use std::collections::{BTreeMap, BTreeSet};

use braid_node_core::actual::{Actual, SeenFdb};
use braid_node_core::desired::{Desired, ProxyKey};
use braid_node_core::ours;
use braid_types::{Family, IfName};

use crate::error::KernelError;
use crate::rt::{self, Devices};
use crate::socket::{Replies, Socket};
use crate::{Kernel, nft, sysctl};

/// What to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    only_links: bool,
    sysctls: BTreeSet<String>,
}

impl Scope {
    /// Devices, addresses and default routes: what a `NodeView` needs.
    #[must_use]
    pub fn links() -> Self {
        Self { only_links: true, sysctls: BTreeSet::new() }
    }

    /// Everything that can be compared with `desired`.
    #[must_use]
    pub fn all(desired: &Desired) -> Self {
        Self { only_links: false, sysctls: desired.sysctls.keys().cloned().collect() }
    }
}

impl Kernel {
    /// Reads the kernel.
    ///
    /// # Errors
    /// The kernel refuses a list, or it keeps changing while it is read.
    pub fn dump(&self, scope: &Scope) -> Result<Actual, KernelError> {
        let mut actual = self.route.with(|socket| self.dump_routing(socket, scope))?;
        for path in &scope.sysctls {
            if let Some(value) = sysctl::read(path)? {
                actual.sysctls.insert(path.clone(), value);
            }
        }
        if !scope.only_links {
            actual.nft = self.filter.with(nft::list)?;
        }
        Ok(actual)
    }

    /// Reads devices and the routes with our protocol number: what `braid_node_core::view::wires` needs.
    ///
    /// # Errors
    /// As with [`Kernel::dump`].
    pub fn dump_routes(&self) -> Result<Actual, KernelError> {
        self.route.with(|socket| {
            let mut actual = Actual { links: links(socket)?, ..Actual::default() };
            let devices = Devices::of(&actual);
            self.routes(socket, &devices, &mut actual)?;
            Ok(actual)
        })
    }

    /// Reads the proxy neighbours of both families on all devices.
    ///
    /// # Errors
    /// As with [`Kernel::dump`].
    pub fn dump_proxies(&self) -> Result<BTreeMap<ProxyKey, u8>, KernelError> {
        self.route.with(|socket| {
            let links = links(socket)?;
            let devices = links.into_iter().map(|(name, link)| (name, link.index)).collect();
            proxies(socket, &devices)
        })
    }

    /// Reads the routes with our protocol number.
    fn routes(&self, socket: &mut Socket, devices: &Devices, actual: &mut Actual) -> Result<(), KernelError> {
        for family in &self.families {
            let routes = socket.dump("routes", &rt::route::list_ours(*family))?;
            let ours = routes
                .of(rt::route::NEW)
                .filter(|b| rt::route::protocol(b) == Some(braid_types::well_known::ROUTE_PROTOCOL));
            for (key, seen) in ours.filter_map(|b| rt::route::read(b, devices)) {
                // Of several with one key the kernel uses the first.
                actual.routes.entry(key).or_insert(seen);
            }
        }
        Ok(())
    }

    fn dump_routing(&self, socket: &mut Socket, scope: &Scope) -> Result<Actual, KernelError> {
        let mut actual = Actual { links: links(socket)?, ..Actual::default() };
        let devices = Devices::of(&actual);
        let addrs = socket.dump("addresses", &rt::addr::list())?;
        actual.addrs =
            (0..).zip(addrs.of(rt::addr::NEW)).filter_map(|(i, b)| rt::addr::read(b, i, &devices)).collect();
        for family in &self.families {
            let main = main_table(socket, *family)?;
            let best = main
                .of(rt::route::NEW)
                .filter_map(|b| rt::route::default_dev(b, &devices))
                .min_by_key(|(metric, _)| *metric);
            *actual.default_devs.get_mut(*family) = best.map(|(_, dev)| dev);
        }
        if scope.only_links {
            return Ok(actual);
        }
        for family in &self.families {
            let rules = socket.dump("rules", &rt::rule::list(*family))?;
            actual.rules.extend(rules.of(rt::rule::NEW).filter_map(rt::rule::read));
        }
        self.routes(socket, &devices, &mut actual)?;
        let neighs = socket.dump("neighbours", &rt::neigh::list())?;
        actual.neighs = neighs.of(rt::neigh::NEW).filter_map(|b| rt::neigh::read(b, &devices)).collect();
        actual.proxies = proxies(socket, &devices)?;
        actual.fdb = fdb(socket, &actual, &devices)?;
        Ok(actual)
    }
}

/// The routes of the main table, which does not exist before its first route.
pub(crate) fn main_table(socket: &mut Socket, family: Family) -> Result<Replies, KernelError> {
    match socket.dump("routes of the main table", &rt::route::list_main(family)) {
        Err(KernelError::Refused { source, .. }) if source.errno == nix::libc::ENOENT => {
            Ok(Replies::default())
        }
        other => other,
    }
}

pub(crate) fn links(
    socket: &mut Socket,
) -> Result<BTreeMap<IfName, braid_node_core::actual::SeenLink>, KernelError> {
    let replies = socket.dump("devices", &rt::link::list())?;
    let read: Vec<rt::link::Read> = replies.of(rt::link::NEW).filter_map(rt::link::read).collect();
    let devices: Devices = read.iter().map(|r| (r.name.clone(), r.seen.index)).collect();
    let links = read.into_iter().map(|mut r| {
        if let Some(vxlan) = &mut r.seen.vxlan {
            vxlan.parent = r.parent_index.and_then(|i| devices.name(i)).cloned();
        }
        (r.name, r.seen)
    });
    Ok(links.collect())
}

pub(crate) fn proxies(socket: &mut Socket, devices: &Devices) -> Result<BTreeMap<ProxyKey, u8>, KernelError> {
    let replies = socket.dump("proxy neighbours", &rt::neigh::list_proxies())?;
    Ok(replies.of(rt::neigh::NEW).filter_map(|b| rt::neigh::read_proxy(b, devices)).collect())
}

fn fdb(
    socket: &mut Socket,
    actual: &Actual,
    devices: &Devices,
) -> Result<BTreeMap<braid_node_core::desired::FdbKey, SeenFdb>, KernelError> {
    let mut all: BTreeMap<_, SeenFdb> = BTreeMap::new();
    let tunnels = actual.links.iter().filter(|(name, seen)| seen.vxlan.is_some() && ours::link(name, seen));
    for (_, seen) in tunnels {
        let replies = socket.dump("forwarding entries", &rt::neigh::list_fdb(seen.index))?;
        let entries = replies.of(rt::neigh::NEW);
        for (key, dst, permanent) in entries.filter_map(|b| rt::neigh::read_fdb(b, seen.index, devices)) {
            let entry = all.entry(key).or_insert(SeenFdb { dsts: BTreeSet::new(), permanent: true });
            entry.dsts.extend(dst);
            entry.permanent &= permanent;
        }
    }
    Ok(all)
}
