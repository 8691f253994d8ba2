//! An untagged VLAN: pods with addresses of the physical network itself, found there by neighbours and router, with fixed,
//! pooled and kept addresses proven on packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use braid_e2e::eventually;
use braid_e2e::kernel_state::KernelState;
use braid_e2e::probe::{Pings, ping_script};
use braid_e2e::stage::{PATIENCE, Stage, alone, items, quiet, text};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan, bracketed, family_of, template};
use serde_json::{Value, json};

/// How long a repair may take. Lost proxies are looked for, as the kernel does not tell.
const REPAIR: Duration = Duration::from_secs(10);

/// The physical network of one rack with the Network `campus` on it, whose router is the fabric's.
struct Office<'a> {
    stage: &'a Stage,
    /// The router's device in the rack.
    device: String,
    /// The nodes of the rack.
    members: Vec<String>,
    outsider: String,
}

/// The router's addresses in the prefixes of the Network.
const ROUTER: [&str; 2] = ["10.x.0.1/24", "fd00:x::1/64"];

impl<'a> Office<'a> {
    fn open(stage: &'a Stage) -> Result<Self> {
        let zone = |node: &str| -> Result<String> {
            let object = stage.sandbox().kubectl_json(&["get", "node", node])?;
            Ok(text(&object["metadata"]["labels"]["topology.kubernetes.io/zone"]))
        };
        let nodes = stage.nodes();
        let rack = zone(&nodes[0])?;
        let (mut members, mut outsider) = (Vec::new(), None);
        for node in &nodes {
            if zone(node)? == rack { members.push(node.clone()) } else { outsider = Some(node.clone()) }
        }
        ensure!(members.len() == 2, "this test needs two nodes in the first rack: {members:?}");
        let outsider = outsider.context("all nodes are in one rack")?;
        let office = Self { stage, device: rack.clone(), members, outsider };
        office.leave();
        for address in ROUTER {
            office.router(&["ip", "addr", "add", &stage.own(address), "dev", &office.device, "nodad"])?;
        }
        // The router does not ask again by itself: what it knows of an address is what it was told.
        office.asks_again_after(600)?;
        let subnet = |cidr: &str, gateway: &str, range: &str| {
            let ranges = [range];
            json!({"network": "campus", "cidr": cidr, "gateway": gateway, "ranges": ranges})
        };
        let mut tiny = subnet("10.x.1.0/29", "10.x.1.1", "10.x.1.2-10.x.1.3");
        tiny["private"] = json!(true);
        let members = json!({"matchLabels": {"topology.kubernetes.io/zone": rack}});
        stage.declare(&[
            stage.object(
                "Network",
                "campus",
                &json!({"type": "VLAN", "vlan": {"id": 0}, "nodeSelector": members}),
            ),
            stage.object("Subnet", "campus-v4", &subnet("10.x.0.0/24", "10.x.0.1", "10.x.0.10-10.x.0.39")),
            stage.object("Subnet", "campus-v6", &subnet("fd00:x::/64", "fd00:x::1", "fd00:x::10-fd00:x::39")),
            stage.object("Subnet", "campus-tiny", &tiny),
        ])?;
        for object in ["network/campus", "subnet/campus-v4", "subnet/campus-v6", "subnet/campus-tiny"] {
            stage.await_ready(object)?;
        }
        Ok(office)
    }

    fn router(&self, argv: &[&str]) -> Result<String> {
        self.stage.sandbox().netns_exec("router", argv)
    }

    /// How many seconds the router believes what it knows of a neighbour that may be out of date.
    fn asks_again_after(&self, seconds: u32) -> Result<()> {
        ["ipv4", "ipv6"].iter().try_for_each(|family| {
            let patience = format!("net.{family}.neigh.{}.delay_first_probe_time={seconds}", self.device);
            self.router(&["sysctl", "-qw", &patience]).map(drop)
        })
    }

    /// The router forgets what it has in the Network.
    fn leave(&self) {
        let _ = self.asks_again_after(5);
        for address in ROUTER {
            let _ = self.router(&["ip", "addr", "del", &self.stage.own(address), "dev", &self.device]);
        }
    }

    /// The hardware address under which the router knows an address.
    fn known_to_router(&self, address: IpAddr) -> Result<String> {
        let line = self.router(&["ip", "neigh", "show", &address.to_string(), "dev", &self.device])?;
        let mac = line.split(" lladdr ").nth(1).and_then(|rest| rest.split_whitespace().next());
        Ok(mac.unwrap_or_default().to_owned())
    }

