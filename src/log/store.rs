//! What everything in the store shares: the engine, the catalog, the committed offsets, the writer's queue.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, TopicName};
use crate::core::record::{Offset, TimestampMs};
use crate::log::answer::{Answer, Doors, closed};
use crate::log::catalog::{
    self, CLOCK_KEY, COMMIT_KEY, NEXT_ID_KEY, OFFSET_PREFIX, Partition, SPAN_PREFIX, Span, StoredTopic,
    TOPIC_PREFIX, Topic,
};
use crate::log::engine::{Engine, Write};
use crate::log::frame::{PartitionId, frames};
use crate::log::group::Coordinator;
use crate::log::home::Home;
use crate::log::queue::Queue;
use crate::log::request::{Append, Appended, Commit, Edit, Effect, Fence, OffsetChange, Request};
use crate::log::signal::Watchers;
use crate::log::{Durability, Options};
use crate::ports::{Clock, LogError};

/// The offsets of consumer groups.
pub type Committed = HashMap<ConsumerGroup, BTreeMap<TopicPartition, Offset>>;

/// The shared state of a store.
pub struct Store {
    /// The engine.
    pub engine: Engine,
    /// Where callers sleep until the writer has answered.
    pub doors: Doors,
    /// Requests for the writer.
    pub queue: Queue<Request>,
    /// Groups and their members.
    pub groups: Coordinator,
    /// Topics by name.
    pub topics: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    /// Who wants to know when a topic comes or goes.
    pub catalog_watchers: Watchers,
    /// Held by whoever does housekeeping: two at once would undo each other. Bytes that were removed and not given back.
    pub housekeeping: Mutex<u64>,
    /// How long tombstones stay.
    pub delete_retention_ms: u64,
    /// Most keys that compaction remembers.
    pub compaction_keys: usize,
    durability: Durability,
    home: Home,
    clock: Arc<dyn Clock>,
    committed: Mutex<Committed>,
    fences: Mutex<HashMap<String, Arc<AtomicU64>>>,
    last_commit: AtomicU64,
    /// It is not known how far the engine is: nothing is committed before that was looked up. Else the number of a
    /// commit that went through after all would be given to another.
    tainted: AtomicBool,
    append_ms: AtomicI64,
    next_id: AtomicU64,
}

