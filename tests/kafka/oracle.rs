//! The one judge of delivery: two read-committed consumers that are not our code.
#![allow(dead_code, reason = "not every test binary that shares this file needs all of it")]

use std::collections::BTreeMap;
use std::process::Command;

use coproc::core::names::TopicName;

use super::cluster::Cluster;

/// Key and value of each committed record, per partition, in order.
pub type Contents = BTreeMap<u32, Vec<(String, String)>>;

/// What both readers agree to see.
pub fn contents(cluster: &Cluster, topic: &TopicName) -> Contents {
    // Brokers write the markers of a commit in the background.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let librdkafka = kcat(cluster, topic);
    let count = |contents: &Contents| contents.values().map(Vec::len).sum::<usize>();
    // It ends when nothing came for a while, and on a busy machine its own start takes that long.
    let patience = ["4000", "15000", "40000"];
    let mut tries = patience.iter().map(|timeout| console_contents(cluster, topic, timeout));
    let mut java = tries.next().unwrap_or_default();
    while count(&java) < count(&librdkafka)
        && let Some(again) = tries.next()
    {
        java = again;
    }
    assert_eq!(count(&librdkafka), count(&java), "kcat and Kafka's own reader of {topic} disagree");
    assert!(librdkafka == java, "the two readers of {topic} disagree");
    librdkafka
}

/// The key of each committed record of a topic with one partition that others may be writing to, in order: those that are
/// there when kcat is at the end, of which Kafka's own reader has to see every one. Values may be any bytes.
pub fn keys(cluster: &Cluster, topic: &TopicName) -> Vec<String> {
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let librdkafka = lines(run_kcat(cluster, topic, "%k\n"));
    // It ends there, and not when nothing comes for a while: others may go on.
    let count = librdkafka.len().to_string();
    let only = ["--max-messages", count.as_str(), "--property", "print.value=false"];
    let java = lines(run_console_consumer(cluster, topic, "40000", &only));
    assert_eq!(librdkafka.len(), java.len(), "kcat and Kafka's own reader of {topic} disagree");
    assert!(librdkafka == java, "the two readers of {topic} disagree");
    librdkafka
}

/// What kcat sees.
pub fn kcat(cluster: &Cluster, topic: &TopicName) -> Contents {
    let text = run_kcat(cluster, topic, "%p\t%k\t%s\n");
    collect(text.lines().map(str::to_owned))
}

fn run_kcat(cluster: &Cluster, topic: &TopicName, format: &str) -> String {
    let output = Command::new("kcat")
        .args(["-C", "-q", "-e", "-b", &cluster.bootstrap, "-t", topic.as_str(), "-o", "beginning"])
        .args(["-X", "isolation.level=read_committed", "-Z", "-f", format])
        .output()
        .expect("kcat is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn run_console_consumer(cluster: &Cluster, topic: &TopicName, timeout_ms: &str, more: &[&str]) -> String {
    let args = [
        "--topic",
        topic.as_str(),
        "--from-beginning",
        "--timeout-ms",
        timeout_ms,
        "--consumer-property",
        "isolation.level=read_committed",
        "--property",
        "print.key=true",
    ];
    cluster.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &[&args[..], more].concat())
}

fn console_contents(cluster: &Cluster, topic: &TopicName, timeout_ms: &str) -> Contents {
    let text = run_console_consumer(cluster, topic, timeout_ms, &["--property", "print.partition=true"]);
    let named = |part: &str| if part == "null" { "NULL".to_owned() } else { part.to_owned() };
    let line = |line: &str| line.splitn(3, '\t').map(named).collect::<Vec<_>>().join("\t");
    collect(text.lines().filter_map(|text| text.strip_prefix("Partition:")).map(line))
}

fn collect(lines: impl Iterator<Item = String>) -> Contents {
    let mut contents = Contents::new();
    for line in lines {
        let mut parts = line.splitn(3, '\t').map(str::to_owned);
        let (Some(partition), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            panic!("not a record: {line:?}")
        };
        contents.entry(partition.parse().unwrap()).or_default().push((key, value));
    }
    contents
}

/// The copy holds every record of the source once, in the order of its partition.
pub fn assert_copied(cluster: &Cluster, from: &TopicName, to: &TopicName) {
    let (wanted, found) = (kcat(cluster, from), contents(cluster, to));
    let count = |contents: &Contents| contents.values().map(Vec::len).sum::<usize>();
    assert_eq!(count(&found), count(&wanted), "records in {to} against {from}");
    for (partition, wanted) in &wanted {
        let found = found.get(partition).map(Vec::as_slice).unwrap_or_default();
        let first = wanted.iter().zip(found).position(|(wanted, found)| wanted != found);
        assert!(wanted == found, "partition {partition} differs, first at {first:?}");
    }
}
