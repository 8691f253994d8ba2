//! nftables by native transactions, limited to what the table `inet braid` is made of.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`; all of them travel in network order.

mod decode;
mod encode;

use std::collections::BTreeSet;

use braid_node_core::actual::{SeenSet, SeenTable};
use braid_node_core::desired::nft::{Element, Elements, TABLE, Table};
use braid_types::IfName;

use crate::error::{KernelError, Refusal};
use crate::socket::Socket;
use crate::wire::{Message, flag};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const TABLE_NAME: u16 = 1;

const LIST_ELEM: u16 = 1;

mod set {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const KEY_TYPE: u16 = 4;
    pub(super) const KEY_LEN: u16 = 5;
    pub(super) const ID: u16 = 10;
    /// `NFT_SET_INTERVAL`.
    pub(super) const INTERVAL: u32 = 0x4;
}

mod elem {
    pub(super) const LIST_TABLE: u16 = 1;
    pub(super) const LIST_SET: u16 = 2;
    pub(super) const LIST_ELEMENTS: u16 = 3;
    pub(super) const KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub(super) const INTERVAL_END: u32 = 1;
}

mod chain {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 3;
    pub(super) const HOOK: u16 = 4;
    pub(super) const POLICY: u16 = 5;
    pub(super) const TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    /// `NF_INET_PRE_ROUTING` and `NF_INET_POST_ROUTING`.
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const POSTROUTING: u32 = 4;
}

mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const USERDATA: u16 = 7;
}

/// `NFTA_DATA_VALUE`.
const DATA_VALUE: u16 = 1;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NF_DROP`.
const DROP: u32 = 0;

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[INET, 0, 0, 0])
}

fn frame(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

fn commit(socket: &mut Socket, messages: Vec<Message>) -> Result<Result<(), Refusal>, KernelError> {
    socket.transaction(frame(BATCH_BEGIN), messages, frame(BATCH_END))
}

/// Makes the table anew: what was in it is gone, what is wanted is there, and no packet sees anything in between.
pub(crate) fn replace(socket: &mut Socket, table: &Table) -> Result<(), KernelError> {
    let mut messages = encode::delete_table();
    messages.extend(encode::create_table(table));
    commit(socket, messages)?.map_err(KernelError::refused("replace nftables table inet braid"))
}

/// Removes the table, if there is one.
pub(crate) fn delete(socket: &mut Socket) -> Result<(), KernelError> {
    commit(socket, encode::delete_table())?.map_err(KernelError::refused("remove nftables table inet braid"))
}

/// Adds elements; those that are there already are no error.
pub(crate) fn add(socket: &mut Socket, elements: &Elements) -> Result<(), KernelError> {
    let messages = encode::elements(NEWSETELEM, flag::CREATE, elements);
    commit(socket, messages)?.map_err(KernelError::refused("add elements to nftables table inet braid"))
}

/// Removes elements; those that are not there, or have no set, are no error.
pub(crate) fn remove(socket: &mut Socket, elements: &Elements) -> Result<(), KernelError> {
    let refused = || KernelError::refused("remove elements from nftables table inet braid");
    match commit(socket, encode::elements(DELSETELEM, 0, elements))? {
        Ok(()) => return Ok(()),
        Err(r) if r.errno == nix::libc::ENOENT => {}
        Err(r) => return Err(refused()(r)),
    }
    // One missing element undid all of it: take them one by one.
    for (set, members) in elements {
        for element in members {
            let one = Elements::from([(set.clone(), BTreeSet::from([element.clone()]))]);
            match commit(socket, encode::elements(DELSETELEM, 0, &one))? {
                Err(r) if r.errno != nix::libc::ENOENT => return Err(refused()(r)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The elements that are about one host device.
pub(crate) fn elements_of(socket: &mut Socket, dev: &IfName) -> Result<Elements, KernelError> {
    let about = |e: &Element| e.dev() == Some(dev);
    let mut all = Elements::new();
    for (name, set) in list(socket)?.map(|t| t.sets).unwrap_or_default() {
        let found: BTreeSet<_> = set.elements.into_iter().filter(about).collect();
        if !found.is_empty() {
            all.insert(name, found);
        }
    }
    Ok(all)
}

/// Those of the given elements that the kernel does not hold.
pub(crate) fn missing(socket: &mut Socket, elements: &Elements) -> Result<Elements, KernelError> {
    let mut all = Elements::new();
    for (set, members) in elements {
        for element in members {
            let one = Elements::from([(set.clone(), BTreeSet::from([element.clone()]))]);
            let request = encode::elements(GETSETELEM, 0, &one);
            let (outcomes, _) = socket.batch(request)?;
            for outcome in outcomes {
                match outcome {
                    Ok(()) => {}
                    Err(r) if r.errno == nix::libc::ENOENT => {
                        all.entry(set.clone()).or_default().insert(element.clone());
                    }
                    Err(r) => return Err(KernelError::refused("look up nftables elements")(r)),
                }
            }
        }
    }
    Ok(all)
}

/// The table as it is; `None` if there is none.
pub(crate) fn list(socket: &mut Socket) -> Result<Option<SeenTable>, KernelError> {
    match socket.one(message(GETTABLE, 0).str(TABLE_NAME, TABLE))? {
        Ok(_) => {}
        Err(r) if r.errno == nix::libc::ENOENT => return Ok(None),
        Err(r) => return Err(KernelError::refused("look up nftables table inet braid")(r)),
    }
    let mut seen = SeenTable::default();
    let sets = socket.dump("nftables sets", &message(GETSET, 0).str(set::TABLE, TABLE))?;
    seen.sets.extend(sets.of(SUBSYSTEM << 8 | NEWSET).filter_map(decode::set));
    for (name, set) in &mut seen.sets {
        let request = message(GETSETELEM, 0).str(elem::LIST_TABLE, TABLE).str(elem::LIST_SET, name);
        match socket.dump("nftables elements", &request) {
            Ok(replies) => {
                decode::elements(set, replies.of(SUBSYSTEM << 8 | NEWSETELEM));
            }
            // The set went between the two lists; the next look will tell.
            Err(e) if e.errno() == Some(nix::libc::ENOENT) => {
                *set = SeenSet { strange: true, ..SeenSet::default() };
            }
            Err(e) => return Err(e),
        }
    }
    let chains = socket.dump("nftables chains", &message(GETCHAIN, 0))?;
    seen.chains.extend(chains.of(SUBSYSTEM << 8 | NEWCHAIN).filter_map(decode::chain));
    let rules = socket.dump("nftables rules", &message(GETRULE, 0).str(rule::TABLE, TABLE))?;
    for (chain, mark) in rules.of(SUBSYSTEM << 8 | NEWRULE).filter_map(decode::rule) {
        if let Some(chain) = seen.chains.get_mut(&chain) {
            chain.rules.push(mark);
        }
    }
    Ok(Some(seen))
}
