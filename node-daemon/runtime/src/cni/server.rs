//! The socket: one request per connection, answered or cut off.
//!
//! **Invariant:** only root gets an answer; the folder (0700), the socket (0600) and the peer's credentials
//! each ensure it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use braid_rpc::{FrameError, HEADER_LEN, Reply, Request, Response, decode, encode, frame_length};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How long a peer may take to send its request, or to take the answer.
const PEER_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("cannot make the folder {0}")]
    Folder(PathBuf, #[source] io::Error),
    #[error("cannot listen on {0}")]
    Socket(PathBuf, #[source] io::Error),
}

/// Answers requests.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one request. Called for many requests at once.
    fn answer(&self, request: Request) -> impl Future<Output = Reply> + Send;
}

/// Opens the socket, in place of the one of an agent before this one.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    if let Some(dir) = path.parent() {
        let folder = |e| ListenError::Folder(dir.to_owned(), e);
        fs::create_dir_all(dir).map_err(folder)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(folder)?;
    }
    let socket = |e| ListenError::Socket(path.to_owned(), e);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(socket(e)),
    }
    let listener = UnixListener::bind(path).map_err(socket)?;
    // Between bind and chmod the folder alone keeps others out.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(socket)?;
    Ok(listener)
}

/// Serves until `stop`, then finishes what it has begun.
pub(crate) async fn serve<S: Service>(listener: UnixListener, service: Arc<S>, stop: CancellationToken) {
    let running = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let service = service.clone();
                running.spawn(async move {
                    if let Err(error) = converse(stream, &*service).await {
                        debug!(%error, "a CNI connection ended early");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors: those of running requests come back soon.
                warn!(%error, "cannot take a CNI connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    running.close();
    running.wait().await;
}

async fn converse(mut stream: UnixStream, service: &impl Service) -> Result<(), FrameError> {
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 {
        warn!(
            uid = peer.uid(),
            pid = peer.pid(),
            "a CNI connection from somebody who is not root was refused"
        );
        return Ok(());
    }
    let request: Request = within(receive(&mut stream)).await?;
    let id = request.id;
    let reply = match request.check_version() {
        Ok(()) => service.answer(request).await,
        Err(skew) => Reply::Failed(skew.into()),
    };
    let frame = encode(&Response::new(id, reply))?;
    within(async {
        stream.write_all(&frame).await?;
        Ok(stream.shutdown().await?)
    })
    .await
}

async fn receive(stream: &mut UnixStream) -> Result<Request, FrameError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; frame_length(header)?];
    stream.read_exact(&mut body).await?;
    decode(&body)
}

async fn within<T>(step: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
    tokio::time::timeout(PEER_LIMIT, step)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_rpc::{PROTOCOL_VERSION, Status, Verb};
    use tokio::sync::Semaphore;

    /// Tells that a request is in service, and answers when it is allowed to.
    struct Gate {
        entered: Semaphore,
        may_leave: Semaphore,
    }

    impl Service for Gate {
        async fn answer(&self, _: Request) -> Reply {
            self.entered.add_permits(1);
            self.may_leave.acquire().await.expect("never closed").forget();
            Reply::Done
        }
    }

    fn request(version: u32) -> Request {
        let verb = Verb::Status(Status { network: "braid".into(), config: "{}".into() });
        Request { version, id: 9, deadline_ms: 1000, verb }
    }

    async fn ask(path: &Path, request: &Request) -> Result<Response, FrameError> {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&encode(request)?).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        braid_rpc::read_frame(&mut all.as_slice())
    }

    fn start(path: &Path, permits: usize) -> (Arc<Gate>, CancellationToken, tokio::task::JoinHandle<()>) {
        let gate = Arc::new(Gate { entered: Semaphore::new(0), may_leave: Semaphore::new(permits) });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listen(path).unwrap(), gate.clone(), stop.clone()));
        (gate, stop, task)
    }

    #[tokio::test]
    async fn answers_carry_the_id_and_the_socket_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("braid/cni.sock");
        let (_gate, _stop, _task) = start(&path, 1);
        let response = ask(&path, &request(PROTOCOL_VERSION)).await.unwrap();
        assert_eq!(response, Response::new(9, Reply::Done));
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[tokio::test]
    async fn another_release_of_the_plugin_is_told_to_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("braid/cni.sock");
        let (_gate, _stop, _task) = start(&path, 1);
        let response = ask(&path, &request(PROTOCOL_VERSION + 1)).await.unwrap();
        let Reply::Failed(error) = response.reply else { panic!("not refused: {response:?}") };
        assert_eq!(error.code.0, 11);
    }

    #[tokio::test]
    async fn garbage_gets_no_answer_and_hurts_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("braid/cni.sock");
        let (_gate, _stop, _task) = start(&path, 1);
        for garbage in [&b""[..], b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02[]"] {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert!(answer.is_empty());
        }
        assert!(ask(&path, &request(PROTOCOL_VERSION)).await.is_ok());
    }

    #[tokio::test]
    async fn stopping_finishes_what_runs_and_takes_nothing_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("braid/cni.sock");
        let (gate, stop, task) = start(&path, 0);
        let running = tokio::spawn({
            let path = path.clone();
            async move { ask(&path, &request(PROTOCOL_VERSION)).await }
        });
        gate.entered.acquire().await.unwrap().forget();
        stop.cancel();
        gate.may_leave.add_permits(1);
        assert_eq!(running.await.unwrap().unwrap().reply, Reply::Done);
        task.await.unwrap();
        assert!(ask(&path, &request(PROTOCOL_VERSION)).await.is_err(), "nobody listens any more");
    }
}
