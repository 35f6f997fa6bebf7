//! The node's metrics. Names and help texts stand here once; `docs/reference/metrics.md` is made from them.

use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Label: display name of the deployment.
pub const COPROCESSOR: &str = "coprocessor";
/// Label: input topic.
pub const TOPIC: &str = "topic";
/// Label: partition of the input topic.
pub const PARTITION: &str = "partition";

/// A metric as it is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Full name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// What it counts, with its unit.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($field:ident: $kind:literal $name:literal $labels:expr, $help:literal;)*) => {
        /// Every metric of a node, in the order of the reference.
        pub const NODE_METRICS: &[Described] = &[
            $(Described { name: $name, kind: $kind, labels: $labels, help: $help },)*
        ];

        $(const $field: Described = Described { name: $name, kind: $kind, labels: $labels, help: $help };)*
    };
}

metrics! {
    RECORDS_IN: "counter" "coproc_records_in_total" &[COPROCESSOR], "Input records whose processing was committed.";
    RECORDS_OUT: "counter" "coproc_records_out_total" &[COPROCESSOR], "Output records that were committed, dead letters not among them.";
    BYTES_IN: "counter" "coproc_bytes_in_total" &[COPROCESSOR], "Bytes of keys, values and headers of the input records that were committed.";
    BYTES_OUT: "counter" "coproc_bytes_out_total" &[COPROCESSOR], "Bytes of keys, values and headers of the output records that were committed.";
    GUEST_SECONDS: "counter" "coproc_guest_seconds_total" &[COPROCESSOR], "Seconds spent in guests, host calls included.";
    GUEST_ERRORS: "counter" "coproc_guest_errors_total" &[COPROCESSOR, "class"], "Failures of guests, by error class.";
    RETRIES: "counter" "coproc_retries_total" &[COPROCESSOR], "Records that were scheduled to be tried again after a failure of the guest.";
    DEAD_LETTERS: "counter" "coproc_dead_letters_total" &[COPROCESSOR], "Records that went to the dead-letter topic.";
    SKIPPED: "counter" "coproc_skipped_records_total" &[COPROCESSOR], "Records that were left out under onExhausted: Skip.";
    COMMIT_SECONDS: "histogram" "coproc_commit_seconds" &[COPROCESSOR], "Seconds that an ack-commit took.";
    TRANSACTIONS: "counter" "coproc_transactions_total" &[COPROCESSOR, "result"], "Ack-commits, by result: committed, aborted.";
    LAG_RECORDS: "gauge" "coproc_lag_records" &[COPROCESSOR, TOPIC, PARTITION], "Records between the committed offset and the last stable one.";
    LANES: "gauge" "coproc_lanes" &[COPROCESSOR], "Lanes that run.";
    PAUSED: "gauge" "coproc_paused" &[COPROCESSOR], "1 while it is paused, else 0.";
    RECORD_LATENCY: "histogram" "coproc_record_latency_seconds" &[COPROCESSOR], "Seconds from a record's timestamp to its commit, for the first record of each batch.";
    MODULE_INFO: "gauge" "coproc_module_info" &[COPROCESSOR, "step", "digest"], "1 for each module that runs.";
    MODULE_LOAD: "histogram" "coproc_module_load_seconds" &[], "Seconds from the request for a module to its first instance.";
    NODE_INFO: "gauge" "coproc_node_info" &["node_id", "pool", "version"], "1.";
    CONTROL_IGNORED: "counter" "coproc_control_records_ignored_total" &[], "Records of the control topic that were not understood.";
    GUEST_MEMORY: "gauge" "coproc_guest_memory_bytes" &[COPROCESSOR], "Linear memory of the guests that run.";
    LOG_LINES: "counter" "coproc_guest_log_lines_total" &[COPROCESSOR], "Lines that guests printed.";
    LOG_DROPPED: "counter" "coproc_guest_log_lines_dropped_total" &[COPROCESSOR], "Lines of guests that were dropped by the rate limit or a full queue.";
}

/// Buckets for times of commits, records and module loads, in seconds.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

fn opts(described: Described) -> Opts {
    Opts::new(described.name, described.help)
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let made = made?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn counters(registry: &Registry, described: Described) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(described), described.labels))
}

fn histograms(registry: &Registry, described: Described) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts::new(described.name, described.help).buckets(SECONDS.to_vec());
    register(registry, HistogramVec::new(opts, described.labels))
}

