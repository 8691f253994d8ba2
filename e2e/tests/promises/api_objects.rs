//! The API server itself refuses bad objects, with a sentence that says what to change, and takes good ones: with no
//! webhook and no controller behind it, on copies of Braid's kinds in a group that nobody watches.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use braid_api::examples::{self, Example};
use braid_api::{IPInstance, InstancePhase, crd};
use braid_e2e::stage::quiet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{conditions, wait};
use kube::{Client, Config};
use serde_json::Value;

/// The group of the copies.
const GROUP: &str = "objects.braid.network";
/// Bounds how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The definitions as they are shipped, in a group of their own.
fn copies() -> Result<Vec<CustomResourceDefinition>> {
    let copy = |mut crd: CustomResourceDefinition| {
        // Resources of their own names: others ask kubectl for Braid's beside this test.
        crd.spec.names.plural = format!("copied{}", crd.spec.names.plural);
        crd.spec.names.singular = crd.spec.names.singular.map(|name| format!("copied{name}"));
        crd.metadata.name = Some(format!("{}.{GROUP}", crd.spec.names.plural));
        GROUP.clone_into(&mut crd.spec.group);
        crd.spec.names.short_names = None;
        crd.spec.names.categories = None;
        crd
    };
    Ok(crd::all().into_iter().map(copy).collect())
}

/// The copies of Braid's kinds in an API server.
struct Kinds {
    client: Client,
    definitions: Vec<CustomResourceDefinition>,
}

impl Kinds {
    async fn install(client: Client) -> Result<Self> {
        let kinds = Self { definitions: copies()?, client };
        let api = kinds.definition_api();
        for definition in &kinds.definitions {
            let name = definition.metadata.name.as_deref().context("a definition without name")?;
            let apply = PatchParams::apply("braid-e2e").force();
            api.patch(name, &apply, &Patch::Apply(definition))
                .await
                .with_context(|| format!("install {name}"))?;
            let established = wait::await_condition(api.clone(), name, conditions::is_crd_established());
            tokio::time::timeout(PATIENCE, established)
                .await
                .with_context(|| format!("{name} is not served"))??;
        }
        Ok(kinds)
    }

    async fn remove(&self) -> Result<()> {
        for definition in &self.definitions {
            let name = definition.metadata.name.as_deref().unwrap_or_default();
            self.definition_api().delete(name, &DeleteParams::default()).await?;
        }
        Ok(())
    }

    fn definition_api(&self) -> Api<CustomResourceDefinition> {
        Api::all(self.client.clone())
    }

    fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let names = self.definitions.iter().map(|d| &d.spec.names).find(|n| n.kind == kind);
        let plural = &names.with_context(|| format!("no kind {kind}"))?.plural;
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", kind), plural);
        Ok(Api::all_with(self.client.clone(), &resource))
    }

    /// Does what the example says and returns the words of the API server, if it refuses that. Whatever was made is
    /// gone afterwards.
    async fn try_out(&self, example: &Example) -> Result<Option<String>> {
        let api = self.api(example.kind())?;
        let mut object = copy_of(&example.object)?;
        let answer = match &example.old {
            None => api.create(&PostParams::default(), &object).await,
            Some(old) => {
                let old =
                    api.create(&PostParams::default(), &copy_of(old)?).await.context("the object before")?;
                object.metadata.resource_version = old.metadata.resource_version;
                api.replace(name_of(&object)?, &PostParams::default(), &object).await
            }
        };
        if answer.is_ok() || example.old.is_some() {
            api.delete(name_of(&object)?, &DeleteParams::default()).await.context("clean up")?;
        }
        match answer {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.is_invalid() => Ok(Some(status.message.clone())),
            Err(other) => bail!("not a refusal: {other}"),
        }
    }
}

fn copy_of(object: &Value) -> Result<DynamicObject> {
    let mut copy = object.clone();
    copy["apiVersion"] = format!("{GROUP}/v1").into();
    Ok(serde_json::from_value(copy)?)
}

fn name_of(object: &DynamicObject) -> Result<&str> {
    object.metadata.name.as_deref().context("an object without name")
}

