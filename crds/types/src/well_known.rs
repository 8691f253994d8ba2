//! Names and numbers that several programs must agree on.

/// API group of Braid's kinds.
pub const GROUP: &str = "braid.network";
/// Route protocol number on every route that Braid writes.
pub const ROUTE_PROTOCOL: u8 = 176;
/// UDP port of VXLAN unless the Network says otherwise.
pub const VXLAN_PORT: u16 = 8472;

/// Priorities of Braid's policy routing rules.
pub mod rule_priority {
    /// Pods on this node, table [`super::table::LOCAL_PODS`].
    pub const LOCAL: u32 = 3200;
    /// Replies of service connections that entered by the node's address.
    pub const SERVICE_RETURN: u32 = 3205;
    /// Everything into overlays, table [`super::table::OVERLAY`].
    pub const OVERLAY: u32 = 3210;
    /// From overlay pods to underlay pods of other nodes.
    pub const OVERLAY_TO_UNDERLAY: u32 = 3220;
    /// From a node's own address that is in an underlay subnet, table [`super::table::MAIN`]: what the node itself sends
    /// goes as it would without Braid.
    pub const UNDERLAY_NODE: u32 = 3229;
    /// From one underlay subnet, its own table.
    pub const UNDERLAY_SUBNET: u32 = 3230;
    /// First and last priority of the band that is Braid's.
    pub const BAND: std::ops::RangeInclusive<u32> = 3200..=3230;
}

/// Numbers of Braid's routing tables, and of the host's.
pub mod table {
    /// The host's own (`RT_TABLE_MAIN`).
    pub const MAIN: u32 = 254;
    /// Host routes of the pods on this node.
    pub const LOCAL_PODS: u32 = 39999;
    /// Block and host routes of overlays.
    pub const OVERLAY: u32 = 40000;
    /// Host routes of underlay pods for traffic from overlays.
    pub const OVERLAY_TO_UNDERLAY: u32 = 40001;
    /// Tables given to underlay subnets in `Subnet.status.routingTable`.
    pub const SUBNETS: std::ops::RangeInclusive<u32> = 10001..=39998;
}

/// Firewall marks as (value, mask).
pub mod mark {
    /// Route by overlay.
    pub const OVERLAY: (u32, u32) = (0x20, 0x20);
    /// Reply of a service connection that entered by the node's address.
    pub const SERVICE_RETURN: (u32, u32) = (0x40, 0x40);
}

/// The pod's gateway on every routed interface, and the host end that answers for it.
pub mod pod_gateway {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use crate::{Family, Mac};

    /// The gateway address inside every pod: link-local, the same everywhere.
    #[must_use]
    pub fn address(family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee)),
        }
    }

    /// Hardware address of the host end of every pod's veth pair.
    #[must_use]
    pub fn host_mac() -> Mac {
        Mac::new([0xee; 6]).expect("0xee has no group bit")
    }
}

/// Annotations on pods and namespaces.
pub mod annotation {
    /// Network of the default interface.
    pub const NETWORK: &str = "braid.network/network";
    /// Subnet(s) of the default interface, comma separated, one per family.
    pub const SUBNET: &str = "braid.network/subnet";
    /// IPv4, IPv6, DualStack or PreferDualStack.
    pub const IP_FAMILY: &str = "braid.network/ip-family";
    /// Fixed addresses or a pool.
    pub const IPS: &str = "braid.network/ips";
    /// Fixed MAC address.
    pub const MAC: &str = "braid.network/mac";
    /// Keep the address over re-creation.
    pub const IP_RETAIN: &str = "braid.network/ip-retain";
    /// How long it is kept without a pod.
    pub const IP_RETAIN_TTL: &str = "braid.network/ip-retain-ttl";
    /// Secondary interfaces.
    pub const NETWORKS: &str = "braid.network/networks";
    /// Which interface carries the default route.
    pub const DEFAULT_ROUTE: &str = "braid.network/default-route";
    /// On what the controller creates: the transition number of the Lease under which it led.
    pub const FENCE: &str = "braid.network/fence";
}

/// Labels on Braid's own objects.
pub mod label {
    /// Network of an IPInstance.
    pub const NETWORK: &str = "braid.network/network";
    /// Subnet of an IPInstance or IPBlock.
    pub const SUBNET: &str = "braid.network/subnet";
    /// Node of an IPInstance or IPBlock.
    pub const NODE: &str = "braid.network/node";
    /// Namespace of the pod of an IPInstance.
    pub const POD_NAMESPACE: &str = "braid.network/pod-namespace";
    /// Name of the pod of an IPInstance, shortened by [`crate::label_value`].
    pub const POD_NAME: &str = "braid.network/pod-name";
    /// `host` on addresses that no block of their node covers: agents make host routes for them.
    pub const ROUTED: &str = "braid.network/routed";
    /// Value of [`ROUTED`].
    pub const ROUTED_HOST: &str = "host";
}

/// Types of conditions on objects that are not Braid's own.
pub mod condition {
    /// On pods: `False` while the controller refuses an address, with the reason and the sentence for people.
    pub const ADDRESSED: &str = "braid.network/Addressed";
    /// On nodes: a condition of Kubernetes, which whoever makes the pods' network sets.
    pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
    /// Reason of that condition while pods can be attached; by it and the next one Braid knows its own.
    pub const BRAID_READY: &str = "BraidReady";
    /// The same while they cannot.
    pub const BRAID_NOT_READY: &str = "BraidNotReady";
}

/// Keeps an object until the controller has seen that nothing uses it.
pub const FINALIZER: &str = "braid.network/in-use";
/// Field manager of the controller.
pub const CONTROLLER_MANAGER: &str = "braid-controller";
/// Field manager of the agents.
pub const NODE_MANAGER: &str = "braid-node";
/// `spec.interface` of the address that a node itself has in an overlay: the VTEP's own address.
pub const VTEP_INTERFACE: &str = "vtep";
