//! A coprocessor or pipeline: to the control topic, and the truth about it back into its status.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;

use super::modules;
use super::{Error, finish, set_finalizer, write_status};
use crate::control::desired::Desired;
use crate::core::deployment::{Deployment, Problem, Source};
use crate::core::names::NodeId;
use crate::core::names::{Identity, TopicName};
use crate::operator::bridge::{self, PoolKey};
use crate::operator::conditions::{READY, STALLED, Verdict};
use crate::operator::context::{Context, identity, object_key};
use crate::operator::crd::{DeploymentResourceStatus, RuntimePool};
use crate::operator::draft::{DeploymentKind, Draft};
use crate::operator::lifecycle::{Step, step};
use crate::operator::link::{Health, Link};
use crate::operator::observe::{BY_HAND, OnNode};
use crate::operator::resolution::Modules;
use crate::operator::status::{About, Progress, Writing, coalesce, compute};
use crate::operator::validate::{self, Valid};

/// A resource that cannot go on by itself is looked at again this often: an image may appear in its registry.
const STALLED_AGAIN: Duration = Duration::from_mins(5);
/// A resource that waits for something in its surroundings is looked at again this often.
const WAITING_AGAIN: Duration = Duration::from_secs(15);
/// An operator that has just started looks again this often whether it knows enough.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A resource with what every step needs of it.
pub(super) struct Subject<'a, K> {
    pub object: &'a K,
    pub identity: Identity,
    pub pool: PoolKey,
    pub draft: Draft,
}

/// Reconciles one resource.
pub async fn reconcile<K: DeploymentKind>(object: Arc<K>, context: Arc<Context>) -> Result<Action, Error> {
    let kind = K::kind(&());
    let timer = context.metrics.reconcile_seconds.with_label_values(&[kind.as_ref()]).start_timer();
    let key = object_key(object.as_ref());
    tracing::debug!(object = key, generation = object.meta().generation, "reconciling");
    let action = run(object.as_ref(), &context).await;
    tracing::debug!(object = key, ?action, "reconciled");
    timer.observe_duration();
    if action.is_ok() {
        context.backoff.succeeded(&key);
    }
    action
}

async fn run<K: DeploymentKind>(object: &K, context: &Context) -> Result<Action, Error> {
    let Some(subject) = subject(object, context) else {
        // The API server takes no such names; nothing that could be written would be right.
        return Ok(Action::await_change());
    };
    if !context.stores.pools_filled.wait().await {
        return Ok(Action::requeue(WAITING_AGAIN));
    }
    let facts = finish::facts(&subject, context).await;
    match step(&facts) {
        Step::Nothing => {
            context.forget(&subject.identity, &object_key(object));
            return Ok(Action::await_change());
        }
        Step::GiveUp(why) => return finish::give_up(&subject, context, why).await,
        Step::CleanUp => return finish::clean_up(&subject, context).await,
        Step::AddFinalizer => set_finalizer(context, object, true).await?,
        Step::Run => {}
    }
    if is_settled(object) && !knows_enough(&subject, context) {
        // An operator that has just started says nothing worse than the one before it said.
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let progress = advance(&subject, context).await?;
    report(&subject, context, &progress).await
}

/// Whether the status speaks of this generation, and what was resolved for it is known.
fn is_settled<K: DeploymentKind>(object: &K) -> bool {
    let status = object.status();
    status.is_some_and(|status| {
        Some(status.observed_generation) == object.meta().generation && status.module.is_some()
    })
}

/// Whether this process knows what there is to know: what nodes said before it started, or that this cannot be known.
fn knows_enough<K>(subject: &Subject<'_, K>, context: &Context) -> bool {
    let Some(pool) = context.pool(&subject.pool) else { return true };
    match context.link(&subject.pool).map(|link| (link.health(), link)) {
        // A pool that cannot go on by itself gets no link.
        None => pool.status.iter().flat_map(|status| &status.conditions).any(|at| at.type_ == STALLED),
        Some((Health::Connecting, _)) => false,
        Some((Health::Down(_), _)) => true,
        Some((Health::Up, link)) => link.observed(|observer, _| observer.is_caught_up()),
    }
}

fn subject<'a, K: DeploymentKind>(object: &'a K, context: &Context) -> Option<Subject<'a, K>> {
    let identity = identity(&context.installation, object)?;
    let pool = PoolKey {
        installation: identity.installation.clone(),
        namespace: identity.namespace.clone(),
        name: object.pool().parse().ok()?,
    };
    Some(Subject { object, identity, pool, draft: object.draft() })
}

