//! The operator on a real API server, with a log in memory: what is refused, what is told, what is left behind.

#![cfg(feature = "operator")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#[path = "operator/chart.rs"]
mod chart;
#[path = "operator/cluster.rs"]
mod cluster;
#[path = "operator/fields.rs"]
mod fields;
#[path = "operator/helm.rs"]
mod helm;
#[path = "operator/memory.rs"]
mod memory;

use std::time::{Duration, Instant};

use cluster::{Fixture, api_of, audit_lines, condition, coprocessor, is_write, requests, until};
use coproc::core::status::{LastError, State};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_nobody_has_seen_is_not_ready() {
    let at = Fixture::new("unseen").await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    let object = at.api("Coprocessor").get("a").await.unwrap();
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    assert_eq!(
        (&status["observedGeneration"], &condition(&object.data, "Ready")["status"]),
        (&json!(-1), &json!("Unknown"))
    );
    assert_eq!(
        (&spec["pool"], &spec["delivery"], &spec["limits"]["memory"]),
        (&json!("default"), &json!("Auto"), &json!("32Mi"))
    );
    assert_eq!(
        (&spec["errorPolicy"]["maxRetries"], &spec["batch"]["commitInterval"]),
        (&json!(10), &json!("100ms"))
    );
}

/// A change of a valid manifest, and what the API server's refusal must say; empty where it must be taken.
fn manifests() -> Vec<(&'static str, Value, &'static str)> {
    let source = |source: Value| json!({"source": source, "steps": [{"name": "a", "module": {"image": "r/m:1"}}], "sinks": [{"type": "Kafka", "kafka": {"topic": "out"}}]});
    let kafka = |change: Value| {
        json!({"kafka": {"bootstrapServers": ["k:9092"]}, "replicas": 1})
            .as_object()
            .map(|spec| {
                let mut spec = spec.clone();
                spec.extend(change.as_object().unwrap().clone());
                Value::Object(spec)
            })
            .unwrap()
    };
    vec![
        ("Coprocessor", coprocessor(&json!({})), ""),
        ("Coprocessor", coprocessor(&json!({"outputNaming": "Materialized", "outputTopics": ["in"]})), ""),
        ("Coprocessor", coprocessor(&json!({"inputTopics": []})), "should have at least 1 items"),
        ("Coprocessor", coprocessor(&json!({"inputTopics": ["a b"]})), "should match"),
        ("Coprocessor", coprocessor(&json!({"inputTopics": ["a", "a"]})), "Duplicate value"),
        (
            "Coprocessor",
            coprocessor(&json!({"inputTopics": (0..65).map(|i| format!("t{i}")).collect::<Vec<_>>()})),
            "must have at most 64 items",
        ),
        (
            "Coprocessor",
            coprocessor(&json!({"outputTopics": (0..9).map(|i| format!("t{i}")).collect::<Vec<_>>()})),
            "must have at most 8 items",
        ),
        ("Coprocessor", coprocessor(&json!({"outputTopics": ["in"]})), "records would go round for ever"),
        ("Coprocessor", coprocessor(&json!({"module": {}})), "module.image: Required value"),
        ("Coprocessor", coprocessor(&json!({"module": {"image": " x"}})), "should match"),
        ("Coprocessor", coprocessor(&json!({"outputNaming": "Other"})), "Unsupported value"),
        ("Coprocessor", coprocessor(&json!({"parallelism": 0})), "should be greater than or equal to 1"),
        ("Coprocessor", coprocessor(&json!({"parallelism": 257})), "should be less than or equal to 256"),
        ("Coprocessor", coprocessor(&json!({"limits": {"memory": "32 megabytes"}})), "should match"),
        ("Coprocessor", coprocessor(&json!({"limits": {"timePerRecord": "3"}})), "should match"),
        (
            "Coprocessor",
            coprocessor(&json!({"startOffset": {"type": "Timestamp"}})),
            "timestamp belongs to type Timestamp",
        ),
        (
            "Coprocessor",
            coprocessor(&json!({"startOffset": {"type": "Timestamp", "timestamp": "yesterday"}})),
            "must be of type date-time",
        ),
        (
            "Coprocessor",
            coprocessor(&json!({"startOffset": {"type": "Latest", "records": 5}})),
            "records belongs to types FromStart and FromEnd",
        ),
        ("Coprocessor", coprocessor(&json!({"startOffset": {"type": "FromEnd", "records": 5}})), ""),
        (
            "Coprocessor",
            coprocessor(&json!({"errorPolicy": {"onExhausted": "DeadLetter"}})),
            "needs a deadLetterTopic",
        ),
        (
            "Coprocessor",
            coprocessor(&json!({"errorPolicy": {"onExhausted": "DeadLetter", "deadLetterTopic": "in"}})),
            "failing records would go round",
        ),
        (
            "Coprocessor",
            coprocessor(&json!({"errorPolicy": {"onExhausted": "DeadLetter", "deadLetterTopic": "dead"}})),
            "",
        ),
        ("Coprocessor", coprocessor(&json!({"env": {"A": ""}})), "should be at least 1 chars long"),
        ("Coprocessor", coprocessor(&json!({"pool": "Not_A_Label"})), "should match"),
        ("Pipeline", source(json!({"type": "Kafka", "kafka": {"topics": ["in"]}})), ""),
        ("Pipeline", source(json!({"uri": "kafka://in"})), ""),
        (
            "Pipeline",
            source(json!({"uri": "kafka://in", "type": "Kafka", "kafka": {"topics": ["in"]}})),
            "give either type or uri",
        ),
        ("Pipeline", source(json!({})), "give either type or uri"),
        ("Pipeline", source(json!({"type": "Kafka"})), "field kafka belongs to type Kafka"),
        (
            "Pipeline",
            source(json!({"type": "Nats", "kafka": {"topics": ["in"]}})),
            "field kafka belongs to type Kafka",
        ),
        ("Pipeline", source(json!({"type": "Sns"})), "Sns is a sink"),
        ("Pipeline", source(json!({"type": "Http", "http": {"path": "/in"}})), ""),
        ("RuntimePool", kafka(json!({})), ""),
        ("RuntimePool", kafka(json!({"kafka": {"bootstrapServers": []}})), "should have at least 1 items"),
        ("RuntimePool", kafka(json!({"kafka": {"bootstrapServers": ["http://k:9092"]}})), "should match"),
        ("RuntimePool", kafka(json!({"replicas": -1})), "should be greater than or equal to 0"),
        ("RuntimePool", kafka(json!({"replicas": 1001})), "should be less than or equal to 1000"),
        ("RuntimePool", kafka(json!({"nodeIdBase": 1500})), "multiple of 1000"),
        ("RuntimePool", kafka(json!({"nodeIdBase": 0})), "should be greater than or equal to 1000"),
        (
            "RuntimePool",
            kafka(json!({"kafka": {"bootstrapServers": ["k:9092"], "sasl": {"mechanism": "GSSAPI"}}})),
            "Unsupported value",
        ),
        ("RuntimePool", kafka(json!({"template": {"tolerations": [{"key": 5}]}})), "must be of type string"),
        ("RuntimePool", kafka(json!({"resources": {"limits": {"memory": "much"}}})), ""),
    ]
}

