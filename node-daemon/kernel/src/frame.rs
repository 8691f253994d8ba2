//! The few frames by which an address is asked for and announced: ARP (RFC 826, RFC 5227) and neighbour discovery
//! (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use braid_types::Mac;

/// EtherTypes.
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;
/// Where the Ethernet header ends.
const HEADER: usize = 14;
const BROADCAST: [u8; 6] = [0xff; 6];

const REQUEST: u16 = 1;
const ICMP6: u8 = 58;
/// Hop limit of neighbour discovery: it proves that a message has not passed a router.
const HOPS: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Option "target link-layer address", of one unit of eight bytes.
const TARGET_MAC: [u8; 2] = [2, 1];
/// Flag of an advertisement: it replaces what is known already.
const OVERRIDE: u8 = 0x20;
/// Bytes of an IPv6 header; where the ICMPv6 message begins in a frame.
const IPV6_HEADER: usize = 40;
const ICMP6_AT: usize = HEADER + IPV6_HEADER;
/// Bytes of an advertisement before its options: header, flags and target.
const FIXED: usize = 24;

/// The instructions of a socket filter (classic BPF) that lets neighbour advertisements through and nothing else.
pub(crate) const ONLY_ADVERTISEMENTS: [(u16, u8, u8, u32); 6] = {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        (LOAD_BYTE, 0, 0, HEADER as u32 + 6),
        (JUMP_IF_EQUAL, 0, 3, ICMP6 as u32),
        (LOAD_BYTE, 0, 0, ICMP6_AT as u32),
        (JUMP_IF_EQUAL, 0, 1, ADVERTISEMENT as u32),
        (RETURN, 0, 0, 0xffff),
        (RETURN, 0, 0, 0),
    ]
};

/// Tells everybody on the link that `address` is at `mac`. `from` is an IPv6 address of the sender itself.
pub(crate) fn announcement(address: IpAddr, mac: Mac, from: Ipv6Addr) -> Vec<u8> {
    match address {
        // A request, as RFC 5227 section 3 has it: everybody takes those.
        IpAddr::V4(a) => arp_request(mac, a, a),
        IpAddr::V6(a) => {
            let mut options = TARGET_MAC.to_vec();
            options.extend(mac.octets());
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            discovery(mac, from, all_nodes, [ADVERTISEMENT, OVERRIDE], a, &options)
        }
    }
}

/// Asks whether somebody has `address`, in a way that nobody learns anything from the question.
pub(crate) fn probe(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => arp_request(mac, Ipv4Addr::UNSPECIFIED, a),
        IpAddr::V6(a) => {
            let [.., x, y, z] = a.octets();
            let group = Ipv6Addr::new(
                0xff02,
                0,
                0,
                0,
                0,
                1,
                u16::from_be_bytes([0xff, x]),
                u16::from_be_bytes([y, z]),
            );
            discovery(mac, Ipv6Addr::UNSPECIFIED, group, [SOLICITATION, 0], a, &[])
        }
    }
}

/// The address that a frame's sender says it has itself, and the sender's hardware address.
///
/// An advertisement without the override flag is none of those: it comes from somebody who answers for another host, as
/// the nodes of this cluster do for their pods. What such an answer says is replaced by the next announcement.
pub(crate) fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let mac = |at: usize| Mac::new(frame.get(at..at + 6)?.try_into().ok()?);
    match u16::from_be_bytes(frame.get(12..HEADER)?.try_into().ok()?) {
        ARP => {
            let sender: [u8; 4] = frame.get(HEADER + 14..HEADER + 18)?.try_into().ok()?;
            Some((IpAddr::from(sender), mac(HEADER + 8)?))
        }
        IPV6 => {
            let message = frame.get(ICMP6_AT..)?;
            // With another hop limit it may have come from beyond the link (RFC 4861 section 7.1.2).
            let is_local = frame.get(HEADER + 6..HEADER + 8)? == [ICMP6, HOPS];
            let is_own = is_local && *message.first()? == ADVERTISEMENT && message.get(4)? & OVERRIDE != 0;
            let target: [u8; 16] = message.get(8..FIXED)?.try_into().ok()?;
            let option = message.get(FIXED..FIXED + 2) == Some(&TARGET_MAC);
            let at = if option { ICMP6_AT + FIXED + 2 } else { 6 };
            is_own.then_some((IpAddr::from(target), mac(at)?))
        }
        _ => None,
    }
}

fn ethernet(to: [u8; 6], from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to);
    frame.extend(from.octets());
    frame.extend(kind.to_be_bytes());
    frame
}

fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ARP);
    // Ethernet and IPv4, with the lengths of their addresses.
    frame.extend([0, 1, 0x08, 0, 6, 4]);
    frame.extend(REQUEST.to_be_bytes());
    frame.extend(mac.octets());
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A message of neighbour discovery to a multicast group (RFC 2464 section 7).
fn discovery(
    mac: Mac,
    from: Ipv6Addr,
    group: Ipv6Addr,
    [kind, flags]: [u8; 2],
    target: Ipv6Addr,
    options: &[u8],
) -> Vec<u8> {
    let [.., a, b, c, d] = group.octets();
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend(options);
    let length = u16::try_from(message.len()).unwrap_or_default();
    let sum = checksum(from, group, length, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, a, b, c, d], mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMP6, HOPS]);
    frame.extend(from.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// RFC 4443 section 2.3, with the pseudo-header of RFC 8200 section 8.1.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, length: u16, message: &[u8]) -> u16 {
    let mut pseudo: Vec<u8> = from.octets().into_iter().chain(to.octets()).collect();
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, ICMP6]);
    pseudo.extend(message);
    let words = pseudo.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_and_a_question_is_none() {
        let mac: Mac = "02:00:00:00:00:07".parse().unwrap();
        let own = Ipv6Addr::LOCALHOST;
        for address in ["10.0.0.7", "fd00::7"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(claim(&announcement(address, mac, own)), Some((address, mac)));
            let asked = claim(&probe(address, mac)).map(|(a, _)| a);
            assert!(asked.is_none_or(|a| a.is_unspecified()), "{asked:?}");
        }
        let mut by_proxy = announcement("fd00::7".parse().unwrap(), mac, own);
        by_proxy[ICMP6_AT + 4] = 0;
        assert_eq!(claim(&by_proxy), None);
        let mut from_afar = announcement("fd00::7".parse().unwrap(), mac, own);
        from_afar[HEADER + 7] = 254;
        assert_eq!(claim(&from_afar), None);
        assert_eq!(claim(&[0; 20]), None);
    }

    #[test]
    fn a_message_agrees_with_its_checksum() {
        let from: Ipv6Addr = "fe80::1".parse().unwrap();
        let frame = announcement("fe80::1".parse().unwrap(), "02:00:00:00:00:01".parse().unwrap(), from);
        let message = &frame[ICMP6_AT..];
        let to: Ipv6Addr = "ff02::1".parse().unwrap();
        // Over a message that carries its own checksum the sum is all ones.
        assert_eq!(checksum(from, to, 32, message), 0);
    }
}
