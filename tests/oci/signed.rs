//! Signatures at a real registry: a signed module runs, an unsigned or wrongly signed one does not.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coproc::core::deployment::ModuleRef;
use coproc::core::digest::Digest;
use coproc::core::disposition::Disposition;
use coproc::oci::signature::Verification;
use coproc::oci::{OciStore, PushOptions, Pushed, RawOciConfig, Subject};
use coproc::ports::{ModuleError, ModuleStore};

use crate::world::{
    INDEX, MANIFEST, Registry, Signer, config, descriptor, digest_of, module, open, put_raw, sign_as_cosign,
    store,
};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn sign(registry: &Registry, by: &Signer, signed: Digest, at: Digest) {
    sign_as_cosign(registry.address(), "team/redact", by, signed, at);
}

/// Attaches a bundle as a referrer; docker-registry 2.8 has no referrers API, so by the tag that stands in for it.
fn attach_bundle(registry: &Registry, by: &Signer, signed: Digest) {
    let statement = format!(
        r#"{{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {{}}, "subject": [{{"digest": {{"sha256": "{}"}}}}]}}"#,
        signed.hex()
    );
    let kind = "application/vnd.in-toto+json";
    let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let bundle = format!(
        r#"{{"mediaType": "{BUNDLE}", "verificationMaterial": {{"publicKey": {{"hint": ""}}}}, "dsseEnvelope":
            {{"payload": "{}", "payloadType": "{kind}", "signatures": [{{"sig": "{}"}}]}}}}"#,
        STANDARD.encode(&statement),
        by.sign(message.as_bytes())
    );
    let empty = b"{}".as_slice();
    let manifest = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "artifactType": "{BUNDLE}", "config": {}, "layers": [{}]}}"#,
        descriptor("application/vnd.oci.empty.v1+json", empty),
        descriptor(BUNDLE, bundle.as_bytes())
    );
    put_raw(registry.address(), "team/redact", "bundle", MANIFEST, &manifest, &[bundle.as_bytes(), empty]);
    let entry =
        descriptor(MANIFEST, manifest.as_bytes()).replace('}', &format!(r#", "artifactType": "{BUNDLE}"}}"#));
    let index = format!(r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [{entry}]}}"#);
    put_raw(registry.address(), "team/redact", &format!("sha256-{}", signed.hex()), INDEX, &index, &[]);
}

