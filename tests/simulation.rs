//! A seeded simulation: the lane against an in-memory log and scripted guests, with faults at every call.
//!
//! Whatever fails, in whatever order, the visible outputs are f(inputs): none twice, none missing, in order. A seed
//! that failed once is kept in `REGRESSIONS`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(clippy::disallowed_methods, reason = "the number of seeds comes from the environment")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coproc::core::deployment::{Deployment, OnExhausted};
use coproc::core::digest::Digest;
use coproc::core::ledger::{Ledger, TopicPartition};
use coproc::core::names::TopicName;
use coproc::core::record::{Batch, Offset, Outputs, Payload, Record};
use coproc::node::guest_logs::NoLines;
use coproc::node::lane::{End, Lane, LaneParts, Turn};
use coproc::node::plan::{ChainPlan, LanePlan, StepPlan, guest_limits};
use coproc::ports::{
    Clock, Emit, Event, Extent, Guest, GuestClass, GuestFailure, GuestLines, GuestSpec, LaneSession,
    LogError, Program, Run, RunBudget, TopicConfig,
};
use coproc::telemetry::metrics::NodeMetrics;

/// Seeds that found a bug once.
const REGRESSIONS: &[u64] = &[];
const PARTITIONS: u32 = 3;

#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }
}

#[derive(Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn wall_ms(&self) -> i64 {
        1_700_000_000_000
    }

    fn sleep(&self, time: Duration) {
        self.0.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }
}

type Visible = BTreeMap<(String, u32), Vec<Vec<u8>>>;

/// The durable part of the in-memory log.
struct World {
    inputs: BTreeMap<u32, Vec<Record>>,
    committed: BTreeMap<TopicPartition, Offset>,
    visible: Visible,
    /// How often a session went back, and how often it refused a dead letter.
    rewinds: u32,
    refusals: u32,
}

/// One step of a simulated session.
struct Session {
    world: Rc<RefCell<World>>,
    dice: Dice,
    clock: Arc<HandClock>,
    /// One fault in so many calls; 0 is none.
    faults: u64,
    owned: BTreeMap<TopicPartition, Offset>,
    paused: BTreeSet<TopicPartition>,
    ended: BTreeSet<TopicPartition>,
    /// What the lane was asked for; of one that has nothing that is nothing, and wants an answer too.
    revoking: Option<Vec<TopicPartition>>,
    /// Polls since then.
    unanswered: u32,
    /// Whether a commit or a rewind went through since.
    settled: bool,
    unassigned: VecDeque<TopicPartition>,
    open: Vec<(String, u32, Vec<u8>)>,
    /// Output bytes that it wants in one commit, as the embedded log does.
    room: u64,
    tainted: bool,
    /// Whether something failed since the last rewind.
    failed: bool,
    /// Values that the log refuses at the commit, for a reason that could not be seen before.
    refuses: BTreeSet<u64>,
    /// Whether the log refuses dead letters: `Emit` at once, `Commit` at the commit.
    refuses_dead: Option<When>,
    /// Nothing can be read at or after this offset of the first partition.
    damaged: Option<Damage>,
    /// Partitions that said so since the last rewind.
    stuck: BTreeSet<TopicPartition>,
    /// Every poll after one that gave records fails: whether the next one is such.
    fails_next: Option<bool>,
}

/// How a partition fails for good, and where.
#[derive(Clone, Copy)]
struct Damage {
    offset: Offset,
    out_of_range: bool,
}

