//! What coprocessors and pipelines have in common, as users write it.
//!
//! Everything here is text and numbers: parsing into the types of `core` is the business of `validate`. Lists and
//! texts are bounded, because the API server prices the CEL rules by the largest object that could be.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::core::deployment as core;
use crate::core::partitioner::Partitioner as CorePartitioner;

/// Text of a topic's name, in the schema.
pub fn topic(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 249, "pattern": "^[a-zA-Z0-9._-]+$"})
}

/// A set of input topics.
pub fn input_topics(generator: &mut SchemaGenerator) -> Schema {
    let item = topic(generator);
    json_schema!({"type": "array", "minItems": 1, "maxItems": core::MAX_INPUTS, "items": item,
        "x-kubernetes-list-type": "set"})
}

/// A set of output topics.
pub fn output_topics(generator: &mut SchemaGenerator) -> Schema {
    let item = topic(generator);
    json_schema!({"type": "array", "minItems": 1, "maxItems": core::MAX_OUTPUTS, "items": item,
        "x-kubernetes-list-type": "set"})
}

/// A DNS label, like the name of a pool.
pub fn dns_label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63,
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

/// A number of bytes, like `32Mi`.
pub fn byte_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 20, "pattern": "^[0-9]+(Ki|Mi|Gi|k|K|M|G|B)?$"})
}

/// A span of time, like `100ms`.
pub fn span(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 20, "pattern": "^[0-9]+(ms|s|m|h|d)$"})
}

/// The environment of a guest.
pub fn environment(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": core::MAX_ENV,
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": core::MAX_ENV_VALUE}})
}

/// Name of the pool that resources use when they name none.
pub fn default_pool() -> String {
    "default".into()
}

/// One lane per node.
pub fn one() -> u16 {
    1
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSpec {
    /// An OCI image that holds the module: `registry/repository:tag`, or `@sha256:…`. What it leads to is in the
    /// status; nodes fetch by digest only.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$"))]
    pub image: String,
    /// When the tag is looked up.
    #[serde(default)]
    pub resolve: ResolveSpec,
}

/// When a tag is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ResolvePolicy {
    /// Once for each change of `image`: a tag that is moved changes nothing.
    #[default]
    OnChange,
    /// Again after each `interval`: the module that a moved tag leads to is swapped in.
    Interval,
}

/// When a tag is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = ("(self.policy == 'Interval') == has(self.interval)",
        "interval belongs to policy Interval, and only to it"),
)]
#[serde(rename_all = "camelCase")]
pub struct ResolveSpec {
    /// When.
    #[serde(default)]
    pub policy: ResolvePolicy,
    /// For `Interval`: how often, 10s to 30d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "span")]
    pub interval: Option<String>,
}

/// Where a partition starts that was never read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum StartType {
    /// At the first record there is.
    #[default]
    Earliest,
    /// After the last record there is.
    Latest,
    /// At the first record with at least `timestamp`.
    Timestamp,
    /// `records` records after the first.
    FromStart,
    /// `records` records before the end.
    FromEnd,
}

/// Where a partition without a committed offset starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = ("(self.type == 'Timestamp') == has(self.timestamp)",
        "timestamp belongs to type Timestamp, and only to it"),
    validation = ("(self.type in ['FromStart', 'FromEnd']) == has(self.records)",
        "records belongs to types FromStart and FromEnd, and only to them"),
)]
#[serde(rename_all = "camelCase")]
pub struct StartOffsetSpec {
    /// Which kind of start.
    #[serde(default, rename = "type")]
    pub start: StartType,
    /// For `Timestamp`: the time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub timestamp: Option<String>,
    /// For `FromStart` and `FromEnd`: how many offsets. What transactions leave behind and what was compacted away count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub records: Option<i64>,
}

/// How an output topic is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OutputNaming {
    /// As it is written.
    #[default]
    Plain,
    /// `<source>._<output>_`, made with the partitions of its source, for the coprocessor alone to write.
    Materialized,
}

impl From<OutputNaming> for core::Naming {
    fn from(naming: OutputNaming) -> Self {
        match naming {
            OutputNaming::Plain => Self::Plain,
            OutputNaming::Materialized => Self::Materialized,
        }
    }
}

/// How the partition of an output is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PartitionerSpec {
    /// As Kafka's Java client does: by the key; without a key by the source partition.
    #[default]
    Key,
    /// By the source partition.
    Source,
}

impl From<PartitionerSpec> for CorePartitioner {
    fn from(partitioner: PartitionerSpec) -> Self {
        match partitioner {
            PartitionerSpec::Key => Self::Key,
            PartitionerSpec::Source => Self::Source,
        }
    }
}

