//! Braid's own programs as tests handle them: found by kubectl, killed on their node.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::stage::{PATIENCE, Stage, items, text};

/// One of Braid's programs on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its pod.
    pub pod: String,
    /// The node.
    pub node: String,
    /// Id of the running container, which changes with every start.
    pub container: String,
    /// Whether it says that it is ready.
    pub ready: bool,
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `braid-controller`, on some nodes.
    Controller,
    /// `braid-node`, on every node.
    Agent,
}

impl Program {
    /// Name of the program, and of the label of its pods.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "braid-controller",
            Self::Agent => "braid-node",
        }
    }
}

/// The label of a program's pods.
fn label_of(program: Program) -> String {
    format!("app.kubernetes.io/name={}", program.name())
}

/// The programs in a list of their pods, without those on their way out.
fn alive(pods: &Value) -> Vec<Daemon> {
    let pods = items(&pods["items"]);
    let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    alive
        .map(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            Daemon {
                pod: text(&pod["metadata"]["name"]),
                node: text(&pod["spec"]["nodeName"]),
                container: text(&container["containerID"]),
                ready: container["ready"] == true,
            }
        })
        .collect()
}

impl Stage {
    /// Where a program runs.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn daemons(&self, program: Program) -> Result<Vec<Daemon>> {
        let label = label_of(program);
        let pods = self.sandbox().kubectl_json(&["-n", "braid-system", "get", "pods", "-l", &label])?;
        Ok(alive(&pods))
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When the node has none.
    pub fn agent(&self, node: &str) -> Result<Daemon> {
        let agents = self.daemons(Program::Agent)?;
        agents.into_iter().find(|agent| agent.node == node).with_context(|| format!("no agent on {node}"))
    }

    /// The process of a program, in the process namespace of its node, as the container runtime has it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, daemon: &Daemon) -> Result<String> {
        let tasks = self.sandbox().node_exec(&daemon.node, &["ctr", "-n", "k8s.io", "tasks", "list"])?;
        let id = daemon.container.trim_start_matches("containerd://");
        let running = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        running
            .filter(|fields| fields.first() == Some(&id) && fields.get(2) == Some(&"RUNNING"))
            .find_map(|fields| fields.get(1).map(|&pid| pid.to_owned()))
            .with_context(|| format!("{} on {} does not run", daemon.pod, daemon.node))
    }

    /// Ends a program on a node with SIGKILL, as the kernel does when memory is short.
    ///
    /// # Errors
    /// When it does not run there.
    pub fn kill_daemon(&self, program: Program, node: &str) -> Result<()> {
        self.must_be_alone();
        let daemons = self.daemons(program)?;
        let here = daemons.iter().find(|daemon| daemon.node == node);
        let pid = self.pid(here.with_context(|| format!("no {} on {node}", program.name()))?)?;
        self.sandbox().node_exec(node, &["kill", "-9", &pid]).map(drop)
    }

    /// Waits until a node's agent is another process than `before` and ready.
    ///
    /// # Errors
    /// When it is not within the deadline.
    pub fn await_new_agent(&self, before: &Daemon) -> Result<()> {
        let label = label_of(Program::Agent);
        let get = ["-n", "braid-system", "get", "pods", "-l", &label];
        self.sandbox().await_state(&format!("a new agent on {}", before.node), &get, PATIENCE, |pods| {
            let now = alive(pods).into_iter().find(|agent| agent.node == before.node);
            let now = now.with_context(|| format!("no agent on {}", before.node))?;
            Ok((now.ready && now.container != before.container).then_some(()))
        })
    }

    /// Kills a node's agent and waits until the next one is ready.
    ///
    /// # Errors
    /// When none is within the deadline.
    pub fn replace_agent(&self, node: &str) -> Result<()> {
        let before = self.agent(node)?;
        ensure!(!before.container.is_empty(), "the agent on {node} has not started");
        self.kill_daemon(Program::Agent, node)?;
        self.await_new_agent(&before)
    }

    /// Sets the number of controllers, and waits until that many are there.
    ///
    /// # Errors
    /// When they are not within the deadline.
    pub fn scale_controllers(&self, replicas: u32) -> Result<()> {
        self.must_be_alone();
        let to = format!("--replicas={replicas}");
        self.sandbox().kubectl(&["-n", "braid-system", "scale", "deployment/braid-controller", &to])?;
        let label = label_of(Program::Controller);
        let get = ["-n", "braid-system", "get", "pods", "-l", &label];
        self.sandbox().await_state(&format!("{replicas} controllers"), &get, PATIENCE, |pods| {
            let pods = items(&pods["items"]);
            let ready =
                pods.iter().filter(|pod| pod["status"]["containerStatuses"][0]["ready"] == true).count();
            Ok((u32::try_from(pods.len()) == Ok(replicas) && ready == pods.len()).then_some(()))
        })
    }

    /// A figure of a program's `/metrics`, summed over its labels; `None` when it is not there.
    ///
    /// # Errors
    /// When the program does not answer.
    pub fn metric(&self, program: Program, node: &str, name: &str) -> Result<Option<f64>> {
        let figures = self.figures(program, node)?;
        let of_name = figures.iter().filter(|(series, _)| series.split('{').next() == Some(name));
        let values: Vec<f64> = of_name.map(|(_, value)| *value).collect();
        Ok((!values.is_empty()).then(|| values.iter().sum()))
    }

    /// All figures of a program's `/metrics`, by name and labels as they are printed: `name{label="value"}`.
    ///
    /// # Errors
    /// When the program does not answer.
    pub fn figures(&self, program: Program, node: &str) -> Result<BTreeMap<String, f64>> {
        let port = match program {
            Program::Controller => 9430,
            Program::Agent => 9431,
        };
        let url = format!("http://127.0.0.1:{port}/metrics");
        let printed = self.sandbox().node_exec(node, &["curl", "-sS", "-m", "5", &url])?;
        let figures = printed.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Ok(figures.collect())
    }
}
