//! Where tests run, and how many at once.
//!
//! Every test takes its turn in a lane. The *quiet* lane is one cluster that several tests share at a time: each has a
//! namespace, Networks, prefixes and VNIs of its own and disturbs nobody. The lane of those *alone* has two other clusters, in
//! each of which one test at a time may kill, replace and look at everything. Tests *apart* bring up clusters of their own, one
//! test at a time. The three lanes run beside each other; in each the suite with the largest share goes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::exec;
use crate::ledger::{Scope, await_agreement};
use crate::logs::{Moment, errors};
use crate::options::Options;
use crate::parts::repository;
use crate::sandbox::{BundleOnFailure, Sandbox};
use crate::shares::share_of;
use crate::stage::{await_braid, items, leave_unjudged_out, nothing_is_left, restore, text};

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// In the shared cluster, beside other quiet tests.
    Quiet,
    /// In one of two other clusters, with nobody beside it.
    Alone,
    /// In clusters of its own.
    Apart,
}

/// Times that are shorter in the lane of those alone than they are shipped (docs/times.md), by key of the ConfigMap
/// `braid-config`. The quiet lane has all of them as shipped: there others use the time that one test waits.
const SHORT_TIMES: [(&str, &str); 3] = [("coolDown", "3s"), ("ownerCheck", "5s"), ("audit", "5s")];

/// In the environment: every lane has the times that are shipped.
const SHIPPED_TIMES: &str = "BRAID_E2E_SHIPPED_TIMES";

/// How many quiet tests run at once, unless `BRAID_E2E_WIDTH` says otherwise.
const WIDTH: usize = 6;

/// The clusters of tests alone.
const CLUSTERS_ALONE: usize = 2;

/// So many tests must wait before it is worth while to bring up another cluster for them.
const WORTH_A_CLUSTER: usize = 4;

#[derive(Default)]
struct Queue {
    /// Those that wait, the largest share first.
    waiting: BTreeSet<(Reverse<u64>, String)>,
    /// How many run in each cluster.
    running: [usize; CLUSTERS_ALONE],
}

#[derive(Default)]
struct Place {
    queue: Mutex<Queue>,
    changed: Condvar,
    clusters: [OnceLock<Result<Sandbox, String>>; CLUSTERS_ALONE],
}

impl Place {
    /// The cluster in which the next test may run now.
    fn room(&self, queue: &Queue, lane: Lane) -> Option<usize> {
        let (clusters, width) = (lane.clusters(), lane.width());
        let is_worth = |n: usize| match self.clusters[n].get() {
            Some(Ok(_)) => true,
            // The first one tells everybody why it did not come up; without the others it goes on.
            Some(Err(_)) => n == 0,
            None => n == 0 || queue.waiting.len() >= WORTH_A_CLUSTER,
        };
        (0..clusters).find(|n| queue.running[*n] < width && is_worth(*n))
    }
}

impl Lane {
    /// Both lanes whose cluster is shared by tests.
    pub const SHARED: [Self; 2] = [Self::Quiet, Self::Alone];

