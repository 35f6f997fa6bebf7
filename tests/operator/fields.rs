//! Every field of the three kinds, through a good value, bad ones, and back: what is bad is refused or told, and back
//! means the same control record and the same objects as before, whatever was in between.
//!
//! The fields are read from the definitions, so that a new one without a value here fails. Objects of Kubernetes' own
//! (affinity, tolerations, …) count as one field each.

use std::time::{Duration, Instant};

use kube::api::PostParams;
use serde_json::{Value, json};

use crate::cluster::{Fixture, api_of, condition, coprocessor, until};

/// A value at a path like `steps.0.limits.memory`.
type At<'a> = (&'a str, Value);

/// What the definitions do not say about the fields of one kind.
struct Subject<'a> {
    kind: &'a str,
    name: &'a str,
    /// Every field that can be there beside the others is.
    spec: Value,
    /// Good values: of which field, where to put it, and what.
    good: Vec<(&'a str, At<'a>)>,
    /// Values that admission takes and that cannot be run, and the reason that is told.
    told: Vec<(At<'a>, &'a str)>,
    /// Fields that never change.
    fixed: Vec<&'a str>,
    /// Fields that only what this version cannot run has.
    elsewhere: Vec<&'a str>,
    /// Objects that are one field.
    whole: Vec<&'a str>,
}

fn definition(kind: &str) -> Value {
    let file = format!("{}/crds/{}s.yaml", env!("CARGO_MANIFEST_DIR"), kind.to_lowercase());
    let all: Value = serde_yaml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    all["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// The fields below a schema. In a list of objects, those of its first.
fn fields(of: &Subject<'_>, path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let properties = schema["properties"].as_object();
    let items = &schema["items"];
    match properties {
        _ if of.whole.contains(&path) => found.push((path.to_owned(), schema.clone())),
        Some(properties) => {
            for (name, schema) in properties {
                fields(of, &below(name), schema, found);
            }
        }
        None if items["properties"].is_object() => {
            found.push((path.to_owned(), schema.clone()));
            fields(of, &below("0"), items, found);
        }
        None => found.push((path.to_owned(), schema.clone())),
    }
}

fn set(spec: &Value, (path, value): &At<'_>) -> Value {
    let mut changed = spec.clone();
    let mut at = &mut changed;
    for step in path.split('.') {
        at = match step.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[step],
        };
    }
    *at = value.clone();
    changed
}

fn get<'a>(spec: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(spec, |at, step| match step.parse::<usize>() {
        Ok(index) => &at[index],
        Err(_) => &at[step],
    })
}

/// Another value that the schema allows, where that can be told from it.
fn good(path: &str, schema: &Value, now: &Value) -> Option<Value> {
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().find(|word| *word != now).cloned();
    }
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    Some(match schema["type"].as_str()? {
        "boolean" => json!(!now.as_bool().unwrap_or_default()),
        "integer" => json!(now.as_i64().or(schema["minimum"].as_f64().map(|least| least as i64))? + 1),
        "string" if pattern.contains("ms|s|m") => json!("7s"),
        "string" if pattern.contains("Ki|Mi") => json!("2Mi"),
        // Secrets: there are two, with the same keys.
        "string" if path.split('.').next_back() == Some("key") => json!("other"),
        "string" if path.ends_with("Secret.name") || path.ends_with("Secrets.0.name") => json!("spare"),
        _ => return None,
    })
}

/// Values that admission must refuse: another type, and what is just beyond each bound.
fn bad(schema: &Value) -> Vec<Value> {
    let mut bad = Vec::new();
    match schema["type"].as_str() {
        Some("string") => {
            bad.push(json!(5));
            bad.extend(schema["maxLength"].as_u64().map(|most| json!("x".repeat(most as usize + 1))));
            bad.extend(schema["pattern"].as_str().map(|_| json!("not @ this")));
            bad.extend(schema["enum"].as_array().map(|_| json!("Nonsense")));
        }
        Some("integer") => {
            bad.push(json!("many"));
            bad.extend(schema["maximum"].as_f64().map(|most| json!(most as i64 + 1)));
            bad.extend(schema["minimum"].as_f64().map(|least| json!(least as i64 - 1)));
        }
        Some("array") => {
            bad.push(json!("x"));
            bad.push(json!([[]]));
            let of_text = schema["items"]["type"] == "string";
            let most = schema["maxItems"].as_u64().filter(|_| of_text);
            bad.extend(most.map(|most| (0..=most).map(|i| format!("x{i}:9")).collect::<Value>()));
            bad.extend(schema["minItems"].as_u64().filter(|least| *least > 0).map(|_| json!([])));
        }
        _ => bad.push(json!("perhaps")),
    }
    bad
}

