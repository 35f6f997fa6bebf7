//! Which bytes are taken as a module, and what they say about themselves.
//!
//! Modules come from strangers. Everything is checked here, in linear time and without compiling: what kind of
//! binary it is, that it is valid under the features that are on, that no count is absurd, and that it keeps to a
//! contract. Error words are Redpanda's where it has them, plus what to do.

use std::collections::BTreeSet;

use wasmparser::{
    ExternalKind, FuncType, Parser, Payload, ProducersSectionReader, TypeRef, Validator, WasmFeatures,
};

use crate::ports::ModuleError;
use crate::wasm::transform::{PAGE, TABLES};

/// Largest module that is taken when nobody says otherwise, as in Redpanda.
pub(super) const MAX_MODULE_BYTES: usize = 10 << 20;

/// Bounds of what is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdmissionLimits {
    /// Largest module, in bytes.
    pub(super) module_bytes: usize,
    pub(super) functions: usize,
    /// Largest body of one function, in bytes.
    pub(super) function_bytes: usize,
    /// Largest product of a function's blocks and its local variables: the values that the compiler may have to
    /// follow, some hundreds of bytes each.
    pub(super) function_weight: u64,
    pub(super) types: usize,
    pub(super) globals: usize,
    /// Most data segments, and most element segments.
    pub(super) segments: usize,
    pub(super) imports: usize,
    pub(super) exports: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            module_bytes: MAX_MODULE_BYTES,
            functions: 50_000,
            function_bytes: 1 << 20,
            function_weight: 8_000_000,
            types: 10_000,
            globals: 10_000,
            segments: 50_000,
            imports: 1_000,
            exports: 50_000,
        }
    }
}

/// What a module and the host agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// Redpanda's transform ABI.
    Transform {
        /// The highest version whose marker it imports.
        version: u32,
    },
}

/// What a module says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// The contract that it keeps to.
    pub contract: Contract,
    /// Whether it uses the schema registry.
    pub uses_schema_registry: bool,
    /// What it imports, as `module.name`, in its order.
    pub imports: Vec<String>,
    /// What it exports, in its order.
    pub exports: Vec<String>,
    /// Bytes of memory that it needs to start.
    pub memory_min: u64,
    /// Bytes of memory beyond which it will not grow by itself.
    pub memory_max: Option<u64>,
    /// How many functions it defines.
    pub functions: usize,
    /// Tools that made it, as `processed-by rustc 1.95.0`, where it says so.
    pub producers: Vec<String>,
}

/// Checks a module and describes it, without compiling it.
pub fn inspect(bytes: &[u8]) -> Result<ModuleInfo, ModuleError> {
    inspect_within(bytes, &AdmissionLimits::default())
}

/// Checks a module against these limits and describes it.
pub(super) fn inspect_within(bytes: &[u8], limits: &AdmissionLimits) -> Result<ModuleInfo, ModuleError> {
    refuse_other_kinds(bytes)?;
    if bytes.len() > limits.module_bytes {
        return Err(ModuleError::TooLarge(format!(
            "the module has {} bytes, the limit is {}: build it for size (opt-level = \"s\", strip = true)",
            bytes.len(),
            limits.module_bytes
        )));
    }
    let mut survey = Survey::default();
    survey.read(bytes, limits)?;
    survey.conclude()
}

/// Features that are on: what the SDKs' toolchains use, and nothing that brings state or time of its own.
fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::FLOATS
        | WasmFeatures::EXTENDED_CONST
}

