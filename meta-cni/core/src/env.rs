//! The environment of a call (spec section 2, "Parameters").

use braid_types::IfName;

use crate::{CniError, ContainerId, ErrorCode, PodRef};

/// The variables of the protocol, as they come. An empty variable counts as missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Variable,
    /// `CNI_CONTAINERID`.
    pub container_id: Variable,
    /// `CNI_NETNS`.
    pub netns: Variable,
    /// `CNI_IFNAME`.
    pub ifname: Variable,
    /// `CNI_ARGS`.
    pub args: Variable,
    /// `CNI_PATH`.
    pub path: Variable,
}

/// One variable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Variable {
    /// Not set, or empty.
    #[default]
    Missing,
    /// Set to bytes that are no UTF-8.
    NotText,
    /// Set.
    Text(String),
}

impl Environment {
    /// The environment with each variable looked up by `lookup`.
    pub fn read(mut lookup: impl FnMut(&str) -> Variable) -> Self {
        Self {
            command: lookup("CNI_COMMAND"),
            container_id: lookup("CNI_CONTAINERID"),
            netns: lookup("CNI_NETNS"),
            ifname: lookup("CNI_IFNAME"),
            args: lookup("CNI_ARGS"),
            path: lookup("CNI_PATH"),
        }
    }
}

impl From<&str> for Variable {
    fn from(s: &str) -> Self {
        if s.is_empty() { Self::Missing } else { Self::Text(s.to_owned()) }
    }
}

/// What `CNI_COMMAND` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare with what was attached.
    Check,
    /// Remove what is stale.
    Gc,
    /// Whether ADD can be served.
    Status,
    /// Which versions are spoken.
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The text in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn needs(self, variable: &str) -> bool {
        match variable {
            "CNI_CONTAINERID" | "CNI_IFNAME" => matches!(self, Self::Add | Self::Del | Self::Check),
            "CNI_NETNS" => matches!(self, Self::Add | Self::Check),
            "CNI_PATH" => self == Self::Gc,
            _ => false,
        }
    }
}

/// The environment of a call, checked. Variables that the command needs are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) command: Command,
    pub(crate) container_id: Option<ContainerId>,
    pub(crate) ifname: Option<IfName>,
    pub(crate) netns: Option<String>,
    /// `CNI_ARGS`, not yet parsed: DEL must not fail for what stands there.
    pub(crate) args: Variable,
}

/// Checks the environment as a whole: one error names every variable that is missing or invalid.
pub(crate) fn check(env: &Environment) -> Result<Parameters, CniError> {
    let mut found = Faults::default();
    let command = found.parse("CNI_COMMAND", &env.command, true, |s| {
        let known = Command::ALL.map(Command::as_str).join(", ");
        Command::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| format!("`{s}` is none of {known}"))
    });
    let needs = |name| command.is_some_and(|c| c.needs(name));
    // A variable that the command does not use may hold anything.
    let used = |name, variable| match command {
        Some(c) if !c.needs(name) => &Variable::Missing,
        _ => variable,
    };
    let container_id = found.parse(
        "CNI_CONTAINERID",
        used("CNI_CONTAINERID", &env.container_id),
        needs("CNI_CONTAINERID"),
        |s| s.parse::<ContainerId>().map_err(|e| e.to_string()),
    );
    // DEL may get a namespace without needing one.
    let netns = match command {
        Some(Command::Gc | Command::Status | Command::Version) => None,
        Some(Command::Del) if env.netns == Variable::NotText => None,
        _ => found.parse("CNI_NETNS", &env.netns, needs("CNI_NETNS"), |s| Ok(s.to_owned())),
    };
    let ifname = found.parse("CNI_IFNAME", used("CNI_IFNAME", &env.ifname), needs("CNI_IFNAME"), |s| {
        s.parse::<IfName>().map_err(|e| e.to_string())
    });
    found.parse("CNI_PATH", used("CNI_PATH", &env.path), needs("CNI_PATH"), |_| Ok(()));
    match (command, found.into_error()) {
        (Some(command), None) => {
            Ok(Parameters { command, container_id, ifname, netns, args: env.args.clone() })
        }
        (_, error) => Err(error.unwrap_or_else(|| invalid("CNI_COMMAND is missing".to_owned()))),
    }
}

