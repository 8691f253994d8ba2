//! One client per cluster in the test process: what `kubectl get -o json` prints, without a process for every look, and
//! waits that follow a watch.
//!
//! Callers are plain threads, many at once. The work runs on a runtime of its own, so that a caller inside another
//! runtime is fine too.

mod catalogue;
pub(crate) mod condition;
mod query;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use futures::TryStreamExt;
use kube::Config;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{Request, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use catalogue::{Catalogue, Resource};
pub(crate) use query::Query;
use query::{ManagedFields, Missing, Wanted};

/// After this time an API server that says nothing is taken for dead.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How long one watch lasts; then everything is listed anew. A node that lost its power says no goodbye, so this is
/// also how long a watch on it can last in vain.
const WATCH_SECONDS: u32 = 15;

/// Between a watch that has ended and the next one.
const PAUSE: Duration = Duration::from_millis(100);

static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
    // A second provider is refused, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Builder::new_multi_thread().worker_threads(2).thread_name("e2e-client").enable_all().build()
});

static CLIENTS: LazyLock<Mutex<HashMap<String, Arc<Client>>>> = LazyLock::new(Mutex::default);

fn runtime() -> Result<&'static Runtime> {
    RUNTIME.as_ref().map_err(|error| anyhow!("no threads for the client: {error}"))
}

/// Runs a future on the client's own threads and waits for it.
fn finish<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime()?.spawn(async move { sender.send(future.await).ok() });
    receiver.recv().context("the client ended by a panic")?
}

/// What the API server said instead of doing it.
#[derive(Debug)]
struct Refusal {
    code: u16,
    reason: String,
    message: String,
    /// The object that it is about; empty when the whole kind is not served.
    name: String,
}

impl Refusal {
    fn not_found(resource: &Resource, name: &str) -> Self {
        Self {
            code: 404,
            reason: "NotFound".to_owned(),
            message: format!("{} \"{name}\" not found", resource.qualified()),
            name: name.to_owned(),
        }
    }
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Self {
        Self {
            code: status.code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            name: status.details.as_ref().map(|details| details.name.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error from server ({}): {}", self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}

fn is_missing(error: &Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == 404 && !refusal.name.is_empty())
}

/// Whether the kind itself is not there: then what is known about kinds is out of date.
fn is_unserved(error: &Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == 404 && refusal.name.is_empty())
}

fn failure(error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => Refusal::from(&*status).into(),
        other => other.into(),
    }
}

/// A list as `kubectl get -o json` prints it.
fn list_of(items: Vec<Value>) -> Value {
    let mut list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}});
    list["items"] = Value::Array(items);
    list
}

/// An object as kubectl prints it: lists of the API server leave out what kind their objects are.
fn printed(mut object: Value, resource: &Resource, managed_fields: ManagedFields) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.entry("apiVersion").or_insert_with(|| json!(resource.api_version()));
        members.entry("kind").or_insert_with(|| json!(resource.kind));
    }
    if managed_fields == ManagedFields::Hidden
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("managedFields");
    }
    object
}

/// The last thing that was seen, for the person who reads why a wait was in vain.
fn in_brief(state: &Value) -> String {
    if let Some(items) = state["items"].as_array() {
        let names = items.iter().filter_map(|item| item["metadata"]["name"].as_str());
        return format!("a list of {}: {}", items.len(), names.collect::<Vec<_>>().join(", "));
    }
    let status = &state["status"];
    if status.is_null() { state.to_string() } else { status.to_string() }
}

/// A client with all rights in one cluster.
#[derive(Debug)]
pub(crate) struct Client {
    cluster: String,
    /// Contents of the file. Others mean another cluster of this name.
    kubeconfig: String,
    connections: Mutex<Option<Connections>>,
    catalogue: Mutex<Option<Arc<Catalogue>>>,
}

