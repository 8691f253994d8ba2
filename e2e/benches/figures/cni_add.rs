//! `CNI ADD`: Braid's plugin and agent against a bare netlink program and against the reference plugins, all started
//! by the same runner, each with a fresh network namespace.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use braid_e2e::{Sandbox, eventually};
use serde_json::{Value, json};

use crate::place::{self, NAMESPACE, PATIENCE};
use crate::report::{Report, median, percentile};
use crate::runner::{self, Call, Plan, Times, Turn};

/// The node whose kubelet rests, so that nobody else attaches the pods.
const NODE: &str = "node2";
/// At once, in the second part.
const PARALLEL: usize = 16;
const ALONE: usize = 100;
const BURSTS: usize = 8;
const STARTS: usize = 200;
/// The dual-stack reference waits in every ADD until the kernel has found its address unique, so it runs less often.
const RARELY: usize = 20;

const FLOOR: &str = "bare netlink program";
const BRAID: &str = "braid-cni and agent";
const REFERENCE: &str = "ptp and host-local, IPv4 only";
const REFERENCE_DUAL: &str = "ptp and host-local, dual-stack";
const CONTENDERS: [&str; 4] = [FLOOR, BRAID, REFERENCE, REFERENCE_DUAL];
const TRUE: &str = "/bin/true";
const START: &str = "braid-cni VERSION";

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "cni-add",
        "CNI ADD, dual-stack, addresses granted before",
        "One runner on a node of the sandbox forks and executes each contender with a fresh network namespace and waits \
         for its end. The bare netlink program is one static process that makes the same veth pair, addresses, \
         neighbours and routes with two batches of netlink; it has no filter, no journal, no undo. Braid is the shipped \
         plugin that asks the running agent, which also writes its journal and the nftables elements against forged \
         sources. The reference is `ptp`, which executes `host-local`; with IPv6 it waits for duplicate address \
         detection, so it is shown with IPv4 alone too, which is half of the others' work. Contenders take turns; an \
         interface is removed before the next turn, outside the measured time.",
        &["contender", "alone p50", "alone p99", "against the floor", "16 at once p50", "16 at once p99"],
    );
    let sandbox = place::braid()?;
    sandbox.stop(&format!("kubelet@{NODE}"))?;
    let outcome = measure(&sandbox);
    clear(&sandbox)?;
    sandbox.start(&format!("kubelet@{NODE}"))?;
    let (times, steps) = outcome?;

    let samples = |name: &str| times.get(name).cloned().unwrap_or_default();
    let floor = median(&samples(FLOOR));
    for contender in CONTENDERS {
        let (alone, burst) = (samples(contender), samples(&at_once(contender)));
        report.row([
            contender.to_owned(),
            ms(median(&alone)),
            ms(percentile(&alone, 99)),
            format!("{:.2}x", median(&alone) / floor),
            ms(median(&burst)),
            ms(percentile(&burst, 99)),
        ]);
    }
    let none = || "-".to_owned();
    for (step, mean) in steps {
        let step = if step == "total" { "request to answer" } else { &step };
        report.row([format!("agent, {step} (mean)"), ms(mean), none(), none(), none(), none()]);
    }
    for start in [TRUE, START] {
        let times = samples(start);
        let against = format!("{:+.2} ms", (median(&times) - median(&samples(TRUE))) * 1e3);
        report.row([
            format!("start to exit: {start}"),
            ms(median(&times)),
            ms(percentile(&times, 99)),
            against,
            none(),
            none(),
        ]);
    }
    report.keep("seconds", &times)?;
    judge(&mut report, &times);
    Ok(report)
}

fn judge(report: &mut Report, times: &Times) {
    let p = |name: &str, part| times.get(name).map_or(f64::NAN, |samples| percentile(samples, part));
    let ratio = p(BRAID, 50) / p(FLOOR, 50);
    report.budget("ADD p50 against the floor", "<= 1.5x", format!("{ratio:.2}x"), ratio <= 1.5);
    let ratio = p(BRAID, 50) / p(REFERENCE, 50);
    report.budget(
        "ADD p50 against ptp with IPv4 alone",
        "faster",
        format!("{ratio:.2}x its time"),
        ratio < 1.0,
    );
    let burst = at_once(BRAID);
    let ratio = p(&burst, 99) / p(&burst, 50);
    report.budget("ADD p99 at 16 in parallel against p50", "<= 4x", format!("{ratio:.2}x"), ratio <= 4.0);
    let more = (p(START, 50) - p(TRUE, 50)) * 1e3;
    report.budget("plugin start against /bin/true", "<= +1 ms", format!("{more:+.2} ms"), more <= 1.0);
}

