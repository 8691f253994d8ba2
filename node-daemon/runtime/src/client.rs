//! The way to the API server.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::RunArgs;

/// Longest time for one request that is not a watch.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot use the kubeconfig {0}")]
    Kubeconfig(std::path::PathBuf, #[source] kube::config::KubeconfigError),
    #[error("no kubeconfig was given and the environment of a pod with a service account is missing")]
    InCluster(#[source] kube::config::InClusterError),
    #[error("`{0}` is no address of an API server; write https://<address>:<port>")]
    Address(String, #[source] <http::Uri as std::str::FromStr>::Err),
    #[error("cannot set up the connection to the API server")]
    Client(#[source] kube::Error),
}

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no answer within {} s", REQUEST_LIMIT.as_secs())]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl RequestError {
    /// The HTTP status, when the API server answered.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// Waits for a request, but not for ever.
pub(crate) async fn limited<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Timeout),
    }
}

/// Makes a client. Nothing is sent yet, so it succeeds while the API server is down.
pub(crate) async fn connect(args: &RunArgs) -> Result<Client, ClientError> {
    let mut config = match &args.kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().map_err(ClientError::InCluster)?,
    };
    if let Some(address) = args.api_server.as_deref().filter(|a| !a.is_empty()) {
        config.cluster_url = address.parse().map_err(|e| ClientError::Address(address.to_owned(), e))?;
    }
    braid_informer::harden(&mut config);
    Client::try_from(config).map_err(ClientError::Client)
}

async fn from_file(path: &Path) -> Result<Config, ClientError> {
    let error = |e| ClientError::Kubeconfig(path.to_owned(), e);
    let file = Kubeconfig::read_from(path).map_err(error)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)
}
