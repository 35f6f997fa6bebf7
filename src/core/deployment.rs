//! The desired state of one coprocessor or pipeline, as it stands in the control topic and as nodes read it.
//!
//! `Deployment` is the JSON form: every field is a parsed type, unknown fields are ignored so that an older
//! node reads what a newer writer wrote. `Deployment::problems` says everything that is wrong across fields;
//! nodes and writers call it, so that nothing invalid is either written or run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::digest::Digest;
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::core::partitioner::Partitioner;
use crate::core::record::TimestampMs;
use crate::core::retry::RetrySchedule;
use crate::core::units::{ByteSize, Span};

/// Newest schema that this version reads and the one it writes: `major.minor`.
pub const SCHEMA: SchemaVersion = SchemaVersion { major: 1, minor: 0 };

/// Version of the JSON form. A newer minor only adds fields; a newer major is `unsupported`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchemaVersion {
    /// Changes when older readers must not run the deployment.
    pub major: u32,
    /// Changes when fields are added.
    pub minor: u32,
}

impl TryFrom<String> for SchemaVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts =
            text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) =
            parts.ok_or_else(|| format!("schema {text:?} is not of the form major.minor"))?;
        Ok(Self { major, minor })
    }
}

impl From<SchemaVersion> for String {
    fn from(version: SchemaVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Who may change a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A Kubernetes resource.
    Kubernetes,
    /// The command line.
    Cli,
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Source {
    /// Topics of the pool's log.
    Kafka {
        /// Which, and from where.
        kafka: KafkaSource,
    },
    /// A kind that this version does not know.
    #[serde(other)]
    Unavailable,
}

/// Topics of the pool's log as a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSource {
    /// The topics, at least one.
    pub topics: Vec<TopicName>,
    /// Where a partition without a committed offset starts.
    #[serde(default)]
    pub start_offset: StartOffset,
    /// The consumer group, where the default is not wanted. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_group: Option<ConsumerGroup>,
}

/// Where a partition without a committed offset starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum StartOffset {
    /// At the first record there is.
    #[default]
    Earliest,
    /// After the last record there is.
    Latest,
    /// At the first record with at least this timestamp, or the end.
    Timestamp {
        /// Milliseconds since the Unix epoch.
        timestamp: TimestampMs,
    },
    /// So many offsets after the first record. Markers of transactions have offsets, too.
    FromStart {
        /// How many.
        records: u64,
    },
    /// So many offsets before the end.
    FromEnd {
        /// How many.
        records: u64,
    },
}

/// One module of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Names the step in errors and metrics; unique in the chain.
    pub name: String,
    /// The code.
    pub module: ModuleRef,
    /// Its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Its bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Which code, and where it may be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleRef {
    /// The digest: the only thing that nodes run by.
    pub digest: Digest,
    /// The image that the digest was resolved from; absent for modules in `coprocessor_modules`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// Bounds of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Largest linear memory.
    pub memory: ByteSize,
    /// Longest time for one record, and for the start.
    pub time_per_record: Span,
    /// Most output bytes for one record.
    pub max_output_bytes: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize(32 << 20),
            time_per_record: Span::from_ms(3_000),
            max_output_bytes: ByteSize(1 << 20),
        }
    }
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Sink {
    /// A topic of the pool's log.
    Kafka {
        /// Which, and how.
        kafka: KafkaSink,
    },
    /// A kind that this version does not know.
    #[serde(other)]
    Unavailable,
}

/// A topic of the pool's log as a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSink {
    /// The topic; with `Materialized` naming, the destination's part of its name.
    pub topic: TopicName,
    /// How the topic is named.
    #[serde(default)]
    pub naming: Naming,
    /// How partitions are chosen; a materialized topic keeps the source's.
    #[serde(default)]
    pub partitioner: Partitioner,
}

/// How an output topic is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Naming {
    /// As it is written.
    #[default]
    Plain,
    /// `<source>._<dest>_`, tied to its source: same partitions, written by the coprocessor alone.
    Materialized,
}

/// What was promised to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Delivery {
    /// Exactly once, unless the log says explicitly that it cannot.
    #[default]
    Auto,
    /// Exactly once, or not at all.
    ExactlyOnce,
    /// At least once.
    AtLeastOnce,
}

/// What happens when a record fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnExhausted {
    /// The partition stops there and says so.
    #[default]
    Fail,
    /// The record is left out.
    Skip,
    /// The record goes to the dead-letter topic, in the same commit.
    DeadLetter,
}

