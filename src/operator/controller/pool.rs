//! A pool: its objects, its block of node ids, its link, and what is left of resources and nodes that are gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::deployment::node_id_base;
use super::finish::tombstone;
use super::{Error, retire, set_finalizer, write_status};
use crate::core::deployment::Problem;
use crate::core::names::{Identity, NodeId};
use crate::core::status::StatusKey;
use crate::core::units::Span;
use crate::operator::apply::{apply, brief, remove};
use crate::operator::bridge::{self, Claim, PoolKey};
use crate::operator::build::rollout::{Rollout, decide, image, image_of};
use crate::operator::build::{self, RESTART, ValidPool};
use crate::operator::conditions::{Conditions, KAFKA_REACHABLE, READY, Verdict};
use crate::operator::context::{Context, object_key};
use crate::operator::crd::{RuntimePool, RuntimePoolStatus};
use crate::operator::dereference::{self, SECRET_NOT_FOUND};
use crate::operator::lifecycle::FINALIZER;
use crate::operator::link::{Health, Link};
use crate::operator::validate;
use crate::operator::world::{Connection, Registry};
use crate::ports::Produce;

/// Secrets may change without a word: they are read again this often.
const LOOK_AT_SECRETS: Duration = Duration::from_mins(5);
/// How often it is looked again while something is on its way.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How soon it is looked whether a claim of node ids was the first.
const LOOK_AT_CLAIM: Duration = Duration::from_millis(200);

/// How far a pool has come.
enum Progress {
    Invalid(Vec<Problem>),
    Waiting { verdict: Verdict, again: Duration },
    Applied { set: Box<StatefulSet>, base: u32, policy: Option<String> },
}

/// Reconciles one pool.
pub async fn reconcile(pool: Arc<RuntimePool>, context: Arc<Context>) -> Result<Action, Error> {
    let timer = context.metrics.reconcile_seconds.with_label_values(&["RuntimePool"]).start_timer();
    let name = object_key(pool.as_ref());
    tracing::debug!(object = name, generation = pool.metadata.generation, "reconciling");
    // Boxed: the objects of a pool are large, and every controller slot would hold room for them.
    let action = Box::pin(run(pool.as_ref(), &context)).await;
    tracing::debug!(object = name, ?action, "reconciled");
    timer.observe_duration();
    if action.is_ok() {
        context.backoff.succeeded(&name);
    }
    action
}

