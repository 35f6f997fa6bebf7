//! One deployment on this node: what is desired, what is loaded, what runs, and the next step between them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use crate::control::desired::Desired;
use crate::core::deployment::{Delivery, Deployment};
use crate::core::names::{Identity, TopicName};
use crate::core::record::TimestampMs;
use crate::core::retry::RetrySchedule;
use crate::core::status::{DeploymentStatus, LastError, PartitionStatus, State};
use crate::node::chain::StepFailure;
use crate::node::lane::report::LaneShared;
use crate::node::lane::{Command, End, LaneParts};
use crate::node::lane_thread::LaneHandle;
use crate::node::loader::{LoadError, Request};
use crate::node::plan::{ChainPlan, Difference, LanePlan, difference};
use crate::node::priority;
use crate::node::supervisor::Context;
use crate::node::supervisor::topics::{self, NotReady};
use crate::ports::LogError;

/// The waits before a deployment that could not start is tried again.
const RETRY: RetrySchedule =
    RetrySchedule { initial: Duration::from_millis(500), max: Duration::from_secs(30) };
/// Missing topics are looked for at least this often.
const TOPICS_EVERY: Duration = Duration::from_secs(1);

/// How far the modules are.
enum Load {
    /// Nobody has asked.
    Idle,
    /// The loader has them.
    Loading { generation: u64 },
    /// They can be started.
    Ready { generation: u64, chain: Arc<ChainPlan> },
    /// They cannot be used; tried again at a time, if that may help.
    Failed { generation: u64, retry_at: Option<Instant> },
}

/// Lanes that run one deployment.
struct Running {
    deployment: Arc<Deployment>,
    lanes: Vec<LaneHandle>,
    modules: Vec<(String, String)>,
}

/// Lanes that were told to swap.
struct Swapping {
    deployment: Arc<Deployment>,
    modules: Vec<(String, String)>,
    replies: Vec<Reply>,
}

/// A lane's answer to a swap.
enum Reply {
    Awaited(Receiver<Result<(), StepFailure>>),
    Given(Result<(), StepFailure>),
}

impl Reply {
    /// Whether the lane has answered. One that ended without an answer is seen to elsewhere.
    fn is_given(&mut self) -> bool {
        if let Self::Awaited(reply) = self {
            match reply.try_recv() {
                Ok(given) => *self = Self::Given(given),
                Err(TryRecvError::Disconnected) => *self = Self::Given(Ok(())),
                Err(TryRecvError::Empty) => return false,
            }
        }
        true
    }
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
    /// Every partition that lanes of it had: what metrics may know.
    had: BTreeSet<(String, u32)>,
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
            had: BTreeSet::new(),
            state: State::Pending,
            reason: None,
            last_error: None,
            attempt: 0,
            retry_at: None,
            settled: false,
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

    /// Whether lanes are to be started next.
    pub fn is_to_start(&self) -> bool {
        self.running.is_none() && self.wanted().is_some()
    }

