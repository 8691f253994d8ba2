//! The first process of a node (or of the control plane): it keeps the components running, reaps what they leave
//! behind, and takes orders over a socket. When it ends, the kernel ends everything in its process namespace.

mod protocol;
mod state;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub(crate) use protocol::{ComponentStatus, Order, Reply, Verb, send};
use state::{Phase, State};

use crate::node_root::{self, NodeRoot};
use crate::registry::Process;

/// One program to keep running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// Name without the node: `kubelet`.
    pub(crate) name: String,
    pub(crate) argv: Vec<String>,
    /// A Unix socket or a TCP address that must take connections before the start: a kubelet that finds no container
    /// runtime ends for good.
    pub(crate) after: Option<Endpoint>,
}

/// Something that takes connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(std::net::SocketAddr),
}

impl Endpoint {
    fn answers(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(address) => {
                std::net::TcpStream::connect_timeout(address, Duration::from_millis(200)).is_ok()
            }
        }
    }
}

/// What a supervisor is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// `control` or the node's name.
    pub(crate) scope: String,
    pub(crate) socket: PathBuf,
    pub(crate) pid_file: PathBuf,
    pub(crate) logs: PathBuf,
    /// Search path of the components.
    pub(crate) path: String,
    /// The node's own file tree; the control plane shares the machine's.
    pub(crate) root: Option<NodeRoot>,
    pub(crate) units: Vec<Unit>,
}

impl Spec {
    /// The log file of a component: `etcd.log`, `kubelet@node1.log`.
    pub(crate) fn log_file(&self, unit: &str) -> PathBuf {
        self.logs.join(format!("{}.log", component_name(&self.scope, unit)))
    }
}

/// The name that people use for a component.
pub(crate) fn component_name(scope: &str, unit: &str) -> String {
    if scope == crate::layout::CONTROL { unit.to_owned() } else { format!("{unit}@{scope}") }
}

enum Event {
    Exited(Pid, String),
    Order(Order, Sender<Reply>),
}

/// Body of `sandbox supervise <spec>`: must be the first process of a new process and mount namespace.
///
/// # Errors
/// When the node's file tree cannot be built or the specification cannot be read.
pub fn supervise(spec_file: &Path) -> Result<()> {
    let text = fs::read(spec_file).with_context(|| format!("cannot read {}", spec_file.display()))?;
    let spec: Spec = serde_json::from_slice(&text).context("cannot understand the specification")?;
    // The machine's /proc is still mounted and numbers this process as the machine sees it.
    let me = Process::current()?;
    fs::write(&spec.pid_file, serde_json::to_vec(&me)?).context("cannot write the pid file")?;
    let _ = fs::remove_file(&spec.socket);
    let listener = UnixListener::bind(&spec.socket).context("cannot listen for orders")?;
    // Log files are opened before the file tree changes, but by path again at each start; both lie in the cluster's
    // folder, which the new tree keeps in its place.
    node_root::enter(&spec.scope, spec.root.as_ref())?;
    let (events, inbox) = mpsc::channel();
    let (spawned, wake_reaper) = mpsc::channel();
    let to_main = events.clone();
    std::thread::spawn(move || reap(&to_main, &wake_reaper));
    std::thread::spawn(move || listen(&listener, &events));
    Supervisor::new(&spec, spawned).run(&inbox);
    Ok(())
}

/// Collects every process that ends, orphans of pods included: this is process 1 of the node.
fn reap(events: &Sender<Event>, wake: &Receiver<()>) {
    loop {
        let (pid, how) = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
            Err(Errno::ECHILD) => {
                // Nothing to wait for until the next start.
                if wake.recv().is_err() {
                    return;
                }
                continue;
            }
            _ => continue,
        };
        if events.send(Event::Exited(pid, how)).is_err() {
            return;
        }
    }
}

fn listen(listener: &UnixListener, events: &Sender<Event>) {
    for stream in listener.incoming().flatten() {
        let events = events.clone();
        std::thread::spawn(move || {
            // A caller that went away needs no answer.
            let _ = answer(stream, &events);
        });
    }
}

fn answer(mut stream: UnixStream, events: &Sender<Event>) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let (reply, answer) = mpsc::channel();
    events.send(Event::Order(order, reply)).ok().context("the supervisor ended")?;
    let answer = answer.recv()?;
    stream.write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}

struct Supervisor<'a> {
    spec: &'a Spec,
    states: BTreeMap<String, State>,
    /// Orders that are answered when the component has ended.
    waiting: Vec<(String, Sender<Reply>)>,
    spawned: Sender<()>,
}

