//! Every edge of the transform ABI, by hand-written guests.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coproc::core::record::{Payload, Record};
use coproc::ports::{GuestClass, Run, RunBudget};
use proptest::prelude::*;

use crate::harness::{Host, batch, budget, failure, give, records, shown, wat};

/// Calls `call` once, in the first record, writes its i32 result as four bytes into a record's value.
fn answer_of(body: &str, call: &str) -> i32 {
    let host = Host::wat(&format!(
        "{body} (func $each (param $len i32)
           (i32.store (i32.const 65000) (i32.const 0x0801)) ;; null key, a value of 4 bytes
           (i32.store (i32.const 65002) {call})
           (i32.store8 (i32.const 65006) (i32.const 0))
           (drop (call $write (i32.const 65000) (i32.const 7))))"
    ));
    let mut guest = host.start();
    guest.offer(batch(&["x"]), 0);
    assert_eq!(guest.run(&budget()), Run::Finished, "{call}");
    let outputs = guest.outputs();
    let last = outputs.get(outputs.len() - 1).unwrap();
    let value = Payload::parse(last.payload).unwrap().value.unwrap();
    i32::from_le_bytes(value.try_into().unwrap())
}

/// The failure of a guest that runs `code` in its second record.
fn check_failure(body: &str, code: &str, class: GuestClass, says: &str) {
    let host = Host::wat(&format!(
        "{body} (global $n (mut i32) (i32.const 0))
         (func $each (param $len i32)
           (call $copy (local.get $len))
           (global.set $n (i32.add (global.get $n) (i32.const 1)))
           (if (i32.eq (global.get $n) (i32.const 2)) (then {code})))"
    ))
    .time(Duration::from_millis(100));
    let (run, completed, written) = give(host.start().as_mut(), &["a", "b", "c"]);
    let failure = failure(run);
    assert_eq!(failure.class, class, "{code}: {failure}");
    assert!(failure.message.contains(says), "{code}: {failure}");
    assert_eq!((completed, written), (1, vec!["0/0:a".to_owned()]), "{code}");
}

#[test]
fn traps_have_names() {
    use GuestClass::{Exited, Memory, Stack, Table, Timeout, Trap};
    let deep = "(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))";
    let table = "(table $t 1 funcref)";
    let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    let cases = [
        ("", "unreachable", Trap, "UNREACHABLE_CODE_REACHED"),
        ("", "(drop (i32.div_s (i32.const 1) (i32.const 0)))", Trap, "INTEGER_DIVISION_BY_ZERO"),
        ("", "(drop (i32.load (i32.const 0x7fffffff)))", Trap, "MEMORY_OUT_OF_BOUNDS"),
        ("", "(drop (i32.trunc_f32_s (f32.const nan)))", Trap, "BAD_CONVERSION_TO_INTEGER"),
        (table, "(call_indirect (param) (i32.const 0))", Trap, "INDIRECT_CALL_TO_NULL"),
        (table, "(call_indirect (param) (i32.const 9))", Trap, "TABLE_OUT_OF_BOUNDS"),
        (deep, "(drop (call $deep))", Stack, "STACK_OVERFLOW"),
        ("", "(loop $for_ever (br $for_ever))", Timeout, "100ms"),
        (
            "",
            "(if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))",
            Memory,
            "64128 KiB",
        ),
        (table, "(drop (table.grow (ref.null func) (i32.const 20000))) unreachable", Table, "20001 elements"),
        (exit, "(call $exit (i32.const 9))", Exited, "exited with code: 9"),
    ];
    for (body, code, class, says) in cases {
        check_failure(body, code, class, says);
    }
}

#[test]
fn a_refused_growth_that_the_guest_survives_is_no_failure() {
    let host = Host::wat(
        "(func $each (param $len i32)
           (if (i32.ne (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))
           (call $copy (local.get $len)))",
    );
    assert_eq!(give(host.start().as_mut(), &["a", "b"]).0, Run::Finished);
    // And it is not held against a later record.
    let host = Host::wat(
        "(global $n (mut i32) (i32.const 0))
         (func $each (param $len i32)
           (if (global.get $n) (then unreachable))
           (global.set $n (i32.const 1))
           (drop (memory.grow (i32.const 1000))))",
    );
    let failure = failure(give(host.start().as_mut(), &["a", "b"]).0);
    assert_eq!(failure.class, GuestClass::Trap, "{failure}");
}

