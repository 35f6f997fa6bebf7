//! The drop folder of the original: `submit/`, `active/`, `inactive/`.
//!
//! A module that is dropped into `submit/` is registered and moves to `active/`; one that is taken out of `active/`
//! (moved to `inactive/`, or deleted) is stopped; what fails goes to `inactive/`, with the reason in a file beside it.
//! What the module reads and writes stands in the module itself (`coproc build` puts it there), or in a `.yaml` file of
//! the same name, submitted together with it. Folders are looked at every half second: that works on every file system.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::cli::deploy;
use crate::cli::manifest::{self, Manifest};
use crate::cli::modules::{self, Module};
use crate::control::modules::upload;
use crate::control::observed;
use crate::control::writer::DesiredWriter;
use crate::core::names::{DeploymentName, Identity, Installation, Kind, Namespace, PoolName};
use crate::core::status::State;
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::Log;
use crate::wasm::section;

/// How often the folders are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// The names that are registered, so that one taken away while nobody looked is stopped too.
const REGISTERED: &str = ".registered.json";

/// What a file looked like; one that does not change any more has been written whole.
type Look = (u64, Option<SystemTime>);

/// Watches a drop folder.
pub struct DropFolder {
    dir: PathBuf,
    log: Arc<dyn Log>,
    installation: Installation,
    pool: PoolName,
    /// File stem to deployment name.
    registered: BTreeMap<String, DeploymentName>,
    seen: BTreeMap<PathBuf, Look>,
}

impl DropFolder {
    /// Starts to watch; makes the three folders.
    pub fn start(
        dir: PathBuf,
        log: Arc<dyn Log>,
        installation: Installation,
        pool: PoolName,
    ) -> anyhow::Result<Stoppable> {
        let mut folder = Self::open(dir, log, installation, pool)?;
        let started: Result<Stoppable, SpawnError> =
            threads::spawn("coproc-drop", move |stop: &Arc<AtomicBool>| {
                while !stop.load(Ordering::Relaxed) {
                    folder.look();
                    std::thread::sleep(EVERY);
                }
            });
        Ok(started?)
    }

    /// Makes the three folders, and reads what was registered before.
    pub fn open(
        dir: PathBuf,
        log: Arc<dyn Log>,
        installation: Installation,
        pool: PoolName,
    ) -> anyhow::Result<Self> {
        for folder in ["submit", "active", "inactive"] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let registered = std::fs::read(dir.join(REGISTERED)).ok();
        let registered = registered.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Ok(Self { dir, log, installation, pool, registered, seen: BTreeMap::new() })
    }

    /// Looks at the folders once.
    pub fn look(&mut self) {
        for module in self.settled_modules() {
            if let Err(error) = self.submit(&module) {
                self.reject(&module, &format!("{error:#}"));
            }
        }
        self.stop_what_is_gone();
        self.reject_what_failed();
    }

    /// Modules in `submit/` that look as they did the last time.
    fn settled_modules(&mut self) -> Vec<PathBuf> {
        let found = modules_in(&self.dir.join("submit"));
        let mut settled = Vec::new();
        let mut seen = BTreeMap::new();
        for path in found {
            let look = look_of(&path);
            if self.seen.get(&path) == Some(&look) {
                settled.push(path);
            } else {
                seen.insert(path, look);
            }
        }
        self.seen = seen;
        settled
    }

    fn submit(&mut self, path: &Path) -> anyhow::Result<()> {
        let module = Module::read(path)?;
        let manifest = manifest_for(path, &module)?;
        let [step] = &manifest.steps[..] else {
            anyhow::bail!("a dropped module is one step: use `coproc deploy` for a chain");
        };
        modules::check(&module, &step.limits, &step.env)?;
        let deployment = deploy::deployment(&manifest, std::slice::from_ref(&module));
        deploy::check(&deployment)?;
        deploy::check_topics(self.log.as_ref(), &deployment)?;
        let identity = self.identity(&manifest.name);
        let holder =
            self.registered.iter().find(|(_, name)| **name == manifest.name).map(|(stem, _)| stem.clone());
        if holder.is_none() && self.writer().find(&identity).is_ok() {
            anyhow::bail!(
                "{} was deployed from the command line: remove it there first, or choose another name",
                manifest.name
            );
        }
        upload(self.log.as_ref(), &module.bytes)?;
        let generation = self.writer().deploy(&self.pool, &identity, deployment)?;
        let stem = stem_of(path);
        // The one that it replaces goes to inactive, as in the original, whatever its file is called.
        self.move_files(&stem, "active", "inactive");
        if let Some(holder) = holder.filter(|holder| *holder != stem) {
            self.move_files(&holder, "active", "inactive");
            self.registered.remove(&holder);
        }
        self.move_files(&stem, "submit", "active");
        let _ = std::fs::remove_file(self.dir.join("inactive").join(format!("{stem}.error.txt")));
        tracing::info!(module = stem, deployment = %identity, generation, "a dropped module was registered");
        self.registered.insert(stem, manifest.name);
        self.keep();
        Ok(())
    }

