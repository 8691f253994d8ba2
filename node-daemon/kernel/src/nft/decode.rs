//! From netlink messages to what is there.

use std::net::IpAddr;

use braid_node_core::actual::{SeenChain, SeenSet};
use braid_node_core::desired::nft::{Element, Hook, Range, TABLE};
use braid_types::{Family, IfName, Mac};

use super::{ACCEPT, DATA_VALUE, HEADER, INET, LIST_ELEM, chain, elem, rule, set};
use crate::wire::{self, attr, attrs, be32_at, text};

fn ours(body: &[u8], table_attr: u16) -> bool {
    body.first() == Some(&INET) && attr(body, HEADER, table_attr).and_then(text) == Some(TABLE)
}

fn name(body: &[u8], kind: u16) -> Option<String> {
    attr(body, HEADER, kind).and_then(text).map(str::to_owned)
}

fn number(body: &[u8], header: usize, kind: u16) -> Option<u32> {
    attr(body, header, kind).and_then(|v| be32_at(v, 0))
}

/// A set, its elements still missing.
pub(super) fn set(body: &[u8]) -> Option<(String, SeenSet)> {
    if !ours(body, set::TABLE) {
        return None;
    }
    let flags = number(body, HEADER, set::FLAGS).unwrap_or_default();
    let seen = SeenSet {
        key_len: number(body, HEADER, set::KEY_LEN)?,
        interval: flags & set::INTERVAL != 0,
        // Maps, timeouts and the like are none of ours.
        strange: flags & !set::INTERVAL != 0,
        ..SeenSet::default()
    };
    Some((name(body, set::NAME)?, seen))
}

/// Adds elements to a set.
pub(super) fn elements<'a>(seen: &mut SeenSet, bodies: impl Iterator<Item = &'a [u8]>) {
    let mut ends: Vec<(IpAddr, bool)> = Vec::new();
    for body in bodies {
        let list = attr(body, HEADER, elem::LIST_ELEMENTS).unwrap_or_default();
        for (_, element) in attrs(list, 0).filter(|(kind, _)| *kind == LIST_ELEM) {
            let flags = number(element, 0, elem::FLAGS).unwrap_or_default();
            let key = attr(element, 0, elem::KEY).and_then(|k| attr(k, 0, DATA_VALUE));
            match (seen.interval, key) {
                (true, Some(key)) => match wire::addr(key) {
                    Some(addr) => ends.push((addr, flags & elem::INTERVAL_END != 0)),
                    None => seen.strange = true,
                },
                (false, Some(key)) => match pod_element(key) {
                    Some(element) => {
                        seen.elements.insert(element);
                    }
                    None => seen.strange = true,
                },
                (_, None) => seen.strange = true,
            }
        }
    }
    seen.elements.extend(ranges(ends).into_iter().map(Element::Range));
}

/// Pairs the starts and ends of intervals. At the same address an end comes before the next start.
fn ranges(mut ends: Vec<(IpAddr, bool)>) -> Vec<Range> {
    ends.sort_by_key(|(addr, end)| (*addr, !*end));
    let mut open: Option<IpAddr> = None;
    let mut out = Vec::new();
    for (addr, end) in ends {
        let family = Family::of(addr);
        match (open, end) {
            (_, false) => open = Some(addr),
            (Some(first), true) => {
                let last = family.addr(Family::number(addr).wrapping_sub(1));
                out.push(Range { first, last });
                open = None;
            }
            // `nft` itself writes a closing element at zero; it covers nothing.
            (None, true) => {}
        }
    }
    if let Some(first) = open {
        out.push(Range { first, last: Family::of(first).addr(u128::MAX) });
    }
    out
}

fn pod_element(key: &[u8]) -> Option<Element> {
    let dev: IfName = text(key.get(..16)?)?.parse().ok()?;
    let mac = Mac::new(key.get(16..22)?.try_into().ok()?)?;
    match key.get(24..)? {
        [] => Some(Element::Mac(dev, mac)),
        rest => Some(Element::Pod(dev, mac, wire::addr(rest)?)),
    }
}

/// A chain, its rules still missing.
pub(super) fn chain(body: &[u8]) -> Option<(String, SeenChain)> {
    if !ours(body, chain::TABLE) {
        return None;
    }
    let hook = attr(body, HEADER, chain::HOOK).unwrap_or_default();
    let kind = attr(body, HEADER, chain::TYPE).and_then(text).unwrap_or_default();
    let known = match (kind, number(hook, 0, chain::HOOK_NUMBER)) {
        ("filter", Some(chain::PREROUTING)) => Some(Hook::FilterPrerouting),
        ("nat", Some(chain::POSTROUTING)) => Some(Hook::NatPostrouting),
        _ => None,
    };
    let accepts = number(body, HEADER, chain::POLICY) == Some(ACCEPT);
    let seen = SeenChain {
        hook: known.filter(|_| accepts),
        priority: number(hook, 0, chain::HOOK_PRIORITY).unwrap_or_default().cast_signed(),
        rules: Vec::new(),
    };
    Some((name(body, chain::NAME)?, seen))
}

/// The chain and the mark of a rule.
pub(super) fn rule(body: &[u8]) -> Option<(String, String)> {
    if !ours(body, rule::TABLE) {
        return None;
    }
    let data = attr(body, HEADER, rule::USERDATA).unwrap_or_default();
    // Type 0 is the comment; nft writes it first.
    let mark = match data {
        [0, len, rest @ ..] => rest.get(..usize::from(*len)).and_then(text).unwrap_or_default(),
        _ => "",
    };
    Some((name(body, rule::CHAIN)?, mark.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_paired_in_any_order() {
        let a = |s: &str| s.parse::<IpAddr>().unwrap();
        let ends = vec![
            (a("10.0.2.0"), true),
            (a("10.0.1.0"), false),
            (a("10.0.1.0"), true),
            (a("10.0.0.0"), false),
            (a("0.0.0.0"), true),
        ];
        let found: Vec<_> = ranges(ends).into_iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
        assert_eq!(found, ["10.0.0.0-10.0.0.255", "10.0.1.0-10.0.1.255"]);
    }
}
