//! The storage engine, fjall, behind the few operations that the log needs. The only file that knows it.
//!
//! The engine poisons itself when a write fails and cuts a damaged journal silently; both are handled here and in
//! `writer`: a poisoned engine is opened anew, and every commit carries a number that is compared with the number
//! that callers were told (`home`).

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Slice,
};
use parking_lot::{RwLock, RwLockReadGuard};

use crate::core::record::Offset;
use crate::log::frame::PartitionId;
use crate::log::{Durability, Options};
use crate::ports::LogError;

/// Values at least this long lie in files of their own, which compaction of the tree does not rewrite.
const SEPARATE_BYTES: u32 = 512;
/// Memory for records that are in the journal and not yet in a table. The engine would leave it to its workers to
/// close a memtable, which then grows as long as they are busy: we do it.
const MEMTABLE_BYTES: u64 = 8 << 20;
const NEVER_BYTES: u64 = 256 << 20;
/// The engine stalls for ever when its workers died with 4 memtables unwritten: we wait before, and look. One more
/// may be closed by us and one by the engine in a single commit.
const MAX_SEALED: usize = 2;
const MAX_LEVEL0: usize = 20;

/// A part of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Topics, offsets, the number of the last commit.
    Meta,
    /// Chunks of records.
    Records,
}

/// One change of a batch.
#[derive(Debug)]
pub enum Write {
    /// Sets a key.
    Put(Space, Vec<u8>, Vec<u8>),
    /// Removes a key.
    Remove(Space, Vec<u8>),
}

/// The key of the chunk that begins at `base`.
pub fn chunk_key(partition: PartitionId, base: Offset) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&partition.to_be_bytes());
    key[8..].copy_from_slice(&base.to_be_bytes());
    key
}

fn base_of(key: &[u8]) -> Result<Offset, LogError> {
    let base = key.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(Offset::from_be_bytes);
    base.ok_or_else(|| LogError::Corrupt("a chunk has a key of the wrong length".into()))
}

struct Handle {
    database: Database,
    meta: Keyspace,
    records: Keyspace,
}

/// The engine of one store.
pub struct Engine {
    dir: PathBuf,
    cache_bytes: u64,
    persist: PersistMode,
    /// Bytes of records since the last memtable was closed.
    unwritten: AtomicU64,
    handle: RwLock<Option<Handle>>,
    /// Space is being given back, which can take minutes and cannot be stopped. It has the files open as long.
    reclaiming: AtomicBool,
    /// The handle is one that failed, and stays for reading until the engine can be opened anew.
    stale: AtomicBool,
}

