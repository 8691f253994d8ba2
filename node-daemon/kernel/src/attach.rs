//! One pod interface: making it, removing it, comparing it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use braid_node_core::actual::SeenRoute;
use braid_node_core::attach::{self, PodEnd, Wiring};
use braid_node_core::desired::{AddrKey, Link, NeighKey, Route, RouteKey};
use braid_node_core::ours;
use braid_node_core::plan::{Plan, Step};
use braid_types::well_known::table;
use braid_types::{Family, IfName, Mac};

use crate::apply::on_device;
use crate::error::{AttachError, KernelError, Refusal, Side};
use crate::rt::{self, Devices};
use crate::socket::{self, Socket};
use crate::{Kernel, netns, nft, sysctl};

/// Something about an interface that is not as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What is missing or different.
    pub what: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Kernel {
    /// Makes a pod's interface with everything that belongs to it. When a step fails, those before it are undone.
    ///
    /// # Errors
    /// The step that failed and why. The pod's namespace may be gone (`ENOENT`), or it may have an interface of
    /// that name already (`EEXIST`).
    pub fn attach(&self, wiring: &Wiring) -> Result<(), AttachError> {
        let mut done: Vec<&Step> = Vec::new();
        let steps = attach::steps(wiring);
        self.attach_steps(wiring, &steps, &mut done).map_err(|(step, error)| {
            let undo = done.iter().rev().filter_map(|s| s.undo()).collect();
            let report = self.apply(&Plan { steps: undo, conflicts: Vec::new() });
            AttachError { step, error, left: report.failed }
        })
    }

    /// Steps on the host's devices are sent together, as soon as the pair exists; then the pod's addresses are announced.
    fn attach_steps<'a>(
        &self,
        wiring: &Wiring,
        steps: &'a [Step],
        done: &mut Vec<&'a Step>,
    ) -> Result<(), (Box<Step>, KernelError)> {
        let failed = |step: &Step| {
            let step = Box::new(step.clone());
            move |error| (step, error)
        };
        let mut devices = Devices::default();
        let mut rest = Vec::new();
        let mut words = Vec::new();
        for step in steps {
            match step {
                Step::AddElements(elements) => {
                    self.filter.with(|s| nft::add(s, elements)).map_err(failed(step))?;
                    done.push(step);
                }
                Step::AddVeth { link, pod } => {
                    let index = self.make_pair(link, pod).map_err(failed(step))?;
                    devices = self.with_parents(wiring, index).map_err(failed(step))?;
                    done.push(step);
                }
                Step::SetSysctl { path, value } => {
                    ensure_sysctl(path, value).map_err(failed(step))?;
                    done.push(step);
                }
                Step::Announce(key) => words.push((step, key)),
                other => rest.push((other, on_device(other, &devices).map_err(failed(other))?)),
            }
        }
        let Some((last, _)) = rest.last() else { return Ok(()) };
        let (steps, requests): (Vec<_>, Vec<_>) = rest.iter().map(|(s, m)| (*s, m.clone())).unzip();
        let (outcomes, _) = self.route.with(|socket| socket.batch(requests)).map_err(failed(last))?;
        let mut first_failure = None;
        for (step, outcome) in steps.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => done.push(step),
                Err(r) => {
                    let error = KernelError::refused(step.to_string())(r);
                    first_failure.get_or_insert((Box::new(step.clone()), error));
                }
            }
        }
        if let Some(failure) = first_failure {
            return Err(failure);
        }
        words.into_iter().try_for_each(|(step, key)| self.announce(key).map_err(failed(step)))
    }

    /// The pair, and the devices on which the node answers for the pod.
    fn with_parents(&self, wiring: &Wiring, index: u32) -> Result<Devices, KernelError> {
        let mut known = vec![(wiring.link.name.clone(), index)];
        for dev in wiring.proxies.iter().map(|key| &key.dev).collect::<BTreeSet<_>>() {
            let seen = self.route.with(|socket| read_link(socket, dev))?;
            known.extend(seen.map(|seen| (dev.clone(), seen.index)));
        }
        Ok(known.into_iter().collect())
    }

    /// Makes a veth pair and its end in the pod; returns the index of the host's end. Leaves nothing behind when
    /// it fails.
    pub(crate) fn make_pair(&self, link: &Link, pod: &PodEnd) -> Result<u32, KernelError> {
        let namespace = netns::open_of(pod)?;
        let add = rt::link::add_veth(link, pod, namespace.as_fd());
        self.exchange(vec![add], format!("make veth pair {} with {}", link.name, pod.name))
            .map_err(|error| self.name_taken(error, link, pod))?;
        self.finish_pair(link, pod, &namespace).inspect_err(|_| {
            // The error that is returned says more than a second one could.
            let _ = self.exchange(vec![rt::link::del(&link.name)], format!("remove device {}", link.name));
        })
    }

    /// Which of the two names it is that the kernel says exists already.
    fn name_taken(&self, error: KernelError, link: &Link, pod: &PodEnd) -> KernelError {
        let source = match error {
            KernelError::Refused { source, .. } if source.errno == nix::libc::EEXIST => source,
            other => return other,
        };
        let on_host = self.route.with(|socket| read_link(socket, &link.name)).is_ok_and(|l| l.is_some());
        let (name, place) = if on_host { (&link.name, Side::Host) } else { (&pod.name, Side::Pod) };
        KernelError::NameTaken { name: name.clone(), place, source }
    }

    fn finish_pair(&self, link: &Link, pod: &PodEnd, namespace: &File) -> Result<u32, KernelError> {
        let mut requests = rt::link::finish(link, self.has_v6());
        requests.push(rt::link::get(&link.name));
        let (outcomes, replies) = self.route.with(|socket| socket.batch(requests))?;
        outcomes
            .into_iter()
            .collect::<Result<Vec<()>, Refusal>>()
            .map_err(KernelError::refused(format!("set up device {}", link.name)))?;
        let seen = replies.of(rt::link::NEW).find_map(rt::link::read).map(|r| r.seen);
        let no_device = || KernelError::NoDevice(link.name.clone());
        let seen = seen.ok_or_else(no_device)?;
        let peer = seen.peer_index.ok_or_else(no_device)?;
        netns::enter(namespace, Path::new(&pod.netns), || set_up_pod_end(pod, peer))??;
        Ok(seen.index)
    }

    /// Removes a pod's interface: the answers for those of its addresses that nobody else has here (`unanswered`), the
    /// pair with all that hangs on it, and the set elements. What is already gone is no error. Without the wiring, addresses
    /// and elements are searched by device.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(
        &self,
        host_if: &IfName,
        wiring: Option<&Wiring>,
        unanswered: &BTreeSet<IpAddr>,
    ) -> Result<(), KernelError> {
        match wiring {
            Some(_) => self.stop_answering(unanswered)?,
            None => {
                let behind = self.addresses_behind(host_if)?;
                self.stop_answering(&unanswered.union(&behind).copied().collect())?;
            }
        }
        let operation = format!("remove device {host_if}");
        let seen = self.route.with(|socket| read_link(socket, host_if))?;
        if seen.is_some_and(|seen| ours::link(host_if, &seen)) {
            let (outcomes, _) = self.route.with(|socket| socket.batch(vec![rt::link::del(host_if)]))?;
            for refusal in outcomes.into_iter().filter_map(Result::err) {
                if refusal.errno != nix::libc::ENODEV {
                    return Err(KernelError::refused(operation)(refusal));
                }
            }
        }
        self.filter.with(|socket| {
            let elements = match wiring {
                Some(wiring) => wiring.elements.clone(),
                None => nft::elements_of(socket, host_if)?,
            };
            nft::remove(socket, &elements)
        })
    }

    /// The addresses that are routed to a pod's device.
    fn addresses_behind(&self, host_if: &IfName) -> Result<BTreeSet<IpAddr>, KernelError> {
        let routes = self.dump_routes()?.routes;
        let local = routes.into_iter().filter(|(key, _)| key.table == table::LOCAL_PODS);
        let behind = local.filter(|(_, route)| match route {
            SeenRoute::Known(route) => route.target.dev() == Some(host_if),
            SeenRoute::Other => false,
        });
        Ok(behind.map(|(key, _)| key.dst.first()).collect())
    }

    /// No longer answers for addresses, on whatever device.
    fn stop_answering(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let all = self.dump_proxies()?;
        let ours =
            all.into_iter().filter(|(key, made_by)| addresses.contains(&key.addr) && ours::proxy(*made_by));
        let plan = Plan { steps: ours.map(|(key, _)| Step::DelProxy(key)).collect(), ..Plan::default() };
        if plan.is_empty() {
            return Ok(());
        }
        self.apply(&plan).failed.into_iter().next().map_or(Ok(()), |failed| Err(failed.error))
    }

    /// Compares a pod's interface with what [`Kernel::attach`] made.
    ///
    /// # Errors
    /// The kernel or the pod's namespace cannot be read.
    pub fn check(&self, wiring: &Wiring) -> Result<Vec<Mismatch>, KernelError> {
        let mut found = Vec::new();
        let host = self.route.with(|socket| End::read(socket, &wiring.link.name))?;
        match host {
            None => found.push(Mismatch { what: format!("device {} is missing", wiring.link.name) }),
            Some(end) => {
                end.compare_addrs(&wiring.addrs, &mut found);
                end.compare_neighs(&wiring.neighs, &mut found);
                self.route.with(|socket| lookup_routes(socket, &wiring.routes, &end, &mut found))?;
                if end.seen.mtu != wiring.link.mtu || !end.seen.up {
                    found.push(Mismatch { what: format!("device {} is down or has another MTU", end.name) });
                }
            }
        }
        if !wiring.proxies.is_empty() {
            let all = self.dump_proxies()?;
            let missing = wiring.proxies.iter().filter(|key| !all.contains_key(key));
            found.extend(
                missing.map(|k| Mismatch { what: format!("nobody answers for {} on {}", k.addr, k.dev) }),
            );
        }
        let pod = &wiring.pod;
        netns::enter(&netns::open_of(pod)?, Path::new(&pod.netns), || compare_pod_end(pod, &mut found))??;
        let missing = self.filter.with(|socket| nft::missing(socket, &wiring.elements))?;
        found.extend(missing.into_iter().flat_map(|(set, elements)| {
            elements.into_iter().map(move |e| Mismatch { what: format!("nftables set {set} lacks {e:?}") })
        }));
        Ok(found)
    }
}

