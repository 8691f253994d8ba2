//! Pods and workloads on their way in: what can never work is refused with a sentence, what may pass by itself is warned
//! of, and a pod goes to the nodes of its Network by itself. Where nobody looked, the controller says the same later. The
//! webhook's certificate changes without anybody noticing, whether Braid keeps it or somebody who writes what cert-manager
//! does; cert-manager itself has a file of its own.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::stage::{PATIENCE, Stage, alone, quiet, says};
use braid_e2e::webhook::{
    CONFIGURATIONS, INJECT, SECRET, annotate, answers, await_other, await_served, await_trust, back_to_own,
    not_let_in, replicas, secret, system, trusted, under_calls,
};
use braid_e2e::workload::PodPlan;
use k8s_openapi::ByteString;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// What the API server says to an object that must not be made.
fn not_accepted(stage: &Stage, object: &Value) -> Result<String> {
    match stage.declare(std::slice::from_ref(object)) {
        Ok(()) => anyhow::bail!("accepted: {object}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Annotations of a pod, and what is said about them.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// [`Stage::own`] of each part of a sentence.
fn owned(stage: &Stage, parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| stage.own(part)).collect()
}

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
    quiet("pod_admission_nodes", |stage| {
        let nodes = stage.nodes();
        let (member, outside) = (nodes[1].as_str(), nodes[2].as_str());
        with_members(stage, "e2e.braid.network/kennel", &[member], |members| {
            stage.overlay("kennel", stage.vni(0), &["10.x.0.0/24", "fd00:x::/112"], members, &Value::Null)?;
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
            ensure!(
                stray.addresses.iter().any(|a| a.to_string().starts_with(&stage.own("10.x.0."))),
                "{stray:?}"
            );

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
    quiet("pod_admission_sentences", |stage| {
        let guests = json!({"allowedNamespaces": {"matchLabels": {"guest": "yes"}}});
        stage.overlay("members-only", stage.vni(0), &["10.x.1.0/24"], &guests, &Value::Null)?;
        stage.overlay(
            "plain",
            stage.vni(1),
            &["10.x.0.0/24"],
            &Value::Null,
            &json!({"excludedIPs": ["10.x.0.9"]}),
        )?;
        let refused: [Case<'_>; 9] = [
            (&[("ip-family", "IPv5")], &["braid.network/ip-family", "IPv5", "PreferDualStack"]),
            (&[("ips", "10.x.0.300")], &["braid.network/ips", "10.x.0.300"]),
            (&[("ips", "10.x.0.7/24")], &["braid.network/ips", "10.x.0.7 for this address", "10.x.0.0/24"]),
            (&[("networks", "[{}]")], &["braid.network/networks", "JSON list"]),
            (&[("network", "members-only")], &["members-only", "allowedNamespaces"]),
            (&[("network", "plain"), ("subnet", "overlay-v4")], &["overlay-v4", "overlay", "plain"]),
            (&[("ips", "10.x.0.9")], &["10.x.0.9", "plain-0", "excluded"]),
            (&[("network", "plain"), ("ips", "10.x.2.1")], &["10.x.2.1", "in no Subnet of Network plain"]),
            (&[("ips", "10.x.0.7"), ("ip-family", "IPv6")], &["10.x.0.7", "IPv4", "ip-family"]),
        ];
        for (annotations, parts) in refused {
            says(&not_let_in(stage, annotations)?, &owned(stage, parts))?;
        }
        // The same in earnest, as a user does it.
        let plan = PodPlan::new("earnest").annotated("braid.network/ip-family", "IPv5");
        let error = stage.create(&[plan]).err().context("let in")?;
        says(&format!("{error:#}"), &["pods.braid.network", "braid.network/ip-family"])?;

        let taken = stage.start(&[PodPlan::new("holder").annotated("braid.network/ips", "10.x.0.20")])?;
        let warned: [Case<'_>; 5] = [
            (&[("ip-retain-ttl", "1h")], &["braid.network/ip-retain-ttl", "does nothing", "ip-retain"]),
            (&[("netwrok", "plain")], &["braid.network/netwrok", "not known"]),
            (&[("network", "to-come")], &["Network to-come does not exist"]),
            (&[("subnet", "to-come")], &["Subnet to-come does not exist"]),
            (&[("ips", "10.x.0.20")], &["10.x.0.20", "holder", &taken[0].node]),
        ];
        for (annotations, parts) in warned {
            let (_, said) = stage.rehearse(annotations)?;
            says(&said, &["Warning: "])?;
            says(&said, &owned(stage, parts))?;
        }
        // A namespace comes in whatever it says.
        let namespaces: [(&str, &[&str]); 4] = [
            ("braid.network/netwrok=plain", &["Warning: ", "braid.network/netwrok", "not known"]),
            ("braid.network/ips=10.x.0.20", &["Warning: ", "braid.network/ips", "counts on pods only"]),
            ("braid.network/ip-family=IPv5", &["Warning: ", "IPv5", "pods of this namespace are refused"]),
            ("braid.network/network=plain", &[]),
        ];
        for (annotation, parts) in namespaces {
            let annotation = stage.own(annotation);
            let words = ["annotate", "namespace", stage.namespace(), "--dry-run=server", &annotation];
            let output = stage.sandbox().kubectl_output(&words)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success() && (said.contains("Warning") || parts.is_empty()), "{said}");
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
                "metadata": {"labels": labels, "annotations": {"braid.network/ips": stage.own(ips)}},
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
    quiet("pod_admission_workloads", |stage| {
        stage.overlay(
            "pooled",
            stage.vni(0),
            &["10.x.0.0/24", "fd00:x::/112"],
            &Value::Null,
            &Value::Null,
        )?;
        let deployment = |name: &str, spec: &Value, ips: &str| workload(stage, "Deployment", name, spec, ips);
        let set = |name: &str, spec: &Value, ips: &str| workload(stage, "StatefulSet", name, spec, ips);
        let both = "10.x.0.10-10.x.0.12,fd00:x::10-fd00:x::11";
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
                deployment("single", &json!({"replicas": 2, "strategy": {"type": "Recreate"}}), "10.x.0.10"),
                vec!["1 is missing"],
            ),
            (
                set("db", &json!({"replicas": 3, "serviceName": "db"}), "10.x.0.1;10.x.0.2"),
                vec!["the last pod has ordinal 2", "1 is missing"],
            ),
            (
                set(
                    "late",
                    &json!({"replicas": 2, "serviceName": "late", "ordinals": {"start": 2}}),
                    "10.x.0.1;10.x.0.2",
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
            deployment("enough", &none, "10.x.0.10-10.x.0.12,fd00:x::10-fd00:x::12"),
            set("kept", &json!({"replicas": 2, "serviceName": "kept"}), "10.x.0.21;10.x.0.22"),
        ])?;
        // A change that needs more than there is, and one that needs nothing.
        let grow = ["patch", "deployment", "enough", "--type=merge", "-p", "{\"spec\":{\"replicas\":5}}"];
        let namespaced = [&["-n", stage.namespace()][..], &grow].concat();
        says(&stage.refused(&namespaced)?, &["2 are missing"])?;
        stage.kubectl(&["label", "deployment", "enough", "touched=yes"]).map(drop)
    });
}

#[test]
fn scaling_is_counted_like_a_change_of_the_workload() {
    quiet("pod_admission_scale", |stage| {
        stage.overlay("scaled", stage.vni(0), &["10.x.0.0/24"], &Value::Null, &Value::Null)?;
        let rolling =
            json!({"replicas": 1, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}});
        let numbered = json!({"replicas": 1, "serviceName": "list"});
        let mut plain = workload(stage, "Deployment", "plain", &json!({"replicas": 0}), "");
        plain["spec"]["template"]["metadata"]["annotations"] = json!({});
        stage.declare(&[
            workload(stage, "Deployment", "pool", &rolling, "10.x.0.10-10.x.0.12"),
            workload(stage, "StatefulSet", "list", &numbered, "10.x.0.21;10.x.0.22"),
            workload(stage, "ReplicaSet", "bare", &json!({"replicas": 0}), "10.x.0.31"),
            plain,
        ])?;
        let too_many = [
            ("deployment/pool", 5, &["needs 5 IPv4 addresses and has 3", "2 are missing"][..]),
            ("statefulset/list", 3, &["the last pod has ordinal 2", "1 is missing"]),
            ("replicaset/bare", 2, &["needs 2 IPv4 addresses and has 1", "1 is missing"]),
        ];
        for (object, replicas, parts) in too_many {
            let wish = ["-n", stage.namespace(), "scale", object, &format!("--replicas={replicas}")];
            let sentence = stage.refused(&wish)?;
            says(&sentence, &[parts, &["scale.braid.network", "braid.network/ips"]].concat())?;
        }
        let within = [
            ("deployment/pool", 3),
            ("statefulset/list", 2),
            ("replicaset/bare", 1),
            ("deployment/plain", 2),
        ];
        for (object, replicas) in within.into_iter().chain([("deployment/pool", 1), ("deployment/pool", 0)]) {
            let wish = ["-n", stage.namespace(), "scale", object, &format!("--replicas={replicas}")];
            let output = stage.sandbox().kubectl_output(&wish)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success() && said.trim().is_empty(), "{object} to {replicas}: {said}");
            let found = stage.kubectl_json(&["get", object])?;
            ensure!(found["spec"]["replicas"] == replicas, "{found}");
        }
        Ok(())
    });
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
    alone("pod_admission_rotation", |stage| {
        await_trust(stage)?;
        let first = secret(stage)?;
        system(stage, &["delete", "secret", SECRET])?;
        answers(stage).context("the Secret was deleted")?;
        let second = await_other(stage, &first[1])?;
        await_trust(stage)?;

        let (certificate, key) = expired()?;
        let patch = json!({"stringData": {"tls.crt": certificate, "tls.key": key}}).to_string();
        system(stage, &["patch", "secret", SECRET, "--type=merge", "-p", &patch])?;
        answers(stage).context("the Secret was overwritten")?;
        let third = eventually("the certificate to be renewed", PATIENCE, || {
            Ok(Some(secret(stage)?).filter(|third| third[1] != certificate && third[1] != second[1]))
        })?;
        ensure!(third[0] == second[0], "another CA, though the one that was there is good");
        await_trust(stage)
    });
}

/// The part that cert-manager plays: a CA, and certificates that it issues into the webhook's Secret.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
    pem: String,
}

/// The Secret as it was written.
struct Issued {
    version: String,
    certificate: String,
}

impl Authority {
    /// A CA with a key that nobody has seen.
    fn new() -> Result<Self> {
        Self::of(KeyPair::generate()?, 2050)
    }

    /// The same CA with another certificate: what cert-manager makes of it with `rotationPolicy: Never`.
    fn renewed(self) -> Result<Self> {
        Self::of(self.key, 2051)
    }

    fn of(key: KeyPair, end: i32) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "test of cert-manager");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { key, params, pem })
    }

    /// Issues a certificate with a new key into the Secret, with the parts, marks, verb and field manager of cert-manager.
    fn issue(&self, stage: &Stage) -> Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["braid-webhook.braid-system.svc".to_owned()])?;
        params.use_authority_key_identifier_extension = true;
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2050, 1, 1);
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        let data = |text: String| ByteString(text.into_bytes());
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {
                "name": SECRET, "namespace": "braid-system",
                "labels": {"controller.cert-manager.io/fao": "true"},
                "annotations": {
                    "cert-manager.io/certificate-name": "braid-webhook",
                    "cert-manager.io/issuer-name": "braid-webhook-ca",
                    "cert-manager.io/issuer-kind": "Issuer",
                    "cert-manager.io/issuer-group": "cert-manager.io",
                    "cert-manager.io/alt-names": "braid-webhook.braid-system.svc",
                },
            },
            "data": {
                "ca.crt": data(self.pem.clone()),
                "tls.crt": data(certificate.pem()),
                "tls.key": data(key.serialize_pem()),
            },
        });
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(object.to_string().as_bytes())?;
        let path = file.path().to_str().context("a temporary file with an odd name")?;
        let manager = "--field-manager=cert-manager-certificates-issuing";
        let apply = ["apply", "--server-side", "--force-conflicts", manager, "-f", path];
        let written = stage.sandbox().kubectl_json(&apply)?;
        let version =
            written["metadata"]["resourceVersion"].as_str().context("an object without a version")?;
        Ok(Issued { version: version.to_owned(), certificate: certificate.pem() })
    }

    /// What CA injectors before cert-manager 1.19 do: it puts the CA in the place of the one that is there.
    fn inject(&self, stage: &Stage) -> Result<()> {
        let ca = serde_json::to_value(ByteString(self.pem.clone().into_bytes()))?;
        for (kind, webhooks) in CONFIGURATIONS {
            let steps: Vec<Value> = (0..webhooks)
                .map(|n| json!({"op": "add", "path": format!("/webhooks/{n}/clientConfig/caBundle"), "value": ca}))
                .collect();
            let steps = Value::from(steps).to_string();
            stage.sandbox().kubectl(&["patch", kind, "braid", "--type=json", "-p", &steps])?;
        }
        Ok(())
    }
}

