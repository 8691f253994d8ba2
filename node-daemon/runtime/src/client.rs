//! The way to the API server.

use std::time::Duration;

use anyhow::Context;
use braid_informer::connection;
use kube::Client;

use crate::args::RunArgs;

/// Longest time for one request that is not a watch.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

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
pub(crate) async fn connect(args: &RunArgs) -> anyhow::Result<Client> {
    let config = connection(args.kubeconfig.as_deref(), args.api_server.as_deref()).await?;
    Client::try_from(config).context("cannot set up the connection to the API server")
}
