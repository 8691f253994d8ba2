//! `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// What the endpoints answer with.
pub(crate) trait Probe: Send + Sync + 'static {
    /// Whether the process makes progress; an error says what stands still.
    fn alive(&self) -> Result<(), String>;
    /// Whether it can do its work, as leader or as standby; an error says what is missing.
    fn ready(&self) -> Result<(), String>;
    /// The metrics of this moment.
    fn metrics(&self) -> String;
}

fn answer(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

/// The routes.
pub(crate) fn router(probe: Arc<impl Probe>) -> Router {
    let (alive, ready) = (probe.clone(), probe.clone());
    let text = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    Router::new()
        .route("/livez", get(move || async move { answer(alive.alive()) }))
        .route("/readyz", get(move || async move { answer(ready.ready()) }))
        .route("/metrics", get(move || async move { (text, probe.metrics()).into_response() }))
}

/// Listens on `address`. `[::]` means both families; on a machine without IPv6 it means IPv4.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_such_family(&error) => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

fn no_such_family(error: &std::io::Error) -> bool {
    // The two ways in which Linux says that IPv6 is off.
    const EAFNOSUPPORT: i32 = 97;
    const EADDRNOTAVAIL: i32 = 99;
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}
