//! A cluster as tests see it: what a person does with `e2e/sandbox` and kubectl, as methods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client::{Client, Query, condition};
use crate::cluster::{self, Cluster};
use crate::exec::{checked, for_all, output, run, run_with_input};
use crate::inspect;
use crate::network;
use crate::options::Options;
use crate::parts::repository;
use crate::registry;
use crate::supervisor::Verb;

/// What a component does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// Its process lives.
    Running,
    /// It is about to be started: after a crash, or because something it needs is not there.
    Waiting,
    /// It was stopped by order.
    Stopped,
}

/// One component of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// `etcd`, `apiserver`, `kubelet@node1`...
    pub name: String,
    /// What it does.
    pub state: ComponentState,
    /// Starts after the first one.
    pub restarts: u32,
    /// Process number inside its own process namespace.
    pub pid: Option<i32>,
}

/// A running cluster. Dropping it leaves the cluster up; [`Sandbox::down`] removes it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    cluster: Cluster,
}

impl Sandbox {
    /// The folder of the cluster `name`: below `BRAID_SANDBOX_DIR`, or `target/sandbox` of this repository.
    #[must_use]
    pub fn dir_of(name: &str) -> PathBuf {
        let base = std::env::var_os("BRAID_SANDBOX_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let base = base.unwrap_or_else(|| repository().join("target/sandbox"));
        // Supervisors and nodes have other working folders than the caller.
        std::path::absolute(&base).unwrap_or(base).join(name)
    }

    /// Brings the cluster up; one that is up with these options is left as it is.
    ///
    /// # Errors
    /// When it cannot come up, with what is known about the reason, or when it is up with other options.
    pub fn up(name: &str, options: &Options) -> Result<Self> {
        Ok(Self { cluster: cluster::up(name, &Self::dir_of(name), options)? })
    }

    /// As [`Sandbox::up`], but a cluster with other options is replaced.
    ///
    /// # Errors
    /// When the cluster cannot come up.
    pub fn ensure(name: &str, options: &Options) -> Result<Self> {
        if let Ok(running) = Self::attach(name)
            && running.cluster.options != *options
        {
            Self::down(name)?;
        }
        Self::up(name, options)
    }

    /// The cluster of this name, as it is.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(name: &str) -> Result<Self> {
        Ok(Self { cluster: Cluster::find(name)? })
    }

