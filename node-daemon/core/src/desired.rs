//! The kernel objects that must exist, one map per noun, derived from a [`NodeView`].

use std::collections::BTreeMap;

use braid_types::IfName;

use crate::attach::{self, Wiring};
use crate::overlay::{self, Overlay};
use crate::underlay::{self, Underlay};
use crate::view::NodeView;

pub mod addr;
pub mod fdb;
pub mod link;
pub mod neigh;
pub mod nft;
pub mod proxy;
mod remote;
pub mod route;
pub mod rule;
pub mod sysctl;

pub use addr::AddrKey;
pub use fdb::FdbKey;
pub use link::{Link, LinkKind, Vxlan};
pub use neigh::NeighKey;
pub use proxy::ProxyKey;
pub use route::{Route, RouteKey, Target};
pub use rule::Rule;
pub use sysctl::Sysctl;

/// Everything of ours that the kernel must hold. The default value is "nothing", which is what uninstalling asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Devices by name, host ends of pods included.
    pub links: BTreeMap<IfName, Link>,
    /// What belongs to each host end, with the pod's side: needed to make a lost pair again.
    pub wirings: BTreeMap<IfName, Wiring>,
    /// Devices of ours that stay as they are, with all that goes with them, although nobody here can tell what they
    /// must look like.
    pub spared: std::collections::BTreeSet<IfName>,
    /// Addresses on our devices.
    pub addrs: std::collections::BTreeSet<AddrKey>,
    /// Policy routing rules.
    pub rules: std::collections::BTreeSet<Rule>,
    /// Routes in our tables.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Permanent neighbours on our devices.
    pub neighs: BTreeMap<NeighKey, braid_types::Mac>,
    /// Proxy neighbours on devices of the host.
    pub proxies: std::collections::BTreeSet<ProxyKey>,
    /// Forwarding entries of our VXLAN devices: the node behind each hardware address.
    pub fdb: BTreeMap<FdbKey, std::net::IpAddr>,
    /// Kernel parameters by path below `/proc/sys/net`.
    pub sysctls: BTreeMap<String, Sysctl>,
    /// The table `inet braid`; `None` = it must not exist.
    pub nft: Option<nft::Table>,
}

/// The Networks of a view as this node can have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Those with tunnels.
    pub overlays: overlay::Realised,
    /// Those on the physical network.
    pub underlays: underlay::Realised,
}

impl Networks {
    /// Realises all of them.
    #[must_use]
    pub fn of(view: &NodeView) -> Self {
        Self { overlays: overlay::realise(view), underlays: underlay::realise(view) }
    }
}

impl Desired {
    /// Derives everything from the view. Networks that cannot be realised contribute nothing; their reasons are
    /// in [`Networks::of`].
    #[must_use]
    pub fn of(view: &NodeView) -> Self {
        let realised = Networks::of(view);
        let overlays: Vec<Overlay> =
            realised.overlays.values().filter_map(|o| o.as_ref().ok()).cloned().collect();
        let underlays: Vec<&Underlay> = realised.underlays.values().filter_map(|u| u.as_ref().ok()).collect();
        let remotes = remote::of(view, &overlays);
        let mut desired = Self {
            links: link::of(&overlays),
            addrs: addr::of(&overlays),
            rules: rule::of(view, &underlays),
            routes: route::of(view, &overlays, &remotes)
                .into_iter()
                .chain(route::on_wires(&underlays))
                .collect(),
            neighs: neigh::of(&remotes),
            proxies: std::collections::BTreeSet::new(),
            fdb: fdb::of(&remotes),
            sysctls: sysctl::of(view, &overlays, &underlays),
            nft: Some(nft::Table::of(view)),
            wirings: BTreeMap::new(),
            spared: view.spared.clone(),
        };
        for attachment in view.attachments.values() {
            desired.add(attach::wire_into(view, &realised, attachment));
        }
        desired
    }

    fn add(&mut self, wiring: Wiring) {
        self.links.insert(wiring.link.name.clone(), wiring.link.clone());
        self.addrs.extend(wiring.addrs.iter().cloned());
        self.neighs.extend(wiring.neighs.iter().map(|(k, v)| (k.clone(), *v)));
        self.proxies.extend(wiring.proxies.iter().cloned());
        self.routes.extend(wiring.routes.iter().map(|(k, v)| (k.clone(), v.clone())));
        self.sysctls.extend(wiring.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())));
        if let Some(table) = &mut self.nft {
            table.insert(&wiring.elements);
        }
        self.wirings.insert(wiring.link.name.clone(), wiring);
    }
}
