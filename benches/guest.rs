//! What a guest costs: per record, per start, and in memory while it idles.
//!
//! `cargo bench --bench guest`. One core; 1-KiB values in batches of 1000. The limit to compare with is a bare call
//! into wasm with a copy of the record in and a copy out.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/guests/harness.rs"]
mod harness;

use std::time::{Duration, Instant};

use coproc::core::record::Batch;
use coproc::ports::{Engine, Guest, Run};
use coproc::wasm::{WasmOptions, Wasmtime, digest_of};
use wasmtime::{Config, Instance, Module, Store};

use harness::{Host, batch, budget, module, wat};

const RECORDS: usize = 1000;
const VALUE: usize = 1024;
const ROUNDS: usize = 7;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let batches = if quick { 2 } else { 1000 };
    println!("per record, {VALUE}-byte values, batches of {RECORDS}, best and median of {ROUNDS} rounds:");
    report("identity with the Rust SDK", &guest_rounds(&module("identity"), batches));
    let copy = wat("(func $each (param $len i32) (call $copy (local.get $len)))");
    report("identity without SDK (hand-written)", &guest_rounds(&copy, batches));
    let skip = wat("(func $each (param $len i32))");
    report("reads and writes nothing (hand-written)", &guest_rounds(&skip, batches));
    report("limit: bare call, copy in, copy out", &bare_rounds(batches));
    println!("starts, of the identity module with the Rust SDK:");
    starts(quick);
    memory(if quick { 10 } else { 1000 });
}

fn report(what: &str, rounds: &[f64]) {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    println!("  {what:<42} {:>7.0} ns {:>7.0} ns", sorted[0], sorted[sorted.len() / 2]);
}

fn rounds(batches: usize, mut one_batch: impl FnMut()) -> Vec<f64> {
    one_batch();
    let round = || {
        let begin = Instant::now();
        for _ in 0..batches {
            one_batch();
        }
        begin.elapsed().as_nanos() as f64 / (batches * RECORDS) as f64
    };
    std::iter::repeat_with(round).take(ROUNDS).collect()
}

fn values() -> Batch {
    batch(&vec![[b'v'; VALUE]; RECORDS])
}

fn guest_rounds(bytes: &[u8], batches: usize) -> Vec<f64> {
    let mut guest = Host::of(bytes).start();
    let (mut records, budget) = (Some(values()), budget());
    rounds(batches, || {
        guest.offer(records.take().unwrap_or_else(values), 0);
        assert_eq!(guest.run(&budget), Run::Finished);
        guest.outputs().clear();
        records = Some(guest.withdraw());
    })
}

/// No host functions, no fiber, no deadline: the floor under every host.
fn bare_rounds(batches: usize) -> Vec<f64> {
    let engine = wasmtime::Engine::new(&Config::new()).unwrap();
    let text = r#"(module (memory (export "memory") 2)
        (func (export "f") (param i32) (result i32) (local.get 0)))"#;
    let module = Module::new(&engine, ::wat::parse_str(text).unwrap()).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let memory = instance.get_memory(&mut store, "memory").unwrap();
    let call = instance.get_typed_func::<i32, i32>(&mut store, "f").unwrap();
    let (records, mut out) = (values(), Vec::new());
    rounds(batches, || {
        out.clear();
        for record in records.iter() {
            let size = record.payload.len();
            memory.data_mut(&mut store)[1024..1024 + size].copy_from_slice(record.payload);
            let size = call.call(&mut store, size as i32).unwrap() as usize;
            out.extend_from_slice(&memory.data(&store)[1024..1024 + size]);
        }
    })
}

fn starts(quick: bool) {
    let dir = tempfile::tempdir().unwrap();
    let bytes = module("identity");
    let open = || {
        let options = WasmOptions { cache_dir: Some(dir.path().join("code")), ..WasmOptions::default() };
        Wasmtime::new(options, None).unwrap()
    };
    for what in ["cold: engine, compile, start, first record", "warm: the same, code from the cache"] {
        let begin = Instant::now();
        let engine = open();
        let made = begin.elapsed();
        let program = engine.compile(&bytes, digest_of(&bytes)).unwrap();
        let compiled = begin.elapsed();
        first_record(Host::on(&engine, &bytes).start());
        println!(
            "  {what:<42} {:>10.2?} (engine {made:.2?}, compile {:.2?})",
            begin.elapsed(),
            compiled.saturating_sub(made)
        );
        drop(program);
    }
    let host = Host::on(&open(), &bytes);
    let count = if quick { 3 } else { 1000 };
    let begin = Instant::now();
    for _ in 0..count {
        first_record(host.start());
    }
    println!("  {:<42} {:>10.2?}", "instance: start, first record, drop", begin.elapsed() / count);
}

fn first_record(mut guest: Box<dyn Guest>) {
    guest.offer(batch(&["x"]), 0);
    assert_eq!(guest.run(&budget()), Run::Finished);
}

fn memory(count: u32) {
    let host = Host::of(&module("identity"));
    let mut guests: Vec<Box<dyn Guest>> = vec![host.start()];
    let (before, begin) = (resident(), Instant::now());
    guests.extend((0..count).map(|_| host.start()));
    let each = begin.elapsed() / count;
    let after = resident();
    println!("{count} idle instances: {} KiB each, {each:.2?} each", (after - before) / i64::from(count));
    // The ticker goes to sleep, and the process with it.
    std::thread::sleep(Duration::from_millis(300));
    let before = switches();
    std::thread::sleep(Duration::from_millis(500));
    println!("wake-ups while idle, in half a second: {}", switches() - before);
}

/// Resident memory in KiB.
fn resident() -> i64 {
    field("/proc/self/status", "VmRSS:")
}

fn switches() -> i64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    threads
        .map(|thread| field(&thread.path().join("status").to_string_lossy(), "voluntary_ctxt_switches:"))
        .sum()
}

fn field(path: &str, name: &str) -> i64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
