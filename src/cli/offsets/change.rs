//! `coproc offsets alter` and `reset`: where a paused deployment goes on.
//!
//! Only of a paused one: a running lane commits what it did, and would overwrite the change or be torn out of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::arguments::start_offset;
use crate::cli::exit::{Exit, coded};
use crate::cli::open::Target;
use crate::cli::output::{FormatArgs, Table};
use crate::control::desired::{self, Desired};
use crate::core::deployment::{Deployment, StartOffset};
use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::core::record::Offset;
use crate::ports::{Extent, Log};

/// How long lanes that were just paused may take to leave their group: static members stay for the session time-out.
const LEAVING: Duration = Duration::from_secs(30);

/// Arguments of `offsets alter`.
#[derive(Debug, Args)]
pub struct AlterArgs {
    /// The deployment; it has to be paused
    name: String,
    /// Offset of the record to go on with; repeat it for more partitions
    #[arg(required = true, value_name = "TOPIC:PARTITION=OFFSET", value_parser = place)]
    to: Vec<(TopicPartition, Offset)>,
    #[command(flatten)]
    how: How,
}

/// Arguments of `offsets reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The deployment; it has to be paused
    name: String,
    /// Position: earliest, latest, @<milliseconds since 1970>, +<offsets>, -<offsets>; where the deployment starts
    /// the first time unless given
    #[arg(long, value_name = "POSITION", value_parser = start_offset, allow_hyphen_values = true)]
    to: Option<StartOffset>,
    /// Only this input topic; repeat it for more
    #[arg(long, value_name = "TOPIC", value_parser = TopicName::from_user)]
    topic: Vec<TopicName>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: FormatArgs,
}

/// A paused deployment without members in its group.
struct Paused {
    identity: Identity,
    deployment: Deployment,
    group: ConsumerGroup,
}

#[derive(Serialize)]
struct Row {
    topic: TopicName,
    partition: u32,
    from: Option<Offset>,
    to: Offset,
}

/// Reads `TOPIC:PARTITION=OFFSET`.
fn place(text: &str) -> Result<(TopicPartition, Offset), String> {
    let parse = || {
        let (at, offset) = text.split_once('=')?;
        let (topic, partition) = at.rsplit_once(':')?;
        let offset = offset.parse().ok().filter(|offset| *offset >= 0)?;
        Some((topic, partition.parse().ok()?, offset))
    };
    let (topic, partition, offset) =
        parse().ok_or_else(|| "write TOPIC:PARTITION=OFFSET, like orders:0=42".to_owned())?;
    let topic = TopicName::from_user(topic).map_err(|error| error.to_string())?;
    Ok((TopicPartition { topic, partition }, offset))
}

impl AlterArgs {
    pub(super) fn run(&self, target: &Target, log: &dyn Log) -> anyhow::Result<()> {
        let paused = Paused::find(target, log, &self.name)?;
        let mut to = BTreeMap::new();
        for (at, offset) in &self.to {
            paused.check_input(&at.topic)?;
            let extents = log.topics().extents(&at.topic)?;
            check_offset(at, *offset, extents.get(at.partition as usize))?;
            if to.insert(at.clone(), *offset).is_some() {
                return Err(coded(Exit::Usage, format!("{at} is given twice")));
            }
        }
        self.how.apply(log, &paused, &to)
    }
}

impl ResetArgs {
    pub(super) fn run(&self, target: &Target, log: &dyn Log) -> anyhow::Result<()> {
        let paused = Paused::find(target, log, &self.name)?;
        for topic in &self.topic {
            paused.check_input(topic)?;
        }
        let position = self.to.unwrap_or_else(|| paused.deployment.start_offset());
        let topics = if self.topic.is_empty() { paused.deployment.inputs() } else { &self.topic };
        let mut to = BTreeMap::new();
        for topic in topics {
            let offsets = offsets_of(log, topic, position)?;
            let placed = (0..).zip(offsets);
            to.extend(
                placed
                    .map(|(partition, offset)| (TopicPartition { topic: topic.clone(), partition }, offset)),
            );
        }
        self.how.apply(log, &paused, &to)
    }
}

