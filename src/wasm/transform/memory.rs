//! Access to a guest's memory. A pointer outside of it is a failure of the guest, never an error code: the
//! original throws there.

use wasmtime::{AsContextMut, Caller, Extern};

use super::failure::HostFailure;
use super::state::State;

/// A guest's linear memory, for one call of the host.
pub(super) struct GuestMemory<'a>(&'a mut [u8]);

/// The memory and the state behind a call.
pub(super) fn parts<'a>(
    caller: &'a mut Caller<'_, State>,
) -> wasmtime::Result<(GuestMemory<'a>, &'a mut State)> {
    let memory = match caller.data().memory {
        Some(memory) => memory,
        // During the module's start section the host does not know the instance yet.
        None => match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => {
                caller.data_mut().memory = Some(memory);
                memory
            }
            _ => return Err(HostFailure::abi("the module exports no memory named \"memory\"").into()),
        },
    };
    let (bytes, state) = memory.data_and_store_mut(caller.as_context_mut());
    Ok((GuestMemory(bytes), state))
}

impl GuestMemory<'_> {
    /// The bytes at `ptr`.
    pub(super) fn read(&self, ptr: u32, len: u32) -> Result<&[u8], HostFailure> {
        self.0.get(range(ptr, len)).ok_or_else(|| outside(ptr, len))
    }

    /// The bytes at `ptr`, to be written.
    pub(super) fn at(&mut self, ptr: u32, len: u32) -> Result<&mut [u8], HostFailure> {
        self.0.get_mut(range(ptr, len)).ok_or_else(|| outside(ptr, len))
    }

    /// Writes bytes at `ptr`.
    pub(super) fn put(&mut self, ptr: u32, bytes: &[u8]) -> Result<(), HostFailure> {
        // Longer than 4 GiB does not fit anyway.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.at(ptr, len)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes a number, little-endian.
    pub(super) fn put_u32(&mut self, ptr: u32, value: u32) -> Result<(), HostFailure> {
        self.put(ptr, &value.to_le_bytes())
    }

    /// Writes a number, little-endian.
    pub(super) fn put_i64(&mut self, ptr: u32, value: i64) -> Result<(), HostFailure> {
        self.put(ptr, &value.to_le_bytes())
    }

    /// How many bytes there are.
    pub(super) fn size(&self) -> usize {
        self.0.len()
    }
}

fn range(ptr: u32, len: u32) -> std::ops::Range<usize> {
    let start = ptr as usize;
    start..start + len as usize
}

#[cold]
fn outside(ptr: u32, len: u32) -> HostFailure {
    HostFailure::abi(format!(
        "failure executing host function: Out of bounds memory access in FFI ({len} bytes at {ptr:#x})"
    ))
}