/// The node's metrics.
pub struct NodeMetrics {
    registry: Registry,
    records_in: IntCounterVec,
    records_out: IntCounterVec,
    bytes_in: IntCounterVec,
    bytes_out: IntCounterVec,
    guest_seconds: prometheus::CounterVec,
    guest_errors: IntCounterVec,
    retries: IntCounterVec,
    dead_letters: IntCounterVec,
    skipped: IntCounterVec,
    commit_seconds: HistogramVec,
    transactions: IntCounterVec,
    lag: IntGaugeVec,
    lanes: IntGaugeVec,
    paused: IntGaugeVec,
    latency: HistogramVec,
    module_info: GaugeVec,
    guest_memory: IntGaugeVec,
    log_lines: IntCounterVec,
    log_dropped: IntCounterVec,
    /// Seconds from the request for a module to its first instance.
    pub module_load: Histogram,
    /// Records of the control topic that were not understood.
    pub control_ignored: IntCounter,
}

impl NodeMetrics {
    /// Metrics of a node, all at zero.
    pub fn new(node_id: &str, pool: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauges = |described: Described| -> prometheus::Result<IntGaugeVec> {
            register(&registry, IntGaugeVec::new(opts(described), described.labels))
        };
        let info = register(&registry, GaugeVec::new(opts(NODE_INFO), NODE_INFO.labels))?;
        info.with_label_values(&[node_id, pool, env!("CARGO_PKG_VERSION")]).set(1.0);
        let load = HistogramOpts::new(MODULE_LOAD.name, MODULE_LOAD.help).buckets(SECONDS.to_vec());
        Ok(Self {
            records_in: counters(&registry, RECORDS_IN)?,
            records_out: counters(&registry, RECORDS_OUT)?,
            bytes_in: counters(&registry, BYTES_IN)?,
            bytes_out: counters(&registry, BYTES_OUT)?,
            guest_seconds: register(
                &registry,
                prometheus::CounterVec::new(opts(GUEST_SECONDS), GUEST_SECONDS.labels),
            )?,
            guest_errors: counters(&registry, GUEST_ERRORS)?,
            retries: counters(&registry, RETRIES)?,
            dead_letters: counters(&registry, DEAD_LETTERS)?,
            skipped: counters(&registry, SKIPPED)?,
            commit_seconds: histograms(&registry, COMMIT_SECONDS)?,
            transactions: counters(&registry, TRANSACTIONS)?,
            lag: gauges(LAG_RECORDS)?,
            lanes: gauges(LANES)?,
            paused: gauges(PAUSED)?,
            latency: histograms(&registry, RECORD_LATENCY)?,
            module_info: register(&registry, GaugeVec::new(opts(MODULE_INFO), MODULE_INFO.labels))?,
            guest_memory: gauges(GUEST_MEMORY)?,
            log_lines: counters(&registry, LOG_LINES)?,
            log_dropped: counters(&registry, LOG_DROPPED)?,
            module_load: register(&registry, Histogram::with_opts(load))?,
            control_ignored: register(&registry, IntCounter::with_opts(opts(CONTROL_IGNORED)))?,
            registry,
        })
    }

    /// The metrics of one deployment.
    pub fn of(&self, coprocessor: &str) -> CoprocessorMetrics {
        let name = &[coprocessor];
        CoprocessorMetrics {
            name: coprocessor.to_owned(),
            records_in: self.records_in.with_label_values(name),
            records_out: self.records_out.with_label_values(name),
            bytes_in: self.bytes_in.with_label_values(name),
            bytes_out: self.bytes_out.with_label_values(name),
            guest_seconds: self.guest_seconds.with_label_values(name),
            guest_errors: self.guest_errors.clone(),
            retries: self.retries.with_label_values(name),
            dead_letters: self.dead_letters.with_label_values(name),
            skipped: self.skipped.with_label_values(name),
            commit_seconds: self.commit_seconds.with_label_values(name),
            committed: self.transactions.with_label_values(&[coprocessor, "committed"]),
            aborted: self.transactions.with_label_values(&[coprocessor, "aborted"]),
            lag: self.lag.clone(),
            lanes: self.lanes.with_label_values(name),
            latency: self.latency.with_label_values(name),
            guest_memory: self.guest_memory.with_label_values(name),
            log_lines: self.log_lines.with_label_values(name),
            log_dropped: self.log_dropped.with_label_values(name),
        }
    }