async fn run(pool: &RuntimePool, context: &Context) -> Result<Action, Error> {
    let Some(key) = key(pool, context) else { return Ok(Action::await_change()) };
    // What is not in a cache that is not filled yet must not be taken for gone.
    if !context.stores.resources_are_known().await {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    if pool.metadata.deletion_timestamp.is_some() {
        return Box::pin(retire::reconcile(pool, &key, context)).await;
    }
    if !pool.finalizers().iter().any(|name| name == FINALIZER) {
        // Before anything of it is in the log.
        set_finalizer(context, pool, true).await?;
    }
    let progress = Box::pin(advance(pool, &key, context)).await?;
    let mut again = report(pool, &key, context, &progress).await?;
    if let Some(link) = context.link(&key).filter(|link| link.health() == Health::Up) {
        if !sync(&key, context, &link).await? {
            again = again.min(LOOK_AGAIN);
        }
        let mut keys = leftovers(&key, context, &link);
        if let Progress::Applied { set, base, .. } = &progress {
            keys.extend(of_gone_nodes(set, *base, &link));
        }
        forget(keys, &link).await?;
    }
    Ok(Action::requeue(again))
}

fn key(pool: &RuntimePool, context: &Context) -> Option<PoolKey> {
    Some(PoolKey {
        installation: context.installation.clone(),
        namespace: pool.namespace()?.parse().ok()?,
        name: pool.name_any().parse().ok()?,
    })
}

async fn advance(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Result<Progress, Error> {
    let problems = validate::pool(&pool.spec);
    if !problems.is_empty() {
        return Ok(Progress::Invalid(problems));
    }
    let secrets = dereference::secrets(&context.client, key.namespace.as_str(), &pool.spec).await;
    let reached = secrets.and_then(|secrets| {
        let registry = dereference::registry(&pool.spec, &secrets)?;
        Ok((dereference::connection(&pool.spec, &secrets)?, registry))
    });
    let (link, policy) = match reached {
        Ok((connection, registry)) => {
            let problems = clients(context, &connection, &registry);
            if !problems.is_empty() {
                return Ok(Progress::Invalid(problems));
            }
            (context.ensure_link(key, connection)?, registry.policy())
        }
        Err(error @ dereference::Error::Missing { .. }) => {
            // What runs goes on; a Secret that comes back is found by looking again.
            let verdict = Verdict::stalled(SECRET_NOT_FOUND, error.to_string());
            return Ok(Progress::Waiting { verdict, again: LOOK_AGAIN });
        }
        Err(error) => return Err(error.into()),
    };
    let base = match node_ids(pool, key, context, &link).await? {
        Ok(base) => base,
        Err(progress) => return Ok(progress),
    };
    match Box::pin(apply_objects(pool, key, context, base)).await {
        Ok(set) => Ok(Progress::Applied { set: Box::new(set), base, policy }),
        Err(crate::operator::apply::Error::Api { source, .. }) if is_users(&source) => {
            let verdict = Verdict::stalled("ObjectRefused", brief(&source));
            Ok(Progress::Waiting { verdict, again: LOOK_AGAIN })
        }
        Err(crate::operator::apply::Error::Api { source, .. }) if is_servers(&source) => {
            let message = format!("the API server did not take an object: {}", brief(&source));
            let verdict = Verdict::progressing("ObjectNotApplied", message);
            Ok(Progress::Waiting { verdict, again: LOOK_AGAIN })
        }
        Err(error @ crate::operator::apply::Error::NotOurs { .. }) => {
            let verdict = Verdict::stalled("ObjectNotOurs", error.to_string());
            Ok(Progress::Waiting { verdict, again: LOOK_AGAIN })
        }
        Err(error) => Err(error.into()),
    }
}

/// What the clients themselves say against a pool: a node would end with it at its start.
pub(super) fn clients(context: &Context, connection: &Connection, registry: &Registry) -> Vec<Problem> {
    let problem = |field: &str, message| Problem { reason: "InvalidSpec", field: field.to_owned(), message };
    let (logs, modules) = (&context.world.logs, &context.world.modules);
    let of_kafka = logs.check(connection).err().map(|message| problem("spec.kafka", message));
    let of_registry = modules.check(registry).err().map(|message| problem("spec.registry", message));
    of_kafka.into_iter().chain(of_registry).collect()
}

/// What the API server will not take, however often it is asked.
fn is_users(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [400, 403, 422].contains(&status.code))
}

/// What the API server answers when it, or something that it asks, has a fault.
fn is_servers(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 500)
}

/// The pool's block of node ids, claimed where it has none.
async fn node_ids(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    link: &Link,
) -> Result<Result<u32, Progress>, Error> {
    let known = node_id_base(pool);
    let waiting = |verdict, again| Ok(Err(Progress::Waiting { verdict, again }));
    match link.health() {
        Health::Up => {}
        // Pods that have their ids already need no Kafka to be built.
        Health::Connecting | Health::Down(_) if known.is_some() => return Ok(Ok(known.unwrap_or_default())),
        Health::Connecting => {
            let verdict = Verdict::progressing("Connecting", "the operator is connecting to Kafka");
            return waiting(verdict, LOOK_AGAIN);
        }
        Health::Down(why) => {
            let message = format!("Kafka is not reached, so no node ids can be claimed: {why}");
            return waiting(Verdict::progressing("KafkaUnavailable", message), LOOK_AGAIN);
        }
    }
    let claimed = link.claimed();
    match link.desired(|state| bridge::claim(state, key, known, claimed)) {
        Claim::Ours(base) => Ok(Ok(base)),
        Claim::Write(base, record) => {
            if claimed != Some(base) {
                context.metrics.control_writes.with_label_values(&[&key.owner()]).inc();
                link.write(vec![record]).await?;
                link.note_claim(Some(base));
            }
            let verdict = Verdict::progressing("ClaimingNodeIds", format!("claiming node ids from {base}"));
            waiting(verdict, LOOK_AT_CLAIM)
        }
        Claim::Restore(record) => {
            link.write(vec![record]).await?;
            link.note_claim(None);
            let verdict =
                Verdict::progressing("ClaimingNodeIds", "another pool was faster; trying other ids");
            waiting(verdict, LOOK_AT_CLAIM)
        }
        Claim::Taken { base, owner } => {
            let message = format!("node ids from {base} belong to pool {owner}: choose another nodeIdBase");
            waiting(Verdict::stalled("NodeIdsTaken", message), LOOK_AT_SECRETS)
        }
        Claim::Exhausted => {
            waiting(Verdict::stalled("NodeIdsTaken", "every block of node ids is taken"), LOOK_AT_SECRETS)
        }
    }
}

