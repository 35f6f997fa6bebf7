//! The node on a real embedded log with real guests: what a user sees of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coproc::control::modules;
use coproc::core::deployment::{Delivery, Naming, Sink, Source, StartOffset};
use coproc::core::digest::Digest;
use coproc::core::ledger::TopicPartition;
use coproc::core::names::{PoolName, TopicName};
use coproc::core::record::{Offset, TimestampMs};
use coproc::core::status::State;
use coproc::core::units::Span;
use coproc::ports::{
    Capabilities, Engine, Extent, FencedWriter, Fold, Guest, GuestClass, GuestFailure, GuestLines, GuestSpec,
    Keyed, LaneSession, LaneSpec, Log, LogError, ModuleError, Offsets, Produce, Produced, Program, ReadFrom,
    Reader, TopicAdmin, TopicConfig, TopicInfo,
};
use coproc::wasm::{CompileHelper, WasmOptions, Wasmtime};

use support::{
    Rig, deployment, fragile, guest, identity, identity_of, numbers, stamp, start_node, topic, wait_for,
};

const NO_RETRIES: &str = r#""policies":{"errorPolicy":{"maxRetries":0,"onExhausted":"Fail"}}"#;

#[test]
fn records_go_through_and_the_status_tells() {
    let rig = Rig::new();
    rig.create("in", 3);
    rig.create("out", 2);
    assert_eq!(rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap(), 1);
    rig.produce("in", numbers("v", 0..500));
    let mut values = rig.values("out", 500);
    values.sort();
    let mut expected = numbers("v", 0..500);
    expected.sort();
    assert_eq!(values, expected);
    let status = wait_for("lag 0 in the status", || {
        let status = rig.status("copy")?;
        let is_there = status.partitions.len() == 3
            && status.partitions.iter().map(|at| at.offset).sum::<i64>() == 500
            && status.partitions.iter().all(|at| at.lag == 0);
        is_there.then_some(status)
    });
    assert_eq!((status.state, status.generation), (State::Running, 1));
    assert_eq!(status.delivery.as_deref(), Some("exactly_once"));
}

#[test]
fn a_restart_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    {
        let rig = Rig::at(dir.path());
        rig.create("in", 1);
        rig.create("out", 1);
        let node = start_node(&rig.log);
        rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
        rig.produce("in", numbers("a", 0..100));
        rig.values("out", 100);
        assert!(node.stop(), "the node stops in time");
        rig.produce("in", numbers("b", 0..100));
    }
    let rig = Rig::at(dir.path());
    let _node = start_node(&rig.log);
    let values = rig.values("out", 200);
    assert_eq!(values, [numbers("a", 0..100), numbers("b", 0..100)].concat());
}

/// A log that takes two seconds to fail to say whether some topics are there, as one of hanging brokers takes longer.
struct Slow(Arc<dyn Log>, AtomicUsize);

impl Slow {
    const AWAY: &str = "away";
    const TAKES: Duration = Duration::from_secs(2);
}

impl Log for Slow {
    fn lane(&self, spec: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        self.0.lane(spec)
    }

    fn topics(&self) -> &dyn TopicAdmin {
        self
    }

    fn offsets(&self) -> &dyn Offsets {
        self.0.offsets()
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        self.0.fold(topic)
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        self.0.fenced_writer(topic, id)
    }

    fn reader(
        &self,
        topic: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Box<dyn Reader>, LogError> {
        self.0.reader(topic, partitions, from)
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        self.0.produce(records)
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

impl TopicAdmin for Slow {
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
        self.0.topics().create(name, config)
    }

    fn delete(&self, name: &TopicName) -> Result<(), LogError> {
        self.0.topics().delete(name)
    }

    fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.0.topics().list()
    }

    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError> {
        if name.as_str() != Self::AWAY {
            return self.0.topics().describe(name);
        }
        self.1.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Self::TAKES);
        Err(LogError::Unavailable("no answer".to_owned()))
    }

    fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError> {
        self.0.topics().extents(name)
    }

    fn offsets_at(&self, name: &TopicName, timestamp: TimestampMs) -> Result<Vec<Offset>, LogError> {
        self.0.topics().offsets_at(name, timestamp)
    }
}