/// What is done about a record that a guest fails at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorPolicy {
    /// How often the record is tried again, each time on a fresh instance.
    pub max_retries: u32,
    /// What happens then.
    pub on_exhausted: OnExhausted,
    /// Where dead letters go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<TopicName>,
    /// The wait before the first retry; it doubles with each one.
    pub initial_backoff: Span,
    /// The longest wait.
    pub max_backoff: Span,
}

impl Default for ErrorPolicy {
    fn default() -> Self {
        Self {
            max_retries: 10,
            on_exhausted: OnExhausted::Fail,
            dead_letter_topic: None,
            initial_backoff: Span::from_ms(100),
            max_backoff: Span::from_ms(30_000),
        }
    }
}

impl ErrorPolicy {
    /// The waits between retries.
    pub fn schedule(&self) -> RetrySchedule {
        RetrySchedule { initial: self.initial_backoff.duration(), max: self.max_backoff.duration() }
    }
}

/// How much is done at once, and how often it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchPolicy {
    /// Most records handed to a guest at once.
    pub max_records: u32,
    /// About the most bytes handed to a guest at once.
    pub max_bytes: ByteSize,
    /// The longest that processed records stay invisible while records keep coming.
    pub commit_interval: Span,
    /// Records after which it is committed early.
    pub max_commit_records: u32,
    /// Output bytes after which it is committed early; the log may want less.
    pub max_commit_bytes: ByteSize,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_records: 1_000,
            max_bytes: ByteSize(1 << 20),
            commit_interval: Span::from_ms(100),
            // Both are far away where the interval is at its default: a commit costs the same however much is in it.
            max_commit_records: 1_000_000,
            max_commit_bytes: ByteSize(64 << 20),
        }
    }
}

/// How a deployment is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policies {
    /// The guarantee.
    pub delivery: Delivery,
    /// What is done about failing records.
    pub error_policy: ErrorPolicy,
    /// Number of lanes per node.
    pub parallelism: u16,
    /// How much at once.
    pub batch: BatchPolicy,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            delivery: Delivery::default(),
            error_policy: ErrorPolicy::default(),
            parallelism: 1,
            batch: BatchPolicy::default(),
        }
    }
}

/// The desired state of one coprocessor or pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// Version of this form.
    pub schema: SchemaVersion,
    /// Rises with every change.
    pub generation: u64,
    /// Who may change it.
    pub owner: Owner,
    /// What it is for, in its owner's words.
    #[serde(default)]
    pub description: String,
    /// Where records come from.
    pub source: Source,
    /// The chain, at least one.
    pub steps: Vec<Step>,
    /// Where records go.
    pub sinks: Vec<Sink>,
    /// How it is run.
    #[serde(default)]
    pub policies: Policies,
    /// Whether it stands still by its owner's wish.
    #[serde(default)]
    pub paused: bool,
    /// Tells it from an earlier one of the same name that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
}

/// Most bytes of a deployment as JSON: it is one record of the control topic.
pub const MAX_DEPLOYMENT_BYTES: usize = 900 << 10;
/// Most variables in a guest's environment.
pub const MAX_ENV: usize = 128;
/// Longest name of a variable, in bytes.
pub const MAX_ENV_NAME: usize = 128;
/// Longest value of a variable, in bytes.
pub const MAX_ENV_VALUE: usize = 2048;
/// Most topics that one guest may write.
pub const MAX_OUTPUTS: usize = 8;
/// Most topics that one deployment may read.
pub const MAX_INPUTS: usize = 64;
/// Most steps in a chain.
pub const MAX_STEPS: usize = 16;
/// Most lanes of one deployment on one node.
pub const MAX_PARALLELISM: u16 = 256;
/// Smallest and largest linear memory that may be asked for.
pub const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 30;
/// The time that a transaction may stay open: every wait of a guest has to be shorter.
pub const TRANSACTION_TIMEOUT: Span = Span::from_ms(15_000);
/// The time within which a commit has to be through.
pub const COMMIT_BUDGET: Span = Span::from_ms(10_000);

/// Something wrong with a deployment: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A stable CamelCase word for conditions and status.
    pub reason: &'static str,
    /// The field, as a path in the JSON form.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, reason: &'static str, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { reason, field: field.into(), message: message.into() });
    }
}

impl Deployment {
    /// The topics that it reads.
    pub fn inputs(&self) -> &[TopicName] {
        match &self.source {
            Source::Kafka { kafka } => &kafka.topics,
            Source::Unavailable => &[],
        }
    }

