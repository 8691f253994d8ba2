//! The network configuration that the agent writes for the runtime (spec section 1).

use serde_json::{Map, Value, json};

use crate::CniVersion;

/// Name of the plugin's file in the runtime's plugin directory.
pub const PLUGIN_TYPE: &str = "braid";
/// Name of the network of the default interface.
pub const NETWORK_NAME: &str = "braid";
/// Name of the file in the runtime's configuration directory. Runtimes take the first file in lexical order.
pub const FILE_NAME: &str = "05-braid.conflist";

/// What goes into the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conflist {
    /// Where the agent listens, if not at its usual place.
    pub socket: Option<String>,
    /// The state directory, if not the usual one.
    pub state_dir: Option<String>,
    /// Plugins of others behind ours, in order.
    pub chained: Vec<Chained>,
}

/// A plugin of the CNI project that stands behind ours in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chained {
    /// Which one.
    pub plugin: ChainedPlugin,
    /// The versions that the installed binary speaks, as it says itself in VERSION
    /// ([`crate::version::parse_version_reply`]).
    pub versions: Vec<CniVersion>,
}

/// The plugins that Braid chains, if they are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainedPlugin {
    /// `portmap`: host ports of pods.
    Portmap,
}

impl ChainedPlugin {
    /// Name of the plugin's file.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
        }
    }

    fn config(self) -> Value {
        match self {
            Self::Portmap => json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        }
    }
}

impl Conflist {
    /// The versions that every plugin of the list speaks, oldest first.
    ///
    /// An old `portmap` must not keep pods from starting: a runtime would choose the newest version of the list
    /// and fail on the plugin that does not know it.
    #[must_use]
    pub fn versions(&self) -> Vec<CniVersion> {
        CniVersion::ALL.into_iter().filter(|v| self.chained.iter().all(|c| c.versions.contains(v))).collect()
    }

    /// The content of the file; `None` when a chained plugin speaks no version of ours.
    ///
    /// `cniVersion` is at most 1.0.0, so that a runtime from before 1.1.0 takes the file; a newer one picks the
    /// newest of `cniVersions` and gets GC and STATUS. The text depends on its input only, so the agent can see
    /// by comparison whether the file is up to date.
    #[must_use]
    pub fn render(&self) -> Option<String> {
        let common = self.versions();
        let base = common.iter().copied().filter(|v| *v <= CniVersion::V1_0_0).max()?;
        let offered: Vec<CniVersion> = common.into_iter().filter(|v| *v >= base).collect();
        let mut braid = Map::new();
        braid.insert("type".to_owned(), json!(PLUGIN_TYPE));
        for (key, value) in [("socket", &self.socket), ("stateDir", &self.state_dir)] {
            if let Some(value) = value {
                braid.insert(key.to_owned(), json!(value));
            }
        }
        let mut plugins = vec![Value::Object(braid)];
        plugins.extend(self.chained.iter().map(|c| c.plugin.config()));
        let list =
            json!({"cniVersion": base, "cniVersions": offered, "name": NETWORK_NAME, "plugins": plugins});
        Some(format!("{list:#}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &Conflist) -> Value {
        serde_json::from_str(&list.render().unwrap()).unwrap()
    }

    #[test]
    fn alone() {
        assert_eq!(
            parsed(&Conflist::default()),
            json!({
                "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "braid",
                "plugins": [{"type": "braid"}],
            })
        );
    }

    #[test]
    fn with_host_ports_and_other_paths() {
        let portmap = Chained { plugin: ChainedPlugin::Portmap, versions: CniVersion::ALL.to_vec() };
        let list =
            Conflist { socket: Some("/s".into()), state_dir: Some("/d".into()), chained: vec![portmap] };
        let value = parsed(&list);
        assert_eq!(value["plugins"][0], json!({"type": "braid", "socket": "/s", "stateDir": "/d"}));
        assert_eq!(value["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!(value["cniVersions"], json!(["1.0.0", "1.1.0"]));
    }

    #[test]
    fn an_old_chained_plugin_limits_the_versions() {
        let with = |versions: &[CniVersion]| Conflist {
            chained: vec![Chained { plugin: ChainedPlugin::Portmap, versions: versions.to_vec() }],
            ..Conflist::default()
        };
        let value = parsed(&with(&CniVersion::ALL[..3]));
        assert_eq!((&value["cniVersion"], &value["cniVersions"]), (&json!("1.0.0"), &json!(["1.0.0"])));
        let value = parsed(&with(&CniVersion::ALL[..2]));
        assert_eq!((&value["cniVersion"], &value["cniVersions"]), (&json!("0.4.0"), &json!(["0.4.0"])));
        assert_eq!(with(&[]).render(), None);
    }

    #[test]
    fn our_own_plugin_accepts_what_a_runtime_derives_from_the_file() {
        let value = parsed(&Conflist::default());
        for version in value["cniVersions"].as_array().unwrap() {
            let mut request = value["plugins"][0].clone();
            request["cniVersion"] = version.clone();
            request["name"] = value["name"].clone();
            assert!(crate::NetConf::parse(&request.to_string()).is_ok());
        }
    }
}
