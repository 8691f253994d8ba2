//! The plugin's log: one line for each request that failed, for the times when there is no agent that could keep one.
//!
//! **Invariant:** it never changes the answer. Whatever goes wrong here, the line is lost and nothing else.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use braid_meta_core::env::{Environment, Variable};
use braid_meta_core::invocation::Output;

/// Where the log is, unless the runtime's environment names another file in [`PLACE`].
const FILE: &str = "/var/log/braid/cni.log";
/// Variable with the path of the log.
const PLACE: &str = "BRAID_CNI_LOG";
/// A file that has grown to this many bytes becomes `<file>.1`, in place of the one before it.
const LIMIT: u64 = 1 << 20;
/// Most bytes of one error.
const LONGEST: usize = 4096;

/// Notes a request that failed.
pub(crate) fn failure(environment: &Environment, output: &Output) {
    let object = output.stdout.as_ref();
    let part = |key: &str| object.and_then(|o| o.get(key)).and_then(|v| v.as_str()).unwrap_or_default();
    let code = object.and_then(|o| o.get("code")).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let details = part("details");
    let error = match details {
        "" => format!("{} (code {code})", part("msg")),
        more => format!("{}: {more} (code {code})", part("msg")),
    };
    note(text(&environment.command), text(&environment.container_id), text(&environment.ifname), &error);
}

/// Adds a line.
pub(crate) fn note(verb: &str, container: &str, ifname: &str, error: &str) {
    let path = env::var_os(PLACE).map_or_else(|| PathBuf::from(FILE), PathBuf::from);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let cut = (0..=LONGEST.min(error.len())).rev().find(|i| error.is_char_boundary(*i)).unwrap_or_default();
    let error = &error[..cut];
    // Quoted as Rust does it, so that a line stays one whatever the runtime has sent.
    let line =
        format!("{} {verb:?} container={container:?} ifname={ifname:?} error={error:?}\n", rfc3339(seconds));
    // Nobody is left who could be told.
    let _ = append(&path, line.as_bytes());
}

fn text(variable: &Variable) -> &str {
    match variable {
        Variable::Text(text) => text,
        Variable::Missing => "",
        Variable::NotText => "?",
    }
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = open(path)?;
    if file.metadata()?.len() >= LIMIT && rotate(path, &file) {
        file = open(path)?;
    }
    // One write to a file opened for appending: lines of several calls do not mix.
    file.write_all(line)
}

fn open(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            open()
        }
        opened => opened,
    }
}

/// Makes room; whether this call did. Of several that want to, the one with the lock does, and only as long as the
/// name still is the full file's.
fn rotate(path: &Path, full: &File) -> bool {
    let same = || -> io::Result<bool> {
        let (named, held) = (fs::metadata(path)?, full.metadata()?);
        Ok((named.dev(), named.ino()) == (held.dev(), held.ino()))
    };
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    full.try_lock().is_ok() && same().unwrap_or(false) && fs::rename(path, older).is_ok()
}

/// Seconds since the epoch as RFC 3339 writes them, in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the Gregorian calendar, whose years are taken to begin in March
    // (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn one_older_file_is_kept() {
        let dir = std::env::temp_dir().join(format!("braid-cni-log-{}", std::process::id()));
        let (path, older) = (dir.join("deep/cni.log"), dir.join("deep/cni.log.1"));
        let size = |p: &Path| fs::metadata(p).map(|m| m.len()).unwrap_or_default();
        for round in 0..3 {
            append(&path, &vec![b'x'; usize::try_from(LIMIT).unwrap_or(usize::MAX)]).expect("written");
            append(&path, b"next\n").expect("written");
            assert_eq!((size(&path), size(&older) > 0), (5, true), "round {round}");
            assert_eq!(fs::read_dir(dir.join("deep")).expect("a folder").count(), 2);
        }
        fs::remove_dir_all(dir).expect("cleaned up");
    }
}
