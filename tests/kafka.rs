//! The Kafka adapter against a real broker: what each port promises, judged by readers that are not ours.
#![cfg(all(feature = "kafka", feature = "wasm"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

#[path = "kafka/cluster.rs"]
mod cluster;
#[path = "kafka/groups.rs"]
mod groups;
#[path = "kafka/lane.rs"]
mod lane;
#[path = "kafka/oracle.rs"]
mod oracle;
#[path = "kafka/proxy.rs"]
mod proxy;
#[path = "kafka/security.rs"]
mod security;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::control::topics::OwnTopic;
use coproc::core::deployment::{Delivery, StartOffset};
use coproc::core::disposition::Disposition;
use coproc::core::ledger::TopicPartition;
use coproc::core::names::{ConsumerGroup, TopicName};
use coproc::core::partitioner::Partitioner;
use coproc::core::record::{Batch, Record};
use coproc::core::status::State;
use coproc::kafka::{Assignor, KafkaLog, Timing};
use coproc::ports::{
    Ability, Cleanup, Emit, Event, Extent, FoldEvent, Keyed, Log, LogError, Placement, Produce, ReadFrom,
    Replicas, TopicConfig,
};

use self::cluster::{Cluster, await_end, fill, fresh, plain, short, topic};
use self::lane::{Lane, spec};
use self::proxy::Proxy;
use self::support::{Rig, identity, numbers, try_to_start_node};

const LONG: Duration = Duration::from_mins(1);

fn read_all(log: &dyn Log, topic: &TopicName) -> Vec<Record> {
    let mut reader = log.reader(topic, None, ReadFrom::Start).unwrap();
    let mut records = Vec::new();
    let deadline = Instant::now() + LONG;
    loop {
        records.extend(reader.fetch(Duration::from_millis(200)).unwrap().into_iter().map(|f| f.record));
        if reader.is_caught_up().unwrap() {
            return records;
        }
        assert!(Instant::now() < deadline, "the reader does not catch up");
    }
}

#[test]
fn records_go_through_byte_for_byte() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "odd", 1), topic(&*log, "odd-copy", 1));
    let record = |key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]| Record {
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: headers.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.map(<[u8]>::to_vec))).collect(),
        timestamp: Some(1_700_000_000_123),
    };
    let records = [
        record(None, None, &[]),
        record(Some(b""), Some(b""), &[]),
        record(Some(b"k"), None, &[("h", None)]),
        record(None, Some(b"\xff\x00\xfe"), &[("a", Some(b"1")), ("a", Some(b"2")), ("a", Some(b""))]),
        record(Some(&[0; 300]), Some(&vec![7; 100_000]), &[("", Some(&[0xff; 500]))]),
    ];
    let produce = |record: &Record| Produce { topic: from.clone(), partition: None, record: record.clone() };
    let produced = log.produce(&records.iter().map(produce).collect::<Vec<_>>()).unwrap();
    assert_eq!(produced.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);

    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 5 && !lane.at_end.is_empty()).unwrap();
    assert_eq!(read_all(&*log, &to), records);
}

#[test]
fn a_copy_is_exactly_once_and_lag_ends_at_zero() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "copy", 4), topic(&*log, "copy-out", 4));
    fill(&*log, &from, 4, 20_000);
    let group = fresh("g");
    let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 20_000 && lane.at_end.len() >= 4).unwrap();
    let extents = lane.session.extents();
    assert_eq!(extents.len(), 4);
    assert!(extents.iter().all(|(partition, at)| lane.ledger.committed(partition) == Some(at.end)));
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);

    // A second hop reads what transactions wrote: markers are counted past.
    let last = topic(&*log, "copy-last", 4);
    let group: ConsumerGroup = fresh("g2").parse().unwrap();
    let mut lane = Lane::open(&*log, &spec(group.as_str(), &fresh("t2"), &to, &last)).unwrap();
    lane.run(LONG, |lane| lane.copied == 20_000 && lane.at_end.len() >= 4).unwrap();
    let committed = log.offsets().committed(&group).unwrap();
    for (partition, Extent { end, .. }) in log.topics().extents(&to).unwrap().into_iter().enumerate() {
        assert_eq!(committed[&TopicPartition::new(&to, partition as u32)], end, "lag of {partition}");
    }
}

#[test]
fn what_is_not_committed_is_never_seen() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "unseen", 1), topic(&*log, "unseen-out", 1));
    fill(&*log, &from, 1, 100);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied >= 100).unwrap();
    lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
    // All of it again, then the session is dropped with a transaction open.
    lane.run(LONG, |lane| lane.copied >= 200).unwrap();
    drop(lane);
    assert!(read_all(&*log, &to).is_empty());
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && !lane.at_end.is_empty()).unwrap();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
}