/// A round over all that wait would take longer than anything here may.
#[test]
fn deployments_whose_topics_the_log_does_not_say_hold_up_nothing_else() {
    const WAITING: usize = 40;
    let rig = Rig::without_node();
    rig.create("in", 1);
    rig.create("out", 1);
    let slow = Arc::new(Slow(rig.log.clone(), AtomicUsize::new(0)));
    let log: Arc<dyn Log> = slow.clone();
    let node = start_node(&log);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.wait_for_state("copy", State::Running);
    let digest = rig.upload(&identity());
    for n in 0..WAITING {
        rig.put(&format!("waits{n}"), &deployment(&[digest], Slow::AWAY, &["out"], ""));
    }
    let asked = || slow.1.load(Ordering::Relaxed);
    wait_for("the first question", || (asked() > 0).then_some(()));
    rig.set_paused("copy", true);
    rig.wait_for_state("copy", State::Paused);
    assert!(node.stop(), "the node stops in time");
    assert!(asked() < WAITING, "both in less than a round");
}

#[test]
fn two_modules_run_in_one_lane() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    let shout = guest("(i32.store8 (i32.const 4099) (i32.const 33))");
    rig.deploy("chain", &[stamp('A'), shout], "in", &["out"], "").unwrap();
    rig.produce("in", ["xyz".to_owned(), "uvw".to_owned()]);
    assert_eq!(rig.values("out", 2), ["A!z", "A!w"]);
    let processes = rig.log.offsets().members(&identity_of("chain").consumer_group()).unwrap();
    assert_eq!(processes, 1, "one lane, so one member");
}

#[test]
fn a_failure_in_a_later_step_belongs_to_the_source_record() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.create("dead", 1);
    let policy = r#""policies":{"errorPolicy":{"maxRetries":1,"onExhausted":"DeadLetter","deadLetterTopic":"dead",
        "initialBackoff":"10ms","maxBackoff":"20ms"}}"#;
    rig.deploy("chain", &[identity(), fragile()], "in", &["out"], policy).unwrap();
    rig.produce("in", ["a1", "!2", "a3", "~4", "!5", "a6"].map(str::to_owned));
    assert_eq!(rig.values("out", 3), ["a1", "a3", "a6"]);
    let dead = wait_for("dead letters", || Some(rig.read("dead")).filter(|dead| dead.len() == 2));
    let header = |name: &str| {
        let found = dead[1].record.headers.iter().find(|(key, _)| key == name.as_bytes()).unwrap();
        support::text(found.1.clone())
    };
    assert_eq!(support::text(dead[1].record.value.clone()), "!5");
    let expected = [
        ("coproc.topic", "in"),
        ("coproc.partition", "0"),
        ("coproc.offset", "4"),
        ("coproc.error.class", "trap"),
        ("coproc.attempts", "2"),
        ("coproc.step", "step1"),
    ];
    for (name, value) in expected {
        assert_eq!(header(name), value, "{name}");
    }
}

#[test]
fn a_poison_record_stops_its_partition_only() {
    let rig = Rig::new();
    rig.create("in", 2);
    rig.create("out", 2);
    rig.deploy("fragile", &[fragile()], "in", &["out"], NO_RETRIES).unwrap();
    rig.produce_to("in", 0, ["a0", "!1", "a2"].map(str::to_owned));
    rig.produce_to("in", 1, numbers("b", 0..10));
    rig.values("out", 11);
    let status = rig.wait_for_state("fragile", State::Failed);
    let stopped = status.partitions.iter().find(|at| at.partition == 0).unwrap();
    assert_eq!(stopped.offset, 1, "it stands at the record that failed");
    assert!(stopped.error.as_ref().unwrap().contains("in/0@1"), "{stopped:?}");
    rig.produce_to("in", 1, numbers("c", 0..10));
    assert_eq!(rig.values("out", 21).len(), 21);
}

#[test]
fn what_is_known_of_partitions_outlives_their_lanes() {
    let mut rig = Rig::new();
    rig.create("in", 2);
    rig.create("out", 2);
    rig.deploy("fragile", &[fragile()], "in", &["out"], NO_RETRIES).unwrap();
    // All in one batch: the lag is that of the moment at which it stopped.
    rig.produce_to("in", 0, ["a0", "!1", "a2", "a3"].map(str::to_owned));
    let check = |status: coproc::core::status::DeploymentStatus| {
        let stopped = status.partitions.iter().find(|at| at.partition == 0).unwrap();
        assert_eq!((stopped.offset, stopped.lag), (1, 3), "{status:?}");
        assert!(stopped.error.as_ref().unwrap().contains("in/0@1"), "{status:?}");
        assert_eq!(status.last_error.unwrap().reason, "GuestFailed");
    };
    check(rig.wait_for_state("fragile", State::Failed));
    assert!(rig.writer().set_paused(&identity_of("fragile"), true).unwrap());
    check(rig.wait_for_state("fragile", State::Paused));
    assert!(rig.writer().set_paused(&identity_of("fragile"), false).unwrap());
    check(rig.wait_for_state("fragile", State::Failed));
    assert!(rig.node.take().unwrap().stop());
    check(rig.status("fragile").unwrap());
}

