//! The log over a socket: the same answers as beside the store.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use coproc::core::deployment::{Delivery, StartOffset};
use coproc::core::ledger::TopicPartition;
use coproc::core::names::TopicName;
use coproc::log::socket::{RemoteLog, Server, socket_path};
use coproc::log::{EmbeddedLog, open_or_connect};
use coproc::ports::{
    Capabilities, Extent, FencedWriter, Fold, FoldEvent, Keyed, LaneSession, LaneSpec, Log, LogError,
    Offsets, Produce, Produced, ReadFrom, Reader, TopicAdmin, TopicConfig,
};

use crate::support::{LONG, create, open, options, produce, read_all, record, topic, values};

fn keyed(key: &str, value: &str) -> Keyed {
    Keyed { key: key.into(), value: Some(value.into()) }
}

fn check(embedded: &EmbeddedLog, remote: &dyn Log) {
    let name = create(remote, "a", TopicConfig { partitions: 2, ..TopicConfig::default() });
    assert!(matches!(
        remote.topics().create(&name, &TopicConfig::default()),
        Err(LogError::TopicExists(found)) if found == name
    ));
    let produced = produce(remote, &name, 1, &["x", "y"]);
    assert_eq!(produced.iter().map(|p| (p.partition, p.offset)).collect::<Vec<_>>(), [(1, 0), (1, 1)]);
    assert_eq!(read_all(remote, &name), read_all(embedded, &name));
    assert_eq!(remote.topics().list().unwrap(), embedded.topics().list().unwrap());
    assert_eq!(remote.topics().describe(&name).unwrap(), embedded.topics().describe(&name).unwrap());
    assert_eq!(remote.topics().describe(&topic("none")).unwrap(), None);
    assert_eq!(remote.topics().extents(&name).unwrap()[1], Extent { first: 0, end: 2 });
    assert_eq!(remote.topics().offsets_at(&name, 0).unwrap(), [0, 0]);

    let group = "g".parse().unwrap();
    let to = BTreeMap::from([(TopicPartition::new(&name, 1), 2)]);
    remote.offsets().alter(&group, &to).unwrap();
    assert_eq!(remote.offsets().committed(&group).unwrap(), to);
    assert_eq!(remote.offsets().groups().unwrap(), std::slice::from_ref(&group));
    assert_eq!(remote.offsets().members(&group).unwrap(), 0);
    remote.offsets().delete(&group).unwrap();
    assert_eq!(embedded.offsets().groups().unwrap(), []);

    let mut reader = remote.reader(&name, Some(&[1]), ReadFrom::End).unwrap();
    assert!(reader.is_caught_up().unwrap());
    assert_eq!(reader.fetch(Duration::ZERO).unwrap(), []);
    produce(embedded, &name, 1, &["z"]);
    assert_eq!(values(&reader.fetch(LONG).unwrap()), ["z"]);

    let control = create(remote, "c", TopicConfig::compacted());
    let mut fold = remote.fold(&control).unwrap();
    assert_eq!(fold.next(LONG).unwrap(), FoldEvent::CaughtUp);
    assert_eq!(fold.next(Duration::ZERO).unwrap(), FoldEvent::Idle);
    let mut writer = remote.fenced_writer(&control, "w").unwrap();
    writer.write(&[keyed("k", "v")]).unwrap();
    assert!(matches!(fold.next(LONG).unwrap(), FoldEvent::Record { offset: 0, .. }));
    embedded.fenced_writer(&control, "w").unwrap().write(&[keyed("k", "w")]).unwrap();
    assert!(matches!(writer.write(&[keyed("k", "x")]), Err(LogError::Fenced(_))));

    let nowhere = Produce { topic: topic("none"), partition: None, record: record(None, None) };
    assert!(matches!(remote.produce(&[nowhere]), Err(LogError::UnknownTopic(_))));
    assert!(matches!(remote.fold(&topic("none")).err(), Some(LogError::UnknownTopic(_))));
    let lane = LaneSpec {
        group,
        transactional_id: "t".into(),
        inputs: vec![name.clone()],
        outputs: vec![],
        start: StartOffset::Earliest,
        delivery: Delivery::Auto,
        max_records: 1,
        max_bytes: 1,
    };
    assert!(matches!(remote.lane(&lane).err(), Some(LogError::BadConfig(_))));
    assert!(remote.capabilities().description.contains("embedded log at"));
}

