use std::collections::BTreeMap;

use braid_controller_core::Config;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::{ServiceExt, service_fn};

use super::*;
use crate::world::NamespaceEntry;

fn webhook() -> Webhook {
    let nobody = service_fn(async |request: axum::http::Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        Err::<axum::http::Response<axum::body::Body>, _>(std::io::Error::other(format!(
            "{path} was asked for"
        )))
    });
    let (shared, client) = (Shared::new(Config::default()), Client::new(nobody, "default"));
    Webhook::new(shared, client, Arc::new(Metrics::new()), "braid-system")
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
    ask_at("/validate", webhook, review).await
}

async fn ask_at(path: &str, webhook: Webhook, review: &Value) -> (StatusCode, Value) {
    let request = axum::http::Request::post(path)
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

// ---- Pods

/// As [`synced`], with a default Network for every node and `lab` for some, and the namespace `shop` that names `lab`.
fn stocked() -> Webhook {
    let webhook = synced();
    {
        let mut world = webhook.shared.world();
        let network = |name: &str, vni: u32, default: bool, nodes: Value| {
            let spec =
                json!({"type": "VXLAN", "default": default, "vxlan": {"vni": vni}, "nodeSelector": nodes});
            let raw: Network =
                serde_json::from_value(json!({"apiVersion": "braid.network/v1", "kind": "Network",
                    "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}))
                .unwrap();
            NetworkDef { ready: true, ..NetworkDef::try_from(&raw).unwrap() }
        };
        let subnet = |name: &str, network: &str, cidr: &str| {
            let raw: Subnet =
                serde_json::from_value(json!({"apiVersion": "braid.network/v1", "kind": "Subnet",
                    "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                    "spec": {"network": network, "cidr": cidr}}))
                .unwrap();
            SubnetDef { ready: true, ..SubnetDef::try_from(&raw).unwrap() }
        };
        world.ipam.upsert_network(network("overlay", 4, true, json!({})));
        world.ipam.upsert_network(network("lab", 5, false, json!({"matchLabels": {"lab": "yes"}})));
        world.ipam.upsert_subnet(subnet("overlay-v4", "overlay", "10.0.0.0/24"));
        world.ipam.upsert_subnet(subnet("lab-v4", "lab", "10.1.0.0/24"));
        let choice = Choice { network: Some("lab".to_owned()), ..Choice::default() };
        for (name, choice) in [("shop", choice), ("elsewhere", Choice::default())] {
            let entry = NamespaceEntry { labels: BTreeMap::new(), choice: Ok(choice) };
            world.namespaces.insert(name.to_owned(), entry);
        }
    }
    webhook
}

fn of_namespace(mut review: Value, namespace: &str) -> Value {
    review["request"]["namespace"] = json!(namespace);
    review
}

/// What the webhook says about a pod, and the pod as it is afterwards.
async fn admitted(pod: &Value, namespace: &str) -> (Value, Value) {
    let review = of_namespace(review("pods", "CREATE", "me", &Value::Null, pod), namespace);
    let (status, answer) = ask_at("/mutate-pods", stocked(), &review).await;
    assert_eq!(status, StatusCode::OK);
    let response = answer["response"].clone();
    let mut after = pod.clone();
    if !response["patch"].is_null() {
        assert_eq!(response["patchType"], "JSONPatch");
        let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: Patch = serde_json::from_slice(&bytes).unwrap();
        json_patch::patch(&mut after, &patch).unwrap();
    }
    (response, after)
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": {"containers": []}})
}

#[tokio::test]
async fn a_pod_is_given_the_choice_of_its_namespace_and_the_networks_nodes() {
    let nodes = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "lab", "operator": "In", "values": ["yes"]}]},
    ]}}});
    let (response, after) = admitted(&pod(), "shop").await;
    assert_eq!((&response["allowed"], &response["uid"]), (&json!(true), &json!("r1")));
    assert!(response["warnings"].is_null(), "{response}");
    let mut wanted = pod();
    wanted["metadata"]["annotations"] = json!({"braid.network/network": "lab"});
    wanted["spec"]["affinity"] = nodes.clone();
    assert_eq!(after, wanted);

    // Asked again, it has nothing to add.
    let (response, again) = admitted(&after, "shop").await;
    assert!(response["patch"].is_null(), "{response}");
    assert_eq!(again, after);

    // What is there stays.
    let mut annotated = pod();
    annotated["metadata"]["annotations"] = json!({"other/key": "1"});
    let (_, after) = admitted(&annotated, "shop").await;
    assert_eq!(after["metadata"]["annotations"], json!({"other/key": "1", "braid.network/network": "lab"}));

    // A Network of every node asks for none; a pod with a node is not moved.
    let (_, after) = admitted(&pod(), "elsewhere").await;
    assert_eq!(after["metadata"]["annotations"], json!({"braid.network/network": "overlay"}));
    assert!(after["spec"]["affinity"].is_null(), "{after}");
    let mut bound = pod();
    bound["spec"]["nodeName"] = json!("n1");
    let (response, after) = admitted(&bound, "shop").await;
    assert!(after["spec"]["affinity"].is_null() && !after["metadata"]["annotations"].is_null(), "{after}");
    assert!(response["warnings"][0].as_str().unwrap().contains("node n1"), "{response}");
}

