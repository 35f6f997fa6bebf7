//! Compaction and retention against a naive model.

use std::collections::BTreeMap;
use std::time::Duration;

use coproc::core::record::Offset;
use coproc::log::{EmbeddedLog, Options};
use coproc::ports::{Cleanup, Extent, Fetched, Log, Produce, ReadFrom, TopicAdmin, TopicConfig};
use proptest::prelude::*;

use crate::support::{HandClock, create, open, options, produce, read_all, record, topic, values};

#[derive(Debug, Clone)]
enum Step {
    /// Records of one batch: a key, and whether there is a value.
    Write(Vec<(u8, bool)>),
    Compact,
    /// Time passes, so that tombstones may go.
    Wait,
    Reopen,
}

fn arbitrary_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec((0u8..6, prop::bool::weighted(0.7)), 1..6).prop_map(Step::Write),
        2 => Just(Step::Compact),
        1 => Just(Step::Wait),
        1 => Just(Step::Reopen),
    ]
}

/// What a record is to the model.
type Entry = (Offset, u8, Option<String>);

fn entries(fetched: &[Fetched]) -> Vec<Entry> {
    let entry = |fetched: &Fetched| {
        let value = fetched.record.value.clone().map(|value| String::from_utf8(value).unwrap());
        (fetched.offset, fetched.record.key.as_ref().unwrap()[0], value)
    };
    fetched.iter().map(entry).collect()
}

fn newest(entries: &[Entry]) -> BTreeMap<u8, Option<String>> {
    let mut newest = BTreeMap::new();
    for (_, key, value) in entries {
        newest.insert(*key, value.clone());
    }
    newest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_newest_of_each_key_stays_and_nothing_moves(
        steps in proptest::collection::vec(arbitrary_step(), 1..25),
        // Fewer than there are keys: then it takes several passes.
        compaction_keys in 1usize..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let clock = HandClock::at(1_000);
        let delete_retention = Duration::from_millis(100);
        let reopen = || {
            let options = Options { clock: clock.clone(), delete_retention, compaction_keys, ..options() };
            EmbeddedLog::open(dir.path(), options).unwrap()
        };
        let mut log = reopen();
        let name = create(&*log, "c", TopicConfig::compacted());
        let mut all: Vec<Entry> = Vec::new();
        let mut now = 1_000;
        for step in steps {
            match step {
                Step::Write(records) => {
                    let batch: Vec<_> = records
                        .iter()
                        .map(|(key, has_value)| Produce {
                            topic: name.clone(),
                            partition: None,
                            record: coproc::core::record::Record {
                                key: Some(vec![*key]),
                                ..record(None, has_value.then(|| format!("v{}", all.len())).as_deref())
                            },
                        })
                        .collect();
                    let produced = log.produce(&batch).unwrap();
                    for (produce, produced) in batch.iter().zip(produced) {
                        let value = produce.record.value.clone().map(|value| String::from_utf8(value).unwrap());
                        all.push((produced.offset, produce.record.key.as_ref().unwrap()[0], value));
                    }
                }
                Step::Compact => {
                    log.housekeep().unwrap();
                    let found = entries(&read_all(&*log, &name));
                    let mut seen = std::collections::BTreeSet::new();
                    prop_assert!(found.iter().all(|(_, key, _)| seen.insert(*key)), "one record a key: {found:?}");
                }
                Step::Wait => {
                    now += 60;
                    clock.set(now);
                }
                Step::Reopen => {
                    drop(log);
                    log = reopen();
                }
            }
            let found = entries(&read_all(&*log, &name));
            // What is there was written just there, in that order.
            prop_assert!(found.iter().all(|entry| all[entry.0 as usize] == *entry));
            prop_assert!(found.is_sorted_by_key(|entry| entry.0));
            // The newest of each key is there; a tombstone may be gone.
            let (found, mut wanted) = (newest(&found), newest(&all));
            wanted.retain(|key, value| value.is_some() || found.contains_key(key));
            prop_assert_eq!(found, wanted);
            prop_assert_eq!(log.extents(&name).unwrap(), [Extent { first: 0, end: all.len() as Offset }]);
        }
        // From wherever a reader starts, it gets what is there from that offset on.
        let found = entries(&read_all(&*log, &name));
        for start in 0..=all.len() as Offset {
            let mut reader = log.reader(&name, None, ReadFrom::Offset(start)).unwrap();
            let rest = entries(&reader.fetch(Duration::ZERO).unwrap());
            let wanted: Vec<_> = found.iter().filter(|entry| entry.0 >= start).cloned().collect();
            prop_assert_eq!(rest, wanted);
        }
    }
}

#[test]
fn tombstones_go_after_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(1_000);
    let delete_retention = Duration::from_millis(100);
    let options = Options { clock: clock.clone(), delete_retention, ..options() };
    let log = EmbeddedLog::open(dir.path(), options).unwrap();
    let name = create(&*log, "c", TopicConfig::compacted());
    let write = |value| {
        let record = record(Some("k"), value);
        log.produce(&[Produce { topic: name.clone(), partition: None, record }]).unwrap()
    };
    write(Some("v"));
    write(None);
    log.housekeep().unwrap();
    assert_eq!(read_all(&*log, &name).len(), 1);
    clock.set(1_100);
    log.housekeep().unwrap();
    assert_eq!(read_all(&*log, &name).len(), 1);
    clock.set(1_101);
    log.housekeep().unwrap();
    assert_eq!(read_all(&*log, &name).len(), 0);
    assert_eq!(log.extents(&name).unwrap(), [Extent { first: 0, end: 2 }]);
    assert_eq!(write(Some("w"))[0].offset, 2);
    assert_eq!(values(&read_all(&*log, &name)), ["w"]);
}

#[test]
fn retention_by_size_keeps_at_least_that_much() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let config = TopicConfig { retention_bytes: Some(10_000), ..TopicConfig::default() };
    let name = create(&*log, "a", config);
    let large = "x".repeat(4_000);
    for _ in 0..5 {
        produce(&*log, &name, 0, &[&large]);
    }
    log.housekeep().unwrap();
    assert_eq!(log.extents(&name).unwrap(), [Extent { first: 2, end: 5 }]);
    assert_eq!(read_all(&*log, &name).len(), 3);
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.extents(&name).unwrap(), [Extent { first: 2, end: 5 }]);
}

#[test]
fn compacted_topics_can_lose_old_records_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(1_000);
    let log = EmbeddedLog::open(dir.path(), Options { clock: clock.clone(), ..options() }).unwrap();
    let cleanup = Cleanup::CompactAndDelete;
    let name = create(&*log, "a", TopicConfig { cleanup, retention_ms: Some(10), ..TopicConfig::default() });
    let write = |key| {
        let record = record(Some(key), Some(key));
        log.produce(&[Produce { topic: topic("a"), partition: None, record }]).unwrap();
    };
    write("old");
    clock.set(1_011);
    write("new");
    log.housekeep().unwrap();
    assert_eq!(values(&read_all(&*log, &name)), ["new"]);
}
