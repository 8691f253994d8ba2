//! Bringing a cluster up and taking it down.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::components::{ConfigFile, Plan, Programs};
use crate::exec::{
    Progress, checked, command, describe, eventually, for_all, output, require_root, run, run_with_input,
};
use crate::layout::{CONTROL, Layout, Node, nodes};
use crate::options::Options;
use crate::parts::{kubectl, kubectl_json, repository};
use crate::registry;
use crate::supervisor::{Order, Reply, Spec, Verb, send};
use crate::{cgroup, inspect, network, own_images, parts, pki, reference_cni};

/// How long a component may take to become useful on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster with everything that is needed to act on it.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) layout: Layout,
    pub(crate) options: Options,
    pub(crate) programs: Programs,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    fn new(layout: Layout, options: Options, programs: Programs) -> Self {
        let nodes = nodes(&options);
        Self { layout, options, programs, nodes }
    }

    /// The cluster of this name, running or not.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let missing =
            || format!("there is no sandbox '{name}': start one with 'e2e/sandbox up --name {name}'");
        let layout = registry::find(name).with_context(missing)?;
        let Record { options, programs, .. } = Record::read(&layout).with_context(missing)?;
        Ok(Self::new(layout, options, programs))
    }

    pub(crate) fn plan(&self) -> Plan<'_> {
        Plan { layout: &self.layout, options: &self.options, nodes: &self.nodes, programs: &self.programs }
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("there is no node '{name}'; the nodes are {}", names.join(", "))
        })
    }

    /// Names of the supervisors: the control plane's and one per node.
    pub(crate) fn scopes(&self) -> Vec<String> {
        std::iter::once(CONTROL.to_owned()).chain(self.nodes.iter().map(|node| node.name.clone())).collect()
    }

    pub(crate) fn kubectl(&self) -> std::process::Command {
        kubectl(&self.programs, &self.layout.kubeconfig())
    }

    /// A call inside a node: all of its namespaces and its search path.
    pub(crate) fn in_node(&self, node: &str, argv: &[&str]) -> Result<std::process::Command> {
        let node = &self.node(node)?.name;
        let Some(process) = registry::process(&self.layout.name, node) else {
            bail!("{node} is not running: start it with 'e2e/sandbox start {node}'");
        };
        // It answers once it has a file tree of its own; before that, the machine's is still its own.
        send(&registry::socket(&self.layout.name, node), &Order::Status)
            .with_context(|| format!("{node} does not start"))?;
        let pid = process.pid.to_string();
        let mut call =
            command(["nsenter", "--target", &pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        call.args(argv).env("PATH", self.plan().path()).env("CONTAINERD_NAMESPACE", "k8s.io");
        Ok(call)
    }

    fn is_whole(&self) -> bool {
        self.scopes().iter().all(|scope| registry::process(&self.layout.name, scope).is_some())
    }

    /// Imports an image archive into one node's container runtime.
    pub(crate) fn load(&self, node: &Node, archive: &Path) -> Result<()> {
        let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        let mut import = self.in_node(&node.name, &["ctr", "-n", "k8s.io", "images", "import", "-"])?;
        import.stdin(Stdio::from(file));
        let what = format!("loading {} into {}", archive.display(), node.name);
        checked(&what, &output(&mut import)?).map(drop)
    }

    /// Gives an order to one component, or to a whole node.
    pub(crate) fn order(&self, verb: Verb, component: &str) -> Result<()> {
        if let Ok(node) = self.node(component) {
            return self.order_node(verb, node);
        }
        let (unit, scope) = component.split_once('@').unwrap_or((component, CONTROL));
        let unit = unit.strip_prefix("kube-").filter(|_| scope == CONTROL).unwrap_or(unit);
        ensure!(
            self.scopes().iter().any(|known| known == scope),
            "there is no component '{component}': see 'e2e/sandbox status'"
        );
        let order = Order::Unit(verb, unit.to_owned());
        send(&registry::socket(&self.layout.name, scope), &order)
            .with_context(|| format!("cannot {verb} {component}"))
            .map(drop)
    }

    /// Powers a node off or on. A node comes back with its disk, but with a new kernel's empty network.
    fn order_node(&self, verb: Verb, node: &Node) -> Result<()> {
        ensure!(node.number != 1, "node1 carries the control plane: stop its components one by one instead");
        if verb != Verb::Start
            && let Some(process) = registry::process(&self.layout.name, &node.name)
        {
            process.kill();
            eventually(&format!("end of {}", node.name), PATIENCE, || {
                Ok((!process.is_alive()).then_some(()))
            })?;
            // A kubelet that finds the cgroups of containers from before spends seconds on each.
            cgroup::remove(&self.layout.cgroup(&node.name))?;
        }
        if verb == Verb::Stop || registry::process(&self.layout.name, &node.name).is_some() {
            return Ok(());
        }
        cgroup::create(&self.layout.cgroup(&node.name))?;
        network::reset_node(&self.layout, node)?;
        network::create_node(&self.layout, &self.options, node)?;
        start_supervisor(&self.layout, &self.plan().node(node))?;
        if self.options.no_braid { reference_cni::install(&self.plan()) } else { Ok(()) }
    }

    /// Waits until every node can run pods.
    fn await_nodes(&self) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"];
        run(self.kubectl().args(wait)).context("not every node became Ready").map(drop)
    }
}

