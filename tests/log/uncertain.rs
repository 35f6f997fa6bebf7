//! A commit whose fate is not known, with failures put in where a disk would fail: in a process of its own, because the
//! points of failure are the process's.
#![cfg(feature = "failpoints")]

use std::path::Path;
use std::process::Command;

use coproc::ports::{Log, LogError, Produce, TopicConfig};

use crate::support::{create, open, produce, read_all, record, topic, values};

const CHILD: &str = "COPROC_TEST_UNCERTAIN_DIR";

/// Not a test of its own: fails a commit after it was written, and again when that is looked up.
#[test]
fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the parent tells the child what to do")]
    let Ok(dir) = std::env::var(CHILD) else { return };
    let log = open(Path::new(&dir));
    let names = ["left", "right"].map(|name| create(&*log, name, TopicConfig::default()));
    produce(&*log, &names[0], 0, &["sound"]);
    let one =
        |name| Produce { topic: topic(name), partition: Some(0), record: record(None, Some("unknown")) };
    fail::cfg("log::commit::after_write_before_sync", "1*return").unwrap();
    fail::cfg("log::settle::before_sync", "return").unwrap();
    let error = log.produce(&[one("left"), one("right")]).unwrap_err();
    assert!(matches!(error, LogError::Uncertain(_)), "{error:?}");
    fail::remove("log::settle::before_sync");
    // Not once but until it is known: the number of the commit that went through belongs to it.
    for _ in 0..3 {
        let error = log.produce(&[one("left")]).unwrap_err();
        assert!(error.to_string().contains("restart the process"), "{error:?}");
        assert_eq!(values(&read_all(&*log, &names[0])), ["sound"], "what was read stays as it was");
    }
}

#[test]
fn the_number_of_a_commit_of_unknown_fate_is_not_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "uncertain::child"]).env(CHILD, dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let log = open(dir.path());
    assert_eq!(values(&read_all(&*log, &topic("left"))), ["sound", "unknown"], "the whole batch is there");
    assert_eq!(values(&read_all(&*log, &topic("right"))), ["unknown"], "in both topics");
    produce(&*log, &topic("left"), 0, &["after"]);
    assert_eq!(values(&read_all(&*log, &topic("left"))), ["sound", "unknown", "after"]);
}
