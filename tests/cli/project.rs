//! `init`, `build`, `test`, `bench`, `inspect`: everything that needs no log.

use crate::place::Place;

#[test]
fn a_wat_project_is_made_built_tested_and_measured() {
    let place = Place::new();
    place.coproc(&["init", "shout", "--language", "wat"]).succeeds().says("shout created in shout");
    place.coproc(&["init", "shout", "--language", "wat"]).exits(4).complains("is there already");
    let manifest = ["--file", "shout/coproc.yaml"];
    place.coproc(&[&["test"][..], &manifest].concat()).exits(3).complains("`coproc build` makes");
    place.coproc(&[&["build"][..], &manifest].concat()).succeeds().says("shout/shout.wasm built");
    place.coproc(&[&["test"][..], &manifest].concat()).succeeds().says("2 tests passed");
    let bench =
        place.coproc(&[&["bench", "--time", "50ms", "-o", "json"][..], &manifest].concat()).succeeds();
    let rows: serde_json::Value = serde_json::from_str(&bench.out).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 3, "{bench:#?}");
    assert!(rows[0]["ns_per_record"].as_f64().unwrap() > 0.0);
    place
        .coproc(&["inspect", "shout/shout.wasm"])
        .succeeds()
        .says("transform ABI, version 2")
        .says("memory at start  64Ki");
}

#[test]
fn a_golden_file_that_differs_is_shown_as_a_diff() {
    let place = Place::new();
    place.coproc(&["init", "p", "--language", "wat"]).succeeds();
    place.coproc(&["build", "-f", "p/coproc.yaml"]).succeeds();
    place.write(
        "p/tests/uppercase.yaml",
        "name: shouting\ninput: [{value: a}, {value: b}]\noutput: [{value: A}, {value: c}]\n",
    );
    place
        .coproc(&["test", "-f", "p/coproc.yaml"])
        .exits(1)
        .says("FAIL p/tests/uppercase.yaml: shouting\n    {\"value\":\"A\"}\n  - {\"value\":\"c\"}\n  + {\"value\":\"B\"}\n")
        .complains("1 of 1 tests failed");
    place.write("p/tests/uppercase.yaml", "input: [{valeu: a}]\noutput: []\n");
    place.coproc(&["test", "-f", "p/coproc.yaml"]).exits(2).complains("unknown field `valeu`");
    place.write("p/tests/uppercase.yaml", "input: []\noutput: []\nerror: trap\n");
    place.coproc(&["test", "-f", "p/coproc.yaml"]).exits(1).says("one was to fail with trap");
    place.write("p/tests/lines.jsonl", "{\"input\": {\"value\": \"x\"}}\n{\"output\": {\"value\": \"X\"}}\n");
    place.coproc(&["test", "-f", "p/coproc.yaml", "p/tests/lines.jsonl"]).succeeds().says("1 tests passed");
}

#[test]
fn what_cannot_be_built_says_why() {
    let place = Place::new();
    place.coproc(&["build"]).exits(3).complains("`coproc init` makes one");
    place.coproc(&["init", "Not_A_Name"]).exits(2).complains("use --name");
    place.coproc(&["init", "x", "--name", "-"]).exits(2).complains("--name");
    place.coproc(&["init", "p", "--language", "wat"]).succeeds();
    place.write("p/p.wat", "(module (func (export \"_start\") (bogus)))");
    place
        .coproc(&["build", "-f", "p/coproc.yaml"])
        .exits(1)
        .complains("unknown operator")
        .complains("p.wat:1");
    assert!(!place.path("p/p.wasm").exists());
    place.write("p/p.wat", "(module)");
    place.coproc(&["build", "-f", "p/coproc.yaml"]).exits(4).complains("cannot be used");
    assert!(!place.path("p/p.wasm").exists());
    place.write("p/coproc.yaml", "name: p\nlanguage: cobol\n");
    place.coproc(&["build", "-f", "p/coproc.yaml"]).exits(2).complains("unknown variant `cobol`");
}
