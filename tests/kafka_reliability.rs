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
use std::time::{Duration, Instant};

use coproc::kafka::Assignor;

use self::cluster::{Cluster, plain};
use self::process::{Fault, Process, Role};
use self::scene::{Dice, PARTITIONS, Scene, failover, number_from, records, result, seeds, takeover};
use self::support::PATIENCE;

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

/// Which of the producers that a node makes is its lane's: the first is for a look at what the cluster can do, the second for
/// the node's status.
const INIT_OF_LANE: u32 = 3;

#[test]
#[ignore = "a process that other tests start and kill"]
fn node_process() {
    process::be_a_node();
}

/// The nth pass of a step that a few thousand records come to.
fn some_pass(step: &str, dice: &mut Dice) -> u32 {
    1 + dice.below(if step == "kafka-emit" { 400 } else { 6 }) as u32
}

/// The lives that end one after the other, each of its faults, before one goes on.
fn lives(dice: &mut Dice) -> Vec<Vec<Vec<Fault>>> {
    let mut all: Vec<_> =
        STEPS.iter().map(|step| vec![vec![Fault::KillAt(step, some_pass(step, dice))]]).collect();
    let micros = |dice: &mut Dice, below| Duration::from_micros(1 + dice.below(below));
    // Within the request to commit, which takes some milliseconds.
    let (nth, later) = (some_pass("kafka-after-offsets", dice), micros(dice, 5_000));
    all.push(vec![vec![Fault::KillAfter("kafka-after-offsets", nth, later)]]);
    // Before, within and after an abort: most commits fail, for there to be enough of them.
    let failing = Fault::Fails("kafka-abort", 75);
    let mut nth = || 1 + dice.below(3) as u32;
    let aborts = [
        Fault::KillAt("kafka-before-abort", nth()),
        Fault::KillAt("kafka-after-abort", nth()),
        Fault::KillAfter("kafka-before-abort", nth(), Duration::from_millis(1)),
    ];
    all.extend(aborts.map(|kill| vec![vec![failing, kill]]));
    // While a producer is made that has to fence its forerunner first, which left everything but the word to commit.
    let open = || vec![Fault::KillAt("kafka-after-offsets", 2)];
    for kill in [
        Fault::KillAt("kafka-before-init", INIT_OF_LANE),
        Fault::KillAfter("kafka-before-init", INIT_OF_LANE, micros(dice, 100_000)),
        Fault::KillAt("kafka-after-init", INIT_OF_LANE),
    ] {
        all.push(vec![open(), vec![kill]]);
    }
    all
}

#[test]
fn killed_at_every_step_of_a_transaction() {
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "kill", 1);
        // A static member takes over from itself at once.
        let role = Role { is_static: true, ..scene.role(1) };
        let bound = Duration::from_secs(20);
        let mut longest = Duration::ZERO;
        let all = lives(&mut Dice(seed));
        let steps = all.len();
        for lives in all {
            scene.feed(records() / STEPS.len());
            for faults in lives {
                Process::start(&role, faults.iter().copied()).await_death(&faults);
            }
            let before = scene.committed();
            let process = Process::start(&role, None);
            longest = longest.max(scene.progress(before, bound));
            scene.finish(bound);
            process.kill();
        }
        scene.judge();
        result(&format!("kill -9 at each of {steps} steps, static member"), seed, &scene, longest, bound);
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
            let fault = Fault::KillAt(step, some_pass(step, &mut dice));
            Process::start(&role, Some(fault)).await_death(&fault);
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
        Process::start(&scene.role(1), Some(fault)).await_death(&fault);
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
        // First the one that decides: everything is sent, the offsets too, and all that is missing is the word to commit.
        // Three seeds have all of them.
        let step = ["kafka-after-offsets", "kafka-after-flush", "kafka-emit"][(seed as usize - 1) % 3];
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

