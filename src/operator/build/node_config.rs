//! `node.yaml`: what the nodes of a pool read at their start. Secrets are named by the files they are mounted as.
//!
//! Fields that are not set are left out, so that a version with new fields makes the same text for the same pool.

use serde::Serialize;

use super::{HTTP_PORT, ValidPool};
use crate::core::units::ByteSize;
use crate::operator::crd::RuntimePoolSpec;
use crate::operator::crd::pool::{KafkaSpec, MirrorSpec, SecretKey, TopicsSpec};

/// Where Secrets are mounted.
pub const SECRETS: &str = "/etc/coproc/secrets";
/// Where modules are kept.
pub const CACHE: &str = "/var/cache/coproc";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeYaml<'a> {
    installation: &'a str,
    namespace: &'a str,
    pool: &'a str,
    node_id_base: u32,
    http: String,
    drain: &'a str,
    dir: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_lanes: Option<u32>,
    kafka: KafkaYaml<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topics: Option<&'a TopicsSpec>,
    registry: RegistryYaml<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KafkaYaml<'a> {
    bootstrap_servers: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsYaml>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sasl: Option<SaslYaml>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    config: &'a std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "they are the words of the file")]
struct TlsYaml {
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SaslYaml {
    mechanism: &'static str,
    username_file: String,
    password_file: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegistryYaml<'a> {
    cache_dir: String,
    cache_max_bytes: ByteSize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    insecure: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ca_files: Vec<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    mirrors: &'a [MirrorSpec],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    token_hosts: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    redirect_hosts: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    private_hosts: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pull_secret_files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<VerificationYaml>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerificationYaml {
    public_key_files: [String; 1],
}

/// The file of one key of a mounted Secret.
pub fn secret_file(name: &str, key: &str) -> String {
    format!("{SECRETS}/{name}/{key}")
}

/// The text of `node.yaml`.
pub fn yaml(pool: &ValidPool) -> String {
    let spec = &pool.spec;
    let node = NodeYaml {
        installation: pool.installation.as_str(),
        namespace: pool.namespace.as_str(),
        pool: pool.name.as_str(),
        node_id_base: pool.node_id_base,
        http: format!("0.0.0.0:{HTTP_PORT}"),
        drain: &spec.drain_timeout,
        dir: CACHE,
        max_lanes: spec.max_lanes,
        kafka: kafka(&spec.kafka),
        topics: Some(&spec.topics).filter(|topics| **topics != TopicsSpec::default()),
        registry: registry(spec),
    };
    serde_yaml::to_string(&node).unwrap_or_default()
}

fn kafka(spec: &KafkaSpec) -> KafkaYaml<'_> {
    let tls = spec.tls.as_ref().map(|tls| {
        let of_client = |key| tls.client_certificate_secret.as_ref().map(|name| secret_file(name, key));
        TlsYaml {
            ca_file: tls.ca_secret.as_ref().map(|ca| secret_file(&ca.name, &ca.key)),
            certificate_file: of_client("tls.crt"),
            key_file: of_client("tls.key"),
        }
    });
    let sasl = spec.sasl.as_ref().map(|sasl| SaslYaml {
        mechanism: sasl.mechanism.as_str(),
        username_file: secret_file(&sasl.username_secret.name, &sasl.username_secret.key),
        password_file: secret_file(&sasl.password_secret.name, &sasl.password_secret.key),
    });
    KafkaYaml { bootstrap_servers: &spec.bootstrap_servers, tls, sasl, config: &spec.config }
}

fn registry(spec: &RuntimePoolSpec) -> RegistryYaml<'_> {
    let of = &spec.registry;
    let at = |key: &SecretKey| secret_file(&key.name, &key.key);
    let verification = spec.verification.as_ref();
    RegistryYaml {
        cache_dir: format!("{CACHE}/modules"),
        cache_max_bytes: modules_size(&spec.cache.size),
        insecure: &of.insecure,
        ca_files: of.ca_secrets.iter().map(at).collect(),
        mirrors: &of.mirrors,
        token_hosts: &of.token_hosts,
        redirect_hosts: &of.redirect_hosts,
        private_hosts: &of.private_hosts,
        pull_secret_files: of
            .pull_secrets
            .iter()
            .map(|name| secret_file(name, ".dockerconfigjson"))
            .collect(),
        verification: verification
            .map(|verification| VerificationYaml { public_key_files: [at(&verification.public_key_secret)] }),
    }
}

/// Modules get half of the volume: the other half is for what they are compiled to.
fn modules_size(volume: &str) -> ByteSize {
    let volume = volume.parse::<ByteSize>().map_or(1 << 30, |size| size.0);
    ByteSize(volume / 2)
}
