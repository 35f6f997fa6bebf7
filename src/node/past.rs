//! What nodes know of earlier commits, read from the status topic when a partition without a committed offset turns up:
//! by it an offset that was removed, or expired, is told from a first start. Called by sessions, on lanes' threads.
//!
//! Rarely asked, and then by many lanes at once, so one reading serves all who ask within moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::control::observed::{self, ObservedState};
use crate::core::disposition::Disposition;
use crate::core::ledger::TopicPartition;
use crate::core::names::Identity;
use crate::ports::{History, Log, LogError};

/// How long one reading serves.
const SERVES: Duration = Duration::from_secs(1);

/// The nodes' memory.
pub struct Past {
    log: Arc<dyn Log>,
    read: Mutex<Option<(Instant, Arc<ObservedState>)>>,
}

/// What they know of one deployment.
pub struct PastOf {
    past: Arc<Past>,
    identity: Identity,
    life: Option<String>,
}

impl Past {
    /// Nothing is read yet.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log, read: Mutex::new(None) }
    }

    /// What is known of one life of a deployment.
    pub fn of(self: &Arc<Self>, identity: &Identity, life: Option<String>) -> PastOf {
        PastOf { past: self.clone(), identity: identity.clone(), life }
    }

    fn state(&self) -> Result<Arc<ObservedState>, LogError> {
        let mut read = self.read.lock();
        if let Some((at, state)) = &*read
            && at.elapsed() < SERVES
        {
            return Ok(state.clone());
        }
        let state = match observed::read(self.log.as_ref()) {
            Ok(state) => state.unwrap_or_default(),
            Err(error) if error.disposition() == Disposition::Transient => return Err(error),
            // Losing the status topic harms nothing but this memory.
            Err(error) => {
                tracing::warn!(%error, "earlier commits are not known: partitions without an offset start by the policy");
                ObservedState::default()
            }
        };
        let state = Arc::new(state);
        *read = Some((Instant::now(), state.clone()));
        Ok(state)
    }
}

impl History for PastOf {
    fn had_committed(&self, partition: &TopicPartition) -> Result<bool, LogError> {
        let state = self.past.state()?;
        Ok(state.had_committed(&self.identity, self.life.as_deref(), partition))
    }
}
