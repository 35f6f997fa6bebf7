//! What tests of the node share: a node on an embedded log in a directory of its own, small guests, waiting.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coproc::control::modules::{self, TopicStore};
use coproc::control::observed;
use coproc::control::writer::{DesiredWriter, Error};
use coproc::core::deployment::Deployment;
use coproc::core::digest::Digest;
use coproc::core::names::{Identity, Installation, NodeId, PoolName, TopicName};
use coproc::core::record::Record;
use coproc::core::status::{DeploymentStatus, State};
use coproc::log::{EmbeddedLog, Options};
use coproc::node::bounds::Bounds;
use coproc::node::{Node, NodeConfig, NodeParts};
use coproc::ports::{Engine, Fetched, Log, Produce, ReadFrom, TopicConfig};
use coproc::telemetry::clock::SystemClock;
use coproc::wasm::{WasmOptions, Wasmtime};

/// The longest that anything here may take before the test fails. Nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `ready` gives something; fails with what `what` says after a long time.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest of the transform ABI in WAT. `before` runs for each record with its payload at 4096, `$len` bytes long;
/// then the payload is written.
pub fn guest(before: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "redpanda_transform" "check_abi_version_2" (func $check))
        (import "redpanda_transform" "read_batch_header"
            (func $header (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "redpanda_transform" "read_next_record"
            (func $next (param i32 i32 i32 i32 i32) (result i32)))
        (import "redpanda_transform" "write_record" (func $write (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $print (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 32)
        (global $loaded (mut i32) (i32.const 0))
        (func $say (param $ptr i32) (param $n i32)
            (i32.store (i32.const 512) (local.get $ptr))
            (i32.store (i32.const 516) (local.get $n))
            (drop (call $print (i32.const 1) (i32.const 512) (i32.const 1) (i32.const 520))))
        (func (export "_start") (local $len i32) (local $skip i32)
            (call $check)
            (loop $batches
                (drop (call $header (i32.const 0) (i32.const 8) (i32.const 16) (i32.const 24) (i32.const 32)
                    (i32.const 40) (i32.const 48) (i32.const 56) (i32.const 64) (i32.const 72)))
                (block $done
                    (loop $records
                        (local.set $len (call $next (i32.const 80) (i32.const 88) (i32.const 96)
                            (i32.const 4096) (i32.const 1572864)))
                        (br_if $done (i32.lt_s (local.get $len) (i32.const 0)))
                        (local.set $skip (i32.const 0))
                        {before}
                        (if (i32.eqz (local.get $skip))
                            (then (drop (call $write (i32.const 4096) (local.get $len)))))
                        (br $records)))
                (br $batches))))"#
    );
    wat::parse_str(text).expect("the guest's text is right")
}

/// Copies every record.
pub fn identity() -> Vec<u8> {
    guest("")
}

/// Replaces the first byte of the value, of records without a key and a value below 64 bytes.
pub fn stamp(mark: char) -> Vec<u8> {
    guest(&format!("(i32.store8 (i32.const 4098) (i32.const {}))", mark as u32))
}

/// Fails at values that start so: `!` traps, `@` loops for ever, `#` eats memory, `$` ends with an error; `~` is left
/// out.
pub fn fragile() -> Vec<u8> {
    guest(
        "(if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 33)) (then unreachable))
         (if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 64)) (then (loop $ever (br $ever))))
         (if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 35))
             (then (loop $eat
                 (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
                 (br $eat))))
         (if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 36)) (then (call $exit (i32.const 1))))
         (if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 126)) (then (local.set $skip (i32.const 1))))",
    )
}

/// Writers of the control topic fence each other; tests on a shared log take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log, and a node on it.
pub struct Rig {
    pub log: Arc<dyn Log>,
    pub node: Option<Node>,
    pub pool: PoolName,
    pub node_id: u32,
    _dir: Option<tempfile::TempDir>,
}

pub fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

pub fn identity_of(name: &str) -> Identity {
    format!("default/_cli/coprocessor/{name}").parse().unwrap()
}

pub fn start_node(log: &Arc<dyn Log>) -> Node {
    start_node_of(log, PoolName::default_name(), 0)
}