/// What a cluster was made of, kept in its folder.
#[derive(Serialize, Deserialize)]
struct Record {
    options: Options,
    programs: Programs,
    /// Whether `up` came to its end; a cluster that stopped halfway is made anew by the next one.
    complete: bool,
}

impl Record {
    fn file(layout: &Layout) -> PathBuf {
        layout.dir.join("cluster.json")
    }

    fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(layout)).ok()?).ok()
    }

    fn write(cluster: &Cluster, complete: bool) -> Result<()> {
        let record = Self { options: cluster.options.clone(), programs: cluster.programs.clone(), complete };
        fs::write(Self::file(&cluster.layout), serde_json::to_vec_pretty(&record)?)
            .context("cannot write what the cluster is made of")
    }
}

/// Makes the cluster exist and be usable. A cluster that is up already is left as it is; remains of a broken one are
/// removed first.
pub(crate) fn up(name: &str, dir: &Path, options: &Options) -> Result<Cluster> {
    require_root()?;
    registry::check_name(name)?;
    options.validate()?;
    let progress = Progress::start();
    let (programs, images) = prepare(options, &progress)?;
    let braid = braid_image();
    ensure!(
        options.no_braid || braid.exists(),
        "{} does not exist: run 'make images' first, or use --no-braid",
        braid.display()
    );
    let claim = registry::claim(name, dir)?;
    let cluster = Cluster::new(claim.layout.clone(), options.clone(), programs);
    if let Some(Record { options: running, complete: true, .. }) = Record::read(&cluster.layout)
        && cluster.is_whole_as(&running)
    {
        ensure!(
            running == *options,
            "the sandbox '{name}' is up with other options; end it with 'e2e/sandbox down --name {name}' first"
        );
        progress.step("the cluster is up already");
        return settle(&cluster, &progress, &braid, false).map(|()| cluster);
    }
    if has_remains(&cluster.layout) {
        progress.step("removing what an earlier run left");
        remove_everything(&cluster.layout)?;
    }
    create(cluster, &progress, &images, &braid)
}

/// What the machine needs for any cluster: packages, programs and images. Several clusters may come up at once, and apt-get
/// refuses to run beside itself.
fn prepare(options: &Options, progress: &Progress) -> Result<(Programs, PathBuf)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    parts::install_packages(options.runtime, progress)?;
    let images = own_images::archive(options.dns).context("cannot make the sandbox's own images")?;
    Ok((parts::programs()?, images))
}

/// The image of this source, as `make images` leaves it.
fn braid_image() -> PathBuf {
    repository().join("target/images/braid.tar")
}

impl Cluster {
    fn is_whole_as(&self, options: &Options) -> bool {
        Self::new(self.layout.clone(), options.clone(), self.programs.clone()).is_whole()
    }
}

fn create(cluster: Cluster, progress: &Progress, images: &Path, braid: &Path) -> Result<Cluster> {
    let result = write_files(&cluster)
        .and_then(|()| build(&cluster, progress, images))
        .and_then(|()| settle(&cluster, progress, braid, true))
        .and_then(|()| Record::write(&cluster, true));
    match result {
        Ok(()) => Ok(cluster),
        Err(error) => bail!("the sandbox did not come up: {error:#}\n{}", inspect::diagnose(&cluster)),
    }
}

