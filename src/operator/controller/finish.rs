//! The end of a coprocessor or pipeline: tombstone, wait for the nodes, delete the group, let go.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::deployment::{Subject, accepts, node_id_base};
use super::{Error, set_finalizer, write_status};
use crate::control::topics::OwnTopic;
use crate::core::names::ConsumerGroup;
use crate::core::record::Record;
use crate::operator::bridge;
use crate::operator::conditions::{Conditions, READY, Verdict};
use crate::operator::context::{Context, life_key, object_key};
use crate::operator::crd::DeploymentResourceStatus;
use crate::operator::crd::shared::DeletionPolicy;
use crate::operator::crd::status::Phase;
use crate::operator::dereference::{SECRET_NOT_FOUND, namespace_ends};
use crate::operator::draft::DeploymentKind;
use crate::operator::lifecycle::{Cleaning, FINALIZER, FORCE, Facts, PATIENCE, Remains, clean};
use crate::operator::link::{Health, Link};
use crate::ports::{LogError, Produce};

/// How often it is looked whether nodes have stopped.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is known about a resource's life. The namespace is asked for only when it matters: when a clean-up takes long.
pub async fn facts<K: DeploymentKind>(subject: &Subject<'_, K>, context: &Context) -> Facts {
    let meta = subject.object.meta();
    let is_deleted = meta.deletion_timestamp.is_some();
    let pool = context.pool_until_gone(&subject.pool);
    let conditions = pool.as_ref().and_then(|pool| pool.status.as_ref()).map(|status| &status.conditions);
    // A link that is open needs no Secret any more: in a namespace that ends they are gone before the finalizers.
    let is_linked = context.link(&subject.pool).is_some_and(|link| link.health() == Health::Up);
    let is_late = is_deleted
        && context.waited(&life_key(subject.object)) > PATIENCE
        && namespace_ends(&context.client, subject.identity.namespace.as_str()).await;
    Facts {
        is_deleted,
        has_finalizer: subject.object.finalizers().iter().any(|name| name == FINALIZER),
        secret_is_gone: !is_linked
            && conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == READY && condition.reason == SECRET_NOT_FOUND),
        // One that somebody else's finalizer keeps has no connection any more.
        has_pool: pool.as_ref().is_some_and(|pool| {
            pool.metadata.deletion_timestamp.is_none()
                || pool.finalizers().iter().any(|name| name == FINALIZER)
        }),
        holds_namespace: is_late,
        is_forced: subject.object.annotations().get(FORCE).is_some_and(|value| value == "true"),
    }
}

/// Lets go without a clean-up.
pub async fn give_up<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    why: &str,
) -> Result<Action, Error> {
    let note = format!(
        "not cleaned up, because {why}: consumer group {} and the records of the deployment may be left in Kafka",
        group(subject)
    );
    // In a namespace that ends no Event can be written; it is said in the log either way.
    tracing::warn!(deployment = %subject.identity, "{note}");
    context.event(&subject.object.object_ref(&()), true, "CleanUpSkipped", &note).await;
    if let Some(link) = context.link(&subject.pool)
        && let Some(record) =
            link.desired(|state| bridge::remove(state, &subject.pool.name, &subject.identity))
    {
        // As good as it gets: whoever is still there stops it.
        let written = tokio::time::timeout(Duration::from_secs(2), link.write(vec![record])).await;
        tracing::info!(deployment = %subject.identity, written = written.is_ok_and(|done| done.is_ok()), "tombstone");
    }
    set_finalizer(context, subject.object, false).await?;
    context.waits_no_more(&life_key(subject.object));
    context.forget(&subject.identity, &object_key(subject.object));
    Ok(Action::await_change())
}

