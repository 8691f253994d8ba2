//! The webhook's certificate kept by cert-manager: its real controllers and CA injector work on `config/cert-manager`, by
//! the steps that its kustomization.yaml gives to people. Only their admission webhook and their RBAC are missing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use braid_e2e::cert_manager::{CertManager, with_cert_manager};
use braid_e2e::eventually;
use braid_e2e::stage::{PATIENCE, Stage, alone, items, says};
use braid_e2e::webhook::{
    CONFIGURATIONS, SECRET, answers, await_other, await_served, await_trust, certificate_of_secret,
    not_let_in, part_of, secret, system, trusted, under_calls,
};
use serde_json::json;

/// The Secret with the CA that cert-manager makes for Braid.
const AUTHORITY: &str = "braid-webhook-ca";
/// As the CA injector calls itself in what it writes.
const INJECTOR: &str = "cert-manager-cainjector";

/// The commands in the comment of config/cert-manager/kustomization.yaml, word for word.
struct Steps {
    /// For a cluster without Braid.
    install: Vec<String>,
    /// For one whose controller makes certificates of its own: the Certificates, and that they are there.
    issue: Vec<Vec<String>>,
    /// A minute later.
    inject: Vec<String>,
    back: Vec<Vec<String>>,
}

impl Steps {
    fn documented() -> Result<Self> {
        let text = std::fs::read_to_string(root().join("config/cert-manager/kustomization.yaml"))?;
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for line in text.lines().filter_map(|line| line.strip_prefix('#')) {
            let words = |call: &str| call.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let line = line.trim();
            if let Some(call) = line.strip_prefix("kubectl ") {
                now.push(words(call));
            } else if let Some(call) = line.strip_prefix("(a minute later) kubectl ") {
                later.push(words(call));
            }
        }
        ensure!(now.len() == 6 && later.len() == 1, "other steps than this test knows: {now:?}, {later:?}");
        let (back, mut issue) = (now.split_off(3), now);
        Ok(Self { install: issue.remove(0), issue, inject: later.remove(0), back })
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Takes a step as a person does: the paths in it are relative to the repository.
fn take(stage: &Stage, step: &[String]) -> Result<()> {
    let output = stage.sandbox().kubectl_command().args(step).current_dir(root()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {said}", step.join(" "));
    Ok(())
}

/// Waits until the CA injector has told each webhook of the CA in the Secret.
fn await_injected(stage: &Stage) -> Result<()> {
    eventually("both configurations to have the CA from the injector", PATIENCE, || {
        let [ca, _] = secret(stage)?;
        for (kind, webhooks) in CONFIGURATIONS {
            // Whoever changes the value after it takes it from the injector's fields.
            let get = ["get", kind, "braid", "--show-managed-fields"];
            let found = stage.sandbox().kubectl_json(&get)?;
            let managers = items(&found["metadata"]["managedFields"]);
            let injector = managers.iter().find(|m| m["manager"] == INJECTOR && m["operation"] == "Apply");
            let fields = injector.map(|m| m["fieldsV1"].to_string()).unwrap_or_default();
            let knows = |told: &String| !ca.is_empty() && told.contains(ca.trim());
            if fields.matches("f:caBundle").count() != webhooks || !trusted(stage, kind)?.iter().all(knows) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// Waits until cert-manager's certificate is served by all and trusted by way of the injector, and returns what the
/// Secret says.
fn await_kept_by_cert_manager(stage: &Stage) -> Result<[String; 2]> {
    let kept = secret(stage)?;
    let owner = certificate_of_secret(stage)?;
    ensure!(owner.as_deref() == Some("braid-webhook"), "Secret {SECRET} is of {owner:?}");
    ensure!(kept[0] == part_of(stage, AUTHORITY, "tls.crt")?, "{SECRET} is not of the CA in {AUTHORITY}");
    await_injected(stage)?;
    await_served(stage, &kept[1])?;
    ensure!(secret(stage)? == kept, "Secret {SECRET} was written once more");
    Ok(kept)
}

/// Waits until nothing is being issued for a Certificate.
fn await_issued(stage: &Stage, certificate: &str) -> Result<()> {
    eventually(&format!("the end of what is issued for {certificate}"), PATIENCE, || {
        let get = ["-n", "braid-system", "get", "certificate", certificate];
        let conditions = items(&stage.sandbox().kubectl_json(&get)?["status"]["conditions"]);
        let is_ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        Ok((is_ready && !conditions.iter().any(|c| c["type"] == "Issuing")).then_some(()))
    })
}

/// What `cmctl renew` does.
fn renew(stage: &Stage, certificate: &str) -> Result<()> {
    await_issued(stage, certificate)?;
    let condition = json!({
        "type": "Issuing", "status": "True", "reason": "ManuallyTriggered",
        "message": "Certificate re-issuance manually triggered",
    });
    let patch = json!([{"op": "add", "path": "/status/conditions/-", "value": condition}]).to_string();
    let words = ["patch", "certificate", certificate, "--subresource=status", "--type=json", "-p", &patch];
    system(stage, &words).map(drop)
}

/// Waits until the CA's Secret has another certificate than `former` and its Issuer works with it.
fn await_other_authority(stage: &Stage, former: &str) -> Result<()> {
    eventually("another CA", PATIENCE, || {
        let now = part_of(stage, AUTHORITY, "tls.crt")?;
        Ok((!now.is_empty() && now != former).then_some(()))
    })?;
    await_issued(stage, AUTHORITY)?;
    stage.sandbox().await_condition("braid-system", &format!("issuer/{AUTHORITY}"), "Ready", PATIENCE)
}

/// Has cert-manager issue again in every way that it knows, one after the other.
fn renewals(stage: &Stage, cert_manager: &mut CertManager<'_>) -> Result<()> {
    let first = await_kept_by_cert_manager(stage)?;
    renew(stage, "braid-webhook")?;
    await_other(stage, &first[1])?;
    let second = await_kept_by_cert_manager(stage)?;
    ensure!(second[0] == first[0], "another CA, though only the certificate was renewed");

    // As the controller advises where a certificate cannot be used.
    system(stage, &["delete", "secret", SECRET])?;
    await_other(stage, &second[1])?;
    let third = await_kept_by_cert_manager(stage)?;

    // The CA under the same key.
    renew(stage, AUTHORITY)?;
    await_other_authority(stage, &third[0])?;
    renew(stage, "braid-webhook")?;
    await_other(stage, &third[1])?;
    let fourth = await_kept_by_cert_manager(stage)?;

    // The CA under another key, as the old one goes with its Secret. The injector is late, and while the API server does not
    // know the CA, all that it can have is the certificate of before.
    cert_manager.without_injector(|| {
        system(stage, &["delete", "secret", AUTHORITY])?;
        await_other_authority(stage, &fourth[0])?;
        let told = not_injected(stage)?;
        renew(stage, "braid-webhook")?;
        await_other(stage, &fourth[1])?;
        eventually("Event AuthorityNotInjected", PATIENCE, || {
            Ok((not_injected(stage)? != told).then_some(()))
        })?;
        await_served(stage, &fourth[1])
    })?;
    await_kept_by_cert_manager(stage).map(drop)
}

/// Events that tell of a CA that was not injected: where and how often.
fn not_injected(stage: &Stage) -> Result<String> {
    let template = "jsonpath={range .items[*]}{.metadata.name} {.metadata.resourceVersion}\n{end}";
    let reason = "--field-selector=reason=AuthorityNotInjected";
    stage.sandbox().kubectl(&["-n", "default", "get", "events", reason, "-o", template])
}

#[test]
fn a_running_cluster_goes_over_to_cert_manager_and_back_and_nobody_notices() {
    alone("cert_manager_over", |stage| {
        let steps = Steps::documented()?;
        await_trust(stage)?;
        let own = secret(stage)?;
        with_cert_manager(stage, |cert_manager| {
            let over = || {
                steps.issue.iter().try_for_each(|step| take(stage, step))?;
                let issued = await_other(stage, &own[1])?;
                await_served(stage, &issued[1])?;
                // The minute: the controller has told of this CA, and no longer of its own.
                await_trust(stage)?;
                take(stage, &steps.inject)?;
                await_kept_by_cert_manager(stage).map(drop)
            };
            under_calls(stage, over).context("going over")?;
            under_calls(stage, || renewals(stage, cert_manager)).context("renewals")?;
            let theirs = secret(stage)?;
            let back = || {
                steps.back.iter().try_for_each(|step| take(stage, step))?;
                let own = await_other(stage, &theirs[1])?;
                await_trust(stage)?;
                await_served(stage, &own[1])
            };
            under_calls(stage, back).context("going back")?;
            ensure!(certificate_of_secret(stage)?.is_none(), "Secret {SECRET} is still of cert-manager's");
            eventually("no Secret but the webhook's", PATIENCE, || {
                let left = system(stage, &["get", "secrets", "-o", "name"])?;
                ensure!(left.trim() == format!("secret/{SECRET}"), "{left}");
                Ok(Some(()))
            })
        })
    });
}

#[test]
fn a_new_cluster_gets_its_certificate_from_cert_manager() {
    alone("cert_manager_new", |stage| {
        let steps = Steps::documented()?;
        await_trust(stage)?;
        let own = secret(stage)?;
        with_cert_manager(stage, |_| {
            forget_the_controller(stage)?;
            take(stage, &steps.install)?;
            // A replica without a certificate is not ready.
            stage.await_braid()?;
            let kept = await_kept_by_cert_manager(stage)?;
            ensure!(kept[1] != own[1], "the old certificate is served");
            eventually("the API server to call the webhook", PATIENCE, || {
                let said = not_let_in(stage, &[("ip-family", "nonsense")])?;
                says(&said, &["nonsense"]).map(Some)
            })?;
            answers(stage)
        })
    });
}

/// Leaves nothing of the controller and its webhook, as before Braid is installed.
fn forget_the_controller(stage: &Stage) -> Result<()> {
    for (kind, _) in CONFIGURATIONS {
        stage.sandbox().kubectl(&["delete", kind, "braid"])?;
    }
    let words = ["delete", "deployment", "braid-controller", "--cascade=foreground", "--timeout=180s"];
    system(stage, &words)?;
    system(stage, &["delete", "secret", SECRET])?;
    let pods = "--selector=app.kubernetes.io/name=braid-controller";
    let left = system(stage, &["get", "pods", pods, "-o", "name"])?;
    ensure!(left.is_empty(), "a controller is left: {left}");
    Ok(())
}
