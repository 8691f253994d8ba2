//! Noticing that somebody changed the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use braid_node_core::actual::SeenLink;
use braid_node_core::desired::nft::TABLE;
use braid_node_core::ours;
use braid_types::IfName;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::sync::Notify;

use crate::error::KernelError;
use crate::pool::OwnPorts;
use crate::rt;
use crate::socket::{NETFILTER, ROUTE};
use crate::wire::{self, Received};

/// `RTNLGRP_*`: links, neighbours, then addresses, routes, rules and parameters of both families.
const ROUTE_GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25];
/// `NFNLGRP_NFTABLES`.
const FILTER_GROUPS: [u32; 1] = [7];
/// `RTM_NEWNETCONF` and `RTM_DELNETCONF`.
const NETCONF: std::ops::RangeInclusive<u16> = 80..=81;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message type.
const NFTABLES: u16 = 10;
/// Room for a burst of events while the thread waits for the processor.
pub(crate) const BUFFER: usize = 8 * 1024 * 1024;

/// Kinds of objects that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Devices, or the default route, by which parents are chosen.
    pub links: bool,
    /// Addresses of any device.
    pub addrs: bool,
    /// Routes in our tables.
    pub routes: bool,
    /// Rules.
    pub rules: bool,
    /// Neighbours on our devices.
    pub neighs: bool,
    /// Forwarding entries of our devices.
    pub fdb: bool,
    /// The table `inet braid`.
    pub nft: bool,
    /// Forwarding or reverse path filtering.
    pub sysctls: bool,
    /// Events were lost: anything may have changed.
    pub lost: bool,
}

impl Dirty {
    /// Nothing changed.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self == Self::default()
    }
}

#[derive(Debug, Default)]
struct Shared {
    dirty: Mutex<Dirty>,
    notify: Notify,
}