    fn mac_of_node(&self, node: &str) -> Result<String> {
        let read = ["cat", "/sys/class/net/eth0/address"];
        Ok(self.stage.sandbox().node_exec(node, &read)?.trim().to_owned())
    }

    /// Everything of the Network in a node's kernel.
    fn kernel(&self, node: &str) -> Result<BTreeSet<String>> {
        let state = KernelState::of(self.stage.sandbox(), node)?;
        let rules = ["rule4", "rule6"].iter().flat_map(|noun| state.lines(noun));
        let selecting = rules.filter(|line| !line.contains("from all"));
        let nouns = ["route4 of subnets", "route6 of subnets", "proxy4", "proxy6"];
        Ok(selecting.chain(nouns.iter().flat_map(|noun| state.lines(noun))).collect())
    }
}

impl Drop for Office<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A program in the router's namespace, ended when this is dropped.
struct Routers(Child, tempfile::NamedTempFile);

impl Routers {
    fn start(stage: &Stage, argv: &[&str]) -> Result<Self> {
        let out = tempfile::NamedTempFile::new()?;
        let mut command = stage.sandbox().netns_command("router", argv);
        let child = command.stdin(Stdio::null()).stdout(out.reopen()?).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {argv:?}"))?, out))
    }

    fn printed(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.1.path())?)
    }
}

impl Drop for Routers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers of pings that were answered, in what ping printed.
fn answered(printed: &str) -> BTreeSet<u64> {
    let answers = printed.lines().filter(|line| line.contains(" bytes from "));
    answers.filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()).collect()
}

fn flat(name: &str, node: &str) -> PodPlan {
    PodPlan::new(name).on(node).in_network("campus")
}

/// Pings of both families to all addresses, small and of a whole frame.
fn reach(stage: &Stage, from: &Pod, addresses: &[IpAddr]) -> Result<()> {
    for family in FAMILIES {
        let targets: Vec<IpAddr> = addresses.iter().copied().filter(|a| family_of(*a) == family).collect();
        let largest = if targets.iter().any(IpAddr::is_ipv4) { 1472 } else { 1452 };
        for arguments in [String::new(), format!("-M do -s {largest}")] {
            let silent = stage.script(from, &ping_script(&targets, &arguments))?;
            ensure!(
                silent.trim().is_empty(),
                "{} on {} gets no answer ({arguments}) from {silent}",
                from.name,
                from.node
            );
        }
    }
    Ok(())
}

/// The address that a listener of the router sees when a pod calls `to`.
fn seen_from(stage: &Stage, pod: &Pod, to: IpAddr) -> Result<IpAddr> {
    let target = format!("TCP:{}:7788,connect-timeout=5", bracketed(to));
    let answer = eventually(&format!("{to} from {}", pod.name), PATIENCE, || {
        let call = ["socat", "-T", "5", "-u", &target, "-"];
        stage.sandbox().pod_exec(&pod.namespace, &pod.name, &call).map(Some)
    })?;
    let plain = answer.trim().trim_matches(['[', ']']).to_owned();
    let address: IpAddr = plain.parse().with_context(|| format!("not an address: {answer}"))?;
    Ok(address.to_canonical())
}

fn services(stage: &Stage, clients: &[&Pod]) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "flat", "namespace": stage.namespace()},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack", "selector": {"web": "yes"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    });
    stage.sandbox().apply(&service.to_string())?;
    let service = stage.kubectl_json(&["get", "service", "flat"])?;
    let addresses: Vec<String> = items(&service["spec"]["clusterIPs"]).iter().map(text).collect();
    ensure!(addresses.len() == 2, "{addresses:?}");
    for address in &addresses {
        let url = format!("http://{}/cgi-bin/whoami", bracketed(address.parse()?));
        let fetch = ["curl", "-sS", "-g", "-m", "5", &url];
        for client in clients {
            // Both backends, one of them on the other node.
            let mut missing = BTreeSet::from(["server-0", "server-1"]);
            eventually(&format!("both backends of {url} from {}", client.name), PATIENCE, || {
                let answer = stage.sandbox().pod_exec(stage.namespace(), &client.name, &fetch)?;
                missing.retain(|name| !answer.starts_with(name));
                Ok(missing.is_empty().then_some(()))
            })?;
        }
    }
    Ok(())
}

