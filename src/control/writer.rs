//! Changing the desired state from the command line and the drop folder: deploy, pause, resume, remove.
//!
//! Only deployments of the namespace `_cli` are written here. What Kubernetes owns is refused, and the error
//! names the resource to edit.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::control::desired::{self, Desired, DesiredState};
use crate::control::keys::ControlKey;
use crate::control::topics::OwnTopic;
use crate::core::deployment::{Deployment, Owner, Problem, find_cycle};
use crate::core::names::{Identity, Installation, Namespace, PoolName, TopicName};
use crate::ports::{Keyed, Log, LogError};

/// How often a change is tried when others change something at the same time.
const ATTEMPTS: u32 = 8;
/// How often it is tried again when it is not known what became of it: each may have waited for a log that is away.
const UNCERTAIN: u32 = 2;
/// The longest wait after the first time, on a log that is fast, and on one that is slow; it grows with every further
/// one.
const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Why the desired state was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The deployment has problems: all of them.
    #[error("the deployment has {} problem(s):{}", .0.len(), list(.0))]
    Invalid(Vec<Problem>),
    /// There is no such deployment.
    #[error("there is no deployment {0}: `coproc list` shows what there is")]
    NotFound(Identity),
    /// Kubernetes owns it.
    #[error("{identity} belongs to Kubernetes: edit it there, `kubectl -n {} edit {} {}`",
        .identity.namespace, .identity.kind.as_str(), .identity.name)]
    NotOurs {
        /// Which.
        identity: Identity,
    },
    /// Records would go round for ever.
    #[error("records would go round for ever: {}", .0.iter().map(TopicName::as_str).collect::<Vec<_>>().join(" -> "))]
    Cycle(Vec<TopicName>),
    /// The deployment runs in another pool.
    #[error("{identity} runs in pool {pool}: remove it there first")]
    OtherPool {
        /// Which.
        identity: Identity,
        /// Where it runs.
        pool: PoolName,
    },
    /// The consumer group of a running deployment cannot be changed.
    #[error("the consumer group of {0} cannot be changed: remove the deployment first")]
    GroupIsImmutable(Identity),
    /// Others changed something every time.
    #[error("others keep changing deployments at the same time: try again")]
    Busy,
    /// The log did not do it.
    #[error(transparent)]
    Log(#[from] LogError),
}

fn list(problems: &[Problem]) -> String {
    use std::fmt::Write;
    problems.iter().fold(String::new(), |mut text, problem| {
        let _ = write!(text, "\n  {problem}");
        text
    })
}

/// Writes deployments of the namespace `_cli`.
pub struct DesiredWriter<'a> {
    log: &'a dyn Log,
    installation: Installation,
}

impl<'a> DesiredWriter<'a> {
    /// A writer for this installation.
    pub fn new(log: &'a dyn Log, installation: Installation) -> Self {
        Self { log, installation }
    }

    /// Sets a deployment: the generation that it got. An unchanged one keeps its generation and is not written; a
    /// paused one stays paused.
    ///
    /// Generations of one identity never restart, because nodes and waiting commands take a higher one for newer: a
    /// deployment that is new, perhaps again, begins behind the end of the topic, which no earlier one of its
    /// generations can have passed, since each took a record.
    pub fn deploy(
        &self,
        pool: &PoolName,
        identity: &Identity,
        deployment: &Deployment,
    ) -> Result<u64, Error> {
        let problems = deployment.problems();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        OwnTopic::Control.ensure(self.log)?;
        self.change(|state, end| {
            let mut deployment = deployment.clone();
            deployment.generation = match state.get(identity) {
                None => {
                    deployment.life = Some((end + 1).to_string());
                    end + 1
                }
                Some((at, before)) => {
                    check_pool(identity, at, pool)?;
                    if let Desired::Deployment(before) = before {
                        check_owner(identity, before)?;
                        check_group(identity, before, &deployment)?;
                        // A new module does not end a pause.
                        deployment.paused |= before.paused;
                        deployment.generation = before.generation;
                        deployment.life.clone_from(&before.life);
                        if **before == deployment {
                            return Ok((None, before.generation));
                        }
                    }
                    before.generation() + 1
                }
            };
            refuse_cycle(state, pool, identity, &deployment)?;
            Ok((Some(put(pool, identity, Some(&deployment))?), deployment.generation))
        })
    }

    /// Pauses or resumes a deployment: whether that changed anything.
    pub fn set_paused(&self, identity: &Identity, paused: bool) -> Result<bool, Error> {
        self.check_topic(identity)?;
        self.change(|state, _| {
            let (pool, mut deployment) = ours(state, identity)?;
            if deployment.paused == paused {
                return Ok((None, false));
            }
            deployment.paused = paused;
            deployment.generation += 1;
            Ok((Some(put(&pool, identity, Some(&deployment))?), true))
        })
    }

