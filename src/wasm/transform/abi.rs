//! The functions of the module `redpanda_transform`.
//!
//! Per record the guest makes two calls, so these two do no more than they must: no lock, no clock, no look-up
//! of an export. The functions that may suspend return a boxed future, which costs two allocations; a record that can
//! be handed out at once goes by `hand_out_at_once`, without (see `fast_path`).

use std::future::{Future, ready};

use wasmtime::{Caller, Linker};

use crate::core::record::{Payload, take_varint};
use crate::ports::GuestClass;

use super::failure::HostFailure;
use super::memory::{GuestMemory, parts};
use super::state::{State, rearm};
use super::work::{Handover, Phase, Work};

pub(super) const MODULE: &str = "redpanda_transform";

/// No batch is open, or it has no more records.
const NO_ACTIVE_TRANSFORM: i32 = -1;
/// The buffer is too small, or its content malformed.
const INVALID_BUFFER: i32 = -2;
/// The record cannot be written there.
const INVALID_WRITE: i32 = -3;

type Answer<'a> = Box<dyn Future<Output = wasmtime::Result<i32>> + Send + 'a>;

/// Not an answer: the record has to wait, and only `read_next_record` can do that.
pub(super) const MUST_WAIT: i32 = i32::MIN;

/// Defines the functions.
pub(super) fn define(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for version in 1..=3 {
        linker.func_wrap(MODULE, &format!("check_abi_version_{version}"), || {})?;
    }
    linker.func_wrap_async(MODULE, "read_batch_header", read_batch_header)?;
    linker.func_wrap_async(MODULE, "read_next_record", read_next_record)?;
    linker.func_wrap(MODULE, "write_record", |mut caller: Caller<'_, State>, buffer: u32, len: u32| {
        write(&mut caller, buffer, len, None)
    })?;
    linker.func_wrap(
        MODULE,
        "write_record_with_options",
        |mut caller: Caller<'_, State>, buffer: u32, len: u32, options: u32, options_len: u32| {
            write(&mut caller, buffer, len, Some((options, options_len)))
        },
    )?;
    // Proposed for version 3: what is known about the request that produced the batch. Here that is nothing.
    linker.func_wrap(MODULE, "read_batch_metadata", |_key: u32, _buffer: u32, _len: u32| 0)?;
    Ok(())
}

/// The ten out-pointers of `read_batch_header`, with the bytes that each takes.
type HeaderPointers = (u32, u32, u32, u32, u32, u32, u32, u32, u32, u32);

fn read_batch_header(mut caller: Caller<'_, State>, out: HeaderPointers) -> Answer<'_> {
    Box::new(async move {
        let handover = {
            let (mut memory, state) = parts(&mut caller)?;
            // Checked before the guest is suspended, so that a bad pointer is charged to what came before. Memory
            // never shrinks: what is checked here holds later.
            put_header(&mut memory, out, &Header::default())?;
            state.started = true;
            state.lines.flush();
            end_of_record(state);
            let mut work = state.work.take().unwrap_or_default();
            work.finish_batch();
            suspend(&memory, state, work)
        };
        let mut work = handover.await;
        let (mut memory, state) = parts(&mut caller)?;
        let (header, largest) = header_of(&work);
        work.phase = Phase::Opened;
        state.now_ms = header.base_timestamp;
        state.work = Some(work);
        put_header(&mut memory, out, &header)?;
        rearm(&mut caller);
        Ok(largest)
    })
}

pub(super) fn read_next_record(
    mut caller: Caller<'_, State>,
    (attributes, timestamp, offset, buffer, len): (u32, u32, u32, u32, u32),
) -> Answer<'_> {
    let out = RecordPointers { attributes, timestamp, offset, buffer, len };
    match finish_record(&mut caller) {
        Ok(None) => Box::new(ready(hand_out(&mut caller, out))),
        Ok(Some(handover)) => Box::new(async move {
            let work = handover.await;
            caller.data_mut().work = Some(work);
            hand_out(&mut caller, out)
        }),
        Err(error) => Box::new(ready(Err(error))),
    }
}

/// `read_next_record` without the wait. Nothing has happened when it answers `MUST_WAIT`.
pub(super) fn hand_out_at_once(
    mut caller: Caller<'_, State>,
    attributes: u32,
    timestamp: u32,
    offset: u32,
    buffer: u32,
    len: u32,
) -> wasmtime::Result<i32> {
    let state = caller.data_mut();
    let tick = state.clock.now();
    let Some(work) = state.work.as_mut() else { return Ok(NO_ACTIVE_TRANSFORM) };
    if work.is_between_records() {
        if work.is_used_up(tick) {
            return Ok(MUST_WAIT);
        }
        work.finish_record();
        end_of_record(state);
    }
    hand_out(&mut caller, RecordPointers { attributes, timestamp, offset, buffer, len })
}

/// The record before is done. The wait to be suspended in, when the budget says so.
fn finish_record(caller: &mut Caller<'_, State>) -> wasmtime::Result<Option<Handover>> {
    let tick = caller.data().clock.now();
    let Some(work) = caller.data_mut().work.as_mut() else { return Ok(None) };
    if !work.is_between_records() {
        return Ok(None);
    }
    work.finish_record();
    let used_up = work.is_used_up(tick);
    end_of_record(caller.data_mut());
    if !used_up {
        return Ok(None);
    }
    let (memory, state) = parts(caller)?;
    let work = state.work.take().unwrap_or_default();
    Ok(Some(suspend(&memory, state, work)))
}