    /// Removes the cluster and every trace of it; none of this name is fine.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn down(name: &str) -> Result<()> {
        cluster::down(name, &Self::dir_of(name))
    }

    /// The clusters of this machine: each name with what is left of its cluster, by name.
    #[must_use]
    pub fn list() -> Vec<(String, String)> {
        let mut names = registry::names();
        names.sort();
        names.into_iter().map(|name| (name.clone(), inspect::remains(&name))).collect()
    }

    /// Name of the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.cluster.layout.name
    }

    /// What the cluster was asked to be.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.cluster.options
    }

    /// Names of the nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.cluster.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// A kubeconfig with all rights, for use on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.layout.kubeconfig()
    }

    /// A kubectl call to be finished by the caller.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        self.cluster.kubectl()
    }

    /// Runs kubectl and returns what happened, whatever it is.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        output(self.cluster.kubectl().args(arguments))
    }

    /// Runs kubectl, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.cluster.kubectl().args(arguments))
    }

    /// What kubectl prints for these arguments with `-o json`. A `get` is answered by a client in this process, everything
    /// else by kubectl. A single object that is not there is null with `--ignore-not-found`.
    ///
    /// # Errors
    /// When it fails, in kubectl's words, or no JSON is printed.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        if let Some(query) = Query::parse(arguments) {
            return self.client()?.get(&query).with_context(|| format!("kubectl {}", arguments.join(" ")));
        }
        let text = run(self.cluster.kubectl().args(arguments).args(["-o", "json"]))?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// Looks at what [`Sandbox::kubectl_json`] returns for a `get`, at first and whenever it has changed, until `look`
    /// returns something. An error of `look`, or of the API server, is no end: the next state may be better. Changes
    /// come from a watch where the call is about one object or all of one kind.
    ///
    /// # Errors
    /// When nothing is returned within `limit`: the last error, or what was seen last; `what` names the wish.
    pub fn await_state<T>(
        &self,
        what: &str,
        arguments: &[&str],
        limit: Duration,
        look: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<T> {
        let query = Query::parse(arguments);
        let query =
            query.with_context(|| format!("no state to wait for: kubectl {}", arguments.join(" ")))?;
        self.client()?.await_state(what, &query, limit, look)
    }

    fn client(&self) -> Result<std::sync::Arc<Client>> {
        Client::of(self.name(), &self.kubeconfig())
    }

    /// Applies manifests, YAML or JSON.
    ///
    /// # Errors
    /// When the API server refuses them, with its words.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut apply = self.cluster.kubectl();
        run_with_input(apply.args(["apply", "--server-side", "-f", "-"]), manifests.as_bytes())
    }

    /// Runs a command in all namespaces of a node and returns what happened.
    ///
    /// # Errors
    /// When the node is not running or the command cannot be started.
    pub fn node_exec_output(&self, node: &str, argv: &[&str]) -> Result<Output> {
        output(&mut self.cluster.in_node(node, argv)?)
    }

    /// Runs a command in all namespaces of a node, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn node_exec(&self, node: &str, argv: &[&str]) -> Result<String> {
        run(&mut self.cluster.in_node(node, argv)?)
    }

    /// A call into a node to be finished by the caller, for long-running commands.
    ///
    /// # Errors
    /// When the node is not running.
    pub fn node_command(&self, node: &str, argv: &[&str]) -> Result<Command> {
        self.cluster.in_node(node, argv)
    }

    /// Runs a command in `fabric` (the bridges), `router`, or a node's network namespace alone.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn netns_exec(&self, scope: &str, argv: &[&str]) -> Result<String> {
        run(&mut self.netns_command(scope, argv))
    }

    /// As [`Sandbox::netns_exec`], to be finished by the caller.
    #[must_use]
    pub fn netns_command(&self, scope: &str, argv: &[&str]) -> Command {
        network::in_netns(&self.cluster.layout.netns(scope), argv)
    }

    /// Runs a command in a pod's first container and returns what happened.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn pod_exec_output(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<Output> {
        output(self.cluster.kubectl().args(["-n", namespace, "exec", pod, "--"]).args(argv))
    }

    /// Runs a command in a pod's first container, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn pod_exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<String> {
        let output = self.pod_exec_output(namespace, pod, argv)?;
        checked(&format!("{} in pod {namespace}/{pod}", argv.join(" ")), &output)
    }

    /// Waits until a condition of an object holds: `await_condition("default", "pod/a", "Ready", limit)`. The object need
    /// not be there yet.
    ///
    /// # Errors
    /// When it does not within `limit`, with the object's description.
    pub fn await_condition(
        &self,
        namespace: &str,
        object: &str,
        condition: &str,
        limit: Duration,
    ) -> Result<()> {
        let get = ["-n", namespace, "get", object];
        let what = format!("condition {condition} of {object}");
        self.await_state(&what, &get, limit, |found| Ok(condition::holds(found, condition).then_some(())))
            .with_context(|| {
                let description = self.kubectl(&["-n", namespace, "describe", object]).unwrap_or_default();
                format!("{object} is not {condition}\n{description}")
            })
    }

    /// The addresses of a pod, once it has been given as many as the cluster has families.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn pod_addresses(
        &self,
        namespace: &str,
        pod: &str,
        limit: Duration,
    ) -> Result<Vec<std::net::IpAddr>> {
        let wanted = self.cluster.options.families().len();
        let get = ["-n", namespace, "get", "pod", pod];
        self.await_state(&format!("addresses of pod {namespace}/{pod}"), &get, limit, |object| {
            let list = object["status"]["podIPs"].as_array().cloned().unwrap_or_default();
            let addresses: Vec<_> = list
                .iter()
                .filter_map(|entry| entry["ip"].as_str())
                .filter_map(|ip| ip.parse().ok())
                .collect();
            Ok((addresses.len() >= wanted).then_some(addresses))
        })
    }

    /// Imports a docker-archive into the container runtime of every running node.
    ///
    /// # Errors
    /// When a runtime refuses it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        for_all(&self.cluster.nodes, |node| self.cluster.load(node, archive))
    }

    /// Has Braid's programs run from the image in `target/images`, where the cluster has an older one.
    ///
    /// # Errors
    /// When the image cannot be loaded, or the programs do not come up with it.
    pub fn refresh_image(&self) -> Result<()> {
        cluster::refresh_image(&self.cluster)
    }

    /// A number below `count` for the files of this cluster: the next one at each call, and after the last the first again.
    pub(crate) fn next_number(&self, count: u32) -> Result<u32> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.cluster.layout.dir.join("next-number");
        let last = fs::read_to_string(&file).ok().and_then(|text| text.parse::<u32>().ok());
        let next = last.map_or(0, |last| (last + 1) % count);
        fs::write(&file, next.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(next)
    }

    /// Ends a component with SIGKILL; it comes back as after any crash. For a node's name: the node loses power and is
    /// booted again.
    ///
    /// # Errors
    /// When there is no such component.
    pub fn kill(&self, component: &str) -> Result<()> {
        self.cluster.order(Verb::Kill, component)
    }

    /// Ends a component in an orderly way and starts it again.
    ///
    /// # Errors
    /// When there is no such component.
    pub fn restart(&self, component: &str) -> Result<()> {
        self.cluster.order(Verb::Restart, component)
    }

    /// Ends a component and keeps it down; for a node's name, powers the node off.
    ///
    /// # Errors
    /// When there is no such component.
    pub fn stop(&self, component: &str) -> Result<()> {
        self.cluster.order(Verb::Stop, component)
    }

    /// Starts what [`Sandbox::stop`] ended.
    ///
    /// # Errors
    /// When there is no such component.
    pub fn start(&self, component: &str) -> Result<()> {
        self.cluster.order(Verb::Start, component)
    }

    /// Cuts two nodes off from each other; everything else stays connected.
    ///
    /// # Errors
    /// When a node does not exist.
    pub fn partition(&self, a: &str, b: &str) -> Result<()> {
        let (a, b) = self.pair(a, b)?;
        network::partition(&self.cluster.layout, a, b, self.cluster.options.families())
    }

    /// Undoes [`Sandbox::partition`].
    ///
    /// # Errors
    /// When a node does not exist.
    pub fn heal(&self, a: &str, b: &str) -> Result<()> {
        let (a, b) = self.pair(a, b)?;
        network::heal(&self.cluster.layout, a, b)
    }

    fn pair(&self, a: &str, b: &str) -> Result<(&crate::layout::Node, &crate::layout::Node)> {
        ensure!(a != b, "{a} cannot be cut off from itself");
        Ok((self.cluster.node(a)?, self.cluster.node(b)?))
    }

    /// All components with what they do.
    #[must_use]
    pub fn components(&self) -> Vec<Component> {
        let known = inspect::components(&self.cluster).into_iter();
        known
            .map(|status| Component {
                state: match status.state.as_str() {
                    "running" => ComponentState::Running,
                    "stopped" => ComponentState::Stopped,
                    _ => ComponentState::Waiting,
                },
                name: status.component,
                restarts: status.restarts,
                pid: status.pid,
            })
            .collect()
    }

    /// The log file of a component.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.cluster.layout.logs().join(format!("{component}.log"))
    }

    /// Writes everything that helps to understand a failure into a gzipped tar.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn bundle(&self, out: &Path) -> Result<()> {
        inspect::bundle(&self.cluster, out)
    }

    /// Prints the state of the cluster, for people or as JSON.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn print_status(&self, as_json: bool) -> Result<()> {
        let status = inspect::status(&self.cluster);
        if as_json {
            println!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            inspect::print_status(&status);
        }
        Ok(())
    }

    /// Prints the log of one component, or the last lines of all.
    ///
    /// # Errors
    /// When there is no such log.
    pub fn print_logs(&self, component: Option<&str>) -> Result<()> {
        inspect::print_logs(&self.cluster, component)
    }
}

/// Keeps a bundle under `target/e2e/<test>.tar.gz` when the test that holds it fails.
#[derive(Debug)]
pub struct BundleOnFailure<'a> {
    sandbox: &'a Sandbox,
    test: String,
}

impl<'a> BundleOnFailure<'a> {
    /// Watches over the test of this name until it is dropped.
    #[must_use]
    pub fn new(sandbox: &'a Sandbox, test: &str) -> Self {
        Self { sandbox, test: test.to_owned() }
    }

    /// The file that a failure leaves.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        repository().join("target/e2e").join(format!("{}.tar.gz", self.test))
    }
}

impl Drop for BundleOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            match self.sandbox.bundle(&self.path()) {
                Ok(()) => eprintln!("the state of the cluster is in {}", self.path().display()),
                Err(error) => eprintln!("the state of the cluster could not be kept: {error:#}"),
            }
        }
    }
}
