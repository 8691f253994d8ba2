//! Whatever comes in, one object goes out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use proptest::prelude::*;

use crate::support::{POD, Site, run};

/// A value that the kernel accepts in an environment: no zero byte.
fn value() -> impl Strategy<Value = Option<OsString>> {
    let known = prop::sample::select(vec![
        "",
        "ADD",
        "DEL",
        "CHECK",
        "GC",
        "STATUS",
        "VERSION",
        "c1",
        "eth0",
        "/proc/self/ns/net",
        POD,
        "a=b",
    ]);
    prop_oneof![
        1 => Just(None),
        4 => known.prop_map(|s| Some(s.into())),
        1 => proptest::collection::vec(1..=255_u8, 0..20).prop_map(|b| Some(OsString::from_vec(b))),
    ]
}

fn stdin() -> impl Strategy<Value = Vec<u8>> {
    let junk = proptest::collection::vec(any::<u8>(), 0..40);
    let keys =
        prop::sample::select(vec!["cniVersion", "name", "type", "prevResult", "cni.dev/valid-attachments"]);
    let values = prop::sample::select(vec![
        "null",
        "\"1.1.0\"",
        "\"0.2.0\"",
        "\"braid\"",
        "[]",
        "{}",
        "-1",
        "1e999",
        "\"\\ud800\"",
        "[{}]",
        "{\"ips\":[{\"address\":\"10.0.0.1/99\"}]}",
    ]);
    let near = proptest::collection::vec((keys, values), 0..6).prop_map(|pairs| {
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{{\"cniVersion\":\"1.1.0\",\"name\":\"braid\",\"type\":\"braid\",{}}}", pairs.join(","))
            .replace(",}", "}")
            .into_bytes()
    });
    prop_oneof![1 => junk, 3 => near]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn one_object_for_any_input(
        command in value(), id in value(), netns in value(), ifname in value(), args in value(), path in value(),
        stdin in stdin(),
    ) {
        let site = Site::new();
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_braid-cni"));
        plugin.env_clear().env("BRAID_CNI_LOG", site.log());
        let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
        for (name, value) in names.into_iter().zip([command, id, netns, ifname, args, path]) {
            if let Some(value) = value {
                plugin.env(name, value);
            }
        }
        // No call may leave the test's directory: the last of two equal keys counts.
        let mut stdin = stdin;
        if stdin.ends_with(b"}") {
            stdin.pop();
            let comma = if stdin.ends_with(b"{") { "" } else { "," };
            let paths = format!("{comma}\"socket\":{:?},\"stateDir\":{:?}}}", site.socket(), site.state_dir());
            stdin.extend(paths.into_bytes());
        }
        // `run` demands one object, or none after the success of a verb without result.
        run(plugin, &stdin);
    }
}