async fn apply_objects(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    base: u32,
) -> Result<StatefulSet, crate::operator::apply::Error> {
    let client = &context.client;
    let name = build::object_name(&key.name);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), key.namespace.as_str());
    let existing = sets.get_opt(&name).await.map_err(|source| crate::operator::apply::Error::Api {
        kind: "StatefulSet".into(),
        name: name.clone(),
        source: Box::new(source),
    })?;
    let valid = valid(pool, key, context, base, existing.as_ref());
    let objects = build::objects(&valid);
    let mut writes = 0;
    writes += usize::from(apply(client, objects.service_account).await?.1);
    writes += usize::from(apply(client, objects.service).await?.1);
    writes += usize::from(apply(client, objects.disruption_budget).await?.1);
    if let Some(policy) = objects.network_policy {
        writes += usize::from(apply(client, policy).await?.1);
    } else {
        let uid = valid.owner.uid.as_str();
        writes += usize::from(remove::<NetworkPolicy>(client, key.namespace.as_str(), &name, uid).await?);
    }
    let rollout = decide(objects.stateful_set, existing.as_ref(), pool.spec.upgrade_policy);
    // Pods that stay read the configuration that was written for them.
    if matches!(rollout, Rollout::Apply(_)) {
        writes += usize::from(apply(client, objects.config_map).await?.1);
    }
    let (set, written) = apply(client, rollout.stateful_set().clone()).await?;
    writes += usize::from(written);
    context.metrics.api_writes.with_label_values(&["RuntimePool", "objects"]).inc_by(writes as u64);
    Ok(set)
}

fn valid(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    base: u32,
    existing: Option<&StatefulSet>,
) -> ValidPool {
    let drain = pool.spec.drain_timeout.parse::<Span>().unwrap_or(Span::from_ms(8_000));
    ValidPool {
        installation: key.installation.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        owner: pool.controller_owner_ref(&()).unwrap_or_default(),
        image: image(&pool.spec, existing, &context.default_image),
        spec: pool.spec.clone(),
        node_id_base: base,
        drain_seconds: i64::try_from(drain.0.div_ceil(1000)).unwrap_or(i64::MAX),
        operator_version: context.version.clone(),
        restart: pool.annotations().get(RESTART).cloned(),
    }
}

/// A full write: what is left of resources that are gone goes, and the snapshot says what there is. Whether it is
/// complete.
async fn sync(key: &PoolKey, context: &Context, link: &Link) -> Result<bool, Error> {
    let (records, is_complete) = link.desired(|state| {
        // Read after desired state is held still: what is in the topic was in the cache before it was written.
        let all = context.resources_of(key);
        let kept: BTreeSet<Identity> = all.iter().map(|(identity, _)| identity.clone()).collect();
        let wanted: BTreeSet<Identity> =
            all.into_iter().filter(|(_, is_deleted)| !is_deleted).map(|(identity, _)| identity).collect();
        let mut records = bridge::orphans(state, key, &kept);
        let deployed = wanted.into_iter().filter(|at| state.confirmed(&key.name, at).is_some());
        let deployed: BTreeSet<Identity> = deployed.collect();
        let is_complete = deployed.len() == kept.len();
        if is_complete {
            records.extend(bridge::snapshot(state, key, &deployed));
        }
        (records, is_complete)
    });
    context.metrics.control_writes.with_label_values(&[&key.owner()]).inc_by(records.len() as u64);
    link.write(records).await?;
    Ok(is_complete)
}

/// What was said about deployments that are gone: their resources are, and their control records.
pub(super) fn leftovers(key: &PoolKey, context: &Context, link: &Link) -> Vec<StatusKey> {
    let is_gone = |identity: &Identity| {
        key.owns(identity)
            && !context.has_resource(identity)
            && link.desired(|state| state.get(identity).is_none())
    };
    link.observed(
        |observer, now| {
            if observer.is_caught_up() { observer.leftover_keys(now, is_gone) } else { Vec::new() }
        },
    )
}

