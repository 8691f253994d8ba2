//! Assertions that are known to fail: `e2e/known-failures.tsv`, compiled in.

use anyhow::{Result, bail};

const FILE: &str = include_str!("../known-failures.tsv");

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFailure {
    /// Names one assertion, never a whole test.
    pub name: &'static str,
    /// Why it fails.
    pub reason: &'static str,
    /// The issue that mends it.
    pub issue: &'static str,
    /// Part of what the assertion says when it fails: one that fails otherwise is not known.
    pub says: &'static str,
}

/// All lines of the file. Lines that begin with `#` are for people.
#[must_use]
pub fn known_failures() -> Vec<KnownFailure> {
    read(FILE)
}

fn read(file: &'static str) -> Vec<KnownFailure> {
    let lines = file.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.split('\t');
            let mut word = || words.next().unwrap_or_default();
            KnownFailure { name: word(), reason: word(), issue: word(), says: word() }
        })
        .collect()
}

/// What an assertion comes to: one that is known to fail has to.
///
/// # Errors
/// When the assertion fails and is not in the file, or when it is there and does not fail.
pub fn known_failure(name: &str, outcome: Result<()>) -> Result<()> {
    judge(&known_failures(), name, outcome)
}

fn judge(known: &[KnownFailure], name: &str, outcome: Result<()>) -> Result<()> {
    let Some(entry) = known.iter().find(|entry| entry.name == name) else { return outcome };
    match outcome {
        Ok(()) => bail!("'{name}' does not fail any more: take its line out of e2e/known-failures.tsv"),
        Err(error) if !format!("{error:#}").contains(entry.says) => {
            Err(error.context(format!("'{name}' is known to fail, but not like this")))
        }
        Err(error) => {
            eprintln!("known to fail ({}, {}): {error:#}", entry.reason, entry.issue);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_is_known_must_fail_and_what_is_not_must_not() {
        let known = read("# people\nhost-port\tno portmap\tissue 12\tsilence\n");
        assert_eq!(
            known,
            [KnownFailure { name: "host-port", reason: "no portmap", issue: "issue 12", says: "silence" }]
        );
        let fails = || Err(anyhow!("silence"));
        assert!(judge(&known, "host-port", fails()).is_ok());
        assert!(judge(&known, "host-port", Ok(())).unwrap_err().to_string().contains("known-failures.tsv"));
        assert!(judge(&known, "host-port", Err(anyhow!("no such node"))).is_err());
        assert!(judge(&known, "another", fails()).is_err());
        assert!(judge(&known, "another", Ok(())).is_ok());
    }

    #[test]
    fn every_line_has_a_name_a_reason_and_an_issue() {
        for entry in known_failures() {
            assert!(![entry.name, entry.reason, entry.issue, entry.says].contains(&""), "{entry:?}");
        }
    }
}
