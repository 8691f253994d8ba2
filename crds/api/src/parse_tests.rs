use braid_types::model::UnixSeconds;
use braid_types::{Mac, block_name};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{NodeNetworkSpec, NodeNetworkStatus};

fn parsed<K: serde::de::DeserializeOwned, T>(object: Value) -> Result<T, String>
where
    T: for<'a> TryFrom<&'a K, Error = ParseError>,
{
    let raw: K = serde_json::from_value(object).expect("has the shape of its kind");
    T::try_from(&raw).map_err(|e| e.to_string())
}

fn network(spec: &Value) -> Result<NetworkDef, String> {
    parsed::<Network, _>(json!({"metadata": {"name": "net"}, "spec": spec}))
}

fn subnet(spec: &Value) -> Result<SubnetDef, String> {
    parsed::<Subnet, _>(json!({"metadata": {"name": "sub"}, "spec": spec}))
}

fn instance(name: &str, spec: &Value) -> Result<InstanceDef, String> {
    parsed::<IPInstance, _>(json!({"metadata": {"name": name}, "spec": spec}))
}

#[test]
fn errors_name_object_and_field() {
    let complaints = [
        (network(&json!({"type": "VXLAN"})).map(drop), "Network `net`: spec.vxlan: is missing"),
        (
            network(&json!({"type": "VXLAN", "vxlan": {"vni": 0}})).map(drop),
            "spec.vxlan.vni: VNI 0 is out of range",
        ),
        (
            network(&json!({"type": "VXLAN", "vxlan": {"vni": 4, "interfaces": ["eth0", "a/b"]}})).map(drop),
            "spec.vxlan.interfaces[1]: `a/b` is not a device name",
        ),
        (
            network(&json!({"type": "MACVLAN", "macvlan": {"id": 4095}})).map(drop),
            "spec.macvlan.id: VLAN id 4095",
        ),
        (
            subnet(&json!({"network": "n", "cidr": "10.0.0.1/8"})).map(drop),
            "Subnet `sub`: spec.cidr: `10.0.0.1/8` has host bits set; write `10.0.0.0/8`",
        ),
        (
            subnet(&json!({"network": "n", "cidr": "10.0.0.0/8", "gateway": "fd00::1"})).map(drop),
            "spec.gateway: fd00::1 is not inside 10.0.0.0/8",
        ),
        (
            subnet(&json!({"network": "n", "cidr": "10.0.0.0/8", "ranges": ["10.0.0.1", "11.0.0.1"]}))
                .map(drop),
            "spec.ranges[1]: `11.0.0.1` is not inside 10.0.0.0/8",
        ),
        (
            subnet(&json!({"network": "n", "cidr": "10.0.0.0/24", "blockSize": 20})).map(drop),
            "spec.blockSize: 20 is out of range; use 24 to 32",
        ),
        (
            instance("10.0.0.6", &json!({"network": "n", "subnet": "s", "address": "10.0.0.5/24"})).map(drop),
            "IPInstance `10.0.0.6`: spec.address: 10.0.0.5 is not the address that the object is named after",
        ),
        (
            instance("web", &json!({"network": "n", "subnet": "s", "address": "10.0.0.5/24"})).map(drop),
            "metadata.name: `web` is not an IPInstance name",
        ),
        (
            instance("10.0.0.5", &json!({"network": "n", "subnet": "s", "address": "10.0.0.5/33"})).map(drop),
            "spec.address: `10.0.0.5/33` is not a CIDR",
        ),
    ];
    for (result, sentence) in complaints {
        let error = result.expect_err(sentence);
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn blocks_of_small_subnets_are_smaller() {
    for (cidr, size) in [
        ("10.0.0.0/8", 26),
        ("10.0.0.0/24", 26),
        ("10.0.0.0/25", 27),
        ("10.0.0.0/31", 32),
        ("10.0.0.0/32", 32),
        ("fd00::/64", 122),
        ("fd00::/121", 123),
        ("fd00::/128", 128),
    ] {
        assert_eq!(default_block_size(&cidr.parse().expect("good")), size, "{cidr}");
    }
}

#[test]
fn a_pinned_address_is_reserved_and_a_nodes_own_is_bound() {
    let base = json!({"network": "n", "subnet": "s", "address": "10.0.0.5/24"});
    let with = |key: &str, value: Value| {
        let mut spec = base.clone();
        spec[key] = value;
        instance("10.0.0.5", &spec).expect("good").phase
    };
    assert_eq!(with("node", json!("n1")), Phase::Reserved);
    assert_eq!(with("interface", json!("vtep")), Phase::Bound);
    assert_eq!(with("pod", json!({"namespace": "a", "name": "b", "uid": "c"})), Phase::Bound);
}

#[test]
fn a_network_counts_only_while_it_is_ready() {
    let object = |status: &str| {
        let ready = json!({"type": "Ready", "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let object = json!({
            "metadata": {"name": "net", "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {"type": "VXLAN", "vxlan": {"vni": 4}},
            "status": {"conditions": [ready]},
        });
        parsed::<Network, NetworkDef>(object).expect("good")
    };
    assert!(object("True").ready && !object("False").ready && !object("Unknown").ready);
    assert_eq!(object("True").created, 60);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|n| IpAddr::V4(n.into())),
        any::<u128>().prop_map(|n| IpAddr::V6(n.into())),
    ]
}

fn word() -> impl Strategy<Value = String> {
    "[a-z]([-a-z0-9]{0,80}[a-z0-9])?"
}

prop_compose! {
    fn pod()(namespace in word(), name in word(), uid in word()) -> PodRef {
        PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() }
    }
}

