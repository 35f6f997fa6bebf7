//! Lanes: exactly once, groups, fences, starts.

use std::sync::Arc;
use std::time::Duration;

use coproc::core::deployment::{Delivery, StartOffset};
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::partitioner::Partitioner;
use coproc::core::record::{Batch, Record};
use coproc::log::EmbeddedLog;
use coproc::ports::{
    Emit, Event, LaneSession, LaneSpec, Log, LogError, Offsets, Placement, TopicAdmin, TopicConfig,
};

use crate::support::{HandClock, LONG, create, open, options, produce, read_all, topic, values};

fn spec(id: &str, start: StartOffset) -> LaneSpec {
    LaneSpec {
        group: "g".parse().unwrap(),
        transactional_id: id.into(),
        inputs: vec![topic("in")],
        outputs: vec![topic("out")],
        start,
        delivery: Delivery::ExactlyOnce,
        max_records: 2,
        max_bytes: 1 << 20,
    }
}

/// The name of an error.
fn word(error: &LogError) -> String {
    format!("{error:?}").chars().take_while(|c| c.is_alphabetic()).collect()
}

/// A lane under test, driven by hand.
struct Driver {
    session: Box<dyn LaneSession>,
    batch: Batch,
    ledger: Ledger,
}

impl Driver {
    fn open(log: &EmbeddedLog, id: &str, start: StartOffset) -> Self {
        Self {
            session: log.lane(&spec(id, start)).unwrap(),
            batch: Batch::default(),
            ledger: Ledger::default(),
        }
    }

    /// The next event, in short.
    fn poll(&mut self) -> String {
        self.poll_for(Duration::ZERO)
    }

    fn poll_for(&mut self, wait: Duration) -> String {
        let of = |all: &[TopicPartition]| all.iter().map(|at| at.partition.to_string()).collect::<String>();
        match self.session.poll(&mut self.batch, wait) {
            Event::Records => {
                let values = self.batch.iter().map(|record| {
                    let record = Record::from_payload(record.payload, 0).unwrap();
                    String::from_utf8(record.value.unwrap()).unwrap()
                });
                format!("{}:{}", self.batch.partition(), values.collect::<String>())
            }
            Event::Idle => "idle".into(),
            Event::CaughtUp { partition, next_offset } => {
                format!("end {} {next_offset}", partition.partition)
            }
            Event::Assigned(all) => format!("assigned {}", of(&all)),
            Event::Revoking { partitions, lost } => format!("revoking {} {lost}", of(&partitions)),
            Event::Stuck { partition, error } => format!("stuck {}: {}", partition.partition, word(&error)),
            Event::Failed(error) => word(&error),
        }
    }

    /// Emits a copy of the batch, and counts it as processed.
    fn process(&mut self) {
        let (name, partition) = (self.batch.topic().unwrap().clone(), self.batch.partition());
        for record in self.batch.iter() {
            let emit = Emit {
                topic: &topic("out"),
                placement: Placement::By(Partitioner::Source, partition),
                timestamp: record.timestamp,
                payload: record.payload,
            };
            self.session.emit(&emit).unwrap();
            self.ledger.advance(&TopicPartition::new(&name, partition), record.offset + 1);
        }
    }

    fn commit(&mut self) -> Result<(), LogError> {
        self.session.ack_commit(&self.ledger)?;
        self.ledger.mark_committed();
        Ok(())
    }
}

fn store(partitions: u32) -> (tempfile::TempDir, Arc<EmbeddedLog>) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    create(&*log, "in", TopicConfig { partitions, ..TopicConfig::default() });
    create(&*log, "out", TopicConfig::default());
    (dir, log)
}

#[test]
fn outputs_and_offsets_go_together_or_not_at_all() {
    let (dir, log) = store(1);
    produce(&*log, &topic("in"), 0, &["a", "b", "c"]);
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    assert_eq!([lane.poll(), lane.poll()], ["assigned 0", "0:ab"]);
    lane.process();
    assert_eq!(read_all(&*log, &topic("out")).len(), 0, "not before the commit");
    lane.commit().unwrap();
    assert_eq!(lane.poll(), "0:c");
    lane.process();
    lane.ledger.rewind();
    lane.session.rewind().unwrap();
    assert_eq!(lane.poll(), "0:c", "a rewind goes back to the commit");
    lane.process();
    drop(lane);
    drop(log);
    let log = open(dir.path());
    assert_eq!(values(&read_all(&*log, &topic("out"))), ["a", "b"], "dropped is aborted");
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    assert_eq!(
        [lane.poll(), lane.poll(), lane.poll(), lane.poll()],
        ["assigned 0", "0:c", "end 0 3", "idle"]
    );
    lane.process_nothing_is_left();
    produce(&*log, &topic("in"), 0, &["d"]);
    assert_eq!([lane.poll_for(LONG), lane.poll(), lane.poll()], ["0:d", "end 0 4", "idle"]);
}

