//! A node in this process, from its adapters to its signals: what `dev` and `node` share.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::drop_folder::DropFolder;
use crate::cli::engine;
use crate::cli::exit::{Exit, coded};
use crate::cli::open::{self, Place};
use crate::control::modules::{Stores, TopicStore};
use crate::core::names::{Installation, NodeId, PoolName};
use crate::core::units::Span;
use crate::log::Durability;
use crate::node::bounds::Bounds;
use crate::node::threads::{self, Stoppable};
use crate::node::{Node, NodeConfig, NodeParts};
use crate::ports::ModuleStore;
use crate::telemetry::clock::SystemClock;

/// A node, as meant.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its id.
    pub node_id: NodeId,
    /// Its pool.
    pub pool: PoolName,
    /// Its installation.
    pub installation: Installation,
    /// The log that it runs on.
    pub place: Place,
    /// Where it keeps compiled code and modules.
    pub dir: PathBuf,
    /// What an acknowledged commit survives.
    pub durability: DurabilityArg,
    /// Where metrics and probes are served.
    pub http: Option<SocketAddr>,
    /// Most lanes at once.
    pub max_lanes: usize,
    /// The longest that lanes may take to end.
    pub drain: Span,
    /// The schema registry's address.
    pub schema_registry: Option<String>,
    /// What is logged.
    pub log_filter: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Tells one life of the node from the next; random where it is not given.
    pub incarnation: Option<String>,
    /// Whose deployments it runs, and what they may bind.
    pub bounds: Bounds,
    /// Where modules may be dropped.
    pub drop_folder: Option<PathBuf>,
    /// How registries are reached.
    #[cfg(feature = "oci")]
    pub registry: crate::oci::RawOciConfig,
}

/// What an acknowledged commit survives. Other commands that open the log themselves always sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityArg {
    /// A power cut: each group of commits waits for the disk
    #[default]
    Fsync,
    /// The death of the process, not a power cut: what was committed last may be lost with the power, whole commits
    /// at a time. A lone caller commits 12 to 150 times as often, the slower the disk the more
    Flush,
}

impl From<DurabilityArg> for Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Fsync => Self::Fsync,
            DurabilityArg::Flush => Self::Flush,
        }
    }
}

/// How the node's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HttpArg(pub Option<SocketAddr>);

impl Default for HttpArg {
    fn default() -> Self {
        Self(Some(SocketAddr::from(([127, 0, 0, 1], 9464))))
    }
}

impl FromStr for HttpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse();
        address
            .map(|address| Self(Some(address)))
            .map_err(|_| format!("{text:?} is neither an address like 127.0.0.1:9464 nor off"))
    }
}

impl TryFrom<String> for HttpArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Lanes that fit into half of the memory, at a MiB each, as far as the machine says how much there is.
pub fn default_max_lanes() -> usize {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    });
    let bytes = limit.into_iter().chain(total).min().unwrap_or(1 << 30);
    usize::try_from((bytes / 2) >> 20).unwrap_or(usize::MAX).clamp(16, 10_000)
}

