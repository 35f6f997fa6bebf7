//! The operator's metrics. Names and help texts stand here once.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds that a reconciliation took.
pub const RECONCILE_SECONDS: &str = "coproc_reconcile_seconds";
/// Reconciliations that failed.
pub const RECONCILE_ERRORS: &str = "coproc_reconcile_errors_total";
/// Whether this process leads.
pub const LEADER: &str = "coproc_leader";
/// Resources, by whether they are ready.
pub const RESOURCES: &str = "coproc_resources";
/// Writes to the API server.
pub const API_WRITES: &str = "coproc_operator_api_writes_total";
/// Records written to control and status topics.
pub const CONTROL_WRITES: &str = "coproc_operator_control_records_written_total";

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// By kind.
    pub reconcile_seconds: HistogramVec,
    /// By kind and reason.
    pub reconcile_errors: IntCounterVec,
    /// 1 or 0.
    pub leader: IntGauge,
    /// By kind and ready.
    pub resources: IntGaugeVec,
    /// By kind and what was written.
    pub api_writes: IntCounterVec,
    /// By pool.
    pub control_writes: IntCounterVec,
}

impl Metrics {
    /// The metrics, registered.
    pub fn new() -> Result<Self, prometheus::Error> {
        let counter =
            |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            registry: Registry::new(),
            reconcile_seconds: HistogramVec::new(
                HistogramOpts::new(RECONCILE_SECONDS, "Seconds that a reconciliation took."),
                &["kind"],
            )?,
            reconcile_errors: counter(
                RECONCILE_ERRORS,
                "Reconciliations that failed, by reason.",
                &["kind", "reason"],
            )?,
            leader: IntGauge::new(LEADER, "1 while this operator leads.")?,
            resources: IntGaugeVec::new(
                Opts::new(RESOURCES, "Resources, by whether they are ready."),
                &["kind", "ready"],
            )?,
            api_writes: counter(
                API_WRITES,
                "Writes to the API server, by kind and what.",
                &["kind", "what"],
            )?,
            control_writes: counter(CONTROL_WRITES, "Records written for a pool.", &["pool"])?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.reconcile_errors.clone()))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.resources.clone()))?;
        registry.register(Box::new(metrics.api_writes.clone()))?;
        registry.register(Box::new(metrics.control_writes.clone()))?;
        Ok(metrics)
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}
