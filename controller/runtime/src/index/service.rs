//! Where the addresses of Services are: no Subnet may have them.

use std::collections::BTreeMap;

use braid_controller_core::verdict::OffLimits;
use braid_informer::Event;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::ResourceExt;

use super::Index;

/// Name of the watch.
pub(super) const WATCH: &str = "servicecidrs";

/// The ranges by name of the ServiceCIDR.
pub(super) type Ranges = BTreeMap<String, Vec<OffLimits>>;

pub(super) fn handle(index: &Index, known: &mut Ranges, event: Event<ServiceCIDR>) {
    match event {
        Event::Reset(all) => *known = all.iter().map(|raw| (raw.name_any(), ranges(raw))).collect(),
        Event::Applied(raw) => {
            known.insert(raw.name_any(), ranges(&raw));
        }
        Event::Deleted(raw) => {
            known.remove(&raw.name_any());
        }
        Event::Undecodable(object) => return index.unreadable(WATCH, &object),
    }
    let mut world = index.shared.world();
    let effects = world.ipam.reset_off_limits(known.values().flatten().cloned().collect());
    index.shared.dispatch(&world, effects);
}

fn ranges(raw: &ServiceCIDR) -> Vec<OffLimits> {
    let cidrs = raw.spec.as_ref().and_then(|spec| spec.cidrs.as_ref()).into_iter().flatten();
    let what = format!("the Services of the cluster (ServiceCIDR {})", raw.name_any());
    cidrs.filter_map(|cidr| Some(OffLimits { cidr: cidr.parse().ok()?, what: what.clone() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_a_range() {
        let raw: ServiceCIDR = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00:96::/112"]},
        }))
        .unwrap();
        let found: Vec<_> = ranges(&raw).iter().map(|r| r.cidr.to_string()).collect();
        assert_eq!(found, ["10.96.0.0/12", "fd00:96::/112"]);
        assert!(ranges(&raw)[0].what.contains("ServiceCIDR kubernetes"));
    }
}
