//! A question to brokers: asked with a queue of its own for the answer, which is waited for. Called through `ffi`.
#![allow(unsafe_code, reason = "librdkafka is C")]

use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::{Client, c_millis};

/// A queue, for the answer.
pub(super) type Queue = *mut rd::rd_kafka_queue_t;
/// An answer that is no error. It lives while it is read.
pub(super) type Answer = *mut rd::rd_kafka_event_t;

/// Asks, and reads the answer; `OperationTimedOut` where there is none in time.
///
/// # Safety
/// The client is alive; `ask` and `read` keep to their pointers only while they run.
pub(super) unsafe fn ask<T>(
    client: Client,
    wait: Duration,
    ask: impl FnOnce(Queue) -> Result<(), Code>,
    read: impl FnOnce(Answer) -> Result<T, Code>,
) -> Result<T, Code> {
    // SAFETY: the caller's promise; queue and event are destroyed here, each once.
    unsafe {
        let queue = rd::rd_kafka_queue_new(client);
        let answer = ask(queue).and_then(|()| {
            let event = rd::rd_kafka_queue_poll(queue, c_millis(wait));
            if event.is_null() {
                return Err(Code::OperationTimedOut);
            }
            let error: Code = rd::rd_kafka_event_error(event).into();
            let answer = if error == Code::NoError { read(event) } else { Err(error) };
            rd::rd_kafka_event_destroy(event);
            answer
        });
        rd::rd_kafka_queue_destroy(queue);
        answer
    }
}
