//! What must hold, whatever happens to nodes and brokers: nothing lost, nothing twice, order kept, recovery within a
//! bound. Each case runs real nodes in processes of their own against real brokers; two readers that are not our code
//! judge (`kafka/oracle.rs`).
//!
//! The short form runs in CI; `make reliability` runs the long one: `COPROC_RECORDS` records in each case (6,000
//! here), `COPROC_SEEDS` times with other dice (once here), storms of `COPROC_STORM` seconds (15 here). Lines that
//! begin with `RESULT` are the table of `docs/reliability.md`.
#![cfg(all(feature = "kafka", feature = "wasm", feature = "failpoints"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "tests start their own threads and read their own variables")]

#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/oracle.rs"]
mod oracle;
#[path = "kafka/process.rs"]
mod process;
mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coproc::core::names::{ConsumerGroup, TopicName};
use coproc::core::record::Record;
use coproc::kafka::Assignor;
use coproc::ports::Produce;

use self::cluster::{Cluster, plain, short};
use self::process::{Fault, Process, Role};
use self::support::{PATIENCE, Rig, identity_of, numbers, stamp, topic};

/// Every step between the decision to commit and the answer.
const STEPS: [&str; 7] = [
    "lane::before_commit",
    "kafka-after-begin",
    "kafka-emit",
    "kafka-after-flush",
    "kafka-after-offsets",
    "kafka-after-commit",
    "lane::after_commit",
];
const PARTITIONS: u32 = 3;