async fn refuses_bad_and_takes_good(kinds: &Kinds) -> Result<()> {
    let (bad, good) = (examples::bad(), examples::good());
    ensure!(bad.len() >= 80, "only {} bad objects", bad.len());
    let mut wrong = Vec::new();
    for example in bad.iter().chain(&good) {
        let answer =
            kinds.try_out(example).await.with_context(|| format!("{} {}", example.kind(), example.what))?;
        let complaint = match (&example.refused, answer) {
            (None, None) => continue,
            (Some((_, says)), Some(sentence)) if sentence.contains(says) => continue,
            (None, Some(sentence)) => format!("is refused: {sentence}"),
            (Some(_), None) => "is taken".to_owned(),
            (Some((_, says)), Some(sentence)) => format!("is refused without `{says}`: {sentence}"),
        };
        wrong.push(format!("{} with {} {complaint}", example.kind(), example.what));
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), bad.len() + good.len(), wrong.join("\n"));
    println!("{} bad objects refused, {} good ones taken", bad.len(), good.len());
    Ok(())
}

/// An address has a phase from the first moment on, without a second write.
async fn a_new_address_is_bound(kinds: &Kinds) -> Result<()> {
    let api = kinds.api("IPInstance")?;
    let object = examples::good()
        .into_iter()
        .find(|e| e.kind() == "IPInstance" && e.old.is_none() && e.object["spec"]["pod"].is_object())
        .context("no such example")?
        .object;
    let object = copy_of(&object)?;
    let name = name_of(&object)?;
    api.create(&PostParams::default(), &object).await?;
    let stored: IPInstance = serde_json::from_value(serde_json::to_value(api.get(name).await?)?)?;
    api.delete(name, &DeleteParams::default()).await?;
    ensure!(stored.status.as_ref().is_some_and(|s| s.phase == InstancePhase::Bound), "{:?}", stored.status);
    Ok(())
}

async fn ask(kubeconfig: &Path) -> Result<()> {
    let kinds = Kinds::install(client(kubeconfig).await?).await?;
    let answers = async {
        refuses_bad_and_takes_good(&kinds).await?;
        a_new_address_is_bound(&kinds).await
    };
    let result = answers.await;
    kinds.remove().await?;
    result
}

#[test]
fn bad_objects_are_refused_and_good_ones_taken() {
    quiet("api_objects", |stage| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ask(&stage.sandbox().kubeconfig()))
    });
}

#[test]
fn the_samples_are_taken() {
    quiet("samples", |stage| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no repository")?;
        for entry in fs::read_dir(root.join("config/samples"))? {
            let file = entry?.path().display().to_string();
            let arguments =
                ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", file.as_str()];
            stage.sandbox().kubectl(&arguments).with_context(|| file.clone())?;
        }
        Ok(())
    });
}

#[test]
fn the_api_explains_itself() {
    quiet("api_explained", |stage| {
        for definition in crd::all() {
            let name = definition.metadata.name.clone().context("a definition without name")?;
            let installed = stage.sandbox().kubectl_json(&["get", "crd", &name])?;
            let installed: CustomResourceDefinition = serde_json::from_value(installed)?;
            ensure!(
                installed.spec.versions == definition.spec.versions,
                "{name} is not installed as it is shipped"
            );
        }
        for (path, sentence) in [
            ("net.spec.vxlan.vni", "VXLAN network identifier, different for every Network"),
            ("subnet.spec.blockSize", "Prefix length of the blocks that nodes draw their addresses from"),
            ("ipi.status.phase", "Bound (held by a pod or node)"),
            ("ipb.spec.cidr", "The range as a prefix with all host bits zero"),
            ("nodenet.status.networks.vtep", "This node's end of the tunnels of an overlay"),
        ] {
            let page = stage.sandbox().kubectl(&["explain", path])?;
            // kubectl folds the text to its own width.
            let text = page.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(text.contains(sentence), "'kubectl explain {path}' says:\n{page}");
        }
        let all = stage.sandbox().kubectl(&["get", "braid", "-A"])?;
        for kind in
            ["network.braid.network/overlay", "subnet.braid.network/overlay-v4", "nodenetwork.braid.network/"]
        {
            ensure!(all.contains(kind), "'kubectl get braid -A' does not show {kind}:\n{all}");
        }
        Ok(())
    });
}