prop_compose! {
    fn owner()(api_version in word(), kind in word(), namespace in "[a-z]{0,5}", name in word(), uid in "[a-z]{0,5}", pod in proptest::option::of(word())) -> OwnerRef {
        OwnerRef { api_version: api_version.into(), kind: kind.into(), namespace: namespace.into(), name: name.into(), uid: uid.into(), pod: pod.map(Into::into) }
    }
}

prop_compose! {
    fn handover()(pod in pod(), node in word(), left in any::<bool>()) -> HandoverDef {
        let role = if left { MigrationRole::Source } else { MigrationRole::Target };
        HandoverDef { pod, node: node.into(), role, torn_down: false }
    }
}

prop_compose! {
    fn instance_def()(
        address in address(),
        space in "([a-z]{1,8})?",
        prefix_len in 0u8..=32,
        gateway in proptest::option::of(address()),
        mac in any::<[u8; 6]>(),
        pod in proptest::option::of(pod()),
        node in proptest::option::of(word()),
        set in proptest::collection::vec(address(), 0..3),
        owner in proptest::option::of(owner()),
        retain_seconds in proptest::option::of(1..315_360_000_u32),
        retain_until in proptest::option::of(0..4_000_000_000 as UnixSeconds),
        (handover, host_routed) in (proptest::option::of(handover()), any::<bool>()),
    ) -> InstanceDef {
        InstanceDef {
            name: InstanceName::new(&space, address),
            uid: "".into(),
            network: "net".into(),
            subnet: "sub".into(),
            prefix_len,
            gateway,
            mac: Mac::new(mac),
            phase: if pod.is_some() { Phase::Bound } else { Phase::Reserved },
            pod,
            interface: "eth0".into(),
            node: node.map(Into::into),
            set: set.into(),
            handover: handover.map(Box::new),
            owner: owner.map(Box::new),
            retain_seconds,
            retain_until,
            reserved_at: None,
            declared: true,
            attached: false,
            torn_down: None,
            release_at: None,
            host_routed,
            deleting: false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_address_survives_the_way_to_the_api_and_back(def in instance_def()) {
        let object = instance_object(&def);
        let wire = serde_json::to_value(&object).expect("JSON");
        prop_assert_eq!(parsed::<IPInstance, InstanceDef>(wire), Ok(def));
        for label in object.metadata.labels.iter().flatten().map(|(_, value)| value) {
            prop_assert!(label.len() <= 63);
        }
    }

    #[test]
    fn a_block_survives_the_way_to_the_api_and_back(address in address(), len in 8u8..=32, node in word()) {
        let text = Cidr::containing(address, len).expect("fits").to_string();
        let Ok(cidr) = text.parse::<Cidr>() else { return Ok(()) };
        let def = BlockDef { name: block_name("sub", &cidr), subnet: "sub".to_owned(), cidr, node };
        prop_assert_eq!(BlockDef::try_from(&block_object(&def)), Ok(def));
    }

    #[test]
    fn a_tunnel_end_survives_the_way_to_the_api_and_back(ip in address(), own in address(), seed in any::<u64>()) {
        let links = Cidr::containing(ip, 24).and_then(|c| c.to_string().parse().ok());
        let def = VtepDef {
            ip,
            links: links.into_iter().collect(),
            mac: Mac::derived(&seed.to_be_bytes()),
            addresses: vec![own],
        };
        let mut object = NodeNetwork::new("n1", NodeNetworkSpec::default());
        object.status = Some(NodeNetworkStatus {
            networks: vec![NodeNetworkEntry {
                name: "net".to_owned(),
                ready: true,
                vtep: Some(Vtep::from(&def)),
                ..NodeNetworkEntry::default()
            }],
            ..NodeNetworkStatus::default()
        });
        let node = NodeDef::try_from(&object).expect("good");
        prop_assert_eq!(node.networks[0].vtep.as_ref(), Some(&def));
    }

    #[test]
    fn times_survive_and_extremes_are_cut(at in any::<i64>(), usual in 0..4_000_000_000i64) {
        prop_assert_eq!(seconds(&time(usual)), usual);
        let cut = seconds(&time(at));
        prop_assert_eq!(cut.signum(), at.signum());
        prop_assert!(cut.unsigned_abs() <= at.unsigned_abs());
    }
}