#[tokio::test]
async fn a_pod_is_refused_or_warned_with_a_sentence() {
    let with = |annotations: Value| {
        let mut pod = pod();
        pod["metadata"]["annotations"] = annotations;
        pod
    };
    let refused = [
        (json!({"braid.network/ip-family": "IPv5"}), ["braid.network/ip-family", "IPv5"]),
        (json!({"braid.network/networks": "{}"}), ["braid.network/networks", "JSON list"]),
        (
            json!({"braid.network/ips": "10.0.0.1;10.0.0.2"}),
            ["braid.network/ips", "only pods of a StatefulSet"],
        ),
        (json!({"braid.network/ips": "10.9.0.1"}), ["10.9.0.1", "in no Subnet of any Network"]),
    ];
    for (annotations, parts) in refused {
        let (response, _) = admitted(&with(annotations), "shop").await;
        assert_eq!(response["allowed"], false);
        let sentence = response["status"]["message"].as_str().unwrap();
        assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence}");
    }
    let warned = [
        (json!({"braid.network/netwrok": "lab"}), "annotation braid.network/netwrok is not known"),
        (json!({"braid.network/network": "nope"}), "Network nope does not exist"),
        (json!({"braid.network/ip-retain-ttl": "1h"}), "braid.network/ip-retain-ttl does nothing"),
    ];
    for (annotations, part) in warned {
        let (response, _) = admitted(&with(annotations), "shop").await;
        assert_eq!(response["allowed"], true);
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.contains(part), "{warning}");
    }
}

#[tokio::test]
async fn a_time_limit_counts_where_addresses_are_kept() {
    let workload = |kind: &str, retain: Option<&str>| {
        let mut annotations = json!({"braid.network/ip-retain-ttl": "1h"});
        if let Some(retain) = retain {
            annotations["braid.network/ip-retain"] = json!(retain);
        }
        let spec = json!({"replicas": 1, "template": {"metadata": {"annotations": annotations}}});
        let object = json!({"apiVersion": "apps/v1", "kind": "X", "metadata": {"name": "web"}, "spec": spec});
        of_namespace(review(kind, "CREATE", "me", &Value::Null, &object), "shop")
    };
    for (kind, retain, kept) in [
        ("deployments", None, false),
        ("deployments", Some("true"), true),
        ("statefulsets", None, true),
        ("statefulsets", Some("false"), false),
    ] {
        let (_, answer) = ask(stocked(), &workload(kind, retain)).await;
        let response = &answer["response"];
        assert_eq!(response["allowed"], true, "{response}");
        let warned =
            response["warnings"][0].as_str().is_some_and(|w| w.contains("ip-retain-ttl does nothing"));
        assert_eq!(warned, !kept, "{kind} {retain:?}: {response}");
    }
    let mut of_set = pod();
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true}]);
    of_set["metadata"] = json!({"name": "db-0", "ownerReferences": owner,
        "annotations": {"braid.network/ip-retain-ttl": "1h"}});
    let (response, _) = admitted(&of_set, "shop").await;
    assert!(response["warnings"].is_null(), "{response}");
}

#[tokio::test]
async fn a_namespace_is_warned_and_never_refused() {
    let said = async |annotations: Value| {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "annotations": annotations}});
        let (status, answer) =
            ask(synced(), &review("namespaces", "UPDATE", "me", &Value::Null, &namespace)).await;
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
        answer["response"]["warnings"].clone()
    };
    assert_eq!(said(json!({"braid.network/network": "lab", "other/key": "x"})).await, Value::Null);
    for (annotations, parts) in [
        (json!({"braid.network/netwrok": "lab"}), ["braid.network/netwrok", "is not known"]),
        (json!({"braid.network/ips": "10.0.0.1"}), ["braid.network/ips", "counts on pods only"]),
        (json!({"braid.network/ip-family": "IPv5"}), ["`IPv5` is not known", "are refused"]),
    ] {
        let warnings = said(annotations).await;
        let warning = warnings[0].as_str().unwrap();
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
}

