//! A full disk, on a small tmpfs; skipped where mounting is not allowed.

use std::path::{Path, PathBuf};
use std::process::Command;

use coproc::log::{EmbeddedLog, Options};
use coproc::ports::{Log, LogError, TopicConfig};

use crate::support::{create, options, produce, read_all, topic, values};

/// A mounted tmpfs, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn says_so_serves_reads_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("skipped: mounting a tmpfs is not allowed here");
        return;
    };
    let store = dir.path().join("store");
    let open = || EmbeddedLog::open(&store, Options::clone(&options())).unwrap();
    let log = open();
    let name = create(&*log, "a", TopicConfig::default());
    produce(&*log, &name, 0, &["first"]);
    let ballast = dir.path().join("ballast");
    let large = "x".repeat(100_000);
    let try_one = |log: &EmbeddedLog, value: &str| {
        let record = crate::support::record(None, Some(value));
        log.produce(&[coproc::ports::Produce { topic: topic("a"), partition: Some(0), record }])
    };
    std::fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let mut written = 1;
    let error = loop {
        match try_one(&log, &large) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10_000, "the disk is not full");
    };
    assert!(matches!(error, LogError::Storage(_)), "{error:?}");
    assert!(error.to_string().contains("free some space"), "{error}");
    for _ in 0..10 {
        // Opening anew may have freed some space; then a commit goes through, and is there.
        match try_one(&log, &large) {
            Ok(_) => written += 1,
            Err(error) => assert!(matches!(error, LogError::Storage(_)), "{error:?}"),
        }
        assert_eq!(read_all(&*log, &name).len(), written, "reads go on, nothing is half applied");
    }
    std::fs::remove_file(&ballast).unwrap();
    try_one(&log, "after").unwrap();
    assert_eq!(read_all(&*log, &name).len(), written + 1);
    drop(log);
    let log = open();
    let found = values(&read_all(&*log, &name));
    assert_eq!(found.len(), written + 1);
    assert_eq!(found.last().map(String::as_str), Some("after"));
    drop(log);
    drop(disk);
}
