//! Compiled modules on disk, so that a restarted node does not compile again.
//!
//! What lies here is machine code that the process will run, so a file is believed only when the directory and
//! the file belong to this user and nobody else may write them, and when the file's own checksum is right. The
//! name has the module's digest and what the code depends on: wasmtime's version and the engine's settings.
//! A file that is not believed is removed and made anew. Nothing here is ever taken from outside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};
use sha2::{Digest as _, Sha256};

use crate::core::digest::Digest;

/// First bytes of a file: the format and its version.
const MAGIC: &[u8; 16] = b"coproc-code v1\n\0";
const CHECKSUM: usize = 32;
const EXTENSION: &str = "code";

/// A private directory of compiled modules.
pub(super) struct CodeCache {
    dir: PathBuf,
    /// Hash over wasmtime's version and the engine's settings.
    compatibility: [u8; 32],
    max_bytes: u64,
    next_temporary: AtomicU64,
}

impl CodeCache {
    /// Opens the directory; makes it if it is not there.
    pub(super) fn open(dir: &Path, compatibility: [u8; 32], max_bytes: u64) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if !is_private(&fs::symlink_metadata(dir)?) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "the cache directory {} has to be a directory of this user that nobody else may write \
                     (chmod 700), because compiled code is run from there",
                    dir.display()
                ),
            ));
        }
        let cache = Self { dir: dir.to_owned(), compatibility, max_bytes, next_temporary: AtomicU64::new(0) };
        cache.remove_leftovers();
        Ok(cache)
    }

    /// The compiled code of a module, if it is there and to be believed.
    pub(super) fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.path(digest);
        match self.read(&path, digest) {
            Ok(code) => {
                touch(&path);
                Some(code)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "removed compiled code that cannot be used; the module is compiled again");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps the compiled code of a module. The file is complete or not there.
    pub(super) fn put(&self, digest: Digest, code: &[u8]) -> io::Result<()> {
        if code.len() as u64 > self.max_bytes {
            return Ok(());
        }
        self.make_room(code.len() as u64);
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".{}-{number}.tmp", std::process::id()));
        let written =
            self.write(&temporary, digest, code).and_then(|()| fs::rename(&temporary, self.path(digest)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes the compiled code of a module.
    pub(super) fn remove(&self, digest: Digest) {
        let _ = fs::remove_file(self.path(digest));
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let compatibility = hex::encode(&self.compatibility[..8]);
        self.dir.join(format!("{}-{compatibility}.{EXTENSION}", digest.hex()))
    }

    fn read(&self, path: &Path, digest: Digest) -> io::Result<Vec<u8>> {
        let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || !is_private(&metadata) {
            return Err(bad("it may be written by others"));
        }
        if metadata.len() > self.max_bytes + 4096 {
            return Err(bad("it is larger than the whole cache may be"));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes)?;
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin as it should"))?;
        let (checksum, code) = rest.split_at_checked(CHECKSUM).ok_or_else(|| bad("it is too short"))?;
        if checksum != self.checksum(digest, code) {
            return Err(bad("its checksum is wrong"));
        }
        let header = MAGIC.len() + CHECKSUM;
        bytes.drain(..header);
        Ok(bytes)
    }

    fn write(&self, path: &Path, digest: Digest, code: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(MAGIC)?;
        file.write_all(&self.checksum(digest, code))?;
        file.write_all(code)?;
        file.sync_all()
    }

    fn checksum(&self, digest: Digest, code: &[u8]) -> [u8; CHECKSUM] {
        let mut hash = Sha256::new();
        hash.update(MAGIC);
        hash.update(self.compatibility);
        hash.update(digest.as_bytes());
        hash.update(code);
        hash.finalize().into()
    }

    /// Removes the files that were used longest ago, until there is room.
    fn make_room(&self, wanted: u64) {
        let mut files = self.files();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        files.sort_by_key(|(used, ..)| *used);
        for (_, size, path) in files {
            if total + wanted <= self.max_bytes {
                return;
            }
            if fs::remove_file(path).is_ok() {
                total -= size;
            }
        }
    }

    fn files(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == EXTENSION))
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect()
    }

    /// Files of a process that died while writing. Another process may share the directory, so only files of
    /// processes that are gone are removed.
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp"))
            else {
                continue;
            };
            let pid = name
                .split('-')
                .next()
                .and_then(|pid| pid.parse().ok())
                .and_then(rustix::process::Pid::from_raw);
            let is_alive = pid
                .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
            if !is_alive || pid == Some(rustix::process::getpid()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_private(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o022 == 0
        && !metadata.is_symlink()
}

/// Marks a file as used now.
fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    // Only the order of removal depends on it.
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &Path) -> CodeCache {
        CodeCache::open(dir, [7; 32], 1000).unwrap()
    }

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    #[test]
    fn what_was_put_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/cache");
        open(&path).put(digest(1), b"code").unwrap();
        let cache = open(&path);
        assert_eq!(cache.get(digest(1)).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(digest(2)), None);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let other = CodeCache::open(&path, [8; 32], 1000).unwrap();
        assert_eq!(other.get(digest(1)), None, "code of another engine");
        cache.remove(digest(1));
        assert_eq!(cache.get(digest(1)), None);
    }

    #[test]
    fn a_damaged_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir.path().join("c"));
        let path = cache.path(digest(1));
        let damages: [fn(&mut Vec<u8>); 5] = [
            |bytes| bytes[60] ^= 1,
            |bytes| bytes[20] ^= 1,
            |bytes| bytes[0] ^= 1,
            |bytes| bytes.truncate(55),
            Vec::clear,
        ];
        for damage in damages {
            cache.put(digest(1), &[1; 100]).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(digest(1)), None);
            assert!(!path.exists());
        }
        // The code of one module under the name of another.
        cache.put(digest(1), b"code").unwrap();
        fs::rename(&path, cache.path(digest(2))).unwrap();
        assert_eq!(cache.get(digest(2)), None);
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let cache = open(&path);
        cache.put(digest(1), b"code").unwrap();
        fs::set_permissions(cache.path(digest(1)), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(cache.get(digest(1)), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(CodeCache::open(&path, [7; 32], 1000).is_err());
    }

    #[test]
    fn the_longest_unused_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir.path().join("c"));
        for (n, age) in [(1, 30), (2, 20), (3, 10)] {
            cache.put(digest(n), &[n; 250]).unwrap();
            let file = File::options().write(true).open(cache.path(digest(n))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 - age)).unwrap();
        }
        assert!(cache.get(digest(1)).is_some(), "and so it is the one used last");
        cache.put(digest(4), &[4; 250]).unwrap();
        let left: Vec<_> = (1..=4).filter(|n| cache.path(digest(*n)).exists()).collect();
        assert_eq!(left, [1, 3, 4]);
        cache.put(digest(5), &[5; 2000]).unwrap();
        assert!(!cache.path(digest(5)).exists(), "larger than the cache");
    }

    #[test]
    fn half_written_files_of_the_dead_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        open(&path);
        fs::write(path.join(".999999999-0.tmp"), b"half").unwrap();
        fs::write(path.join(".1-0.tmp"), b"half").unwrap();
        open(&path);
        assert!(!path.join(".999999999-0.tmp").exists());
        assert!(path.join(".1-0.tmp").exists(), "that process lives");
    }
}