struct World {
    registry: Registry,
    dir: tempfile::TempDir,
    image: String,
    pushed: Pushed,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start("plain");
        let dir = tempfile::tempdir().unwrap();
        let image = registry.image("team/redact:1");
        let store = store(dir.path(), &[registry.address()]);
        let pushed = store.push(&module(1), &image.parse().unwrap(), &PushOptions::default()).unwrap();
        Self { registry, dir, image, pushed }
    }

    fn demanding(&self, dir: &Path, key: &Signer) -> OciStore {
        open(&RawOciConfig {
            insecure: vec![self.registry.address().to_owned()],
            verification: Some(key.public(dir)),
            ..config(dir)
        })
    }

    fn refused(&self, key: &Signer, word: &str) {
        let dir = tempfile::tempdir().unwrap();
        let store = self.demanding(dir.path(), key);
        let pinned = ModuleRef { digest: self.pushed.digest, image: Some(self.pushed.image.to_string()) };
        for error in [store.resolve(&self.image).unwrap_err(), store.fetch(&pinned).unwrap_err()] {
            let ModuleError::Unverified(text) = &error else { panic!("{error:?}") };
            assert!(text.contains(word), "{word}: {text}");
            assert_eq!(error.disposition(), Disposition::User);
        }
        let cached = dir.path().join("oci-v1/blobs").join(self.pushed.digest.hex());
        assert!(!cached.exists(), "what is refused is not fetched");
        let found = store.inspect(&Subject::Image(self.image.parse().unwrap())).unwrap();
        let Verification::Rejected { reason } = found.image.unwrap().signature else {
            panic!("it is not good")
        };
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn unsigned_and_wrongly_signed_modules_are_refused() {
    let world = World::new();
    let (good, wrong) = (Signer::new(1), Signer::new(2));
    world.refused(&good, "not signed");
    sign(&world.registry, &wrong, world.pushed.manifest, world.pushed.manifest);
    world.refused(&good, "not by a key of the policy");
    // An old signature, of another manifest, replayed here.
    sign(&world.registry, &good, digest_of(b"another"), world.pushed.manifest);
    world.refused(&good, "another manifest");
}

#[test]
fn a_signed_module_runs_also_when_the_registry_is_down() {
    let world = World::new();
    let key = Signer::new(1);
    sign(&world.registry, &key, world.pushed.manifest, world.pushed.manifest);
    let dir = tempfile::tempdir().unwrap();
    let store = world.demanding(dir.path(), &key);
    let resolved = store.resolve(&world.image).unwrap();
    assert!(resolved.verified_by.unwrap().starts_with("cosign.pub ("));
    assert_eq!(store.fetch(&resolved.module).unwrap(), module(1));

    let unpinned = ModuleRef { image: Some(world.image.clone()), ..resolved.module.clone() };
    let other = ModuleRef { digest: digest_of(&module(2)), ..resolved.module.clone() };
    let without = ModuleRef { image: None, ..resolved.module.clone() };
    for (module, word) in [(unpinned, "not pinned"), (other, "another module"), (without, "without an image")]
    {
        let error = store.fetch(&module).unwrap_err();
        assert!(matches!(&error, ModuleError::Unverified(text) if text.contains(word)), "{word}: {error}");
    }

    world.registry.stop();
    let restarted = world.demanding(dir.path(), &key);
    assert_eq!(
        restarted.fetch(&resolved.module).unwrap(),
        module(1),
        "manifest, signature and module are cached"
    );
    // Evidence in the cache is checked again: changed, it is worth nothing, and the registry does not answer.
    let evidence = dir.path().join("oci-v1/evidence").join(format!("{}.json", world.pushed.manifest.hex()));
    let text = std::fs::read_to_string(&evidence).unwrap();
    std::fs::write(&evidence, text.replace("\"signature\":\"ME", "\"signature\":\"MF")).unwrap();
    let error = restarted.fetch(&resolved.module).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
    std::fs::write(&evidence, text).unwrap();
    // The key of the day decides, not that of yesterday, also in a store that is open.
    let file = dir.path().join("cosign.pub");
    std::fs::write(&file, Signer::new(3).pem()).unwrap();
    assert!(restarted.fetch(&resolved.module).is_err());
    // While keys are exchanged the file has both.
    std::fs::write(&file, format!("{}{}", Signer::new(3).pem(), key.pem())).unwrap();
    assert_eq!(restarted.fetch(&resolved.module).unwrap(), module(1));
    std::fs::write(&file, "").unwrap();
    assert!(restarted.fetch(&resolved.module).unwrap_err().to_string().contains("it is empty"));
}

#[test]
fn a_bundle_attached_as_a_referrer_is_good_too() {
    let world = World::new();
    let key = Signer::new(1);
    attach_bundle(&world.registry, &key, world.pushed.manifest);
    let dir = tempfile::tempdir().unwrap();
    let store = world.demanding(dir.path(), &key);
    assert!(store.resolve(&world.image).unwrap().verified_by.is_some());
    let found = store.inspect(&Subject::Image(world.image.parse().unwrap())).unwrap();
    assert!(matches!(found.image.unwrap().signature, Verification::Verified { .. }));
    world.refused(&Signer::new(2), "not by a key of the policy");
    let none = crate::world::store(world.dir.path(), &[world.registry.address()]);
    let found = none.inspect(&Subject::Image(world.image.parse().unwrap())).unwrap();
    assert_eq!(found.image.unwrap().signature, Verification::NotRequired { found: 1 });
}