    /// Says which modules a deployment runs, one per step.
    pub fn set_modules(&self, coprocessor: &str, modules: &[(String, String)], running: bool) {
        for (step, digest) in modules {
            let labels = [coprocessor, step, digest];
            if running {
                self.module_info.with_label_values(&labels).set(1.0);
            } else {
                let _ = self.module_info.remove_label_values(&labels);
            }
        }
    }

    /// Forgets a deployment that is gone; `partitions` are those that it may have had.
    pub fn forget(&self, coprocessor: &str, partitions: &[(String, u32)]) {
        let name = &[coprocessor];
        for counter in [
            &self.records_in,
            &self.records_out,
            &self.bytes_in,
            &self.bytes_out,
            &self.retries,
            &self.dead_letters,
            &self.skipped,
            &self.log_lines,
            &self.log_dropped,
        ] {
            let _ = counter.remove_label_values(name);
        }
        let _ = self.guest_seconds.remove_label_values(name);
        let _ = self.commit_seconds.remove_label_values(name);
        let _ = self.latency.remove_label_values(name);
        let _ = self.lanes.remove_label_values(name);
        let _ = self.paused.remove_label_values(name);
        let _ = self.guest_memory.remove_label_values(name);
        for result in ["committed", "aborted"] {
            let _ = self.transactions.remove_label_values(&[coprocessor, result]);
        }
        for (topic, partition) in partitions {
            let _ = self.lag.remove_label_values(&[coprocessor, topic, &partition.to_string()]);
        }
    }

    /// Says whether a deployment is paused.
    pub fn set_paused(&self, coprocessor: &str, is_paused: bool) {
        self.paused.with_label_values(&[coprocessor]).set(is_paused.into());
    }

    /// Everything in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        // Writing to a vector does not fail; a metric that cannot be written is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// The metrics of one deployment on this node.
#[derive(Clone)]
pub struct CoprocessorMetrics {
    name: String,
    /// Input records whose processing was committed.
    pub records_in: IntCounter,
    /// Output records that were committed.
    pub records_out: IntCounter,
    /// Input payload bytes that were committed.
    pub bytes_in: IntCounter,
    /// Output payload bytes that were committed.
    pub bytes_out: IntCounter,
    /// Seconds in guests.
    pub guest_seconds: prometheus::Counter,
    guest_errors: IntCounterVec,
    /// Retries scheduled.
    pub retries: IntCounter,
    /// Dead letters written.
    pub dead_letters: IntCounter,
    /// Records left out.
    pub skipped: IntCounter,
    /// Seconds per ack-commit.
    pub commit_seconds: Histogram,
    /// Ack-commits that went through.
    pub committed: IntCounter,
    /// Ack-commits that did not.
    pub aborted: IntCounter,
    lag: IntGaugeVec,
    /// Lanes that run.
    pub lanes: IntGauge,
    /// Seconds from timestamp to commit.
    pub latency: Histogram,
    /// Linear memory of the guests that run, in bytes.
    pub guest_memory: IntGauge,
    /// Lines printed.
    pub log_lines: IntCounter,
    /// Lines dropped.
    pub log_dropped: IntCounter,
}

impl CoprocessorMetrics {
    /// Counts a failure of the guest.
    pub fn guest_error(&self, class: &str) {
        self.guest_errors.with_label_values(&[&self.name, class]).inc();
    }

    /// Sets the lag of a partition; `None` when the lane does not own it any more.
    pub fn set_lag(&self, topic: &str, partition: u32, lag: Option<u64>) {
        let partition = partition.to_string();
        let labels = [self.name.as_str(), topic, &partition];
        match lag {
            Some(lag) => {
                self.lag.with_label_values(&labels).set(i64::try_from(lag).unwrap_or(i64::MAX));
            }
            None => drop(self.lag.remove_label_values(&labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_described_metric_is_exposed_and_nothing_else() {
        let metrics = NodeMetrics::new("0", "default").unwrap();
        let one = metrics.of("a");
        one.guest_error("trap");
        one.set_lag("in", 0, Some(3));
        metrics.set_paused("a", true);
        metrics.set_modules("a", &[("main".into(), "sha256:0".into())], true);
        let text = metrics.text();
        for Described { name, kind, .. } in NODE_METRICS {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is not exposed");
        }
        let exposed = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(exposed, NODE_METRICS.len());
        assert!(text.contains("coproc_lag_records{coprocessor=\"a\",partition=\"0\",topic=\"in\"} 3"));
    }
}
