//! Writing a module to a registry, in the CNCF layout.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::core::digest::Digest;
use crate::oci::binary::interface_of;
use crate::oci::digest_of;
use crate::oci::error::OciError;
use crate::oci::manifest::{Descriptor, ImageManifest, MANIFEST, WASM_CONFIG, WASM_LAYER, WasmConfig};
use crate::oci::reference::Reference;
use crate::oci::store::OciStore;

/// What goes along with a module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Annotations of the manifest, for instance `org.opencontainers.image.source`.
    pub annotations: BTreeMap<String, String>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The image, pinned to its manifest.
    pub image: Reference,
    /// The manifest's digest: what to sign.
    pub manifest: Digest,
    /// The module's digest.
    pub digest: Digest,
    /// The module's size, in bytes.
    pub size: u64,
}

impl OciStore {
    /// Writes a module under a tag, or under its manifest's digest when the reference has no tag. The same module
    /// with the same annotations gives the same manifest, whenever it is pushed.
    pub fn push(&self, bytes: &[u8], image: &Reference, options: &PushOptions) -> Result<Pushed, OciError> {
        let limit = self.max_module_bytes();
        if bytes.len() as u64 > limit {
            return Err(OciError::TooLarge { what: format!("the module for {image}"), limit });
        }
        let interface = interface_of(bytes)
            .map_err(|reason| OciError::NotWasm { what: format!("the file for {image}"), reason })?;
        let digest = digest_of(bytes);
        let fault = |error: serde_json::Error| OciError::NotAModule {
            image: image.to_string(),
            reason: format!("its manifest cannot be written: {error}"),
        };
        let config = serde_json::to_vec(&WasmConfig::describe(digest, &interface)).map_err(fault)?;
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::new(WASM_CONFIG, digest_of(&config), config.len()),
            layers: vec![Descriptor::new(WASM_LAYER, digest, bytes.len())],
            subject: None,
            annotations: (!options.annotations.is_empty()).then(|| options.annotations.clone()),
        };
        let manifest = serde_json::to_vec(&manifest).map_err(fault)?;
        let manifest_digest = digest_of(&manifest);
        if let Some(wanted) = image.digest()
            && wanted != manifest_digest
        {
            let what = format!("the manifest for {image}");
            return Err(OciError::WrongDigest { what, wanted, found: manifest_digest });
        }
        self.registry().push_blob(image, bytes)?;
        self.registry().push_blob(image, &config)?;
        self.registry().push_manifest(image, MANIFEST, &manifest)?;
        Ok(Pushed {
            image: image.pinned(manifest_digest),
            manifest: manifest_digest,
            digest,
            size: bytes.len() as u64,
        })
    }
}
