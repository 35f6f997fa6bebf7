//! What reconciliations share: the client, the caches, the links, and what the world outside gives.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::core::names::{Identity, Installation, Kind};
use crate::operator::backoff::Backoff;
use crate::operator::bridge::PoolKey;
use crate::operator::crd::{Coprocessor, Pipeline, RuntimePool};
use crate::operator::draft::DeploymentKind;
use crate::operator::lifecycle::FINALIZER;
use crate::operator::link::{Link, Notice};
use crate::operator::metrics::Metrics;
use crate::operator::questions::Questions;
use crate::operator::resolution::Known;
use crate::operator::world::{Connection, Logs, Modules};
use crate::operator::written::Written;
use crate::ports::Clock;

/// Name under which Events are reported.
const CONTROLLER: &str = "coproc-operator";

/// Registries that are asked at the same time.
const REGISTRY_CALLS: usize = 4;

/// What the operator is given from outside.
#[derive(Clone)]
pub struct World {
    /// Opens logs.
    pub logs: Arc<dyn Logs>,
    /// Resolves images.
    pub modules: Arc<dyn Modules>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Whether each cache holds everything that there is.
///
/// Not `Store::wait_until_ready`: its channel wakes only the task that asked last, and the controller itself is one
/// of those that ask, so a second one makes either hang for ever.
#[derive(Debug, Clone)]
pub struct Filled(watch::Receiver<bool>);

impl Filled {
    /// A cache that is not filled yet, and the way to say that it is.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (filled, told) = watch::channel(false);
        (filled, Self(told))
    }

    /// The same, from the way to say it.
    pub fn of(filled: &watch::Sender<bool>) -> Self {
        Self(filled.subscribe())
    }

    /// Whether it is.
    pub fn is_filled(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is; `false` when nobody fills it any more.
    pub async fn wait(&self) -> bool {
        self.0.clone().wait_for(|filled| *filled).await.is_ok()
    }
}

/// The caches that controllers fill.
pub struct Stores {
    /// Pools.
    pub pools: Store<RuntimePool>,
    /// Whether all pools are in their cache.
    pub pools_filled: Filled,
    /// Coprocessors.
    pub coprocessors: Store<Coprocessor>,
    /// Whether all coprocessors are in their cache.
    pub coprocessors_filled: Filled,
    /// Pipelines.
    pub pipelines: Store<Pipeline>,
    /// Whether all pipelines are in their cache.
    pub pipelines_filled: Filled,
}

impl Stores {
    /// Waits until every coprocessor and pipeline that there is has been read; `false` when that never happens.
    pub async fn resources_are_known(&self) -> bool {
        self.coprocessors_filled.wait().await && self.pipelines_filled.wait().await
    }
}

/// What reconciliations share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The installation.
    pub installation: Installation,
    /// Image of pods whose pool names none.
    pub default_image: String,
    /// The operator's version.
    pub version: String,
    /// The world outside.
    pub world: World,
    /// The caches.
    pub stores: Stores,
    /// Metrics.
    pub metrics: Metrics,
    /// Waits of objects that failed.
    pub backoff: Backoff<String>,
    /// Bounds how many registries are asked at the same time: each call holds a thread, and a module in memory.
    pub registry_calls: Semaphore,
    /// What registries are asked next, once for all who ask the same.
    pub questions: Questions,
    links: RwLock<HashMap<PoolKey, Arc<Link>>>,
    modules: Mutex<HashMap<Identity, Vec<Known>>>,
    waits: Mutex<HashMap<String, Duration>>,
    written: Written,
    notices: mpsc::Sender<Notice>,
    recorder: Recorder,
}

/// The parts of a context that its maker chooses.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The installation.
    pub installation: Installation,
    /// Image of pods whose pool names none.
    pub default_image: String,
    /// Name of this process in Events.
    pub instance: String,
    /// The world outside.
    pub world: World,
    /// The caches.
    pub stores: Stores,
    /// Metrics.
    pub metrics: Metrics,
    /// Where links tell what to look at.
    pub notices: mpsc::Sender<Notice>,
}

