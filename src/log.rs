//! The embedded log: topics, groups and atomic commits in one directory, without Kafka.
//!
//! Callers hand atomic batches to one writer thread (`writer`), which commits what waits as one group with one sync.
//! Records lie in checksummed chunks (`frame`) in a storage engine (`engine`); readers copy slices out of them
//! (`cursor`). Other processes reach a store over a socket (`socket`). Why this engine:
//! `docs/adr/0002-storage-engine.md`. This adapter sees `core` and `ports`, nothing else of ours.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::core::names::TopicName;
use crate::log::answer::Answer;
use crate::log::clock::SystemClock;
use crate::log::fold::TopicFold;
use crate::log::housekeeping::Housekeeper;
use crate::log::lane::Lane;
use crate::log::produce::{Staged, TopicWriter};
use crate::log::reader::TopicReader;
use crate::log::request::{Commit, Request};
use crate::log::store::Store;
use crate::ports::{
    Ability, Capabilities, Clock, FencedWriter, Fold, LaneSession, LaneSpec, Log, LogError, Offsets, Produce,
    Produced, ReadFrom, Reader, TopicAdmin,
};

mod admin;
mod answer;
mod catalog;
mod clock;
mod compaction;
mod cursor;
mod engine;
mod fold;
mod frame;
mod group;
mod home;
mod housekeeping;
mod lane;
mod lookup;
mod produce;
mod queue;
mod reader;
mod request;
mod signal;
pub mod socket;
mod store;
mod transaction;
mod writer;

pub use lookup::{Found, RangeQuery};
pub use socket::open_or_connect;

/// Largest `max_record_bytes` that a topic can have, in bytes.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// Longer waits than this end after it: an `Instant` has an end.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// Whether there is a log in the directory, without opening or making one.
pub fn is_there(dir: &Path) -> bool {
    home::Home::is_store(dir)
}

/// What is promised when a commit is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// It survives a power cut.
    #[default]
    Fsync,
    /// It survives the death of the process, not a power cut.
    Flush,
}

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// What is promised when a commit is acknowledged.
    pub durability: Durability,
    /// Memory for the engine's cache, in bytes.
    pub cache_bytes: u64,
    /// Time between runs of retention and compaction; `None` runs them only when asked.
    pub housekeeping_interval: Option<Duration>,
    /// How long tombstones stay in compacted topics.
    pub delete_retention: Duration,
    /// Most keys that a pass of compaction remembers, at about 50 bytes each; with more, it takes several passes.
    pub compaction_keys: usize,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            cache_bytes: 8 << 20,
            housekeeping_interval: Some(Duration::from_secs(30)),
            delete_retention: Duration::from_hours(24),
            compaction_keys: 1_000_000,
            clock: Arc::new(SystemClock::default()),
        }
    }
}

/// A store that this process has open. Dropping it writes what was submitted, and ends its threads.
pub struct EmbeddedLog {
    store: Arc<Store>,
    housekeeper: Housekeeper,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedLog {
    /// Opens the store in `dir`, which is made where there is none.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, LogError> {
        let interval = options.housekeeping_interval;
        let store = Arc::new(Store::open(dir, options)?);
        let writing = store.clone();
        let writer = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer::run(&writing))
            .map_err(|error| LogError::Storage(format!("start the writer's thread: {error}")))?;
        let housekeeper = Housekeeper::start(store.clone(), interval);
        // Made before `?`, so that a failure ends the writer.
        let mut log = Self { store, housekeeper: Housekeeper::none(), writer: Some(writer) };
        log.housekeeper = housekeeper?;
        Ok(Arc::new(log))
    }

    /// Runs retention and compaction now, to their end.
    pub fn housekeep(&self) -> Result<(), LogError> {
        housekeeping::run(&self.store, true)
    }

    /// Moves what is only in the journal to tables: a restart has less to read.
    pub fn flush_tables(&self) -> Result<(), LogError> {
        self.store.engine.flush()
    }

    /// As `produce`, without waiting: `done` is called on the writer's thread once the records are durable, and
    /// must not block. One thread can keep many commits in flight this way; it waits only while the queue is full.
    pub fn produce_then(
        &self,
        records: &[Produce],
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let mut staged = Staged::new(&self.store, records)?;
        let answer = Answer::Call(Box::new(move |result: Result<_, _>| done(result.map(drop))));
        let appends = staged.transaction.take();
        self.store.submit(Request::Commit(Commit { appends, offsets: Vec::new(), fence: None, answer }));
        Ok(())
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.housekeeper.stop();
        self.store.queue.close();
        if let Some(writer) = self.writer.take() {
            // A callback of `produce_then` may hold the log, and be the last to.
            if writer.thread().id() != std::thread::current().id() {
                let _ = writer.join();
            }
        }
        self.store.seal();
    }
}

impl Log for EmbeddedLog {
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        Ok(Box::new(Lane::open(self.store.clone(), spec.clone())?))
    }

    fn topics(&self) -> &dyn TopicAdmin {
        self
    }

    fn offsets(&self) -> &dyn Offsets {
        self
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        let topic = self.store.topic(topic)?;
        Ok(Box::new(TopicFold::open(self.store.clone(), &topic)?))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        Ok(Box::new(TopicWriter::open(self.store.clone(), topic, id)?))
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        let topic = self.store.topic(topic)?;
        Ok(Box::new(TopicReader::open(self.store.clone(), topic, partitions, from)?))
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        produce::produce(&self.store, records)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            description: format!("embedded log at {}", self.store.dir().display()),
            transactions: Ability::Present,
            compaction: Ability::Present,
        }
    }
}
