//! Changing the desired state from the command line and the drop folder: deploy, pause, resume, remove.
//!
//! Only deployments of the namespace `_cli` are written here. What Kubernetes owns is refused, and the error
//! names the resource to edit.

use crate::control::desired::{self, Desired, DesiredState};
use crate::control::keys::ControlKey;
use crate::control::topics::OwnTopic;
use crate::core::deployment::{Deployment, Owner, Problem, find_cycle};
use crate::core::names::{Identity, Installation, Namespace, PoolName, TopicName};
use crate::ports::{Keyed, Log, LogError};

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

    /// Sets a deployment: the generation that it got. An unchanged one keeps its generation and is not written.
    pub fn deploy(
        &self,
        pool: &PoolName,
        identity: &Identity,
        mut deployment: Deployment,
    ) -> Result<u64, Error> {
        let problems = deployment.problems();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        OwnTopic::Control.ensure(self.log)?;
        let state = desired::read(self.log)?;
        deployment.generation = 1;
        if let Some((at, before)) = state.get(identity) {
            if at != pool {
                return Err(Error::OtherPool { identity: identity.clone(), pool: at.clone() });
            }
            if let Desired::Deployment(before) = before {
                check_owner(identity, before)?;
                if before.consumer_group(identity) != deployment.consumer_group(identity) {
                    return Err(Error::GroupIsImmutable(identity.clone()));
                }
                deployment.generation = before.generation;
                if **before == deployment {
                    return Ok(before.generation);
                }
            }
            deployment.generation = before.generation() + 1;
        }
        refuse_cycle(&state, pool, identity, &deployment)?;
        let generation = deployment.generation;
        self.put(pool, identity, Some(&deployment))?;
        Ok(generation)
    }

    /// Pauses or resumes a deployment: whether that changed anything.
    pub fn set_paused(&self, identity: &Identity, paused: bool) -> Result<bool, Error> {
        let (pool, mut deployment) = self.find(identity)?;
        if deployment.paused == paused {
            return Ok(false);
        }
        deployment.paused = paused;
        deployment.generation += 1;
        self.put(&pool, identity, Some(&deployment))?;
        Ok(true)
    }

    /// Removes a deployment.
    pub fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let state = desired::read(self.log)?;
        let (pool, before) = state.get(identity).ok_or_else(|| Error::NotFound(identity.clone()))?;
        if let Desired::Deployment(before) = before {
            check_owner(identity, before)?;
        }
        self.put(pool, identity, None)
    }

    /// The deployment as it is desired now, with its pool; refused where Kubernetes owns it.
    pub fn find(&self, identity: &Identity) -> Result<(PoolName, Deployment), Error> {
        let state = desired::read(self.log)?;
        match state.get(identity) {
            Some((pool, Desired::Deployment(deployment))) => {
                check_owner(identity, deployment)?;
                Ok((pool.clone(), (**deployment).clone()))
            }
            _ => Err(Error::NotFound(identity.clone())),
        }
    }

    fn put(
        &self,
        pool: &PoolName,
        identity: &Identity,
        deployment: Option<&Deployment>,
    ) -> Result<(), Error> {
        let key = ControlKey::Deployment(pool.clone(), identity.clone()).to_string().into_bytes();
        let value = deployment
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|error| LogError::BadConfig(format!("the deployment cannot be written: {error}")))?;
        let id = format!("coproc.cli.{}", self.installation);
        let mut writer = self.log.fenced_writer(&OwnTopic::Control.name(), &id)?;
        Ok(writer.write(&[Keyed { key, value }])?)
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
