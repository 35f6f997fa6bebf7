//! The table: one change of a valid manifest, the reason and the field that it must lead to.

use serde_json::{Value, json};

use super::*;
use crate::operator::crd::{Coprocessor, Pipeline};
use crate::operator::draft::DeploymentKind;

fn coprocessor(change: &Value) -> Coprocessor {
    let mut spec = json!({"module": {"image": "r/m:1"}, "inputTopics": ["in"], "outputTopics": ["out"]});
    merge(&mut spec, change);
    serde_json::from_value(json!({"apiVersion": "coproc.dev/v1alpha1", "kind": "Coprocessor",
        "metadata": {"name": "a"}, "spec": spec}))
    .unwrap()
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

fn found(change: &Value, topics: &TopicsSpec) -> Vec<(&'static str, String)> {
    match deployment(Kind::Coprocessor, 3, &coprocessor(change).draft(), topics) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|problem| (problem.reason, problem.field)).collect(),
    }
}

#[test]
fn a_plain_coprocessor_becomes_a_deployment() {
    let valid =
        deployment(Kind::Coprocessor, 3, &coprocessor(&json!({})).draft(), &TopicsSpec::default()).unwrap();
    assert_eq!(valid.wanted(), [Wanted { image: "r/m:1".into(), every: None }]);
    let module = Resolved {
        image: "r/m:1".into(),
        pinned: "r/m@sha256:1".into(),
        digest: Digest::from_bytes([7; 32]),
        verified: None,
    };
    let deployment = valid.resolve(&[module]);
    assert_eq!((deployment.generation, deployment.owner), (3, Owner::Kubernetes));
    assert_eq!(deployment.steps[0].module.image.as_deref(), Some("r/m@sha256:1"));
    assert_eq!(deployment.policies, Policies::default());
    assert_eq!(deployment.problems(), []);
}

fn every(interval: &str) -> Value {
    json!({"module": {"resolve": {"policy": "Interval", "interval": interval}}})
}

#[test]
fn a_tag_is_looked_up_again_and_a_digest_is_not() {
    let wanted = |change: &Value| {
        let draft = coprocessor(change).draft();
        deployment(Kind::Coprocessor, 3, &draft, &TopicsSpec::default()).unwrap().wanted()[0].every
    };
    let minute = Duration::from_mins(1);
    assert_eq!(wanted(&json!({})), None);
    assert_eq!(wanted(&every("1m")), Some(minute));
    let mut pinned = every("1m");
    merge(&mut pinned, &json!({"module": {"image": "r/m@sha256:1"}}));
    assert_eq!(wanted(&pinned), None);
}

#[test]
fn each_mistake_has_a_reason_and_a_field() {
    for (change, reason, field) in [
        (json!({"inputTopics": ["coprocessor_internal_topic"]}), "ReservedTopic", "spec.inputTopics[0]"),
        (json!({"outputTopics": ["in"]}), "TopicCycle", "spec.outputTopics[0]"),
        (json!({"limits": {"memory": "1"}}), "InvalidLimits", "spec.limits.memory"),
        (json!({"limits": {"timePerRecord": "60s"}}), "InvalidLimits", "spec.limits.timePerRecord"),
        (json!({"limits": {"memory": "99999999999999999Gi"}}), "InvalidSpec", "spec.limits.memory"),
        (json!({"env": {"REDPANDA_X": "1"}}), "InvalidEnv", "spec.env.REDPANDA_X"),
        (json!({"batch": {"commitInterval": "10m"}}), "InvalidSpec", "spec.batch.commitInterval"),
        (every("5s"), "InvalidSpec", "spec.module.resolve.interval"),
        (every("31d"), "InvalidSpec", "spec.module.resolve.interval"),
        (
            json!({"startOffset": {"type": "Timestamp", "timestamp": "yesterday"}}),
            "InvalidSpec",
            "spec.startOffset.timestamp",
        ),
        (
            json!({"errorPolicy": {"onExhausted": "DeadLetter"}}),
            "InvalidSpec",
            "spec.errorPolicy.deadLetterTopic",
        ),
    ] {
        assert_eq!(found(&change, &TopicsSpec::default()), [(reason, field.to_owned())], "{change}");
    }
}

#[test]
fn all_problems_are_reported() {
    let change = json!({"limits": {"memory": "1"}, "outputTopics": ["in"], "env": {"A=": "1"}});
    assert_eq!(found(&change, &TopicsSpec::default()).len(), 3);
}

#[test]
fn a_pool_bounds_what_is_bound() {
    let topics =
        TopicsSpec { inputs: vec!["shop-".into()], outputs: vec!["o".into()], ..TopicsSpec::default() };
    assert_eq!(found(&json!({}), &topics), [("TopicNotAllowed", "spec.inputTopics".to_owned())]);
    assert_eq!(found(&json!({"inputTopics": ["shop-in"]}), &topics), []);
}

#[test]
fn connectors_that_are_not_built_are_refused() {
    let pipeline: Pipeline = serde_json::from_value(json!({"apiVersion": "coproc.dev/v1alpha1",
        "kind": "Pipeline", "metadata": {"name": "a"}, "spec": {"source": {"type": "Nats", "nats": {"subject": "a"}},
            "steps": [{"name": "main", "module": {"image": "r/m:1"}}],
            "sinks": [{"uri": "sqs://queue"}, {"type": "Kafka", "kafka": {"topic": "out"}}]}}))
    .unwrap();
    let problems = deployment(Kind::Pipeline, 1, &pipeline.draft(), &TopicsSpec::default()).unwrap_err();
    let found: Vec<_> = problems.iter().map(|problem| (problem.reason, problem.field.as_str())).collect();
    assert_eq!(found, [("ConnectorNotAvailable", "spec.source"), ("ConnectorNotAvailable", "spec.sinks[0]")]);
}

#[test]
fn pools_keep_to_the_settings_that_are_allowed() {
    let spec = |config: Value| -> RuntimePoolSpec {
        serde_json::from_value(json!({"kafka": {"bootstrapServers": ["k:9092"], "config": config}})).unwrap()
    };
    assert_eq!(pool(&spec(json!({"linger.ms": "5"}))), []);
    let problems = pool(&spec(json!({"transactional.id": "x", "plugin.library.paths": "x"})));
    assert_eq!(problems.len(), 2);
    assert!(problems[0].message.contains("cannot be set: allowed are"));
}

#[test]
fn quantities_are_read_as_the_api_server_reads_them() {
    for (text, is) in [
        ("1", true),
        ("0.5", true),
        (".5", true),
        ("500m", true),
        ("1Gi", true),
        ("2Ei", true),
        ("1e3", true),
        ("-1", true),
        ("much", false),
        ("", false),
        (".", false),
        ("1.2.3", false),
        ("1 Gi", false),
        ("1GiB", false),
        ("1e", false),
    ] {
        assert_eq!(super::is_quantity(text), is, "{text:?}");
    }
}
