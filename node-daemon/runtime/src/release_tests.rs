use axum::body::Body;
use axum::http::{Request, Response};
use braid_journal::Journal;
use braid_meta_core::CniResult;
use braid_types::model::{HandoverDef, MigrationRole};
use tower::service_fn;

use super::*;
use crate::attachments::BeginError;
use crate::attachments::tests::record;
use crate::fake::NoApi;
use crate::index::tests::{applied, instance, pod};
use crate::index::{Change, OwnPod, pod_key};

fn names(found: &[Due]) -> Vec<(&str, bool)> {
    found.iter().map(|d| (d.name.as_str(), d.confirm)).collect()
}

fn set(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(ToString::to_string).collect()
}

fn with_address() -> Index {
    let mut index = Index::default();
    index.apply_own(applied(instance("10.0.0.5", Some("u1"), &["10.0.0.5"])));
    index.apply_own(applied(instance("10.0.0.1", None, &[])));
    index
}

fn show(index: &mut Index, change: impl FnOnce(&mut OwnPod)) {
    let mut own = pod("u1");
    change(&mut own);
    index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(own)));
}

#[test]
fn a_living_pod_keeps_its_address_whatever_happens_to_its_sandbox() {
    let mut index = with_address();
    show(&mut index, |_| ());
    assert_eq!(due(&index, "n1", &set(&[]), &set(&["u1"])), []);
}

#[test]
fn a_terminating_pod_gives_back_after_its_teardown_only() {
    let mut index = with_address();
    show(&mut index, |p| p.terminating = true);
    assert_eq!(due(&index, "n1", &set(&[]), &set(&[])), [], "it may be about to get its interface");
    assert_eq!(due(&index, "n1", &set(&["u1"]), &set(&["u1"])), [], "another sandbox of it has one");
    assert_eq!(names(&due(&index, "n1", &set(&[]), &set(&["u1"]))), [("10.0.0.5", false)]);
}

#[test]
fn a_pod_that_is_over_gives_back_even_when_nobody_remembers_its_teardown() {
    let mut index = with_address();
    assert_eq!(
        names(&due(&index, "n1", &set(&[]), &set(&[]))),
        [("10.0.0.5", true)],
        "unknown: to be confirmed"
    );
    assert_eq!(
        due(&index, "n1", &set(&["u1"]), &set(&[])),
        [],
        "while an interface exists, nothing is given back"
    );
    show(&mut index, |p| p.finished = true);
    assert_eq!(names(&due(&index, "n1", &set(&[]), &set(&[]))), [("10.0.0.5", false)]);
    show(&mut index, |p| p.uid = "u2".into());
    assert_eq!(
        names(&due(&index, "n1", &set(&[]), &set(&[]))),
        [("10.0.0.5", true)],
        "a successor is another pod"
    );
}

#[test]
fn while_some_interface_may_be_hidden_only_a_del_frees() {
    let found = due(&with_address(), "n1", &set(&[]), &set(&[]));
    assert_eq!(names(&only_torn_down(found.clone(), &set(&["u2"]))), []);
    assert_eq!(names(&only_torn_down(found, &set(&["u1"]))), [("10.0.0.5", true)]);
}

#[test]
fn what_is_given_back_is_not_given_back_again() {
    let mut index = Index::default();
    for change in [
        |d: &mut braid_types::model::InstanceDef| d.phase = Phase::Releasing,
        |d: &mut braid_types::model::InstanceDef| d.phase = Phase::Reserved,
        |d: &mut braid_types::model::InstanceDef| d.torn_down = Some(1),
        |d: &mut braid_types::model::InstanceDef| d.deleting = true,
    ] {
        let mut def = instance("10.0.0.5", Some("u1"), &["10.0.0.5"]);
        change(&mut def);
        index.apply_own(applied(def));
        assert_eq!(due(&index, "n1", &set(&[]), &set(&["u1"])), []);
    }
}

#[test]
fn the_patch_names_the_very_object() {
    let index = with_address();
    let found = due(&index, "n1", &set(&[]), &set(&[]));
    let patch = torn_down_patch(&found[0], None, 0);
    let mut expected = json!({
        "metadata": {"uid": "uid-10.0.0.5", "resourceVersion": "1"},
        "status": {"phase": "Releasing", "reason": "TornDown", "tornDownAt": "1970-01-01T00:00:00Z"},
    });
    assert_eq!(patch, expected);
    expected["status"]["attachedAt"] = json!("1970-01-01T00:00:09Z");
    assert_eq!(torn_down_patch(&found[0], Some(9), 0), expected, "nobody has said that it was in use");
}