impl Context {
    /// A context from its parts.
    pub fn new(parts: Parts) -> Self {
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(parts.instance) };
        Self {
            recorder: Recorder::new(parts.client.clone(), reporter),
            client: parts.client,
            installation: parts.installation,
            default_image: parts.default_image,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world: parts.world,
            stores: parts.stores,
            metrics: parts.metrics,
            backoff: Backoff::default(),
            registry_calls: Semaphore::new(REGISTRY_CALLS),
            questions: Questions::default(),
            links: RwLock::default(),
            modules: Mutex::default(),
            waits: Mutex::default(),
            written: Written::default(),
            notices: parts.notices,
        }
    }

    /// The pool of this key, unless it is gone or going.
    pub fn pool(&self, key: &PoolKey) -> Option<Arc<RuntimePool>> {
        self.pool_until_gone(key).filter(|pool| pool.metadata.deletion_timestamp.is_none())
    }

    /// The pool of this key, also while it is being deleted.
    pub fn pool_until_gone(&self, key: &PoolKey) -> Option<Arc<RuntimePool>> {
        self.stores.pools.get(&ObjectRef::new(key.name.as_str()).within(key.namespace.as_str()))
    }

    /// Whether every resource has been seen.
    pub fn is_filled(&self) -> bool {
        let Stores { pools_filled, coprocessors_filled, pipelines_filled, .. } = &self.stores;
        [pools_filled, coprocessors_filled, pipelines_filled].into_iter().all(Filled::is_filled)
    }

    /// The link of a pool, if there is one.
    pub fn link(&self, key: &PoolKey) -> Option<Arc<Link>> {
        self.links.read().get(key).cloned()
    }

    /// The link of a pool, with this connection: one with another connection is replaced.
    pub fn ensure_link(&self, key: &PoolKey, connection: Connection) -> std::io::Result<Arc<Link>> {
        let mut links = self.links.write();
        if let Some(link) = links.get(key) {
            if *link.connection() == connection {
                return Ok(link.clone());
            }
            link.stop();
        }
        let (logs, clock) = (self.world.logs.clone(), self.world.clock.clone());
        let link = Arc::new(Link::start(key.clone(), connection, logs, clock, self.notices.clone())?);
        links.insert(key.clone(), link.clone());
        Ok(link)
    }

    /// Ends the link of a pool that is gone.
    pub fn drop_link(&self, key: &PoolKey) {
        if let Some(link) = self.links.write().remove(key) {
            link.stop();
        }
    }

    /// Ends the links of all pools that are gone.
    pub fn sweep_links(&self) {
        let keys: Vec<PoolKey> = self.links.read().keys().cloned().collect();
        for key in keys.iter().filter(|key| self.pool_until_gone(key).is_none()) {
            self.drop_link(key);
        }
    }

    /// Ends all links.
    pub fn close(&self) {
        for (_, link) in self.links.write().drain() {
            link.stop();
        }
    }

    /// The identities of everything that names this pool and is not being deleted.
    pub fn resources_of(&self, key: &PoolKey) -> Vec<(Identity, bool)> {
        let mut found = self.of_kind(&self.stores.coprocessors, key);
        found.extend(self.of_kind(&self.stores.pipelines, key));
        found
    }

    fn of_kind<K: DeploymentKind + Clone>(&self, store: &Store<K>, key: &PoolKey) -> Vec<(Identity, bool)>
    where
        K::DynamicType: Eq + Hash + Clone,
    {
        of_pool(store, key)
            .filter_map(|object| {
                let is_deleted = object.meta().deletion_timestamp.is_some();
                Some((identity(&self.installation, object.as_ref())?, is_deleted))
            })
            .collect()
    }

    /// Of what names a pool that is being deleted: how many resources still have to be cleaned up after, and how many
    /// stay without it.
    pub fn dependents(&self, key: &PoolKey, namespace_ends: bool) -> Dependents {
        let mut found = Dependents::default();
        found.count(&self.stores.coprocessors, key, namespace_ends);
        found.count(&self.stores.pipelines, key, namespace_ends);
        found
    }

    /// For how long something has been waited for, by this process: 0 at the first call.
    pub fn waited(&self, what: &str) -> Duration {
        let now = self.world.clock.monotonic();
        let since = *self.waits.lock().entry(what.to_owned()).or_insert(now);
        now.saturating_sub(since)
    }

    /// Nobody waits for it any more.
    pub fn waits_no_more(&self, what: &str) {
        self.waits.lock().remove(what);
    }

    /// Whether there is a resource of this identity, being deleted or not.
    pub fn has_resource(&self, identity: &Identity) -> bool {
        let (name, namespace) = (identity.name.as_str(), identity.namespace.as_str());
        match identity.kind {
            Kind::Coprocessor => {
                self.stores.coprocessors.get(&ObjectRef::new(name).within(namespace)).is_some()
            }
            Kind::Pipeline => self.stores.pipelines.get(&ObjectRef::new(name).within(namespace)).is_some(),
        }
    }

    /// The pools in whose status topic something is left about a deployment.
    pub fn pools_that_heard_of(&self, identity: &Identity) -> Vec<PoolKey> {
        let links = self.links.read();
        let heard = links.iter().filter(|(key, link)| {
            key.owns(identity) && link.observed(|observer, _| !observer.detail_keys(identity).is_empty())
        });
        heard.map(|(key, _)| key.clone()).collect()
    }

    /// What this process knows of a deployment's images, one for each step.
    pub fn known_modules(&self, identity: &Identity) -> Vec<Known> {
        self.modules.lock().get(identity).cloned().unwrap_or_default()
    }

    /// Remembers what a deployment's images led to.
    pub fn remember_modules(&self, identity: &Identity, modules: Vec<Known>) {
        self.modules.lock().insert(identity.clone(), modules);
    }

    /// Forgets a deployment that is gone.
    pub fn forget(&self, identity: &Identity, key: &str) {
        self.modules.lock().remove(identity);
        self.forget_object(key);
    }

    /// Forgets an object that is gone.
    pub fn forget_object(&self, key: &str) {
        self.written.forget(key);
        self.backoff.succeeded(&key.to_owned());
    }

    /// How long ago this process wrote the status of an object.
    pub fn since_write(&self, key: &str) -> Option<Duration> {
        let now = self.world.clock.monotonic();
        self.written.at(key).map(|at| now.saturating_sub(at))
    }

    /// Notes that the status of an object was written now, and the version that it has since.
    pub fn note_write(&self, key: String, version: Option<&str>, status: Value) {
        self.written.note(key, self.world.clock.monotonic(), version, status);
    }

    /// The status that an object has: as it was read, or as this process wrote it since.
    pub fn status_of<K, S>(&self, object: &K, read: Option<&S>) -> S
    where
        K: kube::Resource<DynamicType = ()>,
        S: Clone + Default + DeserializeOwned,
    {
        let version = object.meta().resource_version.as_deref();
        let written = self.written.later_than(&object_key(object), version);
        written.or_else(|| read.cloned()).unwrap_or_default()
    }

    /// Tells people what happened to an object. An Event that cannot be written is no reason to fail.
    pub async fn event(&self, about: &ObjectReference, is_warning: bool, reason: &str, note: &str) {
        let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason, "an event was not written");
        }
    }
}

