use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::env::Variable;

const POD: &str = "K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u;IgnoreUnknown=1";

fn env(command: &str) -> Environment {
    Environment {
        command: command.into(),
        container_id: "c1".into(),
        netns: "/run/netns/x".into(),
        ifname: "eth0".into(),
        args: POD.into(),
        path: "/opt/cni/bin".into(),
    }
}

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "braid", "type": "braid", "cni.dev/valid-attachments": []})
}

fn prev(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.0.0.2/32", "interface": 0}],
    })
}

fn ask(command: &str, config: &Value) -> Result<Verb, u64> {
    match interpret(&env(command), config.to_string().as_bytes()) {
        Ok(Asked::Call(call)) => Ok(call.verb),
        Ok(Asked::Version(o)) => panic!("{o:?}"),
        Err(o) => Err(o.stdout.unwrap()["code"].as_u64().unwrap()),
    }
}

#[rstest]
#[case("ADD", ["ok", "ok", "ok", "ok"])]
#[case("DEL", ["ok", "ok", "ok", "ok"])]
#[case("CHECK", ["1", "ok", "ok", "ok"])]
#[case("GC", ["1", "1", "1", "ok"])]
#[case("STATUS", ["1", "1", "1", "ok"])]
fn which_version_knows_which_verb(#[case] command: &str, #[case] answers: [&str; 4]) {
    for (version, answer) in CniVersion::ALL.into_iter().zip(answers) {
        let mut config = config(version.as_str());
        if command == "CHECK" {
            config["prevResult"] = prev(version.as_str());
        }
        let got = ask(command, &config).map_or_else(
            |code| code.to_string(),
            |verb| {
                assert_eq!(verb.name(), command);
                "ok".to_owned()
            },
        );
        assert_eq!(got, answer, "{command} {version}");
    }
}

#[test]
fn a_call_carries_the_configuration_as_given() {
    let text = " {\"cniVersion\":\"1.0.0\",\n\"name\":\"braid\",\"type\":\"braid\",\"n\":1e400000} ";
    // A number that no float holds is still JSON for some parsers; here it is refused, not changed.
    assert!(interpret(&env("DEL"), text.as_bytes()).is_err());
    let text = text.replace("1e400000", "1.50");
    let Ok(Asked::Call(call)) = interpret(&env("DEL"), text.as_bytes()) else { panic!("refused") };
    let Verb::Del(del) = &call.verb else { panic!("{:?}", call.verb) };
    assert_eq!((del.config.as_str(), del.network.as_str()), (text.as_str(), "braid"));
    assert_eq!(del.pod.as_ref().unwrap().uid, "u");
}

#[rstest]
#[case::none("ADD", None, None)]
#[case::null("ADD", Some(Value::Null), None)]
#[case::other_interface("ADD", Some(json!({"interfaces": [{"name": "net1", "sandbox": "/run/netns/x"}]})), None)]
#[case::same_name_on_the_host("ADD", Some(json!({"interfaces": [{"name": "eth0"}]})), None)]
#[case::taken("ADD", Some(prev("1.0.0")), Some(7))]
#[case::malformed("ADD", Some(json!({"ips": [{}]})), Some(6))]
#[case::no_object("ADD", Some(json!("x")), Some(6))]
#[case::none("CHECK", None, Some(7))]
#[case::there("CHECK", Some(prev("1.0.0")), None)]
#[case::empty("CHECK", Some(json!({})), Some(7))]
#[case::other_namespace("CHECK", Some(json!({"interfaces": [{"name": "eth0", "sandbox": "/y"}]})), Some(7))]
#[case::malformed("CHECK", Some(json!({"interfaces": 1})), Some(6))]
#[case::none("DEL", None, None)]
#[case::there("DEL", Some(prev("1.0.0")), None)]
#[case::malformed("DEL", Some(json!({"ips": [{}]})), None)]
fn prev_result(#[case] command: &str, #[case] prev: Option<Value>, #[case] code: Option<u64>) {
    let mut config = config("1.0.0");
    if let Some(prev) = prev {
        config["prevResult"] = prev;
    }
    assert_eq!(ask(command, &config).err(), code);
}

#[test]
fn add_hands_on_the_previous_result() {
    let mut config = config("0.4.0");
    config["prevResult"] = json!({"interfaces": [{"name": "net1", "sandbox": "/run/netns/x"}]});
    let Ok(Asked::Call(call)) = interpret(&env("ADD"), config.to_string().as_bytes()) else {
        panic!("refused")
    };
    let ours = CniResult::from_json(&prev("0.4.0")).unwrap();
    let output = call.added(ours);
    let value = output.stdout.unwrap();
    assert!(output.success);
    assert_eq!(value["cniVersion"], "0.4.0");
    assert_eq!(value["interfaces"][0]["name"], "net1");
    assert_eq!(value["ips"][0], json!({"version": "4", "address": "10.0.0.2/32", "interface": 1}));
}

