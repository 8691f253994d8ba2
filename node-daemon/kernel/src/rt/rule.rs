//! Policy routing rules.

use braid_node_core::actual::SeenRule;
use braid_node_core::desired::Rule;
use braid_types::well_known::ROUTE_PROTOCOL;
use braid_types::{Cidr, Family};

use super::family_number;
use crate::wire::{self, Message, flag};

pub(crate) const NEW: u16 = 32;
pub(crate) const DEL: u16 = 33;
const GET: u16 = 34;
const HEADER: usize = 12;

const SRC: u16 = 2;
const PRIORITY: u16 = 6;
const FLOW: u16 = 11;
const SUPPRESS_IFGROUP: u16 = 13;
const SUPPRESS_PREFIXLEN: u16 = 14;
const TABLE: u16 = 15;
const PAD: u16 = 18;
const PROTOCOL: u16 = 21;
/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;

fn message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let mut header = [0; HEADER];
    header[0] = family_number(rule.family);
    header[2] = rule.from.map_or(0, |prefix| prefix.prefix_len());
    header[7] = TO_TABLE;
    Message::new(kind, flags, &header)
        .with(rule.from, |m, prefix| m.addr(SRC, prefix.first()))
        .u32(PRIORITY, rule.priority)
        .u32(TABLE, rule.table)
        .u8(PROTOCOL, ROUTE_PROTOCOL)
}

pub(crate) fn add(rule: &Rule) -> Message {
    message(NEW, flag::CREATE, rule)
}

/// Removes one rule with exactly these properties, ours by its protocol number.
pub(crate) fn del(rule: &Rule) -> Message {
    message(DEL, 0, rule)
}

/// Asks for all rules of a family.
pub(crate) fn list(family: Family) -> Message {
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    Message::new(GET, 0, &header)
}

/// Reads a rule.
pub(crate) fn read(body: &[u8]) -> Option<SeenRule> {
    let family = super::family(*body.first()?)?;
    let mut rule = Rule { family, priority: 0, table: u32::from(*body.get(4)?), from: None };
    let src_len = *body.get(2)?;
    let mut protocol = 0;
    // A destination or TOS, or the whole turned round.
    let selects = *body.get(1)? != 0 || *body.get(3)? != 0 || wire::u32_at(body, 8)? & INVERT != 0;
    let mut plain = !selects && *body.get(7)? == TO_TABLE;
    for (attr, value) in wire::attrs(body, HEADER) {
        match attr {
            SRC => {
                rule.from = wire::addr(value).and_then(|a| Cidr::containing(a, src_len));
                plain &= rule.from.is_some();
            }
            PRIORITY => rule.priority = wire::u32_at(value, 0)?,
            TABLE => rule.table = wire::u32_at(value, 0)?,
            PROTOCOL => protocol = *value.first()?,
            // Always reported; all ones mean "off".
            SUPPRESS_IFGROUP | SUPPRESS_PREFIXLEN => plain &= value == [0xff; 4],
            PAD | FLOW => {}
            _ => plain = false,
        }
    }
    Some(SeenRule { rule, protocol, plain })
}
