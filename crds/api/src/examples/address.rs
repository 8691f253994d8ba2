use serde_json::{Value, json};

use super::Noticed::{Rule, Schema};
use super::{Example, Noticed, accepted, after, object, refused};

fn instance(name: &str, spec: &str) -> Value {
    object("IPInstance", name, &format!("{{network: lab, subnet: lab-v4, {spec}}}"))
}

const POD: &str = "pod: {namespace: shop, name: web-0, uid: 6b0e}, node: n1";

/// What, name, spec (a pod and node are added where it has none), who notices, words.
type Row = (&'static str, &'static str, &'static str, Noticed, &'static str);

const BAD: &[Row] = &[
    (
        "a name that is another address",
        "10.20.0.12",
        "address: 10.20.0.11/24",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "a name that is no address",
        "web-0",
        "address: 10.20.0.11/24",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "a name that only ends like the address",
        "110.20.0.11",
        "address: 10.20.0.11/24",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "an IPv6 name with leading zeros",
        "fd00-0-0-0-0-0-0-005",
        "address: 'fd00::5/64'",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "a shortened IPv6 name",
        "fd00--5",
        "address: 'fd00::5/64'",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "an IPv6 name that is another address",
        "fd00-0-0-0-0-0-0-6",
        "address: 'fd00::5/64'",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    (
        "two spaces",
        "a.b.10.20.0.11",
        "address: 10.20.0.11/24",
        Rule,
        "metadata.name: must be the address of spec.address",
    ),
    ("address without length", "10.20.0.11", "address: 10.20.0.11", Rule, "address: write address/length"),
    ("address that is a word", "10.20.0.11", "address: here", Rule, "address: write address/length"),
    (
        "address not in the shortest spelling",
        "fd00-0-0-0-0-0-0-5",
        "address: 'fd00:0::5/64'",
        Rule,
        "address: write address/length in the shortest spelling",
    ),
    (
        "IPv4-mapped address",
        "0-0-0-0-0-ffff-a14-b",
        "address: '::ffff:10.20.0.11/120'",
        Rule,
        "IPv4-mapped IPv6",
    ),
    (
        "loopback address",
        "127.0.0.1",
        "address: 127.0.0.1/8",
        Rule,
        "address: pods cannot have an unspecified, loopback",
    ),
    ("multicast address", "ff02-0-0-0-0-0-0-1", "address: 'ff02::1/64'", Rule, "address: pods cannot have"),
    (
        "gateway that is a word",
        "10.20.0.11",
        "address: 10.20.0.11/24, gateway: router",
        Rule,
        "gateway: write an address in its shortest spelling",
    ),
    (
        "gateway outside the subnet",
        "10.20.0.11",
        "address: 10.20.0.11/24, gateway: 10.20.1.1",
        Rule,
        "gateway: must be inside the prefix",
    ),
    (
        "the gateway itself",
        "10.20.0.1",
        "address: 10.20.0.1/24, gateway: 10.20.0.1",
        Rule,
        "gateway: is the address itself",
    ),
    (
        "multicast MAC",
        "10.20.0.11",
        "address: 10.20.0.11/24, mac: '01:00:5e:00:00:01'",
        Rule,
        "mac: write a unicast address",
    ),
    (
        "MAC of zeros",
        "10.20.0.11",
        "address: 10.20.0.11/24, mac: '00:00:00:00:00:00'",
        Rule,
        "mac: write a unicast address",
    ),
    (
        "MAC in capitals",
        "10.20.0.11",
        "address: 10.20.0.11/24, mac: '02:AC:00:00:00:01'",
        Rule,
        "lower-case hex digits",
    ),
    (
        "MAC of eight octets",
        "10.20.0.11",
        "address: 10.20.0.11/24, mac: '02:00:00:00:00:00:00:01'",
        Schema,
        "may not be more than 17",
    ),
    (
        "interface with a slash",
        "10.20.0.11",
        "address: 10.20.0.11/24, interface: eth/0",
        Rule,
        "interface: is not a device name",
    ),
    (
        "interface of 16 characters",
        "10.20.0.11",
        "address: 10.20.0.11/24, interface: abcdefghijklmnop",
        Schema,
        "may not be more than 15",
    ),
    (
        "pod without node",
        "10.20.0.11",
        "address: 10.20.0.11/24, pod: {namespace: a, name: b, uid: c}",
        Rule,
        "node: an address that a pod holds needs the node",
    ),
    (
        "pod without uid",
        "10.20.0.11",
        "address: 10.20.0.11/24, node: n1, pod: {namespace: a, name: b}",
        Schema,
        "spec.pod.uid: Required value",
    ),
    (
        "a node's own address with a pod",
        "10.20.0.11",
        "address: 10.20.0.11/24, node: n1, interface: vtep, pod: {namespace: a, name: b, uid: c}",
        Rule,
        "interface vtep: is the address of a node",
    ),
    (
        "a node's own address without node",
        "10.20.0.11",
        "address: 10.20.0.11/24, interface: vtep, owner: {apiVersion: v1, kind: Node, name: n1}",
        Rule,
        "interface vtep: is the address of a node",
    ),
    (
        "a set without the address itself",
        "10.20.0.11",
        "address: 10.20.0.11/24, set: ['fd00::5']",
        Rule,
        "set: must hold the address of this object too",
    ),
    (
        "a set of words",
        "10.20.0.11",
        "address: 10.20.0.11/24, set: [10.20.0.11, other]",
        Rule,
        "set: each entry is an address",
    ),
    (
        "owner without kind",
        "10.20.0.11",
        "address: 10.20.0.11/24, owner: {apiVersion: apps/v1, name: web}",
        Schema,
        "spec.owner.kind: Required value",
    ),
    (
        "end of retention that is no time",
        "10.20.0.11",
        "address: 10.20.0.11/24, retainUntil: tomorrow",
        Schema,
        "spec.retainUntil",
    ),
];

const GOOD: &[(&str, &str, &str)] = &[
    (
        "IPv4",
        "10.20.0.11",
        "address: 10.20.0.11/24, gateway: 10.20.0.1, mac: '02:42:ac:11:00:02', set: [10.20.0.11, 'fd00::5']",
    ),
    ("IPv6", "fd00-10-20-0-0-0-0-5", "address: 'fd00:10:20::5/64'"),
    ("IPv6 with zeros in front", "2001-db8-0-1-0-0-0-0", "address: '2001:db8:0:1::/64'"),
    ("another space", "lab-1.10.20.0.11", "address: 10.20.0.11/24"),
    ("IPv6 in another space", "lab.fd00-0-0-0-0-0-0-5", "address: 'fd00::5/64'"),
    (
        "a node's own address",
        "10.20.0.12",
        "address: 10.20.0.12/24, interface: vtep, node: n1, owner: {apiVersion: v1, kind: Node, name: n1, uid: u}",
    ),
    (
        "an address pinned for a StatefulSet",
        "10.20.0.13",
        "address: 10.20.0.13/24, owner: {apiVersion: apps/v1, kind: StatefulSet, namespace: shop, name: web}, retainUntil: '2030-01-01T00:00:00Z'",
    ),
];

fn block(name: &str, spec: &str) -> Value {
    object("IPBlock", name, spec)
}

/// What, name, spec, words.
const BAD_BLOCKS: &[(&str, &str, &str, &str)] = &[
    (
        "a block of another name",
        "lab-10-20-0-0-26",
        "{subnet: lab, cidr: 10.20.1.0/26, node: n1}",
        "metadata.name: write <subnet>-<address>",
    ),
    (
        "a block named after another Subnet",
        "web-10-20-0-0-26",
        "{subnet: lab, cidr: 10.20.0.0/26, node: n1}",
        "metadata.name: write <subnet>-<address>",
    ),
    (
        "an IPv6 block with a shortened name",
        "lab-fd00--40-122",
        "{subnet: lab, cidr: 'fd00::40/122', node: n1}",
        "metadata.name: write <subnet>-<address>",
    ),
    (
        "an IPv6 block of another length",
        "lab-fd00-0-0-0-0-0-0-40-123",
        "{subnet: lab, cidr: 'fd00::40/122', node: n1}",
        "metadata.name: write <subnet>-<address>",
    ),
    (
        "a block with host bits",
        "lab-10-20-0-1-26",
        "{subnet: lab, cidr: 10.20.0.1/26, node: n1}",
        "cidr: clear the bits behind the prefix length",
    ),
    (
        "a block of loopback addresses",
        "lab-127-0-0-0-26",
        "{subnet: lab, cidr: 127.0.0.0/26, node: n1}",
        "cidr: pods cannot have addresses",
    ),
];

pub(super) fn bad() -> Vec<Example> {
    let with_pod = |spec: &str| {
        if spec.contains("node:") || spec.contains("pod:") || spec.contains("vtep") {
            spec.to_owned()
        } else {
            format!("{spec}, {POD}")
        }
    };
    let mut all: Vec<Example> = BAD
        .iter()
        .map(|(what, name, spec, by, says)| refused(what, instance(name, &with_pod(spec)), *by, says))
        .collect();
    let v4 = |spec: &str| object("IPInstance", "10.20.0.11", &format!("{{{spec}, {POD}}}"));
    let before = || v4("network: lab, subnet: lab-v4, address: 10.20.0.11/24");
    for (what, new, says) in [
        (
            "another length",
            "network: lab, subnet: lab-v4, address: 10.20.0.11/25",
            "address: cannot be changed",
        ),
        ("another Subnet", "network: lab, subnet: web, address: 10.20.0.11/24", "subnet: cannot be changed"),
        (
            "another Network",
            "network: web, subnet: lab-v4, address: 10.20.0.11/24",
            "network: cannot be changed",
        ),
    ] {
        all.push(after(before(), refused(what, v4(new), Rule, says)));
    }
    all.extend(
        BAD_BLOCKS.iter().map(|(what, name, spec, says)| refused(what, block(name, spec), Rule, says)),
    );
    let name = "lab-10-20-0-0-26";
    all.push(after(
        block(name, "{subnet: lab, cidr: 10.20.0.0/26, node: n1}"),
        refused(
            "a block of another node",
            block(name, "{subnet: lab, cidr: 10.20.0.0/26, node: n2}"),
            Rule,
            "spec: a block cannot be changed",
        ),
    ));
    all
}

pub(super) fn good() -> Vec<Example> {
    let mut all: Vec<Example> = GOOD
        .iter()
        .map(|(what, name, spec)| {
            let spec = if spec.contains("owner") { (*spec).to_owned() } else { format!("{spec}, {POD}") };
            accepted(what, instance(name, &spec))
        })
        .collect();
    for (what, name, cidr) in [
        ("a block", "lab-10-20-0-64-26", "10.20.0.64/26"),
        ("an IPv6 block", "lab-fd00-0-0-0-0-0-0-40-122", "fd00::40/122"),
        ("a block of one address", "lab-fd00-0-0-0-0-0-0-41-128", "fd00::41/128"),
    ] {
        all.push(accepted(what, block(name, &format!("{{subnet: lab, cidr: '{cidr}', node: n1}}"))));
    }
    let node = json!({"apiVersion": "braid.network/v1", "kind": "NodeNetwork", "metadata": {"name": "n1.example.com"}});
    all.push(accepted("a node", node));
    let kept =
        "address: 10.20.0.14/24, owner: {apiVersion: apps/v1, kind: StatefulSet, namespace: shop, name: web}";
    all.push(after(
        instance("10.20.0.14", kept),
        accepted("a kept address gets its next pod", instance("10.20.0.14", &format!("{kept}, {POD}"))),
    ));
    all
}
