//! The wasm engine, set up for a command: the one place that chooses it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::exit::{Exit, coded};
use crate::ports::{Engine, SchemaRegistry};

/// An engine; compiled code is kept in `cache_dir` where there is one.
pub fn new(
    _cache_dir: Option<PathBuf>,
    _registry: Option<Arc<dyn SchemaRegistry>>,
) -> anyhow::Result<Arc<dyn Engine>> {
    Err(coded(Exit::Unavailable, "this build has no engine"))
}