fn write_files(cluster: &Cluster) -> Result<()> {
    let layout = &cluster.layout;
    for dir in
        [layout.dir.clone(), layout.logs(), layout.config(), registry::folder(&layout.name).join("root")]
    {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    Record::write(cluster, false)?;
    pki::create(layout, &cluster.nodes, cluster.options.families()).context("cannot make certificates")?;
    let plan = cluster.plan();
    let mut files: Vec<ConfigFile> = plan.control_files();
    for node in &cluster.nodes {
        files.extend(plan.node_files(node));
    }
    for file in files {
        fs::write(&file.path, file.text).with_context(|| format!("cannot write {}", file.path.display()))?;
    }
    Ok(())
}

/// How many inotify instances one user may have at least: every kubelet and container runtime takes several, and
/// Debian's limit of 128 is used up by three clusters.
const INOTIFY_INSTANCES: u32 = 1024;

/// Raises the limit of the machine; it is never lowered. Where that is refused, a single cluster still fits.
fn allow_many_watches() {
    let limit = "/proc/sys/fs/inotify/max_user_instances";
    let known = fs::read_to_string(limit).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if known.is_some_and(|known| known < INOTIFY_INSTANCES) {
        let _ = fs::write(limit, INOTIFY_INSTANCES.to_string());
    }
}

fn build(cluster: &Cluster, progress: &Progress, images: &Path) -> Result<()> {
    let layout = &cluster.layout;
    let plan = cluster.plan();
    allow_many_watches();
    network::create(layout, &cluster.options, &cluster.nodes).context("cannot build the network")?;
    for node in &cluster.nodes {
        cgroup::create(&layout.cgroup(&node.name))?;
        reference_cni::install_plugins(&plan, node)?;
    }
    progress.step(&format!("network, certificates and {} nodes' folders made", cluster.nodes.len()));
    let mut specs = vec![plan.control()];
    specs.extend(cluster.nodes.iter().map(|node| plan.node(node)));
    for_all(&specs, |spec| start_supervisor(layout, spec))?;
    progress.step("control plane, container runtimes and kubelets started");
    for_all(&cluster.nodes, |node| {
        eventually(&format!("container runtime of {}", node.name), PATIENCE, || {
            run(&mut cluster.in_node(&node.name, &["ctr", "version"])?).map(Some)
        })?;
        cluster.load(node, images)
    })?;
    progress.step("images loaded");
    Ok(())
}

/// Starts the first process of a scope in namespaces of its own and waits until it takes orders.
pub(crate) fn start_supervisor(layout: &Layout, spec: &Spec) -> Result<()> {
    let file = layout.spec_file(&spec.scope);
    fs::write(&file, serde_json::to_vec_pretty(spec)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let log_path = layout.logs().join(format!("{}.log", spec.scope));
    let log = File::options().create(true).append(true).open(&log_path)?;
    let netns_of = if spec.scope == CONTROL { "node1" } else { &spec.scope };
    let netns = format!("--net={}", layout.netns_path(netns_of).display());
    let mut start =
        command(["setsid", "nsenter", &netns, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"]);
    start.args(["--kill-child", "--"]).arg(own_program()?).arg("supervise").arg(&file);
    start.stdout(log.try_clone()?).stderr(log);
    let _ = fs::remove_file(&spec.socket);
    let mut child = start.spawn().with_context(|| format!("cannot start '{}'", describe(&start)))?;
    eventually(&format!("supervisor of {}", spec.scope), Duration::from_secs(30), || {
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}): {}", inspect::tail(&log_path, 5));
        }
        send(&spec.socket, &Order::Status).map(Some)
    })
    .map(drop)
}

/// The `sandbox` program: this one, or the one beside the test that runs.
fn own_program() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find the running program")?;
    if me.file_name().is_some_and(|name| name == "sandbox") {
        return Ok(me);
    }
    let beside = me.ancestors().skip(1).map(|folder| folder.join("sandbox")).find(|path| path.is_file());
    beside.context("the program 'sandbox' is not built: cargo build -p braid-e2e --bin sandbox")
}

/// Everything after the components run: a pod network, Ready nodes, and what pods need to start.
fn settle(cluster: &Cluster, progress: &Progress, braid: &Path, fresh: bool) -> Result<()> {
    start_stopped(cluster)?;
    eventually("API server", PATIENCE, || run(cluster.kubectl().args(["get", "--raw=/readyz"])).map(Some))?;
    progress.step("API server ready");
    let wanted = cluster.nodes.len();
    eventually("registration of all nodes", PATIENCE, || {
        let nodes = kubectl_json(&cluster.programs, &cluster.layout.kubeconfig(), &["get", "nodes"])?;
        Ok((nodes["items"].as_array().map_or(0, Vec::len) >= wanted).then_some(()))
    })?;
    eventually("default service account", PATIENCE, || {
        run(cluster.kubectl().args(["get", "serviceaccount", "default"])).map(Some)
    })?;
    if cluster.options.no_braid {
        reference_cni::install(&cluster.plan())?;
    } else if fresh {
        install_braid(cluster, progress, braid)?;
    }
    if cluster.options.dns {
        let mut apply = cluster.kubectl();
        apply.args(["apply", "--server-side", "-f", "-"]);
        run_with_input(&mut apply, include_bytes!("../images/coredns.yaml"))
            .context("cannot install CoreDNS")?;
    }
    cluster.await_nodes()?;
    progress.step(&format!("{wanted} nodes Ready"));
    if !cluster.options.no_braid {
        await_braid(cluster)?;
        progress.step("Braid available");
    } else if cluster.options.dns {
        await_rollout(cluster, "kube-system", "deployment/coredns")?;
        progress.step("CoreDNS available");
    }
    Ok(())
}

