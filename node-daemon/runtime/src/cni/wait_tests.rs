use super::*;

use std::sync::atomic::{AtomicUsize, Ordering};

use braid_types::InstanceName;
use braid_types::model::{Phase, PodRef as Holder, VtepDef};

use crate::index::{Change, Held, LocalNetwork, OwnPod, Refusal, pod_key};
use crate::store::Effect;

/// Answers every question alike and counts them; `Err` stands for an API server that is down.
struct Lookup(Result<Option<Vec<String>>, ()>, AtomicUsize);

impl Lookup {
    fn new(answer: Result<Option<&[&str]>, ()>) -> Arc<Self> {
        let answer = answer.map(|found| found.map(|uids| uids.iter().map(ToString::to_string).collect()));
        Arc::new(Self(answer, AtomicUsize::new(0)))
    }
}

impl PodLookup for Lookup {
    async fn look_up(&self, _: &str, _: &str) -> Result<Option<Vec<String>>, RequestError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.clone().map_err(|()| RequestError::Timeout)
    }
}

fn pod_ref() -> PodRef {
    PodRef { namespace: "ns".into(), name: "web".into(), uid: "u1".into() }
}

fn show_pod(store: &Store, change: impl FnOnce(&mut OwnPod)) {
    let mut pod = OwnPod {
        namespace: "ns".into(),
        name: "web".into(),
        uid: "u1".into(),
        mirror_of: None,
        terminating: false,
        finished: false,
        refusal: None,
    };
    change(&mut pod);
    store.update(|index| {
        index.pods.apply(Change::Applied(pod_key("ns", "web"), Ok(pod)));
        Effect::Quiet
    });
}

fn grant(store: &Store, address: &str, set: &[&str]) {
    let address = address.parse().unwrap();
    let def = InstanceDef {
        name: InstanceName::new("", address),
        uid: "o".into(),
        network: "overlay".into(),
        subnet: "s".into(),
        prefix_len: 16,
        gateway: None,
        mac: None,
        pod: Some(Holder { namespace: "ns".into(), name: "web".into(), uid: "u1".into() }),
        interface: "eth0".into(),
        node: Some("n1".into()),
        set: set.iter().map(|a| a.parse().unwrap()).collect(),
        owner: None,
        retain_seconds: None,
        retain_until: None,
        reserved_at: None,
        declared: false,
        attached: false,
        phase: Phase::Bound,
        torn_down: None,
        release_at: None,
        handover: None,
        host_routed: false,
        deleting: false,
    };
    store.update(|index| {
        let held = Held { def, resource_version: "1".into(), attached: false, sandbox: None };
        index.apply_own(Change::Applied(held.def.name.to_string(), Ok(held)));
        Effect::Quiet
    });
}

