//! What the tests share: modules, stores, real registries, keys.
#![allow(dead_code, reason = "not every test binary that shares this file needs all of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coproc::core::digest::Digest;
use coproc::core::units::{ByteSize, Span};
use coproc::oci::config::RawVerification;
use coproc::oci::{OciConfig, OciStore, RawOciConfig};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use sha2::{Digest as _, Sha256};

pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub const WASM_LAYER: &str = "application/wasm";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A small transform; another one for each number.
pub fn module(number: u32) -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module (import "redpanda_transform" "check_abi_version_1" (func))
             (memory (export "memory") 1) (func (export "_start")) (func (export "number_{number}")))"#
    ))
    .unwrap()
}

/// A small component with an import and an export.
pub fn component() -> Vec<u8> {
    let text = r#"(component
        (import "wasi:logging/logging@0.1.0-draft" (instance $log (export "log" (func))))
        (component $inner (import "f" (func $f)) (export "handle-message" (func $f)))
        (alias export $log "log" (func $f))
        (instance $handler (instantiate $inner (with "f" (func $f))))
        (export "wasmcloud:messaging/handler@0.2.0" (instance $handler)))"#;
    wat::parse_str(text).unwrap()
}

pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// A configuration with short times, for a cache in this directory.
pub fn config(dir: &Path) -> RawOciConfig {
    RawOciConfig {
        cache_dir: dir.to_owned(),
        max_module_bytes: ByteSize(1 << 20),
        connect_timeout: Span::from_ms(2_000),
        read_timeout: Span::from_ms(2_000),
        manifest_timeout: Span::from_ms(10_000),
        module_timeout: Span::from_ms(20_000),
        attempts: 1,
        ..RawOciConfig::default()
    }
}

pub fn open(raw: &RawOciConfig) -> OciStore {
    OciStore::open(OciConfig::read(raw).unwrap()).unwrap()
}

/// A store that may speak to these addresses without TLS.
pub fn store(dir: &Path, insecure: &[&str]) -> OciStore {
    open(&RawOciConfig { insecure: insecure.iter().map(|&host| host.to_owned()).collect(), ..config(dir) })
}

/// A pull secret for a registry, as Kubernetes mounts it.
pub fn pull_secret(dir: &Path, registry: &str, name: &str, word: &str) -> PathBuf {
    let path = dir.join(".dockerconfigjson");
    let auth = STANDARD.encode(format!("{name}:{word}"));
    std::fs::write(&path, format!(r#"{{"auths": {{"{registry}": {{"auth": "{auth}"}}}}}}"#)).unwrap();
    path
}

/// A real registry; it ends with this value.
pub struct Registry {
    dir: tempfile::TempDir,
    variant: String,
    variables: BTreeMap<String, String>,
}

fn script(command: &str, dir: &Path, variant: &str, variables: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/registry");
    let output = Command::new(path)
        .arg(command)
        .arg(dir)
        .arg(variant)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Registry {
    pub fn start(variant: &str) -> Self {
        Self::start_with(variant, &[])
    }

    pub fn start_with(variant: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let printed = script("start", dir.path(), variant, variables);
        let variables = printed
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.into(), value.into()));
        Self { variables: variables.collect(), dir, variant: variant.to_owned() }
    }

    pub fn stop(&self) {
        script("stop", self.dir.path(), "plain", &[]);
    }

    /// Starts a registry that was stopped, at its address and with its content.
    pub fn start_again(&self) {
        let port = self.address().rsplit_once(':').unwrap().1;
        script("start", self.dir.path(), &self.variant, &[("PORT", port)]);
    }

    /// Takes a tag away, behind the registry's back: version 2.8 cannot be asked to.
    pub fn delete_tag(&self, repository: &str, tag: &str) {
        let at = format!("data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}");
        std::fs::remove_dir_all(self.dir.path().join(at)).unwrap();
    }

    /// How often it was asked for a path, by its own log.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.matches(&format!("\"{method} {path} HTTP")).count()
    }

    pub fn get(&self, name: &str) -> &str {
        &self.variables[name]
    }

    pub fn address(&self) -> &str {
        self.get("ADDRESS")
    }

    pub fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A signing key, and its public half as a file.
pub struct Signer(pub SigningKey);

impl Signer {
    pub fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(&[seed; 32]).unwrap())
    }

    pub fn public(&self, dir: &Path) -> RawVerification {
        let path = dir.join("cosign.pub");
        std::fs::write(&path, self.pem()).unwrap();
        RawVerification { public_key_files: vec![path] }
    }

    pub fn pem(&self) -> String {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    pub fn sign(&self, message: &[u8]) -> String {
        let signature: Signature = self.0.sign(message);
        STANDARD.encode(signature.to_der())
    }
}

/// Writes blobs and a manifest to a registry without this crate's client.
pub fn put_raw(
    address: &str,
    repository: &str,
    tag: &str,
    media_type: &str,
    manifest: &str,
    blobs: &[&[u8]],
) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let put = async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{address}/v2/{repository}");
        for blob in blobs {
            let started = http.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
            let mut url: reqwest::Url = started.headers()["location"].to_str().unwrap().parse().unwrap();
            url.query_pairs_mut().append_pair("digest", &digest_of(blob).to_string());
            let done = http
                .put(url)
                .header("content-type", "application/octet-stream")
                .body(blob.to_vec())
                .send()
                .await
                .unwrap();
            assert!(done.status().is_success(), "{}", done.status());
        }
        let request = http.put(format!("{base}/manifests/{tag}")).header("content-type", media_type);
        let done = request.body(manifest.to_owned()).send().await.unwrap();
        let status = done.status();
        assert!(status.is_success(), "{status}: {}", done.text().await.unwrap());
    };
    // On a thread of its own: the caller may be within a runtime.
    std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        scope.spawn(move || runtime.block_on(put)).join().unwrap();
    });
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType": "{media_type}", "digest": "{}", "size": {}}}"#, digest_of(bytes), bytes.len())
}

/// Signs a manifest as `cosign sign --key` does in its original form, at the tag of the manifest `at`.
pub fn sign_as_cosign(address: &str, repository: &str, by: &Signer, signed: Digest, at: Digest) {
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{address}/{repository}"}},"image":{{"docker-manifest-digest":"{signed}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    let annotation = format!(
        r#", "annotations": {{"dev.cosignproject.cosign/signature": "{}"}}}}"#,
        by.sign(payload.as_bytes())
    );
    let simple = "application/vnd.dev.cosign.simplesigning.v1+json";
    let layer = descriptor(simple, payload.as_bytes()).replace('}', &annotation);
    let image_config = b"{}".as_slice();
    let manifest = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "config": {}, "layers": [{layer}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", image_config)
    );
    let tag = format!("sha256-{}.sig", at.hex());
    put_raw(address, repository, &tag, MANIFEST, &manifest, &[payload.as_bytes(), image_config]);
}
