//! Appending records from outside: produce, and the fenced writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::core::names::TopicName;
use crate::core::partitioner::Partitioner;
use crate::log::catalog::Topic;
use crate::log::request::Fence;
use crate::log::store::Store;
use crate::log::transaction::{Ticket, Transaction};
use crate::ports::{FencedWriter, Keyed, LogError, Produce, Produced};

use crate::core::record::put_payload;

/// Appends records, all visible together; durable as the options say when this returns.
pub fn produce(store: &Store, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
    let staged = Staged::new(store, records)?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let Staged { mut transaction, tickets } = staged;
    let appends = transaction.take();
    let places: Vec<_> = appends.iter().map(|append| (append.topic.id, append.partition)).collect();
    let appended = store.write(appends, Vec::new(), None)?;
    let produced = tickets.into_iter().map(|(partition, ticket)| {
        let (at, index) = ticket.find(&places)?;
        let appended = appended.get(at)?;
        Some(Produced {
            partition,
            offset: appended.base + i64::from(index),
            appended_ms: appended.append_ms,
        })
    });
    produced
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| LogError::Uncertain("the writer answered for other records".into()))
}

/// Records that were checked and put in their partitions.
pub struct Staged {
    /// The records, in the form in which they are stored.
    pub transaction: Transaction,
    tickets: Vec<(u32, Ticket)>,
}

impl Staged {
    /// Checks every record, and finds its partition.
    pub fn new(store: &Store, records: &[Produce]) -> Result<Self, LogError> {
        let mut transaction = Transaction::default();
        let mut tickets = Vec::with_capacity(records.len());
        let mut payload = Vec::new();
        let mut last: Option<Arc<Topic>> = None;
        let now = store.next_append_ms();
        for Produce { topic: name, partition, record } in records {
            let topic = match &last {
                Some(topic) if topic.name == *name => topic.clone(),
                _ => writable(store, name)?,
            };
            payload.clear();
            record.put_payload(&mut payload);
            topic.check(&payload)?;
            let count = topic.partitions.len() as u32;
            let partition = match (partition, &record.key) {
                (Some(partition), _) => *partition,
                (None, Some(key)) => Partitioner::Key.choose(Some(key), 0, count),
                (None, None) => topic.next_partition.fetch_add(1, Ordering::Relaxed) % count,
            };
            topic.partition(partition)?;
            let ticket = transaction.push(&topic, partition, record.timestamp.unwrap_or(now), &payload);
            tickets.push((partition, ticket));
            last = Some(topic);
        }
        Ok(Self { transaction, tickets })
    }
}

/// A topic that outsiders may write to.
pub fn writable(store: &Store, name: &TopicName) -> Result<Arc<Topic>, LogError> {
    let topic = store.topic(name)?;
    if topic.config.materialized {
        return Err(LogError::NotWritable {
            topic: name.clone(),
            reason: "it is materialized, only its coprocessor writes to it".into(),
        });
    }
    Ok(topic)
}

/// Writes to one topic under an id; a later writer with the same id fences this one.
pub struct TopicWriter {
    store: Arc<Store>,
    topic: TopicName,
    fence: Fence,
}

impl TopicWriter {
    /// Claims the id.
    pub fn open(store: Arc<Store>, topic: &TopicName, id: &str) -> Result<Self, LogError> {
        writable(&store, topic)?;
        let fence = store.claim(format!("the writer {id} of topic {topic}"))?;
        Ok(Self { store, topic: topic.clone(), fence })
    }
}

impl FencedWriter for TopicWriter {
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError> {
        self.fence.check()?;
        let topic = writable(&self.store, &self.topic)?;
        let mut transaction = Transaction::default();
        let mut payload = Vec::new();
        let now = self.store.next_append_ms();
        for Keyed { key, value } in records {
            payload.clear();
            put_payload(&mut payload, Some(key), value.as_deref(), std::iter::empty());
            topic.check(&payload)?;
            let partition = Partitioner::Key.choose(Some(key), 0, topic.partitions.len() as u32);
            transaction.push(&topic, partition, now, &payload);
        }
        if records.is_empty() {
            return Ok(());
        }
        self.store.write(transaction.take(), Vec::new(), Some(self.fence.clone())).map(drop)
    }
}
