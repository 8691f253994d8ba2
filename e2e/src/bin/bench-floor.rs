//! The floor that `CNI ADD` is measured against: one process that makes a pod's interface with as few system calls as
//! the kernel allows, and does nothing else. No configuration, no agent, no journal, no undo, no filter.
//!
//! `bench-floor <netns path> <host device> <device index> <MAC> <IPv4> <IPv6>` makes a veth pair with its end `eth0` in
//! the namespace, the addresses, neighbours and routes that Braid makes, in the same tables.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NEW_LINK: u16 = 16;
const NEW_ADDR: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGH: u16 = 28;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const CHANGE: u16 = 0x5;
/// The same with `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE: u16 = 0x605;
const NESTED: u16 = 0x8000;
const UP: u32 = 1;
/// Bytes a pod may send in one packet through VXLAN on Ethernet.
const MTU: u32 = 1450;
/// Table of host routes to local pods.
const LOCAL_PODS: u32 = 39_999;
const MAIN: u32 = 254;
const GATEWAY_MAC: [u8; 6] = [0xee; 6];
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee)),
];
/// Index of the device in the pod's namespace, chosen here so that it need not be asked for.
const POD_INDEX: u32 = 1000;

/// Messages that are sent together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize((bytes.len() + 3) & !3, 0);
}

fn attribute(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    into.extend_from_slice(&length.to_ne_bytes());
    into.extend_from_slice(&kind.to_ne_bytes());
    into.extend_from_slice(value);
    pad(into);
}

fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    list.iter().for_each(|(kind, value)| attribute(&mut bytes, *kind, value));
    bytes
}

/// `struct ifinfomsg`.
fn link_header(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { UP } else { 0 };
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Address family and length of an address in bits.
fn family(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (2, 32) } else { (10, 128) }
}

impl Batch {
    fn add(&mut self, kind: u16, flags: u16, header: &[u8], list: &[(u16, &[u8])]) {
        let start = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        self.bytes.extend_from_slice(&attributes(list));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// `noprefixroute`, without duplicate address detection.
    fn address(&mut self, index: u32, address: IpAddr, length: u8) {
        let (family, _) = family(address);
        let [a, b, c, d] = index.to_ne_bytes();
        let bytes = octets(address);
        let flags = 0x202_u32.to_ne_bytes();
        self.add(
            NEW_ADDR,
            CREATE,
            &[family, length, 0, 0, a, b, c, d],
            &[(2, &bytes), (1, &bytes), (8, &flags)],
        );
    }

    /// Permanent.
    fn neighbour(&mut self, index: u32, address: IpAddr, mac: &[u8]) {
        let [a, b, c, d] = index.to_ne_bytes();
        let header = [family(address).0, 0, 0, 0, a, b, c, d, 0x80, 0, 0, 0];
        self.add(NEW_NEIGH, CREATE, &header, &[(1, &octets(address)), (2, mac)]);
    }

    /// On the device itself, or via a gateway that is taken to be on-link.
    fn route(&mut self, index: u32, table: u32, to: Option<IpAddr>, via: Option<IpAddr>) {
        let Some(any) = to.or(via) else { return };
        let (family, bits) = family(any);
        let length = if to.is_some() { bits } else { 0 };
        let scope = if via.is_none() && family == 2 { 253 } else { 0 };
        let onlink = if via.is_some() { 4_u32 } else { 0 }.to_ne_bytes();
        // Protocol 176, unicast.
        let mut header = vec![family, length, 0, 0, 0, 176, scope, 1];
        header.extend_from_slice(&onlink);
        let (table, index) = (table.to_ne_bytes(), index.to_ne_bytes());
        let (to, via) = (to.map(octets), via.map(octets));
        let mut list: Vec<(u16, &[u8])> = vec![(15, &table), (4, &index)];
        list.extend(to.as_deref().map(|to| (1, to)));
        list.extend(via.as_deref().map(|via| (5, via)));
        self.add(NEW_ROUTE, CREATE, &header, &list);
    }

    fn send(self, netlink: &OwnedFd) -> Result<()> {
        send(netlink.as_raw_fd(), &self.bytes, MsgFlags::empty()).context("send to the kernel")?;
        let mut buffer = vec![0; 32 * 1024];
        let mut answered = 0;
        while answered < self.count {
            let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .context("receive from the kernel")?;
            let mut rest = &buffer[..length];
            while let Some((size, error)) = rest.get(..20).map(|m| {
                (
                    u32::from_ne_bytes([m[0], m[1], m[2], m[3]]),
                    i32::from_ne_bytes([m[16], m[17], m[18], m[19]]),
                )
            }) {
                answered += 1;
                ensure!(error == 0, "request {answered} of {} refused: errno {}", self.count, -error);
                rest = rest.get((size as usize + 3) & !3..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

fn open() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute).context("netlink socket")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, device, index, mac, v4, v6] = arguments.as_slice() else {
        bail!("usage: bench-floor <netns path> <host device> <device index> <MAC> <IPv4> <IPv6>")
    };
    let index: u32 = index.parse()?;
    let mac: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>()?;
    let addresses: [IpAddr; 2] = [v4.parse()?, v6.parse()?];
    let namespace = File::open(path)?;

    let mut host = Batch::default();
    let name = [device.as_bytes(), &[0]].concat();
    let mtu = MTU.to_ne_bytes();
    // The kernel refuses to bring this end up before the other one is there.
    let mut peer = link_header(POD_INDEX, false);
    let descriptor = namespace.as_raw_fd().to_ne_bytes();
    peer.extend(attributes(&[(3, b"eth0\0"), (1, &mac), (4, &mtu), (28, &descriptor)]));
    let data = attributes(&[(1, &peer)]);
    let info = attributes(&[(1, b"veth\0"), (2 | NESTED, &data)]);
    host.add(
        NEW_LINK,
        CREATE,
        &link_header(index, false),
        &[(3, &name), (1, &GATEWAY_MAC), (4, &mtu), (18 | NESTED, &info)],
    );
    // No link-local address of the kernel's own making; that must be said before the device comes up.
    let spec = attributes(&[(10 | NESTED, &attributes(&[(8, &[1])]))]);
    host.add(NEW_LINK, CHANGE, &link_header(index, false), &[(26 | NESTED, &spec)]);
    host.add(NEW_LINK, CHANGE, &link_header(index, true), &[]);
    host.address(index, GATEWAYS[1], 64);
    for address in addresses {
        host.neighbour(index, address, &mac);
        host.route(index, LOCAL_PODS, Some(address), None);
    }
    host.send(&open()?).context("on the host")?;

    setns(&namespace, CloneFlags::CLONE_NEWNET).context("enter the pod's namespace")?;
    let mut pod = Batch::default();
    pod.add(NEW_LINK, CHANGE, &link_header(POD_INDEX, true), &[]);
    for (address, gateway) in addresses.into_iter().zip(GATEWAYS) {
        pod.address(POD_INDEX, address, family(address).1);
        pod.neighbour(POD_INDEX, gateway, &GATEWAY_MAC);
        pod.route(POD_INDEX, MAIN, None, Some(gateway));
    }
    pod.send(&open()?).context("in the pod")
}