    fn place(self) -> &'static Place {
        static PLACES: OnceLock<[Place; 3]> = OnceLock::new();
        &PLACES.get_or_init(Default::default)[self as usize]
    }

    /// How many tests run at once in each cluster.
    fn width(self) -> usize {
        let wished = std::env::var("BRAID_E2E_WIDTH").ok().and_then(|text| text.parse().ok());
        if self == Self::Quiet { wished.unwrap_or(WIDTH).max(1) } else { 1 }
    }

    /// How many clusters tests of the lane run in.
    fn clusters(self) -> usize {
        if self == Self::Alone { CLUSTERS_ALONE } else { 1 }
    }

    /// Name of a cluster: `BRAID_E2E_NAME`, which is `e2e` unless it is set, and for the tests alone the same with `-alone1` and
    /// so on.
    fn cluster_name(self, number: usize) -> String {
        let chosen = std::env::var("BRAID_E2E_NAME").ok().filter(|name| !name.is_empty());
        let base = chosen.unwrap_or_else(|| "e2e".to_owned());
        if self == Self::Quiet { base } else { format!("{base}-alone{}", number + 1) }
    }

    /// A cluster of the lane, brought up by the first who asks: three nodes on two racks, so that some pairs of nodes share a
    /// link and others do not. One that `BRAID_E2E_NAME` names and that is up is taken as it is.
    fn cluster(self, number: usize) -> Result<Sandbox> {
        let up = || self.bring_up(number).map_err(|error| format!("{error:?}"));
        self.place().clusters[number].get_or_init(up).clone().map_err(|error| anyhow!(error))
    }

    fn bring_up(self, number: usize) -> Result<Sandbox> {
        let name = self.cluster_name(number);
        let is_named = std::env::var("BRAID_E2E_NAME").is_ok_and(|name| !name.is_empty());
        let given = Sandbox::attach(&name).ok().filter(|_| is_named);
        let options = given.map_or_else(|| self.options(), |sandbox| sandbox.options().clone());
        let shipped = std::env::var_os(SHIPPED_TIMES).is_some();
        ensure!(
            !shipped || options.settings.is_empty(),
            "the cluster '{name}' has other times than those that are shipped: name another one, or remove it with 'e2e/sandbox \
             down --name {name}'"
        );
        let sandbox = Sandbox::ensure(&name, &options)?;
        ensure!(sandbox.nodes().len() >= 3, "the end-to-end tests need a cluster of three nodes");
        sandbox.refresh_image()?;
        restore(&sandbox)?;
        if self == Self::Quiet {
            leave_unjudged_out(&sandbox)?;
        }
        Ok(sandbox)
    }

    fn options(self) -> Options {
        // A long run has the time to wait for what is shipped.
        let shipped = std::env::var_os(SHIPPED_TIMES).is_some();
        let times = if self == Self::Alone && !shipped { &SHORT_TIMES[..] } else { &[] };
        let settings = times.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Options { nodes: 3, racks: 2, settings: settings.collect(), ..Options::default() }
    }

    /// Waits for the test's turn. It lasts until what is returned is dropped.
    pub(crate) fn enter(self, suite: &str, test: &str) -> Turn {
        let place = self.place();
        let me = (Reverse(share_of(suite).unwrap_or_default()), test.to_owned());
        let arrived = Instant::now();
        let is_new = place.queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.insert(me.clone());
        assert!(is_new, "two tests are called '{test}'");
        if self != Self::Apart {
            // Meanwhile the others arrive, so that the largest share really is first. Whoever's turn it is sees the failure.
            drop(self.cluster(0));
        }
        let queue = place.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let blocked =
            |queue: &mut Queue| queue.waiting.first() != Some(&me) || place.room(queue, self).is_none();
        let mut queue = place.changed.wait_while(queue, blocked).unwrap_or_else(PoisonError::into_inner);
        let cluster = place.room(&queue, self).unwrap_or_default();
        queue.waiting.pop_first();
        queue.running[cluster] += 1;
        drop(queue);
        place.changed.notify_all();
        exec::forget_waits();
        Turn {
            is_over: AtomicBool::new(false),
            has_passed: AtomicBool::new(false),
            lane: self,
            cluster,
            suite: suite.to_owned(),
            test: test.to_owned(),
            queued: arrived.elapsed(),
            began: SystemTime::now(),
            provoked: Mutex::default(),
        }
    }
}

/// A test's turn in its lane. When it is over, the next one begins and what became of the test is on record.
#[derive(Debug)]
pub(crate) struct Turn {
    is_over: AtomicBool,
    has_passed: AtomicBool,
    lane: Lane,
    cluster: usize,
    suite: String,
    test: String,
    queued: Duration,
    began: SystemTime,
    provoked: Mutex<Vec<String>>,
}

impl Turn {
    /// When the test began.
    pub(crate) fn began(&self) -> SystemTime {
        self.began
    }

    /// The cluster of the test.
    ///
    /// # Errors
    /// When it cannot come up.
    pub(crate) fn cluster(&self) -> Result<Sandbox> {
        self.lane.cluster(self.cluster)
    }

    /// The lane.
    pub(crate) fn lane(&self) -> Lane {
        self.lane
    }

    /// Errors with this text in the logs of Braid's programs are the test's own doing.
    pub(crate) fn provokes(&self, text: &str) {
        self.provoked.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
    }

