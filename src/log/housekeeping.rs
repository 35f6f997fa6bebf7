//! Retention, compaction, and the removal of what was deleted, in the background.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};

use crate::core::record::Offset;
use crate::log::catalog::{Partition, Span, TRASH_PREFIX, Topic, number, trash_key};
use crate::log::compaction;
use crate::log::cursor::milestone;
use crate::log::engine::{Space, Write, chunk_key};
use crate::log::frame::PartitionId;
use crate::log::request::Effect;
use crate::log::store::Store;
use crate::log::writer::span_write;
use crate::ports::{Cleanup, LogError};

/// Most chunks that are removed in one commit.
const CHUNKS_AT_ONCE: usize = 1_000;
/// Bytes of removed records at which their space is taken back.
const RECLAIM_BYTES: u64 = 64 << 20;

/// The thread that runs it.
pub struct Housekeeper {
    running: Option<(Sender<()>, JoinHandle<()>, Arc<Store>)>,
}

impl Housekeeper {
    /// None at all.
    pub fn none() -> Self {
        Self { running: None }
    }

    /// Runs every `interval`.
    pub fn start(store: Arc<Store>, interval: Option<Duration>) -> Result<Self, LogError> {
        let Some(interval) = interval else { return Ok(Self::none()) };
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let kept = store.clone();
        let thread = std::thread::Builder::new()
            .name("log-keeper".into())
            .spawn(move || {
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = run(&store, false) {
                        tracing::warn!(%error, "housekeeping of the log failed: it is tried again");
                    }
                }
            })
            .map_err(|error| LogError::Storage(format!("start the housekeeper's thread: {error}")))?;
        Ok(Self { running: Some((stop, thread, kept)) })
    }

    /// Ends it, after what it is at; giving space back is not waited for, because it can take minutes. That goes on
    /// until the process ends, which harms nothing.
    pub fn stop(&mut self) {
        let Some((stop, thread, store)) = self.running.take() else { return };
        drop(stop);
        while !thread.is_finished() {
            if store.engine.is_reclaiming() {
                tracing::info!("the log is closed while it gives space back");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

/// Runs everything once. Without `now`, compaction is left until it is worth it.
pub fn run(store: &Store, now: bool) -> Result<(), LogError> {
    let mut removed = store.housekeeping.lock();
    let topics: Vec<_> = store.topics.read().values().cloned().collect();
    *removed += remove_trash(store)?;
    for topic in topics {
        for partition in 0..topic.partitions.len() as u32 {
            let done = keep(store, &topic, partition, now);
            match done {
                Ok(bytes) => *removed += bytes,
                // Deleted meanwhile.
                Err(LogError::UnknownTopic(_)) => break,
                Err(error) => return Err(error),
            }
        }
    }
    if *removed >= RECLAIM_BYTES {
        *removed = 0;
        store.engine.reclaim()?;
    }
    Ok(())
}

fn keep(store: &Store, topic: &Arc<Topic>, partition: u32, now: bool) -> Result<u64, LogError> {
    let mut removed = 0;
    if matches!(topic.config.cleanup, Cleanup::Delete | Cleanup::CompactAndDelete) {
        removed += retain(store, topic, partition)?;
    }
    if topic.is_compacted() {
        removed += compaction::run(store, topic, partition, now)?;
    }
    Ok(removed)
}

/// Removes what is too old or too much: whole chunks from the front.
fn retain(store: &Store, topic: &Arc<Topic>, number: u32) -> Result<u64, LogError> {
    let config = &topic.config;
    let partition = topic.partition(number)?;
    let most = config.retention_bytes.unwrap_or(u64::MAX);
    let mut total = match config.retention_bytes {
        Some(_) => count(store, partition)?,
        None => 0,
    };
    let too_old = config.retention_ms.map(|ms| store.now_ms().saturating_sub_unsigned(ms));
    let mut removed = 0;
    loop {
        let end = partition.extent().end;
        let mut gone = Vec::new();
        let mut first = 0;
        for (base, size) in store.engine.chunk_sizes(partition.id, 0, CHUNKS_AT_ONCE)? {
            // Chunks that were committed since are not old, and not looked at.
            if base >= end {
                break;
            }
            let chunk = milestone(&store.engine, topic, number, base)?;
            let is_too_much = total > most && total - size >= most;
            if !is_too_much && too_old.is_none_or(|before| chunk.append_ms >= before) {
                break;
            }
            total = total.saturating_sub(size);
            removed += size;
            first = chunk.next;
            gone.push(base);
        }
        let is_last = gone.len() < CHUNKS_AT_ONCE;
        if !gone.is_empty() {
            remove(store, topic, number, gone, first)?;
        }
        if is_last {
            break;
        }
    }
    if let Some((_, counted)) = &mut partition.cleaned.lock().counted {
        *counted = total;
    }
    Ok(removed)
}

/// Bytes of all chunks: only those that came since the last time are looked at.
fn count(store: &Store, partition: &Partition) -> Result<u64, LogError> {
    let (from, before) = partition.cleaned.lock().counted.unwrap_or_default();
    let end = partition.extent().end;
    let sizes = store.engine.chunk_sizes(partition.id, from, usize::MAX)?;
    let new: u64 = sizes.iter().filter(|(base, _)| *base < end).map(|(_, size)| size).sum();
    partition.cleaned.lock().counted = Some((end, before + new));
    Ok(before + new)
}

fn remove(
    store: &Store,
    topic: &Arc<Topic>,
    number: u32,
    gone: Vec<Offset>,
    first: Offset,
) -> Result<(), LogError> {
    let topic = topic.clone();
    store.edit(gone.len() * 32, move |_| {
        if topic.is_deleted() {
            return Err(LogError::UnknownTopic(topic.name.clone()));
        }
        let partition = topic.partition(number)?;
        // Before the chunks go: a reader is told that they are gone, not that the store is damaged. Should the commit
        // fail, they are back after a restart.
        partition.cut(first);
        let span = Span { first, end: partition.extent().end, max_timestamp: partition.max_timestamp() };
        let mut writes = removals(partition.id, &gone);
        writes.push(span_write(partition.id, span));
        Ok((writes, Box::new(|_: &Store| {}) as Effect))
    })
}

fn removals(id: PartitionId, bases: &[Offset]) -> Vec<Write> {
    bases.iter().map(|base| Write::Remove(Space::Records, chunk_key(id, *base).to_vec())).collect()
}

/// Removes the chunks of deleted topics.
fn remove_trash(store: &Store) -> Result<u64, LogError> {
    let mut removed = 0;
    for (key, _) in store.engine.meta_prefix(TRASH_PREFIX)? {
        let id = number(&key[TRASH_PREFIX.len()..])?;
        loop {
            let sizes = store.engine.chunk_sizes(id, 0, CHUNKS_AT_ONCE)?;
            removed += sizes.iter().map(|(_, size)| size).sum::<u64>();
            let bases: Vec<_> = sizes.iter().map(|(base, _)| *base).collect();
            let is_last = bases.len() < CHUNKS_AT_ONCE;
            store.edit(bases.len() * 32, move |_| {
                let mut writes = removals(id, &bases);
                if is_last {
                    writes.push(Write::Remove(Space::Meta, trash_key(id)));
                }
                Ok((writes, Box::new(|_: &Store| {}) as Effect))
            })?;
            if is_last {
                break;
            }
        }
    }
    Ok(removed)
}
