//! Throughput and round trips of pods on one node and across nodes, against the nodes themselves and against an L3
//! VXLAN made by hand between the same nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, ensure};
use braid_e2e::probe::{Running, netns_of};
use braid_e2e::workload::{Pod, bracketed};
use braid_e2e::{Sandbox, eventually};
use serde_json::{Value, json};

use crate::place::{self, NAMESPACE, PATIENCE};
use crate::report::{Report, median};
use crate::runner::own_path;

const ROUNDS: usize = 3;
/// Seconds of one throughput measurement.
const SECONDS: &str = "2";
const ROUND_TRIPS: &str = "4000";
const PORTS: [&str; 2] = ["5201", "5210"];

const WIRE: &str = "node to node";
const HAND: &str = "hand-made VXLAN, across nodes";
const BRAID: &str = "Braid VXLAN, across nodes";
const BRAID_V6: &str = "Braid VXLAN, across nodes, IPv6";
const HAND_LOCAL: &str = "hand-made veth pairs, same node";
const BRAID_LOCAL: &str = "Braid, same node";

pub(crate) fn run() -> Result<Report> {
    let mut report = Report::new(
        "traffic",
        "Throughput and latency",
        "iperf3 for 2 s with 1 and 8 streams, and 4,000 TCP round trips of one byte, between two nodes of the sandbox \
         (namespaces joined by a bridge; both ends and the network share the machine's processors, so throughput is a \
         measure of work per byte). The hand-made peer is the least that does the same: network namespaces with a veth \
         pair, one VXLAN device, one route, one neighbour and one FDB entry, without policy rules and without Braid's \
         filter for forged sources. Paths take turns; medians of 3.",
        &[
            "path",
            "1 stream",
            "against the wire",
            "8 streams",
            "against the wire",
            "round trip",
            "more than the wire",
        ],
    );
    let sandbox = place::braid()?;
    let paths = paths(&sandbox)?;
    let servers = paths.values().map(|(_, to)| to.serve(&sandbox)).collect::<Result<Vec<_>>>()?;
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for streams in ["1", "8"] {
            for (name, (from, to)) in &paths {
                let bits = from.throughput(&sandbox, to, streams)?;
                samples.entry(format!("{name}, {streams}, bit/s")).or_default().push(bits);
            }
        }
        for (name, (from, to)) in &paths {
            let time = median(&from.round_trips(&sandbox, to)?);
            samples.entry(format!("{name}, microseconds")).or_default().push(time);
        }
    }
    drop(servers);
    sandbox.kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--grace-period=0", "--force"])?;
    unmake(&sandbox)?;

    let of =
        |name: &str, what: &str| median(samples.get(&format!("{name}, {what}")).map_or(&[], Vec::as_slice));
    for name in [WIRE, HAND, BRAID, BRAID_V6, HAND_LOCAL, BRAID_LOCAL] {
        let (one, eight, time) = (of(name, "1, bit/s"), of(name, "8, bit/s"), of(name, "microseconds"));
        report.row([
            name.to_owned(),
            format!("{:.2} Gbit/s", one / 1e9),
            format!("{:.0} %", 100.0 * one / of(WIRE, "1, bit/s")),
            format!("{:.2} Gbit/s", eight / 1e9),
            format!("{:.0} %", 100.0 * eight / of(WIRE, "8, bit/s")),
            format!("{time:.1} us"),
            format!("{:+.1} us", time - of(WIRE, "microseconds")),
        ]);
    }
    report.keep("all", &samples)?;
    for (streams, what) in [("1 stream", "1, bit/s"), ("8 streams", "8, bit/s")] {
        let ratio = of(BRAID, what) / of(HAND, what);
        report.budget(
            &format!("VXLAN against the hand-made one, {streams}"),
            "not less (3 % is noise)",
            format!("{:.0} %", ratio * 100.0),
            ratio >= 0.97,
        );
    }
    for (name, limit, what) in
        [(BRAID_LOCAL, 5.0, "same node, round trip"), (BRAID, 10.0, "VXLAN, round trip")]
    {
        let more = of(name, "microseconds") - of(WIRE, "microseconds");
        report.budget(
            &format!("{what}, beyond node to node"),
            &format!("<= {limit:.0} us"),
            format!("{more:+.1} us"),
            more <= limit,
        );
    }
    Ok(report)
}

