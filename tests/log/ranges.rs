//! `range`, `revrange` and `length`, against a naive model.

use coproc::core::range::{Bound, Id};
use coproc::log::{EmbeddedLog, Options, RangeQuery};
use coproc::ports::{LogError, TopicConfig};
use proptest::prelude::*;

use crate::support::{HandClock, create, open, options, produce, topic};

const T0: i64 = 1_518_951_480_100;

/// Batches of these sizes, each some milliseconds after the one before.
fn filled(dir: &std::path::Path, batches: &[(usize, i64)]) -> (std::sync::Arc<EmbeddedLog>, Vec<Id>) {
    let clock = HandClock::at(T0);
    let log = EmbeddedLog::open(dir, Options { clock: clock.clone(), ..options() }).unwrap();
    let name = create(&*log, "t", TopicConfig::default());
    let mut ids = Vec::new();
    let mut now = T0;
    for (size, later) in batches {
        now += later;
        clock.set(now);
        let produced = produce(&*log, &name, 0, &vec!["x"; *size]);
        ids.extend(produced.iter().map(|p| Id { append_ms: p.appended_ms, offset: p.offset }));
    }
    (log, ids)
}

fn ids(found: Result<Vec<coproc::log::Found>, LogError>) -> Vec<i64> {
    found.unwrap().into_iter().map(|found| found.id.offset).collect()
}

#[test]
fn answers_as_pipeproc_does() {
    let dir = tempfile::tempdir().unwrap();
    // Twenty records: ten at T0, ten 7 ms later.
    let (log, _) = filled(dir.path(), &[(10, 0), (10, 7)]);
    let query = |start: &str, end: &str, exclusive, limit| {
        let bound = |text: &str| (!text.is_empty()).then(|| text.parse::<Bound>().unwrap());
        RangeQuery { start: bound(start), end: bound(end), exclusive, limit }
    };
    let cases: [(RangeQuery, std::ops::Range<i64>); 12] = [
        (query("", "", false, None), 0..20),
        (query(":5", ":15", false, None), 5..16),
        (query(":5", ":15", true, None), 6..15),
        (query("1518951480100-3", "1518951480107-11", false, None), 3..12),
        (query("1518951480100-3", "1518951480107-11", true, None), 4..11),
        (query("1518951480100", "1518951480100", true, None), 0..10),
        (query("1518951480101", "", false, None), 10..20),
        (query("15189514801", "", false, None), 0..20),
        (query("1518951480100-99", "", false, None), 10..20),
        (query("", ":3", false, None), 0..4),
        (query(":5", "", true, Some(3)), 6..9),
        (query("9999999999999", "", false, None), 0..0),
    ];
    for (query, wanted) in cases {
        assert_eq!(ids(log.range(&topic("t"), 0, &query)), wanted.collect::<Vec<_>>(), "{query:?}");
    }
    let newest = RangeQuery { limit: Some(1), ..RangeQuery::default() };
    assert_eq!(ids(log.revrange(&topic("t"), 0, &newest)), [19]);
    assert_eq!(ids(log.revrange(&topic("t"), 0, &query(":15", ":12", true, None))), [14, 13]);
    assert_eq!(ids(log.revrange(&topic("t"), 0, &query(":5", ":15", false, None))), [] as [i64; 0]);
    assert_eq!(ids(log.range(&topic("t"), 0, &query(":15", ":5", false, None))), [] as [i64; 0]);
    let beyond = log.range(&topic("t"), 0, &query(":20", "", false, None));
    assert!(matches!(beyond, Err(LogError::OffsetOutOfRange { .. })));
    assert!(matches!(log.range(&topic("none"), 0, &newest), Err(LogError::UnknownTopic(_))));
    assert_eq!(log.length(&topic("t"), 0).unwrap(), 20);
}

#[test]
fn an_emptied_topic_counts_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = HandClock::at(T0);
    let log = EmbeddedLog::open(dir.path(), Options { clock: clock.clone(), ..options() }).unwrap();
    let name = create(&*log, "t", TopicConfig { retention_ms: Some(10), ..TopicConfig::default() });
    produce(&*log, &name, 0, &["a", "b"]);
    clock.set(T0 + 5);
    produce(&*log, &name, 0, &["c"]);
    clock.set(T0 + 11);
    log.housekeep().unwrap();
    assert_eq!(ids(log.range(&name, 0, &RangeQuery::default())), [2]);
    assert_eq!(log.length(&name, 0).unwrap(), 3);
    clock.set(T0 + 100);
    log.housekeep().unwrap();
    assert_eq!(log.length(&name, 0).unwrap(), 0);
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.length(&name, 0).unwrap(), 0);
    assert_eq!(produce(&*log, &name, 0, &["d"])[0].offset, 3);
    assert_eq!(log.length(&name, 0).unwrap(), 4);
}

fn arbitrary_bound() -> impl Strategy<Value = Option<Bound>> {
    prop_oneof![
        1 => Just(None),
        2 => (0i64..30).prop_map(|offset| Some(Bound::Offset(offset))),
        2 => (0i64..12, 0i64..30)
            .prop_map(|(later, offset)| Some(Bound::Id(Id { append_ms: T0 + later, offset }))),
        2 => (0i64..12).prop_map(|later| Some(Bound::Time { from: T0 + later, to: T0 + later })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn agrees_with_a_list(
        batches in proptest::collection::vec((1usize..5, 0i64..3), 1..8),
        queries in proptest::collection::vec(
            (arbitrary_bound(), arbitrary_bound(), any::<bool>(), proptest::option::of(1usize..6)), 10),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (log, all) = filled(dir.path(), &batches);
        for (from, to, exclusive, limit) in queries {
            let is_there = |bound: Option<Bound>| match bound {
                Some(Bound::Offset(offset)) => all.iter().any(|id| id.offset == offset),
                _ => true,
            };
            let forward = log.range(&topic("t"), 0, &RangeQuery { start: from, end: to, exclusive, limit });
            let backward = log.revrange(&topic("t"), 0, &RangeQuery { start: to, end: from, exclusive, limit });
            if !is_there(from) || !is_there(to) {
                prop_assert!(forward.is_err() && backward.is_err());
                continue;
            }
            let wanted: Vec<_> = all
                .iter()
                .filter(|id| from.is_none_or(|bound| bound.admits_from(**id, exclusive)))
                .filter(|id| to.is_none_or(|bound| bound.admits_to(**id, exclusive)))
                .map(|id| id.offset)
                .collect();
            let most = limit.unwrap_or(usize::MAX);
            let newest: Vec<_> = wanted.iter().rev().take(most).copied().collect();
            let oldest: Vec<_> = wanted.into_iter().take(most).collect();
            prop_assert_eq!(ids(forward), oldest);
            prop_assert_eq!(ids(backward), newest);
        }
    }
}
