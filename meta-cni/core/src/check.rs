//! CHECK: what ADD answered against what is there.

use ipnet::IpNet;

use crate::call::Check;
use crate::{CniError, ErrorCode};

/// The interface in the container as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Hardware address as text.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Every address.
    pub addresses: Vec<IpNet>,
}

/// Compares the container's interface with `prevResult`: the interface, its MAC, its MTU where the version has
/// one, and its addresses. More addresses are no fault, and routes are left out: a plugin behind ours may have
/// changed them (spec section 2, CHECK). What results do not hold (rules, sets) is compared by the agent.
///
/// `observed` is `None` when the interface is not there.
///
/// # Errors
/// Code 101 with everything that differs.
pub fn compare(check: &Check, observed: Option<&Observed>) -> Result<(), CniError> {
    let ifname = check.attachment.ifname.as_str();
    let Some(observed) = observed else {
        return Err(failed(format!("interface {ifname} is missing in {}", check.netns)));
    };
    let mut faults = Vec::new();
    // prevResult was seen to hold the interface when the call was read.
    let expected = check.prev_result.interface(ifname, &check.netns);
    if let Some((_, interface)) = expected {
        if !interface.mac.is_empty() && !interface.mac.eq_ignore_ascii_case(&observed.mac) {
            faults.push(format!("its MAC is {} instead of {}", observed.mac, interface.mac));
        }
        if let Some(mtu) = interface.mtu.filter(|m| *m != observed.mtu) {
            faults.push(format!("its MTU is {} instead of {mtu}", observed.mtu));
        }
    }
    let index = expected.map(|(index, _)| index);
    for ip in check.prev_result.ips.iter().filter(|ip| ip.interface.is_some() && ip.interface == index) {
        if !observed.addresses.contains(&ip.address) {
            faults.push(format!("it lacks address {}", ip.address));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(failed(format!("interface {ifname}: {}", faults.join(", ")))) }
}

fn failed(msg: String) -> CniError {
    CniError::new(ErrorCode::CHECK_FAILED, msg)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{AttachmentId, CniResult};

    fn check() -> Check {
        let prev = json!({
            "interfaces": [{"name": "h"}, {"name": "eth0", "sandbox": "/x", "mac": "02:00:00:00:00:0A", "mtu": 1450}],
            "ips": [
                {"address": "10.0.0.2/32", "interface": 1}, {"address": "fd00::2/128", "interface": 1},
                {"address": "192.0.2.1/32"},
            ],
        });
        Check {
            attachment: AttachmentId { container_id: "c".parse().unwrap(), ifname: "eth0".parse().unwrap() },
            netns: "/x".into(),
            pod: None,
            network: "braid".into(),
            prev_result: CniResult::from_json(&prev).unwrap(),
            config: "{}".into(),
        }
    }

    fn there() -> Observed {
        Observed {
            mac: "02:00:00:00:00:0a".into(),
            mtu: 1450,
            addresses: ["10.0.0.2/32", "fd00::2/128", "10.9.9.9/24"].map(|a| a.parse().unwrap()).to_vec(),
        }
    }

    #[test]
    fn what_add_made_and_more_passes() {
        assert_eq!(compare(&check(), Some(&there())), Ok(()));
    }

    #[test]
    fn every_difference_is_named() {
        let e = compare(&check(), None).unwrap_err();
        assert!(e.code == ErrorCode::CHECK_FAILED && e.msg.contains("eth0"), "{e}");
        let bad = Observed { mac: "02:00:00:00:00:0b".into(), mtu: 1500, addresses: vec![] };
        let e = compare(&check(), Some(&bad)).unwrap_err();
        for part in ["0b", "1500", "10.0.0.2/32", "fd00::2/128"] {
            assert!(e.msg.contains(part), "{e}");
        }
        assert!(!e.msg.contains("192.0.2.1"), "an address without interface is not ours to find: {e}");
    }
}
