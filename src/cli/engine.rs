//! The wasm engine, set up for a command: the one place that chooses it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::exit::{Exit, coded};
use crate::connect::schema_registry::{HttpSchemaRegistry, RegistryOptions};
use crate::ports::{Engine, SchemaRegistry};
use crate::wasm::{WasmOptions, Wasmtime};

/// An engine; compiled code is kept in `cache_dir` where there is one.
pub fn new(cache_dir: Option<PathBuf>, schema_registry: Option<&str>) -> anyhow::Result<Arc<dyn Engine>> {
    let registry = schema_registry.map(registry).transpose()?;
    Ok(Wasmtime::new(WasmOptions { cache_dir, ..WasmOptions::default() }, registry)?)
}

fn registry(url: &str) -> anyhow::Result<Arc<dyn SchemaRegistry>> {
    let client = HttpSchemaRegistry::new(RegistryOptions::new(url));
    Ok(Arc::new(client.map_err(|error| coded(Exit::Usage, error.to_string()))?))
}
