//! `coproc operator`: the control plane in Kubernetes.

#[cfg(all(feature = "kafka", feature = "oci"))]
mod brokers;
#[cfg(all(feature = "kafka", feature = "oci"))]
mod images;
#[cfg(all(feature = "kafka", feature = "oci"))]
mod secret_files;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::crds;
use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::operator::context::World;
use crate::operator::{Options, Scope};

/// Run the operator: pools, coprocessors and pipelines of Kubernetes become pods and deployments
///
/// Several may run; one leads, the others wait to take over. What it needs of the cluster is in the chart's Role.
#[derive(Debug, Args)]
pub struct Command {
    /// Watch this namespace only; the whole cluster unless given
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Namespace of the Lease; without it there is no election, and only one operator may run
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Image of the nodes of pools that name none
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Name of this process: its pod's
    #[arg(long, env = "COPROC_INSTANCE", default_value = "coproc-operator", hide_env_values = true)]
    instance: String,
    /// Address of metrics and probes
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where secrets of pools are put that clients read from files; best in memory [default: below the temporary directory]
    #[arg(long, value_name = "DIRECTORY")]
    secrets_dir: Option<PathBuf>,
    /// Where modules are kept that were looked at [default: below the temporary directory]
    #[arg(long, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// What is logged: a level, or rules like `info,coproc::operator=debug`
    #[arg(long, value_name = "FILTER", env = "COPROC_LOG", default_value = "info", hide_env_values = true)]
    log_filter: String,
}

impl Command {
    /// Runs it until it is told to stop, or another operator leads.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log_filter)
            .map_err(|error| coded(Exit::Usage, format!("--log-filter: {error}")))?;
        tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
        let options = Options {
            installation: target.installation.clone(),
            scope: self.namespace.clone().map_or(Scope::Cluster, Scope::Namespace),
            lease_namespace: self.lease_namespace.clone(),
            instance: self.instance.clone(),
            default_image: self.image.clone(),
            http: self.http,
        };
        let world = world(self)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let ended = runtime.block_on(async {
            let client = crds::client().await?;
            let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
            let stop = async move {
                tokio::select! {
                    _ = terminated.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
            };
            Ok::<_, anyhow::Error>(crate::operator::run(client, options, world, stop).await?)
        });
        // A call to a log or a registry that hangs must not keep the process.
        runtime.shutdown_background();
        ended
    }
}

/// The adapters of this build.
#[cfg(all(feature = "kafka", feature = "oci"))]
fn world(command: &Command) -> anyhow::Result<World> {
    use std::sync::Arc;

    use crate::telemetry::clock::SystemClock;

    let clock = Arc::new(SystemClock::default());
    let parent = command.secrets_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("coproc-operator"));
    let files =
        Arc::new(secret_files::SecretFiles::below(&parent).with_context(|| {
            format!("cannot keep secrets below {}: give --secrets-dir", parent.display())
        })?);
    let cache_dir = command.cache_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("coproc-modules"));
    Ok(World {
        logs: Arc::new(brokers::Brokers::new(files.clone())),
        modules: Arc::new(images::Images::new(files, cache_dir, clock.clone())),
        clock,
    })
}

#[cfg(not(all(feature = "kafka", feature = "oci")))]
fn world(_: &Command) -> anyhow::Result<World> {
    Err(coded(
        Exit::Usage,
        "this build has no client of Kafka and of registries: build it with both features",
    ))
}
