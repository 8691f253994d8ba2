//! A place on disk for one test, the plugin's process, and an agent that does as it is told.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use braid_journal::Journal;
use braid_meta_core::{Attachment, CniResult};
use braid_rpc::{Reply, Request, Response, Verb, read_frame, write_frame};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What nothing in these tests takes nearly as long as.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const POD: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u";

/// Directories of one test.
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("netns"), b"").unwrap();
        Self { dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/cni.sock")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The plugin's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("log/cni.log")
    }

    pub(crate) fn netns(&self) -> String {
        self.dir.path().join("netns").display().to_string()
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::below(&self.state_dir())
    }

    /// How many DELs wait for an agent.
    pub(crate) fn pending(&self) -> usize {
        self.journal().pending_dels.list().unwrap().len()
    }

    /// A configuration with everything that any verb needs.
    pub(crate) fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "braid", "type": "braid",
            "socket": self.socket(), "stateDir": self.state_dir(),
            "cni.dev/valid-attachments": [{"containerID": "c9", "ifname": "eth0"}],
        })
    }

    /// The result that the agent gives, as `prevResult`.
    pub(crate) fn prev_result(&self, version: &str) -> Value {
        self.result().to_json(version.parse().unwrap())
    }

    pub(crate) fn result(&self) -> CniResult {
        CniResult::from_json(&json!({
            "interfaces": [
                {"name": "braid0000000001", "mac": "ee:ee:ee:ee:ee:ee"},
                {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": self.netns(), "mtu": 1450},
            ],
            "ips": [
                {"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::5/128", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1450}],
        }))
        .unwrap()
    }

    /// The plugin's command with every variable set.
    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_braid-cni"));
        command
            .env_clear()
            .env("BRAID_CNI_LOG", self.log())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", self.netns())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", POD)
            .env("CNI_PATH", "/opt/cni/bin");
        command
    }

    /// Calls a verb with the newest version and whatever it needs.
    pub(crate) fn call(&self, verb: &str) -> Answer {
        let mut config = self.config("1.1.0");
        if verb == "CHECK" {
            config["prevResult"] = self.prev_result("1.1.0");
        }
        self.call_with(verb, &config)
    }

    pub(crate) fn call_with(&self, verb: &str, config: &Value) -> Answer {
        run(self.command(verb), config.to_string().as_bytes())
    }
}

/// What a process of the plugin left.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    /// The one object on standard output.
    pub(crate) json: Option<Value>,
    pub(crate) stderr: String,
}

impl Answer {
    /// The error code; panics when the call succeeded.
    #[track_caller]
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json.as_ref().unwrap()["code"].as_u64().unwrap()
    }

    #[track_caller]
    pub(crate) fn msg(&self) -> &str {
        assert!(!self.success, "{self:?}");
        self.json.as_ref().unwrap()["msg"].as_str().unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> &Value {
        assert!(self.success, "{self:?}");
        self.json.as_ref().unwrap_or(&Value::Null)
    }
}

pub(crate) fn start(mut command: Command, stdin: &[u8]) -> Child {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // The plugin stops reading what is too long.
    let _ = input.write_all(stdin);
    child
}

/// Waits for the process and demands of every run: one JSON object on standard output, or nothing after the
/// success of a verb without result; exit code 0 or 1.
#[track_caller]
pub(crate) fn finish(child: Child, has_result: bool) -> Answer {
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let success = match output.status.code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("exit code {other:?}: {stderr}"),
    };
    let stdout = String::from_utf8(output.stdout).unwrap();
    if stdout.is_empty() {
        assert!(success && !has_result, "no output: {stderr}");
        return Answer { success, json: None, stderr };
    }
    // A second object, or a stray word, would be trailing characters here.
    let json: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    assert!(json.is_object() && (has_result || !success), "{stdout}");
    assert!(json["cniVersion"].is_string(), "{stdout}");
    if !success {
        assert!(json["code"].as_u64().is_some_and(|c| c > 0), "{stdout}");
        assert!(json["msg"].as_str().is_some_and(|m| !m.is_empty()), "{stdout}");
    }
    Answer { success, json: Some(json), stderr }
}

#[track_caller]
pub(crate) fn run(command: Command, stdin: &[u8]) -> Answer {
    let verb = command.get_envs().find(|(k, _)| *k == "CNI_COMMAND").and_then(|(_, v)| v);
    let has_result = verb.is_some_and(|v| v == OsStr::new("ADD") || v == OsStr::new("VERSION"));
    finish(start(command, stdin), has_result)
}

/// What the agent does with a request.
pub(crate) enum Act {
    Reply(Reply),
    Respond(Response),
    Raw(Vec<u8>),
    HangUp,
    /// Keeps the connection without an answer until the plugin leaves.
    Silence,
}

/// An agent in a thread of its own; it ends when it is dropped.
pub(crate) struct Agent {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    /// Every request in the order of arrival.
    pub(crate) requests: Receiver<Request>,
}

impl Agent {
    pub(crate) fn start(socket: &Path, act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, requests) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (act, stopped) = (Arc::new(act), Arc::clone(&stop));
        let acceptor = thread::spawn(move || {
            let mut workers = Vec::new();
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (act, sender) = (Arc::clone(&act), sender.clone());
                workers.push(thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    let request: Request = read_frame(&mut connection).unwrap();
                    let _ = sender.send(request.clone());
                    serve(connection, &request, act(&request));
                }));
            }
            for worker in workers {
                worker.join().unwrap();
            }
        });
        Self { socket: socket.to_owned(), stop, acceptor: Some(acceptor), requests }
    }

    /// An agent for which everything succeeds.
    pub(crate) fn willing(site: &Site) -> Self {
        let result = site.result();
        Self::start(&site.socket(), move |request| Act::Reply(success(request, &result)))
    }

    /// The next request.
    #[track_caller]
    pub(crate) fn next(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).expect("a request")
    }

    /// Demands that nothing was asked that was not looked at.
    #[track_caller]
    pub(crate) fn no_more(&self) {
        assert!(self.requests.try_recv().is_err());
    }
}

pub(crate) fn success(request: &Request, result: &CniResult) -> Reply {
    match &request.verb {
        Verb::Add(add) => Reply::Attached {
            result: result.clone(),
            plan: vec![Attachment::native(add.attachment.ifname.clone())],
        },
        _ => Reply::Done,
    }
}

/// The plugin may have left meanwhile, so writing may fail.
fn serve(mut connection: UnixStream, request: &Request, act: Act) {
    match act {
        Act::Reply(reply) => {
            let _ = write_frame(&mut connection, &Response::new(request.id, reply));
        }
        Act::Respond(response) => {
            let _ = write_frame(&mut connection, &response);
        }
        Act::Raw(bytes) => {
            let _ = connection.write_all(&bytes);
        }
        Act::HangUp => {}
        Act::Silence => {
            // Ends with the plugin's end of the connection.
            let _ = read_frame::<Request>(&mut connection);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let ended = self.acceptor.take().is_some_and(|t| t.join().is_ok());
        let _ = fs::remove_file(&self.socket);
        assert!(ended || thread::panicking(), "the agent's thread panicked");
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::yield_now();
    }
}