/// The next step of a clean-up.
pub async fn clean_up<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
) -> Result<Action, Error> {
    let link = context.link(&subject.pool).filter(|link| link.health() == Health::Up);
    let Some(link) = link else {
        let message = format!(
            "the pool's Kafka is not reached, so the consumer group cannot be deleted; annotate the resource with \
             {FORCE}=true to give that up"
        );
        return wait(subject, context, "KafkaUnavailable", &message, Duration::from_secs(15)).await;
    };
    let group = group(subject);
    let members =
        if remains(subject, context, &link, 0).nodes > 0 { 0 } else { members(&link, group.clone()).await? };
    match clean(&remains(subject, context, &link, members)) {
        Cleaning::Tombstone => {
            let record = link.desired(|state| bridge::remove(state, &subject.pool.name, &subject.identity));
            link.write(record.into_iter().collect()).await?;
            Ok(Action::requeue(Duration::from_millis(100)))
        }
        Cleaning::Wait(why) => wait(subject, context, "Stopping", &why, LOOK_AGAIN).await,
        Cleaning::Finish => {
            sweep(subject, &link, group).await?;
            set_finalizer(context, subject.object, false).await?;
            context.waits_no_more(&life_key(subject.object));
            context.forget(&subject.identity, &object_key(subject.object));
            Ok(Action::await_change())
        }
    }
}

fn group<K: DeploymentKind>(subject: &Subject<'_, K>) -> ConsumerGroup {
    let chosen = subject.draft.source.as_ref().and_then(|source| source.consumer_group.as_ref());
    chosen.and_then(|group| group.parse().ok()).unwrap_or_else(|| subject.identity.consumer_group())
}

fn remains<K>(subject: &Subject<'_, K>, context: &Context, link: &Link, members: usize) -> Remains {
    let base = context.pool_until_gone(&subject.pool).and_then(|pool| node_id_base(&pool));
    let (is_heard, nodes) = link.observed(|observer, now| {
        let view = observer.view(&subject.identity, now, |node| accepts(base, node));
        (observer.is_caught_up(), view.iter().filter(|node| node.is_fresh).count())
    });
    let is_desired =
        link.desired(|state| bridge::remove(state, &subject.pool.name, &subject.identity).is_some());
    Remains { is_desired, is_heard, nodes, members }
}

async fn members(link: &Arc<Link>, group: ConsumerGroup) -> Result<usize, Error> {
    let log = link.log().ok_or_else(|| LogError::Unavailable("not connected".into()))?;
    Ok(tokio::task::spawn_blocking(move || log.offsets().members(&group)).await??)
}

/// Deletes the group and the status records.
async fn sweep<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    link: &Arc<Link>,
    group: ConsumerGroup,
) -> Result<(), Error> {
    let log = link.log().ok_or_else(|| LogError::Unavailable("not connected".into()))?;
    let keys = link.observed(|observer, _| observer.detail_keys(&subject.identity));
    let keeps_group = subject.draft.deletion_policy == DeletionPolicy::Retain;
    let swept = move || -> Result<(), LogError> {
        if !keeps_group {
            log.offsets().delete(&group)?;
        }
        let tombstones: Vec<Produce> = keys.iter().map(|key| tombstone(&key.to_string())).collect();
        if !tombstones.is_empty() {
            log.produce(&tombstones)?;
        }
        Ok(())
    };
    Ok(tokio::task::spawn_blocking(swept).await??)
}

/// A record that removes a key from the status topic.
pub fn tombstone(key: &str) -> Produce {
    Produce {
        topic: OwnTopic::Status.name(),
        partition: Some(0),
        record: Record::new(Some(key.as_bytes()), None),
    }
}

async fn wait<K: DeploymentKind>(
    subject: &Subject<'_, K>,
    context: &Context,
    reason: &str,
    message: &str,
    again: Duration,
) -> Result<Action, Error> {
    let before = context.status_of(subject.object, subject.object.status());
    let generation = subject.object.meta().generation.unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, generation, context.world.clock.wall_ms());
    conditions.verdict(&Verdict::progressing(reason, message));
    let status = DeploymentResourceStatus {
        observed_generation: generation,
        phase: Phase::Terminating,
        conditions: conditions.build(),
        ..before.clone()
    };
    if status != before {
        write_status(context, subject.object, &status).await?;
    }
    Ok(Action::requeue(again))
}
