//! A good coprocessor beside a trapping, a looping and a memory-eating one: it loses less than a tenth. A process of its
//! own, so that no other test is a neighbour too.
//!
//! What is compared was measured in one run, in turns: the good one alone and beside the bad ones, both given records at
//! half the rate that it does at most. So the speed of the machine, and of the build, cancels out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

mod support;

use std::time::{Duration, Instant};

use coproc::core::record::Record;
use coproc::ports::Produce;

use support::{Rig, fragile, identity, identity_of, topic, wait_for};

/// How long a measurement takes, and how many there are of each kind.
const TIME: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
/// Records that are given at once, and the most that may wait.
const PIECE: usize = 1_000;
const BACKLOG: f64 = 100_000.0;

/// Names of the bad ones, the record that each fails at, and the class of its failure.
const BAD: [(&str, &str, &str); 3] =
    [("traps", "!", "trap"), ("loops", "@", "timeout"), ("eats", "#", "memory")];

/// Bad ones that never give up, and try again at once.
fn deploy_bad(rig: &Rig) {
    let more =
        r#""policies":{"errorPolicy":{"maxRetries":1000000,"initialBackoff":"10ms","maxBackoff":"20ms"}}"#;
    for (name, value, _) in BAD {
        let output = format!("{name}-out");
        rig.create(name, 1);
        rig.create(&output, 1);
        rig.produce(name, [value.to_owned()]);
        rig.deploy(name, &[fragile()], name, &[&output], more).unwrap();
    }
}

fn errors_of(rig: &Rig, name: &str, class: &str) -> bool {
    let line = format!("coproc_guest_errors_total{{class=\"{class}\",coprocessor=\"{name}\"}}");
    rig.node.as_ref().unwrap().metrics().text().contains(&line)
}

/// Records per second that the good one has committed when the time is over, given at most so many.
fn measure(rate: f64, is_beside: bool) -> f64 {
    let rig = Rig::new();
    rig.create("in", 1);
    rig.create("out", 1);
    if is_beside {
        deploy_bad(&rig);
        for (name, _, class) in BAD {
            wait_for("the bad ones to be bad", || errors_of(&rig, name, class).then_some(()));
        }
    }
    rig.deploy("good", &[identity()], "in", &["out"], "").unwrap();
    let committed = || -> i64 {
        rig.log.offsets().committed(&identity_of("good").consumer_group()).unwrap().values().sum()
    };
    rig.produce("in", ["first".to_owned()]);
    wait_for("the good one to run", || (committed() == 1).then_some(()));
    let record = Record::new(None, Some(&[b'v'; 100]));
    let piece = vec![Produce { topic: topic("in"), partition: Some(0), record }; PIECE];
    let begin = Instant::now();
    let mut sent = 0.0;
    while begin.elapsed() < TIME {
        let wanted = (begin.elapsed().as_secs_f64() * rate).min(committed() as f64 + BACKLOG);
        if wanted - sent >= PIECE as f64 {
            rig.log.produce(&piece).unwrap();
            sent += PIECE as f64;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    (committed() - 1) as f64 / begin.elapsed().as_secs_f64()
}

#[test]
fn bad_neighbours_take_less_than_a_tenth() {
    let solo = measure(f64::MAX, false);
    let (mut alone, mut beside) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        alone += measure(solo / 2.0, false) / ROUNDS as f64;
        beside += measure(solo / 2.0, true) / ROUNDS as f64;
    }
    let loss = 100.0 * (1.0 - beside / alone);
    println!(
        "solo {solo:.0} records/s; at half of that {alone:.0}, beside the bad ones {beside:.0}: {loss:.1} % less"
    );
    assert!(alone > solo / 4.0, "the pace was kept alone, or there is nothing to compare");
    assert!(loss < 10.0, "{loss:.1} %");
}
