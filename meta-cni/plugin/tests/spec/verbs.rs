//! What each verb asks of the agent and how its answer is printed.

use std::os::unix::fs::MetadataExt;

use braid_meta_core::call::NamespaceId;
use braid_meta_core::{Attachment, AttachmentKind, CniError, ErrorCode, PodRef};
use braid_rpc::{PROTOCOL_VERSION, Reply, Request, Response, Verb};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Act, Agent, Site, run, success};

#[test]
fn version_answers_alone() {
    let site = Site::new();
    for (stdin, echoed) in [(r#"{"cniVersion":"0.2.0"}"#, "0.2.0"), ("", "1.1.0"), ("junk", "1.1.0")] {
        let answer = run(site.command("VERSION"), stdin.as_bytes());
        assert_eq!(
            answer.ok(),
            &json!({"cniVersion": echoed, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
    }
}

#[test]
fn add_says_who_where_and_how_long() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    config["timeoutSeconds"] = 10.into();
    config["args"] = json!({"cni": {"x": [1.5, null]}});
    let text = format!("\n {config:#}\n");
    run(site.command("ADD"), text.as_bytes()).ok();
    let request = agent.next();
    assert_eq!(request.version, PROTOCOL_VERSION);
    assert!((1..10_000).contains(&request.deadline_ms), "{}", request.deadline_ms);
    let Verb::Add(add) = request.verb else { panic!("{request:?}") };
    assert_eq!(add.attachment.to_string(), "c1/eth0");
    assert_eq!(add.pod, PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() });
    assert_eq!((add.netns, add.network.as_str(), add.config), (site.netns(), "braid", text));
    let file = std::fs::metadata(site.netns()).unwrap();
    assert_eq!(
        add.netns_id,
        Some(NamespaceId { dev: file.dev(), ino: file.ino() }),
        "for the agent to compare"
    );
}

#[rstest]
#[case("0.3.1")]
#[case("0.4.0")]
#[case("1.0.0")]
#[case("1.1.0")]
fn add_prints_the_result_in_the_shape_of_its_version(#[case] version: &str) {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    let answer = site.call_with("ADD", &site.config(version));
    let result = answer.ok();
    assert_eq!(result, &site.prev_result(version));
    let old = version.starts_with('0');
    assert_eq!(result["ips"][0].get("version"), old.then(|| json!("4")).as_ref());
    assert_eq!(result["ips"][1].get("version"), old.then(|| json!("6")).as_ref());
    let newest = version == "1.1.0";
    assert_eq!(result["interfaces"][1].get("mtu").is_some(), newest);
    assert_eq!(result["routes"][0].get("mtu").is_some(), newest);
    // containerd demands an address on the container's interface of the asked name.
    let at = result["ips"][0]["interface"].as_u64().unwrap();
    let interface = &result["interfaces"][usize::try_from(at).unwrap()];
    assert_eq!((&interface["name"], &interface["sandbox"]), (&json!("eth0"), &json!(site.netns())));
}

#[test]
fn add_hands_on_the_previous_result() {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    let mut config = site.config("1.0.0");
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": site.netns()}],
        "ips": [{"address": "192.0.2.1/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let answer = site.call_with("ADD", &config);
    let result = answer.ok();
    let (previous, ours) = (&config["prevResult"], site.prev_result("1.0.0"));
    assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(result["ips"][0], previous["ips"][0]);
    assert_eq!(result["dns"], previous["dns"]);
    assert_eq!(result["interfaces"][2], ours["interfaces"][1]);
    assert_eq!(result["ips"][1]["interface"], 2);
}

#[rstest]
#[case::already_there("ADD", json!({"interfaces": [{"name": "eth0", "sandbox": "NETNS"}]}), Some(7))]
#[case::elsewhere("ADD", json!({"interfaces": [{"name": "eth0", "sandbox": "/other"}]}), None)]
#[case::malformed("ADD", json!({"ips": [{"address": "x"}]}), Some(6))]
#[case::index_without_interface("ADD", json!({"ips": [{"address": "10.0.0.1/8", "interface": 3}]}), Some(7))]
#[case::missing("CHECK", Value::Null, Some(7))]
#[case::without_the_interface("CHECK", json!({"interfaces": []}), Some(7))]
#[case::fits("CHECK", json!({"interfaces": [{"name": "eth0", "sandbox": "NETNS"}]}), None)]
#[case::malformed("CHECK", json!([]), Some(6))]
#[case::missing("DEL", Value::Null, None)]
#[case::empty("DEL", json!({}), None)]
#[case::malformed("DEL", json!({"ips": [{"address": "x"}]}), None)]
fn previous_results(#[case] verb: &str, #[case] prev: Value, #[case] code: Option<u64>) {
    let site = Site::new();
    let agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    config["prevResult"] = serde_json::from_str(&prev.to_string().replace("NETNS", &site.netns())).unwrap();
    let answer = site.call_with(verb, &config);
    match code {
        None => {
            answer.ok();
            assert_eq!(agent.next().verb.name(), verb);
        }
        Some(code) => {
            assert_eq!(answer.code(), code, "{answer:?}");
            agent.no_more();
        }
    }
}

#[test]
fn check_gc_and_status_succeed_silently() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    for verb in ["CHECK", "GC", "STATUS", "DEL"] {
        let answer = site.call(verb);
        assert!(answer.success && answer.json.is_none() && answer.stderr.is_empty(), "{verb}: {answer:?}");
        match agent.next().verb {
            Verb::Check(check) => assert_eq!(check.prev_result, site.result()),
            Verb::Gc(gc) => {
                let valid: Vec<String> = gc.valid_attachments.iter().map(ToString::to_string).collect();
                assert_eq!((gc.network.as_str(), valid), ("braid", vec!["c9/eth0".to_owned()]));
            }
            other => assert_eq!(other.name(), verb),
        }
    }
}

#[test]
fn gc_without_a_list_removes_nothing() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    config.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    let answer = site.call_with("GC", &config);
    assert_eq!(answer.code(), 7);
    assert!(answer.msg().contains("cni.dev/valid-attachments"), "{answer:?}");
    agent.no_more();
    // libcni writes `null` for a list without elements.
    for empty in [json!([]), json!(null)] {
        config["cni.dev/valid-attachments"] = empty;
        site.call_with("GC", &config).ok();
        let Verb::Gc(gc) = agent.next().verb else { panic!("no GC") };
        assert_eq!(gc.valid_attachments, []);
    }
}

#[rstest]
#[case("ADD", 11)]
#[case("DEL", 102)]
#[case("CHECK", 101)]
#[case("GC", 5)]
#[case("STATUS", 51)]
fn errors_of_the_agent_are_printed_as_they_are(#[case] verb: &str, #[case] code: u32) {
    let site = Site::new();
    let error = CniError::new(ErrorCode(code), "subnet s4 is full").with_details("254 of 254");
    let reply = Reply::Failed(error);
    let _agent = Agent::start(&site.socket(), move |_| Act::Reply(reply.clone()));
    let answer = site.call(verb);
    assert!(!answer.success);
    assert_eq!(
        answer.json,
        Some(
            json!({"cniVersion": "1.1.0", "code": code, "msg": "subnet s4 is full", "details": "254 of 254"})
        )
    );
    assert_eq!(site.pending(), 0);
}

#[test]
fn answers_that_are_none_are_errors() {
    let site = Site::new();
    let result = site.result();
    let newer = |r: &Request| Response { version: PROTOCOL_VERSION + 1, ..Response::new(r.id, Reply::Done) };
    let other_id = |r: &Request| Response::new(r.id ^ 1, Reply::Done);
    let attached = move |r: &Request| {
        let plan = r.verb.attachment().map(|a| Attachment::native(a.ifname.clone())).into_iter().collect();
        Act::Reply(match r.verb {
            Verb::Add(_) => Reply::Done,
            _ => Reply::Attached { result: result.clone(), plan },
        })
    };
    let junk = |r: &Request| {
        let mut frame = braid_rpc::encode(&r.id).unwrap();
        frame.truncate(frame.len() - 1);
        frame.push(b'}');
        Act::Raw(frame)
    };
    type Acting = Box<dyn Fn(&Request) -> Act + Send + Sync>;
    let cases: Vec<(Acting, u64)> = vec![
        (Box::new(move |r| Act::Respond(newer(r))), 11),
        (Box::new(move |r| Act::Respond(other_id(r))), 103),
        (Box::new(attached), 103),
        (Box::new(junk), 103),
        (Box::new(|_| Act::Raw(vec![0xff; 4])), 103),
    ];
    for (i, (act, code)) in cases.into_iter().enumerate() {
        let _agent = Agent::start(&site.socket(), act);
        for verb in ["ADD", "DEL", "CHECK", "GC"] {
            assert_eq!(site.call(verb).code(), code, "case {i}, {verb}");
        }
        // STATUS knows two codes, and this one says that pods had better not come.
        let status = site.call("STATUS").code();
        assert_eq!(status, 50, "case {i}");
    }
    assert_eq!(site.pending(), 0, "an agent that answers is asked again by the runtime");
}

#[test]
fn what_the_plugin_cannot_do_is_undone() {
    let site = Site::new();
    let result = site.result();
    let agent = Agent::start(&site.socket(), move |r| {
        let mut reply = success(r, &result);
        if let Reply::Attached { plan, .. } = &mut reply {
            let kind = AttachmentKind::Delegate { chain: vec!["{}".into()], timeout_ms: 1 };
            plan.push(Attachment { ifname: "net1".parse().unwrap(), kind });
        }
        Act::Reply(reply)
    });
    let answer = site.call("ADD");
    assert_eq!(answer.code(), 11);
    assert!(answer.msg().contains("net1"), "{answer:?}");
    let (add, del) = (agent.next().verb, agent.next().verb);
    assert_eq!((add.name(), del.name()), ("ADD", "DEL"));
    assert_eq!(add.attachment(), del.attachment());
}

#[rstest]
#[case("", 6)]
#[case("{", 6)]
#[case("[]", 6)]
#[case("null", 6)]
#[case("{} {}", 6)]
#[case(r#"{"cniVersion":"1.1.0","type":"braid"}"#, 7)]
#[case(r#"{"cniVersion":"1.1.0","name":"braid"}"#, 7)]
#[case(r#"{"cniVersion":"1.1.0","name":"-","type":"braid"}"#, 7)]
#[case(r#"{"cniVersion":"1.1.0","name":"braid","type":"braid","socket":"relative"}"#, 7)]
fn malformed_configurations(#[case] config: &str, #[case] code: u64) {
    let site = Site::new();
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        assert_eq!(run(site.command(verb), config.as_bytes()).code(), code, "{verb}");
    }
}

#[test]
fn settings_without_effect_fail_add_with_key_and_value() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    let mut config = site.config("1.1.0");
    config["ipam"] = json!({"type": "host-local"});
    let answer = site.call_with("ADD", &config);
    assert_eq!(answer.code(), 2);
    assert!(answer.msg().contains(r#""ipam": {"type":"host-local"}"#), "{answer:?}");
    agent.no_more();
    site.call_with("DEL", &config).ok();
}

#[test]
fn a_configuration_without_end_is_refused() {
    let site = Site::new();
    let answer = run(site.command("ADD"), &vec![b' '; 2 << 20]);
    assert_eq!(answer.code(), 7);
}
