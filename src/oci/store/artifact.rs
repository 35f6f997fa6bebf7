//! From an image's name to its one module: index, manifest, layer, config, each by its digest.

use crate::core::digest::Digest;
use crate::oci::binary::{Interface, interface_of};
use crate::oci::error::OciError;
use crate::oci::manifest::{Descriptor, Document, ImageManifest, WasmConfig};
use crate::oci::reference::Reference;
use crate::oci::registry::{FetchedManifest, MAX_MANIFEST_BYTES};
use crate::oci::store::OciStore;

const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// An image, opened down to the descriptor of its module.
#[derive(Debug, Clone)]
pub(in crate::oci) struct Artifact {
    /// The image, pinned to what its name led to.
    pub(in crate::oci) pinned: Reference,
    /// The manifests on the way, outermost first: a signature of any of them vouches for the module.
    pub(in crate::oci) chain: Vec<Digest>,
    pub(in crate::oci) manifest: Box<ImageManifest>,
    pub(in crate::oci) layer: Descriptor,
}

impl OciStore {
    /// Opens an image. A tag is asked of the registry; what a digest names comes from the cache if it is there.
    pub(in crate::oci) fn open_artifact(&self, image: &Reference) -> Result<Artifact, OciError> {
        let root = self.manifest(image)?;
        let pinned = image.pinned(root.digest);
        let fault = |reason: String| OciError::NotAModule { image: pinned.to_string(), reason };
        let mut chain = vec![root.digest];
        let manifest = match root.document {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let entry = index.module_entry().map_err(fault)?;
                chain.push(entry.digest);
                match self.manifest(&image.pinned(entry.digest))?.document {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => return Err(fault("its index points to another index".to_owned())),
                }
            }
        };
        let layer = manifest.module_layer().map_err(fault)?.clone();
        let limit = self.max_module_bytes();
        if layer.size > limit {
            return Err(OciError::TooLarge { what: format!("module {} of {pinned}", layer.digest), limit });
        }
        Ok(Artifact { pinned, chain, manifest, layer })
    }

    fn manifest(&self, image: &Reference) -> Result<FetchedManifest, OciError> {
        let cached = match image.digest() {
            Some(digest) => self.cache.get(digest, MAX_MANIFEST_BYTES)?.map(|bytes| (digest, bytes)),
            None => None,
        };
        if let Some((digest, bytes)) = cached {
            let document = Document::read(&bytes, None)
                .map_err(|reason| OciError::NotAModule { image: image.to_string(), reason })?;
            return Ok(FetchedManifest { bytes, digest, document });
        }
        let fetched = self.registry.manifest(image)?;
        self.cache.put(&fetched.bytes)?;
        Ok(fetched)
    }

    /// The module's bytes and what they are, compared with what manifest and config say.
    pub(in crate::oci) fn read_artifact(
        &self,
        artifact: &Artifact,
    ) -> Result<(Vec<u8>, Interface), OciError> {
        let image = &artifact.pinned;
        let fault = |reason: String| OciError::NotAModule { image: image.to_string(), reason };
        let config = if artifact.manifest.is_cncf() { Some(self.config_of(artifact)?) } else { None };
        config.iter().try_for_each(|config| config.check_layer(artifact.layer.digest)).map_err(fault)?;
        let bytes = self.module_bytes(image, artifact.layer.digest, artifact.layer.size)?;
        if bytes.len() as u64 != artifact.layer.size {
            return Err(fault(format!("its layer has {} bytes, not {}", bytes.len(), artifact.layer.size)));
        }
        let interface =
            interface_of(&bytes).map_err(|reason| OciError::NotWasm { what: image.to_string(), reason })?;
        if let Some(config) = config {
            config.check_bytes(&interface).map_err(fault)?;
        }
        Ok((bytes, interface))
    }

    fn config_of(&self, artifact: &Artifact) -> Result<WasmConfig, OciError> {
        let descriptor = &artifact.manifest.config;
        let bytes = if let Some(bytes) = self.cache.get(descriptor.digest, MAX_CONFIG_BYTES)? {
            bytes
        } else {
            let bytes = self.registry.small_blob(&artifact.pinned, descriptor, MAX_CONFIG_BYTES)?;
            self.cache.put(&bytes)?;
            bytes
        };
        serde_json::from_slice(&bytes).map_err(|error| OciError::NotAModule {
            image: artifact.pinned.to_string(),
            reason: format!("its config cannot be read: {error}"),
        })
    }
}
