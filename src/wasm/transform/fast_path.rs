//! A few instructions of wasm between a guest and `read_next_record`.
//!
//! A host function that may suspend costs two allocations and a poll for each call, and the host knows only inside of it
//! that there is nothing to wait for. So the guest's import is bound to a function of a module of our own, which asks a
//! plain host function for the record and the suspending one only when that says so. For the guest there is no
//! difference; each has an instance of it beside its own.

use std::sync::Arc;

use wasmtime::{Engine, Extern, Instance, InstancePre, Linker, Module, Store};

use super::abi::{MODULE, MUST_WAIT, hand_out_at_once, read_next_record};
use super::state::State;

const READ_NEXT_RECORD: &str = "read_next_record";

/// The module in between, ready to be instantiated.
pub(super) struct FastPath(InstancePre<State>);

impl FastPath {
    pub(super) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let text = format!(
            r#"(module
                (type $read (func (param i32 i32 i32 i32 i32) (result i32)))
                (import "" "at_once" (func $at_once (type $read)))
                (import "" "waiting" (func $waiting (type $read)))
                (func (export "{READ_NEXT_RECORD}") (type $read)
                    (local $answer i32)
                    (local.set $answer (call $at_once
                        (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
                    (if (i32.eq (local.get $answer) (i32.const {MUST_WAIT}))
                        (then (return (call $waiting
                            (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))))
                    (local.get $answer)))"#
        );
        let module = Module::new(engine, wat::parse_str(text)?)?;
        let mut linker = Linker::new(engine);
        linker.func_wrap("", "at_once", hand_out_at_once)?;
        linker.func_wrap_async("", "waiting", read_next_record)?;
        Ok(Self(linker.instantiate_pre(&module)?))
    }
}

/// A guest's module and what its imports are bound to.
#[derive(Clone)]
pub(super) struct Bound {
    module: Module,
    linker: Arc<Linker<State>>,
    /// `None` for a module that never asks for a record.
    fast_path: Option<InstancePre<State>>,
}

impl Bound {
    /// An error when the host has no such functions.
    pub(super) fn new(
        linker: &Arc<Linker<State>>,
        fast_path: &FastPath,
        module: &Module,
    ) -> wasmtime::Result<Self> {
        // Every type is checked here once, and not first when an instance is made.
        linker.instantiate_pre(module)?;
        let asks = module.imports().any(|import| is_read_next_record(import.module(), import.name()));
        let fast_path = asks.then(|| fast_path.0.clone());
        Ok(Self { module: module.clone(), linker: Arc::clone(linker), fast_path })
    }

    /// Makes an instance, and runs what the module wants to be run at its start.
    pub(super) async fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Instance> {
        let fast_path = match &self.fast_path {
            None => None,
            Some(pre) => pre.instantiate_async(&mut *store).await?.get_export(&mut *store, READ_NEXT_RECORD),
        };
        let mut imports: Vec<Extern> = Vec::with_capacity(self.module.imports().len());
        for import in self.module.imports() {
            imports.push(match &fast_path {
                Some(function) if is_read_next_record(import.module(), import.name()) => function.clone(),
                _ => self.linker.get(&mut *store, import.module(), import.name())?,
            });
        }
        Instance::new_async(store, &self.module, &imports).await
    }
}

fn is_read_next_record(module: &str, name: &str) -> bool {
    module == MODULE && name == READ_NEXT_RECORD
}
