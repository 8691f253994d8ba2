//! Several Networks side by side: who takes part, who may use them, what a pod is told that cannot, and what people see.

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::probe::{Capture, ping_script};
use braid_e2e::stage::{PATIENCE, Stage, items, quiet, says, text};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan};
use serde_json::{Value, json};

/// Pings between pods; an empty answer is silence of nobody.
fn reach(stage: &Stage, from: &Pod, to: &Pod) -> Result<()> {
    let silent = stage.script(from, &ping_script(&to.addresses, ""))?;
    ensure!(silent.trim().is_empty(), "{} on {} gets no answer from {silent}", from.name, from.node);
    Ok(())
}

/// A pod that must be refused for this reason: an Event, a condition and the runtime's error say the same.
fn refused(stage: &Stage, plan: &PodPlan, pod: &str, reason: &str, part: &str) -> Result<String> {
    stage.create(std::slice::from_ref(plan))?;
    let told = stage.await_event(pod, reason)?;
    ensure!(told.contains(part), "the event does not say '{part}': {told}");
    let cni = stage.await_event(pod, "FailedCreatePodSandBox")?;
    ensure!(cni.contains(part), "the runtime's error does not say '{part}': {cni}");
    let object = stage.kubectl_json(&["get", "pod", pod])?;
    let conditions = items(&object["status"]["conditions"]);
    let addressed = conditions.iter().find(|condition| condition["type"] == "braid.network/Addressed");
    let addressed = addressed.context("no condition on the pod")?;
    ensure!(addressed["status"] == "False" && addressed["reason"] == reason, "{addressed}");
    Ok(told)
}