impl Paused {
    fn find(target: &Target, log: &dyn Log, name: &str) -> anyhow::Result<Self> {
        let identity = target.deployment(log, name)?;
        let state = desired::read(log)?;
        let Some((_, Desired::Deployment(deployment))) = state.get(&identity) else {
            let message = format!("there is no deployment {identity} that this version can read");
            return Err(coded(Exit::NotFound, message));
        };
        if !deployment.paused {
            let message = format!("{} is not paused: `coproc pause {}` first", identity.name, identity.name);
            return Err(coded(Exit::Refused, message));
        }
        let group = deployment.consumer_group(&identity);
        let deadline = Instant::now() + LEAVING;
        while log.offsets().members(&group)? > 0 {
            if Instant::now() > deadline {
                let message = format!(
                    "group {group} still has members {} s after the pause: look at the nodes with `coproc list`",
                    LEAVING.as_secs()
                );
                return Err(coded(Exit::Unavailable, message));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Self { identity, deployment: (**deployment).clone(), group })
    }

    fn check_input(&self, topic: &TopicName) -> anyhow::Result<()> {
        let inputs = self.deployment.inputs();
        if inputs.contains(topic) {
            return Ok(());
        }
        let inputs: Vec<&str> = inputs.iter().map(AsRef::as_ref).collect();
        let message =
            format!("{topic} is no input of {}: its inputs are {}", self.identity.name, inputs.join(", "));
        Err(coded(Exit::Usage, message))
    }
}

fn check_offset(at: &TopicPartition, offset: Offset, extent: Option<&Extent>) -> anyhow::Result<()> {
    let Some(Extent { first, end }) = extent else {
        return Err(coded(Exit::NotFound, format!("there is no partition {at}")));
    };
    if (*first..=*end).contains(&offset) {
        return Ok(());
    }
    let message = format!("offset {offset} of {at} is not between its first, {first}, and its end, {end}");
    Err(coded(Exit::Usage, message))
}

/// The offsets that a position means now, partition by partition.
fn offsets_of(log: &dyn Log, topic: &TopicName, position: StartOffset) -> anyhow::Result<Vec<Offset>> {
    if let StartOffset::Timestamp { timestamp } = position {
        return Ok(log.topics().offsets_at(topic, timestamp)?);
    }
    let count = |records: u64| Offset::try_from(records).unwrap_or(Offset::MAX);
    let offset = |Extent { first, end }: Extent| match position {
        StartOffset::Earliest | StartOffset::Timestamp { .. } => first,
        StartOffset::Latest => end,
        StartOffset::FromStart { records } => first.saturating_add(count(records)).min(end),
        StartOffset::FromEnd { records } => end.saturating_sub(count(records)).max(first),
    };
    Ok(log.topics().extents(topic)?.into_iter().map(offset).collect())
}

impl How {
    fn apply(
        &self,
        log: &dyn Log,
        paused: &Paused,
        to: &BTreeMap<TopicPartition, Offset>,
    ) -> anyhow::Result<()> {
        let before = log.offsets().committed(&paused.group)?;
        if !self.dry_run {
            log.offsets().alter(&paused.group, to)?;
        }
        let row = |(at, to): (&TopicPartition, &Offset)| Row {
            topic: at.topic.clone(),
            partition: at.partition,
            from: before.get(at).copied(),
            to: *to,
        };
        let rows: Vec<Row> = to.iter().map(row).collect();
        self.output.print(&rows, |_| {
            let mut table = Table::new(&["TOPIC", "PARTITION", "FROM", "TO"]);
            for row in &rows {
                table.push([
                    row.topic.to_string(),
                    row.partition.to_string(),
                    row.from.map_or_else(|| "-".into(), |from| from.to_string()),
                    row.to.to_string(),
                ]);
            }
            table
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_topic_a_partition_and_an_offset() {
        let (at, offset) = place("orders.v1:3=42").unwrap();
        assert_eq!((at.topic.as_str(), at.partition, offset), ("orders.v1", 3, 42));
        for text in ["orders", "orders:0", "orders=4", "orders:x=4", "orders:0=-1", "orders:0=x", ":0=1"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
