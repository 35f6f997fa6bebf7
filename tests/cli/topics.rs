//! Topics and records, without a node: each command opens the store itself.

use crate::place::Place;

#[test]
fn topics_are_made_listed_described_and_deleted() {
    let place = Place::new();
    place
        .coproc(&["topic", "create", "a", "b", "-p", "3"])
        .succeeds()
        .prints("topic a created\ntopic b created\n");
    place.coproc(&["topic", "create", "a"]).exits(4).complains("topic a exists already");
    place.coproc(&["topic", "create", "a", "--if-not-exists"]).succeeds();
    place.coproc_with(&["produce", "a"], b"1\n2\n").succeeds();
    place.coproc(&["topic", "ls"]).succeeds().says("a     3           2\n");
    place
        .coproc(&[
            "topic",
            "create",
            "c",
            "--cleanup",
            "compact,delete",
            "--retention",
            "7d",
            "--max-record",
            "2Mi",
        ])
        .succeeds();
    place
        .coproc(&["topic", "describe", "c"])
        .succeeds()
        .says("Clean-up:        compact,delete")
        .says("Retention:       7d")
        .says("Largest record:  2Mi");
    let described = place.coproc(&["topic", "describe", "a", "-o", "json"]).succeeds();
    let described: serde_json::Value = serde_json::from_str(&described.out).unwrap();
    assert_eq!(described["extents"].as_array().unwrap().len(), 3);
    place.coproc(&["topic", "delete", "a"]).succeeds().prints("topic a deleted\n");
    place.coproc(&["topic", "describe", "a"]).exits(3).complains("topic a does not exist");
    place.coproc(&["topic", "delete", "a"]).exits(3).complains("topic a does not exist");
    place.coproc(&["topic", "delete", "b", "c"]).succeeds();
    place.coproc(&["topic", "list"]).succeeds().prints("NAME  PARTITIONS  RECORDS\n");
}

#[test]
fn topic_names_that_cannot_be_are_refused() {
    let place = Place::new();
    for (name, code, says) in [
        ("a b", 2, "has the character ' '"),
        ("..", 2, "is reserved"),
        ("", 2, "is empty"),
        (&"x".repeat(250), 2, "has 250 bytes"),
        ("coprocessor_status_topic", 4, "one of coproc's own topics"),
        ("a._b_", 4, "a coprocessor that reads a is deployed with `--output-topic b --materialized`"),
        ("a.$b$", 4, "materialized"),
        ("a.$b", 2, "source.$dest$"),
    ] {
        place.coproc(&["topic", "create", name]).exits(code).complains(says);
    }
    place.coproc(&["topic", "create", "a", "-p", "0"]).exits(2).complains("0 is not in");
    place.coproc(&["topic", "create", "a", "--retention", "5"]).exits(2).complains("is not like 100ms");
}

