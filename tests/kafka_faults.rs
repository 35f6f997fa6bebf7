//! Faults under the Kafka adapter: crashes at every step of a commit, rebalances, a request that comes late.
#![cfg(all(feature = "kafka", feature = "failpoints"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "tests start their own threads and read their own variables")]

#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/lane.rs"]
mod lane;
#[path = "kafka/oracle.rs"]
mod oracle;
#[path = "kafka/proxy.rs"]
mod proxy;

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coproc::core::names::TopicName;
use coproc::kafka::{Assignor, KafkaConfig, KafkaLog};
use coproc::ports::{Log, LogError};

use self::cluster::{Cluster, fill, fresh, plain, short, topic};
use self::lane::{Lane, spec};
use self::proxy::Proxy;

const LONG: Duration = Duration::from_secs(90);

/// A lane in a process of its own: copies to the end, or dies at the nth pass of a failpoint.
fn child(from: &TopicName, to: &TopicName, group: &str, id: &str, fault: Option<(&str, u32)>) -> Child {
    let (step, nth) = fault.unwrap_or_default();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lane_process", "--ignored", "--nocapture", "--test-threads=1"])
        .envs([("LANE_BROKERS", plain().bootstrap.as_str()), ("LANE_GROUP", group), ("LANE_ID", id)])
        .envs([("LANE_FROM", from.as_str()), ("LANE_TO", to.as_str()), ("LANE_STEP", step)])
        .env("LANE_NTH", nth.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a process that other tests start and kill"]
fn lane_process() {
    let Ok(brokers) = std::env::var("LANE_BROKERS") else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    let mut config = KafkaConfig::plain([brokers]);
    config.timing = short();
    let log = KafkaLog::connect(config).unwrap();
    let (step, nth) = (var("LANE_STEP"), var("LANE_NTH").parse::<u32>().unwrap());
    if nth > 0 {
        let passed = AtomicU32::new(0);
        fail::cfg_callback(step, move || {
            if passed.fetch_add(1, Ordering::Relaxed) + 1 == nth {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                std::thread::sleep(LONG);
            }
        })
        .unwrap();
    }
    let (from, to) = (var("LANE_FROM").parse().unwrap(), var("LANE_TO").parse().unwrap());
    let mut lane = Lane::open(&*log, &spec(&var("LANE_GROUP"), &var("LANE_ID"), &from, &to)).unwrap();
    lane.commit_interval = Duration::from_millis(5);
    lane.run(LONG, |lane| lane.at_end.len() == 2).unwrap();
}

#[test]
fn a_crash_at_any_step_of_a_commit_loses_and_repeats_nothing() {
    let log = plain().log();
    let steps = [
        ("kafka-after-begin", 3),
        ("kafka-emit", 2345),
        ("kafka-after-flush", 3),
        ("kafka-after-offsets", 3),
        ("kafka-after-commit", 3),
    ];
    for fault in steps {
        let (from, to) = (topic(&*log, "crash", 2), topic(&*log, "crash-out", 2));
        fill(&*log, &from, 2, 5000);
        let (group, id) = (fresh("g"), fresh("t"));
        let died = child(&from, &to, &group, &id, Some(fault)).wait().unwrap();
        assert!(!died.success(), "{fault:?} was not reached");
        let began = Instant::now();
        assert!(child(&from, &to, &group, &id, None).wait().unwrap().success(), "after {fault:?}");
        println!("killed at {fault:?}: all copied {:?} after the restart", began.elapsed());
        oracle::assert_copied(plain(), &from, &to);
    }
}

#[test]
fn a_slot_that_never_returns_is_taken_over() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "leave", 2), topic(&*log, "leave-out", 2));
    fill(&*log, &from, 2, 5000);
    let group = fresh("g");
    let died = child(&from, &to, &group, &fresh("t"), Some(("kafka-after-offsets", 3))).wait().unwrap();
    assert!(!died.success());
    let began = Instant::now();
    assert!(child(&from, &to, &group, &fresh("other"), None).wait().unwrap().success());
    let took = began.elapsed();
    println!("another slot had copied all after {took:?}");
    // Session and transaction time-out, the broker's look for expired transactions, and a margin.
    assert!(took < short().session + short().transaction + Duration::from_secs(15), "{took:?}");
    oracle::assert_copied(plain(), &from, &to);
}

