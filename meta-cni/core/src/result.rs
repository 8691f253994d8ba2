//! The result of ADD, independent of versions, and its shape in every version (spec section 5, "ADD Success").

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{CniError, CniVersion, ErrorCode};

/// What an ADD made, with everything that any supported version can express.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniResult {
    /// Interfaces, those on the host included.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// DNS settings that come with the network.
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Name of the device.
    pub name: String,
    /// Hardware address as text; empty where the device has none.
    pub mac: String,
    /// Path of the network namespace; empty on the host.
    pub sandbox: String,
    /// MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// Absolute path of the socket that serves the interface (1.1.0).
    pub socket_path: Option<String>,
    /// Identifier of the PCI device behind it (1.1.0).
    pub pci_id: Option<String>,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpConfig {
    /// The address with its prefix length; host bits are kept.
    pub address: IpNet,
    /// The default gateway of its subnet.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Index into [`CniResult::interfaces`].
    #[serde(default)]
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; without one the gateway of an address of the same family is meant.
    #[serde(default)]
    pub gw: Option<IpAddr>,
    /// MTU along the path, in bytes (1.1.0).
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Maximum segment size to announce, in bytes (1.1.0).
    #[serde(default)]
    pub advmss: Option<u32>,
    /// Metric; lower wins (1.1.0).
    #[serde(default)]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default)]
    pub table: Option<u32>,
    /// 0 global, 253 link, 254 host (1.1.0).
    #[serde(default)]
    pub scope: Option<u32>,
}

impl Route {
    /// A route with destination and next hop only.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// DNS settings of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers in order of preference.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search domains in order of preference.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl CniResult {
    /// The JSON object in the shape of `version`; what that version cannot express is left out.
    #[must_use]
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), json!(version));
        let full = version >= CniVersion::V1_1_0;
        let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
        put(
            &mut object,
            "interfaces",
            list(self.interfaces.iter().map(|i| interface_json(i, full)).collect()),
        );
        put(&mut object, "ips", list(self.ips.iter().map(|ip| ip_json(ip, version)).collect()));
        put(&mut object, "routes", list(self.routes.iter().map(|r| route_json(r, full)).collect()));
        if self.dns != Dns::default() {
            object.insert("dns".to_owned(), dns_json(&self.dns));
        }
        Value::Object(object)
    }

    /// Reads a result of any supported version, as it comes in `prevResult` or from a delegate.
    ///
    /// Missing and `null` lists are empty ones; an `interface` of -1 means none; `ips[].version` is checked
    /// against the address where it is present.
    ///
    /// # Errors
    /// Code 6 when a field has the wrong type, code 7 when an index points nowhere; the text names the field.
    pub fn from_json(value: &Value) -> Result<Self, CniError> {
        let Value::Object(object) = value else {
            return Err(decode("result", "it must be an object"));
        };
        let interfaces = items(object, "interfaces")?
            .map(|(at, v)| parse_interface(&at, v))
            .collect::<Result<Vec<_>, _>>()?;
        let ips = items(object, "ips")?
            .map(|(at, v)| parse_ip(&at, v, interfaces.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let routes =
            items(object, "routes")?.map(|(at, v)| parse_route(&at, v)).collect::<Result<Vec<_>, _>>()?;
        let dns = match object.get("dns") {
            None | Some(Value::Null) => Dns::default(),
            Some(v) => Dns {
                nameservers: strings("dns", v, "nameservers")?,
                domain: text("dns", v, "domain")?.unwrap_or_default(),
                search: strings("dns", v, "search")?,
                options: strings("dns", v, "options")?,
            },
        };
        Ok(Self { interfaces, ips, routes, dns })
    }

    /// Appends what `ours` made to a previous result, because a chained plugin hands on what it was given
    /// (spec section 2, ADD).
    #[must_use]
    pub fn after(previous: Self, ours: Self) -> Self {
        let shift = previous.interfaces.len();
        let mut all = previous;
        all.interfaces.extend(ours.interfaces);
        all.ips.extend(
            ours.ips.into_iter().map(|ip| IpConfig { interface: ip.interface.map(|i| i + shift), ..ip }),
        );
        all.routes.extend(ours.routes);
        if all.dns == Dns::default() {
            all.dns = ours.dns;
        }
        all
    }

    /// The interface of that name in the namespace `sandbox`, with its index.
    #[must_use]
    pub fn interface(&self, name: &str, sandbox: &str) -> Option<(usize, &Interface)> {
        self.interfaces.iter().enumerate().find(|(_, i)| i.name == name && i.sandbox == sandbox)
    }
}

fn put(object: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        object.insert(key.to_owned(), value);
    }
}

fn non_empty(s: &str) -> Option<Value> {
    (!s.is_empty()).then(|| Value::from(s))
}

fn interface_json(i: &Interface, full: bool) -> Value {
    let mut o = Map::new();
    o.insert("name".to_owned(), json!(i.name));
    put(&mut o, "mac", non_empty(&i.mac));
    put(&mut o, "sandbox", non_empty(&i.sandbox));
    if full {
        put(&mut o, "mtu", i.mtu.map(Value::from));
        put(&mut o, "socketPath", i.socket_path.as_deref().map(Value::from));
        put(&mut o, "pciID", i.pci_id.as_deref().map(Value::from));
    }
    Value::Object(o)
}

