//! What a call of `kubectl get` asks for.

/// Where to look. Kinds without a namespace are found anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Namespace(String),
    Everywhere,
}

/// Whether objects keep the record of who wrote what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ManagedFields {
    Hidden,
    Shown,
}

/// What it means that a named object is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    IsAnError,
    IsFine,
}

/// What is asked for; kinds as the caller called them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All objects of these kinds.
    Lists(Vec<String>),
    /// These objects, each with its kind.
    Objects(Vec<(String, String)>),
}

/// A call of `kubectl get`, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(super) scope: Scope,
    pub(super) wanted: Wanted,
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
    pub(super) managed_fields: ManagedFields,
    pub(super) missing: Missing,
}

impl Query {
    /// Reads the arguments of a kubectl call without `-o json`. `None` when it is no `get`, or has anything that is not
    /// known here for certain: kubectl itself understands the rest.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut query = Self {
            scope: Scope::Namespace("default".to_owned()),
            wanted: Wanted::Lists(Vec::new()),
            labels: None,
            fields: None,
            managed_fields: ManagedFields::Hidden,
            missing: Missing::IsAnError,
        };
        let mut words = Vec::new();
        let mut arguments = arguments.iter().copied();
        while let Some(argument) = arguments.next() {
            let (flag, inline) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') => (flag, Some(value)),
                _ => (argument, None),
            };
            match flag {
                "-n" | "--namespace" => {
                    query.scope = Scope::Namespace(inline.or_else(|| arguments.next())?.into());
                }
                "-l" | "--selector" => query.labels = Some(inline.or_else(|| arguments.next())?.into()),
                "--field-selector" => query.fields = Some(inline.or_else(|| arguments.next())?.into()),
                "-A" | "--all-namespaces" if inline.is_none() => query.scope = Scope::Everywhere,
                "--show-managed-fields" if inline.is_none() => query.managed_fields = ManagedFields::Shown,
                "--ignore-not-found" if inline.is_none() => query.missing = Missing::IsFine,
                flag if flag.starts_with('-') => return None,
                word => words.push(word),
            }
        }
        let ["get", rest @ ..] = words.as_slice() else { return None };
        query.wanted = Wanted::parse(rest)?;
        let is_narrowed =
            query.scope == Scope::Everywhere || query.labels.is_some() || query.fields.is_some();
        let is_named = matches!(query.wanted, Wanted::Objects(_));
        (!(is_narrowed && is_named)).then_some(query)
    }

    /// The kind, and the name of the object, if the query is about one of each or about all objects of one kind.
    pub(super) fn only(&self) -> Option<(&str, Option<&str>)> {
        match &self.wanted {
            Wanted::Lists(kinds) => match kinds.as_slice() {
                [kind] => Some((kind, None)),
                _ => None,
            },
            Wanted::Objects(objects) => match objects.as_slice() {
                [(kind, name)] => Some((kind, Some(name))),
                _ => None,
            },
        }
    }

    /// Whether one watch covers the query.
    pub(super) fn can_be_watched(&self) -> bool {
        self.only().is_some()
    }

    /// The field selector of a list that holds only the object of this name.
    pub(super) fn fields_with(&self, name: Option<&str>) -> Option<String> {
        name.map(|name| format!("metadata.name={name}")).or_else(|| self.fields.clone())
    }
}

impl Wanted {
    /// `networks,subnets`, `pod a b` or `pod/a deployment/b`.
    fn parse(words: &[&str]) -> Option<Self> {
        let (first, names) = words.split_first()?;
        if first.contains('/') {
            let pairs = words.iter().map(|word| word.split_once('/'));
            let objects: Option<Vec<(&str, &str)>> = pairs.collect();
            // More than one slash, a category or an empty word: not a notation of tests.
            let is_plain = |(kind, name): &(&str, &str)| {
                is_kind(kind) && !kind.contains(',') && !name.is_empty() && !name.contains('/')
            };
            let objects = objects.filter(|objects| objects.iter().all(is_plain))?;
            return Some(Self::Objects(objects.into_iter().map(|(a, b)| (a.into(), b.into())).collect()));
        }
        let kinds: Vec<&str> = first.split(',').collect();
        if !kinds.iter().all(|kind| is_kind(kind))
            || names.iter().any(|name| name.is_empty() || name.contains('/'))
        {
            return None;
        }
        if names.is_empty() {
            return Some(Self::Lists(kinds.into_iter().map(str::to_owned).collect()));
        }
        let of_kind =
            |kind: &str| names.iter().map(|&name| (kind.to_owned(), name.to_owned())).collect::<Vec<_>>();
        Some(Self::Objects(kinds.into_iter().flat_map(of_kind).collect()))
    }
}

