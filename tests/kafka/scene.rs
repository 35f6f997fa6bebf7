//! A case of `kafka_reliability.rs`: a deployment with its topics, records that come, the verdict, the table's line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coproc::core::ledger::TopicPartition;
use coproc::core::names::{ConsumerGroup, TopicName};
use coproc::core::record::Record;
use coproc::core::units::Span;
use coproc::ports::{Extent, Produce, TopicConfig};

use super::cluster::{Cluster, short};
use super::oracle;
use super::process::Role;
use super::support::{self, PATIENCE, Rig, deployment, identity_of, numbers, stamp, topic};

/// Partitions of the topics of a case.
pub const PARTITIONS: u32 = 3;
/// What a bound allows for a busy machine.
pub const BUSY: Duration = Duration::from_secs(14);

pub fn number_from(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub fn records() -> usize {
    number_from("COPROC_RECORDS", 6_000)
}

pub fn seeds() -> std::ops::Range<u64> {
    1..1 + number_from("COPROC_SEEDS", 1) as u64
}

pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The longest that a slot without a successor holds things up: its membership, then its transaction and the broker's
/// look for expired ones; the rest is for a busy machine.
pub fn takeover() -> Duration {
    short().session + short().transaction + Duration::from_secs(1) + BUSY
}

/// Brokers that restart do not answer for a while.
pub fn patiently<T>(ask: impl FnMut() -> Option<T>) -> T {
    support::wait_for("the brokers", ask)
}

/// What the brokers, Kafka's clients and a lane may take one after the other when a broker goes, before the partitions that it
/// led move on.
pub fn failover() -> Duration {
    let seconds = Duration::from_secs;
    // Kafka's defaults: `broker.session.timeout.ms`, after which a broker counts as dead.
    let broker_session = seconds(9);
    // `controller.quorum.fetch.timeout.ms`, as `tests/env/kafka` sets it, and `controller.quorum.election.timeout.ms`: it may
    // have been the controller.
    let new_controller = seconds(5) + seconds(1);
    // Clients look where leaders are each second here, and come back to a broker after 2 s at the latest.
    let clients = seconds(1) + seconds(2);
    // A request to a broker that hangs is given up; then the lane's transaction and its place in the group may be gone.
    broker_session + new_controller + clients + short().socket + takeover()
}

/// Sends again what the brokers did not take: it may be in the topic twice then, and what is in there is what counts. Where
/// the partition ends then, at least.
pub fn send(rig: &Rig, to: &TopicName, partition: u32, values: &[String]) -> i64 {
    let record = |value: &String| Produce {
        topic: to.clone(),
        partition: Some(partition),
        record: Record::new(None, Some(value.as_bytes())),
    };
    let records: Vec<Produce> = values.iter().map(record).collect();
    let produced = patiently(|| rig.log.produce(&records).ok());
    produced.last().map_or(0, |last| last.offset + 1)
}

/// Feeders that send all the time.
#[derive(Default)]
pub struct Feed {
    /// Where the partitions end, as far as they know.
    ends: [AtomicI64; PARTITIONS as usize],
    is_over: AtomicBool,
}

/// Ends the feeders, also when what they feed for has failed.
struct Fed<'a>(&'a Feed);

impl Drop for Fed<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// How a deployment of a case is run.
pub struct Setup {
    pub module: Vec<u8>,
    /// JSON of the policies, without the braces.
    pub policies: String,
    /// Of the output topic, but for its partitions.
    pub output: TopicConfig,
    pub time_per_record: Option<Duration>,
}

impl Setup {
    pub fn new(module: Vec<u8>, policies: &str) -> Self {
        let policies = format!(
            r#""batch":{{"maxRecords":50,"commitInterval":"20ms","maxCommitRecords":100}}{}{policies}"#,
            if policies.is_empty() { "" } else { "," }
        );
        Self { module, policies, output: TopicConfig::default(), time_per_record: None }
    }
}

