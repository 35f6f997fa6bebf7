//! Modules without a registry: their bytes in `coprocessor_modules`, in parts.
//!
//! Key `<sha256 hex>/<n>`, value at most 512 KiB, because brokers cap records at 1 MiB. A module is whole when its
//! parts, put together, have the digest; so a half-written one is just not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::control::topics::OwnTopic;
use crate::core::deployment::ModuleRef;
use crate::core::digest::Digest;
use crate::core::record::TimestampMs;
use crate::ports::{Keyed, Log, LogError, ModuleError, ModuleStore, ReadFrom, ResolvedModule};

/// Largest part, in bytes.
pub const PART_BYTES: usize = 512 << 10;
/// Modules that no deployment names are removed after this, in milliseconds.
pub const UNREFERENCED_MS: i64 = 24 * 3_600 * 1_000;
/// Id of the writer: module parts are the same whoever writes them, so a fence between writers is no loss.
const WRITER: &str = "coproc.modules";

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

/// Writes a module's parts, unless they are there: its digest.
pub fn upload(log: &dyn Log, bytes: &[u8]) -> Result<Digest, LogError> {
    OwnTopic::Modules.ensure(log)?;
    let digest = digest_of(bytes);
    if matches!(Parts::read(log)?.assemble(digest), Ok(Some(_))) {
        return Ok(digest);
    }
    let mut writer = log.fenced_writer(&OwnTopic::Modules.name(), WRITER)?;
    for (part, value) in bytes.chunks(PART_BYTES).enumerate() {
        writer.write(&[Keyed { key: key(digest, part), value: Some(value.to_vec()) }])?;
    }
    Ok(digest)
}

/// Removes the parts of modules that no deployment names and that are older than a day: how many modules.
pub fn sweep(log: &dyn Log, referenced: &BTreeSet<Digest>, now_ms: TimestampMs) -> Result<usize, LogError> {
    let parts = Parts::read(log)?;
    let mut removed = BTreeSet::new();
    let mut tombstones = Vec::new();
    for ((digest, part), stored) in &parts.0 {
        let is_young = parts.newest(*digest).is_some_and(|newest| now_ms - newest < UNREFERENCED_MS);
        if !referenced.contains(digest) && !is_young && stored.bytes.is_some() {
            removed.insert(*digest);
            tombstones.push(Keyed { key: key(*digest, *part), value: None });
        }
    }
    if !tombstones.is_empty() {
        log.fenced_writer(&OwnTopic::Modules.name(), WRITER)?.write(&tombstones)?;
    }
    Ok(removed.len())
}

struct Part {
    bytes: Option<Vec<u8>>,
    appended_ms: TimestampMs,
}

struct Parts(BTreeMap<(Digest, usize), Part>);

impl Parts {
    fn read(log: &dyn Log) -> Result<Self, LogError> {
        Self::read_where(log, |_| true)
    }

    fn read_where(log: &dyn Log, wanted: impl Fn(Digest) -> bool) -> Result<Self, LogError> {
        let mut parts = BTreeMap::new();
        let topic = OwnTopic::Modules.name();
        if log.topics().describe(&topic)?.is_none() {
            return Ok(Self(parts));
        }
        let mut reader = log.reader(&topic, None, ReadFrom::Start)?;
        loop {
            let fetched = reader.fetch(Duration::ZERO)?;
            let is_over = fetched.is_empty() && reader.is_caught_up()?;
            for found in fetched {
                let at = found.record.key.as_deref().and_then(parse_key);
                if let Some((digest, part)) = at
                    && wanted(digest)
                {
                    let stored = Part { bytes: found.record.value, appended_ms: found.appended_ms };
                    parts.insert((digest, part), stored);
                }
            }
            if is_over {
                return Ok(Self(parts));
            }
        }
    }

    fn newest(&self, digest: Digest) -> Option<TimestampMs> {
        let of_module = self.0.range((digest, 0)..=(digest, usize::MAX));
        of_module.map(|(_, part)| part.appended_ms).max()
    }

    /// The module's bytes; `None` when no part is there, the digest found when they are other bytes.
    fn assemble(&self, digest: Digest) -> Result<Option<Vec<u8>>, Digest> {
        let mut bytes = Vec::new();
        for part in 0.. {
            match self.0.get(&(digest, part)).and_then(|part| part.bytes.as_ref()) {
                Some(more) => bytes.extend_from_slice(more),
                None => break,
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let found = digest_of(&bytes);
        if found == digest { Ok(Some(bytes)) } else { Err(found) }
    }
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
        let parts = Parts::read_where(self.log.as_ref(), |at| at == digest)
            .map_err(|error| ModuleError::Unavailable(error.to_string()))?;
        match parts.assemble(digest) {
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
