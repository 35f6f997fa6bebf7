//! The `Coprocessor`: one module bound to input topics, output topics and policies.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::shared::{
    BatchSpec, DeletionPolicy, DeliverySpec, ErrorPolicySpec, LimitsSpec, ModuleSpec, OutputNaming,
    PartitionerSpec, StartOffsetSpec, default_pool, dns_label, environment, input_topics, one, output_topics,
};
use super::status::DeploymentResourceStatus;

/// A module that runs on every record of its input topics.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "coproc.dev",
    version = "v1alpha1",
    kind = "Coprocessor",
    namespaced,
    status = "DeploymentResourceStatus",
    shortname = "cop",
    category = "coproc",
    derive = "PartialEq",
    doc = "A WebAssembly module that runs on every record of its input topics and writes its output topics.",
    validation = ("size(self.metadata.name) <= 150", "the name is part of the consumer group's: use at most 150 characters"),
    selectable = ".spec.pool",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.module.shortDigest"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Inputs", type_ = "string", priority = 1, json_path = ".spec.inputTopics"),
    printcolumn(name = "Outputs", type_ = "string", priority = 1, json_path = ".spec.outputTopics"),
    printcolumn(name = "Image", type_ = "string", priority = 1, json_path = ".spec.module.image"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].message"#)
)]
#[x_kube(
    validation = ("has(self.consumerGroup) == has(oldSelf.consumerGroup)",
        "consumerGroup cannot be changed: delete the resource and create it anew"),
    validation = ("self.outputNaming == 'Materialized' || !self.outputTopics.exists(o, o in self.inputTopics)",
        "a topic is both input and output: records would go round for ever"),
    validation = ("!has(self.errorPolicy.deadLetterTopic) || !(self.errorPolicy.deadLetterTopic in self.inputTopics)",
        "deadLetterTopic is an input too: failing records would go round for ever"),
)]
#[serde(rename_all = "camelCase")]
pub struct CoprocessorSpec {
    /// The `RuntimePool` of the same namespace that runs it. Immutable.
    #[serde(default = "default_pool")]
    #[schemars(schema_with = "dns_label")]
    #[x_kube(validation = ("self == oldSelf", "pool cannot be changed: delete the resource and create it anew"))]
    pub pool: String,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
    /// The code.
    pub module: ModuleSpec,
    /// The topics that it reads.
    #[schemars(schema_with = "input_topics")]
    pub input_topics: Vec<String>,
    /// The topics that it writes; the first is the module's default.
    #[schemars(schema_with = "output_topics")]
    pub output_topics: Vec<String>,
    /// How the output topics are named.
    #[serde(default)]
    pub output_naming: OutputNaming,
    /// How the partitions of outputs are chosen.
    #[serde(default)]
    pub partitioner: PartitionerSpec,
    /// The module's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "environment")]
    pub env: BTreeMap<String, String>,
    /// Where a partition without a committed offset starts.
    #[serde(default)]
    pub start_offset: StartOffsetSpec,
    /// A consumer group of one's own choice. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = ("self == oldSelf",
        "consumerGroup cannot be changed: delete the resource and create it anew"))]
    pub consumer_group: Option<String>,
    /// The guarantee.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// What is done about records that the module fails at.
    #[serde(default)]
    pub error_policy: ErrorPolicySpec,
    /// Number of lanes per node: threads with a consumer, a producer and an instance each.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub parallelism: u16,
    /// How much is done at once.
    #[serde(default)]
    pub batch: BatchSpec,
    /// Bounds of the module.
    #[serde(default)]
    pub limits: LimitsSpec,
    /// Whether it stands still: it commits, leaves its group, and goes on from there later.
    #[serde(default)]
    pub paused: bool,
    /// What happens to the consumer group when the resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}
