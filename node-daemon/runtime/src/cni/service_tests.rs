use super::*;

use braid_informer::Informers;
use braid_journal::Journal;
use braid_meta_core::PodRef;
use braid_node_core::view::NodeView;
use braid_rpc::PROTOCOL_VERSION;

use crate::fake::{FakeKernel, NoApi};
use crate::index::tests::{applied, instance, pod};
use crate::index::{Change, LocalNetwork, pod_key};
use crate::store::Effect;

#[path = "flat_tests.rs"]
mod flat;

pub(crate) type Server = Cni<FakeKernel, NoApi>;

struct Rig {
    cni: Arc<Server>,
    proof: watch::Sender<Option<InSync>>,
    dir: tempfile::TempDir,
}

async fn proof() -> InSync {
    Informers::default().in_sync().await
}

/// A server that is in sync, over a journal.
pub(crate) async fn server(dir: &std::path::Path) -> Server {
    parts(dir).await.0
}

async fn parts(dir: &std::path::Path) -> (Server, watch::Sender<Option<InSync>>) {
    let attachments = Attachments::load(Journal::below(dir)).unwrap();
    let (proof_tx, in_sync) = watch::channel(Some(proof().await));
    let (turns, busy) = Server::queues();
    let cni = Server {
        store: Arc::default(),
        attachments: Arc::new(attachments),
        plumbing: Arc::default(),
        shared: Arc::default(),
        lookup: NoApi::shared(),
        torn_down: Arc::default(),
        metrics: Arc::default(),
        health: Arc::new(Health::new("start")),
        in_sync,
        leftovers: Arc::default(),
        patience: Duration::from_secs(30),
        duplicate_wait: Duration::from_millis(150),
        stop: CancellationToken::new(),
        turns,
        busy,
    };
    (cni, proof_tx)
}

/// A server whose cluster has one pod with both addresses and one Network that is ready.
async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let (cni, proof_tx) = parts(dir.path()).await;
    cni.shared.set_view(NodeView { families: Family::ALL.into(), ..NodeView::default() });
    let set = ["10.0.0.5", "fd00::5"];
    cni.store.update(|index| {
        index.pods.apply(Change::Applied(pod_key("ns", "pod"), Ok(pod("u1"))));
        for address in set {
            index.apply_own(applied(instance(address, Some("u1"), &set)));
        }
        let ready = LocalNetwork {
            ready: true,
            reason: "Ready".into(),
            message: String::new(),
            parent: None,
            device: None,
            mtu: Some(1450),
            vtep: None,
        };
        index.local.insert("overlay".into(), ready);
        Effect::Quiet
    });
    Rig { cni: Arc::new(cni), proof: proof_tx, dir }
}

fn id(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() }
}

fn pod_ref() -> PodRef {
    PodRef { namespace: "ns".into(), name: "pod".into(), uid: "u1".into() }
}

fn add(container: &str) -> Verb {
    Verb::Add(Add {
        attachment: id(container),
        netns: format!("/run/netns/{container}"),
        netns_id: None,
        pod: pod_ref(),
        network: "braid".into(),
        config: "{}".into(),
    })
}

fn del(container: &str) -> Verb {
    Verb::Del(Del {
        attachment: id(container),
        netns: None,
        pod: Some(pod_ref()),
        network: "braid".into(),
        config: "{}".into(),
    })
}

async fn ask(cni: &Server, verb: Verb) -> Reply {
    cni.answer(Request { version: PROTOCOL_VERSION, id: 1, deadline_ms: 60_000, verb }).await
}

async fn error(cni: &Server, verb: Verb) -> CniError {
    match ask(cni, verb).await {
        Reply::Failed(error) => error,
        other => panic!("no error: {other:?}"),
    }
}

fn devices(rig: &Rig) -> usize {
    rig.cni.plumbing.devices.lock().len()
}

fn files(rig: &Rig) -> usize {
    rig.cni.attachments.journal().attachments.list().unwrap().len()
}