/// A transaction begins a moment after the one before it has ended. What is emitted in between is no exception.
#[test]
fn what_follows_a_commit_at_once_is_committed_or_dropped_like_everything_else() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "at-once", 1), topic(&*log, "at-once-out", 1));
    fill(&*log, &from, 1, 1);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 1 && !lane.at_end.is_empty()).unwrap();
    let record = |n: i64| Record {
        key: (n % 3 > 0).then(|| n.to_be_bytes().to_vec()),
        value: (n % 5 > 0).then(|| vec![b'v'; n as usize]),
        headers: (0..n % 3).map(|i| (b"h".to_vec(), (i > 0).then(|| vec![i as u8]))).collect(),
        timestamp: Some(1_700_000_000_000 + n),
    };
    let emit = |lane: &mut Lane, numbers: std::ops::Range<i64>| {
        for n in numbers {
            let (placement, timestamp) = (Placement::Exactly(0), 1_700_000_000_000 + n);
            let payload = &record(n).payload();
            lane.session.emit(&Emit { topic: &to, placement, timestamp, payload }).unwrap();
        }
    };
    for round in 0..3 {
        // By now the pause after the last transaction is over, so this one ends right before what follows.
        emit(&mut lane, round * 100..round * 100 + 40);
        lane.commit().unwrap();
        emit(&mut lane, 1_000..1_040);
        lane.rewind(&LogError::Unavailable("by the test".to_owned())).unwrap();
        emit(&mut lane, round * 100 + 40..round * 100 + 50);
        lane.commit().unwrap();
        emit(&mut lane, round * 100 + 50..round * 100 + 99);
        std::thread::sleep(Duration::from_millis(10));
        emit(&mut lane, round * 100 + 99..round * 100 + 100);
        lane.commit().unwrap();
    }
    emit(&mut lane, 2_000..2_040);
    drop(lane);
    assert_eq!(read_all(&*log, &to).split_off(1), (0..300).map(record).collect::<Vec<_>>());
}

#[test]
fn start_policies_hold_and_stick() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "start", 1), topic(&*log, "start-out", 1));
    fill(&*log, &from, 1, 100);
    let cases = [
        (StartOffset::Earliest, 0),
        (StartOffset::Latest, 100),
        (StartOffset::FromStart { records: 30 }, 30),
        (StartOffset::FromEnd { records: 10 }, 90),
        (StartOffset::FromEnd { records: 1000 }, 0),
        (StartOffset::Timestamp { timestamp: 0 }, 0),
        (StartOffset::Timestamp { timestamp: i64::MAX / 2 }, 100),
    ];
    for (start, first) in cases {
        let group: ConsumerGroup = fresh("g").parse().unwrap();
        let mut spec = spec(group.as_str(), &fresh("t"), &from, &to);
        spec.start = start;
        let mut lane = Lane::open(&*log, &spec).unwrap();
        lane.run(LONG, |lane| !lane.assigned.is_empty()).unwrap();
        // Committed in the background, before any record is.
        let committed = || log.offsets().committed(&group).unwrap();
        lane.run(LONG, |_| !committed().is_empty()).unwrap();
        if lane.copied == 0 {
            assert_eq!(committed().values().copied().collect::<Vec<_>>(), [first], "{start:?}");
        }
        lane.run(LONG, |lane| !lane.at_end.is_empty()).unwrap();
        assert_eq!(lane.copied, 100 - first as usize, "{start:?}");
    }
}

/// A broker takes offsets without a member's name from anybody: by them one that was put out of the group could commit what
/// is another one's by now.
#[test]
fn who_is_in_no_group_commits_nothing() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "alone", 1), topic(&*log, "alone-out", 1));
    fill(&*log, &from, 1, 10);
    let group = fresh("g");
    // It never polls, so it never joins.
    let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
    let payload = Record::new(None, Some(b"zombie")).payload();
    let placement = Placement::Exactly(0);
    lane.session.emit(&Emit { topic: &to, placement, timestamp: 1, payload: &payload }).unwrap();
    lane.ledger.advance(&TopicPartition::new(&from, 0), 5);
    let refused = lane.commit().unwrap_err();
    assert!(refused.to_string().contains("in no group"), "{refused}");
    drop(lane);
    let group: ConsumerGroup = group.parse().unwrap();
    assert_eq!(log.offsets().committed(&group).unwrap(), BTreeMap::new());
    assert_eq!(read_all(&*log, &to), Vec::new());
}

#[test]
fn a_second_owner_of_a_slot_fences_the_first() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "slot", 2), topic(&*log, "slot-out", 2));
    fill(&*log, &from, 2, 1000);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut first = Lane::open(&*log, &spec).unwrap();
    first.commit_interval = LONG;
    first.run(LONG, |lane| lane.copied == 1000).unwrap();
    let mut second = Lane::open(&*log, &spec).unwrap();
    let error = first.commit().expect_err("the first is a zombie");
    assert_eq!(error.disposition(), Disposition::Fenced, "{error}");
    drop(first);
    // What the first committed before it was fenced stays committed.
    second.run(LONG, |lane| lane.at_end.len() == 2).unwrap();
    drop(second);
    oracle::assert_copied(plain(), &from, &to);
}

#[test]
fn an_offset_out_of_range_is_said_not_skipped() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "gone", 1), topic(&*log, "gone-out", 1));
    fill(&*log, &from, 1, 100);
    let group: ConsumerGroup = fresh("g").parse().unwrap();
    let partition = TopicPartition::new(&from, 0);
    log.offsets().alter(&group, &BTreeMap::from([(partition.clone(), 10)])).unwrap();
    plain().delete_records(&from, 0, 50);
    let mut lane = Lane::open(&*log, &spec(group.as_str(), &fresh("t"), &from, &to)).unwrap();
    let error = lane.run(LONG, |_| false).expect_err("records are gone");
    match error {
        LogError::OffsetOutOfRange { partition: which, wanted, first, end } => {
            assert_eq!((which, wanted, first, end), (partition, 10, 50, 100));
        }
        other => panic!("{other}"),
    }
}

