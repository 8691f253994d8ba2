//! Neighbours, proxy neighbours and forwarding entries of VXLAN devices, which the kernel carries in the same messages.

use std::net::IpAddr;

use braid_node_core::actual::SeenNeigh;
use braid_node_core::desired::{FdbKey, NeighKey, ProxyKey};
use braid_types::well_known::ROUTE_PROTOCOL;
use braid_types::{Family, Mac};

use super::{AF_BRIDGE, AF_UNSPEC, Devices, family_number};
use crate::wire::{self, Message, flag};

pub(crate) const NEW: u16 = 28;
pub(crate) const DEL: u16 = 29;
const GET: u16 = 30;
pub(crate) const HEADER: usize = 12;

const DST: u16 = 1;
const LLADDR: u16 = 2;
const IFINDEX: u16 = 8;
const PROTOCOL: u16 = 12;
pub(crate) const PERMANENT: u16 = 0x80;
/// `NTF_SELF`: the device's own table, not the bridge's above it.
const SELF: u8 = 0x02;
/// `NTF_PROXY`: the host answers for the address.
const PROXY: u8 = 0x08;

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

/// Writes a permanent neighbour over whatever is there.
pub(crate) fn put(addr: IpAddr, mac: Mac, index: u32) -> Message {
    let header = header(family_number(Family::of(addr)), index, PERMANENT, 0);
    Message::new(NEW, flag::CREATE | flag::REPLACE, &header).addr(DST, addr).bytes(LLADDR, &mac.octets())
}

pub(crate) fn del(addr: IpAddr, index: u32) -> Message {
    Message::new(DEL, 0, &header(family_number(Family::of(addr)), index, 0, 0)).addr(DST, addr)
}

/// Answers for an address. Permanent, or the kernel would drop it with the carrier.
pub(crate) fn put_proxy(addr: IpAddr, index: u32) -> Message {
    let header = header(family_number(Family::of(addr)), index, PERMANENT, PROXY);
    Message::new(NEW, flag::CREATE | flag::REPLACE, &header).addr(DST, addr).u8(PROTOCOL, ROUTE_PROTOCOL)
}

pub(crate) fn del_proxy(addr: IpAddr, index: u32) -> Message {
    Message::new(DEL, 0, &header(family_number(Family::of(addr)), index, 0, PROXY)).addr(DST, addr)
}

/// Writes a forwarding entry; a single other destination of the same address is replaced.
pub(crate) fn put_fdb(key: &FdbKey, dst: IpAddr, index: u32) -> Message {
    let header = header(AF_BRIDGE, index, PERMANENT, SELF);
    Message::new(NEW, flag::CREATE | flag::REPLACE, &header).bytes(LLADDR, &key.mac).addr(DST, dst)
}

/// Removes one destination of a forwarding entry.
pub(crate) fn del_fdb(key: &FdbKey, dst: IpAddr, index: u32) -> Message {
    Message::new(DEL, 0, &header(AF_BRIDGE, index, 0, SELF)).bytes(LLADDR, &key.mac).addr(DST, dst)
}

/// Asks for the neighbours of both families on all devices.
pub(crate) fn list() -> Message {
    Message::new(GET, 0, &header(AF_UNSPEC, 0, 0, 0))
}

/// Asks for the neighbours of both families on one device.
pub(crate) fn list_of(index: u32) -> Message {
    list().u32(IFINDEX, index)
}

/// Asks for the proxy neighbours of both families on all devices.
pub(crate) fn list_proxies() -> Message {
    Message::new(GET, 0, &header(AF_UNSPEC, 0, 0, PROXY))
}

/// Asks for the forwarding entries of one device.
pub(crate) fn list_fdb(index: u32) -> Message {
    Message::new(GET, 0, &header(AF_BRIDGE, 0, 0, 0)).u32(IFINDEX, index)
}

/// Reads a neighbour.
pub(crate) fn read(body: &[u8], devices: &Devices) -> Option<(NeighKey, SeenNeigh)> {
    super::family(*body.first()?)?;
    let dev = devices.name(wire::u32_at(body, 4)?)?.clone();
    let state = wire::u16_at(body, 8)?;
    let addr = wire::attr(body, HEADER, DST).and_then(wire::addr)?;
    let mac = wire::attr(body, HEADER, LLADDR).and_then(|v| v.try_into().ok()).and_then(Mac::new);
    Some((NeighKey { dev, addr }, SeenNeigh { mac, permanent: state & PERMANENT != 0 }))
}

/// Reads a proxy neighbour and who made it; 0 where nobody says so.
pub(crate) fn read_proxy(body: &[u8], devices: &Devices) -> Option<(ProxyKey, u8)> {
    super::family(*body.first()?)?;
    let dev = devices.name(wire::u32_at(body, 4)?)?.clone();
    let addr = wire::attr(body, HEADER, DST).and_then(wire::addr)?;
    let protocol = wire::attr(body, HEADER, PROTOCOL).and_then(|v| v.first().copied());
    (body.get(10)? & PROXY != 0).then(|| (ProxyKey { dev, addr }, protocol.unwrap_or_default()))
}

/// Reads one destination of a forwarding entry, and whether it is permanent.
pub(crate) fn read_fdb(body: &[u8], index: u32, devices: &Devices) -> Option<(FdbKey, Option<IpAddr>, bool)> {
    if *body.first()? != AF_BRIDGE || wire::u32_at(body, 4)? != index {
        return None;
    }
    let dev = devices.name(index)?.clone();
    let mac = wire::attr(body, HEADER, LLADDR).and_then(|v| v.try_into().ok())?;
    let dst = wire::attr(body, HEADER, DST).and_then(wire::addr);
    Some((FdbKey { dev, mac }, dst, wire::u16_at(body, 8)? & PERMANENT != 0))
}

/// The neighbour's address.
pub(crate) fn dst(body: &[u8]) -> Option<IpAddr> {
    wire::attr(body, HEADER, DST).and_then(wire::addr)
}
