//! Two controllers that both believed that they lead may have given one interface twice what it needs: different
//! addresses, so that no claim stood against the other. What nobody uses of it goes again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use braid_api::IPInstance;
use braid_controller_core::ipam::{Given, surplus};
use braid_types::model::InstanceDef;
use braid_types::{Family, InstanceName};
use kube::ResourceExt;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Work;
use crate::index;
use crate::world::World;
use crate::write::{Seen, WriteError};

/// How long an interface must have had the same too many addresses before one is taken: an agent that was attaching one of
/// the sets has said so meanwhile. Two looks may follow each other at once, so these are not counted.
const SETTLED: Duration = Duration::from_secs(60);

/// Pod uid and interface.
type Key = (String, String);

/// Interfaces with more than one address of a family, and what these have.
type Found = BTreeMap<Key, Vec<InstanceName>>;

/// The same, and since when that was so.
pub(super) type Crowded = BTreeMap<Key, (Vec<InstanceName>, Instant)>;

/// Finds them.
pub(super) fn crowded(world: &World) -> Found {
    let mut found = Found::new();
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

/// Since when each is as it was found now.
fn since(known: &Crowded, found: Found, now: Instant) -> Crowded {
    let aged = found.into_iter().map(|(key, names)| {
        let since = known.get(&key).filter(|(before, _)| *before == names).map_or(now, |(_, since)| *since);
        (key, (names, since))
    });
    aged.collect()
}

impl Work {
    /// Deletes what is too much on interfaces that have been crowded for a while, and are so as they were.
    pub(super) async fn thin_out(&self) {
        let (found, now) = (crowded(&self.shared.world()), Instant::now());
        let crowded = {
            let mut known = self.crowded.lock();
            *known = since(&known, found, now);
            known.clone()
        };
        for (key, (names, since)) in crowded {
            if now.duration_since(since) >= SETTLED
                && let Err(error) = self.thin(&key, &names).await
            {
                warn!(pod = key.0, %error, "surplus addresses are still there");
            }
        }
    }

    async fn thin(
        &self,
        (pod, interface): &(String, String),
        names: &[InstanceName],
    ) -> Result<(), WriteError> {
        let mut given = Vec::new();
        let mut seen = HashMap::new();
        for name in names {
            let Some(object) = self.writer.get::<IPInstance>(&name.to_string()).await? else { return Ok(()) };
            let (Ok(def), Some(uid)) = (InstanceDef::try_from(&object), object.uid()) else { return Ok(()) };
            // `attachedAt` may be of an earlier pod, for which the address was kept.
            let in_use = object.status.as_ref().is_some_and(|s| s.sandbox.is_some());
            given.push(Given { def, in_use });
            seen.insert(name.clone(), Seen { uid, version: object.resource_version().unwrap_or_default() });
        }
        for name in surplus(pod, &given) {
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

    #[test]
    fn time_counts_from_when_an_interface_had_exactly_these() {
        let key = ("u1".to_owned(), "eth0".to_owned());
        let found = |names: &[&str]| {
            Found::from([(key.clone(), names.iter().map(|name| name.parse().unwrap()).collect())])
        };
        let (two, three) = (["10.0.0.5", "10.0.0.6"], ["10.0.0.5", "10.0.0.6", "10.0.0.7"]);
        let begun = Instant::now();
        let later = |seconds| begun + Duration::from_secs(seconds);
        let known = since(&Crowded::new(), found(&two), begun);
        let known = since(&known, found(&two), later(50));
        assert_eq!(known[&key].1, begun);
        let known = since(&known, found(&three), later(55));
        assert_eq!(known[&key].1, later(55), "what is new may be in use in a moment");
        let known = since(&known, Found::new(), later(56));
        assert!(known.is_empty());
        assert_eq!(since(&known, found(&three), later(57))[&key].1, later(57));
    }
}
