//! The way through Kafka and back, on one broker and the same data: the plain librdkafka loop, a lane's session alone,
//! a node with a wasm identity in one lane, and Kafka Streams doing the same.
//!
//! `cargo bench --features kafka --bench kafka -- [--records N] [--size BYTES,..] [--rounds N] [--warm-up N] [--only NAME,..]
//! [--lanes N] [--interval MS] [--commit-records N] [--commit-bytes N] [--config KEY=VALUE]`, and with `--latency` what a node
//! adds at 10,000 records/s. The first rounds, in which the broker's virtual machine compiles its code, are not counted; each
//! figure is a ratio to the plain loops of its own round, and the end is the medians. Each round begins with another one, and
//! each begins when nothing of the ones before is left to be written to the disk or removed from it.
//!
//! The plain loops are the limits: raw batch consume, raw produce, no offsets, no transactions. The barest copies keys and
//! values and leaves timestamps, headers and checksums alone. The one of whole records writes what it read, as a node has to,
//! and looks at the checksums, as a node and Kafka's own consumers do. Then the same idempotent, and in transactions.
#![allow(unsafe_code, reason = "the plain loop calls librdkafka as directly as can be")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark stops at the first error")]

#[path = "kafka/latency.rs"]
mod latency;
#[path = "kafka/measure.rs"]
mod measure;
#[path = "kafka/node.rs"]
mod node;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::core::deployment::{BatchPolicy, Delivery, StartOffset};
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::names::TopicName;
use coproc::core::partitioner::Partitioner;
use coproc::core::record::Batch;
use coproc::core::units::{ByteSize, Span};
use coproc::kafka::{KafkaConfig, KafkaLog};
use coproc::ports::{Emit, Event, LaneSpec, Log, Placement, TopicConfig};
use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use measure::{Cost, quantile};
use node::Running;

/// The program's, for every loop in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTITIONS: u32 = 8;

struct Options {
    records: usize,
    /// Bytes of key and value, one after the other.
    sizes: Vec<usize>,
    rounds: usize,
    warm_up: usize,
    only: Option<String>,
    latency: bool,
    /// Lanes of a node.
    lanes: u16,
    /// The commit interval of everything that commits.
    interval: Duration,
    /// Records after which a node commits early.
    commit_records: u32,
    /// Output bytes after which it does.
    commit_bytes: usize,
    /// librdkafka settings of the node and the session, `KEY=VALUE`.
    config: BTreeMap<String, String>,
}

fn options() -> Options {
    let mut options = Options {
        records: 4_000_000,
        sizes: vec![100, 1024],
        rounds: 3,
        warm_up: 2,
        only: None,
        latency: false,
        lanes: 1,
        interval: BatchPolicy::default().commit_interval.duration(),
        commit_records: BatchPolicy::default().max_commit_records,
        commit_bytes: BatchPolicy::default().max_commit_bytes.bytes(),
        config: BTreeMap::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--records" => options.records = value().parse().unwrap(),
            "--size" => options.sizes = value().split(',').map(|size| size.parse().unwrap()).collect(),
            "--rounds" => options.rounds = value().parse().unwrap(),
            "--warm-up" => options.warm_up = value().parse().unwrap(),
            "--only" => options.only = Some(value()),
            "--lanes" => options.lanes = value().parse().unwrap(),
            "--interval" => options.interval = Duration::from_millis(value().parse().unwrap()),
            "--commit-records" => options.commit_records = value().parse().unwrap(),
            "--commit-bytes" => options.commit_bytes = value().parse().unwrap(),
            "--latency" => options.latency = true,
            "--config" => {
                let setting = value();
                let (key, value) = setting.split_once('=').expect("KEY=VALUE");
                options.config.insert(key.to_owned(), value.to_owned());
            }
            // What cargo adds.
            _ => {}
        }
    }
    options
}