    /// Where a partition without a committed offset starts.
    pub fn start_offset(&self) -> StartOffset {
        match &self.source {
            Source::Kafka { kafka } => kafka.start_offset,
            Source::Unavailable => StartOffset::default(),
        }
    }

    /// The consumer group: the one that the spec names, or the deployment's own.
    pub fn consumer_group(&self, identity: &Identity) -> ConsumerGroup {
        match &self.source {
            Source::Kafka { kafka } => kafka.consumer_group.clone(),
            Source::Unavailable => None,
        }
        .unwrap_or_else(|| identity.consumer_group())
    }

    /// The Kafka sinks in their order: what guests know as their outputs.
    pub fn kafka_sinks(&self) -> impl Iterator<Item = &KafkaSink> {
        self.sinks.iter().filter_map(|sink| match sink {
            Sink::Kafka { kafka } => Some(kafka),
            Sink::Unavailable => None,
        })
    }

    /// The topics that it writes for records of `input`, in the order of the sinks.
    pub fn outputs_for(&self, input: &TopicName) -> Result<Vec<TopicName>, crate::core::names::Error> {
        self.kafka_sinks()
            .map(|sink| match sink.naming {
                Naming::Plain => Ok(sink.topic.clone()),
                Naming::Materialized => TopicName::materialized(input, &sink.topic),
            })
            .collect()
    }

    /// Every topic that it writes, dead letters included.
    pub fn all_outputs(&self) -> BTreeSet<TopicName> {
        let written = self.inputs().iter().flat_map(|input| self.outputs_for(input).unwrap_or_default());
        written.chain(self.policies.error_policy.dead_letter_topic.clone()).collect()
    }