impl Issued {
    /// Waits until every replica serves it.
    fn await_served(&self, stage: &Stage) -> Result<()> {
        await_served(stage, &self.certificate)
    }

    /// Nobody has written the Secret since.
    fn is_untouched(&self, stage: &Stage) -> Result<()> {
        let found = system(stage, &["get", "secret", SECRET, "-o", "jsonpath={.metadata.resourceVersion}"])?;
        ensure!(found == self.version, "the Secret was written as {} and is {found}", self.version);
        Ok(())
    }
}

/// The manifests for cert-manager name what the controller knows.
fn manifests_fit(stage: &Stage) -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/cert-manager");
    let manifests = stage.sandbox().kubectl(&["kustomize", folder])?;
    let asked = format!("{INJECT}: braid-system/braid-webhook\n");
    ensure!(manifests.matches(&asked).count() == CONFIGURATIONS.len(), "{manifests}");
    says(&manifests, &["secretName: braid-webhook-tls\n", "- braid-webhook.braid-system.svc\n"])
}

#[test]
fn cert_manager_keeps_the_certificate_and_nobody_notices() {
    alone("pod_admission_cert_manager", |stage| {
        manifests_fit(stage)?;
        await_trust(stage)?;
        let outcome = under_calls(stage, || {
            // The CA is the controller's to tell: each certificate of another one, as the SelfSigned issuer makes them.
            let [_, authority] = [take_over(stage)?, take_over(stage)?];
            // The CA is the injector's: another certificate of the same CA, then one of the renewed CA.
            annotate(stage, Some("braid-system/braid-webhook"))?;
            let issued = authority.issue(stage)?;
            issued.await_served(stage)?;
            issued.is_untouched(stage)?;
            let renewed = authority.renewed()?;
            let issued = renewed.issue(stage)?;
            issued.await_served(stage)?;
            ensure!(
                !is_told(stage, &renewed)?,
                "the controller has told of a CA that is the injector's to tell"
            );
            renewed.inject(stage)?;
            await_trust(stage)?;
            issued.is_untouched(stage)?;
            back_to_own(stage)
        });
        // However that ended, the next test finds what the manifests say.
        outcome.and(back_to_own(stage))
    });
}