fn number_from(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn records() -> usize {
    number_from("COPROC_RECORDS", 6_000)
}

fn seeds() -> std::ops::Range<u64> {
    1..1 + number_from("COPROC_SEEDS", 1) as u64
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The longest that a slot without a successor holds things up: its membership, then its transaction and the broker's
/// look for expired ones; the rest is for a busy machine.
fn takeover() -> Duration {
    short().session + short().transaction + Duration::from_secs(1) + Duration::from_secs(14)
}

/// Brokers that restart do not answer for a while.
fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    support::wait_for("the brokers", || ask())
}

/// Sends again what the brokers did not take: it may be in the topic twice then, and what is in there is what counts.
fn send(rig: &Rig, to: &TopicName, partition: u32, values: &[String]) {
    let record = |value: &String| Produce {
        topic: to.clone(),
        partition: Some(partition),
        record: Record::new(None, Some(value.as_bytes())),
    };
    let records: Vec<Produce> = values.iter().map(record).collect();
    patiently(|| rig.log.produce(&records).ok());
}

/// A deployment with its topics, in a pool of its own.
struct Scene {
    cluster: &'static Cluster,
    rig: Rig,
    from: TopicName,
    to: TopicName,
    group: ConsumerGroup,
    /// Node ids are the cluster's: from this one on they are ours.
    ids: u32,
    fed: usize,
}

impl Scene {
    fn new(cluster: &'static Cluster, name: &str, parallelism: u32) -> Self {
        Self::with(cluster, name, parallelism, "Auto")
    }

    fn with(cluster: &'static Cluster, name: &str, parallelism: u32, delivery: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{number}");
        let rig = Rig::on(cluster.log(), &name, 0);
        let (from, to) = (format!("{name}-in"), format!("{name}-out"));
        rig.create(&from, PARTITIONS);
        rig.create(&to, PARTITIONS);
        let more = format!(
            r#""policies":{{"batch":{{"maxRecords":50,"commitInterval":"20ms","maxCommitRecords":100}},
               "parallelism":{parallelism},"delivery":"{delivery}"}}"#
        );
        rig.deploy(&name, &[stamp('A')], &from, &[&to], &more).unwrap();
        let group = identity_of(&name).consumer_group();
        Self { cluster, rig, from: topic(&from), to: topic(&to), group, ids: number * 20, fed: 0 }
    }

    fn role(&self, id: u32) -> Role {
        Role::new(self.cluster, self.rig.pool.as_str(), self.ids + id)
    }

    fn feed(&mut self, count: usize) {
        let each = count / PARTITIONS as usize;
        for at in (self.fed..self.fed + each).step_by(5_000) {
            let end = (at + 5_000).min(self.fed + each);
            for partition in 0..PARTITIONS {
                send(&self.rig, &self.from, partition, &numbers("x", at..end));
            }
        }
        self.fed += each;
    }

    /// How many offsets are committed.
    fn committed(&self) -> i64 {
        patiently(|| Some(self.rig.log.offsets().committed(&self.group).ok()?.values().sum()))
    }

    /// Waits until more than so many are committed: how long that took.
    fn progress(&self, beyond: i64, within: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let done = self.committed();
            if done > beyond {
                return began.elapsed();
            }
            assert!(began.elapsed() < within, "{}: no progress within {within:?} beyond {done}", self.from);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every record is processed.
    fn finish(&self, within: Duration) -> Duration {
        let ends = patiently(|| self.rig.log.topics().extents(&self.from).ok());
        let all: i64 = ends.iter().map(|extent| extent.end).sum();
        self.progress(all - 1, within + Duration::from_millis(all as u64 / 2))
    }

    /// The verdict: outputs are f(inputs), in order, none twice, none missing.
    fn judge(&self) {
        self.judge_by(|found| found);
    }

    /// The verdict under at-least-once: the same, once what came again is left out. How many that were.
    fn judge_first_times(&self) -> usize {
        let again = AtomicU32::new(0);
        self.judge_by(|found| {
            let (all, mut seen) = (found.len(), BTreeSet::new());
            let first: Vec<String> = found.into_iter().filter(|value| seen.insert(value.clone())).collect();
            again.fetch_add((all - first.len()) as u32, Ordering::Relaxed);
            first
        });
        again.into_inner() as usize
    }

    fn judge_by(&self, change: impl Fn(Vec<String>) -> Vec<String>) {
        let inputs = oracle::kcat(self.cluster, &self.from);
        let outputs = oracle::contents(self.cluster, &self.to);
        for partition in 0..PARTITIONS {
            let wanted: Vec<String> =
                inputs[&partition].iter().map(|(_, value)| format!("A{}", &value[1..])).collect();
            let found = outputs.get(&partition).map(Vec::as_slice).unwrap_or_default();
            let found = change(found.iter().map(|(_, value)| value.clone()).collect());
            let first = wanted.iter().zip(&found).position(|(wanted, found)| wanted != found);
            assert!(
                wanted == found,
                "{}: partition {partition} has {} of {} records, the first difference is at {first:?}",
                self.to,
                found.len(),
                wanted.len()
            );
        }
    }

    fn members(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.rig.log.offsets().members(&self.group).ok() != Some(count) {
            assert!(Instant::now() < deadline, "the group does not get {count} members");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn result(case: &str, seed: u64, scene: &Scene, recovered: Duration, bound: Duration) {
    assert!(recovered <= bound, "{case}: recovered after {recovered:?}, the bound is {bound:?}");
    println!(
        "RESULT | {case} | {seed} | {} | {:.1} s | {:.0} s |",
        scene.fed * PARTITIONS as usize,
        recovered.as_secs_f64(),
        bound.as_secs_f64()
    );
}

#[test]
#[ignore = "a process that other tests start and kill"]
fn node_process() {
    process::be_a_node();
}

#[test]
fn killed_at_every_step_of_a_transaction() {
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::new(plain(), "kill", 1);
        // A static member takes over from itself at once.
        let role = Role { is_static: true, ..scene.role(1) };
        let bound = Duration::from_secs(20);
        let mut longest = Duration::ZERO;
        for step in STEPS {
            scene.feed(records() / STEPS.len());
            let nth = 1 + dice.below(if step == "kafka-emit" { 400 } else { 6 }) as u32;
            let mut process = Process::start(&role, Some(Fault::KillAt(step, nth)));
            let deadline = Instant::now() + PATIENCE;
            while !process.is_over() {
                assert!(Instant::now() < deadline, "{step} was not passed {nth} times");
                std::thread::sleep(Duration::from_millis(5));
            }
            let before = scene.committed();
            let process = Process::start(&role, None);
            longest = longest.max(scene.progress(before, bound));
            scene.finish(bound);
            process.kill();
        }
        scene.judge();
        result("kill -9 at each of 7 steps, static member", seed, &scene, longest, bound);
    }
}

#[test]
fn killed_under_at_least_once() {
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::with(plain(), "atleast", 1, "AtLeastOnce");
        let role = Role { is_static: true, ..scene.role(1) };
        let bound = Duration::from_secs(20);
        let mut longest = Duration::ZERO;
        let steps = ["lane::before_commit", "kafka-emit", "kafka-after-flush", "lane::after_commit"];
        for step in steps {
            scene.feed(records() / steps.len());
            let nth = 1 + dice.below(if step == "kafka-emit" { 400 } else { 6 }) as u32;
            let mut process = Process::start(&role, Some(Fault::KillAt(step, nth)));
            let deadline = Instant::now() + PATIENCE;
            while !process.is_over() {
                assert!(Instant::now() < deadline, "{step} was not passed {nth} times");
                std::thread::sleep(Duration::from_millis(5));
            }
            let before = scene.committed();
            let process = Process::start(&role, None);
            longest = longest.max(scene.progress(before, bound));
            scene.finish(bound);
            process.kill();
        }
        println!("at-least-once: {} records came again", scene.judge_first_times());
        result("at-least-once, kill -9 at each of 4 steps: nothing lost", seed, &scene, longest, bound);
    }
}

#[test]
fn a_slot_that_never_returns() {
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::new(plain(), "gone", 1);
        scene.feed(records());
        let fault = Fault::KillAt("kafka-after-offsets", 1 + dice.below(8) as u32);
        let mut first = Process::start(&scene.role(1), Some(fault));
        let deadline = Instant::now() + PATIENCE;
        while !first.is_over() {
            assert!(Instant::now() < deadline, "{fault:?} was not reached");
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = scene.committed();
        let _other = Process::start(&scene.role(2), None);
        let took = scene.progress(before, takeover());
        scene.finish(takeover());
        scene.judge();
        result("a slot that never returns", seed, &scene, took, takeover());
    }
}

#[test]
fn stopped_for_longer_than_the_session() {
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::new(plain(), "zombie", 1);
        scene.feed(records());
        // Everything is sent, the offsets too: all that is missing is the word to commit.
        let step = ["kafka-after-offsets", "kafka-after-flush", "kafka-emit"][dice.below(3) as usize];
        let zombie = Process::start(&scene.role(1), Some(Fault::StopAt(step, 1 + dice.below(8) as u32)));
        let deadline = Instant::now() + PATIENCE;
        while !zombie.is_stopped() {
            assert!(Instant::now() < deadline, "{step} was not reached");
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = scene.committed();
        let _other = Process::start(&scene.role(2), None);
        let took = scene.progress(before, takeover());
        scene.finish(takeover());
        zombie.wake();
        scene.members(2);
        scene.feed(records() / 4);
        scene.finish(takeover());
        scene.judge();
        result(&format!("SIGSTOP at {step}, longer than the session"), seed, &scene, took, takeover());
    }
}

#[test]
fn two_processes_with_the_same_slot() {
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "twins", 1);
        scene.feed(records() / 2);
        let _first = Process::start(&scene.role(1), None);
        scene.progress(0, PATIENCE);
        let _second = Process::start(&scene.role(1), None);
        std::thread::sleep(Duration::from_millis(300));
        let before = scene.committed();
        scene.feed(records() / 2);
        let took = scene.progress(before, takeover());
        scene.finish(takeover() + Duration::from_secs(30));
        scene.judge();
        result("two processes, one slot", seed, &scene, took, takeover());
    }
}

