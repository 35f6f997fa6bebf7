//! The two topics on a real log: several writers at once, topics that go away, many deployments.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use coproc::control::modules::{self, TopicStore, UNREFERENCED_MS};
use coproc::control::topics::OwnTopic;
use coproc::control::writer::{DesiredWriter, Error};
use coproc::control::{desired, observed};
use coproc::core::deployment::ModuleRef;
use coproc::core::digest::Digest;
use coproc::core::names::{Installation, PoolName, TopicName};
use coproc::core::status::State;
use coproc::ports::{
    Capabilities, FencedWriter, Fetched, Fold, FoldEvent, Keyed, LaneSession, LaneSpec, Log, LogError,
    ModuleError, ModuleStore, Offsets, Produce, Produced, ReadFrom, Reader, TopicAdmin, TopicConfig,
};

use support::{Rig, deployment, identity, identity_of, stamp, start_node, topic};

fn put(rig: &Rig, name: &str, input: &str, output: &str, description: &str) -> Result<u64, Error> {
    let mut wanted = deployment(&[Digest::from_bytes([7; 32])], input, &[output], "");
    description.clone_into(&mut wanted.description);
    rig.writer().deploy(&PoolName::default_name(), &identity_of(name), &wanted)
}

#[test]
fn of_changes_at_the_same_time_none_is_lost() {
    const EACH: usize = 8;
    let rig = Rig::without_node();
    let start = Barrier::new(3);
    let generations = std::thread::scope(|scope| {
        let change = |writer: usize| {
            let (rig, start) = (&rig, &start);
            scope.spawn(move || {
                start.wait();
                let one = |i| put(rig, "a", "in", "out", &format!("{writer}.{i}")).unwrap();
                (0..EACH).map(one).collect::<Vec<_>>()
            })
        };
        let writers: Vec<_> = (0..3).map(change).collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    let different: BTreeSet<_> = generations.iter().collect();
    assert_eq!(different.len(), 3 * EACH, "each change follows another one: {generations:?}");
    let state = desired::read(rig.log.as_ref()).unwrap();
    let (_, last) = state.get(&identity_of("a")).unwrap();
    assert_eq!(Some(&last.generation()), different.last().copied());
}

#[test]
fn a_cycle_is_refused_also_when_its_halves_come_at_the_same_time() {
    for _ in 0..10 {
        let rig = Rig::without_node();
        let start = Barrier::new(2);
        let results = std::thread::scope(|scope| {
            let one = |name: &'static str, input: &'static str, output: &'static str| {
                let (rig, start) = (&rig, &start);
                scope.spawn(move || {
                    start.wait();
                    put(rig, name, input, output, "")
                })
            };
            let (there, back) = (one("there", "x", "y"), one("back", "y", "x"));
            [there.join().unwrap(), back.join().unwrap()]
        });
        let refused = results.iter().filter(|result| matches!(result, Err(Error::Cycle(_)))).count();
        assert_eq!(refused, 1, "{results:?}");
    }
}

#[test]
fn what_no_node_would_look_at_is_refused_where_it_is_written() {
    let rig = Rig::without_node();
    let refused = put(&rig, "large", "in", "out", &"x".repeat(desired::MAX_CONTROL_BYTES)).unwrap_err();
    assert!(
        matches!(refused, Error::Invalid(_)) && refused.to_string().contains("at most 921600"),
        "{refused}"
    );
    assert!(put(&rig, "large", "in", "out", "small").is_ok());
}

#[test]
fn generations_never_restart() {
    let rig = Rig::without_node();
    put(&rig, "other", "in", "out", "").unwrap();
    let mut highest = 0;
    for round in 0..5 {
        for change in 0..=round {
            let generation = put(&rig, "a", "in", "out", &format!("{round}.{change}")).unwrap();
            assert!(generation > highest, "{generation} after {highest}");
            highest = generation;
        }
        assert!(rig.writer().set_paused(&identity_of("a"), true).unwrap());
        let generation = put(&rig, "a", "in", "out", "paused").unwrap();
        assert!(generation > highest + 1, "the pause has a generation of its own");
        highest = generation;
        assert!(rig.writer().find(&identity_of("a")).unwrap().1.paused, "a change does not end a pause");
        assert_eq!(put(&rig, "a", "in", "out", "paused").unwrap(), highest, "no change, no generation");
        rig.writer().remove(&identity_of("a")).unwrap();
    }
}

#[test]
fn without_a_topic_there_is_nothing_to_change() {
    let rig = Rig::without_node();
    assert!(matches!(rig.writer().remove(&identity_of("a")), Err(Error::NotFound(_))));
    assert!(matches!(rig.writer().set_paused(&identity_of("a"), true), Err(Error::NotFound(_))));
    assert_eq!(desired::read(rig.log.as_ref()).unwrap().iter().count(), 0);
    assert!(observed::read(rig.log.as_ref()).unwrap().is_none());
}

/// A log that something happens to whenever a topic was opened for reading, and that counts what is asked of readers:
/// from another process each is a round trip.
struct Watched<'a> {
    rig: &'a Rig,
    opened: fn(&Rig, &TopicName),
    asked: Arc<AtomicUsize>,
}