#[tokio::test]
async fn a_namespace_that_cannot_be_understood_is_named() {
    let webhook = stocked();
    let broken = NamespaceEntry { labels: BTreeMap::new(), choice: Err("no sense".to_owned()) };
    webhook.shared.world().namespaces.insert("broken".to_owned(), broken);
    let review = of_namespace(review("pods", "CREATE", "me", &Value::Null, &pod()), "broken");
    let (_, answer) = ask_at("/mutate-pods", webhook, &review).await;
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["message"], "namespace broken: no sense");
}

#[tokio::test]
async fn pods_that_braid_gives_no_address_are_left_alone() {
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let mut mirror = pod();
    mirror["metadata"]["annotations"] =
        json!({"kubernetes.io/config.mirror": "x", "braid.network/ip-family": "?"});
    for pod in [host, mirror] {
        let (response, after) = admitted(&pod, "shop").await;
        assert_eq!((&response["allowed"], &after), (&json!(true), &pod));
    }
}

// ---- Workloads

fn deployment(annotations: &Value, replicas: u32, strategy: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "strategy": strategy,
            "template": {"metadata": {"annotations": annotations}, "spec": {}},
        },
    })
}

async fn judged(resource: &str, old: &Value, new: &Value) -> Result<(), String> {
    let operation = if old.is_null() { "CREATE" } else { "UPDATE" };
    let review = of_namespace(review(resource, operation, "me", old, new), "shop");
    let (status, answer) = ask(stocked(), &review).await;
    assert_eq!(status, StatusCode::OK);
    match answer["response"]["allowed"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(answer["response"]["status"]["message"].as_str().unwrap_or_default().to_owned()),
    }
}

#[tokio::test]
async fn a_deployment_needs_an_address_for_each_pod_of_an_update() {
    let pool = json!({"braid.network/ips": "10.1.0.10-10.1.0.12"});
    let judge = async |replicas, strategy: Value| {
        judged("deployments", &Value::Null, &deployment(&pool, replicas, &strategy)).await
    };
    let rolling = |surge: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge}});
    assert_eq!(judge(2, Value::Null).await, Ok(()));
    for (replicas, strategy) in [(3, Value::Null), (3, rolling(json!("1%"))), (2, rolling(json!(2)))] {
        let sentence = judge(replicas, strategy).await.unwrap_err();
        assert!(sentence.contains("Network lab") && sentence.contains("1 is missing"), "{sentence}");
    }
    for strategy in [rolling(json!(0)), rolling(json!("0%")), json!({"type": "Recreate"})] {
        assert_eq!(judge(3, strategy).await, Ok(()));
    }
}

