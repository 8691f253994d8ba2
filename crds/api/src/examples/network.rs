use serde_json::Value;

use super::Noticed::{Rule, Schema};
use super::{Example, Noticed, accepted, after, object, refused};

fn net(spec: &str) -> Value {
    object("Network", "example", spec)
}

/// What, spec, who notices, words.
type Row = (&'static str, &'static str, Noticed, &'static str);

const BAD: &[Row] = &[
    ("no type", "{vxlan: {vni: 4}}", Schema, "spec.type: Required value"),
    ("a type that does not exist", "{type: GENEVE}", Schema, "spec.type: Unsupported value: \"GENEVE\""),
    ("a type in lower case", "{type: vxlan, vxlan: {vni: 4}}", Schema, "Unsupported value: \"vxlan\""),
    ("VXLAN without its member", "{type: VXLAN}", Rule, "type VXLAN needs the member vxlan with a vni"),
    ("VXLAN without VNI", "{type: VXLAN, vxlan: {}}", Schema, "spec.vxlan.vni: Required value"),
    (
        "VNI 0",
        "{type: VXLAN, vxlan: {vni: 0}}",
        Schema,
        "spec.vxlan.vni in body should be greater than or equal to 1",
    ),
    (
        "VNI of 25 bits",
        "{type: VXLAN, vxlan: {vni: 16777216}}",
        Schema,
        "should be less than or equal to 16777215",
    ),
    ("negative VNI", "{type: VXLAN, vxlan: {vni: -1}}", Schema, "should be greater than or equal to 1"),
    ("VNI as text", "{type: VXLAN, vxlan: {vni: '4'}}", Schema, "must be of type integer"),
    (
        "port 0",
        "{type: VXLAN, vxlan: {vni: 4, port: 0}}",
        Schema,
        "spec.vxlan.port in body should be greater than or equal to 1",
    ),
    (
        "port of 17 bits",
        "{type: VXLAN, vxlan: {vni: 4, port: 65536}}",
        Schema,
        "should be less than or equal to 65535",
    ),
    (
        "encapsulation that does not exist",
        "{type: VXLAN, vxlan: {vni: 4, encapsulation: Never}}",
        Schema,
        "Unsupported value: \"Never\"",
    ),
    (
        "two modes at once",
        "{type: VXLAN, vxlan: {vni: 4}, vlan: {id: 20}}",
        Rule,
        "vlan: only Networks of type VLAN have it",
    ),
    (
        "the member of another type",
        "{type: VLAN, vxlan: {vni: 4}}",
        Rule,
        "vxlan: only Networks of type VXLAN have it",
    ),
    (
        "BGP settings on a bridge",
        "{type: Bridge, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002}]}}",
        Rule,
        "bgp: only Networks of type BGP have it",
    ),
    (
        "direct settings on IPIP",
        "{type: IPIP, direct: {}}",
        Rule,
        "direct: only Networks of type Direct have it",
    ),
    (
        "macvlan settings on ipvlan",
        "{type: IPVLAN, macvlan: {}}",
        Rule,
        "macvlan: only Networks of type MACVLAN have it",
    ),
    (
        "ipvlan settings on macvlan",
        "{type: MACVLAN, ipvlan: {}}",
        Rule,
        "ipvlan: only Networks of type IPVLAN have it",
    ),
    ("IPIP settings on UDP", "{type: UDP, ipip: {}}", Rule, "ipip: only Networks of type IPIP have it"),
    (
        "UDP settings on IPIP",
        "{type: IPIP, udp: {port: 8285}}",
        Rule,
        "udp: only Networks of type UDP have it",
    ),
    (
        "bridge settings on Direct",
        "{type: Direct, bridge: {}}",
        Rule,
        "bridge: only Networks of type Bridge have it",
    ),
    (
        "MTU that IPv6 cannot have",
        "{type: VXLAN, vxlan: {vni: 4}, mtu: 1000}",
        Rule,
        "mtu: use 0 (found out by itself) or 1280 to 65535",
    ),
    (
        "MTU of 17 bits",
        "{type: VXLAN, vxlan: {vni: 4}, mtu: 70000}",
        Schema,
        "should be less than or equal to 65535",
    ),
    (
        "address space of an overlay",
        "{type: VXLAN, vxlan: {vni: 4}, addressSpace: lab}",
        Rule,
        "addressSpace: only Networks of type MACVLAN, IPVLAN and Bridge",
    ),
    (
        "address space of a VLAN",
        "{type: VLAN, addressSpace: lab}",
        Rule,
        "addressSpace: only Networks of type MACVLAN, IPVLAN and Bridge",
    ),
    (
        "address space with a dot",
        "{type: Bridge, addressSpace: a.b}",
        Rule,
        "addressSpace: use lower-case letters, digits and dashes",
    ),
    (
        "address space that looks like a number",
        "{type: Bridge, addressSpace: '10'}",
        Rule,
        "with a letter at the start",
    ),
    (
        "address space that is too long",
        "{type: Bridge, addressSpace: abcdefghijklmnopqrstuvwxyzabcdefg}",
        Schema,
        "may not be more than 32",
    ),
    (
        "VLAN id 4095",
        "{type: VLAN, vlan: {id: 4095}}",
        Schema,
        "spec.vlan.id in body should be less than or equal to 4094",
    ),
    ("negative VLAN id", "{type: VLAN, vlan: {id: -1}}", Schema, "should be greater than or equal to 0"),
    (
        "macvlan with VLAN id 5000",
        "{type: MACVLAN, macvlan: {id: 5000}}",
        Schema,
        "should be less than or equal to 4094",
    ),
    (
        "macvlan mode that does not exist",
        "{type: MACVLAN, macvlan: {mode: Passthru}}",
        Schema,
        "Unsupported value: \"Passthru\"",
    ),
    (
        "device name with a slash",
        "{type: VXLAN, vxlan: {vni: 4, interfaces: [eth/0]}}",
        Rule,
        "interfaces: each entry is a device name of at most 15 characters",
    ),
    (
        "device name with a blank",
        "{type: VLAN, vlan: {interfaces: ['eth 0']}}",
        Rule,
        "interfaces: each entry is a device name",
    ),
    (
        "device name of 16 characters",
        "{type: Direct, direct: {interfaces: [abcdefghijklmnop]}}",
        Rule,
        "at most 15 characters",
    ),
    (
        "device name of two dots",
        "{type: IPVLAN, ipvlan: {interfaces: ['..']}}",
        Rule,
        "interfaces: each entry is a device name",
    ),
    (
        "empty device name",
        "{type: IPIP, ipip: {interfaces: ['']}}",
        Schema,
        "should be at least 1 chars long",
    ),
    (
        "17 devices",
        "{type: Bridge, bridge: {interfaces: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q]}}",
        Schema,
        "must have at most 16 items",
    ),
    ("UDP port 0", "{type: UDP, udp: {port: 0}}", Schema, "should be greater than or equal to 1"),
    ("BGP without its member", "{type: BGP}", Rule, "type BGP needs the member bgp with an asn and peers"),
    (
        "BGP without peers",
        "{type: BGP, bgp: {asn: 65001, peers: []}}",
        Schema,
        "spec.bgp.peers in body should have at least 1 items",
    ),
    (
        "ASN 0",
        "{type: BGP, bgp: {asn: 0, peers: [{address: 10.0.0.1, asn: 65002}]}}",
        Schema,
        "spec.bgp.asn in body should be greater than or equal to 1",
    ),
    (
        "ASN of all ones",
        "{type: BGP, bgp: {asn: 4294967295, peers: [{address: 10.0.0.1, asn: 65002}]}}",
        Schema,
        "should be less than or equal to 4294967294",
    ),
    (
        "peer that is a name",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: router1, asn: 65002}]}}",
        Rule,
        "address: write the address of the router",
    ),
    (
        "peer with a port of 17 bits",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, port: 70000}]}}",
        Schema,
        "should be less than or equal to 65535",
    ),
    (
        "the same peer twice",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002}, {address: 10.0.0.1, asn: 65003}]}}",
        Schema,
        "Duplicate value",
    ),
    (
        "hold time of a second",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, holdTime: 1}]}}",
        Rule,
        "holdTime: use 0 (never) or 3 to 65535 seconds",
    ),
    (
        "community that is a word",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, communities: [no-export]}]}}",
        Rule,
        "communities: write each one as asn:value",
    ),
    (
        "community out of range",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, communities: ['65001:70000']}]}}",
        Rule,
        "numbers up to 65535",
    ),
    (
        "restart time of 13 bits",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, gracefulRestart: {restartTime: 4096}}]}}",
        Schema,
        "should be less than or equal to 4095",
    ),
    (
        "BFD every millisecond",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, bfd: {minTransmitInterval: 1}}]}}",
        Schema,
        "should be greater than or equal to 10",
    ),
    (
        "hops 0",
        "{type: BGP, bgp: {asn: 65001, peers: [{address: 10.0.0.1, asn: 65002, ebgpMultihop: 0}]}}",
        Schema,
        "should be greater than or equal to 1",
    ),
    (
        "selector with In and no values",
        "{type: VLAN, nodeSelector: {matchExpressions: [{key: zone, operator: In}]}}",
        Rule,
        "values: operators In and NotIn need at least one value",
    ),
    (
        "selector with Exists and values",
        "{type: VLAN, nodeSelector: {matchExpressions: [{key: zone, operator: Exists, values: [a]}]}}",
        Rule,
        "Exists and DoesNotExist take none",
    ),
    (
        "selector with an operator that does not exist",
        "{type: VLAN, nodeSelector: {matchExpressions: [{key: zone, operator: Gt, values: ['1']}]}}",
        Schema,
        "Unsupported value: \"Gt\"",
    ),
    (
        "selector with a key of blanks",
        "{type: VLAN, allowedNamespaces: {matchExpressions: [{key: 'a b', operator: Exists}]}}",
        Rule,
        "key: is not the key of a label",
    ),
];

