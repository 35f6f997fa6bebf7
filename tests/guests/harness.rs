//! What the guest tests and the benchmark share: modules, a host for them, batches in and records out.

#![allow(dead_code, reason = "each user of this file needs a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use coproc::core::record::{Batch, Outputs, Record};
use coproc::ports::{
    Engine, Guest, GuestFailure, GuestLimits, GuestLines, GuestSpec, LineLevel, Program, Run, RunBudget,
    SchemaRegistry,
};
use coproc::wasm::{WasmOptions, Wasmtime, digest_of};

/// The bytes of a guest in `tests/guests/`, which are all built once.
pub fn module(name: &str) -> Vec<u8> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(build_guests);
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn build_guests() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target", "wasm32-wasip1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the guests build; is the target wasm32-wasip1 installed?");
    target.join("wasm32-wasip1/release")
}

/// Keeps what guests print: `<` is standard output, `!` standard error.
#[derive(Default)]
pub struct Kept(Mutex<Vec<String>>);

impl Kept {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl GuestLines for Kept {
    fn line(&self, level: LineLevel, text: &str) {
        let mark = if level == LineLevel::Info { '<' } else { '!' };
        self.0.lock().unwrap().push(format!("{mark}{text}"));
    }
}

/// A compiled module and how to start it.
pub struct Host {
    pub program: Arc<dyn Program>,
    pub spec: GuestSpec,
    pub lines: Arc<Kept>,
}

/// The engine that most tests share: a module is compiled once per test run.
pub fn engine() -> Arc<Wasmtime> {
    static ENGINE: OnceLock<Arc<Wasmtime>> = OnceLock::new();
    ENGINE.get_or_init(|| Wasmtime::new(WasmOptions::default(), None).unwrap()).clone()
}

impl Host {
    pub fn of(bytes: &[u8]) -> Self {
        Self::on(&engine(), bytes)
    }

    pub fn with_registry(bytes: &[u8], registry: Arc<dyn SchemaRegistry>) -> Self {
        Self::on(&Wasmtime::new(WasmOptions::default(), Some(registry)).unwrap(), bytes)
    }

    pub fn on(engine: &Wasmtime, bytes: &[u8]) -> Self {
        let program = engine.compile(bytes, digest_of(bytes)).unwrap();
        let spec = GuestSpec {
            name: "under-test".to_owned(),
            step: "only".to_owned(),
            input: "in".parse().unwrap(),
            outputs: vec!["out".parse().unwrap(), "side".parse().unwrap()],
            env: [].into(),
            limits: GuestLimits {
                memory: 4 << 20,
                time_per_record: Duration::from_secs(20),
                max_output_bytes: 1 << 20,
            },
        };
        Self { program, spec, lines: Arc::default() }
    }

