//! One request to the agent, with a deadline for all of it.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use braid_meta_core::{CniError, ErrorCode};
use braid_rpc::{FrameError, PROTOCOL_VERSION, Reply, Request, Response, Verb, read_frame, write_frame};
use socket2::{Domain, SockAddr, Socket, Type};

/// The agent gives up so long before the caller, so that its reason still arrives.
const MARGIN: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum AgentError {
    /// Nothing listens on the socket.
    Absent(PathBuf),
    /// The socket cannot be used.
    Connect(PathBuf, io::Error),
    /// The agent ended while it worked.
    Lost(FrameError),
    /// The deadline passed.
    TimedOut,
    /// The answer is none.
    Answer(CniError),
}

/// Asks the agent and waits for the answer until the deadline.
pub(crate) fn ask(socket: &Path, verb: &Verb, deadline: Instant) -> Result<Reply, AgentError> {
    let mut connection = connect(socket, deadline)?;
    let request = Request {
        version: PROTOCOL_VERSION,
        id: request_id(),
        deadline_ms: millis(left(deadline)?.saturating_sub(MARGIN)),
        verb: verb.clone(),
    };
    let answer =
        write_frame(&mut connection, &request).and_then(|()| read_frame::<Response>(&mut connection));
    let response = answer.map_err(|e| match e {
        FrameError::Io(e) if is_timeout(&e) => AgentError::TimedOut,
        FrameError::Io(_) => AgentError::Lost(e),
        FrameError::TooLong(_) | FrameError::Json(_) => {
            let why = e.source().map(ToString::to_string).unwrap_or_default();
            AgentError::Answer(
                CniError::new(ErrorCode::PROTOCOL, format!("the agent's answer: {e}")).with_details(why),
            )
        }
    })?;
    response.check(request.id).map_err(AgentError::Answer)?;
    Ok(response.reply)
}

fn connect(path: &Path, deadline: Instant) -> Result<Connection, AgentError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AgentError::Absent(path.to_owned()),
        _ if is_timeout(&e) => AgentError::TimedOut,
        _ => AgentError::Connect(path.to_owned(), e),
    };
    let address = SockAddr::unix(path).map_err(failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // Where the listener's queue is full, connect(2) waits as long as a send may wait (unix(7), SO_SNDTIMEO).
    socket.set_write_timeout(Some(left(deadline)?)).map_err(failed)?;
    socket.connect(&address).map_err(failed)?;
    Ok(Connection { stream: OwnedFd::from(socket).into(), deadline })
}

/// A connection on which every wait ends at the deadline.
struct Connection {
    stream: UnixStream,
    deadline: Instant,
}

impl Connection {
    fn left(&self) -> io::Result<Duration> {
        left(self.deadline).map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buf)
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn left(deadline: Instant) -> Result<Duration, AgentError> {
    // A timeout of zero would mean to wait for ever.
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(AgentError::TimedOut) } else { Ok(left) }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the calls of a node apart in logs.
fn request_id() -> u64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are those that differ")]
    let low = nanos as u64;
    (low << 22) | u64::from(std::process::id())
}
