//! The three folders and the files in them. What they mean is decided one floor up.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cli::exit::{Exit, coded};
use crate::control::modules::digest_of;
use crate::core::digest::Digest;

/// What belongs to a module: itself, and the manifest beside it.
const ENDINGS: [&str; 2] = ["wasm", "yaml"];

/// One of the three folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Folder {
    /// What is to be registered.
    Submit,
    /// What is registered.
    Active,
    /// What was taken out, by somebody or because it failed.
    Inactive,
}

impl Folder {
    const ALL: [Self; 3] = [Self::Submit, Self::Active, Self::Inactive];

    /// Its name in the drop folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }
}

/// What the files of a module looked like: what does not change any more has been written whole.
pub type Look = [Option<(u64, Option<SystemTime>)>; 2];

/// The files of a module, read.
pub struct Files {
    /// The module's bytes.
    pub module: Vec<u8>,
    /// The manifest beside it, where there is one.
    pub manifest: Option<String>,
}

impl Files {
    /// Changes when one of the files does.
    pub fn fingerprint(&self) -> Digest {
        let mut both = digest_of(&self.module).to_string().into_bytes();
        both.extend_from_slice(self.manifest.as_deref().unwrap_or_default().as_bytes());
        digest_of(&both)
    }
}

/// The drop folder on the disk.
#[derive(Debug)]
pub struct Folders {
    dir: PathBuf,
}

impl Folders {
    /// The folders below this one.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes what is missing: whether `active/` was.
    pub fn make(&self) -> io::Result<bool> {
        let was_missing = !self.path(Folder::Active).is_dir();
        for folder in Folder::ALL {
            std::fs::create_dir_all(self.path(folder))?;
        }
        Ok(was_missing)
    }

    /// The drop folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The modules in a folder by their stem, and what they look like.
    pub fn modules(&self, folder: Folder) -> io::Result<BTreeMap<String, Look>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.path(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "wasm")
                && path.is_file()
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            {
                found.insert(stem.to_owned(), ENDINGS.map(|ending| look_of(&path.with_extension(ending))));
            }
        }
        Ok(found)
    }

    /// Files in `submit/` that nothing will be done with.
    pub fn strangers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path(Folder::Submit)).into_iter().flatten().flatten();
        let is_known =
            |path: &Path| ENDINGS.iter().any(|known| path.extension().is_some_and(|it| it == *known));
        let is_hidden =
            |path: &Path| path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        entries.map(|entry| entry.path()).filter(|path| !is_known(path) && !is_hidden(path)).collect()
    }

    /// Reads the files of a module.
    pub fn read(&self, folder: Folder, stem: &str) -> anyhow::Result<Files> {
        let path = self.file(folder, stem, "wasm");
        let unreadable = |path: &Path, error: &io::Error| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            coded(Exit::Refused, format!("{name} cannot be read: {error}"))
        };
        let module = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        let beside = path.with_extension("yaml");
        let manifest = match std::fs::read_to_string(&beside) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(&beside, &error)),
        };
        Ok(Files { module, manifest })
    }

    /// Moves the files of a module, if it is there: whether it was. What an earlier one of that name left goes.
    pub fn move_to(&self, stem: &str, from: Folder, to: Folder) -> bool {
        if !self.file(from, stem, "wasm").exists() {
            return false;
        }
        for ending in ENDINGS {
            let (from, to) = (self.file(from, stem, ending), self.file(to, stem, ending));
            let moved = if from.exists() { std::fs::rename(&from, &to) } else { remove(&to) };
            if let Err(error) = moved {
                let (from, to) = (from.display(), to.display());
                tracing::warn!(%from, %to, %error, "a file of the drop folder was not moved: look at its permissions");
            }
        }
        true
    }

    /// Puts a module into `active/`: all of it, or nothing.
    pub fn put_back(&self, stem: &str, module: &[u8]) -> io::Result<()> {
        let path = self.file(Folder::Active, stem, "wasm");
        let part = path.with_extension("part");
        std::fs::write(&part, module)?;
        std::fs::rename(&part, &path)
    }

    /// Writes down why a module is in `inactive/`.
    pub fn explain(&self, stem: &str, why: &str) {
        let path = self.file(Folder::Inactive, stem, "error.txt");
        if let Err(error) = std::fs::write(&path, format!("{why}\n")) {
            tracing::warn!(path = %path.display(), %error, "why a module is inactive was not written down");
        }
    }

    /// Takes away what `explain` wrote.
    pub fn explain_no_more(&self, stem: &str) {
        let path = self.file(Folder::Inactive, stem, "error.txt");
        if let Err(error) = remove(&path) {
            tracing::warn!(path = %path.display(), %error, "an old reason was not taken away");
        }
    }

    fn path(&self, folder: Folder) -> PathBuf {
        self.dir.join(folder.name())
    }

    fn file(&self, folder: Folder, stem: &str, ending: &str) -> PathBuf {
        self.path(folder).join(format!("{stem}.{ending}"))
    }
}

fn look_of(path: &Path) -> Option<(u64, Option<SystemTime>)> {
    std::fs::metadata(path).ok().map(|found| (found.len(), found.modified().ok()))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
