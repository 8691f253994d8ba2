//! Two controllers that both believed that they lead may have given one interface twice what it needs: different
//! addresses, so that no claim stood against the other. What nobody uses of it goes again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use braid_api::IPInstance;
use braid_types::model::InstanceDef;
use braid_types::{Family, InstanceName};
use kube::ResourceExt;
use tracing::{info, warn};

use super::Work;
use crate::index;
use crate::world::World;
use crate::write::{Seen, WriteError};

/// An address of one interface, as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    name: InstanceName,
    /// The addresses that it was given together with, in order.
    set: Vec<std::net::IpAddr>,
    /// Whether a node has put it on the interface.
    attached: bool,
}

/// The addresses of one interface that nobody needs.
///
/// What is attached stays, together with all of its set; the rest goes. While nothing is attached, nothing goes: the word
/// of the agent may be under way, and an address in use must not be freed because of it.
fn surplus(candidates: &[Candidate]) -> Vec<InstanceName> {
    let attached: BTreeSet<_> =
        candidates.iter().filter(|c| c.attached).flat_map(|c| &c.set).copied().collect();
    candidates
        .iter()
        .filter(|c| !attached.is_empty() && !c.attached && !attached.contains(&c.name.address()))
        .map(|c| c.name.clone())
        .collect()
}

/// Interfaces with more than one address of a family: pod uid and interface.
pub(super) type Crowded = BTreeMap<(String, String), Vec<InstanceName>>;

/// Finds them.
pub(super) fn crowded(world: &World) -> Crowded {
    let mut found = Crowded::new();
    for (uid, defs) in world.ipam.crowded_pods() {
        let mut interfaces: BTreeMap<&str, Vec<&InstanceDef>> = BTreeMap::new();
        for def in defs {
            interfaces.entry(&def.interface).or_default().push(def);
        }
        for (interface, defs) in interfaces {
            let of = |family| defs.iter().filter(|d| Family::of(d.name.address()) == family).count();
            if Family::ALL.into_iter().any(|family| of(family) > 1) {
                let mut names: Vec<_> = defs.iter().map(|d| d.name.clone()).collect();
                names.sort();
                found.insert((uid.to_owned(), interface.to_owned()), names);
            }
        }
    }
    found
}

impl Work {
    /// Deletes what is too much on interfaces that were crowded at the last round already and still are alike: an
    /// agent that was attaching one of the sets has said so meanwhile.
    pub(super) async fn thin_out(&self) {
        let now = crowded(&self.shared.world());
        let before = std::mem::replace(&mut *self.crowded.lock(), now.clone());
        for (key, names) in now {
            if before.get(&key) == Some(&names)
                && let Err(error) = self.thin(&key.1, &names).await
            {
                warn!(pod = key.0, %error, "surplus addresses are still there");
            }
        }
    }

    async fn thin(&self, interface: &str, names: &[InstanceName]) -> Result<(), WriteError> {
        let mut candidates = Vec::new();
        let mut seen = HashMap::new();
        for name in names {
            let Some(object) = self.writer.get::<IPInstance>(&name.to_string()).await? else { return Ok(()) };
            let (Ok(def), Some(uid)) = (InstanceDef::try_from(&object), object.uid()) else { return Ok(()) };
            let attached =
                object.status.as_ref().is_some_and(|s| s.attached_at.is_some() || s.sandbox.is_some());
            let mut set = def.set;
            set.sort();
            candidates.push(Candidate { name: name.clone(), set: set.into_vec(), attached });
            seen.insert(name.clone(), Seen { uid, version: object.resource_version().unwrap_or_default() });
        }
        for name in surplus(&candidates) {
            let Some(seen) = seen.get(&name) else { continue };
            match self.writer.delete::<IPInstance>(&name.to_string(), seen).await {
                Ok(()) | Err(WriteError::Missing(_)) => {
                    info!(address = %name, interface, "surplus address was never used and is free again");
                    index::unlearn(&self.shared, &name, &seen.uid);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, set: &[&str], attached: bool) -> Candidate {
        let set = set.iter().map(|a| a.parse().unwrap()).collect();
        Candidate { name: InstanceName::new("", name.parse().unwrap()), set, attached }
    }

    fn left(candidates: &[Candidate]) -> Vec<String> {
        let gone = surplus(candidates);
        candidates.iter().filter(|c| !gone.contains(&c.name)).map(|c| c.name.to_string()).collect()
    }

    const A: [&str; 2] = ["10.0.0.1", "fd00::1"];
    const B: [&str; 2] = ["10.0.0.2", "fd00::2"];

    #[test]
    fn while_nothing_is_attached_nothing_goes() {
        let all = [
            candidate(A[0], &A, false),
            candidate(A[1], &A, false),
            candidate(B[0], &B, false),
            candidate(B[1], &B, false),
        ];
        assert_eq!(left(&all).len(), 4);
    }

    #[test]
    fn an_address_in_two_sets_counts_by_its_own() {
        let (own, other) = (["10.0.0.1", "fd00::2"], ["10.0.0.1", "fd00::1"]);
        let all = [
            candidate(own[0], &own, true),
            candidate(other[1], &other, false),
            candidate(own[1], &own, false),
        ];
        assert_eq!(left(&all), ["10.0.0.1", "fd00-0-0-0-0-0-0-2"]);
    }

    #[test]
    fn what_is_attached_always_stays_with_its_set() {
        let all = [
            candidate(A[0], &A, false),
            candidate(A[1], &A, false),
            candidate(B[0], &B, true),
            candidate(B[1], &B, false),
        ];
        assert_eq!(left(&all), ["10.0.0.2", "fd00-0-0-0-0-0-0-2"]);
    }

    #[test]
    fn an_interface_as_it_should_be_loses_nothing() {
        let all = [candidate(A[0], &A, false), candidate(A[1], &A, false)];
        assert_eq!(left(&all), ["10.0.0.1", "fd00-0-0-0-0-0-0-1"]);
    }
}
