//! The transform ABI: core modules built with Redpanda's published SDKs run unchanged.
//!
//! The guest polls: its `_start` never returns, it asks for a batch, then for one record after the other. So a
//! guest is a fiber that the lane's thread drives by hand; see `docs/adr/0003-guests-as-fibers.md`. Module
//! names, function names and error codes are those of Redpanda, versions 1 and 2 of the ABI and the proposed 3.

mod abi;
mod failure;
mod fast_path;
mod guest;
mod limits;
mod lines;
mod memory;
mod schemas;
mod state;
mod wasi;
mod work;

use std::collections::HashSet;
use std::sync::Arc;

use wasmtime::{Engine, Linker, Module, Store};

use crate::core::digest::Digest;
use crate::ports::{Guest, GuestClass, GuestFailure, GuestLines, GuestSpec, Program, SchemaRegistry};
use crate::wasm::ticker::{Ticker, Ticks};

use self::fast_path::{Bound, FastPath};
use self::guest::TransformGuest;
use self::state::State;

pub(super) use self::limits::TABLES;

/// Bytes of a page of linear memory.
pub(super) const PAGE: u64 = 64 << 10;

/// What every program of the engine shares.
pub(super) struct Host {
    pub(super) engine: Engine,
    pub(super) ticker: Ticker,
    pub(super) registry: Option<Arc<dyn SchemaRegistry>>,
}

/// The host functions, ready to be bound to modules.
pub(super) struct Bindings {
    linker: Arc<Linker<State>>,
    fast_path: FastPath,
    names: HashSet<(String, String)>,
}

impl Bindings {
    /// Defines every host function.
    pub(super) fn new(engine: &Engine, ticks: Ticks) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        abi::define(&mut linker)?;
        schemas::define(&mut linker)?;
        wasi::define(&mut linker)?;
        // A linker is listed only to the owner of a store.
        let mut store = Store::new(engine, State::empty(ticks));
        let names =
            linker.iter(&mut store).map(|(module, name, _)| (module.to_owned(), name.to_owned())).collect();
        Ok(Self { linker: Arc::new(linker), fast_path: FastPath::new(engine)?, names })
    }

    /// Whether there is a host function of this name.
    pub(super) fn has(&self, module: &str, name: &str) -> bool {
        self.names.contains(&(module.to_owned(), name.to_owned()))
    }
}

/// A compiled module that keeps to the transform ABI.
pub(super) struct TransformProgram {
    host: Arc<Host>,
    digest: Digest,
    bound: Bound,
    memory_min: u64,
}

impl TransformProgram {
    /// Binds a module, which needs `memory_min` bytes to start, to the host functions.
    pub(super) fn new(
        host: Arc<Host>,
        bindings: &Bindings,
        module: &Module,
        digest: Digest,
        memory_min: u64,
    ) -> wasmtime::Result<Self> {
        let bound = Bound::new(&bindings.linker, &bindings.fast_path, module)?;
        Ok(Self { host, digest, bound, memory_min })
    }
}

impl Program for TransformProgram {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn start(&self, spec: &GuestSpec, lines: Arc<dyn GuestLines>) -> Result<Box<dyn Guest>, GuestFailure> {
        if self.memory_min > spec.limits.memory as u64 {
            return Err(GuestFailure {
                class: GuestClass::Memory,
                message: format!(
                    "the module needs {} KiB of memory to start and its limit is {} KiB: raise limits.memory, or \
                     build it with a smaller stack and less static data",
                    self.memory_min >> 10,
                    spec.limits.memory >> 10,
                ),
            });
        }
        let state = State::new(spec, lines, self.host.registry.clone(), self.host.ticker.ticks())?;
        let guest = TransformGuest::start(Arc::clone(&self.host), self.bound.clone(), state)?;
        Ok(Box::new(guest))
    }
}
