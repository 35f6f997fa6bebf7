//! `coproc produce`: lines of standard input become records.
//!
//! Lines are gathered into batches. The embedded log takes a batch at once or not at all, Kafka record by record. A line that is
//! wrong stops the command before anything of its batch is written, and the error says up to which line everything is in.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cli::arguments::{key_value, number};
use crate::cli::exit::{Exit, coded};
use crate::cli::open::{Place, Target};
use crate::cli::output::{count, note};
use crate::cli::records;
use crate::core::names::TopicName;
use crate::core::record::Record;
use crate::ports::{Log, LogError, Produce};

/// Most records in one batch.
const BATCH_RECORDS: usize = 10_000;
/// Bytes after which a batch is written.
const BATCH_BYTES: usize = 4 << 20;
/// Longest line that is read; topics take far less.
const MAX_LINE_BYTES: usize = 64 << 20;
/// A batch is written when nothing more comes for so long.
const LINGER: Duration = Duration::from_millis(20);

/// What a line of JSON can look like, for whoever wrote another one.
const EXAMPLE: &str =
    r#"; a line is like {"key": "k", "value": "v", "headers": [{"key": "a", "value": "b"}]}"#;

/// Write lines of standard input as records
///
/// A line is a record's value as it stands. With --json it is one object, as `coproc consume -o json` prints
/// it: {"key": …, "value": …, "headers": [{"key": …, "value": …}], "timestamp": …, "partition": …}; bytes that
/// are no text stand as base64 under `key_base64` or `value_base64`. Lines are written in batches, to the embedded log
/// each of them at once or not at all, to Kafka record by record; an error says what is written.
#[derive(Debug, Args)]
pub struct Command {
    /// The topic
    #[arg(value_parser = TopicName::from_user)]
    topic: TopicName,
    /// Lines are JSON objects
    #[arg(long, conflicts_with_all = ["key", "key_separator", "header", "tombstone"])]
    json: bool,
    /// Key of every record
    #[arg(short, long, conflicts_with = "key_separator")]
    key: Option<String>,
    /// Text between key and value in each line; without it lines are values
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Header of every record; repeat it for more
    #[arg(short = 'H', long, value_name = "KEY=VALUE", value_parser = key_value)]
    header: Vec<(String, String)>,
    /// Partition of every record; chosen by key, or one after another, unless given
    #[arg(short, long, value_parser = number::<u32>)]
    partition: Option<u32>,
    /// An empty value is null, which removes the key from a compacted topic
    #[arg(long)]
    tombstone: bool,
    /// Write to one of coproc's own topics: that can stop every deployment
    #[arg(long)]
    force: bool,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        if self.topic.is_reserved() && !self.force {
            let message = format!("{} is one of coproc's own topics: --force writes to it", self.topic);
            return Err(coded(Exit::Refused, message));
        }
        let log = target.log()?;
        self.check_topic(log.as_ref())?;
        if std::io::stdin().is_terminal() {
            note("Each line becomes a record; Ctrl-D ends.");
        }
        let is_atomic = matches!(target.place()?, Place::Directory(_));
        let mut batches = Batches { log: log.as_ref(), is_atomic, pending: Vec::new(), bytes: 0, written: 0 };
        self.pump(BufReader::with_capacity(1 << 20, std::io::stdin().lock()), &mut batches)?;
        batches.flush()?;
        note(&format!("{} written to {}", count(batches.written, "record"), self.topic));
        Ok(())
    }

    /// Finds out before the first line is read, also where there is none.
    fn check_topic(&self, log: &dyn Log) -> anyhow::Result<()> {
        let info = log.topics().describe(&self.topic)?;
        let info = info.ok_or_else(|| LogError::UnknownTopic(self.topic.clone()))?;
        if let Some(partition) = self.partition.filter(|partition| *partition >= info.config.partitions) {
            let topic = self.topic.clone();
            return Err(LogError::UnknownPartition { topic, partition, count: info.config.partitions }.into());
        }
        if info.config.materialized {
            let source = self.topic.as_materialized();
            let hint = source
                .map(|(source, _)| format!("; produce to {source}, which it reads"))
                .unwrap_or_default();
            let reason = format!("it is materialized, only its coprocessor writes to it{hint}");
            return Err(LogError::NotWritable { topic: self.topic.clone(), reason }.into());
        }
        Ok(())
    }

    fn pump(
        &self,
        mut input: BufReader<impl Read + std::os::fd::AsFd>,
        batches: &mut Batches<'_>,
    ) -> anyhow::Result<()> {
        for number in 1u64.. {
            if !input.buffer().contains(&b'\n') && !batches.pending.is_empty() && !comes_more(input.get_ref())
            {
                batches.flush()?;
            }
            let Some(line) = read_line(&mut input, number)? else { break };
            let produce = self.parse(&line).map_err(|(column, message)| {
                let at = if column == 0 { String::new() } else { format!(", column {column}") };
                let example = if self.json { EXAMPLE } else { "" };
                let message = format!("line {number}{at}: {message}{example}");
                coded(Exit::Usage, format!("{message}; {}", batches.so_far()))
            })?;
            if let Some(produce) = produce {
                batches.push(produce, line.len())?;
            }
        }
        Ok(())
    }

    /// The record of a line; `None` for a blank line between JSON objects.
    fn parse(&self, line: &[u8]) -> Result<Option<Produce>, (usize, String)> {
        if !self.json {
            return Ok(Some(self.produce(self.plain(line)?, None)));
        }
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let parsed = records::parse(line).map_err(|bad| (bad.column, bad.message))?;
        Ok(Some(self.produce(parsed.record, parsed.partition)))
    }

    fn plain(&self, line: &[u8]) -> Result<Record, (usize, String)> {
        let (key, value) = match &self.key_separator {
            None => (self.key.as_deref().map(str::as_bytes), line),
            Some(separator) => {
                let at = line.windows(separator.len()).position(|window| window == separator.as_bytes());
                let at = at.ok_or_else(|| (0, format!("there is no separator {separator:?} after a key")))?;
                (Some(&line[..at]), &line[at + separator.len()..])
            }
        };
        let value = if self.tombstone && value.is_empty() { None } else { Some(value) };
        let headers = self.header.iter();
        let headers =
            headers.map(|(key, value)| (key.clone().into_bytes(), Some(value.clone().into_bytes())));
        Ok(Record { headers: headers.collect(), ..Record::new(key, value) })
    }

    fn produce(&self, record: Record, partition: Option<u32>) -> Produce {
        Produce { topic: self.topic.clone(), partition: self.partition.or(partition), record }
    }
}

