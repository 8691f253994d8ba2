//! Routes.

use braid_node_core::actual::SeenRoute;
use braid_node_core::desired::{Route, RouteKey, Target};
use braid_types::well_known::ROUTE_PROTOCOL;
use braid_types::{Cidr, Family, IfName};

use super::{Devices, family_number};
use crate::KernelError;
use crate::wire::{self, Message, flag};

pub(crate) const NEW: u16 = 24;
pub(crate) const DEL: u16 = 25;
const GET: u16 = 26;
pub(crate) const HEADER: usize = 12;

const DST: u16 = 1;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFSRC: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
const VIA: u16 = 18;
const ENCAP: u16 = 22;
const NH_ID: u16 = 30;
const METRIC_MTU: u16 = 2;
/// `RTN_UNICAST`, `RTN_UNREACHABLE`.
const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;
const SCOPE_GLOBAL: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const ONLINK: u32 = 4;
const TABLE_MAIN: u32 = 254;

struct Header {
    family: Family,
    dst_len: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl Header {
    /// `struct rtmsg`; the table is in an attribute, as it may be above 255.
    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = family_number(self.family);
        bytes[1] = self.dst_len;
        bytes[5] = self.protocol;
        bytes[6] = self.scope;
        bytes[7] = self.kind;
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }
}

fn keyed(kind: u16, flags: u16, header: &Header, key: &RouteKey) -> Message {
    let message = Message::new(kind, flags, &header.bytes()).u32(TABLE, key.table).u32(PRIORITY, key.metric);
    // The default route has no destination attribute.
    message.with((key.dst.prefix_len() > 0).then(|| key.dst.first()), |m, dst| m.addr(DST, dst))
}

/// Writes a route over whatever has its table, destination and metric.
pub(crate) fn put(key: &RouteKey, route: &Route, devices: &Devices) -> Result<Message, KernelError> {
    let index = route.target.dev().map(|d| devices.index(d)).transpose()?;
    let (kind, scope, flags, gateway) = match &route.target {
        Target::OnLink { .. } => (UNICAST, SCOPE_LINK, 0, None),
        Target::Via { gateway, .. } => (UNICAST, SCOPE_GLOBAL, ONLINK, Some(*gateway)),
        Target::Unreachable => (UNREACHABLE, SCOPE_GLOBAL, 0, None),
    };
    let header = Header {
        family: key.dst.family(),
        dst_len: key.dst.prefix_len(),
        protocol: ROUTE_PROTOCOL,
        scope,
        kind,
        flags,
    };
    Ok(keyed(NEW, flag::CREATE | flag::REPLACE, &header, key)
        .with(gateway, |m, g| m.addr(GATEWAY, g))
        .with(index, |m, i| m.u32(OIF, i))
        .with(route.source, |m, s| m.addr(PREFSRC, s))
        .with(route.mtu, |m, mtu| m.nest(METRICS, |m| m.u32(METRIC_MTU, mtu))))
}

/// Removes a route of ours; one of another protocol with the same key stays.
pub(crate) fn del(key: &RouteKey) -> Message {
    let header = Header {
        family: key.dst.family(),
        dst_len: key.dst.prefix_len(),
        protocol: ROUTE_PROTOCOL,
        // "Any", as iproute2 sends for removal.
        scope: SCOPE_NOWHERE,
        kind: 0,
        flags: 0,
    };
    keyed(DEL, 0, &header, key)
}

/// Asks for the routes of a family with our protocol number, in all tables.
pub(crate) fn list_ours(family: Family) -> Message {
    list(family, ROUTE_PROTOCOL, None)
}

/// Asks for the routes of a family in the main table.
pub(crate) fn list_main(family: Family) -> Message {
    list(family, 0, Some(TABLE_MAIN))
}

fn list(family: Family, protocol: u8, table: Option<u32>) -> Message {
    // With strict checking the kernel filters by every field that is not zero.
    let header = Header { family, dst_len: 0, protocol, scope: SCOPE_GLOBAL, kind: 0, flags: 0 };
    Message::new(GET, 0, &header.bytes()).with(table, |m, t| m.u32(TABLE, t))
}