/// What the API server says to a pod that must not be let in.
fn not_let_in(stage: &Stage, plan: &PodPlan) -> Result<String> {
    match stage.create(std::slice::from_ref(plan)) {
        Ok(()) => anyhow::bail!("let in: {plan:?}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[test]
fn a_second_overlay_for_some_nodes() {
    quiet("networks_members", |stage| {
        let nodes = stage.nodes();
        let label = "e2e.braid.network/lab";
        let unlabel = format!("{label}-");
        stage.sandbox().kubectl(&["label", "node", "--all", &unlabel])?;
        let outcome = (|| -> Result<()> {
            let member = format!("{label}=yes");
            stage.sandbox().kubectl(&["label", "node", &nodes[0], &nodes[1], &member])?;
            let members = json!({"nodeSelector": {"matchLabels": {label: "yes"}}});
            stage.overlay("lab", stage.vni(0), &["10.x.0.0/24", "fd00:x::/112"], &members, &Value::Null)?;
            let tunnel = format!("eth0.vxlan{}", stage.vni(0));
            let pods = stage.start(&[
                PodPlan::new("lab-a").on(&nodes[0]).in_network("lab"),
                PodPlan::new("lab-b").on(&nodes[1]).in_network("lab"),
                PodPlan::new("plain").on(&nodes[2]),
            ])?;
            ensure!(pods[0].addresses[0].to_string().starts_with(&stage.own("10.x.0.")), "{pods:?}");
            reach(stage, &pods[0], &pods[1])?;
            let devices =
                |node: &str| Ok::<_, anyhow::Error>(KernelState::of(stage.sandbox(), node)?.devices("vxlan"));
            ensure!(devices(&nodes[0])?.contains(&tunnel));
            ensure!(!devices(&nodes[2])?.contains(&tunnel), "a tunnel on a node outside");

            let outsider = PodPlan::new("outsider").on(&nodes[2]).in_network("lab");
            let told = refused(stage, &outsider, "outsider", "NotMember", &nodes[2])?;
            ensure!(told.contains("lab") && told.contains("nodeSelector"), "{told}");
            // What was missing is done: the pod starts without being touched.
            stage.sandbox().kubectl(&["label", "node", &nodes[2], &member])?;
            let joined = stage.await_pod("outsider")?;
            reach(stage, &joined, &pods[1])?;
            let network = eventually("three members", PATIENCE, || {
                let network = stage.sandbox().kubectl_json(&["get", "network", "lab"])?;
                Ok((network["status"]["nodes"]["ready"] == 3).then_some(network))
            })?;
            ensure!(network["status"]["nodes"]["members"] == 3, "{}", network["status"]);
            let narrower =
                json!({"spec": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": nodes[0]}}}});
            let patch = ["patch", "network", "lab", "--type=merge", "-p", &narrower.to_string()];
            says(&stage.refused(&patch)?, &["spec.nodeSelector", "lab-b", "outsider", "cut off"])?;
            // Overlays are routed, and no policy keeps them apart.
            reach(stage, &pods[0], &pods[2])
        })();
        stage.sandbox().kubectl(&["delete", "namespace", stage.namespace(), "--timeout=180s"])?;
        stage.sandbox().kubectl(&["label", "node", "--all", &unlabel])?;
        outcome?;
        let tunnel = format!("eth0.vxlan{}", stage.vni(0));
        eventually("the tunnel to be gone with the membership", PATIENCE, || {
            let devices = KernelState::of(stage.sandbox(), &nodes[0])?.devices("vxlan");
            Ok((!devices.contains(&tunnel)).then_some(()))
        })
    });
}

#[test]
fn cross_subnet_encapsulates_between_racks_only() {
    quiet("networks_cross_subnet", |stage| {
        let nodes = stage.nodes();
        let zone = |node: &str| -> Result<String> {
            let object = stage.sandbox().kubectl_json(&["get", "node", node])?;
            Ok(text(&object["metadata"]["labels"]["topology.kubernetes.io/zone"]))
        };
        let home = zone(&nodes[0])?;
        let mut same = None;
        let mut far = None;
        for node in &nodes[1..] {
            if zone(node)? == home { same = Some(node) } else { far = Some(node) }
        }
        let same = same.context("no other node in the first rack")?;
        let far = far.context("all nodes are in one rack: this test needs two")?;
        // A port of its own tells this Network's tunnels from those of the others.
        let sparing = json!({"vxlan": {"encapsulation": "CrossSubnet", "port": 8473}});
        stage.overlay("sparing", stage.vni(0), &["10.x.0.0/24", "fd00:x::/112"], &sparing, &Value::Null)?;
        let plan = |name: &str, node: &str| PodPlan::new(name).on(node).in_network("sparing");
        let pods = stage.start(&[plan("home", &nodes[0]), plan("same", same), plan("far", far)])?;
        for to in &pods[1..] {
            reach(stage, &pods[0], to)?;
        }
        // Others ping beside this test, more than a capture can follow.
        let filter = stage.own("udp port 8473 or (icmp and net 10.x.0.0/24)");
        let v4 = FAMILIES[0];
        let ping = |to: &Pod| {
            let to = to.address(v4)?.to_string();
            stage.script(&pods[0], &format!("ping -n -q -c 3 -i 0.2 -W 2 {to}"))
        };
        let wire = Capture::start(stage.sandbox(), &nodes[0], "eth0", &filter)?;
        ping(&pods[1])?;
        let bare = format!("{} > {}", pods[0].address(v4)?, pods[1].address(v4)?);
        wire.await_packet(&bare).context("packets in the same rack are not bare")?;
        let packets = wire.packets()?.join("\n");
        ensure!(!packets.contains("8473"), "a tunnel in the same rack:\n{packets}");
        ping(&pods[2])?;
        wire.await_packet(".8473: ").context("no tunnel to the other rack")?;
        let far_bare = format!("{} > {}: ICMP", pods[0].address(v4)?, pods[2].address(v4)?);
        let bare: Vec<String> = wire
            .packets()?
            .into_iter()
            .filter(|line| line.contains(&far_bare) && line.starts_with(|first: char| first.is_ascii_digit()))
            .collect();
        ensure!(bare.is_empty(), "bare packets to the other rack: {bare:?}");
        Ok(())
    });
}

#[test]
fn a_type_that_cannot_be_realised_yet() {
    quiet("networks_unsupported", |stage| {
        stage.declare(&[
            stage.object(
                "Network",
                "cubicle",
                &json!({"type": "MACVLAN", "macvlan": {"interfaces": ["eth0"], "id": 20}}),
            ),
            stage.object("Network", "tagged", &json!({"type": "VLAN", "vlan": {"id": 20}})),
            stage.object(
                "Subnet",
                "cubicle-0",
                &json!({"network": "cubicle", "cidr": "10.x.0.0/24", "gateway": "10.x.0.1"}),
            ),
        ])?;
        let message = stage.await_reason("network/cubicle", "False", "NotSupported")?;
        ensure!(message.contains("MACVLAN"), "{message}");
        let message = stage.await_reason("network/tagged", "False", "NotSupported")?;
        ensure!(message.contains("id 20") && message.contains("untagged"), "{message}");
        let plan = PodPlan::new("clerk").on(&stage.nodes()[0]).in_network("cubicle");
        let early = not_let_in(stage, &plan)?;
        says(&early, &["cubicle", "MACVLAN"])?;
        let late = stage.without_pod_webhook(|| refused(stage, &plan, "clerk", "NotSupported", "MACVLAN"))?;
        says(&early, &[&late])
    });
}

#[test]
fn namespaces_are_let_in_and_have_defaults() {
    quiet("networks_namespaces", |stage| {
        let node = stage.nodes()[1].clone();
        let guests = json!({"allowedNamespaces": {"matchLabels": {"guest": "yes"}}});
        stage.overlay("club", stage.vni(0), &["10.x.0.0/24", "fd00:x::/112"], &guests, &Value::Null)?;
        let stranger = PodPlan::new("stranger").on(&node).in_network("club");
        says(&not_let_in(stage, &stranger)?, &["club", "allowedNamespaces"])?;
        // Where nobody looked at it on its way in, it is refused when it is bound, and helped when it is let in.
        stage.without_pod_webhook(|| {
            refused(stage, &stranger, "stranger", "NamespaceNotAllowed", "allowedNamespaces")
        })?;
        stage.kubectl(&["label", "namespace", stage.namespace(), "guest=yes"])?;
        let guest = stage.await_pod("stranger")?;
        ensure!(guest.addresses[0].to_string().starts_with(&stage.own("10.x.0.")), "{guest:?}");
        let addressed = stage.kubectl_json(&["get", "pod", "stranger"])?;
        let refusal = items(&addressed["status"]["conditions"]).into_iter().find(|condition| {
            condition["type"] == "braid.network/Addressed" && condition["status"] == "False"
        });
        ensure!(refusal.is_none(), "the pod runs and still says that it was refused: {refusal:?}");

        stage.kubectl(&["annotate", "namespace", stage.namespace(), "braid.network/network=club"])?;
        eventually("the webhook to know what the namespace says", PATIENCE, || {
            let (pod, _) = stage.rehearse(&[])?;
            Ok((pod["metadata"]["annotations"]["braid.network/network"] == "club").then_some(()))
        })?;
        let pods = stage.start(&[
            PodPlan::new("by-namespace").on(&node),
            PodPlan::new("by-pod").on(&node).in_network("overlay"),
            PodPlan::new("one-family").on(&node).annotated("braid.network/ip-family", "IPv6"),
            PodPlan::new("fixed").on(&node).annotated("braid.network/ips", "10.x.0.200"),
        ])?;
        ensure!(
            pods[0].addresses.iter().any(|a| a.to_string().starts_with(&stage.own("10.x.0."))),
            "{:?}",
            pods[0]
        );
        ensure!(pods[1].addresses.iter().any(|a| a.to_string().starts_with("10.244.")), "{:?}", pods[1]);
        ensure!(pods[2].addresses.len() == 1 && pods[2].addresses[0].is_ipv6(), "{:?}", pods[2]);
        ensure!(pods[3].addresses.iter().any(|a| *a == stage.ip("10.x.0.200")), "{:?}", pods[3]);
        for pod in &pods {
            reach(stage, &pods[0], pod)?;
        }
        let elsewhere =
            PodPlan::new("elsewhere").on(&stage.nodes()[0]).annotated("braid.network/ips", "10.x.0.200");
        refused(stage, &elsewhere, "elsewhere", "AddressTaken", &stage.own("10.x.0.200")).map(drop)
    });
}

#[test]
fn what_people_see() {
    quiet("networks_columns", |stage| {
        let node = stage.nodes()[1].clone();
        let pod = stage.start(&[PodPlan::new("seen").on(&node)])?.remove(0);
        let sandbox = stage.sandbox();
        let see = |kind: &str| sandbox.kubectl(&["get", kind, "-o", "wide"]);
        for (kind, columns) in [
            ("net", &["NAME", "TYPE", "CLASS", "SUBNETS", "NODES", "V4", "V6", "READY", "AGE"][..]),
            ("subnet", &["NAME", "NETWORK", "CIDR", "USED", "BLOCKS", "READY", "AGE"]),
            ("ipi", &["NAME", "NETWORK", "NAMESPACE", "POD", "NODE", "PHASE", "SUBNET", "MAC", "AGE"]),
        ] {
            let table = see(kind)?;
            let header = table.lines().next().unwrap_or_default();
            let names: Vec<&str> = header.split_whitespace().collect();
            for column in columns {
                ensure!(
                    names.contains(column),
                    "kubectl get {kind} -o wide has no column {column}: {header}"
                );
            }
        }
        let row = see("ipi")?.lines().find(|line| line.contains(" seen ")).map(str::to_owned);
        let row = row.context("the pod's address is not in the table")?;
        ensure!(row.contains(&node) && row.contains("Bound") && row.contains(stage.namespace()), "{row}");
        let row = see("net")?.lines().find(|line| line.starts_with("overlay ")).map(str::to_owned);
        let row = row.context("the default Network is not in the table")?;
        ensure!(row.contains("VXLAN") && row.contains("Overlay") && row.contains("True"), "{row}");

        let manual = sandbox.kubectl(&["explain", "net.spec.vxlan"])?;
        for word in ["vni", "port", "encapsulation", "interfaces", "CrossSubnet"] {
            ensure!(manual.contains(word), "kubectl explain does not tell of {word}:\n{manual}");
        }
        let everything = sandbox.kubectl(&["get", "braid", "-A"])?;
        for word in
            ["network.braid.network/overlay", "subnet.braid.network/overlay-v4", "ipinstance.braid.network/"]
        {
            ensure!(everything.contains(word), "kubectl get braid -A lacks {word}");
        }

        let node_network = sandbox.kubectl_json(&["get", "nodenetwork", &node])?;
        let networks = items(&node_network["status"]["networks"]);
        let overlay = networks.iter().find(|network| network["name"] == "overlay").context("no overlay")?;
        ensure!(overlay["ready"] == true && overlay["mtu"] == 1450, "{overlay}");
        ensure!(overlay["device"] == "eth0.vxlan4" && overlay["parent"] == "eth0", "{overlay}");
        let link = sandbox.node_exec(&node, &["cat", "/sys/class/net/eth0.vxlan4/address"])?;
        ensure!(overlay["vtep"]["mac"] == link.trim(), "{overlay} is not {link}");
        let condition = sandbox.kubectl_json(&["get", "node", &node])?;
        let unavailable = items(&condition["status"]["conditions"])
            .into_iter()
            .find(|condition| condition["type"] == "NetworkUnavailable")
            .context("no condition NetworkUnavailable on the node")?;
        ensure!(unavailable["status"] == "False", "{unavailable}");

        // Usage is exact: one more pod is one more address of each family. In a Network of the test's own, as others take
        // addresses of the default one at the same time.
        stage.overlay(
            "counted",
            stage.vni(0),
            &["10.x.0.0/24", "fd00:x::/112"],
            &Value::Null,
            &Value::Null,
        )?;
        let of_nodes = stage.nodes().len();
        let used = |subnet: &str| {
            Ok::<_, anyhow::Error>(
                sandbox.kubectl_json(&["get", "subnet", subnet])?["status"]["used"].as_i64(),
            )
        };
        let counts = |what: &str, wanted: usize| {
            eventually(what, PATIENCE, || {
                let now = [used("counted-0")?, used("counted-1")?];
                Ok(now.iter().all(|used| *used == i64::try_from(wanted).ok()).then_some(()))
            })
        };
        counts("the nodes' own addresses", of_nodes)?;
        stage.start(&[PodPlan::new("another").on(&node).in_network("counted")])?;
        counts("the count of used addresses", of_nodes + 1)?;
        ensure!(pod.addresses.len() == 2);
        Ok(())
    });
}
