//! Faults under the Kafka adapter alone: rebalances, a request that comes late. `kafka_reliability.rs` tries nodes.
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

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use coproc::core::deployment::StartOffset;
use coproc::core::ledger::TopicPartition;
use coproc::core::names::TopicName;
use coproc::core::record::{Batch, Offset, Record};
use coproc::kafka::{Assignor, KafkaConfig, KafkaLog};
use coproc::ports::{Emit, Event, History, Log, LogError, Placement};

use self::cluster::{Cluster, fill, fresh, plain, short, topic};
use self::lane::{Lane, spec};
use self::proxy::{END_TXN, Lie, Proxy, TXN_OFFSET_COMMIT};

const LONG: Duration = Duration::from_secs(90);

/// Fail points are those of the whole process.
static FAILPOINTS: RwLock<()> = RwLock::new(());

/// For a test that sets some.
fn alone() -> impl Drop {
    FAILPOINTS.write().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that must not meet those of another.
fn beside_others() -> impl Drop {
    FAILPOINTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Lanes that come and go while others copy.
fn storm(assignor: Assignor) {
    let _guard = beside_others();
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

/// librdkafka takes the end of a partition for a record: a partition that stays while others go would be resumed one record
/// too far.
#[test]
fn a_partition_that_stays_in_a_cooperative_rebalance_loses_no_record() {
    let _guard = beside_others();
    let mut config = plain().config();
    config.assignor = Assignor::Cooperative;
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "stays", 2), topic(&*log, "stays-out", 2));
    let group = fresh("g");
    fill(&*log, &from, 2, 20);
    let mut first = Lane::open(&*log, &spec(&group, "first", &from, &to)).unwrap();
    first.run(LONG, |lane| lane.copied == 20 && lane.at_end.len() == 2).unwrap();
    first.commit().unwrap();
    let mut second = Lane::open(&*log, &spec(&group, "second", &from, &to)).unwrap();
    let deadline = Instant::now() + LONG;
    let mut batch = Batch::default();
    let leaving = loop {
        assert!(Instant::now() < deadline, "nothing is revoked");
        second.step().unwrap();
        match first.session.poll(&mut batch, Duration::from_millis(50)) {
            Event::Revoking { partitions, lost: false } => break partitions,
            Event::Idle | Event::Assigned(_) | Event::CaughtUp { .. } => {}
            event => panic!("{event:?}"),
        }
    };
    assert_eq!(leaving.len(), 1, "{leaving:?}");
    // The client has paused the other one by now.
    fill(&*log, &from, 2, 10);
    first.session.release();
    first.ledger.forget(&leaving);
    while first.copied + second.copied < 30 {
        assert!(Instant::now() < deadline, "{} and {} of 30 records", first.copied, second.copied);
        first.step().unwrap();
        second.step().unwrap();
    }
    first.commit().unwrap();
    second.commit().unwrap();
    drop((first, second));
    oracle::assert_copied(plain(), &from, &to);
}

/// Nobody knows where partitions 0 to 2 go on.
struct Removed;

impl History for Removed {
    fn had_committed(&self, at: &TopicPartition) -> Result<bool, LogError> {
        Ok(at.partition < 3)
    }
}

/// A partition whose committed offset is gone is owned, and unknown to the client, which takes it for an error to give it up.
#[test]
fn partitions_that_stand_still_change_hands_in_a_cooperative_group() {
    let _guard = beside_others();
    let mut config = plain().config();
    config.assignor = Assignor::Cooperative;
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "gone", 4), topic(&*log, "gone-out", 4));
    let group = fresh("g");
    fill(&*log, &from, 4, 40);
    let open = || {
        let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
        lane.session.recall(Box::new(Removed));
        lane
    };
    let mut first = open();
    let deadline = Instant::now() + LONG;
    // What stands still is an error of the lane's step each time that it is found.
    while first.copied < 10 {
        assert!(Instant::now() < deadline, "partition 3 is not read");
        let _ = first.step();
    }
    let mut second = open();
    while (first.assigned.len(), second.assigned.len()) != (2, 2) {
        assert!(Instant::now() < deadline, "{:?} and {:?}", first.assigned, second.assigned);
        let _ = (first.step(), second.step());
    }
    fill(&*log, &from, 4, 40);
    while first.copied + second.copied < 20 {
        assert!(Instant::now() < deadline, "{} and {} of 20 records", first.copied, second.copied);
        let _ = (first.step(), second.step());
    }
    first.commit().unwrap();
    second.commit().unwrap();
    drop((first, second));
    assert_eq!(oracle::contents(plain(), &to)[&3].len(), 20);
}