#[test]
fn asking_without_end_buys_no_time() {
    let short_buffer = "(loop $l
        (drop (call $next (i32.const 100) (i32.const 104) (i32.const 112) (i32.const 1024) (i32.const 1)))
        (br $l))";
    let cases = [("buffer too small", short_buffer), ("no more", "(loop $l (drop (call $read)) (br $l))")];
    for (what, code) in cases {
        let host =
            Host::wat(&format!("(func $each (param $len i32) {code})")).time(Duration::from_millis(50));
        let failure = failure(give(host.start().as_mut(), &["a", "b"]).0);
        assert_eq!(failure.class, GuestClass::Timeout, "{what}: {failure}");
    }
}

#[test]
fn a_guest_that_lets_others_go_first_rests_and_keeps_its_time() {
    let limit = Duration::from_millis(200);
    let host = Host::wat("(func $each (param $len i32) (loop $ever (br $ever)))").time(limit);
    let mut guest = host.start();
    guest.offer(batch(&["a"]), 0);
    let begin = Instant::now();
    let failure = failure(guest.run(&RunBudget { gently: true, ..budget() }));
    assert_eq!(failure.class, GuestClass::Timeout, "{failure}");
    // On a machine with nothing else to do it is four times the limit; never less than what it ran and rested.
    assert!(begin.elapsed() > limit * 2, "it took {:?}", begin.elapsed());
}

#[test]
fn a_guest_in_a_long_record_is_given_up_when_its_lane_ends() {
    let host = Host::wat(
        r#"(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (data (i32.const 300) "here\n")
        (func $each (param $len i32)
            (call $copy (local.get $len))
            (if (i32.eq (i32.load8_u (i32.const 1026)) (i32.const 64))
                (then
                    (i32.store (i32.const 200) (i32.const 300)) (i32.store (i32.const 204) (i32.const 5))
                    (drop (call $fd_write (i32.const 1) (i32.const 200) (i32.const 1) (i32.const 220)))
                    (loop $ever (br $ever)))))"#,
    );
    let mut guest = host.start();
    guest.offer(batch(&["a", "@", "b"]), 0);
    let budget = budget();
    let (stop, lines) = (budget.stop.clone(), host.lines.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while lines.take().is_empty() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(guest.run(&budget), Run::Suspended);
    });
    assert_eq!((guest.completed(), shown(guest.outputs())), (1, vec!["0/0:a".to_owned()]));
    assert!(matches!(guest.run(&self::budget()), Run::Failed(_)), "it is not entered again");
}

#[test]
fn one_call_prints_no_more_than_its_share_and_says_how_much() {
    let host = Host::wat(
        r#"(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (func $each (param $len i32)
            (i32.store (i32.const 200) (i32.const 4096)) (i32.store (i32.const 204) (i32.const 60000))
            (i32.store (i32.const 208) (i32.const 4096)) (i32.store (i32.const 212) (i32.const 60000))
            (drop (call $fd_write (i32.const 1) (i32.const 200) (i32.const 2) (i32.const 220)))
            (if (i32.ne (i32.load (i32.const 220)) (i32.const 65536)) (then unreachable))
            (call $copy (local.get $len)))"#,
    );
    let (run, _, written) = give(host.start().as_mut(), &["a"]);
    assert_eq!((run, written), (Run::Finished, vec!["0/0:a".to_owned()]));
    assert_eq!(host.lines.take().len(), 8, "64 KiB in lines of 8");
}

