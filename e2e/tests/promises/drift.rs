//! Whatever somebody deletes or changes by hand of what Braid put into a node's kernel comes back at once, one thing
//! after the other; what only looks like Braid's stays as it is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use braid_e2e::kernel_state::KernelState;
use braid_e2e::stage::{Stage, alone, text};
use braid_e2e::workload::{Pod, PodPlan};
use serde_json::Value;

/// How long a repair may take before it counts as not happening. The goal is one second; each takes what it says.
const LIMIT: Duration = Duration::from_secs(5);

/// Something that a person with too many rights could do.
#[derive(Clone, Debug)]
struct Mischief {
    what: String,
    script: String,
}

fn mischief(what: impl Into<String>, script: impl Into<String>) -> Mischief {
    Mischief { what: what.into(), script: script.into() }
}

fn number(family: &str) -> &str {
    &family[family.len() - 1..]
}

fn rules_and_routes(state: &KernelState) -> Vec<Mischief> {
    let mut all = Vec::new();
    for noun in ["rule4", "rule6"] {
        for line in state.lines(noun) {
            let priority = line.split(':').next().unwrap_or_default();
            let script = format!("ip -{} rule del pref {priority}", number(noun));
            all.push(mischief(format!("{noun} {line} deleted"), script));
        }
    }
    for family in ["4", "6"] {
        for table in ["39999", "40000"] {
            for line in state.lines(&format!("route{family} {table}")) {
                // "pref" and "error" are told, but not taken back.
                let words: Vec<&str> = line.split(' ').collect();
                let end =
                    words.iter().position(|word| matches!(*word, "pref" | "error")).unwrap_or(words.len());
                // A number as the first word is the type: 7 is RTN_UNREACHABLE.
                let route =
                    words[..end].join(" ").replacen("7 ", "unreachable ", usize::from(words[0] == "7"));
                let script = format!("ip -{family} route del {route} table {table}");
                all.push(mischief(format!("route of table {table} deleted: {route}"), script));
            }
        }
        all.push(mischief(
            format!("IPv{family} route of ours that nobody wants"),
            if family == "4" {
                "ip route add blackhole 203.0.113.0/24 table 40000 proto 176"
            } else {
                "ip -6 route add blackhole 2001:db8:7::/64 table 40000 proto 176"
            },
        ));
        all.push(mischief(
            format!("IPv{family} rule of ours that nobody wants"),
            format!("ip -{family} rule add pref 3212 lookup 40000 protocol 176"),
        ));
    }
    all
}

fn neighbours_and_forwarding(state: &KernelState, tunnel: &str) -> Vec<Mischief> {
    let mut all = Vec::new();
    for noun in ["neigh4", "neigh6"] {
        for line in state.lines(noun) {
            let words: Vec<&str> = line.split(' ').collect();
            let [address, "dev", device, ..] = words[..] else { continue };
            let command = format!("ip -{} neigh", number(noun));
            all.push(mischief(
                format!("neighbour deleted: {line}"),
                format!("{command} del {address} dev {device}"),
            ));
            let other =
                format!("{command} replace {address} dev {device} lladdr 02:00:00:00:00:99 nud permanent");
            all.push(mischief(format!("neighbour with another MAC: {line}"), other));
        }
    }
    for line in state.lines("fdb") {
        let words: Vec<&str> = line.split(' ').collect();
        let [mac, "dev", device, "dst", destination, ..] = words[..] else { continue };
        let entry = format!("{mac} dev {device} dst {destination} self");
        all.push(mischief(format!("forwarding entry deleted: {line}"), format!("bridge fdb del {entry}")));
        let other = format!("bridge fdb replace {mac} dev {device} dst 192.0.2.99 self permanent");
        all.push(mischief(format!("forwarding entry to elsewhere: {line}"), other));
    }
    all.push(mischief(
        "forwarding entry that nobody wants",
        format!("bridge fdb add 02:00:00:00:00:77 dev {tunnel} dst 192.0.2.77 self permanent"),
    ));
    all.push(mischief(
        "neighbour that nobody wants",
        format!("ip neigh add 203.0.113.7 dev {tunnel} lladdr 02:00:00:00:00:77 nud permanent"),
    ));
    all
}

