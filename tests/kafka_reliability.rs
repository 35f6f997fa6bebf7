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

#[path = "kafka/causes.rs"]
mod causes;
#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/oracle.rs"]
mod oracle;
#[path = "kafka/process.rs"]
mod process;
#[path = "kafka/scene.rs"]
mod scene;
#[path = "kafka/slow.rs"]
mod slow;
mod support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coproc::kafka::Assignor;

use self::cluster::{Cluster, plain};
use self::process::{Fault, Process, Role};
use self::scene::{Dice, PARTITIONS, Scene, number_from, records, result, seeds, send, takeover};
use self::support::{PATIENCE, Rig, numbers};

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
        let mut slots: Vec<Option<Process>> = (0..4).map(|_| None).collect();
        let began = Instant::now();
        let (mut kills, mut ends) = (0, 0);
        while began.elapsed() < lasts {
            // Records come as long as the storm lasts.
            let due = records() * began.elapsed().as_millis() as usize / lasts.as_millis() as usize;
            scene.feed(due.saturating_sub(scene.fed * PARTITIONS as usize));
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
        scene.feed(records() + records() / 4 - scene.fed * PARTITIONS as usize);
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
