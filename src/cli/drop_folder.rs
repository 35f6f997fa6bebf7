//! The drop folder of the original: `submit/`, `active/`, `inactive/`.
//!
//! A module that is dropped into `submit/` is registered and moves to `active/`. One that is put into `active/` by hand,
//! or changed there, is registered where it is. One that is taken out of `active/` (moved to `inactive/`, or deleted) is
//! stopped; its offsets stay, so that it goes on where it was when it comes back. What fails goes to `inactive/`, with
//! the reason in a file beside it, and the module that ran before stays. What a module reads and writes stands in the
//! module itself (`coproc build` puts it there), or in a `.yaml` file of the same name, submitted together with it.
//!
//! Folders are looked at every half second: that works on every file system. A change counts when two looks saw the
//! same. When the whole of `active/` goes, that says nothing about its modules: it is made again, and what runs goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cli::deploy;
use crate::cli::deployments::of_cli;
use crate::cli::manifest::{self, Manifest};
use crate::cli::modules::{self, Module};
use crate::cli::open::now_ms;
use crate::control::desired;
use crate::control::modules::{TopicStore, upload};
use crate::control::observed::{self, ObservedNode};
use crate::control::writer::{self, DesiredWriter};
use crate::core::deployment::{Deployment, ModuleRef};
use crate::core::digest::Digest;
use crate::core::disposition::Disposition;
use crate::core::names::{DeploymentName, Identity, Installation, Kind, PoolName};
use crate::core::record::TimestampMs;
use crate::core::status::State;
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Log, LogError, ModuleStore};
use crate::wasm::{inspect, section};

use files::{Files, Folder, Folders, Look};

mod files;

/// How often the folders are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// So many looks at the folders to one at what the nodes say.
const LOOKS_PER_VERDICT: u32 = 4;
/// What is registered, so that what changes while nobody looks is noticed too.
const REGISTERED: &str = ".registered.json";
/// Reasons of a node for which trying again does not help.
const FINAL: [&str; 3] = ["InvalidModule", "GuestStartFailed", "TopicCycle"];

/// A module that was registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Registered {
    /// Name of its deployment.
    name: DeploymentName,
    module: Digest,
    /// Of all its files.
    fingerprint: Digest,
    generation: u64,
    /// Whether its file went together with the whole folder: it runs on without one.
    #[serde(default)]
    lost: bool,
}

