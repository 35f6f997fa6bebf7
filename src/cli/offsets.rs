//! `coproc offsets`: how far consumer groups are, and setting it.

mod change;

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::cli::output::{FormatArgs, Table, count, say, warn};
use crate::control::desired::{self, Desired, DesiredState};
use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::core::record::Offset;
use crate::ports::{Extent, Log, LogError, Offsets, TopicAdmin};

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
    let found = Found::look_at(log.offsets(), group)?;
    if found.members > 0 {
        let members = count(found.members, "member");
        return Err(coded(Exit::Refused, format!("group {group} is in use by {members}: stop them first")));
    }
    // Its offsets may be of topics that are gone.
    if !found.is_there() && !log.offsets().groups()?.contains(group) {
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

/// What a group's coordinator says of it. A group that is named is never looked for among all of them: that takes an answer
/// of every broker.
struct Found {
    group: ConsumerGroup,
    members: usize,
    committed: BTreeMap<TopicPartition, Offset>,
}

impl Found {
    fn look_at(offsets: &dyn Offsets, group: &ConsumerGroup) -> Result<Self, LogError> {
        let (members, committed) = (offsets.members(group)?, offsets.committed(group)?);
        Ok(Self { group: group.clone(), members, committed })
    }

    fn is_there(&self) -> bool {
        self.members > 0 || !self.committed.is_empty()
    }
}

impl ListArgs {
    fn run(&self, target: &Target, log: &dyn Log) -> anyhow::Result<()> {
        let offsets = log.offsets();
        let found = match self.group(target, log)? {
            None => {
                let groups = offsets.groups()?;
                groups.iter().map(|group| Found::look_at(offsets, group)).collect::<Result<Vec<_>, _>>()?
            }
            Some(group) => {
                let found = Found::look_at(offsets, &group)?;
                if !found.is_there() {
                    return Err(unknown(&group));
                }
                vec![found]
            }
        };
        let extents = extents(log.topics(), &found, warn);
        let rows: Vec<Row> = found.iter().flat_map(|found| rows_of(found, &extents)).collect();
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

    /// The one group that is asked for.
    fn group(&self, target: &Target, log: &dyn Log) -> anyhow::Result<Option<ConsumerGroup>> {
        let Some(name) = &self.name else { return Ok(self.group.clone()) };
        let identity = target.deployment(log, name)?;
        Ok(Some(group_of(&desired::read(log)?, &identity)))
    }
}

/// Where the topics of these groups start and end, each asked once; of those that do not say, `complain` is told why.
fn extents(
    topics: &dyn TopicAdmin,
    found: &[Found],
    complain: impl Fn(&str),
) -> BTreeMap<TopicName, Vec<Extent>> {
    let wanted = found.iter().flat_map(|found| found.committed.keys().map(|at| &at.topic));
    let wanted: BTreeSet<&TopicName> = wanted.collect();
    let mut extents = BTreeMap::new();
    for topic in wanted {
        if let Some(of_topic) = extents_of(topics, topic, &complain) {
            extents.insert(topic.clone(), of_topic);
        }
    }
    extents
}

/// Where a topic starts and ends; if it does not say, for instance because a leader is away, `complain` is told why.
pub(super) fn extents_of(
    topics: &dyn TopicAdmin,
    topic: &TopicName,
    complain: impl Fn(&str),
) -> Option<Vec<Extent>> {
    let unknown = |error: &LogError| complain(&format!("warning: where {topic} ends is not known: {error}"));
    topics.extents(topic).inspect_err(unknown).ok()
}

fn rows_of(found: &Found, extents: &BTreeMap<TopicName, Vec<Extent>>) -> Vec<Row> {
    let row = |(at, committed): (&TopicPartition, &Offset)| {
        let extent = extents.get(&at.topic).and_then(|of_topic| of_topic.get(at.partition as usize));
        Row {
            group: found.group.clone(),
            topic: at.topic.clone(),
            partition: at.partition,
            committed: *committed,
            end: extent.map(|extent| extent.end),
            // What the log has let go is not behind: it will never be read.
            lag: extent.map(|Extent { first, end }| (end - committed.max(first)).max(0)),
            members: found.members,
        }
    };
    found.committed.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Mutex;

    use super::*;
    use crate::core::record::TimestampMs;
    use crate::ports::{TopicConfig, TopicInfo};

    /// Topics whose ends are asked for; `away` does not say its own.
    #[derive(Default)]
    struct Topics(Mutex<Vec<TopicName>>);

    impl TopicAdmin for Topics {
        fn create(&self, _: &TopicName, _: &TopicConfig) -> Result<(), LogError> {
            Ok(())
        }

        fn delete(&self, _: &TopicName) -> Result<(), LogError> {
            Ok(())
        }

        fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
            Ok(Vec::new())
        }

        fn describe(&self, _: &TopicName) -> Result<Option<TopicInfo>, LogError> {
            Ok(None)
        }

        fn extents(&self, name: &TopicName) -> Result<Vec<Extent>, LogError> {
            self.0.lock().unwrap().push(name.clone());
            match name.as_str() {
                "away" => Err(LogError::Unavailable("no leader".to_owned())),
                _ => Ok(vec![Extent { first: 3, end: 10 }; 2]),
            }
        }

        fn offsets_at(&self, _: &TopicName, _: TimestampMs) -> Result<Vec<Offset>, LogError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn each_topic_is_asked_once_and_one_that_does_not_answer_spoils_nothing() {
        let found = |group: &str, committed: &[(&str, u32, Offset)]| {
            let at = |(topic, partition, offset): &(&str, u32, Offset)| {
                (TopicPartition { topic: topic.parse().unwrap(), partition: *partition }, *offset)
            };
            let committed = committed.iter().map(at).collect();
            Found { group: group.parse().unwrap(), members: 0, committed }
        };
        let found = [
            found("g", &[("away", 0, 4), ("orders", 0, 8), ("orders", 1, 0), ("orders", 2, 1)]),
            found("h", &[("orders", 0, 10)]),
        ];
        let (topics, said) = (Topics::default(), RefCell::new(Vec::new()));
        let extents = extents(&topics, &found, |line| said.borrow_mut().push(line.to_owned()));
        let asked: Vec<String> = topics.0.lock().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(asked, ["away", "orders"]);
        assert_eq!(
            said.take(),
            ["warning: where away ends is not known: the log does not answer: no leader"]
        );
        let rows = found.iter().flat_map(|found| rows_of(found, &extents));
        let shown: Vec<_> = rows.map(|row| (row.topic.to_string(), row.end, row.lag)).collect();
        let row = |topic: &str, end, lag| (topic.to_owned(), end, lag);
        let known = |lag| row("orders", Some(10), Some(lag));
        assert_eq!(shown, [row("away", None, None), known(2), known(7), row("orders", None, None), known(0)]);
    }
}