/// What, spec before, spec after, words.
const CHANGED: &[(&str, &str, &str, &str)] = &[
    ("another type", "{type: VLAN}", "{type: MACVLAN}", "type: cannot be changed; make a new Network"),
    (
        "another VNI",
        "{type: VXLAN, vxlan: {vni: 4}}",
        "{type: VXLAN, vxlan: {vni: 5}}",
        "vxlan.vni: cannot be changed",
    ),
    (
        "another VXLAN port",
        "{type: VXLAN, vxlan: {vni: 4}}",
        "{type: VXLAN, vxlan: {vni: 4, port: 4789}}",
        "vxlan.port: cannot be changed",
    ),
    (
        "another VLAN id",
        "{type: VLAN, vlan: {id: 20}}",
        "{type: VLAN, vlan: {id: 30}}",
        "vlan.id: cannot be changed",
    ),
    (
        "a VLAN id where none was",
        "{type: VLAN}",
        "{type: VLAN, vlan: {id: 20}}",
        "vlan.id: cannot be changed",
    ),
    (
        "a VLAN id taken away",
        "{type: MACVLAN, macvlan: {id: 20}}",
        "{type: MACVLAN, macvlan: {}}",
        "macvlan.id: cannot be changed",
    ),
    (
        "another ipvlan VLAN id",
        "{type: IPVLAN, ipvlan: {id: 20}}",
        "{type: IPVLAN, ipvlan: {id: 0}}",
        "ipvlan.id: cannot be changed",
    ),
    (
        "another UDP port",
        "{type: UDP, udp: {port: 1}}",
        "{type: UDP, udp: {port: 2}}",
        "udp.port: cannot be changed",
    ),
    (
        "another address space",
        "{type: Bridge, addressSpace: a}",
        "{type: Bridge, addressSpace: b}",
        "addressSpace: cannot be changed",
    ),
    (
        "an address space taken away",
        "{type: Bridge, addressSpace: a}",
        "{type: Bridge}",
        "addressSpace: cannot be changed",
    ),
];

