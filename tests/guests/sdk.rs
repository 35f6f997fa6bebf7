//! Modules as users build them, with the published Rust SDK.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coproc::core::record::Record;
use coproc::ports::{GuestClass, Run};
use proptest::prelude::*;

use crate::harness::{Host, batch, budget, failure, give, module, records, shown};

#[test]
fn identity_copies() {
    let host = Host::of(&module("identity"));
    let mut guest = host.start();
    for _ in 0..3 {
        let (run, completed, written) = give(guest.as_mut(), &["a", "b"]);
        assert_eq!((run, completed), (Run::Finished, 2));
        assert_eq!(written, ["0/0:a", "0/1:b"]);
    }
    assert!(guest.memory_bytes() >= 17 << 16);
    assert_eq!(host.program.digest(), coproc::wasm::digest_of(&module("identity")));
}

#[test]
fn uppercase_filter_and_fan_out() {
    let (.., written) = give(Host::of(&module("uppercase")).start().as_mut(), &["ab", "Cd9"]);
    assert_eq!(written, ["0/0:AB", "0/1:CD9"]);

    let filter = Host::of(&module("filter")).env("KEEP", "needle");
    let (run, completed, written) = give(filter.start().as_mut(), &["hay", "a needle", "hay"]);
    assert_eq!((run, completed), (Run::Finished, 3));
    assert_eq!(written, ["0/1:a needle"]);

    let (.., written) = give(Host::of(&module("fan_out")).start().as_mut(), &["x", "y"]);
    assert_eq!(written, ["0/0:x-1", "1/0:x-2", "0/0:x-3", "0/1:y-1", "1/1:y-2", "0/1:y-3"]);
}

/// Two records go well, the third fails: what is before it stays, what it wrote is gone.
fn check_failure(value: &str, class: GuestClass, says: &[&str]) {
    let host = Host::of(&module("fails")).time(Duration::from_millis(200));
    let mut guest = host.start();
    let (run, completed, written) = give(guest.as_mut(), &["fine", "well", value, "never"]);
    let failure = failure(run);
    assert_eq!(failure.class, class, "{value}: {failure}");
    for part in says {
        assert!(failure.message.contains(part), "{value}: {failure} does not say {part:?}");
    }
    assert_eq!(completed, 2, "{value}");
    assert_eq!(written, ["0/0:fine", "0/1:well"], "{value}");
    assert_eq!(guest.withdraw().len(), 4);
    // The instance is of no use, and says so.
    let (run, ..) = give(guest.as_mut(), &["more"]);
    assert!(matches!(run, Run::Failed(_)));
    // A fresh one goes on.
    let (run, ..) = give(host.start().as_mut(), &["fine"]);
    assert_eq!(run, Run::Finished);
}

#[test]
fn failures_have_a_class_and_the_guests_words() {
    check_failure("err", GuestClass::Trap, &["UNREACHABLE", "this record is bad"]);
    check_failure(
        "panic",
        GuestClass::Trap,
        &["a panic of the guest", "fails/src/main.rs", "in redpanda_transform_sdk_sys::process <"],
    );
    check_failure("loop", GuestClass::Timeout, &["200ms", "timePerRecord"]);
    check_failure("eat", GuestClass::Memory, &["limit is 4096 KiB", "memory allocation of"]);
    check_failure("exit", GuestClass::Exited, &["exited with code: 7"]);
    check_failure("flood", GuestClass::OutputTooLarge, &["the limit is 1048576"]);
    check_failure("elsewhere", GuestClass::Trap, &["Unknown(-3)"]);
}

#[test]
fn deep_recursion_fails() {
    // The Rust toolchain puts its own stack at the start of memory, so that it runs out of that first.
    let (run, completed, _) = give(Host::of(&module("fails")).start().as_mut(), &["a", "deep"]);
    let failure = failure(run);
    assert!(matches!(failure.class, GuestClass::Trap | GuestClass::Stack), "{failure}");
    assert_eq!(completed, 1);
}

