//! The embedded log against the disk under it, in one run: `cargo bench --bench log [-- DIR]`.
//!
//! Every figure that is a promise is a ratio to what a plain file does on the same disk in the same run, because the
//! sync rate of disks differs by a factor of a hundred. Targets: (a) and (b) at least 0.5.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coproc::core::names::TopicName;
use coproc::core::record::Record;
use coproc::log::{Durability, EmbeddedLog, Options};
use coproc::ports::{Log, LogError, Produce, TopicAdmin, TopicConfig};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// One measurement; the disk under it is measured in turn, because others use it too.
const SPAN: Duration = Duration::from_secs(1);
const ROUNDS: usize = 5;
const CALLERS: usize = 64;
const BATCH: usize = 1_000;
const VALUE_BYTES: usize = 100;

fn main() -> Outcome<()> {
    let dir = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let dir = dir.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    single_commits(dir.path())?;
    batches(dir.path())?;
    durability(dir.path())?;
    backlog(dir.path())
}

fn say(what: &str, rate: f64, unit: &str, note: &str) {
    println!("{what:<58} {rate:>12.0} {unit:<10} {note}");
}

/// Appends of `bytes` with a sync each, per second.
fn plain(dir: &Path, bytes: usize) -> Outcome<f64> {
    let path = dir.join("plain");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let block = vec![7; bytes];
    let rate = repeat(|| {
        file.write_all(&block)?;
        Ok(file.sync_data()?)
    })?;
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn repeat(mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < SPAN {
        work()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn open(dir: &Path, name: &str, durability: Durability) -> Outcome<(Arc<EmbeddedLog>, TopicName)> {
    let options = Options { durability, ..Options::default() };
    let log = EmbeddedLog::open(&dir.join(name), options)?;
    let topic: TopicName = "t".parse()?;
    log.create(&topic, &TopicConfig { partitions: 4, ..TopicConfig::default() })?;
    Ok((log, topic))
}

fn batch(topic: &TopicName, records: usize) -> Vec<Produce> {
    let record = Record::new(None, Some(&[7; VALUE_BYTES]));
    vec![Produce { topic: topic.clone(), partition: Some(0), record }; records]
}

/// Commits of one record by callers that wait, each on a thread of its own; per second.
fn by_threads(log: &EmbeddedLog, topic: &TopicName) -> f64 {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let one = batch(topic, 1);
                while start.elapsed() < SPAN && log.produce(&one).is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// What the machine has to give callers that block: threads that go to sleep together and are woken together, with
/// nothing to do in between; wake-ups per second.
fn bare_wakes() -> f64 {
    let done = AtomicU64::new(0);
    let barrier = std::sync::Barrier::new(CALLERS);
    let start = Instant::now();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                loop {
                    if barrier.wait().is_leader() {
                        done.fetch_add(CALLERS as u64, Ordering::Relaxed);
                        is_over.store(start.elapsed() >= SPAN, Ordering::Relaxed);
                    }
                    // Everybody sees the same: the leader's word is known before the second meeting ends.
                    barrier.wait();
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
    });
    // Two meetings a round.
    2.0 * done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// The same with callers that are called back: one thread drives all of them.
fn by_callbacks(log: &EmbeddedLog, topic: &TopicName) -> Outcome<f64> {
    let (sender, receiver) = crossbeam_channel::bounded::<Result<(), LogError>>(CALLERS);
    let one = batch(topic, 1);
    let submit = || {
        let sender = sender.clone();
        log.produce_then(&one, move |result| {
            let _ = sender.send(result);
        })
    };
    let start = Instant::now();
    for _ in 0..CALLERS {
        submit()?;
    }
    let mut done = 0;
    while start.elapsed() < SPAN {
        receiver.recv()??;
        done += 1;
        submit()?;
    }
    let rate = f64::from(done) / start.elapsed().as_secs_f64();
    for _ in 0..CALLERS {
        receiver.recv()??;
    }
    Ok(rate)
}

/// Measures the disk and `work` in turn, `ROUNDS` times each: their mean rates.
fn in_turn(dir: &Path, bytes: usize, mut work: impl FnMut() -> Outcome<f64>) -> Outcome<(f64, f64)> {
    let (mut disk, mut ours) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        disk += plain(dir, bytes)?;
        ours += work()?;
    }
    Ok((disk / ROUNDS as f64, ours / ROUNDS as f64))
}

fn single_commits(dir: &Path) -> Outcome<()> {
    println!("(a) one record a commit, {CALLERS} callers, each acknowledged after a sync");
    let (log, topic) = open(dir, "a", Durability::Fsync)?;
    let report = |what: &str, (disk, ours): (f64, f64)| {
        say("disk: append of 4 KiB + fdatasync", disk, "/s", "");
        let ratio = ours / (disk * CALLERS as f64);
        say(what, ours, "commits/s", &format!("{ratio:.2} of {CALLERS} x the disk's (target 0.5)"));
    };
    let (_, wakes) = in_turn(dir, 4_096, || Ok(bare_wakes()))?;
    say(
        "64 threads that only sleep and are woken together",
        wakes,
        "wakes/s",
        "what callers that block can reach",
    );
    report("64 threads", in_turn(dir, 4_096, || Ok(by_threads(&log, &topic)))?);
    report("64 callers by callback, one thread", in_turn(dir, 4_096, || by_callbacks(&log, &topic))?);
    Ok(())
}

/// Batches by so many callers; records per second.
fn by_batches(log: &EmbeddedLog, records: &[Produce], callers: usize) -> f64 {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                while start.elapsed() < SPAN && log.produce(records).is_ok() {
                    done.fetch_add(BATCH as u64, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

fn batches(dir: &Path) -> Outcome<()> {
    println!("(b) batches of {BATCH} x {VALUE_BYTES} bytes");
    let bytes = BATCH * (VALUE_BYTES + 8);
    let (log, topic) = open(dir, "b", Durability::Fsync)?;
    let records = batch(&topic, BATCH);
    for callers in [1, 8] {
        let (disk, ours) = in_turn(dir, bytes, || Ok(by_batches(&log, &records, callers)))?;
        let disk = disk * BATCH as f64;
        say("disk: append of the same bytes + fdatasync", disk, "records/s", "");
        let note = format!("{:.2} of the disk's (target 0.5, or 1 M records/s)", ours / disk);
        say(&format!("{callers} callers"), ours, "records/s", &note);
    }
    Ok(())
}

fn durability(dir: &Path) -> Outcome<()> {
    println!("(c) what durability costs: one caller, one record a commit");
    for (durability, name) in [(Durability::Fsync, "fsync"), (Durability::Flush, "flush")] {
        let (log, topic) = open(dir, name, durability)?;
        let one = batch(&topic, 1);
        let rate = repeat(|| Ok(log.produce(&one).map(drop)?))?;
        say(name, rate, "commits/s", "");
    }
    Ok(())
}

/// A backlog of 10 million records: how fast it is written and read, and how much memory that takes.
fn backlog(dir: &Path) -> Outcome<()> {
    const BATCHES: usize = 10_000;
    println!("(d) a backlog of {} records", BATCHES * BATCH);
    let (log, topic) = open(dir, "d", Durability::Flush)?;
    let records = batch(&topic, BATCH);
    let start = Instant::now();
    for _ in 0..BATCHES {
        log.produce(&records)?;
    }
    let rate = (BATCHES * BATCH) as f64 / start.elapsed().as_secs_f64();
    say("written, flush", rate, "records/s", &format!("resident {} MiB", resident_mib()?));
    let spec = lane_spec(&topic)?;
    let mut lane = log.lane(&spec)?;
    let mut batch = coproc::core::record::Batch::default();
    let start = Instant::now();
    let mut read = 0;
    while read < BATCHES * BATCH {
        match lane.poll(&mut batch, Duration::from_secs(5)) {
            coproc::ports::Event::Records => read += batch.len(),
            coproc::ports::Event::Stuck { error, .. } | coproc::ports::Event::Failed(error) => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    let rate = read as f64 / start.elapsed().as_secs_f64();
    say("read by a lane", rate, "records/s", &format!("resident {} MiB", resident_mib()?));
    Ok(())
}

fn lane_spec(topic: &TopicName) -> Outcome<coproc::ports::LaneSpec> {
    Ok(coproc::ports::LaneSpec {
        group: "bench".parse()?,
        transactional_id: "bench".into(),
        inputs: vec![topic.clone()],
        outputs: vec![],
        start: coproc::core::deployment::StartOffset::Earliest,
        delivery: coproc::core::deployment::Delivery::ExactlyOnce,
        max_records: 1_000,
        max_bytes: 1 << 20,
    })
}

fn resident_mib() -> Outcome<u64> {
    let status = std::io::read_to_string(File::open("/proc/self/status")?)?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) / 1_024)
}