fn refuse_other_kinds(bytes: &[u8]) -> Result<(), ModuleError> {
    let what = match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => {
            "it is a WebAssembly component, and this version runs core modules only: build it for wasm32-wasip1 \
             with the transform SDK"
        }
        [0, b'a', b's', b'm', ..] => "it is WebAssembly of an unknown version: build it for wasm32-wasip1",
        [] => "there are no bytes",
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is an ELF file: a native program, or code that was compiled ahead of time, which is not taken from \
             outside; give the .wasm file that it was made from"
        }
        [0x1f, 0x8b, ..] => "it is compressed with gzip: unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed with zstd: unpack it first",
        [b'M', b'Z', ..] => "it is a Windows program: build for wasm32-wasip1",
        bytes if bytes.trim_ascii_start().starts_with(b"(module") => {
            "it is WebAssembly text: translate it first, for instance with `wat2wasm`"
        }
        bytes if bytes.iter().take(512).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
            "it is text: give a .wasm file"
        }
        _ => "it does not begin with the bytes \\0asm: give a .wasm file",
    };
    Err(invalid(what))
}

fn invalid(reason: impl std::fmt::Display) -> ModuleError {
    ModuleError::Invalid(format!("invalid WebAssembly: {reason}"))
}

/// What was seen while reading.
#[derive(Default)]
struct Survey {
    types: Vec<FuncType>,
    /// Type of each function, imported ones first.
    function_types: Vec<u32>,
    imports: Vec<(String, String, Option<u32>)>,
    exports: Vec<(String, ExternalKind, u32)>,
    memories: Vec<wasmparser::MemoryType>,
    functions: usize,
    producers: Vec<String>,
}

impl Survey {
    fn read(&mut self, bytes: &[u8], limits: &AdmissionLimits) -> Result<(), ModuleError> {
        let mut validator = Validator::new_with_features(features());
        let mut allocations = wasmparser::FuncValidatorAllocations::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.map_err(invalid)?;
            bound_counts(&payload, limits)?;
            if let Payload::CodeSectionEntry(body) = &payload {
                bound_weight(body, limits).map_err(invalid)??;
            }
            if let wasmparser::ValidPayload::Func(function, body) =
                validator.payload(&payload).map_err(invalid)?
            {
                let mut function = function.into_validator(std::mem::take(&mut allocations));
                function.validate(&body).map_err(invalid)?;
                allocations = function.into_allocations();
            }
            self.note(payload).map_err(invalid)?;
        }
        Ok(())
    }

    fn note(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    self.types.push(ty?);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let ty = match import.ty {
                        TypeRef::Func(ty) => {
                            self.function_types.push(ty);
                            Some(ty)
                        }
                        TypeRef::Memory(memory) => {
                            self.memories.push(memory);
                            None
                        }
                        _ => None,
                    };
                    self.imports.push((import.module.to_owned(), import.name.to_owned(), ty));
                }
            }
            Payload::FunctionSection(section) => {
                self.functions = section.count() as usize;
                for ty in section {
                    self.function_types.push(ty?);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memories.push(memory?);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    self.exports.push((export.name.to_owned(), export.kind, export.index));
                }
            }
            Payload::CustomSection(section) if section.name() == "producers" => {
                // For people only: a section that makes no sense is not held against the module.
                self.producers = producers(section.data(), section.data_offset()).unwrap_or_default();
            }
            _ => {}
        }
        Ok(())
    }

    fn conclude(self) -> Result<ModuleInfo, ModuleError> {
        self.check_exports()?;
        let version = self.abi_version()?;
        let uses_schema_registry = self.check_schema_registry()?;
        let memory = self.memories.first().ok_or_else(missing_wasi)?;
        let pages = |count: u64| count.saturating_mul(PAGE);
        Ok(ModuleInfo {
            contract: Contract::Transform { version },
            uses_schema_registry,
            memory_min: pages(memory.initial),
            memory_max: memory.maximum.map(pages),
            functions: self.functions,
            imports: self.imports.into_iter().map(|(module, name, _)| format!("{module}.{name}")).collect(),
            exports: self.exports.into_iter().map(|(name, ..)| name).collect(),
            producers: self.producers,
        })
    }

    fn check_exports(&self) -> Result<(), ModuleError> {
        let find = |wanted: &str| self.exports.iter().find(|(name, ..)| name == wanted);
        match find("_start") {
            Some((_, ExternalKind::Func, index)) if self.is_nullary(self.type_of(*index)) => {}
            _ => return Err(missing_wasi()),
        }
        match find("memory") {
            Some((_, ExternalKind::Memory, _)) => Ok(()),
            _ => Err(missing_wasi()),
        }
    }

    fn abi_version(&self) -> Result<u32, ModuleError> {
        const MODULE: &str = "redpanda_transform";
        let versions = [2, 1, 3];
        let found = versions.into_iter().filter(|version| {
            let name = format!("check_abi_version_{version}");
            self.imports
                .iter()
                .any(|(module, found, ty)| module == MODULE && *found == name && self.is_nullary(ty.as_ref()))
        });
        found.max().ok_or_else(|| {
            let hint = if self.imports.iter().any(|(module, ..)| module == MODULE) {
                "it uses the transform ABI without its version marker: build it with version 0.1.0 or newer of the SDK"
            } else if self.imports.iter().any(|(module, ..)| module.starts_with("wasi:")) {
                "it looks like a component's core module: build it for wasm32-wasip1"
            } else {
                "it does not use the transform ABI: build it with redpanda-transform-sdk and call \
                 on_record_written from main"
            };
            ModuleError::Invalid(format!("invalid WebAssembly - invalid SDK: {hint}"))
        })
    }

    fn check_schema_registry(&self) -> Result<bool, ModuleError> {
        let names = || {
            let imports = self.imports.iter().filter(|(module, ..)| module == "redpanda_schema_registry");
            imports.map(|(_, name, ty)| (name.as_str(), ty))
        };
        for (name, ty) in names().filter(|(name, _)| name.starts_with("check_abi_version_")) {
            if name != "check_abi_version_0" || !self.is_nullary(ty.as_ref()) {
                return Err(ModuleError::Invalid(format!(
                    "invalid WebAssembly - invalid schema registry SDK: it asks for {name}, this host has \
                     check_abi_version_0"
                )));
            }
        }
        Ok(names().next().is_some())
    }

    fn type_of(&self, function: u32) -> Option<&u32> {
        self.function_types.get(function as usize)
    }

    fn is_nullary(&self, ty: Option<&u32>) -> bool {
        ty.and_then(|ty| self.types.get(*ty as usize))
            .is_some_and(|ty| ty.params().is_empty() && ty.results().is_empty())
    }
}

