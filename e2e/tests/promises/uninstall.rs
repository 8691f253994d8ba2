//! Taking Braid out of a cluster, by the steps that config/uninstall names, leaves nodes and API as they were without
//! it. On a small cluster of its own, since the shared one is still needed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use braid_e2e::kernel_state::KernelState;
use braid_e2e::stage::apart;
use braid_e2e::{BundleOnFailure, Options, Sandbox, eventually};

const LIMIT: Duration = Duration::from_secs(180);
const CLUSTER: &str = "uninstall";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NODE, namespace: default}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: localhost/braid-test:dev, imagePullPolicy: Never}]
";

/// The commands that the comment in config/uninstall/kustomization.yaml gives to people, word for word.
fn documented_steps(root: &Path) -> Result<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(root.join("config/uninstall/kustomization.yaml"))?;
    let steps: Vec<Vec<String>> = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').trim().strip_prefix("kubectl "))
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    ensure!(steps.len() >= 5, "config/uninstall/kustomization.yaml names only {} steps", steps.len());
    Ok(steps)
}

/// Everything on a node in which the word braid, Braid's protocol number or its tables would show.
fn traces(sandbox: &Sandbox, node: &str) -> Result<String> {
    let script = "{ ip -o link; ip -d link | grep -w alias; ip addr; ip -N rule; ip -6 -N rule; \
        ip -N route show table all; ip -6 -N route show table all; ip neigh; ip neigh show proxy; \
        ip -6 neigh show proxy; bridge fdb; nft list tables; \
        find /etc/cni /opt/cni/bin /var/lib/braid /run/braid 2>/dev/null; } | \
        grep -E 'braid|vxlan|proto 176|protocol 176|table (39999|40000)|lookup (39999|40000)' || true";
    sandbox.node_exec(node, &["sh", "-c", script])
}

/// What the Node says about its pods' network: the status of the condition NetworkUnavailable, if it is there.
fn network_unavailable(sandbox: &Sandbox, node: &str) -> Result<Option<String>> {
    let node = sandbox.kubectl_json(&["get", "node", node])?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
    Ok(found.and_then(|condition| Some(condition["status"].as_str()?.to_owned())))
}

fn overlay_with_pods(sandbox: &Sandbox, root: &Path) -> Result<()> {
    sandbox.kubectl(&[
        "apply",
        "--server-side",
        "-f",
        &root.join("config/samples/overlay.yaml").display().to_string(),
    ])?;
    for object in ["network/overlay", "subnet/overlay-v4", "subnet/overlay-v6"] {
        sandbox.await_condition("default", object, "Ready", LIMIT)?;
    }
    for node in sandbox.nodes() {
        sandbox.apply(&POD.replace("NODE", &node))?;
    }
    for node in sandbox.nodes() {
        sandbox.await_condition("default", &format!("pod/{node}"), "Ready", LIMIT)?;
        ensure!(
            !traces(sandbox, &node)?.is_empty(),
            "{node} shows no trace of Braid, so this test shows nothing"
        );
        ensure!(network_unavailable(sandbox, &node)?.as_deref() == Some("False"), "{node} has no network");
    }
    Ok(())
}

fn uninstall(sandbox: &Sandbox, root: &Path) -> Result<()> {
    sandbox.kubectl(&["delete", "pods", "--all", "--timeout=120s"])?;
    for step in documented_steps(root)? {
        let words: Vec<&str> = step.iter().map(String::as_str).collect();
        // The paths in the comment are relative to the repository, as for a person.
        let output = sandbox.kubectl_command().args(&words).current_dir(root).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {}: {said}", words.join(" "));
    }
    Ok(())
}

#[test]
fn the_documented_steps_leave_nothing() {
    apart("uninstall", leaves_nothing);
}

fn leaves_nothing() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no repository")?;
    let options = Options { nodes: 2, ..Options::default() };
    Sandbox::down(CLUSTER)?;
    let sandbox = Sandbox::up(CLUSTER, &options)?;
    let keeper = BundleOnFailure::new(&sandbox, "uninstall");
    let outcome = (|| -> Result<()> {
        overlay_with_pods(&sandbox, root)?;
        uninstall(&sandbox, root)?;
        for node in sandbox.nodes() {
            // The files of the last pod's sandbox go when the runtime gets to it.
            eventually(&format!("a clean {node}"), LIMIT, || {
                let traces = traces(&sandbox, &node)?;
                ensure!(traces.trim().is_empty(), "left on {node}:\n{traces}");
                Ok(Some(()))
            })?;
            let said = network_unavailable(&sandbox, &node)?;
            ensure!(said.is_none(), "{node} still says NetworkUnavailable={said:?}");
            let state = KernelState::of(&sandbox, &node)?;
            ensure!(state.is_empty(), "{}", state.difference(&KernelState::default()));
        }
        let kinds = "crd,clusterroles,clusterrolebindings,validatingwebhookconfigurations,mutatingwebhookconfigurations,\
            validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces,priorityclasses";
        let left: Vec<String> = sandbox
            .kubectl(&["get", kinds, "-o", "name"])?
            .lines()
            .filter(|name| name.contains("braid"))
            .map(str::to_owned)
            .collect();
        ensure!(left.is_empty(), "left in the API: {left:?}");
        // And it can be installed again.
        let manifests = root.join("config/default").display().to_string();
        sandbox.kubectl(&["apply", "--server-side", "-k", &manifests])?;
        for object in ["deployment/braid-controller", "daemonset/braid-node"] {
            sandbox.kubectl(&["-n", "braid-system", "rollout", "status", object, "--timeout=180s"])?;
        }
        overlay_with_pods(&sandbox, root)
    })();
    assert!(outcome.is_ok(), "{:?}", outcome.err());
    drop(keeper);
    Sandbox::down(CLUSTER)
}