#[derive(Clone)]
struct Connections(kube::Client);

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl Client {
    /// The client of a cluster, which all threads share. One that was brought up anew under its name has another one.
    pub(crate) fn of(cluster: &str, kubeconfig: &Path) -> Result<Arc<Self>> {
        let contents = std::fs::read_to_string(kubeconfig)
            .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
        let mut clients = CLIENTS.lock();
        if let Some(known) = clients.get(cluster).filter(|client| client.kubeconfig == contents) {
            return Ok(Arc::clone(known));
        }
        let client = Arc::new(Self {
            cluster: cluster.to_owned(),
            kubeconfig: contents,
            connections: Mutex::default(),
            catalogue: Mutex::default(),
        });
        clients.insert(cluster.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// What `kubectl get -o json` prints. A single object that is not there, and need not be, is null.
    pub(crate) fn get(self: &Arc<Self>, query: &Query) -> Result<Value> {
        let (client, query) = (Arc::clone(self), query.clone());
        finish(async move { client.read(&query).await })
    }

    /// Looks at what `get` returns whenever it has changed, until `look` returns something or `limit` has passed.
    ///
    /// # Errors
    /// After `limit`, the last error or the last state; `what` names the wish.
    pub(crate) fn await_state<T>(
        self: &Arc<Self>,
        what: &str,
        query: &Query,
        limit: Duration,
        mut look: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<T> {
        if !query.can_be_watched() {
            return crate::exec::eventually(what, limit, || look(&self.get(query)?));
        }
        let _wait = crate::exec::Wait::start(what);
        let deadline = Instant::now() + limit;
        let (states, changes) = mpsc::channel();
        let task = runtime()?.spawn(Arc::clone(self).follow(query.clone(), states));
        let mut last = None;
        let result = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let state = match changes.recv_timeout(left) {
                // Only the newest state counts, and none after the deadline but the one at hand.
                Ok(state) => changes.try_iter().last().unwrap_or(state),
                Err(RecvTimeoutError::Timeout) => break Err(in_vain(what, limit, last)),
                Err(RecvTimeoutError::Disconnected) => break Err(anyhow!("the client ended by a panic")),
            };
            let outcome = state.and_then(|state| match look(&state)? {
                Some(value) => Ok(Ok(value)),
                None => Ok(Err(state)),
            });
            match outcome {
                Ok(Ok(value)) => break Ok(value),
                _ if left.is_zero() => break Err(in_vain(what, limit, last)),
                Ok(Err(state)) => last = Some(Ok(state)),
                Err(error) => last = Some(Err(error)),
            }
        };
        task.abort();
        result
    }

    async fn connect(&self) -> Result<kube::Client> {
        if let Some(connections) = &*self.connections.lock() {
            return Ok(connections.0.clone());
        }
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        *self.connections.lock() = Some(Connections(client.clone()));
        Ok(client)
    }

    /// An answer, if it comes in time. If not, no connection is trusted any more: the node at the other end may have
    /// lost its power since.
    async fn in_time<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> Result<T> {
        if let Ok(answer) = tokio::time::timeout(REQUEST_LIMIT, answer).await {
            return answer.map_err(failure);
        }
        *self.connections.lock() = None;
        bail!("the API server of '{}' did not answer within {} s", self.cluster, REQUEST_LIMIT.as_secs())
    }

    async fn known_catalogue(&self) -> Result<Arc<Catalogue>> {
        let known = self.catalogue.lock().clone();
        match known {
            Some(catalogue) => Ok(catalogue),
            None => self.new_catalogue().await,
        }
    }

    async fn new_catalogue(&self) -> Result<Arc<Catalogue>> {
        let client = self.connect().await?;
        let core = self.in_time(client.list_core_api_versions_aggregated()).await?;
        let others = self.in_time(client.list_api_groups_aggregated()).await?;
        let catalogue = Arc::new(Catalogue::new(core.items.into_iter().chain(others.items)));
        *self.catalogue.lock() = Some(Arc::clone(&catalogue));
        Ok(catalogue)
    }

    /// What a word means: kinds come and go with tests, so an unknown one is asked for anew.
    async fn resource(&self, word: &str) -> Result<Resource> {
        if let Some(resource) = self.known_catalogue().await?.find(word) {
            return Ok(resource.clone());
        }
        let catalogue = self.new_catalogue().await?;
        let found = catalogue.find(word).cloned();
        found.with_context(|| format!("error: the server doesn't have a resource type \"{word}\""))
    }

    async fn read(&self, query: &Query) -> Result<Value> {
        match self.read_once(query).await {
            Err(error) if is_unserved(&error) => {
                *self.catalogue.lock() = None;
                self.read_once(query).await
            }
            other => other,
        }
    }

    async fn read_once(&self, query: &Query) -> Result<Value> {
        let mut found = Vec::new();
        match &query.wanted {
            Wanted::Lists(words) => {
                for word in words {
                    let resource = self.resource(word).await?;
                    found.extend(self.list(query, &resource, None).await?.1);
                }
            }
            Wanted::Objects(objects) => {
                for (word, name) in objects {
                    let resource = self.resource(word).await?;
                    match self.object(query, &resource, name).await {
                        Ok(object) => found.push(object),
                        Err(error) if query.missing == Missing::IsFine && is_missing(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
                if objects.len() == 1 {
                    return Ok(found.pop().unwrap_or_default());
                }
            }
        }
        Ok(list_of(found))
    }

    async fn object(&self, query: &Query, resource: &Resource, name: &str) -> Result<Value> {
        let request = Request::new(resource.path(query)).get(name, &kube::api::GetParams::default())?;
        let client = self.connect().await?;
        let object = self.in_time(client.request::<Value>(request)).await?;
        Ok(printed(object, resource, query.managed_fields))
    }

    /// The version of a list, and its objects.
    async fn list(
        &self,
        query: &Query,
        resource: &Resource,
        name: Option<&str>,
    ) -> Result<(String, Vec<Value>)> {
        let parameters = ListParams {
            label_selector: query.labels.clone(),
            field_selector: query.fields_with(name),
            ..ListParams::default()
        };
        let request = Request::new(resource.path(query)).list(&parameters)?;
        let client = self.connect().await?;
        let mut list: Value = self.in_time(client.request(request)).await?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let Value::Array(items) = list["items"].take() else { return Ok((version, Vec::new())) };
        let items = items.into_iter().map(|item| printed(item, resource, query.managed_fields));
        Ok((version, items.collect()))
    }

    /// Tells what `get` would return, now and after every change, and every error on the way, until it is aborted.
    async fn follow(self: Arc<Self>, query: Query, states: mpsc::Sender<Result<Value>>) {
        loop {
            if let Err(error) = self.follow_once(&query, &states).await {
                if is_unserved(&error) {
                    *self.catalogue.lock() = None;
                }
                // Nobody listens in the moment before this is aborted.
                states.send(Err(error)).ok();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lists, then watches from there on: what is there already counts, and nothing is missed in between.
    async fn follow_once(&self, query: &Query, states: &mpsc::Sender<Result<Value>>) -> Result<()> {
        let (word, name) = query.only().context("not a query of one kind")?;
        let resource = self.resource(word).await?;
        let key = |object: &Value| {
            let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            (part("namespace"), part("name"))
        };
        let tell = |objects: &BTreeMap<(String, String), Value>| {
            let state = match name {
                None => Ok(list_of(objects.values().cloned().collect())),
                Some(name) => match objects.values().next() {
                    Some(object) => Ok(object.clone()),
                    None if query.missing == Missing::IsFine => Ok(Value::Null),
                    None => Err(Refusal::not_found(&resource, name).into()),
                },
            };
            // Nobody listens in the moment before this is aborted.
            states.send(state).ok();
        };

        let (version, items) = self.list(query, &resource, name).await?;
        let mut objects: BTreeMap<_, _> = items.into_iter().map(|item| (key(&item), item)).collect();
        tell(&objects);

        let parameters = WatchParams {
            label_selector: query.labels.clone(),
            field_selector: query.fields_with(name),
            timeout: Some(WATCH_SECONDS),
            bookmarks: false,
            send_initial_events: false,
        };
        let request = Request::new(resource.path(query)).watch(&parameters, &version)?;
        let client = self.connect().await?;
        let mut events = pin!(self.in_time(client.request_events::<Value>(request)).await?);
        let changes = async {
            while let Some(event) = events.try_next().await.map_err(failure)? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        objects.insert(key(&object), printed(object, &resource, query.managed_fields));
                    }
                    WatchEvent::Deleted(object) => {
                        objects.remove(&key(&object));
                    }
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(status) => return Err(Refusal::from(&*status).into()),
                }
                tell(&objects);
            }
            Ok(())
        };
        let limit = Duration::from_secs(WATCH_SECONDS.into()) + REQUEST_LIMIT;
        if let Ok(end) = tokio::time::timeout(limit, changes).await {
            return end;
        }
        // The API server ends a watch in time, if it lives.
        *self.connections.lock() = None;
        Ok(())
    }
}

fn in_vain(what: &str, limit: Duration, last: Option<Result<Value>>) -> Error {
    let sentence = format!("{what}: not within {} s", limit.as_secs());
    match last {
        None => anyhow!("{sentence}"),
        Some(Ok(state)) => anyhow!("{sentence}; last seen: {}", in_brief(&state)),
        Some(Err(error)) => error.context(sentence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Resource {
        Resource::example("", "v1", "Pod", "pods", "pod", &["po"])
    }

    #[test]
    fn an_object_says_what_it_is_and_not_who_wrote_it() {
        let bare = json!({"metadata": {"name": "a", "managedFields": [1]}});
        let wanted = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(printed(bare.clone(), &pods(), ManagedFields::Hidden), wanted);
        assert_eq!(printed(bare, &pods(), ManagedFields::Shown)["metadata"]["managedFields"], json!([1]));
    }

    #[test]
    fn what_is_not_there_is_said_as_kubectl_says_it() {
        let error: Error = Refusal::not_found(&pods(), "x").into();
        assert_eq!(error.to_string(), "Error from server (NotFound): pods \"x\" not found");
        assert!(is_missing(&error) && !is_unserved(&error));
        let network = Resource::example("braid.network", "v1", "Network", "networks", "network", &["net"]);
        let error = Refusal::not_found(&network, "x").to_string();
        assert_eq!(error, "Error from server (NotFound): networks.braid.network \"x\" not found");
    }

    #[test]
    fn a_wait_in_vain_names_what_it_saw_last() {
        let object = json!({"metadata": {"name": "a"}, "status": {"phase": "Pending"}});
        let said = in_vain("pod a", Duration::from_secs(5), Some(Ok(object))).to_string();
        assert_eq!(said, "pod a: not within 5 s; last seen: {\"phase\":\"Pending\"}");
        let list = list_of(vec![json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}})]);
        assert_eq!(in_brief(&list), "a list of 2: a, b");
    }

    #[test]
    fn a_caller_inside_another_runtime_is_fine() {
        let outer = Builder::new_current_thread().build().unwrap();
        assert_eq!(outer.block_on(async { finish(async { Ok(5) }) }).unwrap(), 5);
    }

    #[test]
    fn a_cluster_brought_up_anew_has_a_new_client() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let client = || Client::of("a-test-of-the-registry", file.path()).unwrap();
        std::fs::write(&file, "one").unwrap();
        let first = client();
        assert!(Arc::ptr_eq(&first, &client()));
        std::fs::write(&file, "two").unwrap();
        assert!(!Arc::ptr_eq(&first, &client()));
    }
}
