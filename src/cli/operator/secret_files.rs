//! Secrets of pools as files, for clients that take nothing else. The directory should be in memory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A directory that nobody else may look into. A file is named by what is in it, so that nothing is written twice
/// and a client that has a path keeps it. A new process starts with an empty one.
#[derive(Debug)]
pub struct SecretFiles {
    directory: PathBuf,
}

impl SecretFiles {
    /// An empty directory below `parent`.
    pub fn below(parent: &Path) -> io::Result<Self> {
        let directory = parent.join("secrets");
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory })
    }

    /// The file with this text.
    pub fn file(&self, text: &str) -> io::Result<PathBuf> {
        self.write(self.directory.join(hex::encode(Sha256::digest(text))), text)
    }

    /// The file with this text, under a name that clients show to people. The name is a plain one, without slashes.
    pub fn named(&self, text: &str, name: &str) -> io::Result<PathBuf> {
        let directory = self.directory.join(format!("{}.d", hex::encode(Sha256::digest(text))));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        self.write(directory.join(name), text)
    }

    fn write(&self, path: PathBuf, text: &str) -> io::Result<PathBuf> {
        if path.exists() {
            return Ok(path);
        }
        // Under another name first: whoever finds the path finds all of the text.
        let partial = self.directory.join(format!("{:?}.partial", std::thread::current().id()));
        let mut open = fs::OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        fs::rename(partial, &path)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nobody_else_reads_them_and_a_start_forgets_them() {
        let parent = tempfile::tempdir().unwrap();
        let files = SecretFiles::below(parent.path()).unwrap();
        let path = files.file("hunter2").unwrap();
        assert_eq!(files.file("hunter2").unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "hunter2");
        assert!(!path.to_string_lossy().contains("hunter2"));
        assert!(files.named("a key", "cosign.pub").unwrap().ends_with("cosign.pub"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        SecretFiles::below(parent.path()).unwrap();
        assert!(!path.exists());
    }
}
