//! Values that many objects have alike, each once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Values that others share. Those that nobody has any more go from time to time.
#[derive(Debug)]
pub(super) struct Interned<T> {
    all: HashSet<Arc<T>>,
    /// At how many it is looked which of them are still in use.
    limit: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), limit: 64 }
    }
}

impl<T: Eq + Hash> Interned<T> {
    /// The one that is like this.
    pub(super) fn share(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return known.clone();
        }
        if self.all.len() >= self.limit {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.limit = (2 * self.all.len()).max(64);
        }
        let value = Arc::new(value);
        self.all.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_as_long_as_somebody_has_them() {
        let mut interned = Interned::default();
        let (first, second) = (interned.share("web".to_owned()), interned.share("web".to_owned()));
        assert!(Arc::ptr_eq(&first, &second));
        for n in 0..1000 {
            interned.share(n.to_string());
        }
        assert!(interned.all.len() <= 65, "{} are kept", interned.all.len());
        assert!(Arc::ptr_eq(&first, &interned.share("web".to_owned())));
    }
}
