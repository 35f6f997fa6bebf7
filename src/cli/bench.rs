//! `coproc bench`: how fast a module is, beside a plain copy of the same records in the same run.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::manifest::{self, Manifest};
use crate::cli::modules::Lines;
use crate::cli::output::{FormatArgs, Table, note};
use crate::cli::{deploy, engine, harness, modules, records};
use crate::core::names::TopicName;
use crate::core::record::{Batch, Outputs, Record};
use crate::core::units::{ByteSize, Span};
use crate::node::chain::{Chain, ChainRun};
use crate::node::plan::ChainPlan;
use crate::ports::GuestLines;

/// Measure how fast a module is
///
/// Batches of records go through the module as they do on a node, without a log; a native loop that copies the
/// same records is measured in turns with it. One core. The figures are the best of several rounds.
#[derive(Debug, Args)]
pub struct Command {
    /// Modules; those of the manifest unless given
    #[arg(value_name = "FILE.wasm")]
    modules: Vec<PathBuf>,
    /// The manifest
    #[arg(short, long, value_name = "coproc.yaml", default_value = manifest::FILE)]
    file: PathBuf,
    /// Sizes of the values
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "100,1Ki,10Ki")]
    size: Vec<ByteSize>,
    /// Records from a file with one JSON object a line, as `coproc consume -o json` prints them
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    records: Option<PathBuf>,
    /// Values from a file, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "records"])]
    lines: Option<PathBuf>,
    /// Records in a batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// How long each measurement takes
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    time: Span,
    /// Variable of the guests' environment; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::cli::arguments::key_value)]
    var: Vec<(String, String)>,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Serialize)]
struct Row {
    records: String,
    bytes_per_record: usize,
    batch: usize,
    ns_per_record: f64,
    records_per_second: f64,
    mib_per_second: f64,
    native_ns_per_record: f64,
    ratio: f64,
    outputs_per_record: f64,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut manifest = self.manifest()?;
        for step in &mut manifest.steps {
            step.env.extend(self.var.iter().cloned());
        }
        if manifest.outputs.is_empty() {
            manifest.outputs.push("output".parse()?);
        }
        let engine = engine::new(None, None)?;
        let plan = modules::chain(&manifest, engine.as_ref())?;
        let mut rows = Vec::new();
        for (name, batch) in self.batches()? {
            note(&format!("measuring {name} …"));
            rows.push(measure(&plan, name, batch, self.time.duration())?);
        }
        self.output.print(&rows, |wide| table(&rows, wide))
    }

    fn manifest(&self) -> anyhow::Result<Manifest> {
        if self.modules.is_empty() { manifest::read(&self.file) } else { deploy::manifest_of(&self.modules) }
    }

    fn batches(&self) -> anyhow::Result<Vec<(String, Batch)>> {
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| coded(Exit::NotFound, format!("cannot read {}: {error}", path.display())))
        };
        let fill = |records: &[Record]| {
            let mut batch = Batch::default();
            batch.reset(&topic()?, 0);
            for (offset, record) in (0..i64::from(self.batch)).zip(records.iter().cycle()) {
                batch.push(offset, record.timestamp.unwrap_or(offset), &record.payload());
            }
            anyhow::Ok(batch)
        };
        if let Some(path) = self.lines.as_ref().or(self.records.as_ref()) {
            let bytes = read(path)?;
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let record = |(number, line): (usize, &[u8])| match self.lines {
                Some(_) => Ok(Record::new(None, Some(line))),
                None => records::parse(line).map(|parsed| parsed.record).map_err(|bad| {
                    let place = format!("{}, line {}, column {}", path.display(), number + 1, bad.column);
                    coded(Exit::Usage, format!("{place}: {}", bad.message))
                }),
            };
            let records: Vec<Record> = lines.enumerate().map(record).collect::<Result<_, _>>()?;
            if records.is_empty() {
                return Err(coded(Exit::Usage, format!("there are no records in {}", path.display())));
            }
            return Ok(vec![(path.display().to_string(), fill(&records)?)]);
        }
        let sized = |size: &ByteSize| {
            let value: Vec<u8> = (0..size.bytes()).map(|i| b'a' + (i % 26) as u8).collect();
            Ok((size.to_string(), fill(&[Record::new(Some(b"key"), Some(&value))])?))
        };
        self.size.iter().map(sized).collect()
    }
}

