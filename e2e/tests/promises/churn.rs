//! 200 pods come and go in waves, beside pods with kept and with pooled addresses, while controllers, agents, kubelets,
//! container runtimes, the API server and whole nodes are killed at random, and the clock of one controller is wrong. An
//! observer reads all the time what interfaces really have: no address is ever on two of them, and none that is kept ever
//! changes. Afterwards no address is lost, doubled or leaked, and the nodes hold nothing beyond what their pods need.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use braid_e2e::daemons::Program;
use braid_e2e::eventually;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::ledger::real_addresses;
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{LEAD_LOST, PATIENCE, Stage, alone, items};
use braid_e2e::workload::{Pod, PodPlan, template};
use serde_json::json;

/// At least so many; as many as `BRAID_E2E_CHURN_MINUTES` have room for.
const WAVES: usize = 5;
const PODS_PER_WAVE: usize = 40;

/// Pods of a StatefulSet, which keep their addresses.
const KEPT: usize = 4;
/// The controller asks once a minute whether an owner still exists, and a cool-down follows.
const OWNER_PATIENCE: Duration = Duration::from_secs(240);
/// Pods of a Deployment with a pool of its own: one entry more than it needs for a rolling update.
const POOLED: usize = 3;
const POOL: &str = "10.244.200.1-10.244.200.4,fd00:10:244::c8:1-fd00:10:244::c8:4";

/// xorshift64*: small, and the same for the same seed everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or_default() % sides
    }
}

/// `BRAID_E2E_SEED`, or a new one for each run.
fn seed() -> Result<u64> {
    let chosen = std::env::var("BRAID_E2E_SEED").ok().filter(|text| !text.is_empty());
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    chosen.map_or_else(|| Ok(fresh()), |text| text.parse().context("BRAID_E2E_SEED is not a number"))
}

/// The kubelet waits longer before each restart of a container, ten seconds to minutes. A program that has been killed
/// this often on a node is left in peace there, or the test would be about the kubelet's patience.
const MOST_KILLS: usize = 3;

/// The API server is killed once in so many kills, a node in twice as many.
const RARELY: usize = 6;

/// How often each program has been killed on each node.
type Toll = BTreeMap<(&'static str, String), usize>;

/// Kills something that the cluster needs. What is dead already cannot be killed, and that is fine.
fn kill_something(stage: &Stage, number: usize, dice: &mut Dice, toll: &mut Toll) -> Result<String> {
    let nodes = stage.nodes();
    let node = &nodes[dice.roll(nodes.len())];
    if (number + 1).is_multiple_of(RARELY) {
        // The first node carries the control plane.
        let loses_power = &nodes[1 + dice.roll(nodes.len() - 1)];
        let is_power = (number + 1).is_multiple_of(2 * RARELY);
        let component = if is_power { loses_power.as_str() } else { "apiserver" };
        stage.sandbox().kill(component)?;
        return Ok(component.to_owned());
    }
    for program in [Program::Controller, Program::Agent] {
        let killed = toll.entry((program.name(), node.clone())).or_default();
        if dice.roll(3) == 0 && *killed < MOST_KILLS && stage.kill_daemon(program, node).is_ok() {
            *killed += 1;
            return Ok(format!("{} on {node}", program.name()));
        }
    }
    let component = format!("{}@{node}", ["kubelet", "containerd"][dice.roll(2)]);
    stage.sandbox().kill(&component)?;
    Ok(component)
}

/// How long the waves go on at least.
fn lasting() -> Result<Duration> {
    let chosen = std::env::var("BRAID_E2E_CHURN_MINUTES").ok().filter(|text| !text.is_empty());
    let minutes =
        chosen.map_or(Ok(0), |text| text.parse::<u64>().context("BRAID_E2E_CHURN_MINUTES is not a number"));
    Ok(Duration::from_secs(minutes? * 60))
}

/// Those whose addresses outlive their pods.
fn residents(stage: &Stage) -> Result<()> {
    let meta = |name: &str| json!({"name": name, "namespace": stage.namespace()});
    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    let objects = [
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta("kept"),
            "spec": {
                "replicas": KEPT, "serviceName": "kept", "podManagementPolicy": "Parallel",
                "selector": selector("kept"), "template": template("kept", &json!({})),
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("pooled"),
            "spec": {
                "replicas": POOLED, "selector": selector("pooled"),
                "template": template("pooled", &json!({"braid.network/ips": POOL})),
            },
        }),
    ];
    stage.sandbox().apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    stage.kubectl(&["rollout", "status", "statefulset/kept", "--timeout=180s"])?;
    stage.kubectl(&["rollout", "status", "deployment/pooled", "--timeout=180s"]).map(drop)
}