fn ensure_sysctl(path: &str, value: &str) -> Result<(), KernelError> {
    match sysctl::read(path)? {
        Some(now) if now == value => Ok(()),
        _ => sysctl::write(path, value),
    }
}

/// Addresses, gateway neighbour and default routes in the pod, by one socket opened there.
fn set_up_pod_end(pod: &PodEnd, index: u32) -> Result<(), KernelError> {
    if pod.families().any(|f| f == Family::V6) {
        // Some runtimes switch IPv6 off in new namespaces.
        ensure_sysctl(&format!("ipv6/conf/{}/disable_ipv6", pod.name), "0")?;
    }
    let devices: Devices = [(pod.name.clone(), index)].into_iter().collect();
    let mut steps: Vec<Step> =
        pod.addresses.iter().map(|a| Step::AddAddr(AddrKey::host(&pod.name, *a))).collect();
    steps.extend(pod.neighs().into_iter().map(|(key, mac)| Step::PutNeigh(key, mac)));
    steps.extend(pod.routes().into_iter().map(|(key, route)| Step::PutRoute(key, route)));
    let mut requests = vec![rt::link::up(index)];
    for step in &steps {
        requests.push(on_device(step, &devices)?);
    }
    let (outcomes, _) = Socket::open(socket::ROUTE)?.batch(requests)?;
    let mut outcomes = outcomes.into_iter();
    let up = outcomes.next().unwrap_or(Ok(()));
    up.map_err(KernelError::refused(format!("bring up {} in the pod", pod.name)))?;
    for (step, outcome) in steps.iter().zip(outcomes) {
        outcome.map_err(KernelError::refused(format!("{step} in the pod")))?;
    }
    Ok(())
}

