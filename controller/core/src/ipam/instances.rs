//! The addresses that exist, by name, in as little memory as there is: there are very many.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use braid_types::InstanceName;
use braid_types::model::{InstanceDef, UnixSeconds};

/// Equal when the names are.
#[derive(Debug)]
struct ByName(Arc<InstanceDef>);

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl Borrow<InstanceName> for ByName {
    fn borrow(&self) -> &InstanceName {
        &self.0.name
    }
}

/// Addresses that exist, and since when those with a release deadline are known to have one.
#[derive(Debug, Default)]
pub(super) struct Instances {
    all: HashSet<ByName>,
    cooling: HashMap<InstanceName, UnixSeconds>,
}

impl Instances {
    pub(super) fn get(&self, name: &InstanceName) -> Option<&Arc<InstanceDef>> {
        self.all.get(name).map(|found| &found.0)
    }

    pub(super) fn contains(&self, name: &InstanceName) -> bool {
        self.all.contains(name)
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<InstanceDef>> {
        self.all.iter().map(|found| &found.0)
    }

    /// Since when this process has seen it with a release deadline.
    pub(super) fn cooling_since(&self, name: &InstanceName) -> Option<UnixSeconds> {
        self.cooling.get(name).copied()
    }

    pub(super) fn insert(&mut self, def: Arc<InstanceDef>, cooling_since: Option<UnixSeconds>) {
        match cooling_since {
            Some(since) => self.cooling.insert(def.name.clone(), since),
            None => self.cooling.remove(&def.name),
        };
        self.all.replace(ByName(def));
    }

    pub(super) fn remove(&mut self, name: &InstanceName) -> Option<Arc<InstanceDef>> {
        self.cooling.remove(name);
        self.all.take(name).map(|found| found.0)
    }
}
