//! A few addresses of one pod, in as little memory as there is: a cluster has very many pods.

use braid_types::InstanceName;

/// Addresses in order, each once. For a few: a change costs as much as there are.
#[derive(Debug, Default)]
pub(super) struct Names(Box<[InstanceName]>);

impl Names {
    pub(super) fn insert(&mut self, name: InstanceName) {
        if let Err(at) = self.0.binary_search(&name) {
            let mut all = Vec::with_capacity(self.0.len() + 1);
            all.extend_from_slice(&self.0[..at]);
            all.push(name);
            all.extend_from_slice(&self.0[at..]);
            self.0 = all.into_boxed_slice();
        }
    }

    pub(super) fn remove(&mut self, name: &InstanceName) {
        if self.0.binary_search(name).is_ok() {
            self.0 = self.0.iter().filter(|n| *n != name).cloned().collect();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, InstanceName> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a InstanceName;
    type IntoIter = std::slice::Iter<'a, InstanceName>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_and_each_once() {
        let name = |text: &str| text.parse::<InstanceName>().expect("a name");
        let mut names = Names::default();
        for text in ["10.0.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            names.insert(name(text));
        }
        assert_eq!(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        );
        names.remove(&name("10.0.0.2"));
        names.remove(&name("10.0.0.9"));
        assert_eq!(names.iter().count(), 2);
        names.remove(&name("10.0.0.1"));
        names.remove(&name("10.0.0.3"));
        assert!(names.is_empty());
    }
}