    /// Removes a deployment.
    pub fn remove(&self, identity: &Identity) -> Result<(), Error> {
        self.check_topic(identity)?;
        self.change(|state, _| {
            let (pool, before) = state.get(identity).ok_or_else(|| Error::NotFound(identity.clone()))?;
            if let Desired::Deployment(before) = before {
                check_owner(identity, before)?;
            }
            Ok((Some(put(pool, identity, None)?), ()))
        })
    }

    /// The deployment as it is desired now, with its pool; refused where Kubernetes owns it.
    pub fn find(&self, identity: &Identity) -> Result<(PoolName, Deployment), Error> {
        ours(&desired::read(self.log)?, identity)
    }

    /// Reads the state, decides, writes. The writer is opened before the state is read: whoever else changes
    /// something from then on fences this one, which then reads again. Else one of two changes would be lost.
    fn change<T>(
        &self,
        decide: impl Fn(&DesiredState, u64) -> Result<(Option<Keyed>, T), Error>,
    ) -> Result<T, Error> {
        let topic = OwnTopic::Control.name();
        let id = format!("coproc.cli.{}", self.installation);
        let mut uncertain = 0;
        for attempt in 1..=ATTEMPTS {
            let began = Instant::now();
            match self.try_change(&topic, &id, &decide) {
                Err(Error::Log(LogError::Fenced(_))) => {}
                // Fenced in the middle of a commit, perhaps. The state that is read next says what became of it.
                Err(Error::Log(LogError::Uncertain(_))) if uncertain < UNCERTAIN => uncertain += 1,
                done => return done,
            }
            back_off(attempt, began.elapsed());
        }
        Err(Error::Busy)
    }

    fn try_change<T>(
        &self,
        topic: &TopicName,
        id: &str,
        decide: impl Fn(&DesiredState, u64) -> Result<(Option<Keyed>, T), Error>,
    ) -> Result<T, Error> {
        let mut writer = self.log.fenced_writer(topic, id)?;
        let state = desired::read(self.log)?;
        let extents = self.log.topics().extents(topic)?;
        let end = extents.first().map_or(0, |extent| extent.end.max(0).cast_unsigned());
        let (record, result) = decide(&state, end)?;
        if let Some(record) = record {
            writer.write(&[record])?;
        }
        Ok(result)
    }

    fn check_topic(&self, identity: &Identity) -> Result<(), Error> {
        match self.log.topics().describe(&OwnTopic::Control.name())? {
            Some(_) => Ok(()),
            None => Err(Error::NotFound(identity.clone())),
        }
    }
}

/// Waits for a moment that differs between writers, so that they do not fence one another in step for ever. It grows
/// with what an attempt takes: on a slow log the other needs as long to get through.
fn back_off(attempt: u32, took: Duration) {
    let dice = RandomState::new().build_hasher().finish();
    let longest = took.clamp(BACK_OFF, BACK_OFF_MAX);
    std::thread::sleep(longest.mul_f64(f64::from(attempt) * (dice % 1_000) as f64 / 1_000.0));
}

fn put(pool: &PoolName, identity: &Identity, deployment: Option<&Deployment>) -> Result<Keyed, Error> {
    let key = ControlKey::Deployment(pool.clone(), identity.clone()).to_string().into_bytes();
    let value = deployment
        .map(serde_json::to_vec)
        .transpose()
        .map_err(|error| LogError::BadConfig(format!("the deployment cannot be written: {error}")))?;
    Ok(Keyed { key, value })
}

fn ours(state: &DesiredState, identity: &Identity) -> Result<(PoolName, Deployment), Error> {
    match state.get(identity) {
        Some((pool, Desired::Deployment(deployment))) => {
            check_owner(identity, deployment)?;
            Ok((pool.clone(), (**deployment).clone()))
        }
        _ => Err(Error::NotFound(identity.clone())),
    }
}

fn check_pool(identity: &Identity, at: &PoolName, wanted: &PoolName) -> Result<(), Error> {
    if at == wanted { Ok(()) } else { Err(Error::OtherPool { identity: identity.clone(), pool: at.clone() }) }
}

fn check_group(identity: &Identity, before: &Deployment, after: &Deployment) -> Result<(), Error> {
    if before.consumer_group(identity) == after.consumer_group(identity) {
        Ok(())
    } else {
        Err(Error::GroupIsImmutable(identity.clone()))
    }
}

fn check_owner(identity: &Identity, deployment: &Deployment) -> Result<(), Error> {
    if deployment.owner == Owner::Cli && identity.namespace.as_str() == Namespace::CLI {
        Ok(())
    } else {
        Err(Error::NotOurs { identity: identity.clone() })
    }
}

fn refuse_cycle(
    state: &DesiredState,
    pool: &PoolName,
    identity: &Identity,
    deployment: &Deployment,
) -> Result<(), Error> {
    let others = state.of_pool(pool).filter_map(|(at, desired)| match desired {
        Desired::Deployment(other) if at != identity => Some(other.as_ref()),
        _ => None,
    });
    match find_cycle(others.chain([deployment])) {
        Some(cycle) => Err(Error::Cycle(cycle)),
        None => Ok(()),
    }
}
