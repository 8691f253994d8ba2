//! Pods and workloads before they exist.

use std::collections::BTreeMap;

use braid_controller_core::admission::{Admitted, Namespace, NewPod, Shape, Surge, Workload, admit};
use braid_controller_core::ipam::Lists;
use braid_controller_core::{Choice, FamilyWish, Ipam, Keep, PodRequest};
use braid_types::model::{InstanceDef, NetworkDef, NetworkType, OwnerRef, Phase, SubnetDef};
use braid_types::well_known::annotation;
use braid_types::{Family, Operator, Requirement, Selector};
use proptest::prelude::*;

use crate::cluster::{give, lists, network, ranges, request, start, subnet};

fn on_n1() -> Selector {
    Selector { match_labels: BTreeMap::from([("name".into(), "n1".into())]), ..Selector::default() }
}

fn team() -> Selector {
    let requirement = Requirement { key: "team".into(), operator: Operator::Exists, values: Vec::new() };
    Selector { match_expressions: vec![requirement], ..Selector::default() }
}

/// A default overlay, a Network for one node, one for teams, one that is new, one that cannot be realised.
fn several() -> Lists {
    let mut lists = lists("10.0.0.0/24", "fd00::/120");
    lists.networks.extend([
        NetworkDef { nodes: on_n1(), ..network("lab", 5) },
        NetworkDef { namespaces: Some(team()), ..network("team", 6) },
        NetworkDef { ready: false, ..network("fresh", 7) },
        NetworkDef { kind: NetworkType::Macvlan, vxlan: None, ..network("office", 8) },
        NetworkDef { created: 200, ..network("twin", 4) },
    ]);
    lists.subnets.extend([
        subnet("lab4", "lab", "10.1.0.0/24"),
        SubnetDef { private: true, ..subnet("lab4-private", "lab", "10.11.0.0/24") },
        subnet("lab6", "lab", "fd01::/120"),
        SubnetDef { excluded: ranges(&["10.2.0.8-10.2.0.15"]), ..subnet("team4", "team", "10.2.0.0/24") },
        subnet("fresh4", "fresh", "10.3.0.0/24"),
    ]);
    lists
}

fn at(network: &str) -> Choice {
    Choice { network: Some(network.to_owned()), ..Choice::default() }
}

fn of(subnets: &[&str]) -> Choice {
    Choice { subnets: subnets.iter().map(|s| (*s).to_owned()).collect(), ..Choice::default() }
}

fn ips(texts: &[&str]) -> Choice {
    Choice { ips: ranges(texts), ..Choice::default() }
}

fn families(wish: FamilyWish, choice: Choice) -> Choice {
    Choice { family: Some(wish), ..choice }
}

const NO_LABELS: &BTreeMap<String, String> = &BTreeMap::new();

/// A pod of the namespace `shop` without a name.
fn new<'a>(pod: &'a Choice, namespace: &'a Choice) -> NewPod<'a> {
    let namespace = Namespace { name: "shop", labels: Some(NO_LABELS), choice: namespace };
    NewPod { namespace, name: "", choice: pod, interface: "eth0", owner: None, node: None }
}

fn judge(ipam: &Ipam, pod: &Choice, namespace: &Choice) -> Result<Admitted, String> {
    admit(ipam, &new(pod, namespace)).map_err(|refusal| refusal.to_string())
}

