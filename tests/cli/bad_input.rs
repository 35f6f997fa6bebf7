//! What cannot be deployed: each case an exit code, a message that says what, where and what to do, and nothing
//! that runs is disturbed.

use crate::place::Place;

/// The least that a transform is: it asks for batches, and drops them.
pub fn transform(extra: &str, start: &str) -> String {
    format!(
        r#"(module
            (import "redpanda_transform" "check_abi_version_2" (func $check))
            (import "redpanda_transform" "read_batch_header"
                (func $read (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
            {extra}
            (func (export "_start") call $check {start}))"#
    )
}

const MEMORY: &str = r#"(memory (export "memory") 1)"#;
pub const ASK: &str = "(loop (drop (call $read (i32.const 0) (i32.const 8) (i32.const 12) (i32.const 16) \
    (i32.const 20) (i32.const 24) (i32.const 32) (i32.const 40) (i32.const 48) (i32.const 52))) (br 0))";

#[test]
fn modules_that_cannot_run_are_refused() {
    let place = Place::new();
    place.coproc(&["topic", "create", "in", "out"]).succeeds();
    let wasm = |text: &str| wat::parse_str(text).unwrap();
    let unknown_import = r#"(import "env" "mystery" (func)) (memory (export "memory") 1)"#;
    let mut wrong_version = wasm(&transform(MEMORY, ASK));
    wrong_version[4] = 9;
    let mut cut = wasm(&transform(MEMORY, ASK));
    cut.truncate(cut.len() - 5);
    let mut large = wasm(&transform(MEMORY, ASK));
    // A custom section of 11 MiB.
    large.extend([0, 0x80 | 0x05, 0x80 | 0x80, 0x80 | 0x40, 0x05, 1, b'x']);
    large.resize(large.len() + (11 << 20), 0);
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("empty", Vec::new(), "there are no bytes"),
        ("text", b"hello, this is text\n".to_vec(), "it is text"),
        ("wat", transform(MEMORY, ASK).into_bytes(), "WebAssembly text"),
        ("elf", b"\x7fELF\x02\x01\x01".to_vec(), "ELF"),
        ("magic", b"\0asx\x01\0\0\0".to_vec(), "does not begin with the bytes \\0asm"),
        ("version", wrong_version, "unknown version"),
        ("cut", cut, "invalid WebAssembly"),
        ("large", large, "the limit is"),
        ("import", wasm(&transform(unknown_import, ASK)), "mystery"),
        ("no-start", wasm(r#"(module (memory (export "memory") 1))"#), "invalid WebAssembly"),
        ("no-sdk", wasm(r#"(module (memory (export "memory") 1) (func (export "_start")))"#), "SDK"),
        ("no-memory", wasm(&transform("", ASK)), "memory"),
        ("returns", wasm(&transform(MEMORY, "")), "does not start"),
    ];
    for (name, bytes, says) in cases {
        let file = place.write(&format!("{name}.wasm"), bytes);
        let args = ["deploy", file.to_str().unwrap(), "-i", "in", "-o", "out"];
        place.coproc(&args).exits(4).complains(says).complains(&format!("{name}.wasm"));
    }
    for (name, extra, start, flags, says) in [
        ("loops", MEMORY, "(loop (br 0))", &["--time-per-record", "200ms"][..], "timeout"),
        ("traps", MEMORY, "unreachable", &[], "trap"),
        ("eats", r#"(memory (export "memory") 100)"#, ASK, &["--memory", "1Mi"], "memory"),
        (
            "grows",
            MEMORY,
            "(drop (memory.grow (i32.const 1000))) unreachable",
            &["--memory", "1Mi"],
            "does not start",
        ),
    ] {
        let file = place.module(&format!("{name}.wasm"), &transform(extra, start));
        let args = [&["deploy", file.to_str().unwrap(), "-i", "in", "-o", "out"], flags].concat();
        place.coproc(&args).exits(4).complains(says);
    }
    place
        .coproc(&["deploy", "nowhere.wasm", "-i", "in", "-o", "out"])
        .exits(3)
        .complains("cannot read module");
    place.coproc(&["inspect", "text.wasm"]).exits(4).complains("it is text");
}

#[test]
fn deployments_that_cannot_be_are_refused() {
    let place = Place::new();
    let file = place.uppercase();
    let file = file.to_str().unwrap();
    place.coproc(&["topic", "create", "a", "b", "c"]).succeeds();
    place
        .coproc(&["deploy", file, "--name", "first", "-i", "a", "-o", "b"])
        .succeeds()
        .says("first deployed, generation 1");
    place.coproc(&["deploy", file, "--name", "second", "-i", "b", "-o", "c"]).succeeds();
    for (args, code, says) in [
        (&["-i", "c", "-o", "a"][..], 4, "records would go round for ever: a -> b -> c -> a"),
        (&["-i", "a", "-o", "a"], 4, "records would go round for ever"),
        (&["-i", "nowhere", "-o", "b"], 3, "create it with `coproc topic create nowhere`"),
        (&["-i", "a", "-o", "nowhere"], 3, "create it with `coproc topic create nowhere`"),
        (
            &["-i", "here", "-o", "there"],
            3,
            "topics here, there do not exist: create them with `coproc topic create here there`",
        ),
        (
            &["-i", "here", "-i", "a._b_", "-o", "b"],
            3,
            "reads a is deployed with `--output-topic b --materialized`",
        ),
        (&["-i", "a", "-o", "b", "--dead-letter-topic", "nowhere"], 3, "topic nowhere does not exist"),
        (&["-i", "coprocessor_status_topic", "-o", "b"], 4, "one of coproc's own topics"),
        (&["-i", "a", "-o", "coprocessor_internal_topic"], 4, "one of coproc's own topics"),
        (
            &["-i", "a", "-o", "b", "--var", "REDPANDA_X=1"],
            4,
            "names that start with REDPANDA_ are the host's",
        ),
        (&["-i", "a", "-o", "b", "--var", "X="], 4, "the value must have 1 to 2048 bytes"),
        (&["-i", "a", "-o", "b", "--var", "X"], 2, "write KEY=VALUE"),
        (&["-i", "a", "-o", "b", "--time-per-record", "10s"], 4, "10s is not at least 1ms and less than 10s"),
        (&["-i", "a", "-o", "b", "--var", "X Y=1"], 2, "has white space in it"),
        (&["-i", "a", "-o", "b", "--var", "X=1", "--var", "X=2"], 2, "--var gives X twice"),
        (&["-i", "a", "-o", "b", "--max-retries", "-1"], 2, "write a number, 0 or more"),
        (&["-i", "a", "-o", "b", "--parallelism", "-1"], 2, "write a number, 0 or more"),
        (&["-i", "a", "-o", "b", "--var", "=x"], 2, "the name before = is empty"),
        (&["-i", "a", "-o", "b", "--name", "Not_Legal"], 2, "has the character 'N'"),
        (&["-i", "a", "-o", "b", "--name", ""], 2, "is empty"),
        (&["-i", "a b", "-o", "b"], 2, "has the character ' '"),
        (&["-i", "a", "-o", "x.$y$"], 2, "has the character '$'"),
        (&["-i", "a", "-i", "a", "-o", "b"], 4, "a is there twice"),
        (&["-i", "a", "-o", "b", "--parallelism", "0"], 4, "parallelism 0 is not between 1 and 256"),
        (&["-i", "a", "-o", "b", "--memory", "1"], 4, "is not between 64Ki and 4Gi"),
        (&["-i", "a", "-o", "b", "--memory", "much"], 2, "is not a number of bytes"),
        (&["-i", "a", "-o", "b", "--time-per-record", "1h"], 4, "1h is not at least 1ms and less than 10s"),
        (&["-i", "a", "-o", "b", "--on-exhausted", "dead-letter"], 4, "needs a deadLetterTopic"),
        (&["-i", "a", "-o", "b", "--from-offset", "soon"], 2, "write earliest, latest"),
        (&["-i", "a"], 2, "there is no output topic: name one with --output-topic"),
        (&["-o", "b"], 2, "there is no input topic: name one with --input-topic"),
    ] {
        place.coproc(&[&["deploy", file], args].concat()).exits(code).complains(says);
    }
    place.coproc(&["deploy", "-i", "a", "-o", "b"]).exits(2).complains("FILE.wasm");
    place.write("coproc.yaml", "name: x\ninputTopics: [a]\noutputTopics: [b]\ninputtopics: [c]\n");
    place.coproc(&["deploy", "-f", "coproc.yaml"]).exits(2).complains("unknown field `inputtopics`");
    // Nothing that was there has changed.
    for (name, generation) in [("first", 1), ("second", 2)] {
        place.coproc(&["describe", name]).succeeds().says(&format!("Generation:   {generation}"));
    }
    place.coproc(&["describe", "uppercase"]).exits(3).complains("there is no coprocessor uppercase");
}

#[test]
fn names_that_nobody_has_are_not_found() {
    let place = Place::new();
    place.coproc(&["topic", "create", "t"]).succeeds();
    for args in [
        &["describe", "x"][..],
        &["pause", "x"],
        &["resume", "x"],
        &["remove", "x"],
        &["logs", "x"],
        &["offsets", "list", "x"],
    ] {
        place.coproc(args).exits(3).complains("there is no coprocessor x: `coproc list` shows what runs");
    }
    place.coproc(&["remove", "x", "--if-exists"]).succeeds();
    place.coproc(&["pause", "no/such/thing/here"]).exits(2).complains("kind");
}

#[test]
fn a_deployment_without_a_node_is_kept_and_waiting_says_so() {
    let place = Place::new();
    let file = place.uppercase();
    let file = file.to_str().unwrap();
    place.coproc(&["topic", "create", "a", "b"]).succeeds();
    place
        .coproc(&["deploy", file, "-i", "a", "-o", "b", "--wait", "--timeout", "200ms"])
        .exits(5)
        .complains("no node is up, `coproc dev` starts one");
    place.coproc(&["list"]).succeeds().prints(
        "COPROCESSOR NAME  NODE ID  INPUT TOPICS  DESCRIPTION\n\
         uppercase         -        [a]\n\
         The status topic is uninitialized: no node has run on this log yet, `coproc dev` starts one\n\
         Not running: uppercase (pending) (`coproc describe NAME` says why)\n",
    );
    place.coproc(&["list", "--raw"]).succeeds().prints("{\"status\": \"uninitialized\"}\n");
    place.coproc(&["describe", "uppercase"]).succeeds().says("no node has reported it");
    // The same again changes nothing, another variable does.
    place.coproc(&["deploy", file, "-i", "a", "-o", "b"]).succeeds().says("generation 1");
    place.coproc(&["deploy", file, "-i", "a", "-o", "b", "--var", "A=1"]).succeeds().says("generation 2");
    place
        .coproc(&["topic", "delete", "a"])
        .exits(4)
        .complains("is used by default/_cli/coprocessor/uppercase");
    place.coproc(&["remove", "uppercase"]).succeeds().prints("uppercase removed\n");
    place.coproc(&["topic", "delete", "a"]).succeeds();
}

#[test]
fn a_directory_that_cannot_be_used_says_why() {
    let place = Place::new();
    let file = place.write("file", "x");
    let ran = place.coproc(&["--dir", file.to_str().unwrap(), "topic", "list"]);
    ran.exits(4).complains("is not a directory").complains("choose another one");
}
