//! The `Pipeline`: a source, a chain of modules, sinks.
//!
//! Kinds of sources and sinks that this version has no connector for are part of the schema, so that a manifest
//! is portable; `validate` refuses them with `ConnectorNotAvailable`.

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{
    BatchSpec, DeletionPolicy, DeliverySpec, ErrorPolicySpec, OutputNaming, PartitionerSpec, StartOffsetSpec,
    StepSpec, default_pool, dns_label, input_topics, one, topic,
};
use super::status::DeploymentResourceStatus;

/// Kinds of sources and sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConnectorType {
    /// Topics of the pool's Kafka, or of another one.
    Kafka,
    /// HTTP requests.
    Http,
    /// NATS subjects.
    Nats,
    /// RabbitMQ queues.
    RabbitMq,
    /// AWS SQS queues.
    Sqs,
    /// AWS SNS topics; a sink only.
    Sns,
    /// Google Pub/Sub.
    PubSub,
    /// Azure Service Bus.
    ServiceBus,
}

fn open(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 64, "x-kubernetes-preserve-unknown-fields": true})
}

fn brokers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1, "maxLength": 260}})
}

/// Fields of connectors that have no typed form yet.
pub type Open = Map<String, Value>;

/// Kafka as a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("has(self.consumerGroup) == has(oldSelf.consumerGroup)",
    "consumerGroup cannot be changed: delete the resource and create it anew"))]
#[serde(rename_all = "camelCase")]
pub struct KafkaSourceSpec {
    /// The topics.
    #[schemars(schema_with = "input_topics")]
    pub topics: Vec<String>,
    /// Where a partition without a committed offset starts.
    #[serde(default)]
    pub start_offset: StartOffsetSpec,
    /// A consumer group of one's own choice. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = ("self == oldSelf",
        "consumerGroup cannot be changed: delete the resource and create it anew"))]
    pub consumer_group: Option<String>,
    /// Brokers of another cluster than the pool's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "brokers")]
    pub bootstrap_servers: Vec<String>,
}

/// Kafka as a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSinkSpec {
    /// The topic.
    #[schemars(schema_with = "topic")]
    pub topic: String,
    /// How the topic is named.
    #[serde(default)]
    pub naming: OutputNaming,
    /// How partitions are chosen.
    #[serde(default)]
    pub partitioner: PartitionerSpec,
    /// Brokers of another cluster than the pool's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "brokers")]
    pub bootstrap_servers: Vec<String>,
}

/// Where records come from: a `type` with its field, or a `uri`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = ("has(self.type) != has(self.uri)", "give either type or uri"),
    validation = ("has(self.kafka) == (has(self.type) && self.type == 'Kafka')", "field kafka belongs to type Kafka"),
    validation = ("has(self.http) == (has(self.type) && self.type == 'Http')", "field http belongs to type Http"),
    validation = ("has(self.nats) == (has(self.type) && self.type == 'Nats')", "field nats belongs to type Nats"),
    validation = ("has(self.rabbitMq) == (has(self.type) && self.type == 'RabbitMq')", "field rabbitMq belongs to type RabbitMq"),
    validation = ("has(self.sqs) == (has(self.type) && self.type == 'Sqs')", "field sqs belongs to type Sqs"),
    validation = ("has(self.pubSub) == (has(self.type) && self.type == 'PubSub')", "field pubSub belongs to type PubSub"),
    validation = ("has(self.serviceBus) == (has(self.type) && self.type == 'ServiceBus')", "field serviceBus belongs to type ServiceBus"),
    validation = ("!has(self.type) || self.type != 'Sns'", "Sns is a sink, not a source"),
    // Otherwise its consumer group could be changed in two steps, and the first group would be left behind.
    validation = ("has(self.kafka) == has(oldSelf.kafka)",
        "a source cannot be changed to or from Kafka: delete the resource and create it anew"),
)]
#[serde(rename_all = "camelCase")]
pub struct SourceSpec {
    /// Which kind.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ConnectorType>,
    /// The source as a URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub uri: Option<String>,
    /// Kafka topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSourceSpec>,
    /// HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub http: Option<Open>,
    /// NATS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub nats: Option<Open>,
    /// RabbitMQ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub rabbit_mq: Option<Open>,
    /// AWS SQS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub sqs: Option<Open>,
    /// Google Pub/Sub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub pub_sub: Option<Open>,
    /// Azure Service Bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub service_bus: Option<Open>,
}

