//! Against Debian's docker-registry: push, tags, pins, rollback, TLS, accounts, tokens, another tool.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coproc::core::deployment::ModuleRef;
use coproc::core::disposition::Disposition;
use coproc::oci::binary::{BinaryKind, Contract};
use coproc::oci::inspect::inspect_file;
use coproc::oci::{OciError, PushOptions, RawOciConfig, Reference, Subject};
use coproc::ports::{ModuleError, ModuleStore};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_wasm::{WasmClient, WasmConfig};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey as _;

use crate::scripted::{Reply, Server};
use crate::world::{
    INDEX, MANIFEST, Registry, WASM_CONFIG, WASM_LAYER, component, config, descriptor, digest_of, module,
    open, pull_secret, put_raw, store,
};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn a_tag_is_resolved_once_moves_without_effect_and_rolls_back_by_digest() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let image = registry.image("team/redact:1.2");

    let first = store.push(&module(1), &reference(&image), &PushOptions::default()).unwrap();
    let resolved = store.resolve(&image).unwrap();
    assert_eq!(resolved.module.digest, digest_of(&module(1)));
    assert_eq!(resolved.module.image, Some(format!("{image}@{}", first.manifest)));
    assert_eq!((resolved.size, resolved.verified_by), (module(1).len() as u64, None));

    let second = store.push(&module(2), &reference(&image), &PushOptions::default()).unwrap();
    assert_ne!(first.manifest, second.manifest);
    let elsewhere = tempfile::tempdir().unwrap();
    let node = crate::world::store(elsewhere.path(), &[registry.address()]);
    assert_eq!(
        node.fetch(&resolved.module).unwrap(),
        module(1),
        "a node goes by the digest, whatever the tag says"
    );

    let swapped = store.resolve(&image).unwrap();
    assert_eq!(swapped.module.digest, digest_of(&module(2)));
    assert_eq!(node.fetch(&swapped.module).unwrap(), module(2));

    let back = store.resolve(resolved.module.image.as_deref().unwrap()).unwrap();
    assert_eq!(back.module, resolved.module);
    let again = store.push(&module(1), &reference(&image), &PushOptions::default()).unwrap();
    assert_eq!(again.manifest, first.manifest, "the same module has the same manifest");
}

#[test]
fn what_is_not_there_is_said_so() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let Err(ModuleError::Refused(text)) = store.resolve(&registry.image("nothing:1")) else {
        panic!("there is nothing")
    };
    assert!(text.contains("has no manifest"), "{text}");
    let image = Some(registry.image(&format!("nothing@{}", digest_of(b"x"))));
    assert!(store.fetch(&ModuleRef { digest: digest_of(b"x"), image }).is_err());
    let Err(ModuleError::NotFound { .. }) = store.fetch(&ModuleRef { digest: digest_of(b"x"), image: None })
    else {
        panic!("no image, no module")
    };
    let pushed = store.push(b"\x7fELF not wasm", &reference(&registry.image("a:1")), &PushOptions::default());
    assert!(matches!(pushed, Err(OciError::NotWasm { .. })));
}

#[test]
fn tls_with_an_authority_of_its_own_and_accounts() {
    let registry = Registry::start("tls-basic");
    let dir = tempfile::tempdir().unwrap();
    let image = registry.image("team/redact:1");
    let secret =
        pull_secret(dir.path(), registry.address(), registry.get("LOGIN_NAME"), registry.get("LOGIN_WORD"));
    let good = RawOciConfig {
        ca_files: vec![registry.get("CA").into()],
        private_hosts: vec!["127.0.0.1".to_owned()],
        pull_secret_files: vec![secret.clone()],
        ..config(dir.path())
    };
    let pushed = open(&good).push(&module(1), &reference(&image), &PushOptions::default()).unwrap();
    assert_eq!(open(&good).resolve(&image).unwrap().module.digest, pushed.digest);

    let check = |raw: RawOciConfig, word: &str| {
        let error = open(&raw).resolve(&image).unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    };
    check(RawOciConfig { ca_files: Vec::new(), ..good.clone() }, "certificate");
    check(RawOciConfig { private_hosts: Vec::new(), ..good.clone() }, "privateHosts");
    check(RawOciConfig { pull_secret_files: Vec::new(), ..good.clone() }, "no pull secret is for it");

    // A rotated secret is in use at once, without a restart.
    let store = open(&good);
    pull_secret(dir.path(), registry.address(), "coproc", "wrong");
    let error = store.resolve(&image).unwrap_err();
    assert!(error.to_string().contains("not enough"), "{error}");
    assert_eq!(error.disposition(), Disposition::User);
    pull_secret(dir.path(), registry.address(), registry.get("LOGIN_NAME"), registry.get("LOGIN_WORD"));
    assert!(store.resolve(&image).is_ok());
}