#[test]
fn pointers_outside_of_memory_end_the_guest() {
    let says = "Out of bounds memory access in FFI";
    let wasi = r#"
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))"#;
    for code in [
        "(drop (call $write (i32.const 131000) (i32.const 100)))",
        "(drop (call $write (i32.const -1) (i32.const -1)))",
        "(drop (call $write_to (i32.const 1024) (i32.const 3) (i32.const -4) (i32.const 8)))",
        "(drop (call $next (i32.const -1) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 100)))",
        "(drop (call $next (i32.const 0) (i32.const 131070) (i32.const 0) (i32.const 1024) (i32.const 100)))",
        "(drop (call $next (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 131070) (i32.const 100)))",
        "(drop (call $random (i32.const 10) (i32.const -1)))",
        "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 0)))",
        "(drop (call $poll (i32.const 0) (i32.const 0) (i32.const 0x10000000) (i32.const 0)))",
        "(drop (call $environ (i32.const -4) (i32.const 0)))",
        "(drop (call $environ (i32.const 0) (i32.const -1)))",
        "(drop (call $time (i32.const 0) (i64.const 0) (i32.const -1)))",
    ] {
        let host = Host::wat(&format!("{wasi} (func $each (param $len i32) {code})"));
        let (run, completed, _) = give(host.start().as_mut(), &["a", "b"]);
        let failure = failure(run);
        assert_eq!(failure.class, GuestClass::Abi, "{code}: {failure}");
        assert!(failure.message.contains(says), "{code}: {failure}");
        assert!(completed <= 1, "{code}");
    }
    let bad = "(drop (call $header (i32.const -1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))";
    let (run, completed, _) =
        give(Host::wat(&format!("(func $each (param $len i32) {bad})")).start().as_mut(), &["a", "b"]);
    assert_eq!((failure(run).class, completed), (GuestClass::Abi, 0), "charged to the record before");
    let error = Host::wat(&format!(r#"(func (export "_start") {bad})"#)).try_start().err().unwrap();
    assert_eq!(error.class, GuestClass::Start);
    assert!(error.message.contains(says), "{error}");
}

#[test]
fn error_codes_are_those_of_redpanda() {
    let data = r#"(data (i32.const 2000) "\01\02a\00" "\03\01\00" "\01\08side" "\01\0enowhere" "\02" "\01\08sideX")"#;
    for (call, answer) in [
        // A record with one letter, and what is no record.
        ("(call $write (i32.const 2000) (i32.const 4))", 4),
        ("(call $write (i32.const 2000) (i32.const 3))", -2),
        ("(call $write (i32.const 2000) (i32.const 0))", -2),
        ("(call $write (i32.const 2004) (i32.const 3))", -2),
        // Options: none, a declared topic, another, an unknown option, something after the topic.
        ("(call $write_to (i32.const 2000) (i32.const 4) (i32.const 0) (i32.const 0))", 4),
        ("(call $write_to (i32.const 2000) (i32.const 4) (i32.const 2007) (i32.const 6))", 4),
        ("(call $write_to (i32.const 2000) (i32.const 4) (i32.const 2013) (i32.const 9))", -3),
        ("(call $write_to (i32.const 2000) (i32.const 4) (i32.const 2022) (i32.const 1))", -2),
        ("(call $write_to (i32.const 2000) (i32.const 4) (i32.const 2023) (i32.const 7))", -2),
        // No record left.
        ("(call $read)", -1),
    ] {
        assert_eq!(answer_of(data, call), answer, "{call}");
    }
    check_failure(
        data,
        "(drop (call $write_to (i32.const 2000) (i32.const 4) (i32.const 2007) (i32.const 4)))",
        GuestClass::Abi,
        "options",
    );
}

#[test]
fn a_buffer_that_is_too_small_loses_nothing() {
    let host = Host::wat(
        r#"(func (export "_start") (local $len i32)
             (loop $batches
               (drop (call $batch))
               (if (i32.ne (i32.const -2)
                     (call $next (i32.const 100) (i32.const 104) (i32.const 112) (i32.const 1024) (i32.const 2)))
                 (then unreachable))
               (call $copy (call $read))
               (call $copy (call $read))
               (br $batches)))"#,
    );
    let (run, _, written) = give(host.start().as_mut(), &["a", "b"]);
    assert_eq!((run, written), (Run::Finished, vec!["0/0:a".to_owned(), "0/1:b".to_owned()]));
}

#[test]
fn the_batch_header() {
    // Writes the 56 bytes of the header as a value.
    let host = Host::wat(
        "(func $each (param $len i32)
           (i32.store (i32.const 65000) (i32.const 0x7001)) ;; null key, a value of 56 bytes
           (memory.copy (i32.const 65002) (i32.const 0) (i32.const 56))
           (i32.store8 (i32.const 65058) (i32.const 0))
           (drop (call $write (i32.const 65000) (i32.const 59))))",
    );
    let mut guest = host.start();
    let stamped = |timestamp| Record { timestamp: Some(timestamp), ..Record::new(None, Some(b"v")) };
    guest.offer(records(&[stamped(1), stamped(50), stamped(90), stamped(40)]), 1);
    assert_eq!(guest.run(&budget()), Run::Finished);
    let output = guest.outputs().get(0).unwrap();
    let value = Payload::parse(output.payload).unwrap().value.unwrap();
    let i64_at = |at: usize| i64::from_le_bytes(value[at..at + 8].try_into().unwrap());
    let i32_at = |at: usize| i32::from_le_bytes(value[at..at + 4].try_into().unwrap());
    let i16_at = |at: usize| i16::from_le_bytes(value[at..at + 2].try_into().unwrap());
    assert_eq!(i64_at(0), 12, "base offset: of the first record that is to be done");
    assert_eq!(i32_at(8), 3, "records");
    assert_eq!(i32_at(12), -1, "leader epoch");
    assert_eq!(i16_at(16), 0, "attributes");
    assert_eq!(i32_at(20), 4, "last offset delta");
    assert_eq!((i64_at(24), i64_at(32)), (50, 90), "base and max timestamp");
    assert_eq!((i64_at(40), i16_at(48), i32_at(52)), (-1, -1, -1), "producer");
}

