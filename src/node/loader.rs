//! Fetches, checks and compiles modules, away from lanes, and tries each chain once before a lane gets it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::core::deployment::Deployment;
use crate::core::disposition::Disposition;
use crate::core::names::{Identity, TopicName};
use crate::node::chain::{Chain, StepFailure};
use crate::node::guest_logs::NoLines;
use crate::node::plan::{ChainPlan, StepPlan, guest_limits};
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Engine, GuestLines, ModuleError, ModuleStore};
use crate::telemetry::metrics::NodeMetrics;

/// Loads that wait; a deployment has at most one.
const QUEUE: usize = 16_384;
/// Loads at once: one may wait for the network while another compiles.
const THREADS: usize = 2;

/// A chain is wanted.
pub struct Request {
    /// For which deployment.
    pub identity: Identity,
    /// As it is desired.
    pub deployment: Arc<Deployment>,
}

/// A chain is ready, or is not.
pub struct Loaded {
    /// For which deployment.
    pub identity: Identity,
    /// What was asked for: by the time of the answer something else may be desired.
    pub deployment: Arc<Deployment>,
    /// The chain.
    pub chain: Result<Arc<ChainPlan>, LoadError>,
}

/// Why a chain cannot be run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// A module cannot be had or used.
    #[error("step {step}: {error}")]
    Module {
        /// The step.
        step: String,
        /// Why.
        error: ModuleError,
    },
    /// A guest does not start.
    #[error("the guest does not start: {0}")]
    Start(StepFailure),
}

impl LoadError {
    /// A stable CamelCase word for status and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Module { error: ModuleError::NotFound { .. } | ModuleError::Unavailable(_), .. } => {
                "ModuleUnavailable"
            }
            Self::Module { error: ModuleError::WrongDigest { .. }, .. } => "WrongDigest",
            Self::Module { error: ModuleError::Unverified(_), .. } => "SignatureRejected",
            Self::Module { error: ModuleError::Refused(_), .. } => "RegistryRefused",
            Self::Module { .. } => "InvalidModule",
            Self::Start(_) => "GuestStartFailed",
        }
    }

    /// Whose fault it is.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Module { error, .. } => error.disposition(),
            Self::Start(_) => Disposition::User,
        }
    }
}

/// The loader's threads and queue.
pub struct Loader {
    queue: Sender<Request>,
    threads: Vec<Stoppable>,
    engine: Arc<dyn Engine>,
}

/// What a loader works with.
#[derive(Clone)]
pub struct LoaderParts {
    /// Where bytes come from.
    pub modules: Arc<dyn ModuleStore>,
    /// What compiles them.
    pub engine: Arc<dyn Engine>,
    /// Where times are counted.
    pub metrics: Arc<NodeMetrics>,
}

impl Loader {
    /// Starts the loader; results go to `done`.
    pub fn start(parts: &LoaderParts, done: &Sender<Loaded>) -> Result<Self, SpawnError> {
        let (queue, requests) = crossbeam_channel::bounded(QUEUE);
        let start = |i: usize| {
            let (parts, requests, done) = (parts.clone(), requests.clone(), done.clone());
            threads::spawn(format!("coproc-load-{i}"), move |stop| {
                while let Some(request) = next(&requests, stop) {
                    let timer = parts.metrics.module_load.start_timer();
                    let chain = load(&parts, &request);
                    timer.observe_duration();
                    let Request { identity, deployment } = request;
                    let loaded = Loaded { identity, deployment, chain };
                    if done.send(loaded).is_err() {
                        return;
                    }
                }
            })
        };
        let threads = (0..THREADS).map(start).collect::<Result<_, _>>()?;
        Ok(Self { queue, threads, engine: parts.engine.clone() })
    }

    /// Gives up what is under way, without waiting.
    pub fn ask_to_stop(&self) {
        self.threads.iter().for_each(Stoppable::ask);
        self.engine.stop();
    }

    /// Waits for what is under way until the deadline: what takes longer, say a registry that does not answer, is left
    /// behind.
    pub fn stop_by(self, deadline: Instant) {
        self.ask_to_stop();
        for thread in self.threads {
            thread.stop_by(deadline);
        }
    }

    /// Asks for a chain; `false` when the queue is full: ask again later.
    pub fn request(&self, request: Request) -> bool {
        self.queue.try_send(request).is_ok()
    }
}

fn next(requests: &Receiver<Request>, stop: &std::sync::atomic::AtomicBool) -> Option<Request> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match requests.recv_timeout(Duration::from_millis(200)) {
            Ok(request) => return Some(request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn load(parts: &LoaderParts, request: &Request) -> Result<Arc<ChainPlan>, LoadError> {
    let deployment = &request.deployment;
    let mut steps = Vec::with_capacity(deployment.steps.len());
    for step in &deployment.steps {
        let failed = |error| LoadError::Module { step: step.name.clone(), error };
        let digest = step.module.digest;
        let program = if let Some(program) = parts.engine.cached(digest) {
            program
        } else {
            let bytes = parts.modules.fetch(&step.module).map_err(failed)?;
            parts.engine.compile(&bytes, digest).map_err(failed)?
        };
        let limits = guest_limits(&step.limits);
        steps.push(StepPlan { name: step.name.clone(), program, env: step.env.clone(), limits });
    }
    let outputs: Vec<TopicName> = deployment.kafka_sinks().map(|sink| sink.topic.clone()).collect();
    let plan = ChainPlan { name: request.identity.display_name(), steps, outputs };
    try_out(&plan, deployment)?;
    Ok(Arc::new(plan))
}

/// Starts the chain once, and drops it: a guest that never asks for a record is found before a lane has it.
fn try_out(plan: &ChainPlan, deployment: &Deployment) -> Result<(), LoadError> {
    let lines: Arc<dyn GuestLines> = Arc::new(NoLines);
    match deployment.inputs().first() {
        Some(input) => Chain::start(plan, input, &lines).map(drop).map_err(LoadError::Start),
        None => Ok(()),
    }
}