#[test]
fn a_dead_letter_topic_that_cannot_take_every_record_is_not_used() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    let small = TopicConfig { max_record_bytes: 4_000, ..TopicConfig::default() };
    for (name, config, says) in [("c", TopicConfig::compacted(), "compacted"), ("s", small, "8192")] {
        rig.log.topics().create(&topic(name), &config).unwrap();
        let policy = format!(
            r#""policies":{{"errorPolicy":{{"maxRetries":0,"onExhausted":"DeadLetter","deadLetterTopic":"{name}"}}}}"#
        );
        rig.deploy(name, &[fragile()], "in", &["out"], &policy).unwrap();
        let status = wait_for("a reason", || rig.status(name).filter(|status| status.reason.is_some()));
        assert_eq!(status.reason.as_deref(), Some("TopicNotUsable"));
        assert_eq!(status.state, State::Pending);
        assert!(status.last_error.as_ref().unwrap().message.contains(says), "{status:?}");
    }
}

#[test]
fn a_fixed_module_goes_on_where_the_broken_one_stopped() {
    let rig = Rig::new();
    rig.create("in", 2);
    rig.create("out", 2);
    rig.deploy("fragile", &[fragile()], "in", &["out"], NO_RETRIES).unwrap();
    rig.produce_to("in", 0, ["a0", "!1", "a2"].map(str::to_owned));
    rig.produce_to("in", 1, numbers("b", 0..10));
    rig.wait_for_state("fragile", State::Failed);
    rig.deploy("fragile", &[identity()], "in", &["out"], NO_RETRIES).unwrap();
    rig.values("out", 13);
    let fixed: Vec<_> =
        rig.read("out").into_iter().map(|fetched| support::text(fetched.record.value)).collect();
    assert_eq!(fixed.iter().filter(|value| value.starts_with('a') || value.starts_with('!')).count(), 3);
    let status = rig.wait_for_generation("fragile", 2);
    assert!(status.partitions.iter().all(|at| at.error.is_none()), "{status:?}");
}

#[test]
fn skipping_leaves_out_just_the_record_that_fails() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    let policy = r#""policies":{"errorPolicy":{"maxRetries":0,"onExhausted":"Skip"}}"#;
    rig.deploy("fragile", &[fragile()], "in", &["out"], policy).unwrap();
    rig.produce("in", ["a", "!trap", "b", "@loop", "c", "#memory", "d"].map(str::to_owned));
    assert_eq!(rig.values("out", 4), ["a", "b", "c", "d"]);
    let text = rig.node.as_ref().unwrap().metrics().text();
    for class in ["trap", "timeout", "memory"] {
        let line = format!("coproc_guest_errors_total{{class=\"{class}\",coprocessor=\"fragile\"}} 1");
        assert!(text.contains(&line), "{line} is not in:\n{text}");
    }
}

#[test]
fn modules_are_swapped_without_losing_a_record() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("mark", &[stamp('A')], "in", &["out"], "").unwrap();
    rig.produce("in", numbers("x", 0..100));
    rig.values("out", 100);
    assert_eq!(rig.deploy("mark", &[stamp('B')], "in", &["out"], "").unwrap(), 2);
    rig.wait_for_generation("mark", 2);
    rig.produce("in", numbers("x", 100..200));
    let expected = [numbers("A", 0..100), numbers("B", 100..200)].concat();
    assert_eq!(rig.values("out", 200), expected);
}