#[test]
fn only_add_needs_a_pod_and_supported_settings() {
    let ask_without_pod = |command: &str, args: &str, config: &Value| {
        interpret(&Environment { args: args.into(), ..env(command) }, config.to_string().as_bytes())
            .map_err(|o| o.stdout.unwrap()["code"].as_u64().unwrap())
    };
    let mut odd = config("1.0.0");
    odd["ipam"] = json!({"type": "host-local"});
    for args in ["", "K8S_POD_NAME=p", "junk"] {
        assert_eq!(ask_without_pod("ADD", args, &config("1.0.0")), Err(4), "{args}");
        assert!(ask_without_pod("DEL", args, &odd).is_ok(), "{args}");
    }
    assert_eq!(ask("ADD", &odd), Err(2));
}

#[test]
fn version_needs_nothing_and_echoes() {
    for (stdin, echoed) in
        [("", "1.1.0"), ("{}", "1.1.0"), ("no", "1.1.0"), (r#"{"cniVersion":"0.2.0"}"#, "0.2.0")]
    {
        let env = Environment { command: "VERSION".into(), ..Environment::default() };
        let Ok(Asked::Version(output)) = interpret(&env, stdin.as_bytes()) else { panic!("{stdin}") };
        let value = output.stdout.unwrap();
        assert_eq!(value["cniVersion"], echoed);
        assert_eq!(value["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn an_error_is_told_in_the_version_of_the_configuration() {
    for (given, told) in [("0.3.1", "0.3.1"), ("1.0.0", "1.0.0"), ("9.0.0", "1.1.0")] {
        let bad = json!({"cniVersion": given, "name": "", "type": "braid"});
        let output = interpret(&env("ADD"), bad.to_string().as_bytes()).unwrap_err();
        assert_eq!(output.stdout.unwrap()["cniVersion"], told);
    }
}

#[test]
fn the_undo_of_an_add_is_its_del() {
    let text = config("1.1.0").to_string();
    let Ok(Asked::Call(add)) = interpret(&env("ADD"), text.as_bytes()) else { panic!("refused") };
    let Ok(Asked::Call(del)) = interpret(&env("DEL"), text.as_bytes()) else { panic!("refused") };
    assert_eq!(add.undo().map(Verb::Del), Some(del.verb.clone()));
    assert_eq!(del.undo(), None);
}

fn variable() -> impl Strategy<Value = Variable> {
    prop_oneof![
        Just(Variable::Missing),
        Just(Variable::NotText),
        prop::sample::select(vec![
            "ADD",
            "DEL",
            "CHECK",
            "GC",
            "STATUS",
            "VERSION",
            "c1",
            "eth0",
            "/run/netns/x",
            POD,
            "a=b"
        ])
        .prop_map(Variable::from),
        any::<String>().prop_map(|s| Variable::from(s.as_str())),
    ]
}

/// JSON that is near to a configuration.
fn near_config() -> impl Strategy<Value = Vec<u8>> {
    let leaf = || {
        prop_oneof![
            Just(json!(null)),
            Just(json!("1.1.0")),
            Just(json!("0.4.0")),
            Just(json!("braid")),
            Just(json!([])),
            Just(json!(-1)),
            Just(prev("1.1.0")),
            any::<String>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
        ]
    };
    let keys = prop::sample::select(vec![
        "cniVersion",
        "name",
        "type",
        "prevResult",
        "cni.dev/valid-attachments",
        "ipam",
        "socket",
        "timeoutSeconds",
    ]);
    proptest::collection::vec((keys, leaf()), 0..8).prop_map(|changes| {
        let mut config = config("1.1.0");
        for (key, value) in changes {
            config[key] = value;
        }
        config.to_string().into_bytes()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn anything_is_answered_by_a_call_or_by_one_object(
        command in variable(), container_id in variable(), netns in variable(), ifname in variable(),
        args in variable(), path in variable(),
        stdin in prop_oneof![near_config(), proptest::collection::vec(any::<u8>(), 0..64)],
    ) {
        let env = Environment { command, container_id, netns, ifname, args, path };
        match interpret(&env, &stdin) {
            Ok(Asked::Version(output)) => {
                prop_assert!(output.success);
                prop_assert!(output.stdout.is_some_and(|v| v.is_object()));
            }
            Ok(Asked::Call(call)) => {
                let failed = call.failed(&CniError::try_again("x"));
                prop_assert!(!failed.success && failed.stdout.is_some_and(|v| v["code"] == 11));
            }
            Err(output) => {
                prop_assert!(!output.success);
                let value = output.stdout.unwrap();
                prop_assert!(value["code"].as_u64().is_some_and(|c| (1..=7).contains(&c)), "{value}");
                prop_assert!(value["msg"].as_str().is_some_and(|m| !m.is_empty()));
                prop_assert!(value["cniVersion"].as_str().is_some_and(|v| v.parse::<CniVersion>().is_ok()));
            }
        }
    }
}