fn three() -> &'static Cluster {
    static CLUSTER: std::sync::OnceLock<Cluster> = std::sync::OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start("three", &["--brokers", "3", "--heap", "256m"]))
}

fn env_kafka(args: &[&str]) {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/kafka");
    let output = Command::new(script).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// In the short form each broker goes once, the first in order and the others as by a power cut; in the long form
/// each goes both ways.
#[test]
fn brokers_that_restart_one_by_one() {
    let dir = three().dir.to_str().unwrap().to_owned();
    for seed in seeds() {
        let mut scene = Scene::new(three(), "brokers", 2);
        let _node = Process::start(&scene.role(1), None);
        let is_long = records() >= 50_000;
        let bound = Duration::from_secs(45);
        let mut longest = Duration::ZERO;
        for broker in ["1", "2", "3"] {
            for is_hard in [false, true] {
                if !is_long && is_hard == (broker == "1") {
                    continue;
                }
                scene.feed(records() / 6);
                scene.progress(0, PATIENCE);
                if is_hard {
                    env_kafka(&["kill", &dir, broker]);
                }
                scene.feed(records() / 6);
                let before = scene.committed();
                env_kafka(&["restart", &dir, broker]);
                scene.feed(records() / 6);
                longest = longest.max(scene.progress(before, bound));
                scene.finish(bound);
            }
        }
        scene.judge();
        result("rolling and hard restarts of each of 3 brokers", seed, &scene, longest, bound);
    }
}

/// Nodes that come, go and are killed all the time.
fn storm(case: &str, assignor: Assignor) {
    let lasts = Duration::from_secs(number_from("COPROC_STORM", 15) as u64);
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::new(plain(), "storm", 1);
        scene.feed(records());
        let mut slots: Vec<Option<Process>> = (0..4).map(|_| None).collect();
        let began = Instant::now();
        let (mut kills, mut ends) = (0, 0);
        while began.elapsed() < lasts {
            let slot = dice.below(4) as usize;
            slots[slot] = match slots[slot].take() {
                None => Some(Process::start(&Role { assignor, ..scene.role(1 + slot as u32) }, None)),
                Some(process) if dice.below(2) == 0 => {
                    kills += 1;
                    process.kill();
                    None
                }
                Some(process) => {
                    ends += 1;
                    process.stop();
                    None
                }
            };
            std::thread::sleep(Duration::from_millis(300 + dice.below(1_200)));
        }
        drop(slots);
        let before = scene.committed();
        scene.feed(records() / 4);
        let _last = Process::start(&Role { assignor, ..scene.role(9) }, None);
        let took = scene.progress(before, takeover());
        scene.finish(takeover());
        scene.judge();
        println!("{case}: {kills} kills and {ends} clean ends, {before} records done meanwhile");
        result(&format!("{case}, {lasts:?}"), seed, &scene, took, takeover());
    }
}

