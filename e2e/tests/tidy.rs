//! House rules that a compiler does not check: who may depend on whom, where risky code may live, and that
//! every source file is part of a crate. ARCHITECTURE.md gives the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Which of our crates each of our crates may depend on. A crate that is not listed here fails the test.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("braid-types", &[]),
    ("braid-api", &["braid-types"]),
    ("braid-informer", &[]),
    ("braid-rpc", &["braid-types", "braid-meta-core"]),
    ("braid-journal", &["braid-types", "braid-meta-core", "braid-rpc"]),
    ("braid-controller-core", &["braid-types"]),
    ("braid-node-core", &["braid-types"]),
    ("braid-meta-core", &["braid-types"]),
    ("braid-node-kernel", &["braid-types", "braid-node-core"]),
    ("braid-controller", &["braid-types", "braid-api", "braid-informer", "braid-controller-core"]),
    (
        "braid-node",
        &[
            "braid-types",
            "braid-api",
            "braid-informer",
            "braid-node-core",
            "braid-node-kernel",
            "braid-meta-core",
            "braid-rpc",
            "braid-journal",
        ],
    ),
    ("braid-cni", &["braid-types", "braid-meta-core", "braid-rpc", "braid-journal"]),
    ("braidctl", &["braid-types", "braid-api"]),
    // A black-box user of the binaries; the benchmarks measure the kernel crate as a floor.
    ("braid-e2e", &["braid-types", "braid-api"]),
];

/// Crates that decide: no API client, no runtime, no kernel, no clock of their own.
const PURE: &[&str] =
    &["braid-types", "braid-rpc", "braid-controller-core", "braid-node-core", "braid-meta-core"];
const NOT_IN_PURE: &[&str] = &[
    "kube",
    "k8s-openapi",
    "tokio",
    "nix",
    "libc",
    "netlink-sys",
    "netlink-packet-route",
    "reqwest",
    "hyper",
];

/// Only the kernel crate talks netlink.
const KERNEL_ONLY: &[&str] =
    &["netlink-sys", "netlink-packet-route", "netlink-packet-core", "rtnetlink", "netlink-packet-netfilter"];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .expect("cargo metadata of the workspace")
}

fn normal_dependencies(package: &Package) -> BTreeSet<&str> {
    package
        .dependencies
        .iter()
        .filter(|d| d.kind == DependencyKind::Normal)
        .map(|d| d.name.as_str())
        .collect()
}

