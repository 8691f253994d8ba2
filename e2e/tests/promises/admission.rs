//! What only several objects together can show: refused by the webhook with a sentence, and where the webhook is away,
//! told to the loser by a condition while the winner goes on. And what an agent may write: of its own node only.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use braid_e2e::stage::{PATIENCE, Stage, alone, items, quiet, says};
use braid_e2e::workload::{PodPlan, instance_name};
use braid_e2e::{Sandbox, eventually};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use serde_json::{Value, json};

/// Contradictions of addresses are looked for once a minute.
const OF_AUDIT: Duration = Duration::from_secs(150);

/// What the API server says to an object that must not be made.
fn not_accepted(stage: &Stage, object: &Value) -> Result<String> {
    let refused = stage.declare(std::slice::from_ref(object));
    match refused {
        Ok(()) => anyhow::bail!("accepted: {object}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// The addresses of the cluster's Services, of its first family.
fn services(stage: &Stage) -> Result<String> {
    let range = stage.sandbox().kubectl_json(&["get", "servicecidr", "kubernetes"])?;
    Ok(range["spec"]["cidrs"][0].as_str().context("no range of Services")?.to_owned())
}

/// The prefix that a node is in, with its address.
fn of_node(stage: &Stage) -> Result<[String; 2]> {
    // Not in the first rack, where a flat Network of another test may have a Subnet over the nodes' prefix.
    let node = stage.sandbox().kubectl_json(&["get", "node", &stage.nodes()[1]])?;
    let address = node["status"]["addresses"][0]["address"].as_str().context("no address")?.to_owned();
    let (prefix, _) = address.rsplit_once('.').context("no IPv4 address")?;
    Ok([format!("{prefix}.0/24"), address])
}

/// An address of a Network that is kept for the pods of a StatefulSet.
fn reservation(stage: &Stage, address: &str, [network, subnet]: [&str; 2], pod: Option<&str>) -> Value {
    let mut owner =
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": stage.namespace(), "name": "db"});
    if let Some(pod) = pod {
        owner["pod"] = json!(pod);
    }
    let name = address.split('/').next().unwrap_or_default();
    let spec = json!({"network": network, "subnet": subnet, "address": address, "owner": owner});
    stage.object("IPInstance", name, &spec)
}

fn vxlan(vni: u32, default: bool) -> Value {
    json!({"type": "VXLAN", "default": default, "vxlan": {"vni": vni}})
}

#[test]
fn the_webhook_refuses_with_a_sentence() {
    quiet("admission", |stage| {
        let pod = stage.start(&[PodPlan::new("holder").on(&stage.nodes()[1])])?.remove(0);
        stage.overlay("judged", stage.vni(0), &["10.x.0.0/24"], &Value::Null, &Value::Null)?;
        let services = services(stage)?;
        let [nodes, address] = of_node(stage)?;
        let cases = [
            (
                stage.object("Subnet", "within", &json!({"network": "judged", "cidr": "10.244.7.0/24"})),
                vec!["10.244.7.0/24", "overlaps", "overlay-v4"],
            ),
            (
                stage.object("Subnet", "around", &json!({"network": "judged", "cidr": "10.x.0.0/16"})),
                vec!["10.x.0.0/16", "overlaps", "judged-0"],
            ),
            (
                stage.object("Subnet", "services", &json!({"network": "judged", "cidr": services})),
                vec![services.as_str(), "ServiceCIDR kubernetes", "another prefix"],
            ),
            (
                stage.object("Subnet", "nodes", &json!({"network": "judged", "cidr": nodes})),
                vec![nodes.as_str(), address.as_str(), "another prefix"],
            ),
            (
                reservation(stage, "10.x.0.7/16", ["judged", "judged-0"], None),
                vec!["spec.address", "10.x.0.7/24"],
            ),
            (
                reservation(stage, "10.x.1.7/24", ["judged", "judged-0"], None),
                vec!["10.x.1.7", "10.x.0.0/24"],
            ),
            (
                reservation(stage, "10.x.0.0/24", ["judged", "judged-0"], None),
                vec!["10.x.0.0", "first address"],
            ),
            (
                reservation(stage, "10.x.0.7/24", ["judged", "overlay-v4"], None),
                vec!["spec.network", "overlay-v4"],
            ),
            (
                reservation(stage, "10.x.0.7/24", ["judged", "judged-0"], Some("db-x")),
                vec!["spec.owner.pod", "db-0"],
            ),
            (stage.object("Network", "usurper", &vxlan(stage.vni(1), true)), vec!["overlay", "default"]),
            (stage.object("Network", "twin", &vxlan(4, false)), vec!["VNI 4", "overlay"]),
        ];
        for (object, parts) in cases {
            let parts: Vec<String> = parts.into_iter().map(|part| stage.own(part)).collect();
            says(&not_accepted(stage, &object)?, &parts)?;
        }
        let early = reservation(stage, "10.x.2.7/24", ["judged", "to-come"], Some("db-0"));
        let file = Sandbox::dir_of(stage.sandbox().name()).join("early.json");
        std::fs::write(&file, early.to_string())?;
        let file = file.display().to_string();
        let output = stage.sandbox().kubectl_output(&["apply", "--dry-run=server", "-f", &file])?;
        ensure!(output.status.success(), "{output:?}");
        says(&String::from_utf8_lossy(&output.stderr), &["Warning: ", "Subnet to-come does not exist"])?;
        let become_default =
            ["patch", "network", "judged", "--type=merge", "-p", "{\"spec\":{\"default\":true}}"];
        says(&stage.refused(&become_default)?, &["overlay", "default"])?;

        says(&stage.refused(&["delete", "network", "overlay", "--dry-run=server"])?, &["overlay", "Subnet"])?;
        says(&stage.refused(&["delete", "subnet", "overlay-v4", "--dry-run=server"])?, &["overlay-v4"])?;
        for address in &pod.addresses {
            let name = instance_name(*address);
            let sentence = stage.refused(&["delete", "ipi", &name, "--wait=false"])?;
            says(&sentence, &[&address.to_string(), "holder"])?;
            ensure!(
                stage
                    .instance(*address)?
                    .is_some_and(|found| found["metadata"]["deletionTimestamp"].is_null())
            );
        }
        // A Network without Subnets and a Subnet without addresses may go.
        stage.declare(&[stage.object("Network", "short-lived", &vxlan(stage.vni(2), false))])?;
        stage.await_ready("network/short-lived")?;
        stage.sandbox().kubectl(&["delete", "network", "short-lived", "--timeout=60s"])?;
        Ok(())
    });
}

#[test]
fn without_the_webhook_the_loser_is_told_and_the_winner_unharmed() {
    alone("admission_without_webhook", |stage| {
        let sandbox = stage.sandbox();
        // The other test's Network has the same name.
        stage.await_agreement()?;
        let pod = stage.start(&[PodPlan::new("before").on(&stage.nodes()[1])])?.remove(0);
        stage.overlay("second", 84, &["10.84.0.0/24", "fd00:84::/112"], &Value::Null, &Value::Null)?;
        sandbox.kubectl(&["delete", "validatingwebhookconfiguration", "braid"])?;
        let outcome = (|| -> Result<()> {
            let losers = [
                stage.object("Subnet", "within", &json!({"network": "second", "cidr": "10.244.7.0/24"})),
                stage.object("Subnet", "services", &json!({"network": "second", "cidr": services(stage)?})),
                stage.object("Network", "twin", &vxlan(4, false)),
                stage.object("Network", "usurper", &vxlan(85, true)),
                reservation(stage, "10.84.0.7/16", ["second", "second-0"], None),
            ];
            // The API server forgets a webhook a moment after its configuration has gone.
            eventually("the API server to forget the webhook", PATIENCE, || {
                stage.declare(&losers).map(Some)
            })?;
            let message = stage.await_reason("subnet/within", "False", "Overlap")?;
            ensure!(message.contains("overlay-v4"), "{message}");
            let message = stage.await_reason("subnet/services", "False", "OffLimits")?;
            ensure!(message.contains("ServiceCIDR kubernetes"), "{message}");
            let service = sandbox.kubectl_json(&["-n", "default", "get", "service", "kubernetes"])?;
            let api = format!("https://{}", service["spec"]["clusterIP"].as_str().context("no ClusterIP")?);
            sandbox.node_exec(&stage.nodes()[1], &["curl", "-skm", "10", "-o", "/dev/null", &api])?;
            let message = stage.await_reason("network/twin", "False", "VniInUse")?;
            ensure!(message.contains("overlay"), "{message}");
            let message = eventually("the second default to be told", PATIENCE, || {
                let network = sandbox.kubectl_json(&["get", "network", "usurper"])?;
                let conditions = network["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let told = conditions.into_iter().find(|condition| condition["reason"] == "SecondDefault");
                Ok(told.map(|condition| condition["message"].to_string()))
            })?;
            ensure!(message.contains("overlay"), "{message}");
            let told = eventually("the impossible reservation to be shown", OF_AUDIT, || {
                let about = "--field-selector=involvedObject.name=10.84.0.7,reason=OtherLength";
                let events = sandbox.kubectl_json(&["-n", "default", "get", "events", about])?;
                Ok(events["items"][0]["message"].as_str().map(str::to_owned))
            })?;
            says(&told, &["Subnet second-0", "24, not 16", "delete this IPInstance"])?;
            sandbox.kubectl(&["delete", "ipi", "10.84.0.7"])?;
            for winner in ["network/overlay", "subnet/overlay-v4"] {
                stage.await_ready(winner)?;
            }
            // The winner still is the default and gives out addresses; nothing comes from the losers.
            let after = stage.start(&[PodPlan::new("after").on(&stage.nodes()[0])])?.remove(0);
            for address in &after.addresses {
                let instance = stage.instance(*address)?.unwrap_or_default();
                ensure!(instance["spec"]["network"] == "overlay", "{instance}");
            }
            let silent = stage.script(&after, &braid_e2e::probe::ping_script(&pod.addresses, ""))?;
            ensure!(silent.trim().is_empty(), "no answer from {silent}");
            stays_while_in_use(stage)
        })();
        stage.restore()?;
        outcome?;
        eventually("the webhook to be back", PATIENCE, || {
            let late = stage.object("Subnet", "late", &json!({"network": "second", "cidr": "10.244.8.0/24"}));
            let refusal = not_accepted(stage, &late);
            if refusal.is_err() {
                sandbox.kubectl(&["delete", "subnet", "late", "--ignore-not-found"])?;
            }
            Ok(refusal.ok().filter(|sentence| says(sentence, &["overlaps"]).is_ok()).map(drop))
        })
    });
}

/// A Subnet in use that somebody deletes while no webhook says no: it serves its pods to the end and goes after them.
fn stays_while_in_use(stage: &Stage) -> Result<()> {
    let plans = [0, 1].map(|n| PodPlan::new(&format!("user-{n}")).on(&stage.nodes()[n]).in_network("second"));
    let users = stage.start(&plans)?;
    stage.sandbox().kubectl(&["delete", "subnet", "second-0", "second-1", "--wait=false"])?;
    let left = stage.sandbox().kubectl_json(&["get", "subnet", "second-0"])?;
    ensure!(left["metadata"]["deletionTimestamp"].is_string(), "{left}");
    stage.create(&[PodPlan::new("too-late").on(&stage.nodes()[0]).in_network("second")])?;
    let told = stage.await_event("too-late", "SubnetNotReady")?;
    ensure!(told.contains("second-0") && told.contains("deleted"), "{told}");
    let silent = stage.script(&users[0], &braid_e2e::probe::ping_script(&users[1].addresses, ""))?;
    ensure!(silent.trim().is_empty(), "no answer from {silent}");
    stage.delete_pods(&["user-0", "user-1", "too-late"])?;
    eventually("the Subnets to go after their last pod", PATIENCE, || {
        let get = ["get", "subnet", "second-0", "second-1", "--ignore-not-found", "-o", "name"];
        let left = stage.sandbox().kubectl(&get)?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

/// A client with that token and nothing else: the client certificate of the ordinary kubeconfig would win.
async fn client_with(stage: &Stage, token: &str) -> Result<Client> {
    let mut file = stage.sandbox().kubectl_json(&["config", "view", "--raw"])?;
    for user in file["users"].as_array_mut().context("a kubeconfig without users")? {
        user["user"] = json!({ "token": token.trim() });
    }
    let file = serde_json::from_value(file)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// What of an object is patched.
#[derive(Debug, Clone, Copy)]
enum Part {
    Whole,
    Status,
    /// That the second pod of a machine is gone.
    SecondPod,
}

/// What the API server says to a patch, as an agent makes it; nothing is changed. kubectl would read the subresource first,
/// which agents may not.
async fn patched(
    client: &Client,
    kind: (&str, &str, &str),
    name: &str,
    part: Part,
) -> Result<Result<(), String>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.0, kind.1, kind.2));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let answer = match part {
        Part::Whole => {
            let patch = Patch::Merge(json!({"metadata": {"labels": {"probe": "x"}}}));
            api.patch(name, &params, &patch).await
        }
        Part::Status => api.patch_status(name, &params, &Patch::Merge(json!({"status": {}}))).await,
        Part::SecondPod => {
            let patch = Patch::Merge(json!({"status": {"secondTornDown": "x"}}));
            api.patch_status(name, &params, &patch).await
        }
    };
    match answer {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) => Ok(Err(status.message)),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn an_agent_writes_of_its_own_node_only() {
    quiet("agent_of_its_node", |stage| {
        let (own, other) = (&stage.nodes()[0], &stage.nodes()[1]);
        let pods = stage.start(&[PodPlan::new("own").on(own), PodPlan::new("other").on(other)])?;
        let (held, foreign) = (instance_name(pods[0].addresses[0]), instance_name(pods[1].addresses[0]));

        let agents = ["-n", "braid-system", "get", "pods", "-l", "app.kubernetes.io/name=braid-node"];
        let agents = items(&stage.sandbox().kubectl_json(&agents)?["items"]);
        let agent = agents.iter().find(|pod| pod["spec"]["nodeName"] == own.as_str());
        let agent = agent.and_then(|pod| pod["metadata"]["name"].as_str()).context("the agent's pod")?;
        let token = ["-n", "braid-system", "create", "token", "braid-node"];
        let bound = [&token[..], &["--bound-object-kind", "Pod", "--bound-object-name", agent]].concat();
        let (bound, unbound) = (stage.sandbox().kubectl(&bound)?, stage.sandbox().kubectl(&token)?);

        let braid = |kind| ("braid.network", "v1", kind);
        let objects = [
            (braid("NodeNetwork"), Part::Whole, [own, other]),
            (braid("NodeNetwork"), Part::Status, [own, other]),
            (("", "v1", "Node"), Part::Status, [own, other]),
            (braid("IPInstance"), Part::Status, [&held, &foreign]),
        ];
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let (of_agent, of_nobody) =
                (client_with(stage, &bound).await?, client_with(stage, &unbound).await?);
            for (kind, part, [mine, theirs]) in objects {
                let what = format!("{} {part:?}", kind.2);
                let answer = patched(&of_agent, kind, mine, part).await?;
                ensure!(answer.is_ok(), "{what} of its own node: {answer:?}");
                let refusal = patched(&of_agent, kind, theirs, part).await?.err();
                let refusal = refusal.with_context(|| format!("{what} of another node is let in"))?;
                says(&refusal, &[&format!("the agent of node {own} may only write"), theirs])?;
                let refusal = patched(&of_nobody, kind, mine, part).await?.err();
                let refusal = refusal.with_context(|| format!("{what} is let in without a node"))?;
                says(&refusal, &["names no node", "kubelet"])?;
            }
            let refusal = patched(&of_agent, braid("IPInstance"), &held, Part::SecondPod).await?.err();
            let refusal = refusal.context("the end of a pod of another node is believed")?;
            says(&refusal, &[&format!("the agent of node {own} may not say of {held}"), "second pod"])?;
            Ok(())
        })
    });
}