#[test]
fn the_login_with_the_longest_prefix_is_used() {
    let registry = Registry::start("basic");
    let dir = tempfile::tempdir().unwrap();
    let (address, name, word) = (registry.address(), registry.get("LOGIN_NAME"), registry.get("LOGIN_WORD"));
    let path = dir.path().join("logins");
    let logins = serde_json::json!({"auths": {address: {"username": name, "password": "wrong"},
        format!("{address}/team"): {"username": name, "password": word}}});
    std::fs::write(&path, logins.to_string()).unwrap();
    let raw = RawOciConfig {
        insecure: vec![address.to_owned()],
        pull_secret_files: vec![path],
        ..config(dir.path())
    };
    let push = |image: &str| {
        let image = reference(&registry.image(image));
        open(&raw).push(&module(1), &image, &PushOptions::default())
    };
    assert!(push("team/redact:1").is_ok());
    assert!(matches!(push("teams/redact:1"), Err(OciError::Denied { .. })));
}

/// A token as docker-registry wants it: a JWT, ES256, with the certificate in its header.
fn token(key: &SigningKey, certificate: &str, repository: &str, actions: &[&str]) -> String {
    let der: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [der]});
    let claims = serde_json::json!({
        "iss": "test", "sub": "coproc", "aud": "test", "jti": "1", "iat": now, "nbf": now - 10, "exp": now + 300,
        "access": [{"type": "repository", "name": repository, "actions": actions}],
    });
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(&header), encode(&claims));
    let signature: Signature = key.sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

#[test]
fn tokens_come_from_a_listed_host_only() {
    let files = std::sync::Arc::new(std::sync::OnceLock::<(String, String)>::new());
    let known = std::sync::Arc::clone(&files);
    let issuer = Server::start(move |request| {
        if request.authorization.as_deref() != Some(&format!("Basic {}", STANDARD.encode("coproc:word"))) {
            return Reply::status(401);
        }
        let (key, certificate) = known.get().unwrap();
        let key = SigningKey::from_pkcs8_pem(key).unwrap();
        let actions: &[&str] =
            if request.path.contains("pull%2Cpush") { &["pull", "push"] } else { &["pull"] };
        let token = token(&key, certificate, "team/redact", actions);
        Reply::json(&format!(r#"{{"token": "{token}", "expires_in": 300}}"#))
    });
    let realm = format!("http://{}/token", issuer.address());
    let registry = Registry::start_with("token", &[("TOKEN_REALM", &realm)]);
    let read = |name: &str| std::fs::read_to_string(registry.get(name)).unwrap();
    files.set((read("TOKEN_KEY"), read("TOKEN_CERT"))).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let image = registry.image("team/redact:1");
    let secret = pull_secret(dir.path(), registry.address(), "coproc", "word");
    let unlisted = RawOciConfig {
        insecure: vec![registry.address().to_owned()],
        pull_secret_files: vec![secret],
        ..config(dir.path())
    };
    let error = open(&unlisted).push(&module(1), &reference(&image), &PushOptions::default()).unwrap_err();
    assert!(error.to_string().contains("tokenHosts"), "{error}");
    assert_eq!(issuer.requests().len(), 0, "nothing was sent to a host that is not listed");

    let mut listed = unlisted;
    listed.token_hosts.push(issuer.address());
    listed.insecure.push(issuer.address());
    let store = open(&listed);
    store.push(&module(1), &reference(&image), &PushOptions::default()).unwrap();
    assert_eq!(store.resolve(&image).unwrap().module.digest, digest_of(&module(1)));
    assert_eq!(issuer.requests().len(), 2, "one token to push, one to pull, then they are known");
}

#[test]
fn oci_wasm_reads_what_is_pushed_here_and_the_other_way_round() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = || {
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        WasmClient::new(oci_client::Client::new(config))
    };

    for (name, bytes) in [("module", module(1)), ("component", component())] {
        let image = registry.image(&format!("ours/{name}:1"));
        let annotations = BTreeMap::from([("org.opencontainers.image.source".to_owned(), "here".to_owned())]);
        let options = PushOptions { annotations: annotations.clone() };
        let pushed = store.push(&bytes, &reference(&image), &options).unwrap();
        let theirs: oci_client::Reference = image.parse().unwrap();
        runtime.block_on(async {
            let pulled = client().pull(&theirs, &RegistryAuth::Anonymous).await.unwrap();
            assert_eq!(pulled.layers[0].data, bytes);
            assert_eq!(pulled.digest, Some(pushed.manifest.to_string()));
            let (manifest, config, _) =
                client().pull_manifest_and_config(&theirs, &RegistryAuth::Anonymous).await.unwrap();
            assert_eq!(manifest.annotations, Some(annotations));
            assert_eq!(config.layer_digests, [pushed.digest.to_string()]);
            assert_eq!(config.component.is_some(), name == "component");
        });

        let image = registry.image(&format!("theirs/{name}:1"));
        let theirs: oci_client::Reference = image.parse().unwrap();
        runtime.block_on(async {
            let (config, layer) = match name {
                "module" => WasmConfig::from_raw_module(bytes.clone(), None).unwrap(),
                _ => WasmConfig::from_raw_component(bytes.clone(), None).unwrap(),
            };
            client().push(&theirs, &RegistryAuth::Anonymous, layer, config, None).await.unwrap();
        });
        let resolved = store.resolve(&image).unwrap();
        assert_eq!(store.fetch(&resolved.module).unwrap(), bytes);
    }
}

#[test]
fn skopeo_copies_what_is_pushed_here() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let pushed =
        store.push(&module(1), &reference(&registry.image("from/a:1")), &PushOptions::default()).unwrap();
    let output = std::process::Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
        .arg(format!("docker://{}", registry.image("from/a:1")))
        .arg(format!("docker://{}", registry.image("to/b:2")))
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: skopeo is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let resolved = store.resolve(&registry.image("to/b:2")).unwrap();
    assert_eq!(resolved.module.digest, pushed.digest);
    assert_eq!(resolved.module.image, Some(registry.image(&format!("to/b:2@{}", pushed.manifest))));
}

