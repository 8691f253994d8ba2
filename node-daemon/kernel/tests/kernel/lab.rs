//! Namespaces and the cluster state of a small cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use braid_node_core::attach::{Wiring, wire};
use braid_node_core::desired::{Desired, Networks};
use braid_node_core::overlay;
use braid_node_core::plan::{self, Plan};
use braid_node_core::view::{Attachment, NodeView, host_links, tunnels, wires};
use braid_node_kernel::{Kernel, Report, Scope, netns};
use braid_types::model::{
    BlockDef, Encapsulation, NetworkDef, NetworkType, NodeDef, PodRef, SubnetDef, VxlanDef,
};
use braid_types::{Cidr, IfName, Mac, Selector, VlanId, Vni, host_veth_name};
use nix::sched::{CloneFlags, unshare};

/// A network namespace that lives as long as this value.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("these tests need root: cannot make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("own namespace")
        });
        let ns = Self { file: made.join().expect("namespace thread") };
        ns.sh("ip link set lo up");
        ns
    }

    /// A path that opens this namespace from any process.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs a shell command inside; it must succeed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let (ok, text) = self.try_sh(command);
        assert!(ok, "`{command}` failed: {text}");
        text
    }

    /// Runs a shell command inside and tells whether it succeeded and what it wrote.
    pub(crate) fn try_sh(&self, command: &str) -> (bool, String) {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["sh", "-c", command])
            .output()
            .expect("nsenter (util-linux) runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    }

    /// Runs code inside.
    pub(crate) fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        netns::within(&self.path(), f).expect("enter namespace")
    }
}

/// A node: its namespace, what it knows, and its kernel.
pub(crate) struct Node {
    pub(crate) ns: Namespace,
    pub(crate) view: NodeView,
    pub(crate) kernel: Kernel,
}

/// A pod: its namespace and its addresses.
pub(crate) struct Pod {
    pub(crate) ns: Namespace,
    pub(crate) attachment: Attachment,
}

impl Pod {
    pub(crate) fn ip(&self, v6: bool) -> IpAddr {
        *self.attachment.addresses.iter().find(|a| a.is_ipv6() == v6).expect("address of the family")
    }
}

impl Node {
    pub(crate) fn new(name: &str) -> Self {
        let ns = Namespace::new();
        let kernel = ns.run(|| Kernel::open().expect("open kernel"));
        let view =
            NodeView { node: name.to_owned(), families: kernel.families().clone(), ..NodeView::default() };
        Self { ns, view, kernel }
    }

    pub(crate) fn look(&mut self) {
        let actual = self.ns.run(|| self.kernel.dump(&Scope::links()).expect("dump links"));
        self.view.links = host_links(&actual);
        self.view.tunnels = tunnels(&actual);
        self.view.wires = wires(&self.ns.run(|| self.kernel.dump_routes().expect("dump routes")));
    }

    pub(crate) fn plan(&self) -> Plan {
        let desired = Desired::of(&self.view);
        let actual = self.ns.run(|| self.kernel.dump(&Scope::all(&desired)).expect("dump"));
        plan::diff(&desired, &actual)
    }

    pub(crate) fn apply(&self, plan: &Plan) -> Report {
        self.ns.run(|| self.kernel.apply(plan))
    }

    /// Brings the kernel to what the view says, and proves that nothing is left to do.
    pub(crate) fn resync(&mut self) -> Plan {
        self.look();
        let plan = self.plan();
        let report = self.apply(&plan);
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!(report.done, plan.steps.len());
        let again = self.plan();
        assert!(again.is_empty(), "a second plan is not empty: {again:#?}");
        plan
    }

    pub(crate) fn wiring(&self, pod: &Pod) -> Wiring {
        wire(&self.view, &pod.attachment)
    }

    /// A pod on this node with the given addresses, attached.
    pub(crate) fn pod(&mut self, name: &str, network: &str, addresses: &[&str]) -> Pod {
        let pod = self.unattached(name, network, addresses);
        let wiring = self.wiring(&pod);
        self.view.attachments.insert(pod.attachment.host_if.clone(), pod.attachment.clone());
        self.ns.run(|| self.kernel.attach(&wiring)).expect("attach");
        pod
    }

