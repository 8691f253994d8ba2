//! Versions of the protocol, and the answer to VERSION.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{CniError, ErrorCode};

/// A version of the protocol that Braid speaks, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum CniVersion {
    /// 0.3.1: lists of interfaces and addresses.
    V0_3_1,
    /// 0.4.0: CHECK, and prevResult on DEL.
    V0_4_0,
    /// 1.0.0: no `version` on addresses.
    V1_0_0,
    /// 1.1.0: GC, STATUS, more fields on interfaces and routes.
    V1_1_0,
}

/// A version that Braid does not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CNI version `{0}` is not among the supported 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
pub struct UnknownVersion(pub String);

impl CniVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version.
    pub const LATEST: Self = Self::V1_1_0;

    /// The text as it stands in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a configuration. One without `cniVersion` means 0.1.0, which predates the shapes that
    /// Braid speaks.
    ///
    /// # Errors
    /// Code 1 when the version is not spoken, code 6 when it is no string.
    pub fn of_config(config: &Map<String, Value>) -> Result<Self, CniError> {
        let text = match config.get("cniVersion") {
            None => "0.1.0",
            Some(Value::String(s)) => s,
            Some(other) => {
                return Err(CniError::new(
                    ErrorCode::DECODE,
                    format!("cniVersion must be a string such as \"1.1.0\", not {other}"),
                ));
            }
        };
        text.parse().map_err(|e: UnknownVersion| {
            CniError::new(ErrorCode::INCOMPATIBLE_VERSION, "incompatible CNI versions")
                .with_details(e.to_string())
        })
    }
}

impl FromStr for CniVersion {
    type Err = UnknownVersion;

    fn from_str(s: &str) -> Result<Self, UnknownVersion> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| UnknownVersion(s.to_owned()))
    }
}

impl TryFrom<String> for CniVersion {
    type Error = UnknownVersion;

    fn try_from(s: String) -> Result<Self, UnknownVersion> {
        s.parse()
    }
}

impl From<CniVersion> for &'static str {
    fn from(v: CniVersion) -> Self {
        v.as_str()
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION: echoes the asked version, because the spec wants back what was given on input.
#[must_use]
pub fn version_reply(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(CniVersion::LATEST.as_str()),
        "supportedVersions": CniVersion::ALL,
    })
}

/// The versions of a VERSION answer of another plugin that Braid speaks as well, oldest first.
///
/// # Errors
/// When the text is no VERSION answer.
pub fn parse_version_reply(stdout: &str) -> Result<Vec<CniVersion>, CniError> {
    let bad = |why: &dyn fmt::Display| {
        CniError::new(ErrorCode::DECODE, format!("the answer to VERSION cannot be read: {why}"))
    };
    let value: Value = serde_json::from_str(stdout).map_err(|e| bad(&e))?;
    let list = value.get("supportedVersions").and_then(Value::as_array);
    let list = list.ok_or_else(|| bad(&"it has no list supportedVersions"))?;
    let mut versions: Vec<CniVersion> =
        list.iter().filter_map(Value::as_str).filter_map(|s| s.parse().ok()).collect();
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let of_config = |v: Value| CniVersion::of_config(v.as_object().unwrap());
        for v in CniVersion::ALL {
            assert_eq!(of_config(json!({"cniVersion": v.as_str()})), Ok(v));
        }
        for bad in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "1.0", "", "1.1.0 ", "v1.1.0"] {
            let e = of_config(json!({ "cniVersion": bad })).unwrap_err();
            assert_eq!(e.code, ErrorCode::INCOMPATIBLE_VERSION, "{bad}");
            assert!(e.details.contains(&format!("`{bad}`")), "{}", e.details);
        }
        assert_eq!(of_config(json!({})).unwrap_err().code, ErrorCode::INCOMPATIBLE_VERSION);
        assert_eq!(of_config(json!({"cniVersion": 1})).unwrap_err().code, ErrorCode::DECODE);
    }

    #[test]
    fn our_own_reply_can_be_read_back() {
        let reply = version_reply(Some("0.2.0"));
        assert_eq!(reply["cniVersion"], "0.2.0");
        assert_eq!(parse_version_reply(&reply.to_string()).unwrap(), CniVersion::ALL);
        assert!(parse_version_reply("{}").is_err() && parse_version_reply("no").is_err());
        let older = r#"{"cniVersion":"1.0.0","supportedVersions":["0.1.0","1.0.0","0.4.0","0.3.0"]}"#;
        assert_eq!(parse_version_reply(older).unwrap(), [CniVersion::V0_4_0, CniVersion::V1_0_0]);
    }
}
