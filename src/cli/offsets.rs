//! `coproc offsets`: how far consumer groups are, and setting it.

mod change;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::cli::output::{FormatArgs, Table};
use crate::control::desired::{self, Desired};
use crate::core::deployment::{Deployment, KafkaSource, Source};
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::ports::{Log, LogError};

/// Look at committed offsets, and change those of a paused deployment
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List committed offsets and how far each is behind
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Set committed offsets of a paused deployment, partition by partition
    Alter(change::AlterArgs),
    /// Move a paused deployment to a position, in every partition of its inputs
    Reset(change::ResetArgs),
}

/// Arguments of `offsets list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this coprocessor's group
    name: Option<String>,
    /// Only this group
    #[arg(long, conflicts_with = "name")]
    group: Option<ConsumerGroup>,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Serialize)]
struct Row {
    group: ConsumerGroup,
    topic: TopicName,
    partition: u32,
    committed: i64,
    end: Option<i64>,
    lag: Option<i64>,
    members: usize,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        match self {
            Self::List(args) => args.list(target),
            Self::Alter(args) => args.run(target),
            Self::Reset(args) => args.run(target),
        }
    }
}

impl ListArgs {
    fn list(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let mut rows = Vec::new();
        for group in self.groups(target, log.as_ref())? {
            rows.extend(rows_of(log.as_ref(), &group)?);
        }
        self.output.print(&rows, |_| {
            let mut table =
                Table::new(&["GROUP", "TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBERS"]);
            let or_dash = |number: Option<i64>| number.map_or_else(|| "-".into(), |n| n.to_string());
            for row in &rows {
                table.push([
                    row.group.to_string(),
                    row.topic.to_string(),
                    row.partition.to_string(),
                    row.committed.to_string(),
                    or_dash(row.end),
                    or_dash(row.lag),
                    row.members.to_string(),
                ]);
            }
            table
        })
    }

    fn groups(&self, target: &Target, log: &dyn Log) -> anyhow::Result<Vec<ConsumerGroup>> {
        let all = log.offsets().groups()?;
        let wanted = match (&self.name, &self.group) {
            (None, None) => return Ok(all),
            (_, Some(group)) => group.clone(),
            (Some(name), None) => group_of(target, log, name)?,
        };
        if !all.contains(&wanted) {
            let message =
                format!("group {wanted} has committed nothing yet: `coproc offsets list` shows all");
            return Err(coded(Exit::NotFound, message));
        }
        Ok(vec![wanted])
    }
}

fn group_of(target: &Target, log: &dyn Log, name: &str) -> anyhow::Result<ConsumerGroup> {
    let identity = target.deployment(log, name)?;
    let state = desired::read(log)?;
    Ok(match state.get(&identity) {
        Some((_, Desired::Deployment(deployment))) => group(&identity, deployment),
        _ => identity.consumer_group(),
    })
}

/// The group of a deployment: the one that it names, or its own.
fn group(identity: &Identity, deployment: &Deployment) -> ConsumerGroup {
    match &deployment.source {
        Source::Kafka { kafka: KafkaSource { consumer_group: Some(chosen), .. } } => chosen.clone(),
        _ => identity.consumer_group(),
    }
}

fn rows_of(log: &dyn Log, group: &ConsumerGroup) -> Result<Vec<Row>, LogError> {
    let members = log.offsets().members(group)?;
    let mut rows = Vec::new();
    for (at, committed) in log.offsets().committed(group)? {
        let end = match log.topics().extents(&at.topic) {
            Ok(extents) => extents.get(at.partition as usize).map(|extent| extent.end),
            Err(LogError::UnknownTopic(_)) => None,
            Err(error) => return Err(error),
        };
        rows.push(Row {
            group: group.clone(),
            topic: at.topic,
            partition: at.partition,
            committed,
            end,
            lag: end.map(|end| (end - committed).max(0)),
            members,
        });
    }
    Ok(rows)
}