#[test]
fn older_layouts_and_indexes_are_read_when_they_are_unambiguous() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let (bytes, config) = (module(3), b"{}".as_slice());
    let manifest = |config_type: &str, layer_type: &str| {
        format!(
            r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "config": {}, "layers": [{}]}}"#,
            descriptor(config_type, config),
            descriptor(layer_type, &bytes)
        )
    };
    let legacy =
        manifest("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm");
    put_raw(registry.address(), "a", "legacy", MANIFEST, &legacy, &[&bytes, config]);
    assert_eq!(store.resolve(&registry.image("a:legacy")).unwrap().module.digest, digest_of(&bytes));

    let oras = manifest("application/vnd.oci.empty.v1+json", WASM_LAYER);
    put_raw(registry.address(), "a", "oras", MANIFEST, &oras, &[]);
    assert_eq!(store.resolve(&registry.image("a:oras")).unwrap().module.digest, digest_of(&bytes));

    let entry = |manifest: &str, platform: &str| {
        descriptor(MANIFEST, manifest.as_bytes()).replace('}', &format!(r#", "platform": {platform}}}"#))
    };
    let wasm = r#"{"architecture": "wasm", "os": "wasip1"}"#;
    let index = |entries: &[String]| {
        format!(r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [{}]}}"#, entries.join(","))
    };
    let one = index(&[entry(&legacy, r#"{"architecture": "amd64", "os": "linux"}"#), entry(&oras, wasm)]);
    put_raw(registry.address(), "a", "index", INDEX, &one, &[]);
    let resolved = store.resolve(&registry.image("a:index")).unwrap();
    assert_eq!(resolved.module.digest, digest_of(&bytes));
    let root = digest_of(one.as_bytes());
    assert_eq!(
        resolved.module.image,
        Some(registry.image(&format!("a:index@{root}"))),
        "the index is what is pinned"
    );

    let two = index(&[entry(&legacy, wasm), entry(&oras, wasm)]);
    put_raw(registry.address(), "a", "two", INDEX, &two, &[]);
    let error = store.resolve(&registry.image("a:two")).unwrap_err().to_string();
    assert!(error.contains("name one by its digest"), "{error}");
}

#[test]
fn images_and_files_are_inspected() {
    let registry = Registry::start("plain");
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), &[registry.address()]);
    let image = reference(&registry.image("team/redact:1"));
    let annotations = BTreeMap::from([("org.opencontainers.image.title".to_owned(), "redact".to_owned())]);
    let pushed = store.push(&module(1), &image, &PushOptions { annotations: annotations.clone() }).unwrap();
    let found = store.inspect(&Subject::Image(image.clone())).unwrap();
    let facts = found.image.clone().unwrap();
    assert_eq!((found.digest, found.size, facts.manifest), (pushed.digest, pushed.size, pushed.manifest));
    assert_eq!((found.interface.kind, found.interface.contract), (BinaryKind::Module, Contract::Transform));
    assert_eq!((facts.config_media_type.as_str(), facts.annotations), (WASM_CONFIG, annotations));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["signature"], serde_json::json!({"result": "notRequired", "found": 0}));
    assert_eq!(json["contract"], "transform");

    let path = dir.path().join("component.wasm");
    std::fs::write(&path, component()).unwrap();
    let found = inspect_file(&path, 1 << 20).unwrap();
    assert_eq!(found.interface.contract, Contract::Messaging);
    assert!(found.interface.imports.contains("wasi:logging/logging@0.1.0-draft"));
    assert!(found.image.is_none());
    assert!(matches!(inspect_file(&path, 10), Err(OciError::TooLarge { .. })));
    assert_eq!(Subject::from_path(Path::new(&image.to_string())), Subject::Image(image));
}