/// Puts a certificate of another CA into the Secret; the CA, when the controller has told both configurations of it and
/// of nothing else.
fn take_over(stage: &Stage) -> Result<Authority> {
    let authority = Authority::new()?;
    let issued = authority.issue(stage)?;
    issued.await_served(stage)?;
    await_trust(stage)?;
    issued.is_untouched(stage)?;
    Ok(authority)
}

/// Whether a configuration names this CA.
fn is_told(stage: &Stage, authority: &Authority) -> Result<bool> {
    CONFIGURATIONS.iter().try_fold(false, |so_far, (kind, _)| {
        Ok(so_far || trusted(stage, kind)?.iter().any(|told| told.contains(authority.pem.trim())))
    })
}

#[test]
fn a_webhook_that_waits_for_cert_manager_keeps_no_address_from_a_pod() {
    alone("pod_admission_waiting", |stage| {
        await_trust(stage)?;
        let outcome = wait_for_cert_manager(stage);
        outcome.and(back_to_own(stage))
    });
}

fn wait_for_cert_manager(stage: &Stage) -> Result<()> {
    annotate(stage, Some("braid-system/braid-webhook"))?;
    system(stage, &["delete", "secret", SECRET])?;
    // Who has no certificate yet gets none, and says why.
    system(stage, &["delete", "pod", "-l", "app.kubernetes.io/name=braid-controller", "--wait=true"])?;
    let sentence = eventually("Event CertificateMissing", PATIENCE, || {
        let reason = "--field-selector=reason=CertificateMissing";
        let events = stage.sandbox().kubectl_json(&["-n", "default", "get", "events", reason])?;
        Ok(events["items"][0]["message"].as_str().map(str::to_owned))
    })?;
    says(&sentence, &[SECRET, INJECT, "remove the annotation"])?;
    eventually("the Service to lead nowhere", PATIENCE, || Ok(replicas(stage)?.is_empty().then_some(())))?;
    // Addresses are given out all the same.
    stage.start(&[PodPlan::new("meanwhile")])?;
    let found = system(stage, &["get", "secret", SECRET, "--ignore-not-found", "-o", "name"])?;
    ensure!(found.is_empty(), "a Secret was made in cert-manager's place");

    let authority = Authority::new()?;
    let issued = authority.issue(stage)?;
    authority.inject(stage)?;
    stage.await_braid()?;
    issued.await_served(stage)?;
    issued.is_untouched(stage)?;
    answers(stage)
}