impl Store {
    /// Opens the store in `dir`, and checks that nothing is missing that a caller was told of.
    pub fn open(dir: &Path, options: Options) -> Result<Self, LogError> {
        let home = Home::take(dir)?;
        clear_unfinished(&home)?;
        let engine = Engine::open(&home.engine_dir(), &options)?;
        let last_commit = stored_number(&engine, COMMIT_KEY)?;
        if last_commit < home.acknowledged() {
            return Err(missing(&home, last_commit));
        }
        let topics = load_topics(&engine)?;
        let committed = load_committed(&engine, &topics)?;
        Ok(Self {
            append_ms: AtomicI64::new(stored_number(&engine, CLOCK_KEY)? as i64),
            next_id: AtomicU64::new(stored_number(&engine, NEXT_ID_KEY)?.max(1)),
            last_commit: AtomicU64::new(last_commit),
            tainted: AtomicBool::new(false),
            committed: Mutex::new(committed),
            topics: RwLock::new(topics),
            fences: Mutex::default(),
            doors: Doors::default(),
            queue: Queue::default(),
            groups: Coordinator::default(),
            catalog_watchers: Watchers::default(),
            housekeeping: Mutex::default(),
            delete_retention_ms: options.delete_retention.as_millis() as u64,
            compaction_keys: options.compaction_keys.max(1),
            durability: options.durability,
            clock: options.clock,
            engine,
            home,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// A topic that exists.
    pub fn topic(&self, name: &TopicName) -> Result<Arc<Topic>, LogError> {
        self.topics.read().get(name).cloned().ok_or_else(|| LogError::UnknownTopic(name.clone()))
    }

    /// Commits records and offsets as one, and waits until that is durable.
    pub fn write(
        &self,
        appends: Vec<Append>,
        offsets: Vec<OffsetChange>,
        fence: Option<Fence>,
    ) -> Result<Vec<Appended>, LogError> {
        let (answer, waiting) = Answer::new();
        let door = self.submit(Request::Commit(Commit { appends, offsets, fence, answer }));
        waiting.sleep(&self.doors, door)
    }

    /// Changes the catalog or chunks, and waits until that is durable. `plan` decides, on the writer's thread.
    pub fn edit(
        &self,
        bytes: usize,
        plan: impl FnOnce(&Self) -> Result<(Vec<Write>, Effect), LogError> + Send + 'static,
    ) -> Result<(), LogError> {
        let (answer, waiting) = Answer::new();
        let door = self.submit(Request::Edit(Edit { plan: Box::new(plan), bytes, answer }));
        waiting.sleep(&self.doors, door)
    }

    /// Gives a request to the writer; it is always answered. The door at which to sleep until then.
    pub fn submit(&self, request: Request) -> usize {
        self.queue.push(request.bytes(), request).unwrap_or_else(|request| {
            request.refuse(closed());
            0
        })
    }

    /// Claims an id: whoever claimed it before is fenced, and what they had under way is done or refused when this
    /// returns. Who reads after that sees all they ever wrote.
    pub fn claim(&self, what: String) -> Result<Fence, LogError> {
        let cell = self.fences.lock().entry(what.clone()).or_default().clone();
        let epoch = cell.fetch_add(1, Ordering::AcqRel) + 1;
        self.edit(0, |_| Ok((Vec::new(), Box::new(|_: &Self| {}) as Effect)))?;
        Ok(Fence { what, cell, epoch })
    }

    /// The committed offsets of a group.
    pub fn committed(&self, group: &ConsumerGroup) -> BTreeMap<TopicPartition, Offset> {
        self.committed.lock().get(group).cloned().unwrap_or_default()
    }

    /// The committed offset of one partition.
    pub fn committed_at(&self, group: &ConsumerGroup, partition: &TopicPartition) -> Option<Offset> {
        self.committed.lock().get(group)?.get(partition).copied()
    }

    /// The groups that have committed offsets.
    pub fn groups_with_offsets(&self) -> Vec<ConsumerGroup> {
        self.committed.lock().keys().cloned().collect()
    }

    /// Shows a committed offset, after it is durable.
    pub fn set_committed(&self, change: OffsetChange) {
        let partition = change.topic_partition();
        self.committed.lock().entry(change.group).or_default().insert(partition, change.to);
    }

    /// Forgets a group, or what all groups have of a topic, after that is durable.
    pub fn forget_committed(&self, forget: impl Fn(&ConsumerGroup, &TopicPartition) -> bool) {
        let mut committed = self.committed.lock();
        for (group, offsets) in committed.iter_mut() {
            offsets.retain(|partition, _| !forget(group, partition));
        }
        committed.retain(|_, offsets| !offsets.is_empty());
    }

    /// Every committed offset that `wanted` names.
    pub fn find_committed(
        &self,
        wanted: impl Fn(&ConsumerGroup, &TopicPartition) -> bool,
    ) -> Vec<(ConsumerGroup, TopicPartition)> {
        let committed = self.committed.lock();
        let all = committed.iter().flat_map(|(group, offsets)| offsets.keys().map(move |at| (group, at)));
        all.filter(|(group, at)| wanted(group, at)).map(|(group, at)| (group.clone(), at.clone())).collect()
    }

    /// Ids for a topic of so many partitions, and the write that keeps others from getting them.
    pub fn next_ids(&self, partitions: u32) -> (u64, u64) {
        let id = self.next_id.load(Ordering::Acquire);
        (id, id + 1 + u64::from(partitions))
    }

    /// Says that ids before `next` are given out, after that is durable.
    pub fn set_next_id(&self, next: u64) {
        self.next_id.store(next, Ordering::Release);
    }

    /// What the clock says.
    pub fn now_ms(&self) -> TimestampMs {
        self.clock.wall_ms()
    }

    /// The append time of a group that begins now: not before the last one, whatever the clock does.
    pub fn next_append_ms(&self) -> TimestampMs {
        self.now_ms().max(self.append_ms.load(Ordering::Acquire))
    }

    /// The number of the last commit.
    pub fn last_commit(&self) -> u64 {
        self.last_commit.load(Ordering::Acquire)
    }

    /// Commits a group, on the writer's thread. Where the engine fails, it is opened again to learn whether the
    /// commit went through after all.
    pub fn commit(&self, number: u64, append_ms: TimestampMs, writes: &[Write]) -> Result<(), LogError> {
        fail::fail_point!("log::commit::before_write", |_| Err(LogError::Storage("injected".into())));
        if self.tainted.load(Ordering::Acquire) {
            self.check_whole()?;
            self.tainted.store(false, Ordering::Release);
        }
        self.commit_or_settle(number, writes)?;
        self.last_commit.store(number, Ordering::Release);
        self.append_ms.store(append_ms, Ordering::Release);
        // A commit that is not on the disk may be lost with the power, and the note of it not: then the note would
        // accuse a store that is as good as was promised.
        if self.durability == Durability::Fsync
            && let Err(error) = self.home.acknowledge(number)
        {
            // Without the note a damaged tail would be noticed less well: no reason to fail a commit that is done.
            tracing::debug!(%error, "could not note the number of the commit");
        }
        Ok(())
    }

    fn commit_or_settle(&self, number: u64, writes: &[Write]) -> Result<(), LogError> {
        let Err(error) = self.engine.commit(writes) else { return Ok(()) };
        tracing::warn!(%error, "a commit failed: the log opens its store again to see what is in it");
        if self.settle(number, &error)? {
            return Ok(());
        }
        // The engine refuses everything after a failure in the background, and opening it gives back space: tried
        // once more, what fails now fails for a reason of today.
        let Err(error) = self.engine.commit(writes) else { return Ok(()) };
        if self.settle(number, &error)? { Ok(()) } else { Err(error) }
    }

    /// Opens the engine anew after a failed commit: whether the commit is in it, and then durable. Until that is
    /// known the store is tainted.
    fn settle(&self, number: u64, error: &LogError) -> Result<bool, LogError> {
        self.tainted.store(true, Ordering::Release);
        let is_committed = self.look_up(number, error)?;
        self.tainted.store(false, Ordering::Release);
        Ok(is_committed)
    }

    fn look_up(&self, number: u64, error: &LogError) -> Result<bool, LogError> {
        let uncertain = |again: LogError| LogError::Uncertain(format!("{error}; then: {again}"));
        self.engine.reopen().map_err(uncertain)?;
        let stored = stored_number(&self.engine, COMMIT_KEY).map_err(uncertain)?;
        if stored + 1 < number {
            return Err(missing(&self.home, stored));
        }
        if stored < number {
            return Ok(false);
        }
        // It was written whole, only the answer failed. What a failed sync left in the page cache may never reach
        // the disk, so the journal is not trusted with it.
        fail::fail_point!("log::settle::before_sync", |_| Err(uncertain(LogError::Storage(
            "injected".into()
        ))));
        // Without the promise of a sync it is as durable as any: a full disk need not leave it in doubt.
        if self.durability == Durability::Fsync {
            self.engine.flush().and_then(|()| self.engine.sync()).map_err(uncertain)?;
        }
        Ok(true)
    }

    /// Whether the engine is just as far as what is in memory.
    fn check_whole(&self) -> Result<(), LogError> {
        if !self.engine.is_open() {
            self.engine.reopen()?;
        }
        let stored = stored_number(&self.engine, COMMIT_KEY)?;
        match stored.checked_sub(self.last_commit()) {
            Some(0) => Ok(()),
            // The commit whose fate was uncertain went through: what is in memory does not know it.
            Some(_) => Err(LogError::Storage(
                "a commit of unknown fate went through: restart the process to go on from there".into(),
            )),
            None => Err(missing(&self.home, stored)),
        }
    }

    /// Notes durably how far the store goes: for a clean end.
    pub fn seal(&self) {
        let sealed = self.engine.sync().is_ok() && self.home.seal(self.last_commit()).is_ok();
        if !sealed {
            tracing::warn!("the log could not be closed cleanly: see the disk's health");
        }
    }
}

fn missing(home: &Home, found: u64) -> LogError {
    LogError::Corrupt(format!(
        "{} holds commits up to {found}, but {} were acknowledged: its journal is damaged; restore it from a backup, \
         or remove {} to go on without the lost records",
        home.dir().display(),
        home.acknowledged(),
        home.dir().join("acknowledged").display(),
    ))
}

/// A process that died while it made the store left files that the engine does not open, and nothing in them.
fn clear_unfinished(home: &Home) -> Result<(), LogError> {
    let dir = home.engine_dir();
    if dir.exists() && !dir.join("version").exists() {
        if home.acknowledged() > 0 || dir.join("keyspaces").join("1").exists() {
            return Err(LogError::Corrupt(format!(
                "{} is missing: restore the store from a backup",
                dir.join("version").display()
            )));
        }
        std::fs::remove_dir_all(&dir)
            .map_err(|error| LogError::Storage(format!("{}: {error}", dir.display())))?;
    }
    Ok(())
}

fn stored_number(engine: &Engine, key: &[u8]) -> Result<u64, LogError> {
    engine.meta(key)?.map_or(Ok(0), |bytes| catalog::number(&bytes))
}

fn load_topics(engine: &Engine) -> Result<BTreeMap<TopicName, Arc<Topic>>, LogError> {
    let mut spans = HashMap::new();
    for (key, value) in engine.meta_prefix(SPAN_PREFIX)? {
        spans.insert(catalog::number(&key[SPAN_PREFIX.len()..])?, Span::from_bytes(&value)?);
    }
    let mut topics = BTreeMap::new();
    for (key, value) in engine.meta_prefix(TOPIC_PREFIX)? {
        let name: TopicName = std::str::from_utf8(&key[TOPIC_PREFIX.len()..])
            .ok()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| LogError::Corrupt("a topic has a name that none can have".into()))?;
        let stored = StoredTopic::from_bytes(&value)?;
        let partitions: Result<Vec<_>, _> = stored
            .partitions
            .iter()
            .map(|id| load_partition(engine, *id, spans.get(id).copied().unwrap_or(Span::NEW)))
            .collect();
        let partitions = partitions.map_err(|error| match error {
            LogError::Corrupt(what) => LogError::Corrupt(format!("topic {name}: {what}")),
            other => other,
        })?;
        topics.insert(name.clone(), Arc::new(Topic::new(name, stored.id, stored.config(), partitions)));
    }
    Ok(topics)
}

fn load_partition(engine: &Engine, id: PartitionId, span: Span) -> Result<Partition, LogError> {
    let mut end = span.first;
    if let Some((base, chunk)) = engine.chunk_before(id, Offset::MAX)? {
        for frame in frames(&chunk, id, base) {
            let frame = frame.map_err(|error| {
                LogError::Corrupt(format!(
                    "the chunk at offset {base}: {error}; restore the store from a backup"
                ))
            })?;
            end = frame.header.next;
        }
    }
    if end != span.end {
        return Err(LogError::Corrupt(format!(
            "its records end at offset {end} instead of {}: restore the store from a backup",
            span.end
        )));
    }
    Ok(Partition::new(id, span))
}

fn load_committed(engine: &Engine, topics: &BTreeMap<TopicName, Arc<Topic>>) -> Result<Committed, LogError> {
    let mut committed = Committed::new();
    for (key, value) in engine.meta_prefix(OFFSET_PREFIX)? {
        let (group, topic, partition) = catalog::parse_offset_key(&key)?;
        if topics.contains_key(&topic) {
            let offset = catalog::number(&value)? as Offset;
            committed.entry(group).or_default().insert(TopicPartition { topic, partition }, offset);
        }
    }
    Ok(committed)
}
