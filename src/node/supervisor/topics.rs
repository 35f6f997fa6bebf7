//! Looks at the topics of a deployment before its lanes start, and makes the materialized ones.

use std::collections::BTreeMap;

use crate::core::deployment::{Deployment, Naming, OnExhausted};
use crate::core::names::TopicName;
use crate::ports::{Cleanup, Log, LogError, TopicConfig};

/// A dead-letter topic takes records of at least this size, in bytes: the headers that explain a failure take up to
/// half of it.
const MIN_DEAD_LETTER_BYTES: usize = 8 << 10;

/// Why the topics are not ready.
pub enum NotReady {
    /// Topics that are not there.
    Missing(Vec<TopicName>),
    /// A topic that is there and cannot be used.
    Unusable(String),
    /// The log does not say.
    Log(LogError),
}

/// The configurations of the topics that a deployment writes, once all that it binds are there. Those that it
/// writes are made, if wanted, like the first that it reads.
pub fn ready(
    log: &dyn Log,
    deployment: &Deployment,
    creates_outputs: bool,
) -> Result<BTreeMap<TopicName, TopicConfig>, NotReady> {
    let mut missing = Vec::new();
    let mut sources = BTreeMap::new();
    for input in deployment.inputs() {
        match log.topics().describe(input).map_err(NotReady::Log)? {
            Some(info) => drop(sources.insert(input.clone(), info.config)),
            None => missing.push(input.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(NotReady::Missing(missing));
    }
    make_materialized(log, deployment, &sources)?;
    if creates_outputs && let Some(like) = deployment.inputs().first().and_then(|first| sources.get(first)) {
        make_outputs(log, deployment, like)?;
    }
    let mut outputs = BTreeMap::new();
    for output in deployment.all_outputs() {
        match log.topics().describe(&output).map_err(NotReady::Log)? {
            Some(info) => drop(outputs.insert(output, info.config)),
            None => missing.push(output),
        }
    }
    if !missing.is_empty() {
        return Err(NotReady::Missing(missing));
    }
    check_dead_letters(deployment, &outputs)?;
    Ok(outputs)
}

/// A dead letter is the last way out: its topic has to take whatever comes.
fn check_dead_letters(
    deployment: &Deployment,
    outputs: &BTreeMap<TopicName, TopicConfig>,
) -> Result<(), NotReady> {
    let policy = &deployment.policies.error_policy;
    let (OnExhausted::DeadLetter, Some(topic)) = (policy.on_exhausted, &policy.dead_letter_topic) else {
        return Ok(());
    };
    let Some(config) = outputs.get(topic) else { return Ok(()) };
    if config.cleanup != Cleanup::Delete {
        return Err(NotReady::Unusable(format!(
            "dead-letter topic {topic} is compacted: it refuses records without a key, and keeps one of those with \
             the same; make one that is not"
        )));
    }
    if config.max_record_bytes < MIN_DEAD_LETTER_BYTES {
        return Err(NotReady::Unusable(format!(
            "dead-letter topic {topic} takes records of at most {} bytes: make that at least {MIN_DEAD_LETTER_BYTES}",
            config.max_record_bytes
        )));
    }
    Ok(())
}

fn make_outputs(log: &dyn Log, deployment: &Deployment, like: &TopicConfig) -> Result<(), NotReady> {
    let config = TopicConfig { cleanup: Cleanup::Delete, materialized: false, ..like.clone() };
    for output in deployment.all_outputs() {
        if log.topics().describe(&output).map_err(NotReady::Log)?.is_some() {
            continue;
        }
        match log.topics().create(&output, &config) {
            Ok(()) => tracing::info!(topic = %output, "an output topic was made"),
            Err(LogError::TopicExists(_)) => {}
            Err(error) => return Err(NotReady::Log(error)),
        }
    }
    Ok(())
}

fn make_materialized(
    log: &dyn Log,
    deployment: &Deployment,
    sources: &BTreeMap<TopicName, TopicConfig>,
) -> Result<(), NotReady> {
    for (input, source) in sources {
        for sink in deployment.kafka_sinks().filter(|sink| sink.naming == Naming::Materialized) {
            let Ok(topic) = TopicName::materialized(input, &sink.topic) else { continue };
            let config = TopicConfig { materialized: true, ..source.clone() };
            // Looked at first: who may not create topics is refused even where there is nothing to create.
            if let Some(found) = log.topics().describe(&topic).map_err(NotReady::Log)? {
                follow(log, &topic, input, found.config.partitions, config.partitions)?;
                continue;
            }
            match log.topics().create_like(&topic, &config, input) {
                Ok(()) => tracing::info!(%topic, source = %input, "a materialized topic was made"),
                // By another node, like its source.
                Err(LogError::TopicExists(_)) => {}
                Err(error) => return Err(NotReady::Log(error)),
            }
        }
    }
    Ok(())
}

/// Gives a materialized topic as many partitions as its source has.
fn follow(
    log: &dyn Log,
    topic: &TopicName,
    input: &TopicName,
    has: u32,
    wanted: u32,
) -> Result<(), NotReady> {
    if has >= wanted {
        return Ok(());
    }
    match log.topics().grow(topic, wanted) {
        Ok(()) => {
            tracing::info!(%topic, source = %input, partitions = wanted, "a materialized topic follows its source");
            Ok(())
        }
        Err(LogError::Refused(reason)) => Err(NotReady::Unusable(format!(
            "materialized topic {topic} has {has} partitions, its source {input} has {wanted}, and {reason}: \
             give it as many, or delete it, it is made anew"
        ))),
        Err(error) => Err(NotReady::Log(error)),
    }
}
