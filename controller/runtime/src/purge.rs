//! `braid-controller purge`: removes every Braid object, so that the CRDs can be deleted although the controller
//! that would take the finalizers off is already gone, and what Braid says on Nodes. The last step of an uninstall.

use anyhow::Context;
use braid_api::{IPBlock, IPInstance, Network, NodeNetwork, Subnet};
use braid_types::well_known::condition::{BRAID_NOT_READY, BRAID_READY, NETWORK_UNAVAILABLE};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::info;

use crate::args::Args;
use crate::wire::client;

/// Objects asked for per page: a large cluster does not have to fit into memory.
const PAGE: u32 = 500;

/// Removes the webhook configurations, every object of Braid's kinds, and the Nodes' condition. Safe to repeat.
///
/// # Errors
/// When the API server refuses a step; what was removed stays removed.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let client = client(args).await?;
    // First: with no controller behind it, the webhook would refuse every deletion that follows, and hold up every pod.
    forget::<ValidatingWebhookConfiguration>(&client).await?;
    forget::<MutatingWebhookConfiguration>(&client).await?;
    // Users before what they use, so that an interrupted purge leaves nothing that refers to nothing.
    purge::<IPInstance>(&client).await?;
    purge::<IPBlock>(&client).await?;
    purge::<Subnet>(&client).await?;
    purge::<Network>(&client).await?;
    purge::<NodeNetwork>(&client).await?;
    clear_nodes(&client).await
}

/// Takes Braid's condition off the Nodes: it says that somebody connects the pods there, or prevents that any come. Whoever
/// connects them from now on says so anew, and where nobody does, the runtime keeps the node from being Ready.
async fn clear_nodes(client: &Client) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let mut pages = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&pages).await.context("listing nodes")?;
        for node in page.items.iter().filter(|node| has_our_condition(node)) {
            let patch =
                json!({"status": {"conditions": [{"type": NETWORK_UNAVAILABLE, "$patch": "delete"}]}});
            let name = node.name_any();
            let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            gone(patched.map(|_| ())).with_context(|| format!("taking the condition off node `{name}`"))?;
            info!(node = name, "condition {NETWORK_UNAVAILABLE} removed");
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => pages = pages.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn has_our_condition(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| {
        c.type_ == NETWORK_UNAVAILABLE
            && c.reason.as_deref().is_some_and(|reason| [BRAID_READY, BRAID_NOT_READY].contains(&reason))
    })
}

/// Deletes the webhook configuration of this kind.
async fn forget<K>(client: &Client) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    gone(api.delete("braid", &DeleteParams::default()).await.map(|_| ()))
        .with_context(|| format!("deleting the {} `braid`", K::kind(&())))
}

async fn purge<K>(client: &Client) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let kind = K::plural(&());
    let api: Api<K> = Api::all(client.clone());
    let mut removed = 0usize;
    loop {
        // Always the first page: the objects of the last one are gone. A kind whose CRD is gone has no objects.
        let page = match api.list(&ListParams::default().limit(PAGE)).await {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("listing {kind}")),
        };
        if page.is_empty() {
            break;
        }
        for object in page {
            let name = object.name_any();
            if !object.finalizers().is_empty() {
                let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                gone(api.patch(&name, &PatchParams::default(), &patch).await.map(|_| ()))
                    .with_context(|| format!("taking the finalizers off {kind} `{name}`"))?;
            }
            gone(api.delete(&name, &DeleteParams::default()).await.map(|_| ()))
                .with_context(|| format!("deleting {kind} `{name}`"))?;
            removed += 1;
        }
    }
    info!(kind = %kind, removed, "purged");
    Ok(())
}

/// What is gone already needs no removal.
fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_known_by_its_reason() {
        let node = |kind: &str, reason: &str| -> Node {
            let condition = json!({"type": kind, "status": "False", "reason": reason});
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [condition]}})).unwrap()
        };
        assert!(has_our_condition(&node(NETWORK_UNAVAILABLE, BRAID_READY)));
        assert!(has_our_condition(&node(NETWORK_UNAVAILABLE, BRAID_NOT_READY)));
        assert!(!has_our_condition(&node(NETWORK_UNAVAILABLE, "CalicoIsUp")));
        assert!(!has_our_condition(&node("Ready", BRAID_READY)));
    }
}
