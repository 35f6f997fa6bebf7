//! What goes wrong around the operator: it dies at every write, the API server hangs, status records are forged, a name
//! is used again. On a real API server, with a log in memory. Whatever happens, it ends in the same state.

#![cfg(feature = "operator")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]
#![allow(dead_code, reason = "the fixtures are shared with tests/operator.rs, which uses the rest")]
#[path = "operator/cluster.rs"]
mod cluster;
#[path = "operator/crash.rs"]
mod crash;
#[path = "operator/memory.rs"]
mod memory;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Fixture, Running, api_of, condition, coprocessor, run_directory, until};
use coproc::core::status::{DeploymentStatus, State};
use crash::dying_client;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::sync::{Notify, RwLock};

/// A server that hangs hangs for everybody: that test runs alone.
static SERVER: RwLock<()> = RwLock::const_new(());

/// Where an operator dies.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// At a write to the API server, of this number.
    Api(usize, bool),
    /// At a write to the log.
    Log(usize, bool),
}

/// Waits until the control topic says it.
async fn deployed(at: &Fixture, name: &str) {
    let key = format!("deployment/default/{}/default/coprocessor/{name}", at.namespace);
    until(&format!("{key} is written"), Duration::from_secs(30), async || {
        at.deployments().contains(&key).then_some(())
    })
    .await;
}

/// Waits until the pool's snapshot lists it.
async fn in_snapshot(at: &Fixture, name: &str) {
    let key = format!("snapshot/default/{}/default", at.namespace);
    let listed = format!("/coprocessor/{name}\"");
    until(&format!("the snapshot lists {name}"), Duration::from_secs(30), async || {
        let snapshot = at.log.table("coprocessor_internal_topic").remove(&key)?;
        String::from_utf8(snapshot).unwrap().contains(&listed).then_some(())
    })
    .await;
}

/// What every run has to end with.
async fn life(at: &Fixture) {
    at.pool(&json!({})).await;
    at.reason("RuntimePool", "default", "RollingOut").await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    deployed(at, "a").await;
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
    at.heartbeat(1000, &[]);
    at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
    at.gone("Coprocessor", "a").await;
    at.down(1000);
    at.api("RuntimePool").delete("default", &DeleteParams::default()).await.unwrap();
    at.gone("RuntimePool", "default").await;
}

/// Whether an object is being deleted; `None` when it is not there.
async fn is_going(at: &Fixture, kind: &str, name: &str) -> Option<bool> {
    let found = at.api(kind).get_opt(name).await.unwrap();
    found.map(|object| object.metadata.deletion_timestamp.is_some())
}

/// Lives a life with an operator that dies somewhere in it, and a second one after it: whether the first one died.
async fn dies_at(point: Point) -> bool {
    let name = format!("{point:?}").to_lowercase().replace(['(', ',', ' '], "-").replace(')', "");
    let at = Fixture::new(&name).await;
    at.log.topic("in", 1);
    let group = format!("coproc.default.{name}.coprocessor.a");
    at.log.group(&group, 0);
    at.log.group("somebody-elses", 0);
    let died = Arc::new(Notify::new());
    let client = match point {
        Point::Api(write, is_after) => dying_client(write, is_after, &died).await,
        Point::Log(write, is_after) => {
            at.log.crash_at(write, is_after, &died);
            at.client.clone()
        }
    };
    let first = at.start_with(client, None, "first");
    let is_dead = tokio::select! {
        // The death first: a life that ends at the same time has been lived by a dead operator.
        biased;
        () = died.notified() => true,
        () = life(&at) => false,
    };
    first.kill();
    at.log.bury();
    let second = at.keep_running();
    if is_dead {
        // What the first one had begun to delete is gone before it is made again.
        if is_going(&at, "Coprocessor", "a").await == Some(true) {
            at.gone("Coprocessor", "a").await;
        }
        match is_going(&at, "RuntimePool", "default").await {
            // A life ends with its pool. Without a garbage collector, the objects of the first are in the way of another.
            None | Some(true) => at.gone("RuntimePool", "default").await,
            Some(false) => {
                at.log.group(&group, 0);
                life(&at).await;
            }
        }
    }
    assert_eq!(at.log.group_names(), ["somebody-elses"], "{point:?}");
    for topic in ["coprocessor_internal_topic", "coprocessor_status_topic"] {
        assert_eq!(at.log.table(topic).keys().collect::<Vec<_>>(), [""; 0], "{point:?} {topic}");
    }
    let sets = api_of(&at.client, "apps", "v1", "StatefulSet", Some(&name));
    assert_eq!(sets.list(&kube::api::ListParams::default()).await.unwrap().items.len(), 1, "{point:?}");
    second.stop().await;
    is_dead
}

