//! `braid-controller purge`: removes every Braid object, so that the CRDs can be deleted although the controller
//! that would take the finalizers off is already gone. The last step of an uninstall.

use anyhow::Context;
use braid_api::{IPBlock, IPInstance, Network, NodeNetwork, Subnet};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::info;

use crate::args::Args;
use crate::wire::client;

/// Objects asked for per page: a large cluster does not have to fit into memory.
const PAGE: u32 = 500;

/// Removes the webhook configurations and then every object of Braid's kinds. Safe to repeat.
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
    Ok(())
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
                let patch = Patch::Merge(serde_json::json!({"metadata": {"finalizers": null}}));
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
