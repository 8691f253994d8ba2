//! BENCHMARKS.md from the results of the last runs and from the remarks that people wrote.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::report::{Report, folder, said};

/// What explains the figures; kept by hand beside the code that makes them.
const REMARKS: &str = include_str!("remarks.md");

pub(crate) fn write() -> Result<()> {
    let mut text = "# Benchmarks\n\n\
        Machines differ and are noisy, so every figure is to be read as a ratio between contenders that took turns in \
        one run on one machine. `make bench` runs all of them and writes this file; `e2e/bench.sh <name>...` runs some. \
        The single measurements are in `target/bench/*.json`.\n\n"
        .to_owned();
    let mut chapters = String::new();
    let mut budgets = Vec::new();
    let mut missing = Vec::new();
    for (name, _) in crate::ALL {
        let file = folder().join(format!("{name}.json"));
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            // A gap that is told is better than an old figure.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                missing.push(format!("`{name}`"));
                continue;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let report: Report =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
        budgets.extend(report.budgets.iter().map(|b| (b.holds, format!("{}: {}", b.what, b.measured))));
        chapters += &format!("{}\n", report.markdown());
    }
    let held = budgets.iter().filter(|(holds, _)| *holds).count();
    text += &format!("{held} of {} budgets hold.", budgets.len());
    for (_, broken) in budgets.iter().filter(|(holds, _)| !holds) {
        text += &format!("\n- does not hold: {broken}");
    }
    if !missing.is_empty() {
        text += &format!("\n\nWithout a result so far: {}.", missing.join(", "));
    }
    text += &format!("\n\n{chapters}{REMARKS}\n## Versions\n\n{}", versions());
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../BENCHMARKS.md");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("BENCHMARKS.md is written");
    Ok(())
}

fn versions() -> String {
    let first = |program: &str, arguments: &[&str]| {
        said(program, arguments).lines().next().unwrap_or_default().to_owned()
    };
    let module = |part: &str, module: &str| {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tools/{part}/go.mod"));
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
    };
    [
        ("Kubernetes", module("kubernetes", "k8s.io/kubernetes")),
        ("containerd", module("containerd", "github.com/containerd/containerd/v2")),
        ("reference CNI plugins", module("cni", "github.com/containernetworking/plugins")),
        ("etcd", module("etcd", "go.etcd.io/etcd/server/v3")),
        ("iproute2", first("ip", &["-V"])),
        ("iperf3", first("iperf3", &["--version"])),
        ("Rust", first("rustc", &["--version"])),
    ]
    .map(|(name, version)| format!("- {name}: {version}\n"))
    .concat()
}