struct WatchedReader(Box<dyn Reader>, Arc<AtomicUsize>);

impl Reader for WatchedReader {
    fn fetch(&mut self, wait: Duration) -> Result<Vec<Fetched>, LogError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.fetch(wait)
    }

    fn is_caught_up(&mut self) -> Result<bool, LogError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.is_caught_up()
    }
}

struct WatchedFold(Box<dyn Fold>, Arc<AtomicUsize>);

impl Fold for WatchedFold {
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.next(wait)
    }
}

impl<'a> Watched<'a> {
    fn new(rig: &'a Rig, opened: fn(&Rig, &TopicName)) -> Self {
        Self { rig, opened, asked: Arc::default() }
    }

    fn deleting(rig: &'a Rig) -> Self {
        Self::new(rig, |rig, topic| rig.log.topics().delete(topic).unwrap())
    }
}

impl Log for Watched<'_> {
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        self.rig.log.lane(spec)
    }

    fn topics(&self) -> &dyn TopicAdmin {
        self.rig.log.topics()
    }

    fn offsets(&self) -> &dyn Offsets {
        self.rig.log.offsets()
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        let fold = self.rig.log.fold(topic)?;
        (self.opened)(self.rig, topic);
        Ok(Box::new(WatchedFold(fold, self.asked.clone())))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        self.rig.log.fenced_writer(topic, id)
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        let reader = self.rig.log.reader(topic, partitions, from)?;
        (self.opened)(self.rig, topic);
        Ok(Box::new(WatchedReader(reader, self.asked.clone())))
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        self.rig.log.produce(records)
    }

    fn capabilities(&self) -> Capabilities {
        self.rig.log.capabilities()
    }
}

#[test]
fn one_more_beside_a_thousand_deployments_takes_a_few_round_trips() {
    let rig = Rig::without_node();
    put(&rig, "a", "in", "out", "").unwrap();
    let value = rig.read(OwnTopic::Control.name().as_str()).remove(0).record.value;
    let other = |i| {
        let key = format!("deployment/default/_cli/default/coprocessor/c{i}").into_bytes();
        Keyed { key, value: value.clone() }
    };
    let others: Vec<_> = (0..1_000).map(other).collect();
    rig.log.fenced_writer(&OwnTopic::Control.name(), "w").unwrap().write(&others).unwrap();
    let log = Watched::new(&rig, |_, _| {});
    let writer = DesiredWriter::new(&log, Installation::default_name());
    let start = std::time::Instant::now();
    modules::upload(&log, &identity()).unwrap();
    let wanted = deployment(&[Digest::from_bytes([7; 32])], "in", &["out2"], "");
    writer.deploy(&PoolName::default_name(), &identity_of("another"), &wanted).unwrap();
    let asked = log.asked.load(Ordering::Relaxed);
    println!("{asked} round trips of readers, {:?} beside the log", start.elapsed());
    assert!(asked <= 10, "{asked}");
}

#[test]
fn a_topic_that_goes_while_it_is_read_is_no_topic() {
    let rig = Rig::without_node();
    put(&rig, "a", "in", "out", "").unwrap();
    assert_eq!(desired::read(&Watched::deleting(&rig)).unwrap().iter().count(), 0);
    OwnTopic::Status.ensure(rig.log.as_ref()).unwrap();
    let mut writer = rig.log.fenced_writer(&OwnTopic::Status.name(), "w").unwrap();
    writer.write(&[Keyed { key: b"5".to_vec(), value: Some(b"{}".to_vec()) }]).unwrap();
    assert!(observed::read(&Watched::deleting(&rig)).unwrap().is_none());
}

