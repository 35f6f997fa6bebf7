//! The copy loop through a lane's session against the plain librdkafka loop, on one broker and the same data.
//!
//! `cargo bench --features kafka --bench kafka -- [--records N] [--size BYTES] [--rounds N] [--only NAME]`
//!
//! The plain loop is the limit: raw batch consume, raw produce, idempotent or not, no offsets, no transactions,
//! no timestamps or headers carried over. The host here is an identity; guests are measured elsewhere.
#![allow(unsafe_code, reason = "the plain loop calls librdkafka as directly as can be")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark stops at the first error")]

use std::ffi::CString;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::{Duration, Instant};

use coproc::core::deployment::{BatchPolicy, Delivery, StartOffset};
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::names::TopicName;
use coproc::core::partitioner::Partitioner;
use coproc::core::record::Batch;
use coproc::kafka::{KafkaConfig, KafkaLog};
use coproc::ports::{Emit, Event, LaneSpec, Log, Placement, TopicConfig};
use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PARTITIONS: u32 = 8;

struct Options {
    records: usize,
    size: usize,
    rounds: usize,
    only: Option<String>,
}

fn options() -> Options {
    let mut options = Options { records: 4_000_000, size: 100, rounds: 2, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--records" => options.records = value().parse().unwrap(),
            "--size" => options.size = value().parse().unwrap(),
            "--rounds" => options.rounds = value().parse().unwrap(),
            "--only" => options.only = Some(value()),
            // What cargo adds.
            _ => {}
        }
    }
    options
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}

fn measure(name: &str, records: usize, run: impl FnOnce()) {
    // Forgets the peak so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (began, cpu) = (Instant::now(), cpu_seconds());
    run();
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!(
        "{name:<28} {:>9.0} records/s   {:>5.2} CPU s per million   {:>5.0} MiB peak",
        records as f64 / elapsed,
        cpu / (records as f64 / 1e6),
        peak_memory_mib(),
    );
}

fn load(bootstrap: &str, topic: &TopicName, options: &Options) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("queue.buffering.max.messages", "2000000")
        .set("linger.ms", "20")
        .set("delivery.report.only.error", "true")
        .create()
        .unwrap();
    let value = vec![b'x'; options.size.saturating_sub(8)];
    for n in 0..options.records {
        let key = (n as u64).to_be_bytes();
        let partition = (n / 1000 % PARTITIONS as usize) as i32;
        let mut record = BaseRecord::to(topic.as_str()).key(&key[..]).payload(&value).partition(partition);
        while let Err((_, again)) = producer.send(record) {
            record = again;
            producer.poll(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_mins(2)).unwrap();
}

/// As fast as librdkafka copies on one thread.
fn plain(bootstrap: &str, from: &TopicName, to: &TopicName, records: usize, idempotent: bool) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.partition.eof", "false")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.min.messages", "200000")
        .create()
        .unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", if idempotent { "true" } else { "false" })
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "1000000")
        .set("delivery.report.only.error", "true")
        .create()
        .unwrap();
    let (reader, writer) = (consumer.client().native_ptr(), producer.client().native_ptr());
    let (from, to) = (CString::new(from.as_str()).unwrap(), CString::new(to.as_str()).unwrap());
    // SAFETY: everything made here is alive until it is destroyed at the end.
    unsafe {
        let queue = rd::rd_kafka_queue_new(reader);
        let source = rd::rd_kafka_topic_new(reader, from.as_ptr(), ptr::null_mut());
        let sink = rd::rd_kafka_topic_new(writer, to.as_ptr(), ptr::null_mut());
        for partition in 0..PARTITIONS as i32 {
            rd::rd_kafka_consume_start_queue(source, partition, 0, queue);
        }
        let mut messages = vec![ptr::null_mut(); 1000];
        let mut copied = 0;
        while copied < records {
            let count = rd::rd_kafka_consume_batch_queue(queue, 0, messages.as_mut_ptr(), messages.len());
            if count == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
            for message in &messages[..count as usize] {
                let m = &**message;
                while rd::rd_kafka_produce(
                    sink,
                    m.partition,
                    rd::RD_KAFKA_MSG_F_COPY,
                    m.payload,
                    m.len,
                    m.key,
                    m.key_len,
                    ptr::null_mut(),
                ) != 0
                {
                    producer.poll(Duration::ZERO);
                    std::thread::sleep(Duration::from_micros(100));
                }
                rd::rd_kafka_message_destroy(*message);
                copied += 1;
            }
        }
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        for partition in 0..PARTITIONS as i32 {
            rd::rd_kafka_consume_stop(source, partition);
        }
        rd::rd_kafka_topic_destroy(source);
        rd::rd_kafka_topic_destroy(sink);
        rd::rd_kafka_queue_destroy(queue);
    }
}

