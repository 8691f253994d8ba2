//! /livez, /readyz and /metrics.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How long the loop may be silent before the agent counts as hung. It says that it is alive after each comparison and now
/// and then while it waits for the next; the longest comparison seen under load is far below this.
const SILENCE: Duration = Duration::from_secs(300);

/// What the probes are told. Shared by all parts of the agent.
#[derive(Debug)]
pub(crate) struct Health {
    state: Mutex<HealthState>,
}

#[derive(Debug)]
struct HealthState {
    /// Why the agent is not ready; `None` when it is.
    waiting_for: Option<String>,
    /// Last sign of life of the loop.
    alive: Instant,
}

impl Health {
    pub(crate) fn new(waiting_for: &str) -> Self {
        Self {
            state: Mutex::new(HealthState {
                waiting_for: Some(waiting_for.to_owned()),
                alive: Instant::now(),
            }),
        }
    }

    /// The loop made progress.
    pub(crate) fn alive(&self) {
        self.state.lock().alive = Instant::now();
    }

    /// The agent is ready.
    pub(crate) fn ready(&self) {
        self.state.lock().waiting_for = None;
    }

    /// The agent is not ready (any more).
    pub(crate) fn not_ready(&self, reason: impl Into<String>) {
        self.state.lock().waiting_for = Some(reason.into());
    }

    /// Why the agent is not ready; `None` when it is.
    pub(crate) fn waiting_for(&self) -> Option<String> {
        self.state.lock().waiting_for.clone()
    }

    fn silent_for(&self) -> Duration {
        self.state.lock().alive.elapsed()
    }

    /// Whether the loop has not been silent for too long.
    #[cfg(test)]
    pub(crate) fn is_alive(&self) -> bool {
        is_alive(self.silent_for())
    }
}

/// Binds `address`. Where the unspecified IPv6 address was asked for and the node has no IPv6, IPv4's is used.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(e) if address.is_ipv6() && address.ip().is_unspecified() && is_missing_family(&e) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    // EAFNOSUPPORT: built without IPv6 or `ipv6.disable=1`; EADDRNOTAVAIL: `disable_ipv6=1`.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route("/metrics", get(show))
        .with_state(metrics);
    axum::serve(listener, app).with_graceful_shutdown(async move { stop.cancelled().await }).await
}

async fn livez(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let silent = health.silent_for();
    if is_alive(silent) {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let body = format!("the loop that compares the kernel has been silent for {} s\n", silent.as_secs());
        (StatusCode::INTERNAL_SERVER_ERROR, body)
    }
}

fn is_alive(silent: Duration) -> bool {
    silent < SILENCE
}

async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.waiting_for() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn show(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_tell_why() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Arc::new(Health::new("waiting for the first lists"));
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, health.clone(), Arc::default(), stop.clone()));

        let answer = fetch(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("waiting for the first lists"),
            "{answer}"
        );
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200"));
        health.ready();
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/metrics").await.contains("# EOF"));
        stop.cancel();
        served.await.unwrap().unwrap();
    }

    #[test]
    fn a_silent_loop_is_not_alive() {
        assert!(is_alive(SILENCE - Duration::from_secs(1)));
        assert!(!is_alive(SILENCE));
    }
}