fn comes_back(office: &Office<'_>, node: &str) -> Result<()> {
    let wanted = office.kernel(node)?;
    let table = |family: &str| -> Result<String> {
        let subnet = office.stage.sandbox().kubectl_json(&["get", "subnet", &format!("campus-{family}")])?;
        Ok(subnet["status"]["routingTable"].to_string())
    };
    let (v4, v6) = (table("v4")?, table("v6")?);
    ensure!(v4 != v6, "two Subnets on table {v4}");
    for prefix in ["10.x.0.0/24", "fd00:x::/64"].map(|prefix| office.stage.own(prefix)) {
        ensure!(wanted.iter().any(|line| line.starts_with(&format!("3230: from {prefix} "))), "{wanted:#?}");
    }
    let proxy = |family: &str| {
        let mut proxies =
            wanted.iter().filter(|line| line.contains(" proxy ") && line.contains(':') == (family == "6"));
        proxies.next().and_then(|line| line.split(' ').next()).map(str::to_owned).context("no proxies")
    };
    let (proxy4, proxy6) = (proxy("4")?, proxy("6")?);
    for mischief in [
        format!("ip rule del pref 3230 from 10.x.0.0/24 lookup {v4}"),
        format!("ip -6 rule del pref 3230 from fd00:x::/64 lookup {v6}"),
        format!("ip rule add pref 3230 from 203.0.113.0/24 lookup {v4} protocol 176"),
        format!("ip route flush table {v4}"),
        format!("ip -6 route flush table {v6}"),
        format!("ip neigh del proxy {proxy4} dev eth0"),
        format!("ip -6 neigh del proxy {proxy6} dev eth0"),
    ] {
        let mischief = office.stage.own(&mischief);
        office.stage.sandbox().node_exec(node, &["sh", "-ec", &mischief])?;
        let begin = Instant::now();
        eventually(&format!("repair of: {mischief}"), REPAIR, || {
            Ok((office.kernel(node)? == wanted).then_some(()))
        })?;
        eprintln!("{:5} ms  {mischief}", begin.elapsed().as_millis());
    }
    Ok(())
}