    pub(crate) fn unattached(&self, name: &str, network: &str, addresses: &[&str]) -> Pod {
        let ns = Namespace::new();
        let ifname: IfName = "eth0".parse().expect("name");
        let networks = Networks::of(&self.view);
        let in_overlay = networks.overlays.get(network).map(|o| o.as_ref().map(|o| o.mtu));
        let in_underlay = networks.underlays.get(network).map(|u| u.as_ref().map(|u| u.mtu));
        let mtu = match in_overlay.or(in_underlay).expect("a network of the view") {
            Ok(mtu) => mtu,
            Err(e) => panic!("network {network} is not ready: {e}"),
        };
        let attachment = Attachment {
            container_id: format!("{}-{name}", self.view.node),
            pod: PodRef { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}").into() },
            netns: ns.path().display().to_string(),
            netns_id: None,
            host_if: host_veth_name(&format!("{}-{name}", self.view.node), "eth0"),
            ifname,
            network: network.into(),
            mac: Mac::derived(name.as_bytes()),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            mtu,
            silent: BTreeSet::new(),
        };
        Pod { ns, attachment }
    }
}

pub(crate) fn cidr(s: &str) -> Cidr {
    s.parse().expect("cidr")
}

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().expect("address")
}

pub(crate) fn network(name: &str, vni: i64, encapsulation: Encapsulation) -> NetworkDef {
    NetworkDef {
        name: name.into(),
        created: vni,
        kind: NetworkType::Vxlan,
        default: false,
        nodes: Selector::default(),
        namespaces: None,
        mtu: None,
        space: String::new(),
        interfaces: vec![],
        vxlan: Some(VxlanDef { vni: Vni::try_from(vni).expect("vni"), port: 8472, encapsulation }),
        vlan: None,
        ready: true,
        deleting: false,
    }
}

pub(crate) fn subnet(network: &str, range: &str, nat_outgoing: bool) -> SubnetDef {
    let range = cidr(range);
    SubnetDef {
        name: format!("{network}-{}", range.family()),
        created: 0,
        network: network.into(),
        cidr: range,
        gateway: None,
        ranges: vec![],
        excluded: vec![],
        reserved: vec![],
        vlan: None,
        block_size: 26,
        private: false,
        nat_outgoing,
        routing_table: None,
        ready: true,
        deleting: false,
    }
}

pub(crate) fn block(subnet: &SubnetDef, range: &str, node: &str) -> BlockDef {
    let range = cidr(range);
    BlockDef {
        name: braid_types::block_name(&subnet.name, &range),
        subnet: subnet.name.clone(),
        cidr: range,
        node: node.into(),
    }
}

/// Network `blue`: 10.244.<n>.0/26 and fd00:244:0:<n>::/64 belong to node n, whose own address is the first.
pub(crate) fn blue(view: &mut NodeView, nodes: &[(&str, u8)], encapsulation: Encapsulation, nat: bool) {
    add_network(view, nodes, &network("blue", 4, encapsulation), 244, nat);
}

/// As [`blue`], with second octet and third group from `number`.
pub(crate) fn add_network(
    view: &mut NodeView,
    nodes: &[(&str, u8)],
    network: &NetworkDef,
    number: u8,
    nat: bool,
) {
    let v4 = subnet(&network.name, &format!("10.{number}.0.0/16"), nat);
    let v6 = subnet(&network.name, &format!("fd00:{number}::/48"), nat);
    for (node, n) in nodes {
        let blocks = [
            block(&v4, &format!("10.{number}.{n}.0/26"), node),
            block(&v6, &format!("fd00:{number}:0:{n}::/64"), node),
        ];
        view.blocks.extend(blocks.map(|b| (b.name.clone(), b)));
        if *node == view.node {
            let own: BTreeSet<IpAddr> =
                [ip(&format!("10.{number}.{n}.1")), ip(&format!("fd00:{number}:0:{n}::1"))].into();
            view.vteps.insert(network.name.clone(), own);
        }
    }
    view.subnets.extend([v4, v6].map(|s| (s.name.clone(), s)));
    view.networks.insert(network.name.clone(), network.clone());
}