impl Driver {
    fn process_nothing_is_left(&mut self) {
        assert!(self.batch.is_empty());
        self.commit().unwrap();
    }
}

#[test]
fn a_lane_starts_by_its_policy_and_keeps_to_it() {
    let cases = [
        (StartOffset::Earliest, "0:ab"),
        (StartOffset::Latest, "end 0 3"),
        (StartOffset::FromStart { records: 2 }, "0:c"),
        (StartOffset::FromStart { records: 9 }, "end 0 3"),
        (StartOffset::FromEnd { records: 1 }, "0:c"),
        (StartOffset::FromEnd { records: 9 }, "0:ab"),
        (StartOffset::Timestamp { timestamp: i64::MAX }, "end 0 3"),
        (StartOffset::Timestamp { timestamp: 0 }, "0:ab"),
    ];
    for (start, wanted) in cases {
        let (dir, log) = store(1);
        produce(&*log, &topic("in"), 0, &["a", "b", "c"]);
        let mut lane = Driver::open(&log, "one", start);
        assert_eq!([lane.poll(), lane.poll()], ["assigned 0", wanted], "{start:?}");
        drop(lane);
        drop(log);
        // What comes meanwhile does not change the start, though nothing was ack-committed.
        let log = open(dir.path());
        produce(&*log, &topic("in"), 0, &["d"]);
        let mut lane = Driver::open(&log, "one", start);
        let wanted = match wanted {
            "0:ab" => "0:ab",
            "0:c" => "0:cd",
            _ => "0:d",
        };
        assert_eq!([lane.poll(), lane.poll()], ["assigned 0", wanted], "{start:?} again");
    }
}

#[test]
fn partitions_move_between_lanes_of_a_group() {
    let (_dir, log) = store(2);
    produce(&*log, &topic("in"), 0, &["a"]);
    produce(&*log, &topic("in"), 1, &["x"]);
    let mut one = Driver::open(&log, "one", StartOffset::Earliest);
    assert_eq!([one.poll(), one.poll(), one.poll()], ["assigned 01", "0:a", "1:x"]);
    one.process();
    let mut two = Driver::open(&log, "two", StartOffset::Earliest);
    assert_eq!(log.members(&"g".parse().unwrap()).unwrap(), 2);
    assert_eq!(two.poll(), "idle");
    assert_eq!(one.poll(), "revoking 1 false");
    one.commit().unwrap();
    assert_eq!(two.poll(), "idle", "owned until released");
    one.session.release();
    assert_eq!([two.poll(), two.poll()], ["assigned 1", "end 1 1"]);
    assert!(matches!(
        log.alter(&"g".parse().unwrap(), &std::collections::BTreeMap::new()),
        Err(LogError::Refused(_))
    ));
    drop(one);
    assert_eq!([two.poll(), two.poll()], ["assigned 0", "0:a"]);
}

#[test]
fn a_later_session_of_a_slot_fences_the_earlier() {
    let (_dir, log) = store(1);
    produce(&*log, &topic("in"), 0, &["a"]);
    let mut first = Driver::open(&log, "one", StartOffset::Earliest);
    first.poll();
    assert_eq!(first.poll(), "0:a");
    first.process();
    let mut second = Driver::open(&log, "one", StartOffset::Earliest);
    assert!(matches!(first.commit(), Err(LogError::Fenced(_))));
    assert!(matches!(first.session.rewind(), Err(LogError::Fenced(_))));
    assert_eq!(first.poll(), "Fenced");
    assert_eq!([second.poll(), second.poll()], ["assigned 0", "0:a"]);
    second.process();
    second.commit().unwrap();
    drop(first);
    assert_eq!(second.poll(), "end 0 1", "the fenced one takes nothing along");
    assert_eq!(values(&read_all(&*log, &topic("out"))), ["a"]);
}

#[test]
fn paused_partitions_are_silent() {
    let (_dir, log) = store(2);
    produce(&*log, &topic("in"), 0, &["a"]);
    produce(&*log, &topic("in"), 1, &["x"]);
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    lane.poll();
    let zero = [TopicPartition::new(&topic("in"), 0)];
    lane.session.pause(&zero);
    assert_eq!([lane.poll(), lane.poll(), lane.poll()], ["1:x", "end 1 1", "idle"]);
    lane.session.resume(&zero);
    assert_eq!([lane.poll(), lane.poll()], ["0:a", "end 0 1"]);
    let ends: Vec<_> = lane.session.extents().into_iter().map(|(_, extent)| extent.end).collect();
    assert_eq!(ends, [1, 1]);
}

