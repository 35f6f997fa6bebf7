//! The engine: wasmtime with our settings, from bytes to programs.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine as Runtime, Module, OptLevel};

use crate::core::digest::Digest;
use crate::ports::{Engine, ModuleError, Program, SchemaRegistry};

use super::admission::{self, AdmissionLimits, MAX_MODULE_BYTES, ModuleInfo};
use super::cache::CodeCache;
use super::compiler::Compiler;
use super::digest_of;
use super::helper::{Bounds, Children, CompileHelper};
use super::ticker::Ticker;
use super::transform::{Bindings, Host, TransformProgram};

/// Stack that a guest may use.
const GUEST_STACK: usize = 512 << 10;
/// Stack of a fiber: the guest's, and room for the host functions that it calls. Pages that are never touched
/// take no memory.
const FIBER_STACK: usize = 2 << 20;

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct WasmOptions {
    /// Largest module that is taken, in bytes.
    pub max_module_bytes: usize,
    /// Longest time that a module may compile.
    pub compile_timeout: Duration,
    /// Most modules that are compiled at a time.
    pub compile_threads: usize,
    /// Where modules are compiled: in a child process, or with `None` in this one, where a module that is made for
    /// it can take all the memory.
    pub compile_helper: Option<CompileHelper>,
    /// Most memory of a child process that compiles, in bytes.
    pub compile_memory: u64,
    /// A private directory for compiled code; `None` compiles anew at every start.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of compiled code that are kept there.
    pub cache_bytes: u64,
}

impl Default for WasmOptions {
    fn default() -> Self {
        Self {
            max_module_bytes: MAX_MODULE_BYTES,
            compile_timeout: Duration::from_mins(1),
            compile_threads: std::thread::available_parallelism().map_or(1, usize::from).min(4),
            compile_helper: None,
            compile_memory: 2 << 30,
            cache_dir: None,
            cache_bytes: 1 << 30,
        }
    }
}

/// The engine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime does not take its settings on this machine.
    #[error("cannot set up wasmtime: {0}")]
    Runtime(String),
    /// The cache directory cannot be used.
    #[error("cannot use the cache of compiled modules in {dir:?}: {source}")]
    Cache {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The thread that watches guests cannot be started.
    #[error("cannot start the thread that watches guests: {0}")]
    Ticker(std::io::Error),
}

/// Compiles modules and runs them with wasmtime.
pub struct Wasmtime {
    parts: Arc<Parts>,
    compiler: Compiler,
    limits: AdmissionLimits,
}

/// What a compilation needs.
struct Parts {
    host: Arc<Host>,
    bindings: Bindings,
    cache: Option<CodeCache>,
    helper: Option<CompileHelper>,
    children: Children,
    bounds: Bounds,
}

impl Wasmtime {
    /// Sets up the engine. Guests that ask for schemas get an error when `registry` is `None`.
    pub fn new(
        options: WasmOptions,
        registry: Option<Arc<dyn SchemaRegistry>>,
    ) -> Result<Arc<Self>, EngineError> {
        let failed = |error: wasmtime::Error| EngineError::Runtime(format!("{error:#}"));
        let engine = runtime().map_err(failed)?;
        let cache = match options.cache_dir {
            None => None,
            Some(dir) => Some(
                CodeCache::open(&dir, compatibility(&engine), options.cache_bytes)
                    .map_err(|source| EngineError::Cache { dir, source })?,
            ),
        };
        let ticker = Ticker::start(&engine).map_err(EngineError::Ticker)?;
        let bindings = Bindings::new(&engine, ticker.ticks()).map_err(failed)?;
        let host = Arc::new(Host { engine, ticker, registry });
        let bounds = Bounds { time: options.compile_timeout, memory: options.compile_memory };
        Ok(Arc::new(Self {
            parts: Arc::new(Parts {
                host,
                bindings,
                cache,
                helper: options.compile_helper,
                children: Children::default(),
                bounds,
            }),
            compiler: Compiler::new(options.compile_threads, options.compile_timeout),
            limits: AdmissionLimits { module_bytes: options.max_module_bytes, ..AdmissionLimits::default() },
        }))
    }
}

