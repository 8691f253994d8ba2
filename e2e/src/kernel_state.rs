//! What Braid has put into the kernel of a node, read with `ip`, `bridge` and `nft`, in a form that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::stage::{items, text};

/// Everything of Braid's on one node: lines by noun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    nouns: BTreeMap<String, BTreeSet<String>>,
}

/// The questions, each with the noun that its lines are filed under. Where lines are the answer, they are arguments
/// that the same program takes back.
const QUESTIONS: [(&str, &str); 20] = [
    ("rule4", "ip -N -4 rule show | grep -E '^32[0-3][0-9]:.* proto 176'"),
    ("rule6", "ip -N -6 rule show | grep -E '^32[0-3][0-9]:.* proto 176'"),
    ("route4 39999", "ip -N -4 route show table 39999 proto 176"),
    ("route4 40000", "ip -N -4 route show table 40000 proto 176"),
    ("route6 39999", "ip -N -6 route show table 39999 proto 176"),
    ("route6 40000", "ip -N -6 route show table 40000 proto 176"),
    (
        "route4 of subnets",
        "ip -N -4 route show table all proto 176 | grep -E ' table [1-3][0-9]{4}( |$)' | grep -v 39999",
    ),
    (
        "route6 of subnets",
        "ip -N -6 route show table all proto 176 | grep -E ' table [1-3][0-9]{4}( |$)' | grep -v 39999",
    ),
    ("proxy4", "ip -N -4 neigh show proxy | grep ' proto 176'"),
    ("proxy6", "ip -N -6 neigh show proxy | grep ' proto 176'"),
    ("link", "ip -j -d link show"),
    ("addr", "ip -j addr show"),
    ("neigh4", "ip -N -4 neigh show nud permanent"),
    ("neigh6", "ip -N -6 neigh show nud permanent"),
    ("fdb", "bridge fdb show"),
    ("nft", "nft -j list table inet braid"),
    ("journal", "find /var/lib/braid/attachments -type f 2>/dev/null"),
    ("plugin", "find /opt/cni/bin/braid /etc/cni/net.d -name '*braid*' 2>/dev/null"),
    ("state", "find /var/lib/braid /run/braid -mindepth 1 2>/dev/null"),
    // A container runtime that is killed may leave an empty namespace; one with an interface would be ours.
    (
        "netns",
        "for netns in /run/netns/*; do nsenter --net=\"$netns\" ip link show dev eth0 >/dev/null && echo \"$netns\"; done",
    ),
];

/// Between the answers.
const SEPARATOR: &str = "=====";

impl KernelState {
    /// Reads the state of a node.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn of(sandbox: &Sandbox, node: &str) -> Result<Self> {
        let script: Vec<String> =
            QUESTIONS.iter().map(|(_, question)| format!("{question}; echo {SEPARATOR}")).collect();
        // A table that does not exist makes its question fail, which is an answer too.
        let printed =
            sandbox.node_exec(node, &["sh", "-c", &format!("exec 2>/dev/null; {}", script.join("; "))])?;
        let mut state = Self::default();
        let separator = format!("{SEPARATOR}\n");
        let answers: BTreeMap<&str, &str> =
            QUESTIONS.iter().map(|(noun, _)| *noun).zip(printed.split(&separator)).collect();
        let links = parse(answers["link"]).context("ip link")?;
        let ours: BTreeSet<String> = items(&links).iter().filter(|link| is_ours(link)).map(name).collect();
        for (noun, answer) in &answers {
            let lines: BTreeSet<String> = match *noun {
                "link" => items(&links).iter().filter(|link| is_ours(link)).map(link_line).collect(),
                "addr" => addresses(&parse(answer).context("ip addr")?, &ours),
                "nft" if answer.trim().is_empty() => BTreeSet::new(),
                "nft" => nft_lines(&parse(answer).context("nft")?),
                "fdb" => answer
                    .lines()
                    .filter(|line| on_device(line, &ours) && !is_multicast(line))
                    .map(tidy)
                    .collect(),
                "neigh4" | "neigh6" => {
                    answer.lines().filter(|line| on_device(line, &ours)).map(tidy).collect()
                }
                _ => answer.lines().map(tidy).filter(|line| !line.is_empty()).collect(),
            };
            state.nouns.insert((*noun).to_owned(), lines);
        }
        Ok(state)
    }

    /// The lines of a noun.
    #[must_use]
    pub fn lines(&self, noun: &str) -> Vec<String> {
        self.nouns.get(noun).into_iter().flatten().cloned().collect()
    }

    /// The state without some nouns, such as those that change with every pod.
    #[must_use]
    pub fn without(mut self, nouns: &[&str]) -> Self {
        self.nouns.retain(|noun, _| !nouns.contains(&noun.as_str()));
        self
    }

    /// Devices of Braid's whose name begins like this, such as `braid` for the host ends of pods.
    #[must_use]
    pub fn devices(&self, kind: &str) -> Vec<String> {
        let lines = self.lines("link");
        let of_kind = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        of_kind.filter(|link| link["kind"] == kind).map(|link| text(&link["name"])).collect()
    }

    /// How this state differs from the one that is wanted, for people; empty when it does not.
    #[must_use]
    pub fn difference(&self, wanted: &Self) -> String {
        let mut told = String::new();
        let none = BTreeSet::new();
        for noun in self.nouns.keys().chain(wanted.nouns.keys()).collect::<BTreeSet<_>>() {
            let (is, should) =
                (self.nouns.get(noun).unwrap_or(&none), wanted.nouns.get(noun).unwrap_or(&none));
            for line in should.difference(is) {
                told += &format!("missing {noun}: {line}\n");
            }
            for line in is.difference(should) {
                told += &format!("extra {noun}: {line}\n");
            }
        }
        told
    }

    #[cfg(test)]
    pub(crate) fn from_lines(lines: &[(&str, &str)]) -> Self {
        let mut state = Self::default();
        for (noun, line) in lines {
            state.nouns.entry((*noun).to_owned()).or_default().insert((*line).to_owned());
        }
        state
    }

    /// Number of lines in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nouns.values().map(BTreeSet::len).sum()
    }

    /// Whether there is nothing of Braid's at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json.trim()).with_context(|| format!("not JSON: {json}"))
}