/// Watches a drop folder.
pub struct DropFolder {
    folders: Folders,
    log: Arc<dyn Log>,
    installation: Installation,
    pool: PoolName,
    /// By file stem.
    registered: BTreeMap<String, Registered>,
    /// How each file looked last, and whether that has been dealt with.
    seen: BTreeMap<(Folder, String), (Look, bool)>,
    /// What was not in `active/` at the last look.
    missing: BTreeSet<String>,
    told: BTreeSet<PathBuf>,
    looks: u32,
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
        let folders = Folders::new(dir);
        let registered = std::fs::read(folders.dir().join(REGISTERED)).ok();
        let registered = registered.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let mut folder = Self {
            folders,
            log,
            installation,
            pool,
            registered,
            seen: BTreeMap::new(),
            missing: BTreeSet::new(),
            told: BTreeSet::new(),
            looks: 0,
        };
        folder
            .mend()
            .with_context(|| format!("cannot make folders in {}", folder.folders.dir().display()))?;
        Ok(folder)
    }

    /// Looks at the folders once.
    pub fn look(&mut self) {
        if let Err(error) = self.mend().and_then(|()| self.take_changes()) {
            let dir = self.folders.dir().display();
            tracing::warn!(%dir, %error, "the drop folder cannot be used: what runs goes on");
            return;
        }
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_VERDICT)
            && !self.registered.is_empty()
            && let Err(error) = self.take_verdicts()
        {
            tracing::warn!(%error, "what became of the modules in the drop folder is not known: looked at again");
        }
    }

    /// Makes the folders again where somebody took them away.
    fn mend(&mut self) -> std::io::Result<()> {
        if !self.folders.make()? {
            return Ok(());
        }
        let names: Vec<String> = self.registered.values().map(|known| known.name.to_string()).collect();
        self.registered.values_mut().for_each(|known| known.lost = true);
        if !names.is_empty() {
            let (dir, names) = (self.folders.dir().display(), names.join(", "));
            tracing::warn!(%dir, "active/ was taken away whole: {names} runs on, `coproc remove` stops it");
            self.keep();
        }
        Ok(())
    }

    fn take_changes(&mut self) -> std::io::Result<()> {
        for path in self.folders.strangers() {
            if self.told.insert(path.clone()) {
                let path = path.display();
                tracing::warn!(%path, "this is no .wasm file: it is left where it is");
            }
        }
        for (folder, stem) in self.settled()? {
            let Err(error) = self.take_up(folder, &stem) else { continue };
            if can_pass(&error) {
                tracing::warn!(module = stem, "a dropped module waits, it is tried again: {error:#}");
                self.seen.remove(&(folder, stem));
            } else {
                self.reject(folder, &stem, &format!("{error:#}"));
            }
        }
        let active = self.folders.modules(Folder::Active)?;
        let gone = self.registered.iter().filter(|(stem, known)| !known.lost && !active.contains_key(*stem));
        let gone: BTreeSet<String> = gone.map(|(stem, _)| stem.clone()).collect();
        // The second look: a folder that is being taken away whole loses its files first.
        let long_gone: Vec<String> = gone.intersection(&self.missing).cloned().collect();
        for stem in long_gone {
            self.stop(&stem);
        }
        self.missing = gone;
        Ok(())
    }

    /// Modules that are new or changed, and look as they did the last time.
    fn settled(&mut self) -> std::io::Result<Vec<(Folder, String)>> {
        let mut settled = Vec::new();
        let mut seen = BTreeMap::new();
        for folder in [Folder::Submit, Folder::Active] {
            for (stem, look) in self.folders.modules(folder)? {
                let at = (folder, stem);
                let before = self.seen.get(&at).filter(|(before, _)| *before == look);
                if before.is_some_and(|(_, done)| !done) {
                    settled.push(at.clone());
                }
                seen.insert(at, (look, before.is_some()));
            }
        }
        self.seen = seen;
        Ok(settled)
    }

    /// Registers a module, unless it is there just as it was registered.
    fn take_up(&mut self, folder: Folder, stem: &str) -> anyhow::Result<()> {
        let files = self.folders.read(folder, stem)?;
        if folder == Folder::Active
            && let Some(known) = self.registered.get_mut(stem)
            && known.fingerprint == files.fingerprint()
        {
            if std::mem::take(&mut known.lost) {
                self.keep();
            }
            return Ok(());
        }
        let (manifest, module, mut deployment) = self.check(stem, &files)?;
        let identity = self.identity(&manifest.name);
        let before = self.writer().find(&identity).ok().map(|(_, before)| before);
        let is_ours = self.registered.values().any(|known| known.name == manifest.name);
        if let Some(before) = &before {
            let may_change = is_ours || (folder == Folder::Active && is_same(before, &deployment));
            if !may_change {
                anyhow::bail!(
                    "{} was deployed from the command line: remove it there first, or choose another name",
                    manifest.name
                );
            }
            // A new module does not end a pause.
            deployment.paused = before.paused;
        }
        upload(self.log.as_ref(), &module.bytes)?;
        let generation = self.writer().deploy(&self.pool, &identity, &deployment)?;
        self.replace(folder, stem, &manifest.name);
        tracing::info!(module = stem, deployment = %identity, generation, "a dropped module was registered");
        let fingerprint = files.fingerprint();
        let known =
            Registered { name: manifest.name, module: module.digest, fingerprint, generation, lost: false };
        self.registered.insert(stem.to_owned(), known);
        self.keep();
        Ok(())
    }

    /// What the files of a module mean, when nothing is wrong with them. The bytes come first: what is no module has no
    /// manifest either, and that is not what is wrong with it.
    fn check(&self, stem: &str, files: &Files) -> anyhow::Result<(Manifest, Module, Deployment)> {
        let module = Module::new(PathBuf::from(format!("{stem}.wasm")), files.module.clone());
        inspect(&module.bytes).with_context(|| format!("{stem}.wasm cannot be used"))?;
        let manifest = manifest_of(stem, files)?;
        let [step] = &manifest.steps[..] else {
            anyhow::bail!("a dropped module is one step: use `coproc deploy` for a chain");
        };
        modules::check(&module, &step.limits, &step.env)?;
        let deployment = deploy::deployment(&manifest, std::slice::from_ref(&module));
        deploy::check(&deployment)?;
        deploy::check_topics(self.log.as_ref(), &deployment)?;
        Ok((manifest, module, deployment))
    }

    /// Moves a registered module to `active/`; the one that it replaces goes to `inactive/`, as in the original,
    /// whatever its file is called. A deployment that it was until now, under another name, ends.
    fn replace(&mut self, folder: Folder, stem: &str, name: &DeploymentName) {
        let is_holder = |(other, known): &(&String, &Registered)| *other != stem && known.name == *name;
        let holder = self.registered.iter().find(is_holder).map(|(other, _)| other.clone());
        if let Some(holder) = holder {
            self.folders.move_to(&holder, Folder::Active, Folder::Inactive);
            self.registered.remove(&holder);
        }
        if self.registered.get(stem).is_some_and(|known| known.name != *name) {
            self.stop(stem);
        }
        if folder == Folder::Submit {
            self.folders.move_to(stem, Folder::Active, Folder::Inactive);
            self.folders.move_to(stem, Folder::Submit, Folder::Active);
        }
        self.folders.explain_no_more(stem);
    }

    fn reject(&mut self, folder: Folder, stem: &str, why: &str) {
        tracing::warn!(module = stem, "a dropped module was not registered: {why}");
        self.folders.move_to(stem, folder, Folder::Inactive);
        self.folders.explain(stem, why);
        if folder == Folder::Active {
            self.put_back(stem);
        }
    }

    /// Puts the module that runs back into `active/`, where a bad one was written over it.
    fn put_back(&mut self, stem: &str) {
        let Some(known) = self.registered.get_mut(stem) else { return };
        let module = ModuleRef { digest: known.module, image: None };
        let put = TopicStore::new(self.log.clone()).fetch(&module).map_err(anyhow::Error::from);
        let put = put.and_then(|bytes| {
            self.folders.put_back(stem, &bytes)?;
            Ok(Files { module: bytes, manifest: None }.fingerprint())
        });
        match put {
            Ok(fingerprint) => known.fingerprint = fingerprint,
            Err(error) => {
                tracing::warn!(module = stem, "the module that runs was not put back, it runs on: {error:#}");
                known.lost = true;
            }
        }
        self.keep();
    }

    /// Takes modules out of `active/` that the node could not start, or whose deployment was removed elsewhere.
    fn take_verdicts(&mut self) -> Result<(), LogError> {
        let desired = desired::read(self.log.as_ref())?;
        let nodes = observed::read(self.log.as_ref())?.map(|state| state.nodes()).unwrap_or_default();
        let now = now_ms();
        let mut out = Vec::new();
        for (stem, known) in &self.registered {
            let identity = self.identity(&known.name);
            if desired.get(&identity).is_none() {
                out.push((stem.clone(), "it was removed with `coproc remove`".to_owned()));
            } else if let Some(why) = failure(&nodes, &self.pool, now, &identity, known.generation) {
                out.push((stem.clone(), why));
            }
        }
        for (stem, why) in out {
            tracing::warn!(module = stem, "a dropped module goes to inactive/: {why}");
            if self.folders.move_to(&stem, Folder::Active, Folder::Inactive) {
                self.folders.explain(&stem, &why);
            }
            self.stop(&stem);
        }
        Ok(())
    }

    fn stop(&mut self, stem: &str) {
        let Some(known) = self.registered.get(stem) else { return };
        let identity = self.identity(&known.name);
        match self.writer().remove(&identity) {
            Ok(()) | Err(writer::Error::NotFound(_)) => {
                tracing::info!(module = stem, deployment = %identity, "a dropped module stops");
                self.registered.remove(stem);
                self.keep();
            }
            Err(error) => {
                tracing::warn!(module = stem, %error, "a dropped module was not stopped: tried again");
            }
        }
    }

    fn identity(&self, name: &DeploymentName) -> Identity {
        of_cli(&self.installation, Kind::Coprocessor, name.clone())
    }

    fn writer(&self) -> DesiredWriter<'_> {
        DesiredWriter::new(self.log.as_ref(), self.installation.clone())
    }

    fn keep(&self) {
        let path = self.folders.dir().join(REGISTERED);
        let part = path.with_extension("part");
        let text = serde_json::to_vec(&self.registered).unwrap_or_default();
        if let Err(error) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)) {
            tracing::warn!(path = %path.display(), %error, "what is registered was not kept");
        }
    }
}

