//! Every pod reaches every pod, node, Service and the world, in both families, with packets of any size that fits.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use braid_e2e::probe::ping_script;
use braid_e2e::stage::{PATIENCE, Stage, items, quiet, text};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan, bracketed, family_of};
use braid_e2e::{Family, eventually};
use serde_json::{Value, json};

/// Bytes of an ICMP echo request before its payload: IP header and ICMP header.
fn echo_headers(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

/// Two servers on every node.
fn servers(stage: &Stage, network: Option<&str>) -> Result<Vec<Pod>> {
    let mut plans = Vec::new();
    for node in stage.nodes() {
        for letter in ["a", "b"] {
            let plan = PodPlan::new(&format!("{node}-{letter}")).on(&node).serving().labelled("web", "yes");
            plans.push(match network {
                Some(network) => plan.in_network(network),
                None => plan,
            });
        }
    }
    stage.start(&plans)
}

fn all_addresses(pods: &[Pod]) -> Vec<IpAddr> {
    pods.iter().flat_map(|pod| pod.addresses.clone()).collect()
}

fn node_addresses(stage: &Stage, node: &str) -> Result<Vec<IpAddr>> {
    let object = stage.sandbox().kubectl_json(&["get", "node", node])?;
    let all = items(&object["status"]["addresses"]);
    let internal = all.iter().filter(|entry| entry["type"] == "InternalIP");
    internal.map(|entry| text(&entry["address"]).parse().context("a node's address")).collect()
}

/// Every pod's script runs at the same time; what it prints did not answer.
fn from_every_pod(stage: &Stage, pods: &[Pod], script: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = pods.iter().map(|pod| (pod, scope.spawn(|| stage.script(pod, script)))).collect();
        for (pod, run) in runs {
            let silent = run.join().expect("a probe does not panic")?;
            ensure!(
                silent.trim().is_empty(),
                "{} on {} gets no answer from {}",
                pod.name,
                pod.node,
                silent.replace('\n', " ")
            );
        }
        Ok(())
    })
}

fn pod_mtu(stage: &Stage, pod: &Pod) -> Result<u32> {
    stage.script(pod, "cat /sys/class/net/eth0/mtu")?.trim().parse().context("an MTU")
}

#[test]
fn all_pairs_of_pods_small_and_large() {
    quiet("reachability_pods", |stage| {
        let pods = servers(stage, None)?;
        for pod in &pods {
            ensure!(pod.addresses.len() == 2, "{} has {:?}", pod.name, pod.addresses);
            let mtu = pod_mtu(stage, pod)?;
            ensure!(mtu == 1450, "the MTU of {} is {mtu}, not that of the node's device less 50", pod.name);
        }
        from_every_pod(stage, &pods, &ping_script(&all_addresses(&pods), ""))?;
        for family in FAMILIES {
            let targets: Vec<IpAddr> =
                all_addresses(&pods).into_iter().filter(|address| family_of(*address) == family).collect();
            let largest = 1450 - echo_headers(family);
            from_every_pod(stage, &pods, &ping_script(&targets, &format!("-M do -s {largest}")))?;
            // One byte more must be refused where it starts, not lost on the way.
            let script = format!("ping -n -c 1 -W 2 -M do -s {} {} 2>&1 || true", largest + 1, targets[2]);
            let said = stage.script(&pods[0], &script)?;
            ensure!(said.contains("too long") || said.contains("too big"), "a packet above the MTU: {said}");
        }
        Ok(())
    });
}

#[test]
fn nodes_and_pods() {
    quiet("reachability_nodes", |stage| {
        let pods = servers(stage, None)?;
        let script = ping_script(&all_addresses(&pods), "");
        let mut nodes = Vec::new();
        for node in stage.nodes() {
            let silent = stage.sandbox().node_exec(&node, &["sh", "-c", &script])?;
            ensure!(silent.trim().is_empty(), "{node} gets no answer from {}", silent.replace('\n', " "));
            nodes.extend(node_addresses(stage, &node)?);
        }
        ensure!(nodes.len() == 2 * stage.nodes().len(), "{nodes:?}");
        from_every_pod(stage, &pods, &ping_script(&nodes, ""))
    });
}