fn missing_wasi() -> ModuleError {
    ModuleError::Invalid(
        "invalid WebAssembly - not compiled for wasi/wasm32: it has to export a function `_start` without \
         parameters and a memory named `memory`; build a program, not a library, for wasm32-wasip1"
            .to_owned(),
    )
}

/// The sentence for imports that nobody defines.
pub(super) fn unknown_imports(
    info: &ModuleInfo,
    is_known: impl Fn(&str, &str) -> bool,
) -> Option<ModuleError> {
    let unknown: BTreeSet<&str> = info
        .imports
        .iter()
        .filter(|import| import.split_once('.').is_none_or(|(module, name)| !is_known(module, name)))
        .map(String::as_str)
        .collect();
    if unknown.is_empty() {
        return None;
    }
    let shown: Vec<_> = unknown.iter().take(10).map(|name| name.escape_debug().to_string()).collect();
    let more = unknown.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(ModuleError::Invalid(format!(
        "invalid WebAssembly: unknown import {}{more} has not been defined: this host offers redpanda_transform, \
         redpanda_schema_registry and wasi_snapshot_preview1; remove what needs the import",
        shown.join(", ")
    )))
}

fn bound_counts(payload: &Payload<'_>, limits: &AdmissionLimits) -> Result<(), ModuleError> {
    let (count, limit, what) = match payload {
        Payload::TypeSection(section) => (section.count() as usize, limits.types, "types"),
        Payload::ImportSection(section) => (section.count() as usize, limits.imports, "imports"),
        Payload::ExportSection(section) => (section.count() as usize, limits.exports, "exports"),
        Payload::FunctionSection(section) => (section.count() as usize, limits.functions, "functions"),
        Payload::TableSection(section) => (section.count() as usize, TABLES, "tables"),
        Payload::GlobalSection(section) => (section.count() as usize, limits.globals, "globals"),
        Payload::ElementSection(section) => (section.count() as usize, limits.segments, "element segments"),
        Payload::DataSection(section) => (section.count() as usize, limits.segments, "data segments"),
        Payload::CodeSectionEntry(body) => {
            let range = body.range();
            (range.end - range.start, limits.function_bytes, "bytes in one function")
        }
        _ => return Ok(()),
    };
    if count > limit {
        return Err(ModuleError::TooLarge(format!("the module has {count} {what}, the limit is {limit}")));
    }
    Ok(())
}