/// The later one fences the earlier one, which says so and waits; in the long form until it fences the later one in turn.
#[test]
fn two_processes_with_the_same_slot() {
    // The longest wait of a deployment whose lanes ended, before it is tried again.
    const RETRY_MAX: Duration = Duration::from_secs(30);
    const FENCED: &str = "reason=\"SlotConflict\"";
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "twins", 1);
        let (first, mut second) = (scene.role(1), scene.role(1));
        second.log.set_extension("second.log");
        let bound = takeover();
        let (longest, mut first, mut second) = scene.while_fed(20, Duration::from_millis(50), |scene, _| {
            let mut first = Process::start(&first, None);
            scene.progress(0, PATIENCE);
            let mut second = Process::start(&second, None);
            let began = Instant::now();
            first.await_line(FENCED, bound);
            // What is committed from now on is the second's: the first one waits.
            scene.progress(scene.committed(), bound.saturating_sub(began.elapsed()));
            let mut longest = began.elapsed();
            if records() >= 50_000 {
                second.await_line(FENCED, RETRY_MAX + bound);
                longest = longest.max(scene.progress(scene.committed(), bound));
            }
            (longest, first, second)
        });
        scene.feed(records().saturating_sub(scene.fed * PARTITIONS as usize));
        scene.finish(bound + RETRY_MAX);
        assert!(!first.is_over() && !second.is_over(), "both live to the end");
        scene.judge();
        result("two processes, one slot: the later one takes over", seed, &scene, longest, bound);
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
/// each goes both ways. Records come all the time, for a deployment with exactly once and one with at least once.
#[test]
fn brokers_that_restart_one_by_one() {
    // Longer than `broker.session.timeout.ms`: the others have to take over, and not only to wait.
    const AWAY: Duration = Duration::from_secs(12);
    let dir = three().dir.to_str().unwrap().to_owned();
    for seed in seeds() {
        let mut scene = Scene::new(three(), "brokers", 2);
        let mut beside = Scene::with(three(), "brokers-atleast", 1, "AtLeastOnce");
        let _nodes = [Process::start(&scene.role(1), None), Process::start(&beside.role(1), None)];
        let is_long = records() >= 50_000;
        let bound = failover();
        let (mut longest, mut longest_beside) = (Duration::ZERO, Duration::ZERO);
        beside.while_fed(10, Duration::from_millis(200), |beside, feed_beside| {
            scene.while_fed(20, Duration::from_millis(50), |scene, feed| {
                scene.progress(0, PATIENCE);
                beside.progress(0, PATIENCE);
                for broker in ["1", "2", "3"] {
                    for is_hard in [false, true] {
                        if !is_long && is_hard == (broker == "1") {
                            continue;
                        }
                        let fault = || {
                            if is_hard {
                                env_kafka(&["kill", &dir, broker]);
                                std::thread::sleep(AWAY);
                            }
                            env_kafka(&["restart", &dir, broker]);
                        };
                        let mut stood_beside = Duration::ZERO;
                        let stood = scene.standstill(feed, bound, || {
                            stood_beside = beside.standstill(feed_beside, bound, fault);
                        });
                        let how = if is_hard { "killed" } else { "restarted in order" };
                        println!(
                            "broker {broker}, {how}: a partition stood for {stood:?}, at least once {stood_beside:?}"
                        );
                        (longest, longest_beside) = (longest.max(stood), longest_beside.max(stood_beside));
                    }
                }
            });
        });
        scene.finish(bound);
        beside.finish(bound);
        scene.judge();
        result("rolling and hard restarts of each of 3 brokers", seed, &scene, longest, bound);
        println!("at-least-once: {} records came again", beside.judge_first_times());
        result("at-least-once, the same restarts: nothing lost", seed, &beside, longest_beside, bound);
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
        let (mut kills, mut ends, mut longest_end) = (0, 0, Duration::ZERO);
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
                    longest_end = longest_end.max(process.stop());
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
        println!(
            "{case}: {kills} kills and {ends} clean ends within {longest_end:?}, {before} records done meanwhile"
        );
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
        let (longest, longest_end, _node) = scene.while_fed(50, Duration::from_millis(20), |scene, _| {
            let (mut longest, mut longest_end) = (Duration::ZERO, Duration::ZERO);
            let mut node = Process::start(&scene.role(1), None);
            for round in 0..4u32 {
                longest = longest.max(scene.progress(scene.committed(), PATIENCE));
                let next = Process::start(&scene.role(2 + round % 2), None);
                std::thread::sleep(Duration::from_millis(500 + dice.below(1_000)));
                longest_end = longest_end.max(node.stop());
                node = next;
            }
            longest = longest.max(scene.progress(scene.committed(), PATIENCE));
            (longest, longest_end, node)
        });
        scene.feed(records().saturating_sub(scene.fed * PARTITIONS as usize));
        scene.finish(PATIENCE);
        scene.judge();
        println!("clean moves: each node ended within {longest_end:?} under load");
        result("clean moves between nodes under load", seed, &scene, longest, Duration::from_secs(20));
    }
}