/// `all` is a category of kinds.
fn is_kind(word: &str) -> bool {
    !word.is_empty() && word != "all"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(wanted: Wanted) -> Query {
        Query {
            scope: Scope::Namespace("default".to_owned()),
            wanted,
            labels: None,
            fields: None,
            managed_fields: ManagedFields::Hidden,
            missing: Missing::IsAnError,
        }
    }

    fn lists(kinds: &[&str]) -> Wanted {
        Wanted::Lists(kinds.iter().map(|&kind| kind.to_owned()).collect())
    }

    fn objects(pairs: &[(&str, &str)]) -> Wanted {
        Wanted::Objects(pairs.iter().map(|&(kind, name)| (kind.to_owned(), name.to_owned())).collect())
    }

    fn check(arguments: &str, wanted: Option<&Query>) {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        assert_eq!(Query::parse(&words).as_ref(), wanted, "{arguments}");
    }

    #[test]
    fn calls_of_tests_are_understood() {
        check("get nodes", Some(&plain(lists(&["nodes"]))));
        check("get networks,subnets", Some(&plain(lists(&["networks", "subnets"]))));
        check("get subnet/a", Some(&plain(objects(&[("subnet", "a")]))));
        check("get pod a b", Some(&plain(objects(&[("pod", "a"), ("pod", "b")]))));
        check("get network/a subnet/b", Some(&plain(objects(&[("network", "a"), ("subnet", "b")]))));
        let scope = Scope::Namespace("braid-system".to_owned());
        let daemons = Query {
            scope,
            labels: Some("app.kubernetes.io/name=braid-node".to_owned()),
            ..plain(lists(&["pods"]))
        };
        check("-n braid-system get pods -l app.kubernetes.io/name=braid-node", Some(&daemons));
        check("get pods --namespace=braid-system -l=app.kubernetes.io/name=braid-node", Some(&daemons));
        let fields = Some("involvedObject.name=a,reason=b".to_owned());
        let events = Query { fields, ..plain(lists(&["events"])) };
        check("get events --field-selector=involvedObject.name=a,reason=b", Some(&events));
        check("get pods -A", Some(&Query { scope: Scope::Everywhere, ..plain(lists(&["pods"])) }));
        let shown = Query { managed_fields: ManagedFields::Shown, ..plain(objects(&[("secret", "a")])) };
        check("get secret a --show-managed-fields", Some(&shown));
        let maybe = Query { missing: Missing::IsFine, ..plain(objects(&[("ipi", "10.0.0.1")])) };
        check("get ipi 10.0.0.1 --ignore-not-found", Some(&maybe));
        // The last one of a namespace counts.
        let other = Query { scope: Scope::Namespace("b".to_owned()), ..plain(lists(&["pods"])) };
        check("-n a -n b get pods", Some(&other));
    }

    #[test]
    fn everything_else_is_left_to_kubectl() {
        for arguments in [
            "",
            "get",
            "apply -f file",
            "get all",
            "get pods --sort-by=.metadata.name",
            "get pods -o wide",
            "get -f file",
            "get pods -l",
            "get pod a -l app=a",
            "get pod a -A",
            "get pod/a b",
            "get pod a/b",
            "get pod/a/b",
            "get pod/",
            "get pods,",
            "get pods --ignore-not-found=false",
            "get --raw=/metrics",
        ] {
            check(arguments, None);
        }
    }

    #[test]
    fn one_watch_is_for_one_kind() {
        let only = |words: &[&str]| Query::parse(words).unwrap().can_be_watched();
        assert!(only(&["get", "pods"]) && only(&["get", "pod", "a"]));
        assert!(!only(&["get", "pods,nodes"]) && !only(&["get", "pod", "a", "b"]));
        let query = Query::parse(&["get", "pod", "a"]).unwrap();
        assert_eq!(query.fields_with(Some("a")).as_deref(), Some("metadata.name=a"));
    }
}
