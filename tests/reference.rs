//! What can be generated is generated, checked in and compared: `UPDATE=1 cargo test --test reference` rewrites.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(clippy::disallowed_methods, reason = "UPDATE=1 comes from the environment")]

use std::fmt::Write;
use std::path::Path;

use coproc::telemetry::metrics::NODE_METRICS;

fn check(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var("UPDATE").is_ok() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is not what the code says: run `make update`", path.display());
}

#[test]
fn metrics() {
    let mut text = String::from(
        "# Metrics of a node\n\nServed in the text format of Prometheus under `/metrics`. Made from \
         `src/telemetry/metrics.rs` by `make update`.\n\n| name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in NODE_METRICS {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(text, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.help).unwrap();
    }
    check("docs/reference/metrics.md", &text);
}
