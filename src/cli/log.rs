//! `coproc log`: records by id, after `PipeProc`. The grammar of places is `core::range`.

use std::collections::VecDeque;
use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::arguments::number;
use crate::cli::open::Target;
use crate::cli::output::{say, stdout};
use crate::cli::records::Line;
use crate::control::read::{PATIENCE, Records};
use crate::core::ledger::TopicPartition;
use crate::core::names::TopicName;
use crate::core::range::{Bound, Id};
use crate::ports::{Extent, Fetched, Log, LogError, ReadFrom};

/// Records by id: {append time in ms}-{offset}
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print records from one place to another, the oldest first
    Range(RangeArgs),
    /// Print records from one place back to another, the newest first
    Revrange(RangeArgs),
    /// Print the offset of the newest record, plus one; 0 when there is none left
    Length(LengthArgs),
}

/// Arguments of `log range` and `log revrange`.
#[derive(Debug, Args)]
pub struct RangeArgs {
    /// The topic
    #[arg(value_parser = TopicName::from_user)]
    topic: TopicName,
    /// Where to begin: :OFFSET, TIME-OFFSET, or a TIME in ms or its first digits; the first record unless given
    start: Option<Bound>,
    /// Where to end, in the same form; the last record unless given
    end: Option<Bound>,
    /// Most records
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = number::<usize>)]
    limit: Option<usize>,
    /// Leave out the records that the places name
    #[arg(long)]
    exclusive: bool,
    /// The partition
    #[arg(short, long, default_value_t = 0, value_parser = number::<u32>)]
    partition: u32,
    /// How to print a record
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Arguments of `log length`.
#[derive(Debug, Args)]
pub struct LengthArgs {
    /// The topic
    #[arg(value_parser = TopicName::from_user)]
    topic: TopicName,
    /// The partition
    #[arg(short, long, default_value_t = 0, value_parser = number::<u32>)]
    partition: u32,
}

/// How a record is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Id, tab, value
    Text,
    /// One JSON object a line, with its id
    Json,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        match self {
            Self::Range(args) => args.print(range(args, log.as_ref())?),
            Self::Revrange(args) => args.print(revrange(args, log.as_ref())?),
            Self::Length(args) => {
                let Extent { first, end } = extent(log.as_ref(), &args.topic, args.partition)?;
                say(&if first < end { end } else { 0 }.to_string())
            }
        }
    }
}

impl RangeArgs {
    fn print(&self, records: impl IntoIterator<Item = Fetched>) -> anyhow::Result<()> {
        let mut out = stdout();
        for found in records {
            let id = id(&found);
            match self.format {
                Format::Text => {
                    write!(out, "{id}\t")?;
                    out.write_all(found.record.value.as_deref().unwrap_or_default())?;
                    out.write_all(b"\n")?;
                }
                Format::Json => {
                    let line = Line::new(self.topic.as_str(), &found).with_id(id.to_string());
                    writeln!(out, "{}", serde_json::to_string(&line)?)?;
                }
            }
        }
        Ok(out.flush()?)
    }

    fn check(&self, log: &dyn Log) -> Result<Extent, LogError> {
        let extent = extent(log, &self.topic, self.partition)?;
        for bound in [self.start, self.end].into_iter().flatten() {
            if let Bound::Offset(wanted) = bound
                && !(extent.first..extent.end).contains(&wanted)
            {
                let partition = TopicPartition::new(&self.topic, self.partition);
                return Err(LogError::OffsetOutOfRange {
                    partition,
                    wanted,
                    first: extent.first,
                    end: extent.end,
                });
            }
        }
        Ok(extent)
    }
}

fn id(found: &Fetched) -> Id {
    Id { append_ms: found.appended_ms, offset: found.offset }
}

fn extent(log: &dyn Log, topic: &TopicName, partition: u32) -> Result<Extent, LogError> {
    let extents = log.topics().extents(topic)?;
    let unknown =
        || LogError::UnknownPartition { topic: topic.clone(), partition, count: extents.len() as u32 };
    extents.get(partition as usize).copied().ok_or_else(unknown)
}

fn range(args: &RangeArgs, log: &dyn Log) -> Result<Vec<Fetched>, LogError> {
    args.check(log)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut all = Vec::new();
    scan(args, log, from(args.start), (args.start, args.end), |found| {
        all.push(found);
        all.len() < limit
    })?;
    all.truncate(limit);
    Ok(all)
}

fn revrange(args: &RangeArgs, log: &dyn Log) -> Result<Vec<Fetched>, LogError> {
    args.check(log)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let from = match (args.limit, args.start, args.end) {
        (Some(limit), None, None) => ReadFrom::Last(limit as u64),
        (_, _, end) => from(end),
    };
    let mut last = VecDeque::new();
    scan(args, log, from, (args.end, args.start), |found| {
        last.push_back(found);
        if last.len() > limit {
            last.pop_front();
        }
        true
    })?;
    Ok(last.into_iter().rev().collect())
}

/// Where to read from, to meet every record that a lower bound admits: times are append times, which only the
/// records themselves know.
fn from(low: Option<Bound>) -> ReadFrom {
    match low {
        Some(Bound::Offset(offset)) => ReadFrom::Offset(offset),
        _ => ReadFrom::Start,
    }
}

/// Reads on to the upper bound, until `take` returns false.
fn scan(
    args: &RangeArgs,
    log: &dyn Log,
    from: ReadFrom,
    (low, high): (Option<Bound>, Option<Bound>),
    mut take: impl FnMut(Fetched) -> bool,
) -> Result<(), LogError> {
    let mut reader =
        Records::new(log.reader(&args.topic, Some(&[args.partition]), from)?, &args.topic, Some(PATIENCE));
    while let Some(fetched) = reader.more()? {
        for found in fetched {
            let id = id(&found);
            if high.is_some_and(|high| !high.admits_to(id, args.exclusive)) {
                return Ok(());
            }
            if low.is_none_or(|low| low.admits_from(id, args.exclusive)) && !take(found) {
                return Ok(());
            }
        }
    }
    Ok(())
}
