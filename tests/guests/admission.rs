//! Which bytes are taken as a module, what is said about the others, and how often they are compiled.

use std::sync::Arc;
use std::time::Duration;

use coproc::ports::{Engine, ModuleError, Run};
use coproc::wasm::{Contract, WasmOptions, Wasmtime, digest_of, inspect};
use proptest::prelude::*;

use crate::harness::{Host, engine, give, module, wat};

fn refused(bytes: &[u8]) -> String {
    let error = engine().compile(bytes, digest_of(bytes)).err().expect("it is refused");
    assert!(matches!(error, ModuleError::Invalid(_) | ModuleError::TooLarge(_)), "{error:?}");
    error.to_string()
}

fn refused_text(text: &str) -> String {
    refused(&::wat::parse_str(text).unwrap())
}

#[test]
fn other_kinds_of_files_are_named() {
    for (bytes, says) in [
        (&b""[..], "no bytes"),
        (b"\x7fELF\x02\x01", "ELF"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x02\0\0\0", "unknown version"),
        (b"\n (module)", "text"),
        (b"#!/bin/sh\n", "it is text"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xff\xfe\x00", "\\0asm"),
        (b"\0asm\x01\0\0\0\x01", "invalid WebAssembly: unexpected end"),
    ] {
        let error = refused(bytes);
        assert!(error.starts_with("invalid WebAssembly") && error.contains(says), "{bytes:?}: {error}");
    }
    // Code that was compiled ahead of time is never taken, not even wasmtime's own.
    let wasmtime = wasmtime::Engine::default();
    let code = wasmtime::Module::new(&wasmtime, module("identity")).unwrap().serialize().unwrap();
    assert!(refused(&code).contains("ahead of time"));
}

#[test]
fn modules_that_keep_to_no_contract_are_refused() {
    let marker = r#"(import "redpanda_transform" "check_abi_version_1" (func))"#;
    let memory = r#"(memory (export "memory") 1)"#;
    let start = r#"(func (export "_start"))"#;
    let wasi = "not compiled for wasi/wasm32";
    for (text, says) in [
        (String::new(), wasi),
        (format!("{marker} {memory}"), wasi),
        (format!("{marker} {start}"), wasi),
        (format!(r#"{marker} {start} (memory (export "mem") 1)"#), wasi),
        (format!(r#"{marker} {memory} (func (export "_start") (param i32))"#), wasi),
        (format!(r#"{marker} {memory} (global (export "_start") i32 (i32.const 0))"#), wasi),
        (format!("{memory} {start}"), "invalid SDK: it does not use the transform ABI"),
        (
            format!(
                r#"(import "redpanda_transform" "check_abi_version_1" (func (param i32))) {memory} {start}"#
            ),
            "invalid SDK",
        ),
        (
            format!(r#"(import "redpanda_transform" "write_record" (func)) {memory} {start}"#),
            "without its version marker",
        ),
        (
            format!(
                r#"(import "redpanda_schema_registry" "check_abi_version_1" (func)) {marker} {memory} {start}"#
            ),
            "invalid schema registry SDK",
        ),
        (
            format!(r#"(import "env" "one" (func)) (import "env" "two" (func)) {marker} {memory} {start}"#),
            "unknown import env.one, env.two has not been defined",
        ),
        (
            format!(r#"(import "redpanda_transform" "write_record" (func)) {marker} {memory} {start}"#),
            "incompatible import type",
        ),
        (format!("{marker} {memory} {start} (memory 1)"), "multiple memories"),
        (format!(r#"{marker} (memory (export "memory") i64 1) {start}"#), "memory64"),
        (format!(r#"{marker} (memory (export "memory") 1 1 shared) {start}"#), "threads"),
        (format!("{marker} {memory} {start} (tag)"), "exceptions"),
        (
            format!(
                "{marker} {memory} {start} (table 1 externref) (table 1 externref) (table 1 externref) (table 1 externref) (table 1 externref)"
            ),
            "tables, the limit is 4",
        ),
    ] {
        let error = refused_text(&format!("(module {text})"));
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_large_module_is_refused() {
    let options = WasmOptions { max_module_bytes: 1000, ..WasmOptions::default() };
    let engine = Wasmtime::new(options, None).unwrap();
    let bytes = module("identity");
    let error = engine.compile(&bytes, digest_of(&bytes)).err().unwrap();
    assert!(matches!(&error, ModuleError::TooLarge(says) if says.contains("the limit is 1000")), "{error}");
}

#[test]
fn modules_are_described() {
    let info = inspect(&module("schemas")).unwrap();
    assert_eq!(info.contract, Contract::Transform { version: 2 });
    assert!(info.uses_schema_registry);
    assert!(info.imports.contains(&"redpanda_transform.read_next_record".to_owned()));
    assert!(info.exports.contains(&"_start".to_owned()));
    assert_eq!((info.memory_min % 65536, info.memory_max), (0, None));
    assert!(info.functions > 100);
    assert!(info.producers.iter().any(|producer| producer.contains("rustc")), "{:?}", info.producers);
    assert!(!inspect(&module("identity")).unwrap().uses_schema_registry);
}

#[test]
fn the_digest_has_to_fit() {
    let error = engine().compile(&module("identity"), digest_of(b"other")).err().unwrap();
    assert!(matches!(error, ModuleError::WrongDigest { .. }));
}

#[test]
fn a_program_in_use_is_shared() {
    let bytes = wat("(func $each (param i32)) (data (i32.const 0) \"shared\")");
    let compile = || engine().compile(&bytes, digest_of(&bytes)).unwrap();
    let first = compile();
    assert!(Arc::ptr_eq(&first, &compile()));
}

#[test]
fn compiled_code_is_kept_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("code");
    let bytes = module("uppercase");
    let open = || {
        let options = WasmOptions { cache_dir: Some(cache.clone()), ..WasmOptions::default() };
        Wasmtime::new(options, None).unwrap()
    };
    let works = || {
        let (run, _, written) = give(Host::on(&open(), &bytes).start().as_mut(), &["x"]);
        assert_eq!((run, written), (Run::Finished, vec!["0/0:X".to_owned()]));
    };
    let files = || std::fs::read_dir(&cache).unwrap().flatten().map(|file| file.path()).collect::<Vec<_>>();
    works();
    let [file] = &files()[..] else { panic!("one file") };
    let good = std::fs::read(file).unwrap();
    works();
    assert_eq!(std::fs::read(file).unwrap(), good, "it was used, not made again");
    for at in [0, 20, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(file, &bad).unwrap();
        works();
        assert_eq!(std::fs::read(file).unwrap(), good, "made again after byte {at} was changed");
    }
    std::fs::write(file, &good[..good.len() / 2]).unwrap();
    works();
}

#[test]
fn a_compilation_that_takes_too_long_is_given_up() {
    let options = WasmOptions { compile_timeout: Duration::ZERO, ..WasmOptions::default() };
    let engine = Wasmtime::new(options, None).unwrap();
    let bytes = module("prints");
    let error = engine.compile(&bytes, digest_of(&bytes)).err().unwrap();
    assert!(matches!(error, ModuleError::CompileTimeout(_)), "{error}");
}

proptest! {
    #[test]
    fn damaged_modules_do_no_harm(at in 8usize..60_000, bit in 0u8..8, cut in proptest::option::of(8usize..60_000)) {
        let mut bytes = module("identity");
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let _ = inspect(&bytes);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool) {
        let bytes = if magic { [b"\0asm\x01\0\0\0", &bytes[..]].concat() } else { bytes };
        prop_assert!(inspect(&bytes).is_err());
    }
}
