//! From the typed table to netlink messages.

use std::net::IpAddr;

use braid_node_core::desired::nft::{
    Chain, Element, Elements, Field, Hook, Match, Range, Rule, Set, TABLE, Table, Verdict,
};
use braid_types::{Cidr, Family, IfName, Mac};

use super::{
    ACCEPT, DATA_VALUE, DELTABLE, DROP, LIST_ELEM, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE,
    TABLE_NAME, chain, elem, message, rule, set,
};
use crate::wire::{Message, flag, octets};

/// `NFT_REG_VERDICT` and `NFT_REG32_00`, the first of sixteen 32-bit registers.
const REG_VERDICT: u32 = 0;
const REG: u32 = 8;
/// Elements in one message: an attribute holds at most 64 KiB.
const CHUNK: usize = 1000;

/// The table is first made and then removed: removing one that is not there would fail.
pub(super) fn delete_table() -> Vec<Message> {
    vec![message(NEWTABLE, flag::CREATE).str(TABLE_NAME, TABLE), message(DELTABLE, 0).str(TABLE_NAME, TABLE)]
}

pub(super) fn create_table(table: &Table) -> Vec<Message> {
    let mut messages = vec![message(NEWTABLE, flag::CREATE).str(TABLE_NAME, TABLE)];
    for (id, (name, set)) in (1..).zip(&table.sets) {
        messages.push(new_set(id, name, set));
    }
    let all: Elements = table.sets.iter().map(|(n, s)| (n.clone(), s.elements.clone())).collect();
    messages.extend(elements(NEWSETELEM, flag::CREATE, &all));
    for (name, chain) in &table.chains {
        messages.push(new_chain(name, chain));
        messages.extend(chain.rules.iter().map(|rule| new_rule(name, rule)));
    }
    messages
}

fn new_set(id: u32, name: &str, set: &Set) -> Message {
    let flags = if set.interval { set::INTERVAL } else { 0 };
    // The key type is for listings only: six bits per field (`TYPE_BITS` of nft's datatype.h).
    let key_type = set.key.iter().fold(0, |t, f| t << 6 | listing_type(*f));
    message(NEWSET, flag::CREATE)
        .str(set::TABLE, TABLE)
        .str(set::NAME, name)
        .be32(set::FLAGS, flags)
        .be32(set::KEY_TYPE, key_type)
        .be32(set::KEY_LEN, set.key_len())
        .be32(set::ID, id)
}

/// `enum datatypes` of nft's datatype.h.
fn listing_type(field: Field) -> u32 {
    match field {
        Field::IifName => 41,
        Field::EtherSource => 9,
        Field::Source(Family::V4) | Field::Destination(Family::V4) => 7,
        Field::Source(Family::V6) | Field::Destination(Family::V6) => 8,
    }
}

pub(super) fn elements(kind: u16, flags: u16, elements: &Elements) -> Vec<Message> {
    let mut messages = Vec::new();
    for (name, members) in elements {
        let keys: Vec<(Vec<u8>, bool)> = members.iter().flat_map(keys).collect();
        for chunk in keys.chunks(CHUNK) {
            let one = message(kind, flags).str(elem::LIST_TABLE, TABLE).str(elem::LIST_SET, name);
            messages.push(one.nest(elem::LIST_ELEMENTS, |m| {
                chunk.iter().fold(m, |m, (key, end)| {
                    m.nest(LIST_ELEM, |m| {
                        m.nest(elem::KEY, |m| m.bytes(DATA_VALUE, key))
                            .with(end.then_some(elem::INTERVAL_END), |m, f| m.be32(elem::FLAGS, f))
                    })
                })
            }));
        }
    }
    messages
}

/// The keys that stand for an element, and whether each closes an interval. An interval ends before its end key.
fn keys(element: &Element) -> Vec<(Vec<u8>, bool)> {
    match element {
        Element::Range(Range { first, last }) => {
            let family = Family::of(*last);
            let start = (octets(*first), false);
            match Family::number(*last).checked_add(1).map(|n| family.addr(n)) {
                // Up to the very last address: there is nothing behind it.
                None => vec![start],
                Some(end) if Family::number(end) == 0 => vec![start],
                Some(end) => vec![start, (octets(end), true)],
            }
        }
        Element::Mac(dev, mac) => vec![(interface(dev, *mac), false)],
        Element::Pod(dev, mac, addr) => {
            let mut key = interface(dev, *mac);
            key.extend(octets(*addr));
            vec![(key, false)]
        }
    }
}

fn interface(dev: &IfName, mac: Mac) -> Vec<u8> {
    let mut key = dev.as_str().as_bytes().to_vec();
    key.resize(16, 0);
    key.extend(mac.octets());
    key.extend([0; 2]);
    key
}

fn new_chain(name: &str, chain: &Chain) -> Message {
    let (kind, hook) = match chain.hook {
        Hook::FilterPrerouting => ("filter", chain::PREROUTING),
        Hook::NatPostrouting => ("nat", chain::POSTROUTING),
    };
    message(NEWCHAIN, flag::CREATE)
        .str(chain::TABLE, TABLE)
        .str(chain::NAME, name)
        .nest(chain::HOOK, |m| {
            m.be32(chain::HOOK_NUMBER, hook).be32(chain::HOOK_PRIORITY, chain.priority.cast_unsigned())
        })
        .be32(chain::POLICY, ACCEPT)
        .str(chain::TYPE, kind)
}