impl Engine for Wasmtime {
    fn compile(&self, bytes: &[u8], digest: Digest) -> Result<Arc<dyn Program>, ModuleError> {
        let info = admission::inspect_within(bytes, &self.limits)?;
        let found = digest_of(bytes);
        if found != digest {
            return Err(ModuleError::WrongDigest { wanted: digest, found });
        }
        if let Some(error) =
            admission::unknown_imports(&info, |module, name| self.parts.bindings.has(module, name))
        {
            return Err(error);
        }
        let (parts, bytes) = (Arc::clone(&self.parts), bytes.to_vec());
        self.compiler.compile(digest, move || parts.program(&bytes, digest, &info))
    }

    fn cached(&self, digest: Digest) -> Option<Arc<dyn Program>> {
        self.compiler.cached(digest)
    }

    fn stop(&self) {
        self.compiler.stop();
        self.parts.children.stop();
    }
}

impl Parts {
    fn program(
        &self,
        bytes: &[u8],
        digest: Digest,
        info: &ModuleInfo,
    ) -> Result<Arc<dyn Program>, ModuleError> {
        let invalid =
            |error: wasmtime::Error| ModuleError::Invalid(format!("invalid WebAssembly: {error:#}"));
        let module = if let Some(module) = self.cached(digest) {
            module
        } else {
            let code = match &self.helper {
                Some(helper) => helper.compile(bytes, self.bounds, &self.children)?,
                None => self.host.engine.precompile_module(bytes).map_err(invalid)?,
            };
            self.keep(digest, &code);
            self.load(&code).map_err(invalid)?
        };
        let host = Arc::clone(&self.host);
        let program = TransformProgram::new(host, &self.bindings, &module, digest, info.memory_min);
        Ok(Arc::new(program.map_err(invalid)?))
    }

    fn cached(&self, digest: Digest) -> Option<Module> {
        let cache = self.cache.as_ref()?;
        let code = cache.get(digest)?;
        match self.load(&code) {
            Ok(module) => Some(module),
            Err(error) => {
                tracing::warn!(%digest, %error, "compiled code in the cache does not load; the module is compiled again");
                cache.remove(digest);
                None
            }
        }
    }

    fn keep(&self, digest: Digest, code: &[u8]) {
        let Some(cache) = &self.cache else { return };
        if let Err(error) = cache.put(digest, code) {
            tracing::warn!(%digest, %error, "cannot keep compiled code; the module is compiled again at the next start");
        }
    }

    /// Loads code that this program compiled: just now, here or in its child, or earlier, and `CodeCache` has
    /// checked that nobody else wrote it.
    #[allow(
        unsafe_code,
        reason = "machine code can only be loaded this way; compiling in a child process and the cache need it"
    )]
    fn load(&self, code: &[u8]) -> wasmtime::Result<Module> {
        // SAFETY: the bytes are what `precompile_module` returned to this program: the callers are private, and pass
        // the answer of the compiler, or of the cache, whose files only this user writes and which checks a hash
        // over these very bytes. The bytes are copied, so that they cannot change afterwards.
        unsafe { Module::deserialize(&self.host.engine, code) }
    }
}

/// wasmtime with our settings; a child that compiles needs the same.
pub(super) fn runtime() -> wasmtime::Result<Runtime> {
    Runtime::new(&settings())
}

fn settings() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        .async_stack_size(FIBER_STACK)
        // A module that compiles for minutes must not hold the threads that others compile on.
        .parallel_compilation(false)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_simd(true)
        .wasm_bulk_memory(true)
        .wasm_tail_call(true)
        // Replays give the same result on every machine.
        .relaxed_simd_deterministic(true)
        .cranelift_nan_canonicalization(true)
        .wasm_multi_memory(false)
        .wasm_memory64(false);
    config
}

/// What compiled code depends on.
fn compatibility(engine: &Runtime) -> [u8; 32] {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            0
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
    }
    let mut hasher = Sha(Sha256::new());
    // Has wasmtime's version, the target, its features and every setting of the compiler in it.
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().into()
}