    fn reject(&mut self, path: &Path, why: &str) {
        let stem = stem_of(path);
        tracing::warn!(module = stem, "a dropped module was not registered: {why}");
        self.move_files(&stem, "submit", "inactive");
        self.explain(&stem, why);
    }

    /// Stops deployments whose module is not in `active/` any more.
    fn stop_what_is_gone(&mut self) {
        let folder = self.dir.join("active");
        if let Err(error) = std::fs::read_dir(&folder) {
            // A folder that cannot be read, or was taken away whole, says nothing about its modules: what runs goes on.
            tracing::warn!(folder = %folder.display(), %error, "the drop folder cannot be read: what runs goes on");
            return;
        }
        let active: BTreeSet<String> = modules_in(&folder).iter().map(|path| stem_of(path)).collect();
        let gone: Vec<String> =
            self.registered.keys().filter(|stem| !active.contains(*stem)).cloned().collect();
        for stem in gone {
            self.stop(&stem);
        }
    }

    /// Takes modules out of `active/` that the node could not start.
    fn reject_what_failed(&mut self) {
        if self.registered.is_empty() {
            return;
        }
        let Ok(Some(state)) = observed::read(self.log.as_ref()) else { return };
        let mut failed = Vec::new();
        for deployment in state.nodes().into_iter().flat_map(|node| node.status.coprocessors.into_values()) {
            let stem = self.registered.iter().find(|(_, name)| self.identity(name) == deployment.identity);
            let is_dead = deployment.state == State::Failed
                && matches!(
                    deployment.reason.as_deref(),
                    Some("InvalidModule" | "GuestStartFailed" | "TopicCycle")
                );
            if let (Some((stem, _)), true) = (stem, is_dead) {
                let why = deployment.last_error.map(|error| error.message).unwrap_or_default();
                failed.push((stem.clone(), why));
            }
        }
        for (stem, why) in failed {
            self.move_files(&stem, "active", "inactive");
            self.explain(&stem, &why);
            self.stop(&stem);
        }
    }

    fn stop(&mut self, stem: &str) {
        let Some(name) = self.registered.get(stem).cloned() else { return };
        let identity = self.identity(&name);
        match self.writer().remove(&identity) {
            Ok(()) | Err(crate::control::writer::Error::NotFound(_)) => {
                tracing::info!(module = stem, deployment = %identity, "a dropped module was taken away: it stops");
                self.registered.remove(stem);
                self.keep();
            }
            Err(error) => {
                tracing::warn!(module = stem, %error, "a dropped module was not stopped: tried again");
            }
        }
    }

    fn identity(&self, name: &DeploymentName) -> Identity {
        Identity {
            installation: self.installation.clone(),
            namespace: Namespace::cli(),
            kind: Kind::Coprocessor,
            name: name.clone(),
        }
    }

    fn writer(&self) -> DesiredWriter<'_> {
        DesiredWriter::new(self.log.as_ref(), self.installation.clone())
    }

    /// Moves a module, and what belongs to it, from one folder to another.
    fn move_files(&self, stem: &str, from: &str, to: &str) {
        for ending in ["wasm", "yaml"] {
            let name = format!("{stem}.{ending}");
            let (from, to) = (self.dir.join(from).join(&name), self.dir.join(to).join(&name));
            if from.exists()
                && let Err(error) = std::fs::rename(&from, &to)
            {
                tracing::warn!(from = %from.display(), to = %to.display(), %error, "a file was not moved");
            }
        }
    }

    fn explain(&self, stem: &str, why: &str) {
        let path = self.dir.join("inactive").join(format!("{stem}.error.txt"));
        if let Err(error) = std::fs::write(&path, format!("{why}\n")) {
            tracing::warn!(path = %path.display(), %error, "the reason was not written");
        }
    }

    fn keep(&self) {
        let path = self.dir.join(REGISTERED);
        let part = path.with_extension("part");
        let text = serde_json::to_vec(&self.registered).unwrap_or_default();
        if let Err(error) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)) {
            tracing::warn!(path = %path.display(), %error, "what is registered was not kept");
        }
    }
}

fn modules_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "wasm") && path.is_file())
        .collect();
    found.sort();
    found
}

fn look_of(path: &Path) -> Look {
    std::fs::metadata(path).map_or((0, None), |found| (found.len(), found.modified().ok()))
}

fn stem_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The manifest beside the module, or the one in it.
fn manifest_for(path: &Path, module: &Module) -> anyhow::Result<Manifest> {
    let beside = path.with_extension("yaml");
    let directory = path.parent().unwrap_or(Path::new("."));
    if beside.exists() {
        return manifest::read(&beside);
    }
    let text = section::manifest(&module.bytes).with_context(|| {
        format!(
            "it does not say what it reads and writes: build it with `coproc build`, or submit {} with it",
            beside.file_name().unwrap_or_default().to_string_lossy()
        )
    })?;
    manifest::parse(text, directory).context("the manifest in the module is not as it has to be")
}