/// A node with another engine, or room for fewer lanes.
pub fn start_node_with(log: &Arc<dyn Log>, engine: Arc<dyn Engine>, max_lanes: usize) -> Node {
    start(log, engine, max_lanes, PoolName::default_name(), 0)
}

/// A node that may not start.
pub fn try_to_start_node(log: &Arc<dyn Log>) -> Result<Node, String> {
    let engine = Wasmtime::new(WasmOptions::default(), None).unwrap();
    try_to_start(log, engine, 2_000, PoolName::default_name(), 0).map_err(|error| error.to_string())
}

/// A node of another pool.
pub fn start_node_of(log: &Arc<dyn Log>, pool: PoolName, node_id: u32) -> Node {
    start(log, Wasmtime::new(WasmOptions::default(), None).unwrap(), 2_000, pool, node_id)
}

fn start(
    log: &Arc<dyn Log>,
    engine: Arc<dyn Engine>,
    max_lanes: usize,
    pool: PoolName,
    node_id: u32,
) -> Node {
    try_to_start(log, engine, max_lanes, pool, node_id).unwrap()
}

fn try_to_start(
    log: &Arc<dyn Log>,
    engine: Arc<dyn Engine>,
    max_lanes: usize,
    pool: PoolName,
    node_id: u32,
) -> Result<Node, coproc::node::Error> {
    let log = log.clone();
    let config = NodeConfig {
        node_id: NodeId(node_id),
        pool,
        installation: Installation::default_name(),
        max_lanes,
        http: None,
        incarnation: "test".into(),
        drain: Duration::from_secs(8),
        bounds: Bounds::default(),
    };
    let parts = NodeParts {
        log: log.clone(),
        engine,
        modules: Arc::new(TopicStore::new(log)),
        clock: Arc::new(SystemClock::default()),
    };
    Node::start(config, parts)
}

