//! GC runs alone; everything else runs beside each other.

use std::fs;
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use braid_rpc::Verb;

use crate::support::{Act, Agent, PATIENCE, Site, await_that, finish, start, success};

/// An agent that finishes a request only when it is told to, and notes what it finished.
fn patient(site: &Site) -> (Agent, Sender<()>, Arc<Mutex<Vec<&'static str>>>) {
    let (release, released): (Sender<()>, Receiver<()>) = channel();
    let (released, finished) = (Mutex::new(released), Arc::new(Mutex::new(Vec::new())));
    let (notes, result) = (Arc::clone(&finished), site.result());
    let agent = Agent::start(&site.socket(), move |request| {
        released.lock().unwrap().recv_timeout(PATIENCE).expect("the test releases every request");
        notes.lock().unwrap().push(request.verb.name());
        Act::Reply(success(request, &result))
    });
    (agent, release, finished)
}

fn begin(site: &Site, verb: &str, container: &str) -> Child {
    let mut command = site.command(verb);
    command.env("CNI_CONTAINERID", container);
    start(command, site.config("1.1.0").to_string().as_bytes())
}

/// Demands that the process waits for the lock instead of asking the agent: it has the lock file open, and goes
/// to sleep again and again.
#[track_caller]
fn waits_at_the_gate(child: &Child, agent: &Agent) {
    let proc = format!("/proc/{}", child.id());
    let lock_is_open = || {
        fs::read_dir(format!("{proc}/fd")).into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|to| to.as_os_str().to_string_lossy().ends_with("cni.sock.lock"))
        })
    };
    await_that("the process opens the lock", lock_is_open);
    let sleeps = || {
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let before = sleeps();
    await_that("the process tries the lock", || {
        agent.no_more();
        sleeps() > before + 3
    });
}

#[test]
fn gc_waits_for_running_adds_and_dels() {
    for verb in ["ADD", "DEL"] {
        let site = Site::new();
        let (agent, release, finished) = patient(&site);
        let first = begin(&site, verb, "c1");
        assert_eq!(agent.next().verb.name(), verb);
        let gc = begin(&site, "GC", "c1");
        waits_at_the_gate(&gc, &agent);
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(finish(first, verb == "ADD").success);
        assert!(finish(gc, false).success);
        assert_eq!(*finished.lock().unwrap(), [verb, "GC"]);
    }
}

#[test]
fn adds_and_dels_wait_for_a_running_gc() {
    for verb in ["ADD", "DEL"] {
        let site = Site::new();
        let (agent, release, finished) = patient(&site);
        let gc = begin(&site, "GC", "c1");
        assert_eq!(agent.next().verb.name(), "GC");
        let second = begin(&site, verb, "c1");
        waits_at_the_gate(&second, &agent);
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(finish(gc, false).success);
        assert!(finish(second, verb == "ADD").success);
        assert_eq!(*finished.lock().unwrap(), ["GC", verb]);
    }
}

#[test]
fn two_gcs_run_one_after_the_other() {
    let site = Site::new();
    let (agent, release, _) = patient(&site);
    let first = begin(&site, "GC", "c1");
    agent.next();
    let second = begin(&site, "GC", "c1");
    waits_at_the_gate(&second, &agent);
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert!(finish(first, false).success && finish(second, false).success);
}

#[test]
fn containers_run_beside_each_other_and_beside_check_and_status() {
    let site = Site::new();
    let (agent, release, _) = patient(&site);
    let mut children = Vec::new();
    for (verb, container) in [("ADD", "c1"), ("ADD", "c2"), ("DEL", "c3"), ("STATUS", "c4")] {
        children.push((begin(&site, verb, container), verb == "ADD"));
        // It arrives although none of those before it is done.
        let request = agent.next();
        assert_eq!(request.verb.name(), verb);
        if let Verb::Add(add) = &request.verb {
            assert_eq!(add.attachment.container_id.as_str(), container);
        }
    }
    for _ in &children {
        release.send(()).unwrap();
    }
    for (child, has_result) in children {
        assert!(finish(child, has_result).success);
    }
}

#[test]
fn gc_gives_up_in_time() {
    let site = Site::new();
    let (agent, release, _) = patient(&site);
    let add = begin(&site, "ADD", "c1");
    agent.next();
    let mut config = site.config("1.1.0");
    config["timeoutSeconds"] = 1.into();
    let answer = site.call_with("GC", &config);
    assert_eq!(answer.code(), 11);
    assert!(answer.msg().contains("exclude"), "{answer:?}");
    release.send(()).unwrap();
    assert!(finish(add, true).success);
}

#[test]
fn a_killed_caller_holds_nobody_up() {
    let site = Site::new();
    let (agent, release, _) = patient(&site);
    let mut add = begin(&site, "ADD", "c1");
    agent.next();
    add.kill().unwrap();
    add.wait().unwrap();
    let gc = begin(&site, "GC", "c1");
    assert_eq!(agent.next().verb.name(), "GC");
    // The agent answers nobody in ADD's place.
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert!(finish(gc, false).success);
}
