//! `coproc logs`: what a coprocessor's guests printed.

use std::collections::VecDeque;
use std::io::Write;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::cli::arguments::{When, number, when};
use crate::cli::exit::{self, coded};
use crate::cli::open::{Target, now_ms};
use crate::cli::output::{clean, note, stdout};
use crate::control::read::{PATIENCE, Records};
use crate::control::topics::OwnTopic;
use crate::core::names::{Identity, Namespace};
use crate::core::record::TimestampMs;
use crate::core::status::rfc3339;
use crate::ports::{Fetched, Log, ReadFrom};

/// Show what a coprocessor printed
#[derive(Debug, Args)]
pub struct Command {
    /// Its name; kind/name or installation/namespace/kind/name where that is not enough
    name: String,
    /// Wait for more lines
    #[arg(short, long)]
    follow: bool,
    /// Only the first lines
    #[arg(long, value_name = "LINES", value_parser = number::<usize>, conflicts_with = "follow")]
    head: Option<usize>,
    /// Only the last lines
    #[arg(long, value_name = "LINES", value_parser = number::<usize>, conflicts_with_all = ["head", "follow"])]
    tail: Option<usize>,
    /// Only lines from then on: 10m (ago), 2026-01-31, 2026-01-31T12:00:00Z, or milliseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = when, allow_hyphen_values = true)]
    since: Option<When>,
    /// How to print a line
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// How a line is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As it was printed
    Text,
    /// With time, level and node
    Wide,
    /// As it stands in the topic: OTLP-shaped JSON
    Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    body: Text,
    #[serde(default)]
    time_unix_nano: i64,
    #[serde(default)]
    severity_number: u8,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    string_value: String,
}

#[derive(Deserialize)]
struct Attribute {
    key: String,
    value: serde_json::Value,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        // Lines outlive their deployment: a name that is not deployed any more is taken as it was typed.
        let identity = target.deployment(log.as_ref(), &self.name);
        if let (true, Err(error)) = (self.follow, &identity) {
            // Nobody writes lines under this name: to wait for them is a slip more often than a wish.
            return Err(coded(exit::of(error), error.to_string()));
        }
        let topic = OwnTopic::Logs.name();
        if log.topics().describe(&topic)?.is_none() {
            identity?;
            note("Nothing was printed yet.");
            return Ok(());
        }
        let keys = keys(&self.name, identity.as_ref().ok());
        let printed = self.show(log.as_ref(), &keys)?;
        match identity {
            Err(error) if printed == 0 && !self.follow => Err(error),
            _ => Ok(()),
        }
    }

    /// Prints the lines under these keys: how many.
    fn show(&self, log: &dyn Log, keys: &[String]) -> anyhow::Result<usize> {
        let since = self.since.map_or(TimestampMs::MIN, |when| when.resolve(now_ms()));
        let from = if self.since.is_some() { ReadFrom::Timestamp(since) } else { ReadFrom::Start };
        let topic = OwnTopic::Logs.name();
        let mut reader =
            Records::new(log.reader(&topic, None, from)?, &topic, (!self.follow).then_some(PATIENCE));
        let mut out = stdout();
        let mut last = VecDeque::new();
        let mut printed = 0;
        while let Some(fetched) = reader.more()? {
            let ours = fetched.into_iter().filter(|found| is_ours(found, keys, since));
            for found in ours {
                if let Some(tail) = self.tail {
                    last.push_back(found);
                    if last.len() > tail {
                        last.pop_front();
                    }
                    continue;
                }
                if self.head.is_some_and(|head| printed >= head) {
                    out.flush()?;
                    return Ok(printed);
                }
                self.print(&mut out, &found)?;
                printed += 1;
            }
            out.flush()?;
        }
        for found in &last {
            self.print(&mut out, found)?;
        }
        out.flush()?;
        Ok(printed + last.len())
    }

    fn print(&self, out: &mut impl Write, found: &Fetched) -> anyhow::Result<()> {
        let value = found.record.value.as_deref().unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        if self.format == Format::Json {
            return Ok(writeln!(out, "{text}")?);
        }
        let Ok(line) = serde_json::from_str::<Line>(&text) else {
            return Ok(writeln!(out, "{}", clean(&text))?);
        };
        let body = clean(&line.body.string_value);
        if self.format == Format::Text {
            return Ok(writeln!(out, "{body}")?);
        }
        let time = rfc3339(line.time_unix_nano / 1_000_000);
        let level = if line.severity_number >= 13 { "WARN" } else { "INFO" };
        let node = line.attributes.iter().find(|attribute| attribute.key == "node");
        let node = node.and_then(|attribute| attribute.value.get("intValue"));
        let node = node.map_or_else(|| "-".into(), ToString::to_string);
        Ok(writeln!(out, "{time} {level} node {node}: {body}")?)
    }
}

fn is_ours(found: &Fetched, keys: &[String], since: TimestampMs) -> bool {
    let key = found.record.key.as_deref().unwrap_or_default();
    keys.iter().any(|wanted| wanted.as_bytes() == key)
        && found.record.timestamp.is_none_or(|timestamp| timestamp >= since)
}

/// The keys under which the lines of a deployment stand.
fn keys(name: &str, identity: Option<&Identity>) -> Vec<String> {
    match identity {
        None => vec![name.to_owned()],
        Some(identity) if identity.namespace.as_str() == Namespace::CLI => {
            vec![identity.name.to_string(), identity.to_string()]
        }
        Some(identity) => vec![format!("{}/{}", identity.namespace, identity.name), identity.to_string()],
    }
}
