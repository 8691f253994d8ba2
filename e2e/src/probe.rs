//! Traffic: long-running programs on nodes, and flows of packets that are watched for holes.

use std::fs::{self, File};
use std::net::IpAddr;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::exec::eventually;
use crate::sandbox::Sandbox;
use crate::stage::PATIENCE;
use crate::workload::{Pod, bracketed};

/// A program that runs on a node until it is ended. Dropping it ends it.
#[derive(Debug)]
pub struct Running<'a> {
    sandbox: &'a Sandbox,
    node: String,
    pid: String,
    child: Child,
    dir: tempfile::TempDir,
}

impl<'a> Running<'a> {
    /// Starts a program in all namespaces of a node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(sandbox: &'a Sandbox, node: &str, argv: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // The number that this shell prints is the program's own, in the process namespace of the node. It leads a
        // session of its own, so that all it starts can be ended with it.
        let wrapped = [&["setsid", "sh", "-c", "echo \"pid $$\" >&2; exec \"$@\"", "sh"], argv].concat();
        let mut command = sandbox.node_command(node, &wrapped)?;
        command.stdout(File::create(dir.path().join("out"))?).stderr(File::create(dir.path().join("err"))?);
        let child = command.spawn().with_context(|| format!("cannot start {argv:?} on {node}"))?;
        let mut running = Self { sandbox, node: node.to_owned(), pid: String::new(), child, dir };
        running.pid = eventually(&format!("start of {argv:?} on {node}"), PATIENCE, || {
            let said = running.stderr()?;
            Ok(said.lines().find_map(|line| line.strip_prefix("pid ").map(str::to_owned)))
        })?;
        Ok(running)
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.dir.path().join("out"))?).into_owned())
    }

    /// What it has said on standard error so far.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.dir.path().join("err"))?).into_owned())
    }

    /// Interrupts it as Ctrl-C does, and returns all that it printed.
    ///
    /// # Errors
    /// When it has ended before, or does not end.
    pub fn interrupt(mut self) -> Result<String> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "it ended before its time: {}{}",
            self.stdout()?,
            self.stderr()?
        );
        self.sandbox.node_exec(&self.node, &["kill", "-INT", &self.pid])?;
        eventually("end of an interrupted program", PATIENCE, || Ok(self.child.try_wait()?.map(drop)))?;
        self.stdout()
    }

    fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = format!("-{}", self.pid);
            let _ = self.sandbox.node_exec(&self.node, &["kill", "-KILL", "--", &group]);
            let _ = self.child.wait();
        }
    }
}

/// Path of a pod's network namespace on its node. Found by the pod's address, so that nothing needs to be known of the
/// runtime; works while the API server is away.
///
/// # Errors
/// When no namespace of the node has the address.
pub fn netns_of(sandbox: &Sandbox, pod: &Pod) -> Result<String> {
    let address = pod.addresses.first().context("a pod without an address")?;
    let search = format!(
        "for netns in /run/netns/*; do \
         if nsenter --net=\"$netns\" ip -o addr show 2>/dev/null | grep -q ' {address}/'; then echo \"$netns\"; fi; done"
    );
    let found = sandbox.node_exec(&pod.node, &["sh", "-c", &search])?;
    let mut lines = found.lines();
    let netns =
        lines.next().with_context(|| format!("no network namespace on {} has {address}", pod.node))?;
    ensure!(lines.next().is_none(), "several network namespaces on {} have {address}: {found}", pod.node);
    Ok(netns.to_owned())
}

/// An echo request every millisecond from a pod; each answer is kept.
#[derive(Debug)]
pub struct Pings<'a> {
    running: Running<'a>,
    what: String,
}

/// What became of a flow of numbered packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Packets that were answered.
    pub answered: usize,
    /// Numbers between the first and the last answer that were never answered.
    pub lost: Vec<u64>,
}