/// Whoever has one cannot seek it. That is no reason to leave the group, again and again.
#[test]
fn partitions_out_of_range_leave_a_cooperative_group_in_peace() {
    let _guard = beside_others();
    let mut config = plain().config();
    config.assignor = Assignor::Cooperative;
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "peace", 4), topic(&*log, "peace-out", 4));
    let group = fresh("g");
    fill(&*log, &from, 4, 40);
    let ahead = (0..3).map(|partition| (TopicPartition::new(&from, partition), 1_000)).collect();
    log.offsets().alter(&group.parse().unwrap(), &ahead).unwrap();
    let open = || Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    let mut lanes = vec![open()];
    let deadline = Instant::now() + LONG;
    // Until every lane has its share, and for so long nothing has changed.
    let settle = |lanes: &mut Vec<Lane>| {
        let (mut since, mut seen) = (Instant::now(), (0, Vec::new()));
        let is_shared = |lanes: &[Lane]| lanes.iter().all(|lane| lane.assigned.len() == 4 / lanes.len());
        while since.elapsed() < Duration::from_secs(3) || !is_shared(lanes) {
            assert!(Instant::now() < deadline, "the group does not settle: {seen:?}");
            for lane in lanes.iter_mut() {
                // A partition that cannot be read on is an error of the step.
                let _ = lane.step();
            }
            let rewinds: usize = lanes.iter().map(|lane| lane.rewinds).sum();
            let now = (rewinds, lanes.iter().map(|lane| lane.assigned.clone()).collect());
            if now != seen {
                (since, seen) = (Instant::now(), now);
            }
        }
        seen.0
    };
    assert_eq!(settle(&mut lanes), 0);
    assert_eq!(lanes[0].copied, 10, "one is in range");
    lanes.push(open());
    assert_eq!(settle(&mut lanes), 0);
    lanes.truncate(1);
    assert_eq!(settle(&mut lanes), 0);
    lanes.push(open());
    assert_eq!(settle(&mut lanes), 0);
}

#[test]
fn a_cooperative_storm_of_rebalances_loses_and_repeats_nothing() {
    storm(Assignor::Cooperative);
}

/// While nothing can be committed, not even where it started, records come: a lane that asked its policy anew would
/// leave them out.
#[test]
fn a_rewind_before_the_first_commit_goes_back_to_where_it_started() {
    let _guard = alone();
    let log = plain().log();
    let (from, to) = (topic(&*log, "early", 1), topic(&*log, "early-out", 1));
    fill(&*log, &from, 1, 100);
    fail::cfg("kafka-abort", "return").unwrap();
    let mut spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    spec.start = StartOffset::Latest;
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.run(LONG, |lane| lane.assigned.len() == 1).unwrap();
    fill(&*log, &from, 1, 50);
    lane.run(LONG, |lane| lane.copied >= 100 && lane.rewinds >= 2).unwrap();
    assert!(log.offsets().committed(&spec.group).unwrap().is_empty());
    fail::remove("kafka-abort");
    lane.run(LONG, |lane| lane.at_end.len() == 1).unwrap();
    drop(lane);
    let mut wanted = oracle::kcat(plain(), &from).remove(&0).unwrap();
    let wanted = wanted.split_off(100);
    assert!(oracle::contents(plain(), &to)[&0] == wanted, "each of the 50 records once");
}

/// Writes a record that was not read.
fn emit(lane: &mut Lane, to: &TopicName, value: &[u8]) -> Result<(), LogError> {
    let payload = Record::new(None, Some(value)).payload();
    let (placement, timestamp) = (Placement::Exactly(0), 0);
    lane.session.emit(&Emit { topic: to, placement, timestamp, payload: &payload })
}

