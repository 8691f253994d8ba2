use super::*;

use braid_journal::Journal;
use braid_meta_core::CniResult;

use crate::attachments::tests::record;
use crate::fake::FakeKernel;

fn new(dir: &std::path::Path) -> Loop<FakeKernel> {
    let attachments = Attachments::load(Journal::below(dir)).unwrap();
    Loop {
        node: "n1".into(),
        store: Arc::default(),
        attachments: Arc::new(attachments),
        plumbing: Arc::default(),
        shared: Arc::default(),
        metrics: Arc::default(),
        health: Arc::new(Health::new("start")),
        reports: watch::Sender::new(None),
        resync: Duration::from_secs(60),
    }
}

fn attach(all: &Attachments, plumbing: &FakeKernel, container: &str) {
    let mut r = record(container, "u1", "10.0.0.5");
    r.netns = "/proc/self/ns/net".into();
    all.begin(r.clone()).unwrap();
    plumbing.devices.lock().insert(crate::attachments::host_if(&r.attachment));
    drop(all.finish(&r.attachment, &CniResult::default()).unwrap());
}

#[tokio::test]
async fn an_interface_made_during_a_comparison_is_not_swept() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    // A device without attachment is left over and has to go; the pod that comes meanwhile must stay.
    l.plumbing.devices.lock().insert("braid0123456789".parse().unwrap());
    let (all, mut come) = (l.attachments.clone(), vec!["c3", "c2", "c1"]);
    let devices = Arc::downgrade(&l.plumbing);
    *l.plumbing.after_dump.lock() = Some(Box::new(move || {
        if let (Some(container), Some(plumbing)) = (come.pop(), devices.upgrade()) {
            attach(&all, &plumbing, container);
        }
    }));
    l.compare_and_apply(Cause::Change).await.unwrap();
    let swept: Vec<_> =
        l.plumbing.applied.lock().iter().filter(|s| s.starts_with("remove device")).cloned().collect();
    assert_eq!(swept, ["remove device braid0123456789"]);
    assert_eq!(l.plumbing.devices.lock().len(), 3);
}

#[tokio::test]
async fn a_lost_interface_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    attach(&l.attachments, &l.plumbing, "c1");
    l.plumbing.devices.lock().clear();
    l.compare_and_apply(Cause::Drift).await.unwrap();
    assert_eq!(l.plumbing.devices.lock().len(), 1);
    assert!(l.metrics.encode().contains("braid_node_plan_steps_total{kind=\"link\"} 1"));
}

#[tokio::test]
async fn a_lost_interface_without_its_namespace_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    let r = record("c1", "u1", "10.0.0.5");
    l.attachments.begin(r).unwrap();
    let Done { outcomes, .. } = l.compare_and_apply(Cause::Drift).await.unwrap();
    assert!(!outcomes.iter().any(|o| o.kind == "link"), "{outcomes:?}");
}

#[tokio::test]
async fn ready_comes_with_the_first_success_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    l.plumbing.break_with(Some("no"));
    let begun = Instant::now();
    let failed = l.tell(l.compare_and_apply(Cause::Change).await, begun, true);
    assert!(failed && l.health.waiting_for().is_some());
    let report = l.reports.borrow().clone().unwrap();
    assert!(report.failures.iter().any(|f| f.starts_with("cannot ") && f.ends_with(": no")), "{report:?}");

    l.plumbing.break_with(None);
    let failed = l.tell(l.compare_and_apply(Cause::Change).await, begun, true);
    assert!(!failed && l.health.waiting_for().is_none());

    l.plumbing.break_with(Some("no"));
    l.tell(l.compare_and_apply(Cause::Resync).await, begun, false);
    let report = l.reports.borrow().clone().unwrap();
    assert!(
        report.waiting_for.is_none() && !report.failures.is_empty(),
        "pods are as well connected as before"
    );
}

