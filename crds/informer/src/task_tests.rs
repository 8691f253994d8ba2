use std::collections::VecDeque;

use futures::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::Status;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;

fn config_map(name: &str) -> Guarded<ConfigMap> {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.to_owned());
    Guarded(Ok(object))
}

fn unreadable(name: &str) -> Guarded<ConfigMap> {
    serde_json::from_value(serde_json::json!({ "metadata": { "name": name }, "data": 5 })).unwrap()
}

fn failure(code: u16) -> Item<ConfigMap> {
    let status = Status { code, message: "no".into(), ..Status::default() };
    Err(watcher::Error::WatchError(Box::new(status)))
}

fn refused(code: u16) -> Item<ConfigMap> {
    let status = Status { code, message: "sendInitialEvents is forbidden".into(), ..Status::default() };
    Err(watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status))))
}

/// An event as one short word.
fn word(event: &Event<ConfigMap>) -> String {
    let name = |o: &ConfigMap| o.metadata.name.clone().unwrap_or_default();
    match event {
        Event::Reset(all) => format!("reset {}", all.iter().map(|o| name(o)).collect::<Vec<_>>().join(",")),
        Event::Applied(o) => format!("applied {}", name(o)),
        Event::Deleted(o) => format!("deleted {}", name(o)),
        Event::Undecodable(u) if u.deleted => format!("undecodable {} deleted", u.name),
        Event::Undecodable(u) => format!("undecodable {}", u.name),
    }
}

struct Played {
    words: Vec<String>,
    listings: Vec<Listing>,
    health: Shared,
}

/// Runs the loop over scripted streams until `count` events were handled. A stream whose script is used up
/// stays silent when it is the last one, and ends otherwise.
async fn play(scripts: Vec<Vec<Item<ConfigMap>>>, count: usize) -> Played {
    let listings = Arc::new(Mutex::new(Vec::new()));
    let mut scripts = VecDeque::from(scripts);
    let seen = listings.clone();
    let open = move |listing| {
        seen.lock().push(listing);
        let script = stream::iter(scripts.pop_front().unwrap_or_default());
        if scripts.is_empty() { script.chain(stream::pending()).boxed() } else { script.boxed() }
    };
    let (tx, mut rx) = mpsc::unbounded_channel();
    let health = Shared::new("test");
    let handler = move |event: Event<ConfigMap>| tx.send(word(&event)).unwrap();
    let task = tokio::spawn(run(open, |object| object, handler, health.clone()));
    let mut words = Vec::new();
    while words.len() < count {
        words.push(rx.recv().await.expect("the loop never ends by itself"));
    }
    task.abort();
    let _ = task.await;
    let listings = listings.lock().clone();
    Played { words, listings, health }
}

use watcher::Event as E;

#[tokio::test(start_paused = true)]
async fn a_full_list_arrives_whole_and_changes_follow() {
    let played = play(
        vec![vec![
            Ok(E::Init),
            Ok(E::InitApply(config_map("a"))),
            Ok(E::InitApply(config_map("b"))),
            Ok(E::InitDone),
            Ok(E::Apply(config_map("c"))),
            Ok(E::Delete(config_map("a"))),
        ]],
        3,
    )
    .await;
    assert_eq!(played.words, ["reset a,b", "applied c", "deleted a"]);
    assert!(played.health.state.lock().synced);
}

#[tokio::test(start_paused = true)]
async fn a_second_list_tells_what_vanished_and_failures_are_counted() {
    let played = play(
        vec![vec![
            Ok(E::Init),
            Ok(E::InitApply(config_map("a"))),
            Ok(E::InitDone),
            failure(410),
            failure(500),
            Ok(E::Init),
            Ok(E::InitApply(config_map("b"))),
            Ok(E::InitDone),
        ]],
        2,
    )
    .await;
    assert_eq!(played.words, ["reset a", "reset b"]);
    let health = played.health.state.lock().clone();
    assert_eq!((health.failures, health.resets, health.error), (2, 2, None));
}

