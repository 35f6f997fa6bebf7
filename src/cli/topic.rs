//! `coproc topic`: make, look at and remove topics.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::offsets::extents_of;
use crate::cli::open::Target;
use crate::cli::output::{FormatArgs, Table, say, warn};
use crate::control::desired::{self, Desired};
use crate::core::names::TopicName;
use crate::core::units::{ByteSize, Span};
use crate::ports::{Cleanup, Extent, Log, LogError, TopicConfig, TopicInfo};

/// Make, look at and remove topics
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create topics
    Create(CreateArgs),
    /// List topics
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a topic's configuration and how far its partitions reach
    Describe(DescribeArgs),
    /// Delete topics with all their records
    Delete(DeleteArgs),
}

/// Arguments of `topic create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC", value_parser = TopicName::from_user)]
    names: Vec<TopicName>,
    /// Number of partitions
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// What happens to old records
    #[arg(long, default_value = "delete")]
    cleanup: CleanupArg,
    /// Age at which records may go, for instance 7d; for ever unless given
    #[arg(long, value_name = "DURATION")]
    retention: Option<Span>,
    /// Size per partition at which old records may go, for instance 1Gi; no limit unless given
    #[arg(long, value_name = "SIZE")]
    retention_size: Option<ByteSize>,
    /// Largest record
    #[arg(long, value_name = "SIZE", default_value = "1Mi")]
    max_record: ByteSize,
    /// Succeed when the topic exists already, whatever its configuration
    #[arg(long)]
    if_not_exists: bool,
}

/// Clean-up policies by Kafka's names.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CleanupArg {
    /// Old records are dropped by age and size
    Delete,
    /// The last record of each key stays
    Compact,
    /// Both
    #[value(name = "compact,delete", alias = "delete,compact")]
    CompactDelete,
}

/// Arguments of `topic list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also show coproc's own topics
    #[arg(short, long)]
    internal: bool,
    #[command(flatten)]
    output: FormatArgs,
}

/// Arguments of `topic describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The topic; materialized ones also as source.$dest$
    #[arg(value_name = "TOPIC", value_parser = TopicName::from_user)]
    name: TopicName,
    #[command(flatten)]
    output: FormatArgs,
}

/// Arguments of `topic delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Names of the topics
    #[arg(required = true, value_name = "TOPIC", value_parser = TopicName::from_user)]
    names: Vec<TopicName>,
    /// Delete it even if a deployment uses it or it is one of coproc's own
    #[arg(long)]
    force: bool,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        match self {
            Self::Create(args) => args.run(target),
            Self::List(args) => list(args, target.log()?.as_ref()),
            Self::Describe(args) => describe(args, target.log()?.as_ref()),
            Self::Delete(args) => delete(args, target.log()?.as_ref()),
        }
    }
}

