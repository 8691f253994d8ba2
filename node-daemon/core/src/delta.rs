//! Desired against actual, for any noun.

use std::collections::BTreeMap;

/// What separates two maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<K, D> {
    /// Absent or different: must be written.
    pub put: Vec<(K, D)>,
    /// Ours, and not wanted.
    pub remove: Vec<K>,
}

/// Compares two maps. `same` tells whether an actual object is as desired, `ours` whether an actual object that
/// nobody desires may be removed.
pub fn between<K: Ord + Clone, D: Clone, A>(
    desired: &BTreeMap<K, D>,
    actual: &BTreeMap<K, A>,
    same: impl Fn(&D, &A) -> bool,
    ours: impl Fn(&K, &A) -> bool,
) -> Delta<K, D> {
    let put = desired
        .iter()
        .filter(|(key, wanted)| !actual.get(*key).is_some_and(|seen| same(wanted, seen)))
        .map(|(key, wanted)| (key.clone(), wanted.clone()))
        .collect();
    let remove = actual
        .iter()
        .filter(|(key, seen)| !desired.contains_key(*key) && ours(key, seen))
        .map(|(key, _)| key.clone())
        .collect();
    Delta { put, remove }
}
