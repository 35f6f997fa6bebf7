//! `coproc node`: a node as a service runs it, configured by a file.
//!
//! Two types: `RawConfig` is what may be written, nothing unknown allowed; `runtime::Config` is what it means.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::{Place, Target};
use crate::cli::runtime::{self, Config, DurabilityArg, HttpArg, LogFormat};
use crate::core::names::{Installation, Namespace, NodeId, PoolName};
use crate::core::units::Span;
use crate::node::bounds::Bounds;

/// Longest time that lanes may take to end: a node stops within ten seconds.
const MAX_DRAIN: Span = Span::from_ms(8_000);
/// Node ids of one block.
const BLOCK: u32 = 1000;

/// Run a node as a service
///
/// The file is YAML: nodeId, or nodeIdBase for one of several with --index; pool, installation, namespace, topics
/// (inputs, outputs: prefixes of what may be bound; create: whether missing outputs are made), dir, kafka
/// (bootstrapServers, tls, sasl, assignor, staticMembership, config; the embedded log without it), durability (of the
/// embedded log; fsync, or flush: commits survive the death of the process but not a power cut), registry, http (an
/// address, or off), maxLanes, drain,
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
    /// Which of several nodes with one configuration it is: its id is nodeIdBase plus this
    #[arg(long, value_name = "NUMBER", env = "COPROC_POD_INDEX", hide_env_values = true)]
    index: Option<u32>,
    /// Tells this life of the node from the next one: the uid of its pod; a random word unless given
    #[arg(long, value_name = "WORD", env = "COPROC_INCARNATION", hide_env_values = true)]
    incarnation: Option<String>,
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
    node_id_base: Option<u32>,
    pool: Option<PoolName>,
    installation: Option<Installation>,
    namespace: Option<Namespace>,
    topics: RawTopics,
    dir: Option<PathBuf>,
    durability: Option<DurabilityArg>,
    http: Option<HttpArg>,
    max_lanes: Option<usize>,
    drain: Option<Span>,
    schema_registry: Option<String>,
    log_filter: Option<String>,
    log_format: Option<LogFormat>,
    drop_folder: Option<PathBuf>,
    #[cfg(feature = "oci")]
    registry: Option<crate::oci::RawOciConfig>,
    #[cfg(feature = "kafka")]
    kafka: Option<crate::kafka::RawKafkaConfig>,
}

impl RawConfig {
    /// The cluster, where one is named; the directory otherwise.
    #[cfg_attr(
        not(feature = "kafka"),
        expect(clippy::unused_self, reason = "only Kafka is named in the file")
    )]
    fn place(&mut self, target: &Target, dir: &Path) -> anyhow::Result<Place> {
        #[cfg(feature = "kafka")]
        if let Some(config) =
            target.kafka.config(self.kafka.take()).map_err(|bad| coded(Exit::Usage, bad.to_string()))?
        {
            return Ok(Place::Cluster(Box::new(config)));
        }
        let _ = target;
        Ok(Place::Directory(dir.to_owned()))
    }
}

/// What the pool gives out, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawTopics {
    inputs: Vec<String>,
    outputs: Vec<String>,
    create: bool,
}

impl Command {
    /// Runs it until it is told to stop.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let raw = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        runtime::run(self.mean(raw, target)?)
    }

    fn id(&self, raw: &RawConfig) -> anyhow::Result<u32> {
        let usage = |message: &str| coded(Exit::Usage, message);
        if let Some(id) = self.node_id {
            return Ok(id);
        }
        match (raw.node_id, raw.node_id_base, self.index) {
            (Some(id), None, _) => Ok(id),
            (None, Some(base), Some(index)) if index < BLOCK => Ok(base + index),
            (None, Some(_), Some(_)) => Err(usage("--index is not below 1000: a block has no more node ids")),
            (None, Some(_), None) => Err(usage("nodeIdBase needs the node's --index")),
            (Some(_), Some(_), _) => Err(usage("give nodeId or nodeIdBase, not both")),
            (None, None, _) => {
                Err(usage("a node needs an id: give --node-id, or nodeId in the configuration"))
            }
        }
    }

    /// Flags before the file, the file before defaults.
    fn mean(&self, mut raw: RawConfig, target: &Target) -> anyhow::Result<Config> {
        let usage = |message: &str| coded(Exit::Usage, message);
        let id = self.id(&raw)?;
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
        let dir = raw.dir.take().unwrap_or_else(|| target.dir.clone());
        let place = raw.place(target, &dir)?;
        Ok(Config {
            node_id: NodeId(id),
            pool: raw.pool.unwrap_or_else(|| target.pool.clone()),
            installation: raw.installation.unwrap_or_else(|| target.installation.clone()),
            place,
            dir,
            durability: raw.durability.unwrap_or_default(),
            http: http.0,
            max_lanes,
            drain,
            schema_registry: raw.schema_registry,
            log_filter: self.log_filter.clone().or(raw.log_filter).unwrap_or_else(|| "info".into()),
            log_format: raw.log_format.unwrap_or(LogFormat::Json),
            drop_folder: raw.drop_folder,
            incarnation: self.incarnation.clone(),
            bounds: Bounds {
                namespace: raw.namespace,
                inputs: raw.topics.inputs,
                outputs: raw.topics.outputs,
                creates_outputs: raw.topics.create,
            },
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
        assert_eq!(mean(&[], "{nodeId: 1}").unwrap().durability, DurabilityArg::Fsync);
        assert_eq!(mean(&[], "{nodeId: 1, durability: flush}").unwrap().durability, DurabilityArg::Flush);
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn a_named_cluster_is_the_log() {
        let brokers = |args: &[&str], yaml| match mean(args, yaml).unwrap().place {
            Place::Cluster(config) => config.bootstrap_servers.join(","),
            Place::Directory(dir) => dir.display().to_string(),
        };
        let yaml = "{nodeId: 1, dir: d, kafka: {bootstrapServers: ['a:1']}}";
        assert_eq!(brokers(&[], yaml), "a:1");
        assert_eq!(brokers(&["--brokers", "b:2,c:3"], yaml), "b:2,c:3");
        assert_eq!(brokers(&[], "{nodeId: 1, dir: d}"), "d");
    }

    #[test]
    fn nodes_of_one_configuration_have_ids_of_their_own() {
        let yaml = "{nodeIdBase: 3000, namespace: shop, topics: {outputs: [shop-], create: true}}";
        let config = mean(&["--index", "2", "--incarnation", "u-1"], yaml).unwrap();
        assert_eq!((config.node_id, config.incarnation.as_deref()), (NodeId(3002), Some("u-1")));
        let bounds = &config.bounds;
        assert_eq!((bounds.outputs.as_slice(), bounds.creates_outputs), (&["shop-".to_owned()][..], true));
        assert!(mean(&["--index", "1000"], yaml).unwrap_err().contains("not below 1000"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (yaml, says) in [
            ("{}", "a node needs an id"),
            ("{nodeId: 1, nodeid: 2}", "unknown field `nodeid`"),
            ("{nodeIdBase: 1000}", "needs the node's --index"),
            ("{nodeId: 1, nodeIdBase: 1000}", "not both"),
            ("{nodeId: 1, topics: {input: [a]}}", "unknown field `input`"),
            ("{nodeId: 1, drain: 20s}", "not between"),
            ("{nodeId: 1, maxLanes: 0}", "maxLanes is 0"),
            ("{nodeId: 1, durability: none}", "unknown variant `none`"),
            ("{nodeId: 1, http: here}", "neither an address"),
            ("{nodeId: 1, pool: A}", "has the character"),
        ] {
            let error = mean(&[], yaml).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
    }
}