#[test]
fn a_batch_that_is_left_early_is_done() {
    let host = Host::wat(
        r#"(func (export "_start")
             (loop $batches (drop (call $batch)) (call $copy (call $read)) (br $batches)))"#,
    );
    let mut guest = host.start();
    for _ in 0..2 {
        let (run, completed, written) = give(guest.as_mut(), &["a", "b", "c"]);
        assert_eq!((run, completed, written), (Run::Finished, 3, vec!["0/0:a".to_owned()]));
    }
}

#[test]
fn what_is_written_after_the_last_record_belongs_to_it() {
    let frame = |last: &str| {
        format!(
            r#"(func (export "_start") (local $len i32)
               (loop $batches
                 (local.set $len (call $batch))
                 (loop $records (br_if $records (i32.ge_s (call $read) (i32.const 0))))
                 (call $copy (local.get $len)) {last}
                 (br $batches)))"#
        )
    };
    let (run, completed, written) = give(Host::wat(&frame("")).start().as_mut(), &["a", "b"]);
    assert_eq!((run, completed, written), (Run::Finished, 2, vec!["0/1:b".to_owned()]));
    let (run, completed, written) = give(Host::wat(&frame("unreachable")).start().as_mut(), &["a", "b"]);
    assert_eq!((failure(run).class, completed, written), (GuestClass::Trap, 1, vec![]));
}

#[test]
fn a_guest_that_fails_before_its_first_record_charges_that_one() {
    let host = Host::wat(r#"(func (export "_start") (drop (call $batch)) unreachable)"#);
    let mut guest = host.start();
    guest.offer(batch(&["a", "b", "c"]), 1);
    assert_eq!(failure(guest.run(&budget())).class, GuestClass::Trap);
    assert_eq!(guest.completed(), 1);
}

#[test]
fn main_may_not_return() {
    let host = Host::wat(r#"(func (export "_start") (drop (call $batch)) (call $copy (call $read)))"#);
    let (run, completed, written) = give(host.start().as_mut(), &["a", "b"]);
    let failure = failure(run);
    assert_eq!((failure.class, completed, written), (GuestClass::Exited, 0, vec![]));
    assert!(failure.message.contains("vm has exited"));
}

#[test]
fn the_start_section_is_bounded_too() {
    let bytes = ::wat::parse_str(
        r#"(module (import "redpanda_transform" "check_abi_version_1" (func))
             (memory (export "memory") 1) (func (export "_start"))
             (func $init (loop $l (br $l))) (start $init))"#,
    );
    let error = Host::of(&bytes.unwrap()).time(Duration::from_millis(50)).try_start().err().unwrap();
    assert_eq!(error.class, GuestClass::Start);
    assert!(error.message.contains("(timeout)"), "{error}");
}

#[test]
fn host_functions_work_in_the_start_section() {
    let bytes = ::wat::parse_str(
        r#"(module (import "redpanda_transform" "check_abi_version_1" (func))
             (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
             (memory (export "memory") 1)
             (func $init (drop (call $random (i32.const 0) (i32.const 8))))
             (func (export "_start")
               (if (i64.eq (i64.load (i32.const 0)) (i64.const 0x0909090909090909)) (then unreachable)))
             (start $init))"#,
    );
    let error = Host::of(&bytes.unwrap()).try_start().err().unwrap();
    assert!(error.message.contains("UNREACHABLE"), "the randomness is 0x09: {error}");
}

#[test]
fn a_guest_may_read_records_in_its_start_section() {
    let next =
        "(call $next (i32.const 100) (i32.const 104) (i32.const 112) (i32.const 1024) (i32.const 1000))";
    let host = Host::wat(&format!(
        r#"(func $init
             (if (i32.ne {next} (i32.const -1)) (then unreachable)) ;; there is no batch yet
             (loop $batches
               (drop (call $batch))
               (call $copy {next})
               (call $copy {next})
               (if (i32.ne {next} (i32.const -1)) (then unreachable))
               (br $batches)))
           (start $init)
           (func (export "_start"))"#
    ));
    let mut guest = host.start();
    for _ in 0..2 {
        let (run, completed, written) = give(guest.as_mut(), &["a", "b"]);
        assert_eq!((run, completed), (Run::Finished, 2));
        assert_eq!(written, ["0/0:a", "0/1:b"]);
    }
}