#[derive(Clone, Copy)]
struct RecordPointers {
    attributes: u32,
    timestamp: u32,
    offset: u32,
    buffer: u32,
    len: u32,
}

fn hand_out(caller: &mut Caller<'_, State>, out: RecordPointers) -> wasmtime::Result<i32> {
    let (mut memory, state) = parts(caller)?;
    let Some(work) = state.work.as_mut() else { return Ok(NO_ACTIVE_TRANSFORM) };
    let Some(record) = work.next() else { return Ok(NO_ACTIVE_TRANSFORM) };
    if (out.len as usize) < record.payload.len() {
        return Ok(INVALID_BUFFER);
    }
    memory.put(out.buffer, record.payload)?;
    memory.put(out.attributes, &[0])?;
    memory.put_i64(out.timestamp, record.timestamp)?;
    memory.put_i64(out.offset, record.offset)?;
    let size = record.payload.len() as i32;
    state.now_ms = record.timestamp;
    work.hand_out();
    // Only a record that was handed out buys time: asking alone must not keep a guest alive.
    rearm(caller);
    Ok(size)
}

/// What a guest was refused and said is of interest only until it asks for the next record.
fn end_of_record(state: &mut State) {
    state.limits.forget();
    state.lines.forget_last_words();
    state.schemas.next_record();
}

fn suspend(memory: &GuestMemory<'_>, state: &State, mut work: Box<Work>) -> Handover {
    work.memory_bytes = memory.size();
    state.slot.put(work);
    Handover::new(state.slot.clone())
}

fn write(
    caller: &mut Caller<'_, State>,
    buffer: u32,
    len: u32,
    options: Option<(u32, u32)>,
) -> wasmtime::Result<i32> {
    let (memory, state) = parts(caller)?;
    let Some(work) = state.work.as_mut() else { return Ok(NO_ACTIVE_TRANSFORM) };
    let payload = memory.read(buffer, len)?;
    let topic = match options {
        None => None,
        Some((options, options_len)) => match parse_options(memory.read(options, options_len)?)? {
            Ok(topic) => topic,
            Err(BadOptions) => return Ok(INVALID_BUFFER),
        },
    };
    let topic = match topic {
        None => (!state.outputs.is_empty()).then_some(0),
        Some(name) => state.outputs.iter().position(|output| output.as_str().as_bytes() == name),
    };
    let Some(topic) = topic else { return Ok(INVALID_WRITE) };
    work.record_bytes += payload.len();
    if work.record_bytes > state.max_output_bytes {
        return Err(HostFailure {
            class: GuestClass::OutputTooLarge,
            message: format!(
                "it wrote {} bytes for one record, the limit is {} (limits.maxOutputBytes)",
                work.record_bytes, state.max_output_bytes
            ),
        }
        .into());
    }
    if Payload::parse(payload).is_err() {
        work.record_bytes -= payload.len();
        return Ok(INVALID_BUFFER);
    }
    let source = work.current();
    work.outputs.push(topic as u16, source, payload);
    Ok(len as i32)
}

/// Options that the host does not know, or with something after them.
struct BadOptions;

/// The topic that write options name. The outer error ends the guest: the original's reader throws at the end of
/// the buffer, while it answers an unknown option with a code.
fn parse_options(options: &[u8]) -> Result<Result<Option<&[u8]>, BadOptions>, HostFailure> {
    let cut =
        || HostFailure::abi("failure executing host function: the write options end inside a topic name");
    let Some((key, rest)) = options.split_first() else { return Ok(Ok(None)) };
    if *key != 1 {
        return Ok(Err(BadOptions));
    }
    let (length, rest) = take_varint(rest, "topic length").map_err(|_| cut())?;
    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len()).ok_or_else(cut)?;
    let (topic, rest) = rest.split_at(length);
    Ok(if rest.is_empty() { Ok(Some(topic)) } else { Err(BadOptions) })
}

/// A batch's header. What Kafka's clients do not show is -1, or derived.
#[derive(Default)]
struct Header {
    base_offset: i64,
    record_count: i32,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

/// The header of what is left of a batch, and the size of its largest payload.
fn header_of(work: &Work) -> (Header, i32) {
    let mut header = Header::default();
    let mut largest = 0;
    for (i, record) in work.batch.iter().skip(work.cursor).enumerate() {
        if i == 0 {
            header.base_offset = record.offset;
            header.base_timestamp = record.timestamp;
            header.max_timestamp = record.timestamp;
        }
        header.record_count += 1;
        header.last_offset_delta =
            i32::try_from(record.offset.saturating_sub(header.base_offset)).unwrap_or(i32::MAX);
        header.max_timestamp = header.max_timestamp.max(record.timestamp);
        largest = largest.max(record.payload.len());
    }
    (header, i32::try_from(largest).unwrap_or(i32::MAX))
}

fn put_header(memory: &mut GuestMemory<'_>, out: HeaderPointers, header: &Header) -> Result<(), HostFailure> {
    memory.put_i64(out.0, header.base_offset)?;
    memory.put_u32(out.1, header.record_count as u32)?;
    memory.put(out.2, &(-1i32).to_le_bytes())?;
    memory.put(out.3, &0i16.to_le_bytes())?;
    memory.put_u32(out.4, header.last_offset_delta as u32)?;
    memory.put_i64(out.5, header.base_timestamp)?;
    memory.put_i64(out.6, header.max_timestamp)?;
    memory.put_i64(out.7, -1)?;
    memory.put(out.8, &(-1i16).to_le_bytes())?;
    memory.put(out.9, &(-1i32).to_le_bytes())
}
