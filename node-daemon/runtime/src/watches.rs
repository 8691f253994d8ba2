//! Which objects are watched, and how each kind gets into the index.
//!
//! How much is watched depends on the number of nodes and blocks, never on the number of pods in the cluster.

use std::sync::Arc;

use braid_api::slim::{Node, Pod};
use braid_api::{IPBlock, IPInstance, Network, NodeNetwork, Subnet};
use braid_informer::{Event, Informers, Selection};
use braid_types::model::{BlockDef, InstanceDef, NetworkDef, NodeDef, SubnetDef};
use braid_types::well_known::{condition, label};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use tracing::warn;

use crate::index::{Change, Held, Index, OwnNode, OwnPod, Refusal, pod_key};
use crate::store::{Effect, Store};

/// Annotation on the API's mirror of a static pod: the uid by which the kubelet knows the pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// An object's name, and the object parsed or why that failed.
type Parsed<V> = (String, Result<V, String>);

/// Starts every watch.
pub(crate) fn start(client: &Client, node: &str, store: &Arc<Store>) -> Informers {
    let mut informers = Informers::default();
    let all = Selection::default;
    informers.watch_mapped(
        "networks",
        Api::all(client.clone()),
        all(),
        |raw: Network| parsed(&raw.metadata, NetworkDef::try_from(&raw)),
        feed(store, |index, change| Effect::kernel_if(index.networks.apply(change))),
    );
    informers.watch_mapped(
        "subnets",
        Api::all(client.clone()),
        all(),
        |raw: Subnet| parsed(&raw.metadata, SubnetDef::try_from(&raw)),
        feed(store, |index, change| Effect::kernel_if(index.subnets.apply(change))),
    );
    informers.watch_mapped(
        "ipblocks",
        Api::all(client.clone()),
        all(),
        |raw: IPBlock| parsed(&raw.metadata, BlockDef::try_from(&raw)),
        feed(store, |index, change| Effect::kernel_if(index.blocks.apply(change))),
    );
    informers.watch_mapped(
        "nodenetworks",
        Api::all(client.clone()),
        all(),
        |raw: NodeNetwork| parsed(&raw.metadata, NodeDef::try_from(&raw)),
        feed(store, |index, change| Effect::kernel_if(index.nodes.apply(change))),
    );
    informers.watch_mapped(
        "own-ipinstances",
        Api::all(client.clone()),
        Selection::fields(format!("spec.node={node}")),
        |raw: IPInstance| held(&raw),
        feed(store, Index::apply_own),
    );
    informers.watch_mapped(
        "host-routed-ipinstances",
        Api::all(client.clone()),
        Selection::labels(format!("{}={}", label::ROUTED, label::ROUTED_HOST)),
        |raw: IPInstance| parsed(&raw.metadata, InstanceDef::try_from(&raw)),
        feed(store, Index::apply_host_routed),
    );
    informers.watch_mapped(
        "own-node",
        Api::all(client.clone()),
        Selection::fields(format!("metadata.name={node}")),
        |raw: Node| (raw.metadata.name.clone().unwrap_or_default(), Ok(own_node(raw))),
        feed(store, |index, change| Effect::kernel_if(index.node.apply(change))),
    );
    informers.watch_mapped(
        "own-pods",
        Api::all(client.clone()),
        Selection::fields(format!("spec.nodeName={node}")),
        own_pod,
        feed_as(
            store,
            |namespace, name| pod_key(namespace.unwrap_or_default(), name),
            |index, change| Effect::quiet_if(index.pods.apply(change)),
        ),
    );
    informers
}

fn parsed<V>(meta: &ObjectMeta, value: Result<V, braid_api::ParseError>) -> Parsed<V> {
    (meta.name.clone().unwrap_or_default(), value.map_err(|e| e.to_string()))
}