#[test]
fn wasi_answers_like_the_original() {
    let wasi = |name: &str, parameters: &str| {
        format!(r#"(import "wasi_snapshot_preview1" "{name}" (func $f (param {parameters}) (result i32)))"#)
    };
    for (name, parameters, arguments, answer) in [
        ("fd_close", "i32", "(i32.const 1)", 52),
        ("fd_prestat_get", "i32 i32", "(i32.const 2) (i32.const 0)", 52),
        ("fd_prestat_get", "i32 i32", "(i32.const 3) (i32.const 0)", 8),
        ("fd_fdstat_set_rights", "i32 i64 i64", "(i32.const 1) (i64.const 0) (i64.const 0)", 52),
        ("proc_raise", "i32", "(i32.const 6)", 52),
        ("clock_res_get", "i32 i32", "(i32.const 4) (i32.const 0)", 16),
        ("clock_res_get", "i32 i32", "(i32.const 3) (i32.const 0)", 0),
        ("clock_time_get", "i32 i64 i32", "(i32.const 7) (i64.const 0) (i32.const 0)", 16),
        ("fd_write", "i32 i32 i32 i32", "(i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0)", 52),
        (
            "poll_oneoff",
            "i32 i32 i32 i32",
            "(i32.const 3000) (i32.const 4000) (i32.const 1) (i32.const 0)",
            0,
        ),
    ] {
        assert_eq!(answer_of(&wasi(name, parameters), &format!("(call $f {arguments})")), answer, "{name}");
    }
    let sched = r#"(import "wasi_snapshot_preview1" "sched_yield" (func $f (result i32)))"#;
    assert_eq!(answer_of(sched, "(call $f)"), 0);
    let metadata =
        r#"(import "redpanda_transform" "read_batch_metadata" (func $f (param i32 i32 i32) (result i32)))"#;
    assert_eq!(answer_of(metadata, "(call $f (i32.const 1) (i32.const 0) (i32.const 100))"), 0);
}

#[test]
fn without_a_registry_schemas_are_not_enabled() {
    let import = |name: &str| {
        format!(
            r#"(import "redpanda_schema_registry" "{name}" (func $f (param i32 i32 i32 i32) (result i32)))"#
        )
    };
    for name in ["get_subject_schema_len", "get_schema_subject_len"] {
        let call = "(call $f (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0))";
        assert_eq!(answer_of(&import(name), call), -1);
    }
}

#[test]
fn a_coprocessor_without_outputs_writes_nothing() {
    let mut host = Host::wat(
        "(func $each (param $len i32)
           (if (i32.ne (call $write (i32.const 1024) (local.get $len)) (i32.const -3)) (then unreachable)))",
    );
    host.spec.outputs.clear();
    assert_eq!(give(host.start().as_mut(), &["a"]).0, Run::Finished);
}

#[test]
fn outputs_are_bounded_per_record_not_per_batch() {
    let mut host = Host::wat(
        "(func $each (param $len i32) (call $copy (local.get $len)) (call $copy (local.get $len)))",
    );
    host.spec.limits.max_output_bytes = 20;
    let (run, ..) = give(host.start().as_mut(), &["1234567", "1234567", "1234567"]);
    assert_eq!(run, Run::Finished);
    let (run, completed, written) = give(host.start().as_mut(), &["1234567", "12345678"]);
    assert_eq!(failure(run).class, GuestClass::OutputTooLarge);
    assert_eq!((completed, written.len()), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// The record's bytes are used as payload, as options, and as arguments: nothing may harm the host.
    #[test]
    fn no_bytes_of_a_guest_harm_the_host(bytes in proptest::collection::vec(any::<u8>(), 1..80), split in 0u32..80) {
        let body = format!(
            "(func $each (param $len i32)
               (drop (call $write_to (i32.const 1026) (i32.sub (local.get $len) (i32.const 3))
                 (i32.const 1026) (i32.rem_u (i32.const {split}) (local.get $len))))
               (drop (call $write (i32.const 1026) (i32.rem_u (i32.const {split}) (local.get $len))))
               (drop (call $write (i32.load (i32.const 1026)) (i32.load8_u (i32.const 1030)))))"
        );
        let host = Host::of(&wat(&body));
        let mut guest = host.start();
        guest.offer(batch(&[&bytes]), 0);
        let run = guest.run(&budget());
        for i in 0..guest.outputs().len() {
            prop_assert!(Payload::parse(guest.outputs().get(i).unwrap().payload).is_ok());
        }
        if let Run::Failed(failure) = run {
            prop_assert_eq!(failure.class, GuestClass::Abi);
            prop_assert!(shown(guest.outputs()).is_empty());
        }
    }
}
