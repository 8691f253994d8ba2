//! The network configuration of one call (spec section 3, "Deriving request configuration").

use std::time::Duration;

use serde_json::{Map, Value};

use crate::attachment::is_identifier;
use crate::{AttachmentId, CniError, CniResult, CniVersion, ErrorCode};

/// Longest configuration in bytes. A thousand valid attachments take about a tenth of it.
pub const MAX_CONFIG: usize = 1 << 20;

/// The keys of a configuration that Braid reads. Unknown keys are no error: the spec passes them through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// The version that the runtime chose.
    pub version: CniVersion,
    /// Name of the network.
    pub name: String,
    /// `socket`: where the agent listens, if not at its usual place.
    pub socket: Option<String>,
    /// `stateDir`: where the journal is, if not at its usual place.
    pub state_dir: Option<String>,
    /// `timeoutSeconds`: how long one call may take in all, if not the default of its verb.
    pub timeout: Option<Duration>,
    /// `prevResult`, parsed on demand by [`NetConf::prev_result`].
    prev_result: Option<Value>,
    /// `cni.dev/valid-attachments`.
    valid_attachments: Option<Value>,
    /// What the configuration asks for and Braid does not do, as key and value.
    unsupported: Option<(&'static str, Value)>,
}

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Code 6 when the text is no JSON object or a key has the wrong type, code 1 for a version that is not
    /// spoken, code 7 when name or type are missing or malformed.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::from_object(&object(text)?)
    }

    pub(crate) fn from_object(config: &Map<String, Value>) -> Result<Self, CniError> {
        let version = CniVersion::of_config(config)?;
        let name = required(config, "name")?;
        if !is_identifier(name) {
            return Err(invalid(format!(
                "name `{name}`: a network name starts with a letter or digit, then letters, digits, `_`, `.` and `-`"
            )));
        }
        let plugin = required(config, "type")?;
        if plugin.contains('/') {
            return Err(invalid(format!("type `{plugin}`: it is the name of a file, not a path")));
        }
        Ok(Self {
            version,
            name: name.to_owned(),
            socket: absolute_path(config, "socket")?,
            state_dir: absolute_path(config, "stateDir")?,
            timeout: timeout(config)?,
            prev_result: present(config, "prevResult").cloned(),
            // libcni before 1.1.0 was final used the other key, and still sends both.
            valid_attachments: config
                .get("cni.dev/valid-attachments")
                .or_else(|| config.get("cni.dev/attachments"))
                .cloned(),
            unsupported: unsupported(config),
        })
    }

    /// The result of the previous plugin or of ADD; `None` when there is none.
    ///
    /// # Errors
    /// As [`CniResult::from_json`].
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        let parse =
            |v| CniResult::from_json(v).map_err(|e| CniError { msg: format!("prevResult: {}", e.msg), ..e });
        self.prev_result.as_ref().map(parse).transpose()
    }

    /// What must stay in GC. `null` is an empty list: Go writes a list without elements so.
    ///
    /// # Errors
    /// Code 7 when the list is missing, because everything would count as stale then; code 6 when it is
    /// malformed.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentId>, CniError> {
        let key = "cni.dev/valid-attachments";
        let value = self.valid_attachments.as_ref().ok_or_else(|| {
            invalid(format!("{key} is missing; an empty list says that nothing is attached"))
        })?;
        let list = match value {
            Value::Null => &Vec::new(),
            Value::Array(list) => list,
            _ => return Err(decode(format!("{key} must be a list"))),
        };
        let parse = |(i, item): (usize, &Value)| {
            let field = |name: &str| {
                item.get(name)
                    .and_then(Value::as_str)
                    .ok_or_else(|| decode(format!("{key}[{i}].{name} must be a string")))
            };
            Ok(AttachmentId {
                container_id: field("containerID")?
                    .parse()
                    .map_err(|e| decode(format!("{key}[{i}].containerID: {e}")))?,
                ifname: field("ifname")?.parse().map_err(|e| decode(format!("{key}[{i}].ifname: {e}")))?,
            })
        };
        list.iter().enumerate().map(parse).collect()
    }

    /// Refuses a configuration that asks for what Braid does not do: on ADD, so that nobody believes in a
    /// setting that has no effect; never on DEL.
    ///
    /// # Errors
    /// Code 2 with the key and its value.
    pub fn check_supported(&self) -> Result<(), CniError> {
        match &self.unsupported {
            None => Ok(()),
            Some((key, value)) => Err(CniError::new(
                ErrorCode::UNSUPPORTED_FIELD,
                format!("unsupported field \"{key}\": {value}"),
            )
            .with_details(
                "addresses and masquerading come from the Subnet objects of the cluster, not from the file",
            )),
        }
    }
}

/// The JSON object of a configuration.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(decode("the network configuration must be a JSON object".to_owned())),
        Err(e) => Err(decode("the network configuration is no JSON".to_owned()).with_details(e.to_string())),
    }
}

fn present<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|v| !v.is_null())
}

fn required<'a>(config: &'a Map<String, Value>, key: &str) -> Result<&'a str, CniError> {
    match present(config, key) {
        Some(Value::String(s)) if !s.is_empty() => Ok(s),
        None | Some(Value::String(_)) => Err(invalid(format!("{key} is missing"))),
        Some(_) => Err(decode(format!("{key} must be a string"))),
    }
}

