//! End to end: a real one-node cluster, real Kafka, a real registry, the chart, the README's example, and what people
//! do with it. One test, because a cluster costs half a minute: each part says in a line what it has shown.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

#[path = "cluster/many.rs"]
mod many;
#[path = "oci/world.rs"]
mod oci;
#[path = "cluster/secure.rs"]
mod secure;
#[path = "cluster/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::{NAMESPACE, World, condition, fenced, root, until};

const UPPERCASE: &str = include_str!("../src/cli/templates/wat/module.wat.template");
const GROUP: &str = "coproc.default.coproc-system.coprocessor.shout";
const CONTROL_KEY: &str = "deployment/default/coproc-system/default/coprocessor/shout";

/// Lower case, by two changes of the module for upper case.
fn lowercase() -> String {
    UPPERCASE.replace("(i32.const 97)", "(i32.const 65)").replace(
        "(i32.sub (local.get $letter) (i32.const 32))",
        "(i32.add (local.get $letter) (i32.const 32))",
    )
}

/// A module that ends before it asks for a record.
const BROKEN: &str = r#"(module (import "redpanda_transform" "check_abi_version_2" (func $check))
    (memory (export "memory") 1) (func (export "_start") (call $check) unreachable))"#;

/// The version before this one, as far as anybody can tell: its program, its chart, and a definition that lacks a
/// field.
const BEFORE: &str = "0.0.9";

fn chart_of_before(world: &World) -> String {
    let chart = world.path("chart-before");
    let chart = chart.to_str().unwrap();
    world.run("cp", &["-r", "charts/coproc", chart]);
    let edit = |file: &str, change: &dyn Fn(String) -> String| {
        let file = format!("{chart}/{file}");
        let text = std::fs::read_to_string(&file).unwrap();
        let changed = change(text.clone());
        assert_ne!(changed, text, "{file}");
        std::fs::write(&file, changed).unwrap();
    };
    edit("Chart.yaml", &|text| text.replace(env!("CARGO_PKG_VERSION"), BEFORE));
    edit("crds/coprocessors.yaml", &|text| {
        let mut definition: Value = serde_yaml::from_str(&text).unwrap();
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
        definition.pointer_mut(spec).unwrap().as_object_mut().unwrap().remove("deletionPolicy").unwrap();
        serde_yaml::to_string(&definition).unwrap()
    });
    chart.to_owned()
}

fn has_deletion_policy(world: &World) -> bool {
    let explained = world.try_run("kubectl", &["explain", "coprocessor.spec.deletionPolicy"]);
    explained.is_ok_and(|text| text.contains("deletionPolicy"))
}

fn install(world: &World, chart: &str, tag: &str) {
    let bootstrap = format!("pool.bootstrapServers={{{}}}", world.of("BOOTSTRAP"));
    let insecure = format!("pool.spec.registry.insecure={{{}}}", world.of("REGISTRY"));
    let host = world.of("REGISTRY").split(':').next().unwrap();
    let private = format!("pool.spec.registry.privateHosts={{{host}}}");
    let repository = format!("image.repository={}", world.of("REPOSITORY"));
    let tag = format!("image.tag={tag}");
    let mut arguments = vec!["upgrade", "--install", "coproc", chart, "-n", NAMESPACE];
    for set in [&bootstrap, &insecure, &private, &repository, &tag] {
        arguments.extend(["--set", set.as_str()]);
    }
    arguments.extend(["--wait", "--timeout", "3m"]);
    world.run("helm", &arguments);
}

fn pods(world: &World, component: &str) -> Vec<Value> {
    world.list("pods", &format!("app.kubernetes.io/component={component}"))
}

/// Names, uids and restarts: what changes when a pod is another one.
fn lives(world: &World) -> BTreeMap<String, (String, i64)> {
    let life = |pod: &Value| {
        let at = &pod["metadata"];
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1);
        (at["name"].as_str().unwrap().to_owned(), (at["uid"].as_str().unwrap().to_owned(), restarts))
    };
    pods(world, "runtime").iter().map(life).collect()
}

/// The members of the group, as Kafka's own tool lists them: a rebalance makes other ids.
fn members(world: &World) -> Vec<String> {
    let told = world.kafka_tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        &["--describe", "--members", "--group", GROUP],
    );
    let mut ids: Vec<String> = told
        .lines()
        .filter_map(|line| line.strip_prefix(GROUP)?.split_whitespace().next().map(str::to_owned))
        .collect();
    ids.sort();
    ids
}