/// A lane that does not poll for too long is out of its group, and a group without members can be deleted.
#[test]
fn a_committed_offset_that_somebody_removed_is_said_not_skipped() {
    let mut config = plain().config();
    let millis = Duration::from_millis;
    config.timing = Timing {
        socket: millis(1_500),
        transaction: millis(1_700),
        session: millis(2_500),
        max_poll: millis(3_000),
    };
    let log = KafkaLog::connect(config).unwrap();
    for by_rewind in [true, false] {
        let (from, to) = (topic(&*log, "removed", 1), topic(&*log, "removed-out", 1));
        fill(&*log, &from, 1, 100);
        let group: ConsumerGroup = fresh("g").parse().unwrap();
        let mut spec = spec(group.as_str(), &fresh("t"), &from, &to);
        let mut lane = Lane::open(&*log, &spec).unwrap();
        lane.run(LONG, |lane| lane.copied == 100 && !lane.at_end.is_empty()).unwrap();
        let deadline = Instant::now() + LONG;
        while log.offsets().members(&group).unwrap() > 0 {
            assert!(Instant::now() < deadline, "the lane stays in its group");
            std::thread::sleep(millis(100));
        }
        log.offsets().delete(&group).unwrap();
        fill(&*log, &from, 1, 50);
        if by_rewind {
            lane.session.rewind().unwrap();
            let event = lane.session.poll(&mut Batch::default(), Duration::ZERO);
            assert!(matches!(event, Event::Stuck { .. }), "{event:?}");
        }
        // It joins again, and is given its partition anew.
        let error = lane.run(LONG, |_| false).expect_err("nobody knows where to go on");
        assert!(error.to_string().contains("the committed offset is gone"), "{error}");
        assert_eq!(lane.copied, 100, "nothing is done again, nothing is left out");
        assert!(log.offsets().committed(&group).unwrap().is_empty());
        // Whoever begins anew begins where the policy says.
        drop(lane);
        spec.start = StartOffset::FromStart { records: 120 };
        let mut lane = Lane::open(&*log, &spec).unwrap();
        lane.run(LONG, |lane| lane.copied == 30 && !lane.at_end.is_empty()).unwrap();
    }
}

#[test]
fn paused_partitions_wait_and_go_on_where_they_stopped() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "pause", 2), topic(&*log, "pause-out", 2));
    fill(&*log, &from, 2, 2000);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    let paused = [TopicPartition::new(&from, 0)];
    lane.run(LONG, |lane| lane.copied > 0).unwrap();
    lane.session.pause(&paused);
    let held = lane.ledger.next(&paused[0]);
    let other = TopicPartition::new(&from, 1);
    lane.run(LONG, |lane| lane.ledger.next(&other) == Some(1000)).unwrap();
    for _ in 0..10 {
        lane.step().unwrap();
    }
    assert_eq!(lane.ledger.next(&paused[0]), held, "a paused partition stands still");
    lane.session.resume(&paused);
    lane.run(LONG, |lane| lane.copied == 2000).unwrap();
    lane.commit().unwrap();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
}

/// A client keeps a pause for as long as it lives, over a change of owners.
#[test]
fn a_paused_partition_that_comes_back_is_read() {
    for assignor in [Assignor::Eager, Assignor::Cooperative] {
        let mut config = plain().config();
        config.assignor = assignor;
        let log = KafkaLog::connect(config).unwrap();
        let (from, to) = (topic(&*log, "pause-back", 2), topic(&*log, "pause-back-out", 2));
        let group = fresh("g");
        let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
        lane.run(LONG, |lane| lane.at_end.len() == 2).unwrap();
        let all: Vec<_> = (0..2).map(|partition| TopicPartition::new(&from, partition)).collect();
        lane.session.pause(&all);
        let mut other = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
        let deadline = Instant::now() + LONG;
        while other.assigned.len() != 1 || lane.assigned.len() != 1 {
            assert!(
                Instant::now() < deadline,
                "{assignor:?}: {} and {}",
                lane.assigned.len(),
                other.assigned.len()
            );
            lane.step().unwrap();
            other.step().unwrap();
        }
        let away = other.assigned[0].partition;
        drop(other);
        lane.run(LONG, |lane| lane.assigned.len() == 2).unwrap();
        fill(&*log, &from, 2, 100);
        let came_back = |lane: &Lane| lane.ledger.next(&all[away as usize]) == Some(50);
        lane.run(LONG, came_back).unwrap();
        lane.session.resume(&all);
        lane.run(LONG, |lane| lane.copied == 100).unwrap();
        lane.commit().unwrap();
        drop(lane);
        oracle::assert_copied(plain(), &from, &to);
    }
}

/// The client's own figures are those of the last fetch, and count what is not committed.
#[test]
fn lag_of_a_partition_that_stands_still_grows_with_what_is_committed() {
    let log = plain().log();
    let [first, from, to] = ["lag-first", "lag", "lag-out"].map(|name| topic(&*log, name, 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100 && lane.at_end.len() == 1).unwrap();
    let at = TopicPartition::new(&from, 0);
    lane.session.pause(std::slice::from_ref(&at));
    let mut wait_for = |wanted: Extent| {
        let deadline = Instant::now() + LONG;
        loop {
            lane.step().unwrap();
            let told = lane.session.extents();
            if told == [(at.clone(), wanted)] {
                return;
            }
            assert!(Instant::now() < deadline, "{told:?}, not {wanted:?}");
        }
    };
    fill(&*log, &from, 1, 400);
    let committed = log.topics().extents(&from).unwrap()[0];
    wait_for(committed);
    // A transaction that is open.
    fill(&*log, &first, 1, 10);
    let mut writer = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &first, &from)).unwrap();
    writer.commit_interval = LONG;
    writer.run(LONG, |writer| writer.copied == 10).unwrap();
    let sent = Instant::now();
    while sent.elapsed() < Duration::from_secs(5) {
        wait_for(committed);
    }
    // Committed, with a marker; and some of what is before it is let go.
    writer.commit().unwrap();
    plain().delete_records(&from, 0, 50);
    wait_for(Extent { first: 50, end: committed.end + 11 });
}