impl Engine {
    /// Opens the engine's files, which are made where there are none.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, LogError> {
        let persist = match options.durability {
            Durability::Fsync => PersistMode::SyncData,
            Durability::Flush => PersistMode::Buffer,
        };
        let handle = open(dir, options.cache_bytes)?;
        // What the journal brought back is in memory too.
        let unwritten = AtomicU64::new(handle.database.write_buffer_size());
        let handle = RwLock::new(Some(handle));
        Ok(Self {
            dir: dir.to_owned(),
            cache_bytes: options.cache_bytes,
            persist,
            unwritten,
            handle,
            reclaiming: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        })
    }

    /// Drops the engine with whatever it had half done, and opens it again. Refused while space is given back.
    pub fn reopen(&self) -> Result<(), LogError> {
        let mut handle = self.handle.write();
        self.stale.store(true, Ordering::Release);
        if self.reclaiming.load(Ordering::Acquire) {
            return Err(LogError::Storage(
                "the space of removed records is being given back: the log goes on after that".into(),
            ));
        }
        drop(handle.take());
        let opened = open(&self.dir, self.cache_bytes)?;
        self.unwritten.store(opened.database.write_buffer_size(), Ordering::Relaxed);
        *handle = Some(opened);
        self.stale.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether the engine is there; not, when opening it anew failed.
    pub fn is_open(&self) -> bool {
        self.handle.read().is_some() && !self.stale.load(Ordering::Acquire)
    }

    /// Applies all of the changes, or none; as durable as the options say when this returns.
    pub fn commit(&self, writes: &[Write]) -> Result<(), LogError> {
        self.with(|handle| {
            handle.wait_for_room()?;
            let mut batch = handle.database.batch().durability(None);
            for write in writes {
                match write {
                    Write::Put(space, key, value) => {
                        batch.insert(handle.space(*space), key.as_slice(), value.as_slice());
                    }
                    Write::Remove(space, key) => batch.remove(handle.space(*space), key.as_slice()),
                }
            }
            batch.commit().map_err(|error| failed(&error))?;
            fail::fail_point!("log::commit::after_write_before_sync", |_| Err(LogError::Storage(
                "a failure was injected before the sync".into()
            )));
            handle.database.persist(self.persist).map_err(|error| failed(&error))
        })?;
        self.close_memtable(writes);
        Ok(())
    }

    fn close_memtable(&self, writes: &[Write]) {
        let size = |write: &Write| match write {
            Write::Put(_, key, value) => (key.len() + value.len()) as u64,
            Write::Remove(_, key) => key.len() as u64,
        };
        let new: u64 = writes.iter().map(size).sum();
        if self.unwritten.fetch_add(new, Ordering::Relaxed) + new < MEMTABLE_BYTES {
            return;
        }
        self.unwritten.store(0, Ordering::Relaxed);
        let closed = self.with(|handle| {
            handle.records.rotate_memtable().map_err(|error| failed(&error))?;
            handle.meta.rotate_memtable().map_err(|error| failed(&error))
        });
        // The commit is done; what keeps the memtable from being closed makes the next one fail.
        if let Err(error) = closed {
            tracing::warn!(%error, "a memtable of the log could not be closed");
        }
    }

    /// Writes what is only in the journal to tables.
    pub fn flush(&self) -> Result<(), LogError> {
        self.with(|handle| {
            handle.write_tables(&handle.records)?;
            handle.write_tables(&handle.meta)
        })
    }

    /// Gives back the space of removed chunks. Nothing waits for it: not commits, not reads, not the engine's end.
    pub fn reclaim(&self) -> Result<(), LogError> {
        // Under the lock, so that it does not begin in the middle of a `reopen`.
        let records = self.with(|handle| {
            handle.write_tables(&handle.records)?;
            self.reclaiming.store(true, Ordering::Release);
            Ok(handle.records.clone())
        })?;
        let done = guarded(|| {
            fail::fail_point!("log::reclaim");
            records.major_compact().map_err(|error| failed(&error))
        });
        // Before the flag: whoever sees it may open the files.
        drop(records);
        self.reclaiming.store(false, Ordering::Release);
        done
    }

    /// Whether space is being given back.
    pub fn is_reclaiming(&self) -> bool {
        self.reclaiming.load(Ordering::Acquire)
    }

    /// Makes all that was committed durable, whatever the options say.
    pub fn sync(&self) -> Result<(), LogError> {
        self.with(|handle| handle.database.persist(PersistMode::SyncAll).map_err(|error| failed(&error)))
    }

    /// A value of the meta space.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Slice>, LogError> {
        self.with(|handle| handle.meta.get(key).map_err(|error| failed(&error)))
    }

    /// All keys and values of the meta space that begin with `prefix`.
    pub fn meta_prefix(&self, prefix: &[u8]) -> Result<Vec<(Slice, Slice)>, LogError> {
        self.with(|handle| {
            let entries = handle.meta.prefix(prefix);
            entries.map(|entry| entry.into_inner().map_err(|error| failed(&error))).collect()
        })
    }

    /// The chunk that begins at `base`.
    pub fn chunk(&self, partition: PartitionId, base: Offset) -> Result<Option<Slice>, LogError> {
        self.with(|handle| handle.records.get(chunk_key(partition, base)).map_err(|error| failed(&error)))
    }

    /// The last chunk that begins at or before `offset`.
    pub fn chunk_before(
        &self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Option<(Offset, Slice)>, LogError> {
        let range = chunk_key(partition, 0)..=chunk_key(partition, offset);
        self.with(|handle| handle.records.range(range).next_back().map(entry).transpose())
    }

    /// The first chunk that begins at or after `offset`.
    pub fn chunk_after(
        &self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Option<(Offset, Slice)>, LogError> {
        let range = chunk_key(partition, offset)..=chunk_key(partition, Offset::MAX);
        self.with(|handle| handle.records.range(range).next().map(entry).transpose())
    }

    /// Where the chunks from `offset` on begin, with their sizes in bytes; at most `limit`.
    pub fn chunk_sizes(
        &self,
        partition: PartitionId,
        offset: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, u64)>, LogError> {
        let range = || chunk_key(partition, offset)..=chunk_key(partition, Offset::MAX);
        self.with(|handle| {
            // A guard gives either the key or the size: two walks over the same snapshot-free range would race with
            // the writer, so the walk is over keys and each size is asked for.
            let bases: Result<Vec<_>, LogError> = handle
                .records
                .range(range())
                .take(limit)
                .map(|guard| guard.key().map_err(|error| failed(&error)).and_then(|key| base_of(&key)))
                .collect();
            let size = |base| {
                let size = handle.records.size_of(chunk_key(partition, base));
                size.map(|size| (base, size.map_or(0, u64::from))).map_err(|error| failed(&error))
            };
            bases?.into_iter().map(size).collect()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Handle) -> Result<T, LogError>) -> Result<T, LogError> {
        let handle = self.handle.read();
        let handle = RwLockReadGuard::try_map(handle, Option::as_ref).map_err(|_| {
            LogError::Storage(format!(
                "{} could not be opened again after a failed write: see that the disk has room",
                self.dir.display()
            ))
        })?;
        guarded(|| work(&handle))
    }
}

impl Handle {
    fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Meta => &self.meta,
            Space::Records => &self.records,
        }
    }

    fn wait_for_room(&self) -> Result<(), LogError> {
        let is_full = |space: &Keyspace| {
            space.sealed_memtable_count() >= MAX_SEALED || space.l0_table_count() >= MAX_LEVEL0
        };
        while is_full(&self.records) || is_full(&self.meta) {
            self.wait_a_little()?;
        }
        Ok(())
    }

    /// The engine's own way to do this waits for workers that may have died.
    fn write_tables(&self, space: &Keyspace) -> Result<(), LogError> {
        space.rotate_memtable().map_err(|error| failed(&error))?;
        while space.sealed_memtable_count() > 0 {
            self.wait_a_little()?;
        }
        Ok(())
    }

    /// Waits for the workers; an error when they died.
    fn wait_a_little(&self) -> Result<(), LogError> {
        self.database.persist(PersistMode::Buffer).map_err(|error| failed(&error))?;
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }
}

