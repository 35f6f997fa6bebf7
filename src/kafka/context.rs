//! What librdkafka tells us between the lines: rebalances, failed deliveries, log lines, lost connections.
//!
//! A context only writes down; the session that owns the client acts. Rebalances in particular are not
//! answered here, so that partitions stay owned until the lane has committed.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Message, TopicPartitionList};
use tracing::{debug, info, warn};

use super::auth::Credentials;
use super::config::{Assignor, KafkaConfig};
use super::ffi;

/// How long after all brokers were said to be down the client is given new ones. Its own attempts come sooner, each with
/// such a word if it fails.
const STRANDED: Duration = Duration::from_secs(5);

/// A change of ownership that waits for its answer.
#[derive(Debug)]
pub(super) enum Rebalance {
    Assign { partitions: Vec<(String, u32)>, generation: Option<i32> },
    Revoke { partitions: Vec<(String, u32)>, lost: bool, generation: Option<i32> },
}

/// A record that did not arrive.
#[derive(Debug, Clone)]
pub(super) struct Undelivered {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) code: Code,
}

/// The context of every client here.
#[derive(Debug)]
pub(super) struct Context {
    bootstrap_servers: String,
    credentials: Option<Credentials>,
    assignor: Assignor,
    /// When every broker was last said to be down.
    all_down: Mutex<Option<Instant>>,
    rebalances: Mutex<VecDeque<Rebalance>>,
    undelivered: Mutex<Option<Undelivered>>,
    last_error: Mutex<Option<(Code, String)>>,
    /// Why the last connection failed.
    last_loss: Mutex<Option<String>>,
    connection_errors: AtomicU64,
    closing: AtomicBool,
    /// What brokers said that they take, where somebody wants to know.
    versions: Option<Mutex<Versions>>,
}

/// The newest version of each request, by its key, that a broker takes; by the broker's address.
pub(super) type Versions = BTreeMap<String, BTreeMap<i16, i16>>;

impl Context {
    /// One that collects what brokers say of their versions. Its client needs `debug=feature`.
    pub(super) fn listening(config: &KafkaConfig) -> Self {
        Self { versions: Some(Mutex::default()), ..Self::new(config) }
    }

    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self {
            bootstrap_servers: config.bootstrap_servers.join(","),
            credentials: config.sasl.clone(),
            assignor: config.assignor,
            all_down: Mutex::default(),
            rebalances: Mutex::default(),
            undelivered: Mutex::default(),
            last_error: Mutex::default(),
            last_loss: Mutex::default(),
            connection_errors: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            versions: None,
        }
    }

    pub(super) fn versions(&self) -> Versions {
        self.versions.as_ref().map(|versions| versions.lock().clone()).unwrap_or_default()
    }

    /// Takes in a line about versions: whether somebody wanted it.
    fn listen(&self, facility: &str, text: &str) -> bool {
        let Some(versions) = self.versions.as_ref().filter(|_| facility == "APIVERSION") else {
            return false;
        };
        if let Some((broker, request, newest)) = version_in(text) {
            versions.lock().entry(broker.to_owned()).or_default().insert(request, newest);
        }
        true
    }

    pub(super) fn next_rebalance(&self) -> Option<Rebalance> {
        self.rebalances.lock().pop_front()
    }

    /// Whether one waits to be taken.
    pub(super) fn has_rebalance(&self) -> bool {
        !self.rebalances.lock().is_empty()
    }

    pub(super) fn take_undelivered(&self) -> Option<Undelivered> {
        self.undelivered.lock().take()
    }

    /// How often a connection was lost or a request timed out so far: when it moves during the end of a
    /// transaction, the request may have been sent twice.
    pub(super) fn connection_errors(&self) -> u64 {
        self.connection_errors.load(Ordering::Relaxed)
    }

    /// The last error that is not a mere loss of connection, with its words.
    pub(super) fn take_error(&self) -> Option<(Code, String)> {
        self.last_error.lock().take()
    }

    /// Why the last connection failed, in librdkafka's words.
    pub(super) fn take_loss(&self) -> Option<String> {
        self.last_loss.lock().take()
    }

    /// Gives a client that may have lost sight of its cluster for good the bootstrap servers again. A broker that is
    /// stopping may answer that there is no broker; librdkafka then forgets all it knew, and never asks anybody again
    /// (<https://github.com/confluentinc/librdkafka/issues/5301>). Before that it says that all are down. In an ordinary outage it
    /// says so again and again; only once it has been silent for `STRANDED` it is back, or lost.
    pub(super) fn rescue(&self, client: ffi::Client) {
        if self.was_stranded(STRANDED) {
            ffi::add_brokers(client, &self.bootstrap_servers);
        }
    }

    /// Whether all brokers were said to be down, and nothing since for so long. It is forgotten then.
    pub(super) fn was_stranded(&self, silence: Duration) -> bool {
        let mut all_down = self.all_down.lock();
        all_down.take_if(|at| at.elapsed() >= silence).is_some()
    }

    /// From now on rebalances are answered at once: nobody will commit any more.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