#[test]
fn a_guest_that_does_not_start_says_why() {
    for (what, says) in [
        ("panic", "cannot start"),
        ("return", "vm has exited"),
        ("loop", "(timeout)"),
        ("exit", "exited with code: 3"),
    ] {
        let host = Host::of(&module("fails")).env("START", what).time(Duration::from_millis(100));
        let failure = host.try_start().err().expect(what);
        assert_eq!(failure.class, GuestClass::Start);
        assert!(failure.message.contains(says), "{what}: {failure}");
    }
    let failure = Host::of(&module("filter")).try_start().err().unwrap();
    assert!(failure.message.contains("the variable KEEP"), "{failure}");
    let failure = Host::of(&module("filter")).env("REDPANDA_INPUT_TOPIC", "x").try_start().err().unwrap();
    assert!(failure.message.contains("Invalid transform environment"), "{failure}");
}

#[test]
fn the_world_of_a_guest() {
    let host = Host::of(&module("prints")).env("LEVEL", "2");
    let mut guest = host.start();
    assert_eq!(
        host.lines.take(),
        [
            "<start: args [\"under-test\"] clock 0",
            "!variables [(\"LEVEL\", \"2\"), (\"REDPANDA_INPUT_TOPIC\", \"in\"), (\"REDPANDA_OUTPUT_TOPIC_0\", \"out\"), (\"REDPANDA_OUTPUT_TOPIC_1\", \"side\")]",
        ]
    );
    let (run, _, written) = give(guest.as_mut(), &["x", "y"]);
    assert_eq!(run, Run::Finished);
    assert_eq!(written, ["0/0:1000", "0/1:1001"], "the clock is the record's timestamp");
    assert_eq!(
        host.lines.take(),
        [
            "<value x clock 1000 steps 1 map 1",
            "!fragment 1",
            "<bad \u{fffd}\\u{1b}[31m byte",
            "<no endvalue y clock 1001 steps 1 map 1",
            "!fragment 1",
            "<bad \u{fffd}\\u{1b}[31m byte",
            "<no end",
        ]
    );
}

#[test]
fn suspends_midway_and_goes_on() {
    let mut guest = Host::of(&module("identity")).start();
    let values: Vec<String> = (0..10).map(|n| format!("value {n}")).collect();
    guest.offer(batch(&values), 0);
    let mut small = budget();
    small.output_bytes = 30;
    let mut all = Vec::new();
    let mut stops = Vec::new();
    loop {
        let run = guest.run(&small);
        stops.push(guest.completed());
        all.extend(shown(guest.outputs()));
        guest.outputs().clear();
        match run {
            Run::Suspended => {}
            Run::Finished => break,
            Run::Failed(failure) => panic!("{failure}"),
        }
    }
    let expected: Vec<String> =
        values.iter().enumerate().map(|(i, value)| format!("0/{i}:{value}")).collect();
    assert_eq!(all, expected);
    assert_eq!(stops, [3, 6, 9, 10]);
}

#[test]
fn a_full_buffer_or_the_flag_keeps_it_suspended() {
    let mut guest = Host::of(&module("identity")).start();
    guest.offer(batch(&["a", "b", "c"]), 0);
    let mut one = budget();
    one.output_bytes = 1;
    assert_eq!(guest.run(&one), Run::Suspended);
    assert_eq!((guest.completed(), guest.outputs().len()), (1, 1));
    assert_eq!(guest.run(&one), Run::Suspended, "nobody took the output");
    assert_eq!((guest.completed(), guest.outputs().len()), (1, 1));
    let stopped = budget();
    stopped.stop.store(true, Ordering::Relaxed);
    assert_eq!(guest.run(&stopped), Run::Suspended);
    assert_eq!(guest.completed(), 1);
    assert_eq!(guest.run(&budget()), Run::Finished);
    assert_eq!(shown(guest.outputs()), ["0/0:a", "0/1:b", "0/2:c"]);
}

#[test]
fn time_suspends_between_records() {
    let mut guest = Host::of(&module("identity")).start();
    let values = vec![vec![b'x'; 100]; 20_000];
    guest.offer(batch(&values), 0);
    let mut short = budget();
    short.time = Duration::ZERO;
    let mut calls = 1;
    while guest.run(&short) == Run::Suspended {
        calls += 1;
    }
    assert!(calls > 1, "the smallest time there is is a tick");
    assert_eq!((guest.completed(), guest.outputs().len()), (20_000, 20_000));
}

