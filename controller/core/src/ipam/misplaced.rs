//! Addresses that no pool has by itself: their Subnet is missing or does not contain them, or their object cannot be
//! read.
//!
//! Whatever such an object says, its name is its address, and nobody else can make an object of that name. So the
//! address is taken wherever it lies.

use std::collections::BTreeSet;

use braid_types::InstanceName;
use braid_types::model::SubnetDef;

use super::Effects;
use super::state::Ipam;
use crate::pool::Mark;

impl Ipam {
    /// A Subnet has appeared or changed: what belongs to it is at home now, and what lies in it without belonging to
    /// it is taken there.
    pub(super) fn settle_misplaced(&mut self, subnet: &str) {
        let Some(slot) = self.slots.get(subnet) else { return };
        let Some(def) = &slot.def else { return };
        let (space, range) = (self.space_of(def), def.cidr.range());
        // Names are ordered by address; the empty space is the first of each.
        let in_range = InstanceName::new("", range.first())..;
        let lying_in: Vec<InstanceName> = self
            .misplaced
            .range(in_range)
            .take_while(|n| n.address() <= range.last())
            .filter(|n| n.space() == space)
            .cloned()
            .collect();
        for name in lying_in {
            if self.home_of(&name) == Some(subnet) {
                self.take_home(&name);
            } else {
                self.occupy(subnet, &name);
            }
        }
    }

    /// Takes an address wherever it lies, when its own Subnet does not have it.
    pub(super) fn occupy_elsewhere(&mut self, name: &InstanceName) {
        let home = self.home_of(name);
        let lies_in = |s: &&SubnetDef| s.cidr.contains(name.address()) && self.space_of(s) == name.space();
        if home.and_then(|h| self.subnet(h)).is_some_and(|s| lies_in(&s)) {
            return;
        }
        let subnets: Vec<String> = self.subnets().filter(lies_in).map(|s| s.name.clone()).collect();
        self.misplaced.insert(name.clone());
        for subnet in subnets {
            self.occupy(&subnet, name);
        }
    }

    /// The Subnet that its object names; `None` where that cannot be read.
    fn home_of(&self, name: &InstanceName) -> Option<&str> {
        self.instance(name).map(|d| d.subnet.as_str())
    }

    fn occupy(&mut self, subnet: &str, name: &InstanceName) {
        if let Some(slot) = self.slots.get_mut(subnet)
            && self.foreign.entry(name.clone()).or_default().insert(subnet.to_owned())
        {
            slot.hold(name.address(), Mark::Reserved);
        }
    }

    /// Gives it back wherever it was taken beside its own Subnet.
    pub(super) fn take_home(&mut self, name: &InstanceName) -> Effects {
        let mut effects = Effects::default();
        self.misplaced.remove(name);
        for subnet in self.foreign.remove(name).into_iter().flatten() {
            effects.merge(self.free_as(Mark::Reserved, &subnet, name));
        }
        effects
    }

    /// Looks at every address anew: Subnets have come into another address space.
    pub(super) fn place_all(&mut self) {
        for name in std::mem::take(&mut self.misplaced) {
            self.take_home(&name);
        }
        let all: Vec<InstanceName> =
            self.instances.iter().map(|def| &def.name).chain(&self.unreadable).cloned().collect();
        for name in &all {
            self.occupy_elsewhere(name);
        }
    }

    // ---- Objects that cannot be read

    /// All addresses whose objects exist and cannot be read. Nothing is known of them but that they are not free.
    pub fn reset_unreadable(&mut self, all: &BTreeSet<InstanceName>) -> Effects {
        let mut effects = Effects::default();
        let gone: Vec<InstanceName> = self.unreadable.difference(all).cloned().collect();
        for name in gone {
            effects.merge(self.forget_unreadable(&name));
        }
        for name in all {
            effects.merge(self.upsert_unreadable(name));
        }
        effects
    }

    /// The object of an address appeared or changed so that it cannot be read. What was known of it does not count any
    /// more: nobody can say whose the address is now.
    pub fn upsert_unreadable(&mut self, name: &InstanceName) -> Effects {
        if !self.unreadable.insert(name.clone()) {
            return Effects::default();
        }
        let mut effects = self.unlink(name);
        self.occupy_elsewhere(name);
        effects.subnets.extend(self.foreign.get(name).into_iter().flatten().cloned());
        effects
    }

    /// Its object is gone or can be read again.
    pub fn forget_unreadable(&mut self, name: &InstanceName) -> Effects {
        if self.unreadable.remove(name) { self.take_home(name) } else { Effects::default() }
    }
}
