//! What a coprocessor and a pipeline have in common, so that every later step exists once.
//!
//! A `Draft` is the resource as written, in the shape of a pipeline. What this version cannot run at all is noted
//! as a problem here; everything else is checked by `validate`.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::deployment::Problem;
use crate::core::names::Kind;
use crate::operator::crd::pipeline::{KafkaSinkSpec, KafkaSourceSpec, SinkSpec, SourceSpec};
use crate::operator::crd::shared::{
    BatchSpec, DeletionPolicy, DeliverySpec, ErrorPolicySpec, OutputNaming, StepSpec,
};
use crate::operator::crd::{Coprocessor, DeploymentResourceStatus, Pipeline};

/// Name of a coprocessor's only step.
pub const MAIN_STEP: &str = "main";

/// A resource as written, whichever kind it is.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The pool that it names.
    pub pool: String,
    /// What it is for.
    pub description: String,
    /// Where records come from; `None` with a problem noted.
    pub source: Option<KafkaSourceSpec>,
    /// The chain.
    pub steps: Vec<StepSpec>,
    /// Where records go.
    pub sinks: Vec<KafkaSinkSpec>,
    /// The guarantee.
    pub delivery: DeliverySpec,
    /// What is done about failing records.
    pub error_policy: ErrorPolicySpec,
    /// Lanes per node.
    pub parallelism: u16,
    /// How much at once.
    pub batch: BatchSpec,
    /// Whether it stands still.
    pub paused: bool,
    /// The resource's uid.
    pub uid: Option<String>,
    /// What happens to the group at the end.
    pub deletion_policy: DeletionPolicy,
    /// What this version cannot run.
    pub unavailable: Vec<Problem>,
}

/// The two kinds that become deployments.
pub trait DeploymentKind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which of the two.
    const KIND: Kind;

    /// The resource in the common shape.
    fn draft(&self) -> Draft;

    /// The pool that it names.
    fn pool(&self) -> &str;

    /// Its status, as it was read.
    fn status(&self) -> Option<&DeploymentResourceStatus>;
}

impl DeploymentKind for Coprocessor {
    const KIND: Kind = Kind::Coprocessor;

    fn draft(&self) -> Draft {
        let spec = self.spec.clone();
        let sink = |topic| KafkaSinkSpec {
            topic,
            naming: spec.output_naming,
            partitioner: spec.partitioner,
            bootstrap_servers: Vec::new(),
        };
        Draft {
            pool: spec.pool,
            description: spec.description,
            source: Some(KafkaSourceSpec {
                topics: spec.input_topics,
                start_offset: spec.start_offset,
                consumer_group: spec.consumer_group,
                bootstrap_servers: Vec::new(),
            }),
            steps: vec![StepSpec {
                name: MAIN_STEP.into(),
                module: spec.module,
                env: spec.env,
                limits: spec.limits,
            }],
            sinks: spec.output_topics.into_iter().map(sink).collect(),
            delivery: spec.delivery,
            error_policy: spec.error_policy,
            parallelism: spec.parallelism,
            batch: spec.batch,
            paused: spec.paused,
            uid: self.metadata.uid.clone(),
            deletion_policy: spec.deletion_policy,
            unavailable: Vec::new(),
        }
    }

    fn pool(&self) -> &str {
        &self.spec.pool
    }

    fn status(&self) -> Option<&DeploymentResourceStatus> {
        self.status.as_ref()
    }
}

impl DeploymentKind for Pipeline {
    const KIND: Kind = Kind::Pipeline;

    fn draft(&self) -> Draft {
        let spec = self.spec.clone();
        let mut unavailable = Vec::new();
        let source = kafka_source(&spec.source, &mut unavailable);
        let sinks = spec.sinks.iter().enumerate();
        let sinks = sinks.filter_map(|(i, sink)| kafka_sink(i, sink, &mut unavailable)).collect();
        Draft {
            pool: spec.pool,
            description: spec.description,
            source,
            steps: spec.steps,
            sinks,
            delivery: spec.delivery,
            error_policy: spec.error_policy,
            parallelism: spec.parallelism,
            batch: spec.batch,
            paused: spec.paused,
            uid: self.metadata.uid.clone(),
            deletion_policy: spec.deletion_policy,
            unavailable,
        }
    }