fn lane(log: &dyn Log, from: &TopicName, to: &TopicName, records: usize, delivery: Delivery) {
    let policy = BatchPolicy::default();
    let group = format!("bench-{to}");
    let mut session = log
        .lane(&LaneSpec {
            group: group.parse().unwrap(),
            transactional_id: group.clone(),
            inputs: vec![from.clone()],
            outputs: vec![to.clone()],
            start: StartOffset::Earliest,
            delivery,
            max_records: policy.max_records as usize,
            max_bytes: policy.max_bytes.bytes(),
        })
        .unwrap();
    let (mut ledger, mut batch) = (Ledger::default(), Batch::default());
    let (mut copied, mut committed) = (0, Instant::now());
    let (mut since, mut bytes) = (0, 0);
    let mut commits = Vec::new();
    while copied < records {
        match session.poll(&mut batch, Duration::from_millis(10)) {
            Event::Records => {
                let partition = TopicPartition::new(batch.topic().unwrap(), batch.partition());
                let placement = Placement::By(Partitioner::Source, partition.partition);
                for record in batch.iter() {
                    let (timestamp, payload) = (record.timestamp, record.payload);
                    session.emit(&Emit { topic: to, placement, timestamp, payload }).unwrap();
                }
                let last = batch.get(batch.len() - 1).unwrap();
                ledger.advance(&partition, last.offset + 1);
                copied += batch.len();
                since += batch.len();
                bytes += batch.bytes();
            }
            Event::Stuck { error, .. } | Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
        let is_due = committed.elapsed() >= policy.commit_interval.duration()
            || since >= policy.max_commit_records as usize
            || bytes >= policy.max_commit_bytes.bytes();
        if (is_due && since > 0) || copied == records {
            let began = Instant::now();
            session.ack_commit(&ledger).unwrap();
            commits.push(began.elapsed());
            ledger.mark_committed();
            (committed, since, bytes) = (Instant::now(), 0, 0);
        }
    }
    commits.sort();
    eprintln!(
        "  {} commits, median {:?}, longest {:?}",
        commits.len(),
        commits[commits.len() / 2],
        commits[commits.len() - 1]
    );
}

fn main() {
    let options = options();
    let dir = std::env::temp_dir().join(format!("coproc-bench-kafka-{}", std::process::id()));
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/kafka"))
        .args(["start", "--heap", "1g", "--owner", &std::process::id().to_string(), "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bootstrap =
        text.lines().find_map(|line| line.strip_prefix("bootstrap=")).expect("a broker").to_owned();
    let log = KafkaLog::connect(KafkaConfig::plain([bootstrap.clone()])).unwrap();
    let topic = |name: String| -> TopicName {
        let name: TopicName = name.parse().unwrap();
        log.topics()
            .create(&name, &TopicConfig { partitions: PARTITIONS, ..TopicConfig::default() })
            .unwrap();
        name
    };
    let from = topic("in".to_owned());
    load(&bootstrap, &from, &options);
    println!("{} records of {} bytes, {PARTITIONS} partitions, one broker", options.records, options.size);
    for round in 0..options.rounds {
        let run = |name: &str, copy: &dyn Fn(&TopicName)| {
            if options.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
                let to = topic(format!("{}-{round}", name.replace(' ', "-")));
                measure(name, options.records, || copy(&to));
                log.topics().delete(&to).unwrap();
            }
        };
        run("plain", &|to| plain(&bootstrap, &from, to, options.records, false));
        run("plain idempotent", &|to| plain(&bootstrap, &from, to, options.records, true));
        run("lane exactly once", &|to| lane(&*log, &from, to, options.records, Delivery::ExactlyOnce));
        run("lane at least once", &|to| lane(&*log, &from, to, options.records, Delivery::AtLeastOnce));
    }
}
