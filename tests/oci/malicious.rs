//! A registry that lies, stalls, floods and points elsewhere: each case is refused with a reason, and no credential
//! leaves for a host that was not configured.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coproc::core::deployment::ModuleRef;
use coproc::core::disposition::Disposition;
use coproc::core::units::{ByteSize, Span};
use coproc::oci::config::RawMirrors;
use coproc::oci::{OciError, PushOptions, RawOciConfig, Reference};
use coproc::ports::ModuleStore;

use crate::scripted::{Reply, Request, Server};
use crate::world::{
    INDEX, MANIFEST, WASM_CONFIG, WASM_LAYER, config, descriptor, digest_of, module, open, pull_secret,
};

/// The parts of an artefact, right as long as a test does not change them.
#[derive(Clone)]
pub struct Artefact {
    pub module: Vec<u8>,
    pub config: String,
    pub manifest: String,
    pub manifest_type: &'static str,
}

impl Artefact {
    pub fn of(module: Vec<u8>) -> Self {
        let config = format!(
            r#"{{"created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1", "layerDigests": ["{}"]}}"#,
            digest_of(&module)
        );
        Self::with_config(module, config)
    }

    pub fn with_config(module: Vec<u8>, config: String) -> Self {
        let layers = [descriptor(WASM_LAYER, &module)];
        let manifest = manifest(&config, &layers);
        Self { module, config, manifest, manifest_type: MANIFEST }
    }

    pub fn reply(&self, request: &Request) -> Reply {
        let path = &request.path;
        let is = |bytes: &[u8]| path.ends_with(&format!("/blobs/{}", digest_of(bytes)));
        if is(&self.module) {
            Reply::body("application/octet-stream", &self.module)
        } else if is(self.config.as_bytes()) {
            Reply::body("application/octet-stream", self.config.as_bytes())
        } else if path.ends_with("/manifests/1")
            || path.ends_with(&digest_of(self.manifest.as_bytes()).to_string())
        {
            Reply::body(self.manifest_type, self.manifest.as_bytes())
        } else {
            Reply::status(404)
        }
    }

    fn blob(&self) -> String {
        format!("/blobs/{}", digest_of(&self.module))
    }
}

fn manifest(config: &str, layers: &[String]) -> String {
    format!(
        r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "config": {}, "layers": [{}]}}"#,
        descriptor(WASM_CONFIG, config.as_bytes()),
        layers.join(",")
    )
}

/// A configuration that trusts this server, and has a secret for it.
fn trusting(dir: &Path, server: &Server) -> RawOciConfig {
    RawOciConfig {
        insecure: vec![server.address()],
        pull_secret_files: vec![pull_secret(dir, &server.address(), "coproc", "secret-word")],
        read_timeout: Span::from_ms(1_000),
        min_bytes_per_second: ByteSize(1_000),
        speed_window: Span::from_ms(400),
        ..config(dir)
    }
}

