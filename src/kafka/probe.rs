//! What a cluster can do, found out by trying, never from its name or version.

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, Producer};
use tracing::{info, warn};

use super::admin::Admin;
use super::config::KafkaConfig;
use super::context::Context;
use super::{error, writer};
use crate::ports::{Capabilities, LogError, TopicConfig};

/// Its transactions are empty and its epoch is nobody's: several probes may fence each other.
const PROBE_ID: &str = "coproc.probe";
const PROBE_TOPIC: &str = "coproc-probe";

/// Asks the cluster. Fails only when it cannot be reached or does not let us in.
pub(super) fn run(config: &KafkaConfig, admin: &Admin) -> Result<Capabilities, LogError> {
    reach(admin)?;
    let no_transactions = transactions(config)?;
    if let Some(reason) = &no_transactions {
        warn!(reason, "this cluster has no transactions: exactly-once is not to be had here");
    }
    Ok(Capabilities {
        description: format!("Kafka at {}", config.bootstrap_servers.join(",")),
        no_transactions,
        no_compaction: compaction(admin)?,
    })
}

fn reach(admin: &Admin) -> Result<(), LogError> {
    let result = admin.client().fetch_metadata(None, admin.wait().min(std::time::Duration::from_secs(10)));
    let Err(failed) = result else { return Ok(()) };
    // The reason, for instance a refused login, comes by the client's queue.
    while let Some(_served) = admin.asker.poll(std::time::Duration::from_millis(100)) {}
    Err(match admin.asker.context().take_error() {
        Some((code, text)) => error::from_code(code, &format!("cannot reach the cluster: {text}")),
        None => error::from_kafka(&failed, "cannot reach the cluster"),
    })
}

/// Why there are none: only when the broker says so itself. A time-out or a missing permission is no such
/// word, and the lanes that need them will hear of it.
fn transactions(config: &KafkaConfig) -> Result<Option<String>, LogError> {
    let mut client = config.producer()?;
    client.set("transactional.id", PROBE_ID);
    client.set("transaction.timeout.ms", config.timing.transaction.as_millis().to_string());
    let context = Context::new(config.sasl.clone(), config.assignor);
    let producer: BaseProducer<Context> =
        client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a producer"))?;
    match writer::init(&producer, config.timing.commit_budget()) {
        Ok(()) | Err(LogError::Fenced(_)) => Ok(None),
        Err(refused @ LogError::Refused(_)) if is_unsupported(&producer, &refused) => {
            Ok(Some(refused.to_string()))
        }
        Err(error) => {
            info!(%error, "whether the cluster has transactions was not found out: assuming that it has");
            Ok(None)
        }
    }
}

fn is_unsupported(producer: &BaseProducer<Context>, refused: &LogError) -> bool {
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    fatal.is_some_and(error::is_unsupported)
        || refused.to_string().contains("not supported")
        || refused.to_string().contains("UNSUPPORTED")
}

fn compaction(admin: &Admin) -> Result<Option<String>, LogError> {
    match admin.create_topic(PROBE_TOPIC, &TopicConfig::compacted(), true)? {
        Err(code @ (Code::InvalidConfig | Code::UnsupportedVersion | Code::InvalidRequest)) => {
            Ok(Some(code.to_string()))
        }
        // Not allowed to create is no word about compaction.
        _ => Ok(None),
    }
}