/// Where records go: a `type` with its field, or a `uri`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = ("has(self.type) != has(self.uri)", "give either type or uri"),
    validation = ("has(self.kafka) == (has(self.type) && self.type == 'Kafka')", "field kafka belongs to type Kafka"),
    validation = ("has(self.http) == (has(self.type) && self.type == 'Http')", "field http belongs to type Http"),
    validation = ("has(self.nats) == (has(self.type) && self.type == 'Nats')", "field nats belongs to type Nats"),
    validation = ("has(self.rabbitMq) == (has(self.type) && self.type == 'RabbitMq')", "field rabbitMq belongs to type RabbitMq"),
    validation = ("has(self.sqs) == (has(self.type) && self.type == 'Sqs')", "field sqs belongs to type Sqs"),
    validation = ("has(self.sns) == (has(self.type) && self.type == 'Sns')", "field sns belongs to type Sns"),
    validation = ("has(self.pubSub) == (has(self.type) && self.type == 'PubSub')", "field pubSub belongs to type PubSub"),
    validation = ("has(self.serviceBus) == (has(self.type) && self.type == 'ServiceBus')", "field serviceBus belongs to type ServiceBus"),
)]
#[serde(rename_all = "camelCase")]
pub struct SinkSpec {
    /// Which kind.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ConnectorType>,
    /// The sink as a URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub uri: Option<String>,
    /// A Kafka topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaSinkSpec>,
    /// HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub http: Option<Open>,
    /// NATS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub nats: Option<Open>,
    /// RabbitMQ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub rabbit_mq: Option<Open>,
    /// AWS SQS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub sqs: Option<Open>,
    /// AWS SNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub sns: Option<Open>,
    /// Google Pub/Sub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub pub_sub: Option<Open>,
    /// Azure Service Bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open")]
    pub service_bus: Option<Open>,
}

/// A source, a chain of modules, sinks: in one process, no hop between the steps.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "coproc.dev",
    version = "v1alpha1",
    kind = "Pipeline",
    plural = "pipelines",
    namespaced,
    status = "DeploymentResourceStatus",
    shortname = "copipe",
    category = "coproc",
    derive = "PartialEq",
    doc = "A source, a chain of WebAssembly modules, and sinks, in one process.",
    validation = ("size(self.metadata.name) <= 150", "the name is part of the consumer group's: use at most 150 characters"),
    selectable = ".spec.pool",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Steps", type_ = "string", priority = 1, json_path = ".spec.steps[*].name"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = r#".status.conditions[?(@.type=="Ready")].message"#)
)]
#[serde(rename_all = "camelCase")]
pub struct PipelineSpec {
    /// The `RuntimePool` of the same namespace that runs it. Immutable.
    #[serde(default = "default_pool")]
    #[schemars(schema_with = "dns_label")]
    #[x_kube(validation = ("self == oldSelf", "pool cannot be changed: delete the resource and create it anew"))]
    pub pool: String,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
    /// Where records come from.
    pub source: SourceSpec,
    /// The chain.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub steps: Vec<StepSpec>,
    /// Where records go.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub sinks: Vec<SinkSpec>,
    /// The guarantee.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// What is done about records that a module fails at.
    #[serde(default)]
    pub error_policy: ErrorPolicySpec,
    /// Number of lanes per node.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub parallelism: u16,
    /// How much is done at once.
    #[serde(default)]
    pub batch: BatchSpec,
    /// Whether it stands still.
    #[serde(default)]
    pub paused: bool,
    /// What happens to the consumer group when the resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}