    /// Hand-written: `body` is put into the frame that every module needs.
    pub fn wat(body: &str) -> Self {
        Self::of(&wat(body))
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.spec.env.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn time(mut self, time: Duration) -> Self {
        self.spec.limits.time_per_record = time;
        self
    }

    pub fn start(&self) -> Box<dyn Guest> {
        self.try_start().unwrap()
    }

    pub fn try_start(&self) -> Result<Box<dyn Guest>, GuestFailure> {
        self.program.start(&self.spec, self.lines.clone())
    }
}

/// Imports, memory and a few functions; the body has to have `_start`, or `$each` for the usual loop.
pub fn wat(body: &str) -> Vec<u8> {
    let start = if body.contains("$each") { LOOP } else { "" };
    // Imports stand before everything else.
    let (mut imports, mut rest) = (String::new(), body);
    while let Some(at) = rest.trim_start().starts_with("(import").then(|| end_of_list(rest)) {
        imports.push_str(&rest[..at]);
        rest = &rest[at..];
    }
    ::wat::parse_str(format!("(module {IMPORTS} {imports} {FRAME} {rest} {start})")).unwrap()
}

/// Where the first parenthesized list ends.
fn end_of_list(text: &str) -> usize {
    let mut depth = 0;
    for (i, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 1 => return i + 1,
            ')' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

const IMPORTS: &str = r#"
  (import "redpanda_transform" "check_abi_version_2" (func $abi))
  (import "redpanda_transform" "read_batch_header"
    (func $header (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "redpanda_transform" "read_next_record" (func $next (param i32 i32 i32 i32 i32) (result i32)))
  (import "redpanda_transform" "write_record" (func $write (param i32 i32) (result i32)))
  (import "redpanda_transform" "write_record_with_options"
    (func $write_to (param i32 i32 i32 i32) (result i32)))
"#;

const FRAME: &str = r#"
  (memory (export "memory") 2)
  ;; The header goes to 0 and up, a record's attributes, timestamp and offset to 100, 104 and 112, records to 1024.
  (func $batch (result i32)
    (call $header (i32.const 0) (i32.const 8) (i32.const 12) (i32.const 16) (i32.const 20) (i32.const 24)
      (i32.const 32) (i32.const 40) (i32.const 48) (i32.const 52)))
  (func $read (result i32)
    (call $next (i32.const 100) (i32.const 104) (i32.const 112) (i32.const 1024) (i32.const 60000)))
  (func $copy (param $len i32) (drop (call $write (i32.const 1024) (local.get $len))))
"#;

/// Reads all records and gives each, by its length, to `$each`.
const LOOP: &str = r#"
  (func (export "_start") (local $len i32)
    (loop $batches
      (drop (call $batch))
      (loop $records
        (if (i32.ge_s (local.tee $len (call $read)) (i32.const 0))
          (then (call $each (local.get $len)) (br $records))))
      (br $batches)))
"#;

/// A batch of partition 3 with these values, at offsets 10, 12, … and timestamps 1000, 1001, ….
pub fn batch<V: AsRef<[u8]>>(values: &[V]) -> Batch {
    records(&values.iter().map(|value| Record::new(None, Some(value.as_ref()))).collect::<Vec<_>>())
}

/// A batch of these records.
pub fn records(records: &[Record]) -> Batch {
    let mut batch = Batch::default();
    batch.reset(&"in".parse().unwrap(), 3);
    for (i, record) in records.iter().enumerate() {
        let i = i64::try_from(i).unwrap();
        batch.push(10 + 2 * i, record.timestamp.unwrap_or(1000 + i), &record.payload());
    }
    batch
}

/// A budget without bounds that matter.
pub fn budget() -> RunBudget {
    RunBudget {
        stop: Arc::new(AtomicBool::new(false)),
        output_bytes: usize::MAX,
        time: Duration::from_hours(1),
        gently: false,
    }
}

/// The outputs as `topic/source:value`.
pub fn shown(outputs: &Outputs) -> Vec<String> {
    let all = (0..outputs.len()).filter_map(|i| outputs.get(i));
    all.map(|output| {
        let record = Record::from_payload(output.payload, 0).unwrap();
        let value =
            record.value.map_or("null".to_owned(), |value| String::from_utf8_lossy(&value).into_owned());
        format!("{}/{}:{value}", output.topic, output.source)
    })
    .collect()
}

/// Gives a guest these values and returns how it went.
pub fn give<V: AsRef<[u8]>>(guest: &mut dyn Guest, values: &[V]) -> (Run, usize, Vec<String>) {
    guest.offer(batch(values), 0);
    let run = guest.run(&budget());
    let written = shown(guest.outputs());
    guest.outputs().clear();
    let completed = guest.completed();
    if run == Run::Finished {
        guest.withdraw();
    }
    (run, completed, written)
}

/// The failure that a run ended with.
pub fn failure(run: Run) -> GuestFailure {
    match run {
        Run::Failed(failure) => failure,
        other => panic!("expected a failure, not {other:?}"),
    }
}
