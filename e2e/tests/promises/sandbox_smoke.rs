//! The sandbox itself, with the reference CNI plugins: what every other end-to-end test takes for granted.
//! Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use braid_e2e::stage::apart;
use braid_e2e::{BundleOnFailure, ComponentState, Options, Sandbox, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

const WORKLOAD: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: localhost/braid-test:dev
        command: [serve, '8080']
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// A pod of the workload.
struct Web {
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
}

fn start_workload(sandbox: &Sandbox) -> Result<Vec<Web>> {
    sandbox.apply(WORKLOAD)?;
    sandbox.kubectl(&["rollout", "status", "daemonset/web", "--timeout=120s"])?;
    let pods = sandbox.kubectl_json(&["get", "pods", "-l", "app=web"])?;
    let mut webs = Vec::new();
    for pod in pods["items"].as_array().context("no list of pods")? {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?.to_owned();
        let addresses = sandbox.pod_addresses("default", &name, LIMIT)?;
        let node = pod["spec"]["nodeName"].as_str().context("a pod without a node")?.to_owned();
        webs.push(Web { name, node, addresses });
    }
    ensure!(webs.len() == sandbox.nodes().len(), "{} pods on {} nodes", webs.len(), sandbox.nodes().len());
    Ok(webs)
}

fn ping(sandbox: &Sandbox, from: &Web, to: IpAddr) -> Result<()> {
    let argv = ["ping", "-q", "-c", "2", "-i", "0.2", "-W", "2", &to.to_string()];
    sandbox.pod_exec("default", &from.name, &argv).map(drop)
}

fn reachability(sandbox: &Sandbox, webs: &[Web]) -> Result<()> {
    for from in webs {
        for to in webs {
            for address in &to.addresses {
                ping(sandbox, from, *address).with_context(|| format!("{} to {}", from.node, to.node))?;
            }
        }
    }
    // The world has no route to pods: an answer means that their node's address was used.
    for outside in ["198.51.100.1", "2001:db8:198::1"] {
        ping(sandbox, &webs[0], outside.parse()?).context("out of the cluster")?;
    }
    Ok(())
}

fn services(sandbox: &Sandbox, webs: &[Web]) -> Result<()> {
    let service = sandbox.kubectl_json(&["get", "service", "web"])?;
    let addresses = service["spec"]["clusterIPs"].as_array().context("a service without addresses")?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for address in addresses {
        let address: IpAddr = address.as_str().context("not an address")?.parse()?;
        let url = match address {
            IpAddr::V4(address) => format!("http://{address}/cgi-bin/whoami"),
            IpAddr::V6(address) => format!("http://[{address}]/cgi-bin/whoami"),
        };
        for from in webs {
            let answer = eventually(&format!("{url} from {}", from.node), LIMIT, || {
                sandbox.pod_exec("default", &from.name, &["curl", "-sS", "-m", "5", &url]).map(Some)
            })?;
            ensure!(answer.starts_with("web-"), "{url} answered {answer:?}");
        }
    }
    // The API server by its ClusterIP, as every controller in a pod uses it.
    let version = ["curl", "-sSk", "-m", "5", "https://10.96.0.1/version"];
    ensure!(sandbox.pod_exec("default", &webs[1].name, &version)?.contains("v1.34.4"));
    Ok(())
}

/// Tests read through a client of their own: it must say what kubectl prints, in every form that tests use.
fn the_client_reads_as_kubectl_does(sandbox: &Sandbox) -> Result<()> {
    for form in [
        "get namespace kube-system",
        "get ns/kube-system",
        "get clusterroles,crd",
        "get clusterroles -l kubernetes.io/bootstrapping=rbac-defaults",
        "-n kube-system get configmaps",
        "get cm -A",
        "get svc kubernetes --show-managed-fields",
        "get svc,sa kubernetes default --ignore-not-found",
        "get endpointslices.discovery.k8s.io kubernetes",
        "get namespaces --field-selector=metadata.name=default",
    ] {
        let words: Vec<&str> = form.split_whitespace().collect();
        let printed = sandbox.kubectl(&[&words[..], &["-o", "json"]].concat())?;
        let printed: Value = serde_json::from_str(&printed).context("kubectl did not print JSON")?;
        let read = sandbox.kubectl_json(&words)?;
        ensure!(read == printed, "'kubectl {form}' printed\n{printed:#}\nand the client read\n{read:#}");
    }
    for words in [&["get", "pod", "nothing"][..], &["get", "deployment/nothing"], &["get", "nonsense"]] {
        let printed = sandbox.kubectl_output(words)?;
        let printed = String::from_utf8_lossy(&printed.stderr).into_owned();
        let said = sandbox.kubectl_json(words).err().context("something was found")?;
        ensure!(
            format!("{said:#}").ends_with(printed.trim()),
            "kubectl said {printed} and the client {said:#}"
        );
    }
    ensure!(sandbox.kubectl_json(&["get", "pod", "nothing", "--ignore-not-found"])?.is_null());
    Ok(())
}

/// A wait begins before there is anything to wait for, and goes on when the API server dies meanwhile.
fn a_wait_outlives_the_api_server(sandbox: &Sandbox) -> Result<()> {
    let await_seen = |what: &str, seen: bool| {
        let get = ["get", "configmap", "awaited", "--ignore-not-found"];
        sandbox.await_state(what, &get, LIMIT, |found| Ok((found.is_null() != seen).then_some(())))
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| await_seen("a ConfigMap", true));
        sandbox.kubectl(&["create", "configmap", "awaited"])?;
        waiting.join().map_err(|_| anyhow!("the wait ended by a panic"))??;
        let waiting = scope.spawn(|| await_seen("no ConfigMap", false));
        sandbox.kill("apiserver")?;
        let delete = ["delete", "configmap", "awaited", "--ignore-not-found"];
        eventually("the API server to be back", LIMIT, || sandbox.kubectl(&delete).map(Some))?;
        waiting.join().map_err(|_| anyhow!("the wait ended by a panic"))?
    })
}