fn start_stopped(cluster: &Cluster) -> Result<()> {
    for scope in cluster.scopes() {
        let socket = registry::socket(&cluster.layout.name, &scope);
        let Reply::Status(components) = send(&socket, &Order::Status)? else { continue };
        for component in components.iter().filter(|component| component.state == "stopped") {
            cluster.order(Verb::Start, &component.component)?;
        }
    }
    Ok(())
}

/// Installs Braid as its users do.
fn install_braid(cluster: &Cluster, progress: &Progress, braid: &Path) -> Result<()> {
    for_all(&cluster.nodes, |node| cluster.load(node, braid))?;
    fs::write(image_stamp(cluster), digest_of(braid)?).context("cannot note which image is loaded")?;
    if !cluster.options.settings.is_empty() {
        configure_braid(cluster)?;
    }
    let manifests = repository().join("config/default");
    let mut apply = cluster.kubectl();
    run(apply.args(["apply", "--server-side", "-k"]).arg(&manifests)).context("cannot install Braid")?;
    progress.step("Braid's image loaded and its manifests applied");
    Ok(())
}

/// What the cluster was asked to set differently, where Braid's programs look for it when they start.
fn configure_braid(cluster: &Cluster) -> Result<()> {
    let data: BTreeMap<_, _> = cluster.options.settings.iter().cloned().collect();
    let meta = json!({"name": "braid-config", "namespace": "braid-system"});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "braid-system"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}),
    ];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let mut apply = cluster.kubectl();
    apply.args(["apply", "--server-side", "-f", "-"]);
    run_with_input(&mut apply, list.as_bytes()).context("cannot configure Braid").map(drop)
}

fn image_stamp(cluster: &Cluster) -> PathBuf {
    cluster.layout.dir.join("loaded-image")
}

fn digest_of(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Has Braid's programs run from the image that lies there now. A cluster may be older than the image: then tests would pass
/// or fail for yesterday's programs.
pub(crate) fn refresh_image(cluster: &Cluster) -> Result<()> {
    let archive = braid_image();
    let (digest, stamp) = (digest_of(&archive)?, image_stamp(cluster));
    if fs::read_to_string(&stamp).is_ok_and(|known| known == digest) {
        return Ok(());
    }
    for_all(&cluster.nodes, |node| cluster.load(node, &archive))?;
    for object in ["deployment/braid-controller", "daemonset/braid-node"] {
        run(cluster.kubectl().args(["-n", "braid-system", "rollout", "restart", object]))?;
        await_rollout(cluster, "braid-system", object)?;
    }
    fs::write(&stamp, digest).with_context(|| format!("cannot write {}", stamp.display()))
}

fn await_braid(cluster: &Cluster) -> Result<()> {
    await_rollout(cluster, "braid-system", "daemonset/braid-node")?;
    await_rollout(cluster, "braid-system", "deployment/braid-controller")
}

fn await_rollout(cluster: &Cluster, namespace: &str, object: &str) -> Result<()> {
    let wait = ["-n", namespace, "rollout", "status", object, "--timeout=180s"];
    run(cluster.kubectl().args(wait)).with_context(|| format!("{object} did not become available")).map(drop)
}

fn has_remains(layout: &Layout) -> bool {
    layout.dir.exists() || cgroup::exists(&layout.cgroup_root()) || !network::existing(layout).is_empty()
}

/// Ends the cluster and removes every trace of it. A cluster that does not exist is fine.
pub(crate) fn down(name: &str, dir: &Path) -> Result<()> {
    require_root()?;
    registry::check_name(name)?;
    let progress = Progress::start();
    let dir = registry::find(name).map_or_else(|| dir.to_owned(), |layout| layout.dir);
    let claim = registry::claim(name, &dir)?;
    remove_everything(&claim.layout)?;
    registry::forget(&claim)?;
    progress.step(&format!("sandbox '{name}' removed"));
    Ok(())
}

fn remove_everything(layout: &Layout) -> Result<()> {
    let mut processes = registry::processes(&layout.name);
    processes.extend(registry::unrecorded(layout));
    for process in &processes {
        // The kernel ends everything else in the process namespace with its first process.
        process.kill();
    }
    for process in &processes {
        eventually("end of a supervisor", Duration::from_secs(30), || {
            Ok((!process.is_alive()).then_some(()))
        })?;
    }
    network::remove(layout)?;
    cgroup::remove(&layout.cgroup_root())?;
    if layout.dir.exists() {
        fs::remove_dir_all(&layout.dir).with_context(|| format!("cannot remove {}", layout.dir.display()))?;
    }
    Ok(())
}
