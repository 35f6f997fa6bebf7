//! Kills the real process under load, at random moments and at every step of the commit, and lets readers judge:
//! outputs are f(inputs), in order, none twice, none missing.
//!
//! Two readers that share no state with the process: one follows the outputs through the socket while the process is
//! killed, and nothing that it ever saw may change or go; the other opens the store afresh at the end.
//! `COPROC_KILLS` sets the number of random kills (50 here), `COPROC_SEED` their moments.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(clippy::disallowed_methods, reason = "a test reads its environment and starts its threads")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coproc::control::modules;
use coproc::control::writer::DesiredWriter;
use coproc::core::names::{Installation, PoolName};
use coproc::core::record::Record;
use coproc::log::socket::RemoteLog;
use coproc::ports::{Log, Produce, ReadFrom, TopicConfig};

use support::{Rig, fragile, identity_of, text, topic, wait_for};

const PARTITIONS: u32 = 3;
/// Every step between a lane's decision to commit and the answer.
const FAILPOINTS: &[&str] = &[
    "lane::before_commit",
    "log::commit::before_write",
    "log::commit::after_write_before_sync",
    "log::commit::after_sync_before_reply",
    "lane::after_commit",
];

struct Process {
    child: Child,
    dir: PathBuf,
}

impl Process {
    /// Starts `coproc dev`; with a fail point it kills itself at the `hit`-th time that it gets there.
    fn start(dir: &Path, failpoint: Option<(&str, u32)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coproc"));
        command.arg("dev").arg("--dir").arg(dir).args(["--http", "off"]);
        if let Some((name, hit)) = failpoint {
            command.env("COPROC_FAILPOINT", format!("{name}:{hit}"));
        }
        let log = std::fs::File::options().create(true).append(true).open(dir.join("process.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { child: command.spawn().unwrap(), dir: dir.to_owned() }
    }

    /// The process's log, once its socket answers; `None` when the process died before.
    fn connect(&mut self) -> Option<Arc<dyn Log>> {
        let socket = self.dir.join("coproc.sock");
        let deadline = Instant::now() + support::PATIENCE;
        loop {
            if let Ok(log) = RemoteLog::connect(&socket)
                && log.topics().list().is_ok()
            {
                return Some(Arc::new(log));
            }
            if self.child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "the process does not answer: see {}", self.dir.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the process has killed itself.
    fn wait(mut self) {
        let deadline = Instant::now() + support::PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the fail point was not reached");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn setup(dir: &Path) {
    let mut process = Process::start(dir, None);
    let log = process.connect().unwrap();
    for name in ["in", "out", "dead"] {
        let config = TopicConfig { partitions: PARTITIONS, ..TopicConfig::default() };
        log.topics().create(&topic(name), &config).unwrap();
    }
    let digest = modules::upload(log.as_ref(), &fragile()).unwrap();
    let more = r#""policies":{"errorPolicy":{"maxRetries":1,"onExhausted":"DeadLetter","deadLetterTopic":"dead",
        "initialBackoff":"1ms","maxBackoff":"2ms"},"batch":{"maxRecords":50,"commitInterval":"5ms"},"parallelism":2}"#;
    let deployment = support::deployment(&[digest], "in", &["out"], more);
    let writer = DesiredWriter::new(log.as_ref(), Installation::default_name());
    writer.deploy(&PoolName::default_name(), &identity_of("crash"), &deployment).unwrap();
    process.kill();
}

/// Keeps the input topic busy through whatever process is there. A batch whose fate is unknown is not sent again under
/// the same numbers: what is in the topic at the end is what counts.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(dir: &Path) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (socket, flag, count) = (dir.join("coproc.sock"), stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0u64;
            while !flag.load(Ordering::Relaxed) {
                let Ok(log) = RemoteLog::connect(&socket) else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                while !flag.load(Ordering::Relaxed) {
                    let records: Vec<Produce> = (number..number + 40).map(record).collect();
                    number += 40;
                    if log.produce(&records).is_err() {
                        break;
                    }
                    count.fetch_add(40, Ordering::Relaxed);
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Now and then a record that fails for good, or one that is left out.
fn record(number: u64) -> Produce {
    let mark = match number % 211 {
        100 => "!",
        7 | 150 => "~",
        _ => "v",
    };
    let value = format!("{mark}{number}");
    Produce {
        topic: topic("in"),
        partition: Some((number % u64::from(PARTITIONS)) as u32),
        record: Record::new(None, Some(value.as_bytes())),
    }
}

/// Follows a topic through the socket, over kills, and insists that nothing it saw changes.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<BTreeMap<(u32, i64), String>>>,
}

impl Witness {
    fn start(dir: &Path, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, flag, name) = (dir.join("coproc.sock"), stop.clone(), topic(name));
        let thread = std::thread::spawn(move || {
            let mut seen: BTreeMap<(u32, i64), String> = BTreeMap::new();
            while !flag.load(Ordering::Relaxed) {
                let Ok(log) = RemoteLog::connect(&socket) else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let Ok(mut reader) = log.reader(&name, None, ReadFrom::Start) else { continue };
                while let Ok(fetched) = reader.fetch(Duration::from_millis(20)) {
                    for found in fetched {
                        let value = text(found.record.value);
                        let at = (found.partition, found.offset);
                        if let Some(before) = seen.insert(at, value.clone()) {
                            assert_eq!(before, value, "{name} {at:?} changed");
                        }
                    }
                    if flag.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> BTreeMap<(u32, i64), String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Lets a process without faults finish what is left, stops it, and compares outputs with f(inputs).
fn judge(dir: &Path, witness: Witness) {
    let mut process = Process::start(dir, None);
    let log = process.connect().unwrap();
    let group = identity_of("crash").consumer_group();
    wait_for("the last record to be processed", || {
        let ends = log.topics().extents(&topic("in")).ok()?;
        let committed = log.offsets().committed(&group).ok()?;
        let done: i64 = committed.values().sum();
        (done == ends.iter().map(|extent| extent.end).sum::<i64>()).then_some(())
    });
    let seen = witness.stop();
    drop(log);
    process.kill();
    let rig = Rig::at(dir);
    let by_partition = |name: &str| {
        let mut found: BTreeMap<u32, Vec<(i64, String)>> = BTreeMap::new();
        for fetched in rig.read(name) {
            found.entry(fetched.partition).or_default().push((fetched.offset, text(fetched.record.value)));
        }
        found
    };
    let (inputs, outputs, dead) = (by_partition("in"), by_partition("out"), by_partition("dead"));
    let values = |found: Option<&Vec<(i64, String)>>| -> Vec<String> {
        found.into_iter().flatten().map(|(_, value)| value.clone()).collect()
    };
    let mut total = 0;
    for (partition, records) in &inputs {
        let of_mark = |mark: char| -> Vec<String> {
            records.iter().map(|(_, value)| value.clone()).filter(|value| value.starts_with(mark)).collect()
        };
        assert_eq!(values(outputs.get(partition)), of_mark('v'), "partition {partition}");
        assert_eq!(values(dead.get(partition)), of_mark('!'), "dead letters of partition {partition}");
        total += records.len();
    }
    for ((partition, offset), value) in &seen {
        let found = outputs[partition].iter().find(|(at, _)| at == offset);
        assert_eq!(found.map(|(_, value)| value), Some(value), "{partition}@{offset} was seen and is gone");
    }
    println!(
        "{total} inputs, {} outputs, {} seen by the witness",
        outputs.values().map(Vec::len).sum::<usize>(),
        seen.len()
    );
    assert!(total > 0 && !seen.is_empty(), "the load and the witness did their work");
}

fn number_from(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn killed_at_random_moments_nothing_is_lost_or_twice() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let (load, witness) = (Load::start(dir.path()), Witness::start(dir.path(), "out"));
    let mut dice = number_from("COPROC_SEED", 42) | 1;
    for _ in 0..number_from("COPROC_KILLS", 50) {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut process = Process::start(dir.path(), None);
        let moment = Duration::from_millis((dice >> 33) % 250);
        // Some are killed before they are up: recovery itself is interrupted too.
        if dice >> 62 != 0 {
            process.connect().unwrap();
        }
        std::thread::sleep(moment);
        process.kill();
    }
    let sent = load.stop();
    assert!(sent > 1_000, "the load got through: {sent}");
    judge(dir.path(), witness);
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints, which `make test` sets")]
fn killed_at_every_step_of_the_commit_nothing_is_lost_or_twice() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let (load, witness) = (Load::start(dir.path()), Witness::start(dir.path(), "out"));
    for name in FAILPOINTS {
        for hit in [1, 2, 5, 20] {
            Process::start(dir.path(), Some((name, hit))).wait();
        }
    }
    load.stop();
    judge(dir.path(), witness);
}
