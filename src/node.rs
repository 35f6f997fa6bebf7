//! The data plane: a process that runs the deployments of its pool.
//!
//! Threads and what they own: the *follower* reads the control topic; the *supervisor* makes what runs equal to what
//! is desired; *loaders* fetch and compile modules; each *lane* owns a log session and guests; the *reporter* writes
//! status; one thread each for guest logs and HTTP. All are born in `threads`. Written against `ports`: which log,
//! engine and module store are behind it is the caller's choice.

pub mod bounds;
pub mod chain;
pub mod dead_letter;
mod follower;
pub mod guest_logs;
mod http;
pub mod lane;
mod lane_thread;
mod loader;
mod past;
pub mod plan;
mod priority;
mod reporter;
mod standing;
mod supervisor;
pub mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::observed;
use crate::control::topics::OwnTopic;
use crate::core::names::{Identity, Installation, NodeId, PoolName};
use crate::core::status::Committed;
use crate::node::bounds::Bounds;
use crate::node::http::HttpServer;
use crate::node::loader::{Loader, LoaderParts};
use crate::node::past::Past;
use crate::node::reporter::Reporter;
use crate::node::standing::Standings;
use crate::node::supervisor::{Context, Inputs, Supervisor};
use crate::node::threads::{SpawnError, Stoppable};
use crate::ports::{Clock, Engine, Log, LogError, ModuleStore};
use crate::telemetry::metrics::NodeMetrics;

/// Changes of the desired state that wait for the supervisor.
const CHANGES: usize = 1_024;
/// Loaded chains that wait for the supervisor.
const LOADED: usize = 1_024;

/// What a node is told about itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its id.
    pub node_id: NodeId,
    /// Its pool.
    pub pool: PoolName,
    /// The installation that it belongs to.
    pub installation: Installation,
    /// Most lanes that it runs at once.
    pub max_lanes: usize,
    /// Where metrics and probes are served; `None` serves none.
    pub http: Option<SocketAddr>,
    /// Tells one life of the node from the next.
    pub incarnation: String,
    /// The longest that lanes may take to end.
    pub drain: Duration,
    /// Whose deployments it runs, and what they may bind.
    pub bounds: Bounds,
}

/// The adapters that a node works with.
#[derive(Clone)]
pub struct NodeParts {
    /// The log.
    pub log: Arc<dyn Log>,
    /// What compiles modules.
    pub engine: Arc<dyn Engine>,
    /// Where their bytes are.
    pub modules: Arc<dyn ModuleStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log did not do its part.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another node has the id.
    #[error("node id {id} is in use by a node of pool {pool} (seen {seconds} s ago): choose another id")]
    NodeIdInUse {
        /// The id.
        id: NodeId,
        /// The other node's pool.
        pool: String,
        /// How long ago it was seen.
        seconds: i64,
    },
    /// The HTTP server did not start.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// A thread did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Metrics of the same name: cannot happen with the names as they are.
    #[error("make metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A node that runs. Dropping it stops it, without a time limit; `stop` has one.
pub struct Node {
    http: Option<HttpServer>,
    follower: Option<Stoppable>,
    supervisor: Option<Stoppable>,
    ready: Arc<AtomicBool>,
    overdue: Arc<AtomicBool>,
    metrics: Arc<NodeMetrics>,
    drain: Duration,
}

impl Node {
    /// Starts a node: makes and checks coproc's own topics, then reads what is desired.
    pub fn start(config: NodeConfig, parts: NodeParts) -> Result<Self, Error> {
        for topic in OwnTopic::ALL {
            topic.ensure(parts.log.as_ref())?;
        }
        let earlier = look_at_earlier_life(&config, &parts)?;
        let metrics = Arc::new(NodeMetrics::new(&config.node_id.to_string(), config.pool.as_str())?);
        let (ready, overdue): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let http = config
            .http
            .map(|address| HttpServer::start(address, metrics.clone(), ready.clone()))
            .transpose()?;
        let (to_supervisor, changes) = crossbeam_channel::bounded(CHANGES);
        let (done, loaded) = crossbeam_channel::bounded(LOADED);
        let loader_parts = LoaderParts {
            modules: parts.modules.clone(),
            engine: parts.engine.clone(),
            metrics: metrics.clone(),
        };
        let loader = Loader::start(&loader_parts, &done)?;
        let guest_logs =
            guest_logs::GuestLogs::start(parts.log.clone(), config.node_id, parts.clock.clone())?;
        let EarlierLife { deployments, committed } = earlier;
        let reporter = Reporter::start(parts.log.clone(), config.node_id, deployments)?;
        let follower = follower::start(parts.log.clone(), &config, metrics.clone(), to_supervisor)?;
        let drain = config.drain;
        let past = Arc::new(Past::new(parts.log.clone()));
        let context = Context { config, parts, metrics: metrics.clone(), loader, guest_logs, past };
        let standings = Standings::start(context.parts.log.clone())?;
        let supervisor =
            Supervisor::new(context, reporter, standings, committed, ready.clone(), overdue.clone());
        let inputs = Inputs { changes, loaded };
        let supervisor = threads::spawn("coproc-super", move |stop| supervisor.run(&inputs, stop))?;
        Ok(Self {
            http,
            follower: Some(follower),
            supervisor: Some(supervisor),
            ready,
            overdue,
            metrics,
            drain,
        })
    }

    /// Where metrics and probes are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|server| server.address)
    }

    /// Whether the desired state has been read and the node is not draining.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether the node's main thread has ended by itself, which is a bug.
    pub fn has_failed(&self) -> bool {
        self.supervisor.as_ref().is_none_or(Stoppable::is_over)
    }

    /// The node's metrics.
    pub fn metrics(&self) -> &NodeMetrics {
        &self.metrics
    }

    /// Stops: lanes commit what is done and end, the status says `down`. Whether all ended in time, lanes included.
    pub fn stop(mut self) -> bool {
        let deadline = Instant::now() + self.drain + Duration::from_secs(2);
        let supervisor = self.supervisor.take().is_none_or(|thread| thread.stop_by(deadline));
        let follower = self.follower.take().is_none_or(|thread| thread.stop_by(deadline));
        supervisor && follower && !self.overdue.load(Ordering::Relaxed)
    }
}

/// What an earlier life of the node left in the status topic.
#[derive(Default)]
struct EarlierLife {
    /// The deployments that it reported on.
    deployments: BTreeSet<Identity>,
    /// What it knew to have been committed.
    committed: BTreeMap<Identity, Committed>,
}

/// What an earlier life of the node reported on. A node that sees a fresh heartbeat of another pool under
/// its id does not start.
fn look_at_earlier_life(config: &NodeConfig, parts: &NodeParts) -> Result<EarlierLife, Error> {
    let Some(state) = observed::read(parts.log.as_ref())? else { return Ok(EarlierLife::default()) };
    let now_ms = parts.clock.wall_ms();
    let committed = state.committed_on(config.node_id);
    let mut deployments: BTreeSet<Identity> = committed.keys().cloned().collect();
    for node in state.nodes().into_iter().filter(|node| node.status.node_id == config.node_id) {
        if node.status.pool != config.pool.as_str() && !node.is_unresponsive(now_ms) {
            return Err(Error::NodeIdInUse {
                id: config.node_id,
                pool: node.status.pool,
                seconds: (now_ms - node.heartbeat_ms) / 1_000,
            });
        }
        deployments.extend(node.status.coprocessors.into_values().map(|deployment| deployment.identity));
    }
    Ok(EarlierLife { deployments, committed })
}