#[tokio::test]
async fn a_change_that_asks_for_nothing_new_passes() {
    let pool = json!({"braid.network/ips": "10.1.0.10"});
    let old = deployment(&pool, 3, &Value::Null);
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(judged("deployments", &old, &labelled).await, Ok(()));
    let mut changed = old.clone();
    changed["spec"]["template"]["spec"] = json!({"hostname": "x"});
    assert!(judged("deployments", &old, &changed).await.is_err());
    changed["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(judged("deployments", &old, &changed).await, Ok(()));
}

#[tokio::test]
async fn a_stateful_set_needs_an_entry_for_each_ordinal() {
    let set = |replicas: u32, start: u32| {
        let annotations = json!({"braid.network/ips": "10.1.0.1;10.1.0.2;10.1.0.3"});
        let mut set = deployment(&annotations, replicas, &Value::Null);
        set["spec"]["ordinals"] = json!({"start": start});
        set
    };
    assert_eq!(judged("statefulsets", &Value::Null, &set(3, 0)).await, Ok(()));
    let sentence = judged("statefulsets", &Value::Null, &set(3, 1)).await.unwrap_err();
    assert!(sentence.contains("the last pod has ordinal 3: 1 is missing"), "{sentence}");
}

// ---- Workloads that are scaled

/// As [`stocked`], with an API server that answers every request with `body`, and the paths that it was asked for. It
/// stays silent where there is no answer.
fn with_api(answer: Option<(u16, Value)>) -> (Webhook, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let paths = asked.clone();
    let service = service_fn(move |request: axum::http::Request<kube::client::Body>| {
        paths.lock().push(format!("{} {}", request.method(), request.uri().path()));
        let answer = answer.clone();
        async move {
            let Some((code, body)) = answer else { return std::future::pending().await };
            let body = axum::body::Body::from(body.to_string());
            let response = axum::http::Response::builder().status(code).body(body);
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    (Webhook { client: Client::new(service, "default"), ..stocked() }, asked)
}

/// An update of `<resource>/scale` of `web` in the namespace `shop`.
fn scaling(resource: &str, from: &Value, to: &Value) -> Value {
    let scale = |replicas: &Value| {
        let mut scale =
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {}});
        if !replicas.is_null() {
            scale["spec"]["replicas"] = replicas.clone();
        }
        scale
    };
    let mut review = of_namespace(review(resource, "UPDATE", "me", &scale(from), &scale(to)), "shop");
    review["request"]["name"] = json!("web");
    review["request"]["subResource"] = json!("scale");
    review["request"]["resource"] = json!({"group": "apps", "version": "v1", "resource": resource});
    review["request"]["kind"] = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
    review
}

#[tokio::test]
async fn scaling_is_refused_with_the_sentence_of_the_workload() {
    let pool = json!({"braid.network/ips": "10.1.0.10-10.1.0.12"});
    let list = json!({"braid.network/ips": "10.1.0.1;10.1.0.2;10.1.0.3"});
    let cases = [
        // One more during an update.
        ("deployments", &pool, 2, 3),
        ("replicasets", &pool, 3, 4),
        ("statefulsets", &list, 3, 4),
    ];
    for (resource, annotations, enough, too_many) in cases {
        let path = format!("GET /apis/apps/v1/namespaces/shop/{resource}/web");
        let ask_for = async |replicas: u32| {
            let (webhook, asked) = with_api(Some((200, deployment(annotations, 1, &Value::Null))));
            let (status, answer) = ask(webhook, &scaling(resource, &json!(1), &json!(replicas))).await;
            assert_eq!((status, asked.lock().as_slice()), (StatusCode::OK, &[path.clone()][..]));
            answer["response"].clone()
        };
        let allowed = ask_for(enough).await;
        assert_eq!((&allowed["allowed"], &allowed["warnings"]), (&json!(true), &Value::Null), "{resource}");
        let refused = ask_for(too_many).await;
        assert_eq!(refused["allowed"], false, "{resource}");
        let sentence = refused["status"]["message"].as_str().unwrap();
        assert!(sentence.contains("1 is missing"), "{sentence}");
        if resource != "replicasets" {
            let whole = deployment(annotations, too_many, &Value::Null);
            assert_eq!(judged(resource, &Value::Null, &whole).await.unwrap_err(), sentence);
        }
    }
}

#[tokio::test]
async fn scaling_down_is_never_refused_and_asks_nobody() {
    for (from, to) in [(json!(9), json!(8)), (json!(9), Value::Null), (json!(9), json!(9))] {
        let pool = json!({"braid.network/ips": "10.1.0.10"});
        let (webhook, asked) = with_api(Some((200, deployment(&pool, 9, &Value::Null))));
        let (_, answer) = ask(webhook, &scaling("deployments", &from, &to)).await;
        assert_eq!((&answer["response"]["allowed"], asked.lock().len()), (&json!(true), 0), "{from} to {to}");
    }
}

#[tokio::test]
async fn what_has_no_fixed_addresses_or_goes_away_is_scaled() {
    let plain = deployment(&json!({}), 1, &Value::Null);
    let mut leaving = deployment(&json!({"braid.network/ips": "10.1.0.10"}), 1, &Value::Null);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for workload in [plain, leaving] {
        let (webhook, _) = with_api(Some((200, workload)));
        let (_, answer) = ask(webhook, &scaling("deployments", &Value::Null, &json!(50))).await;
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"]["warnings"].is_null(), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_cannot_be_read_is_scaled_with_a_warning() {
    let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "metadata": {},
        "reason": "NotFound", "message": "deployments.apps \"web\" not found"});
    for (answer, part) in [(Some((404, missing)), "not found"), (None, "no answer within 1 s")] {
        let (webhook, _) = with_api(answer);
        let begun = tokio::time::Instant::now();
        let (_, answer) = ask(webhook, &scaling("deployments", &json!(1), &json!(50))).await;
        assert!(begun.elapsed().as_secs() <= 1, "the API server would not wait so long");
        assert_eq!(answer["response"]["allowed"], true);
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        let parts = ["deployments shop/web", "50 replicas", part];
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
}
