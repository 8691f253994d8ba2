//! The project's figures: each is a ratio measured side by side in one run, against the kernel's own limit or a named
//! peer, with the contenders taking turns so that noise of the machine hits all of them alike.
//!
//! `e2e/bench.sh [name...]` runs all or the named ones; `bench.sh assemble` writes BENCHMARKS.md from what they left in
//! `target/bench/`.

mod admission;
mod assemble;
mod cni_add;
mod echo;
mod grants;
mod memory;
mod netns;
mod place;
mod pod_ready;
mod pools;
mod report;
mod resync;
mod runner;
mod traffic;

use anyhow::{Context, Result, bail};

/// A benchmark by the name that the command line has for it.
type Benchmark = (&'static str, fn() -> Result<report::Report>);

/// In the order in which they run and stand in BENCHMARKS.md; those that need no cluster come first.
const ALL: [Benchmark; 8] = [
    ("pools", pools::run),
    ("resync", resync::run),
    ("cni-add", cni_add::run),
    ("traffic", traffic::run),
    ("grants", grants::run),
    ("memory", memory::run),
    ("pod-ready", pod_ready::run),
    ("scale", memory::run_scale),
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run-calls"] => return runner::serve(),
        ["admission-client"] => return admission::ask(),
        ["echo-server", port] => return echo::serve(port.parse()?),
        ["echo-client", address, rounds] => return echo::ask(address.parse()?, rounds.parse()?),
        ["assemble"] => return assemble::write(),
        ["down"] => return place::down(),
        _ => {}
    }
    let chosen: Vec<&Benchmark> =
        ALL.iter().filter(|(name, _)| words.is_empty() || words.contains(name)).collect();
    if let Some(unknown) = words.iter().find(|word| ALL.iter().all(|(name, _)| name != *word)) {
        let known = ALL.map(|(name, _)| name).join(", ");
        bail!("there is no benchmark '{unknown}'; there are: {known}");
    }
    for (name, run) in chosen {
        eprintln!("== {name}");
        run().with_context(|| format!("benchmark {name}"))?.publish()?;
    }
    Ok(())
}