#[test]
fn a_module_that_does_not_start_leaves_the_old_one_running() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("mark", &[stamp('A')], "in", &["out"], "").unwrap();
    rig.produce("in", numbers("x", 0..10));
    rig.values("out", 10);
    let exits = wat::parse_str(
        r#"(module (import "redpanda_transform" "check_abi_version_2" (func)) (memory (export "memory") 1)
            (func (export "_start")))"#,
    )
    .unwrap();
    rig.deploy("mark", &[exits], "in", &["out"], "").unwrap();
    let status = wait_for("the reason in the status", || {
        rig.status("mark").filter(|status| status.reason.as_deref() == Some("GuestStartFailed"))
    });
    assert_eq!((status.state, status.generation), (State::Running, 1));
    assert!(status.last_error.unwrap().message.contains("does not start"));
    rig.produce("in", numbers("x", 10..20));
    assert_eq!(rig.values("out", 20), numbers("A", 0..20));
}

/// An engine whose second and later modules fail at one of their starts.
struct Moody {
    engine: Arc<Wasmtime>,
    compiled: AtomicUsize,
    /// Which start of such a module fails, counted from 1.
    fails_at: usize,
}

struct MoodyProgram {
    program: Arc<dyn Program>,
    starts: AtomicUsize,
    fails_at: usize,
}

impl Engine for Moody {
    fn compile(&self, bytes: &[u8], digest: Digest) -> Result<Arc<dyn Program>, ModuleError> {
        let program = self.engine.compile(bytes, digest)?;
        let is_first = self.compiled.fetch_add(1, Ordering::SeqCst) == 0;
        let fails_at = if is_first { usize::MAX } else { self.fails_at };
        Ok(Arc::new(MoodyProgram { program, starts: AtomicUsize::new(0), fails_at }))
    }

    fn cached(&self, _: Digest) -> Option<Arc<dyn Program>> {
        None
    }

    fn stop(&self) {
        self.engine.stop();
    }
}

impl Program for MoodyProgram {
    fn digest(&self) -> Digest {
        self.program.digest()
    }

    fn start(&self, spec: &GuestSpec, lines: Arc<dyn GuestLines>) -> Result<Box<dyn Guest>, GuestFailure> {
        if self.starts.fetch_add(1, Ordering::SeqCst) + 1 == self.fails_at {
            return Err(GuestFailure { class: GuestClass::Start, message: "it is in no mood".into() });
        }
        self.program.start(spec, lines)
    }
}

#[test]
fn lanes_are_swapped_all_or_none() {
    let mut rig = Rig::without_node();
    let engine = Wasmtime::new(WasmOptions::default(), None).unwrap();
    // The first start is the loader's, then each lane has one.
    let engine = Arc::new(Moody { engine, compiled: AtomicUsize::new(0), fails_at: 3 });
    rig.node = Some(support::start_node_with(&rig.log, engine, 10));
    rig.create("in", 2);
    rig.create("out", 2);
    let two = r#""policies":{"parallelism":2}"#;
    rig.deploy("mark", &[stamp('A')], "in", &["out"], two).unwrap();
    let group = identity_of("mark").consumer_group();
    wait_for("two lanes", || (rig.log.offsets().members(&group).unwrap() == 2).then_some(()));
    let give = |range: std::ops::Range<usize>| {
        for partition in 0..2 {
            rig.produce_to("in", partition, numbers("x", range.clone()));
        }
    };
    give(0..10);
    rig.values("out", 20);
    wait_for("a partition for each lane", || {
        let status = rig.status("mark")?;
        (status.partitions.len() == 2 && status.partitions.iter().all(|at| at.offset == 10)).then_some(())
    });
    rig.deploy("mark", &[stamp('B')], "in", &["out"], two).unwrap();
    let status = wait_for("the reason in the status", || {
        rig.status("mark").filter(|status| status.reason.as_deref() == Some("GuestStartFailed"))
    });
    assert_eq!((status.state, status.generation), (State::Running, 1));
    give(10..20);
    let values = rig.values("out", 40);
    assert!(values.iter().all(|value| value.starts_with('A')), "{values:?}");
}

