//! From what is written to what is meant: every problem is reported, not the first. Pure.
//!
//! Past this step a resource is a `Deployment` that lacks nothing but its modules' digests, and a pool is `ValidPool`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::jiff::Timestamp;

use crate::core::deployment::{
    BatchPolicy, Deployment, ErrorPolicy, KafkaSink, KafkaSource, Limits, ModuleRef, Owner, Policies,
    Problem, SCHEMA, Sink, Source, StartOffset, Step,
};
use crate::core::digest::Digest;
use crate::core::names::{Kind, TopicName};
use crate::core::units::Span;
use crate::operator::crd::pool::{RuntimePoolSpec, TopicsSpec};
use crate::operator::crd::shared::{
    BatchSpec, ErrorPolicySpec, LimitsSpec, ModuleSpec, ResolvePolicy as Policy, StartOffsetSpec, StartType,
    StepSpec,
};
use crate::operator::draft::{Draft, field_of};

/// How often a tag may be looked up: registries count requests.
const RESOLVE_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24 * 30);

/// Where an image led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The image as it was written.
    pub image: String,
    /// The same image by the digest of its manifest, so that what is pulled is what was resolved.
    pub pinned: String,
    /// The digest of the module.
    pub digest: Digest,
    /// Who vouches for it, where somebody looked.
    pub verified: Option<Verified>,
}

/// A signature that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The key: its name, and the start of its fingerprint.
    pub key: String,
    /// Which keys were asked for: `world::Registry::policy`.
    pub policy: String,
}

/// An image, and how often its tag is looked up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The image as it is written.
    pub image: String,
    /// `None`: only when the image changes.
    pub every: Option<Duration>,
}

/// A deployment that lacks nothing but the digests of its modules.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    deployment: Deployment,
    wanted: Vec<Wanted>,
}

impl Valid {
    /// The images of the steps, in their order.
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// The deployment; modules of digest zero stand for those that are not resolved yet.
    pub fn unresolved(&self) -> &Deployment {
        &self.deployment
    }

    /// The deployment with its modules: `modules` has one for each image, in order.
    pub fn resolve(&self, modules: &[Resolved]) -> Deployment {
        let mut deployment = self.deployment.clone();
        for (step, module) in deployment.steps.iter_mut().zip(modules) {
            step.module = ModuleRef { digest: module.digest, image: Some(module.pinned.clone()) };
        }
        deployment
    }
}

/// Checks a draft of this kind and generation, within what its pool allows.
pub fn deployment(
    kind: Kind,
    generation: i64,
    draft: &Draft,
    topics: &TopicsSpec,
) -> Result<Valid, Vec<Problem>> {
    let mut parser = Parser { kind, problems: draft.unavailable.clone() };
    let source = draft.source.as_ref().map(|source| KafkaSource {
        topics: parser.all("source.kafka.topics", &source.topics),
        start_offset: parser.start_offset(&source.start_offset),
        consumer_group: parser.optional("source.kafka.consumerGroup", source.consumer_group.as_deref()),
    });
    let names: Vec<String> = draft.sinks.iter().map(|sink| sink.topic.clone()).collect();
    let sinks = parser.all("sinks", &names).into_iter().zip(&draft.sinks);
    let deployment = Deployment {
        schema: SCHEMA,
        generation: u64::try_from(generation).unwrap_or_default(),
        owner: Owner::Kubernetes,
        description: draft.description.clone(),
        source: source.map_or(Source::Unavailable, |kafka| Source::Kafka { kafka }),
        steps: draft.steps.iter().enumerate().map(|(i, step)| parser.step(i, step)).collect(),
        sinks: sinks
            .map(|(topic, sink)| Sink::Kafka {
                kafka: KafkaSink { topic, naming: sink.naming.into(), partitioner: sink.partitioner.into() },
            })
            .collect(),
        policies: Policies {
            delivery: draft.delivery.into(),
            error_policy: parser.error_policy(&draft.error_policy),
            parallelism: draft.parallelism,
            batch: parser.batch(&draft.batch),
        },
        paused: draft.paused,
        life: draft.uid.clone(),
    };
    let wanted = draft.steps.iter().enumerate().map(|(i, step)| parser.wanted(i, &step.module)).collect();
    // What did not parse is missing from the deployment, and would be reported a second time.
    if parser.problems.is_empty() {
        parser.semantics(&deployment, topics);
    }
    if parser.problems.is_empty() { Ok(Valid { deployment, wanted }) } else { Err(parser.problems) }
}

