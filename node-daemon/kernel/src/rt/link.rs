//! Devices.

use std::os::fd::{AsRawFd, BorrowedFd};

use braid_node_core::actual::{SeenLink, SeenVxlan};
use braid_node_core::attach::PodEnd;
use braid_node_core::desired::{Link, LinkKind, Vxlan};
use braid_types::{IfName, Mac};

use super::{AF_UNSPEC, Devices};
use crate::wire::{self, Message, flag};

pub(crate) const NEW: u16 = 16;
pub(crate) const DEL: u16 = 17;
const GET: u16 = 18;
pub(crate) const HEADER: usize = 16;

const ADDRESS: u16 = 1;
pub(crate) const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const LINKINFO: u16 = 18;
const IFALIAS: u16 = 20;
const AF_SPEC: u16 = 26;
const GROUP: u16 = 27;
const NET_NS_FD: u16 = 28;
const EXT_MASK: u16 = 29;
/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 8;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
/// `AF_INET6` as the type of a nested attribute, and what is in it.
const SPEC_INET6: u16 = 10;
const ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`.
const GEN_NONE: u8 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// `struct ifinfomsg` with the flag up set or left alone.
fn header(index: u32, up: bool) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = AF_UNSPEC;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        bytes[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    bytes
}

/// Makes a VXLAN device, still down: [`set`] brings it up once no link-local address can appear on it.
pub(crate) fn add_vxlan(
    link: &Link,
    vxlan: &Vxlan,
    devices: &Devices,
) -> Result<Message, crate::KernelError> {
    let parent = devices.index(&vxlan.parent)?;
    let local = if vxlan.local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 };
    Ok(create(link, "vxlan", |m| {
        m.u32(VXLAN_ID, vxlan.vni.get())
            .u32(VXLAN_LINK, parent)
            .addr(local, vxlan.local)
            .u8(VXLAN_LEARNING, 0)
            .be16(VXLAN_PORT, vxlan.port)
    }))
}

/// Makes a veth pair, the other end at once in the pod's namespace with its name, address and MTU. Neither end can
/// be up before both exist.
pub(crate) fn add_veth(link: &Link, pod: &PodEnd, netns: BorrowedFd<'_>) -> Message {
    create(link, "veth", |m| {
        m.wrap(VETH_PEER, &header(0, false), |m| {
            m.str(NAME, pod.name.as_str())
                .bytes(ADDRESS, &pod.mac.octets())
                .u32(MTU, pod.mtu)
                .u32(NET_NS_FD, netns.as_raw_fd().cast_unsigned())
        })
    })
}

fn create(link: &Link, kind: &str, data: impl FnOnce(Message) -> Message) -> Message {
    Message::new(NEW, flag::CREATE | flag::EXCL, &header(0, false))
        .str(NAME, link.name.as_str())
        .bytes(ADDRESS, &link.mac.octets())
        .u32(MTU, link.mtu)
        .u32(GROUP, link.kind.group())
        .nest(LINKINFO, |m| m.str(INFO_KIND, kind).nest(INFO_DATA, data))
}

/// Alias, address generation and everything else that can change on a living device; brings it up.
///
/// Address generation and state are two requests: the kernel changes the state before it reads `IFLA_AF_SPEC`, and
/// a device that comes up with generation on gets a link-local address.
pub(crate) fn set(link: &Link, mac: bool, has_v6: bool) -> Vec<Message> {
    let change = |up| Message::new(NEW, 0, &header(0, up)).str(NAME, link.name.as_str());
    let first = change(false)
        .with(mac.then(|| link.mac.octets()), |m, mac| m.bytes(ADDRESS, &mac))
        .u32(MTU, link.mtu)
        .u32(GROUP, link.kind.group())
        .u32(MASTER, 0)
        .bytes(IFALIAS, link.alias.as_bytes());
    let mut all = vec![gen_none(first, has_v6)];
    if matches!(link.kind, LinkKind::Vxlan(_)) {
        // By itself: a VXLAN device takes no new MTU together with parameters of its own.
        all.push(
            change(false)
                .nest(LINKINFO, |m| m.str(INFO_KIND, "vxlan").nest(INFO_DATA, |m| m.u8(VXLAN_LEARNING, 0))),
        );
    }
    all.push(change(true));
    all
}

/// What creation leaves out: alias and address generation; then brings the device up.
pub(crate) fn finish(link: &Link, has_v6: bool) -> Vec<Message> {
    let change = |up| Message::new(NEW, 0, &header(0, up)).str(NAME, link.name.as_str());
    vec![gen_none(change(false).bytes(IFALIAS, link.alias.as_bytes()), has_v6), change(true)]
}

fn gen_none(message: Message, has_v6: bool) -> Message {
    if !has_v6 {
        return message;
    }
    message.nest(AF_SPEC, |m| m.nest(SPEC_INET6, |m| m.u8(ADDR_GEN_MODE, GEN_NONE)))
}

/// Brings a device up.
pub(crate) fn up(index: u32) -> Message {
    Message::new(NEW, 0, &header(index, true))
}

pub(crate) fn del(name: &IfName) -> Message {
    Message::new(DEL, 0, &header(0, false)).str(NAME, name.as_str())
}

/// Asks for one device.
pub(crate) fn get(name: &IfName) -> Message {
    Message::new(GET, 0, &header(0, false)).u32(EXT_MASK, SKIP_STATS).str(NAME, name.as_str())
}

/// Asks for all devices.
pub(crate) fn list() -> Message {
    Message::new(GET, 0, &header(0, false)).u32(EXT_MASK, SKIP_STATS)
}

/// A device as read; the parent of a VXLAN device is still an index.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) name: IfName,
    pub(crate) seen: SeenLink,
    pub(crate) parent_index: Option<u32>,
}

/// Reads a device; `None` for one with a name that is no text.
pub(crate) fn read(body: &[u8]) -> Option<Read> {
    let index = wire::u32_at(body, 4)?;
    let flags = wire::u32_at(body, 8)?;
    let mut name = None;
    let mut parent_index = None;
    let mut seen = SeenLink {
        index,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ..SeenLink::default()
    };
    for (kind, value) in wire::attrs(body, HEADER) {
        match kind {
            NAME => name = wire::text(value).and_then(|t| t.parse().ok()),
            ADDRESS => seen.mac = <[u8; 6]>::try_from(value).ok().and_then(Mac::new),
            MTU => seen.mtu = wire::u32_at(value, 0)?,
            GROUP => seen.group = wire::u32_at(value, 0)?,
            IFALIAS => seen.alias = wire::text(value).unwrap_or_default().to_owned(),
            MASTER => seen.enslaved = wire::u32_at(value, 0)? != 0,
            LINK => seen.peer_index = wire::u32_at(value, 0),
            AF_SPEC => {
                let mode = wire::attr(value, 0, SPEC_INET6).and_then(|v| wire::attr(v, 0, ADDR_GEN_MODE));
                seen.makes_link_local = mode.is_some_and(|m| m != [GEN_NONE]);
            }
            LINKINFO => {
                let kind = wire::attr(value, 0, INFO_KIND).and_then(wire::text).unwrap_or_default();
                seen.kind = kind.to_owned();
                if let Some(data) = wire::attr(value, 0, INFO_DATA).filter(|_| kind == "vxlan") {
                    let (vxlan, parent) = read_vxlan(data);
                    (seen.vxlan, parent_index) = (Some(vxlan), parent);
                }
            }
            _ => {}
        }
    }
    if seen.kind != "veth" {
        seen.peer_index = None;
    }
    Some(Read { name: name?, seen, parent_index })
}

fn read_vxlan(data: &[u8]) -> (SeenVxlan, Option<u32>) {
    let mut seen = SeenVxlan::default();
    let mut parent = None;
    for (kind, value) in wire::attrs(data, 0) {
        match kind {
            VXLAN_ID => seen.vni = wire::u32_at(value, 0).unwrap_or_default(),
            VXLAN_LINK => parent = wire::u32_at(value, 0),
            VXLAN_LOCAL | VXLAN_LOCAL6 => {
                seen.local = wire::addr(value).filter(|a| !a.is_unspecified()).or(seen.local);
            }
            VXLAN_LEARNING => seen.learning = value != [0],
            VXLAN_PORT => seen.port = wire::u16_at(value, 0).map_or(0, u16::from_be),
            _ => {}
        }
    }
    (seen, parent)
}