#[test]
fn a_network_that_waits_for_the_controller_delays_a_new_node_for_a_while() {
    let network = |reason: &str| LocalNetwork {
        ready: false,
        reason: reason.into(),
        message: "m".into(),
        parent: None,
        device: None,
        mtu: None,
        vtep: None,
    };
    let waits = NotReady::WaitingForAddress { family: braid_types::Family::V4 };
    assert_eq!(waits.reason(), WAITING_FOR_ADDRESS);
    let all = BTreeMap::from([
        ("a".to_owned(), network("NoParentDevice")),
        ("b".to_owned(), network(waits.reason())),
    ]);
    assert_eq!(waiting_for(&all, false, true).as_deref(), Some("Network `b`: m"));
    assert_eq!(waiting_for(&all, false, false), None);
    assert!(waiting_for(&all, true, false).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_loop_repairs_what_the_kernel_tells_of() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    attach(&l.attachments, &l.plumbing, "c1");
    let (plumbing, shared, mut reports) = (l.plumbing.clone(), l.shared.clone(), l.reports.subscribe());
    let stop = CancellationToken::new();
    let informers = braid_informer::Informers::default();
    let proof = informers.in_sync().await;
    let running = tokio::spawn(l.run(proof, stop.clone()));
    reports.wait_for(Option::is_some).await.unwrap();
    plumbing.devices.lock().clear();
    shared.drift.notify_one();
    while plumbing.devices.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap();
    assert_eq!(plumbing.devices.lock().len(), 1, "stopping changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_compares_rarely_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let l = Loop { resync: Duration::from_secs(3600), ..new(dir.path()) };
    let (health, mut reports) = (l.health.clone(), l.reports.subscribe());
    let stop = CancellationToken::new();
    let proof = braid_informer::Informers::default().in_sync().await;
    let running = tokio::spawn(l.run(proof, stop.clone()));
    reports.wait_for(Option::is_some).await.unwrap();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(health.is_alive());
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_pod_whose_entry_cannot_be_read_keeps_its_device() {
    for name in ["c1:eth0".to_owned(), format!("{}~0:eth0", "x".repeat(150))] {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(dir.path());
        std::fs::create_dir_all(journal.attachments.dir()).unwrap();
        std::fs::write(journal.attachments.dir().join(&name), "torn").unwrap();
        let l = new(dir.path());
        let device = crate::attachments::host_if(&record("c1", "u1", "10.0.0.5").attachment);
        l.plumbing.devices.lock().insert(device);
        l.compare_and_apply(Cause::Change).await.unwrap();
        assert_eq!(l.plumbing.devices.lock().len(), 1, "{name}");
    }
}

/// A view in which this Network has its device.
fn view_with_overlay() -> NodeView {
    let link = braid_node_core::view::HostLink {
        mtu: 1500,
        up: true,
        addrs: vec![("192.0.2.2".parse().unwrap(), 24)],
        default_route: [braid_types::Family::V4].into(),
        outward: true,
    };
    let mut view = NodeView { families: braid_types::Family::ALL.into(), ..NodeView::default() };
    view.links.insert("eth0".parse().unwrap(), link);
    view.networks.insert("overlay".into(), crate::node_tests::network());
    view
}

#[test]
fn a_network_whose_device_cannot_be_had_is_not_ready() {
    let view = view_with_overlay();
    assert!(local_networks(&view, &[], &[])["overlay"].ready);

    let desired = Desired::of(&view);
    let device: IfName = "eth0.vxlan4".parse().unwrap();
    let step = Step::AddVxlan(desired.links[&device].clone());
    let refused = PlumbingError { fault: Fault::Exists, ..PlumbingError::other("File exists") };
    let mut outcomes = [crate::plumbing::outcome(&step, Some(refused))];
    explain(&mut outcomes, &[(device.clone(), "other0".parse().unwrap())].into());
    let conflict = Conflict { name: device, found: "a hardware device".into() };
    for (conflicts, outcomes, part) in
        [(&[][..], &outcomes[..], "other0"), (&[conflict][..], &[][..], "a hardware device")]
    {
        let local = &local_networks(&view, conflicts, outcomes)["overlay"];
        assert!(!local.ready && local.vtep.is_none(), "{local:?}");
        assert_eq!(local.usable_mtu([]), None);
        assert!(local.reason == DEVICE_FAILED && local.message.contains(part), "{local:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_is_lost_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let l = new(dir.path());
    let key =
        |host: u8| ProxyKey { dev: "eth0".parse().unwrap(), addr: format!("10.0.0.{host}").parse().unwrap() };
    let both: BTreeSet<ProxyKey> = [key(5), key(6)].into();
    let noticed = async || tokio::time::timeout(PROXY_LOOK * 3, l.proxy_lost()).await.is_ok();
    assert!(!noticed().await, "nothing is answered for");
    l.shared.answers_for(&both);
    l.plumbing.proxies.lock().clone_from(&both);
    assert!(!noticed().await);
    l.plumbing.proxies.lock().remove(&key(5));
    assert!(noticed().await);
    l.shared.answers_no_longer(&[key(5).addr].into());
    assert!(!noticed().await, "that one went with its pod");
}