fn set_image(world: &World, image: &str) {
    let patch = json!({"spec": {"module": {"image": image}}}).to_string();
    world.kubectl(&["patch", "coprocessor", "shout", "--type=merge", "-p", &patch]);
}

fn wait_ready(world: &World) {
    world.kubectl(&["wait", "--for=condition=Ready", "coprocessor/shout", "--timeout=90s"]);
}

/// Waits until the conditions speak of the newest generation, and are as wanted.
fn wait_for(world: &World, kind: &str, status: &str) -> Value {
    let mut last = Value::Null;
    let told = until(&format!("{kind}={status}"), 90, || {
        last = world.get("coprocessor", "shout");
        let is_current = last["status"]["observedGeneration"] == last["metadata"]["generation"];
        (is_current && condition(&last, kind)["status"] == status).then(|| last.clone())
    });
    told
}

fn numbers(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("{prefix}{i:06}")).collect()
}

fn wait_values(world: &World, topic: &str, wanted: &[String]) {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    let mut last = Vec::new();
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let found = world.values(topic);
        if found == wanted {
            return;
        }
        let is_late = Instant::now() > end;
        assert!(!is_late, "{topic} has {} values, {} are wanted: {last:?}", found.len(), wanted.len());
        last = found.into_iter().filter(|value| !wanted.contains(value)).take(5).collect();
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What was shown, and how long after the start.
struct Story(Instant);

impl Story {
    fn tell(&self, what: &str) {
        eprintln!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

#[test]
fn from_helm_install_to_delete() {
    let story = Story(Instant::now());
    let world = World::start();
    story.tell("cluster, Kafka and registry run");
    for topic in ["orders", "orders-loud"] {
        world.coproc(&["topic", "create", topic, "--partitions", "3"]);
    }
    let upper = world.push("shout:1.0.0", UPPERCASE);
    let labels = "pod-security.kubernetes.io/enforce=restricted";
    world.run("kubectl", &["create", "namespace", NAMESPACE]);
    world.run("kubectl", &["label", "namespace", NAMESPACE, labels]);
    world.image("before", BEFORE);
    install(&world, &chart_of_before(&world), "before");
    world.kubectl(&["wait", "--for=condition=Ready", "runtimepool/default", "--timeout=120s"]);
    story.tell(
        "helm install of version 0.0.9: operator and a pool of one node are ready in a restricted namespace",
    );

    let mut written = the_readme_example(&world);
    story.tell("the README's example transforms; get, wait and lag tell the truth");
    operators_measure_themselves(&world);
    story.tell("of two operators one leads, and each says so in its metrics");
    written.extend(a_module_is_swapped(&world));
    story.tell("a changed module is swapped: no pod restarted, no rebalance");
    written.extend(a_broken_module_leaves_the_old_one(&world));
    story.tell("a broken module leaves the old one running, and says so");
    written.extend(back_by_digest(&world, &upper));
    story.tell("back to the first version by its digest");
    written.extend(a_registry_that_is_away(&world));
    story.tell("a registry that is away: the new image waits with a condition, the old one runs");
    written.extend(scaling_loses_nothing(&world));
    story.tell("1 -> 3 -> 1 nodes under load: each record once");
    written.extend(an_upgrade_loses_nothing(&world));
    story
        .tell("helm upgrade by one version: new definitions, a new operator, the old pods, each record once");
    written.extend(new_pods_lose_nothing(&world));
    story.tell("the pool's image changed: new pods, each record once");
    written.extend(an_api_server_that_is_away(&world));
    story.tell("the API server killed: records flow, nodes untouched; then everything goes on");
    written.extend(trouble_costs_nothing(&world));
    story.tell("the leading operator killed and the control topic deleted: written again, nodes untouched");
    wait_values(&world, "orders-loud", &written);
    a_namespace_is_deleted(&world);
    story.tell("a namespace deleted, made again, deleted: nothing hangs, nothing is left, others go on");
    secure::behind_locks(&world, UPPERCASE);
    story.tell("Kafka by TLS and SCRAM, a registry by TLS and account, signed images; a password rotates");
    many::a_thousand_at_once(&world);
    story.tell("a thousand coprocessors at once, then silence");
    deletion_leaves_users_topics(&world);
    story.tell("kubectl delete: group, control and status records are gone, topics are there");
    a_name_used_again_starts_anew(&world, written.len());
    story.tell("the same name again: a new group reads from the start");
    world.run("helm", &["uninstall", "coproc", "-n", NAMESPACE, "--wait"]);
    until("the nodes are gone", 60, || pods(&world, "runtime").is_empty().then_some(()));
    story.tell("helm uninstall");
}

fn the_readme_example(world: &World) -> Vec<String> {
    let example = fenced(&root().join("README.md"), "yaml", "kind: Coprocessor");
    world.apply(&example.replace("registry.example", world.of("REGISTRY")));
    wait_ready(world);
    let wanted = numbers("UP", 0..1000);
    world.produce("orders", wanted.iter().map(|text| text.to_lowercase()));
    wait_values(world, "orders-loud", &wanted);
    let found = until("the lag is 0", 60, || {
        let found = world.get("coprocessor", "shout");
        (found["status"]["lag"] == 0).then_some(found)
    });
    let digest = found["status"]["module"]["digest"].as_str().unwrap();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let table = world.kubectl(&["get", "coprocessors", "-o", "wide"]);
    let short = found["status"]["module"]["shortDigest"].as_str().unwrap();
    for word in ["True", "Running", "0", short, "shout:1.0.0"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    eprintln!("{table}");
    wanted
}

fn operators_measure_themselves(world: &World) {
    let operators: Vec<String> = pods(world, "operator")
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(operators.len(), 2);
    let ask = |pod: &str, path: &str| {
        world.run(
            "kubectl",
            &["get", "--raw", &format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9645/proxy/{path}")],
        )
    };
    let metrics: BTreeMap<&String, String> = operators.iter().map(|pod| (pod, ask(pod, "metrics"))).collect();
    let leaders: Vec<_> = metrics.iter().filter(|(_, text)| text.contains("\ncoproc_leader 1\n")).collect();
    let holder = world.kubectl(&["get", "lease", "coproc-operator", "-o", "jsonpath={.spec.holderIdentity}"]);
    assert_eq!(leaders.iter().map(|(pod, _)| pod.as_str()).collect::<Vec<_>>(), [holder]);
    let text = leaders[0].1;
    for says in [
        "coproc_resources{kind=\"Coprocessor\",ready=\"true\"} 1\n",
        "coproc_resources{kind=\"RuntimePool\",ready=\"true\"} 1\n",
        "coproc_reconcile_seconds_count{kind=\"Coprocessor\"}",
        "coproc_operator_api_writes_total{kind=\"Coprocessor\",what=\"status\"}",
        "coproc_operator_control_records_written_total{pool=\"default/coproc-system/default\"}",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    for pod in &operators {
        assert_eq!((ask(pod, "healthz"), ask(pod, "readyz")), ("ok".into(), "ok".into()), "{pod}");
    }
}

fn a_module_is_swapped(world: &World) -> Vec<String> {
    let before = (lives(world), members(world));
    assert!(!before.1.is_empty(), "the group has members");
    let image = world.push("shout:2.0.0", &lowercase());
    let old = world.get("coprocessor", "shout")["status"]["module"]["digest"].clone();
    set_image(world, &format!("{}/shout:2.0.0", world.of("REGISTRY")));
    let ready = until("the new module runs", 90, || {
        let found = world.get("coprocessor", "shout");
        let is_new = found["status"]["module"]["digest"] != old;
        (is_new && condition(&found, "Ready")["status"] == "True").then_some(found)
    });
    assert!(
        ready["status"]["module"]["pinnedImage"].as_str().unwrap().contains(image.split('@').nth(1).unwrap())
    );
    let wanted = numbers("low", 0..500);
    world.produce("orders", wanted.iter().map(|text| text.to_uppercase()));
    until("they come out", 60, || {
        (world.values("orders-loud").iter().filter(|value| value.starts_with("low")).count() == 500)
            .then_some(())
    });
    assert_eq!((lives(world), members(world)), before, "a swap restarted or rebalanced");
    wanted
}

fn a_broken_module_leaves_the_old_one(world: &World) -> Vec<String> {
    world.push("shout:3.0.0", BROKEN);
    let before = lives(world);
    set_image(world, &format!("{}/shout:3.0.0", world.of("REGISTRY")));
    let told = wait_for(world, "Stalled", "True");
    let ready = condition(&told, "Ready");
    assert_eq!((&ready["status"], &told["status"]["phase"]), (&json!("False"), &json!("Degraded")));
    assert!(!ready["message"].as_str().unwrap().is_empty());
    eprintln!("{}: {}", ready["reason"], ready["message"]);
    let wanted = numbers("still", 0..200);
    world.produce("orders", wanted.iter().map(|text| text.to_uppercase()));
    until("the old one goes on", 60, || {
        (world.values("orders-loud").iter().filter(|value| value.starts_with("still")).count() == 200)
            .then_some(())
    });
    assert_eq!(lives(world), before);
    wanted
}

fn back_by_digest(world: &World, pinned: &str) -> Vec<String> {
    let (name, digest) = pinned.split_once('@').unwrap();
    let repository = name.rsplit_once(':').unwrap().0;
    set_image(world, &format!("{repository}@{digest}"));
    wait_ready(world);
    wait_for(world, "Ready", "True");
    let wanted = numbers("BACK", 0..200);
    world.produce("orders", wanted.iter().map(|text| text.to_lowercase()));
    until("they come out", 60, || {
        (world.values("orders-loud").iter().filter(|value| value.starts_with("BACK")).count() == 200)
            .then_some(())
    });
    wanted
}

fn a_registry_that_is_away(world: &World) -> Vec<String> {
    world.push("shout:4.0.0", &lowercase());
    world.registry(false);
    set_image(world, &format!("{}/shout:4.0.0", world.of("REGISTRY")));
    let told = wait_for(world, "ModuleResolved", "False");
    assert_eq!(condition(&told, "ModuleResolved")["reason"], "RegistryUnavailable");
    assert_eq!(condition(&told, "Stalled")["status"], Value::Null, "it gets there by itself");
    let mut wanted = numbers("AWAY", 0..100);
    world.produce("orders", wanted.iter().map(|text| text.to_lowercase()));
    until("the old one goes on", 60, || {
        (world.values("orders-loud").iter().filter(|value| value.starts_with("AWAY")).count() == 100)
            .then_some(())
    });
    world.registry(true);
    wait_for(world, "Ready", "True");
    let after = numbers("home", 0..100);
    world.produce("orders", after.iter().map(|text| text.to_uppercase()));
    wanted.extend(after);
    wanted
}

/// Produces until it is told to stop, while `act` runs: what was produced, as it must come out.
fn under_load(world: &World, prefix: &str, act: impl FnOnce()) -> Vec<String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut child = world.producer("orders");
            let mut to = child.stdin.take().unwrap();
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let line = format!("{prefix}{:06}", sent.len());
                writeln!(to, "{line}:{}", line.to_uppercase()).unwrap();
                sent.push(line);
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(to);
            assert!(child.wait().unwrap().success());
            sent
        });
        // Also when `act` fails: the producer must end.
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        stop.store(true, Ordering::Relaxed);
        let sent = producer.join().unwrap();
        acted.unwrap_or_else(|why| std::panic::resume_unwind(why));
        assert!(sent.len() > 100, "there was a load");
        sent
    })
}

fn scaling_loses_nothing(world: &World) -> Vec<String> {
    under_load(world, "scale", || {
        for replicas in [3, 1] {
            world.kubectl(&["scale", "runtimepool/default", &format!("--replicas={replicas}")]);
            until(&format!("{replicas} nodes"), 120, || {
                let pool = world.get("runtimepool", "default");
                let is_there = pool["status"]["nodes"] == format!("{replicas}/{replicas}")
                    && pods(world, "runtime").len() == replicas;
                is_there.then_some(())
            });
            wait_for(world, "Ready", "True");
        }
    })
}

fn an_upgrade_loses_nothing(world: &World) -> Vec<String> {
    let before = lives(world);
    let maker = || {
        world.get("statefulset", "default-runtime")["metadata"]["annotations"]["coproc.dev/operator-version"]
            .clone()
    };
    assert_eq!((has_deletion_policy(world), maker()), (false, json!(BEFORE)));
    let tag = world.of("TAG").to_owned();
    let sent = under_load(world, "upgrade", || {
        install(world, "charts/coproc", &tag);
        until("every operator is a new one", 90, || {
            let operators = pods(world, "operator");
            let is_new = |pod: &Value| {
                let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
                image.ends_with(&format!(":{tag}"))
            };
            (!operators.is_empty() && operators.iter().all(is_new)).then_some(())
        });
        wait_for(world, "Ready", "True");
    });
    assert_eq!(lives(world), before, "a new operator restarted pods");
    // Helm alone would have left the old definitions; and the pods are still those that the old operator made.
    assert_eq!((has_deletion_policy(world), maker()), (true, json!(BEFORE)));
    sent
}

fn new_pods_lose_nothing(world: &World) -> Vec<String> {
    let before = lives(world);
    let image = format!("{}:{}", world.of("REPOSITORY"), world.of("TAG"));
    under_load(world, "newpods", || {
        let patch = json!({"spec": {"image": image}}).to_string();
        world.kubectl(&["patch", "runtimepool", "default", "--type=merge", "-p", &patch]);
        until("the pods are new ones", 90, || {
            let now = lives(world);
            (now.len() == before.len() && now.iter().all(|(name, life)| before[name] != *life)).then_some(())
        });
        world.kubectl(&["wait", "--for=condition=Ready", "runtimepool/default", "--timeout=120s"]);
        wait_for(world, "Ready", "True");
    })
}

/// How long the API server is away: long enough for leases and watches to end. `COPROC_API_DOWN` says more seconds.
fn away() -> Duration {
    let seconds = std::env::var_os("COPROC_API_DOWN").and_then(|text| text.to_str()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

fn an_api_server_that_is_away(world: &World) -> Vec<String> {
    let before = lives(world);
    let flown = || world.values("orders-loud").iter().filter(|value| value.starts_with("away")).count();
    let sent = under_load(world, "away", || {
        until("records flow", 60, || (flown() > 0).then_some(()));
        world.api_server(false);
        let end = Instant::now() + away();
        while Instant::now() < end {
            let until_now = flown();
            until("records go on flowing", 15, || (flown() > until_now + 50).then_some(()));
        }
        assert!(world.try_run("kubectl", &["get", "--raw", "/readyz"]).is_err(), "the API server was there");
        world.api_server(true);
        // And what is changed then arrives.
        let described = json!({"spec": {"description": "the API server is back"}}).to_string();
        world.kubectl(&["patch", "coprocessor", "shout", "--type=merge", "-p", &described]);
        until("the change arrives", 120, || {
            world.table("coprocessor_internal_topic")[CONTROL_KEY].contains("is back").then_some(())
        });
        wait_for(world, "Ready", "True");
    });
    assert_eq!(lives(world), before, "nodes were restarted");
    sent
}

fn a_namespace_is_deleted(world: &World) {
    const DOOMED: &str = "doomed";
    let before = lives(world);
    world.coproc(&["topic", "create", "doomed", "--partitions", "1"]);
    let pool = format!(
        "{{apiVersion: coproc.dev/v1alpha1, kind: RuntimePool, metadata: {{name: default}}, spec: {{kafka: \
         {{bootstrapServers: ['{}']}}, registry: {{insecure: ['{1}'], privateHosts: ['{2}']}}}}}}",
        world.of("BOOTSTRAP"),
        world.of("REGISTRY"),
        world.of("REGISTRY").split(':').next().unwrap(),
    );
    let coprocessor = format!(
        "{{apiVersion: coproc.dev/v1alpha1, kind: Coprocessor, metadata: {{name: shout}}, spec: {{module: \
         {{image: '{}/shout:1.0.0'}}, inputTopics: [orders], outputTopics: [doomed]}}}}",
        world.of("REGISTRY"),
    );
    for _ in 0..2 {
        world.run("kubectl", &["create", "namespace", DOOMED]);
        world.apply_in(DOOMED, &pool);
        world.apply_in(DOOMED, &coprocessor);
        let wait = ["-n", DOOMED, "wait", "--for=condition=Ready", "coprocessor/shout", "--timeout=120s"];
        world.run("kubectl", &wait);
        let base: u32 = world
            .run(
                "kubectl",
                &["-n", DOOMED, "get", "rtpool", "default", "-o", "jsonpath={.status.nodeIdBase}"],
            )
            .parse()
            .unwrap();
        assert!(world.table("coprocessor_status_topic").contains_key(&base.to_string()));
        let started = Instant::now();
        world.run("kubectl", &["delete", "namespace", DOOMED, "--timeout=120s"]);
        eprintln!("kubectl delete namespace took {:.1?}", started.elapsed());
        // By then nothing is left of it: no group, no record about a deployment, a node or the pool.
        let (control, status) =
            (world.table("coprocessor_internal_topic"), world.table("coprocessor_status_topic"));
        let of_doomed = |key: &&String| key.contains("/doomed/") || **key == format!("nodes/{base}");
        assert_eq!(control.keys().filter(of_doomed).collect::<Vec<_>>(), [""; 0]);
        let of_nodes = |key: &&String| {
            let node = key.split('/').next().and_then(|node| node.parse::<u32>().ok());
            key.contains("/doomed/") || node.is_some_and(|node| (base..base + 1000).contains(&node))
        };
        assert_eq!(status.keys().filter(of_nodes).collect::<Vec<_>>(), [""; 0]);
        let groups =
            world.kafka_tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &["--list"]);
        assert!(!groups.contains(".doomed."), "{groups}");
    }
    let topics = world.kafka_tool("org.apache.kafka.tools.TopicCommand", &["--list"]);
    assert!(topics.lines().any(|line| line == "doomed"), "{topics}");
    assert!(world.table("coprocessor_internal_topic").contains_key(CONTROL_KEY));
    assert_eq!(lives(world), before, "nodes of another namespace were restarted");
    wait_for(world, "Ready", "True");
}

fn trouble_costs_nothing(world: &World) -> Vec<String> {
    let before = lives(world);
    let sent = under_load(world, "trouble", || {
        let leader = ["get", "lease", "coproc-operator", "-o", "jsonpath={.spec.holderIdentity}"];
        let leader = world.kubectl(&leader);
        world.kubectl(&["delete", "pod", &leader, "--grace-period=0", "--force"]);
        let topic = "coprocessor_internal_topic";
        let tool = "org.apache.kafka.tools.TopicCommand";
        let id = || {
            let told = world.kafka_tool(tool, &["--describe", "--topic", topic]);
            told.split_once("TopicId: ").map(|(_, rest)| rest.split_whitespace().next().map(str::to_owned))
        };
        let old = id();
        assert!(old.is_some());
        world.kafka_tool(tool, &["--delete", "--topic", topic]);
        until("the control topic is written again", 120, || {
            world.table(topic).contains_key(CONTROL_KEY).then_some(())
        });
        assert_ne!(id(), old, "it is the same topic");
        let next = ["get", "lease", "coproc-operator", "-o", "jsonpath={.spec.holderIdentity}"];
        assert_ne!(world.kubectl(&next), leader);
        wait_for(world, "Ready", "True");
    });
    assert_eq!(lives(world), before, "nodes were restarted");
    sent
}

fn a_name_used_again_starts_anew(world: &World, records: usize) {
    let example = fenced(&root().join("README.md"), "yaml", "kind: Coprocessor");
    world.apply(&example.replace("registry.example", world.of("REGISTRY")));
    wait_ready(world);
    until("it has read everything again", 60, || {
        (world.values("orders-loud").len() == 2 * records).then_some(())
    });
}

fn deletion_leaves_users_topics(world: &World) {
    assert!(world.table("coprocessor_internal_topic").contains_key(CONTROL_KEY));
    world.kubectl(&["delete", "coprocessor", "shout", "--timeout=90s"]);
    let (control, status) =
        (world.table("coprocessor_internal_topic"), world.table("coprocessor_status_topic"));
    assert!(!control.contains_key(CONTROL_KEY), "{control:?}");
    let of_shout = format!("/{NAMESPACE}/coprocessor/shout");
    assert!(!status.keys().any(|key| key.ends_with(&of_shout)), "{:?}", status.keys());
    let groups = world.kafka_tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &["--list"]);
    assert!(!groups.contains(GROUP), "{groups}");
    let topics = world.kafka_tool("org.apache.kafka.tools.TopicCommand", &["--list"]);
    for topic in ["orders", "orders-loud"] {
        assert!(topics.lines().any(|line| line == topic), "{topics}");
    }
}