fn load(bootstrap: &str, topic: &TopicName, records: usize, size: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("queue.buffering.max.messages", "2000000")
        .set("linger.ms", "20")
        // As Java's producers do, whose records most topics are full of, and as a node and Kafka Streams do on the
        // way out: what comes from one partition goes to one partition.
        .set("partitioner", "murmur2")
        .set("delivery.report.only.error", "true")
        .create()
        .unwrap();
    let value = vec![b'x'; size.saturating_sub(8)];
    for n in 0..records {
        let key = (n as u64).to_be_bytes();
        let mut record = BaseRecord::to(topic.as_str()).key(&key[..]).payload(&value);
        while let Err((_, again)) = producer.send(record) {
            record = again;
            producer.poll(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_mins(2)).unwrap();
}

/// What a plain loop does beyond copying keys and values.
#[derive(Clone, Copy, PartialEq)]
enum Plain {
    Bare,
    /// With timestamps, headers and checksums.
    Whole,
    /// The same, idempotent.
    Idempotent,
    /// The same in transactions of this length, with the offsets of what was read.
    Transactional(Duration),
}

/// As fast as librdkafka copies on one thread.
fn plain(bootstrap: &str, from: &TopicName, to: &TopicName, records: usize, kind: Plain) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // It is named with the offsets; the consumer never joins it.
        .set("group.id", to.as_str())
        .set("enable.partition.eof", "false")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.min.messages", "200000")
        .set("check.crcs", if kind == Plain::Bare { "false" } else { "true" })
        .create()
        .unwrap();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", if matches!(kind, Plain::Bare | Plain::Whole) { "false" } else { "true" })
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "1000000")
        .set("delivery.report.only.error", "true");
    let mut transactions = match kind {
        Plain::Transactional(interval) => {
            // As the lane's producer has them, and for the same reason: batches that are full.
            config.set("transactional.id", to.as_str()).set("linger.ms", "100").set("batch.size", "524288");
            Some(Transactions { interval, began: None, ended: Instant::now(), next: BTreeMap::new() })
        }
        _ => None,
    };
    let producer: BaseProducer = config.create().unwrap();
    if transactions.is_some() {
        producer.init_transactions(Duration::from_secs(30)).unwrap();
    }
    let (reader, writer) = (consumer.client().native_ptr(), producer.client().native_ptr());
    let source_name = from.as_str();
    let (from, to) = (CString::new(source_name).unwrap(), CString::new(to.as_str()).unwrap());
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
            if let Some(transactions) = &mut transactions {
                transactions.begin(&producer);
            }
            for message in &messages[..count as usize] {
                let m = &**message;
                if let Some(transactions) = &mut transactions {
                    transactions.next.insert(m.partition, m.offset + 1);
                }
                while !match kind {
                    Plain::Bare => produce_bare(sink, m),
                    _ => produce_whole(writer, sink, m),
                } {
                    producer.poll(Duration::ZERO);
                    std::thread::sleep(Duration::from_micros(100));
                }
                rd::rd_kafka_message_destroy(*message);
                copied += 1;
            }
            if let Some(transactions) = &mut transactions
                && (transactions.is_due() || copied >= records)
            {
                transactions.commit(&producer, &consumer, source_name);
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

/// What the plain loop commits, and when.
struct Transactions {
    interval: Duration,
    began: Option<Instant>,
    ended: Instant,
    /// Where to go on, by partition.
    next: BTreeMap<i32, i64>,
}

impl Transactions {
    fn begin(&mut self, producer: &BaseProducer) {
        if self.began.is_none() {
            // As in the lane: the broker needs a moment, and librdkafka waits 20 ms if it does not get it.
            std::thread::sleep(Duration::from_millis(3).saturating_sub(self.ended.elapsed()));
            producer.begin_transaction().unwrap();
            self.began = Some(Instant::now());
        }
    }

    fn is_due(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() >= self.interval)
    }

    fn commit(&mut self, producer: &BaseProducer, consumer: &BaseConsumer, topic: &str) {
        let wait = Duration::from_secs(30);
        while producer.in_flight_count() > 0 {
            // SAFETY: the producer is alive. Not rust-rdkafka's flush, which looks every 100 ms only.
            unsafe { rd::rd_kafka_flush(producer.client().native_ptr(), 5) };
            producer.poll(Duration::ZERO);
        }
        let mut list = TopicPartitionList::new();
        for (partition, next) in std::mem::take(&mut self.next) {
            list.add_partition_offset(topic, partition, Offset::Offset(next)).unwrap();
        }
        let group = consumer.group_metadata().unwrap();
        producer.send_offsets_to_transaction(&list, &group, wait).unwrap();
        producer.commit_transaction(wait).unwrap();
        (self.began, self.ended) = (None, Instant::now());
    }
}

/// Whether the client took it.
///
/// # Safety
/// Both pointers are alive.
unsafe fn produce_bare(sink: *mut rd::rd_kafka_topic_t, m: &rd::rd_kafka_message_t) -> bool {
    let flags = rd::RD_KAFKA_MSG_F_COPY;
    // SAFETY: the caller's promise; key and payload are copied.
    unsafe {
        rd::rd_kafka_produce(sink, m.partition, flags, m.payload, m.len, m.key, m.key_len, ptr::null_mut())
            == 0
    }
}

/// With its timestamp and its headers.
///
/// # Safety
/// All pointers are alive.
unsafe fn produce_whole(
    writer: *mut rd::rd_kafka_t,
    sink: *mut rd::rd_kafka_topic_t,
    m: &rd::rd_kafka_message_t,
) -> bool {
    use rd::rd_kafka_vtype_t as Kind;
    type Any = rd::rd_kafka_vu_s__bindgen_ty_1;
    let part = |vtype, u| rd::rd_kafka_vu_t { vtype, u };
    let memory = |ptr, size| Any { mem: rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size } };
    // SAFETY: the caller's promise; key, payload and headers are copied.
    unsafe {
        let timestamp = rd::rd_kafka_message_timestamp(m, ptr::null_mut());
        let mut headers = ptr::null_mut();
        let has_headers = rd::rd_kafka_message_headers(m, &raw mut headers)
            == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        let headers = if has_headers { rd::rd_kafka_headers_copy(headers) } else { ptr::null_mut() };
        let parts = [
            part(Kind::RD_KAFKA_VTYPE_RKT, Any { rkt: sink }),
            part(Kind::RD_KAFKA_VTYPE_PARTITION, Any { i32_: m.partition }),
            part(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Any { i: rd::RD_KAFKA_MSG_F_COPY }),
            part(Kind::RD_KAFKA_VTYPE_TIMESTAMP, Any { i64_: timestamp }),
            part(Kind::RD_KAFKA_VTYPE_KEY, memory(m.key, m.key_len)),
            part(Kind::RD_KAFKA_VTYPE_VALUE, memory(m.payload, m.len)),
            part(Kind::RD_KAFKA_VTYPE_HEADERS, Any { headers }),
        ];
        let count = if headers.is_null() { parts.len() - 1 } else { parts.len() };
        let error = rd::rd_kafka_produceva(writer, parts.as_ptr(), count);
        if error.is_null() {
            return true;
        }
        rd::rd_kafka_error_destroy(error);
        if !headers.is_null() {
            rd::rd_kafka_headers_destroy(headers);
        }
        false
    }
}

