//! What nodes know of earlier commits, read from the status topic when a partition without a committed offset turns up:
//! by it an offset that was removed, or expired, is told from a first start. Called by sessions, on lanes' threads.
//!
//! Rarely asked, and then by many lanes at once, so one reading serves all who ask within moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::control::observed::{self, ObservedState};
use crate::core::ledger::TopicPartition;
use crate::core::names::Identity;
use crate::ports::{History, Log, LogError};

/// How long one reading serves, also one that failed.
const SERVES: Duration = Duration::from_secs(1);
/// How long a lane waits for the reading of another one. It has a group to stay in: it asks again.
const WAITS: Duration = Duration::from_secs(1);

/// When it was read, and what.
type Reading = (Instant, Result<Arc<ObservedState>, LogError>);

/// The nodes' memory.
pub struct Past {
    log: Arc<dyn Log>,
    read: Mutex<Option<Reading>>,
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
        let Some(mut last) = self.read.try_lock_for(WAITS) else {
            return Err(LogError::Unavailable("another lane reads what was committed earlier".into()));
        };
        if let Some((at, read)) = &*last
            && at.elapsed() < SERVES
        {
            return read.clone();
        }
        // Where reading is refused nobody knows, and that is no "nothing was committed".
        let read = observed::read(self.log.as_ref()).map(|state| Arc::new(state.unwrap_or_default()));
        *last = Some((Instant::now(), read.clone()));
        read
    }
}

impl History for PastOf {
    fn had_committed(&self, partition: &TopicPartition) -> Result<bool, LogError> {
        let state = self.past.state()?;
        Ok(state.had_committed(&self.identity, self.life.as_deref(), partition))
    }
}