fn waiting(reason: &str, message: impl Into<String>) -> Progress {
    Progress::Waiting { reason: reason.into(), message: message.into(), is_final: false, is_resolved: false }
}

/// Brings the resource to the control topic, as far as it goes.
async fn advance<K: DeploymentKind>(subject: &Subject<'_, K>, context: &Context) -> Result<Progress, Error> {
    let Some(pool) = context.pool(&subject.pool) else {
        let is_going = context.pool_until_gone(&subject.pool).is_some();
        let message = format!(
            "{} RuntimePool {} in namespace {}: create it, or set spec.pool",
            if is_going { "somebody deletes" } else { "there is no" },
            subject.pool.name,
            subject.pool.namespace
        );
        return Ok(waiting("PoolNotFound", message));
    };
    let generation = subject.object.meta().generation.unwrap_or_default();
    let valid = match validate::deployment(K::KIND, generation, &subject.draft, &pool.spec.topics) {
        Ok(valid) => valid,
        Err(problems) => return Ok(Progress::Invalid(problems)),
    };
    let link = match link_of(subject, context) {
        Ok(link) => link,
        Err(progress) => return Ok(progress),
    };
    if let Some(problem) = conflict(subject, &link, &valid) {
        return Ok(Progress::Invalid(vec![problem]));
    }
    let modules = match modules::resolve(subject, context, &pool, &valid).await? {
        Ok(modules) => modules,
        Err(progress) => return Ok(progress),
    };
    deploy(subject, context, &link, &valid, modules).await
}

fn link_of<K>(subject: &Subject<'_, K>, context: &Context) -> Result<Arc<Link>, Progress> {
    let Some(link) = context.link(&subject.pool) else {
        return Err(waiting(
            "PoolNotReady",
            "the pool has no connection yet: look at the RuntimePool's conditions",
        ));
    };
    match link.health() {
        Health::Up => Ok(link),
        Health::Connecting => Err(waiting("Connecting", "the operator is connecting to the pool's Kafka")),
        Health::Down(why) => {
            let message = format!("the operator does not reach the pool's Kafka; what runs goes on: {why}");
            Err(waiting("KafkaUnavailable", message))
        }
    }
}

/// What only the pool's other deployments make wrong. Looked at before a write, not in the steady state.
fn conflict<K>(subject: &Subject<'_, K>, link: &Link, valid: &Valid) -> Option<Problem> {
    let wanted = valid.unresolved();
    let (pool, identity) = (&subject.pool.name, &subject.identity);
    link.desired(|state| {
        let there = state.confirmed(pool, identity);
        if there.is_some_and(|there| there.generation() == wanted.generation) {
            return None;
        }
        if let Some(cycle) = bridge::cycle_with(state, pool, identity, wanted) {
            let path: Vec<&str> = cycle.iter().map(TopicName::as_str).collect();
            let message = format!("records would go round for ever: {}", path.join(" -> "));
            return Some(Problem { reason: "TopicCycle", field: "spec".into(), message });
        }
        let group = wanted.consumer_group(identity);
        let other = state.of_pool(pool).find(|(at, desired)| match desired {
            // Groups that nobody chose differ as the names do that they are made of.
            Desired::Deployment(other) => {
                *at != identity
                    && (chooses_group(wanted) || chooses_group(other))
                    && other.consumer_group(at) == group
            }
            Desired::Unsupported { .. } => false,
        });
        let (at, _) = other?;
        let message = format!("consumer group {group} is the one of {at}: choose another");
        Some(Problem { reason: "GroupInUse", field: "spec.consumerGroup".into(), message })
    })
}

fn chooses_group(deployment: &Deployment) -> bool {
    matches!(&deployment.source, Source::Kafka { kafka } if kafka.consumer_group.is_some())
}

