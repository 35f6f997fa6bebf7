//! The node end to end, on the embedded log: throughput, memory, density, neighbours. Each figure with its limit in the
//! same run. `cargo bench --bench node [-- throughput|start|density|neighbours]`.
//!
//! The process under test is the real binary, started as a user starts it; figures of time and memory are the kernel's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a benchmark fails by panicking"
)]
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::control::modules;
use coproc::control::writer::DesiredWriter;
use coproc::core::names::{Installation, PoolName};
use coproc::core::record::Record;
use coproc::log::socket::RemoteLog;
use coproc::ports::{Log, Produce, TopicConfig};

use support::{Rig, fragile, identity, identity_of, topic, wait_for};

struct Process(Child);

impl Process {
    fn start(dir: &Path) -> (Self, Arc<dyn Log>) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coproc"));
        command.arg("dev").arg("--dir").arg(dir).args(["--http", "off"]);
        let log = std::fs::File::create(dir.join("process.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let socket = dir.join("coproc.sock");
        let log = wait_for("the node's socket", || {
            let log = RemoteLog::connect(&socket).ok()?;
            log.topics().list().ok()?;
            Some(log)
        });
        (Self(child), Arc::new(log))
    }

    /// A size from the kernel's account of the process, in MiB.
    fn mib(&self, field: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Processor seconds used so far.
    fn cpu(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn number_from(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn create(log: &dyn Log, name: &str) {
    log.topics().create(&topic(name), &TopicConfig::default()).unwrap();
}

fn deploy(log: &dyn Log, name: &str, module: &[u8], input: &str, output: &str, more: &str) {
    let digest = modules::upload(log, module).unwrap();
    let deployment = support::deployment(&[digest], input, &[output], more);
    let writer = DesiredWriter::new(log, Installation::default_name());
    writer.deploy(&PoolName::default_name(), &identity_of(name), &deployment).unwrap();
}

fn fill(log: &dyn Log, name: &str, count: usize, bytes: usize) {
    let batch: Vec<Produce> = (0..10_000.min(count))
        .map(|i| Produce {
            topic: topic(name),
            partition: Some(0),
            record: Record::new(None, Some(format!("v{i:0>width$}", width = bytes - 1).as_bytes())),
        })
        .collect();
    for _ in 0..count / batch.len() {
        log.produce(&batch).unwrap();
    }
}

fn committed(log: &dyn Log, name: &str) -> i64 {
    log.offsets().committed(&identity_of(name).consumer_group()).unwrap().values().sum()
}

fn wait_long<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(10);
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the deployment has committed `count` records: the rate from its first commit on.
fn rate_of(log: &dyn Log, name: &str, count: usize) -> f64 {
    let first = wait_long("the first commit", || Some(committed(log, name)).filter(|done| *done > 0));
    let start = Instant::now();
    wait_long("the last commit", || (committed(log, name) >= count as i64).then_some(()));
    (count as f64 - first as f64) / start.elapsed().as_secs_f64()
}

fn throughput() {
    let count = number_from("BENCH_RECORDS", 10_000_000);
    let dir = tempfile::tempdir().unwrap();
    {
        let rig = Rig::at(dir.path());
        create(rig.log.as_ref(), "in");
        create(rig.log.as_ref(), "out");
        let start = Instant::now();
        fill(rig.log.as_ref(), "in", count, 100);
        let rate = count as f64 / start.elapsed().as_secs_f64();
        println!("backlog: {count} records of 100 bytes, appended at {rate:.0} records/s");
        deploy(rig.log.as_ref(), "copy", &identity(), "in", "out", "");
    }
    let (process, log) = Process::start(dir.path());
    let rate = rate_of(log.as_ref(), "copy", count);
    let cpu = process.cpu() / (count as f64 / 1e6);
    let peak = process.mib("VmHWM");
    println!(
        "end to end, 1 -> 1: {rate:.0} records/s, {cpu:.2} CPU s per million, peak {peak:.0} MiB resident"
    );
    let ends = log.topics().extents(&topic("out")).unwrap();
    assert_eq!(ends[0].end - ends[0].first, count as i64, "every record came out once");
}

fn density() {
    let count = number_from("BENCH_COPROCESSORS", 1_000);
    let dir = tempfile::tempdir().unwrap();
    let (process, log) = Process::start(dir.path());
    create(log.as_ref(), "out");
    let start = Instant::now();
    for i in 0..count {
        create(log.as_ref(), &format!("in{i}"));
        deploy(log.as_ref(), &format!("c{i}"), &identity(), &format!("in{i}"), "out", "");
    }
    println!("{count} coprocessors written to the control topic in {:.1} s", start.elapsed().as_secs_f64());
    let members = |i: usize| log.offsets().members(&identity_of(&format!("c{i}")).consumer_group()).unwrap();
    wait_long("all of them to run", || (0..count).all(|i| members(i) == 1).then_some(()));
    println!("running after {:.1} s", start.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(5));
    let before = process.cpu();
    std::thread::sleep(Duration::from_secs(10));
    let busy = (process.cpu() - before) * 10.0;
    println!("idle: {:.0} MiB resident, {busy:.1} % of one core", process.mib("VmRSS"));
    let out = || log.topics().extents(&topic("out")).unwrap()[0].end;
    let mut worst = Duration::ZERO;
    for i in (0..count).step_by((count / 50).max(1)) {
        let end = out();
        let start = Instant::now();
        fill(log.as_ref(), &format!("in{i}"), 1, 100);
        wait_long("the answer", || (out() > end).then_some(()));
        worst = worst.max(start.elapsed());
    }
    println!("a record to one of them is answered within {:.0} ms (worst of 50)", worst.as_secs_f64() * 1e3);
    for i in 0..count {
        fill(log.as_ref(), &format!("in{i}"), 1, 100);
    }
    let answered = count as i64 + 50;
    wait_long("all answers", || (out() >= answered).then_some(()));
    println!("after a record to each, every guest alive: {:.0} MiB resident", process.mib("VmRSS"));
}

/// From the start of the process to the first record out, with the module compiled and then cached.
fn start() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let before = {
            let rig = Rig::at(dir.path());
            if round == 0 {
                create(rig.log.as_ref(), "in");
                create(rig.log.as_ref(), "out");
                deploy(rig.log.as_ref(), "copy", &identity(), "in", "out", "");
            }
            let before = rig.log.topics().extents(&topic("out")).unwrap()[0].end;
            fill(rig.log.as_ref(), "in", 1, 100);
            before
        };
        let begin = Instant::now();
        let (_process, log) = Process::start(dir.path());
        let up = begin.elapsed().as_secs_f64() * 1e3;
        wait_long("the record", || {
            (log.topics().extents(&topic("out")).unwrap()[0].end > before).then_some(())
        });
        let out = begin.elapsed().as_secs_f64() * 1e3;
        let module = if round == 0 { "compiled" } else { "cached" };
        println!(
            "process start {round}, module {module}: socket after {up:.0} ms, record out after {out:.0} ms"
        );
    }
}

const BAD: [(&str, &str); 3] = [("trap", "!"), ("loop", "@"), ("memory", "#")];

fn deploy_bad(log: &dyn Log) {
    let more =
        r#""policies":{"errorPolicy":{"maxRetries":1000000,"initialBackoff":"50ms","maxBackoff":"100ms"}}"#;
    for (name, value) in BAD {
        create(log, name);
        create(log, &format!("{name}-out"));
        let record = Record::new(None, Some(value.as_bytes()));
        log.produce(&[Produce { topic: topic(name), partition: Some(0), record }]).unwrap();
        deploy(log, name, &fragile(), name, &format!("{name}-out"), more);
    }
}

/// A good coprocessor beside a trapping, a looping and a memory-eating one: what it loses.
fn neighbours() {
    let count = number_from("BENCH_NEIGHBOUR_RECORDS", 2_000_000);
    let full = |beside: bool| {
        let dir = tempfile::tempdir().unwrap();
        {
            let rig = Rig::at(dir.path());
            create(rig.log.as_ref(), "in");
            create(rig.log.as_ref(), "out");
            fill(rig.log.as_ref(), "in", count, 100);
        }
        let (_process, log) = Process::start(dir.path());
        if beside {
            deploy_bad(log.as_ref());
            std::thread::sleep(Duration::from_secs(1));
        }
        deploy(log.as_ref(), "good", &identity(), "in", "out", "");
        rate_of(log.as_ref(), "good", count)
    };
    let (alone, beside) = (full(false), full(true));
    println!(
        "full rate: alone {alone:.0} records/s, beside the bad ones {beside:.0}: a loss of {:.1} %",
        loss(alone, beside)
    );
    // Paced: the records are made by the same process on the same two cores, so the solo rate is measured like that.
    let solo = paced(f64::MAX, false);
    let (alone, beside) = (paced(solo / 2.0, false), paced(solo / 2.0, true));
    println!("fed while it runs: solo {solo:.0} records/s");
    println!(
        "paced at half of that: alone {alone:.0} records/s, beside the bad ones {beside:.0}: a loss of {:.1} %",
        loss(alone, beside)
    );
}

fn loss(alone: f64, beside: f64) -> f64 {
    100.0 * (1.0 - beside / alone)
}

/// The good one gets records at this rate for ten seconds: how many per second are committed when the time is over.
fn paced(rate: f64, beside: bool) -> f64 {
    let seconds = 10.0;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::at(dir.path());
    let log = rig.log.as_ref();
    create(log, "in");
    create(log, "out");
    let _node = support::start_node(&rig.log);
    if beside {
        deploy_bad(log);
    }
    deploy(log, "good", &identity(), "in", "out", "");
    wait_long("the good one to run", || {
        (log.offsets().members(&identity_of("good").consumer_group()).unwrap() == 1).then_some(())
    });
    let start = Instant::now();
    let mut sent = 0.0;
    while start.elapsed().as_secs_f64() < seconds {
        // At full rate the backlog is bounded by what is committed, as a slow reader's would not be.
        let wanted = (start.elapsed().as_secs_f64() * rate).min(committed(log, "good") as f64 + 1e6);
        let count = (wanted - sent).clamp(0.0, 10_000.0) as usize;
        if count > 0 {
            fill(log, "in", count, 100);
            sent += count as f64;
        }
        if count < 10_000 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    committed(log, "good") as f64 / seconds
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] =
        [("throughput", throughput), ("start", start), ("density", density), ("neighbours", neighbours)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            println!("== {name}");
            part();
        }
    }
}