struct Batches<'a> {
    log: &'a dyn Log,
    /// Whether the log takes a batch at once or not at all.
    is_atomic: bool,
    pending: Vec<Produce>,
    bytes: usize,
    written: usize,
}

impl Batches<'_> {
    fn push(&mut self, produce: Produce, bytes: usize) -> anyhow::Result<()> {
        self.pending.push(produce);
        self.bytes += bytes;
        if self.pending.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.log.produce(&self.pending).map_err(|error| {
            let so_far = if self.is_atomic { self.so_far() } else { self.perhaps() };
            anyhow::Error::from(error).context(so_far)
        })?;
        self.written += self.pending.len();
        self.pending.clear();
        self.bytes = 0;
        Ok(())
    }

    fn so_far(&self) -> String {
        match self.written {
            0 => "nothing was written".into(),
            1 => "the first record was written, nothing after it".into(),
            written => format!("the first {written} records were written, nothing after them"),
        }
    }

    /// After a failure in the midst of a batch that is taken record by record.
    fn perhaps(&self) -> String {
        let (written, next) = (count(self.written, "record"), count(self.pending.len(), "record"));
        format!("{written} written; of the {next} after that some may be: look before you send them again")
    }
}

/// The next line without its end; `None` at the end of input.
fn read_line(input: &mut impl BufRead, number: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    if read > MAX_LINE_BYTES {
        let message = format!("line {number} is longer than {MAX_LINE_BYTES} bytes, which no topic takes");
        return Err(coded(Exit::Usage, message));
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok((read > 0).then_some(line))
}

/// Whether more input is there, or comes soon.
fn comes_more(input: &impl std::os::fd::AsFd) -> bool {
    let mut watched = [PollFd::new(input, PollFlags::IN)];
    let linger = Timespec { tv_sec: 0, tv_nsec: i64::from(LINGER.subsec_nanos()) };
    matches!(poll(&mut watched, Some(&linger)), Ok(ready) if ready > 0)
}
