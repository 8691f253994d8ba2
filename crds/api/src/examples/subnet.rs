use serde_json::Value;

use super::Noticed::{Rule, Schema};
use super::{Example, Noticed, accepted, after, object, refused};

fn subnet(spec: &str) -> Value {
    object("Subnet", "example", &format!("{{network: lab, {spec}}}"))
}

/// What, spec, who notices, words.
type Row = (&'static str, &'static str, Noticed, &'static str);

const BAD: &[Row] = &[
    ("no CIDR", "vlan: 1", Schema, "spec.cidr: Required value"),
    ("CIDR that is a word", "cidr: everything", Rule, "cidr: write a prefix as address/length"),
    ("CIDR without length", "cidr: 10.244.0.0", Rule, "cidr: write a prefix as address/length"),
    ("CIDR with length 33", "cidr: 10.244.0.0/33", Rule, "cidr: write a prefix as address/length"),
    ("CIDR with a leading zero", "cidr: 010.244.0.0/16", Rule, "cidr: "),
    ("two CIDRs", "cidr: '10.0.0.0/24,fd00::/64'", Rule, "cidr: write a prefix as address/length"),
    (
        "CIDR that is too long",
        "cidr: '0000:0000:0000:0000:0000:0000:0000:0000:0000/64'",
        Schema,
        "may not be more than 43",
    ),
    ("host bits set", "cidr: 10.244.0.1/16", Rule, "cidr: clear the bits behind the prefix length"),
    ("IPv6 host bits set", "cidr: 'fd00::1/64'", Rule, "cidr: clear the bits behind the prefix length"),
    ("IPv6 in capitals", "cidr: 'FD00::/64'", Rule, "use the shortest spelling"),
    ("IPv6 with zeros written out", "cidr: 'fd00:0:0:0::/64'", Rule, "use the shortest spelling"),
    ("IPv4-mapped IPv6", "cidr: '::ffff:0:0/96'", Rule, "IPv4-mapped IPv6 (::ffff:0:0/96) is not possible"),
    (
        "IPv4-mapped IPv6 with dots",
        "cidr: '::ffff:10.0.0.0/104'",
        Rule,
        "IPv4-mapped IPv6 (::ffff:0:0/96) is not possible",
    ),
    ("all of IPv4", "cidr: 0.0.0.0/0", Rule, "cidr: pods cannot have addresses in 0.0.0.0/8"),
    ("all of IPv6", "cidr: '::/0'", Rule, "use another prefix"),
    ("multicast", "cidr: 224.0.0.0/24", Rule, "cidr: pods cannot have addresses in"),
    ("reserved addresses", "cidr: 240.0.0.0/24", Rule, "cidr: pods cannot have addresses in"),
    ("IPv6 multicast", "cidr: 'ff02::/64'", Rule, "cidr: pods cannot have addresses in"),
    ("loopback", "cidr: 127.0.0.0/24", Rule, "cidr: pods cannot have addresses in"),
    ("IPv6 loopback", "cidr: '::1/128'", Rule, "cidr: pods cannot have addresses in"),
    ("link-local", "cidr: 169.254.0.0/16", Rule, "cidr: pods cannot have addresses in"),
    ("IPv6 link-local", "cidr: 'fe80::/64'", Rule, "cidr: pods cannot have addresses in"),
    (
        "a prefix around link-local addresses",
        "cidr: 169.0.0.0/8",
        Rule,
        "cidr: pods cannot have addresses in",
    ),
    (
        "gateway that is a word",
        "cidr: 10.20.0.0/24, gateway: router",
        Rule,
        "gateway: write an address in its shortest spelling",
    ),
    (
        "gateway that is a prefix",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.1/24",
        Rule,
        "gateway: write an address in its shortest spelling",
    ),
    (
        "gateway not in the shortest spelling",
        "cidr: 'fd00::/64', gateway: 'fd00:0::1'",
        Rule,
        "gateway: write an address in its shortest spelling",
    ),
    (
        "gateway of the other family",
        "cidr: 10.20.0.0/24, gateway: 'fd00::1'",
        Rule,
        "gateway: is of another family than the CIDR",
    ),
    (
        "IPv4 gateway of an IPv6 subnet",
        "cidr: 'fd00::/64', gateway: 10.20.0.1",
        Rule,
        "gateway: is of another family than the CIDR",
    ),
    (
        "gateway outside the CIDR",
        "cidr: 10.20.0.0/24, gateway: 10.20.1.1",
        Rule,
        "gateway: must be inside the CIDR",
    ),
    (
        "IPv6 gateway outside the CIDR",
        "cidr: 'fd00::/64', gateway: 'fd00:0:0:1::1'",
        Rule,
        "gateway: must be inside the CIDR",
    ),
    (
        "gateway is the network address",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.0",
        Rule,
        "gateway: is the first address of the CIDR",
    ),
    (
        "gateway is the anycast address",
        "cidr: 'fd00::/64', gateway: 'fd00::'",
        Rule,
        "gateway: is the first address of the CIDR",
    ),
    (
        "gateway is the broadcast address",
        "cidr: 10.20.0.0/22, gateway: 10.20.3.255",
        Rule,
        "gateway: is the broadcast address",
    ),
    (
        "gateway is the broadcast address of a /30",
        "cidr: 10.20.0.4/30, gateway: 10.20.0.7",
        Rule,
        "gateway: is the broadcast address",
    ),
    (
        "range that is a word",
        "cidr: 10.20.0.0/24, ranges: [all]",
        Rule,
        "ranges: each entry is an address or first-last",
    ),
    (
        "range that is a prefix",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.64/26]",
        Rule,
        "ranges: each entry is an address or first-last",
    ),
    (
        "range with three ends",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.1-10.20.0.2-10.20.0.3]",
        Rule,
        "ranges: each entry is an address or first-last",
    ),
    ("range with blanks", "cidr: 10.20.0.0/24, ranges: ['10.20.0.1 - 10.20.0.9']", Rule, "without blanks"),
    (
        "range with an open end",
        "cidr: 10.20.0.0/24, ranges: ['10.20.0.1-']",
        Rule,
        "ranges: each entry is an address or first-last",
    ),
    (
        "range that ends before it starts",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.100-10.20.0.20]",
        Rule,
        "ranges: a range ends before it starts; swap",
    ),
    (
        "IPv6 range that ends before it starts",
        "cidr: 'fd00::/64', ranges: ['fd00::1:0-fd00::ffff']",
        Rule,
        "ranges: a range ends before it starts; swap",
    ),
    (
        "IPv6 range that ends before it starts, far up",
        "cidr: '2001:db8::/32', ranges: ['2001:db8:8000::-2001:db8:7fff:ffff::']",
        Rule,
        "ranges: a range ends before it starts; swap",
    ),
    (
        "range outside the CIDR",
        "cidr: 10.20.0.0/24, ranges: [10.20.1.1-10.20.1.9]",
        Rule,
        "ranges: each entry must be inside the CIDR",
    ),
    (
        "range that leaves the CIDR",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.250-10.20.1.9]",
        Rule,
        "ranges: each entry must be inside the CIDR",
    ),
    (
        "range of the other family",
        "cidr: 10.20.0.0/24, ranges: ['fd00::1-fd00::9']",
        Rule,
        "inside the CIDR and of its family",
    ),
    (
        "range of both families",
        "cidr: 10.20.0.0/24, ranges: ['10.20.0.1-fd00::9']",
        Rule,
        "inside the CIDR and of its family",
    ),
    (
        "overlapping ranges",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.1-10.20.0.50, 10.20.0.40-10.20.0.90]",
        Rule,
        "ranges: two of them overlap; join them",
    ),
    (
        "ranges that share one address",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.9-10.20.0.20, 10.20.0.1-10.20.0.9]",
        Rule,
        "ranges: two of them overlap",
    ),
    (
        "a range within another",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.1-10.20.0.90, 10.20.0.7]",
        Rule,
        "ranges: two of them overlap",
    ),
    (
        "the same address in two spellings of a range",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.7, 10.20.0.7-10.20.0.7]",
        Rule,
        "ranges: two of them overlap",
    ),
    (
        "overlapping IPv6 ranges",
        "cidr: 'fd00::/64', ranges: ['fd00::1-fd00::ff', 'fd00::f0-fd00::1:0:0']",
        Rule,
        "ranges: two of them overlap",
    ),
    ("the same range twice", "cidr: 10.20.0.0/24, ranges: [10.20.0.7, 10.20.0.7]", Schema, "Duplicate value"),
    (
        "33 ranges",
        "cidr: 10.20.0.0/24, ranges: [a1, a2, a3, a4, a5, a6, a7, a8, a9, b1, b2, b3, b4, b5, b6, b7, b8, b9, c1, c2, c3, c4, c5, c6, c7, c8, c9, d1, d2, d3, d4, d5, d6]",
        Schema,
        "must have at most 32 items",
    ),
    (
        "excluded address that is a word",
        "cidr: 10.20.0.0/24, excludedIPs: [printer]",
        Rule,
        "excludedIPs: each entry is an address, first-last or a prefix",
    ),
    (
        "excluded address outside the CIDR",
        "cidr: 10.20.0.0/24, excludedIPs: [10.20.1.1]",
        Rule,
        "excludedIPs: each entry must be inside the CIDR",
    ),
    (
        "excluded prefix larger than the CIDR",
        "cidr: 10.20.0.0/24, excludedIPs: [10.20.0.0/16]",
        Rule,
        "excludedIPs: each entry must be inside the CIDR",
    ),
    (
        "excluded prefix with host bits",
        "cidr: 10.20.0.0/24, excludedIPs: [10.20.0.1/28]",
        Rule,
        "excludedIPs: each entry is an address, first-last or a prefix",
    ),
    (
        "excluded range that ends before it starts",
        "cidr: 10.20.0.0/24, excludedIPs: [10.20.0.9-10.20.0.1]",
        Rule,
        "excludedIPs: a range ends before it starts",
    ),
    (
        "excluded address of the other family",
        "cidr: 'fd00::/64', excludedIPs: [10.20.0.1]",
        Rule,
        "excludedIPs: each entry must be inside the CIDR and of its family",
    ),
    (
        "reserved address outside the CIDR",
        "cidr: 10.20.0.0/24, reservedIPs: [10.21.0.1]",
        Rule,
        "reservedIPs: each entry must be inside the CIDR",
    ),
    (
        "reserved range that ends before it starts",
        "cidr: 'fd00::/64', reservedIPs: ['fd00::b-fd00::a']",
        Rule,
        "reservedIPs: a range ends before it starts",
    ),
    (
        "reserved address not in the shortest spelling",
        "cidr: 'fd00::/64', reservedIPs: ['fd00::0a']",
        Rule,
        "reservedIPs: each entry is an address, first-last or a prefix",
    ),
    (
        "VLAN id 4095",
        "cidr: 10.20.0.0/24, vlan: 4095",
        Schema,
        "spec.vlan in body should be less than or equal to 4094",
    ),
    (
        "blocks larger than the CIDR",
        "cidr: 10.20.0.0/24, blockSize: 20",
        Rule,
        "blockSize: use the prefix length of the CIDR",
    ),
    (
        "blocks smaller than an address",
        "cidr: 10.20.0.0/24, blockSize: 33",
        Rule,
        "32 for IPv4 or 128 for IPv6",
    ),
    (
        "block size 0",
        "cidr: 10.20.0.0/24, blockSize: 0",
        Schema,
        "spec.blockSize in body should be greater than or equal to 1",
    ),
    ("block size 129", "cidr: 'fd00::/64', blockSize: 129", Schema, "should be less than or equal to 128"),
    ("private that is a word", "cidr: 10.20.0.0/24, private: 'yes'", Schema, "must be of type boolean"),
];

