//! The directory of a store: who has it, which format it is in, and how far it is acknowledged.
//!
//! `lock` carries an advisory lock and the holder's pid. `format` names the layout. `acknowledged` holds the
//! number of the last commit that a caller was told of: the engine cuts a damaged journal at the damage as if the
//! rest had never been written, and this number is how that is noticed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::ports::LogError;

const FORMAT: &str = "coproc-log 1\n";

/// A directory that this process has to itself, until dropped.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    lock: File,
    acknowledged: File,
}

impl Home {
    /// Takes the directory, which is made where there is none.
    pub fn take(dir: &Path) -> Result<Self, LogError> {
        std::fs::create_dir_all(dir).map_err(|error| unusable(dir, &error))?;
        let lock = lock(dir)?;
        check_format(dir)?;
        let acknowledged = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(dir.join("acknowledged"))
            .map_err(|error| unusable(dir, &error))?;
        Ok(Self { dir: dir.to_owned(), lock, acknowledged })
    }

    /// Whether there is a store in the directory, as far as can be seen without taking it. What cannot be looked at
    /// counts as one: taking it says why.
    pub fn is_store(dir: &Path) -> bool {
        dir.join("format").try_exists().unwrap_or(true)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the engine keeps its files.
    pub fn engine_dir(&self) -> PathBuf {
        self.dir.join("engine")
    }

    /// The last commit that a caller was told of; 0 when there was none, or when the number was torn by a
    /// power cut.
    pub fn acknowledged(&self) -> u64 {
        let mut bytes = [0; 16];
        match self.acknowledged.read_exact_at(&mut bytes, 0) {
            Ok(()) => {
                let (number, hash) = bytes.split_at(8);
                let is_whole = xxh3_64(number).to_le_bytes() == hash;
                if is_whole { number.try_into().map_or(0, u64::from_le_bytes) } else { 0 }
            }
            Err(_) => 0,
        }
    }

    /// Notes that callers are told of this commit, which is on the disk. The note is not synced: after a power cut an
    /// older number is there, which is true too.
    pub fn acknowledge(&self, commit: u64) -> std::io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&commit.to_le_bytes());
        let hash = xxh3_64(&bytes[..8]).to_le_bytes();
        bytes[8..].copy_from_slice(&hash);
        self.acknowledged.write_all_at(&bytes, 0)
    }

    /// As `acknowledge`, and on the disk when this returns: for a clean end.
    pub fn seal(&self, commit: u64) -> std::io::Result<()> {
        self.acknowledge(commit)?;
        self.acknowledged.sync_data()
    }
}

impl Drop for Home {
    /// By name, not by closing the file: a child that this process is just starting has the file open too, until it becomes
    /// its own program.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(dir = %self.dir.display(), %error, "the lock goes with the file");
        }
    }
}

fn lock(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unusable(dir, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let who =
                if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
            return Err(LogError::Locked(format!(
                "{who} has the log at {} open: stop it, or reach it over its socket",
                dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path, &error)),
    }
    let noted = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    // The pid is a courtesy: a full disk must not keep anybody from reading.
    if let Err(error) = noted {
        tracing::debug!(path = %path.display(), %error, "could not note the pid in the lock file");
    }
    Ok(file)
}

fn check_format(dir: &Path) -> Result<(), LogError> {
    let path = dir.join("format");
    match std::fs::read_to_string(&path) {
        Ok(text) if text == FORMAT => Ok(()),
        Ok(text) if text.starts_with("coproc-log ") => Err(LogError::BadConfig(format!(
            "{} is in the format {:?}, this version reads {:?}: use the version of coproc that wrote it",
            dir.display(),
            text.trim(),
            FORMAT.trim()
        ))),
        Ok(_) => Err(LogError::Corrupt(format!(
            "{} does not name a format: restore it from a backup",
            path.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if dir.join("engine").exists() {
                return Err(LogError::Corrupt(format!(
                    "{} is missing beside the store's files: restore it from a backup",
                    path.display()
                )));
            }
            let write = || {
                let unfinished = dir.join("format.new");
                let mut file = File::create(&unfinished)?;
                file.write_all(FORMAT.as_bytes())?;
                file.sync_all()?;
                std::fs::rename(&unfinished, &path)?;
                File::open(dir)?.sync_all()
            };
            write().map_err(|error| unusable(&path, &error))
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(LogError::Corrupt(format!(
            "{} does not name a format: restore it from a backup",
            path.display()
        ))),
        Err(error) => Err(unusable(&path, &error)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> LogError {
    let shown = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            return LogError::BadConfig(format!(
                "{shown} cannot be written by this user ({error}): give the directory to the user that runs coproc, or \
                 choose another one"
            ));
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            return LogError::BadConfig(format!("{shown} is not a directory ({error}): choose another one"));
        }
        _ => {}
    }
    LogError::Storage(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::take(dir.path()).unwrap();
        let error = Home::take(dir.path()).unwrap_err();
        assert!(matches!(&error, LogError::Locked(_)), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(home);
        Home::take(dir.path()).unwrap();
    }

    #[test]
    fn a_child_that_is_being_started_does_not_keep_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::take(dir.path()).unwrap();
        // What a fork does with it.
        let inherited = home.lock.try_clone().unwrap();
        drop(home);
        Home::take(dir.path()).unwrap();
        drop(inherited);
    }

    #[test]
    fn an_unknown_format_is_refused() {
        for (text, says) in [("coproc-log 2\n", "use the version"), ("hello", "backup"), ("", "backup")] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("format"), text).unwrap();
            let error = Home::take(dir.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_acknowledged_number_survives_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::take(dir.path()).unwrap();
        assert_eq!(home.acknowledged(), 0);
        home.seal(7).unwrap();
        drop(home);
        let home = Home::take(dir.path()).unwrap();
        assert_eq!(home.acknowledged(), 7);
        home.acknowledged.write_all_at(&[9], 3).unwrap();
        assert_eq!(home.acknowledged(), 0);
    }
}