    /// Everything that is wrong with it, not just the first thing.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        self.check_source(&mut problems);
        self.check_sinks(&mut problems);
        self.check_steps(&mut problems);
        self.check_policies(&mut problems);
        self.check_size(&mut problems);
        problems.0
    }

    fn check_size(&self, problems: &mut Problems) {
        let bytes = serde_json::to_vec(self).map_or(0, |json| json.len());
        if bytes > MAX_DEPLOYMENT_BYTES {
            let message = format!(
                "it takes {bytes} bytes, and at most {MAX_DEPLOYMENT_BYTES} are allowed: shorten the environment of its \
                 steps, or its description"
            );
            problems.add("InvalidSpec", "steps", message);
        }
    }

    fn check_source(&self, problems: &mut Problems) {
        if self.source == Source::Unavailable {
            problems.add(
                "ConnectorNotAvailable",
                "source.type",
                "this version has no such source: use Kafka, or a newer version",
            );
            return;
        }
        let inputs = self.inputs();
        if inputs.is_empty() {
            problems.add("InvalidSpec", "source.kafka.topics", "there is no input topic: name at least one");
        }
        if inputs.len() > MAX_INPUTS {
            let message =
                format!("{} input topics are more than the {MAX_INPUTS} that are allowed", inputs.len());
            problems.add("InvalidSpec", "source.kafka.topics", message);
        }
        let mut seen = BTreeSet::new();
        for (i, topic) in inputs.iter().enumerate() {
            let field = format!("source.kafka.topics[{i}]");
            if topic.is_reserved() {
                let message = format!("{topic} is one of coproc's own topics: choose another input");
                problems.add("ReservedTopic", &field, message);
            }
            if !seen.insert(topic) {
                problems.add("InvalidSpec", field, format!("{topic} is there twice: name it once"));
            }
        }
    }

    fn check_sinks(&self, problems: &mut Problems) {
        if self.sinks.contains(&Sink::Unavailable) {
            problems.add(
                "ConnectorNotAvailable",
                "sinks",
                "this version has no such sink: use Kafka, or a newer version",
            );
        }
        if self.sinks.is_empty() {
            problems.add("InvalidSpec", "sinks", "there is no output topic: name at least one");
        }
        if self.sinks.len() > MAX_OUTPUTS {
            let message =
                format!("{} outputs are more than the {MAX_OUTPUTS} that are allowed", self.sinks.len());
            problems.add("InvalidSpec", "sinks", message);
        }
        let mut seen = BTreeSet::new();
        for (i, sink) in self.kafka_sinks().enumerate() {
            let field = format!("sinks[{i}].kafka.topic");
            if sink.topic.is_reserved() {
                let message = format!("{} is one of coproc's own topics: choose another output", sink.topic);
                problems.add("ReservedTopic", &field, message);
            }
            if !seen.insert(&sink.topic) {
                problems.add("InvalidSpec", &field, format!("{} is there twice: name it once", sink.topic));
            }
            if sink.naming == Naming::Plain && sink.topic.as_materialized().is_some() {
                let message = format!(
                    "{} is the name of a materialized topic, which only naming: Materialized may write",
                    sink.topic
                );
                problems.add("InvalidSpec", &field, message);
            }
            for input in self.inputs() {
                if sink.naming == Naming::Plain && *input == sink.topic {
                    let message = format!("{input} is an input too: records would go round for ever");
                    problems.add("TopicCycle", &field, message);
                }
                if sink.naming == Naming::Materialized
                    && let Err(error) = TopicName::materialized(input, &sink.topic)
                {
                    problems.add("InvalidSpec", &field, error.to_string());
                }
            }
        }
    }

    fn check_steps(&self, problems: &mut Problems) {
        if self.steps.is_empty() {
            problems.add("InvalidSpec", "steps", "there is no step: name at least one module");
        }
        if self.steps.len() > MAX_STEPS {
            let message =
                format!("{} steps are more than the {MAX_STEPS} that are allowed", self.steps.len());
            problems.add("InvalidSpec", "steps", message);
        }
        let mut seen = BTreeSet::new();
        for (i, step) in self.steps.iter().enumerate() {
            if step.name.is_empty() || !seen.insert(&step.name) {
                let message = format!("the step's name {:?} is empty or there twice", step.name);
                problems.add("InvalidSpec", format!("steps[{i}].name"), message);
            }
            check_env(&step.env, &format!("steps[{i}].env"), problems);
            check_limits(&step.limits, &format!("steps[{i}].limits"), problems);
        }
        // A record goes through all steps before its commit.
        let time = self.steps.iter().map(|step| step.limits.time_per_record.0).fold(0, u64::saturating_add);
        if self.steps.len() > 1 && time >= COMMIT_BUDGET.0 {
            let message = format!(
                "timePerRecord of all {} steps together is {}, not below {COMMIT_BUDGET}: a record must have passed all \
                 of them before a commit is due; give the steps less time each",
                self.steps.len(),
                Span::from_ms(time),
            );
            problems.add("InvalidLimits", "steps", message);
        }
    }

    fn check_policies(&self, problems: &mut Problems) {
        let Policies { error_policy, parallelism, batch, .. } = &self.policies;
        match (&error_policy.dead_letter_topic, error_policy.on_exhausted) {
            (None, OnExhausted::DeadLetter) => problems.add(
                "InvalidSpec",
                "policies.errorPolicy.deadLetterTopic",
                "onExhausted: DeadLetter needs a deadLetterTopic",
            ),
            (Some(topic), _) if topic.is_reserved() => problems.add(
                "ReservedTopic",
                "policies.errorPolicy.deadLetterTopic",
                format!("{topic} is one of coproc's own topics: choose another"),
            ),
            (Some(topic), _) if self.inputs().contains(topic) => problems.add(
                "TopicCycle",
                "policies.errorPolicy.deadLetterTopic",
                format!("{topic} is an input too: failing records would go round for ever"),
            ),
            _ => {}
        }
        if error_policy.initial_backoff > error_policy.max_backoff {
            let message = format!(
                "initialBackoff {} is longer than maxBackoff {}",
                error_policy.initial_backoff, error_policy.max_backoff
            );
            problems.add("InvalidSpec", "policies.errorPolicy.initialBackoff", message);
        }
        if !(1..=MAX_PARALLELISM).contains(parallelism) {
            let message = format!("parallelism {parallelism} is not between 1 and {MAX_PARALLELISM}");
            problems.add("InvalidSpec", "policies.parallelism", message);
        }
        if !(1..=100_000).contains(&batch.max_records) || batch.max_commit_records == 0 {
            let message = "maxRecords must be 1 to 100000, maxCommitRecords at least 1";
            problems.add("InvalidSpec", "policies.batch.maxRecords", message);
        }
        if !(1..=64 << 20).contains(&batch.max_bytes.0) || !(1..=1 << 30).contains(&batch.max_commit_bytes.0)
        {
            let message = "maxBytes must be 1 to 64Mi, maxCommitBytes 1 to 1Gi";
            problems.add("InvalidSpec", "policies.batch.maxBytes", message);
        }
        if batch.commit_interval.0 == 0 || batch.commit_interval >= COMMIT_BUDGET {
            let message = format!(
                "commitInterval {} is not at least 1ms and less than {COMMIT_BUDGET}, the time that a commit may take",
                batch.commit_interval
            );
            problems.add("InvalidSpec", "policies.batch.commitInterval", message);
        }
    }
}