fn ms(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

fn at_once(contender: &str) -> String {
    format!("{contender}, {PARALLEL} at once")
}

/// A pod that has its addresses and no interface.
struct Granted {
    name: String,
    uid: String,
}

fn pod_name(n: usize) -> String {
    format!("add-{n}")
}

fn measure(sandbox: &Sandbox) -> Result<(Times, BTreeMap<String, f64>)> {
    let pods: Vec<Value> = (0..PARALLEL).map(|n| place::pod(&pod_name(n), NODE, &[])).collect();
    sandbox.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
    let pods: Vec<Granted> = (0..PARALLEL).map(|n| granted(sandbox, n)).collect::<Result<_>>()?;
    let mut contest = Contest::new(sandbox, pods)?;
    let before = steps(sandbox)?;
    let mut times = runner::run(sandbox, NODE, &contest.alone())?;
    let after = steps(sandbox)?;
    times.extend(runner::run(sandbox, NODE, &contest.bursts())?);
    let mean = |(step, (sum, count)): (&String, &(f64, f64))| {
        let (old_sum, old_count) = before.get(step).copied().unwrap_or_default();
        (step.clone(), (sum - old_sum) / (count - old_count).max(1.0))
    };
    Ok((times, after.iter().map(mean).collect()))
}

fn granted(sandbox: &Sandbox, n: usize) -> Result<Granted> {
    let name = pod_name(n);
    let pod = sandbox.kubectl_json(&["-n", NAMESPACE, "get", "pod", &name])?;
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    eventually(&format!("addresses of pod {name}"), PATIENCE, || {
        let selector = format!("--field-selector=spec.pod.uid={uid}");
        let found = sandbox.kubectl_json(&["get", "ipinstances", &selector])?;
        Ok(found["items"].as_array().is_some_and(|items| items.len() == 2).then_some(()))
    })?;
    Ok(Granted { name, uid })
}

/// Sum and count of each step of ADD so far, as the agent tells them.
fn steps(sandbox: &Sandbox) -> Result<BTreeMap<String, (f64, f64)>> {
    let text = sandbox.node_exec(NODE, &["curl", "-s", "http://127.0.0.1:9431/metrics"])?;
    let mut steps: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("verb=\"ADD\"")) {
        let step = line.split("step=\"").nth(1).and_then(|rest| rest.split('"').next());
        let value = line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok());
        let (Some(step), Some(value)) = (step, value) else { continue };
        if line.starts_with("braid_node_cni_duration_seconds_sum") {
            steps.entry(step.to_owned()).or_default().0 = value;
        } else if line.starts_with("braid_node_cni_duration_seconds_count") {
            steps.entry(step.to_owned()).or_default().1 = value;
        }
    }
    Ok(steps)
}

fn clear(sandbox: &Sandbox) -> Result<()> {
    sandbox
        .kubectl(&[
            "-n",
            NAMESPACE,
            "delete",
            "pods",
            "--all",
            "--grace-period=0",
            "--force",
            "--ignore-not-found",
        ])
        .map(drop)
}

/// Everything that the calls need to know.
struct Contest {
    floor: String,
    pods: Vec<Granted>,
    braid: String,
    reference: String,
    reference_dual: String,
    /// Number of the next attachment: each has its own namespace, container id and addresses.
    next: u32,
    namespaces: Vec<String>,
}

