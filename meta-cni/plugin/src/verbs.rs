//! What each verb does with the agent, and without it.
//!
//! | | the agent is not there | it ends meanwhile | it does not answer in time |
//! |---|---|---|---|
//! | ADD | error 11 | error 11 | error 11 |
//! | DEL | recorded, success | recorded, success | error 11 |
//! | CHECK | error 11 | error 11 | error 11 |
//! | GC | error 11 | error 11 | error 11 |
//! | STATUS | error 50 | error 50 | error 50 |
//!
//! A DEL that is recorded keeps nobody waiting: the runtime may remove the container, the agent removes the
//! rest when it starts. One that an agent is working on is left to the runtime to repeat. GC reports that
//! nothing was removed, because nothing was; the agent removes what is stale by itself when it starts.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use braid_journal::{DEFAULT_STATE_DIR, Journal};
use braid_meta_core::call::{Add, Check, Del};
use braid_meta_core::invocation::{Call, Output};
use braid_meta_core::{
    Attachment, AttachmentId, AttachmentKind, CniError, CniResult, ErrorCode, NetConf, Verb,
};
use braid_rpc::{DEFAULT_SOCKET, Reply};

use crate::agent::{AgentError, ask};
use crate::gate::{self, GateError, Hold};
use crate::log;
use crate::netns;

/// Runs a call to its output.
pub(crate) fn run(call: &Call) -> Output {
    let site = Site::of(&call.conf, default_timeout(&call.verb));
    let outcome = match &call.verb {
        Verb::Add(add) => {
            let known = netns::check(&add.netns).map(|id| Add { netns_id: Some(id), ..add.clone() });
            known.and_then(|add| site.add(call, add)).map(|result| call.added(result))
        }
        Verb::Del(del) => site.del(del.clone()).map(|()| Output::nothing()),
        Verb::Check(check) => site.check(check, &call.verb).map(|()| Output::nothing()),
        Verb::Gc(_) => site.gc(&call.verb).map(|()| Output::nothing()),
        Verb::Status(_) => site.status(&call.verb).map(|()| Output::nothing()),
    };
    outcome.unwrap_or_else(|e| call.failed(&e))
}

/// How long a call takes at most. Runtimes wait longer (4 minutes for ADD, 1 for DEL, 30 s for GC), so that
/// the reason comes from here and not from them.
fn default_timeout(verb: &Verb) -> Duration {
    Duration::from_secs(match verb {
        Verb::Add(_) | Verb::Del(_) => 45,
        Verb::Check(_) => 20,
        Verb::Gc(_) => 25,
        Verb::Status(_) => 5,
    })
}

/// Where the agent is and how long it may take.
struct Site {
    socket: PathBuf,
    state_dir: PathBuf,
    deadline: Instant,
}

impl Site {
    fn of(conf: &NetConf, timeout: Duration) -> Self {
        let path = |given: &Option<String>, usual: &str| PathBuf::from(given.as_deref().unwrap_or(usual));
        Self {
            socket: path(&conf.socket, DEFAULT_SOCKET),
            state_dir: path(&conf.state_dir, DEFAULT_STATE_DIR),
            deadline: Instant::now() + conf.timeout.unwrap_or(timeout),
        }
    }

    fn ask(&self, verb: &Verb) -> Result<Reply, AgentError> {
        ask(&self.socket, verb, self.deadline)
    }

    fn add(&self, call: &Call, add: Add) -> Result<CniResult, CniError> {
        let _held = gate::enter(&self.socket, Hold::Shared, self.deadline)
            .map_err(|e| gate_error(e, &self.socket))?;
        match self.ask(&Verb::Add(add)).map_err(|e| agent_error(e, "ADD"))? {
            Reply::Attached { result, plan } => match delegated(&plan) {
                None => Ok(result),
                Some(attachment) => Err(self.undo(call, attachment)),
            },
            Reply::Failed(e) => Err(e),
            Reply::Done => Err(unexpected("ADD")),
        }
    }

    /// The agent is of a release that hands work to this plugin which it cannot do: nothing may stay behind.
    fn undo(&self, call: &Call, attachment: &Attachment) -> CniError {
        let error = CniError::try_again(format!(
            "interface {} is made by other plugins, which this release of the plugin does not run",
            attachment.ifname
        ));
        let Some(del) = call.undo() else { return error };
        match self.ask(&Verb::Del(del)).map_err(|e| agent_error(e, "DEL")).and_then(|r| done(r, "DEL")) {
            Ok(()) => error,
            Err(e) => error.with_details(format!("and what was made could not be undone: {e}")),
        }
    }

