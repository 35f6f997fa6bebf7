//! What a cluster can do, found out by trying and from the requests that it takes, never from its name or version; and,
//! for people, its version.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, Producer};
use tracing::{info, warn};

use super::admin::{Admin, Like};
use super::config::{Batching, KafkaConfig};
use super::context::{Context, Versions};
use super::{error, writer};
use crate::ports::{Ability, Capabilities, LogError, TopicConfig};

/// Its transactions are empty and its epoch is nobody's: several probes may fence each other.
const PROBE_ID: &str = "coproc.probe";
const PROBE_TOPIC: &str = "coproc-probe";
/// How long the brokers may take to say what they take.
const EVERY_BROKER: Duration = Duration::from_secs(2);

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const ADD_PARTITIONS_TO_TXN: i16 = 24;
const OF_TRANSACTIONS: [(i16, &str); 5] = [
    (22, "InitProducerId"),
    (ADD_PARTITIONS_TO_TXN, "AddPartitionsToTxn"),
    (25, "AddOffsetsToTxn"),
    (26, "EndTxn"),
    (LAST_OF_TRANSACTIONS, "TxnOffsetCommit"),
];
const LAST_OF_TRANSACTIONS: i16 = 28;
/// The first releases that took a version of a request, newest first. A broker does not tell its own version. Source:
/// the message definitions of Apache Kafka.
const RELEASES: [(&str, i16, i16); 13] = [
    ("4.1", FETCH, 18),
    ("4.0", PRODUCE, 12),
    ("3.9", FETCH, 17),
    ("3.8", PRODUCE, 11),
    ("3.7", FETCH, 16),
    ("3.6", ADD_PARTITIONS_TO_TXN, 4),
    ("3.5", FETCH, 15),
    ("3.1", FETCH, 13),
    ("3.0", LIST_OFFSETS, 7),
    ("2.8", PRODUCE, 9),
    ("2.7", FETCH, 12),
    ("2.4", PRODUCE, 8),
    ("2.3", FETCH, 11),
];

/// Asks the cluster. Fails only when it cannot be reached or does not let us in.
pub(super) fn run(config: &KafkaConfig, admin: &Admin) -> Result<Capabilities, LogError> {
    let brokers = reach(admin)?;
    let (transactions, release) = transactions(config)?;
    match &transactions {
        Ability::Present => {}
        Ability::Absent(reason) => {
            warn!(reason, "this cluster has no transactions: exactly-once is not to be had here");
        }
        Ability::Unknown(reason) => {
            warn!(
                reason,
                "whether the cluster has transactions was not found out, it is assumed: check \
                 transaction.state.log.replication.factor and the ACL on the transactional id"
            );
        }
    }
    let speak = match brokers {
        1 => "1 broker that speaks".to_owned(),
        brokers => format!("{brokers} brokers that speak"),
    };
    let release =
        release.map_or_else(|| "an unknown protocol".to_owned(), |r| format!("the protocol of {r}"));
    Ok(Capabilities {
        description: format!("Kafka at {}: {speak} {release}", config.bootstrap_servers.join(",")),
        transactions,
        compaction: compaction(admin)?,
    })
}

/// How many brokers there are, once one answers.
pub(super) fn reach(admin: &Admin) -> Result<usize, LogError> {
    let clients = admin.clients()?;
    let wait = admin.wait().min(Duration::from_secs(10));
    let failed = match clients.client().fetch_metadata(None, wait) {
        Ok(metadata) => return Ok(metadata.brokers().len()),
        Err(failed) => failed,
    };
    // The reason, for instance a refused login, comes by the client's queue.
    while let Some(_served) = clients.asker.poll(Duration::from_millis(100)) {}
    let cannot = format!("cannot reach Kafka at {}", admin.config.bootstrap_servers.join(","));
    let context = clients.asker.context();
    if let Some((code, text)) = context.take_error() {
        return Err(error::from_code(code, &format!("{cannot}: {text}")));
    }
    if !error::code(&failed).is_some_and(error::mends_itself) {
        return Err(error::from_kafka(&failed, &cannot));
    }
    // It tells why a connection could not be made, and not always why one was hung up.
    let why = context.take_loss().unwrap_or_else(|| format!("no answer within {wait:?}"));
    Err(LogError::Unavailable(format!(
        "{cannot}: {why}; check that a broker listens there, and that TLS and SASL are set as its listener wants them"
    )))
}

