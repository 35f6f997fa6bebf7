//! Controllers, their watches and their triggers. Nothing is decided here.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, Stream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::controller::{Config, Controller};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, reflector};
use kube::runtime::{Predicate, PredicateConfig, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::core::names::{Identity, Kind};
use crate::operator::bridge::PoolKey;
use crate::operator::context::{Context, Filled, Stores};
use crate::operator::controller::{deployment, on_error, pool};
use crate::operator::crd::{Coprocessor, Pipeline, RuntimePool};
use crate::operator::draft::DeploymentKind;
use crate::operator::link::Notice;

/// Reconciliations of one kind at the same time.
const CONCURRENCY: u16 = 32;
/// Objects to look at again that wait for their controller.
const TRIGGERS: usize = 256;
/// Selects what the operator made.
const MANAGED: &str = "app.kubernetes.io/managed-by=coproc-operator";

/// Which part of the cluster is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Cluster,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::Cluster => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// What fills the caches.
pub struct Writers {
    pools: Filling<RuntimePool>,
    coprocessors: Filling<Coprocessor>,
    pipelines: Filling<Pipeline>,
}

/// What fills one cache, and says when it is filled.
struct Filling<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
    filled: watch::Sender<bool>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Filling<K> {
    fn told(&self) -> Filled {
        Filled::of(&self.filled)
    }
}

fn cache<K>() -> (Store<K>, Filled, Filling<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, writer) = kube::runtime::reflector::store();
    let (filled, told) = Filled::new();
    (store, told, Filling { writer, filled })
}

/// Empty caches and what fills them.
pub fn caches() -> (Stores, Writers) {
    let (pools, pools_filled, of_pools) = cache();
    let (coprocessors, coprocessors_filled, of_coprocessors) = cache();
    let (pipelines, pipelines_filled, of_pipelines) = cache();
    (
        Stores { pools, pools_filled, coprocessors, coprocessors_filled, pipelines, pipelines_filled },
        Writers { pools: of_pools, coprocessors: of_coprocessors, pipelines: of_pipelines },
    )
}

/// The controllers, the router of notices among them. Each ends when `stop` says so, after its last
/// reconciliation.
pub fn controllers(
    context: &Arc<Context>,
    scope: &Scope,
    writers: Writers,
    notices: mpsc::Receiver<Notice>,
    fenced: mpsc::Sender<PoolKey>,
    stop: &watch::Receiver<bool>,
) -> Vec<BoxFuture<'static, ()>> {
    let (pool_triggers, pools) = mpsc::channel(TRIGGERS);
    let (coprocessor_triggers, coprocessors) = mpsc::channel(TRIGGERS);
    let (pipeline_triggers, pipelines) = mpsc::channel(TRIGGERS);
    let router = Router {
        context: context.clone(),
        pools: pool_triggers,
        coprocessors: coprocessor_triggers,
        pipelines: pipeline_triggers,
        fenced,
    };
    vec![
        of_pools(context, scope, writers.pools, pools, stop.clone()),
        of_deployments(context, scope, writers.coprocessors, coprocessors, stop.clone()),
        of_deployments(context, scope, writers.pipelines, pipelines, stop.clone()),
        router.run(notices, stop.clone()).boxed(),
    ]
}

/// Ends when the flag is set, or whoever sets it is gone.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn triggers<T: Send + 'static>(mut from: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::poll_fn(move |waker| from.poll_recv(waker))
}

/// A controller on a cache that is filled here. Changes of the status alone start nothing: they are our own.
fn controller<K>(
    api: Api<K>,
    Filling { writer, filled }: Filling<K>,
    triggers: impl Stream<Item = ObjectRef<K>> + Send + 'static,
    stop: watch::Receiver<bool>,
) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let reader = writer.as_reader();
    let relevant = predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let objects = reflector(writer, watcher(api, watcher::Config::default()).default_backoff())
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                filled.send_replace(true);
            }
        })
        .applied_objects()
        .predicate_filter(relevant, PredicateConfig::default());
    Controller::for_stream(objects, reader)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(triggers)
        .graceful_shutdown_on(stopped(stop))
}

fn of_pools(
    context: &Arc<Context>,
    scope: &Scope,
    writer: Filling<RuntimePool>,
    from: mpsc::Receiver<ObjectRef<RuntimePool>>,
    stop: watch::Receiver<bool>,
) -> BoxFuture<'static, ()> {
    let client = &context.client;
    let managed = || watcher::Config::default().labels(MANAGED);
    let filled = writer.told();
    let controller = controller(scope.api(client), writer, triggers(from), stop.clone())
        .owns(scope.api::<StatefulSet>(client), managed())
        .owns(scope.api::<Service>(client), managed())
        .owns(scope.api::<ServiceAccount>(client), managed())
        .owns(scope.api::<ConfigMap>(client), managed())
        .owns(scope.api::<NetworkPolicy>(client), managed())
        .owns(scope.api::<PodDisruptionBudget>(client), managed())
        .run(pool::reconcile, on_error, context.clone())
        .for_each(|_| std::future::ready(()));
    to_its_end(controller, filled, stop).boxed()
}