/// Broker, request and newest version in `[thrd:…]: BROKER:   ApiKey NAME (KEY) Versions OLDEST..NEWEST`: librdkafka
/// keeps what it knows of versions to itself, but for this line.
fn version_in(text: &str) -> Option<(&str, i16, i16)> {
    let (head, tail) = text.split_once("ApiKey ")?;
    // Before the slash: a broker is called `bootstrap` there first, and by its number later.
    let (broker, _) = head.rsplit("]: ").next()?.rsplit_once('/')?;
    let (_, key) = tail.split_once('(')?;
    let (key, versions) = key.split_once(')')?;
    let (_, newest) = versions.rsplit_once("..")?;
    Some((broker, key.parse().ok()?, newest.trim().parse().ok()?))
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if self.listen(facility, text) {
            return;
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                warn!(facility, "librdkafka: {text}");
            }
            // It calls a broker that went away an error and then comes back to it by itself.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => info!(facility, "librdkafka: {text}"),
            _ => debug!(facility, "librdkafka: {text}"),
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = super::error::code(&error) else { return };
        if code == Code::AllBrokersDown {
            *self.all_down.lock() = Some(Instant::now());
        }
        match code {
            Code::BrokerTransportFailure
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::AllBrokersDown
            | Code::Resolve => {
                self.connection_errors.fetch_add(1, Ordering::Relaxed);
                debug!("librdkafka: {reason}");
                // That all are down says nothing that the reason before it does not say better.
                if code != Code::AllBrokersDown {
                    *self.last_loss.lock() = Some(reason.to_owned());
                }
            }
            Code::PartitionEOF => {}
            code => {
                debug!(?code, "librdkafka: {reason}");
                *self.last_error.lock() = Some((code, reason.to_owned()));
            }
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let credentials = self.credentials.as_ref().ok_or("no credentials are configured")?;
        let token = credentials.bearer()?.ok_or("no token file is configured")?;
        Ok(OAuthToken {
            token: token.text.expose().to_owned(),
            principal_name: token.principal,
            lifetime_ms: token.expires_ms,
        })
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let is_assign = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Relaxed) {
            let answered = match (is_assign, self.assignor) {
                (true, Assignor::Eager) => consumer.assign(&TopicPartitionList::new()),
                (true, Assignor::Cooperative) => consumer.incremental_assign(&TopicPartitionList::new()),
                (false, Assignor::Eager) => consumer.unassign(),
                (false, Assignor::Cooperative) => consumer.incremental_unassign(partitions),
            };
            if let Err(error) = answered {
                warn!(%error, "could not answer a rebalance while leaving the group");
            }
            return;
        }
        let elements = partitions.elements();
        let partitions = elements.iter().map(|e| (e.topic().to_owned(), e.partition() as u32)).collect();
        let generation = ffi::generation(consumer.client().native_ptr());
        let rebalance = if is_assign {
            Rebalance::Assign { partitions, generation }
        } else {
            Rebalance::Revoke { partitions, lost: consumer.assignment_lost(), generation }
        };
        self.rebalances.lock().push_back(rebalance);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        // Purged because of an abort: the abort has its own reason.
        let code = match super::error::code(error) {
            None | Some(Code::PurgeQueue | Code::PurgeInflight) => return,
            Some(code) => code,
        };
        self.undelivered.lock().get_or_insert_with(|| Undelivered {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            code,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_line_that_tells_them() {
        let line = "[thrd:127.0.0.1:9092/bootstrap]: 127.0.0.1:9092/1:   ApiKey Fetch (1) Versions 4..18";
        assert_eq!(version_in(line), Some(("127.0.0.1:9092", 1, 18)));
        assert_eq!(version_in("[thrd:x]: x/1: Broker API support:"), None);
    }
}