/// Watches the namespace in which it was started until it is dropped. What our own [`crate::Kernel`] changes is
/// not reported.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(crate) fn start(own: Arc<OwnPorts>, room: usize) -> Result<Self, KernelError> {
        let subscribe = |protocol, groups: &[u32]| -> io::Result<netlink_sys::Socket> {
            let mut socket = netlink_sys::Socket::new(protocol)?;
            socket.bind_auto()?;
            setsockopt(&socket, sockopt::RcvBufForce, &room)?;
            groups.iter().try_for_each(|g| socket.add_membership(*g))?;
            Ok(socket)
        };
        let open = || -> io::Result<(netlink_sys::Socket, netlink_sys::Socket, EventFd)> {
            let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
            Ok((subscribe(ROUTE, &ROUTE_GROUPS)?, subscribe(NETFILTER, &FILTER_GROUPS)?, stop))
        };
        let (route, filter, stop) = open().map_err(KernelError::system("watch for kernel changes"))?;
        let stop = Arc::new(stop);
        let shared = Arc::new(Shared::default());
        let mut watch = Watch { own, shared: Arc::clone(&shared), links: BTreeMap::new(), blind: false };
        // Subscribed first, listed second: nothing falls in between.
        watch.list()?;
        let thread = std::thread::Builder::new()
            .name("kernel-monitor".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || watch.run(&route, &filter, &stop)
            })
            .map_err(KernelError::system("start the monitor's thread"))?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Waits for a change and tells which kinds of objects changed since the last call. Safe to cancel.
    pub async fn changed(&self) -> Dirty {
        loop {
            let notified = self.shared.notify.notified();
            let dirty =
                std::mem::take(&mut *self.shared.dirty.lock().unwrap_or_else(PoisonError::into_inner));
            if !dirty.is_clean() {
                return dirty;
            }
            notified.await;
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The thread waits on this descriptor; if it cannot be told, waiting for it would never end.
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// What the monitor's thread remembers.
struct Watch {
    own: Arc<OwnPorts>,
    shared: Arc<Shared>,
    /// Last look of each device: a change of counters or carrier alone is none for us.
    links: BTreeMap<u32, (IfName, SeenLink)>,
    /// The devices could not be listed: any event may be about one of ours.
    blind: bool,
}

impl Watch {
    fn list(&mut self) -> Result<(), KernelError> {
        let mut socket = crate::socket::Socket::open(ROUTE)?;
        let replies = socket.dump("devices", &rt::link::list())?;
        self.links = replies
            .of(rt::link::NEW)
            .filter_map(rt::link::read)
            .map(|r| (r.seen.index, (r.name, r.seen)))
            .collect();
        Ok(())
    }

    fn run(&mut self, route: &netlink_sys::Socket, filter: &netlink_sys::Socket, stop: &EventFd) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut fds = [
                PollFd::new(route.as_fd(), PollFlags::POLLIN),
                PollFd::new(filter.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                // Without poll nothing can be seen any more: say so once, the periodic resync goes on.
                Err(_) => return self.report(Dirty { lost: true, ..Dirty::default() }),
            }
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
            let [from_route, from_filter, stopped] = [ready(&fds[0]), ready(&fds[1]), ready(&fds[2])];
            if stopped {
                return;
            }
            let mut dirty = Dirty::default();
            for (socket, _) in [(route, from_route), (filter, from_filter)].into_iter().filter(|(_, r)| *r) {
                self.drain(socket, &mut buffer, &mut dirty);
            }
            self.report(dirty);
        }
    }

    /// Reads all that is there, so that a burst becomes one report.
    fn drain(&mut self, socket: &netlink_sys::Socket, buffer: &mut [u8], dirty: &mut Dirty) {
        let mut lost = false;
        loop {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(n) => {
                    for message in wire::messages(&buffer[..n]) {
                        self.message(&message, dirty);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // The kernel throws events away until the queue is empty (netlink_overrun), so it is emptied before
                // anything is listed: what is listed then is missed by nobody.
                Err(Errno::ENOBUFS) => lost = true,
                Err(_) => {
                    lost = true;
                    break;
                }
            }
        }
        dirty.lost |= lost;
        if lost || self.blind {
            self.catch_up();
        }
    }

    /// After events were lost: devices may have come, gone or changed.
    fn catch_up(&mut self) {
        self.blind = self.list().is_err();
    }

    fn report(&self, new: Dirty) {
        if new.is_clean() {
            return;
        }
        let mut all = self.shared.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        *all = Dirty {
            links: all.links | new.links,
            addrs: all.addrs | new.addrs,
            routes: all.routes | new.routes,
            rules: all.rules | new.rules,
            neighs: all.neighs | new.neighs,
            fdb: all.fdb | new.fdb,
            nft: all.nft | new.nft,
            sysctls: all.sysctls | new.sysctls,
            lost: all.lost | new.lost,
        };
        drop(all);
        self.shared.notify.notify_one();
    }

    fn message(&mut self, message: &Received<'_>, dirty: &mut Dirty) {
        // Our own changes still have to be remembered.
        let by_others = !self.own.contains(message.port);
        let body = message.body;
        match message.kind {
            rt::link::NEW | rt::link::DEL => {
                dirty.links |= self.link(message.kind == rt::link::NEW, body) && by_others;
            }
            _ if !by_others => {}
            rt::addr::NEW | rt::addr::DEL => dirty.addrs = true,
            rt::route::NEW | rt::route::DEL => {
                let ours = rt::route::table(body).is_some_and(ours::table);
                dirty.routes |= ours;
                dirty.links |= !ours && body.get(1) == Some(&0);
            }
            rt::rule::NEW | rt::rule::DEL => dirty.rules = true,
            rt::neigh::NEW | rt::neigh::DEL => self.neigh(body, dirty),
            kind if NETCONF.contains(&kind) => dirty.sysctls = true,
            kind if kind >> 8 == NFTABLES => {
                // Every nftables message about an object has the table as its first attribute.
                let table = wire::attr(body, 4, 1).and_then(wire::text);
                dirty.nft |= body.first() == Some(&1) && table == Some(TABLE);
            }
            _ => {}
        }
    }

    /// Whether a message about a device says something new.
    fn link(&mut self, exists: bool, body: &[u8]) -> bool {
        // A bridge reports its ports in messages of its own family; they say nothing about the device.
        if body.first() != Some(&rt::AF_UNSPEC) {
            return false;
        }
        let Some(read) = rt::link::read(body) else { return false };
        let index = read.seen.index;
        if !exists {
            return self.links.remove(&index).is_some();
        }
        let new = (read.name, read.seen);
        let same = self.links.get(&index) == Some(&new);
        self.links.insert(index, new);
        !same
    }

    fn neigh(&self, body: &[u8], dirty: &mut Dirty) {
        let index = wire::u32_at(body, 4).unwrap_or_default();
        let on_ours = self.links.get(&index).is_some_and(|(name, seen)| ours::link(name, seen));
        if !on_ours && !self.blind {
            return;
        }
        if body.first() == Some(&rt::AF_BRIDGE) {
            dirty.fdb = true;
            return;
        }
        // Link-local neighbours come and go by themselves and are never ours.
        let of_ours = match rt::neigh::dst(body) {
            Some(IpAddr::V6(a)) => !a.is_unicast_link_local() && !a.is_multicast(),
            Some(IpAddr::V4(a)) => !a.is_multicast() && !a.is_link_local(),
            None => false,
        };
        dirty.neighs |= of_ours;
    }
}