fn devices(state: &KernelState, tunnel: &str, host_end: &str) -> Vec<Mischief> {
    let mut all = Vec::new();
    for line in state.lines("addr") {
        let words: Vec<&str> = line.split(' ').collect();
        let [prefix, "dev", device] = words[..] else { continue };
        all.push(mischief(format!("address deleted: {line}"), format!("ip addr del {prefix} dev {device}")));
    }
    for device in [tunnel, host_end] {
        for change in ["down", "mtu 1300", "address 02:00:00:00:00:55", "group 5", "alias braid:changed"] {
            all.push(mischief(format!("{device} set {change}"), format!("ip link set {device} {change}")));
        }
    }
    all.push(mischief("the tunnel learns", format!("ip link set {tunnel} type vxlan learning")));
    all.push(mischief("an address more on the tunnel", format!("ip addr add 203.0.113.8/32 dev {tunnel}")));
    all.push(mischief("the tunnel deleted", format!("ip link del {tunnel}")));
    all.push(mischief("a pod's host end deleted", format!("ip link del {host_end}")));
    all
}

/// A set element as nft takes it back.
fn element(value: &Value) -> Option<String> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(parts) = value["concat"].as_array() {
        let parts: Option<Vec<String>> = parts.iter().map(word).collect();
        // A device's name stands in quotes.
        let mut parts = parts?;
        parts[0] = format!("\"{}\"", parts[0]);
        return Some(parts.join(" . "));
    }
    if let Some(ends) = value["range"].as_array() {
        return Some(format!("{}-{}", word(&ends[0])?, word(&ends[1])?));
    }
    if value["prefix"].is_object() {
        return Some(format!("{}/{}", word(&value["prefix"]["addr"])?, value["prefix"]["len"]));
    }
    word(value)
}

fn firewall(stage: &Stage, node: &str) -> Result<Vec<Mischief>> {
    let listing = stage.sandbox().node_exec(node, &["nft", "-a", "-j", "list", "table", "inet", "braid"])?;
    let listing: Value = serde_json::from_str(&listing)?;
    let mut all = Vec::new();
    for object in listing["nftables"].as_array().context("no objects in the table")? {
        if object["set"].is_object() {
            let (set, name) = (&object["set"], text(&object["set"]["name"]));
            for value in set["elem"].as_array().into_iter().flatten() {
                let Some(element) = element(value) else { bail!("cannot spell {value} of set {name}") };
                all.push(mischief(
                    format!("element {element} of set {name} deleted"),
                    format!("nft 'delete element inet braid {name} {{ {element} }}'"),
                ));
            }
            all.push(mischief(format!("set {name} emptied"), format!("nft flush set inet braid {name}")));
        }
        if object["rule"].is_object() {
            let (chain, handle) = (text(&object["rule"]["chain"]), &object["rule"]["handle"]);
            // Handles change with every repair, so the rule is found by its position when its turn has come.
            let position = all
                .iter()
                .filter(|done: &&Mischief| done.what.contains(&format!("of chain {chain}")))
                .count();
            let find = format!(
                "nft -a list chain inet braid {chain} | grep -v '^table\\|chain ' | grep -o 'handle [0-9]*$' | sed -n {}p",
                position + 1
            );
            all.push(mischief(
                format!("rule {position} (handle {handle}) of chain {chain} deleted"),
                format!("nft delete rule inet braid {chain} $({find})"),
            ));
        }
        if object["chain"].is_object() {
            let chain = text(&object["chain"]["name"]);
            all.push(mischief(
                format!("chain {chain} flushed"),
                format!("nft flush chain inet braid {chain}"),
            ));
            all.push(mischief(
                format!("chain {chain} with a rule in front"),
                format!("nft insert rule inet braid {chain} accept"),
            ));
        }
    }
    all.push(mischief(
        "chain that nobody wants",
        "nft 'add chain inet braid guest { type filter hook forward priority 0; policy accept; }'",
    ));
    all.push(mischief("the table deleted", "nft delete table inet braid"));
    Ok(all)
}

