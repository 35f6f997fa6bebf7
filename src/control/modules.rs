//! Modules without a registry: their bytes in `coprocessor_modules`, in parts.
//!
//! Key `<sha256 hex>/<n>`, value at most 512 KiB, because brokers cap records at 1 MiB. A module is whole when its
//! parts, put together, have the digest; so a half-written one is just not there.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::control::desired::{self, Desired};
use crate::control::topics::OwnTopic;
use crate::core::deployment::ModuleRef;
use crate::core::digest::Digest;
use crate::core::record::TimestampMs;
use crate::ports::{FoldEvent, Keyed, Log, LogError, ModuleError, ModuleStore, ResolvedModule};

/// Largest part, in bytes.
pub const PART_BYTES: usize = 512 << 10;
/// Modules that no deployment names are removed after this, in milliseconds.
pub const UNREFERENCED_MS: i64 = 24 * 3_600 * 1_000;
/// How often an upload is tried when somebody else writes the same module.
const ATTEMPTS: usize = 5;
/// About how long somebody else may take to write a module.
const OTHERS: Duration = Duration::from_secs(3);
/// How often is looked whether somebody else has.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The digest of these bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

fn key(digest: Digest, part: usize) -> Vec<u8> {
    format!("{}/{part}", digest.hex()).into_bytes()
}

fn parse_key(key: &[u8]) -> Option<(Digest, usize)> {
    let (hex, part) = std::str::from_utf8(key).ok()?.split_once('/')?;
    Some((format!("sha256:{hex}").parse().ok()?, part.parse().ok()?))
}

/// Id of the writer of a module's parts: one for each, so that uploads of different modules go side by side.
fn writer_id(digest: Digest) -> String {
    format!("coproc.modules.{}", digest.hex())
}

/// Writes a module's parts, unless they are there: its digest.
pub fn upload(log: &dyn Log, bytes: &[u8]) -> Result<Digest, LogError> {
    OwnTopic::Modules.ensure(log)?;
    let digest = digest_of(bytes);
    let mut attempt = 1;
    loop {
        match try_upload(log, digest, bytes) {
            // Whoever took over writes the same parts: to take over again would only go to and fro. Unless it died, or
            // removes them as too old.
            Err(LogError::Fenced(_)) if attempt < ATTEMPTS => {
                attempt += 1;
                if appears(log, digest)? {
                    return Ok(digest);
                }
            }
            Err(LogError::Fenced(_)) => {
                let message = format!("others keep writing module {digest} at the same time: try again");
                return Err(LogError::Unavailable(message));
            }
            other => return other.map(|()| digest),
        }
    }
}

fn try_upload(log: &dyn Log, digest: Digest, bytes: &[u8]) -> Result<(), LogError> {
    if is_whole(log, digest)? {
        return Ok(());
    }
    let mut writer = log.fenced_writer(&OwnTopic::Modules.name(), &writer_id(digest))?;
    for (part, value) in bytes.chunks(PART_BYTES).enumerate() {
        writer.write(&[Keyed { key: key(digest, part), value: Some(value.to_vec()) }])?;
    }
    Ok(())
}

fn is_whole(log: &dyn Log, digest: Digest) -> Result<bool, LogError> {
    Ok(matches!(assemble(&Parts::of(log, digest)?, digest), Ok(Some(_))))
}

