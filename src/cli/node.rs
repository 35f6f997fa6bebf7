//! `coproc node`: a node as a service runs it, configured by a file.
//!
//! Two types: `RawConfig` is what may be written, nothing unknown allowed; `runtime::Config` is what it means.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::cli::runtime::{self, Config, HttpArg, LogFormat};
use crate::core::names::{Installation, NodeId, PoolName};
use crate::core::units::Span;

/// Longest time that lanes may take to end: a node stops within ten seconds.
const MAX_DRAIN: Span = Span::from_ms(8_000);

/// Run a node as a service
///
/// The file is YAML: nodeId, pool, installation, dir, http (an address, or off), maxLanes, drain,
/// schemaRegistry, logFilter, logFormat (text or json), dropFolder. SIGTERM stops the node in good order, a second one at
/// once.
#[derive(Debug, Args)]
pub struct Command {
    /// The configuration
    #[arg(short, long, value_name = "node.yaml", env = "COPROC_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Id of the node, 0 to 999 for one that is started by hand; required here or in the file
    #[arg(long, env = "COPROC_NODE_ID", hide_env_values = true, value_parser = clap::value_parser!(u32).range(..1000))]
    node_id: Option<u32>,
    /// Address of metrics and probes, or off
    #[arg(long, value_name = "ADDRESS")]
    http: Option<HttpArg>,
    /// What is logged: a level, or rules like `info,coproc::node=debug`
    #[arg(long, value_name = "FILTER", env = "COPROC_LOG", hide_env_values = true)]
    log_filter: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawConfig {
    node_id: Option<u32>,
    pool: Option<PoolName>,
    installation: Option<Installation>,
    dir: Option<PathBuf>,
    http: Option<HttpArg>,
    max_lanes: Option<usize>,
    drain: Option<Span>,
    schema_registry: Option<String>,
    log_filter: Option<String>,
    log_format: Option<LogFormat>,
    drop_folder: Option<PathBuf>,
    #[cfg(feature = "oci")]
    registry: Option<crate::oci::RawOciConfig>,
}

impl Command {
    /// Runs it until it is told to stop.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let raw = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        runtime::run(self.mean(raw, target)?)
    }

    /// Flags before the file, the file before defaults.
    fn mean(&self, raw: RawConfig, target: &Target) -> anyhow::Result<Config> {
        let usage = |message: &str| coded(Exit::Usage, message);
        let id = self.node_id.or(raw.node_id);
        let id =
            id.ok_or_else(|| usage("a node needs an id: give --node-id, or nodeId in the configuration"))?;
        let drain = raw.drain.unwrap_or(MAX_DRAIN);
        if drain > MAX_DRAIN || drain.0 == 0 {
            return Err(usage(&format!(
                "drain {drain} is not between 1ms and {MAX_DRAIN}: a node stops within 10s"
            )));
        }
        let max_lanes = raw.max_lanes.unwrap_or_else(runtime::default_max_lanes);
        if max_lanes == 0 {
            return Err(usage("maxLanes is 0: the node could run nothing"));
        }
        let http = self.http.or(raw.http).unwrap_or_default();
        Ok(Config {
            node_id: NodeId(id),
            pool: raw.pool.unwrap_or_else(|| target.pool.clone()),
            installation: raw.installation.unwrap_or_else(|| target.installation.clone()),
            dir: raw.dir.unwrap_or_else(|| target.dir.clone()),
            http: http.0,
            max_lanes,
            drain,
            schema_registry: raw.schema_registry,
            log_filter: self.log_filter.clone().or(raw.log_filter).unwrap_or_else(|| "info".into()),
            log_format: raw.log_format.unwrap_or(LogFormat::Json),
            drop_folder: raw.drop_folder,
            #[cfg(feature = "oci")]
            registry: raw.registry.unwrap_or_default(),
        })
    }
}

fn read(path: &Path) -> anyhow::Result<RawConfig> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| coded(Exit::NotFound, format!("cannot read {}: {error}", path.display())))?;
    if text.trim().is_empty() {
        return Ok(RawConfig::default());
    }
    serde_yaml::from_str(&text)
        .map_err(|error| coded(Exit::Usage, error.to_string()))
        .with_context(|| format!("{} is not as it has to be", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn mean(args: &[&str], yaml: &str) -> Result<Config, String> {
        #[derive(Parser)]
        struct Both {
            #[command(flatten)]
            target: Target,
            #[command(flatten)]
            command: Command,
        }
        let both = Both::try_parse_from([&["node"], args].concat()).map_err(|error| error.to_string())?;
        let raw = serde_yaml::from_str(yaml).map_err(|error| error.to_string())?;
        both.command.mean(raw, &both.target).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let config =
            mean(&["--node-id", "7", "--pool", "a"], "{nodeId: 5, pool: b, http: 'off', drain: 1s}").unwrap();
        assert_eq!((config.node_id, config.pool.as_str(), config.http), (NodeId(7), "b", None));
        assert_eq!(config.drain, Span::from_ms(1_000));
        let config = mean(&["--http", "0.0.0.0:1"], "{nodeId: 5}").unwrap();
        assert_eq!(config.http, Some(([0, 0, 0, 0], 1).into()));
        // Ids from 1000 on are the operator's, which writes them into the file.
        assert_eq!(mean(&[], "{nodeId: 5000}").unwrap().node_id, NodeId(5000));
        assert!(mean(&["--node-id", "5000"], "{}").unwrap_err().contains("5000 is not in 0..1000"));
        assert_eq!(mean(&[], "{nodeId: 1}").unwrap().http, Some(([127, 0, 0, 1], 9464).into()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (yaml, says) in [
            ("{}", "a node needs an id"),
            ("{nodeId: 1, nodeid: 2}", "unknown field `nodeid`"),
            ("{nodeId: 1, drain: 20s}", "not between"),
            ("{nodeId: 1, maxLanes: 0}", "maxLanes is 0"),
            ("{nodeId: 1, http: here}", "neither an address"),
            ("{nodeId: 1, pool: A}", "has the character"),
        ] {
            let error = mean(&[], yaml).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
    }
}
