//! The adapter to Kafka and what speaks its protocol, on rdkafka; nothing of rdkafka is seen outside.
//!
//! `KafkaLog` is the factory behind `ports::Log`. Lanes, folds, readers and writers each own their clients and
//! live on their caller's thread. Calls block: never make them on a thread that must not wait.

mod admin;
mod auth;
mod config;
mod context;
mod ends;
mod error;
mod ffi;
mod fold;
mod groups;
mod probe;
mod produce;
mod reader;
mod session;
mod topics;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use self::admin::Admin;
pub use self::auth::Credentials;
pub use self::config::{
    Assignor, BadKafkaConfig, KafkaConfig, Mechanism, RawKafkaConfig, RawSasl, RawTls, Timing, Tls,
};
use self::ends::Ends;
use self::produce::Sender;
use self::reader::Patience;
use self::session::{Mode, Session};
use crate::core::deployment::Delivery;
use crate::core::names::TopicName;
use crate::ports::{
    Ability, Capabilities, FencedWriter, Fold, LaneSession, LaneSpec, Log, LogError, Offsets, Produce,
    Produced, ReadFrom, Reader, TopicAdmin, TopicConfig,
};

/// Log filter for what the library calls an error and is none: a lane closes its consumer itself, within a bound, and the
/// destructor of the library's consumer then complains that it is closed already.
pub const QUIET: &str = "rdkafka::consumer::base_consumer=off";

/// How long it is left at that whether there are transactions was not found out. Lanes that start together ask once.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// A Kafka cluster.
pub struct KafkaLog {
    config: KafkaConfig,
    admin: Arc<Admin>,
    ends: Arc<Ends>,
    /// Found out when somebody wants to know, and when.
    found: Mutex<Option<(Capabilities, Instant)>>,
    /// Held by who asks, so that the others wait for the answer instead of asking too.
    asking: Mutex<()>,
    /// Made at the first use.
    sender: Mutex<Option<Sender>>,
}

/// Whether an answer of that age is still good. One without a word about transactions is not for long: what was the matter may
/// be over, a broker that was away, a permission that was not given yet. Compaction is nothing to ask again for: who may not
/// create topics never hears of it, and the check of the topics that need it tells as much.
fn is_good(found: &Capabilities, age: Duration) -> bool {
    !matches!(found.transactions, Ability::Unknown(_)) || age < ASK_AGAIN
}

impl KafkaLog {
    /// Connects, and finds out what the cluster can do.
    pub fn connect(config: KafkaConfig) -> Result<Arc<Self>, LogError> {
        if let Some(exposure) = config.exposure() {
            warn!("{exposure}");
        }
        let log = Self::new(config)?;
        log.probe()?;
        Ok(log)
    }

    /// Connects. What the cluster can do is found out when somebody asks: it takes a second, and few commands do.
    pub fn open(config: KafkaConfig) -> Result<Arc<Self>, LogError> {
        let log = Self::new(config)?;
        probe::reach(&log.admin)?;
        Ok(log)
    }

    fn new(config: KafkaConfig) -> Result<Arc<Self>, LogError> {
        config.check().map_err(|bad| LogError::BadConfig(bad.to_string()))?;
        let admin = Arc::new(Admin::open(&config)?);
        let ends = Ends::new(Arc::clone(&admin));
        let (found, asking, sender) = Default::default();
        Ok(Arc::new(Self { config, admin, ends, found, asking, sender }))
    }

    /// What the cluster can do: asked where nobody has a good answer yet.
    fn probe(&self) -> Result<Capabilities, LogError> {
        let _asking = self.asking.lock();
        if let Some((found, at)) = &*self.found.lock()
            && is_good(found, at.elapsed())
        {
            return Ok(found.clone());
        }
        let found = match (probe::run(&self.config, &self.admin), &*self.found.lock()) {
            (Ok(found), _) => found,
            // No worse than before, and others wait for their turn to ask.
            (Err(_), Some((found, _))) => found.clone(),
            (Err(error), None) => return Err(error),
        };
        *self.found.lock() = Some((found.clone(), Instant::now()));
        Ok(found)
    }

    /// An output that must exist, with its configuration where we may read it.
    fn output(&self, name: &TopicName) -> Result<(TopicName, Option<TopicConfig>), LogError> {
        match self.admin.describe(name) {
            Ok(Some(info)) => Ok((name.clone(), Some(info.config))),
            Ok(None) => Err(LogError::UnknownTopic(name.clone())),
            Err(LogError::Refused(_)) => Ok((name.clone(), None)),
            Err(error) => Err(error),
        }
    }

    /// `Auto` weakens only where the broker said explicitly that it has no transactions.
    fn mode(&self, delivery: Delivery) -> Result<Mode, LogError> {
        if delivery == Delivery::AtLeastOnce {
            return Ok(Mode::AtLeastOnce);
        }
        match self.probe()?.transactions {
            Ability::Present | Ability::Unknown(_) => Ok(Mode::ExactlyOnce),
            Ability::Absent(_) if delivery == Delivery::Auto => Ok(Mode::AtLeastOnce),
            Ability::Absent(reason) => Err(LogError::Refused(format!(
                "exactly-once needs transactions, and this cluster has none ({reason}): choose AtLeastOnce or Auto"
            ))),
        }
    }
}

impl Log for KafkaLog {
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        let mode = self.mode(spec.delivery)?;
        for input in &spec.inputs {
            topics::partitions_of(self.admin.clients()?.client(), input, self.config.timing.socket)?;
        }
        let outputs = spec.outputs.iter().map(|name| self.output(name)).collect::<Result<Vec<_>, _>>()?;
        self.admin.check_group(spec)?;
        Ok(Box::new(Session::open(&self.config, spec, mode, &outputs, Arc::clone(&self.ends))?))
    }

    fn topics(&self) -> &dyn TopicAdmin {
        &*self.admin
    }

    fn offsets(&self) -> &dyn Offsets {
        &*self.admin
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        Ok(Box::new(fold::TopicFold::open(&self.config, topic)?))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        let has_transactions = !self.probe()?.transactions.is_absent();
        Ok(Box::new(writer::Writer::open(&self.config, topic, id, has_transactions)?))
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(reader::TopicReader::open(&self.config, topic, partitions, from, Patience::OneLook)?))
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        let mut sender = self.sender.lock();
        let sender = match &mut *sender {
            Some(sender) => sender,
            none => none.insert(Sender::open(&self.config)?),
        };
        sender.send(records)
    }

    fn capabilities(&self) -> Capabilities {
        // Status asks often, on a thread that must not wait: what is known will do.
        if let Some((found, _)) = &*self.found.lock() {
            return found.clone();
        }
        let unknown = |error: LogError| Capabilities {
            description: format!("Kafka at {}", self.config.bootstrap_servers.join(",")),
            transactions: Ability::Unknown(error.to_string()),
            compaction: Ability::Unknown(error.to_string()),
        };
        self.probe().unwrap_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_found_out_is_asked_again() {
        let found = |transactions| Capabilities {
            description: String::new(),
            transactions,
            compaction: Ability::Unknown("not allowed".into()),
        };
        let why = || "why".to_owned();
        let cases = [
            (Ability::Present, Duration::MAX, true),
            (Ability::Absent(why()), Duration::MAX, true),
            (Ability::Unknown(why()), Duration::ZERO, true),
            (Ability::Unknown(why()), ASK_AGAIN, false),
        ];
        for (transactions, age, expected) in cases {
            assert_eq!(is_good(&found(transactions.clone()), age), expected, "{transactions:?} {age:?}");
        }
    }
}
