//! WASI preview 1 as Redpanda's broker defines it: deterministic, without files and sockets.
//!
//! Written here and not taken from `wasmtime-wasi`, which has a real clock, real randomness and real files. All
//! 46 functions are there, two more than in the original; what makes no sense in a transform answers `NOSYS`.
//! Signatures: <https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md>.

use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use crate::ports::{GuestClass, LineLevel};

use super::failure::HostFailure;
use super::memory::{GuestMemory, parts};
use super::state::State;

const MODULE: &str = "wasi_snapshot_preview1";

const SUCCESS: i32 = 0;
const BADF: i32 = 8;
const INVAL: i32 = 16;
const NOSYS: i32 = 52;

/// A millisecond in nanoseconds: the resolution of every clock.
const MILLISECOND: u64 = 1_000_000;
/// Most bytes and pieces that one call prints: the guest's time is checked between calls, not within one. A write may
/// be short, as `write(2)` says; what prints goes on with the rest.
const PRINT_BYTES: usize = 64 << 10;
const PRINT_PIECES: usize = 1_024;
/// What randomness is made of.
const RANDOM_BYTE: u8 = 0x09;

/// Functions without a meaning here, with their parameters: `i` is an i32, `I` an i64.
const NOT_THERE: [(&str, &str); 34] = [
    ("fd_advise", "iIIi"),
    ("fd_allocate", "iII"),
    ("fd_close", "i"),
    ("fd_datasync", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "iII"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "iI"),
    ("fd_filestat_set_times", "iIIi"),
    ("fd_pread", "iiiIi"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_pwrite", "iiiIi"),
    ("fd_read", "iiii"),
    ("fd_readdir", "iiiIi"),
    ("fd_renumber", "ii"),
    ("fd_seek", "iIii"),
    ("fd_sync", "i"),
    ("fd_tell", "ii"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiiIIi"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiiIIii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("proc_raise", "i"),
    ("sock_accept", "iii"),
    ("sock_recv", "iiiiii"),
    ("sock_send", "iiiii"),
    ("sock_shutdown", "ii"),
];

/// Defines the functions.
pub(super) fn define(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for (name, parameters) in NOT_THERE {
        let types = parameters.bytes().map(|letter| if letter == b'I' { ValType::I64 } else { ValType::I32 });
        let signature = FuncType::new(linker.engine(), types, [ValType::I32]);
        linker.func_new(MODULE, name, signature, |_, _, results| {
            if let Some(result) = results.first_mut() {
                *result = Val::I32(NOSYS);
            }
            Ok(())
        })?;
    }
    linker.func_wrap(MODULE, "args_get", |mut caller: Caller<'_, State>, table: u32, buffer: u32| {
        let (mut memory, state) = parts(&mut caller)?;
        put_strings(&mut memory, &[&state.name], table, buffer)
    })?;
    linker.func_wrap(MODULE, "args_sizes_get", |mut caller: Caller<'_, State>, count: u32, size: u32| {
        let (mut memory, state) = parts(&mut caller)?;
        put_sizes(&mut memory, &[&state.name], count, size)
    })?;
    linker.func_wrap(MODULE, "environ_get", |mut caller: Caller<'_, State>, table: u32, buffer: u32| {
        let (mut memory, state) = parts(&mut caller)?;
        put_strings(&mut memory, &state.variables, table, buffer)
    })?;
    linker.func_wrap(
        MODULE,
        "environ_sizes_get",
        |mut caller: Caller<'_, State>, count: u32, size: u32| {
            let (mut memory, state) = parts(&mut caller)?;
            put_sizes(&mut memory, &state.variables, count, size)
        },
    )?;
    linker.func_wrap(MODULE, "clock_res_get", clock_res_get)?;
    linker.func_wrap(MODULE, "clock_time_get", clock_time_get)?;
    linker.func_wrap(MODULE, "fd_prestat_get", |fd: i32, _out: u32| if fd < 3 { NOSYS } else { BADF })?;
    linker.func_wrap(MODULE, "fd_write", fd_write)?;
    linker.func_wrap(MODULE, "poll_oneoff", poll_oneoff)?;
    linker.func_wrap(MODULE, "proc_exit", proc_exit)?;
    linker.func_wrap(MODULE, "random_get", random_get)?;
    linker.func_wrap(MODULE, "sched_yield", || SUCCESS)?;
    Ok(())
}