fn tidy(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn name(link: &Value) -> String {
    text(&link["ifname"])
}

/// By what a person sees: the alias that marks every device of Braid's.
fn is_ours(link: &Value) -> bool {
    text(&link["ifalias"]).starts_with("braid:")
}

/// What must not change about a device; numbers that differ after it was made anew are left out.
fn link_line(link: &Value) -> String {
    let data = &link["linkinfo"]["info_data"];
    let is_up = items(&link["flags"]).contains(&json!("UP"));
    json!({
        "name": link["ifname"],
        "kind": link["linkinfo"]["info_kind"],
        "alias": link["ifalias"],
        "address": link["address"],
        "mtu": link["mtu"],
        "group": link["group"],
        "up": is_up,
        "id": data["id"],
        "local": data["local"],
        "local6": data["local6"],
        "port": data["port"],
        "parent": data["link"],
        "learning": data["learning"],
    })
    .to_string()
}

/// Addresses on devices of ours. Those that the kernel makes by itself are not Braid's.
fn addresses(links: &Value, ours: &BTreeSet<String>) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for link in items(links).iter().filter(|link| ours.contains(&name(link))) {
        for address in items(&link["addr_info"]) {
            let local = text(&address["local"]);
            let gateway = "fe80::ecee:eeff:feee:eeee";
            if local.starts_with("fe80:") && local != gateway {
                continue;
            }
            lines.insert(format!("{local}/{} dev {}", address["prefixlen"], name(link)));
        }
    }
    lines
}

fn on_device(line: &str, ours: &BTreeSet<String>) -> bool {
    let mut words = line.split_whitespace();
    words.any(|word| word == "dev") && words.next().is_some_and(|device| ours.contains(device))
}

/// Entries for the multicast groups that the kernel itself joins on a device.
fn is_multicast(line: &str) -> bool {
    line.starts_with("33:33:") || line.starts_with("01:00:5e:")
}

/// Each chain, rule and set element as a line, without what changes by itself.
fn nft_lines(listing: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for (position, object) in items(&listing["nftables"]).iter().enumerate() {
        let mut object = object.clone();
        forget(&mut object);
        if let Some(set) = object.get_mut("set") {
            let elements = set.as_object_mut().and_then(|set| set.remove("elem")).unwrap_or_default();
            lines.extend(
                items(&elements).iter().map(|element| format!("element {} {element}", text(&set["name"]))),
            );
        }
        // Rules are in order; two alike are two.
        let order = if object.get("rule").is_some() { format!("{position:04} ") } else { String::new() };
        if object.get("metainfo").is_none() {
            lines.insert(format!("{order}{object}"));
        }
    }
    // The position counts sets and chains too, which is a matter of when they were made.
    let rules: Vec<String> = lines.iter().filter(|line| line.contains("{\"rule\"")).cloned().collect();
    for (number, rule) in rules.iter().enumerate() {
        lines.remove(rule);
        lines.insert(format!("rule {number:03} {}", rule.split_once(' ').map_or("", |(_, rest)| rest)));
    }
    lines
}

fn forget(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|key, _| !matches!(key.as_str(), "handle" | "packets" | "bytes" | "size"));
            members.values_mut().for_each(forget);
        }
        Value::Array(list) => list.iter_mut().for_each(forget),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_in_both_directions() {
        let is = KernelState::from_lines(&[("rule4", "a"), ("fdb", "x")]);
        let should = KernelState::from_lines(&[("rule4", "b"), ("fdb", "x")]);
        assert_eq!(is.difference(&should), "missing rule4: b\nextra rule4: a\n");
        assert_eq!(is.difference(&is), "");
    }

    #[test]
    fn counters_handles_and_the_order_of_elements_do_not_matter() {
        let listing = |elements: Value, handle: u32| {
            nft_lines(&json!({"nftables": [
                {"metainfo": {"version": "1"}},
                {"set": {"name": "pods4", "handle": handle, "elem": elements}},
                {"rule": {"chain": "c", "handle": handle, "expr": [{"counter": {"packets": handle, "bytes": 1}}]}},
            ]}))
        };
        assert_eq!(listing(json!(["a", "b"]), 1), listing(json!(["b", "a"]), 7));
        assert_ne!(listing(json!(["a", "b"]), 1), listing(json!(["a"]), 1));
    }

    #[test]
    fn a_device_is_found_in_lines_of_ip_and_bridge() {
        let ours = BTreeSet::from(["eth0.vxlan4".to_owned()]);
        assert!(on_device("10.0.0.1 dev eth0.vxlan4 lladdr 02:00:00:00:00:01 PERMANENT", &ours));
        assert!(!on_device("10.0.0.1 dev eth0.vxlan44 lladdr 02:00:00:00:00:01 PERMANENT", &ours));
        assert!(!on_device("33:33:00:00:00:01 dev eth0 self permanent", &ours));
    }
}
