//! The cluster that the end-to-end tests share, and a place of its own in it for every test.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::exec::{Progress, eventually};
use crate::options::Options;
use crate::parts::repository;
use crate::sandbox::{BundleOnFailure, Sandbox};

/// How long a test waits for what must happen. Generous: it only bounds how long a failure takes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Label on everything without a namespace that a test declares; its value is the test's name.
const LABEL: &str = "e2e.braid.network/stage";

/// A test's place: a namespace of its own in the shared cluster, and the Networks that it declares.
#[derive(Debug)]
pub struct Stage {
    sandbox: Sandbox,
    name: String,
}

/// Runs a test on the shared cluster. The cluster is brought up by the first test that needs it and is put back to its
/// manifests before each one; what the test made is removed afterwards, and a failure leaves a bundle of facts.
///
/// # Panics
/// When the test fails, with the whole chain of reasons.
pub fn staged(test: &str, body: impl FnOnce(&Stage) -> Result<()>) {
    let progress = Progress::start();
    let stage = Stage::open(test).unwrap_or_else(|error| panic!("no cluster to run '{test}' on: {error:?}"));
    let keeper = BundleOnFailure::new(&stage.sandbox, test);
    progress.step(&format!("{test}: the cluster is ready"));
    if let Err(error) = body(&stage) {
        panic!("{test}: {error:?}");
    }
    progress.step(&format!("{test}: done, cleaning up"));
    if let Err(error) = stage.leave() {
        panic!("{test} did all it should, but what it made cannot be removed: {error:?}");
    }
    drop(keeper);
}

impl Stage {
    fn open(test: &str) -> Result<Self> {
        let stage = Self { sandbox: shared()?, name: test.replace('_', "-") };
        stage.restore()?;
        stage.clear()?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": stage.name}});
        stage.sandbox.apply(&namespace.to_string())?;
        eventually("service account of the test", PATIENCE, || {
            stage.sandbox.kubectl(&["-n", &stage.name, "get", "serviceaccount", "default"]).map(Some)
        })?;
        Ok(stage)
    }

    /// Puts Braid back to its manifests, whatever an earlier test did to it, and waits until it works.
    ///
    /// # Errors
    /// When it does not work within the deadline.
    pub fn restore(&self) -> Result<()> {
        let manifests = repository().join("config/default").display().to_string();
        let apply = ["apply", "--server-side", "--force-conflicts", "-k", &manifests];
        eventually("manifests", PATIENCE, || self.sandbox.kubectl(&apply).map(Some))?;
        self.await_braid()?;
        let overlay = repository().join("config/samples/overlay.yaml").display().to_string();
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", &overlay];
        eventually("default overlay", PATIENCE, || self.sandbox.kubectl(&apply).map(Some))?;
        for object in ["network/overlay", "subnet/overlay-v4", "subnet/overlay-v6"] {
            self.await_ready(object)?;
        }
        Ok(())
    }

    /// Waits until every node is Ready and Braid's own pods are available.
    ///
    /// # Errors
    /// When they are not within the deadline.
    pub fn await_braid(&self) -> Result<()> {
        for object in ["deployment/braid-controller", "daemonset/braid-node"] {
            self.sandbox.kubectl(&["-n", "braid-system", "rollout", "status", object, "--timeout=180s"])?;
        }
        self.sandbox.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"]).map(drop)
    }