/// The address of a machine on `n2` whose second pod is `u1` on `node`.
fn shared(node: &str, torn_down: bool) -> Index {
    let mut index = Index::default();
    let mut def = instance("10.0.0.5", Some("holder"), &["10.0.0.5"]);
    let pod = PodRef { namespace: "ns".into(), name: "pod".into(), uid: "u1".into() };
    let (node, role) = (node.into(), MigrationRole::Source);
    def.node = Some("n2".into());
    def.handover = Some(Box::new(HandoverDef { pod, node, role, torn_down }));
    index.apply_host_routed(Change::Applied(def.name.to_string(), Ok(def)));
    index
}

#[test]
fn of_a_second_pod_it_is_said_once_that_its_interface_is_gone() {
    let found = due(&shared("n1", false), "n1", &set(&[]), &set(&[]));
    assert_eq!(names(&found), [("10.0.0.5", true)]);
    let patch = torn_down_patch(&found[0], Some(9), 0);
    let said = json!({"metadata": {"uid": "uid-10.0.0.5"}, "status": {"secondTornDown": "u1"}});
    assert_eq!(patch, said, "of the holder it says nothing");
    for (index, attached) in
        [(shared("n1", true), set(&[])), (shared("n3", false), set(&[])), (shared("n1", false), set(&["u1"]))]
    {
        assert_eq!(due(&index, "n1", &attached, &set(&[])), []);
    }
    let mut index = shared("n1", false);
    show(&mut index, |_| ());
    assert_eq!(due(&index, "n1", &set(&[]), &set(&["u1"])), [], "it may get an interface");
    show(&mut index, |p| p.terminating = true);
    assert_eq!(names(&due(&index, "n1", &set(&[]), &set(&["u1"]))), [("10.0.0.5", false)]);
}

/// A releaser, and what the API server is told.
fn releaser(dir: &std::path::Path) -> (Releaser<NoApi>, Arc<Mutex<Vec<serde_json::Value>>>) {
    let told: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
    let log = told.clone();
    let service = service_fn(move |request: Request<kube::client::Body>| {
        let log = log.clone();
        async move {
            let body = request.into_body().collect_bytes().await.expect("a body");
            log.lock().push(serde_json::from_slice(&body).expect("JSON"));
            let object = json!({
                "apiVersion": "braid.network/v1", "kind": "IPInstance", "metadata": {"name": "10.0.0.5"},
                "spec": {"network": "n", "subnet": "s", "address": "10.0.0.5/24", "interface": "eth0", "set": []},
            });
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(object.to_string())))
        }
    });
    let releaser = Releaser {
        client: Client::new(service, "default"),
        node: "n1".to_owned(),
        store: Arc::default(),
        attachments: Arc::new(Attachments::load(Journal::below(dir)).unwrap()),
        torn_down: Arc::default(),
        lookup: NoApi::shared(),
        metrics: Arc::default(),
    };
    (releaser, told)
}

#[tokio::test]
async fn an_address_is_given_back_when_no_add_can_begin_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (releaser, told) = releaser(dir.path());
    let mut index = with_address();
    show(&mut index, |p| p.finished = true);
    let found = due(&index, "n1", &set(&[]), &set(&[]));
    // An ADD that has begun since the look at the interfaces.
    let add = record("c1", "u1", "10.0.0.5");
    releaser.attachments.begin(add.clone()).unwrap();
    assert!(matches!(releaser.give_back(found[0].clone()).await, Outcome::Settled));
    assert_eq!(*told.lock(), Vec::<serde_json::Value>::new(), "its interface may have the address");

    drop(releaser.attachments.finish(&add.attachment, &CniResult::default()).unwrap());
    releaser.attachments.forget(&add.attachment).unwrap();
    assert!(matches!(releaser.give_back(found[0].clone()).await, Outcome::Settled));
    let said = told.lock().clone();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["status"]["phase"], "Releasing");
    assert_eq!(said[0]["status"]["attachedAt"], "1970-01-01T00:00:01Z", "since when the interface had it");
    assert!(matches!(releaser.attachments.begin(add), Err(BeginError::LetGo)));
}
