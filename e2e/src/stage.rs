//! A place of its own for every end-to-end test, in a cluster that tests share.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::exec::{Progress, eventually};
use crate::lanes::{Lane, Turn};
use crate::logs::{ErrorLine, Moment, errors};
use crate::parts::repository;
use crate::sandbox::{BundleOnFailure, Sandbox};

/// How long a test waits for what must happen. Generous: it only bounds how long a failure takes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Label on everything without a namespace that a test declares; its value is the test's name.
pub(crate) const LABEL: &str = "e2e.braid.network/stage";

/// What a controller says that leads and cannot reach the API server any more.
pub const LEAD_LOST: &str = "the lead is lost";

/// Label of namespaces whose pods nobody judges on their way in.
const UNJUDGED: &str = "e2e.braid.network/unjudged";

/// A test's place: a namespace of its own in the lane's cluster, prefixes and VNIs that nobody else has, and the Networks that
/// it declares.
#[derive(Debug)]
pub struct Stage {
    sandbox: Sandbox,
    name: String,
    turn: Turn,
    /// The test's own number: see [`Stage::own`].
    number: u32,
    /// Addresses that the test's pods have had, for [`Stage::await_agreement`].
    seen: Mutex<BTreeSet<IpAddr>>,
    /// Whether Braid has to be put back to its manifests afterwards.
    is_changed: AtomicBool,
}

/// The own numbers of tests: `10.<number>.0.0/16` is neither the cluster's pods' (10.244) nor its
/// Services' (10.96), and `fd00:<number>::/32` not the nodes' (fd00:172).
const NUMBERS: Range<u32> = 100..170;

/// Runs a test beside others in the quiet lane. Everything that it makes has a name, a prefix or a number of its own, and it
/// neither ends nor replaces what others need. What it made is removed afterwards, and a failure leaves a bundle of facts.
///
/// # Panics
/// When the test fails, with the whole chain of reasons.
#[track_caller]
pub fn quiet(test: &str, body: impl FnOnce(&Stage) -> Result<()>) {
    staged(Lane::Quiet, Location::caller(), test, body);
}

/// Runs a test in a cluster in which it is alone: it may kill, replace and look at everything. Otherwise as [`quiet`].
///
/// # Panics
/// When the test fails, with the whole chain of reasons.
#[track_caller]
pub fn alone(test: &str, body: impl FnOnce(&Stage) -> Result<()>) {
    staged(Lane::Alone, Location::caller(), test, body);
}

/// Runs a test that brings up and removes clusters of its own, while no other such test runs.
///
/// # Panics
/// When the test fails, with the whole chain of reasons.
#[track_caller]
pub fn apart(test: &str, body: impl FnOnce() -> Result<()>) {
    let turn = Lane::Apart.enter(&suite_of(Location::caller()), test);
    if let Err(error) = body() {
        panic!("{test}: {error:?}");
    }
    turn.passes();
}

