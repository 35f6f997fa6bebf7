//! Topics: create, describe, delete; where they start and end.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::MetadataTopic;

use super::auth::Rotation;
use super::config::KafkaConfig;
use super::context::Context;
use super::{error, ffi, topics};
use crate::core::ledger::TopicPartition;
use crate::core::names::TopicName;
use crate::core::record::{Offset, TimestampMs};
use crate::ports::{Extent, LogError, Replicas, TopicAdmin, TopicConfig, TopicInfo};

/// Replication factor of the topics that we create, where the cluster has as many brokers.
const REPLICAS: usize = 3;
/// How long a created or deleted topic may take to be seen so by the broker that we ask.
const SETTLE: Duration = Duration::from_secs(10);

/// Asks and changes what a cluster has.
pub(super) struct Admin {
    kept: Mutex<Kept>,
    pub(super) config: KafkaConfig,
}

struct Kept {
    clients: Arc<Clients>,
    rotation: Rotation,
}

/// The administrator's client, and one that asks for offsets.
pub(super) struct Clients {
    administrator: AdminClient<Context>,
    /// Without a group: it never joins anything.
    pub(super) asker: BaseConsumer<Context>,
}

/// What another topic has, beyond what a `TopicConfig` says.
#[derive(Default)]
pub(super) struct Like {
    settings: Vec<(String, String)>,
    /// As many as the cluster has brokers for, up to three where it is not said.
    replicas: Option<usize>,
}

/// Of how many replicas a topic is made on so many brokers.
fn replicas(brokers: usize) -> usize {
    brokers.clamp(1, REPLICAS)
}

impl Clients {
    fn make(config: &KafkaConfig) -> Result<Self, LogError> {
        let what = "cannot make the administrator's client";
        let context = || Context::new(config);
        let administrator = config
            .administrator()?
            .create_with_context(context())
            .map_err(|e| error::from_kafka(&e, what))?;
        let asker: BaseConsumer<Context> =
            config.consumer()?.create_with_context(context()).map_err(|e| error::from_kafka(&e, what))?;
        // Questions come before the first poll, which would ask for the token.
        if let Some(sasl) = &config.sasl {
            sasl.hand_token(asker.client().native_ptr())?;
        }
        Ok(Self { administrator, asker })
    }

    /// The client for questions.
    pub(super) fn client(&self) -> &Client<Context> {
        self.asker.client()
    }

    /// The administrator's client, logged in: its own thread serves answers only, so it never asks for a token.
    pub(super) fn administrator(&self, config: &KafkaConfig) -> Result<&AdminClient<Context>, LogError> {
        if let Some(sasl) = &config.sasl {
            sasl.hand_token(self.administrator.inner().native_ptr())?;
        }
        Ok(&self.administrator)
    }
}

impl Admin {
    pub(super) fn open(config: &KafkaConfig) -> Result<Self, LogError> {
        let rotation = Rotation::new(config);
        let clients = Arc::new(Clients::make(config)?);
        Ok(Self { kept: Mutex::new(Kept { clients, rotation }), config: config.clone() })
    }

    /// The clients, with the credentials of now. Serves their queues first, so that tokens and log lines do not pile up.
    pub(super) fn clients(&self) -> Result<Arc<Clients>, LogError> {
        let mut kept = self.kept.lock();
        let Kept { clients, rotation } = &mut *kept;
        for _ in 0..=ffi::events(clients.asker.client().native_ptr()) {
            clients.asker.poll(Duration::ZERO);
        }
        // Its own thread serves the answers to its questions alone. What else it says, of brokers that it cannot reach, the
        // other client says too.
        ffi::drop_events(clients.administrator.inner().native_ptr());
        let are_lost = clients.asker.context().was_stranded(Duration::ZERO);
        let natives = [clients.client().native_ptr(), clients.administrator.inner().native_ptr()];
        if rotation.look(natives) || are_lost {
            let fresh = Rotation::new(&self.config);
            (*clients, *rotation) = (Arc::new(Clients::make(&self.config)?), fresh);
        }
        Ok(clients.clone())
    }

    /// Makes others in their place, unless somebody has done so.
    pub(super) fn part_with(&self, clients: &Arc<Clients>) -> Result<(), LogError> {
        let mut kept = self.kept.lock();
        if Arc::ptr_eq(&kept.clients, clients) {
            kept.clients = Arc::new(Clients::make(&self.config)?);
        }
        Ok(())
    }