fn compare_pod_end(pod: &PodEnd, found: &mut Vec<Mismatch>) -> Result<(), KernelError> {
    let mut socket = Socket::open(socket::ROUTE)?;
    let Some(end) = End::read(&mut socket, &pod.name)? else {
        found.push(Mismatch { what: format!("interface {} is missing in the pod", pod.name) });
        return Ok(());
    };
    if end.seen.mac != Some(pod.mac) {
        found.push(Mismatch { what: format!("interface {} has another MAC than {}", pod.name, pod.mac) });
    }
    if end.seen.mtu != pod.mtu || !end.seen.up {
        found.push(Mismatch { what: format!("interface {} is down or has another MTU", pod.name) });
    }
    let addrs: Vec<_> = pod.addresses.iter().map(|a| AddrKey::host(&pod.name, *a)).collect();
    end.compare_addrs(&addrs, found);
    end.compare_neighs(&pod.neighs(), found);
    for family in pod.families() {
        let main = crate::dump::main_table(&mut socket, family)?;
        let seen: BTreeMap<_, _> =
            main.of(rt::route::NEW).filter_map(|b| rt::route::read(b, &end.devices)).collect();
        for (key, route) in pod.routes().iter().filter(|(k, _)| k.dst.family() == family) {
            if seen.get(key) != Some(&SeenRoute::Known(route.clone())) {
                found.push(Mismatch {
                    what: format!("the pod's route to {} is missing or different", key.dst),
                });
            }
        }
    }
    Ok(())
}