impl Damage {
    fn event(self, partition: &TopicPartition) -> Event {
        if self.out_of_range {
            let (partition, wanted) = (partition.clone(), self.offset);
            return Event::Failed(LogError::OffsetOutOfRange { partition, wanted, first: 1_000, end: 1_001 });
        }
        Event::Stuck { partition: partition.clone(), error: LogError::Corrupt("simulated".into()) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Emit,
    Commit,
}

fn value_of(payload: &[u8]) -> u64 {
    let value = Payload::parse(payload).unwrap().value.unwrap().to_vec();
    String::from_utf8(value).unwrap().split(':').next().unwrap().parse().unwrap()
}

fn refusal(topic: &str) -> LogError {
    LogError::RecordRefused { topic: topic.parse().unwrap(), reason: "simulated".into() }
}

fn broken(what: &str) -> LogError {
    LogError::Unavailable(format!("simulated: {what}"))
}

impl LaneSession for Session {
    fn poll(&mut self, batch: &mut Batch, wait: Duration) -> Event {
        let is_asked = self.revoking.is_some();
        assert!(!is_asked || !self.settled, "what is to go is given up as soon as it can be");
        self.unanswered = if is_asked { self.unanswered + 1 } else { 0 };
        assert!(self.unanswered < 300, "the group waits for its answer");
        let outputs = self.open.iter().filter(|(topic, ..)| topic == "out");
        let held: usize = outputs.map(|(.., payload)| payload.len()).sum();
        assert!(self.tainted || (held as u64) < self.room, "{held} bytes are held when more is asked for");
        assert!(
            !(self.failed || self.tainted) || self.open.is_empty(),
            "readers wait for a transaction that waits for nobody"
        );
        if !self.unassigned.is_empty() {
            let partitions: Vec<_> = self.unassigned.drain(..).collect();
            for at in &partitions {
                let committed = self.world.borrow().committed.get(at).copied().unwrap_or(0);
                self.owned.insert(at.clone(), committed);
            }
            return Event::Assigned(partitions);
        }
        let fails = self.fails_next.as_mut().is_some_and(std::mem::take);
        if fails || self.dice.once_in(self.faults) {
            self.failed = true;
            return Event::Failed(broken("poll"));
        }
        if self.revoking.is_none() && self.dice.once_in(self.faults.saturating_mul(2)) {
            // Now and then nothing at all.
            let which = self.dice.below(self.owned.len() as u64 + 1) as usize;
            let partitions: Vec<_> = self.owned.keys().nth(which).cloned().into_iter().collect();
            self.revoking = Some(partitions.clone());
            self.settled = false;
            let lost = self.dice.once_in(3);
            return Event::Revoking { partitions, lost };
        }
        // What is to go is owned until it is released, but nothing of it is handed out any more.
        let is_going = |at: &TopicPartition| self.revoking.iter().flatten().any(|going| going == at);
        let is_free = |at: &&TopicPartition| !self.paused.contains(at) && !is_going(at);
        let free: Vec<_> = self.owned.keys().filter(is_free).cloned().collect();
        for _ in 0..free.len() {
            let at = &free[self.dice.below(free.len() as u64) as usize];
            let next = self.owned[at];
            let damage = self.damaged.filter(|_| at.partition == 0);
            if let Some(damage) = damage.filter(|damage| damage.offset <= next) {
                if self.stuck.insert(at.clone()) {
                    return damage.event(at);
                }
                continue;
            }
            let world = self.world.borrow();
            let records = &world.inputs[&at.partition];
            let readable = damage.map_or(records.len(), |damage| damage.offset as usize);
            let records = &records[..readable.min(records.len())];
            if (next as usize) < records.len() {
                let count = 1 + self.dice.below(7) as usize;
                batch.reset(&at.topic, at.partition);
                for (offset, record) in records.iter().enumerate().skip(next as usize).take(count) {
                    batch.push(offset as Offset, 1_000 + offset as i64, &record.payload());
                }
                let end = next + batch.len() as Offset;
                drop(world);
                self.owned.insert(at.clone(), end);
                self.ended.remove(at);
                self.fails_next = self.fails_next.map(|_| true);
                return Event::Records;
            }
            drop(world);
            if self.ended.insert(at.clone()) {
                return Event::CaughtUp { partition: at.clone(), next_offset: next };
            }
        }
        self.clock.sleep(wait.max(Duration::from_micros(1)));
        Event::Idle
    }

    fn emit(&mut self, output: &Emit<'_>) -> Result<(), LogError> {
        assert!(!self.tainted, "nothing may be emitted after a failure before the rewind");
        if self.dice.once_in(self.faults.saturating_mul(20)) {
            self.tainted = true;
            return Err(broken("emit"));
        }
        if self.refuses_dead == Some(When::Emit) && output.topic.as_str() == "dead" {
            self.tainted = true;
            self.world.borrow_mut().refusals += 1;
            return Err(refusal("dead"));
        }
        let partition = match output.placement {
            coproc::ports::Placement::Exactly(partition) | coproc::ports::Placement::By(_, partition) => {
                partition
            }
        };
        self.open.push((output.topic.to_string(), partition, output.payload.to_vec()));
        Ok(())
    }

    fn ack_commit(&mut self, ledger: &Ledger) -> Result<(), LogError> {
        assert!(!self.tainted, "nothing may be committed after a failure before the rewind");
        for (at, _) in ledger.uncommitted() {
            assert!(self.owned.contains_key(at), "{at} is committed but not owned");
        }
        let refused = self.open.iter().find(|(topic, _, payload)| match topic.as_str() {
            "out" => self.refuses.contains(&value_of(payload)),
            _ => self.refuses_dead.is_some(),
        });
        if let Some((topic, ..)) = refused {
            self.tainted = true;
            self.world.borrow_mut().refusals += u32::from(topic == "dead");
            return Err(refusal(topic));
        }
        let fault = if self.dice.once_in(self.faults) { 1 + self.dice.below(3) } else { 0 };
        if fault == 1 {
            self.tainted = true;
            let message = "simulated: nothing was written".to_owned();
            return Err(if self.dice.once_in(2) {
                LogError::Expired(message)
            } else {
                LogError::Storage(message)
            });
        }
        if fault != 2 {
            let mut world = self.world.borrow_mut();
            for (topic, partition, payload) in self.open.drain(..) {
                world.visible.entry((topic, partition)).or_default().push(payload);
            }
            for (at, next) in ledger.uncommitted() {
                world.committed.insert(at.clone(), next);
            }
        }
        if fault == 0 {
            self.settled = true;
            return Ok(());
        }
        self.tainted = true;
        Err(LogError::Uncertain(format!(
            "simulated: it {} written",
            if fault == 3 { "was" } else { "was not" }
        )))
    }

    fn abandon(&mut self) {
        self.open.clear();
        self.tainted = true;
    }

    fn rewind(&mut self) -> Result<(), LogError> {
        self.open.clear();
        self.failed = false;
        self.world.borrow_mut().rewinds += 1;
        if self.dice.once_in(self.faults) {
            return Err(broken("rewind"));
        }
        self.tainted = false;
        self.settled = true;
        self.ended.clear();
        self.stuck.clear();
        let committed = &self.world.borrow().committed;
        for (at, next) in &mut self.owned {
            *next = committed.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        self.paused.extend(partitions.iter().cloned());
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.paused.remove(at);
        }
    }

    fn release(&mut self) {
        for at in self.revoking.take().into_iter().flatten() {
            self.owned.remove(&at);
            self.paused.remove(&at);
            self.ended.remove(&at);
            self.stuck.remove(&at);
            self.unassigned.push_back(at);
        }
    }

    fn commit_room(&self) -> u64 {
        self.room
    }

    fn extents(&mut self) -> Vec<(TopicPartition, Extent)> {
        let world = self.world.borrow();
        let end = |at: &TopicPartition| world.inputs[&at.partition].len() as Offset;
        self.owned.keys().map(|at| (at.clone(), Extent { first: 0, end: end(at) })).collect()
    }
}

/// What guests do: record `n` gives `n % 3` outputs; some records fail so many times before they go through.
#[derive(Default)]
struct Script {
    fails: Mutex<BTreeMap<u64, u32>>,
}

struct ScriptedProgram(Arc<Script>, Digest);

impl Program for ScriptedProgram {
    fn digest(&self) -> Digest {
        self.1
    }

    fn start(&self, spec: &GuestSpec, _: Arc<dyn GuestLines>) -> Result<Box<dyn Guest>, GuestFailure> {
        let pass_all = spec.outputs.len() == 1 && spec.step == "first";
        Ok(Box::new(ScriptedGuest { script: self.0.clone(), pass_all, ..ScriptedGuest::default() }))
    }
}

#[derive(Default)]
struct ScriptedGuest {
    script: Arc<Script>,
    pass_all: bool,
    batch: Batch,
    completed: usize,
    outputs: Outputs,
    dead: bool,
}

impl Guest for ScriptedGuest {
    fn offer(&mut self, batch: Batch, first: usize) {
        assert!(!self.dead, "an instance that failed is not used again");
        (self.batch, self.completed) = (batch, first);
    }

    fn run(&mut self, budget: &RunBudget) -> Run {
        while let Some(record) = self.batch.get(self.completed) {
            let value = value_of(record.payload);
            let mut fails = self.script.fails.lock().unwrap();
            if !self.pass_all
                && let Some(left) = fails.get_mut(&value)
                && *left > 0
            {
                *left = left.saturating_sub(u32::from(*left != u32::MAX));
                self.outputs.drop_from(self.completed);
                self.dead = true;
                let message = format!("value {value}");
                return Run::Failed(GuestFailure { class: GuestClass::Trap, message });
            }
            let copies = if self.pass_all { 1 } else { value % 3 };
            for copy in 0..copies {
                let text = if self.pass_all { value.to_string() } else { format!("{value}:{copy}") };
                let payload = Record::new(Some(b"k"), Some(text.as_bytes())).payload();
                self.outputs.push(0, self.completed, &payload);
            }
            self.completed += 1;
            let is_full = self.outputs.bytes() > budget.output_bytes;
            if (is_full || budget.stop.load(Ordering::Relaxed) || value.is_multiple_of(5))
                && self.completed < self.batch.len()
            {
                return Run::Suspended;
            }
        }
        Run::Finished
    }

    fn completed(&self) -> usize {
        self.completed
    }

    fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }

    fn withdraw(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

struct Case {
    seed: u64,
    faults: u64,
    steps: usize,
    policy: OnExhausted,
    refuses: bool,
    refuses_dead: Option<When>,
    damaged: Option<Damage>,
    fails_after_records: bool,
}

impl Case {
    /// One step, no faults, nothing refused or damaged.
    fn new(seed: u64, policy: OnExhausted) -> Self {
        Self {
            seed,
            faults: 0,
            steps: 1,
            policy,
            refuses: false,
            refuses_dead: None,
            damaged: None,
            fails_after_records: false,
        }
    }
}

fn deployment(case: &Case) -> Deployment {
    let digest = format!("sha256:{}", "0".repeat(64));
    let steps: Vec<String> = ["first", "last"][2 - case.steps..]
        .iter()
        .map(|name| format!(r#"{{"name":"{name}","module":{{"digest":"{digest}"}}}}"#))
        .collect();
    let json = format!(
        r#"{{"schema":"1.0","generation":1,"owner":"cli",
            "source":{{"type":"Kafka","kafka":{{"topics":["in"]}}}},
            "steps":[{}],"sinks":[{{"type":"Kafka","kafka":{{"topic":"out"}}}}],
            "policies":{{"errorPolicy":{{"maxRetries":3,"onExhausted":"{:?}","deadLetterTopic":"dead"}},
                         "batch":{{"commitInterval":"20ms","maxCommitRecords":50}}}}}}"#,
        steps.join(","),
        case.policy
    );
    serde_json::from_str(&json).unwrap()
}

fn lane(
    case: &Case,
    world: &Rc<RefCell<World>>,
    script: &Arc<Script>,
    clock: &Arc<HandClock>,
    life: u64,
) -> (Lane, Arc<AtomicBool>) {
    let deployment = Arc::new(deployment(case));
    let program: Arc<dyn Program> = Arc::new(ScriptedProgram(script.clone(), Digest::from_bytes([0; 32])));
    let steps = deployment.steps.iter().map(|step| StepPlan {
        name: step.name.clone(),
        program: program.clone(),
        env: BTreeMap::new(),
        limits: guest_limits(&step.limits),
    });
    let outputs: Vec<TopicName> = deployment.kafka_sinks().map(|sink| sink.topic.clone()).collect();
    let chain = ChainPlan { name: "sim".into(), steps: steps.collect(), outputs };
    let topics = ["out", "dead"].map(|topic| (topic.parse().unwrap(), TopicConfig::default())).into();
    let identity = "default/_cli/coprocessor/sim".parse().unwrap();
    let plan = LanePlan::new(identity, deployment, Arc::new(chain), &topics).unwrap();
    let at = |partition| TopicPartition::new(&"in".parse().unwrap(), partition);
    let session = Session {
        world: world.clone(),
        dice: Dice(case.seed.wrapping_mul(31).wrapping_add(life).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        clock: clock.clone(),
        faults: case.faults,
        owned: BTreeMap::new(),
        paused: BTreeSet::new(),
        ended: BTreeSet::new(),
        revoking: None,
        unanswered: 0,
        settled: false,
        unassigned: (0..PARTITIONS).map(at).collect(),
        open: Vec::new(),
        room: if case.seed.is_multiple_of(2) { u64::MAX } else { 40 },
        tainted: false,
        failed: false,
        refuses: refused(case),
        refuses_dead: case.refuses_dead,
        damaged: case.damaged,
        stuck: BTreeSet::new(),
        fails_next: case.fails_after_records.then_some(false),
    };
    let (_, mailbox) = crossbeam_channel::bounded(1);
    let stop: Arc<AtomicBool> = Arc::default();
    let parts = LaneParts {
        clock: clock.clone(),
        lines: Arc::new(NoLines),
        metrics: NodeMetrics::new("0", "default").unwrap().of("sim"),
        shared: Arc::default(),
        stop: stop.clone(),
        low_priority: Arc::new(|_| false),
        seed: case.seed,
    };
    (Lane::new(Box::new(session), plan, mailbox, parts), stop)
}

/// Runs one case to its end: every partition at its end, or halted where the policy says so.
fn run(case: &Case) {
    let mut dice = Dice(case.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut inputs: BTreeMap<u32, Vec<Record>> = (0..PARTITIONS).map(|at| (at, Vec::new())).collect();
    for value in 0..120u64 {
        let at = dice.below(u64::from(PARTITIONS)) as u32;
        inputs.get_mut(&at).unwrap().push(Record::new(Some(b"k"), Some(value.to_string().as_bytes())));
    }
    let script = Arc::new(Script::default());
    let forever: BTreeSet<u64> = (0..3).map(|_| dice.below(120)).filter(|value| value % 30 != 1).collect();
    {
        let mut fails = script.fails.lock().unwrap();
        fails.extend((0..5).map(|_| (dice.below(120), 1 + dice.below(2) as u32)));
        fails.extend(forever.iter().map(|value| (*value, u32::MAX)));
    }
    let world = Rc::new(RefCell::new(World {
        inputs,
        committed: BTreeMap::new(),
        visible: Visible::new(),
        rewinds: 0,
        refusals: 0,
    }));
    let clock = Arc::new(HandClock::default());
    let mut life = 0;
    let (mut current, mut stop) = lane(case, &world, &script, &clock, life);
    for turn in 0.. {
        assert!(
            turn < 100_000,
            "seed {}: it does not come to an end: {:?}",
            case.seed,
            world.borrow().committed
        );
        clock.sleep(Duration::from_micros(200));
        match current.turn() {
            Turn::Continue => {}
            Turn::Ended(End::Drained) => (current, stop) = lane(case, &world, &script, &clock, life),
            Turn::Ended(other) => panic!("seed {}: {other:?}", case.seed),
        }
        if dice.once_in(if case.faults == 0 { 0 } else { case.faults * 80 }) {
            life += 1;
            if dice.once_in(2) {
                stop.store(true, Ordering::Relaxed);
            } else {
                // A crash: the session and everything in it is just gone.
                (current, stop) = lane(case, &world, &script, &clock, life);
            }
        }
        if turn % 64 == 0 && is_done(case, &world.borrow(), &forever) {
            break;
        }
    }
    if case.faults == 0 && (case.refuses_dead.is_some() || case.damaged.is_some()) {
        // What cannot be done is not tried again, however long the lane goes on.
        for _ in 0..500 {
            clock.sleep(Duration::from_millis(1));
            assert!(matches!(current.turn(), Turn::Continue), "seed {}", case.seed);
        }
        let World { rewinds, refusals, .. } = *world.borrow();
        assert!(refusals <= PARTITIONS, "seed {}: a dead letter was refused {refusals} times", case.seed);
        assert!(rewinds <= refusals, "seed {}: {rewinds} rewinds", case.seed);
    }
    check(case, &world.borrow(), &forever);
}

fn refused(case: &Case) -> BTreeSet<u64> {
    if case.refuses { [31, 62, 92].into() } else { BTreeSet::new() }
}

/// Where each partition ends: after its last record, or at the first one that halts it.
fn end_of(case: &Case, partition: u32, records: &[Record], forever: &BTreeSet<u64>) -> usize {
    let damage = case.damaged.filter(|_| partition == 0).map_or(records.len(), |at| at.offset as usize);
    let records = &records[..damage.min(records.len())];
    let bad = |record: &Record| {
        let value = value_of(&record.payload());
        forever.contains(&value) || refused(case).contains(&value)
    };
    match case.policy {
        OnExhausted::DeadLetter if case.refuses_dead.is_none() => records.len(),
        OnExhausted::Fail | OnExhausted::DeadLetter => records.iter().position(bad).unwrap_or(records.len()),
        OnExhausted::Skip => records.len(),
    }
}

fn is_done(case: &Case, world: &World, forever: &BTreeSet<u64>) -> bool {
    world.inputs.iter().all(|(partition, records)| {
        let at = TopicPartition::new(&"in".parse().unwrap(), *partition);
        let end = end_of(case, *partition, records, forever) as Offset;
        world.committed.get(&at).copied().unwrap_or(0) >= end
    })
}

fn check(case: &Case, world: &World, forever: &BTreeSet<u64>) {
    for (partition, records) in &world.inputs {
        let end = end_of(case, *partition, records, forever);
        let (mut expected, mut dead) = (Vec::new(), Vec::new());
        for record in &records[..end] {
            let value = value_of(&record.payload());
            if forever.contains(&value) || refused(case).contains(&value) {
                dead.push(value);
                continue;
            }
            expected.extend((0..value % 3).map(|copy| format!("{value}:{copy}")));
        }
        let texts = |topic: &str| -> Vec<String> {
            let found = world.visible.get(&(topic.to_owned(), *partition));
            let text = |payload: &Vec<u8>| {
                String::from_utf8(Payload::parse(payload).unwrap().value.unwrap().to_vec()).unwrap()
            };
            found.into_iter().flatten().map(text).collect()
        };
        assert_eq!(texts("out"), expected, "seed {}, partition {partition}", case.seed);
        if case.policy != OnExhausted::DeadLetter {
            dead.clear();
        }
        let dead: Vec<String> = dead.iter().map(u64::to_string).collect();
        assert_eq!(texts("dead"), dead, "seed {}, dead letters of partition {partition}", case.seed);
    }
}

fn seeds() -> impl Iterator<Item = u64> {
    let count = std::env::var("SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    REGRESSIONS.iter().copied().chain(1..=count)
}

fn run_all(steps: usize, refuses: bool) {
    for seed in seeds() {
        let policies = [OnExhausted::Fail, OnExhausted::Skip, OnExhausted::DeadLetter];
        // A refusal takes many calls in a row to be pinned down, so there faults are rarer.
        let faults = if refuses { [0, 40, 80, 200] } else { [0, 5, 20, 100] }[(seed % 4) as usize];
        let policy = policies[(seed % 3) as usize];
        run(&Case { faults, steps, refuses, ..Case::new(seed, policy) });
    }
}

#[test]
fn one_step_is_exactly_once_under_faults() {
    run_all(1, false);
}

#[test]
fn a_chain_of_two_is_exactly_once_under_faults() {
    run_all(2, false);
}

#[test]
fn records_that_the_log_refuses_are_found_one_by_one() {
    run_all(1, true);
}

#[test]
fn a_refused_dead_letter_stops_its_partition_only() {
    for seed in seeds() {
        let faults = [0, 20, 100][(seed % 3) as usize];
        let refuses_dead = Some([When::Emit, When::Commit][(seed % 2) as usize]);
        run(&Case { faults, refuses_dead, ..Case::new(seed, OnExhausted::DeadLetter) });
    }
}

#[test]
fn a_partition_that_cannot_be_read_stops_alone() {
    for seed in seeds() {
        let faults = [0, 20, 100][(seed % 3) as usize];
        let damage = Damage { offset: (seed % 30) as Offset, out_of_range: seed.is_multiple_of(2) };
        run(&Case { faults, damaged: Some(damage), ..Case::new(seed, OnExhausted::Skip) });
    }
}

#[test]
fn a_log_that_fails_after_every_few_records_gets_on() {
    for seed in seeds() {
        run(&Case { fails_after_records: true, ..Case::new(seed, OnExhausted::Skip) });
    }
}
