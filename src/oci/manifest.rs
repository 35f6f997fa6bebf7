//! Manifests and configs: what is read from them, and which one module an image stands for.
//!
//! Pure. An artefact is accepted when it can be read in one way only; where two readers could come to different
//! modules (CVE-2021-41190), it is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::core::digest::Digest;
use crate::oci::binary::{BinaryKind, Interface};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// The CNCF layout: <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>.
pub(super) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(super) const WASM_LAYER: &str = "application/wasm";
/// What `wasm-to-oci` and others wrote before it.
const LEGACY_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// A pointer to a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(super) fn new(media_type: &str, digest: Digest, size: usize) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size: size as u64,
            urls: None,
            artifact_type: None,
            platform: None,
            annotations: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageManifest {
    pub(super) schema_version: u32,
    pub(super) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// An image index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageIndex {
    pub(super) manifests: Vec<Descriptor>,
}

/// What a reference or digest of a manifest leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Manifest(Box<ImageManifest>),
    Index(ImageIndex),
}

/// The body's own claims, before anything is believed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claims {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or index. Header, `mediaType` and shape must say the same.
    pub(super) fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Self, String> {
        let claims: Claims =
            serde_json::from_slice(bytes).map_err(|error| format!("the manifest is none: {error}"))?;
        if claims.schema_version != 2 {
            return Err(format!("schema version {} is not understood", claims.schema_version));
        }
        let is_index = claims.manifests.is_some();
        if is_index == (claims.layers.is_some() || claims.config.is_some()) {
            return Err("the manifest can be read as an image and as an index".to_owned());
        }
        let content_type = content_type.map(|text| text.split(';').next().unwrap_or("").trim());
        for claimed in [claims.media_type.as_deref(), content_type].into_iter().flatten() {
            let fits = match claimed {
                MANIFEST | DOCKER_MANIFEST => !is_index,
                INDEX | DOCKER_LIST => is_index,
                // Some file servers behind mirrors know nothing better.
                "application/json" | "text/plain" | "application/octet-stream" => {
                    content_type == Some(claimed) && claims.media_type.is_some()
                }
                _ => false,
            };
            if !fits {
                return Err(format!("media type {claimed:?} does not fit what the manifest is"));
            }
        }
        let read = |error: serde_json::Error| format!("the manifest is none: {error}");
        if is_index {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(read);
        }
        serde_json::from_slice(bytes).map(Box::new).map(Self::Manifest).map_err(read)
    }
}

impl ImageIndex {
    /// The one entry that is for WebAssembly.
    pub(super) fn module_entry(&self) -> Result<&Descriptor, String> {
        let is_wasm = |entry: &&Descriptor| {
            let by_platform = entry.platform.as_ref().is_some_and(|platform| {
                platform.architecture.starts_with("wasm") || platform.os.starts_with("wasi")
            });
            by_platform || matches!(entry.artifact_type.as_deref(), Some(WASM_LAYER | WASM_CONFIG))
        };
        let images = self
            .manifests
            .iter()
            .filter(|entry| matches!(entry.media_type.as_str(), MANIFEST | DOCKER_MANIFEST));
        let images: Vec<_> = images.collect();
        let marked: Vec<_> = images.iter().copied().filter(is_wasm).collect();
        match (marked.as_slice(), images.as_slice()) {
            ([one], _) => Ok(one),
            ([], [one]) if one.platform.is_none() => Ok(one),
            ([], _) => Err("none of the index's entries is for WebAssembly".to_owned()),
            (many, _) => Err(format!(
                "{} of the index's entries are for WebAssembly: name one by its digest",
                many.len()
            )),
        }
    }
}

impl ImageManifest {
    pub(super) fn is_cncf(&self) -> bool {
        self.config.media_type == WASM_CONFIG
    }

