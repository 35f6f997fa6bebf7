//! The configuration of topics. rust-rdkafka drops the error of each topic and gives no entries instead, which read like
//! defaults. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::Client;
use super::question::{self, Answer};

/// A setting of a topic.
pub(in crate::kafka) struct Setting {
    pub(in crate::kafka) name: String,
    pub(in crate::kafka) value: String,
    /// Whether the topic itself was given it; else it is the cluster's.
    pub(in crate::kafka) is_own: bool,
}

/// A topic's settings, or why there are none.
pub(in crate::kafka) type Settings = Result<Vec<Setting>, Code>;

/// The settings of these topics, in their order.
pub(in crate::kafka) fn topic_settings(
    client: Client,
    names: &[&str],
    wait: Duration,
) -> Result<Vec<Settings>, Code> {
    let names: Result<Vec<CString>, _> = names.iter().map(|name| CString::new(*name)).collect();
    let Ok(names) = names else { return Err(Code::InvalidArgument) };
    let kind = rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
    // SAFETY: the client is alive, and so is the queue; what is made here is destroyed here, and the names are copied.
    let ask = |queue| unsafe {
        let mut asked: Vec<_> =
            names.iter().map(|name| rd::rd_kafka_ConfigResource_new(kind, name.as_ptr())).collect();
        rd::rd_kafka_DescribeConfigs(client, asked.as_mut_ptr(), asked.len(), ptr::null(), queue);
        rd::rd_kafka_ConfigResource_destroy_array(asked.as_mut_ptr(), asked.len());
        Ok(())
    };
    // SAFETY: the client is alive, and so is the event.
    let mut answered = unsafe { question::ask(client, wait, ask, |event| read(event)) }?;
    // The answers come in any order.
    let of = |name: &CString| {
        let at = answered.iter().position(|(answer, _)| answer == name)?;
        Some(answered.swap_remove(at).1)
    };
    Ok(names.iter().map(of).map(|found| found.unwrap_or(Err(Code::Fail))).collect())
}

/// # Safety
/// The event is alive.
unsafe fn read(event: Answer) -> Result<Vec<(CString, Settings)>, Code> {
    // SAFETY: the caller's promise; every pointer below comes from the event and lives as long.
    unsafe {
        let result = rd::rd_kafka_event_DescribeConfigs_result(event);
        if result.is_null() {
            return Err(Code::OperationTimedOut);
        }
        let mut count = 0;
        let resources = rd::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        let answer = |index| {
            let resource = *resources.add(index);
            let name = CStr::from_ptr(rd::rd_kafka_ConfigResource_name(resource)).to_owned();
            (name, settings(resource))
        };
        Ok((0..count).map(answer).collect())
    }
}

/// # Safety
/// `resource` is alive.
unsafe fn settings(resource: *const rd::rd_kafka_ConfigResource_t) -> Settings {
    // SAFETY: the caller's promise.
    unsafe {
        let error: Code = rd::rd_kafka_ConfigResource_error(resource).into();
        if error != Code::NoError {
            return Err(error);
        }
        let mut count = 0;
        let entries = rd::rd_kafka_ConfigResource_configs(resource, &raw mut count);
        let setting = |index| {
            let entry = *entries.add(index);
            let value = rd::rd_kafka_ConfigEntry_value(entry);
            let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
            let own = rd::rd_kafka_ConfigSource_t::RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG;
            (!value.is_null()).then(|| Setting {
                name: text(rd::rd_kafka_ConfigEntry_name(entry)),
                value: text(value),
                is_own: rd::rd_kafka_ConfigEntry_source(entry) == own,
            })
        };
        Ok((0..count).filter_map(setting).collect())
    }
}