fn absolute_path(config: &Map<String, Value>, key: &str) -> Result<Option<String>, CniError> {
    match present(config, key) {
        None => Ok(None),
        Some(Value::String(s)) if s.starts_with('/') && !s.contains('\0') => Ok(Some(s.clone())),
        Some(other) => Err(invalid(format!("{key} must be an absolute path, not {other}"))),
    }
}

fn timeout(config: &Map<String, Value>) -> Result<Option<Duration>, CniError> {
    // No runtime waits longer than some minutes; the bound keeps clock arithmetic safe.
    let seconds = |v: &Value| v.as_u64().filter(|s| (1..=3600).contains(s));
    present(config, "timeoutSeconds")
        .map(|v| {
            seconds(v)
                .map(Duration::from_secs)
                .ok_or_else(|| invalid(format!("timeoutSeconds must be a number from 1 to 3600, not {v}")))
        })
        .transpose()
}

/// The first thing that people write into a file of another plugin and that would be ignored here.
fn unsupported(config: &Map<String, Value>) -> Option<(&'static str, Value)> {
    let ipam = present(config, "ipam").filter(|v| **v != Value::Object(Map::new())).map(|v| ("ipam", v));
    let masquerade = present(config, "ipMasq").filter(|v| **v != Value::Bool(false)).map(|v| ("ipMasq", v));
    ipam.or(masquerade).map(|(key, v)| (key, v.clone()))
}

fn invalid(msg: String) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, msg)
}

fn decode(msg: String) -> CniError {
    CniError::new(ErrorCode::DECODE, msg)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn with(key: &str, value: Value) -> String {
        let mut config = json!({"cniVersion": "1.1.0", "name": "braid", "type": "braid"});
        config[key] = value;
        config.to_string()
    }

    #[rstest]
    #[case("", 6, "JSON")]
    #[case("[]", 6, "object")]
    #[case("{", 6, "JSON")]
    #[case(r#"{"name":"a","type":"b"}"#, 1, "incompatible")]
    #[case(&with("cniVersion", json!("0.2.0")), 1, "incompatible")]
    #[case(&with("cniVersion", json!(1.1)), 6, "cniVersion")]
    #[case(&with("name", json!(null)), 7, "name")]
    #[case(&with("name", json!("")), 7, "name")]
    #[case(&with("name", json!("-a")), 7, "name")]
    #[case(&with("name", json!("a/b")), 7, "name")]
    #[case(&with("name", json!({})), 6, "name")]
    #[case(&with("type", json!("")), 7, "type")]
    #[case(&with("type", json!("../braid")), 7, "type")]
    #[case(&with("socket", json!("run/x")), 7, "socket")]
    #[case(&with("stateDir", json!(1)), 7, "stateDir")]
    #[case(&with("timeoutSeconds", json!(0)), 7, "timeoutSeconds")]
    #[case(&with("timeoutSeconds", json!("5")), 7, "timeoutSeconds")]
    fn refused(#[case] text: &str, #[case] code: u32, #[case] named: &str) {
        let e = NetConf::parse(text).unwrap_err();
        assert_eq!(e.code, ErrorCode(code), "{text}: {e}");
        assert!(e.msg.contains(named), "{text}: {e}");
    }

    #[test]
    fn unknown_and_generated_keys_are_tolerated() {
        let mut config: Value = serde_json::from_str(&with("keyA", json!([1]))).unwrap();
        config["capabilities"] = json!({"portMappings": true});
        config["runtimeConfig"] = json!({"portMappings": []});
        config["args"] = json!({"cni": {}});
        config["ipam"] = json!({});
        config["socket"] = json!("/run/other.sock");
        let conf = NetConf::parse(&config.to_string()).unwrap();
        assert_eq!(conf.socket.as_deref(), Some("/run/other.sock"));
        assert_eq!((conf.prev_result(), conf.check_supported()), (Ok(None), Ok(())));
    }

    #[rstest]
    #[case("ipam", json!({"type": "host-local"}))]
    #[case("ipMasq", json!(true))]
    fn settings_without_effect_are_named_with_key_and_value(#[case] key: &str, #[case] value: Value) {
        let e = NetConf::parse(&with(key, value.clone())).unwrap().check_supported().unwrap_err();
        assert_eq!(e.code, ErrorCode::UNSUPPORTED_FIELD);
        assert!(e.msg.contains(key) && e.msg.contains(&value.to_string()), "{e}");
    }

    #[test]
    fn valid_attachments() {
        let parse = |text: &str| NetConf::parse(text).unwrap().valid_attachments();
        let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            assert_eq!(parse(&with(key, list.clone())).unwrap()[0].to_string(), "c1/eth0");
        }
        for empty in [json!([]), json!(null)] {
            assert_eq!(parse(&with("cni.dev/valid-attachments", empty)), Ok(vec![]));
        }
        assert_eq!(parse(&with("x", json!(1))).unwrap_err().code, ErrorCode::INVALID_CONFIG);
        for bad in [
            json!({}),
            json!([1]),
            json!([{"containerID": "c1"}]),
            json!([{"containerID": "/", "ifname": "a"}]),
        ] {
            assert_eq!(parse(&with("cni.dev/valid-attachments", bad)).unwrap_err().code, ErrorCode::DECODE);
        }
    }
}