/// The file that a test stands in, without its ending.
fn suite_of(caller: &Location<'_>) -> String {
    Path::new(caller.file()).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn staged(lane: Lane, caller: &Location<'_>, test: &str, body: impl FnOnce(&Stage) -> Result<()>) {
    let turn = lane.enter(&suite_of(caller), test);
    let progress = Progress::start();
    let stage =
        Stage::open(turn, test).unwrap_or_else(|error| panic!("no cluster to run '{test}' on: {error:?}"));
    let keeper = BundleOnFailure::new(&stage.sandbox, test);
    progress.step(&format!("{test}: the cluster is ready"));
    if let Err(error) = body(&stage).and_then(|()| stage.said_no_error()) {
        // The runner prints what failed when all is over; whoever waits finds it here at once.
        let _ = fs::write(keeper.path().with_extension("").with_extension("txt"), format!("{error:#}\n"));
        panic!("{test}: {error:?}");
    }
    progress.step(&format!("{test}: done, cleaning up"));
    if lane == Lane::Quiet {
        stage.turn.passes();
        // A Network goes when its last address has rested, for which the next test need not wait.
        stage.turn.end();
    }
    if let Err(error) = stage.leave() {
        panic!("{test} did all it should, but what it made cannot be removed: {error:?}");
    }
    stage.turn.passes();
    drop(keeper);
}

impl Stage {
    fn open(turn: Turn, test: &str) -> Result<Self> {
        let sandbox = turn.cluster()?;
        let number = NUMBERS.start + sandbox.next_number(NUMBERS.end - NUMBERS.start)?;
        let stage = Self {
            sandbox,
            name: format!("test-{}", test.replace('_', "-")),
            turn,
            number,
            seen: Mutex::default(),
            is_changed: AtomicBool::new(false),
        };
        stage.clear()?;
        if stage.lane() == Lane::Alone {
            await_braid(&stage.sandbox)?;
            // Who compares all that a node holds must not see an earlier test's pods go.
            nothing_is_left(&stage.sandbox)?;
        }
        let meta = json!({"name": stage.name, "labels": {LABEL: stage.name}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta});
        stage.sandbox.apply(&namespace.to_string())?;
        eventually("service account of the test", PATIENCE, || {
            stage.sandbox.kubectl(&["-n", &stage.name, "get", "serviceaccount", "default"]).map(Some)
        })?;
        Ok(stage)
    }

    /// Says that the test changes how Braid is installed: when it is over, however that comes, everything is put back to the
    /// manifests.
    ///
    /// # Panics
    /// When the test is not alone.
    pub fn changes_the_installation(&self) {
        self.must_be_alone();
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// What disturbs others is for tests alone.
    ///
    /// # Panics
    /// When the test is not alone.
    pub(crate) fn must_be_alone(&self) {
        assert!(self.lane() == Lane::Alone, "{} disturbs others: it has to be alone", self.name);
    }

    /// Runs `body` while a node takes no new pods. Of tests that do so one at a time does, as cordons do not count.
    ///
    /// # Errors
    /// When `body` fails, or the node cannot be changed.
    pub fn while_cordoned<T>(&self, node: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        self.sandbox.kubectl(&["cordon", node])?;
        let outcome = catch_unwind(AssertUnwindSafe(body));
        self.sandbox.kubectl(&["uncordon", node])?;
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Says that the test makes Braid's programs log an error with this text. Any other error that they log fails the test.
    pub fn provokes_error(&self, text: &str) {
        self.turn.provokes(text);
    }

    /// The test's own addresses: the `x` of `10.x.` and `fd00:x:` in a text becomes the test's number, so that
    /// `10.x.0.0/24,fd00:x::/112` is `10.107.0.0/24,fd00:107::/112` for one of them. Networks, Subnets and pods that the stage
    /// makes are read the same way.
    #[must_use]
    pub fn own(&self, text: &str) -> String {
        let number = self.number;
        text.replace("10.x.", &format!("10.{number}.")).replace("fd00:x:", &format!("fd00:{number}:"))
    }

    /// An address of the test's own, as [`Stage::own`].
    ///
    /// # Panics
    /// When the text is no address.
    #[must_use]
    pub fn ip(&self, text: &str) -> IpAddr {
        self.own(text).parse().unwrap_or_else(|_| panic!("'{text}' is no address"))
    }

    /// One of the test's ten own VNIs.
    ///
    /// # Panics
    /// When `position` is ten or more.
    #[must_use]
    pub fn vni(&self, position: u32) -> u32 {
        assert!(position < 10, "a test has ten VNIs");
        self.number * 10 + position
    }

    /// Notes that these addresses were the test's own for a while.
    pub(crate) fn has_seen(&self, addresses: &[IpAddr]) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(addresses);
    }

    /// All that was noted by [`Stage::has_seen`].
    pub(crate) fn seen(&self) -> BTreeSet<IpAddr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lane that the test runs in.
    pub(crate) fn lane(&self) -> Lane {
        self.turn.lane()
    }

    /// No program of Braid's may have logged an error that concerns this test: alone, any since its begin; among others, one
    /// that names its namespace or addresses.
    fn said_no_error(&self) -> Result<()> {
        let began = Moment::of(self.turn.began());
        let (v4, v6) = (self.own("10.x."), self.own("fd00:x:"));
        // The name of a namespace may begin another one.
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-');
        let names_it = |text: &str| {
            text.contains(&v4)
                || text.contains(&v6)
                || text.match_indices(&self.name).any(|(at, _)| ends(&text[at + self.name.len()..]))
        };
        let provoked = self.turn.provoked();
        let of_test = |line: &ErrorLine| {
            line.at >= began
                && (self.lane() == Lane::Alone || names_it(&line.text))
                && !provoked.iter().any(|text| line.text.contains(text))
        };
        let found: Vec<String> =
            errors(&self.sandbox)?.iter().filter(|line| of_test(line)).map(ToString::to_string).collect();
        ensure!(found.is_empty(), "errors in the logs of Braid's programs:\n{}", found.join("\n"));
        Ok(())
    }

    /// Puts Braid back to its manifests, whatever the test did to it, and waits until it works.
    ///
    /// # Errors
    /// When it does not work within the deadline.
    pub fn restore(&self) -> Result<()> {
        self.must_be_alone();
        restore(&self.sandbox)
    }

    /// Waits until every node is Ready and Braid's own pods are available.
    ///
    /// # Errors
    /// When they are not within the deadline.
    pub fn await_braid(&self) -> Result<()> {
        await_braid(&self.sandbox)
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
            .map(|(key, value)| format!("--annotations=braid.network/{key}={}", self.own(value)))
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

    /// Runs `body` while nobody judges pods of the test's namespace on their way in, and has them judged again afterwards.
    ///
    /// # Errors
    /// When `body` fails, or the webhook does not come back within the deadline.
    pub fn without_pod_webhook<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        ensure!(self.lane() == Lane::Quiet, "a test alone deletes the configuration of the webhook");
        let nonsense = [("ip-family", "nonsense")];
        let label = |label: &str| self.sandbox.kubectl(&["label", "namespace", &self.name, label]);
        label(&format!("{UNJUDGED}=yes"))?;
        // The API server learns of either a moment later.
        let outcome = eventually("the API server to leave the namespace out", PATIENCE, || {
            self.rehearse(&nonsense).map(Some)
        })
        .and_then(|_| body());
        label(&format!("{UNJUDGED}-"))?;
        eventually("the webhook for pods to be back", PATIENCE, || {
            Ok(self.rehearse(&nonsense).err().map(drop))
        })?;
        outcome
    }

    /// A Network, Subnet or IPInstance of this test, by name and spec, in which addresses are read as [`Stage::own`] does.
    #[must_use]
    pub fn object(&self, kind: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "braid.network/v1",
            "kind": kind,
            "metadata": {"name": self.own(name), "labels": {LABEL: self.name}},
            "spec": self.owned(spec),
        })
    }

    /// [`Stage::own`] of every text in a value.
    #[must_use]
    pub fn owned(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.own(text)),
            Value::Array(list) => list.iter().map(|element| self.owned(element)).collect(),
            Value::Object(members) => {
                members.iter().map(|(key, value)| (key.clone(), self.owned(value))).collect()
            }
            other => other.clone(),
        }
    }

    /// Declares Networks and Subnets; they are removed when the test is over. Namesakes that an earlier test left on their
    /// way out are waited for.
    ///
    /// # Errors
    /// When the API server refuses one, or a namesake does not go within the deadline.
    pub fn declare(&self, objects: &[Value]) -> Result<()> {
        // The default overlay belongs to nobody: who declares it anew means to be refused.
        let is_own = |left: &Value| {
            [Some(self.name.as_str()), None].contains(&left["metadata"]["labels"][LABEL].as_str())
        };
        eventually("removal of namesakes, of which another test may have one", PATIENCE, || {
            let found = items(&self.sandbox.kubectl_json(&["get", "networks,subnets"])?["items"]);
            let is_named = |left: &Value| {
                let named = |object: &Value| {
                    object["kind"] == left["kind"] && object["metadata"]["name"] == left["metadata"]["name"]
                };
                objects.iter().any(named)
            };
            let mut namesakes = found.iter().filter(|left| is_named(left));
            Ok(namesakes
                .all(|left| left["metadata"]["deletionTimestamp"].is_null() && is_own(left))
                .then_some(()))
        })?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.sandbox.apply(&list.to_string()).map(drop)
    }

    /// A VXLAN Network with one Subnet per prefix, named `<network>-<position>`, all of them Ready when this returns.
    /// `vni` is one of [`Stage::vni`], the prefixes are read as [`Stage::own`] does, and `network` and `subnet` are merged into
    /// the specs.
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

    /// Ends the test's pods and Networks without waiting for the cool-down of their addresses.
    fn leave(&self) -> Result<()> {
        if self.is_changed.load(Ordering::Relaxed) {
            self.restore()?;
        }
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
        if !std::thread::panicking() {
            return;
        }
        // Nobody knows how far a test came that was alone.
        let restored = if self.lane() == Lane::Alone { self.restore() } else { Ok(()) };
        if let Err(error) = restored.and_then(|()| self.clear()) {
            eprintln!("what the failed test made could not be removed: {error:#}");
        }
    }
}