fn new_rule(chain: &str, rule: &Rule) -> Message {
    /// `NFTNL_UDATA_RULE_COMMENT` of libnftnl: what `nft` shows as the comment.
    const COMMENT: u8 = 0;
    let mut mark = rule.mark().into_bytes();
    mark.truncate(127);
    mark.push(0);
    let mut userdata = vec![COMMENT, u8::try_from(mark.len()).unwrap_or_default()];
    userdata.extend(mark);
    /// `NLM_F_APPEND`.
    const APPEND: u16 = 0x800;
    message(NEWRULE, flag::CREATE | APPEND)
        .str(rule::TABLE, TABLE)
        .str(rule::CHAIN, chain)
        .nest(rule::EXPRESSIONS, |m| {
            let m = rule.matches.iter().fold(m, matching);
            let m = if rule.counter { expr(m, "counter", |m| m) } else { m };
            verdict(m, rule.verdict)
        })
        .bytes(rule::USERDATA, &userdata)
}

fn expr(m: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    m.nest(LIST_ELEM, |m| m.str(1, name).nest(2, data))
}

/// Puts a property of the packet into a register.
fn meta(m: Message, key: u32, register: u32) -> Message {
    expr(m, "meta", |m| m.be32(1, register).be32(2, key))
}

mod meta_key {
    pub(super) const IIFNAME: u32 = 6;
    pub(super) const IIFTYPE: u32 = 8;
    pub(super) const NFPROTO: u32 = 15;
    pub(super) const L4PROTO: u32 = 16;
    pub(super) const IIFGROUP: u32 = 21;
    pub(super) const OIFGROUP: u32 = 22;
}

/// Headers of a packet that bytes can be taken from.
mod base {
    pub(super) const LINK: u32 = 0;
    pub(super) const NETWORK: u32 = 1;
    pub(super) const TRANSPORT: u32 = 2;
}

fn payload(m: Message, base: u32, offset: u32, len: u32, register: u32) -> Message {
    expr(m, "payload", |m| m.be32(1, register).be32(2, base).be32(3, offset).be32(4, len))
}

/// Goes on only if the first register equals, or does not equal, the value.
fn compare(m: Message, equal: bool, value: &[u8]) -> Message {
    expr(m, "cmp", |m| m.be32(1, REG).be32(2, u32::from(!equal)).nest(3, |m| m.bytes(DATA_VALUE, value)))
}

fn load(m: Message, field: Field, register: u32) -> Message {
    match field {
        Field::IifName => meta(m, meta_key::IIFNAME, register),
        Field::EtherSource => payload(m, base::LINK, 6, 6, register),
        Field::Source(family) => {
            let (source, _, len) = address_offsets(family);
            payload(m, base::NETWORK, source, len, register)
        }
        Field::Destination(family) => {
            let (_, destination, len) = address_offsets(family);
            payload(m, base::NETWORK, destination, len, register)
        }
    }
}

/// Offsets of source and destination in the IP header, and the length of an address.
fn address_offsets(family: Family) -> (u32, u32, u32) {
    match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    }
}

fn matching(m: Message, condition: &Match) -> Message {
    match condition {
        Match::IifGroup { group, equal } => {
            compare(meta(m, meta_key::IIFGROUP, REG), *equal, &group.to_ne_bytes())
        }
        Match::OifGroup(group) => compare(meta(m, meta_key::OIFGROUP, REG), true, &group.to_ne_bytes()),
        Match::Family(family) => {
            compare(meta(m, meta_key::NFPROTO, REG), true, &[crate::rt::family_number(*family)])
        }
        Match::In { set, key, inside } => {
            let m = if key.contains(&Field::EtherSource) { ethernet(m) } else { m };
            let (m, _) = key.iter().fold((m, REG), |(m, register), field| {
                (load(m, *field, register), register + field.bytes() / 4)
            });
            let invert = (!inside).then_some(1);
            expr(m, "lookup", |m| m.str(1, set).be32(2, REG).with(invert, |m, flags| m.be32(5, flags)))
        }
        Match::SourceWithin(cidr) => source_within(m, cidr),
        Match::Icmp6Type(kind) => compare(payload(icmp6(m), base::TRANSPORT, 0, 1, REG), true, &[*kind]),
    }
}

/// Only a device with Ethernet headers has hardware addresses at the known place.
fn ethernet(m: Message) -> Message {
    /// `ARPHRD_ETHER`.
    const ETHER: u16 = 1;
    compare(meta(m, meta_key::IIFTYPE, REG), true, &ETHER.to_ne_bytes())
}

fn icmp6(m: Message) -> Message {
    /// `IPPROTO_ICMPV6`.
    const ICMPV6: u8 = 58;
    compare(meta(m, meta_key::L4PROTO, REG), true, &[ICMPV6])
}

fn source_within(m: Message, cidr: &Cidr) -> Message {
    let family = cidr.family();
    let (source, _, len) = address_offsets(family);
    let m = payload(m, base::NETWORK, source, len, REG);
    let m = if cidr.prefix_len() == family.bits() {
        m
    } else {
        let mask = octets(cidr.net().netmask());
        let zero = octets(family.unspecified());
        expr(m, "bitwise", |m| {
            m.be32(1, REG)
                .be32(2, REG)
                .be32(3, len)
                .nest(4, |m| m.bytes(DATA_VALUE, &mask))
                .nest(5, |m| m.bytes(DATA_VALUE, &zero))
        })
    };
    let first: IpAddr = cidr.first();
    compare(m, true, &octets(first))
}

fn verdict(m: Message, verdict: Verdict) -> Message {
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    const RANDOM_FULLY: u32 = 0x10;
    let code = match verdict {
        Verdict::Accept => ACCEPT,
        Verdict::Drop => DROP,
        Verdict::Masquerade => return expr(m, "masq", |m| m.be32(1, RANDOM_FULLY)),
    };
    expr(m, "immediate", |m| m.be32(1, REG_VERDICT).nest(2, |m| m.nest(2, |m| m.be32(1, code))))
}