#[test]
fn pods_are_on_the_physical_network() {
    alone("flat_reach", |stage| {
        let office = Office::open(stage)?;
        let [here, there] = [&office.members[0], &office.members[1]];
        let server = |name: &str, node: &str| flat(name, node).serving().labelled("web", "yes");
        let pods = stage.start(&[
            server("server-0", here),
            server("server-1", there),
            flat("client", here),
            PodPlan::new("overlaid").on(there),
        ])?;
        let (flat_pods, overlaid) = (&pods[..3], &pods[3]);
        ensure!(flat_pods[0].addresses[0].to_string().starts_with(&stage.own("10.x.0.")), "{flat_pods:?}");
        let mtu = stage.script(&pods[0], "cat /sys/class/net/eth0/mtu")?;
        ensure!(mtu.trim() == "1500", "the MTU is {mtu}, not that of the node's device");
        let mut everybody: Vec<IpAddr> = flat_pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        for node in [here, there, &office.outsider] {
            let object = stage.sandbox().kubectl_json(&["get", "node", node])?;
            let internal = items(&object["status"]["addresses"]);
            let internal = internal.iter().filter(|entry| entry["type"] == "InternalIP");
            everybody.extend(internal.filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok()));
        }
        everybody.extend(ROUTER.iter().filter_map(|a| a.split('/').next()).map(|a| stage.ip(a)));
        for pod in flat_pods {
            reach(stage, pod, &everybody)?;
        }
        let addresses: Vec<IpAddr> = flat_pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
        let script = ping_script(&addresses, "");
        for node in stage.nodes() {
            let silent = stage.sandbox().node_exec(&node, &["sh", "-c", &script])?;
            ensure!(silent.trim().is_empty(), "{node} gets no answer from {silent}");
        }
        let silent = office.router(&["sh", "-c", &script])?;
        ensure!(silent.trim().is_empty(), "the router gets no answer from {silent}");

        // In one direction through the tunnel, in the other as the node; the answers by the router.
        reach_small(stage, &flat_pods[0], &overlaid.addresses)?;
        reach_small(stage, overlaid, &flat_pods[0].addresses)?;

        let _listener = Routers::start(
            stage,
            &["socat", "TCP6-LISTEN:7788,ipv6only=0,reuseaddr,fork", "SYSTEM:echo \"$SOCAT_PEERADDR\""],
        )?;
        for (router, world) in [("10.x.0.1", "198.51.100.1"), ("fd00:x::1", "2001:db8:198::1")] {
            for to in [router, world].map(|to| stage.ip(to)) {
                let own = pods[2].address(family_of(to))?;
                let seen = seen_from(stage, &pods[2], to)?;
                ensure!(seen == own, "{to} sees {seen} and not the pod's own {own}");
            }
        }
        services(stage, &[&pods[2], overlaid])?;

        let node = stage.sandbox().kubectl_json(&["get", "nodenetwork", here])?;
        let networks = items(&node["status"]["networks"]);
        let entry = networks.iter().find(|network| network["name"] == "campus").context("no entry")?;
        ensure!(entry["ready"] == true && entry["parent"] == "eth0" && entry["mtu"] == 1500, "{entry}");
        eventually("the count of ready nodes", PATIENCE, || {
            let network = stage.sandbox().kubectl_json(&["get", "network", "campus"])?;
            let status = &network["status"];
            ensure!(status["class"] == "Underlay" && status["nodes"]["members"] == 2, "{status}");
            Ok((status["nodes"]["ready"] == 2).then_some(()))
        })?;
        let blocks =
            stage.sandbox().kubectl_json(&["get", "ipblocks", "-l", "braid.network/subnet=campus-v4"])?;
        ensure!(items(&blocks["items"]).is_empty(), "{blocks}");

        stage.create(&[flat("outside", &office.outsider)])?;
        let told = stage.await_event("outside", "NotMember")?;
        ensure!(told.contains("campus"), "{told}");
        stage.delete_pods(&["outside"])?;

        comes_back(&office, here)?;
        let mut flows = Vec::new();
        for family in FAMILIES {
            flows.push(Pings::start(stage.sandbox(), &pods[2], pods[1].address(family)?)?);
        }
        std::thread::scope(|scope| -> Result<()> {
            let both = [here, there].map(|node| scope.spawn(|| stage.replace_agent(node)));
            both.into_iter().try_for_each(|one| one.join().expect("a helper does not panic"))
        })?;
        for flow in flows {
            eprintln!("{} packets beside killed agents, none lost", flow.finish_without_loss()?.answered);
        }

        stage.clear()?;
        for node in [here, there] {
            eventually(&format!("nothing of the Network on {node}"), PATIENCE, || {
                Ok(office.kernel(node)?.is_empty().then_some(()))
            })
            .with_context(|| format!("{:#?}", office.kernel(node)))?;
        }
        Ok(())
    });
}

fn reach_small(stage: &Stage, from: &Pod, addresses: &[IpAddr]) -> Result<()> {
    let silent = stage.script(from, &ping_script(addresses, ""))?;
    ensure!(silent.trim().is_empty(), "{} on {} gets no answer from {silent}", from.name, from.node);
    Ok(())
}

/// A Deployment or StatefulSet of one pod.
fn workload(stage: &Stage, kind: &str, name: &str, annotations: &Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": stage.namespace()},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template(name, &stage.owned(annotations)),
        },
    });
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = json!(name);
    }
    stage.sandbox().apply(&object.to_string())?;
    let object = format!("{}/{name}", kind.to_lowercase());
    stage.kubectl(&["rollout", "status", &object, "--timeout=180s"]).map(drop)
}