/// What, spec before, spec after, words.
const CHANGED: &[(&str, &str, &str, &str)] = &[
    (
        "another CIDR",
        "cidr: 10.20.0.0/24",
        "cidr: 10.21.0.0/24",
        "cidr: cannot be changed; make a new Subnet",
    ),
    ("a larger CIDR", "cidr: 10.20.0.0/24", "cidr: 10.20.0.0/16", "cidr: cannot be changed"),
    (
        "another gateway",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.1",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.2",
        "gateway: cannot be changed",
    ),
    (
        "a gateway where none was",
        "cidr: 10.20.0.0/24",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.2",
        "gateway: cannot be changed",
    ),
    (
        "a gateway taken away",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.1",
        "cidr: 10.20.0.0/24",
        "gateway: cannot be changed",
    ),
    (
        "another VLAN id",
        "cidr: 10.20.0.0/24, vlan: 20",
        "cidr: 10.20.0.0/24, vlan: 30",
        "vlan: cannot be changed",
    ),
    (
        "another block size",
        "cidr: 10.20.0.0/24",
        "cidr: 10.20.0.0/24, blockSize: 28",
        "blockSize: cannot be changed",
    ),
];

const GOOD: &[(&str, &str)] = &[
    ("IPv4", "cidr: 10.244.0.0/16, natOutgoing: true"),
    ("IPv6", "cidr: 'fd00:10:244::/64'"),
    ("a whole IPv6 /48", "cidr: '2001:db8:1::/48', blockSize: 112"),
    (
        "everything",
        "cidr: 10.20.0.0/24, gateway: 10.20.0.1, ranges: [10.20.0.10-10.20.0.99, 10.20.0.100, 10.20.0.120-10.20.0.130], excludedIPs: [10.20.0.20, 10.20.0.64/28, 10.20.0.30-10.20.0.33], reservedIPs: [10.20.0.50], vlan: 20, blockSize: 28, private: true",
    ),
    (
        "IPv6 ranges",
        "cidr: '2001:db8::/32', gateway: '2001:db8::1', ranges: ['2001:db8::10-2001:db8::ff', '2001:db8::100-2001:db8:8000::', '2001:db8:8000::1', '2001:db8:ffff::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff']",
    ),
    (
        "ranges in any order",
        "cidr: 10.20.0.0/16, ranges: [10.20.200.1-10.20.200.9, 10.20.3.1-10.20.20.9, 10.20.2.250-10.20.3.0]",
    ),
    ("both addresses of a /31", "cidr: 10.20.0.4/31, gateway: 10.20.0.4"),
    ("the last address of a /31 as gateway", "cidr: 10.20.0.4/31, gateway: 10.20.0.5"),
    ("one address", "cidr: 10.20.0.4/32"),
    (
        "the last address of an IPv6 prefix as gateway",
        "cidr: 'fd00::/64', gateway: 'fd00::ffff:ffff:ffff:ffff'",
    ),
    ("an address that ends in 255 within a larger prefix", "cidr: 10.20.0.0/22, gateway: 10.20.1.255"),
    ("one block for all", "cidr: 10.20.0.0/24, blockSize: 24"),
    ("one address per block", "cidr: 'fd00::/120', blockSize: 128"),
    ("VLAN 0", "cidr: 10.20.0.0/24, vlan: 0"),
];

