//! The module store over OCI registries: resolve a name once, then fetch by digest, each digest once.
//!
//! Two digests have a part. A *manifest's* digest is what a registry pins and what a signature names; a *module's*
//! digest is the sha256 of the WebAssembly bytes, and the only thing that nodes run by. A deployment carries
//! both: `digest` is the module's, `image` ends in `@<manifest digest>`. Without a policy a node needs the module's
//! alone; with one it walks from the signed manifest down to the module.

mod artifact;
mod verification;

use crate::core::deployment::ModuleRef;
use crate::core::digest::Digest;
use crate::oci::binary::kind_of;
use crate::oci::cache::Cache;
use crate::oci::config::OciConfig;
use crate::oci::error::OciError;
use crate::oci::flight::Flights;
use crate::oci::reference::Reference;
use crate::oci::registry::Registry;
use crate::oci::signature::Policy;
use crate::ports::{ModuleError, ModuleStore, ResolvedModule};

/// The store. Every call blocks: never on a lane's thread, never on a thread of an asynchronous runtime.
pub struct OciStore {
    registry: Registry,
    cache: Cache,
    config: OciConfig,
    fetches: Flights<()>,
    checks: Flights<String>,
}

impl OciStore {
    /// Opens the cache and starts the client. Nothing is asked of any registry yet.
    pub fn open(config: OciConfig) -> Result<Self, OciError> {
        Ok(Self {
            registry: Registry::new(&config)?,
            cache: Cache::open(&config.cache_dir, config.cache_max_bytes)?,
            config,
            fetches: Flights::default(),
            checks: Flights::default(),
        })
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn max_module_bytes(&self) -> u64 {
        self.config.limits.module_bytes
    }

    /// What an image stands for now. Checks everything that can be checked before it is deployed: the policy, the
    /// layout, the size, that the bytes are WebAssembly and what their config says. The module is in the cache then.
    pub fn resolve_image(&self, image: &Reference) -> Result<ResolvedModule, OciError> {
        let artifact = self.open_artifact(image)?;
        let verified_by = match self.config.policy()? {
            Policy::None => None,
            Policy::AnyOf(keys) => Some(self.check_signatures(&artifact, &keys)?),
        };
        let (bytes, _) = self.read_artifact(&artifact)?;
        let module = ModuleRef { digest: artifact.layer.digest, image: Some(artifact.pinned.to_string()) };
        Ok(ResolvedModule { module, size: bytes.len() as u64, verified_by })
    }

    /// The bytes of a module, from the cache or from the registry of its image.
    pub fn fetch_module(&self, module: &ModuleRef) -> Result<Vec<u8>, OciError> {
        let digest = module.digest;
        let image: Option<Reference> = module.image.as_deref().map(str::parse).transpose()?;
        if let Policy::AnyOf(keys) = self.config.policy()? {
            self.check_module(digest, image.as_ref(), &keys)?;
        }
        match image {
            Some(image) => self.module_bytes(&image, digest, self.max_module_bytes()),
            None => self.cache.get(digest, self.max_module_bytes())?.ok_or_else(|| OciError::NoSource {
                digest,
                reason: "it comes without an image, and is not in the cache".to_owned(),
            }),
        }
    }

    /// The bytes of a module by its digest. Of all threads and processes that share the cache, one fetches it.
    pub(super) fn module_bytes(
        &self,
        image: &Reference,
        digest: Digest,
        limit: u64,
    ) -> Result<Vec<u8>, OciError> {
        let max = self.max_module_bytes();
        // Twice: between landing and reading, a full cache may have dropped it.
        for _ in 0..2 {
            if let Some(bytes) = self.cache.get(digest, max)? {
                return Ok(bytes);
            }
            self.fetches.run(format!("{digest} {image}"), || self.download(image, digest, limit))?;
        }
        self.cache.get(digest, max)?.ok_or_else(|| OciError::NoSource {
            digest,
            reason: "the cache drops it as soon as it is there: make `cacheMaxBytes` larger".to_owned(),
        })
    }

    fn download(&self, image: &Reference, digest: Digest, limit: u64) -> Result<(), OciError> {
        let _lock = self.cache.lock(digest, self.config.limits.module_total)?;
        if self.cache.get(digest, self.max_module_bytes())?.is_some() {
            return Ok(());
        }
        let mut partial = self.cache.begin()?;
        self.registry.blob(image, digest, limit, &mut partial)?;
        kind_of(partial.head()).map_err(|reason| OciError::NotWasm { what: image.to_string(), reason })?;
        partial.commit(digest)?;
        tracing::info!(%image, %digest, "fetched a module");
        Ok(())
    }
}

impl ModuleStore for OciStore {
    fn fetch(&self, module: &ModuleRef) -> Result<Vec<u8>, ModuleError> {
        self.fetch_module(module).map_err(|error| match error {
            OciError::NotFound { .. } => {
                ModuleError::NotFound { digest: module.digest, reason: error.to_string() }
            }
            error => error.into(),
        })
    }

    fn resolve(&self, image: &str) -> Result<ResolvedModule, ModuleError> {
        let image: Reference = image.parse().map_err(OciError::from)?;
        Ok(self.resolve_image(&image)?)
    }
}
