//! Signatures of an image: where they are, and that good ones are still good when the registry is down.
//!
//! Good signatures are kept in the cache and checked again, against the keys of the day, each time they are used.
//! What is kept is evidence, not a verdict: changing the file gains nothing.

use crate::core::digest::Digest;
use crate::oci::error::OciError;
use crate::oci::manifest::{Descriptor, Document};
use crate::oci::reference::Reference;
use crate::oci::signature::{
    BUNDLE_PREFIX, Evidence, Policy, PublicKey, SIGNATURE_ANNOTATION, SIMPLE_SIGNING, Verification, verify,
};
use crate::oci::store::OciStore;
use crate::oci::store::artifact::Artifact;

/// More signatures of one manifest than this are not looked at.
const MAX_SIGNATURES: usize = 32;
const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
const MAX_BUNDLE_BYTES: u64 = 1 << 20;
const MAX_EVIDENCE_BYTES: u64 = 8 << 20;

impl OciStore {
    /// Whether a module may run: its image is pinned to a manifest that has it, and a key vouches for that.
    pub(super) fn check_module(
        &self,
        module: Digest,
        image: Option<&Reference>,
        keys: &[PublicKey],
    ) -> Result<String, OciError> {
        let fault = |image: &dyn std::fmt::Display, reason: &str| OciError::Unverified {
            image: image.to_string(),
            reason: reason.to_owned(),
        };
        let image =
            image.ok_or_else(|| fault(&module, "it comes without an image, so there is no signature"))?;
        let root = image.digest().ok_or_else(|| fault(image, "it is not pinned to a manifest's digest"))?;
        self.checks.run(format!("{module} {image}"), || {
            let _lock = self.cache.lock(root, self.config.limits.module_total)?;
            let artifact = self.open_artifact(image)?;
            if artifact.layer.digest != module {
                return Err(fault(image, "its manifest is for another module"));
            }
            self.check_signatures(&artifact, keys)
        })
    }

    /// The key that vouches for an image, by what is in the cache, else by what is at the registry.
    pub(super) fn check_signatures(
        &self,
        artifact: &Artifact,
        keys: &[PublicKey],
    ) -> Result<String, OciError> {
        for &manifest in &artifact.chain {
            let kept = self.cache.evidence(manifest, MAX_EVIDENCE_BYTES)?.unwrap_or_default();
            let kept: Vec<Evidence> = serde_json::from_slice(&kept).unwrap_or_default();
            if let Ok(key) = verify(&kept, keys, manifest) {
                return Ok(key);
            }
        }
        let mut reasons = Vec::new();
        for &manifest in &artifact.chain {
            let evidence = self.signatures_of(&artifact.pinned, manifest)?;
            match verify(&evidence, keys, manifest) {
                Ok(key) => {
                    let kept = serde_json::to_vec(&evidence).unwrap_or_default();
                    self.cache.put_evidence(manifest, &kept)?;
                    return Ok(key);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        Err(OciError::Unverified { image: artifact.pinned.to_string(), reason: reasons.join("; ") })
    }

    /// How an image stands with the policy, for people. Only failures to reach the registry are errors.
    pub(in crate::oci) fn verification(&self, artifact: &Artifact) -> Result<Verification, OciError> {
        let Policy::AnyOf(keys) = self.config.policy()? else {
            let mut found = 0;
            for &manifest in &artifact.chain {
                found += self.signatures_of(&artifact.pinned, manifest)?.len();
            }
            return Ok(Verification::NotRequired { found });
        };
        match self.check_signatures(artifact, &keys) {
            Ok(key) => Ok(Verification::Verified { key, manifest: artifact.chain[0] }),
            Err(OciError::Unverified { reason, .. }) => Ok(Verification::Rejected { reason }),
            Err(error) => Err(error),
        }
    }

    /// The signatures at the registry, in both forms, good or not.
    fn signatures_of(&self, image: &Reference, manifest: Digest) -> Result<Vec<Evidence>, OciError> {
        let mut found = Vec::new();
        for layer in self.layers(&image.with_tag(format!("sha256-{}.sig", manifest.hex())))? {
            let signature = layer.annotations.as_ref().and_then(|all| all.get(SIGNATURE_ANNOTATION));
            if let (SIMPLE_SIGNING, Some(signature)) = (layer.media_type.as_str(), signature) {
                let payload = self.registry.small_blob(image, &layer, MAX_PAYLOAD_BYTES)?;
                found.push(Evidence::simple_signing(&payload, signature));
            }
        }
        let is_bundle = |text: Option<&str>| text.is_some_and(|text| text.starts_with(BUNDLE_PREFIX));
        let referrers = self.registry.referrers(image, manifest)?;
        let bundles = referrers.iter().filter(|entry| is_bundle(entry.artifact_type.as_deref()));
        for entry in bundles.take(MAX_SIGNATURES) {
            for layer in self.layers(&image.pinned(entry.digest))? {
                if is_bundle(Some(&layer.media_type)) {
                    let bundle = self.registry.small_blob(image, &layer, MAX_BUNDLE_BYTES)?;
                    found.push(Evidence::Bundle { bundle: String::from_utf8_lossy(&bundle).into_owned() });
                }
            }
        }
        Ok(found)
    }

    /// The layers of a manifest; none when there is no such manifest.
    fn layers(&self, image: &Reference) -> Result<Vec<Descriptor>, OciError> {
        match self.registry.manifest(image).map(|fetched| fetched.document) {
            Ok(Document::Manifest(mut manifest)) => {
                manifest.layers.truncate(MAX_SIGNATURES);
                Ok(manifest.layers)
            }
            Ok(Document::Index(_)) => Ok(Vec::new()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
