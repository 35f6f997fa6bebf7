//! The `RuntimePool`: nodes that share one Kafka connection; the unit of isolation and scaling.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::shared::{byte_size, span};

/// Nodes of a pool: as many as one block of node ids has.
pub const MAX_REPLICAS: i32 = 1000;

fn brokers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 3, "maxLength": 260, "pattern": r"^[^\s/,]+:[0-9]{1,5}$"}})
}

fn object_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 32, "x-kubernetes-list-type": "set", "items": {"type": "string",
        "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}})
}

fn object_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"})
}

fn data_key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[-._a-zA-Z0-9]+$"})
}

fn prefixes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 64, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "maxLength": 249, "pattern": "^[a-zA-Z0-9._-]*$"}})
}

fn host(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 260, "pattern": r"^[^\s/@]+$"})
}

fn hosts(generator: &mut SchemaGenerator) -> Schema {
    let item = host(generator);
    json_schema!({"type": "array", "maxItems": 16, "x-kubernetes-list-type": "set", "items": item})
}

fn mirror_places(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 8, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 512, "pattern": r"^[^\s@]+$"}})
}

fn client_config(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 256}})
}

fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 1024}})
}

/// One key of a Secret of the pool's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret.
    #[schemars(schema_with = "object_name")]
    pub name: String,
    /// The key in its data.
    #[schemars(schema_with = "data_key")]
    pub key: String,
}

/// TLS towards the brokers. Without a Secret the system's authorities are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// Certificates of the authorities that are trusted, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret: Option<SecretKey>,
    /// A Secret of type `kubernetes.io/tls` with the client's certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_name")]
    pub client_certificate_secret: Option<String>,
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SaslMechanism {
    /// Name and password in clear; use it with TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// SCRAM with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// SCRAM with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// The name of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Name and password towards the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SaslSpec {
    /// The mechanism.
    pub mechanism: SaslMechanism,
    /// Where the user's name is.
    pub username_secret: SecretKey,
    /// Where the password is.
    pub password_secret: SecretKey,
}

/// The Kafka cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSpec {
    /// `host:port` of some of its brokers.
    #[schemars(schema_with = "brokers")]
    pub bootstrap_servers: Vec<String>,
    /// TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<SaslSpec>,
    /// Settings of the client, of those that are allowed: what the exactly-once protocol sets itself is not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "client_config")]
    pub config: BTreeMap<String, String>,
}

/// Other places for the images of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// The registry, as it stands in images.
    #[schemars(schema_with = "host")]
    pub registry: String,
    /// `host[:port][/path]`s that are asked before it, in this order.
    #[schemars(schema_with = "mirror_places")]
    pub mirrors: Vec<String>,
}

/// Where modules are pulled from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistrySpec {
    /// Secrets of type `kubernetes.io/dockerconfigjson`.
    #[schemars(schema_with = "object_names")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
    /// Mirrors.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<MirrorSpec>,
    /// Registries that are spoken to without TLS: `host` or `host:port`.
    #[schemars(schema_with = "hosts")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<String>,
    /// Certificates of authorities that are trusted besides the system's, PEM.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca_secrets: Vec<SecretKey>,
    /// Registries that may be at private, link-local or loopback addresses: those inside the cluster.
    #[schemars(schema_with = "hosts")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub private_hosts: Vec<String>,
    /// Hosts besides the registry itself that may hand out its tokens, and so see credentials.
    #[schemars(schema_with = "hosts")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_hosts: Vec<String>,
    /// Hosts that a registry may redirect downloads to. They see no credentials.
    #[schemars(schema_with = "hosts")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redirect_hosts: Vec<String>,
}

/// Signatures of modules: with this set, what is not signed does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationSpec {
    /// Public keys of cosign (ECDSA P-256), PEM, one after the other: a signature by any of them is enough.
    pub public_key_secret: SecretKey,
}

/// What the pool's resources may bind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicsSpec {
    /// Prefixes of the topics that may be read; all when empty.
    #[schemars(schema_with = "prefixes")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Prefixes of the topics that may be written; all when empty.
    #[schemars(schema_with = "prefixes")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Whether output and dead-letter topics that are missing are created.
    pub create: bool,
}

/// Where nodes keep fetched and compiled modules. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CacheSpec {
    /// A claim of this class per node; without it an emptyDir.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_name")]
    pub storage_class_name: Option<String>,
    /// How large it may get.
    #[schemars(schema_with = "byte_size")]
    pub size: String,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self { storage_class_name: None, size: "1Gi".into() }
    }
}