/// Variables that are missing or invalid.
#[derive(Default)]
struct Faults {
    missing: Vec<&'static str>,
    invalid: Vec<String>,
}

impl Faults {
    fn parse<T>(
        &mut self,
        name: &'static str,
        variable: &Variable,
        needed: bool,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match variable {
            Variable::Missing => {
                if needed {
                    self.missing.push(name);
                }
                None
            }
            Variable::NotText => {
                self.invalid.push(format!("{name} is not UTF-8"));
                None
            }
            Variable::Text(s) => match parse(s) {
                Ok(value) => Some(value),
                Err(why) => {
                    self.invalid.push(format!("{name}: {why}"));
                    None
                }
            },
        }
    }

    fn into_error(self) -> Option<CniError> {
        let missing = (!self.missing.is_empty())
            .then(|| format!("required environment variables missing: {}", self.missing.join(", ")));
        let parts: Vec<String> = missing.into_iter().chain(self.invalid).collect();
        (!parts.is_empty()).then(|| invalid(parts.join("; ")))
    }
}

fn invalid(msg: String) -> CniError {
    CniError::new(ErrorCode::INVALID_ENVIRONMENT, msg)
}

/// The pod in `CNI_ARGS`: `None` when the text names no pod at all.
///
/// The text is `KEY=value` pairs with `;` between them. A key that is not known is an error unless
/// `IgnoreUnknown` is set (CNI conventions, "CNI_ARGS").
///
/// # Errors
/// Code 4 for a malformed pair, an unknown key, or a pod that is named only in part.
pub fn pod_of_args(args: &Variable) -> Result<Option<PodRef>, CniError> {
    let text = match args {
        Variable::Missing => return Ok(None),
        Variable::NotText => return Err(invalid("CNI_ARGS is not UTF-8".to_owned())),
        Variable::Text(s) => s,
    };
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    for pair in text.split(';').filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| invalid(format!("CNI_ARGS: `{pair}` is no pair of KEY=value")))?;
        match key {
            "IgnoreUnknown" => {
                ignore_unknown = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err(invalid(format!("CNI_ARGS: IgnoreUnknown={value} is neither 1 nor 0"))),
                };
            }
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            // The same as CNI_CONTAINERID.
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            _ => unknown.push(key),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(invalid(format!(
            "CNI_ARGS: unknown keys without IgnoreUnknown=1: {}",
            unknown.join(", ")
        )));
    }
    let keys = [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name), ("K8S_POD_UID", uid)];
    let given = |v: &Option<&str>| v.is_some_and(|v| !v.is_empty());
    if !keys.iter().any(|(_, v)| given(v)) {
        return Ok(None);
    }
    let absent: Vec<&str> = keys.iter().filter(|(_, v)| !given(v)).map(|(k, _)| *k).collect();
    match (namespace, name, uid) {
        (Some(namespace), Some(name), Some(uid)) if absent.is_empty() => {
            Ok(Some(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() }))
        }
        _ => Err(invalid(format!("CNI_ARGS: {} missing", absent.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// An environment with every variable that is named in `set`.
    fn env(command: &str, set: &[&str]) -> Environment {
        Environment::read(|name| match name {
            "CNI_COMMAND" => command.into(),
            _ if !set.contains(&name) => Variable::Missing,
            "CNI_CONTAINERID" => "c1".into(),
            "CNI_NETNS" => "/run/netns/x".into(),
            "CNI_IFNAME" => "eth0".into(),
            _ => "x".into(),
        })
    }

    const ALL: [&str; 4] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];

    /// The table of the spec: every subset of the variables for every command.
    #[rstest]
    #[case("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])]
    #[case("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])]
    #[case("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])]
    #[case("GC", &["CNI_PATH"])]
    #[case("STATUS", &[])]
    #[case("VERSION", &[])]
    fn matrix(#[case] command: &str, #[case] required: &[&str]) {
        for bits in 0..1_u32 << ALL.len() {
            let set: Vec<&str> =
                ALL.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, n)| *n).collect();
            let missing: Vec<&str> = required.iter().copied().filter(|n| !set.contains(n)).collect();
            match check(&env(command, &set)) {
                Ok(p) => assert!(missing.is_empty() && p.command.as_str() == command, "{command} {set:?}"),
                Err(e) => {
                    assert_eq!(e.code, ErrorCode::INVALID_ENVIRONMENT);
                    let want = format!("required environment variables missing: {}", missing.join(", "));
                    assert_eq!(e.msg, want, "{command} {set:?}");
                }
            }
        }
    }

    #[test]
    fn missing_and_invalid_are_told_together() {
        let e = check(&Environment {
            container_id: "a/b".into(),
            ifname: "far-too-long-name".into(),
            ..env("ADD", &[])
        })
        .unwrap_err();
        for named in ["CNI_NETNS", "CNI_CONTAINERID", "CNI_IFNAME"] {
            assert!(e.msg.contains(named), "{e}");
        }
        assert!(check(&env("", &ALL)).unwrap_err().msg.contains("CNI_COMMAND"));
        let e = check(&Environment { container_id: "..".into(), ..env("add", &ALL) }).unwrap_err();
        assert!(e.msg.contains("CNI_COMMAND") && e.msg.contains("CNI_CONTAINERID"), "{e}");
    }

    #[rstest]
    #[case("a/b")]
    #[case("a:b")]
    #[case("a b")]
    #[case(".")]
    #[case("..")]
    #[case("sixteen-letters-")]
    #[case("a\tb")]
    fn interface_syntax(#[case] name: &str) {
        for command in ["ADD", "DEL", "CHECK"] {
            let e = check(&Environment { ifname: name.into(), ..env(command, &ALL) }).unwrap_err();
            assert!(e.msg.starts_with("CNI_IFNAME"), "{e}");
        }
        assert!(check(&Environment { ifname: name.into(), ..env("GC", &ALL) }).is_ok());
    }

    #[test]
    fn del_works_with_a_namespace_that_is_gone() {
        let p = check(&Environment { netns: Variable::Missing, ..env("DEL", &ALL) }).unwrap();
        assert_eq!(p.netns, None);
        let p = check(&Environment { netns: Variable::NotText, ..env("DEL", &ALL) }).unwrap();
        assert_eq!(p.netns, None);
    }

    #[rstest]
    #[case("", None)]
    #[case("IgnoreUnknown=1", None)]
    #[case("IgnoreUnknown=true;FOO=BAR;;", None)]
    #[case("K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c", Some(("n", "p", "u")))]
    #[case("A=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_UID=u;IgnoreUnknown=True", Some(("n", "p", "u")))]
    fn args(#[case] text: &str, #[case] pod: Option<(&str, &str, &str)>) {
        let pod =
            pod.map(|(ns, name, uid)| PodRef { namespace: ns.into(), name: name.into(), uid: uid.into() });
        assert_eq!(pod_of_args(&text.into()), Ok(pod));
    }

    #[rstest]
    #[case("FOO", "FOO")]
    #[case("FOO=BAR", "FOO")]
    #[case("FOO=BAR;IgnoreUnknown=0", "FOO")]
    #[case("IgnoreUnknown=maybe", "IgnoreUnknown")]
    #[case("K8S_POD_NAMESPACE=n;K8S_POD_NAME=p", "K8S_POD_UID missing")]
    #[case("K8S_POD_NAMESPACE=n;K8S_POD_NAME=;K8S_POD_UID=u", "K8S_POD_NAME missing")]
    fn bad_args(#[case] text: &str, #[case] named: &str) {
        let e = pod_of_args(&text.into()).unwrap_err();
        assert_eq!(e.code, ErrorCode::INVALID_ENVIRONMENT);
        assert!(e.msg.starts_with("CNI_ARGS") && e.msg.contains(named), "{e}");
    }
}