/// What was emitted before its transaction could begin, and then could not be handed over, is not committed without it.
#[test]
fn what_could_not_be_handed_over_is_not_committed() {
    let _guard = alone();
    let log = plain().log();
    let (from, to) = (topic(&*log, "held", 1), topic(&*log, "held-out", 1));
    fill(&*log, &from, 1, 1);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 1 && lane.at_end.len() == 1).unwrap();
    let emit = |lane: &mut Lane| emit(lane, &to, b"held");
    emit(&mut lane).unwrap();
    lane.commit().unwrap();
    // Right after a commit: it is held.
    fail::cfg("kafka-hand-over", "return").unwrap();
    emit(&mut lane).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let event = lane.session.poll(&mut Batch::default(), Duration::ZERO);
    fail::remove("kafka-hand-over");
    assert!(matches!(event, Event::Failed(LogError::Unavailable(_))), "{event:?}");
    assert!(lane.commit().is_err(), "the held record would be missing");
    lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
    emit(&mut lane).unwrap();
    lane.commit().unwrap();
    drop(lane);
    assert_eq!(oracle::contents(plain(), &to)[&0].len(), 3);
}

/// A lane waits before it rewinds, and longer with each failure: an open transaction would hold readers back meanwhile.
#[test]
fn a_lane_that_waits_holds_no_reader_up() {
    let _guard = alone();
    let log = plain().log();
    let (from, to) = (topic(&*log, "waits", 1), topic(&*log, "waits-out", 1));
    fill(&*log, &from, 1, 1);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 1 && lane.at_end.len() == 1).unwrap();
    let emit = |lane: &mut Lane| emit(lane, &to, b"again");
    emit(&mut lane).unwrap();
    fail::cfg("kafka-abort", "return").unwrap();
    let committed = lane.commit();
    fail::remove("kafka-abort");
    assert!(committed.is_err());
    let stable = || log.topics().extents(&to).unwrap()[0].end;
    let before = stable();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(stable(), before, "the transaction is open");
    lane.session.abandon();
    let deadline = Instant::now() + Duration::from_secs(5);
    while stable() == before {
        assert!(Instant::now() < deadline, "readers wait for it");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(emit(&mut lane).is_err(), "before a rewind nothing is known to be in step");
    lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
    emit(&mut lane).unwrap();
    lane.commit().unwrap();
    drop(lane);
    assert_eq!(oracle::contents(plain(), &to)[&0].len(), 2);
}

/// Only who knows the ends of a partition can say that an offset lies outside.
#[test]
fn a_broker_that_does_not_answer_is_no_proof_that_records_are_gone() {
    let _guard = alone();
    let log = plain().log();
    let (from, to) = (topic(&*log, "ends", 1), topic(&*log, "ends-out", 1));
    let group = fresh("g");
    fill(&*log, &from, 1, 10);
    let ahead = BTreeMap::from([(TopicPartition::new(&from, 0), 1_000)]);
    log.offsets().alter(&group.parse().unwrap(), &ahead).unwrap();
    fail::cfg("kafka-ends", "return").unwrap();
    let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.rewinds == 1).unwrap();
    fail::remove("kafka-ends");
    match lane.run(LONG, |_| false).expect_err("it is out of range") {
        LogError::OffsetOutOfRange { wanted, first, end, .. } => {
            assert_eq!((wanted, first, end), (1_000, 0, 10));
        }
        other => panic!("{other}"),
    }
}

/// The brokers behind the proxy, with short time-outs.
fn through(proxy: &Proxy) -> KafkaConfig {
    let mut config = KafkaConfig::plain([format!("127.0.0.1:{}", proxy.port)]);
    config.timing = short();
    config
}

/// KAFKA-17754: the request to commit one transaction is held back, the client asks again and goes on, and
/// then the first request arrives while the next transaction is open.
fn delayed_commit(cluster: &Cluster, proxy: &Proxy) -> (TopicName, TopicName) {
    let log = KafkaLog::connect(through(proxy)).unwrap();
    let (from, to) = (topic(&*log, "late", 1), topic(&*log, "late-out", 1));
    fill(&*log, &from, 1, 500);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 500).unwrap();
    proxy.hold_next(END_TXN);
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
    let _guard = alone();
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