fn entry(guard: fjall::Guard) -> Result<(Offset, Slice), LogError> {
    let (key, value) = guard.into_inner().map_err(|error| failed(&error))?;
    Ok((base_of(&key)?, value))
}

fn open(dir: &Path, cache_bytes: u64) -> Result<Handle, LogError> {
    guarded(|| {
        let database = Database::builder(dir)
            .cache_size(cache_bytes)
            .worker_threads(2)
            .journal_compression(CompressionType::None)
            .max_journaling_size(64 << 20)
            .max_cached_files(Some(128))
            .open()
            .map_err(|error| failed(&error))?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(NEVER_BYTES);
        let separated = || {
            let separation = KvSeparationOptions::default()
                .separation_threshold(SEPARATE_BYTES)
                .compression(CompressionType::None);
            options().with_kv_separation(Some(separation))
        };
        let meta = database.keyspace("meta", options).map_err(|error| failed(&error))?;
        let records = database.keyspace("records", separated).map_err(|error| failed(&error))?;
        Ok(Handle { database, meta, records })
    })
}

/// Runs `work`; where the engine panics, which it does at some damaged files, that is an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(LogError::Corrupt(
            "the engine met something impossible in its files: restore from a backup".into(),
        ))
    })
}

fn failed(error: &fjall::Error) -> LogError {
    use fjall::{Error, LsmError};
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => io_failed(error),
        Error::Poisoned => {
            LogError::Storage("an earlier write failed: free some space, or see the disk's health".into())
        }
        Error::Locked => LogError::Locked("another process has the store open".into()),
        Error::InvalidVersion(version) => LogError::BadConfig(format!(
            "the store's files are of engine version {version:?}: use the version of coproc that wrote them"
        )),
        other => LogError::Corrupt(format!("{other:?}: restore the store from a backup")),
    }
}

fn io_failed(error: &std::io::Error) -> LogError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            LogError::Storage(format!("{error}: free some space, or give the store a larger disk"))
        }
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::NotFound => LogError::Corrupt(
            format!("a file of the store is cut off or missing ({error}): restore from a backup"),
        ),
        _ => LogError::Storage(format!("{error}: see the disk's health")),
    }
}