fn put_strings<S: AsRef<str>>(
    memory: &mut GuestMemory<'_>,
    strings: &[S],
    table: u32,
    buffer: u32,
) -> wasmtime::Result<i32> {
    let (mut entry, mut at) = (table, buffer);
    for string in strings {
        let string = string.as_ref();
        memory.put_u32(entry, at)?;
        memory.put(at, string.as_bytes())?;
        // A pointer that wraps around came from a guest that did not make room for what it asked for.
        at = at.wrapping_add(string.len() as u32);
        memory.put(at, &[0])?;
        at = at.wrapping_add(1);
        entry = entry.wrapping_add(4);
    }
    Ok(SUCCESS)
}

fn put_sizes<S: AsRef<str>>(
    memory: &mut GuestMemory<'_>,
    strings: &[S],
    count: u32,
    size: u32,
) -> wasmtime::Result<i32> {
    memory.put_u32(count, strings.len() as u32)?;
    memory.put_u32(size, strings.iter().map(|string| string.as_ref().len() as u32 + 1).sum())?;
    Ok(SUCCESS)
}

fn clock_res_get(mut caller: Caller<'_, State>, clock: u32, out: u32) -> wasmtime::Result<i32> {
    if clock > 3 {
        return Ok(INVAL);
    }
    parts(&mut caller)?.0.put(out, &MILLISECOND.to_le_bytes())?;
    Ok(SUCCESS)
}

fn clock_time_get(
    mut caller: Caller<'_, State>,
    clock: u32,
    _precision: u64,
    out: u32,
) -> wasmtime::Result<i32> {
    let (mut memory, state) = parts(&mut caller)?;
    let time = match clock {
        0 => state.now_ms.cast_unsigned().wrapping_mul(MILLISECOND),
        1..=3 => {
            let time = state.looks.wrapping_mul(MILLISECOND);
            state.looks += 1;
            time
        }
        _ => return Ok(INVAL),
    };
    memory.put(out, &time.to_le_bytes())?;
    Ok(SUCCESS)
}

fn random_get(mut caller: Caller<'_, State>, buffer: u32, len: u32) -> wasmtime::Result<i32> {
    parts(&mut caller)?.0.at(buffer, len)?.fill(RANDOM_BYTE);
    Ok(SUCCESS)
}

fn fd_write(
    mut caller: Caller<'_, State>,
    fd: u32,
    vectors: u32,
    count: u32,
    written: u32,
) -> wasmtime::Result<i32> {
    let level = match fd {
        1 => LineLevel::Info,
        2 => LineLevel::Warn,
        _ => return Ok(NOSYS),
    };
    let (mut memory, state) = parts(&mut caller)?;
    let vectors = memory.read(vectors, count.saturating_mul(8))?;
    let mut total = 0;
    for vector in vectors.chunks_exact(8).take(PRINT_PIECES) {
        let bytes = memory.read(number(vector, 0), number(vector, 4))?;
        let bytes = &bytes[..bytes.len().min(PRINT_BYTES - total)];
        state.lines.print(level, bytes);
        total += bytes.len();
        if total == PRINT_BYTES {
            break;
        }
    }
    memory.put_u32(written, total as u32)?;
    Ok(SUCCESS)
}

/// Every clock is due at once: a guest does not sleep on a lane's time.
fn poll_oneoff(
    mut caller: Caller<'_, State>,
    subscriptions: u32,
    events: u32,
    count: u32,
    out: u32,
) -> wasmtime::Result<i32> {
    const SUBSCRIPTION: u32 = 48;
    const EVENT: u32 = 32;
    const CLOCK: u8 = 0;
    const LAST_TAG: u8 = 2;
    let (mut memory, _) = parts(&mut caller)?;
    memory.read(subscriptions, count.saturating_mul(SUBSCRIPTION))?;
    memory.read(events, count.saturating_mul(EVENT))?;
    for i in 0..count {
        let mut event = [0; EVENT as usize];
        let subscription = memory.read(subscriptions + i * SUBSCRIPTION, SUBSCRIPTION)?;
        let tag = subscription[8];
        if tag > LAST_TAG {
            return Ok(NOSYS);
        }
        event[..8].copy_from_slice(&subscription[..8]);
        let error = if tag == CLOCK { SUCCESS } else { NOSYS } as u16;
        event[8..10].copy_from_slice(&error.to_le_bytes());
        event[10] = tag;
        memory.put(events + i * EVENT, &event)?;
    }
    memory.put_u32(out, count)?;
    Ok(SUCCESS)
}

fn proc_exit(_: Caller<'_, State>, code: i32) -> wasmtime::Result<()> {
    let message = format!("exited with code: {code}");
    Err(HostFailure { class: GuestClass::Exited, message }.into())
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
