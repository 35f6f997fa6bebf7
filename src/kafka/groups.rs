//! Consumer groups: look at, change, remove.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use tracing::info;

use super::admin::Admin;
use super::context::Context;
use super::{error, ffi};
use crate::core::ledger::TopicPartition;
use crate::core::names::ConsumerGroup;
use crate::core::record::Offset;
use crate::ports::{LaneSpec, LogError, Offsets};

impl Admin {
    /// A consumer that speaks for a group without joining it.
    fn spokesman(&self, group: &ConsumerGroup) -> Result<BaseConsumer<Context>, LogError> {
        let mut client = self.config.consumer()?;
        client.set("group.id", group.as_str());
        // What is committed so far, also while a transaction is under way: the answer would else wait for its end.
        client.set("isolation.level", "read_uncommitted");
        let context = Context::new(&self.config);
        context.close();
        let consumer: BaseConsumer<Context> =
            client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a client"))?;
        if let Some(sasl) = &self.config.sasl {
            sasl.hand_token(consumer.client().native_ptr())?;
        }
        Ok(consumer)
    }

    /// The client ids of the group's members.
    fn client_ids(&self, group: &ConsumerGroup) -> Result<Vec<String>, LogError> {
        let what = format!("cannot look at group {group}");
        self.ask_coordinator(&what, |client| ffi::members(client, group.as_str(), self.wait()))
    }

    /// Asks a group's coordinator. A client whose question was not answered is dropped: see `ffi::members`.
    fn ask_coordinator<T>(
        &self,
        what: &str,
        ask: impl Fn(ffi::Client) -> Result<T, Code>,
    ) -> Result<T, LogError> {
        let clients = self.clients()?;
        let client = clients.administrator(&self.config)?.inner().native_ptr();
        let was_silent = Cell::new(false);
        let answer = self.while_coordinator_wakes(|| {
            ask(client).map_err(|code| {
                was_silent.set(was_silent.get() || code == Code::OperationTimedOut);
                (Some(code), error::from_code(code, what))
            })
        });
        if was_silent.get() {
            self.part_with(&clients)?;
        }
        answer
    }

    /// Whether somebody reads with the group who is no lane of this deployment: the client ids of its lanes are their
    /// transactional ids, which differ in their last two parts alone, the node and the lane. Who joins later is not
    /// noticed.
    pub(super) fn check_group(&self, spec: &LaneSpec) -> Result<(), LogError> {
        let of_deployment = |id: &str| id.rsplitn(3, '.').nth(2).map(str::to_owned);
        let ours = of_deployment(&spec.transactional_id);
        let members = match self.client_ids(&spec.group) {
            Ok(members) => members,
            Err(error @ (LogError::Refused(_) | LogError::BadConfig(_))) => return Err(error),
            // No word about others; the lane finds out by itself whether the coordinator is there.
            Err(error) => {
                info!(%error, "whether the group is in use by others is not known");
                return Ok(());
            }
        };
        match members.into_iter().find(|id| of_deployment(id) != ours) {
            None => Ok(()),
            Some(id) => Err(LogError::GroupInUse { group: spec.group.clone(), by: format!("client {id:?}") }),
        }
    }

    /// Asks again while the group's coordinator is being found or reads its log, as it does for a moment after a start.
    fn while_coordinator_wakes<T>(
        &self,
        ask: impl Fn() -> Result<T, (Option<Code>, LogError)>,
    ) -> Result<T, LogError> {
        let deadline = Instant::now() + self.wait();
        loop {
            let (code, error) = match ask() {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let is_waking = matches!(
                code,
                Some(Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator)
            );
            if !is_waking || Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn everything(&self) -> Result<TopicPartitionList, LogError> {
        let metadata = self
            .clients()?
            .client()
            .fetch_metadata(None, self.wait())
            .map_err(|e| error::from_kafka(&e, "cannot list topics"))?;
        let mut list = TopicPartitionList::new();
        for topic in metadata.topics() {
            for partition in topic.partitions() {
                list.add_partition(topic.name(), partition.id());
            }
        }
        Ok(list)
    }
}

impl Offsets for Admin {
    fn groups(&self) -> Result<Vec<ConsumerGroup>, LogError> {
        let clients = self.clients()?;
        let client = clients.client().native_ptr();
        let listed = self.while_coordinator_wakes(|| {
            ffi::consumer_groups(client, self.wait()).map_err(|(code, why)| {
                let message = format!(
                    "cannot list consumer groups, not every broker answered ({why}): those of the others alone would \
                     not be all; try again when all brokers are up"
                );
                (Some(code), LogError::Unavailable(message))
            })
        })?;
        let mut groups: Vec<ConsumerGroup> = listed.iter().filter_map(|name| name.parse().ok()).collect();
        groups.sort();
        Ok(groups)
    }

    fn committed(&self, group: &ConsumerGroup) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
        let what = format!("cannot read the committed offsets of {group}");
        let asked = self.everything()?;
        let committed = self
            .spokesman(group)?
            .committed_offsets(asked, self.wait())
            .map_err(|e| error::from_kafka(&e, &what))?;
        let mut offsets = BTreeMap::new();
        for element in committed.elements() {
            match element.error().err().as_ref().and_then(error::code) {
                None => {}
                // Deleted since it was listed.
                Some(Code::UnknownTopicOrPartition) => continue,
                Some(code) => {
                    let at = format!("{what} in {}/{}", element.topic(), element.partition());
                    return Err(error::from_code(code, &at));
                }
            }
            if let (KafkaOffset::Offset(offset), Ok(topic)) = (element.offset(), element.topic().parse()) {
                offsets.insert(TopicPartition { topic, partition: element.partition() as u32 }, offset);
            }
        }
        Ok(offsets)
    }

    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError> {
        self.client_ids(group).map(|ids| ids.len())
    }

    fn alter(&self, group: &ConsumerGroup, to: &BTreeMap<TopicPartition, Offset>) -> Result<(), LogError> {
        if to.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (partition, offset) in to {
            list.add_partition_offset(
                partition.topic.as_str(),
                partition.partition as i32,
                KafkaOffset::Offset(*offset),
            )
            .map_err(|e| error::from_kafka(&e, "cannot name an offset"))?;
        }
        let spokesman = self.spokesman(group)?;
        self.while_coordinator_wakes(|| {
            // A commit without a member id: the broker takes it only while the group has no members.
            spokesman.commit(&list, CommitMode::Sync).map_err(|e| match error::code(&e) {
                Some(
                    code @ (Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress),
                ) => (
                    Some(code),
                    LogError::Refused(format!("group {group} has members: pause what uses it first")),
                ),
                code => (code, error::from_kafka(&e, &format!("cannot set the offsets of group {group}"))),
            })
        })
    }

    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError> {
        let what = format!("cannot delete group {group}");
        self.ask_coordinator(&what, |client| match ffi::delete_group(client, group.as_str(), self.wait()) {
            Err(Code::GroupIdNotFound) => Ok(()),
            done => done,
        })
    }
}