#[test]
fn more_lanes_than_there_are_leave_those_that_run_alone() {
    let mut rig = Rig::without_node();
    let engine = Wasmtime::new(WasmOptions::default(), None).unwrap();
    rig.node = Some(support::start_node_with(&rig.log, engine, 2));
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.wait_for_state("copy", State::Running);
    rig.deploy("copy", &[identity()], "in", &["out"], r#""policies":{"parallelism":3}"#).unwrap();
    let status = wait_for("the reason in the status", || {
        rig.status("copy").filter(|status| status.reason.as_deref() == Some("PoolFull"))
    });
    assert_eq!((status.state, status.generation), (State::Running, 1));
    rig.produce("in", numbers("v", 0..10));
    rig.values("out", 10);
    rig.deploy("copy", &[identity()], "in", &["out"], r#""policies":{"parallelism":2}"#).unwrap();
    rig.wait_for_generation("copy", 3);
}

#[test]
fn pausing_stands_still_and_resuming_goes_on() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.produce("in", numbers("v", 0..10));
    rig.values("out", 10);
    assert!(rig.writer().set_paused(&identity_of("copy"), true).unwrap());
    let status = rig.wait_for_state("copy", State::Paused);
    assert_eq!(rig.log.offsets().members(&identity_of("copy").consumer_group()).unwrap(), 0);
    let known: Vec<_> = status.partitions.iter().map(|at| (at.partition, at.offset, at.lag)).collect();
    assert_eq!(known, [(0, 10, 0)], "the last that is known");
    rig.produce("in", numbers("v", 10..20));
    assert!(rig.writer().set_paused(&identity_of("copy"), false).unwrap());
    assert_eq!(rig.values("out", 20), numbers("v", 0..20));
}

#[test]
fn a_paused_deployment_says_what_waits_until_somebody_else_has_its_group() {
    let rig = Rig::without_node();
    let node = start_node(&rig.log);
    rig.create("in", 2);
    rig.create("out", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.produce_to("in", 0, numbers("v", 0..10));
    rig.values("out", 10);
    rig.set_paused("copy", true);
    rig.wait_for_state("copy", State::Paused);
    let has = |offset, waits| {
        let status = wait_for(&format!("{waits} records that wait from {offset}"), || {
            let status = rig.status("copy")?;
            let found: Vec<_> =
                status.partitions.iter().map(|at| (at.partition, at.offset, at.lag)).collect();
            (found == [(0, offset, waits), (1, 0, 0)]).then_some(status)
        });
        assert_eq!(status.state, State::Paused);
        let lag = format!(r#"coproc_lag_records{{coprocessor="copy",partition="0",topic="in"}} {waits}"#);
        let text = node.metrics().text();
        assert!(text.contains(&lag), "{lag} is not in {text}");
        assert!(text.contains(r#"coproc_paused{coprocessor="copy"} 1"#));
    };
    rig.produce_to("in", 0, numbers("v", 10..20));
    has(10, 10);
    // As `coproc offsets alter` does.
    let group = identity_of("copy").consumer_group();
    let to = BTreeMap::from([(TopicPartition::new(&topic("in"), 0), 20)]);
    rig.log.offsets().alter(&group, &to).unwrap();
    has(20, 0);
    let other = LaneSpec {
        group,
        transactional_id: "other".into(),
        inputs: vec![topic("in")],
        outputs: vec![topic("out")],
        start: StartOffset::Earliest,
        delivery: Delivery::ExactlyOnce,
        max_records: 1,
        max_bytes: 1,
    };
    let member = rig.log.lane(&other).unwrap();
    wait_for("nothing that it could say of another one's partitions", || {
        rig.status("copy").filter(|status| status.partitions.is_empty())
    });
    assert!(!node.metrics().text().contains("coproc_lag_records{"));
    drop(member);
    has(20, 0);
    // Its offsets go with it.
    rig.log.topics().delete(&topic("in")).unwrap();
    rig.create("in", 1);
    rig.produce_to("in", 0, numbers("v", 0..3));
    wait_for("all records of the topic that is there now", || {
        let status = rig.status("copy")?;
        (status.partitions.iter().map(|at| (at.partition, at.lag)).collect::<Vec<_>>() == [(0, 3), (1, 0)])
            .then_some(())
    });
    assert!(
        !node.metrics().text().contains(r#"partition="1",topic="in""#),
        "there is no such partition any more"
    );
}

#[test]
fn what_was_removed_while_the_node_was_down_goes_from_the_status() {
    let mut rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    for name in ["stays", "goes"] {
        rig.deploy(name, &[identity()], "in", &["out"], "").unwrap();
        rig.wait_for_state(name, State::Running);
    }
    let keys = || {
        let records = rig_keys(&rig.log);
        let of = |name: &str| records.contains_key(&format!("0/default/_cli/coprocessor/{name}"));
        (of("stays"), of("goes"))
    };
    assert_eq!(keys(), (true, true));
    assert!(rig.node.take().unwrap().stop());
    rig.writer().remove(&identity_of("goes")).unwrap();
    rig.node = Some(start_node(&rig.log));
    let goes = |key: &String| key.ends_with("/goes");
    wait_for("the keys to go", || (!rig_keys(&rig.log).keys().any(goes)).then_some(()));
    let mut keys: Vec<_> = rig_keys(&rig.log).into_keys().collect();
    // What was committed for it is there once something was.
    keys.retain(|key| key != "committed/0/default/_cli/coprocessor/stays");
    assert_eq!(keys, ["0", "0/default/_cli/coprocessor/stays"]);
}

/// The keys of the status topic that have a value.
fn rig_keys(log: &Arc<dyn Log>) -> BTreeMap<String, Vec<u8>> {
    let mut reader = log.reader(&topic("coprocessor_status_topic"), None, ReadFrom::Start).unwrap();
    let mut all = BTreeMap::new();
    while !reader.is_caught_up().unwrap() {
        for fetched in reader.fetch(Duration::from_secs(1)).unwrap() {
            let key = support::text(fetched.record.key);
            match fetched.record.value {
                Some(value) => drop(all.insert(key, value)),
                None => drop(all.remove(&key)),
            }
        }
    }
    all
}

#[test]
fn a_node_stops_in_time_with_a_guest_in_a_long_record() {
    let mut rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    // It says that it is there, and stays at values that start with `@`.
    let stays = guest(
        "(call $say (i32.const 4098) (i32.sub (local.get $len) (i32.const 3)))
         (if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 64)) (then (loop $ever (br $ever))))",
    );
    let digest = modules::upload(rig.log.as_ref(), &stays).unwrap();
    let policy = r#""policies":{"errorPolicy":{"maxRetries":0,"onExhausted":"Skip"}}"#;
    let mut deployment = support::deployment(&[digest], "in", &["out"], policy);
    deployment.steps[0].limits.time_per_record = Span::from_ms(9_900);
    rig.writer().deploy(&PoolName::default_name(), &identity_of("stays"), &deployment).unwrap();
    rig.produce("in", ["a\n", "@\n", "b\n"].map(str::to_owned));
    wait_for("it to be at its record", || (rig.read("coprocessor_logs").len() == 2).then_some(()));
    let begin = Instant::now();
    assert!(rig.node.take().unwrap().stop(), "all threads ended");
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    // What was done before is committed, and the record is neither done nor at fault.
    assert_eq!(rig.values("out", 1), ["a\n"]);
    let status = rig.status("stays").unwrap();
    assert_eq!(status.partitions[0].offset, 1, "{status:?}");
    assert_eq!(status.last_error, None);
}

#[test]
fn a_node_stops_in_time_with_a_module_being_compiled() {
    let mut rig = Rig::without_node();
    // Takes its bounds, a number of milliseconds and of bytes, for seconds.
    let helper = CompileHelper { program: "/bin/sleep".into(), arguments: Vec::new() };
    let options = WasmOptions { compile_helper: Some(helper), ..WasmOptions::default() };
    rig.node = Some(support::start_node_with(&rig.log, Wasmtime::new(options, None).unwrap(), 10));
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("slow", &[identity()], "in", &["out"], "").unwrap();
    wait_for("the child that compiles", || (sleeping_children() == 1).then_some(()));
    let begin = Instant::now();
    assert!(rig.node.take().unwrap().stop(), "all threads ended");
    assert!(begin.elapsed() < Duration::from_secs(5), "it took {:?}", begin.elapsed());
    wait_for("the child to end", || (sleeping_children() == 0).then_some(()));
}

/// How many children of this process sleep on the command line.
fn sleeping_children() -> usize {
    let parent = format!("PPid:\t{}\n", std::process::id());
    let is_ours = |path: std::path::PathBuf| {
        std::fs::read_to_string(path.join("status"))
            .is_ok_and(|status| status.starts_with("Name:\tsleep\n") && status.contains(&parent))
    };
    std::fs::read_dir("/proc").unwrap().filter(|entry| is_ours(entry.as_ref().unwrap().path())).count()
}

#[test]
fn the_embedded_log_is_given_16_mebibytes_at_most_in_one_commit() {
    let mut rig = Rig::without_node();
    rig.create("in", 1);
    rig.create("out", 1);
    // 36 MiB, all there before the node starts, and an interval that is never over.
    for _ in 0..10 {
        rig.produce("in", std::iter::repeat_n("x".repeat(900 << 10), 4));
    }
    let policy = r#""policies":{"batch":{"commitInterval":"9s","maxCommitBytes":"1Gi"}}"#;
    rig.deploy("copy", &[identity()], "in", &["out"], policy).unwrap();
    rig.start();
    rig.values("out", 40);
    // The last one is counted once its records can be read.
    wait_for("three commits", || {
        let text = rig.node.as_ref().unwrap().metrics().text();
        let line = text.lines().find(|line| line.starts_with("coproc_commit_seconds_count{"))?;
        let commits: u32 = line.rsplit(' ').next()?.parse().ok()?;
        (commits >= 3).then_some(())
    });
}

#[test]
fn removing_ends_it_and_leaves_topics_alone() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.produce("in", numbers("v", 0..10));
    rig.values("out", 10);
    rig.writer().remove(&identity_of("copy")).unwrap();
    wait_for("the deployment to go from the status", || rig.status("copy").is_none().then_some(()));
    rig.produce("in", numbers("v", 10..20));
    assert_eq!(rig.values("out", 10).len(), 10);
}

#[test]
fn a_missing_topic_is_waited_for() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    let status = rig.wait_for_state("copy", State::Pending);
    let status = if status.reason.is_none() {
        wait_for("a reason", || rig.status("copy").filter(|status| status.reason.is_some()))
    } else {
        status
    };
    assert_eq!(status.reason.as_deref(), Some("TopicNotFound"));
    assert!(status.last_error.unwrap().message.contains("out"));
    rig.create("out", 1);
    rig.produce("in", numbers("v", 0..3));
    assert_eq!(rig.values("out", 3), numbers("v", 0..3));
}

#[test]
fn materialized_topics_follow_their_source_and_refuse_others() {
    let rig = Rig::new();
    rig.create("produce", 3);
    let mut deployment = support::deployment(
        &[coproc::control::modules::upload(rig.log.as_ref(), &identity()).unwrap()],
        "produce",
        &["result"],
        "",
    );
    if let Sink::Kafka { kafka } = &mut deployment.sinks[0] {
        kafka.naming = Naming::Materialized;
    }
    rig.writer()
        .deploy(&coproc::core::names::PoolName::default_name(), &identity_of("m"), &deployment)
        .unwrap();
    for partition in 0..3 {
        rig.produce_to("produce", partition, numbers(&format!("p{partition}-"), 0..5));
    }
    rig.wait_for_state("m", State::Running);
    rig.values("produce._result_", 15);
    for fetched in rig.read("produce._result_") {
        let value = support::text(fetched.record.value);
        assert!(value.starts_with(&format!("p{}-", fetched.partition)), "{value} in {}", fetched.partition);
    }
    let record = coproc::ports::Produce {
        topic: topic("produce._result_"),
        partition: None,
        record: coproc::core::record::Record::new(None, Some(b"x")),
    };
    assert!(matches!(rig.log.produce(&[record]), Err(LogError::NotWritable { .. })));
}

#[test]
fn start_offsets_are_kept() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.produce("in", numbers("v", 0..10));
    let starts = [
        ("latest", StartOffset::Latest, 10),
        ("from-start", StartOffset::FromStart { records: 4 }, 4),
        ("from-end", StartOffset::FromEnd { records: 3 }, 7),
        ("earliest", StartOffset::Earliest, 0),
    ];
    for (name, start, _) in starts {
        rig.create(name, 1);
        let digest = coproc::control::modules::upload(rig.log.as_ref(), &identity()).unwrap();
        let mut deployment = support::deployment(&[digest], "in", &[name], "");
        if let Source::Kafka { kafka } = &mut deployment.source {
            kafka.start_offset = start;
        }
        let pool = coproc::core::names::PoolName::default_name();
        rig.writer().deploy(&pool, &identity_of(name), &deployment).unwrap();
        wait_for("partitions in the status", || rig.status(name).filter(|s| !s.partitions.is_empty()));
    }
    rig.produce("in", ["last".to_owned()]);
    for (name, _, first) in starts {
        let expected = [numbers("v", first..10), vec!["last".to_owned()]].concat();
        assert_eq!(rig.values(name, expected.len()), expected, "{name}");
    }
}

#[test]
fn what_guests_print_is_in_the_logs_topic() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    let says = guest("(call $say (i32.const 4098) (i32.sub (local.get $len) (i32.const 3)))");
    rig.deploy("talker", &[says], "in", &["out"], "").unwrap();
    rig.produce("in", ["hello\n", "world\n"].map(str::to_owned));
    let lines = wait_for("two lines", || Some(rig.read("coprocessor_logs")).filter(|lines| lines.len() >= 2));
    let line: serde_json::Value = serde_json::from_slice(lines[0].record.value.as_ref().unwrap()).unwrap();
    assert_eq!(line["body"]["stringValue"], "hello");
    assert_eq!(line["severityNumber"], 9);
    assert_eq!(lines[0].record.key.as_deref(), Some(&b"talker"[..]));
}