/// The untagged Network `office`, 10.20.0.0/24 and fd20::/64 with the routers .254 and ::fe.
pub(crate) fn office(view: &mut NodeView) {
    let office = NetworkDef {
        kind: NetworkType::Vlan,
        vxlan: None,
        vlan: VlanId::try_from(0).ok(),
        ..network("office", 1, Encapsulation::Always)
    };
    for (range, gateway, table) in [("10.20.0.0/24", "10.20.0.254", 10001), ("fd20::/64", "fd20::fe", 10002)]
    {
        let subnet = SubnetDef {
            gateway: Some(ip(gateway)),
            routing_table: Some(table),
            ..subnet("office", range, false)
        };
        view.subnets.insert(subnet.name.clone(), subnet);
    }
    view.underlays.insert(office.name.clone());
    view.networks.insert(office.name.clone(), office);
}

/// What a node publishes about itself.
pub(crate) fn published(view: &NodeView) -> NodeDef {
    let networks = overlay::realise(view)
        .into_iter()
        .map(|(name, o)| o.unwrap_or_else(|e| panic!("network {name} is not ready: {e}")).published());
    NodeDef { node: view.node.clone(), networks: networks.collect() }
}

/// Two nodes on one wire, 192.168.50.<n>/24 and 2001:db8:50::<n>/64, that know of each other.
pub(crate) fn two_nodes(prepare: impl Fn(&mut NodeView)) -> (Node, Node) {
    let (mut a, mut b) = (Node::new("a"), Node::new("b"));
    join(&a.ns, &b.ns);
    for (node, n) in [(&mut a, 1), (&mut b, 2)] {
        node.ns.sh(&format!(
            "ip link set eth0 up; ip addr add 192.168.50.{n}/24 dev eth0; \
             ip addr add 2001:db8:50::{n}/64 dev eth0 nodad; \
             ip route add default via 192.168.50.254; ip -6 route add default via 2001:db8:50::fe"
        ));
        prepare(&mut node.view);
        node.look();
    }
    let all: BTreeMap<String, NodeDef> = [&a, &b].map(|n| (n.view.node.clone(), published(&n.view))).into();
    a.view.nodes = all.clone();
    b.view.nodes = all;
    a.resync();
    b.resync();
    (a, b)
}

/// One veth pair, `eth0` at both ends. Its link-local addresses are usable at once.
fn join(a: &Namespace, b: &Namespace) {
    for ns in [a, b] {
        ns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    }
    // `ip` takes a namespace by the id of a process in it.
    let mut holder = Command::new("nsenter")
        .arg(format!("--net={}", b.path().display()))
        .args(["sleep", "60"])
        .spawn()
        .expect("nsenter (util-linux) runs");
    let inode = |path: &Path| std::fs::metadata(path).map(|m| m.ino()).ok();
    let of_holder = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    wait_until("the holder enters its namespace", || inode(&of_holder) == inode(&b.path()));
    a.sh(&format!("ip link add eth0 type veth peer name tmp0 && ip link set tmp0 netns {}", holder.id()));
    b.sh("ip link set tmp0 name eth0");
    holder.kill().and_then(|()| holder.wait()).expect("end the holder");
}

/// Polls until something holds; fails after ten seconds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One `ping`; whether an answer came. For what must not get through.
pub(crate) fn pings(from: &Namespace, options: &str, to: IpAddr) -> bool {
    from.try_sh(&format!("ping -n -c 1 -W 1 {options} {to}")).0
}

/// Whether an answer comes in the end: a device that has just come up may lose its first packets.
pub(crate) fn reaches(from: &Namespace, options: &str, to: IpAddr) -> bool {
    (0..10).any(|_| pings(from, options, to))
}