#[test]
fn services_from_pods_and_nodes_and_host_ports() {
    quiet("reachability_services", |stage| {
        let pods = servers(stage, None)?;
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": stage.namespace()},
            "spec": {
                "ipFamilyPolicy": "RequireDualStack",
                "selector": {"web": "yes"},
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        });
        stage.sandbox().apply(&service.to_string())?;
        let service = stage.kubectl_json(&["get", "service", "web"])?;
        let virtual_addresses: Vec<String> = items(&service["spec"]["clusterIPs"]).iter().map(text).collect();
        ensure!(virtual_addresses.len() == 2, "{virtual_addresses:?}");
        for address in &virtual_addresses {
            let url = format!("http://{}/cgi-bin/whoami", bracketed(address.parse()?));
            let fetch = ["curl", "-sS", "-g", "-m", "5", &url];
            for pod in &pods {
                let answer = eventually(&format!("{url} from {}", pod.name), PATIENCE, || {
                    stage.sandbox().pod_exec(stage.namespace(), &pod.name, &fetch).map(Some)
                })?;
                ensure!(answer.starts_with("node"), "{url} answered {answer}");
            }
            for node in stage.nodes() {
                let answer = eventually(&format!("{url} from {node}"), PATIENCE, || {
                    stage.sandbox().node_exec(&node, &fetch).map(Some)
                })?;
                ensure!(answer.starts_with("node"), "{url} answered {answer}");
            }
        }
        let node = &stage.nodes()[1];
        stage.start(&[PodPlan::new("host-port").on(node).serving().host_port(18_080)])?;
        for address in node_addresses(stage, node)? {
            let url = format!("http://{}:18080/cgi-bin/whoami", bracketed(address));
            let answer = eventually(&url, PATIENCE, || {
                let from = &stage.nodes()[0];
                stage.sandbox().node_exec(from, &["curl", "-sS", "-g", "-m", "5", &url]).map(Some)
            })?;
            ensure!(answer.starts_with("host-port "), "{url} answered {answer}");
        }
        Ok(())
    });
}

/// A server in the world behind the router that tells every caller the address that it sees.
struct Mirror(Child);

impl Mirror {
    const PORT: u16 = 7777;

    fn start(stage: &Stage) -> Result<Self> {
        let listen = format!("TCP6-LISTEN:{},ipv6only=0,reuseaddr,fork", Self::PORT);
        let mut command: Command =
            stage.sandbox().netns_command("router", &["socat", &listen, "SYSTEM:echo \"$SOCAT_PEERADDR\""]);
        let child = command.stdin(Stdio::null()).spawn().context("cannot start the mirror")?;
        eventually("the mirror", PATIENCE, || {
            let sockets = stage.sandbox().netns_exec("router", &["ss", "-Hltn"])?;
            Ok(sockets.contains(&format!(":{}", Self::PORT)).then_some(()))
        })?;
        Ok(Self(child))
    }

    /// The address that the world sees when this pod calls.
    fn seen_from(stage: &Stage, pod: &Pod, world: IpAddr) -> Result<IpAddr> {
        let target = format!("TCP:{}:{},connect-timeout=5", bracketed(world), Self::PORT);
        let answer = eventually(&format!("{world} from {}", pod.name), PATIENCE, || {
            stage
                .sandbox()
                .pod_exec(&pod.namespace, &pod.name, &["socat", "-T", "5", "-u", &target, "-"])
                .map(Some)
        })?;
        let plain = answer.trim().trim_matches(['[', ']']).to_owned();
        let address: IpAddr = plain.parse().with_context(|| format!("not an address: {answer}"))?;
        Ok(address.to_canonical())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const WORLD: [&str; 2] = ["198.51.100.1", "2001:db8:198::1"];

#[test]
fn the_world_with_and_without_nat() {
    quiet("reachability_world", |stage| {
        let _mirror = Mirror::start(stage)?;
        let plain = ["10.x.0.0/24", "fd00:x::/112"];
        stage.overlay("bare", stage.vni(0), &plain, &Value::Null, &json!({"natOutgoing": false}))?;
        let node = &stage.nodes()[1];
        let pods = stage
            .start(&[PodPlan::new("hidden").on(node), PodPlan::new("open").on(node).in_network("bare")])?;
        let node_addresses = node_addresses(stage, node)?;
        for (world, prefix) in WORLD.iter().zip(plain.map(|prefix| stage.own(prefix))) {
            let world: IpAddr = world.parse()?;
            let family = family_of(world);
            let of_node = node_addresses.iter().find(|a| family_of(**a) == family).context("no address")?;
            let seen = Mirror::seen_from(stage, &pods[0], world)?;
            ensure!(seen == *of_node, "with natOutgoing the world sees {seen}, not the node's {of_node}");
            // The answer to a pod's own address needs a way back that the router does not have by itself.
            let way_back = ["ip", "route", "replace", &prefix, "via", &of_node.to_string()];
            stage.sandbox().netns_exec("router", &way_back)?;
            let seen = Mirror::seen_from(stage, &pods[1], world);
            stage.sandbox().netns_exec("router", &["ip", "route", "del", &prefix])?;
            let own = pods[1].address(family)?;
            ensure!(seen? == own, "without natOutgoing the world does not see the pod's own {own}");
        }
        Ok(())
    });
}
