//! DEL: repeatable, best effort, and never lost.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use braid_meta_core::{CniError, ErrorCode};
use braid_rpc::{Reply, Verb};

use crate::support::{Act, Agent, Site, run};

#[test]
fn repeats_succeed_with_an_agent() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    for _ in 0..3 {
        site.call("DEL").ok();
        let Verb::Del(del) = agent.next().verb else { panic!("no DEL") };
        assert_eq!((del.netns, del.pod.unwrap().uid), (Some(site.netns()), "u".to_owned()));
    }
    assert_eq!(site.pending(), 0);
}

#[test]
fn repeats_succeed_without_an_agent_and_are_recorded_once() {
    let site = Site::new();
    for _ in 0..3 {
        let answer = site.call("DEL");
        answer.ok();
        assert!(answer.stderr.contains("c1/eth0"), "{answer:?}");
    }
    let listed = site.journal().pending_dels.list().unwrap();
    let [only] = listed.as_slice() else { panic!("{listed:?}") };
    let del = only.entry.as_ref().unwrap();
    assert_eq!(del.attachment.to_string(), "c1/eth0");
    assert_eq!(del.config, site.config("1.1.0").to_string());
    assert_eq!(del.pod.as_ref().unwrap().name, "p");
}

#[test]
fn needs_neither_namespace_nor_pod_nor_previous_result() {
    let site = Site::new();
    let agent = Agent::willing(&site);
    for args in ["", "junk", "K8S_POD_NAME=p"] {
        let mut command = site.command("DEL");
        command.env_remove("CNI_NETNS").env("CNI_ARGS", args);
        run(command, site.config("0.3.1").to_string().as_bytes()).ok();
        let Verb::Del(del) = agent.next().verb else { panic!("no DEL") };
        assert_eq!((del.netns, del.pod), (None, None), "{args}");
    }
}

#[test]
fn is_recorded_when_the_agent_ends_meanwhile() {
    let site = Site::new();
    let agent = Agent::start(&site.socket(), |_| Act::HangUp);
    site.call("DEL").ok();
    assert_eq!(site.pending(), 1);
    // Tried again after it was recorded, for the case that the agent came back.
    assert_eq!((agent.next().verb.name(), agent.next().verb.name()), ("DEL", "DEL"));
    agent.no_more();
}

#[test]
fn leaves_no_record_when_the_agent_comes_back_in_time() {
    let site = Site::new();
    let asked = AtomicU32::new(0);
    let _agent = Agent::start(&site.socket(), move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Act::HangUp,
        _ => Act::Reply(Reply::Done),
    });
    site.call("DEL").ok();
    assert_eq!(site.pending(), 0);
}

#[test]
fn the_second_answer_counts() {
    let site = Site::new();
    let asked = AtomicU32::new(0);
    let _agent = Agent::start(&site.socket(), move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Act::HangUp,
        _ => Act::Reply(CniError::new(ErrorCode::DETACH_FAILED, "busy").into()),
    });
    assert_eq!(site.call("DEL").code(), 102);
    assert_eq!(site.pending(), 0, "the runtime repeats it");
}

#[test]
fn is_repeated_by_the_runtime_when_the_agent_is_stuck() {
    let site = Site::new();
    let _agent = Agent::start(&site.socket(), |_| Act::Silence);
    let mut config = site.config("1.1.0");
    config["timeoutSeconds"] = 1.into();
    let answer = site.call_with("DEL", &config);
    assert_eq!(answer.code(), 11);
    assert_eq!(site.pending(), 0);
}

#[test]
fn fails_when_it_can_be_neither_done_nor_recorded() {
    let site = Site::new();
    fs::write(site.state_dir(), b"not a directory").unwrap();
    let answer = site.call("DEL");
    assert_eq!(answer.code(), 5);
    assert!(answer.msg().contains("not running") && answer.msg().contains("recorded"), "{answer:?}");
}

#[test]
fn a_damaged_record_is_replaced() {
    let site = Site::new();
    site.call("DEL").ok();
    let path = site.journal().pending_dels.list().unwrap().remove(0).path;
    fs::write(&path, b"braid pending-del 1 9").unwrap();
    site.call("DEL").ok();
    assert!(site.journal().pending_dels.list().unwrap().remove(0).entry.is_ok());
}