/// The same of a request to abort: what the next transaction wrote is aborted, and its offsets, which come after, are not. Where
/// the group is said to stand after it.
fn delayed_abort(proxy: &Proxy) -> (TopicName, TopicName, Offset) {
    let log = KafkaLog::connect(through(proxy)).unwrap();
    let (from, to) = (topic(&*log, "late-abort", 1), topic(&*log, "late-abort-out", 1));
    fill(&*log, &from, 1, 500);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 500).unwrap();
    // What was not sent needs no request to abort it, and what a poll says is said again after the rewind.
    let send = |lane: &mut Lane| {
        let sent = Instant::now() + Duration::from_millis(500);
        while Instant::now() < sent {
            lane.session.poll(&mut Batch::default(), Duration::from_millis(10));
        }
    };
    send(&mut lane);
    proxy.hold_next(END_TXN);
    lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
    lane.run(LONG, |lane| lane.copied == 1000).unwrap();
    send(&mut lane);
    proxy.release();
    std::thread::sleep(Duration::from_millis(500));
    lane.commit().unwrap();
    drop(lane);
    let at = log.offsets().committed(&spec.group).unwrap();
    (from.clone(), to, at[&TopicPartition::new(&from, 0)])
}

#[test]
fn a_late_abort_of_an_earlier_transaction_does_no_harm() {
    let _guard = alone();
    let proxy = Proxy::start();
    let cluster = Cluster::start("proxied-abort", &["--proxy", &proxy.port.to_string()]);

    // The rule off: records are lost.
    fail::cfg("kafka-no-taint", "return").unwrap();
    let (_, to, at) = delayed_abort(&proxy);
    fail::remove("kafka-no-taint");
    let count = oracle::kcat(&cluster, &to).values().map(Vec::len).sum::<usize>();
    assert_eq!((count, at), (0, 500), "the detector must see the loss");

    // The rule on.
    let (from, to, at) = delayed_abort(&proxy);
    assert_eq!(at, 500);
    oracle::assert_copied(&cluster, &from, &to);
}

/// The offsets of one transaction are held back, the client sends them again and goes on, and then the first request arrives
/// between the offsets of the next transaction and its end. Where the group is said to stand after it.
fn delayed_offsets(proxy: &Proxy) -> Offset {
    let log = KafkaLog::connect(through(proxy)).unwrap();
    let (from, to) = (topic(&*log, "late-offsets", 1), topic(&*log, "late-offsets-out", 1));
    fill(&*log, &from, 1, 500);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 500).unwrap();
    proxy.hold_next(TXN_OFFSET_COMMIT);
    lane.commit().unwrap();
    fill(&*log, &from, 1, 500);
    lane.run(LONG, |lane| lane.copied == 1000).unwrap();
    let held = proxy.clone();
    let after_offsets = move || {
        held.release();
        std::thread::sleep(Duration::from_millis(500));
    };
    fail::cfg_callback("kafka-after-offsets", after_offsets).unwrap();
    let committed = lane.session.ack_commit(&lane.ledger);
    fail::remove("kafka-after-offsets");
    committed.unwrap();
    let partition = TopicPartition::new(&from, 0);
    log.offsets().committed(&spec.group).unwrap()[&partition]
}

#[test]
fn late_offsets_of_an_earlier_transaction_do_no_harm() {
    let _guard = alone();
    let proxy = Proxy::start();
    let _cluster = Cluster::start("late", &["--proxy", &proxy.port.to_string()]);
    // The rule off: the next owner would do 500 records again.
    fail::cfg("kafka-no-taint", "return").unwrap();
    assert_eq!(delayed_offsets(&proxy), 500, "the detector must see the old offset");
    fail::remove("kafka-no-taint");
    // The rule on.
    assert_eq!(delayed_offsets(&proxy), 1_000);
}

/// Whether brokers that said that there are none cut the connections too.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Yes,
    No,
}