/// Resolves `team/x:1` at a server with this behavior: the error, and that the cache got nothing but what its
/// digest names: manifests, configs, at most WebAssembly.
fn refused(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> OciError {
    let server = Server::start(handler);
    let dir = tempfile::tempdir().unwrap();
    let image: Reference = format!("{}/team/x:1", server.address()).parse().unwrap();
    let error = open(&trusting(dir.path(), &server)).resolve_image(&image).unwrap_err();
    for entry in std::fs::read_dir(dir.path().join("oci-v1/blobs")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(bytes.starts_with(b"{") || bytes.starts_with(b"\0asm"), "{bytes:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("oci-v1/tmp")).unwrap().count(), 0);
    error
}

fn check(word: &str, disposition: Disposition, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
    let error = refused(handler);
    assert!(error.to_string().contains(word), "{word}: {error}");
    assert_eq!(error.disposition(), disposition, "{error}");
}

fn serving(artefact: Artefact) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| artefact.reply(request)
}

/// Serves a good artefact, but for the module's bytes.
fn but_for_module(
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync {
    let artefact = Artefact::of(module(1));
    move |request| if request.path.ends_with(&artefact.blob()) { reply() } else { artefact.reply(request) }
}

#[test]
fn other_bytes_than_the_digest_says() {
    let mut other = module(1);
    *other.last_mut().unwrap() ^= 1;
    check(
        "other bytes than its digest",
        Disposition::User,
        but_for_module(move || Reply::body("x/y", &other)),
    );
    let mut shorter = module(1);
    shorter.pop();
    check(
        "other bytes than its digest",
        Disposition::User,
        but_for_module(move || Reply::body("x/y", &shorter)),
    );
    check("other bytes than its digest", Disposition::User, |_| {
        let artefact = Artefact::of(module(1));
        Reply::body(MANIFEST, artefact.manifest.as_bytes())
            .with("docker-content-digest", &digest_of(b"else").to_string())
    });
}

#[test]
fn a_tag_that_moves_under_a_pin() {
    let server = Server::start(|_| Reply::body(MANIFEST, Artefact::of(module(2)).manifest.as_bytes()));
    let dir = tempfile::tempdir().unwrap();
    let pinned = digest_of(Artefact::of(module(1)).manifest.as_bytes());
    let image = format!("{}/team/x:1@{pinned}", server.address());
    let error = open(&trusting(dir.path(), &server)).resolve_image(&image.parse().unwrap()).unwrap_err();
    assert!(matches!(error, OciError::WrongDigest { wanted, .. } if wanted == pinned), "{error}");
}

#[test]
fn floods() {
    let endless = || Reply::Endless(vec![b'x'; 64 << 10]);
    check("larger than the limit", Disposition::User, but_for_module(endless));
    check("larger than the limit", Disposition::User, move |_| endless());
    check("larger than the limit", Disposition::User, but_for_module(|| Reply::Claim(10 << 30)));
    let huge = Artefact::of(module(1)).manifest.replace(
        &descriptor(WASM_LAYER, &module(1)),
        &descriptor(WASM_LAYER, &module(1)).replace("\"size\": ", "\"size\": 9999999"),
    );
    check("larger than the limit", Disposition::User, move |_| Reply::body(MANIFEST, huge.as_bytes()));
}

#[test]
fn drips_and_silence() {
    let begun = Instant::now();
    check("less than 1000 bytes per second", Disposition::Transient, {
        // The descriptor allows a longer body than comes within the window.
        let artefact = Artefact::of([module(1), wat::parse_str("(module)").unwrap().repeat(2_000)].concat());
        move |request| {
            if request.path.ends_with(&artefact.blob()) {
                Reply::Drip(Duration::from_millis(20))
            } else {
                artefact.reply(request)
            }
        }
    });
    check("did not deliver", Disposition::Transient, but_for_module(|| Reply::Stall));
    check("did not deliver", Disposition::Transient, |_| Reply::Stall);
    assert!(begun.elapsed() < Duration::from_secs(12));
}

#[test]
fn lying_media_types_and_shapes() {
    for manifest_type in [INDEX, "text/html", "application/vnd.docker.container.image.v1+json"] {
        check(
            "does not fit",
            Disposition::User,
            serving(Artefact { manifest_type, ..Artefact::of(module(1)) }),
        );
    }
    let config = Artefact::of(module(1)).config;
    let layers =
        |layers: &[String]| Artefact { manifest: manifest(&config, layers), ..Artefact::of(module(1)) };
    let good = descriptor(WASM_LAYER, &module(1));
    let foreign = good.replace('}', r#", "urls": ["http://169.254.169.254/latest/meta-data"]}"#);
    for (layers, word) in [
        (layers(&[good.clone(), descriptor(WASM_LAYER, &module(2))]), "2 layers"),
        (layers(&[]), "0 layers"),
        (layers(&[foreign]), "lies elsewhere"),
        (layers(&[descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &module(1))]), "type"),
    ] {
        check(word, Disposition::User, serving(layers));
    }
    check("is none", Disposition::User, |_| Reply::body("text/html", b"<html>login</html>"));
    let both = Artefact::of(module(1)).manifest.replace("\"layers\"", "\"manifests\": [], \"layers\"");
    check("as an image and as an index", Disposition::User, move |_| Reply::body(MANIFEST, both.as_bytes()));
}

#[test]
fn what_is_not_webassembly_is_not_kept() {
    for (bytes, word) in [
        (&b"\x7fELF\x02\x01\x01\0precompiled"[..], "precompiled"),
        (b"PK\x03\x04 a zip archive", "zip"),
        (b"#!/bin/sh\nexit 1\n", "begins with"),
        (b"", "empty"),
    ] {
        check(word, Disposition::User, serving(Artefact::of(bytes.to_vec())));
    }
}

#[test]
fn configs_that_lie() {
    let good = Artefact::of(module(1)).config;
    for (config, word) in [
        (good.replace(&digest_of(&module(1)).to_string(), &digest_of(b"x").to_string()), "other layers"),
        (good.replace("wasip1", "wasip2"), "wasip2"),
        (good.replace("\"wasm\"", "\"amd64\""), "amd64"),
        (
            good.replace(
                "\"layerDigests\"",
                "\"component\": {\"imports\": [\"wasi:cli/x\"]}, \"layerDigests\"",
            ),
            "disagree",
        ),
        ("{}".to_owned(), "cannot be read"),
    ] {
        check(word, Disposition::User, serving(Artefact::with_config(module(1), config)));
    }
}

/// Where a lying registry would like requests to go. Whatever comes is recorded, and answered usefully.
fn elsewhere() -> Server {
    let artefact = Artefact::of(module(1));
    Server::start(move |request| {
        if request.path.starts_with("/token") {
            Reply::json(r#"{"token": "x"}"#)
        } else {
            artefact.reply(request)
        }
    })
}

#[test]
fn redirects_to_hosts_that_are_not_listed() {
    let other = elsewhere();
    for target in
        [format!("http://{}", other.address()), "http://169.254.169.254".to_owned(), "file:///etc".to_owned()]
    {
        check("redirectHosts", Disposition::User, {
            let target = format!("{target}/v2/team/x{}", Artefact::of(module(1)).blob());
            but_for_module(move || Reply::redirect(&target))
        });
    }
    check("circles", Disposition::User, |request| Reply::redirect(&request.path));
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn redirects_to_listed_hosts_carry_no_credentials() {
    let other = elsewhere();
    let artefact = Artefact::of(module(1));
    let target = format!("http://{}/v2/team/x{}", other.address(), artefact.blob());
    let server = Server::start(move |request| match &request.authorization {
        None => Reply::status(401).with("www-authenticate", "Basic realm=\"x\""),
        Some(_) if request.path.contains(&artefact.blob()) => Reply::redirect(&target),
        Some(_) => artefact.reply(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let mut raw = trusting(dir.path(), &server);
    raw.redirect_hosts.push(other.address());
    raw.insecure.push(other.address());
    let image = format!("{}/team/x:1", server.address());
    assert_eq!(open(&raw).resolve(&image).unwrap().module.digest, digest_of(&module(1)));
    let seen = other.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization, None);
    assert!(server.requests().iter().any(|request| request.authorization.is_some()));
}

#[test]
fn token_realms_at_hosts_that_are_not_listed() {
    let other = elsewhere();
    let realms =
        [format!("http://{}/token", other.address()), "http://169.254.169.254/token".into(), "no url".into()];
    for (realm, word) in realms.into_iter().zip(["tokenHosts", "tokenHosts", "no URL"]) {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        check(word, Disposition::User, move |_| Reply::status(401).with("www-authenticate", &challenge));
    }
    assert_eq!(other.requests().len(), 0);
}

/// A token server at the registry's own host that points elsewhere: what it is sent are credentials.
#[test]
fn token_servers_that_redirect() {
    let other = elsewhere();
    let target = format!("http://{}/token", other.address());
    let own = Arc::new(std::sync::OnceLock::<String>::new());
    let address = Arc::clone(&own);
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            return Reply::redirect(&target);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", address.get().unwrap());
        Reply::status(401).with("www-authenticate", &realm)
    });
    own.set(server.address()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error =
        open(&trusting(dir.path(), &server)).resolve(&format!("{}/team/x:1", server.address())).unwrap_err();
    assert!(error.to_string().contains("answered 307"), "{error}");
    assert_eq!((server.count("/token"), other.requests().len()), (1, 0));
}

/// Without being listed as insecure a registry is spoken to with TLS, and gets neither a request nor a password in
/// clear.
#[test]
fn registries_that_are_not_listed_as_insecure() {
    let server = elsewhere();
    let dir = tempfile::tempdir().unwrap();
    let raw = RawOciConfig {
        insecure: Vec::new(),
        private_hosts: vec!["127.0.0.1".to_owned()],
        ..trusting(dir.path(), &server)
    };
    let error = open(&raw).resolve(&format!("{}/team/x:1", server.address())).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
    assert!(
        server.requests().iter().all(|request| request.authorization.is_none() && request.path.is_empty())
    );
}

#[test]
fn uploads_to_other_hosts() {
    let other = elsewhere();
    let target = format!("http://{}/upload", other.address());
    let server = Server::start(move |request| match request.method.as_str() {
        "POST" => Reply::status(202).with("location", &target),
        _ => Reply::status(404),
    });
    let dir = tempfile::tempdir().unwrap();
    let image = format!("{}/team/x:1", server.address()).parse().unwrap();
    let store = open(&trusting(dir.path(), &server));
    let error = store.push(&module(1), &image, &PushOptions::default()).unwrap_err();
    assert!(error.to_string().contains("for uploads"), "{error}");
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn hosts_at_private_addresses_need_to_be_listed() {
    let server = elsewhere();
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let dir = tempfile::tempdir().unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let store = open(&config(dir.path()));
        let error = store.resolve(&format!("{host}:{port}/team/x:1")).unwrap_err().to_string();
        assert!(error.contains("privateHosts"), "{error}");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn passing_failures_are_asked_again_and_the_wait_is_bounded() {
    let asked = Arc::new(AtomicUsize::new(0));
    let artefact = Artefact::of(module(1));
    let counter = Arc::clone(&asked);
    let server = Server::start(move |request| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(429).with("retry-after", "1"),
        1 => Reply::status(503).with("retry-after", "100000"),
        _ => artefact.reply(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let raw =
        RawOciConfig { attempts: 4, max_retry_after: Span::from_ms(1_200), ..trusting(dir.path(), &server) };
    let begun = Instant::now();
    open(&raw).resolve(&format!("{}/team/x:1", server.address())).unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(2_100) && took < Duration::from_secs(6), "{took:?}");

    let down = Server::start(|_| Reply::status(500));
    let other = tempfile::tempdir().unwrap();
    let raw = RawOciConfig { attempts: 3, ..trusting(other.path(), &down) };
    let error = open(&raw).resolve(&format!("{}/team/x:1", down.address())).unwrap_err();
    assert_eq!((error.disposition(), down.requests().len()), (Disposition::Transient, 3));
}

#[test]
fn mirrors_are_asked_in_order_and_a_wrong_one_is_passed_over() {
    let mut wrong = module(1);
    *wrong.last_mut().unwrap() ^= 1;
    let lying = Server::start(but_for_module(move || Reply::body("x/y", &wrong)));
    let good = Server::start(|request: &Request| {
        let path = request.path.replace("/proxy/", "/");
        Artefact::of(module(1)).reply(&Request { path, ..request.clone() })
    });
    let dir = tempfile::tempdir().unwrap();
    let raw = RawOciConfig {
        insecure: vec![lying.address(), good.address(), "127.0.0.1:9".to_owned()],
        mirrors: vec![RawMirrors {
            registry: "registry.invalid".to_owned(),
            mirrors: vec!["127.0.0.1:9".to_owned(), lying.address(), format!("{}/proxy", good.address())],
        }],
        ..config(dir.path())
    };
    let resolved = open(&raw).resolve("registry.invalid/team/x:1").unwrap();
    assert_eq!(resolved.module.digest, digest_of(&module(1)));
    assert_eq!((lying.count("/blobs/"), good.count("/v2/proxy/team/x/blobs/")), (2, 1));
    assert_eq!(good.count("/manifests/"), 0, "the first mirror that has it answers");
}

#[test]
fn a_module_is_fetched_by_its_digest_alone() {
    let server = Server::start(serving(Artefact::of(module(1))));
    let dir = tempfile::tempdir().unwrap();
    let store = open(&trusting(dir.path(), &server));
    let image = Some(format!("{}/team/x:gone", server.address()));
    assert_eq!(store.fetch(&ModuleRef { digest: digest_of(&module(1)), image }).unwrap(), module(1));
    assert_eq!(server.count("/manifests/"), 0);
}
