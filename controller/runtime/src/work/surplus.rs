//! Two controllers that both believed that they lead may have given one interface twice what it needs: different
//! addresses, so that no claim stood against the other. What nobody uses of it goes again.

use std::collections::{BTreeMap, HashMap};

use braid_api::IPInstance;
use braid_controller_core::ipam::{Given, surplus};
use braid_types::model::InstanceDef;
use braid_types::{Family, InstanceName};
use kube::ResourceExt;
use tracing::{info, warn};

use super::Work;
use crate::index;
use crate::world::World;
use crate::write::{Seen, WriteError};

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