#[test]
fn a_stopped_process_is_a_zombie_and_writes_nothing() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "zombie", 2), topic(&*log, "zombie-out", 2));
    fill(&*log, &from, 2, 30_000);
    let group = fresh("g");
    let mut zombie = child(&from, &to, &group, &fresh("t"), None);
    let pid = rustix::process::Pid::from_child(&zombie);
    while log.topics().extents(&to).unwrap().iter().all(|extent| extent.end == 0) {
        assert!(zombie.try_wait().unwrap().is_none(), "it had no time to begin");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.at_end.len() == 2).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && zombie.try_wait().unwrap().is_none() {
        lane.step().unwrap();
    }
    let _ = zombie.kill();
    let _ = zombie.wait();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
}

/// Lanes that come and go while others copy.
fn storm(assignor: Assignor) {
    let mut config = plain().config();
    config.assignor = assignor;
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "storm", 6), topic(&*log, "storm-out", 6));
    fill(&*log, &from, 6, 12_000);
    let (group, over) = (fresh("g"), AtomicBool::new(false));
    let rewinds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for slot in 0..3u64 {
            let (log, over, rewinds) = (&log, &over, &rewinds);
            let mut spec = spec(&group, &fresh("t"), &from, &to);
            spec.max_records = 20;
            scope.spawn(move || {
                let mut life = 700 + 300 * slot;
                while !over.load(Ordering::Relaxed) {
                    let mut lane = Lane::open(&**log, &spec).unwrap();
                    life = 700 + (life * 7 + 311) % 1500;
                    let end = Instant::now() + Duration::from_millis(life);
                    while Instant::now() < end {
                        lane.step().unwrap();
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    rewinds.fetch_add(lane.rewinds as u32, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(12));
        over.store(true, Ordering::Relaxed);
    });
    let before: i64 = log.topics().extents(&to).unwrap().iter().map(|extent| extent.end).sum();
    let mut last = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    last.run(LONG, |lane| lane.at_end.len() == 6).unwrap();
    drop(last);
    println!("{assignor:?}: {before} offsets written in the storm, {rewinds:?} rewinds");
    assert!(before > 0, "nobody got anything done");
    oracle::assert_copied(plain(), &from, &to);
}

#[test]
fn an_eager_storm_of_rebalances_loses_and_repeats_nothing() {
    storm(Assignor::Eager);
}

#[test]
fn a_cooperative_storm_of_rebalances_loses_and_repeats_nothing() {
    storm(Assignor::Cooperative);
}

/// Failpoints are the process's.
static FAILPOINTS: Mutex<()> = Mutex::new(());

/// KAFKA-17754: the request to commit one transaction is held back, the client asks again and goes on, and
/// then the first request arrives while the next transaction is open.
fn delayed_commit(cluster: &Cluster, proxy: &Proxy) -> (TopicName, TopicName) {
    let mut config = KafkaConfig::plain([format!("127.0.0.1:{}", proxy.port)]);
    config.timing = short();
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "late", 1), topic(&*log, "late-out", 1));
    fill(&*log, &from, 1, 500);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 500).unwrap();
    proxy.hold_next();
    lane.commit().unwrap();
    fill(&*log, &from, 1, 500);
    lane.run(LONG, |lane| lane.copied == 1000).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    proxy.release();
    std::thread::sleep(Duration::from_millis(500));
    lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
    lane.run(LONG, |lane| lane.at_end.len() == 1 && lane.copied >= 1500).unwrap();
    drop(lane);
    let _ = cluster;
    (from, to)
}

#[test]
fn a_late_commit_of_an_earlier_transaction_does_no_harm() {
    let _guard = FAILPOINTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let proxy = Proxy::start();
    let cluster = Cluster::start("proxied", &["--proxy", &proxy.port.to_string()]);

    // The rule off: the late request commits half of the next transaction, which is then done again.
    fail::cfg("kafka-no-taint", "return").unwrap();
    let (from, to) = delayed_commit(&cluster, &proxy);
    fail::remove("kafka-no-taint");
    let count = |topic: &TopicName| oracle::kcat(&cluster, topic).values().map(Vec::len).sum::<usize>();
    assert_eq!((count(&from), count(&to)), (1000, 1500), "the detector must see the duplicates");

    // The rule on.
    let (from, to) = delayed_commit(&cluster, &proxy);
    oracle::assert_copied(&cluster, &from, &to);
}
