//! Compiling in a child process. The test is its own child, so it has a `main` of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::ports::{Engine, ModuleError};
use coproc::wasm::{CompileHelper, WasmOptions, Wasmtime, digest_of, run_compile_helper};

const CHILD: &str = "compile-helper";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == CHILD) {
        return run_compile_helper(&arguments[1..]);
    }
    // `cargo test` passes filters and asks for lists; this file is one test.
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let tests: [(&str, fn()); 5] = [
        ("a_child_compiles", a_child_compiles),
        ("a_bomb_harms_only_its_child", a_bomb_harms_only_its_child),
        ("a_slow_module_is_given_up", a_slow_module_is_given_up),
        ("other_programs_are_no_helpers", other_programs_are_no_helpers),
        ("the_child_checks_how_it_is_called", the_child_checks_how_it_is_called),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
    println!("{} passed, 0 failed", tests.len());
    ExitCode::SUCCESS
}

fn helper() -> CompileHelper {
    CompileHelper { program: std::env::current_exe().unwrap(), arguments: vec![CHILD.to_owned()] }
}

fn engine(change: impl FnOnce(&mut WasmOptions)) -> Arc<Wasmtime> {
    let mut options = WasmOptions { compile_helper: Some(helper()), ..WasmOptions::default() };
    change(&mut options);
    Wasmtime::new(options, None).unwrap()
}

fn module(locals: usize, statements: usize) -> Vec<u8> {
    let statement = |i: usize| {
        let (a, b) = (i % locals, (i * 7919) % locals);
        format!("(if (local.get {a}) (then (local.set {b} (i32.add (local.get {a}) (local.get {b})))))")
    };
    let body: String = (0..statements).map(statement).collect();
    let text = format!(
        r#"(module (import "redpanda_transform" "check_abi_version_1" (func)) (memory (export "memory") 1)
           (func (export "_start") (local {}) {body}))"#,
        "i32 ".repeat(locals)
    );
    wat::parse_str(text).unwrap()
}

fn compile(engine: &Wasmtime, bytes: &[u8]) -> Result<(), ModuleError> {
    engine.compile(bytes, digest_of(bytes)).map(drop)
}

fn a_child_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("code");
    let bytes = module(3, 10);
    compile(&engine(|options| options.cache_dir = Some(cache.clone())), &bytes).unwrap();
    // What the child made is what this process would have made, and is kept.
    let without = |options: &mut WasmOptions| {
        options.cache_dir = Some(cache);
        options.compile_helper = Some(CompileHelper { program: "/nowhere".into(), arguments: vec![] });
    };
    compile(&engine(without), &bytes).unwrap();
}

fn a_bomb_harms_only_its_child() {
    // Within what admission takes, and more than the child is given.
    let engine = engine(|options| options.compile_memory = 200 << 20);
    let error = compile(&engine, &module(1900, 4000)).unwrap_err();
    assert!(matches!(&error, ModuleError::TooLarge(says) if says.contains("200 MiB")), "{error:?}");
    compile(&engine, &module(3, 10)).unwrap();
    // And what would take tens of gigabytes is not even tried.
    let begin = Instant::now();
    let error = compile(&engine, &module(1900, 19_000)).unwrap_err();
    assert!(
        matches!(&error, ModuleError::TooLarge(says) if says.contains("1900 local variables")),
        "{error:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
}

fn a_slow_module_is_given_up() {
    let engine = engine(|options| options.compile_timeout = Duration::from_millis(100));
    let error = compile(&engine, &module(500, 15_000)).unwrap_err();
    assert!(matches!(error, ModuleError::CompileTimeout(_)), "{error:?}");
}

fn other_programs_are_no_helpers() {
    for (program, says) in [("/nowhere/at/all", "cannot start"), ("/bin/true", "ended with code 0")] {
        let engine = engine(|options| {
            options.compile_helper = Some(CompileHelper { program: program.into(), arguments: vec![] });
        });
        let error = compile(&engine, &module(3, 11)).unwrap_err();
        assert!(matches!(&error, ModuleError::Unavailable(message) if message.contains(says)), "{error:?}");
    }
}

fn the_child_checks_how_it_is_called() {
    for arguments in [&[][..], &["1".to_owned()], &["x".to_owned(), "y".to_owned()]] {
        let debug = format!("{:?}", run_compile_helper(arguments));
        assert_eq!(debug, format!("{:?}", ExitCode::from(2)));
    }
}
