//! Errors as a runtime reads them (spec section 5, "Error").

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::CniVersion;

/// A numeric error code; below 100 the spec gives the meaning, from 100 on the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The configuration asks for a version of the protocol that the plugin does not speak.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field of the configuration is not supported; the text holds its key and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is not known; the runtime need not call DEL.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// Environment variables are missing or invalid; the text names all of them.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// Something could not be decoded.
    pub const DECODE: Self = Self(6);
    /// The network configuration is invalid.
    pub const INVALID_CONFIG: Self = Self(7);
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN: Self = Self(11);
    /// The plugin cannot serve ADD at present (answer to STATUS).
    pub const NOT_AVAILABLE: Self = Self(50);
    /// Attaching failed for good: kernel or configuration refuse it (Braid's own code).
    pub const ATTACH_FAILED: Self = Self(100);
    /// CHECK found something missing or changed (Braid's own code).
    pub const CHECK_FAILED: Self = Self(101);
    /// Detaching failed in part; what could be removed is removed (Braid's own code).
    pub const DETACH_FAILED: Self = Self(102);
    /// Agent and plugin do not understand each other (Braid's own code).
    pub const PROTOCOL: Self = Self(103);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details} (CNI error {code})", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What kind of error.
    pub code: ErrorCode,
    /// One short sentence.
    pub msg: String,
    /// The longer story; empty when there is none.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error without details.
    #[must_use]
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A passing condition ([`ErrorCode::TRY_AGAIN`]).
    #[must_use]
    pub fn try_again(msg: impl Into<String>) -> Self {
        Self::new(ErrorCode::TRY_AGAIN, msg)
    }

    /// One error that reports all of `errors`; `None` when there are none.
    ///
    /// The code is that of the first error, because the runtime can act on one code only; a
    /// [`ErrorCode::TRY_AGAIN`] among lasting errors does not hide them.
    #[must_use]
    pub fn combine(mut errors: Vec<Self>) -> Option<Self> {
        if errors.len() < 2 {
            return errors.pop();
        }
        let code = errors
            .iter()
            .map(|e| e.code)
            .find(|c| *c != ErrorCode::TRY_AGAIN)
            .unwrap_or(ErrorCode::TRY_AGAIN);
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Some(Self::new(code, format!("{} steps failed", all.len())).with_details(all.join("; ")))
    }

    /// The JSON object that goes to standard output.
    #[must_use]
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut object = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = Value::from(self.details.as_str());
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combining_keeps_every_text_and_the_lasting_code() {
        assert_eq!(CniError::combine(vec![]), None);
        let one = CniError::new(ErrorCode::IO, "disk");
        assert_eq!(CniError::combine(vec![one.clone()]), Some(one.clone()));
        let both = CniError::combine(vec![CniError::try_again("busy"), one]).unwrap();
        assert_eq!(both.code, ErrorCode::IO);
        assert!(both.details.contains("busy") && both.details.contains("disk"), "{}", both.details);
    }

    #[test]
    fn json_follows_the_spec() {
        let e = CniError::new(ErrorCode::INVALID_CONFIG, "no").with_details("why");
        assert_eq!(
            e.to_json(CniVersion::V1_1_0),
            json!({"cniVersion": "1.1.0", "code": 7, "msg": "no", "details": "why"})
        );
        assert_eq!(e.to_string(), "no: why (CNI error 7)");
    }
}