#[tokio::test]
async fn add_and_del() {
    let rig = rig().await;
    let Reply::Attached { result, plan } = ask(&rig.cni, add("c1")).await else { panic!("not attached") };
    assert_eq!(plan, [Attachment::native("eth0".parse().unwrap())]);
    let ips: Vec<_> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(ips, ["10.0.0.5/32", "fd00::5/128"]);
    assert_eq!(result.interfaces.len(), 2);
    assert_eq!((result.interfaces[1].name.as_str(), result.interfaces[1].mtu), ("eth0", Some(1450)));
    assert_eq!(result.interfaces[1].sandbox, "/run/netns/c1");
    assert_eq!(result.routes.len(), 2);
    assert_eq!((devices(&rig), files(&rig)), (1, 1));
    let told = rig.cni.store.read(|i| crate::attached::unsaid(i, &rig.cni.attachments.all()));
    assert_eq!(told.len(), 2);

    for _ in 0..2 {
        assert_eq!(ask(&rig.cni, del("c1")).await, Reply::Done, "DEL can be repeated");
        assert_eq!((devices(&rig), files(&rig)), (0, 0));
    }
}

#[tokio::test]
async fn an_interface_is_made_without_a_route_to_what_another_pod_holds() {
    let rig = rig().await;
    ask(&rig.cni, add("c1")).await;
    let record = rig.cni.attachments.get(&id("c1")).unwrap().record;
    let routes = || rig.cni.wiring(&record).unwrap().routes.len();
    assert_eq!(routes(), 2);
    rig.cni.store.update(|index| index.apply_own(applied(instance("10.0.0.5", Some("u2"), &["10.0.0.5"]))));
    assert_eq!(routes(), 1);
}

#[tokio::test]
async fn a_failed_add_leaves_nothing() {
    let rig = rig().await;
    rig.cni.plumbing.break_with(Some("no such namespace"));
    let e = error(&rig.cni, add("c1")).await;
    assert_eq!((e.code, e.details.as_str()), (ErrorCode::ATTACH_FAILED, "no such namespace"));
    assert_eq!((devices(&rig), files(&rig), rig.cni.attachments.all().len()), (0, 0, 0));
}

#[tokio::test]
async fn an_add_that_comes_after_the_cluster_was_told_makes_nothing() {
    let rig = rig().await;
    assert!(rig.cni.attachments.let_go("u1"), "nothing is attached");
    assert_eq!(error(&rig.cni, add("c1")).await.code, ErrorCode::UNKNOWN_CONTAINER);
    assert_eq!((devices(&rig), files(&rig), rig.cni.attachments.all().len()), (0, 0, 0));
    // The other way round: while the interface is being made, the cluster is told nothing.
    let rig = self::rig().await;
    let attachments = rig.cni.attachments.clone();
    let (told_tx, told) = std::sync::mpsc::channel();
    *rig.cni.plumbing.on_attach.lock() =
        Some(Box::new(move || told_tx.send(attachments.let_go("u1")).unwrap()));
    ask(&rig.cni, add("c1")).await;
    assert!(!told.recv().unwrap());
}

#[tokio::test]
async fn the_journal_knows_an_interface_before_the_kernel_does() {
    let rig = rig().await;
    let attachments = rig.cni.attachments.clone();
    let (seen_tx, seen) = std::sync::mpsc::channel();
    *rig.cni.plumbing.on_attach.lock() = Some(Box::new(move || {
        seen_tx.send(attachments.journal().attachments.list().unwrap().len()).unwrap();
    }));
    ask(&rig.cni, add("c1")).await;
    assert_eq!(seen.recv().unwrap(), 1);
}

