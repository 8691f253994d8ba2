//! Two controllers that both believe to lead grant no address twice, since it is the making of the object that claims.

use anyhow::{Context, Result, ensure};
use braid_e2e::daemons::Program;
use braid_e2e::eventually;
use braid_e2e::ledger::{Ledger, Scope, real_addresses};
use braid_e2e::stage::{PATIENCE, Stage, alone};
use braid_e2e::workload::PodPlan;
use serde_json::{Value, json};

const PODS: usize = 60;

/// Has both controllers lead.
fn mutiny(stage: &Stage) -> Result<()> {
    let command = json!(["/usr/bin/braid-controller", "--assume-leader"]);
    let container = "/spec/template/spec/containers/0/command";
    let patch = json!([{"op": "replace", "path": container, "value": command}]).to_string();
    let deployment = "deployment/braid-controller";
    stage.sandbox().kubectl(&["-n", "braid-system", "patch", deployment, "--type=json", "-p", &patch])?;
    stage.await_braid()?;
    eventually("two leaders", PATIENCE, || {
        let controllers = stage.daemons(Program::Controller)?;
        let mut leaders = 0.0;
        for controller in &controllers {
            leaders += stage
                .metric(Program::Controller, &controller.node, "braid_controller_leader")?
                .unwrap_or_default();
        }
        Ok((controllers.len() == 2 && leaders > 1.5).then_some(()))
    })
}

#[test]
fn no_address_twice_and_none_leaked() {
    alone("two_leaders", |stage| {
        stage.changes_the_installation();
        // Hardly more addresses than pods, so that both controllers always want the same ones.
        let wanted = ["10.67.0.0/25", "fd00:67::/121"];
        stage.overlay("contested", 67, &wanted, &Value::Null, &Value::Null)?;
        stage.await_agreement().context("what earlier tests had is still cooling down")?;
        mutiny(stage)?;
        let nodes = stage.nodes();
        let plans: Vec<PodPlan> = (0..PODS)
            .map(|number| {
                let plan = PodPlan::new(&format!("pod-{number}")).on(&nodes[number % nodes.len()]).small();
                if number % 2 == 0 { plan.in_network("contested") } else { plan }
            })
            .collect();
        let pods = stage.start(&plans)?;
        let holders = real_addresses(stage.sandbox())?;
        let doubled: Vec<_> = holders.iter().filter(|(_, holders)| holders.len() > 1).collect();
        ensure!(doubled.is_empty(), "addresses on more than one interface: {doubled:?}");
        for pod in &pods {
            ensure!(pod.addresses.len() == 2, "{} has {:?}", pod.name, pod.addresses);
            for address in &pod.addresses {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                ensure!(holders.contains_key(&format!("{address}/{bits}")), "{address} is on no interface");
            }
        }
        let quarrels = Ledger::read(stage.sandbox(), Scope::Cluster)?.quarrels();
        ensure!(quarrels.is_empty(), "{}", quarrels.join("\n"));
        stage.kubectl(&["delete", "pods", "--all", "--timeout=180s"])?;
        stage.await_agreement().map(drop)
    });
}