#[test]
fn a_lost_offset_is_said_not_jumped_over() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(1_000);
    let options = coproc::log::Options { clock: clock.clone(), ..options() };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    create(&*log, "in", TopicConfig { retention_ms: Some(10), ..TopicConfig::default() });
    create(&*log, "out", TopicConfig::default());
    produce(&*log, &topic("in"), 0, &["a"]);
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    assert_eq!(lane.poll(), "assigned 0");
    clock.set(2_000);
    log.housekeep().unwrap();
    produce(&*log, &topic("in"), 0, &["b"]);
    assert_eq!([lane.poll(), lane.poll()], ["stuck 0: OffsetOutOfRange", "idle"]);
    lane.session.rewind().unwrap();
    assert_eq!(lane.poll(), "stuck 0: OffsetOutOfRange");
}

#[test]
fn refused_records_and_deleted_topics() {
    let (_dir, log) = store(1);
    create(&*log, "small", TopicConfig { max_record_bytes: 5, ..TopicConfig::default() });
    create(&*log, "in._out_", TopicConfig { materialized: true, ..TopicConfig::default() });
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    lane.poll();
    let payload = Record::new(Some(b"key"), Some(b"value")).payload();
    let mut emit = |name: &str, partition, payload: &[u8]| {
        let (topic, placement) = (topic(name), Placement::Exactly(partition));
        lane.session.emit(&Emit { topic: &topic, placement, timestamp: 0, payload })
    };
    assert!(matches!(emit("small", 0, &payload), Err(LogError::RecordRefused { .. })));
    assert!(matches!(emit("out", 0, &[9, 9]), Err(LogError::RecordRefused { .. })));
    assert!(matches!(emit("out", 3, &payload), Err(LogError::UnknownPartition { .. })));
    assert!(matches!(emit("none", 0, &payload), Err(LogError::UnknownTopic(_))));
    emit("in._out_", 0, &payload).unwrap();
    lane.commit().unwrap();
    assert_eq!(read_all(&*log, &topic("in._out_")).len(), 1);
    TopicAdmin::delete(&*log, &topic("in._out_")).unwrap();
    TopicAdmin::delete(&*log, &topic("in")).unwrap();
    assert_eq!(lane.poll(), "UnknownTopic");
}

#[test]
fn idle_lanes_sleep_while_others_work() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    create(&*log, "busy", TopicConfig::default());
    let spec_of = |number: usize| LaneSpec {
        group: format!("g{number}").parse().unwrap(),
        inputs: vec![topic(&format!("in{number}"))],
        outputs: vec![],
        ..spec(&format!("t{number}"), StartOffset::Earliest)
    };
    for number in 0..50 {
        create(&*log, &format!("in{number}"), TopicConfig::default());
    }
    std::thread::scope(|scope| {
        let (ready, are_ready) = crossbeam_channel::bounded(50);
        let lanes: Vec<_> = (0..50)
            .map(|number| {
                let (log, spec, ready) = (&log, spec_of(number), ready.clone());
                scope.spawn(move || {
                    let mut session = log.lane(&spec).unwrap();
                    let mut batch = Batch::default();
                    // Assigned, and at the end of an empty topic.
                    session.poll(&mut batch, LONG);
                    session.poll(&mut batch, LONG);
                    ready.send(()).unwrap();
                    matches!(session.poll(&mut batch, LONG), Event::Records)
                })
            })
            .collect();
        for _ in 0..50 {
            are_ready.recv().unwrap();
        }
        for number in 0..50 {
            produce(&*log, &topic("busy"), 0, &["x"]);
            produce(&*log, &topic(&format!("in{number}")), 0, &["x"]);
        }
        for lane in lanes {
            assert!(lane.join().unwrap(), "woken by its own topic, by nothing else");
        }
    });
}

#[test]
fn a_lane_gets_past_what_compaction_took_away() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(1_000);
    let options =
        coproc::log::Options { clock: clock.clone(), delete_retention: Duration::ZERO, ..options() };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    create(&*log, "in", TopicConfig::compacted());
    create(&*log, "out", TopicConfig::default());
    for value in [Some("v"), None] {
        let record = Record::new(Some(b"k"), value.map(str::as_bytes));
        log.produce(&[coproc::ports::Produce { topic: topic("in"), partition: None, record }]).unwrap();
    }
    clock.set(2_000);
    log.housekeep().unwrap();
    let mut lane = Driver::open(&log, "one", StartOffset::Earliest);
    assert_eq!([lane.poll(), lane.poll(), lane.poll()], ["assigned 0", "end 0 2", "idle"]);
}
