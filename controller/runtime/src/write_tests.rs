use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{Request, Response};
use braid_api::{IPInstance, Network};
use parking_lot::Mutex;
use serde_json::json;
use tower::service_fn;

use super::*;

/// An API server that answers what it is told to, one answer per request.
fn server(answers: Vec<(u16, Value)>) -> (Writer, Gate, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let counter = asked.clone();
    let service = service_fn(move |_: Request<kube::client::Body>| {
        counter.fetch_add(1, Ordering::SeqCst);
        let (code, body) = answers.lock().pop_front().expect("one request more than expected");
        async move {
            let response = Response::builder().status(code).body(Body::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    let gate = Gate::closed();
    let writer = Writer::new(Client::new(service, "default"), gate.clone(), Arc::new(Metrics::new()), 4);
    (writer, gate, asked)
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
                  "message": format!("{reason}: no"), "metadata": {}}),
    )
}

fn network() -> (u16, Value) {
    (
        200,
        json!({"apiVersion": "braid.network/v1", "kind": "Network", "metadata": {"name": "n"},
                 "spec": {"type": "VXLAN", "vxlan": {"vni": 4}}}),
    )
}

fn lead(gate: &Gate) {
    gate.extend(Instant::now() + Duration::from_secs(3600), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_without_the_lead() {
    let (writer, gate, asked) = server(vec![network()]);
    let patch = json!({});
    assert!(matches!(writer.merge::<Network>("n", &patch).await, Err(WriteError::NotLeading(_))));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    lead(&gate);
    writer.merge::<Network>("n", &patch).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Every verb that changes what the leader alone may change.
#[tokio::test(start_paused = true)]
async fn no_verb_is_written_without_the_lead() {
    let (writer, _gate, asked) = server(vec![network(); 16]);
    let object: Network = serde_json::from_value(network().1).unwrap();
    let (patch, seen) = (json!({}), Seen { uid: "u".into(), version: "1".into() });
    let steps = json_patch::Patch(Vec::new());
    let ends = [
        ("create", writer.create(&object).await.err()),
        ("get", writer.get::<Network>("n").await.err()),
        ("replace", writer.replace(&object).await.err()),
        ("delete", writer.delete::<Network>("n", &seen).await.err()),
        ("merge", writer.merge::<Network>("n", &patch).await.err()),
        ("merge_status", writer.merge_status::<Network>("n", &patch).await.err()),
        ("apply_status", writer.apply_status::<Network>("n", &patch).await.err()),
        ("json_patch", writer.json_patch::<Network>("n", &steps).await.err()),
        ("strategic_status", writer.strategic_status::<braid_api::slim::Pod>("ns", "n", &patch).await.err()),
        ("exists", writer.exists("apps/v1", "StatefulSet", "ns", "n").await.err()),
    ];
    for (verb, end) in ends {
        assert!(matches!(end, Some(WriteError::NotLeading(_))), "{verb}: {end:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_asked_again() {
    let (writer, gate, asked) =
        server(vec![failure(429, "TooManyRequests"), failure(503, "ServiceUnavailable"), network()]);
    lead(&gate);
    writer.merge::<Network>("n", &json!({})).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn repetition_ends_when_the_lead_does() {
    let (writer, gate, asked) = server(vec![failure(503, "x"); 64]);
    gate.extend(Instant::now() + Duration::from_secs(1), 3);
    let end = writer.merge::<Network>("n", &json!({})).await;
    assert!(matches!(end, Err(WriteError::NotLeading(_))), "{end:?}");
    let attempts = asked.load(Ordering::SeqCst);
    assert!((2..20).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn repetition_has_an_end() {
    let (writer, gate, _) = server(vec![failure(500, "InternalError"); 64]);
    lead(&gate);
    let start = Instant::now();
    let end = writer.merge::<Network>("n", &json!({})).await;
    assert!(matches!(end, Err(WriteError::Unavailable { source: Some(_), .. })), "{end:?}");
    assert!(start.elapsed() <= TOTAL);
}

#[tokio::test(start_paused = true)]
async fn answers_that_will_not_change_are_told_apart() {
    let (writer, gate, asked) = server(vec![
        failure(409, "AlreadyExists"),
        failure(409, "Conflict"),
        failure(404, "NotFound"),
        failure(422, "Invalid"),
        failure(403, "Forbidden"),
    ]);
    lead(&gate);
    let ask = || async { writer.merge::<Network>("n", &json!({})).await.unwrap_err() };
    assert!(matches!(ask().await, WriteError::Exists(_)));
    assert!(matches!(ask().await, WriteError::Conflict(_)));
    assert!(matches!(ask().await, WriteError::Missing(_)));
    let WriteError::Refused { reason, .. } = ask().await else { panic!("refused") };
    assert!(reason.contains("Invalid"));
    assert!(matches!(ask().await, WriteError::Refused { .. }));
    assert_eq!(asked.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_delete_says_which_object_it_means() {
    let (sent, gate) = (Arc::new(Mutex::new(Vec::new())), Gate::closed());
    let bodies = sent.clone();
    let service = service_fn(move |request: Request<kube::client::Body>| {
        let bodies = bodies.clone();
        async move {
            let body = request.into_body().collect_bytes().await.expect("a body");
            bodies.lock().push(serde_json::from_slice::<Value>(&body).expect("JSON"));
            let answer = json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}});
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(answer.to_string())))
        }
    });
    let writer = Writer::new(Client::new(service, "default"), gate.clone(), Arc::new(Metrics::new()), 4);
    lead(&gate);
    let seen = Seen { uid: "u".into(), version: "7".into() };
    writer.delete::<IPInstance>("10.0.0.1", &seen).await.unwrap();
    assert_eq!(sent.lock()[0]["preconditions"], json!({"uid": "u", "resourceVersion": "7"}));
}
