//! What a benchmark found: a table for people, JSON for programs, and whether the budgets hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The result of one benchmark.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Its name on the command line.
    pub(crate) name: String,
    /// What is compared, as a heading.
    pub(crate) title: String,
    /// How it was measured, in a few sentences.
    pub(crate) method: String,
    /// Heads of the columns.
    pub(crate) columns: Vec<String>,
    /// Cells.
    pub(crate) rows: Vec<Vec<String>>,
    /// Budgets and whether they hold.
    pub(crate) budgets: Vec<Budget>,
    /// All single measurements, by contender.
    pub(crate) samples: BTreeMap<String, Value>,
    /// Where and when.
    pub(crate) machine: Machine,
}

/// A limit from the design and what was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Budget {
    /// What is limited.
    pub(crate) what: String,
    /// The limit.
    pub(crate) limit: String,
    /// What was measured.
    pub(crate) measured: String,
    /// Whether it holds.
    pub(crate) holds: bool,
}

/// The machine and the moment of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// UTC.
    pub(crate) date: String,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Model and number of processors.
    pub(crate) cpus: String,
    /// Load average of the last minute when the benchmark began: what else was going on.
    pub(crate) load: String,
    /// State of the source.
    pub(crate) commit: String,
}

impl Machine {
    /// This machine, now.
    pub(crate) fn now() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M"]),
            kernel: said("uname", &["-sr"]),
            cpus: format!("{count} x {}", model.unwrap_or("unknown processor")),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            commit: said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
        }
    }
}

/// What a program printed; empty when it does not run.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Folder of all results.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"))
}

impl Report {
    /// An empty report.
    pub(crate) fn new(name: &str, title: &str, method: &str, columns: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            method: method.split_whitespace().collect::<Vec<_>>().join(" "),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
            budgets: Vec::new(),
            samples: BTreeMap::new(),
            machine: Machine::now(),
        }
    }

    /// Adds a line to the table.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Keeps the single measurements of a contender.
    pub(crate) fn keep(&mut self, contender: &str, samples: impl Serialize) -> Result<()> {
        self.samples.insert(contender.to_owned(), serde_json::to_value(samples)?);
        Ok(())
    }

    /// Compares a measurement with a limit.
    pub(crate) fn budget(&mut self, what: &str, limit: &str, measured: String, holds: bool) {
        self.budgets.push(Budget { what: what.to_owned(), limit: limit.to_owned(), measured, holds });
    }

    /// Prints the report and writes `target/bench/<name>.json`.
    pub(crate) fn publish(&self) -> Result<()> {
        println!("\n{}", self.markdown());
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let file = folder.join(format!("{}.json", self.name));
        fs::write(&file, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The report as a chapter of BENCHMARKS.md.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.title);
        text += &table(&self.columns, &self.rows);
        if !self.budgets.is_empty() {
            let columns = ["budget", "limit", "measured", "holds"].map(str::to_owned);
            let rows: Vec<Vec<String>> = self
                .budgets
                .iter()
                .map(|b| {
                    let holds = if b.holds { "yes" } else { "**no**" };
                    vec![b.what.clone(), b.limit.clone(), b.measured.clone(), holds.to_owned()]
                })
                .collect();
            text += "\n";
            text += &table(&columns, &rows);
        }
        let Machine { date, kernel, cpus, load, commit } = &self.machine;
        text += &format!(
            "\n{}\n\n`e2e/bench.sh {}` at {commit}, {date} UTC, {kernel}, {cpus}, load {load} before it began.\n",
            self.method, self.name
        );
        text
    }
}

/// A table whose source can be read too.
fn table(columns: &[String], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| rows.iter().map(move |row| cell(row, i)).chain([columns[i].clone()]))
        .map(|cells| cells.map(|text| text.chars().count()).max().unwrap_or_default().max(3))
        .collect();
    let line = |row: &[String]| {
        let cells = widths.iter().enumerate().map(|(i, width)| format!(" {:width$} ", cell(row, i)));
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|");
    let mut text = line(columns) + &format!("|{rule}|\n");
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// The value below which `part` of 100 samples lie; 0 without samples.
pub(crate) fn percentile(samples: &[f64], part: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * part).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// The middle one; 0 without samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(samples, 50)
}
