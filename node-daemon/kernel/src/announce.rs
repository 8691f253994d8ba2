//! Word of an address on a link: whether somebody has it already, and that it is here now.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use braid_node_core::desired::ProxyKey;
use braid_types::{Family, IfName, Mac};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

use crate::error::KernelError;
use crate::rt::{self, Devices};
use crate::{Kernel, frame};

/// Times that a question is asked, as the first frame may be lost.
const ASKED: u32 = 2;
/// Bytes of the longest frame that is of interest.
const LONGEST: usize = 1600;

/// Somebody who has an address already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The address.
    pub address: IpAddr,
    /// Where it is.
    pub mac: Mac,
}

/// The device from which frames go.
struct Sender {
    index: u32,
    mac: Mac,
    /// The source of IPv6 messages.
    link_local: Option<Ipv6Addr>,
}

impl Kernel {
    /// Tells the neighbours on a device that an address is to be found here from now on.
    ///
    /// # Errors
    /// The device does not exist, is down, or is none with hardware addresses.
    pub fn announce(&self, key: &ProxyKey) -> Result<(), KernelError> {
        let sender = self.sender(&key.dev)?;
        let own = match key.addr {
            IpAddr::V6(a) => sender.link_local.unwrap_or(a),
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        };
        let frame = frame::announcement(key.addr, sender.mac, own);
        let send = || open(Family::of(key.addr), sender.index)?.write_all(&frame);
        send().map_err(KernelError::system(format!("announce {} on {}", key.addr, key.dev)))
    }

    /// Asks whether somebody on a device's link has one of the addresses; waits `wait` for an answer. Hosts answer that have
    /// the address themselves, those that answer for others do not count.
    ///
    /// # Errors
    /// As with [`Kernel::announce`].
    pub fn probe(
        &self,
        dev: &IfName,
        addresses: &BTreeSet<IpAddr>,
        wait: Duration,
    ) -> Result<Option<Holder>, KernelError> {
        let sender = self.sender(dev)?;
        ask(&sender, addresses, wait).map_err(KernelError::system(format!("ask for addresses on {dev}")))
    }

    fn sender(&self, dev: &IfName) -> Result<Sender, KernelError> {
        self.route.with(|socket| {
            let seen =
                crate::attach::read_link(socket, dev)?.ok_or_else(|| KernelError::NoDevice(dev.clone()))?;
            let mac = seen.mac.ok_or_else(|| {
                let why = io::Error::other("it has no hardware address");
                KernelError::system(format!("send frames on {dev}"))(why)
            })?;
            let devices: Devices = [(dev.clone(), seen.index)].into_iter().collect();
            let addresses = socket.dump("addresses", &rt::addr::list_of(seen.index))?;
            let mut found = addresses
                .of(rt::addr::NEW)
                .filter_map(|b| rt::addr::read(b, 0, &devices))
                .map(|(k, _)| k.addr);
            let link_local = found.find_map(|a| match a {
                IpAddr::V6(a) if a.is_unicast_link_local() => Some(a),
                _ => None,
            });
            Ok(Sender { index: seen.index, mac, link_local })
        })
    }
}

fn ask(sender: &Sender, addresses: &BTreeSet<IpAddr>, wait: Duration) -> io::Result<Option<Holder>> {
    let mut sockets = Vec::new();
    for family in Family::ALL {
        if addresses.iter().any(|a| Family::of(*a) == family) {
            sockets.push((family, open(family, sender.index)?));
        }
    }
    let begin = Instant::now();
    for round in 1..=ASKED {
        for address in addresses {
            let socket = sockets.iter_mut().find(|(family, _)| *family == Family::of(*address));
            if let Some((_, socket)) = socket {
                socket.write_all(&frame::probe(*address, sender.mac))?;
            }
        }
        if let Some(holder) = listen(&mut sockets, sender, addresses, begin + wait * round / ASKED)? {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// Reads until somebody claims one of the addresses, or until `end`.
fn listen(
    sockets: &mut [(Family, Socket)],
    sender: &Sender,
    addresses: &BTreeSet<IpAddr>,
    end: Instant,
) -> io::Result<Option<Holder>> {
    let mut buffer = [0; LONGEST];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|(_, s)| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        // Rounded up, so that the last moment is slept through and not spun.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> =
            // An error is ready as well: reading tells it.
            fds.iter().map(|fd| fd.revents().is_some_and(|r| !r.is_empty())).collect();
        for ((_, socket), _) in sockets.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            let n = socket.read(&mut buffer)?;
            let claim =
                frame::claim(&buffer[..n]).filter(|(a, mac)| addresses.contains(a) && *mac != sender.mac);
            if let Some((address, mac)) = claim {
                return Ok(Some(Holder { address, mac }));
            }
        }
    }
}

/// A socket for whole frames of one kind on one device (packet(7)).
fn open(family: Family, index: u32) -> io::Result<Socket> {
    // Of no protocol until it is bound: nothing is received on other devices.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let protocol = match family {
        Family::V4 => frame::ARP,
        Family::V6 => {
            let filter = frame::ONLY_ADVERTISEMENTS.map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k));
            socket.attach_filter(&filter)?;
            frame::IPV6
        }
    };
    socket.bind(&link_address(protocol, index)?)?;
    Ok(socket)
}

/// A `sockaddr_ll`, which no library makes.
fn link_address(protocol: u16, index: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "the only address family here that socket2 has no constructor for")]
    // SAFETY: the storage is zeroed, large enough and aligned for every kind of address, and all zeroes are a valid
    // `sockaddr_ll`; family and length are set to those of one.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let link = &mut *storage.cast::<libc::sockaddr_ll>();
            link.sll_family = family;
            link.sll_protocol = protocol.to_be();
            link.sll_ifindex = index;
            *len = length;
            Ok(())
        })
    }?;
    Ok(address)
}
