//! `coproc dev`: a node on the embedded log, in one process, with every default.

use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::{Place, Target};
use crate::cli::runtime::{self, Config, DurabilityArg, HttpArg, LogFormat};
use crate::core::names::NodeId;
use crate::core::units::Span;
use crate::node::bounds::Bounds;

/// Run a node on an embedded log, in this terminal
///
/// Everything is kept in the directory that --dir names. Other commands with the same --dir talk to this node
/// while it runs. Ctrl-C stops it in good order, a second Ctrl-C at once.
#[derive(Debug, Args)]
pub struct Command {
    /// Address of metrics and probes, or off
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    http: HttpArg,
    /// Id of the node
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..1000))]
    node_id: u32,
    /// What an acknowledged commit survives
    #[arg(long, value_name = "LEVEL", default_value = "fsync")]
    durability: DurabilityArg,
    /// Schema registry for guests that use one
    #[arg(long, value_name = "URL", env = "COPROC_SCHEMA_REGISTRY", hide_env_values = true)]
    schema_registry: Option<String>,
    /// Most lanes at once; from the machine's memory unless given
    #[arg(long, value_name = "COUNT")]
    max_lanes: Option<std::num::NonZeroUsize>,
    /// Folder with submit/, active/ and inactive/: a module dropped into submit/ runs; DIR/coprocessors unless
    /// given
    #[arg(long, value_name = "FOLDER")]
    drop_folder: Option<PathBuf>,
    /// What is logged: a level, or rules like `info,coproc::node=debug`
    #[arg(long, value_name = "FILTER", env = "COPROC_LOG", hide_env_values = true, default_value = "info")]
    log_filter: String,
    /// How it is logged
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[cfg(feature = "oci")]
    #[command(flatten)]
    registry: super::registry::RegistryArgs,
}

impl Command {
    /// Runs it until it is told to stop.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let Place::Directory(dir) = target.place()? else {
            let message = "dev is a node on the embedded log: `coproc node` runs one on Kafka";
            return Err(coded(Exit::Usage, message));
        };
        runtime::run(Config {
            node_id: NodeId(self.node_id),
            pool: target.pool.clone(),
            installation: target.installation.clone(),
            place: Place::Directory(dir.clone()),
            dir,
            durability: self.durability,
            http: self.http.0,
            max_lanes: self.max_lanes.map_or_else(runtime::default_max_lanes, std::num::NonZeroUsize::get),
            drain: Span::from_ms(8_000),
            schema_registry: self.schema_registry.clone(),
            log_filter: self.log_filter.clone(),
            log_format: self.log_format,
            incarnation: None,
            bounds: Bounds::default(),
            drop_folder: Some(self.drop_folder.clone().unwrap_or_else(|| target.dir.join("coprocessors"))),
            #[cfg(feature = "oci")]
            registry: self.registry.raw()?,
        })
    }
}