struct Parser {
    kind: Kind,
    problems: Vec<Problem>,
}

impl Parser {
    fn add(&mut self, reason: &'static str, field: &str, message: String) {
        self.problems.push(Problem { reason, field: field_of(self.kind, field), message });
    }

    fn optional<T: FromStr<Err: ToString>>(&mut self, field: &str, text: Option<&str>) -> Option<T> {
        match text?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add("InvalidSpec", field, error.to_string());
                None
            }
        }
    }

    fn all<T: FromStr<Err: ToString>>(&mut self, field: &str, texts: &[String]) -> Vec<T> {
        let texts = texts.iter().enumerate();
        texts.filter_map(|(i, text)| self.optional(&format!("{field}[{i}]"), Some(text))).collect()
    }

    fn or<T: FromStr<Err: ToString>>(&mut self, field: &str, text: &str, otherwise: T) -> T {
        self.optional(field, Some(text)).unwrap_or(otherwise)
    }

    fn start_offset(&mut self, spec: &StartOffsetSpec) -> StartOffset {
        let records = u64::try_from(spec.records.unwrap_or_default()).unwrap_or_default();
        match spec.start {
            StartType::Earliest => StartOffset::Earliest,
            StartType::Latest => StartOffset::Latest,
            StartType::FromStart => StartOffset::FromStart { records },
            StartType::FromEnd => StartOffset::FromEnd { records },
            StartType::Timestamp => {
                let text = spec.timestamp.as_deref();
                let at: Option<Timestamp> = self.optional("source.kafka.startOffset.timestamp", text);
                StartOffset::Timestamp { timestamp: at.map_or(0, Timestamp::as_millisecond) }
            }
        }
    }

    fn step(&mut self, i: usize, step: &StepSpec) -> Step {
        Step {
            name: step.name.clone(),
            module: ModuleRef { digest: Digest::from_bytes([0; 32]), image: None },
            env: step.env.clone(),
            limits: self.limits(i, &step.limits),
        }
    }

    fn wanted(&mut self, i: usize, module: &ModuleSpec) -> Wanted {
        let field = format!("steps[{i}].module.resolve.interval");
        let every = module.resolve.interval.as_deref().filter(|_| module.resolve.policy == Policy::Interval);
        let every: Option<Span> = self.optional(&field, every);
        if let Some(span) = every.filter(|span| !RESOLVE_INTERVALS.contains(&span.duration())) {
            self.add("InvalidSpec", &field, format!("{span} is not between 10s and 30d"));
        }
        // What a digest names never changes.
        let is_pinned = module.image.contains('@');
        let every = every.filter(|_| !is_pinned).map(Span::duration);
        Wanted { image: module.image.clone(), every }
    }

    fn limits(&mut self, i: usize, spec: &LimitsSpec) -> Limits {
        let otherwise = Limits::default();
        let field = |name: &str| format!("steps[{i}].limits.{name}");
        Limits {
            memory: self.or(&field("memory"), &spec.memory, otherwise.memory),
            time_per_record: self.or(
                &field("timePerRecord"),
                &spec.time_per_record,
                otherwise.time_per_record,
            ),
            max_output_bytes: self.or(
                &field("maxOutputBytes"),
                &spec.max_output_bytes,
                otherwise.max_output_bytes,
            ),
        }
    }

    fn error_policy(&mut self, spec: &ErrorPolicySpec) -> ErrorPolicy {
        let otherwise = ErrorPolicy::default();
        let field = |name: &str| format!("policies.errorPolicy.{name}");
        ErrorPolicy {
            max_retries: spec.max_retries,
            on_exhausted: spec.on_exhausted.into(),
            dead_letter_topic: self.optional(&field("deadLetterTopic"), spec.dead_letter_topic.as_deref()),
            initial_backoff: self.or(
                &field("initialBackoff"),
                &spec.initial_backoff,
                otherwise.initial_backoff,
            ),
            max_backoff: self.or(&field("maxBackoff"), &spec.max_backoff, otherwise.max_backoff),
        }
    }

    fn batch(&mut self, spec: &BatchSpec) -> BatchPolicy {
        let otherwise = BatchPolicy::default();
        let field = |name: &str| format!("policies.batch.{name}");
        BatchPolicy {
            max_records: spec.max_records,
            max_bytes: self.or(&field("maxBytes"), &spec.max_bytes, otherwise.max_bytes),
            commit_interval: self.or(
                &field("commitInterval"),
                &spec.commit_interval,
                otherwise.commit_interval,
            ),
            max_commit_records: spec.max_commit_records,
            max_commit_bytes: self.or(
                &field("maxCommitBytes"),
                &spec.max_commit_bytes,
                otherwise.max_commit_bytes,
            ),
        }
    }

    fn semantics(&mut self, deployment: &Deployment, topics: &TopicsSpec) {
        for problem in deployment.problems() {
            self.add(problem.reason, &problem.field, problem.message);
        }
        let inputs = deployment.inputs().iter().cloned().collect();
        self.within("inputs", "source.kafka.topics", inputs, &topics.inputs);
        self.within("outputs", "sinks", deployment.all_outputs(), &topics.outputs);
    }

    fn within(&mut self, which: &str, field: &str, topics: BTreeSet<TopicName>, prefixes: &[String]) {
        if prefixes.is_empty() {
            return;
        }
        for topic in topics {
            if !prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix)) {
                let message = format!(
                    "{topic} is not among the pool's {which}: choose a topic that starts with one of {prefixes:?}, \
                     or extend spec.topics.{which} of the RuntimePool"
                );
                self.add("TopicNotAllowed", field, message);
            }
        }
    }
}