    /// What [`Turn::provokes`] was told.
    pub(crate) fn provoked(&self) -> Vec<String> {
        self.provoked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.end();
    }
}

impl Turn {
    /// The test has done all that it should.
    pub(crate) fn passes(&self) {
        self.has_passed.store(true, Ordering::Relaxed);
    }

    /// Ends the turn before the test is over: what is left to do disturbs nobody.
    pub(crate) fn end(&self) {
        if self.is_over.swap(true, Ordering::Relaxed) {
            return;
        }
        let waits = exec::longest_wait();
        let record = Record {
            suite: self.suite.clone(),
            test: self.test.clone(),
            lane: self.lane,
            cluster: if self.lane == Lane::Apart {
                String::new()
            } else {
                self.lane.cluster_name(self.cluster)
            },
            passed: self.has_passed.load(Ordering::Relaxed),
            queued: self.queued.as_secs_f64(),
            began: since_epoch(self.began),
            ended: since_epoch(SystemTime::now()),
            waited_for: waits.as_ref().map_or_else(String::new, |(what, _)| what.clone()),
            waited: waits.map_or(0.0, |(_, time)| time.as_secs_f64()),
            provoked: self.provoked(),
        };
        self.leave();
        if let Err(error) = record.write() {
            // Without its records a run would look as if nothing had failed.
            eprintln!("what became of {} could not be written down: {error:#}", self.test);
            std::process::exit(101);
        }
    }

    fn leave(&self) {
        let place = self.lane.place();
        place.queue.lock().unwrap_or_else(PoisonError::into_inner).running[self.cluster] -= 1;
        place.changed.notify_all();
    }
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |span| span.as_secs_f64())
}

/// What became of one test: a line of `target/e2e/tests.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// File of the test, without its ending.
    pub suite: String,
    /// The test.
    pub test: String,
    /// Where it ran.
    pub lane: Lane,
    /// In which cluster; nothing for a test apart.
    pub cluster: String,
    /// Whether it did all that it should.
    pub passed: bool,
    /// Seconds that it waited for its turn.
    pub queued: f64,
    /// Seconds since 1970 at its begin.
    pub began: f64,
    /// Seconds since 1970 at its end.
    pub ended: f64,
    /// What it waited for longest, of all that it waited for.
    pub waited_for: String,
    /// For how many seconds.
    pub waited: f64,
    /// Texts in the logs of Braid's programs that it provoked.
    pub provoked: Vec<String>,
}

impl Record {
    /// How long the test took, from its turn on.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.ended - self.began
    }

    /// The file of a run's records.
    #[must_use]
    pub fn file() -> PathBuf {
        repository().join("target/e2e/tests.jsonl")
    }

    /// All records of the run; none when nothing ran.
    ///
    /// # Errors
    /// When the file has something else in it.
    pub fn all(file: &Path) -> Result<Vec<Self>> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let parse = |line| serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()));
        text.lines().map(parse).collect()
    }

    fn write(&self) -> Result<()> {
        let file = Self::file();
        fs::create_dir_all(file.parent().context("no folder")?)?;
        let line = format!("{}\n", serde_json::to_string(self)?);
        // One write each, at the end of the file: lines of several tests do not mix.
        OpenOptions::new().create(true).append(true).open(&file)?.write_all(line.as_bytes())?;
        Ok(())
    }
}