/// Has the webhook for pods pass by namespaces with the label [`UNJUDGED`], so that all others are judged all the time.
///
/// # Errors
/// When there is no such webhook.
pub(crate) fn leave_unjudged_out(sandbox: &Sandbox) -> Result<()> {
    let configuration = ["mutatingwebhookconfiguration", "braid"];
    let add = json!([{
        "op": "add", "path": "/webhooks/0/namespaceSelector/matchExpressions/-",
        "value": {"key": UNJUDGED, "operator": "DoesNotExist"},
    }]);
    let patch = ["--type=json", "-p", &add.to_string()];
    sandbox.kubectl(&[&["patch"], &configuration[..], &patch].concat()).map(drop)
}

/// Waits until everything that tests made is gone.
///
/// # Errors
/// When something is still there after the deadline.
pub(crate) fn nothing_is_left(sandbox: &Sandbox) -> Result<()> {
    eventually("what tests made to be gone", PATIENCE, || {
        let left = sandbox.kubectl_json(&["get", "networks,subnets,namespaces", "-l", LABEL])?;
        let names: Vec<String> = items(&left["items"]).iter().map(|o| text(&o["metadata"]["name"])).collect();
        ensure!(names.is_empty(), "tests have left behind: {}", names.join(", "));
        Ok(Some(()))
    })
}

