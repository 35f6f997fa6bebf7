//! A directory of blobs, each under its digest, shared by the threads of many processes.
//!
//! `blobs/<hex>` content, `evidence/<hex>.json` signatures of a manifest, `tmp/` files being written, `locks/` one
//! lock file per digest that is being fetched. A file gets its name after its bytes were checked and synced, is
//! checked again each time it is read, and is thrown away when it is not what its name says. The oldest files go
//! when the directory is over its limit; a use makes a file young.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timestamps, UTIME_NOW, UTIME_OMIT, flock, futimens};
use rustix::io::Errno;

use crate::core::digest::Digest;
use crate::oci::body::BodySink;
use crate::oci::digest_of;
use crate::oci::error::OciError;

const POLL: Duration = Duration::from_millis(20);

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    max_bytes: u64,
    next: AtomicU64,
}

/// Held while a digest is being fetched: nobody else fetches it.
pub(super) struct DigestLock {
    file: File,
    path: PathBuf,
}

impl Drop for DigestLock {
    /// Removes the file while the lock is held; whoever waits on it sees that and takes a new one.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// A file being written. Dropped without `commit`, it is gone.
pub(super) struct Partial<'a> {
    cache: &'a Cache,
    file: File,
    path: PathBuf,
    head: Vec<u8>,
    is_done: bool,
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Cache {
    /// Opens the cache below a directory, which need not be ours alone: the cache's own is.
    pub(super) fn open(dir: &Path, max_bytes: u64) -> Result<Self, OciError> {
        let cache = Self { root: dir.join("oci-v1"), max_bytes, next: AtomicU64::new(0) };
        for part in ["", "blobs", "evidence", "tmp", "locks"] {
            make_private(&cache.root.join(part))?;
        }
        cache.remove_leftovers()?;
        Ok(cache)
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    fn evidence_path(&self, digest: Digest) -> PathBuf {
        self.root.join("evidence").join(format!("{}.json", digest.hex()))
    }

    /// The bytes of a digest, if they are here and right. What is not right is thrown away.
    pub(super) fn get(&self, digest: Digest, limit: u64) -> Result<Option<Vec<u8>>, OciError> {
        let path = self.blob_path(digest);
        let Some(bytes) = read(&path, limit)? else { return Ok(None) };
        if digest_of(&bytes) == digest {
            return Ok(Some(bytes));
        }
        tracing::warn!(?path, "a cached file was changed: it is thrown away and fetched again");
        fs::remove_file(&path).or_else(ignore_missing).map_err(|error| fault(&path, &error))?;
        Ok(None)
    }

    /// Keeps bytes under their digest.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<(), OciError> {
        let path = self.blob_path(digest_of(bytes));
        if path.exists() {
            return Ok(());
        }
        self.write_whole(&path, bytes)
    }

    /// What was kept about a manifest's signatures. It is checked by whoever uses it, not here.
    pub(super) fn evidence(&self, manifest: Digest, limit: u64) -> Result<Option<Vec<u8>>, OciError> {
        read(&self.evidence_path(manifest), limit)
    }

    /// Keeps a manifest's signatures.
    pub(super) fn put_evidence(&self, manifest: Digest, bytes: &[u8]) -> Result<(), OciError> {
        self.write_whole(&self.evidence_path(manifest), bytes)
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), OciError> {
        let mut partial = self.begin()?;
        partial.write(bytes)?;
        partial.name(path)
    }

    /// A new file to write to.
    pub(super) fn begin(&self) -> Result<Partial<'_>, OciError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("tmp").join(format!("{}-{number}-{:p}", std::process::id(), self));
        let at = |error: io::Error| fault(&path, &error);
        // Shared with other writers, exclusive of whoever removes leftovers: between create and lock the file
        // looks like one.
        let cleaning = self.directory_lock(FlockOperation::LockShared)?;
        let file = private().create_new(true).open(&path).map_err(at)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| at(error.into()))?;
        drop(cleaning);
        Ok(Partial { cache: self, file, path, head: Vec::new(), is_done: false })
    }

    fn directory_lock(&self, how: FlockOperation) -> Result<File, OciError> {
        let path = self.root.join("lock");
        let file =
            private().create(true).truncate(false).open(&path).map_err(|error| fault(&path, &error))?;
        flock(&file, how).map_err(|error| fault(&path, &error.into()))?;
        Ok(file)
    }

    /// Waits until nobody else fetches the digest, at most so long.
    pub(super) fn lock(&self, digest: Digest, wait: Duration) -> Result<DigestLock, OciError> {
        let path = self.root.join("locks").join(digest.hex());
        let until = Instant::now() + wait;
        loop {
            let at = |error: io::Error| fault(&path, &error);
            let file = private().create(true).truncate(false).open(&path).map_err(at)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if file.metadata().map_err(at)?.nlink() > 0 => return Ok(DigestLock { file, path }),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(POLL),
                Err(Errno::WOULDBLOCK) => {
                    let reason = format!("another process has been fetching {digest} for {wait:?}");
                    return Err(OciError::UseCache { path, reason });
                }
                Err(error) => return Err(at(error.into())),
            }
        }
    }

    /// Removes what processes that ended in the middle left behind: files that nobody holds.
    fn remove_leftovers(&self) -> Result<(), OciError> {
        let _alone = self.directory_lock(FlockOperation::LockExclusive)?;
        for part in ["tmp", "locks"] {
            for (path, _) in entries(&self.root.join(part))? {
                if let Ok(file) = File::open(&path)
                    && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(())
    }

    /// Removes the files that were not used for longest, until the rest is within the limit. Never `keep`.
    fn evict(&self, keep: &Path) -> Result<(), OciError> {
        let mut files = entries(&self.root.join("blobs"))?;
        files.extend(entries(&self.root.join("evidence"))?);
        let mut total: u64 = files.iter().map(|(_, found)| found.len()).sum();
        if total <= self.max_bytes {
            return Ok(());
        }
        let _alone = self.directory_lock(FlockOperation::LockExclusive)?;
        files.sort_by_key(|(_, found)| found.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        for (path, found) in files {
            if total <= self.max_bytes {
                break;
            }
            if path != keep && fs::remove_file(&path).is_ok() {
                total -= found.len();
                tracing::debug!(?path, "removed from the module cache, which is full");
            }
        }
        Ok(())
    }
}

impl Partial<'_> {
    /// The first bytes.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Gives the file its name. The caller has checked that its bytes have this digest.
    pub(super) fn commit(self, digest: Digest) -> Result<(), OciError> {
        let path = self.cache.blob_path(digest);
        self.name(&path)
    }

    fn name(mut self, path: &Path) -> Result<(), OciError> {
        let at = |error: io::Error| fault(path, &error);
        self.file.sync_all().map_err(at)?;
        fs::rename(&self.path, path).map_err(at)?;
        self.is_done = true;
        let parent = path.parent().unwrap_or(path);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(at)?;
        self.cache.evict(path)
    }
}

impl BodySink for Partial<'_> {
    fn restart(&mut self) -> Result<(), OciError> {
        let at = |error: io::Error| fault(&self.path, &error);
        self.head.clear();
        self.file.set_len(0).map_err(at)?;
        io::Seek::rewind(&mut self.file).map_err(at)
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), OciError> {
        let missing = 16usize.saturating_sub(self.head.len());
        self.head.extend_from_slice(&piece[..missing.min(piece.len())]);
        self.file.write_all(piece).map_err(|error| fault(&self.path, &error))
    }
}

