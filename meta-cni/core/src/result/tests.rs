use proptest::prelude::*;

use super::*;

fn sample() -> CniResult {
    CniResult {
        interfaces: vec![
            Interface {
                name: "braid0123456789".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
                ..Interface::default()
            },
            Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                sandbox: "/run/netns/x".into(),
                mtu: Some(1450),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                address: "10.1.0.5/32".parse().unwrap(),
                gateway: Some("169.254.1.1".parse().unwrap()),
                interface: Some(1),
            },
            IpConfig { address: "fd00::5/128".parse().unwrap(), gateway: None, interface: Some(1) },
        ],
        routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), None)],
        dns: Dns::default(),
    }
}

#[test]
fn every_version_has_its_own_shape() {
    let r = sample();
    assert_eq!(
        r.to_json(CniVersion::V1_1_0),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "braid0123456789", "mac": "ee:ee:ee:ee:ee:ee"},
                {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x", "mtu": 1450},
            ],
            "ips": [
                {"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::5/128", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
        })
    );
    let old = r.to_json(CniVersion::V1_0_0);
    assert_eq!(old["interfaces"][1].get("mtu"), None);
    assert_eq!(old["ips"][0].get("version"), None);
    for v in [CniVersion::V0_3_1, CniVersion::V0_4_0] {
        let older = r.to_json(v);
        assert_eq!(older["cniVersion"], v.as_str());
        assert_eq!((&older["ips"][0]["version"], &older["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(older["interfaces"][1].get("mtu"), None);
    }
}

#[test]
fn what_other_plugins_write_is_read() {
    let odd = json!({
        "cniVersion": "0.4.0", "interfaces": null, "dns": {}, "routes": null,
        "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "", "interface": -1}],
    });
    let r = CniResult::from_json(&odd).unwrap();
    assert_eq!((r.ips[0].interface, r.ips[0].gateway), (None, None));
    assert_eq!(CniResult::from_json(&json!({})).unwrap(), CniResult::default());
}

#[test]
fn wrong_fields_are_named() {
    let cases = [
        (json!([]), "result", ErrorCode::DECODE),
        (json!({"ips": {}}), "ips", ErrorCode::DECODE),
        (json!({"ips": [{}]}), "ips[0].address", ErrorCode::DECODE),
        (json!({"ips": [{"address": "10.0.0.1"}]}), "ips[0].address", ErrorCode::DECODE),
        (json!({"ips": [{"address": "10.0.0.1/8", "version": "6"}]}), "ips[0].version", ErrorCode::DECODE),
        (
            json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
            "ips[0].interface",
            ErrorCode::INVALID_CONFIG,
        ),
        (json!({"interfaces": [{}]}), "interfaces[0].name", ErrorCode::DECODE),
        (json!({"interfaces": [{"name": "a", "mtu": -1}]}), "interfaces[0].mtu", ErrorCode::DECODE),
        (json!({"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}), "routes[0].gw", ErrorCode::DECODE),
        (json!({"dns": {"nameservers": "x"}}), "dns.nameservers", ErrorCode::DECODE),
    ];
    for (value, field, code) in cases {
        let e = CniResult::from_json(&value).unwrap_err();
        assert_eq!(e.code, code, "{value}");
        assert!(e.msg.starts_with(field), "{value}: {}", e.msg);
    }
}

#[test]
fn a_chained_result_keeps_the_previous_one_and_shifts_indices() {
    let previous = CniResult {
        interfaces: vec![Interface { name: "lo".into(), ..Interface::default() }],
        ..CniResult::default()
    };
    let all = CniResult::after(previous.clone(), sample());
    assert_eq!(all.interfaces[0], previous.interfaces[0]);
    assert_eq!(all.ips[0].interface, Some(2));
    assert_eq!(all.interface("eth0", "/run/netns/x").unwrap().0, 2);
    assert_eq!(CniResult::after(CniResult::default(), sample()), sample());
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9.]{0,14}"
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|n| IpAddr::V4(n.into())),
        any::<u128>().prop_map(|n| IpAddr::V6(n.into())),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (ip(), any::<u8>()).prop_map(|(a, len)| {
        let longest = if a.is_ipv4() { 32 } else { 128 };
        IpNet::new(a, len % (longest + 1)).unwrap()
    })
}

fn interface() -> impl Strategy<Value = Interface> {
    let optional = || proptest::option::of("[a-z/]{1,9}");
    (
        name(),
        "([0-9a-f]{2}:){5}[0-9a-f]{2}|",
        "(/run/netns/[a-z]{3})?",
        any::<Option<u32>>(),
        optional(),
        optional(),
    )
        .prop_map(|(name, mac, sandbox, mtu, socket_path, pci_id)| Interface {
            name,
            mac,
            sandbox,
            mtu,
            socket_path,
            pci_id,
        })
}

fn route() -> impl Strategy<Value = Route> {
    let number = any::<Option<u32>>;
    (net(), proptest::option::of(ip()), number(), number(), number(), number(), number()).prop_map(
        |(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        },
    )
}

fn dns() -> impl Strategy<Value = Dns> {
    let list = || proptest::collection::vec(name(), 0..3);
    (list(), "[a-z]{0,5}", list(), list()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    })
}

fn any_result() -> impl Strategy<Value = CniResult> {
    let interfaces = proptest::collection::vec(interface(), 0..4);
    let ips = proptest::collection::vec(
        (net(), proptest::option::of(ip()), proptest::option::of(any::<prop::sample::Index>())),
        0..4,
    );
    (interfaces, ips, proptest::collection::vec(route(), 0..4), dns()).prop_map(
        |(interfaces, ips, routes, dns)| {
            let ips = ips
                .into_iter()
                .map(|(address, gateway, index)| IpConfig {
                    address,
                    gateway,
                    interface: index.filter(|_| !interfaces.is_empty()).map(|i| i.index(interfaces.len())),
                })
                .collect();
            CniResult { interfaces, ips, routes, dns }
        },
    )
}

/// The result as an older version expresses it: what `version` has no field for is gone.
fn as_of(result: &CniResult, version: CniVersion) -> CniResult {
    if version >= CniVersion::V1_1_0 {
        return result.clone();
    }
    let plain = |i: &Interface| Interface { mtu: None, socket_path: None, pci_id: None, ..i.clone() };
    CniResult {
        interfaces: result.interfaces.iter().map(plain).collect(),
        routes: result.routes.iter().map(|r| Route::new(r.dst, r.gw)).collect(),
        ..result.clone()
    }
}

proptest! {
    #[test]
    fn conversion_keeps_everything_expressible(r in any_result(), at in 0..CniVersion::ALL.len()) {
        let version = CniVersion::ALL[at];
        let json = r.to_json(version);
        prop_assert_eq!(&json["cniVersion"], version.as_str());
        let back = CniResult::from_json(&json).unwrap();
        prop_assert_eq!(&back, &as_of(&r, version));
        // A detour over an older version loses what that version lacks, and nothing else.
        prop_assert_eq!(back.to_json(CniVersion::LATEST), as_of(&r, version).to_json(CniVersion::LATEST));
        for ip in json["ips"].as_array().into_iter().flatten() {
            prop_assert_eq!(ip.get("version").is_some(), version < CniVersion::V1_0_0);
        }
    }

    #[test]
    fn the_wire_form_keeps_everything(r in any_result()) {
        let text = serde_json::to_string(&r).unwrap();
        prop_assert_eq!(serde_json::from_str::<CniResult>(&text).unwrap(), r);
    }
}