impl<'a> Supervisor<'a> {
    fn new(spec: &'a Spec, spawned: Sender<()>) -> Self {
        let now = Instant::now();
        let states = spec.units.iter().map(|unit| (unit.name.clone(), State::new(now))).collect();
        Self { spec, states, waiting: Vec::new(), spawned }
    }

    fn run(&mut self, inbox: &Receiver<Event>) {
        loop {
            self.start_due();
            let now = Instant::now();
            let next = self.states.values().filter_map(|state| state.next_step(now)).min();
            let event = match next {
                Some(wait) => match inbox.recv_timeout(wait) {
                    Ok(event) => event,
                    Err(mpsc::RecvTimeoutError::Timeout) => continue,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                },
                None => match inbox.recv() {
                    Ok(event) => event,
                    Err(_) => return,
                },
            };
            match event {
                Event::Exited(pid, how) => self.exited(pid, &how),
                Event::Order(order, reply) => self.obey(&order, reply),
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for unit in &self.spec.units {
            let Some(state) = self.states.get_mut(&unit.name) else { continue };
            if let Some(pid) = state.overdue_stop(now) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if !state.due(now) {
                continue;
            }
            if unit.after.as_ref().is_some_and(|endpoint| !endpoint.answers()) {
                state.not_yet(now);
                continue;
            }
            match spawn(self.spec, unit) {
                Ok(pid) => {
                    state.started(pid, now);
                    let _ = self.spawned.send(());
                }
                Err(error) => {
                    note(self.spec, &unit.name, &format!("cannot start: {error:#}"));
                    state.ended(now);
                }
            }
        }
    }

    fn exited(&mut self, pid: Pid, how: &str) {
        let now = Instant::now();
        let Some((name, state)) = self.states.iter_mut().find(|(_, state)| state.pid() == Some(pid.as_raw()))
        else {
            return;
        };
        note(self.spec, name, &format!("ended with {how}"));
        state.ended(now);
        let name = name.clone();
        let (done, rest) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(waited, _)| *waited == name);
        self.waiting = rest;
        for (_, reply) in Vec::from_iter::<Vec<(String, Sender<Reply>)>>(done) {
            let _ = reply.send(Reply::Done);
        }
    }

    fn obey(&mut self, order: &Order, reply: Sender<Reply>) {
        let now = Instant::now();
        let Order::Unit(verb, name) = order else {
            let list =
                self.states.iter().map(|(name, state)| state.report(&self.spec.scope, name, now)).collect();
            let _ = reply.send(Reply::Status(list));
            return;
        };
        let Some(state) = self.states.get_mut(name) else {
            let _ = reply.send(Reply::Refused(format!("{} has no component '{name}'", self.spec.scope)));
            return;
        };
        let pid = state.pid().map(Pid::from_raw);
        note(self.spec, name, &format!("ordered to {verb}"));
        state.order(*verb, now);
        match (verb, pid) {
            (Verb::Stop | Verb::Restart, Some(pid)) => {
                let _ = kill(pid, Signal::SIGTERM);
                self.waiting.push((name.clone(), reply));
            }
            (Verb::Kill, Some(pid)) => {
                let _ = kill(pid, Signal::SIGKILL);
                self.waiting.push((name.clone(), reply));
            }
            _ => {
                let _ = reply.send(Reply::Done);
            }
        }
    }
}

fn spawn(spec: &Spec, unit: &Unit) -> Result<i32> {
    let log = open_log(&spec.log_file(&unit.name))?;
    let (program, arguments) = unit.argv.split_first().context("empty command")?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", &spec.path)
        .env("HOME", "/root")
        .env("NODE_NAME", &spec.scope)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(i32::try_from(child.id())?)
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// A line of the supervisor's own in a component's log.
fn note(spec: &Spec, unit: &str, text: &str) {
    if let Ok(mut log) = open_log(&spec.log_file(unit)) {
        let _ = writeln!(log, "--- supervisor: {unit} {text}");
    }
}

// Keeps the phases private to this module's tree while status reports name them.
impl State {
    fn report(&self, scope: &str, unit: &str, now: Instant) -> protocol::ComponentStatus {
        let (state, pid) = match self.phase() {
            Phase::Running { pid, .. } => ("running", Some(*pid)),
            Phase::Waiting { .. } => ("waiting", None),
            Phase::Stopped => ("stopped", None),
        };
        protocol::ComponentStatus {
            component: component_name(scope, unit),
            state: state.to_owned(),
            pid,
            restarts: self.restarts(),
            seconds: self.since(now).as_secs(),
        }
    }
}