impl CreateArgs {
    /// Names first: what is wrong with one of them makes neither a topic nor a log.
    fn run(&self, target: &Target) -> anyhow::Result<()> {
        for name in &self.names {
            refuse_reserved(name, "made when a node first needs it, choose another name")?;
            refuse_materialized(name)?;
        }
        let log = target.log_or_new()?;
        for name in &self.names {
            match log.topics().create(name, &self.config()) {
                Ok(()) => say(&format!("topic {name} created"))?,
                Err(LogError::TopicExists(_)) if self.if_not_exists => say(&format!("topic {name} exists"))?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn config(&self) -> TopicConfig {
        TopicConfig {
            partitions: self.partitions,
            cleanup: match self.cleanup {
                CleanupArg::Delete => Cleanup::Delete,
                CleanupArg::Compact => Cleanup::Compact,
                CleanupArg::CompactDelete => Cleanup::CompactAndDelete,
            },
            retention_ms: self.retention.map(|span| span.0),
            retention_bytes: self.retention_size.map(|size| size.0),
            max_record_bytes: self.max_record.bytes(),
            materialized: false,
        }
    }
}

fn refuse_materialized(name: &TopicName) -> anyhow::Result<()> {
    let Some((source, dest)) = name.as_materialized() else { return Ok(()) };
    let message = format!(
        "{name} is the name of a materialized topic: it is made when a coprocessor that reads {source} is deployed \
         with `--output-topic {dest} --materialized`"
    );
    Err(coded(Exit::Refused, message))
}

fn refuse_reserved(name: &TopicName, instead: &str) -> anyhow::Result<()> {
    if name.is_reserved() {
        let message = format!("{name} is one of coproc's own topics: it is {instead}");
        return Err(coded(Exit::Refused, message));
    }
    Ok(())
}

#[derive(Serialize)]
struct TopicRow {
    name: TopicName,
    partitions: u32,
    cleanup: &'static str,
    /// What lies between first and end; a compacted topic holds fewer. Absent where a partition does not say it now.
    records: Option<i64>,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    max_record_bytes: usize,
    materialized: bool,
}

impl TopicRow {
    fn new(info: &TopicInfo, extents: Option<&[Extent]>) -> Self {
        Self {
            name: info.name.clone(),
            partitions: info.config.partitions,
            cleanup: cleanup(info.config.cleanup),
            records: extents.map(|extents| extents.iter().map(|extent| extent.end - extent.first).sum()),
            retention_ms: info.config.retention_ms,
            retention_bytes: info.config.retention_bytes,
            max_record_bytes: info.config.max_record_bytes,
            materialized: info.config.materialized,
        }
    }
}

/// The policy by Kafka's name.
fn cleanup(policy: Cleanup) -> &'static str {
    match policy {
        Cleanup::Delete => "delete",
        Cleanup::Compact => "compact",
        Cleanup::CompactAndDelete => "compact,delete",
    }
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

fn list(args: &ListArgs, log: &dyn Log) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for info in log.topics().list()? {
        if args.internal || !info.name.is_reserved() {
            // One topic without a leader hides no other.
            let extents = extents_of(log.topics(), &info.name, warn);
            rows.push(TopicRow::new(&info, extents.as_deref()));
        }
    }
    args.output.print(&rows, |wide| {
        let mut head = vec!["NAME", "PARTITIONS", "RECORDS"];
        if wide {
            head.extend(["CLEANUP", "RETENTION", "RETENTION SIZE", "MAX RECORD", "MATERIALIZED"]);
        }
        let mut table = Table::new(&head);
        for row in &rows {
            let mut cells = vec![row.name.to_string(), row.partitions.to_string(), or_dash(row.records)];
            if wide {
                cells.push(row.cleanup.into());
                cells.push(or_dash(row.retention_ms.map(Span)));
                cells.push(or_dash(row.retention_bytes.map(ByteSize)));
                cells.push(ByteSize(row.max_record_bytes as u64).to_string());
                cells.push(row.materialized.to_string());
            }
            table.push(cells);
        }
        table
    })
}

#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    topic: TopicRow,
    id: String,
    extents: Vec<PartitionRow>,
}

#[derive(Serialize)]
struct PartitionRow {
    partition: usize,
    first: i64,
    end: i64,
}

fn describe(args: &DescribeArgs, log: &dyn Log) -> anyhow::Result<()> {
    let info = log.topics().describe(&args.name)?;
    let info = info.ok_or_else(|| LogError::UnknownTopic(args.name.clone()))?;
    let extents = log.topics().extents(&args.name)?;
    let row = |(partition, extent): (usize, &Extent)| PartitionRow {
        partition,
        first: extent.first,
        end: extent.end,
    };
    let described = Described {
        topic: TopicRow::new(&info, Some(&extents)),
        id: info.id,
        extents: extents.iter().enumerate().map(row).collect(),
    };
    if !args.output.is_structured() {
        let topic = &described.topic;
        say(&format!("Name:            {}", topic.name))?;
        say(&format!("Clean-up:        {}", topic.cleanup))?;
        say(&format!("Retention:       {}", or_dash(topic.retention_ms.map(Span))))?;
        say(&format!("Retention size:  {}", or_dash(topic.retention_bytes.map(ByteSize))))?;
        say(&format!("Largest record:  {}", ByteSize(topic.max_record_bytes as u64)))?;
        say(&format!("Materialized:    {}\n", if topic.materialized { "yes" } else { "no" }))?;
    }
    args.output.print(&described, |_| {
        let mut table = Table::new(&["PARTITION", "FIRST", "END"]);
        for row in &described.extents {
            table.push([row.partition.to_string(), row.first.to_string(), row.end.to_string()]);
        }
        table
    })
}

fn delete(args: &DeleteArgs, log: &dyn Log) -> anyhow::Result<()> {
    if !args.force {
        let state = desired::read(log)?;
        for name in &args.names {
            refuse_reserved(name, "deleted with --force only")?;
            let user = state.iter().find_map(|(_, identity, desired)| match desired {
                Desired::Deployment(deployment)
                    if deployment.inputs().contains(name) || deployment.all_outputs().contains(name) =>
                {
                    Some(identity)
                }
                _ => None,
            });
            if let Some(identity) = user {
                let message = format!(
                    "topic {name} is used by {identity}: remove that first, or delete it with --force"
                );
                return Err(coded(Exit::Refused, message));
            }
        }
    }
    for name in &args.names {
        log.topics().delete(name)?;
        say(&format!("topic {name} deleted"))?;
    }
    Ok(())
}