/// Puts Braid back to its manifests and the default overlay, and waits until all of it works.
///
/// # Errors
/// When it does not within the deadline.
pub fn restore(sandbox: &Sandbox) -> Result<()> {
    let manifests = repository().join("config/default").display().to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "-k", &manifests];
    eventually("manifests", PATIENCE, || sandbox.kubectl(&apply).map(Some))?;
    await_braid(sandbox)?;
    let overlay = repository().join("config/samples/overlay.yaml").display().to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", &overlay];
    eventually("default overlay", PATIENCE, || sandbox.kubectl(&apply).map(Some))?;
    let objects = ["network/overlay", "subnet/overlay-v4", "subnet/overlay-v6"];
    objects.iter().try_for_each(|object| sandbox.await_condition("default", object, "Ready", PATIENCE))
}

pub(crate) fn await_braid(sandbox: &Sandbox) -> Result<()> {
    for object in ["deployment/braid-controller", "daemonset/braid-node"] {
        sandbox.kubectl(&["-n", "braid-system", "rollout", "status", object, "--timeout=180s"])?;
    }
    sandbox.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"]).map(drop)
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
pub fn says<T: AsRef<str>>(sentence: &str, parts: &[T]) -> Result<()> {
    for part in parts.iter().map(AsRef::as_ref) {
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
