//! Where partitions start and end, asked without waiting for the answer. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::ffi::CStr;
use std::ptr;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::Offset as KafkaOffset;

use super::{Client, c_millis};
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;

/// Which offset of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Which {
    /// The first that there is.
    First,
    /// The last stable one.
    End,
}

/// A question under way. It must be dropped before the client that was asked.
pub(in crate::kafka) struct Asked {
    queue: *mut rd::rd_kafka_queue_t,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Asked {}

impl Asked {
    /// Asks the leaders of these partitions.
    pub(in crate::kafka) fn ask<'a>(
        client: Client,
        partitions: impl Iterator<Item = &'a TopicPartition>,
        which: Which,
        within: Duration,
    ) -> Self {
        let offset = match which {
            Which::First => KafkaOffset::Beginning,
            Which::End => KafkaOffset::End,
        };
        let mut list = TopicPartitionList::new();
        for at in partitions {
            // Fails for offsets alone that are none.
            let _ = list.add_partition_offset(at.topic.as_str(), at.partition as i32, offset);
        }
        // SAFETY: the client is alive; list and options are copied, and the queue lives until this is dropped. Options that
        // are refused leave librdkafka's own.
        unsafe {
            let queue = rd::rd_kafka_queue_new(client);
            let of_offsets = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
            let options = rd::rd_kafka_AdminOptions_new(client, of_offsets);
            let stable = rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
            let refused = rd::rd_kafka_AdminOptions_set_isolation_level(options, stable);
            if !refused.is_null() {
                rd::rd_kafka_error_destroy(refused);
            }
            rd::rd_kafka_AdminOptions_set_request_timeout(options, c_millis(within), ptr::null_mut(), 0);
            rd::rd_kafka_ListOffsets(client, list.ptr(), options, queue);
            rd::rd_kafka_AdminOptions_destroy(options);
            Self { queue }
        }
    }

    /// The answer, once it is there: the offsets of the partitions that have one. An error where none was asked.
    pub(in crate::kafka) fn answer(&self) -> Option<Result<Vec<(TopicPartition, Offset)>, Code>> {
        // SAFETY: the queue is alive; the event is destroyed here, and what is read from it lives as long.
        unsafe {
            let event = rd::rd_kafka_queue_poll(self.queue, 0);
            if event.is_null() {
                return None;
            }
            let code: Code = rd::rd_kafka_event_error(event).into();
            let answer = if code == Code::NoError { Ok(read(event)) } else { Err(code) };
            rd::rd_kafka_event_destroy(event);
            Some(answer)
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // SAFETY: nothing uses it after this. An answer that comes later is dropped.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) };
    }
}

/// # Safety
/// `event` is a living event.
unsafe fn read(event: *mut rd::rd_kafka_event_t) -> Vec<(TopicPartition, Offset)> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        let result = rd::rd_kafka_event_ListOffsets_result(event);
        if result.is_null() {
            return Vec::new();
        }
        let mut count = 0;
        let infos = rd::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        let found = (0..count).filter_map(|index| {
            let at = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
            let code: Code = at.err.into();
            let topic = CStr::from_ptr(at.topic).to_str().ok()?.parse().ok()?;
            (code == Code::NoError && at.offset >= 0)
                .then(|| (TopicPartition::new(&topic, at.partition as u32), at.offset))
        });
        found.collect()
    }
}