/// Checks the clusters of a lane after its last test: Braid works, addresses, pods and nodes agree, no Network of a test is left,
/// and no program of Braid's has logged an error that no test provoked. A lane in which nothing ran has nothing to check.
///
/// # Panics
/// With everything that is wrong, or when no test has run in any lane.
pub fn end_of(lane: Lane) {
    let records = Record::all(&Record::file()).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(!records.is_empty(), "no test has run before this: see e2e/test.sh");
    let mut by_cluster: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records.into_iter().filter(|record| record.lane == lane) {
        by_cluster.entry(record.cluster.clone()).or_default().push(record);
    }
    let mut wrong = Vec::new();
    for (cluster, records) in &by_cluster {
        eprintln!("{cluster}: {} tests ran in it", records.len());
        if let Err(error) = end_of_cluster(lane, cluster, records) {
            wrong.push(format!("cluster {cluster}: {error:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn end_of_cluster(lane: Lane, cluster: &str, records: &[Record]) -> Result<()> {
    let sandbox = Sandbox::attach(cluster).context("it is gone")?;
    let outcome = await_braid(&sandbox)
        .and_then(|()| await_agreement(&sandbox, || Scope::Cluster))
        .and_then(|_| nothing_is_left(&sandbox))
        .and_then(|()| if lane == Lane::Quiet { nobody_restarted(&sandbox) } else { Ok(()) })
        .and_then(|()| no_error_was_logged(&sandbox, records));
    if outcome.is_err() {
        let bundle = BundleOnFailure::new(&sandbox, &format!("end-of-{cluster}"));
        sandbox.bundle(&bundle.path())?;
    }
    outcome
}

/// Quiet tests kill nobody, so whoever was started again has crashed.
fn nobody_restarted(sandbox: &Sandbox) -> Result<()> {
    let pods = sandbox.kubectl_json(&["-n", "braid-system", "get", "pods"])?;
    for pod in items(&pods["items"]) {
        for container in items(&pod["status"]["containerStatuses"]) {
            ensure!(
                container["restartCount"] == 0,
                "{} was started again: {}",
                text(&pod["metadata"]["name"]),
                container["lastState"]
            );
        }
    }
    Ok(())
}

fn no_error_was_logged(sandbox: &Sandbox, records: &[Record]) -> Result<()> {
    // A cluster may be older than this run.
    let begin = records.iter().map(|r| r.began - r.queued).fold(f64::INFINITY, f64::min);
    let begin = moment(begin);
    let complaints: Vec<String> = errors(sandbox)?
        .iter()
        .filter(|line| line.at >= begin)
        .filter_map(|line| {
            let during = |r: &&Record| moment(r.began) <= line.at && line.at <= moment(r.ended);
            let running: Vec<&Record> = records.iter().filter(during).collect();
            let is_provoked = running.iter().any(|r| r.provoked.iter().any(|text| line.text.contains(text)));
            let names: Vec<&str> = running.iter().map(|r| r.test.as_str()).collect();
            (!is_provoked).then(|| format!("{line}\n  while these ran: {}", names.join(", ")))
        })
        .collect();
    ensure!(complaints.is_empty(), "errors in the logs of Braid's programs:\n{}", complaints.join("\n"));
    Ok(())
}

fn moment(since_epoch: f64) -> Moment {
    Moment::of(UNIX_EPOCH + Duration::from_secs_f64(since_epoch))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    impl Turn {
        /// Ends the turn without a record of it.
        fn forget(&self) {
            self.is_over.store(true, Ordering::Relaxed);
            self.leave();
        }
    }

    #[test]
    fn one_apart_at_a_time() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (now, most) = (&now, &most);
                scope.spawn(move || {
                    let turn = Lane::Apart.enter("a suite", &format!("test {number}"));
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    now.fetch_sub(1, Ordering::SeqCst);
                    turn.forget();
                });
            }
        });
        assert_eq!((most.load(Ordering::SeqCst), now.load(Ordering::SeqCst)), (1, 0));
    }

    #[test]
    fn a_second_cluster_is_for_many_and_each_has_one_test_alone() {
        let (place, mut queue) = (Place::default(), Queue::default());
        queue.waiting.insert((Reverse(1), "one".to_owned()));
        assert_eq!(place.room(&queue, Lane::Alone), Some(0));
        queue.running[0] = 1;
        assert_eq!(place.room(&queue, Lane::Alone), None, "not for one that waits");
        queue.waiting.extend(["two", "three", "four"].map(|test| (Reverse(1), test.to_owned())));
        assert_eq!(place.room(&queue, Lane::Alone), Some(1));
        queue.running[1] = 1;
        assert_eq!(place.room(&queue, Lane::Alone), None);
        assert_eq!(place.room(&queue, Lane::Quiet), Some(0), "others are no hindrance there");
        queue.running[0] = Lane::Quiet.width();
        assert_eq!(place.room(&queue, Lane::Quiet), None);
    }
}
