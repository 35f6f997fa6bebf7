//! The adapter to Kafka and what speaks its protocol, on rdkafka; nothing of rdkafka is seen outside.
//!
//! `KafkaLog` is the factory behind `ports::Log`. Lanes, folds, readers and writers each own their clients and
//! live on their caller's thread. Calls block: never make them on a thread that must not wait.

mod admin;
mod auth;
mod config;
mod context;
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

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use self::admin::Admin;
pub use self::auth::Credentials;
pub use self::config::{
    Assignor, BadKafkaConfig, KafkaConfig, Mechanism, RawKafkaConfig, RawSasl, RawTls, Timing, Tls,
};
use self::produce::Sender;
use self::reader::Patience;
use self::session::{Mode, Session};
use crate::core::deployment::Delivery;
use crate::core::names::TopicName;
use crate::ports::{
    Capabilities, FencedWriter, Fold, LaneSession, LaneSpec, Log, LogError, Offsets, Produce, Produced,
    ReadFrom, Reader, TopicAdmin, TopicConfig,
};

/// A Kafka cluster.
pub struct KafkaLog {
    config: KafkaConfig,
    admin: Admin,
    /// Found out when somebody wants to know.
    capabilities: OnceLock<Capabilities>,
    /// Made at the first use.
    sender: Mutex<Option<Sender>>,
}

impl KafkaLog {
    /// Connects, and finds out what the cluster can do.
    pub fn connect(config: KafkaConfig) -> Result<Arc<Self>, LogError> {
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
        let admin = Admin::open(&config)?;
        Ok(Arc::new(Self { config, admin, capabilities: OnceLock::new(), sender: Mutex::new(None) }))
    }

    /// What the cluster can do, asked once.
    fn probe(&self) -> Result<&Capabilities, LogError> {
        if let Some(known) = self.capabilities.get() {
            return Ok(known);
        }
        let found = probe::run(&self.config, &self.admin)?;
        Ok(self.capabilities.get_or_init(|| found))
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
        match &self.probe()?.no_transactions {
            None => Ok(Mode::ExactlyOnce),
            Some(_) if delivery == Delivery::Auto => Ok(Mode::AtLeastOnce),
            Some(reason) => Err(LogError::Refused(format!(
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
        Ok(Box::new(Session::open(&self.config, spec, mode, &outputs)?))
    }

    fn topics(&self) -> &dyn TopicAdmin {
        &self.admin
    }

    fn offsets(&self) -> &dyn Offsets {
        &self.admin
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        Ok(Box::new(fold::TopicFold::open(&self.config, topic)?))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        let has_transactions = self.probe()?.no_transactions.is_none();
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
        let unknown = |error: LogError| Capabilities {
            description: format!("Kafka at {}, {error}", self.config.bootstrap_servers.join(",")),
            no_transactions: None,
            no_compaction: None,
        };
        self.probe().cloned().unwrap_or_else(unknown)
    }
}
