//! What a cluster is asked to be. Kept in the cluster's folder so that a second `up` can tell whether the running
//! cluster is the wanted one.

use anyhow::{Result, bail};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::layout::Family;

/// How Services are realised on the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KubeProxy {
    /// kube-proxy in iptables mode.
    Iptables,
    /// kube-proxy in nftables mode.
    Nftables,
    /// No kube-proxy: ClusterIPs, the API server's among them, lead nowhere.
    None,
}

/// The container runtime of every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// containerd 2.2, which speaks CNI 1.1 (STATUS and GC).
    Containerd2,
    /// Debian's containerd 1.6, which speaks CNI up to 1.0.0.
    Containerd1,
}

/// The shape of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Options {
    /// Number of nodes; the control plane shares the network of the first
    #[arg(long, default_value_t = 2)]
    pub nodes: u16,
    /// Number of layer 2 segments, joined by a router; nodes are dealt out to them in turn
    #[arg(long, default_value_t = 1)]
    pub racks: u16,
    /// IPv6 besides IPv4 on nodes, pods and Services
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub dual_stack: bool,
    /// Mode of kube-proxy on every node
    #[arg(long, value_enum, default_value_t = KubeProxy::Iptables)]
    pub kube_proxy: KubeProxy,
    /// Container runtime of every node
    #[arg(long, value_enum, default_value_t = Runtime::Containerd2)]
    pub runtime: Runtime,
    /// Run CoreDNS as pods; it needs a pod network, so with Braid it starts once there is a default Network
    #[arg(long)]
    #[serde(default)]
    pub dns: bool,
    /// An entry of Braid's ConfigMap, key=value, such as coolDown=3s (docs/times.md); may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    #[serde(default)]
    pub settings: Vec<(String, String)>,
    /// Use the reference CNI plugins (ptp and host-local) and do not install Braid
    #[arg(long)]
    pub no_braid: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
    let (key, value) = parts.ok_or_else(|| format!("`{text}` is not key=value, such as coolDown=3s"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            racks: 1,
            dual_stack: true,
            kube_proxy: KubeProxy::Iptables,
            runtime: Runtime::Containerd2,
            dns: false,
            settings: Vec::new(),
            no_braid: false,
        }
    }
}

impl Options {
    /// Refuses shapes that the address plan has no room for.
    ///
    /// # Errors
    /// A sentence that says which option to change.
    pub fn validate(&self) -> Result<()> {
        if !(1..=200).contains(&self.nodes) {
            bail!("--nodes {} is not possible: choose between 1 and 200", self.nodes);
        }
        if !(1..=100).contains(&self.racks) || self.racks > self.nodes {
            bail!(
                "--racks {} is not possible: choose between 1 and the number of nodes, at most 100",
                self.racks
            );
        }
        Ok(())
    }

    /// The address families of the cluster, the primary one first.
    #[must_use]
    pub fn families(&self) -> &'static [Family] {
        if self.dual_stack { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_key_and_a_value() {
        assert_eq!(setting("coolDown=3s"), Ok(("coolDown".to_owned(), "3s".to_owned())));
        for bad in ["coolDown", "=3s", "coolDown="] {
            assert!(setting(bad).unwrap_err().contains("key=value"), "{bad}");
        }
    }

    #[test]
    fn shapes_without_room_are_refused_by_name_of_the_option() {
        for (nodes, racks, option) in
            [(0, 1, "--nodes"), (201, 1, "--nodes"), (2, 0, "--racks"), (2, 3, "--racks")]
        {
            let error = Options { nodes, racks, ..Options::default() }.validate().unwrap_err().to_string();
            assert!(error.contains(option), "{nodes} nodes, {racks} racks: {error}");
        }
        Options::default().validate().unwrap();
    }
}