/// Runs a node until a signal tells it to stop.
pub fn run(config: Config) -> anyhow::Result<()> {
    start_logging(&config)?;
    let (signals, _listener) = listen()?;
    // Dropped last: the status of the end is still written, and other commands are served until then.
    let served = open::serve(&config.place, config.durability.into())?;
    let log = served.log.clone();
    let engine = engine::new(Some(config.dir.join("cache")), config.schema_registry.as_deref())?;
    let parts = NodeParts {
        modules: modules(&config, TopicStore::new(log.clone()))?,
        log: log.clone(),
        engine,
        clock: Arc::new(SystemClock::default()),
    };
    let (id, on) = (config.node_id, log.capabilities().description);
    let (installation, pool) = (config.installation.clone(), config.pool.clone());
    let drop_folder = config.drop_folder.clone();
    let node = Node::start(node_config(config), parts)?;
    let watch = |folder| DropFolder::start(folder, log, installation, pool);
    let _drop_folder = drop_folder.map(watch).transpose()?;
    let http = node.http_address().map_or_else(String::new, |at| format!(", metrics at http://{at}/metrics"));
    tracing::info!(node = %id, "node {id} runs on {on}{http}");
    while signals.load(Ordering::Relaxed) == 0 {
        if node.has_failed() {
            return Err(coded(
                Exit::Failed,
                "the node's main thread ended by itself: this is a bug, please report it",
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tracing::info!("stopping: what is done is being committed; a second signal ends it at once");
    if node.stop() {
        tracing::info!("stopped");
        Ok(())
    } else {
        Err(coded(
            Exit::Failed,
            "not everything ended in time: what was not committed is done again at the next start",
        ))
    }
}

/// Modules with an image come from registries, through a cache below the node's directory.
#[cfg(feature = "oci")]
fn modules(config: &Config, topic: TopicStore) -> anyhow::Result<Arc<dyn ModuleStore>> {
    let mut raw = config.registry.clone();
    if raw.cache_dir.as_os_str().is_empty() {
        raw.cache_dir = config.dir.join("modules");
    }
    let must_be_signed = raw.verification.is_some();
    let registry = crate::oci::OciStore::open(crate::oci::OciConfig::read(&raw)?)?;
    Ok(Arc::new(Stores::new(topic, Some(Arc::new(registry)), must_be_signed)))
}

#[cfg(not(feature = "oci"))]
#[expect(clippy::unnecessary_wraps, reason = "with registries it can fail")]
fn modules(_: &Config, topic: TopicStore) -> anyhow::Result<Arc<dyn ModuleStore>> {
    Ok(Arc::new(Stores::new(topic, None, false)))
}

fn node_config(config: Config) -> NodeConfig {
    NodeConfig {
        node_id: config.node_id,
        pool: config.pool,
        installation: config.installation,
        max_lanes: config.max_lanes,
        http: config.http,
        incarnation: config.incarnation.unwrap_or_else(incarnation),
        bounds: config.bounds,
        drain: config.drain.duration(),
    }
}

/// A random word: std seeds its hashers from the system.
fn incarnation() -> String {
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    format!("{:016x}", hasher.finish())
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    // The storage engine tells of every file that it opens. A lane closes its consumer itself, within a bound, and the
    // destructor of the library's consumer then calls it an error that it is closed already. What the user writes comes
    // after, and counts.
    let quiet = "fjall=warn,lsm_tree=warn,rdkafka::consumer::base_consumer=off";
    let filter = EnvFilter::try_new(format!("{quiet},{}", config.log_filter))
        .map_err(|error| coded(Exit::Usage, format!("the log filter {:?}: {error}", config.log_filter)))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let started = match config.log_format {
        LogFormat::Text => subscriber.with_ansi(is_terminal).with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| coded(Exit::Failed, format!("logging cannot be started: {error}")))
}

/// Counts SIGINT and SIGTERM; the second one ends the process at once.
fn listen() -> anyhow::Result<(Arc<AtomicU32>, Stoppable)> {
    let count: Arc<AtomicU32> = Arc::default();
    let counted = count.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot listen to signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("cannot listen to signals");
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    let thread = threads::spawn("coproc-signal", move |stop| {
        runtime.block_on(async {
            while !stop.load(Ordering::Relaxed) {
                tokio::select! {
                    // Signals first: they must not wait for the tick that looks at the flag.
                    biased;
                    _ = interrupt.recv() => counted.fetch_add(1, Ordering::Relaxed),
                    _ = terminate.recv() => counted.fetch_add(1, Ordering::Relaxed),
                    () = tokio::time::sleep(Duration::from_millis(200)) => 0,
                };
                if counted.load(Ordering::Relaxed) > 1 {
                    tracing::warn!("ended at once: what was not committed is done again at the next start");
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok((count, thread))
}