/// A deployment with its topics, in a pool of its own.
pub struct Scene {
    pub cluster: &'static Cluster,
    pub rig: Rig,
    pub name: String,
    pub from: TopicName,
    pub to: TopicName,
    pub group: ConsumerGroup,
    setup: Setup,
    /// Node ids are the cluster's: from this one on they are ours.
    ids: u32,
    /// So many numbers went to each of the first three partitions.
    pub fed: usize,
    /// And so many other records.
    pub others: usize,
}

impl Scene {
    pub fn new(cluster: &'static Cluster, name: &str, parallelism: u32) -> Self {
        Self::with(cluster, name, parallelism, "Auto")
    }

    pub fn with(cluster: &'static Cluster, name: &str, parallelism: u32, delivery: &str) -> Self {
        let policies = format!(r#""parallelism":{parallelism},"delivery":"{delivery}""#);
        let scene = Self::set_up(cluster, name, Setup::new(stamp('A'), &policies));
        scene.deploy();
        scene
    }

    /// Everything but the deployment.
    pub fn set_up(cluster: &'static Cluster, name: &str, setup: Setup) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{number}");
        let rig = Rig::on(cluster.log(), &name, 0);
        let (from, to) = (topic(&format!("{name}-in")), topic(&format!("{name}-out")));
        rig.create(from.as_str(), PARTITIONS);
        let scene = Self {
            cluster,
            rig,
            from,
            to,
            group: identity_of(&name).consumer_group(),
            name,
            setup,
            ids: number * 20,
            fed: 0,
            others: 0,
        };
        scene.create_output();
        scene
    }

    pub fn create_output(&self) {
        let config = TopicConfig { partitions: PARTITIONS, ..self.setup.output.clone() };
        self.rig.log.topics().create(&self.to, &config).unwrap();
    }

    pub fn deploy(&self) {
        self.deploy_module(&self.setup.module);
    }

    /// The same deployment with another module.
    pub fn deploy_module(&self, module: &[u8]) {
        let more = format!(r#""policies":{{{}}}"#, self.setup.policies);
        let outputs = [self.to.as_str()];
        let mut wanted = deployment(&[self.rig.upload(module)], self.from.as_str(), &outputs, &more);
        if let Some(time) = self.setup.time_per_record {
            wanted.steps[0].limits.time_per_record = Span::from_ms(time.as_millis() as u64);
        }
        self.rig.put(&self.name, &wanted);
    }

    pub fn role(&self, id: u32) -> Role {
        Role::new(self.cluster, self.rig.pool.as_str(), self.ids + id)
    }

    /// So many records, numbered, over the first three partitions.
    pub fn feed(&mut self, count: usize) {
        let each = count / PARTITIONS as usize;
        for at in (self.fed..self.fed + each).step_by(5_000) {
            let end = (at + 5_000).min(self.fed + each);
            for partition in 0..PARTITIONS {
                send(&self.rig, &self.from, partition, &numbers("x", at..end));
            }
        }
        self.fed += each;
    }

    /// While `act` runs, so many records go to each of the first three partitions, a pause, so many again. Each partition has a
    /// feeder of its own: one without a leader holds back no other.
    pub fn while_fed<T>(&mut self, each: usize, pause: Duration, act: impl FnOnce(&Self, &Feed) -> T) -> T {
        let (feed, before) = (Feed::default(), self.fed);
        let (done, fed) = std::thread::scope(|scope| {
            let feeders: Vec<_> = (0..PARTITIONS)
                .map(|partition| {
                    let rig = Rig::on(self.cluster.log(), "feeder", 0);
                    let (to, feed) = (&self.from, &feed);
                    scope.spawn(move || {
                        let mut fed = before;
                        while !feed.is_over.load(Ordering::Relaxed) {
                            let end = send(&rig, to, partition, &numbers("x", fed..fed + each));
                            feed.ends[partition as usize].store(end, Ordering::Relaxed);
                            fed += each;
                            std::thread::sleep(pause);
                        }
                        fed
                    })
                })
                .collect();
            let over = Fed(&feed);
            let done = act(self, &feed);
            drop(over);
            let fed: Vec<usize> = feeders.into_iter().map(|feeder| feeder.join().unwrap()).collect();
            (done, fed)
        });
        self.fed = fed.iter().copied().max().unwrap_or(before);
        for (partition, fed) in fed.into_iter().enumerate().filter(|(_, fed)| *fed < self.fed) {
            send(&self.rig, &self.from, partition as u32, &numbers("x", fed..self.fed));
        }
        done
    }

    /// The longest that a partition with records left stands still, from now until `fault` has done its work and all of them
    /// have moved after that. Whoever is to say what is committed may be away himself: that counts.
    pub fn standstill(&self, feed: &Feed, within: Duration, fault: impl FnOnce() + Send) -> Duration {
        let of = |offsets: &BTreeMap<TopicPartition, i64>, partition: usize| {
            offsets.get(&TopicPartition::new(&self.from, partition as u32)).copied().unwrap_or(0)
        };
        let first = self.offsets();
        std::thread::scope(|scope| {
            let began = Instant::now();
            let mut at: Vec<_> =
                (0..PARTITIONS as usize).map(|partition| (of(&first, partition), began, false)).collect();
            let fault = scope.spawn(fault);
            let mut longest = Duration::ZERO;
            let mut was_over = false;
            while !at.iter().all(|(_, _, has_moved)| *has_moved) {
                // Both before the question, whose answer is newer then.
                let is_over = fault.is_finished();
                let ends: Vec<i64> = feed.ends.iter().map(|end| end.load(Ordering::Relaxed)).collect();
                let offsets = self.offsets();
                for (partition, (before, since, has_moved)) in at.iter_mut().enumerate() {
                    let now = of(&offsets, partition);
                    let (moved, is_done) = (now > *before, now >= ends[partition]);
                    let stood = if is_done && !moved { Duration::ZERO } else { since.elapsed() };
                    assert!(
                        stood <= within,
                        "{}: partition {partition} stood at {before} for {stood:?}",
                        self.from
                    );
                    longest = longest.max(stood);
                    if moved || is_done {
                        *since = Instant::now();
                    }
                    // The first answer after the end may have progress from before it.
                    *has_moved |= moved && was_over;
                    *before = now;
                }
                was_over = is_over;
                std::thread::sleep(Duration::from_millis(20));
            }
            fault.join().unwrap();
            longest
        })
    }

    /// Some record.
    pub fn send(&mut self, partition: u32, value: &str) {
        send(&self.rig, &self.from, partition, &[value.to_owned()]);
        self.others += 1;
    }

    pub fn offsets(&self) -> BTreeMap<TopicPartition, i64> {
        patiently(|| self.rig.log.offsets().committed(&self.group).ok())
    }

    pub fn extents(&self) -> Vec<Extent> {
        patiently(|| self.rig.log.topics().extents(&self.from).ok())
    }

    /// How many offsets are committed.
    pub fn committed(&self) -> i64 {
        self.offsets().values().sum()
    }

    /// Waits until more than so many are committed: how long that took.
    pub fn progress(&self, beyond: i64, within: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let done = self.committed();
            if done > beyond {
                return began.elapsed();
            }
            assert!(began.elapsed() < within, "{}: no progress within {within:?} beyond {done}", self.from);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every record is processed.
    pub fn finish(&self, within: Duration) -> Duration {
        let all: i64 = self.extents().iter().map(|extent| extent.end).sum();
        self.progress(all - 1, within + Duration::from_millis(all as u64 / 2))
    }

    /// Waits until every record is processed: the longest that a partition with records left stood still.
    pub fn finish_without_standing(&self, longer_than: Duration) -> Duration {
        self.finish_moving(longer_than, false)
    }

    /// The same of all of them: one that waits its turn behind others moves with them.
    pub fn finish_without_a_standstill(&self, longer_than: Duration) -> Duration {
        self.finish_moving(longer_than, true)
    }

    fn finish_moving(&self, longer_than: Duration, together: bool) -> Duration {
        let ends = self.extents();
        let mut at = vec![(-1, Instant::now()); ends.len()];
        let mut longest = Duration::ZERO;
        loop {
            let (committed, mut left) = (self.offsets(), false);
            let of = |partition: usize| {
                let at = TopicPartition::new(&self.from, partition as u32);
                committed.get(&at).copied().unwrap_or(0)
            };
            let has_moved = together && at.iter().enumerate().any(|(n, (before, _))| of(n) != *before);
            for (partition, (extent, (before, since))) in ends.iter().zip(&mut at).enumerate() {
                let now = of(partition);
                if now != *before || now >= extent.end || has_moved {
                    longest = longest.max(if *before < 0 { Duration::ZERO } else { since.elapsed() });
                    (*before, *since) = (now, Instant::now());
                }
                left |= now < extent.end;
                assert!(
                    since.elapsed() <= longer_than,
                    "{}: partition {partition} stands at {now} of {} for {longer_than:?}",
                    self.from,
                    extent.end
                );
            }
            if !left {
                return longest;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The verdict: outputs are f(inputs), in order, none twice, none missing.
    pub fn judge(&self) {
        self.judge_by(|_, _, input| Some(stamped(input)), |values| values);
    }

    /// The verdict for a guest that copies what it does not fail at.
    pub fn judge_copies(&self, is_copied: impl Fn(&str) -> bool) {
        self.judge_by(|_, _, input| is_copied(input).then(|| input.to_owned()), |values| values);
    }

    /// The verdict under at-least-once: the same, once what came again is left out. How many that were.
    pub fn judge_first_times(&self) -> usize {
        let first_times = |values: Vec<String>| {
            let mut seen = BTreeSet::new();
            values.into_iter().filter(|value| seen.insert(value.clone())).collect()
        };
        self.judge_by(|_, _, input| Some(stamped(input)), first_times)
    }

    /// For each partition: what `f` makes of its inputs, in order, is what was found, as `change` sees both. `f` is given
    /// the partition, the number of the input in it, and the input. How many more were found than that.
    pub fn judge_by(
        &self,
        f: impl Fn(u32, usize, &str) -> Option<String>,
        change: impl Fn(Vec<String>) -> Vec<String>,
    ) -> usize {
        let mut more = 0;
        let inputs = oracle::kcat(self.cluster, &self.from);
        let outputs = oracle::contents(self.cluster, &self.to);
        for (partition, records) in &inputs {
            let records = records.iter().enumerate();
            let wanted: Vec<String> =
                records.filter_map(|(number, (_, value))| f(*partition, number, value)).collect();
            let found = outputs.get(partition).map(Vec::as_slice).unwrap_or_default();
            more += found.len().saturating_sub(wanted.len());
            let found = change(found.iter().map(|(_, value)| value.clone()).collect());
            let wanted = change(wanted);
            if wanted != found {
                let first = wanted.iter().zip(&found).take_while(|(wanted, found)| wanted == found).count();
                let around =
                    |values: &[String]| values.iter().skip(first).take(5).cloned().collect::<Vec<_>>();
                let counted = |values: &[String]| values.iter().collect::<BTreeSet<_>>().len();
                panic!(
                    "{}: partition {partition} has {} records, {} of them different ones, and should have {}; from number {first} on \
                     there is {:?} and should be {:?}",
                    self.to,
                    found.len(),
                    counted(&found),
                    wanted.len(),
                    around(&found),
                    around(&wanted)
                );
            }
        }
        more
    }

    pub fn members(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.rig.log.offsets().members(&self.group).ok() != Some(count) {
            assert!(Instant::now() < deadline, "the group does not get {count} members");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What `stamp('A')` makes of a value.
pub fn stamped(input: &str) -> String {
    format!("A{}", &input[1..])
}

/// A line of the table, and the assertion that the bound was kept.
pub fn result(case: &str, seed: u64, scene: &Scene, recovered: Duration, bound: Duration) {
    assert!(recovered <= bound, "{case}: recovered after {recovered:?}, the bound is {bound:?}");
    println!(
        "RESULT | {case} | {seed} | {} | {:.1} s | {:.0} s |",
        scene.fed * PARTITIONS as usize + scene.others,
        recovered.as_secs_f64(),
        bound.as_secs_f64()
    );
}
