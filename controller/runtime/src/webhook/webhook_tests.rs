use braid_controller_core::Config;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;

fn webhook() -> Webhook {
    let shared = Shared::new(Config::default());
    Webhook::new(shared, Arc::new(Metrics::new()), "braid-system")
}

/// A webhook that has listed everything; there is nothing.
fn synced() -> Webhook {
    let webhook = webhook();
    {
        let ipam = &mut webhook.shared.world().ipam;
        ipam.reset_networks(Vec::new());
        ipam.reset_subnets(Vec::new());
        ipam.reset_blocks(Vec::new());
        ipam.reset_instances(Vec::new(), 0);
        ipam.reset_nodes(Vec::new());
        ipam.reset_pods(Vec::new());
    }
    webhook
}

fn review(resource: &str, operation: &str, user: &str, old: &Value, new: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r1", "operation": operation, "name": "x", "userInfo": {"username": user},
            "kind": {"group": "braid.network", "version": "v1", "kind": "X"},
            "resource": {"group": "braid.network", "version": "v1", "resource": resource},
            "object": new, "oldObject": old,
        }
    })
}

fn bound() -> Value {
    json!({
        "apiVersion": "braid.network/v1", "kind": "IPInstance",
        "metadata": {"name": "10.0.0.5", "uid": "i"},
        "spec": {
            "network": "n", "subnet": "s", "address": "10.0.0.5/24", "interface": "eth0",
            "pod": {"namespace": "shop", "name": "web", "uid": "p"},
        },
        "status": {"phase": "Bound"}
    })
}

async fn ask(webhook: Webhook, review: &Value) -> (StatusCode, Value) {
    let request = axum::http::Request::post("/validate")
        .header("content-type", "application/json")
        .body(axum::body::Body::from(review.to_string()))
        .unwrap();
    let response = webhook.router().oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), LARGEST).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn it_answers_nothing_before_it_knows_everything() {
    let (status, _) = ask(webhook(), &review("ipinstances", "DELETE", "me", &bound(), &Value::Null)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_bound_address_is_deleted_by_nobody_but_the_controller() {
    let delete = |user: &str| review("ipinstances", "DELETE", user, &bound(), &Value::Null);
    let (status, answer) = ask(synced(), &delete("admin")).await;
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
    let sentence = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(sentence.contains("shop/web"), "{sentence}");
    assert_eq!(answer["response"]["uid"], "r1");
    let (_, answer) = ask(synced(), &delete("system:serviceaccount:braid-system:braid-controller")).await;
    assert_eq!(answer["response"]["allowed"], true);
}

#[tokio::test]
async fn an_object_that_cannot_be_parsed_is_refused_with_the_field() {
    let subnet = json!({
        "apiVersion": "braid.network/v1", "kind": "Subnet", "metadata": {"name": "s"},
        "spec": {"network": "n", "cidr": "10.0.0.1/24"}
    });
    let (_, answer) = ask(synced(), &review("subnets", "CREATE", "me", &Value::Null, &subnet)).await;
    assert_eq!(answer["response"]["allowed"], false);
    let sentence = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(sentence.contains("spec.cidr"), "{sentence}");
}

#[tokio::test]
async fn a_subnet_may_come_before_its_network() {
    let subnet = json!({
        "apiVersion": "braid.network/v1", "kind": "Subnet", "metadata": {"name": "s"},
        "spec": {"network": "n", "cidr": "10.0.0.0/24"}
    });
    let (_, answer) = ask(synced(), &review("subnets", "CREATE", "me", &Value::Null, &subnet)).await;
    assert_eq!(answer["response"]["allowed"], true);
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let (status, _) =
        ask(synced(), &json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"})).await;
    assert!(status.is_client_error());
}
