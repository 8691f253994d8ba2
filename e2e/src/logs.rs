//! Errors that Braid's programs have logged.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::sandbox::Sandbox;

/// A moment as the container runtime writes it, up to the second: `2026-01-31T23:59:59`. Later ones are greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(String);

impl Moment {
    /// The second that holds a time of this machine's clock, which the nodes share.
    pub(crate) fn of(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |span| span.as_secs());
        let format = |time: jiff::Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        Self(time.map(format).unwrap_or_default())
    }
}

/// A line of level ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorLine {
    pub(crate) node: String,
    /// The pod whose program logged it.
    pub(crate) pod: String,
    pub(crate) at: Moment,
    pub(crate) text: String,
}

impl fmt::Display for ErrorLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}: {}", self.at.0, self.pod, self.node, self.text)
    }
}

/// All lines of level ERROR, and all panics, that are in the logs of agents and controllers of all nodes that run. The logs of
/// pods that are gone are gone with them, and so are those of all but the last two runs of a container.
pub(crate) fn errors(sandbox: &Sandbox) -> Result<Vec<ErrorLine>> {
    // 1: no such line. 2: no such file, which a node may have from which the agent was taken.
    let script = "cd /var/log/pods; ls -d braid-system_*/ >/dev/null || exit 0; \
        grep -H -e ' ERROR ' -e ' panicked at ' -r --include='*.log*' braid-system_*/; [ $? -le 1 ]";
    let mut found = Vec::new();
    for node in sandbox.nodes() {
        let printed = sandbox.node_exec(&node, &["sh", "-c", script])?;
        found.extend(printed.lines().filter_map(|line| read(&node, line)));
    }
    Ok(found)
}

/// A line as grep prints it: `<namespace>_<pod>_<uid>/<container>/0.log:<time> stderr F <line of the program>`.
fn read(node: &str, line: &str) -> Option<ErrorLine> {
    let (file, logged) = line.split_once(':')?;
    let (time, rest) = logged.split_once(' ')?;
    let (_, text) = rest.split_once(" F ").or_else(|| rest.split_once(" P "))?;
    // The level follows the program's own time; a line that only quotes the word is none.
    let level = text.split_whitespace().find(|word| word.chars().all(|letter| letter.is_ascii_uppercase()));
    let is_panic = text.starts_with("thread ") && text.contains(" panicked at ");
    let pod = file.split('_').nth(1)?;
    let line = ErrorLine {
        node: node.to_owned(),
        pod: pod.to_owned(),
        at: Moment(time.get(..19)?.to_owned()),
        text: text.to_owned(),
    };
    (is_panic || level == Some("ERROR")).then_some(line)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_is_read_with_its_pod_and_time_and_a_mention_is_none() {
        let line = "braid-system_braid-node-x2_0f-1/agent/0.log:2026-01-31T23:59:59.123456789Z stderr F \
            2026-01-31T23:59:59.123Z ERROR braid_node::sweep: no way to 10.107.0.5";
        let read = |line: &str| super::read("node1", line);
        let found = read(line).unwrap();
        assert_eq!((found.pod.as_str(), found.at.0.as_str()), ("braid-node-x2", "2026-01-31T23:59:59"));
        assert!(found.text.ends_with("no way to 10.107.0.5"));
        let (head, _) = line.split_once(" F ").unwrap();
        assert!(read(&format!("{head} F thread 'main' (7) panicked at src/main.rs:1:1:")).is_some());
        assert!(read(&line.replace("Z ERROR", "Z  WARN").replace("no way", "an ERROR on the way")).is_none());
    }

    #[test]
    fn moments_are_in_order() {
        let moment = |seconds| Moment::of(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(moment(1_769_903_999), Moment("2026-01-31T23:59:59".to_owned()));
        assert!(moment(1_769_903_999) < moment(1_769_904_000));
    }
}