/// Settings of the Kafka client that a pool may choose. What is missing here either belongs to the exactly-once
/// protocol, names files on the node, or runs code.
pub const CLIENT_SETTINGS: [&str; 17] = [
    "broker.address.family",
    "client.dns.lookup",
    "client.rack",
    "compression.codec",
    "compression.type",
    "connections.max.idle.ms",
    "fetch.max.bytes",
    "fetch.min.bytes",
    "fetch.wait.max.ms",
    "linger.ms",
    "max.partition.fetch.bytes",
    "message.max.bytes",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "reconnect.backoff.max.ms",
    "socket.keepalive.enable",
    "ssl.endpoint.identification.algorithm",
];

/// Everything that is wrong with a pool.
pub fn pool(spec: &RuntimePoolSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |field: &str, message: String| {
        problems.push(Problem { reason: "InvalidSpec", field: field.to_owned(), message });
    };
    for key in spec.kafka.config.keys().filter(|key| !CLIENT_SETTINGS.contains(&key.as_str())) {
        let message = format!("{key} cannot be set: allowed are {}", CLIENT_SETTINGS.join(", "));
        add("spec.kafka.config", message);
    }
    for (i, server) in spec.kafka.bootstrap_servers.iter().enumerate() {
        if server.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0)
        {
            let message = format!("{server} has no port between 1 and 65535");
            add(&format!("spec.kafka.bootstrapServers[{i}]"), message);
        }
    }
    match spec.drain_timeout.parse::<Span>() {
        Ok(span) if (1_000..=8_000).contains(&span.0) => {}
        Ok(span) => add("spec.drainTimeout", format!("{span} is not between 1s and 8s")),
        Err(error) => add("spec.drainTimeout", error.to_string()),
    }
    for (field, text) in spec.resources.iter().flat_map(quantities).filter(|(_, text)| !is_quantity(text)) {
        add(&format!("spec.resources.{field}"), format!("{text:?} is no quantity like 500m or 256Mi"));
    }
    if let Err(error) = spec.cache.size.parse::<crate::core::units::ByteSize>() {
        add("spec.cache.size", error.to_string());
    }
    problems
}

fn quantities(resources: &ResourceRequirements) -> Vec<(String, &str)> {
    let all = [("limits", &resources.limits), ("requests", &resources.requests)].into_iter();
    all.flat_map(|(kind, list)| list.iter().flatten().map(move |(name, at)| (kind, name, at)))
        .map(|(kind, name, at)| (format!("{kind}.{name}"), at.0.as_str()))
        .collect()
}

/// Whether the API server reads it: it answers with an error of its own, not of the user's, where it does not.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 15] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let is_number = number.bytes().any(|byte| byte.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i8>().is_ok());
    is_number && (SUFFIXES.contains(&suffix) || suffix == "Ei" || is_exponent)
}

#[cfg(test)]
#[path = "validate/tests.rs"]
mod tests;