async fn deploy<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    link: &Arc<Link>,
    valid: &Valid,
    modules: Modules,
) -> Result<Progress, Error> {
    let deployment = valid.resolve(&modules.resolved);
    let (pool, identity) = (&subject.pool.name, &subject.identity);
    if let Some(record) = link.desired(|state| bridge::put(state, pool, identity, &deployment)) {
        context.metrics.control_writes.with_label_values(&[&subject.pool.owner()]).inc();
        if let Err(error) = link.write(vec![record]).await {
            return Ok(waiting("KafkaUnavailable", format!("the control topic cannot be written: {error}")));
        }
    }
    let inputs = deployment.inputs().to_vec();
    let asked = link.clone();
    let partitions = tokio::task::spawn_blocking(move || asked.partitions(inputs)).await?;
    let partitions = match partitions {
        Ok(partitions) => partitions,
        Err(error) => {
            return Ok(waiting("KafkaUnavailable", format!("the input topics cannot be looked at: {error}")));
        }
    };
    let base = context.pool(&subject.pool).and_then(|pool| node_id_base(&pool));
    let is_ours = |node: NodeId| accepts(base, node);
    let (nodes, fresh_nodes): (Vec<OnNode>, usize) = link.observed(|observer, now| {
        (observer.view(identity, now, is_ours), observer.fresh_nodes(now, is_ours).len())
    });
    Ok(Progress::Deployed {
        deployment: Box::new(deployment),
        modules: Box::new(modules),
        nodes,
        fresh_nodes,
        partitions,
    })
}

/// The pool's block of node ids.
pub(super) fn node_id_base(pool: &RuntimePool) -> Option<u32> {
    pool.spec.node_id_base.or_else(|| pool.status.as_ref()?.node_id_base)
}

/// Whether a node may speak for the pool: an id of its block, or one that was started by hand.
pub(super) fn accepts(base: Option<u32>, node: NodeId) -> bool {
    node.0 < BY_HAND || base.is_some_and(|base| (base..base + BY_HAND).contains(&node.0))
}

/// Writes the status if it says something new, and says when to look again.
async fn report<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    progress: &Progress,
) -> Result<Action, Error> {
    let before = &context.status_of(subject.object, subject.object.status());
    let base = context.pool(&subject.pool).and_then(|pool| node_id_base(&pool));
    let about = About {
        generation: subject.object.meta().generation.unwrap_or_default(),
        before,
        pool: &subject.pool.name,
        node_id_base: base,
        now_ms: context.world.clock.wall_ms(),
    };
    let (computed, verdict) = compute(&about, progress);
    let since = context.since_write(&object_key(subject.object));
    let again = match coalesce(before, computed, since) {
        Writing::Nothing => None,
        Writing::Later(wait) => Some(wait),
        Writing::Now(status) => {
            write_status(context, subject.object, &*status).await?;
            tell(subject, context, before, &verdict).await;
            None
        }
    };
    let idle = match &verdict {
        Verdict::Ready { .. } => None,
        Verdict::Progressing { .. } => Some(WAITING_AGAIN),
        Verdict::Stalled { .. } => Some(STALLED_AGAIN),
    };
    let tag_is_due = match progress {
        Progress::Deployed { modules, .. } => modules.again,
        _ => None,
    };
    Ok(again
        .into_iter()
        .chain(idle)
        .chain(tag_is_due)
        .min()
        .map_or_else(Action::await_change, Action::requeue))
}

/// An Event when the resource became ready or stalled, for those who watch people's view of the cluster.
async fn tell<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    before: &DeploymentResourceStatus,
    verdict: &Verdict,
) {
    let last = before.conditions.iter().find(|condition| condition.type_ == READY);
    let is_new = last.is_none_or(|last| last.reason != verdict.reason());
    let is_warning = matches!(verdict, Verdict::Stalled { .. });
    if is_new && !matches!(verdict, Verdict::Progressing { .. }) {
        let about = subject.object.object_ref(&());
        context.event(&about, is_warning, verdict.reason(), verdict.message()).await;
    }
}
