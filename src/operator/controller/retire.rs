//! The end of a pool: its resources first, then its nodes, then what they left in the log, then its finalizer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::deployment::node_id_base;
use super::pool::{clients, forget, leftovers};
use super::{Error, set_finalizer, write_status};
use crate::core::names::{Identity, NodeId};
use crate::core::status::StatusKey;
use crate::operator::bridge::{self, PoolKey};
use crate::operator::build;
use crate::operator::conditions::{Conditions, Verdict};
use crate::operator::context::{Context, life_key, object_key};
use crate::operator::crd::{RuntimePool, RuntimePoolStatus};
use crate::operator::dereference::{self, SECRET_NOT_FOUND, namespace_ends};
use crate::operator::lifecycle::{FINALIZER, FORCE, PoolFacts, Reach, Retiring, retire};
use crate::operator::link::{Health, Link};
use crate::operator::validate;

/// How often it is looked whether resources and nodes are gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The API server's own finalizer of what is deleted without its dependents.
const ORPHAN: &str = "orphan";
/// How often it is looked whether Kafka is back.
const KAFKA_AGAIN: Duration = Duration::from_secs(5);

/// The next step of a pool that is being deleted.
pub(super) async fn reconcile(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Result<Action, Error> {
    if !pool.finalizers().iter().any(|name| name == FINALIZER) {
        context.drop_link(key);
        return Ok(Action::await_change());
    }
    // `--cascade=orphan`: its nodes are to stay. They are ours until the garbage collector has been there.
    if pool.finalizers().iter().any(|name| name == ORPHAN) {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let reach = reach(pool, key, context).await?;
    let set = nodes_set(pool, key, context).await?;
    let facts = facts(pool, key, context, reach, &set).await;
    match retire(&facts) {
        Retiring::Wait(reason, why) => {
            // Resources go by this: without the Secret, nobody can clean up after them.
            let verdict = match &facts.reach {
                Reach::Lost(lost) => Verdict::stalled(SECRET_NOT_FOUND, lost.clone()),
                _ => Verdict::progressing(reason, why),
            };
            let is_away = verdict.reason() == "KafkaUnavailable";
            say(pool, context, &verdict).await?;
            Ok(Action::requeue(if is_away { KAFKA_AGAIN } else { LOOK_AGAIN }))
        }
        Retiring::StopNodes => {
            stop_nodes(key, context, &set).await?;
            let message = format!("{} node(s) are stopping", facts.pods);
            say(pool, context, &Verdict::progressing("Stopping", message)).await?;
            Ok(Action::requeue(LOOK_AGAIN))
        }
        Retiring::CleanUp => {
            // It was there when it was looked.
            let Some(link) = context.link(key) else { return Ok(Action::requeue(LOOK_AGAIN)) };
            sweep(pool, key, context, &link).await?;
            let_go(pool, key, context).await
        }
        Retiring::LetGo => let_go(pool, key, context).await,
        Retiring::GiveUp(why) => {
            let note = format!(
                "not cleaned up, because {why}: records about the pool and its nodes may be left in Kafka"
            );
            // In a namespace that ends no Event can be written; it is said in the log either way.
            tracing::warn!(pool = key.owner(), "{note}");
            context.event(&pool.object_ref(&()), true, "CleanUpSkipped", &note).await;
            let_go(pool, key, context).await
        }
    }
}

async fn let_go(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Result<Action, Error> {
    set_finalizer(context, pool, false).await?;
    context.drop_link(key);
    let life = life_key(pool);
    context.waits_no_more(&life);
    context.waits_no_more(&alone(&life));
    context.forget_object(&object_key(pool));
    Ok(Action::await_change())
}

/// What it is called that no resource is on its way out any more.
fn alone(life: &str) -> String {
    format!("{life} alone")
}

async fn facts(
    pool: &RuntimePool,
    key: &PoolKey,
    context: &Context,
    reach: Reach,
    set: &NodesSet,
) -> PoolFacts {
    let namespace_ends = namespace_ends(&context.client, key.namespace.as_str()).await;
    let dependents = context.dependents(key, namespace_ends);
    let life = life_key(pool);
    let waited = context.waited(&life);
    let alone = match dependents.ending {
        0 => context.waited(&alone(&life)),
        _ => Duration::ZERO,
    };
    let base = base(pool, key, context);
    let (is_heard, nodes) = context.link(key).map_or((false, 0), |link| {
        link.observed(|observer, now| {
            (observer.is_caught_up(), observer.fresh_nodes(now, |node| is_in(base, node)).len())
        })
    });
    PoolFacts {
        is_forced: pool.annotations().get(FORCE).is_some_and(|value| value == "true"),
        namespace_ends,
        ending: dependents.ending,
        staying: dependents.staying,
        waited,
        alone,
        has_node_ids: base.is_some(),
        is_orphaned: matches!(set, NodesSet::SomebodyElses),
        pods: match set {
            NodesSet::Ours { pods, .. } => *pods,
            NodesSet::None | NodesSet::SomebodyElses => 0,
        },
        reach,
        is_heard,
        nodes,
    }
}

/// Its block of node ids: what its status remembers, or what this process has claimed for it.
fn base(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Option<u32> {
    let is_claimed = pool.status.as_ref().is_some_and(|status| status.node_id_base.is_some());
    let known = node_id_base(pool).filter(|_| is_claimed);
    known.or_else(|| context.link(key)?.claimed())
}

fn is_in(base: Option<u32>, node: NodeId) -> bool {
    base.is_some_and(|base| (base..base + bridge::BLOCK).contains(&node.0))
}

/// Whether its Kafka is reached. A link that is open is used as long as it works: in a namespace that ends, the Secrets
/// that it was opened with are gone by now.
async fn reach(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Result<Reach, Error> {
    let health = |link: &Link| match link.health() {
        Health::Up => Reach::Up,
        Health::Connecting | Health::Down(_) => Reach::Down,
    };
    let open = context.link(key);
    if let Some(link) = &open
        && link.health() == Health::Up
    {
        return Ok(Reach::Up);
    }
    if !validate::pool(&pool.spec).is_empty() {
        return Ok(
            open.map_or_else(|| Reach::Lost("its specification is invalid".into()), |link| health(&link))
        );
    }
    let secrets = dereference::secrets(&context.client, key.namespace.as_str(), &pool.spec).await;
    let made = secrets.and_then(|secrets| {
        Ok((dereference::connection(&pool.spec, &secrets)?, dereference::registry(&pool.spec, &secrets)?))
    });
    match made {
        Ok((connection, registry)) if clients(context, &connection, &registry).is_empty() => {
            Ok(health(&*context.ensure_link(key, connection)?))
        }
        Ok(_) => {
            Ok(open.map_or_else(|| Reach::Lost("its specification is invalid".into()), |link| health(&link)))
        }
        Err(error @ dereference::Error::Missing { .. }) => {
            Ok(open.map_or_else(|| Reach::Lost(error.to_string()), |link| health(&link)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The StatefulSet of its name.
enum NodesSet {
    None,
    Ours { wanted: i32, pods: usize },
    SomebodyElses,
}

async fn nodes_set(pool: &RuntimePool, key: &PoolKey, context: &Context) -> Result<NodesSet, Error> {
    let Some(set) = sets(key, context).get_opt(&build::object_name(&key.name)).await? else {
        return Ok(NodesSet::None);
    };
    let uid = pool.metadata.uid.as_deref().unwrap_or_default();
    if set.owner_references().iter().all(|reference| reference.uid != uid) {
        return Ok(NodesSet::SomebodyElses);
    }
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let there = set.status.as_ref().map_or(0, |status| status.replicas);
    Ok(NodesSet::Ours { wanted, pods: usize::try_from(wanted.max(there)).unwrap_or_default() })
}

fn sets(key: &PoolKey, context: &Context) -> Api<StatefulSet> {
    Api::namespaced(context.client.clone(), key.namespace.as_str())
}

/// Scales it to nothing: nodes commit and leave their groups as always. Its owner's end removes it.
async fn stop_nodes(key: &PoolKey, context: &Context, set: &NodesSet) -> Result<(), Error> {
    let NodesSet::Ours { wanted: 1.., .. } = set else { return Ok(()) };
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    context.metrics.api_writes.with_label_values(&["RuntimePool", "objects"]).inc();
    match sets(key, context).patch(&build::object_name(&key.name), &PatchParams::default(), &none).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what is left of it in the log: what its nodes said, deployments that no resource stands for, and unless
/// resources stay that a pool of its name would run again, its snapshot and its claim of node ids.
async fn sweep(pool: &RuntimePool, key: &PoolKey, context: &Context, link: &Arc<Link>) -> Result<(), Error> {
    let kept: BTreeSet<Identity> =
        context.resources_of(key).into_iter().map(|(identity, _)| identity).collect();
    let orphans = link.desired(|state| bridge::orphans(state, key, &kept));
    link.write(orphans).await?;
    let mut keys = leftovers(key, context, link);
    // Ids that another pool has claimed by now are not this one's to sweep.
    let base = base(pool, key, context)
        .filter(|base| link.desired(|state| state.owner_of_block(*base) == Some(key.owner().as_str())));
    keys.extend(link.observed(|observer, now| {
        let silent = observer.silent_nodes(now).into_iter().filter(|node| is_in(base, *node));
        silent.flat_map(|node| observer.node_keys(node)).collect::<Vec<StatusKey>>()
    }));
    keys.sort_by_key(ToString::to_string);
    keys.dedup();
    forget(keys, link).await?;
    if kept.is_empty() {
        // The claim goes last: with it goes the right to sweep.
        let records = link.desired(|state| bridge::retired(state, key));
        context.metrics.control_writes.with_label_values(&[&key.owner()]).inc_by(records.len() as u64);
        link.write(records).await?;
    }
    Ok(())
}

async fn say(pool: &RuntimePool, context: &Context, verdict: &Verdict) -> Result<(), Error> {
    let before = context.status_of(pool, pool.status.as_ref());
    let generation = pool.metadata.generation.unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, generation, context.world.clock.wall_ms());
    let status = RuntimePoolStatus {
        observed_generation: generation,
        conditions: conditions.verdict(verdict).build(),
        ..before.clone()
    };
    if status != before {
        write_status(context, pool, &status).await?;
    }
    Ok(())
}