impl Contest {
    fn new(sandbox: &Sandbox, pods: Vec<Granted>) -> Result<Self> {
        let list = sandbox.node_exec(NODE, &["cat", "/etc/cni/net.d/05-braid.conflist"])?;
        let list: Value = serde_json::from_str(&list).context("Braid's network configuration")?;
        let mut braid = list["plugins"][0].clone();
        ensure!(braid.is_object(), "Braid's network configuration has no plugin");
        braid["cniVersion"] = list["cniVersion"].clone();
        braid["name"] = list["name"].clone();
        let reference = |name: &str, ranges: Value, routes: Value| {
            let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
            json!({"cniVersion": "1.0.0", "name": name, "type": "ptp", "ipam": ipam}).to_string()
        };
        Ok(Self {
            floor: runner::floor_path()?,
            pods,
            braid: braid.to_string(),
            reference: reference(
                "bench",
                json!([[{"subnet": "10.99.0.0/16"}]]),
                json!([{"dst": "0.0.0.0/0"}]),
            ),
            reference_dual: reference(
                "bench-dual",
                json!([[{"subnet": "10.95.0.0/16"}], [{"subnet": "fd00:10:99::/64"}]]),
                json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]),
            ),
            next: 0,
            namespaces: Vec::new(),
        })
    }

    /// One call at a time.
    fn alone(&mut self) -> Plan {
        let mut turns = Vec::new();
        for round in 0..ALONE {
            for contender in CONTENDERS {
                if contender != REFERENCE_DUAL || round % RARELY == 0 {
                    turns.push(self.turn(contender, contender, 1, round));
                }
            }
        }
        let start = |argv: &str, command: &str| Call {
            argv: vec![argv.to_owned()],
            env: BTreeMap::from([("CNI_COMMAND".to_owned(), command.to_owned())]),
            stdin: "{}".to_owned(),
        };
        for _ in 0..STARTS {
            let calls = [(TRUE, start("/bin/true", "")), (START, start("/opt/cni/bin/braid", "VERSION"))];
            let calls = calls.map(|(contender, call)| Turn {
                contender: contender.to_owned(),
                timed: vec![call],
                after: Vec::new(),
            });
            turns.extend(calls);
        }
        Plan { namespaces: std::mem::take(&mut self.namespaces), turns }
    }

    /// Many calls at the same moment.
    fn bursts(&mut self) -> Plan {
        let mut turns = Vec::new();
        for round in 0..BURSTS {
            for contender in CONTENDERS {
                if contender != REFERENCE_DUAL || round == 0 {
                    turns.push(self.turn(&at_once(contender), contender, PARALLEL, round));
                }
            }
        }
        Plan { namespaces: std::mem::take(&mut self.namespaces), turns }
    }

    fn turn(&mut self, name: &str, contender: &str, count: usize, round: usize) -> Turn {
        let mut turn = Turn { contender: name.to_owned(), ..Turn::default() };
        for n in 0..count {
            let (timed, after) = self.attachment(contender, (round + n) % self.pods.len());
            turn.timed.push(timed);
            turn.after.push(after);
        }
        turn
    }

    /// One ADD and what undoes it.
    fn attachment(&mut self, contender: &str, pod: usize) -> (Call, Call) {
        self.next += 1;
        let (n, namespace) = (self.next, format!("bench-{}", self.next));
        self.namespaces.push(namespace.clone());
        let path = format!("/var/run/netns/{namespace}");
        if contender == FLOOR {
            let device = format!("floor{n}");
            let [a, b] = [n / 250, n % 250 + 2];
            let argv = [
                self.floor.clone(),
                path,
                device.clone(),
                (100_000 + n).to_string(),
                format!("02:b3:00:00:{a:02x}:{b:02x}"),
                format!("10.98.{a}.{b}"),
                format!("fd00:10:98::{n:x}"),
            ];
            let mut remove =
                Call { argv: ["ip", "link", "del", &device].map(str::to_owned).into(), ..Call::default() };
            remove.env = search_path();
            return (Call { argv: argv.into(), env: search_path(), stdin: String::new() }, remove);
        }
        let (plugin, config) = match contender {
            BRAID => ("braid", &self.braid),
            REFERENCE => ("ptp", &self.reference),
            _ => ("ptp", &self.reference_dual),
        };
        let pod = &self.pods[pod];
        let container = format!("bench{n:08}");
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={}",
            pod.name, pod.uid
        );
        let call = |command: &str| {
            let mut env = search_path();
            for (key, value) in [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &container),
                ("CNI_NETNS", &path),
                ("CNI_IFNAME", "eth0"),
                ("CNI_ARGS", &arguments),
                ("CNI_PATH", "/opt/cni/bin"),
            ] {
                env.insert(key.to_owned(), value.to_owned());
            }
            Call { argv: vec![format!("/opt/cni/bin/{plugin}")], env, stdin: config.clone() }
        };
        (call("ADD"), call("DEL"))
    }
}

fn search_path() -> BTreeMap<String, String> {
    BTreeMap::from([("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())])
}
