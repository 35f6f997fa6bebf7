//! What the way through a node adds to the way through the broker: records carry the time of their birth, one reader
//! stands at the input topic and one at the output.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use coproc::core::deployment::{BatchPolicy, Delivery};
use coproc::core::names::TopicName;
use coproc::core::units::Span;
use coproc::ports::Log;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::PARTITIONS;
use super::measure::quantile;
use super::node::Running;

const RATE: u32 = 10_000;
const WARM: Duration = Duration::from_secs(3);
const LASTS: Duration = Duration::from_secs(15);

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64
}

/// Sends at a steady rate.
fn send(bootstrap: &str, topic: &TopicName) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "0")
        .set("delivery.report.only.error", "true")
        .create()
        .unwrap();
    let (began, mut sent) = (Instant::now(), 0u32);
    let mut value = [b'x'; 92];
    while began.elapsed() < WARM + LASTS {
        let due = (began.elapsed().as_secs_f64() * f64::from(RATE)) as u32;
        for n in sent..due {
            value[..8].copy_from_slice(&now().to_be_bytes());
            let key = u64::from(n).to_be_bytes();
            let record = BaseRecord::to(topic.as_str()).key(&key[..]).payload(&value[..]);
            producer
                .send(record.partition((n / 10 % PARTITIONS) as i32))
                .map_err(|(error, _)| error)
                .unwrap();
        }
        sent = due;
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

/// Ages of records at their arrival, in milliseconds, ascending; those of the warm-up are left out.
fn arrivals(bootstrap: &str, topic: &TopicName, since: u64, stop: &AtomicBool) -> Vec<f64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "latency")
        .set("isolation.level", "read_committed")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS as i32 {
        list.add_partition_offset(topic.as_str(), partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut ages = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let born = u64::from_be_bytes(message.payload().unwrap()[..8].try_into().unwrap());
        if born >= since {
            ages.push((now() - born) as f64 / 1e6);
        }
    }
    ages.sort_by(f64::total_cmp);
    ages
}

pub fn run(bootstrap: &str, log: &Arc<dyn Log>, interval: Duration, from: &TopicName, to: &TopicName) {
    let policy =
        BatchPolicy { commit_interval: Span::from_ms(interval.as_millis() as u64), ..BatchPolicy::default() };
    let node = Running::start(log, from, to, Delivery::ExactlyOnce, &policy, 1);
    let stop = AtomicBool::new(false);
    let since = now() + WARM.as_nanos() as u64;
    let (before, after) = std::thread::scope(|scope| {
        let reader = |topic| {
            let stop = &stop;
            scope.spawn(move || arrivals(bootstrap, topic, since, stop))
        };
        let (before, after) = (reader(from), reader(to));
        send(bootstrap, from);
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        (before.join().unwrap(), after.join().unwrap())
    });
    node.stop();
    assert_eq!(before.len(), after.len(), "every record came out");
    for (what, ages) in [("at the input topic", &before), ("at the output topic", &after)] {
        println!(
            "commit interval {interval:?}, {what:<19} p50 {:>6.1} ms   p99 {:>6.1} ms   longest {:>6.1} ms",
            quantile(ages, 500),
            quantile(ages, 990),
            ages[ages.len() - 1]
        );
    }
    let added = |per_mille| quantile(&after, per_mille) - quantile(&before, per_mille);
    println!(
        "commit interval {interval:?}, added           p50 {:>6.1} ms   p99 {:>6.1} ms",
        added(500),
        added(990)
    );
}
