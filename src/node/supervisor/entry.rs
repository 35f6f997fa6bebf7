//! One deployment on this node: what is desired, what is loaded, what runs, and the next step between them.

mod about;
mod left;
mod swap;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::desired::Desired;
use crate::core::deployment::Deployment;
use crate::core::names::{Identity, TopicName};
use crate::core::record::TimestampMs;
use crate::core::retry::RetrySchedule;
use crate::core::status::{Committed, LastError, State};
use crate::node::lane::report::LaneShared;
use crate::node::lane::{End, LaneParts};
use crate::node::lane_thread::{LaneHandle, LanePlace};
use crate::node::loader::{LoadError, Request};
use crate::node::plan::{ChainPlan, Difference, LanePlan, difference};
use crate::node::priority;
use crate::node::supervisor::Context;
use crate::node::supervisor::entry::swap::Swapping;
use crate::node::supervisor::topics::{self, NotReady};
use crate::ports::LogError;

/// The waits before a deployment that could not start is tried again.
const RETRY: RetrySchedule =
    RetrySchedule { initial: Duration::from_millis(500), max: Duration::from_secs(30) };
/// Missing topics are looked for at least this often.
const TOPICS_EVERY: Duration = Duration::from_secs(1);

/// How far the modules are. Each names the deployment that it is about, whole: a generation alone may come again after
/// a removal, and what was loaded for an older life must not run under the name of a newer one.
enum Load {
    /// Nobody has asked.
    Idle,
    /// The loader has them.
    Loading(Arc<Deployment>),
    /// They can be started.
    Ready(Arc<Deployment>, Arc<ChainPlan>),
    /// They cannot be used; tried again at a time, if that may help.
    Failed { deployment: Arc<Deployment>, retry_at: Option<Instant> },
}

/// Lanes that run one deployment.
struct Running {
    plan: LanePlan,
    lanes: Vec<LaneHandle>,
    since: Instant,
}

/// One deployment on this node.
pub struct Entry {
    identity: Identity,
    desired: Option<Desired>,
    wanted: Option<Arc<Deployment>>,
    load: Load,
    running: Option<Running>,
    swapping: Option<Swapping>,
    stopping: Vec<LaneHandle>,
    /// What the lanes that ran last have to say, while none runs.
    last: Vec<Arc<LaneShared>>,
    /// Every partition that lanes of it had: what metrics may know.
    had: BTreeSet<(String, u32)>,
    /// Its partitions that ever had a committed offset, as far as this node knows.
    committed: Committed,
    state: State,
    reason: Option<String>,
    last_error: Option<LastError>,
    attempt: u32,
    retry_at: Option<Instant>,
    settled: bool,
}

