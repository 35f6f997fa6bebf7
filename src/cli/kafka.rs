//! How commands reach a Kafka cluster: the flags, and the connection that they mean.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::kafka::{KafkaConfig, RawKafkaConfig};
use crate::ports::LogError;

/// Flags of every command that works on a log.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Brokers of a Kafka cluster, host:port with commas between; work on it instead of the embedded log
    #[arg(
        long,
        global = true,
        env = "COPROC_BROKERS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "BROKERS"
    )]
    brokers: Vec<String>,
    /// YAML file with the connection to Kafka, as `kafka:` in node.yaml says it; --brokers comes before its brokers
    #[arg(long, global = true, env = "COPROC_KAFKA_CONFIG", hide_env_values = true, value_name = "FILE")]
    kafka_config: Option<PathBuf>,
}

impl KafkaArgs {
    /// The cluster that is meant, where one is: flags come before `written`, what a file says of the connection.
    pub fn config(&self, written: Option<RawKafkaConfig>) -> Result<Option<KafkaConfig>, LogError> {
        let written = self.kafka_config.as_deref().map(read).transpose()?.or(written);
        if written.is_none() && self.brokers.is_empty() {
            return Ok(None);
        }
        let mut raw = written.unwrap_or_default();
        if !self.brokers.is_empty() {
            raw.bootstrap_servers.clone_from(&self.brokers);
        }
        raw.validate().map(Some).map_err(|bad| LogError::BadConfig(bad.to_string()))
    }
}

fn read(path: &Path) -> Result<RawKafkaConfig, LogError> {
    let bad = |why: String| LogError::BadConfig(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(format!("cannot read it: {error}")))?;
    serde_yaml::from_str(&text).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(args: &[&str], written: Option<&str>) -> Result<Option<Vec<String>>, String> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            kafka: KafkaArgs,
        }
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|error| error.to_string())?;
        let written = written.map(|text| serde_yaml::from_str(text).unwrap());
        let config = line.kafka.config(written).map_err(|error| error.to_string())?;
        Ok(config.map(|config| config.bootstrap_servers))
    }

    #[test]
    fn flags_come_before_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kafka.yaml");
        std::fs::write(&file, "{bootstrapServers: [file:1], assignor: cooperative}").unwrap();
        let file = file.to_str().unwrap();
        let brokers = |names: &[&str]| Ok(Some(names.iter().map(ToString::to_string).collect::<Vec<_>>()));
        assert_eq!(config(&[], None), Ok(None));
        assert_eq!(config(&["--brokers", "a:1,b:2"], None), brokers(&["a:1", "b:2"]));
        assert_eq!(config(&[], Some("{bootstrapServers: [node:1]}")), brokers(&["node:1"]));
        assert_eq!(
            config(&["--kafka-config", file], Some("{bootstrapServers: [node:1]}")),
            brokers(&["file:1"])
        );
        assert_eq!(config(&["--kafka-config", file, "--brokers", "c:3"], None), brokers(&["c:3"]));
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kafka.yaml");
        std::fs::write(&file, "{bootstrapServer: [file:1]}").unwrap();
        let path = file.to_str().unwrap();
        let error = config(&["--kafka-config", path], None).unwrap_err();
        assert!(error.contains(path) && error.contains("unknown field `bootstrapServer`"), "{error}");
        std::fs::write(&file, "{}").unwrap();
        assert!(config(&["--kafka-config", path], None).unwrap_err().contains("bootstrapServers is empty"));
        assert!(
            config(&["--kafka-config", "/nowhere"], None).unwrap_err().contains("/nowhere: cannot read it")
        );
    }
}
