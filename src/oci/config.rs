//! What the registry client is told, as written and as meant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::units::{ByteSize, Span};
use crate::oci::access::{Access, HostList, Mirror};
use crate::oci::error::OciError;
use crate::oci::reference::RegistryName;
use crate::oci::signature::{Policy, PublicKey};

/// The largest module that a configuration may allow.
const MAX_MODULE_BYTES: u64 = 128 << 20;

/// The configuration as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RawOciConfig {
    /// Where fetched modules are kept. Several processes may share it.
    pub cache_dir: PathBuf,
    /// How much the cache may hold.
    pub cache_max_bytes: ByteSize,
    /// The largest module, at most 128Mi.
    pub max_module_bytes: ByteSize,
    /// Registries that are spoken to without TLS: `host` or `host:port`.
    pub insecure: Vec<String>,
    /// PEM files with certificates of authorities that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Other places that have a registry's images, asked before the registry, in order.
    pub mirrors: Vec<RawMirrors>,
    /// Hosts besides the registry itself that may hand out its tokens, and so see credentials.
    pub token_hosts: Vec<String>,
    /// Hosts that a registry may redirect downloads to. They see no credentials.
    pub redirect_hosts: Vec<String>,
    /// Hosts that may be at private, link-local or loopback addresses.
    pub private_hosts: Vec<String>,
    /// Files of the form `kubernetes.io/dockerconfigjson`, read anew each time credentials are needed.
    pub pull_secret_files: Vec<PathBuf>,
    /// Which signatures are demanded; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<RawVerification>,
    /// Longest wait for a connection.
    pub connect_timeout: Span,
    /// Longest silence in an answer.
    pub read_timeout: Span,
    /// Longest time for a manifest with all retries.
    pub manifest_timeout: Span,
    /// Longest time for a module with all retries.
    pub module_timeout: Span,
    /// The least speed of a download, per second, measured over `speedWindow`.
    pub min_bytes_per_second: ByteSize,
    /// The time over which the least speed is measured.
    pub speed_window: Span,
    /// How often a request is made that fails in a way that may pass.
    pub attempts: u32,
    /// The longest `Retry-After` that is waited for.
    pub max_retry_after: Span,
}

/// The mirrors of a registry, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawMirrors {
    /// The registry as images name it.
    pub registry: String,
    /// `host[:port][/path]`.
    pub mirrors: Vec<String>,
}

/// The signature policy, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RawVerification {
    /// PEM files with ECDSA P-256 public keys, one or more in each; a signature by any of them is enough. They are
    /// read anew each time signatures are checked.
    pub public_key_files: Vec<PathBuf>,
}

impl Default for RawOciConfig {
    fn default() -> Self {
        Self {
            cache_dir: PathBuf::new(),
            cache_max_bytes: ByteSize(1 << 30),
            max_module_bytes: ByteSize(32 << 20),
            insecure: Vec::new(),
            ca_files: Vec::new(),
            mirrors: Vec::new(),
            token_hosts: Vec::new(),
            redirect_hosts: Vec::new(),
            private_hosts: Vec::new(),
            pull_secret_files: Vec::new(),
            verification: None,
            connect_timeout: Span::from_ms(5_000),
            read_timeout: Span::from_ms(15_000),
            manifest_timeout: Span::from_ms(30_000),
            module_timeout: Span::from_ms(300_000),
            min_bytes_per_second: ByteSize(4 << 10),
            speed_window: Span::from_ms(10_000),
            attempts: 4,
            max_retry_after: Span::from_ms(20_000),
        }
    }
}

/// The configuration as meant: lists parsed, keys and certificates read.
#[derive(Debug, Clone)]
pub struct OciConfig {
    pub(super) cache_dir: PathBuf,
    pub(super) cache_max_bytes: u64,
    pub(super) access: Arc<Access>,
    pub(super) certificates: Vec<reqwest::Certificate>,
    pub(super) pull_secret_files: Vec<PathBuf>,
    key_files: Option<Vec<PathBuf>>,
    pub(super) limits: Limits,
}

/// How much and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) module_bytes: u64,
    pub(super) connect: Duration,
    pub(super) read: Duration,
    pub(super) manifest_total: Duration,
    pub(super) module_total: Duration,
    pub(super) bytes_per_second: u64,
    pub(super) speed_window: Duration,
    pub(super) attempts: u32,
    pub(super) max_retry_after: Duration,
}

