//! Real brokers for tests, started by `tests/env/kafka`, and stopped when the test process ends.
#![allow(dead_code, reason = "not every test binary that shares this file needs all of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coproc::core::names::TopicName;
use coproc::core::record::Record;
use coproc::kafka::{KafkaConfig, KafkaLog, Timing};
use coproc::ports::{Log, Produce, TopicConfig};

pub struct Cluster {
    pub dir: PathBuf,
    pub bootstrap: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/kafka")
}

/// The cluster of this test binary: one broker, no security.
pub fn plain() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start("plain", &[]))
}

impl Cluster {
    pub fn start(name: &str, options: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("coproc-kafka-{}-{name}", std::process::id()));
        let output = Command::new(script())
            .args(["start", "--owner", &std::process::id().to_string(), "--dir"])
            .arg(&dir)
            .args(options)
            .output()
            .expect("tests/env/kafka runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let bootstrap = text.lines().find_map(|line| line.strip_prefix("bootstrap="));
        let bootstrap = bootstrap.unwrap_or_else(|| {
            panic!("no broker: {text} {}", String::from_utf8_lossy(&output.stderr));
        });
        Self { dir, bootstrap: bootstrap.to_owned() }
    }

    /// Stops a broker in order and starts it again.
    pub fn restart(&self, broker: u32) {
        order(&["restart", self.dir.to_str().expect("a path of ours"), &broker.to_string()]);
    }

    /// Ends a broker as by a power cut.
    pub fn kill(&self, broker: u32) {
        order(&["kill", self.dir.to_str().expect("a path of ours"), &broker.to_string()]);
    }

    /// Makes a new authority and new certificates; brokers take them up when they restart.
    pub fn make_certificates(&self) {
        order(&["certificates", self.dir.to_str().expect("a path of ours")]);
    }

    pub fn config(&self) -> KafkaConfig {
        let mut config = KafkaConfig::plain(self.bootstrap.split(','));
        config.metadata_refresh = Duration::from_secs(1);
        config.timing = short();
        config
    }

    pub fn log(&self) -> Arc<KafkaLog> {
        KafkaLog::connect(self.config()).expect("the cluster is up")
    }

    /// Lets go of a partition's records before this offset.
    pub fn delete_records(&self, topic: &TopicName, partition: u32, before: i64) {
        let file = self.dir.join(format!("delete-{topic}-{partition}.json"));
        let request = format!(
            r#"{{"version":1,"partitions":[{{"topic":"{topic}","partition":{partition},"offset":{before}}}]}}"#
        );
        std::fs::write(&file, request).expect("the directory is ours");
        let args = ["--offset-json-file", file.to_str().expect("a path of ours")];
        self.tool("org.apache.kafka.tools.DeleteRecordsCommand", &args);
    }

    /// Runs one of Kafka's own tools: what it printed.
    pub fn tool(&self, class: &str, args: &[&str]) -> String {
        let output = Command::new(script())
            .arg("tool")
            .arg(&self.dir)
            .args([class, "--bootstrap-server", &self.bootstrap])
            .args(args)
            .output()
            .expect("tests/env/kafka runs");
        assert!(
            output.status.success() || class.contains("ConsoleConsumer"),
            "{class} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn order(args: &[&str]) {
    let output = Command::new(script()).args(args).output().expect("tests/env/kafka runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Time-outs short enough for tests.
pub fn short() -> Timing {
    let millis = Duration::from_millis;
    Timing {
        socket: millis(4_000),
        transaction: millis(5_000),
        session: millis(6_000),
        max_poll: millis(12_000),
    }
}

/// A name that no other test uses.
pub fn fresh(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn topic(log: &dyn Log, what: &str, partitions: u32) -> TopicName {
    let name: TopicName = fresh(what).parse().unwrap();
    log.topics().create(&name, &TopicConfig { partitions, ..TopicConfig::default() }).unwrap();
    name
}

/// Waits until the topic's first partition ends there: brokers write the markers of a commit in the background.
pub fn await_end(log: &dyn Log, topic: &TopicName, end: i64) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while log.topics().extents(topic).unwrap()[0].end != end {
        assert!(std::time::Instant::now() < deadline, "{topic} does not end at {end}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes `count` records over all partitions: key `k<n>`, value `<partition>:<sequence>`.
pub fn fill(log: &dyn Log, topic: &TopicName, partitions: u32, count: usize) {
    let records: Vec<_> = (0..count)
        .map(|n| {
            let partition = n as u32 % partitions;
            let value = format!("{partition}:{}", n as u32 / partitions);
            let record = Record::new(Some(format!("k{n}").as_bytes()), Some(value.as_bytes()));
            Produce { topic: topic.clone(), partition: Some(partition), record }
        })
        .collect();
    for chunk in records.chunks(10_000) {
        log.produce(chunk).unwrap();
    }
}
