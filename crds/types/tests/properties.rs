//! What must hold for every value of the domain's words, whatever it is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use braid_types::annotation::NetworkChoice;
use braid_types::{
    AddrRange, Asn, Cidr, Family, IfName, IfPattern, InstanceName, Mac, VlanId, Vni, block_name,
    host_veth_name, label_value, vxlan_device_name,
};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|n| IpAddr::V4(Ipv4Addr::from(n))),
        any::<u128>().prop_map(|n| IpAddr::V6(Ipv6Addr::from(n))),
        // Addresses with runs of zeros are those whose text has more than one form.
        any::<[bool; 8]>().prop_map(|g| IpAddr::V6(g.map(|one| u16::from(one) * 0x0af0).into())),
    ]
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (address(), any::<u8>()).prop_filter_map("pods need unicast", |(address, len)| {
        let text = Cidr::containing(address, len % (Family::of(address).bits() + 1))?.to_string();
        text.parse().ok()
    })
}

fn range() -> impl Strategy<Value = AddrRange> {
    (address(), any::<u128>(), 0u32..=128).prop_map(|(first, span, bits)| {
        let family = Family::of(first);
        let most = Family::number(family.addr(u128::MAX));
        let span = span.checked_shr(128 - bits).unwrap_or(0);
        let last = family.addr(Family::number(first).saturating_add(span).min(most));
        AddrRange::new(first, last).expect("the last is not below the first")
    })
}

/// A label or name of a pod: what the API lets through.
fn api_name() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?"
}