fn restarts(sandbox: &Sandbox) -> BTreeMap<String, u32> {
    sandbox.components().into_iter().map(|component| (component.name, component.restarts)).collect()
}

/// Every component is killed, one after the other and then all at once; each comes back and the cluster with it.
fn recovery(sandbox: &Sandbox) -> Result<()> {
    let before = restarts(sandbox);
    ensure!(before.len() == 4 + 3 * sandbox.nodes().len(), "{before:?}");
    for name in before.keys() {
        sandbox.kill(name)?;
    }
    eventually("all components to run again", LIMIT, || {
        let all = sandbox.components();
        let back = all.iter().all(|component| {
            component.state == ComponentState::Running && component.restarts > before[&component.name]
        });
        Ok(back.then_some(()))
    })?;
    sandbox.restart("scheduler")?;
    eventually("API server", LIMIT, || sandbox.kubectl(&["get", "--raw=/readyz"]).map(Some))?;
    // A new pod needs all of them: API server, scheduler, controller-manager, kubelet and runtime.
    sandbox.kubectl(&["rollout", "restart", "daemonset/web"])?;
    sandbox.kubectl(&["rollout", "status", "daemonset/web", "--timeout=120s"])?;
    Ok(())
}

/// Stopped stays stopped; pods go on meanwhile.
fn outage(sandbox: &Sandbox, webs: &[Web]) -> Result<()> {
    sandbox.stop("apiserver")?;
    sandbox.stop("etcd")?;
    let stopped = |name: &str| {
        sandbox.components().iter().any(|part| part.name == name && part.state == ComponentState::Stopped)
    };
    ensure!(stopped("apiserver") && stopped("etcd"), "{:?}", sandbox.components());
    ensure!(
        sandbox.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]).is_err(),
        "the API server answers"
    );
    // Without the API server kubectl exec is not available, so the runtime on the node is asked.
    let other = webs[1].addresses[0].to_string();
    sandbox.node_exec(&webs[0].node, &["ping", "-q", "-c", "2", "-W", "2", &other])?;
    sandbox.start("etcd")?;
    sandbox.start("apiserver")?;
    eventually("API server", LIMIT, || sandbox.kubectl(&["get", "--raw=/readyz"]).map(Some))?;
    Ok(())
}