const GOOD: &[(&str, &str)] = &[
    ("an overlay", "{type: VXLAN, default: true, vxlan: {vni: 4}}"),
    (
        "an overlay with everything",
        "{type: VXLAN, default: false, mtu: 1400, nodeSelector: {matchLabels: {zone: a}, matchExpressions: [{key: example.com/disk, operator: In, values: [ssd]}]}, allowedNamespaces: {matchLabels: {team: shop}}, vxlan: {vni: 16777215, port: 4789, encapsulation: CrossSubnet, interfaces: [bond0, 'eth*', '*']}}",
    ),
    ("a VLAN network", "{type: VLAN, vlan: {interfaces: [bond0], id: 20}}"),
    ("a VLAN network whose Subnets say the id", "{type: VLAN}"),
    (
        "BGP",
        "{type: BGP, bgp: {asn: 65001, scope: Rack, advertise: Hosts, interfaces: [eth0], peers: [{address: 10.0.0.1, asn: 65002, port: 1179, passwordSecretRef: {name: bgp}, nodeSelector: {matchLabels: {rack: r1}}, gracefulRestart: {restartTime: 60}, holdTime: 9, bfd: {minTransmitInterval: 50}, ebgpMultihop: 4, communities: ['65001:100', '65001:1:4294967295'], routesTraffic: false, mustBeEstablished: true}, {address: 'fd00::1', asn: 4294967294}]}}",
    ),
    ("direct routes", "{type: Direct, direct: {interfaces: ['en*']}}"),
    ("macvlan in its own space", "{type: MACVLAN, addressSpace: lab, macvlan: {mode: Vepa, id: 0}}"),
    ("ipvlan", "{type: IPVLAN, ipvlan: {id: 4094}}"),
    ("IPIP", "{type: IPIP, ipip: {encapsulation: CrossSubnet}}"),
    ("UDP", "{type: UDP, udp: {}}"),
    ("a bridge", "{type: Bridge, bridge: {}}"),
    ("an explicit null", "{type: VLAN, vlan: null}"),
];