/// One end of a path.
#[derive(Debug, Clone)]
struct End {
    node: String,
    /// Path of the network namespace on the node; none = the node's own.
    netns: Option<String>,
    address: IpAddr,
}

impl End {
    fn argv<'a>(&'a self, enter: &'a str, argv: &[&'a str]) -> Vec<&'a str> {
        if self.netns.is_some() { [&["nsenter", enter], argv].concat() } else { argv.to_vec() }
    }

    fn enter(&self) -> String {
        format!("--net={}", self.netns.as_deref().unwrap_or_default())
    }

    /// Starts what the other end talks to.
    fn serve<'a>(&self, sandbox: &'a Sandbox) -> Result<[Running<'a>; 2]> {
        let (enter, own) = (self.enter(), own_path()?);
        let start = |argv: &[&str]| Running::start(sandbox, &self.node, &self.argv(&enter, argv));
        Ok([start(&["iperf3", "-s", "-p", PORTS[0]])?, start(&[&own, "echo-server", PORTS[1]])?])
    }

    fn ask(&self, sandbox: &Sandbox, argv: &[&str]) -> Result<Value> {
        let enter = self.enter();
        // A server is there a moment after its start.
        eventually(&format!("an answer to {argv:?}"), PATIENCE, || {
            let output = sandbox.node_exec_output(&self.node, &self.argv(&enter, argv))?;
            ensure!(
                output.status.success(),
                "{argv:?}: {}{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout)
            );
            Ok(Some(serde_json::from_slice(&output.stdout)?))
        })
    }

    fn throughput(&self, sandbox: &Sandbox, to: &Self, streams: &str) -> Result<f64> {
        let address = to.address.to_string();
        let argv = ["iperf3", "-J", "-c", &address, "-p", PORTS[0], "-t", SECONDS, "-P", streams];
        let answer = self.ask(sandbox, &argv)?;
        answer["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 said no rate")
    }

    fn round_trips(&self, sandbox: &Sandbox, to: &Self) -> Result<Vec<f64>> {
        let (own, address) = (own_path()?, format!("{}:{}", bracketed(to.address), PORTS[1]));
        let answer = self.ask(sandbox, &[&own, "echo-client", &address, ROUND_TRIPS])?;
        serde_json::from_value(answer).context("a list of times")
    }
}

fn paths(sandbox: &Sandbox) -> Result<BTreeMap<&'static str, (End, End)>> {
    let [first, second] = ["node1", "node2"].map(|node| node_end(sandbox, node));
    let (first, second) = (first?, second?);
    let [here, beside, there] = [("here", "node1"), ("beside", "node1"), ("there", "node2")]
        .map(|(name, node)| pod(sandbox, name, node));
    let (here, beside, there) = (here?, beside?, there?);
    let [hand_here, hand_beside, hand_there] = by_hand(sandbox, &first, &second)?;
    Ok(BTreeMap::from([
        (WIRE, (first, second)),
        (HAND, (hand_here.clone(), hand_there)),
        (HAND_LOCAL, (hand_here, hand_beside)),
        (BRAID, (here[0].clone(), there[0].clone())),
        (BRAID_V6, (here[1].clone(), there[1].clone())),
        (BRAID_LOCAL, (here[0].clone(), beside[0].clone())),
    ]))
}