    fn pool(&self) -> &str {
        &self.spec.pool
    }

    fn status(&self) -> Option<&DeploymentResourceStatus> {
        self.status.as_ref()
    }
}

fn kafka_source(source: &SourceSpec, unavailable: &mut Vec<Problem>) -> Option<KafkaSourceSpec> {
    let kafka = source.kafka.clone().filter(|kafka| kafka.bootstrap_servers.is_empty());
    if kafka.is_none() {
        let written = source.kind.map_or_else(|| "a uri".to_owned(), |kind| format!("type {kind:?}"));
        unavailable.push(not_available("spec.source", "source", &written));
    }
    kafka
}

fn kafka_sink(i: usize, sink: &SinkSpec, unavailable: &mut Vec<Problem>) -> Option<KafkaSinkSpec> {
    let kafka = sink.kafka.clone().filter(|kafka| kafka.bootstrap_servers.is_empty());
    if kafka.is_none() {
        let written = sink.kind.map_or_else(|| "a uri".to_owned(), |kind| format!("type {kind:?}"));
        unavailable.push(not_available(&format!("spec.sinks[{i}]"), "sink", &written));
    }
    kafka
}

fn not_available(field: &str, what: &str, written: &str) -> Problem {
    Problem {
        reason: "ConnectorNotAvailable",
        field: field.to_owned(),
        message: format!(
            "this version has no connector for a {what} with {written}: use type Kafka without bootstrapServers, \
             which is the pool's cluster, or a newer version"
        ),
    }
}

/// The field of the resource that a field of the deployment came from.
pub fn field_of(kind: Kind, field: &str) -> String {
    let renamed = match kind {
        Kind::Pipeline => None,
        Kind::Coprocessor => [
            ("source.kafka.topics", "inputTopics"),
            ("source.kafka.startOffset", "startOffset"),
            ("source.kafka.consumerGroup", "consumerGroup"),
            ("steps[0].", ""),
        ]
        .iter()
        .find_map(|(from, to)| field.strip_prefix(from).map(|rest| format!("{to}{rest}"))),
    };
    let sinks = |field: &str| {
        let rest = field.strip_prefix("sinks")?;
        Some(format!("outputTopics{}", rest.split(".kafka").next().unwrap_or(rest)))
    };
    let plain = field.strip_prefix("policies.").unwrap_or(field);
    let renamed = renamed.or_else(|| if kind == Kind::Coprocessor { sinks(field) } else { None });
    format!("spec.{}", renamed.as_deref().unwrap_or(plain))
}

/// Whether all sinks of a draft are named after their source.
pub fn is_materialized(draft: &Draft) -> bool {
    draft.sinks.iter().all(|sink| sink.naming == OutputNaming::Materialized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_the_user_wrote_them() {
        for (kind, field, wanted) in [
            (Kind::Coprocessor, "source.kafka.topics[1]", "spec.inputTopics[1]"),
            (Kind::Coprocessor, "steps[0].env.A", "spec.env.A"),
            (Kind::Coprocessor, "sinks[2].kafka.topic", "spec.outputTopics[2]"),
            (Kind::Coprocessor, "policies.batch.maxBytes", "spec.batch.maxBytes"),
            (Kind::Pipeline, "steps[0].env.A", "spec.steps[0].env.A"),
            (Kind::Pipeline, "sinks[2].kafka.topic", "spec.sinks[2].kafka.topic"),
            (Kind::Pipeline, "policies.parallelism", "spec.parallelism"),
        ] {
            assert_eq!(field_of(kind, field), wanted);
        }
    }
}