fn lane(
    log: &dyn Log,
    from: &TopicName,
    to: &TopicName,
    records: usize,
    delivery: Delivery,
    policy: &BatchPolicy,
) {
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

fn start_broker() -> (PathBuf, String) {
    let dir = std::env::temp_dir().join(format!("coproc-bench-kafka-{}", std::process::id()));
    let output = Command::new(script())
        .args(["start", "--heap", "1g", "--owner", &std::process::id().to_string(), "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bootstrap = text.lines().find_map(|line| line.strip_prefix("bootstrap=")).expect("a broker");
    (dir, bootstrap.to_owned())
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/env/kafka")
}

/// Kafka Streams, which tells its cost itself.
fn streams(bootstrap: &str, from: &TopicName, to: &TopicName, records: usize, interval: Duration) -> Cost {
    let output = Command::new(script())
        .arg("java")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/kafka/Identity.java"))
        .args([bootstrap, from.as_str(), to.as_str(), &records.to_string()])
        .arg(interval.as_millis().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [seconds, cpu, peak_mib] = numbers[..] else {
        panic!("no figures: {text} {}", String::from_utf8_lossy(&output.stderr))
    };
    Cost { seconds, cpu, peak_mib }
}

/// One that is measured, by its name, and what it does with an output topic.
type Contender<'a> = (&'static str, Box<dyn Fn(&TopicName) -> Cost + 'a>);

/// What each cost in each round.
struct Results {
    names: Vec<&'static str>,
    rounds: Vec<Vec<Cost>>,
}

impl Results {
    /// Medians, each column for itself; the ratios to the plain loops are those of a round.
    fn print(&self, records: usize) {
        println!("medians:");
        for (at, name) in self.names.iter().enumerate() {
            let of =
                |figure: &dyn Fn(&Cost) -> f64| sorted(self.rounds.iter().map(|round| figure(&round[at])));
            let median = |figure: &dyn Fn(&Cost) -> f64| quantile(&of(figure), 500);
            let cost = Cost {
                seconds: median(&|cost| cost.seconds),
                cpu: median(&|cost| cost.cpu),
                peak_mib: median(&|cost| cost.peak_mib),
            };
            cost.print(name, records);
            for limit in ["plain", "plain whole records"] {
                if let Some(limit_at) =
                    self.names.iter().position(|name| *name == limit).filter(|it| *it != at)
                {
                    let ratios =
                        sorted(self.rounds.iter().map(|round| round[limit_at].seconds / round[at].seconds));
                    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
                    println!("    {:.2} of {limit} ({least:.2} to {most:.2})", quantile(&ratios, 500));
                }
            }
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Who comes after whom in a round: the rounds that count begin with others, evenly spread, and every other one goes backwards,
/// so that nobody is always early or always after the same one.
fn turns(contenders: usize, round: usize, warm_up: usize, rounds: usize) -> Vec<usize> {
    let counted = round.saturating_sub(warm_up);
    let mut order: Vec<usize> = (0..contenders).collect();
    order.rotate_left(counted * contenders / rounds % contenders.max(1));
    if counted % 2 == 1 {
        order.reverse();
    }
    order
}

/// Nobody pays for what the one before left: the broker removes what was deleted after a second, and the system writes to the
/// disk what was not.
fn settle() {
    std::thread::sleep(Duration::from_secs(2));
    assert!(Command::new("sync").status().unwrap().success(), "sync");
}

struct Bench {
    options: Options,
    bootstrap: String,
    log: Arc<dyn Log>,
    from: TopicName,
}

impl Bench {
    fn topic(&self, name: &str) -> TopicName {
        let name: TopicName = name.parse().unwrap();
        let config = TopicConfig { partitions: PARTITIONS, ..TopicConfig::default() };
        self.log.topics().create(&name, &config).unwrap();
        name
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.options.only.as_ref().is_none_or(|only| only.split(',').any(|only| name.contains(only)))
    }

    fn run(&self, round: usize, (name, copy): &Contender<'_>) -> Cost {
        let to = self.topic(&format!("{}-{}-{round}", name.replace(' ', "-"), self.from));
        settle();
        let cost = copy(&to);
        self.log.topics().delete(&to).unwrap();
        cost.print(name, self.options.records);
        cost
    }

    fn policy(&self) -> BatchPolicy {
        BatchPolicy {
            commit_interval: Span::from_ms(self.options.interval.as_millis() as u64),
            max_commit_records: self.options.commit_records,
            max_commit_bytes: ByteSize(self.options.commit_bytes as u64),
            ..BatchPolicy::default()
        }
    }

    fn node(&self, to: &TopicName, delivery: Delivery) -> Cost {
        let mut running = None;
        let cost = Cost::of(|| {
            let node =
                Running::start(&self.log, &self.from, to, delivery, &self.policy(), self.options.lanes);
            // From the first commit on, which comes 0.1 s after the first record: uploading, making topics, joining the
            // group and compiling are no matter of throughput.
            let before = node.wait_for(self.options.records);
            running = Some(node);
            before.saturating_sub(self.options.interval)
        });
        if let Some(node) = running {
            eprintln!("  {}", node.account());
            node.stop();
        }
        cost
    }

    fn contenders(&self) -> Vec<Contender<'_>> {
        let (records, interval) = (self.options.records, self.options.interval);
        let whole = |run: &dyn Fn()| {
            Cost::of(|| {
                run();
                Duration::ZERO
            })
        };
        let plain = move |kind| -> Box<dyn Fn(&TopicName) -> Cost> {
            Box::new(move |to| whole(&|| plain(&self.bootstrap, &self.from, to, records, kind)))
        };
        let session = move |delivery| -> Box<dyn Fn(&TopicName) -> Cost> {
            let policy = self.policy();
            Box::new(move |to| whole(&|| lane(&*self.log, &self.from, to, records, delivery, &policy)))
        };
        let node =
            |delivery| -> Box<dyn Fn(&TopicName) -> Cost> { Box::new(move |to| self.node(to, delivery)) };
        let mut all: Vec<Contender<'_>> = vec![
            ("plain", plain(Plain::Bare)),
            ("plain whole records", plain(Plain::Whole)),
            ("plain idempotent", plain(Plain::Idempotent)),
            ("plain with transactions", plain(Plain::Transactional(interval))),
            ("session exactly once", session(Delivery::ExactlyOnce)),
            ("session at least once", session(Delivery::AtLeastOnce)),
            ("wasm exactly once", node(Delivery::ExactlyOnce)),
            ("wasm at least once", node(Delivery::AtLeastOnce)),
            (
                "Kafka Streams exactly once",
                Box::new(move |to| streams(&self.bootstrap, &self.from, to, records, interval)),
            ),
        ];
        all.retain(|(name, _)| self.is_wanted(name));
        all
    }

    fn throughput(&self) -> Results {
        let contenders = self.contenders();
        let mut results =
            Results { names: contenders.iter().map(|(name, _)| *name).collect(), rounds: vec![] };
        let warm_up = self.options.warm_up;
        for round in 0..warm_up + self.options.rounds {
            if round < warm_up {
                println!("to warm the broker up:");
            } else {
                println!("round {}:", round - warm_up + 1);
            }
            let order = turns(contenders.len(), round, warm_up, self.options.rounds);
            let mut costs: Vec<(usize, Cost)> =
                order.into_iter().map(|at| (at, self.run(round, &contenders[at]))).collect();
            costs.sort_by_key(|(at, _)| *at);
            if round >= warm_up {
                results.rounds.push(costs.into_iter().map(|(_, cost)| cost).collect());
            }
        }
        results
    }
}

fn main() {
    let options = options();
    let (_, bootstrap) = start_broker();
    let config = KafkaConfig::plain([bootstrap.clone()]).with_extra(options.config.clone()).unwrap();
    let log: Arc<dyn Log> = KafkaLog::connect(config).unwrap();
    let mut bench = Bench { options, bootstrap, log, from: "in".parse().unwrap() };
    if bench.options.latency {
        // The first is to warm the broker up.
        let interval = bench.options.interval;
        for (round, interval) in [interval, interval, Duration::from_millis(10)].into_iter().enumerate() {
            let name = |what: &str| format!("latency-{what}-{round}");
            let (from, to) = (bench.topic(&name("in")), bench.topic(&name("out")));
            latency::run(&bench.bootstrap, &bench.log, interval, &from, &to);
        }
        return;
    }
    let Options { records, sizes, .. } = &bench.options;
    let (records, sizes) = (*records, sizes.clone());
    for size in sizes {
        bench.from = bench.topic(&format!("in-{size}"));
        load(&bench.bootstrap, &bench.from, records, size);
        println!("{records} records of {size} bytes, {PARTITIONS} partitions, one broker");
        bench.throughput().print(records);
        bench.log.topics().delete(&bench.from).unwrap();
    }
}