fn node_end(sandbox: &Sandbox, node: &str) -> Result<End> {
    let object = sandbox.kubectl_json(&["get", "node", node])?;
    let addresses = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let mut found =
        addresses.iter().filter(|a| a["type"] == "InternalIP").filter_map(|a| a["address"].as_str());
    let address = found.find_map(|text| text.parse().ok().filter(IpAddr::is_ipv4));
    Ok(End {
        node: node.to_owned(),
        netns: None,
        address: address.context("a node without an IPv4 address")?,
    })
}

/// A running pod, by its IPv4 and by its IPv6 address.
fn pod(sandbox: &Sandbox, name: &str, node: &str) -> Result<[End; 2]> {
    sandbox.apply(&place::pod(name, node, &["sleep", "infinity"]).to_string())?;
    sandbox.await_condition(NAMESPACE, &format!("pod/{name}"), "Ready", PATIENCE)?;
    let pod = Pod::read(&sandbox.kubectl_json(&["-n", NAMESPACE, "get", "pod", name])?);
    let netns = netns_of(sandbox, &pod)?;
    let end = |v4: bool| -> Result<End> {
        let address = pod.addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        let address = address.with_context(|| format!("{} in {}", json!(pod.addresses), pod.name))?;
        Ok(End { node: node.to_owned(), netns: Some(netns.clone()), address })
    };
    Ok([end(true)?, end(false)?])
}

const HAND_NAMES: [(&str, &str); 3] = [("node1", "hand1"), ("node1", "hand2"), ("node2", "hand3")];

/// Two "pods" on the first node and one on the second: 10.97.<node>.<n>.
fn by_hand(sandbox: &Sandbox, first: &End, second: &End) -> Result<[End; 3]> {
    unmake(sandbox)?;
    for (here, there, n, m) in [(first, second, 1, 2), (second, first, 2, 1)] {
        sandbox.node_exec(
            &here.node,
            &[
                "sh",
                "-euc",
                &format!(
                    "ip link add hand type vxlan id 4097 dev eth0 local {} dstport 8473 nolearning
             ip link set hand address 02:b4:00:00:00:0{n} mtu 1450 up
             ip address add 10.97.0.{n}/32 dev hand
             ip route add 10.97.{m}.0/24 via 10.97.0.{m} dev hand onlink
             ip neighbour add 10.97.0.{m} lladdr 02:b4:00:00:00:0{m} dev hand nud permanent
             bridge fdb append 02:b4:00:00:00:0{m} dev hand dst {} self permanent",
                    here.address, there.address
                ),
            ],
        )?;
    }
    let mut ends = Vec::new();
    for ((node, name), address) in HAND_NAMES.into_iter().zip(["10.97.1.1", "10.97.1.2", "10.97.2.1"]) {
        sandbox.node_exec(
            node,
            &[
                "sh",
                "-euc",
                &format!(
                    "ip netns add {name}
             ip link add {name} mtu 1450 type veth peer name eth0 mtu 1450 netns {name}
             ip link set {name} address ee:ee:ee:ee:ee:ee up
             ip route add {address}/32 dev {name}
             ip -n {name} link set lo up
             ip -n {name} link set eth0 up
             ip -n {name} address add {address}/32 dev eth0
             ip -n {name} neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
             ip -n {name} route add default via 169.254.1.1 dev eth0 onlink
             mac=$(ip -n {name} -br link show eth0 | tr -s ' ' | cut -d ' ' -f 3)
             ip neighbour add {address} lladdr $mac dev {name} nud permanent"
                ),
            ],
        )?;
        ends.push(End {
            node: node.to_owned(),
            netns: Some(format!("/run/netns/{name}")),
            address: address.parse()?,
        });
    }
    ends.try_into().map_err(|_| anyhow!("three ends"))
}

fn unmake(sandbox: &Sandbox) -> Result<()> {
    for (node, name) in HAND_NAMES {
        let script = format!(
            "ip netns del {name} 2>/dev/null; ip link del {name} 2>/dev/null; ip link del hand 2>/dev/null; :"
        );
        sandbox.node_exec(node, &["sh", "-c", &script])?;
    }
    Ok(())
}