    /// The cluster.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The test's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// The nodes; there are at least three.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.sandbox.nodes()
    }

    /// kubectl in the test's namespace; it must succeed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.sandbox.kubectl(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// kubectl in the test's namespace with `-o json`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        self.sandbox.kubectl_json(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// What kubectl says when it must be refused.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.sandbox.kubectl_output(arguments)?;
        ensure!(!output.status.success(), "'kubectl {}' was not refused", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What the API server answers to a pod with these annotations, without making it: the pod as it would be, and what
    /// kubectl printed beside it, which are warnings.
    ///
    /// # Errors
    /// When it is refused, with the sentence.
    pub fn rehearse(&self, annotations: &[(&str, &str)]) -> Result<(Value, String)> {
        let annotations: Vec<String> = annotations
            .iter()
            .map(|(key, value)| format!("--annotations=braid.network/{key}={value}"))
            .collect();
        let mut words =
            vec!["-n", &self.name, "run", "rehearsal", "--image=none", "--dry-run=server", "-o", "json"];
        words.extend(annotations.iter().map(String::as_str));
        let output = self.sandbox.kubectl_output(&words)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{said}");
        let pod = serde_json::from_slice(&output.stdout).context("kubectl did not print JSON")?;
        Ok((pod, said))
    }

    /// Runs `body` while nobody judges pods on their way in, and has them judged again afterwards.
    ///
    /// # Errors
    /// When `body` fails, or the webhook does not come back within the deadline.
    pub fn without_pod_webhook<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let nonsense = [("ip-family", "nonsense")];
        self.sandbox.kubectl(&["delete", "mutatingwebhookconfiguration", "braid"])?;
        // The API server forgets a webhook a moment after its configuration has gone.
        let outcome = eventually("the API server to forget the webhook", PATIENCE, || {
            self.rehearse(&nonsense).map(Some)
        })
        .and_then(|_| body());
        self.restore()?;
        eventually("the webhook for pods to be back", PATIENCE, || {
            Ok(self.rehearse(&nonsense).err().map(drop))
        })?;
        outcome
    }

    /// A Network or Subnet of this test, by name and spec.
    #[must_use]
    pub fn object(&self, kind: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "braid.network/v1",
            "kind": kind,
            "metadata": {"name": name, "labels": {LABEL: self.name}},
            "spec": spec,
        })
    }

    /// Declares Networks and Subnets; they are removed when the test is over. Namesakes that an earlier test left on their
    /// way out are waited for.
    ///
    /// # Errors
    /// When the API server refuses one, or a namesake does not go within the deadline.
    pub fn declare(&self, objects: &[Value]) -> Result<()> {
        eventually("removal of namesakes", PATIENCE, || {
            let found = self.sandbox.kubectl_json(&["get", "networks,subnets"])?;
            let is_in_the_way = |left: &Value| {
                let named = |object: &Value| {
                    object["kind"] == left["kind"] && object["metadata"]["name"] == left["metadata"]["name"]
                };
                !left["metadata"]["deletionTimestamp"].is_null() && objects.iter().any(named)
            };
            Ok((!items(&found["items"]).iter().any(is_in_the_way)).then_some(()))
        })?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.sandbox.apply(&list.to_string()).map(drop)
    }

    /// A VXLAN Network with one Subnet per prefix, named `<network>-<position>`, all of them Ready when this returns.
    /// `network` and `subnet` are merged into the specs.
    ///
    /// # Errors
    /// When one is refused or does not become Ready.
    pub fn overlay(
        &self,
        name: &str,
        vni: u32,
        cidrs: &[&str],
        network: &Value,
        subnet: &Value,
    ) -> Result<()> {
        let mut spec = json!({"type": "VXLAN", "vxlan": {"vni": vni}});
        merge(&mut spec, network);
        let mut objects = vec![self.object("Network", name, &spec)];
        for (position, cidr) in cidrs.iter().enumerate() {
            let mut spec = json!({"network": name, "cidr": cidr});
            merge(&mut spec, subnet);
            objects.push(self.object("Subnet", &format!("{name}-{position}"), &spec));
        }
        self.declare(&objects)?;
        self.await_ready(&format!("network/{name}"))?;
        (0..cidrs.len()).try_for_each(|position| self.await_ready(&format!("subnet/{name}-{position}")))
    }

    /// Waits until an object's condition Ready is True.
    ///
    /// # Errors
    /// When it is not within the deadline.
    pub fn await_ready(&self, object: &str) -> Result<()> {
        self.sandbox.await_condition(&self.name, object, "Ready", PATIENCE)
    }

    /// Waits until the condition Ready of an object has this status and reason, and returns its message.
    ///
    /// # Errors
    /// When it has not within the deadline.
    pub fn await_reason(&self, object: &str, status: &str, reason: &str) -> Result<String> {
        let what = format!("{object} with Ready={status}, reason {reason}");
        self.sandbox.await_state(&what, &["get", object], PATIENCE, |found| {
            let conditions = items(&found["status"]["conditions"]);
            let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
            let fits = ready.filter(|ready| ready["status"] == status && ready["reason"] == reason);
            Ok(fits.map(|ready| text(&ready["message"])))
        })
    }

    /// Waits until the events of a pod hold one of this reason, and returns its message.
    ///
    /// # Errors
    /// When there is none within the deadline.
    pub fn await_event(&self, pod: &str, reason: &str) -> Result<String> {
        let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
        let get = ["-n", &self.name, "get", "events", &selector];
        let told =
            self.sandbox.await_state(&format!("event {reason} on pod {pod}"), &get, PATIENCE, |events| {
                Ok(items(&events["items"]).first().map(|event| text(&event["message"])))
            });
        told.with_context(|| self.kubectl(&["describe", "pod", pod]).unwrap_or_default())
    }

    /// Removes everything of this test: its namespace, then its Subnets and Networks.
    ///
    /// # Errors
    /// When something does not go away within the deadline.
    pub fn clear(&self) -> Result<()> {
        self.remove_namespace("--wait=true")?;
        self.remove_networks("--wait=true")
    }

    /// Ends the test's pods and Networks without waiting for the cool-down of their addresses: the next test has its own.
    /// Tests that compare what nodes hold wait for agreement first, which includes Networks on their way out.
    fn leave(&self) -> Result<()> {
        self.remove_namespace("--wait=false")?;
        self.remove_networks("--wait=false")
    }

    fn remove_namespace(&self, wait: &str) -> Result<()> {
        let namespace = ["delete", "namespace", &self.name, "--ignore-not-found", wait, "--timeout=180s"];
        self.sandbox.kubectl(&namespace).map(drop)
    }

    fn remove_networks(&self, wait: &str) -> Result<()> {
        let selector = format!("{LABEL}={}", self.name);
        // In use is in use until the last pod has given its address back, so a refusal now is no failure; afterwards the
        // finalizer is waited for, until the cool-down has passed.
        for kind in ["subnets", "networks"] {
            eventually(&format!("removal of the test's {kind}"), PATIENCE, || {
                let delete = ["delete", kind, "-l", &selector, wait, "--timeout=180s"];
                self.sandbox.kubectl(&delete).map(Some)
            })?;
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(error) = self.clear()
        {
            eprintln!("what the failed test made could not be removed: {error:#}");
        }
    }
}