/// What the resource has led to: its control record but for the generation, or its pool's objects.
async fn outcome(at: &Fixture, of: &Subject<'_>) -> Value {
    if of.kind == "RuntimePool" {
        let mut found = Vec::new();
        for (group, kind) in
            [("apps", "StatefulSet"), ("", "ConfigMap"), ("networking.k8s.io", "NetworkPolicy")]
        {
            let api = api_of(&at.client, group, "v1", kind, Some(&at.namespace));
            let object =
                api.get_opt(&format!("{}-runtime", of.name)).await.unwrap().map(|object| object.data);
            let object = object.unwrap_or_default();
            found.push(json!([object["spec"], object["data"]]));
        }
        return json!(found);
    }
    let kind = of.kind.to_lowercase();
    let key = format!("deployment/default/{}/default/{kind}/{}", at.namespace, of.name);
    let table = at.log.table("coprocessor_internal_topic");
    let mut record: Value =
        table.get(&key).map(|bytes| serde_json::from_slice(bytes).unwrap()).unwrap_or_default();
    record["generation"] = Value::Null;
    record
}

/// Waits until the operator has looked at the newest generation; its conditions.
async fn seen(at: &Fixture, of: &Subject<'_>, what: &str) -> Value {
    until(what, Duration::from_secs(20), async || {
        let object = at.api(of.kind).get(of.name).await.unwrap();
        let is_seen = object.data["status"]["observedGeneration"] == json!(object.metadata.generation);
        is_seen.then_some(object.data)
    })
    .await
}

async fn back(at: &Fixture, of: &Subject<'_>, before: &Value, what: &str) {
    at.apply(of.kind, of.name, &of.spec).await.unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let told = seen(at, of, what).await;
        let (stalled, now) = (condition(&told, "Stalled"), outcome(at, of).await);
        if stalled["status"] != "True" && now == *before {
            return;
        }
        assert!(Instant::now() < limit, "back from {what}: {stalled}\n{now}\nbefore\n{before}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refused(at: &Fixture, of: &Subject<'_>, path: &str, value: Value) {
    let answer = at.apply(of.kind, of.name, &set(&of.spec, &(path, value.clone()))).await;
    let text = value.to_string().chars().take(60).collect::<String>();
    match answer {
        // 400: the value does not even fit the type.
        Err(kube::Error::Api(status)) if [400, 422, 500].contains(&status.code) => {
            let mut words = path.split('.').filter(|step| step.parse::<usize>().is_err());
            let is_named = words.any(|word| status.message.contains(word));
            assert!(is_named, "{} {path} = {text}: {}", of.kind, status.message);
        }
        Err(error) => panic!("{} {path} = {text}: {error}", of.kind),
        Ok(_) => panic!("{} {path} = {text} was taken", of.kind),
    }
}

async fn walk(at: &Fixture, of: &Subject<'_>) {
    let mut all = Vec::new();
    fields(of, "", &definition(of.kind), &mut all);
    at.apply(of.kind, of.name, &of.spec).await.unwrap();
    let before = until("there is an outcome", Duration::from_secs(20), async || {
        let found = outcome(at, of).await;
        let text = found.to_string();
        // Everything is there, whatever kind it is.
        (text.len() > 200 && !text.contains("[null,null]")).then_some(found)
    })
    .await;
    let told = seen(at, of, "the beginning").await;
    assert_eq!(condition(&told, "Stalled")["status"], Value::Null, "{}", told["status"]["conditions"]);
    let mut changed = 0;
    for (path, schema) in &all {
        let is_elsewhere = of.elsewhere.iter().any(|at| path.starts_with(at));
        let is_fixed = of.fixed.contains(&path.as_str());
        if !is_elsewhere {
            for value in bad(schema) {
                refused(at, of, path, value).await;
            }
        }
        let now = get(&of.spec, path);
        let given = of.good.iter().find(|(field, _)| field == path).map(|(_, at)| at.clone());
        let derived = || good(path, schema, now).map(|value| (path.as_str(), value));
        match given.or_else(derived) {
            _ if is_elsewhere => {}
            Some((_, value)) if is_fixed => refused(at, of, path, value).await,
            Some(change) => {
                at.apply(of.kind, of.name, &set(&of.spec, &change)).await.unwrap_or_else(|error| {
                    panic!("{} {path}: {change:?} is good: {error}", of.kind);
                });
                let told = seen(at, of, path).await;
                let stalled = condition(&told, "Stalled");
                assert_eq!(stalled["status"], Value::Null, "{} {change:?}: {stalled}", of.kind);
                changed += usize::from(outcome(at, of).await != before);
                back(at, of, &before, path).await;
            }
            None => panic!("{} {path} needs a good value here", of.kind),
        }
    }
    for (change, reason) in &of.told {
        at.apply(of.kind, of.name, &set(&of.spec, change)).await.unwrap();
        let told = at.reason(of.kind, of.name, reason).await;
        assert_eq!(condition(&told, "Stalled")["status"], "True", "{change:?}: {}", told["status"]);
        let outcome = outcome(at, of).await;
        assert_eq!(outcome, before, "{change:?}: what ran goes on");
        back(at, of, &before, change.0).await;
    }
    eprintln!("{}: {} fields, {changed} of them show in what is made", of.kind, all.len());
    assert!(changed > 20, "{changed} of {}", all.len());
}

/// A namespace with an operator, topics, and two Secrets with the same keys.
async fn world(namespace: &str) -> Fixture {
    let at = Fixture::new(namespace).await;
    for topic in ["in", "in2", "out", "out2", "dead", "dead2"] {
        at.log.topic(topic, 1);
    }
    let keys = [".dockerconfigjson", "key", "other", "tls.crt", "tls.key"].map(|key| (key.to_owned(), "{}"));
    let keys: serde_json::Map<String, Value> =
        keys.into_iter().map(|(key, text)| (key, Value::from(text))).collect();
    let secrets = api_of(&at.client, "", "v1", "Secret", Some(namespace));
    for name in ["one", "spare"] {
        let body =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys});
        secrets.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    }
    at
}

