//! Cases of `kafka_reliability.rs` whose cause lies with records, guests and topics: recovery counts from the first
//! failure where the node helps itself, and from the removal of the cause where somebody has to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use coproc::core::ledger::TopicPartition;
use coproc::core::status::{DeploymentStatus, State};
use coproc::ports::Extent;

use super::cluster::{plain, short};
use super::oracle;
use super::process::{Process, Role};
use super::scene::{BUSY, Dice, PARTITIONS, Scene, Setup, records, result, seeds, stamped};
use super::slow::slow;
use super::support::{PATIENCE, fragile, identity, topic, wait_for};

/// What a record may take, as tests deploy it.
const TIME_PER_RECORD: Duration = Duration::from_millis(300);
/// A guest that loops is ended within so long after its time.
const TO_END_A_GUEST: Duration = Duration::from_secs(1);
/// Retries, and the waits before them.
const RETRIES: u32 = 1;
const BACK_OFF: Duration = Duration::from_millis(20);
/// How often a node looks for topics that it misses.
const TOPICS_EVERY: Duration = Duration::from_secs(1);
/// How often clients look for new partitions, in tests.
const REFRESH: Duration = Duration::from_secs(1);
/// The longest wait of a deployment whose lanes ended, before it is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Each of these, and a number: ends with an error, traps, loops, eats memory; the fifth is too large for the topic.
const POISON: [&str; 5] = ["$", "!", "@", "#", "L"];
const TOPIC_TAKES: usize = 20_000;

fn poison(kind: &str, number: usize) -> String {
    if kind == "L" {
        format!("L{number:0>width$}", width = TOPIC_TAKES - 50)
    } else {
        format!("{kind}{number}")
    }
}

fn is_clean(value: &str) -> bool {
    value.starts_with('x')
}

/// A deployment of a guest that fails at some records, in a topic that refuses others.
fn fragile_scene(name: &str, on_exhausted: &str, dead_letters: &str) -> Scene {
    let policies = format!(
        r#""errorPolicy":{{"maxRetries":{RETRIES},"onExhausted":"{on_exhausted}",{dead_letters}
           "initialBackoff":"10ms","maxBackoff":"{}ms"}}"#,
        BACK_OFF.as_millis()
    );
    let mut setup = Setup::new(fragile(), &policies);
    setup.output.max_record_bytes = TOPIC_TAKES;
    Scene::set_up(plain(), name, setup)
}

/// The longest that one poison record holds its partition up.
fn of_poison() -> Duration {
    (TIME_PER_RECORD + TO_END_A_GUEST) * (RETRIES + 1) + BACK_OFF * RETRIES
}

/// Poison of every kind, anywhere among good records; a number of each kind.
fn feed_with_poison(scene: &mut Scene, dice: &mut Dice) -> usize {
    let rounds = (records() / 3_000).max(2);
    for round in 0..rounds {
        for kind in POISON {
            scene.feed(records() / rounds / POISON.len());
            scene.send(dice.below(u64::from(PARTITIONS)) as u32, &poison(kind, round));
        }
        scene.feed(records() / rounds / POISON.len());
    }
    rounds
}

fn goes_on_after_poison(case: &str, seed: u64, scene: &Scene) {
    let _node = Process::start(&scene.role(1), None);
    scene.progress(0, PATIENCE);
    // One lane has all partitions: in the worst case each waits for the poison of the others too.
    let bound = of_poison() * PARTITIONS + BUSY;
    let longest = scene.finish_without_standing(bound);
    scene.judge_copies(is_clean);
    result(case, seed, scene, longest, bound);
}

#[test]
fn poison_that_is_skipped() {
    for seed in seeds() {
        let mut scene = fragile_scene("skipped", "Skip", "");
        feed_with_poison(&mut scene, &mut Dice(seed));
        scene.deploy();
        goes_on_after_poison("poison of 5 kinds (error, trap, loop, memory, size), Skip", seed, &scene);
    }
}

