//! Topics, produce, readers, folds, fenced writers, groups.

use std::collections::BTreeMap;
use std::time::Duration;

use coproc::core::ledger::TopicPartition;
use coproc::core::record::Record;
use coproc::log::{EmbeddedLog, Options};
use coproc::ports::{
    Cleanup, Extent, FoldEvent, Keyed, Log, LogError, Offsets, Produce, ReadFrom, TopicAdmin, TopicConfig,
};

use crate::support::{HandClock, LONG, create, open, options, produce, read_all, record, topic, values};

#[test]
fn records_come_back_byte_by_byte_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let records = [
        Record::new(None, None),
        Record::new(Some(b""), Some(b"")),
        Record {
            key: Some(vec![0, 255]),
            value: Some(vec![7; 300_000]),
            headers: vec![(b"h".to_vec(), None), (b"h".to_vec(), Some(vec![])), (vec![], Some(vec![0]))],
            timestamp: Some(-5),
        },
    ];
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig::default());
    let wanted: Vec<_> = records
        .iter()
        .map(|record| Produce { topic: name.clone(), partition: None, record: record.clone() })
        .collect();
    let produced = log.produce(&wanted).unwrap();
    assert_eq!(produced.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 1, 2]);
    for _ in 0..2 {
        let found = read_all(&*log, &name);
        for (found, record) in found.iter().zip(&records) {
            assert_eq!((&found.record.key, &found.record.value), (&record.key, &record.value));
            assert_eq!(found.record.headers, record.headers);
        }
        assert_eq!(found[2].record.timestamp, Some(-5));
        assert!(found[0].record.timestamp.unwrap() <= produced[0].appended_ms, "the log chose one");
    }
    drop(log);
    let log = open(dir.path());
    assert_eq!(read_all(&*log, &name).len(), 3);
    assert_eq!(produce(&*log, &name, 0, &["next"])[0].offset, 3);
}

type IsExpected = fn(&LogError) -> bool;

#[test]
fn a_batch_over_topics_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let good = create(&*log, "good", TopicConfig::default());
    create(&*log, "small", TopicConfig { max_record_bytes: 10, ..TopicConfig::default() });
    create(&*log, "compacted", TopicConfig::compacted());
    create(&*log, "good._out_", TopicConfig { materialized: true, ..TopicConfig::default() });
    let long = record(Some("k"), Some("longer than ten bytes"));
    let cases: [(&str, Option<u32>, Record, IsExpected); 5] = [
        ("none", None, record(None, None), |error| matches!(error, LogError::UnknownTopic(_))),
        ("good", Some(7), record(None, None), |error| matches!(error, LogError::UnknownPartition { .. })),
        ("small", None, long, |error| matches!(error, LogError::RecordRefused { .. })),
        ("compacted", None, record(None, Some("v")), |error| matches!(error, LogError::RecordRefused { .. })),
        ("good._out_", None, record(None, None), |error| matches!(error, LogError::NotWritable { .. })),
    ];
    for (name, partition, bad, is_expected) in cases {
        let batch = [
            Produce { topic: good.clone(), partition: None, record: record(None, Some("x")) },
            Produce { topic: topic(name), partition, record: bad },
        ];
        let error = log.produce(&batch).unwrap_err();
        assert!(is_expected(&error), "{name}: {error}");
    }
    assert_eq!(log.extents(&good).unwrap(), [Extent { first: 0, end: 0 }]);
}

#[test]
fn topics_are_made_listed_deleted_and_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let config = TopicConfig {
        partitions: 3,
        cleanup: Cleanup::CompactAndDelete,
        retention_ms: Some(1),
        retention_bytes: Some(2),
        max_record_bytes: 3,
        materialized: false,
    };
    let name = create(&*log, "b", config.clone());
    create(&*log, "a", TopicConfig::default());
    assert!(matches!(log.create(&name, &config), Err(LogError::TopicExists(_))));
    let bad = TopicConfig { partitions: 0, ..TopicConfig::default() };
    assert!(matches!(log.create(&topic("c"), &bad), Err(LogError::BadConfig(_))));
    let names: Vec<_> = log.list().unwrap().into_iter().map(|info| info.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    let first = log.describe(&name).unwrap().unwrap();
    assert_eq!(first.config, config);
    TopicAdmin::delete(&*log, &name).unwrap();
    assert_eq!(log.describe(&name).unwrap(), None);
    assert!(matches!(TopicAdmin::delete(&*log, &name), Err(LogError::UnknownTopic(_))));
    create(&*log, "b", TopicConfig::default());
    drop(log);
    let log = open(dir.path());
    let second = log.describe(&name).unwrap().unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(log.extents(&name).unwrap().len(), 1);
}