/// Whether there are any: there are none only when the broker says so itself. A time-out or a missing permission is no such
/// word. And which release's protocol the brokers speak.
fn transactions(config: &KafkaConfig) -> Result<(Ability, Option<String>), LogError> {
    let mut client = config.producer(Batching::Prompt)?;
    client.set("transactional.id", PROBE_ID);
    client.set("transaction.timeout.ms", config.timing.transaction.as_millis().to_string());
    // Only so does librdkafka tell what brokers take.
    client.set("debug", "feature").set_log_level(RDKafkaLogLevel::Debug);
    let context = Context::listening(config);
    let producer: BaseProducer<Context> =
        client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a producer"))?;
    let found = match writer::init(&producer, config.timing.commit_budget()) {
        Ok(()) | Err(LogError::Fenced(_)) => Ability::Present,
        Err(refused @ LogError::Refused(_)) if is_unsupported(&producer, &refused) => {
            Ability::Absent(refused.to_string())
        }
        Err(error) => Ability::Unknown(format!("{error}, asked with the transactional id {PROBE_ID}")),
    };
    // Goes to every broker, for the sake of the connection; one that is down is not waited for.
    let asked = producer.client().fetch_group_list(None, EVERY_BROKER);
    writer::serve(&producer);
    let versions = producer.context().versions();
    let missing = match asked {
        Ok(_) => missing(&versions),
        Err(error) => {
            info!(%error, "not every broker answers");
            None
        }
    };
    let found = match (found, missing) {
        (found @ Ability::Absent(_), _) | (found, None) => found,
        (_, Some(missing)) => Ability::Absent(missing),
    };
    Ok((found, release(&versions)))
}

/// The first request of a transaction that a broker does not take.
fn missing(versions: &Versions) -> Option<String> {
    // They come in their order: without a later one it is not known yet what a broker takes.
    let is_known = |takes: &BTreeMap<i16, i16>| takes.keys().any(|request| *request > LAST_OF_TRANSACTIONS);
    versions.iter().filter(|(_, takes)| is_known(takes)).find_map(|(broker, takes)| {
        let (_, name) = OF_TRANSACTIONS.iter().find(|(request, _)| !takes.contains_key(request))?;
        Some(format!("broker {broker} takes no {name} requests"))
    })
}

/// The oldest release that these brokers speak the protocol of, and the newest where that is another one.
fn release(versions: &Versions) -> Option<String> {
    let of_broker = |takes: &BTreeMap<i16, i16>| {
        RELEASES.iter().position(|(_, request, version)| takes.get(request).is_some_and(|v| v >= version))
    };
    let places: Vec<Option<usize>> = versions.values().map(of_broker).collect();
    let name = |place: usize| RELEASES[place].0;
    let newest = *places.iter().flatten().min()?;
    Some(match places.iter().map(|place| place.unwrap_or(RELEASES.len())).max() {
        Some(oldest) if oldest == RELEASES.len() => {
            format!("something before Kafka 2.3 to Kafka {}", name(newest))
        }
        Some(oldest) if oldest != newest => format!("Kafka {} to {}", name(oldest), name(newest)),
        _ => format!("Kafka {}", name(newest)),
    })
}

fn is_unsupported(producer: &BaseProducer<Context>, refused: &LogError) -> bool {
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    fatal.is_some_and(error::is_unsupported)
        || refused.to_string().contains("not supported")
        || refused.to_string().contains("UNSUPPORTED")
}

fn compaction(admin: &Admin) -> Result<Ability, LogError> {
    Ok(match admin.create_topic(PROBE_TOPIC, &TopicConfig::compacted(), &Like::default(), true)? {
        Ok(()) => Ability::Present,
        Err(code @ (Code::InvalidConfig | Code::UnsupportedVersion | Code::InvalidRequest)) => {
            Ability::Absent(code.to_string())
        }
        // Not allowed to create, for instance.
        Err(code) => Ability::Unknown(format!("topic {PROBE_TOPIC} could not be tried: {code}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_takes_no_transactions_is_named() {
        let takes = |requests: &[i16]| requests.iter().map(|request| (*request, 0)).collect();
        let one = |requests| missing(&Versions::from([("b:1".to_owned(), takes(requests))]));
        assert_eq!(one(&[0, 22, 24, 25, 26, 28, 32]), None);
        assert_eq!(one(&[0, 22, 32]).unwrap(), "broker b:1 takes no AddPartitionsToTxn requests");
        assert_eq!(one(&[0, 22]), None, "the rest is still to come");
        assert_eq!(missing(&Versions::new()), None);
    }

    #[test]
    fn a_release_is_told_by_what_it_takes() {
        let broker = |fetch, produce| BTreeMap::from([(FETCH, fetch), (PRODUCE, produce), (LIST_OFFSETS, 7)]);
        let of = |brokers: &[BTreeMap<i16, i16>]| {
            let named = brokers.iter().enumerate().map(|(i, broker)| (format!("b{i}"), broker.clone()));
            release(&named.collect())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[broker(18, 13), broker(18, 13)]).unwrap(), "Kafka 4.1");
        assert_eq!(of(&[broker(17, 12)]).unwrap(), "Kafka 4.0");
        assert_eq!(of(&[broker(18, 13), broker(16, 10)]).unwrap(), "Kafka 3.7 to 4.1");
        assert_eq!(of(&[broker(12, 9)]).unwrap(), "Kafka 3.0");
        assert_eq!(of(&[BTreeMap::from([(FETCH, 5)])]), None);
    }
}
