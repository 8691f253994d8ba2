//! How a program of ours reaches the API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::informers::WATCH_SECONDS;

/// What programs that use a connection log unless somebody says otherwise, in the notation of `tracing_subscriber`'s
/// `EnvFilter`. The client reports every failed request by itself, as an error, and so does everybody who made the request and
/// knows whether it matters.
pub const LOG_FILTER: &str = "info,kube_client::client::builder=off";

/// Why nobody knows how to reach the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The kubeconfig that was named.
    #[error("cannot use the kubeconfig {0}")]
    Kubeconfig(PathBuf, #[source] KubeconfigError),
    /// What the kubelet gives to pods.
    #[error("no kubeconfig was given and the environment of a pod with a service account is missing")]
    InCluster(#[source] InClusterError),
    /// The address that was named.
    #[error("`{0}` is no address of an API server; write https://<address>:<port>")]
    Address(String, #[source] <http::Uri as std::str::FromStr>::Err),
}

/// What a kubeconfig or else the pod's service account says, at `server` if one is named, with time limits. Nothing is
/// sent, so it succeeds while the API server is down.
///
/// # Errors
/// When one of them is missing or malformed.
pub async fn connection(kubeconfig: Option<&Path>, server: Option<&str>) -> Result<Config, ConnectionError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let error = |e| ConnectionError::Kubeconfig(path.to_owned(), e);
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)?
        }
        None => Config::incluster().map_err(ConnectionError::InCluster)?,
    };
    if let Some(server) = server.filter(|s| !s.is_empty()) {
        config.cluster_url = server.parse().map_err(|e| ConnectionError::Address(server.to_owned(), e))?;
    }
    // Without limits a silently dropped connection keeps a request waiting for a quarter of an hour; reading may be silent a
    // little longer than a quiet watch is.
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 15));
    config.write_timeout = Some(Duration::from_secs(30));
    Ok(config)
}
