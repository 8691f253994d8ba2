//! What each suite and step of `make test` may cost: `e2e/shares.tsv`, compiled in.

const FILE: &str = include_str!("../shares.tsv");

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// `step` for a step of e2e/test.sh, `suite` for a file of end-to-end tests.
    pub kind: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Seconds that it may take on two otherwise idle cores.
    pub seconds: u64,
    /// Why it takes more; empty where it does not.
    pub reason: &'static str,
}

/// All lines of the file. Lines that begin with `#` are for people.
///
/// # Panics
/// When a line has another form; a unit test of this crate reads the whole file.
#[must_use]
pub fn shares() -> Vec<Share> {
    let lines = FILE.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.splitn(4, '\t');
            let mut word = || words.next().unwrap_or_default();
            let (kind, name, seconds, reason) = (word(), word(), word(), word());
            let seconds = seconds.parse().unwrap_or_else(|_| panic!("shares.tsv: no seconds in '{line}'"));
            Share { kind, name, seconds, reason }
        })
        .collect()
}

/// Seconds that a suite may take, all its tests together; `None` for one that says nothing.
#[must_use]
pub fn share_of(suite: &str) -> Option<u64> {
    shares().into_iter().find(|share| share.kind == "suite" && share.name == suite).map(|share| share.seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_suite_says_what_it_costs_and_nothing_else_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises");
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let stems = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
        let suites: BTreeSet<String> =
            stems.filter(|stem| !["main", "lane_end"].contains(&stem.as_str())).collect();
        let of_suites = shares().into_iter().filter(|share| share.kind == "suite");
        let said: BTreeSet<String> = of_suites.map(|share| share.name.to_owned()).collect();
        assert_eq!(
            said, suites,
            "e2e/shares.tsv (left) and the files of e2e/tests/promises (right) differ: add or remove a line 'suite <tab> file <tab> \
             seconds'"
        );
        // Each of them is compiled, and each step has its place.
        let (main, script) = (include_str!("../tests/promises/main.rs"), include_str!("../test.sh"));
        for suite in &suites {
            assert!(
                main.contains(&format!("\nmod {suite};\n")),
                "e2e/tests/promises/main.rs has no line 'mod {suite};'"
            );
        }
        for step in shares().iter().filter(|share| share.kind == "step") {
            assert_eq!(script.matches(&format!("step '{}'\n", step.name)).count(), 1, "{}", step.name);
        }
        assert!(shares().iter().all(|share| ["step", "suite"].contains(&share.kind) && share.seconds > 0));
    }
}