#[test]
fn a_batch_may_be_done_from_its_middle() {
    let mut guest = Host::of(&module("identity")).start();
    guest.offer(batch(&["a", "b", "c"]), 1);
    assert_eq!(guest.completed(), 1);
    assert_eq!(guest.run(&budget()), Run::Finished);
    assert_eq!(shown(guest.outputs()), ["0/1:b", "0/2:c"]);
    guest.outputs().clear();
    guest.offer(batch(&["a"]), 1);
    assert_eq!(guest.run(&budget()), Run::Finished, "nothing to do");
    assert!(guest.outputs().is_empty());
}

#[test]
fn a_batch_can_be_withdrawn() {
    let host = Host::of(&module("identity"));
    let mut guest = host.start();
    // Before the guest saw it: nothing happened.
    guest.offer(batch(&["a", "b"]), 0);
    assert_eq!(guest.withdraw().len(), 2);
    let (run, _, written) = give(guest.as_mut(), &["c"]);
    assert_eq!((run, written), (Run::Finished, vec!["0/0:c".to_owned()]));
    // Midway: the instance is gone.
    guest.offer(batch(&["a", "b"]), 0);
    let mut one = budget();
    one.output_bytes = 1;
    assert_eq!(guest.run(&one), Run::Suspended);
    assert_eq!(guest.completed(), 1);
    assert_eq!(guest.withdraw().len(), 2);
    let (run, completed, _) = give(guest.as_mut(), &["c"]);
    assert_eq!(failure(run).class, GuestClass::Exited);
    assert_eq!(completed, 0);
}

#[test]
fn a_guest_may_be_dropped_while_suspended() {
    let host = Host::of(&module("identity"));
    drop(host.start());
    let mut guest = host.start();
    guest.offer(batch(&["a", "b"]), 0);
    let mut one = budget();
    one.output_bytes = 1;
    assert_eq!(guest.run(&one), Run::Suspended);
    drop(guest);
}

#[test]
fn guests_on_one_thread_do_not_know_each_other() {
    let host = Host::of(&module("identity"));
    let failing = Host::of(&module("fails"));
    let (mut first, mut second, mut third) = (host.start(), host.start(), failing.start());
    let mut one = budget();
    one.output_bytes = 1;
    first.offer(batch(&["a", "b"]), 0);
    second.offer(batch(&["c", "d"]), 0);
    assert_eq!(first.run(&one), Run::Suspended);
    assert_eq!(second.run(&one), Run::Suspended);
    assert!(matches!(give(third.as_mut(), &["panic"]).0, Run::Failed(_)));
    assert_eq!(first.run(&budget()), Run::Finished);
    assert_eq!(second.run(&budget()), Run::Finished);
    assert_eq!(shown(first.outputs()), ["0/0:a", "0/1:b"]);
    assert_eq!(shown(second.outputs()), ["0/0:c", "0/1:d"]);
}

#[test]
fn memory_is_bounded_from_the_start() {
    let mut host = Host::of(&module("identity"));
    host.spec.limits.memory = 1 << 20;
    let failure = host.try_start().err().unwrap();
    assert_eq!(failure.class, GuestClass::Memory);
    assert!(
        failure.message.contains("needs 1088 KiB") && failure.message.contains("limit is 1024 KiB"),
        "{failure}"
    );
}

fn arbitrary_record() -> impl Strategy<Value = Record> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
    let header = (proptest::collection::vec(any::<u8>(), 0..20), bytes());
    (bytes(), bytes(), proptest::collection::vec(header, 0..4), 0..i64::MAX / 2_000_000).prop_map(
        |(key, value, headers, timestamp)| Record { key, value, headers, timestamp: Some(timestamp) },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_records_go_through_byte_for_byte(
        all in proptest::collection::vec(arbitrary_record(), 1..20),
        stop_after in 1usize..2000,
    ) {
        let mut guest = Host::of(&module("identity")).start();
        guest.offer(records(&all), 0);
        let mut small = budget();
        small.output_bytes = stop_after;
        let mut payloads = Vec::new();
        loop {
            let run = guest.run(&small);
            let outputs = guest.outputs();
            payloads.extend((0..outputs.len()).filter_map(|i| outputs.get(i)).map(|output| output.payload.to_vec()));
            outputs.clear();
            match run {
                Run::Suspended => {}
                Run::Finished => break,
                Run::Failed(failure) => return Err(TestCaseError::fail(failure.message)),
            }
        }
        let expected: Vec<_> = all.iter().map(Record::payload).collect();
        prop_assert_eq!(payloads, expected);
    }
}