fn topic() -> Result<TopicName, crate::core::names::Error> {
    "input".parse()
}

/// Rounds that a measurement is made of: module and native loop take turns, so that both see the same machine.
const ROUNDS: u32 = 5;

fn measure(plan: &ChainPlan, name: String, mut batch: Batch, time: Duration) -> anyhow::Result<Row> {
    let lines: Arc<dyn GuestLines> = Arc::new(Lines::default());
    let failed = |failure| coded(Exit::Failed, format!("the module fails: {failure}"));
    let mut chain = Chain::start(plan, &topic()?, &lines).map_err(failed)?;
    let (count, bytes) = (batch.len(), batch.bytes());
    let (mut written, mut outputs) = (0, Outputs::default());
    let (mut best, mut native) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (started, mut batches) = (Instant::now(), 0u32);
        while batches == 0 || started.elapsed() < time / ROUNDS {
            let passed;
            (batch, passed) = pass(&mut chain, batch).map_err(failed)?;
            written = passed;
            batches += 1;
        }
        best = best.min(started.elapsed().as_nanos() as f64 / f64::from(batches) / count as f64);
        let (started, mut batches) = (Instant::now(), 0u32);
        while batches == 0 || started.elapsed() < time / ROUNDS / 4 {
            copy(&batch, &mut outputs);
            batches += 1;
        }
        native = native.min(started.elapsed().as_nanos() as f64 / f64::from(batches) / count as f64);
    }
    let per_second = 1e9 / best;
    Ok(Row {
        records: name,
        bytes_per_record: bytes / count,
        batch: count,
        ns_per_record: best,
        records_per_second: per_second,
        mib_per_second: per_second * bytes as f64 / count as f64 / f64::from(1 << 20),
        native_ns_per_record: native,
        ratio: best / native,
        outputs_per_record: written as f64 / count as f64,
    })
}

/// Runs one batch: it comes back, with the number of outputs.
fn pass(chain: &mut Chain, batch: Batch) -> Result<(Batch, usize), crate::node::chain::StepFailure> {
    let budget = harness::unlimited();
    chain.offer(batch, 0);
    let mut written = 0;
    loop {
        let ran = chain.run(&budget);
        let _ = chain.drain::<std::convert::Infallible>(usize::MAX, |output, _| {
            black_box(output.payload);
            written += 1;
            Ok(())
        });
        match ran {
            ChainRun::Finished => return Ok((chain.withdraw(), written)),
            ChainRun::Suspended => {}
            ChainRun::Failed(failure) => return Err(failure),
        }
    }
}

/// What a module would do at least: a copy of each record.
fn copy(batch: &Batch, outputs: &mut Outputs) {
    for (i, record) in batch.iter().enumerate() {
        outputs.push(0, i, record.payload);
    }
    black_box(&*outputs);
    outputs.clear();
}

fn table(rows: &[Row], wide: bool) -> Table {
    let mut head = vec!["RECORDS", "NS/RECORD", "RECORDS/S", "MIB/S", "NATIVE NS/RECORD", "RATIO"];
    if wide {
        head.extend(["BYTES/RECORD", "BATCH", "OUTPUTS/RECORD"]);
    }
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = vec![
            row.records.clone(),
            format!("{:.0}", row.ns_per_record),
            format!("{:.0}", row.records_per_second),
            format!("{:.1}", row.mib_per_second),
            format!("{:.1}", row.native_ns_per_record),
            format!("{:.1}", row.ratio),
        ];
        if wide {
            cells.push(row.bytes_per_record.to_string());
            cells.push(row.batch.to_string());
            cells.push(format!("{:.2}", row.outputs_per_record));
        }
        table.push(cells);
    }
    table
}
