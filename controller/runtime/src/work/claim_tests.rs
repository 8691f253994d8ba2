use std::collections::VecDeque;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use braid_controller_core::Config;
use braid_types::model::PodRef;
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Duration, Instant};
use tower::service_fn;

use super::*;
use crate::events::Events;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::world::Shared;
use crate::write::Writer;

type Asked = Arc<Mutex<Vec<(Method, Value)>>>;

/// A leader that knows of nothing, and an API server that gives these answers.
fn work(answers: Vec<(u16, Value)>) -> (Arc<Work>, Asked) {
    let (asked, answers) = (Asked::default(), Arc::new(Mutex::new(VecDeque::from(answers))));
    let log = asked.clone();
    let service = service_fn(move |request: Request<kube::client::Body>| {
        let (log, answers) = (log.clone(), answers.clone());
        async move {
            let method = request.method().clone();
            let body = request.into_body().collect_bytes().await.expect("a body");
            log.lock().push((method, serde_json::from_slice(&body).unwrap_or_default()));
            let (code, body) = answers.lock().pop_front().expect("one request more than expected");
            let response = Response::builder().status(code).body(Body::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    let (client, gate, metrics) = (Client::new(service, "default"), Gate::closed(), Arc::new(Metrics::new()));
    gate.extend(Instant::now() + Duration::from_secs(3600), 3);
    let writer = Writer::new(client.clone(), gate, metrics.clone(), 4);
    let events = Events::new(client, writer.clone(), "test".to_owned());
    let shared = Shared::new(Config::default());
    let restored = {
        let ipam = &mut shared.world().ipam;
        ipam.reset_networks(Vec::new());
        ipam.reset_subnets(Vec::new());
        ipam.reset_blocks(Vec::new());
        ipam.reset_nodes(Vec::new());
        ipam.reset_instances(Vec::new(), 0);
        ipam.reset_pods(Vec::new());
        ipam.restored().expect("every kind was listed")
    };
    (Work::new(shared, writer, events, metrics, restored, Duration::from_secs(60)), asked)
}

/// The address, kept for an owner, as of this version.
fn kept(version: &str) -> IPInstance {
    serde_json::from_value(json!({
        "apiVersion": "braid.network/v1", "kind": "IPInstance",
        "metadata": {"name": "10.0.0.5", "uid": "u", "resourceVersion": version},
        "spec": {
            "network": "n", "subnet": "s", "address": "10.0.0.5/24", "interface": "eth0", "set": ["10.0.0.5"],
            "owner": {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": "ns", "name": "db", "pod": "db-0"},
        },
        "status": {"phase": "Reserved", "reservedAt": "2026-01-01T00:00:00Z", "attachedAt": "2026-01-01T00:00:00Z"},
    }))
    .expect("an IPInstance")
}

fn def(object: &IPInstance) -> InstanceDef {
    InstanceDef::try_from(object).expect("it can be read")
}

/// The same in the hand of a pod, with the status that it had.
fn taken(version: &str, pod: &str) -> IPInstance {
    let pod = PodRef { namespace: "ns".into(), name: "db-0".into(), uid: pod.into() };
    let held = InstanceDef { pod: Some(pod), node: Some("n1".into()), ..def(&kept(version)) };
    let mut object = instance_object(&held);
    object.metadata = kept(version).metadata;
    object.status = kept(version).status;
    object
}

fn bound(mut object: IPInstance, version: &str) -> IPInstance {
    object.metadata.resource_version = Some(version.to_owned());
    object.status = None;
    object
}

fn answer(object: &IPInstance) -> (u16, Value) {
    (200, serde_json::to_value(object).expect("JSON"))
}

fn conflict() -> (u16, Value) {
    (
        409,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict"}),
    )
}

/// What is to become of it: pod `p` has it.
fn target() -> InstanceDef {
    InstanceDef { phase: Phase::Bound, reserved_at: None, ..def(&taken("7", "p")) }
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_over_gets_its_holder_and_then_its_phase() {
    let (work, asked) =
        work(vec![answer(&kept("7")), answer(&taken("8", "p")), answer(&bound(taken("8", "p"), "9"))]);
    assert!(matches!(work.replace(&def(&kept("7")), &target()).await, Ok(Won::Yes)));
    let asked = asked.lock().clone();
    let methods: Vec<_> = asked.iter().map(|(method, _)| method.clone()).collect();
    assert_eq!(methods, [Method::GET, Method::PUT, Method::PATCH]);
    assert_eq!(asked[1].1["metadata"]["resourceVersion"], "7");
    assert_eq!(asked[1].1["spec"]["pod"]["uid"], "p");
    let phase = json!({
        "metadata": {"uid": "u", "resourceVersion": "8"},
        "status": {"phase": "Bound", "reason": null, "reservedAt": null, "tornDownAt": null, "releaseAt": null},
    });
    assert_eq!(asked[2].1, phase, "what nobody has changed since, and `attachedAt` stays");
    let known = work.shared.world().ipam.instance(&target().name).map(|d| (d.phase, d.pod.is_some()));
    assert_eq!(known, Some((Phase::Bound, true)));
}

#[tokio::test(start_paused = true)]
async fn a_take_over_that_is_disturbed_between_its_writes_is_decided_anew() {
    let (work, asked) = work(vec![answer(&kept("7")), answer(&taken("8", "p")), conflict()]);
    assert!(matches!(work.replace(&def(&kept("7")), &target()).await, Ok(Won::Not)));
    assert_eq!(asked.lock().len(), 3);
    let known = work.shared.world().ipam.instance(&target().name).map(|d| (d.phase, d.pod.is_some()));
    assert_eq!(known, Some((Phase::Reserved, true)), "half of it is known");
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_on_another_state_is_not_written() {
    let other = bound(taken("8", "other"), "9");
    let (work, asked) = work(vec![answer(&other)]);
    // The watch has told of it since the decision, so that the version is known.
    index::learn(&work.shared, &other);
    assert!(matches!(work.replace(&def(&kept("7")), &target()).await, Ok(Won::Not)));
    assert_eq!(asked.lock().len(), 1, "another pod has it");
}