    /// Whether nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.desired.is_none() && self.running.is_none() && self.stopping.is_empty()
    }

    /// Forgets what metrics say of it. Once no lane is left that could say it again.
    pub fn forget_metrics(&self, context: &Context) {
        let had: Vec<_> = self.had.iter().cloned().collect();
        context.metrics.forget(&self.identity.display_name(), &had);
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

    /// Whether a lane has news for the status.
    pub fn take_changed(&self) -> bool {
        let lanes = self.running.iter().flat_map(|running| &running.lanes).chain(&self.stopping);
        // Every flag is taken, so no short circuit.
        lanes.fold(false, |changed, lane| lane.shared.take_changed() | changed)
    }

    /// This is desired from now on.
    pub fn desire(&mut self, desired: Option<Desired>, now_ms: TimestampMs) {
        self.settled = false;
        self.attempt = 0;
        self.retry_at = None;
        match &desired {
            Some(Desired::Deployment(deployment)) => {
                let problems = deployment.problems();
                match problems.first() {
                    // What runs goes on as it is.
                    Some(first) => {
                        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                        self.refuse(first.reason, all.join("; "), now_ms);
                    }
                    None => self.wanted = Some(Arc::new((**deployment).clone())),
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
                // Generations start anew after a removal: what was loaded belongs to the life that ends.
                self.wanted = None;
                self.load = Load::Idle;
            }
        }
        self.desired = desired;
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

    /// The loader is done.
    pub fn loaded(&mut self, generation: u64, chain: Result<Arc<ChainPlan>, LoadError>, now_ms: TimestampMs) {
        if self.wanted.as_ref().is_none_or(|wanted| wanted.generation != generation) {
            return;
        }
        self.settled = false;
        match chain {
            Ok(chain) => self.load = Load::Ready { generation, chain },
            Err(error) => {
                let can_pass = error.disposition() != crate::core::disposition::Disposition::User;
                self.attempt += 1;
                let retry_at = can_pass.then(|| Instant::now() + RETRY.delay(self.attempt, 0.0));
                self.load = Load::Failed { generation, retry_at };
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
        if self.running.as_ref().is_some_and(|running| *running.deployment == *wanted) {
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

    /// The chain of the wanted generation, once it is loaded.
    fn chain_for(&mut self, wanted: &Arc<Deployment>, context: &Context) -> Option<Arc<ChainPlan>> {
        match &self.load {
            Load::Ready { generation, chain } if *generation == wanted.generation => {
                return Some(chain.clone());
            }
            Load::Loading { generation } if *generation == wanted.generation => return None,
            Load::Failed { generation, retry_at }
                if *generation == wanted.generation && retry_at.is_none_or(|at| at > Instant::now()) =>
            {
                self.settled = true;
                return None;
            }
            _ => {}
        }
        let request = Request { identity: self.identity.clone(), deployment: wanted.clone() };
        if context.loader.request(request) {
            self.load = Load::Loading { generation: wanted.generation };
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
        let difference = self.running.as_ref().map(|running| difference(&running.deployment, wanted));
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
        let delivery = match plan.deployment.policies.delivery {
            Delivery::AtLeastOnce => "at_least_once",
            Delivery::Auto if context.parts.log.capabilities().no_transactions.is_some() => "at_least_once",
            Delivery::Auto | Delivery::ExactlyOnce => "exactly_once",
        };
        let mut lanes = Vec::new();
        for lane in 0..plan.deployment.policies.parallelism {
            let shared: Arc<LaneShared> = Arc::default();
            shared.change(|report| report.delivery = Some(delivery));
            let parts = LaneParts {
                clock: context.parts.clock.clone(),
                lines: lines.clone(),
                metrics: metrics.clone(),
                shared,
                stop: Arc::default(),
                low_priority: Arc::new(priority::set_low),
                seed: u64::from(lane) ^ now_ms.cast_unsigned(),
            };
            let log = context.parts.log.clone();
            match LaneHandle::start(log, plan.clone(), context.config.node_id, lane, parts) {
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
        let modules = modules_of(plan);
        context.metrics.set_modules(&name, &modules, true);
        tracing::info!(deployment = %self.identity, lanes = lanes.len(), generation = plan.deployment.generation, "lanes were started");
        self.running = Some(Running { deployment: plan.deployment.clone(), lanes, modules });
        self.state = State::Running;
        self.reason = None;
        self.settled = true;
    }

    fn swap(&mut self, plan: &LanePlan) {
        let Some(running) = &self.running else { return };
        let tell = |lane: &LaneHandle| {
            let (reply, told) = crossbeam_channel::bounded(1);
            // A lane that ended has closed its mailbox; `look_at_lanes` sees to it.
            let _ = lane.commands.try_send(Command::Swap { plan: Box::new(plan.clone()), reply });
            Reply::Awaited(told)
        };
        let replies = running.lanes.iter().map(tell).collect();
        self.swapping =
            Some(Swapping { deployment: plan.deployment.clone(), modules: modules_of(plan), replies });
    }

    fn look_at_swap(&mut self, context: &Context) {
        let Some(swapping) = &mut self.swapping else { return };
        // Every lane is asked, so no short circuit.
        if !swapping.replies.iter_mut().fold(true, |all, reply| reply.is_given() & all) {
            return;
        }
        let Some(Swapping { deployment, modules, replies }) = self.swapping.take() else { return };
        let failure = replies.into_iter().find_map(|reply| match reply {
            Reply::Given(Err(failure)) => Some(failure),
            _ => None,
        });
        let generation = deployment.generation;
        if let Some(failure) = failure {
            self.load = Load::Failed { generation, retry_at: None };
            let message =
                format!("generation {generation} does not start, the one before goes on: {failure}");
            self.refuse("GuestStartFailed", message, context.parts.clock.wall_ms());
            return;
        }
        if let Some(running) = &mut self.running {
            let name = self.identity.display_name();
            context.metrics.set_modules(&name, &running.modules, false);
            context.metrics.set_modules(&name, &modules, true);
            tracing::info!(deployment = %self.identity, generation, "the chain was swapped");
            running.deployment = deployment;
            running.modules = modules;
            self.reason = None;
            self.last_error = None;
        }
    }

    /// A lane that ended by itself takes the others with it; then all are started again, or not.
    fn look_at_lanes(&mut self, context: &Context) {
        let Some(running) = &self.running else { return };
        let Some(ended) = running.lanes.iter().find(|lane| lane.is_over()) else { return };
        let end = ended.end();
        let now_ms = context.parts.clock.wall_ms();
        self.attempt += 1;
        self.swapping = None;
        let wait = RETRY.delay(self.attempt, 0.0);
        self.retry_at = Some(Instant::now() + wait);
        match end {
            Some(End::Refused(error)) => {
                let reason = match &error {
                    LogError::UnknownTopic(_) | LogError::UnknownPartition { .. } => "TopicNotFound",
                    LogError::OffsetOutOfRange { .. } => "OffsetOutOfRange",
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
        if let Some(running) = self.running.take() {
            running.lanes.iter().for_each(LaneHandle::ask_to_stop);
            let name = self.identity.display_name();
            context.metrics.set_modules(&name, &running.modules, false);
            let reports = running.lanes.iter().map(|lane| lane.shared.report());
            let partitions = reports.flat_map(|report| report.partitions.into_keys());
            self.had.extend(partitions.map(|at| (at.topic.to_string(), at.partition)));
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
        let lanes = self.running.take().into_iter().flat_map(|running| running.lanes);
        let lanes: Vec<LaneHandle> = lanes.chain(self.stopping.drain(..)).collect();
        self.state = if self.wanted().is_some() { State::Pending } else { self.state };
        // Every lane is waited for, so no short circuit.
        lanes.into_iter().fold(true, |all, lane| lane.stop_by(deadline) & all)
    }

    fn generation(&self) -> u64 {
        match (&self.running, &self.desired) {
            (Some(running), _) => running.deployment.generation,
            (None, Some(desired)) => desired.generation(),
            (None, None) => 0,
        }
    }

    /// What the status says of it.
    pub fn status(&self) -> DeploymentStatus {
        let deployment = self.running.as_ref().map(|running| &running.deployment).or(self.wanted.as_ref());
        let described = match (&deployment, &self.desired) {
            (Some(deployment), _) => Some(deployment.as_ref()),
            (None, Some(Desired::Deployment(invalid))) => Some(invalid.as_ref()),
            _ => None,
        };
        let lanes = self.running.iter().flat_map(|running| &running.lanes);
        let reports: Vec<_> = lanes.map(|lane| lane.shared.report()).collect();
        let state = match &self.running {
            Some(_) => reports.iter().map(|report| report.state).max_by_key(|state| severity(*state)),
            None => None,
        };
        let mut partitions: Vec<PartitionStatus> = reports
            .iter()
            .flat_map(|report| report.partitions.iter().map(|(at, report)| report.to_status(at)))
            .collect();
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        let of_lanes = reports.iter().filter_map(|report| report.last_error.clone());
        let last_error = of_lanes.chain(self.last_error.clone()).max_by_key(|error| error.time);
        DeploymentStatus {
            identity: self.identity.clone(),
            input_topics: described.map(|found| found.inputs().to_vec()).unwrap_or_default(),
            description: described.map(|found| found.description.clone()).unwrap_or_default(),
            state: state.unwrap_or(self.state),
            reason: self.reason.clone(),
            generation: self.generation(),
            digest: described.and_then(|found| found.steps.first()).map(|step| step.module.digest),
            delivery: reports.iter().find_map(|report| report.delivery).map(str::to_owned),
            partitions,
            last_error,
            truncated: false,
        }
    }
}

/// Which of several lanes' states stands for all.
fn severity(state: State) -> u8 {
    match state {
        State::Failed => 5,
        State::Retrying => 4,
        State::Starting => 3,
        State::Pending => 2,
        _ => 1,
    }
}

fn modules_of(plan: &LanePlan) -> Vec<(String, String)> {
    plan.chain.steps.iter().map(|step| (step.name.clone(), step.program.digest().to_string())).collect()
}
