//! What is not in force, not complete or away for a moment takes nothing from those who have what they need: packets
//! between pods of two nodes flow on.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::probe::Pings;
use braid_e2e::stage::{PATIENCE, Stage, alone, quiet};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan};
use serde_json::{Value, json};

/// Two pods on two nodes in a Network of their own that has IPv4 alone.
fn two_pods(stage: &Stage, network: &str) -> Result<Vec<Pod>> {
    stage.overlay(network, stage.vni(0), &["10.x.0.0/24"], &Value::Null, &Value::Null)?;
    let nodes = stage.nodes();
    let plan = |name: &str, node: &str| PodPlan::new(name).on(node).in_network(network);
    stage.start(&[plan("here", &nodes[1]), plan("there", &nodes[2])])
}

/// The tunnel of the test's Network on every node.
fn tunnel_device(stage: &Stage) -> String {
    format!("eth0.vxlan{}", stage.vni(0))
}

/// Index of a node's tunnel: a device that is made anew has another one.
fn tunnel(stage: &Stage, node: &str, device: &str) -> Result<String> {
    let line = stage.sandbox().node_exec(node, &["ip", "-o", "link", "show", "dev", device])?;
    line.split(':').next().map(str::to_owned).context("no index")
}

/// Starts pings from the first pod to the second, and demands of `act` that none of them is lost and that no tunnel is made
/// anew.
fn undisturbed(stage: &Stage, pods: &[Pod], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let device = &tunnel_device(stage);
    let before = tunnel(stage, &pods[0].node, device)?;
    let pings = Pings::start(stage.sandbox(), &pods[0], pods[1].address(FAMILIES[0])?)?;
    act()?;
    pings.progress()?;
    let after = tunnel(stage, &pods[0].node, device)?;
    ensure!(before == after, "{device} on {} was made anew", pods[0].node);
    pings.finish_without_loss().map(drop)
}

#[test]
fn a_family_that_joins_a_living_overlay() {
    quiet("in_force_family", |stage| {
        let pods = two_pods(stage, "grows")?;
        undisturbed(stage, &pods, || {
            let subnet = json!({"network": "grows", "cidr": "fd00:x::/112"});
            stage.declare(&[stage.object("Subnet", "grows-v6", &subnet)])?;
            stage.await_ready("subnet/grows-v6")?;
            // A pod with both families is the proof that every node on its way has its own address of the new one.
            let both = PodPlan::new("both").on(&pods[0].node).in_network("grows");
            let both = stage.start(&[both])?.remove(0);
            ensure!(both.addresses.len() == 2, "{both:?}");
            Ok(())
        })
    });
}

#[test]
fn a_family_with_too_few_addresses_for_the_nodes() {
    quiet("in_force_few", |stage| {
        let pods = two_pods(stage, "few")?;
        undisturbed(stage, &pods, || {
            // Two addresses for three nodes: one node waits for ever.
            let subnet = json!({"network": "few", "cidr": "fd00:x::/127"});
            stage.declare(&[stage.object("Subnet", "few-v6", &subnet)])?;
            stage.await_ready("subnet/few-v6")?;
            // Who asks for IPv4 alone gets it on every node.
            let nodes = stage.nodes();
            let old_kind = |node: &String| {
                let plan = PodPlan::new(&format!("old-{node}")).on(node).in_network("few");
                plan.annotated("braid.network/ip-family", "IPv4")
            };
            stage.start(&nodes.iter().map(old_kind).collect::<Vec<_>>()).map(drop)
        })
    });
}

/// The 16 addresses around one.
fn small_prefix_around(address: IpAddr) -> Result<String> {
    let IpAddr::V4(address) = address else { anyhow::bail!("{address} is no IPv4 address") };
    Ok(format!("{}/28", Ipv4Addr::from(u32::from(address) & !15)))
}