/// The cluster of this run: three nodes on two racks, so that some pairs of nodes share a link and others do not.
/// `BRAID_E2E_NAME` names another one, which is taken as it is when it exists.
fn shared() -> Result<Sandbox> {
    let name = std::env::var("BRAID_E2E_NAME").ok().filter(|name| !name.is_empty());
    let given = name.as_deref().and_then(|name| Sandbox::attach(name).ok());
    let options = given
        .map_or(Options { nodes: 3, racks: 2, ..Options::default() }, |sandbox| sandbox.options().clone());
    let sandbox = Sandbox::ensure(name.as_deref().unwrap_or("e2e"), &options)?;
    ensure!(sandbox.nodes().len() >= 3, "the end-to-end tests need a cluster of three nodes");
    refresh_image(&sandbox)?;
    Ok(sandbox)
}

/// A cluster may be older than the image: then the tests would pass or fail for yesterday's programs.
fn refresh_image(sandbox: &Sandbox) -> Result<()> {
    let archive = repository().join("target/images/braid.tar");
    let bytes = fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let stamp = Sandbox::dir_of(sandbox.name()).join("tested-image");
    let known = fs::read_to_string(&stamp).ok();
    if known.as_deref() == Some(digest.as_str()) {
        return Ok(());
    }
    sandbox.load(&archive)?;
    for object in ["deployment/braid-controller", "daemonset/braid-node"] {
        sandbox.kubectl(&["-n", "braid-system", "rollout", "restart", object])?;
        sandbox.kubectl(&["-n", "braid-system", "rollout", "status", object, "--timeout=180s"])?;
    }
    fs::write(&stamp, digest).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Puts the members of `more` into `base`, objects within objects member by member.
fn merge(base: &mut Value, more: &Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, more) => *base = more.clone(),
    }
}

/// Checks that a refusal of the API server comes from a webhook that works, and what it says.
///
/// # Errors
/// When a part is missing, or the webhook was not reached.
pub fn says(sentence: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(sentence.contains(part), "the refusal does not say '{part}': {sentence}");
    }
    ensure!(!sentence.contains("failed calling webhook"), "not refused but broken: {sentence}");
    Ok(())
}

/// The elements of a JSON list; none when it is something else.
#[must_use]
pub fn items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A JSON string; empty when it is something else.
#[must_use]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_goes_into_objects_and_replaces_the_rest() {
        let mut base = json!({"type": "VXLAN", "vxlan": {"vni": 5}});
        merge(&mut base, &json!({"vxlan": {"encapsulation": "CrossSubnet"}, "default": false}));
        let wanted = json!({
            "type": "VXLAN", "vxlan": {"vni": 5, "encapsulation": "CrossSubnet"}, "default": false,
        });
        assert_eq!(base, wanted);
        merge(&mut base, &Value::Null);
        assert_eq!(base, wanted);
    }
}