fn policies() -> Value {
    json!({"description": "d", "delivery": "Auto", "parallelism": 1, "paused": false,
        "deletionPolicy": "Delete", "errorPolicy": {"maxRetries": 10, "onExhausted": "DeadLetter",
            "deadLetterTopic": "dead", "initialBackoff": "100ms", "maxBackoff": "30s"},
        "batch": {"commitInterval": "100ms", "maxBytes": "1Mi", "maxCommitBytes": "64Mi",
            "maxCommitRecords": 1_000_000, "maxRecords": 1000}})
}

fn with(spec: &Value, more: &Value) -> Value {
    let mut spec = spec.as_object().unwrap().clone();
    spec.extend(more.as_object().unwrap().clone());
    Value::Object(spec)
}

fn limits() -> Value {
    json!({"memory": "32Mi", "timePerRecord": "3s", "maxOutputBytes": "1Mi"})
}

fn followed() -> Value {
    json!({"image": "r/m:1", "resolve": {"policy": "Interval", "interval": "10m"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_coprocessor_goes_and_comes_back() {
    let at = world("fields-coprocessor").await;
    let running = at.start();
    at.pool(&json!({"topics": {"outputs": ["out", "dead", "in."]}})).await;
    let own = json!({"pool": "default", "outputNaming": "Plain", "partitioner": "Key", "env": {"LEVEL": "2"},
        "consumerGroup": "g", "startOffset": {"type": "FromStart", "records": 5}, "limits": limits(),
        "module": followed()});
    let of = Subject {
        kind: "Coprocessor",
        name: "a",
        spec: with(&with(&coprocessor(&json!({})), &policies()), &own),
        good: vec![
            ("description", ("description", json!("other"))),
            ("inputTopics", ("inputTopics", json!(["in2"]))),
            ("outputTopics", ("outputTopics", json!(["out2"]))),
            ("env", ("env", json!({"LEVEL": "3"}))),
            ("module.image", ("module.image", json!("r/m:2"))),
            ("module.resolve.policy", ("module.resolve", json!({"policy": "OnChange"}))),
            ("module.resolve.interval", ("module.resolve.interval", json!("20m"))),
            ("errorPolicy.deadLetterTopic", ("errorPolicy.deadLetterTopic", json!("dead2"))),
            ("startOffset.type", ("startOffset", json!({"type": "Latest"}))),
            (
                "startOffset.timestamp",
                ("startOffset", json!({"type": "Timestamp", "timestamp": "2026-01-01T00:00:00Z"})),
            ),
            ("consumerGroup", ("consumerGroup", json!("h"))),
            ("pool", ("pool", json!("other"))),
        ],
        told: vec![
            (("inputTopics", json!(["coprocessor_status_topic"])), "ReservedTopic"),
            (("outputTopics", json!(["secret"])), "TopicNotAllowed"),
            (("errorPolicy.deadLetterTopic", json!("secret")), "TopicNotAllowed"),
            (("errorPolicy.maxBackoff", json!("1ms")), "InvalidSpec"),
            (("batch.commitInterval", json!("60s")), "InvalidSpec"),
            (("limits.memory", json!("1")), "InvalidLimits"),
            (("limits.timePerRecord", json!("60s")), "InvalidLimits"),
            (("env", json!({"REDPANDA_X": "1"})), "InvalidEnv"),
            (("module.image", json!("r/missing:1")), "ImageNotFound"),
            (("module.resolve.interval", json!("5s")), "InvalidSpec"),
        ],
        fixed: vec!["consumerGroup", "pool"],
        elsewhere: vec![],
        whole: vec![],
    };
    walk(&at, &of).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_pipeline_goes_and_comes_back() {
    let at = world("fields-pipeline").await;
    let running = at.start();
    at.pool(&json!({})).await;
    let step = json!({"name": "main", "module": followed(), "env": {"A": "1"}, "limits": limits()});
    let source = json!({"type": "Kafka", "kafka": {"topics": ["in"], "consumerGroup": "g",
        "startOffset": {"type": "FromEnd", "records": 5}}});
    let sink = json!({"type": "Kafka", "kafka": {"topic": "out", "naming": "Plain", "partitioner": "Key"}});
    let kafka = |more: Value| json!({"type": "Kafka", "kafka": with(&source["kafka"], &more)});
    let of = Subject {
        kind: "Pipeline",
        name: "p",
        spec: with(
            &policies(),
            &json!({"pool": "default", "source": source, "steps": [step], "sinks": [sink]}),
        ),
        good: vec![
            ("description", ("description", json!("other"))),
            ("errorPolicy.deadLetterTopic", ("errorPolicy.deadLetterTopic", json!("dead2"))),
            ("pool", ("pool", json!("other"))),
            ("source.kafka.topics", ("source.kafka.topics", json!(["in2"]))),
            ("source.kafka.consumerGroup", ("source.kafka.consumerGroup", json!("h"))),
            ("source.kafka.startOffset.type", ("source", kafka(json!({"startOffset": {"type": "Latest"}})))),
            (
                "source.kafka.startOffset.timestamp",
                (
                    "source",
                    kafka(json!({"startOffset": {"type": "Timestamp", "timestamp": "2026-01-01T00:00:00Z"}})),
                ),
            ),
            ("steps", ("steps", json!([step, {"name": "next", "module": {"image": "r/m:2"}}]))),
            ("steps.0.name", ("steps.0.name", json!("first"))),
            ("steps.0.module.image", ("steps.0.module.image", json!("r/m:2"))),
            ("steps.0.module.resolve.policy", ("steps.0.module.resolve", json!({"policy": "OnChange"}))),
            ("steps.0.module.resolve.interval", ("steps.0.module.resolve.interval", json!("20m"))),
            ("steps.0.env", ("steps.0.env", json!({"A": "2"}))),
            ("sinks", ("sinks", json!([sink, {"type": "Kafka", "kafka": {"topic": "out2"}}]))),
            ("sinks.0.kafka.topic", ("sinks.0.kafka.topic", json!("out2"))),
        ],
        told: vec![
            (("sinks", json!([{"type": "Http", "http": {"url": "http://x"}}])), "ConnectorNotAvailable"),
            (("sinks.0.kafka.bootstrapServers", json!(["k:9092"])), "ConnectorNotAvailable"),
            (("source.kafka.bootstrapServers", json!(["k:9092"])), "ConnectorNotAvailable"),
            (("source.kafka.topics", json!(["coprocessor_status_topic"])), "ReservedTopic"),
            (("steps.0.limits.memory", json!("1")), "InvalidLimits"),
            (("steps.0.module.image", json!("r/missing:1")), "ImageNotFound"),
            (("steps.0.module.resolve.interval", json!("31d")), "InvalidSpec"),
        ],
        fixed: vec!["source.kafka.consumerGroup", "pool"],
        elsewhere: ["http", "nats", "rabbitMq", "sqs", "sns", "pubSub", "serviceBus", "uri", "type"]
            .iter()
            .flat_map(|name| [&*format!("source.{name}").leak(), &*format!("sinks.0.{name}").leak()])
            .chain(["source.kafka.bootstrapServers", "sinks.0.kafka.bootstrapServers"])
            .collect(),
        whole: vec![],
    };
    walk(&at, &of).await;
    running.stop().await;
}

fn full_pool() -> Value {
    let at = |key: &str| json!({"name": "one", "key": key});
    json!({
        "replicas": 1,
        "image": "coproc:0.1.0",
        "upgradePolicy": "Manual",
        "nodeIdBase": 5000,
        "maxLanes": 10,
        "drainTimeout": "8s",
        "cache": {"size": "1Gi"},
        "secrets": ["one"],
        "kafka": {
            "bootstrapServers": ["k:9092"],
            "config": {"linger.ms": "5"},
            "tls": {"caSecret": at("key"), "clientCertificateSecret": "one"},
            "sasl": {"mechanism": "PLAIN", "usernameSecret": at("key"), "passwordSecret": at("key")}
        },
        "registry": {
            "pullSecrets": ["one"], "mirrors": [{"registry": "r", "mirrors": ["m"]}], "insecure": ["r"],
            "caSecrets": [at("key")], "privateHosts": ["r"], "tokenHosts": ["t"], "redirectHosts": ["s"]
        },
        "verification": {"publicKeySecret": at("key")},
        "topics": {"inputs": ["in"], "outputs": ["out"], "create": false},
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}},
        "networkPolicy": {"enabled": true},
        "template": {}
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_pool_goes_and_comes_back() {
    let at = world("fields-pool").await;
    let running = at.start();
    let list = |word: &str| json!([word]);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}});
    let spread = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
    let egress = json!([{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 9092}]}]);
    let mirror = json!([{"registry": "r", "mirrors": ["m", "n"]}]);
    let resources = json!({"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi"}});
    let good = [
        ("image", json!("coproc:0.2.0")),
        ("nodeIdBase", json!(6000)),
        ("cache.size", json!("2Gi")),
        ("cache.storageClassName", json!("fast")),
        ("secrets", list("spare")),
        ("kafka.bootstrapServers", list("l:9092")),
        ("kafka.config", json!({"linger.ms": "6"})),
        ("kafka.tls.clientCertificateSecret", json!("spare")),
        ("registry.pullSecrets", list("spare")),
        ("registry.mirrors", mirror),
        ("registry.mirrors.0.mirrors", list("n")),
        ("registry.mirrors.0.registry", json!("q")),
        ("registry.insecure", list("q")),
        ("registry.caSecrets", json!([{"name": "spare", "key": "key"}])),
        ("registry.privateHosts", list("q")),
        ("registry.tokenHosts", list("q")),
        ("registry.redirectHosts", list("q")),
        ("topics.inputs", list("x")),
        ("topics.outputs", list("x")),
        ("resources", resources),
        ("networkPolicy.egress", egress),
        ("template.affinity", affinity),
        ("template.annotations", json!({"a": "b"})),
        ("template.imagePullSecrets", list("one")),
        ("template.labels", json!({"a": "b"})),
        ("template.nodeSelector", json!({"a": "b"})),
        ("template.priorityClassName", json!("system-cluster-critical")),
        ("template.tolerations", json!([{"key": "a", "operator": "Exists"}])),
        ("template.topologySpreadConstraints", spread),
    ];
    let of = Subject {
        kind: "RuntimePool",
        name: "default",
        spec: full_pool(),
        good: good.into_iter().map(|(path, value)| (path, (path, value))).collect(),
        told: vec![
            (("kafka.config", json!({"transactional.id": "x"})), "InvalidSpec"),
            (("kafka.bootstrapServers", json!(["k:99999"])), "InvalidSpec"),
            (("drainTimeout", json!("1h")), "InvalidSpec"),
            (("registry.insecure", json!(["nonsense"])), "InvalidSpec"),
            (("resources", json!({"limits": {"memory": "much"}})), "InvalidSpec"),
            (("secrets", json!(["nowhere"])), "SecretNotFound"),
            (("registry.pullSecrets", json!(["nowhere"])), "SecretNotFound"),
            (("kafka.tls.caSecret.key", json!("nothing")), "SecretNotFound"),
            (("kafka.sasl.passwordSecret.name", json!("nowhere")), "SecretNotFound"),
            (("verification.publicKeySecret.key", json!("nothing")), "SecretNotFound"),
        ],
        fixed: vec!["nodeIdBase", "cache.size", "cache.storageClassName"],
        elsewhere: vec![],
        whole: vec![
            "resources",
            "networkPolicy.egress",
            "template.affinity",
            "template.tolerations",
            "template.topologySpreadConstraints",
        ],
    };
    walk(&at, &of).await;
    running.stop().await;
}
