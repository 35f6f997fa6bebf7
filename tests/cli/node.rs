//! Commands beside a running node: the whole path.

use std::time::Duration;

use crate::place::Place;

/// A node, topics `in`, `out` and `dead`, and the uppercase module in `uppercase.wasm`.
fn place_with_node() -> (Place, crate::place::Node) {
    let place = Place::new();
    place.uppercase();
    let node = place.node();
    place.coproc(&["topic", "create", "in", "out", "dead"]).succeeds();
    (place, node)
}

#[test]
fn the_whole_path() {
    let (place, node) = place_with_node();
    place.coproc(&["list"]).succeeds();
    place
        .coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--description", "Shouts", "--wait"])
        .succeeds()
        .prints("uppercase deployed, generation 1\nuppercase runs on 1 node\n");
    place.coproc_with(&["produce", "in", "--key", "k"], b"hello\nworld\n").succeeds();
    let out = place.wait_for(&["consume", "out", "-o", "key-value"], |ran| ran.out.lines().count() >= 2);
    out.prints("k\tHELLO\nk\tWORLD\n");
    place.coproc(&["consume", "out", "-f", "-n", "2"]).succeeds().prints("HELLO\nWORLD\n");

    place
        .coproc(&["list"])
        .succeeds()
        .prints("COPROCESSOR NAME  NODE ID  INPUT TOPICS  DESCRIPTION\nuppercase         0        [in]          Shouts\n");
    place.coproc(&["list", "-o", "wide"]).succeeds().says("STATE").says("running");
    let raw = place.coproc(&["list", "--raw"]).succeeds();
    let raw: serde_json::Value = serde_json::from_str(&raw.out).unwrap();
    assert_eq!(raw["0"]["node_id"], 0);
    assert_eq!(raw["0"]["status"], "up");
    assert_eq!(raw["0"]["coprocessors"]["uppercase"]["input_topics"], serde_json::json!(["in"]));
    assert_eq!(raw["0"]["coprocessors"]["uppercase"]["description"], "Shouts");
    let listed = place.coproc(&["list", "-o", "yaml"]).succeeds();
    assert!(listed.out.contains("unresponsive_nodes: []"), "{listed:#?}");
    place.wait_for(&["offsets", "list", "uppercase", "-o", "json"], |ran| ran.out.contains("\"lag\": 0"));
    place
        .coproc(&["describe", "uppercase"])
        .succeeds()
        .says("Identity:     default/_cli/coprocessor/uppercase");
    place.coproc(&["doctor"]).succeeds().says("node 0 was heard");

    let (code, took) = node.stop();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Without the node: the store is opened here, and knows that it is down.
    place.coproc(&["list"]).succeeds().says("Unresponsive nodes: [0]");
    place.coproc(&["consume", "out"]).succeeds().prints("HELLO\nWORLD\n");
}

#[test]
fn pause_resume_change_and_remove() {
    let (place, _node) = place_with_node();
    place.coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--wait"]).succeeds();
    place.coproc(&["pause", "uppercase"]).succeeds().prints("uppercase paused\n");
    place.coproc(&["pause", "uppercase"]).succeeds().prints("uppercase was paused already\n");
    place.wait_for(&["list", "-o", "wide"], |ran| ran.out.contains("paused"));
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    // A new variable does not end the pause.
    place.coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--var", "A=1", "--wait"]).succeeds();
    place.coproc(&["describe", "uppercase"]).succeeds().says("Paused:       yes");
    place.coproc(&["consume", "out"]).succeeds().prints("");
    place.coproc(&["resume", "uppercase"]).succeeds().prints("uppercase resumed\n");
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\n");
    place.coproc(&["remove", "uppercase"]).succeeds();
    place.coproc(&["describe", "uppercase"]).exits(3);
}

#[test]
fn a_materialized_topic_is_reached_by_its_original_name_and_takes_no_records() {
    let (place, _node) = place_with_node();
    place
        .coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "result", "--materialized", "--wait"])
        .succeeds();
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    place.wait_for(&["consume", "in.$result$"], |ran| ran.out == "A\n");
    place.coproc(&["consume", "in._result_"]).succeeds().prints("A\n");
    for name in ["in.$result$", "in._result_"] {
        place
            .coproc_with(&["produce", name], b"b\n")
            .exits(4)
            .complains("takes no records")
            .complains("produce to in,");
    }
    place.coproc(&["topic", "describe", "in.$result$"]).succeeds().says("Materialized:    yes");
}

