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
        .complains("1 of 1 test failed");
    place.write("p/tests/uppercase.yaml", "input: [{valeu: a}]\noutput: []\n");
    place.coproc(&["test", "-f", "p/coproc.yaml"]).exits(2).complains("unknown field `valeu`");
    place.write("p/tests/uppercase.yaml", "input: []\noutput: []\nerror: trap\n");
    place.coproc(&["test", "-f", "p/coproc.yaml"]).exits(1).says("one was to fail with trap");
    place.write("p/tests/lines.jsonl", "{\"input\": {\"value\": \"x\"}}\n{\"output\": {\"value\": \"X\"}}\n");
    place.coproc(&["test", "-f", "p/coproc.yaml", "p/tests/lines.jsonl"]).succeeds().says("1 test passed\n");
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

/// Needs the SDK from crates.io, or from cargo's cache.
#[test]
fn a_rust_project_is_made_built_and_tested() {
    let place = Place::new();
    place.coproc(&["init", "hello"]).succeeds();
    place.coproc(&["build", "-f", "hello/coproc.yaml"]).succeeds().says("hello/hello.wasm built");
    place.coproc(&["test", "-f", "hello/coproc.yaml"]).succeeds().says("2 tests passed");
}

/// Needs the SDK from crates.io, or from cargo's cache.
#[test]
fn the_example_passes_its_own_tests() {
    let place = Place::new();
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/earthquakes");
    for file in ["Cargo.toml", "Cargo.lock", "coproc.yaml", "src/main.rs", "tests/alerts.yaml"] {
        place.write(&format!("quakes/{file}"), std::fs::read(example.join(file)).unwrap());
    }
    place.coproc(&["build", "-f", "quakes/coproc.yaml", "--", "--locked"]).succeeds();
    place.coproc(&["test", "-f", "quakes/coproc.yaml"]).succeeds().says("5 tests passed");
}