#[test]
fn poison_that_is_put_aside() {
    for seed in seeds() {
        let name = format!("aside-dead-{seed}");
        let dead = format!(r#""deadLetterTopic":"{name}","#);
        let mut scene = fragile_scene("aside", "DeadLetter", &dead);
        scene.rig.create(&name, PARTITIONS);
        let rounds = feed_with_poison(&mut scene, &mut Dice(seed));
        scene.deploy();
        goes_on_after_poison("poison of 5 kinds, DeadLetter", seed, &scene);
        let found = oracle::contents(plain(), &topic(&name));
        let found: Vec<String> = found.into_values().flatten().map(|(_, value)| value).collect();
        let all: BTreeSet<String> =
            POISON.iter().flat_map(|kind| (0..rounds).map(|round| poison(kind, round))).collect();
        assert_eq!(found.len(), all.len(), "each dead letter once");
        assert!(found.into_iter().collect::<BTreeSet<_>>() == all, "all dead letters, as they were");
    }
}

/// Each partition stands at a poison record of another kind; another module goes on there.
#[test]
fn poison_that_stops_its_partition() {
    let bound = Duration::from_secs(1) + BUSY;
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut scene = fragile_scene("stopped", "Fail", "");
        let first = dice.below(POISON.len() as u64 - 1) as usize;
        scene.feed(records() / 2);
        for partition in 0..PARTITIONS {
            let kind = POISON[(first + partition as usize) % (POISON.len() - 1)];
            scene.send(partition, &poison(kind, 0));
        }
        scene.feed(records() / 2);
        scene.deploy();
        let _node = Process::start(&scene.role(1), None);
        let half = (records() / 2 / PARTITIONS as usize) as i64;
        let standing = |status: &DeploymentStatus| {
            status.partitions.len() == PARTITIONS as usize
                && status.partitions.iter().all(|at| at.error.is_some() && at.offset == half)
        };
        let within = PATIENCE + Duration::from_millis(records() as u64);
        await_status(&scene, within, |status| status.state == State::Failed && standing(status));
        let before = scene.committed();
        assert_eq!(before, half * i64::from(PARTITIONS), "each stands at its poison");
        scene.deploy_module(&identity());
        let took = scene.progress(before, bound);
        scene.finish(bound);
        scene.judge_copies(|_| true);
        result(
            "poison that stops its partition (Fail), until another module goes on",
            seed,
            &scene,
            took,
            bound,
        );
    }
}

fn await_status(scene: &Scene, within: Duration, is_so: impl Fn(&DeploymentStatus) -> bool) {
    let (began, mut last) = (Instant::now(), None);
    loop {
        let status = scene.rig.status(&scene.name);
        if status.as_ref().is_some_and(&is_so) {
            return;
        }
        last = status.or(last);
        assert!(began.elapsed() < within, "{}: not within {within:?}: {last:?}", scene.name);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn await_reason(scene: &Scene, reason: &str) {
    await_status(scene, PATIENCE, |status| status.reason.as_deref() == Some(reason));
}

/// Under load. What was committed to the topic that goes is gone with it; all that comes after is there.
#[test]
fn an_output_topic_that_is_deleted() {
    let bound = RETRY_MAX + TOPICS_EVERY + BUSY;
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "deleted", 1);
        scene.feed(records() / 2);
        let _node = Process::start(&scene.role(1), None);
        scene.progress(0, PATIENCE);
        scene.rig.log.topics().delete(&scene.to).unwrap();
        scene.feed(records() / 2);
        await_reason(&scene, "TopicNotFound");
        let before = scene.offsets();
        scene.create_output();
        let took = scene.progress(before.values().sum(), bound);
        scene.finish(bound);
        let skipped = |partition: u32| before[&TopicPartition::new(&scene.from, partition)] as usize;
        scene.judge_by(
            |partition, number, input| (number >= skipped(partition)).then(|| stamped(input)),
            |found| found,
        );
        result("output topic deleted under load, made again", seed, &scene, took, bound);
    }
}

