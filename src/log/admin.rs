//! Topics and consumer groups: make, look at, change, remove.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, TopicName};
use crate::core::record::{Offset, TimestampMs};
use crate::log::EmbeddedLog;
use crate::log::catalog::{
    NEXT_ID_KEY, Partition, Span, StoredTopic, Topic, check_config, offset_key, span_key, topic_key,
    trash_key,
};
use crate::log::cursor::{in_range, offset_at};
use crate::log::engine::{Space, Write};
use crate::log::group::Reserved;
use crate::log::request::{Effect, OffsetChange};
use crate::log::store::Store;
use crate::ports::{Extent, LogError, Offsets, TopicAdmin, TopicConfig, TopicInfo};

impl TopicAdmin for EmbeddedLog {
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
        check_config(name, config)?;
        let (name, config) = (name.clone(), config.clone());
        self.store.edit(256, move |store| plan_create(store, name, config))
    }

    fn delete(&self, name: &TopicName) -> Result<(), LogError> {
        let name = name.clone();
        self.store.edit(256, move |store| plan_delete(store, &name))
    }

    fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
        Ok(self.store.topics.read().values().map(|topic| topic.info()).collect())
    }

    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError> {
        Ok(self.store.topics.read().get(name).map(|topic| topic.info()))
    }

    fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError> {
        Ok(self.store.topic(name)?.partitions.iter().map(Partition::extent).collect())
    }

    fn offsets_at(&self, name: &TopicName, timestamp: TimestampMs) -> Result<Vec<Offset>, LogError> {
        let topic = self.store.topic(name)?;
        let partitions = 0..topic.partitions.len() as u32;
        partitions.map(|partition| offset_at(&self.store.engine, &topic, partition, timestamp)).collect()
    }
}

fn plan_create(
    store: &Store,
    name: TopicName,
    config: TopicConfig,
) -> Result<(Vec<Write>, Effect), LogError> {
    if store.topics.read().contains_key(&name) {
        return Err(LogError::TopicExists(name));
    }
    let (id, next_id) = store.next_ids(config.partitions);
    let stored = StoredTopic::new(id, &config);
    let writes = vec![
        Write::Put(Space::Meta, NEXT_ID_KEY.to_vec(), next_id.to_be_bytes().to_vec()),
        Write::Put(Space::Meta, topic_key(&name), stored.to_bytes()?),
    ];
    let effect = move |store: &Store| {
        store.set_next_id(next_id);
        let partitions = stored.partitions.iter().map(|id| Partition::new(*id, Span::NEW)).collect();
        let topic = Arc::new(Topic::new(name.clone(), id, config, partitions));
        store.topics.write().insert(name, topic);
        store.catalog_watchers.raise();
    };
    Ok((writes, Box::new(effect)))
}

fn plan_delete(store: &Store, name: &TopicName) -> Result<(Vec<Write>, Effect), LogError> {
    let topic = store.topic(name)?;
    let children: Vec<_> = store
        .topics
        .read()
        .values()
        .filter(|child| child.config.materialized)
        .filter(|child| child.name.as_materialized().is_some_and(|(source, _)| source == *name))
        .map(|child| child.name.to_string())
        .collect();
    if !children.is_empty() {
        return Err(LogError::Refused(format!(
            "topic {name} is the source of {}: delete that first",
            children.join(", ")
        )));
    }
    let mut writes = vec![Write::Remove(Space::Meta, topic_key(name))];
    for partition in &topic.partitions {
        writes.push(Write::Remove(Space::Meta, span_key(partition.id)));
        // The records go later, bit by bit: `housekeeping`.
        writes.push(Write::Put(Space::Meta, trash_key(partition.id), Vec::new()));
    }
    for (group, at) in store.find_committed(|_, at| at.topic == *name) {
        writes.push(Write::Remove(Space::Meta, offset_key(&group, &at.topic, at.partition)));
    }
    let effect = move |store: &Store| {
        topic.mark_deleted();
        store.topics.write().remove(&topic.name);
        store.forget_committed(|_, at| at.topic == topic.name);
        topic.watchers.raise();
        store.catalog_watchers.raise();
    };
    Ok((writes, Box::new(effect)))
}

impl Offsets for EmbeddedLog {
    fn groups(&self) -> Result<Vec<ConsumerGroup>, LogError> {
        let mut groups = self.store.groups_with_offsets();
        groups.extend(self.store.groups.names());
        groups.sort();
        groups.dedup();
        Ok(groups)
    }

    fn committed(&self, group: &ConsumerGroup) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
        Ok(self.store.committed(group))
    }

    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError> {
        Ok(self.store.groups.members(group))
    }

    fn alter(&self, group: &ConsumerGroup, to: &BTreeMap<TopicPartition, Offset>) -> Result<(), LogError> {
        let _reserved = self.reserve(group)?;
        let changes: Result<Vec<_>, LogError> = to
            .iter()
            .map(|(at, offset)| {
                let topic = self.store.topic(&at.topic)?;
                in_range(&topic, at.partition, *offset, topic.partition(at.partition)?.extent())?;
                Ok(OffsetChange { group: group.clone(), topic, partition: at.partition, to: *offset })
            })
            .collect();
        self.store.write(Vec::new(), changes?, None).map(drop)
    }

    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError> {
        let _reserved = self.reserve(group)?;
        let group = group.clone();
        self.store.edit(256, move |store| {
            let offsets = store.find_committed(|other, _| *other == group);
            let remove = |(group, at): (ConsumerGroup, TopicPartition)| {
                Write::Remove(Space::Meta, offset_key(&group, &at.topic, at.partition))
            };
            let writes = offsets.into_iter().map(remove).collect();
            let effect = move |store: &Store| store.forget_committed(|other, _| *other == group);
            Ok((writes, Box::new(effect) as Effect))
        })
    }
}

impl EmbeddedLog {
    /// Held until the change is done: a lane that joined in between would go on from offsets that are gone.
    fn reserve(&self, group: &ConsumerGroup) -> Result<Reserved<'_>, LogError> {
        self.store.groups.reserve(group).map_err(|members| {
            LogError::Refused(format!("group {group} has {members} members: pause the deployment first"))
        })
    }
}