fn bound_weight(
    body: &wasmparser::FunctionBody<'_>,
    limits: &AdmissionLimits,
) -> wasmparser::Result<Result<(), ModuleError>> {
    let mut variables = 0u64;
    for group in body.get_locals_reader()? {
        variables += u64::from(group?.0);
    }
    let mut blocks = 1u64;
    for operator in body.get_operators_reader()? {
        use wasmparser::Operator::{Block, BrIf, BrTable, If, Loop};
        if matches!(operator?, Block { .. } | Loop { .. } | If { .. } | BrIf { .. } | BrTable { .. }) {
            blocks += 1;
        }
    }
    if blocks.saturating_mul(variables) <= limits.function_weight {
        return Ok(Ok(()));
    }
    Ok(Err(ModuleError::TooLarge(format!(
        "a function of the module has {blocks} blocks and {variables} local variables, which takes too much memory to \
         compile: build it with optimizations, or split the function"
    ))))
}

fn producers(data: &[u8], offset: usize) -> wasmparser::Result<Vec<String>> {
    let mut found = Vec::new();
    let reader = ProducersSectionReader::new(wasmparser::BinaryReader::new(data, offset))?;
    for field in reader.into_iter().take(8) {
        let field = field?;
        for value in field.values.into_iter().take(8) {
            let value = value?;
            let text = format!("{} {} {}", field.name, value.name, value.version);
            found.push(text.chars().filter(|character| !character.is_control()).take(120).collect());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_bounded() {
        let text = r#"(module (import "redpanda_transform" "check_abi_version_1" (func)) (memory (export "memory") 1)
            (global i32 (i32.const 0)) (data (i32.const 0) "x") (func (export "_start") (local i32) nop nop nop nop))"#;
        let bytes = wat::parse_str(text).unwrap();
        let generous = AdmissionLimits::default();
        assert!(inspect_within(&bytes, &generous).is_ok());
        let cases = [
            (AdmissionLimits { module_bytes: 50, ..generous }, "the limit is 50"),
            (AdmissionLimits { functions: 0, ..generous }, "1 functions, the limit is 0"),
            (AdmissionLimits { function_bytes: 3, ..generous }, "bytes in one function, the limit is 3"),
            (AdmissionLimits { function_weight: 0, ..generous }, "1 blocks and 1 local variables"),
            (AdmissionLimits { types: 0, ..generous }, "1 types"),
            (AdmissionLimits { globals: 0, ..generous }, "1 globals"),
            (AdmissionLimits { segments: 0, ..generous }, "1 data segments"),
            (AdmissionLimits { imports: 0, ..generous }, "1 imports"),
            (AdmissionLimits { exports: 1, ..generous }, "2 exports"),
        ];
        for (limits, says) in cases {
            let error = inspect_within(&bytes, &limits).expect_err(says);
            assert!(matches!(&error, ModuleError::TooLarge(message) if message.contains(says)), "{error}");
        }
    }
}