#[tokio::test]
async fn a_del_that_cannot_be_done_succeeds_and_is_remembered() {
    let rig = rig().await;
    ask(&rig.cni, add("c1")).await;
    rig.cni.plumbing.break_with(Some("busy"));
    assert_eq!(ask(&rig.cni, del("c1")).await, Reply::Done);
    assert_eq!(rig.cni.attachments.get(&id("c1")).unwrap().stage, Stage::Leaving);
    assert!(rig.cni.attachments.pods().contains("u1"), "its addresses are not given back yet");
    rig.cni.plumbing.break_with(None);
    assert!(matches!(ask(&rig.cni, add("c1")).await, Reply::Attached { .. }), "the place is cleared first");
}

#[tokio::test]
async fn what_an_agent_before_left_half_done_is_cleared() {
    let rig = rig().await;
    ask(&rig.cni, add("c1")).await;
    let twice = error(&rig.cni, add("c1")).await;
    assert_eq!(twice.code, ErrorCode::ATTACH_FAILED);

    let mut half = rig.cni.attachments.get(&id("c1")).unwrap().record;
    half.state = RecordState::Started;
    rig.cni.attachments.journal().attachments.put(&half).unwrap();
    let attachments = Attachments::load(Journal::below(rig.dir.path())).unwrap();
    assert_eq!(attachments.get(&id("c1")).unwrap().stage, Stage::Interrupted);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_lists_add_says_try_again_and_del_works() {
    let rig = rig().await;
    ask(&rig.cni, add("c1")).await;
    rig.proof.send_replace(None);
    let e = error(&rig.cni, add("c2")).await;
    assert_eq!(e.code, ErrorCode::TRY_AGAIN);
    assert_eq!(ask(&rig.cni, del("c1")).await, Reply::Done);
    assert_eq!(devices(&rig), 0);
}

#[tokio::test]
async fn an_add_that_only_waits_ends_with_the_agent() {
    let rig = rig().await;
    rig.cni.store.update(|index| {
        index.local.clear();
        Effect::Quiet
    });
    let cni = rig.cni.clone();
    let waiting = tokio::spawn(async move { error(&cni, add("c1")).await });
    rig.cni.stop.cancel();
    assert_eq!(waiting.await.unwrap().code, ErrorCode::TRY_AGAIN);
    assert_eq!((devices(&rig), files(&rig)), (0, 0));
}

#[tokio::test]
async fn check_compares_with_what_add_made() {
    let rig = rig().await;
    let Reply::Attached { result, .. } = ask(&rig.cni, add("c1")).await else { panic!("not attached") };
    let check = |container: &str, prev_result: &CniResult| {
        Verb::Check(Check {
            attachment: id(container),
            netns: "/run/netns/c1".into(),
            pod: None,
            network: "braid".into(),
            prev_result: prev_result.clone(),
            config: "{}".into(),
        })
    };
    assert_eq!(ask(&rig.cni, check("c1", &result)).await, Reply::Done);
    assert_eq!(error(&rig.cni, check("c2", &result)).await.code, ErrorCode::UNKNOWN_CONTAINER);
    let lacking = error(&rig.cni, check("c1", &CniResult::default())).await;
    assert_eq!(
        (lacking.code, lacking.msg.as_str()),
        (ErrorCode::CHECK_FAILED, "prevResult lacks address 10.0.0.5/32")
    );
    rig.cni.plumbing.devices.lock().clear();
    let missing = error(&rig.cni, check("c1", &result)).await;
    assert!(missing.code == ErrorCode::CHECK_FAILED && missing.details.contains("is missing"), "{missing}");
}

#[tokio::test]
async fn gc_removes_what_the_runtime_does_not_know_and_nothing_of_other_networks() {
    let rig = rig().await;
    for container in ["c1", "c2", "c3"] {
        ask(&rig.cni, add(container)).await;
    }
    let mut foreign = rig.cni.attachments.get(&id("c3")).unwrap().record;
    foreign.network = "other".into();
    rig.cni.attachments.begin(foreign).unwrap();
    let gc = Gc { network: "braid".into(), valid_attachments: vec![id("c1")], config: "{}".into() };
    assert_eq!(ask(&rig.cni, Verb::Gc(gc)).await, Reply::Done);
    let left: Vec<_> = rig.cni.attachments.all().into_iter().map(|e| e.record.attachment).collect();
    assert_eq!(left, [id("c1"), id("c3")]);
}

#[tokio::test]
async fn status_says_what_is_waited_for() {
    let rig = rig().await;
    let status = || Verb::Status(Status { network: "braid".into(), config: "{}".into() });
    let e = error(&rig.cni, status()).await;
    assert_eq!((e.code, e.msg.as_str()), (ErrorCode::NOT_AVAILABLE, "start"));
    rig.cni.health.ready();
    assert_eq!(ask(&rig.cni, status()).await, Reply::Done);

    // And after that of the present state of the Network that pods get unasked.
    let default = crate::node_tests::network();
    rig.cni.store.update(|index| {
        Effect::kernel_if(index.networks.apply(Change::Applied("overlay".into(), Ok(default))))
    });
    for (reason, ready) in [("NoParentDevice", false), ("WaitingForAddress", true), ("DeviceFailed", false)] {
        rig.cni.store.update(|index| {
            let local = index.local.get_mut("overlay").unwrap();
            (local.ready, local.reason, local.message) = (false, reason.into(), "why".into());
            Effect::Quiet
        });
        if ready {
            assert_eq!(ask(&rig.cni, status()).await, Reply::Done);
            continue;
        }
        let e = error(&rig.cni, status()).await;
        assert_eq!(
            (e.code, e.msg.as_str()),
            (ErrorCode::NOT_AVAILABLE, "Network `overlay` on this node: why")
        );
    }
    rig.cni.store.update(|index| {
        index.local.clear();
        Effect::Quiet
    });
    assert_eq!(ask(&rig.cni, status()).await, Reply::Done, "a node that takes no part in it");
}

#[tokio::test]
async fn every_kind_of_failure_has_its_code() {
    let rig = rig().await;
    for (fault, code) in [
        (Fault::NamespaceGone, ErrorCode::UNKNOWN_CONTAINER),
        (Fault::OtherNamespace, ErrorCode::INVALID_ENVIRONMENT),
        (Fault::NameTakenInPod, ErrorCode::INVALID_ENVIRONMENT),
        (Fault::Passing, ErrorCode::TRY_AGAIN),
        (Fault::Journal, ErrorCode::IO),
        (Fault::PodOver, ErrorCode::UNKNOWN_CONTAINER),
        (Fault::Other, ErrorCode::ATTACH_FAILED),
    ] {
        *rig.cni.plumbing.broken.lock() = Some(PlumbingError { fault, ..PlumbingError::other("why") });
        let e = error(&rig.cni, add("c1")).await;
        assert_eq!((e.code, e.details.as_str()), (code, "why"));
    }
}

#[tokio::test]
async fn what_a_failed_add_left_is_remembered_and_swept() {
    let rig = rig().await;
    *rig.cni.plumbing.broken.lock() = Some(PlumbingError::other("no").leaving_something());
    error(&rig.cni, add("c1")).await;
    assert_eq!(rig.cni.attachments.get(&id("c1")).unwrap().stage, Stage::Leaving);
    rig.cni.plumbing.break_with(None);
    rig.cni.leftovers.notified().await;
    assert!(crate::sweep::once(&rig.cni, proof().await).await);
    assert_eq!((files(&rig), rig.cni.attachments.all().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_del_that_could_not_be_done_is_repeated_soon() {
    let rig = rig().await;
    ask(&rig.cni, add("c1")).await;
    let stop = CancellationToken::new();
    let sweep = tokio::spawn(crate::sweep::run(rig.cni.clone(), true, proof().await, stop.clone()));
    rig.cni.plumbing.break_with(Some("busy"));
    ask(&rig.cni, del("c1")).await;
    rig.cni.plumbing.break_with(None);
    let begun = Instant::now();
    while !rig.cni.attachments.all().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "the next sweep was waited for");
    assert!(!rig.cni.attachments.pods().contains("u1"));
    stop.cancel();
    sweep.await.unwrap();
}
