//! `coproc offsets`: how far consumer groups are, and setting it.

mod change;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::cli::output::{FormatArgs, Table, count, say};
use crate::control::desired::{self, Desired, DesiredState};
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::ports::{Extent, Log, LogError};

/// Look at committed offsets, change those of a paused deployment, and remove them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List committed offsets and how far each is behind
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Set committed offsets of a paused deployment, partition by partition
    Alter(change::AlterArgs),
    /// Move a paused deployment to a position, in every partition of its inputs
    Reset(change::ResetArgs),
    /// Delete the committed offsets of a group that nobody uses
    Delete(DeleteArgs),
}

/// Arguments of `offsets delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The group, as `coproc offsets list` shows it
    #[arg(long)]
    group: ConsumerGroup,
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
        let log = target.log()?;
        match self {
            Self::List(args) => args.run(target, log.as_ref()),
            Self::Alter(args) => args.run(target, log.as_ref()),
            Self::Reset(args) => args.run(target, log.as_ref()),
            Self::Delete(args) => delete(log.as_ref(), &args.group),
        }
    }
}

fn delete(log: &dyn Log, group: &ConsumerGroup) -> anyhow::Result<()> {
    if let Some(user) = user_of(&desired::read(log)?, group) {
        let message = format!(
            "group {group} belongs to {user}: `coproc remove` takes the deployment and its offsets away"
        );
        return Err(coded(Exit::Refused, message));
    }
    let members = log.offsets().members(group)?;
    if members > 0 {
        let message = format!("group {group} is in use by {}: stop them first", count(members, "member"));
        return Err(coded(Exit::Refused, message));
    }
    if !log.offsets().groups()?.contains(group) {
        return Err(unknown(group));
    }
    log.offsets().delete(group)?;
    say(&format!("offsets of {group} deleted"))
}

fn unknown(group: &ConsumerGroup) -> anyhow::Error {
    let message = format!("group {group} has committed nothing: `coproc offsets list` shows all that have");
    coded(Exit::NotFound, message)
}

/// The deployment that commits to this group.
pub fn user_of(state: &DesiredState, group: &ConsumerGroup) -> Option<Identity> {
    let mut of_group = state.iter().filter(|(_, identity, _)| group_of(state, identity) == *group);
    of_group.next().map(|(_, identity, _)| identity.clone())
}

/// The group that a deployment commits to.
pub fn group_of(state: &DesiredState, identity: &Identity) -> ConsumerGroup {
    match state.get(identity) {
        Some((_, Desired::Deployment(deployment))) => deployment.consumer_group(identity),
        _ => identity.consumer_group(),
    }
}

impl ListArgs {
    fn run(&self, target: &Target, log: &dyn Log) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for group in self.groups(target, log)? {
            rows.extend(rows_of(log, &group)?);
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
            (Some(name), None) => {
                let identity = target.deployment(log, name)?;
                group_of(&desired::read(log)?, &identity)
            }
        };
        if !all.contains(&wanted) {
            return Err(unknown(&wanted));
        }
        Ok(vec![wanted])
    }
}

fn rows_of(log: &dyn Log, group: &ConsumerGroup) -> Result<Vec<Row>, LogError> {
    let members = log.offsets().members(group)?;
    let mut rows = Vec::new();
    for (at, committed) in log.offsets().committed(group)? {
        let extent = match log.topics().extents(&at.topic) {
            Ok(extents) => extents.get(at.partition as usize).copied(),
            Err(LogError::UnknownTopic(_)) => None,
            Err(error) => return Err(error),
        };
        rows.push(Row {
            group: group.clone(),
            topic: at.topic,
            partition: at.partition,
            committed,
            end: extent.map(|extent| extent.end),
            // What the log has let go is not behind: it will never be read.
            lag: extent.map(|Extent { first, end }| (end - committed.max(first)).max(0)),
            members,
        });
    }
    Ok(rows)
}