/// Whether the module is whole within a while, written by somebody else. How long differs from caller to caller, so
/// that two do not take over in step.
fn appears(log: &dyn Log, digest: Digest) -> Result<bool, LogError> {
    let dice = RandomState::new().build_hasher().finish() % 1_000;
    let deadline = Instant::now() + OTHERS.mul_f64(0.5 + dice as f64 / 1_000.0);
    loop {
        if is_whole(log, digest)? {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Removes the parts of modules that no deployment names and that are older than a day: how many modules. Nothing,
/// where there is a deployment that this version cannot read. Every pool's deployments count: the topic is shared.
pub fn sweep(log: &dyn Log, now_ms: TimestampMs) -> Result<usize, LogError> {
    let state = desired::read(log)?;
    let mut named = BTreeSet::new();
    for (_, _, desired) in state.iter() {
        let Desired::Deployment(deployment) = desired else { return Ok(0) };
        named.extend(deployment.steps.iter().map(|step| step.module.digest));
    }
    let mut removed = 0;
    for (digest, stored) in Ages::read(log)?.0 {
        if named.contains(&digest) || stored.parts.is_empty() || now_ms - stored.newest_ms < UNREFERENCED_MS {
            continue;
        }
        let tombstone = |part: &usize| Keyed { key: key(digest, *part), value: None };
        let tombstones: Vec<_> = stored.parts.iter().map(tombstone).collect();
        log.fenced_writer(&OwnTopic::Modules.name(), &writer_id(digest))?.write(&tombstones)?;
        removed += 1;
    }
    Ok(removed)
}

/// Which parts of which modules there are, and since when: without the bytes.
#[derive(Default)]
struct Ages(BTreeMap<Digest, Age>);

#[derive(Default)]
struct Age {
    parts: BTreeSet<usize>,
    newest_ms: TimestampMs,
}

impl Ages {
    fn read(log: &dyn Log) -> Result<Self, LogError> {
        let read = OwnTopic::Modules.read(log, |ages: &mut Self, event| {
            let FoldEvent::Record { key, value, appended_ms, .. } = event else { return };
            let Some((digest, part)) = parse_key(&key) else { return };
            let age = ages.0.entry(digest).or_default();
            match value {
                Some(_) => age.parts.insert(part),
                None => age.parts.remove(&part),
            };
            age.newest_ms = age.newest_ms.max(appended_ms);
        });
        Ok(read?.unwrap_or_default())
    }
}

/// The parts of one module.
#[derive(Default)]
struct Parts(BTreeMap<usize, Vec<u8>>);

impl Parts {
    fn of(log: &dyn Log, digest: Digest) -> Result<Self, LogError> {
        let read = OwnTopic::Modules.read(log, |parts: &mut Self, event| {
            let FoldEvent::Record { key, value, .. } = event else { return };
            match (parse_key(&key), value) {
                (Some((at, part)), Some(bytes)) if at == digest => drop(parts.0.insert(part, bytes)),
                (Some((at, part)), None) if at == digest => drop(parts.0.remove(&part)),
                _ => {}
            }
        });
        Ok(read?.unwrap_or_default())
    }
}

/// The module's bytes; `None` when no part is there, the digest found when they are other bytes.
fn assemble(parts: &Parts, digest: Digest) -> Result<Option<Vec<u8>>, Digest> {
    let in_order = (0..).map_while(|part| parts.0.get(&part));
    let bytes = in_order.fold(Vec::new(), |mut bytes, part| {
        bytes.extend_from_slice(part);
        bytes
    });
    if bytes.is_empty() {
        return Ok(None);
    }
    let found = digest_of(&bytes);
    if found == digest { Ok(Some(bytes)) } else { Err(found) }
}

/// The modules topic as a module store.
pub struct TopicStore {
    log: Arc<dyn Log>,
}

impl TopicStore {
    /// A store over the modules topic of this log.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log }
    }
}

impl ModuleStore for TopicStore {
    fn fetch(&self, module: &ModuleRef) -> Result<Vec<u8>, ModuleError> {
        let digest = module.digest;
        let parts = Parts::of(self.log.as_ref(), digest)
            .map_err(|error| ModuleError::Unavailable(error.to_string()))?;
        match assemble(&parts, digest) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => {
                let reason = format!("topic {} does not have it: deploy it again", OwnTopic::Modules.name());
                Err(ModuleError::NotFound { digest, reason })
            }
            Err(found) => Err(ModuleError::WrongDigest { wanted: digest, found }),
        }
    }
}

/// Both stores as one: modules with an image come from the registry, the others from the modules topic.
pub struct Stores {
    topic: TopicStore,
    registry: Option<Arc<dyn ModuleStore>>,
    must_be_signed: bool,
}

impl Stores {
    /// The two stores. With `must_be_signed` a module without an image is refused: the topic has no signatures.
    pub fn new(topic: TopicStore, registry: Option<Arc<dyn ModuleStore>>, must_be_signed: bool) -> Self {
        Self { topic, registry, must_be_signed }
    }
}

impl ModuleStore for Stores {
    fn fetch(&self, module: &ModuleRef) -> Result<Vec<u8>, ModuleError> {
        match (&module.image, &self.registry) {
            (None, _) if self.must_be_signed => Err(ModuleError::Unverified(format!(
                "module {} comes without an image, and this node runs signed modules only: push and sign it",
                module.digest
            ))),
            (None, _) => self.topic.fetch(module),
            (Some(_), Some(registry)) => registry.fetch(module),
            (Some(image), None) => Err(ModuleError::Refused(format!(
                "image {image:?} cannot be fetched: no registry client is configured"
            ))),
        }
    }

    fn resolve(&self, image: &str) -> Result<ResolvedModule, ModuleError> {
        match &self.registry {
            Some(registry) => registry.resolve(image),
            None => self.topic.resolve(image),
        }
    }
}
