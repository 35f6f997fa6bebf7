//! Signatures: does one of these keys vouch for this manifest?
//!
//! Key-based cosign signatures, checked offline: no certificate authority, no transparency log, no clock. Two
//! forms are read: the "simple signing" payload at the tag `sha256-<hex>.sig`, and the Sigstore bundle (a DSSE
//! envelope around an in-toto statement) that newer versions attach as a referrer. Keyless signatures are a
//! design only: `docs/design/keyless-verification.md`. Pure: fetching is in `store`.
//!
//! What a signature proves is that a holder of the key named this manifest's digest. The repository's name in the
//! payload is not compared, as with `cosign verify`: mirrors carry other names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use serde::{Deserialize, Serialize};

use crate::core::digest::Digest;
use crate::oci::digest_of;

/// Where cosign puts the signature in the payload layer's descriptor.
pub(super) const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// The media type of simple-signing payloads.
pub(super) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The media type of bundles, without their version.
pub(super) const BUNDLE_PREFIX: &str = "application/vnd.dev.sigstore.bundle.v0.";
const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const COSIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// A public key, with a name for people.
#[derive(Debug, Clone)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
    fingerprint: Digest,
}

/// Which signatures are demanded.
#[derive(Debug, Clone, Default)]
pub enum Policy {
    /// None.
    #[default]
    None,
    /// A good one by any of these keys; an empty list lets nothing through.
    AnyOf(Vec<PublicKey>),
}

/// A signature as found at the registry: what was signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case")]
pub(super) enum Evidence {
    /// cosign's original form. Both are base64 here.
    SimpleSigning { payload: String, signature: String },
    /// A Sigstore bundle, as JSON.
    Bundle { bundle: String },
}

/// How the check of an image's signatures came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Verification {
    /// The policy asks for none; so many were found.
    NotRequired {
        /// How many signatures there are, good or not.
        found: usize,
    },
    /// There is a good one.
    #[serde(rename_all = "camelCase")]
    Verified {
        /// The key's name and the start of its fingerprint.
        key: String,
        /// Which manifest it vouches for.
        manifest: Digest,
    },
    /// There is no good one.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// The line that ends a public key in PEM.
const END: &str = "-----END PUBLIC KEY-----";

impl PublicKey {
    /// Reads the public keys of a file, at least one: while a key is being exchanged, the old one and the new one.
    pub fn all_from_pem(name: &str, pem: &str) -> Result<Vec<Self>, String> {
        let parts: Vec<&str> = pem.split_inclusive(END).filter(|part| !part.trim().is_empty()).collect();
        if parts.is_empty() {
            return Err("it is empty".to_owned());
        }
        parts.into_iter().map(|part| Self::from_pem(name.to_owned(), part)).collect()
    }

    /// Reads a public key in PEM (`-----BEGIN PUBLIC KEY-----`), ECDSA on P-256, which is what
    /// `cosign generate-key-pair` makes.
    pub fn from_pem(name: String, pem: &str) -> Result<Self, String> {
        let key = VerifyingKey::from_public_key_pem(pem.trim())
            .map_err(|_| "it is no ECDSA P-256 public key in PEM".to_owned())?;
        let der = key.to_public_key_der().map_err(|error| error.to_string())?;
        Ok(Self { name, key, fingerprint: digest_of(der.as_bytes()) })
    }

    /// The name and the start of the fingerprint (the sha256 of the key in DER).
    pub fn label(&self) -> String {
        format!("{} ({})", self.name, self.fingerprint.short())
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_der(signature).is_ok_and(|signature| self.key.verify(message, &signature).is_ok())
    }
}

#[derive(Deserialize)]
struct SimplePayload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<StatementSubject>,
}

#[derive(Deserialize)]
struct StatementSubject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

impl Evidence {
    /// cosign's original form, as the registry has it: the payload's bytes, the signature in base64.
    pub(super) fn simple_signing(payload: &[u8], signature: &str) -> Self {
        Self::SimpleSigning { payload: STANDARD.encode(payload), signature: signature.to_owned() }
    }

    /// The key that vouches for the manifest, or why none does.
    pub(super) fn check(&self, keys: &[PublicKey], manifest: Digest) -> Result<String, String> {
        match self {
            Self::SimpleSigning { payload, signature } => {
                let (payload, signature) = (decode(payload)?, decode(signature)?);
                let key = signer(keys, &payload, &signature)?;
                check_simple(&payload, manifest)?;
                Ok(key)
            }
            Self::Bundle { bundle } => check_bundle(bundle, keys, manifest),
        }
    }
}

/// The key that vouches for the manifest in any of the signatures, or why none of them is good.
pub(super) fn verify(evidence: &[Evidence], keys: &[PublicKey], manifest: Digest) -> Result<String, String> {
    let mut reasons = Vec::new();
    for one in evidence {
        match one.check(keys, manifest) {
            Ok(key) => return Ok(key),
            Err(reason) if reasons.contains(&reason) => {}
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() { Err("it is not signed".to_owned()) } else { Err(reasons.join("; ")) }
}

/// The signature comes first: nothing is parsed that no key has signed.
fn signer(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Result<String, String> {
    let key = keys.iter().find(|key| key.verifies(message, signature));
    key.map(PublicKey::label).ok_or_else(|| "it is signed, but not by a key of the policy".to_owned())
}

fn check_simple(payload: &[u8], manifest: Digest) -> Result<(), String> {
    let payload: SimplePayload =
        serde_json::from_slice(payload).map_err(|_| "the signed payload is not cosign's".to_owned())?;
    if payload.critical.kind != SIMPLE_SIGNING_TYPE {
        return Err(format!("the signed payload is of type {:?}", payload.critical.kind));
    }
    same_manifest(payload.critical.image.docker_manifest_digest, manifest)
}

fn check_bundle(bundle: &str, keys: &[PublicKey], manifest: Digest) -> Result<String, String> {
    let bundle: Bundle =
        serde_json::from_str(bundle).map_err(|_| "a bundle holds no signed envelope".to_owned())?;
    let envelope = bundle.dsse_envelope;
    let payload = decode(&envelope.payload)?;
    let message = pre_authentication(&envelope.payload_type, &payload);
    let mut key = Err("a bundle holds no signature".to_owned());
    for signature in &envelope.signatures {
        key = signer(keys, &message, &decode(&signature.sig)?);
        if key.is_ok() {
            break;
        }
    }
    let key = key?;
    let statement: Statement = serde_json::from_slice(&payload)
        .map_err(|_| "the signed envelope holds no in-toto statement".to_owned())?;
    if envelope.payload_type != IN_TOTO || !statement.kind.starts_with("https://in-toto.io/Statement/v") {
        return Err("the signed envelope holds no in-toto statement".to_owned());
    }
    if statement.predicate_type != COSIGN_PREDICATE {
        return Err(format!("the signed statement is about {:?}, not a signature", statement.predicate_type));
    }
    let names =
        |subject: &StatementSubject| subject.digest.sha256.as_deref() == Some(manifest.hex().as_str());
    if !statement.subject.iter().any(names) {
        return Err("the signature is for another manifest".to_owned());
    }
    Ok(key)
}

/// DSSE's pre-authentication encoding: what the signature is over.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

fn same_manifest(signed: Digest, manifest: Digest) -> Result<(), String> {
    if signed == manifest { Ok(()) } else { Err(format!("the signature is for another manifest, {signed}")) }
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text.trim()).map_err(|_| "a signature is not base64".to_owned())
}

#[cfg(test)]
mod tests;
