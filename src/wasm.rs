//! The guest host: wasmtime behind the ports `Engine`, `Program` and `Guest`.
//!
//! Only here does the process know wasmtime. A module is checked (`admission`), compiled on a thread of its own with
//! a time limit (`compiler`), in a child process where there is one (`helper`), kept on disk in a private cache
//! (`cache`), and run by the file of its contract (`transform`). Nothing here knows topics beyond their names, a log,
//! or a deployment.

mod admission;
mod cache;
mod compiler;
mod engine;
mod helper;
pub mod section;
mod ticker;
mod transform;

use sha2::{Digest as _, Sha256};

use crate::core::digest::Digest;

pub use admission::{Contract, ModuleInfo, inspect};
pub use engine::{EngineError, WasmOptions, Wasmtime};
pub use helper::{CompileHelper, run_compile_helper};

/// The digest of a module's bytes: its name.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}