/// Asks which route a packet to `dst` would take.
pub(crate) fn lookup(dst: std::net::IpAddr) -> Message {
    /// `RTM_F_LOOKUP_TABLE`: with its real table, which IPv6 always gives and does not want to be asked for.
    const LOOKUP_TABLE: u32 = 0x1000;
    /// `RTM_F_FIB_MATCH`: the route itself, not the path made of it.
    const FIB_MATCH: u32 = 0x2000;
    let family = Family::of(dst);
    let flags = match family {
        Family::V4 => FIB_MATCH | LOOKUP_TABLE,
        Family::V6 => FIB_MATCH,
    };
    let header = Header { family, dst_len: family.bits(), protocol: 0, scope: SCOPE_GLOBAL, kind: 0, flags };
    Message::new(GET, 0, &header.bytes()).addr(DST, dst)
}

/// Protocol number of a route.
pub(crate) fn protocol(body: &[u8]) -> Option<u8> {
    body.get(5).copied()
}

/// Table of a route.
pub(crate) fn table(body: &[u8]) -> Option<u32> {
    wire::attr(body, HEADER, TABLE).and_then(|v| wire::u32_at(v, 0)).or(body.get(4).map(|t| u32::from(*t)))
}

/// Reads a route. One that leaves by a device whose name we do not know is `Other`.
pub(crate) fn read(body: &[u8], devices: &Devices) -> Option<(RouteKey, SeenRoute)> {
    let family = super::family(*body.first()?)?;
    let dst_len = *body.get(1)?;
    let kind = *body.get(7)?;
    let flags = wire::u32_at(body, 8)?;
    let (mut dst, mut metric, mut gateway, mut source) = (family.unspecified(), 0, None, None);
    let (mut dev, mut mtu, mut strange) = (None, None, false);
    for (attr, value) in wire::attrs(body, HEADER) {
        match attr {
            DST => dst = wire::addr(value)?,
            PRIORITY => metric = wire::u32_at(value, 0)?,
            GATEWAY => gateway = wire::addr(value),
            PREFSRC => source = wire::addr(value),
            OIF => dev = wire::u32_at(value, 0).and_then(|i| devices.name(i)).cloned(),
            METRICS => mtu = wire::attr(value, 0, METRIC_MTU).and_then(|v| wire::u32_at(v, 0)),
            MULTIPATH | VIA | ENCAP | NH_ID => strange = true,
            _ => {}
        }
    }
    let key = RouteKey { table: table(body)?, dst: Cidr::containing(dst, dst_len)?, metric };
    let target = match (kind, gateway, dev) {
        _ if strange => None,
        (UNREACHABLE, ..) => Some(Target::Unreachable),
        (UNICAST, Some(gateway), Some(dev)) if flags & ONLINK != 0 => Some(Target::Via { gateway, dev }),
        (UNICAST, None, Some(dev)) => Some(Target::OnLink { dev }),
        _ => None,
    };
    let seen = target.map_or(SeenRoute::Other, |target| SeenRoute::Known(Route { target, source, mtu }));
    Some((key, seen))
}

/// The device of a default route, with its metric; of several next hops the first.
pub(crate) fn default_dev(body: &[u8], devices: &Devices) -> Option<(u32, IfName)> {
    /// Offset of `rtnh_ifindex` in `struct rtnexthop`.
    const NEXTHOP_INDEX: usize = 4;
    if *body.get(1)? != 0 || *body.get(7)? != UNICAST {
        return None;
    }
    let number = |attr, at| wire::attr(body, HEADER, attr).and_then(|v| wire::u32_at(v, at));
    let index = number(OIF, 0).or_else(|| number(MULTIPATH, NEXTHOP_INDEX))?;
    Some((number(PRIORITY, 0).unwrap_or_default(), devices.name(index)?.clone()))
}
