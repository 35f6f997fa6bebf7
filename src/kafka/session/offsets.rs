//! Adds offsets to a transaction. Called by the outlet alone.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use crate::kafka::context::Context;
use crate::kafka::writer::serve;
use crate::ports::LogError;

/// How often a lane looks after its client meanwhile.
const LOOK_IN: Duration = Duration::from_millis(100);

/// How it went; `None` when it took longer than the budget, and nobody knows how it ends.
///
/// librdkafka does not keep to the time that it is given here, and where the coordinator has left the cluster it waits
/// for good (<https://github.com/confluentinc/librdkafka/issues/5456> and `5511`). So the call is made beside the
/// lane, which leaves it and its producer behind when the time is over: they end with the next broker that comes or
/// goes, and can do no harm, as the next producer raises the epoch.
pub(super) fn send(
    producer: &Arc<BaseProducer<Context>>,
    offsets: TopicPartitionList,
    group: ConsumerGroupMetadata,
    budget: Duration,
) -> Result<Option<Result<(), KafkaError>>, LogError> {
    let (tell, told) = sync_channel(1);
    let call = {
        let producer = Arc::clone(producer);
        move || {
            let sent = sent(&producer, &offsets, &group, budget);
            // The last one is dropped on the lane's thread.
            drop(producer);
            let _ = tell.send(sent);
        }
    };
    let started = thread::Builder::new().name("offsets".to_owned()).spawn(call);
    started.map_err(|e| LogError::Unavailable(format!("no thread to commit offsets: {e}")))?;
    let deadline = Instant::now() + budget;
    loop {
        match told.recv_timeout(LOOK_IN) {
            Ok(sent) => return Ok(Some(sent)),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => serve(producer),
            Err(_) => return Ok(None),
        }
    }
}

/// Again while the client says that it may help.
fn sent(
    producer: &BaseProducer<Context>,
    offsets: &TopicPartitionList,
    group: &ConsumerGroupMetadata,
    budget: Duration,
) -> Result<(), KafkaError> {
    let deadline = Instant::now() + budget;
    loop {
        match producer.send_offsets_to_transaction(offsets, group, budget) {
            Err(KafkaError::Transaction(e)) if e.is_retriable() && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}