fn check_env(env: &BTreeMap<String, String>, field: &str, problems: &mut Problems) {
    if env.len() > MAX_ENV {
        problems.add(
            "InvalidEnv",
            field,
            format!("{} variables are more than the {MAX_ENV} allowed", env.len()),
        );
    }
    for (name, value) in env {
        let field = format!("{field}.{}", name.escape_debug());
        if name.is_empty()
            || name.len() > MAX_ENV_NAME
            || name.contains('=')
            || name.contains(|c: char| c.is_control() || c.is_whitespace())
        {
            let message = format!(
                "the name must have 1 to {MAX_ENV_NAME} bytes without =, white space and control characters"
            );
            problems.add("InvalidEnv", &field, message);
        }
        if name.starts_with("REDPANDA_") {
            problems.add(
                "InvalidEnv",
                &field,
                "names that start with REDPANDA_ are the host's: choose another",
            );
        }
        if value.is_empty() || value.len() > MAX_ENV_VALUE || value.contains(char::is_control) {
            let message =
                format!("the value must have 1 to {MAX_ENV_VALUE} bytes without control characters");
            problems.add("InvalidEnv", &field, message);
        }
    }
}

fn check_limits(limits: &Limits, field: &str, problems: &mut Problems) {
    if !MEMORY_RANGE.contains(&limits.memory.0) {
        let message = format!("{} is not between 64Ki and 4Gi", limits.memory);
        problems.add("InvalidLimits", format!("{field}.memory"), message);
    }
    if limits.time_per_record.0 == 0 || limits.time_per_record >= COMMIT_BUDGET {
        let message = format!(
            "{} is not at least 1ms and less than {COMMIT_BUDGET}: a record must be done before a commit is due",
            limits.time_per_record
        );
        problems.add("InvalidLimits", format!("{field}.timePerRecord"), message);
    }
    if !(1..=128 << 20).contains(&limits.max_output_bytes.0) {
        let message = format!("{} is not between 1 and 128Mi", limits.max_output_bytes);
        problems.add("InvalidLimits", format!("{field}.maxOutputBytes"), message);
    }
}

/// Finds a cycle in the graph input → output of several deployments: the topics on it, the first one again at
/// the end. Dead letters count: a coprocessor of dead letters may feed their source on purpose only by hand.
pub fn find_cycle<'a>(deployments: impl IntoIterator<Item = &'a Deployment>) -> Option<Vec<TopicName>> {
    let mut edges: BTreeMap<TopicName, BTreeSet<TopicName>> = BTreeMap::new();
    for deployment in deployments {
        for input in deployment.inputs() {
            let outputs = deployment.outputs_for(input).unwrap_or_default();
            let dead_letters = deployment.policies.error_policy.dead_letter_topic.clone();
            edges.entry(input.clone()).or_default().extend(outputs.into_iter().chain(dead_letters));
        }
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|start| walk(&edges, start, &mut Vec::new(), &mut done))
}