    /// The one layer that is the module.
    pub(super) fn module_layer(&self) -> Result<&Descriptor, String> {
        let [layer] = self.layers.as_slice() else {
            return Err(format!("it has {} layers, a module has one", self.layers.len()));
        };
        if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            return Err(
                "its layer lies elsewhere (`urls`): only what the registry itself has is fetched".to_owned()
            );
        }
        match layer.media_type.as_str() {
            WASM_LAYER => Ok(layer),
            LEGACY_LAYER if !self.is_cncf() => Ok(layer),
            other => Err(format!("its layer is of type {other:?}, not {WASM_LAYER:?}")),
        }
    }
}

/// The config of the CNCF layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WasmConfig {
    pub(super) created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) author: Option<String>,
    pub(super) architecture: String,
    pub(super) os: String,
    pub(super) layer_digests: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) component: Option<ComponentClaims>,
}

/// What a config says of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ComponentClaims {
    #[serde(default)]
    pub(super) exports: BTreeSet<String>,
    #[serde(default)]
    pub(super) imports: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<String>,
}

impl WasmConfig {
    /// The config for a module. The same module always gets the same config: `created` is the epoch, so that
    /// pushing twice gives one digest.
    pub(super) fn describe(digest: Digest, interface: &Interface) -> Self {
        let component = (interface.kind == BinaryKind::Component).then(|| ComponentClaims {
            exports: interface.exports.clone(),
            imports: interface.imports.clone(),
            target: None,
        });
        Self {
            created: "1970-01-01T00:00:00Z".to_owned(),
            author: None,
            architecture: "wasm".to_owned(),
            os: if component.is_some() { "wasip2" } else { "wasip1" }.to_owned(),
            layer_digests: vec![digest],
            component,
        }
    }

    /// Compares what the config claims with the manifest: all that can be known before the module is fetched.
    pub(super) fn check_layer(&self, layer: Digest) -> Result<(), String> {
        if self.architecture != "wasm" {
            return Err(format!("its config is for architecture {:?}", self.architecture));
        }
        if self.layer_digests != [layer] {
            return Err("its config names other layers than its manifest".to_owned());
        }
        Ok(())
    }

