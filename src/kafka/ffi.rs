//! The few calls of librdkafka that rust-rdkafka has no wrapper for, or only one that costs too much.
//!
//! The only place with `unsafe` in this adapter. Nothing here is `Sync`. Each type must be dropped before the client that it came from;
//! the structs that own both name the client last.
//! The functions are documented in <https://github.com/confluentinc/librdkafka/blob/v2.12.1/src/rdkafka.h>.
#![allow(unsafe_code, reason = "librdkafka is C")]

mod calls;
mod configs;
mod group;
mod question;

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode as Code;

pub(super) use self::calls::{
    add_brokers, cached_watermarks, commit, describe_topic, drop_events, events, flush, set_login, set_token,
};
pub(super) use self::configs::{Setting, Settings, topic_settings};
pub(super) use self::group::{consumer_groups, delete as delete_group, generation, members};
use crate::core::record::{Header, Headers, Offset, TimestampMs};

/// A librdkafka client, borrowed for the time of a call.
pub(super) type Client = *mut rd::rd_kafka_t;

fn c_millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)
}

/// A queue of our own to which partitions send what they fetch, drained a batch at a time.
///
/// The batch call must never be made on the consumer's own queue: there it would swallow a rebalance and
/// force an unassignment. Only partitions are forwarded here, so it cannot meet one.
pub(super) struct DataQueue {
    queue: *mut rd::rd_kafka_queue_t,
    slots: Vec<*mut rd::rd_kafka_message_t>,
    at: usize,
    len: usize,
}

impl DataQueue {
    /// A queue of this client's.
    pub(super) fn new(client: Client, slots: usize) -> Self {
        // SAFETY: the client is alive; the call cannot fail.
        let queue = unsafe { rd::rd_kafka_queue_new(client) };
        Self { queue, slots: vec![ptr::null_mut(); slots.max(1)], at: 0, len: 0 }
    }

    /// Lets a partition's messages come here. Call it before each assignment: the end of an assignment
    /// undoes it.
    pub(super) fn attach(&self, client: Client, topic: &str, partition: u32) {
        let Ok(topic) = CString::new(topic) else { return };
        // SAFETY: both are alive; the partition's queue is reference-counted and ours is given back.
        unsafe {
            let queue = rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition as i32);
            if !queue.is_null() {
                rd::rd_kafka_queue_forward(queue, self.queue);
                rd::rd_kafka_queue_destroy(queue);
            }
        }
    }

    /// Starts to fetch a partition without a group, at an offset or one of librdkafka's logical offsets.
    pub(super) fn start(&self, topic: &Topic, partition: u32, offset: Offset) -> Result<(), Code> {
        // SAFETY: topic and queue are alive.
        let result =
            unsafe { rd::rd_kafka_consume_start_queue(topic.topic, partition as i32, offset, self.queue) };
        // SAFETY: reads a thread-local.
        if result == 0 { Ok(()) } else { Err(unsafe { rd::rd_kafka_last_error() }.into()) }
    }

    /// The next message, left in the queue: waits for it at most `wait`.
    pub(super) fn peek(&mut self, wait: Duration) -> Option<Message<'_>> {
        if self.at == self.len {
            self.refill(wait);
        }
        let message = *self.slots[..self.len].get(self.at)?;
        // SAFETY: slots between `at` and `len` hold messages that are ours until destroyed.
        Some(Message { raw: unsafe { &*message } })
    }

    fn refill(&mut self, wait: Duration) {
        self.at = 0;
        self.len = self.take(0, 0, self.slots.len());
        // The batch call waits until the array is full, so the wait is for one message alone.
        if self.len == 0 && !wait.is_zero() {
            self.len = self.take(c_millis(wait), 0, 1);
            if self.len == 1 {
                self.len += self.take(0, 1, self.slots.len() - 1);
            }
        }
    }

    /// Fills at most `most` slots from `from` on; how many.
    fn take(&mut self, wait_ms: i32, from: usize, most: usize) -> usize {
        let room = &mut self.slots[from..from + most];
        // SAFETY: `room` has `most` elements.
        let count =
            unsafe { rd::rd_kafka_consume_batch_queue(self.queue, wait_ms, room.as_mut_ptr(), room.len()) };
        usize::try_from(count).unwrap_or(0)
    }

    /// Drops the message that `peek` shows.
    pub(super) fn pop(&mut self) {
        if self.at < self.len {
            // SAFETY: the message is ours and is not touched again.
            unsafe { rd::rd_kafka_message_destroy(self.slots[self.at]) };
            self.at += 1;
        }
    }

    /// Keeps only the messages for which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Message<'_>) -> bool) {
        let mut kept = 0;
        for i in self.at..self.len {
            let message = self.slots[i];
            // SAFETY: as in `peek`; a message that is not kept is destroyed once.
            unsafe {
                if keep(&Message { raw: &*message }) {
                    self.slots[kept] = message;
                    kept += 1;
                } else {
                    rd::rd_kafka_message_destroy(message);
                }
            }
        }
        self.at = 0;
        self.len = kept;
    }
}