#[test]
fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let path = socket_path(dir.path());
    let server = Server::start(log.clone(), &path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    check(&log, &RemoteLog::connect(&path).unwrap());
    assert!(matches!(Server::start(log.clone(), &path).err(), Some(LogError::Locked(_))));
    drop(server);
    assert!(!path.exists());
}

#[test]
fn over_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let server = Server::start_tcp(log.clone(), "127.0.0.1:0".parse().unwrap()).unwrap();
    check(&log, &RemoteLog::connect_tcp(server.address().unwrap()).unwrap());
    let open_to_all = Server::start_tcp(log, "0.0.0.0:0".parse().unwrap());
    assert!(matches!(open_to_all.err(), Some(LogError::BadConfig(_))));
}

#[test]
fn the_store_itself_or_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_or_connect(dir.path(), options()).unwrap();
    let error = open_or_connect(dir.path(), options()).err().unwrap();
    assert!(matches!(error, LogError::Locked(_)), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    // A socket that a dead process left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap());
    let server = Server::start(first.clone(), &socket_path(dir.path())).unwrap();
    let second = open_or_connect(dir.path(), options()).unwrap();
    let name = create(&*second, "a", TopicConfig::default());
    produce(&*second, &name, 0, &["x"]);
    assert_eq!(values(&read_all(&*first, &name)), ["x"]);
    drop(server);
    assert!(matches!(second.topics().list(), Err(LogError::Unavailable(_))));
    assert_eq!(Arc::strong_count(&first), 1, "a stopped server holds nothing");
}

/// The log behind it, whose writers wait for a word before they write.
struct Slow {
    log: Arc<EmbeddedLog>,
    go: crossbeam_channel::Receiver<()>,
}

struct SlowWriter {
    writer: Box<dyn FencedWriter>,
    go: crossbeam_channel::Receiver<()>,
}

impl FencedWriter for SlowWriter {
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError> {
        self.go.recv().unwrap();
        self.writer.write(records)
    }
}

impl Log for Slow {
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        self.log.lane(spec)
    }

    fn topics(&self) -> &dyn TopicAdmin {
        self.log.topics()
    }

    fn offsets(&self) -> &dyn Offsets {
        self.log.offsets()
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        self.log.fold(topic)
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        Ok(Box::new(SlowWriter { writer: self.log.fenced_writer(topic, id)?, go: self.go.clone() }))
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        self.log.reader(topic, partitions, from)
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        self.log.produce(records)
    }

    fn capabilities(&self) -> Capabilities {
        self.log.capabilities()
    }
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (go, wait) = crossbeam_channel::bounded(2);
    let server =
        Server::start_tcp(Arc::new(Slow { log: log.clone(), go: wait }), "127.0.0.1:0".parse().unwrap());
    let address = server.as_ref().unwrap().address().unwrap();
    let remote = RemoteLog::connect_tcp(address).unwrap();
    let name = create(&remote, "c", TopicConfig::compacted());
    let remote = remote.with_deadline(Duration::from_millis(300));
    let mut writer = remote.fenced_writer(&name, "w").unwrap();
    assert!(matches!(writer.write(&[keyed("k", "first")]), Err(LogError::Uncertain(_))));
    go.send(()).unwrap();
    let mut reader = log.reader(&name, None, ReadFrom::Start).unwrap();
    assert_eq!(values(&reader.fetch(LONG).unwrap()), ["first"], "it was written, and answered late");
    assert!(writer.write(&[keyed("k", "second")]).is_err(), "nobody wrote the second");
    assert_eq!(values(&read_all(&*log, &name)), ["first"]);
    go.send(()).unwrap();
    remote.fenced_writer(&name, "w").unwrap().write(&[keyed("k", "third")]).unwrap();
    assert_eq!(values(&read_all(&*log, &name)), ["first", "third"]);
}
