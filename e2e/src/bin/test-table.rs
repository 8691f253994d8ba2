//! Prints what a run of e2e/test.sh took: its steps, and the suites of end-to-end tests with what they waited for.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use braid_e2e::lanes::Record;
use braid_e2e::shares::{Share, shares};

/// How many tests are named as the slowest.
const SLOWEST: usize = 5;

fn main() -> Result<()> {
    let records = Record::all(&Record::file())?;
    let shares = shares();
    print_steps(&shares);
    if !records.is_empty() {
        print_suites(&records, &shares);
        print_slowest(&records);
    }
    Ok(())
}

fn print_steps(shares: &[Share]) {
    let steps = fs::read_to_string(Record::file().with_file_name("steps.tsv")).unwrap_or_default();
    println!("\n{:<34} {:>8} {:>8}", "step", "seconds", "share");
    let mut sum = 0;
    for (name, seconds) in steps.lines().filter_map(|line| line.split_once('\t')) {
        let seconds: u64 = seconds.parse().unwrap_or_default();
        sum += seconds;
        println!("{name:<34} {seconds:>8} {}", of_share(shares, "step", name, seconds));
    }
    println!("{:<34} {:>8} {:>8}", "together", sum, format!("{}m{:02}s", sum / 60, sum % 60));
}

fn print_suites(records: &[Record], shares: &[Share]) {
    let mut suites: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        suites.entry(&record.suite).or_default().push(record);
    }
    println!("\n{:<18} {:<12} {:>5} {:>8} {:>8}  waited for", "suite", "lane", "tests", "seconds", "share");
    for (suite, records) in suites {
        let seconds = records.iter().map(|record| record.seconds()).sum::<f64>().round() as u64;
        let mut lanes: Vec<String> = records.iter().map(|r| format!("{:?}", r.lane).to_lowercase()).collect();
        lanes.sort();
        lanes.dedup();
        let longest = records.iter().max_by(|a, b| a.waited.total_cmp(&b.waited));
        let waited = longest.map(|r| format!("{:.0} s: {}", r.waited, r.waited_for)).unwrap_or_default();
        let of_share = of_share(shares, "suite", suite, seconds);
        println!(
            "{suite:<18} {:<12} {:>5} {seconds:>8} {of_share}  {waited}",
            lanes.join("+"),
            records.len()
        );
    }
    for record in records.iter().filter(|record| !record.passed) {
        println!("FAILED: {} of suite {}", record.test, record.suite);
    }
}

fn print_slowest(records: &[Record]) {
    let mut slowest: Vec<&Record> = records.iter().collect();
    slowest.sort_by(|a, b| b.seconds().total_cmp(&a.seconds()));
    let named: Vec<String> =
        slowest.iter().take(SLOWEST).map(|r| format!("{} {:.0} s", r.test, r.seconds())).collect();
    println!("\nslowest: {}", named.join(", "));
}

/// The share, marked where it is exceeded; a reason that stands beside it is told.
fn of_share(shares: &[Share], kind: &str, name: &str, seconds: u64) -> String {
    let Some(share) = shares.iter().find(|share| share.kind == kind && share.name == name) else {
        return format!("{:>8}", "none");
    };
    let reason = if share.reason.is_empty() { "" } else { ": " };
    let mark = if seconds > share.seconds { format!(" OVER{reason}{}", share.reason) } else { String::new() };
    format!("{:>8}{mark}", share.seconds)
}