fn partitions(sandbox: &Sandbox, webs: &[Web]) -> Result<()> {
    let on = |node: &str| webs.iter().find(|web| web.node == node).context("no pod on the node");
    // node1 and node3 share a rack, node2 is on the other one.
    for (a, b, bystander) in [("node1", "node3", "node2"), ("node2", "node3", "node1")] {
        let node_b = sandbox.kubectl_json(&["get", "node", b])?;
        let address = node_b["status"]["addresses"][0]["address"].as_str().context("no address")?.to_owned();
        let reach = || sandbox.node_exec(a, &["ping", "-q", "-c", "1", "-W", "1", &address]);
        reach()?;
        sandbox.partition(a, b)?;
        ensure!(reach().is_err(), "{a} reaches {b} in spite of the partition");
        sandbox
            .node_exec(a, &["ping", "-q", "-c", "1", "-W", "2", &on(bystander)?.addresses[0].to_string()])?;
        sandbox.heal(a, b)?;
        eventually("the way back", LIMIT, || reach().map(Some))?;
    }
    Ok(())
}

fn power_cycle(sandbox: &Sandbox) -> Result<()> {
    sandbox.stop("node3")?;
    ensure!(sandbox.node_exec("node3", &["true"]).is_err(), "node3 is still there");
    sandbox.start("node3")?;
    eventually("a new life of node3", LIMIT, || {
        let pods = sandbox.kubectl_json(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector=spec.nodeName=node3",
        ])?;
        let name = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?.to_owned();
        sandbox.pod_exec("default", &name, &["true"]).map(Some)
    })?;
    ensure!(sandbox.stop("node1").is_err(), "the control plane's node can be powered off");
    Ok(())
}