impl<'a> Pings<'a> {
    /// Starts; returns once the first answer is there.
    ///
    /// # Errors
    /// When there is no answer within the deadline.
    pub fn start(sandbox: &'a Sandbox, from: &Pod, to: IpAddr) -> Result<Self> {
        let netns = format!("--net={}", netns_of(sandbox, from)?);
        let to = to.to_string();
        let what = format!("pings from {} on {} to {to}", from.name, from.node);
        let argv = ["nsenter", &netns, "ping", "-n", "-i", "0.001", &to];
        let pings = Self { running: Running::start(sandbox, &from.node, &argv)?, what };
        pings.progress()?;
        Ok(pings)
    }

    /// Waits for an answer that came after this call.
    ///
    /// # Errors
    /// When there is none within the deadline: the flow has stopped for good.
    pub fn progress(&self) -> Result<()> {
        let before = self.running.stdout()?.len();
        // The file grows by a line per answer; two more lines mean that one was asked and answered after `before`.
        eventually(&format!("{} to go on", self.what), PATIENCE, || {
            let now = self.running.stdout()?;
            let news = now.get(before..).unwrap_or_default();
            Ok((news.matches("icmp_seq=").count() >= 2).then_some(()))
        })
    }

    /// Ends the flow after one more answer, and counts.
    ///
    /// # Errors
    /// When the flow does not go on.
    pub fn finish(self) -> Result<Outcome> {
        self.progress()?;
        count(&self.running.interrupt()?)
    }

    /// Ends the flow, which must have had no hole.
    ///
    /// # Errors
    /// When a packet between the first and the last answer is missing, with the numbers of the missing ones.
    pub fn finish_without_loss(self) -> Result<Outcome> {
        let what = self.what.clone();
        let outcome = self.finish()?;
        let lost = &outcome.lost;
        let first: Vec<_> = lost.iter().take(20).collect();
        ensure!(
            lost.is_empty(),
            "{what}: {} of {} packets lost, numbers {first:?}{}",
            lost.len(),
            lost.len() + outcome.answered,
            if lost.len() > 20 { "..." } else { "" }
        );
        ensure!(outcome.answered > 10, "{what}: only {} packets in all", outcome.answered);
        Ok(outcome)
    }
}

/// The answers in what ping printed. Its counter has 16 bits and starts again after 65535.
fn count(printed: &str) -> Result<Outcome> {
    let (mut seen, mut previous, mut base) = (std::collections::BTreeSet::new(), 0_u64, 0_u64);
    for line in printed.lines().filter(|line| line.contains(" bytes from ")) {
        let Some(rest) = line.split("icmp_seq=").nth(1) else { continue };
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let number: u64 = digits.parse().with_context(|| format!("not a ping line: {line}"))?;
        if base + number + 32_768 < previous {
            base += 65_536;
        }
        previous = base + number;
        seen.insert(previous);
    }
    let (Some(first), Some(last)) = (seen.first().copied(), seen.last().copied()) else {
        return Ok(Outcome { answered: 0, lost: Vec::new() });
    };
    let lost = (first..=last).filter(|number| !seen.contains(number)).collect();
    Ok(Outcome { answered: seen.len(), lost })
}

/// A TCP connection from one pod to another over which numbered lines go back and forth. The other pod must run
/// [`ECHO_SERVER`].
#[derive(Debug)]
pub struct Stream<'a> {
    running: Running<'a>,
    what: String,
}

/// Command of a pod that sends back what it gets on port 9000, in both families.
pub const ECHO_SERVER: [&str; 3] =
    ["socat", "TCP6-LISTEN:9000,ipv6only=0,reuseaddr,fork", "EXEC:/usr/bin/cat"];

impl<'a> Stream<'a> {
    /// Opens the connection; returns once the first line has come back.
    ///
    /// # Errors
    /// When none comes back within the deadline.
    pub fn start(sandbox: &'a Sandbox, from: &Pod, to: IpAddr) -> Result<Self> {
        let netns = netns_of(sandbox, from)?;
        let script = format!(
            "i=0; while sleep 0.05; do i=$((i+1)); echo $i; done | \
             nsenter --net={netns} socat - TCP:{}:9000",
            bracketed(to)
        );
        let what = format!("TCP stream from {} to {to}", from.name);
        let running = Running::start(sandbox, &from.node, &["sh", "-c", &script])?;
        let mut stream = Self { running, what };
        stream.progress()?;
        Ok(stream)
    }