/// Changes that are allowed.
const GROWN: &[(&str, &str, &str)] = &[
    (
        "no longer the default",
        "{type: VXLAN, default: true, vxlan: {vni: 4}}",
        "{type: VXLAN, vxlan: {vni: 4}}",
    ),
    (
        "other nodes and devices",
        "{type: VXLAN, vxlan: {vni: 4}}",
        "{type: VXLAN, nodeSelector: {matchLabels: {a: b}}, mtu: 1400, vxlan: {vni: 4, interfaces: [eth1], encapsulation: CrossSubnet}}",
    ),
    (
        "the port that is the default anyway",
        "{type: VXLAN, vxlan: {vni: 4}}",
        "{type: VXLAN, vxlan: {vni: 4, port: 8472}}",
    ),
];

pub(super) fn bad() -> Vec<Example> {
    let long = "n".repeat(64);
    let vxlan = "{type: VXLAN, vxlan: {vni: 4}}";
    let named = |what, name: &str| {
        refused(
            what,
            object("Network", name, vxlan),
            Rule,
            "metadata.name: use at most 63 lower-case letters",
        )
    };
    let mut all: Vec<Example> =
        BAD.iter().map(|(what, spec, by, says)| refused(what, net(spec), *by, says)).collect();
    all.extend(
        CHANGED.iter().map(|(what, old, new, says)| after(net(old), refused(what, net(new), Rule, says))),
    );
    all.push(named("a name of 64 characters", &long));
    all.push(named("a name with a dot", "over.lay"));
    all
}

pub(super) fn good() -> Vec<Example> {
    let mut all: Vec<Example> = GOOD.iter().map(|(what, spec)| accepted(what, net(spec))).collect();
    all.extend(GROWN.iter().map(|(what, old, new)| after(net(old), accepted(what, net(new)))));
    all
}
