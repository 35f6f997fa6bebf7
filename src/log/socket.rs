//! The log over a socket: a node serves the one that it has open, every other process is its client.
//!
//! The messages are in `proto/coproc/log/v1/log.proto`; `generated.rs` is made from it and compared by a test. The
//! port is synchronous, so each side keeps a small runtime of its own and lets callers wait on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use crate::log::{EmbeddedLog, MAX_RECORD_BYTES, Options};
use crate::ports::{Log, LogError};

mod convert;
#[rustfmt::skip]
#[allow(missing_docs, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "made by a generator")]
mod generated;
mod remote;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use remote::RemoteLog;
pub use server::Server;

/// Largest message: the largest record, and room for what is around it.
const MAX_MESSAGE_BYTES: usize = MAX_RECORD_BYTES + (16 << 20);

/// Where the node that has the store in `dir` serves it.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("coproc.sock")
}

/// Opens the store in `dir`, or, where another process has it open, connects to that one.
pub fn open_or_connect(dir: &Path, options: Options) -> Result<Arc<dyn Log>, LogError> {
    let locked = match EmbeddedLog::open(dir, options) {
        Ok(log) => return Ok(log),
        Err(LogError::Locked(locked)) => locked,
        Err(error) => return Err(error),
    };
    let path = socket_path(dir);
    match RemoteLog::connect(&path) {
        Ok(log) => Ok(Arc::new(log)),
        Err(error) => Err(LogError::Locked(format!("{locked}; {error}"))),
    }
}

fn runtime(name: &str, max_blocked: usize) -> Result<Runtime, LogError> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(max_blocked)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| LogError::Unavailable(format!("start threads: {error}")))
}