/// A StatefulSet's pod goes to the other node with its addresses while the router pings it.
fn moves(office: &Office<'_>) -> Result<()> {
    let stage = office.stage;
    workload(stage, "StatefulSet", "db", &json!({"braid.network/network": "campus"}))?;
    let before = stage.await_pod("db-0")?;
    let mut flows = Vec::new();
    for address in &before.addresses {
        let argv = ["ping", "-n", "-i", "0.05", &address.to_string()];
        let flow = Routers::start(stage, &argv)?;
        eventually("answers from the pod", PATIENCE, || {
            Ok((answered(&flow.printed()?).len() > 2).then_some(()))
        })?;
        ensure!(office.known_to_router(*address)? == office.mac_of_node(&before.node)?, "{address}");
        flows.push(flow);
    }
    let moved = stage.while_cordoned(&before.node, || {
        stage.kubectl(&["delete", "pod", "db-0", "--wait=false"])?;
        eventually("successor of db-0", PATIENCE, || {
            let pod = stage.await_pod("db-0")?;
            Ok((pod.uid != before.uid).then_some(pod))
        })
    })?;
    ensure!(moved.addresses == before.addresses && moved.node != before.node, "{before:?} became {moved:?}");
    for (address, flow) in moved.addresses.iter().zip(&flows) {
        // The router, which asks nobody by itself, knows it by the announcement.
        let (known, wanted) = (office.known_to_router(*address)?, office.mac_of_node(&moved.node)?);
        ensure!(known == wanted, "the router looks for {address} at {known}, it is at {wanted}");
        let last = answered(&flow.printed()?).last().copied().unwrap_or_default();
        eventually("answers from the new place", PATIENCE, || {
            Ok((answered(&flow.printed()?).last().is_some_and(|n| *n > last + 2)).then_some(()))
        })?;
        let numbers = answered(&flow.printed()?);
        let span = numbers.last().zip(numbers.first()).map_or(0, |(last, first)| last - first + 1);
        let lost = span.saturating_sub(numbers.len() as u64);
        // What comes meanwhile waits at the old node for an answer to its question, and follows.
        eprintln!("{address} moved: of {span} pings, one each 50 ms, {lost} were lost");
    }
    stage.kubectl(&["delete", "statefulset", "db", "--timeout=120s"]).map(drop)
}

/// Pods of a Deployment share a pool through a rolling update, each found at its own node.
fn pool(office: &Office<'_>) -> Result<()> {
    let stage = office.stage;
    let pool = json!({"braid.network/network": "campus", "braid.network/ips": "10.x.0.26-10.x.0.27"});
    workload(stage, "Deployment", "pool", &pool)?;
    let only = || -> Result<Option<Pod>> {
        let found = stage.kubectl_json(&["get", "pods", "-l", "app=pool"])?;
        let pods: Vec<Pod> = items(&found["items"]).iter().map(Pod::read).collect();
        Ok(pods.first().filter(|_| pods.len() == 1).cloned())
    };
    let before = only()?.context("one pod")?;
    stage.kubectl(&["rollout", "restart", "deployment/pool"])?;
    stage.kubectl(&["rollout", "status", "deployment/pool", "--timeout=180s"])?;
    let after =
        eventually("the old pod to be gone", PATIENCE, || Ok(only()?.filter(|pod| pod.uid != before.uid)))?;
    let pool = [stage.ip("10.x.0.26"), stage.ip("10.x.0.27")];
    for pod in [&before, &after] {
        ensure!(pool.contains(&pod.addresses[0]), "{pod:?} is not of the pool");
    }
    let silent = office.router(&["sh", "-c", &ping_script(&after.addresses, "")])?;
    ensure!(silent.trim().is_empty(), "the router gets no answer from {silent}");
    let known = office.known_to_router(after.addresses[0])?;
    ensure!(known == office.mac_of_node(&after.node)?, "{after:?} is looked for at {known}");
    stage.kubectl(&["delete", "deployment", "pool", "--timeout=120s"]).map(drop)
}

