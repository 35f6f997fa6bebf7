//! Which log a command talks to: the one place that chooses.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::deployments;
use crate::cli::exit::{Exit, coded};
#[cfg(feature = "kafka")]
use crate::cli::kafka::KafkaArgs;
use crate::cli::output::warn;
use crate::control::desired;
use crate::core::names::{Identity, Installation, PoolName};
use crate::core::record::TimestampMs;
#[cfg(feature = "kafka")]
use crate::kafka::{KafkaConfig, KafkaLog};
use crate::log::socket::{RemoteLog, Server, socket_path};
use crate::log::{self, Durability, EmbeddedLog, Options};
use crate::ports::{Clock, Log, LogError};
use crate::telemetry::clock::SystemClock;

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Target {
    /// Directory of the embedded log; beside a running node the command goes through its socket
    #[arg(
        long,
        global = true,
        env = "COPROC_DIR",
        hide_env_values = true,
        default_value = ".coproc",
        value_name = "DIRECTORY"
    )]
    pub dir: PathBuf,
    /// Installation whose deployments are meant
    #[arg(
        long,
        global = true,
        env = "COPROC_INSTALLATION",
        hide_env_values = true,
        default_value = "default",
        value_name = "NAME"
    )]
    pub installation: Installation,
    /// Pool of nodes that runs them
    #[arg(
        long,
        global = true,
        env = "COPROC_POOL",
        hide_env_values = true,
        default_value = "default",
        value_name = "NAME"
    )]
    pub pool: PoolName,
    #[cfg(feature = "kafka")]
    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// Where a log is.
#[derive(Debug, Clone)]
pub enum Place {
    /// The embedded log of a directory.
    Directory(PathBuf),
    /// A Kafka cluster.
    #[cfg(feature = "kafka")]
    Cluster(Box<KafkaConfig>),
}

/// How long a command waits for another one that has the store open.
const PATIENCE: Duration = Duration::from_secs(3);

impl Target {
    /// Opens the log, or connects to the node or the cluster that has it. A directory without one is somebody's
    /// mistake, and stays as it is.
    pub fn log(&self) -> anyhow::Result<Arc<dyn Log>> {
        let place = self.place()?;
        if let Place::Directory(dir) = &place
            && !log::is_there(dir)
        {
            let message = format!(
                "there is no log in {}: `coproc dev` makes one there; --dir or COPROC_DIR names another directory",
                absolute(dir).display()
            );
            return Err(coded(Exit::NotFound, message));
        }
        place.open()
    }

    /// Opens the log, and makes one where there is none: for commands that begin something.
    pub fn log_or_new(&self) -> anyhow::Result<Arc<dyn Log>> {
        let place = self.place()?;
        let new = match &place {
            Place::Directory(dir) if !log::is_there(dir) => Some(absolute(dir)),
            _ => None,
        };
        let log = place.open()?;
        if let Some(dir) = new {
            warn(&format!("a new log was made in {}", dir.display()));
        }
        Ok(log)
    }

    /// Which log the flags mean: a cluster where one is named, the directory otherwise.
    pub fn place(&self) -> Result<Place, LogError> {
        #[cfg(feature = "kafka")]
        if let Some(config) = self.kafka.config(None)? {
            return Ok(Place::Cluster(Box::new(config)));
        }
        Ok(Place::Directory(self.dir.clone()))
    }

    /// The deployment that a user means by this name.
    pub fn deployment(&self, log: &dyn Log, name: &str) -> anyhow::Result<Identity> {
        deployments::resolve(&desired::read(log)?, &self.installation, name)
    }
}

impl Place {
    fn open(self) -> anyhow::Result<Arc<dyn Log>> {
        Ok(match self {
            Self::Directory(dir) => patiently(|| log::open_or_connect(&dir, Options::default()))?,
            #[cfg(feature = "kafka")]
            Self::Cluster(config) => KafkaLog::open(*config)?,
        })
    }
}

fn absolute(dir: &Path) -> PathBuf {
    // Only the working directory can be missing: then the path as it was given says most.
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}

/// A node's log; an embedded one is served to other commands for as long as this lives.
pub struct Served {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Ends with this.
    _server: Option<Server>,
}

/// Opens the log for a node. An embedded one is served: no other node may have it open.
pub fn serve(place: &Place, durability: Durability) -> Result<Served, LogError> {
    match place {
        Place::Directory(dir) => serve_directory(dir, durability),
        #[cfg(feature = "kafka")]
        Place::Cluster(config) => Ok(Served { log: KafkaLog::connect((**config).clone())?, _server: None }),
    }
}

fn serve_directory(dir: &Path, durability: Durability) -> Result<Served, LogError> {
    let path = socket_path(dir);
    let options = Options { durability, ..Options::default() };
    let log: Arc<dyn Log> = patiently(|| {
        let opened = EmbeddedLog::open(dir, options.clone());
        match opened {
            // Somebody serves it: that is a node, and it will not go away.
            Err(LogError::Locked(locked)) if RemoteLog::connect(&path).is_ok() => Ok(Err(locked)),
            other => Ok(Ok(other?)),
        }
    })?
    .map_err(LogError::Locked)?;
    let server = Server::start(log.clone(), &path)?;
    Ok(Served { log, _server: Some(server) })
}

/// Tries again for a while where another command has the store open: it will be done soon.
fn patiently<T>(open: impl Fn() -> Result<T, LogError>) -> Result<T, LogError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open() {
            Err(LogError::Locked(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Now, in milliseconds since the Unix epoch.
pub fn now_ms() -> TimestampMs {
    SystemClock::default().wall_ms()
}
