//! A node on a full disk: nothing hangs, it says so, and goes on when there is room. On a small tmpfs; skipped where
//! mounting is not allowed. A process of its own, because it listens to what the process logs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coproc::core::record::Record;
use coproc::core::status::State;
use coproc::ports::{LogError, Produce};

use support::{Rig, guest, start_node, topic, wait_for};

/// Bytes of a record, and how often the guest writes it: a commit takes much more room than what it comes from.
const RECORD: usize = 50_000;
const COPIES: usize = 10;
/// Room that is left when the disk fills up, in bytes.
const ROOM: usize = 3 << 20;

/// A mounted tmpfs, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves just `ROOM`.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let piece = vec![1; 64 << 10];
        while file.write_all(&piece).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(ROOM as u64)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// What the process logs.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    /// Whether the lane said that it cannot go on for want of space.
    fn that_the_lane_waits(&self) -> bool {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().any(|line| line.contains("the lane rewinds") && line.contains("free some space"))
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// Gives the node records until its lane cannot commit any more: how many the log took.
fn produce_until_full(rig: &Rig, said: &Said) -> usize {
    let value = vec![b'x'; RECORD];
    let before = rig.read("in").len();
    for _ in 0..1_000 {
        let record = Record::new(None, Some(&value));
        match rig.log.produce(&[Produce { topic: topic("in"), partition: Some(0), record }]) {
            Ok(_) | Err(LogError::Storage(_) | LogError::Uncertain(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        let all = rig.read("in").len();
        wait_for("the lane to do the record, or to say that it cannot", || {
            (said.that_the_lane_waits() || rig.read("out").len() == all * COPIES).then_some(())
        });
        if said.that_the_lane_waits() {
            return all - before;
        }
    }
    panic!("the disk does not fill up");
}

#[test]
fn says_so_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else {
        eprintln!("skipped: mounting a tmpfs is not allowed here");
        return;
    };
    let said = Said::default();
    let writer = said.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let store = dir.path().join("store");
    let rig = Rig::at(&store);
    rig.create("in", 1);
    rig.create("out", 1);
    let node = start_node(&rig.log);
    let copies = "(drop (call $write (i32.const 4096) (local.get $len)))".repeat(COPIES - 1);
    rig.deploy("copy", &[guest(&copies)], "in", &["out"], "").unwrap();
    rig.wait_for_state("copy", State::Running);

    disk.fill();
    produce_until_full(&rig, &said);
    assert!(node.is_ready() && !node.has_failed(), "a full disk is no reason to end");
    assert!(node.metrics().text().contains("coproc_transactions_total"), "metrics are served");
    let all = rig.read("in").len();
    assert!(rig.read("out").len() < all * COPIES, "reads go on");
    assert!(rig.read("out").len().is_multiple_of(COPIES), "nothing is half done");

    std::fs::remove_file(disk.ballast()).unwrap();
    wait_for("it to go on", || (rig.read("out").len() == all * COPIES).then_some(()));
    let status = wait_for("the reason in the status", || {
        rig.status("copy").filter(|status| status.state == State::Running && status.last_error.is_some())
    });
    let error = status.last_error.unwrap();
    assert_eq!(error.reason, "LogFailed");
    assert!(error.message.contains("free some space"), "{}", error.message);

    // On a full disk it stops in time too, and what it could not commit is done after the next start.
    disk.fill();
    said.forget();
    produce_until_full(&rig, &said);
    let begin = Instant::now();
    assert!(node.stop(), "all threads ended");
    assert!(begin.elapsed() < Duration::from_secs(10), "it took {:?}", begin.elapsed());
    let all = rig.read("in").len();
    drop(rig);
    std::fs::remove_file(disk.ballast()).unwrap();
    let rig = Rig::at(&store);
    let node = start_node(&rig.log);
    wait_for("what was left", || (rig.read("out").len() == all * COPIES).then_some(()));
    assert!(node.stop());
    drop(rig);
    drop(disk);
}
