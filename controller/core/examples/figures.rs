//! How long the controller's decisions take at size: `cargo run --release -p braid-controller-core --example figures`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_controller_core::admission::{Namespace, NewPod, Shape, Surge, Workload, admit};
use braid_controller_core::ipam::Lists;
use braid_controller_core::pool::{Mark, Pool};
use braid_controller_core::{Choice, Config, Ipam, NodeFact, PodFact, PodRequest};
use braid_types::model::{
    Encapsulation, InstanceDef, NetworkDef, NetworkType, Phase, PodRef, SubnetDef, VxlanDef,
};
use braid_types::{Cidr, Family, InstanceName, Selector, Vni};

const ROUNDS: usize = 10_000;

fn subnet(cidr: &str) -> SubnetDef {
    let cidr: Cidr = cidr.parse().expect("a literal");
    SubnetDef {
        name: "pods".to_owned(),
        created: 0,
        network: "overlay".to_owned(),
        gateway: None,
        ranges: Vec::new(),
        excluded: Vec::new(),
        reserved: Vec::new(),
        vlan: None,
        block_size: if cidr.family() == Family::V4 { 26 } else { 122 },
        private: false,
        nat_outgoing: true,
        routing_table: None,
        ready: true,
        deleting: false,
        cidr,
    }
}

fn network() -> NetworkDef {
    NetworkDef {
        name: "overlay".to_owned(),
        created: 0,
        kind: NetworkType::Vxlan,
        default: true,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: Vec::new(),
        vxlan: Some(VxlanDef {
            vni: Vni::try_from(4).expect("a literal"),
            port: 8472,
            encapsulation: Encapsulation::Always,
        }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

fn instance(n: usize, nodes: usize) -> Arc<InstanceDef> {
    // As blocks would have it: runs of 64 on one node.
    let address = Family::V4.addr(0x0a00_0001 + n as u128);
    let name = InstanceName::new("", address);
    Arc::new(InstanceDef {
        uid: format!("00000000-0000-0000-0000-{n:012}").into(),
        network: "overlay".into(),
        subnet: "pods".into(),
        prefix_len: 8,
        gateway: None,
        mac: None,
        pod: Some(pod(n)),
        interface: "eth0".into(),
        node: Some(format!("node-{}", n / 64 % nodes).into()),
        set: vec![address].into(),
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
        host_routed: true,
        deleting: false,
        name,
    })
}

fn pod(n: usize) -> PodRef {
    let uid = format!("10000000-0000-0000-0000-{n:012}");
    PodRef { namespace: "shop".into(), name: format!("web-{n}").into(), uid: uid.into() }
}

fn each(total: Duration, times: usize) -> String {
    format!("{:.2} µs", total.as_secs_f64() * 1e6 / times as f64)
}

/// Runs `decide` many times and prints the usual and the longest time of one run.
fn decisions(what: &str, mut decide: impl FnMut()) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            decide();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |part: usize| each(times[ROUNDS * part / 1000], 1);
    println!("admit {what:<45} p50 {}, p99 {}, p99.9 {}", at(500), at(990), at(999));
}

/// What the webhook decides under the lock, for pods and Deployments of every kind.
fn admissions(ipam: &Ipam) {
    let (nothing, labels) = (Choice::default(), std::collections::BTreeMap::new());
    let namespace = Namespace { name: "shop", labels: Some(&labels), choice: &nothing };
    let ips = |text: &str| Choice { ips: vec![text.parse().expect("a literal")], ..Choice::default() };
    let cases = [
        ("a pod that asks for nothing", Choice::default()),
        ("a pod with an address that is taken", ips("10.0.0.9")),
        ("a pod with a pool of 65,536 that are all taken", ips("10.0.1.0-10.1.0.255")),
        ("a pod with the whole Subnet as its pool", ips("10.0.0.0/8")),
        ("a pod with an address outside, refused", ips("192.0.2.1")),
    ];
    for (what, choice) in cases {
        let pod = NewPod { namespace, name: "", choice: &choice, interface: "eth0", owner: None, node: None };
        decisions(what, || drop(std::hint::black_box(admit(ipam, &pod))));
    }
    let annotations = [("braid.network/ips".to_owned(), "10.0.0.1-10.0.3.231".to_owned())].into();
    let shape = Shape::Deployment { replicas: 1000, surge: Surge::default() };
    let workload = Workload::read(shape, &annotations).expect("a literal");
    decisions("a Deployment of 1,000, its pool too small", || {
        assert!(std::hint::black_box(workload.check(ipam, namespace)).is_err());
    });
}

/// Takes and frees at 99 % full, the free addresses spread as widely as they can be.
fn at_99_percent(prefix: u8) {
    let mut pool = Pool::new(&subnet(&format!("10.0.0.0/{prefix}")));
    let size = pool.usage().total as usize;
    for n in 1..=size {
        if n % 100 != 0 {
            pool.take(Family::V4.addr(0x0a00_0000 + n as u128), Mark::Bound);
        }
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let address = pool.next_free().expect("one of a hundred is free");
        pool.take(address, Mark::Bound);
        pool.advance(address);
        pool.release(address);
    }
    println!("allocate and free, {size:>8} addresses 99 % full   {}", each(start.elapsed(), ROUNDS));
}

fn restore_and_grant(count: usize, nodes: usize) {
    let lists = Lists {
        networks: vec![network()],
        subnets: vec![subnet("10.0.0.0/8")],
        instances: (0..count).map(|n| instance(n, nodes)).collect(),
        nodes: (0..nodes)
            .map(|n| NodeFact {
                name: format!("node-{n}"),
                uid: format!("{n}"),
                labels: [("kubernetes.io/os".to_owned(), "linux".to_owned())].into(),
                addresses: Vec::new(),
            })
            .collect(),
        pods: (0..count).map(|n| PodFact { uid: pod(n).uid, finished: false, created: 0 }).collect(),
        ..Lists::default()
    };
    let start = Instant::now();
    let (mut ipam, restored) = Ipam::restore(Config::default(), lists, 0);
    println!("restore {count} addresses and pods on {nodes} nodes       {:?}", start.elapsed());
    let start = Instant::now();
    for n in 0..ROUNDS {
        let request = PodRequest {
            pod: pod(count + n),
            interface: "eth0".to_owned(),
            node: format!("node-{}", n % nodes),
            choice: Choice::default(),
            namespace_choice: Choice::default(),
            namespace_labels: [].into(),
            owner: None,
            keep: None,
            migration: None,
        };
        let grant = ipam.grant(&restored, &request).expect("there is room");
        for block in grant.blocks.clone() {
            ipam.upsert_block(block);
        }
        for claim in &grant.claims {
            ipam.upsert_instance(claim.def().clone(), 0);
        }
        ipam.finish(grant);
    }
    println!("grant one pod next to {count}                       {}", each(start.elapsed(), ROUNDS));
    admissions(&ipam);
    let start = Instant::now();
    ipam.sweep_blocks(&restored, 0);
    println!("look at every block of {} addresses             {:?}", count + ROUNDS, start.elapsed());
    let start = Instant::now();
    assert!(ipam.network_status("overlay").is_some());
    println!("status of a Network of {} addresses             {:?}", count + ROUNDS, start.elapsed());
}

fn main() {
    for prefix in [22, 19, 16, 13, 12] {
        at_99_percent(prefix);
    }
    restore_and_grant(100_000, 1_000);
}
