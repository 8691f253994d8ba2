//! Which variables each verb needs, what they may hold, and which version knows which verb.

use rstest::rstest;
use serde_json::json;

use crate::support::{Agent, Site, run};

const VARIABLES: [&str; 5] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];

#[rstest]
#[case("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])]
#[case("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])]
#[case("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])]
#[case("GC", &["CNI_PATH"])]
#[case("STATUS", &[])]
#[case("VERSION", &[])]
fn one_error_names_everything_that_is_missing(#[case] verb: &str, #[case] required: &[&str]) {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    if verb == "CHECK" {
        config["prevResult"] = site.prev_result("1.1.0");
    }
    for bits in 0..1_u32 << VARIABLES.len() {
        let removed: Vec<&str> =
            VARIABLES.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, v)| *v).collect();
        let mut command = site.command(verb);
        for (i, variable) in removed.iter().enumerate() {
            // Empty is as good as missing.
            if i % 2 == 0 {
                command.env_remove(variable)
            } else {
                command.env(variable, "")
            };
        }
        let answer = run(command, config.to_string().as_bytes());
        let missing: Vec<&str> = required.iter().copied().filter(|v| removed.contains(v)).collect();
        if missing.is_empty() {
            // Braid needs to know the pod on top of what the spec demands.
            if verb == "ADD" && removed.contains(&"CNI_ARGS") {
                assert_eq!(answer.code(), 4);
                assert!(answer.msg().contains("CNI_ARGS"), "{answer:?}");
            } else {
                answer.ok();
            }
            continue;
        }
        assert_eq!(answer.code(), 4, "{verb} without {removed:?}");
        for variable in VARIABLES {
            let named = answer.msg().contains(variable);
            assert_eq!(named, missing.contains(&variable), "{verb} without {removed:?}: {answer:?}");
        }
    }
}

#[test]
fn the_command_must_be_one() {
    let site = Site::new();
    for command in ["add", "Add", "ADD ", "UPDATE", "-h"] {
        let answer = run(site.command(command), b"{}");
        assert_eq!(answer.code(), 4);
        assert!(answer.msg().contains("CNI_COMMAND") && answer.msg().contains(command), "{answer:?}");
    }
    let mut none = site.command("ADD");
    none.env_remove("CNI_COMMAND");
    let answer = run(none, b"");
    assert_eq!(answer.code(), 4);
    assert!(answer.stderr.contains("container runtime") && answer.stderr.contains("1.1.0"), "{answer:?}");
}

#[rstest]
#[case("CNI_CONTAINERID", "-c")]
#[case("CNI_CONTAINERID", "a/b")]
#[case("CNI_CONTAINERID", "..")]
#[case("CNI_CONTAINERID", "a b")]
#[case("CNI_IFNAME", "sixteen-letters-")]
#[case("CNI_IFNAME", ".")]
#[case("CNI_IFNAME", "..")]
#[case("CNI_IFNAME", "a/b")]
#[case("CNI_IFNAME", "a:b")]
#[case("CNI_IFNAME", "a b")]
fn malformed_names_are_refused(#[case] variable: &str, #[case] value: &str) {
    let site = Site::new();
    let agent = Agent::willing(&site);
    for verb in ["ADD", "DEL", "CHECK"] {
        let mut command = site.command(verb);
        command.env(variable, value);
        let answer = run(command, site.config("1.1.0").to_string().as_bytes());
        assert_eq!(answer.code(), 4);
        assert!(answer.msg().starts_with(variable) && answer.msg().contains(value), "{answer:?}");
    }
    agent.no_more();
}

#[test]
fn the_host_is_not_a_container() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    let own = "/proc/self/ns/net";
    config["prevResult"] = json!({"interfaces": [{"name": "eth0", "sandbox": own}]});
    let call = |verb: &str, config: &serde_json::Value| {
        let mut command = site.command(verb);
        command.env("CNI_NETNS", own);
        run(command, config.to_string().as_bytes())
    };
    for (verb, config) in [("ADD", &site.config("1.1.0")), ("CHECK", &config)] {
        let answer = call(verb, config);
        assert_eq!(answer.code(), 4);
        assert!(answer.msg().contains("CNI_NETNS") && answer.msg().contains(own), "{answer:?}");
    }
    agent.no_more();
    call("DEL", &config).ok();
    let braid_rpc::Verb::Del(del) = agent.next().verb else { panic!("no DEL") };
    assert_eq!(del.netns, None);
}

#[test]
fn a_namespace_that_is_gone_fails_add_and_not_del() {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    std::fs::remove_file(site.netns()).unwrap();
    assert_eq!(site.call("ADD").code(), 4);
    assert!(site.call("ADD").msg().contains("CNI_NETNS"));
    site.call("DEL").ok();
}

#[rstest]
#[case("ADD", ["ok", "ok", "ok", "ok"])]
#[case("DEL", ["ok", "ok", "ok", "ok"])]
#[case("CHECK", ["1", "ok", "ok", "ok"])]
#[case("GC", ["1", "1", "1", "ok"])]
#[case("STATUS", ["1", "1", "1", "ok"])]
fn negotiation(#[case] verb: &str, #[case] expected: [&str; 4]) {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    let with_version = |version: &str| {
        let mut config = site.config(version);
        if verb == "CHECK" && version.parse::<braid_meta_core::CniVersion>().is_ok() {
            config["prevResult"] = site.prev_result(version);
        }
        site.call_with(verb, &config)
    };
    for (version, expected) in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().zip(expected) {
        let answer = with_version(version);
        if expected == "ok" {
            answer.ok();
        } else {
            assert_eq!(answer.code().to_string(), expected, "{version}");
        }
        if let Some(json) = &answer.json {
            assert_eq!(json["cniVersion"], version);
        }
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", ""] {
        assert_eq!(with_version(version).code(), 1, "{version}");
    }
    let mut without = site.config("1.1.0");
    without.as_object_mut().unwrap().remove("cniVersion");
    assert_eq!(site.call_with(verb, &without).code(), 1);
}