fn walk(
    edges: &BTreeMap<TopicName, BTreeSet<TopicName>>,
    at: &TopicName,
    path: &mut Vec<TopicName>,
    done: &mut BTreeSet<TopicName>,
) -> Option<Vec<TopicName>> {
    if let Some(start) = path.iter().position(|topic| topic == at) {
        let mut cycle = path.split_off(start);
        cycle.push(at.clone());
        return Some(cycle);
    }
    if done.contains(at) {
        return None;
    }
    path.push(at.clone());
    for next in edges.get(at).into_iter().flatten() {
        if let Some(cycle) = walk(edges, next, path, done) {
            return Some(cycle);
        }
    }
    path.pop();
    done.insert(at.clone());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(input: &str, output: &str) -> Deployment {
        let json = format!(
            r#"{{"schema": "1.0", "generation": 1, "owner": "cli", "new": "ignored",
                "source": {{"type": "Kafka", "kafka": {{"topics": ["{input}"]}}}},
                "steps": [{{"name": "main", "module": {{"digest": "sha256:{}"}}}}],
                "sinks": [{{"type": "Kafka", "kafka": {{"topic": "{output}"}}}}]}}"#,
            "0".repeat(64)
        );
        serde_json::from_str(&json).expect("a deployment with every default")
    }

    type Found = Vec<(&'static str, String)>;

    fn reasons(change: impl FnOnce(&mut Deployment)) -> Found {
        let mut deployment = deployment("a", "b");
        change(&mut deployment);
        deployment.problems().into_iter().map(|problem| (problem.reason, problem.field)).collect()
    }

    #[test]
    fn the_defaults_are_valid_and_go_both_ways() {
        let deployment = deployment("a", "b");
        assert_eq!(deployment.problems(), []);
        assert_eq!(deployment.policies.error_policy.max_retries, 10);
        let json = serde_json::to_string(&deployment).unwrap();
        assert_eq!(serde_json::from_str::<Deployment>(&json).unwrap(), deployment);
    }

    #[test]
    fn each_problem_says_where() {
        let topic = |name: &str| name.parse::<TopicName>().unwrap();
        let cases: Vec<(Found, &str, &str)> = vec![
            (reasons(|d| d.steps.clear()), "InvalidSpec", "steps"),
            (reasons(|d| d.sinks.clear()), "InvalidSpec", "sinks"),
            (reasons(|d| d.source = Source::Unavailable), "ConnectorNotAvailable", "source.type"),
            (reasons(|d| d.policies.parallelism = 0), "InvalidSpec", "policies.parallelism"),
            (
                reasons(|d| d.policies.error_policy.on_exhausted = OnExhausted::DeadLetter),
                "InvalidSpec",
                "policies.errorPolicy.deadLetterTopic",
            ),
            (
                reasons(|d| d.policies.error_policy.dead_letter_topic = Some(topic("a"))),
                "TopicCycle",
                "policies.errorPolicy.deadLetterTopic",
            ),
            (
                reasons(|d| {
                    d.steps[0].env.insert("REDPANDA_X".into(), "1".into());
                }),
                "InvalidEnv",
                "steps[0].env.REDPANDA_X",
            ),
            (
                reasons(|d| {
                    d.steps[0].env.insert("A=B".into(), "1".into());
                }),
                "InvalidEnv",
                "steps[0].env.A=B",
            ),
            (
                reasons(|d| {
                    d.steps[0].env.insert("A".into(), String::new());
                }),
                "InvalidEnv",
                "steps[0].env.A",
            ),
            (
                reasons(|d| d.steps[0].limits.time_per_record = Span::from_ms(60_000)),
                "InvalidLimits",
                "steps[0].limits.timePerRecord",
            ),
            (reasons(|d| d.steps[0].limits.memory = ByteSize(1)), "InvalidLimits", "steps[0].limits.memory"),
            (
                reasons(|d| {
                    // Each step alone is within its bounds.
                    d.steps[0].limits.time_per_record = Span::from_ms(5_000);
                    d.steps.push(Step { name: "next".into(), ..d.steps[0].clone() });
                }),
                "InvalidLimits",
                "steps",
            ),
        ];
        for (found, reason, field) in cases {
            assert_eq!(found, [(reason, field.to_owned())]);
        }
    }

    #[test]
    fn own_topics_and_loops_are_refused() {
        let reason = |input: &str, output: &str| {
            deployment(input, output).problems().into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
        };
        assert_eq!(reason("coprocessor_internal_topic", "b"), ["ReservedTopic"]);
        assert_eq!(reason("a", "coprocessor_status_topic"), ["ReservedTopic"]);
        assert_eq!(reason("a", "a"), ["TopicCycle"]);
        assert_eq!(reason("a", "x._y_"), ["InvalidSpec"]);
    }

    #[test]
    fn cycles_over_several_deployments_are_found() {
        let chain = [deployment("a", "b"), deployment("b", "c")];
        assert_eq!(find_cycle(&chain), None);
        let circle = [deployment("a", "b"), deployment("b", "c"), deployment("c", "a")];
        let cycle = find_cycle(&circle).expect("a cycle");
        assert_eq!(cycle.iter().map(TopicName::as_str).collect::<Vec<_>>(), ["a", "b", "c", "a"]);
    }

    #[test]
    fn a_kind_that_is_not_known_is_said_so() {
        let json = serde_json::to_string(&deployment("a", "b"))
            .unwrap()
            .replace(r#""type":"Kafka""#, r#""type":"Pigeon""#);
        let deployment: Deployment = serde_json::from_str(&json).unwrap();
        assert!(deployment.problems().iter().all(|problem| problem.reason == "ConnectorNotAvailable"));
    }
}