/// Some records take twice as long as a transaction may.
#[test]
fn a_guest_slower_than_the_transaction() {
    const LIMIT: Duration = Duration::from_millis(9_900);
    // Once in the transaction that expires, and once with none open; what was in that transaction takes moments.
    let bound = LIMIT * 2 + BUSY;
    let module = slow();
    for seed in seeds() {
        let mut dice = Dice(seed);
        let mut setup = Setup::new(module.clone(), "");
        // Thousands of records in one transaction.
        r#""batch":{"maxRecords":50,"commitInterval":"1s"}"#.clone_into(&mut setup.policies);
        setup.time_per_record = Some(LIMIT);
        let mut scene = Scene::set_up(plain(), "slow", setup);
        let slow_ones = if records() > 50_000 { 6 } else { 2 };
        let partition = dice.below(u64::from(PARTITIONS)) as u32;
        for number in 0..slow_ones {
            scene.feed(records() / (slow_ones + 1));
            scene.send(partition, &format!("s{number}"));
        }
        scene.feed(records() / (slow_ones + 1));
        scene.deploy();
        let role = Role { is_hurried: true, ..scene.role(1) };
        let _node = Process::start(&role, None);
        scene.progress(0, PATIENCE);
        // The lane reads on in the partition of the slow ones for as long as it has fetched of it: the others wait.
        let longest = scene.finish_without_a_standstill(bound);
        let said = std::fs::read_to_string(&role.log).unwrap();
        // Without it, nothing was shown. A slow record is hardly ever the first of a transaction, and it takes almost
        // twice as long as the time-out and the broker's look for expired ones together.
        assert!(
            said.contains("a transaction took too long"),
            "no transaction took too long, see {}",
            role.log.display()
        );
        scene.judge_copies(|_| true);
        result("guest slower than the transaction's time-out", seed, &scene, longest, bound);
    }
}

#[test]
fn partitions_that_are_added() {
    const MORE: u32 = 5;
    let bound = REFRESH + short().session + BUSY;
    for seed in seeds() {
        let mut scene = Scene::new(plain(), "added", 1);
        scene.feed(records() / 2);
        let _node = Process::start(&scene.role(1), None);
        scene.progress(0, PATIENCE);
        for name in [&scene.to, &scene.from] {
            scene.rig.log.topics().grow(name, MORE).unwrap();
        }
        let began = Instant::now();
        for number in 0..50 {
            for partition in PARTITIONS..MORE {
                scene.send(partition, &format!("x{number}"));
            }
        }
        let took = wait_for("a commit in each new partition", || {
            let offsets = scene.offsets();
            let has = |n| offsets.get(&TopicPartition::new(&scene.from, n)).is_some_and(|at| *at > 0);
            (PARTITIONS..MORE).all(has).then(|| began.elapsed())
        });
        scene.feed(records() / 2);
        scene.finish(bound);
        scene.judge();
        result("partitions added under load", seed, &scene, took, bound);
    }
}

#[test]
fn a_committed_offset_out_of_range() {
    let bound = Duration::from_secs(1) + BUSY;
    for seed in seeds() {
        let mut scene = Scene::set_up(plain(), "range", Setup::new(identity(), ""));
        scene.feed(records());
        let each = (records() / PARTITIONS as usize) as i64;
        let (at, first) = (each / 10, each / 2);
        let place = |partition: u32, offset| (TopicPartition::new(&scene.from, partition), offset);
        let offsets = |offset| (0..PARTITIONS).map(|n| place(n, offset)).collect::<BTreeMap<_, _>>();
        scene.rig.log.offsets().alter(&scene.group, &offsets(at)).unwrap();
        // Of one partition the records are gone; the others go on.
        scene.cluster.delete_records(&scene.from, 1, first);
        let kept = Extent { first, end: each };
        assert_eq!(scene.extents()[1], kept);
        scene.deploy();
        let _node = Process::start(&scene.role(1), None);
        await_reason(&scene, "OffsetOutOfRange");
        scene.progress(2 * each + at - 1, PATIENCE + Duration::from_millis(records() as u64));
        assert_eq!(scene.committed(), 2 * each + at, "nobody jumped");
        scene.rig.set_paused(&scene.name, true);
        wait_for("the lanes to leave", || {
            (scene.rig.log.offsets().members(&scene.group).ok()? == 0).then_some(())
        });
        scene.rig.log.offsets().alter(&scene.group, &BTreeMap::from([place(1, first)])).unwrap();
        let before = scene.committed();
        scene.rig.set_paused(&scene.name, false);
        let took = scene.progress(before, bound);
        scene.finish(bound);
        let number = |value: &str| value[1..].parse::<i64>().unwrap();
        // What is gone is not among the inputs any more.
        scene.judge_copies(|value| number(value) >= at);
        result("committed offset out of range, until another one is set", seed, &scene, took, bound);
    }
}