/// The client tells a reader only once that it cannot go on, perhaps behind records that it has fetched before.
#[test]
fn a_reader_hears_of_an_error_behind_its_records() {
    let log = plain().log();
    let name = topic(&*log, "behind", 2);
    let write = |partition, count| {
        let record = Record::new(Some(b"k"), Some(b"v"));
        let one = Produce { topic: name.clone(), partition: Some(partition), record };
        log.produce(&vec![one; count]).unwrap();
    };
    write(1, 5);
    let mut reader = log.reader(&name, None, ReadFrom::Start).unwrap();
    let mut seen = 0;
    while seen < 5 {
        seen += reader.fetch(Duration::from_secs(1)).unwrap().len();
    }
    write(0, 10);
    // They are fetched, and wait; then the other partition starts again, before the offset at which the reader is.
    std::thread::sleep(Duration::from_secs(2));
    log.topics().delete(&name).unwrap();
    log.topics().create(&name, &TopicConfig { partitions: 2, ..TopicConfig::default() }).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(reader.fetch(Duration::from_secs(1)).unwrap().len(), 10);
    let failed = (0..20).find_map(|_| reader.fetch(Duration::from_secs(1)).err());
    assert!(failed.is_some());
}

/// A group waits for a member that does not say that it leaves until its session times out.
#[test]
fn a_lane_without_partitions_leaves_its_group_at_once() {
    for assignor in [Assignor::Eager, Assignor::Cooperative] {
        let mut config = plain().config();
        config.assignor = assignor;
        let log = KafkaLog::connect(config).unwrap();
        let (from, to) = (topic(&*log, "spare", 1), topic(&*log, "spare-out", 1));
        let group = fresh("g");
        let mut lane = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
        lane.run(LONG, |lane| lane.assigned.len() == 1).unwrap();
        let mut spare = Lane::open(&*log, &spec(&group, &fresh("t"), &from, &to)).unwrap();
        let group: ConsumerGroup = group.parse().unwrap();
        let (joined, members) = (Instant::now(), || log.offsets().members(&group).unwrap());
        while members() != 2 || joined.elapsed() < Duration::from_secs(3) {
            assert!(joined.elapsed() < LONG, "{assignor:?}: {} members", members());
            lane.step().unwrap();
            spare.step().unwrap();
        }
        // Whichever has none.
        if lane.assigned.is_empty() {
            std::mem::swap(&mut lane, &mut spare);
        }
        assert_eq!((lane.assigned.len(), spare.assigned.len()), (1, 0), "{assignor:?}");
        drop(spare);
        let left = Instant::now();
        while members() != 1 {
            assert!(left.elapsed() < short().session / 2, "{assignor:?}: it did not say that it leaves");
            lane.step().unwrap();
        }
    }
}

/// The client joins anew by itself when its topics change, also while the lane owes the group an answer. What it has done in
/// the generation before may have been given to another.
#[test]
fn nothing_is_committed_in_a_generation_that_the_lane_does_not_know() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "moved-on", 1), topic(&*log, "moved-on-out", 2));
    fill(&*log, &from, 1, 100);
    let group = fresh("g");
    let mut lane = Lane::open(&*log, &spec(&group, "second", &from, &to)).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 100).unwrap();
    // Members have their partitions in the order of their names: the first partition goes to this one.
    let mut other = Lane::open(&*log, &spec(&group, "first", &from, &to)).unwrap();
    let deadline = Instant::now() + LONG;
    let mut batch = Batch::default();
    while !matches!(lane.session.poll(&mut batch, Duration::from_millis(20)), Event::Revoking { .. }) {
        assert!(Instant::now() < deadline, "the group does not ask");
        other.step().unwrap();
    }
    // While the lane is busy with its answer.
    log.topics().grow(&from, 2).unwrap();
    other.run(LONG, |other| other.copied == 100 && other.at_end.len() == 1).unwrap();
    other.commit().unwrap();
    if let Err(error) = lane.session.ack_commit(&lane.ledger) {
        println!("refused: {error}");
        lane.session.rewind().unwrap();
    }
    lane.session.release();
    drop((lane, other));
    oracle::assert_copied(plain(), &from, &to);
}

/// A static member whose name another takes: two that fight for it would take turns for ever.
#[test]
fn a_static_member_gives_way_to_its_successor() {
    let mut config = plain().config();
    config.static_membership = true;
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "static", 1), topic(&*log, "static-out", 1));
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.run(LONG, |lane| lane.assigned.len() == 1).unwrap();
    let mut successor = Lane::open(&*log, &spec).unwrap();
    let deadline = Instant::now() + LONG;
    let mut ended = None;
    while ended.is_none() || successor.assigned.is_empty() {
        assert!(Instant::now() < deadline, "ended: {ended:?}; {} taken over", successor.assigned.len());
        successor.step().unwrap();
        if ended.is_none() {
            ended = lane.step().err();
        }
    }
    assert_eq!(ended.map(|error| error.disposition()), Some(Disposition::Fenced));
    assert_eq!((lane.rewinds, successor.rewinds), (0, 0), "they did not fight");
}

/// What is left of a recovery where a lane has nothing, or nothing that may go on.
#[test]
fn to_resume_nothing_is_no_failure() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "nothing", 1), topic(&*log, "nothing-out", 1));
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.at_end.len() == 1).unwrap();
    lane.session.pause(&[]);
    lane.session.resume(&[]);
    for _ in 0..5 {
        lane.step().unwrap();
    }
    assert_eq!(lane.rewinds, 0);
}

