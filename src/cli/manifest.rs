//! `coproc.yaml`: a coprocessor or a chain of steps, as its project describes it.
//!
//! Two types: `RawManifest` is what may be written, nothing unknown allowed; `Manifest` is what it means.
//! Field names are those of the Kubernetes resources, so that a project moves there by copying.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::cli::exit::{Exit, coded};
use crate::core::deployment::{
    BatchPolicy, Delivery, ErrorPolicy, Limits, Naming, OnExhausted, Policies, StartOffset,
};
use crate::core::names::{DeploymentName, TopicName};
use crate::core::units::{ByteSize, Span};

/// The file's name.
pub const FILE: &str = "coproc.yaml";

/// How a project's modules are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// With cargo, for `wasm32-wasip1`.
    #[default]
    Rust,
    /// WebAssembly's text format, assembled here.
    Wat,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawManifest {
    name: DeploymentName,
    #[serde(default)]
    description: String,
    #[serde(default)]
    language: Language,
    module: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    steps: Vec<RawStep>,
    #[serde(default)]
    input_topics: Vec<String>,
    #[serde(default)]
    output_topics: Vec<String>,
    #[serde(default)]
    output_naming: Naming,
    #[serde(default)]
    start_offset: StartOffset,
    #[serde(default)]
    delivery: Delivery,
    #[serde(default)]
    error_policy: RawErrorPolicy,
    parallelism: Option<u16>,
    #[serde(default)]
    batch: RawBatch,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawStep {
    name: String,
    module: PathBuf,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawLimits {
    memory: Option<ByteSize>,
    time_per_record: Option<Span>,
    max_output_bytes: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawErrorPolicy {
    max_retries: Option<u32>,
    on_exhausted: Option<OnExhausted>,
    dead_letter_topic: Option<TopicName>,
    initial_backoff: Option<Span>,
    max_backoff: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawBatch {
    max_records: Option<u32>,
    max_bytes: Option<ByteSize>,
    commit_interval: Option<Span>,
    max_commit_records: Option<u32>,
    max_commit_bytes: Option<ByteSize>,
}

/// One module, and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFile {
    /// Its name in the chain.
    pub name: String,
    /// Where its bytes are.
    pub module: PathBuf,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its bounds.
    pub limits: Limits,
}

/// What a manifest means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The deployment's name, and its module's.
    pub name: DeploymentName,
    /// What it is for.
    pub description: String,
    /// How it is built.
    pub language: Language,
    /// The chain, at least one.
    pub steps: Vec<StepFile>,
    /// Topics to read.
    pub inputs: Vec<TopicName>,
    /// Topics to write.
    pub outputs: Vec<TopicName>,
    /// How they are named.
    pub naming: Naming,
    /// Where it starts.
    pub start: StartOffset,
    /// How it is run.
    pub policies: Policies,
}

/// Reads the manifest at `path`; modules are found beside it.
pub fn read(path: &Path) -> anyhow::Result<Manifest> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound {
            ": `coproc init` makes one, -f names another"
        } else {
            ""
        };
        coded(Exit::NotFound, format!("cannot read {}: {error}{hint}", path.display()))
    })?;
    let directory = path.parent().unwrap_or(Path::new("."));
    parse(&text, directory)
        .map_err(|error| coded(Exit::Usage, format!("{error:#}")))
        .with_context(|| format!("{} is not as it has to be", path.display()))
}

/// What a manifest's text means; modules are found in `directory`.
pub fn parse(text: &str, directory: &Path) -> anyhow::Result<Manifest> {
    let raw: RawManifest = serde_yaml::from_str(text)?;
    let topics = |names: &[String]| -> anyhow::Result<Vec<TopicName>> {
        Ok(names.iter().map(|name| TopicName::from_user(name)).collect::<Result<_, _>>()?)
    };
    Ok(Manifest {
        inputs: topics(&raw.input_topics)?,
        outputs: topics(&raw.output_topics)?,
        naming: raw.output_naming,
        start: raw.start_offset,
        policies: Policies {
            delivery: raw.delivery,
            error_policy: raw.error_policy.mean(),
            parallelism: raw.parallelism.unwrap_or(1),
            batch: raw.batch.mean(),
        },
        language: raw.language,
        steps: steps(&raw.name, raw.steps, raw.module, raw.env, raw.limits, directory)?,
        name: raw.name,
        description: raw.description,
    })
}