fn ip_json(ip: &IpConfig, version: CniVersion) -> Value {
    let mut o = Map::new();
    if version < CniVersion::V1_0_0 {
        o.insert("version".to_owned(), json!(ip_version(ip.address)));
    }
    o.insert("address".to_owned(), json!(ip.address.to_string()));
    put(&mut o, "gateway", ip.gateway.map(|g| json!(g)));
    put(&mut o, "interface", ip.interface.map(Value::from));
    Value::Object(o)
}

fn ip_version(address: IpNet) -> &'static str {
    match address {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    }
}

fn route_json(r: &Route, full: bool) -> Value {
    let mut o = Map::new();
    o.insert("dst".to_owned(), json!(r.dst.to_string()));
    put(&mut o, "gw", r.gw.map(|g| json!(g)));
    if full {
        let numbers = [
            ("mtu", r.mtu),
            ("advmss", r.advmss),
            ("priority", r.priority),
            ("table", r.table),
            ("scope", r.scope),
        ];
        for (key, n) in numbers {
            put(&mut o, key, n.map(Value::from));
        }
    }
    Value::Object(o)
}

fn dns_json(dns: &Dns) -> Value {
    let mut o = Map::new();
    let list = |l: &[String]| (!l.is_empty()).then(|| json!(l));
    put(&mut o, "nameservers", list(&dns.nameservers));
    put(&mut o, "domain", non_empty(&dns.domain));
    put(&mut o, "search", list(&dns.search));
    put(&mut o, "options", list(&dns.options));
    Value::Object(o)
}

fn decode(at: &str, why: &str) -> CniError {
    CniError::new(ErrorCode::DECODE, format!("{at}: {why}"))
}

/// The elements of a list with the path of each.
fn items<'a>(
    object: &'a Map<String, Value>,
    key: &'a str,
) -> Result<impl Iterator<Item = (String, &'a Value)>, CniError> {
    let list: &[Value] = match object.get(key) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list,
        Some(_) => return Err(decode(key, "it must be a list")),
    };
    Ok(list.iter().enumerate().map(move |(i, v)| (format!("{key}[{i}]"), v)))
}

fn text(at: &str, object: &Value, key: &str) -> Result<Option<String>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(decode(&format!("{at}.{key}"), "it must be a string")),
    }
}

fn strings(at: &str, object: &Value, key: &str) -> Result<Vec<String>, CniError> {
    let wrong = || decode(&format!("{at}.{key}"), "it must be a list of strings");
    match object.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn number(at: &str, object: &Value, key: &str) -> Result<Option<u32>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => {
            let n = v.as_u64().and_then(|n| u32::try_from(n).ok());
            n.map(Some)
                .ok_or_else(|| decode(&format!("{at}.{key}"), "it must be a number from 0 to 4294967295"))
        }
    }
}

fn address(at: &str, object: &Value, key: &str) -> Result<Option<IpAddr>, CniError> {
    // Some plugins write an absent gateway as an empty string.
    match text(at, object, key)?.as_deref() {
        None | Some("") => Ok(None),
        Some(s) => {
            s.parse().map(Some).map_err(|_| decode(&format!("{at}.{key}"), "it must be an IP address"))
        }
    }
}

fn network(at: &str, object: &Value, key: &str) -> Result<IpNet, CniError> {
    let s = text(at, object, key)?;
    s.and_then(|s| s.parse().ok())
        .ok_or_else(|| decode(&format!("{at}.{key}"), "it must be an address with a prefix length"))
}

fn parse_interface(at: &str, v: &Value) -> Result<Interface, CniError> {
    Ok(Interface {
        name: text(at, v, "name")?.ok_or_else(|| decode(&format!("{at}.name"), "it is missing"))?,
        mac: text(at, v, "mac")?.unwrap_or_default(),
        sandbox: text(at, v, "sandbox")?.unwrap_or_default(),
        mtu: number(at, v, "mtu")?,
        socket_path: text(at, v, "socketPath")?,
        pci_id: text(at, v, "pciID")?,
    })
}

fn parse_ip(at: &str, v: &Value, interfaces: usize) -> Result<IpConfig, CniError> {
    let address_ = network(at, v, "address")?;
    if text(at, v, "version")?.is_some_and(|given| given != ip_version(address_)) {
        return Err(decode(&format!("{at}.version"), "it does not fit the address"));
    }
    let interface = match v.get("interface") {
        None | Some(Value::Null) => None,
        Some(n) if n.as_i64() == Some(-1) => None,
        Some(n) => {
            let index = n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < interfaces);
            Some(index.ok_or_else(|| {
                CniError::new(
                    ErrorCode::INVALID_CONFIG,
                    format!("{at}.interface: {n} is no index into the {interfaces} interfaces"),
                )
            })?)
        }
    };
    Ok(IpConfig { address: address_, gateway: address(at, v, "gateway")?, interface })
}

fn parse_route(at: &str, v: &Value) -> Result<Route, CniError> {
    Ok(Route {
        dst: network(at, v, "dst")?,
        gw: address(at, v, "gw")?,
        mtu: number(at, v, "mtu")?,
        advmss: number(at, v, "advmss")?,
        priority: number(at, v, "priority")?,
        table: number(at, v, "table")?,
        scope: number(at, v, "scope")?,
    })
}

#[cfg(test)]
mod tests;