#[test]
fn several_lanes_share_the_partitions() {
    let rig = Rig::new();
    rig.create("in", 4);
    rig.create("out", 4);
    rig.deploy("wide", &[identity()], "in", &["out"], r#""policies":{"parallelism":3}"#).unwrap();
    for partition in 0..4 {
        rig.produce_to("in", partition, numbers(&format!("p{partition}-"), 0..200));
    }
    let values = rig.values("out", 800);
    assert_eq!(values.len(), 800);
    let group = identity_of("wide").consumer_group();
    wait_for("three members", || (rig.log.offsets().members(&group).unwrap() == 3).then_some(()));
}

#[test]
fn junk_in_the_control_topic_disturbs_nobody() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    rig.deploy("copy", &[identity()], "in", &["out"], "").unwrap();
    rig.produce("in", numbers("v", 0..10));
    rig.values("out", 10);
    let key = b"deployment/default/_cli/default/coprocessor/copy".to_vec();
    let junk = [
        (b"junk".to_vec(), Some(vec![0xff; 10])),
        (key.clone(), Some(b"{".to_vec())),
        (key.clone(), Some(vec![b' '; 950_000])),
        (b"deployment/default/_cli/default/coprocessor/other".to_vec(), Some(b"{}".to_vec())),
        (vec![0; 8], None),
    ];
    let mut writer = rig.log.fenced_writer(&topic("coprocessor_internal_topic"), "junk").unwrap();
    for (key, value) in junk {
        writer.write(&[Keyed { key, value }]).unwrap();
    }
    wait_for("ignored records to be counted", || {
        let text = rig.node.as_ref().unwrap().metrics().text();
        text.contains("coproc_control_records_ignored_total 5").then_some(())
    });
    rig.produce("in", numbers("v", 10..20));
    assert_eq!(rig.values("out", 20), numbers("v", 0..20));
    rig.wait_for_state("copy", State::Running);
}