impl OciConfig {
    /// Reads the configuration, and the files it names. All problems are reported at once.
    pub fn read(raw: &RawOciConfig) -> Result<Self, OciError> {
        let mut problems = Problems(Vec::new());
        if raw.cache_dir.as_os_str().is_empty() {
            problems.add("cacheDir", "is empty");
        }
        if !(1..=MAX_MODULE_BYTES).contains(&raw.max_module_bytes.0) {
            problems.add("maxModuleBytes", "is not between 1 and 128Mi");
        }
        if raw.attempts == 0 {
            problems.add("attempts", "is 0");
        }
        let times = [
            raw.connect_timeout,
            raw.read_timeout,
            raw.manifest_timeout,
            raw.module_timeout,
            raw.speed_window,
        ];
        if times.contains(&Span::from_ms(0)) {
            problems.add("timeouts", "one of them is 0");
        }
        let access = Access {
            insecure: problems.unwrap("insecure", HostList::parse(&raw.insecure)),
            token_hosts: problems.unwrap("tokenHosts", HostList::parse(&raw.token_hosts)),
            redirect_hosts: problems.unwrap("redirectHosts", HostList::parse(&raw.redirect_hosts)),
            private_hosts: problems.unwrap("privateHosts", HostList::parse(&raw.private_hosts)),
            mirrors: problems.unwrap("mirrors", mirrors(&raw.mirrors)),
        };
        let certificates = problems.unwrap("caFiles", certificates(&raw.ca_files));
        let key_files = raw.verification.as_ref().map(|raw| raw.public_key_files.clone());
        problems.unwrap("verification", key_files.as_deref().map(public_keys).transpose());
        problems.end()?;
        Ok(Self {
            cache_dir: raw.cache_dir.clone(),
            cache_max_bytes: raw.cache_max_bytes.0,
            access: Arc::new(access),
            certificates,
            pull_secret_files: raw.pull_secret_files.clone(),
            key_files,
            limits: limits(raw),
        })
    }

    /// The signature policy, its keys read anew: one that was taken out of its file is not trusted until the process
    /// ends.
    pub(super) fn policy(&self) -> Result<Policy, OciError> {
        let Some(files) = &self.key_files else { return Ok(Policy::None) };
        public_keys(files)
            .map(Policy::AnyOf)
            .map_err(|reason| OciError::ReadConfig { what: "verification".to_owned(), reason })
    }
}

fn limits(raw: &RawOciConfig) -> Limits {
    Limits {
        module_bytes: raw.max_module_bytes.0,
        connect: raw.connect_timeout.duration(),
        read: raw.read_timeout.duration(),
        manifest_total: raw.manifest_timeout.duration(),
        module_total: raw.module_timeout.duration(),
        bytes_per_second: raw.min_bytes_per_second.0,
        speed_window: raw.speed_window.duration(),
        attempts: raw.attempts,
        max_retry_after: raw.max_retry_after.duration(),
    }
}

struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, what: &str, reason: &str) {
        self.0.push(format!("{what} {reason}"));
    }

    fn unwrap<T: Default>(&mut self, what: &str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|reason| {
            self.0.push(format!("{what}: {reason}"));
            T::default()
        })
    }

    fn end(self) -> Result<(), OciError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(OciError::ReadConfig { what: "not valid".to_owned(), reason: self.0.join("; ") })
    }
}

fn mirrors(raw: &[RawMirrors]) -> Result<BTreeMap<RegistryName, Vec<Mirror>>, String> {
    let mut all: BTreeMap<RegistryName, Vec<Mirror>> = BTreeMap::new();
    for entry in raw {
        let registry = entry.registry.parse().map_err(|reason| format!("{:?}: {reason}", entry.registry))?;
        let list = all.entry(registry).or_default();
        for mirror in &entry.mirrors {
            list.push(mirror.parse()?);
        }
    }
    Ok(all)
}

fn certificates(files: &[PathBuf]) -> Result<Vec<reqwest::Certificate>, String> {
    let mut all = Vec::new();
    for path in files {
        let found = reqwest::Certificate::from_pem_bundle(&read(path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if found.is_empty() {
            return Err(format!("{} holds no certificate", path.display()));
        }
        all.extend(found);
    }
    Ok(all)
}

/// A policy that names no key is an error, not a policy that lets everything through.
fn public_keys(files: &[PathBuf]) -> Result<Vec<PublicKey>, String> {
    if files.is_empty() {
        return Err("names no public key".to_owned());
    }
    let mut keys = Vec::new();
    for path in files {
        let name = path.file_name().map_or_else(|| "key".into(), |name| name.to_string_lossy().into_owned());
        let pem =
            String::from_utf8(read(path)?).map_err(|_| format!("{} is not a PEM file", path.display()))?;
        keys.extend(
            PublicKey::all_from_pem(&name, &pem).map_err(|reason| format!("{}: {reason}", path.display()))?,
        );
    }
    Ok(keys)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported() {
        let raw: RawOciConfig = serde_json::from_str(
            r#"{"maxModuleBytes": "1Gi", "insecure": ["http://x"], "attempts": 0, "caFiles": ["/nowhere"],
                "mirrors": [{"registry": "docker.io", "mirrors": ["a/../b"]}], "verification": {"publicKeyFiles": []}}"#,
        )
        .unwrap();
        let error = OciConfig::read(&raw).unwrap_err().to_string();
        for word in
            ["cacheDir", "maxModuleBytes", "insecure", "attempts", "caFiles", "mirrors", "verification"]
        {
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(serde_json::from_str::<RawOciConfig>(r#"{"insecureRegistries": []}"#).is_err());
    }
}
