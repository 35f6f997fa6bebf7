//! Space is being given back, which takes long: nothing waits for that.
#![cfg(feature = "failpoints")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use coproc::log::{EmbeddedLog, Options};
use coproc::ports::{Log, Produce, TopicConfig};

use crate::support::{LONG, create, options, produce, read_all, record, topic, values};

const CHILD: &str = "COPROC_TEST_GIVING_BACK_DIR";

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Not a test of its own: the points of failure are the process's.
#[test]
fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the parent tells the child what to do")]
    let Ok(dir) = std::env::var(CHILD) else { return };
    let housekeeping_interval = Some(Duration::from_millis(20));
    let options = Options { housekeeping_interval, ..options() };
    let log = EmbeddedLog::open(Path::new(&dir), options).unwrap();
    let small = create(&*log, "small", TopicConfig::default());
    produce(&*log, &small, 0, &["one"]);
    let (has_begun, begun) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), true);
    let flag = has_begun.clone();
    fail::cfg_callback("log::reclaim", move || {
        flag.store(begun, std::sync::atomic::Ordering::Relaxed);
        // As long as the process lives.
        loop {
            std::thread::park();
        }
    })
    .unwrap();
    let large = create(&*log, "large", TopicConfig { retention_bytes: Some(1), ..TopicConfig::default() });
    let value = "x".repeat(1_000_000);
    for _ in 0..80 {
        produce(&*log, &large, 0, &[&value]);
    }
    wait_until("space is given back", || has_begun.load(std::sync::atomic::Ordering::Relaxed));
    produce(&*log, &small, 0, &["two"]);
    fail::cfg("log::commit::after_write_before_sync", "1*return").unwrap();
    let one = Produce { topic: topic("small"), partition: Some(0), record: record(None, Some("three")) };
    for _ in 0..2 {
        let error = log.produce(std::slice::from_ref(&one)).unwrap_err();
        assert!(error.to_string().contains("given back"), "{error}");
        assert_eq!(values(&read_all(&*log, &small)), ["one", "two"], "reads go on");
    }
    drop(log);
    println!("closed");
}

#[test]
fn commits_reads_recovery_and_the_end_do_not_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "giving_back::child", "--nocapture"]).env(CHILD, dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("closed"), "{text}");
    let log = crate::support::open(dir.path());
    let found = values(&read_all(&*log, &topic("small")));
    assert!(found == ["one", "two"] || found == ["one", "two", "three"], "{found:?}");
}
