//! What is left after a stop, after a removal, and in a directory that has no log.

use crate::place::{Node, Place};

const DEPLOY: [&str; 6] = ["deploy", "uppercase.wasm", "-i", "in", "-o", "out"];

/// A node that runs `uppercase` from `in` to `out`, and has written one record.
fn running() -> (Place, Node) {
    let place = Place::new();
    place.uppercase();
    let node = place.node();
    place.coproc(&["topic", "create", "in", "out"]).succeeds();
    place.coproc(&[&DEPLOY[..], &["--wait"]].concat()).succeeds();
    place.coproc_with(&["produce", "in"], b"a\n").succeeds();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\n");
    (place, node)
}

#[test]
fn a_directory_without_a_log_stays_as_it_is() {
    let place = Place::new();
    let file = place.uppercase();
    let dir = place.path("log").display().to_string();
    for args in [
        &["list"][..],
        &["describe", "x"],
        &["logs", "x"],
        &["pause", "x"],
        &["resume", "x"],
        &["remove", "x"],
        &["topic", "list"],
        &["topic", "describe", "t"],
        &["topic", "delete", "t"],
        &["consume", "t"],
        &["produce", "t"],
        &["offsets", "list"],
        &["offsets", "delete", "--group", "g"],
        &["log", "length", "t"],
        &["deploy", file.to_str().unwrap(), "-i", "in", "-o", "out"],
    ] {
        place
            .coproc(args)
            .exits(3)
            .complains(&format!("there is no log in {dir}: "))
            .complains("`coproc dev`")
            .complains("--dir")
            .complains("COPROC_DIR");
        assert!(!place.path("log").exists(), "{args:?} made something");
    }
    place.coproc(&["doctor"]).succeeds().says("there is no log in");
    // A name that is no good makes nothing either; a good one does, and says so.
    place.coproc(&["topic", "create", "coprocessor_logs"]).exits(4);
    assert!(!place.path("log").exists());
    place.coproc(&["topic", "create", "t"]).succeeds().complains(&format!("a new log was made in {dir}"));
    let again = place.coproc(&["topic", "create", "u"]).succeeds();
    assert_eq!(again.err, "");
}

#[test]
fn a_deployment_that_may_wait_for_its_topics_makes_a_log() {
    let place = Place::new();
    place.uppercase();
    place
        .coproc(&[&DEPLOY[..], &["--no-topic-check"]].concat())
        .succeeds()
        .complains("a new log was made in");
}

#[test]
fn what_a_stopped_node_ran_is_listed_as_not_running() {
    let (place, node) = running();
    assert_eq!(node.stop().0, Some(0));
    let listed = place
        .coproc(&["list"])
        .succeeds()
        .says("COPROCESSOR NAME  NODE ID  INPUT TOPICS  DESCRIPTION\nuppercase         0        [in]\nNode 0 is down since 20")
        .says("`coproc dev`");
    assert!(listed.out.ends_with("Unresponsive nodes: [0]\n"), "{listed:#?}");
    place.coproc(&["list", "-o", "wide"]).succeeds().says("not running");
    place
        .coproc(&["describe", "uppercase"])
        .succeeds()
        .says("node 0: not running, the node is down since 20");
    let json = place.coproc(&["list", "-o", "json"]).succeeds();
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["coprocessors"][0]["reason"], "NodeDown");
    assert_eq!(json["down_nodes"][0]["node_id"], 0);
    // Deployed while it is down: no node knows of it yet.
    place.coproc(&[&DEPLOY[..], &["--name", "second"]].concat()).succeeds();
    place
        .coproc(&["list"])
        .succeeds()
        .says("second            -        [in]")
        .says("Not running: second (pending)");
    place.coproc(&["list", "-o", "wide"]).succeeds().says("pending (NotReported)");
    // What is not deployed any more will not run again, whatever the node said last.
    place.coproc(&["remove", "uppercase", "second"]).succeeds();
    place.coproc(&["list"]).succeeds().prints(&format!(
        "COPROCESSOR NAME  NODE ID  INPUT TOPICS  DESCRIPTION\n{}",
        &listed.out[listed.out.find("Node 0").unwrap()..]
    ));
}

#[test]
fn a_paused_deployment_is_not_said_to_run() {
    let (place, _node) = running();
    place.coproc(&["pause", "uppercase"]).succeeds();
    place
        .coproc(&[&DEPLOY[..], &["--var", "A=1", "--wait"]].concat())
        .succeeds()
        .prints("uppercase deployed, generation 3\nuppercase is paused on 1 node: `coproc resume uppercase` lets it go on\n");
}

#[test]
fn a_removed_deployment_leaves_no_offsets_unless_told_to() {
    const GROUP: &str = "coproc.default._cli.coprocessor.uppercase";
    let (place, node) = running();
    place.coproc(&["offsets", "list"]).succeeds().says(GROUP);
    place.coproc(&["offsets", "delete", "--group", GROUP]).exits(4).complains("belongs to default/_cli");
    place.coproc(&["remove", "uppercase"]).succeeds().prints("uppercase removed\n");
    place.coproc(&["offsets", "list", "--group", GROUP]).exits(3).complains("has committed nothing");
    // It begins anew.
    place.coproc(&[&DEPLOY[..], &["--wait"]].concat()).succeeds();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\nA\n");
    place.coproc(&["remove", "uppercase", "--keep-offsets"]).succeeds().says("its offsets stay");
    place.wait_for(&["list"], |ran| !ran.out.contains("uppercase"));
    place.coproc(&[&DEPLOY[..], &["--wait"]].concat()).succeeds();
    place.coproc_with(&["produce", "in"], b"b\n").succeeds();
    place.wait_for(&["consume", "out"], |ran| ran.out == "A\nA\nB\n");
    // Without a node there is nobody to wait for.
    assert_eq!(node.stop().0, Some(0));
    place.coproc(&["remove", "uppercase", "--keep-offsets"]).succeeds();
    place.coproc(&["offsets", "delete", "--group", GROUP]).succeeds().says("offsets of");
    place.coproc(&["offsets", "delete", "--group", GROUP]).exits(3).complains("has committed nothing");
}

#[test]
fn a_node_that_does_not_stop_it_in_time_is_named_and_the_offsets_stay() {
    let (place, node) = running();
    node.signal("KILL");
    drop(node);
    // Its heartbeat is fresh for a while yet, so it counts as up.
    place
        .coproc(&["remove", "uppercase", "--timeout", "100ms"])
        .exits(5)
        .complains("uppercase is removed, but its offsets are still there")
        .complains("node 0 has not stopped it yet, after 100ms of waiting");
    place.coproc(&["describe", "uppercase"]).exits(3);
    place.coproc(&["offsets", "list"]).succeeds().says("coproc.default._cli.coprocessor.uppercase");
}
