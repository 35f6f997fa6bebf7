//! A guest that takes its time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::control::modules;
use coproc::kafka::Timing;
use coproc::ports::{Engine, GuestLimits, GuestSpec, Run, RunBudget};

use super::support::{guest, topic};

/// Time-outs with a transaction that is shorter than what `slow` takes.
pub fn hurried() -> Timing {
    Timing {
        socket: Duration::from_millis(1_500),
        transaction: Duration::from_millis(1_700),
        session: Duration::from_secs(6),
        max_poll: Duration::from_secs(30),
    }
}

/// Takes about 5 seconds, with the engine that the nodes use, at values that start with `s`, and copies.
pub fn slow() -> Vec<u8> {
    // At its fastest: what else runs now may be gone later.
    spinning((0..3).map(|_| spins_per_second()).max().unwrap_or(1) * 5)
}

/// How often a guest goes round in a second, about: with the same engine that the nodes use.
fn spins_per_second() -> u64 {
    let engine = coproc::wasm::Wasmtime::new(coproc::wasm::WasmOptions::default(), None).unwrap();
    let module = spinning(500_000_000);
    let program = engine.compile(&module, modules::digest_of(&module)).unwrap();
    let spec = GuestSpec {
        name: "spin".into(),
        step: "spin".into(),
        input: topic("spin"),
        outputs: vec![topic("spin")],
        env: BTreeMap::new(),
        limits: GuestLimits {
            memory: 8 << 20,
            time_per_record: Duration::from_mins(1),
            max_output_bytes: 1 << 20,
        },
    };
    let mut guest = program.start(&spec, Arc::new(coproc::node::guest_logs::NoLines)).unwrap();
    let mut batch = coproc::core::record::Batch::default();
    batch.reset(&topic("spin"), 0);
    batch.push(0, 0, &coproc::core::record::Record::new(None, Some(b"slow")).payload());
    guest.offer(batch, 0);
    let budget = RunBudget {
        stop: Arc::default(),
        gently: false,
        output_bytes: 1 << 20,
        time: Duration::from_mins(1),
    };
    let began = Instant::now();
    assert_eq!(guest.run(&budget), Run::Finished);
    (500_000_000.0 / began.elapsed().as_secs_f64()) as u64
}

/// Goes round so often at values that start with `s`.
fn spinning(rounds: u64) -> Vec<u8> {
    let rounds = rounds.cast_signed();
    guest(&format!(
        "(if (i32.eq (i32.load8_u (i32.const 4098)) (i32.const 115)) (then
             (i64.store (i32.const 1024) (i64.const {rounds}))
             (loop $round
                 (i64.store (i32.const 1024) (i64.sub (i64.load (i32.const 1024)) (i64.const 1)))
                 (br_if $round (i64.ne (i64.load (i32.const 1024)) (i64.const 0))))))"
    ))
}