/// What the observer has to hold against what it sees.
struct Observer<'a> {
    stage: &'a Stage,
    kept: BTreeMap<String, Vec<IpAddr>>,
    pool: Vec<(IpAddr, IpAddr)>,
}

impl<'a> Observer<'a> {
    fn new(stage: &'a Stage) -> Result<Self> {
        let mut kept = BTreeMap::new();
        for pod in Self::pods(stage, "kept")? {
            ensure!(pod.addresses.len() == 2, "{pod:?}");
            kept.insert(pod.name, pod.addresses);
        }
        ensure!(kept.len() == KEPT, "{kept:?}");
        let range = |text: &str| -> Result<_> {
            let (first, last) = text.split_once('-').context("a range")?;
            Ok((first.parse()?, last.parse()?))
        };
        Ok(Self { stage, kept, pool: POOL.split(',').map(range).collect::<Result<_>>()? })
    }

    fn pods(stage: &Stage, app: &str) -> Result<Vec<Pod>> {
        let pods = stage.kubectl_json(&["get", "pods", "-l", &format!("app={app}")])?;
        Ok(items(&pods["items"]).iter().map(Pod::read).collect())
    }

    /// Looks until `over`. What cannot be asked, because it has just been killed, is asked again; a contradiction ends it.
    fn watch(&self, over: &AtomicBool) -> Result<usize> {
        let mut looks = 0;
        while !over.load(Ordering::Relaxed) {
            if let Ok(first) = real_addresses(self.stage.sandbox()) {
                let twice: Vec<_> = first.iter().filter(|(_, holders)| holders.len() > 1).collect();
                // Nodes are read one after another, and a kept address may have moved meanwhile: who really shares one
                // does so at the next look too.
                if !twice.is_empty()
                    && let Ok(second) = real_addresses(self.stage.sandbox())
                {
                    let still: Vec<_> = twice.iter().filter(|(a, h)| second.get(*a) == Some(h)).collect();
                    ensure!(still.is_empty(), "addresses on more than one interface: {still:?}");
                }
                looks += 1;
            }
            for pod in Self::pods(self.stage, "kept").unwrap_or_default() {
                let held = pod.addresses.is_empty() || self.kept.get(&pod.name) == Some(&pod.addresses);
                ensure!(held, "{} kept {:?} and has {:?}", pod.name, self.kept.get(&pod.name), pod.addresses);
            }
            for pod in Self::pods(self.stage, "pooled").unwrap_or_default() {
                let in_pool = |a: &IpAddr| self.pool.iter().any(|(first, last)| first <= a && a <= last);
                ensure!(pod.addresses.iter().all(in_pool), "{pod:?} is outside of its pool");
            }
        }
        Ok(looks)
    }
}

/// Ends one of those that come back.
fn delete_a_resident(stage: &Stage, dice: &mut Dice) -> Result<()> {
    let app = ["kept", "pooled"][dice.roll(2)];
    let pods = Observer::pods(stage, app)?;
    if pods.is_empty() {
        return Ok(());
    }
    let name = &pods[dice.roll(pods.len())].name;
    stage.kubectl(&["delete", "pod", name, "--wait=false", "--ignore-not-found"]).map(drop)
}