/// Walks through the writes until a life has fewer.
async fn walk(point: impl Fn(usize, bool) -> Point) -> usize {
    const AT_ONCE: usize = 4;
    for first in (1..200).step_by(AT_ONCE) {
        let runs = (first..first + AT_ONCE).flat_map(|write| [point(write, false), point(write, true)]);
        let died = futures::future::join_all(runs.map(dies_at)).await;
        if died.iter().any(|died| !died) {
            return first + died.iter().take_while(|died| **died).count() / 2;
        }
    }
    panic!("a life has more than 200 writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_die_at_every_write_to_the_api_server() {
    let _server = SERVER.read().await;
    let writes = walk(Point::Api).await;
    assert!(writes > 10, "only {writes} writes were seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_die_at_every_write_to_the_log() {
    let _server = SERVER.read().await;
    let writes = walk(Point::Log).await;
    assert!(writes > 4, "only {writes} writes were seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_status_makes_nothing_ready_and_nobody_fail() {
    let _server = SERVER.read().await;
    let at = Fixture::new("forged").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    at.reason("Coprocessor", "a", "NoNodes").await;
    // A node of another block, one of another pool, a later generation, and what is no status at all.
    at.heartbeat(7000, &[at.report("a", 1, State::Running, 1)]);
    let put = |key: &str, value: &[u8]| at.log.put("coprocessor_status_topic", key, Some(value.to_vec()));
    put("1000", b"{");
    put("1000/default/forged/coprocessor/a", b"[]");
    put("not a number", b"{}");
    put("1001", "x".repeat(2 << 20).as_bytes());
    at.heartbeat(1002, &[at.report("a", 99, State::Running, 1)]);
    // The last of these has been read when it shows.
    at.heartbeat(1003, &[at.report("a", 1, State::Starting, 0)]);
    let told = until("the true record is seen", Duration::from_secs(20), async || {
        let object = at.api("Coprocessor").get("a").await.unwrap();
        object.data["status"]["nodes"].to_string().contains("1003").then_some(object.data)
    })
    .await;
    assert_ne!(condition(&told, "Ready")["status"], "True", "{}", told["status"]);
    assert!(!told["status"]["nodes"].to_string().contains("7000"), "{}", told["status"]);
    at.heartbeat(1002, &[]);
    at.heartbeat(1003, &[at.report("a", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_used_again_starts_anew() {
    let _server = SERVER.read().await;
    let at = Fixture::new("again").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    for round in 0..3 {
        let image = format!("r/m:{round}");
        let spec = coprocessor(&json!({"module": {"image": image}}));
        at.apply("Coprocessor", "a", &spec).await.unwrap();
        deployed(&at, "a").await;
        at.log.group("coproc.default.again.coprocessor.a", 0);
        at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
        let ready = at.reason("Coprocessor", "a", "Running").await;
        assert_eq!(ready["status"]["module"]["image"], image);
        at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
        // The node still reports the old one: the finalizer waits for it, and a new one waits for the finalizer.
        at.heartbeat(1000, &[]);
        at.gone("Coprocessor", "a").await;
        assert_eq!((at.deployments(), at.log.group_names()), (vec![], vec![]), "round {round}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_starts_anew_says_nothing_worse_than_the_one_before() {
    let _server = SERVER.read().await;
    let at = Fixture::new("restart").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    deployed(&at, "a").await;
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
    in_snapshot(&at, "a").await;
    running.stop().await;
    let version = async || at.api("Coprocessor").get("a").await.unwrap().metadata.resource_version;
    let (before, records) = (version().await, at.log.written("coprocessor_internal_topic"));
    let running = at.start();
    // By then it has been through everything once.
    at.apply("Coprocessor", "b", &coprocessor(&json!({"outputTopics": ["b"]}))).await.unwrap();
    at.reason("Coprocessor", "b", "RollingOut").await;
    in_snapshot(&at, "b").await;
    assert_eq!(version().await, before, "a status was written");
    // The record of b, and the snapshot that lists it.
    assert_eq!(at.log.written("coprocessor_internal_topic"), records + 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_too_late_is_removed() {
    let _server = SERVER.read().await;
    let at = Fixture::new("too-late").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    for name in ["a", "stays"] {
        let spec = coprocessor(&json!({"outputTopics": [name]}));
        at.apply("Coprocessor", name, &spec).await.unwrap();
        deployed(&at, name).await;
    }
    let both = [at.report("a", 1, State::Running, 1), at.report("stays", 1, State::Running, 1)];
    at.heartbeat(1000, &both);
    at.reason("Coprocessor", "a", "Running").await;
    at.heartbeat(1000, &both[1..]);
    at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
    at.gone("Coprocessor", "a").await;
    // Records of others, whoever they belong to, are not this pool's to remove.
    let others = ["1000/default/_cli/coprocessor/a", "1000/west/too-late/coprocessor/a"];
    let late = serde_json::to_vec(&both[0]).unwrap();
    for key in others {
        let identity = key.split_once('/').unwrap().1.parse().unwrap();
        let said = serde_json::to_vec(&DeploymentStatus { identity, ..both[0].clone() }).unwrap();
        at.log.put("coprocessor_status_topic", key, Some(said));
    }
    at.log.put("coprocessor_status_topic", "1000/default/too-late/coprocessor/a", Some(late));
    until("what was said too late is gone", Duration::from_secs(20), async || {
        let table = at.log.table("coprocessor_status_topic");
        (!table.contains_key("1000/default/too-late/coprocessor/a")).then_some(())
    })
    .await;
    let table = at.log.table("coprocessor_status_topic");
    for key in others.iter().chain(&["1000", "1000/default/too-late/coprocessor/stays"]) {
        assert!(table.contains_key(*key), "{key}: {:?}", table.keys());
    }
    running.stop().await;
}

/// An operator that starts into the middle of a deletion, before it has heard of any node, lets go of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_waits_until_nodes_were_heard() {
    let _server = SERVER.read().await;
    let at = Fixture::new("unheard").await;
    let running = at.start();
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    deployed(&at, "a").await;
    let running_on = [at.report("a", 1, State::Running, 1)];
    at.heartbeat(1000, &running_on);
    at.reason("Coprocessor", "a", "Running").await;
    running.stop().await;
    at.api("Coprocessor").delete("a", &DeleteParams::default()).await.unwrap();
    at.log.set_status_hidden(true);
    let running = at.start();
    until("the control record is gone", Duration::from_secs(20), async || {
        at.deployments().is_empty().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let object = at.api("Coprocessor").get("a").await.expect("nobody knows yet whether a node runs it");
    assert_eq!(object.data["status"]["phase"], "Terminating");
    at.log.set_status_hidden(false);
    // A node runs it, as is known now: until that node says that it has stopped, it goes on.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(at.api("Coprocessor").get_opt("a").await.unwrap().is_some(), "a node runs it");
    at.heartbeat(1000, &[]);
    at.gone("Coprocessor", "a").await;
    let table = at.log.table("coprocessor_status_topic");
    assert!(table.keys().all(|key| key == "1000"), "{:?}", table.keys());
    running.stop().await;
}

fn signal_server(signal: &str) {
    let pids = std::fs::read_to_string(run_directory().join("pids")).unwrap();
    let line = pids.lines().find(|line| line.ends_with(" kube-apiserver")).unwrap();
    let pid = line.split(' ').next().unwrap();
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

fn server(word: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/env/kube");
    let output = Command::new(script).args(["api", word]).env("COPROC_KUBE_RUN", run_directory()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// How long the API server is away; `COPROC_API_DOWN` says more seconds.
fn away() -> Duration {
    let seconds = std::env::var_os("COPROC_API_DOWN").and_then(|text| text.to_str()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_killed_costs_nothing_but_time() {
    let _server = SERVER.write().await;
    let at = Fixture::new("killed").await;
    let start = |lease: Option<&str>, name: &str| at.start_with(at.client.clone(), lease, name);
    at.log.topic("in", 1);
    let running = start(Some("killed"), "first");
    at.pool(&json!({})).await;
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    deployed(&at, "a").await;
    let reports = [at.report("a", 1, State::Running, 1)];
    at.heartbeat(1000, &reports);
    at.reason("Coprocessor", "a", "Running").await;
    let (table, records) =
        (at.log.table("coprocessor_internal_topic"), at.log.written("coprocessor_internal_topic"));
    server("down");
    let gone = Instant::now();
    // It cannot know that it still leads, so it ends; its kubelet starts it again, into an API server that is away.
    let ended = tokio::time::timeout(Duration::from_mins(1), running.end()).await;
    let running = start(Some("killed"), "second");
    while gone.elapsed() < away() {
        at.heartbeat(1000, &reports);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let written = at.log.written("coprocessor_internal_topic");
    server("up");
    assert!(matches!(ended, Ok(Err(coproc::operator::Error::LeadershipLost))), "{ended:?}");
    assert_eq!(written, records, "what nodes go by was touched");
    at.heartbeat(1000, &reports);
    at.apply("Coprocessor", "b", &coprocessor(&json!({"outputTopics": ["b"]}))).await.unwrap();
    deployed(&at, "b").await;
    at.reason("Coprocessor", "a", "Running").await;
    let after = at.log.table("coprocessor_internal_topic");
    let of_nodes = table.iter().filter(|(key, _)| !key.starts_with("snapshot/"));
    of_nodes.for_each(|(key, value)| assert_eq!(after.get(key), Some(value), "{key}"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_hangs_costs_the_lease_and_nothing_else() {
    let _server = SERVER.write().await;
    let at = Fixture::new("hangs").await;
    let start = |name: &str| -> Running { at.start_with(at.client.clone(), Some("hangs"), name) };
    let running = start("first");
    at.pool(&json!({})).await;
    at.log.topic("in", 1);
    at.apply("Coprocessor", "a", &coprocessor(&json!({}))).await.unwrap();
    deployed(&at, "a").await;
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
    at.reason("Coprocessor", "a", "Running").await;
    let (table, records) =
        (at.log.table("coprocessor_internal_topic"), at.log.written("coprocessor_internal_topic"));
    signal_server("-STOP");
    let ended = tokio::time::timeout(Duration::from_mins(1), running.end()).await;
    // The data plane goes by the control topic: nothing was written to it, nothing was removed from it.
    let written = at.log.written("coprocessor_internal_topic");
    signal_server("-CONT");
    assert!(matches!(ended, Ok(Err(coproc::operator::Error::LeadershipLost))), "{ended:?}");
    assert_eq!(written, records);
    // The next one finds everything as it should be.
    let running = start("second");
    at.heartbeat(1000, &[at.report("a", 1, State::Running, 1)]);
    at.apply("Coprocessor", "b", &coprocessor(&json!({"outputTopics": ["b"]}))).await.unwrap();
    at.reason("Coprocessor", "b", "RollingOut").await;
    at.reason("Coprocessor", "a", "Running").await;
    let after = at.log.table("coprocessor_internal_topic");
    assert!(
        table
            .iter()
            .filter(|(key, _)| !key.starts_with("snapshot/"))
            .all(|(key, value)| after.get(key) == Some(value))
    );
    running.stop().await;
}