#[test]
fn a_storm_of_rebalances_eager() {
    storm("rebalance storm, eager", Assignor::Eager);
}

#[test]
fn a_storm_of_rebalances_cooperative() {
    storm("rebalance storm, cooperative", Assignor::Cooperative);
}

/// One commit in five fails after everything was sent.
#[test]
fn a_storm_of_aborts() {
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "aborts", 2);
        scene.feed(records());
        let _node = Process::start(&scene.role(1), Some(Fault::Fails("kafka-abort", 20)));
        // Each abort costs a wait of 0.1 s and a rewind.
        let bound = Duration::from_secs(30) + Duration::from_millis(10 * records() as u64);
        let took = scene.finish(bound);
        scene.judge();
        result("every fifth commit fails", seed, &scene, took, bound);
    }
}

/// Feeds that go on while nodes change, so that order is tried at the seams.
#[test]
fn a_deployment_moves_between_nodes_under_load() {
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = Scene::new(plain(), "move", 1);
        let is_over = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let (rig, from) = (Rig::on(scene.cluster.log(), "feeder", 0), scene.from.clone());
            let is_over = &is_over;
            let feeder = scope.spawn(move || {
                let mut fed = 0;
                while !is_over.load(Ordering::Relaxed) || fed < records() / PARTITIONS as usize {
                    for partition in 0..PARTITIONS {
                        send(&rig, &from, partition, &numbers("x", fed..fed + 50));
                    }
                    fed += 50;
                    std::thread::sleep(Duration::from_millis(20));
                }
                fed
            });
            let mut longest = Duration::ZERO;
            let mut node = Process::start(&scene.role(1), None);
            for round in 0..4u32 {
                let before = scene.progress(scene.committed(), PATIENCE);
                longest = longest.max(before);
                let next = Process::start(&scene.role(2 + round % 2), None);
                std::thread::sleep(Duration::from_millis(500 + dice.below(1_000)));
                node.stop();
                node = next;
            }
            longest = longest.max(scene.progress(scene.committed(), PATIENCE));
            is_over.store(true, Ordering::Relaxed);
            scene.fed = feeder.join().unwrap();
            scene.finish(PATIENCE);
            longest
        });
        scene.judge();
        result("clean moves between nodes under load", seed, &scene, longest, Duration::from_secs(20));
    }
}
