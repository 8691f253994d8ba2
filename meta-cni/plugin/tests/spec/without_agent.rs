//! What is said when the agent does not answer.

use std::fs;
use std::os::unix::net::UnixListener;

use rstest::rstest;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{Act, Agent, Site};

#[derive(Debug, Clone, Copy)]
enum Agentless {
    NeverRan,
    NoSocket,
    Refused,
}

#[rstest]
fn nobody_listens(
    #[values(Agentless::NeverRan, Agentless::NoSocket, Agentless::Refused)] how: Agentless,
    #[values(("ADD", Some(11)), ("DEL", None), ("CHECK", Some(11)), ("GC", Some(11)), ("STATUS", Some(50)))]
    expected: (&str, Option<u64>),
) {
    let site = Site::new();
    match how {
        Agentless::NeverRan => fs::remove_dir(site.socket().parent().unwrap()).unwrap(),
        Agentless::NoSocket => {}
        Agentless::Refused => drop(UnixListener::bind(site.socket()).unwrap()),
    }
    let (verb, code) = expected;
    let answer = site.call(verb);
    match code {
        None => {
            answer.ok();
            assert_eq!(site.pending(), 1);
        }
        Some(code) => {
            assert_eq!(answer.code(), code);
            let socket = site.socket().display().to_string();
            assert!(answer.msg().contains("not running") && answer.msg().contains(&socket), "{answer:?}");
            assert_eq!(site.pending(), 0);
        }
    }
}

#[rstest]
#[case("ADD", 11)]
#[case("CHECK", 11)]
#[case("GC", 11)]
#[case("STATUS", 50)]
fn the_agent_ends_meanwhile(#[case] verb: &str, #[case] code: u64) {
    let site = Site::new();
    let agent = Agent::start(&site.socket(), |_| Act::HangUp);
    let answer = site.call(verb);
    assert_eq!(answer.code(), code);
    assert!(answer.msg().contains(verb), "{answer:?}");
    agent.next();
    agent.no_more();
}

#[rstest]
#[case("ADD", 11)]
#[case("CHECK", 11)]
#[case("GC", 11)]
#[case("STATUS", 50)]
fn the_agent_is_stuck(#[case] verb: &str, #[case] code: u64) {
    let site = Site::new();
    let _agent = Agent::start(&site.socket(), |_| Act::Silence);
    let mut config = site.config("1.1.0");
    config["timeoutSeconds"] = 1.into();
    config["prevResult"] = if verb == "CHECK" { site.prev_result("1.1.0") } else { serde_json::Value::Null };
    let answer = site.call_with(verb, &config);
    assert_eq!(answer.code(), code);
    assert!(answer.msg().contains("in time"), "{answer:?}");
}

#[test]
fn the_queue_of_the_agent_is_full() {
    let site = Site::new();
    let address = SockAddr::unix(site.socket()).unwrap();
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let caller = socket();
        caller.set_nonblocking(true).unwrap();
        if caller.connect(&address).is_err() {
            break;
        }
        waiting.push(caller);
    }
    let mut config = site.config("1.1.0");
    config["timeoutSeconds"] = 1.into();
    for (verb, code) in [("ADD", 11), ("DEL", 11), ("STATUS", 50)] {
        assert_eq!(site.call_with(verb, &config).code(), code, "{verb}");
    }
    assert_eq!(site.pending(), 0);
}