/// Whether it is the log's fault, or nobody's, and not the module's.
fn can_pass(error: &anyhow::Error) -> bool {
    let of_log = |cause: &(dyn std::error::Error + 'static)| {
        let of_writer = cause.downcast_ref::<writer::Error>().and_then(|error| match error {
            writer::Error::Log(error) => Some(error.disposition()),
            writer::Error::Busy => Some(Disposition::Transient),
            _ => None,
        });
        cause.downcast_ref::<LogError>().map(LogError::disposition).or(of_writer)
    };
    let mut of_log = error.chain().filter_map(of_log);
    of_log.any(|it| matches!(it, Disposition::Transient | Disposition::Fenced))
}

/// Why a deployment cannot run, if a live node of the pool says so of this generation or a later one, and trying again
/// does not help. What a dead node or one of another pool said, or what was said of an earlier module, is no verdict.
fn failure(
    nodes: &[ObservedNode],
    pool: &PoolName,
    now: TimestampMs,
    identity: &Identity,
    generation: u64,
) -> Option<String> {
    let live = nodes.iter().filter(|node| node.status.pool == pool.as_str() && !node.is_unresponsive(now));
    let mut said = live.flat_map(|node| node.status.coprocessors.values());
    let failed = said.find(|status| {
        status.identity == *identity
            && status.generation >= generation
            && status.state == State::Failed
            && status.reason.as_deref().is_some_and(|reason| FINAL.contains(&reason))
    })?;
    Some(failed.last_error.as_ref().map(|error| error.message.clone()).unwrap_or_default())
}