impl Entry {
    /// Nothing yet.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            desired: None,
            wanted: None,
            load: Load::Idle,
            running: None,
            swapping: None,
            stopping: Vec::new(),
            last: Vec::new(),
            had: BTreeSet::new(),
            committed: Committed::default(),
            state: State::Pending,
            reason: None,
            last_error: None,
            attempt: 0,
            retry_at: None,
            settled: false,
        }
    }

    /// What an earlier life of the node knew to have been committed.
    pub fn remembering(self, committed: Committed) -> Self {
        Self { committed, ..self }
    }

    /// What is known to have been committed; nothing before something was.
    pub fn committed(&mut self) -> Option<&Committed> {
        self.note_committed();
        (self.desired.is_some() && !self.committed.partitions.is_empty()).then_some(&self.committed)
    }

    /// Takes note of what its lanes know to be committed; what belongs to an earlier life went with that.
    fn note_committed(&mut self) {
        let Some(running) = &self.running else { return };
        if running.plan.deployment.life != self.committed.life {
            return;
        }
        for lane in &running.lanes {
            let report = lane.shared.report();
            let settled = report.partitions.iter().filter(|(_, at)| at.is_settled);
            settled.for_each(|(at, _)| self.committed.insert(at));
        }
    }

    /// Which deployment.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The valid deployment that is desired, unless it is paused.
    pub fn wanted(&self) -> Option<&Arc<Deployment>> {
        self.wanted.as_ref().filter(|wanted| !wanted.paused)
    }

    /// Whether it has lanes.
    pub fn has_lanes(&self) -> bool {
        self.running.is_some()
    }

    /// How many lanes it has, ending ones included.
    pub fn lane_count(&self) -> usize {
        self.stopping.len() + self.running.as_ref().map_or(0, |running| running.lanes.len())
    }

    /// Whether more lanes are wanted than run: lanes that are to be started.
    pub fn wants_more_lanes(&self) -> bool {
        let running = self.running.as_ref().map_or(0, |running| running.lanes.len());
        self.wanted().is_some_and(|wanted| usize::from(wanted.policies.parallelism) > running)
    }

    /// Whether nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.desired.is_none() && self.running.is_none() && self.stopping.is_empty()
    }

    /// Whether `step` may have something to do.
    pub fn wants_attention(&self) -> bool {
        let lane_ended =
            self.running.as_ref().is_some_and(|running| running.lanes.iter().any(LaneHandle::is_over));
        let is_due = self.retry_at.is_some_and(|at| at <= Instant::now());
        let load_is_due =
            matches!(self.load, Load::Failed { retry_at: Some(at), .. } if at <= Instant::now());
        !self.settled
            || lane_ended
            || is_due
            || load_is_due
            || self.swapping.is_some()
            || !self.stopping.is_empty()
    }

    /// Whether `step` may ask the log, which may take its time: something that is loaded is to be run.
    pub fn is_to_ask_log(&self) -> bool {
        let Some(wanted) = self.wanted() else { return false };
        let is_loaded = matches!(&self.load, Load::Ready(of, _) if of == wanted);
        let is_run = self.running.as_ref().is_some_and(|running| running.plan.deployment == *wanted);
        is_loaded && !is_run
    }

    /// Whether a lane has news for the status.
    pub fn take_changed(&self) -> bool {
        let lanes = self.running.iter().flat_map(|running| &running.lanes).chain(&self.stopping);
        let lanes = lanes.map(|lane| &lane.shared).chain(&self.last);
        // Every flag is taken, so no short circuit.
        lanes.fold(false, |changed, lane| lane.take_changed() | changed)
    }

    /// This is desired from now on.
    pub fn desire(&mut self, desired: Option<Desired>, now_ms: TimestampMs) {
        match &desired {
            Some(Desired::Deployment(deployment)) => {
                let problems = deployment.problems();
                if let Some(first) = problems.first() {
                    // What runs goes on as it is, and what was to be done about it is still to be done.
                    let settled = self.settled;
                    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    self.refuse(first.reason, all.join("; "), now_ms);
                    self.settled = settled;
                } else {
                    if self.committed.life != deployment.life {
                        self.committed = Committed { life: deployment.life.clone(), ..Committed::default() };
                        self.last.iter().for_each(|lane| lane.behind(|report| report.partitions.clear()));
                    }
                    self.wanted = Some(Arc::new((**deployment).clone()));
                    self.begin_anew();
                }
            }
            Some(Desired::Unsupported { schema, .. }) => {
                self.state = State::Unsupported;
                self.reason = Some("NewerSchema".into());
                let message =
                    format!("the deployment has schema {schema}, newer than this node: upgrade the node");
                self.note(now_ms, "NewerSchema", message);
                self.settled = true;
            }
            None => {
                // What is loaded, or still on its way, belongs to the life that ends.
                self.wanted = None;
                self.load = Load::Idle;
                self.committed = Committed::default();
                self.begin_anew();
            }
        }
        self.desired = desired;
    }

    fn begin_anew(&mut self) {
        self.settled = false;
        self.attempt = 0;
        self.retry_at = None;
    }

    fn refuse(&mut self, reason: &str, message: String, now_ms: TimestampMs) {
        self.note(now_ms, reason, message);
        if self.running.is_none() {
            self.state = State::Failed;
        }
        self.reason = Some(reason.to_owned());
        self.settled = true;
    }

    fn note(&mut self, time: TimestampMs, reason: &str, message: String) {
        if self.last_error.as_ref().is_some_and(|last| last.reason == reason && last.message == message) {
            return;
        }
        tracing::warn!(deployment = %self.identity, reason, "{message}");
        self.last_error = Some(LastError { time, reason: reason.to_owned(), message });
    }

    /// The loader is done with this deployment. What was asked for before that is of no use any more.
    pub fn loaded(
        &mut self,
        deployment: Arc<Deployment>,
        chain: Result<Arc<ChainPlan>, LoadError>,
        now_ms: TimestampMs,
    ) {
        if !matches!(&self.load, Load::Loading(asked) if *asked == deployment) {
            return;
        }
        self.settled = false;
        match chain {
            Ok(chain) => {
                self.attempt = 0;
                self.load = Load::Ready(deployment, chain);
            }
            Err(error) => {
                let can_pass = error.disposition() != crate::core::disposition::Disposition::User;
                self.attempt += 1;
                let retry_at = can_pass.then(|| Instant::now() + RETRY.delay(self.attempt, 0.0));
                self.load = Load::Failed { deployment, retry_at };
                self.refuse(error.reason(), error.to_string(), now_ms);
            }
        }
    }

    /// Does the next step towards what is desired: whether the status changed.
    pub fn step(&mut self, context: &Context, hindrance: Option<(&'static str, String)>) -> bool {
        let before = (self.state, self.reason.clone(), self.last_error.clone(), self.generation());
        let count = self.stopping.len();
        self.stopping.retain(|lane| !lane.is_over());
        self.look_at_lanes(context);
        self.look_at_swap(context);
        self.approach(context, hindrance);
        count != self.stopping.len()
            || before != (self.state, self.reason.clone(), self.last_error.clone(), self.generation())
    }

    fn approach(&mut self, context: &Context, hindrance: Option<(&'static str, String)>) {
        let Some(wanted) = self.wanted.clone() else {
            if self.desired.is_none() {
                self.stop_running(context);
                self.state = State::Stopping;
            }
            return;
        };
        if wanted.paused {
            self.stop_running(context);
            self.state = if self.stopping.is_empty() { State::Paused } else { State::Stopping };
            self.reason = Some("Paused".into());
            self.settled = self.stopping.is_empty();
            return;
        }
        if self.running.as_ref().is_some_and(|running| running.plan.deployment == wanted) {
            self.settled = true;
            return;
        }
        let now_ms = context.parts.clock.wall_ms();
        if let Some((reason, message)) = hindrance {
            let is_full = reason == "PoolFull";
            self.refuse(reason, message, now_ms);
            if is_full && self.running.is_none() {
                self.state = State::Pending;
            }
            self.retry_at = Some(Instant::now() + TOPICS_EVERY);
            return;
        }
        if self.retry_at.is_some_and(|at| at > Instant::now()) || self.swapping.is_some() {
            return;
        }
        self.retry_at = None;
        if let Some(chain) = self.chain_for(&wanted, context) {
            self.bring_about(context, &wanted, &chain, now_ms);
        }
    }

    /// The chain of the wanted deployment, once it is loaded.
    fn chain_for(&mut self, wanted: &Arc<Deployment>, context: &Context) -> Option<Arc<ChainPlan>> {
        match &self.load {
            Load::Ready(of, chain) if of == wanted => return Some(chain.clone()),
            Load::Loading(of) if of == wanted => return None,
            Load::Failed { deployment, retry_at }
                if deployment == wanted && retry_at.is_none_or(|at| at > Instant::now()) =>
            {
                self.settled = true;
                return None;
            }
            _ => {}
        }
        let request = Request { identity: self.identity.clone(), deployment: wanted.clone() };
        if context.loader.request(request) {
            self.load = Load::Loading(wanted.clone());
            if self.running.is_none() {
                self.state = State::Starting;
                self.reason = None;
            }
        }
        None
    }

    /// Starts, swaps or stops lanes, so that they run the wanted deployment.
    fn bring_about(
        &mut self,
        context: &Context,
        wanted: &Arc<Deployment>,
        chain: &Arc<ChainPlan>,
        now_ms: TimestampMs,
    ) {
        let topics =
            match topics::ready(context.parts.log.as_ref(), wanted, context.config.bounds.creates_outputs) {
                Ok(topics) => topics,
                Err(not_ready) => return self.topics_not_ready(not_ready, now_ms),
            };
        let plan = LanePlan::new(self.identity.clone(), wanted.clone(), chain.clone(), &topics);
        let Some(plan) = plan else { return };
        let difference = self.running.as_ref().map(|running| difference(&running.plan.deployment, wanted));
        match difference {
            None if self.stopping.is_empty() => self.start_lanes(context, &plan, now_ms),
            // The old lanes have not ended yet.
            None => {}
            Some(Difference::Nothing | Difference::Swap) => self.swap(&plan),
            Some(Difference::Restart) => self.stop_running(context),
        }
    }

    fn topics_not_ready(&mut self, not_ready: NotReady, now_ms: TimestampMs) {
        self.retry_at = Some(Instant::now() + TOPICS_EVERY);
        let (reason, message) = match not_ready {
            NotReady::Missing(topics) => {
                let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
                let names = names.join(", ");
                (
                    "TopicNotFound",
                    format!("topic(s) {names} do not exist: it starts when they do (`coproc topic create`)"),
                )
            }
            NotReady::Unusable(message) => ("TopicNotUsable", message),
            NotReady::Log(error) => ("LogFailed", error.to_string()),
        };
        self.refuse(reason, message, now_ms);
        if self.running.is_none() {
            self.state = State::Pending;
        }
    }

    fn start_lanes(&mut self, context: &Context, plan: &LanePlan, now_ms: TimestampMs) {
        let name = self.identity.display_name();
        let metrics = context.metrics.of(&name);
        let lines = context.guest_logs.lines(&name, &metrics);
        // Not all of them need come back to these lanes.
        self.measured().iter().for_each(|(topic, partition)| metrics.set_lag(topic, *partition, None));
        let mut lanes = Vec::new();
        for lane in 0..plan.deployment.policies.parallelism {
            let shared: Arc<LaneShared> = Arc::default();
            let parts = LaneParts {
                clock: context.parts.clock.clone(),
                lines: lines.clone(),
                metrics: metrics.clone(),
                shared,
                stop: Arc::default(),
                low_priority: Arc::new(priority::set_low),
                seed: u64::from(lane) ^ now_ms.cast_unsigned(),
            };
            let place = LanePlace {
                log: context.parts.log.clone(),
                past: context.past.clone(),
                node: context.config.node_id,
                lane,
            };
            match LaneHandle::start(place, plan.clone(), parts) {
                Ok(handle) => lanes.push(handle),
                Err(error) => {
                    self.stopping.extend(lanes);
                    self.stopping.iter().for_each(LaneHandle::ask_to_stop);
                    self.refuse("TooManyThreads", error.to_string(), now_ms);
                    self.retry_at = Some(Instant::now() + RETRY.max);
                    return;
                }
            }
        }
        context.metrics.set_modules(&name, &modules_of(plan), true);
        tracing::info!(deployment = %self.identity, lanes = lanes.len(), generation = plan.deployment.generation, "lanes were started");
        self.last.clear();
        self.running = Some(Running { plan: plan.clone(), lanes, since: Instant::now() });
        self.state = State::Running;
        self.reason = None;
        self.settled = true;
    }

    /// A lane that ended by itself takes the others with it; then all are started again, or not.
    fn look_at_lanes(&mut self, context: &Context) {
        let Some(running) = &self.running else { return };
        let Some(ended) = running.lanes.iter().find(|lane| lane.is_over()) else { return };
        let end = ended.end();
        let now_ms = context.parts.clock.wall_ms();
        self.attempt = attempts(self.attempt, running.since.elapsed());
        self.swapping = None;
        let wait = RETRY.delay(self.attempt, 0.0);
        self.retry_at = Some(Instant::now() + wait);
        match end {
            Some(End::Refused(error)) => {
                let reason = match &error {
                    LogError::UnknownTopic(_) | LogError::UnknownPartition { .. } => "TopicNotFound",
                    LogError::OffsetOutOfRange { .. } => "OffsetOutOfRange",
                    LogError::GroupInUse { .. } => "GroupInUse",
                    LogError::Refused(_) => "Refused",
                    _ => "LogRefused",
                };
                self.stop_running(context);
                self.refuse(reason, error.to_string(), now_ms);
                if reason == "TopicNotFound" {
                    self.state = State::Pending;
                }
            }
            Some(End::Fenced(error)) => {
                self.stop_running(context);
                self.refuse("SlotConflict", error.to_string(), now_ms);
                self.retry_at = Some(Instant::now() + RETRY.max);
            }
            Some(End::Drained) | None => {
                self.stop_running(context);
                let message = "a lane ended unexpectedly: it is started again; please report this".to_owned();
                self.refuse("LaneEnded", message, now_ms);
            }
        }
        self.settled = false;
    }

    fn stop_running(&mut self, context: &Context) {
        self.swapping = None;
        self.note_committed();
        if let Some(running) = self.running.take() {
            running.lanes.iter().for_each(LaneHandle::ask_to_stop);
            let name = self.identity.display_name();
            context.metrics.set_modules(&name, &modules_of(&running.plan), false);
            let reports = running.lanes.iter().map(|lane| lane.shared.report());
            let partitions = reports.flat_map(|report| report.partitions.into_keys());
            self.had.extend(partitions.map(|at| (at.topic.to_string(), at.partition)));
            self.last = running.lanes.iter().map(|lane| lane.shared.clone()).collect();
            self.stopping.extend(running.lanes);
        }
    }

    /// Tells all lanes to end, without waiting.
    pub fn ask_lanes_to_stop(&self) {
        let lanes = self.running.iter().flat_map(|running| &running.lanes).chain(&self.stopping);
        lanes.for_each(LaneHandle::ask_to_stop);
    }

    /// Waits for all lanes until the deadline: whether all ended.
    pub fn stop_lanes_by(&mut self, deadline: Instant) -> bool {
        self.note_committed();
        if let Some(running) = self.running.take() {
            self.last = running.lanes.iter().map(|lane| lane.shared.clone()).collect();
            self.stopping.extend(running.lanes);
        }
        let lanes = std::mem::take(&mut self.stopping);
        self.state = if self.wanted().is_some() { State::Pending } else { self.state };
        // Every lane is waited for, so no short circuit.
        lanes.into_iter().fold(true, |all, lane| lane.stop_by(deadline) & all)
    }
}

/// The number of failures in a row, with the one of lanes that had run for so long.
fn attempts(before: u32, ran: Duration) -> u32 {
    // Long enough for the longest wait to be none of this failure's: it is a new one.
    if ran >= RETRY.max { 1 } else { before.saturating_add(1) }
}

fn modules_of(plan: &LanePlan) -> Vec<(String, String)> {
    plan.chain.steps.iter().map(|step| (step.name.clone(), step.program.digest().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(digit: char) -> Arc<Deployment> {
        let digest = digit.to_string().repeat(64);
        let json = format!(
            r#"{{"schema":"1.0","generation":1,"owner":"cli",
                "source":{{"type":"Kafka","kafka":{{"topics":["in"]}}}},
                "steps":[{{"name":"main","module":{{"digest":"sha256:{digest}"}}}}],
                "sinks":[{{"type":"Kafka","kafka":{{"topic":"out"}}}}]}}"#
        );
        Arc::new(serde_json::from_str(&json).unwrap())
    }

    fn chain() -> Arc<ChainPlan> {
        Arc::new(ChainPlan { name: "a".into(), steps: Vec::new(), outputs: Vec::new() })
    }

    fn entry() -> Entry {
        Entry::new("default/_cli/coprocessor/a".parse().unwrap())
    }

    /// Sets what is desired, as the supervisor does, and says that the loader was asked for it.
    fn ask(entry: &mut Entry, deployment: &Arc<Deployment>) {
        entry.desire(Some(Desired::Deployment(Box::new((**deployment).clone()))), 0);
        entry.load = Load::Loading(deployment.clone());
    }

    #[test]
    fn what_was_loaded_for_an_earlier_life_is_not_run_in_a_later_one() {
        let (old, new) = (deployment('0'), deployment('1'));
        assert_eq!(old.generation, new.generation);
        let mut entry = entry();
        ask(&mut entry, &old);
        entry.desire(None, 0);
        ask(&mut entry, &new);
        entry.loaded(old, Ok(chain()), 0);
        assert!(matches!(&entry.load, Load::Loading(asked) if *asked == new));
        entry.loaded(new.clone(), Ok(chain()), 0);
        assert!(matches!(&entry.load, Load::Ready(of, _) if *of == new));
    }

    #[test]
    fn an_invalid_update_leaves_what_is_to_be_done_as_it_is() {
        let mut entry = entry();
        ask(&mut entry, &deployment('0'));
        let at = Instant::now();
        (entry.retry_at, entry.attempt) = (Some(at), 3);
        let mut invalid = (*deployment('1')).clone();
        invalid.policies.parallelism = 0;
        entry.desire(Some(Desired::Deployment(Box::new(invalid))), 0);
        assert_eq!((entry.retry_at, entry.attempt, entry.settled), (Some(at), 3, false));
        assert_eq!(entry.wanted(), Some(&deployment('0')));
        ask(&mut entry, &deployment('2'));
        assert_eq!((entry.retry_at, entry.attempt), (None, 0));
    }

    #[test]
    fn waits_grow_with_failures_in_a_row_only() {
        assert_eq!(attempts(0, Duration::ZERO), 1);
        assert_eq!(attempts(7, Duration::from_secs(1)), 8);
        assert_eq!(attempts(7, RETRY.max), 1);
        let mut entry = entry();
        ask(&mut entry, &deployment('0'));
        entry.attempt = 5;
        entry.loaded(deployment('0'), Ok(chain()), 0);
        assert_eq!(entry.attempt, 0);
    }

    #[test]
    fn what_comes_after_a_removal_is_not_kept() {
        let mut entry = entry();
        ask(&mut entry, &deployment('0'));
        entry.desire(None, 0);
        entry.loaded(deployment('0'), Ok(chain()), 0);
        assert!(matches!(entry.load, Load::Idle));
    }
}