/// When pods change their image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpgradePolicy {
    /// When `image` changes, and never by a new version of the operator.
    #[default]
    Manual,
    /// With the operator as well.
    Auto,
}

/// What the pods get besides what the operator gives them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplateSpec {
    /// Labels of the pods.
    #[schemars(schema_with = "labels")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[schemars(schema_with = "labels")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Nodes of the cluster that may run them.
    #[schemars(schema_with = "labels")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that they tolerate.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How they are spread; by default over hosts and zones, as far as possible.
    #[schemars(length(max = 8))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_name")]
    pub priority_class_name: Option<String>,
    /// Secrets for pulling the image of the pods.
    #[schemars(schema_with = "object_names")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
}

/// The NetworkPolicy of the pods: ingress is metrics and probes only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Whether there is one.
    pub enabled: bool,
    /// Egress rules; open when empty.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<NetworkPolicyEgressRule>,
}

impl Default for NetworkPolicySpec {
    fn default() -> Self {
        Self { enabled: true, egress: Vec::new() }
    }
}

fn one_replica() -> i32 {
    1
}

fn drain_timeout() -> String {
    "8s".into()
}

/// The nodes that run coprocessors and pipelines.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "coproc.dev",
    version = "v1alpha1",
    kind = "RuntimePool",
    namespaced,
    status = "RuntimePoolStatus",
    shortname = "rtpool",
    category = "coproc",
    derive = "PartialEq",
    doc = "Nodes that share one Kafka connection and run the coprocessors and pipelines that name the pool.",
    validation = ("size(self.metadata.name) <= 40", "the name becomes part of the pods' names: use at most 40 characters"),
    validation = ("!self.metadata.name.contains('.')", "the name becomes part of labels: use no dots"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Node-IDs", type_ = "integer", json_path = ".status.nodeIdBase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Image", type_ = "string", priority = 1, json_path = ".status.image"),
    printcolumn(name = "Kafka", type_ = "string", priority = 1, json_path = ".spec.kafka.bootstrapServers"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].message"#)
)]
#[x_kube(
    validation = ("!has(oldSelf.nodeIdBase) || has(self.nodeIdBase)", "nodeIdBase cannot be removed once set"),
)]
#[serde(rename_all = "camelCase")]
pub struct RuntimePoolSpec {
    /// Number of nodes.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// The Kafka cluster.
    pub kafka: KafkaSpec,
    /// Where modules are pulled from.
    #[serde(default)]
    pub registry: RegistrySpec,
    /// Signatures of modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationSpec>,
    /// What the resources of the pool may bind.
    #[serde(default)]
    pub topics: TopicsSpec,
    /// Secrets that are mounted for deployments to refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "object_names")]
    pub secrets: Vec<String>,
    /// Image of the pods; by default the one that belongs to the operator's version when the pool is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// When pods change their image.
    #[serde(default)]
    pub upgrade_policy: UpgradePolicy,
    /// First node id: a multiple of 1000. Claimed by the operator when it is not set. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 4_000_000))]
    #[x_kube(
        validation = ("self % 1000 == 0", "nodeIdBase must be a multiple of 1000"),
        validation = ("self == oldSelf", "nodeIdBase cannot be changed"),
    )]
    pub node_id_base: Option<u32>,
    /// Most lanes of a node; by default as its memory and file limits allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_lanes: Option<u32>,
    /// How long a node may take to commit and to leave its groups when it stops, at most 8s.
    #[serde(default = "drain_timeout")]
    #[schemars(schema_with = "span")]
    pub drain_timeout: String,
    /// Where nodes keep modules.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "cache cannot be changed: make a new pool"))]
    pub cache: CacheSpec,
    /// Requests and limits of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What the pods get besides.
    #[serde(default)]
    pub template: PodTemplateSpec,
    /// The NetworkPolicy of the pods.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
}

/// What was seen of a pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuntimePoolStatus {
    /// The generation that the conditions speak of.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled`, `KafkaReachable`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Pods that there are.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready and wanted pods, for people.
    #[serde(default)]
    pub nodes: String,
    /// Selects the pods, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// First id of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id_base: Option<u32>,
    /// Image of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Names the keys that modules have to be signed with; with others, signatures are checked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_policy: Option<String>,
}