/// Records that are dropped with a transaction are reported to whoever polls the producer, and librdkafka aborts only after.
#[test]
fn an_open_transaction_is_aborted_at_once() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "abort", 1), topic(&*log, "abort-out", 1));
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.at_end.len() == 1).unwrap();
    let payload = Record::new(None, Some(b"dropped")).payload();
    let emit = |lane: &mut Lane| {
        // The pause between transactions is over, so that the client has the record.
        std::thread::sleep(Duration::from_millis(10));
        let (placement, timestamp) = (Placement::Exactly(0), 1);
        lane.session.emit(&Emit { topic: &to, placement, timestamp, payload: &payload }).unwrap();
    };
    let budget = short().commit_budget();
    for _ in 0..3 {
        emit(&mut lane);
        let began = Instant::now();
        lane.session.rewind().unwrap();
        assert!(began.elapsed() < budget / 2, "{:?}: the abort waited for what nobody told", began.elapsed());
    }
    emit(&mut lane);
    // Long enough for the record to leave.
    std::thread::sleep(Duration::from_millis(300));
    emit(&mut lane);
    let began = Instant::now();
    drop(lane);
    // A transaction that was left open would hold every reader back until it times out.
    let left = short().transaction / 2;
    while log.topics().extents(&to).unwrap()[0].end == 0 {
        assert!(began.elapsed() < left, "the transaction was left open");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(read_all(&*log, &to), Vec::new());
}

#[test]
fn partitions_added_are_read_and_written() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "grow", 1), topic(&*log, "grow-out", 1));
    fill(&*log, &from, 1, 100);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 100).unwrap();
    for name in [&to, &from] {
        let args = ["--alter", "--topic", name.as_str(), "--partitions", "3"];
        plain().tool("org.apache.kafka.tools.TopicCommand", &args);
    }
    let began = Instant::now();
    lane.run(LONG, |lane| lane.assigned.len() == 3).unwrap();
    eprintln!("new partitions after {:?}", began.elapsed());
    let more = |n: u32| Produce {
        topic: from.clone(),
        partition: Some(n % 3),
        record: Record::new(Some(format!("m{n}").as_bytes()), Some(b"more")),
    };
    plain().log().produce(&(0..300).map(more).collect::<Vec<_>>()).unwrap();
    lane.run(LONG, |lane| lane.copied == 400 && lane.at_end.len() > 2).unwrap();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
}

#[test]
fn a_deleted_topic_is_named() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "deleted", 1), topic(&*log, "deleted-out", 1));
    fill(&*log, &from, 1, 10);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 10 && !lane.at_end.is_empty()).unwrap();
    log.topics().delete(&from).unwrap();
    let error = lane.run(LONG, |_| false).expect_err("the input is gone");
    assert!(error.to_string().contains(from.as_str()), "{error}");
    assert_eq!(error.disposition(), Disposition::User, "{error}");
    let missing = spec(&fresh("g"), &fresh("t"), &from, &to);
    assert!(matches!(log.lane(&missing).err(), Some(LogError::UnknownTopic(name)) if name == from));
}

/// The client keeps what was written to a topic that is gone, and says nothing.
#[test]
fn an_output_that_was_deleted_is_named_with_the_first_rewind() {
    let mut config = plain().config();
    // It would find out by that.
    config.metadata_refresh = Duration::from_mins(5);
    let log = KafkaLog::connect(config).unwrap();
    let (from, to) = (topic(&*log, "no-out", 1), topic(&*log, "no-out-out", 1));
    fill(&*log, &from, 1, 10);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 10 && !lane.at_end.is_empty()).unwrap();
    log.topics().delete(&to).unwrap();
    fill(&*log, &from, 1, 1_000);
    let error = lane.run(LONG, |_| false).expect_err("the output is gone");
    assert!(matches!(&error, LogError::UnknownTopic(name) if *name == to), "{error}");
    assert!(lane.rewinds <= 1, "{} rewinds", lane.rewinds);
}

#[test]
fn at_least_once_needs_no_transaction() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "atleast", 2), topic(&*log, "atleast-out", 2));
    fill(&*log, &from, 2, 5000);
    let mut spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    spec.delivery = Delivery::AtLeastOnce;
    let mut lane = Lane::open(&*log, &spec).unwrap();
    lane.run(LONG, |lane| lane.copied >= 5000 && lane.at_end.len() >= 2).unwrap();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
    // No transaction markers: offsets are dense.
    assert_eq!(log.topics().extents(&to).unwrap()[0], Extent { first: 0, end: 2500 });
}

/// It is full before any batch is, and no batch is old enough to leave.
#[test]
fn a_buffer_smaller_than_a_batch_does_not_stop_a_lane() {
    let config = plain().config();
    let linger = config.timing.transaction.saturating_sub(Duration::from_millis(100));
    assert!(linger > config.timing.commit_budget(), "the lane would give up first");
    let small = [
        ("queue.buffering.max.messages".to_owned(), "100".to_owned()),
        ("linger.ms".to_owned(), linger.as_millis().to_string()),
    ];
    let log = KafkaLog::connect(config.with_extra(small.into()).unwrap()).unwrap();
    let (from, to) = (topic(&*log, "buffer", 2), topic(&*log, "buffer-out", 2));
    fill(&*plain().log(), &from, 2, 2000);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 2000 && lane.at_end.len() == 2).unwrap();
    drop(lane);
    oracle::assert_copied(plain(), &from, &to);
}

