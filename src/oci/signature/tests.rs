//! Signatures: a real one of cosign, and what is made here to be wrong.

use super::*;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::LineEnding;

/// A signature that cosign made, with its public key: from the transparency-log entry (log index 63825695) in the
/// public README of github.com/R3DRUN3/immunize. The payload is the one that `cosign verify` printed.
const REAL_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2ZobFTItyOXob9pKspR0aDSaXjVj\n\
    DEp8brDskB6OnMUx7GQEblD2RDBBmP5TAKvspay2syp4Z+5s2V69vS8OKg==\n\
    -----END PUBLIC KEY-----\n";
const REAL_SIGNATURE: &str =
    "MEYCIQC1zu0j7Yz5KQjpaNlNy/FJTOqPgI8Dw+mTzgk8GbcWYgIhANPZO47LSoqo60bXYwxij5JACVlif6ivjS6UZFRL0wi3";
const REAL_DIGEST: &str = "sha256:19940c59087a363148b44c56447186d97d6afbc2165727b2d0a2ea0ce43b69fd";
const REAL_PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"ghcr.io/r3drun3/immunize/docker.io/library/node"},"image":{"docker-manifest-digest":"sha256:19940c59087a363148b44c56447186d97d6afbc2165727b2d0a2ea0ce43b69fd"},"type":"cosign container image signature"},"optional":null}"#;

fn simple(payload: &str, signature: &str) -> Evidence {
    Evidence::SimpleSigning { payload: STANDARD.encode(payload), signature: signature.to_owned() }
}

fn key(seed: u8) -> (SigningKey, PublicKey) {
    let signing = SigningKey::from_slice(&[seed; 32]).unwrap();
    let pem = signing.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    (signing, PublicKey::from_pem("test".to_owned(), &pem).unwrap())
}

fn sign(key: &SigningKey, message: &[u8]) -> String {
    let signature: Signature = key.sign(message);
    STANDARD.encode(signature.to_der())
}

fn payload(manifest: Digest) -> String {
    REAL_PAYLOAD.replace(REAL_DIGEST, &manifest.to_string())
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

#[test]
fn a_signature_of_cosign_itself_is_good() {
    let keys = [PublicKey::from_pem("cosign.pub".to_owned(), REAL_KEY).unwrap()];
    let evidence = simple(REAL_PAYLOAD, REAL_SIGNATURE);
    let good = evidence.check(&keys, REAL_DIGEST.parse().unwrap()).unwrap();
    assert!(good.starts_with("cosign.pub ("), "{good}");
    assert!(evidence.check(&keys, digest(1)).unwrap_err().contains("another manifest"));
    assert!(evidence.check(&[key(1).1], REAL_DIGEST.parse().unwrap()).unwrap_err().contains("not by a key"));
    let changed = simple(&REAL_PAYLOAD.replace("1994", "1995"), REAL_SIGNATURE);
    assert!(changed.check(&keys, REAL_DIGEST.parse().unwrap()).is_err());
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let ((signing, public), (other, _)) = (key(1), key(2));
    let text = payload(digest(5));
    let good = simple(&text, &sign(&signing, text.as_bytes()));
    let wrong = simple(&text, &sign(&other, text.as_bytes()));
    let keys = [key(3).1, public];
    assert!(verify(&[wrong.clone(), good], &keys, digest(5)).is_ok());
    assert!(verify(&[wrong], &keys, digest(5)).unwrap_err().contains("not by a key"));
    assert_eq!(verify(&[], &keys, digest(5)).unwrap_err(), "it is not signed");
    assert!(verify(&[simple(&text, "?")], &keys, digest(5)).unwrap_err().contains("base64"));
    assert!(verify(&[simple(&text, "")], &[], digest(5)).is_err());
}

#[test]
fn a_signed_text_that_is_no_signature_payload_is_refused() {
    let (signing, public) = key(1);
    for (text, word) in [
        ("{}".to_owned(), "not cosign's"),
        (payload(digest(5)).replace("cosign container image signature", "atomic"), "type"),
    ] {
        let evidence = simple(&text, &sign(&signing, text.as_bytes()));
        let reason = evidence.check(std::slice::from_ref(&public), digest(5)).unwrap_err();
        assert!(reason.contains(word), "{reason}");
    }
}

fn bundle(signing: &SigningKey, subject: Digest, predicate: &str) -> Evidence {
    let statement = format!(
        r#"{{"_type": "https://in-toto.io/Statement/v1", "predicateType": "{predicate}", "predicate": {{}},
            "subject": [{{"name": "", "digest": {{"sha256": "{}"}}}}]}}"#,
        subject.hex()
    );
    let signature = sign(signing, &pre_authentication(IN_TOTO, statement.as_bytes()));
    let bundle = format!(
        r#"{{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {{"publicKey": {{"hint": "x"}}}},
            "dsseEnvelope": {{"payload": "{}", "payloadType": "{IN_TOTO}", "signatures": [{{"sig": "{signature}"}}]}}}}"#,
        STANDARD.encode(&statement)
    );
    Evidence::Bundle { bundle }
}

#[test]
fn bundles_are_checked_too() {
    let (signing, public) = key(1);
    let keys = [public];
    assert!(bundle(&signing, digest(5), COSIGN_PREDICATE).check(&keys, digest(5)).is_ok());
    for (evidence, word) in [
        (bundle(&signing, digest(6), COSIGN_PREDICATE), "another manifest"),
        (bundle(&signing, digest(5), "https://slsa.dev/provenance/v1"), "not a signature"),
        (bundle(&key(2).0, digest(5), COSIGN_PREDICATE), "not by a key"),
        (Evidence::Bundle { bundle: r#"{"messageSignature": {}}"#.to_owned() }, "no signed envelope"),
    ] {
        let reason = evidence.check(&keys, digest(5)).unwrap_err();
        assert!(reason.contains(word), "{reason}");
    }
}

/// The example of the DSSE specification (protocol.md, "PAE").
#[test]
fn the_encoding_is_the_one_of_the_specification() {
    assert_eq!(
        pre_authentication("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}

#[test]
fn a_file_may_have_several_keys() {
    let pem = |seed: u8| key(seed).0.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    let keys = PublicKey::all_from_pem("x", &format!("\n{}\n{}\n", pem(1), pem(2))).unwrap();
    let labels: Vec<_> = keys.iter().map(PublicKey::label).collect();
    assert_eq!(labels.len(), 2);
    assert_ne!(labels[0], labels[1]);
    for bad in [String::new(), " \n".into(), format!("{}rest", pem(1)), format!("{}{REAL_KEY}x", pem(1))] {
        assert!(PublicKey::all_from_pem("x", &bad).is_err(), "{bad}");
    }
}

#[test]
fn other_keys_are_refused() {
    for pem in
        ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "-----BEGIN PRIVATE KEY-----"]
    {
        assert!(PublicKey::from_pem("x".to_owned(), pem).is_err());
    }
}