/// Whether the two are the same but for what is counted where it is written, and what its owner switches.
fn is_same(one: &Deployment, other: &Deployment) -> bool {
    let plain = |it: &Deployment| Deployment { generation: 1, paused: false, life: None, ..it.clone() };
    plain(one) == plain(other)
}

/// The manifest beside the module, or the one in it.
fn manifest_of(stem: &str, files: &Files) -> anyhow::Result<Manifest> {
    let nowhere = Path::new("");
    if let Some(text) = &files.manifest {
        return manifest::parse(text, nowhere).with_context(|| format!("{stem}.yaml is not as it has to be"));
    }
    let text = section::manifest(&files.module).with_context(|| {
        format!("it does not say what it reads and writes: build it with `coproc build`, or submit {stem}.yaml with it")
    })?;
    manifest::parse(text, nowhere).context("the manifest in the module is not as it has to be")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::observed::ObservedState;
    use crate::core::status::UNRESPONSIVE_MS;
    use crate::ports::FoldEvent;

    /// What is judged of generation 2 of `a` in pool `p`, when a node says this.
    fn judged(status: &str, pool: &str, coprocessor: &str, age_ms: TimestampMs) -> Option<String> {
        let value = format!(
            r#"{{"node_id": 5, "status": "{status}", "time": "", "version": "", "schema": "1.0", "pool": "{pool}",
                "incarnation": "", "coprocessors": {{"a": {{"input_topics": [], "description": "", {coprocessor},
                "last_error": {{"time": 0, "reason": "R", "message": "why"}}}}}}}}"#
        );
        let mut state = ObservedState::default();
        let value = Some(value.into_bytes());
        state.apply(FoldEvent::Record { key: b"5".to_vec(), value, offset: 0, appended_ms: 0 });
        let nodes = state.nodes();
        assert_eq!(nodes.len(), 1, "the record is understood");
        let identity = "default/_cli/coprocessor/a".parse().unwrap();
        failure(&nodes, &"p".parse().unwrap(), age_ms, &identity, 2)
    }

    #[test]
    fn only_a_live_node_of_the_pool_judges_and_only_what_was_registered() {
        let ours = r#""identity": "default/_cli/coprocessor/a""#;
        let of = |identity: &str, state: &str, reason: &str, generation: u64| {
            format!(r#"{identity}, "state": "{state}", "reason": "{reason}", "generation": {generation}"#)
        };
        let failed = of(ours, "failed", "InvalidModule", 2);
        assert_eq!(judged("up", "p", &failed, 0), Some("why".into()));
        assert_eq!(judged("up", "p", &of(ours, "failed", "TopicCycle", 3), 0), Some("why".into()));
        for (status, pool, coprocessor, age) in [
            ("down", "p", failed.clone(), 0),
            ("up", "p", failed.clone(), UNRESPONSIVE_MS + 1),
            ("up", "q", failed.clone(), 0),
            ("up", "p", of(ours, "failed", "InvalidModule", 1), 0),
            ("up", "p", of(ours, "running", "InvalidModule", 2), 0),
            ("up", "p", of(ours, "failed", "TopicNotFound", 2), 0),
            ("up", "p", of(r#""identity": "default/_cli/coprocessor/b""#, "failed", "InvalidModule", 2), 0),
        ] {
            assert_eq!(judged(status, pool, &coprocessor, age), None, "{status} {pool} {coprocessor} {age}");
        }
    }
}