fn set_up(store: &Store, ready: bool) {
    let local = LocalNetwork {
        ready,
        reason: "NoParent".into(),
        message: "no interface fits".into(),
        parent: None,
        device: None,
        mtu: Some(1450),
        vtep: None,
    };
    store.update(|index| {
        index.local.insert("overlay".into(), local);
        Effect::Quiet
    });
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

const PAIR: [&str; 2] = ["10.0.0.5", "fd00::5"];

#[tokio::test(start_paused = true)]
async fn waits_for_pod_network_and_both_addresses_in_any_order() {
    let store = Arc::new(Store::default());
    let lookup = Lookup::new(Ok(Some(&["u1"])));
    let waiting = tokio::spawn({
        let (store, lookup) = (store.clone(), lookup.clone());
        async move { granted(&store, &lookup, &pod_ref(), soon()).await }
    });
    tokio::task::yield_now().await;
    grant(&store, PAIR[1], &PAIR);
    tokio::task::yield_now().await;
    show_pod(&store, |_| ());
    tokio::task::yield_now().await;
    grant(&store, PAIR[0], &PAIR);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "the Network is not there yet");
    set_up(&store, true);
    let granted = waiting.await.unwrap().unwrap();
    assert_eq!((granted.instances.len(), granted.mtu, granted.pod_uid.as_str()), (2, 1450, "u1"));
    assert_eq!(lookup.1.load(Ordering::Relaxed), 0, "nothing was asked past the watch");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_tells_what_was_missing() {
    let store = Store::default();
    let lookup = Lookup::new(Ok(Some(&["u1"])));
    let cases: [(&dyn Fn(), &str); 4] = [
        (&|| (), "the API server to show the pod"),
        (&|| show_pod(&store, |_| ()), "the controller to grant addresses to pod ns/web"),
        (&|| grant(&store, PAIR[0], &PAIR), "address fd00::5, which was granted along with others"),
        (&|| grant(&store, PAIR[1], &PAIR), "Network `overlay` to be set up on this node"),
    ];
    for (step, missing) in cases {
        step();
        let error = granted(&store, &lookup, &pod_ref(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.msg), (ErrorCode::TRY_AGAIN, format!("gave up waiting for {missing}")));
    }
    set_up(&store, false);
    let error = granted(&store, &lookup, &pod_ref(), soon()).await.unwrap_err();
    assert!(error.msg.ends_with("Network `overlay` on this node: no interface fits"), "{}", error.msg);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_wait_with_the_controllers_sentence() {
    let store = Store::default();
    let refusal = Refusal { reason: "SubnetFull".into(), message: "Subnet `web` has no free address".into() };
    show_pod(&store, |pod| pod.refusal = Some(refusal));
    let lookup = Lookup::new(Ok(None));
    let error = granted(&store, &lookup, &pod_ref(), soon()).await.unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (ErrorCode::TRY_AGAIN, "Subnet `web` has no free address"));

    // The address came, the old refusal is still on the pod.
    grant(&store, PAIR[0], &PAIR[..1]);
    set_up(&store, true);
    assert!(granted(&store, &lookup, &pod_ref(), soon()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_vanished_pod_is_an_error_and_an_unreachable_api_is_none() {
    let store = Store::default();
    set_up(&store, true);
    for answer in [Ok(None), Ok(Some(&["u2"][..]))] {
        let error = granted(&store, &Lookup::new(answer), &pod_ref(), soon()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::UNKNOWN_CONTAINER, "without addresses");
    }
    grant(&store, PAIR[0], &PAIR[..1]);
    for answer in [Ok(None), Ok(Some(&["u2"][..]))] {
        let error = granted(&store, &Lookup::new(answer), &pod_ref(), soon()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::UNKNOWN_CONTAINER, "with addresses");
    }
    let down = Lookup::new(Err(()));
    assert!(granted(&store, &down, &pod_ref(), soon()).await.is_ok(), "what is in the cache is enough");
}

#[tokio::test(start_paused = true)]
async fn pods_on_their_way_out_get_nothing() {
    let store = Store::default();
    set_up(&store, true);
    grant(&store, PAIR[0], &PAIR[..1]);
    for change in [|pod: &mut OwnPod| pod.finished = true, |pod: &mut OwnPod| pod.terminating = true] {
        show_pod(&store, change);
        let error = granted(&store, &Lookup::new(Ok(None)), &pod_ref(), soon()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::UNKNOWN_CONTAINER);
    }
}

#[tokio::test(start_paused = true)]
async fn a_family_that_the_network_waits_for_keeps_only_its_own_pods_waiting() {
    let store = Store::default();
    let lookup = Lookup::new(Ok(Some(&["u1"])));
    show_pod(&store, |_| ());
    let vtep = VtepDef {
        ip: "192.0.2.1".parse().unwrap(),
        links: vec![],
        mac: "02:00:00:00:00:01".parse().unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    let local = LocalNetwork {
        ready: false,
        reason: "WaitingForAddress".into(),
        message: "waiting for IPv6".into(),
        parent: None,
        device: None,
        mtu: Some(1450),
        vtep: Some(vtep),
    };
    store.update(|index| {
        index.local.insert("overlay".into(), local);
        Effect::Quiet
    });
    grant(&store, PAIR[0], &PAIR[..1]);
    assert!(granted(&store, &lookup, &pod_ref(), soon()).await.is_ok());
    for address in PAIR {
        grant(&store, address, &PAIR);
    }
    let error = granted(&store, &lookup, &pod_ref(), soon()).await.unwrap_err();
    assert!(error.msg.ends_with("waiting for IPv6"), "{}", error.msg);
}
