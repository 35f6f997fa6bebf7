//! The operator's way to registries: an image becomes a digest.
//!
//! A registry that does not answer must not hold up what has nothing to do with it: few are asked at the same time,
//! and one that did not answer is left alone for a while.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cli::operator::secret_files::SecretFiles;
use crate::core::disposition::Disposition;
use crate::core::units::{ByteSize, Span};
use crate::oci::config::{RawMirrors, RawVerification};
use crate::oci::{OciConfig, OciError, OciStore, RawOciConfig, Reference};
use crate::operator::validate::{Resolved, Verified};
use crate::operator::world::{Modules, Registry, ResolveError};
use crate::ports::Clock;

/// How long a registry is left alone that did not answer.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// Clients that are kept. Pools mostly agree on how registries are reached.
const CLIENTS: usize = 16;
/// How much the cache may hold: modules are only looked at here.
const CACHE_BYTES: u64 = 256 << 20;

/// Resolves images by asking registries.
pub struct Images {
    files: Arc<SecretFiles>,
    cache_dir: PathBuf,
    clock: Arc<dyn Clock>,
    clients: Mutex<Vec<(Registry, Arc<OciStore>)>>,
    silent: Mutex<HashMap<String, (Duration, String)>>,
}

impl Images {
    /// With a place for secrets and one for modules.
    pub fn new(files: Arc<SecretFiles>, cache_dir: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self { files, cache_dir, clock, clients: Mutex::default(), silent: Mutex::default() }
    }

    fn config(&self, registry: &Registry) -> Result<OciConfig, OciError> {
        OciConfig::read(&self.raw(registry).map_err(|error| OciError::ReadConfig {
            what: "secrets".into(),
            reason: format!("cannot be kept: {error}"),
        })?)
    }

    fn raw(&self, registry: &Registry) -> io::Result<RawOciConfig> {
        let files = |texts: &mut dyn Iterator<Item = &str>| -> io::Result<Vec<PathBuf>> {
            texts.map(|text| self.files.file(text)).collect()
        };
        let mirrors = registry.mirrors.iter();
        let keys = registry.public_keys.as_ref();
        let keys = keys.map(|keys| self.files.named(&keys.pem, &keys.name)).transpose()?;
        Ok(RawOciConfig {
            cache_dir: self.cache_dir.clone(),
            cache_max_bytes: ByteSize(CACHE_BYTES),
            insecure: registry.insecure.clone(),
            ca_files: files(&mut registry.authorities.iter().map(String::as_str))?,
            mirrors: mirrors
                .map(|at| RawMirrors { registry: at.registry.clone(), mirrors: at.mirrors.clone() })
                .collect(),
            token_hosts: registry.token_hosts.clone(),
            redirect_hosts: registry.redirect_hosts.clone(),
            private_hosts: registry.private_hosts.clone(),
            pull_secret_files: files(&mut registry.auth.iter().map(|auth| auth.0.as_str()))?,
            verification: keys.map(|file| RawVerification { public_key_files: vec![file] }),
            // The reconciliation comes back by itself: waiting here only holds up others.
            manifest_timeout: Span::from_ms(15_000),
            module_timeout: Span::from_ms(60_000),
            max_retry_after: Span::from_ms(2_000),
            attempts: 2,
            ..RawOciConfig::default()
        })
    }

    fn client(&self, registry: &Registry) -> Result<Arc<OciStore>, OciError> {
        let mut clients = self.clients.lock();
        if let Some((_, client)) = clients.iter().find(|(of, _)| of == registry) {
            return Ok(client.clone());
        }
        let client = Arc::new(OciStore::open(self.config(registry)?)?);
        if clients.len() == CLIENTS {
            clients.remove(0);
        }
        clients.push((registry.clone(), client.clone()));
        Ok(client)
    }

    fn ask(&self, image: &str, registry: &Registry) -> Result<Resolved, ResolveError> {
        let reference: Reference = image.parse().map_err(|bad| failure(&OciError::from(bad)))?;
        let host = reference.registry().as_str().to_owned();
        let now = self.clock.monotonic();
        if let Some((since, message)) = self.silent.lock().get(&host)
            && now.saturating_sub(*since) < LEFT_ALONE
        {
            return Err(unavailable(message.clone()));
        }
        let asked = self.client(registry).and_then(|client| client.resolve_image(&reference));
        let found = asked.map_err(|error| failure(&error));
        let mut silent = self.silent.lock();
        match &found {
            Err(error) if error.disposition != Disposition::User => {
                drop(silent.insert(host, (self.clock.monotonic(), error.message.clone())));
            }
            _ => drop(silent.remove(&host)),
        }
        let found = found?;
        let pinned = found.module.image.unwrap_or_else(|| image.to_owned());
        let verified = found.verified_by.zip(registry.policy());
        let verified = verified.map(|(key, policy)| Verified { key, policy });
        Ok(Resolved { image: image.to_owned(), pinned, digest: found.module.digest, verified })
    }
}

impl Modules for Images {
    fn check(&self, registry: &Registry) -> Result<(), String> {
        self.config(registry).map(drop).map_err(|error| error.to_string())
    }

    fn resolve(&self, image: &str, registry: &Registry) -> Result<Resolved, ResolveError> {
        self.ask(image, registry)
    }
}

fn unavailable(message: String) -> ResolveError {
    ResolveError { reason: "RegistryUnavailable", message, disposition: Disposition::Transient }
}

fn failure(error: &OciError) -> ResolveError {
    let reason = match error {
        _ if error.disposition() == Disposition::Transient => return unavailable(error.to_string()),
        OciError::ParseReference(_) => "InvalidImage",
        OciError::NotFound { .. } => "ImageNotFound",
        OciError::Denied { .. } => "ImageAccessDenied",
        OciError::RefuseHost { .. } | OciError::RefuseAddress { .. } => "RegistryNotAllowed",
        OciError::ReadConfig { .. } | OciError::ReadFile { .. } | OciError::NoAuthorities { .. } => {
            "InvalidRegistryConfig"
        }
        OciError::NotAModule { .. } | OciError::NotWasm { .. } => "NotAModule",
        OciError::TooLarge { .. } => "ModuleTooLarge",
        OciError::Unverified { .. } => "SignatureInvalid",
        _ => "RegistryFailed",
    };
    let advice = match reason {
        "ImageNotFound" => ": push it, or correct the image; it is asked for again every few minutes",
        "ImageAccessDenied" => {
            ": name a Secret with credentials in spec.registry.pullSecrets of the RuntimePool"
        }
        "RegistryNotAllowed" => " (the fields of spec.registry of the RuntimePool)",
        _ => "",
    };
    ResolveError { reason, message: format!("{error}{advice}"), disposition: error.disposition() }
}
