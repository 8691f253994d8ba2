//! 200 pods come and go in waves while controllers, agents, kubelets and container runtimes are killed at random;
//! afterwards no address is lost, doubled or leaked, and the nodes hold nothing beyond what their pods need.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use braid_e2e::daemons::Program;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{Stage, staged};
use braid_e2e::workload::PodPlan;

const WAVES: usize = 5;
const PODS_PER_WAVE: usize = 40;

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

/// How often each program has been killed on each node.
type Toll = BTreeMap<(&'static str, String), usize>;

/// Kills something that the cluster needs. What is dead already cannot be killed, and that is fine.
fn kill_something(stage: &Stage, dice: &mut Dice, toll: &mut Toll) -> Result<String> {
    let nodes = stage.nodes();
    let node = &nodes[dice.roll(nodes.len())];
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

fn mayhem(stage: &Stage, seed: u64, over: &AtomicBool, killed: &AtomicUsize) -> Result<()> {
    let (mut dice, mut toll) = (Dice(seed ^ 0x9e37_79b9_7f4a_7c15), Toll::new());
    while !over.load(Ordering::Relaxed) {
        eprintln!("killed: {}", kill_something(stage, &mut dice, &mut toll)?);
        killed.fetch_add(1, Ordering::Relaxed);
        // The pause is part of the dice: what matters is that the moments differ, not when they are.
        std::thread::sleep(Duration::from_millis(2000 + 500 * u64::try_from(dice.roll(8))?));
    }
    Ok(())
}

/// Waves of pods; returns the names of those that stay.
fn waves(stage: &Stage, seed: u64) -> Result<Vec<String>> {
    let mut dice = Dice(seed | 1);
    let nodes = stage.nodes();
    let mut living: Vec<String> = Vec::new();
    for wave in 0..WAVES {
        let plans: Vec<PodPlan> = (0..PODS_PER_WAVE)
            .map(|number| {
                let node = &nodes[dice.roll(nodes.len())];
                PodPlan::new(&format!("pod-{wave}-{number}")).on(node).small()
            })
            .collect();
        stage.create(&plans)?;
        living.extend((0..PODS_PER_WAVE).map(|number| format!("pod-{wave}-{number}")));
        // Some of those that go have just been asked for, others have run for a while.
        let mut leaving = Vec::new();
        let stay = if wave + 1 == WAVES { 30 } else { 50 };
        while living.len() > stay {
            leaving.push(living.swap_remove(dice.roll(living.len())));
        }
        let names: Vec<&str> = leaving.iter().map(String::as_str).collect();
        if !names.is_empty() {
            stage.kubectl(&[&["delete", "pod", "--wait=false"], &names[..]].concat())?;
        }
        // A wave is over when the cluster has dealt with some of it, not all.
        let first = plans.len() / 4;
        let started = living.iter().rev().take(first);
        for name in started {
            stage.await_pod(name)?;
        }
        eprintln!(
            "wave {wave}: {} pods asked for, {} deleted, {} stay",
            plans.len(),
            leaving.len(),
            living.len()
        );
    }
    Ok(living)
}

#[test]
fn nothing_is_lost_doubled_or_left_behind() {
    staged("churn", |stage| {
        let seed = seed()?;
        eprintln!("seed {seed}; the same again: BRAID_E2E_SEED={seed}");
        // Fresh pods have no restarts behind them that the kubelet would hold against them.
        for object in ["deployment/braid-controller", "daemonset/braid-node"] {
            stage.sandbox().kubectl(&["-n", "braid-system", "rollout", "restart", object])?;
        }
        stage.await_braid()?;
        stage.await_agreement().context("before the first wave")?;
        let before: Vec<KernelState> = states(stage)?;
        let (over, killed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let living = std::thread::scope(|scope| {
            let killer = scope.spawn(|| mayhem(stage, seed, &over, &killed));
            let living = waves(stage, seed);
            over.store(true, Ordering::Relaxed);
            killer.join().expect("the killer does not panic")?;
            living
        })?;
        ensure!(killed.load(Ordering::Relaxed) > 10, "hardly anything was killed");
        stage.await_braid()?;
        let mut addresses = Vec::new();
        for name in &living {
            addresses.extend(stage.await_pod(name)?.addresses);
        }
        stage.await_agreement().context("with the pods that stayed")?;
        let silent =
            stage.sandbox().node_exec(&stage.nodes()[0], &["sh", "-c", &ping_script(&addresses, "")])?;
        ensure!(silent.trim().is_empty(), "no answer from {}", silent.replace('\n', " "));

        stage.kubectl(&["delete", "pods", "--all", "--timeout=180s"])?;
        stage.await_agreement().context("after the last pod")?;
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