fn mayhem(stage: &Stage, seed: u64, over: &AtomicBool, killed: &AtomicUsize) -> Result<()> {
    let (mut dice, mut toll) = (Dice(seed ^ 0x9e37_79b9_7f4a_7c15), Toll::new());
    while !over.load(Ordering::Relaxed) {
        let number = killed.fetch_add(1, Ordering::Relaxed);
        eprintln!("killed: {}", kill_something(stage, number, &mut dice, &mut toll)?);
        if dice.roll(2) == 0 {
            patiently("end of a resident", || delete_a_resident(stage, &mut dice))?;
        }
        // The pause is part of the dice: what matters is that the moments differ, not when they are.
        std::thread::sleep(Duration::from_millis(2000 + 500 * u64::try_from(dice.roll(8))?));
    }
    Ok(())
}

/// Does what may fail because the API server or a node has just been killed.
fn patiently(what: &str, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    eventually(what, PATIENCE, || work().map(Some))
}

/// A controller beside the one of the manifests, with a clock that is ten minutes off. It goes when this is dropped.
struct WrongClock<'a>(&'a Stage);

impl<'a> WrongClock<'a> {
    fn start(stage: &'a Stage, offset: i64) -> Result<Self> {
        let (name, namespace) = ("braid-controller-wrong-clock", ["-n", "braid-system"]);
        let get = [&namespace[..], &["get", "deployment/braid-controller"]].concat();
        let mut object = stage.sandbox().kubectl_json(&get)?;
        object["metadata"] = json!({"name": name, "namespace": "braid-system"});
        object.as_object_mut().context("no object")?.remove("status");
        object["spec"]["replicas"] = json!(1);
        object["spec"]["selector"]["matchLabels"]["clock"] = json!("wrong");
        object["spec"]["template"]["metadata"]["labels"]["clock"] = json!("wrong");
        let container = &mut object["spec"]["template"]["spec"]["containers"][0];
        container["args"] = json!([format!("--clock-offset={offset}")]);
        stage.scale_controllers(1)?;
        let this = Self(stage);
        stage.sandbox().apply(&object.to_string())?;
        let status = ["rollout", "status", &format!("deployment/{name}"), "--timeout=180s"];
        stage.sandbox().kubectl(&[&namespace[..], &status].concat())?;
        // Whoever leads goes: the one with the wrong clock takes over.
        stage
            .sandbox()
            .kubectl(&[&namespace[..], &["rollout", "restart", "deployment/braid-controller"]].concat())?;
        stage.await_braid()?;
        Ok(this)
    }
}

impl Drop for WrongClock<'_> {
    fn drop(&mut self) {
        let name = "deployment/braid-controller-wrong-clock";
        let delete = ["-n", "braid-system", "delete", name, "--ignore-not-found", "--timeout=60s"];
        if let Err(error) = self.0.sandbox().kubectl(&delete) {
            eprintln!("the controller with the wrong clock could not be removed: {error:#}");
        }
    }
}

/// Waves of pods; returns the names of those that stay.
fn waves(stage: &Stage, seed: u64, lasting: Duration) -> Result<Vec<String>> {
    let mut dice = Dice(seed | 1);
    let begin = Instant::now();
    let nodes = stage.nodes();
    let mut living: Vec<String> = Vec::new();
    for wave in 0.. {
        let last = wave + 1 >= WAVES && begin.elapsed() >= lasting;
        let plans: Vec<PodPlan> = (0..PODS_PER_WAVE)
            .map(|number| {
                let node = &nodes[dice.roll(nodes.len())];
                PodPlan::new(&format!("pod-{wave}-{number}")).on(node).small()
            })
            .collect();
        patiently("a wave", || stage.create(&plans))?;
        living.extend((0..PODS_PER_WAVE).map(|number| format!("pod-{wave}-{number}")));
        // Some of those that go have just been asked for, others have run for a while.
        let mut leaving = Vec::new();
        let stay = if last { 30 } else { 50 };
        while living.len() > stay {
            leaving.push(living.swap_remove(dice.roll(living.len())));
        }
        let names: Vec<&str> = leaving.iter().map(String::as_str).collect();
        if !names.is_empty() {
            let delete = [&["delete", "pod", "--wait=false", "--ignore-not-found"], &names[..]].concat();
            patiently("deletion of pods", || stage.kubectl(&delete).map(drop))?;
        }
        // A wave is over when the cluster has dealt with some of it, not all.
        let first = plans.len() / 4;
        let started = living.iter().rev().take(first);
        for name in started {
            patiently(&format!("pod {name}"), || stage.await_pod(name).map(drop))?;
        }
        eprintln!(
            "wave {wave}: {} pods asked for, {} deleted, {} stay",
            plans.len(),
            leaving.len(),
            living.len()
        );
        if last {
            break;
        }
    }
    Ok(living)
}