// SAFETY: librdkafka's queues may be used from any thread, and `&mut self` keeps it to one at a time.
unsafe impl Send for DataQueue {}

impl Drop for DataQueue {
    fn drop(&mut self) {
        self.retain(|_| false);
        // SAFETY: nothing uses the queue after this.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) };
    }
}

/// A message, an end of partition, or an error of one.
pub(super) struct Message<'a> {
    raw: &'a rd::rd_kafka_message_t,
}

impl<'a> Message<'a> {
    pub(super) fn error(&self) -> Option<Code> {
        (self.raw.err != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| self.raw.err.into())
    }

    /// Tells topics apart without comparing names.
    pub(super) fn topic_tag(&self) -> usize {
        self.raw.rkt as usize
    }

    pub(super) fn topic(&self) -> &'a str {
        if self.raw.rkt.is_null() {
            return "";
        }
        // SAFETY: the name lives as long as the topic, which lives as long as the message.
        unsafe { CStr::from_ptr(rd::rd_kafka_topic_name(self.raw.rkt)) }.to_str().unwrap_or_default()
    }

    pub(super) fn partition(&self) -> u32 {
        self.raw.partition as u32
    }

    pub(super) fn offset(&self) -> Offset {
        self.raw.offset
    }

    /// The timestamp, and whether the broker gave it.
    pub(super) fn timestamp(&self) -> (TimestampMs, bool) {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: both pointers are valid.
        let timestamp = unsafe { rd::rd_kafka_message_timestamp(self.raw, &raw mut kind) };
        (timestamp, kind == rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME)
    }

    pub(super) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka gives pointer and length of bytes that live as long as the message.
        unsafe { bytes(self.raw.key, self.raw.key_len) }
    }

    pub(super) fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as above.
        unsafe { bytes(self.raw.payload, self.raw.len) }
    }

    /// What librdkafka says about an error.
    pub(super) fn error_text(&self) -> String {
        // SAFETY: the text lives as long as the message.
        let text = unsafe { rd::rd_kafka_message_errstr(self.raw) };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: a C string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    pub(super) fn headers(&self) -> MessageHeaders<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: both pointers are valid; the headers stay the message's.
        let found = unsafe { rd::rd_kafka_message_headers(self.raw, &raw mut headers) };
        if found != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
            return MessageHeaders { headers: ptr::null(), at: 0, len: 0, _message: self.raw };
        }
        // SAFETY: just got it.
        let len = unsafe { rd::rd_kafka_header_cnt(headers) };
        MessageHeaders { headers, at: 0, len, _message: self.raw }
    }
}

unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), len) })
}

/// The headers of a message, in their order.
pub(super) struct MessageHeaders<'a> {
    headers: *const rd::rd_kafka_headers_t,
    at: usize,
    len: usize,
    _message: &'a rd::rd_kafka_message_t,
}