#[test]
fn a_source_with_materialized_topics_stays() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let source = create(&*log, "src", TopicConfig::default());
    let child = create(&*log, "src._out_", TopicConfig { materialized: true, ..TopicConfig::default() });
    let error = TopicAdmin::delete(&*log, &source).unwrap_err().to_string();
    assert!(error.contains("src._out_"), "{error}");
    TopicAdmin::delete(&*log, &child).unwrap();
    TopicAdmin::delete(&*log, &source).unwrap();
}

#[test]
fn a_deleted_topic_gives_its_records_up() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig::default());
    produce(&*log, &name, 0, &["x"]);
    let mut reader = log.reader(&name, None, ReadFrom::Start).unwrap();
    TopicAdmin::delete(&*log, &name).unwrap();
    assert!(matches!(reader.fetch(Duration::ZERO), Err(LogError::UnknownTopic(_))));
    log.housekeep().unwrap();
    create(&*log, "a", TopicConfig::default());
    assert_eq!(read_all(&*log, &name).len(), 0);
}

#[test]
fn readers_start_where_they_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig::default());
    let records: Vec<_> = [50, 10, 70, 60, 90]
        .iter()
        .map(|ms| Produce {
            topic: name.clone(),
            partition: None,
            record: Record { timestamp: Some(*ms), ..record(None, Some(&ms.to_string())) },
        })
        .collect();
    log.produce(&records[..2]).unwrap();
    log.produce(&records[2..]).unwrap();
    let cases: [(ReadFrom, &[&str]); 8] = [
        (ReadFrom::Start, &["50", "10", "70", "60", "90"]),
        (ReadFrom::End, &[]),
        (ReadFrom::Offset(3), &["60", "90"]),
        (ReadFrom::Timestamp(55), &["70", "60", "90"]),
        (ReadFrom::Timestamp(20), &["50", "10", "70", "60", "90"]),
        (ReadFrom::Timestamp(91), &[]),
        (ReadFrom::Last(2), &["60", "90"]),
        (ReadFrom::Last(99), &["50", "10", "70", "60", "90"]),
    ];
    for (from, wanted) in cases {
        let mut reader = log.reader(&name, None, from).unwrap();
        let found = reader.fetch(Duration::ZERO).unwrap();
        assert_eq!(values(&found), wanted, "{from:?}");
        assert!(reader.is_caught_up().unwrap(), "{from:?}");
    }
    assert!(matches!(log.reader(&name, None, ReadFrom::Offset(6)), Err(LogError::OffsetOutOfRange { .. })));
    for (timestamp, offset) in [(0, 0), (51, 2), (71, 4), (90, 4), (91, 5)] {
        assert_eq!(log.offsets_at(&name, timestamp).unwrap(), [offset], "{timestamp}");
    }
}

#[test]
fn keyed_records_go_by_key_and_others_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig { partitions: 3, ..TopicConfig::default() });
    let of = |key| Produce { topic: name.clone(), partition: None, record: record(key, None) };
    let produced = log.produce(&[of(None), of(None), of(None), of(Some("k")), of(Some("k"))]).unwrap();
    let partitions: Vec<_> = produced.iter().map(|produced| produced.partition).collect();
    assert_eq!(partitions[..3], [0, 1, 2]);
    assert_eq!(partitions[3], partitions[4]);
    assert_eq!(log.produce(&[]).unwrap(), []);
}

#[test]
fn ids_never_go_back_when_the_clock_does() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(1_000);
    let open = || EmbeddedLog::open(dir.path(), Options { clock: clock.clone(), ..options() }).unwrap();
    let log = open();
    let name = create(&*log, "a", TopicConfig::default());
    let append_ms = |log: &EmbeddedLog| produce(log, &name, 0, &["x"])[0].appended_ms;
    assert_eq!(append_ms(&log), 1_000);
    clock.set(500);
    assert_eq!(append_ms(&log), 1_000);
    drop(log);
    let log = open();
    assert_eq!(append_ms(&log), 1_000);
    clock.set(2_000);
    assert_eq!(append_ms(&log), 2_000);
}

fn keyed(key: &str, value: Option<&str>) -> Keyed {
    Keyed { key: key.into(), value: value.map(Into::into) }
}

