//! The operator's end of a pool's two topics: one thread writes and follows desired state, one follows observed
//! state. Controllers hold a `Link`, ask it, and are told by `Notice` what to look at again.
//!
//! The log blocks, so it lives on threads of its own. Commands are written in batches: a thousand resources that
//! are applied at once become a few dozen transactions.

mod threads;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use crate::control::desired::DesiredState;
use crate::core::names::{Identity, TopicName};
use crate::operator::bridge::PoolKey;
use crate::operator::observe::Observer;
use crate::operator::world::{Connection, Logs};
use crate::ports::{Clock, Keyed, Log, LogError};

/// Commands that wait for the writer; beyond it reconciliations are told to come back.
const COMMANDS: usize = 1_024;
/// How long it is believed how many partitions a topic has.
const TOPIC_MEMORY: Duration = Duration::from_secs(30);

/// What controllers have to look at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This deployment.
    Deployment(Identity),
    /// Every deployment of the pool, and the pool.
    Everything(PoolKey),
    /// Another operator writes for this pool: this one has to give up.
    Fenced(PoolKey),
}

/// How a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The log has not answered yet.
    Connecting,
    /// Both topics are followed.
    Up,
    /// The log does not do what it has to, and why.
    Down(String),
}

/// Records for one of the two topics.
struct Write {
    records: Vec<Keyed>,
    done: oneshot::Sender<Result<(), LogError>>,
}

/// What the threads and the controllers share.
pub(super) struct Shared {
    pool: PoolKey,
    connection: Connection,
    logs: Arc<dyn Logs>,
    clock: Arc<dyn Clock>,
    notices: mpsc::Sender<Notice>,
    log: RwLock<Option<Arc<dyn Log>>>,
    health: RwLock<Health>,
    desired: RwLock<DesiredState>,
    observer: RwLock<Observer>,
    topics: Mutex<HashMap<TopicName, (Duration, Option<u32>)>>,
    claimed: Mutex<Option<u32>>,
    /// Notices were dropped because too many waited: everything has to be looked at.
    overflow: AtomicBool,
    stop: AtomicBool,
}

/// A pool's link. Dropping the last handle stops its threads.
pub struct Link {
    shared: Arc<Shared>,
    writes: Sender<Write>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Link {
    /// Starts the threads of a pool's link.
    pub fn start(
        pool: PoolKey,
        connection: Connection,
        logs: Arc<dyn Logs>,
        clock: Arc<dyn Clock>,
        notices: mpsc::Sender<Notice>,
    ) -> std::io::Result<Self> {
        let (writes, waiting) = crossbeam_channel::bounded(COMMANDS);
        let observer = RwLock::new(Observer::new(pool.name.clone()));
        let shared = Arc::new(Shared {
            pool,
            connection,
            logs,
            clock,
            notices,
            observer,
            log: RwLock::default(),
            health: RwLock::new(Health::Connecting),
            desired: RwLock::default(),
            topics: Mutex::default(),
            claimed: Mutex::default(),
            overflow: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        threads::start(&shared, waiting)?;
        Ok(Self { shared, writes })
    }

    /// Tells the threads to end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.shared.health.read().clone()
    }

    /// How the cluster is reached.
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    /// The log, once it has answered.
    pub fn log(&self) -> Option<Arc<dyn Log>> {
        self.shared.log.read().clone()
    }

    /// Looks at desired state.
    pub fn desired<T>(&self, look: impl FnOnce(&DesiredState) -> T) -> T {
        look(&self.shared.desired.read())
    }

    /// Looks at observed state, with the time that its freshness goes by.
    pub fn observed<T>(&self, look: impl FnOnce(&Observer, Duration) -> T) -> T {
        look(&self.shared.observer.read(), self.shared.clock.monotonic())
    }

    /// The block of node ids that this process has claimed.
    pub fn claimed(&self) -> Option<u32> {
        *self.shared.claimed.lock()
    }

    /// Notes the block of node ids that is claimed.
    pub fn note_claim(&self, base: Option<u32>) {
        *self.shared.claimed.lock() = base;
    }

    /// Writes control records, all or none, durable when this returns.
    pub async fn write(&self, records: Vec<Keyed>) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        let (done, written) = oneshot::channel();
        self.writes.try_send(Write { records, done }).map_err(|error| match error {
            TrySendError::Full(_) => LogError::Unavailable("too many writes wait already".into()),
            TrySendError::Disconnected(_) => LogError::Unavailable("the writer has stopped".into()),
        })?;
        written.await.map_err(|_| LogError::Unavailable("the writer has stopped".into()))?
    }

    /// How many partitions each topic has, `None` for those that do not exist; asks the log where it has to.
    pub fn partitions(
        &self,
        topics: impl IntoIterator<Item = TopicName>,
    ) -> Result<HashMap<TopicName, Option<u32>>, LogError> {
        let log = self.log().ok_or_else(|| LogError::Unavailable("not connected yet".into()))?;
        let now = self.shared.clock.monotonic();
        let wanted: HashSet<TopicName> = topics.into_iter().collect();
        let mut found = HashMap::new();
        for topic in wanted {
            let known = self.shared.topics.lock().get(&topic).copied();
            let is_recent = |at: Duration| now.saturating_sub(at) < TOPIC_MEMORY;
            let count = match known {
                // A topic that is missing may be created at any moment.
                Some((at, Some(count))) if is_recent(at) => Some(count),
                _ => log.topics().describe(&topic)?.map(|info| info.config.partitions),
            };
            self.shared.topics.lock().insert(topic.clone(), (now, count));
            found.insert(topic, count);
        }
        Ok(found)
    }
}