    fn del(&self, mut del: Del) -> Result<(), CniError> {
        // Entering the host's namespace to remove a container's interface would remove the host's.
        if del.netns.as_deref().is_some_and(|path| netns::is_own(path).unwrap_or(false)) {
            del.netns = None;
        }
        let verb = Verb::Del(del.clone());
        let absent = match gate::enter(&self.socket, Hold::Shared, self.deadline) {
            Ok(_held) => match self.ask(&verb) {
                Ok(reply) => return done(reply, "DEL"),
                Err(e @ (AgentError::Absent(_) | AgentError::Lost(_))) => agent_error(e, "DEL"),
                Err(e) => return Err(agent_error(e, "DEL")),
            },
            Err(e @ GateError::NoAgent) => gate_error(e, &self.socket),
            Err(e) => return Err(gate_error(e, &self.socket)),
        };
        self.record_del(&del, &verb, &absent)
    }

    /// Leaves the DEL to the agent's next start, in the order that [`braid_journal`] demands: first the file,
    /// then the socket once more.
    fn record_del(&self, del: &Del, verb: &Verb, absent: &CniError) -> Result<(), CniError> {
        let pending = Journal::below(&self.state_dir).pending_dels;
        pending.put(del).map_err(|e| {
            let why = e.source().map(ToString::to_string).unwrap_or_default();
            CniError::new(ErrorCode::IO, format!("{}, and DEL cannot be recorded: {e}", absent.msg))
                .with_details(why)
        })?;
        match self.ask(verb) {
            Ok(reply) => {
                // The agent may have been quicker; it works off a file that stays, which does no harm.
                let _ = pending.remove(&del.attachment);
                done(reply, "DEL")
            }
            Err(_) => {
                let left = format!("{}; DEL of {} is left to its next start", absent.msg, del.attachment);
                eprintln!("braid: {left}");
                let AttachmentId { container_id, ifname } = &del.attachment;
                log::note("DEL", container_id.as_str(), ifname.as_str(), &left);
                Ok(())
            }
        }
    }

    fn check(&self, check: &Check, verb: &Verb) -> Result<(), CniError> {
        netns::check(&check.netns).map(drop)?;
        let reply = self.ask(verb).map_err(|e| agent_error(e, "CHECK"))?;
        done(reply, "CHECK")
    }

    fn gc(&self, verb: &Verb) -> Result<(), CniError> {
        let _held =
            gate::enter(&self.socket, Hold::Alone, self.deadline).map_err(|e| gate_error(e, &self.socket))?;
        let reply = self.ask(verb).map_err(|e| agent_error(e, "GC"))?;
        done(reply, "GC")
    }

    fn status(&self, verb: &Verb) -> Result<(), CniError> {
        let reply = self.ask(verb).map_err(|e| agent_error(e, "STATUS"));
        // STATUS knows two codes; whatever keeps the agent from answering, ADD cannot be served.
        let unavailable = |e| CniError { code: ErrorCode::NOT_AVAILABLE, ..e };
        match reply {
            Ok(Reply::Failed(e)) => Err(e),
            Ok(reply) => done(reply, "STATUS").map_err(unavailable),
            Err(e) => Err(unavailable(e)),
        }
    }
}

/// The first interface of the plan that the agent has not made.
fn delegated(plan: &[Attachment]) -> Option<&Attachment> {
    plan.iter().find(|a| a.kind != AttachmentKind::Native)
}

fn done(reply: Reply, verb: &str) -> Result<(), CniError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Failed(e) => Err(e),
        Reply::Attached { .. } => Err(unexpected(verb)),
    }
}

fn unexpected(verb: &str) -> CniError {
    CniError::new(ErrorCode::PROTOCOL, format!("the agent answered {verb} with the answer of another verb"))
}

fn agent_error(e: AgentError, verb: &str) -> CniError {
    match e {
        AgentError::Absent(socket) => not_running(&socket),
        AgentError::Connect(socket, e) => {
            CniError::new(ErrorCode::IO, format!("cannot reach the agent at {}", socket.display()))
                .with_details(e.to_string())
        }
        AgentError::Lost(e) => {
            let why = e.source().map(ToString::to_string).unwrap_or_default();
            CniError::try_again(format!("the agent on this node ended during {verb}")).with_details(why)
        }
        AgentError::TimedOut => {
            CniError::try_again(format!("the agent on this node did not answer {verb} in time"))
        }
        AgentError::Answer(e) => e,
    }
}

fn gate_error(e: GateError, socket: &Path) -> CniError {
    match e {
        GateError::NoAgent => not_running(socket),
        GateError::Busy => {
            CniError::try_again("a GC and an ADD or DEL exclude each other, and the other one is not done")
        }
        GateError::Io(path, e) => CniError::new(ErrorCode::IO, format!("cannot lock {}", path.display()))
            .with_details(e.to_string()),
    }
}

fn not_running(socket: &Path) -> CniError {
    CniError::try_again(format!(
        "the Braid agent is not running on this node: nothing listens on {}",
        socket.display()
    ))
}