const GROWN: &[(&str, &str, &str)] = &[
    (
        "more ranges",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.1]",
        "cidr: 10.20.0.0/24, ranges: [10.20.0.1, 10.20.0.5-10.20.0.9]",
    ),
    (
        "excluded and private",
        "cidr: 10.20.0.0/24",
        "cidr: 10.20.0.0/24, excludedIPs: [10.20.0.9], private: true, natOutgoing: true",
    ),
];

pub(super) fn bad() -> Vec<Example> {
    let long = "s".repeat(64);
    let name = |what, name: &str| {
        let named = object("Subnet", name, "{network: lab, cidr: 10.20.0.0/24}");
        refused(what, named, Rule, "metadata.name: use at most 63 lower-case letters")
    };
    let network = |spec: &str| object("Subnet", "example", spec);
    let mut all: Vec<Example> =
        BAD.iter().map(|(what, spec, by, says)| refused(what, subnet(spec), *by, says)).collect();
    all.extend(
        CHANGED
            .iter()
            .map(|(what, old, new, says)| after(subnet(old), refused(what, subnet(new), Rule, says))),
    );
    all.push(name("a name of 64 characters", &long));
    all.push(name("a name with a dot", "sub.net"));
    all.push(refused("no Network", network("{cidr: 10.20.0.0/24}"), Schema, "spec.network: Required value"));
    all.push(after(
        network("{network: a, cidr: 10.20.0.0/24}"),
        refused(
            "another Network",
            network("{network: b, cidr: 10.20.0.0/24}"),
            Rule,
            "network: cannot be changed",
        ),
    ));
    all
}

pub(super) fn good() -> Vec<Example> {
    let mut all: Vec<Example> = GOOD.iter().map(|(what, spec)| accepted(what, subnet(spec))).collect();
    all.extend(GROWN.iter().map(|(what, old, new)| after(subnet(old), accepted(what, subnet(new)))));
    all
}