    /// Waits for two lines that come back after this call.
    ///
    /// # Errors
    /// When the connection is broken or stuck.
    pub fn progress(&mut self) -> Result<()> {
        let before = self.running.stdout()?.lines().count();
        let what = format!("{} to go on", self.what);
        let outcome = eventually(&what, PATIENCE, || {
            if !self.running.is_alive()? {
                return Ok(Some(false));
            }
            Ok((self.running.stdout()?.lines().count() > before + 2).then_some(true))
        })?;
        ensure!(outcome, "{}: the connection broke: {}", self.what, self.running.stderr()?);
        Ok(())
    }

    /// Checks that the connection lives and that every line came back in order.
    ///
    /// # Errors
    /// When it is broken or a line is missing.
    pub fn finish(mut self) -> Result<usize> {
        self.progress()?;
        let printed = self.running.stdout()?;
        // The last line may be half written.
        let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
        for (line, number) in whole.lines().zip(1_usize..) {
            ensure!(line == number.to_string(), "{}: line {number} came back as '{line}'", self.what);
        }
        Ok(whole.lines().count())
    }
}

/// A capture of packets on one device of a node.
#[derive(Debug)]
pub struct Capture<'a> {
    running: Running<'a>,
}

impl<'a> Capture<'a> {
    /// Starts; returns once packets are captured.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(sandbox: &'a Sandbox, node: &str, device: &str, filter: &str) -> Result<Self> {
        let argv = ["tcpdump", "-n", "-l", "--immediate-mode", "-i", device, filter];
        let running = Running::start(sandbox, node, &argv)?;
        eventually("start of a capture", PATIENCE, || {
            Ok(running.stderr()?.contains("listening on").then_some(()))
        })?;
        Ok(Self { running })
    }

    /// The packets so far, one per line.
    ///
    /// # Errors
    /// When the output cannot be read.
    pub fn packets(&self) -> Result<Vec<String>> {
        Ok(self.running.stdout()?.lines().map(str::to_owned).collect())
    }

    /// Waits for a packet whose line contains `part`.
    ///
    /// # Errors
    /// When none comes within the deadline.
    pub fn await_packet(&self, part: &str) -> Result<String> {
        eventually(&format!("a packet with '{part}'"), Duration::from_secs(20), || {
            Ok(self.packets()?.into_iter().find(|line| line.contains(part)))
        })
    }
}

/// Script that sends pings to every address, `argument` being added to ping's arguments, and prints those that do not
/// answer.
#[must_use]
pub fn ping_script(addresses: &[IpAddr], arguments: &str) -> String {
    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!(
        "for ip in {}; do ping -n -q -c 2 -i 0.05 -W 2 {arguments} $ip >/dev/null 2>&1 || echo $ip; done",
        list.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(numbers: impl IntoIterator<Item = u64>) -> String {
        numbers
            .into_iter()
            .map(|n| format!("64 bytes from 10.0.0.1: icmp_seq={} ttl=62 time=0.1 ms\n", n % 65_536))
            .collect()
    }

    #[test]
    fn holes_are_counted_across_the_turn_of_the_counter() {
        let outcome = count(&lines((5..140_000).filter(|n| *n != 70_000 && *n != 9))).unwrap();
        assert_eq!(outcome.lost, [9, 70_000]);
        assert_eq!(outcome.answered, 139_993);
    }

    #[test]
    fn late_answers_are_no_loss_and_errors_are_no_answers() {
        let mut printed = lines([1, 3, 2, 4]);
        printed += "From 10.0.0.9 icmp_seq=5 Destination Host Unreachable\n";
        printed += &lines([6]);
        assert_eq!(count(&printed).unwrap(), Outcome { answered: 5, lost: vec![5] });
        assert_eq!(count("").unwrap().answered, 0);
    }
}