/// Pods in the prefix that the nodes are in get none of the nodes' own addresses.
fn beside_the_nodes(office: &Office<'_>) -> Result<()> {
    let stage = office.stage;
    let mut of_nodes = Vec::new();
    for node in &office.members {
        let object = stage.sandbox().kubectl_json(&["get", "node", node])?;
        let addresses = items(&object["status"]["addresses"]);
        of_nodes.extend(addresses.iter().filter_map(|a| a["address"].as_str()?.parse::<Ipv4Addr>().ok()));
    }
    of_nodes.sort_unstable();
    ensure!(of_nodes.len() == 2, "{of_nodes:?}");
    let route = stage.sandbox().node_exec(&office.members[0], &["ip", "-4", "route", "show", "default"])?;
    let gateway =
        route.split(" via ").nth(1).and_then(|rest| rest.split(' ').next()).context("no default route")?;
    let last = Ipv4Addr::from_bits(of_nodes[1].to_bits() + 2);
    let size = last.to_bits() - of_nodes[0].to_bits() + 1;
    let prefix = Ipv4Addr::from_bits(last.to_bits() & 0xffff_ff00);
    stage.declare(&[stage.object(
        "Subnet",
        "campus-beside",
        &json!({
            "network": "campus", "cidr": format!("{prefix}/24"), "gateway": gateway,
            "ranges": [format!("{}-{last}", of_nodes[0])], "private": true,
        }),
    )])?;
    stage.await_ready("subnet/campus-beside")?;
    let subnet = stage.sandbox().kubectl_json(&["get", "subnet", "campus-beside"])?;
    ensure!(
        subnet["status"]["total"] == size - 2,
        "{size} addresses, of which nodes have 2: {}",
        subnet["status"]
    );
    let beside = |name: &str, node: &str| flat(name, node).annotated("braid.network/subnet", "campus-beside");
    let pods: Vec<PodPlan> = (0..2).map(|n| beside(&format!("beside-{n}"), &office.members[n])).collect();
    let pods = stage.start(&pods)?;
    let nodes: Vec<IpAddr> = of_nodes.iter().copied().map(IpAddr::from).collect();
    ensure!(pods.iter().all(|pod| !nodes.contains(&pod.addresses[0])), "{pods:?}, nodes have {nodes:?}");
    for pod in &pods {
        reach_small(stage, pod, &nodes)?;
        reach_small(stage, pod, &[pods[0].addresses[0], pods[1].addresses[0], gateway.parse()?])?;
    }
    let usurper = beside("usurper", &office.members[0]).annotated("braid.network/ips", &nodes[1].to_string());
    stage.create(&[usurper])?;
    let told = stage.await_event("usurper", "AddressTaken")?;
    ensure!(told.contains(&nodes[1].to_string()) && told.contains("itself"), "{told}");
    stage.delete_pods(&["beside-0", "beside-1", "usurper"])
}

#[test]
fn addresses_are_fixed_kept_and_unique_on_the_wire() {
    quiet("flat_addresses", |stage| {
        let office = Office::open(stage)?;
        let [here, there] = [&office.members[0], &office.members[1]];
        let first = stage.start(&[flat("first", here), flat("client", there)])?;
        let fixed = flat("fixed", there).annotated("braid.network/ips", "10.x.0.25,fd00:x::25");
        let fixed = stage.start(&[fixed])?.remove(0);
        ensure!(fixed.addresses == [stage.ip("10.x.0.25"), stage.ip("fd00:x::25")], "{fixed:?}");
        reach(stage, &first[1], &fixed.addresses)?;

        // Somebody has the address whom the cluster knows nothing of.
        let stranger = &stage.own("10.x.0.28/24");
        office.router(&["ip", "addr", "add", stranger, "dev", &office.device])?;
        let taken = flat("taken", here).annotated("braid.network/ips", "10.x.0.28");
        let told = stage.create(&[taken]).and_then(|()| stage.await_event("taken", "FailedCreatePodSandBox"));
        office.router(&["ip", "addr", "del", stranger, "dev", &office.device])?;
        let told = told?;
        let link = office.router(&["ip", "-o", "link", "show", &office.device])?;
        let mac = link.split(" link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        let mac = mac.context("the router's hardware address")?;
        ensure!(told.contains(&stage.own("10.x.0.28")) && told.contains(mac), "{told}");
        let started = stage.await_pod("taken")?;
        ensure!(started.addresses[0] == stage.ip("10.x.0.28"), "{started:?}");
        stage.delete_pods(&["taken"])?;

        stage.delete_pods(&["first"])?;
        pool(&office)?;
        moves(&office)?;

        // Next-free: what was given back comes last.
        stage.await_free(&first[0].addresses)?;
        let next = stage.start(&[flat("next", here)])?.remove(0);
        ensure!(
            next.addresses.iter().all(|a| !first[0].addresses.contains(a)),
            "{next:?} after {:?}",
            first[0]
        );

        let small = |number: u8| {
            flat(&format!("tiny-{number}"), here).annotated("braid.network/subnet", "campus-tiny").small()
        };
        let pods = stage.start(&[small(0), small(1)])?;
        ensure!(pods.iter().all(|pod| pod.addresses.len() == 1), "{pods:?}");
        stage.create(&[small(2)])?;
        let told = stage.await_event("tiny-2", "SubnetFull")?;
        ensure!(told.contains("campus-tiny") && told.contains("full"), "{told}");
        beside_the_nodes(&office)
    });
}
