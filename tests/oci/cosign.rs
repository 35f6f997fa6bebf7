//! What cosign itself leaves in a registry, recorded by `tests/env/cosign record`, put into a real registry again: both of its forms
//! are good by its key, and by no other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coproc::oci::config::RawVerification;
use coproc::oci::signature::Verification;
use coproc::oci::{RawOciConfig, Subject};
use coproc::ports::{ModuleError, ModuleStore};
use serde::Deserialize;

use crate::world::{Registry, Signer, config, open, put_raw};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recording {
    cosign: String,
    public_key: String,
    blobs: BTreeMap<String, Blob>,
    manifests: Vec<Manifest>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Blob {
    Text(String),
    Bytes { base64: String },
}

impl Blob {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Bytes { base64 } => STANDARD.decode(base64).unwrap(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    name: String,
    media_type: String,
    #[serde(rename = "manifest")]
    text: String,
}

/// A registry that has what the recording has, but for manifests whose name has this in it.
fn play(recording: &Recording, but: &str) -> Registry {
    let registry = Registry::start("plain");
    let blobs: Vec<Vec<u8>> = recording.blobs.values().map(Blob::bytes).collect();
    let mut blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    for at in recording.manifests.iter().filter(|at| !at.name.contains(but)) {
        put_raw(
            registry.address(),
            "redact",
            &at.name,
            &at.media_type,
            &at.text,
            &std::mem::take(&mut blobs),
        );
    }
    registry
}

#[test]
fn what_cosign_signs_is_verified() {
    let recording: Recording = serde_json::from_str(include_str!("cosign.json")).unwrap();
    assert!(recording.cosign.starts_with("v3."), "{}", recording.cosign);
    let registry = play(&recording, "nothing");
    let dir = tempfile::tempdir().unwrap();
    let demanding = |name: &str, pem: &str| {
        let at = dir.path().join(name);
        std::fs::create_dir_all(&at).unwrap();
        let key = at.join("cosign.pub");
        std::fs::write(&key, pem).unwrap();
        open(&RawOciConfig {
            insecure: vec![registry.address().to_owned()],
            verification: Some(RawVerification { public_key_files: vec![key] }),
            ..config(&at)
        })
    };
    let theirs = demanding("theirs", &recording.public_key);
    let another = demanding("another", &Signer::new(1).pem());
    for form in ["simple", "bundle"] {
        let image = registry.image(&format!("redact:{form}"));
        let resolved = theirs.resolve(&image).unwrap();
        assert!(resolved.verified_by.is_some(), "{form}");
        assert_eq!(theirs.fetch(&resolved.module).unwrap().len(), 17, "{form}");
        let found = theirs.inspect(&Subject::Image(image.parse().unwrap())).unwrap();
        assert!(matches!(found.image.unwrap().signature, Verification::Verified { .. }), "{form}");
        for error in [another.resolve(&image).unwrap_err(), another.fetch(&resolved.module).unwrap_err()] {
            let ModuleError::Unverified(text) = error else { panic!("{form}: {error:?}") };
            assert!(text.contains("not by a key of the policy"), "{form}: {text}");
        }
    }
}

/// The same modules, with the signatures taken away.
#[test]
fn without_what_cosign_wrote_nothing_is_verified() {
    let recording: Recording = serde_json::from_str(include_str!("cosign.json")).unwrap();
    let registry = play(&recording, "sha256-");
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("cosign.pub");
    std::fs::write(&key, &recording.public_key).unwrap();
    let store = open(&RawOciConfig {
        insecure: vec![registry.address().to_owned()],
        verification: Some(RawVerification { public_key_files: vec![key] }),
        ..config(dir.path())
    });
    for form in ["simple", "bundle"] {
        let error = store.resolve(&registry.image(&format!("redact:{form}"))).unwrap_err();
        assert!(error.to_string().contains("it is not signed"), "{form}: {error}");
    }
}