#[test]
fn records_go_through_byte_for_byte() {
    let place = Place::new();
    place.coproc(&["topic", "create", "t"]).succeeds();
    let lines = concat!(
        r#"{"key":"k","value":"größer\n","headers":[{"key":"a","value":"1"},{"key":"a","value":null}],"timestamp":5}"#,
        "\n\n",
        r#"{"key":null,"value_base64":"/wA=","headers":[],"timestamp":6}"#,
        "\n",
        r#"{"key":"","value":"","headers":[],"timestamp":7}"#,
        "\n",
        r#"{"key":"gone","value":null,"headers":[],"timestamp":8}"#,
    );
    place.coproc_with(&["produce", "t", "--json"], lines.as_bytes()).succeeds().prints("");
    let first = place.coproc(&["consume", "t", "-o", "json"]).succeeds();
    assert_eq!(first.out.lines().count(), 4, "{first:#?}");
    // What is printed can be produced again, and is the same.
    place.coproc(&["topic", "create", "again"]).succeeds();
    place.coproc_with(&["produce", "again", "--json"], first.out.as_bytes()).succeeds();
    let again = place.coproc(&["consume", "again", "-o", "json"]).succeeds();
    assert_eq!(again.out.replace("\"topic\":\"again\"", "\"topic\":\"t\""), first.out);
    assert!(first.out.contains(r#""value_base64":"/wA=""#), "{first:#?}");
    place.coproc(&["consume", "t", "-n", "1", "--from", "1", "-o", "json"]).succeeds().says("\"offset\":1");
    place.coproc(&["consume", "t", "--from", "-1", "-o", "key-value"]).succeeds().prints("gone\t\n");
    place.coproc(&["consume", "t", "--from", "@7", "-o", "key-value"]).succeeds().prints("\t\ngone\t\n");
    place.coproc(&["consume", "t", "--from", "end"]).succeeds().prints("");
}

#[test]
fn lines_become_values_keys_and_headers() {
    let place = Place::new();
    place.coproc(&["topic", "create", "t"]).succeeds();
    place.coproc_with(&["produce", "t", "-H", "h=1", "--key", "k"], b"a b\n\nc").succeeds();
    place
        .coproc_with(&["produce", "t", "--key-separator", ": ", "--tombstone"], b"x: 1: 2\ny: \n")
        .succeeds();
    place.coproc(&["consume", "t", "-o", "key-value"]).succeeds().prints("k\ta b\nk\t\nk\tc\nx\t1: 2\ny\t\n");
    place
        .coproc(&["consume", "t", "-o", "json", "-n", "1"])
        .succeeds()
        .says(r#""headers":[{"key":"h","value":"1"}]"#);
    place.coproc(&["consume", "t", "-o", "json", "--from", "4"]).succeeds().says(r#""value":null"#);
}

#[test]
fn what_produce_cannot_take_is_refused_and_nothing_of_it_is_written() {
    let place = Place::new();
    place.coproc(&["topic", "create", "t", "--max-record", "1Ki"]).succeeds();
    let long = vec![b'x'; 2_000];
    for (args, input, code, says) in [
        (
            &["t", "--json"][..],
            &b"{\"value\":\"a\"}\n{\"value\": oops}\n"[..],
            2,
            "line 2, column 11: this is no JSON: expected value; a line is like {\"key\"",
        ),
        (
            &["t", "--json"],
            b"{\"value\":\"a\"}\n[1]\n",
            2,
            "line 2: this is JSON, but no object; a line is like",
        ),
        (
            &["t", "--json"],
            b"{\"value\":\"a\"}\n{\"key_base64\":\"?\"}\n",
            2,
            "line 2: the key is not base64",
        ),
        (&["t", "--key-separator", ":"], b"a:b\nc\n", 2, "line 2: there is no separator \":\""),
        (&["t"], &long, 4, "refuses the record"),
        (&["t", "-p", "1"], b"a\n", 3, "there is no partition 1"),
        (&["t", "--json"], b"{\"value\":\"a\"}\n{\"partition\":9}\n", 3, "there is no partition 9"),
        (
            &["nowhere"],
            b"a\n",
            3,
            "topic nowhere does not exist: create it with `coproc topic create nowhere`",
        ),
        (&["a b"], b"a\n", 2, "has the character ' '"),
        (&["coprocessor_internal_topic"], b"a\n", 4, "--force writes to it"),
        (&["t", "--json", "--key", "k"], b"", 2, "cannot be used with"),
        (&["t", "-H", "h"], b"", 2, "KEY=VALUE"),
    ] {
        place.coproc_with(&[&["produce"], args].concat(), input).exits(code).complains(says);
    }
    place.coproc(&["consume", "t"]).succeeds().prints("");
    for (args, code, says) in [
        (&["nowhere"][..], 3, "topic nowhere does not exist"),
        (&["t.$x$"], 3, "a coprocessor that reads t is deployed with `--output-topic x --materialized`"),
        (&["t", "-p", "7"], 3, "there is no partition 7"),
        (&["t", "-p", "-1"], 2, "write a number, 0 or more"),
        (&["t", "-n", "-1"], 2, "write a number, 0 or more"),
        (&["t", "--from", "1"], 3, "offset 1 of t/0 is not written yet"),
        (&["t", "--from", "begin"], 2, "write start, end, an offset"),
    ] {
        place.coproc(&[&["consume"], args].concat()).exits(code).complains(says);
    }
}

#[test]
fn records_are_found_by_id() {
    let place = Place::new();
    place.coproc(&["topic", "create", "t"]).succeeds();
    place.coproc(&["log", "length", "t"]).succeeds().prints("0\n");
    place.coproc_with(&["produce", "t"], b"0\n1\n2\n3\n4\n").succeeds();
    place.coproc(&["log", "length", "t"]).succeeds().prints("5\n");
    let values = |args: &[&str]| {
        let ran = place.coproc(&[&["log"], args].concat()).succeeds();
        ran.out.lines().map(|line| line.split('\t').nth(1).unwrap().to_owned()).collect::<String>()
    };
    let first = place.coproc(&["log", "range", "t", "-n", "1"]).succeeds();
    let id = first.out.split('\t').next().unwrap();
    assert!(id.ends_with("-0"), "{first:#?}");
    for (args, found) in [
        (&["range", "t"][..], "01234"),
        (&["range", "t", ":1", ":3"], "123"),
        (&["range", "t", ":1", ":3", "--exclusive"], "2"),
        (&["range", "t", ":3", ":1"], ""),
        (&["range", "t", id, id], "0"),
        (&["range", "t", &id[..4]], "01234"),
        (&["range", "t", "9999999999999"], ""),
        (&["revrange", "t"], "43210"),
        (&["revrange", "t", "-n", "2"], "43"),
        (&["revrange", "t", ":3", ":1"], "321"),
        (&["revrange", "t", ":3", ":1", "--exclusive"], "2"),
        (&["revrange", "t", ":1", ":3"], ""),
    ] {
        assert_eq!(values(args), found, "{args:?}");
    }
    for (args, code, says) in [
        (&["range", "t", "abc"][..], 2, "is no place in a topic"),
        (
            &["range", "t", ":9"],
            3,
            "offset 9 of t/0 is not written yet: the first one there is 0, the next to be written 5",
        ),
        (&["range", "nowhere"], 3, "topic nowhere does not exist"),
        (&["length", "t", "-p", "3"], 3, "there is no partition 3"),
    ] {
        place.coproc(&[&["log"], args].concat()).exits(code).complains(says);
    }
    place.coproc(&["log", "range", "t", ":4", "-o", "json"]).succeeds().says("-4\",\"topic\":\"t\"");
}