/// What names a pool that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dependents {
    /// They are on their way out, and have to be cleaned up after first.
    pub ending: usize,
    /// They are not.
    pub staying: usize,
}

impl Dependents {
    fn count<K: DeploymentKind + Clone>(&mut self, store: &Store<K>, key: &PoolKey, namespace_ends: bool)
    where
        K::DynamicType: Eq + Hash + Clone,
    {
        for object in of_pool(store, key) {
            let has_finalizer = object.finalizers().iter().any(|name| name == FINALIZER);
            match object.meta().deletion_timestamp.is_some() || namespace_ends {
                true if has_finalizer => self.ending += 1,
                true => {}
                false => self.staying += 1,
            }
        }
    }
}

fn of_pool<K: DeploymentKind + Clone>(store: &Store<K>, key: &PoolKey) -> impl Iterator<Item = Arc<K>>
where
    K::DynamicType: Eq + Hash + Clone,
{
    store.state().into_iter().filter(|object| {
        object.pool() == key.name.as_str() && object.namespace().as_deref() == Some(key.namespace.as_str())
    })
}

/// Which deployment a resource is.
pub fn identity<K: DeploymentKind>(installation: &Installation, object: &K) -> Option<Identity> {
    Some(Identity {
        installation: installation.clone(),
        namespace: object.namespace()?.parse().ok()?,
        kind: K::KIND,
        name: object.name_any().parse().ok()?,
    })
}

/// Name of one life of an object in waits: another object of its name waits from the beginning.
pub fn life_key<K: kube::Resource<DynamicType = ()>>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

/// Name of an object in notes.
pub fn object_key<K: kube::Resource<DynamicType = ()>>(object: &K) -> String {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    format!("{}/{namespace}/{}", K::kind(&()), object.meta().name.as_deref().unwrap_or_default())
}
