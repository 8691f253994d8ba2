//! The kinds that an API server has, and what a word of a kubectl call means among them.

use kube::core::discovery::v2::APIGroupDiscovery;

use super::query::{Query, Scope};

/// One kind in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    group: String,
    version: String,
    pub(super) kind: String,
    plural: String,
    singular: String,
    short_names: Vec<String>,
    namespaced: bool,
}

impl Resource {
    /// As objects have it: `v1`, `braid.network/v1`.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As errors have it: `pods`, `networks.braid.network`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Path of the collection that a query is about.
    pub(super) fn path(&self, query: &Query) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let start = format!("/{root}/{}", self.api_version());
        match &query.scope {
            Scope::Namespace(namespace) if self.namespaced => {
                format!("{start}/namespaces/{namespace}/{}", self.plural)
            }
            _ => format!("{start}/{}", self.plural),
        }
    }

    fn is_called(&self, word: &str) -> bool {
        let names = [self.plural.as_str(), &self.singular, &self.kind.to_lowercase()];
        names.into_iter().filter(|name| !name.is_empty()).any(|name| {
            let Some(rest) = word.strip_prefix(name) else { return false };
            rest.is_empty()
                || rest.strip_prefix('.').is_some_and(|rest| {
                    rest == self.group
                        || rest.strip_prefix(&format!("{}.", self.version)) == Some(&self.group)
                })
        })
    }

    #[cfg(test)]
    pub(super) fn example(
        group: &str,
        version: &str,
        kind: &str,
        plural: &str,
        singular: &str,
        short_names: &[&str],
    ) -> Self {
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: singular.to_owned(),
            short_names: short_names.iter().map(|&name| name.to_owned()).collect(),
            namespaced: kind == "Pod",
        }
    }
}

/// All kinds, in the API server's order: of two with one name the first is meant.
#[derive(Debug)]
pub(super) struct Catalogue(Vec<Resource>);

impl Catalogue {
    pub(super) fn new(groups: impl Iterator<Item = APIGroupDiscovery>) -> Self {
        let mut resources = Vec::new();
        for group in groups {
            let name = group.metadata.and_then(|metadata| metadata.name).unwrap_or_default();
            for version in group.versions {
                let number = version.version.unwrap_or_default();
                resources.extend(version.resources.into_iter().map(|resource| Resource {
                    group: name.clone(),
                    version: number.clone(),
                    kind: resource.response_kind.and_then(|kind| kind.kind).unwrap_or_default(),
                    plural: resource.resource.unwrap_or_default(),
                    singular: resource.singular_resource.unwrap_or_default(),
                    short_names: resource.short_names,
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                }));
            }
        }
        Self(resources)
    }

    /// The kind that a word stands for: `pods`, `pod`, `po`, `certificates.cert-manager.io`.
    pub(super) fn find(&self, word: &str) -> Option<&Resource> {
        let word = word.to_lowercase();
        let by_name = self.0.iter().find(|resource| resource.is_called(&word));
        by_name.or_else(|| self.0.iter().find(|resource| resource.short_names.contains(&word)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn catalogue() -> Catalogue {
        let pod = json!({
            "resource": "pods", "singularResource": "pod", "scope": "Namespaced", "shortNames": ["po"],
            "responseKind": {"group": "", "version": "", "kind": "Pod"}, "verbs": ["get"],
        });
        let network = json!({
            "resource": "networks", "singularResource": "network", "scope": "Cluster", "shortNames": ["net"],
            "responseKind": {"group": "braid.network", "version": "v1", "kind": "Network"}, "verbs": ["get"],
        });
        let metrics = json!({
            "resource": "pods", "singularResource": "", "scope": "Namespaced",
            "responseKind": {"group": "metrics.k8s.io", "version": "v1", "kind": "PodMetrics"}, "verbs": ["get"],
        });
        let groups = [("", pod), ("braid.network", network), ("metrics.k8s.io", metrics)];
        Catalogue::new(groups.into_iter().map(|(name, resource)| {
            let versions = json!([{"version": "v1", "resources": [resource]}]);
            serde_json::from_value(json!({"metadata": {"name": name}, "versions": versions})).unwrap()
        }))
    }

    fn check(word: &str, wanted: Option<&str>) {
        let catalogue = catalogue();
        assert_eq!(catalogue.find(word).map(|resource| resource.kind.as_str()), wanted, "{word}");
    }

    #[test]
    fn words_are_understood_as_by_kubectl() {
        for word in ["pods", "pod", "po", "Pod"] {
            check(word, Some("Pod"));
        }
        for word in ["networks", "network", "net", "networks.braid.network", "network.v1.braid.network"] {
            check(word, Some("Network"));
        }
        check("pods.metrics.k8s.io", Some("PodMetrics"));
        check("networks.other.group", None);
        check("podsx", None);
        check("", None);
    }

    #[test]
    fn paths_have_a_namespace_where_the_kind_has_one() {
        let catalogue = catalogue();
        let path = |words: &[&str]| {
            let query = Query::parse(words).unwrap();
            catalogue.find(words.last().unwrap()).unwrap().path(&query)
        };
        assert_eq!(path(&["get", "pods"]), "/api/v1/namespaces/default/pods");
        assert_eq!(path(&["-n", "a", "get", "pods"]), "/api/v1/namespaces/a/pods");
        assert_eq!(path(&["get", "-A", "pods"]), "/api/v1/pods");
        assert_eq!(path(&["-n", "a", "get", "networks"]), "/apis/braid.network/v1/networks");
    }
}
