//! Which log a command talks to: the one place that chooses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::cli::deployments;
use crate::control::desired;
use crate::core::names::{Identity, Installation, PoolName};
use crate::core::record::TimestampMs;
use crate::ports::{Clock, Log, LogError};
use crate::telemetry::clock::SystemClock;

/// What every command takes.
#[derive(Debug, Clone, Args)]
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
}

impl Target {
    /// Opens the log, or connects to the node that has it open.
    pub fn log(&self) -> Result<Arc<dyn Log>, LogError> {
        Err(LogError::Unavailable("this build has no embedded log".into()))
    }

    /// The deployment that a user means by this name.
    pub fn deployment(&self, log: &dyn Log, name: &str) -> anyhow::Result<Identity> {
        deployments::resolve(&desired::read(log)?, &self.installation, name)
    }
}

/// Opens the log for a node, which serves it to other commands: nobody else may have it open.
pub fn serve(_dir: &Path) -> Result<Arc<dyn Log>, LogError> {
    Err(LogError::Unavailable("this build has no embedded log".into()))
}

/// Now, in milliseconds since the Unix epoch.
pub fn now_ms() -> TimestampMs {
    SystemClock::default().wall_ms()
}
