//! `coproc consume`: prints records, byte for byte.

use std::io::Write;

use clap::{Args, ValueEnum};

use crate::cli::arguments::{number, read_from};
use crate::cli::open::Target;
use crate::cli::output::{clean, stdout};
use crate::cli::records;
use crate::control::read::{PATIENCE, Records};
use crate::core::names::TopicName;
use crate::core::status::rfc3339;
use crate::ports::{Fetched, LogError, ReadFrom};

/// Print the records of a topic
///
/// Committed records only. Without -f it stops at the end that the topic had when it began.
#[derive(Debug, Args)]
pub struct Command {
    /// The topic; a materialized one also by its original name, 'source.$dest$'
    #[arg(value_parser = TopicName::from_user)]
    topic: TopicName,
    /// Wait for more records at the end
    #[arg(short, long)]
    follow: bool,
    /// Where to start: start, end, an offset, @<milliseconds since 1970>, or -<offsets> before the end
    #[arg(long, value_name = "POSITION", default_value = "start", value_parser = read_from, allow_hyphen_values = true)]
    from: ReadFrom,
    /// Stop after so many records
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = number::<u64>)]
    count: Option<u64>,
    /// Only this partition; repeat it for more
    #[arg(short, long, value_parser = number::<u32>)]
    partition: Vec<u32>,
    /// How to print a record
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "value")]
    format: Format,
}

/// How a record is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The value's bytes and a line end
    Value,
    /// Key, tab, value and a line end
    KeyValue,
    /// One JSON object a line, as `produce --json` reads it
    Json,
    /// Partition, offset, time, key and value for people
    Wide,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let info = log.topics().describe(&self.topic)?;
        let count = info.ok_or_else(|| LogError::UnknownTopic(self.topic.clone()))?.config.partitions;
        if let Some(partition) = self.partition.iter().find(|partition| **partition >= count) {
            let topic = self.topic.clone();
            return Err(LogError::UnknownPartition { topic, partition: *partition, count }.into());
        }
        let partitions = (!self.partition.is_empty()).then_some(&self.partition[..]);
        let reader = log.reader(&self.topic, partitions, self.from)?;
        let mut out = stdout();
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut reader = Records::new(reader, &self.topic, (!self.follow).then_some(PATIENCE));
        while left > 0 {
            let Some(fetched) = reader.more()? else { break };
            for record in &fetched {
                if left == 0 {
                    break;
                }
                self.print(&mut out, record)?;
                left -= 1;
            }
            out.flush()?;
        }
        Ok(())
    }

    fn print(&self, out: &mut impl Write, fetched: &Fetched) -> anyhow::Result<()> {
        let record = &fetched.record;
        let key = record.key.as_deref().unwrap_or_default();
        let value = record.value.as_deref().unwrap_or_default();
        match self.format {
            Format::Value => out.write_all(value)?,
            Format::KeyValue => {
                out.write_all(key)?;
                out.write_all(b"\t")?;
                out.write_all(value)?;
            }
            Format::Json => {
                let line = records::Line::new(self.topic.as_str(), fetched);
                write!(out, "{}", serde_json::to_string(&line)?)?;
            }
            Format::Wide => {
                let time = rfc3339(record.timestamp.unwrap_or(fetched.appended_ms));
                let text = |bytes: Option<&[u8]>| {
                    bytes.map_or_else(|| "(null)".into(), |bytes| clean(&String::from_utf8_lossy(bytes)))
                };
                let (key, value) = (text(record.key.as_deref()), text(record.value.as_deref()));
                write!(out, "{} {} {time} {key} {value}", fetched.partition, fetched.offset)?;
            }
        }
        Ok(out.write_all(b"\n")?)
    }
}
