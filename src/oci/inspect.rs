//! What there is to know about a module, from a file or from a registry, without running it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::core::digest::Digest;
use crate::oci::binary::{Interface, interface_of};
use crate::oci::digest_of;
use crate::oci::error::OciError;
use crate::oci::reference::Reference;
use crate::oci::signature::Verification;
use crate::oci::store::OciStore;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An image.
    Image(Reference),
    /// A file.
    File(PathBuf),
}

impl Subject {
    /// An image if there is no such file and it reads like an image's name. What ends in `.wasm` is a file, also
    /// when it is missing: nobody is asked for the parts of a path.
    pub fn from_path(path: &Path) -> Self {
        let is_file = path.extension().is_some_and(|ending| ending == "wasm") || path.exists();
        match path.to_str().and_then(|text| text.parse().ok()).filter(|_| !is_file) {
            Some(image) => Self::Image(image),
            None => Self::File(path.to_owned()),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The file, or the image pinned to its manifest.
    pub subject: String,
    /// The module's digest.
    pub digest: Digest,
    /// The module's size, in bytes.
    pub size: u64,
    /// Kind, contract, imports and exports, read from the bytes.
    #[serde(flatten)]
    pub interface: Interface,
    /// What only images have.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFacts>,
}

/// What is known of an image besides its module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageFacts {
    /// The manifest's digest: what the name led to.
    pub manifest: Digest,
    /// The media type of its config: which layout it follows.
    pub config_media_type: String,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// How it stands with the signature policy.
    pub signature: Verification,
}

/// Looks at a file of at most `limit` bytes. Needs no store.
pub fn inspect_file(path: &Path, limit: u64) -> Result<Inspection, OciError> {
    let fault =
        |error: std::io::Error| OciError::ReadFile { path: path.to_owned(), reason: error.to_string() };
    let mut bytes = Vec::new();
    File::open(path).map_err(fault)?.take(limit + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > limit {
        return Err(OciError::TooLarge { what: path.display().to_string(), limit });
    }
    let subject = path.display().to_string();
    let interface =
        interface_of(&bytes).map_err(|reason| OciError::NotWasm { what: subject.clone(), reason })?;
    Ok(Inspection { subject, digest: digest_of(&bytes), size: bytes.len() as u64, interface, image: None })
}

impl OciStore {
    /// Looks at a file or an image. A signature that the policy rejects is part of the answer, not an error.
    pub fn inspect(&self, subject: &Subject) -> Result<Inspection, OciError> {
        let image = match subject {
            Subject::File(path) => return inspect_file(path, self.max_module_bytes()),
            Subject::Image(image) => image,
        };
        let artifact = self.open_artifact(image)?;
        let signature = self.verification(&artifact)?;
        let (bytes, interface) = self.read_artifact(&artifact)?;
        Ok(Inspection {
            subject: artifact.pinned.to_string(),
            digest: artifact.layer.digest,
            size: bytes.len() as u64,
            interface,
            image: Some(ImageFacts {
                manifest: artifact.chain[0],
                config_media_type: artifact.manifest.config.media_type.clone(),
                annotations: artifact.manifest.annotations.clone().unwrap_or_default(),
                signature,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_images_are_told_apart() {
        let is_image = |text: &str| matches!(Subject::from_path(Path::new(text)), Subject::Image(_));
        for image in ["r.example/redact:1.2", "r.example/redact", "localhost:5000/a/redact.wasm:1"] {
            assert!(is_image(image), "{image}");
        }
        for file in ["redact.wasm", "target.d/redact.wasm", "src/oci/inspect.rs", "../redact", "/r.example/a"]
        {
            assert!(!is_image(file), "{file}");
        }
    }
}
