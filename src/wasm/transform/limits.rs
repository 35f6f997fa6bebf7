//! What an instance may take: memory, tables. Remembers what it refused, for the class of a later failure.

use wasmtime::ResourceLimiter;

/// Most elements of a table, as in Redpanda: 128 KiB of pointers.
pub(super) const TABLE_ELEMENTS: usize = 16_384;
/// Most tables. One is what toolchains make; a few cost nothing.
pub(in crate::wasm) const TABLES: usize = 4;

/// The limits of one instance.
#[derive(Debug)]
pub(super) struct Limits {
    memory: usize,
    /// The size in bytes that the guest asked for last and was refused, since `forget`.
    pub(super) refused_memory: Option<usize>,
    /// The number of elements that the guest asked for last and was refused, since `forget`.
    pub(super) refused_table: Option<usize>,
}

impl Limits {
    pub(super) fn new(memory: usize) -> Self {
        Self { memory, refused_memory: None, refused_table: None }
    }

    /// Bytes of linear memory that are allowed.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Forgets refusals: the guest lived on.
    pub(super) fn forget(&mut self) {
        self.refused_memory = None;
        self.refused_table = None;
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = desired <= self.memory && maximum.is_none_or(|maximum| desired <= maximum);
        if !allowed {
            self.refused_memory = Some(desired);
        }
        Ok(allowed)
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = desired <= TABLE_ELEMENTS && maximum.is_none_or(|maximum| desired <= maximum);
        if !allowed {
            self.refused_table = Some(desired);
        }
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        // The guest's, and the one in front of it (`fast_path`).
        2
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        1
    }
}