    /// Compares what the config claims with what the bytes are.
    pub(super) fn check_bytes(&self, interface: &Interface) -> Result<(), String> {
        let expected = match interface.kind {
            BinaryKind::Module => ["wasip1", "wasi"],
            BinaryKind::Component => ["wasip2", "wasip3"],
        };
        if !expected.contains(&self.os.as_str()) {
            return Err(format!("its config says {:?}, but the file is a {:?}", self.os, interface.kind));
        }
        let Some(claims) = &self.component else { return Ok(()) };
        for (what, claimed, found) in
            [("import", &claims.imports, &interface.imports), ("export", &claims.exports, &interface.exports)]
        {
            if let Some(lie) = claimed.symmetric_difference(found).next() {
                return Err(format!("its config and its bytes disagree about {what} {lie:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::binary::Contract;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn layer(media_type: &str, byte: u8) -> String {
        format!(r#"{{"mediaType": "{media_type}", "digest": "{}", "size": 10}}"#, digest(byte))
    }

    fn image(config: &str, layers: &[String]) -> Result<Digest, String> {
        let text = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "config": {}, "layers": [{}]}}"#,
            layer(config, 9),
            layers.join(",")
        );
        let Document::Manifest(manifest) = Document::read(text.as_bytes(), Some(MANIFEST))? else {
            return Err("an index".to_owned());
        };
        manifest.module_layer().map(|layer| layer.digest)
    }

    #[test]
    fn one_layer_of_a_known_type_is_the_module() {
        let legacy_config = "application/vnd.wasm.config.v1+json";
        assert_eq!(image(WASM_CONFIG, &[layer(WASM_LAYER, 1)]), Ok(digest(1)));
        assert_eq!(image(legacy_config, &[layer(LEGACY_LAYER, 1)]), Ok(digest(1)));
        assert_eq!(image("application/vnd.oci.empty.v1+json", &[layer(WASM_LAYER, 1)]), Ok(digest(1)));
        let foreign = layer(WASM_LAYER, 1).replace('}', r#", "urls": ["https://evil.example/x"]}"#);
        for (config, layers, word) in [
            (WASM_CONFIG, vec![layer(WASM_LAYER, 1), layer(WASM_LAYER, 2)], "2 layers"),
            (WASM_CONFIG, vec![], "0 layers"),
            (WASM_CONFIG, vec![layer(LEGACY_LAYER, 1)], "type"),
            (WASM_CONFIG, vec![layer("application/vnd.oci.image.layer.v1.tar+gzip", 1)], "type"),
            (WASM_CONFIG, vec![foreign], "elsewhere"),
        ] {
            let reason = image(config, &layers).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let both = format!(
            r#"{{"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}}"#,
            layer(WASM_CONFIG, 1)
        );
        let index = format!(r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": []}}"#);
        for (text, header, word) in [
            (both.as_str(), MANIFEST, "as an index"),
            (&index, MANIFEST, "does not fit"),
            (&index, "text/html", "does not fit"),
            (r#"{"schemaVersion": 1, "layers": []}"#, MANIFEST, "version 1"),
            (r#"{"schemaVersion": 2}"#, MANIFEST, "as an index"),
            (r#"{"schemaVersion": 2, "manifests": []}"#, "application/json", "does not fit"),
            ("<html>", "text/html", "is none"),
        ] {
            let reason = Document::read(text.as_bytes(), Some(header)).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
        assert!(Document::read(index.as_bytes(), Some(&format!("{INDEX}; charset=utf-8"))).is_ok());
    }

    fn entry(byte: u8, platform: Option<(&str, &str)>) -> Descriptor {
        Descriptor {
            platform: platform
                .map(|(architecture, os)| Platform { architecture: architecture.into(), os: os.into() }),
            ..Descriptor::new(MANIFEST, digest(byte), 1)
        }
    }

    #[test]
    fn an_index_has_one_entry_for_webassembly() {
        let pick =
            |manifests: Vec<Descriptor>| ImageIndex { manifests }.module_entry().map(|entry| entry.digest);
        let linux = || entry(1, Some(("amd64", "linux")));
        assert_eq!(pick(vec![linux(), entry(2, Some(("wasm", "wasip1")))]), Ok(digest(2)));
        assert_eq!(pick(vec![entry(3, None)]), Ok(digest(3)));
        assert!(pick(vec![linux()]).is_err());
        assert!(pick(vec![entry(3, None), entry(4, None)]).is_err());
        assert!(pick(vec![entry(2, Some(("wasm", ""))), entry(3, Some(("wasm32", "wasi")))]).is_err());
        assert!(pick(vec![]).is_err());
    }

    #[test]
    fn configs_are_compared_with_the_bytes() {
        let interface = |kind, imports: &[&str]| Interface {
            kind,
            contract: Contract::Unknown,
            imports: imports.iter().map(|&name| name.to_owned()).collect(),
            exports: BTreeSet::new(),
        };
        let component = interface(BinaryKind::Component, &["wasi:io/error@0.2.0"]);
        let module = interface(BinaryKind::Module, &[]);
        let good = WasmConfig::describe(digest(1), &component);
        assert_eq!((good.check_layer(digest(1)), good.check_bytes(&component)), (Ok(()), Ok(())));
        assert!(WasmConfig::describe(digest(1), &module).check_bytes(&module).is_ok());
        assert!(good.check_layer(digest(2)).is_err());
        assert!(good.check_bytes(&module).is_err());
        assert!(good.check_bytes(&interface(BinaryKind::Component, &[])).is_err());
        assert!(WasmConfig { architecture: "amd64".into(), ..good }.check_layer(digest(1)).is_err());
    }
}