proptest! {
    // A failure is shown with its smallest input; nothing is written beside the sources.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_numbers_of_their_family(a in address()) {
        prop_assert_eq!(Family::of(a).addr(Family::number(a)), a);
    }

    #[test]
    fn prefixes_read_what_they_write(c in cidr()) {
        prop_assert_eq!(c.to_string().parse::<Cidr>(), Ok(c));
        prop_assert!(c.contains(c.first()) && c.contains(c.last()));
        prop_assert_eq!(c.range().first(), c.first());
        prop_assert_eq!(Cidr::containing(c.last(), c.prefix_len()), Some(c));
    }

    #[test]
    fn usable_addresses_are_inside_and_all_but_two_at_most(c in cidr()) {
        let usable = c.usable();
        prop_assert!(c.contains(usable.first()) && c.contains(usable.last()));
        prop_assert!(c.size() - usable.size() <= 2);
        prop_assert!(usable.size() >= 1);
    }

    #[test]
    fn prefixes_overlap_when_one_holds_an_end_of_the_other(a in cidr(), b in cidr(), len in 0u8..=128) {
        let near = Cidr::containing(a.first(), len.min(a.family().bits())).expect("fits");
        for (a, b) in [(a, b), (a, near)] {
            let by_ends = a.contains(b.first()) || b.contains(a.first());
            prop_assert_eq!(a.overlaps(&b), by_ends);
            prop_assert_eq!(a.overlaps(&b), a.range().overlaps(&b.range()));
        }
    }

    #[test]
    fn ranges_read_what_they_write(r in range()) {
        prop_assert_eq!(r.to_string().parse::<AddrRange>(), Ok(r));
        prop_assert!(r.contains(r.first()) && r.contains(r.last()));
    }

    #[test]
    fn ranges_meet_where_both_have_the_address(a in range(), b in range(), probe in address()) {
        match a.intersection(&b) {
            Some(both) => {
                prop_assert!(a.overlaps(&b) && b.overlaps(&a));
                for end in [both.first(), both.last()] {
                    prop_assert!(a.contains(end) && b.contains(end));
                }
                prop_assert_eq!(both.contains(probe), a.contains(probe) && b.contains(probe));
                prop_assert!(both.size() <= a.size().min(b.size()));
            }
            None => {
                prop_assert!(!(a.contains(probe) && b.contains(probe)));
                prop_assert!(!a.contains(b.first()) && !b.contains(a.first()));
            }
        }
    }

    #[test]
    fn reading_never_panics(text in "[0-9a-f:./-]{0,60}|\\PC{0,40}") {
        let _ = (text.parse::<Cidr>(), text.parse::<AddrRange>(), text.parse::<Mac>(), text.parse::<InstanceName>());
        let _ = (text.parse::<IfName>(), text.parse::<IfPattern>().map(|p| p.matches(&text)), label_value(&text));
        for key in ["network", "subnet", "ip-family", "ips", "mac", "ip-retain", "networks"] {
            let annotations = [(format!("braid.network/{key}"), text.clone())].into();
            let _ = (NetworkChoice::of_pod(&annotations), braid_types::annotation::secondary(&annotations));
        }
    }

    #[test]
    fn one_address_has_one_instance_name(a in address(), b in address(), space in "([a-z]([-a-z0-9]{0,8}[a-z0-9])?)?") {
        let name = InstanceName::new(&space, a);
        prop_assert_eq!(name.to_string().parse::<InstanceName>(), Ok(name.clone()));
        prop_assert_eq!(InstanceName::new(&space, b).to_string() == name.to_string(), a == b);
        let text = name.to_string();
        prop_assert!(text.len() <= 253 && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c)));
    }

    #[test]
    fn blocks_of_a_subnet_have_different_names(a in cidr(), b in cidr()) {
        prop_assert_eq!(block_name("web", &a) == block_name("web", &b), a == b);
        prop_assert!(block_name(&"s".repeat(63), &a).len() <= 253);
    }

    #[test]
    fn labels_fit_and_stay_apart(a in api_name(), b in api_name()) {
        for text in [&a, &b] {
            let label = label_value(text);
            prop_assert!(label.len() <= 63);
            prop_assert!(label.ends_with(|c: char| c.is_ascii_alphanumeric()));
            prop_assert_eq!(label_value(&label), label.clone(), "a label is its own label");
            prop_assert!(text.len() > 63 || label == *text);
        }
        prop_assert_eq!(label_value(&a) == label_value(&b), a == b);
    }

    #[test]
    fn hardware_addresses_read_what_they_write(octets in any::<[u8; 6]>(), seed in any::<Vec<u8>>()) {
        if let Some(mac) = Mac::new(octets) {
            prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
            prop_assert_eq!(mac.to_string().replace(':', "-").to_uppercase().parse::<Mac>(), Ok(mac));
        } else {
            prop_assert!(octets[0] & 1 == 1 || octets == [0; 6]);
        }
        let derived = Mac::derived(&seed);
        prop_assert_eq!(derived.octets()[0] & 3, 2, "unicast and locally administered");
        prop_assert_eq!(derived, Mac::derived(&seed));
    }

    #[test]
    fn numbers_stay_in_their_range(n in any::<i64>(), small in -5i64..70_000) {
        for n in [n, small] {
            prop_assert_eq!(Vni::try_from(n).map(i64::from).ok(), (1..=16_777_215).contains(&n).then_some(n));
            prop_assert_eq!(VlanId::try_from(n).map(i64::from).ok(), (0..=4094).contains(&n).then_some(n));
            prop_assert_eq!(Asn::try_from(n).map(i64::from).ok(), (1..=4_294_967_294).contains(&n).then_some(n));
        }
    }

    #[test]
    fn device_names_fit_the_kernel(parent in "[a-z][a-z0-9.]{0,14}", vni in 1i64..=16_777_215, container in "[0-9a-f]{64}") {
        let (parent, vni) = (parent.parse::<IfName>().expect("legal"), Vni::try_from(vni).expect("legal"));
        let (device, full) = vxlan_device_name(&parent, vni);
        prop_assert!(device.as_str().parse::<IfName>().is_ok());
        prop_assert_eq!(device.as_str() == full, full.len() <= 15);
        let veth = host_veth_name(&container, "eth0");
        prop_assert!(veth.as_str().parse::<IfName>().is_ok() && veth != host_veth_name(&container, "net1"));
    }

    #[test]
    fn a_pattern_matches_what_it_was_made_from(name in "[a-z][a-z0-9.]{0,14}", cuts in any::<BTreeSet<u8>>()) {
        // Any run of characters may be replaced by a star, and the name still fits.
        let pattern: String = name.char_indices().map(|(i, c)| if cuts.contains(&(i as u8)) { '*' } else { c }).collect();
        prop_assert!(pattern.parse::<IfPattern>().expect("legal").matches(&name), "{pattern} {name}");
    }
}