fn written(admitted: &Admitted) -> Vec<(&'static str, &str)> {
    admitted.annotations.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

#[test]
fn what_the_levels_below_say_is_written_and_the_networks_nodes_are_wanted() {
    let (ipam, _) = start(several());
    let nothing = Choice::default();
    let judge = |pod: &Choice, namespace: &Choice| {
        let admitted = judge(&ipam, pod, namespace).unwrap();
        assert_eq!(admitted.warnings, Vec::<String>::new());
        admitted
    };
    let default = judge(&nothing, &nothing);
    assert_eq!(written(&default), [(annotation::NETWORK, "overlay")]);
    assert_eq!(default.nodes, Selector::default());

    let by_namespace = judge(&nothing, &at("lab"));
    assert_eq!(written(&by_namespace), [(annotation::NETWORK, "lab")]);
    assert_eq!(by_namespace.nodes, on_n1());

    // A level counts as a whole: all of it is written.
    let only = FamilyWish::Only(Family::V4);
    let all = judge(&nothing, &families(only, of(&["lab4-private"])));
    let lines =
        [(annotation::IP_FAMILY, "IPv4"), (annotation::NETWORK, "lab"), (annotation::SUBNET, "lab4-private")];
    assert_eq!(written(&all), lines);
    // The pod's own word on families stays its own.
    let own = judge(&families(FamilyWish::PreferDualStack, Choice::default()), &families(only, at("lab")));
    assert_eq!(written(&own), [(annotation::NETWORK, "lab")]);

    for own in [at("lab"), of(&["lab4"]), ips(&["10.1.0.7"])] {
        let admitted = judge(&own, &at("overlay"));
        assert_eq!((written(&admitted), &admitted.nodes), (vec![], &on_n1()), "{own:?}");
    }
}

#[test]
fn contradictions_are_refused_with_the_sentence_of_the_grant() {
    let (mut ipam, restored) = start(several());
    let both = |choice: Choice, net: &str| Choice { network: Some(net.to_owned()), ..choice };
    let cases = [
        (at("office"), "type MACVLAN"),
        (at("team"), "namespace shop may not use Network team"),
        (both(of(&["lab4"]), "overlay"), "Subnet lab4 belongs to Network lab, not to overlay"),
        (families(FamilyWish::Only(Family::V6), ips(&["10.0.0.9"])), "10.0.0.9 is IPv4"),
        (ips(&["10.99.0.1"]), "10.99.0.1 is in no Subnet of any Network"),
        (both(ips(&["10.99.0.1"]), "lab"), "10.99.0.1 is in no Subnet of Network lab"),
        (both(ips(&["10.0.0.9", "fd99::1"]), "overlay"), "fd99::1 is in no Subnet of Network overlay"),
        (ips(&["10.0.0.255"]), "never given out by Subnet v4"),
    ];
    for (choice, part) in cases {
        let sentence = judge(&ipam, &choice, &Choice::default()).expect_err(part);
        assert!(sentence.contains(part), "{sentence}");
        let bound = PodRequest { choice, ..request(1, "n1") };
        assert_eq!(ipam.grant(&restored, &bound).unwrap_err().to_string(), sentence);
    }
}

#[test]
fn what_may_pass_by_itself_is_a_warning() {
    let mut lists = several();
    lists.subnets.push(SubnetDef { ready: false, ..subnet("lab4-new", "lab", "10.12.0.0/24") });
    lists
        .subnets
        .push(SubnetDef { ranges: ranges(&["10.13.0.1"]), ..subnet("tiny", "twig", "10.13.0.0/24") });
    lists.networks.push(network("twig", 9));
    lists.networks.push(network("bare", 10));
    let (mut ipam, restored) = start(lists);
    give(&mut ipam, &restored, &PodRequest { choice: at("twig"), ..request(1, "n2") });
    let both = |choice: Choice, net: &str| Choice { network: Some(net.to_owned()), ..choice };
    let cases = [
        (at("nope"), "Network nope does not exist"),
        (of(&["nope"]), "Subnet nope does not exist"),
        (both(of(&["nope"]), "lab"), "Subnet nope does not exist"),
        (at("fresh"), "Network fresh is not ready"),
        (at("twin"), "VNI 4 is used by the older Network overlay"),
        (at("bare"), "Network bare has no Subnet"),
        (both(ips(&["10.99.0.1"]), "bare"), "Network bare has no Subnet for IPv4"),
        (families(FamilyWish::DualStack, at("twig")), "has no Subnet for IPv6"),
        (ips(&["10.12.0.7"]), "10.12.0.7 is in no Subnet of Network lab"),
        (at("twig"), "Subnet tiny is full"),
        (ips(&["10.13.0.1"]), "held by pod shop/web-1 on node n2"),
    ];
    for (choice, part) in cases {
        let admitted = judge(&ipam, &choice, &Choice::default()).unwrap_or_else(|e| panic!("{part}: {e}"));
        assert!(admitted.warnings.iter().any(|w| w.contains(part)), "{part}: {admitted:?}");
    }
    // No Subnet of the family anywhere: the cluster is still being set up.
    let (early, _) = start(Lists { subnets: vec![subnet("v4", "overlay", "10.0.0.0/24")], ..several() });
    let admitted = judge(&early, &ips(&["fd99::1"]), &Choice::default()).unwrap();
    assert!(admitted.warnings[0].contains("fd99::1 is in no Subnet of any Network"), "{admitted:?}");
    // What the namespace says is written as soon as the Network is there, ready or not.
    let written = |namespace: &Choice| judge(&ipam, &Choice::default(), namespace).unwrap().annotations.len();
    assert_eq!((written(&at("nope")), written(&of(&["nope"])), written(&at("fresh"))), (0, 0, 1));
}

#[test]
fn nobody_is_tied_to_a_default_that_has_lost() {
    let mut lists = several();
    lists.networks[0].default = false;
    for default in ["office", "twin"] {
        let mut lists = lists.clone();
        lists.networks.iter_mut().for_each(|n| n.default = n.name == default);
        let (ipam, _) = start(lists);
        let admitted = judge(&ipam, &Choice::default(), &Choice::default()).unwrap();
        assert_eq!((admitted.annotations.len(), admitted.warnings.len()), (0, 1), "{admitted:?}");
    }
    let (ipam, _) = start(lists);
    let admitted = judge(&ipam, &Choice::default(), &Choice::default()).unwrap();
    assert!(admitted.annotations.is_empty() && admitted.warnings[0].contains("no Network is chosen"));
}

#[test]
fn a_namespace_that_was_not_seen_yet_keeps_nobody_out_and_may_say_anything() {
    let (ipam, _) = start(several());
    let (choice, nothing) = (at("team"), Choice::default());
    let namespace = Namespace { name: "shop", labels: None, choice: &nothing };
    let judge = |choice| admit(&ipam, &NewPod { namespace, ..new(choice, &nothing) }).unwrap();
    assert_eq!(judge(&choice).warnings, Vec::<String>::new());
    assert_eq!(judge(&nothing), Admitted::default(), "the default may not be meant");
}

#[test]
fn a_pod_with_a_node_is_judged_by_it_and_not_moved() {
    let (ipam, _) = start(several());
    let (choice, nothing) = (at("lab"), Choice::default());
    let on = |node| admit(&ipam, &NewPod { node: Some(node), ..new(&choice, &nothing) }).unwrap();
    assert_eq!(on("n1"), Admitted::default());
    let outside = on("n2");
    assert_eq!(outside.nodes, Selector::default());
    assert!(outside.warnings[0].contains("node n2 is no member of Network lab"), "{outside:?}");
}

#[test]
fn an_address_that_an_earlier_pod_of_the_name_has_is_not_warned_of() {
    let (mut ipam, restored) = start(lists("10.0.0.0/24", "fd00::/120"));
    let (choice, nothing) = (ips(&["10.0.0.7", "fd00::7"]), Choice::default());
    give(&mut ipam, &restored, &PodRequest { choice: choice.clone(), ..request(1, "n1") });
    let warnings = |name| admit(&ipam, &NewPod { name, ..new(&choice, &nothing) }).unwrap().warnings.len();
    assert_eq!((warnings("web-1"), warnings("web-2"), warnings("")), (0, 2, 2));
}

fn set_owner(pod: &str) -> OwnerRef {
    OwnerRef {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "shop".into(),
        name: "web".into(),
        uid: "".into(),
        pod: Some(pod.into()),
    }
}

#[test]
fn what_is_kept_for_a_pod_says_where_it_belongs() {
    let (mut ipam, restored) = start(several());
    let (owner, keep) = (Some(set_owner("web-1")), Some(Keep::default()));
    let first = PodRequest { choice: at("lab"), owner, keep, ..request(1, "n1") };
    let made = give(&mut ipam, &restored, &first);
    let same = ips(&[&made[0].name.address().to_string()]);
    let (overlay, nothing) = (at("overlay"), Choice::default());
    // Whether the earlier pod still has it, or it is kept without a pod.
    for phase in [Phase::Bound, Phase::Reserved] {
        for def in &made {
            let pod = def.pod.clone().filter(|_| phase == Phase::Bound);
            ipam.upsert_instance(InstanceDef { pod, phase, ..(**def).clone() }.into(), 0);
        }
        let next = |name, choice| {
            let owner = Some(set_owner(name));
            admit(&ipam, &NewPod { name, owner, ..new(choice, &nothing) }).unwrap()
        };
        let wanted = Admitted { nodes: on_n1(), ..Admitted::default() };
        assert_eq!(next("web-1", &nothing), wanted, "not the default Network, and nothing to be tied to");
        assert_eq!(next("web-1", &same), wanted);
        let elsewhere = next("web-1", &overlay).warnings;
        assert!(elsewhere[0].contains("is kept for StatefulSet shop/web, pod web-1"), "{elsewhere:?}");
        assert_eq!(next("web-2", &nothing).annotations[annotation::NETWORK], "overlay");
    }
}

fn choices() -> impl Strategy<Value = Choice> {
    let nets = ["overlay", "lab", "team", "fresh", "office", "twin", "nope"];
    let subs = ["v4", "v6", "lab4", "lab4-private", "lab6", "team4", "fresh4", "nope"];
    let places = [
        "10.0.0.9",
        "10.0.0.255",
        "10.1.0.0/30",
        "10.11.0.3",
        "10.2.0.9",
        "fd00::9",
        "fd01::1-fd01::5",
        "10.9.9.9",
    ];
    let wishes = [
        FamilyWish::Only(Family::V4),
        FamilyWish::Only(Family::V6),
        FamilyWish::DualStack,
        FamilyWish::PreferDualStack,
    ];
    (
        proptest::option::of(proptest::sample::select(nets.to_vec())),
        proptest::collection::vec(proptest::sample::select(subs.to_vec()), 0..=2),
        proptest::option::of(proptest::sample::select(wishes.to_vec())),
        proptest::collection::vec(proptest::sample::select(places.to_vec()), 0..=2),
    )
        .prop_map(|(net, subs, family, ips)| Choice {
            network: net.map(str::to_owned),
            subnets: subs.into_iter().map(str::to_owned).collect(),
            family,
            ips: ranges(&ips),
            mac: None,
        })
}

/// The pod as it is after admission.
fn rewritten(pod: &Choice, admitted: &Admitted) -> Choice {
    let mut pod = pod.clone();
    for (key, value) in &admitted.annotations {
        match *key {
            annotation::NETWORK => pod.network = Some(value.clone()),
            annotation::SUBNET => pod.subnets = value.split(',').map(str::to_owned).collect(),
            annotation::IP_FAMILY => {
                pod.family = Some(value.parse::<braid_types::annotation::FamilyPolicy>().unwrap().into());
            }
            other => panic!("{other} is written"),
        }
    }
    pod
}

proptest! {
    /// Admission and grant never disagree: what is refused early is refused late with a sentence of the same kind, what
    /// is let in without a word gets its addresses, and what is written changes nothing.
    #[test]
    fn admission_says_what_the_grant_will_say(pod in choices(), namespace in choices()) {
        let namespace = Choice { ips: Vec::new(), ..namespace };
        let (mut ipam, restored) = start(several());
        let req = |choice: &Choice, namespace_choice: &Choice| PodRequest {
            choice: choice.clone(),
            namespace_choice: namespace_choice.clone(),
            ..request(1, "n1")
        };
        match judge(&ipam, &pod, &namespace) {
            Err(sentence) => {
                let refusal = ipam.grant(&restored, &req(&pod, &namespace));
                prop_assert!(refusal.is_err(), "admission alone refused: {}", sentence);
            }
            Ok(admitted) => {
                let later = rewritten(&pod, &admitted);
                // Asked again, it has nothing to add.
                let again = judge(&ipam, &later, &namespace).unwrap();
                prop_assert!(again.annotations.is_empty() || admitted.annotations.is_empty());
                prop_assert_eq!(&again.nodes, &admitted.nodes);
                let plain = ipam.grant(&restored, &req(&pod, &namespace));
                if admitted.warnings.is_empty() {
                    prop_assert!(plain.is_ok(), "{:?}", plain);
                }
                // A grant moves the place where the next search starts: the second one is asked of the same beginning.
                let (mut other, restored) = start(several());
                let pinned = other.grant(&restored, &req(&later, &namespace));
                let [plain, pinned] = [plain, pinned].map(|answer| match answer {
                    Ok(grant) => Ok((grant.network, grant.set)),
                    Err(refusal) => Err(refusal.to_string()),
                });
                prop_assert_eq!(plain, pinned);
            }
        }
    }
}

// ---- Workloads

fn deployment(replicas: u32, surge: &str) -> Shape {
    Shape::Deployment { replicas, surge: surge.parse().unwrap() }
}

fn set(replicas: u32, first: u32) -> Shape {
    Shape::StatefulSet { replicas, first }
}

fn fits(ipam: &Ipam, shape: Shape, lines: &[(&str, &str)]) -> Result<(), String> {
    let annotations = lines.iter().map(|(k, v)| (format!("braid.network/{k}"), (*v).to_owned())).collect();
    let nothing = Choice::default();
    let namespace = Namespace { name: "shop", labels: Some(NO_LABELS), choice: &nothing };
    Workload::read(shape, &annotations).and_then(|w| w.check(ipam, namespace)).map_err(|e| e.to_string())
}

#[test]
fn surge_is_rounded_up() {
    let (ipam, _) = start(lists("10.0.0.0/24", "fd00::/120"));
    let pool = |n: u32| format!("10.0.0.10-10.0.0.{}", 9 + n);
    // Replicas, surge, and how many addresses that takes.
    let cases = [
        (3, "25%", 4),
        (4, "25%", 5),
        (5, "25%", 7),
        (8, "1", 9),
        (8, "0", 8),
        (2, "100%", 4),
        (1, "25%", 2),
    ];
    for (replicas, surge, needed) in cases {
        assert_eq!(fits(&ipam, deployment(replicas, surge), &[("ips", &pool(needed))]), Ok(()));
        let short = fits(&ipam, deployment(replicas, surge), &[("ips", &pool(needed - 1))]).unwrap_err();
        let parts =
            [format!("needs {needed} IPv4 addresses and has {}", needed - 1), "1 is missing".to_owned()];
        assert!(parts.iter().all(|part| short.contains(part)), "{short}");
    }
    assert_eq!(fits(&ipam, deployment(0, "5"), &[("ips", "10.0.0.10")]), Ok(()));
    assert_eq!(Surge::default(), Surge::Percent(25));
    assert!("a quarter".parse::<Surge>().is_err());
}

#[test]
fn a_pool_counts_what_the_subnets_give_out_family_by_family() {
    let mut lists = lists("10.0.0.0/24", "fd00::/120");
    lists.subnets[0].excluded = ranges(&["10.0.0.11-10.0.0.12"]);
    let (ipam, _) = start(lists);
    let short = fits(&ipam, deployment(3, "1"), &[("ips", "10.0.0.10-10.0.0.14,fd00::1,fd00::1-fd00::3")]);
    let sentence = "pod template: annotation braid.network/ips is too small for 3 pods and 1 more during a rolling \
        update (maxSurge): it needs 4 IPv4 addresses and has 3 that Network overlay gives out, 1 is missing; it needs 4 \
        IPv6 addresses and has 3 that Network overlay gives out, 1 is missing; add what is missing, or lower \
        spec.replicas, or set maxSurge to 0 or the strategy to Recreate";
    assert_eq!(short, Err(sentence.to_owned()));
    // A Network that is not there yet: the addresses themselves count.
    let coming = |ips: &str| fits(&ipam, deployment(2, "0"), &[("network", "coming"), ("ips", ips)]);
    assert_eq!(coming("10.50.0.1-10.50.0.2"), Ok(()));
    assert!(coming("10.50.0.1").unwrap_err().contains("and has 1, 1 is missing"));
    // One fixed address is a pool of one.
    assert!(fits(&ipam, set(3, 0), &[("ips", "10.0.0.20")]).unwrap_err().contains("2 are missing"));
    assert_eq!(fits(&ipam, set(1, 0), &[("ips", "10.0.0.20")]), Ok(()));
    assert_eq!(fits(&ipam, set(3, 7), &[("ips", "10.0.0.20-10.0.0.22")]), Ok(()), "no surge, no ordinals");
}

#[test]
fn lists_by_ordinal_reach_to_the_last_pod() {
    let (ipam, _) = start(lists("10.0.0.0/24", "fd00::/120"));
    let list = "10.0.0.1;10.0.0.2;10.0.0.3";
    assert_eq!(fits(&ipam, set(3, 0), &[("ips", list)]), Ok(()));
    assert_eq!(fits(&ipam, set(2, 1), &[("ips", list)]), Ok(()));
    assert_eq!(fits(&ipam, set(0, 9), &[("ips", list)]), Ok(()));
    let short = fits(&ipam, set(4, 1), &[("ips", list)]).unwrap_err();
    let sentence = "pod template: annotation braid.network/ips has 3 entries, counted from ordinal 0, but the last pod \
        has ordinal 4: 2 are missing; add as many, separated by `;`, or lower spec.replicas";
    assert_eq!(short, sentence);
    let macs = "02:00:00:00:00:01;02:00:00:00:00:02";
    assert!(
        fits(&ipam, set(3, 0), &[("mac", macs)]).unwrap_err().contains("braid.network/mac has 2 entries")
    );
    assert_eq!(fits(&ipam, set(3, 0), &[("mac", "02:00:00:00:00:01")]), Ok(()));
    let twice = fits(&ipam, set(2, 0), &[("ips", "10.0.0.1;10.0.0.1")]).unwrap_err();
    assert!(twice.contains("needs 2 IPv4 addresses and has 1"), "{twice}");
    let deployed = fits(&ipam, deployment(2, "0"), &[("ips", list)]).unwrap_err();
    assert!(deployed.contains("only pods of a StatefulSet"), "{deployed}");
}

#[test]
fn a_template_whose_pods_would_all_be_refused_is_refused() {
    let (ipam, _) = start(several());
    let lone = |lines: &[(&str, &str)]| fits(&ipam, set(1, 0), lines).unwrap_err();
    assert!(lone(&[("ips", "10.300.0.1")]).contains("pod template: annotation braid.network/ips"));
    assert!(lone(&[("ips", "10.9.0.1"), ("network", "lab")]).contains("is in no Subnet of Network lab"));
    assert!(lone(&[("ips", "10.2.0.1"), ("network", "team")]).contains("may not use Network team"));
    assert_eq!(fits(&ipam, set(1, 0), &[("ips", "10.1.0.1"), ("network", "lab")]), Ok(()));
}