#[test]
fn crates_depend_only_downwards() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    let metadata = metadata();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(allowed) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in MAY_DEPEND_ON: decide its layer first", package.name));
            continue;
        };
        for dependency in normal_dependencies(package) {
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                wrong.push(format!("{} must not depend on {dependency}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_stay_pure_and_netlink_stays_in_the_kernel_crate() {
    let mut wrong = Vec::new();
    for package in &metadata().packages {
        let dependencies = normal_dependencies(package);
        if PURE.contains(&package.name.as_str()) {
            wrong.extend(
                NOT_IN_PURE
                    .iter()
                    .filter(|d| dependencies.contains(**d))
                    .map(|d| format!("{} is pure and must not depend on {d}", package.name)),
            );
        }
        if package.name.as_str() != "braid-node-kernel" {
            wrong.extend(
                KERNEL_ONLY
                    .iter()
                    .filter(|d| dependencies.contains(**d))
                    .map(|d| format!("{}: only braid-node-kernel may depend on {d}", package.name)),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dependencies_have_one_version_and_lints_are_shared() {
    let mut wrong = Vec::new();
    for package in &metadata().packages {
        let text = std::fs::read_to_string(&package.manifest_path).expect("a manifest that cargo has read");
        for line in text.lines().filter(|l| l.contains("version = \"")) {
            wrong.push(format!("{}: `{line}` belongs into [workspace.dependencies]", package.manifest_path));
        }
        // The kernel crate alone carries its own lints, because it alone may use `unsafe`.
        if package.name.as_str() != "braid-node-kernel" && !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{}: add `[lints]` with `workspace = true`", package.manifest_path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// A file that no `mod` names is never compiled, and its tests never run.
#[test]
fn every_source_file_belongs_to_a_crate() {
    let mut orphans = Vec::new();
    for package in &metadata().packages {
        let roots: BTreeSet<PathBuf> = package.targets.iter().map(|t| t.src_path.clone().into()).collect();
        let src = package.manifest_path.parent().expect("a manifest in a folder").join("src");
        let mut files = Vec::new();
        rust_files(src.as_std_path(), &mut files);
        for file in files.iter().filter(|f| !roots.contains(*f)) {
            let stem = file.file_stem().and_then(|s| s.to_str()).expect("a UTF-8 file name");
            let dir = file.parent().expect("a file in a folder");
            let (name, dir) = if stem == "mod" {
                (
                    dir.file_name().and_then(|s| s.to_str()).expect("a UTF-8 folder"),
                    dir.parent().expect("src"),
                )
            } else {
                (stem, dir)
            };
            let parents = ["lib.rs", "main.rs", "mod.rs"]
                .map(|f| dir.join(f))
                .into_iter()
                .chain([dir.with_extension("rs")])
                .chain(std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()))
                .filter(|p| p != file);
            let declared = parents
                .filter_map(|p| std::fs::read_to_string(p).ok())
                .any(|text| text.contains(&format!("mod {name};")) || text.contains(&format!("{name}.rs\"")));
            if !declared {
                orphans.push(file.display().to_string());
            }
        }
    }
    assert!(orphans.is_empty(), "no `mod` names these files:\n{}", orphans.join("\n"));
}

/// Words that mark unfinished work do not land.
#[test]
fn nothing_unfinished_is_committed() {
    let mut found = Vec::new();
    for package in &metadata().packages {
        let mut files = Vec::new();
        rust_files(package.manifest_path.parent().expect("a folder").join("src").as_std_path(), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a readable source file");
            for (n, line) in text.lines().enumerate() {
                // Split, so that this list does not find itself.
                for mark in [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore")] {
                    if line.contains(mark) {
                        found.push(format!("{}:{}: {mark}", file.display(), n + 1));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// How many assertions are known to fail. It only ever gets smaller.
const KNOWN_FAILURES: usize = 1;

/// Each of them is one assertion of one test.
#[test]
fn known_failures_get_fewer_and_each_stands_in_a_test() {
    let known = braid_e2e::known::known_failures();
    assert!(known.len() <= KNOWN_FAILURES, "{} known failures, {KNOWN_FAILURES} are allowed", known.len());
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises"), &mut files);
    let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    for entry in known {
        let uses = text.matches(&format!("known_failure(\"{}\"", entry.name)).count();
        assert_eq!(uses, 1, "{} stands in {uses} tests", entry.name);
    }
}

/// The samples are applied beside quiet tests, so their names are taken.
#[test]
fn no_test_declares_what_a_sample_does() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut files = Vec::new();
    rust_files(&root.join("e2e/tests/promises"), &mut files);
    let mut names = BTreeSet::new();
    for sample in std::fs::read_dir(root.join("config/samples")).expect("samples") {
        let text = std::fs::read_to_string(sample.expect("an entry").path()).expect("a readable sample");
        names.extend(text.lines().filter_map(|line| line.trim().strip_prefix("name: ").map(str::to_owned)));
    }
    // The default Network of every cluster of tests.
    names.retain(|name| !name.starts_with("overlay"));
    assert!(!names.is_empty(), "no names found in config/samples");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable test");
        let taken: Vec<&String> = names.iter().filter(|name| text.contains(&format!("\"{name}\""))).collect();
        assert!(taken.is_empty(), "{}: {taken:?} are names of samples, choose others", file.display());
    }
}

/// What a constant is set to: `Duration::from_secs(60)`, or a number of seconds.
fn time_of(source: &str, name: &str) -> Option<Duration> {
    let (start, typed) = (format!("const {name}: "), source.lines().map(str::trim));
    let value =
        typed.filter_map(|l| l.split_once(&start)?.1.split_once(" = ")).map(|(_, value)| value).next()?;
    let digits = |text: &str| text.trim_end_matches([';', ')']).replace('_', "").parse::<u64>().ok();
    match value.rsplit_once("Duration::from_") {
        Some((_, call)) => match call.split_once('(')? {
            ("secs", n) => digits(n).map(Duration::from_secs),
            ("millis", n) => digits(n).map(Duration::from_millis),
            _ => None,
        },
        None => digits(value).map(Duration::from_secs),
    }
}

/// Flags are held against docs/times.md by the programs that have them.
#[test]
fn fixed_times_are_what_the_document_says() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let document = std::fs::read_to_string(root.join("docs/times.md")).expect("docs/times.md");
    let (_, fixed) = document.split_once("\n## Fixed in the code\n").expect("a section of fixed times");
    let mut wrong = Vec::new();
    let rows: Vec<&str> = fixed.lines().filter(|line| line.starts_with("| `")).collect();
    for row in &rows {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches(['|', '`', ' '])).collect();
        let (name, file, value) = (cells[0], cells[1], cells[2]);
        let source = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        let (said, set) = (braid_types::duration::parse(value).ok(), time_of(&source, name));
        if cells.len() != 6 || set.is_none() || said != set {
            wrong.push(format!("{name} of {file} is {set:?}, not {value}"));
        }
    }
    assert!(rows.len() > 30, "the tables were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