fn steps(
    name: &DeploymentName,
    steps: Vec<RawStep>,
    module: Option<PathBuf>,
    env: BTreeMap<String, String>,
    limits: RawLimits,
    directory: &Path,
) -> anyhow::Result<Vec<StepFile>> {
    if steps.is_empty() {
        let module = module.unwrap_or_else(|| format!("{name}.wasm").into());
        let module = directory.join(module);
        return Ok(vec![StepFile { name: "main".into(), module, env, limits: limits.mean() }]);
    }
    if module.is_some() || !env.is_empty() {
        anyhow::bail!("module and env belong to each of the steps where there are steps");
    }
    let step = |raw: RawStep| StepFile {
        name: raw.name,
        module: directory.join(raw.module),
        env: raw.env,
        limits: raw.limits.or(&limits).mean(),
    };
    Ok(steps.into_iter().map(step).collect())
}

impl RawLimits {
    fn or(self, other: &Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            time_per_record: self.time_per_record.or(other.time_per_record),
            max_output_bytes: self.max_output_bytes.or(other.max_output_bytes),
        }
    }

    fn mean(self) -> Limits {
        let default = Limits::default();
        Limits {
            memory: self.memory.unwrap_or(default.memory),
            time_per_record: self.time_per_record.unwrap_or(default.time_per_record),
            max_output_bytes: self.max_output_bytes.unwrap_or(default.max_output_bytes),
        }
    }
}

impl RawErrorPolicy {
    fn mean(self) -> ErrorPolicy {
        let default = ErrorPolicy::default();
        ErrorPolicy {
            max_retries: self.max_retries.unwrap_or(default.max_retries),
            on_exhausted: self.on_exhausted.unwrap_or(default.on_exhausted),
            dead_letter_topic: self.dead_letter_topic,
            initial_backoff: self.initial_backoff.unwrap_or(default.initial_backoff),
            max_backoff: self.max_backoff.unwrap_or(default.max_backoff),
        }
    }
}

impl RawBatch {
    fn mean(self) -> BatchPolicy {
        let default = BatchPolicy::default();
        BatchPolicy {
            max_records: self.max_records.unwrap_or(default.max_records),
            max_bytes: self.max_bytes.unwrap_or(default.max_bytes),
            commit_interval: self.commit_interval.unwrap_or(default.commit_interval),
            max_commit_records: self.max_commit_records.unwrap_or(default.max_commit_records),
            max_commit_bytes: self.max_commit_bytes.unwrap_or(default.max_commit_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_manifest_has_every_default() {
        let manifest =
            parse("name: redact\ninputTopics: [foo]\noutputTopics: [bar]", Path::new("dir")).unwrap();
        assert_eq!(manifest.steps.len(), 1);
        assert_eq!(manifest.steps[0].module, Path::new("dir/redact.wasm"));
        assert_eq!(manifest.policies, Policies::default());
        assert_eq!(manifest.language, Language::Rust);
    }

    #[test]
    fn a_long_manifest_is_read_in_full() {
        let manifest = parse(
            "
name: redact
language: wat
limits: {memory: 16Mi}
steps:
  - {name: a, module: a.wasm, env: {LEVEL: '2'}, limits: {timePerRecord: 1s}}
  - {name: b, module: /b.wasm, limits: {memory: 1Mi}}
inputTopics: [foo]
outputTopics: [bar]
outputNaming: Materialized
startOffset: {type: FromEnd, records: 5}
delivery: AtLeastOnce
errorPolicy: {maxRetries: 1, onExhausted: DeadLetter, deadLetterTopic: dead}
parallelism: 2
batch: {commitInterval: 50ms}
",
            Path::new("dir"),
        )
        .unwrap();
        assert_eq!(manifest.steps[0].limits.memory, ByteSize(16 << 20));
        assert_eq!(manifest.steps[0].limits.time_per_record, Span::from_ms(1_000));
        assert_eq!(manifest.steps[1].module, Path::new("/b.wasm"));
        assert_eq!(manifest.steps[1].limits.memory, ByteSize(1 << 20));
        assert_eq!(manifest.start, StartOffset::FromEnd { records: 5 });
        assert_eq!(manifest.policies.error_policy.on_exhausted, OnExhausted::DeadLetter);
        assert_eq!(manifest.policies.batch.commit_interval, Span::from_ms(50));
        assert_eq!((manifest.naming, manifest.policies.parallelism), (Naming::Materialized, 2));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, says) in [
            ("name: a\ninputTopic: foo", "unknown field `inputTopic`"),
            ("name: A", "has the character 'A'"),
            ("name: a\nlimits: {memroy: 1Mi}", "unknown field `memroy`"),
            ("name: a\nlimits: {memory: 1Tx}", "not a number of bytes"),
            ("name: a\nmodule: x\nsteps: [{name: a, module: b}]", "belong to each of the steps"),
            ("name: a\ninputTopics: ['a b']", "has the character ' '"),
            ("inputTopics: [a]", "missing field `name`"),
            ("[1]", "expected struct"),
        ] {
            let error = format!("{:#}", parse(text, Path::new("")).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
