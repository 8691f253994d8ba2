//! Pods and namespaces: who needs addresses, and by which rules.

use std::collections::HashSet;

use braid_api::slim::{Namespace, Pod};
use braid_controller_core::{Choice, Effects, FamilyWish, PodFact, Topic};
use braid_informer::Event;
use braid_types::annotation::{ByOrdinal, NetworkChoice};
use braid_types::model::{OwnerRef, PodRef};
use kube::ResourceExt;
use tokio::time::Instant;

use super::interned::Interned;
use super::{Index, owner};
use crate::world::{NamespaceEntry, PodEntry, Uid, World};
use braid_types::well_known::condition::ADDRESSED;

/// What is kept of a pod.
#[derive(Debug, Clone)]
pub(super) struct PodNews {
    fact: PodFact,
    /// Present when it is bound to a node and needs addresses of its own.
    entry: Option<PodEntry>,
}

/// What the pods of a workload have alike.
#[derive(Debug, Default)]
pub(super) struct Alike {
    owners: Interned<OwnerRef>,
    choices: Interned<Result<Choice, String>>,
}

pub(super) fn news(alike: &mut Alike, pod: &Pod) -> PodNews {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second());
    let fact = PodFact { uid: pod.uid().unwrap_or_default().into(), finished: pod.is_finished(), created };
    let wants = !pod.spec.host_network && !fact.finished && !pod.is_terminating();
    let node = pod.spec.node_name.clone().filter(|n| wants && !n.is_empty());
    let entry = node.map(|node| PodEntry {
        pod: PodRef {
            namespace: pod.namespace().unwrap_or_default().into(),
            name: pod.name_any().into(),
            uid: fact.uid.clone(),
        },
        node: node.into(),
        choice: alike.choices.share(choice_of(pod)),
        owner: owner::other(pod).map(|owner| alike.owners.share(owner)),
        keep: owner::keep(pod),
        migration: owner::migration(pod),
        bound: Instant::now(),
        granted: false,
        refused: pod
            .condition(ADDRESSED)
            .filter(|c| c.status == "False")
            .map(|c| Box::new((c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))),
        told: None,
    });
    PodNews { fact, entry }
}

/// What the annotations of a pod say, or what is wrong with them.
pub(crate) fn choice_of(pod: &Pod) -> Result<Choice, String> {
    let Some(annotations) = &pod.metadata.annotations else { return Ok(Choice::default()) };
    let asked = NetworkChoice::of_pod(annotations).map_err(|e| e.to_string())?;
    let ordinal = ordinal_of(pod);
    let missing = |key: &str, count: usize| match ordinal {
        Some(n) => format!("annotation {key} has {count} entries, none for ordinal {n}; add one"),
        None => {
            format!("annotation {key} has {count} entries, but only pods of a StatefulSet can have several")
        }
    };
    Ok(Choice {
        ips: pick(asked.ips.as_ref(), ordinal)
            .map_err(|n| missing(braid_types::well_known::annotation::IPS, n))?
            .cloned()
            .unwrap_or_default(),
        mac: pick(asked.mac.as_ref(), ordinal)
            .map_err(|n| missing(braid_types::well_known::annotation::MAC, n))?
            .copied(),
        network: asked.network,
        subnets: asked.subnets,
        family: asked.family.map(FamilyWish::from),
    })
}

/// The entry for the ordinal; the error is the number of entries of a list that has none for it.
fn pick<T>(list: Option<&ByOrdinal<T>>, ordinal: Option<usize>) -> Result<Option<&T>, usize> {
    list.map(|all| all.pick(ordinal).ok_or(all.all().len())).transpose()
}

/// The number at the end of the name of a StatefulSet's pod.
fn ordinal_of(pod: &Pod) -> Option<usize> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| owner::is_numbered(o) && o.controller == Some(true))?;
    pod.metadata.name.as_deref()?.rsplit_once('-')?.1.parse().ok()
}

pub(super) fn handle(index: &Index, event: Event<PodNews>) {
    let mut world = index.shared.world();
    let effects = match event {
        Event::Reset(all) => {
            let listed: HashSet<&str> =
                all.iter().filter(|n| n.entry.is_some()).map(|n| n.fact.uid.as_str()).collect();
            let gone: Vec<Uid> = world.pods.keys().filter(|u| !listed.contains(&***u)).cloned().collect();
            for uid in gone {
                drop_entry(&mut world, &uid);
            }
            for news in &all {
                take_entry(index, &mut world, news);
            }
            world.ipam.reset_pods(all.iter().map(|n| n.fact.clone()).collect())
        }
        Event::Applied(news) => {
            take_entry(index, &mut world, &news);
            world.ipam.upsert_pod(news.fact.clone())
        }
        Event::Deleted(news) => {
            drop_entry(&mut world, &news.fact.uid.as_str().into());
            world.ipam.remove_pod(&news.fact.uid)
        }
        Event::Undecodable(object) => return index.unreadable("pods", &object),
    };
    index.shared.dispatch(&world, effects);
}

fn drop_entry(world: &mut World, uid: &Uid) {
    world.pods.remove(uid);
    world.waiters.forget(uid);
}

/// Adds the pod or brings it up to date; asks for a grant where it has none.
fn take_entry(index: &Index, world: &mut World, news: &PodNews) {
    let uid: Uid = news.fact.uid.as_str().into();
    let Some(new) = &news.entry else { return drop_entry(world, &uid) };
    match world.pods.get_mut(&uid) {
        None => {
            world.pods.insert(uid.clone(), new.clone());
            index.shared.queues.grants.add(uid);
        }
        Some(known) => {
            let asks_anew = std::mem::replace(&mut known.choice, new.choice.clone()) != new.choice;
            known.keep = new.keep;
            let moves_on = std::mem::replace(&mut known.migration, new.migration) != new.migration;
            // Its own writes come back here late; what it remembers is newer than the condition it reads.
            if known.told.is_none() {
                known.refused.clone_from(&new.refused);
            }
            if moves_on || (asks_anew && !known.granted) {
                index.shared.queues.grants.add(uid);
            }
        }
    }
}

pub(super) fn namespace_news(raw: Namespace) -> (String, NamespaceEntry) {
    let choice = raw.metadata.annotations.as_ref().map_or(Ok(Choice::default()), |annotations| {
        let asked = NetworkChoice::of_namespace(annotations).map_err(|e| e.to_string())?;
        Ok(Choice {
            network: asked.network,
            subnets: asked.subnets,
            family: asked.family.map(FamilyWish::from),
            ..Choice::default()
        })
    });
    (raw.name_any(), NamespaceEntry { labels: raw.metadata.labels.unwrap_or_default(), choice })
}

pub(super) fn handle_namespaces(index: &Index, event: Event<(String, NamespaceEntry)>) {
    let mut world = index.shared.world();
    let mut effects = Effects::default();
    match event {
        Event::Reset(all) => {
            world.namespaces = all.iter().map(|n| (n.0.clone(), n.1.clone())).collect();
            effects.wake = all.iter().map(|n| Topic::Namespace(n.0.clone())).collect();
        }
        Event::Applied(news) => {
            let (name, entry) = &*news;
            if world.namespaces.insert(name.clone(), entry.clone()).as_ref() != Some(entry) {
                effects.wake.insert(Topic::Namespace(name.clone()));
            }
        }
        Event::Deleted(news) => {
            world.namespaces.remove(&news.0);
        }
        Event::Undecodable(object) => return index.unreadable("namespaces", &object),
    }
    index.shared.dispatch(&world, effects);
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