/// Everything that a cluster of this name could leave on the machine.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let prefix = format!("braid-{name}");
    for folder in ["/run/netns", "/sys/fs/cgroup", "/run/braid-sandbox"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let inside = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
            found.extend(std::iter::once(path.clone()).chain(inside).filter(|path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                file.starts_with(&prefix) || (folder == "/run/braid-sandbox" && file.starts_with(name))
            }));
        }
    }
    let mut traces: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
    let dir = Sandbox::dir_of(name);
    if dir.exists() {
        traces.push(dir.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let folders = [dir.display().to_string(), format!("/run/braid-sandbox/{name}")];
    traces.extend(
        mounts.lines().filter(|line| folders.iter().any(|folder| line.contains(folder))).map(str::to_owned),
    );
    traces.extend(supervisors(name)?.iter().map(|pid| format!("process {pid}")));
    Ok(traces)
}

/// Processes of the cluster's supervisors, found by their command line.
fn supervisors(name: &str) -> Result<Vec<Pid>> {
    let dir = Sandbox::dir_of(name).display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(&format!("supervise\0{dir}/"))
            && let Ok(pid) = entry.file_name().to_string_lossy().parse()
        {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn links() -> Result<String> {
    let output = Command::new("ip").args(["-o", "link"]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_cluster_with_the_reference_plugins_works_and_leaves_nothing() {
    apart("sandbox_smoke", works_and_leaves_nothing);
}

fn works_and_leaves_nothing() -> Result<()> {
    let name = "smoke";
    Sandbox::down(name)?;
    let options = Options { nodes: 3, racks: 2, no_braid: true, ..Options::default() };
    let sandbox = Sandbox::ensure(name, &options)?;
    let keeper = BundleOnFailure::new(&sandbox, "sandbox_smoke");
    let outcome = (|| -> Result<()> {
        let webs = start_workload(&sandbox)?;
        the_client_reads_as_kubectl_does(&sandbox)?;
        reachability(&sandbox, &webs)?;
        services(&sandbox, &webs)?;
        outage(&sandbox, &webs)?;
        partitions(&sandbox, &webs)?;
        recovery(&sandbox)?;
        a_wait_outlives_the_api_server(&sandbox)?;
        power_cycle(&sandbox)?;
        let bundle = tempfile::tempdir()?;
        let file = bundle.path().join("bundle.tar.gz");
        sandbox.bundle(&file)?;
        let listing = Command::new("tar").arg("-tzf").arg(&file).output()?;
        let listing = String::from_utf8(listing.stdout)?;
        for wanted in ["node2/rule.txt", "node2/nft.txt", "api/pods.txt", "logs/etcd.log", "status.json"] {
            ensure!(listing.contains(wanted), "no {wanted} in\n{listing}");
        }
        Ok(())
    })();
    assert!(outcome.is_ok(), "{:?}", outcome.err());
    drop(keeper);
    Sandbox::down(name)?;
    assert_eq!(traces(name)?, Vec::<String>::new());
    Ok(())
}

/// Kills an `up` that has made the network and is at work on the rest.
fn interrupt_up(name: &str) -> Result<()> {
    let mut up = Command::new(env!("CARGO_BIN_EXE_sandbox"))
        .args(["up", "--no-braid", "--nodes", "1", "--name", name])
        .stderr(Stdio::null())
        .spawn()?;
    let netns = format!("/run/netns/braid-{name}-node1");
    let seen = eventually("a network", LIMIT, || Ok(Path::new(&netns).exists().then_some(())));
    up.kill()?;
    up.wait()?;
    seen
}

#[test]
fn a_cluster_that_was_killed_is_cleaned_up_by_the_next_one() {
    apart("sandbox_killed", is_cleaned_up);
}

fn is_cleaned_up() -> Result<()> {
    let name = "killed";
    Sandbox::down(name)?;
    let options = Options { nodes: 1, no_braid: true, ..Options::default() };
    interrupt_up(name)?;
    let sandbox = Sandbox::ensure(name, &options)?;
    start_workload(&sandbox)?;
    let listed =
        || Sandbox::list().into_iter().find_map(|(known, remains)| (known == name).then_some(remains));
    ensure!(listed().as_deref() == Some("up"), "{:?}", listed());
    let first = supervisors(name)?;
    ensure!(!first.is_empty(), "no supervisors found");
    for pid in &first {
        // One may have gone with the one before it.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    eventually("end of the supervisors", LIMIT, || Ok(supervisors(name)?.is_empty().then_some(())))?;
    ensure!(!traces(name)?.is_empty(), "killing alone left no remains, so this test shows nothing");
    // The first process of a node is there until the last one of it has gone.
    eventually("a list that says so", LIMIT, || Ok(listed().filter(|remains| remains.starts_with("dead"))))?;
    let again = Sandbox::up(name, &options)?;
    let keeper = BundleOnFailure::new(&again, "sandbox_killed");
    let outcome = start_workload(&again);
    assert!(outcome.is_ok(), "{:?}", outcome.err());
    drop(keeper);
    for pid in supervisors(name)? {
        let _ = kill(pid, Signal::SIGKILL);
    }
    Sandbox::down(name)?;
    assert_eq!(traces(name)?, Vec::<String>::new());
    ensure!(!links()?.contains(&format!("braid-{name}")));
    Ok(())
}

#[test]
fn what_is_wrong_with_a_request_is_said_in_one_sentence() {
    apart("sandbox_requests", says_what_is_wrong);
}

fn says_what_is_wrong() -> Result<()> {
    let program = env!("CARGO_BIN_EXE_sandbox");
    let cases: [(&[&str], &str); 5] = [
        (&["up", "--vm"], "--vm is not available"),
        (&["up", "--no-braid", "--nodes", "0"], "--nodes 0"),
        (&["up", "--no-braid", "--name", "Bad_Name"], "Bad_Name"),
        (&["status", "--name", "nobody"], "there is no sandbox 'nobody'"),
        (&["up", "--kube-proxy", "ipvs"], "ipvs"),
    ];
    for (arguments, sentence) in cases {
        let output = Command::new(program).args(arguments).output()?;
        let said = String::from_utf8(output.stderr)?;
        if output.status.success() || !said.contains(sentence) {
            bail!("{arguments:?}: {said}");
        }
    }
    ensure!(!Path::new("/run/braid-sandbox/nobody").exists());
    Ok(())
}