fn held(raw: &IPInstance) -> Parsed<Held> {
    let def = InstanceDef::try_from(raw);
    let resource_version = raw.metadata.resource_version.clone().unwrap_or_default();
    let attached = raw.status.as_ref().is_some_and(|s| s.attached_at.is_some());
    let sandbox = raw.status.as_ref().and_then(|s| s.sandbox.clone());
    parsed(&raw.metadata, def.map(|def| Held { def, resource_version, attached, sandbox }))
}

fn own_node(raw: Node) -> OwnNode {
    let unavailable = raw.status.conditions.iter().find(|c| c.type_ == condition::NETWORK_UNAVAILABLE);
    OwnNode {
        name: raw.metadata.name.unwrap_or_default(),
        uid: raw.metadata.uid.unwrap_or_default(),
        labels: raw.metadata.labels.unwrap_or_default(),
        addresses: raw.status.addresses.iter().filter_map(|a| a.address.parse().ok()).collect(),
        network_unavailable: unavailable.map(|c| c.status != "False"),
    }
}

fn own_pod(raw: Pod) -> Parsed<OwnPod> {
    let refusal = raw.condition(condition::ADDRESSED).filter(|c| c.status == "False").map(|c| Refusal {
        reason: c.reason.clone().unwrap_or_default(),
        message: c.message.clone().unwrap_or_default(),
    });
    let (terminating, finished) = (raw.is_terminating(), raw.is_finished());
    let meta = raw.metadata;
    let pod = OwnPod {
        namespace: meta.namespace.unwrap_or_default(),
        name: meta.name.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        mirror_of: meta.annotations.and_then(|mut all| all.remove(MIRROR)),
        terminating,
        finished,
        refusal,
    };
    (pod_key(&pod.namespace, &pod.name), Ok(pod))
}

/// A handler for a kind without namespace.
fn feed<V: Send + 'static>(
    store: &Arc<Store>,
    apply: impl Fn(&mut Index, Change<V>) -> Effect + Send + 'static,
) -> impl FnMut(Event<Parsed<V>>) + Send + 'static {
    feed_as(store, |_, name| name.to_owned(), apply)
}

fn feed_as<V: Send + 'static>(
    store: &Arc<Store>,
    key: impl Fn(Option<&str>, &str) -> String + Send + 'static,
    apply: impl Fn(&mut Index, Change<V>) -> Effect + Send + 'static,
) -> impl FnMut(Event<Parsed<V>>) + Send + 'static {
    let store = store.clone();
    let take = |object: Arc<Parsed<V>>| match Arc::into_inner(object) {
        Some((name, value)) => {
            if let Err(error) = &value {
                warn!(error, "an object is not understood; its last readable state counts");
            }
            Some((name, value))
        }
        // The handler is the only one that gets the object.
        None => None,
    };
    move |event| {
        let change = match event {
            Event::Reset(all) => Change::Reset(all.into_iter().filter_map(take).collect()),
            Event::Applied(object) => match take(object) {
                Some((name, value)) => Change::Applied(name, value),
                None => return,
            },
            Event::Deleted(object) => Change::Deleted(object.0.clone()),
            Event::Undecodable(object) => {
                let name = key(object.namespace.as_deref(), &object.name);
                if object.deleted { Change::Deleted(name) } else { Change::Unreadable(name) }
            }
        };
        store.update(|index| apply(index, change));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_a_status_wake_nobody() {
        let store = Arc::new(Store::default());
        let mut handler = feed(&store, |index, change| Effect::kernel_if(index.subnets.apply(change)));
        let mut see = |used: u32| {
            let raw: Subnet = serde_json::from_value(serde_json::json!({
                "apiVersion": "braid.network/v1", "kind": "Subnet", "metadata": {"name": "s"},
                "spec": {"network": "overlay", "cidr": "10.0.0.0/16"},
                "status": {"used": used, "conditions": []},
            }))
            .unwrap();
            let changes = store.changes();
            handler(Event::Applied(Arc::new(parsed(&raw.metadata, SubnetDef::try_from(&raw)))));
            changes.has_changed().unwrap()
        };
        assert!(see(1), "a new object");
        assert!(!see(2) && !see(3));
        assert_eq!(store.kernel_changes(), 1);
    }
}