/// A lane whose brokers said that there are none, and then are back. It has something to do only after a rest.
fn denied(cluster: &Cluster, proxy: &Proxy, cut: Cut, rest: Duration) {
    let mut config = through(proxy);
    config.metadata_refresh = Duration::from_secs(1);
    let log = KafkaLog::connect(config.clone()).unwrap();
    let (from, to) = (topic(&*log, "denied", 1), topic(&*log, "denied-out", 1));
    fill(&*log, &from, 1, 100);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = Lane::open(&*log, &spec).unwrap();
    let partition = TopicPartition::new(&from, 0);
    let is_done_with = |lane: &Lane, records| {
        lane.ledger.committed(&partition).is_some_and(|next| next >= records) && !lane.ledger.is_dirty()
    };
    let run_for = |lane: &mut Lane, time| {
        let began = Instant::now();
        while began.elapsed() < time {
            lane.step().unwrap();
        }
    };
    lane.run(LONG, |lane| is_done_with(lane, 100)).unwrap();
    proxy.tell(Lie::NoBrokers);
    // Long enough for each client to ask, and to be told.
    run_for(&mut lane, Duration::from_secs(5));
    let denied = proxy.denied();
    assert!(denied.contains(&spec.transactional_id) && denied.len() >= 3, "{denied:?}");
    if cut == Cut::Yes {
        proxy.cut();
    }
    proxy.tell(Lie::None);
    run_for(&mut lane, rest);
    let began = Instant::now();
    let other = KafkaLog::connect(config).unwrap();
    fill(&*other, &from, 1, 100);
    lane.run(LONG, |lane| is_done_with(lane, 200)).unwrap();
    println!("after {rest:?} the lane went on within {:?}, with {} rewinds", began.elapsed(), lane.rewinds);
    // The clients of the log itself.
    fill(&*log, &from, 1, 100);
    lane.run(LONG, |lane| is_done_with(lane, 300)).unwrap();
    drop(lane);
    assert_eq!(log.offsets().committed(&spec.group).unwrap().len(), 1);
    oracle::assert_copied(cluster, &from, &to);
}

/// A broker that is stopping may answer so; librdkafka then forgets every broker and asks nobody any more
/// (<https://github.com/confluentinc/librdkafka/issues/5301>).
#[test]
fn clients_that_were_told_of_no_brokers_find_them_again() {
    let _guard = beside_others();
    let proxy = Proxy::start();
    let cluster = Cluster::start("denied", &["--proxy", &proxy.port.to_string()]);
    denied(&cluster, &proxy, Cut::Yes, Duration::ZERO);
    denied(&cluster, &proxy, Cut::No, Duration::from_secs(8));
}

/// A question to a coordinator that times out before there is one ends the process once there is
/// (<https://github.com/confluentinc/librdkafka/issues/4605>).
#[test]
fn a_coordinator_that_is_found_late_ends_nobody() {
    let _guard = beside_others();
    let proxy = Proxy::start();
    let _cluster = Cluster::start("coordinator", &["--proxy", &proxy.port.to_string()]);
    let log = KafkaLog::connect(through(&proxy)).unwrap();
    let group = fresh("g").parse().unwrap();
    proxy.tell(Lie::NoCoordinator);
    let began = Instant::now();
    assert!(log.offsets().members(&group).is_err());
    assert!(log.offsets().delete(&group).is_err());
    println!("given up after {:?}", began.elapsed());
    proxy.tell(Lie::None);
    // The clients look for it again with their next connection.
    proxy.cut();
    let deadline = Instant::now() + LONG;
    while log.offsets().members(&group).is_err() {
        assert!(Instant::now() < deadline, "the coordinator is not found again");
    }
    // Time for what is still under way.
    std::thread::sleep(Duration::from_secs(5));
    log.offsets().delete(&group).unwrap();
}

/// librdkafka waits longer than it is told to for a coordinator that does not take offsets, in some cases for good
/// (<https://github.com/confluentinc/librdkafka/issues/5456>): the lane must not.
#[test]
fn offsets_that_nobody_takes_hold_a_lane_up_no_longer_than_a_commit_may() {
    let _guard = beside_others();
    let proxy = Proxy::start();
    let cluster = Cluster::start("unanswered", &["--proxy", &proxy.port.to_string()]);
    let config = through(&proxy);
    let budget = config.timing.commit_budget();
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "unanswered", 1), topic(&*log, "unanswered-out", 1));
    fill(&*log, &from, 1, 200);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 200).unwrap();
    proxy.tell(Lie::NoOffsets);
    let began = Instant::now();
    let error = lane.session.ack_commit(&lane.ledger).unwrap_err();
    let took = began.elapsed();
    println!("given up after {took:?} of {budget:?}");
    // The client itself comes back with another text, and later.
    assert!(error.to_string().contains("did not take the offsets in time"), "{error}");
    proxy.tell(Lie::None);
    lane.rewind(&error).unwrap();
    lane.run(LONG, |lane| lane.copied >= 400 && lane.at_end.len() == 1).unwrap();
    lane.commit().unwrap();
    drop(lane);
    oracle::assert_copied(&cluster, &from, &to);
}
