//! Logs on stderr: text for people, JSON for collectors. `RUST_LOG` narrows or widens them.

use braid_informer::LOG_FILTER;
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Starts logging; to be called once, first of all.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
}