/// Does it, and waits until everything is as it was before. Returns how long that took.
fn repaired(stage: &Stage, node: &str, wanted: &KernelState, mischief: &Mischief) -> Result<Duration> {
    stage
        .sandbox()
        .node_exec(node, &["sh", "-ec", &mischief.script])
        .with_context(|| format!("{}: the mischief itself failed", mischief.what))?;
    let begin = Instant::now();
    loop {
        let now = KernelState::of(stage.sandbox(), node)?.without(&VOLATILE);
        let difference = now.difference(wanted);
        if difference.is_empty() {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > LIMIT {
            bail!("{}: not repaired after {LIMIT:?}:\n{difference}", mischief.what);
        }
    }
}

/// Files come and go with the agent's own work.
const VOLATILE: [&str; 3] = ["state", "journal", "plugin"];

fn two_pods(stage: &Stage, node: &str) -> Result<Vec<Pod>> {
    stage.start(&[
        PodPlan::new("here").on(node).serving(),
        PodPlan::new("there").on(&stage.nodes()[0]).serving(),
    ])
}

fn host_end(stage: &Stage, node: &str, pod: &Pod) -> Result<String> {
    let route = ["ip", "-o", "route", "show", "table", "39999", &pod.addresses[0].to_string()];
    let line = stage.sandbox().node_exec(node, &route)?;
    let device = line.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next());
    device.map(str::to_owned).with_context(|| format!("no device in '{line}'"))
}

fn talk(stage: &Stage, pods: &[Pod]) -> Result<()> {
    for address in &pods[1].addresses {
        let argv = ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-W", "2", &address.to_string()];
        stage.sandbox().pod_exec(&pods[0].namespace, &pods[0].name, &argv)?;
    }
    Ok(())
}

#[test]
fn every_single_thing_comes_back() {
    alone("drift", |stage| {
        let node = stage.nodes()[1].clone();
        let pods = two_pods(stage, &node)?;
        talk(stage, &pods)?;
        // Pods of an earlier test may still be on their way out.
        stage.await_agreement()?;
        let wanted = KernelState::of(stage.sandbox(), &node)?.without(&VOLATILE);
        let tunnels = wanted.devices("vxlan");
        let tunnel = tunnels.iter().find(|name| name.ends_with("vxlan4")).context("no tunnel device")?;
        let host_end = host_end(stage, &node, &pods[0])?;
        let mut all = rules_and_routes(&wanted);
        all.extend(neighbours_and_forwarding(&wanted, tunnel));
        all.extend(firewall(stage, &node)?);
        all.extend(devices(&wanted, tunnel, &host_end));
        ensure!(all.len() > 50, "only {} things to break: {all:?}", all.len());
        let mut failures = Vec::new();
        let mut slowest = (Duration::ZERO, String::new());
        for mischief in &all {
            match repaired(stage, &node, &wanted, mischief) {
                Ok(time) => {
                    eprintln!("{:5} ms  {}", time.as_millis(), mischief.what);
                    if time > slowest.0 {
                        slowest = (time, mischief.what.clone());
                    }
                }
                Err(error) => {
                    eprintln!("FAILED   {error:#}");
                    failures.push(format!("{error:#}"));
                    // What one left broken must not be held against the next.
                    stage.replace_agent(&node)?;
                }
            }
        }
        eprintln!("{} things broken; the slowest repair took {:?}: {}", all.len(), slowest.0, slowest.1);
        ensure!(
            failures.is_empty(),
            "{} of {} were not repaired:\n{}",
            failures.len(),
            all.len(),
            failures.join("\n")
        );
        talk(stage, &pods)?;
        // The agent is awake for every message of the kernel; one more pod must still work.
        let more = stage.start(&[PodPlan::new("more").on(&node)])?;
        talk(stage, &[more[0].clone(), pods[1].clone()])
    });
}

