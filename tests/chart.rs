//! The chart and the plain manifests: what Helm says of them, and what they make.

#![cfg(feature = "operator")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

#[path = "operator/helm.rs"]
mod helm;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use helm::{helm, render, root};
use serde_json::Value;

fn check(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is out of date: UPDATE=1 cargo test --features operator --test chart",
        path.display()
    );
}

#[test]
fn helm_lint_has_nothing_to_say() {
    let output = helm(&["lint", "--strict", "charts/coproc"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn plain_manifests_are_what_the_chart_makes() {
    let all = render("coproc-system", &["crds.apply=false"]).unwrap();
    let plain: String = all
        .lines()
        .filter(|line| !line.starts_with("# Source:") && !line.contains("helm.sh/chart:"))
        .map(|line| format!("{line}\n").replace("managed-by: Helm", "managed-by: kubectl"))
        .collect();
    check(&root().join("deploy/operator.yaml"), &plain);
}

#[test]
fn snapshots_of_what_values_make() {
    let folder = root().join("tests/snapshots/chart");
    let everything = [
        "pool.bootstrapServers={kafka-0:9092,kafka-1:9092}",
        "pool.spec.maxLanes=64",
        "metrics.serviceMonitor=true",
        "metrics.podMonitor=true",
        "alerts.enabled=true",
        "alerts.configMap=true",
        "dashboards.enabled=true",
        "operator.priorityClassName=system-cluster-critical",
        "installation=west",
    ];
    check(&folder.join("everything.yaml"), &render("coproc-system", &everything).unwrap());
    check(&folder.join("namespaced.yaml"), &render("shop", &["operator.namespaced=true"]).unwrap());
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (set, says) in [
        ("operator.replica=3", "not allowed"),
        ("installation=West", "does not match pattern"),
        ("pool.bootstrapServers={kafka}", "does not match pattern"),
        ("image.pullPolicy=Sometimes", "must be one of"),
        ("operator.replicas=-1", "minimum"),
    ] {
        let error = render("ns", &[set]).expect_err(set);
        assert!(error.contains(says), "{set}: {error}");
    }
}

#[test]
fn a_namespaced_operator_has_no_cluster_role_of_its_own() {
    let text =
        render("shop", &["operator.namespaced=true", "rbac.aggregate=false", "crds.apply=false"]).unwrap();
    assert!(!text.contains("ClusterRole"), "{text}");
}

/// Strimzi's own model reads the example.
#[test]
fn the_strimzi_example_is_what_strimzi_reads() {
    let check = |file: &Path| {
        Command::new(root().join("tests/env/strimzi"))
            .arg(file)
            .output()
            .expect("tests/env/strimzi can be run")
    };
    let example = root().join("deploy/examples/strimzi.yaml");
    let output = check(&example);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let good = String::from_utf8(output.stdout).unwrap();
    for kind in ["good: KafkaNodePool v1 ", "good: Kafka v1 ", "good: KafkaUser v1 "] {
        assert!(good.contains(kind), "{good}");
    }
    // And it would say so.
    let text = std::fs::read_to_string(&example).unwrap();
    for (good, bad, says) in [
        ("patternType: prefix", "pattern: prefix", "has no field pattern"),
        ("operations: [IdempotentWrite]", "operations: [Idempotent]", "is not understood: \"Idempotent\""),
        ("roles: [controller, broker]", "roles: [controller, brokers]", "is not understood"),
        ("replicas: 3", "replicas: three", "not a valid `int` value"),
        ("strimzi.io/v1\nkind: KafkaUser", "strimzi.io/v2\nkind: KafkaUser", "version v2 is not served"),
    ] {
        assert!(text.contains(good), "{good}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text.replace(good, bad)).unwrap();
        let output = check(file.path());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(says), "{bad}: {error}");
    }
}

/// Prometheus' own tool reads the rules, and says when each fires.
#[test]
fn alerts_fire_when_they_should() {
    let promtool = root().join("tests/env/promtool");
    for arguments in [["check", "rules", "charts/coproc/alerts.yaml"], ["test", "rules", "tests/alerts.yaml"]]
    {
        let output = Command::new(&promtool).args(arguments).current_dir(root()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
    // Each has a case in which it fires.
    let names = |file: &str, key: &str| -> BTreeSet<String> {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let named = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
        named.map(|name| name.trim().to_owned()).collect()
    };
    assert_eq!(names("charts/coproc/alerts.yaml", "alert:"), names("tests/alerts.yaml", "alertname:"));
}

#[test]
fn dashboards_and_rules_name_metrics_that_exist() {
    let operator = [
        coproc::operator::metrics::RECONCILE_SECONDS,
        coproc::operator::metrics::RECONCILE_ERRORS,
        coproc::operator::metrics::LEADER,
        coproc::operator::metrics::RESOURCES,
        coproc::operator::metrics::API_WRITES,
        coproc::operator::metrics::CONTROL_WRITES,
    ];
    let node = coproc::telemetry::metrics::NODE_METRICS.iter().map(|metric| metric.name);
    let known: Vec<&str> = node.chain(operator).collect();
    let chart = root().join("charts/coproc");
    let mut texts = vec![std::fs::read_to_string(chart.join("alerts.yaml")).unwrap()];
    for entry in std::fs::read_dir(chart.join("dashboards")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        serde_json::from_str::<Value>(&text).expect("a dashboard is JSON");
        texts.push(text);
    }
    for text in texts {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let is_metric = word.starts_with("coproc_");
            let base = word.trim_end_matches("_bucket");
            assert!(!is_metric || known.contains(&base), "there is no metric {word}");
        }
    }
}
