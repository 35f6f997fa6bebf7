//! A system without certificates of authorities, as small images are: registries without TLS and those with an
//! authority of their own work, and of the others the error says what is missing.

use std::process::Command;

use coproc::core::disposition::Disposition;
use coproc::oci::{OciError, PushOptions, RawOciConfig};

use crate::world::{Registry, config, module, open, store};

#[test]
#[ignore = "run by a_system_without_certificates, in a process of its own"]
fn child_without_certificates() {
    let of = |name: &str| std::env::var(name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let plain = format!("{}/a:1", of("OCI_TEST_PLAIN"));
    let without_tls = store(dir.path(), &[&of("OCI_TEST_PLAIN")]);
    without_tls.push(&module(1), &plain.parse().unwrap(), &PushOptions::default()).unwrap();

    let with_tls = format!("{}/a:1", of("OCI_TEST_TLS")).parse().unwrap();
    let raw = RawOciConfig { private_hosts: vec!["127.0.0.1".to_owned()], ..config(dir.path()) };
    let own = RawOciConfig { ca_files: vec![of("OCI_TEST_CA").into()], ..raw.clone() };
    open(&own).push(&module(1), &with_tls, &PushOptions::default()).unwrap();

    let error = open(&raw).resolve_image(&with_tls).unwrap_err();
    assert!(matches!(&error, OciError::NoAuthorities { host } if host == "127.0.0.1"), "{error}");
    assert!(
        error.to_string().contains("caFiles") && error.to_string().contains("ca-certificates"),
        "{error}"
    );
    assert_eq!(error.disposition(), Disposition::User);
}

#[test]
fn a_system_without_certificates() {
    let (plain, tls) = (Registry::start("plain"), Registry::start("tls"));
    let empty = tempfile::tempdir().unwrap();
    let test = "authorities::child_without_certificates";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("SSL_CERT_DIR", empty.path())
        .env("SSL_CERT_FILE", empty.path().join("none.pem"))
        .env("OCI_TEST_PLAIN", plain.address())
        .env("OCI_TEST_TLS", tls.address())
        .env("OCI_TEST_CA", tls.get("CA"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}
