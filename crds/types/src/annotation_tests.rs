use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn pod(pairs: &[(&str, &str)]) -> Result<NetworkChoice, String> {
    NetworkChoice::of_pod(&map(pairs)).map_err(|e| e.to_string())
}

#[test]
fn every_key_is_read() {
    let choice = pod(&[
        (annotation::NETWORK, "overlay"),
        (annotation::SUBNET, "overlay-v4, overlay-v6"),
        (annotation::IP_FAMILY, "DualStack"),
        (annotation::IPS, "10.20.0.11,fd00::11; 10.20.0.12-10.20.0.20"),
        (annotation::MAC, "02:00:00:00:00:01"),
        (annotation::IP_RETAIN, "true"),
    ])
    .expect("good");
    assert_eq!(choice.network.as_deref(), Some("overlay"));
    assert_eq!(choice.subnets, ["overlay-v4", "overlay-v6"]);
    assert_eq!(choice.family, Some(FamilyPolicy::DualStack));
    assert_eq!(choice.retain, Some(true));
    let ips = choice.ips.expect("given");
    let text = |n| ips.pick(n).map(|a| a.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    assert_eq!(text(Some(0)).as_deref(), Some("10.20.0.11 fd00::11"));
    assert_eq!(text(Some(1)).as_deref(), Some("10.20.0.12-10.20.0.20"));
    assert_eq!((text(Some(2)), text(None)), (None, None));
    let mac = choice.mac.expect("given");
    assert_eq!(mac.pick(None), mac.pick(Some(7)), "a single value is for every pod");
}

#[test]
fn a_mistake_is_named_with_key_and_position() {
    for (key, value, sentence) in [
        (annotation::NETWORK, "", "annotation braid.network/network: is empty; remove"),
        (annotation::NETWORK, "Overlay", "`Overlay` is not a name"),
        (annotation::SUBNET, "a,b,c", "names 3 Subnets"),
        (annotation::SUBNET, "a,,", "names 3 Subnets"),
        (annotation::SUBNET, "a,B", "annotation braid.network/subnet (entry 2): `B` is not a name"),
        (annotation::IP_FAMILY, "ipv4", "`ipv4` is not known; use IPv4, IPv6, DualStack or PreferDualStack"),
        (
            annotation::IPS,
            "10.0.0.1;10.0.0.x",
            "annotation braid.network/ips (entry 2): `10.0.0.x` is not an address",
        ),
        (
            annotation::IPS,
            "10.0.0.9-10.0.0.1",
            "annotation braid.network/ips: `10.0.0.9-10.0.0.1` ends before",
        ),
        (annotation::MAC, "01:00:00:00:00:01", "multicast"),
        (annotation::IP_RETAIN, "yes", "`yes` is not known; use true or false"),
    ] {
        let error = pod(&[(key, value)]).expect_err(value);
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn namespaces_say_nothing_about_single_addresses() {
    let all = map(&[(annotation::IPS, "nonsense"), (annotation::NETWORK, "overlay")]);
    let choice = NetworkChoice::of_namespace(&all).expect("only network is read");
    assert_eq!((choice.network.as_deref(), choice.ips), (Some("overlay"), None));
    assert!(NetworkChoice::of_namespace(&map(&[(annotation::IPS, "10.0.0.1")])).expect("good").is_empty());
}

#[test]
fn secondary_interfaces() {
    let list = |json: &str| secondary(&map(&[(annotation::NETWORKS, json)])).map_err(|e| e.to_string());
    let good = list(r#"[{"network":"storage","interface":"st0","ips":"10.9.0.5","default-route":true},{"network":"lab"}]"#)
        .expect("good");
    assert_eq!(good[0].interface.as_ref().map(IfName::as_str), Some("st0"));
    assert!(good[0].default_route && good[0].ips.is_some() && good[1].interface.is_none());
    for (json, sentence) in [
        ("{", "is not a JSON list"),
        (r#"[{"net":"x"}]"#, "unknown field `net`"),
        (
            r#"[{"network":"a"},{"network":"B"}]"#,
            "annotation braid.network/networks (entry 2): `B` is not a name",
        ),
        (r#"[{"network":"a","interface":"i"},{"network":"b","interface":"i"}]"#, "`i` is there twice"),
        (r#"[{"network":"a","ips":"10.0.0.256"}]"#, "(entry 1): `10.0.0.256` is not an address"),
    ] {
        let error = list(json).expect_err(json);
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn slips_of_the_pen_are_found() {
    let all = map(&[("braid.network/subnets", "a"), (annotation::SUBNET, "a"), ("braid.networks/x", "y")]);
    assert_eq!(unknown_keys(&all), ["braid.network/subnets"]);
    let of_namespace =
        map(&[(annotation::IPS, "10.0.0.1"), (annotation::SUBNET, "a"), ("braid.network/x", "y")]);
    assert_eq!(keys_of_pods_only(&of_namespace), [annotation::IPS]);
}
