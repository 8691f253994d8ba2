//! What the plugin writes down by itself.

use std::fs;

use crate::support::{Agent, Site, run};

fn lines(site: &Site) -> Vec<String> {
    fs::read_to_string(site.log()).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn success_leaves_no_line() {
    let site = Site::new();
    let _agent = Agent::willing(&site);
    for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        site.call(verb).ok();
    }
    assert!(!site.log().exists());
}

#[test]
fn a_failure_leaves_one_line_with_time_verb_container_interface_and_error() {
    let site = Site::new();
    for (n, verb) in ["ADD", "CHECK", "DEL"].into_iter().enumerate() {
        site.call(verb);
        let all = lines(&site);
        assert_eq!(all.len(), n + 1);
        let line = &all[n];
        let (time, rest) = line.split_at(20);
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line}");
        let about = format!(" \"{verb}\" container=\"c1\" ifname=\"eth0\" error=\"");
        assert!(rest.starts_with(&about) && rest.contains("not running"), "{line}");
    }
    // What cannot be understood is noted as well, on one line.
    let mut broken = site.command("ADD");
    broken.env("CNI_IFNAME", "eth\n0");
    run(broken, b"{}");
    assert_eq!(lines(&site).len(), 4);
    assert!(lines(&site)[3].contains(r#"ifname="eth\n0""#), "{:?}", lines(&site));
}

#[test]
fn a_log_that_cannot_be_written_changes_no_answer() {
    let site = Site::new();
    let mut command = site.command("ADD");
    command.env("BRAID_CNI_LOG", "/proc/no/such/place/cni.log");
    let answer = run(command, site.config("1.1.0").to_string().as_bytes());
    assert_eq!(answer.code(), 11);
}
