//! The agent's parts on a real kernel, asked by the real plugin: a network namespace is the node, two more are
//! pods. Needs root and the Debian packages iproute2, iputils-ping and util-linux.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_informer::{InSync, Informers};
use braid_journal::Journal;
use braid_types::model::{Encapsulation, NetworkDef, NetworkType, SubnetDef, VxlanDef};
use braid_types::{Selector, Vni};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attachments::Attachments;
use crate::cni::{Cni, server};
use crate::fake::NoApi;
use crate::health::Health;
use crate::index::tests::{applied, instance, pod};
use crate::index::{Change, OwnNode, pod_key};
use crate::kernel::{HostKernel, watch_drift};
use crate::reconcile::{Loop, Report, Shared};
use crate::release::TornDown;
use crate::store::{Effect, Store};
use crate::sweep;

const PODS: [(&str, &str, [&str; 2]); 2] =
    [("p1", "u1", ["10.244.0.5", "fd00:244::5"]), ("p2", "u2", ["10.244.0.6", "fd00:244::6"])];

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).output().expect("sh runs")
}

fn must(script: &str) -> String {
    let output = sh(script);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process that holds a namespace open.
struct PodNamespace(Child);

impl PodNamespace {
    fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().expect("unshare runs");
        let this = Self(child);
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("the pod's namespace", || std::fs::read_link(this.path()).is_ok_and(|ns| ns != own));
        this
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn run(&self, script: &str) -> Output {
        let path = self.path();
        Command::new("nsenter")
            .arg(format!("--net={}", path.display()))
            .args(["sh", "-ec", script])
            .output()
            .expect("nsenter runs")
    }

    fn pings(&self, address: &str) -> bool {
        self.run(&format!("ping -c 1 -W 2 {address}")).status.success()
    }
}

impl Drop for PodNamespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn network() -> NetworkDef {
    NetworkDef {
        name: "overlay".into(),
        created: 0,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: vec![],
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(4).unwrap(),
            port: 8472,
            encapsulation: Encapsulation::Always,
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

pub(crate) fn subnet(name: &str, cidr: &str) -> SubnetDef {
    SubnetDef {
        name: name.into(),
        created: 0,
        network: "overlay".into(),
        cidr: cidr.parse().unwrap(),
        gateway: None,
        ranges: vec![],
        excluded: vec![],
        reserved: vec![],
        vlan: None,
        block_size: 26,
        private: false,
        nat_outgoing: false,
        routing_table: None,
        ready: true,
        deleting: false,
    }
}

/// A cluster of this node, one overlay and two pods that have their addresses.
fn cluster() -> Arc<Store> {
    let store = Arc::new(Store::default());
    store.update(|index| {
        let node = OwnNode {
            name: "n1".into(),
            uid: "node".into(),
            labels: BTreeMap::new(),
            addresses: vec!["192.0.2.2".parse().unwrap()],
            network_unavailable: None,
        };
        index.node.apply(Change::Applied("n1".into(), Ok(node)));
        index.networks.apply(Change::Applied("overlay".into(), Ok(network())));
        for (name, cidr) in [("v4", "10.244.0.0/16"), ("v6", "fd00:244::/112")] {
            index.subnets.apply(Change::Applied(name.into(), Ok(subnet(name, cidr))));
        }
        for own in ["10.244.0.1", "fd00:244::1"] {
            index.apply_own(applied(instance(own, None, &[])));
        }
        for (name, uid, set) in PODS {
            let mut known = pod(uid);
            known.name = name.into();
            index.pods.apply(Change::Applied(pod_key("ns", name), Ok(known)));
            for address in set {
                index.apply_own(applied(instance(address, Some(uid), &set)));
            }
        }
        Effect::Kernel
    });
    store
}

/// One agent, without its API server.
struct Agent {
    cni: Arc<Cni<HostKernel, NoApi>>,
    reports: watch::Receiver<Option<Report>>,
    stop: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    _proof: watch::Sender<Option<InSync>>,
}

impl Agent {
    async fn start(state_dir: &Path, store: Arc<Store>) -> Self {
        let in_sync = Informers::default().in_sync().await;
        let kernel = Arc::new(HostKernel::open().expect("the kernel can be opened"));
        let monitor = kernel.monitor().expect("the kernel can be watched");
        let attachments = Arc::new(Attachments::load(Journal::below(state_dir)).unwrap());
        let (shared, health) = (Arc::new(Shared::default()), Arc::new(Health::new("start")));
        let (proof, synced) = watch::channel(Some(in_sync));
        let (reports, told) = watch::channel(None);
        let (turns, busy) = Cni::<HostKernel, NoApi>::queues();
        let stop = CancellationToken::new();
        let cni = Arc::new(Cni {
            store: store.clone(),
            attachments: attachments.clone(),
            plumbing: kernel.clone(),
            shared: shared.clone(),
            lookup: NoApi::shared(),
            torn_down: Arc::new(TornDown::default()),
            metrics: Arc::default(),
            health: health.clone(),
            in_sync: synced,
            leftovers: Arc::default(),
            patience: Duration::from_secs(30),
            duplicate_wait: Duration::from_millis(150),
            stop: stop.clone(),
            turns,
            busy,
        });
        let kernel_loop = Loop {
            node: "n1".into(),
            store,
            attachments,
            plumbing: kernel,
            shared: shared.clone(),
            metrics: Arc::default(),
            health,
            reports,
            resync: Duration::from_secs(60),
        };
        let listener = server::listen(&state_dir.join("run/cni.sock")).unwrap();
        sweep::pending_dels(&cni).await;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(server::serve(listener, cni.clone(), stop.clone()));
        tasks.spawn(kernel_loop.run(in_sync, stop.clone()));
        let drift_stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! { () = drift_stop.cancelled() => {}, () = watch_drift(monitor, shared) => {} }
        });
        let mut agent = Self { cni, reports: told, stop, tasks, _proof: proof };
        let ready = |r: &Option<Report>| r.as_ref().is_some_and(|r| r.waiting_for.is_none());
        let report = agent.reports.wait_for(ready).await.unwrap().clone().unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert!(report.networks["overlay"].ready, "{:?}", report.networks);
        agent
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The plugin as the runtime calls it.
#[derive(Clone)]
struct Plugin {
    binary: PathBuf,
    state_dir: PathBuf,
}

impl Plugin {
    fn build(state_dir: &Path) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built =
            Command::new(cargo).args(["build", "-q", "-p", "braid-cni"]).status().expect("cargo runs");
        assert!(built.success());
        let test = std::env::current_exe().unwrap();
        let binary = test.ancestors().nth(2).unwrap().join("braid-cni");
        assert!(binary.is_file(), "{} is missing", binary.display());
        Self { binary, state_dir: state_dir.to_owned() }
    }

    async fn call(&self, verb: &str, pod: usize, netns: PathBuf) -> Value {
        let this = self.clone();
        let verb = verb.to_owned();
        tokio::task::spawn_blocking(move || this.call_now(&verb, pod, &netns)).await.unwrap()
    }

    fn call_now(&self, verb: &str, pod: usize, netns: &Path) -> Value {
        let (name, uid, _) = PODS[pod];
        let config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "braid", "type": "braid",
            "socket": self.state_dir.join("run/cni.sock"), "stateDir": self.state_dir,
        });
        let mut child = Command::new(&self.binary)
            .env_clear()
            .env("BRAID_CNI_LOG", self.state_dir.join("cni.log"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("sandbox-{name}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={name};K8S_POD_UID={uid}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin runs");
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{verb} of {name}: {text}");
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }
}

/// Runs on a thread of its own in a new network namespace; every thread that it starts is there too.
fn on_a_node(test: impl AsyncFnOnce(PathBuf) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        must(
            "ip link set lo up
             ip link add eth0 type veth peer name wire0
             ip link set wire0 up; ip link set eth0 up
             ip addr add 192.0.2.2/24 dev eth0
             ip addr add fd00:1::2/64 dev eth0 nodad
             ip route add default via 192.0.2.1",
        );
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(dir.path().to_owned()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ours() -> String {
    let links = must("ip -o link show | grep -oE 'braid[0-9a-f]{10}' || true");
    let routes = must("ip route show table 39999; ip -6 route show table 39999");
    format!("{links}{routes}")
}

/// Lets the runtime's other tasks work while something blocking is looked at.
async fn eventually(what: &str, holds: impl Fn() -> bool + Send + 'static) {
    let what = what.to_owned();
    tokio::task::spawn_blocking(move || wait_for(&what, holds)).await.unwrap();
}

#[test]
fn pods_talk_survive_a_restart_and_leave_nothing() {
    on_a_node(async |dir| {
        let plugin = Plugin::build(&dir);
        let store = cluster();
        let agent = Agent::start(&dir, store.clone()).await;
        let pods = Arc::new([PodNamespace::new(), PodNamespace::new()]);
        for i in 0..2 {
            let result = plugin.call("ADD", i, pods[i].path()).await;
            assert_eq!(result["ips"][0]["address"], format!("{}/32", PODS[i].2[0]));
            assert_eq!(result["ips"][1]["address"], format!("{}/128", PODS[i].2[1]));
            assert_eq!(result["interfaces"][1]["mtu"], 1450);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            for address in PODS[to].2 {
                assert!(pods[from].pings(address), "{} does not reach {address}", PODS[from].0);
            }
        }
        for address in PODS[0].2 {
            assert!(
                sh(&format!("ping -c 1 -W 2 {address}")).status.success(),
                "the node does not reach {address}"
            );
        }

        // An agent that ends and one that starts change nothing.
        let before = must("ip -o link show; ip route show table 39999; ip neigh show nud permanent");
        agent.end().await;
        assert!(pods[0].pings(PODS[1].2[0]));
        let agent = Agent::start(&dir, store.clone()).await;
        assert_eq!(must("ip -o link show; ip route show table 39999; ip neigh show nud permanent"), before);

        // Somebody deletes an interface: it comes back, with the pod's end.
        let host = crate::attachments::host_if(&agent.cni.attachments.all()[0].record.attachment);
        must(&format!("ip link del {host}"));
        let again = pods.clone();
        eventually("the lost interface", move || {
            again[0].pings(PODS[1].2[0]) && again[0].pings(PODS[1].2[1])
        })
        .await;

        for (i, pod) in pods.iter().enumerate() {
            plugin.call("DEL", i, pod.path()).await;
            plugin.call("DEL", i, pod.path()).await;
        }
        assert_eq!(ours(), "");
        assert!(agent.cni.attachments.journal().attachments.list().unwrap().is_empty());
        agent.end().await;
    });
}

#[test]
fn a_del_without_an_agent_is_worked_off_by_the_next_one() {
    on_a_node(async |dir| {
        let plugin = Plugin::build(&dir);
        let store = cluster();
        let agent = Agent::start(&dir, store.clone()).await;
        let pod = PodNamespace::new();
        plugin.call("ADD", 0, pod.path()).await;
        agent.end().await;
        plugin.call("DEL", 0, pod.path()).await;
        assert_ne!(ours(), "", "nobody was there to remove it");

        let agent = Agent::start(&dir, store).await;
        assert_eq!(ours(), "");
        let journal = agent.cni.attachments.journal();
        assert!(
            journal.attachments.list().unwrap().is_empty() && journal.pending_dels.list().unwrap().is_empty()
        );
        agent.end().await;
    });
}

#[test]
fn an_interface_whose_container_vanished_is_swept() {
    on_a_node(async |dir| {
        let plugin = Plugin::build(&dir);
        let agent = Agent::start(&dir, cluster()).await;
        let pod = PodNamespace::new();
        plugin.call("ADD", 0, pod.path()).await;
        drop(pod);
        eventually("the pair to go with its namespace", || !ours().contains("braid")).await;
        let proof = Informers::default().in_sync().await;
        assert!(sweep::once(&agent.cni, proof).await, "everything could be removed");
        assert!(agent.cni.attachments.all().is_empty());
        assert_eq!(ours(), "");
        agent.end().await;
    });
}
