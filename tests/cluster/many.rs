//! A thousand coprocessors at once, then silence: how long it takes, what the operator needs for it, what it writes.

use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::world::{NAMESPACE, World, condition, until};

const COUNT: usize = 1000;
const AT_ONCE: usize = 20;
/// The operator, as the API server knows it.
const OPERATOR: &str = "system:serviceaccount:coproc-system:coproc";

async fn api(world: &World) -> Api<DynamicObject> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(world.of("KUBECONFIG")).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("coproc.dev", "v1alpha1", "Coprocessor"));
    Api::namespaced_with(Client::try_from(config).unwrap(), NAMESPACE, &kind)
}

async fn create(api: &Api<DynamicObject>, name: String, image: &str) {
    let body = json!({"apiVersion": "coproc.dev/v1alpha1", "kind": "Coprocessor", "metadata": {"name": name},
        "spec": {"pool": "many", "module": {"image": image}, "inputTopics": ["orders"],
            "outputTopics": [format!("out-{name}")]}});
    api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
}

/// How many are in the control topic and say so.
async fn deployed(api: &Api<DynamicObject>) -> usize {
    let all = api.list(&ListParams::default()).await.unwrap().items;
    let of_pool = all.iter().filter(|object| object.data["spec"]["pool"] == "many");
    of_pool.filter(|object| condition(&object.data, "Deployed")["status"] == "True").count()
}

/// The largest working set of an operator's pod, as the kubelet measures it.
fn operator_mib(world: &World) -> u64 {
    let told = world.run("kubectl", &["get", "--raw", "/api/v1/nodes/node1/proxy/stats/summary"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let pods = told["pods"].as_array().unwrap().iter();
    let operators = pods.filter(|pod| {
        let name = pod["podRef"]["name"].as_str().unwrap_or_default();
        name.starts_with("coproc-") && pod["podRef"]["namespace"] == NAMESPACE
    });
    let sets = operators.filter_map(|pod| pod["containers"][0]["memory"]["rssBytes"].as_u64());
    sets.max().expect("the kubelet measures the operators") >> 20
}

/// What the operator writes to the API server from a line of the audit log on; its Lease does not count.
fn writes(world: &World, from: usize) -> Vec<String> {
    let text = std::fs::read_to_string(world.path("kube/audit.log")).unwrap();
    let events = text.lines().skip(from).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(|event| event["user"]["username"] == OPERATOR)
        .filter(|event| !["get", "list", "watch"].iter().any(|verb| event["verb"] == **verb))
        .filter(|event| event["objectRef"]["resource"] != "leases")
        .map(|event| format!("{} {}", event["verb"], event["objectRef"]))
        .collect()
}

fn audit_lines(world: &World) -> usize {
    std::fs::read_to_string(world.path("kube/audit.log")).unwrap().lines().count()
}

/// Runs it, on a pool without nodes: what nodes do with a thousand is their own tests' business.
pub fn a_thousand_at_once(world: &World) {
    world.apply(&format!(
        "{{apiVersion: coproc.dev/v1alpha1, kind: RuntimePool, metadata: {{name: many}}, spec: {{replicas: 0, \
         kafka: {{bootstrapServers: ['{}']}}, registry: {{insecure: ['{}'], privateHosts: ['{}']}}}}}}",
        world.of("BOOTSTRAP"),
        world.of("REGISTRY"),
        world.of("REGISTRY").split(':').next().unwrap(),
    ));
    world.kubectl(&["wait", "--for=condition=Ready", "runtimepool/many", "--timeout=60s"]);
    let image = format!("{}/shout:1.0.0", world.of("REGISTRY"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (created, all) = runtime.block_on(async {
        let api = api(world).await;
        let started = Instant::now();
        for first in (0..COUNT).step_by(AT_ONCE) {
            let chunk = (first..first + AT_ONCE).map(|i| create(&api, format!("c{i}"), &image));
            futures::future::join_all(chunk).await;
        }
        let created = started.elapsed();
        while deployed(&api).await < COUNT {
            assert!(started.elapsed() < Duration::from_mins(5), "{} are deployed", deployed(&api).await);
            // Listing a thousand is work for the same two cores.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        (created, started.elapsed())
    });
    let records = world.table("coprocessor_internal_topic");
    let count = records.keys().filter(|key| key.contains("/many/")).count();
    assert_eq!(count, COUNT, "records in the control topic");
    let memory = operator_mib(world);
    eprintln!("{COUNT} coprocessors: created in {created:.1?}, deployed in {all:.1?}, operator {memory} MiB");
    assert!(memory <= 150, "the operator holds {memory} MiB");
    let limit = Duration::from_mins(if world.is_busy() { 4 } else { 1 });
    assert!(all < limit, "{all:?}");
    // What is on its way gets there, and then nothing is written any more.
    let quiet = Duration::from_secs(15);
    until("a quiet while", 120, || {
        let from = audit_lines(world);
        std::thread::sleep(quiet);
        let written = writes(world, from);
        written.is_empty().then_some(()).or_else(|| {
            eprintln!("{} writes, the first is {}", written.len(), written[0]);
            None
        })
    });
}