/// The same, for when tags are looked up.
fn manifests_of_tags() -> Vec<(&'static str, Value, &'static str)> {
    let resolve = |resolve: Value| json!({"module": {"image": "r/m:1", "resolve": resolve}});
    vec![
        ("Coprocessor", coprocessor(&resolve(json!({"policy": "Interval", "interval": "10m"}))), ""),
        ("Coprocessor", coprocessor(&resolve(json!({"policy": "Interval"}))), "interval belongs to policy"),
        ("Coprocessor", coprocessor(&resolve(json!({"interval": "10m"}))), "interval belongs to policy"),
        (
            "Coprocessor",
            coprocessor(&resolve(json!({"policy": "Interval", "interval": "often"}))),
            "should match",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_refused_at_admission() {
    let at = Fixture::new("manifests").await;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    for (kind, spec, says) in manifests().into_iter().chain(manifests_of_tags()) {
        let body = serde_json::from_value(at.object(kind, "default", &spec)).unwrap();
        let answer = at.api(kind).create(&dry_run, &body).await;
        match (answer, says) {
            (Ok(_), "") => {}
            (Ok(_), _) => panic!("{kind} {spec} was taken; it should say {says:?}"),
            (Err(error), "") => panic!("{kind} {spec} was refused: {error}"),
            (Err(error), _) => assert!(error.to_string().contains(says), "{kind} {spec}: {error}"),
        }
    }
}

/// What a document for users shows of the three kinds.
fn shown(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(helm::root().join(file)).unwrap();
    let of_markdown: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let texts = if of_markdown.is_empty() { vec![text.as_str()] } else { of_markdown };
    let documents = texts.iter().flat_map(|text| text.split("\n---\n"));
    let parsed = documents.map(|text| serde_yaml::from_str::<Value>(text).unwrap());
    parsed.filter(|document| document["apiVersion"] == "coproc.dev/v1alpha1").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_documents_show_is_taken_at_admission() {
    let at = Fixture::new("documents").await;
    let params = PostParams { dry_run: true, ..PostParams::default() };
    for (file, count) in [
        ("README.md", 1),
        ("docs/kubernetes.md", 1),
        ("deploy/examples/pool.yaml", 1),
        ("deploy/examples/coprocessor.yaml", 1),
        ("deploy/examples/pipeline.yaml", 1),
        ("deploy/examples/strimzi.yaml", 1),
    ] {
        let documents = shown(file);
        assert_eq!(documents.len(), count, "{file}");
        for document in documents {
            let kind = document["kind"].as_str().unwrap().to_owned();
            // Unknown fields would be dropped in silence.
            let names: Vec<_> = document["spec"].as_object().unwrap().keys().cloned().collect();
            let made = at.api(&kind).create(&params, &serde_json::from_value(document).unwrap()).await;
            let made = made.unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(names.iter().all(|name| made.data["spec"].get(name).is_some()), "{file}: {names:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fixed_stays_fixed() {
    let at = Fixture::new("transitions").await;
    let with_group = coprocessor(&json!({"consumerGroup": "g"}));
    at.apply("Coprocessor", "a", &with_group).await.unwrap();
    at.apply("Coprocessor", "b", &coprocessor(&json!({}))).await.unwrap();
    let pipeline = |source: Value| {
        json!({"source": source, "steps": [{"name": "a", "module": {"image": "r/m:1"}}],
            "sinks": [{"type": "Kafka", "kafka": {"topic": "out"}}]})
    };
    let kafka = |kafka: Value| pipeline(json!({"type": "Kafka", "kafka": kafka}));
    at.apply("Pipeline", "a", &kafka(json!({"topics": ["in"], "consumerGroup": "g"}))).await.unwrap();
    at.apply("Pipeline", "b", &pipeline(json!({"uri": "nats://in"}))).await.unwrap();
    let pool = |change: Value| {
        let mut spec = json!({"kafka": {"bootstrapServers": ["k:9092"]}});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec
    };
    at.apply("RuntimePool", "p", &pool(json!({"nodeIdBase": 2000}))).await.unwrap();
    for (kind, name, spec, says) in [
        ("Coprocessor", "a", coprocessor(&json!({"consumerGroup": "h"})), "consumerGroup cannot be changed"),
        ("Coprocessor", "a", coprocessor(&json!({})), "consumerGroup cannot be changed"),
        ("Coprocessor", "b", with_group.clone(), "consumerGroup cannot be changed"),
        ("Coprocessor", "b", coprocessor(&json!({"pool": "other"})), "pool cannot be changed"),
        (
            "Pipeline",
            "a",
            kafka(json!({"topics": ["in"], "consumerGroup": "h"})),
            "consumerGroup cannot be changed",
        ),
        ("Pipeline", "a", kafka(json!({"topics": ["in"]})), "consumerGroup cannot be changed"),
        // Nor by way of another source.
        (
            "Pipeline",
            "a",
            pipeline(json!({"uri": "nats://in"})),
            "cannot be changed to or from Kafka: delete",
        ),
        (
            "Pipeline",
            "a",
            pipeline(json!({"type": "Http", "http": {}})),
            "cannot be changed to or from Kafka",
        ),
        ("Pipeline", "b", kafka(json!({"topics": ["in"]})), "cannot be changed to or from Kafka"),
        ("RuntimePool", "p", pool(json!({"nodeIdBase": 3000})), "nodeIdBase cannot be changed"),
        ("RuntimePool", "p", pool(json!({})), "nodeIdBase cannot be removed"),
        (
            "RuntimePool",
            "p",
            pool(json!({"nodeIdBase": 2000, "cache": {"size": "2Gi"}})),
            "cache cannot be changed",
        ),
    ] {
        let error = at.apply(kind, name, &spec).await.expect_err(says);
        assert!(error.to_string().contains(says), "{kind} {name}: {error}");
    }
    at.apply("Pipeline", "a", &kafka(json!({"topics": ["in", "in2"], "consumerGroup": "g"}))).await.unwrap();
    at.apply("Pipeline", "b", &pipeline(json!({"type": "Http", "http": {}}))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_becomes_objects_that_the_restricted_profile_takes() {
    let at = Fixture::new("pool").await;
    let running = at.start();
    at.pool(&json!({"replicas": 2})).await;
    let pool = at.reason("RuntimePool", "default", "RollingOut").await;
    assert_eq!(pool["status"]["nodeIdBase"], 1000);
    assert_eq!(at.log.table("coprocessor_internal_topic")["nodes/1000"], b"default/pool/default");
    let find = |group: &str, kind: &str| api_of(&at.client, group, "v1", kind, Some("pool"));
    for (group, kind) in [
        ("", "ServiceAccount"),
        ("", "ConfigMap"),
        ("", "Service"),
        ("apps", "StatefulSet"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("policy", "PodDisruptionBudget"),
    ] {
        let object = find(group, kind).get("default-runtime").await.unwrap();
        let owner = &object.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.controller), ("RuntimePool", Some(true)), "{kind}");
    }
    // What the StatefulSet's controller would create, through the same admission.
    let set = find("apps", "StatefulSet").get("default-runtime").await.unwrap();
    let mut pod = set.data["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "default-runtime-0".into();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    find("", "Pod").create(&dry_run, &serde_json::from_value(pod).unwrap()).await.expect("restricted");
    // The scale subresource scales.
    let params = PatchParams::default();
    at.api("RuntimePool")
        .patch_scale("default", &params, &Patch::Merge(json!({"spec": {"replicas": 3}})))
        .await
        .unwrap();
    until("three nodes are wanted", Duration::from_secs(10), async || {
        let set = find("apps", "StatefulSet").get("default-runtime").await.unwrap();
        (set.data["spec"]["replicas"] == 3).then_some(())
    })
    .await;
    // What somebody changes by hand is undone.
    let by_hand = json!({"spec": {"template": {"spec": {"automountServiceAccountToken": true}}}});
    find("apps", "StatefulSet").patch("default-runtime", &params, &Patch::Merge(by_hand)).await.unwrap();
    until("the change is undone", Duration::from_secs(10), async || {
        let set = find("apps", "StatefulSet").get("default-runtime").await.unwrap();
        (set.data["spec"]["template"]["spec"]["automountServiceAccountToken"] == false).then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coprocessor_is_deployed_told_about_and_cleaned_up() {
    let at = Fixture::new("life").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 2);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "NoNodes").await;
    let key = "deployment/default/life/default/coprocessor/a";
    assert_eq!(at.deployments(), [key]);
    let record: Value = serde_json::from_slice(&at.log.table("coprocessor_internal_topic")[key]).unwrap();
    assert_eq!((&record["owner"], &record["generation"]), (&json!("kubernetes"), &json!(1)));
    assert_eq!(record["steps"][0]["module"]["digest"], cluster::digest("r/m:1").to_string());

    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "PartitionsUnserved").await;
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 2)]);
    let ready = at.reason("Coprocessor", "a", "Running").await;
    assert_eq!(ready["status"]["nodes"][0]["pod"], "default-runtime-0");
    assert_eq!(ready["status"]["module"]["digest"], cluster::digest("r/m:1").to_string());

    // A module that does not start: the old one runs on, and the resource says so.
    at.apply("Coprocessor", "a", &coprocessor(&json!({"module": {"image": "r/m:2"}}))).await.unwrap();
    at.reason("Coprocessor", "a", "RollingOut").await;
    let mut broken = at.report("a", 1, State::Running, 2);
    broken.reason = Some("InvalidModule".into());
    broken.last_error =
        Some(LastError { time: 0, reason: "InvalidModule".into(), message: "no wasm".into() });
    at.heartbeat(1000, &[broken]);
    let stalled = at.reason("Coprocessor", "a", "InvalidModule").await;
    assert_eq!(
        (&stalled["status"]["phase"], &condition(&stalled, "Stalled")["status"]),
        (&json!("Degraded"), &json!("True"))
    );
    at.heartbeat(1000, &[at.report("a", 2, State::Running, 2)]);
    at.reason("Coprocessor", "a", "Running").await;

    at.apply("Coprocessor", "a", &coprocessor(&json!({"paused": true}))).await.unwrap();
    at.heartbeat(1000, &[at.report("a", 3, State::Paused, 0)]);
    let paused = at.reason("Coprocessor", "a", "Paused").await;
    assert_eq!(
        (&condition(&paused, "Ready")["status"], &paused["status"]["phase"]),
        (&json!("True"), &json!("Paused"))
    );

    let group = "coproc.default.life.coprocessor.a";
    at.log.group(group, 1);
    at.log.group("somebody-elses", 0);
    at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
    until("the tombstone is written", Duration::from_secs(10), async || {
        at.deployments().is_empty().then_some(())
    })
    .await;
    at.heartbeat(1000, &[]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(at.api("Coprocessor").get_opt("a").await.unwrap().is_some(), "a member is still in the group");
    at.log.group(group, 0);
    at.gone("Coprocessor", "a").await;
    assert_eq!(at.log.group_names(), ["somebody-elses"]);
    assert!(at.log.table("coprocessor_status_topic").keys().all(|key| key == "1000"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_that_admission_cannot_see_becomes_a_condition() {
    let at = Fixture::new("conditions").await;
    let running = at.start();
    at.pool(&json!({"topics": {"outputs": ["out", "dead", "x"]}})).await;
    at.log.topic("in", 1);
    at.apply(
        "Coprocessor",
        "other",
        &coprocessor(&json!({"inputTopics": ["x"], "outputTopics": ["out2"], "consumerGroup": "taken"})),
    )
    .await
    .unwrap();
    at.reason("Coprocessor", "other", "TopicNotFound").await;
    let cases = [
        (json!({"pool": "nowhere"}), "PoolNotFound", false),
        (json!({"inputTopics": ["coprocessor_internal_topic"]}), "ReservedTopic", true),
        (json!({"outputTopics": ["secret"]}), "TopicNotAllowed", true),
        (json!({"limits": {"memory": "1"}}), "InvalidLimits", true),
        (json!({"limits": {"timePerRecord": "60s"}}), "InvalidLimits", true),
        (json!({"env": {"REDPANDA_X": "1"}}), "InvalidEnv", true),
        (json!({"batch": {"commitInterval": "60s"}}), "InvalidSpec", true),
        (json!({"errorPolicy": {"initialBackoff": "10s", "maxBackoff": "1s"}}), "InvalidSpec", true),
        (json!({"module": {"image": "r/missing:1"}}), "ImageNotFound", true),
        (json!({"module": {"image": "r/unreachable:1"}}), "RegistryUnavailable", false),
        (json!({"inputTopics": ["no-such-topic"]}), "TopicNotFound", false),
        (json!({"inputTopics": ["out2"], "outputTopics": ["x"]}), "TopicCycle", true),
        (json!({"consumerGroup": "taken"}), "GroupInUse", true),
    ];
    for (i, (change, reason, stalls)) in cases.iter().enumerate() {
        let name = format!("c{i}");
        at.apply("Coprocessor", &name, &coprocessor(change)).await.unwrap();
        let found = at.reason("Coprocessor", &name, reason).await;
        let stalled = condition(&found, "Stalled")["status"] == "True";
        assert_eq!(stalled, *stalls, "{change}: {}", found["status"]["conditions"]);
        assert!(!condition(&found, "Ready")["message"].as_str().unwrap().is_empty(), "{change}");
        // And back: a valid specification recovers. What is fixed is made anew.
        if change.get("pool").is_none() && change.get("consumerGroup").is_none() {
            at.apply("Coprocessor", &name, &coprocessor(&json!({}))).await.unwrap();
            at.reason("Coprocessor", &name, "NoNodes").await;
        }
    }
    for (change, reason) in [
        (
            json!({"kafka": {"bootstrapServers": ["k:9092"], "config": {"transactional.id": "x"}}}),
            "InvalidSpec",
        ),
        (json!({"drainTimeout": "1h"}), "InvalidSpec"),
        (json!({"secrets": ["nowhere"]}), "SecretNotFound"),
        (json!({"resources": {"limits": {"memory": "much"}}}), "InvalidSpec"),
        (json!({"registry": {"insecure": ["nonsense"]}}), "InvalidSpec"),
        (json!({"resources": {"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi"}}}), "ObjectRefused"),
    ] {
        at.pool(&change).await;
        let found = at.reason("RuntimePool", "default", reason).await;
        assert_eq!(condition(&found, "Stalled")["status"], "True", "{change}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finalizer_lets_go_when_nothing_can_be_cleaned_up() {
    let at = Fixture::new("ways-out").await;
    let running = at.start();
    at.pool(&json!({})).await;
    for name in ["forced", "orphaned", "by-namespace"] {
        at.apply("Coprocessor", name, &coprocessor(&json!({}))).await.unwrap();
        at.reason("Coprocessor", name, "TopicNotFound").await;
    }
    at.log.set_down(true);
    at.reason("Coprocessor", "forced", "KafkaUnavailable").await;
    let coprocessors = at.api("Coprocessor");
    coprocessors.delete("forced", &DeleteParams::default()).await.unwrap();
    let told = until("it says what it waits for", Duration::from_secs(20), async || {
        let object = coprocessors.get("forced").await.unwrap();
        (object.data["status"]["phase"] == "Terminating").then_some(object.data)
    })
    .await;
    assert!(
        condition(&told, "Ready")["message"].as_str().unwrap().contains("coproc.dev/force-finalize=true")
    );
    let forced = json!({"metadata": {"annotations": {"coproc.dev/force-finalize": "true"}}});
    coprocessors.patch("forced", &PatchParams::default(), &Patch::Merge(forced.clone())).await.unwrap();
    at.gone("Coprocessor", "forced").await;
    // The same for a pool; without it, nobody can clean up after its resources.
    let pools = at.api("RuntimePool");
    pools.delete("default", &DeleteParams::default()).await.unwrap();
    at.reason("Coprocessor", "orphaned", "PoolNotFound").await;
    let told = at.reason("RuntimePool", "default", "KafkaUnavailable").await;
    assert!(
        condition(&told, "Ready")["message"].as_str().unwrap().contains("coproc.dev/force-finalize=true")
    );
    pools.patch("default", &PatchParams::default(), &Patch::Merge(forced)).await.unwrap();
    at.gone("RuntimePool", "default").await;
    coprocessors.delete("orphaned", &DeleteParams::default()).await.unwrap();
    at.gone("Coprocessor", "orphaned").await;
    // Each says why, to whoever looks at what happened.
    let events = api_of(&at.client, "events.k8s.io", "v1", "Event", Some("ways-out"));
    let told = events.list(&ListParams::default()).await.unwrap();
    let skipped = told.items.iter().filter(|event| event.data["reason"] == "CleanUpSkipped");
    let skipped: std::collections::BTreeMap<_, _> = skipped
        .map(|event| {
            let about = event.data["regarding"]["name"].as_str().unwrap().to_owned();
            (about, event.data["note"].as_str().unwrap().to_owned())
        })
        .collect();
    for (about, why) in [
        ("forced", "because coproc.dev/force-finalize is set"),
        ("default", "because coproc.dev/force-finalize is set"),
        ("orphaned", "because its RuntimePool is gone"),
    ] {
        assert!(skipped.get(about).is_some_and(|note| note.contains(why)), "{about}: {skipped:?}");
    }
    // What never reached its Kafka has nothing there.
    at.pool(&json!({})).await;
    at.reason("RuntimePool", "default", "KafkaUnavailable").await;
    pools.delete("default", &DeleteParams::default()).await.unwrap();
    at.gone("RuntimePool", "default").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_does_not_wait_long_for_a_kafka_that_is_gone() {
    let at = Fixture::new("patience").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "TopicNotFound").await;
    at.log.set_down(true);
    at.reason("Coprocessor", "a", "KafkaUnavailable").await;
    let started = Instant::now();
    end_namespace(&at, &["a"]).await;
    until("both are gone", Duration::from_mins(3), async || {
        let coprocessor = at.api("Coprocessor").get_opt("a").await.unwrap();
        let pool = at.api("RuntimePool").get_opt("default").await.unwrap();
        (coprocessor.is_none() && pool.is_none()).then_some(())
    })
    .await;
    assert!(started.elapsed() > Duration::from_secs(55), "a Kafka may be away for a moment");
    running.stop().await;
}

/// What `kubectl delete namespace` does on an API server without controllers.
async fn end_namespace(at: &Fixture, coprocessors: &[&str]) {
    let namespaces = api_of(&at.client, "", "v1", "Namespace", None);
    namespaces.delete(&at.namespace, &DeleteParams::default()).await.unwrap();
    let secrets = api_of(&at.client, "", "v1", "Secret", Some(&at.namespace));
    secrets.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    at.api("RuntimePool").delete("default", &DeleteParams::default()).await.unwrap();
    for name in coprocessors {
        at.api("Coprocessor").delete(name, &DeleteParams::default()).await.unwrap();
    }
}

/// A pool with a Secret, and two coprocessors that a node runs.
async fn two_that_run(at: &Fixture) {
    let secrets = api_of(&at.client, "", "v1", "Secret", Some(&at.namespace));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "extra"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    at.pool(&json!({"secrets": ["extra"]})).await;
    at.log.topic("in", 1);
    at.log.group("somebody-elses", 0);
    for name in ["a", "b"] {
        at.apply("Coprocessor", name, &coprocessor(&json!({"outputTopics": [name]}))).await.unwrap();
        at.reason("Coprocessor", name, "NoNodes").await;
        at.log.group(&format!("coproc.default.{}.coprocessor.{name}", at.namespace), 0);
    }
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1), at.report("b", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_deleted_leaves_nothing_in_the_log() {
    let at = Fixture::new("doomed").await;
    let running = at.start();
    two_that_run(&at).await;
    end_namespace(&at, &["a", "b"]).await;
    // The node runs them: nothing goes before they have stopped.
    let told = at.reason("RuntimePool", "default", "Stopping").await;
    let message = condition(&told, "Ready")["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "2 resource(s) that it runs are being deleted");
    until("the tombstones are written", Duration::from_secs(10), async || {
        at.deployments().is_empty().then_some(())
    })
    .await;
    at.heartbeat(1000, &[]);
    at.gone("Coprocessor", "a").await;
    at.gone("Coprocessor", "b").await;
    assert_eq!(at.log.group_names(), ["somebody-elses"]);
    until("it waits for its node", Duration::from_secs(10), async || {
        let told = at.reason("RuntimePool", "default", "Stopping").await;
        let message = condition(&told, "Ready")["message"].as_str().unwrap().to_owned();
        message.contains("1 node(s) were heard of").then_some(())
    })
    .await;
    let sets = api_of(&at.client, "apps", "v1", "StatefulSet", Some("doomed"));
    assert_eq!(sets.get("default-runtime").await.unwrap().data["spec"]["replicas"], 0);
    at.down(1000);
    at.gone("RuntimePool", "default").await;
    for topic in ["coprocessor_internal_topic", "coprocessor_status_topic"] {
        assert_eq!(at.log.table(topic).keys().collect::<Vec<_>>(), [""; 0], "{topic}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_comes_too_late_for_the_secrets_lets_go() {
    let at = Fixture::new("secretless").await;
    let running = at.start();
    two_that_run(&at).await;
    running.stop().await;
    end_namespace(&at, &["a", "b"]).await;
    let running = at.start();
    at.gone("Coprocessor", "a").await;
    at.gone("Coprocessor", "b").await;
    at.gone("RuntimePool", "default").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_deleted_alone_leaves_its_resources_to_the_next() {
    let at = Fixture::new("alone").await;
    let running = at.start();
    two_that_run(&at).await;
    let deployed = at.deployments();
    at.api("RuntimePool").delete("default", &DeleteParams::default()).await.unwrap();
    let told = at.reason("RuntimePool", "default", "Stopping").await;
    let message = condition(&told, "Ready")["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("2 resource(s) name it; they stay"), "{message}");
    at.reason("Coprocessor", "a", "PoolNotFound").await;
    until("its nodes are stopped", Duration::from_secs(30), async || {
        let sets = api_of(&at.client, "apps", "v1", "StatefulSet", Some("alone"));
        (sets.get("default-runtime").await.unwrap().data["spec"]["replicas"] == 0).then_some(())
    })
    .await;
    at.down(1000);
    at.gone("RuntimePool", "default").await;
    assert_eq!(at.deployments(), deployed, "what stays goes on with the next pool of this name");
    assert_eq!(at.log.table("coprocessor_status_topic").len(), 0);
    let pools = api_of(&at.client, "apps", "v1", "StatefulSet", Some("alone"));
    // There is no garbage collector here.
    pools.delete("default-runtime", &DeleteParams::default()).await.unwrap();
    let of_owner = DeleteParams::default();
    for (group, kind) in [
        ("", "ServiceAccount"),
        ("", "ConfigMap"),
        ("", "Service"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("policy", "PodDisruptionBudget"),
    ] {
        api_of(&at.client, group, "v1", kind, Some("alone"))
            .delete("default-runtime", &of_owner)
            .await
            .unwrap();
    }
    at.pool(&json!({})).await;
    let pool = at.reason("RuntimePool", "default", "RollingOut").await;
    assert_eq!(pool["status"]["nodeIdBase"], 1000);
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1), at.report("b", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_deploy_stays_and_a_lost_topic_is_written_again() {
    let at = Fixture::new("bridge").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "NoNodes").await;
    let own = "deployment/default/bridge/default/coprocessor/a";
    let of_cli = "deployment/default/_cli/default/coprocessor/c";
    let value = at.log.table("coprocessor_internal_topic")[own].clone();
    at.log.put("coprocessor_internal_topic", of_cli, Some(value.clone()));
    // Somebody removes what Kubernetes owns: it is put back. An orphan goes.
    at.log.put("coprocessor_internal_topic", own, None);
    until("the record is back", Duration::from_secs(10), async || {
        at.deployments().contains(&own.to_owned()).then_some(())
    })
    .await;
    running.stop().await;
    let orphan = "deployment/default/bridge/default/coprocessor/orphan";
    at.log.put("coprocessor_internal_topic", orphan, Some(value));
    let running = at.start();
    until("the orphan is gone", Duration::from_secs(10), async || {
        (!at.deployments().contains(&orphan.to_owned())).then_some(())
    })
    .await;
    assert!(at.deployments().contains(&of_cli.to_owned()));
    let control = "coprocessor_internal_topic".parse().unwrap();
    let log: &dyn coproc::ports::TopicAdmin = &at.log;
    log.delete(&control).unwrap();
    until("the topic is written again", Duration::from_secs(30), async || {
        at.deployments().contains(&own.to_owned()).then_some(())
    })
    .await;
    until("the block of ids is claimed again", Duration::from_secs(30), async || {
        let table = at.log.table("coprocessor_internal_topic");
        (table.get("nodes/1000")? == b"default/bridge/default").then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_one_leads_and_the_other_takes_over() {
    let at = Fixture::new("election").await;
    let start = |name: &str| at.start_with(at.client.clone(), Some("election"), name);
    let leases = api_of(&at.client, "coordination.k8s.io", "v1", "Lease", Some("election"));
    let held_by = async |name: &str, limit| {
        until(&format!("{name} leads"), Duration::from_secs(limit), async || {
            let lease = leases.get_opt("coproc-operator").await.unwrap()?;
            (lease.data["spec"]["holderIdentity"] == name).then_some(())
        })
        .await;
    };
    let first = start("first");
    held_by("first", 10).await;
    let second = start("second");
    at.pool(&json!({})).await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "TopicNotFound").await;
    // A stop in good order hands over at once; a kill costs the Lease's duration.
    first.stop().await;
    held_by("second", 6).await;
    let third = start("third");
    second.kill();
    let killed = Instant::now();
    held_by("third", 25).await;
    assert!(killed.elapsed() > Duration::from_secs(8), "the Lease of a living leader was taken");
    at.apply("Coprocessor", "b", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "b", "TopicNotFound").await;
    // Somebody takes the Lease by force: the leader ends.
    let stolen = json!({"spec": {"holderIdentity": "thief"}});
    leases.patch("coproc-operator", &PatchParams::default(), &Patch::Merge(stolen)).await.unwrap();
    assert!(matches!(third.end().await, Err(coproc::operator::Error::LeadershipLost)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_stopped_as_it_takes_over_ends_at_once() {
    let at = Fixture::new("short").await;
    at.pool(&json!({})).await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    for milliseconds in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let running = at.start();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let stopped = Instant::now();
        running.stop().await;
        let took = stopped.elapsed();
        assert!(took < Duration::from_secs(5), "stopped after {milliseconds} ms, it took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_of_one_name_in_two_namespaces_leave_each_other_alone() {
    const CONTROL: &str = "coprocessor_internal_topic";
    let one = Fixture::new("same-one").await;
    let two = Fixture { log: one.log.clone(), ..Fixture::new("same-two").await };
    one.log.topic("in", 1);
    let running = [one.start(), two.start()];
    for at in [&one, &two] {
        at.pool(&json!({})).await;
        at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
        at.reason("Coprocessor", "a", "NoNodes").await;
    }
    for at in [&one, &two] {
        let key = format!("snapshot/default/{}/default", at.namespace);
        let own = format!("deployment/default/{}/default/coprocessor/a", at.namespace);
        until(&key, Duration::from_secs(20), async || {
            let table = at.log.table(CONTROL);
            let snapshot: Value = serde_json::from_slice(table.get(&key)?).unwrap();
            (snapshot["keys"] == json!([own])).then_some(())
        })
        .await;
    }
    // Both look at everything again, one after the other, and neither finds anything to write.
    let written = one.log.written(CONTROL);
    for lanes in [7, 8] {
        for at in [&one, &two] {
            at.pool(&json!({"maxLanes": lanes})).await;
            at.reason("RuntimePool", "default", "RollingOut").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    assert_eq!(one.log.written(CONTROL), written);
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_leader_is_fenced_by_the_log() {
    let at = Fixture::new("fence").await;
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    let stale = at.start();
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "NoNodes").await;
    let fresh = at.start();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Both see each of these; now and then the stale one is the first that wants to write.
    let more = async {
        for i in 0.. {
            let (name, spec) = (format!("b{i}"), coprocessor(&json!({"outputTopics": [format!("b{i}")]})));
            at.apply("Coprocessor", &name, &spec).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = tokio::select! {
        ended = tokio::time::timeout(Duration::from_mins(1), stale.end()) => ended.expect("it ends"),
        () = more => return,
    };
    assert!(matches!(ended, Err(coproc::operator::Error::Fenced(_))));
    // It may have been fenced by the snapshot that it still had to write.
    at.apply("Coprocessor", "b0", &coprocessor(&json!({"outputTopics": ["b0"]}))).await.unwrap();
    at.reason("Coprocessor", "b0", "NoNodes").await;
    fresh.stop().await;
}

/// Rights that no test on a plain API server can use.
const UNSEEN: [&str; 1] = [
    // Only where OwnerReferencesPermissionEnforcement is on, as on OpenShift.
    "update coproc.dev/runtimepools/finalizers",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_has_the_rights_that_it_uses_and_no_others() {
    let at = Fixture::new("rights").await;
    let granted = chart::rules(&at.client, "rights", &[]).await;
    let user = "system:serviceaccount:rights:coproc";
    let lines = audit_lines();
    let running = at.start_with(cluster::client_as(Some(user)).await, Some("rights"), "operator-0");
    let secrets = api_of(&at.client, "", "v1", "Secret", Some("rights"));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "extra"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    at.pool(&json!({"secrets": ["extra"]})).await;
    at.reason("RuntimePool", "default", "RollingOut").await;
    at.pool(&json!({"secrets": ["extra"], "networkPolicy": {"enabled": false}, "replicas": 2})).await;
    at.log.topic("in", 1);
    let pipeline = json!({"source": {"type": "Kafka", "kafka": {"topics": ["in"]}},
        "steps": [{"name": "main", "module": {"image": "r/m:1"}}],
        "sinks": [{"type": "Kafka", "kafka": {"topic": "out"}}]});
    at.apply("Pipeline", "p", &pipeline).await.unwrap();
    at.reason("Pipeline", "p", "NoNodes").await;
    // The same trouble twice: the second Event is counted on the first.
    let (good, bad) =
        (json!({"outputTopics": ["o"]}), json!({"outputTopics": ["o"], "env": {"REDPANDA_X": "1"}}));
    for change in [&bad, &good, &bad, &good] {
        at.apply("Coprocessor", "a", &coprocessor(change)).await.unwrap();
        at.reason("Coprocessor", "a", if change == &bad { "InvalidEnv" } else { "NoNodes" }).await;
    }
    at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
    at.api("Pipeline").delete("p", &DeleteParams::default()).await.unwrap();
    at.gone("Coprocessor", "a").await;
    at.gone("Pipeline", "p").await;
    let policies = api_of(&at.client, "networking.k8s.io", "v1", "NetworkPolicy", Some("rights"));
    until("the policy is gone", Duration::from_secs(20), async || {
        policies.get_opt("default-runtime").await.unwrap().is_none().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    at.api("RuntimePool").delete("default", &DeleteParams::default()).await.unwrap();
    at.gone("RuntimePool", "default").await;
    running.stop().await;
    let used: std::collections::BTreeSet<String> = requests(lines, "rights", Some(user))
        .into_iter()
        .flat_map(|request| {
            let right = |verb: &str| format!("{verb} {}/{}", request.group, request.resource);
            // Whoever makes an object by server-side apply needs both.
            [Some(right(&request.verb)), request.created.then(|| right("create"))]
        })
        .flatten()
        .collect();
    let granted: std::collections::BTreeSet<String> =
        granted.into_iter().filter(|right| !UNSEEN.contains(&right.as_str())).collect();
    assert_eq!(used, granted);
}

/// `coproc pool delete`, with the rights of the chart's hook and no operator: Helm must not hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hook_of_the_chart_lets_a_pool_go() {
    let at = Fixture::new("hook").await;
    chart::rules(&at.client, "hook", &["pool.bootstrapServers={kafka:9092}"]).await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.reason("RuntimePool", "default", "RollingOut").await;
    running.stop().await;
    let user = "system:serviceaccount:hook:coproc-pool";
    let file = std::fs::read_to_string(cluster::run_directory().join("admin.kubeconfig")).unwrap();
    let mut file: Value = serde_yaml::from_str(&file).unwrap();
    file["users"][0]["user"]["as"] = user.into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, file.to_string()).unwrap();
    let lines = audit_lines();
    let delete = |pool: &'static str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_coproc"));
        let arguments = ["pool", "delete", pool, "--namespace", "hook", "--timeout", "2s"];
        let output = command.args(arguments).env("KUBECONFIG", &path).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (is_good, says) = delete("default");
    assert!(is_good && says.contains("pool default is let go"), "{says}");
    at.gone("RuntimePool", "default").await;
    let (is_good, says) = delete("default");
    assert!(is_good && says.contains("there is no pool default"), "{says}");
    let (is_good, says) = delete("other");
    assert!(!is_good && says.contains("may you?"), "{says}");
    let used: std::collections::BTreeSet<String> =
        requests(lines, "hook", Some(user)).into_iter().map(|request| request.verb).collect();
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["delete", "get", "patch"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_coprocessors_are_deployed_and_then_nothing_is_written() {
    const COUNT: usize = 1000;
    let at = Fixture::new("thousand").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.reason("RuntimePool", "default", "RollingOut").await;
    at.log.topic("in", 1);
    let started = Instant::now();
    let names: Vec<String> = (0..COUNT).map(|i| format!("c{i}")).collect();
    for chunk in names.chunks(20) {
        let applied = chunk.iter().map(async |name| {
            // One image, from a registry that takes its time.
            let spec = coprocessor(
                &json!({"outputTopics": [format!("out-{name}")], "module": {"image": "r/slow:1"}}),
            );
            at.apply("Coprocessor", name, &spec).await.unwrap();
        });
        futures::future::join_all(applied).await;
    }
    let created = started.elapsed();
    let reports: Vec<_> = names.iter().map(|name| at.report(name, 1, State::Running, 1)).collect();
    at.heartbeat(1000, &reports);
    let ready = async || {
        let list = at.api("Coprocessor").list(&ListParams::default()).await.unwrap();
        let ready = list.items.iter().filter(|object| condition(&object.data, "Ready")["status"] == "True");
        ready.count()
    };
    let mut beats = 0_usize;
    until("all are ready", Duration::from_mins(4), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        beats += 1;
        // A node that falls silent is a change, and changes are written.
        if beats.is_multiple_of(10) {
            at.heartbeat(1000, &reports);
        }
        (ready().await == COUNT).then_some(())
    })
    .await;
    let all = started.elapsed();
    let deployed = at
        .log
        .table("coprocessor_internal_topic")
        .keys()
        .filter(|key| key.starts_with("deployment/"))
        .count();
    eprintln!(
        "{COUNT} coprocessors: created in {created:?}, ready in {all:?}, {} transactions, {} questions, resident {} MiB",
        at.log.transactions(),
        cluster::asked("r/slow:1"),
        resident_mib()
    );
    assert_eq!(deployed, COUNT);
    assert!(all < Duration::from_mins(if machine_is_busy() { 4 } else { 1 }), "{all:?}");
    // Steady state: heartbeats arrive, nothing changes, nothing is written, neither there nor here.
    for _ in 0..3 {
        at.heartbeat(1000, &reports);
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let (lines, records) = (audit_lines(), at.log.written("coprocessor_internal_topic"));
    for _ in 0..5 {
        at.heartbeat(1000, &reports);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let writes: Vec<_> = requests(lines, "thousand", None).into_iter().filter(is_write).collect();
    assert_eq!(writes, []);
    assert_eq!(at.log.written("coprocessor_internal_topic"), records);
    running.stop().await;
}

/// Whether others use this machine, too: then no time that is measured on it says much.
fn machine_is_busy() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    load > 3.0 * cores as f64
}

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or_default() / 1024
}