/// The guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeliverySpec {
    /// Exactly once, unless the broker says that it has no transactions.
    #[default]
    Auto,
    /// Exactly once, or not at all.
    ExactlyOnce,
    /// At least once.
    AtLeastOnce,
}

impl From<DeliverySpec> for core::Delivery {
    fn from(delivery: DeliverySpec) -> Self {
        match delivery {
            DeliverySpec::Auto => Self::Auto,
            DeliverySpec::ExactlyOnce => Self::ExactlyOnce,
            DeliverySpec::AtLeastOnce => Self::AtLeastOnce,
        }
    }
}

/// What happens to a record that fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnExhaustedSpec {
    /// Its partition stops there and says so.
    #[default]
    Fail,
    /// It is left out.
    Skip,
    /// It goes to `deadLetterTopic`.
    DeadLetter,
}

impl From<OnExhaustedSpec> for core::OnExhausted {
    fn from(policy: OnExhaustedSpec) -> Self {
        match policy {
            OnExhaustedSpec::Fail => Self::Fail,
            OnExhaustedSpec::Skip => Self::Skip,
            OnExhaustedSpec::DeadLetter => Self::DeadLetter,
        }
    }
}

/// What is done about records that the module fails at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.onExhausted != 'DeadLetter' || has(self.deadLetterTopic)",
    "message": "onExhausted: DeadLetter needs a deadLetterTopic"}]))]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorPolicySpec {
    /// How often a record is tried again, each time on a fresh instance.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_retries: u32,
    /// What happens then.
    pub on_exhausted: OnExhaustedSpec,
    /// Where dead letters go.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "topic")]
    pub dead_letter_topic: Option<String>,
    /// The wait before the first retry; it doubles with each one.
    #[schemars(schema_with = "span")]
    pub initial_backoff: String,
    /// The longest wait.
    #[schemars(schema_with = "span")]
    pub max_backoff: String,
}

impl Default for ErrorPolicySpec {
    fn default() -> Self {
        let policy = core::ErrorPolicy::default();
        Self {
            max_retries: policy.max_retries,
            on_exhausted: OnExhaustedSpec::default(),
            dead_letter_topic: None,
            initial_backoff: policy.initial_backoff.to_string(),
            max_backoff: policy.max_backoff.to_string(),
        }
    }
}

/// How much is done at once, and how often it is committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchSpec {
    /// Most records handed to the module at once.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_records: u32,
    /// About the most bytes handed to the module at once, at most 64Mi.
    #[schemars(schema_with = "byte_size")]
    pub max_bytes: String,
    /// The longest that processed records stay invisible while more keep coming, less than 10s.
    #[schemars(schema_with = "span")]
    pub commit_interval: String,
    /// Records after which it is committed early.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_commit_records: u32,
    /// Output bytes after which it is committed early, at most 1Gi. The embedded log, which keeps them in memory until
    /// then, does so at 16Mi at the latest.
    #[schemars(schema_with = "byte_size")]
    pub max_commit_bytes: String,
}

impl Default for BatchSpec {
    fn default() -> Self {
        let batch = core::BatchPolicy::default();
        Self {
            max_records: batch.max_records,
            max_bytes: batch.max_bytes.to_string(),
            commit_interval: batch.commit_interval.to_string(),
            max_commit_records: batch.max_commit_records,
            max_commit_bytes: batch.max_commit_bytes.to_string(),
        }
    }
}

/// Bounds of the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsSpec {
    /// Largest linear memory, 64Ki to 4Gi.
    #[schemars(schema_with = "byte_size")]
    pub memory: String,
    /// Longest time for one record, and for the start, less than 10s.
    #[schemars(schema_with = "span")]
    pub time_per_record: String,
    /// Most output bytes for one record, at most 128Mi.
    #[schemars(schema_with = "byte_size")]
    pub max_output_bytes: String,
}

impl Default for LimitsSpec {
    fn default() -> Self {
        let limits = core::Limits::default();
        Self {
            memory: limits.memory.to_string(),
            time_per_record: limits.time_per_record.to_string(),
            max_output_bytes: limits.max_output_bytes.to_string(),
        }
    }
}

/// What happens to the consumer group when the resource is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is deleted.
    #[default]
    Delete,
    /// It stays: a resource of the same name goes on where this one stopped.
    Retain,
}

/// One module of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepSpec {
    /// Names the step in errors and metrics; unique in the chain.
    #[schemars(schema_with = "dns_label")]
    pub name: String,
    /// The code.
    pub module: ModuleSpec,
    /// Its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "environment")]
    pub env: BTreeMap<String, String>,
    /// Its bounds.
    #[serde(default)]
    pub limits: LimitsSpec,
}
