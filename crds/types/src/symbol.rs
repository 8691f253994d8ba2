//! Names that many objects repeat.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use internment::ArcIntern;
use serde::{Serialize, Serializer};

/// A name or uid, of which the process has one copy however many objects mention it: a hundred thousand addresses name
/// few Subnets and nodes, and each pod is named by all of its addresses.
///
/// Compares, sorts and hashes as the text does.
#[derive(Clone, PartialEq, Eq)]
pub struct Symbol(ArcIntern<str>);

impl Symbol {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Symbol {
    fn default() -> Self {
        Self::from("")
    }
}

impl Deref for Symbol {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Symbol {
    fn borrow(&self) -> &str {
        self
    }
}

impl AsRef<str> for Symbol {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Hash for Symbol {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Ord for Symbol {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for Symbol {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Symbol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl From<&str> for Symbol {
    fn from(text: &str) -> Self {
        Self(ArcIntern::from(text))
    }
}

impl From<&String> for Symbol {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Symbol {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Symbol> for String {
    fn from(symbol: &Symbol) -> Self {
        symbol.as_str().to_owned()
    }
}

impl From<Symbol> for String {
    fn from(symbol: Symbol) -> Self {
        Self::from(&symbol)
    }
}

impl PartialEq<str> for Symbol {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Symbol {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for Symbol {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<Symbol> for str {
    fn eq(&self, other: &Symbol) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<Symbol> for &str {
    fn eq(&self, other: &Symbol) -> bool {
        *self == other.as_str()
    }
}

impl PartialEq<Symbol> for String {
    fn eq(&self, other: &Symbol) -> bool {
        self == other.as_str()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn there_is_one_copy_of_each_text() {
        let (one, other) = (Symbol::from("overlay"), Symbol::from(String::from("overlay")));
        assert!(one == other && std::ptr::eq(one.as_str(), other.as_str()));
        let longer = Symbol::from("overlay-v4");
        assert!(one != longer && one < longer);
    }

    #[test]
    fn it_is_found_by_its_text() {
        let map = HashMap::from([(Symbol::from("a"), 1)]);
        assert_eq!(map.get("a"), Some(&1));
    }
}
