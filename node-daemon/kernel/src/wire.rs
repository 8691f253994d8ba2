//! Netlink messages as bytes: one codec for rtnetlink and nfnetlink.
//!
//! Layout: RFC 3549 section 2.3.2 and kernel doc `userspace-api/netlink/intro`. Numbers in headers and
//! attributes are in host order unless a field is said to be in network order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Flags of `nlmsghdr.nlmsg_flags`.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    /// A dump changed under way and must be repeated.
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const DUMP: u16 = 0x300;
}
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

const fn align(n: usize) -> usize {
    (n + 3) & !3
}

/// A message under construction.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of a type with its fixed header, `body`.
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        bytes.resize(align(bytes.len()), 0);
        Self { bytes }
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).expect("attributes are made smaller than 64 KiB");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network order, as all of nftables has them.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn addr(self, kind: u16, value: IpAddr) -> Self {
        self.bytes(kind, &octets(value))
    }

    /// An attribute made of attributes.
    pub(crate) fn nest(self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        self.wrap(kind | NESTED, &[], inner)
    }

    /// An attribute made of a fixed header and attributes.
    pub(crate) fn wrap(mut self, kind: u16, header: &[u8], inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.put(kind, header);
        let mut message = inner(self);
        let len =
            u16::try_from(message.bytes.len() - start).expect("attributes are made smaller than 64 KiB");
        message.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        message
    }

    /// Applies a function when there is a value.
    pub(crate) fn with<T>(self, value: Option<T>, f: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => f(self, value),
            None => self,
        }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message with its number, ready to be sent.
    pub(crate) fn seal(mut self, seq: u32, more_flags: u16) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("messages are far smaller than 4 GiB");
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more_flags;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes
    }
}

/// An address in network order.
pub(crate) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An address from network order.
pub(crate) fn addr(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(v4)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::V6(Ipv6Addr::from(v6)))
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

/// Splits what one `recv` gave into messages. A damaged tail ends the iteration.
pub(crate) fn messages(mut data: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(data, 0)? as usize;
        let body = data.get(HEADER..len)?;
        let message = Received {
            kind: u16_at(data, 4)?,
            flags: u16_at(data, 6)?,
            seq: u32_at(data, 8)?,
            port: u32_at(data, 12)?,
            body,
        };
        data = data.get(align(len)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes behind a fixed header of `header` bytes. A damaged tail ends the iteration.
pub(crate) fn attrs(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut data = body.get(align(header)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(data, 0)?);
        let kind = u16_at(data, 2)? & TYPE_MASK;
        let value = data.get(4..len)?;
        data = data.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn attr(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    attrs(body, header).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

pub(crate) fn be32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
}

/// Text up to the closing zero; `None` if it is no UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let sealed = Message::new(16, 0, &[1; 6])
            .u32(7, 9)
            .nest(18, |m| m.str(1, "vxlan").wrap(2, &[5; 4], |m| m.u8(3, 4)))
            .seal(77, flag::ACK);
        let message = messages(&sealed).next().unwrap();
        assert_eq!((message.kind, message.seq, message.flags), (16, 77, flag::ACK | flag::REQUEST));
        assert_eq!(attr(message.body, 6, 7).and_then(|v| u32_at(v, 0)), Some(9));
        let nested = attr(message.body, 6, 18).unwrap();
        assert_eq!(text(attr(nested, 0, 1).unwrap()), Some("vxlan"));
        assert_eq!(attr(attr(nested, 0, 2).unwrap(), 4, 3), Some(&[4][..]));
    }

    #[test]
    fn damaged_input_ends_the_iteration() {
        let sealed = Message::new(16, 0, &[]).u32(1, 1).seal(1, 0);
        for cut in 0..sealed.len() {
            assert_eq!(messages(&sealed[..cut]).count(), 0, "{cut}");
        }
        assert_eq!(attrs(&[3, 0, 1, 0], 0).count(), 0);
        assert_eq!(attrs(&[200, 0, 1, 0, 0, 0], 0).count(), 0);
    }
}
