//! The loop of one watch.

use std::sync::Arc;
use std::time::Duration;

use crate::guarded::Guarded;
use futures::{Stream, StreamExt};
use kube::runtime::watcher;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::event::{Event, Handler, Undecodable};
use crate::health::Shared;

/// Longest silence while a full list is under way. Afterwards the watcher's own idle limit holds.
const LIST_SILENCE: Duration = Duration::from_secs(45);

type Item<K> = Result<watcher::Event<Guarded<K>>, watcher::Error>;

/// How full lists are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// As a watch with initial events (KEP-3157): one object at a time, no page can expire.
    Streaming,
    /// A list at resourceVersion 0 and then a watch, for API servers without the former.
    Paged,
}

/// Why one stream was given up and the next one is needed.
enum Ended {
    /// Go on with a new stream of the same kind.
    Restart,
    /// The API server refuses streaming lists.
    NotStreaming,
}

/// Watches for ever; `open` makes a stream that starts with a full list, `map` makes of an object what the
/// handler gets.
pub(crate) async fn run<K, T, S>(
    mut open: impl FnMut(Listing) -> S,
    mut map: impl FnMut(K) -> T,
    mut handler: impl Handler<T>,
    health: Shared,
) where
    S: Stream<Item = Item<K>> + Unpin,
{
    let mut listing = Listing::Streaming;
    let mut backoff = Backoff::default();
    loop {
        let mut stream = open(listing);
        match pump(listing, &mut stream, &mut map, &mut handler, &health, &mut backoff).await {
            Ended::NotStreaming => {
                debug!(watch = health.name, "the API server offers no streaming lists, using paged ones");
                listing = Listing::Paged;
            }
            Ended::Restart => tokio::time::sleep(backoff.delay()).await,
        }
    }
}

/// Hands the events of one stream on until it has to be given up.
async fn pump<K, T>(
    listing: Listing,
    stream: &mut (impl Stream<Item = Item<K>> + Unpin),
    map: &mut impl FnMut(K) -> T,
    handler: &mut impl Handler<T>,
    health: &Shared,
    backoff: &mut Backoff,
) -> Ended {
    let name = health.name;
    // `Some` while a full list is under way. It starts so: the first thing of a stream is a list.
    let mut list: Option<Vec<Arc<T>>> = Some(Vec::new());
    loop {
        let next = if list.is_some() {
            match tokio::time::timeout(LIST_SILENCE, stream.next()).await {
                Ok(next) => next,
                Err(_) => {
                    warn!(watch = name, "no answer to a list, asking again");
                    health.failed(format!("nothing received for {} s during a list", LIST_SILENCE.as_secs()));
                    return Ended::Restart;
                }
            }
        } else {
            stream.next().await
        };
        match next {
            None => {
                health.failed("the stream ended".to_owned());
                return Ended::Restart;
            }
            Some(Ok(event)) => {
                // The start of a list proves nothing: an API server that refuses every list sends it, too.
                if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                    backoff.reset();
                    health.received();
                }
                take(event, map, &mut list, handler, health);
            }
            Some(Err(error))
                if listing == Listing::Streaming && list.is_some() && refuses_streaming(&error) =>
            {
                return Ended::NotStreaming;
            }
            Some(Err(error)) => {
                health.failed(error.to_string());
                let delay = backoff.delay();
                if is_expired(&error) {
                    debug!(watch = name, %error, "fell behind, listing again");
                } else {
                    warn!(watch = name, %error, delay_ms = delay.as_millis() as u64, "watch failed");
                }
                tokio::time::sleep(delay).await;
            }
        }
    }
}

fn take<K, T>(
    event: watcher::Event<Guarded<K>>,
    map: &mut impl FnMut(K) -> T,
    list: &mut Option<Vec<Arc<T>>>,
    handler: &mut impl Handler<T>,
    health: &Shared,
) {
    let name = health.name;
    match event {
        watcher::Event::Init => *list = Some(Vec::new()),
        watcher::Event::InitApply(Guarded(Ok(object))) => {
            list.get_or_insert_default().push(Arc::new(map(object)));
        }
        watcher::Event::InitDone => {
            handler.handle(Event::Reset(list.take().unwrap_or_default()));
            health.reset_handled();
        }
        watcher::Event::Apply(Guarded(Ok(object))) => {
            handler.handle(Event::Applied(Arc::new(map(object))));
            health.handled();
        }
        watcher::Event::Delete(Guarded(Ok(object))) => {
            handler.handle(Event::Deleted(Arc::new(map(object))));
            health.handled();
        }
        watcher::Event::InitApply(Guarded(Err(invalid))) | watcher::Event::Apply(Guarded(Err(invalid))) => {
            let undecodable: Undecodable = invalid.into();
            warn!(watch = name, error = %undecodable, "object is not understood and left out");
            handler.handle(Event::Undecodable(undecodable));
            health.handled();
        }
        watcher::Event::Delete(Guarded(Err(invalid))) => {
            handler.handle(Event::Undecodable(Undecodable { deleted: true, ..invalid.into() }));
            health.handled();
        }
    }
}

/// Whether the API server cannot stream lists. Where they are switched off it calls `sendInitialEvents` forbidden
/// (422); where its etcd is too old for them (before 3.4.31: no progress requests) the watch begins and then
/// carries an error that names them. Everything else passes: an API server that restarts is not an old one.
fn refuses_streaming(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 400 | 422),
        watcher::Error::WatchError(status) => {
            matches!(status.code, 400 | 422)
                || status.message.contains("sendInitialEvents")
                || status.message.contains("RequestWatchProgress")
        }
        _ => false,
    }
}

/// Whether the position in the event history is too old (410); a new list follows by itself.
fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