impl Rig {
    /// A log in a directory of its own, without a node.
    pub fn without_node() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        Self { _dir: Some(dir), ..Self::at(&path) }
    }

    /// A shared log, with a pool of its own, without a node.
    pub fn on(log: Arc<dyn Log>, pool: &str, node_id: u32) -> Self {
        Self { log, node: None, pool: pool.parse().unwrap(), node_id, _dir: None }
    }

    /// Starts the node, or starts it again.
    pub fn start(&mut self) {
        self.node = None;
        self.node = Some(start_node_of(&self.log, self.pool.clone(), self.node_id));
    }

    /// A node on a log in a directory of its own.
    pub fn new() -> Self {
        let mut rig = Self::without_node();
        rig.start();
        rig
    }

    /// A log in this directory, without a node.
    pub fn at(dir: &Path) -> Self {
        Self::on(EmbeddedLog::open(dir, Options::default()).unwrap(), "default", 0)
    }

    pub fn create(&self, name: &str, partitions: u32) {
        let config = TopicConfig { partitions, ..TopicConfig::default() };
        self.log.topics().create(&topic(name), &config).unwrap();
    }

    /// Deploys modules as a chain; `more` is spliced into the JSON form.
    pub fn deploy(
        &self,
        name: &str,
        modules: &[Vec<u8>],
        input: &str,
        outputs: &[&str],
        more: &str,
    ) -> Result<u64, Error> {
        let digests: Vec<Digest> = modules.iter().map(|module| self.upload(module)).collect();
        let deployment = deployment(&digests, input, outputs, more);
        let _alone = alone();
        let writer = DesiredWriter::new(self.log.as_ref(), Installation::default_name());
        writer.deploy(&self.pool, &identity_of(name), &deployment)
    }

    pub fn upload(&self, module: &[u8]) -> Digest {
        let _alone = alone();
        modules::upload(self.log.as_ref(), module).unwrap()
    }

    pub fn put(&self, name: &str, deployment: &Deployment) {
        let _alone = alone();
        self.writer().deploy(&self.pool, &identity_of(name), deployment).unwrap();
    }

    pub fn set_paused(&self, name: &str, paused: bool) {
        let _alone = alone();
        self.writer().set_paused(&identity_of(name), paused).unwrap();
    }

    pub fn writer(&self) -> DesiredWriter<'_> {
        DesiredWriter::new(self.log.as_ref(), Installation::default_name())
    }

    /// What the status topic says of a deployment, with the log read anew.
    pub fn status(&self, name: &str) -> Option<DeploymentStatus> {
        let state = observed::read(self.log.as_ref()).unwrap()?;
        state.nodes().into_iter().find_map(|node| node.status.coprocessors.get(name).cloned())
    }

    /// What one node says of a deployment.
    pub fn status_on(&self, node_id: u32, name: &str) -> Option<DeploymentStatus> {
        let state = observed::read(self.log.as_ref()).unwrap()?;
        let node = state.nodes().into_iter().find(|node| node.status.node_id == NodeId(node_id))?;
        node.status.coprocessors.get(name).cloned()
    }

    pub fn wait_for_state(&self, name: &str, state: State) -> DeploymentStatus {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(name);
            if let Some(status) = status.clone().filter(|status| status.state == state) {
                return status;
            }
            last = status.or(last);
            assert!(Instant::now() < deadline, "{name} does not become {state:?}: {last:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_for_generation(&self, name: &str, generation: u64) -> DeploymentStatus {
        wait_for(&format!("generation {generation} of {name}"), || {
            self.status(name).filter(|at| at.generation == generation && at.state == State::Running)
        })
    }

    pub fn produce(&self, name: &str, values: impl IntoIterator<Item = String>) {
        let records: Vec<Produce> = values
            .into_iter()
            .map(|value| Produce {
                topic: topic(name),
                partition: None,
                record: Record::new(None, Some(value.as_bytes())),
            })
            .collect();
        self.log.produce(&records).unwrap();
    }

    pub fn produce_to(&self, name: &str, partition: u32, values: impl IntoIterator<Item = String>) {
        let records: Vec<Produce> = values
            .into_iter()
            .map(|value| Produce {
                topic: topic(name),
                partition: Some(partition),
                record: Record::new(None, Some(value.as_bytes())),
            })
            .collect();
        self.log.produce(&records).unwrap();
    }

    /// Everything in a topic now.
    pub fn read(&self, name: &str) -> Vec<Fetched> {
        let mut reader = self.log.reader(&topic(name), None, ReadFrom::Start).unwrap();
        let mut all = Vec::new();
        loop {
            let more = reader.fetch(Duration::ZERO).unwrap();
            if more.is_empty() && reader.is_caught_up().unwrap() {
                return all;
            }
            all.extend(more);
        }
    }

    /// Waits until a topic has at least `count` records: their values as text.
    pub fn values(&self, name: &str, count: usize) -> Vec<String> {
        let found = wait_for(&format!("{count} records in {name}"), || {
            let found = self.read(name);
            (found.len() >= count).then_some(found)
        });
        found.into_iter().map(|fetched| text(fetched.record.value)).collect()
    }
}

pub fn text(bytes: Option<Vec<u8>>) -> String {
    String::from_utf8(bytes.unwrap_or_default()).unwrap()
}

pub fn numbers(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{prefix}{i}")).collect()
}

/// A deployment in its JSON form.
pub fn deployment(digests: &[Digest], input: &str, outputs: &[&str], more: &str) -> Deployment {
    let steps: Vec<String> = digests
        .iter()
        .enumerate()
        .map(|(i, digest)| {
            format!(
                r#"{{"name":"step{i}","module":{{"digest":"{digest}"}},
                    "limits":{{"memory":"8Mi","timePerRecord":"300ms","maxOutputBytes":"1Mi"}}}}"#
            )
        })
        .collect();
    let sinks: Vec<String> =
        outputs.iter().map(|name| format!(r#"{{"type":"Kafka","kafka":{{"topic":"{name}"}}}}"#)).collect();
    let json = format!(
        r#"{{"schema":"1.0","generation":1,"owner":"cli","description":"a test",
            "source":{{"type":"Kafka","kafka":{{"topics":["{input}"]}}}},
            "steps":[{}],"sinks":[{}]{}{more}}}"#,
        steps.join(","),
        sinks.join(","),
        if more.is_empty() { "" } else { "," },
    );
    serde_json::from_str(&json).unwrap()
}
