//! Which consumer groups there are, and who is in one. rust-rdkafka's own question after members goes to every broker, so that
//! one that is down spoils the answer; this one goes to the group's coordinator. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::{Client, c_millis};

/// The client ids of a group's members; none of a group that there is not.
pub(in crate::kafka) fn members(client: Client, group: &str, wait: Duration) -> Result<Vec<String>, Code> {
    let Ok(group) = CString::new(group) else { return Err(Code::InvalidArgument) };
    let mut groups = [group.as_ptr()];
    // SAFETY: everything made here is destroyed here; the result lives as long as the event.
    unsafe {
        let queue = rd::rd_kafka_queue_new(client);
        rd::rd_kafka_DescribeConsumerGroups(client, groups.as_mut_ptr(), 1, ptr::null(), queue);
        let event = rd::rd_kafka_queue_poll(queue, c_millis(wait));
        let described = read(event);
        if !event.is_null() {
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
        described
    }
}

/// The names of all consumer groups, or why one of the brokers does not say its own. librdkafka's older question, which is the
/// one that rust-rdkafka has, forgets a broker's error when another one answers after it.
pub(in crate::kafka) fn consumer_groups(
    client: Client,
    wait: Duration,
) -> Result<Vec<String>, (Code, String)> {
    // SAFETY: everything made here is destroyed here; the result lives as long as the event.
    unsafe {
        let queue = rd::rd_kafka_queue_new(client);
        rd::rd_kafka_ListConsumerGroups(client, ptr::null(), queue);
        let event = rd::rd_kafka_queue_poll(queue, c_millis(wait));
        let listed = read_listing(event);
        if !event.is_null() {
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
        listed
    }
}

/// The generation in which a consumer is in its group; `None` without a member id or a generation. Offsets that come
/// without both a broker takes from anybody, whoever owns the partitions now.
pub(in crate::kafka) fn generation(client: Client) -> Option<i32> {
    // SAFETY: the client is alive; the metadata is destroyed here, and its texts live as long.
    unsafe {
        let metadata = rd::rd_kafka_consumer_group_metadata(client);
        if metadata.is_null() {
            return None;
        }
        let generation = rd::rd_kafka_consumer_group_metadata_generation_id(metadata);
        let member = rd::rd_kafka_consumer_group_metadata_member_id(metadata);
        let is_member = generation >= 0 && !member.is_null() && !CStr::from_ptr(member).is_empty();
        rd::rd_kafka_consumer_group_metadata_destroy(metadata);
        is_member.then_some(generation)
    }
}

/// # Safety
/// `event` is null or a living event.
unsafe fn read(event: *mut rd::rd_kafka_event_t) -> Result<Vec<String>, Code> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        if event.is_null() {
            return Err(Code::OperationTimedOut);
        }
        let error: Code = rd::rd_kafka_event_error(event).into();
        if error != Code::NoError {
            return Err(error);
        }
        let result = rd::rd_kafka_event_DescribeConsumerGroups_result(event);
        if result.is_null() {
            return Err(Code::OperationTimedOut);
        }
        let mut count = 0;
        let groups = rd::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
        if count == 0 {
            return Ok(Vec::new());
        }
        let group = *groups;
        let error = rd::rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() {
            return match rd::rd_kafka_error_code(error).into() {
                // What brokers from 4.0 on say of a group that there is not.
                Code::GroupIdNotFound => Ok(Vec::new()),
                code => Err(code),
            };
        }
        let members = 0..rd::rd_kafka_ConsumerGroupDescription_member_count(group);
        let client_id = |index| {
            let member = rd::rd_kafka_ConsumerGroupDescription_member(group, index);
            let id = rd::rd_kafka_MemberDescription_client_id(member);
            if id.is_null() { String::new() } else { CStr::from_ptr(id).to_string_lossy().into_owned() }
        };
        Ok(members.map(client_id).collect())
    }
}

/// # Safety
/// `event` is null or a living event.
unsafe fn read_listing(event: *mut rd::rd_kafka_event_t) -> Result<Vec<String>, (Code, String)> {
    let failed = |code: Code| Err((code, code.to_string()));
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        if event.is_null() {
            return failed(Code::OperationTimedOut);
        }
        let error: Code = rd::rd_kafka_event_error(event).into();
        if error != Code::NoError {
            return failed(error);
        }
        let result = rd::rd_kafka_event_ListConsumerGroups_result(event);
        if result.is_null() {
            return failed(Code::OperationTimedOut);
        }
        let mut count = 0;
        let errors = rd::rd_kafka_ListConsumerGroups_result_errors(result, &raw mut count);
        if count > 0 {
            let text = CStr::from_ptr(rd::rd_kafka_error_string(*errors)).to_string_lossy().into_owned();
            return Err((rd::rd_kafka_error_code(*errors).into(), text));
        }
        let groups = rd::rd_kafka_ListConsumerGroups_result_valid(result, &raw mut count);
        let name = |index| {
            let name = rd::rd_kafka_ConsumerGroupListing_group_id(*groups.add(index));
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        Ok((0..count).map(name).collect())
    }
}