/// Things that resemble Braid's: how to make them, how to remove them.
const FOREIGN: [(&str, &str); 13] = [
    ("ip link add braidge0 type bridge", "ip link del braidge0"),
    (
        "ip link add braid0123456789 type veth peer name vethpeer0 && ip link set braid0123456789 up",
        "ip link del braid0123456789",
    ),
    ("ip link add eth0.vxlan77 type vxlan id 77 dstport 4777 dev eth0", "ip link del eth0.vxlan77"),
    ("bridge fdb add 02:00:00:00:07:07 dev eth0.vxlan77 dst 192.0.2.7 self permanent", "true"),
    ("ip neigh add 203.0.113.9 dev braidge0 lladdr 02:00:00:00:07:09 nud permanent", "true"),
    (
        "ip route add blackhole 203.0.113.0/25 table 40000 proto static",
        "ip route del blackhole 203.0.113.0/25 table 40000",
    ),
    (
        "ip -6 route add blackhole 2001:db8:9::/64 table 39999 proto 177",
        "ip -6 route del blackhole 2001:db8:9::/64 table 39999",
    ),
    (
        "ip route add blackhole 203.0.113.128/25 table 500 proto 176",
        "ip route del blackhole 203.0.113.128/25 table 500",
    ),
    ("ip rule add pref 3211 lookup 500 protocol static", "ip rule del pref 3211"),
    ("ip -6 rule add pref 3215 from 2001:db8:9::/64 lookup 40000 protocol 176", "ip -6 rule del pref 3215"),
    ("ip rule add pref 5000 lookup 40000 protocol 176", "ip rule del pref 5000"),
    (
        "nft 'add table inet braid2; add chain inet braid2 c; add rule inet braid2 c accept'",
        "nft delete table inet braid2",
    ),
    ("nft 'add table ip braid; add set ip braid pods4 { type ipv4_addr; }'", "nft delete table ip braid"),
];

/// Everything on the node that is not Braid's, as text.
fn foreign(stage: &Stage, node: &str) -> Result<String> {
    let script = "ip -o link show type bridge | cut -d: -f2; ip -d -o link show dev eth0.vxlan77; \
         ip -o link show braid0123456789; bridge fdb show dev eth0.vxlan77; ip neigh show dev braidge0; \
         ip -N route show table 500; ip -N route show table 40000 proto static; \
         ip -6 -N route show table 39999 proto 177; ip -N rule show; ip -6 -N rule show; \
         nft list table inet braid2; nft list table ip braid";
    stage.sandbox().node_exec(node, &["sh", "-ec", script])
}

#[test]
fn what_only_looks_alike_is_left_alone() {
    alone("drift_foreign", |stage| {
        let node = stage.nodes()[2].clone();
        let exec = |script: &str| stage.sandbox().node_exec(&node, &["sh", "-ec", script]);
        let pods = two_pods(stage, &node)?;
        stage.await_agreement()?;
        let wanted = KernelState::of(stage.sandbox(), &node)?;
        // A rule with a selector in Braid's own band shows in the state as well.
        let wanted = wanted.without(&[&VOLATILE[..], &["rule4", "rule6"]].concat());
        let outcome = (|| -> Result<()> {
            for (make, _) in FOREIGN {
                exec(make).with_context(|| format!("cannot seed: {make}"))?;
            }
            let seeded = foreign(stage, &node)?;
            // Full comparisons: after a change by hand, at the start of a new agent, and when pods come and go.
            let mischief = mischief("a rule deleted among foreign ones", "nft delete table inet braid");
            repaired(stage, &node, &wanted, &mischief).or_else(|error| {
                // The rules are left out of the wanted state, all else must be there.
                let now = KernelState::of(stage.sandbox(), &node)?.without(&["rule4", "rule6"]);
                ensure!(now.without(&VOLATILE).difference(&wanted).is_empty(), "{error:#}");
                Ok(Duration::ZERO)
            })?;
            stage.replace_agent(&node)?;
            stage.start(&[PodPlan::new("passing").on(&node)])?;
            stage.delete_pods(&["passing"])?;
            let now = foreign(stage, &node)?;
            ensure!(now == seeded, "foreign things were touched; before:\n{seeded}\nafter:\n{now}");
            talk(stage, &pods)
        })();
        for (_, remove) in FOREIGN {
            if let Err(error) = exec(remove) {
                eprintln!("cannot remove what was seeded: {error:#}");
            }
        }
        outcome
    });
}
