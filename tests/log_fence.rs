//! A slot that is opened anew while a commit of its forerunner is on its way. A process of its own: the point at which
//! the writer is held is one for all logs of a process.
#![allow(clippy::disallowed_methods, reason = "threads of a test end with it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use coproc::core::deployment::{Delivery, StartOffset};
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::record::{Batch, Record};
use coproc::log::{EmbeddedLog, Options};
use coproc::ports::{Event, LaneSession, LaneSpec, Log, LogError, Produce, TopicAdmin, TopicConfig};

const LONG: Duration = Duration::from_secs(20);

fn lane(log: &EmbeddedLog) -> Box<dyn LaneSession> {
    let spec = LaneSpec {
        group: "g".parse().unwrap(),
        transactional_id: "slot".into(),
        inputs: vec!["in".parse().unwrap()],
        outputs: Vec::new(),
        start: StartOffset::Earliest,
        delivery: Delivery::ExactlyOnce,
        max_records: 10,
        max_bytes: 1 << 20,
    };
    log.lane(&spec).unwrap()
}

/// Reads all there is, says so, and commits that when it may.
fn forerunner(log: &EmbeddedLog, has_read: &Sender<()>, may_commit: &Receiver<()>) -> Result<(), LogError> {
    let mut session = lane(log);
    let mut batch = Batch::default();
    assert!(matches!(session.poll(&mut batch, LONG), Event::Assigned(_)));
    assert!(matches!(session.poll(&mut batch, LONG), Event::Records));
    let mut ledger = Ledger::default();
    ledger.advance(&TopicPartition::new(batch.topic().unwrap(), 0), 1);
    has_read.send(()).unwrap();
    may_commit.recv().unwrap();
    session.ack_commit(&ledger)
}

#[test]
fn a_slot_that_is_opened_anew_waits_for_the_commit_of_its_forerunner() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(dir.path(), Options::default()).unwrap();
    log.create(&"in".parse().unwrap(), &TopicConfig::default()).unwrap();
    let record = Record::new(None, Some(b"a"));
    log.produce(&[Produce { topic: "in".parse().unwrap(), partition: None, record }]).unwrap();

    std::thread::scope(|scope| {
        let ((read, has_read), (commit, may_commit)) = (bounded(1), bounded(1));
        let first = scope.spawn({
            let log = &log;
            move || forerunner(log, &read, &may_commit)
        });
        let (reached, is_reached) = bounded(1);
        let (release, released) = bounded(1);
        has_read.recv_timeout(LONG).unwrap();
        let hold = move || {
            if reached.try_send(()).is_ok() {
                released.recv().unwrap();
            }
        };
        fail::cfg_callback("log::commit::before_write", hold).unwrap();
        commit.send(()).unwrap();
        is_reached.recv_timeout(LONG).unwrap();

        let (tell, told) = bounded(2);
        scope.spawn({
            let log = &log;
            move || {
                let (mut session, mut batch) = (lane(log), Batch::default());
                for _ in 0..2 {
                    tell.send(format!("{:?}", session.poll(&mut batch, LONG))).unwrap();
                }
            }
        });
        // It does not answer while the commit is on its way. One that answers late is right too.
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "it knows where to start too early");
        fail::remove("log::commit::before_write");
        release.send(()).unwrap();
        assert!(first.join().unwrap().is_ok(), "the commit was let through before the slot was opened anew");
        let told: Vec<String> = (0..2).map(|_| told.recv_timeout(LONG).unwrap()).collect();
        assert!(told[0].starts_with("Assigned") && told[1].starts_with("CaughtUp"), "{told:?}");
    });
}
