//! The wasm engine, set up for a command: the one place that chooses it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::exit::{Exit, coded};
use crate::connect::schema_registry::{HttpSchemaRegistry, RegistryOptions};
use crate::ports::{Engine, SchemaRegistry};
use crate::wasm::{CompileHelper, WasmOptions, Wasmtime, run_compile_helper};

/// An engine; compiled code is kept in `cache_dir` where there is one.
pub fn new(cache_dir: Option<PathBuf>, schema_registry: Option<&str>) -> anyhow::Result<Arc<dyn Engine>> {
    let registry = schema_registry.map(registry).transpose()?;
    let options =
        WasmOptions { cache_dir, compile_helper: Some(compile_helper()?), ..WasmOptions::default() };
    Ok(Wasmtime::new(options, registry)?)
}

/// Modules are compiled in a child process, this program again: one that makes the compiler eat memory takes the
/// child with it, and nobody else.
fn compile_helper() -> anyhow::Result<CompileHelper> {
    let program = std::env::current_exe().context("cannot find this program, to compile modules with")?;
    Ok(CompileHelper { program, arguments: vec![COMPILE_HELPER.into()] })
}

/// Name of the hidden command.
const COMPILE_HELPER: &str = "compile-helper";

/// Compile a module from standard input to standard output, within bounds; the engine calls it
#[derive(Debug, Args)]
#[command(name = COMPILE_HELPER)]
pub struct Command {
    /// Milliseconds, then bytes of memory
    bounds: Vec<String>,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> ExitCode {
        run_compile_helper(&self.bounds)
    }
}

fn registry(url: &str) -> anyhow::Result<Arc<dyn SchemaRegistry>> {
    let client = HttpSchemaRegistry::new(RegistryOptions::new(url));
    Ok(Arc::new(client.map_err(|error| coded(Exit::Usage, error.to_string()))?))
}
