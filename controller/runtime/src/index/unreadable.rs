//! Objects of ours that exist and that this version does not understand: of a later version, or written past the schema.
//!
//! They are left alone and shown. The address of an IPInstance among them is nobody's until it can be read or is gone.

use std::collections::{BTreeMap, BTreeSet};

use braid_controller_core::gc::Finding;
use braid_types::InstanceName;

/// Kind of an address, as it is in findings.
pub(crate) const IP_INSTANCE: &str = "IPInstance";

#[derive(Debug)]
struct Entry {
    uid: String,
    why: String,
    /// Named since the last full list.
    fresh: bool,
}

/// All of them by kind and name.
#[derive(Debug, Default)]
pub(crate) struct Unreadable(BTreeMap<(&'static str, String), Entry>);

impl Unreadable {
    /// One exists.
    pub(super) fn note(&mut self, kind: &'static str, name: &str, uid: &str, why: &str) {
        let entry = Entry { uid: uid.to_owned(), why: why.to_owned(), fresh: true };
        self.0.insert((kind, name.to_owned()), entry);
    }

    /// It is gone or can be read. Whether it was one of these.
    pub(super) fn forget(&mut self, kind: &'static str, name: &str) -> bool {
        self.0.remove(&(kind, name.to_owned())).is_some()
    }

    /// A full list has ended: only those are left that were named with it.
    pub(super) fn listed(&mut self, kind: &'static str) {
        self.0.retain(|(k, _), entry| *k != kind || std::mem::take(&mut entry.fresh));
    }

    /// The addresses among them.
    pub(super) fn addresses(&self) -> BTreeSet<InstanceName> {
        let names = self.0.keys().filter(|(kind, _)| *kind == IP_INSTANCE);
        names.filter_map(|(_, name)| name.parse().ok()).collect()
    }

    /// What to show of them.
    pub(crate) fn findings(&self) -> impl Iterator<Item = Finding> {
        self.0.iter().map(|((kind, name), entry)| {
            let meanwhile = match *kind {
                IP_INSTANCE => "its address is given to nobody and not freed",
                _ => "what was known of it before goes on to count",
            };
            let message = format!(
                "cannot be read by version {} of Braid: {}; until it is corrected or deleted, {meanwhile}",
                env!("CARGO_PKG_VERSION"),
                entry.why
            );
            Finding { kind, name: name.clone(), reason: "Unreadable", message }
        })
    }

    /// Uid of one of them.
    pub(crate) fn uid(&self, kind: &'static str, name: &str) -> Option<&str> {
        self.0.get(&(kind, name.to_owned())).map(|entry| entry.uid.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &Unreadable) -> Vec<String> {
        all.findings().map(|f| format!("{}/{}", f.kind, f.name)).collect()
    }

    #[test]
    fn a_list_leaves_what_was_named_with_it() {
        let mut all = Unreadable::default();
        all.note(IP_INSTANCE, "10.0.0.1", "a", "no");
        all.note(IP_INSTANCE, "10.0.0.2", "b", "no");
        all.note("IPBlock", "b", "c", "no");
        all.listed(IP_INSTANCE);
        all.note(IP_INSTANCE, "10.0.0.2", "b", "no");
        all.note(IP_INSTANCE, "nonsense", "d", "no");
        all.listed(IP_INSTANCE);
        assert_eq!(names(&all), ["IPBlock/b", "IPInstance/10.0.0.2", "IPInstance/nonsense"]);
        assert_eq!(all.addresses(), BTreeSet::from(["10.0.0.2".parse().unwrap()]), "no name, no address");
        assert_eq!(all.uid(IP_INSTANCE, "nonsense"), Some("d"));
        assert!(all.forget("IPBlock", "b") && !all.forget("IPBlock", "b"));
    }
}