impl<'a> Iterator for MessageHeaders<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        if self.at == self.len {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: index below the count; name and value live as long as the message.
        unsafe {
            rd::rd_kafka_header_get_all(self.headers, self.at, &raw mut name, &raw mut value, &raw mut size);
            self.at += 1;
            Some((CStr::from_ptr(name).to_bytes(), bytes(value, size)))
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len - self.at, Some(self.len - self.at))
    }
}

impl ExactSizeIterator for MessageHeaders<'_> {}

/// A topic as a producer or group-less reader names it: saves the look-up by name for each record.
pub(super) struct Topic {
    topic: *mut rd::rd_kafka_topic_t,
}

impl Topic {
    pub(super) fn new(client: Client, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client is alive.
        let topic = unsafe { rd::rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()) };
        (!topic.is_null()).then_some(Self { topic })
    }

    /// Stops what `DataQueue::start` started.
    pub(super) fn stop(&self, partition: u32) {
        // SAFETY: the topic is alive.
        unsafe { rd::rd_kafka_consume_stop(self.topic, partition as i32) };
    }
}

// SAFETY: librdkafka's topics may be used from any thread.
unsafe impl Send for Topic {}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: nothing uses it after this.
        unsafe { rd::rd_kafka_topic_destroy(self.topic) };
    }
}

/// A record for `produce`, borrowed.
pub(super) struct Out<'a> {
    pub(super) partition: u32,
    /// 0 lets the client put the present time: librdkafka cannot say the epoch itself.
    pub(super) timestamp: TimestampMs,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Headers<'a>,
}

const COPY: i32 = rd::RD_KAFKA_MSG_F_COPY;

/// Hands a record to the client, which copies it. Unlike rust-rdkafka's `send` it allocates nothing on the
/// way: no topic name, no wrapper.
pub(super) fn produce(client: Client, topic: &Topic, out: &Out<'_>) -> Result<(), Code> {
    use rd::rd_kafka_vtype_t as Kind;
    type Any = rd::rd_kafka_vu_s__bindgen_ty_1;
    let memory = |bytes: Option<&[u8]>| rd::rd_kafka_vu_s__bindgen_ty_1 {
        mem: rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast()),
            size: bytes.map_or(0, <[u8]>::len),
        },
    };
    let headers = native_headers(out.headers.clone());
    let part = |vtype, u| rd::rd_kafka_vu_t { vtype, u };
    let parts = [
        part(Kind::RD_KAFKA_VTYPE_RKT, Any { rkt: topic.topic }),
        part(Kind::RD_KAFKA_VTYPE_PARTITION, Any { i32_: out.partition as i32 }),
        part(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Any { i: COPY }),
        part(Kind::RD_KAFKA_VTYPE_TIMESTAMP, Any { i64_: out.timestamp }),
        part(Kind::RD_KAFKA_VTYPE_KEY, memory(out.key)),
        part(Kind::RD_KAFKA_VTYPE_VALUE, memory(out.value)),
        part(Kind::RD_KAFKA_VTYPE_HEADERS, Any { headers }),
    ];
    let count = if headers.is_null() { parts.len() - 1 } else { parts.len() };
    // SAFETY: `count` valid elements; key and value are copied, the headers are taken over on success.
    unsafe {
        let error = rd::rd_kafka_produceva(client, parts.as_ptr(), count);
        if error.is_null() {
            return Ok(());
        }
        let code = rd::rd_kafka_error_code(error);
        rd::rd_kafka_error_destroy(error);
        if !headers.is_null() {
            rd::rd_kafka_headers_destroy(headers);
        }
        Err(code.into())
    }
}

/// Null when there are none.
fn native_headers(headers: Headers<'_>) -> *mut rd::rd_kafka_headers_t {
    if headers.len() == 0 {
        return ptr::null_mut();
    }
    // SAFETY: every pointer is valid for the length beside it, and the bytes are copied.
    unsafe {
        let native = rd::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            let (start, len) = match value {
                Some(value) => (value.as_ptr().cast::<c_void>(), value.len() as isize),
                None => (ptr::null(), 0),
            };
            rd::rd_kafka_header_add(native, name.as_ptr().cast(), name.len() as isize, start, len);
        }
        native
    }
}