#[test]
fn a_fold_reports_follows_and_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "c", TopicConfig::compacted());
    let mut writer = log.fenced_writer(&name, "w").unwrap();
    writer.write(&[keyed("a", Some("1")), keyed("b", None)]).unwrap();
    let mut fold = log.fold(&name).unwrap();
    let key = |event| match event {
        FoldEvent::Record { key, value, .. } => {
            format!("{}={}", String::from_utf8(key).unwrap(), value.is_some())
        }
        other => format!("{other:?}"),
    };
    let mut next = || key(fold.next(LONG).unwrap());
    assert_eq!([next(), next(), next()], ["a=true", "b=false", "CaughtUp"]);
    writer.write(&[keyed("c", Some("3"))]).unwrap();
    assert_eq!(next(), "c=true");
    TopicAdmin::delete(&*log, &name).unwrap();
    create(&*log, "c", TopicConfig::compacted());
    log.fenced_writer(&name, "w").unwrap().write(&[keyed("d", Some("4"))]).unwrap();
    assert_eq!([next(), next(), next()], ["Reset", "d=true", "CaughtUp"]);
    assert_eq!(fold.next(Duration::ZERO).unwrap(), FoldEvent::Idle);
    create(&*log, "plain", TopicConfig::default());
    assert!(matches!(log.fold(&topic("plain")).err(), Some(LogError::BadConfig(_))));
    TopicAdmin::delete(&*log, &name).unwrap();
    create(&*log, "c", TopicConfig::default());
    assert!(matches!(fold.next(LONG), Err(LogError::BadConfig(_))), "made anew otherwise");
}

#[test]
fn a_later_writer_fences_the_earlier_of_its_id_only() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "c", TopicConfig::compacted());
    let mut first = log.fenced_writer(&name, "w").unwrap();
    let mut other = log.fenced_writer(&name, "other").unwrap();
    first.write(&[keyed("a", Some("1"))]).unwrap();
    let mut second = log.fenced_writer(&name, "w").unwrap();
    assert!(matches!(first.write(&[keyed("a", Some("2"))]), Err(LogError::Fenced(_))));
    second.write(&[keyed("a", Some("3"))]).unwrap();
    other.write(&[keyed("a", Some("4"))]).unwrap();
    assert_eq!(values(&read_all(&*log, &name)), ["1", "3", "4"]);
}

#[test]
fn groups_are_altered_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig { partitions: 2, ..TopicConfig::default() });
    produce(&*log, &name, 1, &["x", "y"]);
    let group = "g".parse().unwrap();
    let to = BTreeMap::from([(TopicPartition::new(&name, 1), 2)]);
    log.alter(&group, &to).unwrap();
    let too_far = BTreeMap::from([(TopicPartition::new(&name, 1), 3)]);
    assert!(matches!(log.alter(&group, &too_far), Err(LogError::OffsetOutOfRange { .. })));
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.committed(&group).unwrap(), to);
    assert_eq!(log.groups().unwrap(), std::slice::from_ref(&group));
    Offsets::delete(&*log, &group).unwrap();
    Offsets::delete(&*log, &group).unwrap();
    assert_eq!(log.groups().unwrap(), []);
    log.alter(&group, &to).unwrap();
    TopicAdmin::delete(&*log, &name).unwrap();
    assert_eq!(log.groups().unwrap(), []);
    drop(log);
    assert_eq!(open(dir.path()).groups().unwrap(), []);
}

#[test]
fn a_second_opener_is_refused_with_the_pid() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = EmbeddedLog::open(dir.path(), options()).err().unwrap();
    assert!(matches!(error, LogError::Locked(_)));
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(log);
    open(dir.path());
}

#[test]
fn many_callers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let name = create(&*log, "a", TopicConfig { partitions: 4, ..TopicConfig::default() });
    std::thread::scope(|scope| {
        for thread in 0..16u32 {
            let (log, name) = (&log, &name);
            scope.spawn(move || {
                for number in 0..50 {
                    produce(&**log, name, thread % 4, &[&format!("{thread}:{number}")]);
                }
            });
        }
    });
    let found = values(&read_all(&*log, &name));
    assert_eq!(found.len(), 800);
    for thread in 0..16 {
        let mine: Vec<_> = found.iter().filter(|value| value.starts_with(&format!("{thread}:"))).collect();
        let wanted: Vec<_> = (0..50).map(|number| format!("{thread}:{number}")).collect();
        assert_eq!(mine, wanted.iter().collect::<Vec<_>>());
    }
}