#[test]
fn outputs_are_checked_and_placed() {
    let log = plain().log();
    let from = topic(&*log, "check", 1);
    let to: TopicName = fresh("check-out").parse().unwrap();
    let small = TopicConfig { partitions: 3, max_record_bytes: 2000, ..TopicConfig::compacted() };
    log.topics().create(&to, &small).unwrap();
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.at_end.len() == 1).unwrap();
    let mut emit = |record: Record, placement| {
        let payload = record.payload();
        lane.session.emit(&Emit { topic: &to, placement, timestamp: 1, payload: &payload })
    };
    let by_key = Placement::By(Partitioner::Key, 0);
    let no_key = emit(Record::new(None, Some(b"v")), by_key).unwrap_err();
    assert!(matches!(no_key, LogError::RecordRefused { .. }), "{no_key}");
    let too_large = emit(Record::new(Some(b"k"), Some(&[0; 2000])), by_key).unwrap_err();
    assert!(matches!(too_large, LogError::RecordRefused { .. }), "{too_large}");
    let nowhere = emit(Record::new(Some(b"k"), None), Placement::Exactly(3)).unwrap_err();
    assert!(matches!(nowhere, LogError::UnknownPartition { count: 3, .. }), "{nowhere}");
    // As large as may be, and where the Java client would put it.
    emit(Record::new(Some(b"foobar"), Some(&[1; 1900])), by_key).unwrap();
    emit(Record::new(Some(b"x"), Some(b"source")), Placement::By(Partitioner::Source, 2)).unwrap();
    lane.session.ack_commit(&lane.ledger).unwrap();
    let mut reader = log.reader(&to, None, ReadFrom::Start).unwrap();
    let mut places = Vec::new();
    while places.len() < 2 {
        places.extend(reader.fetch(LONG).unwrap().into_iter().map(|f| (f.record.key.unwrap(), f.partition)));
    }
    places.sort();
    let murmur = Partitioner::Key.choose(Some(b"foobar"), 0, 3);
    assert_eq!(places, [(b"foobar".to_vec(), murmur), (b"x".to_vec(), 2)]);
}

/// The broker's limit is one for batches: several records that fit one by one must not be sent as one that does not.
#[test]
fn many_small_records_fit_a_topic_that_takes_small_batches_only() {
    let log = plain().log();
    let records = |topic: &TopicName| {
        let produce = |_| Produce {
            topic: topic.clone(),
            partition: Some(0),
            record: Record::new(None, Some(&[b'x'; 100])),
        };
        (0..200).map(produce).collect::<Vec<_>>()
    };
    log.produce(&records(&topic(&*log, "wide", 1))).unwrap();
    for max_record_bytes in [2_000, 1_000] {
        let name: TopicName = fresh("narrow").parse().unwrap();
        log.topics().create(&name, &TopicConfig { max_record_bytes, ..TopicConfig::default() }).unwrap();
        let written = log.produce(&records(&name)).unwrap();
        assert_eq!(written.iter().map(|at| at.offset).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        let large = Record::new(None, Some(&[0; 2_000]));
        let refused = log.produce(&[Produce { topic: name, partition: Some(0), record: large }]).unwrap_err();
        assert!(matches!(refused, LogError::RecordRefused { .. }), "{refused}");
    }
}

#[test]
fn topics_are_made_described_and_removed() {
    let log = plain().log();
    let name: TopicName = fresh("admin").parse().unwrap();
    let config = TopicConfig {
        partitions: 3,
        cleanup: Cleanup::CompactAndDelete,
        retention_ms: Some(3_600_000),
        retention_bytes: None,
        max_record_bytes: 5000,
        materialized: false,
    };
    assert_eq!(log.topics().describe(&name).unwrap(), None);
    log.topics().create(&name, &config).unwrap();
    let exists = log.topics().create(&name, &config);
    assert!(matches!(exists, Err(LogError::TopicExists(_))), "{exists:?}");
    let info = log.topics().describe(&name).unwrap().unwrap();
    assert_eq!(info.config, config);
    assert!(log.topics().list().unwrap().contains(&info));
    log.topics().delete(&name).unwrap();
    assert!(matches!(log.topics().delete(&name), Err(LogError::UnknownTopic(_))));
    log.topics().create(&name, &config).unwrap();
    assert_ne!(log.topics().describe(&name).unwrap().unwrap().id, info.id, "another topic of the same name");
}

#[test]
fn readers_start_where_they_are_told() {
    let log = plain().log();
    let name = topic(&*log, "reader", 1);
    fill(&*log, &name, 1, 100);
    let cases = [
        (ReadFrom::Start, 100),
        (ReadFrom::End, 0),
        (ReadFrom::Offset(40), 60),
        (ReadFrom::Last(7), 7),
        (ReadFrom::Timestamp(0), 100),
    ];
    for (from, count) in cases {
        let mut reader = log.reader(&name, Some(&[0]), from).unwrap();
        let mut records = 0;
        while !reader.is_caught_up().unwrap() {
            records += reader.fetch(Duration::from_millis(100)).unwrap().len();
        }
        assert_eq!(records, count, "{from:?}");
    }
    assert_eq!(log.topics().offsets_at(&name, 0).unwrap(), [0]);
    assert_eq!(log.topics().offsets_at(&name, i64::MAX / 2).unwrap(), [100]);
    assert!(matches!(
        log.reader(&name, Some(&[9]), ReadFrom::Start).err(),
        Some(LogError::UnknownPartition { .. })
    ));
}

#[test]
fn groups_are_looked_at_changed_and_removed() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "group", 1), topic(&*log, "group-out", 1));
    fill(&*log, &from, 1, 10);
    let group: ConsumerGroup = fresh("g").parse().unwrap();
    let at = |offset| BTreeMap::from([(TopicPartition::new(&from, 0), offset)]);
    assert_eq!(log.offsets().members(&group).unwrap(), 0);
    assert!(log.offsets().committed(&group).unwrap().is_empty());
    log.offsets().alter(&group, &at(4)).unwrap();
    assert_eq!(log.offsets().committed(&group).unwrap(), at(4));
    let mut lane = Lane::open(&*log, &spec(group.as_str(), &fresh("t"), &from, &to)).unwrap();
    lane.run(LONG, |lane| lane.copied == 6 && !lane.at_end.is_empty()).unwrap();
    assert_eq!(log.offsets().members(&group).unwrap(), 1);
    assert!(log.offsets().groups().unwrap().contains(&group));
    let busy = log.offsets().alter(&group, &at(0)).unwrap_err();
    assert!(matches!(busy, LogError::Refused(_)), "{busy}");
    assert!(log.offsets().delete(&group).is_err());
    drop(lane);
    assert_eq!(log.offsets().members(&group).unwrap(), 0, "leaving is not left to the session time-out");
    log.offsets().delete(&group).unwrap();
    log.offsets().delete(&group).unwrap();
    assert!(!log.offsets().groups().unwrap().contains(&group));
}