    pub(super) fn wait(&self) -> Duration {
        self.config.timing.socket
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.wait())).operation_timeout(Some(SETTLE))
    }

    /// Where a partition starts and ends.
    pub(super) fn extent(&self, at: &TopicPartition) -> Result<Extent, LogError> {
        let clients = self.clients()?;
        let ends = topics::watermarks(&clients.asker, at.topic.as_str(), at.partition as i32, self.wait());
        let (first, end) =
            ends.map_err(|e| error::from_kafka(&e, &format!("cannot ask where {at} starts and ends")))?;
        Ok(Extent { first, end })
    }

    fn brokers(&self) -> Result<usize, LogError> {
        let metadata = self.clients()?.client().fetch_metadata(None, self.wait());
        Ok(metadata.map_err(|e| error::from_kafka(&e, "cannot reach the cluster"))?.brokers().len())
    }

    /// Creates a topic, or only asks whether the cluster would.
    pub(super) fn create_topic(
        &self,
        name: &str,
        config: &TopicConfig,
        like: &Like,
        only_ask: bool,
    ) -> Result<Result<(), Code>, LogError> {
        let brokers = self.brokers()?;
        let replicas =
            like.replicas.map_or_else(|| replicas(brokers), |replicas| replicas.clamp(1, brokers.max(1)));
        let entries = topics::entries(config);
        let mut topic =
            NewTopic::new(name, config.partitions as i32, TopicReplication::Fixed(replicas as i32));
        let is_ours = |name: &str| entries.iter().any(|(ours, _)| *ours == name);
        for (key, value) in like.settings.iter().filter(|(name, _)| !is_ours(name)) {
            topic = topic.set(key, value);
        }
        for (key, value) in &entries {
            topic = topic.set(key, value);
        }
        let options = self.options().validate_only(only_ask);
        let answers =
            block_on(self.clients()?.administrator(&self.config)?.create_topics([&topic], &options))
                .map_err(|e| error::from_kafka(&e, &format!("cannot create topic {name}")))?;
        Ok(answers.into_iter().next().map_or(Ok(()), |answer| answer.map(drop).map_err(|(_, code)| code)))
    }

    fn create_as(&self, name: &TopicName, config: &TopicConfig, like: &Like) -> Result<(), LogError> {
        match self.create_topic(name.as_str(), config, like, false)? {
            Ok(()) => self.settle(name, true),
            Err(Code::TopicAlreadyExists) => {
                // Perhaps only just, by somebody else: who asks for it next must find it.
                self.settle(name, true)?;
                Err(LogError::TopicExists(name.clone()))
            }
            Err(code) => Err(error::from_code(code, &format!("cannot create topic {name}"))),
        }
    }

    /// Waits until the cluster shows a topic, or shows it no more.
    fn settle(&self, name: &TopicName, wanted: bool) -> Result<(), LogError> {
        let shown = || Ok(topics::identity(self.clients()?.client(), name, self.wait())?.is_some() == wanted);
        self.settled(shown, || {
            format!("topic {name} is not {} everywhere yet", if wanted { "created" } else { "deleted" })
        })
    }

    /// Waits until the cluster shows so many partitions.
    fn settle_partitions(&self, name: &TopicName, wanted: u32) -> Result<(), LogError> {
        let shown = || Ok(self.partitions(name)? >= wanted);
        self.settled(shown, || format!("the new partitions of {name} are not everywhere yet"))
    }

    /// Waits until every broker shows it. Which one answers is the client's choice, at random: asked so often, one
    /// that lags behind is met.
    fn settled(
        &self,
        shown: impl Fn() -> Result<bool, LogError>,
        what: impl Fn() -> String,
    ) -> Result<(), LogError> {
        let deadline = std::time::Instant::now() + SETTLE;
        let brokers = self.brokers()?;
        let enough = if brokers > 1 { brokers * 5 } else { 1 };
        let mut in_a_row = 0;
        while in_a_row < enough {
            if shown()? {
                in_a_row += 1;
                continue;
            }
            in_a_row = 0;
            if std::time::Instant::now() > deadline {
                return Err(LogError::Unavailable(what()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn partitions(&self, name: &TopicName) -> Result<u32, LogError> {
        topics::partitions_of(self.clients()?.client(), name, self.wait())
    }
}

impl TopicAdmin for Admin {
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
        self.create_as(name, config, &Like::default())
    }

    fn create_like(
        &self,
        name: &TopicName,
        config: &TopicConfig,
        source: &TopicName,
    ) -> Result<(), LogError> {
        let settings = topics::own_settings(self.clients()?.client(), source, self.wait())?;
        let replicas = TopicAdmin::replicas(self, source)?.map(|replicas| replicas.fewest);
        self.create_as(name, config, &Like { settings, replicas })
    }

    fn delete(&self, name: &TopicName) -> Result<(), LogError> {
        let what = format!("cannot delete topic {name}");
        let clients = self.clients()?;
        let administrator = clients.administrator(&self.config)?;
        let answers = block_on(administrator.delete_topics(&[name.as_str()], &self.options()))
            .map_err(|e| error::from_kafka(&e, &what))?;
        match answers.into_iter().next() {
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => {
                Err(LogError::UnknownTopic(name.clone()))
            }
            Some(Err((_, code))) => Err(error::from_code(code, &what)),
            _ => self.settle(name, false),
        }
    }

    fn grow(&self, name: &TopicName, partitions: u32) -> Result<(), LogError> {
        if self.partitions(name)? >= partitions {
            return Ok(());
        }
        let what = format!("cannot give {name} {partitions} partitions");
        let wanted = NewPartitions::new(name.as_str(), partitions as usize);
        let clients = self.clients()?;
        let administrator = clients.administrator(&self.config)?;
        let answers = block_on(administrator.create_partitions([&wanted], &self.options()))
            .map_err(|e| error::from_kafka(&e, &what))?;
        match answers.into_iter().next() {
            // Somebody else was first.
            Some(Err((_, Code::InvalidPartitions)) | Ok(_)) | None => {
                self.settle_partitions(name, partitions)
            }
            Some(Err((_, code))) => Err(error::from_code(code, &what)),
        }
    }

    fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
        let clients = self.clients()?;
        let client = clients.client();
        let metadata = client
            .fetch_metadata(None, self.wait())
            .map_err(|e| error::from_kafka(&e, "cannot list topics"))?;
        let mut names: Vec<(TopicName, u32)> = metadata
            .topics()
            .iter()
            .filter_map(|topic| Some((topic.name().parse().ok()?, topic.partitions().len() as u32)))
            .collect();
        names.sort();
        let configs = topics::configs(client, &names, self.wait())?;
        let mut infos = Vec::with_capacity(names.len());
        for ((name, _), config) in names.into_iter().zip(configs) {
            // Deleted while we asked: left out.
            if let (Some(config), Some((id, _))) = (config, topics::identity(client, &name, self.wait())?) {
                infos.push(TopicInfo { name, id, config });
            }
        }
        Ok(infos)
    }

    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError> {
        topics::look_at(self.clients()?.client(), name, self.wait())
    }

    fn replicas(&self, name: &TopicName) -> Result<Option<Replicas>, LogError> {
        let metadata = self.clients()?.client().fetch_metadata(Some(name.as_str()), self.wait());
        let metadata =
            metadata.map_err(|e| error::from_kafka(&e, &format!("cannot ask for the replicas of {name}")))?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let fewest = partitions.map(|partition| partition.replicas().len()).min();
        let fewest = fewest.ok_or_else(|| LogError::UnknownTopic(name.clone()))?;
        Ok(Some(Replicas { fewest, wanted: replicas(metadata.brokers().len()) }))
    }

    fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError> {
        let count = topics::partitions_of(self.clients()?.client(), name, self.wait())?;
        (0..count).map(|partition| self.extent(&TopicPartition::new(name, partition))).collect()
    }

    fn offsets_at(&self, name: &TopicName, timestamp: TimestampMs) -> Result<Vec<Offset>, LogError> {
        let what = format!("cannot ask {name} for a time");
        let extents = self.extents(name)?;
        let clients = self.clients()?;
        let of = |(partition, extent): (i32, &Extent)| {
            let found = topics::offset_at(&clients.asker, name.as_str(), partition, timestamp, self.wait());
            let found = found.map_err(|e| error::from_kafka(&e, &what))?;
            Ok(found.unwrap_or(extent.end))
        };
        (0..).zip(&extents).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::super::auth::Credentials;
    use super::*;

    /// A new client that logs in with a token has something to say already: it asks for one.
    #[test]
    fn what_the_administrators_client_says_does_not_pile_up() {
        // It takes connections and says nothing, so that no client is made anew.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let body = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin","exp":100000000000}"#);
        std::fs::write(&file, format!("e30.{body}.")).unwrap();
        let mut config = KafkaConfig::plain([silent.local_addr().unwrap().to_string()]);
        config.sasl = Some(Credentials::token(file));
        let admin = Admin::open(&config).unwrap();
        let waiting = || ffi::events(admin.kept.lock().clients.administrator.inner().native_ptr());
        assert!(waiting() > 0);
        drop(admin.clients().unwrap());
        assert_eq!(waiting(), 0);
    }
}