#[tokio::test(start_paused = true)]
async fn a_list_cut_short_is_never_handed_on() {
    let played = play(
        vec![
            vec![Ok(E::Init), Ok(E::InitApply(config_map("a")))],
            vec![Ok(E::Init), Ok(E::InitApply(config_map("b"))), Ok(E::InitDone)],
        ],
        1,
    )
    .await;
    assert_eq!(played.words, ["reset b"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_list_is_asked_for_again() {
    let mut first = true;
    let (tx, mut rx) = mpsc::unbounded_channel();
    let open = move |_| {
        let answers = !std::mem::take(&mut first);
        if answers {
            stream::iter([Ok(E::Init), Ok(E::InitDone)]).chain(stream::pending()).boxed()
        } else {
            stream::iter([Ok(E::Init)]).chain(stream::pending()).boxed()
        }
    };
    let handler = move |event: Event<ConfigMap>| tx.send(word(&event)).unwrap();
    let task = tokio::spawn(run(open, |object| object, handler, Shared::new("test")));
    assert_eq!(rx.recv().await.as_deref(), Some("reset "));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_object_does_not_hide_the_others() {
    let played = play(
        vec![vec![
            Ok(E::Init),
            Ok(E::InitApply(unreadable("x"))),
            Ok(E::InitApply(config_map("a"))),
            Ok(E::InitDone),
            Ok(E::Apply(unreadable("y"))),
            Ok(E::Apply(config_map("b"))),
            Ok(E::Delete(unreadable("y"))),
        ]],
        5,
    )
    .await;
    let want = ["undecodable x", "reset a", "undecodable y", "applied b", "undecodable y deleted"];
    assert_eq!(played.words, want);
}

#[tokio::test(start_paused = true)]
async fn without_streaming_lists_it_pages() {
    let played = play(vec![vec![refused(422)], vec![Ok(E::Init), Ok(E::InitDone)]], 1).await;
    assert_eq!(played.words, ["reset "]);
    assert_eq!(played.listings, [Listing::Streaming, Listing::Paged]);
    assert_eq!(played.health.state.lock().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn with_an_etcd_too_old_for_streaming_lists_it_pages() {
    let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
    let status = Status { code: 500, message: message.into(), ..Status::default() };
    let script = vec![Ok(E::Init), Err(watcher::Error::WatchError(Box::new(status)))];
    let played = play(vec![script, vec![Ok(E::Init), Ok(E::InitDone), failure(500)]], 1).await;
    assert_eq!(played.listings, [Listing::Streaming, Listing::Paged]);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_in_passing_is_not_taken_for_an_old_one() {
    let script = vec![Ok(E::Init), failure(500), Ok(E::Init), Ok(E::InitDone)];
    let played = play(vec![script], 1).await;
    assert_eq!(played.listings[0], Listing::Streaming);
    assert!(!played.listings.contains(&Listing::Paged));
}

#[tokio::test(start_paused = true)]
async fn lists_that_fail_are_asked_for_less_and_less_often() {
    let refused_list = || {
        let status = Status { code: 500, ..Status::default() };
        Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
    };
    let mut script: Vec<Item<ConfigMap>> = (0..8).flat_map(|_| [Ok(E::Init), refused_list()]).collect();
    script.extend([Ok(E::Init), Ok(E::InitDone)]);
    let start = tokio::time::Instant::now();
    play(vec![script], 1).await;
    // Eight failures: half a second, doubling, at most thirty, each at least half of that.
    assert!(start.elapsed() >= Duration::from_millis(250 + 500 + 1000 + 2000 + 4000 + 8000 + 15000 + 15000));
}

#[tokio::test(start_paused = true)]
async fn in_sync_waits_for_every_watch() {
    use futures::FutureExt;

    let mut informers = crate::Informers::default();
    let (one, two) = (Shared::new("one"), Shared::new("two"));
    informers.adopt(one.clone());
    informers.adopt(two.clone());
    let mut proof = Box::pin(informers.in_sync());
    assert!((&mut proof).now_or_never().is_none());
    one.reset_handled();
    assert!((&mut proof).now_or_never().is_none());
    two.reset_handled();
    proof.await;
}