fn next_event(fold: &mut dyn coproc::ports::Fold) -> FoldEvent {
    let deadline = Instant::now() + LONG;
    loop {
        match fold.next(Duration::from_millis(200)) {
            Ok(FoldEvent::Idle) | Err(LogError::UnknownTopic(_)) => {}
            Ok(event) => return event,
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "the fold says nothing");
    }
}

#[test]
fn a_fold_follows_and_begins_anew_with_the_topic() {
    let log = plain().log();
    let name: TopicName = fresh("fold").parse().unwrap();
    log.topics().create(&name, &TopicConfig::compacted()).unwrap();
    let keyed = |key: &str, value: Option<&str>| Keyed {
        key: key.as_bytes().to_vec(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    let mut writer = log.fenced_writer(&name, &fresh("w")).unwrap();
    writer.write(&[keyed("a", Some("1")), keyed("b", None)]).unwrap();
    let mut fold = log.fold(&name).unwrap();
    let short = |event: FoldEvent| match event {
        FoldEvent::Record { key, value, .. } => {
            format!("{}={:?}", String::from_utf8(key).unwrap(), value.map(|v| String::from_utf8(v).unwrap()))
        }
        other => format!("{other:?}"),
    };
    let mut said = |count| (0..count).map(|_| short(next_event(&mut *fold))).collect::<Vec<_>>();
    assert_eq!(said(3), ["a=Some(\"1\")", "b=None", "CaughtUp"]);
    writer.write(&[keyed("c", Some("3"))]).unwrap();
    assert_eq!(said(1), ["c=Some(\"3\")"]);
    log.topics().delete(&name).unwrap();
    log.topics().create(&name, &TopicConfig::compacted()).unwrap();
    assert_eq!(said(2), ["Reset", "CaughtUp"]);

    let loose = topic(&*log, "loose", 1);
    assert!(matches!(log.fold(&loose).err(), Some(LogError::BadConfig(_))));
}

#[test]
fn a_later_writer_fences_the_earlier() {
    let log = plain().log();
    let name: TopicName = fresh("fenced").parse().unwrap();
    log.topics().create(&name, &TopicConfig::compacted()).unwrap();
    let id = fresh("w");
    let record = [Keyed { key: b"k".to_vec(), value: Some(b"v".to_vec()) }];
    let mut first = log.fenced_writer(&name, &id).unwrap();
    first.write(&record).unwrap();
    let mut second = log.fenced_writer(&name, &id).unwrap();
    for _ in 0..2 {
        let error = first.write(&record).unwrap_err();
        assert!(matches!(error, LogError::Fenced(_)), "{error}");
    }
    second.write(&record).unwrap();
    assert_eq!(read_all(&*log, &name).len(), 2);
}

#[test]
fn an_open_transaction_holds_readers_back() {
    let log = plain().log();
    let (from, to) = (topic(&*log, "open", 1), topic(&*log, "open-out", 1));
    fill(&*log, &from, 1, 10);
    let mut lane = Lane::open(&*log, &spec(&fresh("g"), &fresh("t"), &from, &to)).unwrap();
    lane.commit_interval = LONG;
    lane.run(LONG, |lane| lane.copied == 10).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(log.topics().extents(&to).unwrap(), [Extent { first: 0, end: 0 }], "the last stable offset");
    lane.commit().unwrap();
    // Ten records and the marker.
    await_end(&*log, &to, 11);
    assert_eq!(read_all(&*log, &to).len(), 10);
    let mut batch = Batch::default();
    assert!(!matches!(lane.session.poll(&mut batch, Duration::ZERO), Event::Failed(_)));
}

/// On three brokers: with three replicas, and as each of them has to be. A node looks at every start.
#[test]
fn the_topics_of_coproc_are_made_as_they_have_to_be_and_looked_at() {
    let cluster = Cluster::start("own", &["--brokers", "3", "--heap", "256m"]);
    let log: Arc<dyn Log> = cluster.log();
    assert!(try_to_start_node(&log).unwrap().stop());
    let describe =
        |name: &str| cluster.tool("org.apache.kafka.tools.TopicCommand", &["--describe", "--topic", name]);
    let compacted = "cleanup.policy=compact";
    let wanted = [
        ("coprocessor_internal_topic", vec![compacted]),
        ("coprocessor_status_topic", vec![compacted]),
        ("coprocessor_modules", vec![compacted]),
        (
            "coprocessor_logs",
            vec!["cleanup.policy=delete", "retention.ms=86400000", "retention.bytes=268435456"],
        ),
    ];
    for (name, settings) in wanted {
        let described = describe(name);
        for part in ["PartitionCount: 1", "ReplicationFactor: 3"].iter().chain(&settings) {
            assert!(described.replace('\t', " ").contains(part), "{part:?} is not in {described}");
        }
    }
    let set = |topic: OwnTopic, setting: &str| {
        let name = topic.name();
        let at = ["--alter", "--entity-type", "topics", "--entity-name", name.as_str()];
        cluster.tool("kafka.admin.ConfigCommand", &[&at[..], &["--add-config", setting]].concat());
    };
    let policy =
        |topic, wrong, right| (topic, format!("cleanup.policy={wrong}"), format!("cleanup.policy={right}"));
    let policies = OwnTopic::ALL.map(|topic| match topic {
        OwnTopic::Logs => policy(topic, "compact", "delete"),
        _ => policy(topic, "delete", "compact"),
    });
    let size = |bytes: usize| format!("max.message.bytes={bytes}");
    let small = (OwnTopic::Status, size(900_000), size(1 << 20));
    for (topic, wrong, right) in policies.iter().chain([&small]) {
        set(*topic, wrong);
        let refused = |error: &String| error.contains(topic.name().as_str()) && error.contains(right);
        support::wait_for("the refusal", || try_to_start_node(&log).err().filter(refused));
        set(*topic, right);
    }
    support::wait_for("the start", || try_to_start_node(&log).ok()).stop();

    // Somebody made it before all brokers were there.
    let name = OwnTopic::Logs.name();
    assert_eq!(log.topics().replicas(&name).unwrap(), Some(Replicas { fewest: 3, wanted: 3 }));
    log.topics().delete(&name).unwrap();
    let make = ["--create", "--topic", name.as_str(), "--replication-factor", "1"];
    cluster.tool("org.apache.kafka.tools.TopicCommand", &make);
    let few = || log.topics().replicas(&name).ok().flatten().filter(|found| found.fewest == 1);
    assert_eq!(support::wait_for("the topic", few).wanted, 3);
    a_partition_without_a_leader_is_waited_for(&cluster);
}

/// Where it starts nobody can say, but there is no doubt that it exists.
fn a_partition_without_a_leader_is_waited_for(cluster: &Cluster) {
    let log = cluster.log();
    let (from, to): (TopicName, TopicName) =
        (fresh("headless").parse().unwrap(), topic(&*log, "headless-out", 3));
    let create = ["--create", "--topic", from.as_str(), "--partitions", "3", "--replication-factor", "1"];
    cluster.tool("org.apache.kafka.tools.TopicCommand", &create);
    fill(&*log, &from, 3, 300);
    cluster.kill(3);
    let spec = spec(&fresh("g"), &fresh("t"), &from, &to);
    let mut lane = support::wait_for("the lane", || Lane::open(&*log, &spec).ok());
    let mut batch = Batch::default();
    let deadline = Instant::now() + LONG;
    let told = loop {
        assert!(Instant::now() < deadline, "nothing is said");
        if let Event::Failed(error) = lane.session.poll(&mut batch, Duration::from_millis(100))
            && error.to_string().contains("leader")
        {
            break error;
        }
    };
    assert_eq!(told.disposition(), Disposition::Transient, "{told}");
    cluster.restart(3);
    lane.run(LONG, |lane| lane.copied == 300).unwrap();
    lane.commit().unwrap();
    drop(lane);
    oracle::assert_copied(cluster, &from, &to);
}

#[test]
fn a_cluster_says_what_it_can_do() {
    let capabilities = plain().log().capabilities();
    assert_eq!(
        (&capabilities.transactions, &capabilities.compaction),
        (&Ability::Present, &Ability::Present)
    );
    let says = "1 broker that speaks the protocol of Kafka 4.1";
    assert!(capabilities.description.ends_with(says), "{}", capabilities.description);
    // Found out later, when somebody asks, it is the same.
    assert_eq!(KafkaLog::open(plain().config()).unwrap().capabilities(), capabilities);
    let mut nobody = plain().config();
    nobody.bootstrap_servers = vec!["127.0.0.1:1".to_owned()];
    let error = KafkaLog::connect(nobody).err().unwrap();
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
}

/// A proxy hides that the broker takes transactions; everything else is as it is.
#[test]
fn without_transactions_auto_falls_back_and_exactly_once_refuses() {
    let proxy = Proxy::without_transactions();
    let cluster = Cluster::start("untransacted", &["--proxy", &proxy.port.to_string()]);
    let mut config = cluster.config();
    config.bootstrap_servers = vec![format!("127.0.0.1:{}", proxy.port)];
    let log = KafkaLog::connect(config).unwrap();
    let Ability::Absent(reason) = log.capabilities().transactions else { panic!("there are none") };
    assert!(reason.contains("takes no AddPartitionsToTxn requests"), "{reason}");
    let mut rig = Rig::on(log, "untransacted", 0);
    rig.start();
    for name in ["from", "auto", "exact"] {
        rig.create(name, 1);
    }
    rig.produce("from", numbers("v", 0..100));
    rig.deploy("auto", &[identity()], "from", &["auto"], "").unwrap();
    let exactly = r#""policies":{"delivery":"ExactlyOnce"}"#;
    rig.deploy("exact", &[identity()], "from", &["exact"], exactly).unwrap();
    assert_eq!(rig.values("auto", 100), numbers("v", 0..100));
    let status = rig.wait_for_state("auto", State::Running);
    assert_eq!(status.delivery.as_deref(), Some("at_least_once"));
    let status = rig.wait_for_state("exact", State::Failed);
    assert_eq!(status.reason.as_deref(), Some("Refused"));
    let message = status.last_error.unwrap().message;
    assert!(message.contains("AddPartitionsToTxn") && message.contains("choose AtLeastOnce"), "{message}");
    assert!(rig.read("exact").is_empty());
}