#[test]
fn a_loser_within_a_block_that_is_in_use() {
    alone("in_force_loser", |stage| {
        stage.changes_the_installation();
        let pods = two_pods(stage, "wins")?;
        let sandbox = stage.sandbox();
        sandbox.kubectl(&["delete", "validatingwebhookconfiguration", "braid"])?;
        undisturbed(stage, &pods, || {
            let within = small_prefix_around(pods[1].address(FAMILIES[0])?)?;
            let subnet = json!({"network": "wins", "cidr": within, "natOutgoing": true});
            let loser = stage.object("Subnet", "within", &subnet);
            // The API server forgets a webhook a moment after its configuration has gone.
            eventually("the API server to forget the webhook", PATIENCE, || {
                stage.declare(std::slice::from_ref(&loser)).map(Some)
            })?;
            let message = stage.await_reason("subnet/within", "False", "Overlap")?;
            ensure!(message.contains("wins-0"), "{message}");
            // The nodes have seen it by the time that they have attached another pod.
            let plan = |name: &str, node: &str| PodPlan::new(name).on(node).in_network("wins");
            let more = stage.start(&[plan("more-here", &pods[0].node), plan("more-there", &pods[1].node)])?;
            let targets = [pods[1].addresses.clone(), more[1].addresses.clone()].concat();
            let silent = stage.script(&more[0], &braid_e2e::probe::ping_script(&targets, ""))?;
            ensure!(silent.trim().is_empty(), "no answer from {silent}");
            Ok(())
        })
    });
}

/// What a node calls inside the cluster, and whose packets it masquerades.
fn masquerading(stage: &Stage, node: &str) -> Result<String> {
    let script = "for set in cluster4 nat-outgoing4; do nft list set inet braid $set; done";
    stage.sandbox().node_exec(node, &["sh", "-ec", script])
}

#[test]
fn a_wide_subnet_of_a_network_that_nobody_has() {
    alone("in_force_misspelt", |stage| {
        let pods = two_pods(stage, "right")?;
        let before = masquerading(stage, &pods[0].node)?;
        undisturbed(stage, &pods, || {
            let subnet = json!({"network": "rigth", "cidr": "10.0.0.0/8", "natOutgoing": true});
            stage.declare(&[stage.object("Subnet", "misspelt", &subnet)])?;
            let message = stage.await_reason("subnet/misspelt", "False", "NetworkMissing")?;
            ensure!(message.contains("rigth"), "{message}");
            let more = PodPlan::new("more").on(&pods[0].node).in_network("right");
            stage.start(&[more]).map(drop)
        })?;
        let after = masquerading(stage, &pods[0].node)?;
        ensure!(before == after, "masquerading changed from\n{before}\nto\n{after}");
        Ok(())
    });
}

/// Takes the node's IPv4 address away, waits until the agent has written the route to the pod without it, and gives it
/// back with all that goes with an address.
fn flap(stage: &Stage, pod: &Pod) -> Result<()> {
    let address = pod.address(FAMILIES[0])?;
    let script = format!(
        "set -e; \
         own=$(ip -4 -o addr show dev eth0 scope global | head -n 1 | tr -s ' ' | cut -d ' ' -f 4); \
         routes=$(ip -4 route show dev eth0 | grep -v 'proto kernel' || true); \
         give_back() {{ \
             ip addr replace \"$own\" dev eth0; \
             echo \"$routes\" | while read -r route; do \
                 [ -z \"$route\" ] || ip -4 route replace $route dev eth0; \
             done; \
         }}; \
         trap give_back EXIT; \
         ip addr del \"$own\" dev eth0; \
         tries=0; \
         until ip -4 route show table 39999 | grep -q '^{address} '; do \
             tries=$((tries + 1)); [ $tries -lt 100 ] || exit 9; sleep 0.1; \
         done"
    );
    stage.sandbox().node_exec(&pod.node, &["sh", "-c", &script]).map(drop)
}

#[test]
fn the_nodes_address_goes_and_comes_back() {
    alone("in_force_flap", |stage| {
        let pods = two_pods(stage, "stays")?;
        let before = tunnel(stage, &pods[0].node, &tunnel_device(stage))?;
        let pings = Pings::start(stage.sandbox(), &pods[0], pods[1].address(FAMILIES[0])?)?;
        flap(stage, &pods[0])?;
        pings.progress().context("after the address came back")?;
        let after = tunnel(stage, &pods[0].node, &tunnel_device(stage))?;
        ensure!(before == after, "the tunnel was made anew");
        stage.await_braid()?;
        stage.await_ready("network/stays")?;
        let late = PodPlan::new("late").on(&pods[0].node).in_network("stays");
        let late = stage.start(&[late])?.remove(0);
        let silent = stage.script(&late, &braid_e2e::probe::ping_script(&pods[1].addresses, ""))?;
        ensure!(silent.trim().is_empty(), "no answer from {silent}");
        pings.progress()
    });
}