#[test]
fn nothing_is_lost_doubled_or_left_behind() {
    alone("churn", |stage| {
        stage.changes_the_installation();
        stage.provokes_error(LEAD_LOST);
        let seed = seed()?;
        eprintln!("seed {seed}; the same again: BRAID_E2E_SEED={seed}");
        // Fresh pods have no restarts behind them that the kubelet would hold against them.
        for object in ["deployment/braid-controller", "daemonset/braid-node"] {
            stage.sandbox().kubectl(&["-n", "braid-system", "rollout", "restart", object])?;
        }
        stage.await_braid()?;
        let offset = if seed.is_multiple_of(2) { 600 } else { -600 };
        let wrong_clock = WrongClock::start(stage, offset)?;
        stage.await_agreement().context("before the first wave")?;
        let before: Vec<KernelState> = states(stage)?;
        let lasting = lasting()?;
        residents(stage)?;
        let observer = Observer::new(stage)?;
        let (over, killed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (living, looks) = std::thread::scope(|scope| {
            let killer = scope.spawn(|| mayhem(stage, seed, &over, &killed));
            let watcher = scope.spawn(|| observer.watch(&over));
            let living = waves(stage, seed, lasting);
            over.store(true, Ordering::Relaxed);
            killer.join().expect("the killer does not panic")?;
            let looks = watcher.join().expect("the observer does not panic")?;
            Ok::<_, anyhow::Error>((living?, looks))
        })?;
        eprintln!("the observer looked {looks} times");
        ensure!(looks > 10, "the observer hardly saw anything");
        ensure!(killed.load(Ordering::Relaxed) > 10, "hardly anything was killed");
        patiently("Braid", || stage.await_braid())?;
        let mut addresses = Vec::new();
        for name in &living {
            addresses.extend(stage.await_pod(name)?.addresses);
        }
        for (name, kept) in &observer.kept {
            let pod = eventually(&format!("pod {name}"), PATIENCE, || stage.await_pod(name).map(Some))?;
            ensure!(pod.addresses == *kept, "{name} kept {kept:?} and has {:?}", pod.addresses);
            addresses.extend(pod.addresses);
        }
        stage.kubectl(&["rollout", "status", "deployment/pooled", "--timeout=180s"])?;
        stage.await_agreement().context("with the pods that stayed")?;
        let silent =
            stage.sandbox().node_exec(&stage.nodes()[0], &["sh", "-c", &ping_script(&addresses, "")])?;
        ensure!(silent.trim().is_empty(), "no answer from {}", silent.replace('\n', " "));

        stage.kubectl(&["delete", "statefulsets,deployments,pods", "--all", "--timeout=180s"])?;
        for address in observer.kept.values().flatten() {
            eventually(&format!("{address} to be free, as its owner is gone"), OWNER_PATIENCE, || {
                Ok(stage.instance(*address)?.is_none().then_some(()))
            })?;
        }
        stage.await_agreement().context("after the last pod")?;
        drop(wrong_clock);
        for (node, (before, after)) in stage.nodes().iter().zip(before.into_iter().zip(states(stage)?)) {
            let difference = after.difference(&before);
            ensure!(difference.is_empty(), "{node} is not as it was before:\n{difference}");
        }
        Ok(())
    });
}

/// What the nodes hold apart from the routes to other nodes' blocks, which stay for a while after the last pod.
fn states(stage: &Stage) -> Result<Vec<KernelState>> {
    let of = |node: &String| KernelState::of(stage.sandbox(), node);
    let states: Result<Vec<KernelState>> = stage.nodes().iter().map(of).collect();
    Ok(states?.into_iter().map(|state| state.without(&["route4 40000", "route6 40000", "state"])).collect())
}