#[test]
fn a_newer_schema_is_unsupported_and_says_so() {
    let rig = Rig::new();
    let key = b"deployment/default/_cli/default/coprocessor/future".to_vec();
    let value = br#"{"schema":"2.0","generation":7,"magic":true}"#.to_vec();
    let mut writer = rig.log.fenced_writer(&topic("coprocessor_internal_topic"), "future").unwrap();
    writer.write(&[Keyed { key, value: Some(value) }]).unwrap();
    let status = rig.wait_for_state("future", State::Unsupported);
    assert!(status.last_error.unwrap().message.contains("newer than this node"));
}

#[test]
fn records_never_go_round() {
    let rig = Rig::new();
    for name in ["a", "b", "c"] {
        rig.create(name, 1);
    }
    rig.deploy("ab", &[identity()], "a", &["b"], "").unwrap();
    rig.deploy("bc", &[identity()], "b", &["c"], "").unwrap();
    let error = rig.deploy("ca", &[identity()], "c", &["a"], "").unwrap_err().to_string();
    assert!(error.contains("a -> b -> c -> a"), "{error}");
    let error = rig.deploy("aa", &[identity()], "a", &["a"], "").unwrap_err().to_string();
    assert!(error.contains("records would go round for ever"), "{error}");
}

#[test]
fn modules_that_cannot_run_say_why() {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    let hungry = wat::parse_str(
        r#"(module (import "redpanda_transform" "check_abi_version_2" (func)) (memory (export "memory") 1000)
            (func (export "_start") unreachable))"#,
    )
    .unwrap();
    let cases: [(&str, Vec<u8>, &str); 3] = [
        ("text", b"(module)".to_vec(), "InvalidModule"),
        ("empty", wat::parse_str("(module)").unwrap(), "InvalidModule"),
        ("hungry", hungry, "GuestStartFailed"),
    ];
    for (name, module, reason) in cases {
        rig.deploy(name, &[module], "in", &["out"], "").unwrap();
        let status = rig.wait_for_state(name, State::Failed);
        assert_eq!(status.reason.as_deref(), Some(reason), "{name}: {:?}", status.last_error);
    }
}