#[test]
fn a_failing_record_goes_to_the_dead_letters_and_what_it_printed_is_in_the_logs() {
    let place = Place::new();
    // Traps at a record, after a line on standard error.
    let failing = r#"(module
        (import "redpanda_transform" "check_abi_version_2" (func $check))
        (import "redpanda_transform" "read_batch_header"
            (func $read (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "redpanda_transform" "read_next_record"
            (func $next (param i32 i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 200) "\d0\00\00\00\0b\00\00\00" "oh no, bad\n")
        (func (export "_start") call $check
            (drop (call $read (i32.const 0) (i32.const 8) (i32.const 12) (i32.const 16) (i32.const 20)
                (i32.const 24) (i32.const 32) (i32.const 40) (i32.const 48) (i32.const 52)))
            (drop (call $next (i32.const 64) (i32.const 72) (i32.const 80) (i32.const 1024) (i32.const 4096)))
            (drop (call $write (i32.const 2) (i32.const 200) (i32.const 1) (i32.const 300)))
            unreachable))"#;
    place.module("fails.wasm", failing);
    let _node = place.node();
    place.coproc(&["topic", "create", "in", "out", "dead"]).succeeds();
    place
        .coproc(&[
            "deploy",
            "fails.wasm",
            "-i",
            "in",
            "-o",
            "out",
            "--dead-letter-topic",
            "dead",
            "--max-retries",
            "1",
            "--wait",
        ])
        .succeeds();
    place.coproc(&["logs", "fails"]).succeeds().prints("");
    place.coproc_with(&["produce", "in"], b"x\n").succeeds();
    place.wait_for(&["consume", "dead"], |ran| ran.out == "x\n");
    place.coproc(&["consume", "dead", "-o", "json"]).succeeds().says("trap");
    place.wait_for(&["logs", "fails"], |ran| ran.out.contains("oh no, bad\n"));
    place.coproc(&["logs", "fails", "--tail", "1"]).succeeds();
    place.coproc(&["logs", "fials", "--follow"]).exits(3).complains("there is no coprocessor fials");
    place
        .coproc(&["logs", "fails", "--head", "1", "-o", "wide"])
        .succeeds()
        .says(" WARN node 0: oh no, bad\n");
    place.coproc(&["logs", "fails", "--since", "10m", "-o", "json"]).succeeds().says("\"severityNumber\":13");
    place.coproc(&["logs", "fails", "--since", "2100-01-01"]).succeeds().prints("");
    place.wait_for(&["describe", "fails"], |ran| ran.out.contains("last error (over):"));
}

#[test]
fn a_chain_of_two_steps_from_a_manifest() {
    let (place, _node) = place_with_node();
    place.write(
        "coproc.yaml",
        "name: twice\ndescription: A chain\ninputTopics: [in]\noutputTopics: [out]\nsteps:\n\
         \x20 - {name: one, module: uppercase.wasm}\n  - {name: two, module: uppercase.wasm, env: {A: b}}\n",
    );
    place.coproc(&["deploy", "-f", "coproc.yaml", "--wait"]).succeeds();
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\n");
    let described = place.coproc(&["describe", "twice", "-o", "json"]).succeeds();
    let described: serde_json::Value = serde_json::from_str(&described.out).unwrap();
    assert_eq!(described["deployment"]["steps"].as_array().unwrap().len(), 2);
}

#[test]
fn a_second_node_names_the_first() {
    let (place, node) = place_with_node();
    place.coproc(&["dev", "--http", "off"]).exits(5).complains(&node.pid().to_string());
    // The first one goes on.
    place.coproc(&["topic", "list"]).succeeds();
}

#[test]
fn what_node_and_dev_are_told_is_checked() {
    let place = Place::new();
    place.coproc(&["node"]).exits(2).complains("a node needs an id");
    place.coproc(&["node", "-c", "nowhere.yaml"]).exits(3).complains("cannot read nowhere.yaml");
    let config = place.write("node.yaml", "nodeId: 1\nnode: 2\n");
    place.coproc(&["node", "-c", config.to_str().unwrap()]).exits(2).complains("unknown field `node`");
    place.coproc(&["node", "--node-id", "1000"]).exits(2).complains("1000 is not in");
    place.coproc(&["dev", "--node-id", "1000"]).exits(2).complains("1000 is not in");
    place.coproc(&["dev", "--http", "here"]).exits(2).complains("neither an address");
    place.coproc(&["dev", "--http", "off", "--log-filter", "==="]).exits(2).complains("log filter");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    place.coproc(&["dev", "--http", &address]).exits(5).complains("choose another address with --http");
}

#[test]
fn a_killed_node_loses_nothing() {
    let (place, node) = place_with_node();
    place.coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--wait"]).succeeds();
    node.signal("KILL");
    drop(node);
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    let _node = place.node();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\n");
}

#[test]
fn limits_are_swapped_in_and_a_broken_module_changes_nothing() {
    let (place, _node) = place_with_node();
    let deploy = ["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--wait"];
    place.coproc(&deploy).succeeds();
    // One page is all that it needs: swapped in.
    place.coproc(&[&deploy[..], &["--memory", "64Ki"]].concat()).succeeds().says("generation 2");
    let text = "(module (memory (export \"memory\") 1))";
    place.module("broken.wasm", text);
    place
        .coproc(&["deploy", "broken.wasm", "--name", "uppercase", "-i", "in", "-o", "out", "--wait"])
        .exits(4)
        .complains("broken.wasm cannot be used");
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\n");
    place.coproc(&["describe", "uppercase"]).succeeds().says("Generation:   2");
}

#[test]
fn a_restart_tells_what_is_desired_not_what_once_was() {
    let (place, node) = place_with_node();
    for var in ["A=1", "A=2", "A=3"] {
        place
            .coproc(&["deploy", "uppercase.wasm", "-i", "in", "-o", "out", "--var", var, "--wait"])
            .succeeds();
    }
    place
        .coproc(&["deploy", "uppercase.wasm", "--name", "gone", "-i", "in", "-o", "out", "--wait"])
        .succeeds();
    place.coproc(&["remove", "gone"]).succeeds();
    assert_eq!(node.stop().0, Some(0));
    let node = place.node();
    place.wait_for(&["list", "-o", "wide"], |ran| ran.out.contains(" running "));
    let log = node.log();
    assert_eq!(log.matches("a deployment is desired").count(), 1, "{log}");
    assert!(log.contains("generation=3") && !log.contains("is to go") && !log.contains("gone"), "{log}");
}
