//! Addresses.

use braid_node_core::actual::SeenAddr;
use braid_node_core::desired::AddrKey;
use braid_types::Family;

use super::{AF_UNSPEC, Devices, family_number};
use crate::KernelError;
use crate::wire::{self, Message, flag};

pub(crate) const NEW: u16 = 20;
pub(crate) const DEL: u16 = 21;
const GET: u16 = 22;
const HEADER: usize = 8;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;
/// `RT_SCOPE_UNIVERSE` and `RT_SCOPE_LINK`.
const GLOBAL: u8 = 0;
const LINK: u8 = 253;
/// `IFA_F_TEMPORARY`; the same bit means "secondary" for IPv4.
const TEMPORARY: u32 = 0x01;
const NODAD: u32 = 0x02;
const DADFAILED: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;
const NOPREFIXROUTE: u32 = 0x200;

fn message(kind: u16, flags: u16, key: &AddrKey, index: u32) -> Message {
    let family = Family::of(key.addr);
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    header[1] = key.prefix_len;
    header[3] = if is_link_local(key) { LINK } else { GLOBAL };
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(kind, flags, &header).addr(LOCAL, key.addr).addr(ADDRESS, key.addr)
}

/// Adds an address, without duplicate detection. A link-local one brings its prefix route, by which the kernel
/// answers its neighbours; others bring none.
pub(crate) fn add(key: &AddrKey, index: u32) -> Message {
    let flags = if is_link_local(key) { NODAD } else { NODAD | NOPREFIXROUTE };
    message(NEW, flag::CREATE | flag::REPLACE, key, index).u32(FLAGS, flags)
}

fn is_link_local(key: &AddrKey) -> bool {
    matches!(key.addr, std::net::IpAddr::V6(a) if a.is_unicast_link_local())
}

pub(crate) fn del(key: &AddrKey, devices: &Devices) -> Result<Message, KernelError> {
    Ok(message(DEL, 0, key, devices.index(&key.dev)?))
}

/// Asks for all addresses of both families.
pub(crate) fn list() -> Message {
    list_of(0)
}

/// Asks for the addresses of both families on one device; 0 = all.
pub(crate) fn list_of(index: u32) -> Message {
    let mut header = [0; HEADER];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(GET, 0, &header)
}

/// Reads an address. `position` is its place in the dump.
pub(crate) fn read(body: &[u8], position: u32, devices: &Devices) -> Option<(AddrKey, SeenAddr)> {
    let family = super::family(*body.first()?)?;
    let prefix_len = *body.get(1)?;
    let scope = *body.get(3)?;
    let dev = devices.name(wire::u32_at(body, 4)?)?.clone();
    // IFA_LOCAL is the interface's own address; on point-to-point links IFA_ADDRESS is the peer's.
    let addr =
        wire::attr(body, HEADER, LOCAL).or_else(|| wire::attr(body, HEADER, ADDRESS)).and_then(wire::addr)?;
    let flags = wire::attr(body, HEADER, FLAGS).and_then(|v| wire::u32_at(v, 0)).unwrap_or_default();
    let unusable = match family {
        Family::V4 => 0,
        Family::V6 => TEMPORARY | DADFAILED | DEPRECATED | TENTATIVE,
    };
    let seen = SeenAddr { position, usable_as_source: scope == GLOBAL && flags & unusable == 0 };
    Some((AddrKey { dev, addr, prefix_len }, seen))
}