#[test]
fn a_topic_that_would_forget_is_not_read() {
    let rig = Rig::without_node();
    rig.log.topics().create(&OwnTopic::Control.name(), &TopicConfig::default()).unwrap();
    let error = desired::read(rig.log.as_ref()).err().unwrap();
    assert!(error.to_string().contains("cleanup.policy=compact"), "{error}");
}

#[test]
fn a_node_leaves_other_pools_and_installations_alone() {
    let rig = Rig::without_node();
    for name in ["in", "out", "in2", "out2", "in3", "out3"] {
        rig.create(name, 1);
    }
    let module = modules::upload(rig.log.as_ref(), &identity()).unwrap();
    let others = DesiredWriter::new(rig.log.as_ref(), "other".parse::<Installation>().unwrap());
    let theirs = "other/_cli/coprocessor/theirs".parse().unwrap();
    let pool = PoolName::default_name();
    others.deploy(&pool, &theirs, &deployment(&[module], "in2", &["out2"], "")).unwrap();
    rig.deploy("ours", &[identity()], "in", &["out"], "").unwrap();
    let node = start_node(&rig.log);
    rig.wait_for_state("ours", State::Running);
    // As if a writer of another pool had had a deployment of our identity, and removed it.
    let key = b"deployment/default/_cli/second/coprocessor/ours".to_vec();
    let value = serde_json::to_vec(&deployment(&[module], "in3", &["out3"], "")).unwrap();
    let mut writer = rig.log.fenced_writer(&OwnTopic::Control.name(), "w").unwrap();
    for value in [Some(value), None] {
        writer.write(&[Keyed { key: key.clone(), value }]).unwrap();
    }
    // The node has seen all of that once it runs this.
    rig.deploy("last", &[identity()], "in3", &["out3"], "").unwrap();
    rig.wait_for_state("last", State::Running);
    let ours = rig.status("ours").unwrap();
    assert_eq!((ours.state, &ours.input_topics[..]), (State::Running, &[topic("in")][..]));
    assert!(rig.status("theirs").is_none(), "another installation's");
    drop(node);
}

#[test]
fn modules_are_stored_once_and_swept_when_nobody_names_them() {
    let rig = Rig::without_node();
    let log = rig.log.clone();
    let topic = OwnTopic::Modules.name();
    let end = || log.topics().extents(&topic).unwrap()[0].end;
    let large: Vec<u8> = (0..1_200_000u32).map(|i| i as u8).collect();
    let digest = modules::upload(log.as_ref(), &large).unwrap();
    assert_eq!(end(), 3, "parts of 512 KiB");
    assert_eq!(modules::upload(log.as_ref(), &large).unwrap(), digest);
    assert_eq!(end(), 3, "they are there");
    let named = modules::upload(log.as_ref(), &stamp('a')).unwrap();
    rig.writer()
        .deploy(&PoolName::default_name(), &identity_of("a"), &deployment(&[named], "in", &["out"], ""))
        .unwrap();
    let now = rig.read(topic.as_str())[0].appended_ms;
    assert_eq!(modules::sweep(log.as_ref(), now).unwrap(), 0, "young");
    let store = TopicStore::new(log.clone());
    let fetch = |digest| store.fetch(&ModuleRef { digest, image: None });
    assert_eq!(fetch(digest).unwrap(), large);
    assert_eq!(modules::sweep(log.as_ref(), now + 2 * UNREFERENCED_MS).unwrap(), 1);
    assert!(matches!(fetch(digest), Err(ModuleError::NotFound { .. })));
    assert_eq!(fetch(named).unwrap(), stamp('a'), "a deployment names it");
    assert_eq!(modules::sweep(log.as_ref(), now + 2 * UNREFERENCED_MS).unwrap(), 0, "gone already");
    modules::upload(log.as_ref(), &large).unwrap();
    assert_eq!(fetch(digest).unwrap(), large);
}

#[test]
fn uploads_side_by_side_do_not_fence_one_another() {
    let rig = Rig::without_node();
    OwnTopic::Modules.ensure(rig.log.as_ref()).unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for mark in ['a', 'b', 'c', 'd'] {
            let (log, start) = (&rig.log, &start);
            scope.spawn(move || {
                let module = [stamp(mark), vec![0; 2 << 20]].concat();
                start.wait();
                modules::upload(log.as_ref(), &module).unwrap();
            });
        }
    });
}
