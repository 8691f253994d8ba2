//! Pods and workloads on their way in: what can never work is refused with a sentence, what may pass by itself is warned
//! of, and a pod goes to the nodes of its Network by itself. Where nobody looked, the controller says the same later. The
//! webhook's certificate changes without anybody noticing.

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::stage::{PATIENCE, Stage, says, staged};
use braid_e2e::workload::PodPlan;
use serde_json::{Value, json};

/// What the API server says to an object that must not be made.
fn not_accepted(stage: &Stage, object: &Value) -> Result<String> {
    match stage.declare(std::slice::from_ref(object)) {
        Ok(()) => anyhow::bail!("accepted: {object}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// What the API server says to a pod with these annotations, which must not be let in.
fn not_let_in(stage: &Stage, annotations: &[(&str, &str)]) -> Result<String> {
    match stage.rehearse(annotations) {
        Ok((pod, _)) => anyhow::bail!("let in: {pod}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Annotations of a pod, and what is said about them.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// Runs `body` with a label on `members` that no other node has, and cleans up in the order that pods need.
fn with_members(
    stage: &Stage,
    label: &str,
    members: &[&str],
    body: impl FnOnce(&Value) -> Result<()>,
) -> Result<()> {
    let (member, unlabel) = (format!("{label}=yes"), format!("{label}-"));
    let sandbox = stage.sandbox();
    sandbox.kubectl(&["label", "node", "--all", &unlabel])?;
    let outcome = sandbox
        .kubectl(&[&["label", "node"][..], members, &[member.as_str()]].concat())
        .and_then(|_| body(&json!({"nodeSelector": {"matchLabels": {label: "yes"}}})));
    sandbox.kubectl(&["delete", "namespace", stage.namespace(), "--timeout=180s"])?;
    sandbox.kubectl(&["label", "node", "--all", &unlabel])?;
    outcome
}

#[test]
fn a_pod_goes_to_the_nodes_of_its_network() {
    staged("pod_admission_nodes", |stage| {
        let nodes = stage.nodes();
        let (member, outside) = (nodes[1].as_str(), nodes[2].as_str());
        with_members(stage, "e2e.braid.network/kennel", &[member], |members| {
            stage.overlay("kennel", 91, &["10.91.0.0/24", "fd00:91::/112"], members, &Value::Null)?;
            // Without affinity of their own, the scheduler would spread them over all nodes.
            let names: Vec<String> = (0..6).map(|n| format!("dog-{n}")).collect();
            let plans: Vec<PodPlan> =
                names.iter().map(|name| PodPlan::new(name).in_network("kennel").small()).collect();
            for pod in stage.start(&plans)? {
                ensure!(pod.node == member, "{pod:?} is not on {member}");
            }
            // Two levels down: nothing on the pod, the choice of its namespace is written on it.
            let choice = "braid.network/network=kennel";
            stage.kubectl(&["annotate", "namespace", stage.namespace(), choice])?;
            let (rehearsed, _) = eventually("the webhook to know what the namespace says", PATIENCE, || {
                let rehearsed = stage.rehearse(&[])?;
                let is_known = rehearsed.0["metadata"]["annotations"]["braid.network/network"] == "kennel";
                Ok(is_known.then_some(rehearsed))
            })?;
            let affinity = &rehearsed["spec"]["affinity"]["nodeAffinity"];
            ensure!(affinity.to_string().contains("e2e.braid.network/kennel"), "{rehearsed}");
            let stray = stage.start(&[PodPlan::new("stray")])?.remove(0);
            ensure!(stray.node == member, "{stray:?}");
            ensure!(stray.addresses.iter().any(|a| a.to_string().starts_with("10.91.0.")), "{stray:?}");

            // Who names the node is warned on the way in and refused there, with or without the webhook.
            let sentence = format!("node {outside} is no member of Network kennel");
            let overrides = json!({"apiVersion": "v1", "spec": {"nodeName": outside}}).to_string();
            let forced = ["run", "forced", "--image=none", "--dry-run=server", "--overrides", &overrides];
            let namespaced = [&["-n", stage.namespace()][..], &forced].concat();
            let warned = stage.sandbox().kubectl_output(&namespaced)?;
            let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
            ensure!(warned.contains("Warning: ") && warned.contains(&sentence), "{warned}");
            stage.without_pod_webhook(|| {
                stage.create(&[PodPlan::new("unseen").on(outside)])?;
                let told = stage.await_event("unseen", "NotMember")?;
                ensure!(warned.contains(&told), "'{told}' is not what was warned of: {warned}");
                let unseen = stage.kubectl_json(&["get", "pod", "unseen"])?;
                ensure!(unseen["metadata"]["annotations"]["braid.network/network"].is_null(), "{unseen}");
                Ok(())
            })
        })
    });
}

#[test]
fn what_cannot_work_is_refused_and_what_may_is_warned_of() {
    staged("pod_admission_sentences", |stage| {
        let guests = json!({"allowedNamespaces": {"matchLabels": {"guest": "yes"}}});
        stage.overlay("members-only", 92, &["10.92.0.0/24"], &guests, &Value::Null)?;
        stage.overlay(
            "plain",
            93,
            &["10.93.0.0/24"],
            &Value::Null,
            &json!({"excludedIPs": ["10.93.0.9"]}),
        )?;
        let refused: [Case<'_>; 8] = [
            (&[("ip-family", "IPv5")], &["braid.network/ip-family", "IPv5", "PreferDualStack"]),
            (&[("ips", "10.93.0.300")], &["braid.network/ips", "10.93.0.300"]),
            (&[("networks", "[{}]")], &["braid.network/networks", "JSON list"]),
            (&[("network", "members-only")], &["members-only", "allowedNamespaces"]),
            (&[("network", "plain"), ("subnet", "overlay-v4")], &["overlay-v4", "overlay", "plain"]),
            (&[("ips", "10.93.0.9")], &["10.93.0.9", "plain-0", "excluded"]),
            (&[("network", "plain"), ("ips", "10.94.0.1")], &["10.94.0.1", "in no Subnet of Network plain"]),
            (&[("ips", "10.93.0.7"), ("ip-family", "IPv6")], &["10.93.0.7", "IPv4", "ip-family"]),
        ];
        for (annotations, parts) in refused {
            says(&not_let_in(stage, annotations)?, parts)?;
        }
        // The same in earnest, as a user does it.
        let plan = PodPlan::new("earnest").annotated("braid.network/ip-family", "IPv5");
        let error = stage.create(&[plan]).err().context("let in")?;
        says(&format!("{error:#}"), &["pods.braid.network", "braid.network/ip-family"])?;

        let taken = stage.start(&[PodPlan::new("holder").annotated("braid.network/ips", "10.93.0.20")])?;
        let warned: [Case<'_>; 4] = [
            (&[("netwrok", "plain")], &["braid.network/netwrok", "not known"]),
            (&[("network", "to-come")], &["Network to-come does not exist"]),
            (&[("subnet", "to-come")], &["Subnet to-come does not exist"]),
            (&[("ips", "10.93.0.20")], &["10.93.0.20", "holder", &taken[0].node]),
        ];
        for (annotations, parts) in warned {
            let (_, said) = stage.rehearse(annotations)?;
            says(&said, &["Warning: "])?;
            says(&said, parts)?;
        }
        let (pod, said) = stage.rehearse(&[])?;
        ensure!(said.trim().is_empty(), "a plain pod is warned: {said}");
        ensure!(pod["metadata"]["annotations"]["braid.network/network"] == "overlay", "{pod}");
        Ok(())
    });
}

fn workload(stage: &Stage, kind: &str, name: &str, spec: &Value, ips: &str) -> Value {
    let labels = json!({"app": name});
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": stage.namespace()},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"braid.network/ips": ips}},
                "spec": {"containers": [{"name": "main", "image": "none", "imagePullPolicy": "Never"}]},
            },
        },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

#[test]
fn a_workload_with_too_few_addresses_is_refused_with_the_number() {
    staged("pod_admission_workloads", |stage| {
        stage.overlay("pooled", 94, &["10.94.0.0/24", "fd00:94::/112"], &Value::Null, &Value::Null)?;
        let deployment = |name: &str, spec: &Value, ips: &str| workload(stage, "Deployment", name, spec, ips);
        let set = |name: &str, spec: &Value, ips: &str| workload(stage, "StatefulSet", name, spec, ips);
        let both = "10.94.0.10-10.94.0.12,fd00:94::10-fd00:94::11";
        let too_few = [
            // A quarter of three, rounded up, is one more.
            (
                deployment("few", &json!({"replicas": 3}), both),
                vec![
                    "needs 4 IPv4 addresses and has 3",
                    "1 is missing",
                    "needs 4 IPv6 addresses and has 2",
                    "2 are missing",
                    "Network pooled",
                ],
            ),
            (
                deployment("single", &json!({"replicas": 2, "strategy": {"type": "Recreate"}}), "10.94.0.10"),
                vec!["1 is missing"],
            ),
            (
                set("db", &json!({"replicas": 3, "serviceName": "db"}), "10.94.0.1;10.94.0.2"),
                vec!["the last pod has ordinal 2", "1 is missing"],
            ),
            (
                set(
                    "late",
                    &json!({"replicas": 2, "serviceName": "late", "ordinals": {"start": 2}}),
                    "10.94.0.1;10.94.0.2",
                ),
                vec!["the last pod has ordinal 3", "2 are missing"],
            ),
        ];
        for (object, parts) in too_few {
            says(
                &not_accepted(stage, &object)?,
                &[&parts[..], &["workloads.braid.network", "braid.network/ips"]].concat(),
            )?;
        }
        let none =
            json!({"replicas": 3, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}});
        stage.declare(&[
            deployment("enough", &none, "10.94.0.10-10.94.0.12,fd00:94::10-fd00:94::12"),
            set("kept", &json!({"replicas": 2, "serviceName": "kept"}), "10.94.0.21;10.94.0.22"),
        ])?;
        // A change that needs more than there is, and one that needs nothing.
        let grow = ["patch", "deployment", "enough", "--type=merge", "-p", "{\"spec\":{\"replicas\":5}}"];
        let namespaced = [&["-n", stage.namespace()][..], &grow].concat();
        says(&stage.refused(&namespaced)?, &["2 are missing"])?;
        stage.kubectl(&["label", "deployment", "enough", "touched=yes"]).map(drop)
    });
}

/// What the webhook's Secret says: the CA and the serving certificate.
fn secret(stage: &Stage) -> Result<[String; 2]> {
    let part = |name: &str| {
        let template = format!("go-template={{{{index .data \"{name}\" | base64decode}}}}");
        stage.sandbox().kubectl(&[
            "-n",
            "braid-system",
            "get",
            "secret",
            "braid-webhook-tls",
            "-o",
            &template,
        ])
    };
    Ok([part("ca.crt")?, part("tls.crt")?])
}

/// Asks a hundred times for what the webhook refuses. Every answer that is not its own counts: a pod would be let in
/// unseen, and of Braid's own kinds nothing could be changed.
fn failures(stage: &Stage) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for round in 0..50 {
        let pod = not_let_in(stage, &[("ip-family", "nonsense")]).and_then(|s| says(&s, &["nonsense"]));
        let leave = ["delete", "network", "overlay", "--wait=false", "--dry-run=server"];
        let network = stage.refused(&leave).and_then(|s| says(&s, &["overlay", "Subnet"]));
        let broken = [pod, network].into_iter().filter_map(Result::err);
        failures.extend(broken.map(|error| format!("round {round}: {error:#}")));
    }
    Ok(failures)
}

/// Waits until both configurations trust what is in the Secret, and nothing else.
fn await_trust(stage: &Stage) -> Result<()> {
    eventually("both configurations to trust the Secret's CA", PATIENCE, || {
        let [ca, _] = secret(stage)?;
        let each = "go-template={{range .webhooks}}{{base64decode .clientConfig.caBundle}}{{end}}";
        for (kind, webhooks) in [("validatingwebhookconfiguration", 2), ("mutatingwebhookconfiguration", 1)] {
            if stage.sandbox().kubectl(&["get", kind, "braid", "-o", each])? != ca.repeat(webhooks) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// A certificate of nobody's that has ended long ago, and its key.
fn expired() -> Result<(String, String)> {
    let mut params = rcgen::CertificateParams::new(vec!["braid-webhook.braid-system.svc".to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

#[test]
fn certificates_change_and_nobody_notices() {
    staged("pod_admission_rotation", |stage| {
        await_trust(stage)?;
        let system = |words: &[&str]| stage.sandbox().kubectl(&[&["-n", "braid-system"], words].concat());
        let first = secret(stage)?;
        system(&["delete", "secret", "braid-webhook-tls"])?;
        let failed = failures(stage)?;
        ensure!(failed.is_empty(), "the Secret was deleted, {} of 100 failed: {failed:?}", failed.len());
        let second = eventually("a new Secret", PATIENCE, || {
            Ok(secret(stage).ok().filter(|second| second[1] != first[1]))
        })?;
        await_trust(stage)?;

        let (certificate, key) = expired()?;
        let patch = json!({"stringData": {"tls.crt": certificate, "tls.key": key}}).to_string();
        system(&["patch", "secret", "braid-webhook-tls", "--type=merge", "-p", &patch])?;
        let failed = failures(stage)?;
        ensure!(failed.is_empty(), "the Secret was overwritten, {} of 100 failed: {failed:?}", failed.len());
        let third = eventually("the certificate to be renewed", PATIENCE, || {
            Ok(Some(secret(stage)?).filter(|third| third[1] != certificate && third[1] != second[1]))
        })?;
        ensure!(third[0] == second[0], "another CA, though the one that was there is good");
        await_trust(stage)
    });
}