fn make_private(path: &Path) -> Result<(), OciError> {
    let at = |error: io::Error| fault(path, &error);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at)?;
    let found = fs::symlink_metadata(path).map_err(at)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        let reason = "it belongs to another user, or is no directory: name another one".to_owned();
        return Err(OciError::UseCache { path: path.to_owned(), reason });
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(at)?;
    }
    Ok(())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn fault(path: &Path, error: &io::Error) -> OciError {
    OciError::UseCache { path: path.to_owned(), reason: error.to_string() }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Reads a file up to a limit, and makes it young. A longer one was not written here: it counts as changed.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, OciError> {
    let options = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    let file = match options {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(path, &error)),
    };
    let mut bytes = Vec::new();
    (&file).take(limit + 1).read_to_end(&mut bytes).map_err(|error| fault(path, &error))?;
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    // On a read-only file system nothing is evicted either.
    let _ = futimens(&file, &Timestamps { last_access: omit, last_modification: now });
    Ok(Some(bytes))
}

fn entries(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, OciError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| fault(dir, &error))? {
        let entry = entry.map_err(|error| fault(dir, &error))?;
        // Another process may have removed it meanwhile.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            found.push((entry.path(), metadata));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(max_bytes: u64) -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), max_bytes).unwrap();
        (dir, cache)
    }

    #[test]
    fn what_is_put_is_got_and_private() {
        let (_dir, cache) = cache(1_000);
        let digest = digest_of(b"abc");
        assert_eq!(cache.get(digest, 10).unwrap(), None);
        cache.put(b"abc").unwrap();
        assert_eq!(cache.get(digest, 10).unwrap().as_deref(), Some(&b"abc"[..]));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&cache.root), mode(&cache.blob_path(digest))), (0o700, 0o600));
    }

    #[test]
    fn changed_files_are_thrown_away() {
        let (dir, cache) = cache(1_000);
        let digest = digest_of(b"abc");
        for wrong in [&b"abd"[..], b"", &[b'a'; 100]] {
            cache.put(b"abc").unwrap();
            fs::write(cache.blob_path(digest), wrong).unwrap();
            assert_eq!(cache.get(digest, 10).unwrap(), None);
            assert!(!cache.blob_path(digest).exists());
        }
        let outside = dir.path().join("outside");
        fs::write(&outside, "abc").unwrap();
        std::os::unix::fs::symlink(&outside, cache.blob_path(digest)).unwrap();
        assert!(cache.get(digest, 10).is_err(), "links are not followed");
    }

    #[test]
    fn the_oldest_files_go_first() {
        let (_dir, cache) = cache(10);
        let age = |bytes: &[u8], seconds: i64| {
            let file = File::options().write(true).open(cache.blob_path(digest_of(bytes))).unwrap();
            let then = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            futimens(&file, &Timestamps { last_access: then, last_modification: then }).unwrap();
        };
        cache.put(b"1111").unwrap();
        cache.put(b"2222").unwrap();
        age(b"1111", 1_000);
        age(b"2222", 2_000);
        assert!(cache.get(digest_of(b"1111"), 10).unwrap().is_some(), "used: young again");
        cache.put(b"3333").unwrap();
        assert!(cache.get(digest_of(b"1111"), 10).unwrap().is_some());
        assert!(cache.get(digest_of(b"2222"), 10).unwrap().is_none());
        cache.put(&[b'4'; 50]).unwrap();
        assert!(
            cache.get(digest_of(&[b'4'; 50]), 100).unwrap().is_some(),
            "larger than the cache, and still kept"
        );
    }

    #[test]
    fn leftovers_go_and_files_in_use_stay() {
        let (dir, cache) = cache(1_000);
        let left = cache.root.join("tmp/1-1");
        fs::write(&left, "half").unwrap();
        let mut partial = cache.begin().unwrap();
        partial.write(b"half").unwrap();
        Cache::open(dir.path(), 1_000).unwrap();
        assert!(!left.exists());
        assert!(partial.path.exists());
        let path = partial.path.clone();
        drop(partial);
        assert!(!path.exists());
    }

    #[test]
    fn a_digest_is_locked_by_one() {
        let (_dir, cache) = cache(1_000);
        let digest = digest_of(b"abc");
        let lock = cache.lock(digest, Duration::ZERO).unwrap();
        assert!(cache.lock(digest, Duration::from_millis(50)).is_err());
        drop(lock);
        drop(cache.lock(digest, Duration::ZERO).unwrap());
        assert!(entries(&cache.root.join("locks")).unwrap().is_empty());
    }
}