/// What nodes said that are beyond the pool's size and fell silent.
fn of_gone_nodes(set: &StatefulSet, base: u32, link: &Link) -> Vec<StatusKey> {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    let running = set.status.as_ref().map_or(0, |status| status.replicas);
    if running > wanted {
        return Vec::new();
    }
    let first = NodeId(base + wanted.unsigned_abs());
    link.observed(|observer, now| {
        let silent = observer.silent_nodes(now).into_iter();
        let gone = silent.filter(|node| *node >= first && node.0 < base + 1000);
        gone.flat_map(|node| observer.node_keys(node)).collect()
    })
}

/// Removes records from the status topic.
pub(super) async fn forget(keys: Vec<StatusKey>, link: &Link) -> Result<(), Error> {
    let Some(log) = link.log().filter(|_| !keys.is_empty()) else { return Ok(()) };
    let records: Vec<Produce> = keys.iter().map(|key| tombstone(&key.to_string())).collect();
    tokio::task::spawn_blocking(move || log.produce(&records)).await??;
    Ok(())
}

fn verdict(pool: &RuntimePool, progress: &Progress) -> Verdict {
    match progress {
        Progress::Invalid(problems) => {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Verdict::stalled("InvalidSpec", all.join("; "))
        }
        Progress::Waiting { verdict, .. } => verdict.clone(),
        Progress::Applied { set, .. } => of_pods(pool.spec.replicas, set),
    }
}

fn of_pods(wanted: i32, set: &StatefulSet) -> Verdict {
    let status = set.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or_default();
    let is_current = status.observed_generation >= set.metadata.generation;
    match () {
        () if !is_current => Verdict::progressing("RollingOut", "the pods are about to change"),
        () if wanted == 0 && status.replicas == 0 => Verdict::ready("ScaledToZero", "no nodes are wanted"),
        () if status.replicas != wanted => {
            Verdict::progressing("Scaling", format!("{} of {wanted} node(s) exist", status.replicas))
        }
        () if updated < wanted && status.update_revision != status.current_revision => {
            Verdict::progressing("RollingOut", format!("{updated} of {wanted} node(s) are updated"))
        }
        () if ready < wanted => {
            let message = format!("{ready} of {wanted} node(s) are ready: look at the pods");
            Verdict::progressing("NodesNotReady", message)
        }
        () => Verdict::ready("NodesReady", format!("{ready} node(s) are ready")),
    }
}

async fn report(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    progress: &Progress,
) -> Result<Duration, Error> {
    let before = context.status_of(pool, pool.status.as_ref());
    let verdict = verdict(pool, progress);
    let status = status(pool, key, context, progress, &verdict);
    if status != before {
        write_status(context, pool, &status).await?;
        let is_new =
            before.conditions.iter().all(|last| last.type_ != READY || last.reason != verdict.reason());
        if is_new && !matches!(verdict, Verdict::Progressing { .. }) {
            let is_warning = matches!(verdict, Verdict::Stalled { .. });
            context.event(&pool.object_ref(&()), is_warning, verdict.reason(), verdict.message()).await;
        }
    }
    Ok(match (progress, &verdict) {
        (Progress::Waiting { again, .. }, _) => *again,
        (_, Verdict::Progressing { .. }) => LOOK_AGAIN,
        _ => LOOK_AT_SECRETS,
    })
}

fn status(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    progress: &Progress,
    verdict: &Verdict,
) -> RuntimePoolStatus {
    let before = context.status_of(pool, pool.status.as_ref());
    let generation = pool.metadata.generation.unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, generation, context.world.clock.wall_ms());
    conditions.verdict(verdict);
    match context.link(key).map(|link| link.health()) {
        Some(Health::Up) => drop(conditions.set(KAFKA_REACHABLE, "True", "Connected", "")),
        Some(Health::Down(why)) => drop(conditions.set(KAFKA_REACHABLE, "False", "KafkaUnavailable", &why)),
        Some(Health::Connecting) | None => {
            conditions.set(KAFKA_REACHABLE, "Unknown", "Connecting", "");
        }
    }
    let mut status = RuntimePoolStatus {
        observed_generation: generation,
        conditions: conditions.build(),
        selector: build::selector(&key.name),
        ..before
    };
    if let Progress::Applied { set, base, policy } = progress {
        let pods = set.status.clone().unwrap_or_default();
        status.replicas = pods.replicas;
        status.ready_replicas = pods.ready_replicas.unwrap_or_default();
        status.nodes = format!("{}/{}", status.ready_replicas, pool.spec.replicas);
        status.node_id_base = Some(*base);
        status.image = image_of(set);
        status.verification_policy.clone_from(policy);
    }
    status
}
