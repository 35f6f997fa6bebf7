//! Consumer groups: look at, change, remove.

use std::collections::BTreeMap;

use futures::executor::block_on;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::admin::Admin;
use super::context::Context;
use super::error;
use crate::core::ledger::TopicPartition;
use crate::core::names::ConsumerGroup;
use crate::core::record::Offset;
use crate::ports::{LogError, Offsets};

impl Admin {
    /// A consumer that speaks for a group without joining it.
    fn spokesman(&self, group: &ConsumerGroup) -> Result<BaseConsumer<Context>, LogError> {
        let mut client = self.config.consumer()?;
        client.set("group.id", group.as_str());
        let context = Context::new(self.config.sasl.clone(), self.config.assignor);
        context.close();
        let consumer: BaseConsumer<Context> =
            client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a client"))?;
        if let Some(sasl) = &self.config.sasl {
            sasl.hand_token(consumer.client().native_ptr())?;
        }
        Ok(consumer)
    }

    fn everything(&self) -> Result<TopicPartitionList, LogError> {
        let metadata = self
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
        let list = self
            .client()
            .fetch_group_list(None, self.wait())
            .map_err(|e| error::from_kafka(&e, "cannot list consumer groups"))?;
        let mut groups: Vec<ConsumerGroup> =
            list.groups().iter().filter_map(|group| group.name().parse().ok()).collect();
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
            if let (KafkaOffset::Offset(offset), Ok(topic)) = (element.offset(), element.topic().parse()) {
                offsets.insert(TopicPartition { topic, partition: element.partition() as u32 }, offset);
            }
        }
        Ok(offsets)
    }

    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError> {
        let list = self
            .client()
            .fetch_group_list(Some(group.as_str()), self.wait())
            .map_err(|e| error::from_kafka(&e, &format!("cannot look at group {group}")))?;
        Ok(list.groups().iter().filter(|g| g.name() == group.as_str()).map(|g| g.members().len()).sum())
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
        // A commit without a member id: the broker takes it only while the group has no members.
        self.spokesman(group)?.commit(&list, CommitMode::Sync).map_err(|e| match error::code(&e) {
            Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress) => {
                LogError::Refused(format!("group {group} has members: pause what uses it first"))
            }
            _ => error::from_kafka(&e, &format!("cannot set the offsets of group {group}")),
        })
    }

    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError> {
        let options = AdminOptions::new().request_timeout(Some(self.wait()));
        let what = format!("cannot delete group {group}");
        let answers = block_on(self.administrator()?.delete_groups(&[group.as_str()], &options))
            .map_err(|e| error::from_kafka(&e, &what))?;
        match answers.into_iter().next() {
            None | Some(Ok(_) | Err((_, Code::GroupIdNotFound))) => Ok(()),
            Some(Err((_, code))) => Err(error::from_code(code, &what)),
        }
    }
}