fn of_deployments<K: DeploymentKind>(
    context: &Arc<Context>,
    scope: &Scope,
    writer: Filling<K>,
    from: mpsc::Receiver<ObjectRef<K>>,
    stop: watch::Receiver<bool>,
) -> BoxFuture<'static, ()> {
    let filled = writer.told();
    let controller = controller(scope.api(&context.client), writer, triggers(from), stop.clone());
    let cache = controller.store();
    let controller = controller
        .watches(scope.api::<RuntimePool>(&context.client), watcher::Config::default(), move |pool| {
            of_pool(&cache, &pool)
        })
        .run(deployment::reconcile, on_error, context.clone())
        .for_each(|_| std::future::ready(()));
    to_its_end(controller, filled, stop).boxed()
}

/// Runs a controller until it has ended what it began. One that is stopped before its cache is filled has begun
/// nothing, and would wait for that cache for ever: it is dropped, and with it whoever waits for the same cache.
async fn to_its_end(controller: impl Future<Output = ()>, filled: Filled, stop: watch::Receiver<bool>) {
    let is_stopped_empty = async {
        stopped(stop).await;
        if filled.is_filled() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = controller => {}
        () = is_stopped_empty => {}
    }
}

fn of_pool<K: DeploymentKind>(cache: &Store<K>, pool: &RuntimePool) -> Vec<ObjectRef<K>> {
    let of_pool = cache.state().into_iter().filter(|object| {
        object.meta().namespace == pool.metadata.namespace
            && Some(object.pool()) == pool.metadata.name.as_deref()
    });
    of_pool.map(|object| ObjectRef::from_obj(object.as_ref())).collect()
}

/// Takes notices to the controllers that they are for.
struct Router {
    context: Arc<Context>,
    pools: mpsc::Sender<ObjectRef<RuntimePool>>,
    coprocessors: mpsc::Sender<ObjectRef<Coprocessor>>,
    pipelines: mpsc::Sender<ObjectRef<Pipeline>>,
    fenced: mpsc::Sender<PoolKey>,
}

impl Router {
    async fn run(self, mut notices: mpsc::Receiver<Notice>, stop: watch::Receiver<bool>) {
        let mut stop = std::pin::pin!(stopped(stop));
        loop {
            let notice = tokio::select! {
                // A stop comes first: nobody works on what is routed after it.
                biased;
                () = &mut stop => return,
                notice = notices.recv() => notice,
            };
            match notice {
                None => return,
                Some(Notice::Fenced(pool)) => drop(self.fenced.try_send(pool)),
                Some(Notice::Deployment(identity)) => self.deployment(&identity).await,
                Some(Notice::Everything(pool)) => {
                    self.context.sweep_links();
                    self.pool(&pool).await;
                    for (identity, _) in self.context.resources_of(&pool) {
                        self.deployment(&identity).await;
                    }
                }
            }
        }
    }

    async fn deployment(&self, identity: &Identity) {
        if !self.context.has_resource(identity) {
            // What is left about it in a status topic is for its pool to remove.
            for pool in self.context.pools_that_heard_of(identity) {
                self.pool(&pool).await;
            }
            return;
        }
        let (name, namespace) = (identity.name.as_str(), identity.namespace.as_str());
        // A controller that has stopped takes no more triggers.
        match identity.kind {
            Kind::Coprocessor => {
                let _ = self.coprocessors.send(ObjectRef::new(name).within(namespace)).await;
            }
            Kind::Pipeline => {
                let _ = self.pipelines.send(ObjectRef::new(name).within(namespace)).await;
            }
        }
    }

    async fn pool(&self, pool: &PoolKey) {
        let _ = self.pools.send(ObjectRef::new(pool.name.as_str()).within(pool.namespace.as_str())).await;
    }
}

/// Counts the resources by whether they are ready.
pub fn count_resources(context: &Context) {
    context.metrics.resources.reset();
    let count =
        |kind: &str, conditions: Option<&Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>| {
            let is_ready =
                conditions.into_iter().flatten().any(|at| at.type_ == "Ready" && at.status == "True");
            context
                .metrics
                .resources
                .with_label_values(&[kind, if is_ready { "true" } else { "false" }])
                .inc();
        };
    for pool in context.stores.pools.state() {
        count("RuntimePool", pool.status.as_ref().map(|status| &status.conditions));
    }
    for coprocessor in context.stores.coprocessors.state() {
        count("Coprocessor", coprocessor.status.as_ref().map(|status| &status.conditions));
    }
    for pipeline in context.stores.pipelines.state() {
        count("Pipeline", pipeline.status.as_ref().map(|status| &status.conditions));
    }
}
