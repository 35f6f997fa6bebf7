//! Single calls of librdkafka on a living client. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::question::{self, Answer};
use super::{Client, c_millis};
use crate::core::record::Offset;

/// Commits offsets without a transaction and waits for the answer. The client's own blocking commit has no
/// time-out, and during a rebalance it can wait for the very thread that it blocks.
pub(in crate::kafka) fn commit(
    client: Client,
    offsets: &TopicPartitionList,
    wait: Duration,
) -> Result<(), Code> {
    // SAFETY: client, list and queue are alive.
    let ask = |queue| unsafe {
        let asked = rd::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, ptr::null_mut());
        match asked.into() {
            Code::NoError => Ok(()),
            code => Err(code),
        }
    };
    // SAFETY: the client is alive.
    unsafe { question::ask(client, wait, ask, |_| Ok(())) }
}

/// How many events wait to be polled, by a producer or by a consumer without a group.
pub(in crate::kafka) fn events(client: Client) -> usize {
    // SAFETY: the client is alive; the reference to its queue is given back.
    unsafe {
        let queue = rd::rd_kafka_queue_get_main(client);
        let length = rd::rd_kafka_queue_length(queue);
        rd::rd_kafka_queue_destroy(queue);
        length
    }
}

/// Drops the events that wait in the queue of a client that nobody polls.
pub(in crate::kafka) fn drop_events(client: Client) {
    // SAFETY: the client is alive; each event is destroyed once, and the reference to the queue is given back.
    unsafe {
        let queue = rd::rd_kafka_queue_get_main(client);
        // No more than were there: a client that is in trouble could go on for ever.
        for _ in 0..rd::rd_kafka_queue_length(queue) {
            let event = rd::rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
    }
}

/// Adds brokers to find the cluster by; those that the client knows already stay.
pub(in crate::kafka) fn add_brokers(client: Client, servers: &str) {
    let Ok(servers) = CString::new(servers) else { return };
    // SAFETY: the client is alive, the text is copied.
    unsafe { rd::rd_kafka_brokers_add(client, servers.as_ptr()) };
}

/// Sends what lingers and waits until all of it has arrived or failed, at most so long; failures still have to
/// be polled. rust-rdkafka's `flush` does both, but sleeps in steps of 100 ms.
pub(in crate::kafka) fn flush(client: Client, wait: Duration) {
    // SAFETY: the client is alive. A time-out is no error here: the caller looks at what is under way.
    unsafe { rd::rd_kafka_flush(client, c_millis(wait)) };
}

/// First and next offset of a partition as of its last fetch, without asking the broker; the second does not
/// know of open transactions.
pub(in crate::kafka) fn cached_watermarks(
    client: Client,
    topic: &str,
    partition: u32,
) -> Option<(Offset, Offset)> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: all pointers are valid.
    let error = unsafe {
        rd::rd_kafka_get_watermark_offsets(
            client,
            topic.as_ptr(),
            partition as i32,
            &raw mut low,
            &raw mut high,
        )
    };
    (error == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some((low, high))
}

/// Gives a living client a new user and password, for the next connection that it opens.
pub(in crate::kafka) fn set_login(client: Client, user: &str, password: &str) -> Result<(), Code> {
    let (Ok(user), Ok(password)) = (CString::new(user), CString::new(password)) else {
        return Err(Code::InvalidArgument);
    };
    // SAFETY: both strings are copied.
    unsafe {
        let error = rd::rd_kafka_sasl_set_credentials(client, user.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let code = rd::rd_kafka_error_code(error);
        rd::rd_kafka_error_destroy(error);
        Err(code.into())
    }
}

/// Gives a client a bearer token. Clients that are polled ask for theirs; this is for those that are not.
pub(in crate::kafka) fn set_token(
    client: Client,
    token: &str,
    principal: &str,
    expires_ms: i64,
) -> Result<(), Code> {
    let (Ok(token), Ok(principal)) = (CString::new(token), CString::new(principal)) else {
        return Err(Code::InvalidArgument);
    };
    // SAFETY: both strings are copied; no extensions, and no room for an error's words, which may quote the token.
    let error = unsafe {
        rd::rd_kafka_oauthbearer_set_token(
            client,
            token.as_ptr(),
            expires_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            0,
        )
    };
    let code: Code = error.into();
    if code == Code::NoError { Ok(()) } else { Err(code) }
}

/// The id and the number of partitions of a topic: what its name cannot tell after it was made anew.
pub(in crate::kafka) fn describe_topic(
    client: Client,
    name: &str,
    wait: Duration,
) -> Result<(String, u32), Code> {
    let Ok(name) = CString::new(name) else { return Err(Code::InvalidArgument) };
    let mut names = [name.as_ptr()];
    // SAFETY: the client is alive, and so is the queue; the collection is destroyed here, and the name is copied.
    let ask = |queue| unsafe {
        let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        rd::rd_kafka_DescribeTopics(client, topics, ptr::null(), queue);
        rd::rd_kafka_TopicCollection_destroy(topics);
        Ok(())
    };
    // SAFETY: the client is alive, and so is the event.
    unsafe { question::ask(client, wait, ask, |event| read_description(event)) }
}

/// # Safety
/// The event is alive.
unsafe fn read_description(event: Answer) -> Result<(String, u32), Code> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        let result = rd::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        if result.is_null() {
            return Err(Code::OperationTimedOut);
        }
        let topics = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count == 0 {
            return Err(Code::UnknownTopicOrPartition);
        }
        let topic = *topics;
        let error: Code = rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(topic)).into();
        if error != Code::NoError {
            return Err(error);
        }
        rd::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        let id: *const c_char = rd::rd_kafka_Uuid_base64str(rd::rd_kafka_TopicDescription_topic_id(topic));
        Ok((CStr::from_ptr(id).to_string_lossy().into_owned(), count as u32))
    }
}