/// One device with what is on it.
struct End {
    name: IfName,
    seen: braid_node_core::actual::SeenLink,
    devices: Devices,
    addrs: Vec<AddrKey>,
    neighs: BTreeMap<NeighKey, Option<Mac>>,
}

impl End {
    fn read(socket: &mut Socket, name: &IfName) -> Result<Option<Self>, KernelError> {
        let Some(seen) = read_link(socket, name)? else { return Ok(None) };
        let devices: Devices = [(name.clone(), seen.index)].into_iter().collect();
        let addrs = socket.dump("addresses", &rt::addr::list_of(seen.index))?;
        let neighs = socket.dump("neighbours", &rt::neigh::list_of(seen.index))?;
        Ok(Some(Self {
            name: name.clone(),
            addrs: addrs
                .of(rt::addr::NEW)
                .filter_map(|b| rt::addr::read(b, 0, &devices))
                .map(|(k, _)| k)
                .collect(),
            neighs: neighs
                .of(rt::neigh::NEW)
                .filter_map(|b| rt::neigh::read(b, &devices))
                .map(|(k, seen)| (k, seen.mac.filter(|_| seen.permanent)))
                .collect(),
            devices,
            seen,
        }))
    }

    fn compare_addrs(&self, wanted: &[AddrKey], found: &mut Vec<Mismatch>) {
        let missing = wanted.iter().filter(|a| !self.addrs.contains(a));
        found.extend(
            missing.map(|a| Mismatch { what: format!("address {} is missing on {}", a.addr, a.dev) }),
        );
    }

    fn compare_neighs(&self, wanted: &BTreeMap<NeighKey, Mac>, found: &mut Vec<Mismatch>) {
        let wrong = wanted.iter().filter(|(key, mac)| self.neighs.get(*key) != Some(&Some(**mac)));
        found.extend(wrong.map(|(key, _)| Mismatch {
            what: format!("the permanent neighbour {} on {} is missing or different", key.addr, key.dev),
        }));
    }
}

/// Asks the kernel which route it would take, through rules and tables: that proves more than a list would.
fn lookup_routes(
    socket: &mut Socket,
    wanted: &BTreeMap<RouteKey, Route>,
    end: &End,
    found: &mut Vec<Mismatch>,
) -> Result<(), KernelError> {
    for (key, route) in wanted {
        let answer = socket.one(rt::route::lookup(key.dst.first()))?.ok();
        let seen = answer
            .as_ref()
            .and_then(|replies| replies.of(rt::route::NEW).next())
            .and_then(|body| rt::route::read(body, &end.devices));
        if seen != Some((key.clone(), SeenRoute::Known(route.clone()))) {
            found.push(Mismatch { what: format!("packets to {} do not take the pod's host route", key.dst) });
        }
    }
    Ok(())
}

pub(crate) fn read_link(
    socket: &mut Socket,
    name: &IfName,
) -> Result<Option<braid_node_core::actual::SeenLink>, KernelError> {
    match socket.one(rt::link::get(name))? {
        Ok(replies) => Ok(replies.of(rt::link::NEW).find_map(rt::link::read).map(|r| r.seen)),
        Err(r) if r.errno == nix::libc::ENODEV => Ok(None),
        Err(r) => Err(KernelError::refused(format!("look up device {name}"))(r)),
    }
}
