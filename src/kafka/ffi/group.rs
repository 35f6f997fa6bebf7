//! Which consumer groups there are, who is in one, and an end to them. rust-rdkafka's own question after members goes to every broker, so that
//! one that is down spoils the answer; this one goes to the group's coordinator. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::Client;
use super::question::{self, Answer, Queue};

/// How long librdkafka keeps a question to a coordinator: as long as it can. One that times out before the client has found a
/// coordinator ends the process when it finds one later (<https://github.com/confluentinc/librdkafka/issues/4605>), so who
/// was not answered in time has to let go of the client instead.
const KEPT_MS: i32 = 3_600_000;

/// The client ids of a group's members; none of a group that there is not. After `OperationTimedOut` the client must be
/// dropped soon.
pub(in crate::kafka) fn members(client: Client, group: &str, wait: Duration) -> Result<Vec<String>, Code> {
    let Ok(group) = CString::new(group) else { return Err(Code::InvalidArgument) };
    let mut groups = [group.as_ptr()];
    let op = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    // SAFETY: the client is alive, and so are the options and the queue; the name is copied.
    let ask = |options, queue| unsafe {
        rd::rd_kafka_DescribeConsumerGroups(client, groups.as_mut_ptr(), 1, options, queue);
    };
    // SAFETY: the event is alive.
    ask_coordinator(client, wait, op, ask, |event| unsafe { read(event) })
}

/// Deletes a group and its offsets. After `OperationTimedOut` the client must be dropped soon.
pub(in crate::kafka) fn delete(client: Client, group: &str, wait: Duration) -> Result<(), Code> {
    let Ok(group) = CString::new(group) else { return Err(Code::InvalidArgument) };
    let op = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DELETEGROUPS;
    // SAFETY: the client is alive, and so are the options and the queue; the name is copied, what is made here is destroyed.
    let ask = |options, queue| unsafe {
        let mut groups = [rd::rd_kafka_DeleteGroup_new(group.as_ptr())];
        rd::rd_kafka_DeleteGroups(client, groups.as_mut_ptr(), 1, options, queue);
        rd::rd_kafka_DeleteGroup_destroy(groups[0]);
    };
    // SAFETY: the event is alive.
    ask_coordinator(client, wait, op, ask, |event| unsafe { read_deletion(event) })
}

fn ask_coordinator<T>(
    client: Client,
    wait: Duration,
    op: rd::rd_kafka_admin_op_t,
    ask: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, Queue),
    read: impl FnOnce(Answer) -> Result<T, Code>,
) -> Result<T, Code> {
    // SAFETY: the client is alive; the options are destroyed here. A time that is refused leaves librdkafka's own.
    let ask = |queue| unsafe {
        let options = rd::rd_kafka_AdminOptions_new(client, op);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, KEPT_MS, ptr::null_mut(), 0);
        ask(options, queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        Ok(())
    };
    // SAFETY: the client is alive.
    unsafe { question::ask(client, wait, ask, read) }
}

/// The names of all consumer groups, or why one of the brokers does not say its own. librdkafka's older question, which is the
/// one that rust-rdkafka has, forgets a broker's error when another one answers after it.
pub(in crate::kafka) fn consumer_groups(
    client: Client,
    wait: Duration,
) -> Result<Vec<String>, (Code, String)> {
    // SAFETY: the client is alive, and so is the queue.
    let ask = |queue| unsafe {
        rd::rd_kafka_ListConsumerGroups(client, ptr::null(), queue);
        Ok(())
    };
    // SAFETY: the client is alive, and so is the event.
    let listed = unsafe { question::ask(client, wait, ask, |event| Ok(read_listing(event))) };
    listed.map_err(named)?
}

/// A code with its words, where a broker gave none.
fn named(code: Code) -> (Code, String) {
    (code, code.to_string())
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
/// The event is alive.
unsafe fn read(event: Answer) -> Result<Vec<String>, Code> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
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
/// The event is alive.
unsafe fn read_deletion(event: Answer) -> Result<(), Code> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        let result = rd::rd_kafka_event_DeleteGroups_result(event);
        let mut count = 0;
        let groups = rd::rd_kafka_DeleteGroups_result_groups(result, &raw mut count);
        if count == 0 {
            return Err(Code::OperationTimedOut);
        }
        let error = rd::rd_kafka_group_result_error(*groups);
        if error.is_null() { Ok(()) } else { Err(rd::rd_kafka_error_code(error).into()) }
    }
}

/// # Safety
/// The event is alive.
unsafe fn read_listing(event: Answer) -> Result<Vec<String>, (Code, String)> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        let result = rd::rd_kafka_event_ListConsumerGroups_result(event);
        if result.is_null() {
            return Err(named(Code::OperationTimedOut));
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
