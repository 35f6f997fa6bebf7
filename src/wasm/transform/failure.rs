//! From wasmtime's errors to failures with a class and a sentence.

use std::fmt::Write as _;

use wasmtime::{Trap, WasmBacktrace};

use crate::ports::{GuestClass, GuestFailure};

use super::state::State;

/// Stack frames in a message.
const FRAMES: usize = 6;

/// What a host function ends the guest with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct HostFailure {
    pub(super) class: GuestClass,
    pub(super) message: String,
}

impl HostFailure {
    /// The guest broke the contract.
    pub(super) fn abi(message: impl Into<String>) -> Self {
        Self { class: GuestClass::Abi, message: message.into() }
    }
}

/// Why a guest's `_start` ended. `None` is that it returned.
pub(super) fn describe(error: Option<&wasmtime::Error>, state: &State) -> GuestFailure {
    let (class, mut message) = match error {
        None => (GuestClass::Exited, "vm has exited: its main function returned".to_owned()),
        Some(error) => classify(error, state),
    };
    if let Some(frames) = error.and_then(|error| error.downcast_ref::<WasmBacktrace>()).and_then(frames) {
        let _ = write!(message, "; in {frames}");
    }
    if let Some(words) = state.lines.last_words() {
        let _ = write!(message, "; it said: {words}");
    }
    if state.started {
        GuestFailure { class, message }
    } else {
        // The reason stays in the message; the class says that no record is at fault.
        let message = format!("the guest did not start ({}): {message}", class.as_str());
        GuestFailure { class: GuestClass::Start, message }
    }
}

fn classify(error: &wasmtime::Error, state: &State) -> (GuestClass, String) {
    let limits = &state.limits;
    if let Some(failure) = error.downcast_ref::<HostFailure>() {
        if failure.class == GuestClass::Exited
            && let Some(refused) = limits.refused_memory
        {
            return (GuestClass::Memory, refused_memory(refused, limits.memory(), &failure.message));
        }
        return (failure.class, failure.message.clone());
    }
    let Some(trap) = error.downcast_ref::<Trap>() else {
        let reason = error.root_cause().to_string();
        return match (limits.refused_memory, limits.refused_table) {
            (Some(refused), _) => (GuestClass::Memory, refused_memory(refused, limits.memory(), &reason)),
            (_, Some(refused)) => (GuestClass::Table, refused_table(refused, &reason)),
            _ => (GuestClass::Trap, reason),
        };
    };
    match trap {
        Trap::Interrupt => (
            GuestClass::Timeout,
            format!(
                "it ran longer than the {:?} that one record may take (limits.timePerRecord)",
                state.time_limit
            ),
        ),
        Trap::StackOverflow => {
            (GuestClass::Stack, "STACK_OVERFLOW: it used more stack than there is".to_owned())
        }
        trap => {
            let reason = format!("{}: {trap}", code_name(*trap));
            match (limits.refused_memory, limits.refused_table) {
                (Some(refused), _) => (GuestClass::Memory, refused_memory(refused, limits.memory(), &reason)),
                (_, Some(refused)) => (GuestClass::Table, refused_table(refused, &reason)),
                _ => (GuestClass::Trap, reason),
            }
        }
    }
}

fn refused_memory(refused: usize, limit: usize, reason: &str) -> String {
    format!(
        "it asked for {} KiB of memory, its limit is {} KiB (limits.memory), and then ended: {reason}",
        refused >> 10,
        limit >> 10
    )
}

fn refused_table(refused: usize, reason: &str) -> String {
    format!(
        "it asked for a table of {refused} elements, the limit is {}, and then ended: {reason}",
        super::limits::TABLE_ELEMENTS
    )
}

/// Names of traps as Redpanda's logs have them.
fn code_name(trap: Trap) -> &'static str {
    match trap {
        Trap::MemoryOutOfBounds => "MEMORY_OUT_OF_BOUNDS",
        Trap::HeapMisaligned => "HEAP_MISALIGNED",
        Trap::TableOutOfBounds => "TABLE_OUT_OF_BOUNDS",
        Trap::IndirectCallToNull => "INDIRECT_CALL_TO_NULL",
        Trap::BadSignature => "BAD_SIGNATURE",
        Trap::IntegerOverflow => "INTEGER_OVERFLOW",
        Trap::IntegerDivisionByZero => "INTEGER_DIVISION_BY_ZERO",
        Trap::BadConversionToInteger => "BAD_CONVERSION_TO_INTEGER",
        Trap::UnreachableCodeReached => "UNREACHABLE_CODE_REACHED",
        _ => "TRAP",
    }
}

fn frames(backtrace: &WasmBacktrace) -> Option<String> {
    let named = backtrace.frames().iter().filter_map(wasmtime::FrameInfo::func_name);
    let readable = named.map(|name| format!("{:#}", rustc_demangle::demangle(name)));
    let mut text = String::new();
    for name in readable.filter(|name| !is_noise(name)).take(FRAMES) {
        if !text.is_empty() {
            text.push_str(" < ");
        }
        // Names come from the module: whoever made it may have put anything there.
        text.extend(name.chars().filter(|character| !character.is_control()).take(120));
    }
    (!text.is_empty()).then_some(text)
}

/// What every panic of a Rust guest passes through says nothing.
fn is_noise(name: &str) -> bool {
    const NOISE: [&str; 7] =
        ["__rust", "rust_panic", "std::panicking", "std::process", "std::sys", "core::panicking", "abort"];
    NOISE.iter().any(|noise| name.starts_with(noise))
}
