//! What guests print, on its way to `coprocessor_logs`: one record per line, keyed by coprocessor, rate-limited.
//!
//! A line never holds up a lane: a full queue drops it and counts it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use serde_json::json;

use crate::control::topics::OwnTopic;
use crate::core::names::NodeId;
use crate::core::record::{Record, TimestampMs};
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Clock, GuestLines, LineLevel, Log, Produce};
use crate::telemetry::metrics::CoprocessorMetrics;

/// Lines on their way, for all guests of the node. The engine cuts a line at 8 KiB, so that they take 8 MiB at most.
const QUEUE: usize = 1_000;
/// Bytes of a line that are kept, whatever the engine lets through.
const LINE_BYTES: usize = 8 << 10;
/// Lines that one deployment may print at once.
const BURST: f64 = 1_000.0;
/// Lines that one deployment may print per second in the long run.
const RATE: f64 = 200.0;
/// Lines written to the log at once, and the longest that one waits.
const BATCH: usize = 500;
const LINGER: Duration = Duration::from_millis(200);

struct Line {
    coprocessor: Arc<str>,
    level: LineLevel,
    time: TimestampMs,
    text: String,
}

/// Collects lines and writes them to the log.
pub struct GuestLogs {
    queue: Sender<Line>,
    clock: Arc<dyn Clock>,
    thread: Stoppable,
}

impl GuestLogs {
    /// Starts the writer.
    pub fn start(log: Arc<dyn Log>, node: NodeId, clock: Arc<dyn Clock>) -> Result<Self, SpawnError> {
        let (queue, lines) = crossbeam_channel::bounded(QUEUE);
        let thread = threads::spawn("coproc-guestlog", move |stop| {
            while let Some(batch) = collect(&lines, stop) {
                write(log.as_ref(), node, &batch);
            }
        })?;
        Ok(Self { queue, clock, thread })
    }

    /// Writes what is there and ends, by the deadline.
    pub fn stop_by(self, deadline: Instant) {
        self.thread.stop_by(deadline);
    }

    /// The mouth of one deployment.
    pub fn lines(&self, coprocessor: &str, metrics: &CoprocessorMetrics) -> Arc<dyn GuestLines> {
        Arc::new(Lines {
            coprocessor: Arc::from(coprocessor),
            queue: self.queue.clone(),
            clock: self.clock.clone(),
            metrics: metrics.clone(),
            bucket: Mutex::new(Bucket { tokens: BURST, at: self.clock.monotonic() }),
        })
    }
}

/// Waits for lines; `None` when the writer is to stop and nothing is left.
fn collect(lines: &Receiver<Line>, stop: &std::sync::atomic::AtomicBool) -> Option<Vec<Line>> {
    loop {
        match lines.recv_timeout(LINGER) {
            Ok(first) => {
                let mut batch = vec![first];
                let deadline = Instant::now() + LINGER;
                while batch.len() < BATCH
                    && let Ok(line) = lines.recv_deadline(deadline)
                {
                    batch.push(line);
                }
                return Some(batch);
            }
            Err(RecvTimeoutError::Timeout) if !stop.load(std::sync::atomic::Ordering::Relaxed) => {}
            Err(_) => return None,
        }
    }
}

fn write(log: &dyn Log, node: NodeId, batch: &[Line]) {
    let records: Vec<Produce> = batch
        .iter()
        .map(|line| Produce {
            topic: OwnTopic::Logs.name(),
            partition: None,
            record: Record {
                key: Some(line.coprocessor.as_bytes().to_vec()),
                value: Some(to_json(line, node)),
                headers: Vec::new(),
                timestamp: Some(line.time),
            },
        })
        .collect();
    if let Err(error) = log.produce(&records) {
        tracing::warn!(%error, lines = records.len(), "guest log lines were lost: look at topic coprocessor_logs");
    }
}

/// The OTLP-shaped form that Redpanda's tools read too.
fn to_json(line: &Line, node: NodeId) -> Vec<u8> {
    let severity = match line.level {
        LineLevel::Info => 9,
        LineLevel::Warn => 13,
    };
    json!({
        "body": {"stringValue": line.text},
        "timeUnixNano": line.time.saturating_mul(1_000_000),
        "severityNumber": severity,
        "attributes": [
            {"key": "transform_name", "value": {"stringValue": &*line.coprocessor}},
            {"key": "node", "value": {"intValue": node.0}},
        ],
    })
    .to_string()
    .into_bytes()
}

struct Bucket {
    tokens: f64,
    at: Duration,
}

struct Lines {
    coprocessor: Arc<str>,
    queue: Sender<Line>,
    clock: Arc<dyn Clock>,
    metrics: CoprocessorMetrics,
    bucket: Mutex<Bucket>,
}

impl Lines {
    fn take_token(&self) -> bool {
        let now = self.clock.monotonic();
        let mut bucket = self.bucket.lock();
        let passed = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * RATE).min(BURST);
        bucket.at = now;
        let is_free = bucket.tokens >= 1.0;
        if is_free {
            bucket.tokens -= 1.0;
        }
        is_free
    }
}

impl GuestLines for Lines {
    fn line(&self, level: LineLevel, text: &str) {
        self.metrics.log_lines.inc();
        let line = Line {
            coprocessor: self.coprocessor.clone(),
            level,
            time: self.clock.wall_ms(),
            text: text[..text.floor_char_boundary(LINE_BYTES)].to_owned(),
        };
        if !self.take_token() || self.queue.try_send(line).is_err() {
            self.metrics.log_dropped.inc();
        }
    }
}

/// Lines that nobody wants.
pub struct NoLines;

impl GuestLines for NoLines {
    fn line(&self, _: LineLevel, _: &str) {}
}
